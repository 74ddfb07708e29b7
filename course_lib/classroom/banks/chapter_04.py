# Long: a table. Each entry is a wrong answer that learners give, and its hint; one reads the exercise that one looks for.
"""Chapter 4, DDIM and fast solvers: its exercises with their known mistakes, and its predictions."""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from ...denoiser import Denoiser, levels, per_row, score
from ...fast_samplers import ddim, dpm_solver_pp
from ...sampling import last
from ...schedules import Schedule, equal_angles, log_snr_uniform
from ..exercises import Exercise, Mistake, Prediction
from .cases import SCHEDULES, Blob, between, jumps, normal, one_step

# --- 4.1 -------------------------------------------------------------------------------------------------------------


def steps(generator: torch.Generator) -> Iterator[tuple]:
    """D, x, t, s with a time per row, and one time for all rows, in single precision."""
    for D, x, t, s, _ in one_step(generator):
        yield D, x, t, s
    yield Blob(SCHEDULES[1]), normal(generator, 3, 2).float(), between(generator, 0.5, 0.95), between(generator, 0.1, 0.4)


def _parts(D: Denoiser, x: Tensor, t, s) -> tuple[Tensor, ...]:
    """alpha_t, sigma_t, alpha_s, sigma_s, x0_hat and eps_hat: what a step mixes."""
    at, st = levels(D, x, t)
    x0 = D(x, t)
    return at, st, *levels(D, x, s), x0, (x - at * x0) / st


def _mixed(mix):
    """A wrong step, as a function of x and the six parts."""
    return lambda D, x, t, s: mix(x, *_parts(D, x, t, s))


def _score_for_noise(D, x, t, s):
    at, st, as_, ss, _, _ = _parts(D, x, t, s)
    return as_ * (x / at + (ss / as_ - st / at) * score(D, x, t))


def _asked_at_s(D, x, t, s):
    at, st, as_, ss = *levels(D, x, t), *levels(D, x, s)
    x0 = D(x, s)
    return as_ * x0 + ss * (x - at * x0) / st


def _asked_about_x_bar(D, x, t, s):
    at, st, as_, ss = *levels(D, x, t), *levels(D, x, s)
    x0 = D(x / at, t)
    return as_ * x0 + ss * (x - at * x0) / st


def _in_time(x, h, at, st, as_, ss, x0, e):
    return as_ * (x / at + h * e)


DDIM = Exercise("4.1", "One Euler step in the straight variables", ddim, steps, [
    Mistake("sigma(t) for sigma(s)", _mixed(lambda x, at, st, as_, ss, x0, e: as_ * x0 + st * e),
            "you used sigma(t) for the new noise level; it must be sigma(s)"),
    Mistake("alpha(t) for alpha(s)", _mixed(lambda x, at, st, as_, ss, x0, e: at * x0 + ss * e),
            "you multiply the guess by the alpha of the old time t; a state at s holds alpha(s) times the guess"),
    Mistake("not back to x", _mixed(lambda x, at, st, as_, ss, x0, e: x0 + ss / as_ * e),
            "that is x-bar at s; to get x itself you have to undo the division by alpha"),
    Mistake("back with alpha(t)", _mixed(lambda x, at, st, as_, ss, x0, e: at * (x0 + ss / as_ * e)),
            "you undo the division by alpha with the alpha of t, but you have arrived at s"),
    Mistake("x not divided", _mixed(lambda x, at, st, as_, ss, x0, e: as_ * (x + (ss / as_ - st / at) * e)),
            "the Euler step starts from x-bar, not from x: one division is missing"),
    Mistake("sigma for sigma-bar", _mixed(lambda x, at, st, as_, ss, x0, e: as_ * (x / at + (ss - st) * e)),
            "the new clock is sigma/alpha; you measured the step in sigma"),
    Mistake("sign of the step", _mixed(lambda x, at, st, as_, ss, x0, e: as_ * (x / at - (ss / as_ - st / at) * e)),
            "your step goes to more noise: where you are going comes first in the difference, sigma-bar of s minus that of t"),
    Mistake("sign of eps", _mixed(lambda x, at, st, as_, ss, x0, e: as_ * x0 - ss * e),
            "the believed noise has the wrong sign: x_t is alpha x0_hat *plus* sigma eps_hat"),
    Mistake("alpha missing in eps", _mixed(lambda x, at, st, as_, ss, x0, e: as_ * x0 + ss * (x - x0) / st),
            "in eps_hat you subtract x0_hat, but x_t contains alpha times x0_hat"),
    Mistake("alpha missing in eps, in x-bar", _mixed(lambda x, at, st, as_, ss, x0, e: as_ * (
        x / at + (ss / as_ - st / at) * (x - x0) / st)),
            "your eps_hat subtracts the clean guess from x_t; what x_t holds of it is alpha times as much"),
    Mistake("x multiplied only", _mixed(lambda x, at, st, as_, ss, x0, e: x + as_ * (ss / as_ - st / at) * e),
            "you take the slope's part through x-bar and back, and leave x itself as it was: divide it by alpha(t), multiply by alpha(s)"),
    Mistake("only the guess", _mixed(lambda x, at, st, as_, ss, x0, e: as_ * x0),
            "that is the guess without its noise: at s > 0 the state must still be noisy"),
    Mistake("fresh noise", _mixed(lambda x, at, st, as_, ss, x0, e: as_ * x0 + ss * torch.randn_like(x)),
            "you drew new noise; this step keeps the noise that it believes in"),
    Mistake("score for noise", _score_for_noise,
            "the slope in these variables is the noise eps_hat; you used the score, which is -eps_hat/sigma"),
    Mistake("denoiser asked at s", _asked_at_s, "x is at time t, so D must be told t; you told it s"),
    Mistake("noise not divided", _mixed(lambda x, at, st, as_, ss, x0, e: as_ * (x / at + (ss / as_ - st / at) * st * e)),
            "your slope is sigma(t) times the noise; eps_hat itself has the standard deviation 1"),
    Mistake("guess for the slope", _mixed(lambda x, at, st, as_, ss, x0, e: as_ * (x / at + (ss / as_ - st / at) * x0)),
            "you move along the clean guess; the slope of (4.2) is the noise that it leaves in x"),
    Mistake("asked about x-bar", _asked_about_x_bar,
            "you ask D about x-bar; D knows x itself, and the change of variables is only yours"),
    Mistake("divided at the end", _mixed(lambda x, at, st, as_, ss, x0, e: (x / at + (ss / as_ - st / at) * e) / as_),
            "x-bar is x divided by alpha; on the way back you divide once more"),
    Mistake("x multiplied first", _mixed(lambda x, at, st, as_, ss, x0, e: as_ * (at * x + (ss / as_ - st / at) * e)),
            "on the way to x-bar you multiply by alpha(t); which way round is (4.2)?"),
    Mistake("to zero noise", _mixed(lambda x, at, st, as_, ss, x0, e: as_ * (x / at + ss / as_ * e)),
            "you add the whole sigma-bar of s; an Euler step moves by the difference of two of them"),
    Mistake("one alpha for both", _mixed(lambda x, at, st, as_, ss, x0, e: as_ * (x / at + (ss - st) / at * e)),
            "you divide both sigmas by the same alpha; each sigma-bar has the alpha of its own time"),
    Mistake("a step in t", lambda D, x, t, s: _in_time(x, per_row(s - t, x), *_parts(D, x, t, s)),
            "you multiply the slope by s - t; the clock of (4.2) is not the time t"),
], tips=["four numbers first: `alpha_t, sigma_t = levels(D, x, t)`, and the same for s",
         "x-bar at s is x/alpha_t plus eps_hat times a difference of two sigma/alpha; then multiply by alpha_s"])


# --- 4.2 -------------------------------------------------------------------------------------------------------------

def grids(generator: torch.Generator) -> Iterator[tuple]:
    for schedule in SCHEDULES:
        yield int(torch.randint(1, 20, (), generator=generator)), schedule, between(generator, 0.1, 1.5).item()


def _timed(sigma_bar: Tensor, schedule: Schedule) -> Tensor:
    return schedule.time_of_log_snr(-2 * sigma_bar.log())


def _angles(n: int, schedule: Schedule, std: float, level=None) -> Tensor:
    """n + 1 equal angles between the ends of the schedule, where sigma/alpha (or another level) is std tan(theta)."""
    level = level or (lambda t: schedule.sigma(t) / schedule.alpha(t))
    first, final = ((level(t) / std).atan() for t in (schedule.t_max, schedule.t_min))
    return first + torch.linspace(0, 1, n + 1, dtype=torch.float64) * (final - first)


def _whole_range(n: int, schedule: Schedule, std: float) -> Tensor:
    first, final = ((schedule.sigma(t) / schedule.alpha(t) / std).atan() for t in torch.tensor([1.0, 0.0], dtype=torch.float64))
    theta = first + torch.linspace(0, 1, n + 1, dtype=torch.float64) * (final - first)
    return _timed(std * theta.tan(), schedule)


def _equal_ratios(n, schedule, std):
    """Equal steps in sigma/alpha itself."""
    first, final = (schedule.sigma(t) / schedule.alpha(t) for t in (schedule.t_max, schedule.t_min))
    return _timed(first + torch.linspace(0, 1, n + 1, dtype=torch.float64) * (final - first), schedule)


ANGLES = Exercise("4.2", "The best grid for a Gaussian", equal_angles, grids, [
    Mistake("equal in the tangent", _equal_ratios,
            "your steps are equal in sigma/alpha, that is in the tangent; it is the *angles* that must be equal"),
    Mistake("equal in log-SNR", lambda n, schedule, std: log_snr_uniform(n, schedule),
            "your steps are equal in log-SNR, so the width of the data plays no part"),
    Mistake("rising", lambda n, schedule, std: equal_angles(n, schedule, std).flip(0),
            "your times rise; a sampler walks from noise to data, from the largest angle to the smallest"),
    Mistake("width forgotten", lambda n, schedule, std: equal_angles(n, schedule, 1.0),
            "your grid is right for data of width 1; where does the width of *this* data enter?"),
    Mistake("width upside down", lambda n, schedule, std: equal_angles(n, schedule, 1 / std),
            "you multiplied by the width where you should have divided, and the other way round"),
    Mistake("width one way only", lambda n, schedule, std: _timed(_angles(n, schedule, std).tan(), schedule),
            "on the way back from angle to sigma/alpha the width is missing"),
    Mistake("alpha forgotten", lambda n, schedule, std: _timed(
        std * _angles(n, schedule, std, level=schedule.sigma).tan(), schedule),
            "you took the angle of sigma; the tangent belongs to sigma/alpha"),
    Mistake("log-SNR without its two", lambda n, schedule, std: schedule.time_of_log_snr(
        -(std * _angles(n, schedule, std).tan()).log()),
            "log-SNR is log(alpha^2/sigma^2): a factor 2 is missing in front of your logarithm"),
    Mistake("sign of log-SNR", lambda n, schedule, std: schedule.time_of_log_snr(
        2 * (std * _angles(n, schedule, std).tan()).log()),
            "your log-SNR has the wrong sign: much noise means a *small* log-SNR"),
    Mistake("width forgotten in the angle", lambda n, schedule, std: _timed(std * _angles(n, schedule, 1.0).tan(), schedule),
            "on the way from sigma/alpha to the angle the width is missing"),
    Mistake("width multiplied in the angle", lambda n, schedule, std: _timed(std * _angles(n, schedule, 1 / std).tan(), schedule),
            "in the angle you multiply by the width; wide data looks like a *small* angle at the same noise"),
    Mistake("width divided at the end", lambda n, schedule, std: _timed(_angles(n, schedule, std).tan() / std, schedule),
            "you divide by the width twice, on the way to the angle and on the way back"),
    Mistake("signal to noise", lambda n, schedule, std: _timed(std * _angles(
        n, schedule, std, level=lambda t: schedule.alpha(t) / schedule.sigma(t)).tan(), schedule),
            "your tangent is upside down: it is the noise that stands above the line"),
    Mistake("levels", lambda n, schedule, std: std * _angles(n, schedule, std).tan(),
            "these are the levels sigma/alpha; what time has each of them?"),
    Mistake("angles", _angles, "these are the angles; a sampler needs the times at which they are reached"),
    Mistake("no logarithm", lambda n, schedule, std: schedule.time_of_log_snr(std * _angles(n, schedule, std).tan()),
            "time_of_log_snr wants a logarithm, and you gave it the level sigma/alpha itself"),
    Mistake("from 1 to 0", _whole_range, "your grid runs from 1 to 0; a schedule is good from its t_max to its t_min only"),
    Mistake("one time too few", lambda n, schedule, std: _timed(
        std * torch.linspace(*(float(a) for a in _angles(1, schedule, std)), n, dtype=torch.float64).tan(), schedule),
            "n steps need n + 1 times"),
], tips=["the angle at a time is the arc tangent of (sigma/alpha)/std; compute it at t_max and at t_min",
         "torch.linspace gives the angles, std tan(angle) the levels sigma/alpha, and time_of_log_snr the times"],
    rtol=1e-5, atol=1e-7)


# --- 4.3 -------------------------------------------------------------------------------------------------------------

def thinned(n: int, T: int) -> Tensor:
    """n + 1 whole numbers (int64) from T down to 0 in steps as equal as rounding to the nearest allows."""
    return torch.linspace(T, 0, n + 1, dtype=torch.float64).round().long()


def counts(generator: torch.Generator) -> Iterator[tuple]:
    """n and T; an odd n never puts a time halfway between two whole numbers."""
    for T in (1000, 100, 1000):
        yield 2 * int(torch.randint(2, 20, (), generator=generator)) + 1, T
    yield 1, 1000
    yield 10, 1000


def _leading(n: int, T: int) -> Tensor:
    return torch.cat([torch.arange(n).flip(0) * (T // n) + 1, torch.zeros(1, dtype=torch.long)])


TIMES = Exercise("4.3", "n of a thousand training times", thinned, counts, [
    Mistake("late start", _leading,
            "your first time is well below T, so the sampler takes pure noise for a state that holds some signal: "
            "the picture comes out at medium brightness"),
    Mistake("fixed stride", lambda n, T: T - torch.arange(n + 1) * (T // n),
            "a whole-number stride lands on 0 only if n divides T; the last step then ends in noise"),
    Mistake("fixed stride, as far as it goes", lambda n, T: torch.arange(T, -1, -(T // n)),
            "range with a whole-number stride: unless n divides T it stops short of 0, or gives more than n steps"),
    Mistake("stops at 1", lambda n, T: torch.linspace(T, 1, n + 1, dtype=torch.float64).round().long(),
            "your last step lands on the smallest noise level, and not on the guess of the clean picture"),
    Mistake("end repeated", lambda n, T: torch.cat([thinned(n - 1, T) if n > 1 else torch.tensor([T]), torch.zeros(1).long()]),
            "the end comes twice: the last step goes from 0 to 0, and you took one real step less than you may"),
    Mistake("one time too few", lambda n, T: thinned(n - 1, T) if n > 1 else torch.tensor([T]),
            "n steps need n + 1 times"),
    Mistake("rising", lambda n, T: thinned(n, T).flip(0), "your times rise; a sampler walks from noise to data"),
    Mistake("rounded down", lambda n, T: torch.linspace(T, 0, n + 1, dtype=torch.float64).long(),
            "turning into whole numbers cuts off the fraction; round to the nearest first"),
    Mistake("rounded up", lambda n, T: torch.linspace(T, 0, n + 1, dtype=torch.float64).ceil().long(),
            "you round up always; the nearest whole number may lie below"),
    Mistake("counted from zero", lambda n, T: torch.linspace(T - 1, 0, n + 1, dtype=torch.float64).round().long(),
            "you start at T - 1; the times of training are 1 to T, and pure noise belongs to the last one"),
    Mistake("fractions", lambda n, T: torch.linspace(T, 0, n + 1, dtype=torch.float64).round() / T,
            "these are times in [0, 1]; here the whole numbers were asked for"),
], tips=["torch.linspace(a, b, n + 1) has both ends and n equal steps between them",
         "then .round() and .long()"])


# --- 4.4 -------------------------------------------------------------------------------------------------------------

def second_order(D: Denoiser, x: Tensor, ts: Tensor) -> Tensor:
    """The state (B, ...) at ts[-1] by the multistep exponential integrator of order 2, its first step of order 1."""
    return last(dpm_solver_pp, D, x, ts, order=2).x


def walks(generator: torch.Generator) -> Iterator[tuple]:
    for schedule, shape, n in zip(SCHEDULES, ((1, 2), (2, 2), (5, 2), (1, 1, 8, 8), (8, 1, 8, 8)), (4, 2, 5, 3, 1)):
        ts = between(generator, 0.1, 0.9, n + 1).sort(descending=True).values
        yield Blob(schedule), normal(generator, *shape), ts


def _half_log_snr(D: Denoiser, t) -> Tensor:
    return D.schedule.log_snr(t) / 2


def _multistep(weight=None, slope=None, clock=_half_log_snr, keep=True, signal=None, constant=lambda h: -torch.expm1(-h),
               ratio=lambda sigma_s, sigma_t: sigma_s / sigma_t, asked=lambda t, s: t, remember=lambda now, then, x0, x: (now, x0),
               old_clock=lambda first, now: now, outer=None, land=lambda x, x0: x):
    """The sampler with one ingredient replaced.

    weight(h) and constant(h) of slope and guess, slope(x0, before, h, k), the clock, what history keeps (nothing new
    after the first step without `keep`), the factor of the slope's term (signal) or of the whole integral (outer), what
    is kept of x, the time that D is told, what is returned.
    """
    weight = weight or (lambda h: h + torch.expm1(-h))
    slope = slope or (lambda x0, before, h, k: (x0 - before) / k)

    def wrong(D, x, ts):
        before, first = None, clock(D, ts[0])
        for t, s in pairwise(ts):
            (_, sigma_t), (alpha_s, sigma_s) = levels(D, x, t), levels(D, x, s)
            now, then = clock(D, t), clock(D, s)
            h, x0 = per_row(then - now, x), D(x, asked(t, s))
            factor = alpha_s if outer is None else outer
            new = ratio(sigma_s, sigma_t) * x + factor * constant(h) * x0
            if before is not None:
                new = new + (signal(D, x, t) if signal else factor) * weight(h) * slope(
                    x0, before[1], h, per_row(now - before[0], x))
            if keep or before is None:
                before = remember(old_clock(first, now), then, x0, x)
            x = new
        return land(x, x0)
    return wrong


SECOND_ORDER = Exercise("4.4", "The second-order multistep solver", second_order, walks, [
    Mistake("first order", _multistep(slope=lambda x0, before, h, k: 0 * x0),
            "that is DDIM throughout: the guess of the step before is never used"),
    Mistake("no division", _multistep(slope=lambda x0, before, h, k: x0 - before),
            "you use the difference of two guesses where a slope is needed: divide it by the distance in lambda"),
    Mistake("divided by h", _multistep(slope=lambda x0, before, h, k: (x0 - before) / h),
            "the two guesses lie a distance k apart (the step behind you), not h (the step ahead)"),
    Mistake("ratio upside down", _multistep(slope=lambda x0, before, h, k: (x0 - before) * k / h**2),
            "the ratio of the two steps is upside down: a far guess must count for less, not for more"),
    Mistake("sign of the slope", _multistep(slope=lambda x0, before, h, k: (before - x0) / k),
            "your line runs backwards, or its weight is negative: it must lead from the older guess to the newer one, and beyond"),
    Mistake("weight of the constant", _multistep(weight=lambda h: -torch.expm1(-h)),
            "the slope has the weight of the constant; its own weight is the integral of exp(-v) (h - v), about h^2/2"),
    Mistake("Taylor's weight", _multistep(weight=lambda h: h**2 / 2),
            "h^2/2 is the weight for small h only; here h may be large, and the integral is known exactly"),
    Mistake("the paper's weight", _multistep(weight=lambda h: -torch.expm1(-h) * h / 2),
            "that is the paper's shorthand for the weight, of second order too; here take the integral as it is"),
    Mistake("divided by both steps", _multistep(slope=lambda x0, before, h, k: (x0 - before) / (h + k)),
            "you divide by the way from the older guess to where you are going; how far apart are the two guesses?"),
    Mistake("half the slope", _multistep(slope=lambda x0, before, h, k: (x0 - before) / (2 * k)),
            "your slope is half of what it should be: the 1/2 of h^2/2 is in the weight already"),
    Mistake("multiplied by k", _multistep(slope=lambda x0, before, h, k: (x0 - before) * k),
            "you multiply the difference of the guesses by their distance; a slope is a difference *per* distance"),
    Mistake("exponents turned round", _multistep(weight=lambda h: h + torch.expm1(h), constant=lambda h: -torch.expm1(h)),
            "both exponents have the wrong sign: weights of a long step stay bounded by 1 and by h"),
    Mistake("h turned round", _multistep(weight=lambda h: torch.expm1(h) - h, constant=lambda h: -torch.expm1(h)),
            "your h is negative: towards the data lambda grows, so the later lambda comes first in the difference"),
    Mistake("exponent of the constant", _multistep(constant=lambda h: -torch.expm1(h)),
            "the guess's own weight is negative with you; look at the sign of its exponent"),
    Mistake("growing constant", _multistep(constant=torch.expm1),
            "the weight of the guess grows like exp(h) with you; for a long step it must become 1, all of the guess"),
    Mistake("exponent of the slope", _multistep(weight=lambda h: h + torch.expm1(h)),
            "the weight of the slope does not vanish like h^2/2 for a small step; check the sign of its exponent"),
    Mistake("signs in the weight", _multistep(weight=lambda h: h - 1 - torch.exp(-h)),
            "the weight of the slope is -2 for h = 0 with you; for no step it must be 0"),
    Mistake("one forgotten", _multistep(weight=lambda h: h - torch.exp(-h)),
            "a 1 is missing in the weight of the slope: for h = 0 it must be 0"),
    Mistake("noise ratio upside down", _multistep(ratio=lambda sigma_s, sigma_t: sigma_t / sigma_s),
            "x is multiplied by a ratio that is above 1; its noise must shrink from sigma(t) to sigma(s)"),
    Mistake("x not shrunk", _multistep(ratio=lambda sigma_s, sigma_t: 1.0),
            "x is taken over as it is: its noise must shrink to the level of s"),
    Mistake("denoiser asked at s", _multistep(asked=lambda t, s: s),
            "x is at time t, so D must be told t; you told it the time that you are going to"),
    Mistake("remembers where it goes", _multistep(remember=lambda now, then, x0, x: (then, x0)),
            "you remember the guess with the lambda of s; it was made at t, and k comes out as 0"),
    Mistake("remembers x", _multistep(remember=lambda now, then, x0, x: (now, x)),
            "you remember the state; what the line is drawn through are the guesses"),
    Mistake("first lambda kept", _multistep(old_clock=lambda first, now: first),
            "the guess that you remember moves on, its lambda does not: from the third step on k is too long"),
    Mistake("integral without signal", _multistep(outer=1.0),
            "the integral has no factor with you: in (4.7) and (4.8) it is multiplied by a signal level"),
    Mistake("the last guess", _multistep(land=lambda x, x0: x0),
            "you return the last guess; asked for is the state at ts[-1], which still has noise in it"),
    Mistake("sign of the exponent", _multistep(weight=lambda h: torch.exp(h) - 1 - h),
            "check the exponent in the weight of the slope: for large h the weight grows like h, not like exp(h)"),
    Mistake("full log-SNR", _multistep(clock=lambda D, t: D.schedule.log_snr(t)),
            "your lambda is log-SNR; in the exponent stands half of it, log(alpha/sigma)"),
    Mistake("history frozen", _multistep(keep=False),
            "the history never moves on: from the third step it is still the very first guess that you compare with"),
    Mistake("alpha(t)", _multistep(signal=lambda D, x, t: levels(D, x, t)[0]),
            "the slope's term is multiplied by the alpha of the old time t"),
    Mistake("slope without signal", _multistep(signal=lambda D, x, t: 1.0),
            "the slope's term belongs to the integral, and the whole integral is multiplied by the alpha of s"),
], tips=["keep two things from the step before: its guess and its lambda",
         "the first step has no step before it: there the slope is 0, and the step is DDIM"])


# --- 4.5 -------------------------------------------------------------------------------------------------------------

def with_eta(D: Denoiser, x: Tensor, t, s, z: Tensor, eta: float) -> Tensor:
    """One step of the eta family: 0 is DDIM, 1 the ancestral step. AssertionError where new noise would exceed sigma(s)."""
    return _eta(asserted=True)(D, x, t, s, z, eta)


def noisy_steps(generator: torch.Generator) -> Iterator[tuple]:
    """D, x, t, s, z, eta: times per row and one for all; at last an eta that asks for more noise than there may be."""
    for case, eta in zip(jumps(generator), 5 * (0.3, 1.0, 0.6, 0.0, 0.8)):
        yield *case, eta
    for eta in (0.4, 20.0):
        yield (Blob(SCHEDULES[1]), normal(generator, 3, 2).float(), between(generator, 0.5, 0.95), between(generator, 0.1, 0.4),
               normal(generator, 3, 2).float(), eta)


def _right(eta, beta, tilde, sigma_s):
    return eta * tilde.sqrt()


def _eta(tau=None, old=None, std=None, asserted=False, beta=lambda at, st, as_, ss: st**2 - (at / as_) ** 2 * ss**2,
         tilde=lambda beta, st, ss: ss**2 / st**2 * beta, mean=lambda at, as_, x0: as_ * x0, room=lambda radicand: radicand >= 0):
    """The step with an ingredient replaced: tau, or only its use in the old noise's share or in the new noise, or what
    tau is made of, or the mean; or stopped by its assertion that there is room."""
    def wrong(D, x, t, s, z, eta):
        at, st, as_, ss, x0, e = _parts(D, x, t, s)
        new = beta(at, st, as_, ss)
        given = eta, new, tilde(new, st, ss), ss
        size = (tau or _right)(*given)
        assert not asserted or room(ss**2 - size**2).all()
        kept = old(size, as_, ss, *given) if old else (ss**2 - size**2).sqrt()
        return mean(at, as_, x0) + kept * e + (std(size) if std else size) * z
    return wrong


def _changed_places(D, x, t, s, z, eta):
    at, st, as_, _, x0, e = _parts(D, x, t, s)
    return _eta()(_Guesses(D, x0), as_ * 0 * x + at * x0 + st * z, t, s, e, eta)


class _Guesses:
    """A denoiser that has made up its mind."""

    def __init__(self, D: Denoiser, x0: Tensor):
        self.schedule, self.x0 = D.schedule, x0

    def __call__(self, x: Tensor, t, cond: Tensor | None = None) -> Tensor:
        return self.x0


def _vp_beta(D, x, t, s, z, eta):
    at, st, as_, ss, x0, e = _parts(D, x, t, s)
    tau = eta * ss / st * (1 - (at / as_) ** 2).sqrt()
    return as_ * x0 + (ss**2 - tau**2).sqrt() * e + tau * z


def _new_noise(std):
    """The step whose new noise has std(eta, tau, sigma_s)."""
    def wrong(D, x, t, s, z, eta):
        _, _, _, ss, _, _ = _parts(D, x, t, s)
        without = _eta(std=lambda size: 0 * size)(D, x, t, s, z, eta)
        size = (_eta()(D, x, t, s, torch.ones_like(z), eta) - without)
        return without + std(eta, size, ss) * z
    return wrong


ETA = Exercise("4.5", "As much fresh noise as you like", with_eta, noisy_steps, [
    Mistake("eta squared", _eta(tau=lambda eta, beta, tilde, ss: eta**2 * tilde.sqrt()),
            "eta multiplies the standard deviation of the new noise; you have its square"),
    Mistake("eta in the variance", _eta(tau=lambda eta, beta, tilde, ss: (eta * tilde).sqrt()),
            "your eta multiplies the variance of the new noise; it belongs to the standard deviation"),
    Mistake("noise twice", _eta(old=lambda size, as_, ss, *given: ss),
            "all of the old noise stays and new noise comes on top: the variance at s is too large by tau^2"),
    Mistake("tau without its root", _eta(tau=lambda eta, beta, tilde, ss: eta * tilde),
            "beta-tilde is a variance; tau is a standard deviation, by (4.10)"),
    Mistake("beta for VP only", _vp_beta,
            "your beta is made of alphas alone, which holds for variance-preserving schedules; use (2.9)"),
    Mistake("standard deviations subtracted", _eta(old=lambda size, as_, ss, *given: ss - size),
            "you subtract standard deviations; independent noises add their variances"),
    Mistake("beta for beta-tilde, hidden by a clamp", _eta(
        tau=lambda eta, beta, tilde, ss: eta * beta.sqrt(),
        old=lambda size, as_, ss, *given: (ss**2 - size**2).clamp(min=0).sqrt()),
            "your tau is made of beta, and can exceed sigma(s); a clamp hides it, and the old noise vanishes. "
            "Assert that the radicand is not negative, do not clamp it"),
    Mistake("beta for beta-tilde", _eta(tau=lambda eta, beta, tilde, ss: eta * beta.sqrt()),
            "your tau is made of the beta of the step forward; it can exceed sigma(s), and the radicand falls below 0"),
    Mistake("all noise fresh", _eta(tau=lambda eta, beta, tilde, ss: eta * ss),
            "with eta = 1 your step forgets x_t altogether; it should be the ancestral step"),
    Mistake("variance for standard deviation", _eta(std=lambda size: size**2),
            "z is multiplied by tau squared; it needs the standard deviation"),
    Mistake("new noise forgotten", _eta(std=lambda size: 0 * size),
            "you make room for new noise and then add none: the samples shrink"),
    Mistake("tau not squared in the room", _eta(old=lambda size, as_, ss, *given: (ss**2 - size).sqrt()),
            "under the root a variance is subtracted from a variance: where is the square of tau?"),
    Mistake("right for VP only", _eta(old=lambda size, as_, ss, *given: (1 - as_**2 - size**2).sqrt()),
            "1 - alpha^2 is sigma^2 for variance-preserving schedules only"),
    Mistake("clamped", _eta(old=lambda size, as_, ss, *given: (ss**2 - size**2).clamp(min=0).sqrt()),
            "right as long as nothing goes wrong; but where new noise exceeds sigma(s), here for a large eta, your clamp hides it: "
            "assert that there is room"),
    Mistake("no assertion", _eta(),
            "right as long as nothing goes wrong; but where new noise exceeds sigma(s), here for a large eta, your step goes on "
            "with NaN: assert that there is room"),
    Mistake("no room at the end", _eta(asserted=True, room=lambda radicand: radicand > 0),
            "your assertion stops a step to s = 0; there is no noise at all there, and the radicand may be 0"),
    Mistake("eta not squared in the room", _eta(old=lambda size, as_, ss, eta, beta, tilde, _: (ss**2 - eta * tilde).sqrt()),
            "under the root stands the square of tau, and that has the square of eta"),
    Mistake("eta twice in the room", _eta(old=lambda size, as_, ss, eta, *given: (ss**2 - eta * size**2).sqrt()),
            "your tau has its eta already; under the root you multiply by eta once more"),
    Mistake("room without its root", _eta(old=lambda size, as_, ss, *given: ss**2 - size**2),
            "the old noise is multiplied by a variance: the root of (4.9) is missing"),
    Mistake("room times sigma", _eta(old=lambda size, as_, ss, *given: ss * (ss**2 - size**2).sqrt()),
            "the old noise is multiplied by sigma(s) and by the root; the root alone is its standard deviation"),
    Mistake("a share of all", _eta(old=lambda size, as_, ss, eta, *given: (1 - eta**2) ** 0.5 * ss),
            "with eta = 1 nothing of the old noise is left with you; but eta^2 is a share of beta-tilde, not of sigma(s)^2"),
    Mistake("a linear share of all", _eta(old=lambda size, as_, ss, eta, *given: (1 - eta) * ss),
            "you give the old noise the share 1 - eta of a standard deviation; (4.9) subtracts variances"),
    Mistake("eta twice", _new_noise(lambda eta, size, ss: eta * size),
            "z is multiplied by eta twice: tau has it already"),
    Mistake("eta for tau", _new_noise(lambda eta, size, ss: eta),
            "z is multiplied by eta itself; eta is a share, and tau the standard deviation"),
    Mistake("all of sigma for new noise", _new_noise(lambda eta, size, ss: ss),
            "your new noise has all of the variance at s, and old noise comes on top"),
    Mistake("own noise", lambda D, x, t, s, z, eta: _eta()(D, x, t, s, torch.randn_like(z), eta),
            "you drew noise of your own; use the z that was handed in"),
    Mistake("old and new swapped", _changed_places,
            "old and new noise have changed places: for eta = 0 all of it must be old"),
    Mistake("a for a squared", _eta(beta=lambda at, st, as_, ss: st**2 - at / as_ * ss**2),
            "in beta the ratio of the alphas is not squared; it multiplies a variance"),
    Mistake("a upside down", _eta(beta=lambda at, st, as_, ss: st**2 - (as_ / at) ** 2 * ss**2),
            "in beta the ratio of the alphas is upside down: on the way from s to t older noise shrinks"),
    Mistake("no a", _eta(beta=lambda at, st, as_, ss: st**2 - ss**2),
            "your beta is the difference of two variances; on the way from s to t the older noise has shrunk as well"),
    Mistake("ratio of levels not squared", _eta(tilde=lambda beta, st, ss: ss / st * beta),
            "beta-tilde has the ratio of two *variances* in front of beta; you have that of the standard deviations"),
    Mistake("ratio of levels upside down", _eta(tilde=lambda beta, st, ss: st**2 / ss**2 * beta),
            "beta-tilde is smaller than beta; with you the ratio of the variances is upside down, and makes it larger"),
    Mistake("guess not faded", _eta(mean=lambda at, as_, x0: x0),
            "a state at s holds alpha(s) times the guess, not all of it"),
    Mistake("alpha(t)", _eta(mean=lambda at, as_, x0: at * x0),
            "the guess is multiplied by the signal level of the old time t"),
    Mistake("eta for noise only", _eta(old=lambda size, as_, ss, eta, beta, tilde, _: (ss**2 - tilde).sqrt()),
            "the new noise knows of eta, the share of the old noise does not: the two must add up to sigma(s)^2"),
], tips=["beta-tilde first, with (2.9) and (2.10); then tau; then the share of the old noise",
         "for eta = 0 it must be exercise 4.1"])


# --- 4.6 -------------------------------------------------------------------------------------------------------------

def angular(D: Denoiser, x: Tensor, t, s, c: float) -> Tensor:
    """One Euler step in the angle theta = atan(sigma/(alpha c)): exact for data N(0, c^2 I), whatever the step."""
    return _turned(D, x, t, s, c)


def _turned(D, x, t, s, c, move=None, back=None, sign=1.0, *, angle=lambda sigma, alpha, c: torch.atan2(sigma, c * alpha),
            radius=lambda sigma, alpha, c: (c**2 * alpha**2 + sigma**2).sqrt(), guess=lambda x0, c: x0 / c,
            slope=None, there=False, scaled=lambda x, r_t: x / r_t):
    """The angular step with an ingredient replaced.

    `move(scaled, v, delta)` makes the scaled state at s, `back(r_t, r_s)` the factor to x again; angle, radius and the
    guess in units of c; slope(sine, cosine, guess, noise), at the angle of s if `there`; and what is moved.
    """
    at, st, as_, ss, x0, e = _parts(D, x, t, s)
    r_t, r_s = radius(st, at, c), radius(ss, as_, c)
    theta_t, theta_s = angle(st, at, c), angle(ss, as_, c)
    at_angle = theta_s if there else theta_t
    slope = slope or (lambda sine, cosine, x0, e: cosine * e - sign * sine * x0)
    v = slope(at_angle.sin(), at_angle.cos(), guess(x0, c), e)
    move = move or (lambda y, v, delta: y - delta * v)
    return (back(r_t, r_s) if back else r_s) * move(scaled(x, r_t), v, theta_t - theta_s)           # the difference is > 0


def _angled(**changes):
    return lambda *case: _turned(*case, **changes)


def _step_outside(D, x, t, s, c):
    (_, (as_, ss)), kept = (levels(D, x, t), levels(D, x, s)), _turned(D, x, t, s, c, lambda y, v, d: y)
    return kept + (_turned(D, x, t, s, c) - kept) / (c**2 * as_**2 + ss**2).sqrt()


def angular_steps(generator: torch.Generator) -> Iterator[tuple]:
    for case in steps(generator):
        yield *case, between(generator, 0.3, 1.5).item()


ANGULAR = Exercise("4.6", "A step that is exact for a Gaussian", angular, angular_steps, [
    Mistake("DDIM once more", lambda D, x, t, s, c: ddim(D, x, t, s),
            "that is DDIM, exact for a point: the guess and the noise are kept. Here v is kept, and the step in theta is straight"),
    Mistake("sign of the step", lambda D, x, t, s, c: _turned(D, x, t, s, c, lambda y, v, d: y + d * v),
            "your step turns towards noise: on the way to the data theta falls"),
    Mistake("sign of v", lambda D, x, t, s, c: _turned(D, x, t, s, c, sign=-1.0),
            "the two parts of v have opposite signs: the derivative of cos is -sin"),
    Mistake("not back to x", lambda D, x, t, s, c: _turned(D, x, t, s, c, back=lambda r_t, r_s: 1.0),
            "that is the scaled state; multiply by its radius to get x"),
    Mistake("old radius", lambda D, x, t, s, c: _turned(D, x, t, s, c, back=lambda r_t, r_s: r_t),
            "you scale back with the radius of t, but you have arrived at s"),
    Mistake("width forgotten", lambda D, x, t, s, c: _turned(D, x, t, s, 1.0),
            "your step is exact for data of width 1: where does c enter?"),
    Mistake("width forgotten in the angle", _angled(angle=lambda sigma, alpha, c: torch.atan2(sigma, alpha)),
            "your angle knows nothing of c: in it, too, the signal has the width of the data"),
    Mistake("width divided in the angle", _angled(angle=lambda sigma, alpha, c: torch.atan2(sigma, alpha / c)),
            "in your angle the signal is divided by the width; wide data has more signal, not less"),
    Mistake("angle from the other side", _angled(angle=lambda sigma, alpha, c: torch.atan2(c * alpha, sigma)),
            "sine and cosine have changed places, signs included: is it the order of atan2's arguments (much noise is a large angle), or v?"),
    Mistake("width forgotten in the radius", _angled(radius=lambda sigma, alpha, c: (alpha**2 + sigma**2).sqrt()),
            "your radius is that of data of width 1: how wide is x_t if the data has the width c?"),
    Mistake("width not squared in the radius", _angled(radius=lambda sigma, alpha, c: (c * alpha**2 + sigma**2).sqrt()),
            "in the radius alpha is squared and the width beside it is not"),
    Mistake("radius squared", _angled(radius=lambda sigma, alpha, c: c**2 * alpha**2 + sigma**2),
            "your radius is a variance; x is measured in standard deviations"),
    Mistake("guess multiplied by the width", _angled(guess=lambda x0, c: x0 * c),
            "the guess is multiplied by c in your v; to measure it in units of c, divide"),
    Mistake("parts of v swapped", _angled(slope=lambda sine, cosine, x0, e: sine * e - cosine * x0),
            "sine and cosine have changed places in your v"),
    Mistake("the state for its slope", _angled(slope=lambda sine, cosine, x0, e: sine * e + cosine * x0),
            "your v is (4.12), the state itself; its slope is its derivative by theta"),
    Mistake("v at the end", _angled(there=True),
            "your v has the angle of s; an Euler step takes the slope where it starts"),
    Mistake("x not scaled", _angled(scaled=lambda x, r_t: x),
            "you add the step to x itself: it is x divided by its radius that moves with v"),
    Mistake("step not scaled back", _step_outside,
            "only the old state is multiplied by the new radius; the step belongs inside the bracket"),
    Mistake("sine of the step", lambda D, x, t, s, c: _turned(D, x, t, s, c, lambda y, v, d: y - d.sin() * v),
            "you took the sine of the step; a straight step is as long as the difference of the angles"),
    Mistake("guess not measured in widths", _angled(guess=lambda x0, c: x0),
            "in v the guess, too, is measured in units of the width: x0_hat/c"),
    Mistake("no scaling", lambda D, x, t, s, c: _turned(
        D, x, t, s, c, lambda y, v, d: y - d * v / _radius(D, x, t, c), back=lambda r_t, r_s: r_t),
            "you moved x itself by v; it is x divided by its radius that moves with v"),
    Mistake("only the linear part", lambda D, x, t, s, c: _turned(D, x, t, s, c, lambda y, v, d: y),
            "you stretched the state as for a Gaussian, and never asked what else the data is: where is v?"),
    Mistake("step in the tangent", lambda D, x, t, s, c: _turned(D, x, t, s, c, lambda y, v, d: y - d.tan() * v),
            "the step is the difference of two angles, not its tangent"),
], tips=["for c = 1 under a VP schedule the radius is 1 at all times: do that case on paper first",
         "torch.atan2(sigma, c * alpha) is the angle"])


def _radius(D, x, t, c):
    alpha, sigma = levels(D, x, t)
    return (c**2 * alpha**2 + sigma**2).sqrt()


EXERCISES = [DDIM, ANGLES, TIMES, SECOND_ORDER, ETA, ANGULAR]

PREDICTIONS = [
    Prediction("4.1", "b", {
        "a": "The line from a known x_0 to its noise is straight, but for a whole Gaussian the noise believed in changes on the way.",
        "b": "From pure noise the best guess is the mean, for every start; one step lands there, and nowhere else.",
        "c": "Half would be luck. One straight step from pure noise goes all the way to the guess, and the guess is the mean.",
    }),
    Prediction("4.2", "b", {
        "a": "With a dozen steps even the best grid loses about a tenth of the width.",
        "b": "The loss falls only like one over the number of steps, and no choice of grid changes that.",
        "c": "That many are needed with a poor grid; the best one is better by a constant factor.",
    }),
    Prediction("4.3", "c", {
        "a": "Close to the end, each spot is nearly a point; but from afar the ring is a broad cloud, and there DDIM loses.",
        "b": "Both are first order, which says how fast the error falls, and not how large it is.",
        "c": "Seen through much noise the ring is a broad Gaussian, far from a point; that is not what DDIM is exact for.",
    }),
    Prediction("4.4", "c", {
        "a": "Order says what happens when steps are halved once they are small; five steps are not small.",
        "b": "Two guesses so far apart are a poor base for a straight line: extrapolated, it points past the data.",
        "c": "With long steps the guess has changed altogether since the step before; extrapolating the change overshoots.",
    }),
    Prediction("4.5", "c", {
        "a": "DDIM keeps all of the believed noise; the mean of the ancestral step keeps only a part of it.",
        "b": "The loss happens at every step and compounds: many steps make it worse, not better.",
        "c": "Each step makes room for new noise that never comes. That is not DDIM: DDIM fills the room with old noise.",
    }),
    Prediction("4.6", "c", {
        "a": "With the exact score it would be. This network has errors, and a path without noise keeps them to the end.",
        "b": "Ten steps are too long for a constant guess, and the more so the more noise they draw.",
        "c": "Second order makes the long steps accurate, and the fresh noise makes up for a part of the network's errors.",
    }),
]
