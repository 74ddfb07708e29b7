# Long: a table. Each entry is a wrong answer that learners give, and its hint; one reads the exercise that one looks for.
"""Chapter 8, consistency models and flow maps: its exercises with their known mistakes, and its predictions."""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

from ...consistency import along_the_flow, consistency_step, pseudo_huber
from ...denoiser import levels, per_row
from ...sampling import final
from ...schedules import Schedule
from ..exercises import Exercise, Mistake, Prediction
from .cases import SCHEDULES, SHAPES, Toy, between, normal

# --- 8.1 -------------------------------------------------------------------------------------------------------------


def end_of_path(x: Tensor, t, schedule: Schedule, mean: float, std: float) -> Tensor:
    """Where the flow of N(mean, std^2 I) takes x (B, ...) from time t: the same place in a Gaussian of another width."""
    alpha, sigma = per_row(schedule.alpha(t), x), per_row(schedule.sigma(t), x)
    return mean + std / (alpha**2 * std**2 + sigma**2).sqrt() * (x - alpha * mean)


class End:
    """The consistency function of N(mean, std^2 I), for rows of any shape."""

    is_posterior_mean = False

    def __init__(self, schedule: Schedule, mean: float = 0.3, std: float = 0.6):
        self.schedule, self.mean, self.std = schedule, mean, std

    def __call__(self, x: Tensor, t, cond: Tensor | None = None) -> Tensor:
        return end_of_path(x, t, self.schedule, self.mean, self.std)


def clouds(generator: torch.Generator) -> Iterator[tuple]:
    """x, times (B,), schedule, mean, std; and one time for all rows, in single precision."""
    for schedule, shape in zip(SCHEDULES, SHAPES):
        mean, std = between(generator, -1, 1).item(), between(generator, 0.2, 1.5).item()
        yield normal(generator, *shape), between(generator, 0.05, 0.95, shape[0]), schedule, mean, std
    yield normal(generator, 3, 2).float(), between(generator, 0.3, 0.8), SCHEDULES[1], 0.4, 0.7


def _placed(formula):
    """A wrong answer from formula(x, alpha, sigma, width of x_t, mean, std)."""
    def wrong(x, t, schedule, mean, std):
        alpha, sigma = per_row(schedule.alpha(t), x), per_row(schedule.sigma(t), x)
        return formula(x, alpha, sigma, (alpha**2 * std**2 + sigma**2).sqrt(), mean, std)
    return wrong


END = Exercise("8.1", "The end of the path, for a Gaussian", end_of_path, clouds, [
    Mistake("the denoiser", _placed(lambda x, a, s, w, m, c: m + a * c**2 / w**2 * (x - a * m)),
            "that is the denoiser, the mean of all that may lie behind x_t; its results are too narrow"),
    Mistake("ratio of variances", _placed(lambda x, a, s, w, m, c: m + c**2 / w**2 * (x - a * m)),
            "you scale by the ratio of the variances; a place is measured in standard deviations"),
    Mistake("mean not faded", _placed(lambda x, a, s, w, m, c: m + c / w * (x - m)),
            "the centre of x_t is not the centre of the data: it has faded together with the signal"),
    Mistake("signal not faded", _placed(lambda x, a, s, w, m, c: m + c / (c**2 + s**2).sqrt() * (x - a * m)),
            "in the width of x_t the data's own width has faded too: what multiplies x_0 in x_t?"),
    Mistake("alpha not squared", _placed(lambda x, a, s, w, m, c: m + c / (a * c**2 + s**2).sqrt() * (x - a * m)),
            "a factor comes out of a variance squared: look at what alpha(t) does to the variance of the data"),
    Mistake("widths added", _placed(lambda x, a, s, w, m, c: m + c / (a * c + s) * (x - a * m)),
            "standard deviations of independent parts do not add; their squares do"),
    Mistake("upside down", _placed(lambda x, a, s, w, m, c: m + w / c * (x - a * m)),
            "your ratio is upside down: you go from the width of x_t to the width of the data"),
    Mistake("not moved back", _placed(lambda x, a, s, w, m, c: c / w * (x - a * m)),
            "you end at the right place of a Gaussian around 0; the data's has its own centre"),
    Mistake("noise only", _placed(lambda x, a, s, w, m, c: m + c / s * (x - a * m)),
            "x_t is wider than its noise alone: the data contributes to its width"),
    Mistake("variance for width", _placed(lambda x, a, s, w, m, c: m + c / w**2 * (x - a * m)),
            "you divide by the variance of x_t; its width is the root of that"),
    Mistake("back to the faded centre", _placed(lambda x, a, s, w, m, c: a * m + c / w * (x - a * m)),
            "you put the place back around the centre of x_t; at the end of the path the centre is that of the data"),
    Mistake("not centred", _placed(lambda x, a, s, w, m, c: m + c / w * x),
            "the place is measured from the centre of x_t, and you measure it from 0"),
    Mistake("centre forgotten", _placed(lambda x, a, s, w, m, c: c / w * x),
            "right for data around 0; where does the mean come in, before the stretching and after it?"),
    Mistake("data of width 1", _placed(lambda x, a, s, w, m, c: m + c / (a**2 + s**2).sqrt() * (x - a * m)),
            "your width of x_t is that of data of width 1: where is c in it?"),
    Mistake("noise not squared", _placed(lambda x, a, s, w, m, c: m + c / (a**2 * c**2 + s).sqrt() * (x - a * m)),
            "under the root you add a standard deviation, the noise's, to a variance"),
    Mistake("data's width not squared", _placed(lambda x, a, s, w, m, c: m + c / (a**2 * c + s**2).sqrt() * (x - a * m)),
            "under the root the data's width is not squared; variances are what adds"),
    Mistake("units for a place", _placed(lambda x, a, s, w, m, c: m + (x - a * m) / w),
            "you add the place in units of 1 to the mean; one unit in the data is c long"),
    Mistake("data's variance", _placed(lambda x, a, s, w, m, c: m + c**2 / w * (x - a * m)),
            "you stretch by the data's variance; a place is so many *standard deviations* from the centre"),
    Mistake("not measured", _placed(lambda x, a, s, w, m, c: m + c * (x - a * m)),
            "you multiply by the width of the data, and have not divided by the width of x_t"),
    Mistake("faded data", _placed(lambda x, a, s, w, m, c: m + a * c / w * (x - a * m)),
            "you scale to the width alpha c; at t = 0 the data has not faded"),
    Mistake("mirrored", _placed(lambda x, a, s, w, m, c: m - c / w * (x - a * m)),
            "your points land on the other side of the centre: a path keeps its place, sign included"),
    Mistake("the noise taken off", _placed(lambda x, a, s, w, m, c: x / a),
            "you only undo the fading; the noise is still in there"),
    Mistake("standard normal place", _placed(lambda x, a, s, w, m, c: (x - a * m) / w),
            "that is the place itself, in units of the width of x_t; now go to the same place in the data"),
], tips=["the centre of x_t is alpha(t) m, and its variance alpha(t)^2 c^2 + sigma(t)^2",
         "`per_row(schedule.alpha(t), x)` has a shape that multiplies x"])


# --- 8.2 -------------------------------------------------------------------------------------------------------------

def coefficients_from(sigma: Tensor, sigma_min: float, sigma_data: float) -> tuple[Tensor, Tensor]:
    """c_skip and c_out with the boundary condition at sigma_min (Song et al. 2023, appendix C)."""
    skip = sigma_data**2 / ((sigma - sigma_min) ** 2 + sigma_data**2)
    return skip, sigma_data * (sigma - sigma_min) / (sigma**2 + sigma_data**2).sqrt()


def noise_levels(generator: torch.Generator) -> Iterator[tuple]:
    for B in (1, 2, 5, 9):
        sigma_min = between(generator, 0.002, 0.3).item()
        yield (sigma_min + between(generator, 0, 3, B).exp() - 1).clamp(min=sigma_min), sigma_min, between(generator, 0.3, 1.5).item()


def _pair(skip_level, out_level, root_level):
    """The coefficients with other noise levels in c_skip, in front of the root of c_out, and under it."""
    def wrong(sigma, sigma_min, sigma_data):
        a, b, c = (level(sigma, sigma_min) for level in (skip_level, out_level, root_level))
        return sigma_data**2 / (a**2 + sigma_data**2), sigma_data * b / (c**2 + sigma_data**2).sqrt()
    return wrong


def _as_is(sigma, sigma_min):
    return sigma


def _shifted(sigma, sigma_min):
    return sigma - sigma_min


def _between_squares(sigma, sigma_min):
    return (sigma**2 - sigma_min**2).sqrt()


def _raised(sigma, sigma_min):
    return sigma + sigma_min


def _of_skip(change):
    def wrong(sigma, sigma_min, sigma_data):
        skip, out = coefficients_from(sigma, sigma_min, sigma_data)
        return change(skip, sigma_data), out
    return wrong


def _of_out(change):
    def wrong(sigma, sigma_min, sigma_data):
        skip, out = coefficients_from(sigma, sigma_min, sigma_data)
        return skip, change(out, sigma_data)
    return wrong


BOUNDARY = Exercise("8.2", "The identity at the smallest noise", coefficients_from, noise_levels, [
    Mistake("identity at 0", _pair(_as_is, _as_is, _as_is),
            "yours is the identity at sigma = 0, but this model is never asked there: its paths end at sigma_min"),
    Mistake("skip alone", _pair(_shifted, _as_is, _as_is),
            "c_skip is 1 at sigma_min, but c_out is not 0 there: the network still speaks"),
    Mistake("out alone", _pair(_as_is, _shifted, _as_is),
            "c_out is 0 at sigma_min, but c_skip is below 1 there, so x itself is shrunk"),
    Mistake("root shifted too", _pair(_shifted, _shifted, _shifted),
            "under the root stands the variance of x, for the network's sake; x is not less noisy because its path ends earlier"),
    Mistake("difference of squares", _pair(_between_squares, _between_squares, _as_is),
            "yours is the identity at sigma_min too, but you measure the way to the end in variances; sigma itself is the time"),
    Mistake("sign of the shift", _pair(_raised, _raised, _as_is),
            "you add sigma_min where the distance *from* sigma_min is meant"),
    Mistake("root forgotten", lambda sigma, sigma_min, sigma_data: (
        coefficients_from(sigma, sigma_min, sigma_data)[0], sigma_data * (sigma - sigma_min) / (sigma**2 + sigma_data**2)),
            "c_out has a square root below the fraction line"),
    Mistake("width not squared", lambda sigma, sigma_min, sigma_data: (
        sigma_data / ((sigma - sigma_min) ** 2 + sigma_data), coefficients_from(sigma, sigma_min, sigma_data)[1]),
            "in c_skip the data's width comes in squared, like the noise beside it"),
    Mistake("way backwards", _pair(_shifted, lambda sigma, sigma_min: sigma_min - sigma, _as_is),
            "your c_out is negative: the way to the end is sigma minus sigma_min"),
    Mistake("out without the data's width", _of_out(lambda out, sigma_data: out / sigma_data),
            "in c_out the factor sigma_data is missing"),
    Mistake("width squared in out", _of_out(lambda out, sigma_data: out * sigma_data),
            "in c_out sigma_data comes once; its square belongs to c_skip"),
    Mistake("width not squared above the line", _of_skip(lambda skip, sigma_data: skip / sigma_data),
            "above the line of c_skip the width is not squared, so that it is not 1 at sigma_min"),
    Mistake("one above the line", _of_skip(lambda skip, sigma_data: skip / sigma_data**2),
            "above the line of c_skip stands 1 with you; it must be what stands below it at sigma_min"),
    Mistake("root in skip", _of_skip(lambda skip, sigma_data: sigma_data * skip.sqrt()),
            "below the line of c_skip there is no root"),
    Mistake("the other share", _of_skip(lambda skip, sigma_data: 1 - skip),
            "your c_skip is 0 at sigma_min and 1 far away; near the end x itself is to be kept"),
    Mistake("swapped", lambda sigma, sigma_min, sigma_data: coefficients_from(sigma, sigma_min, sigma_data)[::-1],
            "right, but in the wrong order: first c_skip, then c_out"),
], tips=["put sigma = sigma_min into your two results: they must be 1 and 0",
         "replace sigma by sigma - sigma_min in two of the three places; the third measures how large x is"])


# --- 8.3 -------------------------------------------------------------------------------------------------------------

HUBER = 0.1  # the c of the chapter's losses


def training_loss(f: nn.Module, slow: nn.Module, x0: Tensor, noise: Tensor, t: Tensor, r: Tensor) -> Tensor:
    """Consistency training: the same image with the same noise at t and at r < t, no teacher (Song et al. 2023, algorithm 3)."""
    return _loss(f, slow, x0, noise, t, r)


def _loss(f, slow, x0, noise, t, r, *, noise_at_r=None, distance=pseudo_huber, weight=lambda t, r: 1 / (t - r),
          target=lambda f, slow, x_t, x_r, x0, t, r: slow(x_r, r).detach(), answer=lambda f, x_t, x_r, t, r: f(x_t, t),
          faded_t=lambda alpha_t: alpha_t, alpha=lambda at_t, at_r: at_r, sigma=lambda at_t, at_r: at_r,
          mean=lambda weight, each: (weight * each).mean()):
    """The loss with one ingredient replaced; alpha and sigma choose the levels of x_r."""
    (alpha_t, sigma_t), (alpha_r, sigma_r) = levels(f, x0, t), levels(f, x0, r)
    x_t = faded_t(alpha_t) * x0 + sigma_t * noise
    x_r = alpha(alpha_t, alpha_r) * x0 + sigma(sigma_t, sigma_r) * (noise if noise_at_r is None else noise_at_r(noise))
    d = answer(f, x_t, x_r, t, r) - target(f, slow, x_t, x_r, x0, t, r)
    each = pseudo_huber(d, HUBER) if distance is pseudo_huber else distance(d)
    return mean(weight(t, r), each)


def lessons(generator: torch.Generator) -> Iterator[tuple]:
    """f, its teaching copy (None: f teaches itself), x0, noise, t, r."""
    for i, (schedule, shape) in enumerate(zip(SCHEDULES, SHAPES)):
        r = between(generator, 0.05, 0.45, shape[0])
        f, slow = (Toy(schedule, between(generator, 0.5, 2.0).item()) for _ in range(2))
        yield f, (None if i % 2 else slow), normal(generator, *shape), normal(generator, *shape), r + between(generator, 0.1, 0.4, shape[0]), r


def _loss_and_gradient(function, f, slow, *rest):
    """The value, and what it teaches the weight of f."""
    loss = function(f, f if slow is None else slow, *rest)
    if not loss.requires_grad:
        return loss, torch.zeros((), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(loss.sum(), f.weight, allow_unused=True)
    return loss, torch.zeros((), dtype=torch.float64) if gradient is None else gradient


def _wrong(**changes):
    return lambda *case: _loss(*case, **changes)


TRAINING = Exercise("8.3", "Consistency training", training_loss, lessons, [
    Mistake("fresh noise", _wrong(noise_at_r=torch.randn_like),
            "you drew new noise for x_r; only with the *same* noise do x_t and x_r lie on one line"),
    Mistake("gradient through the target", _wrong(target=lambda f, slow, x_t, x_r, x0, t, r: slow(x_r, r)),
            "the loss pulls at both ends: a gradient runs through the target as well, which must stand still"),
    Mistake("no gradient at all", lambda *case: _loss(*case).detach(),
            "nothing is learned: f itself is evaluated without gradient as well"),
    Mistake("weight upside down", _wrong(weight=lambda t, r: t - r),
            "you multiply by the gap; pairs that are close differ little, and need the larger weight"),
    Mistake("no weight", _wrong(weight=lambda t, r: 1.0),
            "the weight 1/(t - r) is missing, so that close pairs hardly count"),
    Mistake("times swapped in the weight", _wrong(weight=lambda t, r: 1 / (r - t)),
            "your loss is negative: r is the smaller of the two times"),
    Mistake("target asked at t", _wrong(target=lambda f, slow, x_t, x_r, x0, t, r: slow(x_r, t).detach()),
            "x_r is at time r, so the copy must be told r; you told it t"),
    Mistake("target sees x_t", _wrong(target=lambda f, slow, x_t, x_r, x0, t, r: slow(x_t, r).detach()),
            "you show the copy x_t and tell it the time r: it must see x_r"),
    Mistake("roles swapped", _wrong(target=lambda f, slow, x_t, x_r, x0, t, r: slow(x_t, t).detach(),
                                    answer=lambda f, x_t, x_r, t, r: f(x_r, r)),
            "you let the noisier state teach the cleaner one; knowledge comes from the side of the data"),
    Mistake("the picture as target", _wrong(target=lambda f, slow, x_t, x_r, x0, t, r: x0),
            "with x_0 for a target this is the denoising loss, and its minimiser is the blur"),
    Mistake("f teaches itself", _wrong(target=lambda f, slow, x_t, x_r, x0, t, r: f(x_r, r).detach()),
            "the target comes from f as it stands; it is the slow copy that teaches"),
    Mistake("both at t", _wrong(target=lambda f, slow, x_t, x_r, x0, t, r: slow(x_t, t).detach()),
            "both sides are asked about x_t at t, so that nothing comes from the side of the data"),
    Mistake("the copy sees the picture", _wrong(target=lambda f, slow, x_t, x_r, x0, t, r: slow(x0, r).detach()),
            "you show the copy the clean picture and tell it the time r; it must see a state with the noise of r"),
    Mistake("f told r", _wrong(answer=lambda f, x_t, x_r, t, r: f(x_t, r)),
            "f sees x_t, which is at time t, and is told r"),
    Mistake("x_t not faded", _wrong(faded_t=torch.ones_like),
            "in x_t the picture has not faded: a state at t holds alpha(t) times it"),
    Mistake("signal of t at r", _wrong(alpha=lambda at_t, at_r: at_t),
            "your x_r has the signal level of t"),
    Mistake("noise of t at r", _wrong(sigma=lambda at_t, at_r: at_t),
            "your x_r has as much noise as x_t; at r there is less"),
    Mistake("weight squared", _wrong(weight=lambda t, r: 1 / (t - r) ** 2),
            "you divide by the square of the gap; the distance falls with the gap itself"),
    Mistake("one weight for all", _wrong(mean=lambda weight, each: each.mean() / (1 / weight).mean()),
            "you divide the mean distance by the mean gap; every pair has its own gap, so divide first and take the mean then"),
    Mistake("no mean", _wrong(mean=lambda weight, each: weight * each),
            "you return a number for each row; a loss is one number, their mean"),
    Mistake("square", _wrong(distance=lambda d: d.flatten(1).square().mean(1)),
            "you took the mean square; here the distance is `pseudo_huber(d, 0.1)`"),
    Mistake("sum over the batch", lambda *case: _loss(*case) * len(case[2]),
            "you add up the rows of the batch; take their mean, or the learning rate depends on the batch"),
], tips=["two pairs of levels, two states from the same x0 and noise, then the target under `torch.no_grad()`",
         "`pseudo_huber(f(x_t, t) - target, 0.1)` has one number a row, and so has 1 / (t - r)"],
    call=_loss_and_gradient)


# --- 8.4 -------------------------------------------------------------------------------------------------------------

def total_rate(f, x: Tensor, t: Tensor, slope: Tensor) -> Tensor:
    """d f(x_t, t)/dt (B, ...) where x moves at dx/dt = slope."""
    return along_the_flow(f, x, t, slope)[1]


def _swirl(x: Tensor, t: Tensor) -> Tensor:
    """A function whose Jacobian is not symmetric, so that a product with its transpose shows."""
    t = per_row(t, x)
    return (x + t * x.roll(1, -1)).sin() * (1 + t) + t**2


def _tilted(schedule: Schedule):
    return lambda x, t: End(schedule)(x, t) + 0.5 * x.roll(1, -1) * per_row(t, x)


def motions(generator: torch.Generator) -> Iterator[tuple]:
    for schedule, shape in zip(SCHEDULES, SHAPES):
        for f in (_swirl, _tilted(schedule)):
            yield f, normal(generator, *shape), between(generator, 0.1, 0.9, shape[0]), normal(generator, *shape)


def _tangents(make):
    """The derivative with other tangents make(x, t, slope)."""
    return lambda f, x, t, slope: torch.func.jvp(f, (x, t), make(x, t, slope))[1]


def _partial_plus_slope(f, x, t, slope):
    return torch.func.jvp(f, (x, t), (torch.zeros_like(x), torch.ones_like(t)))[1] + slope


def _transposed(f, x, t, slope):
    by_time = torch.func.jvp(f, (x, t), (torch.zeros_like(x), torch.ones_like(t)))[1]
    return by_time + torch.func.vjp(lambda x: f(x, t), x)[1](slope)[0]


def _summed(combine):
    """What combine(gradient of the sum of f by x, derivative of f by t, slope) gives."""
    def wrong(f, x, t, slope):
        by_time = torch.func.jvp(f, (x, t), (torch.zeros_like(x), torch.ones_like(t)))[1]
        return combine(torch.func.grad(lambda x: f(x, t).sum())(x), by_time, slope)
    return wrong


RATE = Exercise("8.4", "The total derivative", total_rate, motions, [
    Mistake("x held still", _tangents(lambda x, t, slope: (torch.zeros_like(x), torch.ones_like(t))),
            "that is the partial derivative: the clock runs, but x stands still. On a path both move"),
    Mistake("the clock held still", _tangents(lambda x, t, slope: (slope, torch.zeros_like(t))),
            "x moves, but the clock that f is told stands still; on a path both move"),
    Mistake("backwards in time", _tangents(lambda x, t, slope: (-slope, torch.ones_like(t))),
            "the clock runs forwards and x backwards: slope is dx/dt, with the sign that belongs to a growing t"),
    Mistake("both backwards", _tangents(lambda x, t, slope: (-slope, -torch.ones_like(t))),
            "that is the derivative towards the data; asked is d/dt, for a growing t"),
    Mistake("slope added", _partial_plus_slope,
            "you add the slope of x itself; what counts is how much f changes when x moves so, the Jacobian times the slope"),
    Mistake("transposed", _transposed,
            "you multiply by the transposed Jacobian (a vector-Jacobian product, as in backpropagation); here its columns are wanted"),
    Mistake("clock backwards", _tangents(lambda x, t, slope: (slope, -torch.ones_like(t))),
            "x goes forwards and your clock backwards: dt/dt is +1"),
    Mistake("ones for the slope", _tangents(lambda x, t, slope: (torch.ones_like(x), torch.ones_like(t))),
            "your x moves by one everywhere; the direction in which it moves is the slope"),
    Mistake("slope times t", _tangents(lambda x, t, slope: (per_row(t, x) * slope, torch.ones_like(t))),
            "you multiply the slope by t; the tangent is a rate, per unit of time"),
    Mistake("gradient of a sum", _summed(lambda gradient, by_time, slope: gradient * slope),
            "the gradient of the summed output mixes all outputs, and the clock stands still; the Jacobian times the slope is a jvp"),
    Mistake("gradient of a sum, and the clock", _summed(lambda gradient, by_time, slope: gradient * slope + by_time),
            "the gradient of the summed output mixes all outputs; each entry of f has a derivative of its own along the slope"),
    Mistake("partial times slope", _summed(lambda gradient, by_time, slope: by_time * slope),
            "you multiply the derivative by t with the slope of x; the slope belongs to the derivative by x"),
    Mistake("a coarse difference", lambda f, x, t, slope: (f(x + 0.01 * slope, t + 0.01) - f(x, t)) / 0.01,
            "a difference over a step of 0.01 is near the derivative, and not it; jvp is exact, and costs no step"),
    Mistake("tangent x", _tangents(lambda x, t, slope: (x, torch.ones_like(t))),
            "the tangent of x is the direction in which it moves, the slope; you gave x itself"),
    Mistake("tangent t", _tangents(lambda x, t, slope: (slope, t)),
            "the tangent of t is how fast the clock runs, dt/dt; you gave t itself"),
    Mistake("the value", lambda f, x, t, slope: torch.func.jvp(f, (x, t), (slope, torch.ones_like(t)))[0],
            "jvp gives two things, the value and the derivative, in this order; you returned the value"),
    Mistake("both", lambda f, x, t, slope: torch.func.jvp(f, (x, t), (slope, torch.ones_like(t))),
            "jvp gives two things, the value and the derivative; only the second is asked for"),
], tips=["`torch.func.jvp(f, (x, t), (how x moves, how t moves))`", "dx/dt is the slope, and dt/dt is 1, for every row"])


# --- 8.5 -------------------------------------------------------------------------------------------------------------

def multistep(f, x: Tensor, ts: Tensor, noise: Tensor) -> Tensor:
    """The last state (B, ...) of consistency sampling down ts (n+1,), with the noise (n, B, ...) of every step."""
    return final(f, x, ts, consistency_step, noise=noise).x


def descents(generator: torch.Generator) -> Iterator[tuple]:
    for schedule, shape, n in zip(SCHEDULES, SHAPES, (1, 2, 4, 3, 2)):
        inner = between(generator, 0.1, 0.9, n).sort(descending=True).values
        yield End(schedule), normal(generator, *shape), torch.cat([inner, torch.zeros_like(inner[:1])]), normal(generator, n, *shape)


def _walk(step):
    """The sampler with a wrong step(f, x, guess, t, s, z)."""
    def wrong(f, x, ts, noise):
        for (t, s), z in zip(pairwise(ts), noise):
            x = step(f, x, f(x, t), t, s, z)
        return x
    return wrong


def _mixed(f, guess, a, b, z):
    """The guess at the signal level of time a, z at the noise level of time b."""
    return levels(f, guess, a)[0] * guess + levels(f, guess, b)[1] * z


def _keep_noise(f, x, guess, t, s, z):
    alpha_t, sigma_t = levels(f, x, t)
    return _mixed(f, guess, s, s, (x - alpha_t * guess) / sigma_t)


MULTISTEP = Exercise("8.5", "Consistency sampling in several steps", multistep, descents, [
    Mistake("noise after the last", _walk(lambda f, x, guess, t, s, z: _mixed(f, guess, t, t, z)),
            "you mix at the old time t, so that each round ends where it began, and the last one leaves its noise in the result"),
    Mistake("noise level of t", _walk(lambda f, x, guess, t, s, z: _mixed(f, guess, s, t, z)),
            "your noise has the level of the old time t; x must be as noisy as f will be told next, at s"),
    Mistake("signal level of t", _walk(lambda f, x, guess, t, s, z: _mixed(f, guess, t, s, z)),
            "the guess is mixed in with the signal level of the old time t"),
    Mistake("guess not faded", _walk(lambda f, x, guess, t, s, z: guess + levels(f, x, s)[1] * z),
            "a state at time s holds alpha(s) times the picture, not all of it"),
    Mistake("stops above 0", lambda f, x, ts, noise: multistep(f, x, ts[:-1], noise[:-1]) if len(ts) > 2 else x,
            "you stop one step too early: the result still has the noise of the last but one time"),
    Mistake("old noise kept", _walk(_keep_noise),
            "you keep the noise that x and the guess imply, as DDIM does; here every step draws its own"),
    Mistake("one noise for all", lambda f, x, ts, noise: multistep(f, x, ts, noise[:1].expand_as(noise)),
            "you use the first noise in every step; each has its own"),
    Mistake("variance for standard deviation", _walk(lambda f, x, guess, t, s, z: levels(f, x, s)[0] * guess + levels(f, x, s)[1] ** 2 * z),
            "z is multiplied by the variance; it must be the standard deviation sigma"),
    Mistake("f asked at s", lambda f, x, ts, noise: _asked_at_s(f, x, ts, noise),
            "x is at time t, so f must be told t; you told it s"),
    Mistake("own noise", _walk(lambda f, x, guess, t, s, z: _mixed(f, guess, s, s, torch.randn_like(z))),
            "you drew noise of your own; use the z that was handed in"),
    Mistake("noise from the end", lambda f, x, ts, noise: multistep(f, x, ts, noise.flip(0)),
            "the noise is used in the opposite order: step i takes noise[i]"),
    Mistake("bare guess", _walk(lambda f, x, guess, t, s, z: guess),
            "you hand on the guess itself; f will be told the time s, so it must see a state with the signal and noise of s"),
    Mistake("state for the guess", lambda f, x, ts, noise: _unasked(f, x, ts, noise),
            "you mix the old state with new noise, and f is never asked"),
    Mistake("noise faded, too", _walk(lambda f, x, guess, t, s, z: levels(f, x, s)[0] * (guess + levels(f, x, s)[1] * z)),
            "alpha multiplies the guess only; your noise is too weak"),
    Mistake("levels swapped", _walk(lambda f, x, guess, t, s, z: levels(f, x, s)[1] * guess + levels(f, x, s)[0] * z),
            "alpha and sigma have changed places: at s = 0 yours is nothing but noise"),
    Mistake("noised before asking", lambda f, x, ts, noise: _noised_first(f, x, ts, noise),
            "you mix first and ask then, so that the first x is made noisier than it is, and f is told the time behind it"),
    Mistake("right for VP only", _walk(lambda f, x, guess, t, s, z: levels(f, x, s)[0] * guess + (1 - levels(f, x, s)[0] ** 2).sqrt() * z),
            "1 - alpha^2 is sigma^2 for variance-preserving schedules only"),
    Mistake("unit noise", _walk(lambda f, x, guess, t, s, z: levels(f, x, s)[0] * guess + z),
            "your noise has the standard deviation 1 at every time; at s it is sigma(s), and at 0 nothing"),
    Mistake("noise added to x", _walk(lambda f, x, guess, t, s, z: x + levels(f, x, s)[1] * z),
            "you add noise to the old state; the guess of f is nowhere used"),
    Mistake("no noise", _walk(lambda f, x, guess, t, s, z: levels(f, x, s)[0] * guess),
            "a state at time s has noise of the level sigma(s); yours is clean, and f will be misled"),
], tips=["a loop over `zip(pairwise(ts), noise)` gives t, s and z",
         "inside it: the guess f(x, t), then `levels(f, x, s)` to mix it with z"])


def _unasked(f, x, ts, noise):
    for s, z in zip(ts[1:], noise):
        x = _mixed(f, x, s, s, z)
    return x


def _noised_first(f, x, ts, noise):
    for s, z in zip(ts[1:], noise):
        x = f(_mixed(f, x, s, s, z), s)
    return x


def _asked_at_s(f, x, ts, noise):
    for s, z in zip(ts[1:], noise):
        x = _mixed(f, f(x, s), s, s, z)
    return x


# --- 8.6 -------------------------------------------------------------------------------------------------------------

def average_of_two(u, z: Tensor, t: Tensor, m: Tensor, r: Tensor) -> Tensor:
    """The average velocity (B, ...) over [r, t] from those over [m, t] and [r, m]."""
    return _average(u, z, t, m, r)


def _average(u, z, t, m, r, *, first=lambda u, z, t, m, r: u(z, t, m), move=lambda z, h, v: z - h * v,
             second=lambda u, z, z_m, t, m, r: u(z_m, m, r), mix=lambda a, b, v, w: (a * v + b * w) / (a + b)):
    """The average with one ingredient replaced; a and b are the lengths t - m and m - r."""
    a, b = per_row(t - m, z), per_row(m - r, z)
    v = first(u, z, t, m, r)
    return mix(a, b, v, second(u, z, move(z, a, v), t, m, r))


def _gaussian_average(z: Tensor, t: Tensor, r: Tensor, std: float = 0.5) -> Tensor:
    """u of N(0, std^2) under the schedule Flow: z (1 - w(r)/w(t))/(t - r), w(t)^2 = (1 - t)^2 std^2 + t^2."""
    (w_t, w_r), gap = ((((1 - v) ** 2 * std**2 + v**2).sqrt() for v in (t, r)), t - r)
    return per_row((1 - w_r / w_t) / gap, z) * z


def _unfinished(z: Tensor, t: Tensor, r: Tensor) -> Tensor:
    """What a network in training may say: no map of any flow."""
    return (2 * z + per_row(t, z)).sin() + per_row(r, z) * z**2 / 4


def legs(generator: torch.Generator) -> Iterator[tuple]:
    for shape in SHAPES:
        for u in (_gaussian_average, _unfinished):
            ends = between(generator, 0.02, 0.98, 3, shape[0]).sort(0, descending=True).values
            yield u, normal(generator, *shape), *ends.unbind(0)


def _changed(**changes):
    return lambda *case: _average(*case, **changes)


AVERAGE = Exercise("8.6", "The average over two legs", average_of_two, legs, [
    Mistake("plain mean", _changed(mix=lambda a, b, v, w: (v + w) / 2),
            "you average the two as if both legs took equally long; who drives longer counts more"),
    Mistake("second leg from z", _changed(second=lambda u, z, z_m, t, m, r: u(z, m, r)),
            "the second leg starts where the first one ends, not at z"),
    Mistake("second leg told t", _changed(second=lambda u, z, z_m, t, m, r: u(z_m, t, r)),
            "the second leg starts at time m; you told u that it is still t"),
    Mistake("weights swapped", _changed(mix=lambda a, b, v, w: (b * v + a * w) / (a + b)),
            "each velocity has the duration of the *other* leg for its weight"),
    Mistake("a distance", _changed(mix=lambda a, b, v, w: a * v + b * w),
            "that is the whole distance; a velocity is distance by time"),
    Mistake("sign of the move", _changed(move=lambda z, h, v: z + h * v),
            "towards the data time falls: the first leg ends at z *minus* its duration times its velocity"),
    Mistake("no duration in the move", _changed(move=lambda z, h, v: z - v),
            "you moved z by a velocity; a way is a velocity times a duration"),
    Mistake("first leg for the whole time", lambda u, z, t, m, r: _average(
        u, z, t, m, r, second=lambda u, z_, z_m, t, m, r: u(z - per_row(t - r, z) * u(z, t, m), m, r)),
            "the first leg lasts from t to m only; you moved z as if it lasted to r"),
    Mistake("the end", _changed(second=lambda u, z, z_m, t, m, r: (u(z_m, m, r), z), mix=lambda a, b, v, w: w[1] - a * v - b * w[0]),
            "that is where the journey ends; asked is its average velocity, the way by the time"),
    Mistake("the direct end", lambda u, z, t, m, r: z - per_row(t - r, z) * u(z, t, r),
            "that is where u's own long way ends; asked is a velocity, put together from two shorter ways"),
    Mistake("brackets", _changed(mix=lambda a, b, v, w: a * v + b * w / (a + b)),
            "only the second part is divided by the whole time: brackets around the sum of the two ways"),
    Mistake("time backwards", _changed(mix=lambda a, b, v, w: -(a * v + b * w) / (a + b)),
            "you divide by r - t, which is negative: durations are t - m, m - r and t - r"),
    Mistake("second leg only", _changed(mix=lambda a, b, v, w: w),
            "that is the velocity of the second leg alone"),
    Mistake("way for a place", _changed(move=lambda z, h, v: h * v),
            "the second leg starts at a place, z minus the way; you start it at the way"),
    Mistake("moved for the second leg's time", lambda u, z, t, m, r: _average(
        u, z, t, m, r, second=lambda u, z_, z_m, t, m, r: u(z - per_row(m - r, z) * u(z, t, m), m, r)),
            "you move z for the duration of the second leg; on the first leg t - m passes"),
    Mistake("second leg backwards", _changed(second=lambda u, z, z_m, t, m, r: u(z_m, r, m)),
            "in your second call the two times are the wrong way round: it starts at m and goes to r"),
    Mistake("second leg to t", _changed(second=lambda u, z, z_m, t, m, r: u(z_m, m, t)),
            "your second leg goes from m back to t"),
    Mistake("first leg asked for the whole", _changed(first=lambda u, z, t, m, r: u(z, t, r)),
            "your first call asks for the way from t to r; the first leg ends at m"),
    Mistake("second duration negative", _changed(mix=lambda a, b, v, w: (a * v - b * w) / (a - b)),
            "the second leg's duration has the wrong sign: it is m - r"),
    Mistake("asked directly", lambda u, z, t, m, r: u(z, t, r),
            "you ask u for the long way itself; the point is to teach it that from two shorter ways"),
    Mistake("times in the wrong order", _changed(first=lambda u, z, t, m, r: u(z, m, t)),
            "u is told first the time it starts from, then the time it goes to"),
    Mistake("sum", _changed(mix=lambda a, b, v, w: v + w),
            "two velocities in a row do not add up; their distances do"),
], tips=["first leg: `v = u(z, t, m)`, and it ends at z - (t - m) v",
         "the distance is (t - m) v + (m - r) w; the average velocity is that by t - r"])


EXERCISES = [END, BOUNDARY, TRAINING, RATE, MULTISTEP, AVERAGE]

PREDICTIONS = [
    Prediction("8.1", "b", {
        "a": "Far out there are few starts, but paths there run side by side to the same spot: an easy function.",
        "b": "Two starts side by side on either side of a border end at two different spots: there f is steep, and a network is smooth.",
        "c": "Between the borders f is nearly flat, and the network has no trouble; its errors gather in narrow strips.",
    }),
    Prediction("8.2", "a", {
        "a": "With r = 0 the target is x_0 itself, and the minimiser of that is chapter 01's denoiser.",
        "b": "The ends of the paths are what *many* short intervals teach; one long interval never sees a path.",
        "c": "Nothing is random about it: the target of one interval is the clean picture.",
    }),
    Prediction("8.3", "b", {
        "a": "Averaging would help against errors that differ from step to step; this one has the same sign every time.",
        "b": "Each step starts from the last one's result and puts its own error on top; near the data no fresh noise covers it.",
        "c": "At much noise it nearly does: there the next step sees hardly anything of the guess. Near the data it sees all of it.",
    }),
]
