"""Other people's code for the same mechanisms, called with our arguments and our layouts.

transformers has a plain torch path for some mechanisms, written from the same papers by other
people, so it is what the tests compare with and what the benchmark stands beside. It differs in
layout (state transposed, time last), in scale (the delta rules multiply q by K^-1/2) and in what it
calls a decay. It is imported on first use.

If fla or mamba_ssm is installed as well, transformers wraps these functions and jumps to Triton;
`theirs` unwraps them.
"""

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Result = tuple[Tensor, Any]


def theirs(model: str, name: str) -> Callable:
    """A function or class of transformers, in plain torch."""
    module = importlib.import_module(f"transformers.models.{model}.modeling_{model}")
    return inspect.unwrap(getattr(module, name))


def mamba(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, S: Tensor | None = None
) -> Result:
    """Their scan starts from zero, their step from any state (which it overwrites)."""
    if S is None:
        scan = theirs("mamba", "mamba_selective_scan")
        channels_first = (x.mT, dt.mT, A, B.mT, C.mT, D)
        y, h = scan(*channels_first, return_last_state=True)
        return y.mT, h
    step, h = theirs("mamba", "mamba_selective_state_update"), S.clone()
    tokens = zip(*(y.unbind(1) for y in (x, dt, B, C)), strict=True)
    return torch.stack([step(h, x_t, dt_t, A, B_t, C_t, D) for x_t, dt_t, B_t, C_t in tokens], 1), h


def mamba2(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, S: Tensor | None = None
) -> Result:
    """Their state is [P, N]; chunks of 64."""
    scan = theirs("mamba2", "mamba2_chunk_scan")
    start = None if S is None else S.mT
    y, S = scan(x, dt, A, B, C, 64, D, initial_states=start, return_final_states=True)
    return y, S.mT


def mamba2_steps(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, S: Tensor | None = None
) -> Result:
    """Their step wants A, dt and D for every channel."""
    step = theirs("mamba2", "mamba2_selective_state_update")
    b, _, h, p = x.shape
    S = x.new_zeros(b, h, p, B.shape[-1]) if S is None else S.mT.clone()
    every, y = A[:, None, None].expand(h, p, B.shape[-1]), []
    for x_t, dt_t, B_t, C_t in zip(*(z.unbind(1) for z in (x, dt, B, C)), strict=True):
        dt_t = dt_t[..., None].expand(b, h, p)
        y.append(step(S, x_t, dt_t, every, B_t, C_t, D[:, None].expand(h, p)))
    return torch.stack(y, 1), S.mT


def rwkv4(w: Tensor, u: Tensor, k: Tensor, v: Tensor, S: Any = None) -> Result:
    """Their decay is the paper's: the logarithm of minus ours."""
    run = theirs("rwkv", "rwkv_linear_attention_cpu")
    o, S = run(torch.log(-w), u, k, v, None if S is None else list(S), return_state=True)
    return o, tuple(S)


def delta_rule(model: str, name: str) -> Callable[..., Result]:
    """Their delta rules multiply q by K^-1/2."""

    def run(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        beta: Tensor,
        g: Tensor | None = None,
        S: Tensor | None = None,
    ) -> Result:
        g = torch.zeros_like(beta) if g is None else g
        q = q * q.shape[-1] ** 0.5
        return theirs(model, name)(q, k, v, g, beta, initial_state=S, output_final_state=True)

    return run


def without_gate(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, S: Tensor | None = None) -> Result:
    """Their gated delta rule with g = 0."""
    return PEERS["gated_deltanet"]["chunked"](q, k, v, beta, None, S)


PEERS: dict[str, dict[str, Callable[..., Result]]] = {
    "mamba": {"loop": mamba},
    "mamba2": {"chunked": mamba2, "loop": mamba2_steps},
    "rwkv4": {"loop": rwkv4},
    "deltanet": {"chunked": without_gate},
    "gated_deltanet": {
        "chunked": delta_rule("qwen3_next", "torch_chunk_gated_delta_rule"),
        "loop": delta_rule("qwen3_next", "torch_recurrent_gated_delta_rule"),
    },
    "kda": {
        "chunked": delta_rule("kimi_linear", "chunk_kimi_delta_attention"),
        "loop": delta_rule("kimi_linear", "recurrent_kimi_delta_attention"),
    },
}
