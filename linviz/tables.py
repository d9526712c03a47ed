"""lv.table: all mechanisms beside each other."""

import re
from html import escape
from math import prod
from typing import Any

from linviz.mechanism import Mechanism
from linviz.mechanisms import REGISTRY

SIZES = {"T": 4096, "H": 4, "K": 64, "V": 64, "N": 16, "P": 64, "G": 1, "D": 256}
HEADER = (
    "mechanism",
    "year",
    "decay",
    "state",
    "numbers in the state",
    "forms",
    "FLOPs a token",
    "bytes a token",
)
NUMBERS = {"year", "numbers in the state", "FLOPs a token", "bytes a token"}


class Table:
    """Rows of a comparison: text in a terminal, a table in a notebook.

    Attributes:
        rows: one dictionary a mechanism, by the names of the header.
        sizes: the sizes by letter that the numbers are for.
    """

    def __init__(self, rows: list[dict[str, Any]], sizes: dict[str, int]):
        """Keep rows and sizes."""
        self.rows, self.sizes = rows, sizes

    @property
    def caption(self) -> str:
        """What the numbers are for."""
        sizes = ", ".join(f"{letter}={size}" for letter, size in self.sizes.items())
        return f"One token of the recurrent form, one sequence, float32, {sizes}"

    def cells(self) -> list[list[str]]:
        """All cells as text."""
        return [
            [
                f"{x:,}" if n > 1 and isinstance(x, int) else str(x)
                for n, x in enumerate(row.values())
            ]
            for row in self.rows
        ]

    def __repr__(self) -> str:
        rows = [list(HEADER), *self.cells()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
        lines = [
            "  ".join(
                x.rjust(w) if name in NUMBERS else x.ljust(w)
                for name, x, w in zip(HEADER, row, widths, strict=True)
            )
            for row in rows
        ]
        return "\n".join([self.caption, *(line.rstrip() for line in lines)])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{escape(name)}</th>" for name in HEADER)
        body = "".join(
            "<tr>" + "".join(map(html_cell, HEADER, row)) + "</tr>" for row in self.cells()
        )
        return f"<table><caption>{escape(self.caption)}</caption><tr>{head}</tr>{body}</table>"


def html_cell(name: str, text: str) -> str:
    """A cell of the column `name`: numbers to the right, shapes in one piece."""
    if name in NUMBERS:
        return f'<td style="text-align: right">{escape(text)}</td>'
    whole = re.sub(r"\[.*?\]", lambda shape: shape[0].replace(" ", "&nbsp;"), escape(text))
    return f"<td>{whole}</td>"


def table(**sizes: int) -> Table:
    """All mechanisms side by side: decay, state, forms, work and traffic of one token.

    FLOPs count every multiplication, addition and exponential of the recurrent form as one (an
    addition of complex numbers as two, a product as six). Bytes are those of a decoding step: the
    state read and written, the inputs of one token read, the output written; softmax reads its
    cache of T tokens and writes one.

    Args:
        sizes: by letter (T, H, K, V, N, P, G, D); see `linviz.tables.SIZES`.
    """
    unknown = set(sizes) - set(SIZES)
    if unknown:
        raise ValueError(f"lv.table: {unknown.pop()!r} is not one of {', '.join(SIZES)}")
    sizes = {**SIZES, **sizes}
    return Table([row(m, sizes) for m in REGISTRY], sizes)


def row(m: Mechanism, sizes: dict[str, int]) -> dict[str, Any]:
    """One line of the table."""
    letters = {letter for x in m.inputs for _, letter in x.letters} & set(sizes)
    known = m.all_sizes({x: sizes[x] for x in letters}, "table")
    state = m.state_size(**{x: sizes[x] for x in letters})
    parts = ", ".join(f"{x.name} {x.shape_text}" for x in m.state)
    values = (
        m.name,
        m.year,
        m.decay,
        parts,
        state,
        " ".join(m.forms),
        round(m.flops(known)),
        bytes_a_token(m, known, state),
    )
    return dict(zip(HEADER, values, strict=True))


def bytes_a_token(m: Mechanism, sizes: dict[str, int], state: int) -> int:
    """Float32 bytes moved by one step: state, inputs that belong to the token, output."""
    one = {**sizes, "B": 1, "T": 1}
    token = sum(prod(x.shape(one)) for x in (*m.inputs, m.output) if x.timed)
    moved = state + state // max(sizes["T"], 1) if m.cache else 2 * state
    return 4 * (moved + token)
