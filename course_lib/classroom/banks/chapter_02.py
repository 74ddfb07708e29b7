# Long: a table. Each entry is a wrong answer that learners give, and its hint; one reads the exercise that one looks for.
"""Chapter 2, diffusion SDEs: its exercises with their known mistakes, and its predictions."""

from collections.abc import Iterator
from itertools import cycle, pairwise

import torch
from torch import Tensor

from ...denoiser import Denoiser, eps, levels, per_row, score
from ...schedules import VE, CosineVP, LinearVP, Schedule
from ...sde_samplers import ancestral, euler_maruyama
from ..exercises import Exercise, Mistake, Prediction
from .cases import SCHEDULES, Blob, between, jumps, normal, one_step

# --- 2.1 -------------------------------------------------------------------------------------------------------------

def chain_levels(beta: Tensor) -> tuple[Tensor, Tensor]:
    """alpha (T,) and sigma (T,) after each step x <- sqrt(1 - beta_k) x + sqrt(beta_k) eps_k."""
    kept = (1 - beta).cumprod(0)
    return kept.sqrt(), (1 - kept).sqrt()


def chains(generator: torch.Generator) -> Iterator[tuple]:
    for T, largest in ((2, 0.5), (3, 0.5), (6, 0.3), (200, 0.03)):
        yield (between(generator, 1e-3, largest, T),)


LEVELS = Exercise("2.1", "Signal and noise after k small steps", chain_levels, chains, [
    Mistake("alpha of one step", lambda beta: ((1 - beta).sqrt(), beta.sqrt()),
            "these are the signal and noise of step k alone, but x_k has gone through all k steps: is your alpha cumulative?"),
    Mistake("product of betas", lambda beta: ((1 - beta).cumprod(0).sqrt(), beta.cumprod(0).sqrt()),
            "sigma^2 is not the product of the betas: look again at the sum of two variances for T = 2"),
    Mistake("sum of betas", lambda beta: ((1 - beta).cumprod(0).sqrt(), beta.cumsum(0).sqrt()),
            "variances of independent noises add, but the older noise has been shrunk by the later steps"),
    Mistake("variance for standard deviation", lambda beta: ((1 - beta).cumprod(0).sqrt(), 1 - (1 - beta).cumprod(0)),
            "your sigma is the variance; sigma multiplies eps, so it is a standard deviation"),
    Mistake("alpha squared", lambda beta: ((1 - beta).cumprod(0), (1 - (1 - beta).cumprod(0)).sqrt()),
            "your alpha is the square of the one asked for: each step multiplies x by a square root"),
    Mistake("no root in the chain", lambda beta: ((kept := (1 - beta).cumprod(0)), (1 - kept**2).sqrt()),
            "sigma fits your alpha, but your chain multiplies x by 1 - beta at each step: look again at (2.1)"),
    Mistake("one minus alpha", lambda beta: ((1 - beta).cumprod(0).sqrt(), (1 - (1 - beta).cumprod(0).sqrt()).sqrt()),
            "it is the squares that add up to one, alpha^2 + sigma^2 = 1"),
    Mistake("both without their roots", lambda beta: ((1 - beta).cumprod(0), 1 - (1 - beta).cumprod(0)),
            "these are the squares of both levels: signal and noise are asked for, not their powers"),
    Mistake("noise of one step", lambda beta: ((1 - beta).cumprod(0).sqrt(), beta.sqrt()),
            "your signal is that of all k steps, your noise that of step k alone"),
    Mistake("sigma by a plain difference", lambda beta: ((kept := (1 - beta).cumprod(0).sqrt()), 1 - kept),
            "alpha and sigma do not add up to one themselves; look at (2.3) once more"),
    Mistake("one step late", lambda beta: (
        (kept := torch.cat([beta.new_ones(1), (1 - beta).cumprod(0)[:-1]])).sqrt(), (1 - kept).sqrt()),
            "your list begins before the first step, with alpha = 1; it begins after it"),
    Mistake("noise first", lambda beta: chain_levels(beta)[::-1], "alpha comes first, then sigma"),
], tips=["what does the factor in front of x_0 look like after three steps?",
         "torch's `cumprod(0)` gives all running products at once"])


# --- 2.2 -------------------------------------------------------------------------------------------------------------

def slope(function, t: Tensor) -> Tensor:
    """d function/dt at every entry of t."""
    return torch.func.jvp(function, (t,), (torch.ones_like(t),))[1]


def sde_of(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """f(t) and g(t)^2 (B,) of the schedule's forward SDE."""
    return schedule.drift(t), schedule.diffusion2(t)


def times(generator: torch.Generator) -> Iterator[tuple]:
    for schedule in SCHEDULES:
        for B in (1, 5):
            yield schedule, between(generator, 0.05, 0.95, B)


def _variance_slope(schedule: Schedule, t: Tensor) -> Tensor:
    return slope(lambda u: schedule.sigma(u) ** 2, t)


def _with_drift(f):
    """Another drift f(schedule, t), and the g^2 that (2.6) makes of it."""
    return lambda c, t: (f(c, t), _variance_slope(c, t) - 2 * f(c, t) * c.sigma(t) ** 2)


SDE = Exercise("2.2", "Drift and diffusion of any schedule", sde_of, times, [
    Mistake("slope of alpha", _with_drift(lambda c, t: slope(c.alpha, t)),
            "your f is the slope of alpha itself; f says how fast alpha changes in proportion to alpha"),
    Mistake("no drift in the variance", lambda c, t: (c.drift(t), _variance_slope(c, t)),
            "your g^2 makes up for the growth of the variance only, as if the drift did not shrink the noise as well"),
    Mistake("sign", lambda c, t: (c.drift(t), _variance_slope(c, t) + 2 * c.drift(t) * c.sigma(t) ** 2),
            "check the sign of the term with f: a drift that shrinks x (f < 0) needs more new noise, not less"),
    Mistake("f without the two", lambda c, t: (c.drift(t), _variance_slope(c, t) - c.drift(t) * c.sigma(t) ** 2),
            "(1 + f h)^2 = 1 + 2 f h + ...: the variance shrinks at twice the rate of the mean"),
    Mistake("square of the slope", lambda c, t: (c.drift(t), slope(c.sigma, t) ** 2 - 2 * c.drift(t) * c.sigma(t) ** 2),
            "you squared the slope of sigma; the equation has the slope of sigma squared"),
    Mistake("slope of sigma", lambda c, t: (c.drift(t), slope(c.sigma, t) - 2 * c.drift(t) * c.sigma(t) ** 2),
            "(2.6) has the slope of sigma^2, not of sigma"),
    Mistake("sigma not squared", lambda c, t: (c.drift(t), _variance_slope(c, t) - 2 * c.drift(t) * c.sigma(t)),
            "in (2.5) f is multiplied by the variance v; which power of sigma is that?"),
    Mistake("right for VP only", lambda c, t: (c.drift(t), -2 * c.drift(t)),
            "g^2 = -2 f holds where alpha^2 + sigma^2 = 1; here every schedule counts"),
    Mistake("g for g squared", lambda c, t: (c.drift(t), c.diffusion2(t).sqrt()), "that is g; g^2 was asked for"),
    Mistake("sign of f", _with_drift(lambda c, t: -c.drift(t)),
            "your f is positive: what fades shrinks, so alpha' and f are negative"),
    Mistake("f of alpha squared", _with_drift(lambda c, t: 2 * c.drift(t)),
            "your f is twice the one of (2.6): that is how fast alpha squared changes in proportion"),
    Mistake("alpha for sigma", lambda c, t: (c.drift(t), _variance_slope(c, t) - 2 * c.drift(t) * c.alpha(t) ** 2),
            "f acts on the noise that is there already: which level squared is its variance?"),
    Mistake("chain rule", lambda c, t: (c.drift(t), 2 * slope(c.sigma, t) - 2 * c.drift(t) * c.sigma(t) ** 2),
            "the slope of sigma^2 is 2 sigma sigma', a factor sigma is missing; or let `slope` differentiate the square"),
    Mistake("g squared first", lambda c, t: (c.diffusion2(t), c.drift(t)), "f comes first, then g squared"),
], tips=["for f: `slope(schedule.alpha, t)` is alpha'(t); divide it by something",
         "for g squared: slope takes any function of t, `lambda u: ...` too"])


# --- 2.3 -------------------------------------------------------------------------------------------------------------

def _reverse(D: Denoiser, x: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """h, f, g^2: the rates of a step back and its length, shaped to multiply x."""
    f, g2 = sde_of(D.schedule, t)
    return per_row(t - s, x), per_row(f, x), per_row(g2, x)


def _back(pull=1.0, push=1.0, std=lambda g2, h: (g2 * h).sqrt(), grad=lambda D, x, t, s: score(D, x, t),
          step=lambda x, drift, noise, h: x - h * drift + noise):
    """The step with the factors of drift and score, the noise's std(g^2, h), the score or the sum of all replaced."""
    def wrong(D, x, t, s, z):
        h, f, g2 = _reverse(D, x, t, s)
        return step(x, pull * f * x - push * g2 * grad(D, x, t, s), std(g2, h) * z, h)
    return wrong


def _drift_without_x(D, x, t, s, z):
    h, f, _ = _reverse(D, x, t, s)
    return _back(pull=0)(D, x, t, s, z) - h * f


def _at_s(D, x, t, s, z):
    """The step of the right length with f, g^2 and the score at s."""
    return euler_maruyama(D, x, s, 2 * s - t, z)


REVERSE = Exercise("2.3", "One Euler-Maruyama step back", euler_maruyama, one_step, [
    Mistake("sign of dt", _back(pull=-1, push=-1),
            "your drift moves forward in time: the step goes from t down to s, so dt = s - t is negative"),
    Mistake("sign of f", _back(pull=-1),
            "the drift f x has the wrong sign: where the way to noise shrinks x, the way back must stretch it"),
    Mistake("sign of the score", _back(push=-1),
            "you walk down the score, away from the data: the score points to where the density grows"),
    Mistake("half the score", _back(push=0.5),
            "your step goes half as far along the score as Bayes' rule asks; the half belongs to an equation without noise"),
    Mistake("no score", _back(push=0),
            "you ran the drift back, but drift alone does not undo noise: where is the score?"),
    Mistake("no drift", _back(pull=0),
            "the score is there, but the forward drift is never undone (it is 0 for VE only)"),
    Mistake("variance for standard deviation", _back(std=lambda g2, h: g2 * h),
            "your noise is multiplied by its variance; z needs the standard deviation"),
    Mistake("noise times h", _back(std=lambda g2, h: g2.sqrt() * h),
            "noise grows like the square root of h: n steps of h must add up to the variance of one step of n h"),
    Mistake("noise without h", _back(std=lambda g2, h: g2.sqrt()),
            "your noise does not know how long the step is: ten steps of a tenth would add ten times the variance of one"),
    Mistake("g squared times the root of h", _back(std=lambda g2, h: g2 * h.sqrt()),
            "g^2 is a variance, and so is g^2 h; which root belongs before z?"),
    Mistake("noise in the bracket", _back(std=lambda g2, h: -h * (g2 * h).sqrt()),
            "the noise stands inside your bracket, and so it is multiplied by -h as well"),
    Mistake("noise subtracted", _back(std=lambda g2, h: -(g2 * h).sqrt()),
            "you subtract the noise; its distribution does not mind, but z is handed in to be *added*"),
    Mistake("noise twice", lambda D, x, t, s, z: euler_maruyama(D, x, t, s, z * torch.randn_like(z)),
            "you draw noise again and multiply it with z: the variance stays right, the tails grow heavy, as the kurtosis tells"),
    Mistake("own noise", lambda D, x, t, s, z: euler_maruyama(D, x, t, s, torch.randn_like(z)),
            "you drew noise of your own; use the z that was handed in"),
    Mistake("no noise", lambda D, x, t, s, z: euler_maruyama(D, x, t, s, 0 * z),
            "there is no noise in your step; this drift is right only together with the noise"),
    Mistake("drift without x", _drift_without_x, "f is a rate; what does it multiply?"),
    Mistake("drift without h", _back(step=lambda x, drift, noise, h: x - drift + noise),
            "drift and score are rates; what they do in one step depends on how long it is"),
    Mistake("the way alone", _back(step=lambda x, drift, noise, h: noise - h * drift),
            "you return how far to go; the new state is x plus that"),
    Mistake("g for g squared", _back(grad=lambda D, x, t, s: score(D, x, t) / per_row(D.schedule.diffusion2(t), x).sqrt()),
            "the score is multiplied by g in your drift; Bayes' rule has its square there"),
    Mistake("no g squared", _back(grad=lambda D, x, t, s: score(D, x, t) / per_row(D.schedule.diffusion2(t), x)),
            "how far to go along the score depends on how much noise the way forward adds: where is g^2?"),
    Mistake("x0 for score", _back(grad=lambda D, x, t, s: D(x, t)),
            "you put the guess x0_hat where the score belongs; `score(D, x, t)` makes one of the other"),
    Mistake("noise for score", _back(grad=lambda D, x, t, s: eps(D, x, t)),
            "you put the believed noise where the score belongs: they differ by a sign and by sigma"),
    Mistake("levels at s", _at_s,
            "x is at time t: drift, diffusion and score must be evaluated at t, not at the time that you are going to"),
], tips=["h = t - s is positive; write the step with h, then no sign is left to chance",
         "per_row(..., x) shapes a value per row so that it multiplies x"])


# --- 2.4 -------------------------------------------------------------------------------------------------------------

def walk_down(D: Denoiser, x: Tensor, ts: Tensor, step, noise: Tensor) -> Tensor:
    """The state at ts[-1], denoised: x0_hat (B, ...). The step may be a learner's: it takes D, x, t, s, z and no more."""
    for (t, s), z in zip(pairwise(ts), noise):
        x = step(D, x, t, s, z)
    return D(x, ts[-1])


def walks(generator: torch.Generator) -> Iterator[tuple]:
    for schedule in (LinearVP(), CosineVP(), VE()):
        for shape, n, step in (((1, 2), 2, euler_maruyama), ((5, 2), 4, ancestral), ((3, 1, 8, 8), 3, euler_maruyama)):
            ts = between(generator, 0.2, 0.9, n + 1).sort(descending=True).values
            yield Blob(schedule), normal(generator, *shape), ts, step, normal(generator, n, *shape)


def _driven(pairs, land=True, at=-1):
    """A driver that walks the pairs (t, s, i) that `pairs(ts)` lists, with noise[i]; i may be out of range."""
    def wrong(D, x, ts, step, noise):
        for t, s, i in pairs(ts):
            x = step(D, x, t, s, noise[i])
        return D(x, ts[at]) if land else x
    return wrong


def _in_order(ts):
    return [(t, s, i) for i, (t, s) in enumerate(pairwise(ts))]


def _from_the_start(D, x, ts, step, noise):
    return D(step(D, x, ts[-2], ts[-1], noise[-1]), ts[-1])


DRIVER = Exercise("2.4", "The loop over a time grid", walk_down, walks, [
    Mistake("no landing", _driven(_in_order, land=False),
            "your result is the last state itself, noise and all (D at time 0 gives it back unchanged); "
            "land on x0_hat, with the time that the state has"),
    Mistake("landing with the wrong time", _driven(_in_order, at=-2),
            "the last state is at ts[-1], but you denoise it as if it were one time earlier in the grid"),
    Mistake("loop index", _driven(lambda ts: [(torch.tensor(float(i)), torch.tensor(i + 1.0), i) for i in range(len(ts) - 1)]),
            "you pass the loop index as time; the times are the entries of ts"),
    Mistake("fraction of the loop", _driven(lambda ts: _in_order(torch.linspace(1, 0, len(ts), dtype=ts.dtype))),
            "you make times out of the loop index, as if the grid ran evenly from 1 to 0; the times are the entries of ts"),
    Mistake("starting late", _driven(lambda ts: [(ts[i + 1], ts[i + 2], i) for i in range(len(ts) - 2)]),
            "x is given at time ts[0], but your first step starts from ts[1]: print the pairs (t, s)"),
    Mistake("stopping early", _driven(lambda ts: _in_order(ts)[:-1]),
            "your loop stops one step before the end of the grid: n + 1 times make n steps"),
    Mistake("swapped", _driven(lambda ts: [(s, t, i) for t, s, i in _in_order(ts)]),
            "t and s are swapped: a step goes from the noisier time t, which comes first in ts, to the next one"),
    Mistake("one noise for all", _driven(lambda ts: [(t, s, 0) for t, s, _ in _in_order(ts)]),
            "every step uses the same noise; then the kicks no longer average out: step i takes noise[i]"),
    Mistake("noise from the end", _driven(lambda ts: [(t, s, -1 - i) for t, s, i in _in_order(ts)]),
            "the noise is used in the opposite order: step i takes noise[i]"),
    Mistake("always from the start", _from_the_start,
            "every step of yours starts from the x that was handed in; it must start where the step before it ended"),
    Mistake("noise shifted", _driven(lambda ts: [(t, s, i - 1) for t, s, i in _in_order(ts)]),
            "the noise is shifted against the steps: the first step takes noise[0]"),
    Mistake("landing with the first time", _driven(_in_order, at=0),
            "the last state is at ts[-1], but you denoise it as if it were pure noise still"),
    Mistake("stopped and landed early", _driven(lambda ts: _in_order(ts)[:-1], at=-2),
            "your landing takes the place of the last step: n + 1 times make n steps, and then comes the landing"),
    Mistake("one step and out", _driven(lambda ts: _in_order(ts)[:1]),
            "you return from inside the loop, after the first step"),
    Mistake("nothing kept", lambda D, x, ts, step, noise: D(x, ts[-1]),
            "what the steps return is thrown away: x never changes"),
    Mistake("noise of one's own", lambda D, x, ts, step, noise: walk_down(D, x, ts, step, torch.stack([
        torch.randn_like(x) for _ in noise])),
            "you draw noise of your own; step i takes noise[i]"),
    Mistake("last step without noise", lambda D, x, ts, step, noise: walk_down(D, x, ts, step, torch.cat([
        noise[:-1], 0 * noise[-1:]])),
            "your last step gets no noise; it is a step like the others, and what follows it, the landing, has none"),
], tips=["for n = 2 the steps are (ts[0], ts[1]) and (ts[1], ts[2])", "a grid of n + 1 times has len(ts) - 1 steps"])


# --- 2.5 -------------------------------------------------------------------------------------------------------------

def _posterior(a=None, beta=None, std=None, of_x0=None, of_x=None):
    """The ancestral step with one of its ingredients replaced.

    a and beta are functions of the four levels, std one of beta-tilde and beta; of_x0(a_s, beta) and of_x(a, s_s) are the
    weights of x_0 and x_t in the mean, times sigma_t^2.
    """
    of_x0, of_x = of_x0 or (lambda as_, new: as_ * new), of_x or (lambda ratio, ss: ratio * ss**2)

    def wrong(D, x, t, s, z):
        at, st, as_, ss = *levels(D, x, t), *levels(D, x, s)
        ratio = (a or _ratio)(at, st, as_, ss)
        new = (beta or (lambda *_: st**2 - ratio**2 * ss**2))(at, st, as_, ss)
        tilde = ss**2 * new / st**2
        return (of_x0(as_, new) * D(x, t) + of_x(ratio, ss) * x) / st**2 + (std or _root)(tilde, new) * z
    return wrong


def _ratio(alpha_t, sigma_t, alpha_s, sigma_s):
    return alpha_t / alpha_s


def _root(tilde, beta):
    return tilde.sqrt()


def _beta_of_the_fine_grid(D, x, t, s, z):
    """DDPM's one-step beta at t, 1 - alpha_t^2/alpha_(t - 1/1000)^2, used for a step from t all the way to s."""
    at, st, as_, ss = *levels(D, x, t), *levels(D, x, s)
    fine = per_row(D.schedule.alpha(t - 1e-3), x)
    beta = 1 - (at / fine) ** 2
    return (as_ * beta * D(x, t) + (1 - beta).sqrt() * ss**2 * x) / st**2 + (ss**2 * beta / st**2).sqrt() * z


def _small_step_beta(D, x, t, s, z):
    """beta = g^2 h, which holds for small steps only."""
    at, st, as_, ss = *levels(D, x, t), *levels(D, x, s)
    beta = per_row(D.schedule.diffusion2(t) * (t - s), x)
    return (as_ * beta * D(x, t) + at / as_ * ss**2 * x) / st**2 + (ss**2 * beta / st**2).sqrt() * z


def _ddim(D, x, t, s, z):
    """The believed noise, shrunk to the level of s."""
    at, st, as_, ss = *levels(D, x, t), *levels(D, x, s)
    return as_ * D(x, t) + ss * (x - at * D(x, t)) / st


def _fresh_noise(D, x, t, s, z):
    alpha_s, sigma_s = levels(D, x, s)
    return alpha_s * D(x, t) + sigma_s * z


class _Returns:
    """A denoiser that returns something else."""

    def __init__(self, D: Denoiser, function):
        self.schedule, self.function = D.schedule, function

    def __call__(self, x: Tensor, t, cond: Tensor | None = None) -> Tensor:
        return self.function(x, t)


ANCESTRAL = Exercise("2.5", "The ancestral step, for any s < t", ancestral, jumps, [
    Mistake("std of beta", _posterior(std=lambda tilde, beta: beta.sqrt()),
            "your noise has the variance beta of the step forward; once x_0 is known less is left to guess: beta-tilde"),
    Mistake("variance for standard deviation", _posterior(std=lambda tilde, beta: tilde),
            "you multiply z by the variance beta-tilde; it needs the standard deviation"),
    Mistake("beta for VP only", _posterior(beta=lambda at, st, as_, ss: 1 - (at / as_) ** 2),
            "1 - a^2 is beta for variance-preserving schedules only; the new noise is always what is missing to sigma(t)^2"),
    Mistake("a for a squared", _posterior(beta=lambda at, st, as_, ss: st**2 - at / as_ * ss**2),
            "x_s is multiplied by a, so its variance is multiplied by a^2"),
    Mistake("cumulative alpha", _posterior(a=lambda at, st, as_, ss: at),
            "alpha(t) leads from x_0 to x_t; the step from x_s to x_t needs the ratio of two alphas"),
    Mistake("ratio upside down", _posterior(a=lambda at, st, as_, ss: as_ / at),
            "your ratio a is upside down: forward steps shrink the signal, so a <= 1"),
    Mistake("beta since time 0", _posterior(beta=lambda at, st, as_, ss: 1 - at**2),
            "1 - alpha(t)^2 is all the noise since time 0; beta is only what came in between s and t"),
    Mistake("places changed", lambda D, x, t, s, z: ancestral(_Returns(D, lambda *_: x), D(x, t), t, s, z),
            "x_t and x_0 have changed places in your mean: for s = 0 it must be x_0"),
    Mistake("D at s", lambda D, x, t, s, z: ancestral(_Returns(D, lambda x, t: D(x, s)), x, t, s, z),
            "you denoise x as if it were at time s already; its noise is that of t"),
    Mistake("beta of one small step", _beta_of_the_fine_grid,
            "that is the beta of one step of 1/1000, reused for a longer jump; the effective beta depends on both s and t"),
    Mistake("beta by Euler", _small_step_beta,
            "g^2 h is beta for a very small step only; here the step may be as long as you like, and beta is known exactly"),
    Mistake("no noise", _posterior(std=lambda tilde, beta: 0 * tilde),
            "that is the mean of q(x_s | x_t, x_0), not a draw from it: without z the samples come out too narrow"),
    Mistake("the believed noise again", _ddim,
            "you keep the believed noise and add none; the draw has the variance beta-tilde"),
    Mistake("fresh noise", _fresh_noise,
            "you forget x_t: all of its noise is replaced by new noise, but (2.10) keeps a part of it"),
    Mistake("swapped s and t", lambda D, x, t, s, z: ancestral(_Returns(D, lambda x, s: D(x, t)), x, s, t, z),
            "s and t are swapped in your levels: s is the earlier time, with less noise"),
    Mistake("score for x0", lambda D, x, t, s, z: ancestral(_Returns(D, lambda x, t: score(D, x, t)), x, t, s, z),
            "the formula wants x0_hat, the output of D itself, where you put the score"),
    Mistake("own noise", lambda D, x, t, s, z: ancestral(D, x, t, s, torch.randn_like(z)),
            "you drew noise of your own; use the z that was handed in"),
    Mistake("noise for x0", lambda D, x, t, s, z: ancestral(_Returns(D, lambda x, t: eps(D, x, t)), x, t, s, z),
            "the formula wants the guess x0_hat, the output of D itself, where you put the believed noise"),
    Mistake("difference of variances", _posterior(beta=lambda at, st, as_, ss: st**2 - ss**2),
            "the noise of s shrinks on the way to t, and you take it off in full: see (2.9)"),
    Mistake("alpha forgotten in the mean", _posterior(of_x0=lambda as_, new: new),
            "x_0 is weighed by beta alone in your mean; what else multiplies it in (2.10)?"),
    Mistake("a forgotten in the mean", _posterior(of_x=lambda ratio, ss: ss**2),
            "x_t is weighed by sigma_s^2 alone in your mean; what else multiplies it in (2.10)?"),
    Mistake("sigma_s not squared in the mean", _posterior(of_x=lambda ratio, ss: ratio * ss),
            "in your mean one of the sigmas lacks its square"),
], tips=["levels(D, x, t) gives alpha(t) and sigma(t), ready to multiply x",
         "test it on paper: for s = 0 the step must return x0_hat"])


# --- 2.6 -------------------------------------------------------------------------------------------------------------

def family(D: Denoiser, x: Tensor, t, s, z: Tensor, lam: float) -> Tensor:
    """Euler-Maruyama of the lambda-family: lambda = 1 is the reverse SDE, 0 an ODE with the same marginals."""
    return _family(D, x, t, s, z, (1 + lam**2) / 2, lam)


def _family(D, x, t, s, z, push, noise):
    return _back(push=push)(D, x, t, s, noise * z)


def family_steps(generator: torch.Generator) -> Iterator[tuple]:
    for (D, x, t, s, z), lam in zip(one_step(generator), cycle((0.5, 2.0, 0.0, 1.5, 0.3))):
        yield D, x, t, s, z, lam


FAMILY = Exercise("2.6", "As much noise as you like", family, family_steps, [
    Mistake("only the noise is scaled", lambda D, x, t, s, z, lam: _family(D, x, t, s, z, 1, lam),
            "you turned down the noise and left the drift as it was; the two belong together, or the samples shrink"),
    Mistake("only the drift is scaled", lambda D, x, t, s, z, lam: _family(D, x, t, s, z, (1 + lam**2) / 2, 1),
            "the drift knows of lambda, the noise does not"),
    Mistake("half the score", lambda D, x, t, s, z, lam: _family(D, x, t, s, z, 0.5, lam),
            "half the score is right without noise only; each added bit of noise must be paid for with some more drift"),
    Mistake("lambda not squared", lambda D, x, t, s, z, lam: _family(D, x, t, s, z, (1 + lam) / 2, lam),
            "lambda multiplies a standard deviation; the drift must make up for a variance"),
    Mistake("noise squared", lambda D, x, t, s, z, lam: _family(D, x, t, s, z, (1 + lam**2) / 2, lam**2),
            "lambda^2 is the factor of the variance; z needs the standard deviation"),
    Mistake("half lost", lambda D, x, t, s, z, lam: _family(D, x, t, s, z, 1 + lam**2, lam),
            "try lambda = 1: is it the step of exercise 2.3?"),
    Mistake("root of lambda", lambda D, x, t, s, z, lam: _family(D, x, t, s, z, (1 + lam**2) / 2, lam**0.5),
            "lambda multiplies g, and g^2 stands under the root"),
    Mistake("delta for two delta", lambda D, x, t, s, z, lam: _family(D, x, t, s, z, lam**2, lam),
            "solve for delta again: a Langevin move of size delta adds noise of variance 2 delta, not delta"),
    Mistake("sign of delta", lambda D, x, t, s, z, lam: _family(D, x, t, s, z, (3 - lam**2) / 2, lam),
            "the sign of your delta is the wrong one: more noise needs more of the score, less noise less"),
    Mistake("no one", lambda D, x, t, s, z, lam: _family(D, x, t, s, z, lam**2 / 2, lam),
            "with lambda = 0 your step has no score left, yet the ODE needs half of it"),
    Mistake("sign of dt", lambda D, x, t, s, z, lam: 2 * x - _family(D, x, t, s, -z, (1 + lam**2) / 2, lam),
            "your drift moves forward in time: the step goes from t down to s"),
    Mistake("lambda ignored", lambda D, x, t, s, z, lam: _family(D, x, t, s, z, 1, 1),
            "that is exercise 2.3: lambda does not enter"),
    Mistake("score times lambda", lambda D, x, t, s, z, lam: _family(D, x, t, s, z, lam, lam),
            "you scale the score as the noise is scaled; put lambda = 0: is the score gone?"),
    Mistake("minus lambda squared", lambda D, x, t, s, z, lam: _family(D, x, t, s, z, (1 - lam**2) / 2, lam),
            "for lambda = 1 your score is gone; it should be that of exercise 2.3"),
    Mistake("half of one only", lambda D, x, t, s, z, lam: _family(D, x, t, s, z, 1 / 2 + lam**2, lam),
            "lambda = 0 comes out right; lambda = 1 does not: where does the half belong?"),
    Mistake("no noise", lambda D, x, t, s, z, lam: _family(D, x, t, s, z, (1 + lam**2) / 2, 0),
            "there is no noise in your step, and the drift relies on it"),
], tips=["for lambda = 1 it is exercise 2.3: change two places of that step",
         "what does the score's factor become for lambda = 0, and for lambda = 1?"])


EXERCISES = [LEVELS, SDE, REVERSE, DRIVER, ANCESTRAL, FAMILY]

PREDICTIONS = [
    Prediction("2.1", "b", {
        "a": "The schedule says so, but a step of finite size does not follow it where the drift is infinite.",
        "b": "In the last step f h is -1 and g^2 h is 2: what was there is wiped out, and noise of variance 2 takes its place.",
        "c": "Nobody evaluates the infinite rates: the last step starts from 1 - h, where they are large and finite.",
    }),
    Prediction("2.2", "b", {
        "a": "That is the Gaussian's guess; but x_t = 0.1 says little about which spot it came from.",
        "b": "After so long a jump x_t may have come from either spot, and there is next to no data in between.",
        "c": "0.1 is a little nearer to one spot, but the noise at t is far larger than that: the other past is nearly as likely.",
    }),
    Prediction("2.3", "b", {
        "a": "The loss is there, but a distance shows it only where it stands out of the floor.",
        "b": "How many samples fall on each spot is a lottery for exact samples too, and that lottery is most of the floor.",
        "c": "1000 steps do leave an error, but it is far smaller than the difference between two sets of exact samples.",
    }),
    Prediction("2.4", "c", {
        "a": "Noise is added at every step, but its amount is chosen to suit the step, not piled on top of what is there.",
        "b": "q(x_s | x_t, x_0) is exact, but x_0 is not known: its mean in place of x_0 drops the spread that x_0 still has.",
        "c": "Each step takes the guess x0_hat for the truth, and so forgets how uncertain it is.",
    }),
    Prediction("2.5", "b", {
        "a": "Cleaner sounds harmless, but the width is made by a balance of noise and pull, and you changed one side of it.",
        "b": "The noise is what keeps the spot wide against the pull of the score: half the noise, half the width.",
        "c": "The score with its full factor pulls together what the full noise spreads; with less noise the pull wins.",
    }),
]
