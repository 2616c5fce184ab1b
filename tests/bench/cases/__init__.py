"""The cases: every module here has a class Case, whose first line of text is
what it measures, and whose

    NAME                      is how it is called;
    WIRE                      says what it needs of the origin: "all" latencies
                              and rates; "wire", 20 ms and 100 MB/s if the
                              command line says nothing; "fast", no latency and
                              no limit; None, no origin;
    probes(bench, condition, stack)  answers the rows (report.Probe), and leaves
                              on the stack what is to be closed at the end;
    judge(get, condition)     holds rows to figures (report.hold); get(what,
                              who) is a row, or None if it was not measured.
"""

import importlib
import pathlib

_ORDER = ("ceiling", "cold_read", "cold_mmap", "cold_load", "torch_mmap",
          "random_tensors", "first_tensor", "warm", "streams", "many_tensors")
_FOUND = sorted(
    (path.stem for path in pathlib.Path(__file__).parent.glob("[a-z]*.py")),
    key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER),
                      name))

# name -> class
ALL = {}
for _name in _FOUND:
    _case = importlib.import_module(f"cases.{_name}").Case
    ALL[_case.NAME] = _case
