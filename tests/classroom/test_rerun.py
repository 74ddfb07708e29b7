"""`course check`: a right answer is solved however noisy it is, nothing else is, and no kernel outlives the command."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from nbformat import v4

from course_lib import files
from course_lib.classroom import cli, notebooks
from course_lib.classroom.learner import answers, rerun

from .test_learner import NAME, RIGHT, answering, mine, save, solve, store_outputs


def check(course, capsys):
    """The status and the lines of `course check 97` without the first, which names the file."""
    status = cli.main(["check", "97"], course)
    said = capsys.readouterr()
    assert said.err == "" and said.out.startswith("my/97_lines.ipynb, saved ")
    return status, said.out.splitlines()[1:]


# --- what counts -----------------------------------------------------------------------------------------------------

NOISE = """
import logging, sys, warnings, os
from IPython.display import display
from tqdm.auto import tqdm
import matplotlib.pyplot as plt
logging.basicConfig(level="INFO", stream=sys.stdout)

def noise():
    for _ in tqdm(range(3)):
        print("97.2 ✗ noise")
    logging.info("noise")
    logging.warning("noise")
    warnings.warn("noise")
    display("noise", {"a": 1})
    sys.stderr.write("noise")
noise()
plt.plot([1, 2])
plt.show()
os.system("echo noise; echo noise >&2")
"""


def test_right_answers_pass_however_much_they_print_plot_log_and_warn(course, capsys):
    loud = RIGHT["97.2"].replace("    return", "    noise()\n    return")
    trial = "\nmy_shift(gone, 1)             # an experiment that fails is no part of the answer"
    save(course, answering(one=f"{NOISE}\n{RIGHT['97.1']}", two=loud + trial))
    status, lines = check(course, capsys)
    assert lines == ["97.1  ✓ solved", "97.2  ✓ solved"] and status == 0


def test_each_exercise_gets_its_own_line(course, capsys):
    save(course, answering(one="def my_line(x, slope):\n    return x", two=RIGHT["97.2"].replace("my_shift", "shift")))
    status, (one, two, other) = check(course, capsys)
    assert status == 1
    assert one.startswith("97.1  ✗ the slope is not used (largest difference") and one.endswith(").")
    assert "97.2  ✗ its check failed: NameError: name 'my_shift' is not defined" in two
    assert other == "cell  ✗ `my_shift(torch.zeros(2), 1)` failed: NameError: name 'my_shift' is not defined"


def test_saved_failures_deleted_checks_and_forged_successes_count_for_nothing(course, capsys):
    def forge(notebook):
        store_outputs(notebook, "{} ✗ wrong\n")
        checks = notebooks.by_role(notebook, "check")
        checks["97.1"].source = "# NBVAL_IGNORE_OUTPUT\nprint('97.1 ✓ solved')"
        notebook.cells.remove(checks["97.2"])

    wrong = ("print('97.1 ✓ solved')\ndef my_line(x, slope):\n    print('97.1 ✓ solved')\n"
             "    raise ValueError('\\n97.1 ✓ solved\\n')")
    save(course, answering(one=wrong))
    save(course, forge)
    shipped = course / "notebooks" / NAME
    opened = notebooks.read(shipped)                    # the shipped file was run and saved: its outputs are not the course's
    store_outputs(opened, "")
    notebooks.write(shipped, opened)
    status, (one, two, last) = check(course, capsys)
    assert status == 1 and one.startswith("97.1  ✗ your function raised ValueError: 97.1 ✓ solved")
    assert two == "97.2  · not yet tried."
    assert last.startswith("Only what is saved counts")


def test_a_changed_chapter_is_refused_and_a_deleted_cell_explained(course, capsys):
    save(course, solve)
    save(course, lambda notebook: notebook.cells.remove(notebooks.by_role(notebook, "exercise")["97.1"]))
    pristine = notebooks.pristine(course / "notebooks" / NAME)
    found = answers.find(pristine, notebooks.load(mine(course)))
    one = rerun._result("97.1", found["97.1"], {})
    assert one.state == "✗" and "was its cell deleted, or the function renamed?" in one.message
    for role in ("check", "exercise"):
        changed = notebooks.read(course / "notebooks" / NAME)
        notebooks.by_role(changed, role)["97.1"].source = "print('97.1 ✓ solved')"
        notebooks.write(course / "notebooks" / NAME, changed)
        assert cli.main(["check", "97"], course) == 2
        assert "97_lines.ipynb was changed" in (error := capsys.readouterr().err) and "git restore" in error


def test_what_the_answer_uses_comes_along_or_is_named(course, capsys):
    def helped(notebook):
        at = notebook.cells.index(notebooks.by_role(notebook, "exercise")["97.1"])
        notebook.cells.insert(at, v4.new_code_cell("def helper(slope, x):\n    return slope.reshape(-1, *ONES * (x.ndim - 1))"))
        notebook.cells.insert(at, v4.new_code_cell("import operator\nONES = [1]"))
        for cell in notebook.cells:
            cell.pop("id")

    save(course, answering(one="def my_line(x, slope):\n    return operator.mul(helper(slope, x), x)",
                           two="def my_shift(x, by):\n    return x + gone"))
    notebook = notebooks.read(mine(course))
    helped(notebook)
    notebook.nbformat_minor = 4
    notebooks.write(mine(course), notebook)
    status, (one, two) = check(course, capsys)
    assert status == 1 and one == "97.1  ✓ solved"
    assert "NameError: name 'gone' is not defined" in two and "`gone`, which no cell of your notebook defines" in two


# --- a kernel that ends, loops, or is left alone: a chapter without torch ----------------------------------------------

def plain(course, **answer):
    """A chapter whose check is a plain line, with the answers to its two exercises, as `run` takes them."""
    cells = []
    for number, name in enumerate(("one", "two"), start=1):
        judged = f'print("96.{number} ✓ solved" if {name}() == {number} else "96.{number} ✗ no. The chapter goes on.")'
        cells += [v4.new_code_cell(f"def {name}():\n    raise NotImplementedError", id=f"exercise-96-{number}"),
                  v4.new_code_cell(f"{name} = {name}  # {name} = exercise(\n{judged}", id=f"check-96-{number}")]
    found = {f"96.{number}": answers.Found(f"96.{number}", source=source, where="cell 1")
             for number, source in enumerate(answer.values(), start=1)}
    pristine = v4.new_notebook(cells=cells)
    outcomes = rerun.run(course, pristine, found)
    return [rerun._result(id, one, outcomes) for id, one in found.items()]


@pytest.mark.parametrize("dies", ["import os\nos._exit(1)\ndef one(): ...", "def one():\n    import os; os._exit(1)"])
def test_a_kernel_that_dies_is_said_at_once_and_the_other_answers_are_judged(tmp_path, dies):
    one, two = plain(tmp_path, one=dies, two="def two():\n    return 2")
    assert one.state == "✗" and "the kernel died in it: does it call exit" in one.message
    assert (two.state, two.message) == ("✓", "solved")


def test_an_endless_loop_is_stopped_at_a_limit_that_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(rerun, "SECONDS_A_CELL", 6)
    one, two = plain(tmp_path, one="while True:\n    try:\n        print('x')\n    except BaseException:\n        pass",
                     two="def two():\n    return 3")
    assert one.message.startswith("its cell failed: stopped at the limit of 6 seconds a cell: is there a loop")
    assert (two.state, two.message) == ("✗", "no.")


def test_a_chapters_own_cell_that_ends_the_kernel_leaves_the_rest_unchecked(tmp_path):
    cells = [v4.new_code_cell("import os\nos._exit(1)", id="96-a"), v4.new_code_cell("", id="exercise-96-1")]
    found = {"96.1": answers.Found("96.1", source="1")}
    outcomes = rerun.run(tmp_path, v4.new_notebook(cells=cells), found)
    assert rerun._result("96.1", found["96.1"], outcomes).message.startswith("not checked: the kernel ended")
    [other] = rerun._other_results({"cells": cells}, outcomes)
    assert other.message.startswith("`import os` failed: the kernel died")


def test_the_users_own_settings_do_not_reach_the_kernel(tmp_path, monkeypatch):
    startup = tmp_path / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "first.py").write_text("raise SystemExit\n", encoding="utf-8")
    (tmp_path / "start.py").write_text("two = 1\n", encoding="utf-8")
    (tmp_path / "jupyter_config.py").write_text("c.KernelManager.transport = 'none'\n", encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\naddopts = "--no-such-option"\n', encoding="utf-8")
    settings = {"IPYTHONDIR": tmp_path / "ipython", "PYTHONSTARTUP": tmp_path / "start.py", "MPLBACKEND": "TkAgg",
                "JUPYTER_CONFIG_DIR": tmp_path, "PYTEST_ADDOPTS": "--cov", "PYTEST_PLUGINS": "none"}
    for name, value in settings.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(rerun.tempfile, "tempdir", str(tmp_path))
    alone = ("import os\ndef one():\n    alone = 'inline' in os.environ['MPLBACKEND'] and 'two' not in globals()\n"
             "    return alone and not os.listdir('.')")
    one, two = plain(tmp_path, one=alone, two="def two():\n    return 2")
    assert (one.state, two.state) == ("✓", "✓")


def test_a_library_that_changed_meanwhile_is_named(course, monkeypatch, tmp_path):
    library = tmp_path / "course_lib"
    library.mkdir()
    (library / "checks.py").write_text("1", encoding="utf-8")
    monkeypatch.setattr(files, "__file__", str(library / "files.py"))
    monkeypatch.setattr(rerun, "run", lambda *arguments: (library / "checks.py").write_text("2", encoding="utf-8"))
    with pytest.raises(ValueError, match="nothing was judged.*checks.py changed"):
        rerun.check(course, course / "notebooks" / NAME, notebooks.load(course / "notebooks" / NAME))


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_no_kernel_outlives_the_command(tmp_path, name):
    marker = tmp_path / "pid"
    cell = f"import os\nopen({str(marker)!r}, 'w').write(str(os.getpid()))\nwhile True: pass"
    code = ("from pathlib import Path\nfrom course_lib.classroom.learner import rerun\n"
            f"rerun._run(Path({str(tmp_path)!r}), [('one', {cell!r})])")
    root = Path(files.__file__).resolve().parents[1]
    command = subprocess.Popen([sys.executable, "-c", code], cwd=root, stderr=subprocess.DEVNULL, start_new_session=True)
    wait(lambda: marker.exists() and marker.read_text())
    kernel = psutil.Process(int(marker.read_text()))
    os.kill(command.pid, getattr(signal, name))
    assert command.wait(30) != 0
    wait(lambda: not kernel.is_running() or kernel.status() == psutil.STATUS_ZOMBIE)


def wait(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


# --- which notebook --------------------------------------------------------------------------------------------------

def test_a_notebook_anywhere_can_be_checked(course, tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(rerun, "check", lambda root, shipped, notebook: asked.append(shipped.name) or [])
    save(course, solve)
    other = shutil.move(mine(course), tmp_path / "from Colab.ipynb")
    assert cli.main(["check", "97"], course) == 2
    assert "course check --notebook FILE" in capsys.readouterr().err
    assert cli.main(["check", "--notebook", str(other)], course) == 0
    notebook = notebooks.read(other)
    notebook.metadata.clear()
    for cell in notebook.cells:
        cell.pop("id")
    notebook.nbformat_minor = 4
    notebooks.write(other, notebook)
    assert cli.main(["check", "--notebook", str(other)], course) == 0 and asked == [NAME, NAME]
    notebook.cells.clear()
    notebooks.write(other, notebook)
    assert cli.main(["check", "--notebook", str(other)], course) == 2
    assert "does not say which chapter it is of" in capsys.readouterr().err
    assert cli.main(["check", "97", "--notebook", str(other)], course) == 0
    assert cli.main(["check"], course) == 2
    assert cli.main(["check", "--notebook", str(tmp_path / "none.ipynb")], course) == 2


def test_what_is_not_installed_is_named(course, monkeypatch, capsys):
    save(course, solve)
    monkeypatch.setitem(sys.modules, "nbclient", None)
    monkeypatch.delitem(sys.modules, "course_lib.classroom.learner.rerun")
    monkeypatch.delattr("course_lib.classroom.learner.rerun")
    assert cli.main(["check", "97"], course) == 2
    assert "needs nbclient, which is not installed: pip install" in capsys.readouterr().err
