"""python -m linviz bench gpu: the kernels and other people's, on one GPU, at published shapes.

What is timed: the forward pass, and both passes together. `eager` is the median of calls from
Python, `graph` that of the same work replayed as a CUDA graph; the L2 cache is emptied before every
call. Inputs are random, in bfloat16; gates of a head, steps and parameters are float32.

Every output, and every gradient that belongs to one head, is compared with the chunked form in
float64, from the same rounded inputs: the last sequence, its first heads, all tokens.

The floor is the time that a copy takes for the bytes that must move: inputs once, output once; in
the backward pass inputs and the output's gradient once, gradients once.
"""

import argparse
import gc
import importlib
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

import linviz as lv
from linviz.bench import processor, save, versions
from linviz.inputs import Input, Sizes, log_gate
from linviz.mechanism import Mechanism
from linviz.recurrences import scalar_decay

SHAPES: dict[str, Sizes] = {
    name: dict(zip(letters, sizes, strict=True))
    for name, letters, sizes in (
        ("S1", "BTHKV", (1, 8192, 96, 128, 128)),
        ("S2", "BTHKV", (2, 16384, 16, 128, 128)),
        ("S3", "BTHKV", (4, 2048, 16, 128, 128)),
        ("S4", "BTHKV", (4, 4096, 64, 128, 128)),
        ("S5", "BTHKV", (8, 2048, 32, 256, 256)),
        ("S6", "BTHKV", (8, 1024, 8, 64, 64)),
        ("M2a", "BTHPNG", (8, 2048, 80, 64, 128, 1)),
        ("M2a-8k", "BTHPNG", (8, 8192, 80, 64, 128, 1)),
        ("M2b", "BTHPNG", (1, 65536, 128, 64, 128, 1)),
        ("M1", "BTDN", (8, 2048, 4096, 16)),
        ("M1-16k", "BTDN", (1, 16384, 4096, 16)),
        ("R1", "BTHKV", (8, 4096, 64, 64, 64)),
        ("R1-128", "BTHKV", (8, 4096, 128, 64, 64)),
        ("R4", "BTD", (8, 4096, 4096)),
        ("G1", "BTHKV", (1, 8192, 32, 128, 128)),
        ("G2", "BTHKV", (1, 32768, 32, 128, 128)),
        ("G3", "BTHKV", (4, 8192, 32, 128, 128)),
        ("D1", "BTHKV", (1, 1, 32, 128, 128)),
        ("D64", "BTHKV", (64, 1, 32, 128, 128)),
        ("D128", "BTHKV", (128, 1, 32, 128, 128)),
    )
}
TINY = {"B": 2, "T": 20, "H": 2, "K": 16, "V": 16, "P": 16, "N": 16, "D": 16}  # at most, if dry
HEADS = 2  # or channels, whose numbers are checked
COPY = 4.3e12  # bytes a second that an H200 copies, read and written; a run measures its own
LIMITS = {"output": 5e-3, "gradient": 8e-3, "gate": 2e-2}  # relative errors allowed to us
WRONG = 5e-2  # a peer with a greater error computes something else: it is not compared with


# ------------------------------------------------------------------------------ what is measured


class Case(NamedTuple):
    """Something to compute.

    Attributes:
        inputs: what it takes.
        output: what it gives.
        ours: the kernel, `ours(*inputs) -> (o, S)`.
        exact: the chunked form, with the same arguments.
        shapes: names of SHAPES.
        written: what it gives beside its output, where that is much.
        passes: what is measured.
    """

    inputs: tuple[Input, ...]
    output: Input
    ours: Callable
    exact: Callable
    shapes: tuple[str, ...]
    written: tuple[Input, ...] = ()
    passes: tuple[str, ...] = ("forward", "backward")


def kernel(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The kernel of scalar_decay as it is: no features, no normaliser, no skip."""
    return importlib.import_module("linviz.kernels.scalar_decay").chunked(q, k, v, g)


def exact(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What `kernel` should give."""
    return scalar_decay.chunked(q, k, v, g)


def whole(m: Mechanism, shapes: tuple[str, ...]) -> Case:
    """A mechanism as people call it."""
    return Case(m.inputs, m.output, m.triton, m.chunked, shapes)


def one_step(m: Mechanism) -> Case:
    """A token from a state, by the kernel for decoding."""
    ours = lambda *inputs: m.function("decode")(*inputs[:-1], S=inputs[-1])
    exact = lambda *inputs: m.chunked(*inputs[:-1], S=inputs[-1])
    inputs, shapes = (*m.inputs, *m.state), ("D1", "D64", "D128")
    return Case(inputs, m.output, ours, exact, shapes, m.state, ("forward",))


SQUARE = tuple(name for name in SHAPES if name.startswith("S"))  # K = V
DELTA = (*SQUARE, "G1", "G2", "G3")
QKV, O = lv.retnet.inputs, lv.retnet.output
GATE = Input("g", "b t h", high=0.0, draw=log_gate)
CASES: dict[str, Case] = {
    "linear_attention_core": Case(QKV, O, kernel, exact, SQUARE),
    "retnet": whole(lv.retnet, SQUARE),
    "mamba2_core": Case((*QKV, GATE), O, kernel, exact, SQUARE),
    "mamba2": whole(lv.mamba2, ("M2a", "M2a-8k", "M2b")),
    "mamba": whole(lv.mamba, ("M1", "M1-16k")),
    "gla": whole(lv.gla, SQUARE),
    "deltanet": whole(lv.deltanet, DELTA),
    "gated_deltanet": whole(lv.gated_deltanet, DELTA),
    "kda": whole(lv.kda, DELTA),
    "rwkv6": whole(lv.rwkv6, ("R1", "R1-128")),
    "rwkv5": whole(lv.rwkv5, ("R1", "R1-128")),
    "rwkv7": whole(lv.rwkv7, ("R1", "R1-128")),
    "rwkv4": whole(lv.rwkv4, ("R4",)),
    "gla_step": one_step(lv.gla),
    "gated_deltanet_step": one_step(lv.gated_deltanet),
    "rwkv7_step": one_step(lv.rwkv7),
}


class Peer(NamedTuple):
    """Other people's function for a case.

    Attributes:
        name: as the table calls it; the package comes first.
        module: where the function is.
        call: `call(function, *inputs) -> (o, state)`.
        prepare: turns the inputs, outside the timing, into those that `call` takes.
        same: whether it computes the same.
    """

    name: str
    module: str
    call: Callable
    prepare: Callable = lambda *inputs: inputs
    same: bool = True

    @property
    def function(self) -> Callable | None:
        """The function itself; ours has no module."""
        if not self.module:
            return None
        return getattr(importlib.import_module(self.module), self.name.split()[1])


def fla(op: str, name: str, prepare: Callable = Peer._field_defaults["prepare"], **more) -> Peer:
    """A function of flash-linear-attention: q is not scaled, and the last state is wanted."""
    options = {"scale": 1.0, "output_final_state": True} | more
    call = lambda function, *inputs: function(*inputs, **options)
    return Peer(f"fla {name}", f"fla.ops.{op}", call, prepare)


def fla_named(op: str, name: str, names: str) -> Peer:
    """A function of fla that calls its inputs by these names, which are not in our order."""
    options = {"scale": 1.0, "output_final_state": True}
    call = lambda function, *x: function(**dict(zip(names.split(), x, strict=True)), **options)
    return Peer(f"fla {name}", f"fla.ops.{op}", call)


def fla_mamba2(function, x, dt, A, B, C, D):
    """Mamba-2 around fla's kernel, which wants B and C for every head."""
    q, k = (z.expand(-1, -1, x.shape[2], -1) for z in (C, B))  # G = 1
    v = (dt[..., None] * x).to(x.dtype)
    y, state = function(q, k, v, dt * A, scale=1.0, output_final_state=True)
    return (y + D[:, None] * x).to(x.dtype), state


def mamba_ssm(function, x, dt, A, B, C, D):
    """The layer's own call, in chunks of 256."""
    return function(x, dt, A, B, C, 256, D=D, return_final_states=True)


def selective_scan(function, x, dt, A, B, C, D):
    """Mamba's own, in CUDA; it has channels before time."""
    x, dt, B, C = (z.mT for z in (x, dt, B, C))
    y, state = function(x, dt, A, B, C, D, return_last_state=True)
    return y.mT, state


def time_last(x, dt, A, B, C, D):
    """The same numbers, as `selective_scan` wants them in memory: time last, and of one type."""
    x, dt, B, C = (z.to(x.dtype).mT.contiguous().mT for z in (x, dt, B, C))
    return x, dt, A, B, C, D


def softmax(function, q, k, v):
    """Softmax attention, which is another function: the line that all of them want to stay under.

    It has heads before time.
    """
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return function(q, k, v, is_causal=True).transpose(1, 2), None


def every_token(r, k, v, w, u):
    """A decay for each token out of one for all."""
    return r, k, v, w.expand(k.shape).to(k.dtype).contiguous(), u


def from_nothing(function, w, u, k, v):
    """RWKV-4 by fla, which wants the state of an empty sum."""
    state = k.new_zeros(k.shape[0], 3, 1, k.shape[2], dtype=torch.float32)
    state[:, 2] = -1e38
    return function(w, u, k, v, state)


PEERS: dict[str, tuple[Peer, ...]] = {
    "linear_attention_core": (
        fla("linear_attn", "chunk_linear_attn", normalize=False),
        fla("linear_attn", "fused_chunk_linear_attn", normalize=False),
        Peer("torch scaled_dot_product_attention", "torch.nn.functional", softmax, same=False),
    ),
    "retnet": (
        fla("retention", "chunk_retention"),
        fla("retention", "fused_chunk_retention"),
    ),
    "mamba2_core": (
        fla("simple_gla", "chunk_simple_gla"),
        fla("simple_gla", "fused_chunk_simple_gla"),
    ),
    "mamba2": (
        Peer("fla chunk_simple_gla", "fla.ops.simple_gla", fla_mamba2),
        Peer("fla fused_chunk_simple_gla", "fla.ops.simple_gla", fla_mamba2),
        Peer("mamba_ssm mamba_chunk_scan_combined", "mamba_ssm.ops.triton.ssd_combined", mamba_ssm),
    ),
    "mamba": (
        Peer(
            "mamba_ssm selective_scan_fn",
            "mamba_ssm.ops.selective_scan_interface",
            selective_scan,
            time_last,
        ),
    ),
    "gla": (fla("gla", "chunk_gla"),),
    "deltanet": (fla("delta_rule", "chunk_delta_rule"),),
    "gated_deltanet": (fla_named("gated_delta_rule", "chunk_gated_delta_rule", "q k v beta g"),),
    "kda": (fla_named("kda", "chunk_kda", "q k v beta g"),),
    "rwkv6": (fla("rwkv6", "chunk_rwkv6"),),
    "rwkv5": (fla("rwkv6", "chunk_rwkv6", every_token),),
    "rwkv7": (fla("rwkv7", "chunk_rwkv7"),),
    "rwkv4": (  # it takes the logarithm of a decay's logarithm
        Peer(
            "fla fused_recurrent_rwkv4",
            "fla.ops.rwkv4",
            from_nothing,
            lambda w, *more: ((-w).log(), *more),
        ),
    ),
    "gla_step": (fla_named("gla", "fused_recurrent_gla", "q k v gk initial_state"),),
    "gated_deltanet_step": (
        fla_named(
            "gated_delta_rule", "fused_recurrent_gated_delta_rule", "q k v beta g initial_state"
        ),
    ),
    "rwkv7_step": (fla_named("rwkv7", "fused_recurrent_rwkv7", "r w k v a b initial_state"),),
}
PACKAGES = ("flash-linear-attention", "fla-core", "mamba-ssm", "helion")
DTYPE = "bfloat16; gates of a head, steps and parameters float32"
LEFT_OUT = {"helion": "the kernels are in its examples, which are not in the package"}


# ------------------------------------------------------------------------------------- the floor


def kind(spec: Input) -> torch.dtype:
    """The type of an input: bfloat16 for what has channels and comes with every token.

    Not for step sizes, which have channels in Mamba.
    """
    wide = len(spec.letters) == 4 or (spec.letters[-1][1] in "DN" and spec.low is None)
    return torch.bfloat16 if spec.timed and wide else torch.float32


def size(specs: Sequence[Input], sizes: Sizes) -> int:
    """Bytes of inputs or outputs."""
    return sum(math.prod(x.shape(sizes)) * kind(x).itemsize for x in specs)


def bytes_moved(case: Case, sizes: Sizes, backward: bool) -> int:
    """Bytes that must move, the states apart where they are few.

    Args:
        case: what is computed.
        sizes: by letter.
        backward: both passes together, instead of the first.
    """
    taken, given = size(case.inputs, sizes), size([case.output, *case.written], sizes)
    return 3 * taken + 2 * given if backward else taken + given


def floor(case: Case, sizes: Sizes, backward: bool = False, rate: float = COPY) -> float:
    """The milliseconds of a copy of as many bytes, at so many bytes a second."""
    return 1e3 * bytes_moved(case, sizes, backward) / rate


# ---------------------------------------------------------------------------------------- timing


class Timing:
    """How long a function takes on a device.

    Without a GPU it is called once, by the clock, and there are no graphs.
    """

    def __init__(self, device: torch.device):
        """The device is cpu or cuda."""
        self.gpu = device.type == "cuda"

    def eager(self, run: Callable) -> float:
        """Milliseconds of a call, the median."""
        if self.gpu:
            from triton.testing import do_bench

            return do_bench(run, return_mode="median")
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)

    def graph(self, run: Callable) -> float | None:
        """Milliseconds of the same work replayed as a CUDA graph; None without a GPU."""
        if not self.gpu:
            return None
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # what is made on first use cannot be made in a capture
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return self.eager(graph.replay)

    def peak(self, run: Callable) -> float | None:
        """MiB that a call takes on top of its inputs; None without a GPU."""
        if not self.gpu:
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def bandwidth(self) -> float:
        """Bytes a second that a copy moves, read and written."""
        source = torch.randn(2**28 if self.gpu else 2**16, device="cuda" if self.gpu else "cpu")
        target = torch.empty_like(source)
        return 2e3 * source.nbytes / self.eager(lambda: target.copy_(source))


# ------------------------------------------------------------------------------------- measuring


def draw(specs: Sequence[Input], sizes: Sizes, device: torch.device) -> list[Tensor]:
    """Random inputs, made on the device; always the same there."""
    rng = torch.Generator(device).manual_seed(0)
    with device:
        return [spec.example(sizes, rng).to(kind(spec)) for spec in specs]


def thin(spec: Input, x: Tensor) -> Tensor:
    """The last sequence of x, and its first heads, or channels where there are no heads."""
    keep = {"B": slice(-1, None), "H": slice(HEADS), "D": slice(HEADS)}
    return x[tuple(keep.get(letter, slice(None)) for _, letter in spec.letters)]


def checked(spec: Input) -> bool:
    """Whether each number of it, or of its gradient, belongs to one sequence and head (channel)."""
    letters = {letter for _, letter in spec.letters}
    return "B" in letters and bool(letters & {"H", "D"})


def results(
    run: Callable, inputs: Sequence[Tensor], do: Tensor, backward: bool
) -> tuple[Tensor | None, ...]:
    """The output, and in the backward pass the gradients."""
    with torch.set_grad_enabled(backward):
        o, _ = run(*inputs)
    if not backward:
        return (o,)
    return (o, *torch.autograd.grad(o, inputs, do.to(o.dtype), allow_unused=True))


def errors(case: Case, found: Sequence[Tensor], wanted: Sequence[Tensor]) -> dict[str, float]:
    """The relative error of the output and of each gradient that can be checked.

    Args:
        case: what was computed.
        found: output and gradients, whole.
        wanted: the same in float64, thinned.
    """
    specs = [case.output, *case.inputs][: len(found)]
    names = [case.output.name, *(f"d{x.name}" for x in case.inputs)]
    error = {}
    for name, spec, x, y in zip(names, specs, found, wanted, strict=False):
        if checked(spec):
            x = thin(spec, x).double()
            ratio = ((x - y).square().mean() / y.square().mean()).sqrt().item()
            error[name] = math.inf if math.isnan(ratio) else short(ratio)
    return error


def limit(case: Case, name: str) -> float:
    """The error allowed to us."""
    gates = {f"d{x.name}" for x in case.inputs if x.high == 0.0 or x.low == 0.0}
    gradient = "gate" if name in gates else "gradient"
    return LIMITS["output" if name == case.output.name else gradient]


def measure(
    name: str, sizes: Sizes, backward: bool, peers: bool, timing: Timing, device: torch.device
) -> dict[str, dict[str, Any]]:
    """Ours and each peer: milliseconds, memory, errors, or what it raised."""
    case = CASES[name]
    inputs = draw(case.inputs, sizes, device)
    (do,) = draw([case.output], sizes, device)
    slices = [thin(x, y).double() for x, y in zip(case.inputs, inputs, strict=True)]
    slices = [x.requires_grad_(backward) for x in slices]
    wanted = results(case.exact, slices, thin(case.output, do).double(), backward)
    wanted = [None if x is None else x.detach() for x in wanted]
    entrants = [Peer("linviz", "", lambda _, *given: case.ours(*given))]
    entrants += [x for x in PEERS[name] if peers and find_spec(x.module.split(".")[0])]
    return {x.name: enter(x, case, inputs, do, wanted, backward, timing) for x in entrants}


def enter(
    entrant: Peer,
    case: Case,
    inputs: Sequence[Tensor],
    do: Tensor,
    wanted: Sequence[Tensor | None],
    backward: bool,
    timing: Timing,
) -> dict[str, Any]:
    """One entrant's milliseconds, memory and errors; what it raised is a result too."""
    row = {}
    try:
        function = entrant.function
        given = [x.detach().requires_grad_(backward) for x in entrant.prepare(*inputs)]
        run = lambda: results(lambda *x: entrant.call(function, *x), given, do, backward)
        row["errors"] = errors(case, run(), wanted) if entrant.same else {}
        row |= {"eager_ms": short(timing.eager(run)), "peak_mib": short(timing.peak(run))}
        row["graph_ms"] = short(timing.graph(run))
    except Exception as error:
        row["raised"] = f"{type(error).__name__}: {error}"[:400]
    gc.collect()
    torch.cuda.empty_cache()
    return row


def short(x: float | None) -> float | None:
    """A number that was measured, in four digits."""
    return None if x is None else float(f"{x:.4g}")


def right(case: Case, row: dict[str, Any]) -> bool:
    """Whether our numbers are those of the recurrence, and all of them were made."""
    return "raised" not in row and all(e <= limit(case, n) for n, e in row["errors"].items())


def rivals(runs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The peers that computed the same and were timed."""
    return {
        name: row
        for name, row in runs.items()
        if name != "linviz" and row.get("errors") and max(row["errors"].values()) <= WRONG
        if "eager_ms" in row
    }


# ----------------------------------------------------------------------------------- the results


def about(device: torch.device, timing: Timing) -> dict[str, Any]:
    """What the numbers depend on."""
    gpu = device.type == "cuda"
    facts = {"date": date.today().isoformat()}
    facts["device"] = torch.cuda.get_device_name() if gpu else processor()
    facts |= smi() if gpu else {}
    facts |= {"dtype": DTYPE, "cuda": torch.version.cuda, "python": platform.python_version()}
    facts |= versions("torch", "triton", *PACKAGES)
    facts["left_out"] = {name: why for name, why in LEFT_OUT.items() if find_spec(name)}
    return facts | {"copy_bytes_per_second": timing.bandwidth()}


def smi() -> dict[str, str]:
    """The driver, and the clocks, of the first GPU."""
    query = {"driver": "driver_version", "clock": "clocks.sm", "memory_clock": "clocks.mem"}
    command = ["nvidia-smi", f"--query-gpu={','.join(query.values())}", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return {}
    return dict(zip(query, said.splitlines()[0].split(", "), strict=True))


def configurations() -> dict[str, dict[str, Any]]:
    """What the kernels chose where they had a choice, by kernel, sizes and type."""
    chosen = importlib.import_module("linviz.kernels.launch").CHOSEN
    return {
        f"{key[0].__name__} {', '.join(map(str, key[1:]))}, {str(kind).removeprefix('torch.')}": {
            name: x for name, x in config._asdict().items() if name != "targets"
        }
        for (key, kind, _), config in chosen.items()
    }


def file_name(device: str) -> str:
    """A device as a file name: NVIDIA H200 is nvidia-h200.json."""
    return re.sub(r"\W+", "-", device.lower()).strip("-") + ".json"


HEADER = (
    f"{'case':22}{'shape':8}{'pass':8}{'eager':>9}{'graph':>9}{'floor':>8}{'of it':>7}"
    f"{'  best peer':34}{'over it':>13}{'over fla':>13}{'error':>9}"
)


def line(row: dict[str, Any]) -> str:
    """One line of the table.

    Milliseconds; the floor as a part of our time; how many times our time the best peer and the
    best of fla take, eager and as a graph; the greatest error. `!` stands where something of ours
    is wrong, and below it what was raised.
    """
    ours, others = row["runs"]["linviz"], rivals(row["runs"])
    time_of = lambda x: x.get("graph_ms") or x["eager_ms"]
    number = lambda x: f"{x:.3f}" if x else "-"

    def over(names: list[str]) -> tuple[str, str]:
        best = min(names, key=lambda name: time_of(others[name]), default=None)
        if best is None or "eager_ms" not in ours:
            return "-", "-"
        ratios = [
            f"{others[best][x] / ours[x]:.2f}x" if others[best].get(x) and ours.get(x) else "-"
            for x in ("eager_ms", "graph_ms")
        ]
        return best, " ".join(ratios)

    best, over_best = over(list(others))
    _, over_fla = over([name for name in others if name.startswith("fla ")])
    part = f"{100 * row['floor_ms'] / time_of(ours):.0f}%" if "eager_ms" in ours else "-"
    error = f"{max(ours['errors'].values()):.1e}" if "errors" in ours else "-"
    mark = "" if right(CASES[row["case"]], ours) else " !"
    raised = [f"\n    {n}: {x['raised'][:120]}" for n, x in row["runs"].items() if "raised" in x]
    return (
        f"{row['case']:22}{row['shape']:8}{row['pass']:8}{number(ours.get('eager_ms')):>9}"
        f"{number(ours.get('graph_ms')):>9}{row['floor_ms']:>8.3f}{part:>7}  {best:32}"
        f"{over_best:>13}{over_fla:>13}{error:>9}{mark}{''.join(raised)}"
    )


def key(row: dict[str, Any]) -> tuple[str, str, str]:
    """What a row is about."""
    return row["case"], row["shape"], row["pass"]


# ------------------------------------------------------------------------------- the command line


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m linviz bench gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    passes = ("forward", "backward")  # the backward pass is timed with its forward pass
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="NAME")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), metavar="S1")
    parser.add_argument("--passes", nargs="+", choices=passes, default=passes)
    parser.add_argument("--no-peers", action="store_true", help="ours only")
    parser.add_argument("--output", type=Path, metavar="FILE", help="book/results/DEVICE.json")
    parser.add_argument("--append", action="store_true", help="keep the rows of FILE")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, on any device")
    args = parser.parse_args(argv)
    if args.dry_run and not args.output:
        parser.error("--dry-run needs --output: its numbers are not results")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark, print a table, write JSON; 1 where ours is wrong or there is no GPU."""
    args = options(argv)
    if not args.dry_run and not torch.cuda.is_available():
        print(
            "linviz bench gpu: PyTorch sees no GPU here; --dry-run goes through it on the CPU.",
            file=sys.stderr,
        )
        return 1
    os.environ["FLA_DISABLE_BACKEND_DISPATCH"] = "1"  # its own kernels, not those of others
    os.environ.pop("FLA_USE_TMA", None)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    timing = Timing(device)
    head, rows = about(device, timing), {}
    if args.dry_run:
        head["dry_run"] = True
    path = args.output or Path("book", "results", file_name(head["device"]))
    if args.append and path.exists():
        old = json.loads(path.read_text())
        if any(old.get(name) != head.get(name) for name in ("device", "dry_run")):
            print(f"linviz bench gpu: {path} is of another device or a dry run", file=sys.stderr)
            return 1
        rows = {key(row): row for row in old["rows"]}
        head["configurations"] = old["configurations"]
    cases = [
        (name, shape, part)
        for part in args.passes
        for name in args.only
        for shape in CASES[name].shapes
        if shape in args.shapes and part in CASES[name].passes
    ]
    print(", ".join(f"{name} {value}" for name, value in head.items() if isinstance(value, str)))
    print(f"copy {head['copy_bytes_per_second'] / 1e12:.2f} TB/s\n{HEADER}")
    for name, shape, part in (bar := tqdm(cases, leave=False)):
        bar.set_description(f"{name} {shape} {part}")
        sizes = SHAPES[shape]
        if args.dry_run:
            sizes = {letter: min(n, TINY.get(letter, n)) for letter, n in sizes.items()}
        backward = part == "backward"
        row = {"case": name, "shape": shape, "pass": part, "sizes": sizes}
        row["bytes"] = bytes_moved(CASES[name], sizes, backward)
        row["floor_ms"] = short(floor(CASES[name], sizes, backward, head["copy_bytes_per_second"]))
        row["runs"] = measure(name, sizes, backward, not args.no_peers, timing, device)
        rows[key(row)] = row
        bar.write(line(row))
        head["configurations"] = head.get("configurations", {}) | configurations()
        save(path, head, "rows", list(rows.values()))  # a run that is stopped has kept this
    wrong = [x for x in cases if not right(CASES[x[0]], rows[x]["runs"]["linviz"])]
    for x in wrong:
        print("WRONG:", *x)
    print(path)
    return bool(wrong)
