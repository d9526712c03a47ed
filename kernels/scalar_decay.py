r"""The recurrence scalar_decay on a GPU: linear attention, RetNet, Mamba-2.

    one program: one head, a tile of BV value channels, all K key channels, all tokens

              K                 C
          +--------+        +--------+                      on chip: the state, transposed,
       BV |  S^T   |  x   K |  q^T   |  old part of o^T     S^T [BV, K] in float32
          +--------+        +--------+                      read once a chunk: q, k [C, K],
              C                 C                           v [C, BV], the gates [C]
          +--------+        +--------+                      written once a chunk: o [C, BV]
       BV |  v^T   |  x   C |  A^T   |  new part of o^T
          +--------+        +--------+                      A^T: writers down, readers across

The numbers in the comments are the equations of linviz/recurrences/scalar_decay.py. The loop
computes (3) and (4) chunk by chunk; S_0 there is the state that enters the chunk, here b_S.

The gradients are the same recurrence with its letters exchanged, so one kernel serves all four:

    o  = sweep(q, k, v)     from S_0        forward in time
    dq = sweep(do, v, k)    from S_0^T      forward
    dk = sweep(v, do, q)    from dS_T^T     backward
    dv = sweep(k, q, do)    from dS_T       backward, and it ends with dS_0

The gradient of the gate of time m adds up all pairs of a writer before m and a reader from m on.
Let x_i = q_i . dq_i and y_j = k_j . dk_j, both without the pair of a token with itself, and e some
later time. The sum of x - y from m to e adds the pairs that are read by e, and subtracts those
written from m on and read after e; S_e . dS_e adds these again, and those written before m. The
sweep for dq stores S every KEEP tokens, and the one for dk its own state, which is dS: one sum over
the whole sequence would lose in rounding what it gains in cancelling.
"""

import torch
import torch.nn.functional as F
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

NONE: tl.constexpr = tl.constexpr(0)  # the kinds of gate: none,
FIXED: tl.constexpr = tl.constexpr(1)  # one a head,
DATA: tl.constexpr = tl.constexpr(2)  # one a head and token


@triton.jit
def fade(g, g_t, b_fixed, r, m, DECAY: tl.constexpr, REVERSE: tl.constexpr):
    """What the gates of a chunk leave, as exponents of 2 that are sums over their own interval.

    One running sum would lose the digits of small gates beside a large one. So it is two: whole
    parts (N) add up exactly, and fractions (F) stay small.
    """
    b_g = b_fixed
    if DECAY == DATA:
        b_g = tl.load(g + r * g_t, mask=m, other=0.0).to(tl.float32) * LOG2E  # [C]
    b_g = tl.maximum(tl.where(m, b_g, 0.0), -32768.0, propagate_nan=tl.PropagateNan.ALL)
    b_whole = tl.floor(b_g + 0.5)
    b_rest = b_g - b_whole
    b_N, b_F = tl.cumsum(b_whole, 0), tl.cumsum(b_rest, 0)  # up to and with each token
    n_N, n_F = tl.sum(b_whole, 0), tl.sum(b_rest, 0)
    b_out = (n_N - b_N) + (n_F - b_F)  # from after each writer to the end of the chunk
    if REVERSE:  # backward, the gate of a token comes after its reading and its writing
        b_out += b_g
        b_N -= b_whole
        b_F -= b_rest
    return b_N, b_F, b_out, n_N + n_F


@triton.jit
def ends(
    k, v, g, S, total,
    k_b, k_t, k_h, v_b, v_t, v_h, g_b, g_t, g_h, T, H, L,
    K: tl.constexpr, V: tl.constexpr, DECAY: tl.constexpr, REVERSE: tl.constexpr,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """What a segment leaves behind from an empty state, (4), and how much of an old one."""
    i_v, i_b, i_h, i_segment, row, n = stand(T, H, L, tl.cdiv(V, BV), REVERSE)
    o_c, o_k, o_v = tl.arange(0, C), tl.arange(0, BK), i_v * BV + tl.arange(0, BV)
    m_k, m_v = o_k < K, o_v < V
    k += i_b * k_b + i_h * k_h + row * k_t
    v += i_b * v_b + i_h * v_h + row * v_t
    b_fixed = 0.0
    if DECAY != NONE:
        g += i_b * g_b + i_h * g_h + row * g_t
    if DECAY == FIXED:
        b_fixed = tl.load(g).to(tl.float32) * LOG2E
    b_S = tl.zeros([BV, BK], tl.float32)
    b_total = 0.0
    for i_t in range(0, n, C):
        r, m = walk(i_t + o_c, n, C, REVERSE)
        b_k = tl.load(k + (r[:, None] * k_t + o_k), mask=m[:, None] & m_k, other=0.0)  # [C, BK]
        b_v = tl.load(v + (r[:, None] * v_t + o_v), mask=m[:, None] & m_v, other=0.0)  # [C, BV]
        if DECAY != NONE:
            _, _, b_out, b_all = fade(g, g_t, b_fixed, r, m, DECAY, REVERSE)
            b_k = (b_k * tl.exp2(b_out)[:, None]).to(b_v.dtype)
            b_S *= tl.exp2(b_all)
            b_total += b_all
        b_S = tl.dot(tl.trans(b_v), b_k, b_S, input_precision="tf32x3")  # (4)
    i_state = (i_b * H + i_h) * tl.cdiv(T, L) + i_segment
    o_s = o_k[None, :] * V + o_v[:, None]
    tl.store(S + i_state * K * V + o_s, b_S, mask=m_k[None, :] & m_v[:, None])
    if i_v == 0:
        tl.store(total + i_state, tl.exp2(b_total))


@triton.jit
def sweep(
    q, k, v, g, w, S, o, end, x, keep,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, g_b, g_t, g_h, w_b, w_t, w_h, T, H, L, BTH,
    K: tl.constexpr, V: tl.constexpr, DECAY: tl.constexpr, REVERSE: tl.constexpr,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """Outputs o; the state at the end, if wanted; with w also x and states to keep (see above)."""
    i_v, i_b, i_h, i_segment, row, n = stand(T, H, L, tl.cdiv(V, BV), REVERSE)
    o_c, o_k, o_v = tl.arange(0, C), tl.arange(0, BK), i_v * BV + tl.arange(0, BV)
    m_k, m_v = o_k < K, o_v < V
    later = o_c[None, :] > o_c[:, None]  # [writer, reader]
    q += i_b * q_b + i_h * q_h + row * q_t
    k += i_b * k_b + i_h * k_h + row * k_t
    v += i_b * v_b + i_h * v_h + row * v_t
    o += ((i_b * T + row) * H + i_h) * V
    b_fixed = 0.0
    if DECAY != NONE:
        g += i_b * g_b + i_h * g_h + row * g_t
    if DECAY == FIXED:
        b_fixed = tl.load(g).to(tl.float32) * LOG2E
    if w is not None:
        w += i_b * w_b + i_h * w_h + row * w_t
        x += i_v.to(tl.int64) * BTH + (i_b * T + row) * H + i_h
        i_keep = (i_b * H + i_h) * (tl.cdiv(T, KEEP) + 1) + row // KEEP
    i_state = (i_b * H + i_h) * tl.cdiv(T, L) + i_segment
    o_s, m_s = o_k[None, :] * V + o_v[:, None], m_k[None, :] & m_v[:, None]
    b_S = tl.load(S + i_state * K * V + o_s, mask=m_s, other=0.0)  # [BV, BK]
    for i_t in range(0, n, C):
        if w is not None:
            i_border = tl.cdiv(n, C) * C - i_t if REVERSE else i_t
            if (i_t == 0) | (i_border % KEEP == 0):
                o_keep = (i_keep + tl.cdiv(i_border, KEEP)) * K * V + o_s
                tl.store(keep + o_keep, b_S, mask=m_s)
        r, m = walk(i_t + o_c, n, C, REVERSE)
        m_tk, m_tv = m[:, None] & m_k, m[:, None] & m_v
        b_q = tl.load(q + (r[:, None] * q_t + o_k), mask=m_tk, other=0.0)  # [C, BK]
        b_k = tl.load(k + (r[:, None] * k_t + o_k), mask=m_tk, other=0.0)  # [C, BK]
        b_v = tl.load(v + (r[:, None] * v_t + o_v), mask=m_tv, other=0.0)  # [C, BV]
        b_own = tl.sum(b_q.to(tl.float32) * b_k, 1)  # [C], a token's score for itself
        b_A = tl.dot(b_k, tl.trans(b_q), input_precision="tf32x3")  # [C, C], of (3): (Q K^T)^T
        b_o = tl.dot(
            b_S.to(b_q.dtype), tl.trans(b_q), input_precision="tf32x3"
        )  # [BV, C], (3): Q S_0
        if DECAY != NONE:
            b_N, b_F, b_out, b_all = fade(g, g_t, b_fixed, r, m, DECAY, REVERSE)
            b_E = (b_N[None, :] - b_N[:, None]) + (b_F[None, :] - b_F[:, None])  # [C, C]
            b_A *= tl.exp2(tl.where(later, b_E, float("-inf")))  # (3): L below b_own
            b_o *= tl.exp2(b_N + b_F)[None, :]  # e^G
            b_k = (b_k * tl.exp2(b_out)[:, None]).to(b_v.dtype)
            b_S *= tl.exp2(b_all)
        else:
            b_A = tl.where(later, b_A, 0.0)
        b_o = tl.dot(tl.trans(b_v), b_A.to(b_v.dtype), b_o, input_precision="tf32x3")  # (3): A V
        b_S = tl.dot(tl.trans(b_v), b_k, b_S, input_precision="tf32x3")  # (4)
        b_o = tl.trans(b_o)  # [C, BV]
        if w is not None:
            b_w = tl.load(w + (r[:, None] * w_t + o_v), mask=m_tv, other=0.0)  # [C, BV]
            tl.store(x + r * H, tl.sum(b_w * b_o, 1), mask=m)
        b_o += b_own[:, None] * b_v
        tl.store(o + (r[:, None] * (H * V) + o_v), b_o.to(o.dtype.element_ty), mask=m_tv)
    if end is not None:
        if i_segment == tl.cdiv(T, L) - 1:
            tl.store(end + (i_b * H + i_h) * K * V + o_s, b_S, mask=m_s)


# ------------------------------------------------------------------------------------ the wrapper

CONFIGS = (
    Config(32, 64, 4, 2, 64, 16, ALL, "a small head: one tile, and room for several programs"),
    Config(32, 128, 8, 2, 128, 16, (90, 100), "all of V in one program: q and k are read once"),
    Config(16, 64, 4, 2, 128, 16, ALL, "two tiles: twice the programs, and two fit side by side"),
    Config(32, 64, 8, 2, 128, 16, (80, 90), "two tiles, more warps: more to do while some wait"),
    Config(16, 64, 8, 3, 256, 16, ALL, "the widest state; short chunks leave it the registers"),
    Config(32, 32, 8, 2, 256, 16, (80, 90), "longer chunks, narrower tiles"),
    Config(16, 16, 4, 2, 64, 32, ALL, "float32: three products for one; wide heads in parts"),
)


def run(q, k, v, g, S=None, *, reverse=False, w=None, wants_end=True, segments=None, config=None):
    """One sweep.

    Args:
        q: [B, T, H, K].
        k: [B, T, H, K].
        v: [B, T, H, V].
        g: [B, T, H], [H] or None.
        S: [B, H, K, V], or None for zeros.
        reverse: walk backward in time.
        w: [B, T, H, V], what o is the gradient of, or None.
        wants_end: whether the state at the end is wanted.
        segments: how many pieces the sequence is cut into; None chooses.
        config: one of CONFIGS; None chooses.

    Returns:
        o [B, T, H, V]; the state at the end [B, H, K, V] or None; how many segments there were;
        and with w, x [B, T, H], the sum over v of w o without a token's own part, and the states
        [B, H, n, K, V] at times 0, KEEP, 2 KEEP, ... and the end, but for the last that is walked
        to: the end, or going back time 0.
    """
    q, k, v = ready(q, k, v)
    w = w if w is None else ready(w)[0]
    (B, T, H, K), V = k.shape, v.shape[3]
    decay = NONE.value if g is None else FIXED.value if g.ndim == 1 else DATA.value
    if config is None:
        how = {"reverse": reverse, "w": w, "wants_end": wants_end, "segments": segments}
        if len(pieces(q)) > 1:
            return in_pieces(q, k, v, g, S, how)
        key = (sweep, K, V, decay, reverse, w is None)
        return pick(CONFIGS, K, q, key, lambda c: run(q, k, v, g, S, config=c, **how))
    tiles = triton.cdiv(V, config.tile)
    g = g if g is None else g.expand(B, T, H)
    L = segment_length(T, B * H * tiles, (q, k, v), segments)
    N = triton.cdiv(T, L)
    S = start(S, k, v)
    fixed = {"K": K, "V": V, "DECAY": decay, "REVERSE": reverse, "BK": padded(K)}
    starts = S
    if N > 1:
        left, total = S.new_empty(B, H, N, K, V), S.new_empty(B, H, N)
        ends[(B * H * N * triton.cdiv(V, ENDS.tile),)](
            k, v, g, left, total, *strides(k, v, g), T, H, L, **fixed, **ENDS.launch()
        )
        starts = joined(S, left, total)
    o = v.new_empty(B, T, H, V)
    end = S.new_empty(B, H, K, V) if wants_end else None
    x = keep = None
    if w is not None:
        x, keep = S.new_empty(tiles, B, T, H), kept(k, v)
    numbers = (*strides(q, k, v, g, w), T, H, L, B * T * H)
    sweep[(B * H * N * tiles,)](
        q, k, v, g, w, starts, o, end, x, keep, *numbers, KEEP=KEEP, **fixed, **config.launch()
    )
    return o, end, N, x if x is None else x.sum(0), keep


def in_pieces(q, k, v, g, S, how):
    """`run` over slices of the key channels, which add up."""
    parts = [
        run(q[..., c], k[..., c], v, g, None if S is None else S[:, :, c], **how) for c in pieces(q)
    ]
    o, end, N, x, keep = zip(*parts, strict=True)
    end = torch.cat(end, 2) if how["wants_end"] else None
    return add(o), end, N[0], add(x), None if how["w"] is None else torch.cat(keep, 3)


class ScalarDecay(torch.autograd.Function):
    """The sweep forward in time, and the three that are its gradient."""

    @staticmethod
    def forward(ctx, q, k, v, g, S, segments):  # noqa: D102
        o, end, ctx.segments, _, _ = run(q, k, v, g, S, segments=segments)
        ctx.save_for_backward(q, k, v, g, S, end)
        return o.to(v.dtype), end

    @staticmethod
    @once_differentiable
    def backward(ctx, do, dS):  # noqa: D102
        q, k, v, g, S, end = ctx.saved_tensors
        do = do.contiguous()
        gates = ctx.needs_input_grad[3]
        wq, wk = (q, k) if gates else (None, None)
        how = {"segments": ctx.segments, "wants_end": False}
        S_0 = None if S is None else S.mT
        dq, _, _, x, states = run(do, v, k, g, S_0, w=wq, **how)
        dk, _, _, y, gradients = run(v, do, q, g, dS.mT, w=wk, reverse=True, **how)
        dv, dS_0, *_ = run(k, q, do, g, dS, segments=ctx.segments, reverse=True)
        dg = None
        if gates:
            states[:, :, -1] = end.mT
            dg = gate_gradient(x - y, states[:, :, 1:], gradients[:, :, 1:])
            dg = (dg.sum((0, 1)) if g.ndim == 1 else dg).to(g.dtype)
        dS_0 = None if S is None else dS_0.to(S.dtype)
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), dg, dS_0, None


def gate_gradient(d: Tensor, S: Tensor, dS: Tensor) -> Tensor:
    """The sum of d from each time to the next state that was kept, and S . dS there.

    Args:
        d: x - y [B, T, H], see above.
        S: the states at times KEEP, 2 KEEP, ... and at the end [B, H, n, ...].
        dS: their gradients.
    """
    T, n = d.shape[1], S.shape[2]
    after = torch.einsum("bhnvk,bhnvk->bnh", S, dS)[:, :, None]
    d = F.pad(d, (0, 0, 0, n * KEEP - T)).unflatten(1, (n, KEEP))
    return (d.flip(2).cumsum(2).flip(2) + after).flatten(1, 2)[:, :T]


@torch.compiler.disable
def chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    S: Tensor | None = None,
    *,
    segments: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence scalar_decay, forward and backward, on a GPU or in Triton's interpreter.

    Args:
        q: [B, T, H, K], K at most 256; not scaled. Any strides, as for k, v and g; channels that
            do not lie side by side are copied.
        k: [B, T, H, K].
        v: [B, T, H, V], V at most 256.
        g: log gates <= 0: [B, T, H], [H] for fixed ones, None for none.
        S: [B, H, K, V], None for zeros.
        segments: how many pieces the sequence is cut into; None chooses.

    Returns:
        o [B, T, H, V] in the type of v, and the state [B, H, K, V] in float32. Sums are float32;
        products of float32 are taken as three of TF32.

    Raises:
        Unsupported: float64, more than 256 channels, a device without kernels.
    """
    check("scalar_decay", k.shape[3], v.shape[3], q=q, k=k, v=v, g=g)
    if not v.shape[0] * v.shape[1]:  # no tokens
        return v.clone(), start(S, k, v)
    with torch.cuda.device_of(v):
        return ScalarDecay.apply(q, k, v, g, S, segments)
