# ctest: env=client as=both labels=mount timeout=600
"""weightfs warm: what crosses the network, by the hub's log, and what stays in the
cache."""

import contextlib
import fcntl
import os
import pathlib
import pty
import re
import signal
import struct
import subprocess
import threading
import time

import pytest

import harness
from disk import Disk
from test_integrity import FILE, disk_usage, local_model, verified
from test_traffic import ranges, settle
from warm import Warm

MIB = 1 << 20
GRANULE = harness.GRANULE
PROBE = 256 << 10  # of a header
MODEL = "tensors=30,shards=3,tensor_bytes=100000,dtype=F32,seed=5"
TENSOR = 2 * MIB
COUNT = 60
# One file, none of whose tensors begins in another's granule but the header's.
ORDERED = f"tensors={COUNT},tensor_bytes={TENSOR},dtype=F32,seed=7"
# What is asked for or on its way when a fetch is ended.
SLACK = 4 * MIB


def child_of(process):
    own = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
    children = own.read_text().split()
    assert len(children) == 1, children
    return int(children[0])


def pin(file):
    """As a reader does (cache/LAYOUT.md): a slab, and that it is open at all."""
    for start, length in ((0, 64 * MIB), (1 << 62, 1)):
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack(
            "hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, start, length, 0))


def size_of(folder):
    return sum(path.stat().st_size for path in folder.iterdir())


def weight_requests(hub):
    return [r for r in hub.log()
            if r["listener"] == "cdn" or "/resolve" in r["path"]]


# --- everything ---

def test_a_mount_after_it_asks_for_no_byte(hub, warm, mount, tmp_path):
    folder = local_model(tmp_path)
    hub.commit("org/m", folder)
    done = warm()
    size = size_of(folder)
    assert hub.weight_bytes() == (folder / FILE).stat().st_size
    assert "2 files cached" in done.stdout and " fetched in " in done.stdout
    assert "in file order (none was learned yet)" in done.stdout
    assert done.stderr == ""
    settle(hub)
    hub.control("clear_log")
    mounted = mount("org/m", hub)
    for name in (FILE, "config.json"):
        path = mounted.path / "repo" / name
        assert path.read_bytes() == (folder / name).read_bytes()
        # It waited for the hashes.
        assert verified(path)
    for tensor in mounted.tensors():
        mounted.file(tensor, "npy").read_bytes()
    settle(hub)
    assert weight_requests(hub) == []
    again = warm.json()
    assert again == again | {
        "repo": "org/m", "cache_folder": str(warm.cache), "order": "file",
        "files": 2, "bytes": size, "cached": size, "fetched": 0,
        "complete": True}
    assert "nothing was missing" in warm().stdout
    assert weight_requests(hub) == []


def test_shards_and_files_of_the_same_bytes(hub, warm):
    hub.commit("org/m", generate=MODEL)
    record = warm.json()
    assert record["complete"] and record["fetched"] == record["bytes"]
    done = harness.run("verify", "org/m", "--endpoint", hub.url, "--cache-dir",
                       warm.cache, home=warm.home)
    assert done.stdout.splitlines()[-1].startswith("5 files: 5 ok")


def test_check_fetches_nothing(hub, warm, tmp_path):
    folder = local_model(tmp_path)
    hub.commit("org/m", folder)
    size = size_of(folder)
    done = warm("--check", code=5)
    assert "0 B of" in done.stdout and "(0.0 %)" in done.stdout
    assert not list(warm.cache.rglob("data"))
    # Which tensors match is in a header that is not there.
    done = warm("--check", "--tensors", "layers.1.*", code=5)
    assert FILE in done.stderr and "header" in done.stderr
    assert weight_requests(hub) == []
    warm("--tensors", "layers.1.weight")
    settle(hub)
    hub.control("clear_log")
    warm("--check", "--tensors", "layers.1.weight")
    record = warm.json("--check", "--tensors", "layers.[12].weight", code=5)
    assert 0 < record["cached"] < record["bytes"] < size
    record = warm.json("--check", code=5)
    assert 0 < record["cached"] < record["bytes"] == size
    assert record["percent"] == int(1000 * record["cached"] / size) / 10
    assert record["complete"] is False
    assert weight_requests(hub) == []
    warm()
    assert warm.json("--check")["percent"] == 100.0
    assert warm("--check").stdout.rstrip().endswith("(100.0 %), of 2 files")


def test_only_matching_tensors_with_headers_and_small_files(hub, warm, mount):
    hub.commit("org/m", generate=ORDERED)
    warm("--tensors", "model.layers.7.*", "--tensors", "model.layers.[34]5.weight")
    asked = ranges(hub.log(listener="cdn"))
    # Apart, so that who reads them all is not taken to go on beyond them.
    wanted = [7, 35, 45]
    # The tensors as they lie there: a mount tells.
    mounted = mount("org/m", hub)
    offsets = {t["name"]: t["offset"] for t in mounted.tensors()}
    allowed = set(range(PROBE // GRANULE))
    for number in wanted:
        offset = offsets[f"model.layers.{number}.weight"]
        allowed |= set(range(offset // GRANULE,
                             (offset + TENSOR - 1) // GRANULE + 1))
    got = {g for first, last in asked
           for g in range(first // GRANULE, last // GRANULE + 1)}
    assert got == allowed
    assert sum(last - first + 1 for first, last in asked) == (
        len(allowed) * GRANULE)
    settle(hub)
    hub.control("clear_log")
    for number in wanted:
        tensor = {"name": f"model.layers.{number}.weight"}
        assert mounted.file(tensor, "raw").read_bytes() == harness.pattern(
            7, number * TENSOR, TENSOR)
    (mounted.path / "repo/config.json").read_bytes()
    settle(hub)
    assert weight_requests(hub) == []


def test_what_cannot_be_warmed(hub, warm, tmp_path):
    folder = local_model(tmp_path)
    hub.commit("org/m", folder)

    def fails(code, *arguments):
        done = harness.run("warm", *arguments, "--endpoint", hub.url,
                           "--cache-dir", warm.cache, home=tmp_path,
                           check=False)
        assert done.returncode == code, done.stderr
        assert len(done.stderr.splitlines()) == 1 and done.stdout == ""
        return done.stderr

    assert "read where it is" in fails(7, folder)
    fails(3, "org/absent")
    assert "`weightfs ls`" in fails(3, "org/m", "--tensors", "layer?.none")
    assert "not both" in fails(2, "org/m", "--check", "--evict")
    assert "learned and file" in fails(2, "org/m", "--order", "best")
    (tmp_path / "file").touch()
    text = harness.run("warm", "org/m", "--endpoint", hub.url, "--cache-dir",
                       tmp_path / "file", home=tmp_path, check=False)
    assert text.returncode == 1 and "without the cache" in text.stderr


def test_a_cache_that_is_too_small(hub, warm, tmp_path):
    folder = local_model(tmp_path)
    hub.commit("org/m", folder)
    done = warm("--cache-size", "8M", code=1)
    assert "do not fit" in done.stderr and "--cache-size 8.00 MiB" in done.stderr
    assert hub.weight_bytes() == 0
    warm("--cache-size", "8M", "--tensors", "layers.[0-3].weight")
    record = warm.json("--cache-size", "64M")
    assert record["complete"]


def test_a_cache_whose_room_others_use(hub, warm, tmp_path):
    """It says so, and ends; and goes on once there is room."""
    folder = local_model(tmp_path)
    hub.commit("org/m", folder)
    hub.commit("org/other", generate="tensors=20,tensor_bytes=2M,dtype=F32")
    limit = ("--cache-size", "48M")
    other = Warm(hub, tmp_path, repo="org/other")
    other()
    with contextlib.ExitStack() as pins:
        for data in warm.cache.rglob("data"):
            pin(pins.enter_context(open(data, "rb")))
        done = warm(*limit, code=1)
        assert "--cache-size" in done.stderr and "are cached" in done.stderr
        assert disk_usage(warm.cache) < 49 * MIB
    other("--evict")
    assert warm.json(*limit)["complete"]


# --- ends in the middle ---

def test_killed_in_the_middle_it_goes_on_there(hub, warm):
    hub.commit("org/m", generate=ORDERED)
    hub.control("settings", bytes_per_second=MIB)
    process = warm.start(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert harness.wait_until(lambda: hub.weight_bytes() > 30 * MIB, 60)
    os.kill(child_of(process), signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL
    process.communicate()
    hub.control("settings", bytes_per_second=0)
    settle(hub)
    cached, size = warm.cached()
    # What was on its way is lost, and of each connection no more.
    sent = hub.weight_bytes()
    assert 0 < cached <= sent < size
    assert sent - cached < 16 * (GRANULE + MIB)
    hub.control("clear_log")
    record = warm.json()
    assert record["complete"] and record["bytes"] == size
    # The weights: small files do not come from the CDN.
    assert record["fetched"] == size - cached
    assert warm("--check").returncode == 0


@pytest.mark.parametrize("to", ["parent", "group"])
def test_sigint_ends_it_and_what_came_stays(hub, warm, to):
    hub.commit("org/m", generate=ORDERED)
    hub.control("settings", bytes_per_second=MIB)
    process = warm.start(stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                         text=True, start_new_session=True)
    assert harness.wait_until(lambda: hub.weight_bytes() > 20 * MIB, 60)
    begin = time.monotonic()
    if to == "parent":
        os.kill(process.pid, signal.SIGINT)
    else:
        os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=20)
    assert time.monotonic() - begin < 5
    assert process.returncode == 128 + signal.SIGINT, errors
    assert output == ""
    said = re.fullmatch(r"weightfs: interrupted; ([\d.]+) MiB of [\d.]+ MiB "
                        r"are cached, and the next run goes on there\n", errors)
    assert said, errors
    cached, size = warm.cached()
    assert cached >= float(said[1]) * MIB - MIB
    assert 10 * MIB < cached < size
    hub.control("settings", bytes_per_second=0)
    assert warm.json()["fetched"] == size - cached


def test_a_hub_that_goes_away(hub, warm):
    hub.commit("org/m", generate=ORDERED)
    hub.control("settings", bytes_per_second=MIB)
    process = warm.start("--read-timeout", "3s", stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, text=True)
    assert harness.wait_until(lambda: hub.weight_bytes() > 8 * MIB, 60)
    hub.stop()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 5, errors
    assert "the next run goes on there" in errors


def test_a_wire_slower_than_the_timeout(hub, warm, tmp_path):
    """More is under way than comes in a read's time."""
    folder = local_model(tmp_path)
    hub.commit("org/m", folder)
    hub.control("settings", bytes_per_second=128 << 10)
    record = warm.json("--read-timeout", "3s")
    assert record["complete"] and record["seconds"] > 4


def test_a_disk_that_hangs(hub, tmp_path):
    folder = local_model(tmp_path)
    hub.commit("org/m", folder)
    disk = Disk(tmp_path)
    try:
        warm = Warm(hub, tmp_path, "disk/cache")
        warm()
        disk.block("open")
        begin = time.monotonic()
        done = warm("--check", code=1)
        assert time.monotonic() - begin < 30
        assert "does not answer" in done.stderr or "cannot be used" in (
            done.stderr)
    finally:
        disk.end()


# --- what it says ---

def terminal_output(process, terminal):
    text = b""
    with contextlib.suppress(OSError):  # closed
        while part := os.read(terminal, 4096):
            text += part
    process.wait()
    return text.decode()


def test_progress_is_true(hub, warm):
    hub.commit("org/m", generate=ORDERED)
    hub.control("settings", bytes_per_second=2 * MIB)
    ours, theirs = pty.openpty()
    process = warm.start(stdin=theirs, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    begin = time.monotonic()
    text = terminal_output(process, ours)
    took = time.monotonic() - begin
    assert process.returncode == 0, text
    process.stdout.close()
    os.close(ours)
    lines = re.findall(r"\r\x1b\[K([\d.]+) MiB of 120 MiB \(([\d.]+) %\)"
                       r"(?:, ([\d.]+) MiB/s, (\d+):(\d\d) left)?", text)
    assert len(lines) > 5, text
    done = [float(line[0]) for line in lines]
    assert done == sorted(done)
    for mib, percent, *_ in lines:
        assert abs(float(mib) / 120.0 * 100 - float(percent)) < 1.5
    # In the middle: what it said would be left was.
    rates = [(float(line[0]), float(line[2]),
              60 * int(line[3]) + int(line[4])) for line in lines if line[2]]
    assert rates, text
    now, rate, left = rates[len(rates) // 2]
    assert abs((120 - now) / rate - left) <= 1.5
    assert 120 / took / 3 < rate < 120 / took * 3
    # Nothing of it stays on the line.
    assert text.endswith("\r\x1b[K")


def test_nothing_but_the_result_elsewhere(hub, warm, tmp_path):
    hub.commit("org/m", local_model(tmp_path))
    done = warm("--order", "file")
    assert done.stderr == "" and "\r" not in done.stdout
    assert "in file order\n" in done.stdout


# --- beside mounts ---

def test_beside_a_mount_nothing_is_fetched_twice(hub, warm, mount):
    hub.commit("org/m", generate=ORDERED)
    mounted = mount("org/m", hub)
    mounted.tensors()
    settle(hub)
    hub.control("settings", latency_ms=20, bytes_per_second=2 * MIB)
    parts = []

    def read():
        with open(mounted.path / "repo" / FILE, "rb", buffering=0) as file:
            while part := file.read(MIB):
                parts.append(len(part))

    reader = threading.Thread(target=read)
    reader.start()
    record = warm.json()
    reader.join(120)
    assert not reader.is_alive()
    assert sum(parts) == (mounted.path / "repo" / FILE).stat().st_size
    assert record["complete"]
    assert record["fetched"] < record["bytes"]
    assert hub.weight_bytes() <= record["bytes"] + SLACK


@pytest.mark.parametrize("times", ["once", "always"])
def test_wrong_bytes(hub, warm, tmp_path, times):
    folder = local_model(tmp_path)
    hub.commit("org/m", folder)
    more = {"times": 1} if times == "once" else {}
    hub.fault("flip_bit", listener="cdn", contains=FILE, number=5 * MIB, **more)
    if times == "once":
        assert warm.json()["complete"]
        assert harness.run("verify", "org/m", "--endpoint", hub.url,
                           "--cache-dir", warm.cache,
                           home=warm.home).returncode == 0
        return
    done = warm(code=6)
    assert FILE in done.stderr and "twice" in done.stderr
    assert harness.run("verify", "--cache", "--cache-dir", warm.cache,
                       home=warm.home, check=False).returncode == 0


# --- dropping ---

def test_evict_drops_this_source_and_no_other(hub, warm, tmp_path):
    folder = local_model(tmp_path)
    hub.commit("org/m", folder)
    hub.commit("org/other", generate=MODEL)
    other = Warm(hub, tmp_path, repo="org/other")
    warm()
    other()
    full = disk_usage(warm.cache)
    size = size_of(folder)
    record = warm.json("--evict")
    assert size <= record["freed"] < size + MIB and record["kept"] == 0
    assert disk_usage(warm.cache) <= full - size
    assert warm.cached()[0] == 0
    assert other("--check").returncode == 0
    assert "0 B freed" in warm("--evict").stdout
    warm()


def test_evict_beside_a_mount(hub, warm, mount, tmp_path):
    folder = local_model(tmp_path)
    source = (folder / FILE).read_bytes()
    hub.commit("org/m", folder)
    mounted = mount("org/m", hub)
    path = mounted.path / "repo" / FILE
    assert path.read_bytes() == source
    assert harness.wait_until(lambda: verified(path), 30)
    before = hub.weight_bytes()
    assert harness.wait_until(
        lambda: warm.json("--evict")["kept"] == 0 and warm.cached()[0] == 0, 10)
    # The kernel's pages may answer; without them it is fetched again.
    assert path.read_bytes() == source
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert path.read_bytes() == source
    settle(hub)
    assert hub.weight_bytes() > before


def test_evict_leaves_what_is_in_use(hub, warm, tmp_path):
    folder = local_model(tmp_path)
    hub.commit("org/m", folder)
    warm()
    data, = [path for path in warm.cache.rglob("data")
             if path.stat().st_size == (folder / FILE).stat().st_size]
    with open(data, "rb") as file:
        pin(file)
        done = warm("--evict")
        assert re.search(r"; [\d.]+ MiB are in use, and stay\n", done.stdout)
        assert warm.cached()[0] == data.stat().st_size
    assert "in use" not in warm("--evict").stdout
    assert warm.cached()[0] == 0
