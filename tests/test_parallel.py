"""Parallel samplers against the sequential one: the same solution, whatever the window, the slopes, the blocks, the devices."""

import os
import signal
import socket
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from scipy.stats import kstest
from torch.distributions import Normal

from course_lib.consistency import consistency_step
from course_lib.denoiser import guided, levels, told
from course_lib.fast_samplers import ddim, ddim_eta
from course_lib.ode_samplers import euler, heun
from course_lib.parallel import (
    Known,
    Workers,
    carry,
    converged,
    gaussian_slopes,
    over_blocks,
    parareal,
    picard,
    step_noise,
)
from course_lib.progressive import overshoot
from course_lib.sampling import Counted, draws, final, prior, sample
from course_lib.schedules import VE, CosineVP, Flow, LinearVP, SubVP, karras, log_snr_to_zero, log_snr_uniform, uniform
from course_lib.sde_samplers import ancestral, euler_maruyama, predictor_corrector
from course_lib.speculation import noise_scales, reflection_coupling, speculative
from course_lib.targets import GaussianMixture, ring

SCHEDULES = [LinearVP(), CosineVP(), VE(), SubVP(), Flow()]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
STEPS = {"ddim": ddim, "euler": euler, "heun": heun, "ancestral": ancestral, "euler_maruyama": euler_maruyama,
         "ddim_eta": ddim_eta(0.5), "pc": predictor_corrector(), "pc2": predictor_corrector(corrections=2)}
every_step = pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
WAYS = {"picard": {}, "gaussian": {"std": 1.07}, "secant": {"secant": True}, "both": {"std": 0.5, "secant": True}}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
EXACT = {"rtol": 0.0, "atol": 1e-10}


def seeded(seed=1):
    return torch.Generator().manual_seed(seed)


def start(D, batch=3):
    return prior(D, (batch, 2), seeded(0), dtype=torch.float64)


def in_turn(D, x, ts, step, **kwargs):
    """The whole sequential trajectory (n + 1, B, ...)."""
    return torch.stack([x, *sample(D, x, ts, step, **kwargs)])


# ---------------------------------------------------------------------------------------------- parallel = sequential
@every_schedule
@every_step
@every_way
def test_picard_run_out_is_the_sequential_sampler(schedule, step, way):
    D, ts = ring().denoiser(schedule), log_snr_uniform(12, schedule)
    x = start(D)
    sweep = converged(picard(D, x, ts, step, generator=seeded(), tolerance=0.0, **way))
    torch.testing.assert_close(sweep.trajectory, in_turn(D, x, ts, step, generator=seeded()), **EXACT)
    assert sweep.settled == 12


@every_schedule
@every_step
@pytest.mark.parametrize("blocks", [1, 5, None])
def test_parareal_run_out_is_the_sequential_sampler(schedule, step, blocks):
    D, ts = ring().denoiser(schedule), log_snr_uniform(12, schedule)
    x = start(D)
    sweep = converged(parareal(D, x, ts, step, blocks=blocks, generator=seeded(), tolerance=0.0))
    torch.testing.assert_close(sweep.trajectory, in_turn(D, x, ts, step, generator=seeded()), **EXACT)
    assert sweep.settled == 12


@pytest.mark.parametrize("step", [ddim, ancestral, euler_maruyama], ids=lambda step: step.__name__)
@pytest.mark.parametrize("window", [4, 15, 40])
@pytest.mark.parametrize("batch", [1, 64])
@every_way
def test_neither_window_nor_batch_changes_the_solution(step, window, batch, way):
    D = ring().denoiser(LinearVP())
    x, ts = start(D, batch), karras(15, D.schedule)
    sweep = converged(picard(D, x, ts, step, generator=seeded(), window=window, tolerance=0.0, **way))
    torch.testing.assert_close(sweep.trajectory, in_turn(D, x, ts, step, generator=seeded()), **EXACT)


@pytest.mark.parametrize("step", [ddim, ancestral], ids=lambda step: step.__name__)
@pytest.mark.parametrize("sampler", [picard, parareal], ids=lambda sampler: sampler.__name__)
def test_a_grid_down_to_0_ends_on_the_denoised_point(sampler, step):
    D = ring().denoiser(CosineVP())
    x, ts = start(D), log_snr_to_zero(14, D.schedule)
    expected = in_turn(D, x, ts, step, generator=seeded())
    for tolerance, gap in ((0.0, 1e-10), (1e-3, 0.03)):
        found = converged(sampler(D, x, ts, step, generator=seeded(), tolerance=tolerance)).trajectory
        torch.testing.assert_close(found, expected, rtol=0.0, atol=gap)


def test_a_thousand_ancestral_steps_take_few_rounds():
    D = ring().denoiser(LinearVP())
    x, ts = start(D, 1), uniform(1000, D.schedule)
    expected = in_turn(D, x, ts, ancestral, generator=seeded())[-1]
    rounds = []
    for way in ({}, {"std": 1.07}, {"std": 1.07, "secant": True}):
        sweep = converged(picard(D, x, ts, ancestral, generator=seeded(), tolerance=0.01, **way))
        torch.testing.assert_close(sweep.trajectory[-1], expected, rtol=0.0, atol=0.01)
        rounds.append(sweep.rounds)
    assert rounds == sorted(rounds, reverse=True) and rounds[0] <= 45 and rounds[-1] <= rounds[0] / 2, rounds


def test_a_state_in_float32_is_found_to_its_precision():
    D = ring().denoiser(VE())                                                    # sums of increments would lose digits here
    x, ts = start(D).float(), uniform(200, D.schedule)
    expected = in_turn(D, x, ts, ancestral, generator=seeded())
    found = converged(picard(D, x, ts, ancestral, generator=seeded(), tolerance=0.0)).trajectory
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_conditions_go_with_their_rows():
    D = guided(ring().denoiser(CosineVP()), 0.5)
    x, ts, cond = start(D), uniform(9, D.schedule), torch.tensor([0, 3, 5])
    expected = in_turn(D, x, ts, ancestral, generator=seeded(), cond=cond)
    for sampler in (picard, parareal):
        sweep = converged(sampler(D, x, ts, ancestral, generator=seeded(), tolerance=0.0, cond=cond))
        torch.testing.assert_close(sweep.trajectory, expected, **EXACT)


def test_conditions_may_be_rows_of_numbers_such_as_captions():
    class Told:
        schedule = CosineVP()

        def __call__(self, x, t, cond=None):
            return torch.tanh(x + cond.to(x).mean(1, keepdim=True))

    x, ts, cond = start(Told()), uniform(9, Told.schedule), torch.tensor([[0, 3, -1, -1], [5, 1, 2, -1], [4, -1, -1, -1]])
    expected = in_turn(Told(), x, ts, ddim, cond=cond)
    for sampler in (picard, parareal):
        sweep = converged(sampler(Told(), x, ts, ddim, tolerance=0.0, cond=cond))
        torch.testing.assert_close(sweep.trajectory, expected, **EXACT)
    assert bool(speculative(Told(), x, ts, ancestral, ahead=3, cond=cond).x.isfinite().all())


def test_images_are_states_too(generator):
    class Blur:
        schedule = CosineVP()

        def __call__(self, x, t, cond=None):
            return torch.tanh(x.roll(1, dims=-1) + 0.3 * x.mean((2, 3), keepdim=True))

    x, ts = torch.randn(2, 1, 4, 4, generator=generator, dtype=torch.float64), uniform(10, Blur.schedule)
    for step in (ddim, ancestral, predictor_corrector()):
        expected = in_turn(Blur(), x, ts, step, generator=seeded())
        for sweeps in (picard(Blur(), x, ts, step, generator=seeded(), tolerance=0.0, std=0.5, secant=True, window=6),
                       parareal(Blur(), x, ts, step, generator=seeded(), tolerance=0.0)):
            torch.testing.assert_close(converged(sweeps).trajectory, expected, **EXACT)


def test_noise_drawn_beforehand_is_used_in_its_order():
    D = ring().denoiser(LinearVP())
    x, ts = start(D), uniform(8, D.schedule)
    noise = torch.randn(8, 3, 2, generator=seeded(5), dtype=torch.float64)
    expected = in_turn(D, x, ts, ancestral, noise=noise)
    for sampler in (picard, parareal):
        torch.testing.assert_close(converged(sampler(D, x, ts, ancestral, noise=noise, tolerance=0.0)).trajectory,
                                   expected, **EXACT)


# ---------------------------------------------------------------------------------------------- in which order
@pytest.mark.parametrize("step", [ddim, ancestral], ids=lambda step: step.__name__)
@every_way
def test_the_first_k_states_are_exact_after_k_sweeps(step, way):
    D = ring().denoiser(VE())
    x, ts = start(D), uniform(20, D.schedule)
    expected = in_turn(D, x, ts, step, generator=seeded())
    for k, sweep in enumerate(picard(D, x, ts, step, generator=seeded(), tolerance=0.0, **way), start=1):
        torch.testing.assert_close(sweep.trajectory[:k + 1], expected[:k + 1], **EXACT)
        assert sweep.settled >= k and sweep.rounds == k


def test_node_k_of_parareal_is_exact_after_k_sweeps():
    D = ring().denoiser(LinearVP())
    x, ts = start(D), log_snr_uniform(20, D.schedule)
    expected = in_turn(D, x, ts, ddim)
    errors = []
    for k, sweep in enumerate(parareal(D, x, ts, ddim, blocks=5, tolerance=0.0), start=1):
        torch.testing.assert_close(sweep.trajectory[:4 * k + 1], expected[:4 * k + 1], **EXACT)
        errors.append((sweep.trajectory[-1] - expected[-1]).abs().max().item())
    assert errors[-1] < 1e-12 < errors[0]


def test_an_error_may_grow_before_it_falls():
    D = ring().denoiser(VE())
    x, ts = start(D), uniform(40, D.schedule)
    expected = in_turn(D, x, ts, ddim)
    sweeps = list(picard(D, x, ts, ddim, tolerance=0.0))
    errors = [(sweep.trajectory - expected).abs().max().item() for sweep in sweeps]
    assert max(errors[1:]) > 2 * errors[0] and errors[-1] < 1e-10
    assert max(sweep.residual for sweep in sweeps) > 2 * sweeps[0].residual and sweeps[-1].residual == 0


@pytest.mark.parametrize("way", [{"std": 0.6}, {"std": 0.6, "secant": True}], ids=["gaussian", "both"])
@every_schedule
def test_one_sweep_solves_gaussian_data(schedule, way):
    """There the slopes are the truth, so that the first sweep lands and the second finds nothing to mend."""
    D = GaussianMixture([[0.8, -0.3]], 0.6).denoiser(schedule)
    x, ts = start(D), log_snr_uniform(50, schedule)
    for step in (ddim, ancestral, predictor_corrector()):
        expected = in_turn(D, x, ts, step, generator=seeded())
        first = next(picard(D, x, ts, step, generator=seeded(), **way))
        torch.testing.assert_close(first.trajectory, expected, rtol=1e-9, atol=1e-9)


def test_a_tighter_tolerance_takes_more_rounds_and_ends_nearer():
    D = ring().denoiser(LinearVP())
    x, ts = start(D), uniform(100, D.schedule)
    expected = in_turn(D, x, ts, ancestral, generator=seeded())[-1]
    for sampler in (picard, parareal):
        ends = [converged(sampler(D, x, ts, ancestral, generator=seeded(), tolerance=tol)) for tol in (1.0, 1e-2, 1e-6)]
        errors = [(sweep.trajectory[-1] - expected).abs().max().item() for sweep in ends]
        assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-6
        assert [sweep.rounds for sweep in ends] == sorted(sweep.rounds for sweep in ends)


def test_what_has_settled_stays_and_the_window_slides_past_it():
    D = ring().denoiser(LinearVP())
    x, ts = start(D), uniform(60, D.schedule)
    sweeps = list(picard(D, x, ts, ancestral, generator=seeded(), window=20))
    for before, after in pairwise(sweeps):
        k = before.settled
        assert torch.equal(before.trajectory[:k + 1], after.trajectory[:k + 1])
        assert after.evaluations - before.evaluations == min(20, 60 - k) and after.settled > k
    assert sweeps[0].evaluations == 20 and sweeps[-1].settled == 60


# ---------------------------------------------------------------------------------------------- the parts
def test_carry_is_the_recursion(generator):
    slopes = torch.rand(13, 2, generator=generator, dtype=torch.float64)
    residuals = torch.randn(13, 2, 3, generator=generator, dtype=torch.float64)
    u, expected = torch.zeros(2, 3, dtype=torch.float64), []
    for a, r in zip(slopes, residuals):
        expected.append(u := a[:, None] * u + r)
    torch.testing.assert_close(carry(slopes, residuals), torch.stack(expected))
    assert torch.equal(carry(slopes[:1], residuals[:1]), residuals[:1])


@every_schedule
def test_the_slopes_on_gaussian_data_are_the_laws(schedule):
    """DDIM shrinks x/alpha by (s^2 + r r')/(s^2 + r^2) and the ancestral step by (s^2 + r'^2)/(s^2 + r^2)."""
    ts, s = log_snr_uniform(10, schedule), 0.6
    r, alpha = schedule.sigma(ts) / schedule.alpha(ts), schedule.alpha(ts)
    scale = alpha[1:] / alpha[:-1] / (s**2 + r[:-1] ** 2)
    torch.testing.assert_close(gaussian_slopes(ddim, schedule, ts, s), scale * (s**2 + r[:-1] * r[1:]))
    torch.testing.assert_close(gaussian_slopes(ancestral, schedule, ts, s), scale * (s**2 + r[1:] ** 2))


@every_schedule
def test_the_yardstick_is_the_noise_that_the_forward_process_adds(schedule):
    """sigma_t^2 = (alpha_t/alpha_s)^2 sigma_s^2 + what is added between s and t, also from s = 0."""
    ts = log_snr_to_zero(10, schedule)
    alpha, sigma = schedule.alpha(ts), schedule.sigma(ts)
    added = sigma[:-1] ** 2 - (alpha[:-1] / alpha[1:] * sigma[1:]) ** 2
    torch.testing.assert_close(step_noise(schedule, ts) ** 2, added)


@every_schedule
def test_noise_over_blocks_makes_one_ancestral_step_of_many(schedule, generator):
    """With a constant x0_hat the coarse step lands exactly where the fine ones do."""

    class Point:
        def __call__(self, x, t, cond=None):
            return torch.full_like(x, 0.7)

    Point.schedule = schedule
    ts, edges = log_snr_uniform(12, schedule), torch.tensor([0, 5, 9, 12])
    x, noise = torch.randn(4, 2, generator=generator, dtype=torch.float64), torch.randn(12, 4, 2, dtype=torch.float64)
    fine = in_turn(Point(), x, ts, ancestral, noise=noise)[edges]
    coarse = in_turn(Point(), x, ts[edges], ancestral, noise=over_blocks(noise, schedule, ts, edges))
    torch.testing.assert_close(coarse, fine, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("cost", [1, 2], ids=["plain", "guided"])
def test_rounds_and_evaluations_are_counted(cost):
    D = ring().denoiser(CosineVP())
    D = guided(D, 1.0) if cost == 2 else D
    x, ts, cond = start(D), uniform(12, D.schedule), torch.tensor([0, 1, 2])
    for step, each in ((ddim, 1), (heun, 2), (predictor_corrector(), 2)):
        first, second, *_ = picard(D, x, ts, step, generator=seeded(), tolerance=0.0, cond=cond)
        assert (first.rounds, second.rounds) == (each, 2 * each)
        assert first.evaluations == 12 * each * cost and second.evaluations > first.evaluations
    first, second, *_ = parareal(D, x, ts, ddim, blocks=4, tolerance=0.0, cond=cond)
    assert (first.rounds, first.evaluations) == (4 + 3 + 3, (4 + 12 + 3) * cost)
    assert (second.rounds, second.evaluations) == (10 + 3 + 2, (19 + 9 + 2) * cost)


@pytest.mark.parametrize(("rows", "world", "sizes"), [(15, 4, [4, 4, 4, 3]), (8, 4, [2, 2, 2, 2]), (3, 4, [1, 1, 1, 0])])
def test_rows_are_shared_evenly_and_calls_are_alike(monkeypatch, rows, world, sizes):
    monkeypatch.setattr("course_lib.parallel.dist.get_world_size", lambda group: world)
    shares = []
    for rank in range(world):
        monkeypatch.setattr("course_lib.parallel.dist.get_rank", lambda group, rank=rank: rank)
        shares.append(Workers(ring().denoiser(VE()), None, group=object())._share(rows).tolist())
    assert {len(share) for share in shares} == {max(sizes)}
    assert [i for share, size in zip(shares, sizes) for i in share[:size]] == list(range(rows))


# ---------------------------------------------------------------------------------------------- speculation
@pytest.mark.parametrize("gap", [0.0, 0.4, 2.0, 6.0])
def test_a_coupled_draft_has_the_law_of_the_target_and_is_kept_as_often_as_can_be(gap):
    g, R, std = seeded(), 40_000, 0.7
    mean, direction = torch.tensor([[0.3, -1.0, 2.0], [2 / 3, -1 / 3, 2 / 3]], dtype=torch.float64)
    mean_draft = (mean + gap * std * direction).expand(R, 3)
    draft = mean_draft + std * torch.randn(R, 3, generator=g, dtype=torch.float64)
    x, accepted = reflection_coupling(draft, mean_draft, mean.expand(R, 3), torch.full((R,), std, dtype=torch.float64),
                                      torch.rand(R, generator=g, dtype=torch.float64))
    assert torch.equal(x[accepted], draft[accepted])
    chance = 2 * Normal(0.0, 1.0).cdf(torch.tensor(-gap / 2)).item()
    assert accepted.double().mean().item() == pytest.approx(chance, abs=4 * (chance * (1 - chance) / R) ** 0.5 + 1e-6)
    for along in (direction, *torch.eye(3, dtype=torch.float64)):
        assert kstest(((x - mean) @ along / std).numpy(), "norm").pvalue > 1e-3


def test_a_draft_without_noise_is_kept_only_where_it_is_right():
    mean, zero = torch.tensor([[1.0, 2.0], [1.0, 2.0]]), torch.zeros(2)
    draft = torch.tensor([[1.0, 2.0], [1.5, 2.0]])
    x, accepted = reflection_coupling(draft, draft, mean, zero, zero)
    assert accepted.tolist() == [True, False] and torch.equal(x, mean)


@pytest.mark.parametrize("step", [ancestral, euler_maruyama, ddim_eta(0.5)], ids=["ancestral", "euler_maruyama", "ddim_eta"])
@pytest.mark.parametrize("ahead", [1, 5, 40])
def test_speculation_keeps_the_law_of_the_sequential_chain(step, ahead):
    """On Gaussian data that law is known: every step is x -> a x + b z + c."""
    D, N = GaussianMixture([[0.8, -0.3]], 0.4).denoiser(LinearVP()), 8000
    ts, x = uniform(12, D.schedule), torch.zeros(N, 2, dtype=torch.float64)
    found = speculative(D, x, ts, step, ahead, seeded())
    mean, variance = torch.zeros(1, 2, dtype=torch.float64), 0.0
    zero, one = torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
    for t, s in pairwise(ts):
        slope = (step(D, one, t, s, zero) - step(D, zero, t, s, zero))[0, 0].item()
        noise = (step(D, zero, t, s, one) - step(D, zero, t, s, zero))[0, 0].item()
        mean, variance = step(D, mean, t, s, zero), slope**2 * variance + noise**2
    for k in range(2):
        assert kstest(((found.x[:, k] - mean[0, k]) / variance**0.5).numpy(), "norm").pvalue > 1e-3
    assert found.acceptance == pytest.approx(found.expected, abs=0.01)


def test_speculation_saves_rounds_and_counts_them():
    D = ring().denoiser(LinearVP())
    found = speculative(D, start(D, 1), uniform(1000, D.schedule), ancestral, 16, seeded())
    assert found.rounds < 120 and 1000 <= found.evaluations < 2000
    alone = speculative(D, start(D, 1), uniform(20, D.schedule), ancestral, 1, seeded())
    assert (alone.rounds, alone.evaluations) == (21, 21)


def test_speculation_minds_labels_and_ends_at_0():
    D, cond = guided(ring().denoiser(CosineVP()), 0.0), torch.arange(8).repeat(40)
    found = speculative(D, start(D, 320), log_snr_to_zero(20, D.schedule), ancestral, 6, seeded(), cond)
    angle = torch.atan2(found.x[:, 1], found.x[:, 0]) / (torch.pi / 4)
    assert ((angle - cond + 4) % 8 - 4).abs().max() < 0.5


@pytest.mark.parametrize(("arguments", "message"), [
    ({"step": ddim}, "step: expected one that draws a single noise, got one that draws 0"),
    ({"step": predictor_corrector()}, "got one that draws 2"),
    ({"ahead": 0}, "ahead: expected a whole number of steps, at least 1, got 0"),
    ({"ts": torch.tensor([0.1, 0.9])}, "times must fall"),
])
def test_speculation_refuses_what_it_cannot_do(arguments, message):
    D = ring().denoiser(LinearVP())
    with pytest.raises(ValueError, match=message):
        speculative(**{"D": D, "x": start(D), "ts": uniform(6, D.schedule), "step": ancestral} | arguments)


# ---------------------------------------------------------------------------------------------- arguments
@pytest.mark.parametrize(("sampler", "arguments", "message"), [
    (picard, {"window": 0}, "window: expected None for all or a whole number of steps, at least 1, got 0"),
    (picard, {"window": 2.5}, "window: expected .* a whole number"),
    (picard, {"tolerance": -1.0}, "tolerance: expected a number in units of a step's noise, at least 0, got -1.0"),
    (picard, {"tolerance": float("nan")}, "tolerance: .*got nan"),
    (picard, {"std": -0.1}, "std: expected the data's standard deviation, at least 0, or None, got -0.1"),
    (picard, {"x": torch.zeros(0, 2)}, r"x: expected at least one sample, shape \(B, ...\), got \(0, 2\)"),
    (picard, {"x": torch.zeros(3, 2, dtype=torch.long)}, "x: expected floating-point states"),
    (picard, {"ts": torch.tensor([0.1, 0.9])}, "ts: times must fall"),
    (picard, {"noise": torch.zeros(5, 3, 2)}, r"noise: expected shape \(6, 3, 2\), got \(5, 3, 2\)"),
    (parareal, {"blocks": 0}, "blocks: expected a whole number from 1 to the 6 steps of the grid, got 0"),
    (parareal, {"blocks": 7}, "blocks: expected a whole number from 1 to the 6 steps of the grid, got 7"),
    (parareal, {"coarse": predictor_corrector()}, "coarse: expected a step that draws no noise or as much .* draws 2"),
    (parareal, {"tolerance": -1.0}, "tolerance: expected a number"),
], ids=lambda value: getattr(value, "__name__", next(iter(value)) if isinstance(value, dict) else ""))
def test_bad_arguments_are_refused_at_once(sampler, arguments, message):
    D = ring().denoiser(LinearVP())
    given = {"x": start(D), "ts": uniform(6, D.schedule), "step": ancestral} | arguments
    with pytest.raises(ValueError, match=message):
        sampler(D, **given)


@pytest.mark.parametrize("sampler", [picard, parareal], ids=lambda sampler: sampler.__name__)
def test_a_state_that_is_not_finite_is_reported(sampler):
    D = ring().denoiser(LinearVP())

    def step(D, x, t, s, z=None, cond=None):
        return torch.full_like(x, torch.nan)

    with pytest.raises(FloatingPointError, match="NaN or infinity after the step from t ="):
        converged(sampler(D, start(D), uniform(6, D.schedule), step))


def test_converged_leaves_no_gradient():
    D = ring().denoiser(LinearVP())
    x = start(D).requires_grad_()
    assert not converged(picard(D, x, uniform(6, D.schedule), ddim)).trajectory.requires_grad


# ---------------------------------------------------------------------------------------------- several processes
CASES = {"picard": "picard(D, x, ts, ancestral, tolerance=0.0",
         "window": "picard(D, x, ts, ddim, window=4, tolerance=0.0, std=0.5, secant=True",
         "default": "picard(D, x, ts, predictor_corrector(), std=0.5, secant=True",
         "parareal": "parareal(D, x, ts, ancestral, blocks=4, tolerance=0.0"}
COMMON = """
import os, signal, sys, time
from datetime import timedelta
import torch
import torch.distributed as dist
from course_lib.fast_samplers import ddim
from course_lib.parallel import converged, parareal, picard
from course_lib.sampling import prior
from course_lib.schedules import LinearVP, uniform
from course_lib.sde_samplers import ancestral, predictor_corrector
from course_lib.targets import ring
torch.set_num_threads(1)
D = ring().denoiser(LinearVP())
ts = uniform(15, D.schedule)
rank = int(os.environ.get("RANK", 0))
def seeded():                             # ranks disagree on purpose: the first of them decides
    return torch.Generator().manual_seed(rank)
def begin(batch):
    return prior(D, (batch, 2), seeded(), dtype=torch.float64)
def run(group, batch):
    x = begin(batch)
    return {name: converged(sweeps) for name, sweeps in {CASES}}
""".replace("{CASES}", "{" + ", ".join(f"{name!r}: {call}, generator=seeded(), group=group)" for name, call in CASES.items())
            + "}.items()")
EQUAL = COMMON + """
dist.init_process_group("gloo", timeout=timedelta(seconds=60))
pair = dist.new_group([1, 2], timeout=timedelta(seconds=60))
out = {batch: run(dist.group.WORLD, batch) for batch in (1, 3)}
if rank in (1, 2):
    out["pair"] = run(pair, 1)
else:
    try:
        picard(D, begin(1), ts, ddim, group=pair)
    except ValueError as error:
        out["stranger"] = str(error)
torch.save(out, f"{sys.argv[1]}/rank{rank}.pt")
sweeps = picard(D, begin(1), ts, ancestral, tolerance=0.0, generator=seeded(), group=dist.group.WORLD)
next(sweeps)
if rank == 3:
    os.kill(os.getpid(), signal.SIGKILL)
converged(sweeps)
print("never", flush=True)
"""
LOST = COMMON + """
dist.init_process_group("gloo", timeout=timedelta(seconds=30))
short, long = (dist.new_group(timeout=timedelta(seconds=s)) for s in (1, 30))
for group in (short, long):
    sweeps = picard(D, begin(1), ts, ancestral, tolerance=0.0, generator=seeded(), group=group)
    next(sweeps)
    if rank == 1 and group is short:
        time.sleep(2)
        continue
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    began = time.monotonic()
    try:
        converged(sweeps)
    except RuntimeError as error:
        print(f"{time.monotonic() - began:.1f} {error}", flush=True)
os._exit(0)
"""
def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def launch(root, *arguments, **environment):
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen([sys.executable, *map(str, arguments)], cwd=root, env=env, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.fixture(scope="module")
def four_ranks(root, tmp_path_factory):
    """A run under torchrun whose fourth rank is killed after all have written what they found: (code, out, err, files)."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "run.py").write_text(EQUAL)
    process = launch(root, "-m", "torch.distributed.run", "--nproc-per-node", 4, "--master-addr", "127.0.0.1",
                     "--master-port", free_port(), folder / "run.py", folder)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err, [folder / f"rank{rank}.pt" for rank in range(4)]


def test_processes_under_torchrun_find_what_one_finds(four_ranks):
    """Fifteen rows on four ranks, forty-five on four, fifteen on two of them: the same on every rank, bit for bit."""
    *_, err, files = four_ranks
    assert all(file.exists() for file in files), err
    outs, alone = [torch.load(file, weights_only=False) for file in files], {}
    exec(COMMON, alone)
    for batch in (1, 3):
        for name, expected in alone["run"](None, batch).items():
            found = [out[batch][name] for out in outs]
            assert all(torch.equal(sweep.trajectory, found[0].trajectory) for sweep in found)
            torch.testing.assert_close(found[0].trajectory, expected.trajectory, rtol=0.0, atol=1e-12)
            assert {(sweep.rounds, sweep.evaluations) for sweep in found} == {(expected.rounds, expected.evaluations)}
    assert all(torch.equal(outs[1]["pair"][name].trajectory, outs[2]["pair"][name].trajectory) for name in CASES)
    assert outs[0]["stranger"] == "group: this process is not a member of the process group it was given"


def test_killing_a_rank_ends_the_run_under_torchrun(four_ranks):
    code, out, err, _ = four_ranks
    assert code != 0 and "never" not in out
    assert "waited in vain for the others" in err or "Signal 9 (SIGKILL)" in err, err


def test_a_rank_that_hangs_or_dies_is_an_error_that_says_so(root, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(LOST)
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    first, second = (launch(root, script, RANK=str(rank), **environment) for rank in (0, 1))
    out, err = first.communicate(timeout=90)
    second.communicate(timeout=30)
    assert second.returncode == -signal.SIGKILL
    lines = out.splitlines()
    assert len(lines) == 2, out + err
    for line in lines:
        seconds, message = line.split(" ", 1)
        assert message.startswith("group: rank 0 of 2 waited in vain for the others: one died, or was silent for longer than")
        assert float(seconds) < 10, "a silent rank after the timeout of 1 s, a dead one at once"


# ---------------------------------------------------------------------------------------------- what belongs to a row
class Hears:
    """x0_hat is the number it was told for the row plus its label; counts the rows it was asked for."""

    schedule, is_posterior_mean, rows = CosineVP(), True, 0

    def __call__(self, x, t, cond, numbers):
        self.rows += len(x)
        return (numbers + cond[:, None]).to(x).expand_as(x)


NUMBERS, ONE, TWO = torch.tensor([10.0, 20.0, 30.0]), torch.tensor([0.0, 0.5, 2.0]), torch.tensor([1.0, 0.0, 0.3])
LABELS = torch.tensor([0, 4, 1])
ROWWISE = {  # a denoiser that holds a number for each of three rows, and the x0_hat that it then has for those labels
    "told": (lambda D: told(D, NUMBERS), NUMBERS + LABELS),
    "guided": (lambda D: guided(told(D, NUMBERS), ONE), NUMBERS + LABELS + ONE * (LABELS + 1)),
    "guided twice": (lambda D: guided(guided(told(D, NUMBERS), ONE), TWO),
                     NUMBERS + LABELS + ONE * (LABELS + 1) + TWO * (1 + ONE) * (LABELS + 1)),
    "counted": (lambda D: guided(Counted(told(D, NUMBERS)), ONE), NUMBERS + LABELS + ONE * (LABELS + 1)),
}


@pytest.mark.parametrize("name", ROWWISE)
def test_weights_and_numbers_go_with_their_rows_and_all_rows_are_counted(name):
    build, x0_hat = ROWWISE[name]
    ts = log_snr_to_zero(9, Hears.schedule)
    ends = x0_hat.double()[:, None].expand(3, 2)                                  # a grid down to 0 ends on x0_hat
    for sampler, ways in ((picard, {}), (picard, {"window": 4, "secant": True, "std": 0.5}), (parareal, {})):
        hears = Hears()
        D = build(hears)
        sweep = converged(sampler(D, start(D), ts, ancestral, generator=seeded(), tolerance=0.0, cond=LABELS, **ways))
        torch.testing.assert_close(sweep.trajectory[-1], ends)
        assert 3 * sweep.evaluations == hears.rows
        torch.testing.assert_close(sweep.trajectory, in_turn(D, start(D), ts, ancestral, generator=seeded(), cond=LABELS))
    hears = Hears()
    found = speculative(build(hears), start(hears), ts, ancestral, 4, seeded(), LABELS)
    torch.testing.assert_close(found.x, ends)
    assert 3 * found.evaluations == hears.rows


@pytest.mark.parametrize("sampler", [picard, parareal, speculative])
@pytest.mark.parametrize("cond", [torch.tensor([1, 2]), torch.tensor([1, 2, 3, 4, 5]), torch.tensor(1)], ids=["2", "5", "()"])
def test_conditions_are_one_for_each_sample(sampler, cond):
    """Too many would go unnoticed: repeated for every step, they would meet the wrong rows."""
    D = ring().denoiser(CosineVP())
    with pytest.raises(ValueError, match=r"cond: expected a condition for each of 3 samples, got shape"):
        converged([sampler(D, start(D), uniform(6, D.schedule), ancestral, cond=cond)][0])


def test_weights_are_one_for_each_sample():
    D = guided(ring().denoiser(CosineVP()), torch.ones(5))
    with pytest.raises(ValueError, match=r"weight: expected one number or one per row, shape \(\) or \(3,\), got \(5,\)"):
        converged(picard(D, start(D), uniform(6, D.schedule), ddim, cond=torch.tensor([1, 2, 3])))


# ---------------------------------------------------------------------------------------------- steps to speculate on
ONE_NOISE = {"ancestral": ancestral, "euler_maruyama": euler_maruyama, "ddim_eta(0)": ddim_eta(0.0),
             "ddim_eta(0.5)": ddim_eta(0.5), "ddim_eta(1)": ddim_eta(1.0), "consistency_step": consistency_step,
             "overshoot": overshoot}


@every_schedule
@pytest.mark.parametrize("step", ONE_NOISE.values(), ids=ONE_NOISE)
def test_the_noise_of_every_step_of_the_library_is_found(schedule, step):
    """As the step's own slope in z, for a grid of images; the ancestral one's is its formula."""
    ts = uniform(30, schedule)
    found = noise_scales(step, schedule, ts, (1, 2, 2))
    D, x = GaussianMixture([[0.3]], 0.5).denoiser(schedule), torch.ones(1, 1, dtype=torch.float64)
    slopes = torch.cat([step(D, x, t, s, x) - step(D, x, t, s, 0 * x) for t, s in pairwise(ts)])
    torch.testing.assert_close(found, slopes[:, 0], rtol=1e-6, atol=1e-9)
    if step is ancestral:
        fresh = -torch.expm1(schedule.log_snr(ts[:-1]) - schedule.log_snr(ts[1:]))
        torch.testing.assert_close(found, schedule.sigma(ts[1:]) * fresh.sqrt(), rtol=1e-9, atol=1e-12)


@draws(1)
def churn(D, x, t, s, z=None, cond=None):
    """EDM's step (Karras et al. 2022, algorithm 2): fresh noise first, then two evaluations from there."""
    t_hat = D.schedule.time_of_log_snr(D.schedule.log_snr(t) - 0.2)
    (alpha, _), (alpha_hat, sigma_hat) = levels(D, x, t), levels(D, x, t_hat)
    return heun(D, alpha_hat / alpha * x + 0.43 * sigma_hat * z, t_hat, s, cond=cond)


@draws(1)
def churned_ddim(D, x, t, s, z=None, cond=None):
    """The same with one evaluation, elsewhere than at x."""
    return ddim(D, x + 0.1 * z, t, s, cond=cond)


@draws(1)
def noisy_heun(D, x, t, s, z=None, cond=None):
    """Two evaluations: no draft knows the second."""
    return heun(D, x, t, s, cond=cond) + 0.1 * z


@draws(1)
def late(D, x, t, s, z=None, cond=None):
    """One evaluation, at x but not at t."""
    return D(x, s, cond) + 0.1 * z


@draws(1)
def blind(D, x, t, s, z=None, cond=None):
    """None at all."""
    return 0.9 * x + 0.1 * z


@draws(1)
def multiplicative(D, x, t, s, z=None, cond=None):
    """Noise as large as the state."""
    return ddim(D, x, t, s, cond=cond) + 0.1 * x * z


@draws(1)
def clipped(D, x, t, s, z=None, cond=None):
    """A Gaussian with its tails cut off."""
    return ancestral(D, x, t, s, z, cond).clamp(-1, 1)


@draws(1)
def mixed(D, x, t, s, z=None, cond=None):
    """Gaussian noise that is not alike in all directions."""
    return ddim(D, x, t, s, cond=cond) + 0.1 * z + 0.1 * z.roll(1, -1)


@draws(1)
def dynamic(D, x, t, s, z=None, cond=None):
    """Any mean will do: x0_hat clipped."""
    return ancestral(Known(D.schedule, lambda x, t: D(x, t, cond).clamp(-1, 1)), x, t, s, z)


OTHERS = {"churn": "got 2", "churned_ddim": "got 1, elsewhere", "noisy_heun": "got 2", "late": "got 1, elsewhere",
          "blind": "got 0", "multiplicative": "a mean and a multiple of the noise", "clipped": "a mean and a multiple",
          "mixed": "a mean and a multiple"}


@pytest.mark.parametrize(("step", "message"), OTHERS.items(), ids=OTHERS)
@pytest.mark.parametrize("schedule", [LinearVP(), VE()], ids=["LinearVP", "VE"])
def test_a_step_that_is_not_gaussian_given_one_evaluation_is_refused(step, message, schedule):
    D = Counted(ring().denoiser(schedule))
    with pytest.raises(ValueError, match=f"step: expected .*{message}"):
        speculative(D, start(D), uniform(6, schedule), globals()[step])
    assert D.nfe == 0


def test_a_mean_may_depend_on_its_evaluation_in_any_way():
    D = GaussianMixture([[0.3, 0.3]], 0.2).denoiser(CosineVP())
    found = speculative(D, start(D, 4000), log_snr_to_zero(12, D.schedule), dynamic, 5, seeded())
    x = final(D, start(D, 4000), log_snr_to_zero(12, D.schedule), dynamic, seeded(4)).x
    assert found.x.mean().item() == pytest.approx(x.mean().item(), abs=0.02)
    assert found.x.std().item() == pytest.approx(x.std().item(), rel=0.05)


# ---------------------------------------------------------------------------------------------- half precision, empty batches
@pytest.mark.parametrize("sampler", [picard, parareal, speculative])
def test_no_samples_are_refused(sampler):
    D = ring().denoiser(CosineVP())
    with pytest.raises(ValueError, match=r"x: expected at least one sample, shape \(B, ...\), got \(0, 2\)"):
        sampler(D, start(D, 0), uniform(6, D.schedule), ancestral)


def test_half_precision_holds_large_states():
    """Squares and sums of numbers about 300 overflow in it; and 1e-12, which guards a division, is 0."""
    D, x = GaussianMixture([[300.0] * 64], 0.5).denoiser(Flow()), torch.zeros(3, 64, dtype=torch.float16)
    ts = log_snr_to_zero(6, D.schedule)
    ends = [converged(picard(D, x, ts, ddim, tolerance=0.01, std=0.5, secant=True)).trajectory[-1],
            converged(parareal(D, x, ts, ddim, tolerance=0.01)).trajectory[-1], speculative(D, x, ts, ancestral, 3, seeded()).x]
    for end in ends:
        assert end.dtype == torch.float16
        torch.testing.assert_close(end, final(D, x, ts, ddim).x, rtol=0.01, atol=0)
