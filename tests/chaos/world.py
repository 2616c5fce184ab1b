"""What a chaos run acts on: the hub, the daemons, the cache folder, the readers;
and what it counts."""

import collections
import contextlib
import json
import os
import pathlib
import queue
import re
import signal
import subprocess
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "e2e"))
# pylint: disable=wrong-import-position
import harness  # noqa: E402
import origin_faults  # noqa: E402

READERS = os.environ.get("WEIGHTFS_CHAOS_READERS",
                         "build/gcc/tests/chaos/weightfs-chaos-readers")


def wait_until(condition, timeout):
    return harness.wait_until(condition, timeout)


class Outcome:
    """Counts, and everything that must not be. Thread-safe."""

    def __init__(self):
        self.lock = threading.Lock()
        self.faults = collections.Counter()
        self.violations = collections.Counter()
        self.first = {}  # of each kind of violation
        self.notes = collections.Counter()

    def fault(self, name):
        with self.lock:
            self.faults[name] += 1

    def note(self, name):
        with self.lock:
            self.notes[name] += 1

    def violation(self, kind, what):
        with self.lock:
            self.violations[kind] += 1
            count = self.violations[kind]
            self.first.setdefault(kind, what)
        if count <= 10:
            say(f"VIOLATION {kind}: {what}")

    def clean(self):
        return not self.violations


BEGAN = time.monotonic()


def say(text):
    print(f"[{time.monotonic() - BEGAN:7.2f}] {text}", flush=True)


class Readers:
    """weightfs-chaos-readers, and what it reports."""

    def __init__(self, outcome, spec, mounts, seed, timeout, grace, pace,
                 processes, threads):
        self.outcome = outcome
        self.processes = processes
        self.replies = queue.Queue()
        self.asking = threading.Lock()
        self.end = None
        arguments = ["--spec", spec, "--seed", seed, "--processes", processes,
                     "--threads", threads, "--read-timeout-ms",
                     int(timeout * 1000), "--grace-ms", int(grace * 1000),
                     "--pace-us", pace]
        for mount in mounts:
            arguments += ["--mount", mount]
        self.process = subprocess.Popen(
            [READERS, *map(str, arguments)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True)
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()
        self.replies.get(timeout=120)  # ready

    def _listen(self):
        for line in self.process.stdout:
            event = json.loads(line)
            what = event.pop("event")
            if what in ("reply", "ready"):
                self.replies.put(event)
            elif what == "end":
                self.end = event
            else:
                self.outcome.violation(
                    {"wrong": "wrong bytes", "late": "past the deadline",
                     "unexpected": "unexplained error",
                     "crash": "a reader crashed"}.get(what, what),
                    json.dumps(event))
        self.replies.put(None)

    def ask(self, order, timeout=30):
        with self.asking:
            self.process.stdin.write(order + "\n")
            self.process.stdin.flush()
            reply = self.replies.get(timeout=timeout)
        if reply is None:
            raise RuntimeError("the readers ended")
        return reply

    @contextlib.contextmanager
    def window(self, excuse, mounts):
        bits = sum(1 << mount for mount in mounts)
        number = self.ask(f"window {excuse} {bits}")["window"]
        try:
            yield
        finally:
            self.ask(f"close {number}")

    def stats(self):
        return self.ask("stats")

    def stop(self, timeout):
        """The counts at the end."""
        with contextlib.suppress(OSError):
            self.process.stdin.write("stop\n")
            self.process.stdin.flush()
        self.listener.join(timeout)
        if self.listener.is_alive():
            self.process.kill()
        self.process.wait(10)
        return self.end

    def kill(self):
        self.process.kill()
        self.process.wait(10)


class Daemon:
    """A mount, and the process that serves it now."""

    def __init__(self, world, number):
        self.world = world
        self.number = number
        self.path = world.folder / f"mount{number}"
        self.path.mkdir()
        self.log = world.folder / f"mount{number}.log"
        self.pid = None
        self.expected = False  # to be alive
        self.old = []  # pids that were unmounted or killed

    def start(self):
        """One attempt; says why not."""
        world = self.world
        if world.closed.is_set():
            return "the run is over"
        done = harness.run(
            "mount", world.repo, self.path, "--cache-dir", world.cache,
            "--log-file", self.log, "--endpoint", world.hub.url,
            "--read-timeout", f"{world.timeout}s", "--metadata-timeout",
            f"{world.timeout}s", *world.mount_options, home=world.home,
            check=False, timeout=world.timeout + 60,
            HF_HUB_DOWNLOAD_TIMEOUT=str(world.stall))
        if done.returncode != 0:
            return done.stderr.strip()
        self.pid = self._find()
        self.expected = self.pid is not None
        return None if self.expected else "no pid in its log"

    def _find(self):
        """By its log: what `weightfs status` reads lies in the cache folder,
        which a fault may have deleted."""
        found = re.findall(r" starts: .* pid=(\d+)$", self.log.read_text(),
                           re.MULTILINE)
        return int(found[-1]) if found else None

    def start_again(self):
        """While the origin has faults a mount may fail, but not for ever."""
        limit = time.monotonic() + 4 * self.world.timeout + 30
        while (why := self.start()) is not None:
            self.world.outcome.note("mounts that failed under faults")
            if self.world.closed.is_set() or time.monotonic() > limit:
                raise RuntimeError(f"{self.path} cannot be mounted: {why}")
            self.world.closed.wait(0.2)

    def gone(self):
        """To be called before it is ended."""
        self.expected = False
        self.old.append(self.pid)

    def signal(self, number):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def unmount(self, *options):
        return harness.run("umount", *options, self.path, "--cache-dir",
                           self.world.cache, home=self.world.home, check=False,
                           timeout=60)

    def usage(self):
        """Open files, threads, resident bytes."""
        status = pathlib.Path(f"/proc/{self.pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines())
        return {"fds": self.count_open_files(),
                "threads": int(fields["Threads"]),
                "rss": int(fields["VmRSS"].split()[0]) << 10}

    def count_open_files(self):
        """Without the cached files: which of them are open follows from what
        was read last, not from how much. Only root may look for itself."""
        try:
            count = 0
            for fd in os.listdir(f"/proc/{self.pid}/fd"):
                with contextlib.suppress(FileNotFoundError):
                    path = os.readlink(f"/proc/{self.pid}/fd/{fd}")
                    count += "/objects/" not in path
            return count
        except PermissionError:
            status = pathlib.Path(self.path, ".weightfs/status.json")
            return json.loads(status.read_text())["open_files"]


class World:
    """Everything of one run. Ends all that it started."""

    def __init__(self, folder, outcome, arguments):
        self.folder = folder
        self.outcome = outcome
        self.timeout = arguments.read_timeout
        self.grace = arguments.grace
        self.stall = arguments.stall
        self.mount_options = list(arguments.mount_option)
        self.repo = origin_faults.REPO
        self.spec = arguments.spec
        self.home = folder / "home"
        self.home.mkdir()
        self.disk = folder / "disk"  # a small file system, where permitted
        self.disk.mkdir()
        self.has_own_disk = False
        self.cache = self.disk / "cache"
        self.hub = None
        self.readers = None
        self.daemons = []
        self.closed = threading.Event()
        self.watcher = threading.Thread(target=self._watch, daemon=True)

    def start(self, arguments):
        if os.getuid() == 0 and arguments.disk_size:
            done = subprocess.run(
                ["mount", "-t", "tmpfs", "-o",
                 f"size={arguments.disk_size},mode=700", "chaos",
                 str(self.disk)], capture_output=True, check=False)
            self.has_own_disk = done.returncode == 0
        self.hub = harness.Hub("--generate", f"{self.repo}={self.spec}")
        self.daemons = [Daemon(self, number) for number in range(2)]
        for daemon in self.daemons:
            why = daemon.start()
            if why is not None:
                raise RuntimeError(f"the first mount failed: {why}")
        self.readers = Readers(
            self.outcome, self.spec, [daemon.path for daemon in self.daemons],
            arguments.seed, self.timeout, self.grace, arguments.pace_us,
            arguments.readers // arguments.threads, arguments.threads)
        self.watcher.start()

    def _watch(self):
        """A daemon that ends when nobody ended it has crashed."""
        while not self.closed.wait(0.2):
            for daemon in self.daemons:
                pid = daemon.pid
                if daemon.expected and not harness.alive(pid):
                    if not daemon.expected or daemon.pid != pid:
                        continue
                    daemon.expected = False
                    self.outcome.violation(
                        "a daemon died", f"{daemon.path} pid {pid}: "
                        + daemon.log.read_text()[-1500:])

    def both(self):
        return range(len(self.daemons))

    def kill_daemons(self):
        for daemon in self.daemons:
            daemon.gone()
            daemon.signal(signal.SIGKILL)
        for daemon in self.daemons:
            wait_until(lambda d=daemon: not harness.alive(d.pid), 10)

    def clean(self):
        self.closed.set()
        if self.readers and self.readers.process.poll() is None:
            self.readers.kill()
        for daemon in self.daemons:
            daemon.expected = False
            for pid in {daemon.pid, *daemon.old} - {None}:
                if harness.alive(pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGCONT)
                        os.kill(pid, signal.SIGKILL)
            for _ in range(50):
                if harness.mount_type(daemon.path) is None:
                    break
                subprocess.run(["fusermount3", "-u", "-z", str(daemon.path)],
                               capture_output=True, check=False)
        if self.hub:
            self.hub.stop()
        if self.has_own_disk:
            subprocess.run(["umount", "-l", str(self.disk)],
                           capture_output=True, check=False)
