"""The probability flow ODE: fixed steps by their measured order, the adaptive solver and the likelihood against closed forms.

For a Gaussian target N(m, s^2) the flow is a stretch about the mean: with d(t)^2 = alpha^2 s^2 + sigma^2,
x_t = alpha m + (x_T - alpha_T m) d(t)/d(T), and every one-step method is affine in the state and in the noise.
"""

import math
from itertools import pairwise

import pytest
import torch
from scipy import stats

from course_lib.denoiser import guided, per_row, score, velocity
from course_lib.ode_samplers import (
    ERROR,
    QUARTIC,
    STAGES,
    _dormand_prince,
    bits_per_dim,
    dequantise,
    encode,
    euler,
    exact_divergence,
    heun,
    hutchinson,
    log_likelihood,
    rk45,
)
from course_lib.sampling import Counted, final, last, prior, sample
from course_lib.schedules import VE, CosineVP, Flow, LinearVP, SubVP, karras, log_snr_uniform, uniform
from course_lib.sde_samplers import euler_maruyama
from course_lib.targets import GaussianMixture

SCHEDULES = [LinearVP(), CosineVP(), VE(), SubVP(), Flow()]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
every_grid = pytest.mark.parametrize("grid", [uniform, karras], ids=lambda grid: grid.__name__)
M, S = 0.8, 0.6
GAUSSIAN = GaussianMixture([[M]], S)
MIXTURE = GaussianMixture([[-1.0, 0.0], [1.0, 0.5], [0.0, 2.0]], [0.3, 0.5, 0.2], [0.5, 0.3, 0.2])


class Stub:
    """A denoiser made of a function of (x, t, cond)."""

    def __init__(self, f, schedule=None):
        self.f, self.schedule = f, schedule or CosineVP()

    def __call__(self, x, t, cond=None):
        return self.f(x, t, cond)


def moments(schedule, t):
    """Mean and standard deviation of the Gaussian target's exact x_t."""
    return schedule.alpha(t) * M, ((schedule.alpha(t) * S) ** 2 + schedule.sigma(t) ** 2).sqrt()


def flow(schedule, x, t, s):
    """The exact ODE of the Gaussian target from t to s."""
    (mean_t, std_t), (mean_s, std_s) = moments(schedule, t), moments(schedule, s)
    return mean_s + (x - mean_t) * std_s / std_t


def affine(step, D, ts):
    """(a, c, b), each (n,), of the steps x -> a x + c + b z down the grid, all asked for in one call with one time per row."""
    n = len(ts) - 1
    x, z = torch.zeros(2, 3, n, dtype=torch.float64)
    x[1], z[2] = 1, 1
    c, ac, bc = step(D, x.reshape(-1, 1), ts[:-1].repeat(3), ts[1:].repeat(3), z.reshape(-1, 1)).reshape(3, n)
    return ac - c, c, bc - c


def order(error, n):
    """The observed order of convergence from n to 2 n steps."""
    return math.log2(error(n) / error(2 * n))


def start(D, n=16, seed=1):
    return prior(D, (n, D.mixture.dim), torch.Generator().manual_seed(seed), dtype=torch.float64)


def data(schedule, n=16, seed=2, mixture=MIXTURE):
    return mixture.marginal(schedule, schedule.t_min).sample(n, torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------------------- fixed steps
@every_schedule
@every_grid
@pytest.mark.parametrize(("step", "expected"), [(euler, 1), (heun, 2)], ids=["euler", "heun"])
def test_the_order_of_a_step_is_its_textbooks(step, expected, grid, schedule):
    def error(n):
        ts = grid(n, schedule)
        mean, std = moments(schedule, ts[0])
        x = begin = (mean + std).item()
        for a, c, _ in zip(*(v.tolist() for v in affine(step, GAUSSIAN.denoiser(schedule), ts))):
            x = a * x + c
        return abs(x - flow(schedule, begin, ts[0], ts[-1]).item())

    assert order(error, 1600) == pytest.approx(expected, abs=0.05)


def test_euler_is_one_slope_and_heun_the_mean_of_two():
    D = MIXTURE.denoiser(Flow())
    x, t, s = start(D), 0.6, 0.5
    d = velocity(D, x, t)
    torch.testing.assert_close(euler(D, x, t, s), x - 0.1 * d, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(heun(D, x, t, s), x - 0.05 * (d + velocity(D, x - 0.1 * d, s)), rtol=1e-12, atol=1e-12)


@every_schedule
@pytest.mark.parametrize("step", [euler, heun], ids=["euler", "heun"])
def test_one_time_per_row_is_one_time_for_each(step, schedule):
    D = MIXTURE.denoiser(schedule)
    x, z = start(D, 3), start(D, 3, seed=4)
    t, s = torch.tensor([0.9, 0.5, 0.3], dtype=torch.float64), torch.tensor([0.6, 0.4, 0.1], dtype=torch.float64)
    one_by_one = [step(D, x[i:i + 1], t[i], s[i], z[i:i + 1]) for i in range(3)]
    torch.testing.assert_close(step(D, x, t, s, z), torch.cat(one_by_one), rtol=1e-12, atol=1e-12)


@every_schedule
def test_heun_takes_the_euler_half_where_no_noise_is_left(schedule):
    D = Counted(MIXTURE.denoiser(schedule))
    x, t = start(D.D, 2), torch.tensor([0.3, 0.3], dtype=torch.float64)
    assert torch.equal(heun(D, x, 0.3, 0.0), euler(D.D, x, 0.3, 0.0)) and D.nfe == 1
    mixed = heun(D, x, t, torch.tensor([0.0, 0.1], dtype=torch.float64))
    torch.testing.assert_close(mixed[:1], euler(D.D, x[:1], 0.3, 0.0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(mixed[1:], heun(D.D, x[1:], 0.3, 0.1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("step", "nfe"), [(euler, 5), (heun, 10)], ids=["euler", "heun"])
def test_what_a_step_costs(step, nfe, generator):
    D = MIXTURE.denoiser(CosineVP())
    assert final(D, start(D), uniform(5, D.schedule), step, generator).nfe == nfe


# ---------------------------------------------------------------------------------------------- same marginals
def no_half(D, x, t, s, z=None, cond=None):
    """Euler with the slope f x - g^2 score: the SDE's drift without the SDE's noise."""
    f, g2 = per_row(D.schedule.drift(t), x), per_row(D.schedule.diffusion2(t), x)
    return x + (s - t) * (f * x - g2 * score(D, x, t, cond))


def surprise(x, truth):
    """The least p-value of Kolmogorov and Smirnov's test along four lines, on which the exact mixture is again one."""
    angles = torch.arange(4) * math.pi / 4
    lines = torch.stack([angles.cos(), angles.sin()]).double()                              # (2, 4)

    def p_value(points, means):
        normals = [stats.norm(m, s) for m, s in zip(means.tolist(), truth.stds.tolist())]
        cdf = sum(w * normal.cdf(points) for w, normal in zip(truth.weights.tolist(), normals))
        return stats.ks_1samp(cdf, stats.uniform.cdf).pvalue

    return min(p_value(*pair) for pair in zip((x @ lines).T.numpy(), (truth.means @ lines).T))


@every_schedule
def test_the_ode_and_the_sde_have_one_marginal_at_every_time(schedule, generator):
    """Samples of both against the exact distribution, at the chance of one false alarm in 1,000 over all 300 comparisons."""
    n, steps, level = 2000, 200, 1e-3 / 300
    D, ts = MIXTURE.denoiser(schedule), log_snr_uniform(steps, schedule)
    coarse, stops = ts[::5], ts[steps // 5::steps // 5]

    def begin():
        return MIXTURE.marginal(schedule, schedule.t_max).sample(n, generator)

    def at_stops(grid, step):
        states = list(sample(D, begin(), grid, step, generator))
        return states[len(states) // 5 - 1::len(states) // 5]

    paths = {"SDE": at_stops(ts, euler_maruyama), "Heun": at_stops(coarse, heun),
             "RK45": list(rk45(D, begin(), torch.cat([ts[:1], stops])))}
    for name, states in paths.items():
        for t, x in zip(stops, states, strict=True):
            assert surprise(x, MIXTURE.marginal(schedule, t)) > level, f"{name} at t = {t:.4g}"
    for t, x in zip(stops, at_stops(coarse, no_half), strict=True):
        assert surprise(x, MIXTURE.marginal(schedule, t)) < level, "the test is blind to a slope that is wrong"


# ---------------------------------------------------------------------------------------------- Dormand-Prince
def integrated(f, times, rtol=1e-3, atol=1e-3, x=0.0):
    begin = torch.tensor([[x]], dtype=torch.float64)
    return [float(state) for state in _dormand_prince(f, begin, times, rtol, atol)]


def test_the_table_satisfies_the_order_conditions():
    """Each row of weights sums to its time; sum b c^k = 1/(k + 1) to fifth order, and to fourth for the embedded weights."""
    times = [0, *(c for c, _ in STAGES)]
    fifth = [*STAGES[-1][1], 0]
    fourth = [b - e for b, e in zip(fifth, ERROR, strict=True)]
    for c, weights in STAGES:
        assert sum(weights) == pytest.approx(c, abs=1e-14)

    def quadrature(weights, k):
        return sum(w * c**k for w, c in zip(weights, times, strict=True)) - 1 / (k + 1)

    assert [abs(quadrature(fifth, k)) < 1e-14 for k in range(6)] == [True] * 5 + [False]
    assert [abs(quadrature(fourth, k)) < 1e-14 for k in range(5)] == [True] * 4 + [False]
    assert sum(QUARTIC) == pytest.approx(0, abs=1e-13)


@pytest.mark.parametrize("times", [[0.0, 0.1, 0.37, 1.0], [1.0, 0.9, 0.33, -0.5]], ids=["upwards", "downwards"])
def test_a_quartic_is_followed_exactly_between_steps_too(times):
    states = integrated(lambda t, x: torch.full_like(x, 4 * t**3), times, x=times[0] ** 4)
    assert states == pytest.approx([t**4 for t in times[1:]], abs=1e-14)


def test_a_state_between_steps_has_fourth_order():
    """One step of length h (the first, a hundredth of the way) read at its middle: its local error goes like h^5."""

    def error(h):
        middle, _ = integrated(lambda t, x: x * math.cos(t), [0.0, h / 2, 100 * h], rtol=1.0, atol=1.0, x=1.0)
        return abs(middle - math.exp(math.sin(h / 2)))

    assert math.log2(error(0.4) / error(0.2)) == pytest.approx(5, abs=0.3)


@every_schedule
def test_rk45_follows_the_closed_form_flow(schedule):
    D, ts = GAUSSIAN.denoiser(schedule), log_snr_uniform(12, schedule)
    x = start(D)
    states = torch.stack(list(rk45(D, x, ts, rtol=1e-8, atol=1e-8)))
    exact = torch.stack([flow(schedule, x, ts[0], s) for s in ts[1:]])
    assert states.shape == (12, 16, 1)
    assert ((states - exact).abs() / exact.abs().clamp(min=1)).max() < 1e-6


@every_schedule
def test_the_error_falls_with_the_tolerance(schedule):
    """In theory in proportion to it; asked for is more than its square root, for how steps are cut leaves some play."""
    D, ts = GAUSSIAN.denoiser(schedule), log_snr_uniform(12, schedule)
    x = start(D)
    exact = torch.stack([flow(schedule, x, ts[0], s) for s in ts[1:]])
    errors, costs = [], []
    for tolerance in (1e-3, 1e-5, 1e-7, 1e-9):
        counted = Counted(D)
        states = torch.stack(list(rk45(counted, x, ts, rtol=tolerance, atol=tolerance)))
        errors.append((states - exact).abs().max().item())
        costs.append(counted.nfe)
    assert all(e > 10 * f for e, f in pairwise(errors)), errors
    assert costs == sorted(set(costs))


def test_the_count_does_not_depend_on_how_many_states_are_asked_for():
    D = MIXTURE.denoiser(LinearVP())
    x = start(D)
    results = [last(rk45, D, x, log_snr_uniform(n, D.schedule)) for n in (1, 7, 500)]
    assert len({result.nfe for result in results}) == 1 and results[0].nfe % 6 == 1
    for result in results[1:]:
        torch.testing.assert_close(result.x, results[0].x, rtol=1e-13, atol=1e-13)


def test_rejected_steps_are_paid_for():
    """Each step tried is told by the times of its six evaluations: the first a fifth of the way, the last at its end."""
    D, times = MIXTURE.denoiser(LinearVP()), []
    D = Counted(Stub(lambda x, t, cond, exact=D: (times.append(float(t)), exact(x, t))[1], D.schedule))
    *_, _ = rk45(D, start(MIXTURE.denoiser(LinearVP())), log_snr_uniform(3, D.schedule))
    tries = [times[i:i + 6] for i in range(1, len(times), 6)]
    begins = [(5 * tried[0] - tried[5]) / 4 for tried in tries]
    kept = [tried for tried, following in zip(tries, [*begins[1:], tries[-1][5]]) if following == pytest.approx(tried[5])]
    assert kept[-1][5] == D.schedule.t_min and len(kept) < len(tries)
    assert D.nfe == 1 + 6 * len(tries) == len(times)


def test_no_time_outside_the_grid_is_asked_for():
    D, times = MIXTURE.denoiser(Flow()), []
    watched = Stub(lambda x, t, cond: (times.append(float(t)), D(x, t))[1], D.schedule)
    ts = uniform(3, D.schedule)
    encode(watched, data(D.schedule), ts)
    *_, _ = rk45(watched, start(D), ts)
    assert ts[-1] <= min(times) and max(times) <= ts[0]


def test_the_worst_row_sets_the_step():
    """One row that oscillates among 999 that rest takes the steps that it takes alone; an average would drown it."""

    def f(t, x):
        return 10 * math.cos(10 * t) * x

    x = torch.zeros(1000, 2, dtype=torch.float64)
    x[0] = 1.0
    (together,), (alone,) = (_dormand_prince(f, begin, [0.0, 3.0], 1e-5, 1e-5) for begin in (x, x[:1]))
    assert torch.equal(together[:1], alone)


@every_schedule
def test_encoding_is_undone_by_sampling(schedule):
    D, ts, x0 = MIXTURE.denoiser(schedule), log_snr_uniform(5, schedule), data(schedule)
    noise = encode(D, x0, ts, rtol=1e-9, atol=1e-9)
    assert (last(rk45, D, noise, ts, rtol=1e-9, atol=1e-9).x - x0).abs().max() < 1e-6
    x = data(schedule, mixture=GAUSSIAN)
    exact = flow(schedule, x, ts[-1], ts[0])
    code = encode(GAUSSIAN.denoiser(schedule), x, ts, rtol=1e-8, atol=1e-8)
    assert ((code - exact).abs() / exact.abs().clamp(min=1)).max() < 1e-6


# ---------------------------------------------------------------------------------------------- divergence
def curved(x):
    """A function whose Jacobian has no symmetry at all."""
    return torch.stack([x[:, 0] ** 2 * x[:, 1], x[:, 1].sin() + x[:, 2] * x[:, 0], x.square().sum(1) * x[:, 2]], 1)


def test_the_exact_divergence_is_the_trace_of_the_jacobian(generator):
    x = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    slope, div = exact_divergence(curved, x)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row: curved(row[None])[0]))(x)
    torch.testing.assert_close(slope, curved(x))
    torch.testing.assert_close(div, jacobian.diagonal(dim1=1, dim2=2).sum(1))
    assert not slope.requires_grad and not div.requires_grad


def test_divergences_work_on_images(generator):
    x = torch.randn(3, 2, 4, 4, generator=generator, dtype=torch.float64)
    for divergence in (exact_divergence, hutchinson(2, generator)):
        slope, div = divergence(lambda x: x**3, x)                                          # a diagonal Jacobian
        assert slope.shape == x.shape
        torch.testing.assert_close(div, (3 * x**2).flatten(1).sum(1))


def test_signs_are_exact_for_a_diagonal_jacobian(generator):
    x = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(hutchinson(1, generator)(torch.sin, x)[1], x.cos().sum(1), rtol=1e-13, atol=1e-13)


def test_hutchinson_is_unbiased_with_the_variance_of_signs(generator):
    """Var z'Jz = sum_{i<j} (J_ij + J_ji)^2 for random signs; the fourth moment is bounded by 81 times its square."""
    n = 4000
    x = torch.randn(1, 3, generator=generator, dtype=torch.float64)
    J = torch.func.jacrev(lambda row: curved(row[None])[0])(x[0])
    variance = ((J + J.T) ** 2).triu(1).sum().item()
    rows = hutchinson(1, generator)(curved, x.expand(n, 3))[1]
    assert abs(rows.mean() - J.trace()) < 4 * (variance / n) ** 0.5
    assert rows.var().item() == pytest.approx(variance, rel=0.2)
    many = hutchinson(n, generator)(curved, x)[1]
    assert abs(many.item() - J.trace().item()) < 4 * (variance / n) ** 0.5


def test_signs_stay_through_one_solution_and_change_with_the_generator(generator):
    x = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    first, second = hutchinson(1, generator), hutchinson(1, generator)
    again = hutchinson(1, torch.Generator().manual_seed(5))
    assert torch.equal(first(curved, x)[1], first(curved, x)[1])
    assert not torch.equal(first(curved, x)[1], second(curved, x)[1])
    assert torch.equal(again(curved, x)[1], hutchinson(1, torch.Generator().manual_seed(5))(curved, x)[1])


@pytest.mark.parametrize("probes", [0, -1, 1.5, None])
def test_a_whole_number_of_probes(probes):
    with pytest.raises(ValueError, match=f"probes: expected a whole number, at least 1, got {probes}"):
        hutchinson(probes)


# ---------------------------------------------------------------------------------------------- likelihood
@every_schedule
@pytest.mark.parametrize("target", [GAUSSIAN, MIXTURE], ids=["Gaussian", "mixture"])
def test_the_likelihood_is_the_density(target, schedule):
    D, x = target.denoiser(schedule), data(schedule, mixture=target)
    exact_prior = target.marginal(schedule, schedule.t_max).log_prob
    truth = target.marginal(schedule, schedule.t_min).log_prob(x)
    nats = log_likelihood(D, x, rtol=1e-6, atol=1e-6, prior=exact_prior)
    assert nats.shape == (16,) and (nats - truth).abs().max() / target.dim < 1e-4

    # With the default prior the rest is known: log N(z; 0, sigma^2) - log p(z) at the code z.
    z, sigma = encode(D, x, uniform(1, schedule), rtol=1e-7, atol=1e-7), schedule.sigma(schedule.t_max).item()
    gap = GaussianMixture([[0.0] * target.dim], sigma).log_prob(z) - exact_prior(z)
    default = log_likelihood(D, x, rtol=1e-6, atol=1e-6)
    assert (default - truth - gap).abs().max() / target.dim < 1e-4
    assert gap.abs().max() > 1e-4, "the gap is too small for this test to see a wrong prior"


def test_the_likelihood_by_hutchinson_is_exact_in_one_dimension_and_unbiased_in_two():
    schedule = CosineVP()
    x = data(schedule, mixture=GAUSSIAN)
    D = GAUSSIAN.denoiser(schedule)
    torch.testing.assert_close(log_likelihood(D, x, hutchinson(1)), log_likelihood(D, x), rtol=1e-9, atol=1e-9)

    D, x = MIXTURE.denoiser(schedule), data(schedule, n=1).expand(400, 2)
    estimates = log_likelihood(D, x, hutchinson(1, torch.Generator().manual_seed(0)), rtol=1e-6, atol=1e-6)
    exact = log_likelihood(D, x[:1], rtol=1e-6, atol=1e-6)
    assert estimates.std() > 1e-3
    assert abs(estimates.mean() - exact) < 4 * estimates.std() / 20


def test_the_likelihood_of_images_is_that_of_the_flattened_images(generator):
    """Independent pixels N(M, S^2): the density is the product of theirs."""
    schedule = CosineVP()
    D = Stub(lambda x, t, cond: GAUSSIAN.denoiser(schedule)(x.reshape(-1, 1), t).reshape(x.shape), schedule)
    x = M + S * torch.randn(3, 1, 2, 2, generator=generator, dtype=torch.float64)
    alone = log_likelihood(GAUSSIAN.denoiser(schedule), x.reshape(-1, 1), rtol=1e-8, atol=1e-8)
    together = log_likelihood(D, x, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(together, alone.reshape(3, 4).sum(1), rtol=1e-6, atol=1e-6)


def test_a_prior_gives_one_number_a_row():
    D = MIXTURE.denoiser(CosineVP())
    with pytest.raises(ValueError, match=r"prior: expected one log density a row, shape \(16,\), got \(16, 2\)"):
        log_likelihood(D, data(D.schedule), prior=lambda x: x)


def test_no_gradients_are_kept():
    D = Stub(lambda x, t, cond: x * torch.ones((), dtype=x.dtype, requires_grad=True))
    x = torch.ones(2, 1, dtype=torch.float64)
    for result in (encode(D, x, uniform(1, D.schedule)), log_likelihood(D, x)):
        assert not result.requires_grad


# ---------------------------------------------------------------------------------------------- bits per dimension
def test_a_uniform_density_costs_eight_bits_a_pixel():
    shape = (1, 28, 28)
    log_p = torch.full((3,), -math.prod(shape) * math.log(2), dtype=torch.float64)          # density 1/2 on [-1, 1]
    assert bits_per_dim(log_p, shape).tolist() == [8, 8, 8]
    one_bit_less = log_p + math.prod(shape) * math.log(2)
    assert bits_per_dim(one_bit_less, shape).tolist() == [7, 7, 7]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_grey_level_is_spread_over_its_own_256th(dtype, generator):
    grey = torch.arange(256).repeat(50, 1)
    x = dequantise((grey.to(dtype) / 127.5) - 1, generator)
    assert x.dtype == dtype and x.min() >= -1 and x.max() <= 1
    assert torch.equal(((x.double() + 1) * 128).floor().clamp(max=255).long(), grey)
    within = (x.double() + 1) * 128 - grey
    assert abs(within.mean() - 0.5) < 4 * (1 / 12 / within.numel()) ** 0.5 and within.min() < 0.01 and within.max() > 0.99


def test_only_images_are_dequantised():
    with pytest.raises(ValueError, match=r"x: expected images in \[-1, 1\], got values from 0 to 255"):
        dequantise(torch.tensor([[0.0, 255.0]]))


# ---------------------------------------------------------------------------------------------- what comes in
TS = uniform(2, CosineVP())
SOLVERS = {
    "rk45": lambda D, x, ts=TS, **kwargs: list(rk45(D, x, ts, **kwargs)),
    "encode": lambda D, x, ts=TS, **kwargs: encode(D, x, ts, **kwargs),
    "log_likelihood": lambda D, x, **kwargs: log_likelihood(D, x, **kwargs),
}
every_solver = pytest.mark.parametrize("solve", SOLVERS.values(), ids=SOLVERS.keys())


@every_solver
@pytest.mark.parametrize(("tolerances", "message"), [
    ({"rtol": 0}, "rtol: expected a number, at least 2.2e-15 for a state in torch.float64, got 0"),
    ({"rtol": -1e-3}, "rtol: .* got -0.001"),
    ({"rtol": math.nan}, "rtol: .* got nan"),
    ({"atol": 0.0}, "atol: expected a positive number, got 0.0"),
    ({"atol": math.inf}, "atol: .* got inf"),
], ids=str)
def test_bad_tolerances_are_refused(solve, tolerances, message):
    D = MIXTURE.denoiser(CosineVP())
    with pytest.raises(ValueError, match=message):
        solve(D, start(D), **tolerances)


@every_solver
def test_a_tolerance_finer_than_the_dtype_is_refused(solve):
    D = MIXTURE.denoiser(CosineVP())
    with pytest.raises(ValueError, match="rtol: expected a number, at least 1.2e-06 for a state in torch.float32, got 1e-08"):
        solve(D, start(D).float(), rtol=1e-8)


@every_solver
def test_whole_numbers_are_no_state(solve):
    with pytest.raises(ValueError, match=r"x0?: expected floating-point states \(B, ...\), got \(.*\) torch.int64"):
        solve(MIXTURE.denoiser(CosineVP()), torch.ones(3, 2, dtype=torch.int64))


@pytest.mark.parametrize("use", [rk45, encode], ids=["rk45", "encode"])
@pytest.mark.parametrize(("ts", "message"), [
    ([0.1, 0.9], "must fall from noise to data without repeats, got 0.1, 0.9"),
    ([0.9], "at least two times"),
    ([0.9, 0.0], "the slope of the ODE is 0/0 without noise, got a grid down to t = 0; stop at t_min"),
], ids=str)
def test_bad_grids_are_refused_before_anything_runs(use, ts, message):
    D = MIXTURE.denoiser(CosineVP())
    with pytest.raises(ValueError, match="ts: .*" + message):
        use(D, start(D), torch.tensor(ts, dtype=torch.float64))


def test_a_grid_from_one_is_refused_where_the_slope_is_infinite():
    D = MIXTURE.denoiser(Flow())
    with pytest.raises(ValueError, match="infinite at t = 1"):
        next(rk45(D, start(D), torch.tensor([1.0, 0.1], dtype=torch.float64)))


@every_solver
def test_a_model_without_a_score_has_no_ode(solve):
    D = Stub(lambda x, t, cond: x)
    D.is_posterior_mean = False
    with pytest.raises(ValueError, match="does not return a posterior mean, so it has no score"):
        solve(D, torch.ones(2, 1))
    with pytest.raises(ValueError, match="has no score"):
        heun(D, torch.ones(2, 1), 0.5, 0.4)


@every_solver
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_network_that_breaks_down_is_reported_with_its_times(solve, bad):
    D = Stub(lambda x, t, cond: torch.where(torch.as_tensor(t < 0.5), bad, x))
    with pytest.raises(FloatingPointError, match=r"NaN or infinity after the step from t = 0\.\d+ to s = 0\.\d+"):
        solve(D, torch.ones(2, 1, dtype=torch.float64))


@pytest.mark.parametrize("step", [euler, heun], ids=["euler", "heun"])
def test_a_step_that_breaks_down_is_reported_by_the_driver(step, generator):
    D = Stub(lambda x, t, cond: x * math.nan)
    with pytest.raises(FloatingPointError, match="after the step from t = 0.8 to s = 0.4"):
        final(D, torch.ones(2, 1, dtype=torch.float64), torch.tensor([0.8, 0.4], dtype=torch.float64), step, generator)


def test_a_tolerance_out_of_reach_is_reported_not_waited_for():
    """A network whose answers are rough, here in its time's last digits, has no error below its roughness."""
    D = Stub(lambda x, t, cond: x + math.sin(1e18 * float(t)))
    with pytest.raises(RuntimeError, match="rtol, atol: 1e-14 and 1e-14 are out of reach in torch.float64 at t = "):
        list(rk45(D, torch.ones(2, 1, dtype=torch.float64), TS, rtol=1e-14, atol=1e-14))


# ---------------------------------------------------------------------------------------------- what comes through
@pytest.mark.parametrize("use", [
    *(lambda D, x, cond, step=step: step(D, x, 0.6, 0.5, torch.zeros_like(x), cond) for step in (euler, heun)),
    *(lambda D, x, cond, solve=solve: solve(D, x, cond=cond) for solve in SOLVERS.values()),
], ids=["euler", "heun", *SOLVERS])
def test_the_condition_reaches_every_evaluation(use):
    seen = []
    D = MIXTURE.denoiser(CosineVP())
    watched = Counted(Stub(lambda x, t, cond: (seen.append(cond), D(x, t, cond))[1], D.schedule))
    cond = torch.tensor([0, 1, 2, -1])
    use(watched, start(D, 4), cond)
    assert len(seen) == watched.nfe and all(c is cond for c in seen)


def test_the_likelihood_given_a_label_is_that_of_its_component():
    schedule = CosineVP()
    x, k = data(schedule, 3), torch.tensor([0, 1, 2])
    alone = [GaussianMixture(MIXTURE.means[i:i + 1], MIXTURE.stds[i]) for i in range(3)]
    nats = log_likelihood(MIXTURE.denoiser(schedule), x, rtol=1e-8, atol=1e-8, cond=k)
    for i, component in enumerate(alone):
        expected = log_likelihood(component.denoiser(schedule), x[i:i + 1], rtol=1e-8, atol=1e-8)
        assert nats[i].item() == pytest.approx(expected.item(), abs=1e-5)


def test_guidance_costs_two_evaluations_here_too():
    D = MIXTURE.denoiser(CosineVP())
    cond = torch.zeros(16, dtype=torch.int64)
    one = last(rk45, D, start(D), TS, cond=cond)
    two = last(rk45, guided(D, 0.0), start(D), TS, cond=cond)                              # the same solution, twice the cost
    torch.testing.assert_close(one.x, two.x)
    assert two.nfe == 2 * one.nfe and two.depth == one.depth


@every_schedule
def test_single_precision_stays_single_and_close(schedule, generator):
    D, ts, x = MIXTURE.denoiser(schedule), log_snr_uniform(20, schedule), data(schedule)
    high = start(D)
    low = high.float()
    for step in (euler, heun):
        single = final(D, low, ts, step).x
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), final(D, high, ts, step).x, rtol=1e-2, atol=1e-2)
    single = last(rk45, D, low, ts).x
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), last(rk45, D, high, ts).x, rtol=1e-2, atol=1e-2)
    nats = log_likelihood(D, x.float())
    assert nats.dtype == torch.float32
    torch.testing.assert_close(nats.double(), log_likelihood(D, x), rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_everything_runs_on_a_gpu_too():
    D = MIXTURE.denoiser(CosineVP())
    ts, x = uniform(8, D.schedule), start(D)
    for step in (euler, heun):
        z = torch.zeros(8, *x.shape, dtype=x.dtype)
        torch.testing.assert_close(final(D, x.cuda(), ts, step, noise=z.cuda()).x.cpu(), final(D, x, ts, step, noise=z).x)
        assert final(D, x.cuda(), ts.cuda(), step, noise=z.cuda()).x.is_cuda
    torch.testing.assert_close(last(rk45, D, x.cuda(), ts).x.cpu(), last(rk45, D, x, ts).x)
    for divergence in (exact_divergence, hutchinson(1, torch.Generator().manual_seed(0))):
        on_gpu = log_likelihood(D, x.cuda(), divergence)
        torch.testing.assert_close(on_gpu.cpu(), log_likelihood(D, x, divergence))


# ---------------------------------------------------------------------------------------------- empty batches, whole numbers
def test_an_empty_batch_has_an_empty_solution():
    D, none = MIXTURE.denoiser(CosineVP()), torch.zeros(0, 2, dtype=torch.float64)
    assert [tuple(x.shape) for x in rk45(D, none, TS)] == [(0, 2)] * (len(TS) - 1)
    assert encode(D, none, TS).shape == (0, 2)
    for divergence in (exact_divergence, hutchinson(2)):
        assert log_likelihood(D, none, divergence).shape == (0,)


def test_what_is_no_image_is_not_dequantised():
    with pytest.raises(ValueError, match="x: expected floating-point states"):
        dequantise(torch.ones(3, 2, dtype=torch.uint8))
