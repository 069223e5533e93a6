"""The miniature's world: 64x64 pictures of one or two coloured shapes, their captions, and their finishes.

A picture is a flat background with one or two objects. What the caption says (shape, colour, size, position,
background) fixes the composition; what it never says is the *finish* of the objects: `crisp` (antialiased edges),
`soft` (blurred) or `hatched` (a fine diagonal hatch). Finishes live in a few pixels of the objects only, so a diffusion
model decides them late, at low noise. Every picture is linear in the colours, background + sum of mask x (colour -
background + hatch), which is what the judge inverts.

    python -m rollout.miniature.world            # rewrites prompts_train.txt and prompts_heldout.txt

B pictures, H = W = 64 pixels; masks are coverages in [0, 1]; colours are RGB in [0, 1]; pictures are RGB in [-1, 1].
"""

import hashlib
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

PIXELS = 64
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
SIZES = {"small": 7.0, "medium": 10.0, "large": 13.0}  # outer radius in pixels
# Object colours stay inside [HATCH, 1 - HATCH] so that the hatch never clips.
COLOURS = {
    "red": (0.84, 0.14, 0.16),
    "orange": (0.87, 0.50, 0.13),
    "yellow": (0.87, 0.82, 0.15),
    "green": (0.15, 0.60, 0.20),
    "cyan": (0.15, 0.75, 0.85),
    "blue": (0.14, 0.28, 0.87),
    "purple": (0.50, 0.18, 0.72),
    "pink": (0.87, 0.38, 0.64),
}
BACKGROUNDS = {
    "white": (0.96, 0.96, 0.96),
    "grey": (0.50, 0.50, 0.50),
    "black": (0.04, 0.04, 0.04),
    "navy": (0.08, 0.10, 0.30),
    "beige": (0.87, 0.80, 0.66),
    "mint": (0.72, 0.90, 0.78),
}
POSITIONS = {  # centre of the object in pixels (x, y), and the words for it
    "centre": ((32, 32), "in the centre"),
    "top": ((32, 17), "at the top"),
    "bottom": ((32, 47), "at the bottom"),
    "left": ((17, 32), "on the left"),
    "right": ((47, 32), "on the right"),
}
PAIRS = (("left", "right"), ("top", "bottom"))  # two objects only face each other, so that they never touch
FINISHES = ("crisp", "soft", "hatched")
JITTER = 2  # pixels, each way
BLUR = 1.8  # pixels, the standard deviation of the soft finish
HATCH = 0.13  # brightness added and taken away by the hatched finish
TWO_OBJECTS = 0.3  # share of scenes with two objects
HELDOUT = 0.1  # share of captions that training never sees
WINDOW = 34  # pixels: a large object with full jitter fits

Split = Literal["train", "heldout"]


@dataclass(frozen=True)
class Item:
    """One object, by the words that name it."""

    size: str
    colour: str
    shape: str
    position: str


@dataclass(frozen=True)
class Scene:
    """What a caption fixes: one object, or two in facing positions (in the order of PAIRS), and the background."""

    items: tuple[Item, ...]
    background: str


def sample_scene(rng: random.Random) -> Scene:
    """A scene with attributes drawn uniformly; two objects with probability TWO_OBJECTS."""
    positions = rng.choice(PAIRS) if rng.random() < TWO_OBJECTS else (rng.choice(tuple(POSITIONS)),)
    items = tuple(
        Item(rng.choice(tuple(SIZES)), rng.choice(tuple(COLOURS)), rng.choice(SHAPES), position)
        for position in positions
    )
    return Scene(items, rng.choice(tuple(BACKGROUNDS)))


def caption(scene: Scene) -> str:
    """The scene in words: "a small red circle on the left and a large blue ring on the right on a white background"."""
    objects = " and ".join(f"a {i.size} {i.colour} {i.shape} {POSITIONS[i.position][1]}" for i in scene.items)
    return f"{objects} on a {scene.background} background"


_POSITION_OF = {words: name for name, (_, words) in POSITIONS.items()}
_OBJECT = re.compile(f"a ({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)}) ({'|'.join(_POSITION_OF)})")
_BACKGROUND = re.compile(f" on a ({'|'.join(BACKGROUNDS)}) background$")


def parse_caption(text: str) -> Scene:
    """The scene that `caption` would turn into `text`. Raises ValueError for text outside the grammar."""
    items = tuple(Item(size, colour, shape, _POSITION_OF[at]) for size, colour, shape, at in _OBJECT.findall(text))
    background = _BACKGROUND.search(text)
    scene = Scene(items, background.group(1)) if background else None
    if scene is None or not items or caption(scene) != text:
        raise ValueError(f"not a caption of the miniature's world: {text!r}")
    return scene


def is_heldout(text: str) -> bool:
    """Whether a caption is kept out of training: a stable hash decides, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") < HELDOUT * 2**32


def captions(split: Split, count: int, seed: int) -> list[str]:
    """`count` distinct captions of one split, in an order that `seed` fixes."""
    rng = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        text = caption(sample_scene(rng))
        if is_heldout(text) == (split == "heldout"):
            found[text] = None
    return list(found)


def shape_mask(shape: str, radius: float, blur: float = 0.0) -> Tensor:
    """Coverage of a centred shape: [WINDOW, WINDOW] in [0, 1]; `blur` is a Gaussian's standard deviation in pixels."""
    pad = 8
    axis = torch.arange(-WINDOW // 2 - pad, WINDOW // 2 + pad, dtype=torch.float32) + 0.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    rho = torch.hypot(x, y)
    if shape == "circle":
        distance = rho - 0.95 * radius
    elif shape == "square":
        distance = torch.maximum(x.abs(), y.abs()) - 0.82 * radius
    elif shape == "triangle":  # apex (0, -r), base y = 0.85 r from -r to r
        slope = torch.tensor([1.85, 1.0]) / torch.tensor([1.85, 1.0]).norm()
        distance = torch.maximum(slope[0] * x.abs() - slope[1] * (y + radius), y - 0.85 * radius)
    elif shape == "diamond":
        distance = (x.abs() + y.abs() - 1.05 * radius) / 2**0.5
    elif shape == "cross":
        upright = torch.maximum(x.abs() - 0.32 * radius, y.abs() - radius)
        distance = torch.minimum(upright, torch.maximum(y.abs() - 0.32 * radius, x.abs() - radius))
    elif shape == "ring":
        distance = (rho - 0.74 * radius).abs() - 0.26 * radius
    else:
        raise ValueError(f"unknown shape {shape!r}; one of {', '.join(SHAPES)}")
    mask = (0.5 - distance).clamp(0, 1)
    if blur > 0:
        taps = torch.exp(-(torch.arange(-7, 8, dtype=torch.float32) ** 2) / (2 * blur**2))
        taps = taps / taps.sum()
        mask = torch.nn.functional.conv2d(mask[None, None], taps.outer(taps)[None, None], padding=7)[0, 0]
    return mask[pad:-pad, pad:-pad]


def hatch_field() -> Tensor:
    """The hatch over a whole picture: [64, 64] in [-1, 1], soft diagonal stripes, period 8 pixels: two latent cells.

    A decoder of nearest-neighbour upsampling and convolutions cannot make stripes out of constant latents, so the
    period has to be longer than one latent cell.
    """
    diagonal = torch.arange(PIXELS)[:, None] + torch.arange(PIXELS)[None, :]
    return (1.6 * torch.sin(2 * torch.pi * (diagonal + 0.5) / 8)).clamp(-1, 1)


class _Masks:
    """All masks the renderer needs, made once: [shape, size, soft?, WINDOW, WINDOW]."""

    table: Tensor | None = None

    @classmethod
    def get(cls) -> Tensor:
        if cls.table is None:
            rows = [shape_mask(s, r, b) for s in SHAPES for r in SIZES.values() for b in (0.0, BLUR)]
            cls.table = torch.stack(rows).reshape(len(SHAPES), len(SIZES), 2, WINDOW, WINDOW)
        return cls.table


def _place(masks: Tensor, centres: Tensor) -> Tensor:
    """Masks [B, WINDOW, WINDOW] put at integer centres [B, 2] (x, y) on pictures: [B, 64, 64]."""
    axis = torch.arange(PIXELS)
    columns = axis[None, :] - centres[:, :1] + WINDOW // 2
    rows = axis[None, :] - centres[:, 1:] + WINDOW // 2
    inside_x, inside_y = (columns >= 0) & (columns < WINDOW), (rows >= 0) & (rows < WINDOW)
    index = torch.arange(len(masks))[:, None, None]
    placed = masks[index, rows.clamp(0, WINDOW - 1)[:, :, None], columns.clamp(0, WINDOW - 1)[:, None, :]]
    return placed * (inside_y[:, :, None] & inside_x[:, None, :])


def render(scenes: list[Scene], finishes: list[str], generator: torch.Generator | None = None) -> Tensor:
    """Pictures of the scenes, one finish each: float32 [B, 3, 64, 64] in [-1, 1]. Without a generator, no jitter."""
    table = _Masks.get()
    shape_of, size_of = {s: i for i, s in enumerate(SHAPES)}, {s: i for i, s in enumerate(SIZES)}
    owner, key, centre, colour = [], [], [], []
    for number, (scene, finish) in enumerate(zip(scenes, finishes, strict=True)):
        for item in scene.items:
            owner.append(number)
            key.append((shape_of[item.shape], size_of[item.size], int(finish == "soft")))
            centre.append(POSITIONS[item.position][0])
            colour.append(COLOURS[item.colour])
    owner_index, centres = torch.tensor(owner), torch.tensor(centre)
    if generator is not None:
        centres = centres + torch.randint(-JITTER, JITTER + 1, centres.shape, generator=generator)
    masks = _place(table[tuple(torch.tensor(key).T)], centres)
    background = torch.tensor([BACKGROUNDS[s.background] for s in scenes])
    hatch = torch.tensor([HATCH if f == "hatched" else 0.0 for f in finishes])[:, None, None] * hatch_field()
    paint = (torch.tensor(colour) - background[owner_index])[:, :, None, None] + hatch[owner_index][:, None]
    pictures = background[:, :, None, None].expand(-1, -1, PIXELS, PIXELS).clone()
    pictures.index_add_(0, owner_index, paint * masks[:, None])
    return pictures.clamp(0, 1) * 2 - 1


def main() -> None:
    """Writes the bundled prompt files."""
    folder = Path(__file__).parent
    (folder / "prompts_train.txt").write_text("\n".join(captions("train", 2000, seed=1)) + "\n")
    (folder / "prompts_heldout.txt").write_text("\n".join(captions("heldout", 256, seed=2)) + "\n")


if __name__ == "__main__":
    main()
