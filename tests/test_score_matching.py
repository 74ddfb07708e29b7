"""Score matching: three losses that differ by constants known in closed form, one minimiser, and Langevin's exact bias."""

import math

import pytest
import torch
from torch import nn

from course_lib.denoiser import EDM, Eps, Preconditioned, score
from course_lib.metrics import relative_l2
from course_lib.networks import MLP
from course_lib.schedules import VE, CosineVP, LinearVP
from course_lib.score_matching import (
    annealed_langevin,
    denoising_loss,
    denoising_score_loss,
    divergence,
    implicit_loss,
    langevin,
    sliced_loss,
)
from course_lib.targets import GaussianMixture, ring, two_islands
from course_lib.training import train


def normal(*shape, generator):
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def curved(x):
    """A function whose Jacobian has no symmetry at all."""
    return torch.stack([x[:, 0] ** 2 * x[:, 1], x[:, 1].sin() + x[:, 2] * x[:, 0], x.square().sum(1) * x[:, 2]], 1)


def rademacher(x, generator):
    return torch.randint(0, 2, x.shape, generator=generator).to(x) * 2 - 1


# ---------------------------------------------------------------------------------------------- derivatives
def test_divergence_is_the_trace_of_the_jacobian(generator):
    x = normal(5, 3, generator=generator)
    value, trace = divergence(curved, x)
    jacobians = [torch.autograd.functional.jacobian(lambda row: curved(row[None])[0], row) for row in x]
    torch.testing.assert_close(value, curved(x))
    torch.testing.assert_close(trace, torch.stack([J.trace() for J in jacobians]))


def test_the_sliced_loss_is_the_implicit_one_on_average_over_directions(generator):
    x = normal(4, 3, generator=generator)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 3)  # all 8 Rademacher directions
    average = sum(sliced_loss(curved, x, v.expand_as(x)) for v in signs) / len(signs)
    torch.testing.assert_close(average, implicit_loss(curved, x))


def test_rademacher_directions_are_exact_for_diagonal_jacobians(generator):
    x = normal(6, 3, generator=generator)
    torch.testing.assert_close(sliced_loss(lambda x: -(x**3), x, rademacher(x, generator)), implicit_loss(lambda x: -(x**3), x))
    assert not torch.isclose(sliced_loss(curved, x, rademacher(x, generator)), implicit_loss(curved, x))


@pytest.mark.parametrize("shape", [(6,), (3,), (6, 1)])
def test_directions_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"v: expected one direction per row, shape \(6, 3\), got"):
        sliced_loss(curved, torch.zeros(6, 3), torch.ones(shape))


# ---------------------------------------------------------------------------------------------- three losses, one minimiser
@pytest.mark.parametrize("sigma", [0.3, 1.0])
@pytest.mark.parametrize("function", ["exact", "wrong"])
def test_denoising_minus_implicit_loss_is_a_constant(sigma, function, generator):
    """d/(2 sigma^2), whatever the score function: within five standard errors of the difference."""
    target, n, parts = ring(), 10_000, 20
    mixture = GaussianMixture(target.means, (target.stds**2 + sigma**2).sqrt(), target.weights)
    D = mixture.denoiser(VE())
    functions = {"exact": lambda x: score(D, x, 1e-6), "wrong": lambda x: (1.3 * x).sin() - x}
    differences = []
    for _ in range(parts):
        x0, noise = target.sample(n, generator), normal(n, 2, generator=generator)
        denoising = denoising_score_loss(functions[function], x0, sigma, noise)
        differences.append(denoising - implicit_loss(functions[function], x0 + sigma * noise))
    differences = torch.stack(differences)
    standard_error = differences.std() / parts**0.5
    assert standard_error < 0.02 / sigma**2  # sharp enough to tell d/(2 sigma^2) = 1/sigma^2 from anything near
    assert abs(differences.mean() - 1 / sigma**2) < 5 * standard_error


def test_the_implicit_loss_of_a_gaussian_is_least_at_minus_the_inverse_covariance(generator):
    """For s(x) = -A x the loss is tr(A C A')/2 - tr A on data of covariance C: stationary at A = C^-1."""
    x = normal(200, 3, generator=generator) @ normal(3, 3, generator=generator)
    C = x.T @ x / len(x)
    A = C.inverse().requires_grad_()
    loss = implicit_loss(lambda x: -x @ A.T, x)
    torch.testing.assert_close(loss, (A @ C @ A.T).trace() / 2 - A.trace())
    (gradient,) = torch.autograd.grad(loss, A)
    torch.testing.assert_close(gradient, torch.zeros(3, 3, dtype=torch.float64), rtol=0, atol=1e-10)
    for _ in range(20):
        other = A.detach() + 0.1 * normal(3, 3, generator=generator)
        assert implicit_loss(lambda x, B=other: -x @ B.T, x) > loss


class Linear(nn.Module):
    """F(x) = k x: for centred Gaussian data the best network in every parameterisation is of this kind."""

    def __init__(self, k):
        super().__init__()
        self.k = nn.Parameter(torch.tensor(k, dtype=torch.float64))

    def forward(self, x, c_noise, cond=None):
        return self.k * x


@pytest.mark.parametrize("schedule", [LinearVP(), CosineVP(), VE()], ids=lambda schedule: type(schedule).__name__)
def test_the_least_eps_loss_is_s2_over_s2_plus_sigma2(schedule, generator):
    """A dimension of N(0, s^2), in the variance-exploding variables; the minimum by regressing the noise on x."""
    n, s, t = 400_000, 0.7, 0.4
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x0, noise = s * normal(n, 1, generator=generator), normal(n, 1, generator=generator)
    x = alpha * x0 + sigma * noise
    parameterisation = Eps()
    best = (x * noise).mean() / x.square().mean() / parameterisation.c_in(alpha, sigma)
    model = Preconditioned(Linear(best.item()), schedule, parameterisation)
    loss = denoising_loss(model, x0, torch.full((n,), t, dtype=torch.float64), noise)
    r = sigma / alpha
    least = s**2 / (s**2 + r**2)
    assert loss.item() == pytest.approx(least.item(), rel=5 * (2 / n) ** 0.5)
    exact = GaussianMixture([[0.0]], s).denoiser(schedule)
    torch.testing.assert_close(model(x[:5], t), exact(x[:5], t), rtol=0.02, atol=0.02)


def test_the_denoising_loss_is_the_mean_square_of_eps_hat_minus_eps(generator):
    x0, noise = normal(6, 2, generator=generator), normal(6, 2, generator=generator)
    t = torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    model = Preconditioned(Linear(0.4), CosineVP(), Eps())
    x = CosineVP().alpha(t)[:, None] * x0 + CosineVP().sigma(t)[:, None] * noise
    torch.testing.assert_close(denoising_loss(model, x0, t, noise), (0.4 * x - noise).square().mean())


def test_a_network_trained_by_denoising_learns_the_score_of_the_noisy_ring(generator):
    schedule, target = VE(10.0), ring()
    t = schedule.time_of_log_snr(-2 * torch.tensor(0.5, dtype=torch.float64).log())  # sigma = 0.5: between the modes and one

    def loss(model, x0, generator):
        return denoising_loss(model, x0, t.float().expand(len(x0)), torch.randn(x0.shape, generator=generator))

    model = Preconditioned(MLP(width=64, depth=2), schedule, EDM(1.0))
    trained = train(loss, model, [target.sample(20_000, generator).float()], steps=2000, batch=512, lr=3e-3, ema=0.99,
                    device="cpu", progress=False)
    x = target.marginal(schedule, t).sample(5000, generator).float()
    assert relative_l2(score(trained.model, x, t), score(target.denoiser(schedule), x, t)) < 0.05


# ---------------------------------------------------------------------------------------------- Langevin
def after(score_function, x, size, steps, seed=0):
    *_, last = langevin(score_function, x, size, steps, torch.Generator().manual_seed(seed))
    return last


@pytest.mark.parametrize("size", [0.01, 0.3, 1.0, 1.7])
def test_langevins_stationary_variance_on_a_unit_gaussian(size):
    """x <- a x + b z with a = 1 - size, b^2 = 2 size settles at b^2/(1 - a^2) = 1/(1 - size/2), not at 1."""
    one = torch.ones(1, 1, dtype=torch.float64)
    z = torch.randn(1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    from_0, from_1 = (after(torch.neg, x, size, steps=1) for x in (0 * one, one))
    a, b = (from_1 - from_0).item(), (from_0 / z).item()
    assert b**2 / (1 - a**2) == pytest.approx(1 / (1 - size / 2), rel=1e-12)


def test_a_long_walk_reaches_that_variance():
    n, size = 20_000, 0.5
    x = after(torch.neg, torch.zeros(n, 1, dtype=torch.float64), size, steps=100)
    assert x.var().item() == pytest.approx(4 / 3, rel=5 * (2 / n) ** 0.5)


def test_langevin_yields_every_state():
    states = list(langevin(torch.neg, torch.zeros(3, 2), 0.1, 7, torch.Generator().manual_seed(0)))
    assert len(states) == 7 and torch.equal(states[-1], after(torch.neg, torch.zeros(3, 2), 0.1, 7))


@pytest.mark.parametrize("size", [0, -0.1, float("nan")])
def test_a_step_size_that_is_not_positive_is_refused(size):
    with pytest.raises(ValueError, match="size: expected a positive step size, got"):
        next(langevin(torch.neg, torch.zeros(3, 2), size, 1))


@pytest.mark.parametrize("start", ["left", "right", "broad"])
def test_annealing_repairs_the_weights_that_plain_langevin_leaves(start, generator):
    """Islands of weight 0.8 and 0.2, each six standard deviations from the middle: a walker stays where it starts, so plain
    Langevin keeps the start's weights. From broad noise downwards they come right, but for the lag of 50 steps a level."""
    D, n = two_islands(separation=6.0).denoiser(VE(20.0)), 4000
    centre, width = {"left": (-3.0, 0.1), "right": (3.0, 0.1), "broad": (0.0, 10.0)}[start]
    x = torch.tensor([centre, 0.0]) + width * torch.randn(n, 2, generator=generator)
    *_, plain = langevin(lambda x: score(D, x, D.schedule.t_min), x, 0.02, 400, generator)
    ts = D.schedule.time_of_log_snr(torch.linspace(-2 * math.log(20.0), 6, 20, dtype=torch.float64))
    *_, annealed = annealed_langevin(D, x, ts, steps=50, snr=0.3, generator=generator)
    assert left_share(plain) == pytest.approx(left_share(x), abs=0.03)
    assert abs(left_share(plain) - 0.8) > 0.15
    assert left_share(annealed) == pytest.approx(0.8, abs=0.04)


def left_share(x):
    return (x[:, 0] < 0).float().mean().item()


def test_annealed_langevin_yields_a_state_a_level(generator):
    D, ts = ring().denoiser(VE(5.0)), torch.tensor([0.9, 0.5, 0.1])
    assert len(list(annealed_langevin(D, torch.zeros(3, 2), ts, steps=2, generator=generator))) == 3


# ---------------------------------------------------------------------------------------------- what is refused
MODEL = Preconditioned(MLP(2, 8, 1), CosineVP(), EDM())
LOSSES = {
    "implicit": lambda x, noise: implicit_loss(torch.neg, x),
    "sliced": lambda x, noise: sliced_loss(torch.neg, x, noise),
    "denoising": lambda x, noise: denoising_score_loss(torch.neg, x, 0.5, noise),
    "network": lambda x, noise: denoising_loss(MODEL, x, torch.full((len(x),), 0.5), noise),
}


@pytest.mark.parametrize("name", LOSSES)
def test_an_empty_batch_has_no_loss(name):
    none = torch.zeros(0, 2)
    with pytest.raises(ValueError, match="x0?: expected at least one row, got none"):
        LOSSES[name](none, none)


@pytest.mark.parametrize("name", ["sliced", "denoising", "network"])
def test_one_noise_for_all_rows_is_refused(name):
    with pytest.raises(ValueError, match=r"(v|eps|noise): expected .*shape \(4, 2\), got \(1, 2\)"):
        LOSSES[name](torch.zeros(4, 2), torch.ones(1, 2))


@pytest.mark.parametrize("name", ["implicit", "sliced", "denoising"])
def test_losses_of_scores_are_for_points(name):
    images = torch.zeros(4, 1, 2, 2)
    with pytest.raises(ValueError, match=r"x0?: expected points \(B, d\), .*got \(4, 1, 2, 2\)"):
        LOSSES[name](images, images)


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan])
def test_noise_has_a_level(sigma):
    with pytest.raises(ValueError, match="sigma: expected a positive number, got"):
        denoising_score_loss(torch.neg, torch.zeros(4, 2), sigma, torch.zeros(4, 2))


@pytest.mark.parametrize(("arguments", "message"), [
    ({"size": math.inf}, "size: expected a positive step size, got inf"),
    ({"steps": 0}, "steps: expected a whole number, at least 1, got 0"),
    ({"steps": 2.5}, "steps: expected a whole number, at least 1, got 2.5"),
    ({"x": torch.zeros(3, 2, dtype=torch.long)}, "x: expected floating-point states"),
])
def test_langevin_dynamics_take_a_state_a_size_and_steps(arguments, message):
    with pytest.raises(ValueError, match=message):
        next(langevin(**{"score_function": torch.neg, "x": torch.zeros(3, 2), "size": 0.1, "steps": 1} | arguments))


@pytest.mark.parametrize("ts", [[0.1, 0.5], [0.5, 0.5], [0.5, math.nan], []], ids=str)
def test_annealing_goes_down(ts):
    with pytest.raises(ValueError, match="ts: expected times .* that fall from noise to data, got"):
        next(annealed_langevin(ring().denoiser(VE()), torch.zeros(3, 2), torch.tensor(ts), steps=2))


def test_annealing_reports_a_state_that_is_not_finite():
    with pytest.raises(FloatingPointError, match="x: NaN or infinity after the step from t = 0.5"):
        next(annealed_langevin(ring().denoiser(VE()), torch.full((3, 2), math.nan), torch.tensor([0.5, 0.1]), steps=2))
