"""What gradients through the decoder need: every allocation followed, on tensors without data, at real sizes.

    python -m tests.benchmarks.pixel_memory

Builds the decoder of Stable Diffusion 1.x, SDXL and PixArt on fake tensors (shapes, no numbers, no computation), runs
the pixel term forwards and backwards, and prints the most bytes that were alive. Weights and what convolution kernels
need for themselves are not in it.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch._subclasses.fake_tensor import FakeTensorMode

from learner.objectives.pixel import squared_error
from rollout.decoder import PixelDecoder
from tests.benchmarks.live_bytes import LiveBytes


def peak_bytes(side: int, pictures: int, *, checkpointed: bool = True) -> int:
    """Peak of the pixel term for so many pictures of side x side; without checkpointing, all are decoded at once."""
    with FakeTensorMode():
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=512,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        )  # fmt: skip
        vae.encoder = None
        decoder = PixelDecoder(vae)
        latents = torch.randn(pictures, 4, side // 8, side // 8, requires_grad=True)
        target = torch.randn(pictures, 3, side, side)
        with LiveBytes() as live:
            if checkpointed:
                decoded = decoder.decode(latents)
            else:
                vae.decoder.gradient_checkpointing = False
                decoded = vae.decode(latents, return_dict=False)[0]
            squared_error(target, decoded, "mean").sum().backward()
    return live.peak


def main() -> None:
    print("| picture | pictures in a micro-batch | checkpointed | plain |\n|---|---:|---:|---:|")
    for side in (512, 768, 1024):
        for pictures in (1, 2, 8):
            found = (peak_bytes(side, pictures, checkpointed=kept) / 1e9 for kept in (True, False))
            print(f"| {side} x {side} | {pictures} | " + " | ".join(f"{value:.1f} GB" for value in found) + " |")


if __name__ == "__main__":
    main()
