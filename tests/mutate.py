"""Plant faults in a copy of the library, one at a time: each must fail a test.

Run it with `make mutate` or `python tests/mutate.py [NAME ...]`.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

ROOT = Path(__file__).parents[1]
TESTS = ("tests/test_definitions.py", "tests/test_contract.py")
KERNELS = ("tests/test_kernels.py",)
LAYERS = ("tests/test_layers.py", "tests/test_hub.py")
LAX = ("--nbval-lax", "--nbval-current-env", "-o", "addopts=")


class Fault(NamedTuple):
    """What is planted: in `file`, `old` becomes `new`; one of `tests` must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = TESTS


def chapter(number: str, file: str, old: str, new: str) -> Fault:
    """A fault that a chapter must notice, by one of its assertions."""
    (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    return Fault(f"chapter {number}", file, old, new, (f"notebooks/{path.name}",))


FAULTS = [
    Fault(
        "decay off by one",
        "recurrences/exponents.py",
        ".tril(-1).cumsum(-2)",
        ".tril().cumsum(-2)",
    ),
    Fault(
        "mask lets a reader see its own token",
        "recurrences/exponents.py",
        "[torch.zeros_like(x) for x in row] if early else row",
        "row",
    ),
    Fault(
        "writer fades through the wrong half",
        "recurrences/exponents.py",
        "torch.stack([right.exp(), one], -3)",
        "torch.stack([left.exp(), one], -3)",
    ),
    Fault(
        "beta dropped from the triangular system",
        "recurrences/delta_rule.py",
        "beta * E_kk.tril(-1)",
        "E_kk.tril(-1)",
    ),
    Fault(
        "erase before decay",
        "recurrences/delta_rule.py",
        "    S = g.exp()[..., None] * S\n    e = v - (k[..., None, :] @ S).squeeze(-2)  # (3)\n",
        "    e = v - (k[..., None, :] @ S).squeeze(-2)  # (3)\n    S = g.exp()[..., None] * S\n",
    ),
    Fault(
        "state not passed to the next chunk",
        "recurrences/matrix_state.py",
        "        S = carry(M_n, S, N_n)",
        "        S = carry(M_n, 0 * S, N_n)",
    ),
    Fault(
        "chunk starts from the state at its end",
        "recurrences/diagonal_scan.py",
        "        entering.append(h)\n        h = torch.addcmul(left_n, total_n, h)",
        "        h = torch.addcmul(left_n, total_n, h)\n        entering.append(h)",
    ),
    Fault(
        "steps of the scan joined in the wrong order",
        "recurrences/diagonal_scan.py",
        "torch.addcmul(b_then, a_then, b)",
        "torch.addcmul(b, a, b_then)",
    ),
    Fault(
        "lookup after the decay",
        "recurrences/rank_one.py",
        "y = a[..., None, :] @ S  #",
        "y = a[..., None, :] @ (w.exp()[..., None] * S)  #",
    ),
    Fault(
        "bonus forgotten in the output",
        "mechanisms/rwkv4.py",
        "torch.ones_like(v), u + k)",
        "torch.ones_like(v), k)",
    ),
    Fault("skip dropped", "mechanisms/mamba.py", "return y + D * x, h", "return y, h"),
    Fault(
        "echo of the state one step early",
        "recurrences/convolution.py",
        'read("tdn,bdn->btd", power[1:] * C, h)',
        'read("tdn,bdn->btd", power[:-1] * C, h)',
    ),
    Fault(
        "input gate and forget gate exchanged",
        "mechanisms/lstm.py",
        "f.sigmoid() * c + i.sigmoid() * new.tanh()",
        "i.sigmoid() * c + f.sigmoid() * new.tanh()",
    ),
    Fault("wrong rates of the heads", "mechanisms/retnet.py", "2.0 ** (-5 -", "2.0 ** (-4 -"),
    Fault(
        "normaliser starts anew",
        "mechanisms/linear_attention.py",
        "torch.cat([S[0], S[1][..., None]], -1)",
        "torch.cat([S[0], 0 * S[1][..., None]], -1)",
    ),
    Fault(
        "half precision inside",
        "mechanism.py",
        "torch.promote_types, kinds, torch.float32)",
        "torch.promote_types, kinds, torch.float16)",
    ),
    Fault(
        "fold forgets the state", "mechanism.py", "S=S, **bound.kwargs)", "S=None, **bound.kwargs)"
    ),
    Fault(
        "kernel: readers see what is written after them",
        "kernels/scalar_decay.py",
        "later = o_c[None, :] > o_c[:, None]",
        "later = o_c[None, :] < o_c[:, None]",
        KERNELS,
    ),
    Fault(
        "kernel: segments are joined without decay",
        "kernels/launch.py",
        "b_S = b_a[:, None] * b_S + b_end",
        "b_S = b_S + b_end",
        KERNELS,
    ),
    Fault(
        "kernel: writers do not fade where blocks merge",
        "kernels/vector_decay.py",
        "b_write *= tl.where(on_right, 1.0, b_other)[:, None, :]",
        "b_write *= 1.0",
        KERNELS,
    ),
    Fault(
        "kernel: gradient of gates without what is read later",
        "kernels/scalar_decay.py",
        "cumsum(2).flip(2) + after)",
        "cumsum(2).flip(2))",
        KERNELS,
    ),
    Fault(
        "layer: short convolution forgets the oldest token",
        "layers/parts.py",
        "past = seen[:, seen.shape[1] - width + 1 :]",
        "past = torch.cat([0 * seen[:, :1], seen[:, seen.shape[1] - width + 2 :]], 1)",
        LAYERS,
    ),
    Fault(
        "layer: cached tokens are not counted in the rotation",
        "layers/softmax.py",
        'seen = 0 if state is None else state["k_cache"].shape[1]',
        "seen = 0",
        LAYERS,
    ),
    Fault(
        "layer: the norm's offset is dropped",
        "layers/parts.py",
        "self.weight + self.offset",
        "self.weight",
        LAYERS,
    ),
    Fault(
        "model: top-p keeps one token too few",
        "models/lm.py",
        "p.cumsum(-1) - p >= top_p",
        "p.cumsum(-1) >= top_p",
        ("tests/test_lm.py",),
    ),
    Fault(
        "hub: query and key of Qwen3-Next exchanged",
        "models/families.py",
        "q.linear.weight k.linear.weight v.linear.weight gate.weight",
        "k.linear.weight q.linear.weight v.linear.weight gate.weight",
        ("tests/test_hub.py",),
    ),
    Fault(
        "trace: goes on one step before the state that was kept",
        "tracing.py",
        "return self.at[i] + 1, tuple(",
        "return self.at[i], tuple(",
        ("tests/test_tracing.py",),
    ),
    Fault(
        "tasks: a query asks for the next key's value",
        "tasks/recall.py",
        "scatter_(1, queries, values)",
        "scatter_(1, queries, values.roll(1, 1))",
        ("tests/test_tasks.py",),
    ),
    Fault("log gates above zero let in", "inputs.py", "(x < low) | (x > high)", "(x < low)"),
    Fault(
        "a cell reads with the key",
        "mechanisms/gla.py",
        '"S", ("q",), 2',
        '"S", ("k",), 2',
        ("tests/test_moves.py",),
    ),
    Fault(
        "effective rank of squared singular values",
        "viz/memory.py",
        "total = sigma.sum(-1, keepdims=True)",
        "sigma = sigma**2; total = sigma.sum(-1, keepdims=True)",
        ("tests/test_viz_states.py",),
    ),
    Fault(
        "sparsity looks above the diagonal",
        "viz/sparsity.py",
        "rank = np.arange(1, p.shape[-1] + 1) - (p.shape[-1] - n[:, None])",
        "rank = np.arange(1, p.shape[-1] + 1)",
        ("tests/test_viz_sparsity.py",),
    ),
    Fault(
        "colours off by one level",
        "viz/moving.py",
        "np.rint(share.clip(0, 1) * (LEVELS - 1))",
        "np.rint(share.clip(0, 1) * LEVELS - 1).clip(0)",
        ("tests/test_scrubber.py",),
    ),
    Fault(
        "the slider shows the frame before",
        "viz/scrubber.js",
        "t = Math.max(0, Math.min(last, next));",
        "t = Math.max(0, Math.min(last, next) - 1);",
        ("tests/test_browser.py",),
    ),
    chapter(
        "00",
        "recurrences/matrix_state.py",
        "        S = carry(M_n, S, N_n)",
        "        S = carry(M_n, 0 * S, N_n)",
    ),
    chapter(
        "01",
        "viz/diagrams.py",
        "return 2 * d - 1 if causal else d",
        "return 2 * d if causal else d + 1",
    ),
    chapter("02", "mechanisms/linear_attention.py", ".flatten(-2) / 2**0.5", ".flatten(-2) / 2"),
    chapter(
        "03",
        "recurrences/delta_rule.py",
        "beta * E_kk.tril(-1)",
        "E_kk.tril(-1)",
    ),
    chapter(
        "04",
        "mechanisms/lstm.py",
        "i, f, o_gate, _ = torch.stack(gates, 1).chunk(4, -1)",
        "f, i, o_gate, _ = torch.stack(gates, 1).chunk(4, -1)",
    ),
    chapter("05", "recurrences/exponents.py", ".tril(-1).cumsum(-2)", ".tril().cumsum(-2)"),
    chapter(
        "06",
        "recurrences/vector_decay.py",
        "torch.addcmul(g.exp()[..., None] * S, column, row)  # (1)",
        "g.exp()[..., None] * torch.addcmul(S, column, row)  # (1)",
    ),
    chapter(
        "07",
        "mechanisms/s4.py",
        "n, M = torch.arange(N, dtype=torch.float64), 2 * N",
        "n, M = torch.arange(N, dtype=torch.float64), N",
    ),
    chapter(
        "08",
        "recurrences/diagonal_scan.py",
        "return a * a_then, torch.addcmul(b_then, a_then, b)",
        "return a * a_then, torch.addcmul(b_then, a, b)",
    ),
    chapter(
        "09",
        "mechanisms/mamba2.py",
        "z[:, :, :, None].expand(-1, -1, -1, heads, -1).flatten(2, 3)",
        "z[:, :, None].expand(-1, -1, heads, -1, -1).flatten(2, 3)",
    ),
    chapter(
        "10",
        "recurrences/vector_decay.py",
        "S_seen = torch.addcmul(old, u[..., None] * column, row)",
        "S_seen = torch.addcmul(S, u[..., None] * column, row)",
    ),
    chapter(
        "11",
        "tasks/tracking.py",
        "labels[:, t] = table[inputs[:, t], labels[:, t - 1]]",
        "labels[:, t] = table[labels[:, t - 1], inputs[:, t]]",
    ),
    chapter(
        "12",
        "mechanisms/retnet.py",
        "form(q, k, v, gamma.log(), S)",
        "form(q, k, v, gamma.log2(), S)",
    ),
    chapter(
        "13",
        "bench_gpu.py",
        "return 3 * taken + 2 * given if backward else taken + given",
        "return 3 * taken + 2 * given if backward else taken",
    ),
    chapter(
        "14",
        "layers/parts.py",
        "past = seen[:, seen.shape[1] - width + 1 :]",
        "past = seen[:, seen.shape[1] - width : -1]",
    ),
    chapter("15", "viz/memory.py", "left=-beta * k, right=a * k)", "left=-beta * k, right=k)"),
]


def plant(fault: Fault, file: Path) -> None:
    """Put the fault into the file."""
    text = file.read_text()
    if text.count(fault.old) != 1:
        raise SystemExit(f"{fault.name}: {fault.old!r} is not once in {fault.file}")
    file.write_text(text.replace(fault.old, fault.new))


def caught_by(fault: Fault | None, tests: Sequence[str]) -> str:
    """The first test that fails with the fault planted (None: with none); "" if all pass."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("linviz", "kernels", "tests", "notebooks", "book/results"):
            shutil.copytree(ROOT / name, Path(folder, name))
        shutil.copytree(ROOT / "kernels", Path(folder, "linviz", "kernels"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        if fault:
            plant(fault, Path(folder, "linviz", fault.file))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        if any(test.endswith(".ipynb") for test in tests):
            command += LAX
        where = os.environ | {"PYTHONPATH": folder, "OMP_NUM_THREADS": "1"}
        run = subprocess.run(command, cwd=folder, env=where, capture_output=True, text=True)
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", run.stdout, re.M)
    if run.returncode not in (0, 1) or bool(failed) != bool(run.returncode):
        raise SystemExit(f"{fault}: pytest did not run\n{run.stdout}{run.stderr}")
    return failed[1] if failed else ""


def main() -> int:
    """Plant every fault, or those whose name contains one of the words given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="plant only the faults whose names contain one")
    words = parser.parse_args().words
    faults = [f for f in FAULTS if not words or any(word in f.name for word in words)]
    with ThreadPoolExecutor(2) as pool:
        planted = [None, *faults]
        tests = [sorted({test for f in faults for test in f.tests}), *(f.tests for f in faults)]
        sound, *found = tqdm(pool.map(caught_by, planted, tests), total=len(planted), desc="faults")
    if sound:
        raise SystemExit(f"{sound} fails without any fault: nothing can be said")
    for fault, test in zip(faults, found, strict=True):
        print(f"{'caught' if test else 'MISSED'}  {fault.name}: {test}")
    print(f"{sum(map(bool, found))} passed, {len(found) - sum(map(bool, found))} failed")
    return 0 if all(found) else 1


if __name__ == "__main__":
    sys.exit(main())
