"""`course lab`: JupyterLab on the learner's own copies."""

import asyncio
import contextlib
import importlib.util
import json
import os
import secrets
import signal
import socket
import sys
import tempfile
import webbrowser
from pathlib import Path

from jupyter_core import paths

from ... import files
from .. import notebooks
from . import copies

START = "00_start_here.ipynb"
HERE = "127.0.0.1"


def lab(root: Path, port: int | None = None, browser: bool = True) -> int:
    """Hand out what is missing and serve JupyterLab on the first chapter until stopped; returns its exit status.

    Without a display, or with browser=False, it prints the address and opens nothing. The server runs in this process,
    so whatever ends this process ends it and its kernels. Raises ValueError or OSError if it cannot start.
    """
    _expect_startable(port)
    if not _is_writable(root / "my"):       # said now rather than at the first save
        raise ValueError(f"{root / 'my'} cannot be written, so nothing that you do could be saved")
    copies.hand_out(root)
    for line in copies.worked_in(root):
        print(line, flush=True)
    if old := copies.of_earlier_versions(root):
        print(f"{', '.join(path.name for path in old)}: from an earlier version of the course; `course update` brings the "
              "present one, with your answers", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(_environment(root, Path(folder)))
        try:
            _serve(_arguments(root, port, browser))
        except SystemExit as stop:          # Jupyter has said why
            return 2 if stop.code else 0
    return 0


def _serve(arguments: list[str]) -> None:
    """Run JupyterLab until a signal stops it; a closed terminal counts as one."""
    from jupyterlab.labapp import LabApp

    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:     # under nohup it is ignored
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())        # until Jupyter has a handler of its own
    server = LabApp.initialize_server(arguments)
    server.identity_provider.token_generated = True             # Jupyter prints no token that it takes for a user's
    server.start()


def _arguments(root: Path, port: int | None, browser: bool) -> list[str]:
    """What is fixed whatever a configuration says. They are no command line: nobody sees the token in a list of processes.

    By its default address, not as a file argument, JupyterLab opens a notebook to which the printed address leads as well.
    """
    fixed = {"ServerApp.root_dir": root, "LabApp.default_url": f"/lab/tree/my/{START}",
             "ServerApp.ip": HERE, "ServerApp.sock": "", "ServerApp.allow_remote_access": False,
             "ServerApp.allow_origin": "", "ServerApp.allow_origin_pat": "", "ServerApp.disable_check_xsrf": False,
             "ServerApp.identity_provider_class": "jupyter_server.auth.identity.PasswordIdentityProvider",
             "PasswordIdentityProvider.hashed_password": "", "IdentityProvider.token": secrets.token_hex(24),
             "ServerApp.allow_root": True}                      # in a container one is often root
    if port:
        fixed |= {"ServerApp.port": port, "ServerApp.port_retries": 0}
    if not (browser and _has_browser()):
        fixed["ServerApp.open_browser"] = False
    return [f"--{name}={value}" for name, value in fixed.items()]


def _expect_startable(port: int | None) -> None:
    if importlib.util.find_spec("jupyterlab") is None:
        raise ValueError("JupyterLab is not installed; `pip install -e '.[lab]'` in the course's folder brings it")
    with contextlib.suppress(RuntimeError):
        asyncio.get_running_loop()
        raise ValueError("`course lab` is for a terminal; a notebook runs in a JupyterLab already")
    if port is None:
        return
    if not 0 < port < 65536:
        raise ValueError(f"--port must be between 1 and 65535, got {port}")
    with socket.socket() as probe:
        if os.name == "posix":              # a port that was in use a moment ago is free
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HERE, port))
        except OSError as error:
            raise ValueError(f"port {port} cannot be had ({error.strerror}); give another one by --port, or none") from error


def _environment(root: Path, folder: Path) -> dict[str, str]:
    """An environment in which JupyterLab asks no news and draws whole notebooks; the user's own settings stay as they are.

    Drawing only what is on the screen, its default, makes a page of figures jump under the reader.
    """
    settings = {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false"},
                "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"}}
    text = json.dumps(settings).encode("utf-8")
    files.atomic_write(folder / "labconfig" / "default_setting_overrides.json", lambda file: file.write(text))
    settings_first = os.pathsep.join([str(folder), *filter(None, [os.environ.get("JUPYTER_CONFIG_PATH")])])
    commands = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])     # `course` in its terminal
    return notebooks.environment(root, JUPYTER_CONFIG_PATH=settings_first, PATH=commands, **_homes(folder))


def _homes(folder: Path) -> dict[str, str]:
    """Places in `folder` for what Jupyter keeps of its own, where the usual ones cannot be written."""
    usual = {"JUPYTER_CONFIG_DIR": paths.jupyter_config_dir(), "JUPYTER_DATA_DIR": paths.jupyter_data_dir(),
             "JUPYTER_RUNTIME_DIR": paths.jupyter_runtime_dir()}
    unwritable = [name for name, place in usual.items() if not _is_writable(Path(place), mode=0o700)]
    if unwritable:
        print(f"JupyterLab forgets its settings when it ends: it cannot write {', '.join(usual[name] for name in unwritable)}",
              flush=True)
    return {name: str(folder / name.lower()) for name in unwritable}


def _is_writable(folder: Path, mode: int = 0o777) -> bool:
    """Can files be made in the folder? Makes it, with this mode, if it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=mode)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


def _has_browser() -> bool:
    """Is there a browser with a screen to show it on?"""
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False
    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return True
