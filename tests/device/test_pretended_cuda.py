"""The pretended device itself: it refuses what CUDA refuses, keeps what CUDA keeps, and counts what CUDA waits for."""

import copy
import gc
import io
import subprocess
import sys
import threading
import time

import matplotlib.pyplot as plt
import numpy as np
import pretended_cuda as module
import pytest
import torch
from pretended_cuda import CUDA, on_cuda, pretended_cuda
from torch import nn
from torch.func import hessian, jacrev, jvp, vmap


@pytest.fixture
def log():
    with pretended_cuda() as log:
        yield log


def network():
    return nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 1))


def test_outside_nothing_is_pretended():
    with pretended_cuda():
        assert torch.cuda.is_available() and torch.cuda.device_count() == 1
        there = torch.ones(3, device="cuda")
    assert not torch.cuda.is_available() and there.device.type == "cpu" and torch.equal(there, torch.ones(3))


MAKERS = {
    "randn": lambda: torch.randn(3, device="cuda"),
    "generated": lambda: torch.randn(3, generator=torch.Generator("cuda"), device=CUDA),
    "tensor": lambda: torch.tensor([1.0, 2.0], device="cuda"),
    "as_tensor": lambda: torch.as_tensor(torch.ones(2), device="cuda"),
    "arange": lambda: torch.arange(3, device="cuda"), "eye": lambda: torch.eye(3, device="cuda"),
    "zeros_like": lambda: torch.zeros_like(torch.ones(2), device="cuda"), "to": lambda: torch.ones(2).to("cuda", torch.float64),
    "to one": lambda: torch.ones(2).to(torch.ones(1, device="cuda")), "cuda": lambda: torch.ones(2).cuda(),
    "deepcopy": lambda: copy.deepcopy(torch.ones(2, device="cuda")), "module": lambda: network().to("cuda")[0].weight,
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_what_is_made_there_is_there(make, log):
    x = make()
    assert x.device == CUDA and x.is_cuda and not x.is_cpu and x.get_device() == 0 and on_cuda(x)


OPERATIONS = {
    "with a number": lambda x: 2 * x, "with a CPU scalar": lambda x: x * torch.tensor(2.0), "view": lambda x: x[0].flip(0),
    "sum": torch.sum, "index": lambda x: x[torch.tensor([0, 2])], "like": torch.zeros_like, "new": lambda x: x.new_zeros(3),
    "double": torch.Tensor.double, "cat": lambda x: torch.cat([x, x]), "einsum": lambda x: torch.einsum("ij,kj->ik", x, x),
    "svd": lambda x: torch.linalg.svd(x)[1], "quantile": lambda x: torch.quantile(x, 0.5), "cdist": lambda x: torch.cdist(x, x),
    "vmap": vmap(lambda x: 2 * x), "jacrev": jacrev(lambda x: (x**3).sum()), "hessian": hessian(lambda x: (x**3).sum()),
    "jvp": lambda x: jvp(lambda x: x * x.to(x.device), (x,), (x,))[1],
    "set": lambda x: x.index_put_((torch.tensor([0]),), 2 * x[:1]),
    "from the CPU": lambda x: x.copy_(torch.ones(3, 4)), "mean of a network": lambda x: network().to("cuda")(x).mean(),
}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_what_is_made_of_tensors_there_is_there(operation, log):
    assert operation(torch.randn(3, 4, device="cuda")).device == CUDA


@pytest.mark.parametrize("back", [torch.Tensor.cpu, lambda x: x.to("cpu"), lambda x: x.to(torch.ones(1)),
                                  lambda x: torch.zeros_like(x, device="cpu"), lambda x: jvp(lambda x: x.cpu(), (x,), (x,))[1],
                                  lambda x: torch.ones(3, 4).copy_(x)], ids=["cpu", "to", "to one", "like", "jvp", "copy_"])
def test_what_comes_back_is_on_the_cpu(back, log):
    x = back(torch.randn(3, 4, device="cuda"))
    assert x.device.type == "cpu" and x.is_cpu
    x.numpy()


MIXES = {
    "sum": lambda x, y: x + y, "product": lambda x, y: y @ x.T, "with a scalar there": lambda x, y: y * x.sum(),
    "index there": lambda x, y: y[torch.tensor([0], device="cuda")],
    "index_select": lambda x, y: x.index_select(0, torch.tensor([0])),
    "where": lambda x, y: torch.where(y > 0, x, 0.0), "stack": lambda x, y: torch.stack([x.sum(), y.sum()]),
    "set": lambda x, y: x.index_put_((torch.tensor([0, 1]),), y[:2]), "in place": lambda x, y: torch.tensor(1.0).add_(x.sum()),
    "equal": torch.equal, "network": lambda x, y: network().to("cuda")(y), "jvp": lambda x, y: jvp(lambda x: x * y, (x,), (x,)),
    "expanded": lambda x, y: y + x[:1, :1].expand(3, 4),
}


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_tensors_of_two_devices_do_not_mix(mix, log):
    with pytest.raises(RuntimeError, match="same device"):
        mix(torch.randn(3, 4, device="cuda"), torch.randn(3, 4))


def test_a_number_there_indexes_what_is_here(log):
    assert torch.ones(3, 4)[torch.tensor(1, device="cuda")].shape == (4,)


def test_whole_numbers_are_not_multiplied(log):
    i = torch.ones(2, 2, dtype=torch.long, device="cuda")
    with pytest.raises(RuntimeError, match="not implemented"):
        i @ i


@pytest.mark.parametrize("show", [torch.Tensor.numpy, np.asarray, plt.plot, lambda x: plt.gca().imshow(x)],
                         ids=["numpy", "asarray", "plot", "imshow"])
def test_numpy_and_matplotlib_take_only_what_is_here(show, log):
    with pytest.raises(TypeError, match="numpy"):
        show(torch.ones(3, 4, device="cuda"))
    plt.close("all")


DRAWS = {"randn": lambda g, d: torch.randn(3, generator=g, device=d),
         "normal_": lambda g, d: torch.ones(3, device=d).normal_(generator=g),
         "bernoulli": lambda g, d: torch.bernoulli(torch.ones(3, device=d), generator=g),
         "multinomial": lambda g, d: torch.multinomial(torch.ones(3, device=d), 1, generator=g)}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_generator_draws_on_its_own_device_alone(draw, log):
    for own, other in (("cpu", "cuda"), ("cuda", "cpu")):
        assert draw(torch.Generator(own), own).device.type == own
        with pytest.raises(RuntimeError, match=f"Expected a '{other}' device type for generator but found '{own}'"):
            draw(torch.Generator(own), other)


def test_draws_there_repeat_themselves_and_are_others_than_here_unless_alike():
    def draws(device):
        torch.manual_seed(0)
        own = torch.randn(3, generator=torch.Generator(device).manual_seed(0), device=device)
        return torch.cat([own, torch.randn(3, device=device)]).cpu()

    for alike in (False, True):
        with pretended_cuda(alike):
            assert torch.equal(draws("cuda"), draws("cuda")) and torch.equal(draws("cuda"), draws("cpu")) is alike


def test_forked_draws_there_leave_the_others_alone(log):
    torch.manual_seed(0)
    expected = torch.randn(2, device="cuda")
    torch.manual_seed(0)
    with torch.random.fork_rng([torch.device("cuda")]):
        torch.randn(2, device="cuda")
    assert torch.equal(torch.randn(2, device="cuda"), expected)


def test_gradients_are_where_their_weights_are(log):
    x, weight = torch.randn(3, 4, device="cuda"), torch.ones(3, 4, requires_grad=True)
    (weight.to("cuda") * x).sum().backward()
    assert weight.grad.device.type == "cpu"
    logits, data = torch.zeros(5, requires_grad=True), torch.randn(5, 5, device="cuda")
    grid = torch.cat([torch.ones(1), logits.softmax(0).cumsum(0)[:-1]])          # a graph on both, with views
    end = sum((data[i] * grid[i].to("cuda")).sum() for i in range(5)) + (grid[1:] - grid[:-1]).sum().to(data)
    assert torch.autograd.grad(end, [logits])[0].device.type == "cpu"


def test_a_training_goes_on_from_what_was_saved_there(log):
    model = network().to("cuda")
    optimizer = torch.optim.AdamW(model.parameters())

    def step():
        model(torch.randn(3, 4, device="cuda")).sum().backward()
        assert all(p.grad.is_cuda for p in model.parameters())
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    step()
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, map_location="cuda", weights_only=True)
    assert state["model"]["0.weight"].is_cuda
    optimizer.load_state_dict(state["optimizer"])
    step()


def test_autocast_is_that_of_cuda(log):
    model, x = network().to("cuda"), torch.randn(3, 4, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        y = model(x)
        assert y.dtype == torch.bfloat16 and y.is_cuda
        assert y.exp().dtype == nn.functional.mse_loss(y, y).dtype == torch.float32
        with torch.autocast("cuda", enabled=False):
            assert model(x).dtype == torch.float32


@pytest.mark.parametrize(("alike", "allowed", "rounded"), [(False, True, True), (False, False, False), (True, True, False)])
def test_convolutions_are_rounded_where_that_is_allowed(alike, allowed, rounded):
    torch.manual_seed(0)
    layer, x = nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8)
    expected = layer(x).detach()
    with pretended_cuda(alike), torch.backends.cudnn.flags(allow_tf32=allowed):
        there = copy.deepcopy(layer).to("cuda", memory_format=torch.channels_last)
        assert there.weight.is_contiguous(memory_format=torch.channels_last)
        error = (there(x.to("cuda")).cpu() - expected).abs().max().item()
    assert (error > 1e-5) is rounded and error < 1e-2


def test_other_threads_see_it_too(log):
    x, seen = torch.ones(3, device="cuda"), []
    thread = threading.Thread(target=lambda: seen.append((2 * x).is_cuda))
    thread.start()
    thread.join()
    assert seen == [True]


COUNTED = {  # what is done with x there and y here: waits, copies to the GPU
    "item": (lambda x, y: x.sum().item(), 1, 0), "bool": (lambda x, y: bool(x.sum() > 0), 1, 0),
    "tolist": (lambda x, y: x.tolist(), 1, 0),
    "cpu": (lambda x, y: x.cpu(), 1, 0), "mask": (lambda x, y: x[x > 0], 1, 0), "nonzero": (lambda x, y: x.nonzero(), 1, 0),
    "solve": (lambda x, y: torch.linalg.solve(x.T @ x + torch.eye(4, device="cuda"), x.T), 1, 0),
    "move": (lambda x, y: y.to(x), 0, 1), "tensor": (lambda x, y: torch.tensor([1.0], device="cuda"), 0, 1),
    "indices": (lambda x, y: x[torch.tensor([0])], 0, 1), "nothing": (lambda x, y: (x @ x.T)[0].sum() * 2, 0, 0),
    "filled": (lambda x, y: x.masked_fill_(x > 0, 1.0), 0, 0), "set": (lambda x, y: x.index_put_((x > 0,), x.sum()), 0, 0),
}


@pytest.mark.parametrize(("use", "waits", "copies"), COUNTED.values(), ids=COUNTED)
def test_waits_and_copies_are_counted_by_line(use, waits, copies, log):
    x, y = torch.randn(3, 4, device="cuda"), torch.ones(3, 4)
    log.waits.clear()
    log.copies.clear()
    use(x, y)
    assert (sum(log.waits.values()), sum(log.copies.values())) == (waits, copies)
    assert all(at.startswith(f"{__file__}:") for at in log.waits | log.copies)


@pytest.mark.parametrize(("wait", "early"), [
    (lambda x: None, 1), (lambda x: x + 1, 1),
    (lambda x: torch.ones(2).to(x), 1), (lambda x: torch.ones(2).to(x.cpu().to(x)), 0), (lambda x: x[x.sum().long():], 0),
    (lambda x: x.cpu(), 0), (lambda x: x.sum().item(), 0), (lambda x: x.tolist(), 0),
    (lambda x: torch.cuda.synchronize(), 0), (lambda x: x.cpu().sum() + 1, 0), (lambda x: (2 * x).cpu().to("cuda").cpu(), 0)])
def test_the_clock_tells_a_time_only_of_what_is_done(wait, early, log):
    x = torch.ones(3, device="cuda") + 1
    wait(x)
    before = time.perf_counter()
    assert 0 <= time.perf_counter() - before < 60
    assert sum(log.early.values()) == 2 * early
    assert all(at.startswith(f"{__file__}:") for at in log.early)


def test_bytes_are_held_until_the_last_view_is_gone(log):
    before, x = log.bytes, torch.zeros(1000, 1000, device="cuda")
    view = x[1:]
    del x
    gc.collect()
    assert log.bytes - before == 4_000_000
    del view
    gc.collect()
    assert log.bytes == before and log.peak >= before + 4_000_000 and log.kernels > 0


def test_a_script_runs_on_it(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import sys, torch\nx = torch.ones(3, device='cuda')\nprint(x.device, sys.argv[1], x.sum().item())\n")
    done = subprocess.run([sys.executable, module.__file__, script, "one"], capture_output=True, text=True, check=True)
    assert done.stdout == "cuda:0 one 3.0\n"
    assert "1 waits for it" in done.stderr and f"{script}:3 _local_scalar_dense" in done.stderr
