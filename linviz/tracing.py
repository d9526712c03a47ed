"""What a whole model computes, layer by layer: `trace` runs it once and listens.

Of each layer it keeps the inputs of its mechanism, from which everything else can be computed again
for one head or some steps at a time, and the states at a few steps; and, by name, what the modules
of the model note. So no tensor with every state of every layer is ever made.
"""

import operator
from bisect import bisect
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from linviz.inputs import Input, Sizes
from linviz.listening import listening
from linviz.mechanism import Mechanism, State, Trace, thin, thin_option, wide_type, zip_specs

TRACE_BYTES = 2**30  # the most that `trace` keeps, and that `LayerTrace.trace` computes again

Parts = tuple[Tensor, ...] | None


# ------------------------------------------------------------------------------------- one layer


@dataclass(eq=False, repr=False)
class LayerTrace:
    """What one layer of a model computed.

    Attributes:
        index: number of the layer in the model.
        name: of its module, such as "blocks.0.mixer"; "" where the model is a layer.
        mechanism: what it ran.
        options: with which options.
        sizes: by letter.
        inputs: those of the mechanism, by name.
        start: the parts of the state it began from; None for the first.
        at: the steps whose states are kept, increasing.
        states: a part of the state by its name -> [steps, B, ...], after each step of `at`. A cache
            (softmax) is kept once, whole: [B, S, H, K], its last T rows are those of the T tokens.
        activations: what the layer and the block around it noted, by name: "gate", "normed", "x"
            (before the block), "mixed" (what the layer gave), "mlp".
    """

    index: int
    name: str
    mechanism: Mechanism
    options: dict[str, Any]
    sizes: Sizes
    inputs: dict[str, Tensor]
    start: Parts
    at: list[int]
    states: dict[str, Tensor]
    activations: dict[str, Tensor]

    @torch.no_grad()
    def trace(
        self, *, head: int | None = None, batch: int | None = None, steps: slice | None = None
    ) -> Trace:
        """Run the mechanism again, and keep all: what every picture of a mechanism draws.

        Args:
            head: one head; of a linear mechanism without heads, one channel; None for all.
            batch: one sequence; None for all.
            steps: a slice of the time, begun from the nearest state that is kept; None for all.

        Returns:
            A Trace. Axes of which one is left stay, with size 1.

        Raises:
            ValueError: no such head, sequence or steps; no head can be computed alone; or the
                states (of a cache: the scores) take more than TRACE_BYTES.
        """
        m, T = self.mechanism, self.sizes["T"]
        begin, end, stride = (steps or slice(None)).indices(T)
        if stride != 1 or begin >= end:
            raise ValueError(f"steps: wanted a slice of {T} steps one after the other, got {steps}")
        done, S = self.before(begin)
        inputs, S, options = self.thinned(S, head, batch)
        S = after(m, inputs, S, options, done, begin)
        inputs = cut(m, inputs, begin, end)
        sizes = m.sizes(inputs, S, options, "trace")
        need = trace_bytes(m, sizes, inputs)
        if need > TRACE_BYTES:
            raise ValueError(
                f"trace: all states of layer {self.index} take {need / 2**20:,.0f} MiB, more than "
                f"{TRACE_BYTES / 2**20:,.0f}; take less by head=, batch= or steps="
            )
        return m.trace(*inputs, S=S, **options)

    def brief(self, batch: int | None = None) -> Trace:
        """A Trace of the inputs alone, with nothing computed: enough for effective attention."""
        inputs, S, options = self.thinned(self.start, None, batch)
        sizes = self.mechanism.sizes(inputs, S, options, "trace")
        return Trace(dict(zip(self.inputs, inputs, strict=True)), self.mechanism, options, sizes, S)

    @torch.no_grad()
    def attention_map(
        self, *, head: int | None = None, batch: int | None = None, rows: Any = None
    ) -> Tensor:
        """The effective attention of the layer, see `Mechanism.attention_map`.

        Args:
            head: one head, or channel where each has an attention of its own; None for all.
            batch: one sequence; None for all.
            rows: readers t to keep; None for all.

        Returns:
            [B, H, rows, T], or [B, D, rows, T].

        Raises:
            ValueError: no such head or sequence, no effective attention, or too large.
        """
        keep = {}
        if head is not None:
            letter = self.letter
            name = "heads" if letter == "H" else "channels"
            keep[name] = [place("head", head, self.sizes[letter])]
        return self.brief(batch).attention_map(rows=rows, **keep)

    @property
    def letter(self) -> str:
        """What there are several of: heads H, or channels D."""
        return "H" if "H" in self.sizes else "D"

    @property
    def splits(self) -> bool:
        """Whether one head, or channel, can be computed without the others."""
        whole = any(callable(x) for x in self.options.values())  # may treat heads differently
        return not whole and (self.letter == "H" or self.mechanism.linear)

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        kept = [*self.inputs.values(), *(self.start or ()), *self.states.values()]
        kept += self.activations.values()
        return sum(x.nbytes for x in {id(x): x for x in kept}.values())

    def before(self, t: int) -> tuple[int, Parts]:
        """The last known state before step t, and how many steps it has seen."""
        if self.mechanism.cache:
            rows = [x[:, : x.shape[1] - self.sizes["T"] + t] for x in self.states.values()]
            return t, tuple(rows) if rows[0].shape[1] else None
        i = bisect(self.at, t - 1) - 1
        if i < 0:
            return 0, self.start
        return self.at[i] + 1, tuple(x[i] for x in self.states.values())

    def thinned(
        self, S: Parts, head: int | None, batch: int | None
    ) -> tuple[list[Tensor], Parts, dict[str, Any]]:
        """Inputs, state and options of one head, and of one sequence."""
        m, letter, size = self.mechanism, self.letter, self.sizes[self.letter]
        if head is not None and not self.splits:
            why = "a function among its options may look at all" if m.linear else "all are mixed"
            raise ValueError(f"head: wanted None, for of {m.name} none can be alone ({why})")
        keep = None if head is None else [place("head", head, size)]
        row = None if batch is None else place("batch", batch, self.sizes["B"])

        def less(x: Tensor, spec: Input) -> Tensor:
            x = x if keep is None else thin(x, spec, letter, keep, self.sizes)
            return x if row is None or not spec.axes.startswith("b") else x[row : row + 1]

        inputs = [less(x, spec) for x, spec in zip_specs(m, list(self.inputs.values()))]
        S = S and tuple(less(x, spec) for x, spec in zip(S, m.state, strict=True))
        options = self.options
        if keep is not None:
            options = {name: thin_option(x, size, keep) for name, x in options.items()}
        return inputs, S, options

    def __repr__(self) -> str:
        sizes = " ".join(f"{letter}={n}" for letter, n in self.sizes.items())
        where = f"{self.name}: " * bool(self.name)
        noted = ", ".join(self.activations) or "no activations"
        return (
            f"LayerTrace({self.index}, {where}{self.mechanism.name} {sizes}, {len(self.at)} states,"
            f" {noted})"
        )


def cut(m: Mechanism, inputs: Sequence[Tensor], begin: int, end: int) -> list[Tensor]:
    """Some steps of the inputs."""
    return [x[:, begin:end] if spec.timed else x for x, spec in zip_specs(m, inputs)]


def after(
    m: Mechanism,
    inputs: Sequence[Tensor],
    S: Parts,
    options: Mapping[str, Any],
    begin: int,
    end: int,
) -> Parts:
    """The state after step end - 1, from the state S before step `begin`."""
    if begin == end:
        return S
    _, new = m(*cut(m, inputs, begin, end), S=S, **options)
    return (new,) if isinstance(new, Tensor) else new


def state_bytes(m: Mechanism, sizes: Sizes, inputs: Sequence[Tensor]) -> int:
    """Bytes of one state of all sequences."""
    rotating = any(x.is_complex() for x in inputs)
    numbers = sum(prod(x.shape(sizes)) << (x.complex and rotating) for x in m.state)
    return numbers * wide_type(*inputs).itemsize


def trace_bytes(m: Mechanism, sizes: Sizes, inputs: Sequence[Tensor]) -> int:
    """Bytes of the largest part of a trace: the state after each step, or scores and weights."""
    if not m.cache:
        return sizes["T"] * state_bytes(m, sizes, inputs)
    tokens = sizes["T"] + sizes.get("S", 0)
    return 2 * sizes["B"] * sizes["H"] * sizes["T"] * tokens * wide_type(*inputs).itemsize


# ------------------------------------------------------------------------------------ all layers


@dataclass(eq=False, repr=False)
class ModelTrace:
    """What the layers of a model computed: `tr[1]` is layer 1, `tr[-1]` the last.

    The pictures of linviz.viz take it, with `layer=` (and `head=`).

    Attributes:
        layers: those that were kept.
        depth: how many the model has.
        activations: what was noted outside of all blocks, by its full name.
        output: the logits of a language model, the y of a layer; None if it was not kept.
        tokens: for each sequence a label for each token; None if the model does not read tokens.
    """

    layers: tuple[LayerTrace, ...]
    depth: int
    activations: dict[str, Tensor]
    output: Tensor | None
    tokens: list[list[str]] | None

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[LayerTrace]:
        return iter(self.layers)

    def __getitem__(self, layer: int) -> LayerTrace:
        """The layer of that number in the model; negative ones count from the end."""
        i = place("layer", layer, self.depth)
        for found in self.layers:
            if found.index == i:
                return found
        kept = ", ".join(str(x.index) for x in self.layers)
        raise ValueError(f"layer: wanted one that was traced ({kept}), got {layer}")

    def trace(self, layer: int, **which: Any) -> Trace:
        """The Trace of one layer's mechanism, see `LayerTrace.trace`."""
        return self[layer].trace(**which)

    def attention_map(self, layer: int, **which: Any) -> Tensor:
        """The effective attention of one layer, see `LayerTrace.attention_map`."""
        return self[layer].attention_map(**which)

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        own = [*self.activations.values(), *([] if self.output is None else [self.output])]
        return sum(x.nbytes for x in (*self.layers, *own))

    def __repr__(self) -> str:
        kinds = Counter(x.mechanism.name for x in self.layers)
        named = ", ".join(f"{n} {kind}" for kind, n in kinds.items())
        first = self.layers[0]
        return (
            f"ModelTrace({named}; B={first.sizes['B']} T={first.sizes['T']}; states at "
            f"{len(first.at)} steps; {self.nbytes / 2**10:,.0f} KiB)"
        )


def trace(
    model: nn.Module,
    x: Tensor | str,
    *,
    keep: str | Sequence[str] | None = None,
    layers: int | Sequence[int] | None = None,
    at: int | Sequence[int] = 64,
    state: Any = None,
    progress: bool = True,
) -> ModelTrace:
    """Run a model once and keep what its layers compute.

    Args:
        model: a language model, a single layer, or any module with layers of linviz inside; it is
            run as `model(x)`, or `model(x, state)`, without gradients and in eval mode.
        x: token ids [B, T], a text, or what else the model reads ([B, T, D] for a layer).
        keep: the activations to keep, by name or by pattern (*, ?): the full name, of the module
            and of what it noted ("blocks.1.mixer.gate", "blocks.1.*"), or its end after a dot
            ("gate", "mixer.gate"). "output" is what the model gives. None keeps all, () none. The
            inputs of the mechanisms are kept in any case.
        layers: numbers of the layers to keep, -1 for the last; None for all.
        at: the steps whose states are kept: how many, spread evenly up to the last; or the steps
            themselves.
        state: what the model has read before.
        progress: show a bar over the states, if they take longer than a second.

    Raises:
        ValueError: no layers in the model, a layer that runs twice, an argument out of range, or
            more than TRACE_BYTES (found out before the memory is taken).
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model: wanted a torch module, got {type(model).__name__}")
    x = read_input(model, x)
    recorder = Recorder(model, keep, layers, at)
    with still(model), listening(recorder):
        y = model(x) if state is None else model(x, state)
        recorder.keep_output(y[0] if isinstance(y, tuple) else y)
        kept = recorder.finished(progress)
    return ModelTrace(*kept, labels(model, x))


def read_input(model: nn.Module, x: Any) -> Tensor:
    """What the model reads, where the model is."""
    if isinstance(x, str):
        if not hasattr(model, "encode"):
            raise ValueError("x: a text needs a model with `encode`; this one wants a tensor")
        x = model.encode(x)
    if not isinstance(x, Tensor) or x.ndim < 2 or not x.numel():
        came = f"shape {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x: wanted a text or a tensor [B, T, ...], not empty, got {came}")
    return x.to(next(model.parameters(), x).device)


@contextmanager
def still(model: nn.Module) -> Iterator[None]:
    """Without gradients, and in eval mode; each module's mode is restored afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def labels(model: Any, ids: Tensor) -> list[list[str]] | None:
    """A label for each token, where there are tokens."""
    if ids.ndim != 2 or ids.is_floating_point():
        return None
    words = {i: label(model, i) for i in ids.unique().tolist()}
    return [[words[i] for i in row] for row in ids.tolist()]


def label(model: Any, i: int) -> str:
    """The text of a token, printable; <i> for a part of a letter, i where there is no text."""
    try:
        text = model.decode(torch.tensor([i]))
    except (AttributeError, ValueError):  # it cannot decode, or has no tokenizer
        return str(i)
    if not text or "\N{REPLACEMENT CHARACTER}" in text:
        return f"<{i}>"
    text = text.replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}")
    return text if text.isprintable() else repr(text)[1:-1]


# ------------------------------------------------------------------------------------- listening


class Recorder:
    """Listens to a model that runs, and keeps what was asked for."""

    def __init__(
        self,
        model: nn.Module,
        keep: str | Sequence[str] | None,
        layers: int | Sequence[int] | None,
        at: int | Sequence[int],
    ):
        """Find the layers; see `trace` for the arguments."""
        self.names = {module: name for name, module in model.named_modules()}
        runs = lambda module: isinstance(getattr(module, "mechanism", None), Mechanism)
        self.layers = [name for module, name in self.names.items() if runs(module)]
        if not self.layers:
            raise ValueError(f"model: wanted one with layers of linviz, got {type(model).__name__}")
        if layers is None:
            layers = range(len(self.layers))
        numbers = layers if isinstance(layers, Sequence) else [layers]
        self.chosen = {place("layers", i, len(self.layers)) for i in numbers}
        if not self.chosen:
            raise ValueError("layers: wanted one or more, got none")
        self.keep = [keep] if isinstance(keep, str) else keep
        self.at, self.nbytes = at, 0
        self.records: dict[int, LayerTrace] = {}
        self.activations: dict[int | None, dict[str, Tensor]] = {None: {}}
        self.activations |= {i: {} for i in self.chosen}
        self.seen: list[str] = []
        self.output: Tensor | None = None

    def noted(self, module: Any, named: Mapping[str, Tensor]) -> None:
        """Keep what a module notes with its layer, or with the model."""
        if module not in self.names:
            return
        where = self.names[module]
        layer, around = self.home(where)
        if layer is not None and layer not in self.chosen:
            return
        for name, x in named.items():
            full = dotted(where, name)
            if self.wanted(full):
                kept, short = self.activations[layer], dotted(below(where, around), name)
                kept[full if short in kept else short] = self.copied(x, full)

    def ran(
        self,
        module: Any,
        mechanism: Mechanism,
        inputs: Sequence[Tensor],
        S: State | None,
        options: Mapping[str, Any],
    ) -> None:
        """Keep the inputs of a layer."""
        name = self.names.get(module)
        if name not in self.layers or (i := self.layers.index(name)) not in self.chosen:
            return
        if i in self.records:
            raise ValueError(f"lv.trace: layer {i} ran twice in one call of the model")
        m = mechanism
        _, _, options = m.recurrent.bind(inputs, options)
        options.pop("validate")
        sizes = m.sizes(inputs, S, options, "lv.trace")
        at = steps_at(self.at, sizes["T"])
        start, where = m.parts(S, "lv.trace"), f"layer {i}"
        if m.cache:
            self.charge(sum(x.nbytes for x in inputs[1:]) * bool(start), where)
        else:
            self.charge(len(at) * state_bytes(m, sizes, inputs), where)
        options = {n: self.copied(x, n) if isinstance(x, Tensor) else x for n, x in options.items()}
        self.records[i] = LayerTrace(
            index=i,
            name=self.layers[i],
            mechanism=m,
            options=m.settled(options, sizes, inputs, False),
            sizes=sizes,
            inputs={spec.name: self.copied(x, where) for x, spec in zip_specs(m, inputs)},
            start=tuple(self.copied(x, where) for x in start) or None,
            at=at,
            states={},
            activations=self.activations[i],
        )

    def keep_output(self, y: Any) -> None:
        """Keep what the model gave, if that is a tensor."""
        if isinstance(y, Tensor) and self.wanted("output"):
            self.output = self.copied(y, "output")

    def finished(
        self, progress: bool
    ) -> tuple[tuple[LayerTrace, ...], int, dict[str, Tensor], Tensor | None]:
        """The layers with their states, how many there are, and what belongs to no layer."""
        unused = [p for p in self.keep or () if not any(fits(name, p) for name in self.seen)]
        if unused:
            raise ValueError(f"keep: wanted some of {', '.join(self.seen)}, got {unused[0]!r}")
        found = tuple(self.records[i] for i in sorted(self.records))
        if len(found) < len(self.chosen):
            missing = ", ".join(map(str, sorted(self.chosen - self.records.keys())))
            raise ValueError(f"lv.trace: the model did not run its layers {missing}")
        pieces = sum(len(x.at) for x in found if not x.mechanism.cache)
        with tqdm(total=pieces, desc="states", delay=1, leave=False, disable=not progress) as bar:
            for x in found:
                x.states = states(x, bar)
        return found, len(self.layers), self.activations[None], self.output

    def home(self, where: str) -> tuple[int | None, str]:
        """The layer that a module belongs to, and the module around both.

        That is the layer itself, or the block around it: the module one up, if it holds no other.
        """
        for i, name in enumerate(self.layers):
            if inside(where, name):
                return i, name
        for i, name in enumerate(self.layers):
            block = name.rpartition(".")[0]
            if inside(where, block) and sum(inside(x, block) for x in self.layers) == 1:
                return i, block
        return None, ""

    def wanted(self, name: str) -> bool:
        """Whether an activation is to be kept."""
        self.seen.append(name)
        return self.keep is None or any(fits(name, pattern) for pattern in self.keep)

    def copied(self, x: Tensor, what: str) -> Tensor:
        """A copy, if there is room for it: a view would keep all of what it looks at."""
        self.charge(x.nbytes, what)
        return x.detach().clone()

    def charge(self, nbytes: int, what: str) -> None:
        """Refuse what would be too much, before it is taken."""
        self.nbytes += nbytes
        if self.nbytes > TRACE_BYTES:
            raise ValueError(
                f"lv.trace: up to {what} this takes {self.nbytes / 2**20:,.0f} MiB, more than "
                f"{TRACE_BYTES / 2**20:,.0f}; keep fewer activations by keep=, fewer layers by "
                "layers=, or fewer states by at="
            )


def states(x: LayerTrace, bar: Any) -> dict[str, Tensor]:
    """The states after the steps x.at, from one to the next."""
    m, inputs = x.mechanism, list(x.inputs.values())
    names = [part.name for part in m.state]
    if m.cache:
        rows = inputs[1:] if x.start is None else map(joined, x.start, inputs[1:])
        return dict(zip(names, rows, strict=True))
    S, done, path = x.start, 0, []
    for t in x.at:
        S, done = after(m, inputs, S, x.options, done, t + 1), t + 1
        path.append(S)
        bar.update()
    return {name: torch.stack([S[i] for S in path]) for i, name in enumerate(names) if path}


def joined(old: Tensor, new: Tensor) -> Tensor:
    """A cache and the rows that come after it."""
    return torch.cat([old, new], 1)


def steps_at(at: int | Sequence[int], T: int) -> list[int]:
    """The steps whose states are kept, see `trace`."""
    if isinstance(at, Sequence):
        return sorted({place("at", t, T) for t in at})
    if at < 0:
        raise ValueError(f"at: wanted a number of steps, or the steps themselves, got {at}")
    n = min(at, T)
    return [-(-(i + 1) * T // n) - 1 for i in range(n)]


def fits(name: str, pattern: str) -> bool:
    """Whether a pattern fits a full name, or its end after a dot."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")


def inside(name: str, of: str) -> bool:
    """Whether a module is, or is inside of, the module `of`; "" is the model."""
    return not of or name == of or name.startswith(f"{of}.")


def below(name: str, of: str) -> str:
    """The name of a module as seen from one around it."""
    return name[len(of) :].removeprefix(".")


def dotted(*names: str) -> str:
    """Names in a row, with dots between those that are not empty."""
    return ".".join(filter(None, names))


def place(name: str, i: Any, size: int) -> int:
    """A number from 0 to size - 1; negative ones count from the end."""
    try:
        i = operator.index(i)
    except TypeError:
        raise ValueError(f"{name}: wanted a whole number, got {i!r}") from None
    if not -size <= i < size:
        raise ValueError(f"{name}: wanted {-size} to {size - 1}, got {i}")
    return i % size
