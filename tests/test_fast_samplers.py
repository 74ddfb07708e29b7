"""Few-step samplers against closed forms: exact Gaussian flows, measured orders of convergence, polynomials, DDIM's own law.

On Gaussian data every sampler is affine in its start and in its noise, so what it does to a distribution is computed,
not sampled.
"""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from scipy.integrate import quad, solve_ivp

from course_lib.denoiser import eps, guided
from course_lib.fast_samplers import abm, ddim, ddim_eta, dpm_solver_pp, dpm_solver_pp_sde, few_steps, optimise_grid
from course_lib.sampling import final, last, sample
from course_lib.schedules import (
    VE,
    CosineVP,
    Flow,
    LinearVP,
    SubVP,
    angle,
    equal_angles,
    flow_uniform,
    karras,
    log_snr_uniform,
    uniform,
)
from course_lib.sde_samplers import ancestral
from course_lib.targets import GaussianMixture, ring

SCHEDULES = [LinearVP(), CosineVP(), VE(), SubVP(), Flow()]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
every_order = pytest.mark.parametrize("order", [1, 2, 3])
M, S = 0.8, 0.6
GAUSSIAN = GaussianMixture([[M]], S)
MIXTURE = GaussianMixture([[-1.0, 0.0], [1.0, 0.5], [0.0, 2.0]], [0.3, 0.5, 0.2], [0.5, 0.3, 0.2])
SAMPLERS = {"2M": dpm_solver_pp, "3M": partial(dpm_solver_pp, order=3), "SDE": dpm_solver_pp_sde, "ABM": abm}
every_sampler = pytest.mark.parametrize("name", SAMPLERS)


def times(*ts):
    return torch.tensor(ts, dtype=torch.float64)


def normal(*shape, generator):
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def marginal(schedule, t):
    """Mean and variance of the exact x_t of the Gaussian."""
    return schedule.alpha(t) * M, (schedule.alpha(t) * S) ** 2 + schedule.sigma(t) ** 2


def exact_flow(schedule, x, t, s):
    """The probability flow ODE of the Gaussian, from t to s."""
    (mean_t, variance_t), (mean_s, variance_s) = marginal(schedule, t), marginal(schedule, s)
    return mean_s + (x - mean_t) * (variance_s / variance_t).sqrt()


def ends(schedule):
    """Two starts at t_max."""
    mean, variance = marginal(schedule, schedule.t_max)
    return mean + variance.sqrt() * times(-0.7, 1.9)[:, None]


def measured_orders(error, ns):
    errors = [error(n) for n in ns]
    return [math.log(a / b, m / n) for a, b, n, m in zip(errors, errors[1:], ns, ns[1:])]


# ---------------------------------------------------------------------------------------------- eta, between ODE and SDE
@every_schedule
@pytest.mark.parametrize(("t", "s"), [(0.9, 0.4), (0.4, 0.39), (0.2, 0.05), (0.5, 0.0)])
def test_eta_0_is_ddim_and_eta_1_the_ancestral_step(schedule, t, s, generator):
    D, (x, z) = MIXTURE.denoiser(schedule), normal(2, 6, 2, generator=generator)
    torch.testing.assert_close(ddim_eta(0)(D, x, t, s, z), ddim(D, x, t, s), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ddim_eta(1)(D, x, t, s, z), ancestral(D, x, t, s, z), rtol=1e-12, atol=1e-12)


def affine(sampler, D, ts, n_noise=None):
    """(a, c, b^2) of the whole run x_T -> a x_T + c + noise of variance b^2, from one batch of n + 2 rows."""
    n = len(ts) - 1
    x, noise = torch.zeros(n + 2, 1, dtype=torch.float64), torch.zeros(n, n + 2, 1, dtype=torch.float64)
    x[1], noise[range(n), range(2, n + 2)] = 1, 1
    out = last(sampler, D, x, ts, noise=noise).x[:, 0]
    return out[1] - out[0], out[0], (out[2:] - out[0]).square().sum()


def moments(sampler, schedule, ts):
    """Mean and variance at ts[-1] from the exact ones at ts[0]."""
    mean, variance = marginal(schedule, ts[0])
    a, c, b2 = affine(sampler, GAUSSIAN.denoiser(schedule), ts)
    return a * mean + c, a**2 * variance + b2


@every_schedule
@pytest.mark.parametrize("eta", [0.3, 0.7])
def test_every_eta_has_the_right_marginals_as_steps_shrink(schedule, eta):
    def error(n):
        ts = log_snr_uniform(n, schedule)
        return abs(moments(partial(sample, step=ddim_eta(eta)), schedule, ts)[1] - marginal(schedule, ts[-1])[1]).item()

    assert measured_orders(error, [200, 400]) == pytest.approx([1], abs=0.05)


@every_schedule
@pytest.mark.parametrize("eta", [0, 0.5, 1])
def test_every_eta_keeps_the_noise_variance_of_a_point(schedule, eta):
    """For data with a single point the share drawn anew and the share kept add up to sigma_s^2 in every step."""
    D = lambda x, t, cond=None: torch.full_like(x, M)  # noqa: E731
    D.schedule = schedule
    ts = times(schedule.t_max, 0.6, 0.55, 0.1, schedule.t_min)
    a, c, b2 = affine(partial(sample, step=ddim_eta(eta)), D, ts)
    torch.testing.assert_close(a * schedule.alpha(ts[0]) * M + c, schedule.alpha(ts[-1]) * M, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(a**2 * schedule.sigma(ts[0]) ** 2 + b2, schedule.sigma(ts[-1]) ** 2, rtol=1e-9, atol=0)


@pytest.mark.parametrize("eta", [-0.1, 1.01, math.nan])
def test_an_eta_outside_0_to_1_is_refused(eta):
    with pytest.raises(ValueError, match=r"eta: expected a number from 0 \(ODE\) to 1 \(ancestral\), got"):
        ddim_eta(eta)


def test_a_stochastic_step_asks_for_its_noise():
    with pytest.raises(ValueError, match="z: ddim_eta is a stochastic step"):
        ddim_eta(0.5)(GAUSSIAN.denoiser(CosineVP()), torch.zeros(2, 1), 0.5, 0.4)


# ---------------------------------------------------------------------------------------------- DPM-Solver++
@every_schedule
@pytest.mark.parametrize("end", [None, 0.0], ids=["to t_min", "to 0"])
def test_order_1_is_ddim(schedule, end, generator):
    D, x = MIXTURE.denoiser(schedule), normal(6, 2, generator=generator)
    ts = karras(12, schedule)
    ts[-1] = ts[-1] if end is None else end
    for state, expected in zip(dpm_solver_pp(D, x, ts, order=1), sample(D, x, ts, ddim), strict=True):
        torch.testing.assert_close(state, expected, rtol=1e-12, atol=1e-12)


@every_schedule
@every_order
def test_the_order_is_measured_on_a_gaussian(schedule, order):
    D, x = GAUSSIAN.denoiser(schedule), ends(schedule)
    exact = exact_flow(schedule, x, schedule.t_max, schedule.t_min)

    def error(n):
        return (last(dpm_solver_pp, D, x, karras(n, schedule), order=order).x - exact).abs().max().item()

    assert measured_orders(error, [160, 320])[-1] == pytest.approx(order, abs=0.05)


@pytest.mark.parametrize("schedule", [LinearVP(), Flow()], ids=["LinearVP", "Flow"])
def test_order_2_is_measured_on_a_mixture(schedule, generator):
    """Against scipy's eighth-order integrator in y = x/alpha, r = sigma/alpha, where the flow reads dy/dr = eps."""
    D, x = MIXTURE.denoiser(schedule), schedule.sigma(schedule.t_max) * normal(8, 2, generator=generator)
    ts = karras(1, schedule)
    r = (schedule.sigma(ts) / schedule.alpha(ts)).tolist()

    def slope(r, y):
        t = schedule.time_of_log_snr(-2 * math.log(r))
        return eps(D, schedule.alpha(t) * torch.from_numpy(y).reshape(8, 2), t).flatten().numpy()

    y = solve_ivp(slope, r, (x / schedule.alpha(ts[0])).flatten().numpy(), method="DOP853", rtol=1e-11, atol=1e-11).y[:, -1]
    exact = schedule.alpha(ts[-1]) * torch.from_numpy(y).reshape(8, 2)

    def error(n):
        return (last(dpm_solver_pp, D, x, karras(n, schedule)).x - exact).norm().item()

    assert measured_orders(error, [320, 640]) == pytest.approx([2], abs=0.1)


class Polynomial:
    """x0_hat = lambda^degree, whatever x: what a solver of higher order integrates exactly."""

    def __init__(self, schedule, degree):
        self.schedule, self.degree = schedule, degree

    def __call__(self, x, t, cond=None):
        return torch.full_like(x, (self.schedule.log_snr(t).item() / 2) ** self.degree)

    def flow(self, x, t, s, rate=1):
        """The exact mean at s: variation of constants, with the integral by scipy."""
        lam_t, lam_s = (self.schedule.log_snr(u).item() / 2 for u in (t, s))
        integral, _ = quad(lambda u: rate * math.exp(rate * (u - lam_s)) * u**self.degree, lam_t, lam_s, epsabs=1e-13)
        keep = self.schedule.sigma(s) / self.schedule.sigma(t) * math.exp(-(rate - 1) * (lam_s - lam_t))
        return keep * x + self.schedule.alpha(s) * integral


@every_schedule
@pytest.mark.parametrize(("name", "degree", "exact_from"), [
    ("2M", 0, 0), ("2M", 1, 1), ("3M", 0, 0), ("3M", 1, 2), ("3M", 2, 2), ("SDE", 0, 0), ("SDE", 1, 1),
])
def test_polynomials_in_lambda_are_integrated_exactly(schedule, name, degree, exact_from):
    """Once its history is full, a method of order k makes no error on degree k - 1; order 3's second step mends its first."""
    D, ts, x = Polynomial(schedule, degree), times(0.9, 0.8, 0.5, 0.3, 0.29, 0.05), times(1.0)[:, None]
    options = {"noise": torch.zeros(5, 1, 1)} if name == "SDE" else {}
    states = [x, *SAMPLERS[name](D, x, ts, **options)]
    for i, (t, s) in enumerate(pairwise(ts)):
        expected = D.flow(states[i], t, s, rate=2 if name == "SDE" else 1)
        if i >= exact_from:
            torch.testing.assert_close(states[i + 1], expected, rtol=1e-10, atol=1e-10)
        else:
            assert (states[i + 1] - expected).abs() > 1e-3


@every_schedule
def test_the_second_step_of_order_3_takes_the_first_one_to_second_order(schedule):
    D, ts, x = Polynomial(schedule, 1), times(0.9, 0.8, 0.5), times(1.0)[:, None]
    torch.testing.assert_close(last(dpm_solver_pp, D, x, ts, order=3).x, D.flow(x, 0.9, 0.5), rtol=1e-10, atol=1e-10)


@every_schedule
@every_order
def test_a_last_step_to_0_returns_the_denoised_point(schedule, order, generator):
    D, x = MIXTURE.denoiser(schedule), normal(6, 2, generator=generator)
    ts = times(schedule.t_max, 0.6, 0.3, 0.1)
    before = last(dpm_solver_pp, D, x, ts, order=order).x
    after = last(dpm_solver_pp, D, x, torch.cat([ts, times(0.0)]), order=order).x
    torch.testing.assert_close(after, D(before, 0.1), rtol=1e-12, atol=1e-12)


@every_schedule
@pytest.mark.parametrize("order", [2, 3])
def test_a_last_step_to_0_is_first_order_for_a_fixed_last_time(schedule, order):
    """It leaves the error of one DDIM step from the last time: first-order means halving r halves it, at least."""
    D, x = GAUSSIAN.denoiser(schedule), ends(schedule)
    exact = exact_flow(schedule, x, schedule.t_max, 0.0)

    def error(log_snr):
        inside = schedule.time_of_log_snr(torch.linspace(schedule.log_snr(schedule.t_max), log_snr, 400, dtype=torch.float64))
        ts = torch.cat([times(schedule.t_max), inside[1:], times(0.0)])
        return (last(dpm_solver_pp, D, x, ts, order=order).x - exact).abs().max().item()

    r, lower = math.exp(-2.0), math.exp(-2.5)
    one_step = [abs(S**2 / math.sqrt(S**2 * (S**2 + q**2)) - 1) for q in (r, lower)]    # DDIM's factor over the exact one
    assert error(4.0) / error(5.0) == pytest.approx(one_step[0] / one_step[1], rel=0.05)


@every_order
@pytest.mark.parametrize("sampler", [dpm_solver_pp, abm])
@pytest.mark.parametrize("end", [0.1, 0.0])
def test_a_grid_of_one_step_is_ddims(sampler, order, end, generator):
    D, x = MIXTURE.denoiser(CosineVP()), normal(6, 2, generator=generator)
    result = last(sampler, D, x, times(0.9, end), order=order)
    torch.testing.assert_close(result.x, ddim(D, x, 0.9, end), rtol=1e-12, atol=1e-12)


@every_order
@pytest.mark.parametrize("sampler", [dpm_solver_pp, abm])
@pytest.mark.parametrize("n", [2, 7])
def test_a_step_costs_one_evaluation(sampler, order, n):
    D, x = MIXTURE.denoiser(CosineVP()), torch.zeros(3, 2)
    ts = uniform(n, D.schedule)
    assert len(list(sampler(D, x, ts, order))) == n
    result = last(sampler, D, x, ts, order=order)
    assert (result.nfe, result.depth) == (n, n)


@pytest.mark.parametrize("order", [0, 4, 1.5, None])
def test_an_order_that_is_none_of_three_is_refused(order):
    with pytest.raises(ValueError, match=rf"order: expected 1, 2 or 3, got {order}"):
        dpm_solver_pp(MIXTURE.denoiser(CosineVP()), torch.zeros(3, 2), times(0.9, 0.1), order)


def test_order_1_may_start_from_pure_noise_and_higher_orders_say_where_to_start():
    D, x = MIXTURE.denoiser(Flow()), torch.ones(3, 2, dtype=torch.float64)
    ts = times(1.0, 0.5, 0.2)
    torch.testing.assert_close(last(dpm_solver_pp, D, x, ts, order=1).x, final(D, x, ts, ddim).x, rtol=1e-12, atol=1e-12)
    for order in (2, 3):
        with pytest.raises(ValueError, match=rf"ts: order {order} needs some signal to start from, got ts\[0\] = 1; start at"):
            dpm_solver_pp(D, x, ts, order)


# ---------------------------------------------------------------------------------------------- Adams-Bashforth-Moulton
@every_schedule
def test_its_order_1_is_ddim_too(schedule, generator):
    D, x, ts = MIXTURE.denoiser(schedule), normal(6, 2, generator=generator), flow_uniform(12, schedule)
    for state, expected in zip(abm(D, x, ts, order=1), sample(D, x, ts, ddim), strict=True):
        torch.testing.assert_close(state, expected, rtol=1e-11, atol=1e-11)


@every_schedule
@pytest.mark.parametrize("order", [1, 2, 3])
def test_its_order_is_measured_on_a_gaussian_down_to_0(schedule, order):
    D, x = GAUSSIAN.denoiser(schedule), ends(schedule)
    exact = exact_flow(schedule, x, schedule.t_max, 0.0)

    def error(n):
        return (last(abm, D, x, flow_uniform(n, schedule), order=order).x - exact).abs().max().item()

    assert measured_orders(error, [160, 320])[-1] == pytest.approx(order, abs=0.1)


@every_schedule
@pytest.mark.parametrize("order", [1, 2, 3])
def test_its_order_is_measured_on_a_mixture(schedule, order, generator):
    D, x = MIXTURE.denoiser(schedule), schedule.sigma(schedule.t_max) * normal(8, 2, generator=generator)
    exact = last(abm, D, x, flow_uniform(6000, schedule), order=4).x

    def error(n):
        return (last(abm, D, x, flow_uniform(n, schedule), order=order).x - exact).norm().item()

    assert measured_orders(error, [300, 600])[-1] == pytest.approx(order, abs=0.1)


@every_schedule
@pytest.mark.parametrize("order", [3, 4, 5, 6])
def test_many_steps_end_on_the_exact_solution(schedule, order):
    D, x = GAUSSIAN.denoiser(schedule), ends(schedule)
    exact = exact_flow(schedule, x, schedule.t_max, 0.0)
    torch.testing.assert_close(last(abm, D, x, flow_uniform(6000, schedule), order=order).x, exact, rtol=0, atol=1e-10)


class PolynomialVelocity:
    """eps_hat - x0_hat = u^degree, whatever y = x/(alpha + sigma): what Adams' methods integrate exactly."""

    def __init__(self, schedule, degree):
        self.schedule, self.degree = schedule, degree

    def clock(self, t):
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        return sigma / (alpha + sigma), alpha + sigma

    def __call__(self, x, t, cond=None):
        u, scale = self.clock(t)
        return x / scale - u ** (self.degree + 1)

    def flow(self, x, t, s):
        (u_t, scale_t), (u_s, scale_s), k = self.clock(t), self.clock(s), self.degree + 1
        return scale_s * (x / scale_t + (u_s**k - u_t**k) / k)


@every_schedule
@pytest.mark.parametrize(("order", "degree", "exact_from"), [(2, 0, 0), (3, 1, 1), (4, 1, 1)])
def test_polynomials_in_u_are_integrated_exactly(schedule, order, degree, exact_from):
    """Predicted from order - 1 values, a state is exact for degrees below that, once there are as many; errors before that are
    corrected. To t = 0 as well."""
    D, ts, x = PolynomialVelocity(schedule, degree), times(schedule.t_max, 0.8, 0.5, 0.3, 0.29, 0.0), times(1.0)[:, None]
    for i, state in enumerate(abm(D, x, ts, order)):
        gap = (state - D.flow(x, ts[0], ts[i + 1])).abs().item()
        assert gap < 1e-9 if i >= exact_from else gap > 1e-6


@every_schedule
def test_corrections_mend_all_steps_but_the_last(schedule):
    """On degree 1, order 2 corrects every state exactly, and predicts the last from there with one value."""
    D, x = PolynomialVelocity(schedule, 1), times(1.0)[:, None]
    ts = schedule.time_of_log_snr(times(-6, -4, -3, -1, 0, 2, 3))
    (u_t, scale_t), (u_s, scale_s) = map(D.clock, ts[-2:])
    expected = scale_s * (D.flow(x, ts[0], ts[-2]) / scale_t + (u_s - u_t) * u_t)
    torch.testing.assert_close(last(abm, D, x, ts, order=2).x, expected, rtol=1e-10, atol=1e-10)


@every_schedule
@pytest.mark.parametrize("order", [2, 3, 4, 5, 6])
def test_single_precision_ends_where_double_precision_does(schedule, order, generator):
    D, x = MIXTURE.denoiser(schedule), schedule.sigma(schedule.t_max) * normal(64, 2, generator=generator)
    for ts in (flow_uniform(30, schedule), log_snr_uniform(30, schedule)):
        single = last(abm, D, x.float(), ts, order=order).x
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), last(abm, D, x, ts, order=order).x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("schedule", [CosineVP(), Flow()], ids=["CosineVP", "Flow"])
def test_it_may_start_from_pure_noise(schedule):
    D, x = GAUSSIAN.denoiser(schedule), times(-0.7, 1.9)[:, None]
    exact = exact_flow(schedule, x, 1.0, 0.0)
    ts = torch.linspace(1, 0, 401, dtype=torch.float64)
    torch.testing.assert_close(last(abm, D, x, ts, order=4).x, exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("order", [0, 7, 1.5, None])
def test_an_order_that_it_has_not_is_refused(order):
    with pytest.raises(ValueError, match=rf"order: expected a whole number from 1 to 6, got {order}"):
        abm(MIXTURE.denoiser(CosineVP()), torch.zeros(3, 2), times(0.9, 0.1), order)


@every_schedule
@pytest.mark.parametrize("n", [1, 2, 5, 9, 30])
def test_few_steps_takes_as_many_and_comes_near(schedule, n, generator):
    D, x = MIXTURE.denoiser(schedule), schedule.sigma(schedule.t_max) * normal(200, 2, generator=generator)
    exact = last(abm, D, x, flow_uniform(2000, schedule), order=4).x
    states = list(few_steps(D, x, n))
    error = (states[-1] - exact).norm(dim=1).mean()
    assert len(states) == n and error < {1: 1.5, 2: 0.6, 5: 0.1, 9: 0.02, 30: 5e-4}[n]


def test_a_plan_is_kept_by_the_grid_the_schedule_and_the_method(generator):
    """Numbers kept from one walk serve the next; another grid, schedule or order has others, and so has one with a gradient."""
    x = normal(3, 2, generator=generator)
    for schedule in (LinearVP(), LinearVP(beta_max=10.0)):
        D = MIXTURE.denoiser(schedule)
        for ts in (uniform(6, schedule), flow_uniform(6, schedule)):
            for sampler, order in ((dpm_solver_pp, 2), (dpm_solver_pp, 3), (abm, 3)):
                once, again = (last(sampler, D, x, ts, order=order).x for _ in range(2))
                *_, free = sampler(D, x, ts.clone().requires_grad_(), order=order)
                assert torch.equal(once, again)
                torch.testing.assert_close(free.detach(), once, rtol=1e-10, atol=1e-12)


@every_sampler
def test_a_grid_has_a_derivative_backwards_and_forwards(name, generator):
    """Along one direction of the grid, against a central difference; for the SDE with the noise held."""
    D, x, ts = MIXTURE.denoiser(CosineVP()), normal(3, 2, generator=generator), uniform(5, CosineVP())
    way, options = times(0, 1, -2, 0.5, 1, 0), {"noise": normal(5, 3, 2, generator=generator)} if name == "SDE" else {}

    def end(ts):
        *_, x_end = SAMPLERS[name](D, x, ts, **options)
        return x_end

    slope = (end(ts + 1e-5 * way) - end(ts - 1e-5 * way)) / 2e-5
    torch.testing.assert_close(torch.func.jvp(end, (ts,), (way,))[1], slope, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(torch.autograd.functional.jacobian(end, ts) @ way, slope, rtol=1e-5, atol=1e-8)


# ---------------------------------------------------------------------------------------------- the SDE
@every_schedule
def test_the_sde_solver_keeps_the_mean_and_its_variance_has_order_2(schedule):
    def errors(n):
        ts = log_snr_uniform(n, schedule)
        return [abs(a - b).item() for a, b in zip(moments(dpm_solver_pp_sde, schedule, ts), marginal(schedule, ts[-1]))]

    assert errors(7)[0] < 1e-12
    assert measured_orders(lambda n: errors(n)[1], [100, 200])[-1] == pytest.approx(2, abs=0.05)


@every_schedule
def test_the_sde_solver_is_exact_for_a_point(schedule):
    D, ts = Polynomial(schedule, 0), times(schedule.t_max, 0.6, 0.55, 0.1, schedule.t_min)
    a, c, b2 = affine(dpm_solver_pp_sde, D, ts)
    torch.testing.assert_close(a * schedule.alpha(ts[0]) + c, schedule.alpha(ts[-1]), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(a**2 * schedule.sigma(ts[0]) ** 2 + b2, schedule.sigma(ts[-1]) ** 2, rtol=1e-9, atol=0)


def test_the_first_step_of_the_sde_solver_is_the_ancestral_one(generator):
    """Both draw from q(x_s | x_t, x_0 = x0_hat)."""
    for schedule in SCHEDULES:
        D, (x, z) = MIXTURE.denoiser(schedule), normal(2, 6, 2, generator=generator)
        state = next(dpm_solver_pp_sde(D, x, times(0.8, 0.3, 0.1), noise=torch.stack([z, z])))
        torch.testing.assert_close(state, ancestral(D, x, 0.8, 0.3, z), rtol=1e-12, atol=1e-12)


def test_the_sde_solver_takes_its_noise_from_a_generator_or_as_an_argument():
    D, x, ts = MIXTURE.denoiser(CosineVP()), torch.zeros(3, 2), uniform(5, CosineVP())
    drawn = torch.Generator().manual_seed(3)
    noise = torch.stack([torch.randn(3, 2, generator=drawn) for _ in range(5)])
    live = last(dpm_solver_pp_sde, D, x, ts, generator=torch.Generator().manual_seed(3))
    assert torch.equal(live.x, last(dpm_solver_pp_sde, D, x, ts, noise=noise).x) and (live.nfe, live.depth) == (5, 5)
    with pytest.raises(ValueError, match=r"noise: expected shape \(5, 3, 2\), got \(4, 3, 2\)"):
        dpm_solver_pp_sde(D, x, ts, noise=noise[:4])


def test_the_sde_solver_ends_on_the_denoised_point():
    D, x = MIXTURE.denoiser(CosineVP()), torch.ones(3, 2, dtype=torch.float64)
    noise = torch.zeros(2, 3, 2, dtype=torch.float64)
    noise[1] = 1e6                                                              # the last step must not add any
    middle, end = dpm_solver_pp_sde(D, x, times(0.9, 0.4, 0.0), noise=noise)
    torch.testing.assert_close(end, D(middle, 0.4), rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------------------------------------- every multistep method
@every_sampler
def test_the_condition_reaches_every_evaluation(name):
    D = guided(ring().denoiser(LinearVP()), 0.0)                                # refuses to be called without a condition
    labels = torch.tensor([0, 3, 3, 7])
    x = last(SAMPLERS[name], D, torch.ones(4, 2, dtype=torch.float64), karras(20, D.schedule), cond=labels).x
    assert torch.cdist(x, D.D.mixture.means).argmin(1).tolist() == labels.tolist()


@every_sampler
def test_a_network_that_breaks_down_is_reported_with_its_step(name):
    def D(x, t, cond=None):
        return torch.full_like(x, torch.nan if t < 0.5 else 0.0)

    D.schedule = CosineVP()
    with pytest.raises(FloatingPointError, match="NaN or infinity after the step from t = 0.4 to s = 0.2"):
        last(SAMPLERS[name], D, torch.zeros(3, 2), times(0.9, 0.4, 0.2, 0.1))


@every_sampler
@pytest.mark.parametrize("bad", [times(0.1, 0.9), times(0.9, 0.5, 0.5), times(0.9), times(1.2, 0.5), [0.9, 0.1]], ids=str)
def test_a_bad_grid_is_refused_at_once(name, bad):
    with pytest.raises(ValueError, match="ts: "):
        SAMPLERS[name](MIXTURE.denoiser(CosineVP()), torch.zeros(3, 2), bad)


@every_sampler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_state_keeps_its_dtype_and_the_start_is_left_alone(name, dtype):
    x = torch.ones(3, 2, dtype=dtype)
    states = list(SAMPLERS[name](MIXTURE.denoiser(CosineVP()), x, uniform(5, CosineVP()).to(dtype)))
    assert all(state.dtype == dtype for state in states) and torch.equal(x, torch.ones(3, 2, dtype=dtype))


# ---------------------------------------------------------------------------------------------- the Gaussian law and grids
@every_schedule
@pytest.mark.parametrize("grid", [uniform, log_snr_uniform, karras, equal_angles], ids=lambda grid: grid.__name__)
@pytest.mark.parametrize("n", [1, 3, 8])
def test_ddim_shrinks_a_gaussian_by_the_cosines_of_its_steps(schedule, grid, n):
    """On N(0, c^2) with sigma/alpha = c tan(theta), in x/alpha: DDIM = exact * prod cos(theta_i - theta_i+1)."""
    c, ts = 0.6, grid(n, schedule)
    x = times(-3.0, 2.0)[:, None]
    theta = ((-schedule.log_snr(ts) / 2).exp() / c).atan()
    exact = x / schedule.alpha(ts[0]) * theta[0].cos() / theta[-1].cos()        # sqrt(c^2 + r^2) = c/cos(theta)
    found = final(GaussianMixture([[0.0]], c).denoiser(schedule), x, ts, ddim).x / schedule.alpha(ts[-1])
    torch.testing.assert_close(found, exact * theta.diff().cos().prod(), rtol=1e-12, atol=1e-12)


def test_equal_angles_lose_least():
    schedule, c = VE(80.0), 0.5

    def factor(grid):
        theta = angle(grid(8, schedule), schedule, c)
        return theta.diff().cos().prod().item()

    best = math.cos((angle(schedule.t_max, schedule, c) - angle(schedule.t_min, schedule, c)).item() / 8) ** 8
    assert factor(equal_angles) == pytest.approx(best, rel=1e-12)
    assert best > max(factor(grid) for grid in (uniform, log_snr_uniform, karras)) + 0.05


@every_schedule
@pytest.mark.parametrize("n", [2, 8])
def test_the_optimised_grid_of_ddim_on_a_gaussian_has_equal_angles(schedule, n):
    """Found by gradient alone, from a start that has the data's width wrong."""
    c, x = 0.6, times(-3.0, 2.0)[:, None]
    ts = optimise_grid(GaussianMixture([[0.0]], c).denoiser(schedule), x, n, partial(sample, step=ddim), std=0.4)
    assert ts[0] == schedule.t_max and ts[-1] == schedule.t_min and not ts.requires_grad
    steps = angle(ts, schedule, c).diff()
    torch.testing.assert_close(steps, steps.mean().expand(n), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["2M", "3M"])
def test_an_optimised_grid_is_better_on_other_starts_too(name, generator):
    D = ring().denoiser(LinearVP())
    start, other = normal(2, 64, 2, generator=generator)
    ts = optimise_grid(D, start, 6, SAMPLERS[name], end=0.0, iterations=30)
    assert ts[-1] == 0 and len(ts) == 7
    exact = last(dpm_solver_pp, D, other, karras(500, D.schedule), order=3).x

    def error(ts):
        return (last(SAMPLERS[name], D, other, ts).x - exact).square().mean()

    by_hand = [torch.cat([grid(5, D.schedule), times(0.0)]) for grid in (uniform, log_snr_uniform, karras, equal_angles)]
    assert error(ts) < 0.5 * min(error(grid) for grid in by_hand)


def test_optimising_leaves_a_networks_gradients_alone():
    class Shrink(torch.nn.Module):
        schedule = CosineVP()

        def __init__(self):
            super().__init__()
            self.gain = torch.nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

        def forward(self, x, t, cond=None):
            return self.gain * x

    D = Shrink()
    optimise_grid(D, torch.ones(2, 1, dtype=torch.float64), 3, partial(sample, step=ddim), iterations=3)
    assert D.gain.grad is None


@pytest.mark.parametrize("n", [1, 0, 2.5])
def test_a_grid_with_nothing_to_choose_is_refused(n):
    with pytest.raises(ValueError, match=rf"n: expected a whole number of steps .*, at least 2, got {n}"):
        optimise_grid(GAUSSIAN.denoiser(CosineVP()), torch.zeros(2, 1), n, dpm_solver_pp)


@every_sampler
def test_an_empty_batch_stays_empty_and_whole_numbers_are_no_state(name):
    D, ts = MIXTURE.denoiser(CosineVP()), uniform(4, CosineVP())
    assert last(SAMPLERS[name], D, torch.zeros(0, 2), ts).x.shape == (0, 2)
    with pytest.raises(ValueError, match=r"x: expected floating-point states \(B, ...\), got \(3, 2\) torch.int64"):
        SAMPLERS[name](D, torch.zeros(3, 2, dtype=torch.long), ts)


def test_no_starts_make_no_grid():
    with pytest.raises(ValueError, match="x: expected at least one row, got none"):
        optimise_grid(MIXTURE.denoiser(CosineVP()), torch.zeros(0, 2, dtype=torch.float64), 3, dpm_solver_pp, fine=10)


@pytest.mark.parametrize(("eta", "lost"), [(0.0, 0.095), (0.5, 0.114), (1.0, 0.176)])
def test_few_steps_lose_variance_and_the_more_the_larger_eta(eta, lost):
    """50 equal steps in log-SNR on N(0, 0.37), by the library and on paper, in x/alpha with r = sigma/alpha, where x0_hat is
    v/(v + r^2) x. Both say what the docstring of `ddim_eta` says; ten times the steps lose a tenth of it."""
    schedule, v = CosineVP(), 0.37
    D = GaussianMixture([[0.0]], v**0.5).denoiser(schedule)
    one = torch.ones(1, 1, dtype=torch.float64)

    def shortfall(n):
        ts = log_snr_uniform(n, schedule)
        found = paper = v + math.exp(-schedule.log_snr(ts[0]).item())
        for t, s in pairwise(ts):
            a, b = ddim_eta(eta)(D, one, t, s, 0 * one).item(), ddim_eta(eta)(D, 0 * one, t, s, one).item()
            found = (a**2 * found * schedule.alpha(t) ** 2 + b**2).item() / schedule.alpha(s).item() ** 2
            r, r_s = (math.exp(-schedule.log_snr(u).item() / 2) for u in (t, s))
            fresh = 1 - (r_s / r) ** 2
            paper = ((v + r * r_s * math.sqrt(1 - eta**2 * fresh)) / (v + r**2)) ** 2 * paper + eta**2 * fresh * r_s**2
        assert found == pytest.approx(paper, rel=1e-9)
        return 1 - found / (v + r_s**2)

    assert shortfall(50) == pytest.approx(lost, abs=5e-4)
    assert shortfall(500) == pytest.approx(lost / 10, rel=0.15)
