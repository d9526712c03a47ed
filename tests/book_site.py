"""The built book as a reader meets it: its pages in Chromium, without a network.

A plain `pytest` does not collect this file, as it needs the book: `make book-test` builds and tests
it. LINVIZ_SITE names another folder than book/_build/html.
"""

import os
import re
import shutil
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from threading import Thread
from urllib.parse import unquote, urljoin, urlsplit
from xml.etree import ElementTree

import pytest
from browser import WAIT, jupyterlab, needs_chromium, needs_jupyterlab, run_all, watch
from bs4 import BeautifulSoup

PROJECT = Path(__file__).parents[1]
SITE = Path(os.environ.get("LINVIZ_SITE", PROJECT / "book" / "_build" / "html")).resolve()
if not (SITE / "index.html").is_file():
    pytest.fail(f"NO BOOK in {SITE}: `make book` first, or `make book-test` for both", False)

TOC = (PROJECT / "book" / "_toc.yml").read_text(encoding="utf-8")
PAGES = re.findall(r"^[ -]*(?:root|file): *(\S+)", TOC, re.M)
OTHERS = ["genindex", "index", "py-modindex", "search"]  # Sphinx's own
HOSTS = {"arxiv.org", "colab.research.google.com", "doi.org", "github.com", "jfly.uni-koeln.de"}
COLAB = r"https://colab.research.google.com/github/[\w.-]+/[\w.-]+/blob/main/(notebooks/\w+.ipynb)"
LAB = r"http://localhost:8888/lab/tree/(\w+\.ipynb)"  # the reader's own
KNOWN = "THEBE_JS_URL' has already been declared|^Got invalid theme mode: "  # the theme's own
LIVE = "05_retnet_three_forms.ipynb"  # opened in JupyterLab
each_page = pytest.mark.parametrize("name", PAGES)


# ------------------------------------------------------------------- what the files say


@cache
def soup(name):
    """A page of the site, parsed; long data left out."""
    text = (SITE / f"{name}.html").read_text(encoding="utf-8")
    text = re.sub(r"base64,[\w+/=]+", "base64,", text)
    return BeautifulSoup(text, "html.parser")


@cache
def ids(file):
    """The places of a page that a link can name."""
    return {x["id"] for x in soup(file.relative_to(SITE).with_suffix("")).select("[id]")}


def test_the_pages_are_those_of_the_toc():
    built = {str(file.relative_to(SITE).with_suffix("")) for file in SITE.glob("**/*.html")}
    built = {name for name in built if not name.startswith("_static/")}
    assert built == {*PAGES, *OTHERS}


@pytest.mark.parametrize("name", PAGES + OTHERS)
def test_every_link_leads_somewhere(name):
    links = [x.get("href") or x.get("src") for x in soup(name).select("[href], [src]")]
    for refresh in soup(name).select("meta[http-equiv=Refresh]"):
        links.append(refresh["content"].split("url=")[1])
    assert [link for link in links if not leads(link, f"https://site/{name}.html")] == []
    loaded = [x.get("src") or x["href"] for x in soup(name).select("[src], link[href]")]
    assert [link for link in loaded if re.match(r"(\w+:)?//", link)] == []


def leads(link, base):
    """Whether a link leads to a file and a place of the site, or to a host we know."""
    if link.startswith("data:"):
        return True
    if found := re.fullmatch(LAB, link):
        return (PROJECT / "notebooks" / found[1]).is_file()
    url = urlsplit(urljoin(base, link))
    if url.netloc != "site":
        notebook = re.fullmatch(COLAB, link)
        there = url.hostname != "colab.research.google.com" or (PROJECT / notebook[1]).is_file()
        return url.scheme == "https" and url.netloc in HOSTS and there
    file, place = SITE / unquote(url.path).lstrip("/"), unquote(url.fragment)
    return file.is_file() and (not place or (file.suffix == ".html" and place in ids(file)))


@each_page
def test_a_notebook_can_be_opened_elsewhere(name):
    links = [x["href"] for x in soup(name).select(".open-in a")]
    if name.startswith("notebooks/"):
        colab, lab, download = links
        assert re.fullmatch(COLAB, colab)[1] == f"{name}.ipynb"
        assert re.fullmatch(LAB, lab)[1] == f"{PurePosixPath(name).name}.ipynb"
        assert download.endswith(f"_sources/{name}.ipynb")
    else:
        assert not links


@each_page
def test_pictures_have_words_anchors_and_an_svg(name):
    article, places = soup(name).select_one("article"), soup(name).select(".figure-place")
    alts = [image.get("alt", "") for image in article.select("img")]
    alts += [figure.get("aria-label", "") for figure in article.select("figure.lv-scrubber")]
    assert [alt for alt in alts if not re.search(r"\w \w", alt)] == []  # words, not a file's name
    assert len(article.select("figure.lv")) == len(article.select(".figure-place figure.lv"))
    every = [x["id"] for x in soup(name).select("[id]")]
    for place in places:
        anchor = place["id"]
        assert re.fullmatch("[a-z][a-z0-9-]*", anchor)
        assert every.count(anchor) == 1, f"{anchor} names two places"
        assert not re.search(r"\b[0-9a-f]{8}\b", anchor), f"{anchor}: give the cell a name"
        assert place.select_one(f'a[href="#{anchor}"]')
        svg = SITE / "_figures" / name / f"{anchor}.svg"
        assert place.select_one(f'a[href$="_figures/{name}/{svg.name}"]'), anchor
        assert len(ElementTree.parse(svg).findall(".//{http://www.w3.org/2000/svg}path")) > 2, svg


@each_page
def test_outputs_hold_no_complaint_and_no_address(name):
    assert [x.text for x in soup(name).select(".output.stderr, .output.traceback")] == []
    assert re.findall(r".*\bat 0x[0-9a-f]+.*|Traceback \(most recent.*", soup(name).text) == []


# ------------------------------------------------------------------ what Chromium shows

# The moving figures have decoded their sheets.
DRAWN = """() => [...document.querySelectorAll('.lv-scrubber canvas')].every((x) =>
    x.getContext('2d').getImageData(0, 0, x.width, x.height).data.some((y) => y))"""

# The figures whose slider does not move what it should, panel by panel.
STUCK = """() => [...document.querySelectorAll('.lv-scrubber')].map((figure) => {
    const slider = figure.querySelector('.lv-slider'), first = slider.value;
    const data = JSON.parse(figure.querySelector('[type="application/json"]').textContent).panels;
    const look = (panel) => panel.innerHTML
        + [...panel.querySelectorAll('canvas')].map((x) => x.toDataURL());
    const seen = [slider.min, Math.round(slider.max / 2), slider.max, first].map((t) => {
        slider.value = t;
        slider.dispatchEvent(new Event('input'));
        const panels = [...figure.querySelectorAll('.lv-panel')].map(look);
        return [figure.querySelector('.lv-time').textContent, ...panels];
    });
    const stands = seen[0].map((x, i) => seen.every((parts) => parts[i] === x));
    const drawings = data.map(({kind}, i) => kind === 'frames' && !stands[i + 1]);
    const same = ({x, y}) => x.every((_, t) => `${[x[t], y[t]]}` === `${[x[0], y[0]]}`);
    const faults = data.flatMap((panel, i) => stands[i + 1]
        && !(panel.kind === 'points' && same(panel))  // eigenvalues that are constant
        && !(panel.kind === 'frames' && drawings.some((x) => x)) ? [panel.kind] : []);
    if (stands[0]) faults.push('time');
    if (!figure.querySelector('button.lv-play')) faults.push('no button');
    return [figure.getAttribute('aria-label'), faults];
}).filter(([, faults]) => faults.length)"""

# The first S, q, k, v, o of the formulas: [its colour, the text's].
INKS = """() => {
    const found = {}, color = (x) => getComputedStyle(x).color;
    for (const [letter, glyph] of Object.entries({S: '1D446', q: '1D45E', k: '1D458', v: '1D463',
                                                  o: '1D45C'})) {
        const x = document.querySelector(`mjx-mi .mjx-c${glyph}`);
        if (x) found[letter] = [color(x), color(x.closest('mjx-container'))];
    }
    return found;
}"""


@needs_chromium
@needs_jupyterlab
def test_a_chapter_runs_in_jupyterlab(browser, tmp_path):
    shutil.copytree(PROJECT / "notebooks", tmp_path / "notebooks")
    page = browser.new_page(viewport={"width": 1300, "height": 1500})
    faults = watch(page)
    with jupyterlab(tmp_path / "notebooks", tmp_path / "home") as lab:
        outputs = run_all(page, lab, tmp_path / "notebooks" / LIVE)
        assert [x for x in outputs if "error" in x.output_type or x.get("name") == "stderr"] == []
        page.locator(".lv-scrubber").first.wait_for(timeout=WAIT)
        page.wait_for_function(DRAWN)
        assert page.evaluate(STUCK) == []
        picture = page.locator(".widget-html img.lv-light").first
        before = picture.get_attribute("src")
        page.locator(".widget-slider .noUi-target:not([disabled]) .noUi-handle").first.focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_function(
            "(y) => document.querySelector('.widget-html img.lv-light').src !== y",
            arg=before,
            timeout=WAIT,
        )
        page.close()
    assert not faults


@pytest.fixture(scope="module")
def url():
    """The address of the site."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=SITE)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def visit(browser, url):
    """Open a page of the site; `page.faults` fills with what goes wrong."""
    page = browser.new_context(viewport={"width": 1200, "height": 900}).new_page()
    page.set_default_timeout(10_000)
    page.faults = watch(page, KNOWN)
    page.on("response", lambda x: x.status >= 400 and page.faults.append(f"{x.status} {x.url}"))
    page.goto(url)
    page.evaluate("window.MathJax && MathJax.startup.promise")
    return page


@pytest.fixture(scope="module")
def opened(browser, url, request):
    """A page, opened once for all its tests."""
    page = visit(browser, f"{url}/{request.param}.html")
    page.wait_for_function(DRAWN)
    yield page
    page.context.close()


@pytest.fixture
def page(opened):
    """A page on which nothing has gone wrong, before and after the test."""
    assert not opened.faults
    yield opened
    assert not opened.faults


def in_chromium(test):
    """Run a test on each page."""
    return needs_chromium(pytest.mark.parametrize("opened", PAGES, indirect=True)(test))


@in_chromium
def test_it_opens_with_its_formulas_set(page):
    name = page.evaluate("DOCUMENTATION_OPTIONS.pagename")
    assert page.locator("article h1").count() == 1 and name in PAGES
    found = page.evaluate(
        """() => {
            const all = (selector) => [...document.querySelectorAll(selector)];
            const text = document.querySelector('article').cloneNode(true);
            const drop = 'pre, code, script, style, svg, mjx-container, .lv-tokens, .lv-time';
            text.querySelectorAll(drop).forEach((x) => x.remove());
            return {
                unset: all('.math').filter((x) => !x.querySelector('mjx-container')).length,
                errors: all('mjx-merror, [data-mjx-error]').map((x) => x.textContent),
                raw: text.textContent.match(/\\$[^$\\n]+\\$|\\\\[([].*|\\\\begin.*/g) || [],
            };
        }"""
    )
    assert found == {"unset": 0, "errors": [], "raw": []}
    tex = " ".join(x.text for x in soup(name).select(".math"))
    for theme in ("light", "dark"):
        system(page, theme)
        inks = page.evaluate(INKS)
        colors = [ink for ink, _ in inks.values()]
        assert "S" in inks or not re.search(r"(?<![\w\\{])S_", tex)
        assert len(set(colors)) == len(colors), inks
        assert all(ink != text for ink, text in inks.values()), inks


@in_chromium
def test_every_moving_figure_moves(page):
    assert page.evaluate(STUCK) == []
    if figures := page.locator(".lv-scrubber:visible").all():
        slider, time = figures[0].locator(".lv-slider"), figures[0].locator(".lv-time")
        seen = []
        for key in ("Home", "ArrowRight", "ArrowLeft"):
            slider.press(key)
            seen.append(time.inner_text())
        assert seen[0] == seen[2] != seen[1]
        figures[0].locator(".lv-play").click()
        moved = [time.element_handle(), seen[2]]
        page.wait_for_function("([time, before]) => time.textContent !== before", arg=moved)
        figures[0].locator(".lv-play").click()


def switch(page, mode):
    """Press the page's own switch."""
    for _ in range(3):
        if page.evaluate("document.documentElement.dataset.mode") != mode:
            page.locator(".theme-switch-button:visible").first.click()


def system(page, theme):
    """Let the page follow the reader's system, which is dark or light."""
    switch(page, "auto")
    page.emulate_media(color_scheme=theme)
    page.wait_for_function("(x) => document.documentElement.dataset.theme === x", arg=theme)


def shows(page, theme):
    """Pictures are those of the theme, and so is the page; nothing is wider than the window."""
    found = page.evaluate(
        """(theme) => {
            const all = (selector) => [...document.querySelectorAll(selector)];
            const name = (x) => `${x.tagName} ${x.className} ${x.textContent.slice(0, 60)}`;
            const scrolls = (x) => x.closest('article') && (x.clientWidth < x.scrollWidth
                && /auto|scroll/.test(getComputedStyle(x).overflowX) || scrolls(x.parentElement));
            const sticksOut = (x, place = {left: 0, right: innerWidth}) => {
                const {left, right, width} = x.getBoundingClientRect();
                return width > 0 && (left < place.left - 1 || right > place.right + 1);
            };
            const cut = (x) => sticksOut(x, x.closest('.math').getBoundingClientRect());
            const paper = getComputedStyle(document.body).backgroundColor.match(/\\d+/g);
            return {
                theme: document.documentElement.dataset.theme,
                dark: paper[1] < 128,
                inks: all('.lv').filter((x) =>
                    getComputedStyle(x).getPropertyValue('--lv-theme').trim() !== theme).length,
                stills: all('.lv img').filter((x) => x.classList.contains('lv-' + theme)
                    === (getComputedStyle(x).display === 'none')).map((x) => x.alt),
                wide: document.documentElement.scrollWidth > innerWidth + 1,
                outside: all('article :not(mjx-assistive-mml, mjx-assistive-mml *)')
                    .filter((x) => sticksOut(x) && !scrolls(x))
                    .filter((x, i, found) => !found.includes(x.parentElement)).map(name),
                cut: all('.math mjx-container').filter(cut).map(name),
                controls: all('.lv-controls *').filter((x) => sticksOut(x)).map(name),
            };
        }""",
        theme,
    )
    wide = {"wide": False, "outside": [], "cut": [], "controls": []}
    assert found == {"theme": theme, "dark": theme == "dark", "inks": 0, "stills": [], **wide}


@in_chromium
@pytest.mark.parametrize("width", [1200, 390])
def test_it_fits_in_light_and_dark(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    for theme in ("light", "dark"):
        system(page, theme)
        shows(page, theme)
    for theme in ("light", "dark", "light"):  # by the page's own switch: the system stays dark
        switch(page, theme)
        shows(page, theme)


@in_chromium
def test_what_is_folded_opens(page):
    assert page.locator(".tag_solution:not(:has(details))").count() == 0
    shut = """(folded) => folded.filter((x) => !x.open
        && !x.querySelector(':scope > :not(summary)').checkVisibility()).length"""
    click = "(folded) => folded.forEach((x) => x.querySelector('summary').click())"
    folded = page.locator("article details")
    assert folded.evaluate_all(shut) == folded.count()
    folded.evaluate_all(click)
    assert folded.evaluate_all(shut) == 0
    folded.evaluate_all(click)


@needs_chromium
def test_the_search_finds(browser, url):
    page = visit(browser, f"{url}/search.html?q=retention")
    found = page.locator("#search-results li a")
    found.first.wait_for()
    found.first.click()
    page.wait_for_url(lambda address: "search.html" not in address)
    assert page.evaluate("DOCUMENTATION_OPTIONS.pagename") in PAGES
    assert page.locator("article h1").is_visible() and not page.faults
    page.context.close()


@needs_chromium
def test_the_first_screen_moves(browser, url):
    page = visit(browser, f"{url}/{PAGES[0]}.html")
    assert page.locator(".lv-slider").first.bounding_box()["y"] < 900
    page.context.close()
