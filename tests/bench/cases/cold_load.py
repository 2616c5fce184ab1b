"""Cold loads of a whole model."""

import contenders
from report import Probe, hold_to_peers

WHAT = "safetensors load_file, 8 shards"


class Case:
    """Cold, by safetensors: all shards of a model into NumPy arrays"""
    NAME = "cold-load"
    WIRE = "wire"

    def probes(self, bench, _condition, _stack):
        model = bench.eight_shards()
        sources = [model.folder / shard for shard in model.shards]

        def load(contender):
            def measure():
                with contender.open(model) as mounted:
                    files = [mounted.file(shard) for shard in model.shards]
                    return contenders.Worker(
                        bench, "load", mounted=mounted, files=files,
                        sources=sources).sample()
            return measure

        mounts = contenders.all_mounts(bench)
        rows = [Probe(name, WHAT, "GB/s", load(mounts[name]),
                      name not in contenders.PEERS)
                for name in (*contenders.OURS, *contenders.PEERS, "native")
                if name in mounts]
        return rows + [Probe("snapshot", WHAT, "GB/s",
                             lambda: contenders.snapshot(bench, model, True),
                             needed=False)]

    def judge(self, get, condition):
        for who in contenders.OURS:
            hold_to_peers(get, WHAT, who, (*contenders.PEERS, "snapshot"), 1)
