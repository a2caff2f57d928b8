"""What is typed: keys, lists of options, and the name of a job's folder."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from bitmaps.command.overrides import check_options, expand_home, job_folder, key_of
from bitmaps.errors import InputError

KEYS = st.sampled_from(["a", "b", "binarize", "data.length", "optimizer.lr", "text", "~c", "+d"])
SHORT = st.text("ab1-+=.,/~é𝔘 '\"[]{}:", max_size=12)
VALUES = SHORT | SHORT.map(lambda text: 30 * text)
OVERRIDES = st.dictionaries(KEYS, VALUES, max_size=5).map(
    lambda found: [f"{key}={value}" for key, value in found.items()]
)
PARSER = OverridesParser.create()


@given(OVERRIDES, OVERRIDES)
def test_jobs_share_a_folder_only_if_their_overrides_are_the_same(
    one: list[str], other: list[str]
) -> None:
    assert (job_folder(one) == job_folder(other)) == (sorted(one) == sorted(other))


@given(OVERRIDES)
def test_a_folder_can_be_made_and_typed(overrides: list[str]) -> None:
    name = job_folder(overrides)
    assert 0 < len(name.encode()) <= 255
    assert not set(name) & set("/\\\0")
    assert name not in (".", "..")
    typed = PARSER.parse_override(f"checkpoint=runs/sweeps/{name}")
    assert typed.value() == f"runs/sweeps/{name}"
    assert not typed.is_sweep_override()


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "job"),
        (["values=pm1", "binarize=ffnn"], "binarize-ffnn+values-pm1"),
        (["seed=1", "measure=none", "logger=wandb", "analysis=True", "measure.length=3"], "seed-1"),
        (["+experiment=ptb", "optimizer.lr=-1e-3"], "experiment-ptb+optimizer.lr--1e-3"),
        (["data=ptb", "data.dir=/home/me/ptb"], "data-ptb"),
    ],
)
def test_a_folder_names_what_counts(overrides: list[str], name: str) -> None:
    assert job_folder(overrides) == name


def test_the_folder_of_a_text_is_a_choice_of_text() -> None:
    one, other = (job_folder(["data=text", f"data.dir=/{name}"]) for name in ("a", "b"))
    assert one != other


@pytest.mark.parametrize("pair", [(["a=b+c-d"], ["a=b", "c=d"]), (["~a=1"], ["a=1"])])
def test_names_that_read_alike_differ(pair: tuple[list[str], list[str]]) -> None:
    assert job_folder(pair[0]) != job_folder(pair[1])


@pytest.mark.parametrize("override", ["a.b=c=d", "+a.b=1", "~a.b", "++a.b=2", "a.b="])
def test_the_key_of_an_override(override: str) -> None:
    assert key_of(override) == "a.b"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("binarize=[embeddings,ffnn]", "'binarize.components=[embeddings,ffnn]'"),
        ("loss=[common,bwn]", "several options where one is valid"),
    ],
)
def test_several_options_of_a_group_are_refused(override: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        check_options(["seed=1", override])
    assert message in str(caught.value)
    assert override in str(caught.value)


@pytest.mark.parametrize(
    ("home", "word", "expanded"),
    [
        ("/home/me", "checkpoint=~/run", "checkpoint=/home/me/run"),
        ("/home/me", "+model.source=~", "+model.source=/home/me"),
        ("/home/me", "data.dir=~/a,~/b", "data.dir=/home/me/a,/home/me/b"),
        ("/home/me", "~callbacks.signs", "~callbacks.signs"),
        ("/home/me", "data.dir=~other/a", "data.dir=~other/a"),
        ("/home/me", "text='a=~/b'", "text='a=~/b'"),
        ("/a b (c)", "resume=~/run", r"resume=/a\ b\ \(c\)/run"),
    ],
)
def test_a_tilde_after_the_key_is_the_home(
    home: str, word: str, expanded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", home)
    assert expand_home(word) == expanded
    if "~/run" in word:
        assert PARSER.parse_override(expanded).value() == f"{home}/run"


def test_lists_that_are_values_pass() -> None:
    check_options(["binarize.components=[ffnn,head]", "one_bit_inputs=[query]", "binarize=ffnn"])
