"""torch.load of a tensor file."""

import contenders
from report import Probe, hold, ratio

READ = "read() of it, raw"
TORCH = "torch.load(mmap=True)"


class Case:
    """Cold, by torch.load(mmap=True): a large tensor of tensors/pt, copied"""
    NAME = "torch-mmap"
    WIRE = "wire"

    def probes(self, bench, _condition, _stack):
        python = contenders.environment_python(bench, "torch")
        model = bench.model("large", f"tensors=2,size={bench.options.size},"
                            "dtype=F16,seed=60")
        tensor = model.tensors[1]
        mounts = contenders.all_mounts(bench)

        def read(contender):
            def measure():
                with contender.open(model) as mounted:
                    return bench.read(mounted,
                                      model.as_files(mounted, [tensor]))
            return measure

        def worker(path, mounted=None):
            return contenders.Worker(
                bench, "torch", python=python, mounted=mounted, file=path,
                source=model.folder / tensor.file, offset=tensor.offset,
                length=tensor.length).sample()

        def torch(contender):
            def measure():
                with contender.open(model) as mounted:
                    return worker(mounted.tensor(tensor, "pt"), mounted)
            return measure

        names = [name for name in contenders.OURS if name in mounts]
        rows = [Probe(name, READ, "GB/s", read(mounts[name]))
                for name in names]
        if python is None:
            return rows
        native = bench.work / "large.pt"
        bench.identity.run(bench.weightfs, "cat", model.folder, tensor.name,
                           "--format", "pt", "-o", native)
        rows += [Probe(name, TORCH, "GB/s", torch(mounts[name]))
                 for name in names]
        return rows + [Probe("native", TORCH, "GB/s", lambda: worker(native))]

    def judge(self, get, condition):
        for who in contenders.OURS:
            row = get(TORCH, who)
            hold(row, "× its read()", ratio(row, get(READ, who)), 0.8)
