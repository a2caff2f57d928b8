"""``bitmaps.Embedder`` in a local Ray of two workers, as on a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from embedding.examples import encoder, pack, texts

import bitmaps

ray = pytest.importorskip("ray", reason="ray[data] is in the extra dev")
pytest.importorskip("ray.data", reason="ray[data] is in the extra dev")

# Ray warns of its own files and sockets
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)  # one reads and writes
    yield
    ray.shutdown()


@pytest.mark.usefixtures("local")
def test_two_workers_make_the_vectors_that_one_process_makes(
    tmp_path: Path, tokenizer: Any
) -> None:
    packed = pack(encoder(), tokenizer, tmp_path / "packed")
    given = texts(300)
    table = pa.table({"id": range(len(given)), "text": given})
    pq.write_table(table, tmp_path / "texts.parquet")

    read = ray.data.read_parquet(str(tmp_path / "texts.parquet")).repartition(6)
    made = read.map_batches(
        bitmaps.Embedder,
        fn_constructor_kwargs={"model": str(packed)},
        batch_size=16,
        compute=ray.data.ActorPoolStrategy(size=2),
    )
    made.write_parquet(str(tmp_path / "vectors"))

    found = pq.read_table(tmp_path / "vectors").sort_by("id")
    assert found.column_names == ["id", "text", "vector"]
    assert found["id"].to_pylist() == list(range(len(given)))
    assert found["text"].to_pylist() == given
    vectors = np.array(found["vector"].to_pylist(), np.float32)
    expected = bitmaps.embed(bitmaps.load(packed), given)
    assert vectors.shape == expected.shape
    # int8 activations: another batch changes a last digit, and so a rounding
    np.testing.assert_allclose(vectors, expected, atol=1e-3, rtol=0)
