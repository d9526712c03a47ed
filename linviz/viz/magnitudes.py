"""How large activations are: norms, outlier channels, massive activations; and rotary positions.

Measures of x [t, d], a vector of d channels a token. Numbers that are not finite are left out. The
pictures are in linviz.viz.activations.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from linviz.viz.arguments import by_name
from linviz.viz.matrices import Array, Number, array

Layers = Mapping[str, np.ndarray]

QUANTILES = (0, 0.01, 0.25, 0.5, 0.75, 0.99, 1)


def finite(x: np.ndarray) -> np.ndarray:
    """The finite numbers of `x`, in one row."""
    return x[np.isfinite(x)]


def numbers_of(x: Array) -> np.ndarray:
    """Activations [t, d] as numbers; True is 1."""
    return array(x, "x", "t d").astype(float)


def token_norms(x: Array) -> np.ndarray:
    """Measure the length of each token's vector.

    Args:
        x: [t, d].

    Returns:
        [t], the Euclidean norms; NaN and infinities spread.
    """
    return np.sqrt((numbers_of(x) ** 2).sum(1))


def clip_limit(x: Array, percentile: Number = 99.5) -> float:
    """Find where to cut a colour scale that a few large numbers would empty.

    Args:
        x: [t, d].
        percentile: above 0, up to 100.

    Returns:
        That percentile of the magnitudes; their maximum if it is 0, and 1 if that is 0 too.
    """
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile: wanted a number above 0, up to 100, got {percentile}")
    seen = np.abs(finite(numbers_of(x)))
    if not seen.size:
        return 1.0
    return float(np.percentile(seen, percentile)) or float(seen.max()) or 1.0


def memory_limit(A: np.ndarray, times: np.ndarray) -> float | None:
    """Find where the colours of a map end so that a skip on its diagonal does not hide the rest.

    Args:
        A: [t, s], the rows of an effective attention.
        times: [t], the time of each row.

    Returns:
        Percentile 99.5 of the magnitudes beside the diagonal; None if the diagonal does not stand
        out (its median is at most 20 times theirs, or its largest at most 3 times their limit).
    """
    size, s = np.abs(A), np.arange(A.shape[1])
    rest, diagonal = finite(size[s < times[:, None]]), finite(size[s == times[:, None]])
    rest = rest[rest > 0]
    if not rest.size or not diagonal.size or np.median(diagonal) <= 20 * np.median(rest):
        return None
    cut = float(np.percentile(rest, 99.5))
    return cut if diagonal.max() > 3 * cut else None


def channel_stats(x: Array) -> dict[str, np.ndarray]:
    """Measure how large each channel is over time.

    Args:
        x: [t, d].

    Returns:
        "median", "p99" (the 99th percentile) and "max" of the magnitudes, each [d]. They are NaN
        for a channel without a finite number.
    """
    size = np.abs(numbers_of(x))
    bad = ~np.isfinite(size)
    if not bad.any():
        median, p99 = np.percentile(size, (50, 99), axis=0)
        return {"median": median, "p99": p99, "max": size.max(0)}
    stats = np.full((3, size.shape[1]), np.nan)
    for j, column in enumerate(size.T):
        if (seen := finite(column)).size:
            stats[:, j] = *np.percentile(seen, (50, 99)), seen.max()
    return dict(zip(("median", "p99", "max"), stats, strict=True))


def outlier_channels(
    x: Array, *, magnitude: Number = 6.0, layers: Number = 0.25, positions: Number = 0.06
) -> np.ndarray:
    """Find the outlier features of LLM.int8(): the same channel is large, again and again.

    A channel is one if a magnitude of at least `magnitude` occurs in it in at least that share of
    the `layers`, and at that share of the `positions` of all layers together. For one layer the
    second condition implies the first.

    Source: Dettmers et al., "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale",
    2022, arXiv:2208.07339, section 4.

    Args:
        x: [t, d], or name -> [t, d] for several layers with the same d.
        magnitude: the paper's 6.0.
        layers: the paper's 25 %.
        positions: the paper's 6 %.

    Returns:
        [n], the channels, increasing.
    """
    for name, value in (("layers", layers), ("positions", positions)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}: wanted a share between 0 and 1, got {value}")
    large = [np.abs(y) >= magnitude for y in same("d", as_layers(x)).values()]
    some = np.mean([y.any(0) for y in large], axis=0)
    often = np.concatenate(large).mean(0)
    return np.flatnonzero((some >= layers) & (often >= positions) & (some > 0))


def massive_positions(
    x: Array, *, magnitude: Number = 100.0, ratio: Number = 1000.0
) -> tuple[np.ndarray, np.ndarray]:
    """Find massive activations: single numbers, far above all others of their hidden state.

    One is massive if its magnitude is above `magnitude` and at least `ratio` times the median
    magnitude of the hidden state x.

    Source: Sun et al., "Massive Activations in Large Language Models", 2024, arXiv:2402.17762,
    section 2 (which says "at least or around" 1,000 times).

    Args:
        x: [t, d], the hidden state of one layer.
        magnitude: the paper's 100.
        ratio: the paper's 1,000.

    Returns:
        Positions [n, 2] of (t, d), and the values [n] there, the largest magnitude first.
    """
    x = numbers_of(x)
    size = np.abs(x)
    seen = finite(size)
    median = np.median(seen) if seen.size else 0.0
    at = np.argwhere((size > magnitude) & (size >= ratio * median))
    values = x[tuple(at.T)]
    order = np.argsort(-np.abs(values), kind="stable")
    return at[order], values[order]


def top_magnitudes(x: Array, *, most: int = 3) -> tuple[np.ndarray, float]:
    """Measure the largest magnitudes of a hidden state, and the median of all.

    Args:
        x: [t, d].
        most: how many.

    Returns:
        [most], falling (fewer if x has fewer finite numbers), and the median magnitude.
    """
    if most < 1:
        raise ValueError(f"most: wanted 1 or more, got {most}")
    size = np.abs(finite(numbers_of(x)))
    if not size.size:
        return np.empty(0), float("nan")
    most = min(most, size.size)
    return np.sort(np.partition(size, -most)[-most:])[::-1], float(np.median(size))


def kurtosis(x: Array) -> float:
    """Measure how heavy the tails are: the fourth moment about the mean over the variance squared.

    Args:
        x: [t, d]; all its finite numbers count as one sample.

    Returns:
        3 for a normal distribution, 1 for two equal peaks, large for a few extreme numbers; NaN
        for a constant.
    """
    seen = finite(numbers_of(x))
    if not seen.size or seen.min() == seen.max():
        return float("nan")
    away = seen - seen.mean()
    away /= np.abs(away).max()
    return float((away**4).mean() / (away**2).mean() ** 2)


def rotate(x: Array, *, base: Number = 10000.0, layout: str = "half", start: int = 0) -> np.ndarray:
    """Rotate queries or keys by their position, so that their products see only distances.

    Pair i of the K/2 pairs of channels turns by the angle t base^(-2i/K).

    Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021,
    arXiv:2104.09864, section 3.2.2.

    Args:
        x: [t, k], with even k.
        base: the paper's 10,000.
        layout: which channels make a pair: "half" takes i and i + K/2 (as GPT-NeoX and Llama do),
            "interleaved" takes 2i and 2i + 1 (as the paper does).
        start: position of the first row.

    Returns:
        [t, k]; every pair keeps its length, and a row at position 0 is unchanged.
    """
    x = array(x, "x", "t k").astype(float)
    T, K = x.shape
    if K % 2:
        raise ValueError(f"x: wanted an even number of channels [t, k], got shape {[T, K]}")
    if layout not in ("half", "interleaved"):
        raise ValueError(f"layout: wanted 'half' or 'interleaved', got {layout!r}")
    if not base > 0:
        raise ValueError(f"base: wanted a number above 0, got {base}")
    first, second = paired(K, layout)
    angle = np.outer(np.arange(start, start + T), float(base) ** (-np.arange(K // 2) * 2 / K))
    turned = np.empty_like(x)
    with np.errstate(invalid="ignore"):  # infinities
        turned[:, first] = x[:, first] * np.cos(angle) - x[:, second] * np.sin(angle)
        turned[:, second] = x[:, first] * np.sin(angle) + x[:, second] * np.cos(angle)
    return turned


def paired(K: int, layout: str) -> tuple[slice, slice]:
    """Where the first and the second channels of the rotated pairs are."""
    if layout == "half":
        return slice(0, K // 2), slice(K // 2, K)
    return slice(0, K, 2), slice(1, K, 2)


def value_quantiles(x: Array, at: Sequence[Number] = QUANTILES) -> np.ndarray:
    """Measure quantiles of all finite numbers of a layer.

    Args:
        x: [t, d].
        at: shares between 0 and 1.

    Returns:
        One number for each share; NaN if no number is finite.
    """
    seen = finite(numbers_of(x))
    return np.quantile(seen, at) if seen.size else np.full(len(at), np.nan)


def as_layers(x: Any, name: str = "x") -> dict[str, np.ndarray]:
    """Layers by name, each [t, d]; a single one has the name ""."""
    return {
        key: array(y, f"{name}[{key!r}]" if key else name, "t d").astype(float)
        for key, y in by_name(name, x).items()
    }


def same(letter: str, layers: Layers) -> Layers:
    """The layers [t, d], refused unless they have one t, or one d."""
    sizes = {name: y.shape["td".index(letter)] for name, y in layers.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"x: wanted layers [t, d] with one {letter}, got {sizes}")
    return layers
