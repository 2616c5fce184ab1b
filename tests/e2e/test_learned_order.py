# ctest: env=client as=both labels=mount timeout=600
"""The order in which a mount's readers read, kept and followed: what crosses the
network, by the hub's log."""

import json
import random
import subprocess
import time

import pytest

import harness
from disk import Disk
from test_traffic import ranges, settle

MIB = 1 << 20
GRANULE = harness.GRANULE
PROBE = 256 << 10  # of a header
TENSOR = 2 * MIB
COUNT = 60
# One file, none of whose tensors begins in another's granule but the header's.
ORDERED = f"tensors={COUNT},tensor_bytes={TENSOR},dtype=F32,seed=7"
# What is asked for or on its way when a fetch is ended.
SLACK = 4 * MIB


def shuffled():
    numbers = list(range(COUNT))
    random.Random(3).shuffle(numbers)
    return numbers


def tensor_path(mounted, number):
    return mounted.file({"name": f"model.layers.{number}.weight"}, "raw")


def read_tensors(mounted, numbers):
    for number in numbers:
        assert tensor_path(mounted, number).read_bytes() == harness.pattern(
            7, number * TENSOR, TENSOR)


def learn(hub, warm, mount, numbers):
    """A mount whose reader reads so; then the cache is cold."""
    hub.commit("org/m", generate=ORDERED)
    mounted = mount("org/m", hub, name="learns")
    data = min(t["offset"] for t in mounted.tensors())
    read_tensors(mounted, numbers)
    mounted.unmount()
    record, = warm.cache.rglob("orders/*.json")
    assert record.stat().st_size < 8192
    assert harness.wait_until(
        lambda: warm.json("--evict")["kept"] == 0 and warm.cached()[0] == 0)
    assert record.exists()
    settle(hub)
    hub.control("clear_log")
    return data, record


def first_asked(hub, data):
    """Tensors in the order of the first request for a whole granule of each."""
    seen = []
    for first, last in ranges(hub.log(listener="cdn")):
        begin = max(first, data + 1)
        for number in range(max(begin - data, 0) // TENSOR,
                            (last - data) // TENSOR + 1):
            offset = data + number * TENSOR
            whole = min(last + 1, offset + TENSOR) - max(first, offset)
            if last >= PROBE and whole >= GRANULE and number not in seen:
                seen.append(number)
    return seen


def distance(asked, order):
    """How many places a tensor is from its own, on average: about 20 for orders
    that have nothing to do with each other. Requests that are under way at once
    come in any order, and neighbours that were read bring those behind them."""
    place = {number: i for i, number in enumerate(order)}
    return sum(abs(i - place[n]) for i, n in enumerate(asked)) / COUNT


def test_a_cold_mount_follows_the_learned_order(hub, warm, mount):
    order = shuffled()
    data, _ = learn(hub, warm, mount, order)
    hub.control("settings", latency_ms=20, bytes_per_second=4 * MIB)
    mounted = mount("org/m", hub)
    # Looking alone fetches headers alone.
    subprocess.run(["ls", "-lR", mounted.path], check=True,
                   stdout=subprocess.DEVNULL)
    (mounted.path / "repo/config.json").read_bytes()
    settle(hub)
    assert first_asked(hub, data) == []
    # Two tensors in order, and what comes next is fetched unasked.
    read_tensors(mounted, order[:2])
    settle(hub)
    ahead = first_asked(hub, data)
    assert 3 <= len(ahead) <= 8
    assert sorted(ahead) == sorted(order[:len(ahead)])
    # All of it: nothing twice, and the requests follow the record.
    read_tensors(mounted, order[2:])
    settle(hub)
    asked = first_asked(hub, data)
    assert len(asked) == COUNT
    assert distance(asked, order) <= 8 < distance(asked, range(COUNT))
    assert hub.weight_bytes() <= COUNT * TENSOR + SLACK


def test_who_leaves_the_order_fetches_what_he_reads(hub, warm, mount):
    order = shuffled()
    data, _ = learn(hub, warm, mount, order)
    mounted = mount("org/m", hub)
    mounted.tensors()
    settle(hub)
    # Never two that follow each other there, nor neighbours in the file.
    numbers = []
    for number in reversed(order):
        if all(abs(number - other) > 3 for other in numbers):
            numbers.append(number)
    assert len(numbers) > 8
    read_tensors(mounted, numbers)
    settle(hub)
    assert sorted(first_asked(hub, data)) == sorted(numbers)
    assert hub.weight_bytes() <= len(numbers) * (TENSOR + 2 * GRANULE) + PROBE


def test_one_tensor_fetches_no_other(hub, warm, mount):
    order = shuffled()
    data, _ = learn(hub, warm, mount, order)
    mounted = mount("org/m", hub)
    read_tensors(mounted, order[:1])
    settle(hub)
    assert first_asked(hub, data) == order[:1]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "large"])
def test_a_damaged_record_is_ignored(hub, warm, mount, damage):
    order = shuffled()
    data, record = learn(hub, warm, mount, order)
    text = bytearray(record.read_bytes())
    if damage == "flip":
        text[len(text) // 2] ^= 1
    elif damage == "cut":
        text = text[:-7]
    elif damage == "empty":
        text = b""
    else:
        text = b"[" * (1 << 20)
    record.write_bytes(text)
    assert warm.json("--check", code=5)["cached"] == 0
    mounted = mount("org/m", hub)
    read_tensors(mounted, order[:3])
    settle(hub)
    assert first_asked(hub, data) == order[:3]
    assert "order is ignored" in mounted.log()
    # What this mount learned takes its place.
    mounted.unmount()
    assert json.loads(record.read_text())["body"]["runs"]
    hub.control("clear_log")
    assert warm.json("--order", "learned")["order"] == "learned"


def test_warm_follows_the_learned_order(hub, warm, mount):
    order = shuffled()
    data, record = learn(hub, warm, mount, order)
    hub.control("settings", bytes_per_second=4 * MIB)
    done = warm("--order", "learned")
    assert "in the learned order" in done.stdout
    asked = first_asked(hub, data)
    assert distance(asked, order) <= 8 < distance(asked, range(COUNT))
    warm.json("--evict")
    hub.control("clear_log")
    assert warm.json("--order", "file")["order"] == "file"
    asked = first_asked(hub, data)
    assert distance(asked, range(COUNT)) <= 8 < distance(asked, order)
    # Without a record it says so.
    record.unlink()
    assert "none was learned yet" in (
        warm.json("--evict") and warm("--order", "learned").stdout)


def test_a_killed_mount_keeps_what_it_learned_before(hub, warm, mount):
    hub.commit("org/m", generate=ORDERED)
    mounted = mount("org/m", hub)
    mounted.tensors()
    read_tensors(mounted, [5, 3])
    # Kept now and then.
    assert harness.wait_until(
        lambda: list(warm.cache.rglob("orders/*.json")), 30)
    mounted.kill()
    record, = warm.cache.rglob("orders/*.json")
    runs = json.loads(record.read_text())["body"]["runs"]
    assert [run[2] for run in runs] == [TENSOR, TENSOR]
    assert runs[0][1] > runs[1][1]


def test_a_cache_whose_disk_hangs_learns_nothing(hub, mount, tmp_path):
    hub.commit("org/m", generate=ORDERED)
    disk = Disk(tmp_path)
    try:
        mounted = mount("org/m", hub, cache="disk/cache",
                        log_file=tmp_path / "mnt.log")
        read_tensors(mounted, [5, 3])
        disk.block("write", "open", "create")
        read_tensors(mounted, [9, 1])
        begin = time.monotonic()
        subprocess.run(["fusermount3", "-u", mounted.path], check=True)
        assert harness.wait_until(lambda: not harness.alive(mounted.pid), 5)
        assert time.monotonic() - begin < 5
    finally:
        disk.end()
