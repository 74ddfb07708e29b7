"""course build: what the two notebooks hold, when a solution runs again, and what is refused."""

import base64
import io
import subprocess
import sys

import matplotlib.pyplot as plt
import pytest
import torch
from nbformat import v4
from PIL import Image

from course_lib.classroom import notebooks
from course_lib.classroom.author import build

SOLVED = "97_lines.ipynb"


def learner_of(course):
    return notebooks.read(course / "notebooks" / SOLVED)


def solution_of(course):
    return notebooks.read(course / "notebooks" / "solutions" / SOLVED)


def rewrite(course, old, new):
    """Change the source; `old` must be there."""
    path = course / "notebooks" / "source" / "97_lines.py"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_the_source_runs_as_a_plain_script(course, tmp_path):
    result = subprocess.run([sys.executable, course / "notebooks" / "source" / "97_lines.py"], cwd=tmp_path,
                            env=notebooks.environment(course), capture_output=True, text=True, encoding="utf-8")
    assert result.stdout.splitlines() == [
        "97.1 noted: b", "97.1 ✓ b, as you predicted. It rises.", "97.1 ✓ solved", "97.2 ✓ solved"]


def test_cells_have_telling_stable_ids(course):
    ids = [cell.id for cell in learner_of(course).cells]
    assert ids == [cell.id for cell in solution_of(course).cells]
    assert [id for id in ids if not id.startswith("97-")] == [
        "predict-97-1", "exercise-97-1", "check-97-1", "exercise-97-2", "check-97-2"]


def test_the_learner_gets_stubs_and_expected_text(course):
    notebook = learner_of(course)
    exercise = notebooks.by_role(notebook, "exercise")["97.1"].source
    assert exercise == ('def my_line(x, slope):                      # (B, ...), (B,) -> (B, ...)\n'
                        '    raise NotImplementedError("one line: slope times x")')
    assert notebooks.by_role(notebook, "predict")["97.1"].source == 'predict("97.1", "?")'
    with_output = [cell.id for cell in notebook.cells if cell.get("outputs")]
    assert with_output == ["check-97-1", "check-97-2"]
    check = notebooks.by_role(notebook, "check")["97.1"]
    assert notebooks.printed(check) == "97.1 ✓ solved\n" and check.execution_count == 6


def test_the_solution_is_solved_and_executed(course):
    notebook = solution_of(course)
    assert notebooks.by_role(notebook, "exercise")["97.2"].source == "def my_shift(x, by):\n    return x + by"
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert notebook.cells[3].outputs[0].data["text/plain"] == "tensor([0, 1, 2])"


def test_metadata_are_few_and_say_what_the_chapter_is(course):
    metadata = learner_of(course).metadata
    assert set(metadata) == {"course", "kernelspec", "language_info"}
    assert metadata.language_info == {"name": "python"}
    assert metadata.course.title == "A fake chapter" and metadata.course.minutes == 5 and metadata.course.needs == []
    assert metadata.course.exercises["97.2"]["title"] == "A shift"
    assert all(set(cell.metadata) <= {"deletable", "editable"} for cell in solution_of(course).cells)


def test_building_again_changes_nothing_and_runs_nothing(course):
    before = {path: path.read_bytes() for path in (course / "notebooks").rglob("*.ipynb")}
    said = []
    build.build(course, say=said.append)
    assert said == ["97_lines: built"]
    assert before == {path: path.read_bytes() for path in (course / "notebooks").rglob("*.ipynb")}
    assert build.outdated(course) == []


def test_a_changed_source_is_outdated_until_it_is_built(course):
    rewrite(course, "Which way does it go", "Which way")
    assert build.outdated(course, [97]) == ["notebooks/solutions/97_lines.ipynb is not what 97_lines.py builds",
                                            "notebooks/97_lines.ipynb is not what 97_lines.py builds"]
    said = []
    build.build(course, [97], say=said.append)
    assert said == ["97_lines: running the solution", "97_lines: built"] and build.outdated(course) == []
    assert not (course / "my").exists()             # nobody had worked in what was replaced


def test_edits_of_built_notebooks_and_strays_are_found(course):
    path = course / "notebooks" / SOLVED
    notebook = notebooks.read(path)
    notebook.cells[0].source += "!"
    notebooks.write(path, notebook)
    notebooks.write(course / "notebooks" / "98_stray.ipynb", notebook)
    assert build.outdated(course) == ["notebooks/97_lines.ipynb is not what 97_lines.py builds",
                                      "notebooks/98_stray.ipynb has no source"]


@pytest.mark.parametrize("folder", ["notebooks", "notebooks/solutions"])
def test_what_somebody_did_in_a_built_notebook_is_moved_to_my(course, folder):
    path = course / folder / SOLVED
    built, notebook = path.read_bytes(), notebooks.read(path)
    notebooks.by_role(notebook, "exercise")["97.1"].source = "an answer"
    notebook.metadata["language_info"] = {"name": "python", "version": "3.12.1"}        # as Jupyter saves it
    notebooks.write(path, notebook)
    worked_in, said = path.read_bytes(), []
    build.build(course, say=said.append)
    assert path.read_bytes() == built and (course / "my" / "97_lines-old-1.ipynb").read_bytes() == worked_in
    assert f"97_lines: somebody worked in {folder}/97_lines.ipynb; that is now my/97_lines-old-1.ipynb" in said


def test_outputs_in_a_learners_notebook_are_work(course):
    notebook = learner_of(course)
    notebook.cells[3].outputs = solution_of(course).cells[3].outputs
    notebooks.write(course / "notebooks" / SOLVED, notebook)
    build.build(course, say=lambda line: None)
    assert notebooks.read(course / "my" / "97_lines-old-1.ipynb") == notebook


def test_warnings_are_told_and_progress_bars_dropped(course):
    rewrite(course, "my_shift(torch.zeros(2), 1)",
            "import warnings\n\nfrom tqdm import tqdm\n\nfrom course_lib.widgets import progress\n\n"
            "for _ in tqdm(range(3)):\n    torch.zeros(2)\n"
            "\n# %%\nfor _ in progress(range(3)):\n    torch.zeros(2)\n"
            "\n# %%\nfor _ in progress(range(3)):\n    torch.zeros(2)\nprint('done')\n"
            "\n# %%\nwarnings.warn('beware')")
    said = []
    build.build(course, say=said.append)
    assert any("beware" in line for line in said) and not any("it/s]" in line for line in said)
    *_, bar, gone, printed, _ = solution_of(course).cells
    assert bar.outputs == gone.outputs == [] and [output.text for output in printed.outputs] == ["done\n"]


@pytest.mark.parametrize("old, new, message", [
    ('# %% exercise="97.1"', "# %%", "check 97.1 has no exercise cell"),
    ('# %% check="97.1"', "# %%", "exercise 97.1 has no check cell"),
    ('# %% check="97.1"', '# %% check="97.2"', "there is a second check-97-2"),
    ("97.2", "97.3", "exercise 97.3 is not in the bank"),
    ("97.2", "97.3", "exercise 97.2 is in the bank, not in the chapter"),
    ("    ### END SOLUTION\n\n# %% check=\"97.1\"", "\n# %% check=\"97.1\"", "### BEGIN SOLUTION without an end"),
    ("    ### BEGIN SOLUTION one line\n", "", "### END SOLUTION without a beginning"),
    ("    ### BEGIN SOLUTION one line\n", "### BEGIN SOLUTION one line\n", "must stand inside the function"),
    ("SOLUTION one line\n", 'SOLUTION "one" line\n', "no double quotes"),
    ("# NBVAL_CHECK_OUTPUT\nmy_shift = ", "my_shift = ", "check 97.2 must read `# NBVAL_CHECK_OUTPUT`"),
    ('predict("97.1", "b")', 'predict("97.1", "d")', "predict 97.1 chooses d, which is no option"),
    ('predict("97.1", "b")', 'predict("97.1", "?")', 'predict 97.1 must read `predict("97.1", "b")`'),
    ('reveal("97.1")', "", 'prediction 97.1 is never followed by `reveal("97.1")`'),
    ('# %% predict="97.1"', "# %%", "prediction 97.1 is in the bank, not in the chapter"),
    ("minutes: 5, ", "", "the header needs `course: {minutes: ..., needs: ..., shows: ..., title: ...}`"),
    ("return x + by", "return x - by", "97.2 ✗ it must move to the right"),
    ("torch.arange(3)", "1 / 0", "ZeroDivisionError"),
    ("torch.arange(3)", "print(('x' * 50 + chr(10)) * 10_000)", "the limit is 450,000"),
])
def test_what_is_wrong_with_a_source_is_named(course, old, new, message):
    before = (course / "notebooks" / SOLVED).read_bytes()
    rewrite(course, old, new)
    with pytest.raises(ValueError) as refused:
        build.build(course, say=lambda line: None)
    assert message in str(refused.value)
    assert (course / "notebooks" / SOLVED).read_bytes() == before


def test_an_unknown_chapter_is_named(course):
    with pytest.raises(ValueError, match=r"no chapter 3 in .*source; it has 97"):
        build.build(course, [3])


def dots():
    figure, ax = plt.subplots(figsize=(3, 2))
    ax.scatter(*torch.randn(2, 500, generator=torch.Generator().manual_seed(0)), s=4, alpha=0.5)
    return figure


def rainbow():
    figure, ax = plt.subplots(figsize=(3, 2))
    ax.imshow([[k / 400 for k in range(400)]], cmap="hsv", aspect="auto")
    return figure


@pytest.mark.parametrize(("draw", "colours"), [(dots, 24), (rainbow, 64)])
def test_a_stored_figure_is_light_and_looks_the_same(draw, colours):
    stored, figure = io.BytesIO(), draw()
    figure.savefig(stored, format="png")
    plt.close(figure)
    before = base64.b64encode(stored.getvalue()).decode()
    after = build._light(before)
    pictures = [Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB") for png in (before, after)]
    pixels = [torch.tensor(list(picture.tobytes()), dtype=torch.float32) for picture in pictures]
    assert len(after) < len(before) / 2 and len(pictures[1].getcolors()) == colours
    assert (pixels[0] - pixels[1]).abs().mean() < 2                 # of 255 grey levels


def drawn(alt=None):
    about = {"image/png": {"width": 9, **({"alt": alt} if alt else {})}}
    return v4.new_output("display_data", {"image/png": "", "text/plain": ""}, metadata=about)


def code(*outputs):
    return v4.new_code_cell("", outputs=[v4.new_output("stream", text="words"), *outputs])


@pytest.mark.parametrize(("cells", "alts"), [
    ([code(drawn()), v4.new_markdown_cell("*A red\napple, of size $2x$.*\n\nMore.")], ["A red apple, of size 2x."]),
    ([code(drawn()), code(), v4.new_markdown_cell("*An apple.*")], ["An apple."]),
    ([code(drawn(), drawn()), v4.new_markdown_cell("*One.*\n\n*Two.*")], ["One.", "Two."]),
    ([code(drawn(), drawn()), v4.new_markdown_cell("*Both.*")], ["Both.", "Both."]),
    ([code(drawn("steps = 4")), v4.new_markdown_cell("*An apple.*")], ["steps = 4 An apple."]),
    ([code(drawn("steps = 4")), v4.new_markdown_cell("No words.")], ["steps = 4"]),
    ([code(drawn("steps = 4"))], ["steps = 4"]),
], ids=["a paragraph", "after a code cell", "one each", "one for all", "its own too", "its own", "at the end"])
def test_a_picture_is_described_by_the_words_in_italics_below_it(cells, alts):
    notebook = v4.new_notebook(cells=cells)
    assert build._describe(notebook) == []
    about = [output.metadata["image/png"] for cell in cells for output in cell.get("outputs", []) if "metadata" in output]
    assert [entry["alt"] for entry in about] == alts and all(entry["width"] == 9 for entry in about)


@pytest.mark.parametrize("below", ["Plain words.", "**Bold words.**", "* a list", "Words.\n\n*Late.*", None])
def test_a_picture_without_description_is_named(below):
    cell = code(drawn())
    notebook = v4.new_notebook(cells=[cell] + ([v4.new_markdown_cell(below)] if below else []))
    assert build._describe(notebook) == [cell.id]


def test_a_source_whose_picture_nobody_describes_is_not_built(course):
    rewrite(course, "torch.arange(3)", "import matplotlib.pyplot as plt\n\nplt.plot([1, 2])\nplt.show()")
    with pytest.raises(ValueError, match="the text below a picture must begin with its description in italics: 97-"):
        build.build(course, say=lambda line: None)
