"""Puts a preference model that `learner.train_spm` trained into this folder's spm/: CLIP's config, the miniature's
tokenizer, and the weights as float16.

    python -m rollout.miniature.ship_spm runs/miniature-spm/spm

The figures and the card are `rollout.miniature.measure`'s.
"""

import argparse
from pathlib import Path

from reward.step_aware import WEIGHTS, StepAwarePreferenceModel
from rollout.miniature.tokens import write_tokenizer
from rollout.miniature.training import SHIPPED, replace_folder


def ship(source: Path, target: Path) -> None:
    """`source` in the place of `target`. Raises FileNotFoundError and ValueError for weights that do not load."""
    model = StepAwarePreferenceModel.from_pretrained(source, source / WEIGHTS)
    partial = target.with_name(target.name + ".partial")
    write_tokenizer(partial)
    model.model.config.save_pretrained(partial)
    model.half().save_checkpoint(partial / WEIGHTS)
    replace_folder(partial, target)


def main() -> None:
    """Copies, says what is there now."""
    parser = argparse.ArgumentParser(prog="python -m rollout.miniature.ship_spm", description="Ship a trained model.")
    parser.add_argument("source", type=Path, help="what train_spm wrote")
    ship(parser.parse_args().source, SHIPPED / "spm")
    print("\n".join(str(path) for path in sorted((SHIPPED / "spm").iterdir())))


if __name__ == "__main__":
    main()
