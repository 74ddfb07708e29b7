"""Every public function of the library with its tensors on a GPU: the results lie there and are those of the CPU.

The last test looks on while the cases run, and names each public function that none of them has called with something on the
device: a new one needs a case in device_cases.py, or a place in ELSEWHERE.
"""

import inspect
import sys

import pytest
import torch
from device_cases import CASES, MODULES, SCHEDULES, public
from pretended_cuda import CUDA, on_cuda, pretended_cuda
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from course_lib import recipes


def compared(found, expected) -> None:
    """The results lie on the device and are the same."""
    for x, y in zip(tree_leaves(found), tree_leaves(expected), strict=True):
        if isinstance(x, Tensor):
            assert on_cuda(x), f"{tuple(x.shape)} was left on the CPU"
            torch.testing.assert_close(x.cpu(), y, rtol=1e-5, atol=1e-6, equal_nan=True)
        else:
            assert x == pytest.approx(y, rel=1e-5)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_on_a_gpu_it_is_the_same(case):
    torch.manual_seed(0)
    expected = case(torch.device("cpu"))
    with pretended_cuda(alike=True) as log:
        torch.manual_seed(0)
        compared(case(CUDA), expected)
    assert log.kernels > 0, "nothing happened there"


def places(value) -> set[bool]:
    """Where the tensors of an argument are: True stands for the device."""
    if isinstance(value, Tensor):
        return {bool(on_cuda(value))}
    if isinstance(value, nn.Module):
        return {bool(on_cuda(p)) for p in value.parameters()} if "_modules" in vars(value) else set()     # if built to the end
    return set().union(*map(places, value)) if isinstance(value, (tuple, list)) else set()


def code_of(thing) -> list:
    """The code of a function, beneath its decorators, or of all methods of a class."""
    methods = vars(thing).values() if isinstance(thing, type) else [thing]
    unwrapped = (inspect.unwrap(getattr(m, "fget", None) or getattr(m, "__func__", m)) for m in methods)
    return [method.__code__ for method in unwrapped if inspect.isfunction(method)]


def untried(things: dict, cases) -> list[str]:
    """Those functions and classes that no case calls, or only with tensors that are not on the device."""
    wanted = {id(code): name for name, thing in things.items() for code in code_of(thing)}
    left = {name: True for name in wanted.values()}                       # True: not called

    def look(frame, event, _):
        name = wanted.get(id(frame.f_code))
        if left.get(name):
            where = set().union(*map(places, frame.f_locals.values()))
            if True in where or not where:
                left[name] = False

    for case in cases:
        if not any(left.values()):
            break
        with pretended_cuda(alike=True):
            sys.settrace(look)
            try:
                case(CUDA)
            finally:
                sys.settrace(None)
    return [name for name, still in left.items() if still]


ELSEWHERE = {  # why a module's functions need no case here
    "arguments": "described",                                           # words
    "denoiser": "Denoiser",                                             # a protocol
    "diffusers_bridge": "noise_ratio first_ratio",                      # of tables that stay on the CPU
    "networks": "zeroed",                                               # of a model that is not on a device yet
    "parallel": "together",                                             # of several processes
    "plotting": "style looks mesh density field quality_against_cost shaded",                    # they make their own points
    "recipes.emoji": "emoji_dit emoji_latents emoji_captions text_to_image",                     # test_training runs recipes
    "recipes.fashion": "fashion_unet progressive", "recipes.losses": "test_loss", "recipes.ring": "ring_data",
    "text": "split known caption vocabulary tokens share_found mean_length NGrams",                         # strings
    "training": "Trained default_device chosen_device device_name has_bf16 train join_process_group",  # test_training
}


def test_every_public_function_has_been_on_a_gpu():
    things = {}
    for module in MODULES:
        name = module.__name__.removeprefix("course_lib.")
        things |= {f"{name}.{each}": thing for each, thing in public(module).items()
                   if each not in recipes.RECIPES and each not in ELSEWHERE.get(name, "").split()}
    assert len(things) > 150
    missing = untried(things, [case for name, case in CASES.items() if not name.endswith(tuple(SCHEDULES))])
    assert missing == []
