"""What meets tensors of two devices, on a machine that has one: the second is pretended.

Tensors on it bear a mark on their storage, which all views share. An operation that meets marked tensors and others, scalars
aside, is refused as CUDA refuses it; what it makes of marked ones is marked. `x.device` says cuda:0, and `x.to` and `x.cpu`
move. Random numbers, autocast and factories with `device=` are not imitated.
"""

from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from course_lib import recipes
from course_lib.autoencoders import KLAutoencoder, LinearAutoencoder, encode_all, fit_scale

THERE = torch.device("cuda", 0)


def is_there(x: Tensor) -> bool:
    return getattr(x.untyped_storage(), "there", False)


def move(x: Tensor | nn.Module, there: bool = True):
    """A copy on the pretended device, or back from it; of a module all parameters and buffers, in place."""
    if isinstance(x, nn.Module):
        return x._apply(lambda part: move(part, there))
    if is_there(x) is there:
        return x
    x = x.clone()
    x.untyped_storage().there = there
    return x


def _to(x: Tensor, where, *args, **kwargs) -> Tensor:
    if isinstance(where, Tensor):
        return move(x.to(where.dtype), is_there(where))
    if isinstance(where, torch.dtype):
        return x.to(where, *args, **kwargs)
    return move(x, torch.device(where).type == "cuda")


METHODS = {"to": _to, "cpu": lambda x: move(x, False), "device": lambda x: THERE if is_there(x) else x.device}


class Moves(TorchFunctionMode):
    """Where Python asks for a tensor's device, or for the tensor on another."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(getattr(func, "__self__", None), "__name__", "") if func.__name__ == "__get__" else func.__name__
        return (METHODS.get(name, func) if args and isinstance(args[0], Tensor) else func)(*args, **kwargs or {})


class Kernels(TorchDispatchMode):
    """Where the operations themselves arrive."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        there = any(map(is_there, tensors))
        if there and not all(is_there(x) or x.ndim == 0 for x in tensors):
            raise RuntimeError(f"Expected all tensors to be on the same device, but found at least two devices, in {func}")
        result = func(*args, **kwargs or {})
        for x in tree_leaves(result) if there else ():
            if isinstance(x, Tensor):
                x.untyped_storage().there = True
        return result


@contextmanager
def pretended_device():
    """In here tensors may be on a second device."""
    with Kernels(), Moves():
        yield


def test_the_pretended_device_refuses_what_cuda_refuses_and_marks_what_it_makes():
    here = torch.ones(3)
    with pretended_device():
        there = here.to(THERE)
        assert there.device == THERE and (2 * there).device == THERE and there[:1].device == THERE
        assert (there * torch.tensor(2.0)).device == here.to(there).device == THERE
        assert there.cpu().device.type == here.device.type == "cpu"
        with pytest.raises(RuntimeError, match="two devices"):
            there + here


@pytest.mark.parametrize("int8", [False, True])
def test_weights_on_another_device_are_packed_as_those_on_the_cpu(int8, generator):
    weights = {"kernel": torch.randn(4, 3, 3, 3, generator=generator), "bias": torch.randn(4, generator=generator)}
    with pretended_device():
        stored = recipes.weights.packed({k: v.to(THERE) for k, v in weights.items()}, int8)
        assert all(v.device.type == "cpu" for v in stored.values())
    expected = recipes.weights.packed(weights, int8)
    assert stored.keys() == expected.keys() and all(torch.equal(stored[k], v) for k, v in expected.items())


AUTOENCODERS = {"pictures": (lambda: KLAutoencoder(width=8, depth=1), (9, 3, 8, 8)),
                "rows": (lambda: LinearAutoencoder(5, 2, 0.1), (9, 5))}


@pytest.mark.parametrize(("build", "shape"), AUTOENCODERS.values(), ids=AUTOENCODERS)
@pytest.mark.parametrize("data_there", [False, True])
def test_a_scale_is_fitted_wherever_model_and_data_are(build, shape, data_there, generator):
    images, model = torch.randn(shape, generator=generator), build()
    with pretended_device():
        fit_scale(move(model), move(images, data_there))
        z = encode_all(model, images)
        assert model.scale.device == THERE and z.device.type == "cpu"
    axes = [0, *range(2, z.ndim)]
    torch.testing.assert_close(z.mean(axes), torch.zeros(z.shape[1]), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std(axes), torch.ones(z.shape[1]), atol=1e-5, rtol=0)
