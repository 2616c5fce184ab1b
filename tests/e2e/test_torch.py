# ctest: env=torch as=both labels=mount timeout=900
"""torch, safetensors and transformers load from a mount what they load from a
plain folder, bit for bit."""

import concurrent.futures
import ctypes
import os
import warnings

import pytest
import safetensors
import safetensors.torch
import torch
import transformers

import harness

# safetensors' dtypes as torch has them; torch packs two F4 in an element.
TORCH_TYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu, "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz, "I16": torch.int16,
    "U16": torch.uint16, "F16": torch.float16, "BF16": torch.bfloat16,
    "I32": torch.int32, "U32": torch.uint32, "F32": torch.float32,
    "C64": torch.complex64, "F64": torch.float64, "I64": torch.int64,
    "U64": torch.uint64, "F4": torch.float4_e2m1fn_x2,
}
TENSORS = harness.every_dtype(seed=2)


def content_of(tensor):
    """A tensor's bytes, whatever its dtype; NaNs and all."""
    assert tensor.is_contiguous()
    size = tensor.numel() * tensor.element_size()
    return ctypes.string_at(tensor.data_ptr(), size) if size else b""


def shape_in_torch(dtype, shape):
    """F4's last dimension counts pairs."""
    if dtype == "F4":
        return (*shape[:-1], shape[-1] // 2)
    return tuple(shape)


@pytest.fixture(name="mounted")
def _mounted(tmp_path, hub, mount):
    folder = tmp_path / "every"
    folder.mkdir()
    harness.write_safetensors(folder / "model.safetensors", TENSORS,
                              {"format": "pt"})
    hub.commit("org/every", folder)
    return mount("org/every", hub)


@pytest.mark.parametrize("mapped", [False, True])
def test_torch_load(mounted, mapped):
    loaded = set()
    for tensor in mounted.tensors():
        dtype, shape, content = TENSORS[tensor["name"]]
        path = mounted.file(tensor, "pt")
        if "pt" in tensor.get("not_in", ()):
            assert not path.exists()
            continue
        if not path.exists():
            # A single one that torch cannot hold: F4 in odd rows.
            assert dtype == "F4" and (not shape or shape[-1] % 2), path
            continue
        value = torch.load(path, weights_only=True, mmap=mapped)
        assert value.dtype == TORCH_TYPES[dtype], path
        assert tuple(value.shape) == shape_in_torch(dtype, shape), path
        assert content_of(value) == content, path
        loaded.add(dtype)
    assert loaded == set(TORCH_TYPES)


def test_safe_open(mounted):
    whole = mounted.path / "repo" / "model.safetensors"
    with safetensors.safe_open(whole, framework="pt") as file:
        assert set(file.keys()) == set(TENSORS)
        for tensor in mounted.tensors():
            dtype, shape, content = TENSORS[tensor["name"]]
            if dtype not in TORCH_TYPES:
                continue
            if dtype == "F4" and (not shape or shape[-1] % 2):
                continue
            value = file.get_tensor(tensor["name"])
            assert value.dtype == TORCH_TYPES[dtype]
            assert content_of(value) == content
            path = mounted.file(tensor, "safetensors")
            with safetensors.safe_open(path, framework="pt") as one:
                value = one.get_tensor(tensor["name"])
            assert content_of(value) == content, path
            assert tuple(value.shape) == shape_in_torch(dtype, shape)


def test_32_threads_of_torch(mounted):
    """Each tensor by torch.load with mmap, then its pages, all at once."""
    chosen = [t for t in mounted.tensors()
              if mounted.file(t, "pt").exists()] * 4

    def work(tensor):
        value = torch.load(mounted.file(tensor, "pt"), weights_only=True,
                           mmap=True)
        return content_of(value) == TENSORS[tensor["name"]][2]

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        assert all(pool.map(work, chosen))


# --- transformers ---

def tiny_model(folder, shard_size):
    torch.manual_seed(7)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=1000, n_positions=128, n_embd=96, n_layer=4, n_head=4,
        bos_token_id=0, eos_token_id=0))
    model.save_pretrained(folder, max_shard_size=shard_size)
    return model


def same_state(one, other):
    state, wanted = one.state_dict(), other.state_dict()
    assert list(state) == list(wanted)
    for name, tensor in wanted.items():
        assert state[name].dtype == tensor.dtype
        assert state[name].shape == tensor.shape
        assert content_of(state[name]) == content_of(tensor), name


@pytest.mark.parametrize("shards", [1, 3])
def test_from_pretrained(hub, mount, tmp_path, shards):
    folder = tmp_path / "model"
    original = tiny_model(folder, "10GB" if shards == 1 else "760KB")
    weights = sorted(p.name for p in folder.glob("*.safetensors"))
    assert len(weights) == shards, weights
    hub.commit("org/tiny", folder)
    mounted = mount("org/tiny", hub)

    def load(path):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return transformers.AutoModelForCausalLM.from_pretrained(
                path, local_files_only=True)

    plain = load(folder)
    shown = load(mounted.path / "repo")
    same_state(shown, plain)
    same_state(shown, original)
    tokens = torch.arange(64).reshape(1, 64)
    assert torch.equal(shown(tokens).logits, plain(tokens).logits)
    # The tensors' own files, too.
    state = plain.state_dict()
    for tensor in mounted.tensors():
        value = torch.load(mounted.file(tensor, "pt"), weights_only=True,
                           mmap=True)
        name = tensor["name"]
        wanted = state.get(name, state.get("transformer." + name))
        assert content_of(value) == content_of(wanted), name
    assert len(mounted.tensors()) > 40


def test_torch_sees_mmap_allowed(mounted):
    """transformers reads whole files from a mount whose source is "hf-mount"."""
    source = [line.split()[0] for line in open("/proc/self/mounts",
                                               encoding="utf-8")
              if line.split()[1] == str(mounted.path)]
    assert source == ["weightfs"]


def test_pt_of_4_gib_and_more(make_hub, mount):
    """zip64. Sizes and ends are checked; the data is a pattern."""
    size = 4 * 1024**3 + 4096
    hub = make_hub()
    hub.commit("org/huge", generate=f"tensors=1,tensor_bytes={size},dtype=U8,"
               "hashed=0,seed=5")
    mounted = mount("org/huge", hub)
    [tensor] = mounted.tensors()
    path = mounted.file(tensor, "pt")
    assert os.stat(path).st_size > size
    value = torch.load(path, weights_only=True, mmap=True)
    assert value.dtype == torch.uint8 and tuple(value.shape) == (size,)
    for offset in (0, 2**32 - 5000, size - 4096):
        part = bytes(value[offset:offset + 4096].tolist())
        assert part == harness.pattern(5, offset, 4096)
    # The touch of its first page asks for 64 MiB behind what the kernel reads
    # with it; the other two lie so near the end that the rest of the tensor is
    # a granule. The kernel reads ahead, as far as it may, around each place.
    kernel = mounted.status()["fuse"]["read_ahead_kb"] << 10
    assert hub.weight_bytes() < ((64 + 1) << 20) + 2 * kernel
