"""Fixtures of the end-to-end tests (harness.py)."""

import os
import pathlib

import pytest

import harness
import warm as warm_command


@pytest.fixture(name="make_hub")
def _make_hub():
    hubs = []

    def make(*arguments):
        hubs.append(harness.Hub(*arguments))
        return hubs[-1]

    yield make
    for hub in hubs:
        hub.stop()


@pytest.fixture(name="hub")
def _hub(make_hub):
    return make_hub()


@pytest.fixture(name="mount")
def _mount(tmp_path):
    """mount(source, hub, name="mnt", cache="cache", …): a harness.Mount."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.fail("/dev/fuse cannot be opened by this user")
    mounts = []

    def make(source, hub=None, name="mnt", cache="cache", **more):
        home = tmp_path / "home"
        home.mkdir(exist_ok=True)
        path = pathlib.Path(tmp_path / name)
        # Before it starts, so that it is cleaned if the start fails half-way.
        made = harness.Mount.__new__(harness.Mount)
        made.path, made.pid = path, None
        mounts.append(made)
        made.__init__(source, path, tmp_path / cache, hub, home=home, **more)
        return made

    yield make
    for made in reversed(mounts):
        made.clean()


@pytest.fixture(name="model")
def _model(hub, mount):
    hub.commit("org/model", generate=harness.MODEL)
    mounted = mount("org/model", hub, name="reference", cache="reference-cache")
    path = mounted.path / "repo" / "model.safetensors"
    content = path.read_bytes()
    mounted.unmount()
    return content


@pytest.fixture(name="warm")
def _warm(hub, tmp_path):
    return warm_command.Warm(hub, tmp_path)
