"""Formats of published checkpoints, as data: how their config.json is read, and their tables.

Fields and their values where they are absent are those of transformers and of the
flash-linear-attention library, fla.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from linviz.models.keys import Cut, Groups, Halves, Options, Squeeze, Stack, Table, row
from linviz.models.lm import Config


@dataclass(frozen=True)
class Family:
    """A format.

    Attributes:
        name: `model_type` in config.json.
        tables: the format, and other spellings of it that are found.
        fields: the fields of config.json that are read, and what they are where they are absent.
        only: fields that change what is computed in ways that we do not have, and the values with
            which they do not; the first one where they are absent.
        config: fields -> Config.
        ignored: what begins their names that are no part of the language model.
    """

    name: str
    tables: tuple[Table, ...]
    fields: Mapping[str, Any]
    only: Mapping[str, tuple[Any, ...]]
    config: Callable[[Mapping[str, Any]], Config]
    ignored: str = ""

    def read(self, raw: Mapping[str, Any]) -> Config:
        """config.json -> Config.

        Raises:
            ValueError: a field has a value that we do not have, or is missing.
        """
        for name, allowed in ({"quantization_config": (None,)} | self.only).items():
            wanted(name, raw.get(name, allowed[0]), *allowed)
        fields = {name: raw.get(name, value) for name, value in self.fields.items()}
        return self.config({name: numbers(value) for name, value in fields.items()})


def numbers(x: Any) -> Any:
    """What transformers writes as {"__float__": "Infinity"} as a number; all else as it is."""
    if isinstance(x, list):
        return [numbers(item) for item in x]
    return float(x["__float__"]) if isinstance(x, dict) and "__float__" in x else x


def wanted(name: str, value: Any, *allowed: Any) -> None:
    """Refuse a field of config.json.

    Raises:
        ValueError: its value is none of those allowed.
    """
    if value not in allowed:
        known = " or ".join(json.dumps(x) for x in allowed)
        raise ValueError(f"config.json: {name} must be {known}, got {json.dumps(value)}")


# Mamba, Falcon-Mamba, Mamba-2


MAMBA = Table(
    within="backbone.layers.{i}.",
    outer=(
        row("backbone.embeddings.weight", "embedding.weight"),
        row("backbone.norm_f.weight", "norm.weight"),
        row("lm_head.weight", "head.weight"),
    ),
    block=(row("norm.weight"),),
    mixers={
        "mamba": (
            row("mixer.in_proj.weight", "in_proj.weight"),
            row("mixer.in_proj.bias", "in_proj.bias"),
            row("mixer.conv1d.weight", "conv.weight", Squeeze(1)),
            row("mixer.conv1d.bias", "conv.bias"),
            row("mixer.x_proj.weight", "x_proj.weight"),
            row("mixer.dt_proj.weight", "dt_proj.weight"),
            row("mixer.dt_proj.bias", "dt_proj.bias"),
            row("mixer.A_log", "A_log"),
            row("mixer.D", "D"),
            row("mixer.out_proj.weight", "out_proj.weight"),
            row("mixer.out_proj.bias", "out_proj.bias"),
        ),
        "mamba2": (
            row("mixer.in_proj.weight", "in_proj.weight"),
            row("mixer.in_proj.bias", "in_proj.bias"),
            row("mixer.conv1d.weight", "conv.weight", Squeeze(1)),
            row("mixer.conv1d.bias", "conv.bias"),
            row("mixer.dt_bias", "dt_bias"),
            row("mixer.A_log", "A_log"),
            row("mixer.D", "D"),
            row("mixer.norm.weight", "norm.weight", Groups("groups")),
            row("mixer.out_proj.weight", "out_proj.weight"),
            row("mixer.out_proj.bias", "out_proj.bias"),
        ),
    },
)
OLDER = MAMBA.renamed("embeddings", "embedding")  # as mamba_ssm writes it
SILU = {"hidden_act": ("silu", "swish")}
MAMBA_FIELDS = {
    "vocab_size": 50280,
    "hidden_size": 768,
    "num_hidden_layers": 32,
    "state_size": 16,
    "expand": 2,
    "conv_kernel": 4,
    "time_step_rank": "auto",
    "use_conv_bias": True,
    "use_bias": False,
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}


def read_mamba(f: Mapping[str, Any]) -> Config:
    """Mamba, and Falcon-Mamba, which has mixer_rms_eps."""
    rank = f["time_step_rank"]
    options = {
        "N": f["state_size"],
        "expand": f["expand"],
        "conv": f["conv_kernel"],
        "rank": math.ceil(f["hidden_size"] / 16) if rank == "auto" else rank,
        "conv_bias": f["use_conv_bias"],
        "bias": f["use_bias"],
    }
    if "mixer_rms_eps" in f:
        options |= {"norm_bcdt": True, "eps": f["mixer_rms_eps"]}
    return only_mixers("mamba", options, f)


def read_mamba2(f: Mapping[str, Any]) -> Config:
    """Mamba-2."""
    wanted("num_heads", f["num_heads"], f["expand"] * f["hidden_size"] // f["head_dim"])
    options = {
        "P": f["head_dim"],
        "N": f["state_size"],
        "groups": f["n_groups"],
        "expand": f["expand"],
        "conv": f["conv_kernel"],
        "conv_bias": f["use_conv_bias"],
        "bias": f["use_bias"],
        "eps": f["layer_norm_epsilon"],
    }
    limit = tuple(f["time_step_limit"])
    options |= {} if limit == (0.0, math.inf) else {"dt_limit": limit}
    return only_mixers("mamba2", options, f)


def only_mixers(kind: str, options: Options, f: Mapping[str, Any]) -> Config:
    """A model whose blocks have no mlp."""
    return Config(
        f["vocab_size"],
        f["hidden_size"],
        (kind,) * f["num_hidden_layers"],
        {kind: options},
        mlp="none",
        eps=f["layer_norm_epsilon"],
        tie=f["tie_word_embeddings"],
    )


def read_state_spaces(f: Mapping[str, Any]) -> Config:
    """What mamba_ssm writes; its sizes within a layer are in ssm_cfg."""
    given = dict(f["ssm_cfg"])
    kind = given.pop("layer", "Mamba1")
    wanted("ssm_cfg.layer", kind, "Mamba1", "Mamba2")
    of = SSM[kind]
    for name in given:
        wanted("a field of ssm_cfg", name, *of)
    multiple = f["pad_vocab_size_multiple"]
    theirs = {
        "vocab_size": -(-f["vocab_size"] // multiple) * multiple,
        "hidden_size": f["d_model"],
        "num_hidden_layers": f["n_layer"],
        "tie_word_embeddings": f["tie_embeddings"],
    }
    theirs |= {of[name]: value for name, value in given.items()}
    if kind == "Mamba1":
        return read_mamba(MAMBA_FIELDS | theirs)
    theirs = MAMBA2_FIELDS | {"head_dim": 64, "n_groups": 1, "state_size": 128} | theirs
    heads = theirs["expand"] * theirs["hidden_size"] // theirs["head_dim"]
    return read_mamba2(theirs | {"num_heads": heads})


SSM = {
    "Mamba1": {
        "d_state": "state_size",
        "d_conv": "conv_kernel",
        "expand": "expand",
        "dt_rank": "time_step_rank",
    },
    "Mamba2": {
        "d_state": "state_size",
        "d_conv": "conv_kernel",
        "expand": "expand",
        "headdim": "head_dim",
        "ngroups": "n_groups",
    },
}
MAMBA2_FIELDS = {
    "vocab_size": 32768,
    "hidden_size": 4096,
    "num_hidden_layers": 64,
    "num_heads": 128,
    "head_dim": 64,
    "state_size": 128,
    "n_groups": 8,
    "expand": 2,
    "conv_kernel": 4,
    "time_step_limit": (0.0, math.inf),
    "use_conv_bias": True,
    "use_bias": False,
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": False,
}


# RWKV-4


RWKV = Table(
    within="rwkv.blocks.{i}.",
    outer=(
        row("rwkv.embeddings.weight", "embedding.weight"),
        row("rwkv.blocks.0.pre_ln.weight", "embedding_norm.weight"),
        row("rwkv.blocks.0.pre_ln.bias", "embedding_norm.bias"),
        row("rwkv.ln_out.weight", "norm.weight"),
        row("rwkv.ln_out.bias", "norm.bias"),
        row("head.weight"),
    ),
    block=(
        row("ln1.weight", "norm.weight"),
        row("ln1.bias", "norm.bias"),
        row("ln2.weight", "mlp_norm.weight"),
        row("ln2.bias", "mlp_norm.bias"),
    ),
    mixers={
        "rwkv4": (
            row("attention.time_decay", "decay"),
            row("attention.time_first", "u"),
            row("attention.time_mix_key", "mu.k", Squeeze(0), Squeeze(0)),
            row("attention.time_mix_value", "mu.v", Squeeze(0), Squeeze(0)),
            row("attention.time_mix_receptance", "mu.r", Squeeze(0), Squeeze(0)),
            row("attention.key.weight", "k.weight"),
            row("attention.value.weight", "v.weight"),
            row("attention.receptance.weight", "r.weight"),
            row("attention.output.weight", "out.weight"),
        )
    },
    mlps={
        "rwkv4": (
            row("feed_forward.time_mix_key", "mu.k", Squeeze(0), Squeeze(0)),
            row("feed_forward.time_mix_receptance", "mu.r", Squeeze(0), Squeeze(0)),
            row("feed_forward.key.weight", "k.weight"),
            row("feed_forward.receptance.weight", "r.weight"),
            row("feed_forward.value.weight", "v.weight"),
        )
    },
)


def read_rwkv(f: Mapping[str, Any]) -> Config:
    """RWKV-4. Their last norm has eps 1e-5 whatever layer_norm_epsilon says, ours one for all."""
    width = f["hidden_size"]
    wanted("attention_hidden_size", f["attention_hidden_size"], None, width)
    hidden = 4 * width if f["intermediate_size"] is None else f["intermediate_size"]
    return Config(
        f["vocab_size"],
        width,
        ("rwkv4",) * f["num_hidden_layers"],
        mlp="rwkv4",
        mlp_options={"rwkv4": {"hidden": hidden}},
        norm="layer",
        embedding_norm=True,
        tie=f["tie_word_embeddings"],
    )


# Qwen3-Next


def qkvz(o: Options) -> tuple[int, list[int]]:
    """In each group, a head of queries and one of keys, then its heads of values and of gates."""
    values = o["heads"] // o["qk_heads"] * o["V"]
    return o["qk_heads"], [o["K"], o["K"], values, values]


def ba(o: Options) -> tuple[int, list[int]]:
    """In each group beta and the gate of its heads of values."""
    return o["qk_heads"], [o["heads"] // o["qk_heads"]] * 2


def qkv(o: Options) -> tuple[int, list[int]]:
    """All queries, all keys, all values."""
    return 1, [o["qk_heads"] * o["K"], o["qk_heads"] * o["K"], o["heads"] * o["V"]]


def query_and_gate(o: Options) -> tuple[int, list[int]]:
    """In each head the query and the gate."""
    return o["heads"], [o["head_size"]] * 2


QWEN3_NEXT = Table(
    within="model.layers.{i}.",
    outer=(
        row("model.embed_tokens.weight", "embedding.weight"),
        row("model.norm.weight", "norm.weight"),
        row("lm_head.weight", "head.weight"),
    ),
    block=(
        row("input_layernorm.weight", "norm.weight"),
        row("post_attention_layernorm.weight", "mlp_norm.weight"),
    ),
    mixers={
        "gated_deltanet": (
            row(
                "linear_attn.in_proj_qkvz.weight",
                "q.linear.weight k.linear.weight v.linear.weight gate.weight",
                Cut(qkvz),
            ),
            row("linear_attn.in_proj_ba.weight", "beta.weight g.weight", Cut(ba)),
            row(
                "linear_attn.conv1d.weight",
                "q.conv.weight k.conv.weight v.conv.weight",
                Squeeze(1),
                Cut(qkv),
            ),
            row("linear_attn.A_log", "A_log"),
            row("linear_attn.dt_bias", "dt_bias"),
            row("linear_attn.norm.weight", "norm.weight"),
            row("linear_attn.out_proj.weight", "out.weight"),
        ),
        "softmax": (
            row("self_attn.q_proj.weight", "q.linear.weight gate.weight", Cut(query_and_gate)),
            row("self_attn.k_proj.weight", "k.linear.weight"),
            row("self_attn.v_proj.weight", "v.linear.weight"),
            row("self_attn.q_norm.weight", "q_norm.weight"),
            row("self_attn.k_norm.weight", "k_norm.weight"),
            row("self_attn.o_proj.weight", "out.weight"),
        ),
    },
    mlps={
        "swiglu": (
            row("mlp.gate_proj.weight", "gate.weight"),
            row("mlp.up_proj.weight", "up.weight"),
            row("mlp.down_proj.weight", "down.weight"),
        ),
        "moe": (
            row("mlp.gate.weight", "router.weight"),
            row("mlp.experts.{e}.gate_proj.weight", "gate", Stack()),
            row("mlp.experts.{e}.up_proj.weight", "up", Stack()),
            row("mlp.experts.{e}.down_proj.weight", "down", Stack()),
            row("mlp.shared_expert.gate_proj.weight", "shared.gate.weight"),
            row("mlp.shared_expert.up_proj.weight", "shared.up.weight"),
            row("mlp.shared_expert.down_proj.weight", "shared.down.weight"),
            row("mlp.shared_expert_gate.weight", "shared_gate.weight"),
        ),
    },
)
PACKED = (  # as transformers holds the experts in memory
    row("mlp.experts.gate_up_proj", "gate up", Halves()),
    row("mlp.experts.down_proj", "down"),
)
QWEN3_NEXT_PACKED = replace(
    QWEN3_NEXT,
    mlps=QWEN3_NEXT.mlps
    | {"moe": PACKED + tuple(r for r in QWEN3_NEXT.mlps["moe"] if "{e}" not in r.theirs)},
)


def read_qwen3_next(f: Mapping[str, Any]) -> Config:
    """Gated DeltaNet with attention in every fourth layer, and a mixture of experts."""
    depth, eps = f["num_hidden_layers"], f["rms_norm_eps"]
    rope = {name: f[name] for name in ("rope_theta", "partial_rotary_factor")}
    rope |= f["rope_parameters"] or f["rope_scaling"] or {}
    wanted("rope_type", rope.get("rope_type", rope.get("type", "default")), "default")
    kinds = f["layer_types"] or [
        "linear_attention" if (i + 1) % f["full_attention_interval"] else "full_attention"
        for i in range(depth)
    ]
    for kind in kinds:
        wanted("layer_types", kind, *MIXERS)
    mlps = tuple(
        "moe"
        if i not in (f["mlp_only_layers"] or ())
        and f["num_experts"] > 0
        and (i + 1) % f["decoder_sparse_step"] == 0
        else "swiglu"
        for i in range(depth)
    )
    options = {
        "gated_deltanet": {
            "heads": f["linear_num_value_heads"],
            "qk_heads": f["linear_num_key_heads"],
            "K": f["linear_key_head_dim"],
            "V": f["linear_value_head_dim"],
            "conv": f["linear_conv_kernel_dim"],
            "eps": eps,
        },
        "softmax": {
            "heads": f["num_attention_heads"],
            "kv_heads": f["num_key_value_heads"],
            "head_size": f["head_dim"],
            "rotary": rope["partial_rotary_factor"],
            "base": float(rope["rope_theta"]),
            "qk_norm": True,
            "gate": True,
            "eps": eps,
            "offset": 1.0,
        },
    }
    mlp_options = {
        "swiglu": {"hidden": f["intermediate_size"]},
        "moe": {
            "experts": f["num_experts"],
            "active": f["num_experts_per_tok"],
            "hidden": f["moe_intermediate_size"],
            "shared": f["shared_expert_intermediate_size"],
            "normalize": f["norm_topk_prob"],
        },
    }
    layers = tuple(MIXERS[kind] for kind in kinds)
    return Config(
        f["vocab_size"],
        f["hidden_size"],
        layers,
        {kind: options[kind] for kind in options if kind in layers},
        mlp=mlps,
        mlp_options={kind: mlp_options[kind] for kind in mlp_options if kind in mlps},
        eps=eps,
        offset=1.0,
        tie=f["tie_word_embeddings"],
    )


MIXERS = {"linear_attention": "gated_deltanet", "full_attention": "softmax"}


# GLA and RetNet, as the flash-linear-attention library writes them


PROJECTIONS = (
    row("attn.q_proj.weight", "q.linear.weight"),
    row("attn.k_proj.weight", "k.linear.weight"),
    row("attn.v_proj.weight", "v.linear.weight"),
    row("attn.q_conv1d.weight", "q.conv.weight", Squeeze(1)),
    row("attn.k_conv1d.weight", "k.conv.weight", Squeeze(1)),
    row("attn.v_conv1d.weight", "v.conv.weight", Squeeze(1)),
    row("attn.g_proj.weight", "gate.weight"),
    row("attn.g_norm_swish_gate.weight", "norm.weight"),
    row("attn.o_proj.weight", "out.weight"),
)
FLA = Table(
    within="model.layers.{i}.",
    outer=(
        row("model.embeddings.weight", "embedding.weight"),
        row("model.norm.weight", "norm.weight"),
        row("lm_head.weight", "head.weight"),
    ),
    block=(
        row("attn_norm.weight", "norm.weight"),
        row("mlp_norm.weight", "mlp_norm.weight"),
    ),
    mixers={
        "gla": (
            *PROJECTIONS,
            row("attn.gk_proj.0.weight", "g.0.weight"),
            row("attn.gk_proj.1.weight", "g.1.weight"),
            row("attn.gk_proj.1.bias", "g.1.bias"),
        ),
        "retnet": PROJECTIONS,
    },
    mlps={"swiglu": QWEN3_NEXT.mlps["swiglu"]},
)
FLA_TABLES = (FLA, FLA.renamed("g_norm_swish_gate", "g_norm"))  # the second: fuse_norm is false
FLA_FIELDS = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "num_kv_heads": None,
    "intermediate_size": None,
    "elementwise_affine": True,
    "norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
FLA_ONLY = {
    "hidden_act": ("swish",),
    "feature_map": (None,),
    "use_output_gate": (True,),
    "attn": (None,),
    "attnres_block_size": (None,),
}


def read_fla(kind: str, own: Options, f: Mapping[str, Any]) -> Config:
    """What GLA and RetNet have in common, and the options that a layer has of its own."""
    width, hidden = f["hidden_size"], f["intermediate_size"]
    wanted("num_kv_heads", f["num_kv_heads"], None, f["num_heads"])
    if hidden is None:
        ratio = 4 if f["hidden_ratio"] is None else f["hidden_ratio"]
        hidden = -(-int(width * ratio * 2 / 3) // 256) * 256
    options = {
        "heads": f["num_heads"],
        "expand_k": float(f["expand_k"]),
        "expand_v": float(f["expand_v"]),
        "eps": f["norm_eps"],
    }
    return Config(
        f["vocab_size"],
        width,
        (kind,) * f["num_hidden_layers"],
        {kind: options | own},
        mlp_options={"swiglu": {"hidden": hidden}},
        eps=f["norm_eps"],
        tie=f["tie_word_embeddings"],
    )


def read_gla(f: Mapping[str, Any]) -> Config:
    """GLA; rank and tau are fixed in its model."""
    conv = f["conv_size"] if f["use_short_conv"] else 0
    return read_fla("gla", {"conv": conv, "rank": 16, "tau": 16.0}, f)


def read_retnet(f: Mapping[str, Any]) -> Config:
    """RetNet with the rotation of fla."""
    return read_fla("retnet", {"rotary": "rope", "affine": f["elementwise_affine"]}, f)


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("mamba", (MAMBA, OLDER), MAMBA_FIELDS, SILU, read_mamba),
        Family(
            "falcon_mamba",
            (MAMBA,),
            MAMBA_FIELDS | {"mixer_rms_eps": 1e-6},
            SILU,
            read_mamba,
        ),
        Family("mamba2", (MAMBA, OLDER), MAMBA2_FIELDS, SILU, read_mamba2),
        Family(
            "state-spaces",
            (OLDER,),
            {
                "d_model": 2560,
                "n_layer": 64,
                "vocab_size": 50277,
                "ssm_cfg": {},
                "pad_vocab_size_multiple": 8,
                "tie_embeddings": True,
            },
            {
                "rms_norm": (True,),
                "d_intermediate": (0,),
                "attn_layer_idx": ([],),
            },
            read_state_spaces,
        ),
        Family(
            "rwkv",
            (RWKV,),
            {
                "vocab_size": 50277,
                "hidden_size": 4096,
                "num_hidden_layers": 32,
                "attention_hidden_size": None,
                "intermediate_size": None,
                "tie_word_embeddings": False,
            },
            {"layer_norm_epsilon": (1e-5,)},
            read_rwkv,
        ),
        Family(
            "qwen3_next",
            (QWEN3_NEXT, QWEN3_NEXT_PACKED),
            {
                "vocab_size": 151936,
                "hidden_size": 2048,
                "intermediate_size": 5632,
                "num_hidden_layers": 48,
                "num_attention_heads": 16,
                "num_key_value_heads": 2,
                "head_dim": 256,
                "rms_norm_eps": 1e-6,
                "tie_word_embeddings": False,
                "rope_parameters": None,
                "rope_scaling": None,
                "rope_theta": 10_000.0,
                "partial_rotary_factor": 0.25,
                "linear_conv_kernel_dim": 4,
                "linear_key_head_dim": 128,
                "linear_value_head_dim": 128,
                "linear_num_key_heads": 16,
                "linear_num_value_heads": 32,
                "decoder_sparse_step": 1,
                "moe_intermediate_size": 512,
                "shared_expert_intermediate_size": 512,
                "num_experts_per_tok": 10,
                "num_experts": 512,
                "norm_topk_prob": True,
                "mlp_only_layers": None,
                "layer_types": None,
                "full_attention_interval": 4,
            },
            {"hidden_act": ("silu", "swish"), "attention_bias": (False,)},
            read_qwen3_next,
            ignored="mtp.",  # a head for speculative decoding
        ),
        Family(
            "gla",
            FLA_TABLES,
            FLA_FIELDS
            | {
                "num_heads": 4,
                "expand_k": 0.5,
                "expand_v": 1.0,
                "hidden_ratio": 4,
                "use_short_conv": False,
                "conv_size": 4,
            },
            FLA_ONLY
            | {
                "clamp_min": (None,),
                "use_gk": (True,),
                "use_gv": (False,),
                "elementwise_affine": (True,),
            },
            read_gla,
        ),
        Family(
            "retnet",
            FLA_TABLES,
            FLA_FIELDS | {"num_heads": 8, "expand_k": 1.0, "expand_v": 2.0, "hidden_ratio": 2},
            FLA_ONLY | {"use_short_conv": (False,)},
            read_retnet,
        ),
    )
}


def family_of(raw: Mapping[str, Any]) -> Family:
    """The family of a config.json.

    Raises:
        ValueError: it is none that we know.
    """
    name = raw.get("model_type", "state-spaces" if "ssm_cfg" in raw else None)
    if name not in FAMILIES:
        raise ValueError(
            f"config.json: model_type must be one of {', '.join(FAMILIES)}, got {name!r}"
        )
    return FAMILIES[name]
