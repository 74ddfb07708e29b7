"""Rebuild data/fashion_mnist.npz, byte for byte, from the four original IDX files of Fashion-MNIST.

    python data/prepare/fashion_mnist.py --source /usr/share/datasets/fashion-mnist

The source folder holds train-images-idx3-ubyte.gz and its three companions, as in Debian's package
dataset-fashion-mnist or in the folder data/fashion/ of https://github.com/zalandoresearch/fashion-mnist.
"""

import argparse
import gzip
import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np

from course_lib.data import PARTS, ROOT, SUM, canvas, contexts
from course_lib.files import atomic_write, sha256

# SHA-256 of the decompressed payloads: the gzip headers around them differ from mirror to mirror.
PAYLOADS = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
PER_CLASS = 3000                                                         # of the 6,000 training images of a class


def read_source(folder: Path, name: str) -> np.ndarray:
    """The array of bytes in `folder`/`name`.gz; ValueError if its payload is not the original one.

    An IDX file: 0, 0, the type, the number of axes, their sizes in four bytes each, and then the bytes.
    """
    payload = gzip.decompress((folder / f"{name}.gz").read_bytes())
    found = hashlib.sha256(payload).hexdigest()
    if found != PAYLOADS[name]:
        raise ValueError(f"the payload of {name}.gz has sha256 {found} ({len(payload):,} bytes), expected {PAYLOADS[name]}")
    axes = payload[3]
    return np.frombuffer(payload, np.uint8, offset=4 + 4 * axes).reshape(-1, *[28] * (axes - 1))


def first_of_each_class(labels: np.ndarray, count: int) -> np.ndarray:
    """Indices of the first `count` items of each class, in their original order. labels (N,) -> (10 count,)"""
    return np.sort(np.concatenate([np.flatnonzero(labels == label)[:count] for label in range(10)]))


def counted(images: np.ndarray) -> np.ndarray:
    """How often each value follows on each context in images (N, 28, 28), as `decoded` takes it: every row adds up to SUM."""
    pictures, counts = laid_out(images), np.zeros((17 * 32 * 4, 256), np.int64)
    for y, x in np.ndindex(28, 28):
        seen = contexts(pictures, y, x) * 256 + pictures[y + 2, x + 2]
        counts += np.bincount(seen, minlength=counts.size).reshape(counts.shape)
    counts[counts.sum(1) == 0, 0] = 1                                    # contexts that never occur
    totals = counts.sum(1, keepdims=True)
    shares = np.where(counts > 0, np.maximum((counts * SUM + totals // 2) // totals, 1), 0)
    shares[np.arange(len(shares)), shares.argmax(1)] += SUM - shares.sum(1)
    return shares.astype(np.uint16)


def encoded(images: np.ndarray, frequencies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """States (N / PARTS,) and words from which `decoded` makes images (N, 28, 28): its steps backwards, the last one first."""
    frequencies, words = frequencies.astype(np.int64), []
    starts, frequencies = (frequencies.cumsum(1) - frequencies).ravel(), frequencies.ravel()
    states = np.full(len(images) // PARTS, 1 << 16)
    for part in np.split(images, PARTS)[::-1]:
        pictures = laid_out(part)
        for y, x in reversed(list(np.ndindex(28, 28))):
            seen = contexts(pictures, y, x) * 256 + pictures[y + 2, x + 2]
            often = frequencies[seen]
            full = states >= often * (1 << 32) // SUM                    # it would outgrow 32 bits
            words.append((states[full] & 0xFFFF).astype(np.uint16))
            states[full] >>= 16
            states = states // often * SUM + states % often + starts[seen]
    return states.astype(np.uint32), np.concatenate(words[::-1])


def laid_out(images: np.ndarray) -> np.ndarray:
    """A canvas with images (N, 28, 28) on it."""
    pictures = canvas(len(images))
    pictures[2:, 2:30] = images.transpose(1, 2, 0)
    return pictures


def write_npz(file, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays as np.savez does, but with a fixed date, and LZMA-compressed, except words, which nothing makes shorter."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            member.compress_type = zipfile.ZIP_STORED if name.endswith("words") else zipfile.ZIP_LZMA
            member.create_system = 3                                     # the same bytes on Windows
            content = io.BytesIO()
            np.save(content, array)
            archive.writestr(member, content.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--source", type=Path, required=True, help="folder of the four .gz files")
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "fashion_mnist.npz")
    options = parser.parse_args()

    images = read_source(options.source, "train-images-idx3-ubyte")      # (60000, 28, 28)
    labels = read_source(options.source, "train-labels-idx1-ubyte")      # (60000,)
    kept = first_of_each_class(labels, PER_CLASS)
    splits = {"train": images[kept], "test": read_source(options.source, "t10k-images-idx3-ubyte")}
    arrays = {"train_labels": labels[kept], "test_labels": read_source(options.source, "t10k-labels-idx1-ubyte"),
              "frequencies": counted(np.concatenate(list(splits.values())))}
    for split, pictures in splits.items():
        arrays[f"{split}_states"], arrays[f"{split}_words"] = encoded(pictures, arrays["frequencies"])
    atomic_write(options.out, lambda file: write_npz(file, arrays))
    print(f"{options.out}: {options.out.stat().st_size:,} bytes, sha256 {sha256(options.out)}")


if __name__ == "__main__":
    main()
