"""The harness, with a fault that it must report: it can fail."""

import shutil
import signal

import origin_faults
from world import say, wait_until

# Of the model: small, so that every byte of it is soon read.
SPEC = "tensors=8,tensor_bytes=262144,dtype=F32,seed=7"


def prepare(arguments):
    arguments.spec = SPEC
    arguments.readers, arguments.threads = 16, 4
    arguments.pace_us = 5_000
    arguments.disk_size = ""
    arguments.read_timeout = 4 * arguments.scale
    arguments.grace = 2 * arguments.scale


def first_of(world, kind, timeout):
    wait_until(lambda: world.outcome.violations[kind] > 0, timeout)
    return world.outcome.first.get(kind, "")


def start_over(world, *faults_of_hub):
    """With an empty cache, and these faults."""
    with world.readers.window("down", world.both()):
        world.kill_daemons()
        shutil.rmtree(world.cache)
        for order in faults_of_hub:
            world.hub.fault(**order)
        for daemon in world.daemons:
            daemon.start_again()


def wrong_byte(world):
    """The origin sends one byte that is not the source's. All of the file may
    be there, and its hash tell, before a reader came to it: then once more."""
    found = ""
    for _ in range(8):
        start_over(world, {"kind": "flip_bit", "number": 700_001,
                           "listener": "cdn"})
        found = first_of(world, "wrong bytes", 8)
        if found:
            break
    return '"what": "1 wrong bytes, 0 of' in found


def hang(world):
    """Calls do not return."""
    world.daemons[0].signal(signal.SIGSTOP)
    found = first_of(world, "past the deadline", 3 * world.timeout + 60)
    world.daemons[0].signal(signal.SIGCONT)
    return "did not return yet" in found and "mount0" in found


def error(world):
    """The origin gives a final answer, and nothing explains it."""
    start_over(world, {"kind": "range_total", "number": 1, "listener": "cdn"})
    return '"errno": 5' in first_of(world, "unexplained error", 60)


def death(world):
    """A daemon ends that nobody ended."""
    world.daemons[1].signal(signal.SIGKILL)
    return ("mount1" in first_of(world, "a daemon died", 30) and
            "mount1" in first_of(world, "unexplained error", 30))


def tables(world):
    """Every fault of the hub has a place in the tables."""
    differences = origin_faults.differences(
        world.hub.control("fault_kinds")["kinds"])
    for difference in differences:
        say(difference)
    return not differences


TESTS = {"tables": tables, "wrong-byte": wrong_byte, "hang": hang, "error": error,
         "death": death}


def run(name, world):
    """0 if the harness saw what was planted."""
    seen = TESTS[name](world)
    say(f"self-test {name}: " + ("as planted" if seen else "NOT SEEN"))
    return 0 if seen else 1
