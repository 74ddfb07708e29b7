"""The driver: it checks its grid, hands each step its noise, and counts what the sample costs."""

import math
from functools import partial

import pytest
import torch

from course_lib.denoiser import for_rows, guided, told
from course_lib.fast_samplers import ddim, dpm_solver_pp
from course_lib.parallel import parareal, picard
from course_lib.sampling import Counted, check_grid, draws, final, need_finite, need_noise, prior, sample
from course_lib.schedules import VE, CosineVP, LinearVP, SubVP, uniform
from course_lib.sde_samplers import ancestral, euler_maruyama, predictor_corrector
from course_lib.targets import ring

D = ring().denoiser(CosineVP())
TS = uniform(6, D.schedule)
STOCHASTIC = [ancestral, euler_maruyama, predictor_corrector(), predictor_corrector(euler_maruyama, corrections=2)]
every_stochastic_step = pytest.mark.parametrize("step", STOCHASTIC, ids=["ancestral", "euler_maruyama", "pc", "em_pc2"])


def start(n=4, dtype=torch.float64):
    return prior(D, (n, 2), torch.Generator().manual_seed(1), dtype=dtype)


# ---------------------------------------------------------------------------------------------- grids
@pytest.mark.parametrize(("ts", "message"), [
    ([0.1, 0.9], "must fall from noise to data without repeats, got 0.1, 0.9"),
    ([0.9, 0.5, 0.5, 0.1], "without repeats, got 0.9, 0.5, 0.5, 0.1"),
    ([0.9, 0.5, 0.6], "without repeats"),
    ([0.9, math.nan, 0.1], "without repeats"),
    ([1.5, 0.5], r"must lie in \[0, 1\], got 1.5, 0.5"),
    ([0.5, -0.1], r"must lie in \[0, 1\]"),
    ([0.5], r"expected a float tensor of at least two times, got \(1,\) torch.float32"),
    ([], "at least two times"),
    ([[0.9, 0.1]], r"at least two times, got \(1, 2\)"),
], ids=str)
def test_a_grid_that_does_not_fall_is_refused(ts, message):
    for use in (check_grid, lambda ts: sample(D, start(), ts, ddim), lambda ts: final(D, start(), ts, ddim)):
        with pytest.raises(ValueError, match="ts: .*" + message):
            use(torch.tensor(ts))


@pytest.mark.parametrize("ts", [torch.tensor([1, 0]), [0.9, 0.1]], ids=["whole numbers", "a list"])
def test_a_grid_is_a_float_tensor(ts):
    with pytest.raises(ValueError, match="ts: expected a float tensor of at least two times, got"):
        check_grid(ts)


def test_a_sound_grid_is_returned_as_it_is():
    ts = torch.tensor([1.0, 0.5, 0.0])
    assert check_grid(ts) is ts


def test_a_long_grid_is_shown_in_brief():
    with pytest.raises(ValueError, match=r"got 0, 0.01, 0.02, \.\.\., 0.99, 1$"):
        check_grid(torch.linspace(0, 1, 101))


# ---------------------------------------------------------------------------------------------- what a step is handed
def test_the_states_are_the_steps_results_in_order():
    states = list(sample(D, start(), TS, ddim))
    x = start()
    for state, t, s in zip(states, TS, TS[1:]):
        x = ddim(D, x, t, s)
        assert torch.equal(state, x)
    assert len(states) == 6


def test_a_sampler_only_works_when_it_is_asked():
    counted = Counted(D)
    states = sample(counted, start(), TS, ddim)
    assert counted.nfe == 0
    next(states)
    next(states)
    assert counted.nfe == 2


def test_the_condition_reaches_every_step():
    labels = torch.tensor([0, 3, 3, 7])
    x = final(D, start(), TS, ddim, cond=labels).x
    assert torch.cdist(x, D.mixture.means).argmin(1).tolist() == labels.tolist()


@every_stochastic_step
def test_noise_drawn_beforehand_gives_what_the_generator_gives(step):
    drawn = torch.Generator().manual_seed(5)
    shape = (4, 2) if step.draws == 1 else (step.draws, 4, 2)
    noise = torch.stack([torch.randn(shape, generator=drawn, dtype=torch.float64) for _ in range(6)])
    live = list(sample(D, start(), TS, step, generator=torch.Generator().manual_seed(5)))
    again = list(sample(D, start(), TS, step, noise=noise))
    assert all(torch.equal(a, b) for a, b in zip(live, again, strict=True))
    assert torch.equal(final(D, start(), TS, step, noise=noise).x, again[-1])


@every_stochastic_step
def test_a_generator_alone_decides_the_noise(step):
    first, again = (final(D, start(), TS, step, torch.Generator().manual_seed(5)).x for _ in range(2))
    other = final(D, start(), TS, step, torch.Generator().manual_seed(6)).x
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_deterministic_step_draws_nothing():
    generator = torch.Generator().manual_seed(5)
    before = generator.get_state()
    final(D, start(), TS, ddim, generator)
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize(("step", "shape", "expected"), [
    (ancestral, (5, 4, 2), r"\(6, 4, 2\)"),
    (ancestral, (6, 4, 1), r"\(6, 4, 2\)"),
    (predictor_corrector(), (6, 4, 2), r"\(6, 2, 4, 2\)"),
])
def test_noise_of_another_shape_is_refused(step, shape, expected):
    with pytest.raises(ValueError, match=rf"noise: expected shape {expected}, got"):
        sample(D, start(), TS, step, noise=torch.zeros(shape))


@every_stochastic_step
def test_a_stochastic_step_asks_for_its_noise(step):
    with pytest.raises(ValueError, match="z: .* is a stochastic step and takes its noise as an argument, got None"):
        step(D, start(), 0.5, 0.4)


def test_need_noise_names_the_step():
    x, z = torch.zeros(3, 2), torch.ones(3, 2)
    assert need_noise(z, x, "mine") is z
    with pytest.raises(ValueError, match="z: mine is a stochastic step"):
        need_noise(None, x, "mine")


def test_a_state_of_whole_numbers_is_refused():
    with pytest.raises(ValueError, match=r"x: expected floating-point states \(B, ...\), got \(4, 2\) torch.int64"):
        sample(D, torch.zeros(4, 2, dtype=torch.long), TS, ddim)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("step", [ddim, *STOCHASTIC], ids=["ddim", "ancestral", "euler_maruyama", "pc", "em_pc2"])
def test_a_state_keeps_its_dtype(step, dtype):
    assert all(x.dtype == dtype for x in sample(D, start(dtype=dtype), TS, step))


# ---------------------------------------------------------------------------------------------- what it costs
@pytest.mark.parametrize(("step", "evaluations"), [
    (ddim, 6), (ancestral, 6), (euler_maruyama, 6), (predictor_corrector(), 12),
    (predictor_corrector(corrections=3), 24),
], ids=["ddim", "ancestral", "euler_maruyama", "pc", "pc3"])
def test_the_cost_is_counted(step, evaluations):
    result = final(D, start(), TS, step)
    assert (result.nfe, result.depth) == (evaluations, evaluations)
    labels = torch.zeros(4, dtype=torch.long)
    dear = final(guided(D, 2.0), start(), TS, step, cond=labels)
    assert (dear.nfe, dear.depth) == (2 * evaluations, evaluations)


def test_counting_changes_nothing():
    x = start()
    assert torch.equal(Counted(D)(x, 0.5), D(x, 0.5))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_state_that_is_not_finite_is_reported_with_its_step(bad):
    def step(D, x, t, s, z=None, cond=None):
        return x.index_fill(0, torch.tensor([1]), bad) if s < 0.5 else x

    with pytest.raises(FloatingPointError, match="NaN or infinity after the step from t = 0.6 to s = 0.3"):
        final(D, start(), torch.tensor([0.9, 0.6, 0.3, 0.1]), step)


def test_final_leaves_no_gradient():
    assert not final(D, start().requires_grad_(), TS, ddim).x.requires_grad


def test_draws_marks_a_step():
    @draws(3)
    def step(D, x, t, s, z=None, cond=None):
        return x + z.sum(0)

    assert step.draws == 3
    noise = torch.ones(1, 3, 4, 2)
    assert torch.equal(final(D, torch.zeros(4, 2), torch.tensor([1.0, 0.5]), step, noise=noise).x, torch.full((4, 2), 3.0))


# ---------------------------------------------------------------------------------------------- the prior
@pytest.mark.parametrize("schedule", [LinearVP(), VE(), SubVP()], ids=lambda schedule: type(schedule).__name__)
def test_the_prior_is_the_noise_at_the_start(schedule, generator):
    n, sigma = 20_000, schedule.sigma(schedule.t_max).item()
    x = prior(ring().denoiser(schedule), (n, 2), generator, dtype=torch.float64)
    assert x.shape == (n, 2) and x.dtype == torch.float64
    assert x.std().item() == pytest.approx(sigma, rel=5 / (4 * n) ** 0.5)
    assert x.mean().abs() < 5 * sigma / (2 * n) ** 0.5


# ---------------------------------------------------------------------------------------------- half precision, empty batches
def test_finite_numbers_pass_though_their_sum_would_overflow():
    x = torch.full((1000, 2), 100.0, dtype=torch.float16)
    assert need_finite(x, 1.0, 0.5) is x and math.isinf(x.sum().item())
    still = lambda D, x, t, s, z=None, cond=None: x                                                           # noqa: E731
    assert torch.equal(final(D, x, TS, still).x, x)


@pytest.mark.parametrize("step", [ddim, *STOCHASTIC], ids=["ddim", "ancestral", "euler_maruyama", "pc", "em_pc2"])
def test_an_empty_batch_stays_empty(step):
    assert [tuple(x.shape) for x in sample(D, start(0), TS, step)] == [(0, 2)] * 6


def test_noise_takes_the_dtype_of_the_state_and_never_broadcasts():
    x, z = start(dtype=torch.float32), torch.randn(6, 4, 2, dtype=torch.float64)
    found = final(D, x, TS, ancestral, noise=z).x
    assert found.dtype == torch.float32 and torch.equal(found, final(D, x, TS, ancestral, noise=z.float()).x)
    for short in (z[0, 0], z[0, :1]):
        with pytest.raises(ValueError, match=r"z: expected the noise of ancestral, shape \(4, 2\), got"):
            ancestral(D, x, 0.5, 0.4, short)
    with pytest.raises(ValueError, match=r"z: .* shape \(2, 4, 2\), got \(4, 2\)"):
        predictor_corrector()(D, x, 0.5, 0.4, z[0])
    with pytest.raises(ValueError, match=r"z: .* shape \(2, 4, 2\), got \(4, 2\)"):                          # draws two itself
        predictor_corrector(predictor_corrector())(D, x, 0.5, 0.4, z[:2])


# ---------------------------------------------------------------------------------------------- rows asked of the network
class Hears:
    """x0_hat is what it was told for the row plus its label; counts the rows it was asked for."""

    schedule, is_posterior_mean, rows = CosineVP(), True, 0

    def __call__(self, x, t, cond, numbers):
        self.rows += len(x)
        return (numbers + cond[:, None]).to(x).expand_as(x)


def test_what_is_counted_is_what_was_asked():
    """Guidance of a guided model asks for four rows where one is sampled; a count inside a count costs what it counts."""
    x, cond = start(3), torch.tensor([0, 1, 2])
    for build, cost in ((lambda D: D, 1), (lambda D: guided(D, 1.0), 2), (lambda D: guided(guided(D, 1.0), 0.5), 4)):
        D = Hears()
        counted = build(told(D, 0.3))
        found = final(Counted(counted), x, TS, ddim, cond=cond)
        assert found.nfe * len(x) == D.rows and found.nfe == 6 * cost and found.depth == 6


def test_a_count_follows_the_rows_into_one_book():
    D = Counted(told(Hears(), torch.tensor([10.0, 20.0, 30.0])))
    x, rows = start(3), torch.tensor([2, 2, 0])
    asked = for_rows(D, rows, x)(x[rows], 0.5, torch.zeros(3, dtype=torch.long))
    assert asked[:, 0].tolist() == [30.0, 30.0, 10.0] and (D.nfe, D.depth) == (1, 1)


@pytest.mark.parametrize("sampler", [dpm_solver_pp, partial(dpm_solver_pp, order=3), sample], ids=["bare", "partial", "sample"])
def test_a_sampler_is_no_step(sampler):
    D, ts = ring().denoiser(CosineVP()), uniform(4, CosineVP())
    for walk in (sample, picard, parareal):
        with pytest.raises(ValueError, match=r"step: expected a step from t to s, such as ddim, got the sampler .*(pp|sample)"):
            list(walk(D, torch.zeros(3, 2), ts, sampler))
