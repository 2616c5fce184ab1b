"""What goes wrong on the machine in a chaos run: daemons, the cache folder, the
disk, the page cache, the readers.

A fault is a class: its parameters are drawn from a seed when the run is planned;
`apply` is a context that holds while the fault does.
"""

import contextlib
import http.client
import os
import pathlib
import random as random_module
import resource
import shutil
import signal
import struct
import time

import harness
import origin_faults
from world import wait_until

# What an outage makes of an order to the hub.
CUT_OFF = (OSError, http.client.HTTPException)
LIMIT_OF_END = 5.0  # a daemon that is told to end does so by then


class Fault:
    name = ""
    least, most = 0.0, 0.0  # seconds that it holds

    def __init__(self, random):
        self.seconds = random.uniform(self.least, self.most)

    def __str__(self):
        return self.name

    def apply(self, world):
        raise NotImplementedError


# --- the origin ---

class Origin(Fault):
    """One to three faults of the hub at once, that reads outlive: waits between
    tries grow to the length of the fault, so it lasts a quarter of a read's
    limit at most."""
    name = "origin"
    least, most = 0.3, 3.0

    def __init__(self, random):
        super().__init__(random)
        drawn = [origin_faults.passing(random)
                 for _ in range(random.choice((1, 1, 2, 3)))]
        # An answer made of the one there was would speak of another fault's
        # body: a size that is wrong for good.
        alone = [fault for fault in drawn
                 if any("{" in order.get("text", "")
                        for order in fault.orders)]
        self.faults = alone[:1] or drawn

    def __str__(self):
        return "origin: " + "; ".join(map(str, self.faults))

    def excuse(self, world):  # pylint: disable=unused-argument
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def apply(self, world):
        hub, numbers = world.hub, []
        with self.excuse(world):
            try:
                for fault in self.faults:
                    world.outcome.fault("origin: " + fault.name)
                    for order in map(origin_faults.dated, fault.orders):
                        if order["op"] == "outage":
                            order["ms"] = int(self.seconds * 1000)
                            # It may end the answer, too.
                            with contextlib.suppress(*CUT_OFF):
                                hub.control(**order)
                            continue
                        answer = again(lambda o=order: hub.control(**o))
                        if "id" in answer:
                            numbers.append(answer["id"])
                yield
            finally:
                for number in numbers:
                    again(lambda n=number: hub.control("remove_fault", id=n))
                again(lambda: hub.control("release_hangs"))


# For a second, reads of bytes that could not be had fail at once.
FAILURE_MEMORY = 1.0 + 0.5


@contextlib.contextmanager
def remembered(world, excuse):
    with world.readers.window(excuse, world.both()):
        yield
        world.closed.wait(FAILURE_MEMORY)


class FinalOrigin(Origin):
    """An answer that no retry can mend: reads may fail at once."""
    name = "origin, final"
    most = 2.0

    def __init__(self, random):
        super().__init__(random)
        self.faults = [origin_faults.final(random)]

    def excuse(self, world):
        return remembered(world, "final")


class LastingOrigin(Origin):
    """Longer than reads wait: those that began in it may fail at their
    deadline."""
    name = "origin, lasting"

    def __init__(self, random, timeout):
        super().__init__(random)
        self.faults = [origin_faults.lasting(random)]
        self.seconds = timeout * random.uniform(1.1, 2)

    def excuse(self, world):
        return remembered(world, "outlasted")


def again(action):
    """Through an outage of the hub's own port."""
    limit = time.monotonic() + 60
    while True:
        try:
            return action()
        except CUT_OFF:
            if time.monotonic() > limit:
                raise
            time.sleep(0.1)


# --- daemons ---

class OfDaemon(Fault):
    def __init__(self, random):
        super().__init__(random)
        self.number = random.randrange(2)

    def __str__(self):
        return f"{self.name} (mount{self.number})"


class Ended(OfDaemon):
    """The daemon goes, and another comes."""
    least, most = 0.0, 1.5

    def end(self, world, daemon):
        raise NotImplementedError

    @contextlib.contextmanager
    def apply(self, world):
        daemon = world.daemons[self.number]
        with world.readers.window("down", [self.number]):
            daemon.gone()
            self.end(world, daemon)
            yield
            daemon.start_again()


class Killed(Ended):
    name = "daemon killed (SIGKILL)"

    def end(self, world, daemon):
        daemon.signal(signal.SIGKILL)
        wait_until(lambda: not harness.alive(daemon.pid), 10)


class Terminated(Ended):
    name = "daemon ended (SIGTERM)"

    def end(self, world, daemon):
        daemon.signal(signal.SIGTERM)
        limit = LIMIT_OF_END * world.grace / 5
        if not wait_until(lambda: not harness.alive(daemon.pid), limit):
            world.outcome.violation("did not end", f"SIGTERM, {daemon.path}")


class Unmounted(Ended):
    """`weightfs umount`: refused while files are open; then detached."""
    name = "weightfs umount, busy"

    def end(self, world, daemon):
        done = daemon.unmount()
        if done.returncode != 0 and "busy" not in done.stderr:
            world.outcome.violation("umount", done.stderr)
        if done.returncode != 0:
            done = daemon.unmount("--lazy")
            if done.returncode != 0:
                world.outcome.violation("umount --lazy", done.stderr)


class Detached(Ended):
    name = "weightfs umount --lazy"

    def end(self, world, daemon):
        done = daemon.unmount("--lazy")
        if done.returncode != 0:
            world.outcome.violation("umount --lazy", done.stderr)


class Stopped(OfDaemon):
    name = "daemon stopped (SIGSTOP)"
    least, most = 0.3, 4.0

    @contextlib.contextmanager
    def apply(self, world):
        daemon = world.daemons[self.number]
        with world.readers.window("stopped", [self.number]):
            daemon.signal(signal.SIGSTOP)
            try:
                yield
            finally:
                daemon.signal(signal.SIGCONT)


class Limited(OfDaemon):
    """A limit of the process, lowered while it runs."""
    limit = 0

    def value(self, daemon):
        raise NotImplementedError

    @contextlib.contextmanager
    def apply(self, world):
        daemon = world.daemons[self.number]
        pid = daemon.pid
        before = None
        with contextlib.suppress(ProcessLookupError):
            before = resource.prlimit(pid, self.limit)
            resource.prlimit(pid, self.limit, (self.value(daemon), before[1]))
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                if before:
                    resource.prlimit(pid, self.limit, before)


class NoDescriptors(Limited):
    name = "no file descriptors left (RLIMIT_NOFILE)"
    least, most = 0.5, 3.0
    limit = resource.RLIMIT_NOFILE

    def value(self, daemon):
        try:
            return daemon.count_open_files() + 2
        except OSError:  # it is going, or its mount is
            return 64


class NoFileSize(Limited):
    """What an ordinary user can do of a disk that is full: no file grows."""
    name = "disk full (RLIMIT_FSIZE)"
    least, most = 0.5, 4.0
    limit = resource.RLIMIT_FSIZE

    def value(self, daemon):
        return 4096


# --- the cache ---

def folders_of_objects(world):
    return sorted(path.parent for path in world.cache.glob("**/data"))


class OfCache(Fault):
    """Damage, once, to what the seed picks of what is there."""

    def __init__(self, random):
        super().__init__(random)
        self.seed = random.randrange(1 << 32)

    def damage(self, world, random):
        raise NotImplementedError

    @contextlib.contextmanager
    def apply(self, world):
        # What is there changes meanwhile.
        with contextlib.suppress(OSError):
            self.damage(world, random_module.Random(self.seed))
        yield


def pick_object(world, random):
    folders = folders_of_objects(world)
    if not folders:
        raise FileNotFoundError("no objects")
    return random.choice(folders)


class Truncated(OfCache):
    name = "cache: data truncated"

    def damage(self, world, random):
        data = pick_object(world, random) / "data"
        os.truncate(data, random.randrange(data.stat().st_size))


class MetaTruncated(OfCache):
    name = "cache: meta truncated"

    def damage(self, world, random):
        meta = pick_object(world, random) / "meta"
        os.truncate(meta, random.randrange(meta.stat().st_size))


class EntriesFlipped(OfCache):
    """Bits of entries, while daemons use them: a wrong hash, or a hash where
    nothing is."""
    name = "cache: bits of entries flipped"

    def damage(self, world, random):
        meta = pick_object(world, random) / "meta"
        with open(meta, "r+b") as file:
            head = file.read(256)
            entries = struct.unpack_from("<Q", head, 48)[0]
            count = struct.unpack_from("<Q", head, 32)[0]
            for _ in range(random.randrange(1, 200)):
                at = entries + random.randrange(8 * count)
                file.seek(at)
                byte = file.read(1)[0]
                file.seek(at)
                file.write(bytes([byte ^ 1 << random.randrange(8)]))


class ObjectDeleted(OfCache):
    name = "cache: object deleted"

    def damage(self, world, random):
        shutil.rmtree(pick_object(world, random), ignore_errors=True)


class FileDeleted(OfCache):
    name = "cache: file of an object deleted"

    def damage(self, world, random):
        (pick_object(world, random) / random.choice(("data", "meta"))).unlink()


class AllObjectsDeleted(OfCache):
    name = "cache: all objects deleted"

    def damage(self, world, random):
        for folder in folders_of_objects(world):
            shutil.rmtree(folder, ignore_errors=True)


class FolderDeleted(OfCache):
    name = "cache: folder deleted"

    def damage(self, world, random):
        shutil.rmtree(world.cache, ignore_errors=True)


class ModesTaken(Fault):
    """chmod 0, which root does not notice."""
    name = "cache: permissions taken"
    least, most = 0.3, 4.0

    def __init__(self, random):
        super().__init__(random)
        self.whole = random.random() < 0.3

    @contextlib.contextmanager
    def apply(self, world):
        changed = []
        places = ([world.cache] if self.whole else
                  [path for folder in folders_of_objects(world)
                   for path in (folder / "data", folder / "meta", folder)])
        for path in places:
            with contextlib.suppress(OSError):
                changed.append((path, path.stat().st_mode & 0o777))
                path.chmod(0)
        try:
            yield
        finally:
            for path, mode in reversed(changed):
                with contextlib.suppress(OSError):
                    path.chmod(mode)


class DiskFull(Fault):
    """A file takes all that is left of the small file system."""
    name = "disk full (ENOSPC)"
    least, most = 0.5, 5.0

    @contextlib.contextmanager
    def apply(self, world):
        ballast = world.disk / "ballast"
        try:
            with contextlib.suppress(OSError), open(ballast, "wb") as file:
                while True:
                    left = os.fstatvfs(file.fileno())
                    size = max(4096, left.f_bavail * left.f_frsize)
                    os.posix_fallocate(file.fileno(), file.tell(), size)
                    file.seek(0, os.SEEK_END)
            yield
        finally:
            ballast.unlink(missing_ok=True)


class OfflineDamage(OfCache):
    """What no running daemon can see: both are killed, bits of what they kept
    flip, both come back. (A bit that flips after a process hashed the granule
    is found by the next process only: cache/LAYOUT.md, "Crash cases". So
    nobody may have a file open then: what is passed through, the kernel reads
    on without a daemon.)"""
    name = "both killed, cache bits flipped"
    least, most = 0.0, 0.5

    @contextlib.contextmanager
    def apply(self, world):
        with world.readers.window("down", world.both()):
            world.kill_daemons()
            # A detached one of before still serves, and hashed what it holds.
            detached = [pid for daemon in world.daemons for pid in daemon.old
                        if harness.alive(pid)]
            if not detached:
                world.readers.ask("pause", 2 * (world.timeout + world.grace))
                with contextlib.suppress(OSError):
                    self.damage(world, random_module.Random(self.seed))
                world.readers.ask("resume")
            yield
            for daemon in world.daemons:
                daemon.start_again()

    def damage(self, world, random):
        for folder in folders_of_objects(world):
            for name, most in (("data", 400), ("meta", 8)):
                with open(folder / name, "r+b") as file:
                    size = os.fstat(file.fileno()).st_size
                    for _ in range(random.randrange(most)):
                        at = random.randrange(size)
                        file.seek(at)
                        byte = file.read(1)[0]
                        file.seek(at)
                        file.write(bytes([byte ^ 1 << random.randrange(8)]))


# --- readers and the page cache ---

class ReaderSignalled(Fault):
    def __init__(self, random):
        super().__init__(random)
        self.draw = random.random()

    signal = signal.SIGINT

    @contextlib.contextmanager
    def apply(self, world):
        number = int(self.draw * world.readers.processes)
        world.readers.ask(f"signal {number} {int(self.signal)}")
        yield


class ReaderInterrupted(ReaderSignalled):
    name = "reads interrupted (SIGINT)"


class ReaderKilled(ReaderSignalled):
    name = "readers killed (SIGKILL)"
    signal = signal.SIGKILL


class CachesDropped(Fault):
    name = "page cache, dentries and inodes dropped"

    def __init__(self, random):
        super().__init__(random)
        self.what = random.choice("123")

    @contextlib.contextmanager
    def apply(self, world):
        pathlib.Path("/proc/sys/vm/drop_caches").write_text(self.what)
        yield


def lanes(world):
    """Lane -> [(weight, fault class)], as this user and disk permit."""
    root = os.getuid() == 0
    daemons = [(4, Killed), (2, Terminated), (2, Unmounted), (2, Detached),
               (4, Stopped), (1, NoDescriptors), (2, OfflineDamage)]
    cache = [(2, Truncated), (1, MetaTruncated), (2, EntriesFlipped),
             (3, ObjectDeleted), (1, FileDeleted), (3, AllObjectsDeleted),
             (1, FolderDeleted)]
    cache += [(3, DiskFull)] if world.has_own_disk else []
    daemons += [] if world.has_own_disk else [(2, NoFileSize)]
    cache += [] if root else [(2, ModesTaken)]
    readers = [(40, ReaderInterrupted), (30, ReaderKilled)]
    if root and os.access("/proc/sys/vm/drop_caches", os.W_OK):
        readers.append((1, CachesDropped))
    return {"origin": [(8, Origin), (2, FinalOrigin)], "daemons": daemons,
            "cache": cache, "readers": readers}
