"""Chapter 00 in a real browser, as a learner meets it: `course lab`, Run All, move the slider, look at the picture."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlparse

import pytest
from nbformat import v4

pytestmark = [pytest.mark.browser, pytest.mark.slow]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
START = "00_start_here.ipynb"


@pytest.fixture
def course(root, tmp_path):
    """A learner's folder: the shipped notebooks, the shipped data, no my/ yet."""
    folder = tmp_path / "course"
    (folder / "notebooks").mkdir(parents=True)
    for path in (root / "notebooks").glob("*.ipynb"):
        shutil.copy(path, folder / "notebooks")
    (folder / "data").symlink_to(root / "data")
    return folder


@pytest.fixture
def address(course, root):
    """`course lab` without a screen: serves until the test ends; the address that it prints."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start = f"from pathlib import Path; from course_lib.classroom.learner import lab; lab.lab(Path({str(course)!r}), {port})"
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1",    # the browser wants the other core
                   "JUPYTERLAB_WORKSPACES_DIR": str(course / "workspaces")}          # no tabs of another lab of this user
    environment.pop("DISPLAY", None)
    log = course / "lab.log"
    with open(log, "wb") as file:
        server = subprocess.Popen([sys.executable, "-c", start], env=environment, stdout=file, stderr=file,
                                  start_new_session=True)
    try:
        yield _printed_address(log, server)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(20)


def _printed_address(log: Path, server: subprocess.Popen) -> str:
    for _ in range(240):
        found = re.search(r"http://(?:localhost|127\.0\.0\.1):\d+/lab/tree/my/\S*token=\w+", log.read_text())
        if found:
            return found[0]
        assert server.poll() is None, log.read_text()
        time.sleep(0.5)
    raise AssertionError(f"JupyterLab printed no address in two minutes:\n{log.read_text()}")


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_chapter_00_runs_from_top_to_bottom_and_its_slider_changes_the_picture(address, course, tmp_path):
    from playwright.sync_api import sync_playwright

    outside, errors = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1300, "height": 1000})
        page.on("request", lambda r: None if _is_local(r.url) else outside.append(r.url))
        page.on("console", lambda m: errors.append(f"{m.text} {m.location.get('url')}") if m.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        page.get_by_role("heading", name="Start here").first.wait_for(timeout=60_000)
        page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for(timeout=60_000)
        _run_all(page)
        cells = _wait_until_run(page, course / "my" / START)

        slider = page.locator(".widget-slider .noUi-handle")
        slider.scroll_into_view_if_needed()
        picture = page.locator(".jupyter-widgets img, img.widget-image").first
        before = picture.get_attribute("src")
        slider.focus()
        for _ in range(4):
            page.keyboard.press("ArrowRight")
        page.wait_for_function("([image, before]) => image.src !== before", arg=[picture.element_handle(), before])
        page.wait_for_timeout(500)
        page.screenshot(path=tmp_path / "slider.png")
        browser.close()

    said = "".join("".join(output.get("text", "")) for cell in cells for output in cell.get("outputs", []))
    failures = [output for cell in cells for output in cell.get("outputs", []) if output["output_type"] == "error"]
    assert not failures
    assert "0.1 … not yet tried. The chapter goes on with the course's own." in said
    assert "network evaluations, one after the other" in said
    assert not outside, f"the page asked for {outside}"
    assert not errors, f"the console shows {errors}"


FLIPBOOK = """import matplotlib.pyplot as plt
from course_lib import plotting
from course_lib.widgets import flipbook, progress

def page(t):
    figure, ax = plt.subplots(figsize=(4, 3))
    ax.plot([0, t])
    return figure

plotting.style()
for _ in progress(range(3)):
    pass
flipbook(page, t=[0.1, 0.5, 0.9])"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_flipbook_keeps_its_size_and_once_saved_shows_its_first_page_and_no_error(course, address):
    from playwright.sync_api import sync_playwright

    path = course / "my" / "flip.ipynb"
    notebook = v4.new_notebook(cells=[v4.new_code_cell(FLIPBOOK)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3 (ipykernel)"}
    path.write_text(json.dumps(notebook), encoding="utf-8")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1366, "height": 768})
        page.goto(address.replace(START, path.name))
        page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for(timeout=60_000)
        _run_all(page)
        live, slider = page.locator("img.widget-image"), page.locator(".widget-slider")
        note = page.locator(".course-flipbook-note")
        live.wait_for(timeout=60_000)
        shown = live.bounding_box()
        assert (shown["width"], shown["height"]) == (400, 300), "at its natural size, and not as wide as the cell"
        assert slider.bounding_box()["y"] < shown["y"] and live.evaluate("image => image.naturalWidth") == 800
        assert note.count() == 1 and not note.is_visible() and not page.locator(".jp-RenderedImage img").is_visible()
        _wait_until_run(page, path)
        page.get_by_role("menuitem", name="Kernel", exact=True).click()
        page.get_by_text("Shut Down Kernel", exact=True).click()
        page.wait_for_timeout(1000)
        page.reload()
        note.wait_for(timeout=60_000)
        still = page.locator(".jp-RenderedImage img")
        still.wait_for(timeout=60_000)
        page.get_by_text("Error displaying widget").wait_for(timeout=60_000, state="attached")
        assert not page.get_by_text("Error displaying widget").is_visible()
        assert still.count() == 1 and still.bounding_box()["width"] == 400
        browser.close()


def _is_local(url: str) -> bool:
    parts = urlparse(url)
    return parts.scheme in ("data", "blob", "about") or parts.hostname in ("localhost", "127.0.0.1")


def _run_all(page, tries: int = 4) -> None:
    """Run All Cells, once more if no cell has a prompt: a click can come before JupyterLab has bound its commands."""
    prompts = page.locator(".jp-InputPrompt").filter(has_text=re.compile(r"\[(\*|\d+)\]"))
    for _ in range(tries):
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()
        for _ in range(20):
            page.wait_for_timeout(1000)
            if prompts.count():
                return
    raise AssertionError(f"Run All Cells was chosen {tries} times, and no cell ran")


def _wait_until_run(page, path: Path, seconds: int = 400) -> list[dict]:
    """Save again and again until every code cell has run; the cells as saved."""
    for _ in range(seconds // 4):
        page.wait_for_timeout(4000)
        page.keyboard.press("Control+s")
        try:
            notebook = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError:                                              # JupyterLab is writing it at this moment
            continue
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        if all(cell["execution_count"] for cell in cells):
            return cells
    kernel = page.locator(".jp-Notebook-ExecutionIndicator").first.get_attribute("data-status")
    raise AssertionError(f"after {seconds} s, with the kernel {kernel}, these cells had not run: "
                         + ", ".join(cell["id"] for cell in cells if not cell["execution_count"]))
