"""The house: what an import costs, who imports whom, pins, README, the tour's page."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from itertools import chain
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from linviz.__main__ import mathml, page

ROOT = Path(__file__).parents[1]


def python(code, cwd):
    """What `code` prints in a fresh interpreter."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True).stdout


# --- imports -------------------------------------------------------------------------------------


def test_import_is_light(tmp_path):
    code = """
import os, sys
before = dict(os.environ)
import linviz
assert dict(os.environ) == before, "the environment changed"
heavy = {"triton", "matplotlib", "transformers", "IPython", "jupyter", "jupyter_core", "scipy"}
print(sorted(heavy & {name.split(".")[0] for name in sys.modules}))
"""
    assert python(code, tmp_path).strip() == "[]"


def test_kernels_import_from_anywhere(tmp_path):
    found = python("import linviz.kernels as k; print(k.__file__)", tmp_path).strip()
    assert Path(found) == ROOT / "kernels" / "__init__.py"


# A room, and the rooms that it may import. `linviz` is the public face.
BASE = {"inputs", "moves", "mechanism", "listening"}
ROOMS = BASE | {"recurrences", "mechanisms"}
MAY_IMPORT = {
    "kernels": {"kernels"},
    "tasks": {"tasks"},
    "recurrences": {"recurrences"},
    "inputs": set(),
    "moves": {"inputs"},
    "mechanism": {"inputs", "moves"},
    "listening": {"mechanism"},
    "tracing": BASE,
    "mechanisms": ROOMS,
    "layers": ROOMS | {"layers"},
    "models": ROOMS | {"layers", "models", "checkpoints"},
    "viz": BASE | {"viz", "tracing"},
    "viz.play": BASE | {"viz", "mechanisms", "linviz"},
}


def sources():
    """Module name -> source, for linviz/ and kernels/."""
    files = {}
    for folder, package in [("linviz", "linviz"), ("kernels", "linviz.kernels")]:
        for file in (ROOT / folder).rglob("*.py"):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            files[".".join((package, *parts))] = file.read_text(encoding="utf-8")
    return files


def imported(module, tree, modules):
    """The names in `modules`, and the outsiders, that the statements of `tree` import."""
    for node in tree:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")
            is_package = any(name.startswith(module + ".") for name in modules)
            base = base[: len(base) - node.level + is_package] if node.level else []
            start = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                full = f"{start}.{alias.name}"
                yield full if full in modules else start


def at_import(tree):
    """The nodes that run when a module is imported: no function bodies."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node
            yield from at_import(node)


def faults_in_imports(files):
    """Imports against the rules of the house, cycles, and top-level `kernels`."""
    faults, graph = [], {}
    for module, source in files.items():
        tree = ast.parse(source)
        path = module.split(".")[1:]
        rule = MAY_IMPORT.get(".".join(path), MAY_IMPORT.get(path[0] if path else ""))
        for name in sorted(set(imported(module, ast.walk(tree), files))):
            top, *rooms = name.split(".")
            room = rooms[0] if rooms else top
            if top == "kernels":
                faults.append(f"{module} imports the published package kernels")
            elif rule is not None and top == "linviz" and room not in rule:
                faults.append(f"{module} imports {name}")
        graph[module] = {n for n in imported(module, at_import(tree), files) if n in files}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        faults.append(f"import cycle: {error.args[1]}")
    return faults


def test_who_imports_whom():
    assert faults_in_imports(sources()) == []


@pytest.mark.parametrize(
    "files",
    [
        {"linviz.recurrences.a": "from linviz.mechanism import fold"},
        {"linviz.recurrences.a": "def f():\n    from ..mechanisms import gla"},
        {"linviz.mechanism": "import linviz.recurrences.scalar_decay"},
        {"linviz.kernels.a": "import linviz"},
        {"linviz.viz.states": "from linviz.mechanisms import gla", "linviz.mechanisms.gla": ""},
        {"linviz.a": "from kernels import scalar_decay"},
        {"linviz.a": "from . import b", "linviz": "", "linviz.b": "from linviz import a"},
    ],
)
def test_planted_imports_are_found(files):
    assert len(faults_in_imports(files)) == 1


# --- installing ----------------------------------------------------------------------------------


def unpinned(text):
    """Lines that install without the constraints."""
    lines = text.splitlines()
    return [x for x in lines if re.search(r"pip3? install", x) and "-c constraints.txt" not in x]


def test_every_install_names_the_constraints():
    assert unpinned("    python -m pip install torch") and not unpinned("make test")
    files = [ROOT / name for name in ("Makefile", "README.md", "CONTRIBUTING.md", ".ci/run")]
    for file in files + list((ROOT / ".github" / "workflows").iterdir()):
        assert unpinned(file.read_text(encoding="utf-8")) == [], file


def test_every_dependency_is_pinned():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras, groups = project["project"]["optional-dependencies"], project["dependency-groups"]
    wanted = [*project["project"]["dependencies"], *chain(*extras.values(), *groups.values())]
    for requirement in (Requirement(x) for x in wanted if isinstance(x, str)):
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin and pin in requirement.specifier, requirement
    assert "flash-linear-attention" not in pins, "it breaks the CPU oracles"


def test_every_package_is_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    named = set(project["tool"]["setuptools"]["packages"])
    found = {f"linviz.{p.parent.name}" for p in (ROOT / "linviz").glob("*/__init__.py")}
    assert named == found | {"linviz", "linviz.kernels", "linviz.results"}


def test_readme_code_runs(tmp_path):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(code.strip().splitlines()) <= 10
    assert python(code, tmp_path)


# --- the tour ------------------------------------------------------------------------------------


def test_page_loads_nothing(tmp_path):
    png = new_output("display_data", {"image/png": "iVBORw0KGgo="})
    text = "# A heading\n\n$S_t$ and\n\n$$\\begin{aligned}a &= b\\end{aligned}$$\n\n[link](https://a.b)"
    cells = [new_markdown_cell(text), new_code_cell("x = 1", outputs=[png])]
    html = page(new_notebook(cells=cells), tmp_path)
    assert html.count("<math") == 2 and "$" not in html and "<mi>&" not in html
    assert 'id="A-heading"' in html and "data:image/png;base64,iVBOR" in html
    assert not re.search(r"<(script|link)\b", html)
    cells = [new_markdown_cell("![](https://a.b/c.png)")]
    with pytest.raises(ValueError, match="self-contained"):
        page(new_notebook(cells=cells), tmp_path)
    with pytest.raises(ValueError, match="MathML"):
        mathml(r"\nosuchcommand{x}", "inline")


def linviz(folder, cells):
    """`tour` over a notebook of these cells: the finished process."""
    (folder / "notebooks").mkdir()
    nbformat.write(new_notebook(cells=cells), folder / "notebooks" / "00_tour.ipynb")
    code = "import sys, pathlib, linviz.__main__ as m; sys.exit(m.tour(pathlib.Path.cwd()))"
    command, env = [sys.executable, "-c", code], os.environ | {"PYTHONWARNINGS": "ignore"}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


def test_tour_writes_a_page(tmp_path):
    done = linviz(tmp_path, [new_code_cell("print(6 * 7)")])
    assert done.returncode == 0, done.stderr
    assert "42" in (tmp_path / "build" / "tour.html").read_text(encoding="utf-8")
    assert "gla" in done.stdout and "tour.html" in done.stdout


def test_tour_names_the_failing_cell(tmp_path):
    done = linviz(tmp_path, [new_markdown_cell("text"), new_code_cell("1 / 0")])
    assert done.returncode == 1 and not (tmp_path / "build").exists()
    assert "ZeroDivisionError" in done.stderr and "cell 2 of 2" in done.stderr
