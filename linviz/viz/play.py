"""Four explorers: a state under sliders, three forms step by step, two costs, a chunk tiling.

`explore_state`, `explore_forms`, `explore_cost` and `explore_chunks` run mechanisms as their
sliders move; what they show is measured by `state_of_text`, `three_forms`, `flops_of_token` and
`numbers_kept`.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from linviz.mechanism import Mechanism, fold
from linviz.mechanisms import REGISTRY
from linviz.mechanisms.linear_attention import FEATURE_MAPS
from linviz.viz.arguments import whole
from linviz.viz.curves import lines
from linviz.viz.diagrams import chunk_tiling, count_text
from linviz.viz.explorer import Choice, Explorer, Slider, Typed
from linviz.viz.ink import INK
from linviz.viz.matrices import AXES, Number, color_bar, frames, heat, limits, ticks
from linviz.viz.memory import carried, main_part, retention, state_norm, steps
from linviz.viz.picture import Picture

LETTERS = 48  # of a text, at most
TOKENS = 32  # of the three forms, at most
STILLS = 6  # states that are drawn
SIZES = {"B": 1, "H": 1, "K": 8, "V": 8, "N": 8, "P": 8, "G": 1, "D": 8}
FEATURES = tuple(name for name in FEATURE_MAPS if name != "identity")  # positive, so weights too
LONGEST = 2**20  # tokens of the costs
POWERS = (16, 32, 64, 128, 256)  # channels of the costs


# ----------------------------------------------------------------------- one state over a text


def small_sizes(m: Mechanism) -> dict[str, int]:
    """The sizes of the explorers: one head, 8 channels."""
    return {letter: SIZES[letter] for x in m.inputs for _, letter in x.letters if letter in SIZES}


def text_inputs(m: Mechanism, text: str, seed: int = 0) -> tuple[Tensor, ...]:
    """Make inputs of a text: a letter is drawn once, and is the same wherever it stands.

    Args:
        m: of the registry.
        text: a token a letter.
        seed: of the random numbers; another seed gives other vectors for all letters.

    Returns:
        Inputs in the order of the signature, one sequence, one head, 8 channels. What a mechanism
        takes for each token comes from its own example of one token, seeded by the letter; what it
        takes once (decay rates, weights) from its example.
    """
    sizes, once = small_sizes(m), m.example(1, seed, **small_sizes(m))
    drawn = {c: m.example(1, seed * 0x110000 + ord(c), **sizes) for c in set(text)}
    return tuple(
        torch.cat([drawn[c][i] for c in text], 1) if x.timed else once[i]
        for i, x in enumerate(m.inputs)
    )


def gate_of(m: Mechanism) -> str:
    """The input or option that says how fast the state fades; "" where there is none.

    That is an input which must not be above 0: a log gate (g, w), or the rates A of the state space
    models, whose log gate is dt A; and RetNet's gamma. LSTM and GRU make their gates inside.
    """
    found = [x.name for x in m.inputs if x.high == 0.0]
    return found[0] if found else "gamma" if "gamma" in m.options else ""


def scale_gate(
    m: Mechanism, inputs: Sequence[Tensor], power: Number
) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """Let the state fade faster: every log gate times 2^power, so every half-life over 2^power.

    Args:
        m: of the registry.
        inputs: in the order of the signature.
        power: 0 changes nothing.

    Returns:
        The inputs, and the options of the call. Of complex rates A the real part is multiplied: the
        state turns as fast as before. RetNet's gamma becomes gamma^(2^power). Where there is no
        gate, nothing changes.
    """
    factor, name = 2.0**power, gate_of(m)
    if name == "gamma":
        sizes = m.sizes(inputs, None, {}, "scale_gate")
        gamma = m.settled(dict(m.options), sizes, inputs, False)["gamma"]
        return tuple(inputs), {"gamma": gamma**factor}
    scaled = [
        x if spec.name != name else torch.complex(x.real * factor, x.imag)
        if x.is_complex() else x * factor
        for spec, x in zip(m.inputs, inputs, strict=True)
    ]  # fmt: skip
    return tuple(scaled), {}


def chunk_ends(T: int, chunk: int) -> list[int]:
    """The steps after which a state is handed on: the last of each chunk."""
    return sorted({*range(whole("chunk", chunk) - 1, whole("T", T), chunk), T - 1})


def largest_gap(a: Any, b: Any) -> float:
    """The largest difference between tensors, or tuples of them."""
    pairs = zip(a, b, strict=True) if isinstance(a, tuple) else [(a, b)]
    return max(float((x - y).abs().max()) for x, y in pairs)


def tiny(gap: float) -> str:
    """A difference of two digits; 0 is exact."""
    return f"{gap:.1e}" if gap else "0"


class TextState(NamedTuple):
    """What a mechanism makes of a text.

    Attributes:
        states: [t, k, v] or [t, d]: the main part of the state after each letter, complex where the
            mechanism's is.
        part: its name.
        letters: its axes.
        empty: where the state has no rows yet (a cache), True; or None.
        ends: the steps after which a state is handed on to the next chunk.
        norm: [t], of the state.
        left: [t], how much of what each letter wrote is in the last state, see `retention`.
        note: what was simplified for `left`, "" for nothing.
        gaps: the largest difference between the outputs, and the last states, of the chunked and
            the recurrent form; where there is no chunked form, of `fold`.
    """

    states: np.ndarray
    part: str
    letters: str
    empty: np.ndarray | None
    ends: list[int]
    norm: np.ndarray
    left: np.ndarray
    note: str
    gaps: tuple[float, float]


def not_yet(m: Mechanism, S: np.ndarray) -> np.ndarray | None:
    """True in the rows of a cache S [t, s, k] that are not there at time t; None for a state."""
    if not m.cache:
        return None
    later = np.arange(S.shape[1]) > np.arange(len(S))[:, None]
    return np.broadcast_to(later[..., None], S.shape)


def state_of_text(
    m: Mechanism, text: str, *, gate: Number = 0.0, chunk: int = 4, seed: int = 0
) -> TextState:
    """Run a mechanism over a text, letter by letter and in chunks.

    Args:
        m: of the registry.
        text: see `text_inputs`.
        gate: see `scale_gate`.
        chunk: letters a chunk.
        seed: see `text_inputs`.

    Returns:
        A TextState.
    """
    inputs, options = scale_gate(m, text_inputs(m, text, seed), gate)
    trace = m.trace(*inputs, **options)
    one = m.recurrent(*inputs, **options)
    if m.has("chunked"):
        other = m.chunked(*inputs, chunk=chunk, **options)
    else:
        other = fold(m.recurrent, chunk)(*inputs, **options)
    S = carried(trace)
    part = main_part(trace)
    letters = " ".join(x for x in trace.letters(part).split() if x not in "bht")
    return TextState(
        S,
        part,
        letters,
        not_yet(m, S),
        chunk_ends(len(text), chunk),
        state_norm(S),
        retention(trace)[-1],
        steps(trace).note,
        (largest_gap(other[0], one[0]), largest_gap(other[1], one[1])),
    )


# ------------------------------------------------------------------------- the state, drawn


def seen(text: str) -> list[str]:
    """The letters of a text as labels: white space is made visible, a box stands for no glyph."""
    font = get_font(findfont(FontProperties()))
    known = [c if c in " \n" or font.get_char_index(ord(c)) else "□" for c in text]
    return ticks(known, len(known))[1]


def explore_state(
    name: str = "gla",
    *,
    text: str = "the cat sat on the mat",
    gate: Number = 0.0,
    chunk: int = 4,
    seed: int = 0,
) -> Explorer:
    """Explore the state of one mechanism over a text.

    Args:
        name: of the mechanism, as in the registry.
        text: a token a letter, 48 at most; the same letter is the same token, see `text_inputs`.
        gate: every log gate times 2^gate, see `scale_gate`; from -4 to 4.
        chunk: letters a chunk, 1 to 32: the states handed on from chunk to chunk are drawn.
        seed: of the letters' vectors, 0 to 99.

    Returns:
        An Explorer: the states handed on, the norm of the state over time, and how much of what
        each letter wrote is in the last state.
    """
    return Explorer(
        draw_state,
        {
            "name": Choice("mechanism", REGISTRY.names),
            "gate": Slider("log gate, times 2 to the", -4.0, 4.0, 0.5),
            "chunk": Slider("chunk", 1, 32),
            "seed": Slider("seed", 0, 99),
            "text": Typed("text", LETTERS),
        },
        {"name": name, "gate": gate, "chunk": chunk, "seed": seed, "text": text},
        idle=lambda values: () if gate_of(REGISTRY[values["name"]]) else ("gate",),
    )


def draw_state(name: str, gate: Number, chunk: int, seed: int, text: str) -> Picture:
    """The picture of `explore_state`."""
    m = REGISTRY[name]
    found = state_of_text(m, text, gate=gate, chunk=chunk, seed=seed)
    labels = seen(text)
    fade = f"log gate × {2.0**gate:.3g}" if gate_of(m) else "no gate to scale"
    how = "chunked" if m.has("chunked") else "recurrent in pieces"

    def draw() -> Figure:
        fig = plt.figure(figsize=(7.2, 5.2))
        gap = f"{how} − recurrent: at most {tiny(max(found.gaps))}"
        fig.suptitle(f"{m.title}, {fade}, chunks of {chunk}; {gap}", fontsize=9, y=0.985)
        (draw_film if found.states.ndim == 3 else draw_rows)(fig, found, labels)
        draw_norm(place(fig, 0.65, 1.75, 5.7, 0.95), found)
        draw_left(place(fig, 0.65, 0.5, 5.7, 1.0), found, labels)
        return fig

    lost = f" Still there of a letter: {found.note}." * bool(found.note)
    return Picture(
        draw,
        alt=f"The state of {m.title} over the text “{text}” ({fade}), in chunks of {chunk}: its "
        f"norm is {found.norm[-1]:.3g} at the end, where {found.left[0]:.0%} of what the first "
        "letter wrote is left",
        caption="Each letter is a token, the same wherever it stands. Above, states handed on to "
        "the next chunk; dashed: the borders of chunks. Still there of a letter: the norm of what "
        "it wrote, as it stands in the last state, over its norm when written.",
        note=f"{how.capitalize()} and recurrent form differ by at most {tiny(found.gaps[0])} in "
        f"the output and {tiny(found.gaps[1])} in the state.{lost}",
    )


def place(fig: Figure, x: float, y: float, width: float, height: float) -> Axes:
    """Axes at (x, y) from the lower left, in inches; a fixed layout is twice as fast."""
    across, up = fig.get_size_inches()
    return fig.add_axes((x / across, y / up, width / across, height / up))


def bar_at(axes: Sequence[Axes], x: float, y: float, height: float) -> None:
    """The colour bar of some heat maps, at (x, y) in inches; the maps stay where they are."""
    fig, kept = axes[0].figure, [ax.get_position(original=True) for ax in axes]
    color_bar(axes)
    across, up = fig.get_size_inches()
    for ax, box in zip(axes, kept, strict=True):
        ax.set_position(box)
    fig.axes[-1].tick_params(labelsize=8)
    fig.axes[-1].set(anchor="W", position=(x / across, y / up, 0.3 / across, height / up))


def draw_film(fig: Figure, found: TextState, labels: Sequence[str]) -> None:
    """The states handed on, as matrices."""
    at = frames(len(found.states), found.ends, STILLS)
    wide = min(1.35, 5.7 / len(at) - 0.08)
    tall = 1.3 if found.states.shape[1] > 16 else wide
    low = 3.35 + (1.3 - tall) / 2
    names = [AXES.get(x, x) for x in found.letters.split()]
    kind, _, top = limits(found.states.real)
    axes = []
    for i, t in enumerate(at):
        ax = place(fig, 0.65 + i * (wide + 0.09), low, wide, tall)
        mask = None if found.empty is None else found.empty[t]
        scale = {"kind": kind, "vmax": top, "bar": False, "mask": mask}
        heat(found.states[t].real, ax=ax, row_name=names[0], col_name=names[1], **scale)
        ax.set_title(f"t = {t} “{labels[t]}”", fontsize=8, color=INK["state"])
        ax.set_aspect("auto")
        ax.set_xlabel("")
        if i:
            ax.set(yticklabels=[], ylabel="")
        axes.append(ax)
    few = f"{len(at)} of {len(found.ends)}" if len(at) < len(found.ends) else "all"
    part = "real part of " * np.iscomplexobj(found.states) + found.part
    words = f"{names[1]} ({found.states.shape[2]});  {part} at the borders of chunks ({few})"
    axes[0].annotate(words, (0, -25), xycoords="axes points", fontsize=8)
    bar_at(axes, 0.65 + len(at) * (wide + 0.09), low, tall)


def draw_rows(fig: Figure, found: TextState, labels: Sequence[str]) -> None:
    """A state that is a vector, over time."""
    ax = place(fig, 0.65, 3.35, 5.7, 1.3)
    S = found.states.T
    kind, _, top = limits(S)
    row = AXES.get(found.letters, found.letters)
    heat(S, ax=ax, kind=kind, vmax=top, bar=False, row_name=row, col_name="time t")
    ax.set_aspect("auto")
    name_letters(ax, labels)
    for t in found.ends:
        outline(ax, t, 0, 1, len(S), "state")
    ax.set_title(f"{found.part}; outlined: handed on", fontsize=8, color=INK["state"])
    bar_at([ax], 6.46, 3.35, 1.3)


def draw_norm(ax: Axes, found: TextState) -> None:
    """The norm of the state, and where it is handed on."""
    lines({"": found.norm}, ax=ax, xlabel="", ylabel="norm of state")
    ax.plot(found.ends, found.norm[found.ends], "o", color=INK["state"], ms=4)
    borders(ax, found)
    ax.set_ylim(0, 1.08 * float(np.nanmax(found.norm, initial=0.0)) or 1.0)
    ax.set_xticks(range(len(found.norm)), labels=[""] * len(found.norm))


def draw_left(ax: Axes, found: TextState, labels: Sequence[str]) -> None:
    """How much of each letter is left."""
    ax.bar(range(len(labels)), found.left, color=INK["key"], width=0.7)
    borders(ax, found)
    ax.set_ylim(0, max(1.0, 1.05 * float(np.nanmax(found.left, initial=0.0))))
    ax.set(xlabel=f"time t ({len(labels)}): letters of the text", ylabel="still there at the end")
    name_letters(ax, labels)


def name_letters(ax: Axes, labels: Sequence[str]) -> None:
    """A letter at each time."""
    ax.set_xticks(range(len(labels)), labels=labels, fontsize=8 if len(labels) <= 32 else 7)
    ax.tick_params(axis="x", length=0)


def borders(ax: Axes, found: TextState) -> None:
    """Dashed lines after the last step of each chunk."""
    for t in found.ends[:-1]:
        ax.axvline(t + 0.5, color=INK["hatch"], lw=0.8, ls="--", zorder=0)
    ax.set_xlim(-0.6, len(found.norm) - 0.4)


# ------------------------------------------------------------------------------------- three forms


def three_formed() -> tuple[str, ...]:
    """The mechanisms with three forms and an effective attention."""
    forms = {"recurrent", "parallel", "chunked"}
    return tuple(m.name for m in REGISTRY if m.linear and forms <= set(m.forms))


class ThreeForms(NamedTuple):
    """One run of a mechanism in its three forms.

    Attributes:
        outputs: form -> [t, v].
        weights: [t, s], the effective attention (of the first channel where each has its own).
        states: [t, k, v] or [t, d], the main part of the state after each token.
        part: its name.
        letters: its axes.
        empty: where the state has no rows yet (a cache), True; or None.
        block: [t, v], what the tokens of its own chunk give to an output.
        past: [t, v], what the state handed on from earlier chunks gives.
        gap: the largest difference between any two of the outputs, at any time.
    """

    outputs: dict[str, np.ndarray]
    weights: np.ndarray
    states: np.ndarray
    part: str
    letters: str
    empty: np.ndarray | None
    block: np.ndarray
    past: np.ndarray
    gap: float


def three_forms(m: Mechanism, *, T: int = 16, chunk: int = 4, seed: int = 0) -> ThreeForms:
    """Run the three forms of a mechanism on its example.

    Args:
        m: with three forms and an effective attention.
        T: tokens.
        chunk: tokens a chunk.
        seed: of the example.

    Returns:
        A ThreeForms. `block` and `past` split the weights at the border of the chunk: their sum is
        the output.
    """
    if m.name not in three_formed():
        wanted = ", ".join(three_formed())
        raise ValueError(f"m: wanted a mechanism with three forms ({wanted}), got {m.name}")
    T, chunk = whole("T", T), whole("chunk", chunk)
    inputs = m.example(T, seed, **small_sizes(m))
    runs = {
        "recurrent": m.recurrent(*inputs),
        "parallel": m.parallel(*inputs),
        "chunked": m.chunked(*inputs, chunk=chunk),
    }
    outputs = {name: o.reshape(T, -1).double().numpy() for name, (o, _) in runs.items()}
    A = m.attention_map(*inputs)[0].double().numpy()  # [h or d, t, s]
    v = inputs[m.value_index].reshape(T, -1).double().numpy()
    start = np.arange(T) // chunk * chunk
    near = np.arange(T) >= start[:, None]
    mixed = [
        np.einsum("dts,sd->td", A * where, v) if len(A) > 1 else (A[0] * where) @ v
        for where in (near, ~near)
    ]
    trace = m.trace(*inputs)
    S, part = carried(trace), main_part(trace)
    letters = " ".join(x for x in trace.letters(part).split() if x not in "bht")
    values = list(outputs.values())
    gap = max(float(np.abs(a - b).max()) for a in values for b in values)
    return ThreeForms(outputs, A[0], S, part, letters, not_yet(m, S), *mixed, gap)


def explore_forms(
    name: str = "gla", *, T: int = 16, t: int = 9, chunk: int = 4, seed: int = 0
) -> Explorer:
    """Explore how three forms of a mechanism come to the same numbers, step by step.

    Args:
        name: of a mechanism with three forms and an effective attention.
        T: tokens, 2 to 32.
        t: the step, from 0.
        chunk: tokens a chunk, 1 to T.
        seed: of the example, 0 to 99.

    Returns:
        An Explorer: the state after step t; the matrix of weights with its row t; the block of
        step t and what is read from the state handed on; and the output of step t by all three.
    """
    T = Slider("tokens", 2, TOKENS).check("T", T)
    return Explorer(
        lambda **values: draw_forms(T=T, **values),
        {
            "name": Choice("mechanism", three_formed()),
            "t": Slider("time t", 0, T - 1),
            "chunk": Slider("chunk", 1, T),
            "seed": Slider("seed", 0, 99),
        },
        {"name": name, "t": t, "chunk": chunk, "seed": seed},
    )


def draw_forms(name: str, t: int, chunk: int, seed: int, T: int) -> Picture:
    """The picture of `explore_forms`."""
    m = REGISTRY[name]
    found = three_forms(m, T=T, chunk=chunk, seed=seed)
    rows = {n: o[t] for n, o in found.outputs.items()}
    rows |= {"its block’s part": found.block[t], "the state’s part": found.past[t]}
    here = max(np.abs(a[t] - b[t]).max() for a, b in pairs(found.outputs.values()))

    def draw() -> Figure:
        fig = plt.figure(figsize=(7.2, 4.75))
        fig.suptitle(m.title, fontsize=10, y=0.985)
        draw_at(place(fig, 0.55, 2.45, 1.35, 1.5), found, t)
        maps = [place(fig, x, 2.45, 1.5, 1.5) for x in (3.1, 4.84)]
        draw_weights(maps, found, t, chunk)
        ax = place(fig, 1.0, 0.5, 5.34, 1.15)
        col = AXES.get(m.output.axes[-1], "value channel")
        kind, _, top = limits(np.concatenate(list(found.outputs.values())), "signed")
        x = np.stack(list(rows.values()))
        heat(x, ax=ax, col_name=col, kind=kind, vmax=top, bar=False)
        ax.set(yticks=range(len(rows)), yticklabels=list(rows), ylabel="", aspect="auto")
        ax.tick_params(axis="y", length=0, labelsize=8)
        ax.axhline(2.5, color=INK["text"], lw=0.8)
        bar_at([ax], 6.46, 0.5, 1.15)
        title = f"output {m.output.name} at t = {t}, three times: largest difference {tiny(here)}"
        ax.set_title(title, fontsize=8, color=INK["output"])
        return fig

    last = {move.kind: i for i, move in enumerate(m.moves)}  # of each kind
    when = "before" if last["read"] < last.get("write", 0) else "after"
    return Picture(
        draw,
        alt=f"Three forms of {m.title} at t = {t} of {T} tokens, in chunks of {chunk}: the state, "
        f"the row of the matrix, the block and the state handed on; the outputs differ by at most "
        f"{tiny(here)} there and {tiny(found.gap)} anywhere",
        caption=f"Recurrent: a state, read {when} each token is written. Parallel: one matrix of "
        "weights, one row a token. Chunked: weights inside a chunk only; the state handed on "
        "stands for what is before it, and the last two rows are the two parts of the output. "
        "Hatched: not there.",
        note=f"Largest difference between any two forms, over all {T} tokens: {tiny(found.gap)}.",
    )


def pairs(xs: Any) -> list[tuple]:
    """All pairs."""
    xs = list(xs)
    return [(a, b) for i, a in enumerate(xs) for b in xs[i + 1 :]]


def draw_at(ax: Axes, found: ThreeForms, t: int) -> None:
    """The state after step t; a vector with all steps up to t."""
    S, names = found.states.real, [AXES.get(x, x) for x in found.letters.split()]
    kind, _, top = limits(S)
    if S.ndim == 3:
        x, mask = S[t], None if found.empty is None else found.empty[t]
    else:
        x, mask = S, np.broadcast_to(np.arange(len(S))[:, None] > t, S.shape)
        names = ["time t", *names]
    scale = {"kind": kind, "vmax": top, "bar": False, "mask": mask}
    heat(x, ax=ax, row_name=names[0], col_name=names[1], **scale)
    if S.ndim == 2:
        outline(ax, 0, t, S.shape[1], 1, "state")
    real = "real part of " * np.iscomplexobj(found.states)
    ax.set_title(f"recurrent\n{real}{found.part} after t = {t}", fontsize=8)
    ax.set_aspect("auto")
    ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    bar_at([ax], 1.96, 2.45, 1.5)


def draw_weights(axes: Sequence[Axes], found: ThreeForms, t: int, chunk: int) -> None:
    """The matrix with its row t, and its blocks with that of step t."""
    A, T = found.weights, len(found.weights)
    start = t // chunk * chunk
    at = np.arange(T)
    future = at > at[:, None]
    far = at < at[:, None] // chunk * chunk
    kind, _, top = limits(A[~future])
    for ax, mask in zip(axes, (future, future | far), strict=True):
        scale = {"kind": kind, "vmax": top, "bar": False, "mask": mask}
        heat(A, ax=ax, row_name="time t", col_name="token s", **scale)
        ax.set(xticks=sorted({0, T // 2, T - 1}), yticks=sorted({0, T // 2, T - 1}))
    outline(axes[0], 0, t, t + 1, 1, "output")
    outline(axes[1], start, t, t + 1 - start, 1, "output")
    if start:
        outline(axes[1], 0, t, start, 1, "state")
        card = {"facecolor": INK["paper"], "edgecolor": "none", "pad": 1.5}
        y = t + (2 if t < T - 3 else -2)
        word = {"ha": "left", "va": "center", "fontsize": 8, "color": INK["state"], "bbox": card}
        axes[1].text(0, y, f"state after t = {start - 1}", **word)
    end = min(start + chunk, T) - 1
    axes[0].set_title(f"parallel\nrow t = {t} of the matrix", fontsize=8)
    axes[1].set_title(f"chunked\nblock {start} to {end}, row t = {t}", fontsize=8)
    axes[1].set(ylabel="", yticklabels=[])
    bar_at(axes, 6.46, 2.45, 1.5)


def outline(ax: Axes, x: int, y: int, width: int, height: int, ink: str) -> None:
    """A frame around cells: column x, row y, so many of both."""
    corner = (x - 0.5, y - 0.5)
    ax.add_patch(
        Rectangle(corner, width, height, fill=False, ec=INK[ink], lw=1.8, clip_on=False, gid=ink)
    )


# -------------------------------------------------------------------- softmax against linear


def flops_of_token(m: Mechanism, T: int, d: int) -> float:
    """Count the operations of the next token when there are T with it, one head of d channels.

    Args:
        m: softmax, or another mechanism with K and V.
        T: tokens, this one among them.
        d: key and value channels.

    Returns:
        A number, see `Mechanism.flops`.
    """
    sizes = m.all_sizes({"T": whole("T", T), "H": 1, "K": whole("d", d), "V": d}, "flops")
    return float(m.flops(sizes))


def numbers_kept(m: Mechanism, T: int, d: int) -> int:
    """Count the numbers that one sequence of T tokens keeps, one head of d channels.

    Args:
        m: softmax, or another mechanism with K and V.
        T: tokens.
        d: key and value channels.
    """
    return m.state_size(T=whole("T", T), H=1, K=whole("d", d), V=d)


def first_dearer(
    count: Callable[[Mechanism, int, int], Number], a: Mechanism, b: Mechanism, d: int
) -> int:
    """The first length at which `a`, which grows with it, costs more than `b`, which does not."""
    dear = count(b, 1, d)
    return bisect_left(range(2**40), True, lo=1, key=lambda T: count(a, T, d) > dear)


COUNTS = {"operations for the next token": flops_of_token, "numbers held": numbers_kept}


def explore_cost(length: int = 1024, *, d: int = 64, features: str = "elu") -> Explorer:
    """Explore softmax against linear attention: work, memory and maps.

    Args:
        length: tokens so far, a power of 2 from 2 to 2^20.
        d: key and value channels of one head: 16, 32, 64, 128 or 256.
        features: the feature map of the linear attention; taylor has 1 + d + d^2 features, hedgehog
            2 d, the others d.

    Returns:
        An Explorer: the operations for one more token and the numbers held (a cache, or a state)
        over the length, where they cross; and both attention maps of the same q and k.
    """
    lengths = tuple(2**n for n in range(1, int(math.log2(LONGEST)) + 1))
    return Explorer(
        draw_cost,
        {
            "length": Choice("length", lengths, slider=True),
            "d": Choice("channels d", POWERS, slider=True),
            "features": Choice("features", FEATURES),
        },
        {"length": length, "d": d, "features": features},
    )


def rivals(features: str) -> tuple[Mechanism, Mechanism]:
    """Softmax, and linear attention with these features."""
    return REGISTRY["softmax"], REGISTRY["linear_attention"].having(feature_map=features)


def both_maps(d: int, features: str, *, T: int = 24, seed: int = 0) -> dict[str, np.ndarray]:
    """The attention maps of softmax and of linear attention on the same q and k.

    Args:
        d: key channels.
        features: the feature map.
        T: tokens.
        seed: of q and k.

    Returns:
        "softmax" and "linear" -> [t, s]; the weights of a row sum to 1.
    """
    inputs = REGISTRY["softmax"].example(T, seed, H=1, K=whole("d", d), V=1)
    maps = (m.attention_map(*inputs)[0, 0].double().numpy() for m in rivals(features))
    return dict(zip(("softmax", "linear"), maps, strict=True))


def draw_cost(length: int, d: int, features: str) -> Picture:
    """The picture of `explore_cost`."""
    softmax, linear = rivals(features)
    x = np.array([2.0**n for n in range(1, int(math.log2(LONGEST)) + 1)])
    curves, now, meet = {}, {}, {}
    for title, count in COUNTS.items():
        cost = {"softmax": softmax, "linear": linear}
        curves[title] = {n: [count(m, int(T), d) for T in x] for n, m in cost.items()}
        now[title] = {n: count(m, length, d) for n, m in cost.items()}
        meet[title] = first_dearer(count, softmax, linear, d)
    maps = both_maps(d, features)

    def draw() -> Figure:
        fig = plt.figure(figsize=(7.2, 5.3))
        for left, title in zip((0.65, 4.25), COUNTS, strict=True):
            ax = place(fig, left, 3.35, 2.75, 1.4)
            draw_costs(ax, x, curves[title], length, now[title], meet[title])
            costs = ", ".join(f"{n} {count_text(cost)}" for n, cost in now[title].items())
            ax.set_title(f"{title} at T = {length:,}\n{costs}", fontsize=8)
        draw_maps(fig, {"softmax": maps["softmax"], f"linear, features {features}": maps["linear"]})
        words = f"weights on the same q and k, 24 tokens, d = {d}"
        fig.text(0.46, 2.72 / 5.3, words, ha="center", fontsize=8)
        return fig

    said = "; ".join(
        f"{title}: softmax {count_text(now[title]['softmax'])}, linear "
        f"{count_text(now[title]['linear'])}, softmax more from {meet[title]:,} tokens on"
        for title in curves
    )
    return Picture(
        draw,
        alt=f"Softmax against linear attention with {length} tokens, {d} channels: {said}",
        caption=f"At {length:,} tokens (dotted), one head of {d} channels, features {features}. "
        f"{said[:1].upper() + said[1:]}. The work of the features themselves is not counted.",
    )


def draw_costs(
    ax: Axes,
    x: np.ndarray,
    curves: Mapping[str, Sequence[Number]],
    length: int,
    now: Mapping[str, Number],
    meet: int,
) -> None:
    """What both cost over the length, the chosen length, and where the curves cross."""
    lines(curves, x=x, ax=ax, log="xy", xlabel="length T (tokens)")
    for name, y in curves.items():
        line_name(ax, name, x, y, left=name == "linear" and meet > 1000)
    ax.axvline(length, color=INK["text"], lw=1, ls=":")
    ax.plot([length] * len(now), list(now.values()), "o", color=INK["text"], ms=4)
    if meet <= LONGEST:
        ax.axvline(meet, color=INK["hatch"], lw=1, ls="--", zorder=0)
    ax.set_ylim(top=40 * max(map(max, curves.values())))  # room for a name


def draw_maps(fig: Figure, maps: Mapping[str, np.ndarray]) -> None:
    """Two maps on one scale."""
    axes = [place(fig, left, 0.5, 1.95, 1.95) for left in (0.9, 3.75)]
    for ax, (title, A) in zip(axes, maps.items(), strict=True):
        future = np.triu(np.ones(A.shape, bool), 1)
        scale = {"kind": "count", "vmax": 1.0, "log": 0.05, "bar": False, "mask": future}
        heat(A, ax=ax, row_name="time t", col_name="token s", **scale)
        ax.set_title(title, fontsize=8)
    bar_at(axes, 5.95, 0.5, 1.95)


def line_name(ax: Axes, name: str, x: np.ndarray, y: Sequence[Number], *, left: bool) -> None:
    """Write a curve's name above one of its ends."""
    end, offset, side = (0, (2, 3), "left") if left else (-1, (-4, 3), "right")
    ink = next(line.get_color() for line in ax.lines if line.get_label() == name)
    word = {"textcoords": "offset points", "ha": side, "va": "bottom", "color": ink, "fontsize": 8}
    ax.annotate(name, (x[end], y[end]), offset, **word)


# ------------------------------------------------------------------------------------- chunk tiling


def explore_chunks(T: int = 32, *, chunk: int = 8, d: int = 16) -> Explorer:
    """Explore the chunk tiling: what is computed as weights, what comes from a state, and the work.

    Args:
        T: tokens, 2 to 128.
        chunk: tokens a chunk, 1 to 128; more than T is one chunk.
        d: channels: 16, 32, 64, 128 or 256.

    Returns:
        An Explorer of `chunk_tiling`.
    """
    return Explorer(
        lambda **values: chunk_tiling(values["T"], values["chunk"], d=values["d"]),
        {
            "T": Slider("tokens T", 2, 128),
            "chunk": Slider("chunk", 1, 128),
            "d": Choice("channels d", POWERS, slider=True),
        },
        {"T": T, "chunk": chunk, "d": d},
    )
