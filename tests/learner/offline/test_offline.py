"""A data set as the learner's queue: batches of seed and number alone, bad rows, cache and books."""

from __future__ import annotations

import json
import threading

import pyarrow
import pyarrow.parquet
import pytest
import torch

from configs.schema import AtelierConfig
from learner.datasets.books import BAD_ROWS, BadRowNote, CacheCounts, DataBooks
from learner.datasets.examples import Examples
from learner.datasets.offline import OfflineQueue, check_data
from learner.datasets.rows import DataError
from learner.datasets.tables import BadRow
from learner.own_process import in_own_process
from rollout.final_records import FinalGroup
from rollout.miniature.dataset import RenderedRow, render_rows, write_rows
from tests.learner.offline.sets import MeanEncoder, write_set


def offline_config(run_dir, kind, path, **data):
    return AtelierConfig.model_validate(
        {
            "run": {"name": "offline", "dir": str(run_dir), "seed": 5},
            "data": {"type": kind, "path": str(path), **data},
            "learner": {
                "objective": {"type": "sft" if kind == "images" else "dpo"},
                "groups_per_batch": 4,
                "max_batches": 4,
            },
        }
    )


class Set:
    """A queue of one rank with its encoder and books."""

    def __init__(self, tmp_path, kind, path, **data):
        run_dir = tmp_path / "run"
        run_dir.mkdir(exist_ok=True, parents=True)
        self.config = offline_config(run_dir, kind, path, **data)
        self.books = DataBooks(run_dir, 4)
        self.encoder = MeanEncoder()
        self.queue = OfflineQueue(self.config, self.books, self.encoder)

    def batch(self, number, rank=0, world=1):
        return self.queue.take(number, rank, world, 0)


def groups(payloads):
    return [FinalGroup.from_bytes(payload) for payload in payloads]


@pytest.mark.parametrize("form", ["folder", "webdataset"])
def test_a_batch_is_the_same_whoever_holds_it_and_from_wherever_it_is_asked_for(tmp_path, form):
    path = write_set(tmp_path / "set", "pairs", form, 9)
    whole = Set(tmp_path, "pairs", path)
    batches = [whole.batch(number) for number in range(5)]
    assert [group.ordinal for group in groups(batches[2])] == [8, 9, 10, 11]
    assert len({group.seed for batch in batches for group in groups(batch)}) == 20, "new noise in every epoch"

    ranks = [Set(tmp_path, "pairs", path) for _ in range(2)]
    for number in (0, 1, 4):
        assert [p for rank in (0, 1) for p in ranks[rank].batch(number, rank, 2)] == batches[number]
    assert Set(tmp_path, "pairs", path).batch(3) == batches[3], "resuming"


def test_records_hold_what_the_row_shows(tmp_path):
    rows = render_rows("pairs", 4)
    pairs = Set(tmp_path, "pairs", write_rows(rows, tmp_path / "set", "jsonl"))
    by_caption = {row.columns["caption"]: row for row in rows}
    for group in groups(pairs.batch(0)):
        row = by_caption[group.prompt]
        assert group.num_pairs == 1 and group.z_win.shape == group.z_lose.shape == (1, 4, 8, 8)
        for side, latent in (("win", group.z_win), ("lose", group.z_lose)):
            pixels = pairs.queue._decode(row.images[side], "", side)
            assert torch.equal(latent[0], pairs.encoder.image(pixels))
        assert torch.equal(group.conditioning["prompt_embeds"], torch.full((2, 3), float(len(group.prompt))))
    images = Set(tmp_path, "images", write_set(tmp_path / "images", "images", "jsonl", 4))
    assert all(group.z_lose is None for group in groups(images.batch(0)))


def spoiled_set(folder, kind, spoil):
    """Eight rows in a manifest; `spoil(rows)` changes them first."""
    rows = render_rows(kind, 8)
    spoil(rows)
    return write_rows(rows, folder, "jsonl")


def test_a_bad_row_ends_the_run_and_is_named(tmp_path):
    def equal(rows):
        rows[:] = [RenderedRow({"win": row.images["win"], "lose": row.images["win"]}, row.columns) for row in rows]

    def corrupt(rows):
        rows[:] = [RenderedRow({"image": row.images["image"][:90]}, row.columns) for row in rows]

    with pytest.raises(BadRow, match=r"rows\.jsonl line \d: win and lose show the same image.*on_bad_row to skip"):
        Set(tmp_path, "pairs", spoiled_set(tmp_path / "equal", "pairs", equal)).batch(0)
    with pytest.raises(BadRow, match=r"rows\.jsonl line \d: picture image cannot be decoded"):
        Set(tmp_path, "images", spoiled_set(tmp_path / "corrupt", "images", corrupt)).batch(0)

    class Nan(MeanEncoder):
        def image(self, pixels):
            return super().image(pixels) * float("nan")

    broken = Set(tmp_path, "images", write_set(tmp_path / "nan", "images", "parquet"))
    broken.queue._encoder = Nan()
    with pytest.raises(BadRow, match=r"rows\.parquet row \d: image: the autoencoder gives a latent with non-finite"):
        broken.batch(0)


def test_bad_rows_are_replaced_counted_and_listed_where_that_was_asked_for(tmp_path):
    def spoil(rows):
        for place in (2, 5):
            rows[place] = RenderedRow({"image": b"no picture"}, rows[place].columns)

    path = spoiled_set(tmp_path / "set", "images", spoil)
    whole = Set(tmp_path, "images", path, on_bad_row="skip")
    batches = [whole.batch(number) for number in range(4)]
    assert all(len(batch) == 4 for batch in batches)
    captions = {group.prompt for batch in batches for group in groups(batch)}
    good = {row.columns["caption"] for place, row in enumerate(render_rows("images", 8)) if place not in (2, 5)}
    assert captions == good
    again = Set(tmp_path, "images", path, on_bad_row="skip")
    assert [p for rank in (0, 1) for p in again.batch(1, rank, 2)] == batches[1], "substitutes too"

    listed = [json.loads(line) for line in (tmp_path / "run" / BAD_ROWS).read_text().splitlines()]
    assert sorted(entry["where"].split()[-1] for entry in listed) == ["3", "6"], "each once, over epochs and ranks"
    assert all("cannot be decoded" in entry["reason"] for entry in listed)
    assert whole.queue.stats()["bad_rows"] == 2


def test_substitutes_are_read_by_the_thread_that_reads_ahead(tmp_path, monkeypatch):
    """Order and open files know one position at a time: two threads in them take other rows, or fail."""
    threads = set()
    example = Examples.example
    monkeypatch.setattr(
        Examples, "example", lambda self, place: threads.add(threading.current_thread().name) or example(self, place)
    )
    rows = [
        {"caption": f"row {n}", "image": b"bad" if n % 3 == 0 else row.images["image"]}
        for n, row in enumerate(render_rows("images", 12))
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet", row_group_size=2)
    ahead = Set(tmp_path, "images", tmp_path / "rows.parquet", on_bad_row="skip", shuffle_blocks=1)
    batches = [ahead.batch(number) for number in range(6)]
    assert threads == {"reader_0"}
    for number in (1, 4):
        alone = Set(tmp_path, "images", tmp_path / "rows.parquet", on_bad_row="skip", shuffle_blocks=1)
        assert alone.batch(number) == batches[number]
    assert ahead.queue.stats()["bad_rows"] == len((tmp_path / "run" / BAD_ROWS).read_text().splitlines()) == 4


def test_fewer_rows_than_a_batch_make_whole_batches_and_one_line_of_a_bad_row(tmp_path):
    """Two ranks, two rows, one of them bad: four records a batch, each with noise of its own."""

    def spoil(rows):
        rows[2:] = []
        rows[1] = RenderedRow({"image": b"no picture"}, rows[1].columns)

    path = spoiled_set(tmp_path / "set", "images", spoil)
    ranks = [Set(tmp_path, "images", path, on_bad_row="skip") for _ in range(2)]
    found = [group for rank in (0, 1) for group in groups(ranks[rank].batch(0, rank, 2))]
    assert [group.ordinal for group in found] == [0, 1, 2, 3] and len({group.seed for group in found}) == 4
    assert {group.prompt for group in found} == {render_rows("images", 8)[0].columns["caption"]}
    alone = Set(tmp_path / "alone", "images", path, on_bad_row="skip")
    assert alone.batch(0) == [group.to_bytes() for group in found]
    for folder in (tmp_path, tmp_path / "alone"):
        lines = (folder / "run" / BAD_ROWS).read_text().splitlines()
        assert len(set(lines)) == 1 and json.loads(lines[0])["where"].endswith("line 2")
    assert len((tmp_path / "alone" / "run" / BAD_ROWS).read_text().splitlines()) == 1


def test_a_cache_that_cannot_be_written_is_refused_before_anything_starts(tmp_path):
    path = write_set(tmp_path / "set", "images", "jsonl")
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DataError, match=r"data\.latent_cache = .*file.* cannot be written: a file is there; name"):
            check_data(offline_config(tmp_path, "images", path, latent_cache=str(place)))
        with pytest.raises(DataError, match="cannot be written"):
            Set(tmp_path, "images", path, latent_cache=str(place))


def test_a_set_of_bad_rows_ends_the_run_even_then(tmp_path):
    def spoil(rows):
        rows[:] = [RenderedRow({"image": b"no picture"}, row.columns) for row in rows]

    hopeless = Set(tmp_path, "images", spoiled_set(tmp_path / "set", "images", spoil), on_bad_row="skip")
    with pytest.raises(DataError, match="32 rows in turn are bad"):
        hopeless.batch(0)


def test_the_cache_saves_encoding_and_changes_nothing(tmp_path):
    path = write_set(tmp_path / "set", "pairs", "folder", 8)
    plain = Set(tmp_path, "pairs", path)
    first = Set(tmp_path, "pairs", path, latent_cache=str(tmp_path / "cache"))
    batches = [first.batch(number) for number in range(2)]
    assert batches == [plain.batch(number) for number in range(2)]
    images = first.encoder.encoded
    assert 8 <= images <= 16

    second = Set(tmp_path, "pairs", path, latent_cache=str(tmp_path / "cache"))
    for entry in list((tmp_path / "cache").rglob("*.safetensors"))[:1]:
        entry.write_bytes(b"damaged")
    assert [second.batch(number) for number in range(2)] == batches
    assert second.encoder.encoded == 1
    stats = second.queue.stats()
    assert stats["cache_corrupt"] == 1 and stats["cache_hits"] >= 14


def test_images_of_any_size_and_mode_are_fitted(tmp_path):
    import io

    from PIL import Image

    def encoded(size, mode="RGB"):
        buffer = io.BytesIO()
        Image.new(mode, size, 128 if mode == "L" else (200, 30, 30)).save(buffer, format="PNG")
        return buffer.getvalue()

    rows = [RenderedRow({"win": encoded((128, 96)), "lose": encoded((20, 40), "L")}, {"caption": "x"})] * 4
    path = write_rows(rows, tmp_path / "set", "parquet")
    for group in groups(Set(tmp_path, "pairs", path, unequal_shapes="crop").batch(0)):
        assert torch.allclose(group.z_win[0, 0], torch.full((8, 8), 200 / 127.5 - 1), atol=1e-5)
        assert torch.allclose(group.z_lose[0, 0], torch.full((8, 8), 128 / 127.5 - 1), atol=1e-5)
    with pytest.raises(BadRow, match=r"row \d: win has 128 x 96 pixels and lose 20 x 40: .*unequal_shapes to crop"):
        Set(tmp_path, "pairs", path).batch(0)
    scaled = [RenderedRow({"win": encoded((128, 96)), "lose": encoded((41, 31), "L")}, {"caption": "x"})] * 4
    assert Set(tmp_path, "pairs", write_rows(scaled, tmp_path / "scaled", "parquet")).batch(0), "2 % of rounding"


def test_the_state_is_a_position_in_this_very_data_set(tmp_path):
    path = write_set(tmp_path / "set", "images", "jsonl")
    first = Set(tmp_path, "images", path)
    first.queue.load_state_dict(None)
    first.batch(0)
    first.queue.retire(0)
    state = first.queue.state_dict()
    assert first.queue.stats()["trained"] == 4

    second = Set(tmp_path, "images", path)
    second.queue.load_state_dict(state)
    assert second.queue.stats()["trained"] == 4 and second.queue.stats()["epoch_rows"] == 6
    with path.open("a") as file:
        file.write('{"caption": "one more", "image": "images/000000_image.png"}\n')
    third = Set(tmp_path, "images", path)
    third.queue.load_state_dict(state)
    with pytest.raises(DataError, match="its files are not those that this run began with"):
        third.batch(1)


def test_closed_books_end_the_run(tmp_path):
    some = Set(tmp_path, "images", write_set(tmp_path / "set", "images", "jsonl"))
    assert len(some.batch(0)) == 4
    some.books.close("SIGTERM")
    some.books.close("later")
    assert some.batch(1) is None and some.queue.stats()["closed"] == "SIGTERM"


def test_another_latent_shape_is_refused(tmp_path):
    some = Set(tmp_path, "images", write_set(tmp_path / "set", "images", "jsonl"))
    some.queue.expect((4, 8, 8))
    some.queue.expect((4, 16, 16))
    with pytest.raises(DataError, match=r"latents of \(4, 8, 8\); the network reads \(4, 16, 16\)"):
        some.batch(0)


def test_the_books_go_on_after_a_restart(tmp_path):
    books = DataBooks(tmp_path, 4)
    notes = [BadRowNote("a line 1", "empty"), BadRowNote("a line 2", "empty")]
    for _ in range(2):
        books.report("rank 0", notes, CacheCounts(3, 1, 0))
    books.report("rank 1", notes[:1], CacheCounts(2, 2, 1))
    stats = books.stats()
    assert stats["bad_rows"] == 2 and (stats["cache_hits"], stats["cache_misses"], stats["cache_corrupt"]) == (5, 3, 1)
    with (tmp_path / BAD_ROWS).open("a") as file:
        file.write('{"where": "cut sh')
    restarted = DataBooks(tmp_path, 4)
    rows = {"epoch_rows": 7, "rows_without_preference": 1}
    restarted.report("rank 0", notes, CacheCounts(), rows)
    restarted.retire(5)
    stats = restarted.stats()
    assert stats["bad_rows"] == 2 and stats["trained"] == stats["produced"] == 24 and stats["epoch_rows"] == 7
    restarted.report("rank 1", [], CacheCounts())
    assert restarted.stats()["epoch_rows"] == 7


def test_a_bad_row_is_named_by_the_process_that_looks_at_the_inputs_too(tmp_path):
    """As the command does it: what is raised comes back whole."""
    bad = tmp_path / "rows.jsonl"
    bad.write_text('{"caption": "x", "image": "gone.png"}\n')
    with pytest.raises(BadRow, match=r"rows\.jsonl line 1: .*gone\.png: cannot be read: .*on_bad_row to skip") as found:
        in_own_process(check_data, offline_config(tmp_path, "images", bad))
    assert found.value.where.endswith("rows.jsonl line 1")


def test_the_first_example_is_read_before_anything_starts(tmp_path):
    path = write_set(tmp_path / "set", "images", "jsonl")
    assert check_data(offline_config(tmp_path, "images", path)) == path
    (tmp_path / "set" / "rows.jsonl").write_text('{"text": "x"}\n')
    bad = offline_config(tmp_path, "images", path)
    with pytest.raises(DataError, match="line 1: no column 'caption'"):
        check_data(bad)
    assert check_data(offline_config(tmp_path, "images", path, on_bad_row="skip")) == path
