"""Every chapter's bank: the reference solves, each mistake is caught by its own hint, every wrong option is answered."""

import ast
from pathlib import Path

import pytest
import torch

from course_lib.classroom import banks, checks, notebooks

ROOT = Path(__file__).parents[2]
TASKS = [task for chapter in banks.chapters() for task in banks.exercises(chapter).values()]
QUESTIONS = [question for chapter in banks.chapters() for question in banks.predictions(chapter).values()]
tasks = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.id)


@tasks
def test_the_reference_solves(task):
    def learners(*arguments, **keywords):
        return task.reference(*arguments, **keywords)

    copy = type("Learners", (task.reference,), {}) if isinstance(task.reference, type) else learners
    verdict = checks.judge(task, copy)
    assert verdict.status == "solved", verdict.message


@pytest.mark.parametrize("chapter", notebooks.chapters(ROOT / "notebooks" / "solutions"), ids=lambda path: path.stem)
def test_the_solutions_are_accepted(chapter):
    notebook = notebooks.read(chapter)
    space = definitions(notebook)
    for id, cell in notebooks.by_role(notebook, "exercise").items():
        exec(cell.source, space)
        verdict = checks.judge(banks.exercise(id), space[ast.parse(cell.source).body[-1].name])
        assert verdict.status == "solved", f"{id}: {verdict.message}"


def definitions(notebook) -> dict:
    """A namespace with what the notebook imports and its functions that need nothing else of it to be defined."""
    def stands_alone(node) -> bool:
        return isinstance(node, ast.Import | ast.ImportFrom) or (isinstance(node, ast.FunctionDef) and all(
            isinstance(part, ast.Constant) for part in (*node.args.defaults, *node.args.kw_defaults, *node.decorator_list)))

    space = {"__name__": "a_learners_notebook"}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            exec(compile(ast.Module(list(filter(stands_alone, ast.parse(cell.source).body)), []), cell.id, "exec"), space)
    return space


class TwiceAsked:
    """A map that asks another one twice, and has all of its attributes."""

    def __init__(self, asked):
        self.asked = asked

    def __call__(self, *arguments, **keywords):
        self.asked(*arguments, **keywords)
        return self.asked(*arguments, **keywords)

    def __getattr__(self, name):
        return getattr(self.asked, name)


@tasks
def test_right_values_that_cost_more_are_told_so(task):
    reference = [outcome.asked for outcome in checks._remembered(task, task.reference)]
    maps = {place for asked in reference for place, meter in enumerate(asked) if meter.calls}
    given = {place for _, case in task._drawn for place, value in enumerate(case)
             if callable(value) and hasattr(value, "schedule")}
    assert given <= maps, "a denoiser is given and never asked"
    for place in maps:
        def wasteful(*arguments, place=place):
            return task.reference(*arguments[:place], TwiceAsked(arguments[place]), *arguments[place + 1:])

        verdict = checks.judge(task, wasteful)
        assert verdict.mistake is None and verdict.message.startswith("right values, but ") and "enough" in verdict.message


@tasks
def test_a_stub_is_not_yet_tried(task):
    def stub(*arguments, **keywords):
        raise NotImplementedError

    assert checks.judge(task, stub).status == "untried"


@tasks
def test_every_mistake_gets_its_own_hint(task):
    assert len(task.mistakes) >= 3
    assert len({mistake.hint for mistake in task.mistakes}) == len({mistake.name for mistake in task.mistakes}) \
        == len(task.mistakes)
    for mistake in task.mistakes:
        verdict = checks.judge(task, mistake.wrong)
        assert verdict.mistake is mistake, f"{mistake.name} was told: {verdict.message or verdict.status}"


@tasks
def test_texts_fit_the_line_that_is_printed(task):
    for text in (task.title, *task.tips, *(mistake.hint for mistake in task.mistakes)):
        assert text and "\n" not in text and "✓" not in text


@tasks
def test_cases_are_many_and_vary_the_batch(task):
    drawn = checks._draw(task)
    again = checks._draw(task)
    assert len(drawn) == len(again) >= 2 * len(checks.SEEDS)
    tensors = [value for _, case in drawn for value in case if isinstance(value, torch.Tensor) and value.ndim]
    assert not tensors or max(len(tensor) for tensor in tensors) > 1
    assert all(checks._same_inputs(b, a) for (_, a), (_, b) in zip(drawn, again)), "cases must follow the generator"


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.id)
def test_every_wrong_option_is_answered(question):
    assert question.options == [chr(ord("a") + i) for i in range(len(question.options))]
    assert len(question.options) >= 2
    assert all(question.because[option].strip() for option in question.options if option != question.answer)


@pytest.mark.parametrize("chapter", banks.chapters())
def test_ids_belong_to_the_chapter_and_are_unique(chapter):
    for listed, kept in [(banks._bank(chapter, "EXERCISES"), banks.exercises(chapter)),
                         (banks._bank(chapter, "PREDICTIONS"), banks.predictions(chapter))]:
        assert len(listed) == len(kept)
        assert all(int(id.split(".")[0]) == chapter for id in kept)
