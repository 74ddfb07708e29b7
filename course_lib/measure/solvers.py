"""data/solvers.csv: deterministic samplers of the course and of diffusers on one problem whose solution is known."""

import importlib.util
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .. import data
from ..denoiser import Denoiser
from ..diffusers_bridge import drive, first_ratio
from ..fast_samplers import ddim, dpm_solver_pp, fine_grid, optimise_grid
from ..ledger import write_table
from ..ode_samplers import euler, heun
from ..sampling import last, sample
from ..schedules import CosineVP, LinearVP, equal_angles, karras, log_snr_uniform, uniform
from ..targets import ring
from ..training import device_name


@dataclass(frozen=True)
class SolverRow:
    """A line of data/solvers.csv: how far a deterministic sampler on a time grid ends from the exact solution of the flow."""

    library: str
    solver: str
    grid: str
    evaluations: int
    error: float  # mean distance from the exact end point
    microseconds: float  # processor time of a step, without the network, on 16 grey images of 32 x 32
    device: str


BUDGETS = (5, 10, 20, 50)
GRIDS = {"uniform": uniform, "log-SNR": log_snr_uniform, "karras": karras}
# name: the sampler, and how many steps it can take for k evaluations
OURS = {"euler": (partial(sample, step=euler), lambda k: k), "ddim": (partial(sample, step=ddim), lambda k: k),
        "dpm_solver_pp, order 2": (dpm_solver_pp, lambda k: k),
        "dpm_solver_pp, order 3": (partial(dpm_solver_pp, order=3), lambda k: k - 1),
        "heun": (partial(sample, step=heun), lambda k: k // 2)}


def solvers(device=None, samples: int | None = None, seeds: int | None = None) -> list[SolverRow]:
    """Deterministic samplers on the ring with the exact score: the course's and, where installed, those of diffusers.

    Writes data/solvers.csv. Always on the CPU; `samples` starts (2048), of which there is one set: `seeds` counts for nothing.
    """
    x = torch.randn(samples or 2048, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theirs = importlib.util.find_spec("diffusers") is not None
    own = own_times(_our_runs() | (_their_runs() if theirs else {}))
    rows = [*_ours(x, own), *(_diffusers(x, own) if theirs else ())]
    write_table(data.ROOT / "data" / "solvers.csv", rows)
    return rows


class Free:
    """A denoiser that costs nothing, so that what remains is the sampler's own time."""

    def __init__(self, schedule):
        self.schedule = schedule

    def __call__(self, x: Tensor, t, cond: Tensor | None = None) -> Tensor:
        return x


def own_times(runs: dict[tuple[str, str], Callable[[], object]], repeats: int = 15) -> dict[tuple[str, str], float]:
    """The least processor time of several runs of 50 steps, in microseconds a step.

    Unlike the clock's, it counts no waiting for other programs; and the runs take turns, so that a slow moment of the machine
    falls on all alike.
    """
    least = dict.fromkeys(runs, float("inf"))
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.process_time()
            run()
            least[name] = min(least[name], (time.process_time() - start) / 50 * 1e6)
    return least


def end_point(D: Denoiser, x: Tensor, ratio: float) -> Tensor:
    """The exact solution at t = 0 of the flow that passes through x at the noise level sigma/alpha = ratio."""
    start = D.schedule.time_of_log_snr(-2 * torch.tensor(ratio, dtype=torch.float64).log()).item()
    return last(dpm_solver_pp, D, x, fine_grid(D.schedule, start, 0.0), order=3).x


def mean_distance(x: Tensor, y: Tensor) -> float:
    """Mean distance between the rows of x and y (B, d)."""
    return (x - y).norm(dim=1).mean().item()


def _our_runs() -> dict[tuple[str, str], Callable[[], object]]:
    free, images = Free(LinearVP()), torch.randn(16, 1, 32, 32)
    return {("course", name): partial(last, sampler, free, images, uniform(50, free.schedule))
            for name, (sampler, _) in OURS.items()}


def _ours(x: Tensor, own: dict) -> Iterator[SolverRow]:
    target = ring()
    D, device = target.denoiser(LinearVP()), device_name(torch.device("cpu"))
    std = (target.means.square().mean() + target.stds[0] ** 2).sqrt().item()
    others = torch.randn(512, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)   # to optimise grids on
    grids = GRIDS | {"equal angles": partial(equal_angles, std=std), "equal angles, std 0.5": equal_angles}
    exact = end_point(D, x, (-D.schedule.log_snr(D.schedule.t_max) / 2).exp().item())
    for name, (sampler, steps) in OURS.items():
        for k in BUDGETS:
            candidates = {grid: make(steps(k), D.schedule) for grid, make in grids.items()}
            if sampler is not OURS["heun"][0]:
                candidates["optimised"] = optimise_grid(D, others, steps(k), sampler, end=0.0, std=std)
            for grid, ts in candidates.items():
                result = last(sampler, D, x, ts)
                yield SolverRow("course", name, grid, result.nfe, mean_distance(result.x, exact),
                                own["course", name], device)


def _their_kinds() -> dict[str, tuple[type, dict, dict]]:
    """The schedulers of diffusers: their class, their options, and the options that choose a grid, by its name."""
    import diffusers

    diffusers.logging.set_verbosity_error()                              # its remarks on configurations it mends itself
    plain = {"uniform": {}, "karras": {"use_karras_sigmas": True}}
    spaced = plain | {"trailing": {"timestep_spacing": "trailing"}}
    whole = {"uniform": {}, **{name: {"timestep_spacing": name} for name in ("trailing", "linspace")}}
    kinds = {"DDIM": (diffusers.DDIMScheduler, {"clip_sample": False}, whole),
             "Heun": (diffusers.HeunDiscreteScheduler, {}, spaced), "LMS": (diffusers.LMSDiscreteScheduler, {}, spaced)}
    for name, kind, grids in (
        ("DPM-Solver++", diffusers.DPMSolverMultistepScheduler, spaced | {"log-SNR": {"use_lu_lambdas": True}}),
        ("DPM-Solver++ single step", diffusers.DPMSolverSinglestepScheduler, plain),
        ("UniPC", diffusers.UniPCMultistepScheduler, spaced), ("DEIS", diffusers.DEISMultistepScheduler, spaced),
    ):
        kinds |= {f"{name}, order {order}": (kind, {"solver_order": order}, grids) for order in (1, 2, 3)}
    return kinds


def _their_runs() -> dict[tuple[str, str], Callable[[], object]]:
    images = torch.randn(16, 1, 32, 32)
    return {("diffusers", name): partial(_run_free, kind(**options), images)
            for name, (kind, options, _) in _their_kinds().items()}


def _diffusers(x: Tensor, own: dict) -> Iterator[SolverRow]:
    D, device = ring().denoiser(CosineVP()), device_name(torch.device("cpu"))        # a clock that reaches all their levels
    exact = {}                                                            # by noise level: their spacings start at several
    for name, (kind, options, grids) in _their_kinds().items():
        for grid, extra in grids.items():
            scheduler = kind(**options, **extra)
            for k in BUDGETS:
                scheduler.set_timesteps((k + 1) // 2 if name == "Heun" else k)
                ratio = first_ratio(scheduler).item()
                exact[ratio] = exact[ratio] if ratio in exact else end_point(D, x, ratio)
                end, evaluations = drive(scheduler, D, x)
                yield SolverRow("diffusers", name, grid, evaluations, mean_distance(end, exact[ratio]),
                                own["diffusers", name], device)


def _run_free(scheduler, x: Tensor) -> None:
    scheduler.set_timesteps(50)
    for t in scheduler.timesteps:
        scheduler.scale_model_input(x, t)
        x = scheduler.step(x, t, x).prev_sample
