"""python -m linviz gpu: the tests, the notebooks and the benchmark on a machine with a GPU.

Such a machine may have no network, and Python packages that nobody should touch: nothing is
installed there. Wheels that lie in .whl/ are unpacked into a temporary folder; linviz stands there
too, by links.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from linviz.__main__ import notebooks, repository, run


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts that were asked for; what follows `--` goes to the benchmark."""
    argv = list(sys.argv[1:] if argv is None else argv)
    cut = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(prog="python -m linviz gpu", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    args = parser.parse_args(argv[:cut])
    if not torch.cuda.is_available():
        print("linviz gpu: PyTorch sees no GPU here.", file=sys.stderr)
        return 1
    folder = repository()
    with tempfile.TemporaryDirectory() as site:
        fill(Path(site), folder)
        paths = filter(None, [site, os.environ.get("PYTHONPATH")])
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
        os.environ["PYTHONSAFEPATH"] = "1"  # the clone's own linviz/ has no kernels/
        failed = [part for part in args.only if PARTS[part](folder, argv[cut + 1 :])]
    print("linviz gpu:", f"FAILED: {', '.join(failed)}" if failed else "all passed", flush=True)
    return bool(failed)


def fill(site: Path, folder: Path) -> None:
    """Make `import linviz` and `import linviz.kernels` work from `site`, and unpack the wheels.

    An installed linviz has kernels/ and book/results/ inside; in the clone they stand beside it. So
    linviz is a folder of links here, with these among them.
    """
    wheels = sorted(map(str, folder.glob(".whl/*.whl")))
    if wheels:
        install = ["install", "-q", "--no-index", "--no-deps", "--no-compile", "--upgrade"]
        command = [sys.executable, "-m", "pip", *install, "--target", str(site), *wheels]
        subprocess.run(command, check=True)
    package = site / "linviz"
    package.mkdir()
    beside = [folder / "kernels", folder / "book" / "results"]
    for entry in [*(folder / "linviz").iterdir(), *beside]:
        if entry.name != "__pycache__":
            (package / entry.name).symlink_to(entry)


def test(folder: Path, rest: Sequence[str]) -> bool:
    """The kernels' own tests, and what the contract asks of them."""
    # warnings of other versions are no failures here, and shapes are checked on the CPU
    plain = ["-q", "-o", "addopts=", "-p", "no:cacheprovider", "-W", "default"]
    failed = run(folder, "pytest", *plain, "tests/test_gpu.py")
    return failed | run(folder, "pytest", *plain, "-k", "triton", "tests/test_contract.py")


def bench(folder: Path, rest: Sequence[str]) -> bool:
    """The benchmark, with its own arguments."""
    return run(folder, "linviz", "bench", "gpu", *rest)


PARTS = {"tests": test, "notebooks": lambda folder, rest: notebooks(folder), "bench": bench}
