# ctest: env=client labels=mount timeout=600
"""A server whose name has several addresses. Names come from an /etc/hosts of
these tests' own, in a mount namespace of their own."""

import concurrent.futures
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
    open_doors("127.0.1.1", "127.0.1.2")
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
