"""The learner's own copies in my/: handed out once, never overwritten.

JupyterLab, a backup or a second command may save at any moment. So a file is never copied and then replaced: it is
renamed, with all that is saved in it till then or by a writer that still has it open, and a new one comes only where
there is none.
"""

import contextlib
import os
from pathlib import Path

from nbformat import NotebookNode

from ... import files
from .. import notebooks


def given(root: Path, number: int | None = None) -> list[Path]:
    """The learner's notebooks as the course ships them; one chapter's where `number` is given."""
    return notebooks.chapters(root / "notebooks", () if number is None else (number,))


def hand_out(root: Path) -> list[Path]:
    """Put every chapter that my/ lacks into it; what is there is left alone. Returns the new files.

    Answers that were written in notebooks/ come along, as long as the copy in my/ is as it was handed out.
    """
    new = []
    for path in given(root):
        own, edited = mine(root, path), not is_text_given(notebooks.read(path))
        if edited and _is_untouched(own):
            replace(own, _work(path))
            new.append(own)
        elif not os.path.lexists(own) and _create(own, blank(path)):
            new.append(own)
    return new


def reset(root: Path, number: int) -> Path | None:
    """Put a fresh copy of a chapter into my/; the old one stays beside it under the name that is returned.

    Raises ValueError if the notebook in notebooks/ was edited: what would be copied is not fresh.
    """
    [path] = given(root, number)
    if not is_text_given(notebooks.read(path)):
        raise ValueError(f"{path} was edited, so no fresh copy can be made of it. {_restore(path)}")
    return replace(mine(root, path), blank(path))


def replace(path: Path, notebook: NotebookNode) -> Path | None:
    """Put `notebook` at `path`; what was there stays beside it under the name that is returned."""
    kept = None
    with _prepared(path, notebook) as fresh:
        while True:
            kept = keep(path) or kept
            try:
                _claim(fresh, path)
                return kept
            except FileExistsError:         # somebody saved since: that is kept as well
                continue


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


def keep(path: Path, folder: Path | None = None) -> Path | None:
    """Rename the file to the first free name of the form 04_name-old-1.ipynb, in `folder` (its own by default).

    Returns the new name; None if there is no file to keep. Raises ValueError if a folder is in its place.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; a notebook belongs there. Move it away")
    if not os.path.lexists(path):           # a link that leads nowhere is kept too
        return None
    kept = _free_name(folder or path.parent, path.stem)
    try:
        os.replace(path, kept)
    except FileNotFoundError:               # somebody else kept it since we looked
        kept.unlink()
        return None
    except OSError:
        kept.unlink()
        raise
    return kept


def _free_name(folder: Path, stem: str) -> Path:
    """The first free name of the form 04_name-old-1.ipynb, taken by an empty file so that nobody else can have it."""
    folder.mkdir(parents=True, exist_ok=True)
    count = 1
    while True:
        try:
            (kept := folder / f"{stem}-old-{count}.ipynb").open("xb").close()
            return kept
        except FileExistsError:
            count += 1


def _create(path: Path, notebook: NotebookNode) -> bool:
    """Write the notebook unless something has its name by then; returns whether it was written."""
    with _prepared(path, notebook) as fresh:
        try:
            _claim(fresh, path)
        except FileExistsError:
            return False
    return True


def _claim(temporary: Path, path: Path) -> None:
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


def _prepared(path: Path, notebook: NotebookNode) -> contextlib.AbstractContextManager[Path]:
    return files.prepared(path, lambda file: file.write(notebooks.text(notebook).encode("utf-8")))


# --- work that was done in notebooks/ --------------------------------------------------------------------------------

def is_text_given(notebook: NotebookNode) -> bool:
    """Are the cells those that the course built?"""
    return notebook.metadata.get("course", {}).get("version") == notebooks.version(notebook)


def is_given(notebook: NotebookNode) -> bool:
    """Are the cells those that the course built, with no outputs but the expected text?"""
    return is_text_given(notebook) and all(expected or not cell.outputs for cell, expected in _outputs(notebook))


def worked_in(root: Path) -> list[str]:
    """One line for each notebook in notebooks/ that somebody edited or ran."""
    changed = [(path, notebook) for path in given(root) if not is_given(notebook := notebooks.read(path))]
    return [f"{path.relative_to(root)} holds work"
            + (f", which my/{path.name} has too" if _has_text_of(notebook, mine(root, path)) else "")
            + f". Only my/{path.name} is checked, counted and updated. {_restore(path)}" for path, notebook in changed]


def of_earlier_versions(root: Path) -> list[Path]:
    """The learner's copies that were handed out by an earlier version: what they import may have moved since."""
    return [own for path in given(root) if (version := _version(own := mine(root, path))) and version != _version(path)]


def _version(path: Path) -> str:
    try:
        return str(notebooks.course(notebooks.load(path)).get("version", ""))
    except ValueError:                      # there is none that can be read
        return ""


def _has_text_of(notebook: NotebookNode, own: Path) -> bool:
    try:
        return notebooks.version(notebooks.read(own)) == notebooks.version(notebook)
    except (OSError, ValueError):           # there is none that can be read
        return False


def _work(path: Path) -> NotebookNode:
    """The notebook with what was done in it, without the expected text, which looks like the output of a solved exercise."""
    notebook = notebooks.read(path)
    for cell, expected in _outputs(notebook):
        if expected:
            cell.outputs, cell.execution_count = [], None
    return notebook


def _outputs(notebook: NotebookNode) -> list[tuple[NotebookNode, bool]]:
    """The code cells, each with: does it hold just the expected text, as build writes it?"""
    texts = {cell.id: f"{id} ✓ solved\n" for id, cell in notebooks.by_role(notebook, "check").items()}
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [(cell, cell.execution_count == count and len(cell.outputs) == 1 and notebooks.printed(cell) == texts.get(cell.id))
            for count, cell in enumerate(code, start=1)]


def _is_untouched(own: Path) -> bool:
    """Is there nothing at this place in my/ but a notebook as it was handed out?"""
    if not os.path.lexists(own):
        return True
    try:
        notebook = notebooks.read(own)
    except (OSError, ValueError):           # a folder, or a damaged notebook: the learner's
        return False
    return is_text_given(notebook) and not any(cell.get("outputs") for cell in notebook.cells)


def _restore(path: Path) -> str:
    return (f"Move it to my/{path.stem}-mine.ipynb, if you want it; then `git checkout notebooks/{path.name}` "
            "brings back the shipped one")
