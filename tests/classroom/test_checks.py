"""exercise(): what is accepted, what each kind of wrong answer is told, and what a learner's code cannot break."""

import dataclasses
import functools
import inspect
import sys
import time
import types

import pytest
import torch

import course_lib.classroom.banks
from course_lib.classroom import banks, exercise
from course_lib.classroom.exercises import Exercise, Mistake
from course_lib.classroom.judge import checks
from course_lib.denoiser import levels
from course_lib.schedules import CosineVP

pytestmark = pytest.mark.usefixtures("bank")


def right(x, slope):
    return slope.reshape(-1, *[1] * (x.ndim - 1)) * x


def line_of(capsys, function, id="97.1"):
    """The one line that the check prints."""
    exercise(id, function)
    out, err = capsys.readouterr()
    assert err == "" and out.count("\n") == 1 and out.endswith("\n")
    return out.strip()


def test_a_right_function_is_solved_and_returned(capsys):
    assert exercise("97.1", right) is right
    assert capsys.readouterr().out == "97.1 ✓ solved\n"


def test_a_stub_is_not_yet_tried_and_is_no_failure(capsys):
    def stub(x, slope):
        raise NotImplementedError("one line")

    for _ in range(3):
        assert line_of(capsys, stub) == "97.1 … not yet tried. The chapter goes on with the course's own."


def test_an_error_of_torch_is_no_stub(capsys):
    class Line(torch.nn.Module):
        def foward(self, x, slope):
            return right(x, slope)

    line = line_of(capsys, Line())
    assert "97.1 ✗ your function raised NotImplementedError" in line and '"forward"' in line
    assert "✗ your function raised NotImplementedError" in line_of(capsys, lambda x, slope: torch.ones(2, device="meta").item())


def test_a_wrong_function_gives_way_to_one_that_works(capsys):
    function = exercise("97.1", lambda x, slope: x)
    x = torch.ones(2, 2)
    assert torch.equal(function(x, torch.tensor([2.0, 3.0])), right(x, torch.tensor([2.0, 3.0])))


def test_the_courses_own_is_never_accepted(capsys):
    own = exercise("97.1", lambda x, slope: x)
    capsys.readouterr()
    for function in (own, banks.exercise("97.1").reference):
        line = line_of(capsys, function)
        assert "run your own cell again" in line and "✓" not in line


def test_a_class_is_marked_as_a_class(capsys):
    class Slope:
        """A learner's answer that is a class."""

    task = Exercise("97.1", "", Slope, lambda generator: [], [])
    own = checks._marked(task)
    assert issubclass(own, Slope)
    assert checks.judge(task, own).status == "again"


@pytest.mark.parametrize("wrong, hint", [
    (lambda x, slope: x, "the slope is not used"),
    (lambda x, slope: right(right(x, slope), slope), "the slope enters twice"),
    (lambda x, slope: right(x, -slope), "the sign of the slope is turned"),
])
def test_known_mistakes_get_their_hints_and_both_values(capsys, wrong, hint):
    line = line_of(capsys, wrong)
    assert line.startswith(f"97.1 ✗ {hint} (largest difference ")
    assert "yours " in line and "expected " in line and line.endswith("The chapter goes on with the course's own.")


@pytest.mark.parametrize("wrong, message", [
    (lambda x, slope: None, "is a `return` missing?"),
    (lambda x, slope: "text", "your function returned str, expected Tensor (1, 2)"),
    (lambda x, slope: (x, x), "your function returned 2 values, expected 1"),
    (lambda x, slope: right(x, slope).sum(-1),
     "your result has the shape (1,), expected (1, 2), on inputs x: (1, 2), slope: (1,)"),
    (lambda x, slope: right(x, slope).double(), "your result is float64, expected float32"),
    (lambda x, slope: right(x, slope) / 0 * 0, "your result holds NaN"),
    (lambda x, slope: right(x, slope) / 0, "your result holds infinity"),
    (lambda x, slope: right(x, slope) + 0.5, "your values differ from the expected ones, on inputs x: (1, 2), slope: (1,)"),
    (lambda x, slope: slope * x, "right for batch size 1 only, wrong on inputs x: (3, 2), slope: (3,)"),
    (lambda x: x, "your function raised TypeError"),
    (lambda x, slope: x.nothing, "AttributeError"),
    (lambda x, slope: exit(), "SystemExit"),
    (3, "exercise() needs your function, it got int"),
])
def test_other_wrong_answers_are_described(capsys, wrong, message):
    assert message in line_of(capsys, wrong)


def test_an_error_names_the_learners_line(capsys):
    def fails(x, slope):
        return torch.cat([x, slope])

    assert "at `return torch.cat([x, slope])`, on inputs x: (1, 2), slope: (1,)" in line_of(capsys, fails)


def test_the_line_of_an_error_is_never_one_of_a_package(tmp_path, capsys):
    (tmp_path / "dist-packages").mkdir()
    (module := tmp_path / "dist-packages" / "far.py").write_text("def fail(x):\n    raise OverflowError('deep')\n")
    space = {}
    exec(compile(module.read_text(), module, "exec"), space)

    def fails(x, slope):
        return space["fail"](x)

    assert "OverflowError: deep at `return space[\"fail\"](x)`" in line_of(capsys, fails)


def test_changed_inputs_are_told_and_cannot_reach_the_reference(capsys):
    def in_place(x, slope):
        return x.mul_(slope.reshape(-1, *[1] * (x.ndim - 1)))

    def erase(x, slope):
        result = right(x, slope)
        x.zero_()
        return result

    for function in (in_place, erase):
        assert "changes its inputs in place" in line_of(capsys, function)


def test_printing_is_swallowed(capsys):
    def noisy(x, slope):
        print("97.1 ✓ solved")
        print("a warning", file=sys.stderr)
        return x

    assert line_of(capsys, noisy).startswith("97.1 ✗")


def test_random_numbers_of_the_notebook_are_left_alone(capsys):
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    exercise("97.1", lambda x, slope: x + torch.randn(x.shape))
    assert torch.equal(torch.randn(3), expected)


def test_functions_that_draw_noise_alike_agree():
    task = Exercise("97.9", "", lambda x: x + torch.randn(x.shape), lambda generator: [(torch.zeros(4),)], [])
    assert checks.judge(task, lambda x: torch.randn(x.shape) + x).status == "solved"


@pytest.mark.parametrize("catches", [False, True])
def test_a_loop_without_end_is_stopped(capsys, catches):
    beats = []

    def endless(x, slope):
        while True:
            try:
                beats.append(time.sleep(0.01))
            except Exception:
                if not catches:
                    raise

    task = Exercise("97.9", "", right, banks.exercise("97.1").cases, [], seconds=0.3)
    started = time.monotonic()
    verdict = checks.judge(task, endless)
    assert "stopped after 0.3 seconds" in verdict.message
    assert time.monotonic() - started < 3
    before = len(beats)
    time.sleep(0.1)
    assert len(beats) == before                         # the thread is gone, not only forgotten


def test_tips_come_one_at_a_time_and_then_the_solution(capsys):
    lines = [line_of(capsys, lambda x, slope: x) for _ in range(4)]
    assert "Tip" not in lines[0]
    assert "Tip 1: what does a slope multiply?" in lines[1]
    assert "Tip 2: reshape the slope to (B, 1)." in lines[2]
    assert "notebooks/solutions" in lines[3] and "Tip" not in lines[3]


def test_numbers_and_tuples_are_compared():
    task = Exercise("97.9", "", lambda n: (n / 2, torch.ones(n)), lambda generator: [(2,), (3,)], [])
    assert checks.judge(task, lambda n: (torch.tensor(n / 2), torch.ones(n))).status == "solved"
    assert checks.judge(task, lambda n: (n / 3, torch.ones(n))).status == "wrong"


def test_call_says_how_a_case_is_run():
    def gradient(loss, x):
        x.requires_grad_()
        return torch.autograd.grad(loss(x), x)[0]

    task = Exercise("97.9", "", lambda x: (x**2).sum(), lambda g: [(torch.randn(3, generator=g),)], [],
                           call=gradient)
    assert checks.judge(task, lambda x: x @ x).status == "solved"
    assert checks.judge(task, lambda x: x.sum()).status == "wrong"


# --- evaluations -----------------------------------------------------------------------------------------------------

class Half:
    """A denoiser with an attribute of its own."""

    gain = 0.5

    def __init__(self):
        self.schedule = CosineVP()

    def __call__(self, x, t, cond=None):
        return self.gain * x


class Layer(torch.nn.Module):
    """The same as a module."""

    gain = 0.5

    def forward(self, x, t):
        return self.gain * x


def half(x, t):
    return 0.5 * x


half.gain = 0.5


def twice(D, x):
    """Two evaluations, the second of which starts from the first."""
    return D(D(x, 0.5), 0.25)


def costly(D, reference=twice, **extra):
    def cases(generator):
        for B in (1, 3):
            yield D, torch.randn(B, 2, generator=generator)
    return Exercise("97.9", "", reference, cases, [Mistake("once", lambda D, x: D(x, 0.5), "once only")], **extra)


maps = pytest.mark.parametrize("D", [Half(), Layer(), half, functools.partial(half)], ids=lambda D: type(D).__name__)


@maps
def test_right_values_at_a_higher_price_are_not_accepted(D):
    verdict = checks.judge(costly(D), lambda D, x: 0 * D(x, 1.0) + twice(D, x))
    assert verdict.status == "wrong" and verdict.mistake is None
    assert verdict.message.startswith("right values, but 3 evaluations where 2 are enough, on inputs D: ")


@maps
@pytest.mark.parametrize("answer", [
    twice,
    lambda D, x: D(t=0.25, x=D(x=x, t=0.5)),
    lambda D, x: 0.25 * x,                                              # fewer are fine
    lambda D, x: torch.cat([twice(D, row[None]) for row in x]),         # a row at a time costs the same
])
def test_the_same_price_or_less_is_accepted(D, answer):
    assert checks.judge(costly(D), lambda D, x: answer(D, x)).status == "solved"


def test_rows_are_counted_and_not_calls_unless_an_exercise_asks_for_one_call():
    def one_call(D, x):
        return sum(D(torch.cat([x, -x]), 0.5).chunk(2))

    def two_calls(D, x):
        return D(x, 0.5) + D(-x, 0.5)

    assert checks.judge(costly(half, one_call), two_calls).status == "solved"
    assert checks.judge(costly(half, two_calls), lambda D, x: one_call(D, x)).status == "solved"
    verdict = checks.judge(costly(half, one_call, count_calls=True), two_calls)
    assert verdict.message.startswith("right values, but 2 calls where 1 is enough, on inputs ")


@pytest.mark.parametrize("D", [Half(), Layer(), half], ids=["object", "module", "function"])
def test_what_counts_is_still_what_it_was(D):
    def curious(seen, x):
        assert isinstance(seen, type(D)) and seen.gain == 0.5
        assert type(seen).__name__ == type(D).__name__ and getattr(seen, "__name__", "") == getattr(D, "__name__", "")
        assert inspect.signature(seen) == inspect.signature(D)
        return twice(seen, x)

    verdict = checks.judge(costly(D), curious)
    assert verdict.status == "solved", verdict.message
    assert type(D) in (Half, Layer, types.FunctionType)                 # the case itself has no face


def test_evaluations_under_derivatives_are_counted():
    def slope(f, x):
        return torch.func.jvp(lambda x: f(x, 0.5), (x,), (x,))[1]

    def differences(f, x):
        return f(1.5 * x, 0.5) - f(0.5 * x, 0.5)                        # exact for a linear function

    assert checks.judge(costly(half, slope), lambda f, x: slope(f, x)).status == "solved"
    assert checks.judge(costly(half, slope), lambda f, x: torch.func.vmap(lambda row: slope(f, row))(x)).status == "solved"
    assert "2 evaluations where 1 is enough" in checks.judge(costly(half, slope), differences).message


def test_a_step_that_asks_a_denoiser_does_not_count_twice():
    def walk(D, x, step):
        return step(D, step(D, x))

    def cases(generator):
        for B in (1, 4):
            yield Half(), torch.randn(B, 2, generator=generator), lambda D, x: levels(D, x, 0.5)[0] * D(x, 0.5)

    task = Exercise("97.9", "", walk, cases, [])
    verdict = checks.judge(task, lambda D, x, step: walk(D, x, step) + 0 * D(x, 0.5))
    assert verdict.message.startswith("right values, but 3 evaluations where 2 are enough")


def test_the_map_is_named_where_there_are_several():
    def both(f, g, x):
        return f(x, 1) + g(x, 1)

    task = Exercise("97.9", "", both, lambda g: [(half, half, torch.randn(2, 2, generator=g))], [])
    verdict = checks.judge(task, lambda f, g, x: both(f, g, x) + 0 * g(x, 1))
    assert verdict.message.startswith("right values, but 4 evaluations of g where 2 are enough")


def test_a_wrong_value_is_explained_whatever_it_costs():
    verdict = checks.judge(costly(half), lambda D, x: D(x, 0.5) + 0 * D(x, 0.5) + 0 * D(x, 0.5))
    assert verdict.mistake is not None and verdict.mistake.name == "once"


# --- one row at a time -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("wrong", [
    lambda x, slope: right(x, slope.mean()),                                            # a mean over the batch
    lambda x, slope: right(x, slope) * slope.sum() / slope[0],                          # every row's weight in one
    lambda x, slope: right(x, slope) + (len(x) > 1) * torch.randn(x.shape),             # noise of one's own
    lambda x, slope: right(x, slope.flip(0)),                                           # another row's value
    lambda x, slope: right(x, slope) if len(x) == 1 else slope.nothing,                 # an error of another kind
    lambda x, slope: x * slope.item(),
    lambda x, slope: 2 * (slope * x),                                                   # unshaped, and wrong anyway
])
def test_only_a_missing_shape_is_called_one(capsys, wrong):
    assert "right for batch size 1 only" not in line_of(capsys, wrong)


def test_a_missing_shape_is_told(capsys):
    line = line_of(capsys, lambda x, slope: slope * x)
    assert "97.1 ✗ right for batch size 1 only, wrong on inputs x: (3, 2), slope: (3,): a value per row" in line


# --- answers that build on other answers -----------------------------------------------------------------------------

def notebook(**names):
    """A namespace with a learner's first answer, and a second one that calls it."""
    space = dict(names)
    exec("def my_line(x, slope):\n    return slope.reshape(-1, *[1] * (x.ndim - 1)) * x\n\n"
         "def my_shift(x, by):\n    return my_line(x, torch.ones(len(x))) + by", space)
    return space


def flawed(x, slope):
    return x + 1


@pytest.mark.parametrize("found", ["the answer itself", "its cell run again", "under another name"])
def test_an_answer_is_judged_with_the_courses_own_of_those_before_it(capsys, found):
    space = notebook(torch=torch)
    checks._answers["97.1"] = space["my_line"]                          # accepted once, with a flaw that showed nowhere
    if found == "its cell run again":
        exec("def my_line(x, slope):\n    return x + 1", space)
    elif found == "under another name":
        checks._answers["97.1"] = space["other"] = flawed
        exec("def my_shift(x, by):\n    return other(x, torch.ones(len(x))) + by", space)
    else:
        checks._answers["97.1"] = space["my_line"] = flawed
    before = dict(space)
    assert line_of(capsys, space["my_shift"], "97.2") == "97.2 ✓ solved"
    assert space == before


def test_a_helper_that_took_the_name_of_an_answer_stays(capsys):
    space = notebook(torch=torch)
    exec("def f(x, slope):\n    return slope.reshape(-1, *[1] * (x.ndim - 1)) * x", space)
    checks._answers["97.1"] = space["f"]                                # handed over under a name of the learner's
    exec("def f(x):\n    return x\n\ndef my_shift(x, by):\n    return f(x) + by", space)
    assert line_of(capsys, space["my_shift"], "97.2") == "97.2 ✓ solved"


def test_an_answer_that_takes_more_than_the_courses_own_may_be_called_with_it(capsys):
    space = notebook(torch=torch)
    exec("def my_line(x, slope, verbose=False):\n    return slope.reshape(-1, *[1] * (x.ndim - 1)) * x\n\n"
         "def my_shift(x, by):\n    return my_line(x, torch.ones(len(x)), verbose=True) + by", space)
    checks._answers["97.1"] = space["my_line"]
    assert line_of(capsys, space["my_shift"], "97.2") == "97.2 ✓ solved"


def test_names_come_back_after_a_time_out():
    space = notebook(torch=torch, seen=[])
    exec("def my_shift(x, by):\n    while True:\n        seen or seen.append(my_line)", space)
    checks._answers["97.1"], line = space["my_line"], space["my_line"]
    task = dataclasses.replace(banks.exercise("97.2"), seconds=0.3)
    assert "stopped after 0.3 seconds" in checks.judge(task, space["my_shift"]).message
    assert space["my_line"] is line and space["seen"] == [banks.exercise("97.1").reference]


def test_an_answer_is_not_replaced_while_it_is_judged_itself(capsys):
    space = {}
    exec("def my_line(x, slope, again=True):\n    return my_line(x, slope, False) if again else x + 1", space)
    for _ in range(2):
        assert "✗ your values differ" in line_of(capsys, space["my_line"])


def test_answers_are_remembered_and_those_of_the_course_are_not(capsys):
    exercise("97.1", right)
    assert checks._answers == {"97.1": right}
    exercise("97.2", levels)
    exercise("97.2", banks.exercise("97.2").reference)
    assert checks._answers == {"97.1": right}


def test_the_methods_of_a_class_call_the_courses_own(capsys):
    space = notebook(torch=torch, __name__="learners_notebook")
    module = types.ModuleType("learners_notebook")
    module.__dict__.update(space)
    sys.modules["learners_notebook"] = module
    exec("class Shift:\n    def __new__(cls, x, by):\n        return my_line(x, torch.ones(len(x))) + by", module.__dict__)
    try:
        checks._answers["97.1"] = module.my_line = flawed
        assert line_of(capsys, module.Shift, "97.2") == "97.2 ✓ solved"
        assert module.my_line is flawed
    finally:
        del sys.modules["learners_notebook"]


def test_a_case_that_the_reference_refuses_must_be_refused():
    def root(x):
        assert (x >= 0).all()
        return x.sqrt()

    task = Exercise("97.9", "", root, lambda g: [(torch.tensor([4.0]),), (torch.tensor([-1.0, 4.0]),)], [
        Mistake("clamped", lambda x: x.clamp(min=0).sqrt(), "a clamp hides it"),
        Mistake("square", lambda x: x**2, "a square"),
        Mistake("unasserted", lambda x: x.sqrt(), "nothing is asserted")])
    assert checks.judge(task, lambda x: root(x)).status == "solved"
    for mistake in task.mistakes:
        assert checks.judge(task, mistake.wrong).mistake is mistake
    verdict = checks.judge(task, lambda x: x.abs().sqrt())
    assert verdict.message == "your function should have stopped with AssertionError here, on inputs x: (2,)"


def test_an_assertion_of_the_learners_finds_what_would_be_nan():
    def asserts(x):
        assert (x >= 1).all()
        return (x - 1).sqrt()

    task = Exercise("97.9", "", lambda x: x.sqrt(), lambda g: [(torch.tensor([4.0]),), (torch.tensor([0.5, 4.0]),)], [
        Mistake("one less", lambda x: (x - 1).sqrt(), "one less")])
    assert checks.judge(task, asserts).mistake is task.mistakes[0]
    assert checks.judge(task, lambda x: asserts(x) if (x >= 1).all() else x.nothing).mistake is None


def test_a_mistake_that_explains_all_goes_before_one_that_explains_some():
    def cases(generator):
        for n in (1, 2, 3, 4, 5, 6):
            yield (n,)

    task = Exercise("97.9", "", lambda n: n, cases, [
        Mistake("large ones", lambda n: n + 1 if n > 3 else n, "some"),
        Mistake("a single one", lambda n: n + 1 if n == 2 else n, "one"),
        Mistake("all but one", lambda n: n + 1 if n > 1 else n, "most")])
    assert checks.judge(task, lambda n: n + 1 if n > 1 else n).mistake.name == "all but one"
    assert checks.judge(task, lambda n: n + 1 if n > 3 else n + 2 if n == 1 else n).mistake.name == "large ones"
    assert checks.judge(task, lambda n: n + 1 if n == 2 else n + 2 if n > 3 else n).mistake is None


def test_a_difference_is_shown_where_results_differ(capsys):
    def fails(x, slope):
        assert len(x) < 4
        return right(x, slope) * (1 + 1e-7)

    assert "largest difference" not in line_of(capsys, fails)


def test_unknown_ids_are_named():
    with pytest.raises(ValueError, match=r"there is no exercise 97\.7; its chapter has 97\.1, 97\.2"):
        exercise("97.7", right)
    with pytest.raises(ValueError, match=r"there is no exercise 98\.1; its chapter has none"):
        exercise("98.1", right)
    with pytest.raises(ValueError, match="in quotes"):
        exercise(97.1, right)


def test_the_package_offers_three_names():
    assert course_lib.classroom.exercise is exercise
    with pytest.raises(AttributeError):
        getattr(course_lib.classroom, "grade")  # noqa: B009
