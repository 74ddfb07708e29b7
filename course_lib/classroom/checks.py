"""Exercises: a check that compares with the course's own function, and explains a difference by a known mistake.

A check runs the learner's function on randomised cases of several seeds, in a thread with a time limit, on copies of
the inputs, with printing silenced. Evaluations are the course's currency: the denoisers, and whatever other maps a case
hands over, count what they are asked, and right values at a higher price than the reference's are not yet right. Answers
to other exercises that the learner's function calls are replaced by the course's own meanwhile, so that it is not blamed
for their faults. A check prints one line, and the chapter always goes on with a function that works.
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
import sys
import threading
import traceback
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
_answers: dict[str, Callable] = {}      # exercise id -> the learner's function, as last handed in


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
    reference: the course's own function, or a class, usually the library's. It sets the price: an answer may ask the
        maps among its arguments for as many rows as the reference does, and no more.
    cases: `cases(generator)` gives argument tuples drawn from a torch.Generator on the CPU: vary schedules, shapes
        ((B, 2), (B, 1, 8, 8)) and batch sizes; include batch size 1 and larger ones that differ from the last length, so
        that a value per row which was not reshaped shows. Where the reference raises an error, the answer must, too.
    mistakes: known wrong answers; the first that explains all of the learner's results, or half of the wrong ones, gives
        its hint.
    tips: graded hints; the first is added at the second failed attempt, the next at the third, and so on.
    call: `call(function, *case)` runs one case and gives a tensor, a number, or a tuple of these; by default
        `function(*case)`. Torch's global generator is seeded alike before every call.
    rtol, atol: how close to the reference is right, per element.    seconds: the limit for all cases together.
    count_calls: an answer may not call its maps more often than the reference either, however few the rows.
    free: the names of arguments that cost nothing, and may be asked as often as one likes.
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
    count_calls: bool = False
    free: Sequence[str] = ()

    @functools.cached_property
    def _drawn(self) -> "list[tuple[int, tuple]]":
        """All cases as (seed, arguments)."""
        return _draw(self)

    @functools.cached_property
    def _known(self) -> "dict[tuple[Callable, int], Outcome]":
        """What the course's own functions gave on each case: they are run once, however often a learner tries."""
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
    if callable(function) and not str(getattr(function, "__module__", "")).startswith("course_lib."):
        _answers[id] = function             # the learner's own: not what this function returns, nor the library's
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
    """Compare `function` with the task's reference, then with its mistakes, over the cases of all `SEEDS`, silently."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), _others(task, function):
        return _judge(task, function)


def _judge(task: Exercise, function: Callable) -> Verdict:
    if not callable(function):
        return Verdict("wrong", f"exercise() needs your function, it got {_kind(function)}")
    if _MARK in getattr(function, "__dict__", {}) or function is task.reference:
        return Verdict("again", "that is the course's own function; run your own cell again, then this one")
    try:
        yours = _limited(lambda: _outcomes(task, function), task.seconds)
    except TimeUp:
        return Verdict("wrong", f"stopped after {task.seconds:g} seconds: is there a loop that never ends, or one "
                                "over elements that a tensor operation could replace?")
    if any(_is_of_a_stub(outcome.error) for outcome in yours):
        return Verdict("untried")
    expected = _expected(task)
    wrong = [i for i, (y, e) in enumerate(zip(yours, expected)) if _trouble(task, y, e)]
    if not wrong:                                   # a right answer need not wait until all mistakes have been run
        return _priced(task, yours, expected)
    mistake = _recognised(task, yours, expected, len(wrong))
    if mistake:
        return Verdict("wrong", mistake.hint.rstrip(". ") + _gap(task, yours, expected), mistake)
    return _compared(task, function, yours, expected, wrong)


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


# --- running one function on the cases -------------------------------------------------------------------------------

class TimeUp(BaseException):
    """Raised inside the learner's function when its time is over; no `except Exception` there can hold it back."""


@dataclass
class Meter:
    """What a map was asked: how many rows, in how many calls."""

    rows: int = 0
    calls: int = 0

    def read(self, values: Iterable) -> None:
        """Count a call. A function that is given another one is no map but calls that one, which counts for itself."""
        values = list(values)
        shapes = [value.shape for value in values if isinstance(value, Tensor)]
        if shapes and not any(callable(value) for value in values):
            shape = max(shapes, key=len)
            self.rows += shape[0] if len(shape) > 1 else 1
            self.calls += 1


@dataclass(frozen=True)
class Outcome:
    """One case's result: `raw` as returned, `tensors` the same on the CPU in float64 (None if it is something else).

    asked: a meter for every argument; what is no map has asked for nothing.
    """

    raw: object = None
    error: BaseException | None = None
    mutated: bool = False
    asked: Sequence[Meter] = ()
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


def _expected(task: Exercise) -> list[Outcome]:
    return [_remembered(task, task.reference, i) for i in range(len(task._drawn))]


def _remembered(task: Exercise, function: Callable, i: int) -> Outcome:
    """The outcome of case i for a function of the course's own."""
    if (function, i) not in task._known:
        task._known[function, i] = _attempt(task, function, *task._drawn[i])
    return task._known[function, i]


def _attempt(task: Exercise, function: Callable, seed: int, case: tuple) -> Outcome:
    """Run one case on a copy of its inputs; whatever the function raises stays in here."""
    call = task.call or (lambda function, *arguments: function(*arguments))
    arguments, asked = _clone(case), [Meter() for _ in case]
    metered = [_metered(value, meter) for value, meter in zip(arguments, asked)]
    with _isolated(seed):
        try:
            result = call(function, *metered)
        except TimeUp:
            raise
        except BaseException as error:      # SystemExit too: a learner's exit() must not end the kernel
            return Outcome(error=error)
    return Outcome(result, mutated=not _same_inputs(arguments, case), asked=asked)


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


def _metered(value, meter: Meter):
    """`value`, and if it can be called, with a face that counts: of the same type, with the same attributes and signature."""
    if not callable(value) or isinstance(value, type):
        return value
    if inspect.isroutine(value) or isinstance(value, functools.partial):
        return _counting(value, meter, 0)
    base = type(value)
    face = type(base.__name__, (base,), {"__call__": _counting(base.__call__, meter, 1), "__module__": base.__module__})
    object.__setattr__(value, "__class__", face)            # of the clone; past the __setattr__ of a frozen dataclass
    return value


def _counting(function: Callable, meter: Meter, skip: int) -> Callable:
    """The function, with a meter that reads its arguments but for the first `skip` (a method's self)."""
    @functools.wraps(function)
    def counting(*arguments, **keywords):
        meter.read([*arguments[skip:], *keywords.values()])
        return function(*arguments, **keywords)
    return counting


def _same_inputs(after, before) -> bool:
    if isinstance(before, Tensor):
        return after.shape == before.shape and torch.equal(torch.nan_to_num(after), torch.nan_to_num(before))
    if type(before) in (tuple, list):
        return len(after) == len(before) and all(_same_inputs(a, b) for a, b in zip(after, before))
    if type(before) is dict:
        return after.keys() == before.keys() and all(_same_inputs(after[key], before[key]) for key in before)
    return True


# --- comparing outcomes ----------------------------------------------------------------------------------------------

def _recognised(task: Exercise, yours: list[Outcome], expected: list[Outcome], wrong: int) -> Mistake | None:
    """The first mistake that gives the learner's results throughout; else the first that explains half of the wrong ones."""
    partly = None
    for mistake in task.mistakes:
        explained, throughout = _explained(task, mistake, yours, expected)
        if explained and throughout:
            return mistake
        if partly is None and 2 * explained >= wrong:
            partly = mistake
    return partly


def _explained(task: Exercise, mistake: Mistake, yours: list[Outcome], expected: list[Outcome]) -> tuple[int, bool]:
    """In how many cases the mistake tells why the learner's result is wrong, and whether the two never differ.

    None, if the learner's is another one in any case where the mistake's differs from the reference's; the cases after it
    are not run. Where the learner's function fails, the mistake must fail too (or give NaN where an assertion of the
    learner's stops it), so that a crash elsewhere gets no wrong hint. Only if a mistake shows nowhere but where the
    reference itself refuses with an error do such cases count, and then all do.
    """
    telling, throughout = 0, True
    refused = [i for i, e in enumerate(expected) if e.error]
    for i, (y, e) in enumerate(zip(yours, expected)):
        if not e.error:
            known = _remembered(task, mistake.wrong, i)
            alike = _agree(task, known, y) or _asserted(known, y)
            tells = bool(y.error) or not _agree(task, known, e)
            if tells and not alike:
                return 0, False
            telling, throughout = telling + tells, throughout and alike
    if not telling and throughout and all(_agree(task, _remembered(task, mistake.wrong, i), yours[i]) for i in refused):
        telling = sum(not _agree(task, yours[i], expected[i]) for i in refused)
    return telling, throughout


def _asserted(known: Outcome, yours: Outcome) -> bool:
    return isinstance(yours.error, AssertionError) and any(not x.isfinite().all() for x in known.tensors or ())


def _agree(task: Exercise, a: Outcome, b: Outcome) -> bool:
    if a.error or b.error:
        return type(a.error) is type(b.error)
    if a.tensors is None or b.tensors is None or len(a.tensors) != len(b.tensors):
        return False
    return all(x.shape == y.shape and torch.allclose(x, y, task.rtol, task.atol, equal_nan=True)
               for x, y in zip(a.tensors, b.tensors))


def _priced(task: Exercise, yours: list[Outcome], expected: list[Outcome]) -> Verdict:
    """What right values are: solved, or dearer than the reference's."""
    for (_, case), y, e in zip(task._drawn, yours, expected):
        several = sum(enough.calls > 0 for enough in e.asked) > 1
        for name, used, enough in itertools.zip_longest(_names(task)[:len(y.asked)], y.asked, e.asked):
            of = f" of {name}" if several else ""
            if name in task.free:
                continue
            if used.rows > enough.rows:
                excess = f"{_many(used.rows, 'evaluation')}{of} where {enough.rows} {_is(enough.rows)} enough"
            elif task.count_calls and used.calls > enough.calls:
                excess = f"{_many(used.calls, 'call')}{of} where {enough.calls} {_is(enough.calls)} enough"
            else:
                continue
            return Verdict("wrong", f"right values, but {excess}, on inputs {_describe(task, case)}")
    return Verdict("solved")


def _compared(task: Exercise, function: Callable, yours: list[Outcome], expected: list[Outcome], wrong: list[int]) -> Verdict:
    """What is wrong at the first of the wrong cases."""
    first, gap = wrong[0], _gap(task, yours, expected)
    inputs = _describe(task, task._drawn[first][1])
    if _unshaped(task, function, yours, expected, wrong):
        return Verdict("wrong", f"right for batch size 1 only, wrong on inputs {inputs}: a value per row, of shape "
                                f"(B,), must be reshaped before it meets a batch of points or images{gap}")
    return Verdict("wrong", f"{_trouble(task, yours[first], expected[first])}, on inputs {inputs}{gap}")


def _unshaped(task: Exercise, function: Callable, yours: list[Outcome], expected: list[Outcome], wrong: list[int]) -> bool:
    """Has a value per row met the last axis of a batch?

    Then torch stops with an error where the two lengths differ, nothing stops it where they happen to be the same, and
    one row at a time all is right. Any other mistake that needs more than one row (a mean over the batch, noise of one's
    own) fails one of the three.
    """
    stopped = [i for i in wrong if "must match the size of tensor" in str(yours[i].error)]
    square = [i for i in wrong if yours[i].tensors and expected[i].tensors
              and all(e.ndim > 1 and e.shape[0] == e.shape[-1] for e in expected[i].tensors)]
    if not stopped or len(stopped) + len(square) < len(wrong):
        return False
    try:
        return all(_limited(lambda: [_right_by_rows(task, function, i, expected[i]) for i in stopped], task.seconds))
    except TimeUp:                          # nothing is known then, and nothing is claimed
        return False


def _right_by_rows(task: Exercise, function: Callable, i: int, expected: Outcome) -> bool:
    """Does the function, asked for one row of case i at a time, give the rows of the expected result?"""
    (seed, case), lengths = task._drawn[i], {len(e) if e.ndim else 0 for e in expected.tensors or ()}
    B = min(lengths, default=0)
    if B == 0 or len(lengths) > 1:          # a number for the whole batch has no rows
        return False
    rows = (_attempt(task, function, seed, tuple(_row(value, row, B) for value in case)) for row in range(B))
    return all(_agree(task, one, Outcome([e[row:row + 1] for e in expected.tensors])) for row, one in enumerate(rows))


def _row(value, row: int, B: int):
    """One row of a tensor (B, ...) or (n, B, ...); anything else is for all rows and stays."""
    if not isinstance(value, Tensor) or B not in value.shape[:2]:
        return value
    return value.narrow(value.shape.index(B), row, 1)


def _trouble(task: Exercise, yours: Outcome, expected: Outcome) -> str:
    """What is wrong with one outcome, in words; empty if nothing is."""
    if expected.error:
        stop = type(expected.error).__name__
        return "" if type(yours.error) is type(expected.error) else f"your function should have stopped with {stop} here"
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
    """The largest difference where results differ, and both values there, in brackets; empty where nothing can be compared."""
    pairs = [(y, e) for a, b in zip(yours, expected) if a.tensors and b.tensors and not _agree(task, a, b)
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


def _many(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _is(n: int) -> str:
    return "is" if n == 1 else "are"


def _names(task: Exercise) -> list[str]:
    return list(inspect.signature(task.reference).parameters)


def _describe(task: Exercise, case: tuple) -> str:
    """The inputs of a case by name, tensors by their shapes: "schedule: CosineVP, x: (4, 2), t: 0.7"."""
    names = [f"{name}: " for name in _names(task)] if task.call is None else []
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
        if _is_learners(trace.tb_frame):
            lines.append(linecache.getline(trace.tb_frame.f_code.co_filename, trace.tb_lineno).strip())
        trace = trace.tb_next
    at = next((f" at `{line}`" for line in reversed(lines) if line), "")
    return f"{type(error).__name__}{': ' if message else ''}{message}{at}"


def _is_learners(frame) -> bool:
    """Does a frame run a learner's code, neither the library's nor a package's (on Debian and Colab in dist-packages)?"""
    file, here = frame.f_code.co_filename, __file__.rsplit("classroom", 1)[0]
    return not (file.startswith(here) or "site-packages" in file or "dist-packages" in file)


def _is_of_a_stub(error: BaseException | None) -> bool:
    """Was it raised by a `raise NotImplementedError` of the learner's notebook? Torch raises this kind of error, too."""
    if not isinstance(error, NotImplementedError):
        return False
    *_, (frame, number) = traceback.walk_tb(error.__traceback__)
    line = linecache.getline(frame.f_code.co_filename, number)
    return _is_learners(frame) and ("NotImplementedError" in line or not line)


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
