"""Notebooks as files: where they lie, how they are read and written, and what their cells are called.

A cell's role shows in its id: "exercise-4-2", "check-4-2", "predict-4-1". JupyterLab keeps ids, so a learner's answer
is found again however the cells around it move.
"""

import hashlib
import os
import re
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from course_lib import files

ROLES = ("exercise", "check", "predict")


def cell_id(role: str, id: str) -> str:
    """cell_id("check", "4.2") is "check-4-2"."""
    return f"{role}-{id.replace('.', '-')}"


def by_role(notebook: NotebookNode, role: str) -> dict[str, NotebookNode]:
    """The notebook's cells of one role, by exercise or prediction id, in order."""
    matches = ((re.fullmatch(rf"{role}-(\d+)-(\d+)", cell.get("id", "")), cell) for cell in notebook.cells)
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


def read(path: Path) -> NotebookNode:
    """The notebook at `path`. Raises ValueError naming the file if it is no notebook."""
    try:
        return nbformat.read(path, as_version=4)
    except nbformat.reader.NotJSONError as error:
        raise ValueError(f"{path} is not a notebook that can be read: {error}") from error


def text(notebook: NotebookNode) -> str:
    """What the file holds: the same notebook gives the same text."""
    return nbformat.writes(notebook) + "\n"


def write(path: Path, notebook: NotebookNode) -> None:
    """Write the notebook, whole or not at all; raises nbformat.ValidationError if it is not a valid one."""
    nbformat.validate(notebook)
    files.atomic_write(path, lambda file: file.write(text(notebook).encode("utf-8")))


def digest(*parts: str) -> str:
    """Eight hexadecimal digits that change with the text."""
    return hashlib.sha256("\0".join(parts).encode("utf-8")).hexdigest()[:8]


def version(notebook: NotebookNode) -> str:
    """A digest of what a chapter's cells are; in the course's own notebooks it stands in the metadata."""
    return digest(*(f"{cell.get('id')} {cell['cell_type']} {cell['source']}" for cell in notebook["cells"]))


def printed(cell: NotebookNode) -> str:
    """What the cell printed, as stored."""
    return "".join(output.text for output in cell.get("outputs", []) if output.output_type == "stream")


def environment(root: Path, **extra: str) -> dict[str, str]:
    """The environment for a kernel: it finds course_lib and the course's data from whatever folder it runs in.

    Threads that wait do so asleep, unless the user says otherwise: where another program runs, they would else take turns
    with it at doing nothing, and a minute's work takes half an hour.
    """
    package = str(Path(files.__file__).resolve().parents[1])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONPATH": os.pathsep.join(paths), "COURSE_HOME": str(root), **extra}
