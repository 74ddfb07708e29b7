"""A measurement run small: its rows are recorded as they come, honest about their size, and repeatable."""

import csv

import pytest
import torch

from course_lib import data, ledger, recipes
from course_lib.classroom import measure
from course_lib.classroom.measure import parallel_runs, quality, solver_errors
from course_lib.denoiser import X0, Preconditioned, Student
from course_lib.fast_samplers import ddim
from course_lib.metrics import fold
from course_lib.networks import MLP, Classifier
from course_lib.schedules import CosineVP
from course_lib.sde_samplers import ancestral
from course_lib.targets import ring


class Grey(torch.nn.Module):
    """The dullest network: always predicts the same grey picture, whatever it is told."""

    def forward(self, x, c_noise, cond=None, numbers=None):
        return torch.full_like(x, -0.4)


@pytest.fixture
def small_course(tmp_path, monkeypatch):
    """Untrained models, 300 real pictures, and a ledger of its own."""
    (tmp_path / "data").mkdir()
    images, labels = data.fashion_mnist("test")
    models = {"fashion_teacher": Preconditioned(Grey(), CosineVP(), X0()), "fashion_classifier": Classifier()}
    models["fashion_guided_student"] = models["fashion_teacher"]
    models |= {name: Student(Grey(), CosineVP(), X0()) for name in
               ("fashion_consistency", *(f"fashion_progressive_{n}" for n in (8, 4, 2, 1)))}
    monkeypatch.setattr(data, "ROOT", tmp_path)
    monkeypatch.setattr(data, "fashion_mnist", lambda split: (images[:300], labels[:300]))
    monkeypatch.setattr(recipes, "load", lambda name, device="cpu": models[name].eval())
    return tmp_path / "data" / "ledger.csv"


def test_baseline_records_distance_and_agreement_with_their_floors(small_course):
    with torch.no_grad():
        rows = measure.MEASUREMENTS["baseline"](device="cpu", samples=100, seeds=1)
    assert ledger.read(small_course) == ledger.read(small_course) != []
    assert {row.nfe for row in rows} == {30, 100, 1000} and {row.metric for row in rows} == {"frechet", "class_agreement"}
    assert all(row.status == "provisional" and row.spread is None for row in rows)
    assert all(row.value > row.floor for row in rows if row.metric == "frechet")        # one grey picture is not clothes


def test_few_steps_records_every_solver_at_both_budgets(small_course):
    with torch.no_grad():
        rows = measure.MEASUREMENTS["few_steps"](device="cpu", samples=100, seeds=2)
    assert {(row.method, row.nfe) for row in rows} == {(name, n) for n in (10, 30) for name in
                                                       ("dpm_solver_pp_sde", "dpm_solver_pp_2", "ancestral_to_zero")}
    assert all(row.spread is not None and row.seeds == 2 for row in rows)


def test_guidance_costs_the_teacher_twice_what_it_costs_the_student(small_course):
    with torch.no_grad():
        rows = measure.MEASUREMENTS["guidance"](device="cpu", samples=100, seeds=1)
    costs = {(row.method, row.nfe, row.depth, row.weights) for row in rows}
    assert costs == {("guided_teacher", 32, 16, "fashion_teacher"), ("guided_student", 16, 16, "fashion_guided_student")}
    assert {row.guidance for row in rows if row.method == "guided_student"} == {0.0, 0.25, 0.5, 1.0, 2.0}


def test_distillation_records_every_student_beside_ddim_at_its_count(small_course):
    with torch.no_grad():
        rows = measure.MEASUREMENTS["distillation"](device="cpu", samples=100, seeds=1)
    counts = {(row.method, row.nfe) for row in rows}
    assert counts == {(name, n) for name in ("progressive", "guided_student_ddim") for n in (8, 4, 2, 1)} | {
        ("consistency", n) for n in (4, 2, 1)} | {("guided_student", 30)}
    assert {row.weights for row in rows if (row.method, row.nfe) == ("progressive", 4)} == {"fashion_progressive_4"}


def test_the_same_seed_gives_the_same_pictures():
    D = Preconditioned(Grey(), CosineVP(), X0())
    runs = [quality.in_batches(D, torch.zeros(5, dtype=torch.long), torch.tensor([0.9, 0.5, 0.1]),
                                    quality.by_step(ancestral), seed, batch=2) for seed in (0, 0, 1)]
    (first, _), (again, _), (other, _) = runs
    assert first.x.shape == (5, 1, 28, 28) and (first.nfe, first.depth) == (2, 2)
    assert torch.equal(first.x, again.x) and not torch.equal(first.x, other.x)


def test_balanced_sets_are_disjoint_and_have_every_class_alike(generator):
    labels = torch.randint(10, (1000,), generator=generator)
    sets = quality.balanced(labels, 200)
    assert len(sets) >= 3 and len(torch.cat(sets).unique()) == 200 * len(sets)
    assert all((labels[rows].bincount(minlength=10) == 20).all() for rows in sets)


@pytest.mark.parametrize("samples", [15, 0, 1010])
def test_samples_that_cannot_be_balanced_are_refused(samples):
    with pytest.raises(ValueError, match=f"samples: expected a multiple of 10, at most 1000, got {samples}"):
        quality.balanced(torch.arange(1000) % 10, samples)


def test_only_large_samples_and_several_seeds_are_full():
    assert quality.status(10_000, 3) == "full"
    assert quality.status(1000, 3) == quality.status(10_000, 1) == "provisional"


def test_a_folded_ring_is_one_spot_and_keeps_its_distances_from_the_middle(generator):
    target = ring()
    assert torch.allclose(fold(target.means), target.means[:1].expand(8, 2), atol=1e-12)
    x = target.sample(200, generator)
    assert torch.allclose(fold(x).norm(dim=1), x.norm(dim=1), atol=1e-12)
    assert (torch.atan2(*fold(x).T.flip(0)).abs() <= torch.pi / 8 + 1e-12).all()


def test_solvers_writes_a_table_of_errors_that_fall_with_the_evaluations(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "ROOT", tmp_path)
    monkeypatch.setattr(solver_errors, "BUDGETS", (4, 32))
    monkeypatch.setattr(solver_errors.importlib.util, "find_spec", lambda name: None)              # as where diffusers is not
    rows = measure.MEASUREMENTS["solvers"](samples=16)
    with open(tmp_path / "data" / "solvers.csv", newline="") as file:
        written = list(csv.DictReader(file))
    assert [(r.solver, r.grid, r.evaluations) for r in rows] == [
        (w["solver"], w["grid"], int(w["evaluations"])) for w in written]
    assert {row.evaluations for row in rows} == {4, 32} and {row.library for row in rows} == {"course"}
    for few, many in ((a, b) for a in rows for b in rows if (a.solver, a.grid) == (b.solver, b.grid)):
        assert many.error < few.error or many.evaluations <= few.evaluations


def test_the_table_that_is_shipped_has_the_course_ahead(root):
    """At every number of evaluations our best grid ends nearer to the truth than half the best error of diffusers."""
    with open(root / "data" / "solvers.csv", newline="") as file:
        rows = list(csv.DictReader(file))

    def best(library, k):
        return min(float(r["error"]) for r in rows if r["library"] == library and int(r["evaluations"]) <= k)

    for k in (5, 10, 20, 50):
        assert best("course", k) < best("diffusers", k) / 2


def test_parallel_writes_a_table_in_which_every_method_ends_where_the_sequential_sampler_does(small_course, monkeypatch):
    monkeypatch.setattr(parallel_runs, "TOLERANCES", (0.01,))
    monkeypatch.setattr(parallel_runs, "STEPS_2D", {"ancestral": (ancestral, 12), "ddim": (ddim, 8)})
    monkeypatch.setattr(parallel_runs, "ring_network", lambda device: ring().denoiser(CosineVP()))
    rows = measure.MEASUREMENTS["parallel"](device="cpu", samples=2, seeds=2)
    with open(small_course.with_name("parallel.csv"), newline="") as file:
        assert [(r["model"], r["method"]) for r in csv.DictReader(file)] == [(r.model, r.method) for r in rows]
    assert {(r.model, r.batch) for r in rows} == {("exact", 1), ("network", 1), ("network", 2), ("fashion_teacher", 1)}
    assert all(r.distance < 0.2 and r.rounds > 0 and r.seeds == 2 for r in rows)


def test_same_images_are_the_same_in_sequence_and_in_parallel(small_course, monkeypatch):
    monkeypatch.setattr(quality, "uniform", lambda n, schedule: torch.linspace(0.9, 0.1, 13))
    with torch.no_grad():
        rows = measure.MEASUREMENTS["same_images"](device="cpu", samples=100, seeds=1)
    distance = {row.method: row.value for row in rows if row.metric == "frechet"}
    depth = {row.method: (row.depth, row.nfe) for row in rows}
    assert distance["picard"] == pytest.approx(distance["ancestral"], rel=1e-4)
    assert depth["ancestral"] == (12, 12) and depth["picard"][0] < 12 <= depth["picard"][1]


def test_devices_writes_what_a_cost_model_needs(small_course, monkeypatch):
    monkeypatch.setattr(parallel_runs, "ring_network", lambda device: Preconditioned(MLP(), CosineVP(), X0()))
    rows = measure.MEASUREMENTS["devices"](device="cpu", samples=3, steps=12)
    with open(small_course.with_name("devices.csv"), newline="") as file:
        assert [(r["model"], r["what"], r["devices"]) for r in csv.DictReader(file)] == [
            (r.model, r.what, str(r.devices)) for r in rows]
    assert all(row.seconds > 0 for row in rows)
    for model, batches in (("network", {1, 3}), ("fashion_teacher", {1})):
        runs = {(r.devices, r.batch): (r.rounds, r.evaluations) for r in rows if (r.model, r.what) == (model, "picard")}
        assert set(runs) == {(world, batch) for world in (1, 2) for batch in batches}
        assert all(runs[1, batch] == runs[2, batch] for batch in batches)                # the same sweeps, on one or on two
        assert {r.what for r in rows if r.model == model} == {"evaluation", "exchange", "sequential", "picard"}
