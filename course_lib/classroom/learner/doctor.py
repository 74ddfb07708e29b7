"""`course doctor`: is this machine ready for the course? Each finding is (name, is it well, what to say about it)."""

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys

Finding = tuple[str, bool, str]


def examine() -> list[Finding]:
    """All findings, the cheap ones first. A missing optional part is well: it says what it would be for."""
    return [_python(), _torch(), _device(), _threads(), _scale(), *_jupyter(), _chromium(),
            *_verified("course_lib.data", "data"), *_verified("course_lib.recipes", "weights"),
            *_verified("course_lib.measure", "tables")]


def _python() -> Finding:
    version = platform.python_version()
    return "python", sys.version_info >= (3, 11), f"{version} on {platform.system()} (3.11 or newer is needed)"


def _torch() -> Finding:
    if importlib.util.find_spec("torch") is None:
        return "torch", False, "not installed: `pip install -e .` in the course's folder"
    return "torch", True, importlib.metadata.version("torch")


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return "device", True, f"{torch.cuda.get_device_name()}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    return "device", True, "CPU; every chapter runs on it at scale quick"


def _threads() -> Finding:
    import torch

    return "threads", True, f"torch uses {torch.get_num_threads()} of {os.cpu_count()} processors"


def _scale() -> Finding:
    import torch

    default = "full" if torch.cuda.is_available() else "quick"
    scale = os.environ.get("COURSE_SCALE", default)
    return "scale", scale in ("quick", "full"), f"{scale} (COURSE_SCALE is quick or full; {default} by default here)"


def _jupyter() -> list[Finding]:
    needed = {"jupyterlab": "`course lab`", "nbval": "`course check`", "ipywidgets": "sliders"}
    return [_installed(package, use) for package, use in needed.items()]


def _installed(package: str, use: str) -> Finding:
    if importlib.util.find_spec(package) is None:
        return package, False, f"not installed; needed for {use}: `pip install -e '.[lab]'`"
    return package, True, importlib.metadata.version(package)


def _chromium() -> Finding:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    return "chromium", True, found or "not found; only the tests that drive a browser want it"


def _verified(module: str, what: str) -> list[Finding]:
    """Every file, by the module that owns the files: by its check sum, or, of tables that are written anew, row by row."""
    try:
        return importlib.import_module(module).verify_all()
    except (OSError, ValueError, ImportError) as error:
        return [(what, False, " ".join(str(error).split()))]
