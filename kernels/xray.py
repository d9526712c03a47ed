"""The X-ray: what the compiler made of each kernel, seen without a GPU.

    xray -> a process of its own (xray_compile) -> rows -> a table, JSON, or the compiled text

The process has TRITON_INTERPRET=0, because in this one the kernels may be interpreted already. It
records what the wrappers launch, and compiles it ahead of time for each target. Here its answers
become rows: what fits on a multiprocessor, and how fast a launch can be at best.
"""

import argparse
import dataclasses
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from tqdm import tqdm


class Machine(NamedTuple):
    """What a target's multiprocessor holds, and what its whole chip does in a second.

    Attributes:
        name: of the GPU.
        processors: multiprocessors of the chip.
        shared: bytes of shared memory of a multiprocessor.
        bandwidth: bytes a second to and from memory.
        peak: floating-point operations a second, products of bfloat16.
        source: where the last two come from.
    """

    name: str
    processors: int
    shared: int
    bandwidth: float
    peak: float
    source: str


class Shape(NamedTuple):
    """Sizes of a launch, in the letters of the notation."""

    B: int
    T: int
    H: int
    K: int
    V: int


class Bound(NamedTuple):
    """The least time of a launch in milliseconds, and what sets it: "bytes" or "flops"."""

    ms: float
    by: str


MACHINES = {
    80: Machine("A100", 108, 164 * 1024, 2.0e12, 312e12, "datasheet"),
    90: Machine("H200", 132, 228 * 1024, 4.3e12, 780e12, "measured"),
    100: Machine("B200", 148, 228 * 1024, 7.7e12, 2250e12, "datasheet"),
}
REGISTERS, WARPS, PROGRAMS, COLUMNS = 65536, 64, 32, 512  # of a multiprocessor, on all targets
SHAPES = {
    "S1": Shape(1, 8192, 96, 128, 128),
    "S2": Shape(2, 16384, 16, 128, 128),
    "S3": Shape(4, 2048, 16, 128, 128),
    "S4": Shape(4, 4096, 64, 128, 128),
    "S5": Shape(8, 2048, 32, 256, 256),
    "S6": Shape(8, 1024, 8, 64, 64),
    "R1a": Shape(8, 4096, 64, 64, 64),  # RWKV's
    "R1b": Shape(8, 4096, 128, 64, 64),
    "M1a": Shape(8, 2048, 256, 16, 16),  # Mamba's, K states: 16 of its channels stand for a head
    "M1b": Shape(1, 16384, 256, 16, 16),
    "D1": Shape(64, 1, 32, 128, 128),  # a step of 64 sequences
}
INSTRUCTIONS = {
    "wgmma": r"wgmma\.mma_async",
    "mma": r"\bmma\.sync",
    "ldmatrix": r"\bldmatrix\.",
    "cp_async": r"cp\.async\.c[ag]\.",
    "tma": r"cp\.async\.bulk\.tensor",
    "tcgen05": r"tcgen05\.mma",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One kernel, in one role and configuration, compiled for one target.

    Attributes:
        kernel: its file and its name.
        role: what the wrapper launches it for.
        variant: of the recurrence: its kind of gate, or with a bonus.
        kind: the type of what comes in.
        target: compute capability, 90 for sm_90.
        config: the place in the kernel's configurations.
        settings: chunk x tile, warps, stages and channels of the configuration, in short.
        warps: of a program.
        registers: of a thread.
        spills: bytes of a thread's stack: values that found no register.
        shared: bytes of shared memory of a program.
        columns: of tensor memory of a program.
        wgmma: products of a group of warps, in the PTX.
        mma: products of one warp.
        ldmatrix: loads of a tile from shared memory.
        cp_async: copies from memory to shared memory that nobody waits for.
        tma: the same for whole tiles, by a unit of their own.
        tcgen05: products of the fifth generation of tensor cores.
        flops: of products, a token and head.
        bytes: of tensors with tokens, each once, a token and head.
        traffic: bytes of all tensors, states too, at each canonical shape with such a launch.
        error: what the compiler said; "" where it compiled.
        text: the compiled text, where it was asked for.
    """

    kernel: str
    role: str
    variant: str
    kind: str
    target: int
    config: int
    settings: str
    warps: int = 0
    registers: int = 0
    spills: int = 0
    shared: int = 0
    columns: int = 0
    wgmma: int = 0
    mma: int = 0
    ldmatrix: int = 0
    cp_async: int = 0
    tma: int = 0
    tcgen05: int = 0
    flops: float = 0.0
    bytes: float = 0.0
    traffic: dict[str, int] = dataclasses.field(default_factory=dict)
    error: str = ""
    text: str = ""

    @property
    def programs(self) -> int:
        """How many programs a multiprocessor holds at once."""
        return resident(self.registers, self.shared, self.warps, self.target, self.columns)

    @property
    def bounds(self) -> dict[str, Bound]:
        """The roofline: for each canonical shape the least time, and what sets it."""
        return {
            shape: bound(self.flops * tokens(SHAPES[shape]), moved, self.target)
            for shape, moved in self.traffic.items()
        }

    @property
    def fault(self) -> str:
        """What is wrong with it and what to do; "" if nothing is."""
        if self.error:
            return f"does not compile, fix the kernel: {self.error.strip()}"
        if self.spills:
            return f"spills {self.spills} bytes a thread: take a smaller tile or more warps"
        if not self.programs:
            return f"does not fit, {self.shared} bytes shared: take a smaller tile or fewer stages"
        return ""

    def numbers(self) -> dict[str, Any]:
        """All of it, for JSON."""
        bounds = {shape: found._asdict() for shape, found in self.bounds.items()}
        return dataclasses.asdict(self) | {"programs": self.programs, "bounds": bounds}


# --------------------------------------------------------------------------------------- measures


def resident(registers: int, shared: int, warps: int, target: int, columns: int = 0) -> int:
    """How many programs a multiprocessor holds at once.

    Args:
        registers: of a thread; a warp gets them by 256.
        shared: bytes of a program; the driver keeps 1 KiB more for each.
        warps: of a program.
        target: compute capability.
        columns: of tensor memory of a program.
    """
    if not warps:
        return 0
    for_warp = -(-32 * registers // 256) * 256
    limits = [PROGRAMS, WARPS // warps, MACHINES[target].shared // (shared + 1024)]
    limits += [REGISTERS // for_warp // warps] if registers else []
    limits += [COLUMNS // columns] if columns else []
    return min(limits)


def bound(flops: float, moved: float, target: int) -> Bound:
    """The least time for so many operations and bytes."""
    machine = MACHINES[target]
    times = {"bytes": moved / machine.bandwidth, "flops": flops / machine.peak}
    by = max(times, key=times.get)
    return Bound(1e3 * times[by], by)


def tokens(shape: Shape) -> int:
    """Tokens times heads times sequences."""
    return shape.B * shape.T * shape.H


def instructions(ptx: str) -> dict[str, int]:
    """How often each of INSTRUCTIONS stands in the PTX."""
    return {name: len(re.findall(pattern, ptx)) for name, pattern in INSTRUCTIONS.items()}


def usage(text: str) -> dict[str, int]:
    """Registers and spills, from what `cuobjdump -res-usage` says."""
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if not found:
        raise ValueError(f"cuobjdump names no registers: {text.strip()}")
    return {"registers": int(found[1]), "spills": int(found[2])}


def products(ttir: str) -> int:
    """Floating-point operations of the matrix products, each 2 M N K, as they stand in the TTIR."""
    sizes = re.findall(r"tt\.dot\b.*: tensor<(\d+)x(\d+)x\w+> \* tensor<\d+x(\d+)x", ttir)
    return sum(2 * int(m) * int(k) * int(n) for m, k, n in sizes)


# ---------------------------------------------------------------------------------------- the rows


def xray(
    name: str | None = None,
    target: int | None = None,
    *,
    config: int | None = None,
    role: str | None = None,
    variant: str | None = None,
    kind: str | None = None,
    text: str | None = None,
) -> list[Row]:
    """Compile kernels without a GPU, and look at what came out.

    Args:
        name: a recurrence (scalar_decay), a kernel (sweep), or both (scalar_decay.sweep); None
            takes all.
        target: compute capability (90 for sm_90); None takes those of each configuration.
        config: the place in the kernel's configurations.
        role: such as forward or dq.
        variant: such as data or bonus.
        kind: bf16 or fp32.
        text: ttgir or ptx: the row has the compiled text too; for one row only.

    Returns:
        A row for each kernel, role, variant, configuration and target.

    Raises:
        ValueError: nothing has this name, or the text of several rows is asked for.
    """
    wanted = {"name": name, "target": target, "config": config, "role": role}
    wanted |= {"variant": variant, "kind": kind, "text": text}
    answers = answer(wanted)
    first = next(answers)
    if "refused" in first:
        raise ValueError(first["refused"])
    bar = tqdm(answers, "compile", first["total"], unit="kernel", disable=None, leave=False)
    return [Row(**found) for found in bar]


def answer(wanted: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What the process that compiles says: how many rows come, or why none; then the rows."""
    command = [sys.executable, "-m", "linviz.kernels.xray_compile", json.dumps(wanted)]
    env = os.environ | {"TRITON_INTERPRET": "0"}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        yield from map(json.loads, process.stdout)
    if process.returncode:
        raise RuntimeError("the process that compiles kernels failed; what it said stands above")


# ---------------------------------------------------------------------------------- for a terminal

HEAD = (
    "role,gates,sm_,configuration,regs,spill,KiB,wgmma,mma,ldm,cp,tma,tc5,n/SM,FLOP,byte,bound ms"
)
LEFT = ("role", "gates", "configuration", "bound ms")  # columns of text; the others are numbers


def table(rows: Sequence[Row]) -> str:
    """The rows as text, with a heading for each kernel."""
    names, parts = HEAD.split(","), []
    for kernel, group in itertools.groupby(rows, lambda row: row.kernel):
        lines = [names, *map(cells, group)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        places = [
            f"{{:{'<>'[name not in LEFT]}{n}}}" for name, n in zip(names, widths, strict=True)
        ]
        parts.append("\n".join([kernel, *(" ".join(places).format(*x).rstrip() for x in lines)]))
    return "\n\n".join(parts)


def cells(row: Row) -> list[str]:
    """A row of the table; the bound is that of the first canonical shape."""
    bounds = [f"{shape} {x.ms:.3f} {x.by}" for shape, x in row.bounds.items()]
    counts = (row.wgmma, row.mma, row.ldmatrix, row.cp_async, row.tma, row.tcgen05, row.programs)
    found = (row.registers, row.spills, f"{row.shared / 1024:.1f}", *counts)
    what = (row.role, row.variant, row.target, f"{row.config} {row.settings} {row.kind}")
    return [
        *map(str, (*what, *found)),
        f"{row.flops:.0f}",
        f"{row.bytes:.0f}",
        *(bounds[:1] or "-"),
    ]


def faults(rows: Sequence[Row]) -> list[str]:
    """What is wrong, a line or more each; empty if nothing is."""
    return [
        f"{row.kernel} {row.role} {row.variant} {row.kind} sm_{row.target} "
        f"config {row.config} ({row.settings}): {row.fault}"
        for row in rows
        if row.fault
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Compile, and print a table, JSON or the compiled text; 1 where something is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m linviz xray",
        description="Compile the Triton kernels without a GPU: registers, spills, instructions.",
    )
    parser.add_argument("name", nargs="?", help="scalar_decay, sweep, or scalar_decay.sweep")
    targets = [f"sm_{target}" for target in MACHINES]
    parser.add_argument("--target", choices=targets, help="of all that a configuration is for")
    parser.add_argument("--config", type=int, metavar="N", help="of the kernel's configurations")
    parser.add_argument("--role", help="such as forward or dq")
    parser.add_argument("--variant", help="such as data or bonus")
    parser.add_argument("--kind", help="bf16 or fp32")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="print the rows as JSON")
    shown.add_argument("--dump", choices=["ttgir", "ptx"], help="print the compiled text of one")
    args = parser.parse_args(argv)
    wanted = {name: getattr(args, name) for name in ("name", "config", "role", "variant", "kind")}
    try:
        target = int(args.target.removeprefix("sm_")) if args.target else None
        rows = xray(**wanted, target=target, text=args.dump)
    except ValueError as error:
        parser.error(str(error))
    wrong = faults(rows)
    if args.json:
        print(json.dumps([row.numbers() for row in rows], indent=1))
    elif args.dump:
        print(rows[0].text)
    else:
        print(table(rows))
        spilled, failed = sum(row.spills > 0 for row in rows), sum(bool(row.error) for row in rows)
        print(f"\n{len(rows) - failed} compiled, {spilled} spill, {failed} do not compile")
    for text in wrong:
        print(text, file=sys.stderr)
    return int(bool(wrong))
