"""Predict before running: a choice is recorded, then confronted with the result."""

import textwrap

from .. import banks

_choices: dict[str, str] = {}           # prediction id -> the learner's letter, in this kernel


def predict(id: str, choice: str) -> None:
    """Record the learner's `choice`, a letter, for prediction `id`; asks for one while it is "?".

    Prints one line. Raises ValueError if there is no such prediction.
    """
    question = banks.prediction(id)
    letter = str(choice).strip().lower()
    if letter in question.options:
        _choices[id] = letter
        print(f"{id} noted: {letter}")
    else:
        _choices.pop(id, None)
        print(f"{id} … choose {_listed(question.options)}: write your letter in place of {choice!r} and run this cell.")


def reveal(id: str) -> None:
    """Confront the recorded choice for prediction `id` with the result; without a choice, give the answer.

    Raises ValueError if there is no such prediction.
    """
    question = banks.prediction(id)
    choice, why = _choices.get(id), question.because.get(question.answer, "")
    if choice is None:
        line = f"{id} it is {question.answer}. {why} (Choose first, next time: a guess that fails stays in mind.)"
    elif choice == question.answer:
        line = f"{id} ✓ {choice}, as you predicted. {why}"
    else:
        line = f"{id} ✗ you predicted {choice}; it is {question.answer}. {question.because[choice]} {why}"
    print(textwrap.fill(line, 110))                 # as wide as a cell; there, a longer line breaks inside words


def _listed(letters: list[str]) -> str:
    return " or ".join([", ".join(letters[:-1]), letters[-1]] if len(letters) > 1 else letters)
