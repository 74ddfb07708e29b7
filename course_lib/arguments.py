"""What functions accept: a check returns its argument, or raises a ValueError that names it, what came and what was wanted."""

import math

import torch
from torch import Tensor

WHOLE = (torch.int8, torch.int16, torch.int32, torch.int64)  # dtypes that hold -1


def described(value) -> str:
    """Shape and dtype of a tensor; anything else as it prints."""
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else repr(value)


def need_state(x: Tensor, name: str = "x") -> Tensor:
    """x, if it is a batch of floating-point states (B, ...); B may be 0."""
    if not isinstance(x, Tensor) or x.ndim < 2 or not x.is_floating_point():
        raise ValueError(f"{name}: expected floating-point states (B, ...), got {described(x)}")
    return x


def need_shape(value: Tensor, shape: tuple[int, ...], name: str, what: str = "") -> Tensor:
    """value, if it is a tensor of just this shape: what broadcasts would give all rows the same."""
    if not isinstance(value, Tensor) or tuple(value.shape) != tuple(shape):
        raise ValueError(f"{name}: expected {what}shape {tuple(shape)}, got {described(value)}")
    return value


def need_labels(labels: Tensor, shape: tuple[int, ...], count: int, name: str = "cond", least: int = -1) -> Tensor:
    """Whole numbers of this shape from `least` to count - 1, as int64; -1 stands for none."""
    if not isinstance(labels, Tensor) or tuple(labels.shape) != tuple(shape) or labels.dtype not in WHOLE:
        raise ValueError(f"{name}: expected signed whole numbers of shape {tuple(shape)}, got {described(labels)}")
    if bool(((labels < least) | (labels >= count)).any()):
        raise ValueError(f"{name}: expected numbers in {least}..{count - 1}, got {labels.min()}..{labels.max()}")
    return labels.long()


def need_whole(value: int, name: str, least: int = 1, what: str = "a whole number") -> int:
    """value, if it is an int, at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}: expected {what}, at least {least}, got {value!r}")
    return value


def need_positive(value: float, name: str, what: str = "a positive number") -> float:
    """value, if it is above 0 and finite."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name}: expected {what}, got {value!r}")
    return value


def need_within(value: float, name: str, low: float, high: float, what: str = "") -> float:
    """value, if it is finite and low <= value <= high."""
    if not low <= value <= high or math.isinf(value):
        raise ValueError(f"{name}: expected {what or f'a finite number from {low:g} to {high:g}'}, got {value!r}")
    return value


def mean_of(values: Tensor, name: str = "x0") -> Tensor:
    """The mean of a batch's values (B, ...), which an empty one has not. `name` is the batch's."""
    if values.numel() == 0:
        raise ValueError(f"{name}: expected at least one row, got none")
    return values.mean()


def widened(x: Tensor) -> Tensor:
    """x in single precision at least: a sum of squares overflows in half."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
