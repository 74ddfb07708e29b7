"""Denoisers: score, noise and slope against autograd and the exact flow; five parameterisations, one target; guidance."""

from functools import partial

import pytest
import torch
from torch import nn

from course_lib.denoiser import (
    EDM,
    X0,
    Eps,
    FlowVelocity,
    Preconditioned,
    V,
    eps,
    guided,
    levels,
    per_row,
    score,
    told,
    tweedie,
    velocity,
)
from course_lib.fast_samplers import ddim
from course_lib.ode_samplers import euler, heun
from course_lib.sampling import Counted
from course_lib.schedules import VE, CosineVP, Flow, LinearVP, SubVP
from course_lib.targets import GaussianMixture, ring

SCHEDULES = [LinearVP(), CosineVP(), VE(), SubVP(), Flow()]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
TIMES = (0.05, 0.3, 0.7, 0.95)

GAUSSIAN = GaussianMixture([[0.5, -1.0]], 0.7)
MIXTURE = GaussianMixture([[-1.0, 0.0], [1.0, 0.5], [0.0, 2.0]], [0.3, 0.5, 0.2], [0.5, 0.3, 0.2])
exact_targets = pytest.mark.parametrize("target", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])


def points(n=7, generator=None):
    return 2 * torch.randn(n, 2, generator=generator, dtype=torch.float64)


class Fixed(nn.Module):
    """A network that gives one answer and remembers what it was asked."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x, c_noise, cond=None):
        self.asked = x, c_noise, cond
        return self.answer


class OneStep:
    """A student that jumps to the data: it has a denoiser's signature, and no score."""

    is_posterior_mean = False
    schedule = CosineVP()

    def __call__(self, x, t, cond=None):
        return x


# ---------------------------------------------------------------------------------------------- score, eps, velocity
@every_schedule
@exact_targets
@pytest.mark.parametrize("t", TIMES)
def test_score_and_noise_are_the_gradient_of_the_log_density(target, schedule, t, generator):
    D, x = target.denoiser(schedule), points(generator=generator).requires_grad_()
    (gradient,) = torch.autograd.grad(target.marginal(schedule, t).log_prob(x).sum(), x)
    torch.testing.assert_close(score(D, x, t), gradient, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(eps(D, x, t), -schedule.sigma(t) * gradient, rtol=1e-8, atol=1e-8)


@every_schedule
@pytest.mark.parametrize("t", TIMES)
def test_velocity_is_the_slope_of_the_exact_flow(schedule, t, generator):
    """Every point of a Gaussian keeps its standardised place: x(t) = alpha m + (x - alpha_1 m) sqrt(v(t)/v(t_1))."""
    m, s, start = GAUSSIAN.means[0], GAUSSIAN.stds[0], points(generator=generator)

    def flow(time):
        def variance(t):
            return schedule.alpha(t) ** 2 * s**2 + schedule.sigma(t) ** 2

        return schedule.alpha(time) * m + (start - schedule.alpha(0.5) * m) * (variance(time) / variance(0.5)).sqrt()

    time = torch.tensor(t, dtype=torch.float64)
    slope = torch.autograd.functional.jacobian(flow, time)
    torch.testing.assert_close(velocity(GAUSSIAN.denoiser(schedule), flow(time), t), slope, rtol=1e-9, atol=1e-9)


@every_schedule
@pytest.mark.parametrize("derivative", [torch.func.jacfwd, torch.func.jacrev], ids=["forwards", "backwards"])
def test_velocity_and_its_steps_have_a_derivative_by_the_time(schedule, derivative, generator):
    """A single time becomes a number, except while somebody differentiates by it."""
    D, x, t = MIXTURE.denoiser(schedule), points(generator=generator), torch.tensor(0.4, dtype=torch.float64)
    for f in (partial(velocity, D, x), *(partial(step, D, x, 0.5) for step in (ddim, euler, heun))):
        torch.testing.assert_close(derivative(f)(t), (f(t + 1e-5) - f(t - 1e-5)) / 2e-5, rtol=1e-5, atol=1e-7)


@every_schedule
def test_velocity_transports_a_mixture(schedule, generator):
    """The continuity equation d log p/dt + v . grad log p + div v = 0, with every derivative by autograd."""
    D, x, t = MIXTURE.denoiser(schedule), points(generator=generator), torch.tensor(0.4, dtype=torch.float64)

    def log_density(x, t):
        weights, a, v = MIXTURE.weights, schedule.alpha(t), schedule.alpha(t) ** 2 * MIXTURE.stds**2 + schedule.sigma(t) ** 2
        distance2 = (x[:, None] - a * MIXTURE.means).square().sum(-1)
        return torch.logsumexp(weights.log() - v.log() - distance2 / (2 * v), 1)

    rate = torch.autograd.functional.jacobian(lambda t: log_density(x, t), t)
    slope = torch.autograd.functional.jacobian(lambda x: log_density(x, t).sum(), x)
    spread = torch.func.vmap(torch.func.jacrev(lambda row: velocity(D, row[None], t)[0]))(x)
    balance = rate + (velocity(D, x, t) * slope).sum(1) + spread.diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(balance, torch.zeros(len(x), dtype=torch.float64), rtol=0, atol=1e-9)


@every_schedule
def test_tweedie_turns_the_score_back_into_the_denoiser(schedule, generator):
    D, x = MIXTURE.denoiser(schedule), points(generator=generator)
    for t in TIMES:
        torch.testing.assert_close(tweedie(score(D, x, t), x, schedule, t), D(x, t), rtol=1e-10, atol=1e-10)


def test_a_student_has_no_score_whatever_wraps_it():
    for D in (OneStep(), Counted(OneStep()), guided(OneStep(), 2.0)):
        with pytest.raises(ValueError, match="D: .* does not return a posterior mean, so it has no score"):
            score(D, points(), 0.5, torch.zeros(7, dtype=torch.long))


# ---------------------------------------------------------------------------------------------- one number or one per row
@pytest.mark.parametrize("shape", [(3, 2), (3, 1, 8, 8), (1, 2)])
def test_a_coefficient_per_row_multiplies_its_own_row(shape):
    x, c = torch.randn(shape), torch.arange(shape[0]) + 1.0
    by_row = torch.stack([ci * row for ci, row in zip(c, x, strict=True)])
    torch.testing.assert_close(per_row(c, x) * x, by_row)
    torch.testing.assert_close(per_row(torch.tensor(2.0, dtype=torch.float64), x) * x, 2 * x)


@pytest.mark.parametrize("shape", [(2,), (4,), (1,), (3, 1), (1, 3)])
def test_a_coefficient_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"t: expected one number or one per row, shape \(\) or \(3,\), got"):
        per_row(torch.ones(shape), torch.ones(3, 8))
    with pytest.raises(ValueError, match="t: "):
        levels(OneStep(), torch.ones(3, 8), torch.full(shape, 0.5))


@every_schedule
@pytest.mark.parametrize("function", [score, eps, velocity, lambda D, x, t: D(x, t)], ids=["score", "eps", "velocity", "D"])
def test_a_time_per_row_is_that_rows_time(schedule, function, generator):
    D, x = MIXTURE.denoiser(schedule), points(4, generator)
    t = torch.tensor(TIMES, dtype=torch.float64)
    one_by_one = torch.cat([function(D, row[None], ti) for row, ti in zip(x, TIMES, strict=True)])
    torch.testing.assert_close(function(D, x, t), one_by_one, rtol=1e-12, atol=1e-12)


def test_images_take_a_time_per_row_too():
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([0.2, 0.5, 0.8])
    network = Fixed(torch.randn(3, 1, 8, 8))
    model = Preconditioned(network, CosineVP(), V())
    together = model(x, t)
    for i in range(3):
        alone = Preconditioned(Fixed(network.answer[i:i + 1]), CosineVP(), V())
        torch.testing.assert_close(together[i:i + 1], alone(x[i:i + 1], t[i].item()))


# ---------------------------------------------------------------------------------------------- parameterisations
def mixed(schedule, t, generator):
    """x0, eps and what t mixes of them, with the levels."""
    x0, noise = (torch.randn(5, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return x0, noise, alpha * x0 + sigma * noise, alpha, sigma


MEANING = {
    "X0": (X0(), lambda x0, noise, alpha, sigma: x0),
    "Eps": (Eps(), lambda x0, noise, alpha, sigma: noise),
    "V": (V(), lambda x0, noise, alpha, sigma: alpha * noise - sigma * x0),
    "FlowVelocity": (FlowVelocity(), lambda x0, noise, alpha, sigma: noise - x0),
    # Karras et al. 2022, eq. 8 with x/alpha = x0 + (sigma/alpha) noise in place of x
    "EDM": (EDM(0.7), lambda x0, noise, alpha, sigma: (sigma * x0 - 0.7**2 * alpha * noise)
            / (0.7 * (sigma**2 + (0.7 * alpha) ** 2).sqrt())),
}


@every_schedule
@pytest.mark.parametrize("name", MEANING)
@pytest.mark.parametrize("t", TIMES)
def test_one_identity_gives_every_target_its_meaning(name, schedule, t, generator):
    parameterisation, meaning = MEANING[name]
    x0, noise, x, alpha, sigma = mixed(schedule, t, generator)
    model = Preconditioned(Fixed(meaning(x0, noise, alpha, sigma)), schedule, parameterisation)
    torch.testing.assert_close(model.target(x0, x, t), model.network.answer, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(model(x, t), x0, rtol=1e-8, atol=1e-8)  # the right answer gives the data back


@every_schedule
@pytest.mark.parametrize("name", [*MEANING])
@pytest.mark.parametrize("t", TIMES)
def test_a_networks_input_has_unit_variance(name, schedule, t):
    parameterisation, std = MEANING[name][0], 0.7 if name == "EDM" else 1.0
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    assert (parameterisation.c_in(alpha, sigma) ** 2 * (alpha**2 * std**2 + sigma**2)).item() == pytest.approx(1)


@every_schedule
@pytest.mark.parametrize("t", TIMES)
def test_edms_network_has_nothing_to_learn_on_a_gaussian_of_its_own_width(schedule, t):
    """For N(0, sigma_data^2) the best F is 0 and its loss 1 per dimension: the target is uncorrelated with x, variance 1."""
    s, (alpha, sigma) = 0.7, (schedule.alpha(t), schedule.sigma(t))
    model = Preconditioned(Fixed(torch.zeros(2, 1, dtype=torch.float64)), schedule, EDM(s))
    units = torch.eye(2, dtype=torch.float64)  # (x0, eps) = (1, 0) and (0, 1)
    x = (alpha * units[:, 0] + sigma * units[:, 1])[:, None]
    of_x0, of_eps = model.target(units[:, :1], x, t).flatten()  # target = of_x0 x0 + of_eps eps
    assert (of_x0**2 * s**2 + of_eps**2).item() == pytest.approx(1, rel=1e-10)
    assert (of_x0 * s**2 * alpha + of_eps * sigma).item() == pytest.approx(0, abs=1e-10)
    exact = GaussianMixture([[0.0]], s).denoiser(schedule)
    torch.testing.assert_close(model(x, t), exact(x, t))


@pytest.mark.parametrize("sigma_data", [0, -0.5, float("nan")])
def test_edm_refuses_data_without_a_width(sigma_data):
    with pytest.raises(ValueError, match="sigma_data: expected a positive standard deviation, got"):
        EDM(sigma_data)


@every_schedule
def test_the_network_hears_of_the_log_snr_alone(schedule):
    network = Fixed(torch.zeros(3, 2))
    model, cond = Preconditioned(network, schedule, V()), torch.tensor([1, 0, -1])
    for t in (schedule.t_min, torch.full((3,), 0.4, dtype=torch.float64), schedule.t_max):
        model(torch.ones(3, 2), t, cond)
        x, c_noise, label = network.asked
        assert c_noise.shape == (3,) and x.dtype == c_noise.dtype == torch.float32 and label is cond
        torch.testing.assert_close(c_noise.double(), (-schedule.log_snr(t) / 8).expand(3), rtol=1e-6, atol=1e-6)
    model(torch.ones(3, 2), 0)
    assert bool(network.asked[1].isfinite().all())


# ---------------------------------------------------------------------------------------------- guidance
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0])


@every_schedule
@pytest.mark.parametrize("weight", [0.0, 0.5, 3.0, -1.0])
@pytest.mark.parametrize("t", [0.4, torch.linspace(0.1, 0.9, 7, dtype=torch.float64)], ids=["scalar", "per row"])
def test_guidance_is_the_composite_of_the_exact_denoisers(schedule, weight, t, generator):
    D, x = MIXTURE.denoiser(schedule), points(generator=generator)
    conditional, free = D(x, t, LABELS), D(x, t)
    together = guided(D, weight)(x, t, LABELS)
    torch.testing.assert_close(together, conditional + weight * (conditional - free), rtol=1e-12, atol=1e-12)


def test_weight_0_is_conditional_and_minus_1_is_not():
    D, x = MIXTURE.denoiser(CosineVP()), points()
    torch.testing.assert_close(guided(D, 0.0)(x, 0.5, LABELS), D(x, 0.5, LABELS), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(guided(D, -1.0)(x, 0.5, LABELS), D(x, 0.5), rtol=1e-14, atol=1e-14)


def test_guidance_costs_two_evaluations_in_one_go():
    counted = Counted(guided(MIXTURE.denoiser(CosineVP()), 2.0))
    counted(points(), 0.5, LABELS)
    assert (counted.nfe, counted.depth) == (2, 1)
    assert counted.schedule == CosineVP()


def test_guidance_needs_a_label():
    with pytest.raises(ValueError, match="cond: guidance needs a condition for every row, got None"):
        guided(ring().denoiser(CosineVP()), 1.0)(points(), 0.5)


def test_guided_scores_are_guided():
    D, x, w = MIXTURE.denoiser(VE()), points(), 1.5
    expected = (1 + w) * score(D, x, 0.5, LABELS) - w * score(D, x, 0.5)
    torch.testing.assert_close(score(guided(D, w), x, 0.5, LABELS), expected, rtol=1e-9, atol=1e-9)


def test_a_weight_per_row_is_that_rows_weight():
    D, x, w = MIXTURE.denoiser(CosineVP()), points(), torch.linspace(-1, 3, 7, dtype=torch.float64)
    together = guided(D, w)(x, 0.4, LABELS)
    for i in range(7):
        alone = guided(D, w[i].item())(x[i:i + 1], 0.4, LABELS[i:i + 1])
        torch.testing.assert_close(together[i:i + 1], alone, rtol=1e-12, atol=1e-12)


def test_outside_its_interval_guidance_is_the_conditional_model():
    D, x = MIXTURE.denoiser(CosineVP()), points()
    t = torch.linspace(0.1, 0.9, 7, dtype=torch.float64)
    limited, full, plain = guided(D, 2.0, (0.3, 0.6))(x, t, LABELS), guided(D, 2.0)(x, t, LABELS), D(x, t, LABELS)
    inside = (0.3 <= t) & (t <= 0.6)
    torch.testing.assert_close(limited[inside], full[inside])
    torch.testing.assert_close(limited[~inside], plain[~inside], rtol=1e-14, atol=1e-14)
    assert not torch.allclose(limited[inside], plain[inside])


class Hears(torch.nn.Module):
    """A network that repeats the numbers it is told."""

    def forward(self, x, c_noise, cond=None, numbers=None):
        return numbers.expand(x.shape)


@pytest.mark.parametrize("number", [1.5, torch.linspace(0, 1, 7, dtype=torch.float64)], ids=["one", "per row"])
def test_a_number_held_fixed_reaches_the_network_for_one_evaluation(number):
    counted = Counted(told(Preconditioned(Hears(), CosineVP(), X0()), number))
    heard = counted(points(), 0.5)
    torch.testing.assert_close(heard, torch.as_tensor(number).expand(7).double()[:, None].expand(7, 2))
    assert (counted.nfe, counted.depth) == (1, 1) and counted.schedule == CosineVP()


def test_a_weight_of_another_length_is_named():
    D, x, cond = MIXTURE.denoiser(CosineVP()), torch.zeros(3, 2), torch.tensor([0, 1, 2])
    for weight in (torch.ones(2), torch.ones(3, 1)):
        with pytest.raises(ValueError, match=r"weight: expected one number or one per row, shape \(\) or \(3,\), got"):
            guided(D, weight)(x, 0.5, cond)
    network = Preconditioned(Fixed(x), CosineVP(), V())
    with pytest.raises(ValueError, match=r"number: expected one number or one per row, shape \(\) or \(3,\), got \(2,\)"):
        told(network, torch.ones(2))(x, 0.5)


def test_an_interval_of_guidance_runs_upwards():
    with pytest.raises(ValueError, match="interval: expected a start from 0 to its end, 0.2, got 0.8"):
        guided(MIXTURE.denoiser(CosineVP()), 1.0, (0.8, 0.2))


@pytest.mark.parametrize("cond", [torch.tensor([0, 1]), torch.tensor(1), torch.ones(3)], ids=["too few", "one", "not whole"])
def test_guidance_needs_whole_numbers_for_its_rows(cond):
    with pytest.raises(ValueError, match="cond: guidance needs a condition for every row, got .* expected whole .* for 3 rows"):
        guided(MIXTURE.denoiser(CosineVP()), 1.0)(torch.zeros(3, 2), 0.5, cond)


def test_guidance_of_guidance_keeps_each_rows_weights():
    """Both weights a row: D_w1 + w2 (D_w1 - D_u), and of no label D_w1 is D_u."""
    D, x, cond = MIXTURE.denoiser(CosineVP()), points(3), torch.tensor([0, 1, 2])
    one, two = torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64), torch.tensor([1.0, 0.0, 0.3], dtype=torch.float64)
    c, u = D(x, 0.5, cond), D(x, 0.5)
    inner = c + one[:, None] * (c - u)
    torch.testing.assert_close(guided(guided(D, one), two)(x, 0.5, cond), inner + two[:, None] * (inner - u))
