"""What the judge says of slips that it once took for right, or for other ones: written as a learner would write them."""

import pytest
import torch

from course_lib.classroom import banks
from course_lib.classroom.judge import checks
from course_lib.denoiser import levels, per_row
from course_lib.fast_samplers import ddim


def step_without_label(D, x, t, s, z=None, cond=None):
    return ddim(D, x, t, s)


def responsibilities_guarded(x, means, tau, weights):
    joint = weights * tau ** -x.shape[1] * (-torch.cdist(x, means).square() / (2 * tau**2)).exp()
    r = torch.nan_to_num(joint / joint.sum(1, keepdim=True))
    return ((r / tau**2)[..., None] * (means - x[:, None])).sum(1)


def mean_squared_error(s, x0, sigma, eps):
    return torch.nn.functional.mse_loss(s(x0 + sigma * eps), -eps / sigma)


def slope_kept(v, x, t, end, h, tol):
    evaluations, slope = 0, None
    while t > end:
        s = max(t - h, end)
        h = t - s
        if slope is None:
            slope, evaluations = v(x, t), evaluations + 1
        trial = x - h * slope
        better, evaluations = x - h / 2 * (slope + v(trial, s)), evaluations + 1
        error = (better - trial).abs().max().item()
        if error <= tol:
            x, t, slope = better, s, None
        h = 0.9 * h * (tol / error) ** 0.5
    return x, evaluations


def rows_interleaved(D, x, t, cond, w):
    labels = torch.stack([cond, torch.full_like(cond, -1)], 1).flatten()
    c, u = D(x.repeat_interleave(2, 0), t.repeat_interleave(2), labels).chunk(2)
    return (1 + w) * c - w * u


def over_the_noise_of_s(schedule, x, t, z, s):
    (a_t, s_t), (a_s, s_s) = ((per_row(schedule.alpha(u), x), per_row(schedule.sigma(u), x)) for u in (t, s))
    return (z / s_s - x / s_t) / (a_s / s_s - a_t / s_t)


def loss_of_a_constant(guess, target, t, schedule):
    weight = torch.exp(schedule.log_snr(t)).clamp(min=1)
    return (per_row(weight, guess) * (guess.detach() - target) ** 2).mean()


def first_term_moves_both(z, e, beta):
    return z + (e - z).detach(), ((z - e).square() + beta * (z - e.detach()).square()).sum(1).mean()


def squares_for_distances(p):
    q = torch.outer(p.sum(1), p.sum(0))
    return q, (p - q).square().sum() / 2, torch.special.xlogy(p, p / q).sum()


def loss_as_a_number(D, numbers, vectors, noise, t):
    alpha, sigma = levels(D, vectors[numbers], t)
    logits = D(alpha * vectors[numbers] + sigma * noise, t) @ vectors.T
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), numbers.flatten()).item()


@pytest.mark.parametrize("id, slip, name", [
    ("0.1", step_without_label, "label lost"),                          # was accepted
    ("1.2", responsibilities_guarded, "division guarded"),
    ("1.4", mean_squared_error, "mean of all, without the half"),
    ("3.6", slope_kept, "first slope kept"),
    ("6.2", rows_interleaved, "rows interleaved"),
    ("7.1", over_the_noise_of_s, "divided by what may be zero"),        # was told that start and landing had changed places
    ("7.3", loss_of_a_constant, "held still"),                          # was accepted
    ("10.4", first_term_moves_both, "only the commitment held"),
    ("12.1", squares_for_distances, "squared differences"),             # was told of values per row
    ("12.3", loss_as_a_number, "bare number"),                          # was told of an AttributeError not its own
], ids=lambda value: getattr(value, "__name__", None))
def test_a_slip_is_told_what_it_is(id, slip, name):
    verdict = checks.judge(banks.exercise(id), slip)
    assert verdict.mistake and verdict.mistake.name == name, verdict.message or verdict.status


@pytest.mark.parametrize("id", ["2.3", "2.5", "2.6", "3.1", "3.2", "7.1", "7.2", "7.6"])
def test_an_answer_for_a_time_per_row_only_is_not_accepted(id):
    task = banks.exercise(id)

    def rows_only(*case):
        assert all(value.ndim for value in case if isinstance(value, torch.Tensor))
        return task.reference(*case)

    assert "AssertionError" in checks.judge(task, rows_only).message
