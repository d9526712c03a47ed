"""One explorer and one scrubber driven live in JupyterLab. `make test` skips this, aloud, where
there is no Chromium or no JupyterLab."""

import json
import os
import re
import subprocess
import sys
import time
from importlib.util import find_spec

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from test_browser import CHROMIUM, FLAGS

pytestmark = [
    pytest.mark.skipif(
        CHROMIUM is None, reason="NO CHROMIUM: apt-get install chromium fonts-dejavu"
    ),
    pytest.mark.skipif(
        find_spec("jupyterlab") is None, reason='NO JUPYTERLAB: pip install -e ".[notebooks]"'
    ),
]

TOKEN = "t0k"
WAIT = 60_000  # milliseconds, for a machine with much else to do
CELLS = (
    'from linviz.viz.play import explore_state\nexplore_state("gla", text="abracadabra")',
    "import numpy as np\n"
    "from linviz.viz.scrubber import Frames, Scrubber\n"
    "S = np.arange(45.0).reshape(5, 3, 3) * (-1) ** np.arange(5)[:, None, None]\n"
    'Scrubber([Frames(S, "S")], alt="Five states", start=0)',
)


@pytest.fixture
def lab(tmp_path):
    """The address of a JupyterLab with one notebook; no settings or kernels but this one's."""
    home, runtime = tmp_path / "home", tmp_path / "runtime"
    cells = [new_code_cell(cell) for cell in CELLS]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nb = new_notebook(cells=cells, metadata={"kernelspec": kernel})
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "nb.ipynb").write_text(nbformat.writes(nb), encoding="utf-8")
    silent = home / "lab/user-settings/@jupyterlab/apputils-extension"
    silent.mkdir(parents=True)
    (silent / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
    folders = {"JUPYTER_CONFIG_DIR": home, "JUPYTER_DATA_DIR": home, "IPYTHONDIR": home}
    folders |= {"JUPYTER_RUNTIME_DIR": runtime}
    env = os.environ | {name: str(folder) for name, folder in folders.items()}
    env |= {"JUPYTER_PREFER_ENV_PATH": "1", "OMP_NUM_THREADS": "1"}
    quiet = ("news_url=None", "check_for_updates_class=jupyterlab.NeverCheckForUpdate")
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += ["--ip=127.0.0.1", "--port=0", f"--IdentityProvider.token={TOKEN}"]
    command += [f"--LabApp.{option}" for option in (*quiet, "extension_manager=readonly")]
    with open(tmp_path / "log", "w") as log:
        server = subprocess.Popen(
            command, cwd=tmp_path / "work", env=env, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            yield address(server, runtime, tmp_path / "log")
        finally:
            server.terminate()  # it ends its kernels
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def address(server, runtime, log):
    """The address, once the server has written it."""
    until = time.monotonic() + 60
    while server.poll() is None and time.monotonic() < until:
        for file in runtime.glob("jpserver-*.json"):
            try:
                return json.loads(file.read_text(encoding="utf-8"))["url"]
            except ValueError:  # half written
                pass
        time.sleep(0.1)
    raise AssertionError(f"JupyterLab did not start:\n{log.read_text(encoding='utf-8')}")


def guard(route, faults):
    """Nothing is asked of the network."""
    if re.match(r"(http|ws)://127\.0\.0\.1|data:|blob:", route.request.url):
        return route.continue_()
    faults.append(route.request.url)
    return route.abort()


def run_all(page):
    """Run every cell until each has its number; a kernel that is still starting forgets a run."""
    page.get_by_text("| Idle").wait_for(timeout=WAIT)
    page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for(timeout=WAIT)
    prompts, until = page.locator(".jp-CodeCell .jp-InputPrompt"), time.monotonic() + WAIT / 1000
    shown = [""]
    while not all(re.search(r"\d", x) for x in shown):
        assert time.monotonic() < until, f"the cells did not run: {shown}"
        if not any(re.search(r"[\d*]", x) for x in shown):
            page.get_by_role("menuitem", name="Run", exact=True).click()
            page.locator('.lm-Menu-item[data-command="runmenu:run-all"]').click()
        page.wait_for_timeout(500)
        shown = prompts.all_inner_texts()
    assert len(shown) == len(CELLS)


def test_an_explorer_and_a_scrubber_move_in_jupyterlab(lab):
    from playwright.sync_api import sync_playwright

    faults = []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1300, "height": 1500})
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.route("**/*", lambda route: guard(route, faults))
        page.goto(f"{lab}lab/tree/nb.ipynb?token={TOKEN}&reset", timeout=WAIT)
        run_all(page)
        drive_explorer(page)
        drive_scrubber(page)
        browser.close()
    assert not faults


def drive_explorer(page):
    """The chunk slider by its keys, the mechanism by its list: the picture follows."""
    picture = page.locator(".widget-html img.lv-light")
    picture.wait_for(timeout=WAIT)
    first = picture.get_attribute("src")
    assert "in chunks of 4" in picture.get_attribute("alt")
    slider = page.locator(".widget-slider", has_text="chunk")
    slider.locator(".noUi-handle").focus()
    page.keyboard.press("ArrowRight")
    page.locator('.widget-html img.lv-light[alt*="in chunks of 5"]').wait_for(timeout=WAIT)
    assert slider.locator(".widget-readout").inner_text() == "5"
    assert picture.get_attribute("src") != first
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 500
    page.locator(".widget-dropdown select").select_option("deltanet")
    page.locator('.widget-html img.lv-light[alt*="Delta"]').wait_for(timeout=WAIT)
    gate = page.locator(".widget-slider", has_text="log gate")
    gate.locator(".noUi-target[disabled]").wait_for(timeout=WAIT)
    assert page.locator(".lv", has_text="Open this notebook").count() == 0  # no still picture here


def drive_scrubber(page):
    """Keys on the slider and the play button: time passes, and JupyterLab's own keys stay still."""
    figure = page.locator(".lv-scrubber")
    figure.scroll_into_view_if_needed()
    time_shown, slider = figure.locator(".lv-time"), figure.locator(".lv-slider")
    assert time_shown.inner_text() == "t = 0"
    canvas = "document.querySelector('.lv-scrubber canvas')"
    drawn = f"{canvas}.getContext('2d').getImageData(0, 0, 3, 3).data.join()"
    page.wait_for_function(f"{drawn}.split(',').some((x) => x > 0)", timeout=WAIT)
    first = page.evaluate(drawn)
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert time_shown.inner_text() == "t = 1" and page.evaluate(drawn) != first
    figure.focus()
    for key, t in [("ArrowRight", 2), ("ArrowLeft", 1), ("End", 4), ("Home", 0)]:
        page.keyboard.press(key)
        assert time_shown.inner_text() == f"t = {t}", key
    assert page.evaluate(drawn) == first
    figure.locator(".lv-play").click()
    page.wait_for_function("document.querySelector('.lv-slider').value === '4'", timeout=WAIT)
    assert page.locator(".jp-CodeCell").count() == len(CELLS)
