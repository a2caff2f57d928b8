"""What a configuration says of a run: its facts, and the settings beside them."""

from __future__ import annotations

import json

import pytest
from command.commands import config

from bitmaps.runs.records import Facts


@pytest.mark.parametrize(
    ("overrides", "components"),
    [
        ("binarize=none", "none"),
        ("binarize=layers_except_ffnn", "layers_except_ffnn"),
        ("binarize=attention", "attention"),
        ("binarize.components=[head,attention]", "attention+head"),
        ("binarize=layers binarize.components=[ffnn,attention]", "layers"),
        ("binarize=layers binarize.components=[ffnn]", "ffnn"),
        ("binarize=ffnn binarize.components=[]", "none"),
    ],
)
def test_components_go_by_their_groups_name_or_their_own(overrides: str, components: str) -> None:
    assert config("evaluate", *overrides.split()).facts().components == components


def test_facts_say_what_is_run() -> None:
    composed = config(
        "train", "binarize=all", "values=01", "scale=tensor", "limit=9", "seed=3", "data.split=test"
    )
    assert composed.facts() == Facts(
        model="minilm",
        weights="pretrained",
        data="wiki",
        split="test",
        limit=9,
        components="all",
        values="01",
        scale="tensor",
        scope="matrices",
        recipe="bitmaps",
        loss="common",
        embeddings="bit",
        activations="float",
        seed=3,
        mask_seed=481,
        mask_sets=1,
        settings=composed.settings(),
    )  # the rest is known when the run is over


@pytest.mark.parametrize(
    ("overrides", "stored"),
    [
        ("binarize=none", "fp32"),
        ("binarize=layers", "fp32"),
        ("binarize=all", "bit"),
        ("binarize=embeddings", "bit"),
        ("binarize=all embeddings=bit", "bit"),
        ("binarize=layers embeddings=bit", "bit"),
        ("binarize=layers embeddings=int8", "int8"),
        ("binarize=none embeddings=int4", "int4"),
    ],
)
@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_the_word_table_is_stored_as_asked_or_as_its_component_says(
    command: str, overrides: str, stored: str
) -> None:
    composed = config(command, *overrides.split())
    composed.check()
    assert composed.word_table() == composed.facts().embeddings == stored


def test_facts_tell_how_it_is_run() -> None:
    trained = config(
        "train", "recipe=bwn", "loss=common", "activations=int8", "mask_sets=5", "mask_seed=7"
    ).facts()
    assert (trained.recipe, trained.loss, trained.activations) == ("bwn", "common", "int8")
    assert (trained.mask_seed, trained.mask_sets) == (7, 5)
    scored = config("evaluate", "activations=int8", "binarize=layers").facts()
    assert (scored.recipe, scored.loss, scored.activations) == (None, None, "int8")


OF_A_MODEL = {
    "model.source",
    "model.adapter",
    "model.head",
    "data.configuration",
    "data.column",
    "data.length",
}


def test_settings_are_all_else_that_decides_how_a_model_comes_out() -> None:
    assert set(config("evaluate").settings()) == OF_A_MODEL
    plain = config("train").settings()
    assert plain.keys() > OF_A_MODEL
    assert (plain["optimizer.lr"], plain["recipe.gradient"], plain["loss.hidden"]) == (
        4e-4,
        "scaled",
        100.0,
    )
    json.dumps(plain)  # goes into files


@pytest.mark.parametrize(
    "override",
    [
        "optimizer.lr=1", "optimizer.weight_decay=0.5", "recipe.gradient=clipped", "recipe.center=row", "loss.more_masked=0",
        "data.batch_size=1", "data.length=32", "model.adapter=null", "model.dropout=0.1", "schedule.num_warmup_steps=5",
        "trainer.precision=bf16-mixed", "trainer.gradient_clip_val=null",
    ],
)  # fmt: skip
def test_each_setting_goes_by_its_key(override: str) -> None:
    plain, changed = config("train").settings(), config("train", override).settings()
    assert {key for key in changed if changed[key] != plain[key]} == {override.split("=")[0]}


def test_the_step_from_which_inputs_are_rounded_is_a_setting_where_it_is_not_the_first() -> None:
    """Runs of earlier, which rounded from the first step on, have no such setting."""
    assert "activations_from" not in config("train").settings()
    assert config("train", "activations_from=0.5").settings()["activations_from"] == 0.5


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "text='[MASK]'",
        "measure=none",
        "logger=wandb_offline",
        "trainer.max_steps=480",
        "data.eval_batch_size=1",
    ],
)
def test_what_decides_nothing_or_is_a_fact_of_its_own_is_no_setting(override: str) -> None:
    assert config("train", override).settings() == config("train").settings()


def test_nothing_binarized_has_no_values_scale_or_scope() -> None:
    facts = config("evaluate", "binarize=none", "values=01", "scale=row").facts()
    assert (facts.values, facts.scale, facts.scope, facts.recipe) == (None, None, None, None)


def test_a_recipe_is_no_setting_where_nothing_is_binarized() -> None:
    def parts(*overrides: str) -> set[str]:
        return {key.split(".")[0] for key in config("train", *overrides).settings()}

    assert "recipe" not in parts("binarize=none")
    assert "recipe" in parts("binarize=none", "embeddings=bit") & parts("binarize=embeddings")


def test_random_weights_of_a_shape_go_by_the_name_of_their_model() -> None:
    shape = ("model.weights=random", "+model.shape={hidden_size: 8}", "model.random_tokenizer=x")
    assert config("train", "model=hub", "model.source=null", *shape).facts().model == "hub"


def test_what_comes_from_the_hub_goes_by_its_id() -> None:
    facts = config(
        "evaluate", "model=hub", "model.source=me/bert", "data=hub", "data.path=me/text"
    ).facts()
    assert (facts.model, facts.data) == ("me/bert", "me/text")


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_a_sentence_of_ones_own_is_no_part_of_what_is_run(command: str) -> None:
    plain, own = config(command), config(command, "text='the [MASK] of england'", "analysis=true")
    assert (plain.text, plain.analysis) == (None, False)
    assert (own.text, own.analysis) == ("the [MASK] of england", True)
    assert own.facts() == plain.facts()
    assert config(command, "text='a, b=[MASK]: {c}'").text == "a, b=[MASK]: {c}"
