#!/usr/bin/env python3
"""Makes tests/data/sample: a tiny model of GPT-2's architecture, untrained.

    make_sample.py [FOLDER]

The weights are a function of SEED alone (integers from Python's Mersenne
Twister, scaled by powers of two), so every machine makes the same bytes; a test
compares them with the committed ones. Standard library only.
"""

import json
import math
import os
import random
import struct
import sys

SEED = 20240917
LAYERS, WIDTH, HEADS, VOCABULARY, POSITIONS = 2, 32, 4, 256, 64

CONFIG = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 255,
    "embd_pdrop": 0.1,
    "eos_token_id": 255,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_embd": WIDTH,
    "n_head": HEADS,
    "n_layer": LAYERS,
    "n_positions": POSITIONS,
    "resid_pdrop": 0.1,
    "torch_dtype": "float32",
    "vocab_size": VOCABULARY,
}

CARD = """---
license: cc0-1.0
library_name: transformers
---
# weightfs sample

A GPT-2 of two layers with random weights. It says nothing sensible; it is here to
be mounted, and was made by make_sample.py.
"""


def tensors():
    """(name, shape) in file order."""
    yield "wte.weight", (VOCABULARY, WIDTH)
    yield "wpe.weight", (POSITIONS, WIDTH)
    for layer in range(LAYERS):
        for part, rows, columns in (("attn.c_attn", WIDTH, 3 * WIDTH),
                                    ("attn.c_proj", WIDTH, WIDTH),
                                    ("mlp.c_fc", WIDTH, 4 * WIDTH),
                                    ("mlp.c_proj", 4 * WIDTH, WIDTH)):
            yield f"h.{layer}.{part}.weight", (rows, columns)
            yield f"h.{layer}.{part}.bias", (columns,)
        for part in ("ln_1", "ln_2"):
            yield f"h.{layer}.{part}.weight", (WIDTH,)
            yield f"h.{layer}.{part}.bias", (WIDTH,)
    yield "ln_f.weight", (WIDTH,)
    yield "ln_f.bias", (WIDTH,)


def values(name, shape, generator):
    """Little-endian float32s: about what GPT-2 starts its training with."""
    centre = 1.0 if ".ln_" in f".{name}" and name.endswith("weight") else 0.0
    count = math.prod(shape)
    return struct.pack(f"<{count}f", *(
        centre + (generator.getrandbits(16) - 32768) / 2**20
        for _ in range(count)))


def safetensors():
    generator = random.Random(SEED)
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, shape in tensors():
        begin = len(data)
        data += values(name, shape, generator)
        header[name] = {"dtype": "F32", "shape": list(shape),
                        "data_offsets": [begin, len(data)]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def main(folder):
    os.makedirs(folder, exist_ok=True)
    for name, content in (
            ("config.json", json.dumps(CONFIG, indent=2).encode() + b"\n"),
            ("model.safetensors", safetensors()),
            ("README.md", CARD.encode())):
        with open(os.path.join(folder, name), "wb") as file:
            file.write(content)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else os.path.join(
        os.path.dirname(os.path.abspath(__file__)), "sample"))
