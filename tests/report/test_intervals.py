"""Differences between rows and their intervals, and the committed results."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from report.examples import facts, finished, row, unfinished

from bitmaps.errors import InputError
from bitmaps.report import intervals
from bitmaps.report.comparison import compare
from bitmaps.report.intervals import Interval, Results, compare_with, differences
from bitmaps.report.quality import Quality
from bitmaps.runs.records import measures, score_names
from bitmaps.vocabulary import RowKind

Array = NDArray[np.float64]
DOCS = Path(__file__).resolve().parents[2] / "docs"


def sums_of(seed: int, sentences: int = 60, better: float = 0.0) -> Array:
    """(sentences, 4): masked tokens, the same for every ``better``, and sums of scores."""
    generator = np.random.RandomState(seed)
    counts = generator.randint(1, 6, sentences)
    cross_entropy = counts * np.maximum(generator.gamma(3, 1, sentences) - better, 0.01)
    hits = generator.binomial(counts, 0.4 + better / 10)
    columns = [counts, cross_entropy, hits, hits + 0.1 * (counts - hits)]
    return np.stack(columns, 1).astype(np.float64)


def bounds(interval: Interval) -> tuple[float, float, float]:
    return interval.value, interval.low, interval.high


# Two rows


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), better=st.floats(-1, 1))
def test_a_difference_is_between_means_over_masked_tokens(seed: int, better: float) -> None:
    ours, theirs = sums_of(seed, better=better), sums_of(seed)
    found = differences(ours, theirs, draws=200)
    assert set(found) == {*score_names(), *(f"{name}_ratio" for name in score_names())}
    for column, name in enumerate(("cross_entropy", "accuracy", "mrr"), 1):
        a, b = (np.average(x[:, column] / x[:, 0], weights=x[:, 0]) for x in (ours, theirs))
        assert found[name].value == pytest.approx(a - b, abs=1e-12)
        assert found[f"{name}_ratio"].value == pytest.approx(a / b)
    for one in found.values():
        assert one.low - 1e-8 <= one.value <= one.high + 1e-8
        assert all(type(number) is float for number in bounds(one))


def test_a_row_does_not_differ_from_itself() -> None:
    for name, one in differences(sums_of(0), sums_of(0)).items():
        assert set(bounds(one)) == {1.0 if name.endswith("_ratio") else 0.0}


def test_swapping_two_rows_changes_the_sign() -> None:
    one, other = sums_of(1), sums_of(1, better=1)
    forth, back = differences(one, other), differences(other, one)
    for name in score_names():
        assert forth[name].value == pytest.approx(-back[name].value)
        assert forth[name].low == pytest.approx(-back[name].high)
    assert forth["cross_entropy"].low > 0  # clearly worse


def test_a_difference_that_all_sentences_share_is_certain() -> None:
    """The bootstrap draws the same sentences for both. Draws of their own would add chance."""
    theirs = sums_of(2)
    ours = theirs.copy()
    ours[:, 1] += 0.5 * ours[:, 0]
    found = differences(ours, theirs)["cross_entropy"]
    assert bounds(found) == pytest.approx((0.5, 0.5, 0.5))
    assert found.high - found.low < 1e-9


def test_a_share_of_nothing_is_left_out() -> None:
    theirs = sums_of(0)
    theirs[:, 2] = 0
    found = differences(sums_of(0), theirs)
    assert "accuracy" in found
    assert "accuracy_ratio" not in found


@pytest.mark.parametrize("changed", ["counts", "order", "shape"])
def test_other_masked_sentences_are_an_error(changed: str) -> None:
    ours, theirs = sums_of(0), sums_of(0)
    if changed == "counts":
        theirs[7, 0] += 1
    theirs = {"counts": theirs, "order": theirs[::-1], "shape": theirs[:-1]}[changed]
    with pytest.raises(InputError, match="same masked sentences"):
        differences(ours, theirs)


def test_the_intervals_agree_with_scipys_bootstrap() -> None:
    stats = pytest.importorskip("scipy.stats")
    ours, theirs = sums_of(3, sentences=80, better=0.3), sums_of(3, sentences=80)
    found = differences(ours, theirs, draws=4000)

    def difference(count: Array, mine: Array, other: Array, axis: int) -> Any:
        return (mine.sum(axis) - other.sum(axis)) / count.sum(axis)

    def ratio(count: Array, mine: Array, other: Array, axis: int) -> Any:
        return mine.sum(axis) / other.sum(axis)

    options = {"paired": True, "n_resamples": 4000, "method": "percentile", "vectorized": True}
    for column, name in enumerate(score_names(), 1):
        for statistic, key in ((difference, name), (ratio, f"{name}_ratio")):
            data = (ours[:, 0], ours[:, column], theirs[:, column])
            expected = stats.bootstrap(data, statistic, rng=0, **options).confidence_interval
            tolerance = 0.1 * (expected.high - expected.low)
            assert found[key].low == pytest.approx(expected.low, abs=tolerance), key
            assert found[key].high == pytest.approx(expected.high, abs=tolerance), key


# Rows of a comparison


def scored(path: Path, better: float, **changes: Any) -> Path:
    """A run whose sentences and row agree."""
    sums = sums_of(0, better=better)
    means = (sums[:, 1:].sum(0) / sums[:, 0].sum()).tolist()
    scores = dict(zip(score_names(), means, strict=True))
    one = row(**{"components": "layers", "kind": "trained"} | scores | changes)
    return finished(path, one, sums=sums)


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """A teacher; two seeds of our recipe; three of another one, of which one failed."""
    ours = [scored(tmp_path / f"ours-{n}", 1 + n / 10, seed=n, recipe="bitmaps") for n in (0, 1)]
    bwn = [scored(tmp_path / f"bwn-{n}", n / 10, seed=n, recipe="bwn") for n in (0, 2)]
    failed = unfinished(tmp_path / "bwn-1", facts(recipe="bwn", seed=1), RuntimeError("x"))
    teacher = scored(tmp_path / "teacher", 1.5, components="none", recipe="bitmaps", seed=7)
    return [teacher, *ours, *bwn, failed]


TEACHER, OURS, BWN = (
    "none trained",
    "layers {-1,1} trained, recipe bitmaps",
    "layers {-1,1} trained, recipe bwn",
)


def test_a_line_has_the_scores_and_differences_of_its_seeds_and_their_means(
    runs: list[Path],
) -> None:
    results = compare_with(compare(runs), ["teacher", OURS])
    assert list(results.references) == [TEACHER, OURS]
    lines = {line.label: line for line in results.lines}
    assert list(lines) == [TEACHER, OURS, BWN]
    bwn = lines[BWN]
    assert [seed.seed for seed in bwn.seeds] == [0, 2]
    assert (bwn.facts.recipe, bwn.facts.seed, bwn.size.memory_mib) == ("bwn", None, 12.34)
    teacher = sums_of(0, better=1.5)
    for seed in bwn.seeds:
        assert seed.seed is not None
        assert seed.against[TEACHER] == differences(sums_of(0, better=seed.seed / 10), teacher)
    # seed by seed where the reference has several: it has no seed 2
    assert bwn.seeds[0].against[OURS] == differences(sums_of(0), sums_of(0, better=1))
    assert bwn.seeds[1].against[OURS] is bwn.against[OURS] is None
    mean = (sums_of(0) + sums_of(0, better=0.2)) / 2
    assert bwn.scores["mrr"] == pytest.approx(mean[:, 3].sum() / mean[:, 0].sum())
    # the interval of the pooled sentences, or a little wider; its middle is the same
    averaged = bwn.against[TEACHER]
    assert averaged is not None
    for name, pooled in differences(mean, teacher).items():
        assert averaged[name].value == pytest.approx(pooled.value)
        width = pooled.high - pooled.low
        assert 0.99 * width <= averaged[name].high - averaged[name].low <= 1.2 * width
    itself = lines[OURS].against[OURS]
    assert itself is not None
    assert {one.value for one in itself.values()} == {0.0, 1.0}


def test_the_lines_of_another_task_have_its_scores_the_best_first(tmp_path: Path) -> None:
    none = {"task": "classification", "masked_tokens": None, "mrr": None, "sentences": 40}
    of = {name: none | {"recipe": name, "components": "layers"} for name in ("bitmaps", "bwn")}
    folders = [
        finished(tmp_path / "a", row(**of["bwn"], kind="trained", accuracy=0.5, f1=0.625, seed=0)),
        finished(tmp_path / "b", row(**of["bwn"], kind="trained", accuracy=0.625, f1=0.5, seed=1)),
        finished(tmp_path / "c", row(**of["bitmaps"], kind="trained", accuracy=0.75, f1=0.75)),
    ]
    results = compare_with(compare(folders), [])
    intervals.write(results, tmp_path / "results.json")
    assert intervals.read(tmp_path / "results.json") == results
    bwn = next(line for line in results.lines if line.label.endswith("bwn"))
    assert (bwn.sentences, bwn.masked_tokens) == (40, None)
    assert (bwn.scores["accuracy"], bwn.scores["f1"]) == (0.5625, 0.5625)
    table = [cells(line) for line in intervals.tables(results).splitlines() if line]
    assert table[0][:5] == ["line", "seeds", "CE", "accuracy", "F1"]
    assert [line[0].rsplit(" ", 1)[1] for line in table[2:4]] == ["bitmaps", "bwn"]
    assert table[4][1:] == ["accuracy of the lowest seed", "of the highest seed"]
    assert table[-1][1:] == ["0.5000", "0.6250"]
    with pytest.raises(InputError, match="intervals are for masked words"):
        compare_with(compare(folders), [str(folders[2])])


def test_a_reference_is_named_by_its_label_or_by_a_run_folder(runs: list[Path]) -> None:
    comparison = compare(runs)
    for name in (OURS, "ours-1", str(runs[1])):
        assert list(compare_with(comparison, [name]).references) == [OURS]
    for name in ("bwn-1", "nothing"):  # one failed
        with pytest.raises(InputError, match=f"'{name}' is no row and no run folder.*{TEACHER};"):
            compare_with(comparison, [name])
    again = scored(runs[0].parent / "sweep" / "teacher", 1.4, recipe="bwn", components="all")
    with pytest.raises(InputError, match="'teacher' fits several rows"):
        compare_with(compare([*runs, again]), ["teacher"])


def test_a_folder_stands_for_the_own_row_of_its_run(tmp_path: Path) -> None:
    rows = [row("none", "unbinarized"), row("ffnn"), row("ffnn", "trained")]
    folder = finished(tmp_path / "job", *rows, sums=sums_of(0))
    assert list(compare_with(compare([folder]), ["job"]).references) == ["ffnn {-1,1} trained"]


def test_rows_on_other_text_have_no_difference(runs: list[Path], tmp_path: Path) -> None:
    other = scored(tmp_path / "other", 1, data="ptb")
    results = compare_with(compare([*runs, other]), ["teacher"])
    (line,) = (line for line in results.lines if line.facts.data == "ptb")
    assert line.against == {TEACHER: None}
    assert f"| {line.label} |  |  |  |" in intervals.tables(results)


def test_a_run_without_scores_by_sentence_is_an_error(runs: list[Path]) -> None:
    (runs[-2] / "sentences.npz").unlink()
    with pytest.raises(InputError, match=r"sentences\.npz is missing or damaged"):
        compare_with(compare(runs), ["teacher"])


def test_results_are_read_back_as_they_were_written(runs: list[Path], tmp_path: Path) -> None:
    results = compare_with(compare(runs), ["teacher", OURS])
    intervals.write(results, tmp_path / "results.json")
    assert intervals.read(tmp_path / "results.json") == results
    for text in ("{}", "[]", '{"references": [], "lines": [{"label": 3}]}'):
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(InputError, match=r"results\.json is damaged or of another version"):
            intervals.read(tmp_path / "results.json")


# Tables


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def test_the_tables_have_a_line_each_the_lowest_cross_entropy_first(runs: list[Path]) -> None:
    results = compare_with(compare(runs), ["teacher", OURS])
    tables = [
        [cells(line) for line in table.splitlines()]
        for table in intervals.tables(results).split("\n\n")
    ]
    scores, compared, spread = tables
    assert scores[0] == ["line", "seeds", "CE", "accuracy", "MRR", "MiB (pseudo)"]
    headings = [f"CE above {TEACHER}", f"CE above {OURS}", "accuracy kept, %", "MRR kept, %"]
    assert compared[0] == ["line", *headings]
    assert [line[:2] for line in scores[2:]] == [[TEACHER, "1"], [OURS, "2"], [BWN, "2"]]
    bwn = next(line for line in results.lines if line.label == BWN)
    means = [f"{bwn.scores[name]:.4f}" for name in score_names()]
    assert scores[4] == [BWN, "2", *means, "12.3"]
    versus = bwn.against[TEACHER]
    assert versus is not None
    ce, accuracy = versus["cross_entropy"], versus["accuracy_ratio"]
    assert compared[4][1] == f"{ce.value:+.3f} ({ce.low:+.3f} to {ce.high:+.3f})"
    expected = (f"{100 * number:.1f}" for number in bounds(accuracy))
    assert compared[4][3] == "{} ({} to {})".format(*expected)
    assert compared[4][2] == ""  # there is no third seed of ours
    assert compared[2] == [TEACHER, "", compared[2][2], "", ""]  # not compared with itself
    losses = [f"{seed.scores['cross_entropy']:.4f}" for seed in bwn.seeds]
    assert spread[3] == [BWN, min(losses), max(losses)]


def test_lines_are_selected_by_patterns(runs: list[Path]) -> None:
    results = compare_with(compare(runs), [])
    assert intervals.select(results, []) == results
    chosen = intervals.select(results, ["none*", "*recipe b?n"])
    assert [line.label for line in chosen.lines] == [TEACHER, BWN]
    with pytest.raises(InputError, match="--line x matches none of none trained"):
        intervals.select(results, ["none*", "x"])


def test_sizes_are_drawn_for_the_lines_that_are_there(runs: list[Path], tmp_path: Path) -> None:
    results = compare_with(compare(runs), [])
    pictures = []
    for patterns in ([], ["none*"]):
        intervals.draw_sizes(intervals.select(results, patterns), tmp_path / "sizes.png")
        pictures += [(tmp_path / name).read_bytes() for name in ("sizes.png", "sizes-dark.png")]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert len(set(pictures)) == 4


def test_a_picture_of_sizes_has_times_and_who_guesses(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = scored(tmp_path / "timed", 1, kind="packed", inference_ms=2.5, guessing=9.0)
    results = compare_with(compare([*runs[:1], timed]), [])
    intervals.write(results, tmp_path / "results.json")
    charts: list[Quality] = []
    monkeypatch.setattr(intervals, "draw_both", lambda chart, path: charts.append(chart))
    intervals.draw_sizes(intervals.read(tmp_path / "results.json"), tmp_path / "sizes.png")
    (dots,) = ({dot.kind: dot for dot in chart.dots} for chart in charts)
    found = {(kind, dot.short, dot.guessing, dot.ms) for kind, dot in dots.items()}
    teacher = results.lines[0]
    assert found == {
        (RowKind.packed, "layers {-1,1}", 9.0, 2.5),
        (RowKind.trained, "none", teacher.guessing, teacher.timing.inference_ms),
    }


# The committed results


def table_rows(text: str) -> dict[tuple[str, int], list[str]]:
    """The lines of the tables: (label, number of cells) -> cells."""
    lines = [cells(line) for line in text.splitlines() if line.startswith("|")]
    return {(line[0].strip("*`"), len(line)): line[1:] for line in lines}


@pytest.mark.parametrize("budget", ["short", "long"])
def test_the_documents_have_the_figures_of_the_committed_results(budget: str) -> None:
    results: Results = intervals.read(DOCS / "results" / "ptb" / f"{budget}.json")
    text = (DOCS / "recipes.md").read_text(encoding="utf-8")
    (section,) = re.findall(rf"^## Results: {budget} budget$(.*?)^## ", text, re.M | re.S)
    shown = table_rows(section)
    teacher, _ = results.references
    for (label, width), figures in table_rows(intervals.tables(results)).items():
        if label in ("line", "---") or (label, width) == (teacher, 5):
            continue
        documented = shown.pop((label, width))
        if label == teacher:
            figures[0] = ""  # how many seeds it has is of no interest
        assert documented == figures, f"{label} in docs/recipes.md"
    labels = {line.label for line in results.lines}
    assert not [label for label, width in shown if label in labels and width > 2]


def test_the_table_of_int6_has_the_figures_of_the_committed_results() -> None:
    results = intervals.read(DOCS / "results" / "ptb" / "int6.json")
    text = (DOCS / "recipes.md").read_text(encoding="utf-8")
    (section,) = re.findall(r"^## Activations in int6$(.*?)^## ", text, re.M | re.S)
    shown, lines = table_rows(section), {line.label: line for line in results.lines}
    whole, floats = results.references
    assert f"(CE {lines.pop(whole).scores['cross_entropy']:.4f})" in section
    for label, line in lines.items():
        found = line.against[floats]
        above = "" if label == floats else intervals.interval_text(found and found["cross_entropy"])
        scores = (f"{line.scores[name]:.4f}" for name in ("cross_entropy", "accuracy", "mrr"))
        assert shown.pop((label, 5)) == [*scores, above], label
    assert {label for label, _ in shown} == {"activations", "---"}


@pytest.mark.parametrize(("task", "lines"), [("sts", 13), ("sst2", 7), ("mrpc", 8)])
def test_the_page_of_tasks_has_the_figures_of_the_committed_results(task: str, lines: int) -> None:
    results = intervals.read(DOCS / "results" / "tasks" / f"{task}.json")
    assert len(results.lines) == lines
    section = {"sts": "Sentence vectors", "sst2": "Sentiment", "mrpc": "Paraphrases"}[task]
    text = (
        (DOCS / "tasks.md").read_text(encoding="utf-8").split(f"## {section}")[1].split("\n## ")[0]
    )
    shown = [cells(line)[1:] for line in text.splitlines() if line.startswith("|")]
    names = {"sts": ("cosine", "recall_at_10", "spearman", "pearson"),
             "sst2": ("cross_entropy", "accuracy", "f1"),
             "mrpc": ("accuracy", "f1")}[task]  # fmt: skip
    for line in results.lines:
        figures = [f"{line.scores[name]:{measures()[name].format}}" for name in names]
        assert figures in [row[: len(names)] for row in shown], f"{line.label} in docs/tasks.md"
        assert line.facts.command.startswith("python ")
        assert re.fullmatch("[0-9a-f]{40}", str(line.facts.commit))


def test_the_committed_results_have_what_made_them() -> None:
    for budget, count in (("short", 27), ("long", 10), ("int6", 6)):
        path = DOCS / "results" / "ptb" / f"{budget}.json"
        lines = intervals.read(path).lines
        assert len(lines) == count
        for line in lines:
            assert line.facts.command.startswith("python ")
            assert re.fullmatch("[0-9a-f]{40}", str(line.facts.commit))
            assert line.facts.versions.keys() >= {"torch", "lightning"}
            means = [np.mean([seed.scores[name] for seed in line.seeds]) for name in score_names()]
            assert [line.scores[name] for name in score_names()] == pytest.approx(means)
        json.loads(path.read_text(), parse_constant=lambda constant: pytest.fail(constant))
