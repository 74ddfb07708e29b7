"""Every chapter under nbval: its solution passes whole, and a fresh learner's notebook fails exactly at its checks."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

import pytest
from nbformat import v4

from course_lib.classroom import notebooks
from course_lib.data import ROOT

SECONDS_A_CELL = 300
pytestmark = pytest.mark.slow
chapters = pytest.mark.parametrize("path", notebooks.chapters(ROOT / "notebooks"), ids=lambda path: path.stem)


def run_nbval(root: Path, notebook, name: str) -> dict[str, str]:
    """Run the notebook under `pytest --nbval-lax` in an empty folder: {cell id: why it failed}.

    No settings but those given here reach that pytest, whatever lies above the folder or in the environment.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy, report = Path(folder, name), Path(folder, "report.xml")
        notebooks.write(copy, notebook)
        Path(folder, "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
        environment = notebooks.environment(root, COURSE_SCALE="quick", PYTEST_ADDOPTS="", PYTEST_PLUGINS="",
                                            PYTEST_DISABLE_PLUGIN_AUTOLOAD="1", IPYTHONDIR=folder)
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-c", "pytest.ini", f"--confcutdir={folder}", "-p", "nbval.plugin",
             "--nbval-lax", "--nbval-current-env", f"--nbval-cell-timeout={SECONDS_A_CELL}", "-p", "no:cacheprovider",
             f"--junitxml={report}", f"--rootdir={folder}", name],
            cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8", errors="replace")
        assert run.returncode in (0, 1) and report.is_file(), f"{name} (exit {run.returncode}):\n{run.stdout}{run.stderr}"
        cases = list(ElementTree.parse(report).iter("testcase"))
    ids = [cell.id for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cases) == len(ids), f"pytest ran {len(cases)} of the {len(ids)} cells of {name}:\n{run.stdout}"
    troubles = [[*case.iter("failure"), *case.iter("error"), *case.iter("skipped")] for case in cases]
    return {id: _plain(trouble[0].text or trouble[0].get("message")) for id, trouble in zip(ids, troubles) if trouble}


def _plain(text: str) -> str:
    """The text without terminal colours, as nbval and IPython write them into reports."""
    return re.sub(r"(\x1b|#x1B)\[[0-9;]*m", "", text)


def test_settings_of_other_projects_do_not_reach_the_run(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\naddopts = "--no-such-option"\n', encoding="utf-8")
    (tmp_path / "conftest.py").write_text("raise RuntimeError", encoding="utf-8")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setitem(os.environ, "PYTEST_ADDOPTS", "--no-such-option")
    monkeypatch.setitem(os.environ, "PYTEST_PLUGINS", "no_such_plugin")
    one = v4.new_code_cell("1 + 1", id="one")
    assert run_nbval(ROOT, v4.new_notebook(cells=[one]), "one.ipynb") == {}


@chapters
def test_the_solution_passes_whole(path):
    solution = notebooks.read(path.parent / "solutions" / path.name)
    assert run_nbval(ROOT, solution, path.name) == {}


@chapters
def test_a_fresh_notebook_fails_exactly_at_its_checks(path):
    fresh = notebooks.read(path)
    checks = [cell.id for cell in notebooks.by_role(fresh, "check").values()]
    failed = run_nbval(ROOT, fresh, path.name)
    assert list(failed) == checks, "\n".join(why for id, why in failed.items() if id not in checks)
