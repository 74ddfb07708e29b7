"""What a learner has done in my/: found whatever the file is called, carried over to a new version, counted."""

import datetime
import re
from dataclasses import dataclass
from pathlib import Path

from .. import notebooks
from . import answers, copies
from .answers import UNTRIED

# --- the learner's files ---------------------------------------------------------------------------------------------

def chapter_files(root: Path, shipped: Path) -> list[Path]:
    """The learner's notebooks of the shipped chapter, that of the same name first; what `course reset` set aside is left out.

    A chapter may have been renamed since it was handed out, so the number in front decides.
    """
    exact = copies.mine(root, shipped)
    others = sorted(path for path in exact.parent.glob(f"{shipped.name[:2]}_*.ipynb")
                    if path != exact and not re.search(r"-old-\d+$", path.stem))
    return [path for path in [exact] if path.exists() or path.is_symlink()] + others


def own_file(root: Path, shipped: Path) -> Path:
    """The learner's notebook of the shipped chapter. ValueError if there is none, or none of its name but several others."""
    found, exact = chapter_files(root, shipped), copies.mine(root, shipped)
    if not found:
        raise ValueError(f"{exact} does not exist; `course lab` puts the chapter there, and "
                         "`course check --notebook FILE` checks a notebook that lies elsewhere")
    if len(found) > 1 and found[0] != exact:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"{exact} does not exist, and there are several others of the chapter: {names}; "
                         "`course check --notebook FILE` checks the one you mean")
    return found[0]


def shipped_for(root: Path, own: Path, number: int | None = None) -> Path:
    """The shipped chapter that the notebook `own` is a copy of; chapter `number` where given. ValueError if it does not say."""
    number = answers.chapter(notebooks.load(own)) if number is None else number
    if number is None:
        raise ValueError(f"{own} does not say which chapter it is of; say it: `course check 4 --notebook {own}`")
    return copies.given(root, number)[0]


def saved(path: Path, now: datetime.datetime | None = None) -> str:
    """When the file was last saved: "saved 3 minutes ago, at 14:05"."""
    at, now = datetime.datetime.fromtimestamp(path.stat().st_mtime), now or datetime.datetime.now()
    minutes = int((now - at).total_seconds() // 60)
    clock = f"at {at:%H:%M}" if at.date() == now.date() else f"on {at:%Y-%m-%d at %H:%M}"
    if minutes < 0:
        return f"saved {clock}"
    for size, unit in ((60 * 24, "day"), (60, "hour"), (1, "minute")):
        if minutes >= size:
            count = minutes // size
            return f"saved {count} {unit}{'s' * (count > 1)} ago, {clock}"
    return f"saved less than a minute ago, {clock}"


def load(path: Path) -> dict:
    """A chapter in my/. Raises ValueError that says what is wrong with the file and how to go on."""
    try:
        return notebooks.load(path)
    except ValueError as error:
        raise ValueError(f"{error}. It is left as it is; `course reset {notebooks.number(path)}` keeps it under another name "
                         "and gives you a fresh chapter") from error


# --- a new version ---------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Carried:
    """What was brought into a new notebook, as ids, and what was not, as the beginnings of sentences."""

    answers: tuple[str, ...]
    predictions: tuple[str, ...]
    left: tuple[str, ...]


def update(root: Path, number: int) -> list[str]:
    """Move a chapter in my/ to the course's present version with the learner's answers. Returns what was done, in sentences.

    Answers are found by what they define (see answers). The old file stays beside the new one, also where the chapter was
    renamed. ValueError if a file of the learner's cannot be read or the shipped chapter was changed.
    """
    [shipped] = copies.given(root, number)
    own, found = copies.mine(root, shipped), chapter_files(root, shipped)
    if not found:
        return [f"{own.name}: not in my/ yet; `course lab` puts it there"]
    pristine = notebooks.pristine(shipped)
    files, said = _readable(found, own)
    held = {path: _holds(pristine, notebook) for path, notebook in files.items()}
    strays = [path for path in files if path != own and held[path]]
    if own in files and (held[own] or not strays):
        current = notebooks.course(files[own]).get("version") == notebooks.course(pristine)["version"]
        done = [f"{own.name}: up to date"] if current else _renew(pristine, shipped, own, own, files[own])
        return done + said + [f"{own.name}: {path.name} beside it holds answers of this chapter, to {', '.join(held[path])}, "
                              f"which were not carried over; `course check --notebook {path}` checks them" for path in strays]
    old, *more = strays or files
    if more:
        raise ValueError(f"{own.name} is not updated: several files in my/ are of that chapter, "
                         f"{', '.join(path.name for path in [old, *more])}; give the one you mean the name {own.name}")
    return _renew(pristine, shipped, own, old, files[old]) + said


def _readable(found: list[Path], own: Path) -> tuple[dict[Path, dict], list[str]]:
    """The notebooks at `found`, and what is wrong with those that cannot be read; ValueError if that is `own` or all."""
    read, wrong = {}, []
    for path in found:
        try:
            read[path] = load(path)
        except ValueError as error:
            if path == own or len(found) == 1:
                raise
            wrong.append(str(error))
    if not read:
        raise ValueError("; ".join(wrong))
    return read, wrong


def _renew(pristine: dict, shipped: Path, own: Path, old: Path, notebook: dict) -> list[str]:
    """Write the present chapter to `own` with the answers of `notebook`, read from `old`, which is kept under another name."""
    new = copies.blank(shipped)
    carried = _carry_over(pristine, notebook, new)
    kept = copies.replace(own, new)     # where the answers come from another file, this one holds none, but perhaps notes
    if old != own:
        kept = copies.keep(old)
    brought = [f"your {word} {', '.join(ids)}" for word in ("answers", "predictions") if (ids := getattr(carried, word))]
    came = f" from {old.name}" if old != own else ""
    done = f"updated{came} with {' and '.join(brought)}" if brought else "updated; there was no answer to carry over"
    return [f"{own.name}: {done}; the old file, with your notes, is {kept.name}",
            *(f"{own.name}: {sentence} of {kept.name}" for sentence in carried.left)]


def _holds(pristine: dict, notebook: dict) -> list[str]:
    """The exercises that the notebook has an answer to."""
    return [id for id, one in answers.find(pristine, notebook).items() if one.source is not None]


def _carry_over(pristine: dict, old: dict, new) -> Carried:
    """Put the answers and predictions of `old` into `new`, a fresh chapter."""
    from nbformat import v4

    found = answers.find(pristine, old)
    left, placed, cells = [], [], notebooks.by_role(new, "exercise")
    for id, one in found.items():
        left += [f"an answer to {id} was not carried over: it is in {place}" for place in one.left]
        if one.source is None:
            continue
        needed = [code for code in one.own if not any(f"\n{code}\n" in f"\n{before}\n" for before in placed)]
        if needed:
            new.cells.insert(new.cells.index(cells[id]), v4.new_code_cell("\n\n".join(needed)))
        cells[id].source = one.source
        placed += [*needed, one.source]
    left += [f"exercise {id} is no longer in the chapter; your answer is in {place}"
             for id, place in answers.strangers(pristine, old).items()]
    predicted, left_too = _carry_predictions(old, new)
    return Carried(tuple(id for id in found if found[id].source is not None), tuple(predicted), (*left, *left_too))


def _carry_predictions(old: dict, new) -> tuple[list[str], list[str]]:
    """Put the predictions of `old` into `new`: the ids of those that were, and sentences on those that were not."""
    cells, carried, left = notebooks.by_role(new, "predict"), [], []
    for id, choices in answers.predictions(old).items():
        last, blank = choices[-1][0], f'predict("{id}", "?")'
        if id in cells and blank in cells[id].source and re.fullmatch(r"'[^'\"\\]*'", last):
            cells[id].source = cells[id].source.replace(blank, f'predict("{id}", "{last[1:-1]}")')
            carried.append(id)
            choices = [(choice, place) for choice, place in choices if choice != last]
        left += [f"prediction {id}, {choice}, was not carried over: it is in {place}" for choice, place in choices]
    return carried, left


# --- progress --------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Progress:
    """One chapter as it is saved in my/.

    states: {exercise id: "✓", "✗" or "·"}.    saved: when, in words; "" if nobody has worked in it yet.
    trouble: why the learner's file, or the shipped one, cannot be read; "" if it can.
    """

    name: str
    states: dict[str, str]
    saved: str = ""
    trouble: str = ""


def progress(root: Path) -> list[Progress]:
    """For each chapter what is solved, as saved in my/. A file that cannot be read hides no other."""
    return [_progress(root, path) for path in copies.given(root)]


def _progress(root: Path, shipped: Path) -> Progress:
    ids: list[str] = []
    try:
        pristine = notebooks.pristine(shipped)
        ids = list(notebooks.by_role(pristine, "exercise"))
        if not chapter_files(root, shipped):
            return Progress(shipped.stem, dict.fromkeys(ids, UNTRIED))
        own = own_file(root, shipped)
        notebook = load(own)
    except ValueError as error:
        return Progress(shipped.stem, dict.fromkeys(ids, UNTRIED), trouble=str(error))
    found = answers.find(pristine, notebook)
    begun = any(found[id].source for id in ids) or any(cell.get("execution_count") for cell in notebook["cells"])
    return Progress(shipped.stem, {id: _saved_state(notebook, found[id]) for id in ids}, saved(own) if begun else "")


def _saved_state(notebook: dict, found: answers.Found) -> str:
    """What the last check of an exercise that printed a verdict said, as stored; untried where there is no answer."""
    if found.source is None:
        return UNTRIED
    said = [answers.read_verdict(found.id, notebooks.printed(cell))[0] for cell in answers.checks(notebook, found.id)]
    return next((state for state in reversed(said) if state), UNTRIED)
