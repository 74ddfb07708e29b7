"""Cases that the exercises of several chapters are tried on."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ...denoiser import levels
from ...schedules import VE, CosineVP, Flow, LinearVP, Schedule, SubVP

SCHEDULES = (LinearVP(), CosineVP(), VE(), SubVP(), Flow())
SHAPES = ((1, 2), (2, 2), (5, 2), (1, 1, 8, 8), (8, 1, 8, 8))  # (2, 2) and (8, 1, 8, 8) let a bare (B,) slip through


class Blob:
    """Exact denoiser of N(0.3, 0.6^2) in every dimension, for rows of any shape."""

    def __init__(self, schedule: Schedule, mean: float = 0.3, std: float = 0.6):
        self.schedule, self.mean, self.std = schedule, mean, std

    def __call__(self, x: Tensor, t, cond: Tensor | None = None) -> Tensor:
        alpha, sigma = levels(self, x, t)
        gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        return self.mean + gain * (x - alpha * self.mean)


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    """Standard normal numbers in double precision."""
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def between(generator: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    """Uniform numbers from low to high in double precision."""
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)


def one_step(generator: torch.Generator) -> Iterator[tuple]:
    """D, x, t, s, z with a time per row; t - s is never small. The last states are in single precision, as networks have them.
    """
    for schedule in SCHEDULES:
        t = between(generator, 0.5, 0.95)                           # a time for all rows
        yield Blob(schedule), normal(generator, 1, 2), t, t * between(generator, 0.2, 0.8), normal(generator, 1, 2)
        for shape in SHAPES:
            t = between(generator, 0.5, 0.95, shape[0])
            s = t * between(generator, 0.2, 0.8, shape[0])
            yield Blob(schedule), normal(generator, *shape), t, s, normal(generator, *shape)
    x, t, s = normal(generator, 3, 2).float(), between(generator, 0.5, 0.95, 3), between(generator, 0.2, 0.8, 3)
    yield Blob(SCHEDULES[1]), x, t, t * s, normal(generator, 3, 2).float()


def jumps(generator: torch.Generator) -> Iterator[tuple]:
    """D, x, t, s, z; t - s is large, and s = 0 in some of the cases."""
    for i, (D, x, t, s, z) in enumerate(one_step(generator)):
        yield D, x, t, 0 * s if i % 3 == 2 else s, z


class Toy(nn.Module):
    """A little function f(x, t) with one weight, for rows of any shape."""

    def __init__(self, schedule: Schedule, weight: float):
        super().__init__()
        self.schedule, self.weight = schedule, nn.Parameter(torch.tensor(weight, dtype=torch.float64))

    def forward(self, x: Tensor, t, cond: Tensor | None = None) -> Tensor:
        alpha, sigma = levels(self, x, t)
        return alpha * x + sigma * (self.weight * x + 0.3).sin()
