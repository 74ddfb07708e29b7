"""Rebuild data/sentences.txt.xz, byte for byte, from the example sentences of WordNet 3.0.

    apt-get download wordnet-base && dpkg -x wordnet-base_*.deb wordnet
    python data/prepare/sentences.py --source wordnet/usr/share/wordnet

The source folder holds data.noun, data.verb, data.adj and data.adv, as in Debian's package wordnet-base 1:3.0-37 or in
the folder dict/ of WordNet 3.0. data/README.md says what is kept and why.
"""

import argparse
import codecs
import hashlib
import lzma
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from course_lib.data import ROOT
from course_lib.files import atomic_write, sha256
from course_lib.text import split

COMMON = 8000                                                            # words, counted over all examples
LENGTHS = range(4, 17)                                                   # words in a sentence
COPY, KIN = 0.8, 0.6                                                     # shares of common words: see `near`

# Stems of words that no line may hold, in rot13 so that nobody has to read them: obscene words, slurs, sexual violence,
# and peoples, creeds and orientations, about which a made-up sentence is easily an insult.
BARRED = codecs.decode(
    "ahqr anmv anxrq arteb avttre betnfz bevragny cbea cbeabtencu cebfgvghg cevpx chffl chovp cravf creire crr cvff "
    "dhrre encr encvat encvfg enpvf enpvny ergneq fhvpvq fnintr frk fuvg fyhg fynir ghe gjng gvg intvan ivetva "
    "juber nefr neno nff nffubyr nobeg obbo oebgury oernfg ohttre onfgneq ovgpu pbba pbpx penc pevccyr phag phz "
    "qlxr qvpx shpx snt snttbg tnl trabpvqr travgny ubbxre ubzbfrkhny urebva urngura uvgyre vaprfg vasvqry vfynz "
    "wrj ylapu yrfovna zbyrfg zhfyvz znfgheong",
    "rot13",
).split()
BARRED_WORD = re.compile(f"({'|'.join(BARRED)})(s|es|ed|d|ing|er|y|ry|ity|al|ally|ual|ually|m|t|ts|ic|ish|ion)?")


def synsets(folder: Path) -> Iterator[str]:
    """The entry of every synset: numbers and words, then after a bar its gloss, a definition with examples in quotes."""
    for part in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{part}").read_text(encoding="latin-1").splitlines():
            if not line.startswith("  "):                                # the licence, at the head of each file
                yield line


def examples(gloss: str) -> list[str]:
    """The examples in a gloss, without quotations from authors, which a dash and a name follow."""
    if gloss.count('"') % 2:
        return []
    return [text for text, dash in re.findall(r'"([^"]*)"\s*(-?)', gloss) if not dash]


def clean(example: str) -> list[str]:
    """The words of an example, or none if it is unfit: figures, quoted words, spelt letters, barred words."""
    plain = re.sub(r"\s*\([^)]*\)", "", example)                         # "a small (or little) dog"
    words = split(plain)
    if not re.fullmatch(r"[A-Za-z ,.;:!?'-]+", plain) or any(len(word) == 1 and word not in "ai" for word in words):
        return []
    return [] if any(BARRED_WORD.fullmatch(word) for word in words) else words


def near(sentences: list[list[str]], share: float) -> Iterator[tuple[int, int]]:
    """Pairs i < j of which more than `share` of the distinct words, counted in the one that has more, are the same."""
    sets = [set(words) for words in sentences]
    count = Counter(word for words in sets for word in words)
    holders = defaultdict(list)                                          # word -> earlier sentences with that rare word
    for j, words in enumerate(sets):
        rare_first = sorted(words, key=lambda word: (count[word], word))
        candidates = {i for word in rare_first for i in holders[word]}
        for i in sorted(candidates):
            if len(words & sets[i]) > share * max(len(words), len(sets[i])):
                yield i, j
        for word in rare_first[: int((1 - share) * len(words)) + 1]:     # a near sentence holds one of these
            holders[word].append(j)


def without_copies(sentences: list[list[str]]) -> list[list[str]]:
    """The sentences that are not near an earlier one."""
    copies = {j for _, j in near(sentences, COPY)}
    return [words for j, words in enumerate(sentences) if j not in copies]


def families(sentences: list[list[str]]) -> list[int]:
    """For each sentence the first of its family: those that a chain of kin joins."""
    first = list(range(len(sentences)))

    def find(i: int) -> int:
        while first[i] != i:
            i = first[i]
        return i

    for i, j in near(sentences, KIN):
        a, b = sorted((find(i), find(j)))
        first[b] = a
    return [find(i) for i in range(len(sentences))]


def number(sentence: str) -> int:
    """A number that depends on the sentence alone, to put sentences in a lasting random order."""
    return int(hashlib.sha256(sentence.encode()).hexdigest(), 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--source", type=Path, required=True, help="folder of data.noun and its companions")
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "sentences.txt.xz")
    options = parser.parse_args()

    texts = [text for synset in synsets(options.source) for text in examples(synset.partition("|")[2])]
    count = Counter(word for text in texts for word in split(text))
    common = set(sorted(count, key=lambda word: (-count[word], word))[:COMMON])
    fit = [words for words in map(clean, texts) if len(words) in LENGTHS and common.issuperset(words)]
    kept = without_copies(fit)
    lines = [" ".join(words) for words in kept]
    test = {line for line, first in zip(lines, families(kept)) if number(lines[first]) % 10 == 0}
    lines.sort(key=number)
    parts = ["\n".join(line for line in lines if (line in test) == held_out) for held_out in (False, True)]
    atomic_write(options.out, lambda file: file.write(lzma.compress("\n\n".join(parts).encode(), preset=9)))
    print(f"{len(texts):,} examples, {len(fit):,} fit, {len(lines) - len(test):,} to train, {len(test):,} to test")
    print(f"{options.out}: {options.out.stat().st_size:,} bytes, sha256 {sha256(options.out)}")


if __name__ == "__main__":
    main()
