from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from packed.matrices import BACKENDS, using


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
