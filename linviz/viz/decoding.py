"""What decoding keeps in memory: a cache that grows by a token, or a constant state.

`numbers_held` measures, `cache_or_state` draws.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from linviz.mechanism import Mechanism
from linviz.viz.curves import lines
from linviz.viz.diagrams import count_text
from linviz.viz.ink import INK
from linviz.viz.matrices import read, thin_steps
from linviz.viz.moving import Frames, Lines
from linviz.viz.scrubber import Scrubber
from linviz.viz.triangular import whole


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
    """Frames with an outline around the cache, and one around the state."""

    areas: Sequence[tuple[str, int, int, int]]  # ink, first column, columns, rows
    steps: np.ndarray

    def keep(self, steps: np.ndarray) -> str:
        """Keep some steps."""
        self.steps = self.steps[steps]
        return super().keep(steps)

    def still(self, axes: Sequence[Axes], at: Sequence[int], names: Sequence[str]) -> None:
        """Draw the steps `at` and the outlines: the cache is as wide as what it holds."""
        super().still(axes, at, names)
        block = -(-self.sizes[1] // self.x.shape[2])  # columns shown as one
        for ax, t in zip(axes, at, strict=True):
            for ink, first, columns, rows in self.areas:
                columns = min(columns, self.steps[t] + 1) if first == 0 else columns
                line = {"fill": False, "edgecolor": INK[ink], "linewidth": 1.4, "clip_on": False}
                corner = (first / block - 0.5, -0.5)
                ax.add_patch(Rectangle(corner, columns / block, rows, gid=ink, **line))


class Growth(Lines):
    """Curves over the steps, with a mark where the first passes above the second."""

    steps: np.ndarray
    cross: int | None = None

    def keep(self, steps: np.ndarray) -> str:
        """Keep some steps."""
        self.steps = self.steps[steps]
        return super().keep(steps)

    def still(self, axes: Sequence[Axes], at: Sequence[int], names: Sequence[str]) -> None:
        """Draw all curves and the mark."""
        T = self.steps[-1] + 1
        lines(self.series, x=self.steps, ax=axes[0], ylabel=self.ylabel, xlabel=f"time t ({T})")
        axes[0].legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
        if self.cross is not None:
            axes[0].axvline(self.cross, color=INK["hatch"], linewidth=1, linestyle="--", zorder=0)


def cache_or_state(
    mechanisms: Iterable[Mechanism],
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
    T, sizes = whole("T", T), {"H": 1} | sizes
    mechanisms = tuple(mechanisms)
    cached = [m for m in mechanisms if m.cache]
    kept = [m for m in mechanisms if not m.cache]
    if not cached or not kept:
        got = ", ".join(m.name for m in mechanisms) or "none"
        raise ValueError(f"mechanisms: wanted one with a cache and one with a state, got {got}")
    for letter in sizes:
        if letter != "H" and not any(own_sizes(m, {letter: 1}) for m in mechanisms):
            raise ValueError(f"sizes: {letter} is a letter of none of these mechanisms")
    each = 1 if number_bytes is None else whole("number_bytes", number_bytes)
    grown = {m.title: numbers_held(m, T, **sizes) * each for m in mechanisms}
    above = grown[cached[0].title] > grown[kept[0].title]
    cross = int(above.argmax()) if above.any() else None
    steps = thin_steps(T, 64)
    cells, empty, areas = memories(cached[0], kept[0], T, steps, seed, sizes)
    what = "numbers" if number_bytes is None else "bytes"
    frames = Memory(
        cells,
        f"In memory at time t: cache of {cached[0].title}, state of {kept[0].title}",
        mask=empty,
        vmax=float(np.abs(cells[:, :, :T]).max()) or None,
        row_name="channel",
        col_name=f"columns: {T} of the cache, 2 apart, {cells.shape[2] - T - 2} of the state",
    )
    frames.areas, frames.steps = areas, steps
    growth = Growth({n: y[steps] for n, y in grown.items()}, ylabel=f"{what} held")
    growth.steps, growth.cross = steps, cross
    meet = f"the cache holds more from t = {cross} on" if cross is not None else "no crossing"
    growth.title = f"{what.capitalize()} held: {meet}"
    final = ", ".join(f"{n} {count_text(int(y[-1]))}" for n, y in grown.items())
    return Scrubber(
        [frames, growth],
        alt=f"Memory while decoding {T} tokens, in {what}, at the end: {final}; {meet}",
        caption="One cell is one number held. The cache keeps every token's key and value; the "
        "state keeps its size. Hatched: nothing held.",
        note=f"{len(steps)} of {T} steps shown." if len(steps) < T else "",
        start=None if cross is None else int(np.abs(steps - cross).argmin()),
        steps=steps.tolist(),
    )


def memories(
    cached: Mechanism,
    kept: Mechanism,
    T: int,
    steps: np.ndarray,
    seed: int,
    sizes: Mapping[str, int],
) -> tuple[np.ndarray, np.ndarray, list[tuple[str, int, int, int]]]:
    """Put the cache and the state of one head side by side at each step.

    Returns:
        The numbers [step, i, j]; where nothing is held (True); and for the cache and each part of
        the state an ink, the first column, columns and rows.
    """
    traces = [m.trace(*m.example(T, seed, **own_sizes(m, sizes))) for m in (cached, kept)]
    keys = [read(traces[0], x.name, "s k", part=x.name) for x in cached.state]
    cache = np.concatenate(keys, 1).T  # [channels, T]
    states = []
    for x in kept.state:
        axes = [a for a in traces[1].letters(x.name).split() if a not in "bh"]
        part = read(traces[1], x.name, " ".join(axes), part=x.name, complex=True)
        part = part.reshape(T, part.shape[1], -1)[steps]
        states += [part.real, part.imag] if np.iscomplexobj(part) else [part]
    rows = max(len(cache), *(x.shape[1] for x in states))
    columns = sum(x.shape[2] for x in states)
    cells = np.zeros((len(steps), rows, T + 2 + columns))
    empty = np.ones(cells.shape, bool)
    cells[:, : len(cache), :T] = cache
    empty[:, : len(cache), :T] = np.arange(T) > steps[:, None, None]
    at, areas = T + 2, [("key", 0, T, len(cache))]
    for x in states:
        where = (slice(None), slice(x.shape[1]), slice(at, at + x.shape[2]))
        cells[where], empty[where] = x, False
        areas.append(("state", at, x.shape[2], x.shape[1]))
        at += x.shape[2]
    return cells, empty, areas
