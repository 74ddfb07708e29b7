"""Files that can be trusted: check sums before reading, and writes that happen whole or not at all."""

import hashlib
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


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
        "the course's data/checksums.json was not found in any of: " + ", ".join(map(str, candidates))
        + ". Work inside a clone of the course, or set COURSE_HOME to the folder that holds data/ and notebooks/; in a clone "
        "`git checkout -- data/checksums.json` brings the file back."
    )


def sha256(path: str | Path) -> str:
    """The SHA-256 sum of a file's bytes, 64 hexadecimal digits. OSError if it cannot be read."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(path: str | Path, expected: str, advice: str) -> None:
    """Return if the file at `path` has the SHA-256 sum `expected`; otherwise say what is wrong, then `advice`.

    Raises FileNotFoundError if there is no such file, ValueError if its sum differs (damaged or cut short).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. To get it back: {advice}")
    found = sha256(path)
    if found != expected:
        raise ValueError(f"{path} is damaged: its sha256 is {found} ({path.stat().st_size:,} bytes), expected {expected}. "
                         f"To get it back: {advice}")


def atomic_write(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Replace the file at `path` by what `write(file)` writes, whole or not at all.

    `write` gets a binary file open for writing, as in `atomic_write("a.pt", lambda file: torch.save(state, file))`.
    The bytes go to a temporary file in the same folder (made if missing), reach the disk, and only then take the
    name `path`: a kill at any moment leaves the old file or the new one. If `write` fails, the old file stays, the
    temporary one goes, and the error passes on. Raises OSError naming `path` where the disk is full or read-only.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(f"{path} could not be written: {error}") from error
    finally:
        if temporary.exists():
            temporary.unlink()
