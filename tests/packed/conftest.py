from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from packed.layers_by_hand import WAYS, computed_by
from packed.matrices import BACKENDS, using

from bitmaps.packed import kernels as native


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set that runs here, then the reference."""
    with using(request.param):
        yield request.param


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of PyTorch's threads for this test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(params=WAYS)
def both_ways(request: pytest.FixtureRequest) -> Iterator[None]:
    with computed_by(request.param):
        yield


@pytest.fixture
def kernels() -> Iterator[None]:
    if not native.instruction_sets():
        pytest.skip("there was no C compiler, so there are no kernels")
    with computed_by("auto"):
        yield
