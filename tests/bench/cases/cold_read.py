"""Cold reads with read()."""

import contenders
from report import Probe, hold, hold_to_peers, ratio
from world import WIRE

ONE = "1 thread"
SIXTEEN = "16 threads on one file"
SHARDS = "a thread for each of 8 shards"


class Case:
    """Cold, by read(): 1 and 16 threads on one file, a thread for each shard"""
    NAME = "cold-read"
    WIRE = "all"

    def probes(self, bench, _condition, _stack):
        one, eight = bench.one_shard(), bench.eight_shards()
        (shard,) = one.shards
        rows = [
            Probe("curl", ONE, "GB/s", lambda: bench.fetch(one, shard, 1)),
            Probe("curl-16", ONE, "GB/s", lambda: bench.fetch(one, shard, 16)),
            Probe("snapshot", ONE, "GB/s",
                  lambda: contenders.snapshot(bench, one, False),
                  needed=False),
            Probe("snapshot", SHARDS, "GB/s",
                  lambda: contenders.snapshot(bench, eight, False),
                  needed=False)]

        def read(contender, model, **how):
            def measure():
                with contender.open(model) as mounted:
                    return bench.read(mounted, model.whole_files(mounted),
                                      **how)
            return measure

        mounts = contenders.all_mounts(bench)
        for name in (*contenders.OURS, *contenders.PEERS):
            if name not in mounts:
                continue
            needed = name not in contenders.PEERS
            for what, model, how in (
                    (ONE, one, {}), (SIXTEEN, one, {"threads": 16}),
                    (SHARDS, eight, {"threads": 8, "order": "items"})):
                rows.append(Probe(name, what, "GB/s",
                                  read(mounts[name], model, **how), needed))
        # As if cold: what FUSE alone takes of a first read.
        for name in ("memory", "memory-user"):
            if name in mounts:
                for what, how in ((ONE, {}), (SIXTEEN, {"threads": 16})):
                    rows.append(Probe(name, what, "GB/s",
                                      read(mounts[name], one, **how)))
        order = {ONE: 0, SIXTEEN: 1, SHARDS: 2}
        return sorted(rows, key=lambda row: order[row.what])

    def judge(self, get, condition):
        for who in contenders.OURS:
            one, sixteen = get(ONE, who), get(SIXTEEN, who)
            wire = condition == WIRE
            hold(one, "× min(8 × curl, 0.9 × curl-16)", ratio(
                one, get(ONE, "curl"), get(ONE, "curl-16"),
                of=lambda curl, sixteen: min(8 * curl, 0.9 * sixteen)), 1,
                figure=wire and "cold sequential read, 20 ms, 100 MB/s")
            hold(sixteen, "× 1 thread", ratio(sixteen, one), 1,
                 figure=wire and "the same, 16 threads on one fd")
            for what in (ONE, SIXTEEN, SHARDS):
                hold_to_peers(get, what, who, contenders.PEERS, 1)
