"""Pictures of states, attention maps and curves, drawn from tensors that the mechanisms return.

Axes-level functions (`heat`, `lines`) take `ax=` and return the Axes. Figure-level ones (`panels`,
`film_strip`, `line_panels`) close their figure and return it, so that a notebook shows it once.
"""

from linviz.viz.curves import crossing, line_panels, lines, moving_mean
from linviz.viz.ink import INK, LINES, MAPS, save_card, style
from linviz.viz.states import film_strip, frames, heat, limits, panels, ticks

__all__ = [
    "INK",
    "LINES",
    "MAPS",
    "crossing",
    "film_strip",
    "frames",
    "heat",
    "limits",
    "line_panels",
    "lines",
    "moving_mean",
    "panels",
    "save_card",
    "style",
    "ticks",
]
