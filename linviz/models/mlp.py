"""What follows the mixer in a block: maps of each token for itself."""

import torch.nn.functional as F
from torch import Tensor, nn


class SwiGLU(nn.Module):
    """y = W_down (silu(x W_gate) * x W_up).

    Source: Shazeer, 2020, arXiv:2002.05202, eq. 6.

    Args:
        width: channels of a token, D.
        hidden: channels inside; 8/3 D rounded up to a multiple of 32 by default.
    """

    def __init__(self, width: int, *, hidden: int | None = None):
        super().__init__()
        hidden = -(-8 * width // 3 // 32) * 32 if hidden is None else hidden
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        return self.down(F.silu(self.gate(x)) * self.up(x))
