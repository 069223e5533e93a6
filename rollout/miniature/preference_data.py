"""Pairs of pictures for the miniature's taste: what a person who wants `crisp` pictures would have chosen.

Kinds of pair, by share:
    finish   the same caption and objects, one crisp, one soft or hatched: crisp wins
    caption  the same finish, one picture as captioned, one with a wrong colour, shape or background: the caption wins
    tie      the same caption, one soft, one hatched: half each

A model is trained on varied pictures (`reward.augmentation`), so that it cannot answer by tint, patches, grain or
contrast.

T pairs; pictures [T, 3, 64, 64] in [-1, 1].
"""

import random
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reward.augmentation import vary
from rollout.miniature.world import (
    BACKGROUNDS,
    COLOURS,
    FINISHES,
    SHAPES,
    Scene,
    Split,
    caption,
    is_heldout,
    render,
    sample_scene,
)

KINDS = {"finish": 0.65, "caption": 0.25, "tie": 0.1}
# Largest standard deviation of the noise by the cells of its grid a side: one for the whole picture (tint), patches,
# latent cells, pixels (grain). The hatch is +-0.26 on this scale.
VARY_NOISE = {1: 0.08, 4: 0.06, 16: 0.04, 64: 0.04}
VARY_CONTRAST = 0.15  # contrast is multiplied by 1 +- this


@dataclass(frozen=True)
class Pairs:
    """T pairs; `label` [T] is the first picture's: 1 it wins, 0 it loses, 1/2 a tie."""

    captions: list[str]
    first: Tensor  # [T, 3, 64, 64]
    second: Tensor  # [T, 3, 64, 64]
    label: Tensor  # [T]
    kinds: list[str]  # of KINDS


def vary_pictures(pictures: Tensor, draw: torch.Generator) -> Tensor:
    """Pictures [B, 3, 64, 64] in [-1, 1] varied (`reward.augmentation.vary`) by this world's strengths."""
    return vary(pictures, draw, contrast=VARY_CONTRAST, noise=VARY_NOISE)


def wrong_scene(scene: Scene, rng: random.Random) -> Scene:
    """The scene with one word of its caption changed: a colour, a shape or the background."""
    if rng.random() < 0.2:
        return replace(scene, background=rng.choice([b for b in BACKGROUNDS if b != scene.background]))
    items = list(scene.items)
    index = rng.randrange(len(items))
    if rng.random() < 0.5:
        colour = rng.choice([c for c in COLOURS if c != items[index].colour])
        items[index] = replace(items[index], colour=colour)
    else:
        items[index] = replace(items[index], shape=rng.choice([s for s in SHAPES if s != items[index].shape]))
    return replace(scene, items=tuple(items))


def scene_of(split: Split, rng: random.Random) -> Scene:
    """A random scene whose caption belongs to the split."""
    while True:
        scene = sample_scene(rng)
        if is_heldout(caption(scene)) == (split == "heldout"):
            return scene


def sample_pairs(count: int, seed: str, split: Split = "train", kinds: dict[str, float] | None = None) -> Pairs:
    """`count` pairs that depend on the seed alone. Half of them share the objects' jitter, as sampler candidates do."""
    rng = random.Random(seed)
    chosen = rng.choices(list(kinds or KINDS), list((kinds or KINDS).values()), k=count)
    better, worse, better_finish, worse_finish, label = [], [], [], [], []
    for kind in chosen:
        scene = scene_of(split, rng)
        better.append(scene)
        worse.append(wrong_scene(scene, rng) if kind == "caption" else scene)
        finish = rng.choice(FINISHES)
        first, second = {
            "finish": ("crisp", rng.choice(("soft", "hatched"))),
            "caption": (finish, finish),
            "tie": ("soft", "hatched"),
        }[kind]
        better_finish.append(first)
        worse_finish.append(second)
        label.append(0.5 if kind == "tie" else 1.0)
    one, other = rng.getrandbits(62), rng.getrandbits(62)
    pictures = render(better, better_finish, torch.Generator().manual_seed(one))
    same = render(worse, worse_finish, torch.Generator().manual_seed(one))
    moved = render(worse, worse_finish, torch.Generator().manual_seed(other))
    rivals = torch.where((torch.arange(count) % 2 == 0)[:, None, None, None], same, moved)
    swap = torch.tensor([rng.random() < 0.5 for _ in range(count)])
    labels = torch.tensor(label)
    across = swap[:, None, None, None]
    return Pairs(
        captions=[caption(scene) for scene in better],
        first=torch.where(across, rivals, pictures),
        second=torch.where(across, pictures, rivals),
        label=torch.where(swap, 1 - labels, labels),
        kinds=chosen,
    )
