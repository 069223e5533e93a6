"""TensorBoard's event file, over tensorboard's own writer: torch's SummaryWriter would bring torch into the process.

scalars, images, hparams ─► Summary ─► Event ─► events.out.tfevents.*
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
from tensorboard.plugins.hparams.summary_v2 import HParam, Metric, hparams_config_pb, hparams_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter

_FLUSH_SEC = 10
_STATUS_SUCCESS = 1  # tensorboard.plugins.hparams.api_pb2.Status


class EventWriter:
    """One event file in `directory`. What is written is on disk after `flush`."""

    def __init__(self, directory: Path, *, purge_step: int | None = None) -> None:
        """`purge_step` tells TensorBoard to forget what other files of the directory hold from this step on."""
        self._file = EventFileWriter(str(directory), flush_secs=_FLUSH_SEC)
        if purge_step is not None:
            self._add(Event(session_log=SessionLog(status=SessionLog.START)), purge_step, time.time())

    def scalar(self, tag: str, value: float, step: int, wall_time: float) -> None:
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
        self._add(Event(summary=summary), step, wall_time)

    def text(self, tag: str, markdown: str, step: int) -> None:
        self._add(Event(summary=text_pb(tag, markdown)), step, time.time())

    def image(self, tag: str, png: bytes, size: tuple[int, int], step: int) -> None:
        """A PNG of `size` (width, height)."""
        image = Summary.Image(width=size[0], height=size[1], colorspace=3, encoded_image_string=png)
        self._add(Event(summary=Summary(value=[Summary.Value(tag=tag, image=image)])), step, time.time())

    def hparams(self, config: Mapping[str, bool | int | float | str], tags: list[str], step: int) -> None:
        """The run's settings beside the last values of `tags`, and that it ended well."""
        ended = HParamsPluginData(session_end_info=SessionEndInfo(status=_STATUS_SUCCESS, end_time_secs=time.time()))
        value = Summary.Value(
            tag=metadata.SESSION_END_INFO_TAG,
            metadata=metadata.create_summary_metadata(ended),
            tensor=metadata.NULL_TENSOR,
        )
        about = hparams_config_pb(hparams=[HParam(name) for name in config], metrics=[Metric(tag) for tag in tags])
        for summary in (about, hparams_pb(dict(config)), Summary(value=[value])):
            self._add(Event(summary=summary), step, time.time())

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _add(self, event: Event, step: int, wall_time: float) -> None:
        event.step, event.wall_time = step, wall_time
        self._file.add_event(event)
