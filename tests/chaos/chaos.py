#!/usr/bin/env python3
"""chaos.py: two mounts over one cache folder are read by 64 readers while all
goes wrong that can: the origin, the daemons, the cache, the disk, the readers.
Every byte is compared with the source, every call with its deadline.

    tests/chaos/chaos --seconds 110            the form in CI
    tests/chaos/chaos --minutes 30 [--as-user] by hand
    tests/chaos/chaos --seed N …               a run again
    tests/chaos/chaos --plan --seed N          what such a run does

A run is a warm-up and then phases: faults as the seed has them, then a calm in
which no read may fail, then a pause in which the daemons' open files, threads
and memory are compared with those after the warm-up. Exit status: 0 if nothing
was violated.
"""

import argparse
import json
import os
import pathlib
import random as random_module
import shutil
import signal
import sys
import tempfile
import threading
import time

sys.dont_write_bytecode = True
# pylint: disable=wrong-import-position
from world import Outcome, World, say, wait_until
import harness
import faults
import report
import selftest

# Seconds of a phase's faults, about, and of the calm after it.
PHASE = 24.0
CALM = 2.0
GAPS = {"origin": (1.0, 4.0), "daemons": (2.0, 7.0), "cache": (1.0, 5.0),
        "readers": (0.3, 2.0)}


def plan(seed, number, lanes, seconds, timeout):
    """Of one phase: lane -> [(begin, fault)], a function of the seed."""
    planned = {}
    for lane, choices in lanes.items():
        random = random_module.Random(f"{seed}/{number}/{lane}")
        at, events = random.uniform(0, 1.5), []
        # In every third phase the origin is gone for longer than reads wait.
        if lane == "origin" and number % 3 == 1:
            fault = faults.LastingOrigin(random, timeout)
            events.append((at, fault))
            at += fault.seconds + 2
        while True:
            weights = [weight for weight, _ in choices]
            kind = random.choices([kind for _, kind in choices], weights)[0]
            fault = kind(random)
            if at + fault.seconds > seconds:
                break
            events.append((at, fault))
            at += fault.seconds + random.uniform(*GAPS[lane])
            if lane == "origin":
                # Long enough for the waits between tries that it caused.
                at += 1.5 * fault.seconds
        planned[lane] = events
    return planned


class Run:
    def __init__(self, world, arguments):
        self.world = world
        self.outcome = world.outcome
        self.arguments = arguments
        self.lanes = faults.lanes(world)
        self.baseline = None
        self.quiet = []  # usage at each quiet point
        self.requests = 0
        self.threads = []
        self.failed = False

    def run(self):
        arguments, readers = self.arguments, self.world.readers
        end = time.monotonic() + arguments.seconds
        say("warm-up")
        self._calm(arguments.warm_up)
        self._quiet_point()
        number = 0
        while (left := end - time.monotonic()) > 8 or number == 0:
            # As many phases as fit, of one length.
            phases = max(1, round(left / (PHASE * arguments.scale + 6)))
            seconds = max(6.0, left / phases - 6)
            self._phase(number, seconds)
            number += 1
        say("the end")
        self._finish()
        return readers.end

    def _phase(self, number, seconds):
        say(f"phase {number}: {seconds:.0f} s of faults")
        planned = plan(self.arguments.seed, number, self.lanes, seconds,
                       self.world.timeout)
        self.threads = [threading.Thread(target=self._lane, args=(events,))
                        for events in planned.values()]
        for thread in self.threads:
            thread.start()
        self.join()
        if self.failed:
            raise RuntimeError("the run cannot go on")
        self._heal()
        self._calm(CALM * self.arguments.scale)
        self._quiet_point()

    def join(self):
        for thread in self.threads:
            thread.join()

    def _lane(self, events):
        began = time.monotonic()
        for at, fault in events:
            self.world.closed.wait(max(0.0, began + at - time.monotonic()))
            if self.failed or self.world.closed.is_set():
                return
            if self.arguments.verbose:
                say(f"  {fault} for {fault.seconds:.1f} s")
            if not isinstance(fault, faults.Origin):
                self.outcome.fault(fault.name)
            try:
                with fault.apply(self.world):
                    self.world.closed.wait(fault.seconds)
            except Exception as error:  # pylint: disable=broad-except
                self.outcome.violation("the run broke", f"{fault}: {error!r}")
                self.failed = True

    def _heal(self):
        """After the faults: a cache of which nothing is whole is made anew by
        the daemons themselves; all that is seen to here is the origin."""
        faults.again(lambda: self.world.hub.control("clear_faults"))
        faults.again(lambda: self.world.hub.control("release_hangs"))

    def _calm(self, seconds):
        """Reads go well on both mounts, and soon."""
        readers = self.world.readers
        before = readers.stats()["mount_reads"]
        self.world.closed.wait(seconds)

        def moved():
            now = readers.stats()["mount_reads"]
            return all(b - a >= 20 for a, b in zip(before, now))
        if not wait_until(moved, self.world.timeout + self.world.grace):
            self.outcome.violation("no progress", "a calm brought no reads")

    def _quiet_point(self):
        world, readers = self.world, self.world.readers
        limit = 2 * (world.timeout + world.grace)
        try:
            readers.ask("pause", timeout=limit)
        except Exception as error:  # pylint: disable=broad-except
            self.outcome.violation("readers do not rest", repr(error))
            raise
        old = [pid for daemon in world.daemons for pid in daemon.old]
        if not wait_until(lambda: not any(map(harness.alive, old)),
                          5 * self.arguments.scale):
            for pid in filter(harness.alive, old):
                self.outcome.violation("a daemon is left", str(pid))
        for daemon in world.daemons:
            daemon.old = []
        self._measure()
        self.requests += len(world.hub.log())
        world.hub.control("clear_log")
        readers.ask("resume")

    def _measure(self):
        """The daemons, at rest: against those after the warm-up."""
        world = self.world
        if self.baseline is None:
            wait_until(lambda: False, 1.0)  # what the warm-up started
            self.baseline = [daemon.usage() for daemon in world.daemons]
            self.quiet.append(self.baseline)
            say(f"  at rest: {self.baseline}")
            return

        def excess():
            found = []
            for daemon, base in zip(world.daemons, self.baseline):
                for what, now in daemon.usage().items():
                    room = report.ROOM[what]
                    if what == "rss" and self.arguments.sanitized:
                        continue
                    if now > base[what] + room:
                        found.append(f"{daemon.path}: {what} {now}, "
                                     f"{base[what]} after the warm-up")
            return found
        wait_until(lambda: not excess(), 10 * self.arguments.scale)
        for what in excess():
            self.outcome.violation("leak", what)
        now = [daemon.usage() for daemon in world.daemons]
        self.quiet.append(now)
        say(f"  at rest: {now}")

    def _finish(self):
        world = self.world
        world.readers.stop(2 * (world.timeout + world.grace) + 20)
        if world.readers.end is None:
            self.outcome.violation("the readers did not end", "")
        elif world.readers.end["unkillable"]:
            self.outcome.violation("D state", json.dumps(world.readers.end))
        for daemon in world.daemons:
            daemon.expected = False
            done = daemon.unmount()
            limit = 5 * self.arguments.scale
            if done.returncode != 0 or not wait_until(
                    lambda d=daemon: not harness.alive(d.pid), limit):
                self.outcome.violation(
                    "unmount at the end",
                    f"{daemon.path}: {done.returncode} {done.stderr}")
            report.check_log(daemon.log, self.outcome)
        stuck = report.in_d_state()
        if stuck and wait_until(lambda: not report.in_d_state(), 5):
            stuck = []
        for process in stuck:
            self.outcome.violation("D state", process)


def parse(argv):
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--seconds", type=float, default=110)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--readers", type=int, default=64)
    parser.add_argument("--threads", type=int, default=4,
                        help="of each reader process")
    parser.add_argument("--spec", help="of the hub's made-up model")
    parser.add_argument("--read-timeout", type=float, default=12)
    parser.add_argument("--grace", type=float, default=5)
    parser.add_argument("--warm-up", type=float, default=6)
    parser.add_argument("--pace-us", type=int, default=60_000)
    parser.add_argument("--cache-size", default="256M",
                        help="of the mounts, where they know it")
    parser.add_argument("--disk-size", default="512M",
                        help="of the cache's file system, as root")
    parser.add_argument("--mount-option", action="append", default=[])
    parser.add_argument("--scale", type=float, default=1,
                        help="how much slower this build is")
    parser.add_argument("--sanitized", action="store_true")
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--keep", action="store_true", help="logs and cache")
    parser.add_argument("--self-test", choices=sorted(selftest.TESTS))
    arguments = parser.parse_args(argv)
    if arguments.minutes:
        arguments.seconds = 60 * arguments.minutes
    if arguments.seed is None:
        arguments.seed = random_module.SystemRandom().randrange(1 << 31)
    arguments.read_timeout *= arguments.scale
    arguments.grace *= arguments.scale
    arguments.pace_us = int(arguments.pace_us * arguments.scale)
    arguments.stall = 2 * arguments.scale
    arguments.spec = arguments.spec or (
        f"tensors=1000,shards=40,tensor_bytes=2000056,dtype=F32,"
        f"seed={arguments.seed % 100_000 + 1}")
    known = harness.run("mount", "--help", home="/", check=False).stdout
    if "--cache-size" in known:
        arguments.mount_option += ["--cache-size", arguments.cache_size]
    return arguments


def print_plan(arguments, world):
    for number in range(int(arguments.seconds // (PHASE + 6)) or 1):
        print(f"phase {number}")
        planned = plan(arguments.seed, number, faults.lanes(world), PHASE,
                       arguments.read_timeout)
        for at, lane, text, seconds in sorted(
                (at, lane, str(fault), fault.seconds)
                for lane, events in planned.items() for at, fault in events):
            print(f"  {at:6.2f} s, {seconds:5.2f} s  {lane:8} {text}")


def main(argv):
    arguments = parse(argv)
    outcome = Outcome()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="weightfs-chaos-"))
    if arguments.self_test:
        selftest.prepare(arguments)
    world = World(folder, outcome, arguments)
    if arguments.plan:
        print_plan(arguments, world)
        shutil.rmtree(folder)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    say(f"seed {arguments.seed}; {arguments.readers} readers, "
        f"{arguments.seconds:.0f} s, uid {os.getuid()}, in {folder}")
    run, end = None, None
    try:
        world.start(arguments)
        if arguments.self_test:
            return selftest.run(arguments.self_test, world)
        run = Run(world, arguments)
        end = run.run()
    except Exception as error:  # pylint: disable=broad-except
        outcome.violation("the run broke", repr(error))
    finally:
        world.closed.set()
        if run:
            run.join()
        world.clean()
        if arguments.keep:
            say(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    report.print_report(arguments, outcome, run, end)
    return 0 if outcome.clean() else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
