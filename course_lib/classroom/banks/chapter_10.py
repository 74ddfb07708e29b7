# Long: a table. Each entry is a wrong answer that learners give, and its hint; one reads the exercise that one looks for.
"""Chapter 10, latent autoencoders: its exercises with their known mistakes, and its predictions."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ...autoencoders import straight_through
from ...schedules import CosineVP, LinearVP
from ..exercises import Exercise, Mistake, Prediction
from .cases import between, normal

# --- 10.1 ------------------------------------------------------------------------------------------------------------

def weighted_elbo_loss(x0: Tensor, x_hat: Tensor, mean: Tensor, log_var: Tensor, sigma2: float, beta: float) -> Tensor:
    """Mean over the batch of |x0 - x_hat|^2/(2 sigma2) + beta KL, both summed over a picture; without the constant."""
    return _elbo(x0, x_hat, mean, log_var, sigma2, beta)


def _kl(mean, log_var):
    return (mean.square() + log_var.exp() - 1 - log_var).flatten(1).sum(1) / 2


def _elbo(x0, x_hat, mean, log_var, sigma2, beta, *, kl=_kl, mix=lambda error, kl, beta: error + beta * kl, over=torch.mean):
    """The loss with one ingredient replaced."""
    return over(mix((x0 - x_hat).square().flatten(1).sum(1) / (2 * sigma2), kl(mean, log_var), beta))


def _unlike(**changes):
    return lambda *case: _elbo(*case, **changes)


def _halved(formula):
    """The loss with half the sum of formula(mean, log_var) for its KL."""
    return _unlike(kl=lambda mean, log_var: formula(mean, log_var).flatten(1).sum(1) / 2)


def round_trips(generator: torch.Generator) -> Iterator[tuple]:
    for shape, latent in (((1, 3), (1, 2)), ((2, 3), (2, 2)), ((5, 3), (5, 2)), ((1, 1, 8, 8), (1, 4, 2, 2)), ((8, 1, 8, 8), (8, 4, 2, 2))):
        yield (normal(generator, *shape), normal(generator, *shape), normal(generator, *latent),
               between(generator, -3, 1, *latent), between(generator, 0.05, 0.8).item(), between(generator, 0.2, 3).item())


LOSS = Exercise("10.1", "Reconstruction and KL", weighted_elbo_loss, round_trips, [
    Mistake("no half", _unlike(kl=lambda mean, log_var: 2 * _kl(mean, log_var)),
            "your KL is twice what it should be: where is the factor 1/2 of (10.2)?"),
    Mistake("averaged over the latents", _unlike(kl=lambda mean, log_var: _kl(mean, log_var) / mean[0].numel()),
            "the reconstruction is summed over the pixels, so the KL must be summed over the latents; a mean shrinks it in secret"),
    Mistake("standard deviation for variance", _halved(lambda mean, log_var: mean.square() + (log_var / 2).exp() - 1 - log_var),
            "tau^2 in (10.2) is a variance; exp(log_var / 2) is a standard deviation"),
    Mistake("logarithm of the standard deviation", _halved(lambda mean, log_var: mean.square() + (2 * log_var).exp() - 1 - 2 * log_var),
            "you double `log_var`, as if it were the logarithm of a standard deviation; it is that of the variance already"),
    Mistake("KL of the whole batch", _unlike(kl=lambda mean, log_var: _kl(mean, log_var).sum()),
            "you add the KL of all pictures to the error of each; a KL belongs to one picture"),
    Mistake("sign of the logarithm", _halved(lambda mean, log_var: mean.square() + log_var.exp() - 1 + log_var),
            "the logarithm has the wrong sign: a posterior that is too narrow must cost something, too"),
    Mistake("without the logarithm", _halved(lambda mean, log_var: mean.square() + log_var.exp() - 1),
            "without its logarithm the KL is smallest at variance 0; it must be smallest, and 0, at variance 1"),
    Mistake("without the one", _halved(lambda mean, log_var: mean.square() + log_var.exp() - log_var),
            "your KL is not 0 where the posterior is the prior: what does it give for mean 0 and variance 1?"),
    Mistake("mean not squared", _halved(lambda mean, log_var: mean + log_var.exp() - 1 - log_var),
            "a negative mean must cost as much as a positive one: the mean enters squared"),
    Mistake("the other way round", _halved(lambda mean, log_var: (1 + mean.square()) / log_var.exp() - 1 + log_var),
            "that is KL(prior, posterior); the loss has KL(posterior, prior), and a KL is not symmetric"),
    Mistake("beta on the reconstruction", _unlike(mix=lambda error, kl, beta: beta * error + kl),
            "your beta multiplies the reconstruction; it is the weight of the KL"),
    Mistake("beta forgotten", _unlike(mix=lambda error, kl, beta: error + kl),
            "the weight beta is nowhere used"),
    Mistake("KL subtracted", _unlike(mix=lambda error, kl, beta: error - beta * kl),
            "the KL is a cost: it is added to the loss"),
    Mistake("sum over the batch", _unlike(over=torch.sum),
            "you add up the pictures of the batch; take their mean"),
    Mistake("quarter", _halved(lambda mean, log_var: (mean.square() + log_var.exp() - 1 - log_var) / 2),
            "your KL has lost another half: (10.2) has one"),
    Mistake("plus one", _halved(lambda mean, log_var: mean.square() + log_var.exp() + 1 - log_var),
            "your KL is not 0 where the posterior is the prior: look at the sign of the 1"),
    Mistake("log_var for the variance", _halved(lambda mean, log_var: mean.square() + log_var - 1 - log_var),
            "`log_var` is the logarithm; the variance itself is its exponential"),
    Mistake("variance squared", _halved(lambda mean, log_var: mean.square() + (2 * log_var).exp() - 1 - log_var),
            "exp(log_var) is tau^2 already, and you square it again"),
    Mistake("half of the logarithm", _halved(lambda mean, log_var: mean.square() + log_var.exp() - 1 - log_var / 2),
            "the logarithm is halved twice: `log_var` is that of the variance, as (10.2) has it"),
    Mistake("without the mean", _halved(lambda mean, log_var: log_var.exp() - 1 - log_var),
            "a code that is far from the prior's middle must cost something: where is mu?"),
    Mistake("beta on both", _unlike(mix=lambda error, kl, beta: beta * (error + kl)),
            "your beta weighs both terms; then it changes nothing but the size of the loss"),
    Mistake("shares", _unlike(mix=lambda error, kl, beta: (1 - beta) * error + beta * kl),
            "beta is no share: the reconstruction keeps its weight 1"),
    Mistake("reconstruction alone", _unlike(mix=lambda error, kl, beta: error),
            "the rate is missing: with this loss an encoder may say as much as it likes"),
    Mistake("KL alone", _unlike(mix=lambda error, kl, beta: beta * kl),
            "the reconstruction is missing: the best code for this loss says nothing"),
], tips=["`mean.square() + log_var.exp() - 1 - log_var` has one number for each latent",
         "`.flatten(1).sum(1)` leaves one number for each picture"])


# --- 10.2 ------------------------------------------------------------------------------------------------------------

def water_filling(values: Tensor, sigma2: float, beta: float) -> tuple[Tensor, Tensor]:
    """w^2 (k,) and posterior variance (k,) for the variances `values` (k,) of the data along its axes; as in `ppca`."""
    kept = values.clamp(min=beta * sigma2)
    return kept - beta * sigma2, beta * sigma2 / kept


def spectra(generator: torch.Generator) -> Iterator[tuple]:
    for k in (1, 2, 4, 9):
        values = between(generator, 0.05, 4, k).sort(descending=True).values
        for beta in (between(generator, 0.05, 0.9).item(), between(generator, 1.1, 3).item()):
            yield values, between(generator, 0.3, 0.8).item(), beta


def _levelled(formula):
    """A wrong answer from formula(values, water level e, sigma2, beta)."""
    return lambda values, sigma2, beta: formula(values, beta * sigma2, sigma2, beta)


KEPT = Exercise("10.2", "What beta keeps", water_filling, spectra, [
    Mistake("no threshold", _levelled(lambda v, e, *_: (v - e, e / v)),
            "a square came out negative: a direction with less variance than the level is shut off, not turned round"),
    Mistake("variance above one", _levelled(lambda v, e, *_: ((v - e).clamp(min=0), e / v)),
            "where a direction is shut off, the latent says nothing, and its posterior is the prior, of variance 1"),
    Mistake("posterior of a shut direction", _levelled(lambda v, e, *_: ((v - e).clamp(min=0), torch.where(v > e, e / v, 0.0))),
            "a direction that is shut off has a posterior of variance 1, which costs no KL; variance 0 would cost infinitely much"),
    Mistake("beta forgotten", _levelled(lambda v, e, s, b: (v.clamp(min=s) - s, s / v.clamp(min=s))),
            "your level is sigma2, whatever beta is"),
    Mistake("beta the wrong way", _levelled(lambda v, e, s, b: (v.clamp(min=s / b) - s / b, (s / b) / v.clamp(min=s / b))),
            "with a larger beta yours keeps more; a larger weight of the KL must keep less"),
    Mistake("kept whole", _levelled(lambda v, e, *_: (torch.where(v > e, v, 0.0), e / v.clamp(min=e))),
            "m is what is kept *and* the level together, w^2 + e; yours takes m for w^2"),
    Mistake("level kept as well", _levelled(lambda v, e, *_: (v.clamp(min=e), e / v.clamp(min=e))),
            "your first result is m, which holds the level, too; what is kept is less, and 0 where a direction is shut off"),
    Mistake("sigma2 forgotten", _levelled(lambda v, e, s, b: (v.clamp(min=b) - b, b / v.clamp(min=b))),
            "your level is beta alone; how large is an error that the decoder expects anyway?"),
    Mistake("length for its square", _levelled(lambda v, e, *_: ((v.clamp(min=e) - e).sqrt(), e / v.clamp(min=e))),
            "you returned w; its square is asked for"),
    Mistake("shares swapped", _levelled(lambda v, e, *_: (v.clamp(min=e) - e, 1 - e / v.clamp(min=e))),
            "your variance is 0 where nothing is said and large where much is: that is the share of the signal, 1 - tau^2"),
    Mistake("over w^2", _levelled(lambda v, e, *_: (v.clamp(min=e) - e, e / (v.clamp(min=e) - e))),
            "the posterior variance divides by w^2 + e, not by w^2"),
    Mistake("noise in the data's units", _levelled(lambda v, e, *_: (v.clamp(min=e) - e, torch.full_like(v, e))),
            "e is the noise in the units of the data; the posterior variance is in the units of the latent"),
    Mistake("standard deviation", _levelled(lambda v, e, *_: (v.clamp(min=e) - e, (e / v.clamp(min=e)).sqrt())),
            "your second result is a standard deviation; the variance tau^2 is asked for"),
    Mistake("level by a sum", _levelled(lambda v, e, s, b: water_filling(v, s + b, 1.0)),
            "your level is sigma2 + beta; e is their product"),
    Mistake("level with a root", _levelled(lambda v, e, s, b: water_filling(v, s**0.5, b)),
            "sigma2 is a variance already; the level has the unit of `values`"),
    Mistake("beta in one of two", _levelled(lambda v, e, s, b: (v.clamp(min=e) - e, s / v.clamp(min=e))),
            "your first result knows beta, your second one does not: it is the same level e"),
    Mistake("smaller for larger", _levelled(lambda v, e, *_: (v.clamp(max=e) - e, e / v.clamp(max=e))),
            "m is the *larger* of variance and level; torch's `clamp(max=e)` keeps what is below"),
    Mistake("absolute value", _levelled(lambda v, e, *_: ((v - e).abs(), e / v.clamp(min=e))),
            "below the level you keep something again, by an absolute value; such a direction is shut off"),
    Mistake("variance untouched", _levelled(lambda v, e, *_: (v.clone(), e / v.clamp(min=e))),
            "you keep every direction whole; the level is taken off, and what is below it is given up"),
    Mistake("upside down", _levelled(lambda v, e, *_: (v.clamp(min=e) - e, v.clamp(min=e) / e)),
            "your posterior is wider than the prior; it says less the *more* it knows: turn the fraction round"),
    Mistake("order", _levelled(lambda v, e, *_: (e / v.clamp(min=e), v.clamp(min=e) - e)), "w^2 comes first, then tau^2"),
    Mistake("the rate", _levelled(lambda v, e, *_: (v.clamp(min=e) - e, (v.clamp(min=e) / e).log() / 2)),
            "your second result is the KL of (10.4), in nats; its variance is asked for"),
    Mistake("one level for all", _levelled(lambda v, e, *_: (v.max().clamp(min=e) - e + 0 * v, e / v.max().clamp(min=e) + 0 * v)),
            "you compare the largest variance only; every direction has its own m"),
], tips=["`values.clamp(min=e)` is m, for all directions at once", "w^2 = m - e, and tau^2 = e/m"])


# --- 10.3 ------------------------------------------------------------------------------------------------------------

def unit_latents(z: Tensor) -> Tensor:
    """z (N, C, *sides) with mean 0 and variance 1 in every channel; what `fit_scale` does to an autoencoder."""
    std, mean = torch.std_mean(z, [0, *range(2, z.ndim)], keepdim=True)
    return (z - mean) / std


def raw_latents(generator: torch.Generator) -> Iterator[tuple]:
    for shape in ((400, 2), (300, 3), (2, 2, 32, 32), (6, 4, 16, 16), (16, 3, 8, 8)):
        rows = [1, shape[1], *[1] * (len(shape) - 2)]
        yield (between(generator, -2, 2, *rows) + between(generator, 0.2, 4, *rows) * normal(generator, *shape),)


def _over(axes, formula=lambda z, mean, std: (z - mean) / std):
    """A wrong answer with statistics over axes(z), combined by the formula."""
    def wrong(z):
        std, mean = torch.std_mean(z, axes(z), keepdim=True)
        return formula(z, mean, std)
    return wrong


def _per_channel(z):
    return [0, *range(2, z.ndim)]


SCALE = Exercise("10.3", "Latents of unit variance", unit_latents, raw_latents, [
    Mistake("one number for all", _over(lambda z: list(range(z.ndim))),
            "you took one mean and one standard deviation for all channels; each channel has its own"),
    Mistake("every place alone", _over(lambda z: [0]),
            "you have a mean and a standard deviation for every pixel of the latent; all pixels of a channel share them"),
    Mistake("every picture alone", _over(lambda z: [1] if z.ndim == 2 else [2, 3]),
            "you normalise each picture by itself, and so lose how bright it was; the scale belongs to the whole data set"),
    Mistake("every row alone", _over(lambda z: list(range(1, z.ndim))),
            "you take the statistics of one row of the data over its channels; take them over all rows, and leave the channels apart"),
    Mistake("names exchanged", _over(_per_channel, lambda z, mean, std: (z - std) / mean),
            "you subtract a spread and divide by a mean: in which order does `torch.std_mean` return them?"),
    Mistake("not centred", _over(_per_channel, lambda z, mean, std: z / std),
            "the channels have unit variance and are not centred: the noise at t = 1 is, so the latents should be"),
    Mistake("only centred", _over(_per_channel, lambda z, mean, std: z - mean),
            "the channels are centred, and have the variance that they had"),
    Mistake("variance", _over(_per_channel, lambda z, mean, std: (z - mean) / std**2),
            "you divide by the variance; a spread is undone by the standard deviation"),
    Mistake("multiplied", _over(_per_channel, lambda z, mean, std: (z - mean) * std),
            "you multiply by the standard deviation: what was wide is now wider"),
    Mistake("mean after the division", _over(_per_channel, lambda z, mean, std: z / std - mean),
            "centre first, then divide: after the division the mean is another one"),
    Mistake("brackets", _over(_per_channel, lambda z, mean, std: z - mean / std),
            "Python divides before it subtracts: the difference belongs in brackets"),
    Mistake("turned round", _over(_per_channel, lambda z, mean, std: (mean - z) / std),
            "your latents are turned round: it is z minus its mean"),
    Mistake("mean added", _over(_per_channel, lambda z, mean, std: (z + mean) / std),
            "you add the mean, and so shift the latents by twice as much as they were off"),
    Mistake("root of the spread", _over(_per_channel, lambda z, mean, std: (z - mean) / std.sqrt()),
            "`torch.std_mean` returns a standard deviation; no root is left to take"),
    Mistake("spread around zero", _over(_per_channel, lambda z, mean, std: (z - mean) / (std**2 + mean**2).sqrt()),
            "your spread is measured around 0; a standard deviation is measured around the mean"),
    Mistake("one spread for all", _over(_per_channel, lambda z, mean, std: (z - mean) / z.std()),
            "each channel has its own mean, but one standard deviation serves all"),
    Mistake("one mean for all", _over(_per_channel, lambda z, mean, std: (z - z.mean()) / std),
            "each channel has its own standard deviation, but one mean serves all"),
    Mistake("between 0 and 1", _over(_per_channel, lambda z, mean, std: (z - z.amin(_per_channel(z), keepdim=True)) / (
        z.amax(_per_channel(z), keepdim=True) - z.amin(_per_channel(z), keepdim=True))),
            "you stretch the range from 0 to 1, which two outliers decide; mean 0 and variance 1 are asked for"),
    Mistake("one number, of another model", lambda z: 0.18215 * z,
            "that is Stable Diffusion's number; these latents have numbers of their own, to be measured"),
], tips=["`torch.std_mean(z, axes, keepdim=True)`: the axes are all but the one of the channels",
         "all axes but 1 are `[0, *range(2, z.ndim)]`"], rtol=0.01, atol=0.01)


# --- 10.4 ------------------------------------------------------------------------------------------------------------

def round_to_codes(z: Tensor, e: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """What the decoder sees (B, C), with the gradient of z, and the penalty (): |sg(z) - e|^2 + beta |z - sg(e)|^2, a mean over rows."""
    return straight_through(z, e), _penalty(z.detach() - e, z - e.detach(), beta)


def _punished(penalty):
    """The right input of the decoder, and another penalty(z, e, beta) (B, C)."""
    return lambda z, e, beta: (straight_through(z, e), penalty(z, e, beta).sum(1).mean())


def _penalty(of_codes, of_latents, beta):
    return (of_codes.square() + beta * of_latents.square()).sum(1).mean()


def _values_and_gradients(function, z: Tensor, e: Tensor, beta: float, pull: Tensor) -> tuple[Tensor, ...]:
    """Both results, and how latents and codes are moved by the decoder, which pulls at its input, and by the penalty."""
    z, e = z.requires_grad_(), e.requires_grad_()
    results = function(z, e, beta)
    if not isinstance(results, (tuple, list)) or [type(result) for result in results] != [Tensor, Tensor]:
        raise ValueError("expected two tensors, the decoder's input and the penalty")
    seen, penalty = results
    gradients = []
    for scalar in ((seen * pull).sum(), penalty.sum()):
        found = torch.autograd.grad(scalar, (z, e), allow_unused=True, retain_graph=True) if scalar.requires_grad else (None, None)
        gradients += [torch.zeros_like(z) if g is None else g for g in found]
    return seen.detach(), penalty.detach(), *gradients


def pairs_of_vectors(generator: torch.Generator) -> Iterator[tuple]:
    for shape in ((1, 2), (2, 2), (5, 3), (9, 4)):
        z = normal(generator, *shape)
        yield z, z + 0.4 * normal(generator, *shape), between(generator, 0.1, 0.6).item(), normal(generator, *shape)


ROUND = Exercise("10.4", "Rounding that lets gradients through", round_to_codes, pairs_of_vectors, [
    Mistake("no way through", lambda z, e, beta: (e, round_to_codes(z, e, beta)[1]),
            "the decoder sees the codes, but none of its gradient reaches z: z + (e - z) is just e, unless something in it is held still"),
    Mistake("codes cut off as well", lambda z, e, beta: (e.detach(), round_to_codes(z, e, beta)[1]),
            "no gradient of the decoder comes through: it must pass to z as if nothing had been rounded"),
    Mistake("not rounded", lambda z, e, beta: (z, round_to_codes(z, e, beta)[1]),
            "the decoder sees z itself: nothing is rounded"),
    Mistake("the wrong way round", lambda z, e, beta: (e + (z - e).detach(), round_to_codes(z, e, beta)[1]),
            "yours has the value of z and the gradient of e; it must be the other way round"),
    Mistake("z held, difference free", lambda z, e, beta: (z.detach() + (e - z), round_to_codes(z, e, beta)[1]),
            "the value is right, but z gets the decoder's gradient with the wrong sign, and e gets it, too: hold still what is not to move"),
    Mistake("difference turned round", lambda z, e, beta: (z + (z - e).detach(), round_to_codes(z, e, beta)[1]),
            "the decoder sees a point beyond z, away from its code: which difference leads from z to e?"),
    Mistake("beta on the wrong term", lambda z, e, beta: (straight_through(z, e), _penalty(beta**0.5 * (z.detach() - e), (z - e.detach()) / beta**0.5, beta)),
            "your beta is on the wrong term: it weakens the pull on the latents, and codes follow at full weight"),
    Mistake("nothing held in the penalty", lambda z, e, beta: (straight_through(z, e), _penalty(z - e, z - e, beta)),
            "both terms of your penalty pull at both: in each of them one side must be held still"),
    Mistake("codes never move", lambda z, e, beta: (straight_through(z, e), _penalty(0 * e, z - e.detach(), beta)),
            "nothing pulls the codes to the latents: the first term is missing"),
    Mistake("latents are free", lambda z, e, beta: (straight_through(z, e), _penalty(z.detach() - e, 0 * z, beta)),
            "nothing holds the latents to their codes: the commitment term is missing"),
    Mistake("everything held still", lambda z, e, beta: (straight_through(z, e), _penalty((z - e).detach(), (z - e).detach(), beta)),
            "the penalty has the right value and moves nothing: in each term only one side is held still"),
    Mistake("mean over the numbers", lambda z, e, beta: (straight_through(z, e), round_to_codes(z, e, beta)[1] / z.shape[1]),
            "you took the mean over the numbers of a vector; take their sum, and the mean over the rows alone"),
    Mistake("sum over the rows", lambda z, e, beta: (straight_through(z, e), round_to_codes(z, e, beta)[1] * len(z)),
            "you add up the rows; take their mean"),
    Mistake("gradient to the codes", lambda z, e, beta: (e + z - z.detach(), round_to_codes(z, e, beta)[1]),
            "the value is right, but the decoder's gradient moves the codes as well: e must be held still, too"),
    Mistake("half-way", lambda z, e, beta: ((z + e) / 2, round_to_codes(z, e, beta)[1]),
            "the decoder sees a point half-way between z and its code; it must see the code"),
    Mistake("beta forgotten", _punished(lambda z, e, beta: (z.detach() - e).square() + (z - e.detach()).square()),
            "both terms pull alike: beta is nowhere used"),
    Mistake("beta on both", _punished(lambda z, e, beta: beta * ((z.detach() - e).square() + (z - e.detach()).square())),
            "your beta weakens both terms; it belongs to the commitment alone"),
    Mistake("minus", _punished(lambda z, e, beta: (z.detach() - e).square() - beta * (z - e.detach()).square()),
            "your second term is subtracted, and drives the latents away from their codes"),
    Mistake("only the commitment held", _punished(lambda z, e, beta: (z - e).square() + beta * (z - e.detach()).square()),
            "your first term moves z as well: there z is to be held still"),
    Mistake("only the codes' term held", _punished(lambda z, e, beta: (z.detach() - e).square() + beta * (z - e).square()),
            "your second term moves e as well: there e is to be held still"),
    Mistake("z held in both", _punished(lambda z, e, beta: (1 + beta) * (z.detach() - e).square()),
            "both of your terms hold z still, so only codes move: the two hold different sides"),
    Mistake("e held in both", _punished(lambda z, e, beta: (1 + beta) * (z - e.detach()).square()),
            "both of your terms hold e still, so only latents move: the two hold different sides"),
    Mistake("not squared", _punished(lambda z, e, beta: (z.detach() - e).abs() + beta * (z - e.detach()).abs()),
            "the differences are not squared"),
    Mistake("half", _punished(lambda z, e, beta: ((z.detach() - e).square() + beta * (z - e.detach()).square()) / 2),
            "half the penalty: (10.8) has no factor 1/2"),
], tips=["`x.detach()` has the value of x, and no gradient", "for the decoder: z plus a difference that is held still"],
    call=_values_and_gradients)


# --- 10.5 ------------------------------------------------------------------------------------------------------------

def least_loss(variances: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Least loss (T,) of any prediction of v, summed over latents N(0, diag variances (C,)), at levels alpha, sigma (T,)."""
    return _least(variances, alpha, sigma)


def _least(variances, alpha, sigma, formula=lambda s2, a, s: s2 / (a**2 * s2 + s**2), over=lambda each: each.sum(1)):
    return over(formula(variances, alpha[:, None], sigma[:, None]))


def _else(formula):
    return lambda *case: _least(*case, formula)


def spreads(generator: torch.Generator) -> Iterator[tuple]:
    for C, T in ((1, 1), (1, 5), (3, 1), (4, 4), (2, 7)):
        for schedule in (CosineVP(), LinearVP()):
            t = between(generator, 0.05, 0.95, T)
            yield between(generator, 0.05, 4, C), schedule.alpha(t), schedule.sigma(t)


LEAST = Exercise("10.5", "What a perfect denoiser cannot know", least_loss, spreads, [
    Mistake("of the noise", _else(lambda s2, a, s: a**2 * s2 / (a**2 * s2 + s**2)),
            "that is the least loss of a network that predicts the noise; for v, divide the variance of x_0 by sigma^2"),
    Mistake("of the picture", _else(lambda s2, a, s: s**2 * s2 / (a**2 * s2 + s**2)),
            "that is the variance of x_0 given x_t; an error of x_0 is sigma times an error of v"),
    Mistake("an error for its square", _else(lambda s2, a, s: s * s2 / (a**2 * s2 + s**2)),
            "you divide the variance of x_0 by sigma; errors divide by sigma, so variances by its square"),
    Mistake("the prior's variance", _else(lambda s2, a, s: s2 / s**2 + 0 * a),
            "that is what is unknown before x_t was seen; seeing it, one knows more"),
    Mistake("signal not faded", _else(lambda s2, a, s: s2 / (s2 + s**2)),
            "the signal in x_t has faded: its variance is alpha^2 times that of x_0"),
    Mistake("alpha not squared", _else(lambda s2, a, s: s2 / (a * s2 + s**2)),
            "a factor comes out of a variance squared: look at what alpha does to the variance of the latent"),
    Mistake("standard deviation", _else(lambda s2, a, s: s2.sqrt() / (a**2 * s2.sqrt() + s**2)),
            "`variances` holds variances already; you treat them as if a root were due"),
    Mistake("variance squared", _else(lambda s2, a, s: s2**2 / (a**2 * s2**2 + s**2)),
            "`variances` holds variances already; there is nothing to square"),
    Mistake("variance of x_t", _else(lambda s2, a, s: a**2 * s2 + s**2),
            "that is the variance of x_t; asked is what remains unknown when x_t is seen"),
    Mistake("mean over the channels", lambda *case: _least(*case, over=lambda each: each.mean(1)),
            "you took the mean over the channels; all of them must be predicted, so their losses add"),
    Mistake("sum over the times", lambda *case: _least(*case, over=lambda each: each.sum(0)),
            "you added up the times; the sum is over the channels, and each time has its own loss"),
    Mistake("sigma not squared", _else(lambda s2, a, s: s2 / (a**2 * s2 + s)),
            "the noise enters with its variance, and you put its standard deviation"),
    Mistake("levels exchanged", _else(lambda s2, a, s: s2 / (s**2 * s2 + a**2)),
            "alpha and sigma have changed places"),
    Mistake("ratio not squared", _else(lambda s2, a, s: 1 / (s**2 / s2 + a * s)),
            "the precision of what is seen is the *square* of alpha over sigma"),
    Mistake("precision", _else(lambda s2, a, s: 1 / s2 + a**2 / s**2),
            "that is the precision of x_0 when x_t is seen; its inverse is the variance, to be divided by sigma^2"),
    Mistake("upside down", _else(lambda s2, a, s: (a**2 * s2 + s**2) / s2),
            "your fraction stands on its head"),
    Mistake("variances added", _else(lambda s2, a, s: (s2 + s**2 / a**2) / s**2),
            "you add variances; two pieces of knowledge about one number add their *precisions*"),
    Mistake("nothing known beforehand", _else(lambda s2, a, s: 1 / a**2 + 0 * s2),
            "you use what is seen alone; that the latent has the variance c^2 is known beforehand"),
    Mistake("variance of v", _else(lambda s2, a, s: a**2 + s**2 * s2),
            "that is the variance of v itself, before x_t is seen"),
    Mistake("one latent of all the variance", lambda variances, *levels: least_loss(variances.sum(0, keepdim=True), *levels),
            "you add the variances first, as if there were one latent; add the losses"),
    Mistake("mean variance", lambda variances, *levels: len(variances) * least_loss(variances.mean(0, keepdim=True), *levels),
            "you use the mean variance for every channel; the loss is no straight line in the variance"),
    Mistake("half", _else(lambda s2, a, s: s2 / (a**2 * s2 + s**2) / 2),
            "half the loss: a squared error has no factor 1/2 here"),
], tips=["the variance of x_0 given x_t is 1/(1/s^2 + alpha^2/sigma^2)",
         "`alpha[:, None]` (T, 1) and `variances` (C,) broadcast to (T, C)"])


# --- 10.6 ------------------------------------------------------------------------------------------------------------

def soft_rounding(x: Tensor, codes: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """E[x_0 | x_t = x] (B, d) where x_0 is one of the codes (K, d), all alike likely; alpha, sigma ()."""
    return _soft(x, codes, alpha, sigma)


def _soft(x, codes, alpha, sigma, logits=lambda d2, sigma: -d2 / (2 * sigma**2), centre=lambda codes, alpha: alpha * codes,
          weights=lambda logits: logits.softmax(1)):
    return weights(logits(torch.cdist(x, centre(codes, alpha)).square(), sigma)) @ codes


def _rounded(**changes):
    return lambda *case: _soft(*case, **changes)


def noisy_codes(generator: torch.Generator) -> Iterator[tuple]:
    for B, K, d in ((1, 2, 2), (2, 5, 3), (5, 5, 2), (7, 20, 4)):
        for schedule in (CosineVP(), LinearVP()):
            t = between(generator, 0.3, 0.75)
            codes, alpha, sigma = normal(generator, K, d), schedule.alpha(t), schedule.sigma(t)
            start = codes[torch.randint(K, (B,), generator=generator)]
            yield alpha * start + sigma * normal(generator, B, d), codes, alpha, sigma
    t = torch.tensor(0.05, dtype=torch.float64)                                         # and far from all codes
    yield 6 * normal(generator, 3, 4), normal(generator, 5, 4), CosineVP().alpha(t), CosineVP().sigma(t)


SOFT = Exercise("10.6", "The denoiser of a vocabulary", soft_rounding, noisy_codes, [
    Mistake("the nearest", _rounded(weights=lambda logits: torch.nn.functional.one_hot(logits.argmax(1), logits.shape[1]).to(logits)),
            "that is rounding to the one nearest code; the mean counts all codes, each by its probability"),
    Mistake("codes not faded", _rounded(centre=lambda codes, alpha: codes),
            "x_t is compared with the codes as they are; in x_t each code has faded to alpha times itself"),
    Mistake("noise not rescaled", lambda x, codes, alpha, sigma: _soft(x / alpha, codes, 1.0, sigma),
            "you divide x by alpha, which may be done, but it divides the noise in x as well: how large is it then?"),
    Mistake("result faded", lambda x, codes, alpha, sigma: alpha * _soft(x, codes, alpha, sigma),
            "the probabilities are right, but the mean is of the codes themselves, not of the faded ones"),
    Mistake("two forgotten", _rounded(logits=lambda d2, sigma: -d2 / sigma**2),
            "in the exponent of a Gaussian stands the square over *twice* the variance"),
    Mistake("sigma not squared", _rounded(logits=lambda d2, sigma: -d2 / (2 * sigma)),
            "in the exponent stands the variance, and you put the standard deviation"),
    Mistake("distance not squared", _rounded(logits=lambda d2, sigma: -d2.sqrt() / (2 * sigma**2)),
            "the exponent has the *square* of the distance"),
    Mistake("sign", _rounded(logits=lambda d2, sigma: d2 / (2 * sigma**2)),
            "with you the farthest code is the most probable: look at the sign of the exponent"),
    Mistake("noise level forgotten", _rounded(logits=lambda d2, sigma: -d2 / 2),
            "your probabilities do not know how noisy x is: where does sigma enter?"),
    Mistake("in linear space", _rounded(weights=lambda logits: logits.exp() / logits.exp().sum(1, keepdim=True)),
            "far from all codes, with little noise, every exp() is 0, and 0/0 is NaN; softmax takes the largest exponent off first"),
    Mistake("over the batch", _rounded(weights=lambda logits: logits.softmax(0)),
            "your probabilities add up to one over the rows of the batch; they must do so over the codes"),
    Mistake("not normalised", _rounded(weights=lambda logits: logits.exp()),
            "these are likelihoods; probabilities of the codes add up to one"),
    Mistake("plain mean", _rounded(logits=lambda d2, sigma: 0 * d2),
            "you averaged all codes alike, whatever x is"),
    Mistake("distance by sigma", _rounded(logits=lambda d2, sigma: -d2.sqrt() / sigma),
            "the exponent of a Gaussian is a *squared* distance over twice the *variance*"),
    Mistake("brackets", _rounded(logits=lambda d2, sigma: -d2 / 2 * sigma**2),
            "Python goes from left to right: what is divided by 2 and then multiplied by sigma^2 is not divided by it"),
    Mistake("inner product", lambda x, codes, alpha, sigma: (alpha * x @ codes.T / sigma**2).softmax(1) @ codes,
            "an inner product stands for the distance only if all codes are of the same length: the square of each code is missing"),
    Mistake("likelihoods in a softmax", _rounded(weights=lambda logits: logits.exp().softmax(1)),
            "a softmax takes the exponential itself: give it the exponents, not the likelihoods"),
    Mistake("logarithms", _rounded(weights=lambda logits: logits.log_softmax(1)),
            "these are the logarithms of the probabilities; a mean is weighted by the probabilities themselves"),
    Mistake("all made one", _rounded(weights=lambda logits: logits.exp() / logits.exp().sum()),
            "your probabilities add up to one over the whole table; they must do so for every row"),
    Mistake("x faded once more", lambda x, codes, alpha, sigma: _soft(x * alpha, codes, 1.0, sigma),
            "you multiply x by alpha; it holds faded codes already, and it is the codes that must be faded to meet it"),
    Mistake("codes stretched", _rounded(centre=lambda codes, alpha: codes / alpha),
            "you stretch the codes; in x_t they have faded"),
    Mistake("result stretched", lambda x, codes, alpha, sigma: _soft(x, codes, alpha, sigma) / alpha,
            "the probabilities are right, but the codes need no stretching: their mean is the answer"),
    Mistake("score", lambda x, codes, alpha, sigma: (alpha * _soft(x, codes, alpha, sigma) - x) / sigma**2,
            "that is the score; asked for is the mean of x_0"),
], tips=["`torch.cdist(x, alpha * codes)` are the distances (B, K)", "`softmax(1)` makes probabilities of the exponents, safely"])


EXERCISES = [LOSS, KEPT, SCALE, ROUND, LEAST, SOFT]

PREDICTIONS = [
    Prediction("10.1", "b", {
        "a": "A prior that is fixed in advance needs latents that look like it, and the weakest KL does nothing for that.",
        "b": "The fixed prior wants a compromise; the learnt one takes any latents, so it is best where least was thrown away.",
        "c": "A strong KL does make the latents Gaussian, and it does so by making them say little: the pictures blur.",
    }),
    Prediction("10.2", "b", {
        "a": "Only the ratio of signal and noise matters, but a schedule has a fixed range of it, and trains most in the middle.",
        "b": "Small latents drown early: at most times the network sees noise alone, and the last noise of the path is large for them.",
        "c": "Large latents shine through the noise for too long, which wastes times; but at some of them the work gets done.",
    }),
    Prediction("10.3", "b", {
        "a": "The loss does improve. But it can be made small without any progress: by latents that are small.",
        "b": "The loss is lowest for latents that say least, and the encoder obliges, as far as the reconstruction lets it.",
        "c": "The encoder works for the loss, not against it: it finds latents that are cheaper to predict.",
    }),
]
