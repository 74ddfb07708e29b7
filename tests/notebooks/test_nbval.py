"""Every chapter under nbval: its solution passes whole, and a fresh learner's notebook fails exactly at its checks."""

import pytest

from course_lib.classroom import learner, notebooks
from course_lib.data import ROOT

pytestmark = pytest.mark.slow
chapters = pytest.mark.parametrize("path", notebooks.chapters(ROOT / "notebooks"), ids=lambda path: path.stem)


@chapters
def test_the_solution_passes_whole(path):
    solution = notebooks.read(path.parent / "solutions" / path.name)
    assert learner.run_nbval(ROOT, solution, path.name) == {}


@chapters
def test_a_fresh_notebook_fails_exactly_at_its_checks(path):
    fresh = notebooks.read(path)
    checks = [cell.id for cell in notebooks.by_role(fresh, "check").values()]
    failed = learner.run_nbval(ROOT, fresh, path.name)
    assert list(failed) == checks, "\n".join(why for id, why in failed.items() if id not in checks)
