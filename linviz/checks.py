"""lv.check: do two tensors hold the same numbers?"""

from typing import Any

import torch
from torch import Tensor

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}


def check(a: Any, b: Any, name: str = "", *, tolerance: float | None = None) -> None:
    """Assert that a and b agree, and print one line that says how well.

    The error is the greatest difference over the greatest finite number of b (or 1e-3, if greater);
    infinities must stand in the same places.

    Args:
        a: a tensor, or a tuple of tensors such as (o, S).
        b: what it should be.
        name: what is compared, for the line.
        tolerance: greatest error allowed; by default by the narrower type of each pair: float64
            1e-10, float32 1e-5.

    Raises:
        AssertionError: shapes differ, an entry is not a number, or the error is too great; the
            message says where.
    """
    name, shown = name or "equal", []
    for x, y in zip(parts(a), parts(b), strict=True):
        if x.shape != y.shape:
            raise AssertionError(f"{name}: shapes differ: {tuple(x.shape)} and {tuple(y.shape)}")
        limit = max(limit_of(x), limit_of(y)) if tolerance is None else tolerance
        wide = torch.complex128 if x.is_complex() or y.is_complex() else torch.float64
        shape = x.shape
        x, y = (z.detach().to("cpu", wide).flatten() for z in (x, y))
        scale = max(y[y.isfinite()].abs().max().item() if y.isfinite().any() else 0.0, 1e-3)
        error = torch.where(x == y, 0.0, (x - y).abs() / scale).nan_to_num(torch.inf)
        if error.numel() and error.max() > limit:
            worst = int(error.argmax())
            at = [int(i) for i in torch.unravel_index(torch.tensor(worst), shape)]
            raise AssertionError(
                f"{name}: error {error[worst]:.1e} is more than {limit:.0e}; at {at}: "
                f"{x[worst].item():.6g} and {y[worst].item():.6g}"
            )
        shown.append((error.max().item() if error.numel() else 0.0, limit))
    worst, limit = max(shown, key=lambda pair: pair[0] / (pair[1] or 1), default=(0.0, 0.0))
    print(f"{name}: error {worst:.0e} (at most {limit:.0e})")


def limit_of(x: Tensor) -> float:
    """The error allowed for numbers of x's type; none for whole numbers."""
    kind = x.dtype.to_real() if x.is_complex() else x.dtype
    return TOLERANCE.get(kind, 0.0)


def parts(x: Any) -> list[Tensor]:
    """The tensors in a tensor or in a (nested) tuple."""
    if isinstance(x, tuple | list):
        return [part for item in x for part in parts(item)]
    return [x if isinstance(x, Tensor) else torch.as_tensor(x)]
