# ctest: env=client as=both labels=mount timeout=600
"""Mounts begin, end and break cleanly, also while the origin hangs: every way to
unmount takes less than 5 s, readers can be killed, a crashed mount is replaced."""

import concurrent.futures
import contextlib
import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest

import harness

LIMIT = 5.0
MODEL = "tensors=64,tensor_bytes=1048576,dtype=F32,seed=9"

# A reader of its own process: argv: how, path, offset. Says so before it reads,
# and prints what came of it.
READER = """
import mmap, os, signal, sys
how, path, offset = sys.argv[1], sys.argv[2], int(sys.argv[3])
signal.signal(signal.SIGINT, signal.SIG_DFL if how.endswith("-default")
              else signal.default_int_handler)
how = how.removesuffix("-default")
if how == "stat":
    print("reads", flush=True)
    os.stat(path)
    sys.exit()
flags = os.O_RDONLY | (os.O_DIRECT if how == "direct" else 0)
file = open(os.open(path, flags), "rb", buffering=0)
print("reads", flush=True)
try:
    if how == "mmap":
        view = mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)
        got = view[offset:offset + 10]
    elif how == "direct":
        got = bytes(4096)[:os.preadv(file.fileno(), [mmap.mmap(-1, 4096)],
                                     offset)]
    else:
        got = os.pread(file.fileno(), 4096, offset)
    print("got", len(got), flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
except OSError as error:
    print("error", error.errno, flush=True)
"""


class Readers:
    """Processes that read where the hub hangs."""

    def __init__(self):
        self.processes = []

    def start(self, how, path, offset):
        process = subprocess.Popen(
            [sys.executable, "-c", READER, how, str(path), str(offset)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        self.processes.append(process)
        assert process.stdout.readline() == "reads\n"
        return process

    def kill(self):
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    def ended(self, timeout):
        return harness.wait_until(
            lambda: all(p.poll() is not None for p in self.processes), timeout)


@pytest.fixture(name="readers")
def _readers():
    readers = Readers()
    yield readers
    readers.kill()
    for process in readers.processes:
        process.wait(10)
        process.stdout.close()


@pytest.fixture(name="hanging")
def _hanging(hub, mount, readers):
    """A mount whose origin stopped answering, with eight reads in flight."""
    hub.commit("org/model", generate=MODEL + ",hashed=0")
    mounted = mount("org/model", hub)
    tensors = mounted.tensors()
    begin = tensors[0]["offset"]
    fault = hub.fault("hang", number=1000, listener="cdn")
    whole = mounted.path / "repo" / "model.safetensors"
    for number in range(3):
        readers.start("pread", whole, begin + (10 + 9 * number << 20))
        readers.start("mmap", whole, begin + (14 + 9 * number << 20))
    readers.start("pread", mounted.file(tensors[-1], "npy"), 500_000)
    readers.start("mmap", mounted.file(tensors[-2], "raw"), 500_000)
    assert harness.wait_until(
        lambda: hub.control("fault_hits", id=fault)["hits"] >= 3)
    assert harness.wait_until(
        lambda: all(is_waiting(p.pid) for p in readers.processes))
    return mounted


def is_waiting(pid):
    """Whether a reader is in the system call or page fault that hangs."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] in "SD"
    except OSError:
        return False


def unmount_command(way, mounted):
    path = str(mounted.path)
    return {
        "weightfs": [harness.WEIGHTFS, "umount", path, "--cache-dir",
                     str(mounted.cache)],
        "weightfs-lazy": [harness.WEIGHTFS, "umount", "--lazy", path,
                          "--cache-dir", str(mounted.cache)],
        "umount": ["umount", path],
        "umount-lazy": ["umount", "-l", path],
        "fusermount3": ["fusermount3", "-u", path],
        "fusermount3-lazy": ["fusermount3", "-u", "-z", path],
    }[way]


def unmounted(mounted):
    return harness.mount_type(mounted.path) is None


def gone(mounted):
    return unmounted(mounted) and not harness.alive(mounted.pid)


WAYS = ["weightfs", "fusermount3", "umount"]


def skip_if_not_allowed(way):
    if way.startswith("umount") and os.getuid() != 0:
        pytest.skip("umount(8) is root's where the mount is not in fstab")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_signal_ends_it_with_reads_in_flight(hanging, readers, name):
    start = time.monotonic()
    os.kill(hanging.pid, getattr(signal, name))
    assert harness.wait_until(lambda: gone(hanging), LIMIT), hanging.log()
    print(f"{name}: {time.monotonic() - start:.2f} s")
    # The reads end, too, each with an error: nobody is left waiting.
    assert readers.ended(LIMIT)
    for process in readers.processes:
        said = process.stdout.read()
        # A page that cannot be had is SIGBUS for a mapping.
        assert said.startswith("error") or (
            process.returncode == -signal.SIGBUS), (said, process.returncode)


@pytest.mark.parametrize("way", WAYS)
def test_unmount_with_reads_in_flight(hanging, readers, way):
    skip_if_not_allowed(way)
    start = time.monotonic()
    refused = subprocess.run(unmount_command(way, hanging),
                             capture_output=True, text=True, timeout=LIMIT,
                             check=False, env=harness.environment(
                                 hanging.home))
    # Files are open: the kernel refuses, and at once.
    assert refused.returncode != 0
    assert time.monotonic() - start < LIMIT
    if way == "weightfs":
        assert refused.returncode == 1
        assert "busy" in refused.stderr
        assert str(readers.processes[0].pid) in refused.stderr
    assert harness.alive(hanging.pid) and not unmounted(hanging)

    start = time.monotonic()
    readers.kill()
    assert readers.ended(LIMIT)
    done = subprocess.run(unmount_command(way, hanging), capture_output=True,
                          text=True, timeout=LIMIT, check=False,
                          env=harness.environment(hanging.home))
    assert done.returncode == 0, done
    assert harness.wait_until(lambda: gone(hanging), LIMIT), hanging.log()
    assert time.monotonic() - start < LIMIT


@pytest.mark.parametrize("way", [w + "-lazy" for w in WAYS])
def test_lazy_unmount_with_reads_in_flight(hanging, readers, way):
    skip_if_not_allowed(way)
    start = time.monotonic()
    done = subprocess.run(unmount_command(way, hanging), capture_output=True,
                          text=True, timeout=LIMIT, check=False,
                          env=harness.environment(hanging.home))
    assert done.returncode == 0, done
    assert unmounted(hanging)
    assert time.monotonic() - start < LIMIT
    start = time.monotonic()
    readers.kill()
    assert readers.ended(LIMIT)
    assert harness.wait_until(lambda: gone(hanging), LIMIT), hanging.log()
    assert time.monotonic() - start < LIMIT


def test_sigkill_ends_readers(hanging, readers):
    start = time.monotonic()
    readers.kill()
    assert readers.ended(2)
    print(f"killed readers were gone after {time.monotonic() - start:.2f} s")
    assert all(p.returncode == -signal.SIGKILL for p in readers.processes)
    # And the mount goes on.
    assert (hanging.path / "repo" / "config.json").stat().st_size > 0
    assert hanging.status()["pid"] == hanging.pid


def test_sigint_ends_readers(hanging, readers):
    """One that does not handle it dies; a handler runs once the read returns,
    which it does at once where the page cache is not in between. (Linux waits
    for a page until a fatal signal.)"""
    whole = hanging.path / "repo" / "model.safetensors"
    plain = readers.start("pread-default", whole, 40 << 20)
    mapped = readers.start("mmap-default", whole, 44 << 20)
    direct = readers.start("direct", whole, 48 << 20)
    assert harness.wait_until(
        lambda: all(is_waiting(p.pid) for p in (plain, mapped, direct)))
    for process in (plain, mapped, direct):
        process.send_signal(signal.SIGINT)
    for process in (plain, mapped):
        assert process.wait(2) == -signal.SIGINT
    direct.wait(2)
    assert direct.stdout.read() == "interrupted\n"


def test_reads_go_on_when_the_origin_does(hub, hanging, readers):
    hub.control("clear_faults")
    hub.control("release_hangs")
    assert readers.ended(30)
    said = sorted(p.stdout.read() for p in readers.processes)
    assert said == ["got 10\n"] * 4 + ["got 4096\n"] * 4


def test_other_files_are_served_while_reads_hang(hub, hanging):
    """Many more hang than there are threads; metadata and cached files go on."""
    config = hanging.path / "repo" / "config.json"
    start = time.monotonic()
    assert b"generated" in config.read_bytes()
    print(f"config.json: {time.monotonic() - start:.2f} s")
    names = os.listdir(hanging.path / "tensors" / "npy")
    assert len(names) == 64
    for name in names:
        os.stat(hanging.path / "tensors" / "npy" / name)
    assert time.monotonic() - start < LIMIT


# --- crashes ---

def test_crashed_mount_is_replaced(hub, mount):
    hub.commit("org/model", generate=MODEL + ",hashed=0")
    first = mount("org/model", hub)
    first.kill()
    with pytest.raises(OSError) as broken:
        os.listdir(first.path)
    # Cut off while it asked, or found nobody there.
    assert broken.value.errno in (errno.ECONNABORTED, errno.ENOTCONN)
    second = mount("org/model", hub)
    assert second.pid != first.pid
    assert len(os.listdir(second.path / "tensors" / "raw")) == 64
    lines = [line for line in open("/proc/self/mounts", encoding="utf-8")
             if line.split()[1] == str(second.path)]
    assert len(lines) == 1, lines
    second.unmount()


def test_crashed_mount_is_replaced_while_readers_hang(hanging, readers, hub,
                                                      mount):
    hanging.kill()
    # Their requests end with the daemon.
    assert readers.ended(LIMIT)
    hub.control("clear_faults")
    hub.control("release_hangs")
    second = mount("org/model", hub)
    raw = second.file(second.tensors()[5], "raw").read_bytes()
    assert len(raw) == 1 << 20


def test_crashed_mount_can_be_unmounted(hub, mount):
    hub.commit("org/model", generate=MODEL + ",hashed=0")
    mounted = mount("org/model", hub)
    mounted.kill()
    harness.run("umount", mounted.path, "--cache-dir", mounted.cache,
                home=mounted.home)
    assert unmounted(mounted)


def test_a_running_mount_is_not_replaced(hub, mount, tmp_path):
    hub.commit("org/model", generate=MODEL + ",hashed=0")
    mounted = mount("org/model", hub)
    refused = harness.run("mount", "org/model", mounted.path, "--endpoint",
                          hub.url, "--cache-dir", mounted.cache,
                          home=mounted.home, check=False)
    assert refused.returncode == 1, refused
    assert str(mounted.path) in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert harness.alive(mounted.pid)
    assert len(os.listdir(mounted.path / "tensors" / "raw")) == 64


# --- the rest of a mount's life ---

def test_status_lists_it(hub, mount):
    hub.commit("org/model", generate=MODEL + ",hashed=0")
    mounted = mount("org/model", hub)
    assert str(mounted.path) in mounted.output.stdout + mounted.output.stderr
    assert str(mounted.log_file) in (
        mounted.output.stdout + mounted.output.stderr)
    listed = harness.run("status", "--cache-dir", mounted.cache,
                         home=mounted.home).stdout
    assert str(mounted.path) in listed and str(mounted.pid) in listed
    one = json.loads(harness.run("status", mounted.path, "--json",
                                 "--cache-dir", mounted.cache,
                                 home=mounted.home).stdout)
    assert one["pid"] == mounted.pid and one["repo"] == "org/model"
    mounted.unmount()
    # Mounts of other cache folders are listed, too: of tests beside this one.
    listed = json.loads(harness.run("status", "--json", "--cache-dir",
                                    mounted.cache, home=mounted.home).stdout)
    assert str(mounted.path) not in [each["mountpoint"] for each in listed]
    assert [each for each in listed if each["state"] != "unknown"] == []


@pytest.mark.parametrize("name, code", [("SIGTERM", 0), ("SIGINT", 0)])
def test_foreground(hub, tmp_path, name, code):
    hub.commit("org/model", generate=MODEL + ",hashed=0")
    path = tmp_path / "mnt"
    path.mkdir()
    process = subprocess.Popen(
        [harness.WEIGHTFS, "mount", "--foreground", "org/model", path,
         "--endpoint", hub.url, "--cache-dir", tmp_path / "cache"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, env=harness.environment(tmp_path))
    try:
        assert harness.wait_until(
            lambda: harness.mount_type(path) == "fuse.weightfs")
        assert len(os.listdir(path / "tensors" / "raw")) == 64
        process.send_signal(getattr(signal, name))
        assert process.wait(LIMIT) == code
        assert harness.mount_type(path) is None
        assert b"org/model" in process.stderr.read()
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
        subprocess.run(["fusermount3", "-u", "-z", path], check=False,
                       capture_output=True)


def test_mount_fails_in_one_line_when_the_hub_is_down(hub, tmp_path):
    hub.commit("org/model", generate=MODEL + ",hashed=0")
    hub.stop()
    path = tmp_path / "mnt"
    path.mkdir()
    start = time.monotonic()
    refused = harness.run("mount", "org/model", path, "--endpoint", hub.url,
                          "--cache-dir", tmp_path / "cache",
                          "--metadata-timeout", "2s", home=tmp_path,
                          check=False)
    assert refused.returncode == 5, refused
    assert time.monotonic() - start < 10
    assert harness.mount_type(path) is None
    assert os.listdir(path) == []


def test_many_readers_all_end_at_their_deadline(hub, mount):
    """The kernel holds back read-ahead past a number of requests; what it holds
    back waits without a deadline."""
    hub.commit("org/model", generate="tensors=512,tensor_bytes=2097152,hashed=0")
    mounted = mount("org/model", hub, options=("--read-timeout", "4s"))
    mounted.tensors()
    hub.fault("hang", number=0, listener="cdn")
    whole = mounted.path / "repo" / "model.safetensors"

    def read(number):
        with open(whole, "rb", buffering=0) as file:
            start = time.monotonic()
            with pytest.raises(OSError):
                os.pread(file.fileno(), 1 << 20, (10 + 12 * number) << 20)
            return time.monotonic() - start

    with concurrent.futures.ThreadPoolExecutor(80) as pool:
        seconds = list(pool.map(read, range(80)))
    assert max(seconds) < 2 * 4 - 0.5, max(seconds)


def test_sigkill_ends_look_ups_beside_others(hub, mount, readers):
    """In one folder, while the first of them waits for the index."""
    hub.commit("org/model", generate=MODEL + ",hashed=0")
    hub.fault("hang", number=0, listener="cdn")
    mounted = mount("org/model", hub)
    tensors = mounted.path / "tensors"
    processes = [readers.start("stat", tensors / name, 0)
                 for name in ("raw/x", "raw/y", "raw/z")]
    assert harness.wait_until(
        lambda: all(is_waiting(p.pid) for p in processes))
    assert not harness.wait_until(
        lambda: any(p.poll() is not None for p in processes), 0.5)
    for process in processes[1:]:
        process.kill()
    assert harness.wait_until(
        lambda: all(p.poll() is not None for p in processes[1:]), LIMIT)


@pytest.mark.parametrize("status", [400, 451])
def test_an_answer_that_no_retry_mends_is_eio(hub, mount, status):
    hub.commit("org/model", generate=MODEL + ",hashed=0")
    mounted = mount("org/model", hub)
    path = mounted.file(mounted.tensors()[20], "raw")
    hub.fault("status", number=status, listener="cdn")
    with open(path, "rb") as file, pytest.raises(OSError) as refused:
        file.read()
    assert refused.value.errno == errno.EIO
    assert f"HTTP {status}" in mounted.log()


def test_a_limit_of_file_sizes_is_as_a_full_disk(hub, mount):
    hub.commit("org/model", generate=MODEL + ",hashed=0")
    mounted = mount("org/model", hub)
    tensors = mounted.tensors()
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.prlimit(mounted.pid, resource.RLIMIT_FSIZE, (4096, hard))
    for tensor in tensors[:4]:
        with open(mounted.file(tensor, "raw"), "rb") as file:
            assert file.read() == harness.pattern(
                9, tensor["offset"] - tensors[0]["offset"], 1 << 20)
    assert harness.alive(mounted.pid)


def test_no_descriptors_or_threads_leak(hub, mount):
    hub.commit("org/model", generate=MODEL)
    mounted = mount("org/model", hub)

    def counts():
        return (mounted.open_files(),
                len(os.listdir(f"/proc/{mounted.pid}/task")))

    def round_of_reads():
        for tensor in mounted.tensors():
            for form in ("raw", "npy", "pt", "safetensors"):
                with open(mounted.file(tensor, form), "rb") as file:
                    file.read(100)

    round_of_reads()
    first = counts()
    for _ in range(5):
        round_of_reads()
    last = counts()
    assert last[0] <= first[0] + 4 and last[1] <= first[1] + 2, (first, last)
