"""Spread and Vendi score on embeddings and pictures whose values are known: duplicates, orthogonal groups, mixtures."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import CLIPModel

from configs.statistics import ACROSS, WITHIN
from reward.diversity import build_embedder, diversity, pixel_embedding, spread, vendi
from reward.preprocess import published_pixels
from tests.reward.conftest import write_clip


def test_duplicates_count_once_and_orthogonal_pictures_each() -> None:
    one = torch.eye(6)[:1].expand(5, 6)
    assert spread(one) == pytest.approx(0.0) and vendi(one) == pytest.approx(1.0)
    assert spread(torch.eye(6)) == pytest.approx(1.0) and vendi(torch.eye(6)) == pytest.approx(6.0)


def test_groups_of_duplicates() -> None:
    """Two groups of three: 9 of 15 pairs differ: spread 0.6, Vendi 2. Shares 3/4, 1/4: exp(H) = 4 / 3^0.75 = 1.7548."""
    assert spread(torch.eye(2).repeat(3, 1)) == pytest.approx(0.6)
    assert vendi(torch.eye(2).repeat(3, 1)) == pytest.approx(2.0)
    uneven = torch.eye(2)[[0, 0, 0, 1]]
    assert spread(uneven) == pytest.approx(0.5) and vendi(uneven) == pytest.approx(4 / 3**0.75)


def test_two_pictures_at_an_angle() -> None:
    """K/2 has the eigenvalues (1 ± c)/2 for cosine c; c = 0.6 gives 0.8 and 0.2: exp(0.5004) = 1.6494."""
    pair = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    assert spread(pair) == pytest.approx(0.4)
    expected = math.exp(-0.8 * math.log(0.8) - 0.2 * math.log(0.2))
    assert vendi(pair) == pytest.approx(expected) == pytest.approx(1.6494, abs=1e-4)


def test_more_pictures_than_dimensions_change_nothing() -> None:
    e = torch.nn.functional.normalize(torch.randn(40, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    padded = torch.cat([e, torch.zeros(40, 60)], dim=1)
    assert vendi(e) == pytest.approx(vendi(padded), rel=1e-9)
    distances = [1 - float(e[i] @ e[j]) for i in range(40) for j in range(i)]
    assert spread(e) == pytest.approx(sum(distances) / len(distances), abs=1e-6)


def test_within_and_across_prompts() -> None:
    """Prompt a: two orthogonal pictures; b: duplicates. Rounds: (a1, b1) orthogonal, (a2, b2) the same."""
    e = torch.eye(3)[[0, 1, 1, 1]]
    found = diversity(e, ["a", "b", "a", "b"])
    assert found == pytest.approx(
        {"within_spread": 0.5, "within_vendi": 1.5, "across_spread": 0.5, "across_vendi": 1.5}
    )
    assert [f"diversity/{name}" for name in found] == [*WITHIN, *ACROSS]
    assert list(diversity(e, ["a", "b", "c", "d"])) == ["across_spread", "across_vendi"]
    assert list(diversity(e, ["a"] * 4)) == ["within_spread", "within_vendi"]
    assert diversity(e[:1], ["a"]) == {}


def test_what_is_no_embedding_is_refused() -> None:
    with pytest.raises(ValueError, match="2 embeddings for 1 prompts"):
        diversity(torch.eye(2), ["a"])
    with pytest.raises(ValueError, match="embedding 1 has length 2"):
        spread(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    with pytest.raises(ValueError, match="embedding 0 has length nan"):
        vendi(torch.tensor([[math.nan, 0.0], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="at least two pictures"):
        vendi(torch.ones(1, 1))


def test_pixel_embedding_of_solid_pictures() -> None:
    """White is (1, ..., 1, 1), black (−1, ..., −1, 1), grey (0, ..., 0, 1): cosines (1 − 192)/193 and 1/√193."""
    pictures = torch.tensor([1.0, -1.0, 0.0]).view(3, 1, 1, 1).expand(3, 3, 20, 32)
    e = pixel_embedding(pictures)
    assert e.shape == (3, 193)
    assert (e @ e.T)[0].tolist() == pytest.approx([1.0, -191 / 193, 1 / math.sqrt(193)], abs=1e-5)
    assert build_embedder("pixels") is pixel_embedding


def test_duplicated_pictures_lower_both() -> None:
    pictures = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1
    pictures = pictures.round() * torch.linspace(0.2, 1, 6).view(6, 1, 1, 1)
    collapsed = pictures[[0, 0, 0, 3, 3, 3]]
    before, after = (diversity(pixel_embedding(x), list("abcdef")) for x in (pictures, collapsed))
    assert after["across_spread"] < before["across_spread"] and after["across_vendi"] < before["across_vendi"]
    assert after["across_vendi"] <= 2 + 1e-9


def test_a_clip_as_embedder(tmp_path: Path) -> None:
    folder = write_clip(tmp_path / "clip", "small")
    pictures = torch.rand(3, 3, 40, 50, generator=torch.Generator().manual_seed(4)) * 2 - 1
    clip = CLIPModel.from_pretrained(folder).eval()
    with torch.no_grad():
        states = clip.vision_model(pixel_values=published_pixels(pictures, 64, "crop_floor"))
        expected = torch.nn.functional.normalize(clip.visual_projection(states.pooler_output), dim=1)
    torch.testing.assert_close(build_embedder(str(folder))(pictures), expected, rtol=0, atol=1e-5)
