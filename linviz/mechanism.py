"""Mechanism: a variant of (linear) attention as data, and one contract for all of them.

A room in `linviz/mechanisms` says which inputs its mechanism takes, what its state is and how it
maps to a recurrence. Everything else (validation, number types, the fold, single steps, effective
attention, sizes) is here, once.
"""

import importlib
import importlib.util
import inspect
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial, reduce
from math import prod
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from linviz.inputs import Input, Sizes
from linviz.moves import Move

EXAMPLE_SIZES = MappingProxyType(
    {"B": 1, "T": 64, "H": 2, "K": 16, "V": 16, "N": 8, "P": 16, "G": 1, "D": 16}
)
ATTENTION_BYTES = 2**30  # the largest effective attention given without thinning
WORKING_BYTES = 2**27  # what one batch of its columns may take

State = Tensor | tuple[Tensor, ...]


# ---------------------------------------------------------------------------------------- forms


def through(
    recurrence: ModuleType, run: Callable, names: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Callable]:
    """The forms of a mechanism that maps to a recurrence.

    Args:
        recurrence: a module of linviz.recurrences.
        run: `run(form, *inputs, S, **options)` turns the mechanism's inputs into those of the
            recurrence, calls `form` (the recurrence's recurrent, parallel, chunked or kernel) and
            turns what that returns into the mechanism's output and state.
        names: names in a trace, where the mechanism and its recurrence mean different things by
            one letter.
    """

    def chunked(*inputs: Any, chunk: int, **options: Any) -> tuple[Tensor, State]:
        return run(partial(recurrence.chunked, chunk=chunk), *inputs, **options)

    def trace(*inputs: Any, **options: Any) -> dict[str, Tensor]:
        named = {}

        def form(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            seen = recurrence.trace(*args, **kwargs)
            o, S = seen.pop("o"), seen.pop("S")
            named.update({names.get(name, name): x for name, x in seen.items()})
            return o, S

        o, S = run(form, *inputs, **options)
        return named | {"o": o, "S": S}

    forms = {"recurrent": recurrence.recurrent, "parallel": recurrence.parallel}
    return {name: partial(run, form) for name, form in forms.items()} | {
        "chunked": chunked,
        "trace": trace,
        "triton": run,  # takes the kernel as its first argument
    }


class Trace(dict[str, Tensor]):
    """Every named intermediate of one run, in float32 or better: tr["S"] or tr.S.

    The names are the letters of the mechanism's glossary and of its recurrence's docstring.

    Attributes:
        mechanism: what was run.
        options: with which options.
        sizes: by letter.
        start: the parts of the state it began from; None for the first.
    """

    def __init__(
        self,
        named: Mapping[str, Tensor],
        mechanism: "Mechanism",
        options: Mapping[str, Any],
        sizes: Sizes,
        start: tuple[Tensor, ...] | None = None,
    ):
        """Keep the tensors by name, and what they came from."""
        super().__init__(named)
        self.mechanism, self.options, self.sizes = mechanism, dict(options), dict(sizes)
        self.start = start

    def __reduce__(self) -> tuple[Callable, tuple]:
        return Trace, (dict(self), self.mechanism, self.options, self.sizes, self.start)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The inputs, in the order of the signature."""
        return tuple(self[x.name] for x in self.mechanism.inputs)

    def letters(self, name: str) -> str:
        """The axes of a part, a letter each, such as "b t h k v".

        Inputs, output and state are named by the mechanism's registry entry; what the recurrence
        adds is named by its sizes.
        """
        m = self.mechanism
        for part in m.state:
            if part.name == name and not m.cache:
                return part.axes.replace("b", "b t", 1)
        for spec in (*m.inputs, m.output, *m.state):
            if spec.name == name:
                return " ".join(axis[-1] for axis in spec.axes.split())
        if name in ("s", "A"):  # scores, weights
            return "b h t s"
        shape, given = self[name].shape, ""
        if shape[:2] == (self.sizes["B"], self.sizes["T"]):
            given = "BTH" if "H" in self.sizes else "BT"
        elif "H" in self.sizes and shape[0] == self.sizes["H"]:
            given = "H"
        letters = list(given[: len(shape)])
        order = "DVPKRNT" if name in ("v", "e", "u", "y") else "DKVRNPT"
        for size in shape[len(letters) :]:
            known = (x for x in order if self.sizes.get(x) == size and x not in letters)
            letters.append(next(known, "C"))
        return " ".join(letters).lower()

    def attention_map(self, **keep: Any) -> Tensor:
        """The effective attention of this run, see `Mechanism.attention_map`.

        Raises:
            ValueError: it began from a state that changes the weights: a cache, a normaliser.
        """
        if self.start is not None and len(self.mechanism.state) > 1:
            raise ValueError(
                f"this trace of {self.mechanism.name} began from a state, which changes the "
                "weights of the tokens after it: trace the whole sequence from S=None"
            )
        return self.mechanism.attention_map(*self.inputs, **self.options, **keep)

    def __getattr__(self, name: str) -> Tensor:
        if name not in self:
            raise AttributeError(f"this trace has {', '.join(self)}, not {name}")
        return self[name]

    def __repr__(self) -> str:
        return f"Trace({', '.join(f'{name} {list(x.shape)}' for name, x in self.items())})"


class Form:
    """One form of one mechanism: checks what comes in, computes in float32 or better.

    The signature is the mechanism's inputs in order, then S=None, then keyword options. The output
    has the type of the values that came in, the state float32 or better. `validate` True or False
    forces or skips the check of values (log decay > 0, ...), which is otherwise done on the CPU.
    """

    def __init__(self, mechanism: "Mechanism", name: str):
        """Bind the form `name` of `mechanism`."""
        self.mechanism, self.name = mechanism, name
        self.__name__, self.__doc__ = name, mechanism.explain(name)
        chunk = {"chunk": 64} if name == "chunked" else {}
        kind = inspect.Parameter
        names = [x.name + "_t" * (name == "step" and x.timed) for x in mechanism.inputs]
        keywords = dict(mechanism.options) | chunk | {"validate": None}
        self.__signature__ = inspect.Signature(
            [kind(n, kind.POSITIONAL_OR_KEYWORD) for n in names]
            + [kind("S", kind.POSITIONAL_OR_KEYWORD, default=None)]
            + [kind(n, kind.KEYWORD_ONLY, default=default) for n, default in keywords.items()]
        )

    def __reduce__(self) -> tuple[Callable, tuple]:
        return getattr, (self.mechanism, self.name)

    def __repr__(self) -> str:
        return f"lv.{self.mechanism.name}.{self.name}{self.__signature__}"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Check, compute, and give back (o, S), or a Trace."""
        m, where = self.mechanism, f"lv.{self.mechanism.name}.{self.name}"
        inputs, S, options = self.bind(args, kwargs)
        validate = options.pop("validate")
        if "chunk" in options:
            options["chunk"] = whole_number("chunk", options["chunk"], where)
        sizes = m.sizes(inputs, S, options, where, one_token=self.name == "step")
        if self.name == "step":
            inputs = [x[:, None] if spec.timed else x for x, spec in zip_specs(m, inputs)]
        if validate is None:  # on a GPU the check would wait for the numbers
            validate = inputs[0].device.type == "cpu"
        if validate:
            for x, spec in zip_specs(m, inputs):
                spec.check_values(x, where)
        given = inputs, S, sizes, m.settled(options, sizes, inputs, validate)
        run = partial(self.compute, self.name, *given)
        if self.name == "step":
            return kernel_first(m.decode, inputs, partial(self.compute, "decode", *given), run)
        return run()

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list, Any, dict]:
        """Sort the arguments of a call into inputs, state and options."""
        try:
            bound = self.__signature__.bind(*args, **kwargs)
        except TypeError as error:
            packed = "; packed sequences are not there yet: a row of the batch for each sequence"
            hint = packed if "cu_seqlens" in kwargs else ""
            raise TypeError(f"{self!r}: {error}{hint}") from None
        bound.apply_defaults()
        options = dict(bound.arguments)
        S = options.pop("S")
        names = list(options)[: len(self.mechanism.inputs)]
        return [options.pop(name) for name in names], S, options

    def compute(
        self, form: str, inputs: list[Tensor], S: State | None, sizes: Sizes, options: dict
    ) -> Any:
        """Run a form on inputs that have been checked: the own one, or "decode" for a step."""
        m = self.mechanism
        value = inputs[m.value_index]
        parts = () if S is None else (S,) if isinstance(S, Tensor) else tuple(S)
        wide, wide_parts, kind = inputs, parts, torch.float32
        if form not in ("triton", "decode"):  # a kernel widens by itself
            kind = wide_type(*inputs, *parts)
            wide, wide_parts = ([widen(x, kind) for x in xs] for xs in (inputs, parts))
        start = tuple(wide_parts) or m.initial_state(sizes, kind, wide)
        S = start[0] if len(start) == 1 else start
        function = m.function(form)
        with without_autocast(value):
            if not sizes["T"] or (not m.cache and not sizes["B"] * sizes.get("D", 1)):
                o = widen(value, kind).narrow(-1, 0, m.output.shape(sizes)[-1])  # no numbers
                result = {"o": o, "S": start if m.cache else [s[:, None][:, :0] for s in start]}
            elif self.name == "trace":
                result = function(*wide, S=S, **options)
            else:
                o, S = function(*wide, S=S, **options)
        if self.name == "trace":
            begun = tuple(wide_parts) if parts else None
            return Trace(m.named(result, wide), m, options, sizes, begun)
        if m.cache:  # keeps the types that came in
            S = tuple(s.to(x.dtype) for s, x in zip(S, parts or inputs[1:], strict=True))
        o = o.to(value.dtype)
        return (o.squeeze(1) if self.name == "step" else o), S


def kernel_first(kernel: str | None, given: Sequence, run: Callable, otherwise: Callable) -> Any:
    """`run` where there is a kernel and a GPU; elsewhere, and for what it refuses, `otherwise`."""
    gpu = any(isinstance(x, Tensor) and x.is_cuda for x in given)
    if gpu and kernel and importlib.util.find_spec("triton"):
        unsupported = importlib.import_module("linviz.kernels.launch").Unsupported
        try:
            return run()
        except unsupported:  # float64, a head too wide for the chip, gradients of a step
            pass
    return otherwise()


def wide_type(*tensors: Tensor) -> torch.dtype:
    """The floating-point type that holds all of these, and float32 at least."""
    kinds = (x.dtype.to_real() if x.is_complex() else x.dtype for x in tensors)
    return reduce(torch.promote_types, kinds, torch.float32)


def widen(x: Tensor, kind: torch.dtype) -> Tensor:
    """X in the floating-point type `kind`, or in its complex twin."""
    return x.to(kind.to_complex() if x.is_complex() else kind)


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Keep torch.autocast out: the state is float32 or better."""
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def whole_number(name: str, n: Any, where: str, least: int = 1) -> int:
    """N as an int; anything but whole numbers from `least` on is refused."""
    try:
        whole = operator.index(n)
    except TypeError:
        whole = least - 1
    if isinstance(n, bool) or whole < least:
        raise ValueError(f"{where}: {name} must be a whole number of at least {least}, got {n!r}")
    return whole


def fold(form: Callable, chunk: Any) -> Callable:
    """Cut time into pieces of `chunk`, call `form` on each piece, and hand the state on.

    fold(parallel, 1) is the recurrence, fold(parallel, T) the matrix; in between it is chunking.

    Args:
        form: a form of a mechanism, or any function (x, y, ..., S=None, **options) -> (o, S) whose
            x, y, ... have time on axis 1.
        chunk: tokens a piece; the last may be shorter.

    Returns:
        A function with the arguments of `form`.
    """
    chunk = whole_number("chunk", chunk, "lv.fold")
    signature = inspect.signature(form)
    names = list(signature.parameters)
    if "S" not in names or getattr(form, "name", None) in ("step", "trace"):
        raise ValueError(f"lv.fold: form must be a function (x, ..., S=None) -> (o, S), got {form}")
    names = names[: names.index("S")]
    mechanism = form if isinstance(form, Mechanism) else getattr(form, "mechanism", None)
    timed = [x.name for x in mechanism.inputs if x.timed] if mechanism else names

    def folded(*args: Any, **kwargs: Any) -> tuple[Tensor, State]:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = bound.arguments
        S, o = arguments["S"], []
        if mechanism:  # the whole input is checked before the first piece is computed
            inputs = [arguments[name] for name in names]
            mechanism.sizes(inputs, S, mechanism.options | bound.kwargs, "lv.fold")
        for t in range(0, max(arguments[timed[0]].shape[1], 1), chunk):
            piece = {name: arguments[name][:, t : t + chunk] for name in timed}
            o_t, S = form(*(piece.get(n, arguments[n]) for n in names), S=S, **bound.kwargs)
            o.append(o_t)
        return torch.cat(o, 1), S

    return folded


# ------------------------------------------------------------------------------- what is written


class Equation(NamedTuple):
    """A numbered equation of a docstring: our number, LaTeX in our letters, the paper's number."""

    number: int
    latex: str
    source: str


class Symbol(NamedTuple):
    """A row of a glossary: our letter, the paper's, the shape, the meaning."""

    letter: str
    paper: str
    shape: str
    meaning: str


def read_equations(doc: str) -> tuple[Equation, ...]:
    """The numbered equations of a docstring: lines "    (1)  latex   [paper's number]"."""
    rows = re.findall(r"^ {4}\((\d+)\) +(.*(?:\n {5,}\S.*)*)", doc, re.M)
    found = []
    for number, text in rows:
        text = " ".join(text.split())
        latex, _, source = text.partition("  [") if "  [" in text else text.rpartition(" [")
        latex, source = (text, "") if not text.endswith("]") else (latex, source[:-1])
        found.append(Equation(int(number), latex, source))
    return tuple(found)


def read_glossary(doc: str) -> tuple[Symbol, ...]:
    """The glossary of a docstring: rows "    letter | the paper's | shape | meaning"."""
    rows = re.findall(r"^ {4}(.+?) \| (.+?) \| (.+?) \| (.+)$", doc, re.M)
    return tuple(Symbol(*(cell.strip() for cell in row)) for row in rows)


@dataclass(frozen=True)
class Edge:
    """A line of the family tree: with something fixed, a mechanism is the older one `to`.

    Attributes:
        to: the older mechanism's name.
        when: what is fixed, in words.
        outputs: `outputs(T, seed)` runs both and returns two outputs, which must be equal.
    """

    to: str
    when: str
    outputs: Callable[[int, int], tuple[Tensor, Tensor]]


# ----------------------------------------------------------------------------------- the mechanism


@dataclass(frozen=True, repr=False, eq=False)
class Mechanism:
    """One mechanism: data, and the functions that the contract promises.

    Attributes:
        name: lv.<name>.
        title: in words.
        paper: the paper's title.
        year: of the paper's first version.
        arxiv: its arXiv id, "" where there is none.
        decay: what fades, and on what that depends.
        inputs: in the order of the signature.
        output: its name and axes.
        state: its parts.
        value: the input whose type the output has, and in which it is linear if `linear`.
        functions: the forms by name: recurrent, parallel, chunked, trace.
        flops: `flops(sizes)` operations a token of the recurrent form, for one sequence.
        doc: the room's docstring; equations and glossary stand there and nowhere else.
        recurrence: its name in linviz.recurrences, or "" for a room of its own.
        options: keyword options and their defaults.
        edges: the older mechanisms it contains.
        kernel: "module:function" of the Triton form, resolved on first use.
        decode: the same for a few tokens: what `step` runs on a GPU, where no gradient is wanted.
        alone: why there is only a recurrent form, "" if there are others.
        linear: whether the output is linear in `value`: then there is an effective attention.
        derived: `derived(sizes, options, like)`: sizes that the inputs do not show; `like` has
            the type and the device of the computation.
        settle: `settle(options, sizes, like, validate)`: options that depend on sizes, made
            explicit, and checked if `validate`.
        empty: `empty(part, shape, like)`: one part of the first state; zeros if None.
        cache: the state is a cache of the inputs after the first, and keeps their types.
        check: `check(sizes)` says what is wrong with sizes that do not go together, or "".
        arrange: `arrange(inputs)` ties drawn example inputs (by name) to each other.
        moves: what happens to the state at one token, in order.
    """

    name: str
    title: str
    paper: str
    year: int
    arxiv: str
    decay: str
    inputs: tuple[Input, ...]
    output: Input
    state: tuple[Input, ...]
    value: str
    functions: Mapping[str, Callable]
    flops: Callable[[Mapping[str, int]], float]
    doc: str
    recurrence: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    edges: tuple[Edge, ...] = ()
    kernel: str | None = None
    decode: str | None = None
    alone: str = ""
    linear: bool = True
    derived: Callable[[Sizes, Mapping[str, Any], Tensor], Sizes] | None = None
    settle: Callable[[dict, Sizes, Tensor, bool], dict] | None = None
    empty: Callable[[str, tuple[int, ...], Tensor], Tensor] | None = None
    cache: bool = False
    check: Callable[[Sizes], str] | None = None
    arrange: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None
    moves: tuple[Move, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "__doc__", self.doc)
        object.__setattr__(self, "__signature__", self.recurrent.__signature__)

    def __reduce__(self) -> tuple[Callable, tuple]:
        return find, (self.name, dict(self.options))

    def __repr__(self) -> str:
        names = ", ".join(x.name for x in self.inputs)
        state = ", ".join(f"{x.name} {x.shape_text}" for x in self.state)
        options = "".join(f", {name}={value!r}" for name, value in self.options.items())
        return f"lv.{self.name}({names}{options}) with state {state}: {' '.join(self.forms)}"

    def _repr_markdown_(self) -> str:
        """Title, paper and equations, for a notebook."""
        arxiv = f", arXiv:{self.arxiv}" if self.arxiv else ""
        lines = [f"**{self.title}** ({self.paper}, {self.year}{arxiv})"]
        return "\n\n".join(lines + [f"$${x.latex} \\qquad ({x.number})$$" for x in self.equations])

    # forms

    @property
    def forms(self) -> tuple[str, ...]:
        """The names of the forms that there are."""
        torch_forms = [name for name in ("recurrent", "parallel", "chunked") if self.has(name)]
        return (*torch_forms, "triton") if self.kernel else tuple(torch_forms)

    def has(self, form: str) -> bool:
        """Whether there is a torch form of that name."""
        return form in self.functions

    @cached_property
    def recurrent(self) -> Form:
        """A loop over time: the definition."""
        return self.form("recurrent")

    @cached_property
    def parallel(self) -> Form:
        """All times at once, from a state."""
        return self.form("parallel")

    @cached_property
    def chunked(self) -> Form:
        """Chunks in parallel, states passed between them."""
        return self.form("chunked")

    @cached_property
    def triton(self) -> Form:
        """The kernel of linviz.kernels: a GPU, or Triton's interpreter without one."""
        return self.form("triton")

    @cached_property
    def step(self) -> Form:
        """One token: inputs without their time axis; a kernel on a GPU if no gradient is wanted."""
        return Form(self, "step")

    @cached_property
    def trace(self) -> Form:
        """Every named intermediate, the state after each token among them."""
        return Form(self, "trace")

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tensor, State]:
        """The best form for the device: the kernel on a GPU, chunks elsewhere."""
        otherwise = self.chunked if self.has("chunked") else self.recurrent
        run = lambda: self.triton(*args, **kwargs)
        given = (*args, *kwargs.values())
        return kernel_first(self.kernel, given, run, partial(otherwise, *args, **kwargs))

    def form(self, name: str) -> Form:
        """The form of that name; AttributeError, with the reason, where there is none."""
        if self.alone and not self.has(name):
            raise AttributeError(f"{self.name} has no {name} form: {self.alone}")
        return Form(self, name)

    def function(self, form: str) -> Callable:
        """What computes a form: (*inputs, S, **options) -> (o, S)."""
        if form in ("triton", "decode"):
            kernel = self.load_kernel() if form == "triton" else resolve(self.decode)
            return partial(self.functions["triton"], kernel) if self.recurrence else kernel
        return self.functions["recurrent" if form == "step" else form]

    def load_kernel(self) -> Callable:
        """Resolve `kernel`, or say what is missing."""
        missing = "" if self.kernel else f"{self.name} has no Triton kernel yet; "
        missing += f"lv.{self.name}.chunked computes the same"
        if importlib.util.find_spec("triton") is None:
            raise ImportError(
                f"lv.{self.name}.triton needs Triton, which is not installed: "
                f"pip install -c constraints.txt triton (Linux only); {missing}"
            )
        if self.kernel is None:
            raise ValueError(f"lv.{self.name}.triton: {missing}")
        return resolve(self.kernel)

    def explain(self, form: str) -> str:
        """The docstring of a form."""
        what = inspect.getdoc(getattr(type(self), form))
        specs = [
            (x.without_time, "_t" * x.timed) if form == "step" else (x, "") for x in self.inputs
        ]
        takes = "\n".join(f"    {x.name}{suffix}: {x.shape_text}" for x, suffix in specs)
        state = ", ".join(f"{x.name} {x.shape_text}" for x in self.state)
        return f"{self.title}. {what}\n\nArgs:\n{takes}\n    S: {state}, or None for the first.\n"

    def having(self, **options: Any) -> "Mechanism":
        """The same mechanism with other options."""
        unknown = set(options) - set(self.options)
        if unknown:
            known = ", ".join(self.options) or "no options"
            raise ValueError(f"lv.{self.name}.having: {unknown.pop()!r} is not one of {known}")
        return replace(self, options={**self.options, **options})

    # sizes, states, values

    @property
    def value_index(self) -> int:
        """The place of `value` among the inputs."""
        return [x.name for x in self.inputs].index(self.value)

    def sizes(
        self,
        inputs: Sequence[Any],
        S: Any,
        options: Mapping[str, Any],
        where: str,
        one_token: bool = False,
    ) -> Sizes:
        """All sizes by letter, after checking shapes, types and devices of inputs and state.

        With `one_token` the inputs come without their time axis.
        """
        sizes: Sizes = {"T": 1} if one_token else {}
        owners: dict[str, str] = {}
        for x, spec in zip_specs(self, inputs):
            spec = spec.without_time if one_token else spec
            spec.measure(x, sizes, owners, where)
        if self.check and (wrong := self.check(sizes)):
            raise ValueError(f"{where}: {wrong}")
        if self.derived:
            like = torch.empty((), dtype=wide_type(*inputs), device=inputs[0].device)
            extra = self.derived(sizes, {**self.options, **options}, like)
            sizes |= extra
            owners |= dict.fromkeys(extra, "the options")
        parts = self.parts(S, where)
        for spec, x in zip(self.state, parts, strict=bool(parts)):
            spec.measure(x, sizes, owners, f"{where}: S")
        for spec, x in zip((*self.inputs, *self.state), (*inputs, *parts), strict=False):
            if x.device != inputs[0].device:
                first = f"{self.inputs[0].name} is on {inputs[0].device}"
                raise ValueError(f"{where}: {spec.name} is on {x.device}, but {first}")
        return sizes

    def parts(self, S: Any, where: str) -> tuple[Any, ...]:
        """The parts of a state; none for S=None."""
        if S is None:
            return ()
        parts = tuple(S) if isinstance(S, tuple | list) else (S,)
        if len(parts) != len(self.state):
            wanted = ", ".join(f"{x.name} {x.shape_text}" for x in self.state)
            raise ValueError(f"{where}: S must be ({wanted}), got {len(parts)} part(s)")
        return parts

    def initial_state(
        self, sizes: Sizes, kind: torch.dtype, inputs: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """The parts of the state that S=None stands for."""
        sizes = {"S": 0, **sizes}
        rotating = any(x.is_complex() for x in inputs)
        like = inputs[0].new_empty((), dtype=kind)
        parts = []
        for part in self.state:
            x = like.to(kind.to_complex()) if part.complex and rotating else like
            shape = part.shape(sizes)
            parts.append(self.empty(part.name, shape, x) if self.empty else x.new_zeros(shape))
        return tuple(parts)

    def settled(
        self, options: dict, sizes: Sizes, inputs: Sequence[Tensor], validate: bool
    ) -> dict:
        """Options with those made explicit that depend on sizes."""
        if not self.settle:
            return options
        return self.settle(options, sizes, inputs[self.value_index], validate)

    def named(self, result: dict[str, Any], inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        """What a trace function returned, under the mechanism's own names."""
        given = {spec.name: x for x, spec in zip_specs(self, inputs)}
        S, o = result.pop("S"), result.pop("o")
        parts = (S,) if isinstance(S, Tensor) else S
        states = {x.name: part for x, part in zip(self.state, parts, strict=True)}
        return given | result | given | {self.output.name: o} | states

    def example(
        self,
        T: int = EXAMPLE_SIZES["T"],
        seed: int = 0,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        **sizes: int,
    ) -> tuple[Tensor, ...]:
        """Valid inputs in the order of the signature.

        Args:
            T: tokens.
            seed: of the random numbers; the same seed gives the same numbers on every device.
            dtype: floating-point type.
            device: where the tensors go.
            sizes: by the room's letters: B, H, K, V, N, P, G, D.
        """
        if not dtype.is_floating_point:
            raise ValueError(f"lv.{self.name}.example: dtype must be floating-point, got {dtype}")
        sizes = self.all_sizes({"T": T, **sizes}, "example")
        rng = torch.Generator().manual_seed(seed)
        drawn = {x.name: x.example(sizes, rng) for x in self.inputs}
        drawn = self.arrange(drawn) if self.arrange else drawn
        return tuple(widen(x, dtype).to(device) for x in drawn.values())

    def state_size(self, **sizes: int) -> int:
        """Numbers in the state of one sequence; sizes by letter, those of `example` by default."""
        sizes = self.all_sizes({**sizes, "B": 1}, "state_size")
        complex_parts = any(x.complex for x in self.inputs)
        return sum(prod(x.shape(sizes)) << (x.complex and complex_parts) for x in self.state)

    def all_sizes(self, sizes: Mapping[str, int], where: str) -> Sizes:
        """Sizes by letter, filled up with those of an example."""
        known = {letter for x in self.inputs for _, letter in x.letters}
        where = f"lv.{self.name}.{where}"
        for letter in sizes:
            if letter not in known:
                raise ValueError(f"{where}: {letter!r} is not one of {', '.join(sorted(known))}")
        sizes = {x: whole_number(x, n, where, least=0) for x, n in sizes.items()}
        sizes = {**EXAMPLE_SIZES, **sizes}
        sizes["S"] = sizes["T"]  # tokens in a cache
        if self.check and (wrong := self.check(sizes)):
            raise ValueError(f"{where}: {wrong}")
        extra = self.derived(sizes, self.options, torch.empty(())) if self.derived else {}
        return {**sizes, **extra}

    # what stands in the docstring

    @cached_property
    def equations(self) -> tuple[Equation, ...]:
        """The numbered equations of the room's docstring."""
        return read_equations(self.doc)

    @cached_property
    def glossary(self) -> tuple[Symbol, ...]:
        """The glossary of the room's docstring."""
        return read_glossary(self.doc)

    # effective attention

    def attention_map(
        self,
        *inputs: Tensor,
        rows: Any = None,
        heads: Any = None,
        channels: Any = None,
        **options: Any,
    ) -> Tensor:
        """The effective attention: the matrix A with o = A v, exact.

        The output is linear in the values, so the mechanism itself is run with the identity for
        values: row t of the result is what each earlier token contributes to o_t.

        Args:
            inputs: as for every form (the values are only looked at for their shape).
            rows: readers t to keep, as whole numbers; all by default.
            heads: heads to keep, where there are heads.
            channels: channels to keep, where every channel has a matrix of its own (Mamba, S4).
            options: of the mechanism. The map is that from an empty state.

        Returns:
            [B, H, T, T], or [B, D, T, T] where each channel has its own; [.., rows, T] if thinned.

        Raises:
            ValueError: no effective attention (not linear), or more than ATTENTION_BYTES.
        """
        where = f"lv.{self.name}.attention_map"
        if not self.linear:
            raise ValueError(f"{where}: the output of {self.name} is not linear in {self.value}")
        inputs, S, options = self.recurrent.bind(inputs, options)
        if S is not None:
            raise ValueError(f"{where}: S must be left out: the map is that from an empty state")
        sizes = self.sizes(inputs, None, options, where)
        options = self.settled(options, sizes, inputs, bool(options["validate"]))
        letter, keep, other = ("H", heads, channels) if "H" in sizes else ("D", channels, heads)
        if other is not None:
            axis = "heads" if letter == "H" else "channels"
            raise ValueError(f"{where}: {self.name} has one matrix for each of its {axis}")
        if keep is not None:
            keep = in_range(keep, sizes[letter], "heads" if letter == "H" else "channels", where)
            if any(callable(x) for x in options.values()):  # it may treat heads differently
                whole = self.attention_map(*inputs, rows=rows, **options)
                return whole[:, keep]
            inputs = [thin(x, spec, letter, keep, sizes) for x, spec in zip_specs(self, inputs)]
            options = {n: thin_option(x, sizes[letter], keep) for n, x in options.items()}
            sizes = self.sizes(inputs, None, options, where)
        T = sizes["T"]
        rows = in_range(range(T) if rows is None else rows, T, "rows", where)
        value = inputs[self.value_index]
        kind = torch.promote_types(value.dtype, torch.float32)
        need = sizes["B"] * sizes[letter] * len(rows) * T * kind.itemsize
        if need > ATTENTION_BYTES:
            raise ValueError(
                f"{where}: the matrices take {need / 2**20:,.0f} MiB, more than "
                f"{ATTENTION_BYTES / 2**20:,.0f}; keep fewer by rows=, "
                f"{'heads=' if letter == 'H' else 'channels='} or a shorter T"
            )
        A = value.new_empty(sizes["B"], sizes[letter], len(rows), T, dtype=kind)
        if not A.numel():
            return A
        column = sizes["B"] * sizes[letter] * T * kind.itemsize
        if letter == "D":  # every column is a sequence of its own, with its states
            column *= 8 + 2 * sizes.get("N", 4)
        width = max(1, WORKING_BYTES // column)
        run = self.chunked if self.has("chunked") else self.recurrent
        for j in range(0, T, width):
            columns = torch.eye(T, dtype=kind, device=value.device)[:, j : j + width]  # [T, w]
            if letter == "H":  # [B, T, H, w]: as many value channels as columns
                replaced = columns[:, None].expand(sizes["B"], T, sizes["H"], -1)
                batch = [*inputs]
            else:  # [w B, T, D]: as many sequences as columns
                replaced = columns.T[:, None, :, None].expand(-1, sizes["B"], T, sizes["D"])
                replaced = replaced.flatten(0, 1)
                batch = [repeat(x, spec, columns.shape[1]) for x, spec in zip_specs(self, inputs)]
            batch[self.value_index] = replaced
            o = run(*batch, **options)[0][:, rows]
            if letter == "H":
                A[..., j : j + width] = o.permute(0, 2, 1, 3)
            else:
                o = o.unflatten(0, (-1, sizes["B"]))  # [w, B, rows, D]
                A[..., j : j + width] = o.permute(1, 3, 2, 0)
        return A


def resolve(kernel: str) -> Callable:
    """The function "module:function"."""
    module, _, name = kernel.partition(":")
    return getattr(importlib.import_module(module), name)


def zip_specs(m: Mechanism, inputs: Sequence[Any]) -> zip:
    """Each input with its spec."""
    return zip(inputs, m.inputs, strict=True)


def in_range(keep: Any, size: int, name: str, where: str) -> list[int]:
    """Indices as a list, refused if they are not whole numbers in [0, size)."""
    given = keep
    try:
        keep = keep.tolist() if isinstance(keep, Tensor) else list(keep)
        keep = [-1 if isinstance(i, bool) else operator.index(i) for i in keep]
    except TypeError:
        keep = [-1]
    if any(not 0 <= i < size for i in keep):
        raise ValueError(f"{where}: {name} must be whole numbers in [0, {size}), got {given!r}")
    return keep


def thin(x: Tensor, spec: Input, letter: str, keep: list[int], sizes: Sizes) -> Tensor:
    """Keep some heads or channels of an input; a group is repeated for each head kept of it."""
    for axis, (_, name) in enumerate(spec.letters):
        if name == letter:
            return x[(slice(None),) * axis + (keep,)]
        if name == "G" and letter == "H":
            group = [i * sizes["G"] // sizes["H"] for i in keep]
            return x[(slice(None),) * axis + (group,)]
    return x


def thin_option(x: Any, size: int, keep: list[int]) -> Any:
    """Keep some heads of an option that has one value a head."""
    return x[keep] if isinstance(x, Tensor) and x.shape == (size,) else x


def repeat(x: Tensor, spec: Input, times: int) -> Tensor:
    """An input for `times` copies of its batch."""
    return x.repeat(times, *(1,) * (x.ndim - 1)) if spec.axes.startswith("b") else x


def find(name: str, options: dict[str, Any]) -> Mechanism:
    """The registry's mechanism of that name, with these options: how a pickled one comes back."""
    mechanism = importlib.import_module("linviz.mechanisms").REGISTRY[name]
    return mechanism if options == mechanism.options else mechanism.having(**options)


class Registry(tuple[Mechanism, ...]):
    """All mechanisms in the order of the course; registry["gla"] finds one by name."""

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return super().__getitem__(key)
        for mechanism in self:
            if mechanism.name == key:
                return mechanism
        raise KeyError(f"{key!r} is not one of {', '.join(self.names)}")

    @property
    def names(self) -> tuple[str, ...]:
        """The names, in order."""
        return tuple(mechanism.name for mechanism in self)
