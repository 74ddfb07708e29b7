"""Files that can be trusted: check sums before reading, writes that happen whole or not at all, one writer at a time."""

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout


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


def write_sealed(path: str | Path, payload: bytes) -> None:
    """`atomic_write` of bytes and, after them, the 32 of their SHA-256 sum: `read_sealed` knows them from damaged ones."""
    atomic_write(path, lambda file: file.write(payload + hashlib.sha256(payload).digest()))


def read_sealed(path: str | Path) -> bytes:
    """What `write_sealed` wrote. ValueError if the file is damaged or cut short, FileNotFoundError if it is missing."""
    content = Path(path).read_bytes()
    if hashlib.sha256(content[:-32]).digest() != content[-32:]:
        raise ValueError(f"{path} is damaged: its last 32 bytes are not the SHA-256 sum of those before them")
    return content[:-32]


def read_entries(path: str | Path, fields: set[str], advice: str) -> dict[str, dict]:
    """A JSON file of entries: name -> what is known of it, at least these fields.

    Raises FileNotFoundError if there is no such file, ValueError, with the line, if it is no such table; both say `advice`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. To get it back: {advice}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"expected a table of entries, got {type(found).__name__}")
        for name, entry in found.items():
            if not isinstance(entry, dict) or not fields <= entry.keys():
                raise ValueError(f"the entry {name!r} lacks some of {', '.join(sorted(fields))}")
    except ValueError as error:                                          # of the bytes, of JSON, which says the line, or these
        raise ValueError(f"{path} is damaged: {error}. To get it back: {advice}") from error
    return found


@contextlib.contextmanager
def locked(path: str | Path, wait: bool = False) -> Iterator[None]:
    """Be the only one at work on `path`, by a lock on `.NAME.lock` beside it that the system takes off a process that dies.

    If another process has it: BlockingIOError, or, with `wait`, what one does for some milliseconds of work.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path.with_name(f".{path.name}.lock"), timeout=-1 if wait else 0):
            yield
    except Timeout as error:
        raise BlockingIOError(f"{path}: another process is at work on it; let it finish, or stop it first") from error


@contextlib.contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """Let an OSError say which file could not be written."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{path} could not be written: {error}") from error
