"""The learner's own copies in my/: handed out once, never overwritten."""

from pathlib import Path

from nbformat import NotebookNode

from course_lib import files

from . import notebooks


def given(root: Path, number: int | None = None) -> list[Path]:
    """The learner's notebooks as the course ships them; one chapter's where `number` is given."""
    return notebooks.chapters(root / "notebooks", () if number is None else (number,))


def hand_out(root: Path) -> list[Path]:
    """Copy every chapter that my/ lacks into it; what is there is left alone. Returns the new files."""
    missing = [path for path in given(root) if not mine(root, path).exists()]
    for path in missing:
        notebooks.write(mine(root, path), blank(path))
    return [mine(root, path) for path in missing]


def reset(root: Path, number: int) -> Path | None:
    """Put a fresh copy of a chapter into my/; the old one stays beside it under the name that is returned."""
    [path] = given(root, number)
    kept = keep(mine(root, path))
    notebooks.write(mine(root, path), blank(path))
    return kept


def mine(root: Path, path: Path) -> Path:
    """Where the learner's copy of the shipped notebook at `path` lies."""
    return root / "my" / path.name


def blank(path: Path) -> NotebookNode:
    """The shipped notebook without the expected text: in my/ an output is something the learner's own code printed."""
    notebook = notebooks.read(path)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def keep(path: Path) -> Path | None:
    """Copy the file to the first free name of the form 04_name-old-1.ipynb; None if there is no file to keep."""
    if not path.exists():
        return None
    count = 1
    while (kept := path.with_name(f"{path.stem}-old-{count}.ipynb")).exists():
        count += 1
    files.atomic_write(kept, lambda file: file.write(path.read_bytes()))
    return kept
