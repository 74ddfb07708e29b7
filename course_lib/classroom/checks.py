"""Exercises: a check that compares with the course's own function, and explains a difference by a known mistake.

A check runs the learner's function on randomised cases of several seeds, in a thread with a time limit, on copies of
the inputs, with printing silenced. It prints one line, and the chapter always goes on with a function that works.
"""

import contextlib
import copy
import ctypes
import functools
import inspect
import io
import itertools
import linecache
import numbers
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import banks

SEEDS = (0, 1, 2)
_MARK = "_the_courses_own"              # set on what `exercise` returns in place of an unsolved function
_GOES_ON = "The chapter goes on with the course's own."
_failures: Counter = Counter()          # exercise id -> failed attempts, in this kernel


@dataclass(frozen=True)
class Mistake:
    """A known wrong answer: `wrong` computes it, with the exercise's own signature; `hint` says what went wrong.

    The hint is one sentence without the final full stop; the largest difference is appended to it.
    """

    name: str
    wrong: Callable
    hint: str


@dataclass(frozen=True)
class Exercise:
    """One exercise of a chapter.

    id: chapter and number, "4.2".
    reference: the course's own function, or a class, usually the library's.
    cases: `cases(generator)` gives argument tuples drawn from a torch.Generator on the CPU: vary schedules, shapes
        ((B, 2), (B, 1, 8, 8)) and batch sizes; include batch size 1 and larger ones, so that "works at batch size 1
        only" can be told apart.
    mistakes: known wrong answers; the first that explains the learner's results gives its hint.
    tips: graded hints; the first is added at the second failed attempt, the next at the third, and so on.
    call: `call(function, *case)` runs one case and gives a tensor, a number, or a tuple of these; by default
        `function(*case)`. Torch's global generator is seeded alike before every call.
    rtol, atol: how close to the reference is right, per element.    seconds: the limit for all cases together.
    """

    id: str
    title: str
    reference: Callable
    cases: Callable[[torch.Generator], Iterable[tuple]]
    mistakes: Sequence[Mistake]
    tips: Sequence[str] = ()
    call: Callable | None = None
    rtol: float = 1e-4
    atol: float = 1e-5
    seconds: float = 20

    @functools.cached_property
    def _drawn(self) -> "list[tuple[int, tuple]]":
        """All cases as (seed, arguments)."""
        return _draw(self)

    @functools.cached_property
    def _known(self) -> "dict[Callable, list[Outcome]]":
        """What the course's own functions gave on the cases: they are run once, however often a learner tries."""
        return {}


@dataclass(frozen=True)
class Verdict:
    """What a check found. status: "solved", "untried" (a stub), "again" (not the learner's own function) or "wrong".

    message: what is wrong, without a final full stop.    mistake: the one that was recognised, if any.
    """

    status: str
    message: str = ""
    mistake: Mistake | None = None


def exercise(id: str, function: Callable) -> Callable:
    """Check the learner's `function` for exercise `id`, print one line, and return a function to go on with.

    The learner's own if it is right; otherwise the course's, marked, so that checking it again cannot succeed.
    Raises ValueError if there is no such exercise.
    """
    task = banks.exercise(id)
    verdict = judge(task, function)
    if verdict.status == "solved":
        print(f"{id} ✓ solved")
        return function
    if verdict.status == "untried":
        print(f"{id} … not yet tried. {_GOES_ON}")
    elif verdict.status == "again":
        print(f"{id} … {verdict.message}. {_GOES_ON}")
    else:
        _failures[id] += 1
        print(f"{id} ✗ {verdict.message}. {_help(task, _failures[id])}{_GOES_ON}")
    return _marked(task)


def judge(task: Exercise, function: Callable) -> Verdict:
    """Compare `function` with the task's mistakes, then with its reference, over the cases of all `SEEDS`, silently."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return _judge(task, function)


def _judge(task: Exercise, function: Callable) -> Verdict:
    if not callable(function):
        return Verdict("wrong", f"exercise() needs your function, it got {_kind(function)}")
    if _MARK in getattr(function, "__dict__", {}) or function is task.reference:
        return Verdict("again", "that is the course's own function; run your own cell again, then this one")
    cases = task._drawn
    try:
        yours = _limited(lambda: _outcomes(task, function), task.seconds)
    except TimeUp:
        return Verdict("wrong", f"stopped after {task.seconds:g} seconds: is there a loop that never ends, or one "
                                "over elements that a tensor operation could replace?")
    if any(isinstance(outcome.error, NotImplementedError) for outcome in yours):
        return Verdict("untried")
    expected = _remembered(task, task.reference)
    verdict = _compared(task, cases, yours, expected)
    if verdict.status == "solved":
        return verdict                              # a right answer need not wait until all mistakes have been run
    for mistake in task.mistakes:
        if _explains(task, _remembered(task, mistake.wrong), yours, expected):
            return Verdict("wrong", mistake.hint.rstrip(". ") + _gap(task, yours, expected), mistake)
    return verdict


# --- running one function on the cases -------------------------------------------------------------------------------

class TimeUp(BaseException):
    """Raised inside the learner's function when its time is over; no `except Exception` there can hold it back."""


@dataclass(frozen=True)
class Outcome:
    """One case's result: `raw` as returned, `tensors` the same on the CPU in float64 (None if it is something else)."""

    raw: object = None
    error: BaseException | None = None
    mutated: bool = False
    tensors: tuple[Tensor, ...] | None = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "tensors", _tensors(self.raw))


def _draw(task: Exercise) -> list[tuple[int, tuple]]:
    """All cases as (seed, arguments); nothing here moves the notebook's own random numbers."""
    drawn = []
    for seed in SEEDS:
        with _isolated(seed):
            drawn += [(seed, case) for case in task.cases(torch.Generator().manual_seed(seed))]
    return drawn


def _outcomes(task: Exercise, function: Callable) -> list[Outcome]:
    return [_attempt(task, function, seed, case) for seed, case in task._drawn]


def _remembered(task: Exercise, function: Callable) -> list[Outcome]:
    if function not in task._known:
        task._known[function] = _outcomes(task, function)
    return task._known[function]


def _attempt(task: Exercise, function: Callable, seed: int, case: tuple) -> Outcome:
    """Run one case on a copy of its inputs; whatever the function raises stays in here."""
    call = task.call or (lambda function, *arguments: function(*arguments))
    arguments = _clone(case)
    with _isolated(seed):
        try:
            result = call(function, *arguments)
        except TimeUp:
            raise
        except BaseException as error:      # SystemExit too: a learner's exit() must not end the kernel
            return Outcome(error=error)
    return Outcome(result, mutated=not _same_inputs(arguments, case))


def _limited(work: Callable[[], list], seconds: float) -> list:
    """work() in a thread of its own, stopped by TimeUp after `seconds`: unlike alarms, this works on every platform."""
    results: list[list] = []

    def run():
        with contextlib.suppress(TimeUp):
            results.append(work())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        thread.join(seconds)
    finally:                                # also when the learner interrupts the kernel
        for _ in range(5):                  # a bare `except:` may swallow the first
            if thread.is_alive():
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(TimeUp))
                thread.join(0.2)
    if not results:
        raise TimeUp
    return results[0]


@contextlib.contextmanager
def _isolated(seed: int):
    """The CPU as default device, gradients on, and torch's global generator at `seed`, restored afterwards."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.enable_grad():
        torch.random.default_generator.manual_seed(seed)
        yield


def _clone(value):
    """A deep copy; unlike copy.deepcopy it takes tensors that are results of a computation."""
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if type(value) in (tuple, list):
        return type(value)(_clone(item) for item in value)
    if type(value) is dict:
        return {key: _clone(item) for key, item in value.items()}
    return copy.deepcopy(value)


def _same_inputs(after, before) -> bool:
    if isinstance(before, Tensor):
        return after.shape == before.shape and torch.equal(torch.nan_to_num(after), torch.nan_to_num(before))
    if type(before) in (tuple, list):
        return len(after) == len(before) and all(_same_inputs(a, b) for a, b in zip(after, before))
    if type(before) is dict:
        return after.keys() == before.keys() and all(_same_inputs(after[key], before[key]) for key in before)
    return True


# --- comparing outcomes ----------------------------------------------------------------------------------------------

def _explains(task: Exercise, known: list[Outcome], yours: list[Outcome], expected: list[Outcome]) -> bool:
    """Does the mistake give the learner's results wherever it differs from the reference (and differ somewhere)?

    Where the learner's function fails, the mistake must fail too, so that a crash elsewhere gets no wrong hint.
    """
    telling = [(k, y) for k, y, e in zip(known, yours, expected) if y.error or not _agree(task, k, e)]
    return bool(telling) and all(_agree(task, k, y) for k, y in telling)


def _agree(task: Exercise, a: Outcome, b: Outcome) -> bool:
    if a.error or b.error:
        return type(a.error) is type(b.error)
    if a.tensors is None or b.tensors is None or len(a.tensors) != len(b.tensors):
        return False
    return all(x.shape == y.shape and torch.allclose(x, y, task.rtol, task.atol, equal_nan=True)
               for x, y in zip(a.tensors, b.tensors))


def _compared(task: Exercise, cases: list, yours: list[Outcome], expected: list[Outcome]) -> Verdict:
    """Solved, or what is wrong at the first case that differs from the reference."""
    wrong = [i for i, (y, e) in enumerate(zip(yours, expected)) if _trouble(task, y, e)]
    if not wrong:
        return Verdict("solved")
    inputs = _describe(task, cases[wrong[0]][1])
    if _only_singles_pass([_batch(case) for _, case in cases], wrong):
        return Verdict("wrong", f"right for batch size 1 only, wrong on inputs {inputs}: a value per row, of shape "
                                "(B,), must be reshaped before it meets a batch of points or images"
                                + _gap(task, yours, expected))
    return Verdict("wrong", f"{_trouble(task, yours[wrong[0]], expected[wrong[0]])}, on inputs {inputs}"
                            + _gap(task, yours, expected))


def _trouble(task: Exercise, yours: Outcome, expected: Outcome) -> str:
    """What is wrong with one outcome, in words; empty if nothing is."""
    if yours.error:
        return f"your function raised {_where(yours.error)}"
    if yours.raw is None:
        return "your function returned None: is a `return` missing?"
    if yours.tensors is None:
        return f"your function returned {_kind(yours.raw)}, expected {_kind(expected.raw)}"
    if len(yours.tensors) != len(expected.tensors):
        return f"your function returned {len(yours.tensors)} values, expected {len(expected.tensors)}"
    for given, wanted, y, e in zip(_items(yours.raw), _items(expected.raw), yours.tensors, expected.tensors):
        if y.shape != e.shape:
            return f"your result has the shape {tuple(y.shape)}, expected {tuple(e.shape)}"
        if isinstance(wanted, Tensor) and getattr(given, "dtype", None) != wanted.dtype:
            return f"your result is {_dtype(given)}, expected {_dtype(wanted)}: keep the type of the inputs"
        if (e.isfinite() & ~y.isfinite()).any():
            return f"your result holds {'NaN' if y.isnan().any() else 'infinity'}"
    if not _agree(task, yours, expected):
        return "your values differ from the expected ones"
    return "your function changes its inputs in place; make a new tensor instead" if yours.mutated else ""


def _gap(task: Exercise, yours: list[Outcome], expected: list[Outcome]) -> str:
    """The largest difference over all cases and both values there, in brackets; empty where nothing can be compared."""
    pairs = [(y, e) for a, b in zip(yours, expected) if a.tensors and b.tensors
             for y, e in zip(a.tensors, b.tensors) if y.shape == e.shape and y.numel()]
    worst = [((y - e).abs().flatten().nan_to_num(nan=-1.0), y.flatten(), e.flatten()) for y, e in pairs]
    if not worst:
        return ""
    difference, y, e = max(worst, key=lambda triple: triple[0].max())
    at = difference.argmax()
    if difference[at] <= 0:
        return ""
    digits = next((n for n in (3, 5, 8) if f"{y[at]:.{n}g}" != f"{e[at]:.{n}g}"), 12)
    return f" (largest difference {difference[at]:.2g}: yours {y[at]:.{digits}g}, expected {e[at]:.{digits}g})"


def _batch(case: tuple) -> int:
    """The batch size of a case: the first length of its tensor of most dimensions (0 where it has none)."""
    shapes = [value.shape for value in case if isinstance(value, Tensor) and value.ndim]
    return max(shapes, key=len)[0] if shapes else 0


def _only_singles_pass(batches: list[int], wrong: list[int]) -> bool:
    right = set(range(len(batches))) - set(wrong)
    return bool(right) and all(batches[i] == 1 for i in right) and all(batches[i] > 1 for i in wrong)


def _items(raw) -> tuple:
    return tuple(raw) if isinstance(raw, (tuple, list)) else (raw,)


def _tensors(raw) -> tuple[Tensor, ...] | None:
    items = _items(raw)
    if not all(isinstance(item, (Tensor, numbers.Number)) for item in items):
        return None
    return tuple(torch.as_tensor(item).detach().to("cpu", torch.float64) for item in items)


# --- words -----------------------------------------------------------------------------------------------------------

def _kind(value) -> str:
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__} of ({', '.join(map(_kind, value))})"
    return f"Tensor {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _dtype(value) -> str:
    return str(value.dtype).removeprefix("torch.") if isinstance(value, Tensor) else type(value).__name__


def _describe(task: Exercise, case: tuple) -> str:
    """The inputs of a case by name, tensors by their shapes: "schedule: CosineVP, x: (4, 2), t: 0.7"."""
    names = [f"{name}: " for name in inspect.signature(task.reference).parameters] if task.call is None else []
    return ", ".join(name + _word(value) for name, value in itertools.zip_longest(names[:len(case)], case, fillvalue=""))


def _word(value) -> str:
    if isinstance(value, Tensor) and value.ndim:
        return str(tuple(value.shape))
    if isinstance(value, (Tensor, numbers.Number)) and not isinstance(value, bool):
        return f"{float(value):.3g}"
    return getattr(value, "__name__", type(value).__name__)


def _where(error: BaseException) -> str:
    """The error in one line, with the innermost line of the learner's cell (or file) that it passed through."""
    message = " ".join(str(error).split())[:200]
    trace, lines = error.__traceback__, []
    while trace is not None:
        code = trace.tb_frame.f_code
        if "site-packages" not in code.co_filename and not code.co_filename.startswith(_here()):
            lines.append(linecache.getline(code.co_filename, trace.tb_lineno).strip())
        trace = trace.tb_next
    at = next((f" at `{line}`" for line in reversed(lines) if line), "")
    return f"{type(error).__name__}{': ' if message else ''}{message}{at}"


def _here() -> str:
    return __file__.rsplit("classroom", 1)[0]          # course_lib/: frames of the library are not the learner's


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
