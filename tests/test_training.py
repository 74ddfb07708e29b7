"""Training: it finds a known minimum, survives a kill at any moment bit for bit, and says what is wrong with a checkpoint."""

import errno
import io
import itertools
import json
import math
import os
import random
import socket
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from course_lib import files, training
from course_lib.training import train

X = torch.randn(60, 3, generator=torch.Generator().manual_seed(1))
Y = X @ torch.tensor([[1.0], [-2.0], [0.5]]) + 0.3 * torch.randn(60, 1, generator=torch.Generator().manual_seed(2))


def regression(model, x, y, generator):
    """A loss without noise: it leaves the generator alone."""
    return (model(x) - y).square().mean()


def noisy(model, x, y, generator):
    return (model(x + 0.1 * torch.randn(x.shape, generator=generator)) - y).square().mean()


def linear():
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def fit(loss=noisy, model=None, **settings):
    settings = {"steps": 30, "batch": 8, "warmup": 5, "device": "cpu", "progress": False} | settings
    return train(loss, model or linear(), [X, Y], **settings)


def load_state(path):
    """What a checkpoint holds; ValueError if it is not under its check sum."""
    return torch.load(io.BytesIO(files.read_sealed(path)))


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# ---------------------------------------------------------------------------------------------- it trains
def test_linear_regression_reaches_its_closed_form():
    trained = fit(regression, steps=800, batch=600, lr=0.1, weight_decay=0.0, ema=0.99)
    ones = torch.cat([X, torch.ones(60, 1)], 1)
    exact = torch.linalg.lstsq(ones, Y).solution[:, 0]
    found = torch.cat([trained.model.weight[0], trained.model.bias])
    assert (found - exact).abs().max() < 0.01
    assert len(trained.losses) == 800 and trained.losses[-1] < trained.losses[0] / 10


def test_the_trained_model_is_ready_to_use():
    trained = fit()
    assert not trained.model.training and not any(p.requires_grad for p in trained.model.parameters())
    assert trained.seconds > 0


def test_a_seed_repeats_a_run_and_another_seed_does_not():
    first, again, other = fit(seed=3), fit(seed=3), fit(seed=4)
    assert first.losses == again.losses and same(first.model, again.model)
    assert first.losses[0] != other.losses[0]
    assert fit(regression, seed=3).losses[0] != fit(regression, seed=4).losses[0], "the rows must depend on the seed too"


def test_every_step_draws_rows_and_noise_of_its_own():
    drawn = []

    def loss(model, x, y, generator):
        drawn.append((tuple(x.flatten().tolist()), tuple(torch.randn(8, generator=generator).tolist())))
        return (model(x) - y).square().mean()

    fit(loss, steps=50)
    rows, noise = zip(*drawn)
    assert len(set(rows)) == len(set(noise)) == 50


def test_training_leaves_the_global_generator_alone():
    model = linear()
    torch.manual_seed(7)
    expected = torch.randn(3)
    torch.manual_seed(7)
    fit(model=model)
    assert torch.equal(torch.randn(3), expected)


def test_the_average_follows_the_weights_by_its_formula():
    """average <- d average + (1 - d) weights with d = min(ema, (1 + step)/(10 + step)), starting from the first weights."""
    model, history = linear(), []

    def loss(model, x, y, generator):
        history.append(model.weight.detach().clone())  # the weights that the step before left
        return (model(x) - y).square().mean()

    trained = fit(loss, model, ema=0.6, steps=16)  # the decay meets its bound after 13 steps
    average = history[0].clone()
    for step, weight in enumerate([*history[1:], model.weight.detach()]):
        decay = min(0.6, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weight
    torch.testing.assert_close(trained.model.weight, average)
    assert not torch.allclose(trained.model.weight, model.weight)


def test_the_average_takes_over_buffers():
    model = nn.Sequential(linear(), nn.BatchNorm1d(1))
    trained = fit(regression, model)
    assert torch.equal(trained.model[1].running_mean, model[1].running_mean) and model[1].running_mean != 0


def test_the_learning_rate_warms_up_and_falls_to_zero():
    """Adam's first steps are as long as the learning rate: with warm-up 5 they grow, and the last is next to nothing."""
    weights = []

    def loss(model, x, y, generator):
        weights.append(model.weight.detach().clone())
        return model(x).sum() + 100 * model.weight.sum()  # a slope that hardly changes

    model = linear()
    fit(loss, model, weight_decay=0.0, lr=0.1)
    steps = torch.stack([*weights, model.weight.detach()]).diff(dim=0).abs().amax((1, 2))
    torch.testing.assert_close(steps[:5], 0.1 * torch.tensor([0.2, 0.4, 0.6, 0.8, 1.0]), rtol=0.01, atol=0)
    assert steps[18].item() == pytest.approx(0.1 * (1 + math.cos(math.pi * 13 / 25)) / 2, rel=0.01)
    assert bool((steps[6:].diff() < 0).all()) and steps[-1] < 0.001


# ---------------------------------------------------------------------------------------------- resume
def test_a_run_cut_in_two_is_the_run_in_one(tmp_path):
    class Cut(Exception):
        """The kill."""

    def until(step):
        def loss(model, x, y, generator):
            until.calls += 1
            if until.calls == step:
                raise Cut
            return noisy(model, x, y, generator)

        until.calls = 0
        return loss

    whole = fit(checkpoint=tmp_path / "whole.pt", save_every=4)
    for step in (10, 7, 2):
        with pytest.raises(Cut):
            fit(until(step), checkpoint=tmp_path / "cut.pt", save_every=4)
    resumed = fit(checkpoint=tmp_path / "cut.pt", save_every=4)
    assert resumed.losses == whole.losses and same(resumed.model, whole.model)
    assert until.calls == 2, "the third cut came after its first saved step was done"


def test_a_finished_run_is_not_run_again(tmp_path):
    first = fit(checkpoint=tmp_path / "state.pt")
    again = fit(lambda *_: pytest.fail("nothing is left to do"), checkpoint=tmp_path / "state.pt")
    assert same(first.model, again.model) and again.losses == first.losses
    assert again.seconds >= load_state(tmp_path / "state.pt")["seconds"] > 0


def test_a_state_is_read_on_the_cpu_where_adam_counts(tmp_path, monkeypatch):
    """Counts that were read onto a GPU would stay there, and every step would wait for one of each parameter."""
    fit(checkpoint=tmp_path / "state.pt")
    asked, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: asked.append(k["map_location"]) or load(*a, **k))
    fit(checkpoint=tmp_path / "state.pt")
    assert asked == ["cpu"]


RUN = """
import sys, time, torch
from torch import nn
from course_lib.training import train
torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(3, 16), nn.Dropout(0.2), nn.SiLU(), nn.Linear(16, 1))
x = torch.randn(60, 3, generator=torch.Generator().manual_seed(1))
def loss(model, x, generator):
    time.sleep(0.005)  # a run of seconds, most of them open to the kill
    return (model(x + 0.1 * torch.randn(x.shape, generator=generator)) - x.sum(1, keepdim=True)).square().mean()
train(loss, model, [x], steps=400, batch=8, save_every=7, device="cpu", progress=False, checkpoint=sys.argv[1])
"""


def start(root, *arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    return subprocess.Popen([sys.executable, *map(str, arguments)], env=environment, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)


def finish(process, seconds=300):
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == 0, err
    return out


def test_a_run_killed_at_random_moments_ends_bit_for_bit_like_one_never_killed(root, tmp_path):
    whole, killed = tmp_path / "whole.pt", tmp_path / "killed.pt"
    undisturbed = start(root, "-c", RUN, whole)
    moments, kills = random.SystemRandom(), 0
    for _ in range(2):
        process = start(root, "-c", RUN, killed)
        before = killed.stat().st_mtime_ns if killed.exists() else 0
        while process.poll() is None and not (killed.exists() and killed.stat().st_mtime_ns > before):
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.3))
        kills += process.poll() is None
        process.kill()
        process.communicate()
    assert kills == 2 and load_state(killed)["step"] < 400, "both kills must come in the middle of a run"
    finish(start(root, "-c", RUN, killed))
    finish(undisturbed)
    a, b = load_state(whole), load_state(killed)
    assert a["losses"] == b["losses"] and a["step"] == b["step"] == 400
    for part in ("model", "ema"):
        assert all(torch.equal(a[part][k], b[part][k]) for k in a[part])
    assert all(torch.equal(a["optimizer"]["state"][i][k], v) for i, s in b["optimizer"]["state"].items() for k, v in s.items())
    leftovers = [path.name for path in tmp_path.iterdir() if not path.name.endswith(".part")]
    assert sorted(leftovers) == ["killed.pt", "whole.pt"]


# ---------------------------------------------------------------------------------------------- checkpoints that do not fit
@pytest.mark.parametrize(("name", "value"), [("lr", 0.5), ("steps", 31), ("batch", 9), ("seed", 1), ("ema", 0.5)])
def test_a_checkpoint_of_other_settings_is_refused(tmp_path, name, value):
    fit(checkpoint=tmp_path / "state.pt")
    kept = (tmp_path / "state.pt").read_bytes()
    with pytest.raises(ValueError, match=rf"checkpoint: .*state.pt belongs to .* other settings .*'{name}': \(.*, {value}\)"):
        fit(checkpoint=tmp_path / "state.pt", **{name: value})
    assert (tmp_path / "state.pt").read_bytes() == kept


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    fit(checkpoint=tmp_path / "state.pt")
    with pytest.raises(ValueError, match=r"belongs to a run with other settings .*'parameters': \(4, 17\)"):
        fit(model=nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1), nn.Linear(1, 1, bias=False)),
            checkpoint=tmp_path / "state.pt")
    with pytest.raises(ValueError, match=r"checkpoint: .*state.pt belongs to another network; delete it or choose"):
        fit(model=nn.Sequential(linear()), checkpoint=tmp_path / "state.pt")


def test_a_checkpoint_made_from_other_things_is_refused_by_their_name(tmp_path):
    """What a result depends on besides its settings: whose run it is, its data and teachers, the release of torch."""
    fit(checkpoint=tmp_path / "state.pt", identity={"recipe": "a", "teacher": "1234"})
    with pytest.raises(ValueError, match=r"other settings .*: \{'recipe': \('a', 'b'\)\}; delete it"):
        fit(checkpoint=tmp_path / "state.pt", identity={"recipe": "b", "teacher": "1234"})
    with pytest.raises(ValueError, match=r"other settings .*: \{'teacher': \('1234', None\)\}; delete it"):
        fit(checkpoint=tmp_path / "state.pt", identity={"recipe": "a"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "__version__", "1.0.0+cpu")
        with pytest.raises(ValueError, match=r"other settings .*: \{'torch': \('\d+\.\d+\.\d+\w*', '1.0.0'\)\}; delete it"):
            fit(checkpoint=tmp_path / "state.pt", identity={"recipe": "a", "teacher": "1234"})
    fit(checkpoint=tmp_path / "state.pt", identity={"recipe": "a", "teacher": "1234"})


def cut_short(data):
    return data[:len(data) // 2]


def scrambled(data):
    return bytes(reversed(data))


def another_file(data):
    written = io.BytesIO()
    torch.save({"weights": torch.zeros(3)}, written)
    return written.getvalue()


def flipped(data, at=-200):
    """One bit of the state is another, in the middle of the weights or in what is behind them."""
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1:]


@pytest.mark.parametrize("damage", [cut_short, scrambled, another_file, flipped, lambda data: flipped(data, len(data) // 2),
                                    lambda data: b"", lambda data: b"not a checkpoint"],
                         ids=["cut short", "scrambled", "another file", "flipped bit", "flipped weight", "empty", "text"])
def test_a_damaged_checkpoint_is_named(tmp_path, damage):
    path = tmp_path / "state.pt"
    fit(checkpoint=path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"checkpoint: .*state.pt is damaged or no checkpoint; delete it to start afresh$"):
        fit(checkpoint=path)


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OSError, match=r"taken.state.pt could not be written"):
        fit(checkpoint=tmp_path / "taken" / "state.pt")


def test_a_checkpoint_is_replaced_by_a_whole_one_never_written_over(tmp_path):
    """A second name of the old file still finds it whole: at no moment were its bytes half old, half new."""
    path, second_name = tmp_path / "state.pt", tmp_path / "link.pt"
    files.atomic_write(path, lambda file: file.write(b"old"))
    os.link(path, second_name)
    files.atomic_write(path, lambda file: file.write(b"new"))
    assert (path.read_bytes(), second_name.read_bytes()) == (b"new", b"old")


class Full(io.FileIO):
    """A file on a disk with room for ten kilobytes more."""

    def write(self, content):
        if self.tell() + len(content) > 10_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(content)


def test_a_full_disk_leaves_the_last_checkpoint_intact(tmp_path, monkeypatch):
    path, saved = tmp_path / "state.pt", []

    def loss(model, x, y, generator):
        if path.exists() and not saved:  # from the second save on, the disk is full
            saved.append(path.read_bytes())
            monkeypatch.setattr(files, "open", Full, raising=False)
        return noisy(model, x, y, generator)

    def wide():  # more weights than there is room for
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 10_000), nn.Linear(10_000, 1))

    with pytest.raises(OSError, match=r"^\S*state.pt could not be written: \[Errno 28\] No space left on device$"):
        fit(loss, wide(), checkpoint=path, save_every=4)
    monkeypatch.undo()
    assert path.read_bytes() == saved[0] and [p.name for p in tmp_path.iterdir()] == ["state.pt"]
    resumed, whole = fit(model=wide(), checkpoint=path, save_every=4), fit(model=wide())
    assert resumed.losses == whole.losses and same(resumed.model, whole.model)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path, value):
    path, calls = tmp_path / "state.pt", []

    def loss(model, x, y, generator):
        calls.append(path.read_bytes() if path.exists() else b"")
        return noisy(model, x, y, generator) * (value if len(calls) == 8 else 1)

    with pytest.raises(FloatingPointError, match=rf"the loss is {value} .* at step 7; .*state.pt is intact, after 4 steps. "):
        fit(loss, checkpoint=path, save_every=4)
    assert path.read_bytes() == calls[-1] and load_state(path)["step"] == 4


class _Spoil(torch.autograd.Function):
    """The identity, whose gradient is no number."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("nan")


@pytest.mark.parametrize("bad", [7, 29], ids=["before a save", "last step"])
def test_a_gradient_that_is_not_finite_reaches_neither_the_weights_nor_a_checkpoint(tmp_path, bad):
    """The loss of that very step is finite, and of the last step no other loss follows that would tell."""
    path, calls, model = tmp_path / "state.pt", [], linear()

    def loss(model, x, y, generator):
        calls.append(path.read_bytes() if path.exists() else b"")
        return (_Spoil.apply if len(calls) == bad + 1 else torch.clone)(noisy(model, x, y, generator))

    with pytest.raises(FloatingPointError, match=rf"the loss is \d.* the norm of its gradient nan at step {bad}; .* is intact"):
        fit(loss, model, checkpoint=path, save_every=4)
    assert path.read_bytes() == calls[-1] and load_state(path)["step"] == bad // 4 * 4
    assert bool(model.weight.isfinite().all())


def test_a_step_waits_for_its_device_once(monkeypatch):
    """Loss and gradient are looked at together: on a GPU each look is a wait."""
    looks = []
    monkeypatch.setattr(torch.optim, "AdamW", lambda p, lr, **_: torch.optim.SGD(p, lr))  # Adam counts on the CPU
    for name in ("item", "tolist", "__bool__", "__float__"):
        look = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda x, look=look: looks.append(x) or look(x))
    fit(regression, steps=10, warmup=10)
    assert len([x for x in looks if x.shape == (2,)]) == 10 and len(looks) == 11, "and once for the device before the start"


# ---------------------------------------------------------------------------------------------- arguments
@pytest.mark.parametrize("settings", [{"steps": 0}, {"batch": 0}, {"steps": -1}], ids=str)
def test_no_steps_or_no_rows_are_refused(settings):
    with pytest.raises(ValueError, match="steps, batch: expected a step, and a row for each process, got"):
        fit(**settings)


@pytest.mark.parametrize("device", ["cdua", "cuda:99", "mps:9", "meta", "", 2.5], ids=str)
def test_a_device_that_is_not_here_is_named(device):
    with pytest.raises(ValueError, match=rf"^device: expected one that is here, as cpu.*, got '{device}' \(.*\)$"):
        fit(device=device)


@pytest.mark.parametrize("data", [[torch.zeros(3, 3), torch.zeros(4, 1)], [torch.zeros(0, 3), torch.zeros(0, 1)]],
                         ids=["unequal", "empty"])
def test_tensors_of_unequal_length_or_none_are_refused(data):
    with pytest.raises(ValueError, match=r"data: expected tensors of one common length, got lengths \[\d, \d\]"):
        train(regression, linear(), data, steps=1, device="cpu")


# ---------------------------------------------------------------------------------------------- several processes
PARALLEL = """
import json, os, sys, torch
from torch import nn
from course_lib.training import train
torch.set_num_threads(1)
torch.manual_seed(int(os.environ["RANK"]))  # ranks start apart; rank 0 decides
model = nn.Linear(3, 1)
x = torch.randn(60, 3, generator=torch.Generator().manual_seed(1))
noise, sizes = [], []
def loss(model, x, generator):
    noise.append(torch.randn(2, generator=generator).tolist())
    sizes.append(len(x))
    return (model(x) - x.sum(1, keepdim=True)).square().mean()
trained = train(loss, model, [x], steps=20, batch=9, warmup=5, device="cpu", progress=False,
                checkpoint=sys.argv[1] + "/state.pt")
torch.save({"raw": model.state_dict(), "average": trained.model.state_dict()}, sys.argv[1] + f"/rank{os.environ['RANK']}.pt")
with open(sys.argv[1] + f"/rank{os.environ['RANK']}.json", "w") as file:
    json.dump({"noise": noise, "sizes": sizes, "losses": trained.losses}, file)
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_two_processes_train_what_one_trains(root, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(PARALLEL)
    finish(start(root, "-m", "torch.distributed.run", "--nproc-per-node", 2, "--master-addr", "127.0.0.1",
                 "--master-port", free_port(), script, tmp_path))
    first, second = (torch.load(tmp_path / f"rank{r}.pt") for r in (0, 1))
    for part in ("raw", "average"):
        assert all(torch.equal(first[part][k], second[part][k]) for k in first[part])

    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    alone = train(lambda model, x, generator: (model(x) - x.sum(1, keepdim=True)).square().mean(), model, [X],
                  steps=20, batch=9, warmup=5, device="cpu", progress=False)
    for part, single in (("raw", model), ("average", alone.model)):
        for k, v in single.state_dict().items():
            torch.testing.assert_close(first[part][k], v, rtol=1e-5, atol=1e-6)

    logs = [json.loads((tmp_path / f"rank{r}.json").read_text()) for r in (0, 1)]
    assert logs[0]["losses"] == logs[1]["losses"]
    assert logs[0]["losses"] == pytest.approx(alone.losses, rel=1e-5), "nine rows over two ranks: five weigh more than four"
    assert set(logs[0]["sizes"]) == {5} and set(logs[1]["sizes"]) == {4}
    assert all(a != b for a, b in zip(logs[0]["noise"], logs[1]["noise"], strict=True)), "each rank needs its own noise"


# ---------------------------------------------------------------------------------------------- in so many seconds
def test_a_training_that_has_seconds_ends_in_time_with_its_learning_rate_at_the_end(monkeypatch):
    """A clock that is half a second later whenever it is read, which is once a step: 20 of a million steps are taken."""
    clock, rates, step_of = itertools.count(), [], torch.optim.AdamW.step
    monkeypatch.setattr(training.time, "perf_counter", lambda: next(clock) / 2)
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: (rates.append(self.param_groups[0]["lr"]), step_of(self)))
    trained = fit(steps=10**6, seconds=10.0, warmup=1, lr=1.0)
    assert len(trained.losses) == len(rates) == 20
    assert rates[1:] == pytest.approx([(1 + math.cos(math.pi * k / 20)) / 2 for k in range(1, 20)])


def test_a_training_that_ended_in_time_is_whole_and_goes_no_further(tmp_path):
    settings = {"steps": 10**6, "seconds": 0.3, "checkpoint": tmp_path / "state.pt"}
    first, again = fit(**settings), fit(**settings)
    assert again.losses == first.losses and 0 < len(first.losses) < 10**6 and same(first.model, again.model)


def test_a_larger_batch_is_that_many_of_the_batch():
    assert fit(regression, batch=4, larger=3).losses == fit(regression, batch=12).losses


# ---------------------------------------------------------------------------------------------- in bfloat16
@pytest.fixture
def native(monkeypatch):
    """Pretend that this processor multiplies in bfloat16 by itself, which changes no number."""
    monkeypatch.setattr(training, "has_bf16", lambda device: True)


def dtype_of(seen):
    def loss(model, x, y, generator):
        out = model(x)
        seen.add(out.dtype)
        return (out.float() - y).square().mean()

    return loss


def test_bfloat16_is_used_where_it_is_asked_for_and_native(native, monkeypatch):
    asked, not_asked, emulated = set(), set(), set()
    trained = fit(dtype_of(asked), bf16=True)
    fit(dtype_of(not_asked))
    monkeypatch.setattr(training, "has_bf16", lambda device: False)
    fit(dtype_of(emulated), bf16=True)
    assert (asked, not_asked, emulated) == ({torch.bfloat16}, {torch.float32}, {torch.float32})
    assert all(p.dtype == torch.float32 for p in trained.model.parameters())


def test_a_t4_which_only_emulates_it_is_known(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not training.has_bf16(torch.device("cuda"))


@pytest.mark.parametrize("seconds", [0, -1.0, math.nan])
def test_no_time_is_refused(seconds):
    with pytest.raises(ValueError, match="seconds: expected a positive number and one process"):
        fit(seconds=seconds)
