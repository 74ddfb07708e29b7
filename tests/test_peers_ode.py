"""The adaptive solver and the likelihood beside scipy's and torchdiffeq's, on one mixture whose score scipy's side computes
by itself, in numpy."""

import math

import numpy as np
import pytest
import torch

from course_lib.denoiser import velocity
from course_lib.ode_samplers import encode, log_likelihood, rk45
from course_lib.sampling import last, prior
from course_lib.schedules import VE, CosineVP, Flow, LinearVP, SubVP, log_snr_uniform
from course_lib.targets import GaussianMixture

every_schedule = pytest.mark.parametrize(
    "schedule", [LinearVP(), CosineVP(), VE(), SubVP(), Flow()], ids=lambda schedule: type(schedule).__name__)
MIXTURE = GaussianMixture([[-1.0, 0.0], [1.0, 0.5], [0.0, 2.0]], [0.3, 0.5, 0.2], [0.5, 0.3, 0.2])
ROWS = 8


def generator():
    return torch.Generator().manual_seed(0)


def numpy_slope(schedule, t, x):
    """The slope of the ODE at x (B, 2), real or complex, from the score of the noisy mixture written down directly."""
    alpha, sigma, f, g2 = (level(t).item() for level in (schedule.alpha, schedule.sigma, schedule.drift, schedule.diffusion2))
    means, variances = alpha * MIXTURE.means.numpy(), alpha**2 * MIXTURE.stds.numpy() ** 2 + sigma**2
    from_mean = x[:, None] - means                                                          # (B, K, 2)
    log_joint = np.log(MIXTURE.weights.numpy() / variances) - (from_mean**2).sum(-1) / (2 * variances)
    joint = np.exp(log_joint - log_joint.real.max(1, keepdims=True))
    share = joint / joint.sum(1, keepdims=True)                                             # (B, K)
    return f * x + g2 / 2 * (share[..., None] * from_mean / variances[:, None]).sum(1)


def numpy_divergence(schedule, t, x, step=1e-30):
    """tr(dv/dx) (B,) by complex steps: derivatives to rounding, with no difference to cancel."""
    return sum(numpy_slope(schedule, t, x + 1j * step * unit)[:, i].imag / step for i, unit in enumerate(np.eye(2)))


@every_schedule
def test_rk45_goes_where_scipys_goes(schedule):
    integrate = pytest.importorskip("scipy.integrate")
    D, ts = MIXTURE.denoiser(schedule), log_snr_uniform(6, schedule)
    x = prior(D, (ROWS, 2), generator(), dtype=torch.float64)
    ends = (ts[0].item(), ts[-1].item())
    theirs = integrate.solve_ivp(lambda t, x: numpy_slope(schedule, t, x.reshape(ROWS, 2)).ravel(), ends, x.numpy().ravel(),
                                 t_eval=ts[1:].tolist(), method="RK45", rtol=1e-10, atol=1e-10)
    assert theirs.success
    ours = torch.stack(list(rk45(D, x, ts, rtol=1e-10, atol=1e-10)))
    expected = torch.as_tensor(theirs.y.T.copy()).reshape(6, ROWS, 2)
    torch.testing.assert_close(ours, expected, rtol=1e-7, atol=1e-7)


@every_schedule
def test_one_path_costs_what_it_costs_in_scipy(schedule):
    """One pair of formulas and one rule for the steps, so the counts differ by where the first step starts, not by factors."""
    integrate = pytest.importorskip("scipy.integrate")
    D, ts = MIXTURE.denoiser(schedule), log_snr_uniform(1, schedule)
    x = prior(D, (1, 2), generator(), dtype=torch.float64)
    theirs = integrate.solve_ivp(lambda t, x: numpy_slope(schedule, t, x[None])[0], (ts[0].item(), ts[-1].item()),
                                 x.numpy()[0], method="RK45", rtol=1e-6, atol=1e-6)
    ours = last(rk45, D, x, ts, rtol=1e-6, atol=1e-6).nfe
    assert abs(ours - theirs.nfev) <= max(18, 0.15 * theirs.nfev), (ours, theirs.nfev)


@every_schedule
def test_the_likelihood_is_what_scipy_integrates(schedule):
    integrate = pytest.importorskip("scipy.integrate")
    D = MIXTURE.denoiser(schedule)
    x0 = MIXTURE.marginal(schedule, schedule.t_min).sample(ROWS, generator())

    def joint(t, state):
        x = state[:2 * ROWS].reshape(ROWS, 2)
        return np.concatenate([numpy_slope(schedule, t, x).ravel(), numpy_divergence(schedule, t, x)])

    theirs = integrate.solve_ivp(joint, (schedule.t_min, schedule.t_max), np.concatenate([x0.numpy().ravel(), np.zeros(ROWS)]),
                                 method="RK45", rtol=1e-10, atol=1e-10).y[:, -1]
    z, sigma = theirs[:2 * ROWS].reshape(ROWS, 2), schedule.sigma(schedule.t_max).item()
    expected = -(z**2).sum(1) / (2 * sigma**2) - math.log(2 * math.pi * sigma**2) + theirs[2 * ROWS:]
    ours = log_likelihood(D, x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours, torch.as_tensor(expected), rtol=0, atol=1e-6)


@every_schedule
def test_encode_and_rk45_go_where_torchdiffeqs_dopri5_goes(schedule):
    torchdiffeq = pytest.importorskip("torchdiffeq")
    D, ts = MIXTURE.denoiser(schedule), log_snr_uniform(4, schedule)

    def theirs(x, times):
        # Left alone it steps past the last time and interpolates, here to where the ODE is singular: step_t makes it stop.
        return torchdiffeq.odeint(lambda t, x: velocity(D, x, t), x, times, rtol=1e-10, atol=1e-10, method="dopri5",
                                  options={"step_t": times[-1:]})

    x = prior(D, (ROWS, 2), generator(), dtype=torch.float64)
    ours = torch.stack(list(rk45(D, x, ts, rtol=1e-10, atol=1e-10)))
    torch.testing.assert_close(ours, theirs(x, ts)[1:], rtol=1e-7, atol=1e-7)
    x0 = MIXTURE.marginal(schedule, schedule.t_min).sample(ROWS, generator())
    # Upwards errors grow with the width of the distribution, from 0.2 at the data to sigma(t_max).
    torch.testing.assert_close(encode(D, x0, ts, rtol=1e-10, atol=1e-10), theirs(x0, ts.flip(0))[-1], rtol=1e-6,
                               atol=1e-6 * max(1.0, schedule.sigma(schedule.t_max).item()))
