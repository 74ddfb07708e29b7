"""Rows of data/ledger.csv on the ring of eight Gaussians, with the exact score: what is wrong there is the sampler alone."""

import statistics
import time
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor

from ..fast_samplers import ddim
from ..ledger import Row
from ..metrics import fold, sliced_wasserstein
from ..ode_samplers import euler, heun, rk45
from ..sampling import last, prior
from ..schedules import LinearVP, uniform
from ..sde_samplers import ancestral, euler_maruyama, predictor_corrector
from ..targets import ring
from ..training import device_name
from .rows import FULL, Drawing, by_solver, by_step, recorded, spread, status


@recorded
def ring_sde(device: torch.device, samples: int, seeds: int) -> Iterable[Row]:
    """Reverse-time SDE samplers on the ring of eight Gaussians with the exact score, from 1000 steps down to 10."""
    steps = {"euler_maruyama": euler_maruyama, "ancestral": ancestral, "predictor_corrector": predictor_corrector()}
    return _ring_rows(device, samples, seeds, ((name, by_step(step), n) for n in (10, 30, 100, 1000)
                                               for name, step in steps.items()))


@recorded
def ring_ode(device: torch.device, samples: int, seeds: int) -> Iterable[Row]:
    """Solvers of the probability flow on the same ring: fixed steps from 1000 down to 10, and RK45 at its tolerances."""
    solvers = {"euler": by_step(euler), "heun": by_step(heun), "ddim": by_step(ddim),
               "dpm_solver_pp_2": by_solver}
    runs = [(name, drawing, n) for n in (10, 30, 100, 1000) for name, drawing in solvers.items()]
    for tolerance in (1e-2, 1e-3, 1e-4):
        adaptive = partial(last, rk45, rtol=tolerance, atol=tolerance)
        runs.append((f"rk45 ({tolerance:g})", lambda _, adaptive=adaptive: adaptive, 1))
    return _ring_rows(device, samples, seeds, runs)


def _ring_rows(device, samples, seeds, runs: Iterable[tuple[str, Drawing, int]]) -> Iterable[Row]:
    """Two rows for every (name, drawing, uniform steps): sliced Wasserstein distance, of the ring as it is and folded."""
    samples, seeds = max(samples, FULL["samples"]), max(seeds, FULL["seeds"])  # two dimensions are cheap on any device
    target, schedule = ring(), LinearVP()
    D = target.denoiser(schedule)

    def exact(seed: int) -> Tensor:
        return target.sample(samples, torch.Generator().manual_seed(seed))

    views = {"sliced_w2": lambda x: x, "sliced_w2_folded": fold}
    floors = {metric: statistics.mean(sliced_wasserstein(view(exact(1000 + s)), view(exact(2000 + s))) for s in range(seeds))
              for metric, view in views.items()}
    for name, drawing, n in runs:
        ends, start = [], time.perf_counter()
        for seed in range(seeds):
            generator = torch.Generator(device).manual_seed(seed)
            x = prior(D, (samples, 2), generator, device=device)
            result = drawing(generator)(D, x, uniform(n, schedule))
            ends.append(result.x.cpu())
        seconds = (time.perf_counter() - start) / seeds
        for metric, view in views.items():
            distances = [sliced_wasserstein(view(x), view(exact(1000 + seed))) for seed, x in enumerate(ends)]
            yield Row(method=name, dataset="ring", nfe=result.nfe, depth=result.depth, batch=samples, seconds=seconds,
                      device=device_name(device), metric=metric, value=statistics.mean(distances),
                      spread=spread(distances), floor=floors[metric], samples=samples, seeds=seeds, weights="exact",
                      status=status(samples, seeds))
