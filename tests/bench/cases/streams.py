"""Many shards at once, and what memory that takes."""

import contenders
from report import Probe, hold

WHAT = "64 shards at once"


class Case:
    """Cold, 64 shards streamed at once: the most anonymous memory and buffers"""
    NAME = "streams"
    WIRE = "wire"

    def probes(self, bench, _condition, _stack):
        model = bench.model("streams", "tensors=256,shards=64,dtype=F16,"
                            f"seed=100,size={4 * bench.options.size}")

        def read(contender, unit):
            def measure():
                with contender.open(model) as mounted:
                    sample = bench.read(
                        mounted, model.whole_files(mounted), threads=64,
                        order="items", at_once=True)
                sample["MB"] = sample["peak_memory"] / 1e6
                if unit == "MB":
                    sample["notes"] = {"GB/s": sample["GB/s"]}
                return sample
            return measure

        mounts = contenders.all_mounts(bench)
        rows = []
        for name in (*contenders.OURS, *contenders.PEERS):
            if name in mounts:
                rows.append(Probe(name, WHAT, "MB", read(mounts[name], "MB"),
                                  name not in contenders.PEERS))
        return rows

    def judge(self, get, condition):
        for who in contenders.OURS:
            row = get(WHAT, who)
            hold(row, "MB of memory", row and row.median, 512, at_most=True,
                 figure="64 shards streamed at once, anonymous memory")
