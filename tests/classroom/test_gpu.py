"""course gpu: every stage ends in time, what it leaves is sound, and a checkout takes in what is better and nothing damaged."""

import json
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace

import pytest
import torch

from course_lib import data, ledger, recipes
from course_lib.classroom import cli
from course_lib.classroom.author import gpu
from course_lib.networks import Classifier
from course_lib.training import Trained

ROW = ledger.Row("ddim", "fashion_mnist", 30, 30, 50, 1.5, "a GPU", "frechet", 0.7, 0.2, 10_000, 3, status="full")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A checkout with a ledger of one row and the weights of an untrained classifier, as what ships."""
    home = tmp_path / "home"
    (home / "notebooks" / "source").mkdir(parents=True)
    monkeypatch.setattr(data, "ROOT", home)
    monkeypatch.setattr(recipes.RECIPES["fashion_classifier"], "fixed", False)
    ledger.write(home / "data" / "ledger.csv", [replace(ROW, device="a CPU")])
    weights_of(0.5, home / "data" / "checkpoints")
    return home


def weights_of(accuracy, folder):
    torch.manual_seed(0)
    return recipes.weights.store("fashion_classifier", Trained(Classifier(), [1.0], 1.0), {"test_accuracy": accuracy}, folder)


def stages(monkeypatch, **commands):
    """In place of the four stages, these: name -> lines of Python, each a command."""
    def stage(codes):
        return lambda root, device, left: (gpu.Command(f"command {i}", (sys.executable, "-c", code), left())
                                           for i, code in enumerate(codes))
    monkeypatch.setattr(gpu, "SHARES", dict.fromkeys(commands, 1 / len(commands)))
    monkeypatch.setattr(gpu, "STAGES", {name: stage(codes) for name, codes in commands.items()})
    monkeypatch.setattr(gpu.signal, "signal", lambda *_: None)


def test_each_command_is_logged_with_its_end_and_the_last_of_what_a_failed_one_said(home, tmp_path, monkeypatch, capsys):
    stages(monkeypatch, first=["print('well')", "print('before'); 1 / 0"], second=["import time; time.sleep(60)", "pass"])
    begin = time.monotonic()
    assert cli.main(["gpu", "--minutes", "0.1", "--device", "cpu", "--out", str(tmp_path / "out")], home) == 1
    assert time.monotonic() - begin < 12
    said = capsys.readouterr().out
    assert "command 0: passed after" in said and "command 1: failed after" in said and "ZeroDivisionError" in said
    assert "command 0: stopped after" in said and "command 1: no time was left" in said and "1 of 3 commands failed" in said
    assert (tmp_path / "out" / "log.txt").read_text() == said


def test_what_a_stopped_command_started_is_stopped_with_it(home, tmp_path, monkeypatch):
    alive = tmp_path / "alive"
    child = f"import time, pathlib; [(pathlib.Path({str(alive)!r}).write_text(str(i)), time.sleep(0.1)) for i in range(600)]"
    parent = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    stages(monkeypatch, only=[parent])
    gpu.borrow(home, tmp_path / "out", 0.05, "cpu")
    before = alive.read_text()
    time.sleep(0.5)
    assert alive.read_text() == before


def test_weights_and_changed_tables_are_packed_and_brought_home(home, tmp_path, monkeypatch, capsys):
    away = tmp_path / "away"
    ledger.write(away / "data" / "ledger.csv", [replace(ROW, device="a CPU")])
    (away / "data" / "solvers.csv").write_text("as it came")
    train = ("import os, sys; from tests.classroom import test_gpu; from pathlib import Path; "
             "test_gpu.weights_of(0.8, Path(os.environ['COURSE_WEIGHTS']))")
    measure = (f"from course_lib import ledger; from course_lib.ledger import Row; "
               f"ledger.record({str(away / 'data' / 'ledger.csv')!r}, [{ROW!r}])")
    stages(monkeypatch, only=[train, measure])
    monkeypatch.setenv("PYTHONPATH", str(data.Path(__file__).resolve().parents[2]))
    assert gpu.borrow(away, tmp_path / "out", 1, "cpu"), capsys.readouterr().out
    with zipfile.ZipFile(tmp_path / "out" / "all.zip") as archive:
        assert sorted(archive.namelist()) == ["tables/ledger.csv", "weights/fashion_classifier.safetensors",
                                              "weights/manifest.json"]
    for place in (tmp_path / "out", tmp_path / "out" / "all.zip"):
        said = gpu.bring(home, place)
    assert "not better than what ships" in said[0] and "0 rows are new" in said[1], "the second time nothing is new"
    path, entry = recipes.best("fashion_classifier")
    assert entry["metrics"] == {"test_accuracy": 0.8} and path.parent == home / "data" / "checkpoints"
    assert len(list(path.parent.glob("*.safetensors"))) == 1, "the lesser weights are gone"
    assert {row.device for row in ledger.read(home / "data" / "ledger.csv")} == {"a CPU", "a GPU"}
    recipes.load("fashion_classifier")


def test_nothing_is_taken_of_what_is_damaged(home, tmp_path):
    path = weights_of(0.8, tmp_path / "out" / "weights")
    path.write_bytes(path.read_bytes()[:-1])
    ledger.write(tmp_path / "out" / "tables" / "ledger.csv", [ROW])
    before = {file: file.read_bytes() for file in sorted(home.rglob("*")) if file.is_file()}
    with pytest.raises(ValueError, match=r"fashion_classifier.safetensors is damaged"):
        gpu.bring(home, tmp_path / "out")
    assert {file: file.read_bytes() for file in sorted(home.rglob("*")) if file.is_file()} == before


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no archive"])
def test_an_archive_that_is_none_is_named(home, tmp_path, content):
    (tmp_path / "all.zip").write_bytes(content)
    with pytest.raises(ValueError, match=r"all.zip is damaged"):
        gpu.bring(home, tmp_path / "all.zip")


def test_a_folder_that_holds_nothing_is_named(home, tmp_path):
    with pytest.raises(FileNotFoundError, match="expected what `course gpu` left"):
        gpu.bring(home, tmp_path)


def test_a_folder_in_use_is_refused(home, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    assert cli.main(["gpu", "--device", "cpu", "--out", str(tmp_path / "out")], home) == 2
    assert "--out: expected a new or an empty folder" in capsys.readouterr().err


def test_chapters_that_never_passed_as_they_are_come_first(home):
    for name in ("01_one", "02_two", "03_three"):
        (home / "notebooks" / "source" / f"{name}.py").write_text(name)
    version = gpu._version(home / "notebooks" / "source" / "01_one.py")
    ledger.write_table(home / "data" / "chapters.csv", [
        gpu.ChapterRun("01_one", version, "a GPU", 1.0, "passed"), gpu.ChapterRun("02_two", "of old", "a GPU", 1.0, "passed"),
        gpu.ChapterRun("03_three", version, "a GPU", 1.0, "stopped")])
    assert [command.name for command in gpu.STAGES["chapters"](home, "cpu", lambda: 1.0)] == ["02_two", "03_three", "01_one"]


@pytest.mark.slowest
def test_a_minute_on_the_cpu_leaves_a_sound_folder_and_so_does_a_kill_in_the_middle(root, tmp_path):
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", f"file://{root}", tmp_path / "course"], check=True)
    for out, seconds in (("killed", 25), ("whole", None)):
        process = subprocess.Popen([sys.executable, "-m", "course_lib.classroom", "gpu", "--minutes", "1", "--device", "cpu",
                                    "--out", tmp_path / out], cwd=tmp_path / "course", env=None)
        begin = time.monotonic()
        try:
            process.wait(seconds or 90)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert time.monotonic() - begin < 80, "a minute, and what ends and packs"
        manifest = tmp_path / out / "weights" / "manifest.json"
        for entry in json.loads(manifest.read_text()).values() if manifest.exists() else ():
            recipes.weights.files.verify(manifest.parent / entry["file"], entry["sha256"], "")
        for table in (tmp_path / out / "tables").glob("ledger.csv"):
            ledger.read(table)
    assert "commands failed" in (tmp_path / "whole" / "log.txt").read_text()
    assert (tmp_path / "whole" / "all.zip").stat().st_size <= gpu.LARGEST
