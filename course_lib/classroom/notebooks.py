"""Notebooks as files: where they lie, how they are read and written, and what their cells are called.

A cell's role shows in its id: "exercise-4-2", "check-4-2", "predict-4-1". In the course's own notebooks it is always
there; in a learner's it may be gone (see answers).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .. import files

if TYPE_CHECKING:                       # it takes long to import, and `course list` needs none of it
    from nbformat import NotebookNode

ROLES = ("exercise", "check", "predict")
LARGEST = 100_000_000                   # bytes of a file that is read
_OLD = "it is in the format of IPython 3; open it in JupyterLab and save it, then it is in today's"


def cell_id(role: str, id: str) -> str:
    """cell_id("check", "4.2") is "check-4-2"."""
    return f"{role}-{id.replace('.', '-')}"


def by_role(notebook: dict, role: str) -> dict[str, dict]:
    """The notebook's cells of one role, by exercise or prediction id, in order."""
    matches = ((re.fullmatch(rf"{role}-(\d+)-(\d+)", str(cell.get("id", ""))), cell) for cell in notebook["cells"])
    return {f"{match[1]}.{match[2]}": cell for match, cell in matches if match}


def number(path: Path) -> int:
    """The chapter number in a file's name: 4 for 04_ddim_and_fast_solvers.ipynb."""
    return int(path.name[:2])


def chapters(folder: Path, numbers=(), suffix: str = ".ipynb") -> list[Path]:
    """The chapters in `folder`, in order; only those of `numbers` where given. ValueError if one is missing."""
    found = {number(path): path for path in sorted(folder.glob(f"[0-9][0-9]_*{suffix}"))}
    missing = [n for n in numbers if n not in found]
    if missing:
        there = ", ".join(map(str, found)) or "none"
        raise ValueError(f"no chapter {', '.join(map(str, missing))} in {folder}; it has {there}")
    return [found[n] for n in numbers or found]


# --- reading and writing ---------------------------------------------------------------------------------------------

def load(path: Path) -> dict:
    """The notebook at `path` as plain dictionaries, sources and printed text as one string each.

    Raises ValueError that names the file and what is wrong with it if it is no notebook.
    """
    notebook = _parsed(path, _text(path))
    for cell in notebook["cells"]:
        cell["source"] = "".join(cell["source"])
        for output in cell.get("outputs", []):
            if "text" in output:
                output["text"] = "".join(output["text"])
    return notebook


def read(path: Path) -> NotebookNode:
    """The notebook at `path`. Raises ValueError that names the file and what is wrong with it if it is no notebook."""
    import nbformat

    return nbformat.v4.reads(json.dumps(_parsed(path, _text(path))))


def pristine(path: Path) -> dict:
    """A chapter's notebook as the course ships it. Raises ValueError if it is not what was built: then nothing in it counts."""
    notebook = load(path)
    if course(notebook).get("version") != version(notebook):
        raise ValueError(
            f"{path} was changed: it is no longer the chapter that the course ships. If work of yours is in it, copy it "
            "elsewhere (`course check --notebook FILE` takes it from there); then get the chapter back by "
            f"`git restore notebooks/{path.name}`, or from a fresh download of the course")
    return notebook


def course(notebook: dict) -> dict:
    """What the notebook's metadata say of the course: title, minutes, needs, shows, exercises, version; {} if nothing."""
    said = notebook["metadata"].get("course")
    return said if isinstance(said, dict) else {}


@dataclass(frozen=True)
class Contents:
    """What a chapter's notebook says of itself; exercises is {id: title}. trouble: why it cannot be read; "" if it can."""

    number: int
    title: str = ""
    minutes: int = 0
    needs: tuple[int, ...] = ()
    shows: str = ""
    exercises: dict[str, str] = field(default_factory=dict)
    trouble: str = ""


def contents(path: Path) -> Contents:
    """What the chapter at `path` says of itself; raises nothing, so that one bad file hides no other."""
    try:
        said = course(load(path))
        exercises = {id: task["title"] for id, task in said["exercises"].items()}
        return Contents(number(path), said["title"], said["minutes"], tuple(said["needs"]), said["shows"], exercises)
    except (KeyError, TypeError, AttributeError):
        return Contents(number(path), trouble=f"{path} does not say what a chapter says of itself: its metadata were changed")
    except ValueError as error:
        return Contents(number(path), trouble=str(error))


def text(notebook: NotebookNode) -> str:
    """What the file holds: the same notebook gives the same text."""
    import nbformat

    return nbformat.writes(notebook) + "\n"


def write(path: Path, notebook: NotebookNode) -> None:
    """Write the notebook, whole or not at all; raises nbformat.ValidationError if it is not a valid one."""
    import nbformat

    nbformat.validate(notebook)
    files.atomic_write(path, lambda file: file.write(text(notebook).encode("utf-8")))


def digest(*parts: str) -> str:
    """Eight hexadecimal digits that change with the text."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:8]


def version(notebook: NotebookNode) -> str:
    """A digest of what a chapter's cells are; in the course's own notebooks it stands in the metadata."""
    return digest(*(f"{cell.get('id')} {cell['cell_type']} {cell['source']}" for cell in notebook["cells"]))


def printed(cell: dict) -> str:
    """What the cell printed, as stored; warnings and bars, which go to stderr, are left out."""
    return "".join(output["text"] for output in cell.get("outputs", [])
                   if output["output_type"] == "stream" and output.get("name") == "stdout")


def environment(root: Path, **extra: str) -> dict[str, str]:
    """The environment for a kernel: it finds course_lib and the course's data from whatever folder it runs in.

    Threads that wait do so asleep, unless the user says otherwise: where another program runs, they would else take turns
    with it at doing nothing, and a minute's work takes half an hour.
    """
    package = str(Path(files.__file__).resolve().parents[1])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONPATH": os.pathsep.join(paths), "COURSE_HOME": str(root), **extra}


def _text(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise _unreadable(path, f"it has {size:,} bytes, more than {LARGEST:,}; clear its outputs and save it")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _unreadable(path, f"it is not UTF-8 text ({error.reason} at byte {error.start:,})") from error
    except OSError as error:
        link = path.is_symlink() and not path.exists()
        raise _unreadable(path, f"it is a link to {os.readlink(path)}, which is not there" if link else
                          error.strerror or str(error)) from error


def _parsed(path: Path, content: str) -> dict:
    """The text as JSON, with the form that a notebook must have."""
    if not content.strip():
        raise _unreadable(path, "it is empty")
    try:
        notebook = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, f"it is not JSON ({error})") from error
    wrong = _form(notebook)
    if wrong:
        raise _unreadable(path, wrong)
    for cell in notebook["cells"]:
        cell.setdefault("metadata", {})
    return notebook


def _unreadable(path: Path, why: str) -> ValueError:
    return ValueError(f"{path} is not a notebook that can be read: {why}")


def _form(notebook) -> str:
    """What is wrong with the form of a notebook, in words; empty if nothing is."""
    if not isinstance(notebook, dict):
        return f"it holds {_kind(notebook)}, not a notebook"
    form = notebook.get("nbformat")
    if form in (1, 2, 3):
        return _OLD
    if form != 4:
        return f"its nbformat is {form!r}, this course reads 4"
    if not isinstance(notebook.get("metadata"), dict):
        return f"its metadata are {_kind(notebook.get('metadata'))}, not an object"
    if not isinstance(notebook.get("cells"), list):
        return f"its cells are {_kind(notebook.get('cells'))}, not a list"
    wrong = ((number, _form_of_cell(cell)) for number, cell in enumerate(notebook["cells"], start=1))
    return next((f"cell {number} {what}" for number, what in wrong if what), "")


def _form_of_cell(cell) -> str:
    if not isinstance(cell, dict):
        return f"is {_kind(cell)}, not an object"
    if cell.get("cell_type") not in ("code", "markdown", "raw"):
        return f"has the type {cell.get('cell_type')!r}, which is none of code, markdown, raw"
    if not _is_text(cell.get("source")):
        return f"has {_kind(cell.get('source'))} for its source, not text"
    if not isinstance(cell.get("metadata", {}), dict):
        return f"has {_kind(cell['metadata'])} for its metadata, not an object"
    outputs = cell.get("outputs", [])
    if not isinstance(outputs, list):
        return f"has {_kind(outputs)} for its outputs, not a list"
    for output in outputs:
        if not isinstance(output, dict) or not isinstance(output.get("output_type"), str):
            return "has an output without a type"
        if not _is_text(output.get("text", "" if output["output_type"] != "stream" else None)):
            return "has an output that printed something other than text"
    return ""


def _is_text(value) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(line, str) for line in value))


def _kind(value) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", type(None): "nothing", bool: "true or false"}
    return kinds.get(type(value), "a number")
