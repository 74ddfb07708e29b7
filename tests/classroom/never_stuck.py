"""Is a learner ever stuck? Runs a chapter with one exercise blank, and with one solved, wherever that can matter.

    python tests/classroom/never_stuck.py notebooks/source/02_diffusion_sdes.py

A chapter of n exercises has 2^n states; we look at the 2n in which a single exercise is blank, or a single one solved.
First the solved chapter is run whole and watched: which names does each statement read, bind, and change in place? This
tells on which exercises it depends, through whatever chain of statements. One whose exercises are all solved has then been
run, and one whose exercises are all blank is run by the test of the fresh notebook. There remain those in which an answer of
the learner's meets one of the course's own. These, with all that they need, are run for each of the states, in a process of
its own, which was forked from the solved chapter before the first blank exercise.
"""

import ast
import contextlib
import functools
import io
import json
import multiprocessing
import os
import sys
import tempfile
import traceback
import types
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch

from course_lib.classroom import notebooks
from course_lib.classroom.author.build import Chapter
from course_lib.classroom.judge import checks


@dataclass
class Cell:
    """A code cell, solved and as a learner gets it."""

    id: str
    solved: str
    blank: str
    exercise: str | None = None                         # whose cell it is
    checked: str | None = None                          # whose check it is


@dataclass
class Part:
    """A statement of a cell, and what it did to the notebook's names when all was solved. An exercise cell is one part."""

    cell: Cell
    node: ast.Module
    last: bool                                          # of its cell
    reads: set[str] = field(default_factory=set)        # names, before it bound them itself
    binds: set[str] = field(default_factory=set)
    changes: set[str] = field(default_factory=set)      # names whose values it changed in place
    depends: frozenset[str] = frozenset()               # the exercises whose state can reach it


class Watched(dict):
    """The globals of a notebook, which note the names that are read and bound."""

    def __init__(self):
        super().__init__(__name__="__main__")
        self.reads, self.binds = set(), set()

    def __getitem__(self, name):
        value = super().__getitem__(name)               # a KeyError sends Python on to the builtins
        if name not in self.binds:
            self.reads.add(name)
        return value

    def __setitem__(self, name, value):
        self.binds.add(name)
        super().__setitem__(name, value)


def troubles(chapter: Chapter) -> tuple[list[str], str]:
    """All that can stop a learner, a sentence each; and how much has been run, in words.

    Raises whatever the solved chapter raises.
    """
    parts, names, waiting, found, marks = _parts(code_cells(chapter)), Watched(), {}, [], {}
    with contextlib.ExitStack() as stack:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            for number, part in enumerate(parts):
                if part.cell.exercise:
                    waiting[part.cell.exercise] = stack.enter_context(_Waiting(parts, names, number, waiting.values()))
                marks = _watch(part, names, marks)
        _trace(parts)
        plans = _plans(parts)
        for blank, wanted in plans.items():
            first = next(exercise for exercise in waiting if exercise in blank)
            trouble = waiting[first].run(blank, wanted)
            if trouble:
                found.append(f"{chapter.name}, {', '.join(sorted(blank))} blank and the others solved: {trouble}")
    return found, f"{len(parts)} statements solved, {sum(map(len, plans.values()))} in {len(plans)} mixed states"


def code_cells(chapter: Chapter) -> list[Cell]:
    solution, learner = chapter.solution(), chapter.learner()
    ids = {role: {cell.id: id for id, cell in notebooks.by_role(learner, role).items()} for role in ("exercise", "check")}
    return [Cell(solved.id, solved.source, blank.source, ids["exercise"].get(solved.id), ids["check"].get(solved.id))
            for solved, blank in zip(solution.cells, learner.cells, strict=True) if solved.cell_type == "code"]


def _parts(cells: list[Cell]) -> list[Part]:
    bodies = [(cell, ast.parse(cell.solved).body) for cell in cells]
    return [Part(cell, ast.Module(statements, []), statements[-1] is body[-1]) for cell, body in bodies
            for statements in ([body] if cell.exercise else [[statement] for statement in body])]


# --- running and watching --------------------------------------------------------------------------------------------

def _run(part: Part, names: dict, blank: bool = False) -> None:
    exec(compile(ast.parse(part.cell.blank) if blank else part.node, part.cell.id, "exec"), names)
    if part.last:
        plt.close("all")                                # as notebooks do after each cell


def _watch(part: Part, names: Watched, before: dict[str, int]) -> dict[str, int]:
    """Run a solved part and note what it does, given the fingerprints of all values before; returns those after it."""
    names.reads.clear()
    names.binds.clear()
    _run(part, names)
    after = _fingerprints(names)
    part.reads, part.binds = set(names.reads), set(names.binds)
    part.changes = {name for name in before.keys() & after.keys() - part.binds if before[name] != after[name]}
    if part.cell.checked:
        [name] = part.binds
        assert checks._MARK not in getattr(names[name], "__dict__", {}), f"{part.cell.checked}: the solution is not solved"
    return after


def _fingerprints(names: dict) -> dict[str, int]:
    seen: dict[int, int] = {}
    return {name: _fingerprint(value, seen) for name, value in names.items() if name != "__builtins__"}


def _fingerprint(value, seen: dict[int, int]) -> int:
    """A number that is another one once the value, or anything that it holds, has been changed in place."""
    if id(value) not in seen:
        seen[id(value)] = id(value)                     # ends circles
        seen[id(value)] = hash((id(value), _mark(value), *(_fingerprint(held, seen) for held in _holds(value))))
    return seen[id(value)]


def _mark(value):
    if isinstance(value, torch.Tensor):
        return None if value.is_inference() else value._version
    if isinstance(value, torch.Generator):
        return value.get_state().numpy().tobytes()
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value.tobytes()
    if isinstance(value, functools._lru_cache_wrapper):
        return value.cache_info().currsize
    return None


def _holds(value) -> Iterable:
    if isinstance(value, dict):
        return [*value, *value.values()]
    if isinstance(value, (list, tuple, set, frozenset)):
        return value
    if isinstance(value, types.MethodType):
        return [value.__self__]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, types.FunctionType):
        return [cell.cell_contents for cell in value.__closure__ or () if cell != types.CellType()]
    ours = type(value).__module__.startswith(("course_lib", "__main__")) or isinstance(value, torch.nn.Module)
    return vars(value).values() if ours and hasattr(value, "__dict__") else ()


# --- what must be run ------------------------------------------------------------------------------------------------

def _trace(parts: list[Part]) -> None:
    """Fill in on which exercises each part depends. A check does so on its own alone: others are its judge's affair."""
    reaches: dict[str, frozenset[str]] = {}             # name -> exercises
    answers = {name for part in parts if part.cell.checked for name in part.binds}
    for part in parts:
        own = {id for id in (part.cell.exercise, part.cell.checked) if id}
        met = part.reads - answers if part.cell.checked else part.reads
        part.depends = frozenset(own).union(*(reaches.get(name, ()) for name in met))
        reaches |= {name: part.depends for name in part.binds}
        reaches |= {name: reaches.get(name, frozenset()) | part.depends for name in part.changes}


def _plans(parts: list[Part]) -> dict[frozenset[str], list[int]]:
    """Blank exercises -> the parts to look at, by number: each part once for each mixed state of what it depends on."""
    ids = frozenset(part.cell.exercise for part in parts if part.cell.exercise)
    plans, seen = {}, set()
    for blank in [*(frozenset([id]) for id in sorted(ids)), *(ids - {id} for id in sorted(ids))]:
        mixed = {(number, part.depends & blank) for number, part in enumerate(parts)
                 if part.depends & blank and part.depends - blank} - seen
        seen |= mixed
        if mixed:
            plans[blank] = sorted(number for number, _ in mixed)
    return plans


def _slice(parts: list[Part], wanted: list[int], start: int) -> list[int]:
    """The wanted parts and, from `start` on, those that bind or change what they need, in order."""
    live, chosen = set(), []
    for number in range(wanted[-1], start - 1, -1):
        part = parts[number]
        if number in wanted or live & (part.binds | part.changes):
            live = (live - part.binds) | part.reads
            chosen.append(number)
    return chosen[::-1]


# --- states, each in its own process ---------------------------------------------------------------------------------

class _Waiting:
    """The solved chapter as it was before the part `start`, kept in a process of its own until it is known what to run."""

    def __init__(self, parts: list[Part], names: Watched, start: int, others: "Iterable[_Waiting]"):
        self.parts, self.start = parts, start
        self.connection, end = multiprocessing.Pipe()
        inherited = [self.connection, *(other.connection for other in others)]
        self.process = _forked(_serve, end, inherited, parts, names)
        end.close()

    def run(self, blank: frozenset[str], wanted: list[int]) -> str:
        """What went wrong, or an empty string."""
        self.connection.send((blank, _slice(self.parts, wanted, self.start)))
        return self.connection.recv()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.connection.close()
        self.process.join()


def _forked(function, *arguments) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    return process


def _serve(connection, inherited: list, parts: list[Part], names: Watched) -> None:
    """Run what is asked for, each time from the same beginning, until the asking process hangs up or is gone."""
    for other in inherited:                             # a copy kept open here would hide that
        other.close()
    with contextlib.suppress(EOFError):
        while True:
            process = _forked(_work, connection, parts, names, *connection.recv())
            process.join()
            if process.exitcode:
                connection.send(f"its process ended with {process.exitcode}")


def _work(connection, parts: list[Part], names: Watched, blank: frozenset[str], numbers: list[int]) -> None:
    for part in (parts[number] for number in numbers):
        try:
            _run(part, names, part.cell.exercise in blank)
        except BaseException as error:                  # whatever a cell does, it is told
            frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == part.cell.id]
            line = part.cell.solved.splitlines()[frames[-1].lineno - 1].strip() if frames else ""
            return connection.send(f"`{line}` in cell {part.cell.id} raised {type(error).__name__}: {error}")
    return connection.send("")


if __name__ == "__main__":
    matplotlib.use("Agg")
    torch.set_num_threads(1)                            # a fork keeps only one
    source = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        found, size = troubles(Chapter(source))
    print(json.dumps({"found": found, "size": size}))
