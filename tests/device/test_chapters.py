"""Every chapter at scale `full`, its numbers cut, as a plain script on the pretended device."""

import ast
import subprocess
import sys

import pytest
import smoke

from course_lib.classroom import notebooks
from course_lib.data import ROOT

CHAPTERS = notebooks.chapters(ROOT / "notebooks" / "source", suffix=".py")
REHEARSALS = {"11_latent_diffusion"}                                         # whose seconds are thrown away


@pytest.mark.parametrize(("source", "expected"), [
    ("N = 4000 if full else 1000", "N = 1000"), ("N = 4000 if FULL else 1000", "N = 1000"),
    ("steps, step = (1000, ancestral) if full else (100, ddim)", "steps, step = (100, ancestral)"),
    ("train(loss, steps=3000 if full else 700)", "train(loss, steps=700)"), ("x = 1 if few else 2", "x = 1 if few else 2"),
    ("kind = ancestral if full else ddim", "kind = ancestral"), ("assert error < 0.1, 'far off'", "error < 0.1"),
    ("def room(x):\n    assert x\n    return 2 if full else 1", "def room(x):\n    assert x\n    return 1"),
])
def test_numbers_are_those_of_quick_and_all_else_is_that_of_full(source, expected):
    assert ast.unparse(smoke.cut(source)) == ast.unparse(ast.parse(expected))


def test_no_chapter_is_left_out():
    built = {path.stem for path in (ROOT / "notebooks" / "solutions").glob("*.ipynb")}
    assert {path.stem for path in CHAPTERS} == built and len(built) >= 12


@pytest.mark.slowest
@pytest.mark.parametrize("source", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_runs_on_a_gpu(source, tmp_path):
    environment = notebooks.environment(ROOT, OMP_NUM_THREADS="1", COURSE_WEIGHTS=str(tmp_path / "none"))
    environment.pop("COURSE_SCALE", None)
    done = subprocess.run([sys.executable, smoke.__file__, source], cwd=tmp_path, env=environment, capture_output=True,
                          text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "✗" not in done.stdout, "an answer that is right on the CPU is found wrong"
    early = [line for line in done.stderr.splitlines() if line.endswith(" perf_counter") and "training.py:" not in line]
    assert len(early) <= (source.stem in REHEARSALS), f"seconds are told of what the GPU has not done yet: {early}"
