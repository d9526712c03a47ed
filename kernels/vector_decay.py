r"""The recurrence vector_decay on a GPU: GLA, RWKV-5, RWKV-6.

    one program: one head, a tile of channels, all tokens; chunks of C tokens in N blocks

        readers i ->                       inside a block the kernel walks back over the writers j:
      +---+---+---+---+                    at each step the gate of one token multiplies what its
      | 0 | 1 | 2 | 2 |  writers j         later readers have left of the past (0)
      +---+---+---+---+     |
      |   | 0 | 2 | 2 |     v              across blocks, pairs of neighbours merge, then pairs of
      +---+---+---+---+                    pairs (1, 2): readers on the right have faded since
      |   |   | 0 | 1 |                    their block began, writers on the left until their block
      +---+---+---+---+                    ended, so their scores are one matrix product. Then what
      |   |   |   | 0 |                    the whole of the other half leaves joins the factors
      +---+---+---+---+

Every factor is a product of gates, so it is never above 1: nothing overflows, nothing cancels. At
the end the readers (b_q; in `gated_values` b_fade, apart) carry what the gates since the chunk
began leave, the writers what the gates until its end leave, and b_left is what the whole chunk
leaves.

On chip: the state, transposed, S^T in float32. Read once a chunk: q, k, g [C, K], v [C, V] (rows of
k and g a second time, from cache). Written once: o. The numbers in the comments are the equations
of linviz/recurrences/vector_decay.py.

Two kernels serve output and gradients. In `gated_scores` the gates stand inside the sum over the
channels of a score, as in (3); in `gated_values` they stand on the channels of what is added up:

    o_i  = sum_j (q_i . k_j faded over (j, i]) v_j       gated_scores(q, k, v)    forward in time
    dq_i = sum_j (do_i . v_j) k_j faded over (j, i]      gated_values(do, v, k)   forward
    dk_j = sum_i (do_i . v_j) q_i faded over (j, i]      gated_values(v, do, q)   backward
    dv_j = sum_i (q_i . k_j faded over (j, i]) do_i      gated_scores(k, q, do)   backward

The gradient of a gate is, channel by channel, what scalar_decay.py says: the sum of x - y from its
time m to some later time e, and S_e . dS_e, with x_i = q_i dq_i and y_j = k_j dk_j. The sweep for
dq stores x, and S every KEEP tokens; the sweep for dk, which comes from the end, adds up, anew from
every S that was kept. With a bonus u, (5), a token is read before its gate: x counts from m + 1.

Which gates lie between reader i and writer j, and so AFTER and OWN: forward those in (j, i], the
reader's own among them; backward in time those in [j, i), the writer's own; with a bonus those in
(j, i), neither.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from linviz.kernels.launch import (
    ALL,
    ENDS,
    KEEP,
    LOG2E,
    Config,
    add,
    check,
    fitting,
    joined,
    kept,
    padded,
    pick,
    pieces,
    ready,
    segment_length,
    stand,
    start,
    strides,
    walk,
)


@triton.jit
def pass_gate(b_fade, b_left, b_a, later):
    """One gate [N, K] multiplies what readers have left, where `later`, and what blocks leave."""
    return tl.where(later, b_fade * b_a[:, None, :], b_fade), b_left * b_a


@triton.jit
def merge(b_fade, b_write, b_left, HALF: tl.constexpr):
    """Neighbours of HALF blocks become one: what the other half leaves joins the factors.

    Readers on the right fade through all of the left half, writers on the left through the right.
    """
    N: tl.constexpr = b_left.shape[0]
    K: tl.constexpr = b_left.shape[1]
    pairs = tl.permute(tl.reshape(b_left, [N // (2 * HALF), 2, HALF, K]), [0, 2, 3, 1])
    left, right = tl.split(pairs)
    b_other = tl.reshape(tl.permute(tl.join(right, left), [0, 3, 1, 2]), [N, K])
    on_right = (tl.arange(0, N) // HALF % 2 == 1)[:, None]
    b_fade *= tl.where(on_right, b_other, 1.0)[:, None, :]
    b_write *= tl.where(on_right, 1.0, b_other)[:, None, :]
    return b_fade, b_write, b_left * b_other


@triton.jit
def ends(
    k, v, g, S, total,
    k_b, k_t, k_h, v_b, v_t, v_h, g_b, g_t, g_h, T, H, L,
    K: tl.constexpr, V: tl.constexpr, REVERSE: tl.constexpr, BONUS: tl.constexpr,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """What a segment leaves behind from an empty state, (4), and how much of an old one."""
    i_v, i_b, i_h, i_segment, row, n = stand(T, H, L, tl.cdiv(V, BV), REVERSE)
    o_c, o_k, o_v = tl.arange(0, C), tl.arange(0, BK), i_v * BV + tl.arange(0, BV)
    m_k, m_v = o_k < K, o_v < V
    k += i_b * k_b + i_h * k_h + row * k_t
    v += i_b * v_b + i_h * v_h + row * v_t
    g += i_b * g_b + i_h * g_h + row * g_t
    b_S = tl.zeros([BV, BK], tl.float32)
    b_total = tl.zeros([BK], tl.float32)
    for i_t in range(0, n, C):
        r, m = walk(i_t + o_c, n, C, REVERSE)
        m_tk = m[:, None] & m_k
        b_k = tl.load(k + (r[:, None] * k_t + o_k), mask=m_tk, other=0.0)  # [C, BK]
        b_v = tl.load(v + (r[:, None] * v_t + o_v), mask=m[:, None] & m_v, other=0.0)  # [C, BV]
        b_g = tl.load(g + (r[:, None] * g_t + o_k), mask=m_tk, other=0.0).to(tl.float32) * LOG2E
        b_all = tl.sum(b_g, 0)
        if BONUS or not REVERSE:  # a writer fades from the token after it
            r, m = walk(i_t + o_c + 1, n, C, REVERSE)
            m_tk = (m & (o_c + 1 < C))[:, None] & m_k
            b_g = tl.load(g + (r[:, None] * g_t + o_k), mask=m_tk, other=0.0).to(tl.float32) * LOG2E
        b_k = (b_k * tl.exp2(tl.cumsum(b_g, 0, reverse=True))).to(b_v.dtype)
        b_S = tl.dot(tl.trans(b_v), b_k, b_S * tl.exp2(b_all), input_precision="tf32x3")  # (4)
        b_total += b_all
    i_state = (i_b * H + i_h) * tl.cdiv(T, L) + i_segment
    o_s = o_k[None, :] * V + o_v[:, None]
    tl.store(S + i_state * K * V + o_s, b_S, mask=m_k[None, :] & m_v[:, None])
    if i_v == 0:
        tl.store(total + i_state * K + o_k, tl.exp2(b_total), mask=m_k)


@triton.jit
def gated_scores(
    q, k, v, g, u, S, o, end,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, g_b, g_t, g_h, T, H, L,
    K: tl.constexpr, V: tl.constexpr, REVERSE: tl.constexpr, BONUS: tl.constexpr,
    C: tl.constexpr, BC: tl.constexpr, UNROLL: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Outputs o [.., V], and the state at the end, if wanted; blocks of BC tokens."""
    N: tl.constexpr = C // BC
    AFTER: tl.constexpr = REVERSE and not BONUS  # the writer's own gate fades what it writes
    OWN: tl.constexpr = 0 if REVERSE or BONUS else 1  # the reader's own gate fades what it reads
    i_v, i_b, i_h, i_segment, row, n = stand(T, H, L, tl.cdiv(V, BV), REVERSE)
    o_c, o_k, o_v = tl.arange(0, C), tl.arange(0, BK), i_v * BV + tl.arange(0, BV)
    o_n, o_i = tl.arange(0, N), tl.arange(0, BC)[None, :, None]
    m_k, m_v = o_k < K, o_v < V
    q += i_b * q_b + i_h * q_h + row * q_t
    k += i_b * k_b + i_h * k_h + row * k_t
    v += i_b * v_b + i_h * v_h + row * v_t
    g += i_b * g_b + i_h * g_h + row * g_t
    o += ((i_b * T + row) * H + i_h) * V
    b_u = tl.full([BK], 1.0, tl.float32)
    if BONUS:
        b_u = tl.load(u + i_h * K + o_k, mask=m_k, other=0.0).to(tl.float32)
    i_state = (i_b * H + i_h) * tl.cdiv(T, L) + i_segment
    o_s, m_s = o_k[None, :] * V + o_v[:, None], m_k[None, :] & m_v[:, None]
    b_S = tl.load(S + i_state * K * V + o_s, mask=m_s, other=0.0)  # [BV, BK]
    for i_t in range(0, n, C):
        r, m = walk(i_t + o_c, n, C, REVERSE)
        m_tk, m_tv = m[:, None] & m_k, m[:, None] & m_v
        b_q = tl.load(q + (r[:, None] * q_t + o_k), mask=m_tk, other=0.0).to(tl.float32)  # [C, BK]
        b_k = tl.load(k + (r[:, None] * k_t + o_k), mask=m_tk, other=0.0).to(tl.float32)  # [C, BK]
        b_v = tl.load(v + (r[:, None] * v_t + o_v), mask=m_tv, other=0.0)  # [C, BV]
        b_own = tl.sum(b_q * b_u * b_k, 1)  # [C], the score of a token with itself, (5) with u
        b_q, b_k = tl.reshape(b_q, [N, BC, BK]), tl.reshape(b_k, [N, BC, BK])
        b_A = tl.zeros([C, C], tl.float32)  # writers down, readers across
        b_left = tl.full([N, BK], 1.0, tl.float32)  # what the gates after writer j leave
        for back in tl.range(0, BC, loop_unroll_factor=UNROLL):
            j = BC - 1 - back
            r_j, m_j = walk(i_t + o_n * BC + j, n, C, REVERSE)
            m_j = m_j[:, None] & m_k
            b_a = tl.load(g + (r_j[:, None] * g_t + o_k), mask=m_j, other=0.0).to(tl.float32)
            b_a = tl.exp2(b_a * LOG2E)  # [N, BK]
            if AFTER:
                b_q, b_left = pass_gate(b_q, b_left, b_a, o_i > j)
            b_j = tl.load(k + (r_j[:, None] * k_t + o_k), mask=m_j, other=0.0).to(tl.float32)
            b_s = tl.reshape(tl.sum(b_q * b_j[:, None, :], 2), [C])  # (3) inside a block
            b_A = tl.where(o_c[:, None] == (o_c // BC * BC + j)[None, :], b_s[None, :], b_A)
            b_k = tl.where(o_i == j, b_k * b_left[:, None, :], b_k)
            if not AFTER:
                b_q, b_left = pass_gate(b_q, b_left, b_a, o_i > j - OWN)
        b_A = tl.where(o_c[None, :] > o_c[:, None], b_A, 0.0)
        for level in tl.static_range(N.bit_length() - 1):
            b_write = tl.reshape(b_k, [C, BK]).to(b_v.dtype)
            b_read = tl.reshape(b_q, [C, BK]).to(b_v.dtype)
            b_s = tl.dot(b_write, tl.trans(b_read), input_precision="tf32x3")  # (3) across blocks
            o_h = o_c // (BC << level)
            b_A += tl.where((o_h[None, :] == o_h[:, None] + 1) & (o_h[None, :] % 2 == 1), b_s, 0.0)
            b_q, b_k, b_left = merge(b_q, b_k, b_left, 1 << level)
        b_write = tl.reshape(b_k, [C, BK]).to(b_v.dtype)
        b_read = tl.reshape(b_q, [C, BK]).to(b_v.dtype)
        b_all = tl.sum(tl.where(o_n[:, None] == 0, b_left, 0.0), 0)  # [BK], the same in all blocks
        b_o = tl.dot(b_S.to(b_v.dtype), tl.trans(b_read), input_precision="tf32x3")  # (3), old part
        b_o = tl.dot(tl.trans(b_v), b_A.to(b_v.dtype), b_o, input_precision="tf32x3")  # (3), A V
        b_S = tl.dot(tl.trans(b_v), b_write, b_S * b_all, input_precision="tf32x3")  # (4)
        b_o = tl.trans(b_o) + b_own[:, None] * b_v
        tl.store(o + (r[:, None] * (H * V) + o_v), b_o.to(o.dtype.element_ty), mask=m_tv)
    if end is not None:
        if i_segment == tl.cdiv(T, L) - 1:
            tl.store(end + (i_b * H + i_h) * K * V + o_s, b_S, mask=m_s)


@triton.jit
def gated_values(
    q, k, v, g, u, w, S, o, x, keep, dg, du,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, g_b, g_t, g_h, w_b, w_t, w_h, T, H, L,
    K: tl.constexpr, V: tl.constexpr, REVERSE: tl.constexpr, BONUS: tl.constexpr,
    C: tl.constexpr, BC: tl.constexpr, UNROLL: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    KEEP: tl.constexpr,
):  # fmt: skip
    """Outputs o [.., V] with gates on V; here q and k have the K channels that are not gated."""
    N: tl.constexpr = C // BC
    AFTER: tl.constexpr = REVERSE and not BONUS
    OWN: tl.constexpr = 0 if REVERSE or BONUS else 1
    i_v, i_b, i_h, i_segment, row, n = stand(T, H, L, tl.cdiv(V, BV), REVERSE)
    o_c, o_k, o_v = tl.arange(0, C), tl.arange(0, BK), i_v * BV + tl.arange(0, BV)
    o_n, o_i = tl.arange(0, N), tl.arange(0, BC)[None, :, None]
    m_k, m_v = o_k < K, o_v < V
    q += i_b * q_b + i_h * q_h + row * q_t
    k += i_b * k_b + i_h * k_h + row * k_t
    v += i_b * v_b + i_h * v_h + row * v_t
    g += i_b * g_b + i_h * g_h + row * g_t
    i_row = (i_b * T + row) * H + i_h
    o += i_row * V
    b_u = tl.full([BV], 1.0, tl.float32)
    if BONUS:
        b_u = tl.load(u + i_h * V + o_v, mask=m_v, other=0.0).to(tl.float32)
    i_state = (i_b * H + i_h) * tl.cdiv(T, L) + i_segment
    o_s, m_s = o_v[None, :] * K + o_k[:, None], m_v[None, :] & m_k[:, None]
    b_S = tl.load(S + i_state * K * V + o_s, mask=m_s, other=0.0)  # [BK, BV]
    if w is not None:
        w += i_b * w_b + i_h * w_h + row * w_t
        x += i_row * V
        keep += ((i_b * H + i_h) * (tl.cdiv(T, KEEP) + 1) + row // KEEP) * K * V
        if REVERSE:
            dg += i_row * V
            b_sum = tl.zeros([BV], tl.float32)
            b_du = tl.zeros([BV], tl.float32)
    for i_t in range(0, n, C):
        if w is not None:
            if REVERSE:
                i_keep = tl.cdiv(n, C) * C - i_t  # the chunk ends before this row
                if (i_t == 0) | (i_keep % KEEP == 0):
                    o_keep = tl.cdiv(i_keep, KEEP) * K * V
                    b_kept = tl.load(keep + o_keep + o_s, mask=m_s, other=0.0)
                    b_sum = tl.sum(b_S * b_kept, 0)
            elif i_t % KEEP == 0:
                tl.store(keep + i_t // KEEP * K * V + o_s, b_S, mask=m_s)
        r, m = walk(i_t + o_c, n, C, REVERSE)
        m_tk, m_tv = m[:, None] & m_k, m[:, None] & m_v
        b_q = tl.load(q + (r[:, None] * q_t + o_k), mask=m_tk, other=0.0)  # [C, BK]
        b_k = tl.load(k + (r[:, None] * k_t + o_k), mask=m_tk, other=0.0)  # [C, BK]
        b_v = tl.load(v + (r[:, None] * v_t + o_v), mask=m_tv, other=0.0)  # [C, BV]
        b_own = tl.sum(b_q.to(tl.float32) * b_k, 1)[:, None] * b_v  # [C, BV], of a token by itself
        b_A = tl.dot(b_q, tl.trans(b_k), input_precision="tf32x3")  # readers down, writers across
        b_old = tl.dot(b_q, b_S.to(b_q.dtype), input_precision="tf32x3")  # [C, BV]
        b_write = tl.reshape(b_v.to(tl.float32), [N, BC, BV])
        b_o = tl.zeros([N, BC, BV], tl.float32)
        b_fade = tl.full([N, BC, BV], 1.0, tl.float32)
        b_left = tl.full([N, BV], 1.0, tl.float32)
        for back in tl.range(0, BC, loop_unroll_factor=UNROLL):
            j = BC - 1 - back
            r_j, m_j = walk(i_t + o_n * BC + j, n, C, REVERSE)
            m_j = m_j[:, None] & m_v
            b_a = tl.load(g + (r_j[:, None] * g_t + o_v), mask=m_j, other=0.0).to(tl.float32)
            b_a = tl.exp2(b_a * LOG2E)  # [N, BV]
            if AFTER:
                b_fade, b_left = pass_gate(b_fade, b_left, b_a, o_i > j)
            b_j = tl.load(v + (r_j[:, None] * v_t + o_v), mask=m_j, other=0.0).to(tl.float32)
            in_j = o_c[None, :] == (o_c // BC * BC + j)[:, None]  # each reader's writer j
            b_s = tl.reshape(tl.sum(tl.where(in_j, b_A, 0.0), 1), [N, BC])[:, :, None]
            b_o += tl.where(o_i > j, b_s * b_fade * b_j[:, None, :], 0.0)
            b_write = tl.where(o_i == j, b_write * b_left[:, None, :], b_write)
            if not AFTER:
                b_fade, b_left = pass_gate(b_fade, b_left, b_a, o_i > j - OWN)
        for level in tl.static_range(N.bit_length() - 1):
            o_h = o_c // (BC << level)
            b_s = tl.where((o_h[:, None] == o_h[None, :] + 1) & (o_h[:, None] % 2 == 1), b_A, 0.0)
            b_cast = tl.reshape(b_write, [C, BV]).to(b_v.dtype)
            b_s = tl.dot(b_s.to(b_v.dtype), b_cast, input_precision="tf32x3")
            b_o += b_fade * tl.reshape(b_s, [N, BC, BV])
            b_fade, b_write, b_left = merge(b_fade, b_write, b_left, 1 << level)
        b_all = tl.sum(tl.where(o_n[:, None] == 0, b_left, 0.0), 0)  # [BV]
        b_cast = tl.reshape(b_write, [C, BV]).to(b_v.dtype)
        b_S = tl.dot(tl.trans(b_k), b_cast, b_S * b_all, input_precision="tf32x3")  # (4)
        b_o = tl.reshape(b_o, [C, BV]) + b_old * tl.reshape(b_fade, [C, BV])
        if w is not None:
            b_y = tl.load(w + (r[:, None] * w_t + o_v), mask=m_tv, other=0.0).to(tl.float32)
            if REVERSE:
                r_x, m_x = r, m_tv
                if BONUS:  # x counts from the next token on, as far as the next state that is kept
                    r_x, m_x = r + 1, m_tv & ((r + 1 < n) & ((r + 1) % KEEP != 0))[:, None]
                b_z = tl.load(x + (r_x[:, None] * (H * V) + o_v), mask=m_x, other=0.0) - b_y * b_o
                b_z = tl.where(m_tv, b_z, 0.0)
                tl.store(dg + (r[:, None] * (H * V) + o_v), b_sum + tl.cumsum(b_z, 0), mask=m_tv)
                b_sum += tl.sum(b_z, 0)
                b_du += tl.sum(b_own * b_y, 0)
            else:
                tl.store(x + (r[:, None] * (H * V) + o_v), b_y * b_o, mask=m_tv)
        b_o += b_own * b_u
        tl.store(o + (r[:, None] * (H * V) + o_v), b_o.to(o.dtype.element_ty), mask=m_tv)
    if du is not None:
        tl.store(du + i_state * V + o_v, b_du, mask=m_v)


# ------------------------------------------------------------------------------------ the wrapper

SCORES = (
    Config(16, 64, 4, 2, 64, 16, ALL, "a small head; loads run ahead of the steps", 4, 4),
    Config(16, 128, 8, 2, 128, 16, (90,), "a whole head: all is read once, ahead of use", 2, 2),
    Config(16, 128, 8, 2, 128, 16, (100,), "the same with fewer merges: registers allow it", 4, 4),
    Config(16, 64, 4, 2, 128, 16, ALL, "two tiles; longer blocks save the products of a merge", 8),
    Config(16, 32, 8, 2, 256, 16, ALL, "the widest state", 8),
    Config(16, 16, 4, 2, 64, 32, ALL, "float32 takes three products for one", 8),
)
VALUES = (
    Config(16, 32, 4, 2, 64, 16, (90, 100), "two tiles of a small head; loads run ahead", 4, 4),
    Config(16, 64, 4, 2, 64, 16, (90, 100), "one tile of a small head", 8),
    Config(16, 32, 4, 2, 64, 16, (80,), "two tiles, with fewer steps written out", 8),
    Config(16, 128, 8, 2, 128, 16, (90,), "a whole head: all is read once", 8),
    Config(16, 64, 8, 2, 128, 16, (90, 100), "two tiles: half the state each", 8),
    Config(16, 32, 8, 2, 128, 16, ALL, "four tiles: four times the programs", 8),
    Config(16, 32, 8, 2, 256, 16, ALL, "the widest state", 8),
    Config(16, 16, 4, 2, 64, 32, ALL, "float32 takes three products for one", 8),
)


def scores(q, k, v, g, u, starts, L, *, reverse=False, wants_end=False, config=None):
    """Outputs [B, T, H, V] of `gated_scores`, and the state at the end or None.

    Args:
        q: [B, T, H, K].
        k: [B, T, H, K].
        v: [B, T, H, V].
        g: [B, T, H, K].
        u: [H, K], or None.
        starts: the states that enter the segments [B, H, N, K, V].
        L: tokens a segment.
        reverse: walk backward in time.
        wants_end: whether the state at the end is wanted.
        config: one of SCORES; None chooses.
    """
    (B, T, H, K), V = k.shape, v.shape[3]
    if config is None:
        again = {"reverse": reverse, "wants_end": wants_end}
        key = (gated_scores, K, V, u is None, reverse)
        return pick(
            SCORES, K, q, key, lambda c: scores(q, k, v, g, u, starts, L, config=c, **again)
        )
    o, end = v.new_empty(B, T, H, V), starts.new_empty(B, H, K, V) if wants_end else None
    grid = (starts.shape[2] * B * H * triton.cdiv(V, config.tile),)
    numbers = (*strides(q, k, v, g), T, H, L)
    gated_scores[grid](
        q, k, v, g, u, starts, o, end, *numbers,
        BC=config.block, UNROLL=config.unroll, **fixed(K, V, u, reverse, config),
    )  # fmt: skip
    return o, end


def values(q, k, v, g, u, starts, L, *, reverse=False, w=None, x=None, keep=None, config=None):
    """Outputs [B, T, H, V] of `gated_values`; with w also x and keep, or back from them dg and du.

    Args:
        q: [B, T, H, K], K the channels without gates.
        k: [B, T, H, K].
        v: [B, T, H, V], V the channels with gates.
        g: [B, T, H, V].
        u: [H, V], or None.
        starts: the states that enter the segments [B, H, N, V, K].
        L: tokens a segment.
        reverse: walk backward in time.
        w: [B, T, H, V], or None.
        x: [B, T, H, V], from the sweep forward in time.
        keep: the states [B, H, n, V, K] that it kept, and the one at the end.
        config: one of VALUES; None chooses.
    """
    (B, T, H, K), V = k.shape, v.shape[3]
    if config is None:
        again = {"reverse": reverse, "w": w, "x": x, "keep": keep}
        key = (gated_values, K, V, u is None, reverse, w is None)
        return pick(
            VALUES, K, q, key, lambda c: values(q, k, v, g, u, starts, L, config=c, **again)
        )
    o, dg, du = v.new_empty(B, T, H, V), None, None
    if w is not None and not reverse:
        x, keep = starts.new_empty(B, T, H, V), kept(v, k)
    if w is not None and reverse:
        dg, du = torch.empty_like(x), starts.new_empty(B, H, starts.shape[2], V)
    grid = (starts.shape[2] * B * H * triton.cdiv(V, config.tile),)
    numbers = (*strides(q, k, v, g, w), T, H, L)
    gated_values[grid](
        q, k, v, g, u, w, starts, o, x, keep, dg, du, *numbers,
        KEEP=KEEP, **fixed(K, V, u, reverse, config), BC=config.block, UNROLL=config.unroll,
    )  # fmt: skip
    return (o, dg, du) if reverse else (o, x, keep)


def fixed(K, V, u, reverse, config):
    """What a kernel is compiled for."""
    what = {"K": K, "V": V, "REVERSE": reverse, "BONUS": u is not None, "BK": padded(K)}
    return what | config.launch()


def entering(k, v, g, S, u, L, reverse=False):
    """The states that enter the segments [B, H, N, K, V]; S enters the first."""
    (B, T, H, K), V = k.shape, v.shape[3]
    N = triton.cdiv(T, L)
    S = start(S, k, v)
    if N == 1:
        return S[:, :, None]
    left, total = S.new_empty(B, H, N, K, V), S.new_empty(B, H, N, K)
    grid = (N * B * H * triton.cdiv(V, ENDS.tile),)
    ends[grid](k, v, g, left, total, *strides(k, v, g), T, H, L, **fixed(K, V, u, reverse, ENDS))
    return joined(S, left, total)


def all_scores(q, k, v, g, u, starts, L, **how):
    """`scores` over all key channels."""
    parts = [
        scores(
            q[..., c], k[..., c], v, g[..., c], None if u is None else u[:, c].contiguous(),
            starts[..., c, :].contiguous(), L, **how,
        )
        for c in pieces(k)
    ]  # fmt: skip
    o, end = zip(*parts, strict=True)
    return add(o), torch.cat(end, 2) if how["wants_end"] else None


class VectorDecay(torch.autograd.Function):
    """Gated scores forward in time, and the three sweeps that are their gradient."""

    @staticmethod
    def forward(ctx, q, k, v, g, u, S, segments):  # noqa: D102
        given = (q, k, v, g, u, S)
        q, k, v = ready(q, k, v)
        B, T, H, V = v.shape
        likely = fitting(SCORES, min(k.shape[3], pieces(k)[0].stop), k)[0]
        ctx.L = segment_length(T, B * H * triton.cdiv(V, likely.tile), (q, k, v, g), segments)
        starts = entering(k, v, g, S, u, ctx.L)
        o, end = all_scores(q, k, v, g, u, starts, ctx.L, wants_end=True)
        ctx.save_for_backward(*given, end)
        return o.to(given[2].dtype), end

    @staticmethod
    @once_differentiable
    def backward(ctx, do, dS):  # noqa: D102
        *given, end = ctx.saved_tensors
        g, u, S = given[3:]
        q, k, v, do = ready(*given[:3], do.contiguous())
        starts = entering(k, v, g, S, u, ctx.L)
        later = entering(q, do, g, dS, u, ctx.L, reverse=True)
        dv, dS_0 = all_scores(k, q, do, g, u, later, ctx.L, reverse=True, wants_end=True)
        gates = ctx.needs_input_grad[3] or ctx.needs_input_grad[4]
        wq, wk = (q, k) if gates else (None, None)
        parts = []
        for c in pieces(v):
            vs, dos = v[..., c], do[..., c]
            before, after = starts[..., c].contiguous(), later[..., c].contiguous()
            dq, x, keep = values(dos, vs, k, g, u, before, ctx.L, w=wq)
            if gates:
                keep[:, :, -1] = end[..., c]
            back = values(vs, dos, q, g, u, after, ctx.L, w=wk, x=x, keep=keep, reverse=True)
            parts.append((dq, *back))
        dq, dk, dg, du = map(add, zip(*parts, strict=True))
        gradients = [dq, dk, dv, dg, None if u is None or du is None else du.sum((0, 2)), dS_0]
        for n, x in enumerate(given):
            wanted = ctx.needs_input_grad[n]
            gradients[n] = gradients[n].to(x.dtype) if wanted else None
        return *gradients, None


@torch.compiler.disable
def chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    S: Tensor | None = None,
    *,
    u: Tensor | None = None,
    segments: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence vector_decay, forward and backward, on a GPU or in Triton's interpreter.

    Args:
        q: [B, T, H, K], K at most 256; not scaled. Any strides, as for k, v and g; channels that
            do not lie side by side are copied.
        k: [B, T, H, K].
        v: [B, T, H, V], V at most 256.
        g: log gates <= 0 [B, T, H, K].
        S: [B, H, K, V], None for zeros.
        u: the bonus [H, K]: a token is read before its gate and its writing, and weighs u itself.
        segments: how many pieces the sequence is cut into; None chooses.

    Returns:
        o [B, T, H, V] in the type of v, and the state [B, H, K, V] in float32. Sums are float32;
        products of float32 are taken as three of TF32.

    Raises:
        Unsupported: float64, more than 256 channels, a device without kernels.
    """
    check("vector_decay", k.shape[3], v.shape[3], q=q, k=k, v=v, g=g, u=u)
    if not v.shape[0] * v.shape[1]:  # no tokens
        return v.clone(), start(S, k, v)
    u = u if u is None else u.contiguous()
    with torch.cuda.device_of(v):
        return VectorDecay.apply(q, k, v, *ready(g), u, S, segments)
