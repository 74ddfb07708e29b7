"""The course's denoisers in the schedulers of `diffusers`. The package is not imported: its objects are passed in.

Schedulers differ in the scale of their state alpha x0 + sigma eps, in the levels at which they ask, and in what their model
is to say. All three are read off the object, so that a denoiser is asked at exactly the level that the scheduler means, be
it a whole timestep or between two. A scheduler that would end in a wrong law with a denoiser is refused.
"""

import inspect

from torch import Tensor

from .denoiser import Denoiser

UNFIT = dict.fromkeys(
    ("LCMScheduler", "TCDScheduler", "CMStochasticIterativeScheduler", "FlowMatchLCMScheduler", "HeliosDMDScheduler",
     "PiflowScheduler"), "a network that was distilled for it, which leaps to the data, not one that gives the mean"
) | {"UnCLIPScheduler": "to be told the next timestep at every step"}


def _levels(scheduler, t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma () of the scheduler's state, float64, where it wants its model evaluated at its timestep t."""
    step = getattr(scheduler, "step_index", None) or 0
    if hasattr(scheduler, "sigmas"):
        halfway = hasattr(scheduler, "sigmas_interpol") and not scheduler.state_in_first_order
        earlier = hasattr(scheduler, "sigmas_up")                           # where KDPM2's ancestral form keeps them
        sigma = (scheduler.sigmas_interpol[step - earlier] if halfway else scheduler.sigmas[step]).double()
        if scheduler.config.get("use_flow_sigmas", "prediction_type" not in scheduler.config):
            return 1 - sigma, sigma
        norm = (1 + sigma**2).sqrt() if getattr(scheduler, "init_noise_sigma", 1) == 1 else sigma**0
        return 1 / norm, sigma / norm
    if hasattr(scheduler, "alphas_cumprod"):
        signal = scheduler.alphas_cumprod[t].double()                       # alpha^2 at whole timesteps
        return signal.sqrt(), (1 - signal).sqrt()
    if hasattr(scheduler, "alphas"):
        return scheduler.alphas[step].double(), scheduler.betas[step].double()
    raise ValueError(f"scheduler: {type(scheduler).__name__} has no table of noise levels")


def _told(scheduler, x: Tensor, x0: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """What the scheduler's model is to say of its state x, if the clean data are x0: all (B, ...)."""
    if hasattr(scheduler, "precondition_outputs"):                          # EDM: x0 = c_skip x + c_out F
        c_skip, c_out = (scheduler.precondition_outputs(*unit, sigma) for unit in ((1, 0), (0, 1)))
        return (x0 - c_skip * x) / c_out
    eps = (x - alpha * x0) / sigma
    if "prediction_type" not in scheduler.config and not hasattr(scheduler, "sigmas"):
        return alpha * eps - sigma * x0                                     # v
    return eps if scheduler.config.get("prediction_type") == "epsilon" else eps - x0


def _check(scheduler) -> None:
    name, prediction = type(scheduler).__name__, scheduler.config.get("prediction_type", "flow_prediction")
    if not callable(getattr(scheduler, "step", None)):
        raise ValueError(f"scheduler: {name} has no step")
    asked = [p.name for p in inspect.signature(scheduler.step).parameters.values() if p.default is p.empty]
    if name in UNFIT or set(asked) - {"model_output", "timestep", "sample"}:
        raise ValueError(f"scheduler: {name} wants {UNFIT.get(name) or 'more than a prediction, ' + ', '.join(asked)}")
    if prediction not in ("epsilon", "flow_prediction"):
        raise ValueError(f"scheduler: expected prediction_type 'epsilon' or 'flow_prediction', got {prediction!r}")
    if scheduler.config.get("stochastic_sampling"):
        raise ValueError(f"scheduler: {name} with stochastic_sampling wants {UNFIT['LCMScheduler']}")
    if getattr(scheduler, "step_index", None) or getattr(scheduler, "counter", 0):
        raise ValueError("scheduler: its timesteps have been walked; call set_timesteps before each use")
    first, *_, last = scheduler.timesteps[:1].tolist() + scheduler.timesteps.tolist()
    if first < last:
        raise ValueError(f"scheduler: expected timesteps from noise down to data, got {first:g} up to {last:g}")
    if prediction == "epsilon" and _levels(scheduler, scheduler.timesteps[0])[0] == 0:
        raise ValueError("scheduler: expected some signal at its first timestep, where eps says nothing of x0 without any; "
                         "leave out rescale_betas_zero_snr")


def noise_ratio(scheduler, t: Tensor) -> Tensor:
    """sigma/alpha, float64, at which the scheduler wants its model evaluated at its timestep t."""
    alpha, sigma = _levels(scheduler, t)
    return sigma / alpha


def first_ratio(scheduler) -> Tensor:
    """sigma/alpha where sampling starts, after `scheduler.set_timesteps`."""
    return noise_ratio(scheduler, scheduler.timesteps[0])


def drive(scheduler, D: Denoiser, x: Tensor, cond: Tensor | None = None) -> tuple[Tensor, int]:
    """Sample with a diffusers scheduler whose timesteps are set: the state (B, ...) at its end, and the evaluations of D.

    x (B, ...) has variance-preserving scale, alpha^2 + sigma^2 = 1, at the scheduler's first level, whatever the scale of the
    scheduler's own states. ValueError, with the reason, for a scheduler that no denoiser can serve, for one whose timesteps
    have been walked, and where it starts from more noise than D's schedule has.
    """
    _check(scheduler)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)                # else it is looked up, and is the second of two that round to one timestep
    alpha, sigma = _levels(scheduler, scheduler.timesteps[0])
    x = x * (alpha**2 + sigma**2).sqrt()
    for t in scheduler.timesteps:
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, t)                               # some count their steps here
        alpha, sigma = _levels(scheduler, t)
        time = D.schedule.time_of_log_snr(2 * (alpha / sigma).log())
        if not time.isfinite():
            raise ValueError(f"D: its schedule has no time at which sigma/alpha is {sigma / alpha:g}; CosineVP and Flow have")
        ours = (D.schedule.alpha(time) ** 2 + D.schedule.sigma(time) ** 2).sqrt() / (alpha**2 + sigma**2).sqrt()
        x0 = D(x * ours, time, cond)
        x = scheduler.step(_told(scheduler, x, x0, alpha, sigma), t, x).prev_sample
    return x, len(scheduler.timesteps)
