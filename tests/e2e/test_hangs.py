# ctest: env=client as=both labels=mount timeout=600
"""Nothing hangs: not on a disk that stops answering, not on an origin that does.
Readers get the right bytes or one error, in time; and whatever
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
from disk import EVERY_WAY, Disk
from harness import MODEL, in_time, pread

LIMIT = 5.0


def state_of(pid):
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return "gone"
    return stat.rpartition(")")[2].split()[0]


@pytest.fixture(name="disk")
def _disk(tmp_path, mount):
    # After `mount`, so that the mounts end before the disk... is asked for.
    made = Disk(tmp_path)
    yield made
    made.end()


def drop_pages(path):
    """So that reads reach the daemon again."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)


# Each takes some seconds: CI has a part, as an ordinary user a smaller one.
WAYS = {
    way: operations for way, operations in EVERY_WAY.items()
    if harness.ALL or way == "all" or os.getuid() == 0}


@pytest.mark.parametrize("when", ["before"] if not harness.ALL else
                         ["before", "later"])
def test_commands_on_a_cache_disk_that_hangs(hub, disk, model, when, tmp_path):
    """`info`, `ls` and `cat` do without it, and end."""
    hub.commit("org/model", generate=MODEL)
    where = ("--endpoint", hub.url, "--cache-dir", disk.path / "cache")
    listed = harness.run("ls", "org/model", *where, "--json", home=tmp_path)
    tensor = json.loads(listed.stdout)["sets"][0]["tensors"][3]
    # Opened before it hangs, or not.
    disk.block(*(EVERY_WAY["all"] if when == "before" else
                 [*EVERY_WAY["read"], *EVERY_WAY["write"]]))
    for command in (("info", "org/model"), ("ls", "org/model"),
                    ("cat", "org/model", tensor["name"], "--format", "raw")):
        start = time.monotonic()
        done = harness.run(*command, *where, home=tmp_path, text=False)
        took = time.monotonic() - start
        print(f"{command[0]}: {took:.1f} s")
        assert done.stdout and took < 30, (command, took)
    assert done.stdout == model[tensor["offset"]:][:tensor["size"]]


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


@pytest.mark.parametrize("way", [w for w in WAYS if harness.ALL or w in
                                 ("all", "metadata")])
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


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_mount_whose_cache_disk_hangs(hub, mount, disk, model, when):
    """It hung before the mount, or as soon as the folder was looked at: the mount
    is made without a cache."""
    (disk.path / "cache").mkdir(mode=0o700)
    if when == "before":
        disk.block("all")
    else:
        disk.block("open", "create", "mkdir", "write", "rename")
    path = disk.path.parent / "mnt"
    path.mkdir()
    process = subprocess.Popen(
        [harness.WEIGHTFS, "mount", "--foreground", "org/model", path,
         "--endpoint", hub.url, "--cache-dir", disk.path / "cache"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, env=harness.environment(disk.path.parent))
    try:
        assert harness.wait_until(
            lambda: harness.mount_type(path) == "fuse.weightfs", 20)
        assert in_time((path / "repo" / "model.safetensors").read_bytes,
                       60) == model
        process.send_signal(signal.SIGTERM)
        assert harness.wait_until(
            lambda: harness.mount_type(path) is None
            and not harness.alive(process.pid), LIMIT)
    finally:
        process.kill()
        disk.release()
        process.wait(10)
        subprocess.run(["fusermount3", "-u", "-z", path], check=False,
                       capture_output=True)


# --- its own mount ---

@pytest.mark.parametrize("option", ["--cache-dir", "--log-file",
                                    "--token-file"])
@pytest.mark.parametrize("how", ["direct", "link", "below-link"])
def test_nothing_of_ours_lies_in_the_mount(hub, tmp_path, option, how):
    hub.commit("org/model", generate=MODEL)
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    (tmp_path / "link").symlink_to(mountpoint)
    place = {"direct": mountpoint / "x", "link": tmp_path / "link" / "x",
             "below-link": tmp_path / "link" / "a" / "b" / "x"}[how]
    more = () if option == "--cache-dir" else ("--cache-dir",
                                               tmp_path / "cache")
    if option == "--token-file":
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("hf_token", encoding="utf-8")
    refused = harness.run("mount", "org/model", mountpoint, option, place,
                          "--endpoint", hub.url, *more, home=tmp_path,
                          check=False)
    assert refused.returncode == 2, refused
    assert "lies in the mountpoint" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert harness.mount_type(mountpoint) is None


def test_a_bind_mount_of_the_mountpoint_is_found(hub, tmp_path):
    if os.getuid() != 0:
        pytest.skip("bind mounts are root's")
    mountpoint, other = tmp_path / "mnt", tmp_path / "other"
    mountpoint.mkdir()
    other.mkdir()
    subprocess.run(["mount", "--bind", mountpoint, other], check=True)
    try:
        refused = harness.run("mount", "org/model", mountpoint, "--cache-dir",
                              other / "cache", "--endpoint", hub.url,
                              home=tmp_path, check=False)
        assert refused.returncode == 2, refused
        assert "lies in the mountpoint" in refused.stderr
    finally:
        subprocess.run(["umount", other], check=True)


@pytest.mark.parametrize("how", ["direct", "link"])
def test_a_mountpoint_in_the_cache_folder_is_refused(hub, tmp_path, how):
    cache = tmp_path / "cache"
    mountpoint = cache / "objects" / "mnt"
    mountpoint.mkdir(parents=True)
    (tmp_path / "link").symlink_to(cache)
    given = cache if how == "direct" else tmp_path / "link"
    refused = harness.run("mount", "org/model", mountpoint, "--cache-dir",
                          given, "--endpoint", hub.url, home=tmp_path,
                          check=False)
    assert refused.returncode == 2, refused
    assert "lies in the cache folder" in refused.stderr


@pytest.mark.parametrize("how", ["inside", "around", "link"])
def test_a_local_source_and_the_mountpoint_are_apart(tmp_path, how):
    source = tmp_path / "model"
    source.mkdir()
    (source / "config.json").write_text("{}", encoding="utf-8")
    (source / "inner").mkdir()
    (tmp_path / "link").symlink_to(source / "inner")
    given, mountpoint = {
        "inside": (source, source / "inner"),
        "around": (source / "inner", source),
        "link": (source, tmp_path / "link")}[how]
    refused = harness.run("mount", given, mountpoint, "--cache-dir",
                          tmp_path / "cache", home=tmp_path, check=False)
    assert refused.returncode == 2, refused
    assert "lie in one another" in refused.stderr


# --- an origin that hangs, a daemon that does ---

READER = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
file = os.open(sys.argv[1], os.O_RDONLY)
print("reads", flush=True)
try:
    got = os.pread(file, 4096, int(sys.argv[2]))
    print("got", len(got), flush=True)
except OSError as error:
    print("error", error.errno, flush=True)
"""


@pytest.fixture(name="hanging")
def _hanging(hub, mount):
    """A mount whose origin does not answer, and readers of it."""
    hub.commit("org/model", generate=MODEL)
    mounted = mount("org/model", hub)
    mounted.tensors()
    fault = hub.fault("hang", number=1000, listener="cdn")
    path = mounted.path / "repo" / "model.safetensors"
    readers = [subprocess.Popen(
        [sys.executable, "-c", READER, str(path), str((4 + 5 * n) << 20)],
        stdout=subprocess.PIPE, text=True) for n in range(6)]
    for reader in readers:
        assert reader.stdout.readline() == "reads\n"
    assert harness.wait_until(
        lambda: hub.control("fault_hits", id=fault)["hits"] >= 3)
    yield mounted, readers
    for reader in readers:
        reader.kill()
        reader.wait()
        reader.stdout.close()


def in_kernel_for_ever(pids):
    """Those in uninterruptible sleep, each with its threads."""
    stuck = []
    for pid in pids:
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                if state_of(f"{pid}/task/{thread}") == "D":
                    stuck.append((pid, thread))
    return stuck


def force(mounted):
    start = time.monotonic()
    done = harness.run("umount", "--force", mounted.path, "--cache-dir",
                       mounted.cache, home=mounted.home, timeout=10)
    took = time.monotonic() - start
    print(f"umount --force: {took:.2f} s")
    assert took < LIMIT
    return done


@pytest.mark.parametrize("daemon", ["runs", "is-stopped"])
def test_umount_force(hanging, daemon):
    mounted, readers = hanging
    if daemon == "is-stopped":
        os.kill(mounted.pid, signal.SIGSTOP)
    force(mounted)
    assert harness.mount_type(mounted.path) is None
    assert not harness.alive(mounted.pid)
    # The readers hold their files open, and are told.
    for reader in readers:
        assert reader.stdout.readline().startswith("error")
        reader.wait(LIMIT)
    assert in_kernel_for_ever([r.pid for r in readers] + [mounted.pid]) == []


def test_umount_force_of_a_detached_mount(hanging):
    mounted, readers = hanging
    harness.run("umount", "--lazy", mounted.path, "--cache-dir", mounted.cache,
                home=mounted.home)
    assert harness.mount_type(mounted.path) is None
    assert harness.alive(mounted.pid)
    force(mounted)
    assert not harness.alive(mounted.pid)
    for reader in readers:
        reader.wait(LIMIT)


def test_umount_force_while_the_cache_disk_hangs(hub, mount, disk, model):
    mounted = mount("org/model", hub, cache="disk/cache", log_file=disk.log)
    path = mounted.path / "repo" / "model.safetensors"
    disk.block("all")
    assert in_time(lambda: pread(path, 4096, 9 << 20),
                   20) == model[9 << 20:(9 << 20) + 4096]
    # The list of mounts lies on that disk, too, so that the daemon is unknown.
    with open(path, "rb"):
        force(mounted)
    assert harness.mount_type(mounted.path) is None
    assert harness.wait_until(lambda: not harness.alive(mounted.pid), LIMIT)


def test_readers_of_a_hung_origin_end_in_no_time(hanging):
    mounted, readers = hanging
    readers[0].send_signal(signal.SIGINT)
    readers[1].kill()
    readers[2].terminate()
    for reader in readers[:3]:
        reader.wait(2)
    status = mounted.status()["requests"]
    assert status["waiting"] >= 3
    assert status["oldest_seconds"] > 0
    text = harness.run("status", mounted.path, "--cache-dir", mounted.cache,
                       home=mounted.home).stdout
    assert "oldest_seconds" in text
    os.kill(mounted.pid, signal.SIGTERM)
    assert harness.wait_until(
        lambda: harness.mount_type(mounted.path) is None
        and not harness.alive(mounted.pid), LIMIT)
    for reader in readers[3:]:
        reader.wait(LIMIT)
        # What was read ahead with it fails, and the kernel asks once more for
        # the page alone, perhaps after the unmount.
        assert reader.stdout.read() in [
            f"error {code}\n" for code in (errno.EIO, errno.ENOTCONN,
                                           errno.ECONNABORTED)]
    assert in_kernel_for_ever([r.pid for r in readers] + [mounted.pid]) == []


def test_an_abort_ends_the_daemon(hanging):
    """As root's `echo 1 > /sys/fs/fuse/connections/N/abort` does."""
    mounted, readers = hanging
    folder = "/sys/fs/fuse/connections"
    if os.getuid() == 0 and not os.listdir(folder):
        # In the mount namespace of the tests (tools/lib-private.sh).
        subprocess.run(["mount", "-t", "fusectl", "none", folder], check=False)
    control = f"{folder}/{os.minor(os.stat(mounted.path).st_dev)}"
    if not os.access(control + "/abort", os.W_OK):
        pytest.skip("the fusectl file system is not mounted here")
    pathlib.Path(control + "/abort").write_text("1\n", encoding="ascii")
    assert harness.wait_until(lambda: not harness.alive(mounted.pid), LIMIT)
    for reader in readers:
        reader.wait(LIMIT)
