# ctest: env=client as=both labels=mount timeout=600
"""Nothing hangs: not on a disk that stops answering, an origin that is stopped, a
daemon that is. Readers get the right bytes or one error, in time; and whatever
happened, everything ends in less than 5 s."""

import contextlib
import errno
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

import harness

LIMIT = 5.0
TEST_DISK = os.environ.get("WEIGHTFS_TEST_DISK",
                           "build/gcc/tests/support/weightfs-test-disk")
TENSORS, TENSOR_BYTES = 48, 1 << 20
MODEL = f"tensors={TENSORS},tensor_bytes={TENSOR_BYTES},dtype=F32,seed=9"


def state_of(pid):
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return "gone"
    return stat.rpartition(")")[2].split()[0]


class Disk:
    """A file system that can stop answering (tests/support/test_disk_main.cc)."""

    def __init__(self, folder):
        self.backing = folder / "disk-data"
        self.path = folder / "disk"
        self.switch = folder / "disk-switch"
        self.log = folder / "mnt.log"  # not on it
        self.backing.mkdir(mode=0o700)
        self.path.mkdir()
        self.process = subprocess.Popen(
            [TEST_DISK, self.backing, self.path, self.switch],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "serves\n"

    def block(self, *operations):
        """From now on they do not come back."""
        new = self.switch.with_suffix(".new")
        new.write_text(" ".join(operations) + "\n")
        new.rename(self.switch)

    def release(self):
        self.switch.unlink(missing_ok=True)

    def end(self):
        self.release()
        self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        subprocess.run(["fusermount3", "-u", "-z", str(self.path)],
                       capture_output=True, check=False)


@pytest.fixture(name="disk")
def _disk(tmp_path, mount):
    # After `mount`, so that the mounts end before the disk... is asked for.
    made = Disk(tmp_path)
    yield made
    made.end()


@pytest.fixture(name="model")
def _model(hub, mount):
    hub.commit("org/model", generate=MODEL + ",hashed=0")
    mounted = mount("org/model", hub, name="reference", cache="reference-cache")
    path = mounted.path / "repo" / "model.safetensors"
    content = path.read_bytes()
    mounted.unmount()
    return content


def in_time(call, limit):
    """What `call` returns; fails the test if it takes longer."""
    result = []

    def run():
        try:
            result.append((call(), None))
        except BaseException as error:  # pylint: disable=broad-except
            result.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit)
    assert result, f"did not come back in {limit} s"
    if result[0][1] is not None:
        raise result[0][1]
    return result[0][0]


def pread(path, length, offset):
    file = os.open(path, os.O_RDONLY)
    try:
        return os.pread(file, length, offset)
    finally:
        os.close(file)


def drop_pages(path):
    """So that reads reach the daemon again."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)


# What a disk can hang in: everything, or some kinds of calls.
WAYS = {
    "all": ["all"],
    "read": ["read"],
    "write": ["write", "fsync", "fallocate", "flush"],
    "metadata": ["getattr", "open", "create", "mkdir", "rename", "truncate",
                 "unlink", "readdir", "statfs"],
}


def end_daemon(mounted, disk):
    """SIGTERM: less than 5 s, and nothing is left that anybody waits for. A
    thread in a call that the disk never answers cannot be killed by anybody, but
    is no daemon any more (a zombie)."""
    start = time.monotonic()
    os.kill(mounted.pid, signal.SIGTERM)
    assert harness.wait_until(
        lambda: harness.mount_type(mounted.path) is None
        and not harness.alive(mounted.pid), LIMIT), mounted.log()
    print(f"ended in {time.monotonic() - start:.2f} s")
    disk.release()
    assert harness.wait_until(lambda: state_of(mounted.pid) in ("gone", "Z"))


@pytest.mark.parametrize("way", WAYS)
def test_a_cache_disk_that_hangs_while_cold(hub, mount, disk, model, way):
    mounted = mount("org/model", hub, cache="disk/cache", log_file=disk.log)
    path = mounted.path / "repo" / "model.safetensors"
    assert in_time(lambda: pread(path, 100, 0), LIMIT) == model[:100]
    disk.block(*WAYS[way])
    for begin in (3 << 20, 17 << 20, (20 << 20) + 77, 40 << 20):
        start = time.monotonic()
        got = in_time(lambda b=begin: pread(path, 1 << 20, b), 20)
        assert got == model[begin:begin + (1 << 20)]
        print(f"{begin}: {time.monotonic() - start:.2f} s")
    # Everything of it: no pool is used up.
    assert in_time(path.read_bytes, 60) == model
    end_daemon(mounted, disk)


@pytest.mark.parametrize("way", WAYS)
def test_a_cache_disk_that_hangs_while_warm(hub, mount, disk, model, way):
    first = mount("org/model", hub, cache="disk/cache", log_file=disk.log)
    assert (first.path / "repo" / "model.safetensors").read_bytes() == model
    first.unmount()
    mounted = mount("org/model", hub, cache="disk/cache", log_file=disk.log)
    path = mounted.path / "repo" / "model.safetensors"
    # Some of it is hashed and in the disk's page cache.
    assert in_time(lambda: pread(path, 8 << 20, 0), 20) == model[:8 << 20]
    drop_pages(path)
    disk.block(*WAYS[way])
    with open(path, "rb", buffering=0) as file:
        readers = []
        wrong = []

        def read(number):
            for step in range(6):
                begin = ((number * 6 + step) * 7919 * 4096) % (len(model) - 65536)
                got = os.pread(file.fileno(), 65536, begin)
                if got != model[begin:begin + 65536]:
                    wrong.append((number, begin))

        for number in range(24):
            readers.append(threading.Thread(target=read, args=(number,),
                                            daemon=True))
            readers[-1].start()
        end = time.monotonic() + 60
        for reader in readers:
            reader.join(max(0, end - time.monotonic()))
        assert not any(r.is_alive() for r in readers), mounted.log()
        assert not wrong
    # Metadata goes on, too: what needs the cache and what does not.
    in_time(lambda: os.listdir(mounted.path / "tensors" / "npy"), LIMIT)
    in_time(lambda: os.getxattr(path, "user.weightfs.cached"), LIMIT)
    assert in_time(mounted.status, LIMIT)["pid"] == mounted.pid
    end_daemon(mounted, disk)


def test_a_cache_disk_that_comes_back_is_used_again(hub, mount, disk, model):
    mounted = mount("org/model", hub, cache="disk/cache", log_file=disk.log)
    path = mounted.path / "repo" / "model.safetensors"
    disk.block("all")
    assert in_time(lambda: pread(path, 1 << 20, 5 << 20),
                   20) == model[5 << 20:6 << 20]
    disk.release()
    offset = 9 << 20

    def kept():
        nonlocal offset
        assert in_time(lambda: pread(path, 1 << 20, offset),
                       20) == model[offset:offset + (1 << 20)]
        offset += 1 << 20
        return float(os.getxattr(path, "user.weightfs.cached")) > 0.05

    assert harness.wait_until(kept, 30), mounted.log()
    assert in_time(path.read_bytes, 60) == model
    mounted.unmount()


def test_a_disk_that_hangs_when_it_is_mounted(hub, mount, disk, model):
    first = mount("org/model", hub, cache="disk/cache", log_file=disk.log)
    path = first.path / "repo" / "model.safetensors"
    assert path.read_bytes() == model
    first.unmount()
    mounted = mount("org/model", hub, cache="disk/cache", log_file=disk.log)
    disk.block("all")
    path = mounted.path / "repo" / "model.safetensors"
    assert in_time(path.read_bytes, 60) == model
    end_daemon(mounted, disk)
