"""How a picture of a mechanism takes the trace of a whole model: one of its layers, by `layer=`."""

import functools
import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from linviz.mechanism import Trace
from linviz.tracing import LayerTrace, ModelTrace, place

Which = int | Sequence[int] | None  # layers


def takes_models(
    *names: str,
    brief: bool = False,
    several: bool = False,
    every: bool = False,
    part: str | None = None,
) -> Callable[[Callable], Callable]:
    """Give a function of a Trace the argument `layer`, for a ModelTrace in the Trace's place.

    The function then gets the Trace of that layer, or several by name. Only the sequence `batch`
    and the head `head` are computed again. `tokens` are the model's.

    Args:
        names: the parameters that may be a trace; the first by default.
        brief: the function looks at inputs only, see `LayerTrace.brief`.
        several: the function also takes name -> Trace, and so several layers.
        every: it then takes all layers if none is named.
        part: what a layer noted (see `LayerTrace.activations`) that is taken if no part is named.
    """

    def decorate(function: Callable) -> Callable:
        signature = inspect.signature(function)
        takes = names or (next(iter(signature.parameters)),)

        @functools.wraps(function)
        def with_layer(*args: Any, **kwargs: Any) -> Any:
            layer: Which = kwargs.pop("layer", None)
            if not any(models(x) for x in (*args, *kwargs.values())):
                if layer is not None:
                    raise ValueError("layer: wanted None without a model's trace (lv.trace)")
                return function(*args, **kwargs)
            bound = signature.bind(*args, **kwargs)
            given = {name: bound.arguments[name] for name in takes if name in bound.arguments}
            reader = Reader(signature, kwargs, brief, part)
            if reader.batch and any(
                isinstance(y, Trace) for x in given.values() for y in entries(x)
            ):
                raise ValueError(f"batch: wanted 0 beside a mechanism's trace, got {reader.batch}")
            pair = len(takes) == 2 and isinstance(layer, Sequence) and len(layer) == 2
            for (name, x), i in zip(given.items(), layer if pair else [layer] * 2, strict=False):
                if models(x):
                    bound.arguments[name] = reader.chosen(x, i, several or every, every)
            first = next(model for x in given.values() for model in models(x))
            made = function(*bound.args, **bound.kwargs | reader.defaults(first))
            if reader.shown and hasattr(made, "caption"):
                numbers = dict.fromkeys(map(str, reader.shown))
                which = f"Layer{'s' * (len(numbers) > 1)} {' and '.join(numbers)}."
                made.caption, made.alt = f"{which} {made.caption}", f"{which} {made.alt}"
            return made

        del with_layer.__wrapped__  # whose source has no `layer`, and Sphinx reads the source
        with_layer.__signature__ = with_parameter(signature)
        with_layer.__doc__ = with_line(
            inspect.getdoc(function), takes, several or every, every, part
        )
        return with_layer

    return decorate


def entries(x: Any) -> list[Any]:
    """What an argument holds: the entries of a mapping, or itself."""
    return list(x.values()) if isinstance(x, Mapping) and not isinstance(x, Trace) else [x]


def models(x: Any) -> list[ModelTrace]:
    """The traces of models in an argument."""
    return [y for y in entries(x) if isinstance(y, ModelTrace)]


class Reader:
    """Takes layers of a ModelTrace as one function wants them."""

    def __init__(self, signature: inspect.Signature, kwargs: dict, brief: bool, part: str | None):
        """Read what the call says of head, batch and part."""
        self.parameters, self.kwargs, self.brief = signature.parameters, kwargs, brief
        self.head, self.batch = self.asked("head", 0), self.asked("batch", 0) or 0
        self.part, self.usual = self.asked("part"), part
        self.shown: list[int] = []  # layers that the picture itself does not name
        self.stacked = False  # whether layers stand side by side

    def takes(self, name: str) -> bool:
        """Whether the function has an argument of that name."""
        return name in self.parameters or ("which" in self.parameters and name in WHICH)

    def asked(self, name: str, usual: Any = None) -> Any:
        """An argument of the call, or its default; None if there is no such argument."""
        if name in self.parameters:
            usual = self.parameters[name].default
        return self.kwargs.get(name, usual) if self.takes(name) else None

    def chosen(self, x: Any, layer: Which, several: bool, every: bool) -> Any:
        """A layer of a model, several by name, or one layer of each of several models."""
        part = self.part or (self.usual if self.takes("part") else None)
        if isinstance(x, Mapping):
            return {n: self.one(only(y, layer), part) if models(y) else y for n, y in x.items()}
        if layer is None and every and len(x) > 1:
            layer = [record.index for record in x]
        if not isinstance(layer, Sequence):
            record = only(x, layer)
            self.shown.append(record.index)
            found = self.one(record, part)
            return {part: found} if several and part in record.activations else found
        if not several:
            raise ValueError(f"layer: wanted one layer, got {layer}")
        self.stacked = True
        kinds = {record.mechanism.name for record in x}
        title = "layer {0}" if len(kinds) == 1 else "{0} {1}"
        named = {title.format(r.index, r.mechanism.name): r for r in map(x.__getitem__, layer)}
        return {name: self.one(record, self.part or self.usual) for name, record in named.items()}

    def one(self, record: LayerTrace, part: str | None) -> Any:
        """What the function gets of a layer: an activation [t, d], or a Trace."""
        if part in record.activations:
            x = record.activations[part]
            x = x[place("batch", self.batch, len(x))]
            return x.reshape(len(x), -1)
        if self.brief:
            return record.brief(self.batch)
        alone = self.head is not None and record.letter == "H" and record.splits
        tr = record.trace(head=self.head if alone else None, batch=self.batch)
        if self.part is not None and self.part not in tr:
            wanted = ", ".join([*tr, *record.activations])
            raise ValueError(f"part: wanted one of {wanted}, got {self.part!r}")
        return numbered(tr, record) if alone else tr

    def defaults(self, model: ModelTrace) -> dict[str, Any]:
        """Arguments that follow from the model."""
        found: dict[str, Any] = {"batch": 0} if self.takes("batch") else {}  # all that is left
        if self.takes("tokens") and self.asked("tokens") is None and model.tokens is not None:
            found["tokens"] = model.tokens[self.batch]
        if self.stacked and self.takes("row_name") and self.asked("row_name") is None:
            found["row_name"] = "layer"
        return found


WHICH = ("part", "head", "batch")  # what **which stands for, see linviz.viz.memory


def only(x: ModelTrace, layer: int | None) -> LayerTrace:
    """The layer wanted; the only one if none is named."""
    if layer is None and len(x) > 1:
        known = ", ".join(f"{r.index} {r.mechanism.name}" for r in x)
        raise ValueError(f"layer: wanted one of {known}, got None")
    return x.layers[0] if layer is None else x[layer]


def numbered(tr: Trace, record: LayerTrace) -> Trace:
    """The trace of one head as that of all heads, each this one: so it keeps its number.

    Nothing is copied: along the axis of the heads the tensors repeat without memory.
    """
    H = record.sizes["H"]

    def repeated(x: Any, letters: str) -> Any:
        axes = letters.split()
        return x.expand(*(H if axis == "h" else -1 for axis in axes)) if "h" in axes else x

    named = {name: repeated(x, tr.letters(name)) for name, x in tr.items()}
    parts = zip(tr.start or (), tr.mechanism.state, strict=bool(tr.start))
    start = tuple(repeated(x, spec.axes) for x, spec in parts) or None
    return Trace(named, tr.mechanism, record.options, {**tr.sizes, "H": H}, start)


def with_parameter(signature: inspect.Signature) -> inspect.Signature:
    """The signature with `layer` among its keywords."""
    *first, last = signature.parameters.values()
    layer = inspect.Parameter("layer", inspect.Parameter.KEYWORD_ONLY, default=None)
    layer = layer.replace(annotation=Which)
    after = [layer, last] if last.kind is last.VAR_KEYWORD else [last, layer]
    return signature.replace(parameters=[*first, *after])


def with_line(doc: str, takes: Sequence[str], several: bool, every: bool, part: str | None) -> str:
    """The docstring with a line about `layer` at the end of its arguments."""
    line = f"layer: where {' or '.join(takes)} is a model's trace (lv.trace): which layer"
    line += ", or one for each" * (len(takes) == 2) + ", or several" * several
    line += f"; None takes {'all' if every else 'the only one'}."
    if "\n    part: " in doc:
        line += " Its part may also be an activation that the layer noted"
        line += f"; None takes {part}, the tokens before the block." if part else "."
    elif part:
        line += (
            f" Of several layers it takes what they noted as {part}: the tokens before the block."
        )
    arguments, returns, rest = doc.partition("\n\nReturns:")
    before, stars, others = arguments.partition("\n    **")  # **options stay the last
    lines = textwrap.wrap(line, 96, initial_indent="    ", subsequent_indent="        ")
    return "\n".join([before, *lines]) + stars + others + returns + rest
