"""data/parallel.csv and data/devices.csv: parallel samplers beside the sequential one, on one device and on two."""

import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from .. import data, recipes
from ..denoiser import Denoiser, Preconditioned, V
from ..fast_samplers import ddim
from ..ledger import write_table
from ..networks import MLP
from ..parallel import Sweep, converged, parareal, picard
from ..sampling import final, prior
from ..schedules import CosineVP, uniform
from ..score_matching import denoising_loss
from ..sde_samplers import ancestral
from ..targets import ring
from ..training import default_device, device_name, train


@dataclass(frozen=True)
class ParallelRow:
    """A line of data/parallel.csv: a parallel sampler beside the sequential one, from the same starts and noise."""

    model: str
    step: str
    steps: int
    method: str
    window: int
    tolerance: float
    batch: int
    rounds: float  # means over the seeds
    evaluations: float  # of one sample
    seconds: float
    sequential_seconds: float
    distance: float  # of its images or points from the sequential ones: root mean square over all numbers of all seeds
    seeds: int
    device: str


TOLERANCES = (1.0, 0.1, 0.01, 0.001)
STEPS_2D = {"ancestral": (ancestral, 1000), "ddim": (ddim, 100)}


def parallel(device=None, samples: int | None = None, seeds: int | None = None) -> list[ParallelRow]:
    """Rounds against tolerance and against the clock: the exact ring, a network on the ring, the Fashion-MNIST teacher.

    Writes data/parallel.csv. Single samples are drawn, and `samples` at once to compare (16); seeds (3) starts of each.
    """
    device, batch, seeds = torch.device(device) if device else default_device(), samples or 16, seeds or 3
    rows = []
    for model, D, shape, std in (("exact", ring().denoiser(CosineVP()), (2,), 1.07),
                                 ("network", ring_network(device), (2,), 1.07),
                                 ("fashion_teacher", recipes.load("fashion_teacher", device), (1, 28, 28), 0.5)):
        tolerances = TOLERANCES if model == "exact" else (0.1,)
        for step, n in STEPS_2D.values():
            for tolerance in tolerances:
                rows += _parallel_rows(model, D, shape, std, step, n, tolerance, 1, seeds, device)
        if model == "network":
            rows += _parallel_rows(model, D, shape, std, *STEPS_2D["ancestral"], 0.1, batch, seeds, device)
        write_table(data.ROOT / "data" / "parallel.csv", rows)                   # after each model: a kill loses one
    return rows


def ring_network(device, steps: int = 800) -> Denoiser:
    """Three layers of 128 that have learned the ring."""
    def loss(model, x0, generator):
        t = model.schedule.t_min + (model.schedule.t_max - model.schedule.t_min) * torch.rand(
            len(x0), generator=generator, device=x0.device)
        return denoising_loss(model, x0, t, torch.randn(x0.shape, generator=generator, device=x0.device))

    torch.manual_seed(0)
    x0 = ring().sample(20_000, torch.Generator().manual_seed(0)).float()
    return train(loss, Preconditioned(MLP(), CosineVP(), V()), [x0], steps=steps, batch=256, lr=2e-3, device=device,
                 progress=False).model


def _parallel_rows(model, D, shape, std, step, n, tolerance, batch, seeds, device) -> Iterator[ParallelRow]:
    ts, cond = uniform(n, D.schedule), torch.arange(batch, device=device) % 10 if len(shape) == 3 else None
    window = max(1, n // 4)
    methods = {"picard": picard, "gaussian slopes": partial(picard, std=std), "secant slopes": partial(picard, secant=True),
               "both": partial(picard, std=std, secant=True),
               "both, window": partial(picard, std=std, secant=True, window=window), "parareal": parareal}
    runs = {name: [] for name in methods}
    for seed in range(seeds):
        x = prior(D, (batch, *shape), torch.Generator(device).manual_seed(seed), device=device)
        common = {"step": step, "cond": cond}
        expected, alone = _timed(partial(final, D, x, ts, **common), seed, device)
        for name, sampler in methods.items():
            sweep, seconds = _timed(partial(_run_out, sampler, D, x, ts, tolerance=tolerance, **common), seed, device)
            squared = (sweep.trajectory[-1] - expected.x).square().mean().item()
            runs[name].append((sweep.rounds, sweep.evaluations, seconds, alone, squared))
    for name, found in runs.items():
        rounds, evaluations, seconds, alone, squared = (statistics.mean(column) for column in zip(*found))
        yield ParallelRow(model, step.__name__, n, name, window if "window" in name else n, tolerance, batch, rounds,
                          evaluations, seconds, alone, squared**0.5, seeds, device_name(device))


def _run_out(sampler: Callable, *args, **kwargs) -> Sweep:
    return converged(sampler(*args, **kwargs))


def _timed(run: Callable, seed: int, device: torch.device) -> tuple:
    """run(generator=...) and its seconds, with the noise of that seed."""
    start = time.perf_counter()
    result = run(generator=torch.Generator(device).manual_seed(1000 + seed))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, time.perf_counter() - start


# ---------------------------------------------------------------------------------------------- many devices
@dataclass(frozen=True)
class DeviceRow:
    """A line of data/devices.csv: seconds of an `evaluation` or an `exchange` of rows, or of a `sequential` or `picard` run."""

    model: str
    what: str
    devices: int
    batch: int
    rows: int
    seconds: float
    rounds: int
    evaluations: int  # of one sample
    device: str


ROWS = (1, 4, 16, 64, 256, 1024)


def devices(device=None, samples: int | None = None, seeds: int | None = None, steps: int = 1000) -> list[DeviceRow]:
    """What a cost model is fitted to and judged by: one device alone, and two that share the rows of every sweep.

    Writes data/devices.csv. A device is a GPU where there are two, otherwise a process with one thread; `samples` (16) at once
    on the two-dimensional network beside a single one; `seeds` counts for nothing.
    """
    where = torch.device(device) if device else default_device()
    kind = "cuda" if where.type == "cuda" and torch.cuda.device_count() > 1 else "cpu"
    models = {"network": ring_network("cpu"), "fashion_teacher": recipes.load("fashion_teacher", "cpu")}
    with tempfile.TemporaryDirectory() as folder:
        for world in (1, 2):
            torch.multiprocessing.spawn(_rank, (world, kind, folder, models, samples or 16, steps), nprocs=world)
        rows = [row for world in (1, 2) for row in torch.load(f"{folder}/{world}.pt", weights_only=False)]
    write_table(data.ROOT / "data" / "devices.csv", rows)
    return rows


def _rank(rank: int, world: int, kind: str, folder: str, models: dict[str, Denoiser], batch: int, steps: int) -> None:
    """One of the devices; the first writes down what it saw."""
    torch.set_num_threads(1)
    device = torch.device(kind, rank) if kind == "cuda" else torch.device("cpu")
    torch.distributed.init_process_group("nccl" if kind == "cuda" else "gloo", init_method=f"file://{folder}/meet{world}",
                                         rank=rank, world_size=world)
    rows = list(_device_rows(world, device, models, batch, steps))
    if rank == 0:
        torch.save(rows, f"{folder}/{world}.pt")
    torch.distributed.destroy_process_group()


def _device_rows(world: int, device: torch.device, models: dict, batch: int, steps: int) -> Iterator[DeviceRow]:
    group = torch.distributed.group.WORLD if world > 1 else None
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"1 CPU core ({platform.machine()})"
    for model, shape, std, window, batches in (("network", (2,), 1.07, None, (1, batch)),
                                               ("fashion_teacher", (1, 28, 28), 0.5, steps // 4, (1,))):
        D = models[model].to(device)
        for rows in ROWS if model == "network" else ROWS[:-1]:
            x, t = torch.randn(rows, *shape, device=device), torch.full((rows,), 0.5, device=device)
            cond = torch.zeros(rows, dtype=torch.long, device=device) if len(shape) == 3 else None
            run = (partial(torch.distributed.all_gather, [torch.empty_like(x) for _ in range(world)], x) if group
                   else partial(D, x, t, cond))
            seconds = _least(run, device, max(8, 256 // rows))                    # what is short is timed more often
            yield DeviceRow(model, "exchange" if group else "evaluation", world, 1, rows, seconds, 1, 1, name)
        ts = uniform(steps, D.schedule)
        for b in batches:
            x = prior(D, (b, *shape), torch.Generator(device).manual_seed(0), device=device)
            cond = torch.arange(b, device=device) % 10 if len(shape) == 3 else None
            if not group:
                result, seconds = _best(partial(final, D, x, ts, ancestral, cond=cond), device)
                yield DeviceRow(model, "sequential", 1, b, b, seconds, result.depth, result.nfe, name)
            run = partial(_run_out, picard, D, x, ts, ancestral, std=std, secant=True, window=window, group=group, cond=cond)
            sweep, seconds = _best(run, device)
            yield DeviceRow(model, "picard", world, b, b, seconds, sweep.rounds, sweep.evaluations, name)


def _best(run: Callable, device: torch.device, repeats: int = 3) -> tuple:
    """What a run returned, and the least of its seconds: the first is slower than all others."""
    return min((_timed(run, 0, device) for _ in range(repeats)), key=lambda timed: timed[1])


@torch.no_grad()
def _least(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """The least seconds of a run; a fixed number of them, for in an exchange all devices must make the same calls."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)
