"""One explorer and one scrubber driven live in JupyterLab. `make test` skips this, aloud, where
there is no Chromium or no JupyterLab."""

import nbformat
from browser import WAIT, jupyterlab, needs_chromium, needs_jupyterlab, run_all, watch
from nbformat.v4 import new_code_cell, new_notebook

pytestmark = [needs_chromium, needs_jupyterlab]

CELLS = (
    'from linviz.viz.play import explore_state\nexplore_state("gla", text="abracadabra")',
    "import numpy as np\n"
    "from linviz.viz.scrubber import Frames, Scrubber\n"
    "S = np.arange(45.0).reshape(5, 3, 3) * (-1) ** np.arange(5)[:, None, None]\n"
    'Scrubber([Frames(S, "S")], alt="Five states", start=0)',
)


def test_an_explorer_and_a_scrubber_move_in_jupyterlab(browser, tmp_path):
    cells = [new_code_cell(cell) for cell in CELLS]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nb = new_notebook(cells=cells, metadata={"kernelspec": kernel})
    file = tmp_path / "work" / "nb.ipynb"
    file.parent.mkdir()
    nbformat.write(nb, file)
    page = browser.new_page(viewport={"width": 1300, "height": 1500})
    faults = watch(page)
    with jupyterlab(file.parent, tmp_path / "home") as lab:
        run_all(page, lab, file)
        drive_explorer(page)
        drive_scrubber(page)
        page.close()
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
