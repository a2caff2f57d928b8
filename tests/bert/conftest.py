"""A folder of a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitmaps.bert import Bert
from bitmaps.bert.checkpoint import save


@pytest.fixture
def folder(tiny: Bert, tmp_path: Path) -> Path:
    """``tiny`` as this project writes it."""
    save(tiny, tmp_path / "saved")
    return tmp_path / "saved"
