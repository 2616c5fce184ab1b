# ctest: env=client as=both labels=mount timeout=300
"""weightfs mount --verify strict: no byte before its whole file was verified."""

import errno
import mmap
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

import harness
from disk import Disk
from test_integrity import FILE, MIB, local_model, verified

STRICT = ("--verify", "strict")


@pytest.fixture(name="folder")
def _folder(hub, tmp_path):
    folder = local_model(tmp_path)
    hub.commit("org/m", folder)
    return folder


def test_right_files_read_right(hub, mount, folder):
    source = (folder / FILE).read_bytes()
    mounted = mount("org/m", hub, options=STRICT)
    assert mounted.status()["verify"] == "strict"
    assert "strict" in harness.run("status", mounted.path, "--cache-dir",
                                   mounted.cache, home=mounted.home).stdout
    path = mounted.path / "repo" / FILE
    # Nothing is fetched before somebody wants it; then all of it.
    assert hub.weight_bytes() == 0
    with open(path, "rb") as file:
        assert os.pread(file.fileno(), 10, 9 * MIB) == source[9 * MIB:][:10]
        assert verified(path)
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            assert mapped[:] == source
    assert path.read_bytes() == source
    for tensor in mounted.tensors()[:3]:
        begin = tensor["offset"]
        assert mounted.file(tensor, "raw").read_bytes() == (
            source[begin:begin + tensor["length"]])
    assert len(source) <= hub.weight_bytes() < len(source) + MIB
    # Another mount takes it from the cache.
    other = mount("org/m", hub, name="other", options=STRICT)
    assert (other.path / "repo" / FILE).read_bytes() == source
    assert hub.weight_bytes() < len(source) + MIB


def test_many_readers(hub, mount, folder):
    source = (folder / FILE).read_bytes()
    mounted = mount("org/m", hub, options=STRICT)
    wrong = []

    def read(seed):
        rng = random.Random(seed)
        with open(mounted.path / "repo" / FILE, "rb") as file:
            for _ in range(20):
                offset = rng.randrange(len(source))
                length = rng.randrange(1, 2 * MIB)
                if os.pread(file.fileno(), length, offset) != (
                        source[offset:offset + length]):
                    wrong.append((seed, offset, length))

    threads = [threading.Thread(target=read, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


MAPPED = """
import mmap, sys
with open(sys.argv[1], "rb") as file:
    print(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)[5000000])
"""


def test_no_byte_of_a_wrong_file_is_seen(hub, mount, folder):
    byte = 11 * MIB + 5
    hub.fault("flip_bit", listener="cdn", contains=FILE, number=byte)
    mounted = mount("org/m", hub, options=STRICT)
    path = mounted.path / "repo" / FILE

    def fails(call):
        with pytest.raises(OSError) as raised:
            call()
        assert raised.value.errno == errno.EIO

    fails(path.read_bytes)
    with open(path, "rb") as file:
        # Far from the wrong byte.
        fails(lambda: os.pread(file.fileno(), 10, 0))
        fails(lambda: os.pread(file.fileno(), 1, byte))
    done = subprocess.run([sys.executable, "-c", MAPPED, path], check=False,
                          capture_output=True)
    assert done.returncode == -signal.SIGBUS and done.stdout == b""
    # What a header says is of the same file.
    fails(lambda: os.listdir(mounted.path / "tensors" / "npy"))
    assert mounted.status()["cache"]["wrong_files"] == 2
    assert "wrong bytes again" in mounted.log()
    # Other files are served.
    assert (mounted.path / "repo" / "config.json").read_bytes() == (
        folder / "config.json").read_bytes()


def test_wrong_once_is_fetched_again(hub, mount, folder):
    """The reader waits meanwhile, and gets the right bytes."""
    hub.fault("flip_bit", listener="cdn", contains=FILE, number=5 * MIB,
              times=1)
    mounted = mount("org/m", hub, options=STRICT)
    source = (folder / FILE).read_bytes()
    assert (mounted.path / "repo" / FILE).read_bytes() == source
    assert mounted.status()["cache"]["wrong_files"] == 1
    assert len(mounted.tensors()) == 12


def test_a_poisoned_mirror_gives_nothing(hub, make_hub, mount, folder):
    mirror = make_hub()
    mirror.commit("org/m", folder)
    mirror.fault("other_file", listener="cdn", contains=FILE)
    poisoned = mount("org/m", mirror, name="poisoned", options=STRICT)
    with pytest.raises(OSError):
        (poisoned.path / "repo" / FILE).read_bytes()
    mounted = mount("org/m", hub, options=STRICT)
    assert (mounted.path / "repo" / FILE).read_bytes() == (
        folder / FILE).read_bytes()


def test_a_slow_wire_takes_longer_than_the_timeout(hub, mount, folder):
    """As long as bytes of the file come, its readers wait."""
    hub.fault("trickle", listener="cdn", contains=FILE, number=96 << 10,
              delay_ms=250)
    mounted = mount("org/m", hub, options=(*STRICT, "--read-timeout", "2s"))
    start = time.monotonic()
    assert (mounted.path / "repo" / FILE).read_bytes() == (
        folder / FILE).read_bytes()
    assert time.monotonic() - start > 3
    assert mounted.status()["requests"]["late"] == 0


@pytest.mark.parametrize("when", ["at once", "later"])
def test_nothing_comes(hub, mount, folder, when):
    hub.fault("no_answer", listener="cdn", contains=FILE,
              skip=0 if when == "at once" else 4)
    mounted = mount("org/m", hub, options=(*STRICT, "--read-timeout", "2s"))
    start = time.monotonic()
    with pytest.raises(OSError) as raised:
        (mounted.path / "repo" / FILE).read_bytes()
    assert raised.value.errno == errno.EIO
    assert time.monotonic() - start < 8
    log = mounted.log()
    assert "held back until the whole file is verified" in log
    assert FILE in log
    assert mounted.status()["requests"]["late"] == 0


@pytest.mark.parametrize("how", ["SIGINT", "SIGKILL", "unmount"])
def test_a_reader_that_waits_ends(hub, mount, folder, how):
    hub.fault("no_answer", listener="cdn", contains=FILE)
    mounted = mount("org/m", hub, options=STRICT)
    with subprocess.Popen(
            ["cat", mounted.path / "repo" / FILE], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE) as reader:
        assert harness.wait_until(lambda: hub.log(listener="cdn"))
        start = time.monotonic()
        if how == "unmount":
            os.kill(mounted.pid, signal.SIGTERM)
        else:
            reader.send_signal(signal.Signals[how])
        output, _ = reader.communicate(timeout=10)
        assert output == b"" and time.monotonic() - start < 5
        assert reader.returncode != 0
    if how == "unmount":
        assert harness.wait_until(lambda: not harness.alive(mounted.pid), 5)


def test_a_cache_that_is_too_small(hub, mount, folder):
    mounted = mount("org/m", hub, options=(*STRICT, "--cache-size", "8M"))
    start = time.monotonic()
    with pytest.raises(OSError):
        (mounted.path / "repo" / FILE).read_bytes()
    assert time.monotonic() - start < 5
    assert "--cache-size" in mounted.log()
    assert hub.weight_bytes() < 8 * MIB
    assert (mounted.path / "repo" / "config.json").read_bytes() == (
        folder / "config.json").read_bytes()


def test_a_cache_that_does_not_answer(hub, mount, folder, tmp_path):
    disk = Disk(tmp_path)
    try:
        mounted = mount("org/m", hub, cache="disk/cache",
                        log_file=tmp_path / "mnt.log",
                        options=(*STRICT, "--read-timeout", "3s"))
        assert (mounted.path / "repo" / "config.json").read_bytes()
        disk.block("open", "read", "write", "create")
        start = time.monotonic()
        with pytest.raises(OSError):
            (mounted.path / "repo" / FILE).read_bytes()
        assert time.monotonic() - start < 12
        os.kill(mounted.pid, signal.SIGTERM)
        assert harness.wait_until(lambda: harness.mount_type(mounted.path) is
                                  None, 5)
    finally:
        disk.end()


def test_where_it_is_refused(hub, tmp_path, folder):
    place = tmp_path / "mnt"
    place.mkdir()

    def refused(source, *options):
        done = harness.run("mount", source, place, *options, "--endpoint",
                           hub.url, home=tmp_path, check=False)
        assert done.returncode != 0
        return done.stderr

    assert "no list of hashes" in refused(folder, *STRICT)
    (tmp_path / "file").write_text("")
    assert "--verify=strict" in refused("org/m", *STRICT, "--cache-dir",
                                        tmp_path / "file")
    assert "strict and background" in refused("org/m", "--verify", "some")
    assert harness.mount_type(place) is None
