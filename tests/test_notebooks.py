"""What every stored notebook has and has not, and what a chapter owes its reader."""

import ast
import json
import re
from pathlib import Path

import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from linviz.__main__ import handout

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CHAPTERS = [file for file in NOTEBOOKS if re.match(r"\d\d_", file.name)]
INSTALL = """try:
    import linviz as lv
except ImportError:  # on Colab: from git; an installed torch (2.11 or later) stays
    %pip install -q "linviz @ git+https://github.com/linviz/linviz"
    import linviz as lv"""


def read(file):
    """A notebook as it is stored."""
    return json.loads(file.read_text(encoding="utf-8"))


def tags(cell):
    """The tags of a cell."""
    return cell["metadata"].get("tags", [])


def text(cell):
    """The source of a cell."""
    return "".join(cell["source"])


# --- all notebooks -------------------------------------------------------------------------------


def faults_in_cell(cell):
    """What a stored code cell must not have."""
    source = text(cell)
    if cell["outputs"] or cell["execution_count"] is not None:
        yield "not stripped"
    if re.search(r";[ \t]*(#.*)?$", source, re.MULTILINE):
        yield "trailing semicolon"
    if "pip install" in source and source != INSTALL:
        yield "unguarded pip"
    tree = ast.parse(re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.MULTILINE))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 15:
            yield f"{node.name} is longer than 15 lines"
    last = ast.unparse(tree.body[-1]) if tree.body else ""
    if re.match(r"viz\.|display\(", last) and not readable(cell["id"]):
        yield f"{cell['id']}: a figure's cell has a readable id, its address in the book"


def readable(name):
    """Whether an id is words, and not one that Jupyter made up: eight hexadecimal digits."""
    words = re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name)
    return bool(words) and not re.fullmatch(r"(?=.*\d)[0-9a-f]{8}", name)


def faults_in_notebook(nb):
    """What a stored notebook must not have."""
    faults, checks = [], 0
    if nb["metadata"].get("kernelspec", {}).get("name") != "python3":
        faults.append("kernelspec")
    code = [cell for cell in nb["cells"] if cell["cell_type"] == "code"]
    if not code or text(code[0]) != INSTALL or tags(code[0]) != ["remove-cell"]:
        faults.append("the first code cell is the one that installs linviz on Colab")
    for cell in nb["cells"]:
        if "base64," in text(cell) or cell.get("attachments"):
            faults.append(f"{cell['id']}: embedded image")
        if cell["cell_type"] == "markdown" and re.search(r"^\s*%", text(cell), re.MULTILINE):
            faults.append(f"{cell['id']}: a line that begins with % is a comment to the book")
    for cell in code:
        faults += [f"{cell['id']}: {fault}" for fault in faults_in_cell(cell)]
        checks += bool(re.search(r"\bassert |lv\.check\(|pytest\.raises", text(cell)))
    return faults + ["no assertion"] * (not checks)


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.name)
def test_notebook(file):
    assert re.fullmatch(r"(\d\d_[a-z0-9_]+|gallery(_[a-z]+)?)\.ipynb", file.name)
    assert faults_in_notebook(read(file)) == []


def test_there_are_notebooks():
    numbers = [file.name[:2] for file in CHAPTERS]
    assert len(set(numbers)) == len(numbers) and numbers[0] == "00"


def test_every_notebook_is_in_the_book():
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text(encoding="utf-8"))
    listed = [part["file"] for section in toc["parts"] for part in section["chapters"]]
    found = [file for file in listed if file.startswith("notebooks/")]
    assert sorted(found) == [f"notebooks/{file.stem}" for file in NOTEBOOKS]
    assert found[: len(CHAPTERS)] == sorted(found)[: len(CHAPTERS)]  # chapters in their order


LONG = "def f():\n" + "    x = 1\n" * 15
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}


def notebook(*cells):
    """A notebook without faults, and these cells."""
    install = new_code_cell(INSTALL, metadata={"tags": ["remove-cell"]})
    return new_notebook(cells=[install, new_code_cell("assert True"), *cells], metadata=KERNEL)


@pytest.mark.parametrize(
    "source",
    ["x = 1;", "%pip install linviz", LONG, "x = 'data:image/png;base64,AA'", "viz.panels(x)"],
)
def test_planted_cells_are_found(source):
    assert faults_in_notebook(notebook()) == []
    for made_up in ("fb3c12ab", "1fcd3ab0"):
        assert len(faults_in_notebook(notebook(new_code_cell(source, id=made_up)))) == 1
    named = faults_in_notebook(notebook(new_code_cell(source, id="words-joined")))
    assert len(named) == (not source.startswith("viz."))
    assert len(faults_in_notebook(new_notebook(cells=[new_code_cell("1")]))) == 3


# --- chapters ------------------------------------------------------------------------------------


def faults_in_chapter(nb, stems):
    """What a chapter lacks."""
    faults, cells = [], nb["cells"]
    whole = "\n".join(text(cell) for cell in cells if cell["cell_type"] == "markdown")
    about = nb["metadata"].get("linviz", {})
    minutes, needs = about.get("minutes"), about.get("needs", [])
    line = re.search(
        r"^\*\*Before this:\*\* (.+) · \*\*Time:\*\* (\d+) minutes", whole, re.MULTILINE
    )
    if not line or int(line[2]) != minutes:
        faults.append("the line of prerequisites and minutes")
    elif re.findall(r"\((\w+)\.ipynb\)", line[1]) != needs or not set(needs) <= stems:
        faults.append("needs")
    if "You will be able to" not in whole:
        faults.append("You will be able to")
    wanted = ("Question", "Equation", "Exercises", "Quiz", "What we left out", "References")
    faults += [word for word in wanted if not re.search(rf"^## {word}", whole, re.MULTILINE)]
    asked = re.findall(r"^\*\*Exercise (\d+)\b", whole, re.MULTILINE)
    solved = [i for i, cell in enumerate(cells) if "solution" in tags(cell)]
    if not asked or len(asked) != len(solved):
        faults.append("a solution for each exercise")
    for i in solved:
        folded = cells[i]["metadata"].get("jupyter", {}).get("source_hidden")
        if not folded or "hide-cell" not in tags(cells[i]) or "Exercise" not in text(cells[i - 1]):
            faults.append(f"{cells[i]['id']}: a solution is folded, and follows its exercise")
        if not re.search(r"\bassert |lv\.check\(", text(cells[i])):
            faults.append(f"{cells[i]['id']}: a solution asserts its result")
    quiz = whole.partition("## Quiz")[2].partition("\n## ")[0]
    answers = re.findall(
        r"^<details><summary>Answer</summary>\n\n.+?\n\n</details>", quiz, re.M | re.S
    )
    if len(answers) < 4 or len(answers) != len(re.findall(r"^\*\*\d+\.\*\*", quiz, re.MULTILINE)):
        faults.append("a folded answer for each question of the quiz")
    if not re.search(r"arXiv:\d{4}\.\d{5}", whole.partition("## References")[2]):
        faults.append("arXiv ids")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", whole):
        if target.removesuffix(".ipynb") not in stems:
            faults.append(f"a link to {target}")
    return faults


STEMS = {file.stem for file in NOTEBOOKS}


@pytest.mark.parametrize("file", CHAPTERS, ids=lambda file: file.name)
def test_chapter(file):
    assert faults_in_chapter(read(file), STEMS) == []


@pytest.mark.parametrize(
    "wrong",
    [
        ("**Time:** ", "**Time:** 1"),
        ("You will be able to", "You may"),
        ("## Quiz", "## Questions"),
        ("**Exercise 1.**", "**Task 1.**"),
        ("<details><summary>Answer</summary>", "Answer:"),
        ("arXiv:", "see "),
        ("(01_remove_the_softmax.ipynb)", "(01_remove.ipynb)"),
    ],
)
def test_planted_gaps_are_found(wrong):
    raw = CHAPTERS[0].read_text(encoding="utf-8")
    assert faults_in_chapter(json.loads(raw), STEMS) == []
    assert wrong[0] in raw and faults_in_chapter(json.loads(raw.replace(*wrong)), STEMS)


def test_handout_has_no_answers(tmp_path):
    kept = new_code_cell("1 + 1")
    solution = new_code_cell("42", metadata={"tags": ["hide-cell", "solution"]})
    quiz = (
        "**1.** Why?\n\n<details><summary>Answer</summary>\n\nBecause.\n\n</details>\n\n**2.** How?"
    )
    (tmp_path / "notebooks").mkdir()
    nb = new_notebook(cells=[kept, solution, new_markdown_cell(quiz)])
    file = tmp_path / "notebooks" / "07_x.ipynb"
    file.write_text(json.dumps(nb), encoding="utf-8")
    assert handout(tmp_path) == 0
    a, b, c = read(tmp_path / "build" / "handout" / "07_x.ipynb")["cells"]
    assert text(a) == "1 + 1" and text(b) == "# your solution\n" and not tags(b)
    assert text(c) == "**1.** Why?\n\n**2.** How?"
