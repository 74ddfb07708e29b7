"""my/ and the course command: nothing of the learner's is lost, and nothing but a right function counts as solved."""

import types

import pytest
from nbformat import v4

from course_lib.classroom import build, cli, copies, learner, notebooks

RIGHT = {"97.1": "def my_line(x, slope):\n    return slope.reshape(-1, *[1] * (x.ndim - 1)) * x",
         "97.2": "def my_shift(x, by):\n    return x + by"}
NAME = "97_lines.ipynb"


def mine(course):
    return course / "my" / NAME


def save(course, change):
    """Hand out if need be, let `change(notebook)` edit the learner's notebook, save it."""
    copies.hand_out(course)
    notebook = notebooks.read(mine(course))
    change(notebook)
    notebooks.write(mine(course), notebook)


def answering(**answers):
    """An edit that fills in exercises: answering(one=..., two=...) by position."""
    def change(notebook):
        for cell, source in zip(notebooks.by_role(notebook, "exercise").values(), answers.values()):
            cell.source = source
    return change


def solve(notebook):
    answering(one=RIGHT["97.1"], two=RIGHT["97.2"])(notebook)


def store_outputs(notebook, text):
    for id, cell in notebooks.by_role(notebook, "check").items():
        cell.outputs = [v4.new_output("stream", name="stdout", text=text.format(id))]
        cell.execution_count = 1


# --- course check ------------------------------------------------------------------------------------------------

def test_right_answers_pass_the_check(course, capsys):
    save(course, solve)
    assert cli.main(["check", "97"], course) == 0
    assert capsys.readouterr().out == "97.1  ✓ solved\n97.2  ✓ solved\n"


def test_each_exercise_gets_its_own_line(course, capsys):
    save(course, answering(one="def my_line(x, slope):\n    return x", two=RIGHT["97.2"].replace("my_shift", "shift")))
    assert cli.main(["check", "97"], course) == 1
    one, two, other = capsys.readouterr().out.splitlines()
    assert one.startswith("97.1  ✗ the slope is not used (largest difference") and one.endswith(").")
    assert "97.2  ✗ its check failed: NameError: name 'my_shift' is not defined" in two
    assert other == "cell  ✗ `my_shift(torch.zeros(2), 1)` failed: NameError: name 'my_shift' is not defined"


def test_saved_failures_deleted_checks_and_forged_successes_count_for_nothing(course):
    def forge(notebook):
        store_outputs(notebook, "{} ✗ wrong\n")
        checks = notebooks.by_role(notebook, "check")
        checks["97.1"].source = "# NBVAL_IGNORE_OUTPUT\nprint('97.1 ✓ solved')"
        notebook.cells.remove(checks["97.2"])

    save(course, answering(one="def my_line(x, slope):\n    return x"))
    save(course, forge)
    one, two = learner.check(course, 97)
    assert (one.state, two.state) == ("✗", "·") and two.message == "not yet tried."


def test_lost_cells_and_broken_ones_are_explained(course):
    def lose(notebook):
        solve(notebook)
        notebooks.by_role(notebook, "exercise")["97.1"].id = "another"
        notebooks.by_role(notebook, "exercise")["97.2"].source = "def my_shift(x, by:\n    return x + by"

    save(course, lose)
    one, two = learner.check(course, 97)[:2]
    assert one.state == two.state == "✗"
    assert "(exercise-97-1) is not in your notebook" in one.message
    assert "its cell failed: SyntaxError" in two.message


def test_checking_before_the_hand_out_says_what_to_do(course, capsys):
    assert cli.main(["check", "97"], course) == 2
    assert "`course lab` puts the chapter there" in capsys.readouterr().err


# --- update and progress -----------------------------------------------------------------------------------------

def test_update_carries_answers_over(course):
    save(course, answering(one=RIGHT["97.1"]))
    save(course, lambda notebook: notebooks.by_role(notebook, "predict")["97.1"].update(source='predict("97.1", "a")'))
    assert learner.update(course, 97) == ["97_lines.ipynb: up to date"]
    source = course / "notebooks" / "source" / "97_lines.py"
    text = source.read_text(encoding="utf-8").replace("Which way", "Now, which way").replace(
        "BEGIN SOLUTION one line\n", "BEGIN SOLUTION a single line\n")
    source.write_text(text, encoding="utf-8")
    build.build(course, say=lambda line: None)
    old = mine(course).read_bytes()
    [said] = learner.update(course, 97)
    assert "updated with your answers" in said
    assert (course / "my" / "97_lines-old-1.ipynb").read_bytes() == old
    new = notebooks.read(mine(course))
    answers = notebooks.by_role(new, "exercise")
    assert answers["97.1"].source == RIGHT["97.1"]
    assert "a single line" in answers["97.2"].source            # never touched, so the new stub stands
    assert notebooks.by_role(new, "predict")["97.1"].source == 'predict("97.1", "a")'
    assert "Now, which way" in new.cells[0].source
    assert learner.update(course, 97) == ["97_lines.ipynb: up to date"]


def test_update_names_answers_that_have_no_place_any_more(course):
    def older(notebook):
        solve(notebook)
        notebook.metadata["course"]["version"] = "older"
        notebook.cells.append(v4.new_code_cell("def my_other(): ...", id="exercise-97-9"))

    save(course, older)
    assert "exercise 97.9 is no longer in the chapter" in learner.update(course, 97)[1]


def test_progress_believes_only_what_the_learner_ran(course, capsys):
    assert learner.progress(course) == [("97_lines", {"97.1": "·", "97.2": "·"})]
    save(course, lambda notebook: store_outputs(notebook, "{} ✓ solved\n"))     # the stubs are untouched
    assert learner.progress(course) == [("97_lines", {"97.1": "·", "97.2": "·"})]
    save(course, solve)
    assert learner.progress(course) == [("97_lines", {"97.1": "✓", "97.2": "✓"})]
    save(course, lambda notebook: store_outputs(notebook, "{} ✗ no\n"))
    assert cli.main(["progress"], course) == 0
    assert "97.1 ✗  97.2 ✗" in capsys.readouterr().out


def test_a_damaged_notebook_is_named_and_left_alone(course, capsys):
    mine(course).parent.mkdir()
    mine(course).write_text("{", encoding="utf-8")
    assert cli.main(["update", "97"], course) == 2
    assert "97_lines.ipynb is not a notebook" in capsys.readouterr().err
    assert mine(course).read_text(encoding="utf-8") == "{"


# --- the rest of the command -------------------------------------------------------------------------------------

def test_list_shows_the_chapters(course, capsys):
    assert cli.main(["list"], course) == 0
    out = capsys.readouterr().out
    assert "97  A fake chapter: lines rise" in out and "5 minutes, after nothing" in out and "97.2  A shift" in out


def test_build_check_reports_by_its_exit_status(course, capsys):
    assert cli.main(["build", "--check"], course) == 0
    (course / "notebooks" / NAME).unlink()
    assert cli.main(["build", "--check", "97"], course) == 1
    assert capsys.readouterr().out.endswith("notebooks/97_lines.ipynb is not what 97_lines.py builds\n")


def test_unknown_chapters_are_one_line_on_stderr(course, capsys):
    assert cli.main(["reset", "5"], course) == 2
    assert capsys.readouterr().err.startswith("course: no chapter 5 in ")


@pytest.mark.parametrize("command, module, table",
                         [("train", "recipes", "RECIPES"), ("measure", "classroom.measure", "MEASUREMENTS")])
def test_train_and_measure_pass_on_what_was_given(monkeypatch, capsys, command, module, table):
    calls = []

    def steps(**options):
        """Count steps."""
        calls.append(options)

    fake = types.SimpleNamespace(**{table: {"steps": steps}}, train=lambda name, **options: calls.append(options))
    monkeypatch.setitem(cli.sys.modules, f"course_lib.{module}", fake)
    assert cli.main([command]) == 0 and capsys.readouterr().out.split() == ["steps", "Count", "steps."]
    assert cli.main([command, "steps", "--device", "cpu"]) == 0
    assert calls == [{"device": "cpu"}]


def test_doctor_names_every_part(monkeypatch, capsys):
    sound = types.SimpleNamespace(verify_all=lambda: [("a.npz", True, "sound")])
    missing = types.SimpleNamespace(verify_all=lambda: [("b.safetensors", False, "missing")])
    monkeypatch.setitem(cli.sys.modules, "course_lib.data", sound)
    monkeypatch.setitem(cli.sys.modules, "course_lib.recipes", missing)
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "✓ a.npz" in out and "✗ b.safetensors" in out
    for part in ("python", "torch", "device", "threads", "scale", "jupyterlab", "chromium"):
        assert f"✓ {part}" in out
