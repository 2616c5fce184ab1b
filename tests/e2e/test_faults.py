# ctest: env=client labels=mount timeout=600
"""Faults of the origin, through a real mount: a reader gets the right bytes, or
one EIO within its deadline and one log line that says what was tried; and the
origin is not asked more often than the backoff allows.

Each case has a hub and a mount of its own; they run beside each other."""

import concurrent.futures
import contextlib
import email.utils
import errno
import http.client
import http.server
import json
import math
import os
import random
import re
import shutil
import ssl
import subprocess
import threading
import time

import pytest

import harness
from fault_cases import (BIG, CASES, FILE, IN_3_SECONDS, MOUNT_CASES, OUTAGES,
                         PLAIN, STORMS)

REPO = "org/model"
SHORT, LONG = 3, 40  # --read-timeout where EIO is expected, and where not
SLACK = 2.5  # seconds after the deadline; less than another deadline
AT_ONCE = 12


def place(hub, faults):
    for one in faults:
        headers = one.get("headers", {})
        if headers.get("Retry-After") == IN_3_SECONDS:
            date = email.utils.formatdate(time.time() + 3, usegmt=True)
            one = {**one, "headers": {"Retry-After": date}}
        hub.fault(**one)


def make_repo(folder):
    randomness = random.Random(4)
    folder.mkdir()
    harness.write_safetensors(folder / FILE, {
        f"t{i}": ("U8", (300_000,), randomness.randbytes(300_000))
        for i in range(8)})
    (folder / BIG).write_bytes(randomness.randbytes(9 << 20))
    (folder / PLAIN).write_bytes(b"note " * 400)
    return folder


class World:
    """A hub that serves `folder`, and what is mounted of it. To be closed."""

    def __init__(self, root, folder, name):
        self.root = root / name
        self.root.mkdir()
        self.folder = folder
        self.hub = harness.Hub("--repo", f"{REPO}={folder}")
        self.mounts = []

    def mount(self, *options, **more):
        made = harness.Mount.__new__(harness.Mount)
        made.path, made.pid = self.root / f"mnt{len(self.mounts)}", None
        self.mounts.append(made)
        made.__init__(REPO, made.path, self.root / "cache", self.hub,
                      home=self.root, options=options, **more)
        return made

    def close(self):
        for made in self.mounts:
            made.clean()
        self.hub.stop()


def settle(hub):
    """Until no request comes or runs any more."""
    seen = -1
    while seen != len(hub.log()):
        seen = len(hub.log())
        hub.control("wait", count=seen + 1, timeout_ms=200)
    assert harness.wait_until(lambda: all(r["done"] for r in hub.log()))


def pread(path, length, offset):
    """(bytes or errno, seconds) of one read that the kernel does not widen."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
        start = time.monotonic()
        try:
            got = os.pread(file, length, offset)
        except OSError as error:
            got = error.errno
        return got, time.monotonic() - start
    finally:
        os.close(file)


def attempts(seconds):
    """More than a flight can make of them: the n-th wait is a random part of
    0.1 s * 2^(n - 1) and at most of 10 s."""
    return 6 + 2 * math.log2(max(seconds, 0.1) / 0.1)


def failures(mounted):
    """The log lines of reads that failed."""
    return [line for line in mounted.log().splitlines()
            if " error " in line and " read: " in line]


def check_line(line, path, says):
    assert f"{path} bytes " in line, line
    assert re.search(r"bytes \d+-\d+", line), line
    assert re.search(rf"tier http://127.0.0.1:\d+/{REPO}", line), line
    assert re.search(r"\b\d+ attempts?\b", line), line
    assert re.search(says, line), line
    assert "Signature=" not in line and "secret" not in line, line


def run_case(world, case):
    hub, folder = world.hub, world.folder
    timeout = case.timeout or (SHORT if case.ends == "eio" else LONG)
    mounted = world.mount("--read-timeout", f"{timeout}s",
                          HF_HUB_DOWNLOAD_TIMEOUT=str(case.stall))
    mounted.tensors()
    path = mounted.path / "repo" / case.file
    source = folder / case.file
    if case.file != PLAIN:  # its ETag and signed URL are known
        assert pread(path, 10, 0)[0] == source.read_bytes()[:10]
    settle(hub)
    if any("/resolve/" in f.get("contains", "") for f in case.faults):
        hub.control("rotate_key")  # so that it is asked for again
    if case.prepare:
        case.prepare(hub)
    hub.control("clear_log")
    place(hub, case.faults)
    # In the middle of a tensor: its first page would fetch the tensor, beside.
    offset = 0 if case.file == PLAIN else source.stat().st_size * 9 // 16
    length = min(4096, source.stat().st_size)
    wanted = source.read_bytes()[offset:][:length]

    got, seconds = pread(path, length, offset)
    requests = hub.log()
    assert seconds <= timeout + SLACK, seconds
    if case.ends == "right":
        assert got == wanted, got
        assert failures(mounted) == []
    else:
        assert got == errno.EIO, got
        if case.at_once:
            assert seconds < SHORT - 1, seconds
        assert len(failures(mounted)) == 1, failures(mounted)
        check_line(failures(mounted)[0], case.file, case.says)
    assert len(requests) <= case.requests * attempts(seconds), (
        len(requests), seconds)
    failed = [r for r in requests if r["fault"]]
    if case.gap:
        later = [r for r in requests if r["id"] > failed[0]["id"]]
        assert (later[0]["unix_ms"] - failed[0]["unix_ms"]
                >= case.gap * 1000), requests
    # Nothing of it stays, neither in memory nor in the cache.
    hub.control("clear_faults")
    hub.control("release_hangs")
    if case.name != "retry-after-longer-than-the-read":
        end = time.monotonic() + LONG
        while pread(path, length, offset)[0] != wanted:
            assert time.monotonic() < end, mounted.log()
            time.sleep(0.1)
        assert path.read_bytes() == source.read_bytes()
    assert harness.alive(mounted.pid)
    return f"{seconds:.1f} s, {len(requests)} requests"


# --- many readers ---

def read_by_many(path, readers, length=4096):
    """What each of so many threads gets, of a granule of its own."""
    with concurrent.futures.ThreadPoolExecutor(readers) as pool:
        return list(pool.map(
            lambda i: pread(path, length, (i + 2) * harness.GRANULE),
            range(readers)))


def run_storm(world, storm):
    mounted = world.mount("--read-timeout", "4s")
    mounted.tensors()
    path = mounted.path / "repo" / BIG
    settle(world.hub)
    world.hub.control("clear_log")
    world.hub.fault(**storm.broken)
    readers = 32
    start = time.monotonic()
    outcomes = read_by_many(path, readers)
    assert time.monotonic() - start < 4 + SLACK
    assert [got for got, _ in outcomes] == [errno.EIO] * readers
    lines = failures(mounted)
    assert len(lines) == readers
    for line in lines:
        check_line(line, BIG, storm.says)
    # A first wave over all connections, then pairs between growing pauses
    # (and a wave again after each byte that came).
    count = len(world.hub.log())
    print(count, "requests")
    waves = attempts(4) if storm.name == "one-byte" else 2
    assert count <= 16 * waves + 4 * 2 * attempts(4), count
    # The page of one granule again, by 16 at once: one deadline for all.
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        start = time.monotonic()
        same = list(pool.map(lambda _: pread(path, 100, 8 << 20), range(16)))
        assert time.monotonic() - start < 4 + SLACK
    assert [got for got, _ in same] == [errno.EIO] * 16
    world.hub.control("clear_faults")
    assert harness.wait_until(lambda: isinstance(
        pread(path, 100, 8 << 20)[0], bytes), LONG)
    return f"{count} requests"


def outage(hub, milliseconds):
    # Its own answer may be cut off, too.
    with contextlib.suppress(OSError, http.client.HTTPException):
        hub.control("outage", ms=milliseconds)


def run_outage(world, case):
    mounted = world.mount("--read-timeout", f"{case.timeout}s")
    mounted.tensors()
    settle(world.hub)
    outage(world.hub, case.seconds * 1000)
    source = world.folder / BIG
    start = time.monotonic()
    outcomes = read_by_many(mounted.path / "repo" / BIG, 16)
    took = time.monotonic() - start
    assert [got for got, _ in outcomes] == [
        source.read_bytes()[(i + 2) * harness.GRANULE:][:4096]
        for i in range(16)]
    assert took > case.seconds - 2, took
    assert took < min(case.timeout, case.seconds + 25), took
    assert failures(mounted) == []
    assert (mounted.path / "repo" / BIG).read_bytes() == source.read_bytes()
    return f"{took:.1f} s, {len(world.hub.log())} requests"


@pytest.fixture(name="world")
def _world(tmp_path, folder):
    made = World(tmp_path, folder, "world")
    yield made
    made.close()


def test_a_file_that_changes_at_the_server_is_not_mixed(world):
    """Its first part is here when the bytes and their ETag become others."""
    mounted = world.mount("--read-timeout", "4s")
    path = mounted.path / "repo" / BIG
    source = (world.folder / BIG).read_bytes()
    assert pread(path, 4096, 0)[0] == source[:4096]
    settle(world.hub)
    world.hub.fault("other_file", listener="cdn")
    for offset in range(0, len(source), 1 << 20):
        got, _ = pread(path, 4096, offset)
        assert got in (source[offset:][:4096], errno.EIO), offset
        if got == errno.EIO:
            break
    else:
        pytest.fail("no read saw the change")
    assert "ETag" in failures(mounted)[-1]


def test_a_redirect_to_another_origin(world, make_hub):
    """Followed, without the token; what is wrong there is not believed."""
    other = make_hub("--repo", f"{REPO}={world.folder}")
    log = other.log
    world.hub.control("add_token", token="hf_SECRETsecret")
    mounted = world.mount("--read-timeout", "4s", HF_TOKEN="hf_SECRETsecret")
    mounted.tensors()
    settle(world.hub)
    path = mounted.path / "repo" / BIG
    source = (world.folder / BIG).read_bytes()
    commit = mounted.status()["commit"]
    world.hub.control("rotate_key")
    world.hub.fault("redirect", listener="hub", contains="/resolve/",
                    number=307, text=f"{other.url}/{REPO}/resolve/{commit}/"
                    f"{FILE}?of=another-file")
    got, _ = pread(path, 4096, 1 << 20)
    assert got == errno.EIO
    assert log() and not any(r["authorization"] for r in log())
    world.hub.control("clear_faults")
    world.hub.fault("redirect", listener="hub", contains="/resolve/",
                    number=307,
                    text=f"{other.url}/{REPO}/resolve/main/{BIG}?x=y")
    assert harness.wait_until(
        lambda: pread(path, 4096, 1 << 20)[0] == source[1 << 20:][:4096], 20)
    assert not any(r["authorization"] for r in log())


def test_signatures_that_run_out_are_renewed(world):
    """Before they are refused, by the time that they name."""
    lifetime = 3
    world.hub.control("settings", signature_lifetime_s=lifetime)
    mounted = world.mount("--read-timeout", "8s")
    mounted.tensors()
    path = mounted.path / "repo" / BIG
    source = (world.folder / BIG).read_bytes()
    settle(world.hub)
    for part in (1, 2):
        began = time.time()
        offset = part << 20
        assert pread(path, 4096, offset)[0] == source[offset:][:4096]
        # The condition is the time itself.
        while time.time() < began + lifetime + 1:
            time.sleep(0.1)
    log = world.hub.log()
    asked = [r for r in log if r["path"].startswith(f"/{REPO}/resolve/")
             and r["path"].endswith(BIG)]
    assert len(asked) == 2, log
    assert not [r for r in log if r["status"] == 403], log
    assert failures(mounted) == []


class Downgrade(http.server.BaseHTTPRequestHandler):
    """An https server that sends everybody to http."""

    def do_GET(self):  # pylint: disable=invalid-name
        self.server.asked += 1
        self.send_response(302)
        self.send_header("Location", self.server.target + self.path)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):  # pylint: disable=arguments-differ
        pass


def test_https_is_not_left_for_http(world, tmp_path):
    """Neither with a token nor without: one clear line, and no request."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days",
         "2", "-subj", "/CN=127.0.0.1", "-addext",
         "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Downgrade)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.target, server.asked = world.hub.url, 0
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        for trusted, says in ((certificate, "from https to http"),
                              ("/dev/null", "ertificate|SSL|CA")):
            done = harness.run(
                "ls", REPO, "--cache-dir", world.root / "cache", "--endpoint",
                f"https://127.0.0.1:{server.server_port}",
                "--metadata-timeout", "5s", home=world.root, check=False,
                CURL_CA_BUNDLE=str(trusted))
            assert done.returncode == 4, done
            (line,) = done.stderr.strip().splitlines()
            assert re.search(says, line), line
        assert server.asked == 1 and world.hub.log() == []
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# --- the index of the tensors ---

def test_an_index_that_cannot_be_fetched_is_fetched_later(world):
    """Listings end in time with one EIO, and heal; repo/ is there all along."""
    broken = world.hub.fault("status", listener="cdn", number=503)
    mounted = world.mount("--metadata-timeout", "3s", "--read-timeout", "3s")
    start = time.monotonic()
    with pytest.raises(OSError) as failed:
        os.listdir(mounted.path / "tensors" / "raw")
    assert failed.value.errno == errno.EIO
    assert time.monotonic() - start < 3 + SLACK
    assert sorted(os.listdir(mounted.path / "repo")) == sorted(
        [BIG, FILE, PLAIN])
    assert (mounted.path / "repo" / PLAIN).read_bytes() == (
        world.folder / PLAIN).read_bytes()
    lines = [line for line in mounted.log().splitlines()
             if "HTTP 503" in line and FILE in line]
    assert lines, mounted.log()
    world.hub.control("remove_fault", id=broken)
    assert harness.wait_until(
        lambda: any(len(found.get("tensors", [])) == 8
                    for found in mounted.index()["sets"]), 20)
    assert len(os.listdir(mounted.path / "tensors" / "raw")) == 8


@pytest.mark.parametrize("times, code", [(2, 0), (10_000, 5)])
def test_a_command_tells_what_failed(world, times, code):
    world.hub.fault("status", listener="cdn", number=502, times=times)
    done = harness.run(
        "cat", REPO, "t3", "--format", "raw", "--cache-dir",
        world.root / "cache", "--endpoint", world.hub.url, "--read-timeout",
        "3s", "--metadata-timeout", "3s", home=world.root, check=False,
        text=False)
    assert done.returncode == code, done
    if code == 0:
        whole = (world.folder / FILE).read_bytes()
        assert len(done.stdout) == 300_000 and done.stdout in whole
    else:
        assert done.stdout == b""
        (line,) = done.stderr.decode().strip().splitlines()
        assert FILE in line and "HTTP 502" in line, line


# --- header bytes that lie ---

@pytest.mark.parametrize("byte", [0, 3, 7, 8])
def test_header_bytes_that_lie(world, byte):
    """The tensors are not there, index.json says why, repo/ is what came."""
    world.hub.fault("flip_bit", listener="cdn", contains=FILE, number=byte)
    mounted = world.mount("--read-timeout", "4s", "--metadata-timeout", "4s")
    (shown,) = [s for s in mounted.index()["sets"] if s["shown"]]
    assert not shown.get("tensors"), shown
    assert FILE in json.dumps(shown.get("error") or shown["problems"]), shown
    data = bytearray((world.folder / FILE).read_bytes())
    data[byte] ^= 1
    assert (mounted.path / "repo" / FILE).read_bytes() == data
    assert (mounted.path / "repo" / PLAIN).read_bytes() == (
        world.folder / PLAIN).read_bytes()
    assert harness.alive(mounted.pid)


# --- at mount time ---

MOUNT_SECONDS = 5


def run_mount_case(world, case):
    hub = world.hub
    endpoint = hub.url
    if case.faults == "refused":
        outage(hub, 60_000)
    elif case.faults == "no host":
        endpoint = "http://no-such-host.invalid"
    else:
        place(hub, case.faults)
    # One listing of few pages has to heal in one deadline.
    limit = MOUNT_SECONDS if case.code else 20
    start = time.monotonic()
    done = harness.run(
        "ls", REPO, "--cache-dir", world.root / "cache", "--endpoint",
        endpoint, "--metadata-timeout", f"{limit}s", home=world.root,
        check=False, HF_HUB_DOWNLOAD_TIMEOUT=str(case.stall))
    took = time.monotonic() - start
    assert done.returncode == case.code, done
    assert took < 2 * limit + SLACK, took
    if case.code:
        lines = done.stderr.strip().splitlines()
        assert len(lines) == 1, done.stderr
        assert re.search(case.says, lines[0]), lines
        assert REPO in lines[0], lines
    if isinstance(case.faults, str):
        return f"{took:.1f} s"
    requests = hub.log()
    assert len(requests) <= 2 * attempts(took) + 4, len(requests)
    if case.gap:
        failed = [r for r in requests if r["fault"]]
        later = [r for r in requests if r["id"] > failed[0]["id"]]
        assert (later[0]["unix_ms"] - failed[0]["unix_ms"]
                >= case.gap * 1000), requests
    return f"{took:.1f} s, {len(requests)} requests"


# --- all of them beside each other ---

KINDS = {"outage": (run_outage, OUTAGES),
         "storm": (run_storm, STORMS), "read": (run_case, CASES),
         "listing": (run_mount_case, MOUNT_CASES)}


@pytest.fixture(scope="module", name="folder")
def _folder(tmp_path_factory):
    return make_repo(tmp_path_factory.mktemp("source") / "repo")


@pytest.fixture(scope="module", name="outcomes")
def _outcomes(tmp_path_factory, folder, request):
    """What each case that was asked for came to, as a future."""
    root = tmp_path_factory.mktemp("cases")

    def run(kind, function, case):
        world = World(root, folder, f"{kind}-{case.name}")
        try:
            return function(world, case)
        finally:
            world.close()

    wanted = {tuple(item.callspec.params[key] for key in ("kind", "name"))
              for item in request.session.items
              if "kind" in getattr(getattr(item, "callspec", None), "params",
                                   {})}
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        yield {(kind, case.name): pool.submit(run, kind, function, case)
               for kind, (function, these) in KINDS.items()
               for case in these if (kind, case.name) in wanted}
    shutil.rmtree(root, ignore_errors=True)


@pytest.mark.parametrize("kind, name", [
    pytest.param(kind, case.name, id=f"{kind}-{case.name}")
    for kind, (_, these) in KINDS.items() for case in these])
def test_fault(outcomes, kind, name):
    print(outcomes[kind, name].result())
