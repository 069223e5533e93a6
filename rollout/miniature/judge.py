"""Reads a picture of the miniature's world: which objects, colours, sizes, positions, background, and which finish.

Nothing here is learned. Every picture of the world is linear in its colours, so the judge fits the renderer's own masks
(shape x size x offset x blur) to the picture by least squares, as one matrix product, and keeps the layout that leaves
least unexplained. The finish is the blur of the best mask and the amplitude of the hatch. It only ever measures: no
model is trained on it.

B pictures, S = 5 positions, K masks, P = 34x34 window pixels; colours are RGB in [0, 1].
"""

from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from rollout.miniature.world import (
    BACKGROUNDS,
    COLOURS,
    FINISHES,
    PAIRS,
    PIXELS,
    POSITIONS,
    SHAPES,
    SIZES,
    WINDOW,
    Item,
    Scene,
    hatch_field,
    parse_caption,
    shape_mask,
)

BLURS = (0.0, 0.6, 1.2, 1.8, 2.4)  # pixels, standard deviations tried
SOFT_FROM = 1.2  # pixels: a best blur of at least this reads as soft (rendered: 1.8)
HATCHED_FROM = 0.05  # brightness: an amplitude above this reads as hatched (rendered: 0.12)
REACH = 3  # pixels: offsets tried around each position, one more than the renderer's jitter
SECOND_OBJECT = (2.0, 0.01)  # what it must explain: squared brightness, and share of the picture's energy

Verdict = dict[str, bool | str]


@dataclass(frozen=True)
class Reading:
    """What the judge saw."""

    scene: Scene
    finish: str
    blur: float  # pixels
    hatch: float  # brightness amplitude
    unexplained: float  # share of the picture's energy about its background that no object accounts for


class Judge:
    """Analysis by synthesis with the renderer's masks. Build it once (about 20 MB), then `read`."""

    def __init__(self) -> None:
        offsets = range(-REACH, REACH + 1)
        self.keys = list(product(BLURS, SHAPES, SIZES, offsets, offsets))
        masks = []
        for blur, shape, size in product(BLURS, SHAPES, SIZES):
            padded = F.pad(shape_mask(shape, SIZES[size], blur), (REACH,) * 4)
            masks += [
                padded[REACH - dy : REACH - dy + WINDOW, REACH - dx : REACH - dx + WINDOW]
                for dy, dx in product(offsets, offsets)
            ]
        self.masks = torch.stack(masks).flatten(1)  # [K, P]
        self.energies = self.masks.square().sum(1)  # [K]
        self.corners = [(x - WINDOW // 2, y - WINDOW // 2) for (x, y), _ in POSITIONS.values()]
        self.hatches = self._windows(hatch_field().expand(1, 1, -1, -1))[0, :, 0]  # [S, P]
        self.names = list(POSITIONS)
        self.layouts = [(s,) for s in range(5)] + [tuple(self.names.index(p) for p in pair) for pair in PAIRS]

    def _windows(self, pictures: Tensor) -> Tensor:
        """Cuts the five windows out of [B, C, 64, 64]: [B, S, C, P]."""
        return torch.stack([pictures[..., y : y + WINDOW, x : x + WINDOW].flatten(2) for x, y in self.corners], 1)

    def read(self, images: Tensor) -> list[Reading]:
        """Reads images [B, 3, 64, 64] in [-1, 1]."""
        pictures = (images.detach().float().cpu().clamp(-1, 1) + 1) / 2
        return [reading for part in pictures.split(64) for reading in self._read(part)]

    def _read(self, pictures: Tensor) -> list[Reading]:
        rows, columns = pictures[..., [0, 1, -2, -1], :], pictures[..., [0, 1, -2, -1]]  # no object reaches these
        backgrounds = torch.cat([rows.flatten(2), columns.flatten(2)], 2).median(dim=2).values  # [B, 3]
        contrast = pictures - backgrounds[:, :, None, None]
        windows = self._windows(contrast)
        fits = windows @ self.masks.T / self.energies  # [B, S, 3, K], the least-squares colour of every mask
        gains = fits.square().sum(2) * self.energies  # [B, S, K], the energy it explains
        best = gains.argmax(2)
        paints = fits.gather(3, best[:, :, None, None].expand(-1, -1, 3, 1))[..., 0]  # [B, S, 3]
        layouts, unexplained = self._layouts(contrast, best, paints)
        readings = []
        for b, layout in enumerate(layouts):
            items = self._items(backgrounds[b], best[b], paints[b], layout)
            blur, hatch = self._finish(windows[b], gains[b], best[b], layout)
            finish = "hatched" if hatch > HATCHED_FROM else "soft" if blur >= SOFT_FROM else "crisp"
            scene = Scene(items, nearest(backgrounds[b], BACKGROUNDS))
            readings.append(Reading(scene, finish, blur, hatch, unexplained[b].item()))
        return readings

    def _layouts(self, contrast: Tensor, best: Tensor, paints: Tensor) -> tuple[list[tuple[int, ...]], Tensor]:
        """Which positions' objects leave least of `contrast` unexplained, and what share they leave: B tuples, [B]."""
        count, slots = best.shape
        placed = torch.zeros(count, slots, 3, PIXELS, PIXELS)
        for s, (x, y) in enumerate(self.corners):
            mask = self.masks[best[:, s]].reshape(count, 1, WINDOW, WINDOW)
            placed[:, s, :, y : y + WINDOW, x : x + WINDOW] = paints[:, s, :, None, None] * mask
        total = contrast.square().sum((1, 2, 3))
        rests = [contrast - placed[:, list(positions)].sum(1) for positions in self.layouts]
        residuals = torch.stack([rest.square().sum((1, 2, 3)) for rest in rests], 1)
        absolute, share = SECOND_OBJECT
        price = torch.tensor([float(len(positions) - 1) for positions in self.layouts])
        chosen = (residuals + price * (absolute + share * total[:, None])).argmin(1)
        unexplained = residuals.gather(1, chosen[:, None])[:, 0] / total.clamp(min=1e-6)
        return [self.layouts[index] for index in chosen.tolist()], unexplained

    def _items(self, background: Tensor, best: Tensor, paints: Tensor, layout: tuple[int, ...]) -> tuple[Item, ...]:
        found = []
        for s in layout:
            _, shape, size, _, _ = self.keys[best[s]]
            found.append(Item(size, nearest(background + paints[s], COLOURS), shape, self.names[s]))
        return tuple(found)

    def _finish(self, windows: Tensor, gains: Tensor, best: Tensor, layout: tuple[int, ...]) -> tuple[float, float]:
        """Blur (pixels) and hatch amplitude (brightness) of all objects of one picture together."""
        by_blur, hatch, weight = torch.zeros(len(BLURS)), 0.0, 0.0
        for s in layout:
            by_blur += gains[s].reshape(len(BLURS), -1).amax(1)
            mask = self.masks[best[s]]
            pattern = self.hatches[s] * mask
            pattern = pattern - (pattern @ mask) / (mask @ mask) * mask  # what a plain colour cannot explain
            hatch += (windows[s] @ pattern).mean().item()
            weight += (pattern @ pattern).item()
        return BLURS[int(by_blur.argmax())], hatch / weight


def nearest(colour: Tensor, palette: dict[str, tuple[float, float, float]]) -> str:
    """The palette's name for the colour [3] nearest in RGB."""
    table = torch.tensor(list(palette.values()))
    return list(palette)[int((table - colour).square().sum(1).argmin())]


def compare(seen: Reading, asked: Scene) -> Verdict:
    """Which attributes of `asked` the picture shows: every object must have it right, and as many objects as asked.

    Keys: shape, colour, background, position, size; `core` (shape, colour and background), `all` (all five);
    `finish` (its name).
    """
    objects, wanted = seen.scene.items, asked.items
    verdict: Verdict = {
        name: tuple(getattr(i, name) for i in objects) == tuple(getattr(i, name) for i in wanted)
        for name in ("shape", "colour", "position", "size")
    }
    verdict["background"] = seen.scene.background == asked.background
    verdict["core"] = bool(verdict["shape"] and verdict["colour"] and verdict["background"])
    verdict["all"] = bool(verdict["core"] and verdict["position"] and verdict["size"])
    return {**verdict, "finish": seen.finish}


def judge_captions(images: Tensor, captions: list[str], judge: Judge | None = None) -> list[Verdict]:
    """Compares each image [B, 3, 64, 64] in [-1, 1] with its caption; see `compare` for the keys."""
    readings = (judge or Judge()).read(images)
    return [compare(seen, parse_caption(text)) for seen, text in zip(readings, captions, strict=True)]


def summarise(verdicts: list[Verdict]) -> dict[str, float]:
    """Share of pictures with each attribute right, and of each finish."""
    shares = {key: sum(bool(v[key]) for v in verdicts) / len(verdicts) for key in verdicts[0] if key != "finish"}
    return shares | {finish: sum(v["finish"] == finish for v in verdicts) / len(verdicts) for finish in FINISHES}
