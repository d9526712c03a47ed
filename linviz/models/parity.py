"""Do our layers compute what other people's code computes? The same weights in both.

`python -m linviz hub parity` takes small random weights, `python -m linviz hub check NAME` real
ones. Everything is in float32.
"""

import argparse
import inspect
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from linviz.models import hub, rwkv
from linviz.models.lm import LM, Config

TOLERANCE = 1e-5
SMALL = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 3}
SPECIMENS: dict[str, dict[str, Any]] = {  # by model_type: a config of transformers
    "mamba": SMALL | {"state_size": 5, "time_step_rank": 3},
    "falcon_mamba": SMALL | {"state_size": 5, "use_bias": True, "tie_word_embeddings": False},
    "mamba2": SMALL | {"state_size": 6, "num_heads": 8, "head_dim": 8, "n_groups": 2},
    "rwkv": SMALL | {"intermediate_size": 80},
    "qwen3_next": SMALL
    | {
        "num_hidden_layers": 4,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 12,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 24,
        "mlp_only_layers": [1],
    },
}
SPREAD = {"qwen3_next": 0.3}  # below 1 where rounding grows: its norm magnifies outputs near zero
TEXT = "The capital of France is Paris, and the capital of Italy is"
HEAD = (
    "| model | compared with | parameters | error of logits | tokens equal | least margin | "
    "seconds | |\n|---|---|--:|--:|--:|--:|--:|---|"
)
FLA = (
    "\nGLA and RetNet: no other code runs them without a GPU; on one, `hub check` compares with "
    "fla.\nNames, shapes and numbers are compared in tests/test_hub.py."
)
Run = Callable[[Tensor, Any], tuple[Tensor, Any]]  # ids [B, T], state -> logits [B, T, N], state


@dataclass(frozen=True)
class Parity:
    """How near two computations of one model are.

    Attributes:
        model: its name.
        peer: whose code ours is compared with.
        parameters: how many numbers it has learnt.
        error: of our logits on a prompt: greatest difference over the greatest of theirs.
        equal: tokens, of those generated, before the first that differs.
        tokens: how many were generated, the likeliest each time, one by one from a state.
        margin: the least lead of a generated token over the second, over the greatest logit.
        seconds: of both.
    """

    model: str
    peer: str
    parameters: int
    error: float
    equal: int
    tokens: int
    margin: float
    seconds: float

    @property
    def ok(self) -> bool:
        """The same logits up to float32's rounding, and the same tokens."""
        return self.error <= TOLERANCE and self.equal == self.tokens

    def __str__(self) -> str:
        return (
            f"| {self.model} | {self.peer} | {self.parameters:,} | {self.error:.1e} | "
            f"{self.equal} of {self.tokens} | {self.margin:.1e} | {self.seconds:.1f} | "
            f"{'equal' if self.ok else 'DIFFERENT'} |"
        )


@torch.no_grad()
def greedy(
    run: Run, ids: Int[Tensor, "b t"], tokens: int
) -> tuple[Float[Tensor, "b t n"], Int[Tensor, "b m"], float]:
    """Logits of a prompt, the likeliest tokens after it, and the least lead of one of them."""
    prompt, state = run(ids, None)
    logits, made, margin = prompt[:, -1], [], float("inf")
    for _ in range(tokens):
        first, second = logits.topk(2).values.unbind(-1)
        margin = min(margin, ((first - second) / logits.abs().amax(-1)).min().item())
        made.append(logits.argmax(-1))
        logits, state = run(made[-1][:, None], state)
        logits = logits[:, -1]
    return prompt, torch.stack(made, 1), margin


def compare(
    model: str, peer: str, ours: nn.Module, theirs: Run, ids: Int[Tensor, "b t"], tokens: int
) -> Parity:
    """Run both on a prompt, and let both go on."""
    start = time.perf_counter()
    y, mine, _ = greedy(ours, ids, tokens)
    wanted, made, margin = greedy(theirs, ids, tokens)
    error = ((y - wanted).abs().max() / wanted.abs().max()).item()
    equal = (mine == made).all(0).long().cumprod(0).sum().item()
    numbers = sum(p.numel() for p in ours.parameters())
    seconds = time.perf_counter() - start
    return Parity(model, peer, numbers, error, equal, tokens, margin, seconds)


def check(
    source: str | Path,
    *,
    tokens: int = 64,
    revision: str | None = None,
    device: str | torch.device = "cpu",
) -> Parity:
    """Load a checkpoint by other people's code and by `load`, and compare.

    The others are transformers; for RWKV's .pth files the authors' package rwkv; for GLA and RetNet
    the flash-linear-attention library, which needs a GPU.

    Args:
        source: a folder, a .pth file, or a name on the hub.
        tokens: how many to generate.
        revision: branch, tag or commit on the hub.
        device: where both run.

    Raises:
        ValueError: `load` cannot read it, or nobody else can.
        ImportError: the other library is not installed.
    """
    place = hub.locate(source, revision)
    ours = hub.load(place, dtype=torch.float32, device=device)
    if place.suffix == ".pth":
        peer, theirs = "rwkv", by_authors(place, device)
    else:
        kind = ours.record.get("published", {}).get("config", {}).get("model_type")
        if kind is None:
            raise ValueError(f"source: nobody else's code reads {str(source)!r}")
        peer = "fla" if kind in ("gla", "retnet") else "transformers"
        import_module(peer)  # fla makes itself known to transformers
        theirs = by_transformers(place, device)
    if ours.tokenizer is None:
        seed = torch.Generator().manual_seed(0)
        ids = torch.randint(ours.config.vocab, (1, 70), generator=seed).to(device)
    else:
        ids = ours.encode(TEXT)
    name = place.name if place == Path(source) else str(source)
    return compare(name, peer, ours, theirs, ids, tokens)


def by_transformers(folder: Path, device: str | torch.device) -> Run:
    """A model in transformers, as a function of ids and its cache, whatever that is called."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if hasattr(config, "rescale_every"):
        config.rescale_every = 0  # meant for float16; it moves the eps of the norms
    model = AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.float32, trust_remote_code=False
    )
    model.eval().to(device)
    known = inspect.signature(model.forward).parameters
    (cache,) = {"past_key_values", "cache_params", "state"} & known.keys()

    def run(ids: Tensor, state: Any) -> tuple[Tensor, Any]:
        out = model(ids, use_cache=True, **{cache: state})
        return out.logits, getattr(out, cache)

    return run


def by_authors(file: Path, device: str | torch.device) -> Run:
    """An RWKV in its authors' package, which looks at the environment when it is imported."""
    goose = rwkv.recognise(hub.pickled(file)) == "rwkv7"
    os.environ |= {"RWKV_V7_ON": str(int(goose)), "RWKV_JIT_ON": "0"}
    sys.modules.pop("rwkv.model", None)
    with redirect_stdout(io.StringIO()):
        model = import_module("rwkv.model").RWKV(str(file.with_suffix("")), f"{device} fp32")

    def run(ids: Tensor, state: Any) -> tuple[Tensor, Any]:
        logits, state = model.forward(ids[0].tolist(), state, full_output=True)
        return logits.reshape(1, ids.shape[1], -1), state

    return run


@torch.no_grad()
def randomize(model: nn.Module, embedding: Tensor, spread: float = 1.0) -> None:
    """Move all numbers away from their first values, so that none is idle."""
    for p in model.parameters():
        scale = 0.1 if p.ndim == 1 else spread * p.shape[-1] ** -0.5
        p.add_(torch.randn_like(p) * (0.02 if p is embedding else scale))  # or tokens repeat


def specimen(kind: str, seed: int = 0) -> nn.Module:
    """A small model of transformers whose weights, norms and biases are all random."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = AutoConfig.for_model(kind, **SPECIMENS[kind])
        model = AutoModelForCausalLM.from_config(config).eval()
        randomize(model, model.get_input_embeddings().weight, SPREAD.get(kind, 1.0))
    return model


def rwkv_specimen(kind: str, seed: int = 0) -> LM:
    """A small RWKV of ours, all random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LM(Config(97, 128, (kind,) * 3, mlp=kind, norm="layer", embedding_norm=True))
        randomize(model, model.embedding.weight)
    return model


def specimens() -> Iterator[Parity]:
    """Small random models: written by transformers, or for the rwkv package, and read by `load`."""
    with tempfile.TemporaryDirectory() as folder:
        for kind in SPECIMENS:
            specimen(kind).save_pretrained(Path(folder, kind))
            yield check(Path(folder, kind))
        for kind in rwkv.KEYS.mixers if find_spec("rwkv") else ():
            yield check(rwkv.save(rwkv_specimen(kind), Path(folder, f"{kind}.pth")))


def main(argv: Sequence[str]) -> int:
    """`python -m linviz hub`; the return value is the exit code."""
    parser = argparse.ArgumentParser(prog="python -m linviz hub", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("parity", help="small random models of each family")
    real = commands.add_parser("check", help="real weights: a folder, a file, a name on the hub")
    real.add_argument("source")
    real.add_argument("--revision", help="branch, tag or commit on the hub")
    real.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    # in a clone transformers would take our folder kernels/ for the package of that name
    sys.path = [p for p in sys.path if not Path(p, "kernels", "launch.py").is_file()]
    if find_spec("transformers"):
        logging = import_module("transformers").logging
        logging.disable_progress_bar()
        logging.set_verbosity_error()
    rows = specimens()
    if args.command == "check":
        try:
            rows = iter([check(args.source, revision=args.revision, device=args.device)])
        except (ImportError, ValueError) as error:
            sys.exit(str(error))
    print(HEAD, flush=True)
    failed = False
    for row in rows:
        print(row, flush=True)
        failed |= not row.ok
    if args.command == "parity":
        print(
            FLA if find_spec("rwkv") else f"{FLA}\nRWKV's .pth files: pip install rwkv to compare"
        )
    return failed
