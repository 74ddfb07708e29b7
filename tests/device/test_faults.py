"""What would go wrong on a GPU machine and nowhere else. A fault that stands is expected to fail until it is mended."""

import pytest
import torch
from device_cases import GREY, ROWS, TS, awake, gen
from pretended_cuda import CUDA, pretended_cuda
from torch import nn

from course_lib import measure, recipes, training
from course_lib.consistency import FlowMap, Trainee, continuous_loss, distillation_loss, mean_flow_loss, neighbours, path_loss
from course_lib.denoiser import FlowVelocity, Preconditioned, Student, V
from course_lib.networks import DiT
from course_lib.progressive import halving_loss
from course_lib.schedules import CosineVP, Flow
from course_lib.training import join_process_group, train


# ---------------------------------------------------------------------------------------------- many processes
def joined(monkeypatch, gpus: int) -> tuple[str | None, int]:
    """What the second of two processes on a machine with so many GPUs asks for: the group's backend, and its own GPU."""
    asked = {"gpu": 0}
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    with pretended_cuda():
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: asked.update(gpu=torch.device("cuda", device).index))
        monkeypatch.setattr(training.dist, "init_process_group", lambda backend=None, **_: asked.update(backend=backend))
        join_process_group()
        monkeypatch.undo()
    return asked["backend"], asked["gpu"]


def test_two_processes_share_a_gpu_through_gloo(monkeypatch):
    assert joined(monkeypatch, gpus=1) == ("gloo", 0)


def test_processes_with_a_gpu_each_can_tell_one_another_what_lies_on_the_cpu(monkeypatch):
    backend, gpu = joined(monkeypatch, gpus=2)
    assert gpu == 1 and backend in (None, "cpu:gloo,cuda:nccl")


# ---------------------------------------------------------------------------------------------- precision
def test_bfloat16_is_not_used_where_it_is_emulated(monkeypatch):
    dtypes = set()

    def loss(model, x, generator):
        y = model(x)
        dtypes.add(y.dtype)
        return y.float().square().mean()

    with pretended_cuda():
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
        train(loss, nn.Linear(2, 2), [ROWS], steps=1, batch=4, bf16=True, device="cuda", progress=False)
        monkeypatch.undo()
    assert dtypes == {torch.float32}


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_the_cost_of_a_training_step_is_that_in_its_precision(native, dtype, monkeypatch):
    dtypes = set()

    class Linear(nn.Linear):
        def forward(self, x, c_noise, cond=None):
            y = super().forward(x)
            dtypes.add(y.dtype)
            return y

    with pretended_cuda() as log:
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
        model = Preconditioned(Linear(8, 8), CosineVP(), V()).to(CUDA)
        measure.emoji.training_step_cost(model, (4, 8), steps=3)
        monkeypatch.undo()
    assert dtypes == {dtype}
    assert not any("emoji.py" in at for at in log.early if log.early[at] > 1), "before the first there is no need"


def gradient(make, build, bf16: bool) -> torch.Tensor:
    """Of the loss that a teacher makes, by all weights of the model, computed in bfloat16 where that lets itself be done."""
    with pretended_cuda(alike=True):
        model, teacher = build(CUDA), recipes.load("ring_teacher", CUDA)
        with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
            loss = make(teacher)(model, ROWS.to(CUDA), gen(CUDA))
        weights = [p for p in model.parameters() if p.requires_grad]
        found = torch.autograd.grad(loss, weights, allow_unused=True)
        return torch.cat([g.flatten() for g in found if g is not None]).cpu()


def off(make, build) -> float:
    """How far a gradient in bfloat16 is from the one in float32, as a share of it."""
    plain, rough = (gradient(make, build, bf16) for bf16 in (False, True))
    return ((rough - plain).norm() / plain.norm()).item()


def student(d):
    """One that is as its teacher at first."""
    return Student.of(recipes.load("ring_teacher", d)).to(d)


def trainee(d):
    return Trainee(student(d))


def diffusion(_):
    return recipes.diffusion_loss


def test_a_distillation_is_computed_in_float32():
    assert off(lambda teacher: distillation_loss(teacher, neighbours(TS)), trainee) < 1e-4


@pytest.mark.parametrize("make", [lambda teacher: halving_loss(teacher, TS), diffusion], ids=["halving", "diffusion"])
def test_bfloat16_does_little_harm_to_losses_that_are_no_differences(make):
    assert 1e-4 < off(make, student) < 0.02


def test_a_continuous_loss_is_computed_in_float32():
    assert off(continuous_loss, trainee) < 1e-4


def test_a_path_loss_is_computed_in_float32():
    assert off(lambda teacher: path_loss(teacher, TS), student) < 1e-4


# ---------------------------------------------------------------------------------------------- attention
def attentive(kind, parameterisation, schedule, numbers: int = 0):
    return kind(awake(CUDA, lambda: DiT(1, 8, 4, 16, 1, 2, numbers=numbers)), schedule, parameterisation)


@pytest.mark.parametrize("bf16", [False, True])
def test_a_transformer_is_differentiated_forwards(bf16):
    x0 = GREY[:4, :, :8, :8]
    with pretended_cuda(), torch.autocast("cuda", torch.bfloat16, enabled=bf16):
        continuous_loss()(Trainee(attentive(Student, V(), CosineVP())), x0.to(CUDA), gen(CUDA)).backward()
        mean_flow_loss()(attentive(FlowMap, FlowVelocity(), Flow(), 1), x0.to(CUDA), gen(CUDA)).backward()


# ---------------------------------------------------------------------------------------------- what is recorded
class Judge:
    floor = 0.0

    def __call__(self, pictures):
        return float(len(pictures))


def test_the_race_records_as_many_samples_as_it_draws(monkeypatch):
    """On a GPU ten thousand are asked for, more than there are captions."""
    latents, drawn = measure.latents, []
    monkeypatch.setattr(latents, "Judge", Judge)
    monkeypatch.setattr(latents, "BUDGETS", {"pixel_diffusion": (1,)})
    monkeypatch.setattr(latents.data, "emoji", lambda split: latents.data.Emoji(torch.zeros(6, 3, 64, 64), None, None))
    monkeypatch.setattr(latents.recipes, "emoji_captions", lambda pictures: torch.full((6, 2, 12), -1))
    monkeypatch.setattr(latents.recipes, "emoji_latents", lambda split: None)
    monkeypatch.setattr(latents.recipes, "load", lambda name, device: nn.Identity())
    monkeypatch.setattr(type(nn.Identity()), "decode", None, raising=False)
    monkeypatch.setattr(latents, "trained_for", lambda *_: (None, 1.0))
    monkeypatch.setattr(latents, "draw", lambda D, decode, shape, *_: drawn.append(shape[0]) or torch.zeros(shape))
    monkeypatch.setattr(measure.rows, "record", lambda *_: None)
    row, = latents.latent_race(device="cpu", samples=10_000, seeds=1)
    assert drawn == [6] and row.samples == 6
