"""Chromium and JupyterLab, for the tests that meet a page as a reader does."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from importlib.util import find_spec

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
LOCAL = r"file:|data:|blob:|(http|ws)://127\.0\.0\.1:"
TOKEN = "t0k"
WAIT = 60_000  # milliseconds, for a machine with much else to do

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="NO CHROMIUM: apt-get install chromium fonts-dejavu"
)
needs_jupyterlab = pytest.mark.skipif(
    find_spec("jupyterlab") is None, reason='NO JUPYTERLAB: pip install -e ".[notebooks]"'
)


def watch(page, known="(?!)"):
    """A list that fills with what goes wrong on a page: errors, except what the pattern `known`
    matches, and what it asks of the network, which it does not get."""
    faults = []

    def note(text):
        if not re.search(known, text):
            faults.append(text)

    def refuse(route):
        faults.append(f"asked for {route.request.url}")
        route.abort()

    page.route(re.compile(f"^(?!{LOCAL})"), refuse)
    page.on("websocket", lambda socket: re.match(LOCAL, socket.url) or note(socket.url))
    page.on("pageerror", lambda error: note(str(error)))
    page.on("console", lambda said: said.type == "error" and note(said.text))
    return faults


@contextmanager
def jupyterlab(folder, home):
    """The address of a JupyterLab on a folder; its settings and kernels are this test's own."""
    runtime, log = home / "runtime", home / "log"
    settings = home / "lab/user-settings/@jupyterlab"
    for name, values in {
        "apputils-extension/notification": {"fetchNews": "false"},
        "notebook-extension/tracker": {"windowingMode": "none"},  # all cells are in the page
    }.items():
        (settings / name).parent.mkdir(parents=True, exist_ok=True)
        (settings / f"{name}.jupyterlab-settings").write_text(json.dumps(values))
    folders = {"JUPYTER_CONFIG_DIR": home, "JUPYTER_DATA_DIR": home, "IPYTHONDIR": home}
    folders |= {"JUPYTER_RUNTIME_DIR": runtime}
    env = os.environ | {name: str(folder) for name, folder in folders.items()}
    env |= {"JUPYTER_PREFER_ENV_PATH": "1", "OMP_NUM_THREADS": "1"}
    quiet = ("news_url=None", "check_for_updates_class=jupyterlab.NeverCheckForUpdate")
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += ["--ip=127.0.0.1", "--port=0", f"--IdentityProvider.token={TOKEN}"]
    command += [f"--LabApp.{option}" for option in (*quiet, "extension_manager=readonly")]
    with open(log, "w") as out:
        server = subprocess.Popen(
            command, cwd=folder, env=env, stdout=out, stderr=subprocess.STDOUT
        )
        try:
            yield address(server, runtime, log)
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
            with suppress(ValueError):  # half written
                return json.loads(file.read_text(encoding="utf-8"))["url"]
        time.sleep(0.1)
    raise AssertionError(f"JupyterLab did not start:\n{log.read_text(encoding='utf-8')}")


def run_all(page, url, file):
    """Open a notebook of a JupyterLab and run every cell. The file's outputs, once each cell has
    its number; a kernel that is still starting forgets a run."""
    import nbformat

    page.goto(f"{url}lab/tree/{file.name}?token={TOKEN}&reset", timeout=WAIT)
    page.get_by_text("| Idle").wait_for(timeout=WAIT)
    page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for(timeout=WAIT)
    prompts, until = page.locator(".jp-CodeCell .jp-InputPrompt"), time.monotonic() + WAIT / 500
    ran = [None]
    while None in ran:
        assert time.monotonic() < until, f"the cells did not run: {ran}"
        if not re.search(r"[\d*]", "".join(prompts.all_inner_texts())):
            page.get_by_role("menuitem", name="Run", exact=True).click()
            page.locator('.lm-Menu-item[data-command="runmenu:run-all"]').click()
        page.locator('.jp-Toolbar [data-command="docmanager:save"]').click()
        page.wait_for_timeout(500)
        with suppress(ValueError):  # half written
            cells = nbformat.read(file, 4).cells
            code = [cell for cell in cells if cell.cell_type == "code"]
            ran = [cell.execution_count for cell in code]
    return [output for cell in code for output in cell.outputs]
