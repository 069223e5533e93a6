"""Where training examples come from: rollouts, or a data set on disk of preference pairs or of captioned images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from configs.base import Section


class OnlineData(Section):
    """Rollouts of the policy in training, scored as they are made."""

    type: Literal["online"] = "online"


class OfflineData(Section):
    """What both kinds of data set have. See docs/datasets.md."""

    path: Path = Field(strict=False)
    """A folder of files, a .jsonl manifest, or .parquet or .tar files: one of them, a folder of them, or a pattern."""
    split: str | None = None
    """Of a hub data set that `path` names: its parquet files are read from there as needed, nothing is stored."""
    format: Literal["auto", "folder", "jsonl", "parquet", "webdataset"] = "auto"
    """How to read it; `auto` goes by the file names."""
    caption: str = "caption"
    """Column of the prompt."""
    where: dict[str, list[str]] = {}
    """Only rows whose column has one of these values, as text: one annotator's, one taste's."""
    limit: int | None = Field(None, ge=1)
    """Only the first this many rows (of those that `where` leaves)."""
    shuffle_blocks: int = Field(4, ge=1)
    """Blocks whose rows are shuffled together: row groups of parquet, runs of 64 rows of a tar. Others: all rows."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """A row that cannot be used ends the run, or is replaced by another, counted and listed."""
    latent_cache: Path | None = Field(None, strict=False)
    """Directory in which encoded images are kept for later epochs and runs. Unset: encoded anew each time."""


class PairData(OfflineData):
    """A preferred and a rejected image for one prompt, a row each pair."""

    type: Literal["pairs"] = "pairs"
    win: str = "win"
    """Column of the preferred image. Rows with Pick-a-Pic's columns (jpg_0, jpg_1, label_0) need neither this.."""
    lose: str = "lose"
    """..nor this column of the rejected image."""
    unequal_shapes: Literal["refuse", "crop"] = "refuse"
    """Two images of different aspect ratio are a bad row, since they would be cropped to different parts; or `crop`."""


class ImageData(OfflineData):
    """An image and its caption, a row each."""

    type: Literal["images"] = "images"
    image: str = "image"
    """Column of the image."""


Data = Annotated[OnlineData | PairData | ImageData, Field(discriminator="type")]
