"""The course's denoisers in the schedulers of `diffusers`. The package is not imported: its objects are passed in.

A scheduler has a table of noise levels, and its state x has one of two scales. Both are read off the object, so that a
denoiser is asked at exactly the level that the scheduler means, be it a whole timestep or between two.
"""

from torch import Tensor

from .denoiser import Denoiser


def noise_ratio(scheduler, t: Tensor) -> Tensor:
    """sigma/alpha, float64, at which the scheduler wants its model evaluated at its timestep t."""
    if hasattr(scheduler, "step_index"):                                    # it steps through a table of sigma/alpha
        return scheduler.sigmas[scheduler.step_index or 0].double()
    signal = scheduler.alphas_cumprod[t].double()                           # alpha^2 at whole timesteps
    return ((1 - signal) / signal).sqrt()


def first_ratio(scheduler) -> Tensor:
    """sigma/alpha where sampling starts, after `scheduler.set_timesteps`."""
    return noise_ratio(scheduler, scheduler.timesteps[0])


def drive(scheduler, D: Denoiser, x: Tensor) -> tuple[Tensor, int]:
    """Sample with a diffusers scheduler whose timesteps are set: the state (B, ...) at its end, and the evaluations of D.

    x (B, ...) has variance-preserving scale, alpha^2 + sigma^2 = 1, at the scheduler's first level; schedulers with
    init_noise_sigma > 1 keep x/alpha as their state. ValueError for a scheduler that does not predict eps.
    """
    if scheduler.config.prediction_type != "epsilon":
        raise ValueError(f"scheduler: expected prediction_type 'epsilon', got {scheduler.config.prediction_type!r}")
    rescaled = scheduler.init_noise_sigma > 1
    x = x * (1 + first_ratio(scheduler) ** 2).sqrt() if rescaled else x
    for t in scheduler.timesteps:
        scheduler.scale_model_input(x, t)                                   # some count their steps here
        r = noise_ratio(scheduler, t)
        clean_scale = x if rescaled else x * (1 + r**2).sqrt()              # x0 + r eps
        time = D.schedule.time_of_log_snr(-2 * r.log())
        x0 = D(D.schedule.alpha(time) * clean_scale, time)
        x = scheduler.step((clean_scale - x0) / r, t, x).prev_sample
    return x, len(scheduler.timesteps)
