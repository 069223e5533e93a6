"""Model families: how each encodes a prompt, calls its network and spaces its steps. Nothing else differs.

FAMILIES[model.family].load(path, dtype, network_only=False, model=model)
"""

from rollout.families.base import Family, PipelineFamily
from rollout.families.flow import FluxFamily, StableDiffusion3Family
from rollout.families.pixart import PixArtFamily
from rollout.families.stable_diffusion import StableDiffusionFamily, StableDiffusionXLFamily

FAMILIES: dict[str, type[PipelineFamily]] = {
    "sd": StableDiffusionFamily,
    "sdxl": StableDiffusionXLFamily,
    "pixart": PixArtFamily,
    "sd3": StableDiffusion3Family,
    "flux": FluxFamily,
}

__all__ = ["FAMILIES", "Family", "PipelineFamily", "StableDiffusionFamily", "StableDiffusionXLFamily"]
