# ctest: env=client as=both labels=mount timeout=600
"""Files that the kernel reads by itself: which, and that their bytes stay right
whatever happens to the cache, the handles and the daemon."""

import ctypes
import mmap
import os
import random
import threading
import time

import pytest

import harness

MIB = 1 << 20
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int,
                      ctypes.c_int, ctypes.c_int, ctypes.c_long]
LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class Map:
    """A mapping that holds no descriptor; Python's own keeps a duplicate."""

    def __init__(self, path):
        fd = os.open(path, os.O_RDONLY)
        self.size = os.fstat(fd).st_size
        self.address = LIBC.mmap(None, self.size, mmap.PROT_READ,
                                 mmap.MAP_SHARED, fd, 0)
        os.close(fd)
        assert self.address != ctypes.c_void_p(-1).value

    def read(self):
        return ctypes.string_at(self.address, self.size)

    def close(self):
        assert LIBC.munmap(self.address, self.size) == 0


def make_repo(hub, tmp_path, sizes):
    folder = tmp_path / "repo"
    folder.mkdir()
    for number, (name, size) in enumerate(sizes.items()):
        (folder / name).write_bytes(harness.pattern(number, 0, size))
    hub.commit("org/m", folder)
    return folder


def passthrough(mounted):
    return mounted.status()["passthrough"]


def need_passthrough(mounted):
    state = passthrough(mounted)
    if not state["on"]:
        pytest.skip(f"passthrough is off: {state['why']}")


def opens_through(mounted, path):
    """Whether an open of it now passes through."""
    before = passthrough(mounted)["opens"]
    os.close(os.open(path, os.O_RDONLY))
    return passthrough(mounted)["opens"] > before


def fetch_and_seal(mounted, source, name):
    path = mounted.path / "repo" / name
    assert path.read_bytes() == (source / name).read_bytes()
    assert harness.wait_until(lambda: opens_through(mounted, path), 60), name
    return path


def cached(path):
    return float(os.getxattr(path, "user.weightfs.cached"))


def test_it_is_on_for_root_and_off_for_others(hub, mount, tmp_path):
    source = make_repo(hub, tmp_path, {"a.bin": 3 * MIB + 17})
    mounted = mount("org/m", hub)
    state = passthrough(mounted)
    path = mounted.path / "repo/a.bin"
    if os.geteuid() == 0:
        need_passthrough(mounted)
        assert "passthrough=on" in mounted.log()
        assert state["why"] == ""
        fetch_and_seal(mounted, source, "a.bin")
        return
    assert not state["on"] and state["why"]
    assert f"passthrough=off: {state['why']}" in mounted.log()
    for _ in range(3):
        assert path.read_bytes() == (source / "a.bin").read_bytes()
    assert passthrough(mounted)["opens"] == 0
    assert mounted.status()["cache"]["sealed_files"] == 0


def test_reads_do_not_reach_the_daemon(hub, mount, tmp_path):
    source = make_repo(hub, tmp_path, {"a.bin": 70 * MIB + 17})
    mounted = mount("org/m", hub)
    need_passthrough(mounted)
    path = fetch_and_seal(mounted, source, "a.bin")
    right = (source / "a.bin").read_bytes()
    before = mounted.status()["requests"]["reads"]
    assert before > 0
    mapped = Map(path)
    assert mapped.read() == right
    mapped.close()
    with open(path, "rb", buffering=0) as file:
        assert file.readall() == right
        randomness = random.Random(1)
        for _ in range(300):
            at = randomness.randrange(len(right))
            assert os.pread(file.fileno(), 5000, at) == right[at:at + 5000]
        assert os.pread(file.fileno(), 10, len(right)) == b""
    # As a disk has it: whole blocks.
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    with mmap.mmap(-1, MIB) as buffer:
        assert os.preadv(fd, [buffer], 5 * MIB) == MIB
        assert buffer[:] == right[5 * MIB:6 * MIB]
    os.close(fd)
    assert mounted.status()["requests"]["reads"] == before
    # Another mount need not hash it again.
    other = mount("org/m", hub, name="other")
    assert opens_through(other, other.path / "repo/a.bin")
    assert (other.path / "repo/a.bin").read_bytes() == right
    assert other.status()["requests"]["reads"] == 0


def test_a_mapping_is_never_evicted(hub, mount, tmp_path):
    """Neither after its file was closed, nor once the kernel was asked to
    forget it; and when it goes, its bytes may go."""
    source = make_repo(hub, tmp_path, {
        "a.bin": 24 * MIB, "b.bin": 24 * MIB, "c.bin": 24 * MIB})
    right = (source / "a.bin").read_bytes()
    mounted = mount("org/m", hub, options=("--cache-size", "40M"))
    need_passthrough(mounted)
    path = fetch_and_seal(mounted, source, "a.bin")
    mapped = Map(path)
    end = time.monotonic() + 8  # it was idle, and the kernel was told
    while time.monotonic() < end:
        for name in ("b.bin", "c.bin"):
            other = mounted.path / "repo" / name
            assert other.read_bytes() == (source / name).read_bytes()
        assert mapped.read() == right
    assert cached(path) == 1
    assert passthrough(mounted)["files"] == 1
    mapped.close()
    # By the kernel's forgetting, without a limit of its own.
    assert harness.wait_until(lambda: passthrough(mounted)["files"] == 0, 30)

    def evicted():
        for name in ("b.bin", "c.bin"):
            other = mounted.path / "repo" / name
            assert other.read_bytes() == (source / name).read_bytes()
            with open(other, "rb", buffering=0) as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return cached(path) < 1

    assert harness.wait_until(evicted, 60)
    assert path.read_bytes() == right


def test_what_nobody_uses_is_not_pinned(hub, mount, tmp_path):
    source = make_repo(hub, tmp_path, {"a.bin": 2 * MIB, "b.bin": 2 * MIB})
    mounted = mount("org/m", hub)
    need_passthrough(mounted)
    for name in ("a.bin", "b.bin"):
        fetch_and_seal(mounted, source, name)
    assert harness.wait_until(lambda: passthrough(mounted)["files"] == 0, 30)
    # And is passed through again.
    for name in ("a.bin", "b.bin"):
        assert opens_through(mounted, mounted.path / "repo" / name)


def test_handles_of_both_kinds(hub, mount, tmp_path):
    """A file that is open cached is opened so by everybody, and by passthrough
    once all have closed it."""
    source = make_repo(hub, tmp_path, {"a.bin": 5 * MIB + 3})
    right = (source / "a.bin").read_bytes()
    mounted = mount("org/m", hub)
    need_passthrough(mounted)
    path = mounted.path / "repo/a.bin"
    with open(path, "rb", buffering=0) as first:
        assert first.readall() == right
        assert harness.wait_until(
            lambda: mounted.status()["cache"]["sealed_files"] == 1, 60)
        assert not opens_through(mounted, path)
        assert path.read_bytes() == right
        assert os.pread(first.fileno(), 100, MIB) == right[MIB:MIB + 100]
    assert harness.wait_until(lambda: opens_through(mounted, path), 10)
    mapped = Map(path)
    with open(path, "rb", buffering=0) as second:
        assert second.readall() == right
        assert path.read_bytes() == right
    assert mapped.read() == right
    mapped.close()


def test_opens_race_with_sealing(hub, mount, tmp_path):
    """No open fails, and no byte is wrong, while files change from one kind to
    the other under many readers and are evicted between."""
    sizes = {f"{i}.bin": MIB + 4096 * i + i for i in range(12)}
    source = make_repo(hub, tmp_path, sizes)
    right = {name: (source / name).read_bytes() for name in sizes}
    mounted = mount("org/m", hub, options=("--cache-size", "8M"))
    need_passthrough(mounted)
    failures = []
    end = time.monotonic() + 15

    def work(seed):
        randomness = random.Random(seed)
        try:
            while time.monotonic() < end and not failures:
                name = randomness.choice(sorted(sizes))
                path = mounted.path / "repo" / name
                if randomness.random() < 0.3:
                    mapped = Map(path)
                    assert mapped.read() == right[name], name
                    mapped.close()
                    continue
                fd = os.open(path, os.O_RDONLY)
                try:
                    at = randomness.randrange(sizes[name])
                    assert os.pread(fd, 70_000, at) == right[name][
                        at:at + 70_000], name
                finally:
                    os.close(fd)
        except BaseException as error:  # pylint: disable=broad-except
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    assert passthrough(mounted)["opens"] > 0


@pytest.mark.parametrize("how", ["kill", "unmount"])
def test_a_mapping_outlives_the_daemon(hub, mount, tmp_path, how):
    source = make_repo(hub, tmp_path, {
        "a.bin": 24 * MIB, "b.bin": 24 * MIB, "c.bin": 24 * MIB})
    right = (source / "a.bin").read_bytes()
    mounted = mount("org/m", hub)
    need_passthrough(mounted)
    path = fetch_and_seal(mounted, source, "a.bin")
    mapped = Map(path)
    if how == "kill":
        mounted.kill()
    else:
        harness.run("umount", mounted.path, "--cache-dir", mounted.cache,
                    home=mounted.home, check=False)
    # Another daemon would like to have the space.
    other = mount("org/m", hub, name="other",
                  options=("--cache-size", "40M"))
    for _ in range(2):
        for name in ("b.bin", "c.bin"):
            assert (other.path / "repo" / name).read_bytes() == (
                source / name).read_bytes()
        assert mapped.read() == right
    assert cached(other.path / "repo/a.bin") == 1
    mapped.close()
    assert (other.path / "repo/a.bin").read_bytes() == right


def test_a_strict_mount_passes_verified_files_through(hub, mount, tmp_path):
    source = make_repo(hub, tmp_path, {"a.bin": 3 * MIB})
    mounted = mount("org/m", hub, options=("--verify", "strict"))
    need_passthrough(mounted)
    path = fetch_and_seal(mounted, source, "a.bin")
    assert path.read_bytes() == (source / "a.bin").read_bytes()


def test_wrong_bytes_are_never_passed_through(hub, mount, tmp_path):
    source = make_repo(hub, tmp_path, {"a.bin": 3 * MIB})
    right = (source / "a.bin").read_bytes()
    fault = hub.fault("flip_bit", listener="cdn", contains="a.bin",
                      number=2 * MIB)
    mounted = mount("org/m", hub)
    need_passthrough(mounted)
    path = mounted.path / "repo/a.bin"
    assert path.read_bytes() != right
    assert harness.wait_until(
        lambda: mounted.status()["cache"]["wrong_files"] == 1, 30)
    assert not opens_through(mounted, path)
    assert mounted.status()["cache"]["sealed_files"] == 0
    hub.control("remove_fault", id=fault)
    assert harness.wait_until(lambda: path.read_bytes() == right, 10)
    fetch_and_seal(mounted, source, "a.bin")


def test_what_the_disk_got_wrong_is_opened_no_more(hub, mount, tmp_path):
    """Bytes that changed on the disk after they were sealed: who opened the
    file before reads the disk, as of any file; nobody opens it any more, and
    once all have closed it, it is fetched anew."""
    source = make_repo(hub, tmp_path, {"a.bin": 3 * MIB})
    right = (source / "a.bin").read_bytes()
    mounted = mount("org/m", hub)
    need_passthrough(mounted)
    path = fetch_and_seal(mounted, source, "a.bin")
    data = [found for found in mounted.cache.rglob("data")
            if found.stat().st_size == len(right)]
    assert len(data) == 1
    with open(path, "rb", buffering=0) as before:
        with open(data[0], "r+b") as file:
            file.seek(MIB)
            file.write(bytes([right[MIB] ^ 1]))
        found = harness.run("verify", "--cache", "--cache-dir", mounted.cache,
                            home=mounted.home, check=False)
        assert found.returncode == 6, found.stdout + found.stderr
        with pytest.raises(OSError) as failed:
            os.open(path, os.O_RDONLY)
        assert failed.value.errno == 5
        assert "was found wrong" in mounted.log()
        assert os.pread(before.fileno(), 10, 0) == right[:10]
    # RELEASE is on its way.
    assert harness.wait_until(
        lambda: right == _read_or_nothing(path), 10)


def _read_or_nothing(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""
