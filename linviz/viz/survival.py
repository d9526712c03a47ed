"""Pictures of what survives in a state: eigenvalues, retention, half-lives, the size in use.

The measures are in linviz.viz.memory: `transition_spectrum`, `retention`, `half_life`,
`effective_state_size`.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from linviz.mechanism import Trace
from linviz.viz.arguments import (
    attention_rows,
    count_note,
    joined,
    labels_at,
    numbers,
    sentence,
    within,
)
from linviz.viz.ink import INK
from linviz.viz.matrices import Array, Number, array, thin_steps, ticks
from linviz.viz.memory import (
    effective_state_size,
    gates,
    half_life,
    main_part,
    retention,
    steps,
    transition_spectrum,
)
from linviz.viz.moving import MOST_ROWS, Lines, Points, Rows
from linviz.viz.picture import Picture
from linviz.viz.scrubber import Scrubber
from linviz.viz.states import (
    ATTENDED,
    CURVES,
    attention_panel,
    chosen,
    cut_words,
    scrubber,
    whose,
)
from linviz.viz.traced import takes_models

DOTS = 256  # channels of one head that are drawn as dots
ERASING = ("delta_rule", "rank_one")
HEADS = 16  # heads that have a row of dots


def length_of(x: Array | Trace) -> int:
    """The number of steps of a trace or an array."""
    return x.sizes["T"] if isinstance(x, Trace) else len(x)


def simplified(x: Array | Trace, head: int, batch: int) -> str:
    """What `steps` has simplified of a trace, as a note."""
    return sentence(steps(x, head, batch).note) if isinstance(x, Trace) else ""


@takes_models()
def eigenvalues(
    x: Array | Trace,
    *,
    head: int = 0,
    batch: int = 0,
    tokens: Sequence[str] | None = None,
) -> Scrubber:
    """Draw the eigenvalues of the transition in the unit circle, step by step.

    Args:
        x: a Trace, transitions [t, n, n], or gates [t, n].
        head: of a trace, which head.
        batch: of a trace, which sequence.
        tokens: one label a step.

    Returns:
        A Scrubber: the eigenvalues of step t in the complex plane, and the largest and the smallest
        magnitude over time. See `transition_spectrum`.
    """
    T = length_of(x)
    at = chosen(T)
    found = transition_spectrum(x, head=head, batch=batch, at=at)
    size = np.abs(found)
    plane = {"xlabel": "real part", "ylabel": "imaginary part", "circle": True}
    spread = {"largest": size[:, 0], "smallest": size[:, -1]}
    if np.allclose(size, size[:, :1], atol=1e-9):
        spread = {"all": size[:, 0]}
    pairs = isinstance(x, Trace) and x[main_part(x)].is_complex()
    return scrubber(
        [
            Points(found.real, found.imag, "eigenvalues", **plane),
            Lines(spread, "magnitude", ylabel="|λ|"),
        ],
        at,
        T,
        notes=[simplified(x, head, batch)],
        tokens=tokens,
        alt="Eigenvalues of the transition in the unit circle, step by step; their magnitudes lie "
        f"between {size.min():.3g} and {size.max():.3g}.",
        caption="What a step does to the state if nothing is written: 1 keeps, 0 forgets, on the "
        "circle it turns without fading." + " Each stands for a conjugate pair." * pairs,
    )


@takes_models()
def retention_curves(
    x: Array | Trace,
    *,
    head: int = 0,
    batch: int = 0,
    written: Array | None = None,
    at: Array | None = None,
    tokens: Sequence[str] | None = None,
) -> Scrubber:
    """Draw how much of what each token wrote is still in the state later.

    Args:
        x: a Trace, transitions [t, n, n], or gates [t, n].
        head: of a trace, which head.
        batch: of a trace, which sequence.
        written: [t, n], what each token wrote, where x is an array; see `retention`.
        at: the tokens s whose curves are drawn; None takes a few.
        tokens: one label a step.

    Returns:
        A Scrubber: the matrix [t, s] of what is left at t of token s's write, and the curves of a
        few tokens.
    """
    T = length_of(x)
    shown = chosen(T, most=MOST_ROWS)
    below = labels_at("tokens", tokens, T, shown)
    few = thin_steps(max(1, T - T // 4), CURVES) if at is None else [within("at", s, T) for s in at]
    notes = [f"Curves of {2 * CURVES} of {len(few)} tokens."] * (len(few) > 2 * CURVES)
    few = [int(s) for s in few][: 2 * CURVES]
    wanted = sorted({*shown.tolist(), *few})
    kept = retention(x, head=head, batch=batch, written=written, at=wanted)[shown]
    matrix = kept[:, [wanted.index(s) for s in shown]]
    top = float(np.nanmax(kept, initial=0.0))
    scale = {"kind": "gate"} if top <= 1 + 1e-6 else {"kind": "count", "vmax": top}
    below = [str(s) for s in shown] if below is None and len(shown) < T else below
    options = {"mask": np.isnan(matrix), "col_name": "token s", "cols": below} | scale
    left = Rows(matrix, "left of each write", **options)
    curves = {}
    for s in few:
        word = f"s = {s}" if tokens is None else f"s = {s} “{ticks([tokens[s]])[1][0]}”"
        curves[word] = kept[:, wanted.index(s)]
    return scrubber(
        [left, Lines(curves, "of a few tokens", ylabel="share left", ends=(0, 1))],
        shown,
        T,
        notes=[*notes, simplified(x, head, batch)],
        tokens=tokens,
        alt=f"How much of each token's write is left over {T} steps.",
        caption="How much of what token s wrote is still in the state at time t."
        + " Here nothing is ever forgotten: every share is 1."
        * bool(np.allclose(kept[~np.isnan(kept)], 1)),
    )


# ---------------------------------------------------------------------------------- half-lives


@takes_models()
def half_lives(
    x: Array | Trace,
    *,
    batch: int = 0,
    names: Sequence[str] | None = None,
) -> Picture:
    """Draw how long each channel remembers: half-lives on a logarithmic axis.

    Each channel is a dot at the median over time, with a line from its shortest to its longest.
    Channels that never fade stand apart, at the right edge.

    Args:
        x: gates [t], [t, c] or [t, h, c] of magnitude 0 to 1 (fixed ones as [1, ...]); or a Trace.
        batch: of a trace, which sequence.
        names: one label a head (the rows of the picture); None numbers them.

    Returns:
        A Picture: a row of dots a head, and a histogram of all channels under them.
    """
    a, row = gate_table(x, batch)
    life = half_life(a)
    middle = np.median(life, 0)  # [h, c]
    H, C = middle.shape
    heads, channels = thin_steps(H, HEADS), thin_steps(C, DOTS)
    names = [str(h) for h in range(H)] if names is None else names
    rows = labels_at("names", names, H, heads)
    erases = isinstance(x, Trace) and x.mechanism.recurrence in ERASING
    note = joined(
        count_note(len(heads), H, "rows of dots"),
        "Fading only; the delta rule also erases, which is not counted here." * erases,
        count_note(len(channels), C, "channels a row"),
    )
    cut = np.ix_(heads, channels)
    spans = middle[cut], life.min(0)[cut], life.max(0)[cut]
    finite = middle[np.isfinite(middle)]
    span = f"between {finite.min():.3g} and {finite.max():.3g} steps" if finite.size else "infinite"
    never = f"{int(np.isinf(middle).sum())} never fade"

    name = f"{x.mechanism.title}. " if isinstance(x, Trace) else ""

    def draw() -> Figure:
        return draw_half_lives(spans, middle, rows, f"{row} ({H})")

    return Picture(
        draw,
        alt=f"Half-lives of {middle.size} channels, {span}; {never}.",
        caption=f"{name}After so many steps half of what a channel holds is left: dots are medians "
        "over time, grey lines the range over time; the lower panel counts the dots.",
        note=note,
        vector=True,
    )


def gate_table(x: Array | Trace, batch: int) -> tuple[np.ndarray, str]:
    """Gates as [t, h, c], and what a row is called."""
    if isinstance(x, Trace):
        return gates(x, batch=batch), "head h" if "H" in x.sizes else "channel d"
    a = numbers(x, "x", "t h c", "t c", "t")
    return (a if a.ndim == 3 else a.reshape(len(a), 1, -1)), "head h"


def draw_half_lives(
    spans: Sequence[np.ndarray], middle: np.ndarray, rows: Sequence[str], ylabel: str
) -> Figure:
    """Dots and ranges of `spans` (median, low, high; each [h, c]) over a histogram of `middle`."""
    some = np.concatenate([x.ravel() for x in spans])
    some = some[np.isfinite(some) & (some > 0)]
    floor, end = (some.min() / 1.3, some.max() * 1.3) if some.size else (1.0, 10.0)
    never = end * max(1.3, (end / floor) ** 0.1)  # where "never fades" stands
    tall = 0.3 + 0.2 * len(rows)
    fig, (top, bottom) = plt.subplots(
        2, 1, figsize=(5.6, tall + 2), sharex=True, height_ratios=(tall, 1), layout="constrained"
    )
    for i, (mid, low, high) in enumerate(zip(*spans, strict=True)):
        y = i + np.linspace(-0.25, 0.25, len(mid)) if len(mid) > 1 else np.array([float(i)])
        mid, low, high = (
            np.clip(np.where(np.isinf(s), never, s), floor, None) for s in (mid, low, high)
        )
        moves = low < high
        top.hlines(y[moves], low[moves], high[moves], color=INK["hatch"], lw=0.8, zorder=1)
        top.plot(mid, y, "o", color=INK["decay"], ms=3.2, mec=INK["text"], mew=0.3)
    top.set_yticks(range(len(rows)), rows)
    top.set(ylabel=ylabel, ylim=(len(rows) - 0.4, -0.6), xscale="log")
    edges = np.geomspace(floor, end, 25)
    bottom.hist(np.clip(middle[np.isfinite(middle)], floor, end), edges, color=INK["decay"])
    eternal = int(np.isinf(middle).sum())
    if eternal:
        wide = never * (edges[1] / edges[0] - 1)
        bottom.bar(never, eternal, wide, color=INK["decay"], hatch="////", ec=INK["text"], lw=0.5)
        top.set_title(f"{eternal} of {middle.size} channels never fade (∞)", fontsize="medium")
    bottom.set(xlabel="half-life (steps)", ylabel=f"channels ({middle.size})")
    bottom.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    mark_forever(top, bottom, (floor, end, never), bool(eternal))
    if not some.size:  # numbers would have no meaning
        bottom.set_xticks([never])
    return fig


def mark_forever(top: Axes, bottom: Axes, scale: Sequence[float], shown: bool) -> None:
    """Round ticks between `floor` and `end`, and one at the place of infinity."""
    floor, end, never = scale
    low, high = int(np.floor(np.log10(floor))), int(np.ceil(np.log10(end)))
    powers = 10.0 ** np.arange(low, high + 1)
    at = np.outer(powers, [1.0, 2.0, 5.0]).ravel() if end < 200 * floor else powers
    at = [x for x in at if floor <= x <= end][:: 1 + (high - low) // 8]
    bottom.set_xticks([*at, never] if shown else at)
    bottom.xaxis.set_minor_locator(NullLocator())
    bottom.xaxis.set_major_formatter(
        FuncFormatter(lambda x, _: "∞" if np.isclose(x, never) else f"{x:g}")
    )
    right = never if shown else end
    bottom.set_xlim(floor, right * (right / floor) ** 0.04)
    for ax in (top, bottom) if shown else ():
        ax.axvline(np.sqrt(end * never), color=INK["hatch"], lw=0.7, ls=":")


# ---------------------------------------------------------------------------------- size in use


@takes_models()
def state_size_used(
    x: Array | Trace,
    *,
    head: int = 0,
    batch: int = 0,
    tolerance: Number = 1e-4,
    tokens: Sequence[str] | None = None,
) -> Scrubber:
    """Draw how much of its state a mechanism uses at each time: its effective state size.

    Args:
        x: an effective attention [t, s], or a Trace of a mechanism that has one.
        head: of a trace, which head (or channel, where each has an attention of its own).
        batch: of a trace, which sequence.
        tolerance: see `effective_state_size`.
        tokens: one label a step.

    Returns:
        A Scrubber: the effective attention, and the rank of its block [t:, :t] at each time, with
        the most that the state (of a trace) and the lengths of past and future allow.

    Raises:
        ValueError: more than 4096 steps, or no effective attention.
    """
    T, room = length_of(x), np.inf
    if T > ATTENDED:
        raise ValueError(f"x: wanted at most {ATTENDED} steps, got {T}")
    if isinstance(x, Trace):
        A, room = attention_rows(x, head, batch), capacity(x)
    else:
        A = array(x, "x", "t s")
    at = chosen(T, most=int(np.clip(64 * (1024 / T) ** 3, 5, 256)))
    rank, entropy = effective_state_size(A, at=at, tolerance=tolerance)
    most = np.minimum(np.minimum(at, T - at), room).astype(float)
    series = {"at most": most, "rank": rank.astype(float), "entropy": entropy}
    full = int((rank == most).sum())
    return scrubber(
        [
            Lines(series, "effective state size at t", ylabel="directions"),
            attention_panel(A[at], at, tokens, whose(x, head)),
        ],
        at,
        T,
        tokens=tokens,
        start=T // 2,
        alt=f"Effective state size over {T} steps, {rank.max()} at most.",
        caption=joined(
            "How many independent numbers must be carried from before t to after t; at most: the "
            "shorter side, or what the state holds.",
            f"The rank lies on “at most” at {full} of {len(at)} times." * bool(full),
            cut_words(A[at], at),
        ),
    )


def capacity(trace: Trace) -> float:
    """How many numbers of the state one value channel is kept in: no block has a greater rank."""
    if trace.mechanism.cache:
        return np.inf
    part = main_part(trace)
    letters = trace.letters(part).split()
    kept = letters[-1] if "d" in letters else letters[-2]
    size = 1 if kept == "d" else trace[part].shape[letters.index(kept)]
    return float(2 * size if trace[part].is_complex() else size)
