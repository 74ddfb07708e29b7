"""The ledger: what every method costs and what it gives, one row a measurement, in data/ledger.csv."""

import csv
import io
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from html import escape
from pathlib import Path
from types import NoneType
from typing import get_args

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
    types = {f.name: get_args(f.type) or (f.type,) for f in fields(kind)}   # float | None: both of them
    if None in entry:                                                       # where csv puts what has no column
        raise ValueError(f"expected {len(types)} fields, got {len(types) + len(entry[None])}")
    return kind(**{k: None if v == "" and NoneType in types[k] else types[k][0](v) for k, v in entry.items()})


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


CELLS = {"method": lambda r: r.method, "data": lambda r: r.dataset, "NFE": lambda r: str(r.nfe),
         "depth": lambda r: str(r.depth), "guidance": lambda r: f"{r.guidance:g}", "seconds": lambda r: f"{r.seconds:.3g}",
         "batch": lambda r: str(r.batch), "device": lambda r: r.device, "metric": lambda r: r.metric,
         "value": lambda r: f"{r.value:.3g}" + (f" ± {r.spread:.1g}" if r.spread else ""), "floor": lambda r: f"{r.floor:.3g}",
         "n": lambda r: f"{r.samples:,}", "status": lambda r: r.status}


@dataclass(frozen=True)
class Table:
    """Rows of text under a head: an HTML table where there is HTML, aligned text elsewhere."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def numeric(self) -> list[bool]:
        """Which columns hold numbers only."""
        number = re.compile(r"[-+]?[\d.,]+(e[-+]\d+)?( ± \S+)?")
        return [all(number.fullmatch(line[i]) for line in self.rows) for i in range(len(self.head))]

    def __str__(self) -> str:
        widths = [max(map(len, column)) for column in zip(self.head, *self.rows)]
        return "\n".join("  ".join(cell.rjust(w) if number else cell.ljust(w)
                                   for cell, w, number in zip(line, widths, self.numeric(), strict=True)).rstrip()
                         for line in (self.head, *self.rows))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        styles = ["" if number else ' style="text-align: left"' for number in self.numeric()]
        lines = ["".join(f"<{tag}{style}>{escape(cell)}</{tag}>" for cell, style in zip(line, styles, strict=True))
                 for tag, line in (("th", self.head), *(("td", line) for line in self.rows))]
        return ('<table style="white-space: nowrap; text-align: right">' + "".join(f"<tr>{line}</tr>\n" for line in lines)
                + "</table>")

    def show(self) -> None:
        """Below the cell of a notebook; printed elsewhere, also where there is no IPython."""
        if "IPython" in sys.modules:
            from IPython.display import display

            display(self)
        else:
            print(self)


def table(rows: Iterable[Row], columns: str = "method data NFE seconds device metric value floor status") -> Table:
    """The chosen columns of the rows. Raises ValueError for a column that is not in CELLS."""
    names = columns.split()
    if unknown := set(names) - set(CELLS):
        raise ValueError(f"columns: expected some of {' '.join(CELLS)}, got {' '.join(sorted(unknown))}")
    return Table(names, [[CELLS[name](row) for name in names] for row in rows])
