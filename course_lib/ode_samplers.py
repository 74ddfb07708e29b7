"""The probability flow ODE dx/dt = velocity(D, x, t), which has the marginals of the SDE and no noise (Song et al. 2021,
section 4.3): fixed steps, an adaptive solver, and what only an ODE can do, encode data and tell its likelihood.

Its slope is 0/0 at t = 0, so that grids stop before, at schedule.t_min. Times are float64, states keep the dtype of x.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .arguments import need_positive, need_shape, need_state, need_whole
from .denoiser import Denoiser, at, plus_, velocity
from .sampling import check_grid, need_finite
from .schedules import as_time

# A divergence: (v, x (B, ...)) -> (v(x) (B, ...), tr(dv/dx) (B,)).
Divergence = Callable[[Callable[[Tensor], Tensor], Tensor], tuple[Tensor, Tensor]]


# ---------------------------------------------------------------------------------------------- fixed steps
def euler(D: Denoiser, x: Tensor, t, s, z: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
    """One Euler step of the ODE from t to s, x + (s - t) dx/dt: (B, ...) -> (B, ...), order 1; z is not used."""
    h, _ = at(_width, D.schedule, x, t, s)
    return x + h * velocity(D, x, t, cond)


def heun(D: Denoiser, x: Tensor, t, s, z: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
    """One Heun step of the ODE from t to s, order 2: the mean of the slopes at both ends; z is not used.

    x (B, ...) -> (B, ...), two evaluations. Karras et al. 2022, algorithm 1, in t: where sigma(s) = 0 there is no slope,
    and the Euler step stands.
    """
    h, sigma = at(_width, D.schedule, x, t, s)
    d = velocity(D, x, t, cond)
    x_euler = x + h * d
    if isinstance(sigma, float):                                                        # one time for all rows
        return plus_(x + h / 2 * d, h / 2, velocity(D, x_euler, s, cond)) if sigma else x_euler
    return torch.where(sigma > 0, x + h / 2 * (d + velocity(D, x_euler, s, cond)), x_euler)


def _width(schedule, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """How far a step goes, and the noise that is left then."""
    return s - t, schedule.sigma(s)


# ---------------------------------------------------------------------------------------------- Dormand-Prince 5(4)
# Stages 2 to 7: when, and from how much of the slopes so far. The last is the new state itself, so that its slope serves as
# the first of the next step (Dormand & Prince 1980, table 2; Hairer, Norsett & Wanner 1993, table II.5.2).
STAGES = (
    (1 / 5, (1 / 5,)),
    (3 / 10, (3 / 40, 9 / 40)),
    (4 / 5, (44 / 45, -56 / 15, 32 / 9)),
    (8 / 9, (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729)),
    (1, (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656)),
    (1, (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)),
)
ERROR = (71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)       # fifth minus fourth order
QUARTIC = (-12715105075 / 11282082432, 0, 87487479700 / 32700410799, -10690763975 / 1880347072,
           701980252875 / 199316789632, -1453857185 / 822651844, 69997945 / 29380423)    # ibid., II.6: dense output


def _combine(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    return sum(w * k for w, k in zip(weights, slopes, strict=True) if w)


def _between(theta: float, h: float, x: Tensor, x_s: Tensor, slopes: list[Tensor]) -> Tensor:
    """The state at the fraction theta of a step: a cubic through both ends and their slopes, and a quartic correction."""
    rise = x_s - x
    start, end = h * slopes[0] - rise, rise - h * slopes[-1]
    quartic = h * _combine(QUARTIC, slopes)
    return x + theta * (rise + (1 - theta) * (start + theta * (end - start + (1 - theta) * quartic)))


def _dormand_prince(f: Callable, x: Tensor, times: list[float], rtol: float, atol: float) -> Iterator[Tensor]:
    """The states at times[1:] of dx/dt = f(t, x) from x (B, ...) at times[0], in either direction of time.

    The rows share their steps. A step is kept if in every row the root mean square of error/(atol + rtol |x|) is at most 1.
    Steps know nothing of the times between the ends: those states are interpolated.
    """
    t, end, asked = times[0], times[-1], deque(times[1:])
    h, growth = (end - t) / 100, 10.0
    slope = f(t, x)
    while asked:
        s = t + h if abs(h) < abs(end - t) else end
        h = s - t
        slopes = [slope]
        for c, weights in STAGES:
            x_s = x + h * _combine(weights, slopes)
            slopes.append(f((1 - c) * t + c * s, x_s))                                    # exactly s for c = 1
        scale = atol + rtol * torch.maximum(x.abs(), x_s.abs())
        ratios = (h * _combine(ERROR, slopes) / scale).flatten(1).square().mean(1).sqrt()
        error = max(need_finite(ratios, t, s).tolist(), default=0.0)                       # an empty batch makes none
        if error <= 1:
            while asked and (theta := (asked[0] - t) / h) <= 1:
                asked.popleft()
                yield need_finite(_between(theta, h, x, x_s, slopes), t, s)
            t, x, slope = s, x_s, slopes[-1]
        elif abs(h) < 1e-12 * abs(end - times[0]):
            raise RuntimeError(f"rtol, atol: {rtol:g} and {atol:g} are out of reach in {x.dtype} at t = {t:.6g}; loosen them")
        h *= min(growth, max(0.2, 0.9 * max(error, 1e-10) ** -0.2))                        # the error goes like h^5
        growth = 10.0 if error <= 1 else 1.0


def _check(D: Denoiser, x: Tensor, name: str, t_end: float, rtol: float, atol: float) -> None:
    need_state(x, name)
    finest = 10 * torch.finfo(x.dtype).eps
    if not finest <= rtol < math.inf:
        raise ValueError(f"rtol: expected a number, at least {finest:.2g} for a state in {x.dtype}, got {rtol!r}")
    need_positive(atol, "atol")
    if not D.schedule.sigma(t_end) > 0:
        raise ValueError(f"ts: the slope of the ODE is 0/0 without noise, got a grid down to t = {t_end:g}; stop at t_min")


def rk45(D: Denoiser, x: Tensor, ts: Tensor, rtol: float = 1e-5, atol: float = 1e-5,
         cond: Tensor | None = None) -> Iterator[Tensor]:
    """Walk x (B, ...) from ts[0] down to ts[-1] by Dormand and Prince's adaptive 5(4) pair: yields the states at ts[1:].

    One evaluation and six more for each step tried, whatever the number of times asked for: states between steps are
    interpolated to fourth order. All rows take the same steps, short enough for the worst of them. Raises ValueError for a
    bad grid or tolerance, RuntimeError if the tolerance cannot be met.
    """
    times = check_grid(ts).tolist()
    _check(D, x, "x", times[-1], rtol, atol)
    return _dormand_prince(lambda t, x: velocity(D, x, as_time(t), cond), x, times, rtol, atol)


@torch.no_grad()
def encode(D: Denoiser, x0: Tensor, ts: Tensor, rtol: float = 1e-5, atol: float = 1e-5,
           cond: Tensor | None = None) -> Tensor:
    """Data x0 (B, ...) at ts[-1] to its noise (B, ...) at ts[0]: the ODE upwards, by the solver that `rk45` runs downwards.

    Only the two ends of the grid matter. Raises what `rk45` raises.
    """
    top, *_, bottom = check_grid(ts).tolist()
    _check(D, x0, "x0", bottom, rtol, atol)
    return next(_dormand_prince(lambda t, x: velocity(D, x, as_time(t), cond), x0, [bottom, top], rtol, atol))


# ---------------------------------------------------------------------------------------------- likelihood
def _quadratic_forms(v: Callable[[Tensor], Tensor], x: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """v(x) (B, ...), and z' (dv/dx) z (k, B) for each of the directions z (k, B, ...): one backward pass each."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        slope = v(x)
        forms = [torch.autograd.grad(slope, x, z, retain_graph=True)[0] * z for z in directions]
    return slope.detach(), torch.stack(forms).flatten(2).sum(2)


def exact_divergence(v: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """v(x) (B, ...) and tr(dv/dx) (B,), as the sum of e' (dv/dx) e over all unit vectors: d backward passes."""
    d = x.shape[1:].numel()
    units = torch.eye(d, dtype=x.dtype, device=x.device).reshape(d, 1, *x.shape[1:])
    slope, forms = _quadratic_forms(v, x, units.expand(d, *x.shape))
    return slope, forms.sum(0)


def hutchinson(probes: int = 1, generator: torch.Generator | None = None) -> Divergence:
    """An unbiased divergence: the mean of z' (dv/dx) z over `probes` random signs z (Hutchinson 1990; Grathwohl et al. 2019).

    The generator is asked once, here; every call then uses the same signs, for a solver needs one slope for one state.
    """
    need_whole(probes, "probes")
    seed = torch.randint(2**62, (), generator=generator, device=generator.device if generator else "cpu").item()

    def divergence(v: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        same = torch.Generator().manual_seed(seed)
        signs = 2 * torch.randint(2, (probes, *x.shape), generator=same).to(x) - 1
        slope, forms = _quadratic_forms(v, x, signs)
        return slope, forms.mean(0)

    return divergence


@torch.no_grad()
def log_likelihood(D: Denoiser, x0: Tensor, divergence: Divergence = exact_divergence, rtol: float = 1e-5,
                   atol: float = 1e-5, cond: Tensor | None = None,
                   prior: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """log density (B,) in nats of x0 (B, ...) at t_min, by the instantaneous change of variables (Song et al. 2021, eq. 39).

    log p(x0) = log p(x at t_max) + the integral of div dx/dt from t_min to t_max, along the ODE from x0 upwards. prior is
    the log density (B, ...) -> (B,) at t_max; by default that of N(0, sigma(t_max)^2 I), true but for the signal left there.
    """
    t_min, t_max = D.schedule.t_min, D.schedule.t_max
    _check(D, x0, "x0", t_min, rtol, atol)

    def joint(t: float, state: Tensor) -> Tensor:                            # (B, d + 1): x and the integral so far
        x = state[:, :-1].reshape(x0.shape)
        slope, div = divergence(lambda x: velocity(D, x, as_time(t), cond), x)
        return torch.cat([slope.flatten(1), div[:, None]], dim=1)

    start = torch.cat([x0.flatten(1), x0.new_zeros(len(x0), 1)], dim=1)
    state = next(_dormand_prince(joint, start, [t_min, t_max], rtol, atol))
    x, integral = state[:, :-1].reshape(x0.shape), state[:, -1]
    log_prior = (prior or _normal_log_density(D.schedule.sigma(t_max).item()))(x)
    return need_shape(log_prior, integral.shape, "prior", "one log density a row, ") + integral


def _normal_log_density(sigma: float) -> Callable[[Tensor], Tensor]:
    return lambda x: -((x / sigma) ** 2 / 2 + math.log(sigma * math.sqrt(2 * math.pi))).flatten(1).sum(1)


def dequantise(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Images (B, ...) of 256 grey levels in [-1, 1], each level spread evenly over its 256th of that range.

    A density of discrete data is infinite; of these it is finite, and bounds theirs (Theis et al. 2016, section 3.1).
    """
    if not bool((need_state(x).abs() <= 1).all()):
        raise ValueError(f"x: expected images in [-1, 1], got values from {x.min():g} to {x.max():g}")
    grey = ((x + 1) * 127.5).round()                                         # 0, ..., 255
    return (grey + torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)) / 128 - 1


def bits_per_dim(log_p: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Bits a pixel (B,) from the log density (B,) of `dequantise`d images of one image's shape; 8 where it is uniform."""
    return 7 - log_p / (math.prod(shape) * math.log(2))                      # a level is 2/256 = 2^-7 wide
