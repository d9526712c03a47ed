"""Train the checkpoints: `python -m linviz.checkpoints.make byte-gla mqar-gla-0 ...`, or `all`.

Each is written beside this file, in float16, with its config and its record: the task and its
fingerprint, the recipe, the losses, what the stored weights reach on held-out data, and the seconds
it took. What is recorded is measured with the weights as they are stored.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch

from linviz import models
from linviz.checkpoints import FOLDER
from linviz.layers import State
from linviz.tasks import MQAR, Record, Text, backoff_bits, evaluate, train

BYTE_LAYERS: dict[str, dict[str, Any]] = {
    "softmax": {"heads": 3},
    "linear_attention": {"heads": 3, "conv": 4},  # without it nothing tells it the order
    "retnet": {"heads": 3, "expand_v": 1.0},
    "gla": {"heads": 3},
    "mamba2": {"P": 32, "N": 32},
    "rwkv6": {"heads": 3},
    "gated_deltanet": {"heads": 3},
}
WIDTH = 64
RECALL = MQAR(pairs=16, T=64)


def conv_head(K: int) -> dict[str, Any]:
    """One head of K key channels behind short convolutions."""
    return {"heads": 1, "conv": 4, "expand_k": K / WIDTH}


ONE_HEAD: dict[str, Callable[[int], dict[str, Any]]] = {  # K key channels, 64 value channels
    "softmax": lambda K: {"heads": WIDTH // K, "conv": 4},
    "linear_attention": lambda K: conv_head(K),
    "retnet": lambda K: {**conv_head(K), "expand_v": 1.0, "rotary": "none"},
    "gla": lambda K: conv_head(K),
    "mamba2": lambda K: {"P": WIDTH // 2, "N": K // 2},  # four heads, the same numbers
    "deltanet": lambda K: {"heads": 1, "expand_k": K / WIDTH},
    "gated_deltanet": lambda K: {"heads": 1, "K": K, "V": WIDTH},
}
SEEDS = (0, 1, 2)
NAMES = [f"byte-{kind}" for kind in BYTE_LAYERS]
NAMES += [f"mqar-{kind}-{seed}" for kind in ONE_HEAD for seed in SEEDS]


def byte_model(kind: str, progress: bool) -> models.LM:
    """A byte model over one kind of layer, trained on Python's help pages."""
    mlp = {"rwkv6": "rwkv6"}.get(kind, "swiglu")
    torch.manual_seed(0)
    model = models.small(
        kind,
        3,
        width=96,
        options=BYTE_LAYERS[kind],
        mlp=mlp,
        mlp_options={mlp: {"hidden": 192}},
        tie=True,
        dropout=0.1,
    )
    task = Text(T=256)
    recipe = {"steps": 2000, "lr": 4e-3, "batch": 16, "weight_decay": 0.1, "evaluate_every": 500}
    trained = train(model, task, seed=0, progress=progress, **recipe)
    stored = rounded(model)
    model.record = {
        **summary(model, trained),
        "bits": evaluate(stored, Text(T=256, held_out="test"))["bits"],
        "validation_bits": evaluate(stored, task)["bits"],
        "trigram_bits": backoff_bits(Text.bytes("train"), Text.bytes("test")),
    }
    return model


def mqar_model(kind: str, seed: int, progress: bool) -> models.LM:
    """A model of one layer, trained to recall 16 values by their keys."""
    model, trained = recall_model([kind], {kind: ONE_HEAD[kind](WIDTH)}, seed, progress)
    stored = rounded(model)
    by_pairs = {
        pairs: evaluate(stored, replace(RECALL, pairs=pairs), seed=seed)["accuracy"]
        for pairs in (4, 8, 16)
    }
    model.record = {**summary(model, trained), "accuracy": by_pairs[16], "by_pairs": by_pairs}
    return model


def recall_model(
    kinds: Sequence[str],
    options: dict[str, Any],
    seed: int,
    progress: bool = False,
    steps: int = 1000,
    lr: float = 1e-2,
) -> tuple[models.LM, Record]:
    """A model without mlps, trained on RECALL until it is right or the steps are over."""
    torch.manual_seed(seed)
    model = models.small(kinds, width=WIDTH, mlp="none", options=options, tokenizer="")
    trained = train(
        model,
        RECALL,
        steps=steps,
        lr=lr,
        seed=seed,
        stop_at={"accuracy": 0.995},
        evaluate_every=100,
        progress=progress,
    )
    return model, trained


def rounded(model: models.LM) -> models.LM:
    """The model with its weights as they will be stored; the model itself is changed too."""
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.half())
    return model.eval()


def summary(model: models.LM, trained: Record) -> dict[str, Any]:
    """What all records share."""
    state: State = model.first_state()
    grows = any(layer in ("softmax",) for layer in model.config.layers)
    return {
        "settings": trained.settings,
        "parameters": model.parameters_count,
        "state": None if grows else sum(x.numel() for x in state.tensors()),
        "steps": trained.steps,
        "seconds": round(trained.seconds, 1),
        "seed": trained.settings["seed"],
        "losses": [round(x, 4) for x in trained.losses[::10]],
        "evaluations": trained.evaluations,
    }


def make(wanted: Iterable[str], progress: bool = True) -> None:
    """Train and write the named ones."""
    for name in wanted:
        task, kind, *seed = name.split("-")
        print(name, flush=True)
        if task == "byte":
            model = byte_model(kind, progress)
        else:
            model = mqar_model(kind, int(seed[0]), progress)
        file = model.save(FOLDER / f"{name}.safetensors", dtype=torch.float16)
        reached = {n: round(model.record[n], 4) for n in ("bits", "accuracy") if n in model.record}
        print(name, reached, f"{file.stat().st_size / 1e3:.0f} kB", flush=True)


def main(argv: list[str] | None = None) -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m linviz.checkpoints.make", description=__doc__)
    parser.add_argument("names", nargs="+", choices=[*NAMES, "all"], metavar="NAME")
    parser.add_argument("--no-progress", action="store_true", help="no bars")
    args = parser.parse_args(argv)
    make(NAMES if "all" in args.names else args.names, not args.no_progress)
    return 0


if __name__ == "__main__":
    sys.exit(main())
