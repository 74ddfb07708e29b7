"""`course lab`: the server's command and environment; JupyterLab itself is driven in tests/browser."""

import json

from course_lib.classroom import cli, lab

NAME = "97_lines.ipynb"


def test_lab_serves_quietly_from_the_root(course, monkeypatch):
    started = {}

    class Server:
        def __init__(self, command, cwd, env):
            started.update(command=command, cwd=cwd, settings=json.loads(
                (lab.Path(env["JUPYTER_CONFIG_PATH"].split(lab.os.pathsep)[0])
                 / "labconfig" / "default_setting_overrides.json").read_text()))

        def wait(self):
            return 0

    monkeypatch.setattr(lab.subprocess, "Popen", Server)
    assert cli.main(["lab", "--port", "9999", "--no-browser"], course) == 0
    assert started["cwd"] == course and (course / "my" / NAME).exists()
    assert {"--LabApp.default_url=/lab/tree/my/00_start_here.ipynb", "--port=9999", "--no-browser"} <= set(started["command"])
    assert started["settings"]["@jupyterlab/apputils-extension:notification"] == {"fetchNews": "false"}
