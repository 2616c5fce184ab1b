#!/usr/bin/env python3
"""The benchmark of weightfs: everything side by side in one run, round after
round, every byte compared with its source; one table.

    tests/bench/run                          all of it (an hour and a half)
    tests/bench/run --quick                  small and once, to see that it works
    tests/bench/run --case cold-read cold-mmap --rounds 20 --latency 20
    tests/bench/run --list

Exit status: 0 if every byte was right and every row of weightfs has figures,
whatever they are.
"""

import argparse
import contextlib
import json
import pathlib
import re
import sys

sys.dont_write_bytecode = True
# pylint: disable=wrong-import-position
import cases
import contenders
import report
import world


def number(text, unit):
    match = re.fullmatch(r"(\d+)([KMG]?)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text}: write it as 64M or 1G")
    return int(match[1]) * unit ** " KMG".index(match[2] or " ")


def size(text):
    return number(text, 1024)


def rate(text):
    return number(text, 1000)  # as wires are measured


def parse():
    parser = argparse.ArgumentParser(
        prog="tests/bench/run", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true",
                        help="the cases and the contenders, and no run")
    parser.add_argument("--case", nargs="+", metavar="NAME", default=[],
                        help="only these cases")
    parser.add_argument("--contender", nargs="+", metavar="NAME", default=[],
                        help="only these, and what they are compared with "
                        "has no ratio")
    parser.add_argument("--quick", action="store_true",
                        help="small sizes, 1 round, 1 latency")
    parser.add_argument("--rounds", type=int, help="(3; quick: 1)")
    parser.add_argument("--size", type=size, help="of a model (1G; quick: 16M)")
    parser.add_argument("--tensors", type=int,
                        help="of the many (100000; quick: 2000)")
    parser.add_argument("--latency", type=int, nargs="+", metavar="MS",
                        help="before each answer (0 20 100; quick: 20)")
    parser.add_argument("--rate", type=rate, nargs="+", metavar="BYTES",
                        help="per second and connection, 0 for no limit "
                        "(0 100M; quick: 100M)")
    parser.add_argument("--limit", type=float, default=10,
                        help="seconds after which a read stops, its rate "
                        "being that of what it read (10)")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE",
                        help="all figures")
    parser.add_argument("--work", type=pathlib.Path, metavar="FOLDER",
                        help="on the disk to measure (a temporary one)")
    parser.add_argument("--mount-option", action="append", default=[],
                        help="for `weightfs mount`, as --mount-option=--X=Y")
    parser.add_argument("--self-test", action="store_true",
                        help="change a byte of every source after the origin "
                        "took it; exit status 0 if every row tells so")
    options = parser.parse_args()
    quick = options.quick
    options.rounds = options.rounds or (1 if quick else 3)
    options.size = options.size or ((16 << 20) if quick else (1 << 30))
    options.tensors = options.tensors or (2000 if quick else 100_000)
    options.given = options.latency is not None or options.rate is not None
    options.latency = options.latency or ([20] if quick else [0, 20, 100])
    if options.rate is None:
        options.rate = [world.RATE] if quick else [0, world.RATE]
    known = set(cases.ALL)
    if unknown := set(options.case) - known:
        parser.error(f"no case is called {', '.join(sorted(unknown))}; "
                     f"--list tells their names")
    if unknown := set(options.contender) - set(contenders.NAMES):
        parser.error(f"no contender is called {', '.join(sorted(unknown))}; "
                     f"--list tells their names")
    return options


def show_list():
    for name, case in cases.ALL.items():
        print(f"{name:16} {case.__doc__.strip().splitlines()[0]}")
    print()
    for name, what in contenders.NAMES.items():
        print(f"{name:16} {what}")


def run_case(bench, case, condition, rows):
    """All rounds of a case; what is set up for it goes with it."""
    with contextlib.ExitStack() as stack:
        bench.origin.set(condition)
        try:
            probes = [probe for probe in case.probes(bench, condition, stack)
                      if bench.wants(probe.who)]
        except world.Failed as failed:
            rows.append(report.broken(case, condition, str(failed)))
            return
        made = {probe: report.Row(case.NAME, condition, probe)
                for probe in probes}
        for number in range(bench.options.rounds):
            # Each begins a round once: what comes first is not always one.
            shift = number % max(1, len(probes))
            for probe in probes[shift:] + probes[:shift]:
                bench.measure(made[probe], number)
        rows.extend(made.values())
        report.judge(case, condition, list(made.values()))


def main():
    options = parse()
    if options.list:
        show_list()
        return 0
    chosen = [case for name, case in cases.ALL.items()
              if not options.case or name in options.case]
    rows = []
    with world.Bench(options) as bench:
        skipped = bench.skipped
        for case in chosen:
            for condition in bench.conditions(case):
                run_case(bench, case(), condition, rows)
                # A run of hours that ends early has not been for nothing.
                if options.json:
                    options.json.write_text(json.dumps(report.as_json(
                        bench.about(), skipped, rows), indent=1) + "\n")
    print(report.table(rows))
    for name, why in skipped.items():
        print(f"skipped: {name}: {why}")
    if options.self_test:
        blind = [row for row in rows if not sum(row.others("wrong_bytes"))]
        for row in blind:
            print(f"FAILED: {row.case}, {row.what}, {row.who}: sees no wrong "
                  f"byte")
        return 1 if blind or not rows else 0
    bad = report.complaints(rows)
    for complaint in bad:
        print(f"FAILED: {complaint}")
    return 1 if bad or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
