"""How different pictures are from one another: within the seeds of one prompt, and across prompts.

Post-training concentrates a model; these say how far. Read as differences from the starting model on the same prompts
and seeds. Shapes: N pictures, P width of an embedding; embeddings e have length 1.

    spread   1 − mean over pairs i ≠ j of eᵢ·eⱼ: mean cosine distance; 0 for duplicates, 1 for orthogonal pictures
    vendi    exp(−Σ λ ln λ), λ the eigenvalues of K/N, K = e eᵀ: the effective number of different pictures, 1..N
             (Vendi score, Friedman and Dieng, arXiv:2210.02410)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

Embedder = Callable[[Tensor], Tensor]
"""Pictures [B, 3, H, W] in [-1, 1] → embeddings [B, P] of length 1."""
PIXELS = "pixels"
_GRID = 8


def spread(embeddings: Tensor) -> float:
    """Mean cosine distance over pairs of [N, P], N ≥ 2; the pairs are summed as |Σe|² − Σ|e|²."""
    e = _checked(embeddings)
    count = len(e)
    return 1 - float(e.sum(dim=0).square().sum() - e.square().sum()) / (count * (count - 1))


def vendi(embeddings: Tensor) -> float:
    """Effective number of different pictures among [N, P], N ≥ 2."""
    e = _checked(embeddings)
    kernel = e @ e.T if len(e) <= e.shape[1] else e.T @ e  # the same eigenvalues but for zeros
    shares = torch.linalg.eigvalsh(kernel / len(e)).clamp(min=0)
    return float(torch.exp(-torch.special.xlogy(shares, shares).sum()))


def diversity(embeddings: Tensor, prompts: Sequence[str]) -> dict[str, float]:
    """Of embeddings [N, P] and their N prompts; the same prompt may come several times, with other seeds.

    within_spread, within_vendi: over the pictures of each prompt that has at least two, mean over prompts; absent where
    no prompt has. across_spread, across_vendi: over the first pictures of all prompts, over the second ones, and so on,
    mean over those rounds that have at least two prompts; absent where there is one prompt only.

    Raises ValueError where numbers differ or embeddings are not of length 1.
    """
    if len(embeddings) != len(prompts):
        raise ValueError(f"{len(embeddings)} embeddings for {len(prompts)} prompts; give each picture its prompt")
    of_prompt: dict[str, list[int]] = {}
    rounds: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        seen = of_prompt.setdefault(prompt, [])
        rounds.setdefault(len(seen), []).append(index)
        seen.append(index)
    found: dict[str, float] = {}
    for name, groups in (("within", of_prompt.values()), ("across", rounds.values())):
        several = [embeddings[group] for group in groups if len(group) > 1]
        if several:
            found[f"{name}_spread"] = sum(map(spread, several)) / len(several)
            found[f"{name}_vendi"] = sum(map(vendi, several)) / len(several)
    return found


def pixel_embedding(images: Tensor) -> Tensor:
    """Layout and colour without any model: the picture averaged to 8 x 8 in [-1, 1], a 1 appended, length 1: [B, 193].

    The appended 1 keeps a grey picture from having no direction. It sees composition and grading, no content.
    """
    small = F.adaptive_avg_pool2d(images.float().clamp(-1, 1), _GRID).flatten(1)
    return F.normalize(torch.cat([small, torch.ones_like(small[:, :1])], dim=1), dim=1)


def build_embedder(name: str, device: torch.device | str = "cpu") -> Embedder:
    """`pixels`, or the image tower of the CLIP in HF's format at that path or hub id (errors as `HfTowers`)."""
    if name == PIXELS:
        return pixel_embedding
    from reward.frozen import exact_float32
    from reward.hf_clip import HfTowers

    towers = HfTowers(Path(name) if Path(name).exists() else name)
    towers.module.eval().requires_grad_(False).to(device)

    @torch.no_grad()
    def embed(images: Tensor) -> Tensor:
        with exact_float32(torch.device(device)):
            return F.normalize(towers.image_features(images.to(device)), dim=1)

    return embed


def _checked(embeddings: Tensor) -> Tensor:
    """float64 on the CPU. Raises ValueError unless [N ≥ 2, P] with rows of length 1."""
    e = embeddings.detach().to("cpu", torch.float64)
    if e.ndim != 2 or len(e) < 2:
        raise ValueError(f"embeddings are {list(e.shape)}; expected [N, P] of at least two pictures")
    lengths = e.norm(dim=1)
    if not bool(((lengths - 1).abs() < 1e-3).all()):
        row = int((lengths - 1).abs().nan_to_num(torch.inf).argmax())
        raise ValueError(f"embedding {row} has length {float(lengths[row]):.4g}; rows have to have length 1")
    return e / lengths[:, None]
