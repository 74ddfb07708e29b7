"""A measurement run small: its rows are recorded as they come, honest about their size, and repeatable."""

import csv
import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from course_lib import data, ledger, measure, recipes, text
from course_lib.denoiser import X0, Preconditioned, Student
from course_lib.fast_samplers import ddim, fine_grid
from course_lib.measure.costs import CostModel
from course_lib.metrics import fold
from course_lib.networks import MLP, Classifier
from course_lib.ode_samplers import heun
from course_lib.sampling import last, sample
from course_lib.schedules import CosineVP, LinearVP
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
    runs = [measure.fashion.in_batches(D, torch.zeros(5, dtype=torch.long), torch.tensor([0.9, 0.5, 0.1]),
                                    measure.rows.by_step(ancestral), seed, batch=2) for seed in (0, 0, 1)]
    (first, _), (again, _), (other, _) = runs
    assert first.x.shape == (5, 1, 28, 28) and (first.nfe, first.depth) == (2, 2)
    assert torch.equal(first.x, again.x) and not torch.equal(first.x, other.x)


def test_balanced_sets_are_disjoint_and_have_every_class_alike(generator):
    labels = torch.randint(10, (1000,), generator=generator)
    sets = measure.fashion.balanced(labels, 200)
    assert len(sets) >= 3 and len(torch.cat(sets).unique()) == 200 * len(sets)
    assert all((labels[rows].bincount(minlength=10) == 20).all() for rows in sets)


@pytest.mark.parametrize("samples", [15, 0, 1010])
def test_samples_that_cannot_be_balanced_are_refused(samples):
    with pytest.raises(ValueError, match=f"samples: expected a multiple of 10, at most 1000, got {samples}"):
        measure.fashion.balanced(torch.arange(1000) % 10, samples)


def test_only_large_samples_and_several_seeds_are_full():
    assert measure.rows.status(10_000, 3) == "full"
    assert measure.rows.status(1000, 3) == measure.rows.status(10_000, 1) == "provisional"


def test_a_folded_ring_is_one_spot_and_keeps_its_distances_from_the_middle(generator):
    target = ring()
    assert torch.allclose(fold(target.means), target.means[:1].expand(8, 2), atol=1e-12)
    x = target.sample(200, generator)
    assert torch.allclose(fold(x).norm(dim=1), x.norm(dim=1), atol=1e-12)
    assert (torch.atan2(*fold(x).T.flip(0)).abs() <= torch.pi / 8 + 1e-12).all()


@pytest.fixture
def few_solvers(tmp_path, monkeypatch):
    """`course measure solvers` on two targets and a network that is none, at two budgets; into a directory of its own."""
    monkeypatch.setattr(data, "ROOT", tmp_path)
    monkeypatch.setattr(measure.solvers, "BUDGETS", (4, 32))
    monkeypatch.setattr(measure.solvers, "NETWORK_BUDGETS", (4, 32))
    monkeypatch.setattr(measure.solvers, "TARGETS", {"ring": (ring, LinearVP(), 1),
                                                     "spiral": (measure.solvers.spiral, LinearVP(), 1)})
    tiny = ring().denoiser(CosineVP()), torch.randn(4, 2, generator=torch.Generator().manual_seed(0)), None
    monkeypatch.setattr(measure.solvers, "networks", lambda samples: {"tiny": tiny})
    return tmp_path / "data" / "solvers.csv"


def test_solvers_writes_a_table_of_errors_that_fall_with_the_evaluations(few_solvers, monkeypatch):
    monkeypatch.setattr(measure.solvers.importlib.util, "find_spec", lambda name: None)              # as where no peer is
    rows = measure.MEASUREMENTS["solvers"](samples=16)
    with open(few_solvers, newline="") as file:
        written = list(csv.DictReader(file))
    assert [(r.target, r.solver, r.grid, r.evaluations) for r in rows] == [
        (w["target"], w["solver"], w["grid"], int(w["evaluations"])) for w in written]
    assert {row.library for row in rows} == {"course"} and {row.target for row in rows} == {"ring", "spiral", "tiny"}
    assert {row.evaluations for row in rows if row.solver != "rk45"} <= {3, 4, 31, 32}
    assert rows[0].target == "ring" and all(row.microseconds for row in rows if row.solver == "ddim")
    for few, many in ((a, b) for a in rows for b in rows if (a.target, a.solver, a.grid) == (b.target, b.solver, b.grid)):
        assert many.error < few.error or many.evaluations <= few.evaluations


def test_a_target_of_solvers_ends_where_it_is_exact_and_its_error_is_a_distance():
    problem = measure.solvers.Problem("spiral", 64)
    start, end = problem.D.schedule.time_of_log_snr(-2 * torch.tensor(148.0).log()).item(), problem.exact(148.0)
    other = last(partial(sample, step=heun), problem.D, problem.x, fine_grid(problem.D.schedule, start, 1e-4, 3000)).x
    assert (other - end).abs().max() < 1e-3                                  # another solver, another form of the equation
    assert problem.error(end + torch.tensor([3.0, 4.0]), 148.0) == pytest.approx(5)
    assert problem.error(end * torch.nan, 148.0) == torch.inf
    assert problem.error(problem.exact(33.0), 33.0) == torch.inf             # it began where less than half the noise is left


def test_peers_are_found_counted_and_refused_with_reasons():
    pytest.importorskip("diffusers")
    found, refused = measure.solvers.diffusers_peers(flow=False)
    assert {"DDIMScheduler", "KDPM2DiscreteScheduler", "UniPCMultistepScheduler", "EDMEulerScheduler"} <= set(found)
    assert refused["DDPMScheduler"] == "it draws noise" and "distilled" in refused["LCMScheduler"]
    assert refused["FlowMatchEulerDiscreteScheduler"] == "it has no levels of this schedule"
    for_flow, _ = measure.solvers.diffusers_peers(flow=True)
    assert {"FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "UniPCMultistepScheduler"} <= set(for_flow)
    calls, problem = [], measure.solvers.Problem("ring", 2)

    def counted(x, t, cond=None):
        calls.append(t)
        return problem.D(x, t)

    counted.schedule = problem.D.schedule
    for peer in found.values():
        for k in (9, 20):
            calls.clear()
            _, _, evaluations = peer.run(peer.variants[0], next(iter(peer.grids)), k, counted, problem.x)
            assert evaluations == len(calls) <= k


def test_the_standings_take_the_best_with_at_most_so_many_evaluations():
    row = partial(measure.solvers.SolverRow, microseconds=None, device="", target="ring")
    rows = [row("course", "few_steps", "its own", 8, 0.2), row("course", "ddim", "optimised", 5, 0.01),
            row("diffusers", "Heun", "karras", 7, 0.4), row("azula", "DDIM", "VP", 8, 0.5), row("azula", "DDIM", "VE", 9, 0.1)]
    found = measure.solvers.standings(rows)
    assert {k: {library: r.error for library, r in best.items()} for (_, k), best in found.items() if k < 20} == {
        8: {"course": 0.2, "diffusers": 0.4, "azula": 0.5}, 10: {"course": 0.2, "diffusers": 0.4, "azula": 0.1}}
    assert measure.solvers.ratio(found["ring", 8]) == 0.5 and measure.solvers.ratio(found["ring", 10]) == 2
    assert set(measure.solvers.standings(rows, fixed=True)["ring", 10]) == {"course", "azula"}
    assert "0.50" in str(measure.solvers.standings_table(rows))


LIMITS = {"ring": dict.fromkeys((5, 8, 10, 20, 50), 0.4), "spiral": dict.fromkeys((5, 8, 10, 20, 50), 0.6),
          "mixture64": dict.fromkeys((5, 8, 10, 20, 50), 0.6),
          "mixture64_flow": {5: 0.9, 8: 0.9, 10: 0.9, 20: 0.6, 50: 0.6},
          "clothes": dict.fromkeys((5, 8, 10, 20), 1), "emoji": dict.fromkeys((5, 8, 10, 20), 1)}


def test_the_table_that_is_shipped_has_the_course_ahead(root):
    """Our best error over that of the best of the others, none of them fitted, at every number of evaluations."""
    rows = ledger.read_table(root / "data" / "solvers.csv", measure.solvers.SolverRow)
    found = {key: measure.solvers.ratio(best) for key, best in measure.solvers.standings(rows).items()}
    assert set(found) == {(target, k) for target, limits in LIMITS.items() for k in limits}
    assert {key: value for key, value in found.items() if value > LIMITS[key[0]][key[1]]} == {}


def test_the_default_is_never_far_from_our_best(root):
    """few_steps, by a rule, against the best of all our solvers and grids, at every number of evaluations."""
    rows = ledger.read_table(root / "data" / "solvers.csv", measure.solvers.SolverRow)
    best, default = (measure.solvers.standings(rows, fixed=fixed) for fixed in (False, True))
    far = {key: default[key]["course"].error / found["course"].error for key, found in best.items()}
    assert {key: value for key, value in far.items() if value > 1.5} == {}


def test_parallel_writes_a_table_in_which_every_method_ends_where_the_sequential_sampler_does(small_course, monkeypatch):
    monkeypatch.setattr(measure.parallel, "TOLERANCES", (0.01,))
    monkeypatch.setattr(measure.parallel, "STEPS_2D", {"ancestral": (ancestral, 12), "ddim": (ddim, 8)})
    monkeypatch.setattr(measure.parallel, "ring_network", lambda device: ring().denoiser(CosineVP()))
    rows = measure.MEASUREMENTS["parallel"](device="cpu", samples=2, seeds=2)
    with open(small_course.with_name("parallel.csv"), newline="") as file:
        assert [(r["model"], r["method"]) for r in csv.DictReader(file)] == [(r.model, r.method) for r in rows]
    assert {(r.model, r.batch) for r in rows} == {("exact", 1), ("network", 1), ("network", 2), ("fashion_teacher", 1)}
    assert all(r.distance < 0.2 and r.rounds > 0 and r.seeds == 2 for r in rows)


def test_same_images_are_the_same_in_sequence_and_in_parallel(small_course, monkeypatch):
    monkeypatch.setattr(measure.fashion, "uniform", lambda n, schedule: torch.linspace(0.9, 0.1, 13))
    with torch.no_grad():
        rows = measure.MEASUREMENTS["same_images"](device="cpu", samples=100, seeds=1)
    distance = {row.method: row.value for row in rows if row.metric == "frechet"}
    depth = {row.method: (row.depth, row.nfe) for row in rows}
    assert distance["picard"] == pytest.approx(distance["ancestral"], rel=1e-4)
    assert depth["ancestral"] == (12, 12) and depth["picard"][0] < 12 <= depth["picard"][1]


def test_devices_writes_what_a_cost_model_needs(small_course, monkeypatch):
    monkeypatch.setattr(measure.parallel, "ring_network", lambda device: Preconditioned(MLP(), CosineVP(), X0()))
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


# ---------------------------------------------------------------------------------------------- what it will cost
def test_a_cost_model_is_fitted_to_straight_lines_and_never_negative():
    rows = torch.tensor([1, 10, 100, 1000])
    fitted = CostModel.fit(rows, 2e-3 + 1e-5 * rows)
    assert (fitted.latency, fitted.per_row) == pytest.approx((2e-3, 1e-5))
    flat, steep = CostModel.fit(rows, torch.tensor([2.0, 2.0, 2.0, 1.9])), CostModel.fit(rows, 1.0 * rows**1.1)
    assert flat.per_row == 0 and flat.latency == pytest.approx(2, rel=0.05)
    assert steep.latency == 0 and 1 < steep.per_row < 2


def test_a_cost_model_knows_its_limits():
    """A device with nothing but latency gains steps/rounds; a busy one loses by evaluations/steps; messages cost."""
    idle, busy = CostModel(1e-3, 0.0), CostModel(0.0, 1e-3)
    assert (idle.free_rows, busy.free_rows, CostModel(1e-3, 1e-4).free_rows) == (math.inf, 0.0, pytest.approx(10))
    assert idle.speed_up(1000, 20, 5000) == pytest.approx(50)
    assert busy.speed_up(1000, 20, 5000) == pytest.approx(0.2)
    assert busy.speed_up(1000, 20, 5000, devices=64) == pytest.approx(12.8)
    talking = CostModel(0.0, 1e-3, exchange=1e-2, exchange_per_row=1e-4)
    assert talking.parallel(20, 5000, devices=10) == pytest.approx(0.5 + 0.2 + 0.5)
    assert talking.parallel(20, 5000) == busy.parallel(20, 5000)


@pytest.mark.parametrize(("rows", "seconds"), [([], []), ([1.0], [1.0]), ([1.0, 2.0], [1.0]), ([1.0, 2.0], [0.0, 1.0]),
                                               ([1.0, float("nan")], [1.0, 1.0])], ids=str)
def test_a_line_is_fitted_to_measurements(rows, seconds):
    with pytest.raises(ValueError, match="rows, seconds: expected two or more positive numbers of each, got"):
        CostModel.fit(torch.tensor(rows), torch.tensor(seconds))
    with pytest.raises(ValueError, match="devices: expected a whole number, at least 1, got 0"):
        CostModel(1.0, 1.0).parallel(1, 1, devices=0)


# ---------------------------------------------------------------------------------------------- emoji
@pytest.fixture
def small_emoji(tmp_path, monkeypatch):
    """Untrained models of emoji, six pictures of the first five emoji, and a ledger of its own."""
    ledger_file = tmp_path / "ledger" / "data" / "ledger.csv"
    models = {name: recipes.known(name).build() for name in ("emoji_autoencoder", "emoji_latent_teacher")}
    images = 2 * torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0)) - 1
    pictures = data.Emoji(images, torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([0, 1, 2, 3, 4, 4]))
    ledger_file.parent.mkdir(parents=True)
    known, words, weights = data.emoji_captions(), data.words(), data.colour_features()
    monkeypatch.setattr(data, "emoji_captions", lambda: known)
    monkeypatch.setattr(data, "words", lambda: words)
    monkeypatch.setattr(data, "colour_features", lambda: weights)
    monkeypatch.setattr(data, "emoji", lambda split: pictures)
    monkeypatch.setattr(data, "ROOT", ledger_file.parent.parent)
    monkeypatch.setattr(recipes, "load", lambda name, device="cpu": models[name].eval())
    monkeypatch.setattr(measure.emoji, "_training_steps", lambda device: ())
    monkeypatch.setattr(measure.emoji, "STEPS", 2)
    monkeypatch.setattr(measure.emoji, "SYNONYMS", {"sofa": "couch and lamp"})
    return ledger_file


def test_latent_records_round_trip_retrieval_and_copies_with_their_floors(small_emoji):
    rows = measure.MEASUREMENTS["latent"](device="cpu", samples=4, seeds=2)
    assert len(ledger.read(small_emoji)) == len(rows)
    found = {(row.method, row.metric) for row in rows}
    assert found == {("emoji_autoencoder", metric) for metric in ("psnr", "psnr_drawn", "psnr_mean", "latent_std_off")} | {
        (f"{what}_{asked}", metric) for what in ("text_to_image", "sketch") for asked in ("seen", "pairs", "synonyms")
        for metric in ("rank_1", "rank_10", "style")} | {
        (f"{what}_seen", metric) for what in ("text_to_image", "sketch") for metric in ("kernel_distance", "near_copies")}
    by = {(row.method, row.metric): row for row in rows}
    assert by["text_to_image_seen", "rank_1"].floor == 1 / 5, "five names: by chance one in five is right"
    assert by["text_to_image_seen", "rank_10"].value == 1, "there are fewer than ten names"
    assert all(0 <= row.value <= 1 for row in rows if row.metric.startswith("rank"))


def test_a_style_is_that_of_the_nearest_picture_of_the_right_name_alone():
    real, names = torch.tensor([[0.0], [1.0], [2.0], [5.0]]), torch.tensor([7, 7, 3, 3])
    drawn, wanted = torch.tensor([[0.9], [0.9], [0.9], [4.0]]), torch.tensor([7, 7, 3, 3])
    right = measure.emoji.in_style(drawn, wanted, torch.tensor([1, 0, 2, 2]), real, names, torch.tensor([0, 1, 2, 3]))
    assert right.tolist() == [True, False, True, False]


def test_a_rank_counts_the_names_with_a_nearer_picture():
    real, names = torch.tensor([[0.0], [1.0], [2.0], [5.0], [0.4]]), torch.tensor([7, 3, 3, 1, 7])
    drawn = torch.tensor([[0.1], [1.6], [4.9], [0.75]])
    assert measure.emoji.ranks(drawn, torch.tensor([7, 7, 7, 3]), real, names).tolist() == [0, 1, 2, 0]


def test_synonyms_are_words_that_no_caption_says_of_emoji_that_are_trained_on():
    said = set(text.split(" ".join(" ".join([caption.name, *caption.keywords]) for caption in data.emoji_captions())))
    held_out = {caption.name: caption.held_out for caption in data.emoji_captions()}
    for word, name in measure.emoji.SYNONYMS.items():
        assert word not in said and word in data.words().words and held_out[name] != "all"


def test_what_a_training_step_holds_is_counted_once():
    class Linear(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Linear(1000, 1000, bias=False), torch.nn.Linear(1000, 1000, bias=False)

        def forward(self, x, c_noise, cond=None):
            return self.b(self.a(x).tanh())

    model = Preconditioned(Linear(), CosineVP(), X0())
    seconds, held = measure.emoji.training_step_cost(model, (64, 1000), steps=2)
    weights, row = 4 * 2 * 1000 * 1000 * 4 / 2**20, 64 * 1000 * 4 / 2**20
    assert seconds > 0
    assert weights + 2 * row <= held <= weights + 8 * row, "four times the weights, and a few states of the batch"


def test_the_race_gives_both_spaces_the_seconds_that_were_asked_for(small_emoji, monkeypatch):
    monkeypatch.setattr(measure.latents, "BUDGETS", {"latent_diffusion": (1, 2), "pixel_diffusion": (3,)})
    monkeypatch.setattr(measure.latents, "training_step_cost", lambda model, shape: (1.0, 0.0))
    monkeypatch.setattr(measure.latents, "TRAINING", measure.latents.TRAINING | {"batch": 2})
    monkeypatch.setattr(measure.emoji, "STEPS", 1)
    monkeypatch.setattr(recipes, "emoji_captions", lambda pictures: torch.full((6, 2, 12), -1))
    monkeypatch.setattr(recipes, "emoji_latents", lambda split: torch.randn(6, 4, 16, 16))
    steps, train = [], measure.latents.train
    monkeypatch.setattr(measure.latents, "train", lambda *a, **k: steps.append(k["steps"]) or train(*a, **k | {"batch": 2}))
    rows = measure.MEASUREMENTS["latent_race"](device="cpu", samples=3, seeds=2)
    assert [row.method for row in rows] == ["latent_diffusion, 1 s", "latent_diffusion, 2 s", "pixel_diffusion, 3 s"]
    assert steps == [1, 2, 3] and len(ledger.read(small_emoji)) == 3, "no row may take another's place"
    assert all(row.train_seconds > 0 and row.spread is not None for row in rows)


def test_the_sweep_measures_reconstruction_and_both_priors(small_emoji, monkeypatch):
    monkeypatch.setattr(measure.latents, "SWEEP", [(2, 0.1)])
    monkeypatch.setattr(measure.latents, "TRAINING", measure.latents.TRAINING | {"steps": 2, "batch": 2})
    rows = measure.MEASUREMENTS["latent_sweep"](device="cpu", samples=4, seeds=1)
    name = "autoencoder, 2 channels, beta 0.1"
    assert [(row.method, row.metric) for row in rows] == [
        (name, "psnr"), (f"{name}, prior N(0, I)", "kernel_distance"), (f"{name}, diffusion prior", "kernel_distance")]


# ---------------------------------------------------------------------------------------------- the tables as they ship
def test_every_table_that_ships_is_read_in_full(root):
    assert [name for name, sound, _ in measure.verify_all() if sound] == list(measure.TABLES)


def test_a_table_that_is_damaged_or_gone_is_named(small_course):
    for name in measure.TABLES:
        small_course.with_name(name).write_text("library,solver\n")
    small_course.unlink()
    (_, gone, why), (_, damaged, how), *_ = measure.verify_all()
    assert not gone and "No such file" in why and "`git checkout -- data/ledger.csv`" in why
    assert not damaged and "solvers.csv, line 1: expected the columns library,solver,grid" in how


def test_steps_of_training_and_evaluations_are_timed_by_batch_and_precision(tmp_path, monkeypatch):
    images, labels = data.fashion_mnist("test")
    monkeypatch.setattr(data, "ROOT", tmp_path)
    monkeypatch.setattr(data, "fashion_mnist", lambda split: (images[:20], labels[:20]))
    monkeypatch.setattr(recipes, "load", lambda name, device: recipes.known(name).build().eval())
    monkeypatch.setattr(measure.steps, "has_bf16", lambda device: True)
    rows = measure.MEASUREMENTS["steps"](device="cpu", samples=8)
    assert [(row.batch, row.precision, row.what) for row in rows] == [
        (batch, precision, what) for batch in (1, 8) for precision in ("float32", "bfloat16")
        for what in ("training", "evaluation")]
    assert all(row.seconds > 0 and row.memory_mib is None for row in rows if row.what == "evaluation")
    kept = ledger.read_table(tmp_path / "data" / "steps.csv", measure.steps.StepRow)
    assert [replace(row, seconds=0) for row in kept] == [replace(row, seconds=0) for row in rows]


def test_where_there_is_no_cuda_graph_it_is_said_why(capsys):
    assert measure.steps.captured(lambda: None) is None or torch.cuda.is_available()
    assert "no CUDA graph: " in capsys.readouterr().out or torch.cuda.is_available()
