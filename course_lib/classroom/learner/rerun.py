"""`course check`: a learner's answers, run inside the chapter as the course ships it.

From the command line to the verdict: `cli._check` -> `check` -> `answers.find` (what the learner wrote) -> `run` (a kernel runs
the chapter with it) -> in that kernel the check cell calls `exercise` in judge/checks.py, which runs the answer (running.py)
and decides (verdicts.py) -> `_result`, by `answers.read_verdict`, from the line that the cell printed.

A fresh kernel in an empty folder runs the chapter's own cells, with the answers in the exercises' places; the verdict is what
the chapter's own check cell then prints. Nothing else of the learner's file counts: not a saved output, not a changed check.

What this protects against: mistakes, a forgotten cell, a kernel that remembers too much, forged or stale outputs. What not: an
answer runs with all the rights of whoever runs the check, and code that sets out to deceive (it might replace `exercise`, or
write to other files) can do so. Answers of people you do not trust need a sandbox around the whole command. That the library
and the chapter are the same after the run as before is verified.
"""

import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ipykernel.kernelspec import RESOURCES, get_kernel_dict
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import v4

from ... import files
from .. import notebooks
from . import answers
from .answers import SOLVED, UNTRIED, WRONG, Found

SECONDS_A_CELL = 300


@dataclass(frozen=True)
class Result:
    """One line of a check: the exercise id (or "cell" for another one that failed), "✓", "✗" or "·", and why."""

    name: str
    state: str
    message: str


@dataclass(frozen=True)
class CellOutcome:
    """What became of one cell. error: why it failed, in a line, or "".    printed: its stdout, for a check cell.

    ended: is the kernel gone, or stuck, so that nothing can run after it?
    """

    error: str = ""
    printed: str = ""
    ended: bool = False


def check(root: Path, shipped: Path, notebook: dict) -> list[Result]:
    """Check the answers in the learner's `notebook` against the chapter that the course ships at `shipped`.

    Raises ValueError if the shipped file is not what was built, or if it or the library change meanwhile.
    """
    pristine, before = notebooks.pristine(shipped), _sums(shipped)
    found = answers.find(pristine, notebook)
    outcomes = run(root, pristine, found)
    after = _sums(shipped)
    changed = [str(path) for path in sorted(before.keys() | after.keys()) if before.get(path) != after.get(path)]
    if changed:
        raise ValueError(f"nothing was judged: while the answers ran, {', '.join(changed)} changed. "
                         "Get the course's own back by `git restore`, or from a fresh download")
    return [_result(id, found[id], outcomes) for id in found] + _other_results(pristine, outcomes)


# --- running ---------------------------------------------------------------------------------------------------------

def run(root: Path, pristine: dict, found: dict[str, Found]) -> dict[str, CellOutcome]:
    """Run the chapter with the answers in their places: cell id -> outcome; a cell that never ran has none.

    The code of other cells that an answer uses runs before it, as the cell "own-4-2". An answer that ends the kernel, or
    does not end itself, is taken out and the chapter is run again, so that the other answers are judged all the same.
    """
    ended: dict[str, CellOutcome] = {}
    while True:
        outcomes = _run(root, list(_cells(pristine, {id: one for id, one in found.items() if id not in _exercises(ended)})))
        guilty = {id: outcome for id, outcome in outcomes.items() if outcome.ended}
        if not set(_exercises(guilty)) - set(_exercises(ended)):
            return outcomes | ended | guilty
        ended |= guilty


def _exercises(cells: dict[str, CellOutcome]) -> list[str]:
    """The exercises to which cells belong."""
    matches = (re.fullmatch(r"(?:own|exercise|check)-(\d+)-(\d+)", id) for id in cells)
    return [f"{match[1]}.{match[2]}" for match in matches if match]


def _cells(pristine: dict, found: dict[str, Found]) -> Iterator[tuple[str, str]]:
    """The code that runs, as (cell id, source)."""
    places = {cell["id"]: found[id] for id, cell in notebooks.by_role(pristine, "exercise").items()
              if id in found and found[id].source is not None}
    for cell in pristine["cells"]:
        if cell["cell_type"] != "code":
            continue
        answer = places.get(cell["id"])
        if answer and answer.own:
            yield notebooks.cell_id("own", answer.id), "\n\n".join(answer.own)
        yield cell["id"], answer.source if answer else cell["source"]


def _run(root: Path, cells: list[tuple[str, str]]) -> dict[str, CellOutcome]:
    """Run cells in a fresh kernel, up to one that ends it."""
    notebook = v4.new_notebook(cells=[v4.new_code_cell(source, id=id) for id, source in cells])
    outcomes = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, _kernel(root, Path(folder), notebook) as client:
        for index, cell in enumerate(notebook.cells):
            outcomes[cell.id] = _outcome(client, cell, index)
            if outcomes[cell.id].ended:
                break
    return outcomes


def _outcome(client: NotebookClient, cell, index: int) -> CellOutcome:
    try:
        client.execute_cell(cell, index)
    except CellExecutionError as error:
        return CellOutcome(" ".join(f"{error.ename}: {_plain(error.evalue)}".split()), notebooks.printed(cell))
    except CellTimeoutError:
        return CellOutcome(f"stopped at the limit of {SECONDS_A_CELL} seconds a cell: is there a loop that never ends, "
                       "or is the machine busy with something else?", ended=True)
    except DeadKernelError:
        return CellOutcome("the kernel died in it: does it call exit or os._exit, or use more memory than there is?",
                           ended=True)
    return CellOutcome(printed=notebooks.printed(cell))


class _Quiet(NotebookClient):
    """A client that keeps of all outputs only what check cells print: a loop that prints for ever must not fill the memory."""

    def output(self, outs, msg, display_id, cell_index):
        if msg["msg_type"] == "stream" and self.nb.cells[cell_index].id.startswith("check-"):
            return super().output(outs, msg, None, cell_index)
        return None

    def clear_output(self, outs, msg, cell_index):
        """What a check has printed stays printed."""


class _ThisPython(KernelSpecManager):
    """Finds the kernel of the Python that runs `course check`, whatever kernels the user has installed."""

    def get_kernel_spec(self, kernel_name):
        return self.kernel_spec_class(resource_dir=RESOURCES, **get_kernel_dict())


@contextlib.contextmanager
def _kernel(root: Path, folder: Path, notebook) -> Iterator[NotebookClient]:
    """A kernel in an empty folder, with none of the user's settings; it and its children are gone afterwards.

    They form a process group of their own. If this process is killed, the kernel notices within a second and ends itself.
    """
    (empty := folder / "empty").mkdir()
    (settings := folder / "settings").mkdir()
    environment = notebooks.environment(root, COURSE_SCALE="quick", COURSE_WEIGHTS=str(empty),
                                        IPYTHONDIR=str(settings), JUPYTER_CONFIG_DIR=str(settings), JUPYTER_CONFIG_PATH="",
                                        MPLBACKEND="module://matplotlib_inline.backend_inline")
    environment.pop("PYTHONSTARTUP", None)          # IPython would run it
    silent = logging.getLogger("course.check")
    silent.addHandler(logging.NullHandler())
    silent.propagate = False
    manager = AsyncKernelManager(kernel_spec_manager=_ThisPython(), connection_file=str(folder / "kernel.json"), log=silent)
    client = _Quiet(notebook, km=manager, timeout=SECONDS_A_CELL, startup_timeout=180, record_timing=False,
                    store_widget_state=False, shutdown_kernel="immediate", log=silent)
    with _ends_by_signals():
        group = None
        try:
            client.start_new_kernel(cwd=str(empty), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            group = getattr(manager.provisioner, "pgid", None)
            _connect(client)
            with client.setup_kernel(cleanup_kc=True):
                yield client
        finally:
            if group and hasattr(os, "killpg"):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(group, signal.SIGKILL)


def _connect(client: NotebookClient) -> None:
    try:
        client.start_new_kernel_client()
    except RuntimeError as error:
        raise ValueError(f"the kernel of {sys.executable} does not answer: {error}") from error


@contextlib.contextmanager
def _ends_by_signals() -> Iterator[None]:
    """SIGTERM ends this process by an exception, as SIGINT does, so that whatever was begun is cleaned up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _sums(shipped: Path) -> dict[Path, str]:
    """The check sums of the library's code and of the chapter."""
    library = Path(files.__file__).resolve().parent
    return {path: files.sha256(path) for path in [shipped, *sorted(library.rglob("*.py"))]}


# --- results ---------------------------------------------------------------------------------------------------------

def _result(id: str, found: Found, outcomes: dict[str, CellOutcome]) -> Result:
    """What became of one exercise."""
    cells = [(role, outcomes.get(notebooks.cell_id(role, id))) for role in ("own", "exercise", "check")]
    said = {"own": "code of your own that your answer uses failed", "exercise": "its cell failed", "check": "its check failed"}
    chapter = id.split(".")[0]
    if found.source is None and found.left:
        return Result(id, WRONG, f"your answer is in {found.left[0]}, where no kernel runs it: make a code cell of it (key Y)")
    if found.source is None and not found.stub:
        return Result(id, WRONG, f"no cell of your notebook holds it: was its cell deleted, or the function renamed? "
                                 f"`course reset {chapter}` gives a fresh chapter beside it")
    checked = dict(cells)["check"] or CellOutcome()
    state, message = answers.read_verdict(id, checked.printed)
    if state == SOLVED and not checked.error:
        return Result(id, state, message)       # whatever else in its cell failed
    for role, outcome in cells:
        if outcome and outcome.error:
            return Result(id, WRONG, _with_notes(f"{said[role]}: {outcome.error}", found))
    if dict(cells)["check"] is None:
        return Result(id, UNTRIED, "not checked: the kernel ended in a cell before it")
    return Result(id, state or WRONG, _with_notes(message or "its check printed no verdict", found))


def _with_notes(message: str, found: Found) -> str:
    """The message, with what explains it: a name that the clean chapter lacks, other answers that were not taken."""
    notes = [*(why for name, why in found.lacking if f"name '{name}' is not defined" in message), *found.shadowed]
    notes += [f"the answer that was taken is in {found.where}, the last before its check; another is in {', '.join(found.left)}"
              ] if found.left else []
    return ". ".join([message.rstrip(". "), *notes]) + "." if notes else message


def _other_results(pristine: dict, outcomes: dict[str, CellOutcome]) -> list[Result]:
    """Cells of the chapter itself that failed: most often they met an answer that does not fit."""
    cells = {cell["id"]: cell for cell in pristine["cells"]}
    failed = [id for id, outcome in outcomes.items() if outcome.error and not _exercises({id: outcome})]
    return [Result("cell", WRONG, f"`{cells[id]['source'].splitlines()[0]}` failed: {outcomes[id].error}") for id in failed]


def _plain(text: str) -> str:
    """The text without terminal colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)
