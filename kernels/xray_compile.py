"""The part of the X-ray that compiles; it runs in a process of its own, see xray.

    wrapper -> launches, recorded instead of run -> jobs -> compiled -> rows, a line of JSON each

The wrappers run on tensors without numbers (PyTorch's meta device). So what is compiled is what
they launch: the same types, the same None, the same strides that are multiples of 16.
"""

import contextlib
import functools
import inspect
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import product
from math import prod
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from linviz.kernels import (
    decode,
    delta_rule,
    diagonal_scan,
    launch,
    rwkv7,
    scalar_decay,
    vector_decay,
    wkv4,
)
from linviz.kernels.launch import Config
from linviz.kernels.xray import MACHINES, SHAPES, Shape, instructions, products, tokens, usage

KINDS = {16: torch.bfloat16, 32: torch.float32}
TYPES = {torch.bfloat16: "bf16", torch.float32: "fp32"}
POINTERS = TYPES | {torch.int64: "i64"}
JOINED = (128, torch.bfloat16)  # what `join` is compiled beside, as it has no configurations


# Launches that are compiled: so long that the states of two segments weigh little; and a step.
LONG = Shape(2, 65536, 16, 0, 0)
STEP = Shape(64, 1, 32, 0, 0)


class Recurrence(NamedTuple):
    """How a wrapper is called.

    Attributes:
        module: has `chunked`, the wrapper.
        variants: name -> the axes of the inputs beside q, k and v.
        shapes: first letters of the canonical shapes that it is measured at.
        size: of the launch that is compiled, without channels.
    """

    module: ModuleType
    variants: dict[str, dict[str, str]]
    shapes: str
    size: Shape = LONG


QKV = {"q": "BTHK", "k": "BTHK", "v": "BTHV", "S": "BHKV"}
STEPS = {  # function of decode -> the axes of all of its inputs; D is wide
    "scalar_decay": QKV | {"g": "BTH"},
    "vector_decay": QKV | {"g": "BTHK", "u": "HK"},
    "delta_rule": QKV | {"g": "BTHK", "beta": "BTH"},
    "rank_one": QKV | dict.fromkeys("wab", "BTHK"),
    "diagonal_scan": dict(u="BTD", dt="BTD", A="DK", B="BTK", C="BTK", D="D", S="BDK"),
    "rwkv4": {"w": "D", "u": "D", "k": "BTD", "v": "BTD", "S": "BD"},
}
SCANS = {  # variant of diagonal_scan -> the axes of its inputs; P is complex, two numbers of K
    "fixed": {"u": "BTD", "a": "DP", "b": "DP", "C": "DP"},
    "chunked": {"u": "BTD", "dt": "BTD", "A": "DK", "B": "BTK", "C": "BTK", "D": "D"},
}
SCANS["fused"] = SCANS["chunked"] | {"z": "BTD"}  # chunked with a softplus and a gate
RANK_ONE = dict.fromkeys("qwkab", "BTHK") | {"v": "BTHV"}
RECURRENCES = {
    "scalar_decay": Recurrence(
        scalar_decay, {"none": {}, "fixed": {"g": "H"}, "data": {"g": "BTH"}}, "S"
    ),
    "vector_decay": Recurrence(
        vector_decay, {"plain": {"g": "BTHK"}, "bonus": {"g": "BTHK", "u": "HK"}}, "SR"
    ),
    "delta_rule": Recurrence(
        delta_rule,
        {
            "none": {"beta": "BTH"},
            "scalar": {"beta": "BTH", "g": "BTH"},
            "vector": {"beta": "BTH", "g": "BTHK"},
        },
        "S",
    ),
    "diagonal_scan": Recurrence(diagonal_scan, SCANS, "M"),
    "rank_one": Recurrence(rwkv7, {"plain": RANK_ONE}, "R"),
    "wkv4": Recurrence(wkv4, {"plain": {"w": "D", "u": "D", "k": "BTD", "v": "BTD"}}, "R"),
    "decode": Recurrence(decode, STEPS, "D", STEP),
}


# -------------------------------------------------------------------------------- what is launched


class Launch(NamedTuple):
    """A kernel with its arguments, as a wrapper launched it.

    Attributes:
        kernel: its name.
        role: what it is launched for.
        config: the configuration; None where there is no choice.
        place: of the configuration among those of the kernel.
        arguments: by name.
        options: warps and stages.
    """

    kernel: str
    role: str
    config: Config | None
    place: int
    arguments: dict[str, Any]
    options: dict[str, int]

    @property
    def traffic(self) -> int:
        """Bytes of its tensors, each number once however often it is repeated."""
        held = [x for x in self.arguments.values() if isinstance(x, Tensor)]
        return sum(
            x.itemsize * prod(n for n, step in zip(x.shape, x.stride(), strict=True) if step)
            for x in held
        )


class Recorder:
    """Stands in the place of a kernel, and notes how it is launched."""

    def __init__(self, name: str, kernel: triton.JITFunction, note: Callable):
        """`note` gets the name, the arguments by name, and the options."""
        self.name, self.kernel, self.note = name, kernel, note

    def __getitem__(self, grid: tuple[int, ...]) -> Callable:
        def record(*given: Any, **options: Any) -> None:
            names = self.kernel.arg_names
            arguments = dict(zip(names, given, strict=False))
            arguments |= {name: options.pop(name) for name in names if name in options}
            self.note(self.name, arguments, options)

        return record


# What a sweep is for: does it walk backward in time, and does it hand on the state at the end?
ROLES = {
    (False, True): "forward",
    (False, False): "dq",
    (True, False): "dk",
    (True, True): "dv",
}


def purpose(arguments: dict[str, Any]) -> str:
    """What a kernel is launched for, by its arguments."""
    if "REVERSE" not in arguments:
        if arguments.get("E_qb") is not None:  # what only the way back needs
            return "back"
        outputs = [arguments[x] for x in ("o", "dk") if x in arguments]
        return "states" if outputs == [None] else "any"
    if "o" not in arguments:  # no outputs: only states
        return "backward" if arguments["REVERSE"] else "forward"
    return ROLES[arguments["REVERSE"], arguments.get("end") is not None]


@functools.cache
def launches(
    name: str,
    variant: str,
    config: Config,
    kind: torch.dtype,
    shape: Shape,
    target: int,
    segments: int | None,
) -> list[Launch]:
    """What an output and its gradients launch, with `config` where its kernels come up.

    Args:
        name: of the recurrence.
        variant: of the recurrence.
        config: one of the recurrence's.
        kind: the type of q, k and v.
        shape: sizes of the inputs.
        target: compute capability.
        segments: how many; None leaves it to the wrapper, on the target's chip.
    """
    module, variants, *_ = RECURRENCES[name]
    found, current = [], []

    def note(kernel: str, arguments: dict, options: dict) -> None:
        alone = {"join": ((None,), None), "ends": ((launch.ENDS,), launch.ENDS)}  # no choice
        configs, chosen = alone[kernel] if kernel in alone else current[-1]
        place = configs.index(chosen)
        found.append(Launch(kernel, purpose(arguments), chosen, place, arguments, options))

    def pick(configs: Sequence[Config], channels: int, x: Tensor, key: tuple, run: Callable) -> Any:
        def noted(chosen: Config) -> Any:
            current.append((configs, chosen))
            result = run(chosen)
            current.pop()
            return result

        ours = [config] if config in configs else configs
        return launch.pick(ours, channels, x, key, noted)

    kernels = {
        kernel: Recorder(kernel, x, note)
        for kernel, x in vars(module).items()
        if isinstance(x, triton.JITFunction)
    }
    chip = MACHINES[target].processors
    there = {"target": lambda device: target, "processors": lambda device: chip}
    there["join"] = Recorder("join", launch.join, note)
    here = kernels | {"pick": pick, "check": lambda *_, **__: None}
    with mock.patch.dict(vars(module), here), mock.patch.dict(vars(launch), there):
        if module is decode:
            step(getattr(decode, variant), variants[variant], kind, shape)
        elif module in (diagonal_scan, rwkv7, wkv4):
            function = getattr(module, variant, module.chunked)
            differentiate_all(function, variants[variant], kind, shape, segments)
        else:
            differentiate(module.chunked, variants[variant], kind, shape, segments)
    return found


def kernel_of(module: ModuleType, name: str) -> triton.JITFunction:
    """A kernel that a module launches: its own, or the one that all share."""
    return getattr(module, name, None) or getattr(launch, name)


def differentiate(
    chunked: Callable, axes: dict[str, str], kind: torch.dtype, shape: Shape, segments: int | None
) -> None:
    """Run a wrapper on tensors without numbers, forward and backward."""

    def empty(letters: str, kind: torch.dtype) -> Tensor:
        sizes = [getattr(shape, letter) for letter in letters]
        return torch.empty(sizes, dtype=kind, device="meta", requires_grad=True)

    inputs = {name: empty("BTHV" if name == "v" else "BTHK", kind) for name in "qkv"}
    inputs |= {name: empty(letters, torch.float32) for name, letters in axes.items()}
    takes = inspect.signature(chunked).parameters
    more = {"segments": segments} if "segments" in takes else {}
    results = chunked(**{"g": None} | inputs, **more)
    torch.autograd.grad(results, list(inputs.values()), [torch.empty_like(x) for x in results])


def differentiate_all(
    function: Callable, axes: dict[str, str], kind: torch.dtype, shape: Shape, segments: int | None
) -> None:
    """The same, with the axes of all inputs; what has a time has the type `kind`, but dt and w."""
    sizes = shape._asdict() | {"D": shape.H * shape.V, "P": shape.K // 2}

    def empty(name: str, letters: str) -> Tensor:
        its = kind if "T" in letters and name not in ("dt", "w") else torch.float32
        its = torch.complex64 if "P" in letters else its
        size = [sizes[letter] for letter in letters]
        return torch.empty(size, dtype=its, device="meta", requires_grad=True)

    inputs = {name: empty(name, letters) for name, letters in axes.items()}
    takes = inspect.signature(function).parameters
    more = {"segments": segments} if "segments" in takes else {}
    o, S = function(**inputs, **more | ({"softplus": True} if "z" in axes else {}))
    results = [o, *([S] if isinstance(S, Tensor) else S[:2])]  # RWKV-4's exponent has no gradient
    torch.autograd.grad(results, list(inputs.values()), [torch.empty_like(x) for x in results])


def step(function: Callable, axes: dict[str, str], kind: torch.dtype, shape: Shape) -> None:
    """Run a function of decode on tensors without numbers, states of RWKV-4 in three parts."""
    sizes = shape._asdict() | {"D": 4096}

    def empty(letters: str, kind: torch.dtype = kind) -> Tensor:
        return torch.empty([sizes[x] for x in letters], dtype=kind, device="meta")

    inputs = {name: empty(letters) for name, letters in axes.items()}
    if axes["S"] == "BD":
        inputs["S"] = (inputs["S"],) * 3
    function(**inputs, slots=empty("B", torch.int64))


# ------------------------------------------------------------------------------ what is compiled


class Job(NamedTuple):
    """A launch to be compiled, and what its row says of it.

    Attributes:
        recurrence: its name.
        launch: the first of those that are compiled to the same.
        variants: of all of them.
        traced: the configuration that the wrapper ran with.
        kind: of q, k and v.
        target: compute capability.
    """

    recurrence: str
    launch: Launch
    variants: list[str]
    traced: Config
    kind: torch.dtype
    target: int

    @property
    def labels(self) -> dict[str, Any]:
        """What tells it from others, as in Row."""
        return {
            "kernel": f"{self.recurrence}.{self.launch.kernel}",
            "role": self.launch.role,
            "variant": self.variants[0] if len(self.variants) == 1 else "any",
            "kind": TYPES[self.kind],
            "target": self.target,
            "config": self.launch.place,
        }

    def answers(self, option: str) -> set[Any]:
        """The values of an option of `xray` that choose it."""
        label = self.labels.get(option)
        names = {self.recurrence, self.launch.kernel, self.labels["kernel"]}
        return {"name": names, "variant": {*self.variants, label}}.get(option, {label})


@functools.cache
def jobs() -> list[Job]:
    """All that there is to compile: each configuration at its widest, for each of its targets."""
    found: dict[tuple, Job] = {}
    for name, (module, variants, _, size) in RECURRENCES.items():
        for (config, kind), variant in product(configurations(module), variants):
            shape = size._replace(K=config.most, V=config.most)
            for target in config.targets:
                for each in launches(name, variant, config, kind, shape, target, 2):
                    joined = each.config is None and (config.most, kind) == JOINED
                    if each.config != config and not joined:
                        continue  # another configuration's turn
                    what = specialized(kernel_of(module, each.kernel), each.arguments)
                    key = (name, each.kernel, target, repr(what), *each.options.items())
                    job = found.setdefault(key, Job(name, each, [], config, kind, target))
                    job.variants.extend({variant} - {*job.variants})
    return sorted(found.values(), key=lambda job: job.labels["kernel"])


def configurations(module: ModuleType) -> list[tuple[Config, torch.dtype]]:
    """The configurations of a module with their types; one that stands alone serves all types."""
    found = []
    for x in vars(module).values():
        if isinstance(x, Config):
            found += [(x, kind) for kind in TYPES]
        elif isinstance(x, tuple) and all(isinstance(each, Config) for each in x):
            found += [(each, KINDS[each.bits]) for each in x]
    return list(dict.fromkeys(found))


def specialized(kernel: triton.JITFunction, arguments: dict[str, Any]) -> dict[str, dict]:
    """What a launch compiles a kernel for: types, constants, multiples of 16, as Triton has it."""
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        x = arguments[parameter.name]
        if parameter.is_constexpr or x is None or (isinstance(x, int) and x == 1):
            signature[parameter.name], constants[(i,)] = "constexpr", x
        else:
            whole = "i32" if isinstance(x, int) and x < 2**31 else "i64"
            signature[parameter.name] = f"*{POINTERS[x.dtype]}" if isinstance(x, Tensor) else whole
            if isinstance(x, Tensor) or x % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
    return {"signature": signature, "constexprs": constants, "attrs": attributes}


def compiled(job: Job, text: str | None = None) -> dict[str, Any]:
    """The row of a job, see Row; an error of the compiler is part of it."""
    module = RECURRENCES[job.recurrence].module
    kernel, arguments = kernel_of(module, job.launch.kernel), job.launch.arguments
    about = job.labels | {"settings": settings(job.launch)}
    source = ASTSource(fn=kernel, **specialized(kernel, arguments))
    target = GPUTarget("cuda", job.target, 32)
    try:
        made = triton.compile(source, target=target, options=job.launch.options)
    except Exception as error:  # whatever Triton raises, it is about this kernel
        return about | {"error": f"{type(error).__name__}: {error}"}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    about |= usage(told) | instructions(made.asm["ptx"])
    about |= {"warps": made.metadata.num_warps, "shared": made.metadata.shared}
    about |= {"columns": made.metadata.tmem_size, "text": made.asm[text] if text else ""}
    tiles = prod(-(-arguments[x] // arguments[f"B{x}"]) for x in "KV" if x in arguments)
    chunk = arguments.get("C", 1)  # in a diagonal recurrence it is how the state is read
    chunk = 1 if isinstance(chunk, Tensor) else chunk
    about["flops"] = tiles * products(made.asm["ttir"]) / chunk
    about["bytes"] = job.launch.traffic / tokens(RECURRENCES[job.recurrence].size)
    return about | {"traffic": traffic(job)}


def settings(launched: Launch) -> str:
    """The tile, warps and stages of a launch, in short."""
    x, options = launched.arguments, launched.options
    if "BD" in x:  # a state that is no matrix
        words = [f"{x.get('BN', 1)}x{x['BD']}"]
    else:
        words = [f"{x.get('C', x['BK'])}x{x.get('BV', x['BK'])}"]
    words += [f"w{options['num_warps']}", f"s{options['num_stages']}"] if options else []
    return " ".join([*words, f"K{x.get('K', x.get('N', 1))}"])


def traffic(job: Job) -> dict[str, int]:
    """Bytes of such a launch at each canonical shape where the wrapper makes it."""
    found = {}
    for name, shape in SHAPES.items():
        fits = shape.K == shape.V == job.traced.most
        fits = fits and (job.kind == torch.bfloat16 or job.recurrence == "decode")
        if fits and name[0] in RECURRENCES[job.recurrence].shapes:
            where = (job.traced, job.kind, shape, job.target, None)
            for each in launches(job.recurrence, job.variants[0], *where):
                if (each.kernel, each.role) == (job.launch.kernel, job.launch.role):
                    found[name] = each.traffic
    return found


# -------------------------------------------------------------------------------------- the process


def select(every: Sequence[Job], wanted: dict[str, Any]) -> list[Job]:
    """The jobs that answer to all options of `xray`.

    Raises:
        ValueError: there is none, or several where one is wanted.
    """
    found = list(every)
    options = {option: x for option, x in wanted.items() if option != "text" and x is not None}
    for option, x in options.items():
        known = sorted({str(y) for job in found for y in job.answers(option)})
        found = [job for job in found if x in job.answers(option)]
        if not found:
            raise ValueError(f"{option}: wanted one of {', '.join(known)}, got {x}")
    if wanted.get("text") and len(found) > 1:
        labels = [job.labels for job in found]
        kinds = {option: sorted({str(x[option]) for x in labels}) for option in labels[0]}
        left = [f"{name} ({', '.join(x)})" for name, x in kinds.items() if len(x) > 1]
        raise ValueError(f"text: wanted one row, got {len(found)}; narrow {', '.join(left)}")
    return found


def row(wanted: dict[str, Any], place: int) -> dict[str, Any]:
    """The row of the selected job at a place; in a worker, which has inherited the jobs."""
    return compiled(select(jobs(), wanted)[place], wanted["text"])


def main() -> None:
    """Answer one question, see `xray.answer`."""
    wanted = json.loads(sys.argv[1])
    say = functools.partial(print, file=sys.stdout, flush=True)
    with contextlib.redirect_stdout(sys.stderr):  # what the compiler prints is no answer
        try:
            found = select(jobs(), wanted)
        except ValueError as error:
            say(json.dumps({"refused": str(error)}))
            return
        say(json.dumps({"total": len(found)}))
        workers = len(os.sched_getaffinity(0))
        with multiprocessing.get_context("fork").Pool(workers) as pool:
            for done in pool.imap(functools.partial(row, wanted), range(len(found))):
                say(json.dumps(done))


if __name__ == "__main__":
    main()
