"""Metrics: closed forms, scipy as a second opinion, and distances that vanish between samples of one law."""

import pytest
import torch
from scipy import linalg, optimize

from course_lib.metrics import features, fold, frechet, kernel_distance, relative_l2, sliced_wasserstein

TWO_SAMPLE = [sliced_wasserstein, kernel_distance, frechet]
every_distance = pytest.mark.parametrize("distance", TWO_SAMPLE, ids=lambda distance: distance.__name__)


def normal(*shape, generator, mean=0.0, std=1.0):
    return mean + std * torch.randn(shape, generator=generator, dtype=torch.float64)


@every_distance
def test_a_distance_is_symmetric_and_zero_to_itself(distance, generator):
    x, same = normal(2, 200, 3, generator=generator)
    y = normal(200, 3, generator=generator, mean=1.0)
    assert distance(x, y) == pytest.approx(distance(y, x), rel=1e-9)
    assert distance(x, y) > 2 * abs(distance(x, same))
    if distance is not kernel_distance:  # the unbiased estimate of x against itself is below zero
        assert distance(x, x) == pytest.approx(0, abs=1e-9)


@every_distance
def test_images_are_compared_as_flat_rows(distance, generator):
    x, y = normal(30, 1, 2, 2, generator=generator), normal(30, 1, 2, 2, generator=generator, mean=1.0)
    assert distance(x, y) == distance(x.flatten(1), y.flatten(1))


@every_distance
def test_samples_of_another_dimension_or_a_single_one_are_refused(distance):
    with pytest.raises(ValueError, match="x, y: expected samples of one dimension, got 2 and 3"):
        distance(torch.zeros(5, 2), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="x, y: expected at least two samples each, got 5 and 1"):
        distance(torch.zeros(5, 2), torch.zeros(1, 2))


# ---------------------------------------------------------------------------------------------- sliced Wasserstein
@pytest.mark.parametrize("d", [1, 2, 5])
def test_a_shift_is_seen_through_each_directions_share_of_it(d, generator):
    """Shifted by u, samples are |u . v| apart along v; over all directions the root mean square is |u|/sqrt(d)."""
    x, u = normal(50, d, generator=generator), torch.arange(1.0, d + 1)
    exact = u.norm().item() / d**0.5
    directions = 20_000
    error = 5 * (2 / directions) ** 0.5 / 2
    assert sliced_wasserstein(x, x + u, directions=directions) == pytest.approx(exact, rel=error)


def test_in_one_dimension_it_is_the_wasserstein_distance(generator):
    x, y = normal(200, 1, generator=generator), normal(200, 1, generator=generator, mean=0.5, std=2.0)
    costs = (x - y.T).square().numpy()
    cheapest = costs[optimize.linear_sum_assignment(costs)].mean()  # the best of all pairings, found without sorting
    assert sliced_wasserstein(x, y) == pytest.approx(cheapest**0.5)


def test_wider_gaussians_are_their_difference_in_width_apart(generator):
    """W2 between N(0, a^2 I) and N(0, b^2 I) is |a - b| along every direction."""
    n = 20_000
    x, y = normal(n, 2, generator=generator), normal(n, 2, generator=generator, std=1.5)
    assert sliced_wasserstein(x, y) == pytest.approx(0.5, abs=0.03)


def test_order_does_not_matter_and_the_seed_fixes_the_directions(generator):
    x, y = normal(100, 3, generator=generator), normal(100, 3, generator=generator)
    assert sliced_wasserstein(x, y) == sliced_wasserstein(x.flip(0), y)
    assert sliced_wasserstein(x, y, seed=1) != sliced_wasserstein(x, y, seed=2)


def test_sorted_pairs_need_equally_many_samples():
    with pytest.raises(ValueError, match="x, y: sorting pairs needs equally many samples, got 4 and 5"):
        sliced_wasserstein(torch.zeros(4, 2), torch.zeros(5, 2))


# ---------------------------------------------------------------------------------------------- kernel distance
def test_kernel_distance_is_unbiased_around_zero(generator):
    values = torch.tensor([kernel_distance(normal(40, 2, generator=generator), normal(60, 2, generator=generator))
                           for _ in range(400)])
    assert abs(values.mean()) < 4 * values.std() / 20
    assert bool((values < 0).any()), "an unbiased estimate of 0 must fall below it now and then"


@pytest.mark.parametrize(("n", "m"), [(7, 5), (128, 129), (300, 70)])         # it works by blocks of 128 rows
def test_kernel_distance_agrees_with_the_sums_over_pairs(n, m, generator):
    x, y = normal(n, 3, generator=generator), normal(m, 3, generator=generator, mean=0.5)

    def k(a, b):
        return sum((a * b / 3).tolist(), 1) ** 3

    def among(z):
        return sum(k(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j) / (len(z) * (len(z) - 1))

    exact = among(x) + among(y) - 2 * sum(k(a, b) for a in x for b in y) / (len(x) * len(y))
    assert kernel_distance(x, y) == pytest.approx(exact, rel=1e-10)


def test_kernel_distance_is_unbiased_around_zero_at_any_size(generator):
    for n, m in ((5, 8), (40, 60)):
        values = torch.tensor([kernel_distance(normal(n, 4, generator=generator), normal(m, 4, generator=generator))
                               for _ in range(400)])
        assert abs(values.mean()) < 4 * values.std() / 20 and bool((values < 0).any())


def test_kernel_distance_of_two_gaussians_has_a_closed_form(generator):
    """In one dimension with x.y = u v: E (u v + 1)^3 = E u^3 E v^3 + 3 E u^2 E v^2 + 3 E u E v + 1."""
    def moments(mean, std):
        return torch.tensor([1.0, mean, mean**2 + std**2, mean**3 + 3 * mean * std**2], dtype=torch.float64)

    exact = (torch.tensor([1, 3, 3, 1]) * (moments(0, 1) - moments(0.5, 0.7)).square()).sum().item()
    values = torch.tensor([kernel_distance(normal(300, 1, generator=generator),
                                           normal(300, 1, generator=generator, mean=0.5, std=0.7)) for _ in range(100)])
    assert abs(values.mean() - exact) < 4 * values.std() / 10
    assert values.std() / 10 < exact / 10


# ---------------------------------------------------------------------------------------------- Frechet
@pytest.mark.parametrize("d", [1, 2, 6])
def test_frechet_agrees_with_scipys_matrix_root(d, generator):
    x = normal(200, d, generator=generator) @ normal(d, d, generator=generator)
    y = normal(150, d, generator=generator, mean=0.3) @ normal(d, d, generator=generator)
    cx, cy = x.T.cov().reshape(d, d).numpy(), y.T.cov().reshape(d, d).numpy()
    exact = ((x.mean(0) - y.mean(0)) ** 2).sum().item() + (cx + cy - 2 * linalg.sqrtm(cx @ cy).real).trace()
    assert frechet(x, y) == pytest.approx(exact, rel=1e-8)


def test_frechet_of_a_shift_and_a_stretch(generator):
    x = normal(100, 3, generator=generator)
    assert frechet(x, x + 2.0) == pytest.approx(12, rel=1e-9)  # |2 (1, 1, 1)|^2
    centred = x - x.mean(0)
    assert frechet(centred, 3 * centred) == pytest.approx(4 * x.T.cov().trace().item(), rel=1e-9)  # (3 - 1)^2 tr C


def test_frechet_bears_features_that_never_vary(generator):
    x = torch.cat([normal(50, 2, generator=generator), torch.zeros(50, 1)], 1)
    assert frechet(x, x + 1.0) == pytest.approx(3, rel=1e-6)


def test_frechet_needs_more_samples_than_features():
    with pytest.raises(ValueError, match="x, y: 5 features need more samples than that, got 9 and 5"):
        frechet(torch.zeros(9, 5), torch.zeros(5, 5))


# ---------------------------------------------------------------------------------------------- the rest
def test_features_come_batch_by_batch_and_in_order(generator):
    images, sizes = torch.randn(7, 1, 2, 2, generator=generator).requires_grad_(), []

    def network(x):
        sizes.append(len(x))
        return x.flatten(1).cumsum(1)

    found = features(network, images, batch=3)
    assert sizes == [3, 3, 1] and not found.requires_grad
    assert torch.equal(found, images.detach().flatten(1).cumsum(1))


def test_relative_l2():
    truth = torch.tensor([3.0, -4.0])
    assert relative_l2(truth, truth) == 0 and relative_l2(torch.zeros(2), truth) == 1
    assert relative_l2(torch.tensor([3.0, -3.5]), truth) == pytest.approx(0.1)
    with pytest.raises(ValueError, match=r"estimate: expected the truth's shape \(2, 1\), got \(2,\)"):
        relative_l2(truth, truth[:, None])


@every_distance
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_samples_that_are_not_finite_have_no_distance(distance, bad):
    x = torch.zeros(9, 2)
    with pytest.raises(ValueError, match="x, y: expected finite samples"):
        distance(x, x.index_fill(0, torch.tensor([4]), bad))
    with pytest.raises(ValueError, match=r"x, y: expected .* \(N, ...\), got \(9,\) torch.float32 and"):
        distance(x[:, 0], x[:, 0])


def test_relative_error_in_half_precision_and_of_whole_numbers():
    """The norm of a thousand numbers about 100 is beyond half precision's squares."""
    truth = torch.full((1000,), 300.0, dtype=torch.float16)
    assert relative_l2(1.5 * truth, truth) == pytest.approx(0.5)
    assert relative_l2(torch.tensor([3, 5]), torch.tensor([3, 4])) == pytest.approx(0.2)
    for nothing in (torch.zeros(3), torch.zeros(0)):
        with pytest.raises(ValueError, match="truth: expected something to compare with"):
            relative_l2(nothing, nothing)


@pytest.mark.parametrize(("call", "message"), [
    (lambda x: sliced_wasserstein(x, x, directions=0), "directions: expected a whole number, at least 1, got 0"),
    (lambda x: fold(x, 0), "k: expected a whole number, at least 1, got 0"),
    (lambda x: fold(torch.cat([x, x], 1)), r"x: expected shape \(9, 2\), got \(9, 4\)"),
])
def test_what_makes_no_distance_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(9, 2))
