"""The embedded default: a small, real latent diffusion model, the world it learned and the judge that reads it."""
