"""lv.check: do two tensors hold the same numbers?"""

from typing import Any

import torch
from torch import Tensor

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}


def check(a: Any, b: Any, name: str = "", *, tolerance: float | None = None) -> None:
    """Assert that a and b agree, and print one line that says how well.

    The error is the greatest difference over the greatest number of b (or 1e-3, if greater).

    Args:
        a: a tensor, or a tuple of tensors such as (o, S).
        b: what it should be.
        name: what is compared, for the line.
        tolerance: greatest error allowed; by default by the type: float64 1e-10, float32 1e-5.

    Raises:
        AssertionError: shapes differ, an entry is not a number, or the error is too great; the
            message says where.
    """
    pairs = list(zip(parts(a), parts(b), strict=True))
    worst, limit = 0.0, 0.0
    for x, y in pairs:
        if x.shape != y.shape:
            raise AssertionError(f"{name}: shapes differ: {tuple(x.shape)} and {tuple(y.shape)}")
        low = min((x.dtype, y.dtype), key=lambda kind: -TOLERANCE.get(kind.to_real(), 1e-10))
        limit = max(limit, TOLERANCE.get(low.to_real(), 0.0) if tolerance is None else tolerance)
        wide = torch.complex128 if x.is_complex() else torch.float64
        x, y = x.detach().to("cpu", wide), y.detach().to("cpu", wide)
        if x.numel():
            error = (x - y).abs() / max(y.abs().max().item(), 1e-3)
            error[x == y] = 0.0  # infinities that agree
            place = int(error.nan_to_num(torch.inf).argmax())
            worst = max(worst, float(error.nan_to_num(torch.inf).max()))
            if worst > limit:
                at = [int(i) for i in torch.unravel_index(torch.tensor(place), x.shape)]
                raise AssertionError(
                    f"{name or 'check'}: error {worst:.1e} is more than {limit:.0e}; at {at}: "
                    f"{x.flatten()[place].item():.6g} and {y.flatten()[place].item():.6g}"
                )
    print(f"{name or 'equal'}: error {worst:.0e} (at most {limit:.0e})")


def parts(x: Any) -> list[Tensor]:
    """The tensors in a tensor or in a (nested) tuple."""
    if isinstance(x, tuple | list):
        return [part for item in x for part in parts(item)]
    return [x if isinstance(x, Tensor) else torch.as_tensor(x)]
