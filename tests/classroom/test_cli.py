"""The `course` command as such: in a notebook, into a pipe, onto a full disk, stopped, without a package."""

import io
import os
import sys
from pathlib import Path

import pytest

from course_lib.classroom import cli
from course_lib.classroom.learner import copies

FULL = Path("/dev/full")


class InANotebook(io.StringIO):
    """ipykernel's stream has no `reconfigure`, and may have no file number."""


def test_the_command_works_in_a_notebook(course, monkeypatch):
    monkeypatch.setattr(sys, "stdout", InANotebook())
    assert cli.main(["reset", "97"], course) == 0
    assert sys.stdout.getvalue() == "a fresh copy is in my/\n"


def test_a_reader_that_has_gone_is_no_error(course, monkeypatch, capsys):
    """As in `course list | head -1`: what is left in the buffer must not fail again when Python ends."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        assert cli.main(["reset", "97"], course) == 141
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not FULL.exists(), reason="there is no device that is always full")
def test_a_full_disk_is_told_in_one_line(course, monkeypatch, capsys):
    with FULL.open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert cli.main(["reset", "97"], course) == 2
    assert capsys.readouterr().err == "course: [Errno 28] No space left on device\n"


@pytest.mark.parametrize("error, line, status", [
    (KeyboardInterrupt(), "course: stopped\n", 130),
    (MemoryError(), "course: there is not enough memory\n", 2),
    (PermissionError(13, "Permission denied", "my/97_lines.ipynb"),
     "course: [Errno 13] Permission denied: 'my/97_lines.ipynb'\n", 2),
    (ModuleNotFoundError("No module named 'jupytext'", name="jupytext"),
     "course: this command needs jupytext, which is not installed: "
     "pip install -e '.[lab]' (for authors '.[lab,teach,dev]')\n", 2),
])
def test_what_ends_a_command_is_told_in_one_line(course, monkeypatch, capsys, error, line, status):
    def fails(*_):
        raise error

    monkeypatch.setattr(copies, "reset", fails)
    assert cli.main(["reset", "97"], course) == status and capsys.readouterr().err == line


def test_a_module_that_the_course_itself_lacks_is_a_bug(course, monkeypatch):
    def fails(*_):
        raise ModuleNotFoundError("No module named 'course_lib.nothing'", name="course_lib.nothing")

    monkeypatch.setattr(copies, "reset", fails)
    with pytest.raises(ModuleNotFoundError):
        cli.main(["reset", "97"], course)
