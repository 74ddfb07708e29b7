"""`course lab`: a server that only its learner can reach, and that ends when it is told to. tests/browser drives JupyterLab."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from course_lib.classroom import cli, notebooks
from course_lib.classroom.learner import lab

# As some have it on a machine of their own: open to everybody. The extensions are left out, since they start slowly.
OPEN = """
c.ServerApp.ip = "0.0.0.0"
c.ServerApp.token = c.IdentityProvider.token = ""
c.ServerApp.password = c.PasswordIdentityProvider.hashed_password = ""
c.ServerApp.allow_origin = "*"
c.ServerApp.allow_remote_access = c.ServerApp.disable_check_xsrf = True
c.ServerApp.identity_provider_class = "jupyter_server.auth.identity.IdentityProvider"
c.ServerApp.jpserver_extensions = {name: name == "jupyterlab" for name in (
    "jupyterlab", "jupyter_lsp", "jupyterlab_jupytext", "notebook", "nbgrader.server_extensions.assignment_list",
    "nbgrader.server_extensions.course_list", "nbgrader.server_extensions.formgrader",
    "nbgrader.server_extensions.validate_assignment")}
"""


@pytest.fixture
def taken():
    """A port on which somebody else listens."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def asked(url, data=None):
    """The status and the text of the answer."""
    try:
        with urllib.request.urlopen(url, data, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_an_open_configuration_opens_nothing_and_a_closed_terminal_ends_all(course, tmp_path):
    """A closed terminal, SIGHUP, does all that SIGTERM does, through it."""
    (tmp_path / "jupyter").mkdir()
    for kind in ("", "_server", "_lab"):
        (tmp_path / "jupyter" / f"jupyter{kind}_config.py").write_text(OPEN)
    port, log = free_port(), tmp_path / "log"
    start = ("import signal, sys; signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup, around all tests, would ignore\n"
             "from pathlib import Path; from course_lib.classroom import cli; sys.exit(cli.main({}, Path({!r})))")
    command = [sys.executable, "-c", start.format(["lab", "--port", str(port), "--no-browser"], str(course))]
    homes = {f"JUPYTER_{kind}_DIR": str(tmp_path / "jupyter") for kind in ("CONFIG", "DATA", "RUNTIME")}
    with log.open("wb") as file:
        server = subprocess.Popen(command, env=notebooks.environment(course, **homes), stdout=file, stderr=file)
    started = []
    try:
        address, token = printed_address(log, server, port)
        assert {connection.laddr.ip for connection in psutil.Process(server.pid).net_connections("tcp")
                if connection.laddr.port == port} == {"127.0.0.1"}
        assert token not in " ".join(psutil.Process(server.pid).cmdline())
        assert asked(f"http://127.0.0.1:{port}/api/contents")[0] == 403
        assert asked(address)[0] == 200
        assert asked(f"http://127.0.0.1:{port}/api/kernels?token={token}", b'{"name": "python3"}')[0] == 201
        started = psutil.Process(server.pid).children(recursive=True)
        assert any("ipykernel" in " ".join(process.cmdline()) for process in started)
        server.send_signal(signal.SIGHUP)
        assert server.wait(60) == 0
        assert psutil.wait_procs(started, 10)[1] == []
        socket.create_server(("127.0.0.1", port)).close()
    finally:
        for process in [server, *started]:
            process.kill() if psutil.pid_exists(process.pid) else None
        server.wait(20)


def printed_address(log, server, port):
    """The address that a learner copies from the terminal, and the token in it."""
    for _ in range(240):
        found = re.search(rf"http://127\.0\.0\.1:{port}/lab/tree/my/00_start_here\.ipynb\?token=(\w{{48}})", log.read_text())
        if found:
            return found[0], found[1]
        assert server.poll() is None, log.read_text()
        time.sleep(0.25)
    raise AssertionError(f"no address in a minute:\n{log.read_text()}")


# --- what is in the way ------------------------------------------------------------------------------------------------

def refused(course, capsys, *arguments):
    """The one line in which `course lab` says why it does not start."""
    assert cli.main(["lab", *arguments], course) == 2
    line = capsys.readouterr().err
    assert line.startswith("course: ") and line.count("\n") == 1
    return line


def test_a_port_in_use_is_named(course, capsys, taken):
    assert f"port {taken} cannot be had (Address already in use); give another one by --port" in refused(
        course, capsys, "--port", str(taken))


@pytest.mark.parametrize("port", ["0", "-1", "65536"])
def test_an_impossible_port_is_named(course, capsys, port):
    assert f"--port must be between 1 and 65535, got {port}" in refused(course, capsys, f"--port={port}")


def test_a_folder_that_cannot_be_written_is_named(course, capsys):
    (course / "my").write_text("in truth a file, which not even root can write into")
    assert "my cannot be written, so nothing that you do could be saved" in refused(course, capsys)


def test_copies_of_an_earlier_version_are_named(course, monkeypatch, capsys):
    monkeypatch.setattr(lab, "_environment", lambda root, folder: {})
    monkeypatch.setattr(lab, "_serve", lambda arguments: None)
    assert lab.lab(course, browser=False) == 0 and "earlier version" not in capsys.readouterr().out
    notebook = notebooks.read(course / "my" / "97_lines.ipynb")
    notebook.metadata["course"]["version"] = "00000000"
    notebooks.write(course / "my" / "97_lines.ipynb", notebook)
    assert lab.lab(course, browser=False) == 0
    assert "97_lines.ipynb: from an earlier version of the course; `course update` brings" in capsys.readouterr().out


def test_a_home_that_cannot_be_written_is_replaced_while_the_server_runs(course, tmp_path, monkeypatch, capsys):
    (tmp_path / "home").write_text("in truth a file, which not even root can write into")
    for kind in ("CONFIG", "DATA", "RUNTIME"):
        monkeypatch.setenv(f"JUPYTER_{kind}_DIR", str(tmp_path / "home" / kind))
    places = lab._homes(tmp_path / "temporary")
    assert all(lab._is_writable(Path(place)) for place in places.values())
    assert sorted(places) == ["JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"]
    assert "it cannot write" in capsys.readouterr().out


# --- the environment ---------------------------------------------------------------------------------------------------

def test_the_lab_is_quiet_and_its_kernels_wait_asleep(course, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    found = lab._environment(course, tmp_path)
    folder = Path(found["JUPYTER_CONFIG_PATH"].split(os.pathsep)[0])
    settings = json.loads((folder / "labconfig" / "default_setting_overrides.json").read_text())
    assert settings["@jupyterlab/apputils-extension:notification"] == {"fetchNews": "false"}
    assert found["OMP_WAIT_POLICY"] == "PASSIVE" and found["COURSE_HOME"] == str(course)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert lab._environment(course, tmp_path)["OMP_WAIT_POLICY"] == "ACTIVE"
