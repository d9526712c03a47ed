"""What all kernels share: where a program stands in the sequence, and how it gets there.

A kernel walks through time in chunks and keeps the whole state of a head on chip. One program owns
one tile of channels of one head, and the whole sequence; where batch x heads x tiles are too few to
fill the chip, the sequence is cut into segments of L tokens, and a program owns one:

    one segment      sweep                      every tensor is read once
    more             ends -> join -> sweep      what is written into the state is read twice
                      |       |       '- outputs, each segment from the state that enters it
                      |       '- the states that enter: S <- total S + end, segment by segment
                      '- what each segment leaves behind, from an empty state

Walking backward in time (REVERSE) turns the same kernel into a gradient. Names: `i_` an index of
the program, `o_` offsets, `m_` a mask, `b_` a block of values; x_b, x_t, x_h are the strides of x.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)  # e^x = 2^(x log2 e): exp2 is an instruction
KINDS = (torch.float32, torch.float16, torch.bfloat16)
CHANNELS = 256  # key channels, and value channels, that fit on chip
KEEP = 384  # tokens between two states that are kept for the gradient of gates; whole chunks
SEGMENT = 1024  # tokens that a segment has at least: shorter, and its states outweigh its tokens


# ------------------------------------------------------------------------------- in every kernel


@triton.jit
def stand(T, H, L, TILES: tl.constexpr, REVERSE: tl.constexpr):
    """Where a program stands: channel tile, sequence, head, segment, its lowest row, its length."""
    n_segments = tl.cdiv(T, L)
    i_tile = tl.program_id(0) % TILES
    i_rest = tl.program_id(0) // TILES
    i_bh = (i_rest // n_segments).to(tl.int64)
    i_segment = i_rest % n_segments  # in the order of walking; in time the last comes first
    row = (n_segments - 1 - i_segment) * L if REVERSE else i_segment * L
    return i_tile, i_bh // H, i_bh % H, i_segment, row.to(tl.int64), tl.minimum(T - row, L)


@triton.jit
def walk(o_t, n, C: tl.constexpr, REVERSE: tl.constexpr):
    """The rows of a segment's tokens in the order of walking, and which of them exist.

    Backward, the chunk that is not full comes first: chunks have the same borders both ways.
    """
    r = tl.cdiv(n, C) * C - 1 - o_t if REVERSE else o_t
    return r, r < n


@triton.jit
def across(o_c, level):
    """Pairs [later, earlier] of the right and the left half of a block of 2 << level tokens."""
    o_h = o_c >> level
    return (o_h[:, None] == o_h[None, :] + 1) & (o_h[:, None] % 2 == 1)


@triton.jit
def join(
    S, ends, total, starts, n_segments,
    K: tl.constexpr, V: tl.constexpr, TOTALS: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """The states `starts` that enter the segments, from S and the `ends` [B, H, N, K, V]."""
    i_bh = tl.program_id(0).to(tl.int64)
    o_k, o_v = tl.program_id(1) * BK + tl.arange(0, BK), tl.program_id(2) * BV + tl.arange(0, BV)
    o_s = o_k[:, None] * V + o_v[None, :]
    m_s = (o_k < K)[:, None] & (o_v < V)[None, :]
    b_S = tl.load(S + i_bh * K * V + o_s, mask=m_s, other=0.0)  # [BK, BV]
    ends += i_bh * n_segments * K * V
    starts += i_bh * n_segments * K * V
    total += i_bh * n_segments * TOTALS
    for _ in range(n_segments):
        tl.store(starts + o_s, b_S, mask=m_s)
        b_end = tl.load(ends + o_s, mask=m_s, other=0.0)  # [BK, BV]
        b_a = tl.load(total + tl.minimum(o_k, TOTALS - 1))  # [BK], or one number for all
        b_S = b_a[:, None] * b_S + b_end
        ends += K * V
        starts += K * V
        total += TOTALS


# ------------------------------------------------------------------------------------ in wrappers


class Unsupported(ValueError):
    """The kernels do not do this; the chunked form does."""


class Config(NamedTuple):
    """A configuration that was picked by hand.

    Attributes:
        chunk: tokens a chunk.
        tile: channels a program owns, of the axis that is cut.
        warps: groups of 32 threads a program.
        stages: chunks that are under way at once, from memory to chip.
        most: channels of the axis that is not cut, at most.
        bits: of a number that comes in.
        targets: the compute capabilities it is for.
        why: what speaks for it.
        block: tokens a block, where a chunk has blocks.
        unroll: steps through a block that are written out one after another.
    """

    chunk: int
    tile: int
    warps: int
    stages: int
    most: int
    bits: int
    targets: tuple[int, ...]
    why: str
    block: int = 1
    unroll: int = 1

    def launch(self) -> dict[str, int]:
        """What a kernel is launched with."""
        return {
            "C": self.chunk,
            "BV": self.tile,
            "num_warps": self.warps,
            "num_stages": self.stages,
        }


ALL = (80, 90, 100)
ENDS = Config(32, 32, 8, 2, 256, 16, ALL, "for `ends`: nothing but the state, so any width fits")


def check(where: str, K: int, V: int, **tensors: Tensor | None) -> None:
    """Refuse what the kernels cannot do, before anything is launched.

    Raises:
        Unsupported: another type than KINDS, too many channels, or a device without kernels.
    """
    for name, x in tensors.items():
        if x is None:
            continue
        if x.dtype not in KINDS:
            kinds = "float32, float16 or bfloat16"
            raise Unsupported(
                f"{where}: {name} must be {kinds}, got {x.dtype}; the chunked form takes every type"
            )
        if not (x.is_cuda or (x.device.type == "cpu" and interpreted())):
            raise Unsupported(
                f"{where}: {name} is on {x.device}, and the kernels are compiled for CUDA here; "
                "the chunked form runs anywhere"
            )
    if max(K, V) > CHANNELS:
        raise Unsupported(
            f"{where}: the state of a head stays on chip, which holds {CHANNELS} key and "
            f"{CHANNELS} value channels, got {K} and {V}; the chunked form takes any number"
        )


def interpreted() -> bool:
    """Whether the kernels run in Triton's interpreter."""
    return not isinstance(stand, triton.runtime.JITFunction)


def kept(k: Tensor, v: Tensor) -> Tensor:
    """Room for the states before times 0, KEEP, 2 KEEP, ..., and for the one at the end.

    In float32: S . dS adds up K V terms of both signs, and half the digits would show.
    """
    (B, T, H, K), V = k.shape, v.shape[3]
    return k.new_empty(B, H, triton.cdiv(T, KEEP) + 1, K, V, dtype=torch.float32)


def joined(S: Tensor, ends: Tensor, total: Tensor) -> Tensor:
    """The states [B, H, N, K, V] that enter the segments; total is [B, H, N] or [B, H, N, K]."""
    (B, H, N, K, V), starts = ends.shape, torch.empty_like(ends)
    totals = 1 if total.ndim == 3 else K
    grid = (B * H, triton.cdiv(K, 32), triton.cdiv(V, 32))
    join[grid](S, ends, total, starts, N, K, V, totals, 32, 32)
    return starts


def ready(*tensors: Tensor) -> list[Tensor]:
    """The tensors in one type, their channels side by side; other strides are fine as they are.

    Triton's interpreter gets products of bfloat16 wrong: there it becomes float32, which holds it.
    Tokens so far apart that 32 bits do not count 2 KEEP of them are brought together too.
    """
    kind = functools.reduce(torch.promote_types, (x.dtype for x in tensors))
    if kind == torch.bfloat16 and interpreted():
        kind = torch.float32
    tensors = [x.to(kind) for x in tensors]
    fine = lambda x: (x.stride(-1) == 1 or x.shape[-1] == 1) and x.stride(1) * KEEP < 2**30
    return [x if fine(x) else x.contiguous() for x in tensors]


def start(S: Tensor | None, k: Tensor, v: Tensor) -> Tensor:
    """The state [B, H, K, V] that a sequence starts from, side by side in float32."""
    (B, _, H, K), V = k.shape, v.shape[3]
    if S is None:
        return k.new_zeros(B, H, K, V, dtype=torch.float32)
    return S.float().contiguous()


def pieces(x: Tensor) -> list[slice]:
    """Slices of the channels of x [B, T, H, K] that one program can hold: all, but in float32."""
    width = 64 if x.dtype == torch.float32 else CHANNELS
    return [slice(n, n + width) for n in range(0, x.shape[3], width)]


def add(parts: Sequence[Tensor | None]) -> Tensor | None:
    """What slices of channels make together; None where there is nothing."""
    return None if parts[0] is None else sum(parts[1:], parts[0])


def strides(*tensors: Tensor | None) -> list[int]:
    """The strides over batch, time and heads of each tensor, in a row."""
    return [s for x in tensors for s in ((0, 0, 0) if x is None else x.stride()[:3])]


def padded(n: int) -> int:
    """The power of two, 16 at least, that holds n channels."""
    return max(16, triton.next_power_of_2(n))


def segment_length(T: int, programs: int, tensors: Sequence[Tensor], segments: int | None) -> int:
    """Tokens a segment, a multiple of KEEP: all if the programs fill the chip, else a part.

    Args:
        T: tokens.
        programs: how many programs one segment makes.
        tensors: those that are read: offsets inside a segment are numbers of 32 bits.
        segments: so many instead.
    """
    if segments is None:
        wanted = 2 * processors(tensors[0].device) // max(programs, 1)
        segments = max(1, min(wanted, T // SEGMENT))
    reach = 2**31 // max(max(x.stride(1), x.shape[2] * x.shape[3]) for x in tensors)
    length = min(triton.cdiv(T, segments), reach - KEEP)
    return triton.cdiv(length, KEEP) * KEEP


@functools.cache
def processors(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; the interpreter has none to fill."""
    if device.type != "cuda":
        return 0
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def target(device: torch.device) -> int:
    """The target of a device whose configurations suit it: 80, 90 or 100."""
    major = torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 9
    return {9: 90, 10: 100}.get(major, 80)


def narrowest(configs: Sequence[Config], channels: int, bits: int, target: int) -> list[Config]:
    """The configurations for so many channels that are not cut, the likeliest first."""
    fit = [c for c in configs if channels <= c.most and bits == c.bits and target in c.targets]
    return [c for c in fit if c.most == min(c.most for c in fit)]


def fitting(configs: Sequence[Config], channels: int, x: Tensor) -> list[Config]:
    """Those for the type and the device of x."""
    return narrowest(configs, channels, 8 * x.dtype.itemsize, target(x.device))


CHOSEN: dict[tuple, Config] = {}


def pick(configs: Sequence[Config], channels: int, x: Tensor, key: tuple, run: Callable) -> Any:
    """Run with the configuration that was fastest when this key was first met; T is not in it."""
    fit = fitting(configs, channels, x)
    key = (key, x.dtype, x.device)
    if len(fit) > 1 and key not in CHOSEN and x.is_cuda:
        if torch.cuda.is_current_stream_capturing():
            return run(fit[0])  # nothing can be timed now
        CHOSEN[key] = min(fit, key=lambda config: seconds(lambda: run(config)))
    return run(CHOSEN.get(key, fit[0]))


def seconds(run: Callable) -> float:
    """How long a run takes; forever where the chip has too little of something."""
    try:
        return triton.testing.do_bench(run, warmup=5, rep=20, return_mode="median")
    except triton.runtime.errors.OutOfResources:
        return torch.inf
