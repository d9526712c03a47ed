"""``python -m linviz COMMAND``: tour, test, lint, lab, book, bench, experiment, hub, gpu, xray."""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --paper: #fff; --soft: #f4f5f7; --line: #d8dbe0 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #dfe2e6; --paper: #16181b; --soft: #202327; --line: #3a3f46 }
}
body { max-width: 52rem; margin: 2rem auto; padding: 0 1rem; color: var(--ink);
       background: var(--paper); font: 1rem/1.6 system-ui, sans-serif }
pre, .highlight { overflow-x: auto; font-size: .85rem; line-height: 1.45 }
.input pre, .rendered_html pre { padding: .7rem; background: var(--soft); border-radius: .3rem }
.highlight { background: none }
.celltag_hide-input .input { display: none }
.output_subarea { overflow-x: auto }
.output_stderr { border-left: 3px solid #b5542b; padding-left: .7rem }
img { max-width: 100%; background: #fff }
table { border-collapse: collapse; font-size: .9rem }
th, td { padding: .2rem .6rem; border: 1px solid var(--line); text-align: left }
math[display=block] { margin: .7rem 0; padding: .3rem 0; overflow: auto hidden }
mtd[columnalign=right] { text-align: -webkit-right; padding-right: .1em }
mtd[columnalign=left] { text-align: -webkit-left; padding-left: .1em }
.anchor-link { visibility: hidden; text-decoration: none; padding-left: .3rem }
:is(h1, h2, h3, h4):hover .anchor-link { visibility: visible }
"""


def main(argv=None):
    """Run one subcommand; the return value is the exit code."""
    parser = argparse.ArgumentParser(prog="python -m linviz", description="what make does")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, text in {
        "tour": "run notebooks/00_tour.ipynb and write build/tour.html",
        "test": "ruff, pytest and the notebooks",
        "lint": "ruff only",
        "lab": "open JupyterLab on the notebooks",
        "book": "build the book into book/_build/html",
        "book-test": "build the book and test it in a browser",
        "handout": "write the notebooks without solutions into build/handout",
    }.items():
        commands.add_parser(name, help=text, description=text)
    commands.add_parser("bench", help="time the forms (`bench cpu`, `bench gpu`)", add_help=False)
    commands.add_parser("xray", help="compile the kernels without a GPU", add_help=False)
    commands.add_parser("experiment", help="recall, hybrids, extrapolation", add_help=False)
    commands.add_parser("hub", help="compare with other people's code", add_help=False)
    commands.add_parser("gpu", help="tests, notebooks and benchmark on a GPU", add_help=False)
    argv = sys.argv[1:] if argv is None else argv
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")  # this environment's kernel
    if list(argv[:1]) == ["gpu"]:  # argparse would swallow its `--`
        from linviz import gpu

        return gpu.main(argv[1:])
    args, rest = parser.parse_known_args(argv)
    if args.command == "bench":
        from linviz import bench

        return bench.main(rest)
    if args.command == "experiment":
        from linviz import experiments

        return experiments.main(rest)
    if args.command == "hub":
        from linviz.models import parity

        return parity.main(rest)
    if args.command == "xray":
        os.environ["TRITON_INTERPRET"] = "0"  # kernels are compiled, not interpreted
        from linviz.kernels import xray

        return xray.main(rest)
    if rest:
        parser.error(f"unknown arguments: {' '.join(rest)}")
    commands = {"tour": tour, "test": test, "lint": lint, "lab": lab}
    commands |= {"book": book, "book-test": book_test, "handout": handout}
    return commands[args.command](repository())


def repository():
    """The folder that holds notebooks/: the clone, or the current folder."""
    for folder in (Path(__file__).resolve().parents[1], Path.cwd()):
        if (folder / "notebooks" / "00_tour.ipynb").is_file():
            return folder
    sys.exit("notebooks/00_tour.ipynb not found: clone the repository and run this inside it.")


def need(module, what):
    """Stop with the command that installs `what` where `module` is missing."""
    if find_spec(module) is None:
        sys.exit(f"{module} is missing: python -m pip install -c constraints.txt {what}")


def lint(folder):
    """Ruff over Python and notebooks."""
    need("ruff", "--group test")
    return run(folder, "ruff", "check") | run(folder, "ruff", "format", "--check")


def test(folder):
    """Every step runs, also after a failure."""
    need("nbval", '-e ".[notebooks]" --group test')
    failed = lint(folder)
    failed |= run(folder, "pytest", "-n", "logical", "--maxprocesses", "8")
    failed |= notebooks(folder)
    failed |= book_test(folder)
    print("linviz test:", "FAILED" if failed else "all passed", flush=True)
    return failed


def notebooks(folder):
    """Every cell of the notebooks runs."""
    lax = ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout", "120"]
    plain = ["-o", "addopts=", "-p", "no:cacheprovider"]
    return run(folder, "pytest", *plain, *lax, "-n", "2", "--dist", "loadscope", "notebooks")


def run(folder, *command):
    """Run a Python module in `folder`; True where it failed."""
    print("linviz:", *command, flush=True)
    env = os.environ | {"OMP_NUM_THREADS": "1"}  # the workers are the parallelism
    return subprocess.run([sys.executable, "-m", *command], cwd=folder, env=env).returncode != 0


def book(folder):
    """The book, from nothing: a page that was kept may show what the library no longer does."""
    need("jupyter_book", '-e ".[notebooks,book]"')
    built = folder / "book" / "_build"
    shutil.rmtree(built, ignore_errors=True)
    places = ["--config", "book/_config.yml", "--toc", "book/_toc.yml", "--path-output", "book"]
    start = time.monotonic()
    build = ["build", ".", *places, "-W", "-n", "--keep-going"]
    print("linviz: jupyter-book", *build, flush=True)
    start_it = "from jupyter_book.cli.main import main; main()"  # it has no __main__
    failed = subprocess.run([sys.executable, "-c", start_it, *build], cwd=folder).returncode != 0
    pages = len(list(built.glob("html/[bn]*/**/*.html")))
    failed |= pages == 0
    print(f"linviz book: {pages} pages in {time.monotonic() - start:.0f} s")
    print("FAILED" if failed else f"The book: {built / 'html' / 'index.html'}", flush=True)
    return failed


def book_test(folder):
    """The book in a browser: what a reader meets."""
    need("playwright", "--group test")
    return book(folder) or run(folder, "pytest", "-n", "2", "tests/book_site.py")


def handout(folder):
    """The notebooks without the solutions of exercises and the answers of the quiz."""
    import nbformat

    target = folder / "build" / "handout"
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted((folder / "notebooks").glob("[0-9]*.ipynb")):
        nb = nbformat.read(file, as_version=4)
        for cell in nb.cells:
            if "solution" in cell.metadata.get("tags", []):
                cell.source, cell.metadata = "# your solution\n", {}
            cell.source = re.sub(r"<details>.*?</details>\s*", "", cell.source, flags=re.DOTALL)
        nbformat.write(nb, target / file.name)
        print(target / file.name)
    return 0


def lab(folder):
    """JupyterLab on the notebooks."""
    need("jupyterlab", '-e ".[notebooks]"')
    root = ["--allow-root"] if getattr(os, "geteuid", lambda: 1)() == 0 else []
    command = [sys.executable, "-m", "jupyterlab", *root, "notebooks"]
    return subprocess.run(command, cwd=folder).returncode


def tour(folder):
    """Execute the tour and write it as one self-contained page."""
    need("nbclient", '-e ".[notebooks]"')
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
    from tqdm import tqdm

    notebooks = folder / "notebooks"
    nb = nbformat.read(notebooks / "00_tour.ipynb", as_version=4)
    total = sum(cell.cell_type == "code" for cell in nb.cells)
    bar = tqdm(total=total, desc="tour", unit="cell")
    started = []
    client = NotebookClient(
        nb,
        kernel_name="python3",
        timeout=120,
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(notebooks)}},
        on_cell_execute=lambda cell, cell_index: started.append(cell_index),
        on_cell_executed=lambda cell, cell_index, execute_reply: bar.update(),
    )
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        bar.close()
        at = started[-1] if started else 0
        print(f"{error}\nThe tour failed at cell {at + 1} of {len(nb.cells)}.", file=sys.stderr)
        return 1
    bar.close()
    target = folder / "build" / "tour.html"
    target.parent.mkdir(exist_ok=True)
    target.write_text(page(nb, notebooks), encoding="utf-8")

    import linviz

    for m in linviz.registry:
        print(f"{m.name:18} {m.year}  {m.title}: {', '.join(m.forms)}")
    print(f"\nThe tour: {target}")
    return 0


def page(nb, path):
    """An executed notebook as HTML that loads nothing: images inside, formulas as MathML."""
    from nbconvert import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
    from nbformat.v4 import new_notebook
    from pygments.formatters import HtmlFormatter

    class Renderer(IPythonRenderer):
        def inline_math(self, body):
            return mathml(body, "inline")

        def block_math(self, body):
            return mathml(body, "block")

        def latex_environment(self, name, body):
            return mathml(rf"\begin{{{name}}}{body}\end{{{name}}}", "block")

    def markdown(source):
        renderer = Renderer(escape=False, embed_images=True, path=str(path))
        return MarkdownWithMath(renderer=renderer).render(source)

    for output in (o for cell in nb.cells for o in cell.get("outputs", [])):
        data = output.get("data", {})
        if "text/latex" in data:
            data.setdefault("text/html", markdown(data["text/latex"]))
    exporter = HTMLExporter(template_name="basic", filters={"markdown2html": markdown})
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    body = ""
    for cell in nb.cells:
        tags = cell.metadata.get("tags", [])
        part, _ = exporter.from_notebook_node(new_notebook(cells=[cell]))
        if "solution" in tags:
            part = f"<details><summary>Solution</summary>{part}</details>"
        body += part * ("remove-cell" not in tags)
    dark = HtmlFormatter(style="github-dark").get_style_defs(".highlight")
    light = HtmlFormatter().get_style_defs(".highlight")
    style = f"{light}\n@media (prefers-color-scheme: dark) {{ {dark} }}\n{STYLE}"
    html = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>linviz: the tour</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{style}</style><body>{body}</body></html>"
    )
    loads = r'<(?!a\b)[^>]*\b(?:src|href)="(?!data:|#)[^"]*|url\((?!data:|#)[^)]*'
    if outside := re.findall(loads, html):
        raise ValueError(f"the page is not self-contained: {outside}")
    return html


def mathml(tex, display):
    """A formula as MathML; what the converter does not know is an error."""
    from latex2mathml.converter import convert

    tex = re.sub(r"\\(begin|end)\{(?:aligned|align)\}", r"\\\1{align*}", tex)
    tex = re.sub(r"\\tag\{(.*?)\}", r"\\qquad\\text{(\1)}", tex)
    html = convert(tex, xmlns="", display=display).replace(' xmlns=""', "")
    if re.search(r"<mi>(\\|&<)", html):
        raise ValueError(f"this formula cannot be shown as MathML: {tex}")
    return html


if __name__ == "__main__":
    sys.exit(main())
