"""`course build`: from notebooks/source/NN_name.py make the learner's notebook and the solved, executed one.

A source is a jupytext percent script that also runs by itself. Its header and cells carry:

    # ---
    # course: {title: DDIM and fast solvers, minutes: 75, needs: [2, 3], shows: 1000 steps become 30}
    # ---
    # %% exercise="4.2"         a function with `### BEGIN SOLUTION two lines: eps, then x_s` ... `### END SOLUTION`,
                                which a learner gets as `raise NotImplementedError("two lines: eps, then x_s")`
    # %% check="4.2"            # NBVAL_CHECK_OUTPUT
                                my_ddim = exercise("4.2", my_ddim)
    # %% predict="4.1"          predict("4.1", "b")       a learner gets "?" for the letter
"""

import base64
import copy
import io
import itertools
import re
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import jupytext
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert.preprocessors import ClearOutputPreprocessor
from nbformat import NotebookNode, v4
from nbgrader.preprocessors import ClearSolutions
from PIL import Image, ImageChops, ImageStat

from .. import banks, notebooks
from ..learner import copies

LARGEST = 450_000                       # bytes of a built notebook
SECONDS_A_CELL = 600
_FORMAT = {"extension": ".py", "format_name": "percent",
           "root_level_metadata_as_raw_cell": False, "comment_magics": False}
_BEGIN, _END = "### BEGIN SOLUTION", "### END SOLUTION"
_LANGUAGE = {"name": "python"}
_COURSE_KEYS = {"title", "minutes", "needs", "shows"}


def build(root: Path, numbers: Iterable[int] = (), force: bool = False, say: Callable[[str], object] = print) -> None:
    """Build the chapters of `numbers` (all by default); a solution whose code and text are built is not run again.

    Raises ValueError that lists everything wrong with a source, or the cell that failed.
    """
    for source in _sources(root, numbers):
        made = Chapter(source)
        solution, learner = _targets(root, source)
        if force or not _is_current(solution, made.solution()):
            say(f"{source.stem}: running the solution")
            for warning in _execute(root, source.stem, executed := made.solution()):
                say(f"{source.stem}: {warning}")
            _expect_solved(source.stem, executed)
            _write(root, solution, executed, say)
        if not _is_text(learner, made.learner()):
            _write(root, learner, made.learner(), say)
        say(f"{source.stem}: built")


def outdated(root: Path, numbers: Iterable[int] = ()) -> list[str]:
    """What is committed but not what the sources build, one sentence each; executes nothing. Figures may differ."""
    found = []
    for source in _sources(root, numbers):
        made = Chapter(source)
        solution, learner = _targets(root, source)
        if not _is_current(solution, made.solution()):
            found.append(f"{solution.relative_to(root)} is not what {source.name} builds")
        if not _is_text(learner, made.learner()):
            found.append(f"{learner.relative_to(root)} is not what {source.name} builds")
    if not numbers:
        known = {source.stem for source in _sources(root, ())}
        built = notebooks.chapters(root / "notebooks") + notebooks.chapters(root / "notebooks" / "solutions")
        found += [f"{path.relative_to(root)} has no source" for path in built if path.stem not in known]
    return found


class Chapter:
    """A source and the two notebooks it stands for. Raises ValueError that lists all that is wrong with the source."""

    def __init__(self, source: Path):
        self.name, self.number = source.stem, notebooks.number(source)
        try:
            parsed = jupytext.read(source, fmt=_FORMAT)
        except Exception as error:          # the YAML and percent parsers raise many kinds
            raise ValueError(f"{source} cannot be read as a percent script: {error}") from error
        course = parsed.metadata.get("jupytext", {}).get("root_level_metadata", {}).get("course", {})
        self.cells = _named(parsed.cells, self.number)
        problems = [*_header_problems(course), *_problems(self._notebook({}), self.number)]
        if problems:
            raise ValueError("\n  ".join([f"{source.name}:", *problems]))
        self.course = {key: course[key] for key in sorted(_COURSE_KEYS)}

    def solution(self) -> NotebookNode:
        """The solved notebook, not executed: the marker lines are gone."""
        notebook = self._notebook(self.course)
        for cell in notebook.cells:
            lines = cell.source.split("\n")
            cell.source = "\n".join(line for line in lines if not line.strip().startswith((_BEGIN, _END)))
        return notebook

    def learner(self) -> NotebookNode:
        """The notebook with its exercises blank, and under each check cell the text that is to appear."""
        notebook, _ = StubFromMarker(enforce_metadata=False).preprocess(self._notebook({}), {})
        for id, cell in notebooks.by_role(notebook, "predict").items():
            cell.source = re.sub(_prediction_call(id), r'\g<1>"?")', cell.source)
        counts = {cell.id: count for count, cell in enumerate(_code_cells(notebook), start=1)}
        for id, cell in notebooks.by_role(notebook, "check").items():
            cell.outputs = [v4.new_output("stream", name="stdout", text=f"{id} ✓ solved\n")]
            cell.execution_count = counts[cell.id]      # nbval compares only cells that have run
        titles = banks.exercises(self.number)
        given = {id: {"title": titles[id].title, "given": notebooks.digest(cell.source)}
                 for id, cell in notebooks.by_role(notebook, "exercise").items()}
        notebook.metadata["course"] = {**self.course, "exercises": given, "version": notebooks.version(notebook)}
        return notebook

    def _notebook(self, course: dict) -> NotebookNode:
        metadata = {"course": course,
                    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
                    "language_info": _LANGUAGE}
        return v4.new_notebook(cells=copy.deepcopy(self.cells), metadata=copy.deepcopy(metadata))


class StubFromMarker(ClearSolutions):
    """nbgrader's ClearSolutions, with the words after each begin marker as the stub's message."""

    def _replace_solution_region(self, cell: NotebookNode, language: str) -> bool:
        placeholder = f"### {notebooks.digest(cell.source)}"
        self.code_stub = {language: placeholder}
        messages = _messages(cell.source)
        replaced = super()._replace_solution_region(cell, language)
        for message in messages:
            cell.source = cell.source.replace(placeholder, f'raise NotImplementedError("{message}")', 1)
        return replaced


# --- reading a source ------------------------------------------------------------------------------------------------

def _named(cells: list[NotebookNode], chapter: int) -> list[NotebookNode]:
    """Fresh cells with stable ids: by role where there is one, else from the chapter and the cell's text."""
    named, seen = [], {}
    for cell in cells:
        role = next((role for role in notebooks.ROLES if role in cell.metadata), None)
        metadata = {key: value for key, value in cell.metadata.items()
                    if key not in notebooks.ROLES and not key.startswith("lines_to_")}      # jupytext's blank lines
        if role:
            id = notebooks.cell_id(role, str(cell.metadata[role]))
            metadata["deletable"] = False               # a learner cannot lose it by a slip of the keyboard
        else:
            id = f"{chapter:02d}-{notebooks.digest(cell.cell_type, cell.source)}"
        if role == "check":
            metadata["editable"] = False
        seen[id] = seen.get(id, 0) + 1
        if seen[id] > 1:
            id = f"{id}-{seen[id]}"
        make = {"code": v4.new_code_cell, "markdown": v4.new_markdown_cell, "raw": v4.new_raw_cell}[cell.cell_type]
        named.append(make(cell.source, id=id, metadata=metadata))
    return named


def _header_problems(course: dict) -> Iterable[str]:
    if not isinstance(course, dict) or set(course) != _COURSE_KEYS:
        wanted = ", ".join(f"{key}: ..." for key in sorted(_COURSE_KEYS))
        yield f"the header needs `course: {{{wanted}}}`, it has {course}"


def _problems(notebook: NotebookNode, chapter: int) -> Iterable[str]:
    """All that is wrong with the cells of a chapter, one sentence each."""
    exercises, checks, predictions = (notebooks.by_role(notebook, role) for role in notebooks.ROLES)
    order = [cell.id for cell in notebook.cells]
    repeated = [id for id in order if re.fullmatch(r"(exercise|check|predict)-\d+-\d+-\d+", id)]
    yield from (f"there is a second {id.rsplit('-', 1)[0]}" for id in repeated)
    yield from _differences("exercise", exercises, banks.exercises(chapter))
    yield from _differences("prediction", predictions, banks.predictions(chapter))
    yield from (f"check {id} has no exercise cell" for id in checks if id not in exercises)
    for id, cell in exercises.items():
        if id not in checks:
            yield f"exercise {id} has no check cell"
        elif order.index(cell.id) > order.index(checks[id].id):
            yield f"check {id} stands before its exercise"
        if not _messages(cell.source):
            yield f"exercise {id} has no {_BEGIN}"
    for id, cell in checks.items():
        if not re.fullmatch(rf'# NBVAL_CHECK_OUTPUT\n(\w+) = exercise\("{re.escape(id)}", \1\)', cell.source.strip()):
            yield f'check {id} must read `# NBVAL_CHECK_OUTPUT`, then `my_name = exercise("{id}", my_name)`'
    for id, cell in predictions.items():
        choice = re.search(_prediction_call(id), cell.source)
        if not choice:
            yield f'predict {id} must read `predict("{id}", "b")`'
        elif id in banks.predictions(chapter) and choice[2] not in banks.predictions(chapter)[id].options:
            yield f"predict {id} chooses {choice[2]}, which is no option"
        if not any(f'reveal("{id}")' in later.source for later in notebook.cells[order.index(cell.id):]):
            yield f'prediction {id} is never followed by `reveal("{id}")`'
    for cell in notebook.cells:
        yield from _marker_problems(cell)


def _differences(kind: str, cells: dict, bank: dict) -> Iterable[str]:
    yield from (f"{kind} {id} is not in the bank" for id in cells if id not in bank)
    yield from (f"{kind} {id} is in the bank, not in the chapter" for id in bank if id not in cells)


def _marker_problems(cell: NotebookNode) -> Iterable[str]:
    open = False
    for line in cell.source.split("\n"):
        if _BEGIN in line:
            if open:
                yield f"{cell.id}: {_BEGIN} within a solution"
            if not line.startswith(" " * 4):
                yield f"{cell.id}: {_BEGIN} must stand inside the function, so that the stub fails when it is called"
            if '"' in line or "\\" in line:
                yield f"{cell.id}: the words after {_BEGIN} become a string; use no double quotes and no backslashes"
            open = True
        elif _END in line:
            if not open:
                yield f"{cell.id}: {_END} without a beginning"
            open = False
    if open:
        yield f"{cell.id}: {_BEGIN} without an end"
    if _BEGIN in cell.source and not cell.id.startswith("exercise-"):
        yield f"{cell.id}: a solution outside an exercise cell"


def _messages(source: str) -> list[str]:
    return [line.split(_BEGIN)[1].strip() for line in source.split("\n") if _BEGIN in line]


def _prediction_call(id: str) -> str:
    return rf'(predict\("{re.escape(id)}", )"([a-z])"\)'


# --- running and writing ---------------------------------------------------------------------------------------------

def _execute(root: Path, name: str, notebook: NotebookNode) -> list[str]:
    """Run the notebook in place, in an empty folder, at scale quick; returns what its cells wrote to stderr."""
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(notebook, timeout=SECONDS_A_CELL, kernel_name="python3", record_timing=False,
                                store_widget_state=False, coalesce_streams=True,
                                resources={"metadata": {"path": folder}})
        try:
            client.execute(env=notebooks.environment(root, COURSE_SCALE="quick", COURSE_WEIGHTS=folder))
        except CellExecutionError as error:
            raise ValueError(f"{name}: a cell of the solution failed\n{error}") from error
    notebook.metadata["language_info"] = dict(_LANGUAGE)
    warnings = []
    for cell in _code_cells(notebook):
        for stream in (output for output in cell.outputs if "text" in output):
            stream.text = re.sub(r"[^\n]*\r(?!\n)", "", stream.text)         # what a carriage return wipes from the screen
        cell.outputs = [output for output in cell.outputs if not _is_progress(output)]
        for data in (output.data for output in cell.outputs if "image/png" in output.get("data", {})):
            data["image/png"] = _light(data["image/png"])
    if without := _describe(notebook):
        raise ValueError(f"{name}: the text below a picture must begin with its description in italics: {', '.join(without)}")
    for cell in _code_cells(notebook):
        warnings += [f"stderr of {cell.id}: {output.text.strip()}" for output in cell.outputs
                     if output.get("name") == "stderr"]
    return warnings


def _describe(notebook: NotebookNode) -> list[str]:
    """Give every picture its alternative text; returns the ids of cells with a picture that has none.

    That is what the picture came with, and the paragraph in italics with which the next text begins. Where there are several
    pictures before it, the paragraphs are shared out in order if there is one for each, else the first is for all.
    """
    waiting, without = [], []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            waiting += [(cell.id, output.metadata.setdefault(kind, NotebookNode()))
                        for output in cell.outputs if (kind := _picture(output))]
        elif waiting:
            words = _in_italics(cell.source)
            words = words if len(words) == len(waiting) else (words[:1] or [""]) * len(waiting)
            for (id, about), text in zip(waiting, words, strict=True):
                about["alt"] = " ".join(filter(None, (about.get("alt"), text)))
                without += [id] * (not about["alt"])
            waiting = []
    return without + [id for id, about in waiting if not about.get("alt")]


def _picture(output: NotebookNode) -> str:
    """The MIME type of an output's picture, "" where it has none."""
    return next((kind for kind in output.get("data", {}) if kind.startswith("image/")), "")


def _in_italics(markdown: str) -> list[str]:
    """The paragraphs in italics with which a markdown cell begins, each as one line of plain words."""
    paragraphs = (" ".join(p.split()) for p in markdown.split("\n\n"))
    return [re.sub(r"[*`$]", "", p) for p in itertools.takewhile(lambda p: re.fullmatch(r"\*[^*\s].*[^*]\*", p), paragraphs)]


def _light(png: str) -> str:
    """The same figure (base64) with few colours: a third of the size, and no difference that the eye can find.

    24 do for lines, text and grey pictures; 64 are kept where 24 would be off by a grey level or more on average.
    """
    picture, smaller = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"), io.BytesIO()
    for colours in (24, 64):
        light = picture.quantize(colours, kmeans=4, dither=Image.Dither.NONE)
        if max(ImageStat.Stat(ImageChops.difference(picture, light.convert("RGB"))).mean) < 1:
            break
    light.save(smaller, "PNG", optimize=True)
    return base64.b64encode(smaller.getvalue()).decode("ascii")


def _is_progress(output: NotebookNode) -> bool:
    """A progress bar, gone or still there, or a widget: neither can be seen in a stored notebook."""
    text = output.get("text", "something else")
    bar = output.get("name") == "stderr" and re.search(r"\d+%\||\d+it \[", text)
    return not text.strip() or bool(bar) or "application/vnd.jupyter.widget-view+json" in output.get("data", {})


def _expect_solved(name: str, executed: NotebookNode) -> None:
    wrong = [notebooks.printed(cell).strip() or f"{id} printed nothing" for id, cell in _unsolved(executed)]
    if wrong:
        raise ValueError("\n  ".join([f"{name}: the course's own solution is not accepted:", *wrong]))


def _unsolved(notebook: NotebookNode) -> list[tuple[str, NotebookNode]]:
    return [(id, cell) for id, cell in notebooks.by_role(notebook, "check").items()
            if notebooks.printed(cell) != f"{id} ✓ solved\n"]


def _is_current(path: Path, built: NotebookNode) -> bool:
    """Has the committed solution the code and text that is built now, and solved checks?"""
    if not path.is_file():
        return False
    committed = notebooks.read(path)
    if _unsolved(committed):
        return False
    without_outputs, _ = ClearOutputPreprocessor().preprocess(committed, {})
    return notebooks.text(without_outputs) == notebooks.text(built)


def _is_text(path: Path, built: NotebookNode) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == notebooks.text(built)


def _write(root: Path, path: Path, notebook: NotebookNode, say: Callable[[str], object]) -> None:
    """Write a built notebook; one that is not as it was built, so that somebody worked in it, is moved to my/."""
    size = len(notebooks.text(notebook).encode("utf-8"))
    if size > LARGEST:
        raise ValueError(f"{path.name} would have {size:,} bytes, the limit is {LARGEST:,}: draw smaller figures")
    if path.exists() and not _is_as_built(path):
        kept = copies.keep(path, root / "my")
        say(f"{path.stem}: somebody worked in {path.relative_to(root)}; that is now {kept.relative_to(root)}")
    notebooks.write(path, notebook)


def _is_as_built(path: Path) -> bool:
    """Has nobody worked in it? Jupyter saves more about the language than build does; only a learner's has a version."""
    try:
        notebook = notebooks.read(path)
    except ValueError:                      # damaged, or two versions merged
        return False
    if "version" in notebook.metadata.get("course", {}):
        return copies.is_given(notebook)
    return notebook.metadata.get("language_info") == _LANGUAGE


def _sources(root: Path, numbers: Iterable[int]) -> list[Path]:
    return notebooks.chapters(root / "notebooks" / "source", tuple(numbers), ".py")


def _targets(root: Path, source: Path) -> tuple[Path, Path]:
    """The solution and the learner's notebook that a source builds."""
    name = source.stem + ".ipynb"
    return root / "notebooks" / "solutions" / name, root / "notebooks" / name


def _code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]
