"""`exercise`, which a chapter's check cells call: the learner's function beside the course's own, in one line.

A check runs the learner's function on randomised cases of several seeds, in a thread with a time limit, on copies of
the inputs, with printing silenced (`running`). Evaluations are the course's currency: the denoisers, and whatever other maps a
case hands over, count what they are asked, and right values at a higher price than the reference's are not yet right; what
is said is decided in `verdicts`. Answers to other exercises that the learner's function calls are replaced by the course's own
meanwhile, so that it is not blamed for their faults. The chapter always goes on with a function that works.
"""

import contextlib
import functools
import inspect
import io
import sys
from collections import Counter
from collections.abc import Callable

from .. import banks
from ..exercises import Exercise
from .running import TimeUp, expected, outcomes
from .verdicts import Verdict, is_of_a_stub, kind, verdict

_MARK = "_the_courses_own"              # set on what `exercise` returns in place of an unsolved function
_GOES_ON = "The chapter goes on with the course's own."
_failures: Counter = Counter()          # exercise id -> failed attempts, in this kernel
_answers: dict[str, Callable] = {}      # exercise id -> the learner's function, as last handed in


def exercise(id: str, function: Callable) -> Callable:
    """Check the learner's `function` for exercise `id`, print one line, and return a function to go on with.

    The learner's own if it is right; otherwise the course's, marked, so that checking it again cannot succeed.
    Raises ValueError if there is no such exercise.
    """
    task = banks.exercise(id)
    found = judge(task, function)
    if callable(function) and not str(getattr(function, "__module__", "")).startswith("course_lib."):
        _answers[id] = function             # the learner's own: not what this function returns, nor the library's
    if found.status == "solved":
        print(f"{id} ✓ solved")
        return function
    if found.status == "untried":
        print(f"{id} … not yet tried. {_GOES_ON}")
    elif found.status == "again":
        print(f"{id} … {found.message}. {_GOES_ON}")
    else:
        _failures[id] += 1
        print(f"{id} ✗ {found.message}. {_help(task, _failures[id])}{_GOES_ON}")
    return _marked(task)


def judge(task: Exercise, function: Callable) -> Verdict:
    """Compare `function` with the task's reference, then with its mistakes, over the cases of all `SEEDS`, silently."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), _others(task, function):
        return _judge(task, function)


def _judge(task: Exercise, function: Callable) -> Verdict:
    if not callable(function):
        return Verdict("wrong", f"exercise() needs your function, it got {kind(function)}")
    if _MARK in getattr(function, "__dict__", {}) or function is task.reference:
        return Verdict("again", "that is the course's own function; run your own cell again, then this one")
    try:
        yours = outcomes(task, function)
    except TimeUp:
        return Verdict("wrong", f"stopped after {task.seconds:g} seconds: is there a loop that never ends, or one "
                                "over elements that a tensor operation could replace?")
    if any(is_of_a_stub(outcome.error) for outcome in yours):
        return Verdict("untried")
    return verdict(task, function, yours, expected(task))


@contextlib.contextmanager
def _others(task: Exercise, function: Callable):
    """Meanwhile, the names by which `function` may call answers to the chapter's other exercises mean the course's own.

    Such an answer is known by itself, and by its name and parameters: its cell may have been run again, without the
    check. Another function may have taken its name since, a helper perhaps; that one stays. So does an answer that takes
    more than the course's own does: it may be called with that.
    """
    names, own = _globals(function), {}
    for id, answer in _answers.items():
        if id == task.id or id.split(".")[0] != task.id.split(".")[0]:
            continue
        reference, takes = banks.exercise(id).reference, _parameters(answer)
        if takes and set(takes) <= set(_parameters(reference) or ()):
            own |= {name: reference for name, value in list(names.items())
                    if value is answer or (name == getattr(answer, "__name__", None) and _parameters(value) == takes)}
    before = {name: names[name] for name in own}
    names.update(own)
    try:
        yield
    finally:
        names.update(before)


def _parameters(value) -> list[str] | None:
    """The names of what a function takes; None where nothing is known of them."""
    try:
        return list(inspect.signature(value).parameters)
    except (TypeError, ValueError):         # no function; one that is not written in Python
        return None


def _globals(function) -> dict:
    """The namespace in which a function, or the methods of a class, look up what they call; empty if there is none."""
    module = sys.modules.get(getattr(function, "__module__", None))
    return getattr(inspect.unwrap(function), "__globals__", vars(module) if module else {}) if callable(function) else {}


def _help(task: Exercise, failures: int) -> str:
    """The graded hint after `failures` failed attempts: none, then the tips in turn, then where the solution is."""
    if failures < 2:
        return ""
    if failures - 2 < len(task.tips):
        return f"Tip {failures - 1}: {task.tips[failures - 2].rstrip('. ')}. "
    return f"The worked solution is in notebooks/solutions, chapter {int(task.id.split('.')[0]):02d}. "


def _marked(task: Exercise) -> Callable:
    """The course's own function (or class), wrapped so that `judge` knows it again."""
    if isinstance(task.reference, type):
        return type(task.reference.__name__, (task.reference,), {_MARK: True})

    @functools.wraps(task.reference)
    def own(*arguments, **keywords):
        return task.reference(*arguments, **keywords)

    setattr(own, _MARK, True)
    return own
