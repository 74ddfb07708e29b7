"""Rebuild data/fashion_mnist.npz, byte for byte, from the four original IDX files of Fashion-MNIST.

    python data/prepare/fashion_mnist.py --source /usr/share/datasets/fashion-mnist

The source folder holds train-images-idx3-ubyte.gz and its three companions, as in Debian's package
dataset-fashion-mnist or in the folder data/fashion/ of https://github.com/zalandoresearch/fashion-mnist.
"""

import argparse
import io
import zipfile
from pathlib import Path

import numpy as np

from course_lib.data import ROOT, read_idx, unpack
from course_lib.files import atomic_write, sha256

PER_CLASS = 3000                                                         # of the 6,000 training images of a class


def read_source(folder: Path, name: str) -> np.ndarray:
    """The array in `folder`/`name`.gz; ValueError if its payload is not the original one."""
    return read_idx(unpack((folder / f"{name}.gz").read_bytes(), name))


def first_of_each_class(labels: np.ndarray, count: int) -> np.ndarray:
    """Indices of the first `count` items of each class, in their original order. labels (N,) -> (10 count,)"""
    return np.sort(np.concatenate([np.flatnonzero(labels == label)[:count] for label in range(10)]))


def write_npz(file, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays as np.savez does, but LZMA-compressed (15.1 MB; deflate takes 17.6) and with a fixed date."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_LZMA) as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            member.compress_type = zipfile.ZIP_LZMA
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
    arrays = {
        "train_images": images[kept],
        "train_labels": labels[kept],
        "test_images": read_source(options.source, "t10k-images-idx3-ubyte"),
        "test_labels": read_source(options.source, "t10k-labels-idx1-ubyte"),
    }
    atomic_write(options.out, lambda file: write_npz(file, arrays))
    print(f"{options.out}: {options.out.stat().st_size:,} bytes, sha256 {sha256(options.out)}")


if __name__ == "__main__":
    main()
