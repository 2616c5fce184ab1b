"""Loads what formats_dump wrote with the real libraries, bit for bit.

    check_clients.py PATH/TO/formats_dump

Needs numpy; checks safetensors, ml_dtypes and torch too where they are
installed. Exits 77 (skipped) without numpy.
"""

import json
import os
import struct
import subprocess
import sys
import tempfile
import zipfile

try:
    import numpy as np
except ImportError:
    print("SKIP: numpy is not installed")
    sys.exit(77)
try:
    import torch
except ImportError:
    torch = None
try:
    import safetensors
except ImportError:
    safetensors = None

BITS = {"BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8,
        "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
        "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
        "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64,
        "U64": 64, "C128": 128, "C32": 32}
NUMPY = {"BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16",
         "U16": "uint16", "F16": "float16", "I32": "int32", "U32": "uint32",
         "F32": "float32", "C64": "complex64", "F64": "float64",
         "I64": "int64", "U64": "uint64", "BF16": "V2", "F8_E5M2": "V1",
         "F8_E4M3": "V1", "F8_E8M0": "V1", "F8_E4M3FNUZ": "V1",
         "F8_E5M2FNUZ": "V1", "C128": "complex128", "C32": "V4"}
TORCH = {"BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16",
         "U16": "uint16", "F16": "float16", "BF16": "bfloat16",
         "I32": "int32", "U32": "uint32", "F32": "float32",
         "C64": "complex64", "F64": "float64", "I64": "int64",
         "U64": "uint64", "F8_E5M2": "float8_e5m2",
         "F8_E4M3": "float8_e4m3fn", "F8_E8M0": "float8_e8m0fnu",
         "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
         "F4": "float4_e2m1fn_x2", "C128": "complex128",
         "C32": "complex32"}
checks = {}


def check(what, condition, detail):
    if not condition:
        print(f"FAIL {what}: {detail}")
        sys.exit(1)
    checks[what] = checks.get(what, 0) + 1


def expected(entry):
    """The dense bytes of the tensor."""
    i = np.arange(entry["size"], dtype=np.int64)
    data = ((i * 37 + 11) % 251).astype(np.uint8)
    if entry["dtype"] == "BOOL":
        data &= 1
    if entry["transposed"]:
        item = BITS[entry["dtype"]] // 8
        shape = entry["shape"]
        axes = list(range(len(shape)))[::-1] + [len(shape)]
        data = data.reshape(shape[::-1] + [item]).transpose(axes)
    return data.tobytes()


def check_npy(path, entry, want):
    for mode in (None, "r"):
        if mode and not want:
            continue  # mmap of nothing: numpy itself refuses
        array = np.load(path, mmap_mode=mode)
        check(f"np.load mmap_mode={mode}", array.tobytes() == want, path)
        check("np.load shape", list(array.shape) == entry["shape"], path)
        check("np.load dtype", array.dtype == np.dtype(NUMPY[entry["dtype"]]),
              f"{path}: {array.dtype}")
    with open(path, "rb") as f:
        ours = f.read()
    with tempfile.TemporaryFile() as f:
        try:
            import ml_dtypes
        except ImportError:
            ml_dtypes = None
        dtype = entry["dtype"]
        if dtype.startswith("F8") or (dtype == "BF16" and not ml_dtypes):
            return  # np.save writes '<V1' or '<f1' here, which no one can load
        kind = ml_dtypes.bfloat16 if dtype == "BF16" else NUMPY[dtype]
        np.save(f, np.frombuffer(want, kind).reshape(entry["shape"]))
        f.seek(0)
        check("np.save writes the same bytes", f.read() == ours, path)


def torch_bytes(tensor):
    if tensor.numel() == 0:
        return b""
    flat = tensor.contiguous().reshape(-1) if tensor.dim() else tensor.reshape(1)
    return flat.view(torch.uint8).numpy().tobytes()


def check_pt(path, entry, want):
    shape = list(entry["shape"])
    if entry["dtype"] == "F4":
        shape[-1] //= 2
    for mmap in (False, True):
        for weights_only in (True, False):
            tensor = torch.load(path, weights_only=weights_only, mmap=mmap)
            what = f"torch.load mmap={mmap} weights_only={weights_only}"
            check(what, torch_bytes(tensor) == want, path)
            check("torch.load dtype",
                  tensor.dtype == getattr(torch, TORCH[entry["dtype"]]), path)
            check("torch.load shape", list(tensor.shape) == shape, path)
            check("torch.load strides", tensor.is_contiguous(), path)
    meta = torch.load(path, weights_only=True, map_location="meta")
    check("torch.load meta", list(meta.shape) == shape, path)
    with zipfile.ZipFile(path) as archive:
        check("zip: only the data's CRC is not known",
              archive.testzip() == (None if not want else "archive/data/0"),
              path)
        for info in archive.infolist():
            with open(path, "rb") as f:
                f.seek(info.header_offset + 26)
                name, extra = struct.unpack("<HH", f.read(4))
            start = info.header_offset + 30 + name + extra
            check("zip: records are aligned", start % 64 == 0, path)


def check_safetensors(path, entry, want):
    with open(path, "rb") as f:
        blob = f.read()
    (name, tensor), = safetensors.deserialize(blob)
    check("safetensors.deserialize", bytes(tensor["data"]) == want, path)
    check("safetensors name", name == 'a/b "é" %', repr(name))
    check("safetensors shape", tensor["shape"] == entry["shape"], path)
    check("safetensors dtype", tensor["dtype"] == entry["dtype"], path)
    check("safetensors: data is aligned", (len(blob) - len(want)) % 8 == 0, path)
    if torch is None or entry["dtype"].startswith("F6"):
        return
    from safetensors.torch import save
    with safetensors.safe_open(path, "pt") as f:
        loaded = f.get_tensor(name)
        check("safe_open metadata", f.metadata() == {"format": "pt"}, path)
    check("safe_open torch", torch_bytes(loaded) == want, path)
    check("safe_open dtype",
          loaded.dtype == getattr(torch, TORCH[entry["dtype"]]), path)
    check("safetensors.torch.save writes the same bytes",
          save({name: loaded}, metadata={"format": "pt"}) == blob, path)


def check_huge(dump, folder):
    path = os.path.join(folder, "huge.pt")
    subprocess.run([dump, "--huge", path], check=True)
    size = (4 << 30) + 5
    tensor = torch.load(path, weights_only=True, mmap=True)
    check("huge .pt", tensor.shape == (size,), tensor.shape)
    check("huge .pt", bytes(tensor[:6].numpy()) == b"first\0", "first bytes")
    check("huge .pt", bytes(tensor[-6:].numpy()) == b"\0last!", "last bytes")
    with zipfile.ZipFile(path) as archive:
        check("huge .pt in zipfile", [i.file_size for i in archive.infolist()][2]
              == size and archive.read("archive/version") == b"3\n", path)
    os.unlink(path)


def main():
    dump = sys.argv[1]
    readers = {"npy": check_npy}
    if torch:
        readers["pt"] = check_pt
    if safetensors:
        readers["safetensors"] = check_safetensors
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([dump, folder], check=True)
        with open(os.path.join(folder, "manifest.json")) as f:
            manifest = json.load(f)
        for entry in manifest:
            path = os.path.join(folder, entry["file"])
            if entry["unsupported"]:
                check("left out", not os.path.exists(path), path)
                continue
            want = expected(entry)
            if entry["format"] == "raw":
                with open(path, "rb") as f:
                    check("raw", f.read() == want, path)
            elif entry["format"] in readers:
                readers[entry["format"]](path, entry, want)
        if torch:
            check_huge(dump, folder)
    for what, count in sorted(checks.items()):
        print(f"{count:5}  {what}")
    print("numpy", np.__version__, "torch", torch and torch.__version__,
          "safetensors", safetensors and safetensors.__version__)


main()
