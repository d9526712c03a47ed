"""Curves: what a mechanism scores, remembers or costs, along one axis.

`moving_mean` and `crossing` measure; `lines` and `line_panels` draw.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from linviz.viz.ink import INK, LINES
from linviz.viz.matrices import Array, Number, array
from linviz.viz.picture import Picture


def moving_mean(x: Array, window: int) -> np.ndarray:
    """Average the last `window` values.

    Args:
        x: [t], numbers or True and False.
        window: how many.

    Returns:
        [t]; NaN until the window is full, since fewer values are not comparable.
    """
    if window < 1:
        raise ValueError(f"window: wanted 1 or more, got {window}")
    x = array(x, "x", "t").astype(float)
    mean = np.full(len(x), np.nan)
    if window <= len(x):
        mean[window - 1 :] = np.lib.stride_tricks.sliding_window_view(x, window).mean(-1)
    return mean


def crossing(x: Array, rising: Array, other: Array) -> float:
    """Find where one curve first passes above another, between points on logarithmic axes.

    Args:
        x: [n], increasing and above 0.
        rising: [n], above 0.
        other: [n], above 0.

    Returns:
        The x of the crossing; NaN where `rising` starts above or never gets there.
    """
    x, rising, other = (
        array(y, name, "n") for y, name in ((x, "x"), (rising, "rising"), (other, "other"))
    )
    if min(x.min(), rising.min(), other.min()) <= 0:
        raise ValueError("x, rising, other: wanted numbers above 0, for logarithmic axes")
    gap = np.log(rising) - np.log(other)
    up = np.flatnonzero((gap[:-1] <= 0) & (gap[1:] > 0))
    if not up.size:
        return float("nan")
    i = up[0]
    share = -gap[i] / (gap[i + 1] - gap[i])
    return float(np.exp((1 - share) * np.log(x[i]) + share * np.log(x[i + 1])))


def one_length(
    series: Mapping[str, Array], x: Array | None = None
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Read lines, name -> [n], and the x [n] that they share; other lengths are refused."""
    if not series:
        raise ValueError("series: wanted one line or more, got none")
    read = {name: array(y, f"series[{name!r}]", "n") for name, y in series.items()}
    sizes = {name: len(y) for name, y in read.items()}
    if x is not None:
        x = array(x, "x", "n")
        sizes["x"] = len(x)
    if len(set(sizes.values())) > 1:
        raise ValueError(f"series: wanted lines of one length, got {sizes}")
    return read, x


def lines(
    series: Mapping[str, Array],
    *,
    x: Array | None = None,
    ax: Axes | None = None,
    xlabel: str = "time t",
    ylabel: str = "",
    log: str = "",
    markers: bool = False,
    events: Sequence[Number] = (),
    names: Sequence[str] | None = None,
) -> Axes:
    """Draw one line a name; a name keeps its place's ink, so that pictures can be compared.

    Args:
        series: name -> [n]; NaN leaves a gap.
        x: [n], shared by all; None counts from 0.
        ax: where to draw; None makes a new figure.
        xlabel: name of the horizontal axis.
        ylabel: name of the vertical axis.
        log: the logarithmic axes: "", "x", "y" or "xy".
        markers: a dot at each point.
        events: positions of thin vertical lines, such as the moments when the rules change.
        names: all names of a picture with several Axes, whose places choose the inks; None takes
            those of series.

    Returns:
        The Axes, with one `ax.lines` a name first, then the events.
    """
    series, x = one_length(series, x)
    if ax is None:
        _, ax = plt.subplots(layout="constrained")
    names = [*(names or series)]
    for name, y in series.items():
        where, i = np.arange(len(y)) if x is None else x, names.index(name)
        dash = ("-", "--", "-.")[i // len(LINES) % 3]
        ink = LINES[i % len(LINES)]
        ax.plot(where, y, dash, color=ink, label=name, lw=1.4, marker="o" if markers else "", ms=3)
    for event in events:
        ax.axvline(event, color=INK["hatch"], lw=0.7, zorder=0)
    if set(log) - {"x", "y"}:
        raise ValueError(f'log: wanted "", "x", "y" or "xy", got {log!r}')
    if "y" in log and not any((y > 0).any() for y in series.values()):
        if any(np.isfinite(y).any() for y in series.values()):
            raise ValueError("log: wanted a number above 0 in series, for a logarithmic axis")
        log = log.replace("y", "")  # nothing to draw
    for letter in log:
        ax.set(**{f"{letter}scale": "log"})
    if "x" not in log and (x is None or not (np.asarray(x) % 1).any()):
        whole = MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True)
        ax.xaxis.set_major_locator(whole)
    if "x" in log and x is not None and len(x) <= 12:  # each point is its own tick
        ax.set_xticks(x, labels=[f"{at:g}" for at in x], fontsize="small")
        ax.minorticks_off()
    ax.set(xlabel=xlabel, ylabel=ylabel)
    return ax


def line_panels(
    groups: Mapping[str, Mapping[str, Array]],
    *,
    share: bool = True,
    width: Number = 4.4,
    height: Number = 2.8,
    each: Sequence[Mapping[str, Any]] | None = None,
    alt: str = "",
    caption: str = "",
    **options: Any,
) -> Picture:
    """Draw groups of lines side by side, with one legend for all: a name has one ink in all.

    Args:
        groups: title -> (name -> [n]).
        share: one vertical scale for all panels.
        width: inches of one panel.
        height: inches of one panel.
        each: options of `lines` for each panel, where they differ.
        alt: what they show, for readers who cannot see it; "" names the lines and their ends.
        caption: stands under the picture.
        **options: options of `lines` for all panels.

    Returns:
        A Picture.
    """
    if not groups:
        raise ValueError("groups: wanted one group of lines or more, got none")
    own = [{**options, **more} for more in each or [{}] * len(groups)]
    if len(own) != len(groups):
        raise ValueError(f"each: wanted {len(groups)}, one a group, got {len(own)}")
    read = {
        title: one_length(series, more.get("x"))[0]
        for (title, series), more in zip(groups.items(), own, strict=True)
    }

    names = [*dict.fromkeys(name for series in read.values() for name in series)]

    def draw() -> Figure:
        fig, axes = plt.subplots(
            1,
            len(groups),
            figsize=(width * len(groups) + 1.4, height),
            layout="constrained",
            sharey=share,
            squeeze=False,
        )
        for ax, (title, series), more in zip(axes[0], read.items(), own, strict=True):
            lines(series, ax=ax, names=names, **more)
            ax.set_title(title, parse_math=False)
            if share:
                ax.label_outer()
        found = {}
        for ax in axes[0]:
            for line, name in zip(*ax.get_legend_handles_labels(), strict=True):
                found.setdefault(name, line)
        if len(found) > 1:
            legend = fig.legend(found.values(), found.keys(), loc="outside right center")
            for name in legend.get_texts():
                name.set_parse_math(False)
        return fig

    return Picture(draw, alt=alt or describe_lines(read), caption=caption)


def describe_lines(groups: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """Name lines and where they start and end, for readers who cannot see them."""
    said = []
    for title, series in groups.items():
        ends = []
        for name, y in series.items():
            y = y[np.isfinite(y)]
            ends.append(f"{name} from {y[0]:.3g} to {y[-1]:.3g}" if y.size else f"{name}: nothing")
        said.append(f"{title}: {', '.join(ends)}" if title else ", ".join(ends))
    return "Lines: " + "; ".join(said)
