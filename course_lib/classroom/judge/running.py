"""Running one function on an exercise's cases: on copies of the inputs, counted, timed, torch's random numbers unmoved."""

import contextlib
import copy
import ctypes
import functools
import inspect
import numbers
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..exercises import Exercise

SEEDS = (0, 1, 2)


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


@functools.cache
def drawn(task: Exercise) -> list[tuple[int, tuple]]:
    """All cases as (seed, arguments), drawn once; nothing here moves the notebook's own random numbers."""
    cases = []
    for seed in SEEDS:
        with _isolated(seed):
            cases += [(seed, case) for case in task.cases(torch.Generator().manual_seed(seed))]
    return cases


def outcomes(task: Exercise, function: Callable) -> list[Outcome]:
    """What the learner's function gives on all cases. Raises TimeUp when its time is over."""
    return limited(lambda: [attempt(task, function, seed, case) for seed, case in drawn(task)], task.seconds)


def expected(task: Exercise) -> list[Outcome]:
    """What the reference gives on all cases."""
    return [remembered(task, task.reference, i) for i in range(len(drawn(task)))]


@functools.cache
def remembered(task: Exercise, function: Callable, i: int) -> Outcome:
    """The outcome of case i for a function of the course's own, which is run once, however often a learner tries."""
    return attempt(task, function, *drawn(task)[i])


def attempt(task: Exercise, function: Callable, seed: int, case: tuple) -> Outcome:
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


def limited(work: Callable[[], list], seconds: float) -> list:
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


def items(raw) -> tuple:
    """What was returned, one by one."""
    return tuple(raw) if isinstance(raw, (tuple, list)) else (raw,)


def _tensors(raw) -> tuple[Tensor, ...] | None:
    values = items(raw)
    if not all(isinstance(value, (Tensor, numbers.Number)) for value in values):
        return None
    return tuple(torch.as_tensor(value).detach().to("cpu", torch.float64) for value in values)
