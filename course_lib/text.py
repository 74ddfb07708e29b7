"""Text as numbers: captions that condition an image model, sentences as continuous latents, and measures of sentences."""

import difflib
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as nf
from torch import Tensor, nn

from . import data
from .arguments import mean_of, need_labels, need_shape, need_whole, need_within
from .autoencoders import Autoencoder
from .networks import Attention

LENGTH = 12                                                              # words in a caption
SIDE = 4                                                                 # of the sheet of latents of a sentence
PLACES = SIDE**2                                                         # words in a sentence at most
NONE = -1                                                                # where there is no word
# An inflected form and what it may come from, the likeliest first: ponies, boxes, cats, cat's, tried, jumped, baked ...
ENDINGS = (
    ("ies", "y"), ("s", ""), ("es", ""), ("'s", ""), ("ied", "y"), ("ed", ""), ("ed", "e"), ("ing", ""), ("ing", "e"),
    ("er", ""), ("er", "e"), ("ier", "y"), ("est", ""), ("est", "e"), ("iest", "y"), ("ly", ""), ("ily", "y"),
    ("y", ""), ("ful", ""),
)


def split(text: str) -> list[str]:
    """The words of a text: lower case, without accents, letters and figures with apostrophes inside.

    "Don't panic, e-mail 3D!" -> ["don't", "panic", "e", "mail", "3d"]
    """
    return re.findall(r"[a-z0-9]+(?:'[a-z]+)*", _plain(text))


def known(word: str, words: tuple[str, ...] | None = None) -> int:
    """The number of a word as `split` gives it, or of what it is an inflected form of; -1 if `words` has neither.

    `words` as in `caption`.
    """
    numbers = _numbers() if words is None else {word: number for number, word in enumerate(words)}
    if word in numbers:
        return numbers[word]
    fitting = [pair for pair in ENDINGS if word.endswith(pair[0]) and len(word) > len(pair[0]) + 2]
    stems = [word.removesuffix(ending) + start for ending, start in fitting]
    single = [stem[:-1] for stem in stems if stem[-2:-1] == stem[-1]]    # running -> runn -> run
    return next((numbers[form] for form in (*stems, *single) if form in numbers), NONE)


def caption(text: str, words: tuple[str, ...] | None = None) -> tuple[torch.Tensor, str | None]:
    """A caption as a row of word numbers (12,) int64, -1 where there is no word, and what to tell its author, if anything.

    `words` is the vocabulary, that of `data.words()` if not given. Any string will do: what is not a known word is left
    out, and the message, plain text without anything from the input but letters and figures, says so and suggests
    near spellings. A string without a known word gives the empty caption, which an image model takes for no condition.
    """
    text = re.sub(r"<[^<>]*>", " ", text[:1000])                         # a tag is no word
    typed = split(text)
    found = [(word, known(word, words)) for word in typed]
    numbers = [number for _, number in found if number != NONE]
    strange = dict.fromkeys(word for word, number in found if number == NONE)
    remarks = [_suggest(word, data.words().words if words is None else words) for word in list(strange)[:3]]
    if len(strange) > 3:
        remarks.append(f"Nor {len(strange) - 3} more.")
    if any(unicodedata.category(letter)[0] in "LNS" for letter in _plain(text) if not letter.isascii()):
        remarks.append("I can only read words in the letters a to z.")
    if len(numbers) > LENGTH:
        remarks.append(f"I use the first {LENGTH} words.")
    if not numbers:
        remarks.append("Type a few words, such as: red apple 3d.")
    row = (numbers + [NONE] * LENGTH)[:LENGTH]
    return torch.tensor(row), " ".join(remarks) or None


def _plain(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", text.replace("’", "'"))
    return "".join(letter for letter in decomposed if not unicodedata.combining(letter)).casefold()


@cache
def _numbers() -> dict[str, int]:
    return {word: number for number, word in enumerate(data.words().words)}


def _suggest(word: str, words: tuple[str, ...]) -> str:
    if len(word) > 20:
        return f'I do not know "{word[:20]}…".'
    alike = [other for other in words if other[0] == word[0] and len(other) > 2]         # a tenth of the time of all
    near = [f'"{other}"' for other in difflib.get_close_matches(word, alike, n=2, cutoff=0.7)]
    return f'I do not know "{word}"' + (f"; did you mean {' or '.join(near)}?" if near else ".")


# ---------------------------------------------------------------------------------------------- sentences
@cache
def vocabulary() -> data.Words:
    """The words that the sentences of the course use, with their vectors: the first of `data.words()`."""
    used = {word for part in ("train", "test") for sentence in data.sentences(part) for word in sentence.split()}
    words, vectors = data.words()
    return data.Words(words[:len(used)], vectors[:len(used)])


def tokens(sentences: list[str]) -> Tensor:
    """Sentences as numbers of words in `vocabulary()`: (N, 16) int64, -1 in the places after the last word.

    Raises ValueError for a word that is not among them or a sentence of more than 16 words.
    """
    numbers, rows = {word: number for number, word in enumerate(vocabulary().words)}, []
    for sentence in sentences:
        typed = split(sentence)
        if len(typed) > PLACES:
            raise ValueError(f"sentences: expected at most {PLACES} words in each, got {len(typed)} in {sentence[:80]!r}")
        if strange := [word for word in typed if word not in numbers]:
            raise ValueError(f"sentences: expected words of vocabulary(), got {strange[0]!r} in {sentence[:80]!r}")
        rows.append([numbers[word] for word in typed] + [NONE] * (PLACES - len(typed)))
    return torch.tensor(rows, dtype=torch.int64).view(-1, PLACES)


def sentence(numbers: Tensor) -> str:
    """The words of one row of tokens (n,), up to the first place without one."""
    words = vocabulary().words
    numbers = need_labels(numbers, numbers.shape[:1], len(words), "numbers")
    return " ".join(words[number] for number in ended(numbers) if number != NONE)


def ended(numbers: Tensor) -> Tensor:
    """Tokens (..., 16) without what follows the first place that has no word."""
    return torch.where((numbers < 0).cumsum(-1) > 0, NONE, numbers)


def rounded(embeddings: Tensor, vectors: Tensor) -> Tensor:
    """Numbers (...) of the vectors (V, d) nearest to these embeddings (..., d): the plainest way back to words."""
    need_shape(embeddings, (*embeddings.shape[:-1], vectors.shape[1]), "embeddings")
    return torch.cdist(embeddings.reshape(-1, vectors.shape[1]), vectors).argmin(1).view(embeddings.shape[:-1])


class Block(nn.Module):
    """Attention and MLP over tokens (B, N, width), each added to what it sees (Vaswani et al. 2017; norms first)."""

    def __init__(self, width: int, heads: int = 4):
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(width), Attention(width, heads), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Mixer(nn.Module):
    """A small transformer from vectors (B, 16, inp) to vectors (B, 16, out): every place sees the others."""

    def __init__(self, inp: int, out: int, width: int, depth: int):
        super().__init__()
        self.inp, self.place = nn.Linear(inp, width), nn.Parameter(0.02 * torch.randn(PLACES, width))
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, out))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.blocks(self.inp(x) + self.place))


class SentenceAutoencoder(Autoencoder):
    """Sentences to a sheet of latents (B, channels, 4, 4), a vector for each place, and back to all their words at once.

    Words enter by fixed vectors (V, d) and leave by inner products with the same ones, so a word that is rare, or even in no
    sentence of the training set, needs no weights of its own. The fixed vectors are not stored with the weights. The latent
    vector of a place is normalised over its channels: so the noise that `sentence_loss` adds to it has a size.
    """

    def __init__(self, vectors: Tensor, channels: int = 32, width: int = 128, depth: int = 2):
        super().__init__(channels, sides=2, sigma2=1.0)
        d = vectors.shape[1]
        self.register_buffer("vectors", d**0.5 * vectors, persistent=False)      # their numbers are of order one
        self.none = nn.Parameter(torch.randn(1, d))                              # the vector where there is no word
        self.encoder, self.decoder = Mixer(d, channels, width, depth), Mixer(channels, d, width, depth)

    def latent(self, numbers: Tensor) -> Tensor:
        """Raw latents of tokens (B, 16). What follows a place without a word makes no difference."""
        numbers = need_labels(numbers, (*numbers.shape[:1], PLACES), len(self.vectors), "numbers")
        z = self.encoder(self.table()[ended(numbers)])                                            # (B, 16, channels)
        return nf.layer_norm(z, z.shape[2:]).transpose(1, 2).unflatten(2, (SIDE, SIDE))

    def reconstruct(self, z: Tensor) -> Tensor:
        """Logits (B, 16, V + 1) of the words at each place, the last for no word."""
        return self.decoder(z.flatten(2).transpose(1, 2)) @ self.table().T

    @torch.no_grad()
    def words(self, z: Tensor, batch: int = 64) -> Tensor:
        """The likeliest tokens (B, 16) of scaled latents, each place for itself, up to the first without a word."""
        best = torch.cat([self.decode(part).argmax(2) for part in z.split(batch)])
        return ended(torch.where(best == len(self.vectors), NONE, best))

    def table(self) -> Tensor:
        """The vectors of all words and, last, where -1 finds it, that of no word."""
        return torch.cat([self.vectors, self.none])


def sentence_loss(noise: float = 1.0, replaced: float = 0.5) -> Callable[..., Tensor]:
    """loss(model, tokens (B, 16), generator): cross-entropy of all words at once, read from noisy latents, nats a place.

    The noise of a row has a standard deviation between 0 and `noise`, because what diffusion makes is never exact. In a share
    `replaced` of the rows, any words at all stand in for some of the words, in a part of the places between none and all:
    so codes are learned of words that few sentences have.
    """
    def loss(model: SentenceAutoencoder, numbers: Tensor, generator: torch.Generator) -> Tensor:
        (B, n), V, device = numbers.shape, len(model.vectors), numbers.device
        level, part, chosen = torch.rand(3, B, 1, generator=generator, device=device)
        other = torch.rand(B, n, generator=generator, device=device) < part * (chosen < replaced)
        any_word = torch.randint(V, (B, n), generator=generator, device=device)
        numbers = torch.where(other & (numbers >= 0), any_word, numbers)
        z = model.encode(numbers)
        z = z + noise * level[..., None, None] * torch.randn(z.shape, generator=generator, device=device)
        words = numbers.flatten().remainder(V + 1)                                              # -1 is the last, V
        return mean_of(nf.cross_entropy(model.decode(z).flatten(0, 1), words, reduction="none"), "numbers")

    return loss


# ---------------------------------------------------------------------------------------------- how good sentences are
def accuracy(guesses: Tensor, numbers: Tensor) -> tuple[float, float]:
    """Share of the words of tokens (N, 16) that the guesses have at the same place, and share of sentences all right."""
    same = need_shape(guesses, numbers.shape, "guesses") == numbers
    if not bool((numbers >= 0).any()):
        raise ValueError(f"numbers: expected tokens with at least one word, got {tuple(numbers.shape)} without")
    return same[numbers >= 0].float().mean().item(), same.all(1).float().mean().item()


def share_found(sentences: list[str], training: list[str]) -> float:
    """Share of these sentences that are, word for word, in the training set. ValueError for no sentences."""
    there = set(training)
    return sum(s in there for s in _some(sentences)) / len(sentences)


def mean_length(sentences: list[str]) -> float:
    """Words in a sentence, on average. ValueError for no sentences."""
    return sum(len(s.split()) for s in _some(sentences)) / len(sentences)


def _some(sentences: list[str]) -> list[str]:
    if not sentences:
        raise ValueError("sentences: expected at least one, got none")
    return sentences


class NGrams:
    """How likely a word is after the order - 1 words before it, counted in sentences; absolute discounting, interpolated.

    p(w | context) = [max(n(context w) - discount, 0) + discount kinds(context) p(w | shorter context)]/n(context), where
    kinds counts the different words seen there, down to 1/size for each of the `size` words and the end of a sentence
    (Ney, Essen & Kneser 1994). Sums to one over words and end after every context.
    """

    def __init__(self, sentences: list[str], size: int, order: int = 3, discount: float = 0.75):
        self.size, self.order = need_whole(size, "size", 0) + 1, need_whole(order, "order")
        self.discount = need_within(discount, "discount", 0, 1)
        self.counts = Counter(gram[start:] for s in sentences for gram in self.grams(s) for start in range(order))
        self.kinds = Counter(gram[:-1] for gram in self.counts)
        self.totals = Counter()
        for gram, n in self.counts.items():
            self.totals[gram[:-1]] += n

    def grams(self, sentence: str) -> list[tuple[str, ...]]:
        """Each word, and the end "", after its context; the places before the first word are ""."""
        padded = [""] * (self.order - 1) + sentence.split() + [""]
        return list(zip(*(padded[i:] for i in range(self.order))))

    def probability(self, gram: tuple[str, ...]) -> float:
        """p(its last word | the words before it)."""
        if not gram:
            return 1 / self.size
        shorter, n = self.probability(gram[1:]), self.totals[gram[:-1]]
        kept = max(self.counts[gram] - self.discount, 0)
        return (kept + self.discount * self.kinds[gram[:-1]] * shorter) / n if n else shorter

    def perplexity(self, sentences: list[str]) -> float:
        """exp of the mean surprise of a word or an end: among how many equally likely words one would have to guess.

        An end is easy to guess, so short sentences, and most of all empty ones, score better than real ones: compare
        only sentences of like lengths, and state `mean_length` beside it. ValueError for no sentences.
        """
        surprises = [-math.log(self.probability(gram)) for s in _some(sentences) for gram in self.grams(s)]
        return math.exp(sum(surprises) / len(surprises))
