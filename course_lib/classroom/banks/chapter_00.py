"""Chapter 00: how exercises work, on one step of the sampler that draws the first pictures."""

import torch

from ...denoiser import levels, per_row
from ...fast_samplers import ddim
from ...schedules import VE, CosineVP, Flow, LinearVP
from ...targets import ring
from ..exercises import Exercise, Mistake, Prediction


class _Round:
    """The exact denoiser of N(c, I) in any shape, where c is the row's label; without labels c is 0."""

    def __init__(self, schedule):
        self.schedule = schedule

    def __call__(self, x, t, cond=None):
        alpha, sigma = levels(self, x, t)
        mean = 0 if cond is None else per_row(cond.clamp(min=0), x)
        return mean + alpha * (x - alpha * mean) / (alpha**2 + sigma**2)


def _cases(generator):
    """D, x, t, s, z, cond, with one time for all rows, sometimes without labels, and now and then in single precision."""
    for schedule in (LinearVP(), CosineVP(), VE(), Flow()):
        for shape, dtype in (((1, 2), torch.float64), ((5, 2), torch.float32), ((3, 1, 8, 8), torch.float64)):
            D = ring().denoiser(schedule) if len(shape) == 2 else _Round(schedule)
            s, t = torch.sort(0.1 + 0.8 * torch.rand(2, generator=generator, dtype=torch.float64)).values
            x, z = torch.randn((2, *shape), generator=generator, dtype=torch.float64).to(dtype)
            yield D, x, t, s, z, torch.randint(-1, 4, shape[:1], generator=generator) if len(x) > 1 else None


def _mixed(combine):
    """A wrong last line: combine(x0, eps, x, z, the levels a_t, s_t of t and a_s, s_s of s)."""
    def wrong(D, x, t, s, z=None, cond=None):
        (a_t, s_t), (a_s, s_s), x0 = levels(D, x, t), levels(D, x, s), D(x, t, cond)
        return combine(x0, (x - a_t * x0) / s_t, x, z, a_t, s_t, a_s, s_s)
    return wrong


EXERCISES = [
    Exercise(
        id="0.1",
        title="finish the step",
        reference=ddim,
        cases=_cases,
        mistakes=[
            Mistake("old noise level", _mixed(lambda x0, e, x, z, at, st, as_, ss: as_ * x0 + st * e),
                    "you used sigma(t) for the new noise level; where are you going, t or s?"),
            Mistake("old signal level", _mixed(lambda x0, e, x, z, at, st, as_, ss: at * x0 + ss * e),
                    "the picture in your result still has the level alpha(t); where are you going, t or s?"),
            Mistake("only the guess", _mixed(lambda x0, e, x, z, at, st, as_, ss: x0),
                    "that is where the path would end if s were 0; at s there is noise left"),
            Mistake("only the noise", _mixed(lambda x0, e, x, z, at, st, as_, ss: ss * e),
                    "that is the noise of the new state alone; what else does x_s hold?"),
            Mistake("noisy for clean", _mixed(lambda x0, e, x, z, at, st, as_, ss: as_ * x + ss * e),
                    "x is noisy already; which of your two tensors is the clean one?"),
            Mistake("state for noise", _mixed(lambda x0, e, x, z, at, st, as_, ss: as_ * x0 + ss * x),
                    "x is picture and noise together; which of your tensors is the noise alone?"),
            Mistake("minus", _mixed(lambda x0, e, x, z, at, st, as_, ss: as_ * x0 - ss * e),
                    "which sign has the noise in (0.1)?"),
            Mistake("swapped", _mixed(lambda x0, e, x, z, at, st, as_, ss: ss * x0 + as_ * e),
                    "which of the two levels belongs to the picture, and which to the noise?"),
            Mistake("fresh noise", _mixed(lambda x0, e, x, z, at, st, as_, ss: as_ * x0 + ss * torch.randn_like(x)),
                    "your step draws new noise; which noise do we believe is in x already?"),
            Mistake("z for noise", _mixed(lambda x0, e, x, z, at, st, as_, ss: as_ * x0 + ss * z),
                    "z is new noise, for steps that need some; this one keeps the noise that is in x already"),
            Mistake("noise on top", _mixed(lambda x0, e, x, z, at, st, as_, ss: as_ * x0 + ss * (e + z)),
                    "eps is all the noise that belongs into the result; you add z to it"),
            Mistake("added to x", _mixed(lambda x0, e, x, z, at, st, as_, ss: x + as_ * x0 + ss * e),
                    "you add to x, but x is taken apart already: all of it is in x0 and eps"),
            Mistake("no levels", _mixed(lambda x0, e, x, z, at, st, as_, ss: x0 + e),
                    "guess and noise are added in full: (0.1) has a factor in front of each"),
            Mistake("alpha forgotten", _mixed(lambda x0, e, x, z, at, st, as_, ss: x0 + ss * e),
                    "the data part must shrink too; what multiplies x_0 in x_t?"),
            Mistake("sigma forgotten", _mixed(lambda x0, e, x, z, at, st, as_, ss: as_ * x0 + e),
                    "your noise comes in full strength; what multiplies eps in (0.1)?"),
            Mistake("noise dropped", _mixed(lambda x0, e, x, z, at, st, as_, ss: as_ * x0),
                    "a state at time s still holds noise; you returned a clean picture, shrunk"),
            Mistake("variance", _mixed(lambda x0, e, x, z, at, st, as_, ss: as_ * x0 + ss**2 * e),
                    "sigma is a standard deviation already; it multiplies eps as it is"),
            Mistake("roots", _mixed(lambda x0, e, x, z, at, st, as_, ss: as_.sqrt() * x0 + ss.sqrt() * e),
                    "the roots that other texts write are inside alpha and sigma already: both multiply as they are"),
            Mistake("alpha for alpha-bar", _mixed(lambda x0, e, x, z, at, st, as_, ss: as_.sqrt() * x0 + (1 - as_).sqrt() * e),
                    "you read alpha as papers with a bar over it do, as the square of ours; here alpha_s multiplies x0 as it is"),
            Mistake("the rest of alpha", _mixed(lambda x0, e, x, z, at, st, as_, ss: as_ * x0 + (1 - as_) * e),
                    "the noise level is not 1 - alpha; sigma_s is given"),
            Mistake("right here only", _mixed(lambda x0, e, x, z, at, st, as_, ss: as_ * x0 + (1 - as_**2).sqrt() * e),
                    "alpha^2 + sigma^2 = 1 holds for this chapter's schedule, and not for every one; sigma_s is given"),
            Mistake("clamped guess", _mixed(lambda x0, e, x, z, at, st, as_, ss: as_ * x0.clamp(-1, 1) + ss * e),
                    "you cut the guess off at -1 and 1; the data need not lie there, and (0.1) knows of no such cut"),
            Mistake("no step", _mixed(lambda x0, e, x, z, at, st, as_, ss: at * x0 + st * e),
                    "this gives back x itself: both levels are those of t, the time you come from"),
            Mistake("label lost", lambda D, x, t, s, z=None, cond=None: ddim(D, x, t, s),
                    "the denoiser is never told the label"),
        ],
        tips=["write the formula for x_t once more, with s in place of t everywhere",
              "you need four of the six numbers and tensors in the cell: alpha_s, x0, sigma_s, eps"],
    ),
]

PREDICTIONS = [
    Prediction("0.1", "b", {
        "a": "Leaving out 970 of 1000 steps looks like leaving out most of the information. But the path from noise to "
             "picture bends little, and 30 straight pieces follow it.",
        "b": "The path bends little, so 30 straight pieces end almost where 1000 do.",
        "c": "Steps do not sharpen a picture one by one; each is a piece of one path, and few pieces can follow it well.",
    }),
    Prediction("0.2", "c", {
        "a": "No sharp trousers can come out: nothing has yet decided which trousers these shall be.",
        "b": "The network was trained for this noise level too; its answer is its best guess, not what is left of the noise.",
        "c": "From pure noise every pair of trousers is possible, and the best guess under squared error is their average.",
    }),
]
