"""The tour that `tools/run` gives: a mount of the sample model over a hub on
loopback, read by real clients. Takes down all that it put up."""

import argparse
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile

import numpy
import safetensors

REPO = "demo/tiny-gpt2"
TENSOR = "h.0.attn.c_attn.weight"
SHOWN_PER_FOLDER = 4


def say(text=""):
    print(text, flush=True)


def fail(text):
    say(f"weightfs: {text}")
    sys.exit(1)


def tree(folder, indent=""):
    """Lines like those of tree(1), long folders cut short."""
    entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    shown = entries if len(entries) <= SHOWN_PER_FOLDER + 1 else (
        entries[:SHOWN_PER_FOLDER])
    rest = len(entries) - len(shown)
    for number, entry in enumerate(shown):
        last = number == len(shown) - 1 and not rest
        is_folder = entry.is_dir()
        size = "" if is_folder else f"  {entry.stat().st_size:,} bytes"
        yield (f"{indent}{'└── ' if last else '├── '}{entry.name}"
               f"{'/' if is_folder else ''}{size}")
        if is_folder:
            yield from tree(entry, indent + ("    " if last else "│   "))
    if rest:
        yield f"{indent}└── … {rest} more"


def load(mount, sample):
    """Reads the mount with safetensors and NumPy; compares with the source."""
    path = mount / "repo" / "model.safetensors"
    with safetensors.safe_open(path, framework="numpy") as model, (
            safetensors.safe_open(sample / "model.safetensors",
                                  framework="numpy")) as source:
        names = sorted(source.keys())
        if sorted(model.keys()) != names:
            fail(f"{path} lists other tensors than the source")
        # The tensor file first: it alone is fetched then.
        array = numpy.load(mount / "tensors" / "npy" / f"{TENSOR}.npy")
        say(f"numpy        {TENSOR}.npy: {array.dtype} {array.shape}, "
            f"mean {array.mean():+.6f}")
        if not numpy.array_equal(array, source.get_tensor(TENSOR)):
            fail(f"{TENSOR}.npy is not what the source holds")
        parameters = 0
        for name in names:
            value = model.get_tensor(name)
            if value.tobytes() != source.get_tensor(name).tobytes():
                fail(f"{name} is not what the source holds")
            parameters += value.size
        say(f"safetensors  {len(names)} tensors, {parameters:,} parameters, "
            "every byte as in the source")


def traffic(log):
    # A body for each answer that has one: {"method": …, "body_bytes": …}
    requests = [json.loads(line) for line in log.read_text().splitlines()]
    body = sum(request.get("body_bytes", 0) for request in requests)
    say(f"network      {len(requests)} requests, {body:,} bytes")


def tour(arguments, folder):
    mount, log = folder / "tiny-gpt2", folder / "requests"
    mount.mkdir()
    hub = subprocess.Popen(
        [arguments.hub, "--repo", f"{REPO}={arguments.sample}", "--log", log,
         "--until-stdin-closes"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        ready = hub.stdout.readline()
        if not ready:
            fail("the hub on loopback did not start")
        environment = {name: value for name, value in os.environ.items()
                       if not name.startswith(("HF_", "HUGGING", "WEIGHTFS_"))}
        environment["HF_ENDPOINT"] = json.loads(ready)["url"]
        environment["HF_HOME"] = str(folder / "hf")
        environment["XDG_STATE_HOME"] = str(folder / "state")
        environment["NO_PROXY"] = environment["no_proxy"] = "127.0.0.1"
        say(f"A hub on loopback serves {REPO}.")
        say(f"$ weightfs mount {REPO} {mount}")
        command = [arguments.weightfs, "mount", REPO, mount, "--cache-dir",
                   folder / "cache"]
        mounted = subprocess.run(command, env=environment, check=False)
        if mounted.returncode != 0:
            fail(f"mount failed with exit status {mounted.returncode}")
        try:
            say()
            say(f"{mount}/")
            for line in tree(mount):
                say(line)
            say()
            load(mount, arguments.sample)
        finally:
            unmounted = subprocess.run(
                [arguments.weightfs, "umount", mount], env=environment,
                check=False)
        if unmounted.returncode != 0:
            fail(f"umount failed with exit status {unmounted.returncode}")
        traffic(log)
        say()
        say("Unmounted. Your turn: tools/run mount ORG/NAME FOLDER")
    finally:
        hub.stdin.close()
        hub.wait()


def main():
    parser = argparse.ArgumentParser()
    for name in ("--weightfs", "--hub", "--sample"):
        parser.add_argument(name, type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    # Ends by way of the finally clauses.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    folder = pathlib.Path(tempfile.mkdtemp(prefix="weightfs-demo-"))
    try:
        tour(arguments, folder)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        # Never through a mount that could not be taken down.
        if not os.path.ismount(folder / "tiny-gpt2"):
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
