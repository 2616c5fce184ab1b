#!/usr/bin/env python3
"""Makes the golden files of tests/data/formats and the seeds of tests/corpus.

    make_fixtures.py [PATH/TO/formats_dump]

The goldens come from the real libraries: numpy, ml_dtypes, safetensors and
torch must be installed. With formats_dump (built with the tests) also the .pt
goldens, which weightfs itself lays out, are made anew; torch loads them first.
The result is deterministic; what it was made with stands in
tests/data/formats/MADE_WITH.
"""

import io
import json
import os
import struct
import subprocess
import sys
import tempfile

import ml_dtypes
import numpy as np
import safetensors
import safetensors.torch
import torch

HERE = os.path.dirname(os.path.abspath(__file__))
DATA = os.path.join(HERE, "data", "formats")
CORPUS = os.path.join(HERE, "corpus")

NUMPY = {"BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16",
         "U16": "uint16", "F16": "float16", "I32": "int32", "U32": "uint32",
         "F32": "float32", "C64": "complex64", "F64": "float64",
         "I64": "int64", "U64": "uint64", "BF16": ml_dtypes.bfloat16}
TORCH = {"BOOL": torch.bool, "F4": torch.float4_e2m1fn_x2, "U8": torch.uint8,
         "I8": torch.int8, "F8_E5M2": torch.float8_e5m2,
         "F8_E4M3": torch.float8_e4m3fn, "F8_E8M0": torch.float8_e8m0fnu,
         "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
         "F8_E5M2FNUZ": torch.float8_e5m2fnuz, "I16": torch.int16,
         "U16": torch.uint16, "F16": torch.float16, "BF16": torch.bfloat16,
         "I32": torch.int32, "U32": torch.uint32, "F32": torch.float32,
         "C64": torch.complex64, "F64": torch.float64, "I64": torch.int64,
         "U64": torch.uint64}
PT_GOLDENS = ["F32-box.pt", "BF16-scalar.pt", "F8_E4M3-line.pt",
              "I64-empty3.pt", "F4-line.pt"]


def write(path, data):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as f:
        f.write(data)


def tensor_of(dtype, shape, seed):
    """A torch tensor of pattern bytes; `shape` in torch's elements."""
    item = torch.empty((), dtype=TORCH[dtype]).element_size()
    count = int(np.prod(shape, dtype=np.int64)) * item
    data = (np.arange(count, dtype=np.int64) * 31 + seed) % 251
    if dtype == "BOOL":
        data &= 1
    if count == 0:
        return torch.empty(shape, dtype=TORCH[dtype])
    raw = torch.from_numpy(data.astype(np.uint8))
    return raw.view(TORCH[dtype]).reshape(shape)


# npy_headers.txt: DTYPE SHAPE HEADER-IN-HEX, as np.save writes them.
def npy_headers():
    shapes = [(), (0,), (1,), (9,), (10,), (768,), (50257, 768), (2, 0, 4),
              (1, 2, 3, 4, 5), (1,) * 32, (1,) * 64, (1234567,), (0, 2 ** 40)]
    lines = []
    for dtype, kind in NUMPY.items():
        for shape in shapes if dtype == "F32" else shapes[:7:2]:
            array = np.lib.stride_tricks.as_strided(
                np.zeros(1, kind), shape, (0,) * len(shape))
            header = io.BytesIO()
            np.lib.format.write_array_header_1_0(
                header, np.lib.format.header_data_from_array_1_0(array)
                | {"fortran_order": False})
            lines.append(f"{dtype} {','.join(map(str, shape)) or '-'} "
                         f"{header.getvalue().hex()}\n")
    write(os.path.join(DATA, "npy_headers.txt"), "".join(lines).encode())


# reference.safetensors and reference.txt: DTYPE SHAPE NAME-IN-HEX DATA-IN-HEX.
def reference_safetensors():
    tensors, lines = {}, []
    names = {"F32": "h.0.attn.weight", "U8": "", "I8": "a/../b/", "F16": "é😀",
             "BF16": "with \"quotes\" \\ and \n", "I64": "\0", "BOOL": "50%"}
    for i, dtype in enumerate(TORCH):
        shape = [(2, 3, 4), (), (0, 5), (7,)][i % 4]
        if dtype == "F4":
            shape = (3, 2)
        name = names.get(dtype, f"layer.{dtype}")
        tensors[name] = tensor_of(dtype, shape, i)
        logical = list(shape)
        if dtype == "F4":
            logical[-1] *= 2
        flat = tensors[name].reshape(-1)
        data = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
        lines.append(f"{dtype} {','.join(map(str, logical)) or '-'} "
                     f"{name.encode().hex() or '-'} {data.hex() or '-'}\n")
    blob = safetensors.torch.save(tensors, {"format": "pt", "": "empty key"})
    # Its order of metadata keys is random: sort them.
    (length,) = struct.unpack("<Q", blob[:8])
    header = json.loads(blob[8:8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    assert len(text) <= length
    write(os.path.join(DATA, "reference.safetensors"),
          blob[:8] + text.ljust(length) + blob[8 + length:])
    write(os.path.join(DATA, "reference.txt"), "".join(lines).encode())


# safetensors_single.txt: DTYPE SHAPE NAME-IN-HEX FILE-IN-HEX, one tensor each,
# as the reference writer makes them.
def single_safetensors():
    lines = []
    for i, (dtype, shape, name) in enumerate([
            ("F32", (2, 3), "w"), ("BF16", (), "scalar"), ("I64", (0,), "empty"),
            ("F8_E4M3", (5,), "a/b"), ("BOOL", (1, 1), "\"q\"\\\t\x01\x1f\x7fé"),
            ("C64", (2,), "c" * 40), ("U16", (3, 0, 2), "")]):
        tensor = tensor_of(dtype, shape, i)
        blob = safetensors.torch.save({name: tensor}, {"format": "pt"})
        lines.append(f"{dtype} {','.join(map(str, shape)) or '-'} "
                     f"{name.encode().hex() or '-'} {blob.hex()}\n")
    write(os.path.join(DATA, "safetensors_single.txt"), "".join(lines).encode())


def pt_goldens(dump):
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([dump, folder], check=True)
        for name in PT_GOLDENS:
            path = os.path.join(folder, name)
            torch.load(path, weights_only=True)
            with open(path, "rb") as f:
                write(os.path.join(DATA, name), f.read())


def safetensors_file(header, data=b""):
    if not isinstance(header, bytes):
        header = (header if isinstance(header, str)
                  else json.dumps(header, separators=(",", ":"))).encode()
    return struct.pack("<Q", len(header)) + header + data


def entry(dtype, shape, begin, end, **more):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end], **more}


def safetensors_corpus():
    u8 = entry("U8", [4], 0, 4)
    four = b"\1\2\3\4"
    bits = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
    every, at = {}, 0
    for dtype in list(TORCH) + ["F6_E2M3", "F6_E3M2"]:
        size = 8 * bits.get(dtype, 8 * torch.empty(
            (), dtype=TORCH.get(dtype, torch.uint8)).element_size()) // 8
        every[dtype] = entry(dtype, [2, 4], at, at + size)
        at += size
    seeds = {
        "every_dtype": safetensors_file(every, bytes(at)),
        "empty": safetensors_file("{}"),
        "padded": safetensors_file(json.dumps({"a": u8}) + "   ", four),
        "leading_space": safetensors_file(" \n" + json.dumps({"a": u8}), four),
        "metadata": safetensors_file(
            {"__metadata__": {"format": "pt", "k": "v"}, "a": u8}, four),
        "null_metadata": safetensors_file({"__metadata__": None, "a": u8}, four),
        "array_form": safetensors_file('{"a":["U8",[4],[0,4]]}', four),
        "extra_field": safetensors_file(
            {"a": entry("U8", [4], 0, 4, more=[{"x": [1.5, None, True]}])}, four),
        "scalar": safetensors_file({"a": entry("F32", [], 0, 4)}, four),
        "zero_size": safetensors_file(
            {"a": u8, "b": entry("F32", [0, 3], 0, 0),
             "c": entry("F32", [2, 0], 4, 4)}, four),
        "names": safetensors_file(
            {"": entry("U8", [1], 0, 1), "../x": entry("U8", [1], 1, 2),
             "\0": entry("U8", [1], 2, 3), "é/😀": entry("U8", [1], 3, 4)}, four),
        "bad_header_length": struct.pack("<Q", 0xFFFFFF000000003C) + b"{}",
        "bad_short": b"\1\0\0",
        "bad_duplicate": safetensors_file(
            '{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},'
            '"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}', four),
        "bad_overlap": safetensors_file(
            {"a": entry("U8", [3], 0, 3), "b": entry("U8", [2], 2, 4)}, four),
        "bad_hole": safetensors_file(
            {"a": entry("U8", [1], 0, 1), "b": entry("U8", [2], 2, 4)}, four),
        "bad_trailing": safetensors_file({"a": u8}, four + b"x"),
        "bad_overflow": safetensors_file(
            {"a": entry("F64", [2 ** 63, 2 ** 63], 0, 4)}, four),
        "bad_sub_byte": safetensors_file({"a": entry("F4", [3], 0, 2)}, four[:2]),
        "bad_nul_padding": safetensors_file(b"{}\0\0"),
        "bad_depth": safetensors_file("[" * 200),
        "bad_utf8": safetensors_file(b'{"\xff":1}'),
    }
    for name, data in seeds.items():
        write(os.path.join(CORPUS, "safetensors", name), data)


def shards_corpus():
    def index(weight_map, **more):
        return json.dumps({"metadata": {"total_size": 8},
                           "weight_map": weight_map, **more})
    two = {f"layer.{i}.weight": f"model-0000{1 + i % 2}-of-00002.safetensors"
           for i in range(6)}
    seeds = {
        "plain": "model-00001-of-00002.safetensors\n" + index(two),
        "variant": "model.fp16-00001-of-00002.safetensors\n" + index(two),
        "diffusers":
            "diffusion_pytorch_model-00001-of-00002.fp16.safetensors\n"
            + index({}),
        "folders": "x-00009-of-00010.bin\n" + index({"a": "sub/x.bin",
                                                     "b": "./x.bin"}),
        "nested": "a\n" + index(two, extra={"deep": [[{"weight_map": 1}]]}),
        "bad_escape": "../x-00001-of-00001.a\n" + index({"a": "../x"}),
        "bad_absolute": "\n" + index({"a": "/etc/passwd"}),
        "bad_repeat": "\n" + '{"weight_map":{"a":"x","a":"y"}}',
        "bad_list": "\n" + '{"weight_map":{"a":["x"]}}',
        "bad_missing": "x-00003-of-00002.bin\n" + '{"metadata":{}}',
    }
    for name, text in seeds.items():
        write(os.path.join(CORPUS, "shards", name), text.encode())


def main():
    npy_headers()
    reference_safetensors()
    single_safetensors()
    safetensors_corpus()
    shards_corpus()
    if len(sys.argv) > 1:
        pt_goldens(sys.argv[1])
    write(os.path.join(DATA, "MADE_WITH"), (
        f"numpy {np.__version__}, ml_dtypes {ml_dtypes.__version__}, "
        f"safetensors {safetensors.__version__}, "
        f"torch {torch.__version__.split('+')[0]}\n").encode())


main()
