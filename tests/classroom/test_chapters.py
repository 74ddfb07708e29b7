"""The real chapters: what is committed is what the sources build, and it is fit to be handed out."""

import pytest

from course_lib.classroom import notebooks
from course_lib.classroom.author import build
from course_lib.data import ROOT

SOURCES = notebooks.chapters(ROOT / "notebooks" / "source", suffix=".py")
chapters = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)


def solution_of(source):
    return ROOT / "notebooks" / "solutions" / f"{source.stem}.ipynb"


def learner_of(source):
    return ROOT / "notebooks" / f"{source.stem}.ipynb"


def test_notebooks_are_what_the_sources_build():
    assert build.outdated(ROOT) == []


@chapters
def test_notebooks_are_small(source):
    assert max(path.stat().st_size for path in (solution_of(source), learner_of(source))) <= build.LARGEST


@chapters
def test_every_picture_of_the_solution_has_an_alternative_text(source):
    pictures = [output.metadata.get(kind, {}) for cell in notebooks.read(solution_of(source)).cells
                for output in cell.get("outputs", []) for kind in output.get("data", {}) if kind.startswith("image/")]
    assert pictures and all(about.get("alt", "").strip() for about in pictures)


@chapters
def test_checks_of_the_solution_have_stored_outputs(source):
    """A notebook that was never executed would pass nbval."""
    checks = notebooks.by_role(notebooks.read(solution_of(source)), "check")
    assert all(notebooks.printed(cell) == f"{id} ✓ solved\n" and cell.execution_count for id, cell in checks.items())


@chapters
def test_the_learners_notebook_once_solved_is_the_solution(source):
    """Cell by cell: with the solution's exercises and predictions filled in, the code is the same."""
    learner, solution = notebooks.read(learner_of(source)), notebooks.read(solution_of(source))
    answers = {cell.id: cell.source for role in ("exercise", "predict")
               for cell in notebooks.by_role(solution, role).values()}
    for given, solved in zip(learner.cells, solution.cells, strict=True):
        assert (given.id, given.cell_type) == (solved.id, solved.cell_type)
        assert answers.get(given.id, given.source) == solved.source


@chapters
def test_only_checks_of_the_learners_notebook_have_outputs(source):
    notebook = notebooks.read(learner_of(source))
    with_outputs = [cell.id for cell in notebook.cells if cell.get("outputs")]
    assert with_outputs == [cell.id for cell in notebooks.by_role(notebook, "check").values()]
