"""course gpu: every stage ends in time, what it leaves is sound, and a checkout takes in what is better and nothing damaged."""

import json
import os
import signal
import subprocess
import sys
import time
import venv
import zipfile
from dataclasses import replace
from pathlib import Path

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
        return lambda root, device, left: [(gpu.Command(f"command {i}", (sys.executable, "-c", code), left())
                                            for i, code in enumerate(codes))]
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
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
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


def test_an_archive_holds_what_is_better_as_far_as_there_is_room_and_lists_nothing_else(home, tmp_path, monkeypatch):
    session = gpu.Session(home, tmp_path / "out", torch.device("cpu"))
    for accuracy in (0.7, 0.4, 0.9):                                      # what ships has 0.5
        weights_of(accuracy, session.out / "weights")
    gpu.files.write_sealed(session.out / "weights" / "ring_teacher.state.pt", os.urandom(50_000))

    def packed(largest):
        monkeypatch.setattr(gpu, "LARGEST", largest)
        session.pack()
        assert (session.out / "all.zip").stat().st_size <= largest
        with zipfile.ZipFile(session.out / "all.zip") as archive:
            listed = json.loads(archive.read("weights/manifest.json"))
            assert {f"weights/{its['file']}" for its in listed.values()} == {
                name for name in archive.namelist() if name.endswith(".safetensors")}
            return [its["metrics"]["test_accuracy"] for its in listed.values()], len(archive.namelist())

    assert packed(2**20) == ([0.7, 0.9], 4)
    assert packed(500_000) == ([0.7, 0.9], 3) and "ring_teacher.state.pt" in (session.out / "log.txt").read_text()
    assert packed(330_000) == ([0.7], 3), "the state has room where the second weights have none"
    assert packed(2**16) == ([], 1)


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
    names = [next(lane).name for lane in gpu.STAGES["chapters"](home, "cpu", lambda: 1.0)]
    assert names == ["02_two", "03_three", "01_one"]


# ---------------------------------------------------------------------------------------------- a bare machine
BARE = """torch torchgen functorch numpy filelock typing_extensions.py sympy mpmath networkx jinja2 markupsafe fsspec setuptools
    matplotlib mpl_toolkits contourpy cycler fontTools kiwisolver packaging pyparsing dateutil six.py PIL safetensors tqdm
    pytest _pytest py.py pluggy iniconfig pygments""".split()
NO_NETWORK = """import socket
def refuse(*_, **__):
    raise OSError("there is no network")
socket.getaddrinfo = socket.create_connection = refuse
"""


@pytest.fixture(scope="session")
def bare(tmp_path_factory):
    """A Python that has torch and what comes with it, but neither Jupyter nor a network, as on a borrowed machine."""
    place = tmp_path_factory.mktemp("bare")
    venv.create(place, symlinks=True)
    packages, ours = next(place.rglob("site-packages")), Path(torch.__file__).parents[1]
    for name in [*BARE, *(path.name for kind in ("*.libs", "torch-*.dist-info") for path in ours.glob(kind))]:
        if (ours / name).exists():
            (packages / name).symlink_to(ours / name)
    (packages / "sitecustomize.py").write_text(NO_NETWORK)
    return place / "bin" / "python"


def run_bare(bare, root, code, *arguments, **environment):
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", **environment}
    done = subprocess.run([bare, "-c", code, *arguments], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_neither_jupyter_nor_pytest_is_imported_by_what_runs_on_a_borrowed_machine(bare, root):
    said = run_bare(bare, root, """
import importlib.util, sys
from course_lib import measure, recipes
from course_lib.classroom import cli, exercise, predict, reveal
from course_lib.classroom.author import gpu
absent = "IPython ipywidgets jupyterlab nbformat nbclient nbconvert nbgrader jupytext scipy diffusers".split()
print([name for name in absent if importlib.util.find_spec(name)], "pytest" in sys.modules)
""")
    assert said.split() == ["[]", "False"]


CHAPTER = """
import importlib.util
import inspect
import matplotlib.pyplot as plt
from course_lib.widgets import animation, flipbook, progress, watched

def page(n, word=""):
    print("page", n, word)
    return plt.figure()

flipbook(page, n=[2, 1, 3])
flipbook(page, n=[2, 1], word=["b", "a"], play=True, alt="a page")
animation(page, [1, 2], [100, 100], alt="two pages")
assert importlib.util.find_spec("ipywidgets") is None and inspect.stack()
list(watched(lambda D, x, ts: iter(ts))(None, None, list(progress([1, 2]))))
print("✓")
"""


def test_a_chapter_runs_where_there_is_no_jupyter(bare, root, tmp_path):
    (tmp_path / "01_one.py").write_text(CHAPTER)
    said = run_bare(bare, root, f"from {gpu.__name__} import chapter; chapter({str(tmp_path / '01_one.py')!r})")
    assert said.split()[:9] == ["page", "2", "page", "2", "b", "page", "1", "page", "2"] and said.split()[-1] == "✓"


@pytest.mark.parametrize(("said", "status"), [("4.2 ✓ solved", 0), ("4.2 ✗ you used sigma(t)", 1), ("✗ jupyterlab", 0),
                                             ("4.1 ✗ you predicted b", 0)])
def test_a_chapter_fails_if_an_answer_of_its_own_is_found_wrong(root, tmp_path, said, status):
    source = tmp_path / "01_one.py"
    source.write_text(f"print({said!r})")
    done = subprocess.run(gpu._here("chapter", str(source)), cwd=root, capture_output=True, text=True)
    assert done.returncode == status and said in done.stdout and ("found wrong" in done.stderr) == bool(status)


CASES = """
import torch
CASES = {"well": lambda d: torch.ones(3, device=d), "raises": lambda d: 1 / 0, "grows": lambda d: torch.ones(next(n)),
         "no tensor": lambda d: "a word"}
n = iter((2, 3))
"""


def test_cases_of_a_device_are_all_tried_and_those_that_fail_are_named(root, tmp_path):
    (tmp_path / "device_cases.py").write_text(CASES)
    command = gpu._here("cases", str(tmp_path / "device_cases.py"), "cpu")
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert done.returncode == 1 and lines[-1] == "2 of 4 cases failed"
    assert [line.partition(":")[0] for line in lines[:-1]] == ["raises", "grows"]


def test_what_needs_a_gpu_most_is_trained_in_lanes_of_what_hangs_together():
    names = [name for lane in gpu.TRAININGS for name in lane]
    assert len(names) == len(set(names)) and set(names) <= recipes.RECIPES.keys()
    for lane in gpu.TRAININGS:
        for i, name in enumerate(lane):
            needs = {recipes.RECIPES[name].start, *recipes.RECIPES[name].reads} & set(names)
            assert needs <= set(list(lane)[:i]), f"{name} begins before {needs} are there"


def test_commands_share_the_seconds_that_are_left():
    seconds = iter((60.0, 20.0, 5.0))
    assert list(gpu._shared({"a": 1, "b": 1, "c": 2}, lambda: next(seconds))) == [("a", 15.0), ("b", 20 / 3), ("c", 5.0)]
    lanes = gpu.STAGES["trainings"](None, "cuda", lambda: 300.0)
    commands = [next(lane) for lane in lanes]
    assert [command.seconds for command in commands] == [100.0, 300.0, 300.0, 300.0], "those of a lane by their shares"
    assert all("--larger" in command.arguments for command in commands)
    assert "--larger" not in next(gpu.STAGES["trainings"](None, "cpu", lambda: 300.0)[0]).arguments


def test_lanes_run_side_by_side_on_a_gpu_only(home, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu.os, "cpu_count", lambda: 16)
    code = "import time; time.sleep(1.5)"

    def seconds(device):
        session = gpu.Session(home, tmp_path / device, torch.device(device))
        begin = time.monotonic()
        session.carry_out([iter([gpu.Command(f"command {i}", (sys.executable, "-c", code), 60.0)]) for i in range(3)])
        assert (session.done, session.failed) == (3, 0)
        return time.monotonic() - begin

    assert seconds("cuda") < 3 < 4.5 < seconds("cpu")


def test_a_state_of_a_training_that_was_stopped_is_brought_too(home, tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_WEIGHTS", str(home / "my" / "weights"))
    (tmp_path / "out" / "tables").mkdir(parents=True)
    gpu.files.write_sealed(tmp_path / "out" / "weights" / "ring_teacher.state.pt", b"half of it")
    assert "ring_teacher: was stopped" in gpu.bring(home, tmp_path / "out")[0]
    assert gpu.files.read_sealed(home / "my" / "weights" / "ring_teacher.state.pt") == b"half of it"
    assert "is there already" in gpu.bring(home, tmp_path / "out")[0]


@pytest.mark.slowest
@pytest.mark.parametrize("kill", [None, signal.SIGTERM, signal.SIGKILL], ids=str)
def test_a_minute_on_the_cpu_leaves_a_sound_folder_and_so_does_a_kill_in_the_middle(bare, root, tmp_path, monkeypatch, kill):
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", f"file://{root}", tmp_path / "course"], check=True)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([bare, "-m", "course_lib.classroom", "gpu", "--minutes", "1", "--device", "cpu",
                                "--out", tmp_path / "out"], cwd=tmp_path / "course", env=environment)
    begin = time.monotonic()
    try:
        process.wait(25 if kill else 90)
    except subprocess.TimeoutExpired:
        process.send_signal(kill or signal.SIGKILL)
        process.wait()
    assert time.monotonic() - begin < 80, "a minute, and what starts and ends and packs"
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "checks, until minute 0.1" in log and "trainings, until minute 0.6" in log
    if kill is None:
        assert "commands failed" in log and "no time was left" in log and "chapters, until minute" in log
    if kill is not signal.SIGKILL:
        assert (tmp_path / "out" / "all.zip").stat().st_size <= gpu.LARGEST
    monkeypatch.setenv("COURSE_WEIGHTS", str(tmp_path / "own"))
    monkeypatch.setattr(data, "ROOT", tmp_path / "course")
    print(log, *gpu.bring(tmp_path / "course", tmp_path / "out"), sep="\n")
    assert recipes.verify_all() and all(sound for _, sound, _ in recipes.verify_all())
