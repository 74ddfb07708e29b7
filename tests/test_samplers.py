"""DDIM and the SDE steps against closed forms, measured orders of convergence, and one test on whole distributions.

For a Gaussian target N(m, s^2) every step is affine in the state and in the noise, so a sampler's mean and variance can be
propagated exactly: no sampling error hides or excuses anything.
"""

import math
from itertools import pairwise

import pytest
import torch
from scipy import stats

from course_lib.denoiser import eps, score
from course_lib.fast_samplers import ddim
from course_lib.metrics import sliced_wasserstein
from course_lib.ode_samplers import euler, heun
from course_lib.sampling import final, prior, sample
from course_lib.schedules import VE, CosineVP, Flow, LinearVP, SubVP, karras, log_snr_uniform, uniform
from course_lib.sde_samplers import ancestral, euler_maruyama, langevin_correction, predictor_corrector
from course_lib.targets import GaussianMixture, ring, two_islands

SCHEDULES = [LinearVP(), CosineVP(), VE(), SubVP(), Flow()]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
M, S = 0.8, 0.6
GAUSSIAN = GaussianMixture([[M]], S)
MIXTURE = GaussianMixture([[-1.0, 0.0], [1.0, 0.5], [0.0, 2.0]], [0.3, 0.5, 0.2], [0.5, 0.3, 0.2])


class Point:
    """The denoiser of a data set with one point."""

    def __init__(self, schedule, at=M):
        self.schedule, self.at = schedule, at

    def __call__(self, x, t, cond=None):
        return torch.full_like(x, self.at)


def ratio(schedule, t):
    """sigma/alpha: the noise level in the variance-exploding variables x/alpha."""
    return schedule.sigma(t) / schedule.alpha(t)


def marginal(schedule, t):
    """Mean and variance of the exact x_t."""
    return schedule.alpha(t) * M, (schedule.alpha(t) * S) ** 2 + schedule.sigma(t) ** 2


def affine(step, D, t, s):
    """(a, c, b^2), each (n,), of the steps x -> a x + c + b z from t (n,) to s (n,); b^2 is summed over all draws of noise.

    One call with k + 2 rows a step tells them: at (x, z) = (0, 0), at (1, 0), and at each unit of noise.
    """
    n, k = len(t), getattr(step, "draws", 0)
    x = torch.zeros(n, k + 2, dtype=torch.float64)
    z = torch.zeros(k, n, k + 2, dtype=torch.float64)
    x[:, 1] = 1.0
    z[range(k), :, range(2, k + 2)] = 1.0
    z = z.reshape(k, -1, 1)
    t, s = t.repeat_interleave(k + 2), s.repeat_interleave(k + 2)
    out = step(D, x.reshape(-1, 1), t, s, z if k > 1 else z[0] if k else None).reshape(n, k + 2)
    origin = out[:, :1]
    return out[:, 1] - out[:, 0], out[:, 0], (out[:, 2:] - origin).square().sum(1)


def propagate(step, D, ts, mean, variance):
    """Exact mean and variance after walking a Gaussian down the grid."""
    for a, c, b2 in zip(*(v.tolist() for v in affine(step, D, ts[:-1], ts[1:]))):
        mean, variance = a * mean + c, a**2 * variance + b2
    return mean, variance


def pair(t, s):
    """A grid of one step."""
    return torch.tensor([t, s], dtype=torch.float64)


def orders(error, ns):
    """Observed orders of convergence between successive numbers of steps."""
    errors = [error(n) for n in ns]
    return [math.log(e / f, m / n) for e, f, n, m in zip(errors, errors[1:], ns, ns[1:])]


def test_the_helper_finds_the_coefficients_of_an_affine_step():
    def step(D, x, t, s, z=None, cond=None):
        return 2 * x + 3 + 4 * z[0] - 5 * z[1]

    step.draws = 2
    assert [c.tolist() for c in affine(step, None, torch.ones(2), torch.zeros(2))] == [[2, 2], [3, 3], [41, 41]]


# ---------------------------------------------------------------------------------------------- DDIM
@every_schedule
def test_ddim_is_eulers_step_in_the_rescaled_variables(schedule, generator):
    """With y = x/alpha and r = sigma/alpha the flow reads dy/dr = eps: y_s = y_t + (r_s - r_t) eps."""
    D, x = MIXTURE.denoiser(schedule), torch.randn(6, 2, generator=generator, dtype=torch.float64)
    for t, s in ((0.9, 0.5), (0.5, 0.45), (0.3, schedule.t_min), (0.3, 0.0)):
        euler = x / schedule.alpha(t) + (ratio(schedule, s) - ratio(schedule, t)) * eps(D, x, t)
        torch.testing.assert_close(ddim(D, x, t, s) / schedule.alpha(s), euler, rtol=1e-12, atol=1e-12)


@every_schedule
def test_ddim_ends_on_the_denoised_point(schedule, generator):
    D, x = MIXTURE.denoiser(schedule), torch.randn(6, 2, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(ddim(D, x, 0.6, 0.0), D(x, 0.6), rtol=1e-14, atol=1e-14)


@every_schedule
@pytest.mark.parametrize("grid", [log_snr_uniform, karras], ids=lambda grid: grid.__name__)
def test_ddim_converges_with_order_1(schedule, grid):
    D, (mean, variance) = GAUSSIAN.denoiser(schedule), marginal(schedule, schedule.t_max)
    x = torch.tensor([[-0.7], [1.9]], dtype=torch.float64) * variance.sqrt() + mean
    end_mean, end_variance = marginal(schedule, schedule.t_min)
    exact = end_mean + (x - mean) * (end_variance / variance).sqrt()

    def error(n):
        return (final(D, x, grid(n, schedule), ddim).x - exact).abs().max().item()

    assert orders(error, [160, 320, 640, 1280])[1:] == pytest.approx([1, 1], abs=0.03)


@every_schedule
@pytest.mark.parametrize("grid", [uniform, log_snr_uniform, karras], ids=lambda grid: grid.__name__)
@pytest.mark.parametrize("n", [1, 3, 20])
def test_ddim_contracts_a_gaussian_by_the_formula(schedule, grid, n):
    """prod (s^2 + r r')/(s^2 + r^2), at most the exact sqrt((s^2 + r_end^2)/(s^2 + r_start^2)): DDIM under-disperses."""
    ts = grid(n, schedule)
    r = ratio(schedule, ts)
    contraction = ((S**2 + r[:-1] * r[1:]) / (S**2 + r[:-1] ** 2)).prod()
    y = torch.tensor([[-3.0], [2.0]], dtype=torch.float64)  # (x - alpha m)/alpha
    end = final(GAUSSIAN.denoiser(schedule), schedule.alpha(ts[0]) * (M + y), ts, ddim).x / schedule.alpha(ts[-1]) - M
    torch.testing.assert_close(end, contraction * y, rtol=1e-8, atol=1e-12)
    assert contraction <= ((S**2 + r[-1] ** 2) / (S**2 + r[0] ** 2)).sqrt()


@every_schedule
def test_one_ddim_step_is_exact_for_a_point(schedule):
    x = torch.tensor([[-3.0], [2.0]], dtype=torch.float64)
    t, s = schedule.t_max, 0.2
    exact = schedule.alpha(s) * M + (x - schedule.alpha(t) * M) * schedule.sigma(s) / schedule.sigma(t)
    torch.testing.assert_close(ddim(Point(schedule), x, t, s), exact, rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------------------------------------- ancestral
@every_schedule
@pytest.mark.parametrize(("t", "s"), [(0.9, 0.4), (0.4, 0.39), (0.2, 0.05)])
def test_the_ancestral_step_follows_the_variance_recursion(schedule, t, s):
    """In y = x/alpha: v' = ((S^2 + r'^2)/(S^2 + r^2))^2 v + r'^2 (r^2 - r'^2)/r^2, and the mean shrinks alike towards m."""
    D, (alpha_t, alpha_s) = GAUSSIAN.denoiser(schedule), (schedule.alpha(t), schedule.alpha(s))
    r, r_new = ratio(schedule, t), ratio(schedule, s)
    shrink, y_mean, y_variance = (S**2 + r_new**2) / (S**2 + r**2), 0.3, 2.0
    mean, variance = propagate(ancestral, D, pair(t, s), alpha_t * y_mean, alpha_t**2 * y_variance)
    torch.testing.assert_close(mean / alpha_s, M + shrink * (y_mean - M))
    torch.testing.assert_close(variance / alpha_s**2, shrink**2 * y_variance + r_new**2 * (r**2 - r_new**2) / r**2)


@every_schedule
def test_ancestral_steps_are_exact_for_a_point(schedule):
    ts = torch.tensor([schedule.t_max, 0.6, 0.55, 0.1, schedule.t_min], dtype=torch.float64)
    start = schedule.alpha(ts[0]) * M, schedule.sigma(ts[0]) ** 2
    mean, variance = propagate(ancestral, Point(schedule), ts, *start)
    torch.testing.assert_close(mean, schedule.alpha(ts[-1]) * M)
    torch.testing.assert_close(variance, schedule.sigma(ts[-1]) ** 2, rtol=1e-9, atol=0)


@pytest.mark.parametrize("schedule", [LinearVP(), CosineVP()], ids=lambda schedule: type(schedule).__name__)
@pytest.mark.parametrize(("t", "s"), [(0.9, 0.4), (0.4, 0.39), (0.2, 0.05)])
def test_the_ancestral_step_is_ddpms(schedule, t, s):
    """Ho et al. 2020, eq. 7, with abar the product of the discrete alphas; one step of theirs is any t -> s of ours."""
    abar_t, abar_s = schedule.alpha(t) ** 2, schedule.alpha(s) ** 2
    alpha, beta = abar_t / abar_s, 1 - abar_t / abar_s
    beta_tilde = (1 - abar_s) / (1 - abar_t) * beta
    a, c, b2 = (v[0] for v in affine(ancestral, Point(schedule, at=1.0), *pair(t, s)[:, None]))
    torch.testing.assert_close(a, alpha.sqrt() * (1 - abar_s) / (1 - abar_t))
    torch.testing.assert_close(c, abar_s.sqrt() * beta / (1 - abar_t))
    torch.testing.assert_close(b2, beta_tilde)


@every_schedule
@pytest.mark.parametrize("t", [0.5, 1.0])
def test_ancestral_to_0_returns_the_denoised_point_without_noise(schedule, t, generator):
    x, z = torch.randn(2, 6, 2, generator=generator, dtype=torch.float64)
    D = MIXTURE.denoiser(schedule)
    torch.testing.assert_close(ancestral(D, x, t, 0.0, 1e6 * z), D(x, t), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("schedule", [CosineVP(), Flow()], ids=lambda schedule: type(schedule).__name__)
def test_ancestral_may_start_at_1(schedule, generator):
    """Pure noise carries nothing of the data: x_s is drawn around the data's mean, with the whole of the noise fresh."""
    x, z = torch.randn(2, 6, 1, generator=generator, dtype=torch.float64)
    expected = schedule.alpha(0.5) * M + schedule.sigma(0.5) * z
    torch.testing.assert_close(ancestral(GAUSSIAN.denoiser(schedule), x, 1.0, 0.5, z), expected, rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------------------------------------- Euler-Maruyama
def moment_errors(step, schedule, grid, n):
    """How far mean and variance are from the exact ones after n steps from the exact marginal."""
    ts = grid(n, schedule)
    found = propagate(step, GAUSSIAN.denoiser(schedule), ts, *marginal(schedule, ts[0]))
    return [abs(f - e).item() for f, e in zip(found, marginal(schedule, ts[-1]), strict=True)]


@every_schedule
@pytest.mark.parametrize("step", [euler_maruyama, ancestral], ids=lambda step: step.__name__)
def test_the_variance_of_the_sde_steps_has_weak_order_1(schedule, step):
    measured = orders(lambda n: moment_errors(step, schedule, karras, n)[1], [2000, 4000, 8000])
    assert measured == pytest.approx([1, 1], abs=0.03)


def test_euler_maruyama_has_weak_order_1_on_the_uniform_grid():
    measured = orders(lambda n: moment_errors(euler_maruyama, LinearVP(), uniform, n)[1], [2000, 4000, 8000])
    assert measured == pytest.approx([1, 1], abs=0.03)


@pytest.mark.parametrize("schedule", [LinearVP(), CosineVP(), SubVP()], ids=lambda schedule: type(schedule).__name__)
def test_the_mean_of_euler_maruyama_has_order_1(schedule):
    measured = orders(lambda n: moment_errors(euler_maruyama, schedule, karras, n)[0], [2000, 4000, 8000])
    assert measured == pytest.approx([1, 1], abs=0.03)


@every_schedule
def test_ancestral_steps_keep_the_mean_exactly(schedule):
    assert moment_errors(ancestral, schedule, log_snr_uniform, 7)[0] < 1e-12


@pytest.mark.parametrize("schedule", [VE(), Flow()], ids=lambda schedule: type(schedule).__name__)
def test_euler_maruyama_keeps_the_mean_where_alpha_is_a_straight_line(schedule):
    assert moment_errors(euler_maruyama, schedule, log_snr_uniform, 7)[0] < 1e-12


@every_schedule
def test_the_euler_maruyama_step_is_its_formula(schedule, generator):
    x, z = torch.randn(2, 6, 2, generator=generator, dtype=torch.float64)
    D, t, s = MIXTURE.denoiser(schedule), 0.5, 0.48
    f, g2, h = schedule.drift(t), schedule.diffusion2(t), t - s
    expected = x - (f * x - g2 * score(D, x, t)) * h + (g2 * h).sqrt() * z
    torch.testing.assert_close(euler_maruyama(D, x, t, s, z), expected, rtol=1e-13, atol=1e-13)


# ---------------------------------------------------------------------------------------------- predictor-corrector
def correction(snr):
    """The Langevin correction at time t as a step that stays there."""

    def step(D, x, t, s, z=None, cond=None):
        return langevin_correction(D, x, t, z, snr)

    step.draws = 1
    return step


@every_schedule
@pytest.mark.parametrize("snr", [0.3, 0.1, 0.01])
def test_the_langevin_correction_moves_a_right_marginal_by_its_step_squared(schedule, snr):
    """Its step h = 2 (snr sigma)^2 turns variance v into (1 - h/v)^2 v + 2 h = v + h^2/v, and leaves the mean alone."""
    t, (mean, variance) = 0.4, marginal(schedule, 0.4)
    h = 2 * (snr * schedule.sigma(t)) ** 2
    new_mean, new_variance = propagate(correction(snr), GAUSSIAN.denoiser(schedule), pair(t, t), mean, variance)
    torch.testing.assert_close(new_mean, mean)
    torch.testing.assert_close(new_variance, variance + h**2 / variance, rtol=1e-12, atol=0)


@every_schedule
@pytest.mark.parametrize("snr", [0.5, 0.1])
def test_corrections_repeated_settle_at_a_variance_too_large(schedule, snr):
    t, (mean, variance) = 0.4, marginal(schedule, 0.4)
    h = 2 * (snr * schedule.sigma(t)) ** 2
    a, c, b2 = (v[0] for v in affine(correction(snr), GAUSSIAN.denoiser(schedule), *pair(t, t)[:, None]))
    torch.testing.assert_close(c / (1 - a), mean)
    torch.testing.assert_close(b2 / (1 - a**2), variance / (1 - h / (2 * variance)))


@every_schedule
def test_a_vanishing_correction_leaves_the_predictor_alone(schedule):
    ts, D = log_snr_uniform(20, schedule), GAUSSIAN.denoiser(schedule)
    start = marginal(schedule, ts[0])
    _, alone = propagate(ancestral, D, ts, *start)
    gaps = [abs(propagate(predictor_corrector(snr=snr), D, ts, *start)[1] - alone).item() for snr in (1e-2, 1e-3)]
    assert gaps[0] / gaps[1] == pytest.approx(100, rel=0.05), "the difference must vanish like snr^2"


@every_schedule
def test_the_more_corrections_the_better_the_variance(schedule):
    """Ten ancestral steps under-disperse; each correction takes away a share of what is missing."""
    ts, D = log_snr_uniform(10, schedule), GAUSSIAN.denoiser(schedule)
    steps = [ancestral, *(predictor_corrector(corrections=k) for k in (1, 4, 16))]
    variances = [propagate(step, D, ts, *marginal(schedule, ts[0]))[1].item() for step in steps]
    assert variances == sorted(variances) and variances[-1] < marginal(schedule, ts[-1])[1]
    assert len(set(variances)) == 4


def test_the_predictor_goes_first_and_corrections_act_at_the_new_time(generator):
    D, (x, *z) = MIXTURE.denoiser(VE()), torch.randn(4, 6, 2, generator=generator, dtype=torch.float64)
    predicted = euler_maruyama(D, x, 0.6, 0.5, z[0])
    once = langevin_correction(D, predicted, 0.5, z[1], 0.2)
    twice = langevin_correction(D, once, 0.5, z[2], 0.2)
    assert torch.equal(predictor_corrector(euler_maruyama, 2, 0.2)(D, x, 0.6, 0.5, torch.stack(z)), twice)


@pytest.mark.parametrize("corrections", [0, -1, 1.5])
def test_no_corrections_are_refused(corrections):
    with pytest.raises(ValueError, match=rf"corrections: expected a whole number, at least 1, got {corrections}"):
        predictor_corrector(corrections=corrections)


# ---------------------------------------------------------------------------------------------- every step
STEPS = {"ddim": ddim, "ancestral": ancestral, "euler_maruyama": euler_maruyama, "pc": predictor_corrector()}
every_step = pytest.mark.parametrize("name", STEPS)


def noise_for(step, x, generator):
    k = getattr(step, "draws", 0)
    return torch.randn((k, *x.shape) if k > 1 else x.shape, generator=generator, dtype=x.dtype)


@every_schedule
@every_step
def test_times_may_be_numbers_tensors_or_one_per_row(schedule, name, generator):
    step, D = STEPS[name], MIXTURE.denoiser(schedule)
    x = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    z = noise_for(step, x, generator)
    t, s = torch.tensor([0.9, 0.5, 0.3], dtype=torch.float64), torch.tensor([0.7, 0.45, 0.1], dtype=torch.float64)
    together = step(D, x, t, s, z)
    for i in range(3):
        row, own_z = slice(i, i + 1), z[..., i:i + 1, :]
        as_numbers = step(D, x[row], t[i].item(), s[i].item(), own_z)
        torch.testing.assert_close(as_numbers, step(D, x[row], t[i], s[i], own_z), rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(together[row], as_numbers, rtol=1e-12, atol=1e-12)


@every_step
def test_a_step_leaves_its_input_alone(name, generator):
    step, x = STEPS[name], torch.randn(3, 2, generator=generator, dtype=torch.float64)
    z = noise_for(step, x, generator)
    before = x.clone(), z.clone()
    step(MIXTURE.denoiser(CosineVP()), x, 0.5, 0.4, z)
    assert torch.equal(x, before[0]) and torch.equal(z, before[1])


# ---------------------------------------------------------------------------------------------- whole distributions
SETS, PER_SET, FOLD = 24, 1250, 8  # 24 sets of 1,250 points, each turned 8 ways: 10,000 points a set


def turned(x):
    """x (N, 2) and its copies turned by 45, 90, ... degrees (8 N, 2).

    Prior and target look the same after each such turn, hence so do all exact distributions between. The copies take away
    the chance numbers of points per mode, which at 10,000 points are ten times the error that the test is to see.
    """
    angles = 2 * math.pi * torch.arange(FOLD, dtype=x.dtype) / FOLD
    turns = torch.stack([torch.stack([a.cos(), -a.sin(), a.sin(), a.cos()]).reshape(2, 2) for a in angles])
    return (x @ turns.mT).flatten(0, 1)


def mean_distance(samples, truth):
    """Sliced Wasserstein distance of independent sets, averaged."""
    pairs = zip(samples.float().split(PER_SET), truth.float().split(PER_SET), strict=True)
    return sum(sliced_wasserstein(turned(a), turned(b)) for a, b in pairs) / SETS


@pytest.mark.slow
@pytest.mark.parametrize("step", [ancestral, euler_maruyama], ids=lambda step: step.__name__)
def test_a_thousand_steps_sample_the_ring_and_twenty_do_not(step, generator):
    schedule, target, n = LinearVP(), ring(), SETS * PER_SET
    D, truth = target.denoiser(schedule), target.marginal(schedule, schedule.t_min)
    reference = truth.sample(n, generator)
    floor = mean_distance(truth.sample(n, generator), reference)

    def excess(steps):
        parts = (prior(D, (n // 3, 2), generator) for _ in range(3))
        samples = torch.cat([final(D, x, uniform(steps, schedule), step, generator).x for x in parts])
        return mean_distance(samples, reference) / floor

    assert excess(1000) < 1.2
    assert excess(20) > 1.2


@pytest.mark.parametrize("step", [ancestral, euler_maruyama], ids=lambda step: step.__name__)
def test_modes_far_apart_get_their_weights(step, generator):
    schedule, n = LinearVP(), 4000
    D = two_islands(weight=0.8).denoiser(schedule)
    x = final(D, prior(D, (n, 2), generator), log_snr_uniform(200, schedule), step, generator).x
    left = int((x[:, 0] < 0).sum())
    assert stats.binomtest(left, n, 0.8).pvalue > 1e-3


# ---------------------------------------------------------------------------------------------- down to 0
@every_schedule
def test_there_is_nothing_to_correct_where_no_noise_is_left(schedule, generator):
    D, ts = MIXTURE.denoiser(schedule), torch.cat([log_snr_uniform(5, schedule), torch.zeros(1, dtype=torch.float64)])
    x, z = prior(D, (3, 2), generator, dtype=torch.float64), torch.randn(6, 2, 3, 2, generator=generator, dtype=torch.float64)
    corrected = final(D, x, ts, predictor_corrector(), noise=z)
    *_, before = sample(D, x, ts[:-1], predictor_corrector(), noise=z[:-1])
    assert torch.equal(corrected.x, ancestral(D, before, ts[-2], 0.0, z[-1, 0]))
    assert corrected.nfe == 11                                                           # five pairs, and a last prediction
    mixed = langevin_correction(D, x, torch.tensor([0.0, 0.5, 0.0], dtype=torch.float64), z[0, 0])
    assert torch.equal(mixed[::2], x[::2])
    torch.testing.assert_close(mixed[1:2], langevin_correction(D, x[1:2], 0.5, z[0, 0, 1:2]))


@pytest.mark.parametrize("snr", [0.0, -0.1, math.nan])
def test_a_correction_has_a_size(snr):
    with pytest.raises(ValueError, match="snr: expected a positive number, got"):
        predictor_corrector(snr=snr)


@pytest.mark.parametrize("step", [ddim, ancestral, predictor_corrector()], ids=["ddim", "ancestral", "pc"])
def test_a_grid_in_single_precision_may_start_from_pure_noise(step, generator):
    """At t = 1 the cosine schedule's alpha is 0, not the -4e-8 of a float32 cosine, so the first step is that of float64."""
    D, x = MIXTURE.denoiser(CosineVP()), torch.randn(3, 2, generator=generator)
    found = [final(D, x, torch.tensor([1.0, 0.5, 0.2], dtype=dtype), step, torch.Generator().manual_seed(0)).x
             for dtype in (torch.float32, torch.float64)]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------------------------------- paths
def test_the_paths_of_euler_maruyama_have_order_1(generator):
    """Strong order 1/2 is for noise that depends on the state. Here one Brownian path is followed with fewer steps."""
    D, n = MIXTURE.denoiser(LinearVP()), 2**10
    ts = torch.linspace(0.9, 0.2, n + 1, dtype=torch.float64)
    start, *noise = torch.randn(n + 1, 200, 2, generator=generator, dtype=torch.float64)
    noise = torch.stack(noise)

    def ends(stride):
        summed = noise.unflatten(0, (-1, stride)).sum(1) / stride**0.5
        return final(D, start, ts[::stride], euler_maruyama, noise=summed).x

    truth = ends(1)
    errors = [(ends(stride) - truth).square().mean().sqrt().item() for stride in (64, 32, 16)]
    for large, small in pairwise(errors):
        assert 0.8 < math.log2(large / small) < 1.2


@pytest.mark.parametrize("step", [euler, heun, euler_maruyama, ancestral, ddim], ids=lambda step: step.__name__)
def test_the_noisiest_ve_fits_in_half_precision(step):
    """Its g^2 at t = 1 is 120^2 2 log(12000) = 270,000, beyond 65504; states are about 120, and slopes about 1,100."""
    D = GAUSSIAN.denoiser(VE(120.0))
    x = prior(D, (40, 1), torch.Generator().manual_seed(1), dtype=torch.float64)
    ts, z = torch.tensor([1.0, 0.8, 0.6], dtype=torch.float64), torch.zeros(2, 40, 1, dtype=torch.float64)
    found, truth = (final(D, x.to(dtype), ts, step, noise=z).x for dtype in (torch.float16, torch.float64))
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.double(), truth, rtol=0.02, atol=0.2)
