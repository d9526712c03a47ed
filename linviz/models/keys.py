"""Which of their tensors is which of ours: tables of names, read in both directions.

A row names tensors of both sides and the changes between them, each of which can be taken back.
Rows whose parameters a model does not have (a bias, a convolution) fall out by themselves.
"""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from linviz.models.lm import Config

Options = Mapping[str, Any]  # of a layer or an mlp
Tensors = Sequence[Tensor]


@runtime_checkable
class Change(Protocol):
    """A change of tensors that can be taken back."""

    def read(self, xs: Tensors, o: Options) -> Tensors:
        """Theirs -> ours."""

    def write(self, xs: Tensors, o: Options) -> Tensors:
        """Ours -> theirs."""


@dataclass(frozen=True)
class Squeeze:
    """Theirs have an axis of size 1 that ours do not have."""

    axis: int

    def read(self, xs: Tensors, o: Options) -> Tensors:
        """Without it."""
        return [x.squeeze(self.axis) for x in xs]

    def write(self, xs: Tensors, o: Options) -> Tensors:
        """With it."""
        return [x.unsqueeze(self.axis) for x in xs]


@dataclass(frozen=True)
class Groups:
    """Their first axis is two of ours: the groups, and what is in a group."""

    option: str  # the layer's number of groups

    def read(self, xs: Tensors, o: Options) -> Tensors:
        """One axis -> two."""
        return [x.unflatten(0, (o[self.option], -1)) for x in xs]

    def write(self, xs: Tensors, o: Options) -> Tensors:
        """Two axes -> one."""
        return [x.flatten(0, 1) for x in xs]


@dataclass(frozen=True)
class Cut:
    """Theirs is one tensor: groups of rows, and in each group some rows of each of ours."""

    sizes: Callable[[Options], tuple[int, list[int]]]  # number of groups, rows of each of ours

    def read(self, xs: Tensors, o: Options) -> Tensors:
        """One -> several."""
        groups, sizes = self.sizes(o)
        return [x.flatten(0, 1) for x in xs[0].unflatten(0, (groups, -1)).split(sizes, 1)]

    def write(self, xs: Tensors, o: Options) -> Tensors:
        """Several -> one."""
        groups, _ = self.sizes(o)
        return [torch.cat([x.unflatten(0, (groups, -1)) for x in xs], 1).flatten(0, 1)]


class Stack:
    """Theirs are several tensors, which lie along the first axis of ours."""

    def read(self, xs: Tensors, o: Options) -> Tensors:
        """Several -> one."""
        return [torch.stack(list(xs))]

    def write(self, xs: Tensors, o: Options) -> Tensors:
        """One -> several."""
        return xs[0].unbind()


class Halves:
    """Theirs is one tensor, ours are the halves of its second axis."""

    def read(self, xs: Tensors, o: Options) -> Tensors:
        """One -> two."""
        return xs[0].chunk(2, 1)

    def write(self, xs: Tensors, o: Options) -> Tensors:
        """Two -> one."""
        return [torch.cat(list(xs), 1)]


@dataclass(frozen=True)
class Row:
    """Which of their tensors is which of ours.

    Attributes:
        theirs: a name; with {e} in it, one for each expert.
        ours: one name or more.
        how: what is done with theirs, in this order, to get ours.
    """

    theirs: str
    ours: tuple[str, ...]
    how: tuple[Change, ...] = ()


def row(theirs: str, ours: str = "", *how: Change) -> Row:
    """A row; `ours` are names with spaces between them, or empty for the same name as theirs."""
    return Row(theirs, tuple(ours.split()) or (theirs,), how)


@dataclass(frozen=True)
class Pair:
    """A row in its place in one model."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    how: tuple[Change, ...]
    options: Options

    def read(self, get: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """Our tensors by name, from theirs by name."""
        xs: Tensors = [get(name) for name in self.theirs]
        for change in self.how:
            xs = change.read(xs, self.options)
        return dict(zip(self.ours, xs, strict=True))

    def write(self, get: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """Their tensors by name, from ours by name."""
        xs: Tensors = [get(name) for name in self.ours]
        for change in reversed(self.how):
            xs = change.write(xs, self.options)
        return dict(zip(self.theirs, xs, strict=True))


@dataclass(frozen=True)
class Table:
    """All rows of a format.

    Attributes:
        within: what their names in block {i} begin with.
        outer: rows outside of the blocks.
        block: rows in every block; theirs after `within`, ours after "blocks.{i}.".
        mixers: rows by the kind of layer; ours after "blocks.{i}.mixer.".
        mlps: rows by the kind of mlp; ours after "blocks.{i}.mlp.".
    """

    within: str
    outer: tuple[Row, ...]
    block: tuple[Row, ...]
    mixers: Mapping[str, tuple[Row, ...]]
    mlps: Mapping[str, tuple[Row, ...]] = field(default_factory=dict)

    def pairs(self, config: Config, known: Container[str]) -> Iterator[Pair]:
        """The rows of one model, without those whose parameters are not among the known."""
        placed: list[tuple[str, str, Row, Options]] = [("", "", r, {}) for r in self.outer]
        for i, (kind, mlp) in enumerate(zip(config.layers, config.mlps, strict=True)):
            theirs, ours = self.within.replace("{i}", str(i)), f"blocks.{i}."
            placed += [(theirs, ours, r, {}) for r in self.block]
            for part, table, name, options in (
                ("mixer.", self.mixers, kind, config.options),
                ("mlp.", self.mlps, mlp, config.mlp_options),
            ):
                o = options.get(name, {})
                placed += [(theirs, ours + part, r, o) for r in table.get(name, ())]
        for theirs, ours, r, o in placed:
            if all(ours + name in known for name in r.ours):
                names = [r.theirs]
                if "{e}" in r.theirs:
                    names = [r.theirs.replace("{e}", str(e)) for e in range(o["experts"])]
                mine = tuple(ours + name for name in r.ours)
                yield Pair(tuple(theirs + name for name in names), mine, r.how, o)

    def renamed(self, old: str, new: str) -> "Table":
        """The same format with another word in their names, outside of the blocks or in mixers."""

        def rename(rows: tuple[Row, ...]) -> tuple[Row, ...]:
            return tuple(replace(r, theirs=r.theirs.replace(old, new)) for r in rows)

        mixers = {kind: rename(rows) for kind, rows in self.mixers.items()}
        return replace(self, outer=rename(self.outer), mixers=mixers)
