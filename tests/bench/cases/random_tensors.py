"""Some of the tensors, in no order."""

import random

import contenders
from report import Probe, hold
from world import GRANULE

FILES = "as tensor files"
REPO = "in repo/, by mmap"


def granules(tensors, size):
    """The bytes of the granules that the tensors touch."""
    touched = {number for tensor in tensors for number in range(
        tensor.offset // GRANULE,
        (tensor.offset + tensor.length - 1) // GRANULE + 1)}
    return sum(min(GRANULE, size - number * GRANULE) for number in touched)


class Case:
    """Cold, 10 % of the tensors in random order: bytes fetched ÷ bytes needed"""
    NAME = "random-tensors"
    WIRE = "wire"

    def probes(self, bench, _condition, _stack):
        model = bench.many_small()
        (shard,) = model.shards
        chosen = random.Random(7).sample(model.tensors,
                                         max(1, len(model.tensors) // 10))
        needed = granules(chosen, model.size(shard))

        def read(contender, job_of, look, **how):
            def measure():
                with contender.open(model) as mounted:
                    # Headers come at the first look, and are not counted.
                    bench.walk(mounted, look(mounted))
                    bench.origin.settle()
                    bench.origin.clear()
                    sample = bench.read(mounted, job_of(mounted, chosen),
                                        **how)
                    bench.origin.settle()
                    fetched = sum(request["body_bytes"]
                                  for request in bench.origin.requests())
                    sample["ratio"] = fetched / needed
                    sample["requests"] = len(bench.origin.requests())
                    sample["notes"] = {
                        "GB/s": sample["GB/s"],
                        "requests": sample["requests"]}
                return sample
            return measure

        mounts = contenders.all_mounts(bench)
        rows = [Probe(name, FILES, "ratio",
                      read(mounts[name], model.as_files,
                           lambda mounted: mounted.path / "tensors/raw"))
                for name in contenders.OURS if name in mounts]
        rows += [Probe(name, REPO, "ratio",
                       read(mounts[name], model.in_files,
                            lambda mounted: mounted.files, mode="mmap"),
                       name not in contenders.PEERS)
                 for name in (*contenders.OURS, *contenders.PEERS)
                 if name in mounts]
        return rows

    def judge(self, get, condition):
        for who in contenders.OURS:
            row = get(FILES, who)
            hold(row, "fetched ÷ needed", row and row.median, 1.05,
                 at_most=True, figure="bytes fetched ÷ bytes needed, 10 % of "
                 "the tensors at random")
            row = get(REPO, who)
            hold(row, "fetched ÷ needed", row and row.median, None,
                 figure="the same through repo/, by mmap")
