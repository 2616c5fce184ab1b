#!/usr/bin/env python3
"""Makes PyPI's torch wheel import on a machine without CUDA, and smaller.

PyPI has no CPU build of torch for Linux: the wheel's libraries need the CUDA
libraries, 3 GB more. For tests on a CPU this script puts stubs in their place,
in torch/lib, where RUNPATH=$ORIGIN finds them first: one stub for each missing
library, which defines every symbol that torch's libraries take from it. Called,
a stub says cudaErrorNoDevice, so torch.cuda.is_available() is False. The
libraries that hold the CUDA kernels (600 MB) become stubs as well.

    pip install --no-deps torch && python slim_torch.py [SITE_PACKAGES/torch]

Needs gcc and readelf. May be run twice. Not for a machine that is to use its
GPU through torch.
"""

import dataclasses
import glob
import os
import re
import subprocess
import sys
import sysconfig
import tempfile

MARK = ".slim_torch"
KERNELS = ("libtorch_cuda.so", "libtorch_cuda_linalg.so",
           "libtorch_nvshmem.so")
CUDA_LIBRARY = re.compile(r"^lib(cu|nccl|nv)")
RUNTIME = ("libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0",
           "librt.so.1", "libutil.so.1", "libstdc++.so.6", "libgcc_s.so.1",
           "libz.so.1", "libquadmath.so.0", "ld-linux-x86-64.so.2",
           "ld-linux-aarch64.so.1")
TYPE_INFO_VTABLE = "_ZTVN10__cxxabiv117__class_type_infoE"

# torch.distributed would use classes of NCCL's: as if it was not built in.
HIDE_DISTRIBUTED = """import torch
for _name in ("_c10d_init", "_rpc_init", "_faulty_agent_init",
              "_dist_autograd_init"):  # slim_torch
    if hasattr(torch._C, _name):
        delattr(torch._C, _name)
"""
EDITS = (
    ("distributed/__init__.py", "import torch\n", HIDE_DISTRIBUTED),
    # Overrides for kernels that only the CUDA library registers.
    ("_native/__init__.py", "    registry._register_all_overrides()\n",
     "    pass  # slim_torch\n"),
    # transformers asks at each forward; without CUDA there is no stream.
    ("cuda/graphs.py", "    return _cuda_isCurrentStreamCapturing()\n",
     "    return False  # slim_torch\n"),
)


@dataclasses.dataclass
class Library:
    """What readelf tells about one shared library."""

    defined: set  # names
    undefined: list  # (name, version or ""), weak ones left out
    objects: dict  # data symbol -> size in bytes
    needed: list  # sonames
    owners: dict  # version -> soname of the library that it comes from


def readelf(path, *options):
    return subprocess.run(["readelf", "-W", *options, path], check=True,
                          stdout=subprocess.PIPE, text=True).stdout


def inspect(path):
    library = Library(set(), [], {}, [], {})
    for line in readelf(path, "--dyn-syms").splitlines():
        columns = line.split()
        if len(columns) < 8 or not columns[0].rstrip(":").isdigit():
            continue
        size, kind, bind, section = columns[2:5] + [columns[6]]
        name, _, version = columns[7].partition("@")
        if section != "UND":
            library.defined.add(name)
            if kind == "OBJECT":
                library.objects[name] = int(size, 0)
        elif bind != "WEAK":
            library.undefined.append((name, version.lstrip("@")))
    library.needed = re.findall(r"\(NEEDED\).*\[(.*?)\]",
                                readelf(path, "-d"))
    soname = None
    for line in readelf(path, "-V").splitlines():
        if found := re.search(r"File: (\S+)", line):
            soname = found.group(1)
        found = re.search(r"Name: (\S+)", line)
        if found and soname and "Flags" in line:
            library.owners[found.group(1)] = soname
    return library


def runtime_symbols():
    """The names that the C and C++ run time define."""
    names = set()
    for soname in RUNTIME:
        path = subprocess.run(["gcc", f"-print-file-name={soname}"],
                              check=True, stdout=subprocess.PIPE,
                              text=True).stdout.strip()
        if os.path.isabs(path) and os.path.exists(path):
            names |= inspect(path).defined
    return names


def stub_source(symbols, objects):
    lines = ["static char zeroes[4096] __attribute__((aligned(64)));",
             f"extern void* {TYPE_INFO_VTABLE}[] __attribute__((weak));"]
    for name in sorted(symbols):
        if name not in objects:
            # C++ functions mostly return references: give one to zeroes.
            value = ("void*", "zeroes") if name.startswith("_Z") else (
                "int", "100")
            lines.append(f"{value[0]} {name}(void) {{ return {value[1]}; }}")
        elif name.startswith("_ZTI"):
            # dynamic_cast compares the name, so there must be one.
            lines.append(
                f"struct {{ void* vtable; const char* name; }} {name} = "
                f'{{ &{TYPE_INFO_VTABLE}[2], "{name[4:]}" }};')
        else:
            lines.append(f"char {name}[{max(objects[name], 8)}] "
                         "__attribute__((aligned(64))) = {1 - 1};")
    return "\n".join(lines) + "\n"


def version_script(symbols, versions):
    script = ""
    for version in sorted(versions):
        names = "".join(f" {name};" for name, wanted in sorted(symbols.items())
                        if wanted == version)
        script += f"{version} {{{f' global:{names}' if names else ''} }};\n"
    return script


def build_stub(soname, symbols, objects, versions):
    with tempfile.TemporaryDirectory() as folder:
        source, script, built = (
            os.path.join(folder, name)
            for name in ("stub.c", "stub.map", soname))
        with open(source, "w", encoding="utf-8") as file:
            file.write(stub_source(symbols, objects))
        command = ["gcc", "-shared", "-fPIC", "-w", "-fno-builtin", "-nostdlib",
                   f"-Wl,-soname,{soname}", "-o", built, source]
        if versions:
            with open(script, "w", encoding="utf-8") as file:
                file.write(version_script(symbols, versions))
            command.insert(1, f"-Wl,--version-script={script}")
        subprocess.run(command, check=True)
        with open(built, "rb") as file:
            content = file.read()
    replace(soname, content)
    print(f"  stub {soname}: {len(symbols)} symbols")


def replace(path, content):
    """A new file in the place of `path`, which may be a hard link."""
    with open(path + ".new", "wb") as file:
        file.write(content)
    os.chmod(path + ".new", 0o755)
    os.replace(path + ".new", path)


def edit(path, old, new):
    with open(path, encoding="utf-8") as file:
        text = file.read()
    if old not in text:
        raise SystemExit(f"slim_torch: {path} does not contain {old!r}: this "
                         "version of torch is not known")
    replace(path, text.replace(old, new, 1).encode())


def slim(torch):
    os.chdir(os.path.join(torch, "lib"))
    if os.path.exists(MARK):
        print("  torch is slim already")
        return
    files = glob.glob("*.so*")
    before = sum(os.path.getsize(file) for file in files)
    dropped = [file for file in files if file in KERNELS]
    kept = [inspect(file) for file in files if file not in KERNELS]
    if not dropped:
        print("  torch has no CUDA in it")
        return

    objects, owners, known = {}, {}, runtime_symbols()
    for file in dropped:
        objects |= inspect(file).objects
    for library in kept:
        owners |= library.owners
        known |= library.defined
    stubs = {name: {} for name in dropped}  # soname -> {symbol: version}
    for library in kept:
        for soname in library.needed:
            if soname not in files and CUDA_LIBRARY.match(soname):
                stubs.setdefault(soname, {})
    for library in kept:
        for name, version in library.undefined:
            if name in known or re.match("_?Py", name):
                continue
            owner = owners.get(version) if version else None
            if owner in stubs:
                stubs[owner][name] = version
            else:
                stubs[KERNELS[0]].setdefault(name, "")
    for soname, symbols in sorted(stubs.items()):
        versions = {version for version in symbols.values() if version}
        versions |= {version for version, owner in owners.items()
                     if owner == soname}
        build_stub(soname, symbols, objects, versions)

    for path, old, new in EDITS:
        edit(os.path.join("..", path), old, new)
    with open(MARK, "w", encoding="utf-8"):
        pass
    after = sum(os.path.getsize(file) for file in glob.glob("*.so*"))
    print(f"  torch/lib: {before / 1e6:.0f} MB -> {after / 1e6:.0f} MB")


if __name__ == "__main__":
    slim(sys.argv[1] if len(sys.argv) > 1 else
         os.path.join(sysconfig.get_paths()["purelib"], "torch"))
