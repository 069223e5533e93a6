"""Order, shares of ranks and resuming, from files and streamed."""

from __future__ import annotations

import io
from pathlib import Path

import fsspec
import pyarrow
import pyarrow.parquet
import pytest

from learner.datasets.order import Order, OrderedReader
from learner.datasets.pairs import open_pairs, stream_pairs
from learner.datasets.parquet import ParquetPairs
from learner.datasets.rows import DataError, Selection
from tests.learner.datasets.conftest import hub_layout, pick_a_pic_row


def numbers(rows: list) -> list[int]:
    return [int(row.caption.split()[1]) for row in rows]


def test_every_row_once_an_epoch_in_a_seeded_order(shards: Path) -> None:
    reader = OrderedReader(open_pairs(shards), 0, window_blocks=2)
    epochs = [numbers(reader.take(12)) for _ in range(3)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != list(range(12))
    assert numbers(OrderedReader(open_pairs(shards), 0, window_blocks=2).take(36)) == [
        n for epoch in epochs for n in epoch
    ]
    assert numbers(OrderedReader(open_pairs(shards), 1, window_blocks=2).take(12)) != epochs[0]


def test_windows_keep_blocks_together() -> None:
    order = Order([3, 3, 1, 3, 2], seed=5, window_blocks=2)
    places = [order.at(position) for position in range(12)]
    assert sorted(places) == [(b, n) for b, size in enumerate([3, 3, 1, 3, 2]) for n in range(size)]
    seen = [block for block, _ in places]
    first = set(seen[: sum([3, 3, 1, 3, 2][b] for b in set(seen[:1]))])
    assert len(first) <= 2
    assert [order.at(position) for position in (11, 0, 30, 5)][1] == places[0], "any position, in any order"


def test_ranks_share_what_one_rank_would_read(shards: Path) -> None:
    whole = numbers(OrderedReader(open_pairs(shards), 3).take(18))
    shares = [numbers(OrderedReader(open_pairs(shards), 3, rank=rank, world=3).take(6)) for rank in range(3)]
    assert [shares[n % 3][n // 3] for n in range(18)] == whole


def test_resumes_at_any_position(shards: Path) -> None:
    whole = numbers(OrderedReader(open_pairs(shards), 3).take(30))
    for taken in (0, 1, 11, 12, 17):
        first = OrderedReader(open_pairs(shards), 3)
        first.take(taken)
        second = OrderedReader(open_pairs(shards), 3)
        second.seek(taken)
        assert numbers(second.take(30 - taken)) == whole[taken:]


def test_nothing_left_is_an_error(shards: Path) -> None:
    with pytest.raises(DataError, match=r"no row is left to train on; look at data\.where"):
        OrderedReader(open_pairs(shards, Selection(where={"annotator": ["nobody"]})), 0)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return hub_layout(tmp_path, monkeypatch)


def test_streamed_reads_as_local_files_do(hub: Path, shards: Path) -> None:
    wanted = numbers(OrderedReader(open_pairs(shards), 3).take(30))
    assert numbers(OrderedReader(stream_pairs(str(hub), "train"), 3).take(30)) == wanted
    assert sorted(numbers(OrderedReader(stream_pairs(str(hub), "validation_unique"), 3).take(2))) == [0, 1]
    part = stream_pairs(str(hub), "train", Selection(where={"annotator": ["lee"]}), limit_files=1)
    assert sorted(numbers(OrderedReader(part, 3).take(3))) == [1, 3, 5]


def test_streamed_from_another_file_system() -> None:
    memory = fsspec.filesystem("memory")
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([pick_a_pic_row(n) for n in range(4)]), buffer)
    memory.pipe("/pairs/a.parquet", buffer.getvalue())
    source = ParquetPairs(["memory://pairs/a.parquet"])
    assert source.row(0, 3).caption == "caption 3"
    assert source.row(0, 3).key == "memory://pairs/a.parquet row 3"
    with pytest.raises(DataError, match=r"memory://pairs/b\.parquet: cannot be read"):
        ParquetPairs(["memory://pairs/b.parquet"])


def test_what_cannot_be_streamed(hub: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"hub: no split 'test'; it has train, validation"):
        stream_pairs(str(hub), "test")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "train.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(DataError, match=r"train\.jsonl is no parquet file"):
        stream_pairs(str(tmp_path / "texts"), "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="`datasets` cannot open it"):
        stream_pairs(str(tmp_path / "empty"), "train")
