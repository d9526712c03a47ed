"""What a state holds, measured: size, rank, what a step does to it, how long a write survives.

Nothing is drawn here; linviz.viz.states draws these numbers. The functions take plain arrays with
time first, or a Trace and then the head and the batch. A step of every recurrence is

    S_t = A_t S_{t-1} + W_t ,

with A_t the transition and W_t what token t writes; `steps` reads both from a trace.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from linviz.mechanism import Trace
from linviz.viz.arguments import numbers, within
from linviz.viz.matrices import Array, Number
from linviz.viz.traced import takes_models

MAIN = {"h3": "h", "lstm": "c"}  # the part that carries the memory, where it is not the first


def state_path(
    x: Array | Trace,
    *,
    part: str | None = None,
    head: int = 0,
    batch: int = 0,
    at: Array | None = None,
) -> np.ndarray:
    """Take the state after each step.

    Args:
        x: states [t, k, v] or [t, d]; or a Trace.
        part: of a trace, which part of the state; None takes the first, but the cell of an LSTM
            and the diagonal system of H3.
        head: of a trace, which head.
        batch: of a trace, which sequence.
        at: the steps wanted; None for all.

    Returns:
        [t, k, v] or [t, d], complex for S4 and H3. A cache (softmax) is [t, s, k]: rows after the
        present token are 0.
    """
    shape, letters = path_shape(x, part, head, batch)
    where = some(at)
    if not isinstance(x, Trace):
        x = x if hasattr(x, "ndim") else np.asarray(x)
        return numbers(x[where], "S", letters)
    part = main_part(x, part)
    axes = x.letters(part).split()
    S = x[part][tuple({"b": batch, "h": head}.get(a, slice(None)) for a in axes)]
    if "t" in axes:
        return numbers(S.movedim(axes.index("t") - 1, 0)[where], "S", letters)
    last = shape[1] - shape[0] + np.arange(shape[0])[where]  # older tokens may be in the cache
    return np.where((np.arange(shape[1]) <= last[:, None])[..., None], numbers(S, "S", "s k"), 0.0)


def path_shape(
    x: Array | Trace, part: str | None = None, head: int = 0, batch: int = 0
) -> tuple[tuple[int, ...], str]:
    """The shape of what `state_path` gives, and its letters, time first; refused as there."""
    if not isinstance(x, Trace):
        shape = tuple(x.shape if hasattr(x, "shape") else np.shape(x))
        if len(shape) not in (2, 3) or 0 in shape:
            raise ValueError(
                "S: wanted axes [t, k, v] or [t, d], none of them empty, got shape "
                f"{list(shape)}; of a tensor with batch and head take one, as in S[0, :, 0]"
            )
        return shape, "t k v" if len(shape) == 3 else "t d"
    part = main_part(x, part)
    if part not in x:
        raise ValueError(f"part: wanted one of {', '.join(x)}, got {part!r}")
    size = dict(zip(x.letters(part).split(), x[part].shape, strict=True))
    within("head", head, size.get("h", 1))
    within("batch", batch, size.get("b", 1))
    letters = ["t", *(a for a in size if a not in "bht")]
    size["t"] = x.sizes["T"]
    return tuple(size[a] for a in letters), " ".join(letters)


def main_part(x: Array | Trace, part: str | None = None) -> str:
    """The part of a state that is meant, by name."""
    if part or not isinstance(x, Trace):
        return part or "S"
    return MAIN.get(x.mechanism.name, x.mechanism.state[0].name)


def some(at: Array | None) -> Any:
    """An index: the steps `at` as a list, or all."""
    return slice(None) if at is None else [int(t) for t in at]


# ---------------------------------------------------------------------------- the size of a state


@takes_models()
def state_norm(S: Array | Trace, **which: Any) -> np.ndarray:
    """Measure how large a state is: the root of the sum of squares (the Frobenius norm).

    Args:
        S: [t, k, v] or [t, d], or a Trace.
        **which: of a trace: part, head, batch; see `state_path`.

    Returns:
        [t].
    """
    S = state_path(S, **which)
    return np.sqrt((np.abs(S) ** 2).reshape(len(S), -1).sum(1))


@takes_models()
def singular_spectrum(S: Array | Trace, **which: Any) -> np.ndarray:
    """Find the singular values of a state at each time.

    Args:
        S: [t, k, v], or a Trace.
        **which: of a trace: part, head, batch; see `state_path`.

    Returns:
        [t, r], the largest first, r = min(k, v); NaN where the state is not finite.
    """
    states = matrix_path(S, **which)
    bad = ~np.isfinite(states).all((1, 2))
    sigma = np.linalg.svd(np.where(bad[:, None, None], 0, states), compute_uv=False)
    return np.where(bad[:, None], np.nan, sigma)


def matrix_path(S: Array | Trace, **which: Any) -> np.ndarray:
    """The states [t, k, v] of `state_path`; states that are vectors are refused."""
    return numbers(state_path(S, **which), "S", "t k v")


@takes_models()
def effective_rank(S: Array | Trace, **which: Any) -> np.ndarray:
    """Count the directions a state uses, weighed: e to the entropy of its singular values.

    The values are divided by their sum (Roy and Vetterli, "The effective rank", EUSIPCO 2007). A
    state of r equal singular values has effective rank r; an empty state is said to have 0.

    Args:
        S: [t, k, v], or a Trace.
        **which: of a trace: part, head, batch; see `state_path`.

    Returns:
        [t], between 1 and min(k, v), or 0.
    """
    return entropy_count(singular_spectrum(S, **which))


def entropy_count(sigma: np.ndarray) -> np.ndarray:
    """Take e to the entropy of values >= 0 [..., r] divided by their sum; 0 where all are 0."""
    total = sigma.sum(-1, keepdims=True)
    share = np.divide(sigma, total, out=np.zeros_like(sigma), where=total > 0)
    log = np.log(share, out=np.zeros_like(share), where=share > 0)
    known = np.where(total[..., 0] > 0, np.exp(-(share * log).sum(-1)), 0.0)
    return np.where(np.isnan(total[..., 0]), np.nan, known)


@takes_models()
def stable_rank(S: Array | Trace, **which: Any) -> np.ndarray:
    """Divide the sum of the squared singular values by the largest of the squares.

    It is at most the rank and, unlike the rank, changes little when the state does (Rudelson and
    Vershynin, arXiv:math/0503442). An empty state is said to have 0.

    Args:
        S: [t, k, v], or a Trace.
        **which: of a trace: part, head, batch; see `state_path`.

    Returns:
        [t], between 1 and min(k, v), or 0.
    """
    sigma = singular_spectrum(S, **which)
    top = sigma[:, :1]  # dividing first: squares of large values overflow
    share = np.divide(sigma, top, out=np.zeros_like(sigma), where=top != 0)
    return (share**2).sum(1)


@takes_models()
def state_moments(S: Array | Trace, **which: Any) -> tuple[np.ndarray, np.ndarray]:
    """Take the mean and the variance of each key channel's row of the state, at each time.

    Args:
        S: [t, k, v], or a Trace.
        **which: of a trace: part, head, batch; see `state_path`.

    Returns:
        mean [t, k] and variance [t, k], over v.
    """
    S = matrix_path(S, **which)
    with np.errstate(invalid="ignore", over="ignore"):  # infinities: NaN
        return S.mean(2), S.var(2)


@takes_models()
def collapse_ratio(S: Array | Trace, length: int, **which: Any) -> np.ndarray:
    """Measure how far each key channel grows past all that was seen up to a training length.

    In a collapsing state the mean and variance of a few channels leave the range they had up to
    the training length, and these channels drown the others (Chen et al., "Stuffed Mamba", 2024,
    arXiv:2410.07145, who show the variances; the ratio is ours).

    Args:
        S: [t, k, v], or a Trace.
        length: steps seen in training, from 1 to t - 1.
        **which: of a trace: part, head, batch; see `state_path`.

    Returns:
        [k]: a channel's largest variance from step `length` on, over the largest variance of any
        channel before. Above 1 it has left the range; infinite where there was none before.
    """
    _, variance = state_moments(S, **which)
    if not 1 <= length < len(variance):
        raise ValueError(f"length: wanted 1 to {len(variance) - 1} steps, got {length}")
    before, after = variance[:length].max(), variance[length:].max(0)
    grown = np.where(after > 0, np.inf, 1.0)
    return np.divide(after, before, out=grown, where=before > 0)


# ---------------------------------------------------------------------------- what a step does


@dataclass(frozen=True)
class Steps:
    """S_t = A_t S_{t-1} + W_t for every t, kept small.

    A_t = diag(fade_t) turn_t + left_t right_t^T acts on the first axis of a state [k, v]; without
    turn, left and right it multiplies each number of the state by itself (that is the only kind
    for a state [d, n]).

    Attributes:
        fade: [t, ...], broadcast against `marks`: the gate.
        marks: [t, k], the column of a rank-one write; else the write itself, [t, d] or [t, d, n].
        values: [t, v], the row of a rank-one write, or None.
        left: [t, k] or None.
        right: [t, k] or None.
        turn: [t, k, k], or [1, k, k] for all times, or None.
        note: what has been simplified, "" for nothing.
    """

    fade: np.ndarray
    marks: np.ndarray
    values: np.ndarray | None = None
    left: np.ndarray | None = None
    right: np.ndarray | None = None
    turn: np.ndarray | None = None
    note: str = ""

    @property
    def mixes(self) -> bool:
        """Whether channels mix, so that A_t is a matrix and not a factor for each number."""
        return self.left is not None or self.turn is not None

    def written(self, at: Array | slice = slice(None)) -> np.ndarray:
        """W_t at some steps, or all: the shape of the state."""
        if self.values is None:
            return self.marks[at]
        return self.marks[at][..., None] * self.values[at][..., None, :]

    def matrices(self, at: Array | slice = slice(None)) -> np.ndarray:
        """A_t at some steps, or all: [t, k, k] if channels mix, else the factors [t, n]."""
        fade = np.broadcast_to(self.fade, self.marks.shape)[at]
        if not self.mixes:
            return fade.reshape(len(fade), -1)
        turn = np.eye(fade.shape[1])[None] if self.turn is None else self.turn
        A = fade[..., None] * (turn[at] if len(turn) > 1 else turn)
        if self.left is not None:
            A = A + self.left[at][..., None] * self.right[at][..., None, :]
        return A

    def after(self, t: int, X: np.ndarray) -> np.ndarray:
        """What step t leaves of several marks X [s, ...]."""
        turned = X if self.turn is None else X @ self.turn[t % len(self.turn)].T
        kept = self.fade[t % len(self.fade)] * turned
        if self.left is not None:
            kept = kept + (X @ self.right[t])[:, None] * self.left[t]
        return kept


def steps(trace: Trace, head: int = 0, batch: int = 0) -> Steps:
    """Read from a trace what every step keeps and what it writes.

    RNN: the step is not linear in the state, so A_t is its derivative. LSTM and GRU: the gates are
    taken as given, though they depend on the old state. RWKV-4: the numerator, with one exponent
    for all times. Linear attention: without the normaliser. H3: the diagonal system. Softmax: the
    keys of the cache, of which nothing is ever lost.

    Args:
        trace: of any mechanism.
        head: which head; a mechanism without heads has one.
        batch: which sequence.

    Returns:
        The steps.

    Raises:
        ValueError: no such head or batch.
    """
    kind = trace.mechanism.recurrence or trace.mechanism.name
    head = within("head", head, trace.sizes.get("H", 1))
    batch = within("batch", batch, trace.sizes["B"])

    def get(name: str, before: bool = False) -> np.ndarray:
        x = trace[name][batch]
        if before:  # the state that each step found
            x = torch.cat([first_state(trace, name)[batch][None], x[:-1]])
        return numbers(x[:, head] if "H" in trace.sizes else x, name, "t", "t k", "t k v")

    return READERS[kind](trace, get)


def first_state(trace: Trace, name: str) -> Tensor:
    """A part of the state before the first step, [B, ...]."""
    if trace.start is None:
        return torch.zeros_like(trace[name][:, 0])
    return trace.start[[part.name for part in trace.mechanism.state].index(name)]


Get = Callable[..., np.ndarray]


def _scalar_decay(trace: Trace, get: Get) -> Steps:
    key = get("phi_k" if "phi_k" in trace else "k")
    return Steps(get("a")[:, None], key, get("v"))


def _vector_decay(trace: Trace, get: Get) -> Steps:
    return Steps(get("a"), get("k"), get("v"))


def _delta_rule(trace: Trace, get: Get) -> Steps:
    k, beta = get("k"), get("beta")[:, None]
    a = get("a") if "a" in trace else np.ones(len(k))
    a = a if a.ndim == 2 else a[:, None]
    return Steps(a, beta * k, get("v"), left=-beta * k, right=a * k)


def _rank_one(trace: Trace, get: Get) -> Steps:
    return Steps(np.exp(get("w")), get("k"), get("v"), left=get("b"), right=get("a"))


def _diagonal_scan(trace: Trace, get: Get) -> Steps:
    return Steps(get("a"), get("u")[:, :, None] * get("B")[:, None])


def _convolution(trace: Trace, get: Get) -> Steps:
    a, b = (numbers(trace[name], name, "d n") for name in "ab")
    return Steps(a[None], get("u")[:, :, None] * b)


def _rnn(trace: Trace, get: Get) -> Steps:
    h, W = get("h"), numbers(trace["W"], "W", "d d")
    steep = 1 - h**2
    note = "an RNN is not linear; its Jacobian at this step stands for it"
    return Steps(steep, h - steep * (get("h", before=True) @ W), turn=W.T[None], note=note)


def _gated(gate: np.ndarray, state: np.ndarray, before: np.ndarray) -> Steps:
    note = "the gates depend on the old state; here they are taken as they came out"
    return Steps(gate, state - gate * before, note=note)


def _rwkv4(trace: Trace, get: Get) -> Steps:
    w, k = numbers(trace["w"], "w", "d"), get("k")
    return Steps(np.exp(w)[None], np.exp(k - get("max").max(0)) * get("v"))


def _softmax(trace: Trace, get: Get) -> Steps:
    return Steps(np.ones((1, 1)), get("k"))


READERS = {
    "scalar_decay": _scalar_decay,
    "vector_decay": _vector_decay,
    "delta_rule": _delta_rule,
    "rank_one": _rank_one,
    "diagonal_scan": _diagonal_scan,
    "convolution": _convolution,
    "rnn": _rnn,
    "lstm": lambda trace, get: _gated(get("f"), get("c"), get("c", before=True)),
    "gru": lambda trace, get: _gated(get("z"), get("h"), get("h", before=True)),
    "rwkv4": _rwkv4,
    "softmax": _softmax,
}


@takes_models()
def carried(trace: Trace, *, head: int = 0, batch: int = 0, at: Array | None = None) -> np.ndarray:
    """Take the state that `steps` carries on: the main part, see `state_path`.

    RWKV-4 keeps its numerator over an exponent that changes with time; here it has one for all.
    """
    S = state_path(trace, head=head, batch=batch, at=at)
    if trace.mechanism.name != "rwkv4":
        return S
    top = state_path(trace, part="max", batch=batch)
    return S * np.exp((top - top.max(0))[some(at)])


def given_steps(x: Array, written: Array | None, head: int, batch: int) -> Steps:
    """Steps from a trace, or from transitions [t, n, n] or gates [t, n] and what is written."""
    if isinstance(x, Trace):
        if written is not None:
            raise ValueError("written: wanted None beside a trace, got an array")
        return steps(x, head, batch)
    A = numbers(x, "x", "t n n", "t n")
    if A.ndim == 3 and A.shape[1] != A.shape[2]:
        raise ValueError(f"x: wanted [t, n, n] or [t, n], got shape {list(A.shape)}")
    marks = np.ones(A.shape[:2])
    if written is not None:
        marks = numbers(written, "written", "t n")
        if marks.shape != A.shape[:2]:
            raise ValueError(
                f"written: wanted [t, n] = {list(A.shape[:2])}, got shape {list(marks.shape)}"
            )
    return Steps(A, marks) if A.ndim == 2 else Steps(np.ones((1, 1)), marks, turn=A)


@takes_models()
def transition(
    trace: Trace, *, head: int = 0, batch: int = 0, at: Array | None = None
) -> np.ndarray:
    """Find the map that takes the old state to what is left of it: A_t of S_t = A_t S_{t-1} + W_t.

    Args:
        trace: of any mechanism; see `steps` for those that are not linear.
        head: which head.
        batch: which sequence.
        at: the steps wanted; None for all.

    Returns:
        [t, k, k] where channels mix (delta rules, RWKV-7, RNN); else [t, n], the factor of each
        key channel, or of each number of the state in turn (Mamba, S4, RWKV-4, LSTM, GRU).
    """
    return steps(trace, head, batch).matrices(some(at))


@takes_models()
def transition_spectrum(
    x: Array | Trace, *, head: int = 0, batch: int = 0, at: Array | None = None
) -> np.ndarray:
    """Find the eigenvalues of the transition at each time.

    Inside the unit circle a direction fades, on it it is kept; below 0 it changes sign at each
    step, and off the real line it turns.

    Args:
        x: a Trace, transitions [t, n, n], or gates [t, n].
        head: of a trace, which head.
        batch: of a trace, which sequence.
        at: the steps wanted; None for all.

    Returns:
        [t, n], complex, the largest magnitude first.
    """
    A = given_steps(x, None, head, batch).matrices(some(at))
    bad = ~np.isfinite(A).reshape(len(A), -1).all(1)
    A = np.where(bad.reshape(-1, *[1] * (A.ndim - 1)), 0, A)
    values = A if A.ndim == 2 else np.linalg.eigvals(A)
    values = np.where(bad[:, None], np.nan, values)
    order = np.argsort(-np.abs(values), axis=1, kind="stable")
    return np.take_along_axis(values.astype(complex), order, 1)


@takes_models()
def retention(
    x: Array | Trace,
    *,
    head: int = 0,
    batch: int = 0,
    written: Array | None = None,
    at: Array | None = None,
) -> np.ndarray:
    """Measure how much of what token s wrote is still in the state at t.

    That is |A_t ... A_{s+1} W_s| / |W_s|: the transitions since s, applied to what s wrote. It
    starts at 1. A delta rule takes away on purpose; a transition can also make a write grow.

    Args:
        x: a Trace, transitions [t, n, n], or gates [t, n].
        head: of a trace, which head.
        batch: of a trace, which sequence.
        written: [t, n], what each token wrote, where x is an array; ones by default.
        at: the tokens s wanted; None for all.

    Returns:
        [t, s]; NaN for t < s, and where nothing was written.
    """
    step = given_steps(x, written, head, batch)
    T = len(step.marks)
    tokens = np.arange(T) if at is None else np.array([within("at", s, T) for s in at], int)
    X = np.zeros((len(tokens), *step.marks.shape[1:]), np.result_type(step.fade, step.marks))
    wrote = lengths(step.marks[tokens])
    kept = np.full((T, len(tokens)), np.nan)
    with np.errstate(invalid="ignore", over="ignore"):  # what grows without bound
        for t in range(tokens.min(initial=T), T):
            X = step.after(t, X)
            X[tokens == t] = step.marks[t]
            seen = (tokens <= t) & (wrote > 0)
            kept[t, seen] = lengths(X[seen]) / wrote[seen]
    return kept


def lengths(X: np.ndarray) -> np.ndarray:
    """The norm of each of several arrays: [s, ...] to [s]."""
    return np.linalg.norm(X.reshape(len(X), -1), axis=1)


# ---------------------------------------------------------------------------- gates and half-lives


def gates(trace: Trace, *, batch: int = 0) -> np.ndarray:
    """Read what each step keeps, for every head and channel.

    For mechanisms that also erase (delta rules, RWKV-7) this is the fading alone. No gate is a gate
    of 1.

    Args:
        trace: of any mechanism but the plain RNN.
        batch: which sequence.

    Returns:
        [t, h, c], or [t, d, n] for states without heads; [1, ...] where the gate is fixed. Complex
        for S4 and H3.

    Raises:
        ValueError: if nothing in the mechanism is a gate.
    """
    if trace.mechanism.name == "rnn":
        raise ValueError("trace: wanted gates, got a plain RNN; see transition_spectrum")
    if "H" in trace.sizes:
        heads = range(trace.sizes["H"])
        return np.stack([steps(trace, h, batch).fade for h in heads], 1)
    fade = steps(trace, 0, batch).fade
    return fade if fade.ndim == 3 else fade[:, :, None]


def half_life(a: Array) -> np.ndarray:
    """Turn gates into half-lives: the number of steps after which a half is left, ln(1/2) / ln|a|.

    Args:
        a: gates of any shape, of magnitude 0 to 1.

    Returns:
        The same shape: 0 for a = 0, 1 for a = 1/2, infinite for a = 1.

    Raises:
        ValueError: a gate above 1: what grows has no half-life.
    """
    if hasattr(a, "detach"):
        a = a.detach().cpu().resolve_conj()
        a = (a if a.is_complex() else a.double()).numpy()
    a = np.abs(np.asarray(a, dtype=complex))
    if not (a <= 1 + 1e-6).all():
        raise ValueError(f"a: wanted gates of magnitude 0 to 1, got {a[~(a <= 1 + 1e-6)][0]:.4g}")
    with np.errstate(divide="ignore"):
        rate = -np.log(np.minimum(a, 1.0))  # from 0 to infinity
        return np.where(rate > 0, np.log(2) / rate, np.inf)


# ---------------------------------------------------------------------------- what is in use


def effective_state_size(
    A: Array, *, at: Array | None = None, tolerance: Number = 1e-4
) -> tuple[np.ndarray, np.ndarray]:
    """Measure how much memory an operator uses: the rank of its block from past to future.

    All that o_t, o_{t+1}, ... take from the tokens before t must pass through the state at t, so
    the rank of A[t:, :t] is the smallest state that could have computed it (Parnichkun et al.,
    "Quantifying Memory Utilization with Effective State-Size", 2025, arXiv:2504.19561).

    Args:
        A: [t, s], a lower triangular map o = A v, such as an effective attention of one head.
        at: the times t wanted; None for all.
        tolerance: a singular value counts if it is above this share of the largest one of all
            blocks wanted. (The paper's threshold is a plain number.)

    Returns:
        rank [t], the count of singular values, and [t], e to the entropy of these values over
        their sum, which needs no threshold. Both are 0 at t = 0, where there is no past.
    """
    A = numbers(A, "A", "t s")
    T = len(A)
    if A.shape[0] != A.shape[1]:
        raise ValueError(f"A: wanted [t, s], as long as wide, got shape {list(A.shape)}")
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance: wanted a share between 0 and 1, got {tolerance}")
    if not np.isfinite(A).all():
        raise ValueError("A: wanted finite numbers, got NaN or infinity")
    times = range(T) if at is None else [within("at", t, T) for t in at]
    spectra = [
        np.linalg.svd(A[t:, :t], compute_uv=False) if t else np.zeros(1, A.real.dtype)
        for t in times
    ]
    top = max((sigma[0] for sigma in spectra), default=0.0)
    rank = np.array([(sigma > tolerance * top).sum() for sigma in spectra])
    return rank, np.array([entropy_count(sigma) for sigma in spectra])
