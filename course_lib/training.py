"""The training loop: any loss, EMA weights, exact resume, several devices.

Every step draws its rows and its noise from a generator seeded by (seed, rank, step). A run that is killed and started again
therefore repeats the very numbers it would have drawn, with no random state to save; on a CPU with the same number of
threads the final weights agree bit for bit.
"""

import copy
import io
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from .files import read_sealed, write_sealed

LossFunction = Callable[..., Tensor]  # loss(model, *rows of the data, generator) -> scalar


@dataclass(frozen=True)
class Trained:
    """The averaged model, ready to use, the loss of every step, and the seconds spent over all runs."""

    model: nn.Module
    losses: list[float]
    seconds: float


def default_device() -> torch.device:
    """CUDA if there is one, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def chosen_device(name: torch.device | str | None) -> torch.device:
    """The device of that name, None for the default one. ValueError if it is not there or cannot compute."""
    device = default_device() if name is None else name
    try:
        torch.zeros(1, device=device).item()
        return torch.device(device)
    except (RuntimeError, AssertionError, ImportError, TypeError) as error:  # of unknown names, of what is not here
        here = ", ".join(["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))])
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device: expected one that is here, as {here}, got {str(name)!r} ({reason})") from error


def device_name(device: torch.device) -> str:
    """The GPU's name, or how many cores of which kind of processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cores = torch.get_num_threads()
    return f"{cores} CPU core{'s' * (cores > 1)} ({platform.machine()})"


def has_bf16(device: torch.device) -> bool:
    """Does it multiply in bfloat16 by itself? Where that is emulated, as on a T4 or an older processor, it only costs time."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()


def train(loss_function: LossFunction, model: nn.Module, data: Sequence[Tensor], *, steps: int, batch: int = 128,
          seconds: float | None = None, lr: float = 1e-3, warmup: int = 100, weight_decay: float = 0.01, ema: float = 0.999,
          clip: float = 1.0, bf16: bool = False, seed: int = 0, checkpoint: str | Path | None = None, save_every: int = 200,
          identity: dict[str, str] | None = None, device: torch.device | str | None = None, progress: bool = True) -> Trained:
    """Minimise loss_function(model, *rows, generator) over `steps` batches drawn from the tensors in `data`, all (N, ...).

    AdamW with linear warm-up, then a cosine down to 0, where `steps` or, if they are given, all `seconds` are over: what has
    to be ready by a time is as good as it can be by then, though no second run repeats it. The EMA decay rises to `ema` as
    (1 + step)/(10 + step). With a `checkpoint` path the state is saved there atomically, under a check sum, every `save_every`
    steps and at the end, and a run that finds the file goes on from it, if it has the same settings, release of torch and
    `identity`: what else the result depends on, as sums of data and teachers. Under torchrun the rows of each batch are shared
    out over the processes. bf16: may the loss be computed in that precision where the device has it, for networks that are
    large enough to be faster so? Weights, gradients and averages stay in single precision.
    Raises ValueError for tensors of unequal length, no steps, no such device, a checkpoint that is damaged or another run's;
    FloatingPointError, before the weights change, if loss or gradient is not finite; OSError if a checkpoint cannot be
    written. The last checkpoint stays intact.
    """
    if steps < 1 or batch < 1:
        raise ValueError(f"steps, batch: expected at least 1 of each, got {steps} and {batch}")
    if len({len(d) for d in data}) != 1 or len(data[0]) == 0:
        raise ValueError(f"data: expected tensors of one common length, got lengths {[len(d) for d in data]}")
    rank, world = join_process_group()
    if batch < world:
        raise ValueError(f"batch: expected at least one row for each of {world} processes, got {batch}")
    if seconds is not None and not (world == 1 and seconds > 0):
        raise ValueError(f"seconds: expected a positive number and one process, got {seconds} and {world}")
    device = chosen_device(device)
    if device.type == "cuda" and world > 1:
        device = torch.device("cuda", torch.cuda.current_device())
    settings = {"steps": steps, "seconds": seconds, "batch": batch, "lr": lr, "warmup": warmup,
                "weight_decay": weight_decay, "ema": ema, "clip": clip, "seed": seed, "world": world,
                "parameters": sum(p.numel() for p in model.parameters()), "torch": torch.__version__.partition("+")[0],
                **(identity or {})}
    model = model.to(device).train()
    average = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    saved, losses, before = _resume(checkpoint, settings, model, average, optimizer)
    if world > 1:
        for p in (*model.parameters(), *average.parameters()):
            dist.broadcast(p.data, 0)
    data = [d.to(device) for d in data]

    def keep(saved: int) -> int:
        """Save the state, where there is anything new to save, and a place for it; returns the step that is safe now."""
        if checkpoint is None or rank > 0 or len(losses) == saved:
            return saved
        _save(checkpoint, {"step": len(losses), "settings": settings, "losses": losses, "model": model.state_dict(),
                           "ema": average.state_dict(), "optimizer": optimizer.state_dict(),
                           "seconds": before + time.perf_counter() - start})
        return len(losses)

    start, rows_rng, noise_rng = time.perf_counter(), torch.Generator(), torch.Generator(device)
    bar = tqdm(range(saved, steps), initial=saved, total=steps, disable=not progress or rank > 0, mininterval=1.0,
               leave=False, file=sys.stdout)                               # text: a saved notebook loses a bar that is a widget
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for step in bar:
            over = 0.0 if seconds is None else (before + time.perf_counter() - start) / seconds
            if over >= 1:
                break
            rows_rng.manual_seed(_mix(seed, 0, step))                       # the same batch whatever the number of ranks,
            noise_rng.manual_seed(_mix(seed, rank + 1, step))               # but each rank its own noise
            torch.manual_seed(_mix(seed, rank + 1, step))                   # and its own dropout, if a network has any
            rows = torch.randint(len(data[0]), (batch,), generator=rows_rng).tensor_split(world)[rank].to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16 and has_bf16(device)):
                loss = loss_function(model, *(d[rows] for d in data), noise_rng)
            loss = loss * (len(rows) * world / batch)                       # the mean over ranks is the mean over rows
            loss.backward()
            loss = _average_over_ranks(model, loss.detach(), world)
            norm = nn.utils.clip_grad_norm_(model.parameters(), clip)
            losses.append(_finite(loss, norm, step, f"{checkpoint} is intact, after {saved} steps" if saved else
                                  "no step was saved"))
            for group in optimizer.param_groups:
                group["lr"] = lr * _lr_factor(step, steps, warmup, over)
            optimizer.step()
            optimizer.zero_grad()
            _follow(average, model, min(ema, (1 + step) / (10 + step)))
            if step % 20 == 0:
                bar.set_postfix(loss=f"{sum(losses[-100:]) / len(losses[-100:]):.4f}")
            if (step + 1) % save_every == 0:
                saved = keep(saved)
    keep(saved)
    return Trained(average, losses, before + time.perf_counter() - start)


def join_process_group() -> tuple[int, int]:
    """(rank, number of processes): joins the group that torchrun announces; (0, 1) in an ordinary process."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        here = torch.cuda.device_count()                                    # NCCL refuses two processes on one of them
        if here:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % here)
        alone = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"])) <= here
        dist.init_process_group("cpu:gloo,cuda:nccl" if alone else "gloo")
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def _finite(loss: Tensor, norm: Tensor, step: int, kept: str) -> float:
    """The loss as a number, waiting once for it and the gradient's norm. FloatingPointError if one of them is not finite."""
    loss, norm = torch.stack([loss, norm.to(loss)]).tolist()
    if not math.isfinite(loss + norm):
        raise FloatingPointError(f"the loss is {loss} and the norm of its gradient {norm} at step {step}; {kept}. The same run "
                                 "would meet the same numbers: go on from there on another device, or begin anew with a lower "
                                 "lr or another seed")
    return loss


def _save(checkpoint: str | Path, state: dict) -> None:
    """In memory first: where a disk is full, torch.save itself stops at an assertion that names neither disk nor file."""
    written = io.BytesIO()
    torch.save(state, written)
    write_sealed(checkpoint, written.getvalue())


def _resume(checkpoint, settings, model, average, optimizer) -> tuple[int, list[float], float]:
    """Load the state at `checkpoint`, if there is one: the next step, the losses so far, the seconds spent.

    All goes through the CPU, where Adam's counts of steps stay: on a GPU it would wait for each of them at every step.
    """
    if checkpoint is None or not Path(checkpoint).exists():
        return 0, [], 0.0
    try:
        state = torch.load(io.BytesIO(read_sealed(checkpoint)), map_location="cpu", weights_only=True)
        its = state["settings"]
    except Exception as error:  # torch raises many kinds for a damaged file; all mean the same to the caller
        raise ValueError(f"checkpoint: {checkpoint} is damaged or no checkpoint; delete it to start afresh") from error
    changed = {k: (its.get(k), settings.get(k)) for k in (its | settings) if its.get(k) != settings.get(k)}
    if changed:
        raise ValueError(f"checkpoint: {checkpoint} belongs to a run with other settings (its own, this run's): {changed}; "
                         "delete it or choose another path")
    try:
        model.load_state_dict(state["model"])
        average.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError) as error:  # as many parameters, of other names or shapes
        raise ValueError(f"checkpoint: {checkpoint} belongs to another network; delete it or choose another path") from error
    return state["step"], state["losses"], state["seconds"]


def _mix(seed: int, stream: int, step: int) -> int:
    """One seed per (seed, stream, step), hashed into 32 bits: a generator on the CPU looks at no more than those of a seed."""
    return int(np.random.SeedSequence((seed, stream, step)).generate_state(1)[0])


def _lr_factor(step: int, steps: int, warmup: int, over: float = 0.0) -> float:
    """Linear from 0 to 1 over the warm-up, then a half cosine down to 0; over: the share of the time that is over."""
    if step < warmup:
        return (step + 1) / warmup
    progress = max((step - warmup) / max(1, steps - warmup), over)
    return (1 + torch.cos(torch.tensor(torch.pi * progress, dtype=torch.float64)).item()) / 2


def _average_over_ranks(model: nn.Module, loss: Tensor, world: int) -> Tensor:
    """Replace every rank's gradients, and the loss, by their mean over the ranks, in one message."""
    if world == 1:
        return loss
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([loss.reshape(1).float(), *(g.flatten() for g in grads)])
    dist.all_reduce(flat)
    flat /= world
    for g, mean in zip(grads, flat[1:].split([g.numel() for g in grads]), strict=True):
        g.copy_(mean.view_as(g))
    return flat[0]


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average <- decay average + (1 - decay) model; buffers are copied."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
    for a, b in zip(average.buffers(), model.buffers(), strict=True):
        a.copy_(b)
