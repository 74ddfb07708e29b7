"""What fills data/ledger.csv: one function a measurement, run by `course measure NAME`.

Each takes (device, samples, seeds) and returns ledger rows, which are recorded under data/. A row is `full` with at least
10,000 samples and three seeds, otherwise `provisional`.
"""

import platform
import statistics
import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from tqdm.auto import tqdm

from . import data, recipes
from .denoiser import Denoiser
from .fast_samplers import ddim
from .ledger import Row, record
from .metrics import features, frechet, sliced_wasserstein
from .sampling import Result, Step, final, prior
from .schedules import LinearVP, uniform
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


def in_batches(D: Denoiser, labels: Tensor, ts: Tensor, step: Step, seed: int, batch: int) -> tuple[Result, float]:
    """Images (N, 1, 28, 28) for the labels (N,), with their counts, and the seconds a batch took (median)."""
    generator = torch.Generator(labels.device).manual_seed(seed)
    images, seconds = [], []
    for cond in tqdm(labels.split(batch), desc=f"{step.__name__}, {len(ts) - 1} steps", leave=False):
        x = prior(D, (len(cond), 1, 28, 28), generator, device=labels.device)
        start = time.perf_counter()
        result = final(D, x, ts, step, generator, cond=cond)
        images.append(result.x.cpu())
        seconds.append(time.perf_counter() - start)
    return Result(torch.cat(images), result.nfe, result.depth), statistics.median(seconds)


@measurement
def baseline(device: torch.device, samples: int, seeds: int) -> Iterable[Row]:
    """Where the course starts: the Fashion-MNIST teacher by DDIM and by ancestral sampling, at 30, 100 and 1000 steps."""
    batch = min(samples, 500 if device.type == "cuda" else 50)
    D = recipes.load("fashion_teacher", device)
    classifier = recipes.load("fashion_classifier")
    reference = features(classifier.features, data.fashion_mnist("train")[0])
    held_out = data.fashion_mnist("test")[0]
    floor = frechet(features(classifier.features, held_out[:samples]), reference)
    agreement_of_real = recipes.accuracy(classifier, *data.fashion_mnist("test"))
    labels = (torch.arange(samples) % 10).to(device)
    for n, step in ((30, ddim), (30, ancestral), (1000, ancestral), (100, ancestral), (100, ddim), (1000, ddim)):
        runs = [in_batches(D, labels, uniform(n, D.schedule), step, seed, batch) for seed in range(seeds)]
        result, seconds = runs[0]
        common = {"method": step.__name__, "dataset": "fashion_mnist", "nfe": result.nfe, "depth": result.depth,
                  "batch": batch, "seconds": seconds, "device": device_name(device),
                  "samples": samples, "seeds": seeds, "weights": "fashion_teacher", "status": status(samples, seeds)}
        distances = [frechet(features(classifier.features, r.x), reference) for r, _ in runs]
        agreements = [recipes.accuracy(classifier, r.x, labels) for r, _ in runs]
        yield Row(metric="frechet", value=statistics.mean(distances), spread=spread(distances), floor=floor, **common)
        yield Row(metric="class_agreement", value=statistics.mean(agreements), spread=spread(agreements),
                  floor=agreement_of_real, **common)


@measurement
def ring_sde(device: torch.device, samples: int, seeds: int) -> Iterable[Row]:
    """Reverse-time SDE samplers on the ring of eight Gaussians with the exact score, from 1000 steps down to 10."""
    samples, seeds = max(samples, FULL["samples"]), max(seeds, FULL["seeds"])  # two dimensions are cheap on any device
    target, schedule = ring(), LinearVP()
    D = target.denoiser(schedule)

    def exact(seed: int) -> Tensor:
        return target.sample(samples, torch.Generator().manual_seed(seed))

    views = {"sliced_w2": lambda x: x, "sliced_w2_folded": fold}
    floors = {metric: statistics.mean(sliced_wasserstein(view(exact(1000 + s)), view(exact(2000 + s))) for s in range(seeds))
              for metric, view in views.items()}
    for n in (10, 30, 100, 1000):
        for name, step in (("euler_maruyama", euler_maruyama), ("ancestral", ancestral),
                           ("predictor_corrector", predictor_corrector())):
            ends, start = [], time.perf_counter()
            for seed in range(seeds):
                generator = torch.Generator(device).manual_seed(seed)
                result = final(D, prior(D, (samples, 2), generator, device=device), uniform(n, schedule), step, generator)
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
