r"""One to 16 tokens from a state: decoding, for every recurrence. No gradients.

    one program: one head of one sequence, all K key channels, BV value channels of the state

            BV                       the state is read once, goes through the tokens in registers,
          +----+----+---             and is written once: 8 K V bytes a head, beside which the
          | S  |    |                tokens are little:
        K |    |    |   ...
          |    |    |                  read     y = S^T a       rank_one, before anything changes
          +----+----+---                        o = S^T q       with a bonus u, for k v^T too
            ^    ^                     fade     S <- e^g S      nothing, a head, or a channel
      q, k, g    v, o                  replace  v <- beta (v - S^T k)          delta_rule
                                       write    S <- S + k v^T + b y^T
                                       read     o = S^T q       without a bonus

`matrix_step` is that for the recurrences whose state is a matrix; what a recurrence does not have
is not compiled. In `diagonal_step` a program owns BD channels with their N numbers each, in
`average_step` (RWKV-4) BD channels. The numbers in the comments are the equations of the recurrence
named there, in linviz/recurrences, and of linviz/mechanisms/rwkv4.py.

Each function here has the inputs of its recurrence in order, then S, and

    slots   [B], int32 or int64: sequence n has its state in S[slots[n]], S being a pool of states
            [slots, ...] of any number, and gets its new one there, in place. A negative slot stands
            for no sequence: no state is touched, and o is 0. So does one beyond the pool. No other
            may stand there twice: two programs would write the same state.
    out     (o, new state) to write into, or None for either: then it is made. The state that came
            in may be the one to write into; any other must share no memory with it.

Given `out`, nothing is allocated; there is nothing that the host waits for, and it looks at no
numbers. So a call can be captured in a CUDA graph, once a first one has compiled it. (On the CPU,
in Triton's interpreter, slots are looked at: repeated ones and those beyond the pool are refused.)
A mechanism's mapping takes these functions as it takes its kernel:
`lv.gla.functions["triton"](partial(vector_decay, slots=slots), q, k, v, g, S=pool)`.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from linviz.kernels.launch import (
    ALL,
    KINDS,
    LOG2E,
    Config,
    Unsupported,
    check,
    padded,
    pick,
    strides,
)

TOKENS = 16  # at most; from there on chunks are faster
NONE: tl.constexpr = tl.constexpr(0)  # the kinds of gate: none,
HEAD: tl.constexpr = tl.constexpr(1)  # one a head,
CHANNEL: tl.constexpr = tl.constexpr(2)  # one a key channel


@triton.jit
def find(slots, i_b, n_slots):
    """Where the state of a sequence is, and whether it is anywhere."""
    i_s = i_b
    m = i_b >= 0
    if slots is not None:
        i_s = tl.load(slots + i_b).to(tl.int64)
        m = (i_s >= 0) & (i_s < n_slots)
    return i_s, m


@triton.jit
def matrix_step(
    q, k, v, g, u, beta, a, b, S, o, end, slots,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, g_b, g_t, g_h, beta_b, beta_t, beta_h,
    a_b, a_t, a_h, b_b, b_t, b_h, S_b, S_h, S_k, o_b, o_t, o_h, end_b, end_h, end_k, T, H, n_slots,
    K: tl.constexpr, V: tl.constexpr, GATE: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """T tokens of one head through a state [BK, BV]."""
    i_v = tl.program_id(0) % tl.cdiv(V, BV)
    i_bh = tl.program_id(0) // tl.cdiv(V, BV)
    i_b, i_h = (i_bh // H).to(tl.int64), i_bh % H
    o_k, o_v = tl.arange(0, BK), i_v * BV + tl.arange(0, BV)
    m_k, m_v = o_k < K, o_v < V
    q += i_b * q_b + i_h * q_h
    k += i_b * k_b + i_h * k_h
    v += i_b * v_b + i_h * v_h
    o += i_b * o_b + i_h * o_h
    if GATE != NONE:
        g += i_b * g_b + i_h * g_h
    if u is not None:
        b_u = tl.load(u + i_h * K + o_k, mask=m_k, other=0.0).to(tl.float32)  # [BK]
    if beta is not None:
        beta += i_b * beta_b + i_h * beta_h
    if a is not None:
        a += i_b * a_b + i_h * a_h
        b += i_b * b_b + i_h * b_h
    i_s, m = find(slots, i_b, n_slots)
    m_s = m_k[:, None] & m_v & m
    b_S = tl.zeros([BK, BV], tl.float32)
    if S is not None:
        S += i_s * S_b + i_h * S_h
        b_S = tl.load(S + (o_k[:, None] * S_k + o_v), mask=m_s, other=0.0)  # [BK, BV]
    for _ in range(T):
        b_q = tl.load(q + o_k, mask=m_k, other=0.0).to(tl.float32)  # [BK]
        b_k = tl.load(k + o_k, mask=m_k, other=0.0).to(tl.float32)  # [BK]
        b_v = tl.load(v + o_v, mask=m_v, other=0.0).to(tl.float32)  # [BV]
        if a is not None:
            b_a = tl.load(a + o_k, mask=m_k, other=0.0).to(tl.float32)  # [BK]
            b_y = tl.sum(b_a[:, None] * b_S, 0)  # [BV], y of rank_one (1)
            a += a_t
        if u is not None:
            b_own = tl.sum(b_q * b_u * b_k, 0)
            b_o = tl.sum(b_q[:, None] * b_S, 0) + b_own * b_v  # [BV], vector_decay (5)
        if GATE == HEAD:
            b_S *= tl.exp2(tl.load(g).to(tl.float32) * LOG2E)  # (1)
        if GATE == CHANNEL:
            b_g = tl.load(g + o_k, mask=m_k, other=0.0).to(tl.float32)  # [BK]
            b_S *= tl.exp2(b_g * LOG2E)[:, None]  # (1)
        if beta is not None:
            b_beta = tl.load(beta).to(tl.float32)
            b_v = b_beta * (b_v - tl.sum(b_k[:, None] * b_S, 0))  # [BV], u of delta_rule (3)
            beta += beta_t
        b_S += b_k[:, None] * b_v  # (1)
        if a is not None:
            b_to = tl.load(b + o_k, mask=m_k, other=0.0).to(tl.float32)  # [BK]
            b_S += b_to[:, None] * b_y  # rank_one (1)
            b += b_t
        if u is None:
            b_o = tl.sum(b_q[:, None] * b_S, 0)  # [BV], (2)
        tl.store(o + o_v, tl.where(m, b_o, 0.0).to(o.dtype.element_ty), mask=m_v)
        q += q_t
        k += k_t
        v += v_t
        o += o_t
        if GATE != NONE:
            g += g_t
    end += i_s * end_b + i_h * end_h
    tl.store(end + (o_k[:, None] * end_k + o_v), b_S, mask=m_s)


@triton.jit
def diagonal_step(
    u, dt, A, B, C, skip, S, y, end, slots,
    u_b, u_t, dt_b, dt_t, B_b, B_t, C_b, C_t, S_b, S_d, y_b, y_t, end_b, end_d, T, D, n_slots,
    N: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """T tokens through the states [BD, BN] of some channels; diagonal_scan, and Mamba's skip."""
    i_d, i_b = tl.program_id(0) % tl.cdiv(D, BD), (tl.program_id(0) // tl.cdiv(D, BD)).to(tl.int64)
    o_d, o_n = i_d * BD + tl.arange(0, BD), tl.arange(0, BN)
    m_d, m_n = o_d < D, o_n < N
    m_dn = m_d[:, None] & m_n
    u += i_b * u_b
    dt += i_b * dt_b
    B += i_b * B_b
    C += i_b * C_b
    y += i_b * y_b
    if skip is not None:
        b_skip = tl.load(skip + o_d, mask=m_d, other=0.0).to(tl.float32)  # [BD]
    b_A = tl.load(A + (o_d[:, None] * N + o_n), mask=m_dn, other=0.0).to(tl.float32)  # [BD, BN]
    i_s, m = find(slots, i_b, n_slots)
    b_S = tl.zeros([BD, BN], tl.float32)
    if S is not None:
        b_S = tl.load(S + i_s * S_b + (o_d[:, None] * S_d + o_n), mask=m_dn & m, other=0.0)
    for _ in range(T):
        b_u = tl.load(u + o_d, mask=m_d, other=0.0).to(tl.float32)  # [BD]
        b_dt = tl.load(dt + o_d, mask=m_d, other=0.0).to(tl.float32)  # [BD]
        b_B = tl.load(B + o_n, mask=m_n, other=0.0).to(tl.float32)  # [BN]
        b_C = tl.load(C + o_n, mask=m_n, other=0.0).to(tl.float32)  # [BN]
        b_to = b_u if skip is None else b_dt * b_u
        b_S = tl.exp2(b_dt[:, None] * b_A * LOG2E) * b_S + b_to[:, None] * b_B  # (1)
        b_y = tl.sum(b_S * b_C, 1)  # [BD], (2)
        if skip is not None:
            b_y += b_skip * b_u
        tl.store(y + o_d, tl.where(m, b_y, 0.0).to(y.dtype.element_ty), mask=m_d)
        u += u_t
        dt += dt_t
        B += B_t
        C += C_t
        y += y_t
    tl.store(end + i_s * end_b + (o_d[:, None] * end_d + o_n), b_S, mask=m_dn & m)


@triton.jit
def add_weighted(b_num, b_den, b_top, b_v, b_e):
    """One more value, of weight e^b_e, in a sum over e^b_top: rwkv4 (2)."""
    b_new = tl.maximum(b_top, b_e)
    b_old, b_e = tl.exp2((b_top - b_new) * LOG2E), tl.exp2((b_e - b_new) * LOG2E)
    return b_old * b_num + b_e * b_v, b_old * b_den + b_e, b_new


@triton.jit
def average_step(
    w, u, k, v, num, den, top, o, num_end, den_end, top_end, slots,
    k_b, k_t, v_b, v_t, num_b, den_b, top_b, o_b, o_t, num_end_b, den_end_b, top_end_b,
    T, D, n_slots, BD: tl.constexpr,
):  # fmt: skip
    """T tokens through the states of some channels; RWKV-4."""
    i_d, i_b = tl.program_id(0) % tl.cdiv(D, BD), (tl.program_id(0) // tl.cdiv(D, BD)).to(tl.int64)
    o_d = i_d * BD + tl.arange(0, BD)
    m_d = o_d < D
    k += i_b * k_b
    v += i_b * v_b
    o += i_b * o_b
    b_w = tl.load(w + o_d, mask=m_d, other=0.0).to(tl.float32)  # [BD], as all below
    b_u = tl.load(u + o_d, mask=m_d, other=0.0).to(tl.float32)
    i_s, m = find(slots, i_b, n_slots)
    m_s = m_d & m
    b_num = tl.load(num + i_s * num_b + o_d, mask=m_s, other=0.0)
    b_den = tl.load(den + i_s * den_b + o_d, mask=m_s, other=0.0)
    b_top = tl.load(top + i_s * top_b + o_d, mask=m_s, other=0.0)
    for _ in range(T):
        b_k = tl.load(k + o_d, mask=m_d, other=0.0).to(tl.float32)
        b_v = tl.load(v + o_d, mask=m_d, other=0.0).to(tl.float32)
        b_o, b_sum, _ = add_weighted(b_num, b_den, b_top, b_v, b_u + b_k)  # rwkv4 (1)
        b_num, b_den, b_top = add_weighted(b_num, b_den, b_top + b_w, b_v, b_k)
        tl.store(o + o_d, tl.where(m, b_o / b_sum, 0.0).to(o.dtype.element_ty), mask=m_d)
        k += k_t
        v += v_t
        o += o_t
    tl.store(num_end + i_s * num_end_b + o_d, b_num, mask=m_s)
    tl.store(den_end + i_s * den_end_b + o_d, b_den, mask=m_s)
    tl.store(top_end + i_s * top_end_b + o_d, b_top, mask=m_s)


# ----------------------------------------------------------------------------------- the wrappers

# One for each width: a call may change its state in place, so it cannot be repeated to be timed.
MATRIX = (
    Config(1, 32, 2, 1, 64, 32, ALL, "whole lines of memory; 32 numbers of the state a thread"),
    Config(1, 32, 4, 1, 128, 32, ALL, "the same, with as many threads more"),
    Config(1, 32, 8, 1, 256, 32, ALL, "the same, with as many threads more"),
)
DIAGONAL = (
    Config(1, 32, 1, 1, 16, 32, ALL, "few channels: one sequence must fill the chip"),
    Config(1, 8, 1, 1, 64, 32, ALL, "as many numbers of the state a thread"),
    Config(1, 4, 2, 1, 256, 32, ALL, "as many numbers of the state a thread"),
)
AVERAGE = (Config(1, 128, 2, 1, 1, 32, ALL, "few channels: one sequence must fill the chip"),)

Out = tuple[Tensor | None, Tensor | tuple[Tensor, ...] | None] | None


def fit(where: str, T: int, K: int, V: int, **tensors: Tensor | None) -> None:
    """Refuse what the kernels do not do.

    Raises:
        Unsupported: more tokens than TOKENS, gradients, and what `launch.check` refuses.
    """
    check(f"decode.{where}", K, V, **tensors)
    if not 1 <= T <= TOKENS:
        raise Unsupported(f"decode.{where}: wanted 1 to {TOKENS} tokens, got {T}: chunks take any")
    for name, x in tensors.items():
        if x is not None and x.requires_grad and torch.is_grad_enabled():
            raise Unsupported(
                f"decode.{where}: {name} wants a gradient, and decoding gives none: "
                "torch.no_grad(), or another form"
            )


def ready(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors with their channels side by side; other strides are fine as they are."""
    return [x if x is None or side_by_side(x) else x.contiguous() for x in tensors]


def side_by_side(x: Tensor) -> bool:
    """Whether what is on the last axis lies side by side."""
    return x.stride(-1) == 1 or x.shape[-1] == 1


def writable(what: str, x: Tensor, shape: Sequence[int], kinds: Sequence, like: Tensor) -> Tensor:
    """X, if a kernel can write into it.

    Raises:
        ValueError: another shape, type or device than wanted, or numbers that share a place.
    """
    apart = all(step for step, n in zip(x.stride(), x.shape, strict=True) if n > 1)
    if [*x.shape] != [*shape] or x.dtype not in kinds or x.device != like.device:
        wanted = f"{[*shape]} in {' or '.join(map(str, kinds))} on {like.device}"
        raise ValueError(f"{what} must be {wanted}, got {[*x.shape]} in {x.dtype} on {x.device}")
    if not (apart and side_by_side(x)):
        raise ValueError(f"{what} must have its last axis side by side, got strides {x.stride()}")
    return x


def output(where: str, o: Tensor | None, like: Tensor) -> Tensor:
    """Where the output goes, which is like the values."""
    if o is None:
        return torch.empty_like(like, memory_format=torch.contiguous_format)
    return writable(f"decode.{where}: the output of out", o, like.shape, KINDS, like)


def state(
    where: str, S: Tensor | None, shape: Sequence[int], slots: Tensor | None, end: Tensor | None,
    like: Tensor,
) -> tuple[Tensor | None, Tensor]:  # fmt: skip
    """Where the state is read, None for zeros, and where the new one goes.

    Raises:
        ValueError: shapes, types or slots that do not go together.
    """
    where, kinds = f"decode.{where}", (torch.float32,)
    if slots is None:
        if S is not None and [*S.shape] != [*shape]:
            raise ValueError(f"{where}: S must be {[*shape]}, got {[*S.shape]}")
        S = S if S is None else ready(S.float())[0]
        if end is None:
            return S, like.new_empty(shape, dtype=torch.float32)
        return S, writable(f"{where}: the state of out", end, shape, kinds, like)
    if S is None or not (end is None or end is S):
        raise ValueError(f"{where}: slots want a pool S, which is changed in place")
    writable(f"{where}: the pool S", S, (len(S), *shape[1:]), kinds, like)
    writable(f"{where}: slots", slots, shape[:1], (torch.int32, torch.int64), like)
    if slots.device.type == "cpu":  # on a GPU this would wait for the numbers
        given = slots[slots >= 0].tolist()
        if len({*given}) < len(given) or max(given, default=-1) >= len(S):
            raise ValueError(f"{where}: slots must differ and be below {len(S)}, got {given}")
    return S, S


def matrix(
    where: str, q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, S: Tensor | None,
    slots: Tensor | None, out: Out, u: Tensor | None = None, beta: Tensor | None = None,
    a: Tensor | None = None, b: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`matrix_step` for a recurrence, named `where`; the letters are that recurrence's."""
    (B, T, H, K), V = k.shape, v.shape[3]
    fit(where, T, K, V, q=q, k=k, v=v, g=g, u=u, beta=beta, a=a, b=b, S=S)
    o, end = out or (None, None)
    o = output(where, o, v)
    S, end = state(where, S, (B, H, K, V), slots, end, v)
    gate = NONE.value if g is None else CHANNEL.value if g.ndim == 4 else HEAD.value
    if gate == HEAD.value:
        g = g.expand(B, T, H)
    q, k, v, a, b = ready(q, k, v, a, b)
    g = ready(g)[0] if gate == CHANNEL.value else g
    u = u if u is None else u.contiguous()

    def run(config: Config) -> None:
        BV = min(config.tile, triton.next_power_of_2(V))
        numbers = (*strides(q, k, v, g, beta, a, b, S, o, end), T, H, len(end))
        matrix_step[(B * H * triton.cdiv(V, BV),)](
            q, k, v, g, u, beta, a, b, S, o, end, slots, *numbers,
            K=K, V=V, GATE=gate, BK=padded(K), BV=BV,
            num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip

    if B:
        with torch.cuda.device_of(v):
            pick(MATRIX, K, end, (matrix_step,), run)
    return o, end


@torch.compiler.disable
def scalar_decay(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, S: Tensor | None = None, *,
    slots: Tensor | None = None, out: Out = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The recurrence scalar_decay for a few tokens.

    Args:
        q: [B, T, H, K], T from 1 to 16, K at most 256; not scaled. Any strides, as for all inputs;
            channels that do not lie side by side are copied.
        k: [B, T, H, K].
        v: [B, T, H, V], V at most 256.
        g: log gates <= 0: [B, T, H], [H] for fixed ones, None for none.
        S: [B, H, K, V], None for zeros; with slots a pool [slots, H, K, V] in float32.
        slots: [B], see above.
        out: (o, new state), see above.

    Returns:
        o [B, T, H, V] in the type of v, and the new state in float32, or the pool.

    Raises:
        Unsupported: float64, more tokens or channels, gradients, a device without kernels.
        ValueError: slots or out that do not fit.
    """
    return matrix("scalar_decay", q, k, v, g, S, slots, out)


@torch.compiler.disable
def vector_decay(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, S: Tensor | None = None, *,
    u: Tensor | None = None, slots: Tensor | None = None, out: Out = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The recurrence vector_decay for a few tokens; as `scalar_decay` but for these.

    Args:
        q: [B, T, H, K].
        k: [B, T, H, K].
        v: [B, T, H, V].
        g: log gates <= 0 [B, T, H, K].
        S: [B, H, K, V], or a pool.
        u: the bonus [H, K]: a token is read before its gate and its writing, and weighs u itself.
        slots: [B].
        out: (o, new state).
    """
    return matrix("vector_decay", q, k, v, g, S, slots, out, u=u)


@torch.compiler.disable
def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor | None = None,
    S: Tensor | None = None, *, slots: Tensor | None = None, out: Out = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The recurrence delta_rule for a few tokens; as `scalar_decay` but for these.

    Args:
        q: [B, T, H, K].
        k: [B, T, H, K].
        v: [B, T, H, V].
        beta: [B, T, H].
        g: log gates <= 0: [B, T, H, K], [B, T, H], None for none.
        S: [B, H, K, V], or a pool.
        slots: [B].
        out: (o, new state).
    """
    return matrix("delta_rule", q, k, v, g, S, slots, out, beta=beta)


@torch.compiler.disable
def rank_one(
    q: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, S: Tensor | None = None, *,
    slots: Tensor | None = None, out: Out = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The recurrence rank_one for a few tokens; as `scalar_decay` but for these.

    Args:
        q: [B, T, H, K].
        w: log gates <= 0 [B, T, H, K].
        k: [B, T, H, K].
        v: [B, T, H, V].
        a: [B, T, H, K].
        b: [B, T, H, K].
        S: [B, H, K, V], or a pool.
        slots: [B].
        out: (o, new state).
    """
    return matrix("rank_one", q, k, v, w, S, slots, out, a=a, b=b)


@torch.compiler.disable
def diagonal_scan(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, S: Tensor | None = None, *,
    D: Tensor | None = None, slots: Tensor | None = None, out: Out = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The recurrence diagonal_scan for a few tokens; as `scalar_decay` but for these.

    Args:
        u: [B, T, D].
        dt: [B, T, D].
        A: [D, N], real and <= 0, N at most 256.
        B: [B, T, N].
        C: [B, T, N].
        S: [B, D, N], or a pool [slots, D, N].
        D: Mamba's skip [D]: then u is its x, what is written is dt x, and D x joins the output.
        slots: [B].
        out: (y, new state).

    Returns:
        y [B, T, D] in the type of u, and the new state in float32, or the pool.
    """
    (batch, T, width), N = u.shape, A.shape[1]
    fit("diagonal_scan", T, N, 1, u=u, dt=dt, A=A, B=B, C=C, D=D, S=S)
    y, end = out or (None, None)
    y = output("diagonal_scan", y, u)
    S, end = state("diagonal_scan", S, (batch, width, N), slots, end, u)
    u, dt, B, C = ready(u, dt, B, C)
    A, D = A.contiguous(), D if D is None else D.contiguous()

    def run(config: Config) -> None:
        apart = [n for x in (u, dt, B, C, S, y, end) for n in two(x)]
        diagonal_step[(batch * triton.cdiv(width, config.tile),)](
            u, dt, A, B, C, D, S, y, end, slots, *apart, T, width, len(end),
            N=N, BD=config.tile, BN=padded(N), num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip

    if batch:
        with torch.cuda.device_of(u):
            pick(DIAGONAL, N, end, (diagonal_step,), run)
    return y, end


@torch.compiler.disable
def rwkv4(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, S: tuple[Tensor, Tensor, Tensor], *,
    slots: Tensor | None = None, out: Out = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:  # fmt: skip
    """RWKV-4 for a few tokens; as `scalar_decay` but for these.

    Args:
        w: log decay <= 0 [D].
        u: the bonus [D].
        k: [B, T, D].
        v: [B, T, D].
        S: (num, den, max), [B, D] each, or pools [slots, D].
        slots: [B].
        out: (o, (num, den, max)).

    Returns:
        o [B, T, D] in the type of v, and (num, den, max) in float32, or the pools.
    """
    B, T, D = v.shape
    fit("rwkv4", T, 1, 1, w=w, u=u, k=k, v=v, num=S[0], den=S[1], max=S[2])
    o, ends = out or (None, None)
    o = output("rwkv4", o, v)
    pairs = zip(S, ends or (None,) * 3, strict=True)
    S, ends = zip(*(state("rwkv4", x, (B, D), slots, end, v) for x, end in pairs), strict=True)
    k, v = ready(k, v)
    w, u = w.contiguous(), u.contiguous()

    def run(config: Config) -> None:
        apart = [*two(k), *two(v), *(x.stride(0) for x in S), *two(o), *(x.stride(0) for x in ends)]
        average_step[(B * triton.cdiv(D, config.tile),)](
            w, u, k, v, *S, o, *ends, slots, *apart, T, D, len(ends[0]),
            BD=config.tile, num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip

    if B:
        with torch.cuda.device_of(v):
            pick(AVERAGE, 1, ends[0], (average_step,), run)
    return o, ends


def two(x: Tensor | None) -> tuple[int, ...]:
    """The strides over the first two axes."""
    return (0, 0) if x is None else x.stride()[:2]
