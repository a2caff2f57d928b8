"""Names are text wherever results are shown: to a terminal, a spreadsheet, Markdown and a page."""

from __future__ import annotations

import contextlib
import csv
import html
import io
import re
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from report.examples import analysis, facts, finished, row

from bitmaps.errors import InputError, as_text
from bitmaps.report.comparison import Comparison, compare, comparison_of
from bitmaps.report.entries import Entry
from bitmaps.report.files import harmless, markdown, write_csv, write_results
from bitmaps.report.page import write_page
from bitmaps.report.terminal import print_analyses, print_sentences, print_table
from bitmaps.vocabulary import RowKind, Status

ESCAPE = "\x1b[31mred\x1b[0m"
NAMES = st.text(st.characters(), min_size=1, max_size=12)
STORED = st.text(max_size=12)  # in a JSON file, which has no half characters
nasty = [
    example(name)
    for name in ("a[/b]", "[red]x", ESCAPE, "=cmd|' /C calc'!A0", "\u202eabc", "<b>|</b>", "\\|", "`|`", "[x](y)", "*a*", "$a$", "__0__", "é")
]  # fmt: skip


def names(test, strategy=NAMES):  # type: ignore[no-untyped-def]
    """Try a test with any name, and with those that were trouble."""
    for one in nasty:
        test = one(test)
    return settings(max_examples=15, deadline=None)(given(strategy)(test))


def stored_names(test):  # type: ignore[no-untyped-def]
    return names(test, STORED)


def named(name: str) -> Comparison:
    """A run that failed in a folder of this name, for a reason of this name, beside others."""
    run, other = Path(f"runs/{name}"), Path("runs/other")
    failed = Entry(run, Status.failed, facts("all"), error=name)
    return comparison_of([failed, replace(failed, run=other, error="x"), Entry.of(row(), other)])


def squeezed(text: str) -> str:
    """Without white space, which a table adds."""
    return "".join(text.split())


def printed(comparison: Comparison, encoding: str = "utf-8") -> str:
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    with contextlib.redirect_stdout(out):
        print_table(comparison)
    return out.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]


@names
def test_any_name_is_text_in_the_terminal(name: str) -> None:
    comparison = named(name)
    shown = printed(comparison)
    assert all(character.isprintable() for character in shown.replace("\n", ""))
    assert squeezed(f"{comparison.labels[0]}: {as_text(name)}") in squeezed(shown)


@stored_names
def test_a_cell_of_the_terminal_is_no_markup(name: str) -> None:
    shown = printed(comparison_of([Entry.of(row(device=one), Path("r")) for one in (name, "b")]))
    assert f"│{squeezed(as_text(name))}│" in squeezed(shown) or len(as_text(name)) > 20


def test_a_terminal_that_lacks_a_character_shows_its_number() -> None:
    seeds = [row("all", "trained", seed=seed, mrr=0.1 * seed) for seed in (1, 2)]
    shown = printed(comparison_of(Entry.of(one, Path("é")) for one in seeds), "ascii")
    assert "0.1500 \\xb1 0.0707" in shown


def test_tokens_are_text_in_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    analyses = {RowKind.naive: analysis(f"[red]{ESCAPE}", ESCAPE, verdict=f"[red]{ESCAPE}")}
    print_analyses(analyses)
    print_sentences(analyses, None)
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert shown.count(f"[red]{as_text(ESCAPE)}") >= 3


@names
def test_any_name_is_read_back_from_the_csv_file_and_is_no_formula(name: str) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "results.csv"
        write_csv(named(name), path)
        with path.open(encoding="utf-8", newline="") as file:
            found = [line["error"] for line in csv.DictReader(file)]
    expected = name.encode("utf-8", "backslashreplace").decode()
    assert found[0] in (expected, f"'{expected}")
    assert found[1:] == ["x", ""]
    if found[0] == expected and expected[:1] in set("=+-@\t\r\n") and expected:
        float(expected)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("=1+1", "'=1+1"), ("+1+1", "'+1+1"), ("-a", "'-a"), ("@a", "'@a"), ("\t=1", "'\t=1"), ("\r=1", "'\r=1"),
        ("a=b", "a=b"), ("", ""), ("-1.5", "-1.5"), (-1.5, -1.5), (None, None), (True, True),
    ],
)  # fmt: skip
def test_numbers_stay_numbers_in_the_csv_file(value: object, written: object) -> None:
    assert harmless(value) == written


def test_a_setting_is_no_formula_in_the_csv_file_either(tmp_path: Path) -> None:
    write_csv(comparison_of([Entry.of(row(settings={"=a()": 1}), tmp_path)]), tmp_path / "r.csv")
    with (tmp_path / "r.csv").open(newline="") as file:
        assert {"'=a()", "run"} <= set(csv.DictReader(file).fieldnames or ())


@names
def test_any_name_is_text_in_markdown(name: str) -> None:
    comparison = named(name)
    page = MarkdownIt("gfm-like", {"linkify": False}).render(markdown(comparison))
    paragraphs = re.findall(r"<p>(.*?)</p>", page, re.DOTALL)
    expected = squeezed(f"{comparison.labels[0]}: {as_text(name)}")
    assert squeezed(html.unescape(paragraphs[0])) == expected
    assert set(re.findall(r"<(\w+)", page)) <= {"table", "thead", "tbody", "tr", "th", "td", "p"}


@stored_names
def test_a_cell_is_text_in_markdown(name: str) -> None:
    cells = comparison_of([Entry.of(row(device=one), Path("r")) for one in (name, "b")])
    page = MarkdownIt("gfm-like", {"linkify": False}).render(markdown(cells))
    first = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", page, re.DOTALL)
    assert squeezed(as_text(name)) in [squeezed(html.unescape(one)) for one in first]
    assert len(first) == 3 * len(cells.columns)


def test_a_remark_does_not_begin_a_heading_or_a_list() -> None:
    for components in ("# a", "- a", "1. a", "2) a", "=", "+ a"):
        failed = Entry(Path("r"), Status.failed, facts(components), error="x")
        page = MarkdownIt("gfm-like", {"linkify": False}).render(markdown(comparison_of([failed])))
        assert f"<p>{components} {{-1,1}} failed: x</p>" in page


def test_a_report_replaces_links_and_leaves_what_they_point_to(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", row())
    other = tmp_path / "other"
    other.write_text("mine", encoding="utf-8")
    files = [run / f"results.{suffix}" for suffix in ("html", "csv", "md", "png")]
    for file in files:
        file.symlink_to(other)
    write_results(compare([run]), run)
    failed = Entry(run, Status.failed, facts("all"), error="x")
    write_page(comparison_of([failed]), run / "results.html")  # without charts, which take seconds
    assert other.read_text(encoding="utf-8") == "mine"
    assert all(file.is_file() and not file.is_symlink() for file in files)
    assert {path.name for path in run.glob(".*")} <= {".lock"}


def test_a_picture_takes_dollars_for_text(tmp_path: Path) -> None:
    comparison = comparison_of([Entry.of(row("$\\frac{$"), tmp_path)])
    assert "results.png" in write_results(comparison, tmp_path)


def test_a_folder_whose_name_is_no_text_is_reported(tmp_path: Path) -> None:
    entries = [replace(Entry.of(row(seed=seed), Path("a\udc80\x1b"))) for seed in (1, 1)]
    comparison = comparison_of(entries)
    write_results(comparison, tmp_path)
    failed = replace(entries[0], status=Status.failed, row=None, error="x")
    write_page(comparison_of([failed]), tmp_path / "results.html")
    assert "\\udc80" in (tmp_path / "results.html").read_text(encoding="utf-8")
    assert "a\\udc80" in (tmp_path / "results.csv").read_text(encoding="utf-8")
    print_table(comparison)


@given(NAMES)
def test_an_error_is_one_line_without_escape_sequences(name: str) -> None:
    said = str(InputError(name))
    assert said.isprintable()
    assert said == as_text(said)
