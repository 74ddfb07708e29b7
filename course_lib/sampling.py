"""The driver: lifts a step to a sampler, draws its noise, counts what it costs.

A step is a pure function step(D, x, t, s, z=None, cond=None) -> x_s from time t to s < t. A stochastic step says how many
noise tensors it consumes with the decorator @draws(k); the driver hands them in. Nothing else in the course loops over time
for a one-step method, and nothing but the driver draws noise.
"""

import inspect
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise, repeat

import torch
from torch import Tensor

from .arguments import described, need_shape, need_state
from .denoiser import Denoiser, for_rows

Step = Callable[..., Tensor]


def draws(k: int) -> Callable[[Step], Step]:
    """Mark a step that consumes k noise tensors: z is shaped like x for k = 1, and (k, *x.shape) for more."""

    def mark(step: Step) -> Step:
        step.draws = k
        return step

    return mark


def need_noise(z: Tensor | None, x: Tensor, step_name: str, k: int = 1) -> Tensor:
    """z in the dtype of x; or a ValueError that says why a stochastic step cannot go on without k draws shaped like x."""
    if z is None:
        raise ValueError(f"z: {step_name} is a stochastic step and takes its noise as an argument, got None")
    return need_shape(z, x.shape if k == 1 else (k, *x.shape), "z", f"the noise of {step_name}, ").to(x)


def check_grid(ts: Tensor) -> Tensor:
    """ts, if it is a decreasing time grid (n+1,) within [0, 1] of at least one step; otherwise a ValueError."""
    if not isinstance(ts, Tensor) or ts.ndim != 1 or len(ts) < 2 or not ts.is_floating_point():
        raise ValueError(f"ts: expected a float tensor of at least two times, got {described(ts)}")
    if not bool((ts[1:] < ts[:-1]).all()):
        raise ValueError(f"ts: times must fall from noise to data without repeats, got {_brief(ts)}")
    if not (ts[0] <= 1 and ts[-1] >= 0):
        raise ValueError(f"ts: times must lie in [0, 1], got {_brief(ts)}")
    return ts


def _brief(ts: Tensor) -> str:
    shown = [f"{t:.4g}" for t in ts.tolist()]
    return ", ".join(shown if len(shown) <= 6 else [*shown[:3], "...", *shown[-2:]])


def prior(D: Denoiser, shape: tuple[int, ...], generator: torch.Generator | None = None, **kwargs) -> Tensor:
    """Pure noise N(0, sigma(t_max)^2 I) to start from; dtype and device as keywords."""
    return D.schedule.sigma(D.schedule.t_max).item() * torch.randn(shape, generator=generator, **kwargs)


def sample(D: Denoiser, x: Tensor, ts: Tensor, step: Step, generator: torch.Generator | None = None,
           noise: Tensor | None = None, cond: Tensor | None = None) -> Iterator[Tensor]:
    """Walk x (B, ...), given at time ts[0], down the grid ts (n+1,): yields the n states at ts[1], ..., ts[n].

    noise (n, ...) holds the draws of every step beforehand; otherwise they come from the generator, one step at a time.
    The last state sits at ts[-1]; an empty batch stays empty. Raises ValueError for a grid that does not decrease, a state
    that is none or noise of the wrong shape, FloatingPointError where a state is not finite.
    """
    k = getattr(need_step(step), "draws", 0)
    need_state(x)
    check_grid(ts)
    shape = tuple(x.shape) if k <= 1 else (k, *x.shape)
    zs = noises(len(ts) - 1, shape, x, generator, noise) if k else repeat(None)
    return _walk(D, x, ts, step, zs, cond)


def noises(n: int, shape: tuple[int, ...], x: Tensor, generator: torch.Generator | None = None,
           noise: Tensor | None = None) -> Iterator[Tensor]:
    """Standard normal noise for n steps, each drawn in its turn, of x's dtype and device; or what `noise` (n, *shape) holds."""
    if noise is None:
        return (torch.randn(shape, generator=generator, dtype=x.dtype, device=x.device) for _ in range(n))
    return iter(need_shape(noise, (n, *shape), "noise").to(x))


def _walk(D, x, ts, step, zs, cond):
    for (t, s), z in zip(pairwise(ts), zs):
        x = need_finite(step(D, x, t, s, z, cond), t, s)
        yield x


def need_finite(x: Tensor, t, s) -> Tensor:
    """x, or a FloatingPointError that names the step from t to s after which it holds NaN or infinity."""
    if not math.isfinite(x.sum().item()) and not x.isfinite().all().item():      # a sum is quick, but may itself overflow
        raise FloatingPointError(f"x: NaN or infinity after the step from t = {float(t):.6g} to s = {float(s):.6g}")
    return x


def need_step(step: Step) -> Step:
    """step, if it is one; ValueError for a sampler, which takes a whole grid."""
    if "ts" in inspect.signature(step).parameters:
        raise ValueError(f"step: expected a step from t to s, such as ddim, got the sampler {step}, which takes a whole grid")
    return step


class Counted:
    """A denoiser that counts, or has a `book` that does: .nfe evaluations a sample, .depth how many had to wait for another."""

    def __init__(self, D: Denoiser, book: "Counted | None" = None):
        self.D, self.schedule, self.cost = D, D.schedule, getattr(D, "cost", 1)
        self.is_posterior_mean = getattr(D, "is_posterior_mean", True)
        self.book, self.nfe, self.depth = book or self, 0, 0

    def __call__(self, x: Tensor, t, cond: Tensor | None = None, *numbers: Tensor) -> Tensor:
        self.book.nfe += self.cost
        self.book.depth += 1
        return self.D(x, t, cond, *numbers)

    def for_rows(self, rows: Tensor, x: Tensor) -> "Counted":
        return Counted(for_rows(self.D, rows, x), self.book)


@dataclass(frozen=True)
class Result:
    """The last state x (B, ...) and what it cost."""

    x: Tensor
    nfe: int
    depth: int


@torch.no_grad()
def last(sampler: Callable[..., Iterator[Tensor]], D: Denoiser, x: Tensor, ts: Tensor, **kwargs) -> Result:
    """The last state of sampler(D, x, ts, **kwargs), any iterator of states, with its counts and without gradients."""
    counted = Counted(D)
    x = deque(sampler(counted, x, ts, **kwargs), maxlen=1).pop()
    return Result(x, counted.nfe, counted.depth)


def final(D: Denoiser, x: Tensor, ts: Tensor, step: Step, generator: torch.Generator | None = None,
          noise: Tensor | None = None, cond: Tensor | None = None) -> Result:
    """The last state of `sample` with its counts, without gradients."""
    return last(sample, D, x, ts, step=step, generator=generator, noise=noise, cond=cond)
