"""Chapter 00: how exercises work, on one step of the sampler that draws the first pictures."""

import torch

from course_lib.denoiser import levels
from course_lib.fast_samplers import ddim
from course_lib.schedules import VE, CosineVP, Flow, LinearVP
from course_lib.targets import ring

from .checks import Exercise, Mistake
from .predictions import Prediction


class _UnitGaussian:
    """The exact denoiser of N(0, I) in any shape."""

    def __init__(self, schedule):
        self.schedule = schedule

    def __call__(self, x, t, cond=None):
        alpha, sigma = levels(self, x, t)
        return alpha * x / (alpha**2 + sigma**2)


def _cases(generator):
    for schedule in (LinearVP(), CosineVP(), VE(), Flow()):
        for shape in ((1, 2), (5, 2), (3, 1, 8, 8)):
            D = ring().denoiser(schedule) if len(shape) == 2 else _UnitGaussian(schedule)
            s, t = torch.sort(0.1 + 0.8 * torch.rand(2, generator=generator, dtype=torch.float64)).values
            yield D, torch.randn(shape, generator=generator, dtype=torch.float64), t, s


def _parts(D, x, t, s):
    alpha_t, sigma_t = levels(D, x, t)
    alpha_s, sigma_s = levels(D, x, s)
    x0 = D(x, t)
    return x0, (x - alpha_t * x0) / sigma_t, alpha_t, sigma_t, alpha_s, sigma_s


def _stays(D, x, t, s):
    x0, eps, _, sigma_t, alpha_s, _ = _parts(D, x, t, s)
    return alpha_s * x0 + sigma_t * eps


def _no_alpha(D, x, t, s):
    x0, eps, *_, sigma_s = _parts(D, x, t, s)
    return x0 + sigma_s * eps


def _no_noise(D, x, t, s):
    x0, *_, alpha_s, _ = _parts(D, x, t, s)
    return alpha_s * x0


def _variance(D, x, t, s):
    x0, eps, *_, alpha_s, sigma_s = _parts(D, x, t, s)
    return alpha_s * x0 + sigma_s**2 * eps


def _old_alpha(D, x, t, s):
    x0, eps, alpha_t, *_, sigma_s = _parts(D, x, t, s)
    return alpha_t * x0 + sigma_s * eps


def _noisy_for_clean(D, x, t, s):
    _, eps, *_, alpha_s, sigma_s = _parts(D, x, t, s)
    return alpha_s * x + sigma_s * eps


def _minus(D, x, t, s):
    x0, eps, *_, alpha_s, sigma_s = _parts(D, x, t, s)
    return alpha_s * x0 - sigma_s * eps


def _swapped(D, x, t, s):
    x0, eps, *_, alpha_s, sigma_s = _parts(D, x, t, s)
    return sigma_s * x0 + alpha_s * eps


def _fresh_noise(D, x, t, s):
    x0, *_, alpha_s, sigma_s = _parts(D, x, t, s)
    return alpha_s * x0 + sigma_s * torch.randn_like(x)


def _nowhere(D, x, t, s):
    x0, eps, alpha_t, sigma_t, *_ = _parts(D, x, t, s)
    return alpha_t * x0 + sigma_t * eps


EXERCISES = [
    Exercise(
        id="0.1",
        title="finish the step",
        reference=ddim,
        cases=_cases,
        mistakes=[
            Mistake("old noise level", _stays, "you used sigma(t) for the new noise level; where are you going, t or s?"),
            Mistake("old signal level", _old_alpha, "you used alpha(t) for the new level; where are you going, t or s?"),
            Mistake("only the guess", lambda D, x, t, s: D(x, t),
                    "that is where the path would end if s were 0; at s there is noise left"),
            Mistake("noisy for clean", _noisy_for_clean, "x is noisy already; which of your two tensors is the clean one?"),
            Mistake("minus", _minus, "which sign has the noise in (0.1)?"),
            Mistake("swapped", _swapped, "which of the two levels belongs to the picture, and which to the noise?"),
            Mistake("fresh noise", _fresh_noise,
                    "your step draws new noise; which noise do we believe is in x already?"),
            Mistake("added to x", lambda D, x, t, s: x + ddim(D, x, t, s),
                    "you add to x, but x is taken apart already: all of it is in x0 and eps"),
            Mistake("alpha forgotten", _no_alpha, "the data part must shrink too; what multiplies x_0 in x_t?"),
            Mistake("noise dropped", _no_noise, "a state at time s still holds noise; you returned a clean picture, shrunk"),
            Mistake("variance", _variance, "sigma is a standard deviation already; it multiplies eps as it is"),
            Mistake("no step", _nowhere, "this gives back x itself: both levels are those of t, the time you come from"),
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
