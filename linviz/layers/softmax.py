"""Layer of softmax attention: lv.softmax with rotated queries and keys, and a growing cache.

Source: Vaswani et al., 2017, arXiv:1706.03762, sec. 3.2.2; rotation: arXiv:2104.09864; shared keys
and values: Ainslie et al., 2023, arXiv:2305.13245; norm of q and k, and the gate on the output, as
in Qwen3-Next.
"""

import torch
from torch import nn

from linviz.layers.base import Layer, State, X, divided
from linviz.layers.parts import (
    Projection,
    RMSNorm,
    heads,
    positions,
    project,
    rotary_frequencies,
    rotate,
)
from linviz.listening import note
from linviz.mechanisms import softmax


class Softmax(Layer):
    """y = W_O (gate * lv.softmax(q, k, v)).

    State: k_cache and v_cache [B, S, G, K], the rotated keys and the values so far, and q_conv,
    k_conv, v_conv where there is a short convolution.

    Args:
        width: channels of a token, D.
        heads: how many, H.
        kv_heads: G, heads of keys and values, each shared by H / G queries; H by default.
        head_size: K; D / H by default.
        rotary: the part of K that is rotated by position; 0 for none.
        base: of the rotation's frequencies.
        qk_norm: RMSNorm of each query and key, before the rotation.
        gate: multiply the output by sigmoid(x W_G).
        bias: of the projections of q, k and v.
        conv: width of the short convolutions; 0 for none.
        eps: of the norms.
        offset: added to the norms' weights, see RMSNorm.
        place: see Layer.
    """

    mechanism = softmax.MECHANISM

    def __init__(
        self,
        width: int,
        *,
        heads: int = 4,
        kv_heads: int | None = None,
        head_size: int | None = None,
        rotary: float = 1.0,
        base: float = 10_000.0,
        qk_norm: bool = False,
        gate: bool = False,
        bias: bool = False,
        conv: int = 0,
        eps: float = 1e-6,
        offset: float = 0.0,
        place: tuple[int, int] = (0, 1),
    ):
        super().__init__(width, place=place)
        self.heads, self.groups = heads, heads if kv_heads is None else kv_heads
        self.shared = divided(heads, self.groups, "heads by kv_heads", "Softmax")
        self.K = divided(width, heads, "width", "Softmax") if head_size is None else head_size
        self.q = Projection(width, heads * self.K, conv=conv, bias=bias)
        self.k = Projection(width, self.groups * self.K, conv=conv, bias=bias)
        self.v = Projection(width, self.groups * self.K, conv=conv, bias=bias)
        self.q_norm = RMSNorm(self.K, eps, offset=offset) if qk_norm else None
        self.k_norm = RMSNorm(self.K, eps, offset=offset) if qk_norm else None
        self.gate = nn.Linear(width, heads * self.K, bias=False) if gate else None
        self.out = nn.Linear(heads * self.K, width, bias=False)
        frequency = rotary_frequencies(int(self.K * rotary), base)
        self.register_buffer("frequency", frequency, persistent=False)

    def forward(self, x: X, state: State | None = None) -> tuple[X, State]:
        """[B, T, D] -> [B, T, D], from a state."""
        (q, k, v), pasts = project(x, state, q=self.q, k=self.k, v=self.v)
        q, k, v = heads(q, self.heads), heads(k, self.groups), heads(v, self.groups)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        B, T, _ = x.shape
        seen = 0 if state is None else state["k_cache"].shape[1]
        at = positions(x.new_full((B,), seen, dtype=torch.long), T)
        q, k = rotate(q, at, self.frequency), rotate(k, at, self.frequency)
        wide = None if state is None else State({n: self.repeat(state[n]) for n in CACHE})
        o, S = self.mix(q, self.repeat(k), self.repeat(v), state=wide)
        o = o.flatten(-2)
        if self.gate is not None:
            gate = self.gate(x).sigmoid()
            note(self, gate=gate)
            o = gate * o
        return self.out(o), State({n: S[n][:, :, :: self.shared] for n in CACHE} | pasts)

    def repeat(self, x: torch.Tensor) -> torch.Tensor:
        """A key or value for each query that shares it."""
        return x.repeat_interleave(self.shared, 2)


CACHE = ("k_cache", "v_cache")
