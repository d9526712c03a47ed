"""How sparse attention is, how far back it reaches, and what a sparse decoder keeps.

A map A [t, s] says with which weight reader t takes the value of token s: the weights of softmax,
or the effective attention of a linear mechanism, `trace.attention_map()`, whose weights may be
negative. A measure gives one number a row, and two rules hold for all:

- Only tokens that exist count: s <= t. What stands above the diagonal is never looked at.
- Mass is magnitude: p[s] = |A[t, s]| / sum over s of |A[t, s]|. A row of zeros, or with a NaN or an
  infinity, has no shares: its measures are NaN, not 0. The sign is measured by `negative_share`.

A map may have axes before its last two (heads, layers), and fewer rows than tokens: then `readers`
says at which time each row reads.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from linviz.viz.matrices import Array, Number, array

BLOCK = 2**21  # weights looked at in one go
ROUNDING = 1e-9  # of a row's mass: what a sum of shares may lack

# ------------------------------------------------------------------------------- rows and readers


def opened(x: Array, name: str, letters: str = "t s") -> Any:
    """Check the axes of a map without copying it: a tensor stays a tensor.

    Args:
        x: tensor, array or list.
        name: the argument's name, for the message.
        letters: the last axes; more may come before them.

    Returns:
        A tensor or an array.

    Raises:
        ValueError: if axes are missing or empty, or the numbers are complex.
    """
    x = x.detach() if hasattr(x, "detach") else np.asarray(x)
    if x.ndim < len(letters.split()) or 0 in x.shape:
        raise ValueError(
            f"{name}: wanted a map [.., {letters.replace(' ', ', ')}], no axis of it empty, "
            f"got shape {list(x.shape)}"
        )
    array(x.reshape(-1)[:1], name, "n")  # refuses complex numbers
    return x


def reading_times(readers: Array | None, rows: int, T: int) -> np.ndarray:
    """Read at which time each row of a map reads.

    Args:
        readers: [t], increasing whole numbers below T; None: row t reads at time t.
        rows: rows of the map.
        T: tokens, its columns.

    Returns:
        [t], whole numbers.

    Raises:
        ValueError: if they do not fit the map, or the map is not square and they are missing.
    """
    if readers is None:
        if rows != T:
            raise ValueError(f"readers: wanted the times of {rows} rows ({T} tokens), got None")
        return np.arange(T)
    times = array(readers, "readers", "t")
    wrong = (times % 1 != 0) | (times < 0) | (times >= T)
    if len(times) != rows or wrong.any() or (np.diff(times) <= 0).any():
        raise ValueError(
            f"readers: wanted {rows} increasing whole numbers from 0 to {T - 1}, one for each row, "
            f"got {readers!r}"
        )
    return times.astype(int)


def shares(A: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Divide rows by their mass.

    Args:
        A: [t, s], signed weights.
        n: [t], tokens that exist for each row.

    Returns:
        [t, s], signed, with sum |p| = 1 and 0 where there is no token; and [t], True for rows
        without shares (those are all 0).
    """
    A = np.where(np.arange(A.shape[-1]) < n[:, None], A, 0.0)
    top = np.abs(A).max(-1, keepdims=True)  # first, so that no sum overflows
    dead = ~(np.isfinite(top) & (top > 0))
    A = np.where(dead, 0.0, A / np.where(dead, 1.0, top))
    return A / np.where(dead, 1.0, np.abs(A).sum(-1, keepdims=True)), dead[:, 0]


def by_rows(
    measure: Callable[..., np.ndarray],
    A: Array,
    readers: Array | None,
    *others: Any,
    width: tuple[int, ...] = (),
) -> np.ndarray:
    """Apply a measure to a map, some rows at a time, so that large maps need little memory.

    Args:
        measure: (p [t, s], n [t], a block of each of `others`) -> [t, *width].
        A: [.., t, s].
        readers: see `reading_times`.
        others: arrays [t, s] with the rows of A, boolean.
        width: axes of the result after t.

    Returns:
        [.., t, *width], NaN for rows without shares.
    """
    A = opened(A, "A")
    rows, T = A.shape[-2:]
    n = reading_times(readers, rows, T) + 1
    step = max(1, BLOCK // T)
    out = np.full((*A.shape[:-1], *width), np.nan)
    for lead in np.ndindex(*A.shape[:-2]):
        for i in range(0, rows, step):
            at = slice(i, i + step)
            seen = n[at].max()
            p, dead = shares(array(A[lead][at, :seen], "A", "t s").astype(float), n[at])
            found = measure(p, n[at], *(x[at, :seen] for x in others))
            found[dead] = np.nan
            out[(*lead, at)] = found
    return out


# ------------------------------------------------------------------------------ measures of a row


def entropy(A: Array, *, readers: Array | None = None) -> np.ndarray:
    """Entropy of each row, -sum p log p, in nats.

    Args:
        A: [.., t, s], weights of any sign.
        readers: [t], the time of each row; None for a square map.

    Returns:
        [.., t]: 0 for one token, log n for n tokens of even weight; NaN without shares.
    """

    def measure(p: np.ndarray, n: np.ndarray) -> np.ndarray:
        p = np.abs(p)
        return 0.0 - (p * np.log(p, where=p > 0, out=np.zeros_like(p))).sum(-1)

    return by_rows(measure, A, readers)


def effective_tokens(A: Array, *, readers: Array | None = None) -> np.ndarray:
    """Number of tokens that would have the same entropy, were their weights even: exp(entropy).

    Args:
        A: [.., t, s], weights of any sign.
        readers: [t], the time of each row; None for a square map.

    Returns:
        [.., t]: from 1 to the number of tokens that exist; NaN without shares.
    """
    return np.exp(entropy(A, readers=readers))


def gini(A: Array, *, readers: Array | None = None) -> np.ndarray:
    """Gini index of each row's magnitudes (Hurley and Rickard, arXiv:0811.4706).

    Args:
        A: [.., t, s], weights of any sign.
        readers: [t], the time of each row; None for a square map.

    Returns:
        [.., t]: 0 for even weights, (n-1)/n if one of n tokens has all; NaN without shares.
    """

    def measure(p: np.ndarray, n: np.ndarray) -> np.ndarray:
        p = np.sort(np.abs(p), -1)  # tokens that do not exist come first: ranks from 1 - (s - n)
        rank = np.arange(1, p.shape[-1] + 1) - (p.shape[-1] - n[:, None])
        return np.maximum(2 * (rank * p).sum(-1) / n - (n + 1) / n, 0.0)

    return by_rows(measure, A, readers)


def hoyer(A: Array, *, readers: Array | None = None) -> np.ndarray:
    """Hoyer's sparseness of each row: (sqrt n - |A|_1 / |A|_2) / (sqrt n - 1).

    The definition is Hoyer's (JMLR 5, 2004, pages 1457-1469; arXiv:cs/0408058).

    Args:
        A: [.., t, s], weights of any sign.
        readers: [t], the time of each row; None for a square map.

    Returns:
        [.., t]: 0 for even weights, 1 for one token alone; NaN without shares and for n = 1, where
        the two are the same.
    """

    def measure(p: np.ndarray, n: np.ndarray) -> np.ndarray:
        norm = np.sqrt((p**2).sum(-1))
        root = np.sqrt(n)
        out = np.full(len(p), np.nan)
        known = (n > 1) & (norm > 0)
        out[known] = (root[known] - 1 / norm[known]) / (root[known] - 1)
        return np.clip(out, 0.0, 1.0)

    return by_rows(measure, A, readers)


def top_k_mass(A: Array, k: Array | None = None, *, readers: Array | None = None) -> np.ndarray:
    """Share of each row's mass that its k largest weights hold.

    Args:
        A: [.., t, s], weights of any sign.
        k: [k], whole numbers above 0; None for 1, 2, .. T.
        readers: [t], the time of each row; None for a square map.

    Returns:
        [.., t, k]: 1 from the number of existing tokens on; NaN without shares.
    """
    A = opened(A, "A")
    k = counts(k, A.shape[-1])

    def measure(p: np.ndarray, n: np.ndarray) -> np.ndarray:
        mass = np.sort(np.abs(p), -1)[:, ::-1].cumsum(-1)
        return np.minimum(mass[:, np.minimum(k, p.shape[-1]) - 1], 1.0)

    return by_rows(measure, A, readers, width=k.shape)


def counts(k: Array | None, T: int) -> np.ndarray:
    """Read numbers of tokens: whole, above 0; 1 to T for None."""
    if k is None:
        return np.arange(1, T + 1)
    numbers = array(k, "k", "k")
    if (numbers % 1 != 0).any() or (numbers < 1).any():
        raise ValueError(f"k: wanted whole numbers [k] of at least 1, got {k!r}")
    return numbers.astype(int)


def negative_share(A: Array, *, readers: Array | None = None) -> np.ndarray:
    """Share of each row's mass on weights below 0.

    Args:
        A: [.., t, s], weights of any sign.
        readers: [t], the time of each row; None for a square map.

    Returns:
        [.., t]: 0 to 1; NaN without shares.
    """
    return by_rows(lambda p, n: np.maximum(-p, 0).sum(-1), A, readers)


def sink_share(A: Array, *, first: int = 1, readers: Array | None = None) -> np.ndarray:
    """Share of each row's mass on the first tokens (attention sinks, arXiv:2309.17453).

    Args:
        A: [.., t, s], weights of any sign.
        first: how many tokens.
        readers: [t], the time of each row; None for a square map.

    Returns:
        [.., t]: 0 to 1; NaN without shares.
    """
    if first < 1:
        raise ValueError(f"first: wanted 1 token or more, got {first}")
    return by_rows(lambda p, n: np.abs(p[:, :first]).sum(-1), A, readers)


def mean_distance(A: Array, *, readers: Array | None = None) -> np.ndarray:
    """Mean of t - s over each row's mass.

    Args:
        A: [.., t, s], weights of any sign.
        readers: [t], the time of each row; None for a square map.

    Returns:
        [.., t]: 0 for a reader that sees itself alone, up to t; NaN without shares.
    """

    def measure(p: np.ndarray, n: np.ndarray) -> np.ndarray:
        return (n - 1) - np.abs(p) @ np.arange(p.shape[-1])

    return by_rows(measure, A, readers)


def effective_context(A: Array, *, share: Number = 0.9, readers: Array | None = None) -> np.ndarray:
    """Fewest latest tokens that hold a share of each row's mass.

    Args:
        A: [.., t, s], weights of any sign.
        share: above 0, at most 1; a sum may lack 1e-9 of it.
        readers: [t], the time of each row; None for a square map.

    Returns:
        [.., t]: counted from the reader, which is number 1, up to t + 1; NaN without shares.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share: wanted a number above 0 and at most 1, got {share}")

    def measure(p: np.ndarray, n: np.ndarray) -> np.ndarray:
        held = np.abs(p)[:, ::-1].cumsum(-1)[:, ::-1]  # by token s and all after it
        return n + 1.0 - (held >= share - ROUNDING).sum(-1)

    return by_rows(measure, A, readers)


def reach(A: Array, *, tolerance: Number = 0.01, readers: Array | None = None) -> np.ndarray:
    """Receptive field: how far back lies the farthest token that is still noticed.

    A token is noticed if its |weight| is above `tolerance` times the largest of its row.

    Args:
        A: [.., t, s], weights of any sign.
        tolerance: from 0 (every weight but 0 counts) to below 1.
        readers: [t], the time of each row; None for a square map.

    Returns:
        [.., t]: tokens back, the reader is number 1, up to t + 1; NaN without shares.
    """
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance: wanted a number from 0 to below 1, got {tolerance}")

    def measure(p: np.ndarray, n: np.ndarray) -> np.ndarray:
        p = np.abs(p)
        return (n - (p > tolerance * p.max(-1, keepdims=True)).argmax(-1)).astype(float)

    return by_rows(measure, A, readers)


# ------------------------------------------------------------------------------------- selections


def page_mask(
    pages: Any, *, page_size: int, length: int, readers: Array | None = None
) -> np.ndarray:
    """Spell out which keys stand on the pages that each decoding step keeps.

    Args:
        pages: page numbers for each step, [t, p] or a list of lists; -1 is no page.
        page_size: keys on a page.
        length: keys in all, T; the last page may be shorter.
        readers: [t], the time of each step; None if there are T steps.

    Returns:
        [t, s], True where key s is kept at step t. Keys of a page that do not exist yet are not.

    Raises:
        ValueError: for a page that is not there, or has no key yet.
    """
    for name, number in (("page_size", page_size), ("length", length)):
        if number < 1:
            raise ValueError(f"{name}: wanted 1 or more, got {number}")
    pages = pages.tolist() if hasattr(pages, "tolist") else list(pages)
    if not pages or not all(isinstance(row, Sequence) for row in pages):
        raise ValueError("pages: wanted page numbers [t, p] or a list for each step, got no steps")
    times = reading_times(readers, len(pages), length)
    keep = np.zeros((len(pages), length), bool)
    for i, (t, row) in enumerate(zip(times, pages, strict=True)):
        for page in row:
            if page != int(page) or not -1 <= page <= t // page_size:
                raise ValueError(
                    f"pages: wanted whole numbers from 0 to {t // page_size}, pages that exist at "
                    f"step {i} (time {t}), got {page}"
                )
            if page >= 0:
                keep[i, int(page) * page_size : min((int(page) + 1) * page_size, t + 1)] = True
    return keep


def kept(keep: Array, readers: Array | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Read a selection.

    Args:
        keep: [t, s], True or 1 where key s is kept at step t.
        readers: [t], the time of each step; None if there are as many steps as keys.

    Returns:
        [t, s] boolean, and [t], the time of each step.

    Raises:
        ValueError: if there is anything but yes and no, or a key is kept before it exists.
    """
    x = array(keep, "keep", "t s")
    if not ((x == 0) | (x == 1)).all():
        raise ValueError("keep: wanted True and False [t, s], got numbers; pages need page_size=")
    x, times = x.astype(bool), reading_times(readers, *x.shape)
    early = np.argwhere(x & (np.arange(x.shape[1]) > times[:, None]))
    if len(early):
        i, s = early[0]
        raise ValueError(f"keep: wanted keys up to {times[i]} at time {times[i]}, got key {s}")
    return x, times


def kept_share(keep: Array, *, readers: Array | None = None) -> np.ndarray:
    """Share of the existing keys that each step keeps.

    Args:
        keep: [t, s], True where key s is kept at step t.
        readers: [t], the time of each step; None if there are as many steps as keys.

    Returns:
        [t]: 0 to 1.
    """
    keep, times = kept(keep, readers)
    return keep.sum(-1) / (times + 1)


def mass_recall(A: Array, keep: Array, *, readers: Array | None = None) -> np.ndarray:
    """Share of each row's mass that lies on the kept keys.

    Args:
        A: [.., t, s], the attention without selection, weights of any sign.
        keep: [t, s], True where key s is kept at step t.
        readers: [t], the time of each row; None for a square map.

    Returns:
        [.., t]: 1 if nothing of weight is left out; NaN without shares.
    """
    measure = lambda p, n, keep: np.abs(p * keep).sum(-1)
    return by_rows(measure, A, *selected(A, keep, readers))


def best_recall(A: Array, keep: Array, *, readers: Array | None = None) -> np.ndarray:
    """The largest mass recall that a selection of as many keys could have.

    Args:
        A: [.., t, s], the attention without selection, weights of any sign.
        keep: [t, s], True where key s is kept at step t.
        readers: [t], the time of each row; None for a square map.

    Returns:
        [.., t]: 0 to 1; NaN without shares.
    """

    def measure(p: np.ndarray, n: np.ndarray, keep: np.ndarray) -> np.ndarray:
        mass = np.sort(np.abs(p), -1)[:, ::-1].cumsum(-1)
        mass = np.pad(mass, ((0, 0), (1, 0)))
        return np.minimum(mass[np.arange(len(mass)), keep.sum(-1)], 1.0)

    return by_rows(measure, A, *selected(A, keep, readers))


def selected(A: Array, keep: Array, readers: Array | None) -> tuple[np.ndarray, np.ndarray]:
    """The time of each row and the selection, after checking that they belong to the map."""
    shape, (keep, times) = tuple(opened(A, "A").shape), kept(keep, readers)
    if shape[-2:] != keep.shape:
        raise ValueError(f"A: wanted the shape of keep {list(keep.shape)}, got {list(shape)}")
    return times, keep


# ------------------------------------------------------------------------------ measures by name


class Measure(NamedTuple):
    """A measure of each row, and how pictures name it."""

    of: Callable[..., np.ndarray]
    title: str
    unit: str


MEASURES = {
    "entropy": Measure(entropy, "entropy", "nats"),
    "effective tokens": Measure(effective_tokens, "effective tokens", "tokens"),
    "gini": Measure(gini, "Gini index", "0 = even"),
    "hoyer": Measure(hoyer, "Hoyer sparseness", "0 = even, 1 = one"),
    "negative": Measure(negative_share, "mass below 0", "share of |A|"),
    "sink": Measure(sink_share, "mass on the first token", "share of |A|"),
    "distance": Measure(mean_distance, "mean distance t - s", "tokens"),
    "context": Measure(effective_context, "context of 90 % of the mass", "tokens back"),
    "reach": Measure(reach, "reach of weights above 1 %", "tokens back"),
}


def mean_over_readers(x: np.ndarray, axis: int = -1) -> np.ndarray:
    """Average over the rows that have the measure; NaN where none has it."""
    known = np.isfinite(x)
    total, n = np.where(known, x, 0.0).sum(axis), known.sum(axis)
    return np.where(n > 0, total / np.maximum(n, 1), np.nan)


def check_measures(names: Sequence[str]) -> None:
    """Refuse what is not in MEASURES, and nothing."""
    if not names or not set(names) <= set(MEASURES):
        raise ValueError(f"measures: wanted some of {', '.join(MEASURES)}, got {list(names)}")
