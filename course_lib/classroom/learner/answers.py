"""A learner's answers in a notebook: found by what they define and by the check that follows, whatever became of the cells.

Cells are split, merged, copied and written anew, and other editors drop or renumber their ids. So a notebook is taken apart
into its top-level statements. What also stands in the course's own notebook is set aside; of what is left, the answer to an
exercise is the last statement before its check that defines the name that the check asks for.
"""

import ast
import builtins
import functools
import re
import symtable
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

from .. import notebooks

SOLVED, WRONG, UNTRIED = "✓", "✗", "·"
_ALWAYS_THERE = {*dir(builtins), "get_ipython", "display", "In", "Out"}
_CALLS = ("exercise", "predict", "reveal")


@dataclass(frozen=True)
class Task:
    """An exercise of a chapter: its id, the name that its check asks for, the names that the chapter defines before it."""

    id: str
    name: str
    known: frozenset[str]


@dataclass(frozen=True)
class Found:
    """What a learner's notebook holds for one exercise.

    source: the answer, for the exercise's cell; None if there is none.    where: where it lies, in words.
    own: code of the learner's other cells that the answer uses, in order.
    left: where further answers lie that were not taken.    stub: is at least the untouched stub there?
    lacking: names that it uses and that neither it nor the chapter defines before it, and why, in words.
    shadowed: where the learner gave names of the chapter that it uses another value, in words; the chapter's are taken.
    """

    id: str
    source: str | None = None
    where: str = ""
    own: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    stub: bool = False
    lacking: tuple[tuple[str, str], ...] = ()
    shadowed: tuple[str, ...] = ()


def tasks(pristine: dict) -> dict[str, Task]:
    """The exercises of a chapter as the course ships it, by id, in order."""
    known, names = {}, set()
    for index, cell in enumerate(pristine["cells"]):
        known[cell.get("id")] = frozenset(names)
        names |= {name for statement in statements(index, cell) for name in statement.binds}
    exercises, checking = (notebooks.by_role(pristine, role) for role in ("exercise", "check"))
    named = {id: re.search(r"(\w+) = exercise\(", cell["source"])[1] for id, cell in checking.items()}
    return {id: Task(id, named[id], known[cell["id"]]) for id, cell in exercises.items()}


def find(pristine: dict, notebook: dict) -> dict[str, Found]:
    """For each exercise of the chapter what `notebook` holds for it."""
    work = _Work(pristine, notebook)
    return {id: work.found(task) for id, task in work.tasks.items()}


def strangers(pristine: dict, notebook: dict) -> dict[str, str]:
    """The answers whose exercise the chapter no longer has: id -> where in `notebook` it lies."""
    work, known = _Work(pristine, notebook), notebooks.by_role(pristine, "exercise")
    named = {id: ast.unparse(call.args[1]) for statement in work.all for name, id, call in statement.calls
             if name == "exercise" and len(call.args) == 2}
    cells = {id: cell for id, cell in notebooks.by_role(notebook, "exercise").items() if not work.is_given(id, cell)}
    ids = dict.fromkeys(id for id in [*named, *cells] if id not in known)
    held = {id: [s.cell for s in work.own if named.get(id) in s.binds] for id in ids}
    held |= {id: [notebook["cells"].index(cells[id])] for id in ids if id in cells and not held[id]}
    return {id: work.place(held[id][-1]) for id in ids if held[id]}


def predictions(notebook: dict) -> dict[str, list[tuple[str, str]]]:
    """Every choice that the notebook makes, by prediction id, in order: (the choice as code, where it lies)."""
    chosen: dict[str, list[tuple[str, str]]] = {}
    for index, cell in enumerate(notebook["cells"]):
        calls = (call for statement in statements(index, cell) for call in statement.calls)
        for name, id, call in calls:
            if name == "predict" and len(call.args) == 2 and (choice := ast.unparse(call.args[1])) != "'?'":
                chosen.setdefault(id, []).append((choice, place(notebook, index)))
    return chosen


def chapter(notebook: dict) -> int | None:
    """The number of the chapter that a notebook is a copy of, from its metadata or else from its calls; None if unknown."""
    listed = notebooks.course(notebook).get("exercises")
    called = (id for index, cell in enumerate(notebook["cells"]) for s in statements(index, cell) for _, id, _ in s.calls)
    ids = [*(listed if isinstance(listed, dict) else ()), *called]
    return next((int(id.split(".")[0]) for id in ids if re.fullmatch(r"\d+\.\d+", id)), None)


def checks(notebook: dict, id: str) -> list[dict]:
    """The cells that check exercise `id`, in order."""
    return [cell for index, cell in enumerate(notebook["cells"])
            if any((name, called) == ("exercise", id) for s in statements(index, cell) for name, called, _ in s.calls)]


def read_verdict(id: str, printed: str) -> tuple[str, str]:
    """The state and the message in what the check of exercise `id` printed; ("", "") if it printed no verdict.

    The check prints one line. Whatever else was printed, by a process in the background perhaps, a success counts only
    where no failure stands beside it.
    """
    said = re.search(rf"(?<![\d.]){re.escape(id)} ([✗…]) (.*?)(?: The chapter goes on.*)?$", printed, re.MULTILINE)
    if said:
        return (WRONG if said[1] == "✗" else UNTRIED), said[2]
    return (SOLVED, "solved") if f"{id} ✓ solved" in printed.splitlines() else ("", "")


def place(notebook: dict, index: int) -> str:
    """Where a cell lies, in words: its number, counted from 1, and its first line of code."""
    lines = [line.strip() for line in notebook["cells"][index]["source"].splitlines()]
    first = re.split(r"\s+#", next((line for line in lines if line and not line.startswith(("#", "%"))), ""))[0]
    text = "" if notebook["cells"][index]["cell_type"] == "code" else ", a text cell"
    return f"cell {index + 1}{text} (`{first[:60]}`)"


# --- statements ------------------------------------------------------------------------------------------------------

@dataclass(frozen=True, eq=False)
class Statement:
    """Top-level code of a cell: one statement, or several that share a line, or a whole cell that is not valid Python.

    binds: names it defines.    changes: names whose objects it changes in place.    uses: names it may look up, now or
    later, when its functions run; uses_now: those that must be there at once.    calls: calls of exercise, predict and
    reveal, as (function, id, call).    dump: the same for the same code, whatever its blanks and comments.
    """

    cell: int
    line: int
    text: str
    dump: str
    binds: frozenset[str]
    changes: frozenset[str] = frozenset()
    uses: frozenset[str] = frozenset()
    uses_now: frozenset[str] = frozenset()
    calls: tuple[tuple[str, str, ast.Call], ...] = ()
    broken: bool = False

    @property
    def order(self) -> tuple[int, int]:
        return self.cell, self.line


def statements(index: int, cell: dict) -> list[Statement]:
    """The top-level statements of a code cell, which is the notebook's cell number `index`, from 0; of others, none."""
    return list(_taken_apart(index, cell["source"])) if cell["cell_type"] == "code" else []


@functools.lru_cache(maxsize=4096)
def _taken_apart(index: int, code: str) -> list[Statement]:
    for source in (code, _without_magics(code)):
        try:
            with warnings.catch_warnings(action="ignore"):      # "\s" in a string is the learner's business
                return [_statement(index, *group) for group in _groups(source)]
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
    return [_broken(index, code)]


def _without_magics(source: str) -> str:
    """The cell as IPython reads it: lines that begin with % or ! become Python."""
    source = re.sub(r"\A\s*%%(?:time|capture|prun)\b.*", "", source)         # these run the rest of the cell as it is
    if not re.search(r"(?m)^\s*[%!]|\?\s*$|=\s*[%!]", source):
        return source
    from IPython.core.inputtransformer2 import TransformerManager

    return TransformerManager().transform_cell(source)


def _groups(source: str) -> list[tuple[int, str, list[ast.stmt]]]:
    """(first line, text with the comments above, nodes) for each group of statements that share no line with another."""
    lines, groups, end = re.split(r"\r\n|\r|\n", source), [], 0
    for node in ast.parse(source).body:
        start = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
        if start <= end:
            first, _, nodes = groups.pop()
        else:
            first, nodes = end + 1, []
        end = node.end_lineno
        groups.append((first, "\n".join(lines[first - 1:end]).strip("\n"), [*nodes, node]))
    return groups


def _statement(index: int, line: int, text: str, nodes: list[ast.stmt]) -> Statement:
    top = symtable.symtable(text, "cell", "exec")
    now = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_referenced()}
    later = {symbol.get_name() for table in _tables(top) for symbol in table.get_symbols()
             if symbol.is_global() and (symbol.is_referenced() or symbol.is_declared_global())}    # global n; n += 1
    binds = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    stars = {"*" for node in nodes for part in ast.walk(node) if isinstance(part, ast.alias) and part.name == "*"}
    return Statement(index, line, text, " ".join(map(ast.dump, nodes)), frozenset(binds | stars), _changed(nodes),
                     frozenset(now | later), frozenset(now), tuple(_calls(nodes)))


def _tables(table: symtable.SymbolTable) -> Iterable[symtable.SymbolTable]:
    for child in table.get_children():
        yield child
        yield from _tables(child)


def _changed(nodes: list[ast.stmt]) -> frozenset[str]:
    """Names whose objects are changed in place: `table[3] = 5`, `table.rows += 1`, `table.append(5)`."""
    changed = set()
    for part in (part for node in nodes for part in _at_once(node)):
        if isinstance(part, (ast.Subscript, ast.Attribute)) and isinstance(part.ctx, (ast.Store, ast.Del)):
            changed.add(_base(part))
        if isinstance(part, ast.Expr) and isinstance(part.value, ast.Call) and isinstance(part.value.func, ast.Attribute):
            changed.add(_base(part.value.func))
    return frozenset(filter(None, changed))


def _at_once(node: ast.AST) -> Iterable[ast.AST]:
    """The parts of a statement that run when it runs, not when its functions are called."""
    yield node
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
        for child in ast.iter_child_nodes(node):
            yield from _at_once(child)


def _base(node: ast.expr) -> str | None:
    while isinstance(node, (ast.Subscript, ast.Attribute)):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def _calls(nodes: list[ast.stmt]) -> Iterable[tuple[str, str, ast.Call]]:
    for call in (part for node in nodes for part in ast.walk(node) if isinstance(part, ast.Call) and part.args):
        name = getattr(call.func, "id", getattr(call.func, "attr", None))
        id = getattr(call.args[0], "value", None)
        if name in _CALLS and isinstance(id, str):
            yield name, id, call


def _broken(index: int, source: str) -> Statement:
    """A cell that is not valid Python, whole; what it would define is read from the beginnings of its lines."""
    lines = re.finditer(r"(?m)^(?:(?:async\s+)?def|class)\s+(\w+)|^(\w+)\s*=(?!=|\s*exercise\()", source)
    return Statement(index, 0, source, source, frozenset(match[1] or match[2] for match in lines), broken=True)


# --- one learner's notebook ------------------------------------------------------------------------------------------

class _Work:
    """A learner's notebook taken apart, beside the chapter that it is a copy of."""

    def __init__(self, pristine: dict, notebook: dict):
        self.notebook = notebook
        shipped = [s for index, cell in enumerate(pristine["cells"]) for s in statements(index, cell)]
        self.tasks, self.shipped = tasks(pristine), {s.dump for s in shipped}
        self.chapter = set().union(*(s.binds for s in shipped))
        self.cells = [statements(index, cell) for index, cell in enumerate(notebook["cells"])]
        self.all = [statement for cell in self.cells for statement in cell]
        given = [cell for id, cell in notebooks.by_role(notebook, "exercise").items() if self.is_given(id, cell)]
        untouched = {index for index, cell in enumerate(notebook["cells"]) if any(cell is one for one in given)}
        self.own = [s for s in self.all if s.dump not in self.shipped and not s.calls and s.cell not in untouched]

    def is_given(self, id: str, cell: dict) -> bool:
        """Is an exercise's cell just as it was handed out, in whatever version of the course that was?"""
        listed = notebooks.course(self.notebook).get("exercises")
        entry = listed.get(id) if isinstance(listed, dict) else None
        return isinstance(entry, dict) and entry.get("given") == notebooks.digest(cell["source"])

    def place(self, index: int) -> str:
        return place(self.notebook, index)

    def found(self, task: Task) -> Found:
        """The answer to one exercise, with all that it uses."""
        check = max((s.order for s in self.all for name, id, _ in s.calls if (name, id) == ("exercise", task.id)), default=None)
        defining = sorted([s for s in self.own if task.name in s.binds] + self._handed_over(task), key=lambda s: s.order)
        defining = defining or self._by_cell(task)
        stub = any(task.name in s.binds for s in self.all if not s.calls)
        if not defining:
            return Found(task.id, left=tuple(self._in_text(task)), stub=stub)
        chosen = ([s for s in defining if check and s.order <= check] or defining)[-1]
        whole = self._is_clean(task, chosen)
        roots = [s for s in self.cells[chosen.cell] if s.dump not in self.shipped] if whole else [chosen]
        end = check or (len(self.cells), 0)
        finish = [s for s in self.own if task.name in s.changes and chosen.order < s.order < end and s not in roots]
        roots += finish
        needed = frozenset().union(*(s.uses for s in roots)) - task.known - _ALWAYS_THERE
        if task.name not in chosen.uses_now:
            needed -= {task.name}
        used = self._used(needed, roots, task, end)
        after = sorted([*finish, *self._after(task, chosen, roots, used)], key=lambda s: s.order)
        source = self.notebook["cells"][chosen.cell]["source"] if whole else chosen.text
        left = [s.cell for s in defining if s not in used and s.dump != chosen.dump and not (whole and s.cell == chosen.cell)]
        return Found(task.id, "\n".join([source, *(s.text for s in after)]), self.place(chosen.cell),
                     tuple(s.text for s in used if s not in after),
                     (*map(self.place, dict.fromkeys(left)), *self._in_text(task)), stub,
                     tuple(self._lacking(task, roots, used)), tuple(self._shadowed(task, [*roots, *used])))

    def _handed_over(self, task: Task) -> list[Statement]:
        """What a check was given in place of the name it asks for, as in `exercise("4.2", another)`."""
        made = []
        for s in self.all:
            for name, id, call in s.calls:
                given = [*call.args[1:], *(keyword.value for keyword in call.keywords if keyword.arg == "function")]
                if (name, id) != ("exercise", task.id) or len(given) != 1:
                    continue
                [given] = given
                defined = {name for other in self.own for name in other.binds} - {task.name}
                if not isinstance(given, ast.Name) or given.id in defined:
                    text = f"{task.name} = {ast.unparse(given)}"
                    made.append(_statement(s.cell, s.line, text, ast.parse(text).body))
        return made

    def _by_cell(self, task: Task) -> list[Statement]:
        """The exercise's own cell, if it was changed: nothing else is left to tell an answer by."""
        cell = notebooks.by_role(self.notebook, "exercise").get(task.id)
        if cell is None or cell["cell_type"] != "code" or self.is_given(task.id, cell):
            return []
        return [s for s in self.own if self.notebook["cells"][s.cell] is cell][-1:]

    def _is_clean(self, task: Task, chosen: Statement) -> bool:
        """Does the cell hold this answer only, so that it can be taken as it stands?"""
        others = {other.name for other in self.tasks.values()} - {task.name}
        return all(not s.calls and not s.binds & others and (s.dump not in self.shipped or task.name in s.binds)
                   for s in self.cells[chosen.cell])

    def _used(self, needed: frozenset[str], roots: list[Statement], task: Task, check: tuple[int, int]) -> list[Statement]:
        """The statements that define or change what is needed, and what these need in turn, in order.

        Those before the exercise's check; one below it where nothing above defines the name.
        """
        able = [s for s in self.all if not s.broken and not s.calls and s not in roots]
        above = [s for s in able if s.order < check]
        below = [s for s in able if s.order > check and s.dump not in self.shipped]
        there = frozenset().union(*(s.binds for s in above))
        used: set[Statement] = set()
        while True:
            more = {s for s in above if (s.binds | s.changes) & needed} | {s for s in below if s.binds & (needed - there)}
            missing = needed - frozenset().union(*(s.binds for s in [*used, *more, *roots]))
            if missing - task.known:
                more |= {s for s in above if "*" in s.binds and s.dump not in self.shipped}
            if more <= used:
                return sorted(used, key=lambda s: s.order)
            used |= more
            needed = needed | frozenset().union(*(s.uses for s in more)) - task.known - _ALWAYS_THERE

    def _after(self, task: Task, chosen: Statement, roots: list[Statement], used: list[Statement]) -> list[Statement]:
        """Those of `used` that stay below the answer, as `SCALE = 2` does after `def answer(x, scale=SCALE)`.

        What it needs at once and nothing above it defines goes before it all the same, with what that needs in turn.
        """
        above, below = ([s for s in used if (s.order > chosen.order) == late] for late in (False, True))
        there = frozenset().union({task.name}, *(s.binds for s in above))
        early, at_once = [], frozenset().union(*(s.uses_now for s in roots)) - there
        while (more := [s for s in below if s.binds & at_once and task.name not in s.uses_now]) != early:
            early, at_once = more, at_once.union(*(s.uses for s in more)) - there
        return [s for s in below if s not in early]

    def _in_text(self, task: Task) -> list[str]:
        """Cells that define the name but are text, so that no kernel runs them."""
        texts = ((index, {**cell, "cell_type": "code"}) for index, cell in enumerate(self.notebook["cells"])
                 if cell["cell_type"] != "code")
        return [self.place(index) for index, cell in texts if not self.is_given(task.id, cell)
                and any(task.name in s.binds and s.dump not in self.shipped and not s.calls for s in statements(index, cell))]

    def _lacking(self, task: Task, roots: list[Statement], used: list[Statement]) -> Iterable[tuple[str, str]]:
        there = _ALWAYS_THERE.union(task.known, *(s.binds for s in [*roots, *used]), [one.name for one in self.tasks.values()])
        for name in sorted(frozenset().union(*(s.uses for s in [*roots, *used])) - there):
            own = [s for s in self.own if name in s.binds]
            if own:
                yield name, f"your answer uses `{name}`, defined in your {self.place(own[-1].cell)}, which is not valid Python"
            elif name in self.chapter:
                yield name, f"your answer uses `{name}`, which the chapter defines only after this exercise"
            else:
                yield name, (f"your answer uses `{name}`, which no cell of your notebook defines: was its cell deleted? "
                             "Define it in the exercise's cell")

    def _shadowed(self, task: Task, statements: list[Statement]) -> Iterable[str]:
        names = frozenset().union(*(s.uses for s in statements)) & task.known - {one.name for one in self.tasks.values()}
        for name in sorted(names):
            own = [s for s in self.own if name in s.binds and not s.text.lstrip().startswith(("from ", "import "))]
            if own:
                yield (f"your answer uses `{name}`, which your {self.place(own[-1].cell)} defines anew; "
                       "the check takes the chapter's: give yours another name")
