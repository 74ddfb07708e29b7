"""Answers are found by what they define and by the check that follows, whatever an editor or the learner did to the cells."""

import pytest
import torch
from nbformat import v4

from course_lib.classroom import notebooks
from course_lib.classroom.learner import answers, copies

from .test_learner import NAME, RIGHT, solve


@pytest.fixture(scope="module")
def pristine(built):
    return notebooks.pristine(built / "notebooks" / NAME)


@pytest.fixture
def mine(built):
    """A fresh learner's notebook, to be edited by the test."""
    return copies.blank(built / "notebooks" / NAME)


def exercise(notebook, id):
    return notebooks.by_role(notebook, "exercise")[id]


def put(notebook, source, before=None, after=None, kind="code"):
    """A new cell beside the one with the id `before` or `after`."""
    index = next(i for i, cell in enumerate(notebook.cells) if cell.id == (before or after))
    make = v4.new_code_cell if kind == "code" else v4.new_markdown_cell
    notebook.cells.insert(index + bool(after), made := make(source))
    return made


def without_ids(notebook):
    for cell in notebook.cells:
        cell.pop("id", None)
    notebook.metadata.clear()
    return notebook


def run(found):
    """What the answer defines when only its own code and the chapter's imports are there."""
    scope = {}
    exec("import torch\n" + "\n".join([*found.own, found.source]), scope)
    return scope


def test_an_untouched_stub_is_no_answer(pristine, mine):
    for notebook in (mine, without_ids(mine.copy())):
        found = answers.find(pristine, notebook)
        assert [(one.source, one.left, one.stub) for one in found.values()] == [(None, (), True)] * 2


def test_a_stub_with_a_line_of_the_learners_is_an_answer_begun(pristine, mine):
    exercise(mine, "97.1").source += "\n    # think of (B, 1)"
    assert answers.find(pristine, mine)["97.1"].source is None
    exercise(mine, "97.1").source += "\n    y = x"
    assert answers.find(pristine, mine)["97.1"].source.endswith("# think of (B, 1)\n    y = x")


def test_answers_are_found_without_ids_and_metadata(pristine, mine):
    solve(mine)
    found = answers.find(pristine, without_ids(mine))
    assert {id: one.source for id, one in found.items()} == RIGHT
    assert answers.chapter(mine) == 97


def test_ids_numbered_anew_by_another_editor(pristine, mine):
    solve(mine)
    for number, cell in enumerate(mine.cells):
        cell.id = f"cell-{number}"
    assert {id: one.source for id, one in answers.find(pristine, mine).items()} == RIGHT


def test_a_split_cell_brings_what_the_function_uses(pristine, mine):
    exercise(mine, "97.1").source = "FLAT = [1]\nimport math"
    put(mine, "def spread(slope, x):\n    return slope.reshape(-1, *FLAT * (x.ndim - 1))", after="exercise-97-1")
    put(mine, "def my_line(x, slope):\n    return math.prod([spread(slope, x), x])", before="check-97-1")
    one = answers.find(pristine, mine)["97.1"]
    assert one.own == ("FLAT = [1]", "import math", "def spread(slope, x):\n    return slope.reshape(-1, *FLAT * (x.ndim - 1))")
    assert "cell 8" in one.where and "my_line" in run(one)


def test_a_cell_merged_with_its_check_and_the_next_exercise(pristine, mine):
    merged = "\n\n".join([RIGHT["97.1"], 'my_line = exercise("97.1", my_line)', RIGHT["97.2"],
                          '# NBVAL_CHECK_OUTPUT\nmy_shift = exercise("97.2", my_shift)'])
    exercise(mine, "97.1").source = merged
    mine.cells = [cell for cell in mine.cells if cell.id not in ("check-97-1", "exercise-97-2", "check-97-2")]
    assert {id: one.source for id, one in answers.find(pristine, mine).items()} == RIGHT


def test_a_merged_cell_with_its_own_helper(pristine, mine):
    exercise(mine, "97.2").source = 'K = 1\ndef my_shift(x, by):\n    return x + K * by\nmy_shift = exercise("97.2", my_shift)'
    one = answers.find(pristine, mine)["97.2"]
    assert one.own == ("K = 1",) and run(one)["my_shift"](1, 2) == 3


@pytest.mark.parametrize("place", [{"before": "check-97-1"}, {"after": "exercise-97-1"}])
def test_of_several_answers_the_last_before_the_check_is_taken_and_the_others_are_named(pristine, mine, place):
    exercise(mine, "97.1").source = "def my_line(x, slope):\n    return x"
    put(mine, RIGHT["97.1"], **place)
    put(mine, "def my_line(x, slope):\n    return 0", after="check-97-1")
    one = answers.find(pristine, mine)["97.1"]
    assert one.source == RIGHT["97.1"]
    assert [text[:7] for text in one.left] == ["cell 6 ", "cell 9 "]


def test_an_answer_below_its_check_is_still_an_answer(pristine, mine):
    put(mine, RIGHT["97.1"], after="check-97-1")            # the stub stands above, untouched
    one = answers.find(pristine, mine)["97.1"]
    assert one.source == RIGHT["97.1"] and one.left == ()


def test_a_copied_exercise_with_a_copied_check(pristine, mine):
    exercise(mine, "97.1").source = "def my_line(x, slope):\n    return x"
    put(mine, 'my_line = exercise("97.1", my_line)', after="check-97-1")
    put(mine, RIGHT["97.1"], after="check-97-1")
    assert answers.find(pristine, mine)["97.1"].source == RIGHT["97.1"]


def test_an_answer_under_another_name_that_the_check_was_given(pristine, mine):
    put(mine, "def moved(x, by):\n    return x + by", before="check-97-2")
    notebooks.by_role(mine, "check")["97.2"].source = 'my_shift = exercise("97.2", moved)'
    one = answers.find(pristine, mine)["97.2"]
    assert run(one)["my_shift"](1, 2) == 3
    notebooks.by_role(mine, "check")["97.2"].source = 'my_shift = exercise("97.2", lambda x, by: x + by)'
    assert run(answers.find(pristine, mine)["97.2"])["my_shift"](1, 2) == 3


def test_definitions_of_every_form(pristine, mine):
    for source in ("my_shift = lambda x, by: x + by", "import operator\nmy_shift = operator.add",
                   "if True:\n    def my_shift(x, by):\n        return x + by",
                   "class my_shift:\n    def __new__(cls, x, by):\n        return x + by",
                   "def plus(x, by):\n    return x + by\nmy_shift, other = plus, 1",
                   "import functools\n@functools.cache\ndef my_shift(x, by):\n    return x + by",
                   "%matplotlib inline\ndef my_shift(x, by):\n    return x + by\n!ls",
                   "%%time\ndef my_shift(x, by):\n    return x + by"):
        exercise(mine, "97.2").source = source
        one = answers.find(pristine, mine)["97.2"]
        assert one.source == source
    assert "my_shift" in one.where


def test_a_definition_that_wraps_an_earlier_one(pristine, mine):
    exercise(mine, "97.2").source = "def my_shift(x, by):\n    return x"
    put(mine, "def twice(f):\n    return lambda x, by: f(x, by) + by", before="check-97-2")
    put(mine, "my_shift = twice(my_shift)", before="check-97-2")
    one = answers.find(pristine, mine)["97.2"]
    assert run(one)["my_shift"](1, 2) == 3 and one.left == ()


PRODUCT = "slope.reshape(-1, *[1] * (x.ndim - 1)) * x"


@pytest.mark.parametrize("cells", [
    ["ONE = 1", "def my_line(x, slope, one=ONE):\n    return slope.reshape(-1, *[one] * (x.ndim - 1)) * x", "ONE = 7"],
    ["def line(x, slope):\n    return " + PRODUCT, "my_line = line", "def line(x):\n    return x"],
    ["class Line:\n    def __call__(self, x, slope):\n        return slope.reshape(-1, *[self.one] * (x.ndim - 1)) * x",
     "my_line = Line()", "my_line.one = 1"],
    ["def spread(slope, x):\n    return slope", "def my_line(x, slope):\n    return spread(slope, x) * x",
     "def spread(slope, x):\n    return slope.reshape(-1, *[1] * (x.ndim - 1))"],
    ["@plain\ndef my_line(x, slope):\n    return " + PRODUCT, "def plain(f):\n    return same(f)",
     "def same(f):\n    return f"],
    ["calls = 0", "def my_line(x, slope):\n    global calls\n    calls += 1\n    return " + PRODUCT],
])
def test_what_stands_below_the_answer_comes_after_it_unless_it_is_needed_at_once(pristine, mine, cells):
    exercise(mine, "97.1").source = cells[0]
    for source in cells[1:]:
        put(mine, source, before="check-97-1")
    scope = run(answers.find(pristine, mine)["97.1"])
    assert torch.equal(scope["my_line"](torch.ones(2, 3), torch.tensor([1.0, 2.0])), torch.tensor([[1.0] * 3, [2.0] * 3]))


@pytest.mark.parametrize("how", ["function=another", "another"])
def test_an_answer_under_another_name_is_found_however_the_check_was_given_it(pristine, mine, how):
    exercise(mine, "97.1").source = RIGHT["97.1"].replace("my_line", "another")
    index = mine.cells.index(notebooks.by_role(mine, "check")["97.1"])
    mine.cells[index].source = f'my_line = exercise("97.1", {how})'
    assert "my_line" in run(answers.find(pristine, mine)["97.1"])


def test_what_an_answer_uses_is_found_through_changes_and_stars(pristine, mine):
    put(mine, "table = {}\nfrom math import *", before="exercise-97-2")
    put(mine, "for n in range(3):\n    table[n] = n\nprint(table)", before="exercise-97-2")
    put(mine, "x = 5\nunused = x", before="exercise-97-2")
    exercise(mine, "97.2").source = "def my_shift(x, by):\n    return x + by + table[0] + floor(0.5)"
    one = answers.find(pristine, mine)["97.2"]
    assert one.own == ("table = {}", "from math import *", "for n in range(3):\n    table[n] = n")
    assert run(one)["my_shift"](1, 2) == 3


def test_the_import_that_the_learner_added_to_a_cell_of_the_chapter(pristine, mine):
    first = next(cell for cell in mine.cells if cell.cell_type == "code")
    first.source += "\nimport operator"
    exercise(mine, "97.2").source = "def my_shift(x, by):\n    return operator.add(x, by)"
    assert answers.find(pristine, mine)["97.2"].own == ("import operator",)


def test_what_cannot_be_carried_is_said(pristine, mine):
    exercise(mine, "97.2").source = "def my_shift(x, by):\n    return helper(x) + torch + broken + by"
    put(mine, "torch = 1", before="exercise-97-2")
    put(mine, "broken = (", before="exercise-97-2")
    one = answers.find(pristine, mine)["97.2"]
    lacking = dict(one.lacking)
    assert "no cell of your notebook defines" in lacking["helper"]
    assert "cell 10 (`broken = (`), which is not valid Python" in lacking["broken"]
    [shadowed] = one.shadowed
    assert "`torch`, which your cell 9 (`torch = 1`) defines anew; the check takes the chapter's" in shadowed


def test_an_answer_given_up_within_a_merged_cell_is_named(pristine, mine):
    exercise(mine, "97.2").source = ("def my_shift(x, by):\n    return x\n\n\n" + RIGHT["97.2"]
                                     + '\nmy_shift = exercise("97.2", my_shift)')
    one = answers.find(pristine, mine)["97.2"]
    assert one.source == RIGHT["97.2"] and len(one.left) == 1


def test_an_answer_with_a_syntax_error_is_an_answer(pristine, mine):
    exercise(mine, "97.2").source = "def my_shift(x, by:\n    return x + by"
    assert answers.find(pristine, without_ids(mine))["97.2"].source == "def my_shift(x, by:\n    return x + by"


def test_an_answer_in_a_text_cell_is_named(pristine, mine):
    solve(mine)
    index = mine.cells.index(exercise(mine, "97.2"))
    mine.cells[index] = v4.new_markdown_cell(RIGHT["97.2"])
    one = answers.find(pristine, mine)["97.2"]
    assert one.source is None and one.left == (f"cell {index + 1}, a text cell (`def my_shift(x, by):`)",)


def test_predictions_are_found_by_their_call(pristine, mine):
    cell = notebooks.by_role(mine, "predict")["97.1"]
    assert answers.predictions(mine) == {}
    cell.source = "predict('97.1', 'a')"
    put(mine, 'torch.arange(3)\npredict("97.1", "b")', after=cell.id)
    chosen = answers.predictions(without_ids(mine))["97.1"]
    assert [choice for choice, _ in chosen] == ["'a'", "'b'"] and "cell 4" in chosen[1][1]


def test_a_verdict_is_a_line_of_its_own_and_a_failure_outweighs_it():
    assert answers.read_verdict("97.1", "a bar 3/3\n97.1 ✓ solved\n") == ("✓", "solved")
    printed = "97.1 ✓ solved\n97.1 ✗ no. The chapter goes on with the course's own.\n"
    assert answers.read_verdict("97.1", printed) == ("✗", "no.")
    assert answers.read_verdict("97.1", "97.1 ✗ raised ValueError: 97.1 ✓ solved. The chapter goes on.\n")[0] == "✗"
    assert answers.read_verdict("97.1", "97.1 … not yet tried. The chapter goes on.") == ("·", "not yet tried.")
    assert answers.read_verdict("97.1", "he said 97.1 ✓ solved\n197.1 ✗ no") == ("", "")
