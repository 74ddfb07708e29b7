"""A tiny course of one chapter, 97, with a bank of its own: built and executed once, copied for every test."""

import shutil
from pathlib import Path

import pytest

import course_lib.classroom.banks
from course_lib.classroom.author import build
from course_lib.classroom.judge import checks

BANK = '''
import torch
from course_lib.classroom.exercises import Exercise, Mistake, Prediction


def line(x, slope):
    return slope.reshape(-1, *[1] * (x.ndim - 1)) * x


def shift(x, by):
    return x + by


def cases(generator):
    for shape in [(1, 2), (3, 2), (4, 1, 8, 8)]:
        yield torch.randn(shape, generator=generator), 1 + torch.rand(shape[0], generator=generator)


def shifts(generator):
    yield torch.randn(3, generator=generator), 0.5


EXERCISES = [
    Exercise("97.1", "A line", line, cases, [
        Mistake("forgot the slope", lambda x, slope: x, "the slope is not used"),
        Mistake("slope squared", lambda x, slope: line(x, slope**2), "the slope enters twice"),
        Mistake("sign", lambda x, slope: -line(x, slope), "the sign of the slope is turned"),
    ], tips=["what does a slope multiply?", "reshape the slope to (B, 1)"], seconds=5),
    Exercise("97.2", "A shift", shift, shifts, [
        Mistake("minus", lambda x, by: x - by, "it must move to the right"),
        Mistake("nothing", lambda x, by: x, "nothing moves"),
        Mistake("times", lambda x, by: x * by, "a shift is added, not multiplied"),
    ]),
]
PREDICTIONS = [Prediction("97.1", "b", {"a": "A line looks flat from afar.", "b": "It rises.", "c": "It never falls."})]
'''

SOURCE = '''# ---
# course: {title: A fake chapter, minutes: 5, needs: [], shows: lines rise}
# ---

# %% [markdown]
# # Lines
# Which way does it go: (a) flat, (b) up, (c) down?

# %%
import course_lib.classroom.banks

course_lib.classroom.banks.__path__.append(BANK_FOLDER)
import torch

from course_lib.classroom import exercise, predict, reveal

# %% predict="97.1"
predict("97.1", "b")

# %%
torch.arange(3)

# %%
reveal("97.1")

# %% exercise="97.1"
def my_line(x, slope):                      # (B, ...), (B,) -> (B, ...)
    ### BEGIN SOLUTION one line: slope times x
    return slope.reshape(-1, *[1] * (x.ndim - 1)) * x
    ### END SOLUTION

# %% check="97.1"
# NBVAL_CHECK_OUTPUT
my_line = exercise("97.1", my_line)

# %%
assert torch.equal(my_line(torch.ones(2, 2), torch.tensor([1.0, 2.0])), torch.tensor([[1.0, 1.0], [2.0, 2.0]]))

# %% exercise="97.2"
def my_shift(x, by):
    ### BEGIN SOLUTION one line
    return x + by
    ### END SOLUTION

# %% check="97.2"
# NBVAL_CHECK_OUTPUT
my_shift = exercise("97.2", my_shift)

# %%
my_shift(torch.zeros(2), 1)
'''


@pytest.fixture(scope="session")
def bank(tmp_path_factory):
    """A folder with the fake chapter's bank, seen by course_lib.classroom while the tests run."""
    folder = tmp_path_factory.mktemp("bank")
    (folder / "chapter_97.py").write_text(BANK, encoding="utf-8")
    course_lib.classroom.banks.__path__.append(str(folder))
    yield folder
    course_lib.classroom.banks.__path__.remove(str(folder))


@pytest.fixture(scope="session")
def source_text(bank):
    return SOURCE.replace("BANK_FOLDER", repr(str(bank)))


@pytest.fixture(scope="session")
def built(tmp_path_factory, source_text) -> Path:
    root = tmp_path_factory.mktemp("built")
    (root / "notebooks" / "source").mkdir(parents=True)
    (root / "notebooks" / "source" / "97_lines.py").write_text(source_text, encoding="utf-8")
    build.build(root, say=lambda line: None)
    return root


@pytest.fixture
def course(built, tmp_path) -> Path:
    """The root of a fresh copy of the built course."""
    return shutil.copytree(built, tmp_path / "course")


@pytest.fixture(autouse=True)
def no_failures_so_far():
    checks._failures.clear()
    checks._answers.clear()
