"""What a chaos run prints at its end, and the checks of what is left."""

import os
import pathlib
import re

from world import say

# What a daemon at rest may have more than after the warm-up. Connections of
# the HTTP client are kept open for the next request; threads are pools.
ROOM = {"fds": 64, "threads": 4, "rss": 160 << 20}

SANITIZERS = re.compile(r"(ERROR|WARNING): \w+Sanitizer|runtime error:")


def check_log(path, outcome):
    text = path.read_text(errors="replace")
    found = SANITIZERS.search(text)
    if found:
        outcome.violation("sanitizer", f"{path}: " +
                          text[found.start():found.start() + 3000])


def in_d_state():
    """Processes of this user that wait in the kernel and can't be killed."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if path.stat().st_uid != os.getuid():
                continue
            text = (path / "stat").read_text()
            name, state = text.split("(", 1)[1].rsplit(")", 1)
            if state.split()[0] == "D" and "weightfs" in name:
                found.append(f"{path.name} {name}")
        except OSError:
            continue
    return found


def mega(count):
    return f"{count / 1e6:,.1f} MB"


def print_report(arguments, outcome, run, end):
    say("done")
    print(f"seed                 {arguments.seed}")
    print(f"as                   uid {os.getuid()}, "
          f"{arguments.readers} readers, {arguments.seconds:.0f} s")
    if end:
        print_counts(arguments, run, end)
    print("faults")
    for name, count in sorted(outcome.faults.items()):
        print(f"  {count:6}  {name}")
    for name, count in sorted(outcome.notes.items()):
        print(f"  {count:6}  ({name})")
    print("violations           " + (
        ", ".join(f"{count} × {kind}" for kind, count in
                  sorted(outcome.violations.items())) or "none"))
    for kind, what in sorted(outcome.first.items()):
        print(f"  {kind}: {what}")


def print_counts(arguments, run, end):
    calls = sum(end["calls"].values())
    print(f"calls                {calls:,}")
    for kind, count in end["calls"].items():
        print(f"  {kind:17}  {count:10,}  {mega(end['bytes'][kind])}")
    print(f"bytes checked        {end['bytes_checked']:,}")
    print(f"wrong bytes          {end['wrong_bytes']} in "
          f"{end['wrong_reads']} reads")
    print("errors, explained    " + ", ".join(
        f"{count} {excuse}" for excuse, count in end["excused"].items()
        if excuse != "stopped"))
    print(f"errors, unexplained  {end['unexcused']}")
    print(f"  SIGBUS of both     {end['bus_errors']}")
    print(f"interrupted          {end['interrupted']}")
    print(f"short, explained     {end['short_reads']}")
    limit = arguments.read_timeout + arguments.grace
    print(f"past the deadline    {end['late']} (of {limit:.0f} s)")
    print("latency              " + ", ".join(
        f"{name} {end[key] / 1000:,.2f} ms" for name, key in
        (("p50", "p50_us"), ("p99", "p99_us"), ("p99.99", "p9999_us"),
         ("max", "max_us"))))
    print(f"requests to the hub  {run.requests:,}")
    for what in ("fds", "threads", "rss"):
        print(f"daemons' {what:11} " + "  ".join(
            "/".join(mega(usage[what]) if what == "rss" else str(usage[what])
                     for usage in point) for point in run.quiet))
