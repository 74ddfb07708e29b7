"""Data sets that come with the course, read from data/ and checked against data/checksums.json before use.

No call touches the network. Sources and licences are in data/README.md.
"""

import csv
import lzma
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from . import files

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
STYLES = ("noto", "twemoji", "flat", "3d")  # four sets of drawings of the same emoji; each is a word of the caption
# What data/ must hold; `course measure` writes its tables anew, so that only these have lasting check sums.
FILES = ("colour_features.safetensors", *(f"emoji/{style}.webp" for style in STYLES), "emoji/captions.csv", "fashion_mnist.npz",
         "sentences.txt.xz", "words.npz")

ROOT = files.find_root()


def checksums() -> dict[str, dict]:
    """What data/checksums.json says: file name -> {"sha256": 64 digits, "bytes": size}. ValueError if it is damaged."""
    return files.read_entries(ROOT / "data" / "checksums.json", {"sha256", "bytes"}, "`git checkout -- data/checksums.json`")


def entry(name: str) -> dict:
    """What data/checksums.json says of data/`name`. ValueError if that is nothing, or the table is damaged."""
    listed = checksums()
    if name not in listed:
        raise ValueError(f"name is {name!r}, expected one of the files in data/checksums.json: {', '.join(listed)}. To get "
                         "that table back: `git checkout -- data/checksums.json`")
    return listed[name]


def path(name: str) -> Path:
    """The file data/`name`, its check sum verified once per process.

    Raises ValueError for a name that data/checksums.json does not list or a file that is damaged, FileNotFoundError
    for one that is missing; both say how to get it back.
    """
    _verify_once(ROOT / "data" / name, entry(name)["sha256"], _advice(name))
    return ROOT / "data" / name


def verify_all() -> list[tuple[str, bool, str]]:
    """Check every one of FILES afresh: (name, is it sound, what to say about it)."""
    return [_report(name) for name in FILES]


def fashion_mnist(split: str = "train") -> tuple[torch.Tensor, torch.Tensor]:
    """Fashion-MNIST (Xiao, Rasul and Vollgraf 2017): images (N, 1, 28, 28) float32 in [-1, 1], labels (N,) int64.

    `split` is "train" (30,000 images, the first 3,000 of each class in their original order) or "test" (10,000,
    all there are). ValueError for another split or a damaged file, FileNotFoundError for a missing one.
    """
    _check_split(split)
    images, labels = _clothes(path("fashion_mnist.npz"), split)
    pixels = torch.tensor(images).unsqueeze(1).float()                   # (N, 1, 28, 28) in 0..255, a copy for each caller
    return pixels.div_(127.5).sub_(1), torch.tensor(labels).long()


class Emoji(NamedTuple):
    """Pictures of emoji: images (N, 3, 64, 64) float32 in [-1, 1] on white; style and name (N,) int64 say what each shows.

    `style` counts in STYLES, `name` in `emoji_captions()`.
    """

    images: torch.Tensor
    style: torch.Tensor
    name: torch.Tensor


class Caption(NamedTuple):
    """What Unicode's common locale data say of an emoji, its group, and which of its pictures are held out.

    `held_out` is "all", one of STYLES, or "" for none.
    """

    emoji: str
    name: str
    group: str
    keywords: tuple[str, ...]
    held_out: str


def emoji_captions() -> list[Caption]:
    """The emoji of the course, in the order of the sprite sheets. Errors as in `emoji`."""
    rows = csv.DictReader(path("emoji/captions.csv").read_text(encoding="utf-8").splitlines())
    return [Caption(**{**row, "keywords": tuple(row["keywords"].split("|"))}) for row in rows]


def emoji(split: str = "train") -> Emoji:
    """Emoji in four styles, by style and then by name.

    `split` is "test" (all pictures of 8 % of the emoji), "pairs" (of the other emoji, 8 % of the pictures, at most one of
    an emoji; its other styles are trained on), or "train" (the rest).

    Raises ValueError for another split or a damaged file, FileNotFoundError for a missing one.
    """
    held_out = [caption.held_out for caption in emoji_captions()]
    parts = []
    for style, word in enumerate(STYLES):
        member = {"train": lambda held, word=word: held not in ("all", word), "pairs": word.__eq__, "test": "all".__eq__}
        _check_split(split, *member)
        name = torch.tensor([i for i, held in enumerate(held_out) if member[split](held)])
        parts.append((_sprites(path(f"emoji/{word}.webp"))[name], torch.full_like(name, style), name))
    images, styles, names = (torch.cat(part) for part in zip(*parts))
    return Emoji(images.float().div_(127.5).sub_(1), styles, names)


def colour_features() -> dict[str, torch.Tensor]:
    """The weights of `networks.ColourFeatures`, float32. ValueError for a damaged file, FileNotFoundError for a missing one."""
    return {name: weight.float() for name, weight in load_file(path("colour_features.safetensors")).items()}


class Words(NamedTuple):
    """A vocabulary: words (V,), and a vector of length 1 for each, near for words of like meaning; (V, d) float32."""

    words: tuple[str, ...]
    vectors: torch.Tensor


@cache
def words() -> Words:
    """The course's vocabulary. First the words of `sentences`, the commonest first, then others, the commonest first.

    The vectors are principal components of what the text encoder MiniLM makes of each word. All calls give the same
    tensor, so do not change it in place. Raises ValueError if the file is damaged, FileNotFoundError if it is missing.
    """
    with np.load(path("words.npz")) as members:
        letters, rounded = members["words"], torch.from_numpy(members["vectors"])
    vectors = rounded.float()                                            # (V, 128), in steps of 1/64
    return Words(tuple(letters.tobytes().decode().split("\n")), vectors / vectors.norm(dim=1, keepdim=True))


def sentences(split: str = "train") -> list[str]:
    """Short English sentences, WordNet's examples, in a lasting random order: lower case, 4 to 16 words, one space between.

    `split` is "train" or "test"; no test sentence is a near copy of a training one. Every word is one of `words()`.

    Raises ValueError for another split or a damaged file, FileNotFoundError for a missing one.
    """
    _check_split(split)
    train, test = lzma.decompress(path("sentences.txt.xz").read_bytes()).decode().split("\n\n")
    return (train if split == "train" else test).split("\n")


# --- the code of the clothes -----------------------------------------------------------------------------------------
# A pixel is coded by how often its value follows on its context, by asymmetric numeral systems (rANS, Duda 2013): a state below
# 2^32 says what the next pixel is, a likely one at less expense, and when it has run low it takes 16 bits more from a queue.
# Each state is a lane with pictures of its own, and all lanes take their steps together.
PARTS, SUM = 4, 1 << 13  # pictures of a lane; what the frequencies of a context add up to
_LEVELS = np.searchsorted([1, 4, 9, 15, 22, 31, 42, 54, 69, 87, 108, 135, 172, 225, 300, 420], np.arange(1531), "right")


def canvas(count: int) -> np.ndarray:
    """Room for pictures (30, 31, count), all 0: two rows above them, two columns left and one right of them are empty."""
    return np.zeros((30, 31, count), np.int16)


def contexts(canvas: np.ndarray, y: int, x: int) -> np.ndarray:
    """How busy and how bright it is before pixel (y, x) of each picture in a canvas: a number below 17 * 32 * 4 for each.

    The guess is that of LOCO-I (Weinberger et al. 2000), the middle one of left, above, and both less what is between them.
    """
    (nn, nne), (nw, n, ne), (ww, w) = canvas[y, x + 2:x + 4], canvas[y + 1, x + 1:x + 4], canvas[y + 2, x:x + 2]
    busy = abs(w - nw) + abs(n - nw) + abs(n - ne) + abs(w - ww) + abs(n - nn) + abs(ne - nne)
    guess = np.clip(w + n - nw, np.minimum(w, n), np.maximum(w, n)) >> 3
    return (_LEVELS[busy] * 32 + guess) * 4 + 2 * (w == 0) + (n == 0)


def decoded(frequencies: np.ndarray, states: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Pictures (PARTS * lanes, 28, 28), bytes, from first states (lanes,) and words; frequencies (contexts, 256), sums SUM."""
    values = np.repeat(np.tile(np.arange(256, dtype=np.uint8), len(frequencies)), frequencies.ravel())
    starts = (frequencies.cumsum(1, dtype=np.uint32) - frequencies).ravel()
    frequencies, states, at, parts = frequencies.astype(np.uint32).ravel(), states.copy(), 0, []
    for _ in range(PARTS):
        pictures = canvas(len(states))
        for y, x in np.ndindex(28, 28):
            context, slot = contexts(pictures, y, x), states % SUM
            value = values[context * SUM + slot]
            seen = context * 256 + value
            states = frequencies[seen] * (states // SUM) + slot - starts[seen]
            short = np.flatnonzero(states < 1 << 16)
            states[short] = states[short] << 16 | words[at:at + len(short)]
            pictures[y + 2, x + 2], at = value, at + len(short)
        parts.append(pictures[2:, 2:30].transpose(2, 0, 1).astype(np.uint8))
    return np.concatenate(parts)


@cache
def _clothes(path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (N, 28, 28) and labels (N,) as bytes, decoded once a process."""
    with np.load(path) as members:                                       # a member is decompressed when it is asked for
        labels = members[f"{split}_labels"]
        return decoded(members["frequencies"], members[f"{split}_states"], members[f"{split}_words"]), labels


def _check_split(split: str, *known: str) -> None:
    known = known or ("train", "test")
    if split not in known:
        raise ValueError(f"split is {split!r}, expected {' or '.join(map(repr, known))}")


def _sprites(path: Path, size: int = 64) -> torch.Tensor:
    """The pictures of a sprite sheet, row by row: (N, 3, size, size) bytes."""
    with Image.open(path) as sheet:
        pixels = torch.from_numpy(np.array(sheet.convert("RGB")))        # (rows * size, columns * size, 3)
    return pixels.unflatten(1, (-1, size)).unflatten(0, (-1, size)).permute(0, 2, 4, 1, 3).flatten(0, 1)


_verify_once = cache(files.verify)


def _advice(name: str) -> str:
    return (f"`git checkout -- data/{name}` ({entry(name)['bytes']:,} bytes), or rebuild it with the script in data/prepare/ "
            "that data/README.md names.")


def _report(name: str) -> tuple[str, bool, str]:
    try:
        files.verify(ROOT / "data" / name, entry(name)["sha256"], _advice(name))
    except (OSError, ValueError) as error:
        return name, False, str(error)
    return name, True, f"data/{name} is sound ({entry(name)['bytes']:,} bytes)"
