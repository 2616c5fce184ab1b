"""A model of very many tensors."""

import json
import re
import struct
import time

import contenders
from report import Probe, hold
from world import Failed

SHARDS = 200
READY = "ready to serve"
MEMORY = "anonymous memory when ready"
LIST = "ls -R of tensors/raw"
STAT = "stat of each file"
TENSOR_BYTES = 2 << 20


def write_model(folder, tensors):
    """Headers alone: the data is a hole."""
    folder.mkdir(parents=True)
    weight_map, last = {}, None
    for shard in range(SHARDS):
        name = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        header = {}
        first, end = (tensors * n // SHARDS for n in (shard, shard + 1))
        for number in range(first, end):
            last = (f"model.layers.{number // 1536}.mlp.experts."
                    f"{number // 3 % 512}.{'up down gate'.split()[number % 3]}"
                    "_proj.weight")
            begin = (number - first) * TENSOR_BYTES
            header[last] = {"dtype": "BF16", "shape": [1024, 1024],
                            "data_offsets": [begin, begin + TENSOR_BYTES]}
            weight_map[last] = name
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(folder / name, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + (end - first) * TENSOR_BYTES)
    (folder / "model.safetensors.index.json").write_text(json.dumps(
        {"metadata": {"total_size": tensors * TENSOR_BYTES},
         "weight_map": weight_map}))
    return last, weight_map[last]


def anonymous(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        return sum(int(kib) << 10 for kib in re.findall(
            r"Rss(?:Anon|Shmem):\s*(\d+)", file.read()))


class Case:
    """100,000 tensors in 200 local shards: ready, memory, ls -R, stat"""
    NAME = "many-tensors"
    WIRE = None

    def __init__(self):
        self.tensors = 0

    def probes(self, bench, _condition, _stack):
        self.tensors = bench.options.tensors
        folder = bench.work / "models/many"
        last, shard = write_model(folder, self.tensors)
        # The same names without weightfs, so that the disk can be compared.
        native = bench.work / "many-native"
        native.mkdir()
        for number in range(self.tensors):
            (native / f"{number:06}.bin").touch()
        source = folder / shard
        offset = source.stat().st_size - TENSOR_BYTES

        def mounted_ready(contender):
            began = time.monotonic()
            mounted = contender.open_folder(folder)
            try:
                # Of the last shard.
                path = mounted.path / f"tensors/raw/{last}.bin"
                got = bench.read(mounted, [(path, 0, TENSOR_BYTES, source,
                                            offset)])
                mounting = time.monotonic() - began
                return mounted, {**got, "s": mounted.mount_seconds
                                 + got["seconds"], "with_starts": mounting}
            except Failed:
                mounted.close()
                raise

        def ready(contender):
            def measure():
                mounted, sample = mounted_ready(contender)
                with mounted:
                    return sample
            return measure

        def memory(contender):
            def measure():
                mounted, sample = mounted_ready(contender)
                with mounted:
                    sample["MB"] = anonymous(mounted.pids[0]) / 1e6
                    bench.walk(mounted, mounted.path / "tensors")
                    sample["notes"] = {
                        "after ls -R of tensors/, MB":
                        anonymous(mounted.pids[0]) / 1e6}
                    return sample
            return measure

        def walk(contender, which):
            def measure():
                mounted, _ = mounted_ready(contender)
                with mounted:
                    return self._rates(bench.walk(
                        mounted, mounted.path / "tensors/raw"), which)
            return measure

        def walk_native(which):
            def measure():
                return self._rates(bench.walk(
                    contenders.Mounted(bench.identity, native), native), which)
            return measure

        mounts = contenders.all_mounts(bench)
        rows = []
        names = [name for name in contenders.OURS if name in mounts]
        for what, unit, of in ((READY, "s", ready), (MEMORY, "MB", memory)):
            rows += [Probe(name, what, unit, of(mounts[name]))
                     for name in names]
        for what, which in ((LIST, "list"), (STAT, "stat")):
            rows += [Probe(name, what, "/s", walk(mounts[name], which))
                     for name in names]
            rows.append(Probe("native", what, "/s", walk_native(which)))
        return rows

    def _rates(self, walked, which):
        if walked["files"] != self.tensors:
            raise Failed(f"{walked['files']} files are listed, not "
                         f"{self.tensors}")
        seconds = walked[f"{which}_seconds"]
        return {"/s": walked["files"] / seconds,
                "notes": {"seconds": seconds}}

    def judge(self, get, condition):
        for who in contenders.OURS:
            row = get(READY, who)
            figure = f"{self.tensors:,} tensors in {SHARDS} local shards"
            hold(row, "s", row and row.median, 1, at_most=True, figure=figure)
            row = get(MEMORY, who)
            hold(row, "MB", row and row.median, 100, at_most=True,
                 figure=figure)
