# Long: a table. Each entry is a wrong answer that learners give, and its hint; one reads the exercise that one looks for.
"""Chapter 3, the probability flow ODE: its exercises with their known mistakes, and its predictions."""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from ...denoiser import eps, per_row, score, tweedie, velocity
from ...ode_samplers import heun
from ..exercises import Exercise, Mistake, Prediction
from .cases import SCHEDULES, SHAPES, Blob, between, normal

# --- 3.1 -------------------------------------------------------------------------------------------------------------


def places(generator: torch.Generator) -> Iterator[tuple]:
    """D, x, t with a time per row; the last states are in single precision, as networks have them."""
    for schedule in SCHEDULES:
        yield Blob(schedule), normal(generator, 1, 2), between(generator, 0.2, 0.95)            # a time for all rows
        for shape in SHAPES:
            yield Blob(schedule), normal(generator, *shape), between(generator, 0.2, 0.95, shape[0])
    yield Blob(SCHEDULES[1]), normal(generator, 3, 2).float(), between(generator, 0.2, 0.8, 3)


def _slope(combine):
    """A velocity made of f, g^2, x and the score in another way."""
    def wrong(D, x, t):
        return combine(per_row(D.schedule.drift(t), x), per_row(D.schedule.diffusion2(t), x), x, score(D, x, t))
    return wrong


class _Put:
    """A denoiser whose score is something else."""

    def __init__(self, D, function):
        self.schedule, self.function = D.schedule, function

    def __call__(self, x: Tensor, t, cond: Tensor | None = None) -> Tensor:
        return tweedie(self.function(x, t), x, self.schedule, t)


VELOCITY = Exercise("3.1", "The velocity of the probability flow", velocity, places, [
    Mistake("the half forgotten", _slope(lambda f, g2, x, s: f * x - g2 * s),
            "that is the drift of the reverse SDE, whose noise spreads what the full score pulls together; here is no noise"),
    Mistake("sign of the score", _slope(lambda f, g2, x, s: f * x + g2 / 2 * s),
            "noise carries the crowd from dense to sparse; which way does the score point?"),
    Mistake("g for g squared", _slope(lambda f, g2, x, s: f * x - g2.sqrt() / 2 * s),
            "the score is multiplied by half of g; a rate of variance is needed there"),
    Mistake("no drift", _slope(lambda f, g2, x, s: -g2 / 2 * s),
            "what the noise does is there, but the drift of the forward SDE is missing (it is 0 for VE only)"),
    Mistake("sign of f", _slope(lambda f, g2, x, s: -f * x - g2 / 2 * s),
            "the drift f x keeps the sign that it has in the forward SDE: the slope dx/dt belongs to rising t"),
    Mistake("drift without x", _slope(lambda f, g2, x, s: f - g2 / 2 * s), "f is a rate; what does it multiply?"),
    Mistake("half of everything", _slope(lambda f, g2, x, s: (f * x - g2 * s) / 2),
            "you halved the drift as well; only the part that stands for the noise carries the half"),
    Mistake("from noise to data", _slope(lambda f, g2, x, s: g2 / 2 * s - f * x),
            "your arrow points from noise to data; dx/dt is the slope for rising t: a step back multiplies it by s - t < 0"),
    Mistake("drift alone", _slope(lambda f, g2, x, s: f * x),
            "your crowd only shrinks or stretches; what the noise does to it is missing"),
    Mistake("no rate of noise", _slope(lambda f, g2, x, s: f * x - s / 2),
            "how fast the crowd spreads depends on how much noise comes in: where is g^2?"),
    Mistake("no score", _slope(lambda f, g2, x, s: f * x - g2 / 2),
            "every point of yours drifts the same way; noise carries it down the score, which is missing"),
    Mistake("half under a root", _slope(lambda f, g2, x, s: f * x - (g2 / 2).sqrt() * s),
            "no root is due here: it is a variance that (3.4) halves"),
    Mistake("noise on top", _slope(lambda f, g2, x, s: f * x - g2 / 2 * s + g2.sqrt() * torch.randn_like(x)),
            "there is no noise in an ODE: what it does to the density is in the velocity already"),
    Mistake("guess for score", lambda D, x, t: velocity(_Put(D, lambda x, t: D(x, t)), x, t),
            "you put the guess x0_hat where the score belongs; `score(D, x, t)` makes one of the other"),
    Mistake("noise for score", lambda D, x, t: velocity(_Put(D, lambda x, t: eps(D, x, t)), x, t),
            "you put the believed noise where the score belongs: they differ by a sign and by sigma"),
], tips=["check it in your head on the Gaussian: m = 0 and w constant (VP, data of width 1) must give velocity 0",
         "`D.schedule.drift(t)` and `D.schedule.diffusion2(t)` give f and g^2; per_row(..., x) lets them multiply x"])


# --- 3.2 -------------------------------------------------------------------------------------------------------------

def steps_down(generator: torch.Generator) -> Iterator[tuple]:
    """D, x, t, s with a time per row; t - s is never small."""
    for D, x, t in places(generator):
        yield D, x, t, t * between(generator, 0.3, 0.8, *t.shape)


def _second(combine):
    """A step of h from x made of the slope v at x, the Euler point y, and a function w(x, time) for more slopes."""
    def wrong(D, x, t, s):
        h, v = per_row(s - t, x), velocity(D, x, t)
        return combine(h, x, v, x + h * v, lambda point, time: velocity(D, point, time), t, s)
    return wrong


HEUN = Exercise("3.2", "Heun's step", heun, steps_down, [
    Mistake("second slope at the old time", _second(lambda h, x, v, y, w, t, s: x + h / 2 * (v + w(y, t))),
            "your second slope belongs to the new point but to the old time; the flow has changed when you get there"),
    Mistake("second slope at the old point", _second(lambda h, x, v, y, w, t, s: x + h / 2 * (v + w(x, s))),
            "your second slope is taken at time s, but at the point where the step began: where would Euler's step have led?"),
    Mistake("not averaged", _second(lambda h, x, v, y, w, t, s: x + h * w(y, s)),
            "you follow the slope at the far end alone; that is as one-sided as Euler's step"),
    Mistake("sum for mean", _second(lambda h, x, v, y, w, t, s: x + h * (v + w(y, s))),
            "two slopes added make twice the way; what is their average?"),
    Mistake("sign of the step", _second(lambda h, x, v, y, w, t, s: x - h / 2 * (v + w(x - h * v, s))),
            "your step goes up in time: from t to s the difference s - t is negative"),
    Mistake("Euler", _second(lambda h, x, v, y, w, t, s: y), "that is Euler's step; look at the slope where it arrives"),
    Mistake("from the far point", _second(lambda h, x, v, y, w, t, s: y + h / 2 * (v + w(y, s))),
            "you go twice: the averaged step starts at x once more, and the trial point is thrown away"),
    Mistake("midpoint", _second(lambda h, x, v, y, w, t, s: x + h * w(x + h / 2 * v, (t + s) / 2)),
            "that is the midpoint method, second order as well; Heun's step averages the slopes at the two ends"),
    Mistake("trial without its step", _second(lambda h, x, v, y, w, t, s: x + h / 2 * (v + w(x + v, s))),
            "your trial point is a whole slope away; Euler's step is h times the slope"),
    Mistake("half a trial step", _second(lambda h, x, v, y, w, t, s: x + h / 2 * (v + w(x + h / 2 * v, s))),
            "your trial point lies half-way, but you ask there for the slope of the time s: go all the way"),
    Mistake("trial the wrong way", _second(lambda h, x, v, y, w, t, s: x + h / 2 * (v + w(x - h * v, s))),
            "your trial step goes up in time, the final one down: h is negative on the way back already"),
    Mistake("final step the wrong way", _second(lambda h, x, v, y, w, t, s: x - h / 2 * (v + w(y, s))),
            "your trial step goes down in time, the final one up: h is negative on the way back already"),
    Mistake("no h in the end", _second(lambda h, x, v, y, w, t, s: x + (v + w(y, s)) / 2),
            "the mean of the slopes is a rate: how far to go depends on how long the step is"),
    Mistake("the way alone", _second(lambda h, x, v, y, w, t, s: h / 2 * (v + w(y, s))),
            "you return how far to go; the new state is x plus that"),
    Mistake("brackets", _second(lambda h, x, v, y, w, t, s: x + h * (v + w(y, s) / 2)),
            "only your second slope is halved: Python divides before it adds"),
    Mistake("mean of two points", _second(lambda h, x, v, y, w, t, s: (x + y) / 2),
            "you average the places at the two ends; it is the *slopes* that are averaged"),
], tips=["three lines: the slope here, the slope at the trial point, and the step with their average",
         "the trial point is x + (s - t) v, and its time is s"])


# --- 3.3 -------------------------------------------------------------------------------------------------------------

class Coupled:
    """v(x) = sin(A x), a function of rows of any shape whose Jacobian is full."""

    def __init__(self, A: Tensor):
        self.A = A

    def __call__(self, x: Tensor) -> Tensor:
        return (x.flatten(1) @ self.A).sin().reshape(x.shape)


def hutchinson_estimate(v, x: Tensor, probe: Tensor) -> tuple[Tensor, Tensor]:
    """v(x) (B, ...) and the estimate probe' (dv/dx) probe (B,) of its divergence."""
    x = x.detach().requires_grad_()
    value = v(x)
    back, = torch.autograd.grad(value, x, probe)                # (B, ...): the rows probe' (dv/dx)
    return value.detach(), _rows(back * probe)


def probed(generator: torch.Generator) -> Iterator[tuple]:
    for shape in ((1, 2), (2, 2), (5, 2), (1, 1, 8, 8), (3, 1, 8, 8)):
        d = torch.Size(shape[1:]).numel()
        signs = 2.0 * torch.randint(2, shape, generator=generator, dtype=torch.float64) - 1
        yield Coupled(normal(generator, d, d) / d**0.5), normal(generator, *shape), signs
        yield Coupled(normal(generator, d, d) / d**0.5), normal(generator, *shape), normal(generator, *shape)


def _probing(combine):
    """Another use of the gradient `back(number)`, the value y, and the probe e."""
    def wrong(v, x, probe):
        x = x.detach().requires_grad_()
        y = v(x)
        return y, combine(lambda number: torch.autograd.grad(number, x)[0], y, probe)
    return wrong


def _rows(x: Tensor) -> Tensor:
    return x.flatten(1).sum(1)


HUTCHINSON = Exercise("3.3", "Hutchinson's estimate of a divergence", hutchinson_estimate, probed, [
    Mistake("second probe forgotten", _probing(lambda back, y, e: _rows(back((y * e).sum()))),
            "the gradient gives the row vector probe' J; one product with the probe is still missing"),
    Mistake("first probe forgotten", _probing(lambda back, y, e: _rows(back(y.sum()) * e)),
            "you differentiated the sum of v's coordinates; the number to differentiate is v times the probe"),
    Mistake("no probe", _probing(lambda back, y, e: _rows(back(y.sum()))),
            "without a probe you add up all entries of the Jacobian; the divergence is the sum of its diagonal"),
    Mistake("mean for sum", _probing(lambda back, y, e: (back((y * e).sum()) * e).flatten(1).mean(1)),
            "you take the mean over the dimensions; the divergence is a sum over them"),
    Mistake("sum over the batch", _probing(lambda back, y, e: (back((y * e).sum()) * e).sum()),
            "your sum runs over the rows too; each row has a divergence of its own"),
    Mistake("mean before differentiating", _probing(lambda back, y, e: _rows(back((y * e).mean()) * e)),
            "a mean divides the number by all its entries before it is differentiated: sum it"),
    Mistake("last axis only", _probing(lambda back, y, e: (back((y * e).sum()) * e).sum(-1)),
            "your sum runs over the last axis only: enough for points, not for pictures"),
    Mistake("the value for the probe", _probing(lambda back, y, e: _rows(back((y * e).sum()) * y.detach())),
            "you multiply the gradient by v itself; it is the same probe on both sides of the Jacobian"),
    Mistake("mean over the batch before differentiating", _probing(lambda back, y, e: _rows(back((y * e).sum() / len(y)) * e)),
            "a mean over the batch divides every row's gradient by the number of rows: sum it"),
    Mistake("gradient squared", _probing(lambda back, y, e: _rows(back((y * e).sum()).square())),
            "you multiply the row probe' J by itself; its partner is the probe"),
    Mistake("no derivative", _probing(lambda back, y, e: _rows(y.detach() * e)),
            "that is the product of the value and the probe; no derivative is in it"),
    Mistake("probe of one's own", _probing(lambda back, y, e: _rows(back((y * (own := torch.randn_like(e))).sum()) * own)),
            "you drew a probe of your own; use the one that was handed in"),
    Mistake("probe of length one", _probing(lambda back, y, e: _rows(back((y * e).sum()) * e) / _rows(e * e)),
            "you scaled the probe to length 1, so that E[e e'] is I/d: the estimate comes out d times too small"),
    Mistake("sign", _probing(lambda back, y, e: -_rows(back((y * e).sum()) * e)),
            "the sign: asked for is the divergence itself; the minus of (3.9) comes later"),
    Mistake("both probes inside", _probing(lambda back, y, e: _rows(back((y * e * e).sum()))),
            "both probes are inside the number that you differentiate; one stands on the other side of the Jacobian"),
], tips=["the number to differentiate is (v(x) * probe).sum(), all rows at once",
         "`.flatten(1).sum(1)` adds up everything but the rows, for points and for pictures"])


# --- 3.4 -------------------------------------------------------------------------------------------------------------

class Waves:
    """slopes(x, t) -> a velocity (B, ...) and its exact divergence (B,), both of which change with x and t."""

    def __init__(self, a: float, b: float):
        self.a, self.b = a, b

    def __call__(self, x: Tensor, t) -> tuple[Tensor, Tensor]:
        return self.a * (x + self.b * t).sin(), self.a * _rows((x + self.b * t).cos())


def standard_normal(x: Tensor) -> Tensor:
    """log N(x; 0, I) (B,)."""
    return _rows(torch.distributions.Normal(0.0, 1.0).log_prob(x))


def euler_log_likelihood(slopes, x: Tensor, ts: Tensor, log_prior) -> Tensor:
    """log density (B,) of x at ts[0]: Euler steps up to ts[-1], the divergences added up on the way."""
    gained = torch.zeros(len(x), dtype=x.dtype)
    for t, s in pairwise(ts):
        v, divergence = slopes(x, t)
        x, gained = x + (s - t) * v, gained + (s - t) * divergence
    return log_prior(x) + gained


def rising(generator: torch.Generator) -> Iterator[tuple]:
    for shape, n in (((1, 2), 1), ((5, 2), 3), ((1, 1, 8, 8), 2), ((4, 1, 8, 8), 4)):
        a, b = between(generator, 0.5, 1.5, 2).tolist()
        yield Waves(a, b), normal(generator, *shape), between(generator, 0, 1, n + 1).sort().values, standard_normal


def _ascent(at=lambda t, s: t, way=lambda h: h, gain=lambda h, divergence, x: h * divergence, moved=False, pairs=pairwise,
            result=lambda gained, end, start: end + gained):
    """The loop with one thing replaced; result(gained, log_prior at the end, log_prior at the start)."""
    def wrong(slopes, x, ts, log_prior):
        start, gained = log_prior(x), torch.zeros(len(x), dtype=x.dtype)
        for t, s in pairs(ts):
            v, divergence = slopes(x, at(t, s))
            x = x + way(s - t) * v
            gained = gained + gain(s - t, slopes(x, t)[1] if moved else divergence, x)
        return result(gained, log_prior(x), start)
    return wrong


LIKELIHOOD = Exercise("3.4", "The log-density along the flow", euler_log_likelihood, rising, [
    Mistake("sign", _ascent(result=lambda gained, end, start: end - gained),
            "where the flow spreads on its way up, the data must have been denser than the noise: check the sign"),
    Mistake("prior at the start", _ascent(result=lambda gained, end, start: start + gained),
            "you ask the prior about the data point; it knows only where that point arrives"),
    Mistake("no prior", _ascent(result=lambda gained, end, start: gained),
            "that is how much the log-density changes on the way; at the far end it has a value, too"),
    Mistake("two priors", _ascent(result=lambda gained, end, start: end - start + gained),
            "you subtract the prior of the data point; the prior is asked once, about where the point arrives"),
    Mistake("negative log-likelihood", _ascent(result=lambda gained, end, start: -end - gained),
            "that is minus the log-density, a loss; asked for is the log-density"),
    Mistake("density", _ascent(result=lambda gained, end, start: (end + gained).exp()),
            "that is the density itself; asked for is its logarithm"),
    Mistake("sum of the rows", _ascent(result=lambda gained, end, start: end + gained.sum()),
            "you add up the divergences of all rows; every row has a log-density of its own"),
    Mistake("no step size", _ascent(gain=lambda h, divergence, x: divergence),
            "the divergence is a rate: what it adds in one step depends on how long the step lasts"),
    Mistake("mean over the coordinates", _ascent(gain=lambda h, divergence, x: h * divergence / x[0].numel()),
            "you divide by the number of coordinates; the divergence is a sum over them, and all of it counts"),
    Mistake("x moved without the step size", _ascent(way=lambda h: 1),
            "x is moved by the slope itself; a step is the slope times how long it lasts"),
    Mistake("x never moved", _ascent(way=lambda h: 0),
            "your x stays where it began; it must go with the flow"),
    Mistake("last step left out", _ascent(pairs=lambda ts: list(pairwise(ts))[:-1]),
            "your loop stops one step before the end: n + 1 times make n steps"),
    Mistake("divergence after the move", _ascent(moved=True),
            "your divergence belongs to the new point and the old time; take both slopes from one call, before you move"),
    Mistake("slopes at the far time", _ascent(at=lambda t, s: s),
            "x is at time t when the step begins, but you ask for the slopes at the time where it ends"),
    Mistake("walking down", _ascent(way=lambda h: -h),
            "your x moves against the flow: the times rise, and so the step is (later - earlier) times v"),
    Mistake("mean of the rows", lambda *case: euler_log_likelihood(*case).mean(),
            "you averaged over the rows; one log-density a row"),
], tips=["`for t, u in pairwise(ts)` runs through the pairs of neighbouring times, from data to noise",
         "two things are updated in a step, x and the sum; the prior comes after the loop"], free=["log_prior"])


# --- 3.5 -------------------------------------------------------------------------------------------------------------

def slerp(a: Tensor, b: Tensor, u: float) -> Tensor:
    """Row by row along the great circle from a (B, ...) to b (B, ...); u = 0 gives a, u = 1 gives b (Shoemake 1985)."""
    angle = _angle(a, b)
    return (((1 - u) * angle).sin() * a + (u * angle).sin() * b) / angle.sin()


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return _rows(a * b) / (_rows(a * a) * _rows(b * b)).sqrt()


def _unit(a: Tensor) -> Tensor:
    return a / per_row(_rows(a * a).sqrt(), a)


def ends(generator: torch.Generator) -> Iterator[tuple]:
    for shape in SHAPES:
        for u in between(generator, 0.15, 0.4, 2).tolist():
            yield normal(generator, *shape), normal(generator, *shape), u


def _angle(a: Tensor, b: Tensor) -> Tensor:
    return per_row(_cosine(a, b).acos(), a)


def _arc(angle=_angle, over=torch.sin):
    def wrong(a, b, u):
        theta = angle(a, b)
        return (((1 - u) * theta).sin() * a + (u * theta).sin() * b) / over(theta)
    return wrong


def _rescaled(a, b, u):
    line = (1 - u) * a + u * b
    return line * per_row(((1 - u) * _rows(a * a).sqrt() + u * _rows(b * b).sqrt()) / _rows(line * line).sqrt(), a)


SLERP = Exercise("3.5", "Interpolation along a great circle", slerp, ends, [
    Mistake("straight line", lambda a, b, u: (1 - u) * a + u * b,
            "that is the chord, which cuts through the inside of the sphere: the middle is too short"),
    Mistake("ends swapped", lambda a, b, u: slerp(b, a, u), "at u = 0 the result must be a; yours is b"),
    Mistake("cosine for angle", _arc(lambda a, b: per_row(_cosine(a, b), a)),
            "that is the cosine of the angle; the sines want the angle itself"),
    Mistake("lengths forgotten", _arc(lambda a, b: per_row(_rows(a * b).acos(), a)),
            "a product of two vectors is the cosine of their angle only if both have length 1"),
    Mistake("one angle for all", _arc(lambda a, b: ((a * b).sum() / ((a * a).sum() * (b * b).sum()).sqrt()).acos()),
            "you have one angle for the whole batch; every row has its own"),
    Mistake("no denominator", _arc(over=torch.ones_like),
            "put u = 0: you get sin(angle) times a, and a was asked for"),
    Mistake("stretched chord", _rescaled,
            "the length is right, but the chord stretched to it does not turn evenly: it is too slow near the ends"),
    Mistake("unit vectors", lambda a, b, u: slerp(_unit(a), _unit(b), u),
            "your ends have length 1; the angle needs lengths taken out, the sum has a and b as they are"),
    Mistake("only the second divided", lambda a, b, u: slerp(a, b, u) + (1 - 1 / _angle(a, b).sin()) * ((1 - u) * _angle(a, b)).sin() * a,
            "only your second term is divided by sin(angle): Python divides before it adds"),
    Mistake("cosines for sines", lambda a, b, u: (
        ((1 - u) * _angle(a, b)).cos() * a + (u * _angle(a, b)).cos() * b) / _angle(a, b).cos(),
            "you took cosines; put u = 0: does b drop out?"),
    Mistake("arc sine", _arc(lambda a, b: per_row(_cosine(a, b).asin(), a)),
            "you took the arc sine of what is the *cosine* of the angle"),
    Mistake("lengths of the batch", _arc(lambda a, b: per_row((_rows(a * b) / (a.norm() * b.norm())).acos(), a)),
            "you divide by the length of the whole batch; every row has its own"),
    Mistake("last axis only", _arc(lambda a, b: torch.nn.functional.cosine_similarity(a, b, dim=-1).acos()[..., None]),
            "your products and lengths run over the last axis only: enough for points, not for pictures"),
    Mistake("directions, and lengths apart", lambda a, b, u: slerp(_unit(a), _unit(b), u) * per_row(
        (1 - u) * _rows(a * a).sqrt() + u * _rows(b * b).sqrt(), a),
            "you turn the direction and mix the lengths separately, which is sensible, but not (3.12): it takes a and b as they are"),
], tips=["`(a * b).flatten(1).sum(1)` is the product of every row",
         "the angle has the shape (B,): per_row(angle, a) multiplies a"])


# --- 3.6 -------------------------------------------------------------------------------------------------------------

class Spring:
    """v(x, t) = -rate (x - sin(5 t)) (1 + 4 t): fast at one end, slow at the other."""

    def __init__(self, rate: float):
        self.rate = rate

    def __call__(self, x: Tensor, t) -> Tensor:
        return -self.rate * (x - torch.sin(torch.as_tensor(5.0 * t))) * (1 + 4 * t)


def adaptive_heun(v, x: Tensor, t: float, end: float, h: float, tol: float) -> tuple[Tensor, int]:
    """x at time `end` < t by Heun steps of a length that keeps |Heun - Euler| <= tol, and the evaluations of v."""
    return _adaptive()(v, x, t, end, h, tol)


def _adaptive(new=lambda h, tol, error: 0.9 * h * (tol / error) ** 0.5, accept=lambda error, tol: error <= tol, keep="heun",
              on_success=True, stop=True, cut=True, count=lambda accepted: 2, rejected_moves=False, way=1, late=True,
              size=lambda difference: difference.abs().max()):
    """The solver with one thing replaced."""
    def solve(v, x, t, end, h, tol):
        evaluations = 0
        while t > end:
            s = max(t - h, end) if stop else t - h
            h = t - s if cut else h
            first = v(x, t)
            trial = x - way * h * first
            better = x - way * h / 2 * (first + v(trial, s if late else t))
            error = float(size(better - trial))
            accepted = accept(error, tol)
            evaluations += count(accepted)
            if accepted:
                x = better if keep == "heun" else trial
            if accepted or rejected_moves:
                t = s
            if not accepted or on_success:
                h = new(h, tol, error)
        return x, evaluations
    return solve


def _thrifty(v, x, t, end, h, tol):
    """One evaluation for a trial from a place whose slope is known from a rejected one."""
    place = [None]

    def count(accepted):
        new, place[0] = place[0] is None, None if accepted else "known"
        return 1 + new
    return _adaptive(count=count)(v, x, t, end, h, tol)


def flows(generator: torch.Generator) -> Iterator[tuple]:
    for shape, tol in (((1, 2), 0.02), ((5, 2), 0.005), ((1, 1, 8, 8), 0.02), ((3, 1, 8, 8), 0.01)):
        rate, t, end = (between(generator, low, high).item() for low, high in ((1.0, 2.0), (0.85, 1.0), (0.0, 0.1)))
        yield Spring(rate), normal(generator, *shape), t, end, 0.5, tol


ADAPTIVE = Exercise("3.6", "A solver that chooses its steps", adaptive_heun, flows, [
    Mistake("every step accepted", _adaptive(accept=lambda error, tol: True),
            "a step whose error is above the tolerance must be tried again from where it started"),
    Mistake("exponent one", _adaptive(new=lambda h, tol, error: 0.9 * h * tol / error),
            "the error of a step goes with h squared: to halve it, by how much must h shrink?"),
    Mistake("Euler kept", _adaptive(keep="euler"),
            "you keep Euler's point; Heun's is the better one, and you have it already"),
    Mistake("never longer", _adaptive(on_success=False),
            "your steps can only shrink: h must be set anew after an accepted step as well"),
    Mistake("beyond the end", _adaptive(stop=False),
            "your last step goes beyond `end`: no step may be longer than what is left"),
    Mistake("rejected steps for free", _adaptive(count=lambda accepted: 2 * accepted),
            "a rejected step costs as much as an accepted one: count both"),
    Mistake("time runs on", _adaptive(rejected_moves=True),
            "after a rejected step x stays where it was, but your time moves on"),
    Mistake("mean error", _adaptive(size=lambda difference: difference.abs().mean()),
            "a mean hides the one coordinate that is far off; the tolerance is for the largest difference"),
    Mistake("root mean square", _adaptive(size=lambda difference: difference.square().mean().sqrt()),
            "a mean of squares hides the one coordinate that is far off; the tolerance is for the largest difference"),
    Mistake("length of the difference", _adaptive(size=torch.norm),
            "you took the length of the whole difference, which grows with the number of rows; its largest entry is due"),
    Mistake("nine tenths under the root", _adaptive(new=lambda h, tol, error: h * (0.9 * tol / error) ** 0.5),
            "the factor 0.9 stands before (3.8), not under its root"),
    Mistake("halves and doubles", _adaptive(new=lambda h, tol, error: h / 2 if error > tol else 2 * h),
            "you halve and double h; (3.8) says by how much the error asks it to change"),
    Mistake("steps counted", _adaptive(count=lambda accepted: 1),
            "you count trials; each of them asks v twice"),
    Mistake("up in time", _adaptive(way=-1),
            "your x moves with the flow of rising time, while t falls: a step down has dt = -h"),
    Mistake("second slope at the old time", _adaptive(late=False),
            "your second slope belongs to the trial point but to the old time"),
    Mistake("h not cut", _adaptive(cut=False),
            "the last step ends at `end`, but x is moved by the full h: what is cut short is h itself"),
    Mistake("first slope kept", _thrifty,
            "your solver remembers the first slope of a rejected trial: thrifty, and right, but here every trial counts two evaluations"),
], tips=["while t > end: a trial with s = max(t - h, end), the error, perhaps the move, and in any case a new h",
         "the error is (Heun's point - Euler's point).abs().max()"])


EXERCISES = [VELOCITY, HEUN, HUTCHINSON, LIKELIHOOD, SLERP, ADAPTIVE]

PREDICTIONS = [
    Prediction("3.1", "b", {
        "a": "They would, if noise kicked them; but one place at one time has one velocity here: paths that meet stay one.",
        "b": "Paths that met would have to go on together, forwards and backwards. So they keep their order.",
        "c": "Even where they run close together, at one place and one time there is one velocity.",
    }),
    Prediction("3.2", "b", {
        "a": "The order says how the error falls as the steps get short; with five long ones you are far from that.",
        "b": "Five steps of Heun are twice as long as ten of Euler, too long for the slope at the trial point to be of use.",
        "c": "Equal cost does not mean equal error: one has ten short steps, the other one five long ones.",
    }),
    Prediction("3.3", "c", {
        "a": "It has seen nothing but garments; yet its density is highest where pictures are smooth; a garment has texture.",
        "b": "Turning a garment over costs little, for its texture stays what it was; but there is something denser still.",
        "c": "Nothing is as easy to describe as nothing. High density is not the same as a typical picture.",
    }),
    Prediction("3.4", "b", {
        "a": "That would need the two to point the same way; in 784 dimensions two random directions are at right angles.",
        "b": "At right angles Pythagoras holds: half of the square root of 28 squared plus 28 squared.",
        "c": "Averaging halves each vector, but their halves stand at right angles and add up to more than one of them.",
    }),
]
