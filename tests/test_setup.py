"""Set-up: one list of requirements told in four places must agree, and a second `make` must not touch the network."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
CONDA_NAMES = {"pytorch": "torch", "matplotlib-base": "matplotlib"}


def bounds(lines: list[str]) -> dict[str, str]:
    """Requirement lines -> {normal name: version bounds}. Raises if one does not parse."""
    return {canonicalize_name(each.name): str(each.specifier) for each in map(Requirement, lines)}


CORE = bounds(PROJECT["dependencies"])
EXTRAS = {name: bounds(lines) for name, lines in PROJECT["optional-dependencies"].items()}
DIRECT = CORE | {name: bound for extra in EXTRAS.values() for name, bound in extra.items()}
CONSTRAINTS = bounds([line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")])


def test_the_core_is_what_the_course_needs_and_no_more():
    assert CORE.keys() == {"torch", "numpy", "matplotlib", "pillow", "tqdm", "ipywidgets", "safetensors", "filelock"}
    assert {"lab", "teach", "dev"} <= EXTRAS.keys()


@pytest.mark.parametrize("name", DIRECT)
def test_a_requirement_has_a_lower_bound_and_no_upper_one(name):
    assert DIRECT[name].startswith(">=") and "," not in DIRECT[name], f"{name}{DIRECT[name]}"


def test_the_tested_set_names_one_version_of_each_direct_requirement():
    assert CONSTRAINTS.keys() == DIRECT.keys()
    for name, pin in CONSTRAINTS.items():
        assert pin.startswith("==") and pin[2:] in Requirement(f"{name}{DIRECT[name]}").specifier, f"{name}{pin}"


def test_conda_has_the_same_bounds():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == PROJECT["name"]
    *packages, from_pip = environment["dependencies"]
    assert from_pip == {"pip": ["-e ."]}, "the course itself comes from the clone; all that it needs from conda"
    listed = {CONDA_NAMES.get(name, name): bound for name, bound in bounds(packages).items()}
    assert listed == {"python": PROJECT["requires-python"], "pip": "", **CORE, **EXTRAS["lab"]}


def test_the_citation_has_the_version_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]


def test_the_readme_installs_the_cpu_build_of_the_pinned_version():
    """Another version would be replaced by the build with CUDA as soon as `make lab` meets the constraint."""
    [line] = re.findall(r"pip install (torch\S*) --index-url \S+/whl/cpu\n", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert bounds([line])["torch"] == CONSTRAINTS["torch"]


def test_the_command_is_installed():
    assert PROJECT["scripts"] == {"course": "course_lib.classroom.cli:main"}


# --- make -----------------------------------------------------------------------------------------------------------

@pytest.fixture
def clone(tmp_path):
    """A folder with the Makefile and what it reads, all old."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
        os.utime(tmp_path / name, (0, 0))
    return tmp_path


def plan(clone: Path, *arguments: str) -> str:
    """The commands that make would run, also where these tests were started by another make."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(["make", "-n", *arguments], cwd=clone, env=env, capture_output=True, text=True, check=True)
    return done.stdout


def pretend_installed(clone: Path, stamp: str) -> None:
    (clone / ".venv" / "bin").mkdir(parents=True)
    for file in ("bin/pip", stamp):
        (clone / ".venv" / file).touch()


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@needs_make
@pytest.mark.parametrize(("target", "extras"), [
    ("lab", "'.[lab]'"), ("test", "'.[lab,teach,dev]'"), ("test-slow", "'.[lab,teach,dev]'")])
def test_the_first_make_installs(clone, target, extras):
    commands = plan(clone, target, "PYTHON=python3.11")
    assert "python3.11 -m venv .venv" in commands
    assert f"pip install -c constraints.txt -e {extras}" in commands


@needs_make
@pytest.mark.parametrize(("target", "stamp"), [("lab", "lab.stamp"), ("test", "test.stamp"), ("test-slow", "test.stamp")])
def test_the_second_make_installs_nothing_until_requirements_change(clone, target, stamp):
    pretend_installed(clone, stamp)
    assert "install" not in plan(clone, target) and "venv .venv" not in plan(clone, target)
    (clone / "pyproject.toml").touch()
    os.utime(clone / ".venv" / stamp, (1, 1))
    assert "pip install" in plan(clone, target)


@needs_make
def test_make_lab_passes_arguments_on(clone):
    pretend_installed(clone, "lab.stamp")
    assert plan(clone, "lab", "ARGS=--no-browser").strip() == ".venv/bin/course lab --no-browser"


@needs_make
def test_make_test_and_make_test_slow_share_all_tests_out_between_them(clone):
    pretend_installed(clone, "test.stamp")
    runs = [line for target in ("test", "test-slow") for line in plan(clone, target).splitlines() if "pytest" in line]
    chosen = [re.fullmatch(r"(.*) -m (\S+|\".*\") tests", run) for run in runs]
    assert [match[2] for match in chosen] == ['"not slowest"', "slowest"]
    assert len({match[1] for match in chosen}) == 1
    assert any(marker.startswith("slowest:") for marker in PYPROJECT["tool"]["pytest"]["ini_options"]["markers"])


# --- continuous integration -----------------------------------------------------------------------------------------

@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_ci_script_can_run():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    subprocess.run(["bash", "-n", ROOT / ".ci" / "run"], check=True)


def test_the_ci_script_runs_all_tests_and_allows_no_skips():
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert lines[-3:] == ["export COURSE_REQUIRE_ALL=1", "make test", "exec make test-slow"]


SKIPS = """
import pytest

def test_skipped():
    pytest.skip("no such tool")

@pytest.mark.gpu
def test_gpu():
    pytest.skip("no such device")

@pytest.mark.xfail
def test_expected():
    assert False
"""


@pytest.mark.parametrize(
    ("strict", "closing"), [("0", "2 skipped, 1 xfailed"), ("1", "1 failed, 1 skipped, 1 xfailed")]
)
def test_a_skip_that_should_have_run_is_a_failure_in_ci(tmp_path, strict, closing):
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_skips.py").write_text(SKIPS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path],
        cwd=tmp_path, env={**os.environ, "COURSE_REQUIRE_ALL": strict}, capture_output=True, text=True,
    )
    assert closing in done.stdout.splitlines()[-1], done.stdout
    assert done.returncode == int(strict)
