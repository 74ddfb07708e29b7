"""Samplers that take few steps: which clock, which variable, which polynomial.

Along the probability flow ODE a network says how x splits into x0_hat and eps_hat, x = alpha x0_hat + sigma eps_hat, and

    dx = x0_hat dalpha + eps_hat dsigma

Only the two hats must be asked for; alpha and sigma are known at all times. So divide x by a known scale m, which takes
part of its motion away for good, and write what is left over a clock c, against a known kernel k. Then put for it the
polynomial through its last values: the integral becomes a sum of those values with known weights, without further error.

    x_s = (m_s/m_t) x_t + m_s integral_{c_t}^{c_s} k(c) p(c) dc

    scale m          clock c                        d(x/m)/dc                   one value, two, three, ...
    sigma            lambda = log(alpha/sigma)      e^lambda x0_hat             DDIM, DPM-Solver++(2M), its third order
    alpha + sigma    u = sigma/(alpha + sigma)      eps_hat - x0_hat            DDIM, Adams-Bashforth

The first line takes away all of the linear part, stiff but known (Lu et al. 2022, "DPM-Solver++", prop. 4.1); its price is a
kernel, k = e^lambda, and a clock that never gets to t = 0, where lambda is infinite. The second makes every schedule a
straight one: y = x/(alpha + sigma) = (1 - u) x0_hat + u eps_hat lies between data and noise, so that u is the time of
`Flow`, dy/du its velocity, and u = 0 is reached like any other time. There k = 1, and the weights are those of any ODE. Both
lines are d(x/m) with dx put in. Where the hats stand still the two agree and are exact: one value is DDIM in either. They
differ in *what* is held to be a polynomial *in what*, and so in which steps they make their errors.

A step may also be corrected, for nothing (Moulton 1926). The evaluation at its end adds a node to the polynomial that was
extrapolated there; the same integral over the same interval, now interpolated, replaces the old. The network is not
asked again about the corrected state (predict, evaluate, correct). So a correction is a sum of the values that are there
already: it goes into the weights of the next step.

The reverse-time SDE has a `rate` of 2 where the ODE has 1, and noise. With h = lambda_s - lambda_t,

    x_s = (sigma_s/sigma_t) e^(-h) x_t + alpha_s integral_0^h 2 e^(2 (u - h)) x0_hat(lambda_t + u) du
          + sigma_s sqrt(1 - e^(-2h)) z
"""

from collections import deque
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from .arguments import mean_of, need_state, need_whole, need_within
from .denoiser import Denoiser, differentiated, levels, per_row, plus_
from .sampling import Step, check_grid, draws, last, need_finite, need_noise, noises
from .schedules import angle, as_time, flow_uniform, time_of_angle


def ddim(D: Denoiser, x: Tensor, t, s, z: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
    """One DDIM step from t to s < t, deterministic (Song, Meng & Ermon 2021, eq. 12 with sigma = 0); z is not used.

    Keep the x0_hat and the noise that D sees in x (B, ...), and mix them afresh at the lower noise level.
    """
    alpha_t, sigma_t = levels(D, x, t)
    alpha_s, sigma_s = levels(D, x, s)
    x0 = D(x, t, cond)
    eps = (x - alpha_t * x0) / sigma_t
    return alpha_s * x0 + sigma_s * eps


def ddim_eta(eta: float) -> Step:
    """A DDIM step with fresh noise (Song, Meng & Ermon 2021, eq. 12 and 16): eta = 0 is `ddim`, eta = 1 `ancestral`.

    x, z (B, ...) -> (B, ...). `fresh` is the share of the noise at t that the forward process added after s. Of the
    variance sigma_s^2, eta^2 fresh is drawn anew and the rest is the noise that D sees in x. As steps shrink, marginals are
    the same for every eta; few steps lose variance, and the more the larger eta: 50 equal steps in log-SNR, cosine schedule,
    data N(0, 0.37), exact denoiser, end 9.5 % below the true variance for eta = 0, 17.6 % for 1. ValueError outside [0, 1].
    """
    need_within(eta, "eta", 0, 1, "a number from 0 (ODE) to 1 (ancestral)")

    @draws(1)
    def step(D: Denoiser, x: Tensor, t, s, z: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
        z = need_noise(z, x, "ddim_eta")
        alpha_t, sigma_t = levels(D, x, t)
        alpha_s, sigma_s = levels(D, x, s)
        fresh = per_row(-torch.expm1(D.schedule.log_snr(t) - D.schedule.log_snr(s)), x)        # 1 - snr(t)/snr(s)
        x0 = D(x, t, cond)
        eps = (x - alpha_t * x0) / sigma_t
        return alpha_s * x0 + sigma_s * ((1 - eta**2 * fresh).sqrt() * eps + eta * fresh.sqrt() * z)

    step.__name__ = f"ddim_eta({eta:g})"
    return step


def midpoint(D: Denoiser, x: Tensor, t, s, z: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
    """One second-order step with two evaluations: DDIM halfway, then from t all the way to s with the x0_hat seen there.

    DPM-Solver++(2S) (Lu et al. 2022, "DPM-Solver++", algorithm 1), its middle in t, not in lambda; z is not used.
    """
    m = (as_time(t) + s) / 2
    x0 = D(ddim(D, x, t, m, cond=cond), m, cond)
    alpha_t, sigma_t = levels(D, x, t)
    alpha_s, sigma_s = levels(D, x, s)
    return alpha_s * x0 + sigma_s / sigma_t * (x - alpha_t * x0)


# ---------------------------------------------------------------------------------------------- multistep methods
def dpm_solver_pp(D: Denoiser, x: Tensor, ts: Tensor, order: int = 2, cond: Tensor | None = None) -> Iterator[Tensor]:
    """DPM-Solver++ of order 1, 2 or 3 (Lu et al. 2022): yields the n states (B, ...) at ts[1:], from x at ts[0].

    A multistep method: one evaluation a step. It starts with what it has, a first-order step, which order 3 corrects when the
    second evaluation is there. A step to t = 0, where lambda is infinite, is first-order: it returns x0_hat. Order 1 is
    `ddim`. ValueError for any other order or for a bad grid.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order: expected 1, 2 or 3, got {order!r}")
    need_state(x)
    if check_grid(ts)[0] == 1 and order > 1 and D.schedule.alpha(ts[0]) == 0:
        raise ValueError(f"ts: order {order} needs some signal to start from, got ts[0] = {ts[0]:g}; "
                         "start at schedule.t_max")
    return _multistep(D, x, ts, cond, order, rate=1, corrected=int(order == 3))


def abm(D: Denoiser, x: Tensor, ts: Tensor, order: int = 3, cond: Tensor | None = None) -> Iterator[Tensor]:
    """Adams-Bashforth-Moulton of order 1 to 6 in the clock u: yields the n states (B, ...) at ts[1:], from x at ts[0].

    One evaluation a step, from t = 1 and to t = 0 if the grid does; it goes with `flow_uniform`. Order k predicts each step
    from the last k - 1 values, and corrects it with k when the next evaluation is there (Hairer, Norsett & Wanner 1993,
    III.1): all steps but the last. It starts with a DDIM step that is then corrected to second order: a local error of h^3,
    tiny where all is noise, that higher orders keep: below some 1e-8 they end like order 3. Order 1 is `ddim`. ValueError for
    any other order or for a bad grid.
    """
    if order not in range(1, 7):
        raise ValueError(f"order: expected a whole number from 1 to 6, got {order!r}")
    need_state(x)
    ahead = int(order > 1)
    return _multistep(D, x, check_grid(ts), cond, order, rate=0, ahead=ahead, corrected=ahead * len(ts))


def few_steps(D: Denoiser, x: Tensor, n: int, cond: Tensor | None = None) -> Iterator[Tensor]:
    """What to take without a choice of one's own: n steps of `abm` from x (B, ...) at t_max to t = 0, n evaluations.

    The order is a quarter of n, within 3 and 6; half of that under guidance, which bends the paths sharply (Lu et al. 2022,
    "DPM-Solver++", section 3). The grid's scale goes with the root of the number of dimensions, up to 51. The rule was made on
    the six targets of data/solvers.csv, where it is within 1.5 of our best; elsewhere a grid sought for the target may be far
    better, as for smooth ones in the plane. Pictures of a network that is itself far from exact often want fresh noise.
    """
    order = min(max(3, n // 4), 6)
    scale = min((need_state(x)[:1].numel() or 1) / 3.2, 16) ** 0.5
    ts = flow_uniform(n, D.schedule, scale, rho=1.3 + 0.13 * scale)
    return abm(D, x, ts, order=-(-order // getattr(D, "cost", 1)), cond=cond)


def dpm_solver_pp_sde(D: Denoiser, x: Tensor, ts: Tensor, generator: torch.Generator | None = None,
                      noise: Tensor | None = None, cond: Tensor | None = None) -> Iterator[Tensor]:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022, "DPM-Solver++"): the reverse-time SDE, with weights from the last two x0_hats.

    Yields the n states (B, ...) at ts[1:] for n evaluations; noise (n, B, ...) or a generator, as for `sample`. Its
    first step is the ancestral one.
    """
    need_state(x)
    check_grid(ts)
    return _multistep(D, x, ts, cond, 2, rate=2, zs=noises(len(ts) - 1, tuple(x.shape), x, generator, noise))


def _multistep(D, x, ts, cond, order, rate, ahead=0, corrected=0, zs=None):
    """Down the grid by the weights of `_plan`, one evaluation a step."""
    known = deque(maxlen=order)                                                         # values, the newest first
    for (t, s), (keep, weights, scale, fresh) in zip(pairwise(ts), _planned(D.schedule, ts, order, rate, ahead, corrected)):
        x0 = D(x, t, cond)
        known.appendleft(x0 if rate else plus_(x.clone(), -scale, x0))                  # that is sigma (eps_hat - x0_hat)
        x = keep * x
        for w, value in zip(weights, known):
            x = plus_(x, w, value)
        if zs is not None:
            x = plus_(x, fresh, next(zs))
        yield need_finite(x, t, s)


def _planned(schedule, ts, *rule):
    """The plan, step by step, as numbers that are kept for the next walk down the same grid; tensors if it has a gradient."""
    if differentiated(ts) or not type(schedule).__hash__:
        return zip(*_plan(schedule, ts.double(), *rule))
    return _kept(schedule, tuple(ts.tolist()), *rule)


@lru_cache(maxsize=64)
def _kept(schedule, times, *rule):
    return list(zip(*(row.tolist() for row in _plan(schedule, torch.tensor(times, dtype=torch.float64), *rule))))


def _plan(schedule, ts, order, rate, ahead, corrected):
    """Of each of the n steps: what it keeps of x (n,), its weights for the last values (n, order), m (n,), and an SDE's noise.

    The kernel is e^(rate c), with rate 0 for the clock u. Steps are predicted from `order - ahead` values; the first
    `corrected` are corrected from one more when the next evaluation is there, by the weights of the step after.
    """
    alpha, sigma, c = schedule.alpha(ts), schedule.sigma(ts), schedule.log_snr(ts) / 2
    fresh = sigma[1:] * (-torch.expm1(-2 * c.diff())).sqrt()
    m, gain, unit = sigma**rate * alpha ** (1 - rate), alpha, torch.ones_like(ts)       # gain: m e^(rate c)
    if rate == 0:
        m = gain = alpha + sigma
        c, unit = sigma / m, sigma                                                      # values are kept times sigma
    keep, n = m[1:] / m[:-1], len(ts) - 1
    finite = n - int(bool(c[-1].isinf()))               # no polynomial reaches lambda = infinity: there x_s is x0_hat
    weights = torch.zeros(n, order, dtype=ts.dtype, device=ts.device)
    weights[n - 1, 0] = gain[n]
    if finite:
        step = gain[1:finite + 1, None] * _integrals(c, c[:finite], c.diff()[:finite], order - ahead, rate, unit)
        weights[:finite] = torch.nn.functional.pad(step, (0, ahead))
    if corrected and n > 1:
        last = slice(1, 1 + min(corrected, n - 1))                                      # a step's end is the next one's start
        again = gain[:n, None] * _integrals(c, c.roll(1)[:n], c.diff(prepend=c[:1])[:n], order, rate, unit)
        before = weights.roll((1, 1), (0, 1))               # of a step that is corrected the last column is empty
        change = torch.zeros_like(weights)
        change[last] = (keep[:, None] * (again - before))[last]
        weights = weights + change
    return keep, weights, m[:-1], fresh


def _integrals(c, starts, widths, most, rate, unit):
    """Row i: the weights of the values at c_i, c_{i-1}, ..., `most` of them or as many as there are, in the integral of the
    kernel and the polynomial through them over an interval of the clock, (n, most)."""
    n, rows = len(starts), []
    for k in range(1, min(most, n) + 1):
        lo, hi = k - 1, n if k == most else k                                           # the steps that know k values
        nodes, units = (torch.stack([v[lo - j:hi - j] for j in range(k)], 1) for v in (c, unit))
        row = _weights(widths[lo:hi], nodes - starts[lo:hi, None], rate) / units
        rows.append(torch.nn.functional.pad(row, (0, most - k)))
    return torch.cat(rows)


def _weights(h, nodes, rate):
    """w (m, k) with integral_0^h k(u) p(u) du = sum_j w_j p(nodes_j) for all polynomials p of degree < k, where the kernel k is
    rate e^(rate (u - h)), or 1 for rate 0.

    The moments of 1, u, u^2 follow by parts, the weights from a Vandermonde system. h (m,), nodes (m, k).
    """
    powers = range(nodes.shape[1])
    moments = [h ** (p + 1) / (p + 1) for p in powers] if rate == 0 else [-torch.expm1(-rate * h)]
    for p in powers[len(moments):]:
        moments.append(h**p - p / rate * moments[-1])
    rows = torch.stack([nodes**p for p in powers], 1)                                   # (m, k, k): row p holds nodes^p
    return torch.linalg.solve(rows, torch.stack(moments, 1))


# ---------------------------------------------------------------------------------------------- grids
def optimise_grid(D: Denoiser, x: Tensor, n: int, sampler: Callable[..., Iterator[Tensor]], end: float | None = None,
                  std: float = 0.5, iterations: int = 100, fine: int = 400, cond: Tensor | None = None) -> Tensor:
    """The grid (n+1,) from t_max to `end` (None: t_min) on which sampler(D, x, ts, cond=cond) ends nearest to the truth.

    Minimises the mean squared distance of its last state from a solution in `fine` steps, over the starts x (B, ...) at
    t_max, by L-BFGS with gradients through all n evaluations. The unknowns are the steps' shares of the angle of
    `equal_angles`, equal at first; std is that angle's. `end` may be 0. ValueError for n < 2.
    """
    need_whole(n, "n", 2, "a whole number of steps with something to choose")
    schedule, end = D.schedule, D.schedule.t_min if end is None else end
    ends = torch.tensor([schedule.t_max, end], dtype=torch.float64)
    start_angle, end_angle = angle(ends, schedule, std)
    truth = last(dpm_solver_pp, D, x, fine_grid(schedule, *ends.tolist(), fine), order=3, cond=cond).x
    logits = torch.zeros(n, dtype=torch.float64, requires_grad=True)

    def grid():
        shares = 0.99 * logits.softmax(0) + 0.01 / n                # none vanishes, whatever a line search tries
        inside = start_angle + shares.cumsum(0)[:-1] * (end_angle - start_angle)
        return torch.cat([ends[:1], time_of_angle(inside, schedule, std), ends[1:]])

    def error():
        *_, found = sampler(D, x, grid(), cond=cond)
        return mean_of((found - truth).double().square(), "x")

    def closure():
        loss = error() / scale
        logits.grad, = torch.autograd.grad(loss, [logits])          # of the grid alone: a network's own stay untouched
        return loss

    scale = error().detach()                                        # L-BFGS likes numbers of order 1
    torch.optim.LBFGS([logits], max_iter=iterations, history_size=20, tolerance_grad=1e-10, tolerance_change=1e-14,
                      line_search_fn="strong_wolfe").step(closure)
    return grid().detach()


def fine_grid(schedule, start: float, end: float, n: int = 400) -> Tensor:
    """n equal steps in log-SNR from `start` to `end`; if that is 0, up to a log-SNR of 20 and from there to 0: (n+1,)."""
    ends = torch.tensor([start, end], dtype=torch.float64)
    noisy, clean = schedule.log_snr(ends).clamp(max=20)
    inside = schedule.time_of_log_snr(torch.linspace(noisy, clean, n + 1, dtype=torch.float64))
    return torch.cat([ends[:1], inside[1:-1], ends[1:]])
