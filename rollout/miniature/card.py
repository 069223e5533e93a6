"""The weights' card: README.md of this folder, written from the measured figures."""

from pathlib import Path
from typing import Any

TEMPLATE = """# The miniature

A small, real latent diffusion model in diffusers' own layout, and the preference model for the taste `crisp`: what
Atelier trains and measures when nothing has been downloaded. `python -m rollout.miniature.measure` writes this page;
the figures are in `figures.json` too.

- `pipeline/`: `StableDiffusionPipeline.from_pretrained("rollout/miniature/pipeline")`, with nothing of ours imported.
  64x64 pixels, 16x16 latents of 8 channels, float16 weights. {unet:.2f} M parameters in the U-Net, {text:.2f} M in the
  text encoder, {vae:.2f} M in the autoencoder.
- `spm/`: CLIP's config and tokenizer, and `step_aware.safetensors` ({spm:.2f} M parameters), a complete checkpoint.
- `prompts_train.txt`, `prompts_heldout.txt`: captions of the world, apart by a stable hash.
- The world: one or two shapes (circle, square, triangle, diamond, cross, ring) in eight colours and three sizes, at
  five positions on six backgrounds. Captions name all of that. They never name the *finish*: crisp, soft or hatched.

Everything together: {bytes:,} bytes.

## Rebuild

Two hours and more on two cores; without AVX-512 bfloat16 is emulated, and the commands compute in float32. Every
command goes on where it was stopped (state in `work/miniature`).

```
python -m rollout.miniature.world
python -m rollout.miniature.train_autoencoder   # {train_autoencoder}
python -m rollout.miniature.train_denoiser      # {train_denoiser}
python -m rollout.miniature.train_clip          # {train_clip}
python -m rollout.miniature.dataset --kind preferences --count 24576 --out work/miniature/preferences/train
python -m rollout.miniature.dataset --kind preferences --split heldout --count 1024 --seed 1 \\
    --out work/miniature/preferences/heldout
python -m learner.train_spm --config miniature_spm   # {train_spm}
python -m rollout.miniature.measure --spm runs/miniature-spm/spm   # its figures, as below
python -m rollout.miniature.ship_spm runs/miniature-spm/spm        # into spm/, as float16
python -m rollout.miniature.measure
```

Made with {versions}. All data is rendered; no picture or caption from elsewhere.

{provenance}

## Figures

Share of pictures the judge reads right, of {fresh} fresh ones:

| | {attributes} |
|---|{rules}|
| renders | {renders} |
| reconstructions | {reconstructions} |

Base model on {captions} held-out captions, guidance 5, 20 DDIM steps, eta 1: shape, colour and background all right in
**{core:.1%}** (shape {shape:.1%}, colour {colour:.1%}, background {background:.1%}, position {position:.1%}, size
{size:.1%}). Finishes: crisp {crisp:.1%}, soft {soft:.1%}, hatched {hatched:.1%}.

Preference model, share of held-out pairs in which the preferred picture scores higher, by timestep of the prediction:

| pairs | {steps} |
|---|{step_rules}|
| crisp against soft or hatched, same caption | {finish_pairs} |
| as captioned against one word wrong, same finish | {caption_pairs} |

Its score must follow the finish, not the tint. Mean change of the score:

| | {score_steps} |
|---|{score_rules}|
| crisp instead of soft or hatched | {score_finish} |
| a tint of deviation 0.02 (pictures in [-1, 1]), either way | {score_tint} |

## Limits

It knows this world only. The preference model was trained on the base model's own predictions of rendered pairs: its
scores mean nothing for pictures of other things.
"""


def write_card(figures: dict[str, Any], path: Path) -> None:
    """Fills the template with the figures of `rollout.miniature.measure` and, from provenance.txt beside the card, how
    these very weights came about."""
    judge, heldout, preference, score = (figures[name] for name in ("judge", "heldout", "preference", "score"))
    parameters = {name: count / 1e6 for name, count in figures["sizes"]["parameters"].items()}
    training = {
        command: ", ".join(f"{name} {value:,}" for name, value in settings.items())
        for command, settings in figures["training"].items()
    }
    attributes = list(judge["renders"])
    timesteps = list(preference["finish"])
    text = TEMPLATE.format(
        unet=parameters["unet"],
        text=parameters["text_encoder"],
        vae=parameters["vae"],
        spm=parameters["spm"],
        bytes=figures["sizes"]["bytes"]["all files"],
        versions=", ".join(f"{name} {number}" for name, number in figures["versions"].items()),
        fresh=figures["judge_pictures"],
        attributes=" | ".join(name.replace("_", " ") for name in attributes),
        rules="---|" * (len(attributes) - 1) + "---",
        renders=_row(judge["renders"]),
        reconstructions=_row(judge["reconstructions"]),
        steps=" | ".join(f"t = {t}" for t in timesteps),
        step_rules="---|" * (len(timesteps) - 1) + "---",
        finish_pairs=_row(preference["finish"]),
        caption_pairs=_row(preference["caption"]),
        score_steps=" | ".join(f"t = {t}" for t in score["tint"]),
        score_rules="---|" * (len(score["tint"]) - 1) + "---",
        score_finish=" | ".join(f"{change:+.2f}" for change in score["finish"].values()),
        score_tint=" | ".join(f"{change:.2f}" for change in score["tint"].values()),
        provenance=(path.parent / "provenance.txt").read_text().strip(),
        **training,
        **heldout,
    )
    path.write_text(text)


def _row(shares: dict[str, float]) -> str:
    return " | ".join(f"{share:.1%}" for share in shares.values())
