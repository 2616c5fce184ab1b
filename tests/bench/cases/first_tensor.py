"""What a mount takes to show its first tensor."""

import contenders
from report import Probe, hold

READY = "mount, and read a tensor of 4 KiB"
HEADER = "requests before a header is there"
TENSOR = "requests before 4 KiB are served"


class Case:
    """First tensor after mount: seconds, and requests for weights until then"""
    NAME = "first-tensor"
    WIRE = "wire"

    def probes(self, bench, _condition, _stack):
        # A header of under 256 KiB, and a tensor that does not lie beside it.
        model = bench.model("tiny", "tensors=1024,tensor_bytes=4096,dtype=F16,"
                            "seed=80")
        tensor = model.tensors[-1]
        mounts = contenders.all_mounts(bench)

        def ready(contender, job_of):
            def measure():
                with contender.open(model) as mounted:
                    mounting = mounted.mount_seconds
                    sample = bench.read(mounted, job_of(mounted, [tensor]),
                                        block=4096)
                sample["s"] = mounting + sample["seconds"]
                sample["notes"] = {"of it the mount, s": mounting}
                return sample
            return measure

        def requests(contender, whole):
            def measure():
                with contender.open(model) as mounted:
                    bench.walk(mounted, mounted.path / "tensors/raw")
                    if whole:
                        bench.read(mounted, model.as_files(mounted, [tensor]),
                                   block=4096)
                    weights = len(bench.origin.requests())
                    api = len(bench.origin.requests("hub"))
                return {"requests": weights, "notes": {
                    "and of the Hub's API": api}}
            return measure

        rows = []
        for name in contenders.OURS:
            if name in mounts:
                rows += [
                    Probe(name, READY, "s",
                          ready(mounts[name], model.as_files)),
                    Probe(name, HEADER, "requests",
                          requests(mounts[name], False)),
                    Probe(name, TENSOR, "requests",
                          requests(mounts[name], True))]
        rows += [Probe(name, READY, "s",
                       ready(mounts[name], model.in_files), needed=False)
                 for name in contenders.PEERS if name in mounts]
        return sorted(rows, key=lambda row: (READY, HEADER, TENSOR).index(
            row.what))

    def judge(self, get, condition):
        for who in contenders.OURS:
            for what, limit in ((HEADER, 1), (TENSOR, 2)):
                row = get(what, who)
                hold(row, "requests", row and row.median, limit, at_most=True,
                     figure="requests before a header, and a 4 KiB tensor")
