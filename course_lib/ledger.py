"""The ledger: what every method costs and what it gives, one row a measurement, in data/ledger.csv."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from .files import atomic_write, locked

STATUSES = ("full", "provisional")


@dataclass(frozen=True)
class Row:
    """One measurement. seconds are per batch; floor is the metric between real samples; spread is over the seeds."""

    method: str
    dataset: str
    nfe: int  # network evaluations per sample
    depth: int  # how many of them had to wait for another
    batch: int
    seconds: float
    device: str
    metric: str
    value: float
    floor: float
    samples: int
    seeds: int
    spread: float | None = None
    memory_mib: float | None = None
    train_seconds: float | None = None
    guidance: float = 0.0
    weights: str = ""
    status: str = "provisional"

    def __post_init__(self):
        if self.status not in STATUSES:
            raise ValueError(f"status: expected one of {STATUSES}, got {self.status!r}")

    @property
    def key(self) -> tuple:
        """Rows with one key are the same measurement; the newer replaces the older."""
        return self.method, self.dataset, self.nfe, self.depth, self.device, self.metric, self.guidance, self.samples


COLUMNS = ("method", "dataset", "nfe", "depth", "batch", "seconds", "memory_mib", "train_seconds", "device", "guidance",
           "metric", "value", "spread", "floor", "samples", "seeds", "weights", "status")


def read(path: str | Path) -> list[Row]:
    """All rows of a ledger file. Raises ValueError, naming the line, for a file that is not a ledger."""
    return read_table(path, Row)


def read_table(path: str | Path, kind: type) -> list:
    """All rows of a file that `write` or `write_table` wrote, as dataclasses of that kind. ValueError as in `read`."""
    columns = COLUMNS if kind is Row else tuple(f.name for f in fields(kind))
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        try:
            if tuple(reader.fieldnames or ()) != columns:
                raise ValueError(f"expected the columns {','.join(columns)}, got {','.join(reader.fieldnames or ())}")
            return [_row(kind, entry) for entry in reader]
        except (TypeError, ValueError, csv.Error) as error:                 # ValueError: also of bytes that are no text
            raise ValueError(f"{path}, line {max(1, reader.line_num)}: {error}") from error


def _row(kind: type, entry: dict[str, str]):
    types = {f.name: f.type for f in fields(kind)}
    if None in entry:                                                       # where csv puts what has no column
        raise ValueError(f"expected {len(types)} fields, got {len(types) + len(entry[None])}")
    return kind(**{k: None if v == "" and type(None) in getattr(types[k], "__args__", ()) else _cast(types[k])(v)
                   for k, v in entry.items()})


def _cast(kind) -> type:
    return getattr(kind, "__args__", (kind,))[0]


def write(path: str | Path, rows: Iterable[Row]) -> None:
    """Replace the file by these rows, sorted, atomically."""
    write_table(path, sorted(rows, key=lambda r: (r.dataset, r.metric, -r.nfe, r.method, r.device)), COLUMNS)


def write_table(path: str | Path, rows: Iterable, columns: Sequence[str] = ()) -> None:
    """Dataclasses of one kind as a CSV file, atomically; columns: their order, where it is not that of the fields."""
    text, entries = io.StringIO(), [asdict(row) for row in rows]
    writer = csv.DictWriter(text, columns or list(entries[0]), lineterminator="\n")
    writer.writeheader()
    for entry in entries:
        writer.writerow({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in entry.items()})
    atomic_write(path, lambda file: file.write(text.getvalue().encode()))


def record(path: str | Path, new: Iterable[Row]) -> list[Row]:
    """Add rows to the file, replacing those with the same key; returns all rows. Other processes may do so at the same time."""
    with locked(path, wait=True):
        rows = {row.key: row for row in (read(path) if Path(path).exists() else [])}
        rows.update({row.key: row for row in new})
        write(path, rows.values())
    return list(rows.values())


def table(rows: Iterable[Row]) -> str:
    """The rows as aligned text, for a notebook's output."""
    head = ("method", "data", "NFE", "depth", "seconds", "batch", "device", "metric", "value", "floor", "n", "status")
    body = [(r.method, r.dataset, str(r.nfe), str(r.depth), f"{r.seconds:.3g}", str(r.batch), r.device, r.metric,
             f"{r.value:.3g}" + (f" ± {r.spread:.1g}" if r.spread else ""), f"{r.floor:.3g}", f"{r.samples:,}", r.status)
            for r in rows]
    widths = [max(map(len, column)) for column in zip(head, *body)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths)).rstrip() for line in (head, *body))
