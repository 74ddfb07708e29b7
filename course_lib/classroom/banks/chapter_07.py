# Long: a table. Each entry is a wrong answer that learners give, and its hint; one reads the exercise that one looks for.
"""Chapter 7, progressive distillation: its exercises with their known mistakes, and its predictions."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ...denoiser import Denoiser, levels, per_row
from ...fast_samplers import ddim
from ...progressive import overshoot, two_step_target, x0_between
from ...schedules import Schedule
from ..exercises import Exercise, Mistake, Prediction
from .cases import SCHEDULES, SHAPES, Blob, between, normal, one_step

# --- 7.1 -------------------------------------------------------------------------------------------------------------


def landings(generator: torch.Generator) -> Iterator[tuple]:
    """schedule, x, t, z, s with a time per row; every third row or so ends at s = 0."""
    for D, x, t, s, z in one_step(generator):
        yield D.schedule, x, t, z, s * (between(generator, 0, 1, *s.shape) < 0.7)


def _solved(solve):
    """A wrong answer solve(x, z, alpha_t, sigma_t, alpha_s, sigma_s)."""
    def wrong(schedule, x, t, z, s):
        return solve(x, z, *(per_row(c(time), x) for time in (t, s) for c in (schedule.alpha, schedule.sigma)))
    return wrong


def _bare_levels(schedule: Schedule, x, t, z, s):
    ratio = schedule.sigma(s) / schedule.sigma(t)
    return (z - ratio * x) / (schedule.alpha(s) - ratio * schedule.alpha(t))


INVERSE = Exercise("7.1", "The guess that makes a step land", x0_between, landings, [
    Mistake("the landing itself", lambda schedule, x, t, z, s: z.clone(),
            "you return the landing itself; that is right only at s = 0, where a DDIM step ends on its guess"),
    Mistake("divided by alpha_s", _solved(lambda x, z, at, st, as_, ss: (z - ss / st * x) / as_),
            "the guess sits in the believed noise too: collect *both* of its terms before you divide"),
    Mistake("noise for the guess", _solved(lambda x, z, at, st, as_, ss: (z - as_ / at * x) / (ss - as_ / at * st)),
            "alpha and sigma have changed roles: you have solved for the noise that makes the step land, not for the guess"),
    Mistake("ratio upside down", _solved(lambda x, z, at, st, as_, ss: (z - st / ss * x) / (as_ - st / ss * at)),
            "the ratio of the noise levels is upside down: the new level stands above the old one"),
    Mistake("alphas exchanged", _solved(lambda x, z, at, st, as_, ss: (z - ss / st * x) / (at - ss / st * as_)),
            "the two alphas have changed places: which of them multiplies the guess, and which sits in the believed noise?"),
    Mistake("sign of x", _solved(lambda x, z, at, st, as_, ss: (z + ss / st * x) / (as_ - ss / st * at)),
            "the part of x_t is brought to the other side with the wrong sign"),
    Mistake("sign of the divisor", _solved(lambda x, z, at, st, as_, ss: (z - ss / st * x) / (as_ + ss / st * at)),
            "in the believed noise the guess has a minus sign: look again at the factor that you divide by"),
    Mistake("alpha_t forgotten", _solved(lambda x, z, at, st, as_, ss: (z - ss / st * x) / (as_ - ss / st)),
            "the believed noise holds alpha(t) times the guess, not the guess itself"),
    Mistake("noise kept as it is", _solved(lambda x, z, at, st, as_, ss: (z - x) / (as_ - at)),
            "you solved as if the noise had the same level at t and at s; it is scaled by sigma(s)/sigma(t)"),
    Mistake("divided by what may be zero", _solved(lambda x, z, at, st, as_, ss: (z / ss - x / st) / (as_ / ss - at / st)),
            "right where noise is left at s; at s = 0 you divide by its level, which is 0 (start and landing may have changed places)"),
    Mistake("start for landing", _solved(lambda x, z, at, st, as_, ss: (x - ss / st * z) / (as_ - ss / st * at)),
            "x and z have changed places above the line: it is the start whose noise is scaled down, to be taken off the landing"),
    Mistake("brackets", _solved(lambda x, z, at, st, as_, ss: (z - ss / st * x) / as_ - ss / st * at),
            "Python divides before it subtracts: what stands below the line belongs in brackets"),
    Mistake("levels unshaped", _bare_levels,
            "a value per row has the shape (B,) and must be shaped by per_row before it meets a batch"),
    Mistake("not divided", _solved(lambda x, z, at, st, as_, ss: z - ss / st * x),
            "what is left when x_t has been taken off is not the guess yet: what stands in front of it?"),
    Mistake("the step itself", _solved(lambda x, z, at, st, as_, ss: as_ * z + ss * (x - at * z) / st),
            "that is a DDIM step with z for its guess; asked for is the guess that makes a step land on z"),
    Mistake("x unscaled", _solved(lambda x, z, at, st, as_, ss: (z - x) / (as_ - ss / st * at)),
            "x_t is taken off as it is; in (7.1) it has a factor"),
    Mistake("alpha unscaled", _solved(lambda x, z, at, st, as_, ss: (z - ss / st * x) / (as_ - at)),
            "alpha_t stands in the divisor as it is; in (7.1) it has a factor"),
    Mistake("ratio of the variances", _solved(lambda x, z, at, st, as_, ss: (z - ss**2 / st**2 * x) / (as_ - ss**2 / st**2 * at)),
            "the noise is scaled by the ratio of the levels, not of their squares"),
    Mistake("not a ratio", _solved(lambda x, z, at, st, as_, ss: (z - ss * x) / (as_ - ss * at)),
            "the believed noise was divided by sigma_t; you only multiply by sigma_s"),
], tips=["write the DDIM step with x0_hat in both of its places, and gather them",
         "x_s = (sigma_s/sigma_t) x_t + (something) x0_hat: subtract, then divide by the something"])


# --- 7.2 -------------------------------------------------------------------------------------------------------------

def kinds(generator: torch.Generator) -> Iterator[tuple]:
    """D, x, t, m, s, cond with a time per row, s = 0 now and then, and with or without labels."""
    for i, (D, x, t, s, _) in enumerate(one_step(generator)):
        s = s * (between(generator, 0, 1, *s.shape) < 0.7)
        m = s + (t - s) * between(generator, 0.3, 0.7, *t.shape)
        cond = torch.randint(-1, 3, (len(x),), generator=generator) if i % 2 else None
        yield Kinds(D.schedule), x, t, m, s, cond


class Kinds(Blob):
    """A Blob for each label: label k's lies k further on."""

    def __call__(self, x: Tensor, t, cond: Tensor | None = None) -> Tensor:
        if cond is None:
            return super().__call__(x, t)
        shift = per_row(cond.to(x), x)
        return super().__call__(x - levels(self, x, t)[0] * shift, t) + shift


def _target(first=None, second=None, invert=None):
    """The target with its first step (D, x, t, m, s, cond), second (D, x, x_m, t, m, s, cond) or inversion replaced."""
    first = first or (lambda D, x, t, m, s, cond: ddim(D, x, t, m, cond=cond))
    second = second or (lambda D, x, x_m, t, m, s, cond: ddim(D, x_m, m, s, cond=cond))
    invert = invert or (lambda c, x, x_m, t, m, z, s: x0_between(c, x, t, z, s))

    def wrong(D, x, t, m, s, cond):
        x_m = first(D, x, t, m, s, cond)
        return invert(D.schedule, x, x_m, t, m, second(D, x, x_m, t, m, s, cond), s)
    return wrong


def _asked_at_t(D, x, x_m, t, m, s, cond):
    (am, sm), (as_, ss), x0 = levels(D, x, m), levels(D, x, s), D(x_m, t, cond)
    return as_ * x0 + ss * (x_m - am * x0) / sm


TARGET = Exercise("7.2", "Two steps of the teacher in one of the student", two_step_target, kinds, [
    Mistake("the teacher's guess", lambda D, x, t, m, s, cond: D(x, t, cond),
            "that is the teacher's own guess, which makes *one* step of the teacher's: nothing would be learnt"),
    Mistake("the second guess", lambda D, x, t, m, s, cond: D(ddim(D, x, t, m, cond=cond), m, cond),
            "that is the teacher's guess at the mid-point, which leads from the mid-point to the end; the student starts at x_t, "
            "half a way earlier, and its own step must be inverted"),
    Mistake("the landing", _target(invert=lambda c, x, x_m, t, m, z, s: z),
            "that is where the student should *land*; its output is a guess of x_0, from which the step is made"),
    Mistake("second step from x_t", _target(second=lambda D, x, x_m, t, m, s, cond: ddim(D, x, m, s, cond=cond)),
            "your second step starts from x_t once more: the state of the mid-point is never used"),
    Mistake("second step from time t", _target(second=lambda D, x, x_m, t, m, s, cond: ddim(D, x_m, t, s, cond=cond)),
            "your second step starts at the mid-point's state but at the time t, as if nothing had been denoised yet"),
    Mistake("asked at t", _target(second=_asked_at_t),
            "in the second step the teacher is told the time t; the state that it sees is at time m"),
    Mistake("inverted to the mid-point", _target(invert=lambda c, x, x_m, t, m, z, s: x0_between(c, x, t, z, m)),
            "the student's one step ends at s, not at m"),
    Mistake("labels lost", lambda D, x, t, m, s, cond: two_step_target(D, x, t, m, s),
            "the teacher is never told the labels (the fifth argument of ddim is z: write cond=cond)"),
    Mistake("labels lost halfway", _target(second=lambda D, x, x_m, t, m, s, cond: ddim(D, x_m, m, s)),
            "in the second step the teacher is not told the labels"),
    Mistake("mean of the two guesses",
            lambda D, x, t, m, s, cond: (D(x, t, cond) + D(ddim(D, x, t, m, cond=cond), m, cond)) / 2,
            "a plain mean of the two guesses is not where the two steps lead: the two count differently, by the levels"),
    Mistake("labels lost at first", _target(first=lambda D, x, t, m, s, cond: ddim(D, x, t, m)),
            "in the first step the teacher is not told the labels"),
    Mistake("landing at the mid-point", _target(invert=lambda c, x, x_m, t, m, z, s: x0_between(c, x, t, x_m, s)),
            "you invert a step to the mid-point's state, as if the teacher had landed there"),
    Mistake("from the mid-point, at t", _target(invert=lambda c, x, x_m, t, m, z, s: x0_between(c, x_m, t, z, s)),
            "the student starts at x, and you invert a step that starts from the mid-point's state"),
    Mistake("from x, at the mid-point's time", _target(invert=lambda c, x, x_m, t, m, z, s: x0_between(c, x, m, z, s)),
            "the student starts at x at the time t, and you invert a step that starts at m"),
    Mistake("mean by the lengths", lambda D, x, t, m, s, cond: (per_row((t - m) / (t - s), x) * D(x, t, cond) + per_row(
        (m - s) / (t - s), x) * D(ddim(D, x, t, m, cond=cond), m, cond)),
            "you weigh the two guesses by the lengths of their steps; what they move depends on the noise levels"),
], tips=["two calls of ddim, the second one from the result of the first, at its time",
         "then ask my_x0_between for the guess that leads from x at t to that landing at s"])


# --- 7.3 -------------------------------------------------------------------------------------------------------------

def weighted_error(guess: Tensor, target: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """Mean over all entries of max(snr, 1) (guess - target)^2, with a time per row."""
    weight = schedule.log_snr(t).exp().clamp(min=1)
    return (per_row(weight, guess) * (guess - target).square()).mean()


def _value_and_gradient(function, guess: Tensor, *rest) -> tuple[Tensor, Tensor] | float:
    """The loss, and how it moves the guess: without that, nothing is learnt."""
    guess = guess.requires_grad_()
    loss = function(guess, *rest)
    if not isinstance(loss, Tensor):
        return loss
    return loss, torch.autograd.grad(loss.sum(), guess)[0] if loss.requires_grad else torch.zeros_like(guess)


def guesses(generator: torch.Generator) -> Iterator[tuple]:
    for schedule in SCHEDULES:
        for shape in SHAPES:
            yield normal(generator, *shape), normal(generator, *shape), between(generator, 0.05, 0.95, shape[0]), schedule


def _weighed(weight, finish=torch.mean):
    """A wrong answer with weight(snr), or another way to finish the weighted squares."""
    def wrong(guess, target, t, schedule):
        return finish(per_row(weight(schedule.log_snr(t).exp()), guess) * (guess - target).square())
    return wrong


def _truncated(snr: Tensor) -> Tensor:
    return snr.clamp(min=1)


def _wide(guess, target, t, schedule):
    return (_truncated(schedule.log_snr(t).exp()).view(-1, 1) * (guess - target).square()).mean()


WEIGHT = Exercise("7.3", "A loss that sees the first step", weighted_error, guesses, [
    Mistake("no weight", _weighed(torch.ones_like),
            "all times count alike in your loss: where does the signal-to-noise ratio enter?"),
    Mistake("snr alone", _weighed(lambda snr: snr),
            "that is the weight of a noise network: it vanishes at pure noise, where the few-step student has most to learn"),
    Mistake("smaller for larger", _weighed(lambda snr: snr.clamp(max=1)),
            "you took the smaller of the two; torch's `clamp(max=1)` keeps what is *below* 1"),
    Mistake("snr plus one", _weighed(lambda snr: snr + 1),
            "that is the weight of a v-network (under a variance-preserving schedule), a good one; asked for is the larger of snr and 1"),
    Mistake("alpha over sigma", _weighed(lambda snr: snr.sqrt().clamp(min=1)),
            "the signal-to-noise ratio is that of the *variances*, alpha^2/sigma^2"),
    Mistake("noise to signal", _weighed(lambda snr: (1 / snr).clamp(min=1)),
            "your ratio is upside down: it is the noisy times that you favour"),
    Mistake("log-SNR", _weighed(lambda snr: snr.log().clamp(min=1)),
            "log_snr is the logarithm of the ratio; the weight is made of the ratio itself"),
    Mistake("weight squared", _weighed(lambda snr: snr.clamp(min=1) ** 2),
            "your weight is squared with the error; it multiplies the squared error"),
    Mistake("sum for mean", _weighed(_truncated, torch.sum),
            "you sum over all entries; a mean does not depend on the size of the batch"),
    Mistake("sum over a row", _weighed(_truncated, lambda e: e.sum(1).mean()),
            "you sum within a row before the mean; asked for is the mean over *all* entries"),
    Mistake("not squared", lambda guess, target, t, schedule: (
        per_row(_truncated(schedule.log_snr(t).exp()), guess) * (guess - target).abs()).mean(),
            "the error is not squared"),
    Mistake("weight apart", lambda guess, target, t, schedule: (
        _truncated(schedule.log_snr(t).exp()).mean() * (guess - target).square().mean()),
            "you multiply a mean weight by a mean error; each row has its own weight, inside the mean"),
    Mistake("weight unshaped", lambda guess, target, t, schedule: (
        _truncated(schedule.log_snr(t).exp()) * (guess - target).square()).mean(),
            "a weight per row has the shape (B,) and has multiplied entries, not rows: shape it with per_row"),
    Mistake("held still", lambda guess, *rest: weighted_error(guess.detach(), *rest),
            "the value is right, but it does not depend on the guess any more, so nothing would be learnt"),
    Mistake("bare number", lambda *case: weighted_error(*case).item(),
            "the value is right, but `.item()` makes a bare number of it, which cannot be differentiated any more"),
    Mistake("one new axis for pictures too", _wide,
            "the shape (B, 1) is right for points only; a picture's weight needs (B, 1, 1, 1), which per_row gives"),
    Mistake("clamped before the exp", _weighed(lambda snr: snr.log().clamp(min=1).exp()),
            "you keep the *logarithm* above 1; it is the ratio that is to be at least 1"),
    Mistake("log-SNR alone", _weighed(lambda snr: snr.log()),
            "log_snr is the logarithm of the ratio, and negative where noise prevails; neither exp nor the larger of two is there"),
], tips=["`schedule.log_snr(t).exp()` is the ratio; `clamp(min=1)` makes the larger of it and 1",
         "`per_row(weight, guess)` shapes it; multiply the squared error, and take the mean at the very end"],
    call=_value_and_gradient)


# --- 7.4 -------------------------------------------------------------------------------------------------------------

def halvings(ts: Tensor, until: int) -> list[Tensor]:
    """The students' grids: every second, fourth, ... time of ts, down to `until` steps."""
    grids = []
    while len(ts) - 1 > until:
        ts = ts[::2]
        grids.append(ts)
    return grids


def ladders(generator: torch.Generator) -> Iterator[tuple]:
    for until, stages in ((1, 1), (1, 3), (2, 4), (3, 2), (5, 1), (1, 6)):
        inside = between(generator, 0.05, 0.95, until * 2**stages - 1).sort(descending=True).values
        yield torch.cat([torch.ones(1).double(), inside, torch.zeros(1).double()]), until


def _stages(ts: Tensor, until: int) -> int:
    return int(math.log2((len(ts) - 1) / until))


def _thinned(first: int, enough):
    """A wrong answer: thinned from index `first` on while not enough(times left, until)."""
    def wrong(ts, until):
        grids = []
        while not enough(len(ts), until):
            ts = ts[first::2]
            grids.append(ts)
        return grids
    return wrong


LADDER = Exercise("7.4", "Who learns on which times", halvings, ladders, [
    Mistake("the times between", lambda ts, until: [ts[2**k - 1::2**k] for k in range(1, _stages(ts, until) + 1)],
            "these are the mid-points, which the student leaps over; its grid begins with the teacher's first time, pure noise"),
    Mistake("the odd times", _thinned(1, lambda times, until: times <= until + 1),
            "you keep the mid-points, which the student leaps over; its grid begins with the teacher's first time, pure noise"),
    Mistake("times for steps", _thinned(0, lambda times, until: times <= until),
            "your loop still thins a grid that has `until` steps: n steps have n + 1 times, and the loop ends *at* `until`"),
    Mistake("the end lost", lambda ts, until: [ts[:-1:2**k] for k in range(1, _stages(ts, until) + 1)],
            "your grids lose their last time, and with it the step that ends at the data: n steps have n + 1 times"),
    Mistake("the teacher's grid too", lambda ts, until: [ts, *halvings(ts, until)],
            "the first of your grids is the first teacher's own; asked for are the students'"),
    Mistake("one stage too few", lambda ts, until: halvings(ts, until)[:-1],
            "you stop one stage too early: the last student has `until` steps"),
    Mistake("one stage too many", lambda ts, until: halvings(ts, max(until // 2, 1)) + [ts[::len(ts) - 1]] * (until == 1),
            "you go on after the student with `until` steps"),
    Mistake("new grids", lambda ts, until: [torch.linspace(1, 0, len(g)).to(ts) for g in halvings(ts, until)],
            "you made equally spaced grids; a student must start and land on times of *its teacher's* grid, whatever these are"),
    Mistake("always the first teacher", lambda ts, until: [ts[::2]] * _stages(ts, until),
            "every stage of yours thins the first grid by two; each student's grid is thinned from that of the student before"),
    Mistake("stride by one more", lambda ts, until: [ts[::k + 1] for k in range(1, _stages(ts, until) + 1)],
            "your strides are 2, 3, 4, ...; a half of a half is a quarter"),
    Mistake("the last grid only", lambda ts, until: halvings(ts, until)[-1:],
            "only the last student's grid is returned; each stage has one"),
    Mistake("rising", lambda ts, until: halvings(ts, until)[::-1],
            "your list begins with the last student; the one with most steps is trained first"),
    Mistake("until ignored", lambda ts, until: [ts[::2**k] for k in range(1, (len(ts) - 1).bit_length())],
            "you go on to a single step, whatever `until` says"),
    Mistake("grid before thinning", lambda ts, until: [ts, *halvings(ts, until)][:-1],
            "you keep each grid before it is thinned: that is the teachers' list, not the students'"),
    Mistake("numbers of steps", lambda ts, until: [len(g) - 1 for g in halvings(ts, until)],
            "these are the numbers of steps; the grids themselves are asked for"),
    Mistake("means of neighbours", lambda ts, until: [torch.cat([g[:1], (g[:-1] + g[1:]) / 2])[:len(g)] for g in halvings(ts, until)],
            "your times are means of the teacher's, at which it never was: a student starts and lands on *its* times"),
    Mistake("first student alone", lambda ts, until: halvings(ts, until)[:1],
            "only the first student's grid is returned; go on until the last one has `until` steps"),
    Mistake("first time lost", lambda ts, until: [ts[2**k::2**k] for k in range(1, _stages(ts, until) + 1)],
            "your grids lack the first time, pure noise, from which all sampling starts"),
], tips=["`ts[::2]` is every second time, from the first to the last",
         "a while loop: as long as there are more than `until` steps, thin the grid and keep it"])


# --- 7.5 -------------------------------------------------------------------------------------------------------------

def break_even(n: int, until: int, rows: int) -> float:
    """Samples after which guidance and halvings, each trained on so many rows, have paid for themselves in evaluations."""
    stages = 1 + math.log2(n / until)
    return 5 * rows * stages / (2 * n - until)


def budgets(generator: torch.Generator) -> Iterator[tuple]:
    for until, stages in ((1, 4), (4, 1), (2, 3), (1, 10)):
        yield until * 2**stages, until, int(torch.randint(1000, 10**6, (), generator=generator))


def _bill(per_row_cost=5.0, extra=1, saved=lambda n, until: 2 * n - until, stages=lambda n, until: math.log2(n / until)):
    return lambda n, until, rows: per_row_cost * rows * (extra + stages(n, until)) / saved(n, until)


BILL = Exercise("7.5", "When has it paid?", break_even, budgets, [
    Mistake("guidance stage forgotten", _bill(extra=0),
            "the halvings are counted, but before them guidance was distilled, on as many rows"),
    Mistake("three a row", _bill(per_row_cost=3.0),
            "a row costs three in your bill: is it the teacher's two that are missing, or the student's gradients?"),
    Mistake("student forgotten", _bill(per_row_cost=2.0),
            "you count the teacher's evaluations only; the student is evaluated and differentiated too"),
    Mistake("teacher once", _bill(per_row_cost=4.0),
            "a target takes two evaluations of the teacher: two steps, or a label and none"),
    Mistake("guidance not saved", _bill(saved=lambda n, until: n - until),
            "what the students replace is the *guided* teacher, and each of its steps costs two"),
    Mistake("student's steps forgotten", _bill(saved=lambda n, until: 2 * n),
            "a sample of the student is not free: take its own evaluations off what is saved"),
    Mistake("student guided too", _bill(saved=lambda n, until: 2 * n - 2 * until),
            "the student is told the weight and takes one evaluation a step, not two"),
    Mistake("a stage for every step", _bill(stages=lambda n, until: n - until),
            "steps are halved, not taken away one by one: how many halvings lead from n to until?"),
    Mistake("natural logarithm", _bill(stages=lambda n, until: math.log(n / until)),
            "that is the natural logarithm; the number of halvings is the logarithm to base 2"),
    Mistake("ratio of the steps", _bill(stages=lambda n, until: n / until),
            "n/until says how many times fewer the steps become; how many halvings is that?"),
    Mistake("upside down", lambda *case: 1 / break_even(*case),
            "your ratio is upside down: training divided by what one sample saves"),
    Mistake("one row", lambda n, until, rows: break_even(n, until, 1),
            "how many rows does each stage see?"),
    Mistake("the cost alone", lambda n, until, rows: break_even(n, until, rows) * (2 * n - until),
            "that is what the training costs; how many samples save as much?"),
    Mistake("the saving alone", lambda n, until, rows: 2 * n - until,
            "that is what one sample saves; how many of them pay for the training?"),
    Mistake("down to one step", _bill(stages=lambda n, until: math.log2(n)),
            "you count the halvings down to a single step; the last student has `until`"),
    Mistake("one stage too many", _bill(extra=2),
            "one stage too many: from n to n/2 is one halving, to n/4 are two; guidance comes before them"),
    Mistake("six a row", _bill(per_row_cost=6.0),
            "teacher and student are added, not multiplied; or did you count the student's own evaluation twice?"),
    Mistake("guidance for three", lambda n, until, rows: rows * (3 + 5 * math.log2(n / until)) / (2 * n - until),
            "in the guidance stage too the teacher is asked twice, with the label and without"),
    Mistake("student's steps added", _bill(saved=lambda n, until: 2 * n + until),
            "a sample saves the *difference* of what teacher and student cost"),
], tips=["cost: (number of stages, guidance included) times rows times (teacher + student) for a row",
         "saving of one sample: the guided teacher's evaluations minus the student's"], rtol=1e-6, atol=1e-9)


# --- 7.6 -------------------------------------------------------------------------------------------------------------

def overshoots(generator: torch.Generator) -> Iterator[tuple]:
    """D, x, t, s, z; for some rows the doubled step would pass t = 0."""
    yield from one_step(generator)


def _over(end=None, std=None, signal=None):
    """The step with its far end(t, s), the noise's std(alpha_u, sigma_u, alpha_s, sigma_s) or the signal's factor replaced."""
    end = end or (lambda t, s: (2 * s - t).clamp(min=0))
    std = std or (lambda au, su, as_, ss: (ss**2 - (as_ / au * su) ** 2).clamp(min=0).sqrt())
    signal = signal or (lambda au, as_: as_ / au)

    def wrong(D, x, t, s, z):
        u = end(t, s)
        x_u, (au, su), (as_, ss) = ddim(D, x, t, u), levels(D, x, u), levels(D, x, s)
        return signal(au, as_) * x_u + std(au, su, as_, ss) * z
    return wrong


def _all_fresh(D: Denoiser, x, t, s, z):
    alpha, sigma = levels(D, x, s)
    return alpha * D(x, t) + sigma * z


def _by_euler(D: Denoiser, x, t, s, z):
    u, c = (2 * s - t).clamp(min=0), D.schedule
    return per_row(c.alpha(s) / c.alpha(u), x) * ddim(D, x, t, u) + per_row(c.diffusion2(s) * (s - u), x).sqrt() * z


def _in_two(D: Denoiser, x, t, s, z):
    u = (2 * s - t).clamp(min=0)
    x_u, (au, su), (as_, ss) = ddim(D, ddim(D, x, t, s), s, u), levels(D, x, u), levels(D, x, s)
    return as_ / au * x_u + (ss**2 - (as_ / au * su) ** 2).clamp(min=0).sqrt() * z


OVERSHOOT = Exercise("7.6", "Two steps forward, one step back", overshoot, overshoots, [
    Mistake("no overshoot", lambda D, x, t, s, z: ddim(D, x, t, s),
            "you step to s and stop: where is the step beyond it, and the noise that leads back?"),
    Mistake("only forward", lambda D, x, t, s, z: ddim(D, x, t, (2 * s - t).clamp(min=0)),
            "you have arrived at u, with less noise than is due at s: go back up"),
    Mistake("noise at s", _over(end=lambda t, s: s, std=lambda au, su, as_, ss: ss),
            "you step to s, not beyond it, and add noise on top: the state is too noisy"),
    Mistake("half of s", _over(end=lambda t, s: s / 2),
            "u lies as far beyond s as s lies beyond t, and not half way to the data"),
    Mistake("u below zero", _over(end=lambda t, s: (2 * s - t).abs()),
            "where 2s - t is negative the doubled step would pass the data: it ends at 0 there"),
    Mistake("past the data", _over(end=lambda t, s: 2 * s - t,
                                   std=lambda au, su, as_, ss: (ss**2 - (as_ / au * su) ** 2).sqrt()),
            "in some rows 2s - t is negative, a time beyond the data; end at 0 there"),
    Mistake("past the data, root guarded", _over(end=lambda t, s: 2 * s - t),
            "for large steps your u is a time beyond the data, below zero; such a leap has to end at u = 0"),
    Mistake("to the data", _all_fresh,
            "you went all the way to the guess and made all noise afresh; the step goes to u only, and keeps the noise of u"),
    Mistake("standard deviations subtracted", _over(std=lambda au, su, as_, ss: ss - as_ / au * su),
            "you subtract standard deviations; independent noises add their variances"),
    Mistake("variance for standard deviation", _over(std=lambda au, su, as_, ss: ss**2 - (as_ / au * su) ** 2),
            "z is multiplied by the variance; it needs the standard deviation"),
    Mistake("old noise not shrunk", _over(std=lambda au, su, as_, ss: (ss**2 - su**2).clamp(min=0).sqrt()),
            "on the way up the noise that is there already shrinks with the signal, by alpha_s/alpha_u"),
    Mistake("signal not shrunk", _over(signal=lambda au, as_: 1.0),
            "the signal at s is weaker than at u: multiply x_u by a ratio of alphas first"),
    Mistake("ratio upside down", _over(signal=lambda au, as_: au / as_),
            "on the way to more noise the signal shrinks: your ratio of alphas is upside down"),
    Mistake("right for VP only", _over(std=lambda au, su, as_, ss: (1 - (as_ / au) ** 2).clamp(min=0).sqrt()),
            "1 - (alpha_s/alpha_u)^2 is the variance for variance-preserving schedules only"),
    Mistake("variances added", _over(std=lambda au, su, as_, ss: (ss**2 + (as_ / au * su) ** 2).sqrt()),
            "you add the two variances: the noise of u is *part* of what is due at s"),
    Mistake("ratio not squared", _over(std=lambda au, su, as_, ss: (ss**2 - as_ / au * su**2).clamp(min=0).sqrt()),
            "the noise of u is shrunk by a, so its variance by a squared"),
    Mistake("no new noise", _over(std=lambda au, su, as_, ss: 0 * ss),
            "you shrink what you have and add nothing: at s more noise is due than at u"),
    Mistake("noise of one's own", lambda D, x, t, s, z: overshoot(D, x, t, s, torch.randn_like(z)),
            "you drew noise of your own; use the z that was handed in"),
    Mistake("noise by Euler", _by_euler,
            "g^2 h is the variance of a very small step only; here it is known exactly"),
    Mistake("two small steps", _in_two,
            "you go down in two steps of the old length; the student's one leap is twice as long"),
    Mistake("all the noise of s", _over(std=lambda au, su, as_, ss: ss),
            "the state at u has noise of its own already: what you add brings the sum to sigma_s^2, and no further"),
], tips=["u = (2 * s - t).clamp(min=0), then one call of ddim from t to u",
         "the variance at s is (alpha_s/alpha_u)^2 sigma_u^2 plus that of the new noise; it must be sigma_s^2"])


EXERCISES = [INVERSE, TARGET, WEIGHT, LADDER, BILL, OVERSHOOT]

PREDICTIONS = [
    Prediction("7.1", "b", {
        "a": "The mean is the best guess at a picture drawn at random. The target here is no random picture: the teacher's path leads "
             "from each noise to one end.",
        "b": "A path without noise is a function of its start, and a function can be learnt; only a random answer leaves no better "
             "guess than its mean.",
        "c": "So it would be if the first teacher had only two steps, as on the Gaussian above. With 32 its paths reach the ring, "
             "and the last student says where each one ends.",
    }),
    Prediction("7.2", "a", {
        "a": "Each student is near its teacher, the teacher near its own, and distances add along the chain.",
        "b": "Errors would multiply if each student magnified its teacher's; it copies them, and adds its own.",
        "c": "That cannot be: the last student never sees the first teacher, only copies of copies.",
    }),
    Prediction("7.3", "c", {
        "a": "More steps help a denoiser, whose guess is right for a short step. The student's is right for one length only.",
        "b": "It would be so if the output were right for any step; it is made for one starting place and one length.",
        "c": "Its outputs were made for leaps of one length. After a quarter of a leap it is at a time where it was never taught.",
    }),
    Prediction("7.4", "b", {
        "a": "Plausible, and on pictures it may be so. In two dimensions a large change is not hard, given the pairs.",
        "b": "From each noise the teacher's path leads to one end; with pairs enough, in two dimensions, a network learns that map.",
        "c": "A blur comes of an answer left to chance. Each noise has *one* end here, and the map can be learnt (prediction 7.1).",
    }),
]
