"""Moves: what happens to a mechanism's state at one token, as data that can be drawn and played.

The parts of the state ride on belts. A move changes a belt, takes something from it, or works on
what earlier moves gave. The order of the moves is the order in which they happen. `replay` plays
them over the entries of a trace, so the order that a picture shows is one that computes the
mechanism's numbers.

Kinds. x is the product of what a move takes, axis by axis: equal letters are matched, as in einsum.
    On a belt S:
        decay: S becomes x S.
        write: S becomes S + x.
        erase: S becomes S - x, where x holds what an earlier move read from S.
        append: S grows by one row.
        push: a new column enters S at the front and the oldest falls out.
    From a belt S:
        read: x S, summed over `over`; twice the real part if complex (modes stand for pairs).
        score: the same over the root of the number of channels summed.
    Between them:
        multiply: x, summed over `over`.
        skip: adds x, summed over `over`, to what is there already.
        divide: the first by the sum of the others; 0 where that sum is 0.
        softmax: e^y over its sum along `over`.
        rest: 1 - x.
        sigmoid, tanh: of what is taken; with a belt S, it takes x and W, and it is that of
            x + W^T S, where whatever else is taken multiplies W^T S.

A part of the state named max is a scale that only keeps numbers small (RWKV-4): the moves act on
what num and den are at max = 0, see `unscaled`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from linviz.inputs import Input

KINDS = {
    "decay": "{belt} fades by {x}",
    "write": "{belt} takes in {x}",
    "erase": "{belt} is erased by {x}",
    "append": "{belt} grows by {x}",
    "push": "{belt} shifts in {x}",
    "read": "{belt}, read with {x}, gives {gives}",
    "score": "{belt}, compared with {x}, gives {gives}",
    "multiply": "{x} multiply to {gives}",
    "skip": "{gives} takes in {x} past the state",
    "divide": "{x} divided give {gives}",
    "softmax": "the softmax of {x} is {gives}",
    "rest": "one minus {x} is {gives}",
    "sigmoid": "{gives} is the sigmoid of {x}",
    "tanh": "{gives} is the tanh of {x}",
}
ON_BELT = ("decay", "write", "erase", "append", "push")


@dataclass(frozen=True)
class Made:
    """An entry of the trace that is neither an input nor a part of the state.

    Attributes:
        name: in the trace.
        axes: a letter an axis, "b t h k"; without "b t" it is the same for all tokens.
        of: the inputs it is made of; none if only options count.
    """

    name: str
    axes: str
    of: tuple[str, ...] = ()


class Exp:
    """E to the power of the sum of inputs.

    Attributes:
        of: the inputs' names.
    """

    def __init__(self, *of: str):
        """Name the inputs."""
        self.of = of

    def __repr__(self) -> str:
        return f"Exp{self.of}"


@dataclass(frozen=True)
class Move:
    """One thing that happens at one token.

    Attributes:
        kind: one of KINDS; what each does stands in the docstring of linviz.moves.
        label: LaTeX, found as it stands in the mechanism's equation of that number; "" where the
            sign of the move says it all.
        belt: the part of the state it acts on or takes from, "" for none.
        takes: inputs, parts of the state, options, or what earlier moves gave, by name; and
            entries that the trace holds ready, or the Exp of inputs.
        equation: its number in the room's docstring.
        gives: the names of what comes out, if that is not the belt. The output's name ends a cell;
            a belt's name replaces what was on the belt.
        over: the axes summed over, a letter each.
        part: (i, n): of what is taken, use the i-th of n equal pieces of the last axis.
        when: the option without which this move is left out.
    """

    kind: str
    label: str
    belt: str
    takes: tuple[str | Made | Exp, ...]
    equation: int
    gives: tuple[str, ...] = ()
    over: str = ""
    part: tuple[int, int] = (0, 1)
    when: str = ""

    @property
    def sources(self) -> tuple[str, ...]:
        """The names that arrows into this move come from; what is made counts as its inputs."""
        names = [(x,) if isinstance(x, str) else x.of for x in self.takes]
        return tuple(dict.fromkeys(name for group in names for name in group))

    @cached_property
    def title(self) -> str:
        """Kind, belt and label, for a panel: no two of a cell are equal."""
        what = f"${self.label}$" if self.label else ", ".join(self.sources)
        return f"{self.kind} {self.belt}".strip() + f": {what}"

    @cached_property
    def words(self) -> str:
        """The move as a clause, for readers who cannot see the picture."""
        names = [self.belt] * (self.kind in ("sigmoid", "tanh")) + [*self.sources]
        given = " and ".join(filter(None, names))
        if not given and self.kind == "read":
            return f"{self.belt} itself gives {self.gives[0]}"
        given = given or "a constant"
        return KINDS[self.kind].format(belt=self.belt, x=given, gives=" and ".join(self.gives))


# ------------------------------------------------------------------------------- playing the moves


class Named(NamedTuple):
    """A tensor and the letters of its axes."""

    x: Tensor
    letters: str


def spread(a: Named, letters: str) -> Tensor:
    """The tensor with its axes in the order of `letters`, those it lacks of length 1."""
    order = [a.letters.index(c) for c in letters if c in a.letters]
    shape = iter(a.x.permute(order).shape)
    return a.x.permute(order).reshape([next(shape) if c in a.letters else 1 for c in letters])


def product(factors: Sequence[Named], over: str = "") -> Named:
    """The product of tensors by the letters of their axes, summed over some."""
    letters = "".join(dict.fromkeys("".join(a.letters for a in factors)))
    x = prod(spread(a, letters) for a in factors)
    axes = [letters.index(c) for c in over]
    x = x.sum(axes) if axes else x
    return Named(x, "".join(c for c in letters if c not in over))


def plus(a: Named, b: Named) -> Named:
    """The sum, in the letters of the first."""
    return Named(a.x + spread(b, a.letters), a.letters)


def real(a: Named) -> Named:
    """Complex modes stand for pairs of conjugates: twice the real part."""
    return Named(2 * a.x.real, a.letters) if a.x.is_complex() else a


Taken = list[Named]


def decay(move: Move, S: Named, taken: Taken) -> Named:
    """S becomes x S."""
    return Named(S.x * spread(product(taken), S.letters), S.letters)


def write(move: Move, S: Named, taken: Taken) -> Named:
    """S becomes S + x."""
    return plus(S, product(taken))


def erase(move: Move, S: Named, taken: Taken) -> Named:
    """S becomes S - x."""
    return Named(S.x - spread(product(taken), S.letters), S.letters)


def append(move: Move, S: Named, taken: Taken) -> Named:
    """S grows by one row."""
    return Named(torch.cat([S.x, spread(taken[0], S.letters)], S.letters.index("s")), S.letters)


def push(move: Move, S: Named, taken: Taken) -> Named:
    """A new column enters at the front."""
    return Named(torch.cat([spread(taken[0], S.letters), S.x[..., :-1]], -1), S.letters)


def read(move: Move, S: Named, taken: Taken) -> Named:
    """X S, summed."""
    return real(product([S, *taken], move.over))


def score(move: Move, S: Named, taken: Taken) -> Named:
    """X S, summed, over the root of the number of channels."""
    seen = read(move, S, taken)
    return Named(seen.x / S.x.shape[S.letters.index(move.over)] ** 0.5, seen.letters)


def skip(move: Move, there: Named, taken: Taken) -> Named:
    """Adds to what is there."""
    return plus(there, product(taken, move.over))


def divide(move: Move, S: None, taken: Taken) -> Named:
    """The first by the sum of the others."""
    top, first, *others = taken
    bottom = spread(first, top.letters) + sum(spread(a, top.letters) for a in others)
    return Named(top.x / bottom.masked_fill(bottom == 0, torch.inf), top.letters)


def softmax(move: Move, S: None, taken: Taken) -> Named:
    """E^y over its sum."""
    (y,) = taken
    return Named(y.x.softmax(y.letters.index(move.over)), y.letters)


def squash(f: Callable[[Tensor], Tensor]) -> Callable[[Move, Named | None, Taken], Named]:
    """What sigmoid and tanh do."""

    def squashed(move: Move, S: Named | None, taken: Taken) -> Named:
        if S is None:
            return Named(f(product(taken).x), product(taken).letters)
        i, n = move.part
        x, W, *gates = taken
        x, W = x.x.chunk(n, -1)[i], W.x.chunk(n, -1)[i]
        return Named(f(x + product([Named(S.x @ W, S.letters), *gates]).x), S.letters)

    return squashed


PLAY: Mapping[str, Callable[..., Any]] = {
    "decay": decay,
    "write": write,
    "erase": erase,
    "append": append,
    "push": push,
    "read": read,
    "score": score,
    "multiply": lambda move, S, taken: product(taken, move.over),
    "skip": skip,
    "divide": divide,
    "softmax": softmax,
    "rest": lambda move, S, taken: Named(1 - product(taken).x, product(taken).letters),
    "sigmoid": squash(torch.sigmoid),
    "tanh": squash(torch.tanh),
}


class Replay(NamedTuple):
    """What the moves of one run gave.

    Attributes:
        output: [b, t, ...].
        belts: each part of the state after each token, [b, t, ...], as `unscaled` gives it; a cache
            after the last.
        after: for each move what it gave, [b, t, ...]: the belt as it left it, or what came out;
            rows that grow with time are filled up with NaN.
        added: for each move that writes or skips, what it added, [b, t, ...]; None for others.
    """

    output: Named
    belts: dict[str, Named]
    after: tuple[Named, ...]
    added: tuple[Named | None, ...]


def replay(trace: Any, S: Any = None, *, moves: Sequence[Move] | None = None) -> Replay:
    """Play the moves of a mechanism over the entries of a trace, token by token.

    Only inputs, options and entries made of inputs are taken from the trace; every state and the
    output are computed anew.

    Args:
        trace: of a mechanism that has moves: `lv.gla.trace(...)`.
        S: the state that the trace started from, None for the first.
        moves: those of the trace's mechanism by default, in the order in which to play them.

    Returns:
        A Replay; the letters beside each tensor name its axes.

    Raises:
        ValueError: the mechanism has no moves, or a move takes what no earlier one gave.
    """
    m, T = trace.mechanism, trace.sizes["T"]
    moves = active(m.moves if moves is None else moves, trace.options)
    if not moves or not T:
        raise ValueError(f"trace: wanted one token or more of a mechanism with moves, got {trace}")
    kind = trace[m.output.name].dtype
    start = m.parts(S, "replay") or m.initial_state(trace.sizes, kind, trace.inputs)
    belts = {x.name: Named(part, letters(x)) for x, part in zip(m.state, start, strict=True)}
    belts = unscaled(belts)
    output, path, after, added = [], [], [], []
    for t in range(T):
        values = dict(belts)
        steps = list(play(moves, values, trace, t))
        belts = {name: values[name] for name in belts}
        if m.output.name not in values:
            raise ValueError(f"moves: no move gave the output {m.output.name!r}")
        output.append(values[m.output.name])
        path.append(tuple(belts.values()))
        after.append(tuple(came for came, _ in steps))
        added.append(tuple(extra for _, extra in steps))
    ends = map(over_time, zip(*path, strict=True))
    return Replay(
        over_time(output),
        dict(zip(belts, ends, strict=True)),
        tuple(map(over_time, zip(*after, strict=True))),
        tuple(map(over_time, zip(*added, strict=True))),
    )


def unscaled(parts: Mapping[str, Named]) -> dict[str, Named]:
    """The parts of a state with the scale put back: num e^max and den e^max, and no max.

    A state without a part named max stays as it is.
    """
    if "max" not in parts:
        return dict(parts)
    scale = parts["max"].x.exp()
    return {name: Named(a.x * scale, a.letters) for name, a in parts.items() if name != "max"}


def active(moves: Sequence[Move], options: Mapping[str, Any]) -> tuple[Move, ...]:
    """The moves that these options leave."""
    return tuple(move for move in moves if not move.when or options[move.when])


def letters(x: Input | Made) -> str:
    """The letters of axes, "b t 3d" to "btd"."""
    return "".join(axis[-1] for axis in x.axes.split())


def over_time(steps: Sequence[Named | None]) -> Named | None:
    """What was seen at each token, in one tensor with time on axis 1; a cache as it ended."""
    last = steps[-1]
    if last is None or ("s" in last.letters and len(last.letters) > 3):
        return last
    xs = [a.x for a in steps]
    if "s" in last.letters:
        xs = [longer(a, last.x.shape) for a in steps]
    return Named(torch.stack(xs, 1), last.letters[0] + "t" + last.letters[1:])


def longer(a: Named, shape: Sequence[int]) -> Tensor:
    """The tensor at the start of one of that shape, NaN elsewhere."""
    x = a.x.new_full(shape, torch.nan)
    x.narrow(a.letters.index("s"), 0, a.x.shape[a.letters.index("s")]).copy_(a.x)
    return x


def play(
    moves: Sequence[Move], values: dict[str, Named], trace: Any, t: int
) -> Iterator[tuple[Named, Named | None]]:
    """The moves of one token: what each gave, and what it added; `values` is kept up to date."""
    for move in moves:
        taken = [look_up(x, values, trace, t) for x in move.takes]
        there = look_up(move.gives[0] if move.kind == "skip" else move.belt, values, trace, t)
        came = PLAY[move.kind](move, there, taken)
        values[move.gives[0] if move.gives else move.belt] = came
        extra = None
        if move.kind in ("write", "skip"):
            extra = spread(product(taken, move.over), there.letters).expand_as(there.x)
            extra = Named(extra, there.letters)
        yield came, extra


def look_up(
    take: str | Made | Exp, values: Mapping[str, Named], trace: Any, t: int
) -> Named | None:
    """What a move takes, at one token; None for no name."""
    if not take:
        return None
    if isinstance(take, Made):
        return at(trace[take.name], letters(take), t)
    if isinstance(take, Exp):
        terms = [look_up(name, values, trace, t) for name in take.of]
        most = max((a.letters for a in terms), key=len)
        return Named(sum(spread(a, most) for a in terms).exp(), most)
    if take in values:
        return values[take]
    for spec in trace.mechanism.inputs:
        if spec.name == take:
            return at(trace[take], letters(spec), t)
    if take in trace.options:
        return Named(torch.as_tensor(trace.options[take]), "")
    raise ValueError(f"moves: {take!r} is no input, and no earlier move gave it")


def at(x: Tensor, axes: str, t: int) -> Named:
    """An entry at one token; what has no time is the same at all."""
    return Named(x.select(axes.index("t"), t) if "t" in axes else x, axes.replace("t", ""))


def stations(trace: Any, *, head: int = 0, batch: int = 0) -> dict[str, Tensor]:
    """What one head's state was like after each move: decayed, erased, written, read.

    Args:
        trace: of a mechanism that has moves, from an empty state.
        head: which, where the mechanism has heads.
        batch: which sequence of the batch.

    Returns:
        Title of the move -> [t, ...]: after a decay or an erase the state, [t, k, v]; of a write
        what was written; of a read what was read, [t, v]; of an append the cache as it ended.
    """
    played, found = replay(trace), {}
    moves = active(trace.mechanism.moves, trace.options)
    for move, after, added in zip(moves, played.after, played.added, strict=True):
        seen = after if added is None else added
        for letter, i, size in (("b", batch, "B"), ("h", head, "H")):
            if letter in seen.letters:
                if not 0 <= i < trace.sizes[size]:
                    name = "batch" if letter == "b" else "head"
                    raise ValueError(f"{name}: wanted 0 to {trace.sizes[size] - 1}, got {i}")
                x = seen.x.select(seen.letters.index(letter), i)
                seen = Named(x, seen.letters.replace(letter, ""))
        found[move.title] = seen.x
    return found
