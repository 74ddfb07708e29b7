"""Exercises and predictions for the notebooks, and the `course` command.

    my_ddim = exercise("4.2", my_ddim)      # checks the learner's function; one line, and a function to go on with
    predict("4.1", "b")                     # records a choice before the result is seen
    reveal("4.1")                           # confronts that choice with the result

The map, as in course_lib:

    notebooks          notebooks as files, and what their cells are called
    exercises          what an author writes: Exercise, Mistake, Prediction
    banks              for each chapter its exercises with their known mistakes and hints, and its predictions
      cases            what the exercises of several chapters are tried on
      chapter_*        one a chapter: chapter_04.py for chapter 4
    judge              what a chapter calls
      running          an answer run on its cases: counted, timed, on copies of the inputs
      verdicts         right or wrong, and which known mistake's hint
      checks           `exercise`: one line, and a function to go on with
      predictions      `predict` and `reveal`
    learner            what a learner has
      answers          answers found in a notebook, whatever became of its cells
      copies           the folder my/: handed out once, never overwritten
      updates          `course update` and `course progress`: answers carried over to a new version, counted
      rerun            `course check`: answers run inside the pristine chapter
      lab              `course lab`: JupyterLab on my/
      doctor           `course doctor`: is this machine ready
    author             what an author has
      build            `course build`: notebooks/source to notebooks and solutions
      gpu              `course gpu`: all that needs a GPU, within a budget of minutes
    cli                the `course` command, and which of these each subcommand calls
    __main__           `python -m course_lib.classroom`
"""

import importlib

_HOME = {"exercise": "checks", "predict": "predictions", "reveal": "predictions"}

__all__ = ["exercise", "predict", "reveal"]


def __getattr__(name: str):
    """Import the three names on first use, so that commands which check nothing do not wait for torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.judge.{_HOME[name]}"), name)
