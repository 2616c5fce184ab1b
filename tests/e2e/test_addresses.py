# ctest: env=client labels=mount timeout=600
"""A server whose name has several addresses. Names come from an /etc/hosts of
these tests' own, in a mount namespace of their own."""

import concurrent.futures
import contextlib
import ctypes
import os
import pathlib
import random
import socket
import subprocess
import threading
import time

import pytest

import harness

CLONE_NEWNS = 0x20000
PART = 9 << 20  # not in the CDN, whose address is in its URLs
PARTS = 12
RESOLVER = "127.0.0.77"  # nobody, or who never answers
ETC = {
    "hosts": "127.0.0.1 localhost\n",
    "host.conf": "multi on\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "resolv.conf": f"nameserver {RESOLVER}\noptions timeout:30 attempts:1\n",
}


class Door:
    """Listens at an address and passes on what comes to the hub."""

    def __init__(self, address, hub):
        self.port = int(hub.url.rpartition(":")[2])
        self.connections = 0
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.listener = socket.create_server((address, self.port),
                                             family=family, backlog=128)
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:  # closed
                return
            self.connections += 1
            server = socket.create_connection(("127.0.0.1", self.port))
            for ends in ((client, server), (server, client)):
                threading.Thread(target=self.pass_on, args=ends,
                                 daemon=True).start()

    @staticmethod
    def pass_on(source, target):
        try:
            while data := source.recv(1 << 18):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:  # the other direction's end
            source.close()
            target.close()

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


@pytest.fixture(name="open_doors")
def _open_doors(hub):
    doors = []

    def make(*addresses):
        doors.extend(Door(address, hub) for address in addresses)
        return doors

    yield make
    for door in doors:
        door.close()


@pytest.fixture(name="etc", scope="module")
def _etc(tmp_path_factory):
    """A folder whose files are in /etc for this process and what it starts. It
    stays in that namespace: it runs no other tests."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) != 0:
        pytest.skip("no mount namespace for an /etc/hosts of its own: unshare: "
                    + os.strerror(ctypes.get_errno()))
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    etc = tmp_path_factory.mktemp("etc")
    for file, text in ETC.items():
        (etc / file).write_text(text)
        place = os.path.realpath(f"/etc/{file}")
        if os.path.exists(place) or file in ("hosts", "resolv.conf"):
            subprocess.run(["mount", "--bind", etc / file, place], check=True)
    return etc


def name(etc, host, *addresses):
    """Written in place: it is that file that is bound."""
    (etc / "hosts").write_text(ETC["hosts"] + "".join(
        f"{address} {host}\n" for address in addresses))


@pytest.fixture(name="parts")
def _parts(hub, tmp_path):
    """The content of the repository's files."""
    folder = tmp_path / "parts"
    folder.mkdir()
    parts = {f"part-{i:02}.txt": random.Random(i).randbytes(PART)
             for i in range(PARTS)}
    for file, content in parts.items():
        (folder / file).write_bytes(content)
    hub.commit("org/parts", folder)
    return parts


def url(hub, host):
    return f"http://{host}:{hub.url.rpartition(':')[2]}"


def read_together(mounted, files):
    """Many at once: one at a time would want few connections."""
    paths = [mounted.path / "repo" / file for file in files]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        return dict(zip(files, pool.map(pathlib.Path.read_bytes, paths)))


def test_addresses_that_refuse_are_passed_over(etc, hub, open_doors, parts,
                                               mount):
    # Every request wants a connection of its own.
    hub.fault("set_header", text="Connection", value="close")
    doors = open_doors("127.0.1.1", "127.0.1.2")
    # In the system's order, too, which puts first what is like 127.0.0.1: a
    # connection that is alone meets all five that refuse.
    name(etc, "some.test", *[f"127.0.0.{i}" for i in range(2, 7)],
         "127.0.1.1", "127.0.1.2")
    begin = time.monotonic()
    mounted = mount("org/parts", url(hub, "some.test"))
    files = list(parts)
    for file in files[:2]:
        assert (mounted.path / "repo" / file).read_bytes() == parts[file]
    assert read_together(mounted, files[2:]) == {
        file: parts[file] for file in files[2:]}
    # 10 s are what one connection has.
    assert time.monotonic() - begin < 10
    assert mounted.status()["fetcher"]["retries"] == 0
    assert all(door.connections for door in doors)


def test_connections_spread_over_all_addresses(etc, hub, open_doors, parts,
                                               mount):
    hub.fault("set_header", text="Connection", value="close")
    addresses = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
    doors = open_doors(*addresses)
    name(etc, "many.test", *addresses)
    mounted = mount("org/parts", url(hub, "many.test"))
    assert read_together(mounted, list(parts)) == parts
    used = [door.connections for door in doors]
    assert sum(used) > 50
    assert min(used) > sum(used) / 10, used


def test_localhost_is_one_server(hub, open_doors, parts, mount):
    """Not the server at 127.0.0.1 and whoever is at ::1."""
    try:
        door, = open_doors("::1")
    except OSError as error:
        pytest.skip(f"no ::1 here: {error}")
    hub.fault("set_header", text="Connection", value="close")
    mounted = mount("org/parts", url(hub, "localhost"))
    assert read_together(mounted, list(parts)) == parts
    connections = len({request["connection"] for request in hub.log()})
    assert connections > 50
    assert door.connections == 0 or door.connections >= connections


# --- without a resolver ---

@contextlib.contextmanager
def silent_resolver(etc):
    """No name is known meanwhile. Gives what waits for a question."""
    names = (etc / "hosts").read_text()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as resolver:
        try:
            resolver.bind((RESOLVER, 53))
        except OSError as error:
            pytest.skip(f"UDP port 53 of {RESOLVER}: {error}")
        resolver.settimeout(60)
        (etc / "hosts").write_text(ETC["hosts"])
        yield lambda: resolver.recv(512)
        (etc / "hosts").write_text(names)


def test_what_is_connected_goes_on_without_a_resolver(etc, hub, open_doors,
                                                      parts, mount):
    open_doors("127.0.0.2", "127.0.0.3")
    name(etc, "many.test", "127.0.0.2", "127.0.0.3")
    mounted = mount("org/parts", url(hub, "many.test"))
    files = list(parts)
    read_together(mounted, files[:4])
    with silent_resolver(etc):
        assert read_together(mounted, files[4:]) == {
            file: parts[file] for file in files[4:]}


def test_reads_outlast_an_outage_of_the_resolver(etc, hub, open_doors, parts,
                                                 mount):
    hub.fault("set_header", text="Connection", value="close")
    open_doors("127.0.0.2", "127.0.0.3")
    name(etc, "many.test", "127.0.0.2", "127.0.0.3")
    mounted = mount("org/parts", url(hub, "many.test"))
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with silent_resolver(etc) as wait_for_question:
            reading = pool.submit(read_together, mounted, list(parts))
            wait_for_question()
        assert reading.result() == parts


def test_a_mount_ends_while_look_ups_hang(etc, hub, open_doors, parts, mount):
    hub.fault("set_header", text="Connection", value="close")
    open_doors("127.0.0.2", "127.0.0.3")
    name(etc, "many.test", "127.0.0.2", "127.0.0.3")
    mounted = mount("org/parts", url(hub, "many.test"))
    with silent_resolver(etc) as wait_for_question:
        reader = subprocess.Popen(
            ["cat", *(mounted.path / "repo" / file for file in parts)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_for_question()
        finally:
            reader.kill()
            reader.wait()
        mounted.unmount()  # in 5 s; the look-ups take 30
