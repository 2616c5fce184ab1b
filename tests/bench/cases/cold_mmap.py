"""Cold reads through a mapping."""

import contenders
from report import Probe, hold, hold_to_peers, ratio
from world import WIRE

READ = "read(), 1 thread"
STALL = 1.0  # seconds for a page: nothing waits so long that is not lost


class Case:
    """Cold, by page faults in a mapping: 1 and 32 threads, a part each; stalls

    --rounds 20 is the form in which no stall is promised."""
    NAME = "cold-mmap"
    WIRE = "all"

    def probes(self, bench, _condition, _stack):
        model = bench.one_shard()

        def read(contender, **how):
            def measure():
                with contender.open(model) as mounted:
                    sample = bench.read(mounted, model.whole_files(mounted),
                                        **how)
                sample["stalls"] = int(sample["longest"] > STALL)
                return sample
            return measure

        mounts = contenders.all_mounts(bench)
        rows = []
        for what, names, how in (
                (READ, contenders.OURS, {}),
                ("1 thread", contenders.OURS + contenders.PEERS,
                 {"mode": "mmap"}),
                ("32 threads", contenders.OURS + contenders.PEERS,
                 {"mode": "mmap", "threads": 32, "order": "parts"})):
            rows += [Probe(name, what, "GB/s", read(mounts[name], **how),
                           name not in contenders.PEERS)
                     for name in names if name in mounts]
        return rows

    def judge(self, get, condition):
        for who in contenders.OURS:
            for what in ("1 thread", "32 threads"):
                row = get(what, who)
                figure = condition == WIRE and (
                    "cold mmap, 1 and 32 threads, against that read()")
                hold(row, "× its read()", ratio(row, get(READ, who)), 0.8,
                     figure=figure)
                if row is not None:
                    # A read that never ended is a failure, and a stall.
                    stalls = sum(row.others("stalls")) + len(row.failures)
                    hold(row, f"stalls in {len(row.samples)} rounds", stalls,
                         0, at_most=True, figure=figure)
                hold_to_peers(get, what, who, contenders.PEERS, 1)
