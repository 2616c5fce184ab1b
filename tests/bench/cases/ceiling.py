"""What the origin can send."""

from report import Probe


class Case:
    """What the origin can send: parallel ranges by libcurl, nothing else runs

    Where rates of a cold read come near, the origin is what was measured."""
    NAME = "ceiling"
    WIRE = "all"

    def probes(self, bench, _condition, _stack):
        model = bench.one_shard()
        (shard,) = model.shards

        def fetch(streams):
            return lambda: bench.fetch(model, shard, streams)

        return [Probe("curl" if streams == 1 else f"curl-{streams}",
                      "one shard", "GB/s", fetch(streams))
                for streams in (1, 4, 16, 32)]

    def judge(self, get, condition):
        pass
