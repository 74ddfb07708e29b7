"""What fills data/ledger.csv and the tables beside it: one function a measurement, run by `course measure NAME`.

Each takes (device, samples, seeds), writes its rows under data/ and returns them. The map, as in course_lib:

    rows               what all rows of the ledger share
    fashion            its rows on Fashion-MNIST, from 1000 steps to one
    ring               its rows on the ring, with the exact score
    emoji              its rows on emoji: what latents keep and save, whether pictures follow their captions
    latents            its rows on latents against pixels
    costs              what parallel sampling will cost on a device whose times were measured
    parallel           parallel.csv and devices.csv: rounds and seconds of parallel sampling
    steps              steps.csv: seconds and memory of a step of training, and of an evaluation
    solvers            solvers.csv: deterministic samplers, ours and others', on known solutions
"""

from .. import data, ledger
from . import emoji, fashion, latents, parallel, ring, solvers, steps

MEASUREMENTS = {measurement.__name__: measurement for measurement in (
    fashion.baseline, fashion.few_steps, fashion.same_images, fashion.guidance, fashion.distillation, emoji.latent,
    latents.latent_race, latents.latent_sweep, ring.ring_sde, ring.ring_ode, solvers.solvers, parallel.parallel,
    parallel.devices, steps.steps)}
TABLES = {"ledger.csv": ledger.Row, "solvers.csv": solvers.SolverRow, "parallel.csv": parallel.ParallelRow,
          "devices.csv": parallel.DeviceRow}


def verify_all() -> list[tuple[str, bool, str]]:
    """Read every table, as they have no lasting check sums: (name, is it sound, what to say about it)."""
    return [_report(name, kind) for name, kind in TABLES.items()]


def _report(name: str, kind: type) -> tuple[str, bool, str]:
    try:
        rows = ledger.read_table(data.ROOT / "data" / name, kind)
    except (OSError, ValueError) as error:
        return name, False, f"{error}. As it came: `git checkout -- data/{name}`, which takes what you measured with it"
    return name, bool(rows), f"{len(rows):,} rows, each of the right kind"
