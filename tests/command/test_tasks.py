"""What a task has no place for is refused before anything starts."""

from __future__ import annotations

import pytest
from command.commands import config

from bitmaps.errors import InputError
from bitmaps.vocabulary import Task

LABELED = "data=labeled data.dir=x"


@pytest.mark.parametrize("command", ["train", "evaluate"])
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("task=classification", "data=wiki has no labels: with task=classification valid are labeled, glue"),
        ("task=classification data=text data.dir=x", "data=text has no labels: "),
        (LABELED, "data=labeled has labels: with task=masked_lm valid are wiki, ptb, text, hub"),
        (f"task=sentence_embedding {LABELED}", "data=labeled has labels: with task=sentence_embedding valid are wiki,"),
        ("data=glue data.configuration=sst2", "data=glue has labels: with task=masked_lm valid are wiki,"),
        *(
            (
                f"task=sentence_embedding binarize={name} binarize.scope=matrices",
                f"binarize={name} has the head, and task=sentence_embedding has none: valid are embeddings, attention and ffnn",
            )
            for name in ("all", "head")
        ),
        ("task=sentence_embedding text=hi", "text=hi has no effect with task=sentence_embedding: it is for masked_lm"),
        (f"task=classification {LABELED} text=hi", "text=hi has no effect with task=classification: it is for masked_lm"),
        ("task=sentence_embedding analysis=true", "analysis=True has no effect with task=sentence_embedding: it is for masked_lm"),
        (f"task=classification {LABELED} analysis=true", "analysis=True has no effect with task=classification: it is for masked_lm"),
        ("similarity=x.csv", "similarity=x.csv has no effect with task=masked_lm: it is for sentence_embedding"),
        ("data.cropped=0.5", "data.cropped=0.5 has no effect with task=masked_lm: it is for sentence_embedding"),
        ("task=sentence_embedding data.cropped=1.5", "data.cropped=1.5 is too large; valid is a share, 0 to 1"),
        ("task=sentence_embedding data.cropped=-1", "data.cropped=-1.0 is too small; valid is 0 or more"),
        ("task=sentence_embedding data.cropped=nan", "data.cropped=nan is too small; valid is 0 or more"),
        (f"task=classification {LABELED} similarity=x.csv", "similarity=x.csv has no effect with task=classification: it is for sentence_embedding"),
    ],
)  # fmt: skip
def test_what_a_task_does_not_have_is_refused(command: str, overrides: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        config(command, *overrides.split()).check()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("teacher=runs/t", "teacher=runs/t has no effect with task=masked_lm, whose teacher is the model itself"),
        ("task=sentence_embedding teacher=runs/t", "teacher=runs/t has no effect with task=sentence_embedding, whose teacher is the model itself"),
        (f"task=classification {LABELED} teacher=runs/t binarize=none", "teacher=runs/t has no effect with binarize=none, which trains a teacher"),
        ("task=sentence_embedding loss=tokens", "loss=tokens learns from labels, and task=sentence_embedding has none"),
        ("task=sentence_embedding loss.logits=0 loss.hidden=0 loss.directions=0 loss.vectors=0", "loss=common learns from labels, and task=sentence_embedding has none"),
        (f"task=classification {LABELED} fine_tuning.max_steps=0", "fine_tuning.max_steps=0"),
        (f"task=classification {LABELED} fine_tuning.seed=-1", "fine_tuning.seed=-1 is no seed"),
        (f"task=classification {LABELED} fine_tuning.seed=4294967296", "valid is 0 to 4294967295"),
        *(
            (f"task=classification {LABELED} fine_tuning.lr={lr}", "valid is a number above 0")
            for lr in ("0", "-1", "nan", "inf")
        ),
    ],
)  # fmt: skip
def test_a_teacher_without_a_place_is_refused(overrides: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        config("train", *overrides.split()).check()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("command", "overrides"),
    [
        ("train", "task=masked_lm"),
        ("train", "task=masked_lm text=hi analysis=true"),
        ("train", "task=sentence_embedding"),
        ("train", "task=sentence_embedding similarity=x.csv binarize=layers"),
        ("train", "task=sentence_embedding binarize=embeddings"),
        ("train", "task=sentence_embedding loss.cross_entropy=0 loss.vectors=1"),
        ("train", f"task=classification {LABELED} binarize=all"),
        ("train", f"task=classification {LABELED} binarize=none loss=tokens"),
        ("train", f"task=classification {LABELED} teacher=runs/t"),
        ("train", f"task=classification {LABELED} teacher=runs/t binarize=none embeddings=bit"),
        ("train", "task=classification data=glue data.configuration=sst2"),
        ("evaluate", "task=sentence_embedding similarity=x.csv"),
        ("evaluate", f"task=classification {LABELED} binarize=head"),
    ],
)
def test_what_a_task_has_is_accepted(command: str, overrides: str) -> None:
    config(command, *overrides.split()).check()


@pytest.mark.parametrize("command", ["train", "evaluate"])
@pytest.mark.parametrize("task", Task)
def test_a_task_has_an_objective_that_is_measured(command: str, task: Task) -> None:
    found = config(command, f"task={task}")
    assert found.task is task
    expected = {"masked_lm": "cross_entropy", "sentence_embedding": "recall_at_10"}
    assert found.objective == expected.get(task, "accuracy")
    found.check_objective()
    assert (found.model.adapter is None) == (task is not Task.masked_lm)


def test_a_training_keeps_the_checkpoint_that_its_task_calls_best() -> None:
    found = {task: config("train", f"task={task}").callbacks["best"] for task in map(str, Task)}
    assert found["masked_lm"]["monitor"] == "val/cross_entropy"
    assert (found["sentence_embedding"]["monitor"], found["sentence_embedding"]["mode"]) == ("val/recall_at_10", "max")  # fmt: skip
    assert (found["classification"]["monitor"], found["classification"]["mode"]) == ("val/score", "max")  # fmt: skip
