"""`course gpu`: all that needs a GPU, done on a borrowed one within a budget of minutes; `--bring` takes it into a checkout.

The work is in stages, each with a share of the time: checks, trainings, measurements, chapters at scale full. A stage has
lanes, which run side by side where there are processors enough; each command of a lane runs in a process of its own, which is
stopped when its time is over. What is left behind is sound at every moment, after a kill as well: weights and states are
written whole and under their sums, tables are copied whole, and the log says of each command what became of it. Neither Jupyter
nor a network is needed.

What is made faster, and what is not: a step of these networks at the batch of their recipes waits for its several hundred
launches and leaves a large GPU idle. So the batch is eight times as large, for hardly more time; large networks compute in
bfloat16; Adam is one kernel; and several models are trained side by side. A CUDA graph of the step or a compiled network would
spare the same launches once more, at the price of a minute of compiling and of losses that may not draw or decide on the CPU:
`course measure steps` says what a graph gains.
"""

import contextlib
import ctypes
import importlib
import importlib.util
import io
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ... import files, ledger, recipes, training
from .. import notebooks

LARGEST = 15 * 2**20                    # bytes of the archive
SHARES = {"checks": 0.1, "trainings": 0.5, "rows": 0.2, "chapters": 0.2}
# What most needs a GPU comes first, in lanes of what depends on one another; each with its share of its lane's time.
TRAININGS = ({"fashion_teacher": 4, "fashion_guided_student": 2, "fashion_progressive_8": 1, "fashion_progressive_4": 1,
              "fashion_progressive_2": 1, "fashion_progressive_1": 1, "fashion_consistency": 2},
             {"emoji_latent_teacher": 1},
             {"emoji_upscaler": 1},
             {"sentence_latent_teacher": 1})
LARGER = 8                              # times the batch of a recipe
ROWS = {"steps": 1, "distillation": 3, "few_steps": 3, "parallel": 3, "guidance": 2, "same_images": 1, "baseline": 1}
CORES = 4                               # of the processor, for each lane
END = 0.97                              # of the time; the rest is for packing


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
    """A process: its name in the log, its arguments, the most seconds it may take, and, if it is one, the chapter it runs."""

    name: str
    arguments: tuple[str, ...]
    seconds: float
    chapter: Path | None = None


Lane = Iterator[Command]  # each is made when the one before it is over


def borrow(root: Path, out: Path, minutes: float, device: str | None) -> bool:
    """All stages within so many minutes; the new folder `out` then holds log.txt and all.zip. Did nothing fail?

    Raises ValueError if `out` is there and not empty, or for an unknown device.
    """
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"--out: expected a new or an empty folder, got {out}")
    where = training.chosen_device(device)
    session, over = Session(root, out.resolve(), where), 0.0
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))     # what was done till then is packed, too
    session.say(f"{training.device_name(where)}, Python {sys.version.split()[0]}, torch {torch.__version__}")
    try:
        for name, share in SHARES.items():
            over += END * share
            ends = session.begin + 60 * minutes * over
            session.say(f"{name}, until minute {minutes * over:.1f}")
            session.carry_out(STAGES[name](root, str(where), lambda ends=ends: ends - time.monotonic()))
            session.pack()
        session.say(f"{session.failed} of {session.done} commands failed")
    finally:
        session.pack()
    return session.failed == 0


# --- stages: their lanes ---------------------------------------------------------------------------------------------

def _checks(root: Path, device: str, left: Callable[[], float]) -> list[Lane]:
    """The tests that are marked as those of a GPU, and the cases of tests/device, if there are any."""
    marked = [str(path) for path in sorted((root / "tests").rglob("test_*.py"))
              if re.search(r"^@pytest\.mark\.gpu", path.read_text(encoding="utf-8"), re.MULTILINE)]
    tests = sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--continue-on-collection-errors"
    tried = (root / "tests" / "device").glob("device_cases.py")
    return [(Command("tests", (*tests, *marked), left()) for _ in marked[:1]),
            (Command("cases", _here("cases", str(path), device), left()) for path in tried)]


def _trainings(root: Path, device: str, left: Callable[[], float]) -> list[Lane]:
    """In a lane each has its share of the time, at least 20 s: where that is too little for all, the last are left out."""
    larger = ("--larger", str(LARGER)) if device.startswith("cuda") else ()

    def lane(shares: dict[str, float]) -> Lane:
        names = list(shares)
        while len(names) > 1 and 20 * sum(shares[name] for name in names) > left() * min(shares[name] for name in names):
            names.pop()
        for name, seconds in _shared({name: shares[name] for name in names}, left):
            minutes = max(min(seconds - 12, 0.75 * seconds), 0.5 * seconds) / 60        # the rest: to start, measure, write
            yield Command(f"train {name}", _course("train", name, "--further", "--device", device, *larger, "--minutes",
                                                   f"{minutes:.3f}"), seconds)

    return [lane(shares) for shares in TRAININGS]


def _rows(root: Path, device: str, left: Callable[[], float]) -> list[Lane]:
    """One lane: what is timed is alone on the device."""
    more = {name: ("--samples", "10000", "--seeds", "3") for name in ROWS} | {"parallel": ("--seeds", "3"), "steps": ()}
    return [(Command(f"measure {name}", _course("measure", name, "--device", device, *more[name]), seconds)
             for name, seconds in _shared(ROWS, left))]


def _chapters(root: Path, device: str, left: Callable[[], float]) -> list[Lane]:
    """Those that never passed as they are now, before those that did."""
    passed = {(row.chapter, row.version) for row in _chapter_runs(root / "data" / "chapters.csv") if row.result == "passed"}
    sources = notebooks.chapters(root / "notebooks" / "source", suffix=".py")

    def lane(source: Path) -> Lane:
        yield Command(source.stem, _here("chapter", str(source)), left(), source)

    return [lane(source) for source in sorted(sources, key=lambda source: (source.stem, _version(source)) in passed)]


STAGES = {"checks": _checks, "trainings": _trainings, "rows": _rows, "chapters": _chapters}


def _shared(shares: dict[str, float], left: Callable[[], float]) -> Iterator[tuple[str, float]]:
    """Each name in its turn, with its share of the seconds that are left to it and those behind it."""
    names = list(shares)
    for i, name in enumerate(names):
        yield name, left() * shares[name] / sum(shares[other] for other in names[i:])


def _course(*arguments: str) -> tuple[str, ...]:
    return sys.executable, "-m", "course_lib.classroom", *arguments


def _here(function: str, *arguments: str) -> tuple[str, ...]:
    """A function of this file, in a process of its own."""
    return sys.executable, "-c", f"import sys; from {__name__} import {function}; {function}(*sys.argv[1:])", *arguments


def _version(source: Path) -> str:
    return notebooks.digest(source.read_text(encoding="utf-8"))


def _chapter_runs(path: Path) -> list[ChapterRun]:
    return ledger.read_table(path, ChapterRun) if path.exists() else []


# --- what they run besides the course's own commands -----------------------------------------------------------------

class Unseen:
    """In place of a widget or a picture where there is no Jupyter: keeps what it is told, and is not shown."""

    def __init__(self, *_, **told):
        vars(self).update({"layout": SimpleNamespace()} | told)

    def observe(self, *_, **__) -> None:
        """Nobody will turn it."""

    add_class = observe


def chapter(path: str) -> None:
    """A chapter as a plain script. Exits with 1 if one of the course's own answers is found wrong."""
    absent = [name for name in ("ipywidgets", "IPython.display") if importlib.util.find_spec(name.partition(".")[0]) is None]
    for name in absent:
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__getattr__ = lambda _: Unseen
    importlib.import_module("course_lib.widgets")
    for name in absent:                                 # whoever else looks for Jupyter shall see that there is none
        del sys.modules[name]
    wrong, write, pattern = [], sys.stdout.write, re.compile(r"^\d+\.\d+ ✗(?! you predicted).*", re.MULTILINE)
    sys.stdout.write = lambda said: wrong.extend(pattern.findall(said)) or write(said)
    runpy.run_path(path, run_name="__main__")
    if wrong:
        sys.exit(f"an answer of the course's own was found wrong: {wrong[0]}")


def cases(path: str, device: str) -> None:
    """Each case of tests/device/device_cases.py: on the device it gives tensors there, as large and as finite as on the CPU.

    Values are not compared, as a device draws other numbers. Exits with 1 if one fails, after all are done.
    """
    sys.path.insert(0, str(Path(path).parent))
    failed, found = 0, importlib.import_module(Path(path).stem).CASES
    for name, case in found.items():
        try:
            here, there = (tree_leaves(case(torch.device(where))) for where in ("cpu", device))
            assert len(here) == len(there), f"{len(there)} results, not {len(here)}"
            for x, y in zip(here, there):
                if isinstance(x, Tensor):
                    assert (y.device.type, y.shape, y.dtype) == (torch.device(device).type, x.shape, x.dtype), (
                        f"{y.dtype} {tuple(y.shape)} on {y.device}, not {x.dtype} {tuple(x.shape)} there")
                    assert bool(y.isfinite().all()) or not bool(x.isfinite().all()), "not all of it is finite"
        except Exception as error:                      # of whatever kind: the next case is another matter
            failed += 1
            print(f"{name}: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}", flush=True)
    print(f"{failed} of {len(found)} cases failed", flush=True)
    sys.exit(int(failed > 0))


# --- running them ----------------------------------------------------------------------------------------------------

class Session:
    """The folder of a run on a borrowed device: log.txt, weights/ and tables/, whole at every moment."""

    def __init__(self, root: Path, out: Path, device: torch.device):
        self.root, self.out, self.device, self.failed, self.done, self.refused = root, out, device, 0, 0, set()
        (out / "weights").mkdir(parents=True)
        (out / "tables").mkdir()
        self.begin, self.seen, self.rows = time.monotonic(), self._tables(), set(ledger.read(root / "data" / "ledger.csv"))

    def say(self, line: str) -> None:
        """A line of the log, which is also printed."""
        line = f"{time.monotonic() - self.begin:7.1f} s  {line}"
        print(line, flush=True)
        with open(self.out / "log.txt", "a", encoding="utf-8") as log:
            log.write(line + "\n")

    def carry_out(self, lanes: list[Lane]) -> None:
        """The commands of all lanes, as many lanes side by side as there are processors for, on a GPU."""
        cores, waiting, running = os.cpu_count() or 1, list(lanes), []
        most = max(1, min(len(lanes), cores // CORES)) if self.device.type == "cuda" else 1
        try:
            while waiting or running:
                while waiting and len(running) < most:
                    lane = waiting.pop(0)
                    for command in lane:
                        if command.seconds >= 1:
                            running.append((lane, Running(command, self, cores // most)))
                            break
                        self.say(f"{command.name}: no time was left")
                for lane, process in [each for each in running if each[1].is_over()]:
                    running.remove((lane, process))
                    process.end()
                    self._note(process)
                    waiting.insert(0, lane)
                time.sleep(0.02)
        finally:
            for _, process in running:
                process.end()

    def _note(self, process: "Running") -> None:
        """Log what became of a command, and keep the tables that it changed."""
        command, result, lines = process.command, process.result, process.said()
        self.done, self.failed = self.done + 1, self.failed + (result == "failed")
        self.say(f"{command.name}: {result} after {process.seconds:.1f} s")
        for line in lines[-1:] if result == "passed" else lines:
            self.say(f"    {line}")
        for name, sum in self._tables().items():
            if self.seen.get(name) != sum:
                ours, theirs = self.root / "data" / name, self.out / "tables" / name
                if name == "ledger.csv":                # of which only what is new goes home
                    ledger.write(theirs, [row for row in ledger.read(ours) if row not in self.rows])
                else:
                    _copy(ours, theirs)
                self.seen[name] = sum
        if command.chapter:
            path = self.out / "tables" / "chapters.csv"
            told = (lines or ["it said nothing"])[-1] if result == "failed" else result
            ledger.write_table(path, [*_chapter_runs(path), ChapterRun(
                command.name, _version(command.chapter), training.device_name(self.device), process.seconds, told)])

    def _tables(self) -> dict[str, str]:
        return {path.name: files.sha256(path) for path in (self.root / "data").glob("*.csv")}

    def pack(self) -> None:
        """One archive of at most LARGEST bytes: tables, weights that are better than what ships, the dearest first, with a
        manifest of just these, and states to go on from; what has no room, or needs none, stays in the folder."""
        weights, rank = self.out / "weights", {name: i for i, name in enumerate(name for lane in TRAININGS for name in lane)}
        entries = {stem: its for stem, its in recipes.entries(weights).items() if recipes.weights.improves(its)}
        dearest = sorted(entries.values(), key=lambda its: rank.get(its["recipe"], len(rank)))
        paths = [*sorted(self.out.glob("tables/*.csv")), *(weights / its["file"] for its in dearest),
                 *sorted(weights.glob("*.state.pt"))]
        left, kept = LARGEST - 2**16, {}                # less what the archive itself needs, and the manifest
        for path in paths:
            content = path.read_bytes()
            if (size := len(zlib.compress(content))) <= left:
                kept[str(path.relative_to(self.out))] = content
                left -= size
            elif path not in self.refused:
                self.refused.add(path)
                self.say(f"{path.name}, {size:,} bytes, has no room in the archive; it is in {path.parent}")
        listed = {stem: its for stem, its in entries.items() if f"weights/{its['file']}" in kept}
        kept["weights/manifest.json"] = json.dumps(listed, indent=2, sort_keys=True).encode()
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in kept.items():
                archive.writestr(name, content)
        files.atomic_write(self.out / "all.zip", lambda file: file.write(packed.getvalue()))


class Running:
    """A command that runs, in a group of processes of its own, until it ends or its time is over."""

    def __init__(self, command: Command, session: Session, threads: int):
        environment = notebooks.environment(session.root, COURSE_WEIGHTS=str(session.out / "weights"), MPLBACKEND="agg",
                                            COURSE_SCALE="full", PYTHONUNBUFFERED="1", PYTHONIOENCODING="utf-8")
        environment.setdefault("OMP_NUM_THREADS", str(max(1, threads)))
        self.command, self.output, self.start = command, tempfile.TemporaryFile(), time.monotonic()
        self.process = subprocess.Popen(command.arguments, cwd=session.root, env=environment, stdout=self.output,
                                        stderr=subprocess.STDOUT, start_new_session=True,
                                        preexec_fn=_die_with_parent if sys.platform == "linux" else None)

    def is_over(self) -> bool:
        """Has it ended, or should it?"""
        return self.process.poll() is not None or time.monotonic() - self.start > self.command.seconds

    def end(self) -> None:
        """End it and its children, if they have not ended by themselves: politely, then not."""
        self.result = {None: "stopped", 0: "passed"}.get(self.process.poll(), "failed")
        self.seconds = time.monotonic() - self.start
        for kind, patience in ((signal.SIGTERM, 3), (signal.SIGKILL, None)):
            with contextlib.suppress(ProcessLookupError, PermissionError, subprocess.TimeoutExpired):   # all of it is gone, or
                os.killpg(self.process.pid, kind)                                                     # the next kind's turn
                self.process.wait(patience)

    def said(self) -> list[str]:
        """The last twenty lines that it printed; of a progress bar what was shown last."""
        self.output.seek(0)
        lines = [line.rstrip().rsplit("\r")[-1] for line in self.output.read().decode(errors="replace").split("\n")]
        return [line for line in lines if line][-20:]


def _die_with_parent() -> None:
    """Called in a new process: if ours is killed, the system kills this one (prctl's PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))


def _copy(source: Path, target: Path) -> None:
    files.atomic_write(target, lambda file: file.write(source.read_bytes()))


# --- at home ---------------------------------------------------------------------------------------------------------

def bring(root: Path, place: Path) -> list[str]:
    """Take what `borrow` left, a folder or its archive, into the checkout at `root`; returns what was done, in sentences.

    Weights take the place of those that ship if they are better; rows are added to the ledger, tables that are new to data/,
    states of trainings that were stopped to my/weights. All is verified before anything is written: ValueError for what is
    damaged, FileNotFoundError if there is nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        source = _opened(place, Path(folder))
        weights = [(source / "weights" / entry["file"], entry) for entry in recipes.entries(source / "weights").values()]
        for path, entry in weights:
            files.verify(path, entry["sha256"], "bring it anew")
        states = sorted((source / "weights").glob("*.state.pt"))
        for path in states:
            files.read_sealed(path)
        table, runs = source / "tables" / "ledger.csv", _chapter_runs(source / "tables" / "chapters.csv")
        rows = ledger.read(table) if table.exists() else []
        said = [_shipped(path, entry) for path, entry in weights] + [_state(path) for path in states]
        ours = root / "data" / "ledger.csv"
        new = [row for row in rows if row not in set(ledger.read(ours))]
        ledger.record(ours, new)
        said.append(f"data/ledger.csv: {len(new)} rows are new or measured anew")
        if runs:
            before = {row.chapter: row for row in _chapter_runs(root / "data" / "chapters.csv")}
            ledger.write_table(root / "data" / "chapters.csv", (before | {row.chapter: row for row in runs}).values())
            said.append(f"data/chapters.csv: {len(runs)} chapters, {sum(row.result == 'passed' for row in runs)} passed")
        for other in sorted({*(source / "tables").glob("*.csv")} - {table, table.with_name("chapters.csv")}):
            ours = root / "data" / other.name
            said.append(f"data/{other.name}: " + (f"it is of another device; what was measured there stays in {place}"
                                                  if ours.exists() else "is new"))
            if not ours.exists():
                _copy(other, ours)
    return said


def _state(path: Path) -> str:
    name, ours = path.name.removesuffix(".state.pt"), recipes.own() / path.name
    if ours.exists():
        return f"{name}: {ours} is there already, and what was brought is left alone"
    _copy(path, ours)
    return f"{name}: was stopped; the same command goes on from {ours}, under the same release of torch"


def _opened(place: Path, folder: Path) -> Path:
    """The folder that `borrow` filled; an archive's, or that of the archive in a folder, is unpacked into `folder`."""
    if (place / "tables").is_dir():                                             # it may hold more than its archive
        return place
    archive = place / "all.zip" if (place / "all.zip").exists() else place
    if not archive.is_file():
        raise FileNotFoundError(f"--bring: expected what `course gpu` left, a folder or all.zip, got {place}")
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
