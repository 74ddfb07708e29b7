"""`course gpu`: all that needs a GPU, done on a borrowed one within a budget of minutes; `--bring` takes it into a checkout.

The work is in stages, each with a share of the time: checks, trainings, rows of the ledger, chapters at scale full. Every
command runs in a process of its own, which is stopped when the stage's time is over. What is left behind is sound at every
moment, after a kill as well: weights and states are written whole and under their sums, tables are copied whole, and the log
says of each command what became of it. Neither Jupyter nor pytest nor a network is needed.
"""

import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ... import files, ledger, recipes, training
from .. import notebooks

LARGEST = 15 * 2**20                    # bytes of the archive
SHARES = {"checks": 0.1, "trainings": 0.5, "rows": 0.2, "chapters": 0.2}
# What most needs a GPU comes first, each with its share of the time for trainings.
TRAININGS = {"fashion_teacher": 4, "fashion_guided_student": 2, "fashion_progressive_8": 1, "fashion_progressive_4": 1,
             "fashion_progressive_2": 1, "fashion_progressive_1": 1, "fashion_consistency": 2}
ROWS = ("distillation", "few_steps", "parallel", "devices", "same_images", "guidance", "latent", "baseline")


@dataclass(frozen=True)
class ChapterRun:
    """A line of data/chapters.csv: what became of a chapter that was run from top to bottom at scale full."""

    chapter: str
    version: str  # of its source
    device: str
    seconds: float
    result: str  # "passed", "stopped", or the last line of what went wrong


@dataclass(frozen=True)
class Command:
    """A process: its name in the log, its arguments, the most seconds it may take, and what its environment has besides."""

    name: str
    arguments: tuple[str, ...]
    seconds: float
    environment: tuple[tuple[str, str], ...] = ()


def borrow(root: Path, out: Path, minutes: float, device: str | None) -> bool:
    """All stages within so many minutes; the new folder `out` then holds log.txt and all.zip. Did nothing fail?

    Raises ValueError if `out` is there and not empty, or for an unknown device.
    """
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"--out: expected a new or an empty folder, got {out}")
    device = str(training.chosen_device(device))
    session, over = Session(root, out, device), 0.0
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))     # what was done till then is packed, too
    try:
        for name, share in SHARES.items():
            over += share
            ends = session.begin + 60 * minutes * over
            session.say(f"{name}, until minute {minutes * over:.1f}")
            for command in STAGES[name](root, device, lambda ends=ends: ends - time.monotonic()):
                if command.seconds < 1:
                    session.say(f"{command.name}: no time was left")
                else:
                    session.run(command)
        session.say(f"{session.failed} of {session.done} commands failed")
    finally:
        session.pack()
    return session.failed == 0


# --- stages: commands, each made when those before it are over -------------------------------------------------------

def _checks(root: Path, device: str, left: Callable[[], float]) -> Iterator[Command]:
    yield Command("checks", (sys.executable, str(root / "tests" / "device_cases.py"), device), left())


def _trainings(root: Path, device: str, left: Callable[[], float]) -> Iterator[Command]:
    """Each has its share of what is left, at least half a minute: where that is too little for all, the last are left out."""
    names = list(TRAININGS)
    while len(names) > 1 and 30 * sum(TRAININGS[name] for name in names) > left() * min(TRAININGS[name] for name in names):
        names.pop()
    for i, name in enumerate(names):
        seconds = left() * TRAININGS[name] / sum(TRAININGS[name] for name in names[i:])
        minutes = max(seconds - 15, seconds / 2) / 60                           # the rest: to start, to measure, to write
        yield Command(f"train {name}", _course("train", name, "--further", "--device", device, "--minutes", f"{minutes:.3f}"),
                      seconds)


def _rows(root: Path, device: str, left: Callable[[], float]) -> Iterator[Command]:
    for name in ROWS:
        yield Command(f"measure {name}", _course("measure", name, "--device", device, "--samples", "10000", "--seeds", "3"),
                      left())


def _chapters(root: Path, device: str, left: Callable[[], float]) -> Iterator[Command]:
    """Those that never passed as they are now, before those that did."""
    passed = {(row.chapter, row.version) for row in _chapter_runs(root / "data" / "chapters.csv") if row.result == "passed"}
    sources = notebooks.chapters(root / "notebooks" / "source", suffix=".py")
    for source in sorted(sources, key=lambda source: (source.stem, _version(source)) in passed):
        yield Command(source.stem, (sys.executable, str(source)), left(), (("COURSE_SCALE", "full"), ("MPLBACKEND", "agg")))


STAGES = {"checks": _checks, "trainings": _trainings, "rows": _rows, "chapters": _chapters}


def _course(*arguments: str) -> tuple[str, ...]:
    return sys.executable, "-m", "course_lib.classroom", *arguments


def _version(source: Path) -> str:
    return notebooks.digest(source.read_text(encoding="utf-8"))


def _chapter_runs(path: Path) -> list[ChapterRun]:
    return ledger.read_table(path, ChapterRun) if path.exists() else []


# --- running them ----------------------------------------------------------------------------------------------------

class Session:
    """The folder of a run on a borrowed device: log.txt, weights/ and tables/, whole at every moment."""

    def __init__(self, root: Path, out: Path, device: str):
        self.root, self.out, self.device, self.failed, self.done = root, out, device, 0, 0
        (out / "weights").mkdir(parents=True)
        (out / "tables").mkdir()
        self.begin, self.seen = time.monotonic(), self._tables()

    def say(self, line: str) -> None:
        """A line of the log, which is also printed."""
        line = f"{time.monotonic() - self.begin:7.1f} s  {line}"
        print(line, flush=True)
        with open(self.out / "log.txt", "a", encoding="utf-8") as log:
            log.write(line + "\n")

    def run(self, command: Command) -> None:
        """Run a command until it ends or its time is over; log what became of it, and keep the tables that it changed."""
        environment = notebooks.environment(self.root, COURSE_WEIGHTS=str(self.out / "weights"), **dict(command.environment))
        start = time.monotonic()
        with open(self.out / "output.txt", "w+", encoding="utf-8", errors="replace") as output:
            process = subprocess.Popen(command.arguments, cwd=self.root, env=environment, stdout=output,
                                       stderr=subprocess.STDOUT, start_new_session=True)
            try:
                result = "passed" if process.wait(command.seconds) == 0 else None
            except subprocess.TimeoutExpired:
                result = "stopped"
            finally:
                _end(process)
            output.seek(0)
            said = [line.rstrip().rsplit("\r")[-1] for line in output][-20:]
        seconds, lines = time.monotonic() - start, [line for line in said if line]
        self.done, self.failed = self.done + 1, self.failed + (result is None)
        self.say(f"{command.name}: {result or 'failed'} after {seconds:.1f} s")
        for line in lines if result is None else lines[-1:]:
            self.say(f"    {line}")
        self._keep_tables()
        if command.arguments[-1].startswith(str(self.root / "notebooks")):
            self._keep_chapter(ChapterRun(command.name, _version(Path(command.arguments[-1])), self.device, seconds,
                                          result or (lines or ["it said nothing"])[-1]))

    def _keep_chapter(self, row: ChapterRun) -> None:
        path = self.out / "tables" / "chapters.csv"
        ledger.write_table(path, [*_chapter_runs(path), row])

    def _tables(self) -> dict[str, str]:
        return {path.name: files.sha256(path) for path in (self.root / "data").glob("*.csv")}

    def _keep_tables(self) -> None:
        for name, sum in self._tables().items():
            if self.seen.get(name) != sum:
                content = (self.root / "data" / name).read_bytes()
                files.atomic_write(self.out / "tables" / name, lambda file, content=content: file.write(content))
                self.seen[name] = sum

    def pack(self) -> None:
        """All in one archive of at most LARGEST bytes; last of all the states to go on from, as far as there is room."""
        kinds = ("*.csv", "*.json", "*.safetensors", "*.state.pt")
        left, kept = LARGEST, []
        for path in [path for kind in kinds for path in sorted(self.out.rglob(kind))]:
            if path.stat().st_size <= left:
                kept.append(path)
                left -= path.stat().st_size
            else:
                self.say(f"{path.name}, {path.stat().st_size:,} bytes, has no room in the archive; it is in {path.parent}")
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in kept:
                archive.write(path, path.relative_to(self.out))
        files.atomic_write(self.out / "all.zip", lambda file: file.write(content.getvalue()))


def _end(process: subprocess.Popen) -> None:
    """End a process and its children, which have a group of their own: politely, then not."""
    for kind, patience in ((signal.SIGTERM, 5), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, kind)
            process.wait(patience)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass


# --- at home ---------------------------------------------------------------------------------------------------------

def bring(root: Path, place: Path) -> list[str]:
    """Take what `borrow` left, a folder or its archive, into the checkout at `root`; returns what was done, in sentences.

    Weights take the place of those that ship if they are better; rows are added to the ledger. All is verified before anything
    is written: ValueError for what is damaged, FileNotFoundError if there is nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        source = _opened(place, Path(folder))
        weights = [(source / "weights" / entry["file"], entry) for entry in recipes.entries(source / "weights").values()]
        for path, entry in weights:
            files.verify(path, entry["sha256"], "bring it anew")
        table, runs = source / "tables" / "ledger.csv", _chapter_runs(source / "tables" / "chapters.csv")
        rows = ledger.read(table) if table.exists() else []
        said = [_shipped(path, entry) for path, entry in weights]
        ours = root / "data" / "ledger.csv"
        new = [row for row in rows if row not in set(ledger.read(ours))]
        ledger.record(ours, new)
        said.append(f"data/ledger.csv: {len(new)} rows are new or measured anew")
        if runs:
            before = {row.chapter: row for row in _chapter_runs(root / "data" / "chapters.csv")}
            ledger.write_table(root / "data" / "chapters.csv", (before | {row.chapter: row for row in runs}).values())
            said.append(f"data/chapters.csv: {len(runs)} chapters, {sum(row.result == 'passed' for row in runs)} passed")
        others = {path.name for path in (source / "tables").glob("*.csv")} - {"ledger.csv", "chapters.csv"}
        said += [f"{name} was measured anew there and stays in {place}: data/{name} is of another device"
                 for name in sorted(others)]
    return said


def _opened(place: Path, folder: Path) -> Path:
    """The folder that `borrow` filled; an archive's, or that of the archive in a folder, is unpacked into `folder`."""
    archive = place / "all.zip" if (place / "all.zip").exists() else place
    if not archive.is_file():
        if not (place / "weights" / "manifest.json").exists() and not (place / "tables").is_dir():
            raise FileNotFoundError(f"--bring: expected what `course gpu` left, a folder or all.zip, got {place}")
        return place
    try:
        with zipfile.ZipFile(archive) as packed:
            for name in packed.namelist():
                if re.fullmatch(r"weights/[\w-]+\.(safetensors|json|state\.pt)|tables/\w+\.csv", name):
                    packed.extract(name, folder)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{archive} is damaged: {error}") from error
    return folder


def _shipped(path: Path, entry: dict) -> str:
    name, taken = entry["recipe"], recipes.weights.ship(path, entry)
    merit = f"{recipes.known(name).merit} {entry['metrics'][recipes.known(name).merit]:.4g}"
    return f"{name}: {merit}, " + (f"now data/checkpoints/{taken.name}" if taken else "not better than what ships, left alone")
