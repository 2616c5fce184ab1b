# ctest: env=client timeout=900
"""tools/run and tools/test: what README.md says of them, from another folder."""

import os
import pathlib
import subprocess

import pytest

import test_readme

SOURCE = test_readme.SOURCE

pytestmark = pytest.mark.skipif(
    pathlib.Path(os.environ["WEIGHTFS_BUILD_DIR"]) != SOURCE / "build" / "gcc",
    reason="tools/run builds in build/gcc; this is another build")


def run(*command, folder):
    return subprocess.run(command, cwd=folder, capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, check=False)


def test_run_tours_as_readme_shows(tmp_path):
    wanted = next(steps for steps in test_readme.blocks()
                  if steps[0][0] == "tools/run")
    # Its output shows a command of its own.
    lines = wanted[0][1]
    for command, output in wanted[1:]:
        lines += [f"$ {command}", *output]
    done = run(SOURCE / "tools" / "run", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert test_readme.matches(lines, done.stdout.splitlines()), done.stdout
    assert "weightfs-demo-" not in pathlib.Path("/proc/mounts").read_text()


def test_run_with_arguments_is_weightfs(tmp_path):
    done = run(SOURCE / "tools" / "run", "ls", "./sample",
               folder=SOURCE / "tests" / "data")
    assert done.returncode == 0, done.stderr
    assert "h.0.attn.c_attn.weight" in done.stdout
    assert run(SOURCE / "tools" / "run", "ls", "./absent",
               folder=tmp_path).returncode == 3


def test_test_explains_itself(tmp_path):
    done = run(SOURCE / "tools" / "test", "--help", folder=tmp_path)
    assert done.returncode == 0
    assert "--all" in done.stdout
    assert run(SOURCE / "tools" / "test", "--bogus",
               folder=tmp_path).returncode == 1
