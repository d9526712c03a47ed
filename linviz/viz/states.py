"""Pictures of states: what they hold at each time, how large they are, how they come about.

Each function measures with linviz.viz.memory and draws. Measures are named by nouns (`state_norm`,
`effective_rank`), pictures by what is seen (`state`, `state_measures`). What survives in a state is
in linviz.viz.survival. Long sequences are thinned before anything is measured, large states when
they are drawn; a note under the picture says so.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from linviz.mechanism import Trace
from linviz.viz.arguments import (
    attention_rows,
    by_name,
    count_note,
    joined,
    labels_at,
    numbers,
    sentence,
    within,
)
from linviz.viz.magnitudes import memory_limit
from linviz.viz.matrices import AXES, Array, Number, array, panels, thin, thin_steps
from linviz.viz.memory import (
    Steps,
    carried,
    collapse_ratio,
    effective_rank,
    first_state,
    main_part,
    path_shape,
    singular_spectrum,
    stable_rank,
    state_moments,
    state_norm,
    state_path,
    steps,
)
from linviz.viz.moving import MOST_CELLS, MOST_FRAMES, MOST_ROWS, Frames, Lines, Points, Rows
from linviz.viz.picture import Picture
from linviz.viz.scrubber import Scrubber
from linviz.viz.traced import takes_models

CURVES = 6  # lines of one kind in a panel
WORKING = 2**25  # numbers of the states that are held while measuring
ATTENDED = 4096  # tokens up to which an effective attention is worked out


# ------------------------------------------------------------------------------ what is shared


def chosen(T: int, shape: Sequence[int] = (), most: int = MOST_FRAMES) -> np.ndarray:
    """The steps that are drawn: fewer where a step is a large matrix [i, j]."""
    cells = int(np.prod(shape))
    drawn = min(cells, MOST_ROWS**2) if len(shape) == 2 else 1
    return thin_steps(T, max(2, min(most, MOST_CELLS // drawn, WORKING // cells)))


def scrubber(
    shown: Sequence[Any],
    at: np.ndarray,
    T: int,
    *,
    notes: Sequence[str] = (),
    tokens: Sequence[str] | None = None,
    start: int | None = None,
    **words: str,
) -> Scrubber:
    """A Scrubber of panels that have been cut to the steps `at` of T."""
    if start is not None:
        start = int(np.abs(at - within("start", start, T)).argmin())
    note = joined(count_note(len(at), T, "steps"), *notes)
    tokens = labels_at("tokens", tokens, T, at)
    return Scrubber(shown, tokens=tokens, steps=at.tolist(), start=start, note=note, **words)


def drawn(S: np.ndarray, title: str, letters: str, **options: Any) -> list[Frames | Rows]:
    """The panels of a state [t, i, j] or [t, j]; complex numbers make two: real part, magnitude."""
    if np.iscomplexobj(S):
        real = drawn(S.real, f"real part of {title}", letters, **options)
        options |= {"kind": "count"} if options.get("kind") == "signed" else {}
        return real + drawn(abs(S), f"magnitude of {title}", letters, **options)
    names = [AXES.get(letter, letter) for letter in letters.split()[1:]]
    if S.ndim == 2:
        return [Rows(S, title, col_name=names[0], **options)]
    return [Frames(S, title, row_name=names[0], col_name=names[1], **options)]


def unseen(x: Array | Trace, S: np.ndarray, at: np.ndarray) -> np.ndarray | None:
    """True in the rows of a cache [t, s, k] that are not there yet."""
    if not isinstance(x, Trace) or not x.mechanism.cache:
        return None
    last = S.shape[1] - x.sizes["T"] + at
    return np.broadcast_to((np.arange(S.shape[1]) > last[:, None])[..., None], S.shape)


def one_scale(*states: np.ndarray) -> dict[str, Any]:
    """The scale on which all of `states` can be compared, for `drawn`."""
    top = max(float(np.abs(S[np.isfinite(S)]).max(initial=0.0)) for S in states) or 1.0
    signed = any((S.real < 0).any() for S in states)
    return {"kind": "signed" if signed else "count", "vmax": top}


def of_what(x: Array | Trace, head: int) -> str:
    """Whose state it is, for the description."""
    if not isinstance(x, Trace):
        return "a state"
    where = f", head {head}" if "H" in x.sizes else ""
    return f"the state of {x.mechanism.title}{where}"


# ------------------------------------------------------------------------------ the state itself


@takes_models()
def state(
    x: Array | Trace,
    *,
    part: str | None = None,
    head: int = 0,
    batch: int = 0,
    tokens: Sequence[str] | None = None,
    rows: Sequence[str] | None = None,
    cols: Sequence[str] | None = None,
    start: int | None = None,
    **options: Any,
) -> Scrubber:
    """Draw the state after each step, with its norm and its effective rank under it.

    A matrix is a frame a step; a vector is a row of one matrix over time; complex states show
    their real part and their magnitude; a cache (softmax) shows the rows that are there.

    Args:
        x: states [t, k, v] or [t, d]; or a Trace.
        part: of a trace, which part of the state; None draws all of them.
        head: of a trace, which head.
        batch: of a trace, which sequence.
        tokens: one label a step.
        rows: one label a row of the state, of the main part if there are several.
        cols: one label a column, likewise.
        start: the step shown first.
        **options: for the panels of the state: kind, vmax.

    Returns:
        A Scrubber: the panels of the state, then lines of its norm, then lines of its ranks.
    """
    parts = [main_part(x, part)]
    if part is None and isinstance(x, Trace):
        parts = [spec.name for spec in x.mechanism.state]
    shapes = {name: path_shape(x, name, head, batch) for name in parts}
    T = shapes[parts[0]][0][0]
    at = min((chosen(T, shape[1:]) for shape, _ in shapes.values()), key=len)
    shown, norms, ranks = [], {}, {}
    for name, (shape, letters) in shapes.items():
        S = state_path(x, part=name, head=head, batch=batch, at=at)
        named = {"cols": cols} if name == main_part(x, part) else {}
        named |= {"rows": rows} if named and len(shape) == 3 else {}
        shown += drawn(S, name, letters, mask=unseen(x, S, at), **named, **options)
        norms[name] = state_norm(S)
        if S.ndim == 3:
            ranks[name] = effective_rank(S)
    for title, series in (("norm", norms), ("effective rank", ranks)):
        if len(series) == len(shapes) == 1:
            series = {"": series[parts[0]]}  # one line needs no name
        shown += [Lines(series, title, ylabel=title)] if series else []
    measures = "its norm and its effective rank" if ranks else "its norm"
    alt = sentence(f"{of_what(x, head)} over {T} steps, with {measures}")
    caption = f"{sentence(of_what(x, head))[:-1]}, after token t. Norm: how large it is"
    caption += "; effective rank: how many directions it uses evenly." if ranks else "."
    return scrubber(shown, at, T, tokens=tokens, start=start, alt=alt, caption=caption)


@takes_models()
def labelled_state(
    x: Array | Trace,
    *,
    part: str | None = None,
    head: int = 0,
    batch: int = 0,
    t: int = -1,
    rows: Sequence[str] | None = None,
    cols: Sequence[str] | None = None,
    title: str = "",
    **options: Any,
) -> Picture:
    """Draw one state with a letter or a token for every row and column.

    Args:
        x: a state [k, v]; or a Trace.
        part: of a trace, which part of the state.
        head: of a trace, which head.
        batch: of a trace, which sequence.
        t: of a trace, after which step.
        rows: one label a row.
        cols: one label a column.
        title: stands over it; "" says the step of a trace.
        **options: for `panels` and `heat`.

    Returns:
        A Picture. A state wider or taller than 128 is drawn in blocks.
    """
    letters = "t k v"
    if isinstance(x, Trace):
        (T, *_), letters = path_shape(x, part, head, batch)
        t = within("t", t, T)
        title = title or f"t = {t}"
        x = state_path(x, part=part, head=head, batch=batch, at=[t])[0]
    S = array(x, "x", "k v")
    names = [AXES.get(letter, letter) for letter in letters.split()[1:]]
    small, note = thin(S[None], (1, MOST_ROWS, MOST_ROWS))
    named = {
        name: labels_at(name, given, size, range(0, size, -(-size // MOST_ROWS)))
        for name, given, size in zip(("rows", "cols"), (rows, cols), S.shape, strict=True)
    }
    options = {"row_name": names[0], "col_name": names[1], "width": 3.4} | named | options
    picture = panels({title: small[0]}, **options)
    picture.note = note
    row, column = options["row_name"], options["col_name"]
    picture.caption = f"What the state holds for each {row} and {column}; 0 means nothing."
    return picture


@takes_models("a", "b")
def state_difference(
    a: Array | Trace,
    b: Array | Trace,
    *,
    names: Sequence[str] | None = None,
    part: str | None = None,
    head: int = 0,
    batch: int = 0,
    tokens: Sequence[str] | None = None,
    start: int | None = None,
    **options: Any,
) -> Scrubber:
    """Draw the states of two mechanisms on one scale, and their difference on its own.

    Args:
        a: states [t, k, v] or [t, d]; or a Trace.
        b: the same shape, or a Trace whose state has the same shape.
        names: what to call them; None takes the mechanisms' names.
        part: of a trace, which part of the state.
        head: of a trace, which head.
        batch: of a trace, which sequence.
        tokens: one label a step.
        start: the step shown first.
        **options: for the panels: rows, cols; kind and vmax for those of a and b.

    Returns:
        A Scrubber with three panels, a, b and a - b, and a line of the norm of the difference. Of
        complex states the real part is drawn.

    Raises:
        ValueError: if the shapes differ, or there are not two names.
    """
    which = {"part": part, "head": head, "batch": batch}
    (shape, letters), (other, _) = path_shape(a, **which), path_shape(b, **which)
    if shape != other:
        raise ValueError(
            f"b: wanted the shape of a, [{letters.replace(' ', ', ')}] = {list(shape)}, got shape "
            f"{list(other)}"
        )
    own = [x.mechanism.name if isinstance(x, Trace) else n for x, n in ((a, "a"), (b, "b"))]
    names = [str(name) for name in names or (own if own[0] != own[1] else ["a", "b"])]
    if len(names) != 2:
        raise ValueError(f"names: wanted 2, got {len(names)}")
    at = chosen(shape[0], shape[1:])
    first, second = (state_path(x, **which, at=at) for x in (a, b))
    scale = one_scale(first.real, second.real) | options
    own = {key: value for key, value in options.items() if key not in ("kind", "vmax")}
    shown = []
    for S, title in zip((first, second), names, strict=True):
        shown += drawn(S.real, title, letters, **scale)
    apart, title = (first - second).real, f"{names[0]} − {names[1]} (own scale)"
    shown += drawn(apart, title, letters, kind="signed", **own)
    shown.append(Lines({"": state_norm(first - second)}, "norm of the difference", ylabel="norm"))
    return scrubber(
        shown,
        at,
        shape[0],
        notes=["Real parts are drawn."] if np.iscomplexobj(first - second) else [],
        tokens=tokens,
        start=start,
        alt=f"The states of {names[0]} and {names[1]} and their difference, step by step.",
        caption="Two states after the same token, on one scale, and their difference on its own. "
        "Where the norm of the difference is 0, they hold the same.",
    )


# ------------------------------------------------------------------------------ its measures


@takes_models(every=True)
def state_measures(
    x: Array | Trace | Mapping[str, Array | Trace],
    *,
    part: str | None = None,
    head: int = 0,
    batch: int = 0,
    tokens: Sequence[str] | None = None,
) -> Scrubber:
    """Draw the norm, the effective rank and the stable rank of one state, or of several.

    Args:
        x: states [t, k, v] or [t, d], a Trace, or name -> either, all of one length.
        part: of a trace, which part of the state.
        head: of a trace, which head.
        batch: of a trace, which sequence.
        tokens: one label a step.

    Returns:
        A Scrubber with a panel of lines a measure. States that are vectors have a norm only.
    """
    several = by_name("x", x, x.mechanism.name if isinstance(x, Trace) else "state")
    which = {"part": part, "head": head, "batch": batch}
    shapes = {name: path_shape(each, **which)[0] for name, each in several.items()}
    lengths = {name: shape[0] for name, shape in shapes.items()}
    T = next(iter(lengths.values()))
    if set(lengths.values()) != {T}:
        raise ValueError(f"x: wanted states of one length, [t, k, v], got t = {lengths}")
    at = min((chosen(T, shape[1:]) for shape in shapes.values()), key=len)
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, each in several.items():
        S = state_path(each, **which, at=at)
        found.setdefault("norm", {})[name] = state_norm(S)
        if S.ndim == 3:
            found.setdefault("effective rank", {})[name] = effective_rank(S)
            found.setdefault("stable rank", {})[name] = stable_rank(S)
    return scrubber(
        [Lines(series, measure, ylabel=measure) for measure, series in found.items()],
        at,
        T,
        tokens=tokens,
        alt=f"{', '.join(found).capitalize()} of the state over time: {', '.join(several)}.",
        caption="Norm: how large the state is"
        + "; effective rank: how many directions it uses evenly; stable rank: the same, but weak "
        "directions count for less" * (len(found) > 1) + ".",
    )


@takes_models()
def singular_values(
    x: Array | Trace,
    *,
    part: str | None = None,
    head: int = 0,
    batch: int = 0,
    tokens: Sequence[str] | None = None,
) -> Scrubber:
    """Draw the singular values of the state: how many directions it holds, and how strongly.

    Args:
        x: states [t, k, v], or a Trace.
        part: of a trace, which part of the state.
        head: of a trace, which head.
        batch: of a trace, which sequence.
        tokens: one label a step.

    Returns:
        A Scrubber: the spectrum of step t, and the first few values over time, on logarithmic axes.
        What is below a millionth of the largest value is left out, and the note says so.
    """
    shape, _ = path_shape(x, part, head, batch)
    at = chosen(shape[0], shape[1:])
    sigma = singular_spectrum(state_path(x, part=part, head=head, batch=batch, at=at))
    floor = max(1e-6 * sigma.max(), np.finfo(float).tiny)
    seen = np.where(sigma >= floor, sigma, np.nan)
    kept = thin_steps(sigma.shape[1], CURVES)
    named = {"ylabel": "singular value", "log": True}
    few = "Values below a millionth of the largest are left out."
    number = np.arange(1, sigma.shape[1] + 1)
    return scrubber(
        [
            Points(number, seen, "of the state S_t", xlabel="number", line=True, **named),
            Lines({f"number {i + 1}": seen[:, i] for i in kept}, "over time", **named),
        ],
        at,
        shape[0],
        notes=[few * bool((sigma < floor).any())],
        tokens=tokens,
        alt=f"Singular values of {of_what(x, head)} over {shape[0]} steps.",
        caption="How strongly the state holds each of its directions, the strongest first: a flat "
        f"row uses all of them. Over time: numbers {', '.join(str(i + 1) for i in kept)} of "
        f"{sigma.shape[1]}.",
    )


@takes_models()
def state_collapse(
    x: Array | Trace,
    length: int,
    *,
    part: str | None = None,
    head: int = 0,
    batch: int = 0,
    factor: Number = 3.0,
    tokens: Sequence[str] | None = None,
) -> Scrubber:
    """Draw which channels leave their range beyond the length seen in training.

    Args:
        x: states [t, k, v], or a Trace, longer than `length`.
        length: steps seen in training.
        part: of a trace, which part of the state.
        head: of a trace, which head.
        batch: of a trace, which sequence.
        factor: a channel exceeds if its variance passes this many times the largest one of the
            first `length` steps.
        tokens: one label a step.

    Returns:
        A Scrubber: mean and variance of every key channel over time, and the variances of the
        channels that exceed (of the largest, if none does) with the limit. See `collapse_ratio`.
    """
    if not factor > 0:
        raise ValueError(f"factor: wanted a number above 0, got {factor}")
    if isinstance(x, Trace) and x.mechanism.cache:
        raise ValueError(f"x: wanted a state, got the cache of {x.mechanism.name}")
    which = {"part": part, "head": head, "batch": batch}
    (T, *_), letters = path_shape(x, **which)
    which = which if isinstance(x, Trace) else {}
    ratio = collapse_ratio(x, length, **which)
    mean, variance = state_moments(x, **which)
    at = chosen(T)
    order = np.argsort(-ratio, kind="stable").tolist()
    over = [k for k in order if ratio[k] > factor]
    row = letters.split()[1]
    limit = factor * variance[:length].max()
    series = {f"limit from t = {length}": np.where(at >= length, limit, np.nan)}
    series |= {f"{row} = {k}": variance[at, k] for k in (over or order)[: CURVES - 2]}
    series["median channel"] = np.median(variance, 1)[at]
    words = f"{len(over)} of {len(ratio)} channels exceed {factor:g} times the largest variance of "
    words += f"the first {length} steps."
    return scrubber(
        [
            *drawn(variance[at], "variance of each row", f"t {row}"),
            *drawn(mean[at], "mean of each row", f"t {row}"),
            Lines(series, "variance", ylabel="variance", log=bool((variance[at] > 0).any())),
        ],
        at,
        T,
        tokens=tokens,
        alt=words,
        caption=f"{words} A row of the state belongs to one {AXES.get(row, row)}.",
    )


# ------------------------------------------------------------------------------ all of it, linked


@takes_models()
def linked(
    trace: Array | Trace,
    *,
    head: int = 0,
    batch: int = 0,
    tokens: Sequence[str] | None = None,
    start: int | None = None,
) -> Scrubber:
    """Step through a mechanism: state, gate, what is written, what is read, under one slider.

    Args:
        trace: of any mechanism.
        head: which head; where each channel has an attention of its own (S4, H3, Mamba, RWKV-4),
            whose attention is drawn.
        batch: which sequence.
        tokens: one label a step.
        start: the step shown first.

    Returns:
        A Scrubber: the state S_t, what its gate forgets (where there is one), what is erased
        (where something is), what is written, the output, and the row of the effective attention
        (where the output is linear in the values). State, erased and written share one scale, for
        they add up. A cache is shown with all its parts; what is written are its rows.
    """
    if not isinstance(trace, Trace):
        wanted = "trace: wanted a Trace, as lv.gla.trace(...) gives"
        raise ValueError(f"{wanted}, got {type(trace).__name__}")
    m, own = trace.mechanism, head if "H" in trace.sizes else 0
    moves = steps(trace, own, batch)
    (T, *shape), _ = path_shape(trace, None, own, batch)
    at = chosen(T, shape, most=128)
    shown = caches(trace, at, own, batch) if m.cache else moving(trace, moves, at, own, batch)
    terms = sum_of([panel.title for panel in shown], moves.turn is not None)
    out = state_path(trace, part=m.output.name, head=own, batch=batch, at=at)
    read = path_shape(trace, m.output.name, own, batch)[1]
    shown += drawn(out, f"read out: {m.output.name}", read)
    notes, caption = [sentence(moves.note)], [CACHED if m.cache else terms]
    if "H" in trace.sizes:
        caption.append(f"Head {within('head', own, trace.sizes['H'])} of {trace.sizes['H']}.")
    if m.linear and T <= ATTENDED:
        A = attention_rows(trace, head, batch, at)
        shown.append(attention_panel(A, at, tokens, whose(trace, head)))
        caption.append(cut_words(A, at))
    elif m.linear:
        notes.append(f"No effective attention beyond {ATTENDED} steps.")
    return scrubber(
        shown,
        at,
        T,
        notes=notes,
        tokens=tokens,
        start=start,
        alt=f"{m.title} step by step: its state, what is kept, written and read.",
        caption=joined(*caption),
    )


CACHED = (
    "Each token adds one row to both caches, and none is forgotten; the output mixes the rows of v "
    "by the weights in row t of the attention."
)


def caches(trace: Trace, at: np.ndarray, head: int, batch: int) -> list[Any]:
    """All parts of a cache, at the steps `at`."""
    shown = []
    for spec in trace.mechanism.state:
        which = {"part": spec.name, "head": head, "batch": batch}
        S, letters = state_path(trace, at=at, **which), path_shape(trace, **which)[1]
        title = f"cache of {spec.name.removesuffix('_cache')}"
        shown += drawn(S, title, letters, mask=unseen(trace, S, at))
    return shown


def moving(trace: Trace, moves: Steps, at: np.ndarray, head: int, batch: int) -> list[Any]:
    """The state, what is forgotten, erased and written, at the steps `at`."""
    m, letters = trace.mechanism, path_shape(trace, None, head, batch)[1]
    S, wrote = carried(trace, head=head, batch=batch, at=at), moves.written(at)
    lost = [] if moves.left is None else [erased(trace, moves, at, head, batch)]
    scale = one_scale(S, wrote, *lost)
    title = f"state {main_part(trace)}" + " (one exponent for all t)" * (m.name == "rwkv4")
    shown = drawn(S, title, letters, **scale)
    shown += gate_panels(trace, moves, at, S.ndim, letters)
    for x in lost:
        shown += drawn(x, "change by erasing", letters, **scale)
    axes = letters if wrote.ndim == S.ndim else f"t {letters[-1]}"
    return shown + drawn(wrote, "written", axes, **scale)


def sum_of(titles: Sequence[str], turned: bool) -> str:
    """What adds up to the state, as a sentence, by the titles of the panels."""
    erases = any("erasing" in title for title in titles)
    gate = "gate × " * any(title.startswith("gate") for title in titles)
    terms = (
        f"{'Jacobian × ' if turned else gate}old state"
        + " + change by erasing" * erases
        + " + written"
    )
    scale = "all of them" if erases else "state and written"
    return f"State = {terms}, {scale} on one scale; the output reads the state."


LETTERS = {"lstm": "f", "gru": "z", "rwkv4": "e^w", "rwkv7": "e^w", "s4": "|a|", "h3": "|a|"}


def gate_panels(
    trace: Trace, moves: Steps, at: np.ndarray, ndim: int, letters: str
) -> list[Frames | Rows | Lines]:
    """What each step forgets by fading, at the steps `at`: a line, rows or frames; or nothing."""
    fade = np.broadcast_to(moves.fade, (len(moves.marks), *moves.fade.shape[1:]))
    lost = 1 - np.abs(fade[at])
    if moves.turn is not None or not lost.any():
        return []
    title = f"gate: forgotten, 1 − {LETTERS.get(trace.mechanism.name, 'a')}"
    title += " (the same at every t)" * bool(len(at) > 1 and (lost == lost[:1]).all())
    if lost.shape[1:] == (1,):
        return [Lines({"": lost[:, 0]}, title, ylabel="share forgotten", ends=(0, lost.max()))]
    axes = letters if lost.ndim == ndim else f"t {letters.split()[1]}"
    kind = "signed" if (lost < 0).any() else "gate"
    return drawn(lost, title, axes, kind=kind, vmax=np.abs(lost).max())


def erased(trace: Trace, moves: Steps, at: np.ndarray, head: int, batch: int) -> np.ndarray:
    """What the transition adds to the faded old state: left (right^T S_{t-1}), [t, k, v]."""
    old = carried(trace, head=head, batch=batch, at=np.maximum(at - 1, 0))
    first = numbers(first_state(trace, "S")[batch, head], "S", "k v")
    old = np.where((at > 0)[:, None, None], old, first)
    return moves.left[at][..., None] * np.einsum("tk,tkv->tv", moves.right[at], old)[:, None]


def whose(x: Array | Trace, head: int) -> str:
    """The title of an effective attention: of which channel, where each has its own."""
    own = isinstance(x, Trace) and "H" not in x.sizes
    return "effective attention" + f" of channel {head}" * own


def attention_panel(
    A: np.ndarray, at: np.ndarray, tokens: Sequence[str] | None, title: str
) -> Rows:
    """The rows `at` of an attention, A [t, s]; what lies in the future is masked."""
    return Rows(
        A,
        title,
        vmax=memory_limit(A, at),
        mask=np.arange(A.shape[1]) > at[:, None],
        col_name="token s",
        cols=labels_at("tokens", tokens, A.shape[1]),
    )


def cut_words(A: np.ndarray, at: np.ndarray) -> str:
    """A sentence if the colours of an attention end below its diagonal; else nothing."""
    cut = memory_limit(A, at)
    if cut is None:
        return ""
    own = np.abs(A[np.arange(len(at)), at]).max()
    return (
        f"The colours of the attention end at {cut:.2g}, so that the memory is seen beside the "
        f"diagonal, which goes up to {own:.2g}."
    )
