"""An offline data set as the learner's queue: the loop takes a batch of records, and does not see where it is from.

    position ─► example ─► decode, fit ─► cache? ─► autoencoder ─┐
       ▲           └──────── caption ───► text encoder ──────────┴─► FinalGroup, as rollouts deliver it
    batch b = [b G, (b + 1) G)        (bad row: the one half an epoch further, where data.on_bad_row is skip)

It runs inside each rank, which encodes its own share, image by image: a record's bits depend on its row alone, not on
who else is in the batch. While a batch is trained a thread reads and decodes the next one. A rank that dies comes back
with the learner's ranks, from the last checkpoint: the batch number is all the state there is.
"""

from __future__ import annotations

import json
import os
import socket
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from configs.data import ImageData, PairData
from configs.schema import AtelierConfig
from learner.agreement import on_every_rank
from learner.datasets.books import BadRowNote, Books, CacheCounts
from learner.datasets.examples import Example, Examples, same_image
from learner.datasets.images import decode_image, to_pixels
from learner.datasets.latent_cache import LatentCache, autoencoder_sha256, make_directory
from learner.datasets.rows import DataError
from learner.datasets.tables import BadRow
from rollout.assets import pipeline_path
from rollout.families import FAMILIES
from rollout.final_records import FinalGroup
from rollout.policy import DiffusionPolicy, resolve_dtype
from rollout.prompts import stable_hash

MAX_SUBSTITUTES = 32
"""So many bad rows in the place of one end the run: something is wrong with all of them."""
_SEED_BITS = 63
_STATE_FORMAT = 1


class Encoder(Protocol):
    """What turns images and captions into what the network reads."""

    latent_shape: tuple[int, int, int]
    image_size: int
    autoencoder_sha256: str

    def image(self, pixels: Tensor) -> Tensor:
        """Latent float32 [C, H, W], on the CPU, of an image float32 [3, size, size] in [-1, 1]."""
        ...

    def text(self, caption: str) -> dict[str, Tensor]:
        """The caption's conditioning as a record carries it."""
        ...


class ModelEncoder:
    """Autoencoder and text encoder of the configured model, without its network."""

    def __init__(self, config: AtelierConfig, device: torch.device) -> None:
        model = config.model
        dtype = resolve_dtype(model.dtype, device)
        family = FAMILIES[model.family].load(pipeline_path(model.pretrained), dtype, network_only=False, model=model)
        self.latent_shape = family.latent_shape(model.image_size)
        schedule = family.schedule(config.noise, self.latent_shape)
        family.network = None
        setattr(family.pipeline, family.network_part, None)  # or it would stay in memory beside the trained one
        family.to(device)
        self._policy = DiffusionPolicy(family, schedule.to(device), config.noise, self.latent_shape)
        self.image_size = self.latent_shape[1] * family.vae_scale_factor
        self.autoencoder_sha256 = autoencoder_sha256(family.vae)

    def image(self, pixels: Tensor) -> Tensor:
        return self._policy.encode_images(pixels[None])[0].cpu()

    def text(self, caption: str) -> dict[str, Tensor]:
        return self._policy.encode([caption]).row(0)


@dataclass(frozen=True)
class Loaded:
    """An example whose images are decoded, or need not be."""

    example: Example
    pixels: tuple[Tensor | None, ...]
    """float32 [3, size, size] of each image; None where the latent is known."""
    latents: tuple[Tensor | None, ...]
    """From the cache."""


class OfflineQueue:
    """`learner.loop.Queue` over a data set. One in every rank."""

    def __init__(self, config: AtelierConfig, books: Books, encoder: Encoder) -> None:
        """Raises DataError for a data set that cannot be read."""
        assert isinstance(config.data, PairData | ImageData), "online data come from the replay queue"
        self._data = config.data
        self._seed = config.run.seed
        self._per_batch = config.learner.groups_per_batch
        self._books = books
        self._encoder = encoder
        self._examples = Examples(config.data, config.run.seed)
        self._rows = {"epoch_rows": self._examples.rows, "rows_without_preference": self._examples.left_out}
        self._cache: LatentCache | None = None
        if (folder := _cache_folder(config.data)) is not None:
            self._cache = LatentCache(folder, encoder.autoencoder_sha256, encoder.image_size, encoder.latent_shape)
        self._process = f"{socket.gethostname()}/{os.getpid()}"
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reader")  # all that touches the files
        self._ahead: dict[int, Future[Loaded]] = {}
        self._bad: list[BadRowNote] = []
        self._batch = 0
        self._fault: str | None = None  # raised by `take`, where the ranks agree on how a run goes on

    def expect(self, latent_shape: Any) -> None:
        """What the network reads; `take` raises where images would be encoded to another shape."""
        if tuple(latent_shape) != self._encoder.latent_shape:
            self._fault = f"latents of {self._encoder.latent_shape}; the network reads {tuple(latent_shape)}"

    def refuse_other_files(self) -> None:
        """Raises DataError where another rank found other files at the same path. Collective."""
        everyone: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(everyone, (self._process, self._examples.fingerprint))
        if differing := [process for process, found in everyone if found != everyone[0][1]]:
            raise DataError(
                f"{self._data.path}: {differing[0]} finds other files there than {everyone[0][0]}; data.path must mean "
                f"the same files on every node of the learner"
            )

    def take(self, batch: int, rank: int, world: int, learner_step: int) -> list[bytes] | None:
        """The records of `rank` (of `world`) in global batch `batch`; None once the books are closed.

        Raises DataError naming file and row for a bad row, unless data.on_bad_row is skip.
        """
        if self._fault is not None:
            raise DataError(self._fault)
        if self._books.closed() is not None:
            return None
        payloads = [self._record(position) for position in self._share(batch, rank, world)]
        self._read_ahead(self._share(batch + 1, rank, world))
        self._batch = batch
        counts = (
            CacheCounts(self._cache.hits, self._cache.misses, self._cache.corrupt) if self._cache else CacheCounts()
        )
        bad, self._bad = self._bad, []
        self._books.report(self._process, bad, counts, self._rows)
        return payloads

    def retire(self, batch: int) -> None:
        self._batch = batch + 1
        self._books.retire(batch)

    def stats(self) -> dict[str, Any]:
        return self._books.stats()

    def state_dict(self) -> bytes:
        """The batch to go on with, and what the data set is known by."""
        state = {"format": _STATE_FORMAT, "batch": self._batch, "data": self._examples.fingerprint}
        return json.dumps(state).encode()

    def load_state_dict(self, state: bytes | None) -> None:
        """Go on from there; `take` raises where the data set has changed since: batch b would hold other rows."""
        loaded = {"batch": 0} if not state else json.loads(state)
        if loaded.get("data", self._examples.fingerprint) != self._examples.fingerprint:
            self._fault = (
                f"{self._data.path}: its files are not those that this run began with, so that its order would be "
                f"another; bring them back, or start a new run"
            )
        self._batch = loaded["batch"]
        self._books.start_at(self._batch, self._rows)

    def _share(self, batch: int, rank: int, world: int) -> range:
        size = self._per_batch // world
        first = batch * self._per_batch + rank * size
        return range(first, first + size)

    def _record(self, position: int) -> bytes:
        """The record at `position`: of its row, or of the first good substitute."""
        future = self._ahead.pop(position, None) or self._reader.submit(self._load, position)
        reasons = []
        for attempt in range(1, MAX_SUBSTITUTES + 1):
            try:
                return self._encode(position, future.result()).to_bytes()
            except BadRow as error:
                if self._data.on_bad_row == "stop":
                    raise with_fix(error) from error
                self._bad.append(BadRowNote(error.where, error.reason))
                reasons.append(error)
            future = self._reader.submit(self._load, self._examples.substitute(position, attempt))
        raise DataError(f"{self._data.path}: {MAX_SUBSTITUTES} rows in turn are bad; the last one: {reasons[-1]}")

    def _read_ahead(self, positions: range) -> None:
        """Start reading what is taken next."""
        self._ahead = {position: self._reader.submit(self._load, position) for position in positions}

    def _load(self, position: int) -> Loaded:
        """In the reader's thread alone, substitutes too: order and open files are no two threads' to share."""
        example = self._examples.example(position)
        pixels: list[Tensor | None] = []
        latents: list[Tensor | None] = []
        for column, data in example.images:
            latent = self._cache.get(data) if self._cache else None
            latents.append(latent)
            pixels.append(None if latent is not None else self._decode(data, example.where, column))
        return Loaded(example, tuple(pixels), tuple(latents))

    def _decode(self, data: bytes, where: str, column: str) -> Tensor:
        return to_pixels(decode_row_image(data, where, column), self._encoder.image_size)

    def _encode(self, position: int, loaded: Loaded) -> FinalGroup:
        example = loaded.example
        latents = []
        for (column, data), pixels, latent in zip(example.images, loaded.pixels, loaded.latents, strict=True):
            if latent is None:
                assert pixels is not None, "decoded where no latent is known"
                latent = self._encoder.image(pixels)
                if not bool(torch.isfinite(latent).all()):
                    raise BadRow(example.where, f"{column}: the autoencoder gives a latent with non-finite values")
                if self._cache:
                    self._cache.put(data, latent)
            latents.append(latent)
        if len(latents) == 2 and torch.equal(latents[0], latents[1]):
            raise BadRow(example.where, same_image(*(column for column, _ in example.images)))
        zeros = torch.zeros(1)
        return FinalGroup(
            ordinal=position,
            prompt=example.caption,
            seed=stable_hash("seed", self._seed, position) >> (64 - _SEED_BITS),
            policy_step=0,
            adapter_sha256="",
            worker=example.where,
            conditioning=self._encoder.text(example.caption),
            z_win=latents[0][None],
            z_lose=latents[1][None] if len(latents) == 2 else None,
            score_win=zeros,
            score_lose=zeros.clone() if len(latents) == 2 else None,
            scores=torch.zeros(0, 0),
            final_score=0.0,
        )


def _cache_folder(data: PairData | ImageData) -> Path | None:
    return None if data.latent_cache is None else data.latent_cache.expanduser()


def with_fix(error: BadRow) -> BadRow:
    """What ends a run that does not skip bad rows."""
    return BadRow(error.where, f"{error.reason}; mend or remove it, or set data.on_bad_row to skip")


def decode_row_image(data: bytes, where: str, column: str) -> Image.Image:
    """A row's picture. Raises BadRow."""
    try:
        return decode_image(data, column)
    except DataError as error:
        raise BadRow(where, str(error)) from error


def open_offline_queue(config: AtelierConfig, books: Books, device: torch.device) -> OfflineQueue:
    """The data set of `config.data`, encoded by the configured model on `device`. Collective.

    Raises DataError on every rank when one of them cannot read it, or does not find the same files there.
    """
    queue = on_every_rank(lambda: OfflineQueue(config, books, ModelEncoder(config, device)), DataError)
    queue.refuse_other_files()
    return queue


def check_data(config: AtelierConfig) -> Path | None:
    """Open the data set and decode its first example, before anything is started. Raises DataError."""
    if not isinstance(config.data, PairData | ImageData):
        return None
    examples = Examples(config.data, config.run.seed)
    if (folder := _cache_folder(config.data)) is not None:
        make_directory(folder)
    try:
        example = examples.example(0)
        for column, data in example.images:
            decode_row_image(data, example.where, column)
    except BadRow as error:
        if config.data.on_bad_row == "stop":
            raise with_fix(error) from error
    return config.data.path
