# ctest: env=client as=both labels=mount timeout=300
"""Whole-file hashes, and a cache that is smaller than the model."""

import errno
import mmap
import os
import subprocess

import pytest

import harness

MIB = 1 << 20
FILE = "model.safetensors"


def verified(path):
    return os.getxattr(path, "user.weightfs.verified") == b"1"


def local_model(tmp_path, tensors=12, elements=300_000):
    folder = tmp_path / "model"
    folder.mkdir()
    harness.write_safetensors(
        folder / FILE,
        {f"layers.{i}.weight": ("F32", (elements,),
                                harness.pattern(i, 0, 4 * elements))
         for i in range(tensors)})
    (folder / "config.json").write_text('{"model_type": "made-up"}\n')
    return folder


def disk_usage(folder):
    return 512 * sum(
        os.lstat(os.path.join(root, name)).st_blocks
        for root, _, files in os.walk(folder)
        for name in [*files, "."])


def test_files_are_verified_as_they_complete(hub, make_hub, mount, tmp_path):
    folder = local_model(tmp_path)
    hub.commit("org/m", folder)
    mounted = mount("org/m", hub)
    for name in (FILE, "config.json"):
        path = mounted.path / "repo" / name
        assert path.read_bytes() == (folder / name).read_bytes()
        assert harness.wait_until(lambda p=path: verified(p), 30), name
    assert mounted.status()["cache"]["wrong_files"] == 0
    # A mirror of the same files: nothing is fetched twice, nor kept twice.
    mirror = make_hub()
    mirror.commit("org/m", folder)
    other = mount("org/m", mirror, name="other")
    for name in (FILE, "config.json"):
        path = other.path / "repo" / name
        assert path.read_bytes() == (folder / name).read_bytes()
        assert verified(path)
    assert mirror.weight_bytes() == 0
    assert disk_usage(mounted.cache) < 1.2 * sum(
        p.stat().st_size for p in folder.iterdir()) + MIB


def test_wrong_bytes_are_dropped_and_fetched_again(hub, mount, tmp_path):
    folder = local_model(tmp_path)
    source = (folder / FILE).read_bytes()
    hub.commit("org/m", folder)
    byte = 5 * MIB + 17
    fault = hub.fault("flip_bit", listener="cdn", contains=FILE, number=byte)
    mounted = mount("org/m", hub)
    path = mounted.path / "repo" / FILE
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        first = file.read()
    assert [i for i in range(len(source)) if first[i] != source[i]] == [byte]
    assert harness.wait_until(
        lambda: mounted.status()["cache"]["wrong_files"] == 1, 30)
    hub.control("remove_fault", id=fault)
    assert "is dropped file=" + FILE in mounted.log()
    # The kernel's pages are dropped soon after, for who has them mapped, too.
    assert harness.wait_until(lambda: mapped[:] == source, 10)
    assert path.read_bytes() == source
    assert harness.wait_until(lambda: verified(path), 30)


def test_wrong_twice_is_given_to_nobody(hub, mount, tmp_path):
    folder = local_model(tmp_path)
    hub.commit("org/m", folder)
    hub.fault("flip_bit", listener="cdn", contains=FILE, number=3 * MIB)
    mounted = mount("org/m", hub)
    path = mounted.path / "repo" / FILE

    def refused():
        try:
            path.read_bytes()
        except OSError as error:
            assert error.errno == errno.EIO
            return True
        return False

    assert harness.wait_until(refused, 60)
    assert mounted.status()["cache"]["wrong_files"] == 2
    assert "wrong bytes again" in mounted.log()
    # Other files are served.
    assert (mounted.path / "repo" / "config.json").read_bytes() == (
        folder / "config.json").read_bytes()


@pytest.mark.parametrize("read", ["part", "all"])
def test_a_poisoned_mirror_then_the_hub(hub, make_hub, mount, tmp_path, read):
    folder = local_model(tmp_path)
    source = (folder / FILE).read_bytes()
    hub.commit("org/m", folder)
    mirror = make_hub()
    mirror.commit("org/m", folder)
    mirror.fault("other_file", listener="cdn", contains=FILE)
    poisoned = mount("org/m", mirror, name="poisoned")
    path = poisoned.path / "repo" / FILE
    with open(path, "rb") as file:
        wrong = file.read(len(source) if read == "all" else 6 * MIB)
    assert wrong != source[:len(wrong)]
    mounted = mount("org/m", hub)
    assert (mounted.path / "repo" / FILE).read_bytes() == source
    poisoned.unmount()
    mounted.unmount()
    again = mount("org/m", hub, name="again")
    assert (again.path / "repo" / FILE).read_bytes() == source


def test_a_cache_of_a_quarter_of_the_model(hub, mount, tmp_path):
    folder = local_model(tmp_path, tensors=16, elements=1 << 20)
    source = (folder / FILE).read_bytes()
    limit = len(source) // 4
    hub.commit("org/m", folder)
    mounted = mount("org/m", hub, options=("--cache-size", str(limit)))
    most = 0
    with open(mounted.path / "repo" / FILE, "rb") as file:
        for at in range(0, len(source), MIB):
            assert file.read(MIB) == source[at:at + MIB], at
            most = max(most, disk_usage(mounted.cache))
    for tensor in mounted.tensors():
        data = mounted.file(tensor, "raw").read_bytes()
        begin = tensor["offset"]
        assert data == source[begin:begin + tensor["length"]]
        most = max(most, disk_usage(mounted.cache))
    assert limit // 4 < most <= limit
    assert mounted.status()["cache"]["evicted_bytes"] > 0


def test_a_smaller_limit_than_last_time(hub, mount, tmp_path):
    folder = local_model(tmp_path)
    hub.commit("org/m", folder)
    first = mount("org/m", hub, name="first")
    (first.path / "repo" / FILE).read_bytes()
    assert harness.wait_until(
        lambda: disk_usage(first.cache) > 12 * MIB, 10)
    first.unmount()
    second = mount("org/m", hub, options=("--cache-size", "4M"))
    assert harness.wait_until(
        lambda: disk_usage(second.cache) <= 4 * MIB, 10)
    assert (second.path / "repo" / FILE).read_bytes() == (
        folder / FILE).read_bytes()


def test_a_size_that_is_none_is_refused(tmp_path):
    done = harness.run("mount", "org/m", tmp_path, "--cache-size", "many",
                       home=tmp_path, check=False)
    assert done.returncode == 2
    assert "--cache-size" in done.stderr and "many" in done.stderr


def test_usage_counts_as_du_does(hub, mount, tmp_path):
    hub.commit("org/m", local_model(tmp_path))
    mounted = mount("org/m", hub)
    (mounted.path / "repo" / FILE).read_bytes()
    assert harness.wait_until(lambda: verified(mounted.path / "repo" / FILE), 30)
    du = int(subprocess.run(["du", "-s", "-B512", mounted.cache], check=True,
                            capture_output=True, text=True).stdout.split()[0])
    assert abs(disk_usage(mounted.cache) - 512 * du) < MIB
