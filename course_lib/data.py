"""Data sets that come with the course, read from data/ and checked against data/checksums.json before use.

No call touches the network except `fashion_mnist(full=True)`. Sources and licences are in data/README.md.
"""

import gzip
import hashlib
import http.client
import json
import os
import urllib.request
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import torch

from . import files

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")

UPSTREAM = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
# SHA-256 of the decompressed payloads: the gzip headers around them differ from mirror to mirror.
PAYLOADS = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def find_root() -> Path:
    """The folder that holds data/: beside course_lib, else $COURSE_HOME, else the nearest one above the working folder.

    Raises FileNotFoundError that lists where it looked.
    """
    here = Path.cwd()
    home = [Path(os.environ["COURSE_HOME"])] if "COURSE_HOME" in os.environ else []
    candidates = [Path(__file__).resolve().parent.parent, *home, here, *here.parents]
    for folder in candidates:
        if (folder / "data" / "checksums.json").is_file():
            return folder
    raise FileNotFoundError(
        "the course's data/ folder was not found in any of: " + ", ".join(map(str, candidates))
        + ". Work inside a clone of the course, or set COURSE_HOME to the folder that holds data/ and notebooks/."
    )


ROOT = find_root()


def checksums() -> dict[str, dict]:
    """What data/ must hold: file name -> {"sha256": 64 digits, "bytes": size}."""
    return json.loads((ROOT / "data" / "checksums.json").read_text(encoding="utf-8"))


def path(name: str) -> Path:
    """The file data/`name`, its check sum verified once per process.

    Raises ValueError for a name that data/checksums.json does not list or a file that is damaged, FileNotFoundError
    for one that is missing; both say how to get it back.
    """
    listed = checksums()
    if name not in listed:
        raise ValueError(f"name is {name!r}, expected one of the files in data/checksums.json: {', '.join(listed)}")
    _verify_once(ROOT / "data" / name, listed[name]["sha256"], _advice(name, listed[name]["bytes"]))
    return ROOT / "data" / name


def verify_all() -> list[tuple[str, bool, str]]:
    """Check every file that data/checksums.json lists, afresh: (name, is it sound, what to say about it)."""
    return [_report(name, entry["sha256"], entry["bytes"]) for name, entry in checksums().items()]


def fashion_mnist(split: str = "train", full: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Fashion-MNIST (Xiao, Rasul and Vollgraf 2017): images (N, 1, 28, 28) float32 in [-1, 1], labels (N,) int64.

    `split` is "train" (30,000 images, the first 3,000 of each class in their original order) or "test" (10,000,
    all there are). `full=True` gives all 60,000 training images; they are fetched once, by check sum, into data/cache/.

    Raises ValueError for another split or a damaged file, FileNotFoundError for a missing one, OSError if the
    full set cannot be fetched.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}, expected 'train' or 'test'")
    if full and split == "train":
        images, labels = (read_idx(_payload(f"train-{kind}-ubyte")) for kind in ("images-idx3", "labels-idx1"))
    else:
        with np.load(path("fashion_mnist.npz")) as members:              # a member is decompressed when it is asked for
            images, labels = members[f"{split}_images"], members[f"{split}_labels"]
    pixels = torch.tensor(images).unsqueeze(1).float()                   # (N, 1, 28, 28) in 0..255
    return pixels.div_(127.5).sub_(1), torch.tensor(labels).long()


def unpack(compressed: bytes, name: str) -> bytes:
    """The payload of the gzip file of `name`, one of PAYLOADS. ValueError if its check sum is not the original one."""
    payload = gzip.decompress(compressed)
    found = hashlib.sha256(payload).hexdigest()
    if found != PAYLOADS[name]:
        raise ValueError(
            f"the payload of {name}.gz has sha256 {found} ({len(payload):,} bytes), expected {PAYLOADS[name]}"
        )
    return payload


def read_idx(payload: bytes) -> np.ndarray:
    """The array of unsigned bytes in an IDX payload: 0, 0, type 8, number of axes, big-endian sizes, then the bytes.

    Raises ValueError if the payload is of another type or length.
    """
    if payload[:3] != b"\x00\x00\x08":
        raise ValueError(f"payload starts with {payload[:3]!r}, expected an IDX file of unsigned bytes, 00 00 08")
    axes = payload[3]
    shape = np.frombuffer(payload, ">i4", axes, offset=4)
    return np.frombuffer(payload, np.uint8, offset=4 + 4 * axes).reshape(shape)


@cache
def _verify_once(path: Path, expected: str, advice: str) -> None:
    files.verify(path, expected, advice)


def _advice(name: str, size: int) -> str:
    return (
        f"`git checkout -- data/{name}` ({size:,} bytes), or rebuild it with the script in data/prepare/ "
        "that data/README.md names."
    )


def _report(name: str, expected: str, size: int) -> tuple[str, bool, str]:
    try:
        files.verify(ROOT / "data" / name, expected, _advice(name, size))
    except (OSError, ValueError) as error:
        return name, False, str(error)
    return name, True, f"data/{name} is sound ({size:,} bytes)"


def _payload(name: str) -> bytes:
    cached = ROOT / "data" / "cache" / name
    if not cached.exists():
        payload = _fetch(UPSTREAM + name + ".gz", name)
        files.atomic_write(cached, lambda file: file.write(payload))
    _verify_once(cached, PAYLOADS[name], "delete the file and ask again; it is then fetched afresh.")
    return cached.read_bytes()


def _fetch(url: str, name: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            return unpack(response.read(), name)
    except (OSError, EOFError, zlib.error, http.client.HTTPException) as error:
        raise OSError(
            f"{url} could not be fetched ({error}). full=True needs the network once; "
            "full=False reads the 30,000 training images that come with the course."
        ) from error
