"""RWKV-4, 5.2, 6 and 7 as their authors publish them: .pth files, read and written.

Source: github.com/BlinkDL/RWKV-LM (names and shapes as in its training code). A file is one table
of tensors without a config: version and sizes are told from names and shapes. What Hugging Face's
transformers makes of RWKV-4 is a family like others, see families.py. hub.py reads them.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from linviz.models.keys import Groups, Row, Squeeze, Table, row
from linviz.models.lm import LM, Config

FLAT = (Squeeze(0), Squeeze(0))  # theirs are [1, 1, D]
OUTER = (
    row("emb.weight", "embedding.weight"),
    row("blocks.0.ln0.weight", "embedding_norm.weight"),
    row("blocks.0.ln0.bias", "embedding_norm.bias"),
    row("ln_out.weight", "norm.weight"),
    row("ln_out.bias", "norm.bias"),
    row("head.weight"),
)
BLOCK = (
    row("ln1.weight", "norm.weight"),
    row("ln1.bias", "norm.bias"),
    row("ln2.weight", "mlp_norm.weight"),
    row("ln2.bias", "mlp_norm.bias"),
)
MAPS = (
    row("att.receptance.weight", "r.weight"),
    row("att.key.weight", "k.weight"),
    row("att.value.weight", "v.weight"),
    row("att.output.weight", "out.weight"),
)
NORM = (row("att.ln_x.weight", "norm.weight"), row("att.ln_x.bias", "norm.bias"))
CHANNEL_MAPS = (row("ffn.key.weight", "k.weight"), row("ffn.value.weight", "v.weight"))
CHANNEL_RECEPTANCE = (*CHANNEL_MAPS, row("ffn.receptance.weight", "r.weight"))


def mixtures(theirs: str, names: str) -> tuple[Row, ...]:
    """The weights of the token shift, by the letters of what sees them."""
    return tuple(row(f"{theirs}{name}", f"mu.{name}", *FLAT) for name in names)


def low_rank(letter: str, ours: str) -> tuple[Row, ...]:
    """A map of RWKV-7 through few numbers."""
    maps = row(f"att.{letter}1", f"{ours}.down"), row(f"att.{letter}2", f"{ours}.up")
    return *maps, row(f"att.{letter}0", f"{ours}.bias", *FLAT)


KEYS = Table(
    within="blocks.{i}.",
    outer=OUTER,
    block=BLOCK,
    mixers={
        "rwkv4": (
            *MAPS,
            *mixtures("att.time_mix_", "rkv"),
            row("att.time_decay", "decay"),
            row("att.time_first", "u"),
        ),
        "rwkv5": (
            *MAPS,
            *NORM,
            *mixtures("att.time_mix_", "rkvg"),
            row("att.gate.weight", "gate.weight"),
            row("att.time_decay", "decay"),
            row("att.time_faaaa", "u"),
        ),
        "rwkv6": (
            *MAPS,
            *NORM,
            *mixtures("att.time_maa_", "xwkvrg"),
            row("att.time_maa_w1", "mix_down"),
            row("att.time_maa_w2", "mix_up"),
            row("att.gate.weight", "gate.weight"),
            row("att.time_decay", "decay", *FLAT, Groups("heads")),
            row("att.time_decay_w1", "decay_map.down"),
            row("att.time_decay_w2", "decay_map.up"),
            row("att.time_faaaa", "u"),
        ),
        "rwkv7": (
            *MAPS,
            *NORM,
            *mixtures("att.x_", "rwkvag"),
            *low_rank("w", "decay"),
            *low_rank("a", "rate"),
            *low_rank("v", "value"),
            *low_rank("g", "gate"),
            row("att.k_k", "k_k", *FLAT),
            row("att.k_a", "k_a", *FLAT),
            row("att.r_k", "r_k"),
        ),
    },
    mlps={
        "rwkv4": (*CHANNEL_RECEPTANCE, *mixtures("ffn.time_mix_", "kr")),
        "rwkv5": (*CHANNEL_RECEPTANCE, *mixtures("ffn.time_mix_", "kr")),
        "rwkv6": (*CHANNEL_RECEPTANCE, *mixtures("ffn.time_maa_", "kr")),
        "rwkv7": (*CHANNEL_MAPS, *mixtures("ffn.x_", "k")),
    },
)


def recognise(weights: Mapping[str, Tensor]) -> str | None:
    """The version: "rwkv4", "rwkv5" (that is 5.2), "rwkv6" or "rwkv7"; None for other tensors."""
    names = {name.removeprefix("blocks.0.att.") for name in weights}
    if "r_k" in names:
        return "rwkv7"
    if "time_maa_w1" in names:
        return "rwkv6"
    if {"time_faaaa", "gate.weight"} <= names:
        decay = weights.get("blocks.0.att.time_decay")
        return "rwkv5" if decay is not None and decay.shape[1:].numel() > 1 else None
    return "rwkv4" if {"time_first", "time_mix_k"} <= names and "ln_x.weight" not in names else None


def config_of(weights: Mapping[str, Tensor]) -> Config:
    """The sizes of a file's tensors.

    Raises:
        ValueError: they are of no version that we have, or one that tells a size is missing.
    """
    kind = recognise(weights)
    if kind is None:
        raise ValueError(
            "weights: wanted those of RWKV-4, 5.2, 6 or 7 under their authors' names, got "
            f"{len(weights)} tensors: {', '.join(list(weights)[:8])}, ..."
        )
    blocks = (re.match(r"blocks\.(\d+)\.", name) for name in weights)
    depth = 1 + max(int(found[1]) for found in blocks if found)
    try:
        vocab, width = weights["emb.weight"].shape
        hidden = len(weights["blocks.0.ffn.key.weight"])
        options = options_of(kind, weights, depth)
    except KeyError as missing:
        raise ValueError(f"weights: {missing} of {kind} is missing") from None
    return Config(
        vocab,
        width,
        (kind,) * depth,
        {kind: options},
        mlp=kind,
        mlp_options={kind: {"hidden": hidden}},
        norm="layer",
        embedding_norm=True,
    )


def options_of(kind: str, weights: Mapping[str, Tensor], depth: int) -> dict[str, Any]:
    """The options of the layers of one version."""
    if kind == "rwkv4":
        return {}
    att = "blocks.0.att."
    if kind == "rwkv5":
        return {"heads": len(weights[f"{att}time_faaaa"])}
    if kind == "rwkv6":
        return {
            "heads": len(weights[f"{att}time_faaaa"]),
            "mix_rank": weights[f"{att}time_maa_w2"].shape[1],
            "decay_rank": len(weights[f"{att}time_decay_w2"]),
        }
    value = weights.get(f"blocks.{depth - 1}.att.v2")
    return {
        "heads": len(weights[f"{att}r_k"]),
        "decay_rank": len(weights[f"{att}w2"]),
        "rate_rank": len(weights[f"{att}a2"]),
        "value_rank": None if value is None else len(value),
        "gate_rank": len(weights[f"{att}g2"]),
        "spare": f"{att}v0" in weights,
    }


def save(model: LM, file: str | Path) -> Path:
    """Write an RWKV model as its authors do, under their names and in their shapes.

    Args:
        model: all of its layers and channel mixes are of one version; it has layer norms, also
            after the embedding, and the embedding is not the map to the logits.
        file: ends in .pth.

    Raises:
        ValueError: it is another model.
    """
    c = model.config
    version, *others = {*c.layers, *c.mlps}
    said = (c.norm, c.eps, c.embedding_norm, c.tie) == ("layer", 1e-5, True, False)
    if others or version not in KEYS.mixers or not said:
        raise ValueError(f"model: wanted an RWKV of one version, got {c}")
    ours = {name: x.detach() for name, x in model.named_parameters()}
    pairs = KEYS.pairs(c, ours)
    theirs = {n: x for pair in pairs for n, x in pair.write(ours.__getitem__).items()}
    file = Path(file)
    part = file.with_name(f"{file.name}.part")  # its tensors may be mapped from this very file
    torch.save({name: x.contiguous() for name, x in theirs.items()}, part)
    part.replace(file)
    return file
