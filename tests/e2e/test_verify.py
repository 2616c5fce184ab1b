# ctest: env=client as=both labels=mount timeout=300
"""weightfs verify: what is cached, against its hashes."""

import json
import pathlib
import signal
import subprocess
import time

import pytest

import harness
from disk import Disk
from test_integrity import FILE, local_model, verified

MIB = 1 << 20


def verify(mounted, *arguments, endpoint=None, **more):
    return harness.run(
        "verify", *arguments, "--cache-dir", mounted.cache,
        *(("--endpoint", endpoint) if endpoint else ()), home=mounted.home,
        check=False, **more)


def states(done):
    """The lines: {path: (state, rest)}."""
    found = {}
    for line in done.stdout.splitlines()[:-1]:
        state, _, _, path, *rest = line.split(maxsplit=4)
        found[path] = (state, "".join(rest))
    return found


def data_files(cache, size):
    """The cache's `data` of objects of so many bytes that are in use."""
    return [path for path in pathlib.Path(cache).rglob("data")
            if path.stat().st_size == size and ".bad-" not in str(path)]


def flip_bit(path, offset):
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 4]))


@pytest.fixture(name="folder")
def _folder(tmp_path):
    return local_model(tmp_path)


@pytest.fixture(name="mounted")
def _mounted(hub, mount, folder):
    """A mount of it, all of it read."""
    hub.commit("org/m", folder)
    mounted = mount("org/m", hub)
    for name in (FILE, "config.json"):
        (mounted.path / "repo" / name).read_bytes()
        assert harness.wait_until(
            lambda n=name: verified(mounted.path / "repo" / n), 30)
    return mounted


def test_all_of_it_is_right(hub, mounted, folder):
    done = verify(mounted, "org/m", endpoint=hub.url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert states(done) == {FILE: ("ok", ""), "config.json": ("ok", "")}
    assert done.stdout.splitlines()[-1] == (
        "2 files: 2 ok, 0 wrong, 0 missing, 0 partial; 0 B not cached")
    assert done.stderr == ""
    record = json.loads(verify(mounted, "org/m", "--json",
                               endpoint=hub.url).stdout)
    size = (folder / FILE).stat().st_size
    assert record["repo"] == "org/m" and record["complete"] is True
    assert record["cache_folder"] == str(mounted.cache)
    assert record["ok"]["files"] == 2 and record["wrong"]["files"] == 0
    assert {"state": "ok", "path": FILE, "size": size, "cached": size}.items(
        ) <= record["files"][1].items()
    assert record["files"][1]["id"].startswith("sha256:")


def test_a_part_and_nothing(hub, mount, folder):
    hub.commit("org/m", folder)
    mounted = mount("org/m", hub)
    with open(mounted.path / "repo" / FILE, "rb") as file:
        file.seek(9 * MIB)
        file.read(1)
    # The header and what was read are written beside.
    assert harness.wait_until(lambda: states(
        verify(mounted, "org/m", endpoint=hub.url)).get(FILE, "")[0] ==
        "partial")
    done = verify(mounted, "org/m", endpoint=hub.url)
    assert done.returncode == 5
    assert states(done)["config.json"] == ("missing", "")
    assert "cached" in states(done)[FILE][1]
    # What is not cached is no fault of the cache's.
    assert verify(mounted, "--cache").returncode == 0
    record = json.loads(verify(mounted, "org/m", "--json",
                               endpoint=hub.url).stdout)
    size = (folder / FILE).stat().st_size
    assert 0 < record["files"][1]["cached"] < size
    assert record["absent_bytes"] == (
        size - record["files"][1]["cached"]
        + (folder / "config.json").stat().st_size)


@pytest.mark.parametrize("what", ["source", "cache"])
def test_a_flipped_bit_is_found_and_mended(hub, mounted, mount, folder, what):
    source = (folder / FILE).read_bytes()
    data, = data_files(mounted.cache, len(source))
    flip_bit(data, 7 * MIB + 3)
    done = (verify(mounted, "org/m", endpoint=hub.url) if what == "source"
            else verify(mounted, "--cache"))
    assert done.returncode == 6, done.stdout + done.stderr
    wrong = [line for line in done.stdout.splitlines()
             if line.startswith("wrong")]
    assert len(wrong) == 1 and "1 piece of 128 KiB" in wrong[0]
    assert "dropped" in wrong[0]
    # Beside the mount, and in a new one, whose pages nobody has.
    assert (mounted.path / "repo" / FILE).read_bytes() == source
    other = mount("org/m", hub, name="other")
    assert (other.path / "repo" / FILE).read_bytes() == source
    assert harness.wait_until(
        lambda: verify(mounted, "org/m", endpoint=hub.url).returncode == 0, 30)
    assert verify(mounted, "--cache").returncode == 0
    assert hub.weight_bytes() < len(source) + MIB


def test_the_cache_without_a_network(hub, mounted):
    hub.stop()
    mounted.unmount()
    done = verify(mounted, "--cache", HTTP_PROXY="http://127.0.0.1:1")
    assert done.returncode == 0, done.stdout + done.stderr
    found = states(done)
    assert sorted(path.split("/")[0] for path in found) == ["git", "sha256"]
    assert {state for state, _ in found.values()} == {"ok"}
    # The listing that was kept is enough for a source, too.
    assert verify(mounted, "org/m", "--offline",
                  endpoint=hub.url).returncode == 0
    record = json.loads(verify(mounted, "--cache", "--json").stdout)
    assert record["ok"]["files"] == 2 and len(record["files"]) == 2


def test_beside_readers(hub, mounted, folder):
    """A mount that reads, and is limited, sees no difference."""
    source = (folder / FILE).read_bytes()
    reader = subprocess.Popen(
        ["sh", "-c", f"while cat '{mounted.path}/repo/{FILE}' | cmp - "
         f"'{folder / FILE}'; do :; done; echo differs"],
        stdout=subprocess.PIPE, text=True)
    try:
        for _ in range(5):
            assert verify(mounted, "org/m", endpoint=hub.url).returncode == 0
        assert reader.poll() is None
    finally:
        reader.kill()
        reader.wait()
        reader.stdout.close()
    assert hub.weight_bytes() < len(source) + MIB


def test_what_cannot_be_verified(hub, tmp_path, folder):
    def fails(*arguments):
        done = harness.run("verify", *arguments, "--endpoint", hub.url,
                           home=tmp_path, check=False)
        return done.returncode, done.stderr

    code, text = fails(folder)
    assert code == 7 and str(folder) in text and "no list of hashes" in text
    code, text = fails()
    assert code == 2 and "SOURCE, or --cache" in text
    code, text = fails("org/m", "--cache")
    assert code == 2 and "SOURCE, or --cache" in text
    code, text = fails("org/absent")
    assert code == 3
    code, text = fails("--cache", "--cache-dir", tmp_path / "absent")
    assert code == 3 and "there is no cache folder" in text
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("what", ["source", "cache"])
def test_a_disk_that_hangs(hub, mount, folder, tmp_path, what):
    hub.commit("org/m", folder)
    disk = Disk(tmp_path)
    try:
        mounted = mount("org/m", hub, cache="disk/cache",
                        log_file=tmp_path / "mnt.log")
        (mounted.path / "repo" / FILE).read_bytes()
        assert harness.wait_until(
            lambda: verified(mounted.path / "repo" / FILE), 60)
        mounted.unmount()
        disk.block("read")
        arguments = ("org/m",) if what == "source" else ("--cache",)
        start = time.monotonic()
        done = verify(mounted, *arguments, endpoint=hub.url, timeout=60)
        assert time.monotonic() - start < 30
        assert done.returncode == 1, done.stdout
        assert "does not answer" in done.stderr
    finally:
        disk.end()


def test_sigint_ends_it_at_once(hub, mount, folder, tmp_path):
    hub.commit("org/m", folder)
    disk = Disk(tmp_path)
    try:
        mounted = mount("org/m", hub, cache="disk/cache",
                        log_file=tmp_path / "mnt.log")
        (mounted.path / "repo" / FILE).read_bytes()
        mounted.unmount()
        disk.block("read")
        process = subprocess.Popen(
            [harness.WEIGHTFS, "verify", "--cache", "--cache-dir",
             mounted.cache], env=harness.environment(mounted.home),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        # The work is in a child, in case that cannot end.
        own = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")

        def checking():
            return [child for child in own.read_text().split()
                    if "wfs-check" in {
                        (task / "comm").read_text().strip() for task in
                        pathlib.Path(f"/proc/{child}/task").iterdir()}]

        assert harness.wait_until(checking)
        child = int(checking()[0])
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == -signal.SIGINT
        disk.release()
        assert harness.wait_until(lambda: not harness.alive(child), 5)
        process.communicate()
    finally:
        disk.end()
