"""What every kind of group has: where it came from, its scores, its checks, and its bytes.

Bytes are safetensors + JSON, never a pickle. The queue opens every group to check it and computes nothing: it reads
numpy arrays into the same records (`arrays`), so that its process does not carry torch. Everybody else reads tensors.
Shapes: S rows of scores, K candidates or pictures, C H W latent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save as save_safetensors

from rollout.array_bytes import read_arrays, read_metadata

if TYPE_CHECKING:
    from torch import Tensor

Dtype = Literal["float32", "int64"]
Record = TypeVar("Record", bound="GroupRecord")
FORMAT_VERSION = 1
_CONDITIONING_PREFIX = "conditioning."


@dataclass(frozen=True)
class GroupHeader:
    """What the queue must know of a group without opening it."""

    ordinal: int
    policy_step: int
    adapter_sha256: str
    worker: str
    num_pairs: int
    nbytes: int
    final_score: float


@dataclass(frozen=True, eq=False, kw_only=True)
class GroupRecord:
    """What one prompt's rollout gave. Subclasses add tensors and check them by `check`.

    Raises ValueError on construction, naming the field, when a shape, dtype or value breaks the contract.
    """

    KEY: ClassVar[str]
    """Under it the metadata of the bytes says everything that is not a tensor; tells the kinds apart."""
    WHAT: ClassVar[str]
    """The kind in words, for messages."""
    ROWS: ClassVar[str]
    """The field [rows, C, H, W] whose rows are trained on."""
    OPTIONAL: ClassVar[tuple[str, ...]] = ()
    """Fields that may be None."""

    ordinal: int
    prompt: str
    seed: int
    policy_step: int
    adapter_sha256: str
    worker: str
    conditioning: Mapping[str, Tensor]
    """Once for all rows; each tensor has no batch dimension."""
    scores: Tensor
    """float32 [S, K]: every candidate's or picture's score, trained on or not."""
    final_score: float
    """Mean score of the last candidates or of the finished pictures."""

    def __post_init__(self) -> None:
        if len(shape := tuple(getattr(self, self.ROWS).shape)) != 4:
            raise ValueError(f"{self.ROWS} has shape {shape}; expected [T, C, H, W]")
        if self.scores.ndim != 2:
            raise ValueError(f"scores has shape {tuple(self.scores.shape)}; expected [S, K]")
        self.check_tensor("scores", "float32", tuple(self.scores.shape))
        if not math.isfinite(self.final_score):
            raise ValueError(f"final_score is {self.final_score}; scores must be finite")
        self.check()

    def check(self) -> None:
        """The checks of the kind's own fields."""

    def check_tensor(self, name: str, dtype: Dtype, shape: tuple[int, ...]) -> None:
        """Refuse a field of another dtype or shape, or with values that are not finite."""
        value = getattr(self, name)
        found = str(value.dtype).removeprefix("torch.")
        if found != dtype or tuple(value.shape) != shape:
            raise ValueError(f"{name} is {found} {tuple(value.shape)}; expected {dtype} {shape}")
        if dtype == "float32" and not bool(np.isfinite(np.asarray(value)).all()):
            raise ValueError(f"{name} has non-finite values (ordinal {self.ordinal}, worker {self.worker})")

    @property
    def num_pairs(self) -> int:
        """Rows that can be trained on (pairs; pictures; transitions). 0 is a valid group without a training signal."""
        return int(getattr(self, self.ROWS).shape[0])

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return tuple(getattr(self, self.ROWS).shape[1:])

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(int(tensor.nbytes) for tensor in self._tensors().values())

    def header(self, nbytes: int | None = None) -> GroupHeader:
        """The header; `nbytes` is the length of the serialised form where it is known."""
        return GroupHeader(
            ordinal=self.ordinal,
            policy_step=self.policy_step,
            adapter_sha256=self.adapter_sha256,
            worker=self.worker,
            num_pairs=self.num_pairs,
            nbytes=self.nbytes if nbytes is None else nbytes,
            final_score=self.final_score,
        )

    def to_bytes(self) -> bytes:
        """Serialise: tensors as safetensors, everything plain as JSON in its metadata."""
        plain: dict[str, Any] = {"format": FORMAT_VERSION}
        for spec in fields(self):
            value = getattr(self, spec.name)
            if isinstance(value, int | float | str):
                plain[spec.name] = value
        arrays = {name: np.ascontiguousarray(value) for name, value in self._tensors().items()}
        return save_safetensors(arrays, metadata={self.KEY: json.dumps(plain)})

    @classmethod
    def from_bytes(cls: type[Record], data: bytes, *, arrays: bool = False) -> Record:
        """Inverse of `to_bytes`. Raises ValueError naming what is wrong with damaged or foreign bytes."""
        try:
            plain = json.loads(read_metadata(data)[cls.KEY])
            tensors = read_arrays(data) if arrays else _read_tensors(data)
        except (KeyError, SafetensorError, ValueError) as error:
            raise ValueError(f"not a {cls.WHAT} ({len(data)} bytes): {error}") from error
        if plain.pop("format", None) != FORMAT_VERSION:
            raise ValueError(f"{cls.WHAT} of another format; this version reads {FORMAT_VERSION}")
        conditioning = {
            name.removeprefix(_CONDITIONING_PREFIX): tensors.pop(name)
            for name in sorted(tensors)
            if name.startswith(_CONDITIONING_PREFIX)
        }
        try:
            return cls(**{**dict.fromkeys(cls.OPTIONAL), **plain, **tensors, "conditioning": conditioning})
        except TypeError as error:
            raise ValueError(f"{cls.WHAT} with missing or unknown fields: {error}") from error

    def _tensors(self) -> dict[str, Any]:
        """Every tensor (or array), the conditioning's under a prefix."""
        own = {spec.name: value for spec in fields(self) if hasattr(value := getattr(self, spec.name), "dtype")}
        return own | {_CONDITIONING_PREFIX + name: value for name, value in self.conditioning.items()}


def _read_tensors(data: bytes) -> dict[str, Any]:
    from safetensors.torch import load

    return load(data)
