"""Chapter 4, DDIM and fast solvers: its exercises with their known mistakes, and its predictions."""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from ..denoiser import Denoiser, levels, per_row, score
from ..fast_samplers import ddim, ddim_eta, dpm_solver_pp
from ..sampling import last
from ..schedules import Schedule, equal_angles, log_snr_uniform
from .chapter_02 import SCHEDULES, Blob, between, jumps, normal, one_step
from .checks import Exercise, Mistake
from .predictions import Prediction

# --- 4.1 -------------------------------------------------------------------------------------------------------------


def steps(generator: torch.Generator) -> Iterator[tuple]:
    """D, x, t, s with a time per row."""
    for D, x, t, s, _ in one_step(generator):
        yield D, x, t, s


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


DDIM = Exercise("4.1", "One Euler step in the straight variables", ddim, steps, [
    Mistake("sigma(t) for sigma(s)", _mixed(lambda x, at, st, as_, ss, x0, e: as_ * x0 + st * e),
            "you used sigma(t) for the new noise level; it must be sigma(s)"),
    Mistake("alpha(t) for alpha(s)", _mixed(lambda x, at, st, as_, ss, x0, e: at * x0 + ss * e),
            "the picture is mixed in with the signal level of the old time t"),
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


def _multistep(weight=None, slope=None, clock=_half_log_snr, keep=True, signal=None):
    """The sampler with one ingredient replaced: weight(h), slope(x0, before, h, k), the clock, or what history keeps."""
    weight = weight or (lambda h: h + torch.expm1(-h))
    slope = slope or (lambda x0, before, h, k: (x0 - before) / k)

    def wrong(D, x, ts):
        before = None
        for t, s in pairwise(ts):
            (_, sigma_t), (alpha_s, sigma_s) = levels(D, x, t), levels(D, x, s)
            now, h = clock(D, t), per_row(clock(D, s) - clock(D, t), x)
            x0 = D(x, t)
            new = sigma_s / sigma_t * x - alpha_s * torch.expm1(-h) * x0
            if before is not None:
                new = new + (signal(D, x, t) if signal else alpha_s) * weight(h) * slope(
                    x0, before[1], h, per_row(now - before[0], x))
            if keep or before is None:
                before = now, x0
            x = new
        return x
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
            "your line runs backwards: it must lead from the older guess to the newer one, and beyond"),
    Mistake("weight of the constant", _multistep(weight=lambda h: -torch.expm1(-h)),
            "the slope has the weight of the constant; its own weight is the integral of exp(-v) (h - v), about h^2/2"),
    Mistake("Taylor's weight", _multistep(weight=lambda h: h**2 / 2),
            "h^2/2 is the weight for small h only; here h may be large, and the integral is known exactly"),
    Mistake("the paper's weight", _multistep(weight=lambda h: -torch.expm1(-h) * h / 2),
            "that is the paper's shorthand for the weight, of second order too; here take the integral as it is"),
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
    """One step of the eta family: 0 is DDIM, 1 the ancestral step."""
    return ddim_eta(eta)(D, x, t, s, z)


def noisy_steps(generator: torch.Generator) -> Iterator[tuple]:
    for case, eta in zip(jumps(generator), 5 * (0.3, 1.0, 0.6, 0.0, 0.8)):
        yield *case, eta


def _right(eta, beta, tilde, sigma_s):
    return eta * tilde.sqrt()


def _eta(tau=None, old=None, std=None, asserted=False):
    """The step with tau (or only its use in the old noise's share, or in the new noise) replaced; or stopped by its assertion."""
    def wrong(D, x, t, s, z, eta):
        at, st, as_, ss, x0, e = _parts(D, x, t, s)
        beta = st**2 - (at / as_) ** 2 * ss**2
        given = eta, beta, ss**2 / st**2 * beta, ss
        size = (tau or _right)(*given)
        assert not asserted or (ss**2 - size**2 >= 0).all()
        kept = old(size, as_, ss, *given) if old else (ss**2 - size**2).sqrt()
        return as_ * x0 + kept * e + (std(size) if std else size) * z
    return wrong


def _vp_beta(D, x, t, s, z, eta):
    at, st, as_, ss, x0, e = _parts(D, x, t, s)
    tau = eta * ss / st * (1 - (at / as_) ** 2).sqrt()
    return as_ * x0 + (ss**2 - tau**2).sqrt() * e + tau * z


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
            "your tau is made of the beta of the step forward; it can exceed sigma(s), and the root is NaN"),
    Mistake("beta for beta-tilde, found by the assertion", _eta(tau=lambda eta, beta, tilde, ss: eta * beta.sqrt(), asserted=True),
            "your assertion did its work: tau is made of the beta of the step forward, and exceeds sigma(s); it is made of beta-tilde"),
    Mistake("tau without its root, found by the assertion", _eta(tau=lambda eta, beta, tilde, ss: eta * tilde, asserted=True),
            "your assertion did its work: beta-tilde is a variance, and tau, by (4.10), is made of its root"),
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
    Mistake("eta for noise only", _eta(old=lambda size, as_, ss, eta, beta, tilde, _: (ss**2 - tilde).sqrt()),
            "the new noise knows of eta, the share of the old noise does not: the two must add up to sigma(s)^2"),
], tips=["beta-tilde first, with (2.9) and (2.10); then tau; then the share of the old noise",
         "for eta = 0 it must be exercise 4.1"])


# --- 4.6 -------------------------------------------------------------------------------------------------------------

def angular(D: Denoiser, x: Tensor, t, s, c: float) -> Tensor:
    """One Euler step in the angle theta = atan(sigma/(alpha c)): exact for data N(0, c^2 I), whatever the step."""
    return _turned(D, x, t, s, c)


def _turned(D, x, t, s, c, move=None, back=None, sign=1.0):
    """The angular step; `move(scaled, v, delta)` makes the scaled state at s, `back(r_t, r_s)` the factor to x again."""
    at, st, as_, ss, x0, e = _parts(D, x, t, s)
    r_t, r_s = (c**2 * at**2 + st**2).sqrt(), (c**2 * as_**2 + ss**2).sqrt()
    sine, cosine = st / r_t, c * at / r_t
    v = cosine * e - sign * sine * x0 / c
    delta = torch.atan2(st, c * at) - torch.atan2(ss, c * as_)                                      # > 0
    move = move or (lambda scaled, v, delta: scaled - delta * v)
    return (back(r_t, r_s) if back else r_s) * move(x / r_t, v, delta)


def _guess_as_it_is(D, x, t, s, c):
    at, st, as_, ss, x0, e = _parts(D, x, t, s)
    theta, end = torch.atan2(st, c * at), torch.atan2(ss, c * as_)
    v = theta.cos() * e - theta.sin() * x0
    return (c**2 * as_**2 + ss**2).sqrt() * (x / (c**2 * at**2 + st**2).sqrt() + (end - theta) * v)


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
    Mistake("guess not measured in widths", _guess_as_it_is,
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
