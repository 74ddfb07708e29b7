"""Where it is decided what is said of an answer: solved, too dear, a known mistake, or what differs from the reference."""

import inspect
import itertools
import linecache
import numbers
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..exercises import Exercise, Mistake
from .running import Outcome, TimeUp, attempt, drawn, items, limited, remembered


@dataclass(frozen=True)
class Verdict:
    """What a check found. status: "solved", "untried" (a stub), "again" (not the learner's own function) or "wrong".

    message: what is wrong, without a final full stop.    mistake: the one that was recognised, if any.
    """

    status: str
    message: str = ""
    mistake: Mistake | None = None


def verdict(task: Exercise, function: Callable, yours: list[Outcome], right: list[Outcome]) -> Verdict:
    """What is to be said of the outcomes of the learner's `function`, beside those of the reference."""
    wrong = [i for i, (y, e) in enumerate(zip(yours, right)) if _trouble(task, y, e)]
    if not wrong:                                   # a right answer need not wait until all mistakes have been run
        return _priced(task, yours, right)
    mistake = _recognised(task, yours, right, len(wrong))
    if mistake:
        return Verdict("wrong", mistake.hint.rstrip(". ") + _gap(task, yours, right), mistake)
    return _compared(task, function, yours, right, wrong)


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
            known = remembered(task, mistake.wrong, i)
            alike = _agree(task, known, y) or _asserted(known, y)
            tells = bool(y.error) or not _agree(task, known, e)
            if tells and not alike:
                return 0, False
            telling, throughout = telling + tells, throughout and alike
    if not telling and throughout and all(_agree(task, remembered(task, mistake.wrong, i), yours[i]) for i in refused):
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
    for (_, case), y, e in zip(drawn(task), yours, expected):
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
    inputs = _describe(task, drawn(task)[first][1])
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
        return all(limited(lambda: [_right_by_rows(task, function, i, expected[i]) for i in stopped], task.seconds))
    except TimeUp:                          # nothing is known then, and nothing is claimed
        return False


def _right_by_rows(task: Exercise, function: Callable, i: int, expected: Outcome) -> bool:
    """Does the function, asked for one row of case i at a time, give the rows of the expected result?"""
    (seed, case), lengths = drawn(task)[i], {len(e) if e.ndim else 0 for e in expected.tensors or ()}
    B = min(lengths, default=0)
    if B == 0 or len(lengths) > 1:          # a number for the whole batch has no rows
        return False
    rows = (attempt(task, function, seed, tuple(_row(value, row, B) for value in case)) for row in range(B))
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
        return f"your function returned {kind(yours.raw)}, expected {kind(expected.raw)}"
    if len(yours.tensors) != len(expected.tensors):
        return f"your function returned {len(yours.tensors)} values, expected {len(expected.tensors)}"
    for given, wanted, y, e in zip(items(yours.raw), items(expected.raw), yours.tensors, expected.tensors):
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


# --- words -----------------------------------------------------------------------------------------------------------

def kind(value) -> str:
    """What a value is, tensors with their shape."""
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__} of ({', '.join(map(kind, value))})"
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


def is_of_a_stub(error: BaseException | None) -> bool:
    """Was it raised by a `raise NotImplementedError` of the learner's notebook? Torch raises this kind of error, too."""
    if not isinstance(error, NotImplementedError):
        return False
    *_, (frame, number) = traceback.walk_tb(error.__traceback__)
    line = linecache.getline(frame.f_code.co_filename, number)
    return _is_learners(frame) and ("NotImplementedError" in line or not line)
