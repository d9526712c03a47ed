"""A picture with a time axis that moves without a kernel: one piece of HTML, no library, no URL.

A `Scrubber` holds panels of one length and moves them together by one slider. The moving part is in
scrubber.js, the look in scrubber.css.
"""

import html
import io
import json
from collections.abc import Sequence
from copy import copy
from functools import cache
from importlib.resources import files
from math import ceil

import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.pyplot import figure as new_figure
from tqdm import tqdm

from linviz.viz.ink import LINES, MAPS, style
from linviz.viz.matrices import (
    frames,
    thin_steps,
    ticks,
)
from linviz.viz.moving import MOST_FRAMES, SIDES, Frames, Lines, Matrices, Points, Rows
from linviz.viz.picture import Picture, by_theme, closing, render, style_sheet
from linviz.viz.sprites import palette, sprite_sheet, text64

STILLS = 6  # steps that the still picture shows
KEYS = ' data-lm-suppress-shortcuts="true"'  # JupyterLab, leave the keys to what has the focus


@cache
def _style() -> str:
    """The style sheet of a scrubber."""

    def colors(theme: str) -> str:
        with style(theme):
            found = [f"--lv-line-{i}:{ink}" for i, ink in enumerate(LINES)]
            for kind in MAPS:
                stops = map(to_hex, mpl.colormaps[MAPS[kind]](np.linspace(0, 1, 17)))
                found.append(f"--lv-map-{kind}:linear-gradient(to top,{','.join(stops)})")
        return ";".join(found)

    look = files("linviz.viz").joinpath("scrubber.css").read_text(encoding="utf-8")
    return style_sheet() + by_theme(".lv-scrubber", colors("light"), colors("dark")) + look


@cache
def _script() -> str:
    """The script: whatever scrubber of the page has not started yet, starts."""
    code = files("linviz.viz").joinpath("scrubber.js").read_text(encoding="utf-8")
    return (
        f"(() => {{ {code}\n"
        "document.querySelectorAll('.lv-scrubber:not([data-ready])').forEach((el) => {"
        " el.setAttribute('data-ready', '');"
        " const written = el.querySelector('script[type=\"application/json\"]').textContent;"
        " const data = JSON.parse(written); render({ model: { get: () => data }, el }); }); })();"
    )


class Scrubber(Picture):
    """Panels of one length under one slider."""

    endings = (*Picture.endings, "gif")

    def __init__(
        self,
        panels: Sequence[Frames | Rows | Lines | Points],
        *,
        alt: str,
        caption: str = "",
        note: str = "",
        tokens: Sequence[str] | None = None,
        start: int | None = None,
        steps: Sequence[int] | None = None,
        clock: str = "t",
    ):
        """Join panels; too many steps for a page are thinned, and a note says so.

        Args:
            panels: `Frames`, `Rows`, `Lines`, `Points`, all with as many steps.
            alt: what the picture shows, in one sentence.
            caption: stands under it.
            note: what was left out before; stands under it too.
            tokens: one label a step.
            start: the step that is shown first; None takes the last.
            steps: the time t of each step; None counts from 0.
            clock: what a step is. Another letter than t, or a word, is for settings, which `tokens`
                name: the title of a step is then "clock = token".
        """
        sizes = {p.title or type(p).__name__: len(p) for p in panels}
        if not panels or len(set(sizes.values())) > 1:
            raise ValueError(f"panels: wanted as many steps in each, got {sizes or 'none'}")
        panels = [copy(panel) for panel in panels]  # the caller may use them again
        T = len(panels[0])
        for name, given in (("tokens", tokens), ("steps", steps)):
            if given is not None and len(given) != T:
                raise ValueError(f"{name}: wanted {T}, one a step, got {len(given)}")
        if start is not None and not -T <= start < T:
            raise ValueError(f"start: wanted a step from {-T} to {T - 1}, got {start}")
        if clock != "t" and tokens is None:
            raise ValueError(
                f"tokens: wanted one a step, the settings of clock={clock!r}, got none"
            )
        kept = thin_steps(T, max(2, min(MOST_FRAMES, *(panel.most for panel in panels))))
        notes = [note] + [f"{len(kept)} of {T} steps shown."] * (len(kept) < T)
        notes += [panel.keep(kept) for panel in panels]
        self.panels, self.clock = panels, clock
        self.steps = [int(t) for t in (np.arange(T) if steps is None else np.asarray(steps))[kept]]
        self.tokens = None if tokens is None else [str(tokens[i]) for i in kept]
        self.start = len(kept) - 1 if start is None else int(np.abs(kept - start % T).argmin())
        many = sum(isinstance(panel, Matrices) for panel in panels) > 2
        for panel in panels:
            panel.times, panel.whole = self.steps, max(T, self.steps[-1] + 1)
            if clock != "t":
                panel.clock, panel.settings = clock, self.tokens
            if isinstance(panel, Matrices):
                panel.side = SIDES[many]
            if isinstance(panel, Rows) and panel.labels["rows"] is None:
                panel.labels["rows"] = self.tokens
        note = " ".join(dict.fromkeys(x for x in notes if x))
        super().__init__(self._still, alt=alt, caption=caption, note=note)

    def words(self, i: int) -> str:
        """The time and the token of step i."""
        if self.clock != "t":
            return f"{self.clock} = {self.tokens[i]}"
        token = f" “{ticks([self.tokens[i]])[1][0]}”" if self.tokens else ""
        return f"t = {self.steps[i]}{token}"

    def _bands(self) -> list[list[Frames | Rows | Lines | Points]]:
        """The panels as lines of the still picture: up to three `Rows` share one."""
        bands = []
        for panel in self.panels:
            beside = isinstance(panel, Rows) and bands and isinstance(bands[-1][0], Rows)
            if beside and len(bands[-1]) < 3:
                bands[-1].append(panel)
            else:
                bands.append([panel])
        return bands

    def _still(self) -> Figure:
        """A strip of a few steps for each panel, the whole time where a panel shows it."""
        at = frames(len(self.steps), most=STILLS)
        if self.start not in at:  # it takes the place of its neighbour
            at[min(range(1, len(at) - 1), key=lambda i: abs(at[i] - self.start))] = self.start
        names = [self.words(t) for t in at]
        bands = self._bands()
        shapes = [band[0].shape(len(at)) for band in bands]
        heights = [min(0.8 + 6.4 / n * ratio, 4.2) for n, ratio in shapes]
        fig = new_figure(figsize=(7.2, sum(heights)), layout="constrained")
        parts = np.ravel(fig.subfigures(len(bands), 1, height_ratios=heights))
        for part, band, (n, _) in zip(parts, bands, shapes, strict=True):
            if isinstance(band[0], Rows):
                alone = len(band) == 1 and band[0].square
                edges = [0.2] * alone  # room at both sides of one square map
                grid = part.add_gridspec(
                    1, len(band) + 2 * alone, width_ratios=[*edges, *(1 for _ in band), *edges]
                )
                for i, panel in enumerate(band):
                    ax = part.add_subplot(grid[0, i + alone])
                    panel.room = Rows.room / len(band)
                    panel.still([ax], at, names)
                    ax.set_title(panel.title, fontsize="medium", parse_math=False)
                    if i and panel.names[0] == band[0].names[0]:
                        ax.set_ylabel("")
            else:
                axes = part.subplots(1, n, squeeze=False, sharey=n > 1)[0]
                part.suptitle(band[0].title, fontsize="medium", parse_math=False)
                band[0].still(list(axes), at, names)
        return fig

    def _movie(self, theme: str) -> bytes:
        """All steps as a GIF."""
        from PIL import Image

        n = len(self.panels)
        columns = min(n, 3)
        size = (3.3 * columns, 2.9 * ceil(n / columns))
        pictures = []
        with style(theme), closing():
            fig = new_figure(figsize=size, layout="constrained")
            grid = fig.subplots(ceil(n / columns), columns, squeeze=False).ravel()
            to = [panel.move(ax, 0) for panel, ax in zip(self.panels, grid, strict=False)]
            for ax in grid[n:]:
                ax.remove()
            for i in tqdm(range(len(self.steps)), desc="gif", unit="frame", leave=False):
                for move in to:
                    move(i)
                fig.suptitle(self.words(i), fontsize="medium", parse_math=False)
                out = io.BytesIO()
                fig.savefig(out, format="png", dpi=100)
                fig.set_layout_engine("none")
                pictures.append(Image.open(out).convert("RGB").quantize(128))
        out = io.BytesIO()
        pictures[0].save(
            out, "GIF", save_all=True, append_images=pictures[1:], duration=self.pause, loop=0
        )
        return out.getvalue()

    def _bytes(self, kind: str, theme: str) -> bytes:
        """The picture in the format `kind`."""
        return self._movie(theme) if kind == "gif" else super()._bytes(kind, theme)

    @property
    def pause(self) -> int:
        """Milliseconds between two steps: about ten seconds for all, and never a flicker."""
        return int(np.clip(10_000 / len(self.steps), 60, 500))

    def _stills(self, light: Figure) -> tuple[str, bytes]:
        """The moving HTML, and a still PNG."""
        return self._body(), render(light, "png")

    def html(self) -> str:
        """The figure as one self-contained piece of HTML, for light and dark pages."""
        return self._html(self._body())

    def _html(self, stills: str) -> str:
        """The figure element around the panels."""
        label = html.escape(self.alt)
        return (
            f'<figure class="lv lv-scrubber" role="group" tabindex="0" aria-label="{label}"'
            f"{KEYS}><style>{_style()}</style>{stills}{self._words()}"
            f"<script>{_script()}</script></figure>"
        )

    def _body(self) -> str:
        """The panels, the controls and the data."""
        pages = [panel.page(i, self.steps) for i, panel in enumerate(self.panels)]
        sheets = {i: sprite_sheet(x) for i, (_, _, x) in enumerate(pages) if x is not None}
        kinds = sorted({data["map"] for _, data, _ in pages if "map" in data})
        names = [f"{kind}-{theme}" for kind in kinds for theme in ("light", "dark")]
        data = {
            "steps": self.steps,
            "words": [self.words(i) for i in range(len(self.steps))],
            "start": self.start,
            "pause": self.pause,
            "panels": [data for _, data, _ in pages],
            "palettes": {name: text64(palette(*name.split("-"))) for name in names}
            | ({"level": text64(palette("level", "light"))} if kinds else {}),
            "head": {i: text64(head) for i, (head, _) in sheets.items()},
            "tail": {i: text64(tail) for i, (_, tail) in sheets.items()},
        }
        tokens = ""
        if self.tokens:
            shown = ticks(self.tokens, len(self.tokens))[1]
            spans = "".join(f"<span>{html.escape(token)}</span>" for token in shown)
            tokens = f'<p class="lv-tokens" aria-hidden="true">{spans}</p>'
        clock = "time t" if self.clock == "t" else html.escape(self.clock)
        encoded = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return (
            f'<div class="lv-panels">{"".join(page for page, _, _ in pages)}</div>{tokens}'
            f'<div class="lv-controls"><button type="button" class="lv-play"{KEYS}>▶ play</button>'
            f'<input class="lv-slider"{KEYS} type="range" min="0" max="{len(self.steps) - 1}" '
            f'step="1" value="{self.start}" aria-label="{clock}"><output class="lv-time"></output>'
            "</div>"
            '<p class="lv-readout" aria-live="polite"></p>'
            "<noscript>This figure moves by JavaScript.</noscript>"
            '<script type="application/json">' + encoded.replace("<", "\\u003c") + "</script>"
        )
