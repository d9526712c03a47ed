"""A mixture of experts: each token goes through a few of many small mlps."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linviz.layers.parts import wide
from linviz.listening import note
from linviz.models.mlp import SwiGLU


class MoE(nn.Module):
    """y = sum of p_e expert_e(x) over the likeliest experts e, + sigmoid(x w) shared(x).

    p = softmax(x W), each expert is a SwiGLU. Source: Shazeer et al., 2017, arXiv:1701.06538,
    sec. 2; softmax before the choice, and the shared expert, as in Qwen3-Next.

    Args:
        width: channels of a token, D.
        experts: how many there are, E.
        active: how many see a token.
        hidden: channels inside an expert; D / 2 by default.
        shared: channels inside the expert that sees every token; 0 for none.
        normalize: the p of the chosen experts are divided by their sum.

    Attributes:
        gate: [E, hidden, D], up: [E, hidden, D], down: [E, D, hidden]; see SwiGLU.
    """

    def __init__(
        self,
        width: int,
        *,
        experts: int = 8,
        active: int = 2,
        hidden: int | None = None,
        shared: int = 0,
        normalize: bool = True,
    ):
        super().__init__()
        if not 1 <= active <= experts:
            raise ValueError(f"MoE: active must be 1 to experts={experts}, got {active}")
        hidden = width // 2 if hidden is None else hidden
        self.active, self.normalize = active, normalize
        self.router = nn.Linear(width, experts, bias=False)
        near, far = width**-0.5, hidden**-0.5  # as torch.nn.Linear
        self.gate = nn.Parameter(torch.empty(experts, hidden, width).uniform_(-near, near))
        self.up = nn.Parameter(torch.empty(experts, hidden, width).uniform_(-near, near))
        self.down = nn.Parameter(torch.empty(experts, width, hidden).uniform_(-far, far))
        self.shared = SwiGLU(width, hidden=shared) if shared else None
        self.shared_gate = nn.Linear(width, 1, bias=False) if shared else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        p = wide(self.router(x)).softmax(-1)
        share, chosen = p.topk(self.active)
        if self.normalize:
            share = share / share.sum(-1, keepdim=True)
        note(self, router=p, chosen=chosen)
        tokens, chosen = x.flatten(0, 1), chosen.flatten(0, 1)
        share = share.to(x.dtype).flatten(0, 1)
        y = torch.zeros_like(tokens)
        for e in chosen.unique().tolist():
            token, place = (chosen == e).nonzero(as_tuple=True)
            here = tokens[token]
            inner = F.silu(F.linear(here, self.gate[e])) * F.linear(here, self.up[e])
            y = y.index_add(0, token, share[token, place, None] * F.linear(inner, self.down[e]))
        y = y.unflatten(0, x.shape[:2])
        if self.shared is None or self.shared_gate is None:
            return y
        return y + self.shared_gate(x).sigmoid() * self.shared(x)
