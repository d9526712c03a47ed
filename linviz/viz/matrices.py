"""Matrices as heat maps: one, or several side by side on one scale; and how arguments are read.

The measured parts (`limits`, `frames`, `ticks`, `thin`) are plain functions of numbers and return
numbers. The drawn parts read them. Arguments may be torch tensors, numpy arrays or lists.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, SymLogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from linviz.mechanism import Trace
from linviz.viz.ink import INK, MAPS
from linviz.viz.picture import Picture
from linviz.viz.traced import takes_models

Array = Any  # a torch tensor, a numpy array, or a list of numbers
Number = float | int

MOST_CELLS = 1024  # rows and columns of a still picture, then blocks of it are shown

AXES = {  # letters of the glossary, as axes are named
    "h": "head h",
    "k": "key channel k",
    "v": "value channel v",
    "r": "feature r",
    "d": "channel d",
    "n": "state channel n",
    "p": "value channel p",
    "s": "cached token s",
}


def array(x: Array, name: str, letters: str, *, complex: bool = False) -> np.ndarray:
    """Copy any tensor to numpy, and check that it has the axes that `letters` names.

    Args:
        x: tensor, array or list.
        name: the argument's name, for the message.
        letters: one letter an axis, such as "t k v".
        complex: let complex numbers pass.

    Returns:
        A float64 (boolean, or complex128) array of the same shape.

    Raises:
        ValueError: if the number of axes differs, an axis is empty, or the numbers are complex.
    """
    x = [_plain(y) for y in x] if isinstance(x, list | tuple) else _plain(x)
    x = np.asarray(x)
    if x.ndim != len(letters.split()) or x.size == 0:
        raise ValueError(
            f"{name}: wanted axes [{letters.replace(' ', ', ')}], none of them empty, "
            f"got shape {list(x.shape)}; of a tensor with batch and head take one, as in "
            "S[0, 0] or trace['S'][0, :, 0]"
        )
    if np.iscomplexobj(x):
        if not complex:
            raise ValueError(
                f"{name}: complex numbers have no place on one scale; pass .real or abs()"
            )
        return x.astype(np.complex128)
    return x if x.dtype == bool else x.astype(float)


def _plain(x: Array) -> Array:
    """A tensor without its gradient, on the CPU, wide enough for numpy; anything else as it is."""
    if not hasattr(x, "detach"):
        return x
    x = x.detach().cpu()
    return x.double() if x.is_floating_point() else x


@takes_models()
def read(
    x: Array,
    name: str,
    letters: str,
    *,
    part: str | None = None,
    head: int = 0,
    batch: int = 0,
    complex: bool = False,
) -> np.ndarray:
    """Take numbers from a tensor, or from a trace, with time first.

    Args:
        x: a tensor, array or list with the axes of `letters`; or a Trace.
        name: the argument's name, for the message.
        letters: one letter an axis, such as "t k v".
        part: of a trace, the entry to take; None takes the state (its first part).
        head: of a trace, which head.
        batch: of a trace, which sequence.
        complex: let complex numbers pass.

    Returns:
        A float64 (boolean, or complex128) array with as many axes as `letters`.

    Raises:
        ValueError: if the axes differ, or the trace has no such part, head or sequence.
    """
    if not isinstance(x, Trace):
        return array(x, name, letters, complex=complex)
    part = part or x.mechanism.state[0].name
    if part not in x:
        raise ValueError(f"part: this trace has {', '.join(x)}, not {part!r}")
    axes = x.letters(part).split()
    for axis, letter, at in (("head", "h", head), ("batch", "b", batch)):
        size = x[part].shape[axes.index(letter)] if letter in axes else 1
        if not -size <= at < size:
            raise ValueError(f"{axis}: {part} has {size} of them, got {at}")
    picked = x[part][tuple({"b": batch, "h": head}.get(a, slice(None)) for a in axes)]
    left = [a for a in axes if a not in ("b", "h")]
    if "t" in left:
        picked = picked.movedim(left.index("t"), 0)
    if picked.ndim != len(letters.split()):
        raise ValueError(
            f"{name}: wanted axes [{letters.replace(' ', ', ')}], got a trace of "
            f"{x.mechanism.name} whose {part} has [{', '.join(left)}]; part= takes another of "
            f"{', '.join(x)}"
        )
    return array(picked, name, letters, complex=complex)


def thin(x: np.ndarray, most: Sequence[int]) -> tuple[np.ndarray, str]:
    """Make a huge array small enough to look at.

    Along the first axis every n-th entry is kept, and the last one; along the others each block
    gives its number of largest magnitude, so that an outlier or a thin stripe stays in sight.

    Args:
        x: an array.
        most: at most that many along each axis.

    Returns:
        The array, and a sentence that says what was done ("" if nothing was).
    """
    said = []
    steps = thin_steps(len(x), most[0])
    if len(steps) < len(x):
        said.append(f"{len(steps)} of {len(x)} steps shown")
    x = x[steps]
    for axis in range(1, x.ndim):
        size = x.shape[axis]
        block = -(-size // most[axis])
        if block > 1:
            said.append(f"blocks of {block} of {size} shown by their largest magnitude")
            cut = range(0, size, block)
            parts = [np.take(x, range(i, min(i + block, size)), axis) for i in cut]
            x = np.stack([_largest(part, axis) for part in parts], axis)
    return x, ("; ".join(dict.fromkeys(said)).capitalize() + ".") if said else ""


def _largest(x: np.ndarray, axis: int) -> np.ndarray:
    """The number of largest magnitude along an axis, with its sign; NaN where there is one."""
    at = np.expand_dims(np.argmax(np.abs(x), axis), axis)  # NaN is the largest of all
    return np.take_along_axis(x, at, axis).squeeze(axis)


def thin_steps(T: int, most: int) -> np.ndarray:
    """Every n-th of T steps and the last, at most `most` of them."""
    if T <= most:
        return np.arange(T)
    return np.linspace(0, T - 1, most).round().astype(int)


def limits(
    x: np.ndarray, kind: str | None = None, vmax: Number | None = None
) -> tuple[str, float, float]:
    """Choose the kind of scale and its two ends.

    Args:
        x: numbers of any shape; NaN and infinities do not count.
        kind: "signed" (0 in the middle), "count" (0 and up) or "gate" (0 to 1); None looks whether
            a number is below 0.
        vmax: upper end; None takes the largest magnitude (1 for a gate).

    Returns:
        kind, vmin, vmax.
    """
    finite = x[np.isfinite(x)]
    kind = kind or ("signed" if (finite < 0).any() else "count")
    if kind not in MAPS:
        raise ValueError(f"kind: wanted one of {', '.join(MAPS)}, got {kind!r}")
    if vmax is None:
        vmax = 1.0 if kind == "gate" else float(np.abs(finite).max(initial=0)) or 1.0
    if not 0 < vmax < np.inf:
        raise ValueError(f"vmax: wanted a number above 0, got {vmax}")
    return kind, -float(vmax) if kind == "signed" else 0.0, float(vmax)


def linear_below(x: np.ndarray, vmax: float) -> float:
    """Choose where a logarithmic scale turns linear, so that it can hold 0.

    Args:
        x: numbers of any shape.
        vmax: upper end of the scale.

    Returns:
        1 for counts, else 1 % of `vmax`.
    """
    whole = vmax > 1 and (x[np.isfinite(x)] % 1 == 0).all()
    return 1.0 if whole else vmax / 100


def hidden(x: np.ndarray, mask: Array | None) -> np.ndarray:
    """Read a mask: True where `x` [i, j] has no value; none masks nothing."""
    empty = np.zeros(x.shape, bool) if mask is None else array(mask, "mask", "i j").astype(bool)
    if empty.shape != x.shape:
        raise ValueError(f"mask: wanted the shape of x {list(x.shape)}, got {list(empty.shape)}")
    return empty


def frames(T: int, at: Sequence[int] | None = None, most: int = 8) -> list[int]:
    """Choose which time steps to show.

    Args:
        T: how many there are.
        at: the wanted steps, negative ones from the end; None spreads `most` over all.
        most: never more than this many; longer lists are thinned evenly, both ends kept.

    Returns:
        Increasing steps in 0 .. T-1.
    """
    if most < 1:
        raise ValueError(f"most: wanted 1 or more, got {most}")
    if at is not None and len(at) == 0:
        raise ValueError("at: wanted one step or more, got none")
    bad = [t for t in at or () if not -T <= t < T]
    if bad:
        raise ValueError(f"at: wanted steps from {-T} to {T - 1}, got {bad[0]}")
    steps = np.arange(T) if at is None else np.unique([t % T for t in at])
    if len(steps) > most:
        steps = steps[np.linspace(0, len(steps) - 1, most).round().astype(int)]
    return [int(t) for t in steps]


def ticks(labels: Sequence[str], most: int = 64) -> tuple[list[int], list[str]]:
    """Make tick labels of tokens: white space is made visible, and too many are thinned.

    Args:
        labels: one text a cell.
        most: at most this many labels.

    Returns:
        Positions and texts.
    """
    step = -(-len(labels) // most)
    at = list(range(0, len(labels), step))
    return at, [_visible(str(labels[i])) for i in at]


def _visible(word: str) -> str:
    """A word whose line ends, and whose spaces at both ends, can be seen."""
    core = word.strip(" ")
    left = len(word) - len(word.lstrip(" "))
    right = len(word) - left - len(core)
    space = "\N{OPEN BOX}"
    core = core.replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}")
    return space * left + core + space * right


def check_labels(x: np.ndarray, options: Mapping[str, Any]) -> None:
    """Refuse options "rows" and "cols" that are not one label a row or column of x [i, j]."""
    for name, size in zip(("rows", "cols"), x.shape, strict=True):
        labels = options.get(name)
        if labels is not None and len(labels) != size:
            raise ValueError(f"{name}: wanted {size} labels, got {len(labels)}")


def heat(
    x: Array,
    *,
    ax: Axes | None = None,
    kind: str | None = None,
    vmax: Number | None = None,
    log: bool | Number = False,
    mask: Array | None = None,
    rows: Sequence[str] | None = None,
    cols: Sequence[str] | None = None,
    row_name: str = "key channel k",
    col_name: str = "value channel v",
    bar: bool = True,
) -> Axes:
    """Draw one matrix as a heat map.

    Args:
        x: [i, j]: a state [k, v], an attention map [t, s], any matrix.
        ax: where to draw; None makes a new figure.
        kind: "signed", "count" or "gate", see `limits`.
        vmax: upper end of the scale; larger values get the last colour, and the bar an arrow.
        log: a logarithmic scale, linear below this number; True chooses it, see `linear_below`.
        mask: [i, j], True where the matrix has no value: hatched, whatever `x` holds there.
        rows: label of each row, for example letters; None numbers them.
        cols: label of each column.
        row_name: name of the vertical axis; its size is added.
        col_name: name of the horizontal axis; its size is added.
        bar: whether to draw the colour bar.

    Returns:
        The Axes; the picture is `ax.images[0]`.
    """
    x = array(x, "x", "i j")
    empty = hidden(x, mask)
    check_labels(x, {"rows": rows, "cols": cols})
    kind, vmin, vmax = limits(x[~empty], kind, vmax)
    if log < 0:
        raise ValueError(f"log: wanted True, False or a number above 0, got {log}")
    if ax is None:
        _, ax = plt.subplots(layout="constrained")

    cmap = mpl.colormaps[MAPS[kind]].with_extremes(bad=INK["nan"])
    norm = Normalize(vmin, vmax)
    if log:
        linear = linear_below(x[~empty], vmax) if log is True else log
        norm = SymLogNorm(linear, linscale=0.5, vmin=vmin, vmax=vmax)
    ax.imshow(x, cmap=cmap, norm=norm, alpha=np.where(empty, 0.0, 1.0), interpolation="nearest")
    if empty.any():
        ax.patch.set(facecolor=INK["mask"], edgecolor=INK["hatch"], hatch="////")
    ax.spines[:].set_visible(False)
    ax.set(ylabel=f"{row_name} ({x.shape[0]})", xlabel=f"{col_name} ({x.shape[1]})")
    for axis, labels in ((ax.yaxis, rows), (ax.xaxis, cols)):
        if labels is None:
            axis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
        else:
            axis.set_ticks(*ticks(labels, 48), parse_math=False)
            axis.set_tick_params(length=0, labelsize=7.5 if len(labels) <= 32 else 7)
    if bar:
        color_bar([ax])
    return ax


def color_bar(axes: Sequence[Axes]) -> None:
    """Draw one bar beside Axes that share a scale; its two ends (and 0) are among the ticks.

    Args:
        axes: heat maps of one scale.
    """
    image = axes[0].images[0]
    low, high = image.norm.vmin, image.norm.vmax
    shown = [ax.images[0].get_array()[ax.images[0].get_alpha() > 0] for ax in axes]
    over, under = any((x > high).any() for x in shown), any((x < low).any() for x in shown)
    extend = {(0, 0): "neither", (1, 0): "max", (0, 1): "min", (1, 1): "both"}[over, under]
    rows = {spec.rowspan.start for ax in axes if (spec := ax.get_subplotspec())}
    shrink = max(0.3, 0.8 / max(len(rows), 1) ** 0.7)  # beside many rows, a bar of one or two
    bar = axes[0].figure.colorbar(image, ax=list(axes), extend=extend, shrink=shrink, aspect=25)
    at = [low, 0.0, high] if low < 0 else [0.0, high]
    if isinstance(image.norm, SymLogNorm):
        powers = 10.0 ** np.arange(np.floor(np.log10(image.norm.linthresh)), np.log10(high / 3.5))
        powers = [p for p in powers if p >= image.norm.linthresh]
        at += powers + [-p for p in powers] * (low < 0)
    bar.set_ticks(sorted(at), labels=[f"{t:.3g}" if t < 1e4 else f"{t:.2e}" for t in sorted(at)])
    bar.minorticks_off()
    bar.outline.set_visible(False)


def panels(
    states: Mapping[str, Array],
    *,
    share: bool = True,
    width: Number = 2.6,
    columns: int = 4,
    alt: str = "",
    caption: str = "",
    **options: Any,
) -> Picture:
    """Draw several matrices side by side.

    Args:
        states: title -> [i, j].
        share: one scale and one bar for all; without it each has its own (for matrices whose units
            differ, such as counts beside proportions).
        width: inches of one panel.
        columns: panels in a row.
        alt: what they show, for readers who cannot see it; "" names the matrices and their range.
        caption: stands under the picture.
        **options: for `heat`.

    Returns:
        A Picture.
    """
    if not states:
        raise ValueError("states: wanted one matrix or more, got none")
    states = {name: array(x, f"states[{name!r}]", "i j") for name, x in states.items()}
    full, note = states, ""
    if any(max(x.shape) > MOST_CELLS for x in states.values()) and "mask" not in options:
        blocks = {name: thin(x[None], (1, MOST_CELLS, MOST_CELLS)) for name, x in states.items()}
        states = {name: x[0] for name, (x, _) in blocks.items()}
        note = " ".join(dict.fromkeys(said for _, said in blocks.values() if said))
        for labels in ("rows", "cols"):
            check_labels(next(iter(full.values())), options)
            options.pop(labels, None)
    empty = {name: hidden(x, options.get("mask")) for name, x in states.items()}
    for x in states.values():
        check_labels(x, options)
    seen = np.concatenate([x[~empty[name]] for name, x in states.items()])
    kind, _, vmax = limits(seen, options.get("kind"), options.get("vmax"))
    if share:
        options |= {"kind": kind, "vmax": vmax}
        if options.get("log") is True:
            options["log"] = linear_below(seen, vmax)
    if columns < 1:
        raise ValueError(f"columns: wanted 1 or more, got {columns}")
    columns = min(columns, len(states))
    lines = -(-len(states) // columns)
    tall = width * np.clip(max(x.shape[0] / x.shape[1] for x in states.values()), 0.3, 3)
    bars = 0.0 if share else 0.6  # inches that each panel's own bar takes

    def draw() -> Figure:
        fig, axes = plt.subplots(
            lines,
            columns,
            figsize=((width + bars) * columns + 0.7, (tall + 0.5) * lines + 0.3),
            layout="constrained",
            squeeze=False,
        )
        for ax, (name, x) in zip(axes.flat, states.items(), strict=False):
            heat(x, ax=ax, bar=not share, **options)
            if note:
                rows, cols = (f"({size}, in blocks)" for size in full[name].shape)
                ax.set(
                    ylabel=re.sub(r"\(\d+\)$", rows, ax.get_ylabel()),
                    xlabel=re.sub(r"\(\d+\)$", cols, ax.get_xlabel()),
                    xticks=[],
                    yticks=[],
                )
            ax.set_title(name, parse_math=False)
            ax.label_outer()
        for ax in axes.flat[len(states) :]:
            ax.remove()
        if share:
            color_bar(list(axes.flat[: len(states)]))
        return fig

    return Picture(draw, alt=alt or describe(full), caption=caption, note=note)


def describe(states: Mapping[str, np.ndarray]) -> str:
    """Name matrices, their sizes and ranges, for readers who cannot see them."""
    said = []
    for name, x in states.items():
        finite = x[np.isfinite(x)]
        span = f"from {finite.min():.3g} to {finite.max():.3g}" if finite.size else "not finite"
        said.append(f"{name or 'a matrix'} ({' x '.join(map(str, x.shape))}), {span}")
    return "Heat map of " * (len(said) == 1) + "Heat maps: " * (len(said) > 1) + "; ".join(said)


@takes_models()
def film_strip(
    S: Array, *, at: Sequence[int] | None = None, most: int = 8, **options: Any
) -> Picture:
    """Draw a state at several times, on one shared scale.

    Args:
        S: [t, k, v], the state after each step, of one batch and head: `trace["S"][0, :, 0]`; or a
            Trace, see `read`.
        at: the steps to show, see `frames`.
        most: never more frames than this.
        **options: for `panels` and `heat`.

    Returns:
        A Picture.
    """
    S = read(S, "S", "t k v")
    return panels({f"t = {t}": S[t] for t in frames(len(S), at, most)}, **options)
