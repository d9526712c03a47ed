"""What pictures have in common: arguments and traces read and checked, notes of what was left out.

Errors have one pattern: "name: wanted X, got Y".
"""

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from linviz.mechanism import Mechanism, Trace
from linviz.viz.matrices import Array, array


def numbers(x: Array, name: str, *letters: str) -> np.ndarray:
    """Copy a tensor to numpy, see `array`: complex numbers pass, and there may be a choice of axes.

    Args:
        x: tensor, array or list.
        name: the argument's name, for the message.
        *letters: the sets of axes that are welcome, such as "t k v", "t d".

    Returns:
        A float64 or complex128 array of the same shape.

    Raises:
        ValueError: if the axes are not among those meant, or one is empty.
    """
    x = x if hasattr(x, "ndim") else np.asarray(x)
    if x.ndim not in {len(axes.split()) for axes in letters}:
        meant = " or ".join(f"[{axes.replace(' ', ', ')}]" for axes in letters)
        raise ValueError(f"{name}: wanted axes {meant}, got shape {list(x.shape)}")
    axes = next(axes for axes in letters if len(axes.split()) == x.ndim)
    x = array(x, name, axes, complex=True)
    return x.astype(float) if x.dtype == bool else x


def whole(name: str, n: Any, most: int | None = None) -> int:
    """A whole number of at least 1."""
    try:
        n = operator.index(n)
    except TypeError:
        raise ValueError(f"{name}: wanted a whole number, got {n!r}") from None
    if n < 1 or (most is not None and n > most):
        wanted = "1 or more" if most is None else f"a number from 1 to {most}"
        raise ValueError(f"{name}: wanted {wanted}, got {n}")
    return n


def several(mechanisms: Any) -> tuple[Mechanism, ...]:
    """Mechanisms, refused if they are anything else."""
    if isinstance(mechanisms, Mechanism | str) or not isinstance(mechanisms, Iterable):
        raise ValueError(f"mechanisms: wanted several, as in lv.registry, got {mechanisms!r}")
    found = tuple(mechanisms)
    for m in found:
        if not isinstance(m, Mechanism):
            raise ValueError(f"mechanisms: wanted Mechanisms, as in lv.registry, got {m!r}")
    return found


def within(name: str, i: Any, size: int) -> int:
    """An index of `size` entries; negative ones count from the end."""
    if not -size <= i < size:
        raise ValueError(f"{name}: wanted {-size} to {size - 1}, got {i}")
    return int(i) % size


def labels_at(
    name: str, labels: Sequence[str] | None, size: int, at: Array | None = None
) -> list[str] | None:
    """The labels of the entries `at` (None: of all), of which there must be `size`."""
    if labels is None:
        return None
    if len(labels) != size:
        raise ValueError(f"{name}: wanted {size} labels, got {len(labels)}")
    return [str(labels[i]) for i in (range(size) if at is None else at)]


def by_name(name: str, x: Any, alone: str = "") -> dict[str, Any]:
    """The entries of a mapping; an array or a trace is one entry, called `alone`."""
    if isinstance(x, Trace) or not isinstance(x, Mapping):
        return {alone: x}
    if not x:
        raise ValueError(f"{name}: wanted one entry or more, got none")
    return {str(key): entry for key, entry in x.items()}


def heads(trace: Trace) -> tuple[str, int]:
    """What has an attention map of its own, heads or channels, and how many there are."""
    return ("heads", trace.sizes["H"]) if "H" in trace.sizes else ("channels", trace.sizes["D"])


def attention_rows(trace: Trace, head: int, batch: int, rows: Array | None = None) -> np.ndarray:
    """The effective attention [t, s] of one head or channel, at the times `rows` (None: at all)."""
    kind, size = heads(trace)
    keep: dict[str, Any] = {kind: [within("head", head, size)]}
    keep |= {} if rows is None else {"rows": [int(t) for t in rows]}
    batch = within("batch", batch, trace.sizes["B"])
    return array(trace.attention_map(**keep)[batch, 0], "A", "t s")


def count_note(shown: int, total: int, what: str) -> str:
    """A sentence if less is shown than there is."""
    return f"{shown} of {total} {what} shown." if shown < total else ""


def joined(*notes: str) -> str:
    """Sentences in one row, each once."""
    return " ".join(dict.fromkeys(note for note in notes if note))


def sentence(words: str) -> str:
    """Words as a sentence; nothing stays nothing."""
    return words[:1].upper() + words[1:] + "." if words else ""
