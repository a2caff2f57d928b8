"""What ``conf/`` composes to, and what is refused."""

from __future__ import annotations

import itertools
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
from command.commands import config
from hydra.errors import ConfigCompositionException, MissingConfigException
from omegaconf import OmegaConf

from bitmaps.command.schema import Evaluate, Train, conf_dir
from bitmaps.errors import InputError
from bitmaps.training.losses import LossWeights
from bitmaps.vocabulary import GROUPS, Scale

CONF = conf_dir()
FILES = sorted(CONF.rglob("*.yaml"))


def commands_of(path: Path) -> list[tuple[str, str]]:
    """The commands that the comment at the top of a file names: ``train`` or ``evaluate``, and what
    comes after it."""
    lines = path.read_text(encoding="utf-8").splitlines()
    opening = "\n".join(itertools.takewhile(lambda line: line.startswith("#"), lines))
    return re.findall(r"python (train|evaluate)\.py(.*)", opening)


CHOICES = {  # what a command line can choose from; an experiment is one of its own command alone
    command: {
        (group, path.stem)
        for default in OmegaConf.load(CONF / f"{command}.yaml").defaults
        if default not in ("_self_", f"{command}_schema")
        for group in default
        for path in (CONF / group).glob("*.yaml")
        if group != "experiment" or command in dict(commands_of(path))
    }
    for command in ("train", "evaluate")
}


def test_the_schema_is_that_of_its_command() -> None:
    assert isinstance(config("train"), Train)
    assert isinstance(config("evaluate"), Evaluate)


def test_conf_is_found() -> None:
    assert {path.name for path in CONF.glob("*.yaml")} == {"train.yaml", "evaluate.yaml"}
    assert len(FILES) == 64


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONF)))
def test_every_file_opens_with_a_comment_that_names_a_command_that_composes(path: Path) -> None:
    assert commands_of(path)
    for command, line in commands_of(path):
        line = re.sub(r"<[^>]*>", "somewhere", line).split("#")[0]
        words = [word.split("=", 1) for word in shlex.split(line) if word != "-m"]
        for values in itertools.product(*(value.split(",") for _, value in words)):
            typed = [f"{name}={value}" for (name, _), value in zip(words, values, strict=True)]
            config(command, *typed).check()


def test_every_file_can_be_chosen() -> None:
    groups = {(path.parent.name, path.stem) for path in FILES if path.parent != CONF}
    assert groups == CHOICES["train"] | CHOICES["evaluate"]


NEEDED = {  # what a choice takes beside it
    ("model", "hub"): ["model.source=x"],
    ("data", "labeled"): ["task=classification"],
    ("data", "glue"): ["task=classification"],
    ("task", "classification"): ["data=labeled"],
    ("training", "sentence_embedding"): ["task=sentence_embedding"],
}


@pytest.mark.parametrize(
    ("command", "group", "choice"),
    [(command, *pair) for command in CHOICES for pair in sorted(CHOICES[command])],
)
def test_every_choice_composes_and_passes_its_check(command: str, group: str, choice: str) -> None:
    composed = config(command, f"{group}={choice}", *NEEDED.get((group, choice), []))
    composed.check()
    if group in ("binarize", "model", "data", "recipe", "loss"):
        assert getattr(composed, group).name == choice
    if group == "values":
        assert composed.values == choice


def test_binarize_names_the_blog_posts_groups() -> None:
    for name, components in GROUPS.items():
        found = config("evaluate", f"binarize={name}").binarize.components
        assert sorted(found) == sorted(components)


def test_01_on_the_command_line_is_text_and_not_a_number() -> None:
    assert config("evaluate", "values=01").values == "01"


def test_the_command_line_wins_over_the_recipe() -> None:
    assert config("train").scale is Scale.rank_one
    assert config("train", "scale=tensor").scale is Scale.tensor
    assert config("train", "recipe.gradient=clipped").recipe.gradient.name == "clipped"


def test_a_recipe_brings_its_loss_unless_another_is_chosen() -> None:
    assert config("train").loss.name == "common"
    assert config("train", "recipe=bwn").loss.name == "bwn"
    assert config("train", "loss=common", "recipe=bwn").loss.name == "common"
    assert config("train", "recipe=bwn", "loss=common").recipe.name == "bwn"
    assert config("train", "recipe=bwn", "loss.attention=3").loss.weights() == {
        "cross_entropy": 0, "logits": 1, "hidden": 1, "directions": 0, "attention": 3, "relations": 0,
        "vectors": 0,
    }  # fmt: skip


def test_what_a_loss_leaves_out_weighs_nothing() -> None:
    assert config("train", "loss=tokens").loss.weights() == vars(LossWeights())
    assert config("train", "loss=onebit").loss.weights() == vars(LossWeights(0, 1, 0, 1))
    assert list(config("train").loss.weights()) == [field.name for field in fields(LossWeights)]


def test_the_standard_work_is_one_teacher_and_recipes_that_start_from_it() -> None:
    teacher = config("train", "experiment=ptb")
    assert (teacher.loss.name, teacher.data.name) == ("tokens", "ptb")
    assert teacher.binarize.components == []
    for budget, steps in (("ptb_short", 300), ("ptb_long", 1500)):
        student = config("train", f"experiment={budget}", "recipe=bwn")
        assert (student.loss.name, student.recipe.name, student.scale.name) == (
            "bwn",
            "bwn",
            "tensor",
        )
        assert (student.model.source, student.binarize.name, student.data.name) == (
            "runs/ptb/teacher",
            "layers",
            "ptb",
        )
        assert student.trainer.max_steps == student.schedule["num_training_steps"] == steps
        assert student.mask_sets == teacher.mask_sets == 5
        assert student.references is teacher.references is False
        assert (
            config("train", f"experiment={budget}", "recipe=bwn", "loss=common").loss.name
            == "common"
        )


def test_the_schedule_ends_with_the_training() -> None:
    assert config("train", "trainer.max_steps=700").schedule["num_training_steps"] == 700


def test_an_experiment_chooses_model_and_data() -> None:
    composed = config("evaluate", "experiment=blog_post")
    assert (composed.model.name, composed.data.name) == ("bert_base", "ptb")
    assert config("evaluate", "experiment=blog_post", "data=wiki").data.name == "wiki"
    trained = config("train", "experiment=blog_post_trained")
    assert (trained.model.name, trained.data.name) == ("bert_base", "ptb")
    assert trained.trainer.max_steps == 1500


@pytest.mark.parametrize(
    "override",
    [
        "binarize=ears",
        "values=012",
        "data=newspapers",
        "model=gpt",
        "trainer=tpu",
        "loss=best",
        "recipe=best",
    ],
)
def test_an_unknown_choice_is_told_the_valid_ones(override: str) -> None:
    group, choice = override.split("=")
    with pytest.raises(MissingConfigException) as caught:
        config("train", override)
    assert choice in str(caught.value)
    assert all(name in str(caught.value) for g, name in CHOICES["train"] if g == group)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("binarize.components=[ears]", ("ears", "embeddings", "attention", "ffnn", "head")),
        ("scale=column", ("column", "none", "tensor", "row")),
        ("scale=learned", ("learned", "none", "tensor", "row", "rank_one")),
        ("recipe.gradient=none", ("none", "identity", "scaled", "clipped", "clamp", "product")),
        ("recipe.scaling=fixed", ("fixed", "computed", "learned", "lsq")),
        ("recipe.center=true", ("center", "none", "tensor", "row")),
        ("recipe.loss.hidden=1", ("loss",)),
        ("loss.hiden=1", ("hiden",)),
        ("loss.hidden=much", ("much", "hidden")),
        ("activations=int4", ("int4", "float", "int8", "int6", "bit")),
        (
            "one_bit_inputs=[eyes]",
            ("eyes", "query", "key", "value", "output", "expand", "contract"),
        ),
        ("references=maybe", ("maybe", "references")),
        ("mask_sets=five", ("five", "mask_sets")),
        ("calibrate=many", ("many", "calibrate")),
        ("data.split=train", ("train", "validation", "test")),
        ("embeddings=int7", ("int7", "fp32", "fp16", "int8", "int4", "bit")),
        ("seed=abc", ("abc", "seed")),
        ("limit=ten", ("ten", "limit")),
        ("optimiser.lr=1", ("optimiser",)),
        ("trainer.steps=5", ("steps",)),
    ],
)
def test_a_bad_value_is_named(override: str, named: tuple[str, ...]) -> None:
    with pytest.raises(ConfigCompositionException) as caught:
        config("train", override)
    message = f"{caught.value} {caught.value.__cause__}"
    assert all(name in message for name in named)


@pytest.mark.parametrize(
    ("command", "overrides", "message"),
    [
        ("evaluate", "limit=0", "limit=0 .* 1 or more"),
        ("evaluate", "data.eval_batch_size=0", "data.eval_batch_size=0 "),
        ("train", "data.batch_size=0", "data.batch_size=0 "),
        ("evaluate", "data.length=2", "data.length=2 .* 3 or more"),
        ("evaluate", "measure.batch_size=0", "measure.batch_size=0 "),
        ("evaluate", "measure.length=0", "measure.length=0 "),
        ("evaluate", "measure.repeats=-1", "measure.repeats=-1 .* 0 or more"),
        ("evaluate", "measure.budget_s=-1", "measure.budget_s=-1"),
        ("evaluate", "trainer.num_nodes=0", "trainer.num_nodes=0 "),
        ("evaluate", "seed=-1", "seed=-1 is no seed; valid is 0 to 4294967295"),
        ("evaluate", "mask_seed=-1", "mask_seed=-1 "),
        ("evaluate", "seed=4294967296", "seed=4294967296 .* 0 to 4294967295"),
        ("evaluate", "mask_seed=4294967296", "mask_seed=4294967296 "),
        ("train", "model.dropout=-0.1", "model.dropout=-0.1 "),
        ("train", "model.dropout=1", "model.dropout=1.* below 1"),
        (
            "evaluate",
            "trainer.precision=64-true",
            "trainer.precision=64-true .* 32-true, bf16-mixed, 16-mixed",
        ),
        ("evaluate", "model=hub", "model=hub needs model.source="),
        ("evaluate", "model=hub model.weights=random", "model.shape, or a model.source"),
        ("train", "trainer.max_steps=0", "trainer.max_steps=0 "),
        ("train", "trainer.val_check_interval=0", "trainer.val_check_interval=0 "),
        ("train", "trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches=0 "),
        ("evaluate", "mask_sets=0", "mask_sets=0 .* 1 or more"),
        ("train", "mask_sets=-1", "mask_sets=-1 "),
        ("evaluate", "mask_seed=4294967295 mask_sets=2", "mask_se"),  # the second set has no seed
        *(
            ("train", f"loss.{field.name}=-1", f"loss.{field.name}=-1.* 0 or more")
            for field in fields(LossWeights)
        ),
        ("train", "loss.hidden=0 loss.logits=0 loss.cross_entropy=0", "all parts of loss weigh 0"),
        ("train", "loss=tokens loss.cross_entropy=0", "all parts of loss weigh 0"),
        *(
            (
                "evaluate",
                f"embeddings={stored} binarize=all",
                f"embeddings={stored} .*binarize=all.* valid is bit",
            )
            for stored in ("fp32", "fp16", "int8", "int4")
        ),
        (
            "train",
            "embeddings=fp16 binarize=embeddings",
            "embeddings=fp16 .*binarize=embeddings.* valid is bit",
        ),
        ("evaluate", "calibrate=-1", "calibrate=-1 .* 0 or more"),
        ("train", "calibrate=-1", "calibrate=-1 .* 0 or more"),
        ("evaluate", "tune=-1", "tune=-1 .* 0 or more"),
        ("evaluate", "tune=9", "tune=9 goes on from a calibration: valid is calibrate=<sentences>"),
        ("train", "tune=9", "tune=9 goes on from a calibration"),
        ("evaluate", "calibrate=9 binarize=none scale=row", "calibrate .*binarize=none has none"),
        (
            "evaluate",
            "calibrate=9 binarize=layers scale=row",
            "binarize.scope=all .* valid is matrices",
        ),
        *(
            (
                "evaluate",
                f"calibrate=9 binarize=layers binarize.scope=matrices scale={scale}",
                f"scale={scale} .* valid are row, rank_one",
            )
            for scale in ("none", "tensor")
        ),
        *(
            (
                "train",
                f"calibrate=9 recipe.scaling={scaling} recipe.center={center}",
                f"recipe.scaling={scaling} with recipe.center={center} .* valid are learned or lsq, with none",
            )
            for scaling, center in (
                ("computed", "none"),
                ("computed", "row"),
                ("learned", "row"),
                ("lsq", "row"),
                ("learned", "tensor"),
            )
        ),
        ("train", "calibrate=9 recipe=bwn", "calibrate .*recipe.scaling=computed"),
        ("train", "binarize.scope=all", "binarize.scope=all .* matrices"),
        ("train", "binarize=none calibrate=5", "calibrate .*binarize=none has none"),
        ("train", "binarize=embeddings calibrate=5", "calibrate .*binarize=embeddings has none"),
        (
            "train",
            "loss=tokens loss.more_masked=0.3",
            "loss.more_masked=0.3 .* loss=tokens has none",
        ),
        (
            "train",
            "loss=tokens loss.more_masked_at_end=0.3",
            "loss.more_masked_at_end=0.3 .* loss=tokens has none",
        ),
        ("train", "loss.more_masked_at_end=1.5", "loss.more_masked_at_end=1.5 .* valid are 0 to 1"),
        ("train", "trainer.gradient_clip_val=-1", "trainer.gradient_clip_val=-1.0 .* 0 or more"),
        ("evaluate", "trainer.devices=4294967296", "trainer.devices=4294967296 .* at most 65536"),
        ("train", "trainer.log_every_n_steps=0", "trainer.log_every_n_steps=0 .* 1 or more"),
        ("train", "schedule.num_warmup_steps=-1", "schedule.num_warmup_steps=-1 .* 0 or more"),
        ("train", "loss.logits=nan", "loss.logits=nan .* 0 or more"),
        ("evaluate", "measure.budget_s=nan", "measure.budget_s=nan .* 0 or more"),
        ("evaluate", "~logger", "logger has no _target_"),
        ("train", "~schedule", "schedule has no _target_"),
        ("train", "~callbacks.best._target_", "callbacks.best has no _target_"),
        ("train", "callbacks.signs=null", "callbacks.signs=null .* ~callbacks.signs"),
        (
            "train",
            "activations=bit",
            "one_bit_inputs=query belongs to attention, which is not binarized",
        ),
        (
            "train",
            "activations=bit binarize=layers one_bit_inputs=[]",
            "valid are .*query, key, value, output, expand, contract",
        ),
        ("evaluate", "activations=bit binarize=none", "activations=bit .*binarize=none has none"),
        ("evaluate", "activations=int8", "activations=int8 .*binarize=none has none"),
        (
            "train",
            "activations=int6 activations_from=1.5",
            "activations_from=1.5 is no share; valid are 0 to 1",
        ),
        (
            "train",
            "activations_from=0.5",
            "activations_from=0.5 needs .* valid are activations=int8, int6 and bit",
        ),
        ("train", "+lenght=32", "there is no lenght; valid are .*, limit, .*"),
        ("evaluate", "+data.lenght=32", "there is no data.lenght; valid are .*, data.length, .*"),
    ],
)
def test_a_number_that_cannot_be_is_refused_by_name(
    command: str, overrides: str, message: str
) -> None:
    with pytest.raises(InputError, match=message.replace(".", r"\.").replace(r"\.*", ".*")):
        config(command, *overrides.split()).check()


@pytest.mark.parametrize(
    ("command", "overrides"),
    [
        ("evaluate", "limit=1 seed=4294967295 measure.repeats=0 data.length=3"),
        ("evaluate", "model=hub model.source=x"),
        ("evaluate", "model=bert_base model.weights=random model.source=null"),
        ("train", "trainer.max_steps=40"),  # shorter than the interval: one validation, at the end
        ("train", "trainer.max_steps=360 trainer.gradient_clip_val=null"),
        ("train", "binarize=none binarize.scope=all"),
        ("train", "loss.hidden=0 loss.logits=0 loss.more_masked=0 loss.more_masked_at_end=0"),
        ("train", "loss.cross_entropy=0 loss.logits=0 loss.hidden=0 loss.relations=1e-9"),
        ("evaluate", "mask_sets=1000 mask_seed=4294966296"),
        ("train", "embeddings=bit binarize=all"),
        ("train", "embeddings=bit binarize=layers"),
        ("train", "embeddings=int4 binarize=layers activations=int8"),
        ("train", "binarize=layers activations=bit"),
        ("train", "binarize=layers activations=int6 activations_from=0.5"),
        ("train", "binarize=ffnn activations=bit one_bit_inputs=[expand]"),
        ("evaluate", "embeddings=fp16 binarize=layers activations=int8"),
        ("evaluate", "embeddings=int8"),
        ("evaluate", "calibrate=1 binarize=all binarize.scope=matrices scale=row"),
        ("evaluate", "calibrate=1 binarize=layers binarize.scope=matrices scale=rank_one"),
        ("evaluate", "calibrate=0 binarize=layers scale=tensor"),
        ("train", "calibrate=1"),
        ("train", "calibrate=1 recipe=paretoq"),
        ("train", "calibrate=1 recipe=onebit binarize=all"),
        ("train", "calibrate=0 recipe=bwn"),
        ("evaluate", "scale=rank_one values=01 binarize=layers"),
        ("train", "scale=rank_one values=01"),
    ],
)
def test_what_lies_on_the_edge_is_accepted(command: str, overrides: str) -> None:
    config(command, *overrides.split()).check()


def test_a_run_shorter_than_the_interval_is_validated_once() -> None:
    assert config("train", "trainer.max_steps=40").trainer.validation_steps == 40
    assert config("train", "trainer.max_steps=480").trainer.validation_steps == 120


def test_a_share_of_which_no_end_is_given_stays_what_it_is() -> None:
    given = ("loss=bit", "loss.more_masked=0.4")
    assert config("train", *given).loss.shares() == (0.4, 0.4)
    assert config("train", *given, "loss.more_masked_at_end=0").loss.shares() == (0.4, 0.0)
    assert config("train", "loss=bit", "loss.more_masked_at_end=0.2").loss.shares() == (0.0, 0.2)
    assert config("train", "loss=tokens").loss.shares() == (0.0, 0.0)
