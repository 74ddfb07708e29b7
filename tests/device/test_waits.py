"""What a step makes a GPU wait for, and what it copies there: both are hidden in plain lines, and grow one by one."""

import pytest
import torch
from device_cases import exact, gen, labels, normal, pictures, points
from pretended_cuda import CUDA, pretended_cuda

from course_lib import recipes
from course_lib.consistency import Trainee, distillation_loss, neighbours
from course_lib.denoiser import Student, guided
from course_lib.fast_samplers import abm, ddim, dpm_solver_pp
from course_lib.ode_samplers import heun
from course_lib.parallel import converged, picard
from course_lib.sampling import final, last
from course_lib.schedules import CosineVP, log_snr_to_zero, uniform
from course_lib.sde_samplers import ancestral
from course_lib.training import train


def network():
    return points(CUDA)


def by(step, D=exact, cond=lambda device: None):
    """n steps of a one-step method, down a grid on the CPU."""
    return lambda n: final(D(), normal(CUDA, 5, 2), uniform(n, CosineVP()), step, generator=gen(CUDA), cond=cond(CUDA))


def swept(n):
    """A run of n sweeps of Picard, a step of the grid each."""
    return converged(picard(exact(), normal(CUDA, 5, 2), uniform(n, CosineVP()), ancestral, generator=gen(CUDA), tolerance=0))


def learnt(n):
    rows = [normal("cpu", 20, 1, 16, 16), torch.arange(20) % 8]
    train(recipes.diffusion_loss, pictures("cpu"), rows, steps=n, batch=8, device="cuda", progress=False)


def per_step(run) -> tuple[float, float]:
    """Waits and copies of a step more; what is there once, before the first or after the last, is not in it."""
    def total(n):
        with pretended_cuda() as log:
            run(n)
        return sum(log.waits.values()), sum(log.copies.values())

    total(4)                                                                # what is kept from now on is not counted
    return tuple((many - few) / 8 for few, many in zip(total(4), total(12)))


def taught(n):
    """A step of a training by a teacher."""
    loss = distillation_loss(points(CUDA), neighbours(uniform(8, CosineVP())))
    train(loss, Trainee(points("cpu", kind=Student)), [normal("cpu", 20, 2)], steps=n, batch=8, device="cuda", progress=False)


MOST = {  # what is done n times: the waits of each, and the copies
    "ddim, exact": (by(ddim), 1, 3), "ancestral, exact": (by(ancestral), 1, 3), "heun, exact": (by(heun), 1, 6),
    "ddim": (by(ddim, network), 1, 0), "ddim, labels": (by(ddim, network, labels), 2, 0),
    "ddim, guided": (by(ddim, lambda: guided(network(), 1.0), labels), 2, 0),
    "2M": (lambda n: last(dpm_solver_pp, network(), normal(CUDA, 5, 2), log_snr_to_zero(n, CosineVP())), 1, 0),
    "abm": (lambda n: last(abm, network(), normal(CUDA, 5, 2), uniform(n, CosineVP())), 1, 0),
    "picard": (swept, 4, 5), "training": (learnt, 2, 1), "distillation": (taught, 1, 2),
}


@pytest.mark.parametrize(("run", "waits", "copies"), MOST.values(), ids=MOST)
def test_a_step_waits_and_copies_no_more_than_it_did(run, waits, copies):
    found = per_step(run)
    assert found[0] <= waits and found[1] <= copies
