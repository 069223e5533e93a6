"""One guided evaluation at every family's published size, on the meta device: shapes alone, no weights, no GPU."""

import inspect

import pytest
import torch

from rollout.conditioning import Conditioning
from rollout.families import FAMILIES
from tests.benchmarks.published import NETWORKS

CONDITIONING = {
    "sd": {"prompt_embeds": (77, 768), "negative_prompt_embeds": (77, 768)},
    "sdxl": {
        "prompt_embeds": (77, 2048), "negative_prompt_embeds": (77, 2048), "pooled": (1280,),
        "negative_pooled": (1280,),
    },
    "pixart": {
        "prompt_embeds": (300, 4096), "negative_prompt_embeds": (300, 4096), "mask": (300,), "negative_mask": (300,),
    },
    "sd3": {
        "prompt_embeds": (333, 4096), "negative_prompt_embeds": (333, 4096), "pooled": (2048,),
        "negative_pooled": (2048,),
    },
    "flux": {"prompt_embeds": (512, 4096), "pooled": (768,)},
}  # fmt: skip
LATENT = {
    "sd": (4, 64, 64),
    "sdxl": (4, 128, 128),
    "pixart": (4, 128, 128),
    "sd3": (16, 128, 128),
    "flux": (16, 128, 128),
}


@pytest.mark.parametrize("family", NETWORKS)
def test_shapes_at_the_published_size(family):
    kind = FAMILIES[family]
    network_class, settings = NETWORKS[family]
    with torch.device("meta"):
        network = network_class(**settings)
    pipeline_class = kind.pipeline_classes()[0]
    names = [name for name in inspect.signature(pipeline_class.__init__).parameters if name != "self"]
    parts = {**dict.fromkeys(names[:12]), kind.network_part: network}
    flags = {name: False for name in names if name in ("requires_safety_checker", "add_watermarker")}
    optional = {name: True for name in names if name in ("force_zeros_for_empty_prompt", "is_unet_version")}
    pipeline = pipeline_class(**{**{n: v for n, v in parts.items() if n in names}, **flags, **optional})
    policy = kind(pipeline, vae_scale_factor=8)
    assert policy.latent_shape(None) == LATENT[family]
    x = torch.empty((2, *LATENT[family]), device="meta")
    tensors = {name: torch.empty((2, *shape), device="meta") for name, shape in CONDITIONING[family].items()}
    t = torch.empty(2, device="meta")
    output = policy.forward(network, x, t, Conditioning(tensors), 5.0)
    assert output.shape == x.shape and output.dtype == torch.float32
