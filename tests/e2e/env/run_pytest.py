#!/usr/bin/env python3
"""run_pytest.py ARGS…: pytest for ctest.

Exits with 77 (ctest: skipped) when every test was skipped, says why each was,
and fails when there was no test at all.
"""

import sys

import pytest

SKIPPED = 77


class Outcomes:
    """Counts what ran."""

    def __init__(self):
        self.ran = 0

    def pytest_runtest_logreport(self, report):
        if report.when == "call" and not report.skipped or report.failed:
            self.ran += 1


def main():
    outcomes = Outcomes()
    status = pytest.main(
        ["-p", "no:cacheprovider", "-rs", "-v", "--color=no",
         "--durations=5", "--durations-min=5", *sys.argv[1:]], [outcomes])
    return SKIPPED if status == 0 and outcomes.ran == 0 else int(status)


if __name__ == "__main__":
    sys.exit(main())
