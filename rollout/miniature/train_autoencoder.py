"""Trains the miniature's autoencoder on fresh renders: 64x64x3 pixels <-> 16x16x8 latents (AutoencoderKL, f = 4).

    python -m rollout.miniature.train_autoencoder                 # 20 to 40 minutes on 2 cores; resumes
    python -m rollout.miniature.train_autoencoder --steps 20000   # longer

Most steps see 32x32 cuts around objects, the last fifth whole pictures. Loss: L1 and L2 weighted towards the objects +
L1 of 2x- and 4x-pooled pictures + L1 of pixel differences (edges, hatch) + a small KL term. A quarter of the pictures
are blends of two: predictions of x0 at high noise look like that, and must decode sensibly.
The result, with its scaling factor (1 / standard deviation of the latents), is work/miniature/vae.

B pictures, [B, 3, 64, 64] in [-1, 1]; latents [B, 8, 16, 16].
"""

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from rollout.miniature.pictures import contact_sheet
from rollout.miniature.training import (
    WORK,
    MovingAverage,
    learning_rate,
    load_state,
    low_precision,
    parameter_count,
    replace_folder,
    sample_batch,
    save_state,
)
from rollout.miniature.world import POSITIONS, Scene, render

SEED = 101
STEPS, BATCH, RATE = 6000, 16, 2.5e-3
WHOLE_FROM = 0.8  # share of the training after which whole pictures are used; cuts around objects hold more detail
KL_WEIGHT = 1e-3  # times the mean KL per latent number
CHANNELS = (16, 32, 64)
LATENT_CHANNELS = 8
START_LOG_VARIANCE = -6.0  # of the posterior: at the usual start, 0, its noise drowns the latents and training crawls


def build_autoencoder() -> AutoencoderKL:
    """The untrained network: about 0.65 M parameters, 0.5 GFLOP to decode a picture."""
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=CHANNELS,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=2,  # wide groups: a group's statistics are taken away, and flat colours live in them
        sample_size=64,
        mid_block_add_attention=False,
    )
    torch.nn.init.constant_(vae.quant_conv.bias[LATENT_CHANNELS:], START_LOG_VARIANCE)
    return vae


def crop_objects(pictures: Tensor, scenes: list[Scene], generator: torch.Generator) -> Tensor:
    """A 32x32 cut around one object of each picture, on the latents' grid of 4 pixels: [B, 3, 32, 32]."""
    centres = torch.tensor([POSITIONS[scene.items[-1].position][0] for scene in scenes])
    moves = torch.randint(-8, 9, centres.shape, generator=generator)
    corners = ((centres - 16 + moves).clamp(0, 32) // 4 * 4).tolist()
    return torch.stack([p[:, y : y + 32, x : x + 32] for p, (x, y) in zip(pictures, corners, strict=True)])


def training_pictures(step: int, batch_size: int, whole: bool) -> Tensor:
    """Renders of one step, a quarter of them blended with a neighbour: [B, 3, 64, 64], or four times as many cuts."""
    scenes, finishes, generator = sample_batch(SEED, step, batch_size if whole else 4 * batch_size)
    pictures = render(scenes, finishes, generator)
    if not whole:
        pictures = crop_objects(pictures, scenes, generator)
    blended = len(pictures) // 4
    share = torch.rand(blended, 1, 1, 1, generator=generator)
    pictures[:blended] = torch.lerp(pictures[:blended], pictures[blended : 2 * blended], share)
    return pictures


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """Scalar: absolute and squared errors.

    Pixels near objects count five times; pooled copies hold the colours, differences hold edges and hatch.
    """
    backdrop = target.flatten(2).median(dim=2).values[:, :, None, None]
    near_object = F.max_pool2d((target - backdrop).abs().amax(1, keepdim=True), 5, 1, 2) > 0.05
    weight = 1 + 4 * near_object.float()
    error = output - target
    loss = (weight * (error.abs() + 2 * error.square())).mean()
    for size in (2, 4):
        loss = loss + 0.5 * (F.avg_pool2d(weight, size) * F.avg_pool2d(error, size).abs()).mean()
    across, down = error.diff(dim=3), error.diff(dim=2)
    return loss + 0.5 * ((weight[..., 1:] * across.abs()).mean() + (weight[:, :, 1:] * down.abs()).mean())


@torch.no_grad()
def finish(vae: AutoencoderKL, folder: Path) -> None:
    """Measures the scaling factor on 2048 renders and writes the float16 weights in diffusers' layout."""
    latents = []
    for step in range(32):
        scenes, finishes, generator = sample_batch(SEED + 1, step, 64)
        latents.append(vae.encode(render(scenes, finishes, generator)).latent_dist.mean)
    stacked = torch.cat(latents)
    vae.register_to_config(scaling_factor=round(1 / stacked.std().item(), 5))
    print(f"latents: mean {stacked.mean((0, 2, 3)).tolist()} std {stacked.std((0, 2, 3)).tolist()}", flush=True)
    partial = folder.with_name(folder.name + ".partial")
    vae.half().save_pretrained(partial)
    vae.float()
    replace_folder(partial, folder)


def report(vae: AutoencoderKL, step: int, loss: float, started: float) -> None:
    """One log line, and renders above their reconstructions as a contact sheet."""
    scenes, finishes, generator = sample_batch(SEED + 2, 0, 32)
    pictures = render(scenes, finishes, generator)
    with torch.no_grad():
        rebuilt = vae.decode(vae.encode(pictures).latent_dist.mean).sample
    contact_sheet(torch.cat([pictures[:16], rebuilt[:16], pictures[16:], rebuilt[16:]]), WORK / "autoencoder.png")
    error = (rebuilt - pictures).abs().mean().item()
    print(f"step {step} loss {loss:.4f} L1 {error:.4f} {time.time() - started:.0f}s", flush=True)


def train(total_steps: int, batch_size: int, peak_rate: float) -> None:
    """Trains up to `total_steps`, from the saved state if there is one."""
    torch.manual_seed(SEED)
    WORK.mkdir(parents=True, exist_ok=True)
    vae = build_autoencoder().to(memory_format=torch.channels_last)  # a fifth faster
    average = MovingAverage(vae, 0.998)
    optimiser = torch.optim.AdamW(vae.parameters(), lr=peak_rate, betas=(0.9, 0.98), weight_decay=1e-4)
    state = WORK / "autoencoder.pt"
    first = load_state(state, model=vae, average=average, optimiser=optimiser)
    print(f"{parameter_count(vae)} parameters; from step {first} to {total_steps}", flush=True)
    started = time.time()
    for step in range(first, total_steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, peak_rate, 100, total_steps)
        pictures = training_pictures(step, batch_size, whole=step >= WHOLE_FROM * total_steps)
        with low_precision():
            posterior = vae.encode(pictures).latent_dist
            output = vae.decode(posterior.sample()).sample
        divergence = posterior.kl().float().mean() / posterior.mean[0].numel()
        loss = reconstruction_loss(output.float(), pictures) + KL_WEIGHT * divergence
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        average.update(vae)
        if (step + 1) % 200 == 0 or step + 1 == total_steps:
            save_state(state, step + 1, model=vae, average=average, optimiser=optimiser)
            report(average.module, step + 1, loss.item(), started)
    finish(average.module, WORK / "vae")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--rate", type=float, default=RATE)
    options = parser.parse_args()
    train(options.steps, options.batch, options.rate)


if __name__ == "__main__":
    main()
