"""The strict base of every configuration section: unknown keys are refused, every field carries its documentation."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen, strict section: `true` is no number, `"16"` neither, infinity and NaN are refused.

    Each field's docstring is what `docs/configuration.md` shows.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
    )
