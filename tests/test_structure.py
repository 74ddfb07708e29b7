"""The shape of the house: who may import whom, one module for widgets, a map that imports nothing, and no more lines
than one can read."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "course_lib"
MODULES = sorted(path for path in PACKAGE.glob("*.py") if path.stem != "__init__")
EVERY_FILE = sorted(PACKAGE.rglob("*.py"))

SAMPLERS = {"sde_samplers", "ode_samplers", "fast_samplers"}
STEPS = {"arguments", "schedules", "denoiser", "sampling"}
DISTILLATION = STEPS | SAMPLERS | {"score_matching", "networks", "training"}

# module -> what it may import from course_lib. A module that is not here has no place in the house yet.
ALLOWED = {
    "files": set(),
    "arguments": set(),
    "schedules": {"arguments"},
    "denoiser": {"arguments", "schedules"},
    "targets": {"arguments", "schedules", "denoiser"},
    "networks": {"arguments"},
    "sampling": {"arguments", "denoiser"},
    "score_matching": {"arguments", "denoiser", "sampling"},
    "sde_samplers": STEPS,
    "ode_samplers": STEPS,
    "fast_samplers": STEPS,
    "parallel": STEPS | SAMPLERS,
    "progressive": DISTILLATION,
    "consistency": DISTILLATION,
    "adversarial": DISTILLATION,
    "autoencoders": {"arguments", "networks"},
    "text": {"arguments", "networks", "data", "autoencoders"},
    "diffusers_bridge": {"schedules", "denoiser"},
    "training": {"files"},
    "data": {"files"},
    "metrics": {"arguments"},
    "ledger": {"files"},
    "plotting": set(),
}
SCIENCE = set(ALLOWED)
ALLOWED |= {name: SCIENCE | {"recipes"} for name in ("recipes", "widgets", "images")}


def imported(path: Path) -> set[str]:
    """Dotted names of all that a file imports, also inside functions; relative imports are resolved."""
    package = ("course_lib", *path.relative_to(PACKAGE).parent.parts)
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else ()
            origin = ".".join([*start, *filter(None, [node.module])])
            names |= {f"{origin}.{alias.name}" for alias in node.names}
    return names


def neighbours(path: Path) -> set[str]:
    """The modules of course_lib that a file imports."""
    return {parts[1] for name in imported(path) if (parts := name.split("."))[0] == "course_lib" and len(parts) > 1}


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_a_module_imports_only_what_the_table_allows(module):
    assert module.stem in ALLOWED, f"{module.name} is not in the table of allowed imports"
    excess = neighbours(module) - ALLOWED[module.stem]
    assert not excess, f"{module.name} imports {sorted(excess)}; it may import {sorted(ALLOWED[module.stem])}"


def test_the_table_has_no_cycle_below_the_recipes():
    left = SCIENCE
    while free := {name for name in left if not ALLOWED[name] & left}:
        left = left - free
    assert not left, f"these may import one another: {sorted(left)}"


def test_imports_are_found_in_every_form(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "module.py").write_text(
        "import course_lib.one\nfrom course_lib.two import x\nfrom course_lib import three\n"
        "from . import four\nfrom .five import y\n\ndef late():\n    from course_lib import six\n"
    )
    assert neighbours(tmp_path / "module.py") == {"one", "two", "three", "four", "five", "six"}
    (tmp_path / "classroom").mkdir()
    (tmp_path / "classroom" / "module.py").write_text("from . import sibling\nfrom .. import seven\n")
    assert neighbours(tmp_path / "classroom" / "module.py") == {"classroom", "seven"}


@pytest.mark.parametrize("path", EVERY_FILE, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_says_what_it_holds(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), f"{path.name} has no docstring"


def test_only_widgets_imports_ipywidgets():
    importers = {path.stem for path in EVERY_FILE if any(name.startswith("ipywidgets") for name in imported(path))}
    assert importers <= {"widgets"}


def test_the_map_imports_nothing_and_names_every_module():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    assert len(tree.body) == 1, "course_lib/__init__.py is its docstring, nothing else"
    missing = [path.stem for path in MODULES if path.stem not in ast.get_docstring(tree)]
    assert not missing, f"not on the map: {missing}"


def test_importing_the_package_is_free():
    code = "import sys, course_lib; print(sorted({'torch', 'numpy', 'ipywidgets', 'matplotlib'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_library_can_be_read_through():
    """With all fifteen chapters in it; the recipes are a table that grows with every model that ships."""
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in PACKAGE.glob("*.py") if path.stem != "recipes")
    assert lines <= 4500, f"course_lib has {lines} lines outside classroom/ and recipes"
