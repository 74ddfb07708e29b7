"""What a learner has done in my/: checked against the pristine notebooks, carried over, counted."""

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from nbformat import NotebookNode

from . import copies, notebooks

SECONDS_A_CELL = 300
SOLVED, WRONG, UNTRIED = "✓", "✗", "·"


def update(root: Path, number: int) -> list[str]:
    """Move a chapter in my/ to the course's present version with the learner's answers, found by exercise id.

    The old file stays beside it. Returns what was done, in sentences.
    """
    [path] = copies.given(root, number)
    own = copies.mine(root, path)
    if not own.exists():
        return [f"{path.name}: not in my/ yet; `course lab` puts it there"]
    old, new = notebooks.read(own), copies.blank(path)
    if _course(old).get("version") == _course(new)["version"]:
        return [f"{path.name}: up to date"]
    lost = _carry_over(old, new)
    kept = copies.keep(own)
    notebooks.write(own, new)
    return [f"{path.name}: updated with your answers; the old file, with your notes, is {kept.name}",
            *(f"{path.name}: exercise {id} is no longer in the chapter; your answer is in {kept.name}" for id in lost)]


def progress(root: Path) -> list[tuple[str, dict[str, str]]]:
    """For each chapter its name and {exercise id: "✓", "✗" or "·"}, as saved in my/."""
    return [(path.stem, _saved_states(copies.mine(root, path), notebooks.read(path))) for path in copies.given(root)]


def contents(root: Path) -> list[dict]:
    """What each chapter's notebook says of itself: number, title, minutes, needs, shows, exercises {id: title}."""
    return [{"number": notebooks.number(path), **course,
             "exercises": {id: task["title"] for id, task in course["exercises"].items()}}
            for path in copies.given(root) for course in [_course(notebooks.read(path))]]


# --- course check ----------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Result:
    """One line of a check: the exercise id (or "cell" for another one that failed), "✓", "✗" or "·", and why."""

    name: str
    state: str
    message: str


def check(root: Path, number: int) -> list[Result]:
    """Run the learner's exercise cells inside the pristine notebook, against its own check cells and expected text.

    Nothing else is taken from my/: a saved wrong output or a changed check cell counts for nothing.
    """
    [path] = copies.given(root, number)
    own = copies.mine(root, path)
    if not own.exists():
        raise ValueError(f"{own} does not exist; `course lab` puts the chapter there")
    saved, pristine = notebooks.read(own), notebooks.read(path)
    lost = [id for id in notebooks.by_role(pristine, "exercise") if id not in notebooks.by_role(saved, "exercise")]
    for role in ("exercise", "predict"):
        _copy_sources(notebooks.by_role(saved, role), notebooks.by_role(pristine, role))
    failed = run_nbval(root, pristine, path.name)
    results = [_result(id, pristine, failed, lost) for id in notebooks.by_role(pristine, "exercise")]
    answers = {cell.id for role in ("exercise", "check") for cell in notebooks.by_role(pristine, role).values()}
    others = [cell for cell in pristine.cells if cell.id in failed and cell.id not in answers]
    return results + [_other_result(cell, failed[cell.id]) for cell in others]


def run_nbval(root: Path, notebook: NotebookNode, name: str) -> dict[str, str]:
    """Run the notebook under `pytest --nbval-lax` in an empty folder: {cell id: why it failed}."""
    with tempfile.TemporaryDirectory() as folder:
        copy, report = Path(folder, name), Path(folder, "report.xml")
        notebooks.write(copy, notebook)
        environment = notebooks.environment(root, COURSE_SCALE="quick", PYTEST_ADDOPTS="")
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", "-p", "no:cacheprovider",
             f"--nbval-cell-timeout={SECONDS_A_CELL}", f"--junitxml={report}", f"--rootdir={folder}", str(copy)],
            cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8", errors="replace")
        if run.returncode not in (0, 1) or not report.is_file():
            raise ValueError(f"pytest could not run {name} (exit {run.returncode}):\n{run.stdout}{run.stderr}")
        cases = list(ElementTree.parse(report).iter("testcase"))
    ids = [cell.id for cell in notebook.cells if cell.cell_type == "code"]
    if len(cases) != len(ids):
        raise ValueError(f"pytest ran {len(cases)} of the {len(ids)} cells of {name}:\n{run.stdout}")
    troubles = [[*case.iter("failure"), *case.iter("error"), *case.iter("skipped")] for case in cases]
    return {id: _plain(trouble[0].text or trouble[0].get("message")) for id, trouble in zip(ids, troubles) if trouble}


def _result(id: str, pristine: NotebookNode, failed: dict[str, str], lost: list[str]) -> Result:
    """What became of one exercise."""
    exercise, checking = (notebooks.cell_id(role, id) for role in ("exercise", "check"))
    if id in lost:
        return Result(id, WRONG, f"its cell ({exercise}) is not in your notebook: was it deleted, or copied and the "
                                 f"original removed? `course reset {id.split('.')[0]}` gives a fresh chapter beside it")
    if exercise in failed:
        return Result(id, WRONG, f"its cell failed: {_last_line(failed[exercise])}")
    if checking not in failed:
        return Result(id, SOLVED, "solved")
    # In nbval's mismatch "-" marks what was printed here, "+" the expected text.
    said = re.search(rf"(?m)^\s*- {re.escape(id)} ([✗…]) (.*?)( The chapter goes on|$)", failed[checking])
    if not said:
        return Result(id, WRONG, f"its check failed: {_last_line(failed[checking])}")
    return Result(id, WRONG if said[1] == "✗" else UNTRIED, said[2])


def _other_result(cell: NotebookNode, why: str) -> Result:
    """A cell of the chapter itself that failed: most often it met an answer that does not fit."""
    return Result("cell", WRONG, f"`{cell.source.splitlines()[0]}` failed: {_last_line(why)}")


def _last_line(text: str) -> str:
    """The last line that says something: in a traceback, the error."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def _plain(text: str) -> str:
    """The text without terminal colours, as nbval and IPython write them into reports."""
    return re.sub(r"(\x1b|#x1B)\[[0-9;]*m", "", text)


# --- files and answers -----------------------------------------------------------------------------------------------

def _carry_over(old: NotebookNode, new: NotebookNode) -> list[str]:
    """Put the answers of `old` into `new`; returns the ids of those that find no place."""
    answers = {id: cell for id, cell in notebooks.by_role(old, "exercise").items() if _is_touched(old, id, cell)}
    _copy_sources(answers, notebooks.by_role(new, "exercise"))
    chosen = {id: cell for id, cell in notebooks.by_role(old, "predict").items() if '"?"' not in cell.source}
    _copy_sources(chosen, notebooks.by_role(new, "predict"))
    return [id for id in answers if id not in notebooks.by_role(new, "exercise")]


def _copy_sources(old: dict[str, NotebookNode], new: dict[str, NotebookNode]) -> None:
    for id in old.keys() & new.keys():
        new[id].source = old[id].source


def _is_touched(notebook: NotebookNode, id: str, cell: NotebookNode) -> bool:
    """Has the learner changed the exercise cell since it was handed out?"""
    return _course(notebook).get("exercises", {}).get(id, {}).get("given") != notebooks.digest(cell.source)


def _saved_states(mine: Path, pristine: NotebookNode) -> dict[str, str]:
    ids = list(notebooks.by_role(pristine, "exercise"))
    if not mine.exists():
        return dict.fromkeys(ids, UNTRIED)
    saved = notebooks.read(mine)
    answers, checks = (notebooks.by_role(saved, role) for role in ("exercise", "check"))
    return {id: _saved_state(saved, id, answers.get(id), checks.get(id)) for id in ids}


def _saved_state(saved: NotebookNode, id: str, answer: NotebookNode | None, checking: NotebookNode | None) -> str:
    if answer is None or checking is None or not _is_touched(saved, id, answer):
        return UNTRIED
    said = notebooks.printed(checking)
    return SOLVED if said == f"{id} ✓ solved\n" else WRONG if f"{id} ✗" in said else UNTRIED


def _course(notebook: NotebookNode) -> dict:
    return notebook.metadata.get("course", {})
