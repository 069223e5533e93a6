"""The strict base of every configuration section: unknown keys are refused, every field carries its documentation."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen, strict section. Each field's `description` is what `docs/configuration.md` shows."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True)
