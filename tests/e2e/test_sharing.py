# ctest: env=client as=both labels=mount timeout=300 sanitizers=yes
"""Two mounts on one cache folder: what one fetches the other waits for."""

import os
import signal
import threading
import time

import pytest

import harness

MIB = 1 << 20
FILE = "model.safetensors"
SIZE = 32 * MIB
# What a mount may fetch in vain: what is in flight when it dies or stops, or
# when a reader goes; one request.
SLACK = 4 * MIB


class Reader(threading.Thread):
    """Reads a whole file from its start on, and keeps what it read."""

    def __init__(self, path, piece=MIB):
        super().__init__(daemon=True)
        self.path, self.piece = path, piece
        self.data = bytearray()
        self.error = None
        self.seconds = 0.0
        self.start()

    def run(self):
        begin = time.monotonic()
        try:
            with open(self.path, "rb", buffering=0) as file:
                while part := file.read(self.piece):
                    self.data += part
        except OSError as error:
            self.error = error
        self.seconds = time.monotonic() - begin

    def finish(self, timeout):
        self.join(timeout)
        assert not self.is_alive(), f"{len(self.data)} bytes in {timeout} s"
        assert self.error is None, self.error
        return bytes(self.data)


@pytest.fixture(name="pair")
def _pair(hub, mount, tmp_path):
    """The source's bytes, and two mounts of it with one cold cache. The network
    is slow enough for both to be busy at once."""
    folder = tmp_path / "model"
    folder.mkdir()
    harness.write_safetensors(
        folder / FILE, {f"layers.{i}.weight": (
            "U8", (SIZE // 8,), harness.pattern(i, 0, SIZE // 8))
            for i in range(8)})
    hub.commit("org/m", folder)
    hub.control("settings", latency_ms=20, bytes_per_second=4 * MIB)
    return (folder / FILE).read_bytes(), [
        mount("org/m", hub, name=name) for name in ("first", "second")]


def path_of(mounted):
    return mounted.path / "repo" / FILE


def test_two_mounts_fetch_a_cold_file_once(hub, pair):
    source, mounts = pair
    readers = [Reader(path_of(m)) for m in mounts]
    for reader in readers:
        assert reader.finish(120) == source
    assert hub.weight_bytes() <= len(source) + SLACK
    waits = [m.status()["fetcher"]["granules_from_others"] for m in mounts]
    assert sum(waits) > 0, "neither waited for the other"


def test_two_mounts_read_from_both_ends(hub, pair):
    source, mounts = pair

    def backwards(path, out):
        with open(path, "rb", buffering=0) as file:
            for at in reversed(range(0, len(source), MIB)):
                out[at] = os.pread(file.fileno(), MIB, at)

    parts = {}
    other = threading.Thread(target=backwards,
                             args=(path_of(mounts[1]), parts))
    other.start()
    assert Reader(path_of(mounts[0])).finish(120) == source
    other.join(120)
    assert not other.is_alive()
    assert b"".join(parts[at] for at in sorted(parts)) == source
    assert hub.weight_bytes() <= len(source) + SLACK


def test_a_stopped_mount_holds_up_no_other(hub, pair):
    source, (first, second) = pair
    stopped = Reader(path_of(first))
    assert harness.wait_until(lambda: len(stopped.data) >= 4 * MIB, 30)
    os.kill(first.pid, signal.SIGSTOP)
    try:
        waited = Reader(path_of(second))
        assert waited.finish(60) == source
        # Once for the claims of the stopped one, and not for each of them.
        assert waited.seconds < 30
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert stopped.finish(60) == source


def test_a_killed_mount_holds_up_no_other(hub, pair):
    source, (first, second) = pair
    killed = Reader(path_of(first))
    waiting = Reader(path_of(second))
    assert harness.wait_until(lambda: len(waiting.data) >= 4 * MIB, 30)
    before = hub.weight_bytes()
    first.kill()
    assert waiting.finish(60) == source
    # All that the killed one fetched and could not keep is fetched again.
    assert before < len(source)
    killed.join(30)
    assert killed.error is not None or killed.data == source
