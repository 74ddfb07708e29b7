# Long: a table. Each entry is a wrong answer that learners give, and its hint; one reads the exercise that one looks for.
"""Chapter 6, guidance: its exercises with their known mistakes, and its predictions."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ...denoiser import Denoiser, eps, guided, levels, per_row, score
from ...schedules import Schedule
from ..exercises import Exercise, Mistake, Prediction
from .cases import SCHEDULES, SHAPES, between, normal


class Blobs:
    """Denoiser of N(m_k, s_k^2) in every dimension for the label k of a row of any shape; -1 has an m and s of its own."""

    MEANS, STDS = torch.tensor([[0.8, -0.6, 0.3, 0.1], [0.4, 0.6, 0.5, 1.2]], dtype=torch.float64)

    def __init__(self, schedule: Schedule):
        self.schedule = schedule

    def __call__(self, x: Tensor, t, cond: Tensor | None = None) -> Tensor:
        alpha, sigma = levels(self, x, t)
        cond = torch.full((len(x),), -1) if cond is None else cond
        m, s2 = per_row(self.MEANS[cond], x), per_row(self.STDS[cond] ** 2, x)
        return m + alpha * s2 / (alpha**2 * s2 + sigma**2) * (x - alpha * m)


def asked(generator: torch.Generator) -> Iterator[tuple]:
    """D, x, t (B,), labels (B,) in 0..2."""
    for schedule in SCHEDULES:
        for shape in SHAPES:
            labels = torch.randint(0, 3, shape[:1], generator=generator)
            yield Blobs(schedule), normal(generator, *shape), between(generator, 0.2, 0.9, shape[0]), labels


# --- 6.1 -------------------------------------------------------------------------------------------------------------

def drop_labels(labels: Tensor, u: Tensor, p: float) -> Tensor:
    """labels (B,) with -1 in the rows whose uniform draw u (B,) is below p."""
    return torch.where(u < p, -1, labels)


def labelled(generator: torch.Generator) -> Iterator[tuple]:
    for B, p in ((1, 0.5), (2, 0.5), (9, 0.3), (200, 0.1)):
        yield torch.randint(0, 10, (B,), generator=generator), torch.rand(B, generator=generator), p


DROP = Exercise("6.1", "Labels dropped at random", drop_labels, labelled, [
    Mistake("kept and dropped swapped", lambda labels, u, p: torch.where(u < p, labels, -1),
            "you keep the labels that should go: it is a share p that is dropped"),
    Mistake("the whole batch", lambda labels, u, p: torch.where(u[0] < p, -1, labels),
            "you decide once for the whole batch; every row has a draw of its own"),
    Mistake("label 0", lambda labels, u, p: torch.where(u < p, 0, labels),
            "0 is a class like any other; the sign for 'no label' is -1"),
    Mistake("one more class", lambda labels, u, p: torch.where(u < p, 10, labels),
            "10 would be one more class; the sign for 'no label' is -1"),
    Mistake("rows taken out", lambda labels, u, p: labels[u >= p],
            "you take the rows out of the batch; they stay, and only their label goes"),
    Mistake("a share in order", lambda labels, u, p: torch.where(torch.arange(len(labels)) < round(p * len(labels)), -1, labels),
            "you drop the first rows of the batch; which rows are dropped is decided by their draws u"),
    Mistake("nothing dropped", lambda labels, u, p: labels.clone(),
            "every label is still there: which rows lose theirs?"),
    Mistake("everything dropped", lambda labels, u, p: torch.full_like(labels, -1),
            "every label is gone; only where u < p does one go"),
    Mistake("one minus p", lambda labels, u, p: torch.where(u < 1 - p, -1, labels),
            "you drop the share 1 - p, which should be kept"),
    Mistake("draws of one's own", lambda labels, u, p: torch.where(torch.rand(len(labels)) < p, -1, labels),
            "you draw numbers of your own; the draws u are handed in"),
    Mistake("whole batch if one goes", lambda labels, u, p: torch.full_like(labels, -1) if (u < p).any() else labels.clone(),
            "you hide all labels as soon as one row's draw says so; each row decides for itself"),
], tips=["`torch.where(condition, a, b)` chooses row by row"])


# --- 6.2 -------------------------------------------------------------------------------------------------------------

def composite(D: Denoiser, x: Tensor, t: Tensor, cond: Tensor, w: float) -> Tensor:
    """D_c + w (D_c - D_u), in one call of D."""
    return guided(D, w)(x, t, cond)


def weighted(generator: torch.Generator) -> Iterator[tuple]:
    for case in asked(generator):
        yield *case, between(generator, 0.5, 4.0).item()


def _at_once(mix, u_label: int = -1):
    """mix(D_c, D_u, w) of one batched call."""
    def wrong(D, x, t, cond, w):
        c, u = D(torch.cat([x, x]), torch.cat([t, t]), torch.cat([cond, torch.full_like(cond, u_label)])).chunk(2)
        return mix(c, u, w)
    return wrong


def _scale(c, u, w):
    return u + w * (c - u)


def _away(c, u, w):
    return c - w * (c - u)


def _swapped(c, u, w):
    return u + w * (u - c)


def _halves(stack=lambda a, b: torch.cat([a, b]), cut=lambda both: both.chunk(2)):
    """The right formula for halves that were stacked or cut in another way."""
    def wrong(D, x, t, cond, w):
        c, u = cut(D(stack(x, x), stack(t, t), stack(cond, torch.full_like(cond, -1))))
        return c + w * (c - u)
    return wrong


def _noise_of_the_composite(D, x, t, cond, w):
    x0 = composite(D, x, t, cond, w)
    alpha, sigma = levels(D, x, t)
    return (x - alpha * x0) / sigma


GUIDED = Exercise("6.2", "Guidance in one call", composite, weighted, [
    Mistake("the other convention", _at_once(_scale),
            "with your formula w = 1 is conditional; here w counts what comes on top, so w = 0 must be"),
    Mistake("sign", _at_once(_away),
            "your step leads from D_c towards D_u; guidance goes on in the direction from D_u to D_c"),
    Mistake("halves swapped", _at_once(_swapped),
            "you took the unconditional half for the conditional one: the halves come back in the order in which they went in"),
    Mistake("weights that do not add up", _at_once(lambda c, u, w: (1 + w) * c + w * u),
            "the weights of D_c and D_u must add up to 1, or the guess is scaled as a whole"),
    Mistake("only the extra", _at_once(lambda c, u, w: w * (c - u)),
            "that is only what guidance adds; it is added to D_c"),
    Mistake("only the difference", _at_once(lambda c, u, w: (1 + w) * (c - u)),
            "you left out D_u, on which (1+w) times the difference comes on top"),
    Mistake("w too large by one", _at_once(lambda c, u, w: c + (1 + w) * (c - u)),
            "(1+w) belongs to the form that starts from D_u; starting from D_c it is w"),
    Mistake("label 0 for no label", _at_once(lambda c, u, w: c + w * (c - u), u_label=0),
            "the second half was asked for class 0; no label is -1"),
    Mistake("not everything stacked", lambda D, x, t, cond, w: D(
        torch.cat([x, x]), t, torch.cat([cond, torch.full_like(cond, -1)])).chunk(2)[0],
            "everything that D gets must have twice as many rows: x, the times and the labels"),
    Mistake("rows interleaved", _halves(stack=lambda a, b: torch.stack([a, b], 1).flatten(0, 1)),
            "you put every row beside its copy, but `.chunk(2)` cuts in the middle: all with labels first, then all without"),
    Mistake("every second row", _halves(cut=lambda both: (both[::2], both[1::2])),
            "you take every second row for a half; the halves lie one after the other, as they were stacked"),
    Mistake("plus for minus", _at_once(lambda c, u, w: c + w * u),
            "D_u is added, though guidance leads *away* from it"),
    Mistake("bracket lost", _at_once(lambda c, u, w: c - w * u),
            "only D_u is weighed: your weights of D_c and D_u add up to 1 - w"),
    Mistake("bracket lost in front", _at_once(lambda c, u, w: w * c - u),
            "only D_c is weighed: your weights of D_c and D_u add up to w - 1"),
    Mistake("clamped", _at_once(lambda c, u, w: (c + w * (c - u)).clamp(-1, 1)),
            "you cut the guess off at -1 and 1; (6.3) does not, and data need not lie there"),
    Mistake("label turned round", lambda D, x, t, cond, w: _swapped(*D(
        torch.cat([x, x]), torch.cat([t, t]), torch.cat([-cond, cond])).chunk(2), w),
            "you put a minus before the label; no label is -1 for every class"),
    Mistake("no guidance", _at_once(lambda c, u, w: c),
            "that is D_c alone: did both halves get the label?"),
    Mistake("no condition", _at_once(lambda c, u, w: u),
            "that is D_u alone: neither half got the label"),
    Mistake("noise", _noise_of_the_composite,
            "you return the guided noise; asked for is the guided guess"),
], tips=["x, t and the labels all get twice as many rows; `torch.full_like(cond, -1)` is a row of no labels",
         "`.chunk(2)` cuts the answer into its two halves"], count_calls=True)


# --- 6.3 -------------------------------------------------------------------------------------------------------------

def negative(D: Denoiser, x: Tensor, t: Tensor, want: Tensor, avoid: Tensor, scale: float) -> Tensor:
    """The x0_hat of eps_avoid + scale (eps_want - eps_avoid)."""
    return guided_away(D(x, t, want), D(x, t, avoid), scale - 1)


def guided_away(c: Tensor, u: Tensor, w: float) -> Tensor:
    return c + w * (c - u)


def wished(generator: torch.Generator) -> Iterator[tuple]:
    for D, x, t, want in asked(generator):
        yield D, x, t, want, (want + 1) % 3, between(generator, 1.5, 6.0).item()


def _wish(mix):
    return lambda D, x, t, want, avoid, scale: mix(D(x, t, want), D(x, t, avoid), scale)


def _from_noise(back):
    """The right noise, and then back(D, x, t, noise)."""
    def wrong(D, x, t, want, avoid, scale):
        e_want, e_avoid = eps(D, x, t, want), eps(D, x, t, avoid)
        return back(x, *levels(D, x, t), e_avoid + scale * (e_want - e_avoid))
    return wrong


NEGATIVE = Exercise("6.3", "A scale and a negative prompt", negative, wished, [
    Mistake("scale taken for w", _wish(lambda c, a, g: c + g * (c - a)),
            "you used the scale as w, starting from what is wanted; the scale counts from what is to be avoided"),
    Mistake("one too many", _wish(lambda c, a, g: c + (1 + g) * (c - a)),
            "you translated the wrong way: scale = 1 + w, so w is smaller than the scale"),
    Mistake("want and avoid swapped", _wish(lambda c, a, g: c + g * (a - c)),
            "you run towards what is to be avoided: start there, and go to what is wanted and beyond"),
    Mistake("unconditional instead", lambda D, x, t, want, avoid, scale: D(x, t) + scale * (D(x, t, want) - D(x, t)),
            "that is guidance without the negative prompt: where does `avoid` come in?"),
    Mistake("three guesses", lambda D, x, t, want, avoid, scale: D(x, t) + scale * (D(x, t, want) - D(x, t, avoid)),
            "you start from the unconditional guess; in this formula the negative prompt has taken its place"),
    Mistake("noise", _from_noise(lambda x, alpha, sigma, e: e),
            "you return the noise; asked for is the guess, x0_hat"),
    Mistake("alpha forgotten", _from_noise(lambda x, alpha, sigma, e: x - sigma * e),
            "x holds alpha times the picture: your way back from the noise has lost its alpha"),
    Mistake("plain", _wish(lambda c, a, g: c),
            "that is the wanted guess alone, the case scale = 1"),
    Mistake("w on top of what is avoided", _wish(lambda c, a, g: a + (g - 1) * (c - a)),
            "you start from what is avoided, but with w in place of the scale: one of the two must change"),
    Mistake("difference alone", _wish(lambda c, a, g: g * (c - a)),
            "that is the way alone; where does it start?"),
    Mistake("bracket lost", _wish(lambda c, a, g: g * c - a),
            "only the wanted guess is multiplied by the scale: the weights must add up to 1"),
    Mistake("what is avoided", _wish(lambda c, a, g: a),
            "that is the guess to run away from, the case scale = 0"),
    Mistake("away from no label", lambda D, x, t, want, avoid, scale: D(x, t, want) + scale * (D(x, t, want) - D(x, t)),
            "that is guidance with w = scale and without the negative prompt: where does `avoid` come in?"),
    Mistake("guess for noise", lambda D, x, t, want, avoid, scale: (x - levels(D, x, t)[1] * _scale(
        D(x, t, want), D(x, t, avoid), scale)) / levels(D, x, t)[0],
            "you treat guesses as if they were noises: what D returns is x0_hat already"),
    Mistake("sign on the way back", _from_noise(lambda x, alpha, sigma, e: (x + sigma * e) / alpha),
            "on the way back from the noise to the guess the noise is taken off"),
], tips=["put eps = (x - alpha D)/sigma in: x drops out of eps_want - eps_avoid",
         "(6.4) turned round: what is the weight w if the scale is 1 + w?"])


# --- 6.4 -------------------------------------------------------------------------------------------------------------

class NoisyClassifier:
    """log_p(x (B, ...), t (B,)) -> (B, 3): the log-probability of each class, whose centre fades with t."""

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        centres = torch.tensor([1.0, -0.7, 0.2], dtype=x.dtype) * (1 - 0.5 * t[:, None])                    # (B, 3)
        return (-(x.flatten(1)[:, None] - centres[..., None]).square().sum(-1) / 4).log_softmax(1)


def classifier_guidance(D: Denoiser, log_p: Callable, x: Tensor, t: Tensor, cond: Tensor, w: float) -> Tensor:
    """s_u + (1 + w) grad log p_t(c | x), the score of (6.2)."""
    return score(D, x, t) + (1 + w) * _gradient(log_p, x, t, cond)


def _gradient(log_p, x, t, cond, pick=None):
    """The gradient of a sum over the rows: by default of every row's own class."""
    pick = pick or (lambda logs: logs[torch.arange(len(x)), cond].sum())
    leaf = x.detach().requires_grad_()
    return torch.autograd.grad(pick(log_p(leaf, t)), leaf)[0]


def _classified(pick=None, combine=None, start=None):
    """The score with the thing that is differentiated, the combination or the starting score replaced."""
    combine = combine or (lambda s, g, w: s + (1 + w) * g)

    def wrong(D, log_p, x, t, cond, w):
        chosen = pick and (lambda logs: pick(logs, cond))
        return combine(score(D, x, t, cond if start else None), _gradient(log_p, x, t, cond, chosen), w)
    return wrong


def classified(generator: torch.Generator) -> Iterator[tuple]:
    for D, x, t, labels, w in weighted(generator):
        yield D, NoisyClassifier(), x, t, labels, w


CLASSIFIER = Exercise("6.4", "Guidance by a classifier", classifier_guidance, classified, [
    Mistake("w for 1 + w", _classified(combine=lambda s, g, w: s + w * g),
            "w = 0 must give the conditional score, which by (6.1) holds the gradient once already"),
    Mistake("the conditional score", _classified(start=True),
            "you start from the conditional score, in which by Bayes' rule the gradient is contained once"),
    Mistake("from the conditional score", _classified(combine=lambda s, g, w: s + w * g, start=True),
            "that presumes that the difference of D's two scores is this classifier's gradient; (6.2) uses the unconditional one only"),
    Mistake("sign", _classified(combine=lambda s, g, w: s - (1 + w) * g),
            "you go down the gradient, to places that the classifier takes for something else"),
    Mistake("probability for its logarithm", _classified(
        pick=lambda logs, cond: logs.exp()[torch.arange(len(cond)), cond].sum()),
            "you differentiate the probability; Bayes' rule has its logarithm"),
    Mistake("all classes", _classified(pick=lambda logs, cond: logs.sum()),
            "you differentiate the sum over all classes; only the one that a row asks for counts"),
    Mistake("mean over the batch", _classified(pick=lambda logs, cond: logs[torch.arange(len(cond)), cond].mean()),
            "your gradient shrinks with the batch: add the rows up, do not average them"),
    Mistake("everyone's label", _classified(pick=lambda logs, cond: logs[:, cond].sum()),
            "`log_p[:, cond]` gives every row the labels of the whole batch; each row has a label of its own"),
    Mistake("the likeliest class", _classified(pick=lambda logs, cond: logs.max(1).values.sum()),
            "you follow the class that the classifier finds likeliest, not the one that was asked for"),
    Mistake("classifier alone", _classified(combine=lambda s, g, w: (1 + w) * g),
            "the classifier alone does not know what data looks like: the unconditional score is missing"),
    Mistake("everything scaled", _classified(combine=lambda s, g, w: (1 + w) * (s + g)),
            "(1+w) multiplies the gradient only, not the unconditional score"),
    Mistake("only once", _classified(combine=lambda s, g, w: s + g),
            "that is the score given the class, for w = 0; w is nowhere used"),
    Mistake("minus w", _classified(combine=lambda s, g, w: s + (1 - w) * g),
            "the more you insist, the *less* your classifier counts"),
    Mistake("as for the noise", lambda D, log_p, x, t, cond, w: _classified()(D, log_p, x, t, cond, w) + (1 + w) * (
        levels(D, x, t)[1] - 1) * _gradient(log_p, x, t, cond),
            "your gradient is multiplied by sigma, as in a guided *noise*; a score takes it as it is"),
    Mistake("as for the guess", lambda D, log_p, x, t, cond, w: _classified()(D, log_p, x, t, cond, w) + (1 + w) * (
        levels(D, x, t)[1] ** 2 - 1) * _gradient(log_p, x, t, cond),
            "your gradient is multiplied by sigma squared, as in a guided *guess*; a score takes it as it is"),
    Mistake("guess for score", lambda D, log_p, x, t, cond, w: D(x, t) + (1 + w) * _gradient(log_p, x, t, cond),
            "you start from the guess x0_hat; `score(D, x, t)` makes a score of it"),
    Mistake("no gradient", lambda D, log_p, x, t, cond, w: score(D, x, t) + (1 + w) * per_row(
        log_p(x, t)[torch.arange(len(x)), cond], x),
            "you add the log-probability itself; it is its gradient that says where to go"),
    Mistake("first class for all", _classified(pick=lambda logs, cond: logs[:, 0].sum()),
            "you follow class 0 in every row: where do the labels enter?"),
    Mistake("first row alone", _classified(pick=lambda logs, cond: logs[0, cond[0]]),
            "only the first row has a gradient; sum over all rows before you differentiate"),
    Mistake("cross-entropy", _classified(pick=lambda logs, cond: torch.nn.functional.nll_loss(logs, cond)),
            "that is a loss to be made small, and a mean: it has the opposite sign, and shrinks with the batch"),
], tips=["`x = x.detach().requires_grad_()` first, so that the classifier's answer remembers x",
         "`log_p(x, t)[torch.arange(len(x)), cond]` is each row's own log-probability; its sum has the gradient of each row"])


# --- 6.5 -------------------------------------------------------------------------------------------------------------

def tilted(m_c, s_c, m_u, s_u, w) -> tuple:
    """Mean and standard deviation of the density proportional to N(m_c, s_c^2)^(1+w) N(m_u, s_u^2)^(-w); numbers or tensors."""
    precision = (1 + w) / s_c**2 - w / s_u**2
    return ((1 + w) * m_c / s_c**2 - w * m_u / s_u**2) / precision, precision**-0.5


def pairs(generator: torch.Generator) -> Iterator[tuple]:
    for shape in ((), (1,), (4,), (7,)):
        s_c = between(generator, 0.3, 0.9, *shape)
        yield (normal(generator, *shape), s_c, normal(generator, *shape), s_c * between(generator, 1.3, 3.0, *shape),
               between(generator, 0.3, 5.0, *shape))


def _tilt(precision=None, moment=None, mean=None, std=None):
    """The tilt with its precision, its precision times mean, or what is made of the two replaced."""
    precision = precision or (lambda sc, su, w: (1 + w) / sc**2 - w / su**2)
    moment = moment or (lambda mc, sc, mu, su, w: (1 + w) * mc / sc**2 - w * mu / su**2)

    def wrong(m_c, s_c, m_u, s_u, w):
        P, M = precision(s_c, s_u, w), moment(m_c, s_c, m_u, s_u, w)
        return mean(m_c, m_u, w, M, P) if mean else M / P, std(P, s_c, s_u, w) if std else P.abs().rsqrt()
    return wrong


TILTED = Exercise("6.5", "The tilted Gaussian", tilted, pairs, [
    Mistake("variance", _tilt(std=lambda P, sc, su, w: 1 / P),
            "that is the variance; asked for is the standard deviation"),
    Mistake("precision", _tilt(std=lambda P, sc, su, w: P),
            "that is the factor of x^2, the precision; the standard deviation is one over its root"),
    Mistake("order", lambda m_c, s_c, m_u, s_u, w: tilted(m_c, s_c, m_u, s_u, w)[::-1],
            "the mean comes first, then the standard deviation"),
    Mistake("mean not divided", _tilt(mean=lambda mc, mu, w, M, P: M),
            "the coefficient of x is the mean times the precision: one division is missing"),
    Mistake("guided mean", _tilt(mean=lambda mc, mu, w, M, P: mc + w * (mc - mu)),
            "the means are not mixed with weights 1+w and -w alone; each counts in proportion to its precision"),
    Mistake("w for 1 + w", _tilt(lambda sc, su, w: w / sc**2 - w / su**2,
                                 lambda mc, sc, mu, su, w: w * mc / sc**2 - w * mu / su**2),
            "the exponent of the class is 1+w, not w: for w = 0 the class itself must remain"),
    Mistake("both exponents positive", _tilt(lambda sc, su, w: (1 + w) / sc**2 + w / su**2,
                                             lambda mc, sc, mu, su, w: (1 + w) * mc / sc**2 + w * mu / su**2),
            "the density of all the data is divided by: its exponent, and so its share, is negative"),
    Mistake("variances mixed", _tilt(std=lambda P, sc, su, w: ((1 + w) * sc**2 - w * su**2).abs().sqrt()),
            "in a product of Gaussians it is the precisions, one over the variance, that add up"),
    Mistake("variances mixed, root of what may be negative", _tilt(std=lambda P, sc, su, w: ((1 + w) * sc**2 - w * su**2).sqrt()),
            "a mix of variances can be negative; in a product of Gaussians it is their inverses, the precisions, that add up"),
    Mistake("not squared", _tilt(lambda sc, su, w: (1 + w) / sc - w / su,
                                 lambda mc, sc, mu, su, w: (1 + w) * mc / sc - w * mu / su),
            "one over s is no precision: in the exponent of a Gaussian stands s squared"),
    Mistake("class only", _tilt(lambda sc, su, w: (1 + w) / sc**2, lambda mc, sc, mu, su, w: (1 + w) * mc / sc**2),
            "that is a power of the class alone; the division by the density of all the data is missing"),
    Mistake("root of the precision", _tilt(std=lambda P, sc, su, w: P.sqrt()),
            "the root is there, but of the precision: the standard deviation is one over it"),
    Mistake("mean times the precision", _tilt(mean=lambda mc, mu, w, M, P: M * P),
            "the coefficient of x is the mean over the variance: divide by the precision, do not multiply"),
    Mistake("sign in the precision alone", _tilt(lambda sc, su, w: (1 + w) / sc**2 + w / su**2),
            "your mean knows that the density of all the data is divided by; your precision has a plus there"),
    Mistake("sign in the mean alone", _tilt(moment=lambda mc, sc, mu, su, w: (1 + w) * mc / sc**2 + w * mu / su**2),
            "your precision knows that the density of all the data is divided by; the term with x has a plus there"),
    Mistake("means without variances", _tilt(moment=lambda mc, sc, mu, su, w: (1 + w) * mc - w * mu),
            "the coefficient of x is m over s squared; you mix the means alone"),
    Mistake("half kept", _tilt(lambda sc, su, w: ((1 + w) / sc**2 - w / su**2) / 2),
            "your precision has kept the 1/2 of the exponent, but what it is compared with has one as well"),
    Mistake("mean of all the data forgotten", _tilt(moment=lambda mc, sc, mu, su, w: (1 + w) * mc / sc**2),
            "the mean of all the data does not enter: it is 0 in the chapter, but not here"),
    Mistake("the scale for w", _tilt(lambda sc, su, w: w / sc**2 + (1 - w) / su**2,
                                     lambda mc, sc, mu, su, w: w * mc / sc**2 + (1 - w) * mu / su**2),
            "your weights are w and 1 - w, the other convention; here they are 1 + w and -w"),
], tips=["write both exponents as -x^2/(2 s^2) + x m/s^2 + const, and add them up with weights 1+w and -w",
         "the factor of -x^2/2 is one over the variance; the factor of x is the mean over the variance"])


# --- 6.6 -------------------------------------------------------------------------------------------------------------

def right_weight(sigma_bar: Tensor, w: float, s_c: float, s_u: float) -> Tensor:
    """The weight at noise level sigma/alpha with which guidance samples the tilted Gaussian: w at none, less at more."""
    v = 1 / ((1 + w) / s_c**2 - w / s_u**2)
    return w * (1 + sigma_bar**2 / s_u**2) / (1 + sigma_bar**2 / v)


def noise_levels(generator: torch.Generator) -> Iterator[tuple]:
    for B in (1, 1, 5, 9):
        s_c = between(generator, 0.3, 0.9).item()
        yield between(generator, 0.0, 3.0, B), between(generator, 0.5, 5.0).item(), s_c, s_c * between(generator, 1.3, 3.0).item()


def _solved(v=None, target=None, solve=None):
    """The weight with v, the wanted slope, or the solution for it replaced. a and b are the two noisy variances."""
    v = v or (lambda w, sc, su: 1 / ((1 + w) / sc**2 - w / su**2))
    target = target or (lambda v, n: 1 / (v + n))
    solve = solve or (lambda want, a, b: (want - 1 / a) / (1 / a - 1 / b))
    return lambda sigma_bar, w, s_c, s_u: solve(
        target(v(w, s_c, s_u), sigma_bar**2), s_c**2 + sigma_bar**2, s_u**2 + sigma_bar**2)


WEIGHT = Exercise("6.6", "The right weight for every noise level", right_weight, noise_levels, [
    Mistake("constant", lambda sigma_bar, w, s_c, s_u: w + 0 * sigma_bar,
            "that is the constant weight; it is right at no noise only"),
    Mistake("no noise on the tilted", _solved(target=lambda v, n: 1 / v + 0 * n),
            "the tilted density is noised like the others: sigma-bar^2 is added to its variance too"),
    Mistake("precision for v", _solved(v=lambda w, sc, su: (1 + w) / sc**2 - w / su**2),
            "what you take for v is one over it"),
    Mistake("noise on the precision", _solved(target=lambda v, n: 1 / v + n),
            "noise adds to the variance v, not to its inverse"),
    Mistake("standard deviation for variance", _solved(target=lambda v, n: 1 / (v**0.5 + n)),
            "in v + sigma-bar^2 the v is a variance, not its root"),
    Mistake("sigma not squared", lambda sigma_bar, w, s_c, s_u: right_weight(sigma_bar.sqrt(), w, s_c, s_u),
            "you added the standard deviation of the noise where its variance belongs"),
    Mistake("multiplied", _solved(solve=lambda want, a, b: (want - 1 / a) * (1 / a - 1 / b)),
            "you multiply by the factor of the unknown; divide by it"),
    Mistake("sign", _solved(solve=lambda want, a, b: (1 / a - want) / (1 / a - 1 / b)),
            "your weight is negative: check the sign when you bring 1/a to the other side"),
    Mistake("upside down", _solved(solve=lambda want, a, b: (1 / a - 1 / b) / (want - 1 / a)),
            "your fraction stands on its head"),
    Mistake("1/a not brought over", _solved(solve=lambda want, a, b: want / (1 / a - 1 / b)),
            "one of the terms is free of w: bring 1/a to the other side first"),
    Mistake("the scale", _solved(solve=lambda want, a, b: (want - 1 / b) / (1 / a - 1 / b)),
            "that is 1 + w, the scale of the other convention"),
    Mistake("plus", _solved(solve=lambda want, a, b: (want - 1 / a) / (1 / a + 1 / b)),
            "the density of all the data enters with a minus sign: 1/a - 1/b"),
    Mistake("variances for precisions", _solved(target=lambda v, n: v + n, solve=lambda want, a, b: (want - a) / (a - b)),
            "(6.8) compares one over the variances; you compare the variances"),
    Mistake("brackets", _solved(solve=lambda want, a, b: want - 1 / a / (1 / a - 1 / b)),
            "Python divides before it subtracts: the numerator belongs in brackets"),
    Mistake("no noise in a and b", lambda sigma_bar, w, s_c, s_u: (
        1 / (1 / ((1 + w) / s_c**2 - w / s_u**2) + sigma_bar**2) - 1 / s_c**2) / (1 / s_c**2 - 1 / s_u**2),
            "a and b are the variances at the noise level asked for: sigma-bar^2 is missing in both"),
    Mistake("sigma not squared in v's term", _solved(target=lambda v, n: 1 / (v + n.sqrt())),
            "what is added to v is the variance of the noise; in a and b you have it right"),
    Mistake("w for 1 + w", _solved(v=lambda w, sc, su: 1 / (w / sc**2 - w / su**2)),
            "your v is that of the exponents w and -w; the class has 1 + w"),
    Mistake("plus in v", _solved(v=lambda w, sc, su: 1 / ((1 + w) / sc**2 + w / su**2)),
            "in v the density of all the data is divided by, so its term is subtracted"),
], tips=["sort (6.8) by the unknown: 1/a + w_sigma (1/a - 1/b) = 1/(v + sigma-bar^2)",
         "v comes from (6.6), with the w that is wanted at the end"])


EXERCISES = [DROP, GUIDED, NEGATIVE, CLASSIFIER, TILTED, WEIGHT]

PREDICTIONS = [
    Prediction("6.1", "b", {
        "a": "So it would be if classes were told apart by sight; a shirt, a pullover and a coat in 28 x 28 pixels often are not.",
        "b": "Real classes overlap, and the classifier errs; faithful to the data does not mean recognised every time.",
        "c": "It is far better than chance even there: what it cannot tell apart are a few classes, not all.",
    }),
    Prediction("6.2", "b", {
        "a": "So says the formula at t = 0, but the sampler follows the composite at all noise levels, and there it is not the noised tilt.",
        "b": "The tilt's width falls slowly with w; the guided paths' distances shrink by the same factor for each unit of w.",
        "c": "Every noise level pulls the paths together more than the tilted density would want.",
    }),
    Prediction("6.3", "c", {
        "a": "Every unit of weight costs some spread; nothing brings it back.",
        "b": "Overshooting bleaches the pictures, but they stay as typical as can be: the classifier is the last to mind.",
        "c": "Pictures that nobody mistakes are those far from all other classes, and there are fewer kinds of them.",
    }),
]
