"""Holds weightfs' GGUF reader against the gguf library.

    check_gguf.py PATH/TO/gguf_dump

Writes files with gguf.GGUFWriter (every type, many pairs, a split model), and
compares what gguf_dump reads in them: metadata, names, shapes, bytes, and for
random blocks of each quantised type the values, bit for bit with
gguf.quants.dequantize. Exits 77 (skipped) without gguf.
"""

import json
import os
import subprocess
import sys
import tempfile

try:
    import gguf
    import numpy as np
except ImportError:
    print("SKIP: gguf is not installed")
    sys.exit(77)

TYPES = gguf.GGMLQuantizationType
PLAIN = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I8": "i1", "I16": "<i2",
         "I32": "<i4", "I64": "<i8", "F64": "<f8"}
# The library has a wrong size for Q8_1 (40 bytes; ggml's header has 36), and
# its Q8_K, too, is of values in passing, which no file holds.
NOT_WRITTEN = {"Q8_1", "Q8_K"}
# Without a reference for the values.
RAW_ONLY = {"Q1_0"}
# So many random blocks name each point of each codebook.
ROWS, BLOCKS = 3, 350
checks = {}


def check(what, condition, detail):
    if not condition:
        print(f"FAIL {what}: {detail}")
        sys.exit(1)
    checks[what] = checks.get(what, 0) + 1


def dump(program, path):
    """The manifest and, by tensor, the files' contents."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([program, path, folder], check=True)
        with open(os.path.join(folder, "manifest.json"), encoding="utf-8") as f:
            manifest = json.load(f)
        for i, tensor in enumerate(manifest["tensors"]):
            for kind in ["raw"] + ["F32", "F16", "BF16"] * tensor["values"]:
                with open(os.path.join(folder, f"{i}.{kind}"), "rb") as f:
                    tensor[kind] = f.read()
    return manifest


def f32_bits(values):
    """The bits, with every NaN the same."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).copy()
    bits[np.isnan(values)] = 0x7FC00000
    return bits


def to_bf16(values):
    """bfloat16 bits, to nearest, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    bits = bits.astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return rounded.astype(np.uint16)


def check_values(tensor, kind, data):
    with np.errstate(all="ignore"):
        want = gguf.quants.dequantize(data, kind)
        half = want.astype(np.float16)
    name = kind.name
    check("shape of the values", list(want.shape) == tensor["shape"], name)
    got = np.frombuffer(tensor["F32"], "<f4").reshape(want.shape)
    equal = f32_bits(got) == f32_bits(want)
    check("dequantised to F32, bit for bit", equal.all(),
          f"{name}: {np.argwhere(~equal)[:3]}")
    finite = ~np.isnan(want)
    got = np.frombuffer(tensor["F16"], "<f2").reshape(want.shape)
    check("dequantised to F16", (
        got.view(np.uint16) == half.view(np.uint16))[finite].all(), name)
    check("NaNs stay NaNs", np.isnan(got[~finite]).all(), name)
    got = np.frombuffer(tensor["BF16"], "<u2").reshape(want.shape)
    check("dequantised to BF16", (got == to_bf16(want))[finite].all(), name)
    return finite.mean()


def write_types(path, data):
    writer = gguf.GGUFWriter(path, "llama")
    for name, (kind, array) in data.items():
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def check_types(program, folder):
    random = np.random.default_rng(7)
    data = {}
    for kind in TYPES:
        if kind.name in NOT_WRITTEN:
            continue
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        if kind.name in PLAIN:
            raw = random.integers(0, 256, (ROWS, 5 * size), np.uint8)
            array = raw.view(PLAIN[kind.name])
        else:
            array = random.integers(0, 256, (ROWS, BLOCKS * size), np.uint8)
        data[f"blk.0.{kind.name}.weight"] = (kind, array)
    path = os.path.join(folder, "types.gguf")
    write_types(path, data)
    manifest = dump(program, path)
    check("all types", len(manifest["tensors"]) == len(data), len(data))
    reader = gguf.GGUFReader(path)
    for tensor, theirs, (name, (kind, array)) in zip(
            manifest["tensors"], reader.tensors, data.items()):
        check("name", tensor["name"] == name == theirs.name, name)
        check("type", tensor["dtype"] == kind.name, name)
        shape = [int(dim) for dim in reversed(theirs.shape)]
        check("shape", tensor["shape"] == shape, (name, shape))
        check("bytes", tensor["raw"] == array.tobytes(), name)
        quantised = kind.name not in PLAIN and kind.name not in RAW_ONLY
        check("which have values", tensor["values"] == quantised, name)
        if quantised:
            # One random half in 32 is NaN or infinite.
            check("most values are finite",
                  check_values(tensor, kind, array) > 0.8, name)


def check_metadata(program, folder):
    path = os.path.join(folder, "metadata.gguf")
    writer = gguf.GGUFWriter(path, "llama")
    pairs = {"u8": 200, "i8": -5, "u16": 65535, "i16": -300, "u32": 2 ** 32 - 1,
             "i32": -(2 ** 31), "u64": 2 ** 64 - 1, "i64": -(2 ** 63)}
    for name, value in pairs.items():
        long = {"u": "uint", "i": "int"}[name[0]] + name[1:]
        getattr(writer, f"add_{long}")(f"test.{name}", value)
    floats = {"f32": 0.1, "f64": 1 / 3}
    writer.add_float32("test.f32", floats["f32"])
    writer.add_float64("test.f64", floats["f64"])
    writer.add_bool("test.bool", True)
    text = "a \"b\"\n\tÄ 😀"
    writer.add_string("test.string", text)
    writer.add_array("test.array", [1, -2, 3])
    writer.add_array("test.strings", ["a", text])
    writer.add_array("tokenizer.ggml.tokens", [f"t{i}" for i in range(50000)])
    writer.add_array("tokenizer.ggml.scores", [0.5] * 50000)
    writer.add_custom_alignment(128)
    for i in range(3):
        writer.add_tensor(f"t{i}", np.arange(7 + i, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    manifest = dump(program, path)
    shown = manifest["metadata"]
    check("string", shown["general.architecture"] == "llama", shown)
    for name, value in pairs.items():
        check("integer", json.loads(shown[f"test.{name}"]) == value, name)
    check("f32", np.float32(json.loads(shown["test.f32"])) == np.float32(0.1),
          shown["test.f32"])
    check("f64", json.loads(shown["test.f64"]) == floats["f64"], shown)
    check("bool", shown["test.bool"] == "true", shown["test.bool"])
    check("string", shown["test.string"] == text, shown["test.string"])
    check("array", json.loads(shown["test.array"]) == [1, -2, 3], shown)
    check("array", json.loads(shown["test.strings"]) == ["a", text], shown)
    check("long array", shown["tokenizer.ggml.tokens"] == "[50000 strings]",
          shown["tokenizer.ggml.tokens"])
    check("long array", shown["tokenizer.ggml.scores"] == "[50000 f32]",
          shown["tokenizer.ggml.scores"])
    check("alignment", shown["general.alignment"] == "128", shown)
    for i, tensor in enumerate(manifest["tensors"]):
        check("bytes at another alignment", tensor["raw"] ==
              np.arange(7 + i, dtype=np.float32).tobytes(), i)


def check_split(program, folder):
    path = os.path.join(folder, "split.gguf")
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=2)
    arrays = {f"t{i}": np.full((2, 3), i, np.float16) for i in range(5)}
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    seen = {}
    for number in range(3):
        manifest = dump(program, os.path.join(
            folder, f"split-{number + 1:05}-of-00003.gguf"))
        shown = manifest["metadata"]
        check("split", (shown["split.no"], shown["split.count"],
                        shown["split.tensors.count"]) ==
              (str(number), "3", "5"), shown)
        seen.update((tensor["name"], tensor["raw"])
                    for tensor in manifest["tensors"])
    check("tensors of a split model", seen == {
        name: array.tobytes() for name, array in arrays.items()}, seen.keys())


def main():
    program = sys.argv[1]
    with tempfile.TemporaryDirectory() as folder:
        check_types(program, folder)
        check_metadata(program, folder)
        check_split(program, folder)
    for what, count in sorted(checks.items()):
        print(f"{count:5}  {what}")


main()
