"""Files of every version that was ever written open for ever, and mean what they meant."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from packed.golden_models import ACTS, GOLDEN, MODELS, some_ids, weights_of
from packed.packed_files import tensors_by_numpy
from safetensors import safe_open
from safetensors.torch import load_file

import bitmaps
from bitmaps.packed.format import FILE
from bitmaps.vocabulary import Act

VERSIONS = ["1", "2"]
# The error that a rounding of activations allows where sums are added in another order. No number
# of these models lies so close to a tie that a8 rounds it to another side.
LIMITS = {Act.f32: 1e-5, Act.a16: 1e-3, Act.a8: 1e-4}

every_folder = pytest.mark.parametrize(
    "folder",
    [GOLDEN / version / name for version in VERSIONS for name in MODELS],
    ids=lambda folder: f"{folder.parent.name}-{folder.name}",
)


def test_every_version_has_its_folders() -> None:
    assert sorted(path.name for path in GOLDEN.iterdir()) == VERSIONS


@every_folder
def test_a_golden_folder_computes_what_it_did(folder: Path, backend: str) -> None:
    expected = load_file(folder.with_suffix(".safetensors"))
    for act in ACTS:
        logits = bitmaps.load(folder, act=act)(some_ids())
        torch.testing.assert_close(logits, expected[act], atol=LIMITS[act], rtol=0)


@every_folder
def test_a_golden_folder_stands_for_the_same_weights_to_the_bit(folder: Path) -> None:
    with safe_open(folder.with_suffix(".safetensors"), framework="pt") as file:
        assert weights_of(folder) == file.metadata()["weights"]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_golden_folders_hold_every_kind_of_tensor(version: str) -> None:
    kinds: dict[str, set[str]] = {}  # the parts of a parameter
    for name in MODELS:
        tensors, metadata = tensors_by_numpy(GOLDEN / version / name / FILE)
        assert metadata["version"] == version
        for tensor, numbers in tensors.items():
            parameter, _, part = tensor.rpartition(".")
            packed = part in {"bits", "int8", "int4", "scale", "high", "low", "column"}
            kinds.setdefault(f"{name} {parameter if packed else tensor}", set()).add(
                part if packed else numbers.dtype.name
            )
    assert {"+".join(sorted(parts)) for parts in kinds.values()} == {
        "bits+scale", "bits+high", "bits+high+low", "bits+column+scale", "bits+column+high",
        "int8+scale", "int4+scale", "float16", "float32",
    }  # fmt: skip
