"""What a run acts on: the origin, the models, who reads, the programs. Ends and
removes all that it started."""

import contextlib
import dataclasses
import json
import mmap
import os
import pathlib
import platform
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ["WEIGHTFS_BUILD_DIR"]).resolve()
os.environ["WEIGHTFS"] = str(BUILD / "tools/weightfs")
os.environ["WEIGHTFS_TEST_HUB"] = str(
    BUILD / "tests/support/weightfs-test-hub")
sys.path.insert(0, str(ROOT / "tests/e2e"))
# pylint: disable=wrong-import-position
import harness  # noqa: E402

RATE = 100_000_000  # bytes per second and connection
GRANULE = harness.GRANULE
PROGRAMS = ("fetch", "memory", "model", "reader", "walk")


class Failed(Exception):
    """A probe could not be measured; says why."""


@dataclasses.dataclass(frozen=True)
class Condition:
    """Of the wire. None: the case uses none."""
    latency: int | None = None
    rate: int | None = None

    def __str__(self):
        if self.latency is None:
            return "–"
        rate = f"{self.rate / 1e6:g} MB/s" if self.rate else "no limit"
        return f"{self.latency} ms, {rate}"


FAST = Condition(0, 0)
WIRE = Condition(20, RATE)


class Origin:
    """The test hub, a process of its own: the Hub's API, and the same files as
    a plain web server has them."""

    def __init__(self):
        self.hub = harness.Hub()
        self.url = self.hub.url
        self.pid = self.hub.process.pid

    def set(self, condition):
        self.hub.control("settings", latency_ms=condition.latency or 0,
                         bytes_per_second=condition.rate or 0,
                         sendfile=True)

    def serve(self, model):
        self.hub.commit(model.repo, folder=model.folder)
        # So that the first who lists it does not wait for its hashes.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        tree = f"{self.url}/api/models/{model.repo}/tree/main?recursive=true"
        with opener.open(tree, timeout=600) as answer:
            answer.read()

    def resolve_url(self, model, name):
        return f"{self.url}/{model.repo}/resolve/main/{name}"

    def plain_url(self, model):
        return f"{self.hub.cdn_url}/files/{model.repo}/main/"

    def clear(self):
        self.hub.control("clear_log")

    def requests(self, listener="cdn"):
        return self.hub.log(listener=listener)

    def settle(self):
        """Until no request for weights comes or runs any more."""
        seen = -1
        while seen != len(found := self.requests()) or not all(
                request["done"] for request in found):
            seen = len(found)
            self.hub.control("wait", listener="cdn", count=seen + 1,
                             timeout_ms=500)

    def stop(self):
        self.hub.stop()


@dataclasses.dataclass(frozen=True)
class Tensor:
    name: str
    file: str
    offset: int  # in the file
    length: int


class Model:
    """The files of a model in a folder: what the origin serves, and what all
    that is read is compared with."""

    def __init__(self, name, folder):
        self.repo = f"bench/{name}"
        self.folder = folder
        self.files = sorted(path.name for path in folder.iterdir())
        self.shards = [name for name in self.files
                       if name.endswith(".safetensors")]
        self.tensors = [tensor for shard in self.shards
                        for tensor in self._tensors_of(shard)]

    def _tensors_of(self, shard):
        with open(self.folder / shard, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for name, tensor in header.items():
            begin, end = tensor["data_offsets"]
            yield Tensor(name, shard, 8 + length + begin, end - begin)

    def size(self, shard):
        return (self.folder / shard).stat().st_size

    # Jobs for weightfs-bench-reader: (path, offset, length, source, offset).

    def whole_files(self, mounted, shards=None):
        return [(mounted.file(shard), 0, self.size(shard),
                 self.folder / shard, 0) for shard in shards or self.shards]

    def as_files(self, mounted, tensors):
        """Tensors by the files that show them raw."""
        return [(mounted.tensor(tensor), 0, tensor.length,
                 self.folder / tensor.file, tensor.offset)
                for tensor in tensors]

    def in_files(self, mounted, tensors):
        """The same tensors in the files that hold them."""
        return [(mounted.file(tensor.file), tensor.offset, tensor.length,
                 self.folder / tensor.file, tensor.offset)
                for tensor in tensors]


class Identity:
    """Who mounts and reads: root, or an ordinary user."""

    def __init__(self, uid, folder):
        self.uid = uid
        self.home = folder
        folder.mkdir()
        if uid == os.getuid():
            self.prefix = []
        else:
            os.chown(folder, uid, uid)
            self.prefix = ["setpriv", f"--reuid={uid}", f"--regid={uid}",
                           "--clear-groups"]
        self.number = 0

    def folder(self, name):
        """A new one of its own."""
        self.number += 1
        path = self.home / f"{name}{self.number}"
        self.run("mkdir", path)
        return path

    def remove(self, path):
        self.run("rm", "-rf", path)

    def run(self, *command, check=True, timeout=120, text=None):
        done = subprocess.run(
            [*self.prefix, *map(str, command)], check=False, text=True,
            capture_output=True, timeout=timeout, cwd="/", input=text,
            env=harness.environment(self.home))
        if check and done.returncode != 0:
            said = (done.stderr.strip() or done.stdout.strip()).splitlines()
            raise Failed(said[-1] if said else
                         f"{command[0]}: exit status {done.returncode}")
        return done

    def start(self, *command, log):
        with open(log, "ab") as file:
            return subprocess.Popen(
                [*self.prefix, *map(str, command)], stdin=subprocess.DEVNULL,
                stdout=file, stderr=file, cwd="/",
                env=harness.environment(self.home))


class Bench:
    """Everything of one run; a context manager."""

    def __init__(self, options):
        self.options = options
        self.stack = contextlib.ExitStack()
        self.skipped = {}  # what was left out -> why
        self.models = {}
        self.began = time.monotonic()

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            where = self.options.work
            if where:
                where.mkdir(parents=True, exist_ok=True)
            self.work = pathlib.Path(tempfile.mkdtemp(
                prefix="weightfs-bench-", dir=where)).resolve()
            stack.callback(shutil.rmtree, self.work, ignore_errors=True)
            self.work.chmod(0o755)
            self._copy_programs()
            if os.getuid() == 0:
                self.root = Identity(0, self.work / "root")
                self.user = Identity(65534, self.work / "user")
            else:
                self.root = None
                self.user = Identity(os.getuid(), self.work / "user")
                self.skipped["as root"] = "run by an ordinary user"
            self.origin = Origin()
            stack.callback(self.origin.stop)
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *_):
        self.stack.close()

    def _copy_programs(self):
        """To where every user may run them."""
        folder = self.work / "bin"
        folder.mkdir()
        paths = [BUILD / "tests/bench" / f"weightfs-bench-{name}"
                 for name in PROGRAMS] + [BUILD / "tools/weightfs"]
        for path in paths:
            if not path.exists():
                raise SystemExit(f"{path} is missing; build it with: "
                                 f"ninja -C {BUILD} weightfs-bench")
            shutil.copy(path, folder / path.name)
            (folder / path.name).chmod(0o755)
        self.weightfs = folder / "weightfs"

    def program(self, name):
        return self.work / "bin" / f"weightfs-bench-{name}"

    @property
    def identity(self):
        """Of what needs no identity in particular."""
        return self.root or self.user

    def say(self, text):
        took = time.monotonic() - self.began
        print(f"[{took:7.1f}] {text}", file=sys.stderr, flush=True)

    def wants(self, who):
        chosen = self.options.contender
        return not chosen or who in chosen

    def conditions(self, case):
        """What the wire is like, one after the other."""
        options = self.options
        if case.WIRE is None:
            return [Condition()]
        if case.WIRE != "all" and not (options.given and case.WIRE == "wire"):
            return [FAST if case.WIRE == "fast" else WIRE]
        return [Condition(latency, rate) for latency in options.latency
                for rate in options.rate]

    # --- models ---

    def model(self, name, spec):
        """Made and served at first use."""
        if name not in self.models:
            self.say(f"making the model {name}: {spec}")
            folder = self.work / "models" / name
            self.identity.run(self.program("model"), spec, folder,
                              timeout=600)
            os.sync()  # so that the disk has nothing to do later
            self.models[name] = Model(name, folder)
            self.origin.serve(self.models[name])
            if self.options.self_test:
                self._change(self.models[name])
        return self.models[name]

    @staticmethod
    def _change(model):
        """A byte of each shard; the origin has the file open that was."""
        for shard in model.shards:
            path = model.folder / shard
            content = bytearray(path.read_bytes())
            content[-1] ^= 1
            path.unlink()
            path.write_bytes(content)

    def one_shard(self):
        """All of --size in one file of 16 tensors."""
        return self.model("one", f"tensors=16,size={self.options.size},"
                          "dtype=F16,seed=1")

    def eight_shards(self):
        return self.model("eight", f"tensors=32,shards=8,dtype=F16,seed=20,"
                          f"size={self.options.size}")

    def many_small(self):
        """One file of tensors of 512 KiB."""
        return self.model("small", "tensor_bytes=524288,dtype=F16,seed=40,"
                          f"tensors={self.options.size >> 19}")

    # --- measuring ---

    def measure(self, row, number):
        """One round of a row; what goes wrong is noted there."""
        self.say(f"{row.case} | {row.condition} | {row.what} | {row.who}")
        try:
            self.origin.clear()
            self._touch_memory()
            sample = row.probe.measure()
        except Failed as failed:
            self.say(f"    failed: {failed}")
            row.failures.append(str(failed))
            return
        wrong = sample.get("wrong_bytes")
        if wrong and not row.probe.needed and not self.options.self_test:
            # A peer's: what it took to read them is no figure.
            self.say(f"    {wrong} bytes are wrong")
            row.failures.append("it gave wrong bytes")
            return
        self.say(f"    {sample[row.unit]:.4g} {row.unit}")
        row.samples[number] = sample

    def _touch_memory(self):
        """What a virtual machine has not used for some seconds its host takes
        back, and backs again at the first touch, at a fraction of a GB/s here:
        that is the price of no file system, so it is paid before."""
        available = re.search(r"MemAvailable:\s*(\d+)",
                              pathlib.Path("/proc/meminfo").read_text())
        pages = min(4 * self.options.size,
                    (int(available[1]) << 10) // 2) // mmap.PAGESIZE
        with mmap.mmap(-1, pages * mmap.PAGESIZE) as memory:
            memory[::mmap.PAGESIZE] = bytes(pages)

    def read(self, mounted, job, mode="read", threads=1, order="blocks",
             block=1 << 20, at_once=False):
        """A sample of weightfs-bench-reader."""
        lines = "".join("\t".join(map(str, item)) + "\n" for item in job)
        limit = self.options.limit
        command = [self.program("reader"), "--mode", mode, "--threads",
                   threads, "--order", order, "--block", block, "--limit",
                   limit, *self._watch(mounted)]
        if at_once:
            command.append("--check-at-once")
        try:
            done = mounted.identity.run(*command, text=lines,
                                        timeout=limit + 60)
        except subprocess.TimeoutExpired:
            raise Failed(f"a read did not end within {limit + 60:.0f} s"
                         ) from None
        return self.sample(json.loads(done.stdout))

    def _watch(self, mounted=None):
        pids = [self.origin.pid, *(mounted.pids if mounted else ())]
        return [part for pid in pids for part in ("--watch", pid)]

    def sample(self, got):
        """From what a program printed: rates, and CPU per GB of the reader and
        of who serves it, the origin's apart."""
        others = {other["pid"]: other for other in got.pop("others", [])}
        origin = others.pop(self.origin.pid, {"cpu": 0})
        gigabytes = got["bytes"] / 1e9
        if gigabytes == 0 or got["seconds"] == 0:
            raise Failed("nothing was read in time")
        servers = sum(other["cpu"] for other in others.values())
        return {**got, "GB/s": gigabytes / got["seconds"],
                # Of less, it is the clock's tick that is told.
                "cpu_per_gb": ((got["cpu"] + servers) / gigabytes
                               if got["bytes"] >= 1 << 20 else None),
                "reader_cpu": got["cpu"], "server_cpu": servers,
                "origin_cpu": origin["cpu"],
                "peak_memory": max((other.get("peak_memory", 0)
                                    for other in others.values()), default=0)}

    def drop(self, mounted, job):
        """Takes the files of a job out of the page cache."""
        lines = "".join("\t".join(map(str, item)) + "\n" for item in job)
        done = mounted.identity.run(self.program("reader"), "--mode", "drop",
                                    text=lines)
        return json.loads(done.stdout)["resident"]

    def walk(self, mounted, folder):
        """Lists a folder and asks for attributes, as who mounted it."""
        return json.loads(mounted.identity.run(
            self.program("walk"), folder, timeout=300).stdout)

    def fetch(self, model, name, streams):
        """A sample of curl's, in parallel ranges."""
        limit = self.options.size / RATE * 4 + 60
        try:
            done = self.identity.run(
                self.program("fetch"), "--url",
                self.origin.resolve_url(model, name), "--source",
                model.folder / name, "--streams", streams, *self._watch(),
                timeout=limit)
        except subprocess.TimeoutExpired:
            raise Failed(f"it did not end within {limit:.0f} s") from None
        return self.sample(json.loads(done.stdout))

    def about(self):
        """What was measured, and on what."""
        def command(*arguments):
            with contextlib.suppress(OSError):
                return subprocess.run(
                    arguments, capture_output=True, text=True,
                    check=False).stdout.strip()
            return ""

        model = re.search(r"model name\s*: (.*)",
                          pathlib.Path("/proc/cpuinfo").read_text())
        memory = re.search(r"MemTotal:\s*(\d+)",
                           pathlib.Path("/proc/meminfo").read_text())
        return {
            "commit": command("git", "-C", str(ROOT), "rev-parse", "HEAD"),
            "weightfs": command(str(self.weightfs), "--version"),
            "kernel": platform.release(),
            "cpu": model[1] if model else platform.machine(),
            "cpus": len(os.sched_getaffinity(0)),
            "memory": int(memory[1]) << 10,
            "work_disk": command("findmnt", "-no", "FSTYPE,SOURCE", "-T",
                                 str(self.work)),
            "options": {name: str(value) for name, value
                        in vars(self.options).items() if name != "given"},
            "seconds": round(time.monotonic() - self.began, 1)}
