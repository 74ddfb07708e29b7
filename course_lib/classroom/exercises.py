"""What an author writes: an exercise with its known mistakes, and a prediction. The banks are made of these."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Mistake:
    """A known wrong answer: `wrong` computes it, with the exercise's own signature; `hint` says what went wrong.

    The hint is one sentence without the final full stop; the largest difference is appended to it.
    """

    name: str
    wrong: Callable
    hint: str


@dataclass(frozen=True, eq=False)
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


@dataclass(frozen=True)
class Prediction:
    """A one-line question with lettered options. The question and its options stand in the chapter's markdown.

    id: chapter and number, "4.1".    answer: the letter of the right option.
    because: for each wrong letter, the misconception that makes it tempting and why it fails;
        for the right letter, if wanted, why it is right.
    """

    id: str
    answer: str
    because: Mapping[str, str]

    @property
    def options(self) -> list[str]:
        """The letters that may be chosen, in order."""
        return sorted({self.answer, *self.because})
