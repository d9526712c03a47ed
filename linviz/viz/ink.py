"""One table of inks: each quantity has one colour in every picture, and in the book's equations.

The colours are those of Okabe and Ito (2008), chosen so that colour-blind readers can tell them
apart; on a dark ground they are lighter. `INK`, `LINES` and `MAPS` give the colours of the theme
being drawn, so look them up while drawing. Importing this file changes no setting of matplotlib;
`style(theme)` does so for a `with` block.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import matplotlib as mpl
from matplotlib.colors import LinearSegmentedColormap

_THEME = ContextVar("theme", default="light")


class Themed:
    """A table of colours with one version a theme; it gives those of the theme being drawn."""

    def __init__(self, light: Mapping | Sequence, dark: Mapping | Sequence):
        """Both versions have the same keys."""
        self.tables = {"light": light, "dark": dark}

    def __getitem__(self, key: Any) -> Any:
        return self.tables[_THEME.get()][key]

    def __iter__(self) -> Iterator:
        return iter(self.tables[_THEME.get()])

    def __len__(self) -> int:
        return len(self.tables[_THEME.get()])


INK = Themed(
    light={
        "state": "#D55E00",
        "decay": "#56B4E9",
        "query": "#0072B2",
        "key": "#E69F00",
        "value": "#009E73",
        "output": "#CC79A7",
        "text": "#222222",
        "paper": "#FFFFFF",
        "soft": "#F4F5F7",  # the ground of a box
        "mask": "#F2F2F2",  # "not applicable": the ground under a hatch, never a value
        "hatch": "#BBBBBB",
        "nan": "#FF00FF",  # loud: a picture must not hide a NaN
    },
    dark={
        "state": "#FF8A47",
        "decay": "#8CD3FF",
        "query": "#4C9FEA",
        "key": "#F2B632",
        "value": "#2CC79B",
        "output": "#E79CC6",
        "text": "#E3E6EA",
        "paper": "#16181B",
        "soft": "#23272C",
        "mask": "#23262A",
        "hatch": "#565C64",
        "nan": "#FF00FF",
    },
)

_OTHERS = ("#E69F00", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442")
_OTHERS_DARK = ("#F2B632", "#4C9FEA", "#2CC79B", "#FF8A47", "#E79CC6", "#8CD3FF", "#F0E442")
LINES = Themed(light=("#000000", *_OTHERS), dark=("#F5F6F8", *_OTHERS_DARK))

# On a dark ground 0 is dark. Matplotlib's own maps of that kind keep small numbers nearly black.
_STOPS = ((0, "#B9DEFF"), (0.25, "#3F8FDC"), (0.5, "#23272C"), (0.75, "#D9662B"), (1, "#FFCFA6"))
if "linviz_dark" not in mpl.colormaps:
    mpl.colormaps.register(LinearSegmentedColormap.from_list("linviz_dark", _STOPS))

MAPS = Themed(
    light={
        "signed": "RdBu_r",  # diverging, 0 in the middle
        "count": "viridis",  # 0 and up
        "gate": "cividis",  # between 0 and 1
    },
    dark={"signed": "linviz_dark", "count": "viridis", "gate": "cividis"},
)


def _settings() -> dict[str, Any]:
    """Matplotlib's settings in the theme being drawn."""
    text, paper = INK["text"], INK["paper"]
    lines = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), text)
    grounds = dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), paper)
    return {
        **lines,
        **grounds,
        "font.size": 9,
        "axes.edgecolor": text,
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": mpl.cycler(color=list(LINES)),
        "hatch.linewidth": 0.5,
        "legend.frameon": False,
        "svg.hashsalt": "linviz",
    }


@contextmanager
def style(theme: str = "light") -> Iterator[None]:
    """Draw in linviz's style inside a `with` block; the reader's own settings come back after.

    Args:
        theme: "light" or "dark".
    """
    if theme not in INK.tables:
        raise ValueError(f"theme: wanted light or dark, got {theme!r}")
    token = _THEME.set(theme)
    try:
        with mpl.rc_context():
            mpl.rcdefaults()  # the reader's own settings would change what a picture says
            mpl.rcParams.update(_settings())
            yield
    finally:
        _THEME.reset(token)
