r"""RWKV-4 on a GPU: every channel averages its own past, so all channels lie side by side.

    one program: a tile of BD of the B x D channels of all sequences, and all tokens; a thread holds
    one channel

                channels ->
            +---------------+
         C  |  k, v: C rows |   loaded at once, into registers: memory is slow, a step is short
       rows |  1            |
          | |    2          |   then one step after the other. On chip: num, den, max, which are
          v |      .. C     |   three numbers a channel
            +---------------+
            |  o: C rows    |   stored; and for the gradient the state between two blocks of rows
            +---------------+

The numbers in the comments are the equations of linviz/mechanisms/rwkv4.py. Wherever two exponents
meet, the greater is taken out. Of the two factors one is then 1, and the other e^-|difference|: a
token takes two exponentials, and no exponent is above 0.

The gradient is an average of the same kind, walked backward. Let (1) be o_t = n_t / d_t, over
e^(m_t). As a reader, t writes do_t / d_t and -o_t do_t / d_t with the log weight -m_t into

    P_(t-1) = e^w P_t + e^(-m_t) do_t / d_t ,     Q_(t-1) = e^w Q_t - e^(-m_t) o_t do_t / d_t ,

the gradients of num and den after token t - 1, which join by (3) as these do. As a writer, t gets

    dv_t = e^(k_t) P_t + e^(u + k_t - m_t) do_t / d_t
    dk_t = e^(k_t) (v_t P_t + Q_t) + du_t ,     du_t = e^(u + k_t - m_t) (v_t - o_t) do_t / d_t

A change of w counts once for each token between a writer and its reader. So two more sums are what
P and Q gain by it, X_(t-1) = e^w (X_t + P_t) and Y alike, and dw is the sum of e^(k_t) (v_t X_t +
Y_t). They are 0 at the end of each block; at its start they meet the state that enters there. That
state is what was kept: from it the outputs of the block are computed anew, in registers.

The state is (num, den, max), the gradient on its way (P, Q, exponent). No gradient goes through an
exponent: it is chosen, not computed.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from linviz.kernels.launch import ALL, LOG2E, Config, check, pick, ready, segment_length

NOTHING: tl.constexpr = tl.constexpr(-1e38)  # the exponent of an empty sum


@triton.jit
def meet(b_m, b_n):
    """The greater of two exponents, and what each leaves once it is taken out."""
    b_d = (b_m - b_n) * LOG2E
    b_less = tl.exp2(-tl.abs(b_d))
    return tl.maximum(b_m, b_n), tl.where(b_d > 0, 1.0, b_less), tl.where(b_d > 0, b_less, 1.0)


@triton.jit
def lanes(x, x_b, row, x_t, o, D):
    """Where each channel stands in row `row` of its sequence."""
    return x + ((o // D).to(tl.int64) * x_b + row * x_t + o % D)


@triton.jit
def load_rows(x, x_t, m, C: tl.constexpr):
    """C rows, each in its own registers."""
    rows = ()
    for j in tl.static_range(C):
        rows += (tl.load(x + j * x_t, mask=m, other=0.0).to(tl.float32),)
    return rows


@triton.jit
def load_three(S, o, m, N):
    """Three numbers for each of N channels."""
    b_x = tl.load(S + o, mask=m, other=0.0)
    b_y = tl.load(S + N + o, mask=m, other=0.0)
    return b_x, b_y, tl.load(S + 2 * N + o, mask=m, other=0.0)


@triton.jit
def store_three(S, o, m, N, b_x, b_y, b_m):
    """The same, stored."""
    tl.store(S + o, b_x, mask=m)
    tl.store(S + N + o, b_y, mask=m)
    tl.store(S + 2 * N + o, b_m, mask=m)


@triton.jit
def connect(
    w, first, ends, starts, n_segments, T, L, starts_n, n_channels, D,
    BD: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """The states that enter the segments, from the first and what each leaves behind, by (3)."""
    o = tl.program_id(0) * BD + tl.arange(0, BD)
    m = o < n_channels
    b_w = tl.load(w + o % D, mask=m, other=0.0)
    b_x, b_y, b_m = load_three(first, o, m, n_channels)
    for i in range(n_segments):
        i_segment = tl.where(REVERSE, n_segments - 1 - i, i).to(tl.int64)
        store_three(starts + i_segment * starts_n, o, m, n_channels, b_x, b_y, b_m)
        b_x_n, b_y_n, b_m_n = load_three(ends + i_segment * 3 * n_channels, o, m, n_channels)
        b_m += tl.minimum(T - i_segment * L, L).to(tl.float32) * b_w
        b_m, b_old, b_new = meet(b_m, b_m_n)
        b_x, b_y = b_old * b_x + b_new * b_x_n, b_old * b_y + b_new * b_y_n


@triton.jit
def sweep_rows(k, v, o, k_t, v_t, o_t, m, b_w, b_u, b_num, b_den, b_max, C: tl.constexpr):
    """C tokens: outputs, if wanted, and the state after them."""
    ks, vs = load_rows(k, k_t, m, C), load_rows(v, v_t, m, C)
    for j in tl.static_range(C):
        if o is not None:
            _, b_old, b_new = meet(b_max, b_u + ks[j])
            b_o = (b_old * b_num + b_new * vs[j]) / (b_old * b_den + b_new)  # (1)
            tl.store(o + j * o_t, b_o.to(o.dtype.element_ty), mask=m)
        b_max, b_old, b_new = meet(b_max + b_w, ks[j])
        b_num, b_den = b_old * b_num + b_new * vs[j], b_old * b_den + b_new  # (2)
    return b_num, b_den, b_max


@triton.jit
def sweep(
    w, u, k, v, states, o, end,
    k_b, k_t, v_b, v_t, T, L, n_channels, D,
    KEEP: tl.constexpr, C: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Outputs o, from the states [n, 3, N] that enter the segments; or, without o, their ends.

    With KEEP, states has one for each block and for each token after the last whole one; those that
    do not enter a segment are stored here.
    """
    tiles = tl.cdiv(n_channels, BD)
    i_segment = tl.program_id(0) // tiles
    row = i_segment.to(tl.int64) * L
    n = tl.minimum(T - row, L).to(tl.int32)
    o_d = tl.program_id(0) % tiles * BD + tl.arange(0, BD)
    m = o_d < n_channels
    k, v = lanes(k, k_b, row, k_t, o_d, D), lanes(v, v_b, row, v_t, o_d, D)
    b_w = tl.load(w + o_d % D, mask=m, other=0.0)
    b_u = tl.load(u + o_d % D, mask=m, other=0.0)
    if o is None:
        b_num, b_den = tl.zeros([BD], tl.float32), tl.zeros([BD], tl.float32)
        b_max = tl.full([BD], NOTHING, tl.float32)
        end += i_segment.to(tl.int64) * 3 * n_channels
    else:
        states += (row // C if KEEP else i_segment.to(tl.int64)) * 3 * n_channels
        b_num, b_den, b_max = load_three(states, o_d, m, n_channels)
        o = lanes(o, T * D, row, D, o_d, D)
    whole = n // C * C
    for i_t in range(0, whole, C):
        if KEEP:
            store_three(states, o_d, m, n_channels, b_num, b_den, b_max)
            states += 3 * n_channels
        b_num, b_den, b_max = sweep_rows(
            k + i_t * k_t, v + i_t * v_t, o if o is None else o + i_t * D, k_t, v_t, D, m,
            b_w, b_u, b_num, b_den, b_max, C,
        )  # fmt: skip
    for i_t in range(whole, n):
        if KEEP:
            store_three(states, o_d, m, n_channels, b_num, b_den, b_max)
            states += 3 * n_channels
        b_num, b_den, b_max = sweep_rows(
            k + i_t * k_t, v + i_t * v_t, o if o is None else o + i_t * D, k_t, v_t, D, m,
            b_w, b_u, b_num, b_den, b_max, 1,
        )  # fmt: skip
    if (o is None) | (row + n == T):
        store_three(end, o_d, m, n_channels, b_num, b_den, b_max)


@triton.jit
def back_rows(
    k, v, do, dk, dv, states, k_t, v_t, do_t, o_t, o_d, n_channels, m,
    b_w, b_u, b_P, b_Q, b_m, b_dw, b_du, C: tl.constexpr,
):  # fmt: skip
    """C tokens, forward from the state before them and then back: see above."""
    ks, vs, dos = load_rows(k, k_t, m, C), load_rows(v, v_t, m, C), load_rows(do, do_t, m, C)
    b_num_0, b_den_0, b_max_0 = load_three(states, o_d, m, n_channels)
    b_num, b_den, b_max = b_num_0, b_den_0, b_max_0
    os, gs, tops = (), (), ()
    for j in tl.static_range(C):
        b_top, b_old, b_new = meet(b_max, b_u + ks[j])
        b_below = b_old * b_den + b_new
        os += ((b_old * b_num + b_new * vs[j]) / b_below,)  # (1)
        gs += (dos[j] / b_below,)
        tops += (b_top,)
        b_max, b_old, b_new = meet(b_max + b_w, ks[j])
        b_num, b_den = b_old * b_num + b_new * vs[j], b_old * b_den + b_new  # (2)
    b_X, b_Y = tl.zeros_like(b_P), tl.zeros_like(b_Q)
    for j in tl.static_range(C - 1, -1, -1):
        if dk is not None:
            b_old = tl.exp2((ks[j] + b_m) * LOG2E)
            b_new = tl.exp2((b_u + ks[j] - tops[j]) * LOG2E) * gs[j]
            b_duk = b_new * (vs[j] - os[j])
            b_dk = b_duk + b_old * (vs[j] * b_P + b_Q)
            tl.store(dk + j * o_t, b_dk.to(dk.dtype.element_ty), mask=m)
            b_dv = b_new + b_old * b_P
            tl.store(dv + j * o_t, b_dv.to(dv.dtype.element_ty), mask=m)
            b_du += b_duk
            b_dw += b_old * (vs[j] * b_X + b_Y)
        b_m, b_old, b_new = meet(b_m + b_w, -tops[j])
        b_X, b_Y = b_old * (b_X + b_P), b_old * (b_Y + b_Q)
        b_P, b_Q = b_old * b_P + b_new * gs[j], b_old * b_Q - b_new * (gs[j] * os[j])
    b_dw += tl.exp2((b_max_0 + b_m) * LOG2E) * (b_num_0 * b_X + b_den_0 * b_Y)
    return b_P, b_Q, b_m, b_dw, b_du


@triton.jit
def back(
    w, u, k, v, do, states, later, dk, dv, dw, du, first,
    k_b, k_t, v_b, v_t, do_b, do_t, T, L, n_channels, D,
    C: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """All gradients, from the (P, Q, exponent) that come from later segments [n, 3, N].

    What goes on to earlier ones is `first`. Without dk: what each segment leaves, from nothing.
    """
    tiles = tl.cdiv(n_channels, BD)
    i_segment = tl.program_id(0) // tiles
    row = i_segment.to(tl.int64) * L
    n = tl.minimum(T - row, L).to(tl.int32)
    o_d = tl.program_id(0) % tiles * BD + tl.arange(0, BD)
    m = o_d < n_channels
    k, v = lanes(k, k_b, row, k_t, o_d, D), lanes(v, v_b, row, v_t, o_d, D)
    do = lanes(do, do_b, row, do_t, o_d, D)
    b_w = tl.load(w + o_d % D, mask=m, other=0.0)
    b_u = tl.load(u + o_d % D, mask=m, other=0.0)
    b_dw, b_du = tl.zeros([BD], tl.float32), tl.zeros([BD], tl.float32)
    if dk is None:
        b_P, b_Q = tl.zeros([BD], tl.float32), tl.zeros([BD], tl.float32)
        b_m = tl.full([BD], NOTHING, tl.float32)
    else:
        b_P, b_Q, b_m = load_three(
            later + i_segment.to(tl.int64) * 3 * n_channels, o_d, m, n_channels
        )
        dk, dv = lanes(dk, T * D, row, D, o_d, D), lanes(dv, T * D, row, D, o_d, D)
    whole = n // C * C
    states += (row // C + n // C + n % C) * 3 * n_channels  # after those of this segment
    for i in range(n - whole):
        states -= 3 * n_channels
        i_t = n - 1 - i
        b_P, b_Q, b_m, b_dw, b_du = back_rows(
            k + i_t * k_t, v + i_t * v_t, do + i_t * do_t,
            dk if dk is None else dk + i_t * D, dv if dv is None else dv + i_t * D,
            states, k_t, v_t, do_t, D, o_d, n_channels, m, b_w, b_u, b_P, b_Q, b_m, b_dw, b_du, 1,
        )  # fmt: skip
    for i in range(whole // C):
        states -= 3 * n_channels
        i_t = whole - C - i * C
        b_P, b_Q, b_m, b_dw, b_du = back_rows(
            k + i_t * k_t, v + i_t * v_t, do + i_t * do_t,
            dk if dk is None else dk + i_t * D, dv if dv is None else dv + i_t * D,
            states, k_t, v_t, do_t, D, o_d, n_channels, m, b_w, b_u, b_P, b_Q, b_m, b_dw, b_du, C,
        )  # fmt: skip
    if dk is None:
        store_three(
            first + i_segment.to(tl.int64) * 3 * n_channels, o_d, m, n_channels, b_P, b_Q, b_m
        )
    else:
        tl.store(dw + i_segment.to(tl.int64) * n_channels + o_d, b_dw, mask=m)
        tl.store(du + i_segment.to(tl.int64) * n_channels + o_d, b_du, mask=m)
        if i_segment == 0:
            store_three(first, o_d, m, n_channels, b_P, b_Q, b_m)


# ------------------------------------------------------------------------------------ the wrapper

BLOCK = 16  # rows that are loaded at once; one state is kept for so many
ANY = 64  # no width is too much; the X-ray looks at so many channels a head
CONFIGS = (
    Config(BLOCK, 32, 1, 1, ANY, 16, ALL, "a warp each: the most programs"),
    Config(BLOCK, 128, 4, 1, ANY, 16, ALL, "rows of 256 bytes, and fewer programs to start"),
    Config(BLOCK, 32, 1, 1, ANY, 32, ALL, "float32: the row of a warp is as long already"),
)


def options(config):
    """What a kernel is launched with."""
    how = {"num_warps": config.warps, "num_stages": config.stages}
    return {"C": config.chunk, "BD": config.tile} | how


def run(w, u, k, v, S, L, keep, config=None):
    """Outputs [B, T, D], the state at the end [3, N], and those before each segment or block.

    Args:
        w: [D], float32, as for u.
        u: [D].
        k: [B, T, D].
        v: [B, T, D].
        S: num, den, max [3, N] of all N = B D channels.
        L: tokens a segment.
        keep: whether the states between two blocks are wanted.
        config: one of CONFIGS; None chooses.
    """
    if config is None:
        key = (sweep, k.shape[2], keep)
        return pick(CONFIGS, ANY, k, key, lambda c: run(w, u, k, v, S, L, keep, c))
    (B, T, D), segments = k.shape, triton.cdiv(k.shape[1], L)
    numbers = (*k.stride()[:2], *v.stride()[:2], T, L, B * D, D)
    grid = (triton.cdiv(B * D, config.tile) * segments,)
    states = S.new_empty(T // BLOCK + T % BLOCK if keep else segments, 3, B * D)
    if segments > 1:
        ends = S.new_empty(segments, 3, B * D)
        sweep[grid](w, u, k, v, None, None, ends, *numbers, KEEP=False, **options(config))
        joined(w, S, ends, states, L // BLOCK if keep else 1, T, L, D, reverse=False)
    else:
        states[0] = S
    o, end = k.new_empty(B, T, D), torch.empty_like(S)
    sweep[grid](w, u, k, v, states, o, end, *numbers, KEEP=keep, **options(config))
    return o, end, states


def run_back(w, u, k, v, do, states, last, L, config=None):
    """The gradients of k, v [B, T, D] and of w, u [segments, N], and what goes on before [3, N].

    Args:
        w: [D], float32, as for u.
        u: [D].
        k: [B, T, D].
        v: [B, T, D].
        do: [B, T, D].
        states: those that were kept.
        last: (P, Q, exponent) of the state at the end [3, N].
        L: tokens a segment.
        config: one of CONFIGS; None chooses.
    """
    if config is None:
        again = lambda c: run_back(w, u, k, v, do, states, last, L, c)
        return pick(CONFIGS, ANY, k, (back, k.shape[2]), again)
    (B, T, D), segments = k.shape, triton.cdiv(k.shape[1], L)
    numbers = (*k.stride()[:2], *v.stride()[:2], *do.stride()[:2], T, L, B * D, D)
    grid = (triton.cdiv(B * D, config.tile) * segments,)
    later, first = last, torch.empty_like(last)
    if segments > 1:
        ends, later = (last.new_empty(segments, 3, B * D) for _ in range(2))
        none = (None,) * 5
        back[grid](w, u, k, v, do, states, *none, ends, *numbers, **options(config))
        joined(w, last, ends, later, 1, T, L, D, reverse=True)
    dk, dv = k.new_empty(B, T, D), v.new_empty(B, T, D)
    dw, du = (last.new_empty(segments, B * D) for _ in range(2))
    given = (w, u, k, v, do, states, later, dk, dv, dw, du, first)
    back[grid](*given, *numbers, **options(config))
    return dk, dv, dw, du, first


def joined(w, first, ends, starts, apart, T, L, D, *, reverse):
    """Fill `starts` [n, 3, N], one in `apart`, with what enters the segments."""
    segments, _, N = ends.shape
    numbers = (segments, T, L, apart * 3 * N, N, D)
    connect[(triton.cdiv(N, 128),)](w, first, ends, starts, *numbers, BD=128, REVERSE=reverse)


class WKV4(torch.autograd.Function):
    """The sweep forward in time, and the one back."""

    @staticmethod
    def forward(ctx, w, u, k, v, S, segments, keep):  # noqa: D102
        given, (B, T, D) = (w, u, k, v), k.shape
        (w, u), (k, v) = wide(w, u), ready(k, v)
        warps = triton.cdiv(B * D, 32)  # eight of them weigh as much as a program of other kernels
        ctx.L = segment_length(T, warps // 8, [x[:, :, None] for x in (k, v)], segments)
        o, end, states = run(w, u, k, v, S, ctx.L, keep)
        ctx.save_for_backward(*given, S, states, end)
        return o.to(given[3].dtype), end

    @staticmethod
    @once_differentiable
    def backward(ctx, do, dS):  # noqa: D102
        *given, S, states, end = ctx.saved_tensors
        (w, u), (k, v, do) = wide(*given[:2]), ready(*given[2:], do)
        last = torch.stack([dS[0], dS[1], -end[2]])
        dk, dv, dw, du, (P, Q, m) = run_back(w, u, k, v, do, states, last, ctx.L)
        left = (S[2] + m).exp()
        dS = torch.stack([left * P, left * Q, left * (S[0] * P + S[1] * Q)])
        dw, du = (x.unflatten(1, (-1, k.shape[2])).sum((0, 1)) for x in (dw, du))
        gradients = zip((dw, du, dk, dv), given, strict=True)
        return *(x.to(y.dtype) for x, y in gradients), dS, None, None


def wide(*parameters):
    """What there is one of for each channel: in float32, side by side."""
    return [x.float().contiguous() for x in parameters]


@torch.compiler.disable
def chunked(
    w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    S: tuple[Tensor, Tensor, Tensor] | None = None,
    *,
    segments: int | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """RWKV-4's weighted average, forward and backward, on a GPU or in Triton's interpreter.

    Args:
        w: log decay <= 0 [D].
        u: bonus of the present token [D].
        k: log weights [B, T, D]. Any strides, as for v; channels that do not lie side by side are
            copied.
        v: [B, T, D].
        S: num, den and max, [B, D] each; None for an empty sum.
        segments: how many pieces the sequence is cut into; None chooses.

    Returns:
        o [B, T, D] in the type of v, and num, den, max in float32.

    Raises:
        Unsupported: float64, or a device without kernels.
    """
    check("rwkv4", 1, 1, w=w, u=u, k=k, v=v)
    if S is None:
        S = v.new_zeros(3, v.shape[0], v.shape[2], dtype=torch.float32)
        S[2] = NOTHING.value
    S = torch.stack([x.float() for x in S])
    if v.numel():
        keep = torch.is_grad_enabled() and any(x.requires_grad for x in (w, u, k, v, S))
        with torch.cuda.device_of(v):
            o, end = WKV4.apply(w, u, k, v, S.flatten(1), segments, keep)
        num, den, top = end.unflatten(1, S.shape[1:])
    else:
        o, (num, den, top) = v.clone(), S
    return o, (num, den, top.detach())
