"""What the book adds to Sphinx: a place for each figure, links to open a page, inks, docstrings."""

import os
import re
from itertools import chain, groupby
from pathlib import Path

import nbformat
from docutils import nodes

from linviz.mechanism import read_equations, read_glossary
from linviz.viz.ink import INK, style

# The letters of the glossary in formulas, as MathJax names the glyphs (a code point of Unicode's
# italic letters each), and the ink of each.
LETTERS = {
    "state": "S",
    "decay": "gaγαw",
    "query": "qQr",
    "key": "kK",
    "value": "vV",
    "output": "oO",
}
GREEK = {"γ": 0x1D6FE, "α": 0x1D6FC}

# The one place of the links that open a notebook elsewhere.
OPEN = """<p class="open-in">
<a href="https://colab.research.google.com/github/{repo}/blob/main/{page}.ipynb">Open in Colab</a>
<a href="http://localhost:8888/lab/tree/{name}.ipynb" title="First run: make lab">
Open in JupyterLab</a>
<a href="{up}_sources/{page}.ipynb" download>Download</a>
</p>"""


EQUATION = re.compile(r"^ {4}\((\w+)\) +(.*(?:\n {5,}\S.*)*)", re.MULTILINE)


def glyph(letter: str) -> str:
    """MathJax's class for an italic letter."""
    start = 0x1D44E - ord("a") if letter.islower() else 0x1D434 - ord("A")
    return f"mjx-c{GREEK.get(letter) or ord(letter) + start:X}"


def inks() -> str:
    """Formulas in the inks of the pictures; darker in light, so that thin letters can be read."""
    rules = []
    for theme in ("light", "dark"):
        with style(theme):
            for name, letters in LETTERS.items():
                glyphs = ",".join(f".{glyph(letter)}" for letter in letters)
                ink = INK[name] if theme == "dark" else f"color-mix(in oklab,{INK[name]} 70%,#000)"
                rules.append(f"html[data-theme={theme}] mjx-mi :is({glyphs}){{color:{ink}}}")
    return "\n".join(rules)


def start(app):
    """Ask pictures for an SVG too, and write the style sheet of the inks."""
    os.environ["LINVIZ_SVG"] = "1"
    folder = Path(app.outdir) / "_static"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "inks.css").write_text(inks(), encoding="utf-8")


def raw(html: str) -> nodes.raw:
    """HTML as it is."""
    return nodes.raw("", html, format="html")


def finish_page(app, document):
    """Give each figure its anchor and its SVG, and a notebook its links."""
    page = app.env.docname
    up = "../" * page.count("/")
    executed = Path(app.srcdir, "book", "_build", "jupyter_execute", f"{page}.ipynb")
    if not executed.exists():
        return
    ids = [cell.id for cell in nbformat.read(executed, 4).cells]
    for cell in list(document.findall(nodes.container)):
        if cell.get("nb_element") == "cell_code":
            name = cell["cell_metadata"].get("figure", ids[cell["cell_index"]])
            figures = [bundle for bundle in cell.findall(nodes.container) if is_figure(bundle)]
            for i, bundle in enumerate(figures, 1):
                anchor = f"fig{i if i > 1 else ''}-{name}"
                place = nodes.container(ids=[anchor], classes=["figure-place"])
                bundle.replace_self(place)
                link = f'<a href="#{anchor}" title="#{anchor}">Link to this figure</a>'
                svg = f'<a href="{up}{write_svg(app, bundle, page, anchor)}">SVG</a>'
                place += [bundle, raw(f'<p class="figure-links">{link} {svg}</p>')]
    if Path(app.env.doc2path(page)).suffix == ".ipynb":
        repo = app.config.html_theme_options["repository_url"].split("github.com/")[1]
        repo = os.environ.get("GITHUB_REPOSITORY", repo)
        links = OPEN.format(repo=repo, page=page, name=Path(page).name, up=up)
        title = document.next_node(nodes.title)
        title.parent.insert(title.parent.index(title) + 1, raw(links))


def write_svg(app, bundle, page: str, anchor: str) -> str:
    """Move the SVG of an output into a file of its own; its path in the site."""
    svg = next(kind for kind in bundle if kind["mime_type"] == "image/svg+xml")
    bundle.remove(svg)
    drawn = Path(app.srcdir, svg.next_node(nodes.image)["uri"].lstrip("/"))
    path = f"_figures/{page}/{anchor}.svg"
    target = Path(app.outdir, path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(drawn.read_bytes())
    return path


def is_figure(node) -> bool:
    """Whether an output is a picture of ours."""
    bundle = node.get("nb_element") == "mime_bundle"
    return bundle and any(child.get("mime_type") == "image/svg+xml" for child in node.children)


def docstring(app, what, name, obj, options, lines):
    """A docstring of ours, which is plain text, as reStructuredText.

    Of a room the equations become formulas and the glossary a table; other indented lines stay as
    they are written. Text that is indented and numbered, "(E1)  latex", is an equation too.
    """
    if what in ("property", "attribute") and lines:
        lines[0] = lines[0].replace(": ", " – ")  # Napoleon would take the words before for a type
    if what != "module":
        lines[:] = [plain(line) for line in lines]
        return
    rst = []
    for part in re.split(r"\n\n(?=\S)", "\n".join(lines)):
        if part.startswith("Equations"):
            for x in read_equations(part):
                rst += formula(x.number, x.latex)
        elif part.startswith("Glossary"):
            rst += [".. list-table::", "   :header-rows: 1", ""]
            rst += ["   * - letter", "     - the paper's", "     - shape", "     - meaning"]
            for letter, paper, shape, meaning in read_glossary(part):
                rst += [f"   * - ``{letter}``", f"     - ``{paper}``", f"     - ``{shape}``"]
                rst += [f"     - {plain(meaning)}"]
        else:
            for indented, block in groupby(part.splitlines(), lambda line: line[:1] in " "):
                block = list(block)
                found = EQUATION.findall("\n".join(block))
                if found:
                    rst += chain(*(formula(number, latex) for number, latex in found))
                else:
                    rst += ["", "::", "", *block, ""] if indented else map(plain, block)
        rst.append("")
    lines[:] = rst


def formula(number, latex) -> list[str]:
    """A numbered formula."""
    return ["", ".. math::", "", rf"   {' '.join(latex.split())} \tag{{{number}}}", ""]


def skip(app, what, name, obj, skipped, options):
    """Leave out the fields of named tuples: the class has said what they are."""
    return True if (obj.__doc__ or "").startswith("Alias for field number") else None


def plain(line: str) -> str:
    """A line without what reStructuredText would take for markup."""
    argument = re.match(r" *\*+\w+:", line)
    start = argument.end() if argument else 0
    return line[:start] + re.sub(r"(\((?=\w+\))|[|*\\]|_(?!\w))", r"\\\1", line[start:])


def setup(app):
    """Sphinx's entry."""
    app.connect("builder-inited", start)
    app.connect("doctree-read", finish_page)
    app.connect("autodoc-process-docstring", docstring, priority=400)  # before Napoleon
    app.connect("autodoc-skip-member", skip)
    app.add_css_file("inks.css")
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
