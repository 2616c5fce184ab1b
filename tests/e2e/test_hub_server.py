# ctest: env=client timeout=300 sanitizers=yes
"""The test hub against the Hub's own client: what huggingface_hub downloads from
it is what it serves. (Its protocol in detail: tests/hubserver.)"""

import hashlib
import os
import pathlib
import subprocess
import sys

import pytest

import harness

FILES = {
    "config.json": b'{"model_type": "gpt2"}\n',
    "model.safetensors": os.urandom(300_000),
    "sub/deep/notes.txt": b"notes\n",
    "empty.txt": b"",
    "with space & plus+.txt": b"odd name\n",
}


@pytest.fixture(name="folder")
def _folder(tmp_path):
    folder = tmp_path / "source"
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def client(hub, tmp_path, code, **more):
    """Runs Python with huggingface_hub; its settings are read at import."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True,
        check=False, timeout=120,
        env=harness.environment(
            tmp_path, HF_ENDPOINT=hub.url, HF_HUB_DISABLE_TELEMETRY="1",
            HF_HUB_DISABLE_PROGRESS_BARS="1", **more))
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_snapshot_download(hub, folder, tmp_path):
    commit = hub.commit("org/name", folder)
    hub.control("settings", tree_page_size=2)
    got = pathlib.Path(client(hub, tmp_path, """
import huggingface_hub
print(huggingface_hub.snapshot_download("org/name"))"""))
    assert got.name == commit
    found = {str(path.relative_to(got)): path.read_bytes()
             for path in got.rglob("*") if path.is_file()}
    assert found == FILES
    # Blobs are named by digest: the client believed ours.
    blobs = {path.name for path in (got.parent.parent / "blobs").iterdir()}
    assert hashlib.sha256(FILES["model.safetensors"]).hexdigest() in blobs
    config = FILES["config.json"]
    assert hashlib.sha1(b"blob %d\0" % len(config) +
                        config).hexdigest() in blobs


def test_download_of_a_pull_request_with_a_token(hub, folder, tmp_path):
    hub.commit("org/secret", folder, branch="refs/pr/1")
    hub.control("set_repo", repo="org/secret", private=True,
                readers=["hf_reader"])
    got = client(hub, tmp_path, """
import huggingface_hub
print(huggingface_hub.hf_hub_download(
    "org/secret", "model.safetensors", revision="refs/pr/1"))""",
                 HF_TOKEN="hf_reader")
    assert pathlib.Path(got).read_bytes() == FILES["model.safetensors"]
    assert any(r["authorization"] == "Bearer hf_reader"
               for r in hub.log(listener="hub"))
    cdn = hub.log(listener="cdn")
    assert cdn and not any(r["authorization"] for r in cdn)


def test_errors_have_their_types(hub, folder, tmp_path):
    hub.commit("org/name", folder)
    hub.commit("org/gated", folder)
    hub.control("set_repo", repo="org/gated", gated=True, readers=["hf_r"])
    hub.control("add_token", token="hf_other")
    got = client(hub, tmp_path, """
import huggingface_hub
def name(repo, file="config.json", **more):
    try:
        huggingface_hub.hf_hub_download(repo, file, **more)
        return "none"
    except Exception as error:
        return type(error).__name__
print(name("org/none"), name("org/name", "none.json"),
      name("org/name", revision="none"), name("org/gated", token="hf_other"),
      name("org/gated", token="hf_r"))
info = huggingface_hub.HfApi().model_info("org/name", files_metadata=True)
print(sorted(s.rfilename for s in info.siblings), info.siblings[2].lfs.size)
print(sorted(f.path for f in huggingface_hub.HfApi().list_repo_tree(
    "org/name", recursive=True)))
print([i.path for i in huggingface_hub.HfApi().get_paths_info(
    "org/name", ["sub", "config.json", "none"])])
""").splitlines()
    assert got[0].split() == [
        "RepositoryNotFoundError", "RemoteEntryNotFoundError",
        "RevisionNotFoundError", "GatedRepoError", "none"]
    assert got[1] == f"{sorted(FILES)} 300000"
    assert got[2] == str(sorted([*FILES, "sub", "sub/deep"]))
    assert sorted(eval(got[3])) == ["config.json", "sub"]


def test_client_recovers_from_faults(hub, folder, tmp_path):
    hub.commit("org/name", folder)
    hub.fault("status", number=503, contains="/resolve/", times=1)
    hub.fault("close", number=100_000, listener="cdn", times=1)
    got = client(hub, tmp_path, """
import huggingface_hub
print(huggingface_hub.hf_hub_download("org/name", "model.safetensors"))""")
    assert pathlib.Path(got).read_bytes() == FILES["model.safetensors"]
    assert [r["fault"] for r in hub.log() if r["fault"]] == ["status", "close"]


def test_generated_models_hold_the_pattern(hub, tmp_path):
    numpy = pytest.importorskip("numpy")
    safetensors = pytest.importorskip("safetensors")
    hub.commit("org/made",
               generate="tensors=5,shards=2,tensor_bytes=4000,dtype=I16,seed=3")
    got = client(hub, tmp_path, """
import huggingface_hub
print(huggingface_hub.snapshot_download("org/made"))""")
    with safetensors.safe_open(
            f"{got}/model-00002-of-00002.safetensors", "numpy") as shard:
        tensor = shard.get_tensor("model.layers.3.weight")
    wanted = numpy.frombuffer(harness.pattern(4, 4000, 4000), numpy.int16)
    assert (tensor == wanted).all()
    assert harness.pattern(4, 13, 90) == harness.pattern(4, 0, 200)[13:103]


def test_program_ends_with_its_parent(make_hub):
    hub = make_hub()
    hub.process.stdin.close()
    assert hub.process.wait(10) == 0
    hub.process.stdin = open(os.devnull, "wb")  # for stop()
