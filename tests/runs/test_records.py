"""Rows and facts: JSON and back, old files, and what is said of their fields."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs.records import NAIVE, UNBINARIZED, any_of, json_values, rows

from bitmaps.errors import InputError
from bitmaps.report.entries import identity
from bitmaps.runs.records import (
    PARTS,
    RENAMED,
    Facts,
    KnownScores,
    Machine,
    Role,
    Row,
    Scores,
    Size,
    Timing,
    columns,
    fields_with,
    headline,
    measures,
    parse,
    parse_row,
    perplexity,
    score_names,
)
from bitmaps.vocabulary import Activations, RowKind, Scale, Split, Storage, Task, ValueSet

REQUIRED = {"row", "cross_entropy", "accuracy", "mrr", "memory_mib"}
FLAT = {**NAIVE.flat(), "settings": {"a": 1}}


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(value, allow_nan=False))


@settings(deadline=None, max_examples=50)
@given(rows)
def test_a_row_comes_back_from_its_flat_object(row: Row) -> None:
    assert parse_row(row.flat()) == row
    assert parse_row(through_json(row.flat())) == row
    assert through_json(parse_row(through_json(row.flat())).flat()) == through_json(row.flat())


def test_a_row_is_flat_but_for_its_mappings() -> None:
    flat = through_json(UNBINARIZED.flat())
    nested = {name for name, value in flat.items() if isinstance(value, dict | list)}
    assert nested == {"versions", "settings", "known"}
    assert set(flat) == {one.name for part in PARTS.values() for one in fields(part)} | {"known"}
    assert (flat["row"], flat["cross_entropy"], flat["device"]) == ("unbinarized", 2.0, None)


def test_words_come_back_as_members_of_enums() -> None:
    facts = parse_row(through_json(NAIVE.flat())).facts
    assert facts.row is RowKind.naive
    assert facts.split is Split.test
    assert facts.values is ValueSet("01")
    assert facts.scale is Scale.none


@settings(deadline=None, max_examples=50)
@given(row=rows, absent=st.sets(st.sampled_from(sorted(FLAT.keys() - REQUIRED))))
def test_a_row_that_lacks_optional_keys_opens(row: Row, absent: set[str]) -> None:
    usual = Row(Facts(), Scores(), Size(0.0)).flat()
    flat = row.flat()
    found = parse_row({name: flat[name] for name in flat.keys() - absent}).flat()
    assert found == flat | {name: usual[name] for name in absent}


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.text().filter(lambda key: key not in FLAT), json_values))
def test_unknown_keys_are_ignored(unknown: dict[str, Any]) -> None:
    assert parse_row(FLAT | unknown) == parse_row(FLAT)
    assert parse_row(FLAT | {"known": {**FLAT["known"], "x": unknown}}) == parse_row(FLAT)


@pytest.mark.parametrize("name", sorted(REQUIRED))
def test_what_a_row_lacks_is_named(name: str) -> None:
    with pytest.raises(InputError, match=f"^there is no {name}$"):
        parse_row({key: value for key, value in FLAT.items() if key != name})


def test_a_row_is_of_some_kind() -> None:
    with pytest.raises(InputError, match=r"^there is no row$"):
        parse_row(FLAT | {"row": None})


@pytest.mark.parametrize("name", FLAT)
def test_a_list_is_no_value_of_any_field(name: str) -> None:
    with pytest.raises(InputError, match=rf"^{name} is \[7\]: "):
        parse_row(FLAT | {name: [7]})


NUMBERS = {*measures(), "seed", "limit", "steps", "perplexity", "threads", "inference_repeats"}


@pytest.mark.parametrize("name", sorted(NUMBERS))
@pytest.mark.parametrize("value", ["1", True, {}])
def test_what_is_no_number_is_named(name: str, value: Any) -> None:
    with pytest.raises(InputError) as caught:
        parse_row(FLAT | {name: value})
    assert str(caught.value).startswith(f"{name} is {value!r}: ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"row": "best"},
            r"^row is 'best': .*'unbinarized', 'naive', 'calibrated', 'tuned', 'trained'",
        ),
        ({"values": "02"}, "^values is '02': .*'01' or 'pm1'"),
        ({"components": 3}, "^components is 3: "),
        ({"versions": {"torch": 2}}, r"^versions\.torch is 2: "),
        ({"known": None}, "^known is None: "),
        ({"known": {"accuracy": "high"}}, r"^known\.accuracy is 'high': "),
        ({"settings": "none"}, "^settings is 'none': "),
    ],
)
def test_a_value_of_another_type_is_named_with_its_key(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        parse_row(FLAT | changes)


@pytest.mark.parametrize("value", [1, "row", None, [], [FLAT]])
def test_what_is_no_object_is_no_row(value: Any) -> None:
    with pytest.raises(InputError, match="should be an object"):
        parse_row(value)


def test_a_long_value_is_cut_in_the_message() -> None:
    with pytest.raises(InputError) as caught:
        parse_row(FLAT | {"seed": "7" * 1000})
    assert len(str(caught.value)) < 100


# What is stored with a trained model

TRAINED = Facts(
    model="minilm",
    data="wiki",
    components="ffnn",
    values=ValueSet("pm1"),
    scale=Scale.row,
    recipe="bitmaps",
    embeddings=Storage.int8,
    activations=Activations.bit,
    one_bit_inputs="query+key",
    steps=9,
    best_step=5,
    seed=3,
    settings={"optimizer.lr": 0.5, "data.length": 32},
)


def test_a_trained_model_knows_how_it_was_made_and_not_where_it_was_scored() -> None:
    stored = through_json(TRAINED.of_model())
    assert set(stored) == {
        "components", "values", "scale", "scope", "recipe", "loss", "embeddings", "activations",
        "one_bit_inputs", "calibrated_on", "tuned_on", "steps", "best_step", "seed", "settings",
        "task", "teacher",
    }  # fmt: skip
    scored = Facts(
        model="hub", data="ptb", command="python evaluate.py", seed=481, row=RowKind.packed
    )
    found = scored.with_model(stored)
    assert found == replace(
        TRAINED, model="hub", data="ptb", command="python evaluate.py", row=RowKind.packed
    )


@settings(deadline=None, max_examples=50)
@given(asked=any_of(Facts), trained=any_of(Facts))
def test_facts_of_a_model_replace_those_that_were_asked_for(asked: Facts, trained: Facts) -> None:
    found = asked.with_model(through_json(trained.of_model()))
    assert found.of_model() == trained.of_model() | {
        "settings": {**trained.settings, **asked.settings}
    }
    other = [one.name for one in fields(Facts) if one.name not in fields_with(Role.model)]
    assert [getattr(found, name) for name in other] == [getattr(asked, name) for name in other]


def test_facts_that_a_model_does_not_have_stay() -> None:
    assert TRAINED.with_model({}) == TRAINED
    assert TRAINED.with_model({"seed": None, "later": 1}) == replace(TRAINED, seed=None)


def test_settings_of_the_scoring_go_before_those_of_the_training() -> None:
    found = TRAINED.with_model({"settings": {"data.length": 64, "optimizer.lr": 0.25, "new": 1}})
    assert found.settings == {"data.length": 32, "optimizer.lr": 0.5, "new": 1}


@pytest.mark.parametrize("stored", [{"seed": "3"}, {"settings": []}, {"values": "02"}])
def test_a_mistyped_fact_of_a_model_is_named(stored: dict[str, Any]) -> None:
    ((name, value),) = stored.items()
    with pytest.raises(InputError) as caught:
        Facts().with_model(stored)
    assert str(caught.value).startswith(f"{name} is {value!r}: ")


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_a_class_that_moved_is_the_same_setting(old: str, new: str) -> None:
    key = "callbacks.signs._target_"
    before, after = (FLAT | {"settings": {key: name, "loss.hidden": 1.0}} for name in (old, new))
    assert parse_row(before) == parse_row(after)
    assert parse(Facts, before) == parse(Facts, after)
    assert identity(parse_row(before).flat()) == identity(after)
    assert Facts().with_model({"settings": {key: old}}).settings == {key: new}


def test_classes_that_moved_are_there() -> None:
    assert RENAMED == {"bitmaps.diagnostics.SignWatch": "bitmaps.training.sign_watch.SignWatch"}


# What is said of the fields


def test_the_columns_of_every_table() -> None:
    assert {name: column.heading for name, column in columns().items()} == {
        "components": "components",
        "values": "values",
        "row": "row",
        "cross_entropy": "CE",
        "accuracy": "accuracy",
        "mrr": "MRR",
        "f1": "F1",
        "matthews": "MCC",
        "cosine": "cosine",
        "recall_at_10": "recall@10",
        "spearman": "Spearman",
        "pearson": "Pearson",
        "inference_ms": "ms",
        "sentences_per_second": "sentences/s",
        "memory_mib": "MiB (pseudo)",
    }
    assert list(columns()) == [*("components", "values", "row"), *measures()]


def test_measures_are_numbers_and_have_a_title() -> None:
    assert all(format(1.5, column.format) for column in measures().values())
    assert all(column.title for column in measures().values())
    better_high = {name for name, column in measures().items() if not column.lower_is_better}
    assert measures().keys() - better_high == {"cross_entropy", "inference_ms", "memory_mib"}
    assert score_names() == ["cross_entropy", "accuracy", "mrr"]
    assert score_names(Scores(recall_at_10=0.5, cosine=0.5)) == ["cosine", "recall_at_10"]


def test_charts_show_the_score_that_a_task_is_about() -> None:
    def row(task: Task, **scores: float) -> Row:
        return Row(Facts(task=task), Scores(**scores), Size(1.0))

    vectors = row(Task.sentence_embedding, cosine=0.5, recall_at_10=0.5)
    judged = row(Task.sentence_embedding, cosine=0.5, recall_at_10=0.5, spearman=80.0)
    assert headline([NAIVE]) == headline([]) == headline([NAIVE, vectors]) == "cross_entropy"
    assert headline([vectors]) == "recall_at_10"
    assert headline([vectors, judged]) == "spearman"
    assert headline([row(Task.classification, accuracy=0.5, cross_entropy=0.5)]) == "accuracy"


def test_roles_are_of_fields() -> None:
    flat = NAIVE.flat()
    for role in Role:
        assert fields_with(role)
        assert set(fields_with(role)) <= set(flat)
    both = fields_with(Role.label | Role.text)
    assert set(both) == {*fields_with(Role.label), *fields_with(Role.text)}
    assert len(both) == len(set(both))
    assert both == tuple(name for name in flat if name in both)
    texts = (
        "task", "data", "split", "limit", "mask_seed", "mask_sets", "similarity", "masked_tokens",
        "sentences",
    )  # fmt: skip
    assert fields_with(Role.text) == texts
    assert fields_with(Role.label) == ("components", "values", "row", "scale")


def test_what_tells_no_rows_apart_is_known() -> None:
    """A new field tells rows apart, is a measure, or is added here."""
    compared = fields_with(~Role.model)
    told = {*compared, *measures(), "settings"}
    assert set(NAIVE.flat()) - told == {
        "command", "versions", "commit", "best_step", "seed", "perplexity", "known",
        "inference_masked_ms", "inference_repeats", "resident_mib", "teacher", "guessing",
        "processor", "scored_at",
    }  # fmt: skip


def test_parts_that_were_not_measured_are_empty() -> None:
    for part in (KnownScores(), Timing(), Machine()):
        assert set(asdict(part).values()) == {None}
    assert Scores(1.0, 0.5, 0.5).masked_tokens is None


def test_perplexity_is_null_where_fp64_overflows() -> None:
    assert perplexity(262.0) == pytest.approx(10 ** (262 / math.log(10)))
    assert perplexity(709.0) is not None
    assert perplexity(710.0) is None
    assert json.dumps(perplexity(1000.0)) == "null"
