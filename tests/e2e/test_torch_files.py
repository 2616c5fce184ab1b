# ctest: env=torch as=both labels=mount timeout=900
"""PyTorch's own files open as tensors: what torch.load gives of the file, the
mount shows tensor by tensor, bit for bit, and nothing in a pickle runs."""

import io
import os
import pathlib
import zipfile

import numpy
import pytest
import torch

import harness
from test_torch import content_of

LIMIT = 3  # requests for an index, however many tensors there are


def state(seed=1):
    """A state dict with what real ones have: ties, slices, scalars, nothing."""
    torch.manual_seed(seed)
    shared = torch.randn(64, 32)
    return {
        "embed.weight": shared,
        "lm_head.weight": shared,
        "rows": shared[8:24],
        "columns": shared[:, 3:7],
        "transposed": shared.t(),
        "half": torch.randn(7, 5).half(),
        "brain": torch.randn(7, 5).bfloat16(),
        "double": torch.randn(3).double(),
        "complex": torch.randn(3, dtype=torch.complex64),
        "fp8": torch.randn(16).to(torch.float8_e4m3fn),
        "ids": torch.arange(10),
        "bytes": torch.arange(10, dtype=torch.uint8),
        "flags": torch.tensor([True, False, True]),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "parameter": torch.nn.Parameter(torch.randn(4, 4)),
        "expanded": torch.randn(1, 5).expand(3, 5),
        "channels_last": torch.randn(2, 3, 4, 5).to(
            memory_format=torch.channels_last),
        "double_complex": torch.randn(3, dtype=torch.complex128),
        "unsigned": torch.arange(5).to(torch.uint16),
    }


def flat(value, name=""):
    """{name: tensor} of nested dicts and lists, as index.json names them."""
    if isinstance(value, torch.Tensor):
        return {name: value.detach()}
    items = []
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    found = {}
    for key, inner in items:
        found.update(flat(inner, f"{name}.{key}" if name else str(key)))
    return found


def check(mounted, wanted):
    tensors = {tensor["name"]: tensor for tensor in mounted.tensors()}
    assert set(tensors) == set(wanted)
    for name, value in wanted.items():
        assert tuple(tensors[name]["shape"]) == tuple(value.shape), name
        content = content_of(value.contiguous())
        assert mounted.file(tensors[name], "raw").read_bytes() == content, name
        loaded = torch.load(mounted.file(tensors[name], "pt"),
                            weights_only=True)
        assert loaded.dtype == value.dtype, name
        assert content_of(loaded.contiguous()) == content, name
        if "npy" not in tensors[name].get("not_in", ()):
            array = numpy.load(mounted.file(tensors[name], "npy"))
            assert array.tobytes() == content, name


def rezipped(path, method, comment=b""):
    """The archive as another tool writes it: no padding, another order."""
    content = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(
            content, "w", method) as new:
        for entry in reversed(old.infolist()):
            with old.open(entry) as member:
                new.writestr(entry.filename, member.read())
        new.comment = comment
    path.write_bytes(content.getvalue())


@pytest.mark.parametrize("how", [
    {}, {"pickle_protocol": 4}, {"pickle_protocol": 5},
    {"_use_new_zipfile_serialization": False}])
def test_a_state_dict(tmp_path, hub, mount, how):
    folder = tmp_path / "model"
    folder.mkdir()
    wanted = state()
    if "_use_new_zipfile_serialization" in how:
        # torch cannot read these back from there either.
        del wanted["fp8"], wanted["unsigned"]
    torch.save(wanted, folder / "pytorch_model.bin", **how)
    hub.commit("org/model", folder)
    mounted = mount("org/model", hub)
    check(mounted, flat(wanted))


def test_a_training_checkpoint(tmp_path, hub, mount):
    folder = tmp_path / "model"
    folder.mkdir()
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(3, 8)).sum().backward()
    optimizer.step()
    wanted = {"epoch": 3, "loss": 0.25, "model_state_dict": model.state_dict(),
              "optimizer_state_dict": optimizer.state_dict()}
    torch.save(wanted, folder / "last.ckpt")
    hub.commit("org/model", folder)
    check(mount("org/model", hub), flat(wanted))


@pytest.mark.parametrize("comment", [b"", b"x" * 60_000])
def test_an_archive_that_was_zipped_again(tmp_path, hub, mount, comment):
    folder = tmp_path / "model"
    folder.mkdir()
    wanted = state()
    torch.save(wanted, folder / "model.pt")
    rezipped(folder / "model.pt", zipfile.ZIP_STORED, comment)
    hub.commit("org/model", folder)
    check(mount("org/model", hub), flat(wanted))


def test_shards_with_an_index(tmp_path, hub, mount):
    folder = tmp_path / "model"
    folder.mkdir()
    first, second = state(1), {"last": torch.randn(9, 9)}
    torch.save(first, folder / "pytorch_model-00001-of-00002.bin")
    torch.save(second, folder / "pytorch_model-00002-of-00002.bin")
    names = {name: "pytorch_model-00001-of-00002.bin" for name in first}
    names["last"] = "pytorch_model-00002-of-00002.bin"
    (folder / "pytorch_model.bin.index.json").write_text(
        harness.json.dumps({"metadata": {}, "weight_map": names}))
    hub.commit("org/model", folder)
    check(mount("org/model", hub), flat({**first, **second}))


class Runs:
    """Unpickled, it would leave a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_runs_nothing(tmp_path, hub, mount,
                                                   zipped):
    folder = tmp_path / "model"
    folder.mkdir()
    ran = tmp_path / "ran"
    tensors = {"weight": torch.randn(4)}
    torch.save({**tensors, "evil": Runs(ran)}, folder / "model.pt",
               _use_new_zipfile_serialization=zipped)
    hub.commit("org/model", folder)
    check(mount("org/model", hub), tensors)
    assert not ran.exists()
    # It would have run.
    torch.load(folder / "model.pt", weights_only=False)
    assert ran.exists()


def test_bytes_that_are_not_the_tensors_are_not_shown(tmp_path, hub, mount):
    """torch leaves conjugation and negation for later: the file has others."""
    folder = tmp_path / "model"
    folder.mkdir()
    number = torch.randn(3, dtype=torch.complex64)
    torch.save({"conjugated": number.conj(), "plain": number,
                "negated": number.clone().conj().imag}, folder / "model.pt")
    hub.commit("org/model", folder)
    mounted = mount("org/model", hub)
    check(mounted, {"plain": number})
    (found,) = mounted.index()["sets"]
    problems = " ".join(found["problems"])
    assert "conjugated" in problems and "negated" in problems


def test_a_quantised_tensor_shows_its_integers(tmp_path, hub, mount):
    folder = tmp_path / "model"
    folder.mkdir()
    value = torch.quantize_per_tensor(torch.randn(4, 4), 0.1, 3, torch.qint8)
    torch.save({"q": value}, folder / "model.pt")
    hub.commit("org/model", folder)
    mounted = mount("org/model", hub)
    check(mounted, {"q": value.int_repr()})


@pytest.mark.parametrize("zipped", [True, False])
def test_few_requests_index_many_tensors(tmp_path, hub, mount, zipped):
    folder = tmp_path / "model"
    folder.mkdir()
    wanted = {f"layers.{i}.weight": torch.full((64, 64), float(i))
              for i in range(400)}
    torch.save(wanted, folder / "pytorch_model.bin",
               _use_new_zipfile_serialization=zipped)
    hub.commit("org/model", folder)
    mounted = mount("org/model", hub)
    assert len(mounted.tensors()) == len(wanted)
    assert len(hub.log(listener="cdn")) <= LIMIT
    fetched = hub.weight_bytes()
    assert fetched <= 1 << 20
    tensor = {t["name"]: t for t in mounted.tensors()}["layers.250.weight"]
    assert numpy.all(numpy.load(mounted.file(tensor, "npy")) == 250)


def test_safetensors_come_first(tmp_path, hub, mount):
    folder = tmp_path / "model"
    folder.mkdir()
    torch.save({"old": torch.zeros(3)}, folder / "pytorch_model.bin")
    torch.save({"lr": torch.zeros(1)}, folder / "optimizer.pt")
    harness.write_safetensors(folder / "model.safetensors",
                              {"new": ("F32", [2], bytes(8))})
    hub.commit("org/model", folder)
    mounted = mount("org/model", hub)
    assert [tensor["name"] for tensor in mounted.tensors()] == ["new"]
    sets = {found["path"]: found for found in mounted.index()["sets"]}
    assert set(sets) == {"model.safetensors", "optimizer.pt",
                         "pytorch_model.bin"}


def test_what_is_in_no_format_hides_nothing(tmp_path, hub, mount):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "vocab.bin").write_bytes(bytes(range(256)) * 10)
    hub.commit("org/model", folder)
    mounted = mount("org/model", hub)
    assert os.listdir(mounted.path / "tensors" / "npy") == []
    (found,) = mounted.index()["sets"]
    assert found["problems"] == [
        '"vocab.bin": in no format that weightfs reads']
    assert pathlib.Path(mounted.path / "repo" / "vocab.bin").read_bytes() == (
        bytes(range(256)) * 10)
