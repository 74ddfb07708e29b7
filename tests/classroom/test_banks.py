"""Every chapter's bank: the reference solves, each mistake is caught by its own hint, every wrong option is answered."""

import ast
import functools
import inspect
from pathlib import Path

import pytest
import torch

from course_lib.classroom import banks, notebooks
from course_lib.classroom.judge import checks, running, verdicts

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


SOLUTIONS = notebooks.chapters(ROOT / "notebooks" / "solutions")


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_the_solutions_are_accepted(path):
    for id, source in sources(path).items():
        verdict = checks.judge(banks.exercise(id), function_of(path, source))
        assert verdict.status == "solved", f"{id}: {verdict.message}"


def answered(id: str, *changes: str) -> verdicts.Verdict:
    """What the judge says of a solution in which some code, changes[0::2], is replaced by other code, changes[1::2]."""
    path = solution(id)
    source = sources(path)[id]
    for old, new in zip(changes[::2], changes[1::2], strict=True):
        assert source.count(old), old
        source = source.replace(old, new)
    return checks.judge(banks.exercise(id), function_of(path, source))


def solution(id: str) -> Path:
    return next(path for path in SOLUTIONS if notebooks.number(path) == int(id.split(".")[0]))


def function_of(path: Path, source: str):
    """The last thing that a cell defines, in a namespace like the notebook's."""
    space = dict(definitions(path))
    exec(source, space)
    return space[ast.parse(source).body[-1].name]


@functools.cache
def sources(path: Path) -> dict[str, str]:
    return {id: cell.source for id, cell in notebooks.by_role(notebooks.read(path), "exercise").items()}


@functools.cache
def definitions(path: Path) -> dict:
    """A namespace with what the notebook imports and its functions that need nothing else of it to be defined."""
    def stands_alone(node) -> bool:
        return isinstance(node, ast.Import | ast.ImportFrom) or (isinstance(node, ast.FunctionDef) and all(
            isinstance(part, ast.Constant) for part in (*node.args.defaults, *node.args.kw_defaults, *node.decorator_list)))

    space = {"__name__": "a_learners_notebook"}
    for cell in notebooks.read(path).cells:
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
    reference = [outcome.asked for outcome in running.expected(task)]
    maps = {place for asked in reference for place, meter in enumerate(asked) if meter.calls}
    given = {place for _, case in running.drawn(task) for place, value in enumerate(case)
             if callable(value) and hasattr(value, "schedule")}
    assert given <= maps, "a denoiser is given and never asked"
    for place in maps - {verdicts._names(task).index(name) for name in task.free}:
        def wasteful(*arguments, place=place):
            return task.reference(*arguments[:place], TwiceAsked(arguments[place]), *arguments[place + 1:])

        verdict = checks.judge(task, wasteful)
        assert verdict.mistake is None and verdict.message.startswith("right values, but ") and "enough" in verdict.message


@pytest.mark.parametrize("id, changes, price", [
    ("4.4", ("x0, h =", "D(x, t), D(x, t); x0, h ="), "12 evaluations where 4 are enough"),
    ("8.5", ("return x", "return f(x, ts[-1])"), "2 evaluations where 1 is enough"),
    ("8.6", ("first * v + second", "first * u(z, t, m) + second"), "3 evaluations where 2 are enough"),
    ("8.3", ("return (", "f(x_t, t); return ("), "2 evaluations of f where 1 is enough"),
    ("5.5", ("new.append(", "fine(m, new[m]); new.append("), "2 evaluations of fine where 1 is enough"),
    ("6.2", (".chunk(2)", ".chunk(2); D(x, t, cond)"), "3 evaluations where 2 are enough"),
    ("11.3", ("z = last", "D(x, ts[0], cond); z = last"), "9 evaluations where 8 are enough"),
    ("6.2", ("D(torch.cat([x, x]), torch.cat([t, t]), torch.cat([cond, torch.full_like(cond, -1)])).chunk(2)",
             "D(x, t, cond), D(x, t)"), "2 calls where 1 is enough"),
])
def test_wasteful_answers_are_told_the_price(id, changes, price):
    verdict = answered(id, *changes)
    assert verdict.mistake is None and verdict.message.startswith(f"right values, but {price}, on inputs ")


@pytest.mark.parametrize("id, changes", [
    ("3.4", ("return log_prior(x) + gained", "log_prior(x); return log_prior(x) + gained")),
    ("4.1", ("(x - alpha_t * D(x, t)) / sigma_t", "eps(D, x, t)")),
    ("5.5", ("    new =", "    before = [coarse(m, nodes[m]) for m in range(len(ends))]\n    new ="
             , "coarse(m, nodes[m]))\n", "before[m])\n")),
    ("6.3", ("    wanted, avoided = D(x, t, want), D(x, t, avoid)",
             "    wanted, avoided = D(torch.cat([x, x]), torch.cat([t, t]), torch.cat([want, avoid])).chunk(2)")),
    ("8.4", ("torch.func.jvp(f, (x, t), (slope, torch.ones_like(t)))",
             "torch.autograd.functional.jvp(f, (x, t), (slope, torch.ones_like(t)))")),
    ("8.4", ("torch.func.jvp(f, (x, t), (slope, torch.ones_like(t)))", "None, torch.func.vmap(lambda x, t, s: torch.func.jvp("
             "lambda x, t: f(x[None], t[None])[0], (x, t), (s, torch.ones_like(t)))[1])(x, t, slope)")),
    ("8.6", ("(first * v + second * w)", "(z - (z - first * v - second * w))")),
    ("11.4", ("(nearest < own[:, None]).sum(1)", "(names.unique()[nearest.argsort(1)] == wanted[:, None]).long().argmax(1)")),
    ("11.6", ("my_draw(D, autoencoder, cond, weight, ts, x)",
              "autoencoder.decode(last(dpm_solver_pp, guided(D, weight), x, ts, cond=cond).x)")),
])
def test_other_right_answers_are_accepted(id, changes):
    verdict = answered(id, *changes)
    assert verdict.status == "solved", verdict.message


RADICAND = "(sigma_s**2 - tau**2).sqrt()"
SLIPS = [                                   # exercise, code of the solution and what stands there instead, the mistake
    ("4.2", "(schedule.t_max, schedule.t_min)", "(1.0, 0.0)", "from 1 to 0"),
    ("4.3", ".round().long()", ".ceil().long()", "rounded up"),
    ("4.4", "/ (lam_t - lam_r)", "/ (lam_s - lam_r)", "divided by both steps"),
    ("4.4", "(-h).exp()", "h.exp()", "exponents turned round"),
    ("4.4", "(1 - (-h).exp())", "(1 - h.exp())", "exponent of the constant"),
    ("4.4", "h - 1 + (-h).exp()", "h - 1 + h.exp()", "exponent of the slope"),
    ("4.4", "lam_r, x0_r = lam_t, x0", "lam_r, x0_r = lam_s, x0", "remembers where it goes"),
    ("4.5", RADICAND, "(sigma_s**2 - eta * tau**2).sqrt()", "eta twice in the room"),
    ("4.5", RADICAND, "(sigma_s**2 - tau**2 / (eta or 1)).sqrt()", "eta not squared in the room"),
    ("4.5", RADICAND, f"sigma_s * {RADICAND}", "room times sigma"),
    ("4.5", RADICAND, "(sigma_s**2 - tau**2)", "room without its root"),
    ("4.5", "eta * (sigma_s**2 / sigma_t**2 * beta).sqrt()", "eta * beta.sqrt()", "beta for beta-tilde"),
    ("4.5", "tau**2 >= 0", "tau**2 > 0", "no room at the end"),
    ("4.5", "    assert (sigma_s**2 - tau**2 >= 0).all()\n", "", "no assertion"),
    ("4.6", "c * alpha", "alpha", "width forgotten in the angle"),
    ("4.6", "c**2 * alpha", "alpha", "width forgotten in the radius"),
    ("5.1", "path[:1] + inc", "path[:-1] + inc", "increments added to the states above"),
    ("5.3", "calm.long().cumprod(0).sum()", "(~calm).long().argmax()", "argmax of none, at least one"),
    ("5.3", "max(1, int(calm.long().cumprod(0).sum()))", "int((~calm).long().argmax())", "argmax of none"),
    ("5.3", ".amax(1)", ".amin(1)", "the calmest sample"),
    ("5.4", "zip(slopes, ", "zip(torch.cat([slopes[1:], slopes[:1]]), ", None),
    ("5.6", "parallel(rounds, evaluations, people", "parallel(rounds, evaluations, busiest", "the busiest device's people"),
    ("8.1", "+ sigma**2).sqrt()", "+ sigma**2)", "variance for width"),
    ("8.1", "return mean", "return alpha * mean", "back to the faded centre"),
    ("8.1", "return mean +", "return", "not moved back"),
    ("8.3", "/ (t - r)).mean()", ").mean() / (t - r).mean()", "one weight for all"),
    ("8.5", "* z", "* torch.randn_like(x)", "own noise"),
    ("8.6", "(first * v + second * w) / (first + second)", "z - first * v - second * w", "the end"),
    ("11.3", "guided(D, weight), x,", "guided(D, weight), x * D.schedule.sigma(ts[0]),", "scaled to the start"),
    ("11.4", "(nearest < own[:, None]).sum(1)",
     "nearest.argsort(1)[torch.arange(len(wanted)), torch.searchsorted(names.unique(), wanted)]", "a single argsort"),
    ("11.5", "tau**2", "tau", "tau not squared"),
    ("11.5", "/ s**2", "/ s", "s not squared"),
    ("10.6", "(-squared / (2 * sigma**2)).softmax(1)",
     "((-squared / (2 * sigma**2)).exp() / (-squared / (2 * sigma**2)).exp().sum(1, keepdim=True))", "in linear space"),
    ("11.6", "+ sigma * eps", "+ (1 - alpha**2).sqrt() * eps", "right for VP only"),
]


@pytest.mark.parametrize("id, old, new, name", SLIPS, ids=lambda value: value if str(value)[:2].strip(".").isdigit() else "")
def test_likely_slips_get_the_hint_that_is_theirs(id, old, new, name):
    verdict = answered(id, old, new)
    assert verdict.status == "wrong" and "right for batch size 1 only" not in verdict.message
    assert (verdict.mistake and verdict.mistake.name) == name, verdict.message


@pytest.mark.parametrize("before, id", [("5.1", "5.2"), ("7.1", "7.2"), ("11.3", "11.6")])
def test_an_answer_is_not_blamed_for_one_that_it_builds_on(before, id):
    def flawed(*arguments):
        return torch.zeros(1)

    path = solution(id)
    space, name = dict(definitions(path)), ast.parse(sources(path)[before]).body[-1].name
    exec(sources(path)[id], space)
    answer = space[ast.parse(sources(path)[id]).body[-1].name]
    flawed.__signature__ = inspect.signature(space[name])       # what takes other arguments is not put in its place
    space[name] = flawed
    assert checks.judge(banks.exercise(id), answer).status == "wrong"
    checks._answers[before] = flawed
    assert checks.judge(banks.exercise(id), answer).status == "solved" and space[name] is flawed


def test_a_clamp_under_the_root_is_found():
    unasserted = "assert (sigma_s**2 - tau**2 >= 0).all()", "pass"
    verdict = answered("4.5", *unasserted, "tau**2).sqrt()", "tau**2).clamp(min=0).sqrt()")
    assert verdict.mistake.name == "clamped"


@pytest.mark.parametrize("id, changes", [
    ("3.2", ("return x + h", "return x + (s - t)")),
    ("2.3", ("x - h * (", "x - (t - s) * (")),
    ("8.1", ("per_row(schedule.sigma(t), x)", "schedule.sigma(t)")),
])
def test_a_value_per_row_that_meets_the_last_axis_is_called_so(id, changes):
    assert answered(id, *changes).message.startswith("right for batch size 1 only, wrong on inputs ")


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
    drawn = running.drawn(task)
    again = running.drawn(task)
    assert len(drawn) == len(again) >= 2 * len(running.SEEDS)
    tensors = [value for _, case in drawn for value in case if isinstance(value, torch.Tensor) and value.ndim]
    assert not tensors or max(len(tensor) for tensor in tensors) > 1
    assert all(running._same_inputs(b, a) for (_, a), (_, b) in zip(drawn, again)), "cases must follow the generator"


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
