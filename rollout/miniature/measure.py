"""Measures what ships in this folder, and writes figures.json and the weights' card, README.md.

    python -m rollout.miniature.measure
    python -m rollout.miniature.measure --spm runs/miniature-spm/spm     # another preference model's figures, printed

Judge on fresh renders and on the autoencoder's reconstructions of them; base model on the 256 bundled held-out captions
(guidance 5, 20 DDIM steps, eta 1); preference model on held-out pairs, and what a tint does to its score; parameters
and file sizes. A few minutes.
"""

import argparse
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from torch import Tensor

from configs.load import load_as
from configs.spm import SpmConfig
from reward.step_aware import WEIGHTS, StepAwarePreferenceModel
from rollout.miniature import train_autoencoder, train_clip, train_denoiser
from rollout.miniature.card import write_card
from rollout.miniature.judge import Judge, Verdict, compare, judge_captions, summarise
from rollout.miniature.preference_figures import preference_figures
from rollout.miniature.training import SHIPPED, parameter_count, sample_batch
from rollout.miniature.world import Scene, render

SEED = 404
FRESH = 1024  # renders for the judge
PACKAGES = ("torch", "diffusers", "transformers", "tokenizers", "safetensors", "numpy")


def reading_accuracy(images: Tensor, scenes: list[Scene], finishes: list[str], judge: Judge) -> dict[str, float]:
    """Share of pictures [B, 3, 64, 64] in which the judge reads each attribute, the finish, and everything right."""
    verdicts: list[Verdict] = [compare(seen, scene) for seen, scene in zip(judge.read(images), scenes, strict=True)]
    shares = {k: v for k, v in summarise(verdicts).items() if k not in ("crisp", "soft", "hatched")}
    right = [verdict["finish"] == finish for verdict, finish in zip(verdicts, finishes, strict=True)]
    whole = [bool(verdict["all"]) and finish for verdict, finish in zip(verdicts, right, strict=True)]
    return shares | {"finish": sum(right) / len(right), "all_and_finish": sum(whole) / len(whole)}


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Pictures [B, 3, 64, 64] through the autoencoder and back."""
    return torch.cat([vae.decode(vae.encode(part).latent_dist.mean).sample for part in pictures.split(64)])


def judge_figures(vae: AutoencoderKL, judge: Judge) -> dict[str, dict[str, float]]:
    """How often the judge is right on fresh renders and on their reconstructions."""
    scenes, finishes, generator = sample_batch(SEED, 0, FRESH)
    pictures = render(scenes, finishes, generator)
    return {
        "renders": reading_accuracy(pictures, scenes, finishes, judge),
        "reconstructions": reading_accuracy(reconstruct(vae, pictures), scenes, finishes, judge),
    }


def heldout_figures(pipeline: StableDiffusionPipeline, judge: Judge) -> dict[str, float]:
    """The base model on the bundled held-out captions: attributes right, and shares of the finishes."""
    texts = (SHIPPED / "prompts_heldout.txt").read_text().splitlines()
    pictures = train_denoiser.sample(pipeline, texts, seed=SEED)
    return {"captions": len(texts), "seed": SEED} | summarise(judge_captions(pictures, texts, judge))


def sizes(pipeline: StableDiffusionPipeline, model: StepAwarePreferenceModel) -> dict[str, dict[str, int]]:
    """Parameters of each network, and bytes of each shipped weight file and of everything together."""
    networks = {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder, "vae": pipeline.vae, "spm": model}
    files = sorted(path for folder in ("pipeline", "spm") for path in (SHIPPED / folder).rglob("*") if path.is_file())
    weights = {str(p.relative_to(SHIPPED)): p.stat().st_size for p in files if p.suffix == ".safetensors"}
    return {
        "parameters": {name: parameter_count(network) for name, network in networks.items()},
        "bytes": weights | {"all files": sum(path.stat().st_size for path in files)},
    }


def training_settings() -> dict[str, dict[str, float]]:
    """Steps, batch, rate and seed of each training command, as its defaults say."""
    autoencoder, denoiser = train_autoencoder, train_denoiser
    spm = load_as(SpmConfig, "miniature_spm", [])
    training = spm.training
    return {
        "train_autoencoder": {
            "steps": autoencoder.STEPS,
            "batch": autoencoder.BATCH,
            "rate": autoencoder.RATE,
            "seed": autoencoder.SEED,
        },
        "train_denoiser": {
            "steps": denoiser.STEPS,
            "batch": denoiser.BATCH,
            "rate": denoiser.RATE,
            "pictures": denoiser.CACHE,
            "seed": denoiser.SEED,
        },
        "train_clip": {
            "steps": train_clip.STEPS,
            "pairs_per_step": train_clip.PAIRS_PER_STEP,
            "rate": train_clip.RATE,
            "seed": train_clip.SEED,
        },
        "train_spm": {
            "steps": training.max_steps,
            "pairs_per_step": training.ranks * training.micro_batch_pairs * training.accumulation,
            "rate": training.optimizer.lr,
            "seed": spm.run.seed,
        },
    }


def rounded(value: Any) -> Any:
    """Floats to four places, through dictionaries; keys become strings, as JSON wants them."""
    if isinstance(value, dict):
        return {str(key): rounded(inner) for key, inner in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def load(pipeline: Path, spm: Path) -> tuple[StableDiffusionPipeline, StepAwarePreferenceModel]:
    """The base model in float32 and a preference model's folder. Raises ValueError for weights that do not fit."""
    base = StableDiffusionPipeline.from_pretrained(pipeline, torch_dtype=torch.float32)
    base.set_progress_bar_config(disable=True)
    return base, StepAwarePreferenceModel.from_pretrained(spm, spm / WEIGHTS)


def measure(folder: Path) -> dict[str, Any]:
    """All figures of the weights in `folder`."""
    pipeline, model = load(folder / "pipeline", folder / "spm")
    judge = Judge()
    return rounded(
        {
            "judge_pictures": FRESH,
            "judge": judge_figures(pipeline.vae, judge),
            "heldout": heldout_figures(pipeline, judge),
            **preference_figures(pipeline, model),
            "sizes": sizes(pipeline, model),
            "training": training_settings(),
            "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        }
    )


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(prog="python -m rollout.miniature.measure", description="Measure what ships here.")
    parser.add_argument("--spm", type=Path, help="folder of another preference model: print its figures, write nothing")
    spm = parser.parse_args().spm
    if spm is not None:
        print(json.dumps(rounded(preference_figures(*load(SHIPPED / "pipeline", spm))), indent=2))
        return
    figures = measure(SHIPPED)
    text = json.dumps(figures, indent=2)
    (SHIPPED / "figures.json").write_text(text + "\n")
    write_card(figures, SHIPPED / "README.md")
    print(text)


if __name__ == "__main__":
    main()
