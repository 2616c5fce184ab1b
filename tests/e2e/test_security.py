# ctest: env=client as=both labels=mount timeout=600
"""What fs/SECURITY.md promises: hostile names, hostile servers, other users, and
where the token is not."""

import http.server
import json
import os
import pathlib
import re
import ssl
import stat
import subprocess
import sys
import threading

import pytest

import harness

TOKEN = "hf_SECRETsecretSECRET"
MODEL = "tensors=3,tensor_bytes=4096,dtype=F32,seed=5"
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
as_root = pytest.mark.skipif(os.getuid() != 0, reason="needs a second user")

# Nothing that a terminal obeys, or that hides or reorders what is around it.
# Lines and tabs are layout.
HARMFUL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e"
    "\u2060-\u206f\ufeff\U000e0000-\U000e0fff]")
HOSTILE = ["\x1b]0;owned\x07\x1b[2J", "a\nweightfs: b", "x\u202etxt.exe",
           "y\u2066z\u2069", "c\u009b31m", "d\x7f\r", "e\u200bf"]


def assert_plain(text, what):
    found = HARMFUL.search(text)
    assert not found, (what, text[max(0, found.start() - 60):][:120])


def as_nobody(*command):
    return subprocess.run([*NOBODY, *map(str, command)], capture_output=True,
                          text=True, check=False, timeout=60)


@pytest.fixture(name="open_tmp")
def _open_tmp(tmp_path):
    """tmp_path, where another user may come."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and folder != pathlib.Path("/"):
            folder.chmod(folder.stat().st_mode | 0o755)
    return tmp_path


# --- hostile names ---

@pytest.fixture(name="hostile_folder")
def _hostile_folder(tmp_path):
    folder = tmp_path / "hostile"
    folder.mkdir()
    tensors = {name: ("U8", (4,), b"1234") for name in HOSTILE}
    harness.write_safetensors(folder / "model.safetensors", tensors,
                              metadata={"\x1b[1m": "\u202e"})
    for number, name in enumerate(HOSTILE):
        (folder / name.replace("/", "_")).write_text(str(number))
    # One that makes a problem to tell of.
    (folder / "\x1b[5mbad\u202e.safetensors").write_bytes(b"\xff" * 64)
    return folder


@pytest.mark.parametrize("kind", ["local", "hub"])
def test_hostile_names_cannot_harm_a_terminal(hub, mount, tmp_path, kind,
                                              hostile_folder):
    endpoint = ()
    source = str(hostile_folder)
    if kind == "hub":
        hub.commit("org/hostile", folder=hostile_folder)
        source, endpoint = "org/hostile", ("--endpoint", hub.url)
    mounted = mount(source, hub if kind == "hub" else None,
                    options=["--log-level", "debug"])
    # The bytes are there under their names all the same.
    for number, name in enumerate(HOSTILE):
        assert (mounted.path / "repo" / name).read_text() == str(number)
    names = {t["name"] for s in mounted.index()["sets"]
             for t in s.get("tensors", ())}
    assert set(HOSTILE) <= names
    for name in HOSTILE:
        with pytest.raises(OSError):
            (mounted.path / "tensors" / "raw" / (name + "?")).read_bytes()

    shown = {name: (mounted.path / ".weightfs" / name).read_text()
             for name in ("index.json", "status.json")}
    shown["log"] = mounted.log()
    shown["mount"] = mounted.output.stdout + mounted.output.stderr
    cache = ("--cache-dir", tmp_path / "cache", *endpoint)
    for command in (("ls", source), ("ls", "--all", source),
                    ("ls", "--json", source), ("info", source),
                    ("info", "--json", source),
                    ("cat", source, "\x1b[2Jnone\u202e"),
                    ("ls", tmp_path / "\x1b[2J\u202enone"),
                    ("mount", "org/\x1b[2Jx", tmp_path / "y"),
                    ("ls", "--no\x1bsuch\u202e")):
        arguments = command if command[0] == "mount" else (*command, *cache)
        done = harness.run(*arguments, home=tmp_path, check=False)
        shown[str(command)] = done.stdout + done.stderr
    for command in (("status",), ("status", mounted.path),
                    ("status", "--json")):
        done = harness.run(*command, *cache[:2], home=mounted.home)
        shown[str(command)] = done.stdout + done.stderr
    for what, text in shown.items():
        assert_plain(text, what)
    assert "owned" in shown[str(("ls", source))]
    # A name is one line, whatever it holds.
    assert not re.search(r"^weightfs: b", shown[str(("ls", source))], re.M)
    mounted.unmount()


@pytest.mark.parametrize("path", [
    "/etc/passwd", "../../etc/passwd", "a/../../b", "a//b", "./a", "a/.", "..",
    "", "a\x00b", "b" * 256, "d/" * 3000 + "f"])
def test_hostile_repo_paths_are_refused(hub, tmp_path, path):
    hub.commit("org/model", generate=MODEL)
    entry = {"type": "file", "path": path, "size": 5, "oid": "a" * 40}
    hub.fault("body", contains="/tree/", text=json.dumps([entry]))
    where = tmp_path / "mnt"
    where.mkdir()
    done = harness.run("mount", "org/model", where, "--endpoint", hub.url,
                       "--cache-dir", tmp_path / "cache", home=tmp_path,
                       check=False)
    assert done.returncode != 0
    assert "a path not to be used" in done.stderr
    assert harness.mount_type(where) is None
    assert not list(where.iterdir())


def test_names_that_are_odd_and_harmless(hub, mount, tmp_path):
    """A backslash and a drive letter are bytes like others here."""
    folder = tmp_path / "odd"
    folder.mkdir()
    for name in ("..\\..\\x", "C:\\x", "-rf", " ", "%2e%2e", "a" * 255):
        (folder / name).write_text(name)
    hub.commit("org/odd", folder=folder)
    mounted = mount("org/odd", hub)
    for path in folder.iterdir():
        shown = mounted.path / "repo" / path.name
        assert shown.read_text() == path.name
        assert stat.S_ISREG(shown.lstat().st_mode)


def test_links_of_a_local_folder(mount, tmp_path):
    """As the Hub's cache has them, out of the folder; shown as files."""
    blobs = tmp_path / "models--org--name/blobs"
    snapshot = tmp_path / "models--org--name/snapshots/c0"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "abc").write_bytes(b"{}")
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    # A folder is not entered through a link, nor a device opened.
    (snapshot / "etc").symlink_to("/etc")
    (snapshot / "zero").symlink_to("/dev/zero")
    (snapshot / "gone").symlink_to("nowhere")
    mounted = mount(str(snapshot))
    repo = mounted.path / "repo"
    assert [p.name for p in repo.iterdir()] == ["config.json"]
    assert (repo / "config.json").read_bytes() == b"{}"
    assert not (repo / "config.json").is_symlink()
    # What a link leads to after the mount is not what was mounted.
    (blobs / "secret").write_bytes(b"no")
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to("../../blobs/secret")
    mounted.unmount()
    again = mount(str(snapshot), name="again")
    (blobs / "secret").write_bytes(b"xx")
    with pytest.raises(OSError):
        (again.path / "repo/config.json").read_bytes()


# --- where a server may not lead ---

# Runs in network and mount namespaces of its own, where 203.0.113.7 is this
# machine's: a "public" server there, and a "private" one on loopback that must
# never be asked.
REDIRECTS = r'''
import fcntl, http.server, json, os, socket, struct, subprocess, sys, threading

weightfs, folder, target_kind, stage = sys.argv[1:5]

def interface(request, name, data):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        fcntl.ioctl(s, request, struct.pack("16s16s8x", name, data))

def address(text):
    return struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(text))

UP = struct.pack("H14x", 0x41)
for name, text in ((b"lo", "127.0.0.1"), (b"lo:1", "203.0.113.7"),
                   (b"lo:2", "10.1.2.3"), (b"lo:3", "169.254.169.254")):
    interface(0x8916, name, address(text))  # SIOCSIFADDR
    interface(0x8914, name, UP)             # SIOCSIFFLAGS
with open("/proc/sys/net/ipv6/conf/lo/disable_ipv6", "r+") as file:
    file.write("0")

hosts = os.path.join(folder, "hosts")
def point(text):
    with open(hosts, "w") as file:
        file.write("127.0.0.1 localhost\n203.0.113.7 hub.test\n"
                   f"{text} rebind.test\n")
point("127.0.0.1")
subprocess.run(["mount", "--bind", hosts, "/etc/hosts"], check=True)

private_hits, public_hits = [], []
CONTENT = b"0123456789abcdef" * 64

class Private(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        private_hits.append(self.path)
        body = b"a secret of this network"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_HEAD = do_GET
    def log_message(self, *args):
        pass

class Six(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    def server_bind(self):
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        super().server_bind()

servers = [http.server.ThreadingHTTPServer((ip, 8000), Private)
           for ip in ("127.0.0.1", "10.1.2.3", "169.254.169.254")]
servers.append(Six(("::1", 8000), Private))
TARGETS = {
    "loopback": "http://127.0.0.1:8000/x?signed=1",
    "rfc1918": "http://10.1.2.3:8000/x?signed=1",
    "metadata": "http://169.254.169.254:8000/x?signed=1",
    "ipv6": "http://[::1]:8000/x?signed=1",
    "mapped": "http://[::ffff:127.0.0.1]:8000/x?signed=1",
    "number": "http://2130706433:8000/x?signed=1",
    "localhost": "http://localhost:8000/x?signed=1",
    "name": "http://rebind.test:8000/x?signed=1",
}
target = TARGETS[target_kind]
COMMIT = "c" * 40

class Public(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
    def do_GET(self):
        public_hits.append(self.path)
        if "/revision/" in self.path:
            if stage == "listing":
                return self.answer(302, Location=target)
            return self.answer(200, json.dumps(
                {"id": "org/m", "sha": COMMIT, "private": False}).encode())
        if "/tree/" in self.path:
            return self.answer(200, json.dumps([
                {"type": "file", "path": "model.bin", "size": len(CONTENT),
                 "oid": "a" * 40,
                 "lfs": {"oid": "b" * 64, "size": len(CONTENT)}}]).encode())
        to = target
        if stage == "second" and not self.path.startswith("/hop"):
            to = "http://203.0.113.7:8000/hop?signed=2"
        return self.answer(302, Location=to, X_Repo_Commit=COMMIT,
                           X_Linked_Size=str(len(CONTENT)),
                           X_Linked_Etag='"' + "b" * 64 + '"')
    do_HEAD = do_GET
    def log_message(self, *args):
        pass

servers.append(http.server.ThreadingHTTPServer(("203.0.113.7", 8000), Public))
for server in servers:
    threading.Thread(target=server.serve_forever, daemon=True).start()

where = os.path.join(folder, "mnt")
os.mkdir(where)
environment = {"PATH": os.environ["PATH"], "HOME": folder,
               "HF_TOKEN": "hf_SECRETsecretSECRET"}
endpoint = "http://hub.test:8000"
common = ["--endpoint", endpoint, "--cache-dir", os.path.join(folder, "cache")]
done = subprocess.run(
    [weightfs, "mount", "org/m", where, "--read-timeout", "5s",
     "--metadata-timeout", "5s", "--log-file", os.path.join(folder, "log"),
     *common], env=environment, capture_output=True, text=True, timeout=60)
outcome = {"mount": done.returncode, "said": done.stderr}
if done.returncode == 0:
    try:
        with open(os.path.join(where, "repo/model.bin"), "rb") as file:
            outcome["read"] = file.read().decode()
    except OSError as error:
        outcome["errno"] = error.errno
    subprocess.run([weightfs, "umount", where, *common[2:]], env=environment,
                   check=True, timeout=60)
    outcome["log"] = open(os.path.join(folder, "log")).read()
outcome["private_hits"] = private_hits
outcome["public_hits"] = public_hits
print(json.dumps(outcome))
'''


def redirected(tmp_path, target, stage):
    done = subprocess.run(
        ["unshare", "--net", "--mount", sys.executable, "-c", REDIRECTS,
         harness.WEIGHTFS, tmp_path, target, stage],
        capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


TARGETS = ["loopback", "rfc1918", "metadata", "ipv6", "mapped", "number",
           "localhost", "name"]


@as_root
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("stage", ["first", "second"])
def test_a_public_server_leads_to_no_private_one(tmp_path, target, stage):
    outcome = redirected(tmp_path, target, stage)
    assert outcome["mount"] == 0, outcome
    assert outcome["public_hits"] and outcome["private_hits"] == []
    assert "read" not in outcome and outcome["errno"] in (5, 13)
    assert "this machine or its network" in outcome["log"]
    assert TOKEN not in outcome["log"] and "signed=1" not in outcome["log"]
    # It is an answer, not an outage to try again for ever.
    asked = [p for p in outcome["public_hits"] if "/resolve/" in p]
    assert len(asked) <= 4, asked


@as_root
@pytest.mark.parametrize("target", ["loopback", "name"])
def test_a_listing_leads_to_no_private_server(tmp_path, target):
    outcome = redirected(tmp_path, target, "listing")
    assert outcome["mount"] != 0 and outcome["private_hits"] == []
    assert "this machine or its network" in outcome["said"]


def test_a_private_server_may_lead_to_another(hub, mount):
    """As the test hub does: its CDN is on loopback, too."""
    hub.commit("org/model", generate=MODEL)
    mounted = mount("org/model", hub)
    path = mounted.path / "repo" / "model.safetensors"
    assert path.stat().st_size == len(path.read_bytes())
    assert hub.log(listener="cdn")


class Silent(http.server.BaseHTTPRequestHandler):
    """Counts who asks."""

    def do_GET(self):  # pylint: disable=invalid-name
        self.server.asked += 1
        self.send_error(404)

    def log_message(self, *_):  # pylint: disable=arguments-differ
        pass


def test_a_certificate_of_nobodys_is_refused(tmp_path):
    """One that nobody vouches for, and one of another host."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days",
         "2", "-subj", "/CN=hub.test", "-addext", "subjectAltName=DNS:hub.test",
         "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.asked = 0
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        for trusted in ({}, {"CURL_CA_BUNDLE": str(certificate)}):
            done = harness.run(
                "ls", "org/model", "--cache-dir", tmp_path / "cache",
                "--endpoint", f"https://127.0.0.1:{server.server_port}",
                "--metadata-timeout", "20s", home=tmp_path, check=False,
                HF_TOKEN=TOKEN, **trusted)
            assert done.returncode == 4, done
            assert TOKEN not in done.stderr
        assert server.asked == 0
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# --- bombs ---

def test_answers_that_are_too_large_are_refused(hub, tmp_path):
    hub.commit("org/model", generate=MODEL)
    # 64 MiB and a little; half as much again is never kept.
    hub.fault("long_body", contains="/tree/", number=(64 << 20) + 4096)
    where = tmp_path / "mnt"
    where.mkdir()
    done = harness.run("mount", "org/model", where, "--endpoint", hub.url,
                       "--cache-dir", tmp_path / "cache", "--metadata-timeout",
                       "20s", home=tmp_path, check=False)
    assert done.returncode != 0 and harness.mount_type(where) is None


# --- other users ---

@as_root
def test_another_user_reads_nothing(hub, mount, open_tmp):
    hub.commit("org/model", generate=MODEL)
    mounted = mount("org/model", hub)
    assert (mounted.path / "repo/model.safetensors").read_bytes()
    # Until then its object moves.
    assert harness.wait_until(
        lambda: mounted.status()["cache"]["verified_files"] == 1)
    kept = [mounted.cache, mounted.cache / "run", mounted.log_file]
    for folder, folders, files in os.walk(mounted.cache):
        kept += [pathlib.Path(folder, name) for name in (*folders, *files)]
    assert len(kept) > 10
    for path in kept:
        mode = stat.S_IMODE(path.lstat().st_mode)
        assert mode & 0o077 == 0, (path, oct(mode))
        done = as_nobody("cat" if path.is_file() else "ls", path)
        assert done.returncode != 0 and not done.stdout, path
    for command in (("ls", mounted.path), ("ls", mounted.path / "repo"),
                    ("cat", mounted.path / "repo/model.safetensors"),
                    ("cat", mounted.path / ".weightfs/status.json"),
                    ("cat", f"/proc/{mounted.pid}/environ"),
                    ("ls", f"/proc/{mounted.pid}/fd"),
                    ("kill", "-0", mounted.pid)):
        done = as_nobody(*command)
        assert done.returncode != 0 and not done.stdout, command
    # Not for want of a way to there.
    assert as_nobody("ls", open_tmp).returncode == 0


@as_root
def test_allow_other_shows_a_public_repo_read_only(hub, mount, open_tmp):
    del open_tmp
    hub.commit("org/model", generate=MODEL)
    mounted = mount("org/model", hub, options=["--allow-other"])
    weights = mounted.path / "repo/model.safetensors"
    assert as_nobody("sha256sum", weights).returncode == 0
    for command in (("touch", weights), ("touch", mounted.path / "new"),
                    ("rm", weights), ("chmod", "777", weights)):
        assert as_nobody(*command).returncode != 0, command
    options = [line.split()[3].split(",")
               for line in pathlib.Path("/proc/self/mounts").read_text()
               .splitlines() if line.split()[1] == str(mounted.path)][0]
    assert {"allow_other", "default_permissions", "ro", "nosuid",
            "nodev"} <= set(options), options


@pytest.mark.parametrize("kind", ["private", "gated", "local"])
def test_allow_other_keeps_private_things_private(hub, mount, tmp_path, kind):
    token = {"HF_TOKEN": TOKEN}
    if kind == "local":
        source, endpoint = tmp_path / "model", ()
        source.mkdir()
        harness.write_safetensors(source / "model.safetensors",
                                  {"t": ("U8", (1,), b"1")})
        (source / "key").write_text("for me")
        (source / "key").chmod(0o600)
    else:
        source, endpoint = "org/secret", ("--endpoint", hub.url)
        hub.commit(source, generate=MODEL)
        hub.control("set_repo", repo=source, readers=[TOKEN],
                    **{kind: True})
    where = tmp_path / "closed"
    where.mkdir()
    done = harness.run("mount", source, where, *endpoint, "--cache-dir",
                       tmp_path / "cache", "--allow-other", home=tmp_path,
                       check=False, **token)
    assert done.returncode != 0 and "--share-private" in done.stderr
    assert harness.mount_type(where) is None
    # Known from the cache, it is as closed.
    if kind != "local":
        mount(source, hub, **token).unmount()
        done = harness.run("mount", source, where, "--offline", *endpoint,
                           "--cache-dir", tmp_path / "cache", "--allow-other",
                           home=tmp_path, check=False, **token)
        assert done.returncode != 0 and "--share-private" in done.stderr
    if os.getuid() == 0:
        mounted = mount(str(source), hub if endpoint else None, name="shared",
                        options=["--allow-other", "--share-private"], **token)
        assert (mounted.path / "repo/model.safetensors").read_bytes()


# --- the process ---

def limits(pid):
    return pathlib.Path(f"/proc/{pid}/limits").read_text()


@pytest.mark.parametrize("name", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"])
def test_the_token_is_not_in_proc(hub, mount, name):
    hub.commit("org/secret", generate=MODEL)
    hub.control("set_repo", repo="org/secret", private=True, readers=[TOKEN])
    mounted = mount("org/secret", hub, **{name: TOKEN})
    assert (mounted.path / "repo/model.safetensors").read_bytes()
    assert any(r["authorization"] == f"Bearer {TOKEN}" for r in hub.log())
    assert re.search(r"Max core file size +0 +0 ", limits(mounted.pid))
    proc = pathlib.Path(f"/proc/{mounted.pid}")
    assert TOKEN.encode() not in (proc / "cmdline").read_bytes()
    if os.getuid() == 0:
        environ = (proc / "environ").read_bytes()
        assert name.encode() in environ and TOKEN.encode() not in environ
    else:
        for file in ("environ", "mem", "maps", "auxv"):
            with pytest.raises(PermissionError):
                (proc / file).read_bytes()
        with pytest.raises(PermissionError):
            os.listdir(proc / "fd")
        with pytest.raises(PermissionError):
            os.readlink(proc / "exe")
    # And all the rest works.
    assert mounted.status()["open_files"] > 5
    mounted.unmount()
