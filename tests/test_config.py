"""What ``conf/`` composes to, and what is refused."""

import itertools
import re
import shlex

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException, MissingConfigException
from omegaconf import OmegaConf

from bitmaps.config import GROUPS, Scale, check, conf_dir
from bitmaps.errors import InputError

CONF = conf_dir()
FILES = sorted(CONF.rglob("*.yaml"))
CHOICES = {  # what a command line can choose from
    command: {
        (group, path.stem)
        for default in OmegaConf.load(CONF / f"{command}.yaml").defaults
        if default not in ("_self_", f"{command}_schema")
        for group in default
        for path in (CONF / group).glob("*.yaml")
    }
    for command in ("train", "evaluate")
}


@pytest.fixture(scope="module", autouse=True)
def _conf():
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        yield


def config(command, *overrides):
    return OmegaConf.to_object(compose(command, overrides=list(overrides)))


def test_conf_is_found():
    assert {path.name for path in CONF.glob("*.yaml")} == {"train.yaml", "evaluate.yaml"}
    assert len(FILES) == 38


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONF)))
def test_every_file_opens_with_a_comment_that_names_a_command_that_composes(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    opening = "\n".join(itertools.takewhile(lambda line: line.startswith("#"), lines))
    commands = re.findall(r"python (train|evaluate)\.py(.*)", opening)
    assert commands
    for command, line in commands:
        line = re.sub(r"<[^>]*>", "somewhere", line).split("#")[0]
        words = [word.split("=", 1) for word in shlex.split(line) if word != "-m"]
        for values in itertools.product(*(value.split(",") for _, value in words)):
            check(config(command, *(f"{name}={value}" for (name, _), value in zip(words, values, strict=True))))


def test_every_file_can_be_chosen():
    groups = {(path.parent.name, path.stem) for path in FILES if path.parent != CONF}
    assert groups == CHOICES["train"] | CHOICES["evaluate"]


@pytest.mark.parametrize(
    ("command", "group", "choice"), [(command, *pair) for command in CHOICES for pair in sorted(CHOICES[command])]
)
def test_every_choice_composes_and_passes_its_check(command, group, choice):
    composed = config(command, f"{group}={choice}", *(["model.source=x"] if choice == "hub" else []))
    check(composed)
    if group in ("binarize", "model", "data"):
        assert getattr(composed, group).name == choice
    if group == "values":
        assert composed.values == choice


def test_binarize_names_the_blog_posts_groups():
    for name, components in GROUPS.items():
        assert sorted(config("evaluate", f"binarize={name}").component_names()) == sorted(components)


def test_01_on_the_command_line_is_text_and_not_a_number():
    assert config("evaluate", "values=01").values == "01"


def test_the_command_line_wins_over_the_recipe():
    assert config("train").scale is Scale.row
    assert config("train", "scale=tensor").scale is Scale.tensor
    assert config("train", "recipe.gradient=clipped").recipe.gradient.name == "clipped"


def test_the_schedule_ends_with_the_training():
    assert config("train", "trainer.max_steps=700").schedule["num_training_steps"] == 700


def test_an_experiment_chooses_model_and_data():
    composed = config("evaluate", "experiment=blog_post")
    assert (composed.model.name, composed.data.name) == ("bert_base", "ptb")
    assert config("evaluate", "experiment=blog_post", "data=wiki").data.name == "wiki"


@pytest.mark.parametrize("override", ["binarize=ears", "values=012", "data=newspapers", "model=gpt", "trainer=tpu"])
def test_an_unknown_choice_is_told_the_valid_ones(override):
    group, choice = override.split("=")
    with pytest.raises(MissingConfigException) as caught:
        config("evaluate", override)
    assert choice in str(caught.value)
    assert all(name in str(caught.value) for g, name in CHOICES["evaluate"] if g == group)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("binarize.components=[ears]", ("ears", "embeddings", "attention", "ffnn", "head")),
        ("scale=column", ("column", "none", "tensor", "row")),
        ("recipe.gradient=none", ("none", "identity", "scaled", "clipped")),
        ("data.split=train", ("train", "validation", "test")),
        ("embeddings=int8", ("int8", "fp32")),
        ("seed=abc", ("abc", "seed")),
        ("limit=ten", ("ten", "limit")),
        ("optimiser.lr=1", ("optimiser",)),
        ("trainer.steps=5", ("steps",)),
    ],
)
def test_a_bad_value_is_named(override, named):
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
        ("evaluate", "seed=-1", "seed=-1 .* 0 or more"),
        ("evaluate", "mask_seed=-1", "mask_seed=-1 "),
        ("evaluate", "seed=4294967296", "seed=4294967296 .* 0 to 4294967295"),
        ("evaluate", "mask_seed=4294967296", "mask_seed=4294967296 "),
        ("train", "model.dropout=-0.1", "model.dropout=-0.1 "),
        ("train", "model.dropout=1", "model.dropout=1.* below 1"),
        ("evaluate", "trainer.precision=64-true", "trainer.precision=64-true .* 32-true, bf16-mixed, 16-mixed"),
        ("evaluate", "model=hub", "model=hub needs model.source="),
        ("evaluate", "model=hub model.weights=random", "model.shape or a model.source"),
        ("train", "trainer.max_steps=0", "trainer.max_steps=0 "),
        ("train", "trainer.val_check_interval=0", "trainer.val_check_interval=0 "),
        ("train", "trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches=0 "),
        ("train", "trainer.max_steps=250", "trainer.max_steps=250 .*trainer.val_check_interval=120"),
        ("train", "recipe.loss.hidden=-1", "recipe.loss.hidden=-1"),
        (
            "train",
            "recipe.loss.hidden=0 recipe.loss.logits=0 recipe.loss.cross_entropy=0",
            "all parts of recipe.loss weigh 0",
        ),
        ("train", "binarize.scope=all", "binarize.scope=all .* matrices"),
    ],
)
def test_a_number_that_cannot_be_is_refused_by_name(command, overrides, message):
    with pytest.raises(InputError, match=message.replace(".", r"\.").replace(r"\.*", ".*")):
        check(config(command, *overrides.split()))


@pytest.mark.parametrize(
    ("command", "overrides"),
    [
        ("evaluate", "limit=1 seed=4294967295 measure.repeats=0 data.length=3"),
        ("evaluate", "model=hub model.source=x"),
        ("evaluate", "model=bert_base model.weights=random model.source=null"),
        ("train", "trainer.max_steps=40"),  # shorter than the interval: one validation, at the end
        ("train", "trainer.max_steps=360 trainer.gradient_clip_val=null"),
        ("train", "binarize=none binarize.scope=all"),
        ("train", "recipe.loss.hidden=0 recipe.loss.logits=0"),
    ],
)
def test_what_lies_on_the_edge_is_accepted(command, overrides):
    check(config(command, *overrides.split()))


def test_a_run_shorter_than_the_interval_is_validated_once():
    assert config("train", "trainer.max_steps=40").trainer.validation_steps == 40
    assert config("train", "trainer.max_steps=480").trainer.validation_steps == 120


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
def test_components_go_by_their_groups_name_or_their_own(overrides, components):
    assert config("evaluate", *overrides.split()).facts()["components"] == components


def test_facts_say_what_is_run():
    facts = config("train", "binarize=all", "values=01", "scale=tensor", "limit=9", "seed=3", "data.split=test").facts()
    assert facts == {
        "row": None,
        "model": "minilm",
        "weights": "pretrained",
        "data": "wiki",
        "split": "test",
        "limit": 9,
        "components": "all",
        "values": "01",
        "scale": "tensor",
        "scope": "matrices",
        "recipe": "bitmaps",
        "embeddings": "fp32",
        "activations": "float",
        "steps": None,
        "seed": 3,
        "mask_seed": 481,
    }


def test_nothing_binarized_has_no_values_scale_or_scope():
    facts = config("evaluate", "binarize=none", "values=01", "scale=row").facts()
    assert (facts["values"], facts["scale"], facts["scope"], facts["recipe"]) == (None, None, None, None)


def test_what_comes_from_the_hub_goes_by_its_id():
    facts = config("evaluate", "model=hub", "model.source=me/bert", "data=hub", "data.path=me/text").facts()
    assert (facts["model"], facts["data"]) == ("me/bert", "me/text")
