"""The book's pages of prose: what they name exists, and what exists is named there.

Their code runs when the book is built; here only what can be read off the sources.
"""

import ast
import inspect
import json
import re
from pathlib import Path

import pytest

import linviz as lv
from linviz import viz
from linviz.viz import Explorer, Picture, Scrubber
from linviz.viz.ink import INK

ROOT = Path(__file__).parents[1]
BOOK = ROOT / "book"
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(BOOK.glob("*.md"))}
CHAPTERS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
BIB = (BOOK / "references.bib").read_text(encoding="utf-8")
ENTRIES = dict(re.findall(r"^@\w+\{(\w+),\n(.*?)^\}", BIB, re.M | re.S))
ARXIV = re.compile(r"(?<![\d.])[012]\d[01]\d\.\d{4,5}(?![\d.]*\d)")


def cells(path):
    """The sources of a notebook's cells."""
    return ["".join(c["source"]) for c in json.loads(path.read_text(encoding="utf-8"))["cells"]]


def columns(page, header):
    """The rows of a table, a list of cells each; found by the start of its header."""
    _, found, rest = PAGES[page].partition(f"\n{header}")
    assert found, f"{page}.md has no table {header}"
    lines = rest.split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


# ------------------------------------------------------------------------------- bibliography


def test_every_paper_that_is_named_is_in_the_bibliography():
    listed = set(re.findall(r"^  eprint = \{(.+)\},$", BIB, re.M))
    named = {m.arxiv for m in lv.registry if m.arxiv}
    named |= {found for m in lv.registry for found in ARXIV.findall(m.doc)}
    for path in (ROOT / "linviz").rglob("*.py"):
        named |= set(re.findall(rf"arXiv:({ARXIV.pattern})", path.read_text(encoding="utf-8")))
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        named |= {found for cell in cells(path) for found in ARXIV.findall(cell)}
    named |= {found for page in PAGES.values() for found in ARXIV.findall(page)}
    assert named - listed == set()
    assert {m.arxiv for m in lv.registry} - {""} <= listed and len(listed) > 30


@pytest.mark.parametrize("key", ENTRIES)
def test_an_entry_of_the_bibliography_is_whole(key):
    fields = dict(re.findall(r"^  (\w+) = \{(.*)\},$", ENTRIES[key], re.M))
    assert {"author", "title", "year"} <= set(fields) and fields["year"] in key
    if "eprint" in fields:
        assert ARXIV.fullmatch(fields["eprint"]) and fields["archivePrefix"] == "arXiv"
        # an id begins with the year and the month of the first version
        assert fields["year"][2:] == fields["eprint"][:2]


def test_the_registry_agrees_with_the_bibliography():
    titles = dict(re.findall(r"title = \{(.+)\},\n  year = \{\d+\},\n  eprint = \{(.+)\}", BIB))
    titles = {eprint: re.sub(r"[{}`'\"]", "", title).lower() for title, eprint in titles.items()}
    for m in lv.registry:
        if m.arxiv:
            assert re.sub(r"[`'\"]", "", m.paper).lower() in titles[m.arxiv], m.name


def test_no_key_is_twice_and_each_citation_has_an_entry():
    assert len(re.findall(r"^@", BIB, re.M)) == len(ENTRIES)
    for name, page in PAGES.items():
        for keys in re.findall(r"\{cite(?::\w+)?\}`(.+?)`", page):
            assert set(re.split(r",\s*", keys)) <= set(ENTRIES), name


def test_linviz_is_cited_in_its_present_version():
    assert f"version = {{{lv.__version__}}}" in PAGES["bibliography"]


# ----------------------------------------------------------------------------------- notation


def test_each_axis_of_the_registry_is_on_the_notation_page():
    rows = columns("notation", "| axis | size |")
    axes = {row[0].strip("`"): row[1].strip("`") for row in rows}
    used = {
        axis.lstrip("0123456789")
        for m in lv.registry
        for x in (*m.inputs, m.output, *m.state)
        for axis in x.axes.split()
    }
    assert used <= set(axes)
    assert all(size == axis.upper() for axis, size in axes.items())


def test_each_input_and_each_part_of_a_state_has_a_line_in_its_glossary():
    """The notation page reads the glossaries, so this is what puts a letter on it."""
    assert "for symbol in m.glossary" in PAGES["notation"]
    for m in lv.registry:
        letters = {symbol.letter for symbol in m.glossary}
        assert {x.name for x in (*m.inputs, *m.state)} <= letters, m.name


def test_the_notation_page_knows_the_colours_of_the_formulas():
    tree = ast.parse((BOOK / "_ext" / "linviz_book.py").read_text(encoding="utf-8"))
    named = {t.id: n.value for n in tree.body if isinstance(n, ast.Assign) for t in n.targets}
    letters = ast.literal_eval(named["LETTERS"])
    assert set(letters) < set(INK)
    told = re.search(r"by the letter alone: (.*?)\. ", PAGES["notation"], re.S)[1]
    told = [set(re.findall(r"\$\\?(\w+)\$", part)) for part in told.split(";")]
    greek = {"γ": "gamma", "α": "alpha"}
    assert told == [{greek.get(x, x) for x in letters[ink]} for ink in letters]


def test_terms_in_two_languages():
    rows = columns("notation", "| English | 中文 |")
    assert len(rows) >= 45 and len({row[0] for row in rows}) == len(rows)
    for english, chinese, meaning in rows:
        assert re.search(r"[\u4e00-\u9fff]|kept", chinese), english
        assert english.isascii() and meaning


# ---------------------------------------------------------------------- reference and gallery


def test_the_reference_names_everything():
    text = {path.stem: path.read_text(encoding="utf-8") for path in (BOOK / "api").glob("*.rst")}
    kinds = r"^\.\. auto(?:class|data|function):: (\w+)$"
    assert sorted(re.findall(kinds, text["viz"], re.M)) == sorted(viz.__all__)
    rooms = re.findall(r"automodule:: linviz\.mechanisms\.(\w+)", text["mechanisms"])
    assert rooms == list(lv.registry.names)
    engines = re.findall(r"automodule:: linviz\.recurrences\.(\w+)", text["recurrences"])
    assert sorted(engines) == sorted(
        path.stem for path in (ROOT / "linviz" / "recurrences").glob("[a-z]*.py")
    )
    core = {*re.findall(kinds, text["core"], re.M)}
    assert {*lv.__all__} - {*lv.registry.names, "registry"} <= core


def test_the_gallery_has_every_picture():
    code = "\n".join(
        cell for path in (ROOT / "notebooks").glob("gallery*.ipynb") for cell in cells(path)
    )
    pictures = {
        name
        for name in viz.__all__
        if not isinstance(getattr(viz, name), type)
        and callable(getattr(viz, name))
        and inspect.signature(getattr(viz, name)).return_annotation in (Picture, Scrubber, Explorer)
    }
    assert len(pictures) > 30
    assert {name for name in pictures if not re.search(rf"viz\.{name}\b", code)} == set()


# ----------------------------------------------------------------------------------- teaching


def test_the_plans_for_6_and_12_weeks_name_chapters_that_exist():
    exist = {path.name[:2] for path in CHAPTERS}
    first = [week for week, *_ in columns("teaching", "| week and chapter | in class | at home |")]
    second = PAGES["teaching"].split("## Twelve weeks")[1]
    second = re.findall(r"^\| (\*\*\d+\.\*\* .*?) \|", second, re.M)
    assert [len(first), len(second)] == [6, 12]
    for week in first + second:
        linked = re.findall(r"\[(\d\d) .*?\]\(\.\./notebooks/(\d\d)_", week)
        assert linked and all(a == b and a in exist for a, b in linked), week
    assert all(f"[{number} " in " ".join(second) for number in exist)


def test_the_changes_to_try_in_class_can_be_made():
    code = {path.name[:2]: "\n".join(cells(path)) for path in CHAPTERS}
    changes = re.findall(r"^- \*\*(\d\d)\*\*: `(.+?)` becomes `(.+?)`\.", PAGES["teaching"], re.M)
    assert len(changes) >= 5
    for number, before, after in changes:
        assert code[number].count(before) == 1, f"{number}: {before}"
        assert before != after


def test_chapters_say_what_the_graph_reads():
    stems = {path.stem for path in CHAPTERS}
    for path in CHAPTERS:
        about = json.loads(path.read_text(encoding="utf-8"))["metadata"]["linviz"]
        assert set(about["needs"]) <= {stem for stem in stems if stem < path.stem}
        assert 10 <= about["minutes"] <= 180
        assert "\n- " in cells(path)[0].partition("You will be able to")[2], path.name


# ----------------------------------------------------------------------------- add a mechanism


def test_the_mechanism_that_is_added_is_still_missing():
    name = re.search(r'name="(\w+)"', PAGES["add_a_mechanism"])[1]
    assert name not in lv.registry.names


def test_the_files_that_a_contributor_edits_exist():
    path = r"`((?:linviz|tests|notebooks|book)/[\w/]+(?:\.\w+)?/?)`"
    named = re.findall(path, PAGES["add_a_mechanism"])
    assert len(named) > 5
    for path in named:
        assert path == "linviz/mechanisms/hgrn2.py" or (ROOT / path).exists(), path
    rooms = {path.stem for path in (ROOT / "linviz" / "recurrences").glob("[a-z]*.py")}
    table = {row[0].strip("`") for row in columns("add_a_mechanism", "| recurrence | the step |")}
    assert {m.recurrence for m in lv.registry} - {""} == table <= rooms


def test_every_page_stands_in_the_table_of_contents():
    listed = re.findall(r"file: book/(\w+)$", (BOOK / "_toc.yml").read_text(encoding="utf-8"), re.M)
    assert sorted([*listed, "index"]) == sorted(PAGES)
