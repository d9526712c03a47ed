"""Small trained models that come with the library: `lv.load("byte-gla")`.

`byte-<mechanism>` continue English text byte by byte; `mqar-<mechanism>-<seed>` recall values by
keys. `python -m linviz.checkpoints.make` trained them; each file holds its config and a record of
its training.
"""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """The names that `lv.load` knows."""
    return sorted(file.stem for file in FOLDER.glob("*.safetensors"))


def path(name: str) -> Path:
    """The file of a checkpoint.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in names():
        raise ValueError(f"name: wanted one of {', '.join(names())}, got {name!r}")
    return FOLDER / f"{name}.safetensors"


def record(name: str) -> dict[str, Any]:
    """How a checkpoint was trained and what it reached, without loading its weights."""
    from safetensors import safe_open

    with safe_open(path(name), "pt") as opened:
        return json.loads(opened.metadata()["record"])


def table() -> str:
    """All checkpoints as a Markdown table: what was reached, by how large a state, in what time."""
    rows = [
        "| name | parameters | state | held out | steps | seconds | seed |",
        "|---|" + "--:|" * 6,
    ]
    for name in names():
        r = record(name)
        reached = f"{r['bits']:.3f} bits a byte" if "bits" in r else f"{r['accuracy']:.1%} right"
        state = "grows" if r["state"] is None else f"{r['state']:,}"
        rows.append(
            f"| {name} | {r['parameters']:,} | {state} | {reached} | {r['steps']} | "
            f"{r['seconds']:.0f} | {r['seed']} |"
        )
    return "\n".join(rows)
