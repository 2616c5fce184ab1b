# ctest: env=client as=both labels=mount timeout=600
"""What crosses the network, and what does not: only the tensors that are read,
nothing twice, nothing when offline, and never the token."""

import json
import os
import pathlib
import re
import shutil
import time

import numpy
import pytest

import harness

SLACK = 256 << 10
TENSOR = 10 << 20
GIB = f"tensors=100,tensor_bytes={TENSOR},dtype=F32,seed=11"
TOKEN = "hf_SECRETsecretSECRET"


def ranges(requests):
    """[first, last] of each request, as asked."""
    found = []
    for request in requests:
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", request["range"])
        assert match, request
        found.append((int(match[1]), int(match[2])))
    return found


def settle(hub):
    """Until no request for weights comes or runs any more."""
    seen = -1
    while seen != len(hub.log(listener="cdn")):
        seen = len(hub.log(listener="cdn"))
        hub.control("wait", listener="cdn", count=seen + 1, timeout_ms=500)
    assert harness.wait_until(
        lambda: all(r["done"] for r in hub.log(listener="cdn")))


def read_all(folder):
    """{relative path: content} of every file below."""
    return {str(p.relative_to(folder)): p.read_bytes()
            for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("form", ["raw", "npy", "pt", "safetensors"])
@pytest.mark.parametrize("number", [0, 57, 99])
def test_one_tensor_of_a_1_gib_shard(hub, mount, form, number):
    hub.commit("org/big", generate=GIB + ",hashed=0")
    mounted = mount("org/big", hub)
    tensor = {t["name"]: t for t in mounted.tensors()}[
        f"model.layers.{number}.weight"]
    settle(hub)
    # The header was asked for in one request, of at most 256 KiB.
    header = ranges(hub.log(listener="cdn"))
    assert all(last < SLACK for _, last in header), header
    assert len(header) == 1
    hub.control("clear_log")

    content = mounted.file(tensor, form).read_bytes()
    wanted = harness.pattern(11, number * TENSOR, TENSOR)
    assert wanted in content
    settle(hub)
    assert hub.weight_bytes() <= TENSOR + SLACK
    # And nothing was asked for twice.
    asked = ranges(hub.log(listener="cdn"))
    assert sum(last - first + 1 for first, last in asked) <= TENSOR + SLACK


def test_first_page_of_a_tensor_fetches_no_more_than_it(hub, mount):
    """A sweep that touches a page of each of 10 tensors, by pread and mmap."""
    hub.commit("org/big", generate=GIB + ",hashed=0")
    mounted = mount("org/big", hub)
    tensors = mounted.tensors()
    settle(hub)
    hub.control("clear_log")
    for number in range(0, 100, 10):
        array = numpy.load(mounted.file(tensors[number], "npy"), mmap_mode="r")
        assert array[0].tobytes() == harness.pattern(
            11, int(tensors[number]["name"].split(".")[2]) * TENSOR, 4)
        del array
    settle(hub)
    assert hub.weight_bytes() <= 10 * (TENSOR + SLACK)


def test_scattered_reads_fetch_little_more_than_they_ask(hub, mount):
    """Through repo/, far from one another: 128 KiB granules, kernel read-ahead
    for a random reader, and no window of megabytes."""
    hub.commit("org/big", generate=GIB + ",hashed=0")
    mounted = mount("org/big", hub)
    data = mounted.tensors()[0]["offset"]
    settle(hub)
    hub.control("clear_log")
    path = mounted.path / "repo" / "model.safetensors"
    with open(path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        for number in range(20):
            offset = data + (number * 37 % 100) * TENSOR + 3 * 1024 * 1024
            assert os.pread(file.fileno(), 4096, offset) == harness.pattern(
                11, offset - data, 4096)
    settle(hub)
    print("bytes fetched for 20 reads of 4 KiB:", hub.weight_bytes())
    assert hub.weight_bytes() <= 20 * (TENSOR + SLACK)


def test_a_touched_tensor_is_fetched_whole(hub, mount):
    """Its first page through repo/, as loaders that map files touch it."""
    hub.commit("org/big", generate=GIB + ",hashed=0")
    mounted = mount("org/big", hub)
    data = mounted.tensors()[0]["offset"]
    settle(hub)
    hub.control("clear_log")
    start = data + 57 * TENSOR
    path = mounted.path / "repo" / "model.safetensors"
    with open(path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        assert os.pread(file.fileno(), 4096, start) == harness.pattern(
            11, start - data, 4096)
        assert harness.wait_until(lambda: hub.weight_bytes() >= TENSOR)
        settle(hub)
        assert hub.weight_bytes() <= TENSOR + 2 * SLACK
        requests = len(hub.log(listener="cdn"))
        assert os.pread(file.fileno(), TENSOR, start) == harness.pattern(
            11, start - data, TENSOR)
    assert len(hub.log(listener="cdn")) == requests


def test_a_rate_is_kept(hub, mount):
    hub.commit("org/big", generate=GIB + ",hashed=0")
    mounted = mount("org/big", hub, options=("--max-rate", "4M"))
    # The first came in part with the header, which is paid for already.
    tensor = mounted.tensors()[1]
    begin = time.monotonic()
    content = mounted.file(tensor, "raw").read_bytes()
    took = time.monotonic() - begin
    number = int(tensor["name"].split(".")[2])
    assert content == harness.pattern(11, number * TENSOR, TENSOR)
    print(f"10 MiB at 4 MiB/s: {took:.2f} s")
    # The last of its fetches, of 1 MiB, starts when nine had their time.
    assert took >= 9 / 4


def test_20000_tensors_list_without_weight_bytes(hub, mount):
    count = 20_000
    hub.commit("org/many", generate=f"tensors={count},tensor_bytes=262144,"
               "dtype=BF16,hashed=0")
    mounted = mount("org/many", hub)
    header = mounted.tensors()[0]["offset"]
    assert header > 1_000_000
    start = time.monotonic()
    for form in ("raw", "npy", "pt", "safetensors"):
        with os.scandir(mounted.path / "tensors" / form) as entries:
            sizes = [entry.stat().st_size for entry in entries]
        assert len(sizes) == count
        assert min(sizes) >= 262144
        assert sizes == [max(sizes)] * count or form != "raw"
    print(f"listing and stat of {4 * count} files: "
          f"{time.monotonic() - start:.2f} s")
    settle(hub)
    assert hub.weight_bytes() <= header + SLACK
    assert max(last for _, last in ranges(hub.log(listener="cdn"))) < (
        header + SLACK)


MODEL = "tensors=30,shards=3,tensor_bytes=100000,dtype=F32,seed=5"


@pytest.mark.parametrize("end", ["unmount", "kill"])
def test_second_mount_fetches_nothing_cached(hub, mount, end):
    hub.commit("org/model", generate=MODEL)
    first = mount("org/model", hub)
    content = read_all(first.path / "repo")
    tensors = read_all(first.path / "tensors")
    assert len(content) == 5 and len(tensors) == 4 * 30
    first.unmount() if end == "unmount" else first.kill()
    hub.control("clear_log")
    second = mount("org/model", hub)
    assert read_all(second.path / "repo") == content
    assert read_all(second.path / "tensors") == tensors
    settle(hub)
    again = [r for r in hub.log() if r["listener"] == "cdn" or
             "/resolve" in r["path"]]
    assert not again, again


def test_kill_in_the_middle_of_reading(hub, mount):
    """What was served before kill -9 is not fetched again; the rest is right."""
    hub.commit("org/model", generate=MODEL)
    first = mount("org/model", hub)
    name = "model-00002-of-00003.safetensors"
    with open(first.path / "repo" / name, "rb") as file:
        half = file.read(600_000)
        first.kill()
    settle(hub)
    hub.control("clear_log")
    second = mount("org/model", hub)
    with open(second.path / "repo" / name, "rb", buffering=0) as file:
        assert os.pread(file.fileno(), 600_000, 0) == half
        settle(hub)
        granules = [r for r in ranges(hub.log(listener="cdn", contains=name))
                    if r[0] < 512 << 10]
        assert not granules, granules
        whole = second.path / "repo" / name
        data = whole.read_bytes()
    assert data[-1_000_000:] == harness.pattern(6, 0, 1_000_000)


@pytest.mark.parametrize("way", ["--offline", "HF_HUB_OFFLINE", "down"])
def test_offline_serves_what_the_cache_holds(hub, mount, way, tmp_path):
    hub.commit("org/model", generate=MODEL)
    first = mount("org/model", hub)
    # The last of a shard: what lies behind the header came with it.
    one, other = (max((t for t in first.tensors() if shard in t["file"]),
                      key=lambda t: t["offset"])
                  for shard in ("-00001-", "-00003-"))
    content = first.file(one, "npy").read_bytes()
    config = (first.path / "repo" / "config.json").read_bytes()
    first.unmount()
    settle(hub)
    hub.control("clear_log")

    more = {"options": ["--read-timeout", "3s", "--metadata-timeout", "3s"]}
    if way == "--offline":
        more["options"].append("--offline")
    elif way == "HF_HUB_OFFLINE":
        more["HF_HUB_OFFLINE"] = "1"
    else:
        hub.stop()
    second = mount("org/model", hub.url, **more)
    assert second.file(one, "npy").read_bytes() == content
    assert (second.path / "repo" / "config.json").read_bytes() == config
    # All is listed, also what is not held.
    assert second.file(other, "raw").stat().st_size == 100_000
    start = time.monotonic()
    with pytest.raises(OSError) as missing:
        second.file(other, "raw").read_bytes()
    assert missing.value.errno == 5  # EIO
    assert time.monotonic() - start < (1 if way != "down" else 10)
    line = [text for text in second.log().splitlines()
            if other["file"] in text]
    assert line, second.log()
    if way != "down":
        assert "offline" in " ".join(line), line
        assert hub.log() == []
    # A repository that was never here.
    refused = harness.run("mount", "org/never", tmp_path / "mnt",
                          "--cache-dir", tmp_path / "cache", "--endpoint",
                          hub.url, "--metadata-timeout", "2s",
                          *(["--offline"] if way == "--offline" else []),
                          home=tmp_path / "home", check=False,
                          **({"HF_HUB_OFFLINE": "1"}
                             if way == "HF_HUB_OFFLINE" else {}))
    assert refused.returncode in (1, 5), refused
    assert len(refused.stderr.strip().splitlines()) == 1, refused.stderr


# --- the token ---

def places_it_may_not_be(mounted):
    """Everything that a mount shows or keeps, as (what, bytes)."""
    yield "log", mounted.log_file.read_bytes()
    for name in ("status.json", "index.json"):
        yield name, (mounted.path / ".weightfs" / name).read_bytes()
    for folder, folders, files in os.walk(mounted.path):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            for key in os.listxattr(path):
                yield f"{path} {key}", os.getxattr(path, key)
    for key in os.listxattr(mounted.path):
        yield key, os.getxattr(mounted.path, key)
    for folder, _, files in os.walk(mounted.cache):
        for name in files:
            path = pathlib.Path(folder, name)
            if path.is_file():
                yield str(path), path.read_bytes()
    for name in ("cmdline", "mountinfo"):
        yield name, pathlib.Path(f"/proc/{mounted.pid}/{name}").read_bytes()
    for arguments in (("status",), ("status", "--json"),
                      ("status", mounted.path)):
        yield str(arguments), harness.run(
            *arguments, "--cache-dir", mounted.cache, home=mounted.home,
            text=False).stdout


@pytest.mark.parametrize("place", ["--token-file", "HF_TOKEN", "HF_HOME"])
def test_token_goes_to_the_hub_alone(make_hub, mount, tmp_path, place):
    hub, other = make_hub(), make_hub()
    hub.commit("org/secret", generate=MODEL)
    hub.control("set_repo", repo="org/secret", private=True, readers=[TOKEN])
    # One shard is redirected by the hub to a host of somebody else.
    hub.fault("redirect", number=302, contains="00001-of-00003",
              text=other.url + "/x/y/resolve/main/z", times=2)
    more = {"options": ["--read-timeout", "10s", "--log-level", "debug"]}
    if place == "HF_TOKEN":
        more["HF_TOKEN"] = TOKEN
    else:
        file = tmp_path / "token-home" / "token"
        file.parent.mkdir()
        file.write_text(TOKEN + "\n")
        if place == "HF_HOME":
            more["HF_HOME"] = str(file.parent)
        else:
            more["options"] += ["--token-file", file]
    mounted = mount("org/secret", hub, **more)
    for path in (mounted.path / "repo").iterdir():
        try:
            path.read_bytes()
        except OSError as error:  # the redirected shard may fail
            assert "00001" in str(error)
    settle(hub)
    assert any(r["authorization"] == f"Bearer {TOKEN}"
               for r in hub.log(listener="hub"))
    strangers = hub.log(listener="cdn") + other.log()
    assert strangers and not any(
        TOKEN in json.dumps(request) for request in strangers)
    looked = 0
    for what, content in places_it_may_not_be(mounted):
        assert TOKEN.encode() not in content, what
        # Nor a signature of the CDN's.
        assert b"Signature=" not in content, what
        looked += 1
    assert looked > 50


def test_renewed_token_is_picked_up(hub, mount, tmp_path):
    hub.commit("org/secret", generate=MODEL)
    hub.control("set_repo", repo="org/secret", private=True, readers=[TOKEN])
    file = tmp_path / "token"
    file.write_text(TOKEN)
    mounted = mount("org/secret", hub,
                    options=["--token-file", file, "--read-timeout", "10s"])
    tensors = mounted.tensors()
    assert len(mounted.file(tensors[0], "raw").read_bytes()) == 100_000
    # The old one and every signed URL are void from now on.
    hub.control("set_repo", repo="org/secret", private=True,
                readers=["hf_renewed"])
    file.write_text("hf_renewed\n")
    hub.control("rotate_key")
    for tensor in tensors[-3:]:
        assert len(mounted.file(tensor, "raw").read_bytes()) == 100_000
    assert any(r["authorization"] == "Bearer hf_renewed" for r in hub.log())


@pytest.mark.parametrize("repo, code, word", [
    ("org/none", (3, 4), "none"), ("org/secret", (3, 4), "secret"),
    ("org/gated", (4,), "gated"), ("org/open@nope", (3,), "nope"),
])
def test_refusals_say_what_to_do(hub, tmp_path, repo, code, word):
    for name in ("secret", "gated", "open"):
        hub.commit(f"org/{name}", generate=MODEL)
    hub.control("set_repo", repo="org/secret", private=True, readers=["hf_r"])
    hub.control("set_repo", repo="org/gated", gated=True, readers=["hf_r"])
    done = harness.run("cat", repo, "model.layers.0.weight", "--cache-dir",
                       tmp_path / "cache", "--endpoint", hub.url,
                       "--read-timeout", "10s", home=tmp_path, check=False)
    assert done.returncode in code, done
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert word in done.stderr, done.stderr


def test_a_moved_branch_does_not_mix_commits(hub, mount, tmp_path):
    old = tmp_path / "old"
    old.mkdir()
    harness.write_safetensors(old / "model.safetensors",
                              {"a": ("U8", (900_000,), b"\1" * 900_000)})
    (old / "note.txt").write_text("old")
    new = tmp_path / "new"
    shutil.copytree(old, new)
    harness.write_safetensors(new / "model.safetensors",
                              {"a": ("U8", (900_000,), b"\2" * 900_000)})
    (new / "note.txt").write_text("new")
    commit = hub.commit("org/moving", old)
    mounted = mount("org/moving", hub)
    assert os.getxattr(mounted.path, "user.weightfs.commit").decode() == commit
    other = hub.commit("org/moving", new)
    assert (mounted.path / "repo" / "note.txt").read_text() == "old"
    raw = mounted.path / "tensors" / "raw" / "a.bin"
    assert raw.read_bytes() == b"\1" * 900_000
    again = mount("org/moving", hub, name="mnt2")
    assert (again.path / "repo" / "note.txt").read_text() == "new"
    assert (again.path / "tensors/raw/a.bin").read_bytes() == b"\2" * 900_000
    assert os.getxattr(again.path, "user.weightfs.commit").decode() == other
    pinned = mount(f"org/moving@{commit}", hub, name="mnt3")
    assert (pinned.path / "repo" / "note.txt").read_text() == "old"
