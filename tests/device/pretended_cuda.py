"""A CUDA device pretended on a CPU, so that what goes wrong on the one is found on the other.

    with pretended_cuda() as log: ...         or          python pretended_cuda.py script.py [arguments]

Every tensor stays a real CPU tensor with real numbers. Being "on cuda:0" is a mark on its *storage*, which views, parameters
and all that autograd keeps share: True, False, or None for what torch makes for itself inside an operation, and which may meet
either. Two modes do the rest:

    Functions  where Python calls torch: device=, .to and its like, .device, .numpy(), generators, CUDA's autocast.
    Kernels    below autograd and functorch, where every operation arrives, those of backward and of a jvp too: it refuses mixed
               devices as CUDA does, marks results, and imitates the arithmetic.

`log` counts, by line of the caller, what no program says in so many words: waits for the GPU (.item(), .cpu(), x[mask]), copies
to it, and looks at the clock (time.perf_counter) while it was still at work; and all kernels, and the bytes held. Not imitated:
speed, NCCL, the order of sums, which attention kernel is chosen, running out of memory.
"""

import os
import runpy
import sys
import threading
import time
import weakref
from collections import Counter
from contextlib import ExitStack, contextmanager
from functools import cache
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

CUDA, CPU, CLOCK = torch.device("cuda", 0), torch.device("cpu"), time.perf_counter
# Operations whose tensors may be on two devices; that take no number from the CPU; whose indices may be there; that wait for
# the GPU; that CUDA has for floats alone. And functions that are float32 under the autocast of CUDA, not under that of the CPU.
ANYWHERE = {"copy_", "set_", "_to_copy", "is_same_size"}
NO_SCALARS = {"cat", "stack", "gather", "scatter", "scatter_", "index_select", "embedding", "equal"}
INDEXING = {"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_"}
WAITING = {"_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2", "unique_dim", "bincount",
           "_linalg_check_errors"}
FLOATS = {"mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "_cdist_forward"}
FLOAT32 = set("""exp expm1 log log10 log2 log1p pow __pow__ rsqrt reciprocal tan softplus softmax log_softmax layer_norm norm
    group_norm mse_loss l1_loss smooth_l1_loss huber_loss kl_div nll_loss cross_entropy cdist prod cumsum cumprod sum logsumexp
    renorm dist cosine_similarity""".split())
COPIES = {"tensor", "as_tensor", "asarray", "new_tensor"}                  # of what Python holds, to the device


class Log:
    """What a GPU had to do, and where it was waited for: Counters by "file:line what"."""

    def __init__(self):
        self.waits, self.copies, self.early, self.kernels, self.bytes, self.peak = Counter(), Counter(), Counter(), 0, 0, 0
        self.at_work = False                                              # kernels were started, and nobody has waited since

    def note(self, counter: Counter, what: str) -> None:
        """One more, for the innermost line that is neither torch's nor this file's nor of Python's own copy and contextlib."""
        frame, others = sys._getframe(1), (f"{os.sep}torch{os.sep}", f"{os.path.dirname(os.__file__)}{os.sep}co", __file__)
        while frame.f_back and any(part in frame.f_code.co_filename for part in others):
            frame = frame.f_back
        counter[f"{frame.f_code.co_filename}:{frame.f_lineno} {what}"] += 1
        self.at_work &= counter is not self.waits

    def rest(self, *_) -> None:
        self.at_work = False

    def clock(self) -> float:
        if self.at_work:
            self.note(self.early, "perf_counter")
        return CLOCK()

    def hold(self, size: int) -> None:
        self.bytes += size
        self.peak = max(self.peak, self.bytes)

    def __str__(self) -> str:
        lines = [f"{self.kernels:,} kernels, at most {self.peak / 2**20:,.0f} MiB on the GPU"]
        for title, counter in (("waits for it", self.waits), ("copies to it", self.copies),
                               ("looks at the clock while it was at work", self.early)):
            lines += [f"{sum(counter.values()):,} {title}", *(f"{n:9,}  {at}" for at, n in counter.most_common(12))]
        return "\n".join(lines)


class state:
    """Of the pretended device there is; without one nothing here is in use."""

    log = Log()
    alike = False       # does it compute and draw as the CPU does?
    inside = False      # are we in a call of torch that is no factory?


def on_cuda(x: Tensor) -> bool | None:
    """The mark of x's storage."""
    return getattr(_storage(x), "on_cuda", False)


def _storage(x: Tensor):
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return None if x.layout != torch.strided or x.is_meta else x.untyped_storage()


def _mark(x: Tensor, where: bool | None) -> Tensor:
    storage, was = _storage(x), on_cuda(x)
    if storage is not None and was is not where:
        storage.on_cuda = where
        state.log.hold(storage.nbytes() * ((where is True) - (was is True)))
        if where:
            weakref.finalize(storage, state.log.hold, -storage.nbytes()).atexit = False
    return x


# ---------------------------------------------------------------------------------------------- from one device to the other
class _Move(torch.autograd.Function):
    """A copy on the other device, whose gradient moves back."""

    @staticmethod
    def forward(x, where):
        return _mark(x.clone(), where)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.back, ctx.there = on_cuda(inputs[0]), inputs[1]

    @staticmethod
    def backward(ctx, g):
        return _Move.apply(g, ctx.back), None

    @staticmethod
    def jvp(ctx, tangent, _):
        return _Move.apply(tangent, ctx.there)


def _moved(x: Tensor, where: bool) -> Tensor:
    if on_cuda(x) in (where, None):
        return _mark(x, where)
    before, y = state.log.at_work, _Move.apply(x, where)
    state.log.at_work = before
    state.log.note(state.log.copies if where else state.log.waits, f"{x.numel() * x.element_size()} bytes")
    return y


def _to(x: Tensor, *args, copy: bool = False, **kwargs) -> Tensor:
    other = args[0] if args and isinstance(args[0], Tensor) else kwargs.get("other")
    device, dtype, _, form = torch._C._nn._parse_to(*args, **kwargs)
    where = on_cuda(x if other is None else other) if other is not None or device is None else device.type == "cuda"
    y = x.to(dtype or x.dtype, memory_format=form or torch.preserve_format)
    return _moved(y.clone() if copy and y is x else y, bool(where))


def _host(name: str):
    """The method of that name, which gives Python or numpy what x holds."""
    def method(x: Tensor, *args, **kwargs):
        if on_cuda(x) and name != "tolist":
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host "
                            "memory first.")
        if on_cuda(x):
            state.log.note(state.log.waits, name)
        return getattr(x, name)(*args, **kwargs)

    return method


METHODS = {                                                               # of a tensor, instead of torch's
    "to": _to, "cuda": lambda x, *a, **k: _moved(x, True), "cpu": lambda x, *a, **k: _moved(x, False),
    "device": lambda x: CUDA if on_cuda(x) else x.device, "is_cuda": lambda x: on_cuda(x) is True,
    "is_cpu": lambda x: x.is_cpu and not on_cuda(x), "get_device": lambda x: 0 if on_cuda(x) else -1,
    "__deepcopy__": lambda x, memo: _mark(x.__deepcopy__(memo), on_cuda(x)),
    "new_tensor": lambda x, *a, **k: _mark(x.new_tensor(*a, **k), on_cuda(x)),
    "tolist": _host("tolist"), "numpy": _host("numpy"), "__array__": _host("__array__"),
}


class Generator(torch.Generator):
    """Knows its device; one on CUDA draws other numbers than the CPU's of the same seed, unless the two are to be alike."""

    def __new__(cls, device="cpu"):
        self = super().__new__(cls)
        self.on_cuda = torch.device(device).type == "cuda"
        return self

    device = property(lambda self: CUDA if self.on_cuda else CPU)

    def manual_seed(self, seed: int):
        super().manual_seed(seed ^ 0x5EED_C0DE if self.on_cuda and not state.alike else seed)
        return self


DEFAULT = Generator("cuda")


def _generator(given, where: bool):
    if given is not None and (getattr(given, "device", CPU).type == "cuda") is not where:
        asked, found = ("cuda", "cpu") if where else ("cpu", "cuda")
        raise RuntimeError(f"Expected a '{asked}' device type for generator but found '{found}'")
    return DEFAULT if given is None and where else given


# ---------------------------------------------------------------------------------------------- the two modes
@cache
def _schema(operation) -> tuple[str, bool, bool, bool]:
    """Its name, whether it draws random numbers, writes into its first argument, and is only another view of it."""
    arguments = operation._schema.arguments
    writes = bool(arguments and arguments[0].alias_info and arguments[0].alias_info.is_write)
    draws = any(a.name == "generator" for a in arguments)
    return operation._schema.name.removeprefix("aten::"), draws, writes, operation.is_view


def _tensors(values) -> list[Tensor]:
    """The tensors among what an operation takes or gives, which may stand in lists."""
    found = []
    for x in values:
        if isinstance(x, Tensor):
            found.append(x)
        elif isinstance(x, (tuple, list)):
            found += [y for y in x if isinstance(y, Tensor)]
    return found


class Functions(TorchFunctionMode):
    """Where Python calls torch."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        before, state.inside = state.inside, func not in _device_constructors()
        try:
            return self.call(func, args, dict(kwargs or {}))
        finally:
            state.inside = before

    def call(self, func, args, kwargs):
        name, device = getattr(func, "__name__", ""), kwargs.get("device")
        name = getattr(func.__self__, "__name__", "") if name == "__get__" else name
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if first is not None and name in METHODS and (device is None or name == "to"):
            return METHODS[name](*args, **kwargs)
        if first is not None and name in COPIES and device is not None:
            return _to(first, torch.device(device), kwargs.get("dtype"))
        if first is not None and name in FLOAT32 and on_cuda(first) and torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map_only(Tensor, lambda x: x.float() if x.dtype == torch.bfloat16 else x, (args, kwargs))
            with torch.autocast("cpu", enabled=False):
                return func(*args, **kwargs)
        where = torch.device(device).type == "cuda" if device is not None else first is not None and on_cuda(first) is True
        if kwargs.get("generator") is not None or (device is not None and where and name.startswith(("rand", "normal"))):
            kwargs["generator"] = _generator(kwargs.get("generator"), where)
        if device is None:
            return func(*args, **kwargs)
        if where and name in COPIES:
            state.log.note(state.log.copies, name)
        return tree_map_only(Tensor, lambda x: _mark(x, where), func(*args, **kwargs | {"device": "cpu"}))


class Kernels(TorchDispatchMode):
    """Where the operations themselves arrive."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, (name, draws, writes, looks) = dict(kwargs or {}), _schema(func)
        tensors = _tensors((*args, *kwargs.values()))
        storages = [_storage(x) for x in tensors]
        marks = [getattr(storage, "on_cuda", False) for storage in storages]
        where = True if True in marks else None if None in marks or (not tensors and state.inside) else False
        if where:
            state.log.kernels, state.log.at_work = state.log.kernels + 1, state.log.at_work or not looks
            self.check(name, writes, args, tensors, marks)
            self.note(name, args, marks)
            if draws:
                kwargs["generator"] = kwargs.get("generator") or DEFAULT  # one that was given has been looked at above
            if name in ("convolution", "convolution_backward") and not state.alike and torch.backends.cudnn.allow_tf32:
                args = tree_map_only(Tensor, _tf32, args)
        result = func(*args, **kwargs)
        if where is not False:
            old = {id(storage) for storage, mark in zip(storages, marks, strict=True) if mark is not None}
            backward = torch._C._current_graph_task_id() >= 0             # which moves gradients of CPU scalars by itself
            for x in _tensors(result if isinstance(result, (tuple, list)) else (result,)):
                if id(_storage(x)) not in old and not on_cuda(x):
                    _mark(x, None if backward and x.ndim == 0 else where)
        return result

    def check(self, name, writes, args, tensors, marks):
        """Refuse CPU tensors beside those on CUDA, but for scalars that are only read, and for indices."""
        if name in ANYWHERE:
            return
        if name in FLOATS and not any(x.is_floating_point() or x.is_complex() for x in tensors):
            raise RuntimeError(f'"{name}_cuda" not implemented for {tensors[0].dtype}')
        if name in INDEXING:
            if not on_cuda(args[0]):
                raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
            tensors = [args[0], *args[2:3]]
            marks = [on_cuda(x) for x in tensors]
        for i, (x, mark) in enumerate(zip(tensors, marks, strict=True)):
            if mark is False and (x.ndim or name in NO_SCALARS or (i == 0 and writes)):
                raise RuntimeError("Expected all tensors to be on the same device, but found at least two devices, cuda:0 and "
                                   f"cpu! ({name}: {tuple(x.shape)} is on the CPU)")

    def note(self, name, args, marks):
        log = state.log
        masked = name in INDEXING and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        if masked and (len(args) < 3 or args[2].numel() != 1):            # one value everywhere is filled in
            log.note(log.waits, f"{name} with a mask")
        elif name in WAITING or (name == "copy_" and not marks[0]):
            log.note(log.waits, name)
        elif (name == "copy_" and False in marks) or (name in INDEXING and False in [i is None or on_cuda(i) for i in args[1]]):
            log.note(log.copies, name)


def _tf32(x: Tensor) -> Tensor:
    """With the ten bits of mantissa that a tensor core takes of a float32."""
    if x.dtype != torch.float32:
        return x
    return torch.empty_like(x).copy_(((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32))


class _Autocast(torch.autocast):
    def __init__(self, device_type, dtype=None, **kwargs):
        super().__init__("cpu" if device_type == "cuda" else device_type, dtype, **kwargs)


@contextmanager
def pretended_cuda(alike: bool = False):
    """In here, in other threads too, there is one CUDA device; yields its log.

    alike: it computes and draws as the CPU does, so that results must be the same. Otherwise convolutions are rounded to TF32
    where that is allowed, random numbers are others, and there is bfloat16.
    """
    run, load, group = threading.Thread.run, torch.load, torch._C._group_tensors_by_device_and_dtype
    log = Log()
    state.log, state.alike = log, alike

    def run_in_modes(thread):
        with Kernels(), Functions():
            run(thread)

    def load_there(*args, map_location=None, **kwargs):
        there = isinstance(map_location, (str, torch.device)) and torch.device(map_location).type == "cuda"
        found = load(*args, map_location="cpu" if there else map_location, **kwargs)
        return tree_map_only(Tensor, lambda x: _mark(x, True), found) if there else found

    def grouped(lists, *args):                                            # as optimisers ask
        return {(CUDA if on_cuda(of[0][0][0]) else device, dtype): of for (device, dtype), of in group(lists, *args).items()}

    fakes = {
        "is_available": lambda: True, "is_initialized": lambda: True, "is_bf16_supported": lambda *_, **__: not alike,
        "device_count": lambda: 1, "current_device": lambda: 0, "get_device_name": lambda *_: "pretended GPU",
        "set_device": lambda *_: None, "synchronize": log.rest, "empty_cache": lambda: None,
        "mem_get_info": lambda *_: (2**34, 2**34), "memory_allocated": lambda *_: log.bytes,
        "max_memory_allocated": lambda *_: log.peak, "reset_peak_memory_stats": lambda *_: setattr(log, "peak", log.bytes),
        "manual_seed": DEFAULT.manual_seed, "manual_seed_all": DEFAULT.manual_seed,
        "get_rng_state": lambda *_: DEFAULT.get_state(), "set_rng_state": lambda new, *_: DEFAULT.set_state(new)}
    patches = [*((torch.cuda, *pair) for pair in fakes.items()), (threading.Thread, "run", run_in_modes),
               (time, "perf_counter", log.clock), (torch, "Generator", Generator), (torch, "autocast", _Autocast),
               (torch, "load", load_there), (torch._C, "_group_tensors_by_device_and_dtype", grouped)]
    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(mock.patch.object(*patch))
        stack.enter_context(Kernels())
        stack.enter_context(Functions())
        yield log


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    with pretended_cuda() as seen:
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        finally:
            print(seen, file=sys.stderr)
