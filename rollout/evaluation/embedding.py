"""Pictures and data inside one HTML file: no external resource, nothing that ends the script early.

Shapes: picture uint8 [h, w, 3].
"""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_WEB = Path(__file__).parent / "web"
_LOSSLESS_UP_TO_PIXELS = 256  # a 512-pixel PNG is about 400 kB; 64 prompts of two models would make a 70 MB page
_JPEG_QUALITY = 95
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""Content-Security-Policy: the browser itself refuses any request that the page would make."""


def data_uri(picture: np.ndarray) -> str:
    """The picture without any metadata: PNG up to 256 pixels wide, JPEG (quality 95, full colour) above."""
    buffer, image = io.BytesIO(), Image.fromarray(picture)
    if max(image.size) <= _LOSSLESS_UP_TO_PIXELS:
        image.save(buffer, format="PNG", optimize=True)
        kind = "png"
    else:
        image.save(buffer, format="JPEG", quality=_JPEG_QUALITY, subsampling=0)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def build_page(name: str, data: Any) -> str:
    """`web/<name>.html` with the styles, its script and `data` as JSON put in."""
    parts = {
        "POLICY": _POLICY,
        "STYLE": (_WEB / "page.css").read_text(encoding="utf-8"),
        "SCRIPT": (_WEB / f"{name}.js").read_text(encoding="utf-8"),
        "DATA": embedded_json(data),
    }
    page = (_WEB / f"{name}.html").read_text(encoding="utf-8")
    before, *rest = page.split("{{")
    pieces = [before]
    for piece in rest:  # one pass over the template: what a prompt says is never taken for a placeholder
        key, _, after = piece.partition("}}")
        pieces += [parts[key], after]
    return "".join(pieces)


def embedded_json(data: Any) -> str:
    """JSON that can stand inside a script element: `<` escaped, so no prompt can close it."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
