#!/usr/bin/env python3
"""Checks that each statement of fs/SEMANTICS.md and fs/SECURITY.md, and each
row of tests/RELIABILITY.md, names tests that exist.

    semantics.py ROOT        prints each row that names no test or an unknown one
    semantics.py --self-test plants both faults and expects them to be found

A test is `Suite.Name` of a *_test.cc or `test_file.py::test_name` below
tests/e2e. Standard library only.
"""

import pathlib
import re
import sys
import tempfile

CC_TEST = re.compile(r"^TEST(?:_F|_P)?\(\s*(\w+),\s*(\w+)\)", re.MULTILINE)
PY_TEST = re.compile(r"^def (test_\w+)\(", re.MULTILINE)
DOCUMENTS = ("fs/SEMANTICS.md", "fs/SECURITY.md", "tests/RELIABILITY.md")
# How a table's first row begins.
HEADS = ("| ---", "| what", "| threat", "| found by")
NAMED = re.compile(r"`(\w+\.\w+|test_\w+\.py::test_\w+)`")


def known_tests(root):
    tests = set()
    for path in (root / "tests").rglob("*_test.cc"):
        tests |= {f"{suite}.{name}"
                  for suite, name in CC_TEST.findall(path.read_text())}
    for path in (root / "tests/e2e").glob("test_*.py"):
        tests |= {f"{path.name}::{name}"
                  for name in PY_TEST.findall(path.read_text())}
    return tests


def faults_of(path, text, tests):
    rows = [line for line in text.splitlines()
            if line.startswith("| ") and not line.startswith(HEADS)]
    found = [] if rows else [f"{path}: no statements"]
    for row in rows:
        named = NAMED.findall(row.split("|")[-2])
        if not named:
            found.append(f"{path}: names no test: {row}")
        found += [f"{path}: no such test: {name}"
                  for name in named if name not in tests]
    return found


def faults(root):
    tests = known_tests(root)
    return [fault for path in DOCUMENTS
            for fault in faults_of(path, (root / path).read_text(), tests)]


def self_test():
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        (root / "fs").mkdir()
        (root / "tests/e2e").mkdir(parents=True)
        (root / "tests/a_test.cc").write_text("TEST(Suite, Works) {\n}\n")
        for path, head in zip(DOCUMENTS, ("what is promised | test |",
                                          "threat | defence | test |",
                                          "found by | now | test |")):
            (root / path).write_text(
                f"| {head}\n| --- | --- |\n"
                "| good | `Suite.Works` |\n| bare | none |\n"
                "| gone | `Suite.Gone` |\n")
        found = faults(root)
    assert len(found) == 6, found
    for i, path in enumerate(DOCUMENTS):
        assert all(path in fault for fault in found[2 * i:2 * i + 2]), found
        assert "names no test" in found[2 * i], found
        assert "Suite.Gone" in found[2 * i + 1], found
    return []


def main():
    if sys.argv[1:] == ["--self-test"]:
        found = self_test()
    else:
        found = faults(pathlib.Path(sys.argv[1]))
    print("\n".join(found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
