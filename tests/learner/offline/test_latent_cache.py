"""Cached latents: the right one or none, whatever happens to the files."""

from __future__ import annotations

import threading

import pytest
import torch
from diffusers import AutoencoderKL

from learner.datasets.latent_cache import LatentCache, autoencoder_sha256

SHAPE = (4, 8, 8)
KEY = "0123456789abcdef" * 4


def latent(seed=0):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def test_what_is_put_comes_back_bit_for_bit(tmp_path):
    cache = LatentCache(tmp_path, KEY, 64, SHAPE)
    assert cache.get(b"picture") is None
    cache.put(b"picture", latent())
    assert torch.equal(cache.get(b"picture"), latent())
    assert (cache.hits, cache.misses, cache.corrupt) == (1, 1, 0)
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".safetensors"], "no file left beside it"


@pytest.mark.parametrize(
    "other",
    [("f" + KEY[1:], 64, SHAPE), (KEY[:16] + "f" * 48, 64, SHAPE), (KEY, 128, SHAPE), (KEY, 64, (4, 16, 16))],
    ids=["autoencoder", "same first 16 digits", "size", "shape"],
)
def test_another_autoencoder_or_size_finds_nothing(tmp_path, other):
    LatentCache(tmp_path, KEY, 64, SHAPE).put(b"picture", latent())
    assert LatentCache(tmp_path, *other).get(b"picture") is None


def flip(data):
    return data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]


@pytest.mark.parametrize("spoil", [lambda data: b"", lambda data: data[:-7], lambda data: data[:20], flip])
def test_a_damaged_entry_is_made_anew_and_counted(tmp_path, spoil):
    cache = LatentCache(tmp_path, KEY, 64, SHAPE)
    cache.put(b"picture", latent())
    path = cache.path(b"picture")
    path.write_bytes(spoil(path.read_bytes()))
    assert cache.get(b"picture") is None and cache.corrupt == 1
    cache.put(b"picture", latent())
    assert torch.equal(cache.get(b"picture"), latent())


def test_writers_of_the_same_entry_do_not_disturb_readers(tmp_path):
    caches = [LatentCache(tmp_path, KEY, 64, SHAPE) for _ in range(4)]
    wrong = []

    def work(cache):
        for _ in range(30):
            cache.put(b"picture", latent())
            found = cache.get(b"picture")
            if found is None or not torch.equal(found, latent()):
                wrong.append(found)

    threads = [threading.Thread(target=work, args=(cache,)) for cache in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and all(cache.corrupt == 0 for cache in caches)


def test_the_hash_covers_weights_dtype_and_settings():
    def vae(**more):
        torch.manual_seed(0)
        return AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, sample_size=16, **more)

    base = autoencoder_sha256(vae())
    assert base == autoencoder_sha256(vae())
    assert base != autoencoder_sha256(vae().to(torch.bfloat16))
    assert base != autoencoder_sha256(vae(scaling_factor=0.5))
    changed = vae()
    with torch.no_grad():
        next(changed.parameters()).flatten()[0] += 1
    assert base != autoencoder_sha256(changed)
