"""Every published scorer at full size with random weights: images per second, peak memory, distance from a CPU's.

    python -m tests.benchmarks.scorers                  # on a GPU; needs 4 GB of disk, one checkpoint at a time
    python -m tests.benchmarks.scorers --tiny           # that it runs, on a CPU

Each scorer is loaded from a checkpoint in its real layout, so that reading and checking the names is exercised too.
Preparing pictures (8 bits, Pillow) is part of what is timed, and shown on its own line: it runs on the CPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import torch

from configs.scorers import (
    AestheticScorer,
    ClipScoreScorer,
    HpsScorer,
    ImageRewardScorer,
    PickScoreScorer,
    StepAwareScorer,
)
from reward import Scorer, build_scorer
from reward.preprocess import published_pixels
from tests.benchmarks.sized import write_vit_h_clip
from tests.benchmarks.throughput import peak_gib, synchronize
from tests.reward import published
from tests.tiny_clip import write_clip

PUBLISHED_BLIP = published.BlipSize(
    image=224, patch=16, vision=1024, vision_depth=24, text=768, text_depth=12, inner=3072, vocabulary=30524,
    positions=512, head=(1024, 128, 64, 16),
)  # fmt: skip
PROMPT = "a small red circle on the left on a white background"


def checkpoints(folder: Path, *, tiny: bool) -> list[Callable[[], dict[str, Any]]]:
    """What writes one checkpoint into `folder`, and gives a configuration section of each scorer that reads it."""

    def open_clip_files(name: str, **more: Any) -> tuple[str, str]:
        size = published.ARCHITECTURE if tiny else open_clip.get_model_config(name)
        architecture, checkpoint = published.write_open_clip(folder, architecture=size, **more)
        return architecture, str(checkpoint)

    def clip() -> dict[str, Any]:
        path = str(write_clip(folder, "small") if tiny else write_vit_h_clip(folder))
        sections = {"step_aware": StepAwareScorer, "pickscore": PickScoreScorer, "clip_score": ClipScoreScorer}
        return {kind: section(clip=path) for kind, section in sections.items()}

    def hps() -> dict[str, Any]:
        architecture, checkpoint = open_clip_files("ViT-H-14", nested=True)
        return {"hps": HpsScorer(version="2.1", checkpoint=checkpoint, architecture=architecture)}

    def imagereward() -> dict[str, Any]:
        size = published.BlipSize() if tiny else PUBLISHED_BLIP
        checkpoint, tokenizer = published.write_imagereward(folder, size)
        return {"imagereward": ImageRewardScorer(checkpoint=str(checkpoint), tokenizer=str(tokenizer))}

    def aesthetic() -> dict[str, Any]:
        architecture, checkpoint = open_clip_files("ViT-L-14", nested=False, quick_gelu=True)
        head = published.head_state(24) if tiny else published.head_state(768, (1024, 128, 64, 16))
        torch.save(head, folder / "head.pth")
        files = {"checkpoint": checkpoint, "head": str(folder / "head.pth"), "architecture": architecture}
        return {"aesthetic": AestheticScorer(**files)}

    return [clip, hps, imagereward, aesthetic]


def measure(scorer: Scorer, device: torch.device, *, batch: int, side: int, rounds: int) -> dict[str, float | None]:
    """Images per second of `score` over `rounds` batches, after one to warm up, which also reads the prompts; memory at
    its peak; how far the first two pictures' scores are from the CPU's, over their size where that is above 1."""
    images = torch.rand(batch, 3, side, side, device=device) * 2 - 1
    clean = torch.zeros(batch, dtype=torch.int64, device=device)
    prompts = [f"{PROMPT} {n}" for n in range(batch)]
    scorer.score(images, prompts, clean)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    synchronize(device)
    start = time.perf_counter()
    for _ in range(rounds):
        scores = scorer.score(images, prompts, clean)
    synchronize(device)
    seconds, peak = time.perf_counter() - start, peak_gib(device)
    assert scores.shape == (batch,) and bool(torch.isfinite(scores).all())
    first = scores[:2].cpu()
    on_cpu = scorer.to("cpu").score(images[:2].cpu(), prompts[:2], clean[:2].cpu())
    off = float(((first - on_cpu).abs() / on_cpu.abs().clamp(min=1)).max())
    return {"images_per_sec": rounds * batch / seconds, "peak_gib": peak, "off_cpu": off}


def run(device: torch.device, *, tiny: bool, batch: int, side: int, rounds: int) -> dict[str, Any]:
    """All scorers one after another, each alone on the device, one checkpoint on the disk at a time."""
    found: dict[str, Any] = {}
    for number in range(4):
        with tempfile.TemporaryDirectory() as name:
            for kind, section in checkpoints(Path(name), tiny=tiny)[number]().items():
                scorer = build_scorer(section, device)
                found[kind] = {"name": scorer.name, **measure(scorer, device, batch=batch, side=side, rounds=rounds)}
                del scorer
                gc.collect()  # else what is left of it counts in the next one's peak
                if device.type == "cuda":
                    torch.cuda.empty_cache()
    images = torch.rand(batch, 3, side, side) * 2 - 1
    start = time.perf_counter()
    for _ in range(rounds):
        published_pixels(images, 224)
    found["preparing"] = {"images_per_sec": rounds * batch / (time.perf_counter() - start)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="small models of the same layouts")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--side", type=int, default=512, help="pixels of a picture's side")
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args()
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    found = run(device, tiny=options.tiny, batch=options.batch, side=options.side, rounds=options.rounds)
    print(json.dumps({"device": name, "torch": torch.__version__, "side": options.side, **found}, indent=2))


if __name__ == "__main__":
    main()
