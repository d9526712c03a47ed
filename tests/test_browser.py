"""Pictures as a reader meets them: in Chromium, without a network. `make test` skips them, aloud,
where there is no Chromium."""

import re

import matplotlib
import numpy as np
import pytest
from browser import needs_chromium, watch

from linviz import viz
from linviz.viz import Frames, Lines, Points, Rows, Scrubber

pytestmark = needs_chromium

T = 9
RNG = np.random.default_rng(1)
S = RNG.normal(size=(T, 3, 4))
S[4, 1, 2] = np.nan
A = np.tril(RNG.normal(size=(T, T)))
PANELS = (
    lambda: Frames(S, "S", rows="xyz"),
    lambda: Rows(A, "A", mask=np.triu(np.ones((T, T), bool), 1), col_name="source s"),
    lambda: Lines({"norm": np.arange(T) ** 2.0, "gap": [np.nan, *range(1, T)]}, "curves"),
    lambda: Points(np.arange(3), RNG.normal(size=(T, 3)), "points", line=True),
)


@pytest.fixture
def visit(browser, tmp_path):
    """Open a picture's page; at the end nothing was asked of the network and nothing failed."""
    faults = []

    def open_page(picture, **options):
        page = browser.new_page(**options)
        faults.append(watch(page))
        page.goto(picture.save(tmp_path / "picture.html").as_uri())
        return page

    yield open_page
    assert not any(faults), faults


@pytest.fixture
def page(visit):
    """A page with a scrubber of four panels, at its first step."""
    tokens = [*"a token ", "“"]
    return visit(Scrubber([panel() for panel in PANELS], alt="Four", tokens=tokens, start=0))


def pixels(page, number=0):
    """The colours of a canvas, [i, j, rgba], once its sheet has been decoded."""
    code = """(number) => {
        const canvas = document.querySelectorAll('canvas')[number], {width, height} = canvas;
        const pen = canvas.getContext('2d');
        return [height, width, [...pen.getImageData(0, 0, width, height).data]];
    }"""
    page.wait_for_function(f"(number) => ({code})(number)[2].some((x) => x)", arg=number)
    height, width, data = page.evaluate(code, number)
    return np.array(data).reshape(height, width, 4)


def colors(x, theme="light"):
    """What matplotlib paints these numbers."""
    top = np.nanmax(np.abs(S))
    with viz.style(theme):
        cmap = matplotlib.colormaps[viz.MAPS["signed"]].with_extremes(bad=viz.INK["nan"])
    level = np.ma.masked_invalid(np.rint((x + top) / (2 * top) * 253) / 253)
    return cmap(level, bytes=True)


def test_each_step_shows_its_numbers_in_their_colours(page):
    for t in range(T):
        page.locator(".lv-slider").fill(str(t))
        assert page.locator(".lv-time").inner_text().startswith(f"t = {t} ")
        np.testing.assert_array_equal(pixels(page), colors(S[t]))


def test_the_dark_page_has_the_dark_palette(visit):
    page = visit(Scrubber([PANELS[0]()], alt="dark"), color_scheme="dark")
    page.wait_for_timeout(100)
    np.testing.assert_array_equal(pixels(page), colors(S[-1], "dark"))
    ground = page.locator("figure").evaluate("el => getComputedStyle(el).backgroundColor")
    with viz.style("dark"):
        rgb = (round(255 * x) for x in matplotlib.colors.to_rgb(viz.INK["paper"]))
    assert ground == f"rgb({', '.join(map(str, rgb))})"


def test_the_pages_switch_decides_over_the_readers_system(page):
    pixels(page)
    for attribute, value, theme in [
        ("data-theme", "dark", "dark"),
        ("data-theme", "light", "light"),
        ("data-jp-theme-light", "false", "dark"),
    ]:
        page.evaluate(
            "([a, v]) => document.body.parentElement.setAttribute(a, v)", [attribute, value]
        )
        page.wait_for_timeout(150)
        np.testing.assert_array_equal(pixels(page), colors(S[0], theme))
        page.evaluate("(a) => document.documentElement.removeAttribute(a)", attribute)


def test_masked_cells_are_see_through(page):
    alpha = pixels(page, 1)[..., 3]
    np.testing.assert_array_equal(alpha == 0, np.triu(np.ones((T, T), bool), 1))


def test_the_keyboard_moves_it(page):
    time = page.locator(".lv-time")
    page.locator("figure").focus()
    for key, t in [("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", T - 1)]:
        page.keyboard.press(key)
        assert time.inner_text().startswith(f"t = {t} "), key
    page.locator(".lv-slider").focus()
    for key, t in [("Home", 0), ("ArrowLeft", 0), ("ArrowRight", 1), ("End", T - 1)]:
        page.keyboard.press(key)
        assert time.inner_text().startswith(f"t = {t} "), key
    assert page.locator(".lv-slider").get_attribute("aria-valuetext") == "t = 8 ““”"


def test_it_plays_to_the_end_and_from_there_again(page):
    button = page.locator(".lv-play")
    assert page.locator(".lv-time").inner_text() == "t = 0 “a”"
    page.wait_for_timeout(700)
    assert page.locator(".lv-time").inner_text() == "t = 0 “a”"  # nothing plays by itself
    button.click()
    assert "pause" in button.inner_text() and button.get_attribute("aria-pressed") == "true"
    page.wait_for_function("document.querySelector('.lv-slider').value === '8'", timeout=9000)
    page.wait_for_function("document.querySelector('.lv-play').textContent.includes('play')")
    page.locator("figure").focus()
    page.keyboard.press(" ")
    page.wait_for_function("document.querySelector('.lv-slider').value === '1'")
    page.keyboard.press(" ")
    stopped = page.locator(".lv-slider").input_value()
    page.wait_for_timeout(700)
    assert page.locator(".lv-slider").input_value() == stopped


def hover(page, number, i, j, shape):
    """Move the pointer over a cell, and read what the page says."""
    box = page.locator("canvas").nth(number).bounding_box()
    page.mouse.move(
        box["x"] + (j + 0.5) * box["width"] / shape[1],
        box["y"] + (i + 0.5) * box["height"] / shape[0],
    )
    return page.locator(".lv-readout").inner_text()


def test_the_value_under_the_pointer_is_the_number(page):
    page.wait_for_timeout(200)
    for t in (0, 5):
        page.locator(".lv-slider").fill(str(t))
        for i, j in [(0, 0), (2, 3), (1, 2)]:
            said = hover(page, 0, i, j, (3, 4))
            assert f"key channel k {'xyz'[i]}, value channel v {j}" in said
            value, error = map(float, re.search(r"= (\S+) ± (\S+)", said).groups())
            assert abs(value - S[t, i, j]) <= error <= np.nanmax(np.abs(S)) / 100
    page.locator(".lv-slider").fill("4")
    assert hover(page, 0, 1, 2, (3, 4)).endswith("NaN")
    assert hover(page, 1, 0, 5, (T, T)).endswith("not applicable")
    assert "source s 3" in hover(page, 1, 6, 3, (T, T))


def test_the_value_follows_the_time_under_a_resting_pointer(page):
    page.locator(".lv-slider").fill("0")
    before = hover(page, 0, 2, 3, (3, 4))
    page.keyboard.press("Tab")
    page.locator(".lv-slider").fill("1")
    after = page.locator(".lv-readout").inner_text()
    assert after != before and abs(float(re.search(r"= (\S+) ", after)[1]) - S[1, 2, 3]) < 0.02
    page.mouse.move(0, 0)
    assert page.locator(".lv-readout").inner_text() == ""


@pytest.mark.parametrize("log", [False, True])
def test_every_readout_holds_the_true_number(visit, log):
    x = RNG.normal(size=(2, 6, 7)) ** 5
    page = visit(Scrubber([Frames(x, "x", log=log)], alt="heavy tails", start=0))
    page.wait_for_timeout(200)
    for i in range(6):
        for j in range(7):
            said = hover(page, 0, i, j, (6, 7))
            value, error = map(float, re.search(r"= (\S+) ± (\S+)", said).groups())
            assert abs(value - x[0, i, j]) <= error * (1 + 1e-9)


def test_the_browsers_own_keys_stay_its_own(page):
    page.locator("figure").focus()
    for keys in ("Control+Home", "Alt+ArrowRight", "Control+ArrowRight"):
        page.keyboard.press(keys)
    assert page.locator(".lv-time").inner_text().startswith("t = 0 ")
    page.locator(".lv-play").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator(".lv-time").inner_text().startswith("t = 1 ")


def test_tokens_cannot_break_out(visit):
    tokens = ["<!--<script>", "</script>", "<b>", "a" * 300, "$", "&amp;", '"', "'", "-->"]
    page = visit(
        Scrubber([PANELS[0]()], alt="evil", tokens=tokens), viewport={"width": 390, "height": 800}
    )
    page.locator(".lv-slider").fill("0")
    assert page.locator(".lv-time").inner_text() == "t = 0 “<!--<script>”"
    assert page.locator(".lv-tokens span").all_inner_texts() == tokens
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_rows_curves_and_tokens_lead_to_their_time(page):
    box = page.locator("canvas").nth(1).bounding_box()
    page.mouse.click(box["x"] + 5, box["y"] + 6.5 * box["height"] / T)
    assert page.locator(".lv-time").inner_text().startswith("t = 6 ")
    mark = page.locator("rect.lv-cursor").bounding_box()
    assert mark["y"] + mark["height"] / 2 == pytest.approx(
        box["y"] + 6.5 * box["height"] / T, abs=2
    )
    page.locator(".lv-tokens span").nth(2).click()
    assert page.locator(".lv-time").inner_text() == "t = 2 “t”"
    assert page.locator(".lv-now").inner_text() == "t"
    plot = page.locator(".lv-plot").bounding_box()
    page.mouse.click(plot["x"] + 58 + 244 * 7 / (T - 1), plot["y"] + 50)
    assert page.locator(".lv-time").inner_text().startswith("t = 7 ")
    assert page.locator(".lv-value").all_text_contents() == ["49", "7"]
    page.keyboard.press("Home")


def test_curves_and_points_follow_the_slider(page):
    before = page.locator("circle.lv-dot").evaluate_all("all => all.map(x => x.getAttribute('cy'))")
    page.locator(".lv-slider").fill("3")
    after = page.locator("circle.lv-dot").evaluate_all("all => all.map(x => x.getAttribute('cy'))")
    assert len(after) == 3 and before != after
    assert page.locator(".lv-value").all_text_contents() == ["9", "3"]
    page.locator(".lv-slider").fill("0")
    assert page.locator(".lv-value").all_text_contents() == ["0", "–"]


def test_it_fits_a_phone(visit):
    size = {"width": 390, "height": 800}
    page = visit(Scrubber([panel() for panel in PANELS], alt="Four"), viewport=size)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for place in page.locator(".lv-panel").all():
        assert place.evaluate("el => el.scrollWidth <= el.clientWidth + 1")


def test_a_still_picture_follows_the_page(visit):
    picture = viz.panels({"a": np.eye(3)}, alt="The identity")
    for scheme, other in [("light", "dark"), ("dark", "light")]:
        page = visit(picture, color_scheme=scheme)
        assert page.locator(f"img.lv-{scheme}").is_visible()
        assert not page.locator(f"img.lv-{other}").is_visible()
        assert page.get_by_alt_text("The identity").locator("visible=true").count() == 1
        page.evaluate("(x) => document.documentElement.setAttribute('data-theme', x)", other)
        assert page.locator(f"img.lv-{other}").is_visible()


def test_two_figures_of_one_page_do_not_meddle(browser, tmp_path):
    made = Scrubber([PANELS[0]()], alt="one", start=0).html()
    path = tmp_path / "two.html"
    path.write_text(f"<!doctype html><meta charset=utf-8>{made}{made}", encoding="utf-8")
    page = browser.new_page()
    page.goto(path.as_uri())
    page.locator(".lv-slider").nth(1).fill("5")
    assert page.locator(".lv-time").all_inner_texts() == ["t = 0", "t = 5"]
