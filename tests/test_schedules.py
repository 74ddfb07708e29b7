"""Schedules: each rate is the derivative it claims to be, each inverse inverts, each grid falls the way it is named."""

import math

import pytest
import torch
from scipy.integrate import quad, solve_ivp

from course_lib.schedules import (
    VE,
    CosineVP,
    Flow,
    LinearVP,
    SubVP,
    angle,
    equal_angles,
    karras,
    log_snr_to_zero,
    log_snr_uniform,
    quadratic,
    time_of_angle,
    uniform,
)

SCHEDULES = [LinearVP(), CosineVP(), VE(), SubVP(), Flow()]
GRIDS = [uniform, quadratic, log_snr_uniform, karras, equal_angles]

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
every_grid = pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.__name__)


def times(schedule, n=101):
    return torch.linspace(schedule.t_min, schedule.t_max, n, dtype=torch.float64)


def slope(function, t):
    """The derivative of an elementwise function, which may also be constant."""
    t = t.clone().requires_grad_()
    return torch.autograd.grad((function(t) + 0 * t).sum(), t)[0]


# ---------------------------------------------------------------------------------------------- alpha, sigma, f, g
@every_schedule
def test_drift_and_diffusion_are_the_derivatives_of_alpha_and_sigma(schedule):
    t = times(schedule)
    f, g2, variance = schedule.drift(t), schedule.diffusion2(t), schedule.sigma(t) ** 2
    torch.testing.assert_close(f, slope(lambda t: schedule.alpha(t).log(), t), rtol=1e-10, atol=0)
    torch.testing.assert_close(g2, slope(lambda t: schedule.sigma(t) ** 2, t) - 2 * f * variance, rtol=1e-10, atol=0)


@every_schedule
def test_the_forward_sde_has_the_marginals_that_the_schedule_states(schedule):
    def moments(t, y):  # of dx = f x dt + g dw: mean' = f mean, variance' = 2 f variance + g^2
        f, g2 = schedule.drift(t).item(), schedule.diffusion2(t).item()
        return [f * y[0], 2 * f * y[1] + g2]

    t = times(schedule, 20)
    solved = solve_ivp(moments, (0, schedule.t_max), [1.0, 0.0], method="DOP853", t_eval=t, rtol=1e-11, atol=1e-14)
    mean, variance = torch.from_numpy(solved.y)
    torch.testing.assert_close(schedule.alpha(t), mean, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(schedule.sigma(t) ** 2, variance, rtol=1e-8, atol=1e-12)


def test_each_schedule_keeps_what_its_name_promises():
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    for schedule in (LinearVP(), CosineVP()):
        torch.testing.assert_close(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, torch.ones_like(t))
    torch.testing.assert_close(Flow().alpha(t) + Flow().sigma(t), torch.ones_like(t))
    torch.testing.assert_close(SubVP().sigma(t), 1 - LinearVP().alpha(t) ** 2)
    geometric = 0.01 * (50 / 0.01) ** t  # the paper's sigma, which the exact marginal approaches once it is large
    torch.testing.assert_close(VE(50.0).sigma(t) ** 2, geometric**2 - 0.01**2)


def test_linear_vp_integrates_its_beta():
    schedule = LinearVP()
    integral, _ = quad(lambda t: schedule.beta(t).item(), 0, 0.7)
    assert schedule.alpha(0.7).item() == pytest.approx(math.exp(-integral / 2), rel=1e-12)


def test_linear_vp_is_the_limit_of_ddpms_discrete_betas():
    def gap(n):  # beta_i = beta(i/n)/n; n = 1000 gives DDPM's 1e-4 ... 0.02
        i = torch.arange(1, n + 1, dtype=torch.float64) / n
        return (torch.cumprod(1 - LinearVP().beta(i) / n, 0).sqrt() - LinearVP().alpha(i)).abs().max()

    assert gap(1000) < 0.01
    assert gap(1000) / gap(4000) == pytest.approx(4, rel=0.05)


@every_schedule
def test_data_is_clean_at_0(schedule):
    assert schedule.alpha(0) == 1 and schedule.sigma(0) == 0 and schedule.log_snr(0) == math.inf


# ---------------------------------------------------------------------------------------------- log-SNR
@every_schedule
def test_log_snr_falls_and_its_inverse_returns_the_time(schedule):
    t = times(schedule)
    log_snr = schedule.log_snr(t)
    torch.testing.assert_close(log_snr, (schedule.alpha(t) ** 2 / schedule.sigma(t) ** 2).log())
    assert bool((log_snr.diff() < 0).all())
    torch.testing.assert_close(schedule.time_of_log_snr(log_snr), t, rtol=1e-9, atol=1e-12)


@every_schedule
def test_sampling_runs_over_log_snr_from_minus_10_to_10(schedule):
    assert schedule.log_snr(schedule.t_min).item() == pytest.approx(10, abs=1e-9)
    assert schedule.log_snr(schedule.t_max).item() >= -10 - 1e-9
    assert schedule.t_max == 1 or schedule.log_snr(schedule.t_max).item() == pytest.approx(-10, abs=1e-9)


def test_ve_stops_at_1_where_its_noise_never_reaches_minus_10():
    assert VE(sigma_max=50).t_max == 1 and VE(sigma_max=1000).t_max < 1


# ---------------------------------------------------------------------------------------------- numbers and tensors
@every_schedule
def test_numbers_are_float64_and_tensors_keep_their_shape_and_dtype(schedule):
    for f in (schedule.alpha, schedule.sigma, schedule.drift, schedule.diffusion2, schedule.log_snr):
        assert f(0.5).dtype == torch.float64 and f(0.5).shape == ()
        single = f(torch.full((3, 1), 0.5))
        assert single.dtype == torch.float32 and single.shape == (3, 1)
        torch.testing.assert_close(single[0, 0].double(), f(0.5), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("schedule", [CosineVP(), Flow()], ids=lambda schedule: type(schedule).__name__)
@pytest.mark.parametrize("t", [1, 1.0, torch.tensor([0.5, 1.0])], ids=["int", "float", "tensor"])
def test_an_infinite_drift_is_refused(schedule, t):
    for rate in (schedule.drift, schedule.diffusion2):
        with pytest.raises(ValueError, match=r"t: .*infinite at t = 1, got t up to 1; stop at schedule.t_max"):
            rate(t)


@pytest.mark.parametrize("schedule", [LinearVP(), VE(), SubVP()], ids=lambda schedule: type(schedule).__name__)
def test_a_finite_drift_reaches_to_1(schedule):
    assert schedule.drift(1).isfinite() and schedule.diffusion2(1).isfinite()


# ---------------------------------------------------------------------------------------------- grids
@every_schedule
@every_grid
@pytest.mark.parametrize("n", [1, 2, 7, 1000])
def test_a_grid_falls_between_pinned_ends(grid, schedule, n):
    ts = grid(n, schedule)
    assert ts.shape == (n + 1,) and ts.dtype == torch.float64
    assert ts[0] == schedule.t_max and ts[-1] == schedule.t_min
    assert bool((ts.diff() < 0).all())
    assert schedule.log_snr(ts).abs().max() <= 10 + 1e-9


@every_schedule
@pytest.mark.parametrize(("grid", "scale"), [
    (uniform, lambda schedule, t: t),
    (quadratic, lambda schedule, t: t.sqrt()),
    (log_snr_uniform, lambda schedule, t: schedule.log_snr(t)),
    (karras, lambda schedule, t: (schedule.sigma(t) / schedule.alpha(t)) ** (1 / 7)),
    (equal_angles, lambda schedule, t: (2 * schedule.sigma(t) / schedule.alpha(t)).atan()),
], ids=["uniform", "quadratic", "log_snr_uniform", "karras", "equal_angles"])
def test_a_grid_has_equal_steps_on_its_own_scale(grid, scale, schedule):
    steps = scale(schedule, grid(12, schedule)).diff()
    torch.testing.assert_close(steps, steps.mean().expand(12), rtol=1e-8, atol=0)


@every_schedule
@pytest.mark.parametrize("n", [1, 2, 7, 100])
def test_log_snr_to_zero_has_equal_steps_and_lands_on_zero(schedule, n):
    ts = log_snr_to_zero(n, schedule, end=5.0)
    assert ts.shape == (n + 1,) and ts[0] == schedule.t_max and ts[-1] == 0 and bool((ts.diff() < 0).all())
    steps = schedule.log_snr(ts[:-1]).diff()
    torch.testing.assert_close(steps, steps.new_full((n - 1,), (5 - schedule.log_snr(schedule.t_max).item()) / max(n - 1, 1)))


def test_karras_is_the_papers_formula():
    schedule, rho, n = VE(80.0), 5.0, 18
    low, high = (schedule.sigma(t).item() ** (1 / rho) for t in (schedule.t_min, schedule.t_max))
    paper = [(high + i / n * (low - high)) ** rho for i in range(n + 1)]
    torch.testing.assert_close(schedule.sigma(karras(n, schedule, rho)), torch.tensor(paper, dtype=torch.float64))


@every_schedule
@pytest.mark.parametrize("std", [0.1, 0.5, 3.0])
def test_an_angle_is_the_noise_beside_the_data_and_its_inverse_returns_the_time(schedule, std):
    t = times(schedule)
    torch.testing.assert_close(std * angle(t, schedule, std).tan(), schedule.sigma(t) / schedule.alpha(t), rtol=1e-9, atol=0)
    torch.testing.assert_close(time_of_angle(angle(t, schedule, std), schedule, std), t, rtol=1e-9, atol=1e-12)
    assert angle(0, schedule, std) == 0
    steps = angle(equal_angles(9, schedule, std), schedule, std).diff()
    torch.testing.assert_close(steps, steps.mean().expand(9), rtol=1e-8, atol=0)


@pytest.mark.parametrize("std", [0, -1.0, math.nan])
def test_data_without_a_width_have_no_angle(std):
    with pytest.raises(ValueError, match=f"std: expected the data's positive standard deviation, got {std}"):
        equal_angles(5, CosineVP(), std)


@every_grid
@pytest.mark.parametrize("n", [0, -3, 2.5])
def test_a_number_of_steps_that_is_none_is_refused(grid, n):
    with pytest.raises(ValueError, match=rf"n: expected a whole number of steps, at least 1, got {n}"):
        grid(n, CosineVP())


# ---------------------------------------------------------------------------------------------- the ends
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("schedule", [CosineVP(), Flow()], ids=["CosineVP", "Flow"])
def test_no_signal_is_left_at_1_in_any_precision(schedule, dtype):
    one = torch.ones((), dtype=dtype)
    assert (schedule.alpha(one).item(), schedule.sigma(one).item(), schedule.log_snr(one).item()) == (0, 1, -math.inf)


def test_the_cosines_drift_is_right_just_before_1():
    """-(pi/2) tan(pi t/2) is -1/(1 - t) there; the product pi t/2 rounds to beyond pi/2, where the tangent is positive."""
    t = torch.tensor(1 - 2**-24)
    assert t.dtype == torch.float32 and t < 1
    assert CosineVP().drift(t).item() == pytest.approx(-(2**24), rel=1e-6)
    assert CosineVP().diffusion2(t).item() == pytest.approx(2**25, rel=1e-6)


@every_schedule
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_infinite_log_snr_has_its_time(schedule, dtype):
    ends = schedule.time_of_log_snr(torch.tensor([math.inf, -math.inf], dtype=dtype))
    assert ends.tolist() == [0, 1 if isinstance(schedule, (CosineVP, Flow)) else math.inf] and ends.dtype == dtype


def test_sub_vps_faintest_noise_has_its_time():
    """There sigma/alpha is B = beta_min t."""
    assert SubVP().time_of_log_snr(100.0).item() == pytest.approx(math.exp(-50) / 0.1, rel=1e-12)


@pytest.mark.parametrize(("build", "message"), [
    (lambda: LinearVP(0.0, 20.0), "beta_min: expected a positive number, got 0.0"),
    (lambda: SubVP(0.1, math.nan), "beta_max: expected a positive number, got nan"),
    (lambda: VE(0.01), "sigma_max: expected more than sigma_min > 0, got 0.01 and 0.01"),
    (lambda: VE(50.0, -1.0), "got 50.0 and -1.0"),
    (lambda: karras(4, CosineVP(), rho=0.0), "rho: expected a positive number, got 0.0"),
    (lambda: log_snr_to_zero(4, CosineVP(), end=-20.0), "end: expected a finite log-SNR above .* -10, got -20.0"),
    (lambda: log_snr_to_zero(4, CosineVP(), end=math.nan), "end: .* got nan"),
    (lambda: equal_angles(4, CosineVP(), std=math.inf), "std: .* got inf"),
])
def test_numbers_that_make_no_schedule_and_no_grid_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
