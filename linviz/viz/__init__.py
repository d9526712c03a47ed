"""Pictures of states, activations, attention and anatomy, drawn from what the mechanisms compute.

Axes-level functions (`heat`, `lines`) take `ax=` and return the Axes. The others return a Picture,
or a Scrubber where there is a time axis: a notebook shows it in light and dark, and it can be
saved. Measures are plain functions of numbers. `explore_*`, which need ipywidgets to move and run
mechanisms, are loaded on first use.
"""

import importlib
from typing import Any

from linviz.viz.activations import (
    activation_map,
    channel_magnitude,
    compare,
    distributions,
    massive_activations,
    qkv_stripes,
)
from linviz.viz.anatomy import cell, cells
from linviz.viz.curves import crossing, line_panels, lines, moving_mean
from linviz.viz.decoding import cache_or_state, numbers_held
from linviz.viz.diagrams import (
    chunk_tiling,
    chunk_work,
    order_crossover,
    order_flops,
    product_order,
)
from linviz.viz.explorer import Explorer
from linviz.viz.family import family_tree
from linviz.viz.gates import gate_extremes, gate_histogram, gate_shares, two_sided
from linviz.viz.ink import INK, LINES, MAPS, style
from linviz.viz.magnitudes import (
    channel_stats,
    clip_limit,
    kurtosis,
    massive_positions,
    outlier_channels,
    rotate,
    token_norms,
    top_magnitudes,
    value_quantiles,
)
from linviz.viz.maps import (
    attention,
    context_length,
    head_summary,
    selection,
    sparsity_measures,
    top_mass,
)
from linviz.viz.matrices import film_strip, frames, heat, limits, panels, read, thin, ticks
from linviz.viz.memory import (
    carried,
    collapse_ratio,
    effective_rank,
    effective_state_size,
    half_life,
    retention,
    singular_spectrum,
    stable_rank,
    state_moments,
    state_norm,
    transition,
    transition_spectrum,
)
from linviz.viz.moving import Frames, Lines, Points, Rows
from linviz.viz.picture import Picture, save_card
from linviz.viz.scrubber import Scrubber
from linviz.viz.sparsity import (
    best_recall,
    effective_context,
    effective_tokens,
    entropy,
    gini,
    hoyer,
    kept_share,
    mass_recall,
    mean_distance,
    negative_share,
    page_mask,
    reach,
    sink_share,
    top_k_mass,
)
from linviz.viz.states import (
    labelled_state,
    linked,
    singular_values,
    state,
    state_collapse,
    state_difference,
    state_measures,
)
from linviz.viz.survival import eigenvalues, half_lives, retention_curves, state_size_used
from linviz.viz.triangular import (
    block_ranks,
    decay_mask,
    relative_rows,
    semiseparable,
    triangle,
    triangles,
)

_PLAY = ("explore_chunks", "explore_cost", "explore_forms", "explore_state")

__all__ = [
    "INK",
    "LINES",
    "MAPS",
    "Explorer",
    "Frames",
    "Lines",
    "Picture",
    "Points",
    "Rows",
    "Scrubber",
    "activation_map",
    "attention",
    "best_recall",
    "block_ranks",
    "cache_or_state",
    "carried",
    "cell",
    "cells",
    "channel_magnitude",
    "channel_stats",
    "chunk_tiling",
    "chunk_work",
    "clip_limit",
    "collapse_ratio",
    "compare",
    "context_length",
    "crossing",
    "decay_mask",
    "distributions",
    "effective_context",
    "effective_rank",
    "effective_state_size",
    "effective_tokens",
    "eigenvalues",
    "entropy",
    "family_tree",
    "film_strip",
    "frames",
    "gate_extremes",
    "gate_histogram",
    "gate_shares",
    "gini",
    "half_life",
    "half_lives",
    "head_summary",
    "heat",
    "hoyer",
    "kept_share",
    "kurtosis",
    "labelled_state",
    "limits",
    "line_panels",
    "lines",
    "linked",
    "mass_recall",
    "massive_activations",
    "massive_positions",
    "mean_distance",
    "moving_mean",
    "negative_share",
    "numbers_held",
    "order_crossover",
    "order_flops",
    "outlier_channels",
    "page_mask",
    "panels",
    "product_order",
    "qkv_stripes",
    "reach",
    "read",
    "relative_rows",
    "retention",
    "retention_curves",
    "rotate",
    "save_card",
    "selection",
    "semiseparable",
    "singular_spectrum",
    "singular_values",
    "sink_share",
    "sparsity_measures",
    "stable_rank",
    "state",
    "state_collapse",
    "state_difference",
    "state_measures",
    "state_moments",
    "state_norm",
    "state_size_used",
    "style",
    "thin",
    "ticks",
    "token_norms",
    "top_k_mass",
    "top_magnitudes",
    "top_mass",
    "transition",
    "transition_spectrum",
    "triangle",
    "triangles",
    "two_sided",
    "value_quantiles",
]
__all__ += _PLAY


def __getattr__(name: str) -> Any:
    """What runs mechanisms is loaded on first use."""
    if name in _PLAY:
        return getattr(importlib.import_module("linviz.viz.play"), name)
    raise AttributeError(f"module 'linviz.viz' has no attribute {name!r}")
