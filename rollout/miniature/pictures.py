"""Contact sheets: pictures to look at."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor


def contact_sheet(images: Tensor, path: str | Path, columns: int = 16, zoom: int = 2) -> None:
    """Writes images [B, 3, H, W] in [-1, 1] as one PNG, row by row, each pixel `zoom` wide."""
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    sheet = torch.ones(channels, rows * (height + 1), columns * (width + 1))
    for number, image in enumerate(images.detach().float().cpu().clamp(-1, 1)):
        top, left = (number // columns) * (height + 1), (number % columns) * (width + 1)
        sheet[:, top : top + height, left : left + width] = image
    pixels = ((sheet.permute(1, 2, 0) + 1) * 127.5).round().to(torch.uint8).numpy()
    picture = Image.fromarray(pixels)
    picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST).save(path)
