"""What decoding keeps in memory: a cache that grows by a token, or a constant state.

`numbers_held` measures, `cache_or_state` draws.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from linviz.mechanism import Mechanism
from linviz.viz.arguments import count_note, several, whole
from linviz.viz.diagrams import count_text
from linviz.viz.ink import INK
from linviz.viz.matrices import AXES, Number, read, thin_steps
from linviz.viz.moving import Frames, Lines
from linviz.viz.scrubber import Scrubber

LONGEST = 4096  # tokens whose cache is drawn


def numbers_held(mechanism: Mechanism, T: int, **sizes: int) -> np.ndarray:
    """Count the numbers that one sequence keeps in memory after each of T tokens.

    Args:
        mechanism: its state or cache, see `Mechanism.state_size`.
        T: tokens.
        **sizes: by letter, such as H=1; letters that the mechanism lacks are left out.

    Returns:
        [t], whole numbers: after 1, 2, ..., T tokens.
    """
    own = own_sizes(mechanism, sizes)
    return np.array([mechanism.state_size(**own, T=t) for t in range(1, whole("T", T) + 1)])


def own_sizes(mechanism: Mechanism, sizes: Mapping[str, int]) -> dict[str, int]:
    """Those of the sizes whose letters the mechanism has."""
    known = {letter for x in mechanism.inputs for _, letter in x.letters}
    return {letter: n for letter, n in sizes.items() if letter in known}


class Memory(Frames):
    """Frames with outlines around what is held; all of one picture have cells of one size."""

    outlines: Sequence[tuple[str, int, int, int]]  # ink, first column, columns, rows
    room: tuple[int, int]  # rows and columns of the largest panel
    grows: bool  # by a column a step

    def shape(self, shown: int) -> tuple[int, Number]:
        """Axes in the still picture, and its height over the width of one of them."""
        return shown, float(np.clip(self.room[0] / self.room[1], 1, 2))

    def place(self, square: bool) -> tuple[Number, Number]:
        """The pixels of a page that the matrix takes."""
        cell = min(self.side / max(self.room), 40)
        return float(cell * self.sizes[0]), float(cell * self.sizes[1])

    def still(self, axes: Sequence[Axes], at: Sequence[int], names: Sequence[str]) -> None:
        """Draw the steps `at` and the outlines: the cache is as wide as what it holds."""
        super().still(axes, at, names)
        if len(axes) > 2:
            sheet = axes[0].get_gridspec().figure
            sheet.supxlabel(f"{self.names[1]} ({self.sizes[1]})", fontsize="small")
        down, across = (-(-n // m) for n, m in zip(self.sizes, self.x.shape[1:], strict=True))
        for ax, i in zip(axes, at, strict=True):
            for ink, first, columns, rows in self.outlines:
                columns = self.times[i] + 1 if self.grows else columns
                line = {"fill": False, "edgecolor": INK[ink], "linewidth": 1.4, "clip_on": False}
                corner = (first / across - 0.5, -0.5)
                ax.add_patch(Rectangle(corner, columns / across, rows / down, gid=ink, **line))
            for axis, at_end in ((ax.yaxis, 0), (ax.xaxis, 1)):
                size, full = self.sizes[at_end], self.sizes[1] == self.room[1]
                ends = {self.x.shape[1 + at_end] - 1: size - 1} if full or at_end == 0 else {}
                axis.set_ticks([*ends], labels=[*ends.values()])
            ax.set_aspect("equal")
            ax.set_xlim(-0.5, self.room[1] / across - 0.5)
            ax.set_ylim(self.room[0] / down - 0.5, -0.5)


class Growth(Lines):
    """Curves with a mark where the first passes above the second."""

    cross: int | None

    def still(self, axes: Sequence[Axes], at: Sequence[int], names: Sequence[str]) -> None:
        """Draw all curves and the mark."""
        super().still(axes, at, names)
        if self.cross is not None:
            axes[0].axvline(self.cross, color=INK["hatch"], linewidth=1, linestyle="--", zorder=0)


def cache_or_state(
    mechanisms: Any,
    *,
    T: int = 24,
    seed: int = 0,
    number_bytes: int | None = None,
    **sizes: int,
) -> Scrubber:
    """Draw what decoding keeps in memory: a cache that grows by a token, or a constant state.

    The memory of the first mechanism with a cache stands beside that of the first without, of one
    head, on their own examples: one cell is one number, so that areas can be compared.

    Args:
        mechanisms: one with a cache (softmax) and one or more with a state.
        T: tokens.
        seed: of the examples.
        number_bytes: bytes a number; None counts numbers.
        **sizes: by letter, as for `Mechanism.example`; H = 1 unless given.

    Returns:
        A Scrubber.

    Raises:
        ValueError: no mechanism with a cache, none with a state, or a letter that none has.
    """
    T, sizes = whole("T", T, LONGEST), {"H": 1} | sizes
    mechanisms = several(mechanisms)
    cached = [m for m in mechanisms if m.cache]
    kept = [m for m in mechanisms if not m.cache]
    if not cached or not kept:
        got = ", ".join(m.name for m in mechanisms) or "none"
        raise ValueError(f"mechanisms: wanted one with a cache and one with a state, got {got}")
    for letter in sizes:
        if letter != "H" and not any(own_sizes(m, {letter: 1}) for m in mechanisms):
            raise ValueError(f"sizes: wanted letters of these mechanisms, got {letter}")
    each = 1 if number_bytes is None else whole("number_bytes", number_bytes)
    grown = {m.title: numbers_held(m, T, **sizes) * each for m in mechanisms}
    above = grown[cached[0].title] > grown[kept[0].title]
    cross = int(above.argmax()) if above.any() else None
    steps = thin_steps(T, 64)
    cache = cache_panel(cached[0], T, steps, seed, sizes)
    state = state_panel(kept[0], T, steps, seed, sizes, cache.norm.vmax)
    cache.room = state.room = tuple(map(max, cache.sizes, state.sizes))
    what = "numbers" if number_bytes is None else "bytes"
    meet = f"the cache holds more from t = {cross} on" if cross is not None else "no crossing"
    curves = {n: y[steps] for n, y in grown.items()}
    growth = Growth(curves, f"{what} held: {meet}", ylabel=f"{what} held")
    growth.cross, growth.whole = cross, T
    final = ", ".join(f"{n} {count_text(int(y[-1]))}" for n, y in grown.items())
    return Scrubber(
        [cache, state, growth],
        alt=f"Memory while decoding {T} tokens, in {what}, at the end: {final}; {meet}",
        caption="One cell is one number held, of one head, and cells have one size in both. The "
        "cache keeps a column a token: its key channels over its value channels. The state keeps "
        "its size. Hatched: nothing held.",
        note=count_note(len(steps), T, "steps"),
        start=None if cross is None else int(np.abs(steps - cross).argmin()),
        steps=steps.tolist(),
    )


def cache_panel(
    m: Mechanism, T: int, steps: np.ndarray, seed: int, sizes: Mapping[str, int]
) -> Memory:
    """The cache of one head at each step: a column a token."""
    trace = m.trace(*m.example(T, seed, **own_sizes(m, sizes)))
    parts = [read(trace, x.name, "s k", part=x.name) for x in m.state]
    cache = np.concatenate(parts, 1).T
    later = np.arange(T) > steps[:, None, None]
    panel = Memory(
        np.where(later, 0, cache),
        f"cache of {m.title}",
        kind="signed",
        mask=np.broadcast_to(later, (len(steps), *cache.shape)),
        row_name="k, v channels",
        col_name="token s",
    )
    panel.outlines, panel.grows = [("key", 0, T, len(cache))], True
    return panel


def state_panel(
    m: Mechanism, T: int, steps: np.ndarray, seed: int, sizes: Mapping[str, int], vmax: Number
) -> Memory:
    """The state of one head at each step, its parts side by side."""
    trace = m.trace(*m.example(T, seed, **own_sizes(m, sizes)))
    parts, letters = [], []
    for x in m.state:
        axes = [a for a in trace.letters(x.name).split() if a not in "bh"]
        part = read(trace, x.name, " ".join(axes), part=x.name, complex=True)
        part = part.reshape(T, part.shape[1], -1)[steps]
        parts += [part.real, part.imag] if np.iscomplexobj(part) else [part]
        letters.append(axes[1:])
    rows, columns = max(x.shape[1] for x in parts), sum(x.shape[2] for x in parts)
    cells = np.zeros((len(steps), rows, columns))
    empty, at, outlines = np.ones(cells.shape, bool), 0, []
    for x in parts:
        where = (slice(None), slice(x.shape[1]), slice(at, at + x.shape[2]))
        cells[where], empty[where] = x, False
        outlines.append(("state", at, x.shape[2], x.shape[1]))
        at += x.shape[2]
    names = [AXES.get(a, a) for a in letters[0]]
    single = len(parts) == 1 and len(names) == 2
    panel = Memory(
        cells,
        f"state of {m.title}",
        kind="signed",
        vmax=vmax,
        mask=empty,
        row_name=names[0],
        col_name=names[1] if single else "numbers a channel",
    )
    panel.outlines, panel.grows = outlines, False
    return panel
