"""Every chapter's exercises, with their known mistakes, and its predictions; and how they are found.

Chapter 4's are `EXERCISES` and `PREDICTIONS` in chapter_04.py; their cells are in notebooks/source/04_*.py, from which `course
build` makes the notebooks, and says what one has and the other lacks. What several chapters try answers on is in cases.py.
"""

import importlib
import pkgutil
import re

from ..exercises import Exercise, Prediction


def chapters() -> list[int]:
    """The numbers of the chapters that have a bank."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(int(name[-2:]) for name in names if re.fullmatch(r"chapter_\d\d", name))


def exercises(chapter: int) -> dict[str, Exercise]:
    """The exercises of a chapter by id, in order; empty where the chapter has no bank."""
    return {task.id: task for task in _bank(chapter, "EXERCISES")}


def predictions(chapter: int) -> dict[str, Prediction]:
    """The predictions of a chapter by id, in order; empty where the chapter has no bank."""
    return {question.id: question for question in _bank(chapter, "PREDICTIONS")}


def exercise(id: str) -> Exercise:
    """The exercise called `id`, such as "4.2". ValueError if there is none."""
    return _find(id, exercises, "exercise")


def prediction(id: str) -> Prediction:
    """The prediction called `id`, such as "4.1". ValueError if there is none."""
    return _find(id, predictions, "prediction")


def _bank(chapter: int, name: str) -> list:
    if chapter not in chapters():
        return []
    return getattr(importlib.import_module(f"{__name__}.chapter_{chapter:02d}"), name)


def _find(id: str, of_chapter, kind: str):
    if not isinstance(id, str) or not re.fullmatch(r"\d+\.\d+", id):
        raise ValueError(f'{kind} id {id!r}: expected chapter and number in quotes, such as "4.2"')
    found = of_chapter(int(id.split(".")[0]))
    if id not in found:
        raise ValueError(f"there is no {kind} {id}; its chapter has {', '.join(found) or 'none'}")
    return found[id]
