"""my/ and the course command: nothing of the learner's is lost, and nothing but a right function counts as solved."""

import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
from nbformat import v4

from course_lib.classroom import cli, notebooks
from course_lib.classroom.author import build
from course_lib.classroom.learner import copies, updates

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


# --- update -------------------------------------------------------------------------------------------------------

@pytest.fixture
def newer(course):
    """Call it to give the course a new version of its chapter, under another name if wanted."""
    def release(name=NAME):
        source = course / "notebooks" / "source" / "97_lines.py"
        text = source.read_text(encoding="utf-8").replace("Which way", "Now, which way").replace(
            "BEGIN SOLUTION one line\n", "BEGIN SOLUTION a single line\n")
        (course / "notebooks" / NAME).unlink()
        (course / "notebooks" / "solutions" / NAME).unlink()
        source.unlink()
        (renamed := source.with_name(name.replace(".ipynb", ".py"))).write_text(text, encoding="utf-8")
        notebooks.write(course / "notebooks" / name, build.Chapter(renamed).learner())
    return release


def old_files(course):
    return sorted(path.name for path in (course / "my").glob("*-old-*"))


def test_a_copy_that_an_earlier_version_handed_out_is_known_and_carried_over(root, tmp_path):
    """A real one: chapter 00 of an earlier version imports from a place where nothing is any more."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "my").mkdir()
    shutil.copy(root / "notebooks" / "00_start_here.ipynb", tmp_path / "notebooks")
    own = tmp_path / "my" / "00_start_here.ipynb"
    old = notebooks.read(Path(__file__).parent / "handed_out" / own.name)
    imports = next(cell for cell in old.cells if "course_lib.classroom.doctor" in cell.source)
    answer = "def my_step(D, x, t, s, z=None, cond=None):\n    return x"
    notebooks.by_role(old, "exercise")["0.1"].source = answer
    notebooks.write(own, old)
    assert copies.of_earlier_versions(tmp_path) == [own]
    assert "updated with your answers 0.1; the old file" in updates.update(tmp_path, 0)[0]
    new = notebooks.read(own)
    assert notebooks.by_role(new, "exercise")["0.1"].source == answer
    assert all(imports.source != cell.source for cell in new.cells) and copies.of_earlier_versions(tmp_path) == []


def test_update_carries_answers_over(course, newer):
    save(course, answering(one=RIGHT["97.1"]))
    save(course, lambda notebook: notebooks.by_role(notebook, "predict")["97.1"].update(source="predict('97.1', 'a')"))
    assert updates.update(course, 97) == ["97_lines.ipynb: up to date"]
    newer()
    old = mine(course).read_bytes()
    assert updates.update(course, 97) == ["97_lines.ipynb: updated with your answers 97.1 and your predictions 97.1; "
                                          "the old file, with your notes, is 97_lines-old-1.ipynb"]
    assert (course / "my" / "97_lines-old-1.ipynb").read_bytes() == old
    new = notebooks.read(mine(course))
    answers = notebooks.by_role(new, "exercise")
    assert answers["97.1"].source == RIGHT["97.1"]
    assert "a single line" in answers["97.2"].source            # never touched, so the new stub stands
    assert notebooks.by_role(new, "predict")["97.1"].source == 'predict("97.1", "a")'
    assert "Now, which way" in new.cells[0].source
    assert updates.update(course, 97) == ["97_lines.ipynb: up to date"]


def test_update_carries_split_answers_their_helpers_and_files_without_ids(course, newer):
    def split(notebook):
        answering(one="K = 0", two=RIGHT["97.2"].replace("by", "by + K").replace("(x, by + K)", "(x, by)"))(notebook)
        at = notebook.cells.index(notebooks.by_role(notebook, "exercise")["97.1"])
        notebook.cells.insert(at + 1, v4.new_code_cell(RIGHT["97.1"].replace("* x", "* (x + K)")))
        notebook.cells.insert(at + 1, v4.new_code_cell(RIGHT["97.1"]))
        notebook.metadata.clear()
        notebook.nbformat_minor = 4
        for cell in notebook.cells:
            cell.pop("id")

    save(course, split)
    newer()
    updated, left = updates.update(course, 97)
    assert "updated with your answers 97.1, 97.2; the old" in updated
    assert left == ("97_lines.ipynb: an answer to 97.1 was not carried over: it is in cell 7 (`def my_line(x, slope):`) "
                    "of 97_lines-old-1.ipynb")
    sources = [cell.source for cell in notebooks.read(mine(course)).cells]
    assert sources.count("K = 0") == 1 and "* (x + K)" in sources[sources.index("K = 0") + 1]
    assert "    return x + by + K" in sources[sources.index("K = 0") + 4]


def test_update_names_what_has_no_place_any_more(course):
    def older(notebook):
        solve(notebook)
        notebook.metadata["course"]["version"] = "older"
        notebook.cells.append(v4.new_code_cell("def my_other(): ...", id="exercise-97-9"))
        notebook.cells.append(v4.new_code_cell('predict("97.8", "a")\npredict("97.1", letter)'))
        notebook.cells.append(v4.new_code_cell('def my_last(): ...\nmy_last = exercise("97.7", my_last)'))

    save(course, older)
    updated, *left = updates.update(course, 97)
    assert "updated with your answers 97.1, 97.2; the old" in updated
    assert "exercise 97.7 is no longer in the chapter; your answer is in cell 14 (`def my_last(): ...`)" in left[0]
    assert "exercise 97.9 is no longer in the chapter; your answer is in cell 12 (`def my_other(): ...`)" in left[1]
    assert "prediction 97.8, 'a', was not carried over: it is in cell 13" in left[2]
    assert "prediction 97.1, letter, was not carried over: it is in cell 13" in left[3]


def test_update_finds_the_file_of_a_renamed_chapter(course, newer):
    save(course, solve)
    newer("97_straight_lines.ipynb")
    [said] = updates.update(course, 97)
    assert "97_straight_lines.ipynb: updated from 97_lines.ipynb with your answers 97.1, 97.2" in said
    assert old_files(course) == ["97_lines-old-1.ipynb"] and not mine(course).exists()
    assert updates.update(course, 97) == ["97_straight_lines.ipynb: up to date"]


def test_update_finds_it_also_where_the_new_chapter_was_handed_out(course, newer):
    save(course, solve)
    newer("97_straight_lines.ipynb")
    copies.hand_out(course)
    if not (new := course / "my" / "97_straight_lines.ipynb").exists():
        notebooks.write(new, copies.blank(course / "notebooks" / new.name))
    assert "updated from 97_lines.ipynb with your answers 97.1, 97.2" in updates.update(course, 97)[0]
    assert old_files(course) == ["97_lines-old-1.ipynb", "97_straight_lines-old-1.ipynb"]


def test_two_files_with_answers_are_not_mixed(course, newer):
    save(course, solve)
    newer("97_straight_lines.ipynb")
    second = course / "my" / "97_more.ipynb"
    second.write_bytes(mine(course).read_bytes())
    with pytest.raises(ValueError, match="several files in my/ are of that chapter, 97_lines.ipynb, 97_more.ipynb"):
        updates.update(course, 97)
    with pytest.raises(ValueError, match="97_straight_lines.ipynb does not exist, and there are several others"):
        updates.own_file(course, course / "notebooks" / "97_straight_lines.ipynb")
    second.rename(course / "my" / "97_straight_lines.ipynb")
    updated, beside = updates.update(course, 97)
    assert "updated with your answers" in updated and "97_lines.ipynb beside it holds answers of this chapter" in beside
    assert mine(course).exists()


def test_a_file_beside_it_that_cannot_be_read_is_named_and_stops_no_update(course, newer):
    save(course, answering(one=RIGHT["97.1"]))
    mine(course).with_name("97_notes.ipynb").write_text("", encoding="utf-8")
    newer()
    updated, wrong = updates.update(course, 97)
    assert "updated with your answers 97.1;" in updated and "97_notes.ipynb is not a notebook" in wrong
    mine(course).unlink()
    with pytest.raises(ValueError, match="97_notes.ipynb is not a notebook"):
        updates.update(course, 97)


# --- progress -----------------------------------------------------------------------------------------------------

def states(course):
    [chapter] = updates.progress(course)
    return chapter.states


def test_progress_believes_only_what_the_learner_ran(course, capsys):
    assert updates.progress(course) == [updates.Progress("97_lines", {"97.1": "·", "97.2": "·"})]
    save(course, lambda notebook: store_outputs(notebook, "{} ✓ solved\n"))     # the stubs are untouched
    assert states(course) == {"97.1": "·", "97.2": "·"}
    save(course, solve)
    assert states(course) == {"97.1": "✓", "97.2": "✓"}
    save(course, lambda notebook: notebooks.by_role(notebook, "check")["97.1"].update(outputs=[
        v4.new_output("stream", name=name, text=text)
        for name, text in (("stdout", "a plot\n97.1 ✓ "), ("stderr", "a warning"), ("stdout", "solved\n"))]))
    save(course, lambda notebook: [cell.update(id=f"cell-{n}") for n, cell in enumerate(notebook.cells)])
    assert states(course) == {"97.1": "✓", "97.2": "✓"}
    save(course, lambda notebook: [cell.update(id=cell_id) for cell, cell_id in zip(
        notebook.cells, [cell.id for cell in copies.blank(course / "notebooks" / NAME).cells])])
    save(course, lambda notebook: store_outputs(notebook, "{} ✗ no\n"))
    assert cli.main(["progress"], course) == 0
    out = capsys.readouterr().out
    assert "97.1 ✗  97.2 ✗   (saved less than a minute ago, at " in out and "0 of 2 solved, as last saved" in out


def test_when_a_file_was_saved_is_said_in_words(course):
    copies.hand_out(course)
    at = datetime.datetime(2026, 3, 5, 14, 5)
    os.utime(mine(course), (at.timestamp(), at.timestamp()))
    for later, words in (({"seconds": 30}, "saved less than a minute ago, at 14:05"), ({"minutes": -9}, "saved at 14:05"),
                         ({"minutes": 1}, "saved 1 minute ago, at 14:05"), ({"minutes": 3}, "saved 3 minutes ago, at 14:05"),
                         ({"hours": 2}, "saved 2 hours ago, at 14:05"),
                         ({"days": 2}, "saved 2 days ago, on 2026-03-05 at 14:05")):
        assert updates.saved(mine(course), at + datetime.timedelta(**later)) == words


def test_progress_says_when_a_chapter_was_saved_only_where_somebody_worked_in_it(course):
    copies.hand_out(course)
    assert [chapter.saved for chapter in updates.progress(course)] == [""]
    save(course, solve)
    assert updates.progress(course)[0].saved.startswith("saved less than a minute ago")


# --- files that cannot be read ------------------------------------------------------------------------------------

def with_cell(**changed):
    cell = {"cell_type": "code", "source": "", "metadata": {}, "outputs": [], "execution_count": None, "id": "a"} | changed
    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {},
                       "cells": [{key: value for key, value in cell.items() if value != "gone"}]})


def with_form(**changed):
    form = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": []} | changed
    return json.dumps({key: value for key, value in form.items() if value != "gone"})


DAMAGED = {
    "it is empty": "", "it is not JSON": "{", "it is not UTF-8": b"\xff\xfe{}", "it is not JSON (maximum": "[" * 200_000,
    "it holds a list": "[]", "it holds text": '"text"', "it holds nothing": "null", "its nbformat is None": "{}",
    "its nbformat is 99": with_form(nbformat=99), "its nbformat is '4'": with_form(nbformat="4"),
    "in the format of IPython 3": with_form(nbformat=3), "its metadata are a list": with_form(metadata=[]),
    "its metadata are nothing": with_form(metadata="gone"), "its cells are nothing": with_form(cells="gone"),
    "its cells are an object": with_form(cells={}), "cell 1 is a number": with_form(cells=[1]),
    "cell 1 has the type None": with_cell(cell_type="gone"), "cell 1 has the type 'heading'": with_cell(cell_type="heading"),
    "cell 1 has nothing for its source": with_cell(source="gone"), "cell 1 has a number for its source": with_cell(source=5),
    "cell 1 has a list for its source": with_cell(source=["a", 1]),
    "cell 1 has a list for its metadata": with_cell(metadata=[]),
    "cell 1 has an object for its outputs": with_cell(outputs={}),
    "cell 1 has an output without a type": with_cell(outputs=[{}]),
    "cell 1 has an output that printed": with_cell(outputs=[{"output_type": "stream", "text": 3}]),
}


@pytest.mark.parametrize("why", [*DAMAGED, "a directory", "a link to", "more than 90"])
def test_a_damaged_notebook_is_named_left_alone_and_hides_no_other(course, monkeypatch, capsys, why):
    copies.hand_out(course)
    mine(course).unlink()
    content = DAMAGED.get(why, "{}" + " " * 90)
    if why == "a directory":
        mine(course).mkdir()
    elif why == "a link to":
        mine(course).symlink_to(course / "nowhere")
    else:
        mine(course).write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    shutil.copy(course / "notebooks" / NAME, course / "notebooks" / "98_other.ipynb")
    if why == "more than 90":
        monkeypatch.setattr(notebooks, "_text", lambda path, read=notebooks._text: (
            monkeypatch.setattr(notebooks, "LARGEST", 90 if path == mine(course) else 10**8), read(path))[1])
    for command, status in ((["check", "97"], 2), (["update"], 2), (["progress"], 1)):
        assert cli.main(command, course) == status
        said = capsys.readouterr()
        [line] = [line for line in (said.out + said.err).splitlines() if "97_lines.ipynb is not a notebook" in line]
        assert (why in line or "directory" in line.lower()) and "`course reset 97`" in line
        assert command == ["check", "97"] or "98_other" in said.out
    assert mine(course).is_dir() or mine(course).is_symlink() or mine(course).stat().st_size == len(content)


def test_every_form_that_jupyter_writes_is_read(course):
    save(course, solve)
    written = json.loads(mine(course).read_text(encoding="utf-8"))
    for cell in written["cells"]:
        cell["source"] = cell["source"].splitlines(keepends=True) if isinstance(cell["source"], str) else cell["source"]
        cell.pop("id")
    written["metadata"] = {"course": ["not ours"]}
    mine(course).write_text("\ufeff" + json.dumps(written | {"nbformat_minor": 4}), encoding="utf-8")
    assert [cell["source"] for cell in notebooks.load(mine(course))["cells"]] == [
        cell.source for cell in notebooks.read(mine(course)).cells]
    assert updates.update(course, 97)[0].startswith("97_lines.ipynb: updated with your answers 97.1, 97.2")


def test_an_edited_chapter_is_refused_by_update_and_named_by_progress(course, capsys):
    save(course, solve)
    changed = notebooks.read(course / "notebooks" / NAME)
    notebooks.by_role(changed, "check")["97.1"].source = ""
    notebooks.write(course / "notebooks" / NAME, changed)
    assert cli.main(["update"], course) == 2 and "was changed: it is no longer the chapter" in capsys.readouterr().err
    assert cli.main(["progress"], course) == 1 and "was changed: it is no longer the chapter" in capsys.readouterr().out


# --- the rest of the command -------------------------------------------------------------------------------------

def test_list_shows_the_chapters(course, capsys):
    assert cli.main(["list"], course) == 0
    out = capsys.readouterr().out
    assert "97  A fake chapter: lines rise" in out and "5 minutes, after nothing" in out and "97.2  A shift" in out


def test_list_names_a_chapter_that_cannot_be_read_and_shows_the_others(course, capsys):
    (course / "notebooks" / "96_empty.ipynb").write_text("", encoding="utf-8")
    (course / "notebooks" / "98_bare.ipynb").write_text(with_form(), encoding="utf-8")
    assert cli.main(["list"], course) == 1
    out = capsys.readouterr().out
    assert "96_empty.ipynb is not a notebook that can be read: it is empty" in out and "97.2  A shift" in out
    assert "98_bare.ipynb does not say what a chapter says of itself" in out


def test_list_imports_nothing_heavy(course):
    code = ("import sys\nfrom course_lib.classroom import cli\ncli.main(['list'])\n"
            "print(sorted({'torch', 'numpy', 'nbformat', 'IPython', 'jupyter_client'} & sys.modules.keys()))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_build_check_reports_by_its_exit_status(course, capsys):
    assert cli.main(["build", "--check"], course) == 0
    (course / "notebooks" / NAME).unlink()
    assert cli.main(["build", "--check", "97"], course) == 1
    assert capsys.readouterr().out.endswith("notebooks/97_lines.ipynb is not what 97_lines.py builds\n")


def test_unknown_chapters_are_one_line_on_stderr(course, capsys):
    assert cli.main(["reset", "5"], course) == 2
    assert capsys.readouterr().err.startswith("course: no chapter 5 in ")


@pytest.mark.parametrize("command, module, table",
                         [("train", "recipes", "RECIPES"), ("measure", "measure", "MEASUREMENTS")])
def test_train_and_measure_pass_on_what_was_given(monkeypatch, capsys, command, module, table):
    calls = []

    def steps(**options):
        """Count steps."""
        calls.append(options)

    fake = types.SimpleNamespace(**{table: {"steps": steps}}, train=lambda name, **options: calls.append(options))
    monkeypatch.setitem(cli.sys.modules, f"course_lib.{module}", fake)
    assert cli.main([command]) == 0 and capsys.readouterr().out.split() == ["steps", "Count", "steps."]
    assert cli.main([command, "steps", "--device", "cpu"]) == 0
    assert [str(call.pop("device")) for call in calls] == ["cpu"] and calls == [{}]


@pytest.mark.parametrize("arguments", [["train", "ring_teacher", "--device", "cdua"],
                                       ["measure", "solvers", "--device", "mps:9"]])
def test_a_device_that_is_not_there_is_one_line(capsys, arguments):
    assert cli.main(arguments) == 2
    assert re.fullmatch(r"course: device: expected one that is here, as cpu.*, got '\S+' \(.*\)\n", capsys.readouterr().err)


@pytest.mark.parametrize("arguments", [["train", "ring_teacher", "--steps", "0"], ["measure", "solvers", "--samples", "-5"],
                                       ["measure", "solvers", "--seeds", "0"], ["train", "ring_teacher", "--steps", "1e3"]])
def test_counts_below_one_start_nothing(capsys, arguments):
    with pytest.raises(SystemExit):
        cli.main(arguments)
    assert f"{arguments[2]}: expected a whole number of at least 1, got '{arguments[3]}'" in capsys.readouterr().err


def test_a_training_that_fails_or_is_done_says_so_in_one_line(monkeypatch, capsys):
    def diverges(name):
        raise FloatingPointError("the loss is nan at step 7")

    fake = types.SimpleNamespace(train=diverges, standing=lambda path: f"{path}: test_loss 0.1")
    monkeypatch.setitem(cli.sys.modules, "course_lib.recipes", fake)
    assert cli.main(["train", "ring_teacher"]) == 2
    assert capsys.readouterr().err == "course: the loss is nan at step 7\n"
    fake.train = lambda name: "ring_teacher-2.safetensors"
    assert cli.main(["train", "ring_teacher"]) == 0
    assert capsys.readouterr().out == "ring_teacher-2.safetensors: test_loss 0.1\n"


def test_doctor_names_every_part(monkeypatch, capsys):
    sound = types.SimpleNamespace(verify_all=lambda: [("a.npz", True, "sound")])
    missing = types.SimpleNamespace(verify_all=lambda: [("b.safetensors", False, "missing")])
    monkeypatch.setitem(cli.sys.modules, "course_lib.data", sound)
    monkeypatch.setitem(cli.sys.modules, "course_lib.recipes", missing)
    monkeypatch.setitem(cli.sys.modules, "course_lib.measure", sound)
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "✓ a.npz" in out and "✗ b.safetensors" in out
    for part in ("python", "torch", "device", "threads", "scale", "jupyterlab", "chromium"):
        assert f"✓ {part}" in out
