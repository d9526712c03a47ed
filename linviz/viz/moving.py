"""Panels that move: matrices, rows, curves and points, one for each step of time.

Each can be a piece of an HTML page (`page`), drawn at a few steps (`still`), or drawn once and then
moved (`move`). `Scrubber` joins panels of one length.
"""

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import Normalize, SymLogNorm
from matplotlib.ticker import FuncFormatter, MaxNLocator

from linviz.viz.curves import lines, one_length
from linviz.viz.ink import INK, LINES
from linviz.viz.matrices import (
    Array,
    Number,
    array,
    check_labels,
    color_bar,
    heat,
    limits,
    linear_below,
    thin,
    thin_steps,
    ticks,
)
from linviz.viz.sprites import LEVELS, tile
from linviz.viz.svg import Scale, json_pixels, line_ink, panel_html, svg_image, svg_path, svg_text

MOST_FRAMES = 256  # steps under one slider
MOST_CELLS = 2**19  # numbers in one sprite sheet; more steps than that allows are left out
MOST_ROWS = 128  # rows and columns of one matrix, then blocks of it are shown
SIDES = (232, 168)  # pixels of a page that a matrix takes, at most: of few and of many


class Matrices:
    """What `Frames` and `Rows` share: a scale, a mask, labels, a sprite sheet."""

    def __init__(
        self,
        x: Array,
        title: str,
        letters: str,
        *,
        kind: str | None = None,
        vmax: Number | None = None,
        log: bool | Number = False,
        mask: Array | None = None,
        rows: Sequence[str] | None = None,
        cols: Sequence[str] | None = None,
        row_name: str,
        col_name: str,
    ):
        """See `Frames` and `Rows`."""
        self.title = title
        self.x = array(x, "x", letters).astype(float)
        self.empty = np.zeros(self.x.shape, bool)
        if mask is not None:
            mask = np.asarray(mask.detach().cpu() if hasattr(mask, "detach") else mask, bool)
            if mask.shape not in (self.x.shape, self.x.shape[1:]):
                raise ValueError(
                    f"mask: wanted the shape of x {list(self.x.shape)}, got {list(mask.shape)}"
                )
            self.empty = self.empty | mask
        self.labels = {"rows": rows, "cols": cols}
        self.sizes = self.x.shape[-2:]
        check_labels(self.x.reshape(-1, *self.sizes)[0], self.labels)
        shown = self.x[~self.empty]
        self.kind, low, high = limits(shown, kind, vmax)
        if log < 0:
            raise ValueError(f"log: wanted True, False or a number above 0, got {log}")
        self.over, self.under = bool((shown > high).any()), bool((shown < low).any())
        self.linear = linear_below(shown, high) if log is True else float(log)
        self.norm = (
            SymLogNorm(self.linear, linscale=0.5, vmin=low, vmax=high)
            if self.linear
            else Normalize(low, high)
        )
        self.names = (row_name, col_name)
        self.times, self.side = range(len(self.x)), SIDES[0]
        self.edges: dict[str, np.ndarray] = {}  # name -> [t], columns at which a line runs

    def __len__(self) -> int:
        return len(self.x)

    @property
    def options(self) -> dict[str, Any]:
        """For `heat`."""
        row_name, col_name = self.names
        scale = {"kind": self.kind, "vmax": self.norm.vmax, "log": self.linear}
        return scale | self.labels | {"row_name": row_name, "col_name": col_name, "bar": False}

    def keep(self, steps: np.ndarray) -> str:
        """Keep some steps, and at most MOST_ROWS cells along the other axes; say so."""
        self.labels = dict(self.labels)
        self.x, self.empty = self.x[steps], self.empty[steps]
        self.edges = {name: first[steps] for name, first in self.edges.items()}
        most = [len(steps), *(MOST_ROWS for _ in self.x.shape[1:])]
        small, note = thin(np.where(self.empty, 0.0, self.x), most)
        if note:
            self.empty = thin((~self.empty).astype(float), most)[0] == 0
            self.x = small
        for axis, name in enumerate(("rows", "cols"), self.x.ndim - 2):
            if self.labels[name] is not None and axis == 0:
                self.labels[name] = [self.labels[name][i] for i in steps]
            elif self.labels[name] is not None:
                block = -(-self.sizes[axis - self.x.ndim + 2] // MOST_ROWS)
                self.labels[name] = list(self.labels[name])[::block]
        return f"{self.title}: {note}" if note else ""

    def levels(self) -> np.ndarray:
        """The number of each cell's colour; LEVELS is NaN, LEVELS + 1 "not applicable"."""
        share = np.asarray(self.norm(np.nan_to_num(self.x).reshape(-1, 1))).reshape(self.x.shape)
        level = np.rint(share.clip(0, 1) * (LEVELS - 1)).astype(np.uint8)
        level[np.isnan(self.x)] = LEVELS
        level[self.empty] = LEVELS + 1
        return level

    def true_sizes(self, ax: Axes) -> None:
        """Name the axes by the sizes and the numbers of what is shown in blocks."""
        names = [f"{name} ({size})" for name, size in zip(self.names, self.sizes, strict=True)]
        ax.set(ylabel=names[0], xlabel=names[1])
        drawn = zip((ax.yaxis, ax.xaxis), self.sizes, self.x.shape[-2:], strict=True)
        for (axis, size, shown), name in zip(drawn, ("rows", "cols"), strict=True):
            if self.labels[name] is None:
                count_by(axis, range(0, size, -(-size // shown)))

    def marks(self) -> list[tuple[Number, str]]:
        """Ticks of the colour bar: where (0 to 1) and what."""
        low, high = self.norm.vmin, self.norm.vmax
        ends = {low: "≤ " * self.under, high: "≥ " * self.over}
        return [
            (float(self.norm(at)), f"{ends.get(at, '')}{at:.3g}")
            for at in dict.fromkeys((low, 0.0, high))
        ]

    def place(self, square: bool) -> tuple[Number, Number]:
        """The pixels of a page that the matrix takes; cells are square unless too thin to see."""
        height, width = self.x.shape[-2:]
        ratio = np.clip(height / width, *((1 / 4, 4) if square else (1 / 2, 2)))
        wide = min(self.side, 40 * width) if ratio <= 1 else min(self.side, 40 * height) / ratio
        return float(wide * ratio), float(wide)

    def table(self) -> list[float] | None:
        """The value of each level, where the scale is not linear."""
        if not self.linear:
            return None
        values = np.ravel(self.norm.inverse(np.linspace(0, 1, LEVELS)[:, None]))
        return [float(f"{value:.7g}") for value in values]

    def drawn(
        self, number: int, steps: Sequence[int] | None
    ) -> tuple[str, dict[str, Any], np.ndarray]:
        """The panel as HTML, what its moving part needs, and the sprite sheet's levels.

        Args:
            number: of the panel.
            steps: the time of each row, where the rows are steps.
        """
        square = steps is None
        (height, width), (tall, wide) = self.x.shape[-2:], self.place(square)
        words = {
            name: [str(x) for x in self.labels[name] or block_numbers(size, whole)]
            for name, size, whole in zip(("rows", "cols"), (height, width), self.sizes, strict=True)
        }
        if steps is not None and self.labels["rows"] is None:
            words["rows"] = [str(t) for t in steps]
        side = 10 + 6.6 * max(len(x) for x in words["rows"]) if self.labels["rows"] else 26
        left, top = 16 + min(side, 90), 4
        svg, foot = [], 15
        for name, size, length in (("rows", height, tall), ("cols", width, wide)):
            given = self.labels[name] is not None
            at, shown = [0, size - 1], words[name][:: size - 1 or 1]
            if given:
                wide_word = name == "rows" or max(map(len, words[name])) > 2
                at, shown = ticks(words[name], max(2, int(length / (12 if wide_word else 6.5))))
            longest = max(map(len, shown))
            for i, word in zip(dict.fromkeys(at), shown, strict=False):
                middle = (i + 0.5) * length / size
                if name == "rows":
                    svg.append(svg_text(left - 4, top + middle + 4, word, "end", small=given))
                else:
                    turn = bool(longest * 6 > length / len(at))
                    foot = 8 + 5.2 * longest if turn else 15
                    svg.append(
                        svg_text(left + middle, top + tall + 13, word, small=given, slant=turn)
                    )
        for i, first in enumerate(self.edges.values()):
            ends = [(x, t + end) for t, x in enumerate(first) for end in (0, 1) if np.isfinite(x)]
            line = svg_path(
                [(left + x * wide / self.sizes[1], top + y * tall / height) for x, y in ends]
            )
            svg.append(f'<path class="lv-edge" d="{line}"/>')
            svg.append(f'<path class="lv-line" style="stroke:{line_ink(i)[0]}" d="{line}"/>')
        svg.append(svg_text(11, top + tall / 2, f"{self.names[0]} ({self.sizes[0]})", turn=True))
        middle, foot = left + wide / 2, top + tall + foot + 17
        svg.append(svg_text(middle, foot, f"{self.names[1]} ({self.sizes[1]})"))
        bar = left + wide + 8
        for share, word in self.marks():
            svg.append(svg_text(bar + 13, top + (1 - share) * tall + 4, word, "start"))
        full = bar + 13 + 6.5 * max(len(word) for _, word in self.marks())
        label = f"{self.title}: {self.names[0]} by {self.names[1]}"
        cursor = ""
        if not square:
            cursor = (
                f'<rect class="lv-cursor" x="{left - 1}" y="{top}" width="{wide + 2:.1f}" '
                f'height="{tall / height:.2f}"/>'
            )
        body = (
            f'<canvas role="img" aria-label="{html.escape(label)}" width="{width}" '
            f'height="{height}" style="left:{left:.0f}px;top:{top}px;width:{wide:.1f}px;'
            f'height:{tall:.1f}px"></canvas>'
            f'<div class="lv-bar" style="left:{bar:.0f}px;top:{top}px;height:{tall:.1f}px;'
            f'background:var(--lv-map-{self.kind})"></div>{svg_image(full, foot + 6, svg, cursor)}'
        )
        level = self.levels()
        across = max(1, min(len(level), 4096 // width)) if square else 1
        data = {
            "id": number,
            "title": self.title,
            "map": self.kind,
            "w": width,
            "h": height,
            "across": across,
            "names": self.names,
            "low": self.norm.vmin,
            "high": self.norm.vmax,
            "over": self.over,
            "under": self.under,
            "table": self.table(),
            "left": round(left),
            "top": top,
            "cell": round(tall / height, 3),
        } | words
        return panel_html(self.title, full, foot + 6, body), data, tile(level, across)


class Frames(Matrices):
    """One matrix a step."""

    def __init__(
        self,
        x: Array,
        title: str = "",
        *,
        kind: str | None = None,
        vmax: Number | None = None,
        log: bool | Number = False,
        mask: Array | None = None,
        rows: Sequence[str] | None = None,
        cols: Sequence[str] | None = None,
        row_name: str = "key channel k",
        col_name: str = "value channel v",
    ):
        """Take the matrices.

        Args:
            x: [t, i, j].
            title: stands over the panel.
            kind: "signed", "count" or "gate", see `limits`.
            vmax: upper end of the scale, shared by all steps; None takes the largest magnitude.
            log: a logarithmic scale, linear below this number; True chooses it.
            mask: [i, j] or [t, i, j], True where there is no value: hatched.
            rows: label of each row; None numbers them.
            cols: label of each column.
            row_name: name of the vertical axis; its size is added.
            col_name: name of the horizontal axis; its size is added.
        """
        given = {"rows": rows, "cols": cols, "row_name": row_name, "col_name": col_name}
        super().__init__(x, title, "t i j", kind=kind, vmax=vmax, log=log, mask=mask, **given)

    @property
    def most(self) -> int:
        """Steps that fit into one sheet."""
        return MOST_CELLS // min(self.x[0].size, MOST_ROWS**2)

    def page(self, number: int, steps: Sequence[int]) -> tuple[str, dict[str, Any], np.ndarray]:
        """See `Matrices.drawn`."""
        page, data, sheet = self.drawn(number, None)
        return page, {"kind": "frames"} | data, sheet

    def shape(self, shown: int) -> tuple[int, Number]:
        """Axes in the still picture, and its height over the width of one of them."""
        height, width = self.x.shape[1:]
        return shown, float(np.clip(height / width, 0.35, 2))

    def still(self, axes: Sequence[Axes], at: Sequence[int], names: Sequence[str]) -> None:
        """Draw the steps `at`, one an Axes."""
        for ax, t, name in zip(axes, at, names, strict=True):
            heat(self.x[t], ax=ax, mask=self.empty[t], **self.options)
            self.true_sizes(ax)
            for axis, name_ in zip((ax.yaxis, ax.xaxis), ("rows", "cols"), strict=True):
                if self.labels[name_] is not None:
                    few = ticks(self.labels[name_], 40 // len(axes) + 4)
                    axis.set_ticks(*few, fontsize=7.5, parse_math=False)
            ax.set_title(name, fontsize="small", parse_math=False)
            ax.set_aspect("auto" if self.x[t].shape[0] > 4 * self.x[t].shape[1] else "equal")
            ax.label_outer()
        if len(axes) > 2:  # one name for all, in the middle
            name = axes[0].get_xlabel()
            for ax in axes:
                ax.set_xlabel("")
            axes[0].get_gridspec().figure.supxlabel(name, fontsize="small")
        color_bar(axes)

    def move(self, ax: Axes, t: int) -> Callable[[int], None]:
        """Draw step t, and give back what draws another."""
        heat(self.x[t], ax=ax, mask=self.empty[t], **self.options)
        self.true_sizes(ax)
        color_bar([ax])
        ax.set_title(self.title, fontsize="small", parse_math=False)

        def to(t: int) -> None:
            ax.images[0].set(data=self.x[t], alpha=np.where(self.empty[t], 0.0, 1.0))

        return to


class Rows(Matrices):
    """One row a step: the whole matrix is seen, and the row of the step is marked."""

    def __init__(self, x: Array, title: str = "", **options: Any):
        """Take the matrix: x [t, j], mask [t, j]; the options are those of `Frames`."""
        super().__init__(x, title, "t j", **{"row_name": "time t", "col_name": "channel"} | options)

    most = MOST_FRAMES

    def page(self, number: int, steps: Sequence[int]) -> tuple[str, dict[str, Any], np.ndarray]:
        """See `Matrices.drawn`."""
        page, data, sheet = self.drawn(number, steps)
        return page, {"kind": "rows"} | data, sheet

    room = 300.0  # points for the labels of the columns in the still picture

    @property
    def square(self) -> bool:
        """Whether the cells of the still picture are square."""
        return 0.5 < self.x.shape[0] / self.x.shape[1] < 2

    def shape(self, shown: int) -> tuple[int, Number]:
        """Axes in the still picture, and its height over the width of one of them."""
        return 1, 0.45 if self.square else 0.4

    def still(self, axes: Sequence[Axes], at: Sequence[int], names: Sequence[str]) -> None:
        """Draw the whole matrix."""
        ax = axes[0]
        heat(self.x, ax=ax, mask=self.empty, **self.options)
        ax.set_aspect("equal" if self.square else "auto")
        self.true_sizes(ax)
        if self.labels["rows"] is None:
            count_by(ax.yaxis, self.times)
        for axis, name in ((ax.yaxis, "rows"), (ax.xaxis, "cols")):
            if self.labels[name] is not None:
                longest = max(map(len, self.labels[name]))
                most = 24 if name == "rows" else int(self.room / (4.5 * longest + 4))
                axis.set_ticks(*ticks(self.labels[name], most), fontsize=7.5, parse_math=False)
                axis.set_tick_params(length=0)
        color_bar(axes)

    def move(self, ax: Axes, t: int) -> Callable[[int], None]:
        """Draw the matrix, and give back what marks another row."""
        self.still([ax], [], [])
        ax.set_title(self.title, fontsize="small", parse_math=False)
        mark = ax.axhspan(t - 0.5, t + 0.5, fill=False, edgecolor=INK["nan"])
        return lambda t: mark.set_y(t - 0.5)


class Lines:
    """Curves over all steps, with a cursor at the step."""

    def __init__(
        self,
        series: Mapping[str, Array],
        title: str = "",
        *,
        ylabel: str = "",
        log: bool = False,
        ends: tuple[Number, Number] | None = None,
    ):
        """Take the curves.

        Args:
            series: name -> [t]; NaN leaves a gap.
            title: stands over the panel.
            ylabel: name of the vertical axis.
            log: a logarithmic vertical axis; numbers of 0 and below leave a gap.
            ends: what the vertical axis shows at least, such as (0, 1) of shares.
        """
        self.series, _ = one_length(series)
        self.title, self.ylabel, self.log, self.ends = title, ylabel, log, ends
        self.whole, self.clock, self.settings = len(self), "time t", None
        self.times = range(self.whole)

    def __len__(self) -> int:
        return len(next(iter(self.series.values())))

    def covers(self, i: int) -> bool:
        """Whether the i-th line lies on an earlier one, which would not be seen under it."""
        curves = list(self.series.values())
        return any(np.allclose(y, curves[i], equal_nan=True) for y in curves[:i])

    @property
    def xlabel(self) -> str:
        """What runs along the horizontal axis."""
        return f"{self.clock} ({self.whole})"

    most = MOST_FRAMES

    def keep(self, steps: np.ndarray) -> str:
        """Keep some steps."""
        self.series = {name: y[steps] for name, y in self.series.items()}
        return ""

    def page(self, number: int, steps: Sequence[int]) -> tuple[str, dict[str, Any], None]:
        """The panel as HTML, and what its moving part needs."""
        left, top, wide, tall = 58, 6, 244, 120
        seen = np.concatenate([*self.series.values(), self.ends or ()])
        scale = Scale(seen, self.log, top + tall, top)
        step = wide / max(len(self) - 1, 1)
        svg = [svg_text(11, top + tall / 2, self.ylabel, turn=True)]
        svg += [svg_text(left + wide / 2, top + tall + 32, self.xlabel)]
        svg += scale.axis(left)
        for t in sorted({0, len(self) // 2, len(self) - 1}):
            svg.append(f'<path class="lv-axis" d="M{left + t * step:.1f} {top + tall}v4"/>')
            named = str(steps[t]) if self.settings is None else self.settings[t]
            svg.append(svg_text(left + t * step, top + tall + 15, named))
        frame = f"M{left} {top}V{top + tall}H{left + wide}"
        svg.append(f'<path class="lv-axis" d="{frame}"/>')
        names, values = [], []
        for i, (name, y) in enumerate(self.series.items()):
            ink, dash = line_ink(i)
            dash = "4 4" if self.covers(i) else dash
            look = f'class="lv-line" style="stroke:{ink};stroke-dasharray:{dash}"'
            points = [(left + t * step, at) for t, at in enumerate(scale(y))]
            svg.append(f'<path {look} d="{svg_path(points)}"/>')
            colon = ": " * bool(name)
            names.append(
                f'<span><svg width="16" height="8" aria-hidden="true"><path {look} d="M0 4h16"/>'
                f'</svg>{html.escape(name)}{colon}<b class="lv-value"></b></span>'
            )
            values.append([float(f"{v:.5g}") if np.isfinite(v) else None for v in y])
        full, high = left + wide + 12, top + tall + 38
        cursor = f'<line class="lv-cursor" y1="{top}" y2="{top + tall}"/>'
        body = svg_image(full, high, svg, cursor, plot=True)
        legend = f'<div class="lv-legend">{"".join(names)}</div>'
        data = {"id": number, "kind": "lines", "left": left, "step": step, "values": values}
        return panel_html(self.title, full, high, body, legend), data, None

    def shape(self, shown: int) -> tuple[int, Number]:
        """Axes in the still picture, and its height over the width of one of them."""
        return 1, 0.28

    def still(self, axes: Sequence[Axes], at: Sequence[int], names: Sequence[str]) -> None:
        """Draw all curves."""
        (ax,) = axes
        log = "y" * self.log
        series = {n: np.where(y > 0, y, np.nan) if log else y for n, y in self.series.items()}
        lines(series, x=self.times, ax=ax, ylabel=self.ylabel, xlabel=self.xlabel, log=log)
        if self.settings is not None:
            some = sorted({0, len(self) // 2, len(self) - 1})
            ax.set_xticks([self.times[t] for t in some], [self.settings[t] for t in some])
        for i in filter(self.covers, range(len(series))):
            ax.lines[i].set_linestyle((0, (3, 3)))
        if self.ends:
            low, high = ax.get_ylim()
            room = 0.03 * (self.ends[1] - self.ends[0])
            ax.set_ylim(min(low, self.ends[0] - room), max(high, self.ends[1] + room))
        if len(series) > 1 or "" not in series:
            legend = ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
            for name in legend.get_texts():
                name.set_parse_math(False)

    def move(self, ax: Axes, t: int) -> Callable[[int], None]:
        """Draw the curves, and give back what moves the cursor."""
        self.still([ax], [], [])
        ax.set_title(self.title, fontsize="small", parse_math=False)
        mark = ax.axvline(self.times[t], color=INK["nan"], lw=1)
        return lambda t: mark.set_xdata([self.times[t]] * 2)


class Points:
    """Some points a step: a spectrum, eigenvalues, one row as a curve."""

    def __init__(
        self,
        x: Array,
        y: Array,
        title: str = "",
        *,
        xlabel: str = "",
        ylabel: str = "",
        line: bool = False,
        circle: bool = False,
        log: bool = False,
    ):
        """Take the points.

        Args:
            x: [t, n], or [n] for all steps.
            y: [t, n]; NaN leaves a point out.
            title: stands over the panel.
            xlabel: name of the horizontal axis.
            ylabel: name of the vertical axis.
            line: join the points of a step.
            circle: the complex plane, with the unit circle.
            log: a logarithmic vertical axis; numbers of 0 and below are left out.
        """
        self.y = array(y, "y", "t n")
        x = np.asarray(x.detach().cpu() if hasattr(x, "detach") else x, float)
        if x.shape not in (self.y.shape, self.y.shape[1:]):
            raise ValueError(
                f"x: wanted the shape of y {list(self.y.shape)} or {list(self.y.shape[1:])}, "
                f"got {list(x.shape)}"
            )
        self.x = np.broadcast_to(x, self.y.shape)
        self.title, self.xlabel, self.ylabel = title, xlabel, ylabel
        self.line, self.circle, self.log = line, circle, log
        self.times = range(len(self.y))

    def __len__(self) -> int:
        return len(self.y)

    most = MOST_FRAMES

    def keep(self, steps: np.ndarray) -> str:
        """Keep some steps, and of very many points every n-th."""
        n = self.y.shape[1]
        kept = thin_steps(n, MOST_ROWS * 2)
        self.x, self.y = self.x[steps][:, kept], self.y[steps][:, kept]
        return f"{self.title}: {len(kept)} of {n} points shown." if len(kept) < n else ""

    def limits(self) -> tuple[np.ndarray, np.ndarray]:
        """Numbers that the two axes must reach."""
        x, y = self.x[np.isfinite(self.x)], self.y[np.isfinite(self.y)]
        if self.circle:
            reach = max(1.05, 1.05 * float(np.abs(np.concatenate([x, y])).max(initial=0)))
            return np.array([-reach, reach]), np.array([-reach, reach])
        return x, y

    def page(self, number: int, steps: Sequence[int]) -> tuple[str, dict[str, Any], None]:
        """The panel as HTML, and what its moving part needs."""
        left, top, wide, tall = 58, 6, (190 if self.circle else 264), 190
        xs, ys = self.limits()
        across = Scale(xs, False, left, left + wide, tight=True)
        up = Scale(ys, self.log, top + tall, top, tight=self.circle)
        svg = [
            svg_text(11, top + tall / 2, self.ylabel, turn=True),
            svg_text(left + wide / 2, top + tall + 32, self.xlabel),
            f'<path class="lv-axis" d="M{left} {top}V{top + tall}H{left + wide}"/>',
            *up.axis(left),
            *across.axis(top + tall, flat=True),
        ]
        if self.circle:
            middle = (float(across(np.zeros(1))[0]), float(up(np.zeros(1))[0]))
            radius = abs(float(across(np.ones(1))[0]) - middle[0])
            svg.append(
                f'<circle class="lv-axis" cx="{middle[0]:.1f}" cy="{middle[1]:.1f}" '
                f'r="{radius:.1f}"/>'
            )
        ink = line_ink(0 if not self.circle else 4)[0]
        if self.line:
            svg.append(f'<polyline class="lv-line" style="stroke:{ink}"/>')
        size = 1.6 if self.line and self.y.shape[1] > 40 else 3
        svg += [f'<circle class="lv-dot" r="{size}" style="fill:{ink}"/>'] * self.y.shape[1]
        full, high = left + wide + 12, top + tall + 40
        data = {
            "id": number,
            "kind": "points",
            "x": [json_pixels(across(x)) for x in self.x],
            "y": [json_pixels(up(y)) for y in self.y],
        }
        return panel_html(self.title, full, high, svg_image(full, high, svg)), data, None

    def shape(self, shown: int) -> tuple[int, Number]:
        """Axes in the still picture, and its height over the width of one of them."""
        return (shown, 1.0) if self.circle else (min(shown, 3), 0.75)

    def still(self, axes: Sequence[Axes], at: Sequence[int], names: Sequence[str]) -> None:
        """Draw the steps `at`, or as many as there are Axes."""
        chosen = np.linspace(0, len(at) - 1, len(axes)).round().astype(int)
        for ax, i in zip(axes, chosen, strict=True):
            self.move(ax, at[i])
            ax.set_title(names[i], fontsize="small", parse_math=False)
            ax.label_outer()

    def move(self, ax: Axes, t: int) -> Callable[[int], None]:
        """Draw the points of step t, and give back what draws another's."""
        xs, ys = self.limits()
        mark = "o-" if self.line else "o"
        ink = LINES[4 if self.circle else 0]
        (drawn,) = ax.plot(self.x[t], self.y[t], mark, color=ink, ms=2.5, lw=1, alpha=0.8)
        if self.circle:
            turn = np.linspace(0, 2 * np.pi, 200)
            ax.plot(np.cos(turn), np.sin(turn), color=INK["hatch"], lw=0.8, zorder=0)
            ax.set_aspect("equal")
        if self.log:
            ax.set_yscale("log")
            ys = ys[ys > 0]
        for set_limits, reach in ((ax.set_xlim, xs), (ax.set_ylim, ys)):
            if reach.size:
                low, high = reach.min(), reach.max()
                room = 0.05 * (high - low) or 0.5
                far = (low / 1.3, high * 1.3) if self.log and reach is ys else None
                set_limits(*(far or (low - room, high + room)))
        ax.set(xlabel=self.xlabel, ylabel=self.ylabel)
        ax.set_title(self.title, fontsize="small", parse_math=False)
        return lambda t: drawn.set_data(self.x[t], self.y[t])


def block_numbers(size: int, whole: int) -> list[str]:
    """The numbers of `size` blocks of `whole` cells."""
    return [str(i * -(-whole // size)) for i in range(size)]


def count_by(axis: Axis, numbers: Sequence[int]) -> None:
    """Ticks at whole cells, named by the number of each cell."""
    axis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    named = dict(enumerate(numbers))
    axis.set_major_formatter(FuncFormatter(lambda at, _: str(named.get(round(at), ""))))
