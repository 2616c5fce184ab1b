# ctest: env=client as=both labels=mount timeout=600
"""GGUF files open as tensors: raw blocks as they are, plain types in every
format, metadata in index.json, few requests whatever the tokenizer takes."""

import os
import struct

import numpy

import harness

F32, F16, Q4_0 = 0, 1, 2
BLOCK = {F32: (1, 4), F16: (1, 2), Q4_0: (32, 18)}
U32, STRING, ARRAY = 4, 8, 9


def text(value):
    content = value.encode()
    return struct.pack("<Q", len(content)) + content


def value_of(value):
    if isinstance(value, int):
        return struct.pack("<II", U32, value)
    if isinstance(value, str):
        return struct.pack("<I", STRING) + text(value)
    return (struct.pack("<IIQ", ARRAY, STRING, len(value)) +
            b"".join(map(text, value)))


def write(path, pairs, tensors):
    """tensors: {name: (type, row-major shape, bytes)}."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs))
    for key, value in pairs.items():
        head += text(key) + value_of(value)
    data = b""
    for name, (kind, shape, content) in tensors.items():
        head += text(name) + struct.pack("<I", len(shape))
        head += struct.pack(f"<{len(shape)}Q", *reversed(shape))
        head += struct.pack("<IQ", kind, len(data))
        data += content + bytes(-len(content) % 32)
    path.write_bytes(head + bytes(-len(head) % 32) + data)


def some(kind, *shape, seed=1):
    count = numpy.prod(shape, dtype=int)
    values, size = BLOCK[kind]
    content = numpy.random.default_rng(seed).bytes(count // values * size)
    return kind, shape, content


def check(mounted, wanted):
    tensors = {tensor["name"]: tensor for tensor in mounted.tensors()}
    assert set(tensors) == set(wanted)
    for name, (kind, shape, content) in wanted.items():
        tensor = tensors[name]
        assert tuple(tensor["shape"]) == shape
        assert tensor["dtype"] == {F32: "F32", F16: "F16", Q4_0: "Q4_0"}[kind]
        assert mounted.file(tensor, "raw").read_bytes() == content
        if kind == Q4_0:
            assert set(tensor["not_in"]) == {"npy", "pt", "safetensors"}
            assert not mounted.file(tensor, "npy").exists()
            continue
        array = numpy.load(mounted.file(tensor, "npy"))
        assert array.shape == shape
        assert array.tobytes() == content


def test_a_quantised_model(tmp_path, hub, mount):
    folder = tmp_path / "model"
    folder.mkdir()
    wanted = {"token_embd.weight": some(Q4_0, 8, 64),
              "blk.0.attn_norm.weight": some(F32, 64, seed=2),
              "output.weight": some(F16, 4, 64, seed=3)}
    write(folder / "model-Q4_0.gguf",
          {"general.architecture": "llama", "llama.block_count": 1}, wanted)
    hub.commit("org/model", folder)
    mounted = mount("org/model", hub)
    check(mounted, wanted)
    (found,) = mounted.index()["sets"]
    assert found["metadata"]["general.architecture"] == "llama"
    assert found["metadata"]["llama.block_count"] == "1"
    attribute = os.getxattr(
        mounted.file(mounted.tensors()[-1], "raw"), "user.weightfs.dtype")
    assert attribute == b"Q4_0"


def test_shards(tmp_path, hub, mount):
    folder = tmp_path / "model"
    folder.mkdir()
    first = {"a": some(Q4_0, 4, 32)}
    second = {"b": some(F32, 3, 3, seed=2)}
    for number, tensors in enumerate((first, second)):
        write(folder / f"big-0000{number + 1}-of-00002.gguf",
              {"split.no": number, "split.count": 2,
               "split.tensors.count": 2}, tensors)
    hub.commit("org/model", folder)
    mounted = mount("org/model", hub)
    check(mounted, {**first, **second})
    (found,) = mounted.index()["sets"]
    assert found["path"] == "big.gguf"
    assert found["problems"] == []


def test_a_large_vocabulary_costs_few_requests(tmp_path, hub, mount):
    folder = tmp_path / "model"
    folder.mkdir()
    vocabulary = [f"token {i} " + "x" * 10 for i in range(150_000)]
    wanted = {"w": some(F32, 1024, 1024)}
    write(folder / "model.gguf", {"tokenizer.ggml.tokens": vocabulary}, wanted)
    size = (folder / "model.gguf").stat().st_size - 4 * 1024 * 1024
    assert size > 4 << 20
    hub.commit("org/model", folder)
    mounted = mount("org/model", hub)
    assert [tensor["name"] for tensor in mounted.tensors()] == ["w"]
    assert len(hub.log(listener="cdn")) <= 6
    check(mounted, wanted)


def test_a_broken_file_hides_no_other(tmp_path, hub, mount):
    folder = tmp_path / "model"
    (folder / "good").mkdir(parents=True)
    (folder / "broken").mkdir()
    wanted = {"w": some(F32, 4, 4)}
    write(folder / "good" / "model.gguf", {}, wanted)
    content = (folder / "good" / "model.gguf").read_bytes()
    (folder / "broken" / "model.gguf").write_bytes(content[:-8])
    hub.commit("org/model", folder)
    mounted = mount("org/model", hub)
    sets = {found["path"]: found for found in mounted.index()["sets"]}
    assert "w" in sets["broken/model.gguf"]["error"]
    path = mounted.path / "tensors" / "npy" / "good" / "w.npy"
    assert numpy.load(path).tobytes() == wanted["w"][2]
    assert (mounted.path / "repo/broken/model.gguf").read_bytes() == (
        content[:-8])
