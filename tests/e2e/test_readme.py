# ctest: env=client as=both labels=mount timeout=300
"""README.md: each console block does what it shows, and each link leads somewhere.

A line of output that holds "…" matches any text there; a line that is only "…"
matches any number of lines. Blocks run one after the other in one home folder,
against a hub on loopback whose openai-community/gpt2 has GPT-2's names and
shapes. The blocks of tools/run and tools/test are test_tools.py's."""

import json
import os
import pathlib
import re
import struct
import subprocess
import sys

import pytest

SOURCE = pathlib.Path(os.environ["WEIGHTFS_SOURCE_DIR"])
README = (SOURCE / "README.md").read_text(encoding="utf-8")


def blocks():
    """The console blocks, each a list of (command, wanted output lines)."""
    for text in re.findall(r"^```console\n(.*?)^```$", README, re.M | re.S):
        steps = []
        for line in text.splitlines():
            if line.startswith("$ "):
                steps.append((line[2:], []))
            else:
                steps[-1][1].append(line)
        yield steps


def matches(wanted, got):
    pattern = ""
    for line in wanted:
        if line == "…":
            pattern += r"(?:[^\n]*\n)*?"
        else:
            pattern += r"[^\n]*".join(map(re.escape, line.split("…"))) + "\n"
    return re.fullmatch(pattern, "".join(line + "\n" for line in got))


def test_matcher_can_fail():
    assert matches(["a", "…", "b … d"], ["a", "x", "y", "b c d"])
    assert matches(["a", "…"], ["a"])
    assert not matches(["a", "b"], ["a"])
    assert not matches(["a"], ["a", "b"])
    assert not matches(["b … d"], ["b c"])


def write_gpt2(folder):
    """A repository with names and shapes of GPT-2's; its weights are a hole."""
    folder.mkdir()
    shapes = {"wte.weight": (50257, 768), "wpe.weight": (1024, 768),
              "h.0.attn.c_attn.weight": (768, 2304),
              "h.0.attn.c_attn.bias": (2304,)}
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "F32", "shape": shape,
                        "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    for name in ("README.md", "config.json", "tokenizer.json"):
        (folder / name).write_text("{}\n")


@pytest.fixture
def hub(tmp_path):
    write_gpt2(tmp_path / "gpt2-source")
    process = subprocess.Popen(
        [os.environ["WEIGHTFS_TEST_HUB"], "--repo",
         f"openai-community/gpt2={tmp_path / 'gpt2-source'}",
         "--until-stdin-closes"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield json.loads(process.stdout.readline())["url"]
    finally:
        process.stdin.close()
        process.wait()


def test_console_blocks(hub, tmp_path):
    home = tmp_path / "home"
    (home / "bin").mkdir(parents=True)
    (home / "bin" / "weightfs").symlink_to(os.environ["WEIGHTFS"])
    (home / "bin" / "python3").write_text(
        f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (home / "bin" / "python3").chmod(0o755)
    environment = {
        "HOME": str(home), "HF_ENDPOINT": hub, "LC_ALL": "C.UTF-8",
        "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
        "PATH": f"{home / 'bin'}:{os.environ['PATH']}"}
    shell = subprocess.Popen(
        ["bash", "--norc", "--noprofile"], cwd=home, env=environment,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, encoding="utf-8")
    ran = 0
    try:
        for steps in blocks():
            if steps[0][0].startswith("tools/"):
                continue
            for command, wanted in steps:
                # $? of the command stays what it was.
                shell.stdin.write(f"{command}\ns=$?; echo; "
                                  "echo ---end---; (exit $s)\n")
                shell.stdin.flush()
                got = []
                while (line := shell.stdout.readline()) not in (
                        "---end---\n", ""):
                    got.append(line.rstrip("\n"))
                if got and got[-1] == "":
                    got.pop()
                wanted = [line.replace("/root/", f"{home}/")
                          for line in wanted]
                assert matches(wanted, got), (
                    f"$ {command}\nwanted:\n" + "\n".join(wanted) +
                    "\ngot:\n" + "\n".join(got))
                ran += 1
    finally:
        shell.stdin.close()
        shell.wait()
        if os.path.ismount(home / "gpt2"):
            subprocess.run([os.environ["WEIGHTFS"], "umount", home / "gpt2"],
                           env=environment, check=True)
    assert ran >= 10


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) >= 4
    assert [link for link in links
            if "://" not in link and not (SOURCE / link).exists()] == []


def test_only_commands_that_exist():
    text = subprocess.run([os.environ["WEIGHTFS"], "--help"], check=True,
                          capture_output=True, text=True).stdout
    for command in set(re.findall(r"`weightfs ([a-z]+) ", README)):
        assert re.search(rf"^  {command}\b", text, re.M), command
    pages = "".join(
        subprocess.run([os.environ["WEIGHTFS"], command, "--help"], check=True,
                       capture_output=True, text=True).stdout
        for command in ("mount", "umount", "ls", "info", "cat", "verify",
                        "warm", "status"))
    for option in set(re.findall(r"(?<!-)(--[a-z][a-z-]*)", README)):
        assert option in pages or option in (
            "--all", "--install", "--prefix", "--help"), option
