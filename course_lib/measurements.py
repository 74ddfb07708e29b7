"""What fills data/ledger.csv and data/solvers.csv: one function a measurement, run by `course measure NAME`.

Each takes (device, samples, seeds) and returns its rows, which are recorded under data/. A row is `full` with at least
10,000 samples and three seeds, otherwise `provisional`.
"""

import csv
import importlib.util
import io
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from functools import partial

import torch
from torch import Tensor
from tqdm.auto import tqdm

from . import data, recipes
from .denoiser import Denoiser
from .diffusers_bridge import drive, first_ratio
from .fast_samplers import ddim, dpm_solver_pp, dpm_solver_pp_sde, fine_grid, optimise_grid
from .files import atomic_write
from .ledger import Row, record
from .metrics import features, frechet, sliced_wasserstein
from .ode_samplers import euler, heun, rk45
from .sampling import Result, Step, last, prior, sample
from .schedules import CosineVP, LinearVP, equal_angles, karras, log_snr_to_zero, log_snr_uniform, uniform
from .sde_samplers import ancestral, euler_maruyama, predictor_corrector
from .targets import ring
from .training import default_device

MEASUREMENTS: dict[str, Callable[..., list[Row]]] = {}
FULL = {"samples": 10_000, "seeds": 3}


def measurement(function: Callable[..., Iterable[Row]]) -> Callable[..., list[Row]]:
    """Register a generator of rows under its name; every row is recorded as soon as it is there, so a kill loses one."""

    def run(device=None, samples: int | None = None, seeds: int | None = None) -> list[Row]:
        device = torch.device(device) if device else default_device()
        samples = samples or (FULL["samples"] if device.type == "cuda" else 1000)
        rows = []
        for row in function(device, samples, seeds or (FULL["seeds"] if device.type == "cuda" else 1)):
            rows.append(row)
            record(data.ROOT / "data" / "ledger.csv", [row])
        return rows

    run.__doc__, run.__name__ = function.__doc__, function.__name__
    MEASUREMENTS[function.__name__] = run
    return run


def device_name(device: torch.device) -> str:
    """The GPU's name, or how many cores of which kind of processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cores = torch.get_num_threads()
    return f"{cores} CPU core{'s' * (cores > 1)} ({platform.machine()})"


def status(samples: int, seeds: int) -> str:
    """full, if the sample is large enough to be quoted."""
    return "full" if samples >= FULL["samples"] and seeds >= FULL["seeds"] else "provisional"


def spread(values: list[float]) -> float | None:
    """Standard deviation over seeds; None for a single one."""
    return statistics.stdev(values) if len(values) > 1 else None


# ---------------------------------------------------------------------------------------------- Fashion-MNIST
Drawing = Callable[[torch.Generator], Callable[..., Iterator[Tensor]]]  # a sampler that takes its noise from that generator


def by_step(step: Step) -> Drawing:
    """A one-step method as what `in_batches` draws with."""
    return lambda generator: partial(sample, step=step, generator=generator)


def in_batches(D: Denoiser, labels: Tensor, ts: Tensor, drawing: Drawing, seed: int, batch: int) -> tuple[Result, float]:
    """Images (N, 1, 28, 28) for the labels (N,), with their counts, and the seconds a batch took (median)."""
    generator = torch.Generator(labels.device).manual_seed(seed)
    images, seconds = [], []
    for cond in tqdm(labels.split(batch), desc=f"{len(ts) - 1} steps, seed {seed}", leave=False):
        x = prior(D, (len(cond), 1, 28, 28), generator, device=labels.device)
        start = time.perf_counter()
        result = last(drawing(generator), D, x, ts, cond=cond)
        images.append(result.x.cpu())
        seconds.append(time.perf_counter() - start)
    return Result(torch.cat(images), result.nfe, result.depth), statistics.median(seconds)


def balanced(labels: Tensor, samples: int) -> list[Tensor]:
    """Disjoint sets of `samples` row numbers with as many of each class, as the samplers are asked for.

    A thousand held-out images in their own order have 87 of one class and 115 of another; that alone doubles the floor.
    """
    each, rows = samples // 10, [(labels == c).nonzero()[:, 0] for c in range(10)]
    sets = min(map(len, rows)) // max(each, 1)
    if samples % 10 or not each or not sets:
        raise ValueError(f"samples: expected a multiple of 10, at most {10 * min(map(len, rows))}, got {samples}")
    return [torch.cat([r[k * each:(k + 1) * each] for r in rows]) for k in range(sets)]


def _fashion_rows(device, samples, seeds, runs: Iterable[tuple[str, Drawing, Callable[..., Tensor], int]]) -> Iterable[Row]:
    """Two rows for every (name, drawing, grid, steps): Frechet distance and class agreement, beside those of real images."""
    batch = min(samples, 500 if device.type == "cuda" else 50)
    D = recipes.load("fashion_teacher", device)
    classifier = recipes.load("fashion_classifier")
    reference = features(classifier.features, data.fashion_mnist("train")[0])
    images, classes = data.fashion_mnist("test")
    held_out = features(classifier.features, images)
    floor = statistics.mean(frechet(held_out[rows], reference) for rows in balanced(classes, samples))
    agreement_of_real = recipes.accuracy(classifier, images, classes)
    labels = (torch.arange(samples) % 10).to(device)
    for name, drawing, grid, n in runs:
        drawn = [in_batches(D, labels, grid(n, D.schedule), drawing, seed, batch) for seed in range(seeds)]
        result, seconds = drawn[0]
        common = {"method": name, "dataset": "fashion_mnist", "nfe": result.nfe, "depth": result.depth,
                  "batch": batch, "seconds": seconds, "device": device_name(device),
                  "samples": samples, "seeds": seeds, "weights": "fashion_teacher", "status": status(samples, seeds)}
        distances = [frechet(features(classifier.features, r.x), reference) for r, _ in drawn]
        agreements = [recipes.accuracy(classifier, r.x, labels) for r, _ in drawn]
        yield Row(metric="frechet", value=statistics.mean(distances), spread=spread(distances), floor=floor, **common)
        yield Row(metric="class_agreement", value=statistics.mean(agreements), spread=spread(agreements),
                  floor=agreement_of_real, **common)


@measurement
def baseline(device: torch.device, samples: int, seeds: int) -> Iterable[Row]:
    """Where the course starts: the Fashion-MNIST teacher by DDIM and by ancestral sampling, at 30, 100 and 1000 steps."""
    pairs = ((30, ddim), (30, ancestral), (1000, ancestral), (100, ancestral), (100, ddim), (1000, ddim))
    return _fashion_rows(device, samples, seeds, ((step.__name__, by_step(step), uniform, n) for n, step in pairs))


@measurement
def few_steps(device: torch.device, samples: int, seeds: int) -> Iterable[Row]:
    """The same teacher at 30 and 10 steps by DPM-Solver++, as ODE and as SDE, in log-SNR down to 5 and then to t = 0."""
    solvers = {"dpm_solver_pp_sde": lambda generator: partial(dpm_solver_pp_sde, generator=generator),
               "dpm_solver_pp_2": lambda generator: dpm_solver_pp, "ancestral_to_zero": by_step(ancestral)}
    return _fashion_rows(device, samples, seeds,
                         ((name, drawing, log_snr_to_zero, n) for n in (30, 10) for name, drawing in solvers.items()))


# ---------------------------------------------------------------------------------------------- the ring
@measurement
def ring_sde(device: torch.device, samples: int, seeds: int) -> Iterable[Row]:
    """Reverse-time SDE samplers on the ring of eight Gaussians with the exact score, from 1000 steps down to 10."""
    steps = {"euler_maruyama": euler_maruyama, "ancestral": ancestral, "predictor_corrector": predictor_corrector()}
    return _ring_rows(device, samples, seeds, ((name, by_step(step), n) for n in (10, 30, 100, 1000)
                                               for name, step in steps.items()))


@measurement
def ring_ode(device: torch.device, samples: int, seeds: int) -> Iterable[Row]:
    """Solvers of the probability flow on the same ring: fixed steps from 1000 down to 10, and RK45 at its tolerances."""
    solvers = {"euler": by_step(euler), "heun": by_step(heun), "ddim": by_step(ddim),
               "dpm_solver_pp_2": lambda _: dpm_solver_pp}
    runs = [(name, drawing, n) for n in (10, 30, 100, 1000) for name, drawing in solvers.items()]
    for tolerance in (1e-2, 1e-3, 1e-4):
        adaptive = partial(rk45, rtol=tolerance, atol=tolerance)
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
            result = last(drawing(generator), D, x, uniform(n, schedule))
            ends.append(result.x.cpu())
        seconds = (time.perf_counter() - start) / seeds
        for metric, view in views.items():
            distances = [sliced_wasserstein(view(x), view(exact(1000 + seed))) for seed, x in enumerate(ends)]
            yield Row(method=name, dataset="ring", nfe=result.nfe, depth=result.depth, batch=samples, seconds=seconds,
                      device=device_name(device), metric=metric, value=statistics.mean(distances),
                      spread=spread(distances), floor=floors[metric], samples=samples, seeds=seeds, weights="exact",
                      status=status(samples, seeds))


def fold(x: Tensor, k: int = 8) -> Tensor:
    """Points (N, 2) of a ring of k equal spots, each turned by a multiple of 2 pi/k into the sector around the first.

    How many samples fall on each spot is a lottery for exact samples too, and most of the floor; folded, it is gone.
    """
    turn = -2 * torch.pi / k * (torch.atan2(x[:, 1], x[:, 0]) * k / (2 * torch.pi)).round()
    return torch.stack([turn.cos() * x[:, 0] - turn.sin() * x[:, 1], turn.sin() * x[:, 0] + turn.cos() * x[:, 1]], 1)


# ---------------------------------------------------------------------------------------------- solvers of the flow
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
    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in fields(SolverRow)], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in asdict(row).items()})
    atomic_write(data.ROOT / "data" / "solvers.csv", lambda file: file.write(text.getvalue().encode()))
    return rows


MEASUREMENTS["solvers"] = solvers


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
