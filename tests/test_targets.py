"""Targets: densities against scipy and torch, the exact denoiser against numerical integration, samples against moments."""

import math

import pytest
import torch
from scipy import stats

from course_lib.denoiser import score
from course_lib.schedules import VE, CosineVP, Flow, LinearVP, SubVP
from course_lib.targets import GaussianMixture, ring, two_islands

SCHEDULES = [LinearVP(), CosineVP(), VE(), SubVP(), Flow()]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
SHAPES = [ring, two_islands]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)

MIXTURE = GaussianMixture([[-1.0, 0.0], [1.0, 0.5], [0.0, 2.0]], [0.3, 0.5, 0.2], [0.5, 0.3, 0.2])
LINE = GaussianMixture([[-1.5], [0.5], [2.0]], [0.3, 0.6, 0.2], [0.2, 0.5, 0.3])


def points(n=9, dim=2, generator=None):
    return 2 * torch.randn(n, dim, generator=generator, dtype=torch.float64)


def line(extent, n):
    return torch.linspace(-extent, extent, n, dtype=torch.float64)


# ---------------------------------------------------------------------------------------------- density
def test_log_density_agrees_with_scipy_and_torch(generator):
    x = points(generator=generator)
    parts = zip(MIXTURE.weights, MIXTURE.means, MIXTURE.stds, strict=True)
    scipys = sum(w.item() * stats.multivariate_normal(m.numpy(), s.item() ** 2).pdf(x.numpy()) for w, m, s in parts)
    torch.testing.assert_close(MIXTURE.log_prob(x), torch.from_numpy(scipys).log(), rtol=1e-10, atol=1e-10)
    d = torch.distributions
    components = d.Independent(d.Normal(MIXTURE.means, MIXTURE.stds[:, None]), 1)
    torchs = d.MixtureSameFamily(d.Categorical(MIXTURE.weights), components)
    torch.testing.assert_close(MIXTURE.log_prob(x), torchs.log_prob(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dim", [7, 8, 64])
def test_many_dimensions_lose_no_digits(dim, generator):
    """Far from the origin, too, and in first and second derivatives."""
    mixture = GaussianMixture(100 + torch.randn(5, dim, generator=generator), [0.1, 0.2, 0.3, 0.4, 0.5])
    x = mixture.sample(20, generator)
    d = torch.distributions
    components = d.Independent(d.Normal(mixture.means, mixture.stds[:, None].expand(5, dim)), 1)
    truth = d.MixtureSameFamily(d.Categorical(mixture.weights), components)
    torch.testing.assert_close(mixture.log_prob(x), truth.log_prob(x), rtol=1e-10, atol=1e-10)
    D, noisy = mixture.denoiser(VE(50.0)), x + 5 * points(20, dim, generator)
    between = mixture.means[:2].mean(0, keepdim=True)
    both = [torch.func.hessian(lambda y, p=p: p.log_prob(y[None])[0])(between[0]) for p in (mixture, truth)]
    torch.testing.assert_close(*both, rtol=1e-9, atol=1e-9)

    def one(y):
        return mixture.marginal(VE(50.0), 0.7).log_prob(y[None])[0]

    scores = torch.func.vmap(torch.func.grad(one))(noisy)
    torch.testing.assert_close(scores, score(D, noisy, 0.7), rtol=1e-9, atol=1e-9)
    along = torch.func.jvp(lambda y: score(D, y, 0.7), (noisy,), (x - 100,))[1]
    slopes = torch.func.vmap(torch.func.hessian(one))(noisy)
    torch.testing.assert_close(along, torch.einsum("bij,bj->bi", slopes, x - 100), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dim", [7, 8, 64])
@pytest.mark.parametrize(("t", "digits"), [(0.2, 5), (0.5, 5), (1.0, 4)])
def test_many_dimensions_are_no_harder_in_single_precision(dim, t, digits, generator):
    """Two near components, which share what is between them, far from the others: sigma from 0.1 to 50."""
    means = torch.cat([5 + 0.05 * torch.randn(2, dim, generator=generator), torch.randn(3, dim, generator=generator) - 5])
    D = GaussianMixture(means, 0.1).denoiser(VE(50.0))
    x = (D.mixture.sample(50, generator) + VE(50.0).sigma(t) * points(50, dim, generator) / 2).float()
    torch.testing.assert_close(D(x, t).double(), D(x.double(), t), rtol=0, atol=10.0**-digits)


@every_shape
def test_a_shapes_density_integrates_to_1(shape):
    """The trapezium rule on a mesh as fine as the narrowest Gaussian is exact to 1e-8."""
    target = shape()
    extent, spacing = target.means.abs().max().item() + 6 * target.stds.max().item(), target.stds.min().item()
    u = line(extent, 2 + int(2 * extent / spacing))
    total = target.log_prob(torch.cartesian_prod(u, u)).exp().sum() * (u[1] - u[0]) ** 2
    assert total.item() == pytest.approx(1, abs=1e-7)


@every_schedule
@pytest.mark.parametrize("t", [0.05, 0.5, 0.9])
def test_the_marginal_is_the_data_scaled_and_blurred(schedule, t):
    """p_t(y) = integral p(x0) N(y; alpha x0, sigma^2) dx0, by quadrature."""
    alpha, sigma, x0 = schedule.alpha(t), schedule.sigma(t), line(5, 40_001)
    kernel = torch.distributions.Normal(alpha * x0, sigma)
    for y in (-1.0, 0.2, 2.0):
        value = (LINE.log_prob(x0[:, None]) + kernel.log_prob(torch.tensor(y, dtype=torch.float64))).exp().sum() * 10 / 40_000
        at_y = torch.tensor([[y]], dtype=torch.float64)
        assert LINE.marginal(schedule, t).log_prob(at_y).item() == pytest.approx(value.log().item(), abs=1e-8)


# ---------------------------------------------------------------------------------------------- the exact denoiser
@every_schedule
@pytest.mark.parametrize("t", [0.05, 0.5, 0.9])
def test_the_denoiser_is_the_posterior_mean(schedule, t):
    """E[x0 | x_t = y] by quadrature over x0, component by component and for the whole mixture."""
    alpha, sigma, x0, y = schedule.alpha(t), schedule.sigma(t), line(5, 40_001), torch.tensor(0.7, dtype=torch.float64)
    likelihood = torch.distributions.Normal(alpha * x0, sigma).log_prob(y)
    D = LINE.denoiser(schedule)
    for label in (-1, 0, 1, 2):
        prior = LINE if label < 0 else GaussianMixture(LINE.means[[label]], LINE.stds[label])
        posterior = (prior.log_prob(x0[:, None]) + likelihood).softmax(0)
        found = D(y.reshape(1, 1), t, torch.tensor([label])).item()
        assert found == pytest.approx((posterior * x0).sum().item(), abs=1e-8)


@every_schedule
def test_each_row_has_its_own_label(schedule, generator):
    D, x = MIXTURE.denoiser(schedule), points(4, generator=generator)
    together = D(x, 0.4, torch.tensor([2, -1, 0, 1]))
    alone = [D(row[None], 0.4, None if k < 0 else torch.tensor([k])) for row, k in zip(x, [2, -1, 0, 1], strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-12, atol=1e-12)
    component = GaussianMixture(MIXTURE.means[[2]], MIXTURE.stds[2]).denoiser(schedule)
    torch.testing.assert_close(together[:1], component(x[:1], 0.4), rtol=1e-12, atol=1e-12)


@every_schedule
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("distance", [1e2, 1e4, 1e6])
def test_nothing_underflows_far_from_the_data(schedule, dtype, distance):
    """In linear space every density here is 0, and its score 0/0."""
    x = torch.tensor([[distance, 0.3 * distance], [-distance, 0.0]], dtype=dtype)
    D = ring().denoiser(schedule)
    assert bool(ring().log_prob(x).isfinite().all())
    for t in (schedule.t_min, 0.5, schedule.t_max):
        assert bool(D(x, t).isfinite().all()) and bool(score(D, x, t).isfinite().all())
        outward = (score(D, x, t) * x).sum(1)
        assert bool((outward < 0).all()), "the score must point back to the data"


@every_schedule
def test_at_its_ends_the_denoiser_returns_the_point_and_the_mean(schedule, generator):
    D, x = MIXTURE.denoiser(schedule), points(generator=generator) / 4
    torch.testing.assert_close(D(x, 0), x)
    mean = MIXTURE.weights @ MIXTURE.means
    assert (D(x, schedule.t_max) - mean).abs().max() < 0.05


# ---------------------------------------------------------------------------------------------- samples
def test_samples_have_the_mixtures_moments_and_proportions(generator):
    n = 100_000
    x = MIXTURE.sample(n, generator)
    assert x.shape == (n, 2) and x.dtype == torch.float64
    mean = MIXTURE.weights @ MIXTURE.means
    centred = MIXTURE.means - mean
    covariance = (MIXTURE.weights * MIXTURE.stds**2).sum() * torch.eye(2) + (MIXTURE.weights * centred.T) @ centred
    error = (covariance.diagonal() / n).sqrt()
    assert bool(((x.mean(0) - mean).abs() < 5 * error).all())
    assert (x.T.cov() - covariance).abs().max() < 5 * (2 / n) ** 0.5 * covariance.max()
    far = GaussianMixture(20 * MIXTURE.means, MIXTURE.stds, MIXTURE.weights)  # far apart, the nearest mean is the component
    nearest = torch.cdist(far.sample(n, generator), far.means).argmin(1).bincount()
    assert stats.chisquare(nearest.numpy(), (n * MIXTURE.weights).numpy()).pvalue > 1e-4


def test_samples_of_given_components_come_from_those(generator):
    labels = torch.tensor([2, 0, 0, 1]).repeat(5000)
    x = MIXTURE.sample(len(labels), generator, labels)
    for k, (mean, std) in enumerate(zip(MIXTURE.means, MIXTURE.stds, strict=True)):
        mine = x[labels == k]
        assert bool(((mine.mean(0) - mean).abs() < 5 * std / len(mine) ** 0.5).all())
        assert mine.std(0).mean().item() == pytest.approx(std.item(), rel=0.05)


def test_a_generator_repeats_its_samples():
    first, again = (MIXTURE.sample(50, torch.Generator().manual_seed(3)) for _ in range(2))
    other = MIXTURE.sample(50, torch.Generator().manual_seed(4))
    assert torch.equal(first, again) and not torch.equal(first, other)


# ---------------------------------------------------------------------------------------------- shapes
def test_the_ring_is_a_circle_of_equals():
    target = ring(k=5, radius=2.0, std=0.1)
    torch.testing.assert_close(target.means.norm(dim=1), torch.full((5,), 2.0, dtype=torch.float64))
    assert target.means.sum(0).abs().max() < 1e-12 and bool((target.weights == 0.2).all())
    gaps = (target.means - target.means.roll(1, 0)).norm(dim=1)
    torch.testing.assert_close(gaps, torch.full((5,), 4 * math.sin(math.pi / 5), dtype=torch.float64))


def test_the_islands_are_apart_and_unequal():
    target = two_islands(separation=6.0, std=0.5, weight=0.9)
    assert target.means.tolist() == [[-3.0, 0.0], [3.0, 0.0]]
    torch.testing.assert_close(target.weights, torch.tensor([0.9, 0.1], dtype=torch.float64))


# ---------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(("arguments", "message"), [
    (([1.0, 2.0], 0.1), r"means: expected shape \(K, d\), got \(2,\)"),
    (([[0.0, 0.0]], 0.0), r"stds: expected one or 1 positive standard deviations, got 0.0"),
    (([[0.0], [1.0]], [0.1, -0.1]), r"stds: expected one or 2 positive standard deviations, got \[0.1, -0.1\]"),
    (([[0.0], [1.0]], [0.1, 0.2, 0.3]), r"stds: expected one or 2 positive standard deviations, got \[0.1, 0.2, 0.3\]"),
    (([[0.0], [1.0]], 0.1, [0.5, 0.6]), r"weights: expected 2 non-negative numbers that sum to 1, got \[0.5, 0.6\]"),
    (([[0.0], [1.0]], 0.1, [1.5, -0.5]), "weights: expected 2 non-negative numbers that sum to 1"),
    (([[0.0], [1.0]], 0.1, [1.0]), "weights: expected 2 non-negative numbers that sum to 1"),
])
def test_a_mixture_that_is_none_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(*arguments)


@pytest.mark.parametrize("x", [torch.zeros(3), torch.zeros(3, 1), torch.zeros(3, 2, 1)], ids=lambda x: str(tuple(x.shape)))
def test_points_of_another_dimension_are_refused(x):
    for function in (MIXTURE.log_prob, lambda x: MIXTURE.denoiser(CosineVP())(x, 0.5)):
        with pytest.raises(ValueError, match=r"x: expected (floating-point states \(B, ...\)|shape \(3, 2\)), got"):
            function(x)


@pytest.mark.parametrize("cond", [torch.tensor([0, 3]), torch.tensor([-2, 0]), torch.tensor([0]), torch.zeros(2, 1),
                                  torch.zeros(2)], ids=["too large", "too small", "too few", "a column", "not whole"])
def test_labels_that_name_no_component_are_refused(cond):
    with pytest.raises(ValueError, match=r"cond: expected (signed whole numbers of shape \(2,\)|numbers in -1..2), got "):
        MIXTURE.denoiser(CosineVP())(torch.zeros(2, 2), 0.5, cond)


@pytest.mark.parametrize(("labels", "message"), [
    (torch.tensor([-1, 0, 1]), "labels: expected numbers in 0..2, got -1..1"),
    (torch.tensor([0, 1, 3]), "labels: expected numbers in 0..2, got 0..3"),
    (torch.tensor([1]), r"labels: expected signed whole numbers of shape \(3,\), got \(1,\)"),
    (torch.ones(3), "labels: .* torch.float32"),
    (torch.ones(3, dtype=torch.bool), "labels: .* torch.bool"),
], ids=["none", "too large", "too few", "not whole", "truth values"])
def test_labels_to_sample_from_name_a_component_each(labels, message):
    with pytest.raises(ValueError, match=message):
        MIXTURE.sample(3, labels=labels)


@every_schedule
def test_a_component_of_weight_0_has_its_denoiser_too(schedule, generator):
    mixture, alone = GaussianMixture([[0.0, 0.0], [1.0, 1.0]], 0.3, [1.0, 0.0]), GaussianMixture([[1.0, 1.0]], 0.3)
    x, labels = points(4, generator=generator), torch.ones(4, dtype=torch.long)
    torch.testing.assert_close(mixture.denoiser(schedule)(x, 0.4, labels), alone.denoiser(schedule)(x, 0.4))
    assert mixture.sample(4, generator, labels).shape == (4, 2)
    other = GaussianMixture([[0.0, 0.0]], 0.3)
    torch.testing.assert_close(mixture.denoiser(schedule)(x, 0.4), other.denoiser(schedule)(x, 0.4))


def test_no_samples_are_an_empty_batch():
    assert MIXTURE.sample(0).shape == (0, 2) and MIXTURE.log_prob(MIXTURE.sample(0)).shape == (0,)


@pytest.mark.parametrize(("build", "message"), [
    (lambda: GaussianMixture([[math.nan, 0.0]], 1.0), "means: .* or what is not finite"),
    (lambda: GaussianMixture(torch.zeros(0, 2), 1.0), r"means: expected shape \(K, d\), got \(0, 2\)"),
    (lambda: GaussianMixture([[0.0]], math.inf), "stds: expected one or 1 positive standard deviations, got inf"),
    (lambda: GaussianMixture([[0.0]], 1.0, [math.nan]), "weights: expected 1 non-negative numbers that sum to 1, got"),
    (lambda: ring(0), "k: expected a whole number, at least 1, got 0"),
    (lambda: ring(2.5), "k: expected a whole number, at least 1, got 2.5"),
    (lambda: MIXTURE.sample(-3), "n: expected a whole number, at least 0, got -3"),
    (lambda: MIXTURE.log_prob(torch.ones(3, 2, dtype=torch.long)), "x: expected floating-point states"),
    (lambda: MIXTURE.marginal(CosineVP(), torch.tensor([0.1, 0.2, 0.3])), r"t: expected one time, shape \(\), got \(3,\)"),
])
def test_what_makes_no_mixture_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
