"""The one currency: a denoiser D(x, t, cond=None) -> x0_hat, and everything else as a function of it.

A denoiser also has `.schedule`, the noise schedule under which x is noisy. Score, noise and ODE slope follow from x0_hat;
five parameterisations of a network are five pairs of coefficients; guidance is a denoiser made of two.

Conditions are labels, one per row; -1, or None for the whole batch, means unconditional.
"""

import copy
from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual

from .arguments import described, need_positive, need_within, widened
from .schedules import Schedule, as_time


class Denoiser(Protocol):
    """D(x (B, ...), t scalar or (B,), cond (B,) or None) -> x0_hat (B, ...), the mean of x_0 given x_t = x."""

    schedule: Schedule

    def __call__(self, x: Tensor, t, cond: Tensor | None = None) -> Tensor: ...


def per_row(c: Tensor, x: Tensor, name: str = "t") -> Tensor:
    """A coefficient, one number or one per row of x, shaped and typed to multiply x (B, ...) row by row.

    Without this a (B,) vector would broadcast along the *last* axis of x, which goes unnoticed at B = 1. ValueError for
    any other shape, with the name of what the coefficient depends on. One number stays on the CPU: no copy is waited for.
    """
    c = torch.as_tensor(c)
    if c.ndim == 0:
        return c.to(x.dtype) if c.is_cpu else c.to(x)
    if c.shape != x.shape[:1]:
        raise ValueError(f"{name}: expected one number or one per row, shape () or ({len(x)},), got {tuple(c.shape)}")
    return c.to(x).reshape(-1, *[1] * (x.ndim - 1))


def at(f: Callable, schedule: Schedule, x: Tensor, *times) -> tuple:
    """The coefficients f(schedule, *times), to multiply x: Python numbers for single times, otherwise `per_row`.

    Numbers cost a step less than tensors do, and are kept for the next walk down the same grid. f is a function of a module.
    """
    for t in times:
        if isinstance(t, Tensor) and (t.ndim or differentiated(t)):
            return tuple(per_row(c, x) for c in f(schedule, *map(as_time, times)))
    return (_kept if type(schedule).__hash__ else _kept.__wrapped__)(f, schedule, *map(float, times))


@lru_cache(maxsize=4096)
def _kept(f: Callable, schedule: Schedule, *times: float) -> tuple[float, ...]:
    return tuple(c.item() for c in f(schedule, *map(as_time, times)))


def differentiated(t: Tensor) -> bool:
    """Whether a derivative by t is under way, backwards or forwards: no number in its place would know of it."""
    return t.requires_grad or unpack_dual(t).tangent is not None


def plus_(x: Tensor, w, value: Tensor) -> Tensor:
    """x + w value; in x's own memory if w is a number, as fresh memory costs more than the sum."""
    return x.add_(value, alpha=w) if isinstance(w, float) else x + w * value


def for_rows(D: Denoiser, rows: Tensor, x: Tensor) -> Denoiser:
    """D for the batch x[rows] (R, ...) in place of x (B, ...): what it holds for each row, a weight or a number, follows."""
    return D.for_rows(rows, x) if hasattr(D, "for_rows") else D


def levels(D: Denoiser, x: Tensor, t) -> tuple[Tensor, Tensor]:
    """alpha(t) and sigma(t) of D's schedule, shaped to multiply x."""
    return per_row(D.schedule.alpha(t), x), per_row(D.schedule.sigma(t), x)


def noised(schedule: Schedule, x0: Tensor, t, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """x_t = alpha(t) x0 + sigma(t) noise (B, ...) at t, one time or (B,), and its noise, drawn from the generator."""
    noise = torch.randn(x0.shape, generator=generator, device=x0.device)
    return per_row(schedule.alpha(t), x0) * x0 + per_row(schedule.sigma(t), x0) * noise, noise


def score(D: Denoiser, x: Tensor, t, cond: Tensor | None = None) -> Tensor:
    """Score of the noisy marginal, grad log p_t(x) = (alpha x0_hat - x)/sigma^2: Tweedie's formula read backwards.

    Raises ValueError for a model whose output is not a posterior mean (a one-step student, a consistency function).
    """
    _need_posterior_mean(D)
    alpha, sigma = levels(D, x, t)
    return (alpha * D(x, t, cond) - x) / sigma**2


def _need_posterior_mean(D: Denoiser) -> None:
    if not getattr(D, "is_posterior_mean", True):
        raise ValueError(f"D: {type(D).__name__} does not return a posterior mean, so it has no score")


def eps(D: Denoiser, x: Tensor, t, cond: Tensor | None = None) -> Tensor:
    """The noise that D sees in x, (x - alpha x0_hat)/sigma = -sigma score."""
    alpha, sigma = levels(D, x, t)
    return (x - alpha * D(x, t, cond)) / sigma


def velocity(D: Denoiser, x: Tensor, t, cond: Tensor | None = None) -> Tensor:
    """Slope dx/dt = f x - g^2 score/2 of the probability flow ODE (Song et al. 2021, eq. 13)."""
    _need_posterior_mean(D)
    wide = widened(x)                                                                   # g^2 of VE is beyond half
    of_x, of_x0 = at(_slopes, D.schedule, wide, t)
    return plus_(of_x * wide, of_x0, D(x, t, cond)).to(x)


def _slopes(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """The slope is f x - g^2/2 (alpha x0_hat - x)/sigma^2: how much of x, and how much of x0_hat."""
    pull = schedule.diffusion2(t) / (2 * schedule.sigma(t) ** 2)
    return schedule.drift(t) + pull, -pull * schedule.alpha(t)


def tweedie(score_value: Tensor, x: Tensor, schedule: Schedule, t) -> Tensor:
    """x0_hat = (x + sigma^2 score)/alpha, the posterior mean from the score (Robbins 1956; Efron 2011)."""
    alpha, sigma = per_row(schedule.alpha(t), x), per_row(schedule.sigma(t), x)
    return (x + sigma**2 * score_value) / alpha


# ---------------------------------------------------------------------------------------------- parameterisations
class Parameterisation:
    """What a network F predicts: x0_hat = c_skip x + c_out F(c_in x), all three functions of alpha and sigma (tensors).

    The regression target is then (x0 - c_skip x)/c_out for each of them: x0, eps, v, ... with no case distinction. A subclass
    says what c_skip and c_out are.
    """

    def c_in(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Scales the network's input to unit variance for data of unit variance; it is 1 for every VP schedule."""
        return (alpha**2 + sigma**2).rsqrt()


class X0(Parameterisation):
    """F = x0_hat."""

    def c_skip(self, alpha, sigma):
        return torch.zeros_like(alpha)

    def c_out(self, alpha, sigma):
        return torch.ones_like(alpha)


class Eps(Parameterisation):
    """F = eps_hat (Ho et al. 2020): x0_hat = (x - sigma F)/alpha."""

    def c_skip(self, alpha, sigma):
        return 1 / alpha

    def c_out(self, alpha, sigma):
        return -sigma / alpha


class V(Parameterisation):
    """F = alpha eps - sigma x0 (Salimans & Ho 2022): well conditioned at both ends."""

    def c_skip(self, alpha, sigma):
        return alpha / (alpha**2 + sigma**2)

    def c_out(self, alpha, sigma):
        return -sigma / (alpha**2 + sigma**2)


class FlowVelocity(Parameterisation):
    """F = eps - x0, the velocity of a straight line from data to noise (Lipman et al. 2023)."""

    def c_skip(self, alpha, sigma):
        return 1 / (alpha + sigma)

    def c_out(self, alpha, sigma):
        return -sigma / (alpha + sigma)


class EDM(Parameterisation):
    """Input and target of unit variance for data of standard deviation sigma_data (Karras et al. 2022, table 1)."""

    def __init__(self, sigma_data: float = 0.5):
        self.sigma_data = need_positive(sigma_data, "sigma_data", "a positive standard deviation")

    def c_skip(self, alpha, sigma):
        return alpha * self.sigma_data**2 / (sigma**2 + (alpha * self.sigma_data) ** 2)

    def c_out(self, alpha, sigma):
        return sigma * self.sigma_data * (sigma**2 + (alpha * self.sigma_data) ** 2).rsqrt()

    def c_in(self, alpha, sigma):
        return (sigma**2 + (alpha * self.sigma_data) ** 2).rsqrt()


class Preconditioned(nn.Module):
    """A network as a denoiser: x0_hat = c_skip x + c_out F(c_in x, c_noise, cond).

    The network is told the noise level as c_noise = -log_snr/8 (EDM's log(sigma)/4), so it does not depend on a schedule's
    clock. network(x (B, ...), c_noise (B,), cond (B,) or None) -> (B, ...). One that was trained to be told
    more takes numbers (B, k) as well.
    """

    is_posterior_mean = True

    def __init__(self, network: nn.Module, schedule: Schedule, parameterisation: Parameterisation):
        super().__init__()
        self.network, self.schedule, self.parameterisation = network, schedule, parameterisation

    def forward(self, x: Tensor, t, cond: Tensor | None = None, numbers: Tensor | None = None) -> Tensor:
        skip, out, _ = self.coefficients(x, t)
        return skip * x + out * self.predict(x, t, cond, numbers)

    def predict(self, x: Tensor, t, cond: Tensor | None = None, numbers: Tensor | None = None) -> Tensor:
        """F(c_in x, c_noise, cond, numbers), the network's own output (B, ...)."""
        c_in = self.coefficients(x, t)[2]
        ones = x.new_ones(len(x))
        return self.network(c_in * x, per_row(self.clock(t), ones) * ones, cond, *([] if numbers is None else [numbers]))

    def clock(self, t) -> Tensor:
        """c_noise, what the network is told of the time: -log_snr/8, within [-2.5, 2.5]."""
        return (-self.schedule.log_snr(t) / 8).clamp(-2.5, 2.5)

    def target(self, x0: Tensor, x: Tensor, t) -> Tensor:
        """What F should be: (x0 - c_skip x)/c_out, in every parameterisation."""
        skip, out, _ = self.coefficients(x, t)
        return (x0 - skip * x) / out

    def coefficients(self, x: Tensor, t) -> tuple[Tensor, Tensor, Tensor]:
        """c_skip, c_out, c_in at t, computed in t's precision and shaped to multiply x."""
        alpha, sigma, p = self.schedule.alpha(t), self.schedule.sigma(t), self.parameterisation
        return tuple(per_row(c(alpha, sigma), x) for c in (p.c_skip, p.c_out, p.c_in))


class Student(Preconditioned):
    """A network of the same form whose output is no posterior mean: a distilled step or a consistency function.

    Steps and samplers take it like any denoiser; `score` refuses it. In every parameterisation but X0 it is the identity
    at t = 0, where c_skip = 1 and c_out = 0: the boundary condition of a consistency function.
    """

    is_posterior_mean = False

    @classmethod
    def of(cls, teacher: Preconditioned, network: nn.Module | None = None) -> "Student":
        """A student that starts as its teacher: with a copy of its network, or with a like one that is told more numbers."""
        copied = copy.deepcopy(teacher.network if network is None else network)
        copied.load_state_dict(teacher.network.state_dict() | {k: v for k, v in copied.state_dict().items() if "hear" in k})
        return cls(copied.requires_grad_(True), teacher.schedule, teacher.parameterisation)


# ---------------------------------------------------------------------------------------------- guidance
class Guided:
    """Classifier-free guidance in one batched call; see `guided`."""

    def __init__(self, D: Denoiser, weight, interval: tuple[float, float]):
        self.D, self.weight, self.interval, self.schedule = D, weight, interval, D.schedule
        self.cost = 2 * getattr(D, "cost", 1)                                       # network evaluations per call
        self.is_posterior_mean = getattr(D, "is_posterior_mean", True)

    def __call__(self, x: Tensor, t, cond: Tensor | None = None) -> Tensor:
        if cond is None or cond.shape[:1] != x.shape[:1] or cond.is_floating_point():
            raise ValueError(f"cond: guidance needs a condition for every row, got {described(cond)}; "
                             f"expected whole numbers for {len(x)} rows")
        t = as_time(t)
        weight = per_row(as_time(self.weight), x, "weight")
        inside = (self.interval[0] <= t) & (t <= self.interval[1])
        both = torch.arange(len(x), device=x.device).repeat(2)
        both_t = t if t.ndim == 0 else torch.cat([t, t])
        c, u = for_rows(self.D, both, x)(x[both], both_t, torch.cat([cond, torch.full_like(cond, -1)])).chunk(2)
        return c + weight * per_row(inside, x) * (c - u)

    def for_rows(self, rows: Tensor, x: Tensor) -> "Guided":
        return Guided(for_rows(self.D, rows, x), _of_rows(self.weight, rows, x, "weight"), self.interval)


def guided(D: Denoiser, weight, interval: tuple[float, float] = (0.0, 1.0)) -> Denoiser:
    """Classifier-free guidance D_c + w (D_c - D_u) (Ho & Salimans 2022): w = 0 is conditional, w = -1 unconditional.

    weight: one number or one a row (B,). diffusers' guidance_scale is 1 + w. Outside the interval of times the weight is 0
    (Kynkaanniemi et al. 2024). ValueError for an interval whose ends are in the wrong order.
    """
    need_within(interval[0], "interval", 0, interval[1], f"a start from 0 to its end, {interval[1]:g}")
    return Guided(D, weight, interval)


class Told:
    """A denoiser whose network is told the same number, such as its guidance weight, at every call: one evaluation."""

    def __init__(self, D: Preconditioned, number):
        self.D, self.number, self.schedule, self.is_posterior_mean = D, number, D.schedule, D.is_posterior_mean

    def __call__(self, x: Tensor, t, cond: Tensor | None = None) -> Tensor:
        ones = x.new_ones(len(x), 1)
        return self.D(x, t, cond, per_row(as_time(self.number), ones, "number") * ones)

    def for_rows(self, rows: Tensor, x: Tensor) -> "Told":
        return Told(self.D, _of_rows(self.number, rows, x, "number"))


def told(D: Preconditioned, number) -> Denoiser:
    """D with its further number, one or one a row (B,), held fixed: told(student, w) in place of guided(teacher, w).

    D itself for None.
    """
    return D if number is None else Told(D, number)


def _of_rows(values, rows: Tensor, x: Tensor, name: str) -> Tensor:
    """One value or one for each row of x, for the batch x[rows]."""
    values = per_row(as_time(values), x, name)
    return values if values.ndim == 0 else values.flatten()[rows]
