"""Exercises and predictions for the notebooks, and the `course` command.

    my_ddim = exercise("4.2", my_ddim)      # checks the learner's function; one line, and a function to go on with
    predict("4.1", "b")                     # records a choice before the result is seen
    reveal("4.1")                           # confronts that choice with the result

The rooms are on the map, in the docstring of course_lib.
"""

import importlib

_HOME = {"exercise": "checks", "predict": "predictions", "reveal": "predictions"}

__all__ = ["exercise", "predict", "reveal"]


def __getattr__(name: str):
    """Import the three names on first use, so that commands which check nothing do not wait for torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.judge.{_HOME[name]}"), name)
