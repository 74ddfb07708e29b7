"""`course lab`: JupyterLab on the learner's own copies."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import webbrowser
from pathlib import Path

from course_lib import files

from . import copies, notebooks

START = "00_start_here.ipynb"


def lab(root: Path, port: int | None = None, browser: bool = True) -> int:
    """Hand out what is missing and serve JupyterLab on the first chapter until stopped; returns its exit status.

    Without a display, or with browser=False, it prints the address and opens nothing.
    """
    copies.hand_out(root)
    # By its default address, not as a file argument: only then does the printed address lead to the notebook as well.
    command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={root}", f"--LabApp.default_url=/lab/tree/my/{START}"]
    command += [f"--port={port}"] if port else []
    command += [] if browser and _has_browser() else ["--no-browser"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command += ["--allow-root"]         # in a container one is often root; the server listens on this machine only
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(command, cwd=root, env=_quiet_lab(root, Path(folder)))
        while True:
            with contextlib.suppress(KeyboardInterrupt):    # Ctrl-C is Jupyter's to handle; it asks before stopping
                return server.wait()


def _quiet_lab(root: Path, folder: Path) -> dict[str, str]:
    """An environment in which JupyterLab asks no news and draws whole notebooks; the user's own settings stay as they are.

    Drawing only what is on the screen, its default, makes a page of figures jump under the reader.
    """
    settings = {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false"},
                "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"}}
    text = json.dumps(settings).encode("utf-8")
    files.atomic_write(folder / "labconfig" / "default_setting_overrides.json", lambda file: file.write(text))
    paths = [str(folder), *filter(None, [os.environ.get("JUPYTER_CONFIG_PATH")])]
    commands = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])     # `course` in its terminal
    return notebooks.environment(root, JUPYTER_CONFIG_PATH=os.pathsep.join(paths), PATH=commands)


def _has_browser() -> bool:
    """Is there a browser with a screen to show it on?"""
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False
    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return True
