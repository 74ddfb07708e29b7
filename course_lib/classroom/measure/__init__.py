"""What fills data/ledger.csv and the tables beside it: one function a measurement, run by `course measure NAME`.

Each takes (device, samples, seeds), writes its rows under data/ and returns them.
"""

from ... import data, ledger
from .emoji_runs import latent
from .latent_runs import latent_race, latent_sweep
from .parallel_runs import DeviceRow, ParallelRow, devices, parallel
from .quality import baseline, distillation, few_steps, guidance, ring_ode, ring_sde, same_images
from .solver_errors import SolverRow, solvers

MEASUREMENTS = {measurement.__name__: measurement for measurement in (
    baseline, few_steps, same_images, guidance, distillation, latent, latent_race, latent_sweep, ring_sde, ring_ode, solvers,
    parallel, devices)}
TABLES = {"ledger.csv": ledger.Row, "solvers.csv": SolverRow, "parallel.csv": ParallelRow, "devices.csv": DeviceRow}


def verify_all() -> list[tuple[str, bool, str]]:
    """Read every table, as they have no lasting check sums: (name, is it sound, what to say about it)."""
    return [_report(name, kind) for name, kind in TABLES.items()]


def _report(name: str, kind: type) -> tuple[str, bool, str]:
    try:
        rows = ledger.read_table(data.ROOT / "data" / name, kind)
    except (OSError, ValueError) as error:
        return name, False, f"{error}. As it came: `git checkout -- data/{name}`, which takes what you measured with it"
    return name, bool(rows), f"{len(rows):,} rows, each of the right kind"
