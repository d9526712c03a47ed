"""A picture with sliders: for a notebook with a kernel; a still picture everywhere else.

`Explorer` joins a function that draws and the controls that it takes. In JupyterLab it shows
ipywidgets; on a page without a kernel, and without ipywidgets, it shows its picture and says how to
move it.
"""

import html
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from numbers import Integral, Real
from pathlib import Path as FilePath
from typing import Any

from matplotlib.figure import Figure

from linviz.viz.matrices import Number
from linviz.viz.picture import Picture

WIDGET = "application/vnd.jupyter.widget-view+json"
INSTALL = "python -m pip install ipywidgets"


# --------------------------------------------------------------------------------------- controls


@dataclass(frozen=True)
class Choice:
    """One of a few values: a dropdown, or a slider over them.

    Attributes:
        label: stands beside it.
        values: what can be chosen.
        slider: whether it is a slider.
    """

    label: str
    values: Sequence[Any]
    slider: bool = False

    def check(self, name: str, value: Any) -> Any:
        """The value, refused if it is not among those."""
        if value not in self.values:
            known = ", ".join(map(str, self.values))
            raise ValueError(f"{name}: wanted one of {known}, got {value!r}")
        return value

    def widget(self, value: Any) -> Any:
        """The control, with a first value."""
        import ipywidgets

        named = [(f"{x:,}" if isinstance(x, int) else str(x), x) for x in self.values]
        kind = ipywidgets.SelectionSlider if self.slider else ipywidgets.Dropdown
        more = {"continuous_update": False} if self.slider else {}
        return kind(options=named, value=value, description=self.label, **WIDE, **more)


@dataclass(frozen=True)
class Slider:
    """A number between two ends; a whole one if `step` is.

    Attributes:
        label: stands beside it.
        low: lower end.
        high: upper end.
        step: of the slider; other numbers between the ends may be given, too.
    """

    label: str
    low: Number
    high: Number
    step: Number = 1

    def check(self, name: str, value: Any) -> Any:
        """The value, refused if it is no number, or not between the ends."""
        kind = Integral if isinstance(self.step, int) else Real
        good = isinstance(value, kind) and not isinstance(value, bool)
        if not good or not self.low <= value <= self.high:
            what = "a whole number" if kind is Integral else "a number"
            raise ValueError(f"{name}: wanted {what} from {self.low} to {self.high}, got {value!r}")
        return value

    def widget(self, value: Any) -> Any:
        """The control, with a first value."""
        import ipywidgets

        kind = ipywidgets.IntSlider if isinstance(self.step, int) else ipywidgets.FloatSlider
        ends = {"min": self.low, "max": self.high, "step": self.step}
        more = {"value": value, "description": self.label, "continuous_update": False}
        return kind(**ends, **more, **WIDE)


@dataclass(frozen=True)
class Typed:
    """A text of at least one letter.

    Attributes:
        label: stands beside it.
        most: letters, at most.
    """

    label: str
    most: int

    def check(self, name: str, value: Any) -> Any:
        """The value, refused if it is no text, empty or too long."""
        if not isinstance(value, str) or not 1 <= len(value) <= self.most:
            got = f"{len(value)} letters" if isinstance(value, str) else repr(value)
            raise ValueError(f"{name}: wanted a text of 1 to {self.most} letters, got {got}")
        return value

    def widget(self, value: Any) -> Any:
        """The control, with a first value; it counts when Enter is pressed."""
        import ipywidgets

        return ipywidgets.Text(value=value, description=self.label, continuous_update=False, **WIDE)


Control = Choice | Slider | Typed
WIDE = {"style": {"description_width": "initial"}}


# --------------------------------------------------------------------------------------- explorer


def live() -> bool:
    """Whether somebody sits before a notebook: its kernel may ask for input.

    Tools that run notebooks (nbclient, Jupyter Book, nbval) do not let it ask.
    """
    if "IPython" not in sys.modules:
        return False
    kernel = getattr(sys.modules["IPython"].get_ipython(), "kernel", None)
    parent = kernel.get_parent("shell") if hasattr(kernel, "get_parent") else None
    return bool(((parent or {}).get("content") or {}).get("allow_stdin"))


class Explorer:
    """A picture with controls.

    Where somebody sits before a notebook and ipywidgets are installed, it shows them; elsewhere the
    picture of its present values, and how to move it. `at` draws other values without a notebook.

    Attributes:
        controls: by the name of the value.
        values: the present ones.
    """

    def __init__(
        self,
        draw: Callable[..., Picture],
        controls: Mapping[str, Control],
        start: Mapping[str, Any],
        *,
        idle: Callable[[Mapping[str, Any]], Sequence[str]] | None = None,
    ):
        """Join a picture and its controls.

        Args:
            draw: `draw(**values)` makes the picture; it may refuse values by a ValueError.
            controls: name of the value -> `Choice`, `Slider` or `Typed`.
            start: the first value of each.
            idle: `idle(values)` names the controls that mean nothing at these values.

        Raises:
            ValueError: a name of `start` without a control or the other way round, a value that
                its control refuses.
        """
        if not controls or set(start) != set(controls):
            wanted = ", ".join(controls) or "one control or more"
            raise ValueError(f"start: wanted {wanted}, got {', '.join(start) or 'nothing'}")
        self.draw, self.controls, self.idle = draw, dict(controls), idle
        self.values = {n: control.check(n, start[n]) for n, control in controls.items()}

    def __repr__(self) -> str:
        return f"Explorer: {self.at().alt}"

    def at(self, **values: Any) -> Picture:
        """Draw it with some values changed.

        Args:
            **values: by name; the others stay as they are.

        Returns:
            A Picture.

        Raises:
            ValueError: no such value, or one that its control refuses.
        """
        for name, value in values.items():
            if name not in self.controls:
                raise ValueError(f"{name}: there is {', '.join(self.controls)}, got {value!r}")
            self.controls[name].check(name, value)
        return self.draw(**{**self.values, **values})

    def first(self) -> Picture:
        """What a page without a kernel shows: the picture, and how to move it."""
        labels = ", ".join(control.label for control in self.controls.values())
        how = f"Open this notebook in JupyterLab to move the sliders: {labels}."
        if find_spec("ipywidgets") is None:
            how = f"To move the sliders ({labels}): {INSTALL}, and open this in JupyterLab."
        return still(self.at(), how)

    def figure(self, theme: str = "light") -> Figure:
        """Draw the present values with matplotlib, see `Picture.figure`."""
        return self.at().figure(theme)

    def html(self) -> str:
        """The still picture as HTML, see `Picture.html`."""
        return self.first().html()

    def save(self, path: str | FilePath, theme: str = "light") -> FilePath:
        """Save the still picture of the present values, see `Picture.save`."""
        return self.first().save(path, theme)

    def widget(self) -> Any:
        """The controls and the picture under them, as one widget of ipywidgets.

        Raises:
            ImportError: ipywidgets are not installed.
        """
        if find_spec("ipywidgets") is None:
            raise ImportError(f"the sliders need ipywidgets: {INSTALL}")
        return self._board.box

    @cached_property
    def _board(self) -> "Board":
        return Board(self)

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        """The still picture; before it the widget, where somebody can move it."""
        bundle = self.first()._repr_mimebundle_()
        if live() and find_spec("ipywidgets"):
            bundle = {WIDGET: self.widget()._repr_mimebundle_()[WIDGET]} | bundle
        return bundle


def still(picture: Picture, more: str = "") -> Picture:
    """A picture that does not move, with a sentence more under it."""
    note = " ".join(x for x in (picture.note, more) if x)
    words = {"alt": picture.alt, "caption": picture.caption, "note": note}
    return Picture(picture.draw, **words, vector=picture.vector)


class Board:
    """The widgets of an explorer: a control a value, the picture, and what went wrong."""

    def __init__(self, explorer: Explorer):
        """Make the widgets and listen to them."""
        import ipywidgets

        self.explorer = explorer
        values = explorer.values
        self.controls = {n: c.widget(values[n]) for n, c in explorer.controls.items()}
        self.picture, self.fault = ipywidgets.HTML(), ipywidgets.HTML()
        flow = ipywidgets.Layout(flex_flow="row wrap")
        row = ipywidgets.Box(list(self.controls.values()), layout=flow)
        self.box = ipywidgets.VBox([row, self.fault, self.picture])
        self.show(values)
        for control in self.controls.values():
            control.observe(self.follow, names="value")

    def follow(self, change: Any = None) -> None:
        """Draw the values of the controls; what is refused is said, and the picture stays."""
        values = {name: control.value for name, control in self.controls.items()}
        try:
            for name, value in values.items():
                self.explorer.controls[name].check(name, value)
            self.show(values)
        except ValueError as error:
            self.fault.value = f'<p role="alert">{html.escape(str(error))}</p>'

    def show(self, values: dict[str, Any]) -> None:
        """Draw these values and keep them."""
        shown = still(self.explorer.draw(**values)).html()
        self.explorer.values = values
        idle = self.explorer.idle(values) if self.explorer.idle else ()
        for name, control in self.controls.items():
            control.disabled = name in idle
        self.picture.value, self.fault.value = shown, ""
