"""The pieces of HTML and SVG that a moving panel is made of."""

import html
from collections.abc import Sequence

import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.ticker import LogLocator, MaxNLocator

from linviz.viz.ink import LINES
from linviz.viz.matrices import (
    Number,
)


class Scale:
    """Numbers to pixels, with ticks."""

    def __init__(self, x: np.ndarray, log: bool, low: Number, high: Number, tight: bool = False):
        """The finite numbers of `x` lie between the pixels `low` and `high`."""
        x = x[np.isfinite(x) & ((x > 0) | (not log))]
        span = (float(x.min()), float(x.max())) if x.size else (0.1, 1.0)
        if span[0] == span[1]:
            span = (span[0] / 2, span[1] * 2) if log else (span[0] - 0.5, span[1] + 0.5)
        self.norm = LogNorm(*span) if log else Normalize(*span)
        whole = not log and bool((x % 1 == 0).all())
        few = span[1] < 100 * span[0]  # less than two decades: 2 and 5 of each, too
        marks = (
            LogLocator(subs=(1, 2, 5) if few else (1,)) if log else MaxNLocator(5, integer=whole)
        )
        at = marks.tick_values(*span)
        if not tight and not log:
            self.norm = Normalize(min(at[0], span[0]), max(at[-1], span[1]))
        inside = [t for t in at if self.norm.vmin <= t <= self.norm.vmax]
        self.ticks = inside[:: -(-len(inside) // 6) or 1]
        self.low, self.high = low, high

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Pixels; NaN where there is no place for a number."""
        x = np.asarray(x, float)
        good = np.isfinite(x) & ((x > 0) | (not isinstance(self.norm, LogNorm)))
        share = np.full(x.shape, np.nan)
        share[good] = np.asarray(self.norm(x[good]), float)
        return self.low + share * (self.high - self.low)

    def axis(self, at: Number, flat: bool = False) -> list[str]:
        """The ticks as SVG, on the axis that stands (or lies) at `at`."""
        drawn = []
        for tick, place in zip(self.ticks, self(np.array(self.ticks)), strict=True):
            word = f"{tick:.4g}"
            if flat:
                drawn.append(f'<path class="lv-axis" d="M{place:.1f} {at}v4"/>')
                drawn.append(svg_text(place, at + 15, word))
            else:
                drawn.append(f'<path class="lv-axis" d="M{at} {place:.1f}h-4"/>')
                drawn.append(svg_text(at - 6, place + 4, word, "end"))
        return drawn


def svg_text(
    x: Number,
    y: Number,
    word: str,
    anchor: str = "middle",
    *,
    turn: bool = False,
    small: bool = False,
    slant: bool = False,
) -> str:
    """A word of an SVG."""
    turned = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turn else ""
    if slant:
        anchor, turned = "end", f' transform="rotate(-60 {x:.1f} {y:.1f})"'
    small = ' class="lv-small"' * small
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f"<text {place}{small}{turned}>{html.escape(word)}</text>"


def svg_image(
    width: Number, height: Number, parts: Sequence[str], *over: str, plot: bool = False
) -> str:
    """An SVG; `over` is drawn last."""
    size = f'width="{width:.0f}" height="{height:.0f}"'
    name = ' class="lv-plot"' * plot
    return f'<svg{name} aria-hidden="true" {size}>{"".join((*parts, *over))}</svg>'


def panel_html(title: str, width: Number, height: Number, body: str, legend: str = "") -> str:
    """A panel around its body, with the legend below."""
    return (
        f'<div class="lv-panel" style="width:{width:.0f}px"><div class="lv-title">'
        f'{html.escape(title)}</div><div class="lv-stage" style="width:{width:.0f}px;'
        f'height:{height:.0f}px">{body}</div>{legend}</div>'
    )


def line_ink(i: int) -> tuple[str, str]:
    """The ink and the dash of the i-th line, as in `lines`."""
    return f"var(--lv-line-{i % len(LINES)})", ("none", "6 3", "6 2 1 2")[i // len(LINES) % 3]


def svg_path(points: Sequence[tuple[Number, Number]]) -> str:
    """A line of an SVG through points; NaN leaves a gap."""
    drawn, pen = [], "M"
    for x, y in points:
        drawn += [f"{pen}{x:.1f} {y:.1f}"] if np.isfinite(y) else []
        pen = "L" if np.isfinite(y) else "M"
    return "".join(drawn)


def json_pixels(x: np.ndarray) -> list[Number | None]:
    """Pixels as JSON has them."""
    return [round(float(v), 1) if np.isfinite(v) else None for v in x]
