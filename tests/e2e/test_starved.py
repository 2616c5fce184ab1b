# ctest: env=client as=both labels=mount timeout=600
"""A daemon or a hub that is stopped, signalled, or has too little of descriptors,
memory or time: readers get the right bytes or one error, and the right bytes
after that."""

import concurrent.futures
import contextlib
import errno
import mmap
import os
import pathlib
import resource
import signal
import threading
import time

import pytest

import harness
from harness import in_time, pread

LIMIT = 5.0
TIME_JUMP = os.environ.get("WEIGHTFS_TIME_JUMP",
                           "build/gcc/tests/support/libweightfs_time_jump.so")

# How long things are stopped: longer than the kernel's and TCP's patience needs
# to be tried is for `tools/test --all`.
STOP = 30 if harness.ALL else 4


@pytest.mark.parametrize("who", ["daemon", "hub"])
def test_a_stop_of_the_daemon_or_the_hub(hub, mount, model, who):
    mounted = mount("org/model", hub)
    path = mounted.path / "repo" / "model.safetensors"
    assert pread(path, 4096, 0) == model[:4096]
    pid = mounted.pid if who == "daemon" else hub.process.pid
    os.kill(pid, signal.SIGSTOP)
    got = {}

    def read(begin):
        got[begin] = pread(path, 1 << 20, begin)

    begins = [n << 20 for n in range(1, 40, 6)]
    threads = [threading.Thread(target=read, args=(b,), daemon=True)
               for b in begins]
    try:
        for thread in threads:
            thread.start()
        time.sleep(STOP)  # the stop itself is the condition
    finally:
        os.kill(pid, signal.SIGCONT)
    for thread in threads:
        thread.join(60)
    for begin in begins:
        assert got.get(begin) == model[begin:begin + (1 << 20)]
    assert path.read_bytes() == model


def test_signals_that_do_not_end_it(hub, mount, model):
    mounted = mount("org/model", hub)
    path = mounted.path / "repo" / "model.safetensors"
    begin = 1 << 20
    for name in ("SIGPIPE", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGWINCH",
                 "SIGCONT", "SIGALRM", "SIGURG", "SIGHUP", "SIGTTIN",
                 "SIGTTOU", "SIGTSTP", "SIGVTALRM", "SIGPROF", "SIGIO"):
        os.kill(mounted.pid, getattr(signal, name))
        assert in_time(lambda b=begin: pread(path, 4096, b),
                       LIMIT) == model[begin:begin + 4096], name
        begin += 1 << 20
    assert harness.alive(mounted.pid)
    mounted.unmount()


def test_descriptors_run_out(hub, mount, model, tmp_path):
    """Errors while there are none; afterwards the right bytes."""
    mounted = mount("org/model", hub)
    path = mounted.path / "repo" / "model.safetensors"
    assert pread(path, 4096, 0) == model[:4096]
    used = mounted.open_files()
    before = resource.prlimit(mounted.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(mounted.pid, resource.RLIMIT_NOFILE, (used, before[1]))
    outcomes = []

    def read(begin):
        try:
            outcomes.append(pread(path, 65536, begin) ==
                            model[begin:begin + 65536])
        except OSError as error:
            outcomes.append(error.errno)

    threads = [threading.Thread(target=read, args=(n << 20,), daemon=True)
               for n in range(2, 40)]
    for thread in threads:
        thread.start()
    # Right bytes or an error, of those that come back; no wrong ones.
    harness.wait_until(lambda: len(outcomes) == len(threads), 10)
    assert False not in outcomes
    resource.prlimit(mounted.pid, resource.RLIMIT_NOFILE, before)
    for thread in threads:
        thread.join(60)
    assert len(outcomes) == len(threads) and False not in outcomes
    assert path.read_bytes() == model
    assert harness.alive(mounted.pid)


def test_too_little_memory_for_the_address_space(hub, mount, model):
    """A limit on it, as cgroups are not everybody's to write: what cannot be had
    is an error, and later there are the right bytes."""
    mounted = mount("org/model", hub)
    path = mounted.path / "repo" / "model.safetensors"
    assert pread(path, 4096, 0) == model[:4096]
    pages = int(pathlib.Path(f"/proc/{mounted.pid}/statm").read_text(
        encoding="ascii").split()[0])
    before = resource.prlimit(mounted.pid, resource.RLIMIT_AS)
    resource.prlimit(mounted.pid, resource.RLIMIT_AS,
                     (pages * 4096 + (24 << 20), before[1]))
    for begin in range(1 << 20, 40 << 20, 3 << 20):
        try:
            assert pread(path, 1 << 20, begin) == model[
                begin:begin + (1 << 20)]
        except OSError as error:
            assert error.errno in (errno.EIO, errno.ENOMEM, errno.ENOTCONN)
    assert harness.alive(mounted.pid), mounted.log()
    resource.prlimit(mounted.pid, resource.RLIMIT_AS, before)
    assert path.read_bytes() == model


@contextlib.contextmanager
def memory_cgroup(limit):
    """A group whose members have so much memory, of either version; None where
    this user may make none."""
    ways = (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            ("/sys/fs/cgroup", "memory.max"))
    for parent, name in ways:
        group = pathlib.Path(parent, f"weightfs-test-{os.getpid()}")
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            try:
                (group / name).write_text(str(limit), encoding="ascii")
            except OSError:
                continue
            yield group
            return
        finally:
            assert harness.wait_until(
                lambda g=group: not (g / "cgroup.procs").read_text())
            group.rmdir()
    yield None


@pytest.mark.skipif(bool(harness.SANITIZED),
                    reason="a sanitizer takes memory of its own")
def test_a_memory_limit_of_its_cgroup(hub, mount):
    """Of less than the model, whose pages in the cache's files count."""
    hub.commit("org/large", generate="tensors=64,tensor_bytes=8388608,hashed=0")
    limit = 320 << 20
    with memory_cgroup(limit) as group:
        if group is None:
            pytest.skip("this user may make no memory cgroup")
        mounted = mount("org/large", hub)
        path = mounted.path / "repo" / "model.safetensors"
        (group / "cgroup.procs").write_text(str(mounted.pid), encoding="ascii")
        reference = mount("org/large", hub, name="reference",
                          cache="reference-cache")
        same = reference.path / "repo" / "model.safetensors"
        size, part = path.stat().st_size, 16 << 20

        def read(begin):
            return pread(path, part, begin) == pread(same, part, begin)

        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            assert all(pool.map(read, range(0, size, part))), mounted.log()
        assert str(mounted.pid) in (group / "cgroup.procs").read_text().split()
        assert harness.alive(mounted.pid)
        most = [int((group / name).read_text()) for name in
                ("memory.max_usage_in_bytes", "memory.peak")
                if (group / name).exists()]
        assert not most or most[0] > 0.9 * limit, most
        mounted.unmount()


@pytest.mark.skipif(bool(harness.SANITIZED),
                    reason="the sanitizer must be the first library")
def test_the_wall_clock_jumps(hub, mount, model, tmp_path):
    jump = tmp_path / "jump"
    jump.write_text("0", encoding="ascii")
    mounted = mount("org/model", hub, LD_PRELOAD=os.path.abspath(TIME_JUMP),
                    TIME_JUMP=str(jump))
    path = mounted.path / "repo" / "model.safetensors"
    begin = 0
    for years in (0, 20, -20, 5, 0):
        (tmp_path / "new").write_text(str(years * 31557600), encoding="ascii")
        (tmp_path / "new").rename(jump)
        for _ in range(4):
            assert in_time(lambda b=begin: pread(path, 1 << 20, b),
                           LIMIT) == model[begin:begin + (1 << 20)], years
            begin += 2 << 20
        assert in_time(mounted.status, LIMIT)["pid"] == mounted.pid
    jump.write_text(str(20 * 31557600), encoding="ascii")
    mounted.unmount()
    # The clock did jump: the log's lines have the years.
    years = {int(line[:4]) for line in mounted.log().splitlines()}
    assert max(years) - min(years) >= 19, mounted.log()


def test_readers_fork(hub, mount, model):
    """Children read by an inherited descriptor and mapping, and outlive it."""
    mounted = mount("org/model", hub)
    path = mounted.path / "repo" / "model.safetensors"
    with open(path, "rb", buffering=0) as file, mmap.mmap(
            file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ) as view:
        children = []
        for number in range(16):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    begin = (number * 3 + 1) << 20
                    half = 1 << 19
                    if (os.pread(file.fileno(), half, begin) == model[
                            begin:begin + half]
                            and view[begin + half:begin + 2 * half] == model[
                                begin + half:begin + 2 * half]):
                        code = 0
                finally:
                    os._exit(code)
            children.append(child)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    mounted.unmount()
