r"""The recurrence rank_one on a GPU: RWKV-7.

What does not wait for the state is computed for all chunks of C tokens at once; what does is a loop
over chunks with as little in it as there can be. Five kernels, two of them forward:

    system      one chunk                         q, w, k, a, b     -> W, R, K', B', D, M, U
    sweep       a tile of V, all of K, forward    these, v          -> o; or y and all S
    back        a tile of V, all of K, backward   these, do         -> dv, dy and all P
    system_back one chunk                         N, W, M, dy, S    -> the gradients of scores
    keys_back   a tile of K of one chunk          these, P          -> dq, dw, dk, da, db

Inside a chunk, seen from the state S_0 that enters it, with E and E' as in (3) and (4):

    N = (I - stril E'(A, B))^-1      M = N stril E'(A, K)               Y = W S_0 + M V      (3)
    W = N (A faded since S_0)        U = tril E(Q, K) + E(Q, B) M       O = R S_0 + U V      (4)
    R = Q faded since S_0 + E(Q, B) W
    K', B' = K, B faded until the end, D = all gates:  S = D S_0 + K'^T V + B'^T Y           (5)

              K                 C                       C
          +--------+        +--------+              +--------+
       BV |  S^T   |  x   K | W^T R^T|           C  | M^T U^T|    on chip: S^T [BV, K], float32
          +--------+        +--------+              +--------+    read a chunk: W, R, K', B' [C, K],
              C                 K                                   M, U [C, C], v [C, BV], D [K]
          +--------+        +--------+                            written: o [C, BV]
       BV | v^T y^T|  x   C | K'  B' |
          +--------+        +--------+

So a chunk waits for two products only, one after the other: y from S, and S from y.

Scores are built by halves (linviz/recurrences/exponents.py): readers of a right half have faded
since it began, writers of a left one until it ends, and between them is a plain product. A reader q
comes after the gate of its own time, a before it; so the gate goes into q, and both fade alike. All
factors are products of gates: no exponent is above 0, nothing is divided.

Going back, P' is the gradient of the state that leaves a chunk, and P of the one that enters it:

    dY = B' P'     dV = K' P' + U^T dO + M^T dY     P = D P' + R^T dO + W^T dY

and with S_0 and P' of every chunk written down, the rest is for all chunks at once. The gradient of
the gate of time t counts each pair of a writer before t and a reader from t on: what readers add
and writers take away in the rest of the chunk, and c, all that is read from its end. A pair of a
token with itself adds nothing and is left out.

Nothing but the inputs is saved. The numbers are the equations of linviz/recurrences/rank_one.py.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from linviz.kernels.launch import (
    ALL,
    CHANNELS,
    LOG2E,
    Config,
    Unsupported,
    across,
    check,
    padded,
    pick,
    ready,
    stand,
    start,
    strides,
)

CHUNK = 16  # tokens a chunk


# ------------------------------------------------------------------------------ all chunks at once


@triton.jit
def place(T, H, C: tl.constexpr):
    """Head and chunk of a program, sequence, head in it, its first row, where its tokens are."""
    n_chunks = tl.cdiv(T, C)
    i_bh = (tl.program_id(0) // n_chunks).to(tl.int64)
    i_chunk = (tl.program_id(0) % n_chunks).to(tl.int64)
    row = i_chunk * C
    return i_bh, i_bh * n_chunks + i_chunk, i_bh // H, i_bh % H, row, row + tl.arange(0, C) < T


@triton.jit
def load_keys(x, x_b, x_t, x_h, i_b, i_h, row, o_c, o_k, m):
    """[C, BK] of x in float32."""
    x += i_b * x_b + i_h * x_h + row * x_t
    return tl.load(x + (o_c[:, None] * x_t + o_k), mask=m, other=0.0).to(tl.float32)


@triton.jit
def twice(b_since, b_until, b_gate, o_c, level):
    """What gates leave since a token's block of 1 << level began, and until it ends: of two blocks.

    All are [C, K]. A token's own gate is in neither, so what a whole block leaves is b_since times
    b_gate in its last row; the other half's is what joins.
    """
    o_h = o_c >> level
    o_last = ((o_h ^ 1) + 1 << level) - 1
    b_other = tl.gather(b_since * b_gate, tl.broadcast_to(o_last[:, None], b_gate.shape), 0)
    on_right = (o_h % 2 == 1)[:, None]
    return b_since * tl.where(on_right, b_other, 1.0), b_until * tl.where(on_right, 1.0, b_other)


@triton.jit
def since(b_gate, o_c, C: tl.constexpr, BK: tl.constexpr):
    """What gates leave since the chunk began, without a token's own [C, BK]."""
    b_since, b_until = tl.full([C, BK], 1.0, tl.float32), tl.full([C, BK], 1.0, tl.float32)
    for level in range(C.bit_length() - 1):
        b_since, b_until = twice(b_since, b_until, b_gate, o_c, level)
    return b_since


@triton.jit
def inverse(b_E, o_c, C: tl.constexpr):
    """(I - E)^-1, E strictly lower: from that of two blocks, N, that of both, N + N E N."""
    b_N = tl.where(o_c[:, None] == o_c[None, :], 1.0, 0.0) + tl.where(across(o_c, 0), b_E, 0.0)
    for level in tl.static_range(1, C.bit_length() - 1):
        b_below = tl.where(across(o_c, level), b_E, 0.0)
        b_below = tl.dot(b_N, b_below, input_precision="tf32x3")
        b_N += tl.dot(b_below, b_N, input_precision="tf32x3")
    return b_N


@triton.jit
def system(
    q, w, k, a, b, W, R, left_k, left_b, D, M, U, N, E_qb,
    q_b, q_t, q_h, w_b, w_t, w_h, k_b, k_t, k_h, a_b, a_t, a_h, b_b, b_t, b_h, T, H,
    K: tl.constexpr, C: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """What a chunk does with any state that enters it; for the gradients also N and E(Q, B)."""
    kind: tl.constexpr = W.dtype.element_ty
    i_bh, i_chunk, i_b, i_h, row, m = place(T, H, C)
    i_row = (i_bh * T + row) * K
    W, R, left_k, left_b = W + i_row, R + i_row, left_k + i_row, left_b + i_row
    o_c = tl.arange(0, C)
    same = o_c[:, None] == o_c[None, :]
    b_qk, b_qb = tl.zeros([C, C], tl.float32), tl.zeros([C, C], tl.float32)
    b_ak, b_ab = tl.zeros([C, C], tl.float32), tl.zeros([C, C], tl.float32)
    for i_k in range(0, K, BK):  # the scores are sums over channels
        o_k = i_k + tl.arange(0, BK)
        m_tk = m[:, None] & (o_k < K)
        b_q = load_keys(q, q_b, q_t, q_h, i_b, i_h, row, o_c, o_k, m_tk)  # [C, BK], as for all
        b_k = load_keys(k, k_b, k_t, k_h, i_b, i_h, row, o_c, o_k, m_tk)
        b_a = load_keys(a, a_b, a_t, a_h, i_b, i_h, row, o_c, o_k, m_tk)
        b_B = load_keys(b, b_b, b_t, b_h, i_b, i_h, row, o_c, o_k, m_tk)
        b_gate = tl.exp2(load_keys(w, w_b, w_t, w_h, i_b, i_h, row, o_c, o_k, m_tk) * LOG2E)
        b_qk += tl.where(same, tl.sum(b_q * b_k, 1)[:, None], 0.0)
        b_qb += tl.where(same, tl.sum(b_q * b_B, 1)[:, None], 0.0)
        b_q *= b_gate
        b_since, b_until = tl.full([C, BK], 1.0, tl.float32), tl.full([C, BK], 1.0, tl.float32)
        for level in range(C.bit_length() - 1):
            pair = across(o_c, level)
            of_q, of_a = (b_q * b_since).to(kind), (b_a * b_since).to(kind)
            to_k, to_b = tl.trans((b_k * b_until).to(kind)), tl.trans((b_B * b_until).to(kind))
            b_qk += tl.where(pair, tl.dot(of_q, to_k, input_precision="tf32x3"), 0.0)
            b_qb += tl.where(pair, tl.dot(of_q, to_b, input_precision="tf32x3"), 0.0)
            b_ak += tl.where(pair, tl.dot(of_a, to_k, input_precision="tf32x3"), 0.0)
            b_ab += tl.where(pair, tl.dot(of_a, to_b, input_precision="tf32x3"), 0.0)
            b_since, b_until = twice(b_since, b_until, b_gate, o_c, level)
        o_r = o_c[:, None] * K + o_k
        tl.store(left_k + o_r, (b_k * b_until).to(kind), mask=m_tk)  # (5)
        tl.store(left_b + o_r, (b_B * b_until).to(kind), mask=m_tk)  # (5)
        b_all = tl.sum(tl.where(o_c[:, None] == C - 1, b_since * b_gate, 0.0), 0)  # [BK]
        tl.store(D + i_chunk * K + o_k, b_all, mask=o_k < K)
    b_N = inverse(b_ab, o_c, C)  # (3)
    b_M = tl.dot(b_N, b_ak, input_precision="tf32x3")  # (3)
    b_U = b_qk + tl.dot(b_qb, b_M, input_precision="tf32x3")  # (4)
    o_m = i_chunk * C * C + (o_c[:, None] * C + o_c[None, :])
    tl.store(M + o_m, b_M.to(kind))
    tl.store(U + o_m, b_U.to(kind))
    if N is not None:
        tl.store(N + o_m, b_N)
        tl.store(E_qb + o_m, b_qb)
    for i_k in range(0, K, BK):
        o_k = i_k + tl.arange(0, BK)
        m_tk = m[:, None] & (o_k < K)
        b_q = load_keys(q, q_b, q_t, q_h, i_b, i_h, row, o_c, o_k, m_tk)
        b_a = load_keys(a, a_b, a_t, a_h, i_b, i_h, row, o_c, o_k, m_tk)
        b_gate = tl.exp2(load_keys(w, w_b, w_t, w_h, i_b, i_h, row, o_c, o_k, m_tk) * LOG2E)
        b_since = since(b_gate, o_c, C, BK)
        b_W = tl.dot(b_N, b_a * b_since, input_precision="tf32x3")  # (3)
        b_R = b_q * b_gate * b_since + tl.dot(b_qb, b_W, input_precision="tf32x3")  # (4)
        o_r = o_c[:, None] * K + o_k
        tl.store(W + o_r, b_W.to(kind), mask=m_tk)
        tl.store(R + o_r, b_R.to(kind), mask=m_tk)


@triton.jit
def system_back(
    v, do, dy, S, W, M, N, E_qb, dW, dR, dE,
    v_b, v_t, v_h, do_b, do_t, do_h, T, H,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """From the state that enters a chunk: the gradients of all scores, and of what reads the state.

    dW [C, K] is that of A faded since S_0, and dR that of Q. dE is those of E(Q, K), E(Q, B),
    E'(A, K), E'(A, B).
    """
    EXACT: tl.constexpr = "tf32x3" if v.dtype.element_ty == tl.float32 else "tf32"
    i_bh, i_chunk, i_b, i_h, row, m = place(T, H, C)
    o_c = tl.arange(0, C)
    lower, strict = o_c[:, None] >= o_c[None, :], o_c[:, None] > o_c[None, :]
    i_row = i_bh * T + row
    W, dW, dR, dy = W + i_row * K, dW + i_row * K, dR + i_row * K, dy + i_row * V
    S += i_chunk * K * V
    v += i_b * v_b + i_h * v_h + row * v_t
    do += i_b * do_b + i_h * do_h + row * do_t
    o_m = i_chunk * C * C + (o_c[:, None] * C + o_c[None, :])
    b_M, b_N = tl.load(M + o_m).to(tl.float32), tl.load(N + o_m)
    b_qb = tl.load(E_qb + o_m)
    b_dM, b_dU = tl.zeros([C, C], tl.float32), tl.zeros([C, C], tl.float32)
    for i_v in range(0, V, BV):
        o_v = i_v + tl.arange(0, BV)
        m_tv = m[:, None] & (o_v < V)
        b_v = tl.load(v + (o_c[:, None] * v_t + o_v), mask=m_tv, other=0.0)  # [C, BV]
        b_do = tl.load(do + (o_c[:, None] * do_t + o_v), mask=m_tv, other=0.0)  # [C, BV]
        b_dy = tl.load(dy + (o_c[:, None] * V + o_v), mask=m_tv, other=0.0)  # [C, BV]
        b_dM = tl.dot(b_dy, tl.trans(b_v), b_dM, input_precision=EXACT)
        b_dU = tl.dot(b_do, tl.trans(b_v), b_dU, input_precision=EXACT)
    # (4): U and R, which have E(Q, B), then (3): M and W, which have N
    b_dU = tl.where(lower, b_dU, 0.0)
    b_dM = tl.dot(tl.trans(b_qb), b_dU, b_dM, input_precision=EXACT)
    b_dM = tl.dot(tl.trans(b_N), b_dM, input_precision=EXACT)
    b_dqb = tl.dot(b_dU, tl.trans(b_M), input_precision=EXACT)
    b_dab = tl.dot(b_dM, tl.trans(b_M), input_precision=EXACT)
    for i_k in range(0, K, BK):
        o_k = i_k + tl.arange(0, BK)
        m_tk = m[:, None] & (o_k < K)
        b_dW, b_dR = tl.zeros([C, BK], tl.float32), tl.zeros([C, BK], tl.float32)
        for i_v in range(0, V, BV):
            o_v = i_v + tl.arange(0, BV)
            m_tv = m[:, None] & (o_v < V)
            o_s, m_s = o_k[None, :] * V + o_v[:, None], (o_k < K) & (o_v < V)[:, None]
            b_S = tl.load(S + o_s, mask=m_s, other=0.0)  # [BV, BK]
            b_do = tl.load(do + (o_c[:, None] * do_t + o_v), mask=m_tv, other=0.0)  # [C, BV]
            b_dy = tl.load(dy + (o_c[:, None] * V + o_v), mask=m_tv, other=0.0)  # [C, BV]
            b_dW = tl.dot(b_dy, b_S, b_dW, input_precision=EXACT)
            b_dR = tl.dot(b_do, b_S, b_dR, input_precision=EXACT)
        o_r = o_c[:, None] * K + o_k
        b_W = tl.trans(tl.load(W + o_r, mask=m_tk, other=0.0).to(tl.float32))  # [BK, C]
        b_dqb = tl.dot(b_dR, b_W, b_dqb, input_precision=EXACT)
        b_dW = tl.dot(tl.trans(b_qb), b_dR, b_dW, input_precision=EXACT)
        b_dW = tl.dot(tl.trans(b_N), b_dW, input_precision=EXACT)
        b_dab = tl.dot(b_dW, b_W, b_dab, input_precision=EXACT)
        tl.store(dW + o_r, b_dW.to(dW.dtype.element_ty), mask=m_tk)
        tl.store(dR + o_r, b_dR.to(dR.dtype.element_ty), mask=m_tk)
    dE += i_chunk * 4 * C * C + (o_c[:, None] * C + o_c[None, :])
    tl.store(dE, b_dU)
    tl.store(dE + C * C, tl.where(lower, b_dqb, 0.0))
    tl.store(dE + 2 * C * C, tl.where(strict, b_dM, 0.0))
    tl.store(dE + 3 * C * C, tl.where(strict, b_dab, 0.0))


@triton.jit
def load_pairs(x, o_m, pair):
    """[C, C] of x: some pairs, and 0 for the others."""
    return tl.load(x + o_m, mask=pair, other=0.0)


@triton.jit
def keys_back(
    q, w, k, a, b, v, y, S, P, dW, dR, dE, dq, dw, dk, da, db,
    q_b, q_t, q_h, w_b, w_t, w_h, k_b, k_t, k_h, a_b, a_t, a_h, b_b, b_t, b_h, v_b, v_t, v_h, T, H,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """From the gradient P of the state that leaves a chunk, and those of all scores."""
    EXACT: tl.constexpr = "tf32x3" if v.dtype.element_ty == tl.float32 else "tf32"
    i_bh, i_chunk, i_b, i_h, row, m = place(T, H, C)
    o_c, o_k = tl.arange(0, C), tl.program_id(1) * BK + tl.arange(0, BK)
    m_tk = m[:, None] & (o_k < K)
    i_row = i_bh * T + row
    dW, dR, y = dW + i_row * K, dR + i_row * K, y + i_row * V
    S, P = S + i_chunk * K * V, P + i_chunk * K * V
    v += i_b * v_b + i_h * v_h + row * v_t
    b_q = load_keys(q, q_b, q_t, q_h, i_b, i_h, row, o_c, o_k, m_tk)  # [C, BK], as for all
    b_k = load_keys(k, k_b, k_t, k_h, i_b, i_h, row, o_c, o_k, m_tk)
    b_a = load_keys(a, a_b, a_t, a_h, i_b, i_h, row, o_c, o_k, m_tk)
    b_B = load_keys(b, b_b, b_t, b_h, i_b, i_h, row, o_c, o_k, m_tk)
    b_gate = tl.exp2(load_keys(w, w_b, w_t, w_h, i_b, i_h, row, o_c, o_k, m_tk) * LOG2E)
    dE += i_chunk * 4 * C * C
    o_m, o_n = o_c[:, None] * C + o_c[None, :], o_c[None, :] * C + o_c[:, None]
    b_dq, b_da = tl.zeros([C, BK], tl.float32), tl.zeros([C, BK], tl.float32)
    b_new_k, b_new_b = tl.zeros([C, BK], tl.float32), tl.zeros([C, BK], tl.float32)
    b_since, b_until = tl.full([C, BK], 1.0, tl.float32), tl.full([C, BK], 1.0, tl.float32)
    for level in range(C.bit_length() - 1):  # the scores by the same halves
        pair = across(o_c, level)  # readers down, writers across
        to_k, to_b = b_k * b_until, b_B * b_until
        b_x = tl.dot(load_pairs(dE, o_m, pair), to_k, input_precision=EXACT)
        b_x = tl.dot(load_pairs(dE + C * C, o_m, pair), to_b, b_x, input_precision=EXACT)
        b_dq += b_since * b_x
        b_x = tl.dot(load_pairs(dE + 2 * C * C, o_m, pair), to_k, input_precision=EXACT)
        b_x = tl.dot(load_pairs(dE + 3 * C * C, o_m, pair), to_b, b_x, input_precision=EXACT)
        b_da += b_since * b_x
        pair = tl.trans(pair)  # writers down, readers across
        of_q, of_a = b_q * b_gate * b_since, b_a * b_since
        b_x = tl.dot(load_pairs(dE, o_n, pair), of_q, input_precision=EXACT)
        b_x = tl.dot(load_pairs(dE + 2 * C * C, o_n, pair), of_a, b_x, input_precision=EXACT)
        b_new_k += b_until * b_x
        b_x = tl.dot(load_pairs(dE + C * C, o_n, pair), of_q, input_precision=EXACT)
        b_x = tl.dot(load_pairs(dE + 3 * C * C, o_n, pair), of_a, b_x, input_precision=EXACT)
        b_new_b += b_until * b_x
        b_since, b_until = twice(b_since, b_until, b_gate, o_c, level)
    b_dk, b_db = tl.zeros([C, BK], tl.float32), tl.zeros([C, BK], tl.float32)
    b_c = tl.zeros([BK], tl.float32)
    for i_v in range(0, V, BV):
        o_v = i_v + tl.arange(0, BV)
        m_tv, m_s = m[:, None] & (o_v < V), (o_k < K) & (o_v < V)[:, None]
        o_s = o_k[None, :] * V + o_v[:, None]
        b_S = tl.load(S + o_s, mask=m_s, other=0.0)  # [BV, BK]
        b_P = tl.load(P + o_s, mask=m_s, other=0.0)  # [BV, BK]
        b_v = tl.load(v + (o_c[:, None] * v_t + o_v), mask=m_tv, other=0.0)  # [C, BV]
        b_y = tl.load(y + (o_c[:, None] * V + o_v), mask=m_tv, other=0.0)  # [C, BV]
        b_dk = tl.dot(b_v, b_P, b_dk, input_precision=EXACT)
        b_db = tl.dot(b_y, b_P, b_db, input_precision=EXACT)
        b_c += tl.sum(b_S.to(tl.float32) * b_P, 0)
    o_r = o_c[:, None] * K + o_k
    b_dq += b_since * tl.load(dR + o_r, mask=m_tk, other=0.0)
    b_da += b_since * tl.load(dW + o_r, mask=m_tk, other=0.0)
    b_dk, b_db = b_dk * b_until, b_db * b_until
    # the gates: c adds up what is read from the end, which all of them fade
    b_c *= tl.sum(tl.where(o_c[:, None] == C - 1, b_since * b_gate, 0.0), 0)
    b_c += tl.sum(b_k * b_dk + b_B * b_db, 0)
    b_dk, b_db, b_dq = b_dk + b_new_k, b_db + b_new_b, b_dq * b_gate
    b_reads = b_a * b_da
    b_dw = b_q * b_dq + b_reads - b_k * b_dk - b_B * b_db
    b_dw = b_c + tl.cumsum(b_dw, 0, reverse=True) - b_reads  # a reads before the gate of its time
    b_qk = tl.load(dE + o_c * (C + 1))[:, None]  # [C, 1], of a token and itself
    b_qb = tl.load(dE + C * C + o_c * (C + 1))[:, None]
    i_row = ((i_b * T + row) * H + i_h) * K
    o_x = o_c[:, None] * (H * K) + o_k
    tl.store(dq + i_row + o_x, (b_dq + b_qk * b_k + b_qb * b_B).to(dq.dtype.element_ty), mask=m_tk)
    tl.store(dw + i_row + o_x, b_dw.to(dw.dtype.element_ty), mask=m_tk)
    tl.store(dk + i_row + o_x, (b_dk + b_qk * b_q).to(dk.dtype.element_ty), mask=m_tk)
    tl.store(da + i_row + o_x, b_da.to(da.dtype.element_ty), mask=m_tk)
    tl.store(db + i_row + o_x, (b_db + b_qb * b_q).to(db.dtype.element_ty), mask=m_tk)


# ------------------------------------------------------------------------------- chunk after chunk


@triton.jit
def sweep(
    W, R, left_k, left_b, D, M, U, v, S, o, y, states, end,
    v_b, v_t, v_h, T, H,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Outputs o and the state at the end; or y, and the state that enters each chunk."""
    i_v, i_b, i_h, _, _, _ = stand(T, H, T, tl.cdiv(V, BV), False)
    i_bh = i_b * H + i_h
    o_c, o_k, o_v = tl.arange(0, C), tl.arange(0, BK), i_v * BV + tl.arange(0, BV)
    m_k, m_v = o_k < K, o_v < V
    v += i_b * v_b + i_h * v_h
    o_r, o_x = o_c[:, None] * K + o_k, o_c[:, None] * (H * V) + o_v
    i_chunk = i_bh * tl.cdiv(T, C)
    o_m = o_c[None, :] * C + o_c[:, None]  # transposed: writers down, readers across
    o_s, m_s = o_k[None, :] * V + o_v[:, None], m_k[None, :] & m_v[:, None]
    b_S = tl.load(S + i_bh * K * V + o_s, mask=m_s, other=0.0)  # [BV, BK]
    kind: tl.constexpr = W.dtype.element_ty
    for i_t in range(0, T, C):
        i_row = i_bh * T + i_t
        m = i_t + o_c < T
        m_tk, m_tv = m[:, None] & m_k, m[:, None] & m_v
        b_v = tl.load(v + (o_c[None, :] * v_t + o_v[:, None]), mask=tl.trans(m_tv), other=0.0)
        b_W = tl.load(W + i_row * K + o_r, mask=m_tk, other=0.0)  # [C, BK]
        b_M = tl.load(M + i_chunk * C * C + o_m)  # [C, C]
        b_cast = b_S.to(kind)
        b_y = tl.dot(b_v, b_M, input_precision="tf32x3")
        b_y = tl.dot(b_cast, tl.trans(b_W), b_y, input_precision="tf32x3").to(kind)  # [BV, C], (3)
        if o is not None:
            b_R = tl.load(R + i_row * K + o_r, mask=m_tk, other=0.0)  # [C, BK]
            b_U = tl.load(U + i_chunk * C * C + o_m)  # [C, C]
            b_o = tl.dot(b_v, b_U, input_precision="tf32x3")
            b_o = tl.dot(b_cast, tl.trans(b_R), b_o, input_precision="tf32x3")  # [BV, C], (4)
            o_o = o + ((i_b * T + i_t) * H + i_h) * V + o_x
            tl.store(o_o, tl.trans(b_o.to(o.dtype.element_ty)), mask=m_tv)
        else:
            tl.store(states + i_chunk * K * V + o_s, b_cast, mask=m_s)
            tl.store(y + i_row * V + (o_c[:, None] * V + o_v), tl.trans(b_y), mask=m_tv)
        b_k = tl.load(left_k + i_row * K + o_r, mask=m_tk, other=0.0)  # [C, BK]
        b_b = tl.load(left_b + i_row * K + o_r, mask=m_tk, other=0.0)  # [C, BK]
        b_all = tl.load(D + i_chunk * K + o_k, mask=m_k, other=0.0)  # [BK]
        b_S = tl.dot(b_v, b_k, b_S * b_all[None, :], input_precision="tf32x3")  # (5)
        b_S = tl.dot(b_y, b_b, b_S, input_precision="tf32x3")  # (5)
        v += C * v_t
        i_chunk += 1
    if end is not None:
        tl.store(end + i_bh * K * V + o_s, b_S, mask=m_s)


@triton.jit
def back(
    W, R, left_k, left_b, D, M, U, do, P, dv, dy, states, first,
    do_b, do_t, do_h, T, H,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Gradients dv and dy, of the state that leaves each chunk, and of the first."""
    i_v, i_b, i_h, _, _, _ = stand(T, H, T, tl.cdiv(V, BV), False)
    i_bh = i_b * H + i_h
    o_c, o_k, o_v = tl.arange(0, C), tl.arange(0, BK), i_v * BV + tl.arange(0, BV)
    m_k, m_v = o_k < K, o_v < V
    last = (tl.cdiv(T, C) - 1) * C  # the first row of the chunk that is walked first
    do += i_b * do_b + i_h * do_h + tl.cast(last, tl.int64) * do_t
    i_chunk = (i_bh + 1) * tl.cdiv(T, C)
    o_m = o_c[:, None] * C + o_c[None, :]
    o_r, o_x = o_c[:, None] * K + o_k, o_c[:, None] * (H * V) + o_v
    o_s, m_s = o_k[None, :] * V + o_v[:, None], m_k[None, :] & m_v[:, None]
    b_P = tl.load(P + i_bh * K * V + o_s, mask=m_s, other=0.0)  # [BV, BK]
    kind: tl.constexpr = W.dtype.element_ty
    for i_t in range(last, -1, -C):
        i_chunk -= 1
        i_row = i_bh * T + i_t
        m = i_t + o_c < T
        m_tk, m_tv = m[:, None] & m_k, m[:, None] & m_v
        b_do = tl.load(do + (o_c[None, :] * do_t + o_v[:, None]), mask=tl.trans(m_tv), other=0.0)
        b_b = tl.load(left_b + i_row * K + o_r, mask=m_tk, other=0.0)  # [C, BK]
        b_k = tl.load(left_k + i_row * K + o_r, mask=m_tk, other=0.0)  # [C, BK]
        b_M = tl.load(M + i_chunk * C * C + o_m)  # [C, C], readers down, writers across
        b_U = tl.load(U + i_chunk * C * C + o_m)
        b_cast = b_P.to(kind)
        tl.store(states + i_chunk * K * V + o_s, b_cast, mask=m_s)
        b_dy = tl.dot(b_cast, tl.trans(b_b), input_precision="tf32x3").to(kind)  # [BV, C]
        b_dv = tl.dot(b_cast, tl.trans(b_k), input_precision="tf32x3")
        b_dv = tl.dot(b_do, b_U, b_dv, input_precision="tf32x3")
        b_dv = tl.dot(b_dy, b_M, b_dv, input_precision="tf32x3")
        o_dv = dv + ((i_b * T + i_t) * H + i_h) * V + o_x
        tl.store(o_dv, tl.trans(b_dv.to(dv.dtype.element_ty)), mask=m_tv)
        tl.store(dy + i_row * V + (o_c[:, None] * V + o_v), tl.trans(b_dy), mask=m_tv)
        b_R = tl.load(R + i_row * K + o_r, mask=m_tk, other=0.0)  # [C, BK]
        b_W = tl.load(W + i_row * K + o_r, mask=m_tk, other=0.0)  # [C, BK]
        b_all = tl.load(D + i_chunk * K + o_k, mask=m_k, other=0.0)  # [BK]
        b_P = tl.dot(b_do, b_R, b_P * b_all[None, :], input_precision="tf32x3")
        b_P = tl.dot(b_dy, b_W, b_P, input_precision="tf32x3")
        do -= C * do_t
    tl.store(first + i_bh * K * V + o_s, b_P, mask=m_s)


# ------------------------------------------------------------------------------------ the wrapper

WIDEST = {16: CHANNELS, 32: 128}  # key channels of a program, by bits
CHUNKS = (
    Config(CHUNK, 32, 4, 1, CHANNELS, 16, ALL, "narrow tiles of K: registers for all that fades"),
    Config(CHUNK, 32, 2, 1, CHANNELS, 16, ALL, "fewer warps do the small products twice"),
    Config(CHUNK, 16, 4, 1, WIDEST[32], 32, ALL, "float32 takes three products for one"),
)
SWEEPS = (
    Config(CHUNK, 32, 4, 2, 64, 16, ALL, "two tiles of a small head: time is long, programs few"),
    Config(CHUNK, 64, 4, 2, 64, 16, ALL, "one tile of a small head: all is read once"),
    Config(CHUNK, 32, 4, 2, 128, 16, ALL, "four tiles: programs enough to fill the chip"),
    Config(CHUNK, 64, 8, 2, 128, 16, ALL, "two tiles, and more warps"),
    Config(CHUNK, 32, 8, 2, 256, 16, ALL, "the widest state"),
    Config(CHUNK, 16, 4, 1, WIDEST[32], 32, ALL, "float32: no wider, it takes twice the registers"),
)


class System(NamedTuple):
    """What chunks do with any state that enters them, see above.

    W, R, left_k (K'), left_b (B') are [B, H, T, K]; D is [B, H, chunks, K], the others [B, H,
    chunks, C, C]. N and E_qb are there for the gradients only.
    """

    W: Tensor
    R: Tensor
    left_k: Tensor
    left_b: Tensor
    D: Tensor
    M: Tensor
    U: Tensor
    N: Tensor | None
    E_qb: Tensor | None


def systems(q, w, k, a, b, *, again=False) -> System:
    """All that does not wait for the state.

    Args:
        q: [B, T, H, K], as for all.
        w: log gates.
        k: written with v.
        a: read before the gate.
        b: written with what a reads.
        again: for the gradients.
    """
    B, T, H, K = k.shape
    chunks = triton.cdiv(T, CHUNK)
    rows = [k.new_empty(B, H, T, K) for _ in range(4)]
    D = k.new_empty(B, H, chunks, K, dtype=torch.float32)
    scores = [k.new_empty(B, H, chunks, CHUNK, CHUNK) for _ in range(2)]
    more = [D.new_empty(scores[0].shape) if again else None for _ in range(2)]
    made = System(*rows, D, *scores, *more)
    numbers = (*strides(q, w, k, a, b), T, H, K)

    def run(config: Config) -> System:
        system[(B * H * chunks,)](q, w, k, a, b, *made, *numbers, **in_chunks(config))
        return made

    return pick(CHUNKS, K, k, (system, K, again), run)


def in_chunks(config):
    """What a kernel for one chunk is launched with."""
    how = {"num_warps": config.warps, "num_stages": config.stages}
    return {"C": config.chunk, "BK": config.tile} | how


def forward(made, v, S, *, again=False):
    """Outputs o [B, T, H, V] and the state at the end; or `again`: y [B, H, T, V] and all states.

    Args:
        made: a System.
        v: [B, T, H, V].
        S: [B, H, K, V].
        again: for the gradients.
    """
    (B, T, H, V), K = v.shape, S.shape[2]
    o = y = states = end = None
    if again:
        y, states = v.new_empty(B, H, T, V), v.new_empty(*made.D.shape, V)
    else:
        o, end = v.new_empty(B, T, H, V), torch.empty_like(S)

    def run(config: Config) -> tuple[Tensor, Tensor]:
        how = config.launch() | {"K": K, "V": V, "BK": padded(K)}
        grid = (B * H * triton.cdiv(V, config.tile),)
        sweep[grid](*made[:7], v, S, o, y, states, end, *strides(v), T, H, **how)
        return (y, states) if again else (o, end)

    return pick(SWEEPS, K, v, (sweep, K, V, again), run)


def backward(made, do, P):
    """The gradients dv [B, T, H, V], dy [B, H, T, V], of all states, and of the first.

    Args:
        made: a System.
        do: [B, T, H, V].
        P: the gradient of the state at the end [B, H, K, V].
    """
    (B, T, H, V), K = do.shape, P.shape[2]
    dv, dy = do.new_empty(B, T, H, V), do.new_empty(B, H, T, V)
    states, first = do.new_empty(*made.D.shape, V), torch.empty_like(P)

    def run(config: Config) -> tuple[Tensor, ...]:
        how = config.launch() | {"K": K, "V": V, "BK": padded(K)}
        grid = (B * H * triton.cdiv(V, config.tile),)
        back[grid](*made[:7], do, P, dv, dy, states, first, *strides(do), T, H, **how)
        return dv, dy, states, first

    return pick(SWEEPS, K, do, (back, K, V), run)


def through(q, w, k, a, b, v, made, y, do, dy, S, P):
    """The gradients dq, dw, dk, da, db [B, T, H, K]; dw in float32.

    Args:
        q: as for `systems`; w, k, a, b too.
        w: log gates.
        k: see q.
        a: see q.
        b: see q.
        v: [B, T, H, V].
        made: a System, for the gradients.
        y: [B, H, T, V].
        do: [B, T, H, V].
        dy: [B, H, T, V].
        S: the states that enter the chunks [B, H, chunks, K, V].
        P: the gradients of those that leave them.
    """
    (B, T, H, K), V = k.shape, v.shape[3]
    dW, dR = torch.empty_like(made.W), torch.empty_like(made.W)
    dE = made.D.new_empty(*made.D.shape[:3], 4, CHUNK, CHUNK)
    found = [k.new_empty(B, T, H, K) for _ in range(5)]
    found[1] = found[1].float()
    chunks = B * H * triton.cdiv(T, CHUNK)

    def run(config: Config) -> list[Tensor]:
        how = in_chunks(config) | {"BV": config.tile}
        given = (v, do, dy, S, made.W, made.M, made.N, made.E_qb, dW, dR, dE)
        system_back[(chunks,)](*given, *strides(v, do), T, H, K, V, **how)
        given = (q, w, k, a, b, v, y, S, P, dW, dR, dE, *found)
        grid = (chunks, triton.cdiv(K, config.tile))
        keys_back[grid](*given, *strides(q, w, k, a, b, v), T, H, K, V, **how)
        return found

    return pick(CHUNKS, K, k, (keys_back, K, V), run)


class RankOne(torch.autograd.Function):
    """Two kernels forward in time; their gradient computes all anew from the inputs."""

    @staticmethod
    def forward(ctx, q, w, k, v, a, b, S):  # noqa: D102
        ctx.save_for_backward(q, w, k, v, a, b, S)
        kind = v.dtype
        q, k, v, a, b = ready(q, k, v, a, b)
        most = WIDEST[8 * k.dtype.itemsize]
        if k.shape[3] > most:
            raise Unsupported(
                f"rank_one: {most} key channels of {k.dtype} fit on chip, got {k.shape[3]}; the "
                "chunked form takes any number"
            )
        o, end = forward(systems(q, *ready(w), k, a, b), v, start(S, k, v))
        return o.to(kind), end

    @staticmethod
    @once_differentiable
    def backward(ctx, do, dS):  # noqa: D102
        given = ctx.saved_tensors
        q, w, k, v, a, b, S = given
        q, k, v, a, b, do = ready(q, k, v, a, b, do)
        (w,) = ready(w)
        made = systems(q, w, k, a, b, again=True)
        y, states = forward(made, v, start(S, k, v), again=True)
        dv, dy, P, dS_0 = backward(made, do, dS.contiguous())
        dq, dw, dk, da, db = through(q, w, k, a, b, v, made, y, do, dy, states, P)
        found = zip((dq, dw, dk, dv, da, db, dS_0), given, ctx.needs_input_grad, strict=True)
        return tuple(x.to(y.dtype) if wanted else None for x, y, wanted in found)


@torch.compiler.disable
def chunked(
    q: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    S: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence rank_one, forward and backward, on a GPU or in Triton's interpreter.

    Args:
        q: [B, T, H, K], K at most 256, in float32 128; not scaled. Any strides, as for all inputs;
            channels that do not lie side by side are copied.
        w: log gates <= 0 [B, T, H, K].
        k: [B, T, H, K].
        v: [B, T, H, V], V at most 256.
        a: [B, T, H, K]: reads the state before its gate.
        b: [B, T, H, K]: where that is added.
        S: [B, H, K, V], None for zeros.

    Returns:
        o [B, T, H, V] in the type of v, and the state [B, H, K, V] in float32. Sums are float32;
        products of float32 are taken as three of TF32.

    Raises:
        Unsupported: float64, more channels than that, a device without kernels.
    """
    check("rank_one", k.shape[3], v.shape[3], q=q, w=w, k=k, v=v, a=a, b=b)
    if not v.shape[0] * v.shape[1]:  # no tokens
        return v.clone(), start(S, k, v)
    with torch.cuda.device_of(v):
        return RankOne.apply(q, w, k, v, a, b, S)
