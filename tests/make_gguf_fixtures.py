#!/usr/bin/env python3
"""Makes the golden blocks of tests/data/formats and the seeds of
tests/corpus/gguf.

    e2e/env/python gguf make_gguf_fixtures.py

The values of the goldens come from the gguf library. The result is
deterministic.
"""

import os
import struct

import gguf
import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
GOLDENS = os.path.join(HERE, "data", "formats", "gguf_blocks.txt")
CORPUS = os.path.join(HERE, "corpus", "gguf")

# In the order of DType.
DEQUANTISED = """Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ2_XXS
IQ2_XS IQ3_XXS IQ1_S IQ4_NL IQ3_S IQ2_S IQ4_XS IQ1_M TQ1_0 TQ2_0 MXFP4
NVFP4""".split()
# Number in the file → values and bytes of a block, by formats/gguf.md.
SIZES = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22),
         7: (32, 24), 8: (32, 34), 9: (32, 36), 10: (256, 84), 11: (256, 110),
         12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
         16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50),
         20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136),
         24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8),
         29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
         40: (64, 36), 41: (128, 18), 42: (64, 18)}


# gguf_blocks.txt: TYPE BLOCK-IN-HEX VALUES-IN-HEX, the values as F32.
def goldens():
    random = np.random.default_rng(11)
    lines = []
    for name in DEQUANTISED:
        kind = gguf.GGMLQuantizationType[name]
        _, size = gguf.GGML_QUANT_SIZES[kind]
        while True:
            block = random.integers(0, 256, size, np.uint8)
            with np.errstate(all="ignore"):
                values = gguf.quants.dequantize(block, kind)
            if np.isfinite(values).all():
                break
        assert values.dtype == np.float32
        lines.append(f"{name} {block.tobytes().hex()} "
                     f"{values.astype('<f4').tobytes().hex()}\n")
    with open(GOLDENS, "w", encoding="utf-8") as f:
        f.writelines(lines)


def text(value):
    value = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(value)) + value


def pair(key, kind, value):
    return text(key) + struct.pack("<I", kind) + value


def array(kind, items, count=None):
    count = len(items) if count is None else count
    return struct.pack("<IQ", kind, count) + b"".join(items)


def tensor(name, dims, kind, offset):
    return (text(name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
            + struct.pack("<IQ", kind, offset))


def build(pairs=(), tensors=(), data=b"", version=3, alignment=32, counts=None):
    n_tensors, n_pairs = counts or (len(tensors), len(pairs))
    head = (b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_pairs)
            + b"".join(pairs) + b"".join(tensors))
    if tensors:
        head += bytes(-len(head) % alignment)
    return head + data


def corpus():
    scalars = [(0, "<B", 200), (1, "<b", -1), (2, "<H", 9), (3, "<h", -9),
               (4, "<I", 7), (5, "<i", -7), (6, "<f", 1.5), (7, "<B", 1),
               (10, "<Q", 2 ** 64 - 1), (11, "<q", -1), (12, "<d", 0.1)]
    every_pair = [pair(f"k{kind}", kind, struct.pack(form, value))
                  for kind, form, value in scalars]
    every_pair += [pair("k8", 8, text("a string")),
                   pair("k9", 9, array(8, [text("x"), text("")])),
                   pair("k9n", 9, array(3, [b"\1\0"] * 20))]
    every_type, data = [], b""
    for kind, (elements, size) in SIZES.items():
        every_type.append(tensor(f"t{kind}", [elements, 2], kind, len(data)))
        block = bytes((7 * i + kind) % 251 for i in range(2 * size))
        data += block + bytes(-len(block) % 32)
    i8 = tensor("a", [4], 24, 0)
    half = struct.pack("<e", 0.5)
    seeds = {
        "empty": build(),
        "version2": build([], [i8], b"1234", version=2),
        "every_pair": build(every_pair),
        "every_type": build([], every_type, data),
        "q4_0": build([], [tensor("q", [64], 2, 0)], 2 * (half + bytes(16))),
        "scalar": build([], [tensor("s", [], 0, 0)], b"1234"),
        "zero_size": build([], [tensor("z", [0, 3], 0, 0), i8], b"1234"),
        "alignment": build(
            [pair("general.alignment", 4, struct.pack("<I", 64))],
            [i8, tensor("b", [4], 24, 64)], bytes(68), alignment=64),
        "backwards": build([], [tensor("b", [4], 24, 64), i8], bytes(68)),
        "split": build([pair("split.no", 2, b"\1\0"),
                        pair("split.count", 2, b"\2\0")], [i8], b"1234"),
        "names": build([], [tensor("../x", [1], 24, 0),
                            tensor(b"\xff\0", [1], 24, 32)], bytes(33)),
        "bad_magic": b"GGML" + bytes(20),
        "bad_version": build(version=1),
        "bad_endian": build(version=0x03000000),
        "bad_tensor_count": build(counts=(2 ** 64 - 1, 0)),
        "bad_pair_count": build(counts=(0, 2 ** 40)),
        "bad_key_twice": build([pair("k", 0, b"1"), pair("k", 0, b"1")]),
        "bad_nested": build([pair("k", 9, array(9, [array(0, [b"1"])]))]),
        "bad_string": build([pair("k", 8, struct.pack("<Q", 2 ** 63))]),
        "bad_array": build([pair("k", 9, array(10, [], 2 ** 61))]),
        "bad_alignment": build(
            [pair("general.alignment", 4, struct.pack("<I", 0))]),
        "bad_name_twice": build([], [i8, i8], b"1234"),
        "bad_rank": build([], [tensor("a", [1] * 5, 24, 0)], b"1"),
        "bad_overflow": build([], [tensor("a", [2 ** 40] * 2, 24, 0)], b"1"),
        "bad_block": build([], [tensor("a", [16, 2], 2, 0)], bytes(18)),
        "bad_type": build([], [tensor("a", [1], 4, 0)], b"1"),
        "bad_offset": build([], [tensor("a", [1], 24, 8)], bytes(64)),
        "bad_overlap": build([], [tensor("a", [33], 24, 0),
                                  tensor("b", [1], 24, 32)], bytes(64)),
        "bad_short": build([], [i8], b"123"),
    }
    os.makedirs(CORPUS, exist_ok=True)
    for name, seed in seeds.items():
        with open(os.path.join(CORPUS, name), "wb") as f:
            f.write(seed)


goldens()
corpus()
