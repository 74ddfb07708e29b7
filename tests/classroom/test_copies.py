"""my/: handed out once, never overwritten, nothing of the learner's lost, whoever saves meanwhile."""

import multiprocessing
import os
import time

import pytest

from course_lib import files
from course_lib.classroom import cli, notebooks
from course_lib.classroom.learner import copies

from .test_learner import answering, mine, save, solve

PROCESSES = multiprocessing.get_context("spawn" if os.name == "nt" else "fork")         # a fork need not import torch again


def shipped(course):
    return course / "notebooks" / mine(course).name


def all_text(course):
    return "".join(path.read_text(encoding="utf-8") for path in (course / "my").iterdir())


def answer_of(path):
    return notebooks.by_role(notebooks.read(path), "exercise")["97.1"].source


def test_the_hand_out_never_overwrites(course):
    assert copies.hand_out(course) == [mine(course)]
    assert not any(cell.get("outputs") for cell in notebooks.read(mine(course)).cells)
    save(course, solve)
    before = mine(course).read_bytes()
    assert copies.hand_out(course) == [] and mine(course).read_bytes() == before


def test_reset_keeps_every_old_file(course, capsys):
    save(course, solve)
    old = mine(course).read_bytes()
    assert cli.main(["reset", "97"], course) == 0 and cli.main(["reset", "97"], course) == 0
    assert "97_lines-old-2.ipynb" in capsys.readouterr().out
    assert (course / "my" / "97_lines-old-1.ipynb").read_bytes() == old
    assert "NotImplementedError" in answer_of(mine(course))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")
def test_a_private_notebook_stays_private(course):
    save(course, solve)
    mine(course).chmod(0o600)
    kept = copies.reset(course, 97)
    assert [path.stat().st_mode & 0o777 for path in (kept, mine(course))] == [0o600, 0o600]


# --- what lies in the way ----------------------------------------------------------------------------------------------

def test_a_folder_in_the_way_is_named_and_left_alone(course, capsys):
    mine(course).mkdir(parents=True)
    assert cli.main(["reset", "97"], course) == 2
    assert "97_lines.ipynb is a folder; a notebook belongs there" in capsys.readouterr().err
    assert copies.hand_out(course) == [] and os.listdir(course / "my") == ["97_lines.ipynb"]


def test_a_broken_link_in_the_way_is_kept(course):
    mine(course).parent.mkdir()
    mine(course).symlink_to("elsewhere.ipynb")
    assert copies.hand_out(course) == []
    kept = copies.reset(course, 97)
    assert os.readlink(kept) == "elsewhere.ipynb" and "NotImplementedError" in answer_of(mine(course))


# --- others who write at the same time ---------------------------------------------------------------------------------

def save_just_before(monkeypatch, course, name, text):
    """A backup comes back, or JupyterLab saves, just before os.link or os.replace is called next."""
    really = getattr(os, name)

    def saved_just_before(*arguments):
        monkeypatch.setattr(os, name, really)
        mine(course).write_text(text, encoding="utf-8")
        return really(*arguments)

    monkeypatch.setattr(os, name, saved_just_before)


def test_what_comes_into_my_during_the_hand_out_stays(course, monkeypatch):
    save_just_before(monkeypatch, course, "link", "a backup")
    assert copies.hand_out(course) == [] and mine(course).read_text() == "a backup"


def test_what_is_saved_at_the_last_moment_is_kept(course, monkeypatch):
    save(course, solve)
    save_just_before(monkeypatch, course, "replace", "the last save")
    assert copies.reset(course, 97).read_text() == "the last save"


def test_what_is_saved_between_the_old_file_and_the_fresh_one_is_kept_too(course, monkeypatch):
    save(course, solve)
    save_just_before(monkeypatch, course, "link", "in between")
    assert copies.reset(course, 97).read_text() == "in between"
    assert "return x + by" in all_text(course) and "NotImplementedError" in answer_of(mine(course))


def test_nothing_is_lost_or_cut_short_among_a_saver_and_two_resets(course):
    copies.hand_out(course)
    stop = PROCESSES.Event()
    saver = PROCESSES.Process(target=_save_often, args=(course, 60))
    resets = [PROCESSES.Process(target=_reset_until, args=(course, stop)) for _ in range(2)]
    for process in (saver, *resets):
        process.start()
    saver.join(60)
    stop.set()                              # the last save met resets as well
    for process in resets:
        process.join(60)
    assert [process.exitcode for process in (saver, *resets)] == [0, 0, 0]
    found = sorted((course / "my").iterdir())
    assert len(found) > 20 and not [path for path in found if path.suffix != ".ipynb"]
    for path in found:
        notebooks.read(path)                # raises if it was cut short
    assert "save 60 of the learner" in all_text(course)


def _save_often(course, times):
    """As editors do: in turn by a new file that takes the name, and into the file that is there."""
    notebook = copies.blank(shipped(course))
    for count in range(1, times + 1):
        notebook.cells[0].source = f"save {count} of the learner " + "x" * 100_000
        if count % 2:
            mine(course).write_text(notebooks.text(notebook), encoding="utf-8")
        else:
            files.atomic_write(mine(course), lambda file: file.write(notebooks.text(notebook).encode()))
        time.sleep(0.01)


def _reset_until(course, stop):
    while not stop.is_set():
        copies.reset(course, 97)
    for _ in range(3):
        copies.reset(course, 97)


def test_resets_at_once_keep_the_one_old_file(course, rounds=12, together=4):
    copies.hand_out(course)
    gate = PROCESSES.Barrier(together + 1)
    processes = [PROCESSES.Process(target=_reset_together, args=(course, gate, rounds)) for _ in range(together)]
    for process in processes:
        process.start()
    for count in range(rounds):
        mine(course).write_text(f"answer {count}", encoding="utf-8")
        gate.wait(60)                       # they begin
        gate.wait(60)                       # they are done
    for process in processes:
        process.join(60)
    kept = [path.read_text(encoding="utf-8") for path in (course / "my").glob("97_lines-old-*.ipynb")]
    assert [process.exitcode for process in processes] == [0] * together
    assert sorted(text for text in kept if text.startswith("answer")) == sorted(f"answer {count}" for count in range(rounds))


def _reset_together(course, gate, rounds):
    for _ in range(rounds):
        gate.wait(60)
        copies.reset(course, 97)
        gate.wait(60)


# --- work that was done in notebooks/ ----------------------------------------------------------------------------------

def work_in_the_wrong_place(course):
    notebook = notebooks.read(shipped(course))
    solve(notebook)
    notebook.cells[3].outputs = notebooks.read(course / "notebooks" / "solutions" / shipped(course).name).cells[3].outputs
    notebooks.write(shipped(course), notebook)
    return shipped(course).read_bytes()


@pytest.mark.parametrize("handed_out", [False, True])
def test_work_done_in_notebooks_comes_into_my_if_nothing_was_done_there(course, handed_out):
    if handed_out:
        copies.hand_out(course)
    work = work_in_the_wrong_place(course)
    assert copies.hand_out(course) == [mine(course)] and copies.hand_out(course) == []
    assert answer_of(mine(course)) == answer_of(shipped(course))
    outputs = [cell.id for cell in notebooks.read(mine(course)).cells if cell.get("outputs")]
    assert outputs == [notebooks.read(mine(course)).cells[3].id]            # not the expected text under the checks
    assert shipped(course).read_bytes() == work
    assert "holds work, which my/97_lines.ipynb has too." in copies.worked_in(course)[0]


def test_work_in_both_places_is_left_alone_and_told(course):
    save(course, answering(one="another answer"))
    before = mine(course).read_bytes()
    assert copies.worked_in(course) == []
    work = work_in_the_wrong_place(course)
    assert copies.hand_out(course) == [] and mine(course).read_bytes() == before and shipped(course).read_bytes() == work
    [line] = copies.worked_in(course)
    assert "notebooks/97_lines.ipynb holds work. Only my/97_lines.ipynb is checked" in line
    assert "`git checkout notebooks/97_lines.ipynb` brings back the shipped one" in line


def test_a_reset_makes_no_fresh_copy_of_an_edited_notebook(course, capsys):
    save(course, solve)
    before = mine(course).read_bytes()
    work_in_the_wrong_place(course)
    assert cli.main(["reset", "97"], course) == 2
    assert "was edited, so no fresh copy can be made of it" in capsys.readouterr().err
    assert mine(course).read_bytes() == before and os.listdir(course / "my") == [mine(course).name]


@pytest.mark.parametrize("links", [True, False])
def test_a_name_is_claimed_whole_and_only_while_it_is_free(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(1, "Operation not permitted")))
    target = tmp_path / "file"
    for content in (b"first", b"second"):
        with files.prepared(target, lambda file, content=content: file.write(content)) as temporary:
            if content == b"first":
                copies._claim(temporary, target)
            else:
                with pytest.raises(FileExistsError):
                    copies._claim(temporary, target)
    assert target.read_bytes() == b"first" and os.listdir(tmp_path) == ["file"]
