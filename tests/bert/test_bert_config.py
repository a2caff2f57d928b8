from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from bitmaps.bert import BertConfig
from bitmaps.errors import InputError


def test_defaults_are_those_of_transformers() -> None:
    theirs = transformers.BertConfig().to_dict()
    ours = BertConfig().to_dict()
    del ours["architectures"]
    assert ours == {name: theirs[name] for name in ours}


def test_dict_and_file_round_trip(tmp_path: Path) -> None:
    config = BertConfig(
        hidden_size=24, num_attention_heads=3, tie_word_embeddings=False, bitmaps={"values": "pm1"}
    )
    assert BertConfig.from_dict(config.to_dict()) == config
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    assert BertConfig.from_file(tmp_path / "config.json") == config


def test_bitmaps_key_is_absent_from_an_ordinary_model() -> None:
    assert "bitmaps" not in BertConfig().to_dict()
    assert BertConfig(bitmaps={}).to_dict()["bitmaps"] == {}


def test_config_with_bitmaps_is_hashable() -> None:
    assert hash(BertConfig(bitmaps={"values": "01"})) == hash(BertConfig())


def test_other_keys_and_nulls_are_left_aside() -> None:
    values = {
        "hidden_size": 36,
        "type_vocab_size": None,
        "use_cache": True,
        "torch_dtype": "float32",
    }
    assert BertConfig.from_dict(values) == BertConfig(hidden_size=36)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"model_type": "mpnet"}, "'mpnet'.*valid are bert, roberta"),
        ({"position_embedding_type": "relative_key"}, "'relative_key'.*'absolute'"),
        ({"is_decoder": True}, "decoder"),
        ({"add_cross_attention": True}, "decoder"),
        ({"hidden_size": 10, "num_attention_heads": 3}, "10.*3"),
        ({"hidden_act": "gelou"}, "'gelou'.*gelu"),
        ({"hidden_act": ["gelu"]}, "hidden_act .'gelu'.*gelu"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps .*above 0, not nan"),
        ({"layer_norm_eps": -1.0}, "layer_norm_eps .*above 0, not -1"),
        ({"layer_norm_eps": "a"}, "layer_norm_eps .*not 'a'"),
        ({"initializer_range": "x"}, "initializer_range .*not 'x'"),
        ({"bitmaps": "x"}, "bitmaps .*not 'x'"),
        ({"bitmaps": {"activations": "bit"}}, "bitmaps.components.*'None'"),
        ({"bitmaps": {"activations": "bit", "one_bit_inputs": 3}}, "one_bit_inputs '3'"),
        ({"num_hidden_layers": True}, "num_hidden_layers .*not True"),
        ({"hidden_dropout_prob": False}, "hidden_dropout_prob .*not False"),
        ({"layer_norm_eps": 10**400}, "layer_norm_eps .*above 0, not 1000"),
        ({"layer_norm_eps": True}, "layer_norm_eps .*not True"),
        ({"pad_token_id": 1.0}, "pad_token_id .*not 1.0"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings .*not 'false'"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantized weights"),
    ],
)
def test_what_is_not_supported_is_named(values: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        BertConfig.from_dict(values)


@pytest.mark.parametrize(
    "size",
    ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
     "max_position_embeddings", "type_vocab_size"],
)  # fmt: skip
def test_sizes_are_at_least_one(size: str) -> None:
    with pytest.raises(InputError, match=f"{size}.* 0"):
        BertConfig(**{size: 0})


@pytest.mark.parametrize(
    "content", [b"{", b"", b"\xff\xfe{}", b"[]", b'{"model_type": "gpt2"}', b'{"a":' * 100_000]
)
def test_unreadable_file_is_an_input_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"config\.json"):
        BertConfig.from_file(path)


def test_layers_with_one_bit_inputs_are_read_from_the_config() -> None:
    assert BertConfig().one_bit_inputs() == []
    assert BertConfig(bitmaps={"one_bit_inputs": None}).one_bit_inputs() == []
    config = BertConfig(bitmaps={"one_bit_inputs": "query+expand"})
    assert config.one_bit_inputs() == ["query", "expand"]


@pytest.mark.parametrize("wrong", ["nonsense", "query+", 3, ["query"]])
def test_what_is_no_linear_layer_is_refused(wrong: Any) -> None:
    with pytest.raises(
        InputError, match=r"one_bit_inputs .* valid are query, key, value, output, expand, contract"
    ):
        BertConfig(bitmaps={"one_bit_inputs": wrong}).one_bit_inputs()
