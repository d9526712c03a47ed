r"""S4 and S4D: a linear system with fixed coefficients, run as a loop or as one long convolution.

Papers: Gu, Goel and Re, "Efficiently Modeling Long Sequences with Structured State Spaces", 2021,
arXiv:2111.00396; the diagonal form: Gu et al., 2022, arXiv:2206.11893.

Equations (in brackets: the paper's):
    (1)  h_t = \bar A h_{t-1} + \bar B u_t [eq. 3]
    (2)  y_t = 2\,\mathrm{Re} \sum_n C_n h_{tn} + D u_t [eq. 3]
    (3)  \bar A = e^{\Delta A}, \quad \bar B = A^{-1} (e^{\Delta A} - 1) B \quad \text{(zoh)}
         [2206.11893, sec. 3.1]
    (4)  \bar A = \frac{1 + \Delta A / 2}{1 - \Delta A / 2}, \quad
         \bar B = \frac{\Delta}{1 - \Delta A / 2} B \quad \text{(bilinear)} [eq. 3]
    (5)  y = \kappa * u + D u, \quad \kappa_l
         = 2\,\mathrm{Re} \sum_n C_n \bar A_n^{\,l} \bar B_n [eq. 4, 5]
    (6)  A_{nk} = -\sqrt{(2n+1)(2k+1)} \; (n > k), \quad -(n+1) \; (n = k), \quad 0 \; (n < k),
         \quad
         B_n = \sqrt{2n+1} [eq. 2]
    (7)  A = \mathcal V (\Lambda - P P^*) \mathcal V^* [theorem 1]
    (8)  \hat\kappa(z) = \frac{2}{1+z} \Bigl[ \tilde C R B - \tilde C R P\,
         (1 + P^* R P)^{-1} P^* R B \Bigr],
         \quad R = \bigl( \tfrac{2}{\Delta} \tfrac{1-z}{1+z} - \Lambda \bigr)^{-1}, \quad
         \tilde C = C (I - \bar A^L) [app. C.3]

Glossary (ours | the paper's | shape | meaning):
    u | u | [B, T, D] | input
    dt | Delta | [D] | step size of each channel
    A | A | [D, N] | modes: half of conjugate pairs if complex; real part <= 0
    B | B | [D, N] | how the input enters each mode
    C | C | [D, N] | how each mode is read
    D | D | [D] | skip: what of the input goes straight to the output
    h | x | [B, D, N] | state
    y | y | [B, T, D] | output
    kappa | K | [D, T] | convolution kernel

We differ from the paper in: D is the width as well as the skip's name; A is diagonal (S4D). The
dense HiPPO-LegS matrix (6) of S4 is an initialiser (`hippo_legs`), with its normal plus low-rank
form (7) (`nplr`) and convolution kernel (8) (`dplr_kernel`). With real A there are no conjugate
pairs and the 2 Re of (2) and (5) falls away.

In its cell: nothing but the input is computed from the token, and that is why the loop is also one
long convolution.

The recurrence is convolution: nothing depends on the data, so all times share the powers of one
number a mode, and the parallel form is (5) by FFT, plus the echo of the state that came in.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from linviz.inputs import Input, normal, time_step
from linviz.mechanism import Mechanism, through
from linviz.moves import Made, Move
from linviz.recurrences import convolution


def run(
    form: Callable,
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    S: Tensor,
    *,
    discretization: str,
) -> tuple[Tensor, Tensor]:
    """Make the coefficients discrete, (3) or (4); map to convolution, (1) and (5); skip, (2)."""
    if not A.is_complex() and (B.is_complex() or C.is_complex() or S.is_complex()):
        raise ValueError(
            "S4: with real A, B, C and S must be real; complex A is half of conjugate pairs"
        )
    a, b = discretize(dt, A, B, discretization)
    y, h = form(u, a, b, C, S)
    return y + D * u, h


def run_kernel(
    kernel: Callable, u: Tensor, *system: Tensor, S: Tensor, discretization: str
) -> tuple[Tensor, Tensor]:
    """The same where the kernel takes u as it comes; the system is float32 at least."""
    return run(kernel, u, *map(at_least_float32, system), S, discretization=discretization)


def at_least_float32(x: Tensor) -> Tensor:
    """X in float32 or better, or in complex numbers of these."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def discretize(dt: Tensor, A: Tensor, B: Tensor, discretization: str) -> tuple[Tensor, Tensor]:
    """The coefficients (a, b) of the loop (1), each [D, N]."""
    if discretization not in ("zoh", "bilinear"):
        raise ValueError(f"discretization must be 'zoh' or 'bilinear', got {discretization!r}")
    dt = dt[:, None]
    z = dt * A
    if discretization == "zoh":
        return z.exp(), growth(z) * dt * B  # (3)
    return (1 + z / 2) / (1 - z / 2), dt / (1 - z / 2) * B  # (4)


def growth(z: Tensor) -> Tensor:
    """(e^z - 1) / z; near 0, where the quotient and its gradient lose digits, by its series."""
    small = z.abs() < 0.1
    near, far = torch.where(small, z, 0), torch.where(small, 1, z)
    series = torch.ones_like(z)
    for n in range(11, 1, -1):
        series = 1 + near / n * series
    return torch.where(small, series, torch.expm1(far) / far)


# ------------------------------------------------------------------------------- initialisers


def s4d_lin(N: int) -> Tensor:
    """Modes -1/2 + i pi n, n = 0..N-1 (2206.11893, eq. 7)."""
    n = torch.arange(N, dtype=torch.float64)
    return torch.complex(torch.full_like(n, -0.5), math.pi * n)


def s4d_inv(N: int) -> Tensor:
    """Modes -1/2 + i (M / pi) (M / (2n + 1) - 1), M = 2N states in N pairs (2206.11893, eq. 6)."""
    n, M = torch.arange(N, dtype=torch.float64), 2 * N
    return torch.complex(torch.full_like(n, -0.5), M / math.pi * (M / (2 * n + 1) - 1))


def s4d_real(N: int) -> Tensor:
    """Modes -1, -2, ..., -N (2206.11893, sec. 4)."""
    return -torch.arange(1, N + 1, dtype=torch.float64)


def hippo_legs(N: int) -> tuple[Tensor, Tensor]:
    """The dense HiPPO-LegS matrix A [N, N] and B [N], (6), in float64."""
    n = torch.arange(N, dtype=torch.float64)
    root = (2 * n + 1).sqrt()
    A = -(root[:, None] * root).tril(-1) - torch.diag(n + 1)
    return A, root


def nplr(N: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """HiPPO-LegS as normal plus low rank, (7).

    Returns:
        Lambda [N], P [N], B [N] in the eigenbasis, and the basis V [N, N]; complex128.
    """
    A, B = hippo_legs(N)
    P = (torch.arange(N, dtype=torch.float64) + 0.5).sqrt()
    skew = A + P[:, None] * P + 0.5 * torch.eye(N, dtype=torch.float64)
    frequency, V = torch.linalg.eigh(-1j * skew.to(torch.complex128))
    into = V.mH
    return -0.5 + 1j * frequency, into @ P.to(V.dtype), into @ B.to(V.dtype), V


def dplr_kernel(Lambda: Tensor, P: Tensor, B: Tensor, C: Tensor, dt: float, T: int) -> Tensor:
    """The kernel kappa [T] of A = diag(Lambda) - P P^*, B and C [N], bilinear, by (8).

    The generating function is evaluated at the T-th roots of unity and inverted by FFT: N T terms,
    where stepping with the dense matrix takes N^2 T. Only C (I - A_bar^T) takes dense products.

    Args:
        Lambda: [N], complex, all modes (not half of pairs).
        P: [N], the low-rank term.
        B: [N].
        C: [N]; the output is sum_n C_n h_n.
        dt: step size.
        T: length.
    """
    N = Lambda.shape[0]
    A = torch.diag(Lambda) - P[:, None] * P.conj()
    eye = torch.eye(N, dtype=A.dtype, device=A.device)
    A_bar = torch.linalg.solve(eye - dt / 2 * A, eye + dt / 2 * A)
    C = C @ (eye - torch.linalg.matrix_power(A_bar, T))
    turn = torch.arange(T, dtype=torch.float64, device=A.device) / T
    z = torch.exp(-2j * math.pi * turn)
    # (2/dt) (1-z)/(1+z) has a pole at z = -1; with both sides times (1+z)/2 there is none
    half = (1 + z)[:, None] / 2
    R = 1 / ((1 - z)[:, None] / dt - half * Lambda)  # (1+z)/2 is divided out of R

    def pairing(x: Tensor, y: Tensor) -> Tensor:
        return (x * R * y).sum(-1)

    correction = pairing(C, P) * pairing(P.conj(), B) * half[:, 0]
    at_roots = pairing(C, B) - correction / (1 + half[:, 0] * pairing(P.conj(), P))
    return torch.fft.ifft(at_roots).real


def lin_modes(shape: Sequence[int], rng: torch.Generator) -> Tensor:
    """S4D-Lin in every channel."""
    return s4d_lin(shape[-1]).expand(*shape).clone()


def complex_normal(shape: Sequence[int], rng: torch.Generator) -> Tensor:
    """Complex normal numbers."""
    return torch.complex(normal(shape, rng), normal(shape, rng))


def complex_ones(shape: Sequence[int], rng: torch.Generator) -> Tensor:
    """Ones, as complex numbers."""
    return torch.ones(*shape, dtype=torch.complex128)


MECHANISM = Mechanism(
    name="s4",
    title="S4 (diagonal)",
    paper="Efficiently Modeling Long Sequences with Structured State Spaces",
    year=2021,
    arxiv="2111.00396",
    decay="fixed, per channel and mode, and rotating",
    inputs=(
        Input("u", "b t d"),
        Input("dt", "d", low=0.0, draw=time_step),
        Input("A", "d n", high=0.0, complex=True, draw=lin_modes),
        Input("B", "d n", complex=True, draw=complex_ones),
        Input("C", "d n", complex=True, draw=complex_normal),
        Input("D", "d"),
    ),
    output=Input("y", "b t d"),
    state=(Input("h", "b d n", complex=True),),
    value="u",
    functions=through(convolution, run) | {"triton": run_kernel},
    flops=lambda n: n["D"] * (22 * n["N"] + 3),
    doc=__doc__,
    recurrence="convolution",
    kernel="linviz.kernels.diagonal_scan:fixed",
    options={"discretization": "zoh"},
    moves=(
        Move("decay", r"\bar A", "h", (Made("a", "d n", ("dt", "A")),), 1),
        Move("write", r"\bar B u_t", "h", (Made("b", "d n", ("dt", "A", "B")), "u"), 1),
        Move("read", r"2\,\mathrm{Re} \sum_n C_n h_{tn}", "h", ("C",), 2, gives=("y",), over="n"),
        Move("skip", r"D u_t", "", ("D", "u"), 2, gives=("y",)),
    ),
)
