"""A scorer of the user's own, by import path `package.module:callable`. Known taste: the user's."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from reward.base import Scorer


def import_scorer(target: str, options: Mapping[str, str | int | float | bool]) -> Scorer:
    """What the callable at `target` returns for `options`.

    Raises ValueError naming `target` where there is no such module or attribute, or the object is no `Scorer`; and
    whatever the callable raises.
    """
    module_name, _, attribute = target.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"scorer target {target!r} cannot be imported: {error}") from error
    scorer = factory(**options)
    if not isinstance(scorer, Scorer):
        raise ValueError(
            f"scorer target {target!r} gives a {type(scorer).__name__}, which lacks something of reward.base.Scorer: "
            f"name, reads, score(images, prompts, timesteps), to(device)"
        )
    if scorer.reads not in ("pixels", "latent"):
        raise ValueError(f"scorer target {target!r} reads {scorer.reads!r}; it has to be pixels or latent")
    return scorer
