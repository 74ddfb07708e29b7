# Long: a table. Each entry is a wrong answer that learners give, and its hint; one reads the exercise that one looks for.
"""Chapter 11, latent diffusion: its exercises with their known mistakes, and its predictions."""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

from ...autoencoders import Autoencoder
from ...denoiser import Denoiser, guided, levels, per_row
from ...fast_samplers import ddim, dpm_solver_pp
from ...measure.emoji import ranks
from ...sampling import last
from ...schedules import CosineVP, Flow, LinearVP, Schedule, log_snr_to_zero
from ...text import LENGTH
from ..exercises import Exercise, Mistake, Prediction
from .cases import between, normal

WORDS = 7  # in the vocabulary of the cases


def captions_of(B: int, generator: torch.Generator) -> Tensor:
    """B captions (B, 12) of one to four words, at the front."""
    cond = torch.randint(0, WORDS, (B, LENGTH), generator=generator)
    lengths = torch.randint(1, 5, (B, 1), generator=generator)
    return torch.where(torch.arange(LENGTH) < lengths, cond, -1)


# --- 11.1 ------------------------------------------------------------------------------------------------------------

def gist(cond: Tensor, vectors: Tensor) -> Tensor:
    """The mean (B, d) of the vectors (V, d) of those words of captions (B, 12) that are there; 0 for an empty caption."""
    return _gist(cond, vectors)


def _there(cond):
    return (cond >= 0)[..., None].float()


def _gist(cond, vectors, *, there=_there, look=lambda cond: cond.clamp(min=0), mask=lambda x, there: x * there,
          over=lambda total, there: total / there.sum(1).clamp(min=1)):
    """The mean with one ingredient replaced."""
    return over(mask(vectors[look(cond)], there(cond)).sum(1), there(cond))


def _said(**changes):
    return lambda *case: _gist(*case, **changes)


def worded(generator: torch.Generator) -> Iterator[tuple]:
    for B, d in ((1, 2), (2, 3), (5, 8), (12, 4)):
        vectors = normal(generator, WORDS, d)
        yield captions_of(B, generator), vectors
        yield torch.cat([captions_of(B, generator), torch.full((1, LENGTH), -1)]), vectors


GIST = Exercise("11.1", "The gist of a caption", gist, worded, [
    Mistake("minus one is the last word", _said(mask=lambda x, there: x, look=lambda cond: cond,
                                                over=lambda total, there: total / LENGTH),
            "`vectors[-1]` is the vector of the last word of the list: a place without a word must not count"),
    Mistake("minus one is the first word", _said(mask=lambda x, there: x, over=lambda total, there: total / LENGTH),
            "with you, every place without a word says word number 0: after looking up, it must be struck out"),
    Mistake("last word added", _said(mask=lambda x, there: x, look=lambda cond: cond),
            "you divide by the right number, but the sum has the last word of the list wherever there is none"),
    Mistake("first word added", _said(mask=lambda x, there: x),
            "you divide by the right number, but the sum has word number 0 wherever there is none"),
    Mistake("divided by twelve", _said(over=lambda total, there: total / LENGTH),
            "you divide by the twelve places; a caption of one word would be a twelfth of that word"),
    Mistake("divided twice", _said(over=lambda total, there: total / LENGTH / there.sum(1).clamp(min=1)),
            "your first line is a mean over the twelve places already, and you divide it once more by the number of words"),
    Mistake("the words of the batch", _said(over=lambda total, there: total / there.sum().clamp(min=1)),
            "you divide by the words of all captions together; each counts its own"),
    Mistake("one word more", _said(over=lambda total, there: total / (there.sum(1) + 1)),
            "you divide by one word more than there is: the divisor is to be *at least* 1, and not one more"),
    Mistake("divided by the captions", _said(over=lambda total, there: total / len(total)),
            "you divide by the number of captions; asked for is a mean over the words of each"),
    Mistake("root of the number", _said(over=lambda total, there: total / there.sum(1).clamp(min=1).sqrt()),
            "you divide by the root of the number of words; a mean divides by the number"),
    Mistake("at most one", _said(over=lambda total, there: total / there.sum(1).clamp(max=1)),
            "`clamp(max=1)` keeps what is below 1; the divisor must be *at least* 1"),
    Mistake("what is not there", _said(there=lambda cond: (cond < 0)[..., None].float(), over=lambda total, there: (
        total / (LENGTH - there.sum(1)).clamp(min=1))),
            "you add up the places where no word is"),
    Mistake("sum", _said(over=lambda total, there: total),
            "that is the sum; a long caption would shout"),
    Mistake("nothing divided by nothing", _said(over=lambda total, there: total / there.sum(1)),
            "an empty caption gives 0/0: what must the divisor be at least?"),
    Mistake("word 0 left out", _said(there=lambda cond: (cond > 0)[..., None].float()),
            "you leave out word number 0, which is a word like any other; the sign for none is -1"),
    Mistake("one length for all", _said(over=lambda total, there: total / there.sum(1).mean()),
            "you divide all captions by their mean length; each has its own"),
    Mistake("over the batch", lambda cond, vectors: (vectors[cond.clamp(min=0)] * _there(cond)).sum(0)[:len(cond)],
            "you add over the captions of the batch; add over the words of each, axis 1"),
    Mistake("length one", _said(over=lambda total, there: nn.functional.normalize(total, dim=1)),
            "you made vectors of length 1; a mean of words that disagree is shorter, and should be"),
], tips=["`there = cond >= 0`, as numbers of the shape (B, 12, 1)", "`vectors[cond.clamp(min=0)]` has the shape (B, 12, d)"])


# --- 11.2 ------------------------------------------------------------------------------------------------------------

def drop_captions(captions: Tensor, u: Tensor, p: float) -> Tensor:
    """captions (B, 12) with -1 in all places of the rows whose uniform draw u (B,) is below p."""
    return torch.where((u < p)[:, None], -1, captions)


def _only(places: slice):
    def wrong(captions, u, p):
        dropped = captions.clone()
        dropped[:, places] = torch.where((u < p)[:, None], -1, captions[:, places])
        return dropped
    return wrong


def captioned(generator: torch.Generator) -> Iterator[tuple]:
    for B, p in ((1, 0.5), (2, 0.5), (LENGTH, 0.4), (9, 0.3), (100, 0.1)):
        yield captions_of(B, generator), torch.rand(B, generator=generator), p


DROP = Exercise("11.2", "Captions dropped at random", drop_captions, captioned, [
    Mistake("no second axis", lambda captions, u, p: torch.where(u < p, -1, captions),
            "u has one number a row, and (B,) meets (B, 12) along the words: give it a second axis"),
    Mistake("kept and dropped swapped", lambda captions, u, p: torch.where((u < p)[:, None], captions, -1),
            "you keep the captions that should go: it is a share p that is dropped"),
    Mistake("word 0", lambda captions, u, p: torch.where((u < p)[:, None], 0, captions),
            "0 is a word like any other; the sign for no word is -1"),
    Mistake("the whole batch", lambda captions, u, p: torch.where(u[0] < p, -1, captions),
            "you decide once for the whole batch; every row has a draw of its own"),
    Mistake("a share one minus p", lambda captions, u, p: torch.where((u < 1 - p)[:, None], -1, captions),
            "you drop a share 1 - p"),
    Mistake("own draws", lambda captions, u, p: torch.where((torch.rand(len(captions)) < p)[:, None], -1, captions),
            "you draw numbers of your own; the draws u were handed in"),
    Mistake("place by place", lambda captions, u, p: torch.where(torch.rand(captions.shape) < p, -1, captions),
            "you drop single words, by draws of your own; a row loses all its words or none, by its u"),
    Mistake("one subtracted", lambda captions, u, p: captions - (u < p)[:, None].long(),
            "you subtract 1 from the word numbers, which makes other words of them; the sign for no word is -1"),
    Mistake("sign turned", lambda captions, u, p: torch.where((u < p)[:, None], -captions, captions),
            "you turn the sign of the word numbers; no word is -1 in every place"),
    Mistake("if anybody's", lambda captions, u, p: torch.where((u < p).any(), -1, captions),
            "if a single row is to be dropped, you drop all of them"),
    Mistake("rows taken out", lambda captions, u, p: captions[u >= p],
            "you take the rows out of the batch; they stay, and only their words go"),
    Mistake("the first word", _only(slice(0, 1)), "only the first word goes; without a condition means without any word"),
    Mistake("all but the first", _only(slice(1, None)), "the first word stays; without a condition means without any word"),
], tips=["`(u < p)[:, None]` has the shape (B, 1)"])


# --- 11.3 ------------------------------------------------------------------------------------------------------------

class Spoken:
    """Denoiser of N(m, s^2) for rows of any shape, m and s told by the mean of a caption's word numbers; -1 is a word, too."""

    def __init__(self, schedule: Schedule):
        self.schedule = schedule

    def __call__(self, x: Tensor, t, cond: Tensor | None = None) -> Tensor:
        alpha, sigma = levels(self, x, t)
        cond = torch.full((len(x), LENGTH), -1) if cond is None else cond
        said = per_row(cond.to(x).mean(1), x)
        s2 = 0.3 + 0.1 * said.sin()
        return said + alpha * s2 / (alpha**2 * s2 + sigma**2) * (x - alpha * said)


class Bent(Autoencoder):
    """Pictures (B, 1, 4, 4) and latents (B, 2, 2, 4), neither linear in the other; channels with their own shift and scale."""

    def __init__(self):
        super().__init__(2, 2, sigma2=1.0)
        self.shift.copy_(torch.tensor([0.3, -0.2]).view(1, 2, 1, 1))
        self.scale.copy_(torch.tensor([1.7, 0.6]).view(1, 2, 1, 1))

    def latent(self, x: Tensor) -> Tensor:
        return torch.asinh(x.unflatten(2, (2, 2))[:, 0])

    def reconstruct(self, z: Tensor) -> Tensor:
        return torch.tanh(z).flatten(1, 2)[:, None]


def draw(D: Denoiser, autoencoder: Autoencoder, cond: Tensor, weight: float, ts: Tensor, x: Tensor) -> Tensor:
    """Pictures (B, C, H, W) of captions cond (B, 12): guided DPM-Solver++ in latents from noise x (B, c, h, w), decoded."""
    return autoencoder.decode(_latents(D, cond, weight, ts, x))


def _latents(D, cond, weight, ts, x):
    return last(dpm_solver_pp, guided(D, weight), x, ts, cond=cond).x


def noises(generator: torch.Generator) -> Iterator[tuple]:
    for B, n, schedule in ((1, 4, CosineVP()), (2, 3, LinearVP()), (5, 6, CosineVP())):
        yield (Spoken(schedule), Bent(), captions_of(B, generator), between(generator, 1.5, 3).item(),
               log_snr_to_zero(n, schedule), normal(generator, B, 2, 2, 4))
    for B, schedule in ((3, CosineVP()), (2, Flow())):                                  # x is a state halfway down
        yield (Spoken(schedule), Bent(), captions_of(B, generator), between(generator, 1.5, 3).item(),
               log_snr_to_zero(6, schedule)[3:], normal(generator, B, 2, 2, 4))


def _at_every_step(D, autoencoder, cond, weight, ts, x):
    for t, s in pairwise(ts):
        x = autoencoder.encode(autoencoder.decode(ddim(guided(D, weight), x, t, s, cond=cond)))
    return autoencoder.decode(x)


def _both_ends(mix):
    """A wrong answer mix(decode, latents with the caption, latents without, w): guidance after the drawing."""
    return lambda D, autoencoder, cond, weight, ts, x: mix(
        autoencoder.decode, _latents(D, cond, 0.0, ts, x), _latents(D, torch.full_like(cond, -1), 0.0, ts, x), weight)


class WordZero:
    """Guidance away from the caption that says word number 0 twelve times."""

    def __init__(self, D, weight):
        self.D, self.weight, self.schedule = D, weight, D.schedule

    def __call__(self, x, t, cond=None):
        c, u = self.D(x, t, cond), self.D(x, t, torch.zeros_like(cond))
        return c + self.weight * (c - u)


DRAW = Exercise("11.3", "Words to a picture", draw, noises, [
    Mistake("not decoded", lambda D, autoencoder, *rest: _latents(D, *rest),
            "what you return are latents: the decoder is missing"),
    Mistake("scale forgotten", lambda D, autoencoder, *rest: autoencoder.reconstruct(_latents(D, *rest)),
            "`reconstruct` wants raw latents; diffusion works on scaled ones, and `decode` takes the scale back"),
    Mistake("decoded at every step", _at_every_step,
            "you decode and encode at every step; the path lies in the latent space, and only its end is decoded"),
    Mistake("pictures guided", _both_ends(lambda decode, c, u, w: decode(c) + w * (decode(c) - decode(u))),
            "you drew two pictures and combined them; guidance combines the two guesses at every step"),
    Mistake("ends guided", _both_ends(lambda decode, c, u, w: decode(c + w * (c - u))),
            "you drew two latents and combined them at the end; guidance combines the two guesses at every step"),
    Mistake("no guidance", lambda D, autoencoder, cond, weight, ts, x: autoencoder.decode(_latents(D, cond, 0.0, ts, x)),
            "your pictures do not depend on the weight: where is the guided denoiser?"),
    Mistake("the other convention", lambda D, autoencoder, cond, weight, ts, x: draw(D, autoencoder, cond, weight - 1, ts, x),
            "with you, weight 1 is conditional; here the weight counts what comes on top, so 0 is"),
    Mistake("one more", lambda D, autoencoder, cond, weight, ts, x: draw(D, autoencoder, cond, weight + 1, ts, x),
            "you add 1 to the weight; `guided` counts what comes on top of the conditional guess already"),
    Mistake("away from the caption", lambda D, autoencoder, cond, weight, ts, x: draw(D, autoencoder, cond, -weight, ts, x),
            "your weight has the wrong sign: you are guided away from the caption"),
    Mistake("latents weighted", lambda D, autoencoder, cond, weight, ts, x: autoencoder.decode(weight * _latents(D, cond, 0.0, ts, x)),
            "you multiply the latents by the weight; guidance combines two guesses at every step"),
    Mistake("scaled to the start", lambda D, autoencoder, cond, weight, ts, x: draw(
        D, autoencoder, cond, weight, ts, D.schedule.sigma(ts[0]).to(x) * x),
            "you multiply x by sigma(ts[0]); x is the state at ts[0] as it is, wherever the grid begins"),
    Mistake("own noise", lambda D, autoencoder, cond, weight, ts, x: draw(D, autoencoder, cond, weight, ts, torch.randn_like(x)),
            "you draw noise of your own; start from the x that is handed in"),
    Mistake("noise through the autoencoder", lambda D, autoencoder, cond, weight, ts, x: draw(
        D, autoencoder, cond, weight, ts, autoencoder.encode(autoencoder.decode(x))),
            "your noise goes through the autoencoder first; it has the shape of latents already"),
    Mistake("last step left out", lambda D, autoencoder, cond, weight, ts, x: draw(D, autoencoder, cond, weight, ts[:-1], x),
            "your grid lacks its last time, so that noise is left in the latents when you decode"),
    Mistake("first step left out", lambda D, autoencoder, cond, weight, ts, x: draw(D, autoencoder, cond, weight, ts[1:], x),
            "your grid lacks its first time: x is at ts[0], and you take it for a state at ts[1]"),
    Mistake("third order", lambda D, autoencoder, cond, weight, ts, x: autoencoder.decode(
        last(dpm_solver_pp, guided(D, weight), x, ts, order=3, cond=cond).x),
            "you chose order 3; leave `dpm_solver_pp` at the order that it has, or we do not draw the same picture"),
    Mistake("shift forgotten", lambda D, autoencoder, cond, weight, ts, x: autoencoder.reconstruct(
        autoencoder.scale * _latents(D, cond, weight, ts, x)),
            "you took back the latents' scale by hand, but not their shift; `decode` does both"),
    Mistake("scale taken back twice", lambda D, autoencoder, cond, weight, ts, x: autoencoder.decode(
        _latents(D, cond, weight, ts, x) / autoencoder.scale),
            "you divide by the scale before `decode`, which minds the scale itself"),
    Mistake("cut off", lambda *case: draw(*case).clamp(0, 1),
            "you cut the picture off at 0 and 1; return what the decoder gives"),
    Mistake("caption not passed on", _both_ends(lambda decode, c, u, w: decode(u)),
            "nobody told the sampler the caption: it is its argument `cond`"),
    Mistake("word 0 for no word", lambda D, autoencoder, cond, weight, ts, x: autoencoder.decode(
        last(dpm_solver_pp, WordZero(D, weight), x, ts, cond=cond).x),
            "your second guess is for a caption of zeros, which is a word twelve times; no word is -1"),
    Mistake("another sampler", lambda D, autoencoder, cond, weight, ts, x: autoencoder.decode(
        last(dpm_solver_pp, guided(D, weight), x, ts, order=1, cond=cond).x),
            "that is DDIM, and right as such; take `dpm_solver_pp`, so that both of us count the same steps"),
], tips=["`guided(D, weight)` is a denoiser", "`last(dpm_solver_pp, denoiser, x, ts, cond=cond).x` are the latents"])


# --- 11.4 ------------------------------------------------------------------------------------------------------------

def shown(generator: torch.Generator) -> Iterator[tuple]:
    for N, M, K, d in ((1, 6, 3, 2), (2, 9, 4, 3), (7, 30, 8, 4), (12, 40, 12, 2)):
        kind = torch.cat([torch.arange(K), torch.randint(0, K, (M - K,), generator=generator)])
        real = normal(generator, M, d) + 2 * normal(generator, K, d)[kind]
        wanted = torch.randint(1, K - 1, (N,), generator=generator)
        yield normal(generator, N, d).float(), 1 + wanted, real.float(), kind + (kind > 0)      # no picture shows name 1


def _ranked(own=lambda apart, mine: apart.masked_fill(~mine, torch.inf).amin(1), count=lambda apart, names, own: (
        torch.stack([apart[:, names == k].amin(1) for k in names.unique()], 1) < own[:, None]).sum(1), apart=torch.cdist):
    """The rank with one ingredient replaced: how near the wanted name is, what is counted, what is a distance."""
    def wrong(drawn, wanted, real, names):
        far = apart(drawn, real)
        return count(far, names, own(far, names == wanted[:, None]))
    return wrong


def _by_name(apart, names, least=lambda part: part.amin(1)):
    return torch.stack([least(apart[:, names == k]) for k in names.unique()], 1)


def _sorted(look):
    """A wrong rank look(how near each name comes (N, K), the wanted one's column (N, 1))."""
    def wrong(drawn, wanted, real, names):
        column = torch.searchsorted(names.unique(), wanted)[:, None]
        return look(_by_name(torch.cdist(drawn, real), names), column)[:, 0]
    return wrong


RANK = Exercise("11.4", "The rank of the right emoji", ranks, shown, [
    Mistake("a name for a column", lambda drawn, wanted, real, names: (lambda near: (
        near < near.gather(1, wanted[:, None])).sum(1))(_by_name(torch.cdist(drawn, real), names)),
            "you took a name for a column number; some names have no picture, so the columns are not numbered by them"),
    Mistake("a single argsort", _sorted(lambda nearest, column: nearest.argsort(1).gather(1, column)),
            "argsort lists who comes first, second, third; you looked up who stands at the wanted one's number in that list, "
            "not where it stands itself"),
    Mistake("a single argsort, a name for a column", lambda drawn, wanted, real, names: (
        _by_name(torch.cdist(drawn, real), names).argsort(1).gather(1, wanted[:, None])[:, 0]),
            "argsort does not give ranks but who comes first, second, third, by column; and a name is not the number of its column"),
    Mistake("the nearest one", _sorted(lambda nearest, column: nearest.argmin(1, keepdim=True)),
            "that is which column is nearest; asked is how many names come before the wanted one"),
    Mistake("the nearest name", lambda drawn, wanted, real, names: names.unique()[_by_name(torch.cdist(drawn, real), names).argmin(1)],
            "that is the name that is nearest; asked is how many come before the wanted one"),
    Mistake("the nearest of all for the wanted", _ranked(own=lambda apart, mine: apart.amin(1)),
            "all your ranks are 0: the distance to compare with is that of the *wanted* emoji's nearest picture, not of any"),
    Mistake("others by their farthest", _ranked(count=lambda apart, names, own: (
        _by_name(apart, names, lambda part: part.amax(1)) < own[:, None]).sum(1)),
            "a name is as near as its nearest picture; you took the farthest one of each"),
    Mistake("others by their mean", _ranked(count=lambda apart, names, own: (
        _by_name(apart, names, lambda part: part.mean(1)) < own[:, None]).sum(1)),
            "a name is as near as its nearest picture; you took the mean of each, but the nearest one of the wanted"),
    Mistake("others by their sum", _ranked(count=lambda apart, names, own: (
        _by_name(apart, names, lambda part: part.sum(1)) < own[:, None]).sum(1)),
            "you add up the distances of each name's pictures, so that a name with many of them seems far"),
    Mistake("names as often as pictures", _ranked(count=lambda apart, names, own: (
        torch.stack([apart[:, names == k].amin(1) for k in names], 1) < own[:, None]).sum(1)),
            "a name counts once for each of its pictures with you; go through `names.unique()`"),
    Mistake("a name for a picture", lambda drawn, wanted, real, names: _ranked(
        own=lambda apart, mine: apart.gather(1, wanted[:, None])[:, 0])(drawn, wanted, real, names),
            "you took a name for the number of a picture"),
    Mistake("pictures counted", _ranked(count=lambda apart, names, own: (apart < own[:, None]).sum(1)),
            "you count pictures; a name with two nearer pictures must count once"),
    Mistake("counted from one", _ranked(count=lambda apart, names, own: (_by_name(apart, names) <= own[:, None]).sum(1)),
            "with you the best rank is 1; the name itself is not nearer than itself, so 0 is the best"),
    Mistake("hit or miss", _ranked(count=lambda apart, names, own: (_by_name(apart, names) < own[:, None]).sum(1) == 0),
            "that is whether the rank is 0; asked is how many names are nearer"),
    Mistake("the other end", _ranked(count=lambda apart, names, own: (_by_name(apart, names) > own[:, None]).sum(1)),
            "you count the names that are farther away"),
    Mistake("the farthest of the wanted", _ranked(own=lambda apart, mine: apart.masked_fill(~mine, -torch.inf).amax(1)),
            "you took the wanted emoji's farthest picture; its nearest one counts"),
    Mistake("the first of the wanted", _ranked(own=lambda apart, mine: apart.gather(1, mine.int().argmax(1)[:, None])[:, 0]),
            "you took the first picture of the wanted emoji; its nearest one counts"),
    Mistake("the mean of the wanted", _ranked(own=lambda apart, mine: (apart * mine).sum(1) / mine.sum(1)),
            "you took the mean distance of the wanted emoji's pictures; a drawing resembles one style, not all"),
    Mistake("means of names", _ranked(
        own=lambda apart, mine: (apart * mine).sum(1) / mine.sum(1),
        count=lambda apart, names, own: (_by_name(apart, names, lambda part: part.mean(1)) < own[:, None] * (1 - 1e-6)).sum(1)),
            "you took mean distances of every name's pictures; a drawing resembles one style, not all"),
    Mistake("likeness for distance", _ranked(apart=lambda a, b: a @ b.T),
            "inner products are no distances: small ones do not mean near"),
], tips=["`torch.cdist(drawn, real)` are the distances (N, M)", "`apart[:, names == k].amin(1)` is how near the name k comes"])


# --- 11.5 ------------------------------------------------------------------------------------------------------------

def with_hint(x: Tensor, c: Tensor, alpha: Tensor, sigma: Tensor, tau: float, s: float) -> Tensor:
    """E[x_0 | x_t = x, c] for rows (B,): x_0 of N(0, s^2), c = x_0 + tau n, x_t = alpha x_0 + sigma eps; alpha, sigma (B,)."""
    return _hinted(x, c, alpha, sigma, tau, s)


def _hinted(x, c, alpha, sigma, tau, s, *, seen=lambda x, a, sd: a * x / sd**2, told=lambda c, tau: c / tau**2,
            total=lambda a, sd, tau, s: 1 / s**2 + 1 / tau**2 + a**2 / sd**2, finish=lambda seen, told, total: (seen + told) / total):
    return finish(seen(x, alpha, sigma), told(c, tau), total(alpha, sigma, tau, s))


def _weighed(**changes):
    return lambda *case: _hinted(*case, **changes)


def hints(generator: torch.Generator) -> Iterator[tuple]:
    for B in (1, 2, 6):
        for schedule in (CosineVP(), LinearVP()):
            t = between(generator, 0.2, 0.8, B)
            yield (normal(generator, B), normal(generator, B), schedule.alpha(t), schedule.sigma(t),
                   between(generator, 0.2, 0.8).item(), between(generator, 0.7, 1.5).item())


HINT = Exercise("11.5", "How far to trust the small picture", with_hint, hints, [
    Mistake("no prior", _weighed(total=lambda a, sd, tau, s: 1 / tau**2 + a**2 / sd**2),
            "before anything was seen, x_0 was already known to be of size s: its precision is missing in the sum"),
    Mistake("small picture alone", _weighed(seen=lambda x, a, sd: 0 * x, total=lambda a, sd, tau, s: 1 / s**2 + 1 / tau**2),
            "your guess does not look at x_t"),
    Mistake("noisy picture alone", _weighed(told=lambda c, tau: 0 * c, total=lambda a, sd, tau, s: 1 / s**2 + a**2 / sd**2),
            "your guess does not look at c"),
    Mistake("hint believed", lambda x, c, *_: c + 0 * x,
            "you return c itself, as if it had no noise"),
    Mistake("plain mean", lambda x, c, alpha, *_: (x / alpha + c) / 2,
            "you take the mean of both; each counts by its precision, one over its variance"),
    Mistake("standard deviations", _weighed(seen=lambda x, a, sd: a * x / sd, told=lambda c, tau: c / tau,
                                            total=lambda a, sd, tau, s: 1 / s + 1 / tau + a**2 / sd),
            "precisions are one over variances; yours are one over standard deviations"),
    Mistake("deviations in the precision", _weighed(total=lambda a, sd, tau, s: 1 / s + 1 / tau + a**2 / sd),
            "your sum of the precisions has standard deviations below the line; in the exponents they stand squared"),
    Mistake("s not squared", _weighed(total=lambda a, sd, tau, s: 1 / s + 1 / tau**2 + a**2 / sd**2),
            "in the precision s is not squared"),
    Mistake("tau not squared", _weighed(told=lambda c, tau: c / tau, total=lambda a, sd, tau, s: 1 / s**2 + 1 / tau + a**2 / sd**2),
            "tau is not squared with you, in either sum"),
    Mistake("tau not squared in the precision", _weighed(total=lambda a, sd, tau, s: 1 / s**2 + 1 / tau + a**2 / sd**2),
            "in the precision tau is not squared; beside c it is"),
    Mistake("tau not squared beside c", _weighed(told=lambda c, tau: c / tau),
            "beside c tau is not squared; in the precision it is"),
    Mistake("sigma not squared", _weighed(seen=lambda x, a, sd: a * x / sd, total=lambda a, sd, tau, s: 1 / s**2 + 1 / tau**2 + a**2 / sd),
            "sigma is not squared with you, in either sum"),
    Mistake("sigma not squared in the precision", _weighed(total=lambda a, sd, tau, s: 1 / s**2 + 1 / tau**2 + a**2 / sd),
            "in the precision sigma is not squared; beside x_t it is"),
    Mistake("sigma not squared beside x", _weighed(seen=lambda x, a, sd: a * x / sd),
            "beside x_t sigma is not squared; in the precision it is"),
    Mistake("alpha squared beside x", _weighed(seen=lambda x, a, sd: a**2 * x / sd**2),
            "beside x_t alpha is squared with you; only the factor of x_0^2 has its square"),
    Mistake("variances for precisions", _weighed(total=lambda a, sd, tau, s: s**2 + tau**2 + sd**2),
            "your divisor is a sum of variances; in the exponents stands one over each"),
    Mistake("precision without x", _weighed(total=lambda a, sd, tau, s: 1 / s**2 + 1 / tau**2),
            "the precision has two terms with you; x_t makes x_0 better known, too"),
    Mistake("prior twice", _weighed(total=lambda a, sd, tau, s: 2 / s**2 + 1 / tau**2 + a**2 / sd**2),
            "your prior counts twice: what is the factor of -x_0^2/2 in -x_0^2/(2 s^2)?"),
    Mistake("half of the rest", _weighed(finish=lambda seen, told, total: (seen + told) / 2 / total),
            "your result is half of what it should be: where x_0 stands once, the 2 of the square has cancelled the 1/2"),
    Mistake("multiplied by the precision", _weighed(finish=lambda seen, told, total: (seen + told) * total),
            "you multiply by the precision; the mean is b *over* lambda"),
    Mistake("not divided", _weighed(finish=lambda seen, told, total: seen + told),
            "that is b, the factor of x_0; the mean is b over the precision"),
    Mistake("brackets", _weighed(finish=lambda seen, told, total: told + seen / total),
            "only the part of x_t is divided by the precision: brackets around the sum"),
    Mistake("root of the precision", _weighed(finish=lambda seen, told, total: (seen + told) / total**0.5),
            "you divide by the root of the precision, that is by one over a standard deviation"),
    Mistake("subtracted", _weighed(finish=lambda seen, told, total: (told - seen) / total),
            "x_t comes in with a minus sign: both observations speak for x_0"),
    Mistake("not weighed", _weighed(seen=lambda x, a, sd: a * x, told=lambda c, tau: c),
            "above the line c and x_t are not weighed by their precisions"),
    Mistake("weighed by variances", _weighed(seen=lambda x, a, sd: a * x * sd**2, told=lambda c, tau: c * tau**2),
            "above the line you multiply by the variances where you should divide by them"),
    Mistake("nothing squared", _weighed(seen=lambda x, a, sd: a * x / sd, told=lambda c, tau: c / tau,
                                        total=lambda a, sd, tau, s: 1 / s + 1 / tau + a / sd),
            "nothing is squared with you: a Gaussian's exponent has squares, of the differences and of the deviations"),
    Mistake("signal not faded", _weighed(seen=lambda x, a, sd: x / sd**2, total=lambda a, sd, tau, s: 1 / s**2 + 1 / tau**2 + 1 / sd**2),
            "x_t is alpha x_0 plus noise: write its exponent and collect the terms with x_0; alpha comes out, in both sums"),
    Mistake("alpha in the first sum only", _weighed(total=lambda a, sd, tau, s: 1 / s**2 + 1 / tau**2 + 1 / sd**2),
            "alpha is missing in the precision: expand the square of x_t - alpha x_0, and look at what stands beside x_0^2"),
    Mistake("alpha in the second sum only", _weighed(seen=lambda x, a, sd: x / sd**2),
            "alpha is missing beside x_t: expand the square of x_t - alpha x_0, and look at what stands beside x_0"),
    Mistake("divided by alpha", _weighed(seen=lambda x, a, sd: x / a / sd**2),
            "x_t / alpha has noise of the standard deviation sigma / alpha, and must be weighed by that"),
    Mistake("divided by alpha, weighed by sigma", _weighed(seen=lambda x, a, sd: x / a / sd**2,
                                                           total=lambda a, sd, tau, s: 1 / s**2 + 1 / tau**2 + 1 / sd**2),
            "you divide x_t by alpha, which makes its noise larger, too; but you weigh it as if it still were sigma"),
    Mistake("alpha not squared", _weighed(total=lambda a, sd, tau, s: 1 / s**2 + 1 / tau**2 + a / sd**2),
            "in the precision alpha stands squared: it multiplies x_0, and x_0 is squared"),
    Mistake("weighed the wrong way", _weighed(seen=lambda x, a, sd: x / a * (sd / a)**2, told=lambda c, tau: c * tau**2,
                                              total=lambda a, sd, tau, s: tau**2 + (sd / a)**2),
            "with you, what is noisier counts more"),
], tips=["the exponents add: -x_0^2/(2 s^2) - (c - x_0)^2/(2 tau^2) - (x_t - alpha x_0)^2/(2 sigma^2)",
         "the mean is (the sum of the factors of x_0) / (the sum of the factors of -x_0^2/2)"])


# --- 11.6 ------------------------------------------------------------------------------------------------------------

def edit(D: Denoiser, autoencoder: Autoencoder, pictures: Tensor, cond: Tensor, weight: float, ts: Tensor, eps: Tensor) -> Tensor:
    """Pictures (B, C, H, W), encoded, noised up to ts[0] with eps (B, c, h, w), and drawn from there with captions (B, 12)."""
    return _edited(D, autoencoder, pictures, cond, weight, ts, eps)


def _edited(D, autoencoder, pictures, cond, weight, ts, eps, *, code=lambda autoencoder, pictures: autoencoder.encode(pictures),
            start=lambda z, eps, alpha, sigma: alpha * z + sigma * eps, when=lambda ts: ts[0],
            end=lambda autoencoder, z: autoencoder.decode(z)):
    t = when(ts)
    x = start(code(autoencoder, pictures), eps, D.schedule.alpha(t).to(eps), D.schedule.sigma(t).to(eps))
    return end(autoencoder, _latents(D, cond, weight, ts, x))


def _retold(**changes):
    return lambda *case: _edited(*case, **changes)


def edits(generator: torch.Generator) -> Iterator[tuple]:
    for B, n, skip, schedule in ((1, 6, 2, CosineVP()), (2, 5, 3, LinearVP()), (5, 8, 4, CosineVP()), (3, 6, 3, Flow())):
        yield (Spoken(schedule), Bent(), normal(generator, B, 1, 4, 4), captions_of(B, generator),
               between(generator, 1.5, 3).item(), log_snr_to_zero(n, schedule)[skip:], normal(generator, B, 2, 2, 4))


def _noised(D, autoencoder, pictures, ts, eps):
    alpha, sigma = levels(D, eps, ts[0])
    return alpha * autoencoder.encode(pictures) + sigma * eps


def _pictures_faded(D, autoencoder, pictures, cond, weight, ts, eps):
    alpha, sigma = levels(D, eps, ts[0])
    return autoencoder.decode(_latents(D, cond, weight, ts, autoencoder.encode(alpha * pictures) + sigma * eps))


EDIT = Exercise("11.6", "A picture changed by words", edit, edits, [
    Mistake("not faded", _retold(start=lambda z, eps, alpha, sigma: z + sigma * eps),
            "you add noise to the latents as they are; in x_t they have faded to alpha times themselves"),
    Mistake("noise not scaled", _retold(start=lambda z, eps, alpha, sigma: alpha * z + eps),
            "your noise has the standard deviation 1 at every t; it must be sigma"),
    Mistake("variance", _retold(start=lambda z, eps, alpha, sigma: alpha * z + sigma**2 * eps),
            "you multiply the noise by a variance; a standard deviation scales it"),
    Mistake("swapped", _retold(start=lambda z, eps, alpha, sigma: sigma * z + alpha * eps),
            "alpha and sigma have changed places: at t near 0 yours is nearly noise alone"),
    Mistake("own noise", _retold(start=lambda z, eps, alpha, sigma: alpha * z + sigma * torch.randn_like(eps)),
            "you draw noise of your own; eps was handed in"),
    Mistake("noise faded, too", _retold(start=lambda z, eps, alpha, sigma: alpha * (z + sigma * eps)),
            "alpha multiplies the latents only; your noise is too weak"),
    Mistake("faded twice", _retold(start=lambda z, eps, alpha, sigma: alpha**2 * z + sigma * eps),
            "your latents have faded by the square of alpha"),
    Mistake("alpha for its square", _retold(start=lambda z, eps, alpha, sigma: alpha.sqrt() * z + (1 - alpha).sqrt() * eps),
            "you take roots of alpha; papers write alpha for what is alpha^2 here"),
    Mistake("noise subtracted", _retold(start=lambda z, eps, alpha, sigma: alpha * z - sigma * eps),
            "the noise comes in with a minus sign, which makes another picture of the same eps"),
    Mistake("right for VP only", _retold(start=lambda z, eps, alpha, sigma: alpha * z + (1 - alpha**2).sqrt() * eps),
            "1 - alpha^2 is sigma^2 for variance-preserving schedules only"),
    Mistake("time for the levels", lambda D, autoencoder, pictures, cond, weight, ts, eps: autoencoder.decode(_latents(
        D, cond, weight, ts, (1 - ts[0]) * autoencoder.encode(pictures) + ts[0] * eps)),
            "you mix by the time itself; the levels at that time are the schedule's"),
    Mistake("pictures faded", _pictures_faded,
            "you fade the picture before it is encoded; it is the latents that fade"),
    Mistake("the rest of the grid", lambda D, autoencoder, pictures, cond, weight, ts, eps: autoencoder.decode(_latents(
        D, cond, weight, ts[1:], _noised(D, autoencoder, pictures, ts, eps))),
            "you drop the first time of the grid: your latents are at ts[0], and are taken for a state at ts[1]"),
    Mistake("noised and decoded", lambda D, autoencoder, pictures, cond, weight, ts, eps: autoencoder.decode(
        _noised(D, autoencoder, pictures, ts, eps)),
            "you decode the noisy latents: nobody has drawn anything yet"),
    Mistake("scaled to the start", lambda D, autoencoder, pictures, cond, weight, ts, eps: autoencoder.decode(_latents(
        D, cond, weight, ts, D.schedule.sigma(ts[0]).to(eps) * _noised(D, autoencoder, pictures, ts, eps))),
            "you multiply the noisy latents by sigma once more; they are the state at ts[0] as they are"),
    Mistake("one guess", lambda D, autoencoder, pictures, cond, weight, ts, eps: autoencoder.decode(
        guided(D, weight)(_noised(D, autoencoder, pictures, ts, eps), ts[0], cond)),
            "you decode a single guess, made at ts[0]; walk down the whole grid"),
    Mistake("no words", lambda D, autoencoder, pictures, cond, weight, ts, eps: _edited(
        D, autoencoder, pictures, torch.full_like(cond, -1), weight, ts, eps),
            "the new words are not told to anybody"),
    Mistake("noise alone", _retold(start=lambda z, eps, alpha, sigma: eps),
            "you start from noise alone, so the picture has no say"),
    Mistake("no noise", _retold(start=lambda z, eps, alpha, sigma: alpha * z),
            "without noise the denoiser is misled: at time t it expects some, and takes edges of the picture for it"),
    Mistake("no noising at all", _retold(start=lambda z, eps, alpha, sigma: z),
            "you start at ts[0] from clean latents; the denoiser is told that there is noise, and must find it"),
    Mistake("noised to the first step", _retold(when=lambda ts: ts[1]),
            "you noise to ts[1], where the first step ends; it starts at ts[0]"),
    Mistake("raw latents", _retold(code=lambda autoencoder, pictures: autoencoder.latent(pictures)),
            "`latent` gives raw latents; diffusion wants the scaled ones of `encode`"),
    Mistake("scale forgotten at the end", _retold(end=lambda autoencoder, z: autoencoder.reconstruct(z)),
            "`reconstruct` wants raw latents; `decode` takes the scale back first"),
    Mistake("no guidance", lambda D, autoencoder, pictures, cond, weight, *rest: _edited(
        D, autoencoder, pictures, cond, 0.0, *rest),
            "your pictures do not depend on the weight: where is the guided denoiser?"),
    Mistake("not decoded", _retold(end=lambda autoencoder, z: z), "what you return are latents: the decoder is missing"),
], tips=["`autoencoder.encode(pictures)`, then noise at t = ts[0]", "the rest is your exercise 11.3, with another start"])


EXERCISES = [GIST, DROP, DRAW, RANK, HINT, EDIT]

PREDICTIONS = [
    Prediction("11.1", "b", {
        "a": "Two trainings sound like more than one, but a step in pixels costs as much as many in latents.",
        "b": "A step saves so much that the second network is soon paid for; and it is trained once, for all models after it.",
        "c": "Its steps are many, too, but beside a step on pixels each is cheap: it compares no pairs of patches.",
    }),
    Prediction("11.2", "a", {
        "a": "The noise settles what the words leave open, and a caption that is said of one picture leaves little open.",
        "b": "The starts are as random, but the words restrict where the paths may end: to one picture, or to dozens.",
        "c": "Its details are many, but settled: in training, these words always came with the same picture.",
    }),
    Prediction("11.3", "b", {
        "a": "Away from a caption would be w below -1: there D_u counts more than once, and D_c with a minus.",
        "b": "D_c - (D_c - D_u) is D_u: no word is heard, and the same noise gives the same picture.",
        "c": "D_u is a denoiser like any other and its paths do not diverge; and all three have the same.",
    }),
    Prediction("11.4", "c", {
        "a": "The pair was never seen, but its emoji and its style were, each with others.",
        "b": "The vectors are near, but 1,233 names are too few to learn what it means to be near.",
        "c": "The sketch of a pair was learnt from the other styles; a synonym is a vector of which nothing was learnt.",
    }),
    Prediction("11.5", "a", {
        "a": "x_t has the weight alpha^2/sigma^2, c has 1/tau^2: c counts for more until sigma/alpha falls below tau.",
        "b": "It was trained with noise on c, and so has learnt to go by x_t once that is clearer than c.",
        "c": "Where signal and noise of x_t are equal, c still is ten times as clear: its noise is a tenth.",
    }),
]
