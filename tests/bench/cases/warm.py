"""What was fetched before."""

import contenders
from report import Probe, hold, hold_to_peers, ratio
from world import Failed

COLD = "disk cold"  # page cache dropped, daemon started anew
WARM = "daemon warm"  # the mount's pages dropped
HOT = "hot"
PEERS = ("rclone-cache", "httpdirfs")


class State:
    """A contender that has everything, mounted again where need be."""

    def __init__(self, bench, contender, model, tensors):
        self.bench, self.contender, self.model = bench, contender, model
        self.tensors = tensors
        self.cache = None
        if isinstance(contender, contenders.Weightfs):
            self.cache = contender.identity.folder("cache")
        elif not isinstance(contender, (contenders.Native,
                                        contenders.Memory)):
            self.cache = bench.identity.folder("cache")
        self.mounted = None

    def fill(self):
        """Reads it all, so that it is in the cache, checked by weightfs."""
        self._open()
        try:
            self.bench.read(self.mounted, self.model.whole_files(self.mounted))
        except Failed:
            self.close()
            raise
        if isinstance(self.contender, contenders.Weightfs) and (
                not self.mounted.wait_verified(len(self.model.shards))):
            self.bench.say("    (not verified after a minute)")

    def _open(self):
        if self.mounted is None:
            self.mounted = (
                self.contender.open(self.model) if self.cache is None
                else self.contender.open(self.model, self.cache))

    def close(self):
        if self.mounted is not None:
            mounted, self.mounted = self.mounted, None
            mounted.close()

    def _job(self, kind):
        if kind == "repo file":
            return self.model.whole_files(self.mounted)
        return self.model.as_files(self.mounted, self.tensors)

    def read(self, kind, state, mode):
        if self.mounted is None:
            self.fill()
        if state == COLD:
            return self._disk_cold(kind, mode)
        job, left = self._job(kind), None
        if state == WARM:
            left = self.bench.drop(self.mounted, job)
        else:
            self.bench.read(self.mounted, job, mode)
        sample = self.bench.read(self.mounted, job, mode)
        if left:
            sample["notes"] = {"pages that could not be dropped": left}
        return sample

    def _disk_cold(self, kind, mode):
        if self.cache is None:  # the files are their own cache
            job = self._job(kind)
            left = self.bench.drop(self.mounted, job)
        else:
            identity = self.mounted.identity
            self.close()
            found = identity.run("find", self.cache, "-type", "f", "-size",
                                 "+0").stdout.splitlines()
            left = self.bench.drop(
                contenders.Mounted(identity, self.cache),
                [(path, 0, 0, self.model.folder / self.model.shards[0], 0)
                 for path in found])
            self._open()
            job = self._job(kind)
        sample = self.bench.read(self.mounted, job, mode)
        if left:
            sample["notes"] = {"pages that could not be dropped": left}
        return sample


class TensorState(State):
    """Of the minimal server: its files are the tensors."""

    def _open(self):
        if self.mounted is None:
            self.mounted = self.contender.open_tensors(self.model,
                                                       self.tensors)

    def fill(self):
        self._open()


class NativeTensors(State):
    """Tensors where they are in the file: nothing has them raw."""

    def _job(self, kind):
        return self.model.in_files(self.mounted, self.tensors)


class Case:
    """Warm: from the disk, the daemon, the page cache; repo and tensor files"""
    NAME = "warm"
    WIRE = "fast"

    def probes(self, bench, _condition, stack):
        model = bench.one_shard()
        mounts = contenders.all_mounts(bench)
        tensors = model.tensors
        rows = []

        def add(name, state, kind, *states):
            stack.callback(state.close)
            for what, mode in states:
                rows.append(Probe(
                    name, f"{kind}, {what}, {mode}()", "GB/s",
                    lambda what=what, mode=mode: state.read(kind, what, mode),
                    name not in PEERS))

        everything = [(what, mode) for what in (COLD, WARM, HOT)
                      for mode in ("read", "mmap")]
        for name in (*contenders.OURS, *PEERS):
            if name in mounts:
                state = State(bench, mounts[name], model, tensors)
                add(name, state, "repo file", *everything)
                if name in contenders.OURS:
                    add(name, state, "tensor files", *everything)
        native = mounts["native"]
        add("native", State(bench, native, model, tensors), "repo file",
            *((what, mode) for what, mode in everything if what != WARM))
        add("native", NativeTensors(bench, native, model, tensors),
            "tensor files",
            *((what, mode) for what, mode in everything if what != WARM))
        for name in ("memory", "memory-user"):
            if name in mounts:
                of_memory = [(what, mode) for what, mode in everything
                             if what != COLD]
                add(name, State(bench, mounts[name], model, tensors),
                    "repo file", *of_memory)
                add(name, TensorState(bench, mounts[name], model, tensors),
                    "tensor files", *of_memory)
        order = [f"{kind}, {what}, {mode}()"
                 for kind in ("repo file", "tensor files")
                 for what, mode in everything]
        return sorted(rows, key=lambda row: order.index(row.what))

    def judge(self, get, condition):
        memory = {"weightfs": "memory", "weightfs-user": "memory-user"}
        for who in contenders.OURS:
            for mode in ("read()", "mmap()"):
                what = f"repo file, {COLD}, {mode}"
                hold(get(what, who), "× the disk",
                     ratio(get(what, who), get(what, "native")), 0.95,
                     figure=who == "weightfs" and "complete repo file, page "
                     "cache dropped, against its disk")
                for kind in ("repo file", "tensor files"):
                    what = f"{kind}, {WARM}, {mode}"
                    hold(get(what, who), f"× {memory[who]}",
                         ratio(get(what, who), get(what, memory[who])), 0.9,
                         figure=kind == "tensor files" and "tensor file, "
                         "daemon warm, against a minimal libfuse server")
                    what = f"{kind}, {HOT}, {mode}"
                    hold(get(what, who), "× native",
                         ratio(get(what, who), get(what, "native")), 0.95,
                         figure="hot, against a native file")
                for what in (COLD, WARM, HOT):
                    hold_to_peers(get, f"repo file, {what}, {mode}", who,
                                  PEERS, 0.95)
