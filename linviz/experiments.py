"""Experiments with small models: `python -m linviz experiment NAME --output FILE`.

recall: how much a layer recalls, against the size of its state.
hybrid: how many layers of softmax attention does recall need, and what do they cost?
extrapolation: trained on short texts, tested on longer ones.
decoding: milliseconds and bytes a token, from the first thousand tokens to a hundred thousand.

Each case is one row of the file, written when it is done; cases already in the file are not run
again. What is trained is trained from several seeds. Figures of time depend on the machine, which
the file names; those of accuracy on the seed and hardly on the machine.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from linviz import bench, checkpoints, models
from linviz.checkpoints.make import ONE_HEAD, RECALL, WIDTH, recall_model
from linviz.layers import KINDS, State
from linviz.tasks import Passkey, Record, Text, evaluate, train

Row = dict[str, Any]
Case = tuple[Row, Callable[[], Row]]  # what names a case, and what measures it

SEEDS = (0, 1, 2)


def numbers_held(state: State) -> int:
    """Numbers in a state; the past of the short convolutions, the same for all, is left out."""
    parts = (numbers_held(x) if isinstance(x, State) else x.numel() * (not name.endswith("conv"))
             for name, x in state.items())  # fmt: skip
    return sum(parts)


def state_after(model: models.LM, T: int) -> State:
    """The state after T tokens of one sequence."""
    with torch.no_grad():
        return model(torch.zeros(1, T, dtype=torch.long))[1]


# ------------------------------------------------------------------------------------------ recall

KEYS = (8, 16, 32, 64)


def recall(seeds: Sequence[int]) -> Iterator[Case]:
    """One layer learns to recall 16 values by their keys; K sets the size of its state.

    With K = 64 these are the checkpoints `mqar-<mechanism>-<seed>`.
    """
    for seed in seeds:
        for kind, options in ONE_HEAD.items():
            for K in KEYS if kind != "softmax" else (WIDTH,):
                name = {"mechanism": kind, "K": K, "seed": seed}
                shipped = f"mqar-{kind}-{seed}"
                if K == WIDTH and shipped in checkpoints.names():
                    yield name, lambda shipped=shipped: shipped_row(shipped)
                else:
                    used = {kind: options(K)}
                    yield name, lambda k=[kind], u=used, s=seed: outcome(*recall_model(k, u, s))


def shipped_row(name: str) -> Row:
    """What the record of a checkpoint says."""
    model, record = models.LM.open(checkpoints.path(name)), checkpoints.record(name)
    return {
        "accuracy": round(record["accuracy"], 4),
        "state": numbers_held(state_after(model, RECALL.T)),
        "steps": record["steps"],
        "seconds": record["seconds"],
    }


def outcome(model: models.LM, done: Record) -> Row:
    """The accuracy on RECALL, and the numbers that the mixers hold after its T tokens."""
    return {
        "accuracy": round(done.final["accuracy"], 4),
        "state": numbers_held(state_after(model, RECALL.T)),
        "steps": done.steps,
        "seconds": round(done.seconds, 1),
    }


# ------------------------------------------------------------------------------------------ hybrid

DEPTH, SMALL_K, LONG = 4, 8, 8192


def hybrid(seeds: Sequence[int]) -> Iterator[Case]:
    """Four layers, the last n of them softmax attention, the others GLA with a small state."""
    for seed in seeds:
        for n in (0, 1, 2, DEPTH):
            kinds = ("gla",) * (DEPTH - n) + ("softmax",) * n
            options = {
                "gla": {"heads": 1, "conv": 4, "expand_k": SMALL_K / WIDTH},
                "softmax": {"heads": 1, "conv": 4},
            }
            used = {kind: options[kind] for kind in set(kinds)}
            name = {"softmax_layers": n, "layers": DEPTH, "seed": seed}
            yield name, lambda k=kinds, u=used, s=seed: hybrid_row(k, u, s)


def hybrid_row(kinds: Sequence[str], options: Row, seed: int) -> Row:
    """Recall; bytes and time a token after LONG tokens."""
    model, done = recall_model(kinds, options, seed, steps=500, lr=3e-3)
    state = filled(model, LONG)
    return outcome(model, done) | {
        "bytes_after": state.nbytes,
        "tokens_before": LONG,
        "milliseconds": token_time(model, state),
    }


# ----------------------------------------------------------------------------------- extrapolation

PASSKEY = Passkey(T=96)
LENGTHS = (96, 192, 384, 768, 1536)
TWO_LAYERS: dict[str, Row] = {
    "softmax": {"heads": 1, "conv": 4},
    "linear_attention": {"heads": 1, "conv": 4},
    "retnet": {"heads": 1, "conv": 4, "expand_v": 1.0},
    "gla": {"heads": 1, "conv": 4, "expand_k": 1.0},
    "mamba2": {"P": WIDTH // 2, "N": WIDTH // 2},
    "gated_deltanet": {"heads": 1, "K": WIDTH, "V": WIDTH},
}
WINDOW, BINS = 4096, (0, 64, 128, 256, 512, 1024, 2048, 4096)


def extrapolation(seeds: Sequence[int]) -> Iterator[Case]:
    """Longer texts than in training: passkeys recalled, and bits a byte of the byte models."""
    for seed in seeds:
        for kind in TWO_LAYERS:
            yield (
                {"task": "passkey", "mechanism": kind, "seed": seed},
                lambda k=kind, s=seed: passkey(k, s),
            )
    for name in checkpoints.names():
        if name.startswith("byte-"):
            kind = name.removeprefix("byte-")
            yield {"task": "text", "mechanism": kind, "seed": 0}, lambda n=name: bits_by_position(n)


def passkey(kind: str, seed: int) -> Row:
    """Train two layers on texts of 96 tokens; the accuracy on longer ones."""
    torch.manual_seed(seed)
    options = {kind: TWO_LAYERS[kind]}
    model = models.small(
        [kind] * 2, vocab=PASSKEY.vocab, width=WIDTH, mlp="none", options=options, tokenizer=""
    )
    done = train(
        model, PASSKEY, steps=500, lr=5e-3, seed=seed, evaluate_every=100, progress=False,
        stop_at={"accuracy": 0.999},
    )  # fmt: skip
    tests = [evaluate(model, replace(PASSKEY, T=T), batch=16, seed=seed) for T in LENGTHS]
    return {
        "trained": PASSKEY.T,
        "lengths": LENGTHS,
        "accuracy": [round(test["accuracy"], 4) for test in tests],
        "steps": done.steps,
        "seconds": round(done.seconds, 1),
    }


@torch.no_grad()
def bits_by_position(name: str) -> Row:
    """Bits a byte of a checkpoint, by the number of bytes before, over the held-out text."""
    model = models.LM.open(checkpoints.path(name))
    text = torch.cat([Text.bytes("validation"), Text.bytes("test")]).long()
    ids = text[: (len(text) - 1) // WINDOW * WINDOW + 1]
    inputs, labels = ids[:-1].view(-1, WINDOW), ids[1:].view(-1, WINDOW)
    losses = []
    for row, label in zip(inputs.split(2), labels.split(2), strict=True):
        logits, _ = model(row)
        losses.append(nn.functional.cross_entropy(logits.mT, label, reduction="none"))
    bits = torch.cat(losses).mean(0) / torch.log(torch.tensor(2.0))
    means = [bits[a:b].mean().item() for a, b in pairwise(BINS)]
    return {"trained": 256, "bins": BINS, "bits": [round(x, 4) for x in means]}


# ---------------------------------------------------------------------------------------- decoding

DECODED = (1_000, 3_000, 10_000, 30_000, 100_000)
BLOCKS, D, H = 4, 256, 4


def decoding(seeds: Sequence[int]) -> Iterator[Case]:
    """Milliseconds and bytes a token; the weights are random, time does not depend on them."""
    for kind in ("softmax", "linear_attention", "gla", "mamba2", "rwkv7", "gated_deltanet"):
        for T in DECODED:
            yield {"mechanism": kind, "T": T}, lambda kind=kind, T=T: decoded(kind, T)


def decoded(kind: str, T: int) -> Row:
    """One sequence: a token after T others."""
    torch.manual_seed(0)
    options = {"heads": H} if "heads" in KINDS[kind].__init__.__kwdefaults__ else {}
    model = models.small([kind] * BLOCKS, width=D, options={kind: options})
    state = filled(model, T)
    return {"bytes": state.nbytes, "milliseconds": token_time(model, state)}


@torch.no_grad()
def filled(model: models.LM, T: int) -> State:
    """The state after T random tokens; where there is a cache, it is filled with random numbers.

    A cache of T entries is what T tokens leave, whatever they were, and reading them would take
    time that grows with the square of T. Beside a cache the other layers read 64 tokens only.
    """
    caches = "softmax" in model.config.layers
    state = None
    for piece in torch.randint(256, (1, 64 if caches else T)).split(1024, 1):
        _, state = model(piece, state, last=True)

    def grow(part: State) -> State:
        parts = {name: grow(x) if isinstance(x, State) else x for name, x in part.items()}
        long = {
            n: torch.randn(1, T, *x.shape[2:]) for n, x in parts.items() if n.endswith("_cache")
        }
        return State(parts | long)

    return grow(state)


@torch.no_grad()
def token_time(model: models.LM, state: State, turns: int = 15) -> float:
    """The median milliseconds of a step from `state`, after two that do not count."""
    model.eval()
    token, times = torch.zeros(1, dtype=torch.long), []
    for _ in range(turns + 2):
        before = time.perf_counter()
        model.step(token, state)
        times.append(time.perf_counter() - before)
    return round(1000 * statistics.median(times[2:]), 3)


# ----------------------------------------------------------------------------------------- running

RESULTS = (  # in a clone, and where the package is installed
    Path(__file__).parents[1] / "book" / "results",
    Path(__file__).parent / "results",
)

EXPERIMENTS = {
    "recall": recall,
    "hybrid": hybrid,
    "extrapolation": extrapolation,
    "decoding": decoding,
}


def run(name: str, output: Path | None, seeds: Sequence[int] = SEEDS) -> list[Row]:
    """Run the cases that are not in the file yet; see the module."""
    known = json.loads(output.read_text())["rows"] if output and output.exists() else []
    rows, head = list(known), bench.machine() | {"experiment": name}
    cases = list(EXPERIMENTS[name](seeds))
    for key, measure in (bar := tqdm(cases, desc=name)):
        if any(key.items() <= row.items() for row in known):
            continue
        bar.set_postfix(key)
        rows.append(key | measure())
        bar.write(json.dumps(rows[-1]))
        if output:
            bench.save(output, head, "rows", rows)
    return rows


def records() -> dict[str, dict[str, Any]]:
    """All results that come with the library, by name: see `recorded`; a GPU has its own name."""
    files = {path.stem: path for folder in RESULTS for path in folder.rglob("*.json")}
    read = {name: json.loads(files[name].read_text(encoding="utf-8")) for name in sorted(files)}
    return {name: record for name, record in read.items() if not record.get("dry_run")}


def recorded(name: str) -> dict[str, Any]:
    """A result that comes with the library: the machine, date and versions, and its rows.

    Args:
        name: recall, hybrid, extrapolation or decoding; or cpu, the benchmark of the three forms.

    Raises:
        ValueError: there is no such file.
    """
    found = records()
    if name not in found:
        raise ValueError(f"name must be one of {', '.join(found)}, got {name!r}")
    return found[name]


def main(argv: list[str] | None = None) -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m linviz experiment",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=EXPERIMENTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON, also to go on from")
    args = parser.parse_args(argv)
    run(args.name, args.output, args.seeds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
