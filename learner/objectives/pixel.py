"""The pixel term: the same loss on errors of decoded pictures (pixel paper, eqs. 2, 3, 6, 7; eq. 8 for `x0`).

With A the latent errors, P those of pictures decoded by the frozen D, and f any objective on a picture's errors:

    L = latent_weight f(A) + weight f(P)
    present:  P = ||D(sqrt(a) z + sqrt(1-a) eps) - D(sqrt(a) z + sqrt(1-a) eps_theta)||^2
    x0:       P = ||D(z) - D(x0_theta)||^2,   x0_theta = (z_t - sqrt(1-a) eps_theta) / sqrt(a)

f = identity is SFT with lambda, f = SimPO is eqs. 6 and 7 with mu, f = DPO takes the reference's P as well.

On a step-wise pair there is no true noise: what the step's Gaussian is asked about is x_prev. Its log density is
carried to pixels by decoding both x_prev and the mean, with the Gaussian's own width; the ratio loss stays as it is:

    log p(x_prev) = -mean (x_prev - mu)^2 / (2 sigma^2) + const    in the latent
    log P(x_prev) = -mean (D(x_prev) - D(mu))^2 / (2 sigma^2)      in pixels (constants cancel in the ratio)

`x0` decodes what each of the two implies as the clean latent: with k = sqrt(1 - a' - sigma^2) / sqrt(1 - a), a step
lands at x_prev = (sqrt(a') - k sqrt(a)) x0 + k x_t, which is solved for x0; sigma is divided by the same factor.

Shapes: M rows, C H W latent, h w pixels.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Reduction = Literal["sum", "mean"]


def squared_error(target: Tensor, prediction: Tensor, reduction: Reduction) -> Tensor:
    """Squared error of each row [M] of [M, ...]: the squared norm (`sum`) or its mean over elements."""
    squares = ((target - prediction) ** 2).flatten(1)
    return squares.sum(1) if reduction == "sum" else squares.mean(1)


def latents_to_decode(
    z: Tensor, noise: Tensor, predicted: Tensor, alpha: Tensor, decode: Literal["present", "x0"]
) -> tuple[Tensor, Tensor]:
    """What to decode as target and as prediction, both [M, C, H, W].

    z, noise, predicted (noise): [M, C, H, W]; alpha: alphas_cumprod [M, 1, 1, 1].
    """
    signal, spread = alpha.sqrt(), (1 - alpha).sqrt()
    if decode == "present":
        return signal * z + spread * noise, signal * z + spread * predicted
    return z, z + spread / signal * (noise - predicted)


def implied_x0(x_prev: Tensor, x_t: Tensor, alpha: Tensor, alpha_prev: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The clean latent [M, C, H, W] whose DDIM step from x_t lands at x_prev, and x_prev's change per x0 [M, 1, 1, 1].

    alpha, alpha_prev: alphas_cumprod of the step's two ends, sigma its standard deviation, each [M, 1, 1, 1].
    """
    kept = torch.sqrt(1 - alpha_prev - sigma**2) / torch.sqrt(1 - alpha)
    factor = alpha_prev.sqrt() - kept * alpha.sqrt()
    return (x_prev - kept * x_t) / factor, factor


def pixel_log_density(target: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
    """log P [M] up to a constant, for decoded target and mean [M, 3, h, w] and sigma [M]."""
    return -squared_error(target, mean, "mean") / (2 * sigma**2)


def combine(latent: Tensor, pixel: Tensor, *, weight: float, latent_weight: float) -> Tensor:
    """Total loss of each row [M] (eqs. 3 and 7)."""
    return latent_weight * latent + weight * pixel
