r"""The recurrences diagonal_scan and convolution on a GPU: Mamba; S4 and H3.

    one program: one warp, a tile of BV channels with all their states, one segment of time

               8 channels
             +------------+        every number that a state has is a tile [BV / 8, BK, 8]: the 32
      states |  h, a, ... |        threads are 4 states by 8 channels, the rest of the tile lies in
             +------------+        the registers of each. So a sum over states (y, du, ddt) and one
              +------------+       over channels (dB, dC) both end in two or three steps from thread
               +------------+      to thread. (Where BV is 8 the compiler takes 16 states by 2.)
                 BV / 8

    time ->  | C tokens      | C tokens      | ...    the forward pass keeps the state before each C
             | U | U | U | U |                        the backward pass notes those before each U

Time is walked token by token, without a scan across threads: the numbers of a state do not depend
on each other, and they are work enough for a thread. U tokens are read before they are needed.
Equation numbers in comments are those of linviz/recurrences/diagonal_scan.py; the equations of
convolution.py are the same with coefficients that never change (FIXED) and may be complex: then the
real and the imaginary parts are two planes. Mamba's softplus of dt, its skip D and its gate silu(z)
are done on the way, where they are given.

Going back, with q for the gradient of a state as far as it comes from later tokens:

    dh_t = q_t + C_t dy_t
    dC_t = h_t dy_t,  dB_t = dh_t u_t     summed over channels
    du_t = dh_t B_t                       summed over states, and so is ddt_t = A d(dt A)_t
    d(dt A)_t = dh_t a_t h_{t-1}
    q_{t-1} = a_t dh_t

The states come out of those that were kept: C tokens are walked through once more to note the
state before each U, then the last U, whose states fit in registers, then the U before. Nothing is
divided by a. The gradient of a complex number is that of its real part plus i times that of
its imaginary part; so the factors there are conjugates.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from linviz.kernels.launch import ALL, LOG2E, Config, check, pick, ready, segment_length, stand

# --------------------------------------------------------- tiles of one plane, or of two (complex)


@triton.jit
def take(x, o, m, PLANE: tl.constexpr, PLANES: tl.constexpr):
    """A tile of each plane from memory; a plane has so many numbers."""
    b_x = tl.load(x + o, mask=m, other=0.0)
    if PLANES == 2:
        return b_x, tl.load(x + PLANE + o, mask=m, other=0.0)
    else:
        return (b_x,)


@triton.jit
def put(x, b_x, o, m, PLANE: tl.constexpr, PLANES: tl.constexpr):
    """A tile of each plane to memory."""
    tl.store(x + o, b_x[0], mask=m)
    if PLANES == 2:
        tl.store(x + PLANE + o, b_x[1], mask=m)


@triton.jit
def real(x, b_x, PLANES: tl.constexpr):
    """A real number x in all places of a tile like b_x."""
    b_0 = tl.full(b_x[0].shape, x, tl.float32)
    if PLANES == 2:
        return b_0, tl.zeros(b_x[0].shape, tl.float32)
    else:
        return (b_0,)


@triton.jit
def plus(x, y, s, PLANES: tl.constexpr):
    """The sum of x and s y, s real."""
    if PLANES == 2:
        return x[0] + s * y[0], x[1] + s * y[1]
    else:
        return (x[0] + s * y[0],)


@triton.jit
def times(x, y, PLANES: tl.constexpr):
    """The product of x and y."""
    if PLANES == 2:
        return x[0] * y[0] - x[1] * y[1], x[0] * y[1] + x[1] * y[0]
    else:
        return (x[0] * y[0],)


@triton.jit
def conjugate(x, PLANES: tl.constexpr):
    """The conjugate of x."""
    if PLANES == 2:
        return x[0], -x[1]
    else:
        return x


# ------------------------------------------------------------------------------- parts of a kernel


@triton.jit
def softplus(b_x):
    """ln(1 + e^x) to the last digit, small ones too."""
    b_e = tl.exp2(-tl.abs(b_x) * LOG2E)
    b_sum = 1.0 + b_e
    b_log = tl.where(b_sum > 1.0, tl.log(b_sum) * (b_e / tl.maximum(b_sum - 1.0, 1e-9)), b_e)
    return tl.maximum(b_x, 0.0) + b_log


@triton.jit
def softplus_slope(b_dt):
    """The derivative of softplus where it is dt: 1 - e^-dt, by its series where dt is small."""
    b_near = b_dt * (1.0 - b_dt * (1 / 2 - b_dt * (1 / 6 - b_dt / 24)))
    return tl.where(b_dt < 0.03, b_near, 1.0 - tl.exp2(-b_dt * LOG2E))


@triton.jit
def silu(b_z):
    """The gate z / (1 + e^-z), and its derivative."""
    b_s = 1.0 / (1.0 + tl.exp2(-b_z * LOG2E))
    return b_z * b_s, b_s * (1.0 + b_z * (1.0 - b_s))


@triton.jit
def tile(i_v, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr):
    """A program's channels [BV / 8, 8], states [BK] and tile [BV / 8, BK, 8], with masks."""
    o_v = i_v * BV + tl.arange(0, BV // 8)[:, None] + tl.arange(0, 8)[None, :] * (BV // 8)
    o_k = tl.arange(0, BK)
    m_v, m_k = o_v < V, o_k < K
    o_s = o_k[None, :, None] * V + o_v[:, None, :]
    return o_v, m_v, o_k, m_k, o_s, m_v[:, None, :] & m_k[None, :, None]


@triton.jit
def rates(a, o_s, m_s, PLANE: tl.constexpr, FIXED: tl.constexpr, PLANES: tl.constexpr):
    """The gates if FIXED; else A as an exponent of 2, finite, so that dt = 0 changes nothing."""
    b_a = take(a, o_s, m_s, PLANE, PLANES)
    if FIXED:
        return b_a
    else:
        return (tl.maximum(b_a[0] * LOG2E, -3e38, propagate_nan=tl.PropagateNan.ALL),)


@triton.jit
def tokens(
    given, steps, i, n, m_v, m_k,
    FIXED: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, U: tl.constexpr,
):  # fmt: skip
    """What comes with U tokens in the order of walking: (u [.., 8], dt, B [1, BK, 1], C) of each.

    If FIXED, B and C are tiles, given as they are, and there is no dt.
    """
    u, dt, b, c = given
    u_t, dt_t, b_t, c_t = steps
    xs = ()
    for j in tl.static_range(U):
        m, t = i + j < n, n - 1 - i - j if REVERSE else i + j
        b_u = tl.load(u + t * u_t, mask=m_v & m, other=0.0).to(tl.float32)
        if FIXED:
            xs += ((b_u, b_u, b, c),)
        else:
            b_dt = tl.load(dt + t * dt_t, mask=m_v & m, other=0.0).to(tl.float32)
            if SOFTPLUS:
                b_dt = tl.where(m_v & m, softplus(b_dt), 0.0)
            b_b = tl.load(b + t * b_t, mask=m_k & m, other=0.0).to(tl.float32)[None, :, None]
            b_c = tl.load(c + t * c_t, mask=m_k & m, other=0.0).to(tl.float32)[None, :, None]
            xs += ((b_u, b_dt, (b_b,), (b_c,)),)
    return xs


@triton.jit
def load_each(x, x_t, i, n, m_v, U: tl.constexpr):
    """The channels of U tokens of x, in float32."""
    xs = ()
    for j in tl.static_range(U):
        xs += (tl.load(x + (i + j) * x_t, mask=m_v & (i + j < n), other=0.0).to(tl.float32),)
    return xs


@triton.jit
def gate(x, b_a, m, FIXED: tl.constexpr, PLANES: tl.constexpr):
    """(1): the gate a of a token; 1 where there is none."""
    if not FIXED:
        return (tl.exp2(x[1][:, None, :] * b_a[0]),)
    elif PLANES == 2:
        return tl.where(m, b_a[0], 1.0), tl.where(m, b_a[1], 0.0)
    else:
        return (tl.where(m, b_a[0], 1.0),)


@triton.jit
def written(x, SKIP: tl.constexpr):
    """What is written [.., 1, 8]: u; with a skip, dt x."""
    return (x[0] * x[1])[:, None, :] if SKIP else x[0][:, None, :]


# ------------------------------------------------------------------------------------- the kernels


@triton.jit
def leave(
    u, dt, a, b, left, total, u_b, u_t, dt_b, dt_t, b_b, b_t, T, L,
    K: tl.constexpr, V: tl.constexpr, FIXED: tl.constexpr, PLANES: tl.constexpr,
    SKIP: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr,
    U: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """What a segment leaves behind from an empty state, and how much of an old one: the two of (3).

    Backward, a token's gate comes after its writing.
    """
    PLANE: tl.constexpr = K * V
    i_v, i_b, _, i_segment, row, n = stand(T, 1, L, tl.cdiv(V, BV), REVERSE)
    o_v, m_v, o_k, m_k, o_s, m_s = tile(i_v, K, V, BK, BV)
    b_a = rates(a, o_s, m_s, PLANE, FIXED, PLANES)
    u += i_b * u_b + row * u_t + o_v
    if FIXED:
        b = take(b, o_s, m_s, PLANE, PLANES)
    else:
        dt += i_b * dt_b + row * dt_t + o_v
        b += i_b * b_b + row * b_t + o_k
    given, steps = (u, dt, b, b), (u_t, dt_t, b_t, b_t)
    b_h, b_all = real(0.0, b_a, PLANES), real(1.0, b_a, PLANES)
    for i_u in range(0, n, U):
        xs = tokens(given, steps, i_u, n, m_v, m_k, FIXED, SOFTPLUS, REVERSE, U)
        for j in tl.static_range(U):
            b_g, b_w = gate(xs[j], b_a, i_u + j < n, FIXED, PLANES), written(xs[j], SKIP)
            if REVERSE:
                b_h = times(b_g, plus(b_h, xs[j][2], b_w, PLANES), PLANES)
            else:
                b_h = plus(times(b_g, b_h, PLANES), xs[j][2], b_w, PLANES)
            b_all = times(b_g, b_all, PLANES)
    o_s += (i_b * tl.cdiv(T, L) + i_segment) * PLANES * PLANE
    put(left, b_h, o_s, m_s, PLANE, PLANES)
    put(total, b_all, o_s, m_s, PLANE, PLANES)


@triton.jit
def connect(
    S, left, total, starts, n_segments,
    K: tl.constexpr, V: tl.constexpr, PLANES: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """The states that enter the segments, segment by segment from S, (3)."""
    PLANE: tl.constexpr = K * V
    TILES: tl.constexpr = tl.cdiv(V, BV)
    i_b = (tl.program_id(0) // TILES).to(tl.int64) * PLANES * PLANE
    _, _, _, _, o_s, m_s = tile(tl.program_id(0) % TILES, K, V, BK, BV)
    b_S = take(S + i_b, o_s, m_s, PLANE, PLANES)
    o_s += i_b * n_segments
    for _ in range(n_segments):
        put(starts, b_S, o_s, m_s, PLANE, PLANES)
        b_a = take(total, o_s, m_s, PLANE, PLANES)
        b_S = plus(take(left, o_s, m_s, PLANE, PLANES), times(b_a, b_S, PLANES), 1.0, PLANES)
        o_s += PLANES * PLANE


@triton.jit
def scan(
    u, dt, a, b, c, d, z, S, y, end, keep,
    u_b, u_t, dt_b, dt_t, b_b, b_t, c_b, c_t, z_b, z_t, T, L,
    K: tl.constexpr, V: tl.constexpr, FIXED: tl.constexpr, PLANES: tl.constexpr,
    SKIP: tl.constexpr, SOFTPLUS: tl.constexpr,
    C: tl.constexpr, U: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Outputs y, the state at the end, and if wanted the states before every C tokens."""
    PLANE: tl.constexpr = K * V
    i_v, i_b, _, i_segment, row, n = stand(T, 1, L, tl.cdiv(V, BV), False)
    o_v, m_v, o_k, m_k, o_s, m_s = tile(i_v, K, V, BK, BV)
    b_a = rates(a, o_s, m_s, PLANE, FIXED, PLANES)
    u += i_b * u_b + row * u_t + o_v
    y += (i_b * T + row) * V + o_v
    if FIXED:
        b, c = take(b, o_s, m_s, PLANE, PLANES), take(c, o_s, m_s, PLANE, PLANES)
    else:
        dt += i_b * dt_b + row * dt_t + o_v
        b += i_b * b_b + row * b_t + o_k
        c += i_b * c_b + row * c_t + o_k
    given, steps = (u, dt, b, c), (u_t, dt_t, b_t, c_t)
    if SKIP:
        b_d = tl.load(d + o_v, mask=m_v, other=0.0)
    if z is not None:
        z += i_b * z_b + row * z_t + o_v
    i_state = i_b * tl.cdiv(T, L) + i_segment
    b_h = take(S + i_state * PLANES * PLANE, o_s, m_s, PLANE, PLANES)
    if keep is not None:
        keep += (i_b * tl.cdiv(T, C) + row // C) * PLANES * PLANE
    for i_c in range(0, n, C):
        if keep is not None:
            put(keep, b_h, o_s, m_s, PLANE, PLANES)
            keep += PLANES * PLANE
        for i_u in range(i_c, tl.minimum(i_c + C, n), U):
            xs, ys = tokens(given, steps, i_u, n, m_v, m_k, FIXED, SOFTPLUS, False, U), ()
            zs = load_each(z, z_t, i_u, n, m_v, U) if z is not None else ()
            for j in tl.static_range(U):
                b_g = gate(xs[j], b_a, i_u + j < n, FIXED, PLANES)
                b_h = plus(times(b_g, b_h, PLANES), xs[j][2], written(xs[j], SKIP), PLANES)  # (1)
                b_y = tl.sum(times(xs[j][3], b_h, PLANES)[0], 1) * PLANES  # (2); pairs count twice
                if SKIP:
                    b_y += b_d * xs[j][0]
                ys += (b_y,)
            for j in tl.static_range(U):
                m_vt = m_v & (i_u + j < n)
                b_y = ys[j]
                if z is not None:
                    b_y *= silu(zs[j])[0]
                tl.store(y + (i_u + j) * V, b_y.to(y.dtype.element_ty), mask=m_vt)
    if i_segment == tl.cdiv(T, L) - 1:
        put(end + i_b * PLANES * PLANE, b_h, o_s, m_s, PLANE, PLANES)


@triton.jit
def scan_back(
    u, dt, a, b, c, d, z, dy, q, keep, notes, du, ddt, da, db, dc, dd, dz, dS,
    u_b, u_t, dt_b, dt_t, b_b, b_t, c_b, c_t, z_b, z_t, T, L, BT,
    K: tl.constexpr, V: tl.constexpr, FIXED: tl.constexpr, PLANES: tl.constexpr,
    SKIP: tl.constexpr, SOFTPLUS: tl.constexpr,
    C: tl.constexpr, U: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """All gradients, see above; those of what other programs share are parts that are to be added.

    A program has its own: of A and D, or of all three that are FIXED, one a segment and sequence;
    of B and C one a tile of channels.
    """
    PLANE: tl.constexpr = K * V
    i_v, i_b, _, i_segment, row, n = stand(T, 1, L, tl.cdiv(V, BV), True)
    o_v, m_v, o_k, m_k, o_s, m_s = tile(i_v, K, V, BK, BV)
    b_a = rates(a, o_s, m_s, PLANE, FIXED, PLANES)
    i_row = i_b * T + row
    u += i_b * u_b + row * u_t + o_v
    dy += i_row * V + o_v
    du += i_row * V + o_v
    if FIXED:
        b, c = take(b, o_s, m_s, PLANE, PLANES), take(c, o_s, m_s, PLANE, PLANES)
    else:
        dt += i_b * dt_b + row * dt_t + o_v
        b += i_b * b_b + row * b_t + o_k
        c += i_b * c_b + row * c_t + o_k
        ddt += i_row * V + o_v
        db += (i_v.to(tl.int64) * BT + i_row) * K + o_k
        dc += (i_v.to(tl.int64) * BT + i_row) * K + o_k
    given, steps = (u, dt, b, c), (u_t, dt_t, b_t, c_t)
    b_da = real(0.0, b_a, PLANES)
    if FIXED:
        b_db, b_dc = b_da, b_da
    if SKIP:
        b_d = tl.load(d + o_v, mask=m_v, other=0.0)
        b_dd = tl.zeros([BV // 8, 8], tl.float32)
    if z is not None:
        z += i_b * z_b + row * z_t + o_v
        dz += i_row * V + o_v
    i_state = (i_b * tl.cdiv(T, L) + i_segment) * PLANES * PLANE
    b_q = take(q + i_state, o_s, m_s, PLANE, PLANES)
    notes += i_state * (C // U)
    keep += (i_b * tl.cdiv(T, C) + row // C) * PLANES * PLANE
    n_c = tl.cdiv(n, C)
    for back_c in range(n_c):
        i_c = n_c - 1 - back_c
        n_u = tl.cdiv(tl.minimum(n - i_c * C, C), U)
        b_h = take(keep + i_c * PLANES * PLANE, o_s, m_s, PLANE, PLANES)
        tl.debug_barrier()  # the last notes have been read
        for i_u in range(n_u):
            put(notes + i_u * PLANES * PLANE, b_h, o_s, m_s, PLANE, PLANES)
            i = i_c * C + i_u * U
            xs = tokens(given, steps, i, n, m_v, m_k, FIXED, SOFTPLUS, False, U)
            for j in tl.static_range(U):
                b_g = gate(xs[j], b_a, i + j < n, FIXED, PLANES)
                b_h = plus(times(b_g, b_h, PLANES), xs[j][2], written(xs[j], SKIP), PLANES)  # (1)
        tl.debug_barrier()
        for back_u in range(n_u):
            i_u = n_u - 1 - back_u
            b_h = take(notes + i_u * PLANES * PLANE, o_s, m_s, PLANE, PLANES)
            i = i_c * C + i_u * U
            xs = tokens(given, steps, i, n, m_v, m_k, FIXED, SOFTPLUS, False, U)
            dys, gates, hs = load_each(dy, V, i, n, m_v, U), (), (b_h,)
            if z is not None:
                zs, ungated = load_each(z, z_t, i, n, m_v, U), ()
                for j in tl.static_range(U):
                    ungated += (dys[j] * silu(zs[j])[0],)
                dys = ungated
            for j in tl.static_range(U):
                gates += (gate(xs[j], b_a, i + j < n, FIXED, PLANES),)
                b_h = plus(times(gates[j], b_h, PLANES), xs[j][2], written(xs[j], SKIP), PLANES)
                hs += (b_h,)
            for j in tl.static_range(U - 1, -1, -1):
                t, m, x, b_dy = i + j, i + j < n, xs[j], dys[j][:, None, :]
                b_w = written(x, SKIP)
                b_g = plus(b_q, conjugate(x[3], PLANES), PLANES * b_dy, PLANES)  # dh
                b_q = times(conjugate(gates[j], PLANES), b_g, PLANES)
                b_du = tl.sum(times(conjugate(x[2], PLANES), b_g, PLANES)[0], 1)
                if FIXED:
                    b_x = times(b_g, conjugate(hs[j], PLANES), PLANES)
                    b_da = plus(b_da, b_x, m.to(tl.float32), PLANES)
                    b_db = plus(b_db, b_g, b_w, PLANES)
                    b_dc = plus(b_dc, conjugate(hs[j + 1], PLANES), PLANES * b_dy, PLANES)
                else:
                    b_x = b_q[0] * hs[j][0]
                    b_da = plus(b_da, (b_x,), x[1][:, None, :], PLANES)
                    b_ddt = tl.sum(b_x * b_a[0], 1) / LOG2E
                    if SKIP:
                        b_ddt += x[0] * b_du
                        b_du = x[1] * b_du + b_d * dys[j]
                        b_dd += x[0] * dys[j]
                    if SOFTPLUS:
                        b_ddt *= softplus_slope(x[1])
                    if z is not None:
                        b_y = tl.sum(x[3][0] * hs[j + 1][0], 1)  # (2)
                        if SKIP:
                            b_y += b_d * x[0]
                        b_z = tl.load(z + t * z_t, mask=m_v & m, other=0.0).to(tl.float32)
                        b_y *= tl.load(dy + t * V, mask=m_v & m, other=0.0)
                        b_y = (b_y * silu(b_z)[1]).to(dz.dtype.element_ty)
                        tl.store(dz + t * V, b_y, mask=m_v & m)
                    b_db, b_dc = b_g[0] * b_w, hs[j + 1][0] * b_dy
                    tl.store(ddt + t * V, b_ddt.to(ddt.dtype.element_ty), mask=m_v & m)
                    tl.store(db + t * K, tl.sum(tl.sum(b_db, 0), 1), mask=m_k & m)
                    tl.store(dc + t * K, tl.sum(tl.sum(b_dc, 0), 1), mask=m_k & m)
                tl.store(du + t * V, b_du.to(du.dtype.element_ty), mask=m_v & m)
    put(da + i_state, b_da, o_s, m_s, PLANE, PLANES)
    if FIXED:
        put(db + i_state, b_db, o_s, m_s, PLANE, PLANES)
        put(dc + i_state, b_dc, o_s, m_s, PLANE, PLANES)
    if SKIP:
        tl.store(dd + (i_b * tl.cdiv(T, L) + i_segment) * V + o_v, b_dd, mask=m_v)
    if i_segment == tl.cdiv(T, L) - 1:
        put(dS + i_b * PLANES * PLANE, b_q, o_s, m_s, PLANE, PLANES)


# ------------------------------------------------------------------------------------ the wrapper

CHUNK = 64  # tokens between two states that are kept for the backward pass
WARPS = 4  # programs, of a warp each, that count as one when a chip is to be filled
STATES = 64  # numbers of a channel's state that one program can hold
CONFIGS = (
    Config(CHUNK, 16, 1, 1, 16, 16, ALL, "many programs, and few sums over threads", unroll=4),
    Config(CHUNK, 32, 1, 1, 16, 16, ALL, "half the programs, and parts of dB and dC", unroll=2),
    Config(CHUNK, 8, 1, 1, 64, 16, ALL, "a larger state, fewer channels", unroll=2),
)


def planes(x: Tensor, n: int) -> Tensor:
    """[..., V, K] as n planes [..., n, K, V] in float32: one, or real and imaginary parts."""
    if n == 2:
        x = x.to(torch.complex64)
        return torch.stack([x.real, x.imag], -3).mT.contiguous()
    return x.float()[..., None, :, :].mT.contiguous()


def whole(x: Tensor) -> Tensor:
    """The inverse of `planes`."""
    parts = x.mT.unbind(-3)
    return torch.complex(*parts) if len(parts) == 2 else parts[0]


class Given(NamedTuple):
    """The inputs as the kernels take them.

    Attributes:
        u: [B, T, V], V the channels.
        dt: [B, T, V], or None where the coefficients never change.
        a: planes [n, K, V], K the states: A, or the gates.
        b: [B, T, K], or planes.
        c: the same.
        d: [V], or None.
        z: [B, T, V], or None.
        soft: whether dt is yet to go through softplus.
    """

    u: Tensor
    dt: Tensor | None
    a: Tensor
    b: Tensor
    c: Tensor
    d: Tensor | None = None
    z: Tensor | None = None
    soft: bool = False

    @property
    def compiled(self) -> dict[str, Any]:
        """What all kernels are compiled for."""
        n, K, V = self.a.shape
        return {"K": K, "V": V, "PLANES": n, "BK": triton.next_power_of_2(K)}

    @property
    def kind(self) -> dict[str, bool]:
        """Which kind of recurrence it is."""
        return {"FIXED": self.dt is None, "SKIP": self.d is not None, "SOFTPLUS": self.soft}

    @property
    def timed(self) -> list[Tensor]:
        """What comes with every token."""
        given = (self.u, self.dt, self.b, self.c, self.z)
        return [self.u] if self.dt is None else [x for x in given if x is not None]

    @property
    def strides(self) -> list[int]:
        """The strides over batch and time of u, dt, b, c and z; zeros where there is no time."""
        found = [step for x in self.timed for step in x.stride()[:2]]
        return found + [0] * (10 - len(found))


def prepared(
    u: Tensor, dt: Tensor | None, a: Tensor, b: Tensor, c: Tensor, n: int,
    d: Tensor | None = None, z: Tensor | None = None, soft: bool = False,
) -> Given:  # fmt: skip
    """Inputs in their own types, their channels side by side; n planes."""
    if dt is None:
        return Given(*ready(u), None, planes(a, n), planes(b, n), planes(c, n))
    u, dt, b, c = (ready(x)[0] for x in (u, dt, b, c))
    d, z = d if d is None else d.float().contiguous(), z if z is None else ready(z)[0]
    return Given(u, dt, planes(a, n), b, c, d, z, soft)


def entering(x: Given, S: Tensor, L: int, config: Config, reverse: bool = False) -> Tensor:
    """The states [B, N, n, K, V] that enter the segments; S [B, n, K, V] enters the first."""
    B, T, V = x.u.shape
    N, tiles = triton.cdiv(T, L), triton.cdiv(V, config.tile)
    if N == 1:
        return S[:, None]
    left = S.new_empty(B, N, *S.shape[1:])
    total, starts = torch.empty_like(left), torch.empty_like(left)
    how = x.compiled | {"BV": config.tile} | warps(config)
    leave[(B * N * tiles,)](
        x.u, x.dt, x.a, x.b, left, total, *x.strides[:6], T, L,
        REVERSE=reverse, U=config.unroll, **x.kind, **how,
    )  # fmt: skip
    connect[(B * tiles,)](S, left, total, starts, N, **how)
    return starts


def warps(config: Config) -> dict[str, int]:
    """Warps and stages of a launch."""
    return {"num_warps": config.warps, "num_stages": config.stages}


def choose(x: Given, kernel: triton.JITFunction, run: Callable) -> Any:
    """Run with one of CONFIGS, which serve numbers of all types."""
    n, K, _ = x.a.shape
    key = (kernel, K, n, *x.kind.values(), x.z is None, x.u.dtype)
    return pick(CONFIGS, n * K, x.u.new_empty(0, dtype=torch.bfloat16), key, run)


def forward(
    x: Given, S: Tensor, segments: int | None, keeps: bool, config: Config | None = None
) -> tuple[Tensor, Tensor, Tensor | None, int]:
    """One scan: y [B, T, V], the state at the end, those kept [B, T / CHUNK, ...], and L."""
    (B, T, V), (n, K, _) = x.u.shape, x.a.shape
    if config is None:
        return choose(x, scan, lambda c: forward(x, S, segments, keeps, c))
    tiles = triton.cdiv(V, config.tile)
    one_head = [z[:, :, None] for z in x.timed]
    L = segment_length(T, triton.cdiv(B * tiles, WARPS), one_head, segments)
    N = triton.cdiv(T, L)
    y, end = torch.empty_like(x.u, memory_format=torch.contiguous_format), torch.empty_like(S)
    keep = S.new_empty(B, triton.cdiv(T, CHUNK), n, K, V) if keeps else None
    scan[(B * N * tiles,)](
        *x[:7], entering(x, S, L, config), y, end, keep, *x.strides, T, L,
        C=CHUNK, U=config.unroll, BV=config.tile, **x.kind, **x.compiled, **warps(config),
    )  # fmt: skip
    return y, end, keep, L


def backward(
    x: Given, turned: Given, dy: Tensor, dS: Tensor, keep: Tensor, L: int,
    config: Config | None = None,
) -> list[Tensor | None]:  # fmt: skip
    """The gradients of the inputs and of the state, as `Given` has them.

    Args:
        x: the inputs.
        turned: the same scan backward in time: dy (without the gate) written by C, conjugates.
        dy: [B, T, V], of what the gate lets through.
        dS: planes [B, n, K, V].
        keep: the states before every CHUNK tokens.
        L: tokens a segment.
        config: one of CONFIGS; None chooses.
    """
    (B, T, V), (n, K, _) = x.u.shape, x.a.shape
    if config is None:
        return choose(x, scan_back, lambda c: backward(x, turned, dy, dS, keep, L, c))
    N, tiles = triton.cdiv(T, L), triton.cdiv(V, config.tile)
    q = entering(turned, dS, L, config, reverse=True)
    notes = dS.new_empty(B, N, CHUNK // config.unroll, n, K, V)
    du, dS_0 = torch.empty_like(dy, dtype=x.u.dtype), torch.empty_like(dS)
    da, ddt, dd, dz = dS.new_empty(B * N, n, K, V), None, None, None
    if x.dt is None:
        db, dc = torch.empty_like(da), torch.empty_like(da)
    else:
        ddt = torch.empty_like(dy, dtype=x.dt.dtype)
        db, dc = (dS.new_empty(tiles, B, T, K) for _ in range(2))
    if x.d is not None:
        dd = dS.new_empty(B * N, V)
    if x.z is not None:
        dz = torch.empty_like(dy, dtype=x.z.dtype)
    scan_back[(B * N * tiles,)](
        *x[:7], dy, q, keep, notes, du, ddt, da, db, dc, dd, dz, dS_0, *x.strides, T, L, B * T,
        C=CHUNK, U=config.unroll, BV=config.tile, **x.kind, **x.compiled, **warps(config),
    )  # fmt: skip
    return [du, ddt, *(y if y is None else y.sum(0) for y in (da, db, dc, dd)), dz, dS_0]


class Scan(torch.autograd.Function):
    """The scan forward in time, and its gradient."""

    @staticmethod
    def forward(ctx, u, dt, a, b, c, d, z, S, soft, segments):  # noqa: D102
        given = (u, dt, a, b, c, d, z, S)
        n = 2 if any(x is not None and x.is_complex() for x in given) else 1
        x, keeps = prepared(*given[:5], n, d, z, soft), any(ctx.needs_input_grad)
        if S is None:
            S = x.a.new_zeros(u.shape[0], *x.a.shape)
        else:
            S = planes(S, n)
        y, end, keep, ctx.L = forward(x, S, segments, keeps)
        ctx.soft = soft
        ctx.save_for_backward(*given, keep)
        return y.to(u.dtype), whole(end)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dS):  # noqa: D102
        *given, keep = ctx.saved_tensors
        n = keep.shape[2]
        x = prepared(*given[:5], n, *given[5:7], ctx.soft)
        dy = ready(dy)[0].contiguous()
        a, c, ungated = given[2], given[4], dy
        if x.dt is None:
            a, c = a.conj(), n * c.conj()
        if x.z is not None and ctx.L < dy.shape[1]:  # for what segments leave behind
            ungated = dy * torch.nn.functional.silu(x.z.float())
        turned = prepared(ungated, x.dt, a, c, c, n, soft=ctx.soft)
        found = backward(x, turned, dy, planes(dS, n), keep, ctx.L)
        if x.dt is None:
            found[3:5] = map(whole, found[3:5])
        found[2], found[7] = whole(found[2]), whole(found[7])
        gradients = []
        for given_x, dx in zip(given, found, strict=True):
            if given_x is None or dx is None:
                gradients.append(None)
            else:
                dx = dx.real if dx.is_complex() and not given_x.is_complex() else dx
                gradients.append(dx.to(given_x.dtype))
        return *gradients, None, None


def in_slices(run: Callable, K: int, n: int) -> tuple[Tensor, Tensor]:
    """`run(slice of the states)` for all of them: states do not mix, their outputs add up."""
    width = STATES // n
    parts = [run(slice(k, k + width)) for k in range(0, K, width)]
    y, S = zip(*parts, strict=True)
    return sum(y[1:], y[0]), torch.cat(S, 2) if len(S) > 1 else S[0]


@torch.compiler.disable
def chunked(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    S: Tensor | None = None,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    softplus: bool = False,
    segments: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence diagonal_scan, forward and backward, on a GPU or in Triton's interpreter.

    Args:
        u: [B, T, D], what is written. Any strides, as for dt, B, C and z, 0 too; channels that do
            not lie side by side are copied.
        dt: [B, T, D].
        A: [D, N], N at most 256.
        B: [B, T, N].
        C: [B, T, N].
        S: [B, D, N], None for zeros.
        D: Mamba's skip [D]: then u is its x, what is written is dt x, and D x joins the output.
        z: a gate [B, T, D]: the output is multiplied by silu(z).
        softplus: whether dt comes before the softplus that makes it positive.
        segments: how many pieces the sequence is cut into; None chooses.

    Returns:
        o [B, T, D] in the type of u, and the state [B, D, N] in float32. All sums are float32.

    Raises:
        Unsupported: float64, more than 256 states a channel, a device without kernels.
    """
    N = A.shape[1]
    check("diagonal_scan", N, 1, u=u, dt=dt, A=A, B=B, C=C, D=D, z=z)
    if z is not None and z.shape != u.shape:
        raise ValueError(f"diagonal_scan: z must be {[*u.shape]} like u, got {[*z.shape]}")
    if not u.numel():  # no tokens
        return u.clone(), start(S, u, A)

    def run(part: slice) -> tuple[Tensor, Tensor]:
        S_part = None if S is None else S[..., part]
        skip = D if D is None or part.start == 0 else torch.zeros_like(D)
        given = (u, dt, A[:, part], B[..., part], C[..., part], skip, z)
        return Scan.apply(*given, S_part, softplus, segments)

    with torch.cuda.device_of(u):
        return in_slices(run, N, 1)


@torch.compiler.disable
def fixed(
    u: Tensor,
    a: Tensor,
    b: Tensor,
    C: Tensor,
    S: Tensor | None = None,
    *,
    segments: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence convolution as a loop, forward and backward.

    Args:
        u: [B, T, D]. Any strides; channels that do not lie side by side are copied.
        a: the gates [D, N], N at most 256, real or complex.
        b: [D, N].
        C: [D, N].
        S: [B, D, N], None for zeros.
        segments: how many pieces the sequence is cut into; None chooses.

    Returns:
        y [B, T, D] in the type of u, and the state [B, D, N] in float32, or complex64 where one of
        a, b, C and S is complex. All sums are float32.

    Raises:
        Unsupported: float64, more than 256 modes a channel, a device without kernels.
    """
    N = a.shape[1]
    parts = {"a": a, "b": b, "C": C, "S": S}
    two = any(x is not None and x.is_complex() for x in parts.values())
    check("convolution", N, 1, u=u, **{n: x if x is None else x.real for n, x in parts.items()})
    if not u.numel():  # no tokens
        return u.clone(), start(S, u, a.to(torch.complex64) if two else a)

    def run(part: slice) -> tuple[Tensor, Tensor]:
        S_part = None if S is None else S[..., part]
        a_part, b_part, C_part = (x[:, part] for x in (a, b, C))
        return Scan.apply(u, None, a_part, b_part, C_part, None, None, S_part, False, segments)

    with torch.cuda.device_of(u):
        return in_slices(run, N, 1 + two)


def start(S: Tensor | None, u: Tensor, A: Tensor) -> Tensor:
    """The state [B, D, N] that a sequence starts from."""
    if S is None:
        return A.new_zeros(u.shape[0], *A.shape, dtype=torch.promote_types(A.dtype, torch.float32))
    return S.to(torch.promote_types(S.dtype, torch.float32))
