"""The training loop: any loss, EMA weights, exact resume, several devices.

Every step draws its rows and its noise from a generator seeded by (seed, rank, step). A run that is killed and started again
therefore repeats the very numbers it would have drawn, with no random state to save; on a CPU with the same number of
threads the final weights agree bit for bit. On CUDA they do not, resumed or not: its sums change their order from run to run.
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
    """Does it multiply in bfloat16 by itself? A T4 and older processors only emulate that, and lose time by it."""
    cpu = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)
    return torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else cpu()


def train(loss_function: LossFunction, model: nn.Module, data: Sequence[Tensor], *, steps: int, batch: int = 128,
          larger: int = 1, seconds: float = math.inf, lr: float = 1e-3, warmup: int = 100, weight_decay: float = 0.01,
          ema: float = 0.999, clip: float = 1.0, bf16: bool = False, seed: int = 0, checkpoint: str | Path | None = None,
          save_every: int = 200, identity: dict[str, str] | None = None, device: torch.device | str | None = None,
          progress: bool = True) -> Trained:
    """Minimise loss_function(model, *rows, generator) over `steps` batches drawn from the tensors in `data`, all (N, ...).

    AdamW with linear warm-up, then a cosine down to 0 at the last step, or when all `seconds` are over and the run ends. The
    EMA decay rises to `ema` as (1 + step)/(10 + step). larger: so many times the batch. bf16: may the loss be computed in that
    precision where the device has it? Weights and averages stay in float32. With a `checkpoint` path the state is saved there
    atomically, under a check sum, every `save_every` steps and at the end, and a run that finds the file goes on from it, if
    it has the same settings, release of torch and `identity`: what else the result depends on, as sums of data and teachers.
    Under torchrun the rows of each batch are shared out over the processes; "cuda" is then the GPU of each.
    Raises ValueError for bad arguments and for a checkpoint that is damaged or another run's; FloatingPointError, before the
    weights change, if loss or gradient is not finite; OSError if a checkpoint cannot be written. The last one stays intact.
    """
    if len({len(d) for d in data}) != 1 or len(data[0]) == 0:
        raise ValueError(f"data: expected tensors of one common length, got lengths {[len(d) for d in data]}")
    (rank, world), batch = join_process_group(), larger * batch
    if steps < 1 or batch < world:
        raise ValueError(f"steps, batch: expected a step, and a row for each process, got {steps} and {batch} for {world}")
    if not (seconds > 0 and (world == 1 or seconds == math.inf)):
        raise ValueError(f"seconds: expected a positive number and one process, got {seconds} and {world}")
    device = chosen_device(device)
    settings = {"steps": steps, "batch": batch, "lr": lr, "warmup": warmup, "weight_decay": weight_decay, "ema": ema,
                "clip": clip, "seed": seed, "world": world, "parameters": sum(p.numel() for p in model.parameters()),
                "torch": torch.__version__.partition("+")[0], **(identity or {})}
    model = model.to(device).train()
    average = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
    saved, losses, before = _resume(checkpoint, settings, model, average, optimizer)
    if world > 1:
        for p in (*model.parameters(), *average.parameters()):
            dist.broadcast(p.data, 0)
    data = [d.to(device) for d in data]
    start, rows_rng, noise_rng = time.perf_counter(), torch.Generator(), torch.Generator(device)
    bar = tqdm(range(saved, steps if before < seconds else saved), initial=saved, total=steps, mininterval=1.0, leave=False,
               disable=not progress or rank > 0, file=sys.stdout)          # text: a saved notebook loses a bar that is a widget
    over = before / seconds                                                 # the share of its time that is over
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for step in bar:
            rows_rng.manual_seed(_mix(seed, 0, step))                       # the same batch whatever the number of ranks,
            noise_rng.manual_seed(_mix(seed, rank + 1, step))               # but each rank its own noise
            torch.manual_seed(_mix(seed, rank + 1, step))                   # and its own dropout, if a network has any
            rows = torch.randint(len(data[0]), (batch,), generator=rows_rng).tensor_split(world)[rank]
            rows = rows.to(device, non_blocking=True)                       # else it waits for what the GPU still has to do
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16 and has_bf16(device)):
                loss = loss_function(model, *(d[rows] for d in data), noise_rng)
            loss = loss * (len(rows) * world / batch)                       # the mean over ranks is the mean over rows
            loss.backward()
            loss = _average_over_ranks(model, loss, world)
            norm = nn.utils.clip_grad_norm_(model.parameters(), clip)
            losses.append(_finite(loss, norm, step, f"{checkpoint} is intact, after {saved} steps" if saved else
                                  "no step was saved"))
            for group in optimizer.param_groups:
                group["lr"] = lr * _lr_factor(step, steps, warmup, over)
            optimizer.step()
            optimizer.zero_grad()
            _follow(average, model, min(ema, (1 + step) / (10 + step)))
            over = (before + time.perf_counter() - start) / seconds
            ended = step + 1 == steps or over >= 1
            if step % 20 == 0:
                bar.set_postfix(loss=f"{sum(losses[-100:]) / len(losses[-100:]):.4f}")
            if checkpoint is not None and rank == 0 and (ended or (step + 1) % save_every == 0):
                saved, state = step + 1, io.BytesIO()  # in memory first: torch.save names neither a full disk nor the file
                torch.save({"step": saved, "settings": settings, "losses": losses, "model": model.state_dict(),
                            "ema": average.state_dict(), "optimizer": optimizer.state_dict(),
                            "seconds": before + time.perf_counter() - start}, state)
                write_sealed(checkpoint, state.getvalue())
            if ended:
                break
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


def _lr_factor(step: int, steps: int, warmup: int, over: float) -> float:
    """Linear from 0 to 1 over the warm-up, then a half cosine down to 0, where the steps end or their time is over."""
    progress = max((step - warmup) / max(1, steps - warmup), over)
    return (step + 1) / warmup if step < warmup else (1 + math.cos(math.pi * progress)) / 2


def _average_over_ranks(model: nn.Module, loss: Tensor, world: int) -> Tensor:
    """The mean of the loss over the ranks; every rank's gradients become theirs, all in one message."""
    parts = [loss.detach().float(), *(p.grad for p in model.parameters() if p.grad is not None)]
    if world > 1:
        flat = torch.cat([part.flatten() for part in parts])
        dist.all_reduce(flat)
        for part, mean in zip(parts, (flat / world).split([part.numel() for part in parts]), strict=True):
            part.copy_(mean.view_as(part))
    return parts[0]


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average <- decay average + (1 - decay) model; buffers are copied."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
    for a, b in zip(average.buffers(), model.buffers(), strict=True):
        a.copy_(b)
