"""The miniature's tokenizer: CLIP's byte-level BPE with merges for the grammar's words only.

Every word of a caption is one token; any other text still tokenises, letter by letter. Files as CLIPTokenizer reads.
"""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

from transformers import CLIPTokenizer

from rollout.miniature.world import BACKGROUNDS, COLOURS, POSITIONS, SHAPES, SIZES

MAX_TOKENS = 32
START, END = "<|startoftext|>", "<|endoftext|>"


def grammar_words() -> list[str]:
    """Every word that a caption can hold, sorted."""
    phrases = [*SIZES, *COLOURS, *SHAPES, *BACKGROUNDS, *(words for _, words in POSITIONS.values()), "a and background"]
    return sorted({word for phrase in phrases for word in phrase.split()})


def byte_symbols() -> list[str]:
    """GPT-2's stand-ins for the 256 bytes, in CLIP's order: printable bytes first, the others from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(b) for b in printable] + [chr(256 + n) for n in range(256 - len(printable))]


def learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, most frequent pair first, until every word is one symbol ending in </w>."""
    split = {word: [*word[:-1], word[-1] + "</w>"] for word in words}
    merges = []
    while any(len(symbols) > 1 for symbols in split.values()):
        pairs = Counter(pair for symbols in split.values() for pair in pairwise(symbols))
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        for symbols in split.values():
            position = 0
            while position < len(symbols) - 1:
                if (symbols[position], symbols[position + 1]) == best:
                    symbols[position : position + 2] = ["".join(best)]
                position += 1
    return merges


def write_tokenizer(folder: Path) -> CLIPTokenizer:
    """Writes vocab.json, merges.txt and tokenizer_config.json, and returns the tokenizer that they give."""
    folder.mkdir(parents=True, exist_ok=True)
    symbols, merges = byte_symbols(), learn_merges(grammar_words())
    tokens = [*symbols, *(s + "</w>" for s in symbols), *("".join(m) for m in merges), START, END]
    (folder / "vocab.json").write_text(json.dumps({token: n for n, token in enumerate(tokens)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": MAX_TOKENS, "do_lower_case": True, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return CLIPTokenizer.from_pretrained(folder)
