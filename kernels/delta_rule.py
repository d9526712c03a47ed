r"""The recurrence delta_rule on a GPU: DeltaNet, Gated DeltaNet, KDA.

Five kernels, one program each for one head and

    grams    one chunk of C tokens; none waits for another       q, k, beta, g -> N, Q
    sweep    a tile of V, all of K, time forward                 N, Q, q, k, v -> o, e, S
    back     a tile of V, all of K, time backward                N, Q, q, k, do -> dx, dS
    reads    a tile of K, all of V, time forward                 do, dx, e, k -> dq, z
    writes   a tile of K, all of V, time backward                e, do, dx, q, k, z -> dk, dbeta, dg

Forward are the first two. What a token writes, u = beta e, depends on all that was written before:
the triangular system (4). Its matrix does not depend on the state, so `grams` inverts it for all
chunks at once, and what is left for the loop over time is four products with the state's tile:

              K                 C                       C
          +--------+        +--------+              +--------+
       BV |  S^T   |  x   K | k^T q^T|           C  | N^T Q^T|    on chip: S^T [BV, K], float32
          +--------+        +--------+              +--------+    read: q, k [C, K], v [C, BV],
                                                                        N, Q [C, C], beta, g
    e^T = (v^T - S^T k^T) N^T      o^T = S^T q^T + u^T Q^T        written: o [C, BV]
                                   S^T <- S^T + u^T k

with q and k faded from the chunk's beginning where they meet the old S, and k to its end where it
is written. With E as in (4), N = (I + stril(E(K, K)) diag(beta))^{-1} and Q = tril(E(Q, K)). The
inverse comes by halves: that of the blocks of 2h on the diagonal is D - D A D, D that of the blocks
of h and A the quarters below them. These are as many products as (I-A)(I+A^2)(I+A^4)(I+A^8) takes,
and there are no powers of A: with beta = 2 and keys near each other those reach 1e6, the inverse 2.

With a gate a key channel the scores are built by halves too (exponents.py): readers of a right half
have faded since it began, writers of a left one until it ends. Factors are products of the gates of
an interval, or 2 to their sum over it: never above 1, and no difference of long sums.

There is one segment: a chunk maps the state by a matrix, which would have to be carried along.

Gradients. P is that of the state, x = v - (S faded)^T k:

    back    dx = N^T beta (Q^T do + k P)           P <- P + q do^T - k dx^T         dv = dx
    reads   dq_t = S_t do_t                        z_t = (a_t S_{t-1}) dx_t
    writes  dbeta_t = k_t . P_t e_t                dk_t = beta_t P_t e_t - z_t

So once e and dx are known, the rest is linear attention: the one state is read twice, the other
written twice. The gradient of the gate of time t is, channel by channel, the sum over the times
s >= t, to some later time, of q_s dq_s - k_s (beta_s P_s e_s + z_s), and S . P there. A pair of a
token with itself adds nothing and is left out. As in vector_decay.py `reads` stores S every KEEP
tokens, and the sum begins anew there. Nothing but the inputs is saved for all this.

The numbers in the comments are the equations of linviz/recurrences/delta_rule.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from linviz.kernels.launch import (
    ALL,
    KEEP,
    LOG2E,
    Config,
    Unsupported,
    across,
    add,
    check,
    kept,
    padded,
    pick,
    ready,
    stand,
    start,
    strides,
)
from linviz.kernels.scalar_decay import DATA, fade

NONE: tl.constexpr = tl.constexpr(0)  # the kinds of gate: none,
SCALAR: tl.constexpr = tl.constexpr(1)  # one a head and token,
VECTOR: tl.constexpr = tl.constexpr(2)  # one a key channel and token
CHUNK = 16  # tokens whose system is inverted at once


# ------------------------------------------------------------------------------ gates in a chunk


@triton.jit
def twice(b_since, b_until, o_c, level):
    """What gates leave since a token's block of 1 << level began, and until it ends: of one twice.

    Both are [C, K]. A token's own gate fades it when it reads, not when it writes: so what a whole
    block leaves stands in the last row of b_since, and the other half's is what joins.
    """
    o_h = o_c >> level
    o_last = ((o_h ^ 1) + 1 << level) - 1
    b_other = tl.gather(b_since, tl.broadcast_to(o_last[:, None], b_since.shape), 0)
    on_right = (o_h % 2 == 1)[:, None]
    b_since *= tl.where(on_right, b_other, 1.0)
    b_until *= tl.where(on_right, 1.0, b_other)
    return b_since, b_until


@triton.jit
def gates(g, g_t, o_c, o_k, m, m_k):
    """The gates of a chunk [C, K], as factors."""
    b_g = tl.load(g + (o_c[:, None] * g_t + o_k), mask=m[:, None] & m_k, other=0.0)
    return tl.exp2(b_g.to(tl.float32) * LOG2E)


@triton.jit
def scalar_gates(g, g_t, o_c, m):
    """Factors of a chunk: between a later and an earlier token, since it began, to its end, all."""
    b_N, b_F, b_out, n_all = fade(g, g_t, 0.0, o_c, m, DATA, False)
    b_E = (b_N[:, None] - b_N[None, :]) + (b_F[:, None] - b_F[None, :])
    b_E = tl.exp2(tl.where(o_c[:, None] >= o_c[None, :], b_E, float("-inf")))
    return b_E, tl.exp2(b_N + b_F), tl.exp2(b_out), tl.exp2(n_all)


@triton.jit
def borders(g, g_t, o_c, o_k, m, m_k, n, GATE: tl.constexpr, C: tl.constexpr):
    """What gates leave since the chunk began [C, K or 1], until it ends, and in all [K]."""
    if GATE == SCALAR:
        _, b_in, b_out, n_all = scalar_gates(g, g_t, o_c, m)
        b_in, b_out, b_all = b_in[:, None], b_out[:, None], tl.where(m_k, n_all, 1.0)
    else:
        m_next = ((o_c + 1 < n) & (o_c + 1 < C))[:, None] & m_k
        o_g = o_c[:, None] * g_t + o_k
        b_g = tl.load(g + o_g, mask=m[:, None] & m_k, other=0.0).to(tl.float32) * LOG2E
        b_next = tl.load(g + (o_g + g_t), mask=m_next, other=0.0).to(tl.float32) * LOG2E
        b_in, b_out = tl.exp2(tl.cumsum(b_g, 0)), tl.exp2(tl.cumsum(b_next, 0, reverse=True))
        b_all = tl.exp2(tl.sum(b_g, 0))
    return b_in, b_out, b_all


# ------------------------------------------------------------------------------------ the kernels


@triton.jit
def grams(
    q, k, beta, g, N, Q,
    q_b, q_t, q_h, k_b, k_t, k_h, beta_b, beta_t, beta_h, g_b, g_t, g_h, T, H,
    K: tl.constexpr, GATE: tl.constexpr, C: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """N and Q [C, C] of one chunk, (4) and (5)."""
    n_chunks = tl.cdiv(T, C)
    i_bh = (tl.program_id(0) // n_chunks).to(tl.int64)
    i_chunk = (tl.program_id(0) % n_chunks).to(tl.int64)
    i_b, i_h, row = i_bh // H, i_bh % H, i_chunk * C
    o_c, o_k = tl.arange(0, C), tl.arange(0, BK)
    m, lower = row + o_c < T, o_c[:, None] >= o_c[None, :]
    own = o_c[:, None] == o_c[None, :]
    q += i_b * q_b + i_h * q_h + row * q_t
    k += i_b * k_b + i_h * k_h + row * k_t
    beta += i_b * beta_b + i_h * beta_h + row * beta_t
    b_beta = tl.load(beta + o_c * beta_t, mask=m, other=0.0).to(tl.float32)
    if GATE != NONE:
        g += i_b * g_b + i_h * g_h + row * g_t
    b_Q, b_E = tl.zeros([C, C], tl.float32), tl.zeros([C, C], tl.float32)  # writers across
    for _ in range(0, K, BK):
        m_k = o_k < K
        m_tk = m[:, None] & m_k
        b_q = tl.load(q + (o_c[:, None] * q_t + o_k), mask=m_tk, other=0.0)  # [C, BK]
        b_k = tl.load(k + (o_c[:, None] * k_t + o_k), mask=m_tk, other=0.0)  # [C, BK]
        if GATE == VECTOR:
            b_Q += tl.where(own, tl.sum(b_q.to(tl.float32) * b_k, 1)[:, None], 0.0)
            b_since = gates(g, g_t, o_c, o_k, m, m_k)
            b_until = tl.full([C, BK], 1.0, tl.float32)
            for level in range(C.bit_length() - 1):
                b_write = tl.trans((b_k * b_until).to(b_k.dtype))
                b_s = tl.dot((b_q * b_since).to(b_k.dtype), b_write, input_precision="tf32x3")
                b_Q += tl.where(across(o_c, level), b_s, 0.0)
                b_s = tl.dot((b_k * b_since).to(b_k.dtype), b_write, input_precision="tf32x3")
                b_E += tl.where(across(o_c, level), b_s, 0.0)
                b_since, b_until = twice(b_since, b_until, o_c, level)
        else:
            b_Q = tl.dot(b_q, tl.trans(b_k), b_Q, input_precision="tf32x3")
            b_E = tl.dot(b_k, tl.trans(b_k), b_E, input_precision="tf32x3")
        o_k += BK
    if GATE == SCALAR:
        b_D, _, _, _ = scalar_gates(g, g_t, o_c, m)
        b_Q, b_E = b_Q * b_D, b_E * b_D
    b_A = b_E * b_beta[None, :]  # after the product, in float32
    b_N = tl.where(own, 1.0, 0.0) - tl.where(across(o_c, 0), b_A, 0.0)
    for level in tl.static_range(1, C.bit_length() - 1):
        b_below = tl.where(across(o_c, level), b_A, 0.0)
        b_below = tl.dot(b_N, b_below, input_precision="tf32x3")
        b_N -= tl.dot(b_below, b_N, input_precision="tf32x3")
    o_m = (i_bh * n_chunks + i_chunk) * C * C + o_c[:, None] * C + o_c[None, :]
    tl.store(N + o_m, b_N.to(N.dtype.element_ty))
    tl.store(Q + o_m, tl.where(lower, b_Q, 0.0).to(Q.dtype.element_ty))


@triton.jit
def sweep(
    q, k, v, beta, g, N, Q, S, o, e, end,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, beta_b, beta_t, beta_h, g_b, g_t, g_h, T, H,
    K: tl.constexpr, V: tl.constexpr, GATE: tl.constexpr,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Outputs o and the state at the end; or e alone, which the gradients start from."""
    kind: tl.constexpr = k.dtype.element_ty
    i_v, i_b, i_h, _, _, _ = stand(T, H, T, tl.cdiv(V, BV), False)
    i_bh = i_b * H + i_h
    o_c, o_k, o_v = tl.arange(0, C), tl.arange(0, BK), i_v * BV + tl.arange(0, BV)
    m_k, m_v = o_k < K, o_v < V
    q += i_b * q_b + i_h * q_h
    k += i_b * k_b + i_h * k_h
    v += i_b * v_b + i_h * v_h
    beta += i_b * beta_b + i_h * beta_h
    if GATE != NONE:
        g += i_b * g_b + i_h * g_h
    o_m = o_c[None, :] * C + o_c[:, None]  # transposed: writers down, readers across
    N += i_bh * tl.cdiv(T, C) * C * C
    Q += i_bh * tl.cdiv(T, C) * C * C
    i_row = (i_b * T * H + i_h) * V
    o_s, m_s = o_k[None, :] * V + o_v[:, None], m_k[None, :] & m_v[:, None]
    o_o = o_c[:, None] * (H * V) + o_v
    b_S = tl.load(S + i_bh * K * V + o_s, mask=m_s, other=0.0)  # [BV, BK]
    for i_t in range(0, T, C):
        m = i_t + o_c < T
        m_tk, m_vt = m[:, None] & m_k, m_v[:, None] & m[None, :]
        b_k = tl.load(k + (o_c[:, None] * k_t + o_k), mask=m_tk, other=0.0)  # [C, BK]
        b_x = tl.load(v + (o_c[None, :] * v_t + o_v[:, None]), mask=m_vt, other=0.0)  # [BV, C]
        b_beta = tl.load(beta + o_c * beta_t, mask=m, other=0.0).to(tl.float32)
        b_N = tl.load(N + o_m)
        b_old, b_write = b_k, b_k
        if GATE != NONE:
            b_since, b_left, b_all = borders(g, g_t, o_c, o_k, m, m_k, T - i_t, GATE, C)
            b_old, b_write = (b_k * b_since).to(kind), (b_k * b_left).to(kind)
            g += C * g_t
        b_cast = b_S.to(kind)
        b_x -= tl.dot(b_cast, tl.trans(b_old), input_precision="tf32x3")  # [BV, C], (4): V - K S_0
        b_e = tl.dot(b_x.to(kind), b_N, input_precision="tf32x3")  # (4)
        b_u = (b_e * b_beta[None, :]).to(kind)
        if e is not None:
            b_e = tl.trans(b_e.to(e.dtype.element_ty))
            tl.store(e + i_row + o_o, b_e, mask=m[:, None] & m_v)
        if o is not None:
            b_q = tl.load(q + (o_c[:, None] * q_t + o_k), mask=m_tk, other=0.0)  # [C, BK]
            b_Q = tl.load(Q + o_m)
            if GATE != NONE:
                b_q = (b_q * b_since).to(kind)
            b_o = tl.dot(b_cast, tl.trans(b_q), input_precision="tf32x3")  # [BV, C], (5): Q S_0
            b_o = tl.dot(b_u, b_Q, b_o, input_precision="tf32x3")  # (5)
            b_o = tl.trans(b_o.to(o.dtype.element_ty))
            tl.store(o + i_row + o_o, b_o, mask=m[:, None] & m_v)
            q += C * q_t
            Q += C * C
        if GATE != NONE:
            b_S *= b_all[None, :]
        b_S = tl.dot(b_u, b_write, b_S, input_precision="tf32x3")  # (6)
        i_row += C * H * V
        k += C * k_t
        v += C * v_t
        beta += C * beta_t
        N += C * C
    if end is not None:
        tl.store(end + i_bh * K * V + o_s, b_S, mask=m_s)


@triton.jit
def back(
    q, k, do, beta, g, N, Q, P, dx, dS,
    q_b, q_t, q_h, k_b, k_t, k_h, do_b, do_t, do_h, beta_b, beta_t, beta_h, g_b, g_t, g_h, T, H,
    K: tl.constexpr, V: tl.constexpr, GATE: tl.constexpr,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """The gradients dx [.., V] of values, from P, that of the state at the end; dS at the start."""
    kind: tl.constexpr = k.dtype.element_ty
    i_v, i_b, i_h, _, _, _ = stand(T, H, T, tl.cdiv(V, BV), False)
    i_bh = i_b * H + i_h
    o_c, o_k, o_v = tl.arange(0, C), tl.arange(0, BK), i_v * BV + tl.arange(0, BV)
    m_k, m_v = o_k < K, o_v < V
    last = tl.cast(tl.cdiv(T, C) - 1, tl.int64)  # the chunk that is walked first
    q += i_b * q_b + i_h * q_h + last * C * q_t
    k += i_b * k_b + i_h * k_h + last * C * k_t
    do += i_b * do_b + i_h * do_h + last * C * do_t
    beta += i_b * beta_b + i_h * beta_h + last * C * beta_t
    if GATE != NONE:
        g += i_b * g_b + i_h * g_h + last * C * g_t
    o_m = o_c[:, None] * C + o_c[None, :]
    N += (i_bh * (last + 1) + last) * C * C
    Q += (i_bh * (last + 1) + last) * C * C
    dx += ((i_b * T + last * C) * H + i_h) * V
    o_s, m_s = o_k[None, :] * V + o_v[:, None], m_k[None, :] & m_v[:, None]
    o_x = o_c[:, None] * (H * V) + o_v
    b_P = tl.load(P + i_bh * K * V + o_s, mask=m_s, other=0.0)  # [BV, BK]
    for i_t in range((tl.cdiv(T, C) - 1) * C, -1, -C):
        m = i_t + o_c < T
        m_tk, m_vt = m[:, None] & m_k, m_v[:, None] & m[None, :]
        b_k = tl.load(k + (o_c[:, None] * k_t + o_k), mask=m_tk, other=0.0)  # [C, BK]
        b_q = tl.load(q + (o_c[:, None] * q_t + o_k), mask=m_tk, other=0.0)  # [C, BK]
        b_do = tl.load(do + (o_c[None, :] * do_t + o_v[:, None]), mask=m_vt, other=0.0)  # [BV, C]
        b_beta = tl.load(beta + o_c * beta_t, mask=m, other=0.0).to(tl.float32)
        b_N, b_Q = tl.load(N + o_m), tl.load(Q + o_m)
        b_old, b_write = b_k, b_k
        if GATE != NONE:
            b_since, b_left, b_all = borders(g, g_t, o_c, o_k, m, m_k, T - i_t, GATE, C)
            b_old, b_write = (b_k * b_since).to(kind), (b_k * b_left).to(kind)
            b_q = (b_q * b_since).to(kind)
            g -= C * g_t
        b_u = tl.dot(b_P.to(kind), tl.trans(b_write), input_precision="tf32x3")  # [BV, C], of (6)
        b_u = tl.dot(b_do, b_Q, b_u, input_precision="tf32x3")  # of (5)
        b_u = (b_u * b_beta[None, :]).to(kind)
        b_dx = tl.dot(b_u, b_N, input_precision="tf32x3").to(kind)  # of (4)
        tl.store(dx + o_x, tl.trans(b_dx), mask=m[:, None] & m_v)
        if GATE != NONE:
            b_P *= b_all[None, :]
        b_P = tl.dot(b_do, b_q, b_P, input_precision="tf32x3")
        b_P -= tl.dot(b_dx, b_old, input_precision="tf32x3")
        dx -= C * H * V
        q -= C * q_t
        k -= C * k_t
        do -= C * do_t
        beta -= C * beta_t
        N -= C * C
        Q -= C * C
    tl.store(dS + i_bh * K * V + o_s, b_P, mask=m_s)


@triton.jit
def reads(
    q, k, do, dx, e, beta, g, S, dq, z, x, keep,
    q_b, q_t, q_h, k_b, k_t, k_h, do_b, do_t, do_h, beta_b, beta_t, beta_h, g_b, g_t, g_h,
    T, H, BTH,
    K: tl.constexpr, V: tl.constexpr, GATE: tl.constexpr,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """What do and dx read from the state; for gates also x = q dq - k z, and S to keep."""
    kind: tl.constexpr = k.dtype.element_ty
    i_k, i_b, i_h, _, _, _ = stand(T, H, T, tl.cdiv(K, BK), False)
    i_bh = i_b * H + i_h
    o_c, o_k, o_v = tl.arange(0, C), i_k * BK + tl.arange(0, BK), tl.arange(0, BV)
    m_k, m_v = o_k < K, o_v < V
    q += i_b * q_b + i_h * q_h
    k += i_b * k_b + i_h * k_h
    do += i_b * do_b + i_h * do_h
    dx += (i_b * T * H + i_h) * V
    e += (i_b * T * H + i_h) * V
    beta += i_b * beta_b + i_h * beta_h
    if GATE != NONE:
        g += i_b * g_b + i_h * g_h
    i_row = (i_b * T * H + i_h) * K
    if x is not None:
        if GATE == SCALAR:
            x += i_k.to(tl.int64) * BTH + i_b * T * H + i_h
        keep += i_bh * (tl.cdiv(T, KEEP) + 1) * K * V
    o_s, m_s = o_k[:, None] * V + o_v[None, :], m_k[:, None] & m_v[None, :]
    o_q, o_x = o_c[:, None] * (H * K) + o_k, o_c[:, None] * (H * V) + o_v
    b_S = tl.load(S + i_bh * K * V + o_s, mask=m_s, other=0.0)  # [BK, BV]
    for i_t in range(0, T, C):
        if x is not None:
            if i_t % KEEP == 0:
                tl.store(keep + o_s, b_S, mask=m_s)
                keep += K * V
        m = i_t + o_c < T
        m_tk, m_tv = m[:, None] & m_k, m[:, None] & m_v
        b_k = tl.load(k + (o_c[:, None] * k_t + o_k), mask=m_tk, other=0.0)  # [C, BK]
        b_do = tl.load(do + (o_c[:, None] * do_t + o_v), mask=m_tv, other=0.0)  # [C, BV]
        b_dx = tl.load(dx + o_x, mask=m_tv, other=0.0)  # [C, BV]
        b_beta = tl.load(beta + o_c * beta_t, mask=m, other=0.0).to(tl.float32)
        b_u = tl.load(e + o_x, mask=m_tv, other=0.0)  # [C, BV]
        b_u = (b_u * b_beta[:, None]).to(kind)
        b_own = tl.sum(b_u.to(tl.float32) * b_do, 1)
        later = o_c[None, :] > o_c[:, None]
        b_A = tl.dot(b_u, tl.trans(b_do), input_precision="tf32x3")  # writers down, readers across
        b_B = tl.dot(b_u, tl.trans(b_dx), input_precision="tf32x3")
        b_dq = tl.dot(b_S.to(kind), tl.trans(b_do), input_precision="tf32x3")  # [BK, C]
        b_z = tl.dot(b_S.to(kind), tl.trans(b_dx), input_precision="tf32x3")
        if GATE == VECTOR:
            b_since = gates(g, g_t, o_c, o_k, m, m_k)
            b_until = tl.full([C, BK], 1.0, tl.float32)
            b_new_dq, b_new_z = tl.zeros([BK, C], tl.float32), tl.zeros([BK, C], tl.float32)
            for level in range(C.bit_length() - 1):
                b_write, pair = tl.trans((b_k * b_until).to(kind)), tl.trans(across(o_c, level))
                b_read = tl.trans(b_since)
                b_s = tl.where(pair, b_A, 0.0).to(kind)
                b_new_dq += b_read * tl.dot(b_write, b_s, input_precision="tf32x3")
                b_s = tl.where(pair, b_B, 0.0).to(kind)
                b_new_z += b_read * tl.dot(b_write, b_s, input_precision="tf32x3")
                b_since, b_until = twice(b_since, b_until, o_c, level)
            b_dq = b_dq * tl.trans(b_since) + b_new_dq
            b_z = b_z * tl.trans(b_since) + b_new_z
            b_write = (b_k * b_until).to(kind)
            b_S *= tl.sum(tl.where(o_c[:, None] == C - 1, b_since, 0.0), 0)[:, None]
            g += C * g_t
        else:
            b_write = b_k
            if GATE == SCALAR:
                b_D, b_in, b_out, n_all = scalar_gates(g, g_t, o_c, m)
                b_A, b_B = b_A * tl.trans(b_D), b_B * tl.trans(b_D)
                b_dq, b_z = b_dq * b_in[None, :], b_z * b_in[None, :]
                b_write = (b_k * b_out[:, None]).to(kind)
                b_S *= n_all
                g += C * g_t
            b_A, b_B = tl.where(later, b_A, 0.0).to(kind), tl.where(later, b_B, 0.0).to(kind)
            b_dq = tl.dot(tl.trans(b_k), b_A, b_dq, input_precision="tf32x3")
            b_z = tl.dot(tl.trans(b_k), b_B, b_z, input_precision="tf32x3")
        b_S = tl.dot(tl.trans(b_write), b_u, b_S, input_precision="tf32x3")  # (6)
        b_dq, b_z = tl.trans(b_dq), tl.trans(b_z)  # [C, BK]
        if x is not None:
            b_q = tl.load(q + (o_c[:, None] * q_t + o_k), mask=m_tk, other=0.0)  # [C, BK]
            b_x = b_q * b_dq - b_k * b_z
            if GATE == VECTOR:
                tl.store(x + i_row + o_q, b_x, mask=m_tk)
            else:
                tl.store(x + o_c * H, tl.sum(b_x, 1), mask=m)
                x += C * H
        b_dq += b_own[:, None] * b_k
        tl.store(dq + i_row + o_q, b_dq.to(dq.dtype.element_ty), mask=m_tk)
        tl.store(z + i_row + o_q, b_z.to(z.dtype.element_ty), mask=m_tk)
        i_row += C * H * K
        q += C * q_t
        k += C * k_t
        do += C * do_t
        beta += C * beta_t
        dx += C * H * V
        e += C * H * V
    if x is not None:
        tl.store(keep + o_s, b_S, mask=m_s)


@triton.jit
def writes(
    q, k, do, dx, e, beta, g, P, z, x, keep, dk, dbeta, dg,
    q_b, q_t, q_h, k_b, k_t, k_h, do_b, do_t, do_h, beta_b, beta_t, beta_h, g_b, g_t, g_h,
    T, H, BTH,
    K: tl.constexpr, V: tl.constexpr, GATE: tl.constexpr,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """What e reads from the gradient of the state, which do and dx write; and all made of it."""
    kind: tl.constexpr = k.dtype.element_ty
    i_k, i_b, i_h, _, _, _ = stand(T, H, T, tl.cdiv(K, BK), False)
    i_bh = i_b * H + i_h
    o_c, o_k, o_v = tl.arange(0, C), i_k * BK + tl.arange(0, BK), tl.arange(0, BV)
    m_k, m_v = o_k < K, o_v < V
    last = tl.cast(tl.cdiv(T, C) - 1, tl.int64)  # the chunk that is walked first
    q += i_b * q_b + i_h * q_h + last * C * q_t
    k += i_b * k_b + i_h * k_h + last * C * k_t
    do += i_b * do_b + i_h * do_h + last * C * do_t
    i_row = (i_b * T + last * C) * H + i_h
    dx += i_row * V
    e += i_row * V
    dbeta += i_k.to(tl.int64) * BTH + i_row
    beta += i_b * beta_b + i_h * beta_h + last * C * beta_t
    if GATE != NONE:
        g += i_b * g_b + i_h * g_h + last * C * g_t
    if dg is not None:
        keep += (i_bh + 1) * (tl.cdiv(T, KEEP) + 1) * K * V - K * V  # the state at the end
        if GATE == SCALAR:
            x += i_k.to(tl.int64) * BTH + i_row
            dg += i_k.to(tl.int64) * BTH + i_row
            b_sum = 0.0
        else:
            b_sum = tl.zeros([BK], tl.float32)
    i_row *= K
    o_s, m_s = o_k[:, None] * V + o_v[None, :], m_k[:, None] & m_v[None, :]
    o_q, o_x = o_c[:, None] * (H * K) + o_k, o_c[:, None] * (H * V) + o_v
    b_P = tl.load(P + i_bh * K * V + o_s, mask=m_s, other=0.0)  # [BK, BV]
    for i_t in range((tl.cdiv(T, C) - 1) * C, -1, -C):
        if dg is not None:
            if (i_t + C >= T) | ((i_t + C) % KEEP == 0):  # here a state was kept
                b_kept = tl.load(keep + o_s, mask=m_s, other=0.0)
                keep -= K * V
                b_sum = tl.sum(b_P * b_kept, 1)
                if GATE == SCALAR:
                    b_sum = tl.sum(b_sum, 0)
        m = i_t + o_c < T
        m_tk, m_tv = m[:, None] & m_k, m[:, None] & m_v
        b_q = tl.load(q + (o_c[:, None] * q_t + o_k), mask=m_tk, other=0.0)  # [C, BK]
        b_k = tl.load(k + (o_c[:, None] * k_t + o_k), mask=m_tk, other=0.0)  # [C, BK]
        b_do = tl.load(do + (o_c[:, None] * do_t + o_v), mask=m_tv, other=0.0)  # [C, BV]
        b_dx = tl.load(dx + o_x, mask=m_tv, other=0.0)  # [C, BV]
        b_e = tl.load(e + o_x, mask=m_tv, other=0.0)  # [C, BV]
        b_beta = tl.load(beta + o_c * beta_t, mask=m, other=0.0).to(tl.float32)
        b_own = tl.sum(b_do.to(tl.float32) * b_e, 1)
        later = o_c[:, None] > o_c[None, :]
        b_A = tl.dot(b_do, tl.trans(b_e), input_precision="tf32x3")  # writers down, readers across
        b_B = tl.dot(b_dx, tl.trans(b_e), input_precision="tf32x3")
        b_r = tl.dot(b_P.to(kind), tl.trans(b_e), input_precision="tf32x3")  # [BK, C]
        if GATE == VECTOR:
            b_since = gates(g, g_t, o_c, o_k, m, m_k)
            b_until = tl.full([C, BK], 1.0, tl.float32)
            b_new = tl.zeros([BK, C], tl.float32)
            for level in range(C.bit_length() - 1):
                pair = across(o_c, level)
                b_s = tl.where(pair, b_A, 0.0).to(kind)
                b_s = tl.dot(tl.trans((b_q * b_since).to(kind)), b_s, input_precision="tf32x3")
                b_t = tl.where(pair, b_B, 0.0).to(kind)
                b_t = tl.dot(tl.trans((b_k * b_since).to(kind)), b_t, input_precision="tf32x3")
                b_new += tl.trans(b_until) * (b_s - b_t)
                b_since, b_until = twice(b_since, b_until, o_c, level)
            b_r = b_r * tl.trans(b_until) + b_new
            b_in_q, b_in_k = (b_q * b_since).to(kind), (b_k * b_since).to(kind)
            b_P *= tl.sum(tl.where(o_c[:, None] == C - 1, b_since, 0.0), 0)[:, None]
            g -= C * g_t
        else:
            b_in_q, b_in_k = b_q, b_k
            if GATE == SCALAR:
                b_D, b_in, b_out, n_all = scalar_gates(g, g_t, o_c, m)
                b_A, b_B = b_A * b_D, b_B * b_D
                b_r *= b_out[None, :]
                b_in_q, b_in_k = (b_q * b_in[:, None]).to(kind), (b_k * b_in[:, None]).to(kind)
                b_P *= n_all
                g -= C * g_t
            b_A, b_B = tl.where(later, b_A, 0.0).to(kind), tl.where(later, b_B, 0.0).to(kind)
            b_r = tl.dot(tl.trans(b_q), b_A, b_r, input_precision="tf32x3")
            b_r -= tl.dot(tl.trans(b_k), b_B, input_precision="tf32x3")
        b_P = tl.dot(tl.trans(b_in_q), b_do, b_P, input_precision="tf32x3")
        b_P -= tl.dot(tl.trans(b_in_k), b_dx, input_precision="tf32x3")
        b_r = tl.trans(b_r)  # [C, BK]
        if dg is not None:
            b_y = b_k * b_r * b_beta[:, None]
            if GATE == VECTOR:
                b_y = tl.load(x + i_row + o_q, mask=m_tk, other=0.0) - b_y
                b_y = tl.where(m_tk, b_y, 0.0)
                tl.store(dg + i_row + o_q, b_sum + tl.cumsum(b_y, 0, reverse=True), mask=m_tk)
                b_sum += tl.sum(b_y, 0)
            else:
                b_y = tl.load(x + o_c * H, mask=m, other=0.0) - tl.sum(b_y, 1)
                b_y = tl.where(m, b_y, 0.0)
                tl.store(dg + o_c * H, b_sum + tl.cumsum(b_y, 0, reverse=True), mask=m)
                b_sum += tl.sum(b_y, 0)
                x -= C * H
                dg -= C * H
        b_r += b_own[:, None] * b_q
        tl.store(dbeta + o_c * H, tl.sum(b_r * b_k, 1), mask=m)
        b_r = b_r * b_beta[:, None] - tl.load(z + i_row + o_q, mask=m_tk, other=0.0)
        tl.store(dk + i_row + o_q, b_r.to(dk.dtype.element_ty), mask=m_tk)
        i_row -= C * H * K
        q -= C * q_t
        k -= C * k_t
        do -= C * do_t
        beta -= C * beta_t
        dbeta -= C * H
        dx -= C * H * V
        e -= C * H * V


# ------------------------------------------------------------------------------------ the wrapper

GRAMS = (
    Config(CHUNK, 64, 2, 2, 256, 16, ALL, "small products: few warps, many programs side by side"),
    Config(CHUNK, 32, 2, 2, 64, 32, ALL, "float32 takes three products for one"),
)
SWEEPS = (
    Config(CHUNK, 64, 4, 2, 64, 16, ALL, "one tile of a small head: all is read once"),
    Config(CHUNK, 64, 4, 2, 128, 16, (90, 100), "two tiles, each with rows for four warps"),
    Config(CHUNK, 32, 4, 2, 128, 16, (80,), "four tiles: operands too stand in registers"),
    Config(CHUNK, 32, 8, 2, 256, 16, ALL, "the widest state"),
    Config(CHUNK, 16, 4, 1, 64, 32, ALL, "float32: no wider, products need twice the registers"),
)
VALUES = (
    Config(CHUNK, 32, 4, 1, 128, 16, (80, 90), "narrow tiles: many programs, room for the scores"),
    Config(CHUNK, 16, 8, 1, 128, 16, (100,), "the same without spills; wider ones do not compile"),
    Config(CHUNK, 16, 4, 1, 32, 32, ALL, "float32 takes three products for one"),
)
# With a gate a channel there are factors to hold beside the state: narrower tiles.
GATED_SWEEPS = (
    Config(CHUNK, 32, 4, 2, 64, 16, ALL, "two tiles of a small head: twice the programs"),
    Config(CHUNK, 32, 4, 1, 128, 16, ALL, "four tiles; loads ahead would take registers"),
    Config(CHUNK, 16, 8, 1, 256, 16, ALL, "the widest state"),
    Config(CHUNK, 16, 4, 1, 64, 32, ALL, "float32: no wider, products need twice the registers"),
)
GATED_VALUES = (
    Config(CHUNK, 16, 4, 1, 128, 16, ALL, "narrow tiles: many programs, and room for the scores"),
    Config(CHUNK, 16, 4, 1, 32, 32, ALL, "float32 takes three products for one"),
)


def kind_of(g: Tensor | None) -> int:
    """NONE, SCALAR or VECTOR."""
    return NONE.value if g is None else SCALAR.value if g.ndim == 3 else VECTOR.value


def tables(g: Tensor | None) -> tuple[tuple[Config, ...], tuple[Config, ...]]:
    """Configurations for `sweep` and `back`, and for `reads` and `writes`."""
    vector = kind_of(g) == VECTOR.value
    return (GATED_SWEEPS, GATED_VALUES) if vector else (SWEEPS, VALUES)


def widest(configs: tuple[Config, ...], x: Tensor) -> int:
    """The most channels of the axis that is not cut, for the type of x."""
    return max(c.most for c in configs if c.bits == 8 * x.dtype.itemsize)


def inverses(q, k, beta, g):
    """N and Q [B, H, chunks, C, C], in the type of k.

    Args:
        q: [B, T, H, K].
        k: [B, T, H, K].
        beta: [B, T, H].
        g: [B, T, H, K], [B, T, H] or None.
    """
    B, T, H, K = k.shape
    chunks = triton.cdiv(T, CHUNK)
    N = k.new_empty(B, H, chunks, CHUNK, CHUNK)
    Q = torch.empty_like(N)
    numbers = (*strides(q, k, beta, g), T, H, K, kind_of(g))

    def run(config: Config) -> tuple[Tensor, Tensor]:
        how = {"num_warps": config.warps, "num_stages": config.stages}
        grams[(B * H * chunks,)](q, k, beta, g, N, Q, *numbers, CHUNK, config.tile, **how)
        return N, Q

    return pick(GRAMS, K, k, (grams, K, kind_of(g)), run)


def outputs(q, k, v, beta, g, N, Q, S, *, wants_e=False):
    """Outputs o [B, T, H, V] and the state at the end, or e [B, T, H, V] alone."""
    (B, T, H, K), V = k.shape, v.shape[3]
    out, end = v.new_empty(B, T, H, V), None if wants_e else S.new_empty(B, H, K, V)
    o, e = (None, out) if wants_e else (out, None)
    numbers = (*strides(q, k, v, beta, g), T, H, K, V, kind_of(g))

    def run(config: Config) -> tuple[Tensor, Tensor | None]:
        grid = (B * H * triton.cdiv(V, config.tile),)
        how = config.launch() | {"BK": padded(K)}
        sweep[grid](q, k, v, beta, g, N, Q, S, o, e, end, *numbers, **how)
        return out, end

    return pick(tables(g)[0], K, k, (sweep, K, V, kind_of(g), wants_e), run)


def value_gradients(q, k, do, beta, g, N, Q, P):
    """The gradients of v [B, T, H, V] and of S [B, H, K, V]; P is that of the state at the end."""
    (B, T, H, K), V = k.shape, do.shape[3]
    dx, dS = do.new_empty(B, T, H, V), torch.empty_like(P)
    numbers = (*strides(q, k, do, beta, g), T, H, K, V, kind_of(g))

    def run(config: Config) -> tuple[Tensor, Tensor]:
        grid = (B * H * triton.cdiv(V, config.tile),)
        how = config.launch() | {"BK": padded(K)}
        back[grid](q, k, do, beta, g, N, Q, P, dx, dS, *numbers, **how)
        return dx, dS

    return pick(tables(g)[0], K, k, (back, K, V, kind_of(g)), run)


def key_gradients(q, k, beta, g, do, dx, e, S, P, *, wants_g):
    """The gradients dq, dk [B, T, H, K], dbeta [B, T, H], and dg like g or None."""
    (B, T, H, K), V = k.shape, do.shape[3]
    numbers = (*strides(q, k, do, beta, g), T, H, B * T * H, K, V, kind_of(g))

    def run(config: Config) -> tuple[Tensor | None, ...]:
        tiles = triton.cdiv(K, config.tile)
        dq, z, dk = (k.new_empty(B, T, H, K) for _ in range(3))
        dbeta = S.new_empty(tiles, B, T, H)
        x = keep = dg = None
        if wants_g:
            x = torch.empty_like(dbeta) if g.ndim == 3 else S.new_empty(1, B, T, H, K)
            keep, dg = kept(k, do), torch.empty_like(x)
        how = config.launch() | {"BK": config.tile, "BV": padded(V), "KEEP": KEEP}
        given = (q, k, do, dx, e, beta, g)
        reads[(B * H * tiles,)](*given, S, dq, z, x, keep, *numbers, **how)
        writes[(B * H * tiles,)](*given, P, z, x, keep, dk, dbeta, dg, *numbers, **how)
        return dq, dk, dbeta.sum(0), dg if dg is None else dg.sum(0)

    return pick(tables(g)[1], V, k, (reads, K, V, kind_of(g), wants_g), run)


class DeltaRule(torch.autograd.Function):
    """Two kernels forward in time; their gradient computes all anew from the inputs."""

    @staticmethod
    def forward(ctx, q, k, v, beta, g, S):  # noqa: D102
        ctx.save_for_backward(q, k, v, beta, g, S)
        kind = v.dtype
        q, k, v = ready(q, k, v)
        most = widest(tables(g)[0], k)
        if k.shape[3] > most:
            raise Unsupported(
                f"delta_rule: {most} key channels of {k.dtype} fit on chip, got {k.shape[3]}; "
                "the chunked form takes any number"
            )
        N, Q = inverses(q, k, beta, g)
        o, end = outputs(q, k, v, beta, g, N, Q, start(S, k, v))
        return o.to(kind), end

    @staticmethod
    @once_differentiable
    def backward(ctx, do, dS):  # noqa: D102
        given = ctx.saved_tensors
        beta, g, S = given[3:]
        q, k, v, do = ready(*given[:3], do)
        S, P = start(S, k, v), dS.contiguous()
        N, Q = inverses(q, k, beta, g)
        e, _ = outputs(q, k, v, beta, g, N, Q, S, wants_e=True)
        dv, dS_0 = value_gradients(q, k, do, beta, g, N, Q, P)
        width, wants_g = widest(tables(g)[1], v), ctx.needs_input_grad[4]
        parts = []
        for c in (slice(n, n + width) for n in range(0, v.shape[3], width)):  # they add up
            sliced = [x[..., c].contiguous() for x in (dv, e, S, P)]
            parts.append(key_gradients(q, k, beta, g, do[..., c], *sliced, wants_g=wants_g))
        dq, dk, dbeta, dg = map(add, zip(*parts, strict=True))
        found = zip((dq, dk, dv, dbeta, dg, dS_0), given, ctx.needs_input_grad, strict=True)
        return tuple(x.to(y.dtype) if wanted else None for x, y, wanted in found)


@torch.compiler.disable
def chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g: Tensor | None = None,
    S: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence delta_rule, forward and backward, on a GPU or in Triton's interpreter.

    Args:
        q: [B, T, H, K], K at most 256, in float32 64; not scaled. Any strides, as for k, v, beta
            and g; channels that do not lie side by side are copied.
        k: [B, T, H, K], of length 1.
        v: [B, T, H, V], V at most 256.
        beta: [B, T, H], from 0 to 2.
        g: log gates <= 0: [B, T, H, K] (KDA), [B, T, H] (Gated DeltaNet), None (DeltaNet).
        S: [B, H, K, V], None for zeros.

    Returns:
        o [B, T, H, V] in the type of v, and the state [B, H, K, V] in float32. Sums are float32;
        products of float32 are taken as three of TF32.

    Raises:
        Unsupported: float64, more channels than that, a device without kernels.
    """
    check("delta_rule", k.shape[3], v.shape[3], q=q, k=k, v=v, beta=beta, g=g)
    if not v.shape[0] * v.shape[1]:  # no tokens
        return v.clone(), start(S, k, v)
    if g is not None and g.ndim == 4:
        (g,) = ready(g)
    with torch.cuda.device_of(v):
        return DeltaRule.apply(q, k, v, beta, g, S)
