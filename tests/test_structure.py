"""The shape of the house: the map is true and complete, imports go up the map only, and no more lines than one can read."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import course_lib

PACKAGE = Path(__file__).resolve().parent.parent / "course_lib"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem != "__init__")
GROWING = {"classroom", "measure", "recipes"}           # with every chapter, measurement and model


def lines_of(text: str) -> list[tuple[int, str]]:
    """The lines of a map, as (indent, name)."""
    return [(len(line) - len(line.lstrip()), line.split()[0]) for line in text.splitlines()
            if re.match(r" {4,8}[a-z_*]+ {2,}\S", line)]


def places(text: str, inner: dict[str, str]) -> dict[str, int]:
    """The modules on a map, by their dotted names, each with its place; a package has that after all it holds.

    inner: the docstrings of packages, whose maps stand in their lines' places.
    """
    lines = []
    for indent, name in lines_of(text):
        lines += [(indent, name), *((indent + deeper, below) for deeper, below in lines_of(inner.get(name, "")))]
    found, inside = {}, []                              # inside: the packages that a line is in, with their indents
    for indent, name in [*lines, (0, "")]:
        while inside and inside[-1][0] >= indent:
            found[inside.pop()[1]] = len(found)
        inside.append((indent, f"{inside[-1][1]}.{name}" if inside else name))
    return found


def docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")), clean=False) or ""


PLACES = places(course_lib.__doc__, {path.parent.name: docstring(path) for path in PACKAGE.glob("*/__init__.py")})


def module(path: Path) -> str:
    """The dotted name of a file's module within course_lib; of a package's __init__.py the package's."""
    return ".".join(part for part in path.relative_to(PACKAGE).with_suffix("").parts if part != "__init__")


def on_the_map(name: str) -> str:
    """The line of the map that a module has: its own or that of a pattern, such as chapter_*."""
    return name if name in PLACES else re.sub(r"chapter_\d\d$", "chapter_*", name)


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
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names |= {argument.value for argument in node.args if isinstance(argument, ast.Constant)}
    return names


def neighbours(path: Path, modules: set[str]) -> set[str]:
    """The modules of course_lib that a file imports: each the longest name among `modules` that its import begins with."""
    found = set()
    for name in imported(path):
        parts = name.split(".")
        while len(parts) > 1 and ".".join(parts[1:]) not in modules:
            parts.pop()
        if parts[0] == "course_lib" and len(parts) > 1:
            found.add(".".join(parts[1:]))
    return found


@pytest.mark.parametrize("path", FILES, ids=module)
def test_a_module_imports_only_what_stands_above_it_on_the_map(path):
    name, known = module(path), {module(file) for file in FILES}
    assert on_the_map(name) in PLACES, f"{name} is not on the map of its package"
    below = {other for other in neighbours(path, known) - {name} if PLACES[on_the_map(other)] >= PLACES[on_the_map(name)]}
    assert not below, f"{name} imports {sorted(below)}, which stand below it on the map"


def test_the_map_names_no_module_that_is_gone():
    there = {on_the_map(module(path)) for path in FILES}
    assert PLACES.keys() - there == set()


def test_a_package_stands_below_what_it_holds_and_nothing_else_stands_between():
    found = places("Rooms:\n    one    the first\n    house    rooms\n    four    the last\n  not a line    of it\n",
                   {"house": "Its map:\n    two    below the first\n    attic    a room\n      three    in it\n"})
    assert list(found) == ["one", "house.two", "house.attic.three", "house.attic", "house", "four"]
    assert list(found.values()) == sorted(found.values())


def test_imports_are_found_in_every_form(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "module.py").write_text(
        "import course_lib.one\nfrom course_lib.two import x\nfrom course_lib import three\n"
        "from . import four\nfrom .five import y\n\ndef late():\n    from course_lib import six\n"
        "    importlib.import_module('course_lib.seven')\n"
    )
    modules = {"one", "two", "three", "four", "five", "six", "seven", "room", "room.sibling"}
    assert neighbours(tmp_path / "module.py", modules) == {"one", "two", "three", "four", "five", "six", "seven"}
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "module.py").write_text("from . import sibling, other\nfrom .. import seven\nimport torch\n")
    assert neighbours(tmp_path / "room" / "module.py", modules) == {"room", "room.sibling", "seven"}


@pytest.mark.parametrize("path", FILES, ids=module)
def test_a_module_says_what_it_holds(path):
    assert docstring(path), f"{path.name} has no docstring"


@pytest.mark.parametrize("path", FILES, ids=module)
def test_a_long_module_begins_with_the_reason(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 450 or lines[0].startswith("# Long: "), f"{module(path)} has {len(lines)} lines and gives no reason"


def test_only_widgets_imports_ipywidgets():
    assert [module(path) for path in FILES if any(name.startswith("ipywidgets") for name in imported(path))] == ["widgets"]


def test_no_room_of_machinery_is_crowded():
    rooms = {path.parent for path in FILES} - {PACKAGE, PACKAGE / "classroom" / "banks"}
    assert {room.name: len(list(room.glob("*.py"))) for room in rooms if len(list(room.glob("*.py"))) > 12} == {}


def test_the_map_itself_imports_nothing():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    assert len(tree.body) == 1, "course_lib/__init__.py is its docstring, nothing else"


def test_importing_the_package_is_free():
    code = "import sys, course_lib; print(sorted({'torch', 'numpy', 'ipywidgets', 'matplotlib'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_library_can_be_read_through():
    """With all fifteen chapters in it; what grows with every chapter, measurement and model is read where it is needed."""
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in FILES
                if path.relative_to(PACKAGE).parts[0] not in GROWING)
    assert lines <= 4500, f"course_lib has {lines} lines outside {', '.join(sorted(GROWING))} and the map"
