"""You are never stuck: whichever exercises are blank, the chapter runs to its end, since the course's own functions fit in."""

import ast
import importlib
import inspect
import json
import os
import subprocess
import sys
from functools import cache

import never_stuck
import pytest

from course_lib.classroom import banks, notebooks
from course_lib.classroom.author import build
from course_lib.classroom.judge import checks, running
from course_lib.data import ROOT

SOURCES = notebooks.chapters(ROOT / "notebooks" / "source", suffix=".py")
IDS = [id for source in SOURCES for id in banks.exercises(notebooks.number(source))]
chapters = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
exercises = pytest.mark.parametrize("id", IDS)
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


@cache
def cells_of(number: int) -> list[never_stuck.Cell]:
    [source] = notebooks.chapters(ROOT / "notebooks" / "source", [number], ".py")
    return never_stuck.code_cells(build.Chapter(source))


def stub_of(id: str) -> ast.FunctionDef:
    """The learner's function of exercise `id`, as it is handed out."""
    cells = cells_of(int(id.split(".")[0]))
    [check] = [cell.solved for cell in cells if cell.checked == id]
    name = ast.parse(check).body[-1].targets[0].id
    [blank] = [cell.blank for cell in cells if cell.exercise == id]
    return next(node for node in ast.walk(ast.parse(blank)) if isinstance(node, ast.FunctionDef) and node.name == name)


def with_its_arguments(stub: ast.FunctionDef, function):
    """`function`, but taking the arguments of the stub and no others."""
    names = {"function": function}
    passed = ", ".join(argument.arg for argument in stub.args.args)
    exec(f"def {stub.name}({ast.unparse(stub.args)}): return function({passed})", names)
    return names[stub.name]


def calls(tree: ast.AST, name: str):
    """The calls name(...) and partial(name, ...) as lists of positional and dicts of named arguments."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            given = [node.func, *node.args] if node.func.id == name else node.args if node.func.id == "partial" else []
            if given and isinstance(given[0], ast.Name) and given[0].id == name:
                positional = [argument for argument in given[1:] if not isinstance(argument, ast.Starred)]
                yield positional, {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}


# --- the arguments ---------------------------------------------------------------------------------------------------

@exercises
def test_the_courses_own_takes_the_arguments_of_the_stub(id):
    """By the same names and in the same order; what it takes beyond them has a default."""
    theirs = inspect.signature(with_its_arguments(stub_of(id), print)).parameters
    ours = inspect.signature(banks.exercise(id).reference).parameters
    assert list(ours)[:len(theirs)] == list(theirs)
    assert all(ours[name].default is not inspect.Parameter.empty for name in ours if name not in theirs)


@exercises
def test_every_call_in_the_chapter_fits_the_stub_and_the_courses_own(id):
    """What has no default is not given by name: a learner may call it otherwise."""
    stub, reference = stub_of(id), inspect.signature(banks.exercise(id).reference)
    theirs = inspect.signature(with_its_arguments(stub, print))
    found = [call for cell in cells_of(int(id.split(".")[0])) for call in calls(ast.parse(cell.solved), stub.name)]
    for positional, named in found:
        assert all(theirs.parameters[name].default is not inspect.Parameter.empty for name in named)
        for signature in (theirs, reference):
            signature.bind_partial(*positional, **named)


@exercises
def test_the_courses_own_works_with_a_learners_functions(id):
    """An exercise may be handed the answer to another one: it must ask no more of it than the stub there takes."""
    task, met = banks.exercise(id), set()
    answers = {inspect.unwrap(other.reference): other.id for other in banks.exercises(int(id.split(".")[0])).values()}
    parts = [inspect.unwrap(part) for _, case in running.drawn(task) for part in case if inspect.isfunction(part)]
    theirs = {part: with_its_arguments(stub_of(answers[part]), part) for part in parts if part in answers}

    def a_learners(argument):
        if not inspect.isfunction(argument) or inspect.unwrap(argument) not in theirs:
            return argument
        met.add(inspect.unwrap(argument))
        return theirs[inspect.unwrap(argument)]

    if theirs:
        verdict = checks.judge(task, lambda *arguments: task.reference(*map(a_learners, arguments)))
        assert verdict.status == "solved", verdict.message
        assert met == theirs.keys()


# --- the chapters, run -----------------------------------------------------------------------------------------------

@needs_fork
@pytest.mark.slowest
@chapters
def test_a_chapter_runs_to_its_end_whichever_exercises_are_blank(source, tmp_path):
    environment = notebooks.environment(ROOT, COURSE_SCALE="quick", OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    done = subprocess.run([sys.executable, never_stuck.__file__, source], cwd=tmp_path, env=environment,
                          capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    print(said["size"])
    assert said["found"] == []


BANK = '''
import torch
from course_lib.classroom.exercises import Exercise


def walk(step, x):
    return step(x, 2.0, None)                           # more than the learner's step takes


def stretch(x, by, extra=None):
    return by * x


def numbers(generator):
    yield torch.randn(3, generator=generator), 2.0


def walks(generator):
    yield stretch, torch.randn(3, generator=generator)


EXERCISES = [Exercise("96.1", "A step", stretch, numbers, []), Exercise("96.2", "A walk", walk, walks, []),
             Exercise("96.3", "Alone", stretch, numbers, [])]
PREDICTIONS = []
'''

SOURCE = '''# ---
# course: {title: Another fake chapter, minutes: 5, needs: [], shows: steps meet walks}
# ---

# %%
import torch

from course_lib.classroom import exercise

log, visits = [], {}

# %% exercise="96.1"
def my_step(x, by):
    ### BEGIN SOLUTION one line
    return by * x
    ### END SOLUTION

# %% check="96.1"
# NBVAL_CHECK_OUTPUT
my_step = exercise("96.1", my_step)

# %% exercise="96.2"
def my_walk(step, x):
    ### BEGIN SOLUTION one line
    return step(x, 2.0)
    ### END SOLUTION

# %% check="96.2"
# NBVAL_CHECK_OUTPUT
my_walk = exercise("96.2", my_walk)

# %% exercise="96.3"
def my_third(x, by):
    ### BEGIN SOLUTION one line
    return by * x
    ### END SOLUTION

# %% check="96.3"
# NBVAL_CHECK_OUTPUT
my_third = exercise("96.3", my_third)

# %%
log.append(my_step(torch.ones(1), 2.0))

# %%
ways = {"mine": my_walk}

# %%
log.append(my_third(log[0], 2.0))

# %%
visits["there"] = ways["mine"](LAST, torch.ones(1))
'''


@pytest.fixture
def small(bank, tmp_path):
    """Build the fake chapter 96, whose last cell hands LAST to the learner's walk."""
    (bank / "chapter_96.py").write_text(BANK, encoding="utf-8")
    importlib.invalidate_caches()
    path = tmp_path / "96_steps.py"

    def made(last: str) -> build.Chapter:
        path.write_text(SOURCE.replace("LAST", last), encoding="utf-8")
        return build.Chapter(path)

    yield made
    (bank / "chapter_96.py").unlink()


@needs_fork
def test_an_answer_that_does_not_fit_the_courses_own_is_found(small):
    found, size = never_stuck.troubles(small("my_step"))
    assert found == [
        "96_steps, 96.2 blank and the others solved: `visits[\"there\"] = ways[\"mine\"](my_step, torch.ones(1))` in cell "
        f"{small('my_step').solution().cells[-1].id} raised TypeError: my_step() takes 2 positional arguments but 3 were given"]
    assert size == "13 statements solved, 4 in 3 mixed states"
    # the last cell, in two states; and the one before but one, since another changed `log` in place
