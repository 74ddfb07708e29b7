"""Every chapter's bank: the reference solves, each mistake is caught by its own hint, every wrong option is answered."""

import pytest
import torch

from course_lib.classroom import banks, checks

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
