"""Samplers that take few steps: the linear part of the flow is solved in closed form, and steps are only for the rest.

With lambda = log(alpha/sigma), half the log-SNR, the probability flow ODE is (Lu et al. 2022, "DPM-Solver++", prop. 4.1)

    d(x/sigma)/dlambda = exp(lambda) x0_hat

The x on the left is the linear part, stiff but known: dividing by sigma takes it away for good. Only x0_hat must be
asked of a network, and it changes slowly. So a step from t to s is, without any error and with h = lambda_s - lambda_t,

    x_s = (sigma_s/sigma_t) x_t + alpha_s integral_0^h e^(u - h) x0_hat(lambda_t + u) du

Put for x0_hat the polynomial through its last values: the integral becomes a sum of those values with known weights.
One value gives DDIM, two DPM-Solver++(2M), three its third order. The reverse-time SDE has a `rate` of 2 where the ODE
has 1, and noise:

    x_s = (sigma_s/sigma_t) e^(-h) x_t + alpha_s integral_0^h 2 e^(2 (u - h)) x0_hat(lambda_t + u) du
          + sigma_s sqrt(1 - e^(-2h)) z
"""

from collections import deque
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from .arguments import mean_of, need_state, need_whole, need_within
from .denoiser import Denoiser, levels, per_row
from .sampling import Step, check_grid, draws, last, need_finite, need_noise, noises
from .schedules import angle, as_time, time_of_angle


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


# ---------------------------------------------------------------------------------------------- exponential integrators
def dpm_solver_pp(D: Denoiser, x: Tensor, ts: Tensor, order: int = 2, cond: Tensor | None = None) -> Iterator[Tensor]:
    """DPM-Solver++ of order 1, 2 or 3 (Lu et al. 2022): yields the n states (B, ...) at ts[1:], from x at ts[0].

    A multistep method: one evaluation a step. It starts with what it has, a first-order step. That is too rough for
    order 3, which spends one evaluation more, halfway into the first step: n + 1 in all. A step to t = 0, where lambda is
    infinite, is first-order: it returns x0_hat. Order 1 is `ddim`. ValueError for any other order or for a bad grid.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order: expected 1, 2 or 3, got {order!r}")
    need_state(x)
    log_snr = D.schedule.log_snr(check_grid(ts)[:2].double())
    if order > 1 and bool(log_snr[0].isinf()):
        raise ValueError(f"ts: order {order} needs some signal to start from, got ts[0] = {ts[0]:g}; "
                         "start at schedule.t_max")
    inner = int(order == 3 and bool(log_snr[1].isfinite()))
    if inner:
        halfway = D.schedule.time_of_log_snr(log_snr.mean(0, keepdim=True))
        ts = torch.cat([ts[:1], halfway, ts[1:]])
    return _multistep(D, x, ts, order, cond, inner=inner)


def dpm_solver_pp_sde(D: Denoiser, x: Tensor, ts: Tensor, generator: torch.Generator | None = None,
                      noise: Tensor | None = None, cond: Tensor | None = None) -> Iterator[Tensor]:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022, "DPM-Solver++"): the reverse-time SDE, with weights from the last two x0_hats.

    Yields the n states (B, ...) at ts[1:] for n evaluations; noise (n, B, ...) or a generator, as for `sample`. Its
    first step is the ancestral one.
    """
    need_state(x)
    check_grid(ts)
    return _multistep(D, x, ts, 2, cond, rate=2, zs=noises(len(ts) - 1, tuple(x.shape), x, generator, noise))


def _multistep(D, x, ts, order, cond, rate=1, inner=0, zs=None):
    """Down the grid. The first 1 + inner steps all start from x at ts[0], and only the last of them yields a state: those
    before it serve to know x0_hat inside the first interval."""
    start, history = x, deque(maxlen=order)                                             # of x0_hats, the newest first
    steps = zip(pairwise(ts), *_plan(D.schedule, ts.double(), order, rate, inner))
    for i, ((t, s), shrink, fresh, weights) in enumerate(steps):
        history.appendleft(D(x, t, cond))
        x = shrink * (start if i <= inner else x) + sum(w * x0 for w, x0 in zip(weights, history))
        if zs is not None:
            x = x + fresh * next(zs)
        need_finite(x, t, s)
        if i >= inner:
            yield x


def _plan(schedule, ts, order, rate, inner):
    """For every step: what it keeps of x, the noise that an SDE adds, its weights for the last x0_hats, newest first."""
    alpha, sigma, lam = schedule.alpha(ts), schedule.sigma(ts), schedule.log_snr(ts) / 2
    steps = torch.arange(len(ts) - 1, device=ts.device)
    base = steps.masked_fill(steps <= inner, 0)                                         # where each step starts
    h = lam[1:] - lam[base]
    keep = (sigma[1:] / sigma[base]) ** rate * (alpha[base] / alpha[1:]) ** (rate - 1)
    fresh = sigma[1:] * (-torch.expm1(-2 * h)).sqrt()
    finite = len(steps) - int(ts[-1] == 0)              # no polynomial reaches lambda = infinity: x0_hat alone does
    weights = []
    for k in range(1, min(order, finite) + 1):
        nodes = lam[:finite].unfold(0, k, 1).flip(1) - lam[base][k - 1:finite, None]    # (finite - k + 1, k)
        rows = alpha[k:finite + 1, None] * _weights(h[k - 1:finite], nodes, rate)
        weights += rows if k == min(order, finite) else rows[:1]                        # the history is still growing
    return keep, fresh, weights + [alpha[-1:]] * (len(steps) - finite)


def _weights(h, nodes, rate):
    """w (m, k) with integral_0^h rate e^(rate (u - h)) p(u) du = sum_j w_j p(nodes_j) for all polynomials p of degree < k.

    The moments of 1, u, u^2 follow by parts, the weights from a Vandermonde system. h (m,), nodes (m, k).
    """
    k, moments = nodes.shape[1], [-torch.expm1(-rate * h)]
    for power in range(1, k):
        moments.append(h**power - power / rate * moments[-1])
    powers = nodes[:, None] ** torch.arange(k, device=h.device)[:, None]                # (m, k, k): row p holds nodes^p
    return torch.linalg.solve(powers, torch.stack(moments, 1))


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
