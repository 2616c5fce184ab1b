"""worker.py ORDER: what real Python clients do with a model, timed. ORDER is
JSON; prints "ready", waits for a line, does its task, and prints a JSON line
as weightfs-bench-reader does. All that was loaded is compared with the source
when the clock has stopped."""

import json
import mmap
import os
import pathlib
import resource
import shutil
import struct
import sys
import tempfile
import time


def own_cpu():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def cpu_of(pid):
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0.0
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def view(path):
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def count_wrong(numpy, found, source, offset, length):
    wanted = numpy.frombuffer(view(source), numpy.uint8, length, offset)
    found = numpy.frombuffer(found, numpy.uint8)
    if len(found) != length:
        return length
    return int(numpy.count_nonzero(found != wanted))


class Load:
    """safetensors.numpy.load_file of every shard."""

    def __init__(self, order):
        import numpy  # pylint: disable=import-outside-toplevel
        import safetensors.numpy  # pylint: disable=import-outside-toplevel
        self.numpy, self.library = numpy, safetensors.numpy
        self.files, self.sources = order["files"], order["sources"]
        self.loaded = []
        self.library.load(self.library.save(
            {"a": numpy.zeros(4, numpy.float16)}))

    def do(self):
        for file in self.files:
            self.loaded.append(self.library.load_file(file))

    def bytes(self):
        return sum(array.nbytes for tensors in self.loaded
                   for array in tensors.values())

    def wrong(self):
        wrong = 0
        for tensors, source in zip(self.loaded, self.sources):
            with open(source, "rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            assert header.keys() == tensors.keys(), source
            for name, tensor in header.items():
                begin, end = tensor["data_offsets"]
                wrong += count_wrong(
                    self.numpy, self.numpy.ascontiguousarray(
                        tensors[name]).view(self.numpy.uint8).data,
                    source, 8 + length + begin, end - begin)
        return wrong


class Snapshot(Load):
    """huggingface_hub.snapshot_download, and Load of it if asked."""

    def __init__(self, order):
        super().__init__(order)
        # pylint: disable=import-outside-toplevel
        import huggingface_hub
        self.hub = huggingface_hub
        self.repo, self.then_load = order["repo"], order["load"]
        self.cache = order["cache"]
        # What it imports at its first use is not measured.
        with tempfile.TemporaryDirectory() as cache:
            self.hub.snapshot_download(order["other_repo"], cache_dir=cache)
        self.names = self.files
        self.folder = None

    def do(self):
        self.folder = pathlib.Path(self.hub.snapshot_download(
            self.repo, cache_dir=self.cache))
        self.files = [self.folder / name for name in self.names]
        if self.then_load:
            super().do()

    def bytes(self):
        return sum(os.stat(path).st_size for path in self.files)

    def wrong(self):
        wrong = 0
        for path, source in zip(self.files, self.sources):
            wrong += count_wrong(self.numpy, view(path), source, 0,
                                 os.stat(source).st_size)
        return wrong + (super().wrong() if self.then_load else 0)


class Torch:
    """torch.load(mmap=True) of a tensor, and a copy of it into memory."""

    def __init__(self, order):
        import numpy  # pylint: disable=import-outside-toplevel
        import torch  # pylint: disable=import-outside-toplevel
        self.numpy, self.torch = numpy, torch
        self.path, self.source = order["file"], order["source"]
        self.place = order["offset"], order["length"]
        self.loaded = None
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "a.pt")
            torch.save(torch.zeros(8), path)
            torch.load(path, mmap=True, weights_only=True).clone()

    def do(self):
        self.loaded = self.torch.load(self.path, mmap=True,
                                      weights_only=True).clone()

    def bytes(self):
        return self.loaded.nbytes

    def wrong(self):
        flat = self.loaded.reshape(-1).view(self.torch.uint8).numpy()
        return count_wrong(self.numpy, flat.data, self.source, *self.place)


TASKS = {"load": Load, "snapshot": Snapshot, "torch": Torch}


def main():
    order = json.loads(sys.argv[1])
    task = TASKS[order["task"]](order)
    if order["uid"] != os.getuid():
        # Now that all is imported, which may lie where others cannot look.
        os.setgroups([])
        os.setresgid(*[order["uid"]] * 3)
        os.setresuid(*[order["uid"]] * 3)
    print("ready", flush=True)
    sys.stdin.readline()
    before = {pid: cpu_of(pid) for pid in order["watch"]}
    cpu, began = own_cpu(), time.monotonic()
    task.do()
    seconds, cpu = time.monotonic() - began, own_cpu() - cpu
    others = [{"pid": pid, "cpu": cpu_of(pid) - used}
              for pid, used in before.items()]
    print(json.dumps({
        "seconds": seconds, "bytes": task.bytes(), "complete": True,
        "wrong_bytes": task.wrong(), "cpu": cpu, "others": others}))
    if "cache" in order:
        shutil.rmtree(order["cache"], ignore_errors=True)


if __name__ == "__main__":
    main()
