"""The step-aware model: exact start, its blocks by hand in float64, time, gradients, training."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from reward.losses import count_correct, preference_loss
from reward.preprocess import clip_pixels
from reward.step_aware import StepAwarePreferenceModel, timestep_sinusoid, vision_block
from tests.tiny import tiny_tokenizer

Make = Callable[[Path], StepAwarePreferenceModel]
PROMPTS = ["a red cube", "a dog", "", "x", "over and over and over and over again"]


def token_ids(clip_dir: Path) -> torch.Tensor:
    tokenizer = tiny_tokenizer(clip_dir)
    return tokenizer(PROMPTS, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]


def test_start_is_the_plain_clip_exactly(clip_dir: Path, pictures: torch.Tensor, timesteps: torch.Tensor) -> None:
    plain, model = CLIPModel.from_pretrained(clip_dir).eval(), StepAwarePreferenceModel.from_pretrained(clip_dir)
    ids, pixels = token_ids(clip_dir), clip_pixels(pictures, model.image_size)
    with torch.no_grad():
        reference = plain(input_ids=ids, pixel_values=pixels)
        image_features = model.image_features(pixels, timesteps)
        assert torch.equal(image_features, plain.get_image_features(pixel_values=pixels).pooler_output)
        assert torch.equal(model.text_features(ids), plain.get_text_features(input_ids=ids).pooler_output)
        scores = model.score(pictures, ids, timesteps)
    assert scores.dtype == torch.float32 and scores.shape == (5,)
    torch.testing.assert_close(scores, reference.logits_per_image.diagonal(), rtol=1e-6, atol=1e-6)


def test_start_has_zero_weights_and_gates_of_one(clip_dir: Path) -> None:
    model = StepAwarePreferenceModel.from_pretrained(clip_dir)
    state = model.state_dict()
    width = state["model.vision_model.post_layernorm.weight"].numel()
    shift_scale, gate = [0.0] * 2 * width, [1.0] * width
    for name, tensor in state.items():
        if "adaLN_modulation.1.weight" in name:
            assert not tensor.any(), name
        if "layers" in name and "adaLN_modulation.1.bias" in name:
            assert tensor.tolist() == (shift_scale + gate) * 2, name
    assert not state["model.vision_model.adaLN_modulation.1.bias"].any()
    assert not state["model.t_embedder.mlp.0.bias"].any() and not state["model.t_embedder.mlp.2.bias"].any()
    for name in ("model.t_embedder.mlp.0.weight", "model.t_embedder.mlp.2.weight"):
        assert state[name].std().item() == pytest.approx(0.02, rel=0.1)


def test_sinusoid_has_cosines_first() -> None:
    s = timestep_sinusoid(torch.tensor([0, 3, 951]))
    assert s.shape == (3, 256) and s.dtype == torch.float32
    assert s[0].tolist() == [1.0] * 128 + [0.0] * 128
    assert s[1, 0].item() == pytest.approx(-0.98999250)  # cos 3
    assert s[1, 128].item() == pytest.approx(0.14112001)  # sin 3
    assert s[2, 64].item() == pytest.approx(-0.99637, abs=1e-4)  # cos(951 / 100)
    assert s[2, 255].item() == pytest.approx(0.10202, abs=1e-4)  # sin(951 * 10000^(-127/128))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


erf = np.vectorize(math.erf)


class ByHand:
    """The vision tower in numpy and float64, written from the formulas, with the model's weights."""

    def __init__(self, model: StepAwarePreferenceModel, heads: int, act: str) -> None:
        self.w = {n.removeprefix("model."): p.double().numpy() for n, p in model.state_dict().items()}
        self.heads, self.act = heads, act

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return scaled * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def time(self, t: int) -> np.ndarray:
        angles = [t * 10000 ** (-i / 128) for i in range(128)]
        first = self.linear("t_embedder.mlp.0", np.array([*np.cos(angles), *np.sin(angles)]))
        return self.linear("t_embedder.mlp.2", first * sigmoid(first))

    def modulation(self, name: str, e: np.ndarray, chunks: int) -> list[np.ndarray]:
        return np.split(self.linear(f"{name}.adaLN_modulation.1", e * sigmoid(e)), chunks)

    def attention(self, name: str, x: np.ndarray) -> np.ndarray:
        q, k, v = (self.linear(f"{name}.self_attn.{p}_proj", x) for p in "qkv")
        size, heads = x.shape[1] // self.heads, []
        for n in range(self.heads):
            s = slice(n * size, (n + 1) * size)
            weights = np.exp(q[:, s] @ k[:, s].T / np.sqrt(size))
            heads.append(weights / weights.sum(1, keepdims=True) @ v[:, s])
        return self.linear(f"{name}.self_attn.out_proj", np.concatenate(heads, 1))

    def block(self, n: int, h: np.ndarray, e: np.ndarray) -> np.ndarray:
        name = f"vision_model.encoder.layers.{n}"
        b1, a1, g1, b2, a2, g2 = self.modulation(name, e, 6)
        h = h + g1 * self.attention(name, self.norm(f"{name}.layer_norm1", h) * (1 + a1) + b1)
        inner = self.linear(f"{name}.mlp.fc1", self.norm(f"{name}.layer_norm2", h) * (1 + a2) + b2)
        quick = self.act == "quick_gelu"
        inner = inner * (sigmoid(1.702 * inner) if quick else 0.5 * (1 + erf(inner / 2**0.5)))
        return h + g2 * self.linear(f"{name}.mlp.fc2", inner)

    def features(self, pixels: np.ndarray, t: int) -> np.ndarray:
        kernel = self.w["vision_model.embeddings.patch_embedding.weight"]
        patch, rows = kernel.shape[-1], pixels.shape[1] // kernel.shape[-1]
        tiles = pixels.reshape(3, rows, patch, rows, patch).transpose(1, 3, 0, 2, 4).reshape(rows * rows, -1)
        tokens = [self.w["vision_model.embeddings.class_embedding"][None], tiles @ kernel.reshape(len(kernel), -1).T]
        h = np.concatenate(tokens) + self.w["vision_model.embeddings.position_embedding.weight"]
        h, e, n = self.norm("vision_model.pre_layrnorm", h), self.time(t), 0
        while f"vision_model.encoder.layers.{n}.mlp.fc1.bias" in self.w:
            h, n = self.block(n, h, e), n + 1
        b, a = self.modulation("vision_model", e, 2)
        return (self.norm("vision_model.post_layernorm", h[0]) * (1 + a) + b) @ self.w["visual_projection.weight"].T


def by_hand(model: StepAwarePreferenceModel) -> ByHand:
    vision = model.model.config.vision_config
    return ByHand(model, vision.num_attention_heads, vision.hidden_act)


def test_one_block_by_hand(clip_dir: Path, conditioned: Make) -> None:
    model = conditioned(clip_dir)
    generator = torch.Generator().manual_seed(2)
    width = model.model.config.vision_config.hidden_size
    h, e = torch.randn(1, 9, width, generator=generator), torch.randn(1, width, generator=generator)
    with torch.no_grad():
        ours = vision_block(model.model.vision_model.encoder.layers[1], h, e)[0]
    expected = by_hand(model).block(1, h[0].double().numpy(), e[0].double().numpy())
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_image_features_by_hand(
    clip_dir: Path, conditioned: Make, pictures: torch.Tensor, timesteps: torch.Tensor
) -> None:
    """The model in float64 too: what is left is the sinusoid, which is float32 as published and exact at t = 0 only."""
    model = conditioned(clip_dir).double()
    pixels = clip_pixels(pictures, model.image_size).double()
    with torch.no_grad():
        ours = model.image_features(pixels, timesteps).numpy()
    for row, t in enumerate(timesteps.tolist()):
        expected = by_hand(model).features(pixels[row].numpy(), t)
        np.testing.assert_allclose(ours[row], expected, rtol=0, atol=1e-10 if t == 0 else 5e-4)


def test_time_matters_once_trained(small_clip: Path, conditioned: Make, pictures: torch.Tensor) -> None:
    model, ids = conditioned(small_clip), token_ids(small_clip)
    with torch.no_grad():
        clean, noisy = (model.score(pictures, ids, torch.full((5,), t)) for t in (0, 951))
    assert ((clean - noisy).abs() > 1e-3).all()


def test_gradients_reach_pictures_and_weights_and_can_be_recomputed(
    small_clip: Path, conditioned: Make, pictures: torch.Tensor, timesteps: torch.Tensor
) -> None:
    model, ids = conditioned(small_clip), token_ids(small_clip)
    found = []
    for model.gradient_checkpointing in (False, True):
        images = pictures.clone().requires_grad_()
        model.zero_grad()
        model(images, ids, timesteps).sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        found.append([images.grad, *(p.grad.clone() for p in model.parameters())])
    assert found[0][0].abs().sum() > 0
    torch.testing.assert_close(found[0], found[1])


def test_first_gradient_reaches_the_modulation(small_clip: Path, pictures: torch.Tensor) -> None:
    model = StepAwarePreferenceModel.from_pretrained(small_clip)
    model.score(pictures, token_ids(small_clip), torch.full((5,), 501)).sum().backward()
    for layer in model.model.vision_model.encoder.layers:
        assert layer.adaLN_modulation[1].weight.grad.abs().sum() > 0


def test_half_precision_gives_float32_scores(small_clip: Path, conditioned: Make, pictures: torch.Tensor) -> None:
    model, ids, t = conditioned(small_clip), token_ids(small_clip), torch.full((5,), 501)
    with torch.no_grad():
        full = model.score(pictures, ids, t)
        rounded = model.to(torch.bfloat16).score(pictures, ids, t)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, full, rtol=0, atol=0.5)


def test_learns_a_taste_that_turns_with_time(small_clip: Path) -> None:
    """Light pictures are preferred at small t, dark ones at large t: only a time-conditional model can tell."""
    model = StepAwarePreferenceModel.from_pretrained(small_clip).train()
    ids = token_ids(small_clip)[:1].expand(16, -1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(3)
    for _ in range(60):
        light, dark = (torch.randn(16, 3, 64, 64, generator=generator) * 0.3 + m for m in (0.4, -0.4))
        t = torch.randint(0, 300, (16,), generator=generator) + torch.tensor([0, 650]).repeat(8)
        wants_light = (t < 500).float()
        a, b = model.score(light, ids, t), model.score(dark, ids, t)
        loss = preference_loss(a, b, wants_light, 1 - wants_light, torch.ones(16))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    right, counted = count_correct(a, b, wants_light, 1 - wants_light)
    assert right == counted == 16, loss


PUBLISHED = {
    "ViT-B/32": (768, 12, 32, 512, 8, 512, "quick_gelu"),
    "ViT-L/14": (1024, 16, 14, 768, 12, 768, "quick_gelu"),
    "ViT-H/14": (1280, 16, 14, 1024, 16, 1024, "gelu"),
}
"""Vision tower's width, heads and patch, text tower's width and heads, shared width, activation; one layer each."""


@pytest.mark.parametrize("size", PUBLISHED)
def test_start_is_exact_at_the_published_widths(size: str) -> None:
    """PickScore is a ViT-H/14: its features bit for bit, at any timestep, before the first step of training."""
    width, heads, patch, text_width, text_heads, shared, act = PUBLISHED[size]
    torch.manual_seed(3)
    common = {"num_hidden_layers": 1, "hidden_act": act}
    vision = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": heads, "patch_size": patch}
    text = {
        "hidden_size": text_width, "intermediate_size": 4 * text_width, "num_attention_heads": text_heads,
        "vocab_size": 64, "eos_token_id": 63, "bos_token_id": 62, "pad_token_id": 63,
    }  # fmt: skip
    config = CLIPConfig(text_config={**common, **text}, vision_config={**common, **vision}, projection_dim=shared)
    plain = CLIPModel(config).eval()
    model = StepAwarePreferenceModel(copy.deepcopy(plain)).eval()
    pixels = torch.randn(3, 3, 224, 224)
    ids = torch.cat([torch.randint(0, 60, (3, 76)), torch.full((3, 1), 63)], dim=1)
    with torch.no_grad():
        image = plain.get_image_features(pixel_values=pixels)
        words = plain.get_text_features(input_ids=ids)
        theirs = [getattr(output, "pooler_output", output) for output in (image, words)]  # transformers 4: bare tensors
        assert torch.equal(model.image_features(pixels, torch.tensor([0, 501, 951])), theirs[0])
        assert torch.equal(model.text_features(ids), theirs[1])


def test_names_are_those_of_transformers_4_and_5() -> None:
    """Spelled out: what the released checkpoints were saved with, whatever this version of transformers is."""
    layer = [
        f"{part}.{kind}"
        for part in (
            "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "layer_norm1",
            "layer_norm2", "mlp.fc1", "mlp.fc2",
        )
        for kind in ("weight", "bias")
    ]  # fmt: skip
    towers = [f"{tower}_model.encoder.layers.0.{name}" for tower in ("text", "vision") for name in layer]
    norms = ("text_model.final_layer_norm", "vision_model.pre_layrnorm", "vision_model.post_layernorm")
    wanted = {
        *towers, *(f"{norm}.{kind}" for norm in norms for kind in ("weight", "bias")), "logit_scale",
        "visual_projection.weight", "text_projection.weight", "text_model.embeddings.token_embedding.weight",
        "text_model.embeddings.position_embedding.weight", "vision_model.embeddings.class_embedding",
        "vision_model.embeddings.patch_embedding.weight", "vision_model.embeddings.position_embedding.weight",
        *(f"vision_model{at}.adaLN_modulation.1.{k}" for at in ("", ".encoder.layers.0") for k in ("weight", "bias")),
        *(f"t_embedder.mlp.{number}.{kind}" for number in (0, 2) for kind in ("weight", "bias")),
    }  # fmt: skip
    small = {"num_hidden_layers": 1, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    clip = CLIPModel(CLIPConfig(text_config=small, vision_config={**small, "image_size": 8, "patch_size": 4}))
    assert set(StepAwarePreferenceModel(clip).state_dict()) == {f"model.{name}" for name in wanted}
