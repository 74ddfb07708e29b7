"""exercise(): what is accepted, what each kind of wrong answer is told, and what a learner's code cannot break."""

import sys
import time

import pytest
import torch

import course_lib.classroom
from course_lib.classroom import banks, checks, exercise

pytestmark = pytest.mark.usefixtures("bank")


def right(x, slope):
    return slope.reshape(-1, *[1] * (x.ndim - 1)) * x


def line_of(capsys, function, id="97.1"):
    """The one line that the check prints."""
    exercise(id, function)
    out, err = capsys.readouterr()
    assert err == "" and out.count("\n") == 1 and out.endswith("\n")
    return out.strip()


def test_a_right_function_is_solved_and_returned(capsys):
    assert exercise("97.1", right) is right
    assert capsys.readouterr().out == "97.1 ✓ solved\n"


def test_a_stub_is_not_yet_tried_and_is_no_failure(capsys):
    def stub(x, slope):
        raise NotImplementedError("one line")

    for _ in range(3):
        assert line_of(capsys, stub) == "97.1 … not yet tried. The chapter goes on with the course's own."


def test_a_wrong_function_gives_way_to_one_that_works(capsys):
    function = exercise("97.1", lambda x, slope: x)
    x = torch.ones(2, 2)
    assert torch.equal(function(x, torch.tensor([2.0, 3.0])), right(x, torch.tensor([2.0, 3.0])))


def test_the_courses_own_is_never_accepted(capsys):
    own = exercise("97.1", lambda x, slope: x)
    capsys.readouterr()
    for function in (own, banks.exercise("97.1").reference):
        line = line_of(capsys, function)
        assert "run your own cell again" in line and "✓" not in line


def test_a_class_is_marked_as_a_class(capsys):
    class Slope:
        """A learner's answer that is a class."""

    task = checks.Exercise("97.1", "", Slope, lambda generator: [], [])
    own = checks._marked(task)
    assert issubclass(own, Slope)
    assert checks.judge(task, own).status == "again"


@pytest.mark.parametrize("wrong, hint", [
    (lambda x, slope: x, "the slope is not used"),
    (lambda x, slope: right(right(x, slope), slope), "the slope enters twice"),
    (lambda x, slope: right(x, -slope), "the sign of the slope is turned"),
])
def test_known_mistakes_get_their_hints_and_both_values(capsys, wrong, hint):
    line = line_of(capsys, wrong)
    assert line.startswith(f"97.1 ✗ {hint} (largest difference ")
    assert "yours " in line and "expected " in line and line.endswith("The chapter goes on with the course's own.")


@pytest.mark.parametrize("wrong, message", [
    (lambda x, slope: None, "is a `return` missing?"),
    (lambda x, slope: "text", "your function returned str, expected Tensor (1, 2)"),
    (lambda x, slope: (x, x), "your function returned 2 values, expected 1"),
    (lambda x, slope: right(x, slope).sum(-1),
     "your result has the shape (1,), expected (1, 2), on inputs x: (1, 2), slope: (1,)"),
    (lambda x, slope: right(x, slope).double(), "your result is float64, expected float32"),
    (lambda x, slope: right(x, slope) / 0 * 0, "your result holds NaN"),
    (lambda x, slope: right(x, slope) / 0, "your result holds infinity"),
    (lambda x, slope: right(x, slope) + 0.5, "your values differ from the expected ones, on inputs x: (1, 2), slope: (1,)"),
    (lambda x, slope: slope * x, "right for batch size 1 only, wrong on inputs x: (3, 2), slope: (3,)"),
    (lambda x: x, "your function raised TypeError"),
    (lambda x, slope: x.nothing, "AttributeError"),
    (lambda x, slope: exit(), "SystemExit"),
    (3, "exercise() needs your function, it got int"),
])
def test_other_wrong_answers_are_described(capsys, wrong, message):
    assert message in line_of(capsys, wrong)


def test_an_error_names_the_learners_line(capsys):
    def fails(x, slope):
        return torch.cat([x, slope])

    assert "at `return torch.cat([x, slope])`, on inputs x: (1, 2), slope: (1,)" in line_of(capsys, fails)


def test_changed_inputs_are_told_and_cannot_reach_the_reference(capsys):
    def in_place(x, slope):
        return x.mul_(slope.reshape(-1, *[1] * (x.ndim - 1)))

    def erase(x, slope):
        result = right(x, slope)
        x.zero_()
        return result

    for function in (in_place, erase):
        assert "changes its inputs in place" in line_of(capsys, function)


def test_printing_is_swallowed(capsys):
    def noisy(x, slope):
        print("97.1 ✓ solved")
        print("a warning", file=sys.stderr)
        return x

    assert line_of(capsys, noisy).startswith("97.1 ✗")


def test_random_numbers_of_the_notebook_are_left_alone(capsys):
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    exercise("97.1", lambda x, slope: x + torch.randn(x.shape))
    assert torch.equal(torch.randn(3), expected)


def test_functions_that_draw_noise_alike_agree():
    task = checks.Exercise("97.9", "", lambda x: x + torch.randn(x.shape), lambda generator: [(torch.zeros(4),)], [])
    assert checks.judge(task, lambda x: torch.randn(x.shape) + x).status == "solved"


@pytest.mark.parametrize("catches", [False, True])
def test_a_loop_without_end_is_stopped(capsys, catches):
    beats = []

    def endless(x, slope):
        while True:
            try:
                beats.append(time.sleep(0.01))
            except Exception:
                if not catches:
                    raise

    task = checks.Exercise("97.9", "", right, banks.exercise("97.1").cases, [], seconds=0.3)
    started = time.monotonic()
    verdict = checks.judge(task, endless)
    assert "stopped after 0.3 seconds" in verdict.message
    assert time.monotonic() - started < 3
    before = len(beats)
    time.sleep(0.1)
    assert len(beats) == before                         # the thread is gone, not only forgotten


def test_tips_come_one_at_a_time_and_then_the_solution(capsys):
    lines = [line_of(capsys, lambda x, slope: x) for _ in range(4)]
    assert "Tip" not in lines[0]
    assert "Tip 1: what does a slope multiply?" in lines[1]
    assert "Tip 2: reshape the slope to (B, 1)." in lines[2]
    assert "notebooks/solutions" in lines[3] and "Tip" not in lines[3]


def test_numbers_and_tuples_are_compared():
    task = checks.Exercise("97.9", "", lambda n: (n / 2, torch.ones(n)), lambda generator: [(2,), (3,)], [])
    assert checks.judge(task, lambda n: (torch.tensor(n / 2), torch.ones(n))).status == "solved"
    assert checks.judge(task, lambda n: (n / 3, torch.ones(n))).status == "wrong"


def test_call_says_how_a_case_is_run():
    def gradient(loss, x):
        x.requires_grad_()
        return torch.autograd.grad(loss(x), x)[0]

    task = checks.Exercise("97.9", "", lambda x: (x**2).sum(), lambda g: [(torch.randn(3, generator=g),)], [],
                           call=gradient)
    assert checks.judge(task, lambda x: x @ x).status == "solved"
    assert checks.judge(task, lambda x: x.sum()).status == "wrong"


def test_unknown_ids_are_named():
    with pytest.raises(ValueError, match=r"there is no exercise 97\.7; its chapter has 97\.1, 97\.2"):
        exercise("97.7", right)
    with pytest.raises(ValueError, match=r"there is no exercise 98\.1; its chapter has none"):
        exercise("98.1", right)
    with pytest.raises(ValueError, match="in quotes"):
        exercise(97.1, right)


def test_the_package_offers_three_names():
    assert course_lib.classroom.exercise is exercise
    with pytest.raises(AttributeError):
        getattr(course_lib.classroom, "grade")  # noqa: B009
