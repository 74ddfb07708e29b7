"""The same targets through the course's samplers and through those of diffusers and azula.

azula computes in the dtype of its times, and agrees to rounding. diffusers keeps its tables of noise levels in float32, and
agrees to their six or seven digits; its DPM-Solver++ also rounds the state to float32 in each step. That nothing else is
left between us is shown, too: with its own tables widened to float64, and without that rounding, the rest falls to 1e-11.
"""

import inspect
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from course_lib.diffusers_bridge import drive, first_ratio, noise_ratio
from course_lib.fast_samplers import ddim, ddim_eta, dpm_solver_pp
from course_lib.ode_samplers import heun
from course_lib.sampling import last, sample
from course_lib.schedules import VE, CosineVP, Flow, LinearVP, Schedule, karras, log_snr_uniform, uniform
from course_lib.sde_samplers import ancestral
from course_lib.targets import GaussianMixture, ring

SCHEDULES = [LinearVP(), CosineVP(), VE(), Flow()]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
every_precision = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-11)],
                                          ids=["float32", "float64"])


def starts(n=6):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class NoiseRatio(Schedule):
    """sigma/alpha as the clock: alpha = 1, sigma = scale t, in which Heun in t is the algorithm of Karras et al. 2022."""

    scale = 200.0

    def alpha(self, t):
        return torch.ones_like(t)

    def sigma(self, t):
        return self.scale * t

    def drift(self, t):
        return torch.zeros_like(t)

    def diffusion2(self, t):
        return 2 * self.scale**2 * t

    def time_of_log_snr(self, log_snr):
        return (-torch.as_tensor(log_snr, dtype=torch.float64) / 2).exp() / self.scale


# ---------------------------------------------------------------------------------------------- diffusers
@pytest.fixture
def ready(monkeypatch):
    """A function that makes a scheduler with its timesteps set: as it is, or with all that it does in float64."""
    diffusers = pytest.importorskip("diffusers")

    def make(kind, steps, dtype=torch.float32, **options):
        kind = getattr(diffusers, kind)
        scheduler = kind(**options)
        scheduler.set_timesteps(steps)
        if dtype == torch.float64:
            for table in ("sigmas", "alphas_cumprod", "final_alpha_cumprod"):
                if hasattr(scheduler, table):
                    setattr(scheduler, table, getattr(scheduler, table).double())
            wide = SimpleNamespace(**{**vars(torch), "float32": torch.float64})
            monkeypatch.setattr(sys.modules[kind.__module__], "torch", wide)      # "sample.to(torch.float32)" rounds no more
        return scheduler

    return make


def ratios(scheduler):
    """Every noise level sigma/alpha of the grid that the scheduler walks, ending with 0; float64."""
    if hasattr(scheduler, "sigmas"):
        return scheduler.sigmas.double().unique().flip(0)
    return torch.stack([*(noise_ratio(scheduler, t) for t in scheduler.timesteps), torch.zeros((), dtype=torch.float64)])


def ours(sampler, schedule, scheduler, x):
    """Our sampler on the scheduler's own noise levels, from x at variance-preserving scale; the state at t = 0."""
    r = ratios(scheduler)
    ts = torch.cat([schedule.time_of_log_snr(-2 * r[:-1].log()), torch.zeros(1, dtype=torch.float64)])
    start = x * (1 + r[0] ** 2).sqrt() * schedule.alpha(ts[0])
    return last(sampler, ring().denoiser(schedule), start, ts)


@every_precision
@pytest.mark.parametrize(("kind", "options", "sampler"), [
    ("DDIMScheduler", {"clip_sample": False}, partial(sample, step=ddim)),
    ("DPMSolverMultistepScheduler", {"solver_order": 1}, partial(dpm_solver_pp, order=1)),
    ("DPMSolverMultistepScheduler", {"solver_order": 2, "solver_type": "heun"}, dpm_solver_pp),
    ("DPMSolverMultistepScheduler", {"solver_order": 2, "solver_type": "heun", "use_karras_sigmas": True}, dpm_solver_pp),
], ids=["ddim", "order 1", "2M", "2M karras"])
@pytest.mark.parametrize("steps", [1, 4, 10, 20])
def test_diffusers_ends_where_we_end(kind, options, sampler, steps, dtype, tolerance, ready):
    """For 2M with solver_type "heun", which integrates exp(lambda) times a straight line exactly, as we do."""
    scheduler, schedule = ready(kind, steps, dtype, **options), CosineVP()
    x, evaluations = drive(scheduler, ring().denoiser(schedule), starts())
    result = ours(sampler, schedule, scheduler, starts())
    assert evaluations == result.nfe == steps
    torch.testing.assert_close(x, result.x, rtol=0, atol=tolerance)


@every_precision
@pytest.mark.parametrize("options", [{}, {"use_karras_sigmas": True}], ids=["uniform", "karras"])
def test_diffusers_heun_is_ours_with_the_noise_ratio_as_the_clock(options, dtype, tolerance, ready):
    scheduler, schedule = ready("HeunDiscreteScheduler", 8, dtype, **options), NoiseRatio()
    x, evaluations = drive(scheduler, ring().denoiser(schedule), starts())
    result = ours(partial(sample, step=heun), schedule, scheduler, starts())
    assert evaluations == result.nfe == 15
    torch.testing.assert_close(x, result.x, rtol=0, atol=10 * tolerance)      # eight steps are few: errors grow on the way


def test_diffusers_ancestral_step_draws_from_the_same_distribution(ready):
    """DDIM with eta = 1, with the noise handed in; diffusers calls it variance_noise."""
    scheduler, schedule = ready("DDIMScheduler", 10, torch.float64, clip_sample=False), CosineVP()
    D, x, z = ring().denoiser(schedule), starts(), torch.randn(6, 2, dtype=torch.float64)
    t, s = scheduler.timesteps[:2]
    times = [schedule.time_of_log_snr(-2 * noise_ratio(scheduler, u).log()) for u in (t, s)]
    for eta in (0.0, 0.4, 1.0):
        sigma, alpha = schedule.sigma(times[0]), schedule.alpha(times[0])
        predicted = (x - alpha * D(x, times[0])) / sigma
        theirs = scheduler.step(predicted, t, x, eta=eta, variance_noise=z).prev_sample
        torch.testing.assert_close(theirs, ddim_eta(eta)(D, x, *times, z), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(theirs, ancestral(D, x, *times, z), rtol=1e-10, atol=1e-10)


def test_diffusers_2m_by_default_takes_another_weight_and_has_the_same_order(ready):
    """solver_type "midpoint" puts (1 - e^-h)/2 for the exact (h - 1 + e^-h)/h: alike as h goes to 0, apart in big steps."""
    schedule = CosineVP()
    D = ring().denoiser(schedule)

    def gap(steps):
        ends = [drive(ready("DPMSolverMultistepScheduler", steps, torch.float64, solver_type=kind, use_karras_sigmas=True),
                      D, starts())[0] for kind in ("midpoint", "heun")]
        return (ends[0] - ends[1]).norm()

    assert gap(10) > 1e-2 and 3.5 < gap(160) / gap(320) < 6


def test_diffusers_ddim_takes_a_fixed_stride_and_misses_the_next_time(ready):
    """Where 1000 is not a multiple of the steps, its step ends at t - 1000 // n, and the next begins elsewhere."""
    def error(steps, spacing):
        scheduler = ready("DDIMScheduler", steps, torch.float64, clip_sample=False, timestep_spacing=spacing)
        schedule = CosineVP()
        x, _ = drive(scheduler, ring().denoiser(schedule), starts(64))
        return (x - ours(partial(sample, step=ddim), schedule, scheduler, starts(64)).x).norm(dim=1).mean().item()

    assert error(10, "trailing") < 1e-11
    assert error(13, "trailing") > 1e-3 and error(10, "linspace") > 1e-2


# ---- diffusers as its documentation drives it, with models of the ring that are written by hand, without the bridge
def ring_mean(x, r):
    """E[x0 | x0 + r z = x] of the ring."""
    means, variance = ring().means, ring().stds[0] ** 2 + r**2
    share = (-(x[:, None] - means).square().sum(-1) / (2 * variance)).softmax(1)
    return x + r**2 / variance * (share @ means - x)


def says_eps(scheduler, x, t):
    """Of alpha x0 + sigma z, alpha^2 + sigma^2 = 1; log(sigma/alpha) is a straight line between whole timesteps."""
    signal = scheduler.alphas_cumprod.double()[[int(t), min(int(t) + 1, 999)]]
    low, high = ((1 - signal) / signal).log() / 2
    r = (low + (float(t) - int(t)) * (high - low)).exp()
    whole = x * (1 + r**2).sqrt()
    return (whole - ring_mean(whole, r)) / r


def says_velocity(scheduler, x, t):
    """Of (1 - r) x0 + r z: z - x0, where t = 1000 r."""
    r = t.double() / 1000
    return (x - (ring_mean(x / (1 - r), r / (1 - r)) if r < 1 else ring().means.mean(0))) / r


def says_edm(scheduler, x, t):
    """Of (x0 + r z) c_in: (x0 - c_skip (x0 + r z))/c_out by table 1 of Karras et al. 2022, where t = log(r)/4."""
    r, std = (4 * t.double()).exp(), 0.5
    whole = x * (r**2 + std**2).sqrt()
    return (ring_mean(whole, r) - std**2 / (r**2 + std**2) * whole) * (r**2 + std**2).sqrt() / (r * std)


@pytest.mark.parametrize(("kind", "says"), [
    ("KDPM2DiscreteScheduler", says_eps), ("UniPCMultistepScheduler", says_eps), ("EDMDPMSolverMultistepScheduler", says_edm),
    ("FlowMatchHeunDiscreteScheduler", says_velocity)])
def test_drive_ends_where_the_schedulers_own_loop_ends(kind, says, ready):
    scheduler, z = ready(kind, 10), starts()
    x = z * getattr(scheduler, "init_noise_sigma", 1)
    for t in scheduler.timesteps:
        said = says(scheduler, scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x, t)
        x = scheduler.step(said, t, x).prev_sample
    scheduler = ready(kind, 10)
    if getattr(scheduler, "init_noise_sigma", 1) != 1:                       # their state is x0 + r z
        z = z * scheduler.init_noise_sigma / (1 + first_ratio(scheduler) ** 2).sqrt()
    torch.testing.assert_close(drive(scheduler, ring().denoiser(CosineVP()), z)[0], x, rtol=0, atol=1e-6)


# ---- every scheduler that diffusers exports: the right law, or none
NEEDED = {"AmusedScheduler": {"mask_token_id": 0}, "VQDiffusionScheduler": {"num_vec_classes": 4},
          "HeliosScheduler": {"stages": 1}, "HeliosDMDScheduler": {"stages": 1},
          "RFD4ProteinaScheduler": {"schedule_mode": "log", "noise_mode": "tan", "tsr_k": 1.0, "tsr_sigma": 1.0}}
FEWER = {"CMStochasticIterativeScheduler": 40, "LCMScheduler": 50, "TCDScheduler": 50, "SCMScheduler": 2}   # their most
SLOW = ("DDPM", "Ancestral", "CogVideoXDDIM")                                # 100 steps of theirs are too narrow, 300 are not
UNFIT = {"AmusedScheduler": "no table of noise levels", "BlockRefinementScheduler": "no table of noise levels",
         "CMStochasticIterativeScheduler": "distilled", "CogVideoXDPMScheduler": "timestep_back",
         "DDIMInverseScheduler": "from noise down to data", "DDPMWuerstchenScheduler": "no table of noise levels",
         "DPMSolverMultistepInverseScheduler": "from noise down to data", "DiscreteDDIMScheduler": "no table of noise levels",
         "EntropyBoundScheduler": "no table of noise levels", "FlowMatchLCMScheduler": "distilled",
         "HeliosDMDScheduler": "distilled", "LCMScheduler": "distilled", "MiniMaxH3Scheduler": "from noise down to data",
         "PiflowScheduler": "distilled", "RePaintScheduler": "original_image",
         "RFD4ProteinaScheduler": "no table of noise levels",
         "SCMScheduler": "no table of noise levels", "ScoreSdeVeScheduler": "has no step", "TCDScheduler": "distilled",
         "UnCLIPScheduler": "next timestep", "VQDiffusionScheduler": "no table of noise levels"}


def made(kind, steps, **options):
    """A scheduler that clips nothing, with its timesteps set."""
    takes = inspect.signature(kind.__init__).parameters
    scheduler = kind(**NEEDED.get(kind.__name__, {}), **({"clip_sample": False} if "clip_sample" in takes else {}), **options)
    scheduler.set_timesteps(FEWER.get(kind.__name__, steps))
    return scheduler


def off(scheduler):
    """How far the mean and the standard deviation of its samples are from those of N((1, -0.5), 0.3^2 I)."""
    mean, z = torch.tensor([1.0, -0.5], dtype=torch.float64), starts(4096)
    D, angle = GaussianMixture(mean[None], 0.3).denoiser(CosineVP()), first_ratio(scheduler).atan()
    x = angle.cos() * mean + (angle.cos() ** 2 * 0.3**2 + angle.sin() ** 2).sqrt() * (z - z.mean(0)) / z.std(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)                                                 # for those that draw noise
        x, _ = drive(scheduler, D, x)
    return max((x.mean(0) - mean).abs().max().item(), (x.std(0) - 0.3).abs().max().item())


def test_every_scheduler_ends_in_the_right_law_or_is_refused_with_a_reason():
    diffusers, refused = pytest.importorskip("diffusers"), {}
    for name in (name for name in dir(diffusers) if name.endswith("Scheduler")):
        kind = getattr(diffusers, name)
        if kind.__module__.startswith("diffusers.utils.dummy"):
            continue                                                         # the latter stand for what is not installed
        scheduler = made(kind, 300 if any(word in name for word in SLOW) else 100)
        try:
            assert off(scheduler) < 0.02, name
        except ValueError as reason:
            refused[name] = str(reason)
    assert set(refused) == {name for name in UNFIT if hasattr(diffusers, name)}
    assert {name: reason for name, reason in refused.items() if UNFIT[name] not in reason or "scheduler: " not in reason} == {}


@pytest.mark.parametrize("kind", ["UniPCMultistepScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler",
                                  "DPMSolverSinglestepScheduler"])
@pytest.mark.parametrize("prediction", ["epsilon", "flow_prediction"])
def test_schedulers_on_levels_of_the_flow_end_in_the_right_law_whatever_they_predict(kind, prediction):
    diffusers = pytest.importorskip("diffusers")
    assert off(made(getattr(diffusers, kind), 100, use_flow_sigmas=True, prediction_type=prediction)) < 0.02


@pytest.mark.parametrize(("kind", "options", "reason"), [
    ("DDIMScheduler", {"prediction_type": "sample"}, "prediction_type 'epsilon' or 'flow_prediction', got 'sample'"),
    ("DDIMScheduler", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, "some signal at its first timestep"),
    ("DDPMScheduler", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, "some signal at its first timestep"),
    ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}, "distilled"),
    ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, "from noise down to data, got 0 up to 999"),
])
def test_an_option_that_no_denoiser_can_serve_is_refused(kind, options, reason, ready):
    with pytest.raises(ValueError, match=f"scheduler: .*{reason}"):
        drive(ready(kind, 10, **options), ring().denoiser(CosineVP()), starts())


@pytest.mark.parametrize("kind", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "PNDMScheduler"])
def test_a_scheduler_is_used_once_for_each_time_its_timesteps_are_set(kind, ready):
    scheduler, D = ready(kind, 6), ring().denoiser(CosineVP())
    first, _ = drive(scheduler, D, starts())
    with pytest.raises(ValueError, match="call set_timesteps before each use"):
        drive(scheduler, D, starts())
    scheduler.set_timesteps(6)
    assert torch.equal(drive(scheduler, D, starts())[0], first)


def test_pure_noise_needs_a_schedule_that_has_it(ready):
    with pytest.raises(ValueError, match="D: its schedule has no time at which sigma/alpha is inf; CosineVP and Flow have"):
        drive(ready("FlowMatchEulerDiscreteScheduler", 4), ring().denoiser(LinearVP()), starts())


# ---------------------------------------------------------------------------------------------- azula
def azula_end(kind, schedule, ts, x, **options):
    """azula's sampler with our schedule and the exact denoiser; its times are those of ts, looked up."""
    azula = pytest.importorskip("azula")
    D = ring().denoiser(schedule)

    class Exact(azula.denoise.Denoiser):
        def __init__(self):
            super().__init__()
            self.schedule = lambda t: (schedule.alpha(t), schedule.sigma(t))

        def forward(self, x, t, **kwargs):
            return azula.denoise.DiracPosterior(D(x, t))

    sampler = getattr(azula.sample, kind)(Exact(), steps=len(ts) - 1, silent=True, **options)
    theirs = type("OnOurGrid", (type(sampler),), {"timesteps": property(lambda self: ts)})
    sampler.__class__ = theirs
    return sampler(x)


@every_schedule
@pytest.mark.parametrize("grid", [uniform, log_snr_uniform, karras], ids=lambda grid: grid.__name__)
@pytest.mark.parametrize(("kind", "options", "sampler"), [
    ("DDIMSampler", {}, partial(sample, step=ddim)),
    ("EulerSampler", {}, partial(dpm_solver_pp, order=1)),
    ("xEABSampler", {"order": 1}, partial(dpm_solver_pp, order=1)),
    ("xEABSampler", {"order": 2}, dpm_solver_pp),
], ids=["ddim", "euler", "eab1", "eab2"])
def test_azula_ends_where_we_end(kind, options, sampler, schedule, grid):
    ts = grid(9, schedule)
    x = schedule.sigma(ts[0]) * starts()
    found = last(sampler, ring().denoiser(schedule), x, ts).x
    torch.testing.assert_close(azula_end(kind, schedule, ts, x, **options), found, rtol=1e-9, atol=1e-9)


def test_azulas_heun_is_ours_with_the_noise_ratio_as_the_clock():
    schedule = NoiseRatio()
    ts = schedule.time_of_log_snr(torch.linspace(-10, 10, 12, dtype=torch.float64))
    x = schedule.sigma(ts[0]) * starts()
    found = last(partial(sample, step=heun), ring().denoiser(schedule), x, ts).x
    torch.testing.assert_close(azula_end("HeunSampler", schedule, ts, x), found, rtol=1e-9, atol=1e-9)
