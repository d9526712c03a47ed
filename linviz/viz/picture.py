"""A picture: what a notebook shows in light and dark, and what can be saved.

A picture is drawn when it is looked at, once a theme. The page that shows it decides which of the
two is seen: by the reader's system, or by the page's own switch (Jupyter Book, JupyterLab).
"""

import html
import io
import os
import re
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path as FilePath

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.mathtext import MathTextParser
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.text import Text
from matplotlib.transforms import Bbox, BboxTransformTo

from linviz.viz.ink import INK, style

MOST_SHAPES = 20_000  # cells of a heat map that an SVG holds as shapes; more stay an image
DPI = 144  # dots an inch of a PNG: two for each of a page's

# A page in the dark: the reader's system says so and the page does not object, or the page does.
_LIGHT_PAGES = "html[data-theme=light] {0},[data-jp-theme-light=true] {0},.vscode-light {0}"
_DARK_PAGES = "html[data-theme=dark] {0},[data-jp-theme-light=false] {0},.vscode-dark {0}"


def by_theme(selector: str, light: str, dark: str) -> str:
    """A style sheet in which what `selector` selects is styled by the page's theme.

    Args:
        selector: of CSS.
        light: declarations on a light page.
        dark: declarations on a dark page.
    """
    return (
        f"{selector}{{{light}}}"
        f"@media (prefers-color-scheme:dark){{{selector}{{{dark}}}}}"
        f"{_LIGHT_PAGES.format(selector)}{{{light}}}{_DARK_PAGES.format(selector)}{{{dark}}}"
    )


def inks(theme: str) -> str:
    """The colours of a theme as CSS variables."""
    with style(theme):
        return f"--lv-theme:{theme};" + "".join(f"--lv-{name}:{INK[name]};" for name in INK)


def style_sheet() -> str:
    """What every picture's HTML needs: the inks, the caption, and which still is seen."""
    return (
        by_theme(".lv", inks("light"), inks("dark"))
        + by_theme(".lv .lv-light", "display:block!important", "display:none!important")
        + by_theme(".lv .lv-dark", "display:none!important", "display:block!important")
        + ".lv{margin:.6rem 0;max-width:100%}"
        ".lv img{max-width:100%;height:auto;border-radius:4px}"
        ".lv figcaption{color:inherit;font-size:.85em;line-height:1.4;margin-top:.3rem}"
    )


def plain(text: str) -> str:
    """An SVG whose outlines are given to a hundredth of a point, and whose ids are numbered.

    Matplotlib's ids change from one drawing to the next.
    """
    cut = partial(re.sub, r"(\.\d\d)\d+", r"\1")
    text = re.sub(r' d="[^"]*"', lambda found: cut(found[0]), text)
    ids = dict.fromkeys(re.findall(r'id="([a-zA-Z]?[0-9a-f]{10})"', text))
    numbered = {name: f"{name[0]}{i}" for i, name in enumerate(ids)}
    return re.sub(r"[a-zA-Z]?[0-9a-f]{10}", lambda found: numbered.get(found[0], found[0]), text)


def _cells(ax: Axes) -> list[PathPatch]:
    """Lay the cells of each image over it, one outline a colour; the commonest is the ground."""
    drawn = []
    for image in ax.images:
        x = image.get_array()
        alpha = np.broadcast_to(1.0 if image.get_alpha() is None else image.get_alpha(), x.shape)
        rgba = image.to_rgba(x).reshape(-1, 4)
        colors, which, counts = np.unique(rgba, axis=0, return_inverse=True, return_counts=True)
        which, ground = which.ravel(), counts.argmax() if (alpha > 0).all() else -1
        for color in sorted(range(len(colors)), key=lambda c: c != ground):
            at = np.flatnonzero((which == color) & (alpha.ravel() > 0))
            cells = [Bbox.from_bounds(i % x.shape[1], i // x.shape[1], 1, 1) for i in at]
            cells = [Bbox.from_bounds(0, 0, *x.shape[::-1])] if color == ground else cells
            if cells:
                squares = [Path.unit_rectangle().transformed(BboxTransformTo(c)) for c in cells]
                outline = Path.make_compound_path(*squares)
                outline.vertices -= 0.5  # cell (i, j) of an image is centred on (j, i)
                drawn.append(PathPatch(outline, facecolor=colors[color], linewidth=0))
                ax.add_patch(drawn[-1])
    return drawn


def render(fig: Figure, kind: str) -> bytes:
    """Write a figure on its own opaque ground, without a date: drawn again, it is the same.

    A picture without a ground is unreadable on a dark page, so the ground is drawn too. In an SVG
    the cells of small heat maps become shapes (their bars do not): some pages refuse an image
    inside an image.

    Args:
        fig: any figure.
        kind: png, svg or pdf.
    """
    dated = {"svg": "Date", "pdf": "CreationDate"}.get(kind)
    images = [image for ax in fig.axes for image in ax.images]
    few = sum(image.get_array().size for image in images) <= MOST_SHAPES
    images = images if kind == "svg" and few else []
    shapes = [shape for ax in fig.axes for shape in _cells(ax)] if images else []
    out = io.BytesIO()
    with style():
        try:
            for image in images:
                image.set_visible(False)
            ground, metadata = fig.get_facecolor(), {dated: None} if dated else None
            fig.savefig(out, format=kind, facecolor=ground, dpi=DPI, metadata=metadata)
        finally:
            for image in images:
                image.set_visible(True)
            for shape in shapes:
                shape.remove()
    return plain(out.getvalue().decode()).encode() if kind == "svg" else out.getvalue()


def save_card(fig: Figure, path: str | FilePath) -> FilePath:
    """Save a figure on its own opaque ground, see `render`.

    Args:
        fig: any figure.
        path: where to; the ending decides the format (svg, png, pdf).

    Returns:
        The path.
    """
    path = FilePath(path)
    path.write_bytes(render(fig, path.suffix[1:]))
    return path


def literal(text: Text) -> None:
    """Take a text with dollars as it is, unless it is a formula: names and tokens may have any."""
    if "$" in text.get_text():
        try:
            for line in text.get_text().splitlines():  # matplotlib too sets line by line
                MathTextParser("path").parse(line)
        except ValueError:
            text.set_parse_math(False)


@contextmanager
def closing() -> Iterator[None]:
    """Close every figure that is opened inside, also where drawing it fails."""
    before = set(plt.get_fignums())
    try:
        yield
    finally:
        for number in set(plt.get_fignums()) - before:
            plt.close(number)


class Picture:
    """A picture drawn in light and in dark, with words for those who cannot see it."""

    endings = ("html", "png", "svg", "pdf")
    _ids = count(1)

    def __init__(
        self,
        draw: Callable[[], Figure],
        *,
        alt: str,
        caption: str = "",
        note: str = "",
        vector: bool = False,
    ):
        """Keep what draws; nothing is drawn yet.

        Args:
            draw: makes the figure; called once a theme, inside `style(theme)`.
            alt: what the picture shows, in one sentence.
            caption: stands under it.
            note: what was left out, such as "every 16th of 4096 steps shown"; stands under it too.
            vector: pages show an SVG (lines and words), not a PNG (heat maps).
        """
        self.draw, self.alt, self.caption, self.note = draw, alt, caption, note
        self.vector = vector

    def __repr__(self) -> str:
        return f"{type(self).__name__}: {self.alt}"

    def figure(self, theme: str = "light") -> Figure:
        """Draw it with matplotlib.

        Args:
            theme: "light" or "dark".

        Returns:
            A closed Figure.
        """
        with closing(), style(theme):
            fig = self.draw()
            for text in fig.findobj(Text):
                literal(text)
            return fig

    def _stills(self, light: Figure) -> tuple[str, bytes]:
        """Both themes' images as HTML, and the light one as PNG."""
        words, tags = html.escape(self.alt), []
        kind, mime = ("svg", "svg+xml") if self.vector else ("png", "png")
        for theme in ("light", "dark"):
            fig = light if theme == "light" else self.figure(theme)
            image = render(fig, kind)
            if theme == "light":
                png = render(fig, "png") if self.vector else image
            data = b64encode(image).decode()
            hidden = " style='display:none'" * (theme == "dark")
            tags.append(
                f'<img class="lv-{theme} dark-light"{hidden} alt="{words}" '
                f'width="{fig.get_figwidth() * 96:.0f}" src="data:image/{mime};base64,{data}">'
            )
        return "".join(tags), png

    def _words(self) -> str:
        """The caption and the note, as HTML."""
        text = " ".join(html.escape(x) for x in (self.caption, self.note) if x)
        return f"<figcaption>{text}</figcaption>" * bool(text)

    def _html(self, stills: str) -> str:
        """The figure element around the stills."""
        return f'<figure class="lv"><style>{style_sheet()}</style>{stills}{self._words()}</figure>'

    def html(self) -> str:
        """The picture as one self-contained piece of HTML, for light and dark pages."""
        return self._html(self._stills(self.figure())[0])

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        """HTML, and a PNG and words for what cannot show HTML."""
        light = self.figure()
        stills, png = self._stills(light)
        encoded = b64encode(png).decode()
        bundle = {"text/html": self._html(stills), "image/png": encoded, "text/plain": repr(self)}
        if os.environ.get("LINVIZ_SVG"):  # the book asks for it, to offer it beside the figure
            bundle["image/svg+xml"] = render(light, "svg").decode()
        return bundle

    def save(self, path: str | FilePath, theme: str = "light") -> FilePath:
        """Save it.

        Args:
            path: where to; the ending decides the format, see `endings`. HTML is a whole page in
                both themes.
            theme: "light" or "dark", for the other formats.

        Returns:
            The path.
        """
        path = FilePath(path)
        kind = path.suffix[1:]
        if kind not in self.endings:
            wanted = ", ".join(f".{ending}" for ending in self.endings)
            raise ValueError(f"path: wanted a name that ends in {wanted}, got {path.name}")
        if not path.parent.is_dir():
            raise ValueError(f"path: there is no folder {path.parent}")
        path.write_bytes(self._bytes(kind, theme))
        return path

    def _bytes(self, kind: str, theme: str) -> bytes:
        """The picture in the format `kind`."""
        if kind != "html":
            return render(self.figure(theme), kind)
        page = by_theme("body", "background:#fff;color:#222", "background:#16181b;color:#e3e6ea")
        return (
            '<!doctype html><html lang="en"><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            f"<title>{html.escape(self.alt)}</title><style>{page}"
            "body{max-width:60rem;margin:1rem auto;padding:0 1rem;font:16px/1.5 sans-serif}"
            f"</style><body>{self.html()}</body></html>"
        ).encode()
