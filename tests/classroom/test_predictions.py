"""predict() records a choice, reveal() confronts it with the result."""

import subprocess
import sys

import pytest

from course_lib.classroom import predict, reveal
from course_lib.classroom.judge import predictions

pytestmark = pytest.mark.usefixtures("bank")


@pytest.fixture(autouse=True)
def nothing_chosen():
    predictions._choices.clear()


def test_a_question_mark_asks_for_a_choice(capsys):
    predict("97.1", "?")
    assert capsys.readouterr().out.startswith("97.1 … choose a, b or c")


def test_a_right_choice(capsys):
    predict("97.1", "B")
    reveal("97.1")
    assert capsys.readouterr().out == "97.1 noted: b\n97.1 ✓ b, as you predicted. It rises.\n"


def test_a_wrong_choice_meets_its_misconception(capsys):
    predict("97.1", "a")
    reveal("97.1")
    assert capsys.readouterr().out.splitlines()[1] == \
        "97.1 ✗ you predicted a; it is b. A line looks flat from afar. It rises."


def test_without_a_choice_the_answer_is_given(capsys):
    predict("97.1", "a")
    predict("97.1", "x")                                # taken back
    reveal("97.1")
    assert capsys.readouterr().out.splitlines()[-1].startswith("97.1 it is b. It rises.")


def test_unknown_predictions_are_named():
    with pytest.raises(ValueError, match=r"there is no prediction 97\.2; its chapter has 97\.1"):
        predict("97.2", "a")


def test_importing_the_package_is_light():
    code = """if True:
        import sys, course_lib.classroom, course_lib.classroom.cli
        print({"torch", "nbformat", "nbgrader", "jupyter_core"} & set(sys.modules))
        from course_lib.classroom import exercise, predict, reveal
        print({"nbformat", "nbgrader", "jupyter_core"} & set(sys.modules))"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\nset()\n"
