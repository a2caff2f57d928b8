from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import Pack
from safetensors.torch import save_file
from torch import Tensor

import bitmaps
from bitmaps.bert import Bert, checkpoint
from bitmaps.errors import InputError
from bitmaps.packed.kernels import ACTS
from bitmaps.packed.layers import PackedLinear
from bitmaps.quantize.convert import (
    binarize_naive,
    make_trainable,
    round_activations,
    store_words,
    to_float,
)
from bitmaps.quantize.quantizer import Quantization
from bitmaps.vocabulary import Act, Activations

KINDS = ("floats", "packed")


@pytest.fixture
def model(tiny: Bert) -> Bert:
    """Its layers in one bit, its words in int8."""
    return store_words(
        binarize_naive(tiny, ("attention", "ffnn"), "pm1", "rank_one", "matrices"), "int8"
    )


@pytest.fixture
def folders(model: Bert, pack: Pack, tokenizer: Any, tmp_path: Path) -> dict[str, Path]:
    """The same model in floats, in a run folder, and packed."""
    checkpoint.save(model, tmp_path / "run" / "model")
    tokenizer.save_pretrained(tmp_path / "run" / "model")
    return {"floats": tmp_path / "run", "packed": pack(model)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("as_text", [True, False])
def test_a_model_is_opened_for_prediction(
    kind: str, as_text: bool, folders: dict[str, Path], model: Bert, ids: Tensor
) -> None:
    source: Path | str = str(folders[kind]) if as_text else folders[kind]
    found = bitmaps.load(source, act=None if kind == "floats" else "f32")
    assert isinstance(found, Bert)
    assert not found.training
    torch.testing.assert_close(found(ids), model(ids), atol=1e-5, rtol=0)
    assert found.config.hidden_size == 16


def test_a_packed_model_rounds_to_int8_unless_something_else_is_said(
    folders: dict[str, Path], ids: Tensor
) -> None:
    def acts(found: Bert) -> set[Act]:
        return {module.act for module in found.modules() if isinstance(module, PackedLinear)}

    assert acts(bitmaps.load(folders["packed"])) == {"a8"}
    logits = {}
    for act in ACTS:
        found = bitmaps.load(folders["packed"], act=act)
        assert acts(found) == {act}
        logits[act] = found(ids)
    errors = [
        (logits[act] - logits["f32"]).norm() / logits["f32"].norm() for act in ("a16", "a8", "a1")
    ]
    assert 0 < errors[0] < 1e-4 < errors[1] < 0.05 < errors[2]


@pytest.mark.parametrize(("trained", "act"), [("int6", "a6"), ("int8", "a8"), ("float", "a8")])
def test_a_packed_model_rounds_as_it_was_trained(
    trained: str, act: Act, model: Bert, pack: Pack, ids: Tensor
) -> None:
    said = {"components": "layers", "activations": trained}
    model.config = replace(model.config, bitmaps=said)
    folder = pack(model)
    assert torch.equal(bitmaps.load(folder)(ids), bitmaps.load(folder, act=act)(ids))
    assert not torch.equal(bitmaps.load(folder)(ids), bitmaps.load(folder, act="f32")(ids))
    other = "int8" if trained == "int6" else "int6"
    path = folder / "config.json"
    path.write_text(path.read_text().replace(f'"{trained}"', f'"{other}"'))
    with pytest.raises(InputError, match=r"does not belong to these weights: activations is"):
        bitmaps.load(folder)


def test_a_run_trained_in_int6_that_does_not_say_what_was_binarized_is_refused(
    folders: dict[str, Path],
) -> None:
    path = folders["floats"] / "model" / "config.json"
    values = json.loads(path.read_text()) | {"bitmaps": {"activations": "int6"}}
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"bitmaps\.components: 'None'"):
        bitmaps.load(folders["floats"])


@pytest.mark.parametrize("act", [*ACTS, "a4"])
def test_act_is_of_packed_models(folders: dict[str, Path], act: Any) -> None:
    with pytest.raises(
        InputError,
        match=rf"act={act} is for packed models, and .*model is not packed: python -m bitmaps.packed",
    ):
        bitmaps.load(folders["floats"], act=act)


@pytest.mark.parametrize("act", ["a4", "A8", "", "fp32"])
def test_an_act_that_does_not_exist_is_refused_with_those_that_do(
    folders: dict[str, Path], act: Any
) -> None:
    with pytest.raises(
        InputError, match=re.escape(f"act={act!r} is unknown; valid are f32, a16, a11, a8, a6, a1")
    ):
        bitmaps.load(folders["packed"], act=act)


def test_neither_an_adapter_nor_a_head_goes_onto_a_packed_model(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "adapter.safetensors", {"base_sha256": "0" * 64})
    for options in ({"adapter": tmp_path / "adapter.safetensors"}, {"head": "new"}):
        with pytest.raises(
            InputError, match=r"is packed: it takes neither an adapter nor a new head"
        ):
            bitmaps.load(folders["packed"], **options)  # type: ignore[arg-type]


def test_what_is_damaged_or_not_there_is_an_input_error(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    path = folders["packed"] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    for source, named in (
        (folders["packed"], "truncated"),
        (tmp_path / "nowhere", "holds no model"),
    ):
        with pytest.raises(InputError, match=named):
            bitmaps.load(source)


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_interface_gives_the_same_logits(
    kind: str, folders: dict[str, Path], ids: Tensor
) -> None:
    found = bitmaps.load(folders[kind])
    theirs = bitmaps.to_transformers(found)
    assert isinstance(theirs, transformers.PreTrainedModel)
    assert not theirs.training
    assert theirs.config.vocab_size == 60
    mask, types = torch.ones_like(ids), torch.zeros_like(ids)
    mask[0, 5:], types[:, 3:] = 0, 1
    assert torch.equal(theirs(ids).logits, found(ids))
    assert torch.equal(
        theirs(ids, attention_mask=mask, token_type_ids=types).logits, found(ids, mask, types)
    )
    assert torch.equal(
        theirs(input_ids=ids, attention_mask=mask, return_dict=True).logits, found(ids, mask)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_interface_computes_what_berts_own_does(
    kind: str, folders: dict[str, Path], ids: Tensor
) -> None:
    """Of the same arguments, each alone and all together."""
    theirs = transformers.BertForMaskedLM.from_pretrained(folders["floats"] / "model").eval()
    ours = bitmaps.to_transformers(bitmaps.load(folders[kind], act={"packed": "f32"}.get(kind)))
    generator = torch.Generator().manual_seed(2)
    labels = ids.where(torch.rand(ids.shape, generator=generator) < 0.4, -100)
    arguments = {
        "attention_mask": torch.ones_like(ids).index_fill(1, torch.tensor([6]), 0),
        "token_type_ids": torch.randint(2, ids.shape, generator=generator),
        "position_ids": torch.arange(7).flip(0)[None],
        "labels": labels,
        "output_hidden_states": True,
        "return_dict": False,
    }
    for given in [*({name: value} for name, value in arguments.items()), arguments]:
        expected, found = theirs(ids, **given), ours(ids, **given)
        assert type(found) is type(expected)
        if not isinstance(found, tuple):
            assert found.keys() == expected.keys()
            found, expected = found.to_tuple(), expected.to_tuple()
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    for name in ("output_hidden_states", "return_dict"):
        changed = bitmaps.to_transformers(ours.bert)
        setattr(changed.config, name, arguments[name])
        assert type(changed(ids)) is type(theirs(ids, **{name: arguments[name]}))
        assert len(changed(ids)) == len(theirs(ids, **{name: arguments[name]}))


@pytest.mark.parametrize("kind", KINDS)
def test_each_token_may_have_a_mask_of_its_own(
    kind: str, folders: dict[str, Path], ids: Tensor
) -> None:
    theirs = transformers.BertForMaskedLM.from_pretrained(folders["floats"] / "model").eval()
    ours = bitmaps.to_transformers(bitmaps.load(folders[kind], act={"packed": "f32"}.get(kind)))
    mask = torch.ones(3, 7, 7, dtype=torch.long).tril()
    logits = ours(ids, attention_mask=mask).logits
    expected = theirs(ids, attention_mask=mask[:, None].bool()).logits
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    with pytest.raises(InputError, match=r"must be .batch, length. or .*, not \(3, 1, 7, 7\)"):
        ours(ids, attention_mask=mask[:, None])


@pytest.mark.parametrize("kind", KINDS)
def test_what_transformers_interface_does_not_compute_is_an_error(
    kind: str, folders: dict[str, Path], ids: Tensor
) -> None:
    model = bitmaps.to_transformers(bitmaps.load(folders[kind]))
    for given in ({"inputs_embeds": torch.zeros(3, 7, 16)}, {"output_attentions": True}):
        with pytest.raises(InputError, match=f"{next(iter(given))} is not supported"):
            model(ids, **given)
    with pytest.raises(TypeError, match="unexpected keyword argument 'encoder_hidden_states'"):
        model(ids, encoder_hidden_states=torch.zeros(1))
    model.config.output_attentions = True
    with pytest.raises(InputError, match="output_attentions is not supported"):
        model(ids)


def test_transformers_interface_saves_hugging_faces_names(
    folders: dict[str, Path], ids: Tensor, tmp_path: Path
) -> None:
    model = bitmaps.to_transformers(bitmaps.load(folders["floats"]))
    model.save_pretrained(str(tmp_path / "saved"))
    theirs, report = transformers.AutoModelForMaskedLM.from_pretrained(
        tmp_path / "saved", output_loading_info=True
    )
    assert not any(report.values())
    torch.testing.assert_close(theirs(ids).logits, model(ids).logits, atol=1e-5, rtol=0)
    assert torch.equal(bitmaps.load(tmp_path / "saved")(ids), model(ids).logits)
    with pytest.raises(InputError, match="max_shard_size='1KB' is too small"):
        model.save_pretrained(str(tmp_path / "again"), max_shard_size="1KB")
    assert not (tmp_path / "again").exists()
    packed = bitmaps.to_transformers(bitmaps.load(folders["packed"]))
    packed.save_pretrained(tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (folders["packed"] / name).read_bytes()


def test_transformers_knows_a_packed_folder(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    warned: list[object] = []
    monkeypatch.setattr(
        transformers.configuration_utils.logger, "warning", lambda *said: warned.append(said)
    )
    bitmaps.to_transformers  # noqa: B018 (registers it)
    assert transformers.AutoTokenizer.from_pretrained(folders["packed"]).tokenize("the cat") == [
        "the",
        "cat",
    ]
    assert not warned
    assert transformers.AutoConfig.from_pretrained(folders["packed"]).model_type == "bitmaps"


@pytest.mark.parametrize("kind", KINDS)
def test_a_pipeline_fills_the_mask(kind: str, folders: dict[str, Path]) -> None:
    found = bitmaps.load(folders[kind])
    folder = folders[kind] / "model" if kind == "floats" else folders[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe = transformers.pipeline(
            "fill-mask", model=bitmaps.to_transformers(found), tokenizer=str(folder)
        )
        answers = pipe("the [MASK] sat on the big dog", top_k=3)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch = tokenizer("the [MASK] sat on the big dog", return_tensors="pt")
    scores = found(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])[
        0, 2
    ].softmax(-1)
    best = scores.topk(3)
    assert [answer["token"] for answer in answers] == best.indices.tolist()
    assert [answer["score"] for answer in answers] == pytest.approx(best.values.tolist(), rel=1e-4)


def test_a_pipeline_takes_sentences_of_different_lengths_at_once(folders: dict[str, Path]) -> None:
    model = bitmaps.to_transformers(bitmaps.load(folders["packed"], act="f32"))
    pipe = transformers.pipeline("fill-mask", model=model, tokenizer=str(folders["packed"]))
    sentences = ["the [MASK] sat", "a big dog and a [MASK] ran on"]
    together = pipe(sentences, batch_size=2, top_k=1)
    for sentence, [answer] in zip(sentences, together, strict=True):
        [alone] = pipe(sentence, top_k=1)
        assert answer["token"] == alone["token"]
        assert answer["score"] == pytest.approx(alone["score"], rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", ["", "fresh"])
def test_another_head_is_refused(kind: str, head: str, folders: dict[str, Path]) -> None:
    with pytest.raises(InputError, match=f"^head='{head}' is unknown; valid are checkpoint, new$"):
        bitmaps.load(folders[kind], head=head)


def test_a_run_trained_with_one_bit_inputs_is_opened_with_them(
    tiny: Bert, ids: Tensor, tmp_path: Path
) -> None:
    layers, one_bit = ("attention", "ffnn"), ("query", "contract")
    make_trainable(tiny, layers, Quantization(), one_bit=one_bit)
    without = to_float(tiny)(ids)
    expected = to_float(round_activations(tiny, layers, Activations.bit, one_bit))
    trained = {"components": "layers", "activations": "bit", "one_bit_inputs": "query+contract"}
    expected.config = replace(expected.config, bitmaps=trained)
    checkpoint.save(expected, tmp_path / "run" / "model")
    found = bitmaps.load(tmp_path / "run")
    assert torch.equal(found(ids), expected(ids))
    assert not torch.allclose(found(ids), without, atol=1e-2)


@pytest.mark.parametrize("width", [(312, 12, 1200), (128, 2, 512)])
def test_small_berts_of_others_are_opened_and_packed(
    width: tuple[int, int, int], pack: Pack, ids: Tensor, tmp_path: Path
) -> None:
    """The shapes of TinyBERT and BERT-tiny: 26 numbers a head, 1200 in the middle."""
    sizes = dict(
        zip(("hidden_size", "num_attention_heads", "intermediate_size"), width, strict=True)
    )
    theirs = transformers.BertForMaskedLM(
        transformers.BertConfig(**sizes, num_hidden_layers=2, vocab_size=64)
    ).eval()
    theirs.save_pretrained(tmp_path / "model")
    model = bitmaps.load(tmp_path / "model")
    torch.testing.assert_close(model(ids), theirs(ids).logits, atol=1e-5, rtol=0)
    model = binarize_naive(model, ("attention", "ffnn"), "pm1", "rank_one", "matrices")
    packed = bitmaps.load(pack(model), act="f32")
    torch.testing.assert_close(packed(ids), model(ids), atol=1e-4, rtol=0)


HEAVY = (
    "hydra", "omegaconf", "lightning", "wandb", "transformers", "tokenizers", "torchmetrics",
    "huggingface_hub", "datasets", "pandas", "rich", "matplotlib", "bitmaps.command",
)  # fmt: skip
LIGHT = """
import json, os, sys
from pathlib import Path
import torch

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

before = resident()
import bitmaps
model = bitmaps.load(sys.argv[1])
after = resident()
model(torch.tensor([[2, 7, 4, 3]]))
print(json.dumps([after - before, list(sys.modules)]))
"""


def test_a_packed_model_opens_and_predicts_without_the_framework(folders: dict[str, Path]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, str(folders["packed"])],
        capture_output=True,
        text=True,
        check=True,
    )
    taken, modules = json.loads(done.stdout)
    assert not [name for name in modules if name.startswith(HEAVY)]
    assert taken < 40 * 2**20


def test_the_hub_is_imported_for_its_ids_alone(folders: dict[str, Path]) -> None:
    code = "import sys, bitmaps; bitmaps.load(sys.argv[1]); assert 'huggingface_hub' not in sys.modules"
    for folder in folders.values():
        subprocess.run([sys.executable, "-c", code, str(folder)], check=True)
