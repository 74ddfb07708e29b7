# Long: a table. Each entry is a wrong answer that learners give, and its hint; one reads the exercise that one looks for.
"""Chapter 12, text in latent space: its exercises with their known mistakes, and its predictions."""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
import torch.nn.functional as nf
from torch import Tensor, nn

from ... import text
from ...denoiser import levels, per_row
from ...fast_samplers import ddim
from ...schedules import Schedule
from ..exercises import Exercise, Mistake, Prediction
from .cases import SCHEDULES, SHAPES, Blob, Toy, between, normal

# --- 12.1 ------------------------------------------------------------------------------------------------------------


def independent(p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """p (A, B), the probability of each phrase: what becomes of it when the two words are drawn independently, TV and KL."""
    return _apart(p)


def _product(p):
    return p.sum(1, keepdim=True) * p.sum(0, keepdim=True)


def _divergence(p, q):
    return (torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum()


def _apart(p, *, product=_product, tv=lambda p, q: (p - q).abs().sum() / 2, kl=_divergence):
    """The three results with one ingredient replaced."""
    q = product(p)
    return q, tv(p, q), kl(p, q)


def phrase_tables(generator: torch.Generator) -> Iterator[tuple]:
    """Tables of every form, some of their phrases impossible, though every word is in some phrase; never independent words."""
    yield (torch.eye(2, dtype=torch.float64) / 2,)
    for A, B in ((2, 3), (3, 2), (5, 5), (4, 2)):
        p = between(generator, 0.05, 1, A, B) * (between(generator, 0, 1, A, B) < 0.6)
        p[torch.arange(max(A, B)) % A, torch.arange(max(A, B)) % B] += 0.3
        yield (p / p.sum(),)


def _table(**changes):
    return lambda p: _apart(p, **changes)


INDEPENDENT = Exercise("12.1", "Two words drawn independently", independent, phrase_tables, [
    Mistake("all phrases alike", _table(product=lambda p: torch.full_like(p, 1 / p.numel())),
            "you made all phrases equally likely; each word still has its own distribution, the sum over the other word"),
    Mistake("chain rule", _table(product=lambda p: p.clone()),
            "p(a) p(b | a) is p itself: there the second word knows the first. Drawn independently, it does not"),
    Mistake("rows only", _table(product=lambda p: p.sum(1, keepdim=True) * torch.full_like(p, 1 / p.shape[1])),
            "the first word has its own distribution, but your second words are all equally likely"),
    Mistake("half forgotten", _table(tv=lambda p, q: (p - q).abs().sum()),
            "you count every misplaced phrase twice: once where it is missing, and once where it is too much"),
    Mistake("signed differences", _table(tv=lambda p, q: (p - q).sum() / 2),
            "signed differences cancel; what matters is how far apart the two numbers are, in either direction"),
    Mistake("largest difference", _table(tv=lambda p, q: (p - q).abs().max()),
            "that is the largest difference at one phrase; add them over all phrases"),
    Mistake("KL the other way", _table(kl=lambda p, q: torch.special.xlogy(q, q / p).sum()),
            "you averaged over what is drawn, q, and divide by a p that may be 0; average over the truth, p"),
    Mistake("bits", _table(kl=lambda p, q: _divergence(p, q) / math.log(2)),
            "yours is in bits; with the natural logarithm it is in nats"),
    Mistake("zero times log of zero", _table(kl=lambda p, q: (p * (p / q).log()).sum()),
            "0 times log 0 is NaN on a computer; an impossible phrase must add 0 (`torch.xlogy`, or only the entries with p > 0)"),
    Mistake("sign", _table(kl=lambda p, q: -_divergence(p, q)),
            "your divergence is negative: the truth stands above the fraction line"),
    Mistake("columns only", _table(product=lambda p: p.sum(0, keepdim=True) * torch.full_like(p, 1 / p.shape[0])),
            "the second word has its own distribution, but your first words are all equally likely"),
    Mistake("means for sums", _table(product=lambda p: p.mean(1, keepdim=True) * p.mean(0, keepdim=True)),
            "the probability of a word is the *sum* over the other one, and you take means: does your table add up to 1?"),
    Mistake("words added", _table(product=lambda p: (p.sum(1, keepdim=True) + p.sum(0, keepdim=True)) / 2),
            "you add the two words' probabilities; of independent draws they multiply"),
    Mistake("squared differences", _table(tv=lambda p, q: (p - q).square().sum() / 2),
            "TV adds absolute differences, not their squares"),
    Mistake("mean for sum in KL", _table(kl=lambda p, q: _divergence(p, q) / (p > 0).sum()),
            "your KL is a mean over the phrases; each is weighed by its probability already, so add them up"),
    Mistake("phrases unweighed", _table(kl=lambda p, q: (p[p > 0] / q[p > 0]).log().sum()),
            "you add the log-ratios as they are; each counts as often as the truth, p, draws its phrase"),
    Mistake("weighed by q", _table(kl=lambda p, q: torch.special.xlogy(q, torch.where(p > 0, p / q, 1.0)).sum()),
            "the ratio is right, but its mean is taken over the truth, p, and not over q"),
    Mistake("cross-entropy", _table(kl=lambda p, q: -torch.special.xlogy(p, q).sum()),
            "that is the cross-entropy; the entropy of p itself is to be taken off"),
], tips=["`p.sum(1, keepdim=True)` is (A, 1), the first word's distribution; the second word's is (1, B)",
         "their product broadcasts to (A, B)"])


# --- 12.2 ------------------------------------------------------------------------------------------------------------

def vocabularies(generator: torch.Generator) -> Iterator[tuple]:
    """Embeddings (B, n, d) off their words, and vectors (V, d) of unlike lengths."""
    for B, n, V, d in ((1, 3, 6, 2), (2, 4, 20, 3), (5, 7, 40, 8), (4, 16, 60, 16)):
        vectors = normal(generator, V, d) * between(generator, 0.4, 2, V)[:, None]
        there = torch.randint(V, (B, n), generator=generator)
        yield vectors[there] + 0.6 * normal(generator, B, n, d), vectors


def _by_distance(distance: Callable[[Tensor], Tensor]):
    """The nearest vector by another distance(differences (B, n, V, d)) -> (B, n, V)."""
    return lambda embeddings, vectors: distance(embeddings[..., None, :] - vectors).argmin(-1)


ROUNDING = Exercise("12.2", "From vectors back to words", text.rounded, vocabularies, [
    Mistake("inner product", lambda embeddings, vectors: (embeddings @ vectors.T).argmax(-1),
            "the largest inner product favours words with long vectors; the nearest one is asked for"),
    Mistake("cosine", lambda embeddings, vectors: (embeddings @ nf.normalize(vectors, dim=-1).T).argmax(-1),
            "you compare directions only; of two words in one direction, the one at the right distance is nearer"),
    Mistake("farthest", lambda embeddings, vectors: torch.cdist(embeddings, vectors.expand(len(embeddings), -1, -1)).argmax(-1),
            "you chose the word that is farthest away"),
    Mistake("signed differences", _by_distance(lambda d: d.sum(-1).abs()),
            "differences of opposite signs cancel in a plain sum; square them first"),
    Mistake("sum of absolute values", _by_distance(lambda d: d.abs().sum(-1)),
            "you measure round the corners (the sum of absolute differences); Gaussian noise makes the straight distance right"),
    Mistake("largest component", _by_distance(lambda d: d.abs().amax(-1)),
            "you look at the largest difference of a single component; all of them count"),
    Mistake("the wrong axis", lambda embeddings, vectors: torch.cdist(embeddings.flatten(0, 1), vectors).argmin(0),
            "you found the nearest place for each word; asked is the nearest word for each place"),
    Mistake("one word for all places", lambda embeddings, vectors: _by_distance(
        lambda d: d.square().sum(-1))(embeddings.mean(1, keepdim=True), vectors).expand(embeddings.shape[:-1]).clone(),
            "you found one word for the whole sentence; every place has its own"),
    Mistake("the vectors", lambda embeddings, vectors: vectors[text.rounded(embeddings, vectors)],
            "you return the nearest vectors; their numbers in the list are asked for"),
    Mistake("order of the places", lambda embeddings, vectors: text.rounded(embeddings, vectors).flatten().view(
        embeddings.shape[1], embeddings.shape[0]).T,
            "the numbers are right, but they have changed places: a flattened (B, n) is made (B, n) again, not (n, B)"),
    Mistake("smallest inner product", lambda embeddings, vectors: (embeddings @ vectors.T).argmin(-1),
            "the smallest inner product belongs to a word in the opposite direction"),
    Mistake("whole square of the vectors", lambda embeddings, vectors: (embeddings @ vectors.T - vectors.square().sum(1)).argmax(-1),
            "the square of the vectors comes in, but too much of it: write |x - v|^2 out, where the inner product has a factor 2"),
    Mistake("differences without absolute values", _by_distance(lambda d: d.sum(-1)),
            "you look for the smallest *signed* sum of differences, which may be far below zero; a distance is never negative"),
], tips=["`torch.cdist(x, vectors)` has all distances between the rows of x (M, d) and of vectors (V, d): (M, V)",
         "flatten (B, n, d) to (B n, d) for it, and give the result the shape (B, n) again"])


# --- 12.3 ------------------------------------------------------------------------------------------------------------

def rounding_loss(D, numbers: Tensor, vectors: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """How badly the right words can be read from the *prediction*: mean cross-entropy, nats a word (Li et al. 2022)."""
    return _read(D, numbers, vectors, noise, t)


def _cross_entropy(logits, numbers):
    return nf.cross_entropy(logits.flatten(0, 1), numbers.flatten())


def _read(D, numbers, vectors, noise, t, *, mix=lambda x0, a, s, z: a * x0 + s * z, read=lambda D, x0, x_t, z, t: D(x_t, t),
          loss=_cross_entropy):
    """The loss with one ingredient replaced: how x_t is made, what is read, and how it is judged."""
    x0 = vectors[numbers]
    alpha, sigma = levels(D, x0, t)
    x_t = mix(x0, alpha, sigma, noise)
    return loss(read(D, x0, x_t, noise, t) @ vectors.T, numbers)


def readings(generator: torch.Generator) -> Iterator[tuple]:
    for schedule, (B, n, V, d) in zip(SCHEDULES, ((1, 2, 4, 3), (2, 2, 5, 2), (3, 4, 9, 6), (6, 3, 7, 4), (4, 5, 12, 8))):
        D, numbers = Toy(schedule, between(generator, 0.5, 2).item()), torch.randint(V, (B, n), generator=generator)
        yield D, numbers, normal(generator, V, d), normal(generator, B, n, d), between(generator, 0.1, 0.9, B)


def _value_and_gradient(function, D: nn.Module, *rest):
    """The loss, and what it teaches the weight of D."""
    loss = function(D, *rest)
    if not isinstance(loss, Tensor):
        return loss
    gradient = torch.autograd.grad(loss.sum(), D.weight, allow_unused=True)[0] if loss.requires_grad else None
    return loss, torch.zeros((), dtype=torch.float64) if gradient is None else gradient


def _reading(**changes):
    return lambda *case: _read(*case, **changes)


def _mixed(D, numbers, vectors, noise, t):
    alpha, sigma = levels(D, vectors[numbers], t)
    return alpha * vectors[numbers] + sigma * noise


def _read_by_distance(D, numbers, vectors, noise, t):
    y = D(_mixed(D, numbers, vectors, noise, t), t).flatten(0, 1)
    return nf.cross_entropy(-torch.cdist(y, vectors).square(), numbers.flatten())


ROUNDING_LOSS = Exercise("12.3", "What the rounding loss must read", rounding_loss, readings, [
    Mistake("reads the start", _reading(read=lambda D, x0, x_t, z, t: x0),
            "you read the words from the true vectors: the loss never reaches the network, its gradient there is 0"),
    Mistake("reads a noisy start", _reading(read=lambda D, x0, x_t, z, t: x0 + 0.1 * z),
            "you read the words from the true vectors with a little noise: the network is not even asked"),
    Mistake("reads the noisy state", _reading(read=lambda D, x0, x_t, z, t: x_t),
            "you read x_t itself; at decoding time it is the prediction that is read"),
    Mistake("no gradient", _reading(read=lambda D, x0, x_t, z, t: D(x_t, t).detach()),
            "the value is right, but the prediction was detached, so the network learns nothing from it"),
    Mistake("predicts from the clean vectors", _reading(read=lambda D, x0, x_t, z, t: D(x0, t)),
            "D is shown the answer: its input must be the noisy x_t"),
    Mistake("variance for standard deviation", _reading(mix=lambda x0, a, s, z: a * x0 + s**2 * z),
            "the noise in x_t has the standard deviation sigma; you multiplied by the variance"),
    Mistake("signal not faded", _reading(mix=lambda x0, a, s, z: x0 + s * z),
            "x_t holds alpha(t) times the vectors, not all of them"),
    Mistake("sum", _reading(loss=lambda logits, numbers: _cross_entropy(logits, numbers) * numbers.numel()),
            "you add up over all words; take the mean, or long sentences and large batches weigh more"),
    Mistake("mean over sentences", _reading(loss=lambda logits, numbers: _cross_entropy(logits, numbers) * numbers.shape[1]),
            "you add up the words of a sentence; take the mean over all words of the batch"),
    Mistake("no softmax", _reading(loss=lambda logits, numbers: -logits.gather(2, numbers[..., None]).mean()),
            "that is minus the logit of the right word; it must win *against the others*, so it needs a softmax"),
    Mistake("softmax over places", _reading(loss=lambda logits, numbers: -logits.log_softmax(1).gather(2, numbers[..., None]).mean()),
            "your softmax runs over the places; the words of the vocabulary compete, at each place"),
    Mistake("scored by distance", _read_by_distance,
            "you score a word by its distance, as rounding does; equation (12.4) scores it by an inner product"),
    Mistake("reads the noise", _reading(read=lambda D, x0, x_t, z, t: (x_t - levels(D, x_t, t)[0] * D(x_t, t)) / levels(D, x_t, t)[1]),
            "you read the predicted noise; the words are in the predicted x_0"),
    Mistake("bare number", lambda *case: _read(*case).item(),
            "the value is right, but `.item()` makes a bare number of it, which cannot be differentiated any more"),
    Mistake("mean over batch, sum over words", _reading(loss=lambda logits, numbers: _cross_entropy(logits, numbers) * len(numbers)),
            "you add up the sentences; take the mean over all words of the batch"),
    Mistake("softmax before the cross-entropy", _reading(loss=lambda logits, numbers: _cross_entropy(logits.softmax(-1), numbers)),
            "`cross_entropy` takes a softmax itself: give it the logits, not the probabilities"),
    Mistake("probability for its logarithm", _reading(
        loss=lambda logits, numbers: -logits.softmax(-1).gather(2, numbers[..., None]).mean()),
            "you average the probability of the right word; (12.4) has its logarithm"),
    Mistake("sign", _reading(loss=lambda logits, numbers: -_cross_entropy(logits, numbers)),
            "your loss falls as the words get harder to read: (12.4) has a minus, and `cross_entropy` has it inside"),
    Mistake("squared error", lambda D, numbers, vectors, noise, t: (
        D(_mixed(D, numbers, vectors, noise, t), t) - vectors[numbers]).square().mean(),
            "that is the denoising loss; here the words are to be told apart, by their cross-entropy"),
    Mistake("noise of one's own", lambda D, numbers, vectors, noise, t: _read(D, numbers, vectors, torch.randn_like(noise), t),
            "you drew noise of your own; use the noise that was handed in"),
    Mistake("no noise", _reading(mix=lambda x0, a, s, z: a * x0),
            "your x_t has faded, but holds no noise"),
    Mistake("noise in full", _reading(mix=lambda x0, a, s, z: a * x0 + z),
            "the noise in x_t has the level sigma(t); yours has level 1 at every time"),
    Mistake("levels exchanged", _reading(mix=lambda x0, a, s, z: s * x0 + a * z),
            "alpha and sigma have changed places"),
], tips=["x0 is `vectors[numbers]`, and `levels(D, x0, t)` are alpha and sigma to mix it with the noise",
         "`nf.cross_entropy` wants logits (M, V) and numbers (M,): flatten the batch and the places into one axis"],
    call=_value_and_gradient)


# --- 12.4 ------------------------------------------------------------------------------------------------------------

def memory(x: Tensor, t, schedule: Schedule, points: Tensor) -> Tensor:
    """Exact E[x_0 | x_t = x] (B, ...) when x_0 is one of the points (N, ...), all equally likely."""
    return _recall(x, t, schedule, points)


def _recall(x, t, schedule, points, *, centre=lambda a, P: a[..., None] * P, exponent=lambda d2, s: -d2 / (2 * s**2),
            weigh=lambda e: e.softmax(1), answer=lambda P, a: P):
    """The posterior mean with one ingredient replaced."""
    X, P = x.flatten(1), points.flatten(1)
    alpha, sigma = per_row(schedule.alpha(t), X), per_row(schedule.sigma(t), X)
    squared = (X[:, None] - centre(alpha, P)).square().sum(2)                                    # (B, N)
    return (weigh(exponent(squared, sigma)) @ answer(P, alpha)).view_as(x)


def libraries(generator: torch.Generator) -> Iterator[tuple]:
    """x that belong to a point or lie between them, times one or one a row, points of any shape; the last, far from all."""
    for schedule, shape, N in zip(SCHEDULES, SHAPES, (1, 4, 7, 3, 12)):
        points = normal(generator, N, *shape[1:])
        t = between(generator, 0.2, 0.95, shape[0]) if shape[0] > 1 else between(generator, 0.2, 0.95)
        yield normal(generator, *shape), t, schedule, points
    yield 6 * normal(generator, 3, 8, 4, 4), torch.tensor(0.1, dtype=torch.float64), SCHEDULES[1], normal(generator, 9, 8, 4, 4)


def _recalled(**changes):
    return lambda *case: _recall(*case, **changes)


def _in_linear_space(e):
    w = e.exp()
    return w / w.sum(1, keepdim=True)


MEMORY = Exercise("12.4", "The exact denoiser of finitely many points", memory, libraries, [
    Mistake("points not faded", _recalled(centre=lambda a, P: P[None]),
            "a point that hides in x_t has faded: x_t is scattered around alpha(t) times the point"),
    Mistake("underflow", _recalled(weigh=_in_linear_space),
            "far from all points every exp() is 0, and 0/0 is NaN; take the softmax of the exponents instead"),
    Mistake("sigma not squared", _recalled(exponent=lambda d2, s: -d2 / (2 * s)),
            "in a Gaussian's exponent the squared distance is divided by twice the *variance*"),
    Mistake("two forgotten", _recalled(exponent=lambda d2, s: -d2 / s**2),
            "a Gaussian's exponent is the squared distance over *twice* the variance"),
    Mistake("distance not squared", _recalled(exponent=lambda d2, s: -d2.sqrt() / (2 * s**2)),
            "a Gaussian falls with the *squared* distance"),
    Mistake("sign", _recalled(exponent=lambda d2, s: d2 / (2 * s**2)),
            "your weights grow with the distance: the sign of the exponent"),
    Mistake("prior weights", _recalled(weigh=lambda e: torch.full_like(e, 1 / e.shape[1])),
            "you average all points alike; given x_t, those it can have come from count more"),
    Mistake("nearest point", _recalled(weigh=lambda e: nf.one_hot(e.argmax(1), e.shape[1]).to(e)),
            "that is the nearest point; while several may hide in x_t, the *mean* lies between them"),
    Mistake("softmax over the batch", _recalled(weigh=lambda e: e.softmax(0)),
            "your softmax runs over the rows of the batch; for each row, the points compete"),
    Mistake("answer faded", _recalled(answer=lambda P, a: P if a.ndim else a * P),
            "you average the faded points; asked is the mean of x_0, of the points themselves"),
    Mistake("noise not rescaled", lambda x, t, schedule, points: _recall(
        x / per_row(schedule.alpha(t), x), t, schedule, points, centre=lambda a, P: P[None]),
            "you divide x by alpha, which may be done, but it divides the noise in x as well: how large is it then?"),
    Mistake("brackets", _recalled(exponent=lambda d2, s: -d2 / 2 * s**2),
            "Python goes from left to right: what is divided by 2 and then multiplied by sigma^2 is not divided by it"),
    Mistake("mean over the numbers", lambda x, t, schedule, points: _recall(
        x, t, schedule, points, exponent=lambda d2, s: -d2 / x[0].numel() / (2 * s**2)),
            "your distance is a mean over the numbers of a point; the exponent has their sum"),
    Mistake("one level for all rows", lambda x, t, schedule, points: _recall(x, t.mean(), schedule, points),
            "you use one time for the whole batch; every row may have its own"),
    Mistake("exp before the softmax", _recalled(weigh=lambda e: e.exp().softmax(1)),
            "a softmax takes the exponential itself: give it the exponents, not what has been through exp already"),
    Mistake("not normalised", _recalled(weigh=torch.exp),
            "your weights do not add up to 1: the sum below the fraction line of (12.5) is missing"),
    Mistake("underflow guarded", _recalled(weigh=lambda e: e.exp() / e.exp().sum(1, keepdim=True).clamp(min=1e-30)),
            "no NaN, but far from all points every weight comes out as 0, and so does the answer: a guard cannot bring back "
            "what has underflowed; take the softmax of the exponents"),
], tips=["flatten rows and points to (B, d) and (N, d); `(X[:, None] - alpha * P)` is (B, N, d) if alpha is a number or (B, 1, 1)",
         "`.softmax(1)` of minus the squared distances over 2 sigma^2, then `weights @ P`"])


# --- 12.5 ------------------------------------------------------------------------------------------------------------

def perplexity(sentences: list[str], probability: Callable[[tuple[str, str]], float]) -> float:
    """exp of the mean surprise of every word and every end under a bigram model: probability((word before, word))."""
    return _perplexity(sentences, probability)


def _pairs(sentence):
    words = ["", *sentence.split(), ""]
    return list(pairwise(words))


def _mean(surprises):
    return sum(map(sum, surprises)) / sum(map(len, surprises))


def _perplexity(sentences, probability, *, pairs=_pairs, log=math.log, mean=_mean, power=math.exp):
    """The perplexity with one ingredient replaced."""
    return power(mean([[-log(probability(pair)) for pair in pairs(s)] for s in sentences]))


def corpora(generator: torch.Generator) -> Iterator[tuple]:
    """Sentences of an invented language, one of them empty, and the bigram probabilities of others."""
    words = "ba do ki lu me no pa ri".split()
    for n in (3, 5, 8):
        drawn = [" ".join(words[i] for i in torch.randint(8, (int(k),), generator=generator))
                 for k in torch.randint(1, 9, (n + 20,), generator=generator)]
        yield [*drawn[:n], ""], text.NGrams(drawn[n:], len(words), order=2).probability


def _scored(**changes):
    return lambda *case: _perplexity(*case, **changes)


PERPLEXITY = Exercise("12.5", "Perplexity", perplexity, corpora, [
    Mistake("end not counted", _scored(pairs=lambda s: _pairs(s)[:-1]),
            "the end of a sentence is a decision too: without it, a sentence that breaks off costs nothing"),
    Mistake("first word not counted", _scored(pairs=lambda s: _pairs(s)[1:]),
            'the first word is missing: the word before it is ""'),
    Mistake("word and context swapped", _scored(pairs=lambda s: [pair[::-1] for pair in _pairs(s)]),
            "you ask for (word, word before it); probability() wants the earlier word first"),
    Mistake("words for themselves", _scored(pairs=lambda s: [pair[1:] for pair in _pairs(s)]),
            "you ask for each word by itself; any order of words would then score alike"),
    Mistake("mean of sentences' perplexities", lambda sentences, probability: sum(
        _perplexity([s], probability) for s in sentences) / len(sentences),
            "you average the perplexities of sentences; the mean is taken of all surprises, before the exp"),
    Mistake("mean of means", _scored(mean=lambda surprises: sum(sum(s) / len(s) for s in surprises) / len(surprises)),
            "you take the mean of each sentence first, so that a short one counts as much as a long one"),
    Mistake("divided by words only", _scored(mean=lambda surprises: sum(map(sum, surprises)) / sum(len(s) - 1 for s in surprises)),
            "you add up the surprises of words and ends, but divide by the number of words"),
    Mistake("sum", _scored(mean=lambda surprises: sum(map(sum, surprises))),
            "you take the exp of the *sum*, which grows with every word; of the mean, it is comparable"),
    Mistake("bits in, nats out", _scored(log=math.log2),
            "you measure the surprise in bits and undo it with e; logarithm and power must have the same base"),
    Mistake("sign", _scored(power=lambda m: math.exp(-m)),
            "yours is below 1: a surprise is *minus* the logarithm of a probability"),
    Mistake("not undone", _scored(power=lambda m: m),
            "that is the mean surprise in nats; the perplexity is its exp"),
    Mistake("mean of 1/p", lambda sentences, probability: _mean([[1 / probability(pair) for pair in _pairs(s)] for s in sentences]),
            "you average 1/p itself; the logarithm comes first, or one rare word outweighs all others"),
    Mistake("neither beginning nor end", _scored(pairs=lambda s: _pairs(s)[1:-1]),
            'both ends of every sentence are missing: put "" before the first word and after the last'),
    Mistake("letters", _scored(pairs=lambda s: list(pairwise(["", *s, ""]))),
            "you go through the letters of a sentence; `sentence.split()` has its words"),
    Mistake("an empty word in an empty sentence", _scored(pairs=lambda s: list(pairwise(["", *s.split(" "), ""]))),
            "an empty sentence has no words, but split(' ') finds an empty one in it; split() does not"),
    Mistake("empty sentences left out", lambda sentences, probability: _perplexity([s for s in sentences if s], probability),
            "you leave the empty sentence out; that it ends at once is a decision, too"),
    Mistake("marks of one's own", _scored(pairs=lambda s: list(pairwise(["<s>", *s.split(), "</s>"]))),
            'the model knows beginning and end as the empty word ""'),
    Mistake("last sentence only", lambda sentences, probability: _perplexity(sentences[-1:], probability),
            "only the last sentence counts: is your list made anew for each of them?"),
    Mistake("nats in, bits out", _scored(power=lambda m: 2**m),
            "you measure the surprise in nats and undo it with 2; logarithm and power must have the same base"),
    Mistake("divided by sentences", _scored(mean=lambda surprises: sum(map(sum, surprises)) / len(surprises)),
            "you divide by the number of sentences; perplexity is a mean over words and ends"),
], tips=['put "" before the first word and after the last; `zip(words, words[1:])` are the pairs',
         "collect -log(probability(pair)) of all pairs of all sentences in one list, and take its mean once"])


# --- 12.6 ------------------------------------------------------------------------------------------------------------

class Coupled(Blob):
    """A denoiser whose guess at one place depends on the others, as in a sentence."""

    def __call__(self, x: Tensor, t, cond: Tensor | None = None) -> Tensor:
        return super().__call__(x, t) + 0.4 * x.flatten(1).sin().mean(1).view(-1, *[1] * (x.ndim - 1))


def filled_step(D, x: Tensor, t, s, known: Tensor, mask: Tensor, z: Tensor) -> Tensor:
    """One DDIM step (B, ...) from t to s; before it, the places of the mask get what is known, as noisy as x is."""
    return _fill(D, x, t, s, known, mask, z)


def _fill(D, x, t, s, known, mask, z, *, at=lambda t, s: t, noisy=lambda a, b, known, z: a * known + b * z,
          chosen=lambda mask: mask):
    """The step with one ingredient replaced."""
    return ddim(D, torch.where(chosen(mask), noisy(*levels(D, x, at(t, s)), known, z), x), t, s)


def gaps(generator: torch.Generator) -> Iterator[tuple]:
    for schedule, shape in zip(SCHEDULES, SHAPES):
        s = between(generator, 0.05, 0.45, shape[0])
        mask = between(generator, 0, 1, *shape) < 0.5
        mask[:, 0] = True
        yield (Coupled(schedule), normal(generator, *shape), s + between(generator, 0.1, 0.4, shape[0]), s,
               normal(generator, *shape), mask, normal(generator, *shape))


def _filling(**changes):
    return lambda *case: _fill(*case, **changes)


def _afterwards(D, x, t, s, known, mask, z):
    alpha, sigma = levels(D, x, s)
    return torch.where(mask, alpha * known + sigma * z, ddim(D, x, t, s))


class _Knowing(Coupled):
    """D, whose guess is replaced where something is known."""

    def __init__(self, D, known, mask):
        self.schedule, self.D, self.known, self.mask = D.schedule, D, known, mask

    def __call__(self, x: Tensor, t, cond: Tensor | None = None) -> Tensor:
        return torch.where(self.mask, self.known, self.D(x, t))


FILLING = Exercise("12.6", "A step that keeps what is known", filled_step, gaps, [
    Mistake("known part clean", _filling(noisy=lambda a, b, known, z: known),
            "you put the known part in without noise; at time t the model expects every place to be as noisy as t says"),
    Mistake("faded, but clean", _filling(noisy=lambda a, b, known, z: a * known),
            "your known part has faded, but has no noise in it; D takes it for something else"),
    Mistake("noisy, but not faded", _filling(noisy=lambda a, b, known, z: known + b * z),
            "a state at time t holds alpha(t) times what is known"),
    Mistake("level of s", _filling(at=lambda t, s: s),
            "you made the known part as noisy as time s; D is asked about time t"),
    Mistake("variance for standard deviation", _filling(noisy=lambda a, b, known, z: a * known + b**2 * z),
            "z is multiplied by sigma, the standard deviation, not by the variance"),
    Mistake("mask inside out", _filling(chosen=lambda mask: ~mask),
            "you replace what is *not* known; the mask is True where something is known"),
    Mistake("mask ignored", _filling(chosen=torch.ones_like),
            "you replace every place; where the mask is False, x stays as it is"),
    Mistake("plain step", lambda D, x, t, s, known, mask, z: ddim(D, x, t, s),
            "that is a DDIM step; what is known is nowhere used"),
    Mistake("replaced afterwards", _afterwards,
            "you put the known part in after the step, so D never saw it, and the other places cannot agree with it"),
    Mistake("replaced before and after", lambda D, x, t, s, known, mask, z: torch.where(
        mask, levels(D, x, s)[0] * known + levels(D, x, s)[1] * z, filled_step(D, x, t, s, known, mask, z)),
            "before the step you replace as you should, and after it once more: the next step will do that"),
    Mistake("clean afterwards", lambda D, x, t, s, known, mask, z: torch.where(mask, known, ddim(D, x, t, s)),
            "you put the clean known part in after the step: D never saw it, and at time s it should not be clean"),
    Mistake("noise of one's own", lambda D, x, t, s, known, mask, z: filled_step(D, x, t, s, known, mask, torch.randn_like(z)),
            "you drew noise of your own; use the z that was handed in"),
    Mistake("levels exchanged", _filling(noisy=lambda a, b, known, z: b * known + a * z),
            "alpha and sigma have changed places"),
    Mistake("added", lambda D, x, t, s, known, mask, z: ddim(D, x + mask * (levels(D, x, t)[0] * known + levels(D, x, t)[1] * z), t, s),
            "you *add* the known part to what is there; it takes its place"),
    Mistake("no step", lambda D, x, t, s, known, mask, z: torch.where(mask, levels(D, x, t)[0] * known + levels(D, x, t)[1] * z, x),
            "the known part is in its place, but the step to s is missing"),
    Mistake("guess replaced", lambda D, x, t, s, known, mask, z: ddim(_Knowing(D, known, mask), x, t, s),
            "you replace D's guess; D itself should see the known part, in x, so that the other places can agree with it"),
], tips=["`levels(D, x, t)` are alpha and sigma; what is known becomes alpha known + sigma z",
         "`torch.where(mask, a, b)` takes a where the mask is True; then one `ddim(D, x, t, s)`"])


EXERCISES = [INDEPENDENT, ROUNDING, ROUNDING_LOSS, MEMORY, PERPLEXITY, FILLING]

PREDICTIONS = [
    Prediction("12.1", "b", {
        "a": "The starts are independent, but they are not read: D looks at both numbers before it moves either of them.",
        "b": "The guess of the exact denoiser lies on the line between the two phrases, or next to it, wherever x is.",
        "c": "It is not a matter of distance: D's guess lies between the two real phrases even for a start in the very corner.",
    }),
    Prediction("12.2", "b", {
        "a": "A word has many numbers, and noise that is independent in each of them nearly cancels in the sum that decides.",
        "b": "Between a few thousand points in so many dimensions there is much room, and the decoder was trained on noisy latents.",
        "c": "No network can read what is no longer there: at ten times the signal, the words of the latent are lost.",
    }),
    Prediction("12.3", "c", {
        "a": "New sentences would be errors: the data, as this model knows them, have no probability anywhere else.",
        "b": "Blends appear in D's guesses at high noise; as the noise falls, the weights decide for one point.",
        "c": "The exact flow ends in the data's distribution, and that is the list itself.",
    }),
    Prediction("12.4", "c", {
        "a": "Real text is the most *typical*, not the most probable: among short texts there are more probable ones.",
        "b": "Text of nothing but common words would indeed score better than real text, but there is something yet more probable.",
        "c": "An end is so frequent that the model expects one now and then even at the start; and silence gets nothing else wrong.",
    }),
]
