# ctest: env=client as=both labels=mount timeout=600
"""Every byte that a mount shows is the source's: files of the repo, every tensor
in every format and dtype, by read, mmap, many threads, at random offsets."""

import concurrent.futures
import hashlib
import io
import mmap
import os
import random
import stat

import numpy
import pytest
import safetensors
import safetensors.numpy

import harness

FORMATS = ("raw", "npy", "pt", "safetensors")
NO_NPY = {"F4", "F6_E2M3", "F6_E3M2"}
NUMPY_TYPES = {
    "BOOL": "|b1", "U8": "|u1", "I8": "|i1", "I16": "<i2", "U16": "<u2",
    "F16": "<f2", "I32": "<i4", "U32": "<u4", "F32": "<f4", "C64": "<c8",
    "F64": "<f8", "I64": "<i8", "U64": "<u8", "BF16": "|V2",
    "F8_E5M2": "|V1", "F8_E4M3": "|V1", "F8_E8M0": "|V1",
    "F8_E4M3FNUZ": "|V1", "F8_E5M2FNUZ": "|V1",
}
TENSORS = harness.every_dtype()


@pytest.fixture(name="source")
def _source(tmp_path):
    """A folder with one-file weights of every dtype, and other files."""
    folder = tmp_path / "source"
    (folder / "sub" / "deep").mkdir(parents=True)
    harness.write_safetensors(folder / "model.safetensors", TENSORS,
                              {"format": "pt"})
    (folder / "config.json").write_text('{"model_type": "none"}\n')
    (folder / "empty.txt").write_bytes(b"")
    (folder / "sub" / "deep" / "data.bin").write_bytes(os.urandom(700_001))
    (folder / "sub" / "ünï cödé & +%.txt").write_text("odd name\n")
    return folder


@pytest.fixture(name="mounted", params=["hub", "folder"])
def _mounted(request, source, hub, mount):
    """The source over the hub, and as a local folder."""
    if request.param == "folder":
        return mount(source)
    hub.commit("org/every", source)
    return mount("org/every", hub)


def test_repo_is_byte_for_byte(mounted, source):
    wanted = {p.relative_to(source): p for p in source.rglob("*")
              if p.is_file()}
    repo = mounted.path / "repo"
    assert {p.relative_to(repo) for p in repo.rglob("*")
            if p.is_file()} == set(wanted)
    for name, path in wanted.items():
        shown = repo / name
        assert shown.stat().st_size == path.stat().st_size
        assert shown.read_bytes() == path.read_bytes(), name
        assert shown.stat().st_nlink == 1
        assert not shown.is_symlink()


def test_tree_and_modes(mounted):
    root = mounted.path
    assert sorted(os.listdir(root)) == [".weightfs", "repo", "tensors"]
    assert sorted(os.listdir(root / "tensors")) == sorted(FORMATS)
    assert len(os.listdir(root / "tensors" / "raw")) == len(TENSORS)
    for folder, folders, files in os.walk(root):
        for name in folders:
            mode = os.lstat(os.path.join(folder, name)).st_mode
            assert stat.S_ISDIR(mode) and not mode & 0o222
        for name in files:
            status = os.lstat(os.path.join(folder, name))
            assert stat.S_ISREG(status.st_mode) and not status.st_mode & 0o222
            assert status.st_uid == os.getuid()
    assert (root / "tensors" / "none").exists() is False
    with pytest.raises(OSError) as refused:
        (root / "repo" / "new").write_text("x")
    assert refused.value.errno == 30  # EROFS
    for line in open("/proc/self/mounts", encoding="utf-8"):
        fields = line.split()
        if fields[1] == str(root):
            assert fields[0] == "weightfs" and fields[2] == "fuse.weightfs"


def test_index_lists_every_tensor(mounted):
    index = {t["name"]: t for t in mounted.tensors()}
    assert set(index) == set(TENSORS)
    for name, (dtype, shape, content) in TENSORS.items():
        assert index[name]["dtype"] == dtype
        assert index[name]["shape"] == list(shape)
        assert index[name]["size"] == len(content)
        if content:  # no bytes, no place
            assert index[name]["file"] == "model.safetensors"
        assert set(index[name].get("not_in", ())) >= (
            {"npy"} if dtype in NO_NPY else set())


def test_raw_files_are_the_data(mounted):
    for tensor in mounted.tensors():
        path = mounted.file(tensor, "raw")
        assert path.read_bytes() == TENSORS[tensor["name"]][2], tensor["name"]


def test_npy_files_load(mounted):
    loaded = 0
    for tensor in mounted.tensors():
        dtype, shape, content = TENSORS[tensor["name"]]
        path = mounted.file(tensor, "npy")
        assert path.exists() == (dtype not in NO_NPY), path
        if dtype in NO_NPY:
            continue
        loaded += 1
        array = numpy.load(path)
        assert array.dtype == numpy.dtype(NUMPY_TYPES[dtype]), path
        assert array.shape == tuple(shape)
        assert array.tobytes() == content, path
        if array.size:  # numpy refuses to map an empty file's end
            mapped = numpy.load(path, mmap_mode="r")
            assert isinstance(mapped, numpy.memmap)
            assert mapped.shape == tuple(shape)
            assert mapped.tobytes() == content, path
    assert loaded == len([t for t in TENSORS.values() if t[0] not in NO_NPY])


def test_safetensors_files_load(mounted):
    """By NumPy where it knows the dtype, else by deserialize."""
    opened = 0
    for tensor in mounted.tensors():
        dtype, shape, content = TENSORS[tensor["name"]]
        path = mounted.file(tensor, "safetensors")
        if NUMPY_TYPES.get(dtype, "|V")[1] != "V":
            with safetensors.safe_open(path, framework="numpy") as file:
                assert list(file.keys()) == [tensor["name"]]
                assert file.metadata()["format"] == "pt"
                array = file.get_tensor(tensor["name"])
            assert array.tobytes() == content and array.shape == tuple(shape)
            opened += 1
        else:
            [(name, value)] = safetensors.deserialize(path.read_bytes())
            assert name == tensor["name"]
            assert bytes(value["data"]) == content, path
            assert value["dtype"] == dtype and value["shape"] == list(shape)
    assert opened > 80


def test_whole_model_by_safe_open(mounted):
    path = mounted.path / "repo" / "model.safetensors"
    with safetensors.safe_open(path, framework="numpy") as file:
        assert set(file.keys()) == set(TENSORS)
        for name, (dtype, _, content) in TENSORS.items():
            if NUMPY_TYPES.get(dtype, "|V")[1] != "V":
                assert file.get_tensor(name).tobytes() == content


def test_every_format_reads_alike_in_pieces(mounted):
    """Each file read whole, then at random offsets: at least 10,000 reads."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    randomness = random.Random(seed)
    files = [mounted.path / "repo" / "model.safetensors",
             mounted.path / "repo" / "sub" / "deep" / "data.bin"]
    big = [t for t in mounted.tensors() if t["size"] >= 4096]
    files += [mounted.file(t, form) for t in randomness.sample(big, 12)
              for form in FORMATS if mounted.file(t, form).exists()]
    reads = 0
    for path in files:
        whole = path.read_bytes()
        assert len(whole) == path.stat().st_size
        descriptor = os.open(path, os.O_RDONLY)
        try:
            for _ in range(12_000 // len(files) + 1):
                offset = randomness.randrange(len(whole) + 10)
                length = min(int(randomness.expovariate(1 / 20_000)),
                             1 << 20)
                got = os.pread(descriptor, length, offset)
                assert got == whole[offset:offset + length], (
                    path, offset, length)
                reads += 1
        finally:
            os.close(descriptor)
    assert reads >= 10_000


def test_reads_against_the_source(mounted, source):
    """10,000 random reads of the repo's weights, each against the source."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    randomness = random.Random(seed)
    wanted = (source / "model.safetensors").read_bytes()
    descriptor = os.open(mounted.path / "repo" / "model.safetensors",
                         os.O_RDONLY)
    try:
        for _ in range(10_000):
            offset = randomness.randrange(len(wanted) + 10)
            length = int(randomness.expovariate(1 / 8_000))
            assert os.pread(descriptor, length, offset) == (
                wanted[offset:offset + length]), (offset, length)
    finally:
        os.close(descriptor)


def test_mmap_shared_and_private(mounted, source):
    wanted = (source / "model.safetensors").read_bytes()
    with open(mounted.path / "repo" / "model.safetensors", "rb") as file:
        for flags in (mmap.MAP_SHARED, mmap.MAP_PRIVATE,
                      mmap.MAP_SHARED | mmap.MAP_POPULATE):
            with mmap.mmap(file.fileno(), 0, flags, mmap.PROT_READ) as view:
                assert view[:] == wanted


def test_32_threads(mounted, source):
    """Cold: 32 threads over one descriptor, one mapping and every format."""
    wanted = (source / "model.safetensors").read_bytes()
    path = mounted.path / "repo" / "model.safetensors"
    tensors = mounted.tensors()
    descriptor = os.open(path, os.O_RDONLY)
    view = mmap.mmap(descriptor, 0, mmap.MAP_SHARED, mmap.PROT_READ)

    def work(number):
        randomness = random.Random(number)
        checked = 0
        for _ in range(40):
            offset = randomness.randrange(len(wanted))
            length = randomness.randrange(200_000)
            part = wanted[offset:offset + length]
            assert os.pread(descriptor, length, offset) == part
            assert view[offset:offset + length] == part
            tensor = randomness.choice(tensors)
            content = TENSORS[tensor["name"]][2]
            assert mounted.file(tensor, "raw").read_bytes() == content
            for form in FORMATS[1:]:
                shown = mounted.file(tensor, form)
                if shown.exists() and form != "pt":
                    assert shown.read_bytes().endswith(content)
                elif shown.exists():
                    assert content in shown.read_bytes()
            checked += 1
        return checked

    try:
        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            assert sum(pool.map(work, range(32))) == 32 * 40
    finally:
        view.close()
        os.close(descriptor)


def test_xattrs(mounted, source):
    path = mounted.path / "repo" / "model.safetensors"
    content = (source / "model.safetensors").read_bytes()
    names = os.listxattr(path)
    assert "user.weightfs.commit" in names
    if "user.weightfs.sha256" in names:
        assert os.getxattr(path, "user.weightfs.sha256").decode() == (
            hashlib.sha256(content).hexdigest())
    for tensor in mounted.tensors():
        shown = mounted.file(tensor, "npy")
        if not shown.exists():
            continue
        get = lambda key: os.getxattr(shown, f"user.weightfs.{key}").decode()
        assert get("name") == tensor["name"]
        assert get("dtype") == tensor["dtype"]
        assert get("shape").replace(" ", "") == (
            str(tensor["shape"]).replace(" ", ""))
        if not tensor["size"]:
            assert get("source") == ""
            continue
        file, offset, length = get("source").rsplit(":", 2)
        assert (file, int(length)) == ("model.safetensors", tensor["size"])
        assert content[int(offset):][:int(length)] == (
            TENSORS[tensor["name"]][2])


def test_cli_agrees_with_the_mount(source, hub, tmp_path):
    """ls, info and cat, without a mount."""
    hub.commit("org/every", source)
    common = ("--cache-dir", tmp_path / "cache", "--endpoint", hub.url)
    import json  # pylint: disable=import-outside-toplevel
    listing = json.loads(harness.run("ls", "org/every", "--json", *common,
                                     home=tmp_path).stdout)
    names = [tensor["name"] for shown in listing["sets"] if shown["shown"]
             for tensor in shown["tensors"]]
    assert sorted(names) == sorted(TENSORS)
    assert "org/every" in harness.run("info", "org/every", *common,
                                      home=tmp_path).stdout
    for name in ("F32.300x400", "BF16.7x12", "I64.scalar", "U8.0"):
        dtype, shape, content = TENSORS[name]
        raw = harness.run("cat", "org/every", name, *common, home=tmp_path,
                          text=False).stdout
        assert raw == content
        npy = numpy.load(io.BytesIO(
            harness.run("cat", "org/every", name, "--format", "npy", *common,
                        home=tmp_path, text=False).stdout))
        assert npy.tobytes() == content and npy.shape == tuple(shape)
        assert npy.dtype == numpy.dtype(NUMPY_TYPES[dtype])


def test_names_that_no_path_can_be(hub, mount, tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    names = ["a/b", "a", "a.b", "..", ".", "", "x//y", "%41", "tab\there",
             "é", "long" * 100, "ends/", "/starts", "a/../b"]
    tensors = {name: ("U8", (5,), os.urandom(5)) for name in names}
    harness.write_safetensors(folder / "model.safetensors", tensors)
    hub.commit("org/odd", folder)
    mounted = mount("org/odd", hub)
    seen = {}
    for base, _, files in os.walk(mounted.path / "tensors" / "raw"):
        for file in files:
            path = os.path.join(base, file)
            name = os.getxattr(path, "user.weightfs.name").decode()
            with open(path, "rb") as shown:
                seen[name] = shown.read()
    assert seen == {name: content
                    for name, (_, _, content) in tensors.items()}
    for tensor in mounted.tensors():
        assert mounted.file(tensor, "raw").read_bytes() == (
            tensors[tensor["name"]][2])
