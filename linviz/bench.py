"""python -m linviz bench cpu: how long each form takes, and how much the chunks save.

One sequence, H=4, K=V=64 (Mamba and the like: D=256, N=16), float32, a state of zeros. The forms of
a mechanism are timed in turn, each turn beginning with another, and the median counts: ratios come
from one run.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from linviz.mechanism import Mechanism
from linviz.mechanisms import REGISTRY
from linviz.peers import PEERS

SIZES = {"B": 1, "H": 4, "K": 64, "V": 64, "D": 256, "P": 64, "G": 1}
STATES = {"mamba2": {"N": 64}}
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
LONGEST_PARALLEL = 4096  # its matrices grow with the square of T
AT_LEAST, SECONDS = 4, 1.0  # turns that count, and how long to go on with more


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark, print a table, write JSON; `gpu` has its own file."""
    argv = sys.argv[1:] if argv is None else argv
    if list(argv[:1]) == ["gpu"]:
        from linviz import bench_gpu

        return bench_gpu.main(argv[1:])
    parser = argparse.ArgumentParser(prog="python -m linviz bench", description=__doc__)
    parser.add_argument("where", choices=["cpu", "gpu"], help="`gpu --help` has its own options")
    mechanisms = [m for m in REGISTRY if m.has("chunked")]
    names = [m.name for m in mechanisms]
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="these mechanisms")
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS, metavar="T")
    passes = ("forward", "backward")  # the backward pass is timed with its forward pass
    parser.add_argument("--passes", nargs="+", choices=passes, default=passes)
    parser.add_argument("--no-peers", action="store_true", help="without transformers")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the numbers as JSON")
    args = parser.parse_args(argv)
    peers = not args.no_peers and importlib.util.find_spec("transformers") is not None
    cases = [
        (m, T, backward)
        for backward in (name == "backward" for name in args.passes)
        for m in mechanisms
        if m.name in args.only
        for T in args.lengths
        if T <= LONGEST_PARALLEL or not m.cache
    ]
    about = machine()
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    about |= {"sizes": SIZES | {"N": 16}, "states": STATES, "chunk": 64, "dtype": "float32"}
    print(header())
    rows = []
    for m, T, backward in (bar := tqdm(cases, leave=False)):
        bar.set_description(f"{m.name} T={T}")
        rows.append(
            {"mechanism": m.name, "T": T, "backward": backward} | measure(m, T, backward, peers)
        )
        bar.write(line(rows[-1]))
        if args.output:  # after every case: a run that is stopped has kept what it measured
            save(args.output, about, "milliseconds", rows)
    return 0


def save(path: Path, head: dict[str, Any], name: str, rows: list[dict[str, Any]]) -> None:
    """Machine, shapes and what was measured as JSON, a line a row; `name` names the rows."""
    start = json.dumps(head, indent=1).removesuffix("\n}")
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{start},\n "{name}": [\n  {lines}\n ]\n}}\n')


def measure(m: Mechanism, T: int, backward: bool, peers: bool) -> dict[str, float]:
    """The median milliseconds of each form of m, and of its peers."""
    letters = {letter for x in m.inputs for _, letter in x.letters} - {"T"}
    sizes = {x: n for x, n in ({"N": 16} | SIZES | STATES.get(m.name, {})).items() if x in letters}
    inputs = m.example(T, **sizes)
    if backward:
        inputs = tuple(x.requires_grad_() for x in inputs)
    runs: dict[str, Callable] = {"chunked": m.chunked}
    if not m.cache:  # a loop that copies a growing cache at every step measures the copies
        runs["recurrent"] = m.recurrent
    if T <= LONGEST_PARALLEL:
        runs["parallel"] = m.parallel
    if peers:
        runs |= {f"transformers {form}": run for form, run in PEERS.get(m.name, {}).items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    started, turns = time.perf_counter(), 0
    while turns <= AT_LEAST or time.perf_counter() - started < SECONDS:
        names = list(runs)
        for name in names[turns % len(names) :] + names[: turns % len(names)]:
            run = runs[name]
            before = time.perf_counter()
            with torch.set_grad_enabled(backward):
                o, _ = run(*inputs)
            if backward:
                differentiate(o, inputs)
            if turns:  # the first turn warms up
                times[name].append(time.perf_counter() - before)
        turns += 1
    return {name: round(1000 * statistics.median(each), 3) for name, each in times.items()}


def differentiate(o: Tensor, inputs: Sequence[Tensor]) -> None:
    """The gradients of the sum of the outputs for all inputs."""
    torch.autograd.grad(o.sum(), inputs, allow_unused=True)


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "date": date.today().isoformat(),
        "device": processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
    } | versions("torch", "transformers", "numpy")


def versions(*names: str) -> dict[str, str]:
    """The versions of those of these packages that are installed."""
    found = {name: version(name) for name in names}
    return {name: text for name, text in found.items() if text}


def version(name: str) -> str:
    """The version of an installed package, "" if it is missing."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def processor() -> str:
    """The name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def header() -> str:
    """The head of the table."""
    return (
        f"{'mechanism':17}{'T':>6} {'pass':8}{'recurrent':>11}{'parallel':>11}{'chunked':>11}"
        f"{'rec/chunk':>10}{'par/chunk':>10}  transformers (over chunked)"
    )


def line(row: dict[str, Any]) -> str:
    """One line of the table: milliseconds, ratios, peers."""
    ratio = lambda name: f"{row[name] / row['chunked']:.1f}x" if name in row else "-"
    cell = lambda name: f"{row[name]:.1f}" if name in row else "-"
    others = [f"{name.split()[1]} {row[name]:.1f} ({ratio(name)})" for name in row if " " in name]
    kind = "fwd+bwd" if row["backward"] else "fwd"
    return (
        f"{row['mechanism']:17}{row['T']:>6} {kind:8}{cell('recurrent'):>11}"
        f"{cell('parallel'):>11}{cell('chunked'):>11}{ratio('recurrent'):>10}"
        f"{ratio('parallel'):>10}  {', '.join(others)}"
    )
