"""What the end-to-end tests share: the loopback hub, mounts of the real program,
and made-up models. Everything that is started here ends with the test, by the
process ids and mount points that were started, whatever the test did."""

import contextlib
import json
import os
import pathlib
import random
import signal
import struct
import subprocess
import threading
import time
import urllib.request

WEIGHTFS = os.environ.get("WEIGHTFS", "build/gcc/tools/weightfs")
TEST_HUB = os.environ.get("WEIGHTFS_TEST_HUB",
                          "build/gcc/tests/support/weightfs-test-hub")
ALL = bool(os.environ.get("WEIGHTFS_TEST_ALL"))
# "address,undefined" or "thread" where weightfs was built so.
SANITIZED = os.environ.get("WEIGHTFS_SANITIZE")
GRANULE = 128 << 10
# What the fixture `model` holds.
MODEL = f"tensors=48,tensor_bytes={1 << 20},dtype=F32,seed=9"


class Hub:
    """A weightfs-test-hub of its own (tests/support/hub_server.h)."""

    def __init__(self, *arguments):
        self.process = subprocess.Popen(
            [TEST_HUB, "--until-stdin-closes", *map(str, arguments)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"weightfs-test-hub ended with {self.process.wait()}")
        ready = json.loads(line)
        self.url, self.cdn_url = ready["url"], ready["cdn_url"]

    def control(self, op, **order):
        request = urllib.request.Request(
            self.url + "/_control", json.dumps({"op": op, **order}).encode(),
            {"Content-Type": "application/json"})
        # Not by a proxy that the environment may name.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as answer:
            return json.load(answer)

    def commit(self, repo, folder=None, branch="main", generate=None):
        source = ({"generate": generate} if generate is not None
                  else {"folder": str(folder)})
        return self.control("commit", repo=repo, branch=branch,
                            **source)["commit"]

    def fault(self, kind, **what):
        return self.control("add_fault", kind=kind, **what)["id"]

    def log(self, **which):
        return self.control("log", **which)["requests"]

    def weight_bytes(self):
        """Body bytes that the CDN sent."""
        return sum(r["body_bytes"] for r in self.log(listener="cdn"))

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def environment(home, **more):
    """What the program sees: no token, no cache but in `home`."""
    kept = {key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH")
            if key in os.environ}
    kept |= {key: value for key, value in os.environ.items()
             if key.endswith("SAN_OPTIONS")}
    return {**kept, "HOME": str(home), "LC_ALL": "C.UTF-8",
            "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", **more}


def run(*arguments, home, check=True, text=True, timeout=120, **more):
    """`weightfs ARGUMENTS`."""
    done = subprocess.run([WEIGHTFS, *map(str, arguments)],
                          env=environment(home, **more), capture_output=True,
                          text=text, timeout=timeout, check=False,
                          stdin=subprocess.DEVNULL)
    if check and done.returncode != 0:
        raise AssertionError(f"weightfs {arguments}: exit {done.returncode}\n"
                             f"{done.stdout}\n{done.stderr}")
    return done


def mount_type(path):
    """The type of what is mounted exactly there, or None."""
    found = None
    for line in pathlib.Path("/proc/self/mounts").read_text().splitlines():
        fields = line.split()
        where = fields[1].encode().decode("unicode_escape")
        if where == str(path):
            found = fields[2]
    return found


def alive(pid):
    """Whether the process runs (a zombie does not)."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def wait_until(condition, timeout=10.0):
    """True as soon as `condition` holds; False if it does not in time."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def in_time(call, limit):
    """What `call` returns; fails the test if it takes longer."""
    result = []

    def run():
        try:
            result.append((call(), None))
        except BaseException as error:  # pylint: disable=broad-except
            result.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit)
    assert result, f"did not come back in {limit} s"
    if result[0][1] is not None:
        raise result[0][1]
    return result[0][0]


def pread(path, length, offset):
    file = os.open(path, os.O_RDONLY)
    try:
        return os.pread(file, length, offset)
    finally:
        os.close(file)


class Mount:
    """A mount by `weightfs mount`, in the background."""

    def __init__(self, source, path, cache, hub=None, home=None, options=(),
                 log_file=None, **more):
        self.path = pathlib.Path(path)
        self.cache = pathlib.Path(cache)
        self.home = pathlib.Path(home or self.cache.parent)
        self.log_file = pathlib.Path(
            log_file or self.cache.parent / f"{self.path.name}.log")
        self.pid = None
        # A mount that crashed is there, and cannot be looked at.
        with contextlib.suppress(FileExistsError):
            os.mkdir(self.path)
        url = hub.url if isinstance(hub, Hub) else hub
        endpoint = ("--endpoint", url) if url else ()
        self.output = run(
            "mount", source, self.path, "--cache-dir", self.cache,
            "--log-file", self.log_file, *endpoint, *options, home=self.home,
            **more)
        for record in json.loads(run("status", "--json", "--cache-dir",
                                     self.cache, home=self.home).stdout):
            if record["mountpoint"] == str(self.path):
                self.pid = record["pid"]
        assert self.pid, "weightfs status does not list the mount"

    def status(self):
        return json.loads((self.path / ".weightfs/status.json").read_text())

    def index(self):
        return json.loads((self.path / ".weightfs/index.json").read_text())

    def tensors(self):
        """Those of the shown set, as .weightfs/index.json has them."""
        shown = [s for s in self.index()["sets"] if s["shown"]]
        assert len(shown) == 1, shown
        assert "error" not in shown[0], shown[0]
        return shown[0]["tensors"]

    def file(self, tensor, form):
        """The path of a tensor in a format; `tensor` is an index entry."""
        extension = {"raw": "bin"}.get(form, form)
        name = tensor.get("path", tensor["name"])
        return self.path / "tensors" / form / f"{name}.{extension}"

    def open_files(self):
        """The daemon's descriptors; only root may look for itself."""
        try:
            return len(os.listdir(f"/proc/{self.pid}/fd"))
        except PermissionError:
            return self.status()["open_files"]

    def log(self):
        return self.log_file.read_text()

    def kill(self):
        """kill -9, and what it leaves is left."""
        os.kill(self.pid, signal.SIGKILL)
        assert wait_until(lambda: not alive(self.pid))

    def unmount(self):
        run("umount", self.path, "--cache-dir", self.cache, home=self.home)
        assert wait_until(lambda: not alive(self.pid), 5)
        assert mount_type(self.path) is None

    def clean(self):
        """For the end of a test: no mount, no daemon, no complaint."""
        for _ in range(3):
            if mount_type(self.path) is None:
                break
            subprocess.run(["fusermount3", "-u", "-z", str(self.path)],
                           capture_output=True, check=False)
        if self.pid and alive(self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)
                if not wait_until(lambda: not alive(self.pid), 5):
                    os.kill(self.pid, signal.SIGKILL)


# --- made-up models ---

# What one element of each safetensors dtype takes, in bits.
DTYPE_BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8,
    "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32,
    "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}


def elements(shape):
    count = 1
    for size in shape:
        count *= size
    return count


def write_safetensors(path, tensors, metadata=None):
    """tensors: {name: (dtype, shape, bytes)}, written in that order."""
    header, data = {}, b""
    if metadata is not None:
        header["__metadata__"] = metadata
    for name, (dtype, shape, content) in tensors.items():
        assert len(content) * 8 == elements(shape) * DTYPE_BITS[dtype], name
        header[name] = {"dtype": dtype, "shape": list(shape),
                        "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    pathlib.Path(path).write_bytes(struct.pack("<Q", len(text)) + text + data)


def every_dtype(seed=1):
    """Tensors of every dtype: scalars, empty ones, odd and common shapes."""
    randomness = random.Random(seed)
    tensors = {}
    # Those under a byte have whole bytes in every shape.
    for dtype, bits in DTYPE_BITS.items():
        for shape in ((), (0,), (3, 0, 2), (1,), (4,), (7, 12), (2, 3, 4, 8),
                      (300, 400)):
            size = elements(shape) * bits
            if size % 8:
                continue
            content = randomness.randbytes(size // 8)
            if dtype == "BOOL":
                content = bytes(byte & 1 for byte in content)
            shown = "x".join(map(str, shape)) or "scalar"
            tensors[f"{dtype}.{shown}"] = (dtype, shape, content)
    return tensors


WORD = 0xFFFFFFFFFFFFFFFF


def pattern(seed, offset, length):
    """What the hub's generated models hold (FillPattern, hub_content.h), with
    NumPy."""
    import numpy  # pylint: disable=import-outside-toplevel

    first, last = offset // 8, (offset + length + 7) // 8
    z = numpy.arange(first + 1, last + 1, dtype=numpy.uint64)
    with numpy.errstate(over="ignore"):
        z = numpy.uint64(seed) + z * numpy.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
        z ^= z >> numpy.uint64(31)
    return z.tobytes()[offset - first * 8:][:length]
