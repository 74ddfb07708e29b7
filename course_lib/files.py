"""Files that can be trusted: check sums before reading, and writes that happen whole or not at all."""

import contextlib
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO


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
    name `path`: a kill at any moment leaves the old file or the new one. The mode stays what it was; a new file's is
    the umask's. If `write` fails, the old file stays, the temporary one goes, and the error passes on. Raises OSError
    naming `path` where the disk is full or read-only.
    """
    with prepared(path, write) as temporary, _naming(path):
        os.replace(temporary, path)


@contextlib.contextmanager
def prepared(path: str | Path, write: Callable[[BinaryIO], object]) -> Iterator[Path]:
    """A finished temporary file beside `path`, with its mode, that can take its place; gone afterwards."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with _naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                with contextlib.suppress(FileNotFoundError, PermissionError):       # a new file; a disk without modes
                    shutil.copymode(path, temporary)
                write(file)
                file.flush()
                os.fsync(file.fileno())
        yield temporary
    finally:
        if temporary.exists():
            temporary.unlink()


def claim(temporary: Path, path: Path) -> None:
    """Give a prepared file the name `path` if nothing has it; FileExistsError if something has, be it since a moment ago."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:                         # a file system without links, as on many memory sticks
        with open(path, "xb") as file:
            try:
                file.write(temporary.read_bytes())
            except OSError:                 # no room
                path.unlink()
                raise


@contextlib.contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """Let an OSError say which file could not be written."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{path} could not be written: {error}") from error
