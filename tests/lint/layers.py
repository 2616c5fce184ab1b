#!/usr/bin/env python3
"""Checks who includes whom, and the shape of headers.

    layers.py FOLDER      checks the sources under FOLDER; prints each violation
    layers.py --self-test plants each violation once and expects it to be found

The layers: formats/base is below everything; formats and cache never meet;
fs joins them; tools may use all. A library that is heavy or that binds the
code to a protocol has one home (HOMES). Standard library only.
"""

import os
import re
import sys
import tempfile

# Folder -> folders whose headers it may include. A file belongs to the longest
# match; a folder may always include its own headers.
LAYERS = {
    "formats/base": (),
    "formats": ("formats/base",),
    "formats/view": ("formats", "formats/base"),
    "cache": ("formats/base",),
    "cache/http": ("cache", "formats/base"),
    "cache/hub": ("cache", "cache/http", "formats/base"),
    "cache/local": ("cache", "formats/base"),
    "cache/shared": ("cache", "cache/http", "formats/base"),
    "fs": ("formats", "formats/view", "formats/base", "cache"),
    "fs/fuse": ("fs", "formats", "formats/view", "formats/base", "cache"),
    "tools": ("",),
    "tests": ("",),
}

# Header -> the folders that may include it (tests/ may include all of them).
HOMES = (
    (re.compile(r"^curl/"), ("cache/http",)),
    (re.compile(r"^fuse"), ("fs/fuse",)),
    (re.compile(r"^spdlog/"), ("tools",)),
    (re.compile(r"^CLI/"), ("tools",)),
    (re.compile(r"^(gtest|gmock|microhttpd)"), ()),
)
MAX_JSON_FILES = 5
MAX_SPDLOG_FILES = 1
MAX_HEADER_LINES = 200

INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)
SKIPPED = {".git", "build", "__pycache__"}


def sources(root):
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(
            name for name in folders
            if name not in SKIPPED and not name.startswith("build"))
        for name in sorted(files):
            if name.endswith((".cc", ".h", ".c", ".cu")):
                yield os.path.relpath(os.path.join(folder, name), root)


def layer_of(path):
    matches = [layer for layer in LAYERS if path.startswith(layer + "/")]
    return max(matches, key=len) if matches else None


def check_ours(path, included):
    ours, theirs = layer_of(path), layer_of(included)
    if theirs is None:
        return None
    if ours is None:
        return f"{path}: in no layer"
    allowed = LAYERS[ours]
    if theirs == ours or "" in allowed or theirs in allowed:
        if theirs == "tests" and ours != "tests":
            return f"{path}: includes the tests' {included}"
        return None
    return f"{path}: {ours} may not include {included}"


def check_foreign(path, included):
    if path.startswith("tests/"):
        return None
    for pattern, homes in HOMES:
        if pattern.match(included) and not any(
                path.startswith(home + "/") for home in homes):
            where = " or ".join(homes) or "tests"
            return f"{path}: only {where} may include <{included}>"
    if included.startswith("nlohmann/") and path.endswith(".h"):
        return f"{path}: <{included}> is for .cc files only"
    return None


def check_header(path, text):
    guard = "WEIGHTFS_" + re.sub(r"[/.]", "_", path).upper() + "_"
    if f"#ifndef {guard}\n#define {guard}\n" not in text:
        yield f"{path}: the header guard is not {guard}"
    if not text.startswith("// "):
        yield f"{path}: no comment at the top says what it is"
    lines = text.count("\n")
    if lines > MAX_HEADER_LINES:
        yield f"{path}: {lines} lines, more than {MAX_HEADER_LINES}"


def check(root):
    violations, json_files, spdlog_files = [], [], []
    for path in sources(root):
        with open(os.path.join(root, path), encoding="utf-8") as file:
            text = file.read()
        includes = INCLUDE.findall(text)
        for included in includes:
            for violation in (check_ours(path, included),
                              check_foreign(path, included)):
                if violation:
                    violations.append(violation)
        if path.endswith(".h"):
            violations.extend(check_header(path, text))
        if not path.startswith("tests/"):
            if any(name.startswith("nlohmann/") for name in includes):
                json_files.append(path)
            if any(name.startswith("spdlog/") for name in includes):
                spdlog_files.append(path)
    for library, files, limit in (("nlohmann", json_files, MAX_JSON_FILES),
                                  ("spdlog", spdlog_files, MAX_SPDLOG_FILES)):
        if len(files) > limit:
            violations.append(f"{library} in {len(files)} files, more than "
                              f"{limit}: {', '.join(files)}")
    return violations


def self_test():
    def header(path):
        guard = "WEIGHTFS_" + re.sub(r"[/.]", "_", path).upper() + "_"
        return f"// What.\n#ifndef {guard}\n#define {guard}\n#endif\n"

    planted = (
        ("formats/x.cc", '#include "cache/origin.h"\n', "may not include"),
        ("formats/base/x.cc", '#include "formats/dtype.h"\n',
         "may not include"),
        ("cache/x.cc", '#include "formats/dtype.h"\n', "may not include"),
        ("cache/x.cc", '#include "cache/hub/token.h"\n', "may not include"),
        ("cache/hub/x.cc", '#include "fs/vfs.h"\n', "may not include"),
        ("fs/x.cc", '#include "fs/fuse/session.h"\n', "may not include"),
        ("tools/x.cc", '#include "tests/support/hub_server.h"\n',
         "includes the tests'"),
        ("cache/hub/x.cc", "#include <curl/curl.h>\n", "only cache/http"),
        ("fs/x.cc", "# include <fuse_lowlevel.h>\n", "only fs/fuse"),
        ("fs/x.cc", "#include <fuse3/fuse_lowlevel.h>\n", "only fs/fuse"),
        ("fs/x.cc", "#include <spdlog/spdlog.h>\n", "only tools"),
        ("fs/x.h", header("fs/x.h") + "#include <nlohmann/json.hpp>\n",
         "for .cc files only"),
        ("fs/x.h", header("fs/y.h"), "guard"),
        ("fs/x.h", header("fs/x.h")[len("// What.\n"):], "no comment"),
        ("fs/x.h", header("fs/x.h") + "\n" * 200, "lines, more than"),
    )
    many = {f"fs/{i}.cc": "#include <nlohmann/json.hpp>\n" for i in range(6)}
    two = {f"tools/{i}.cc": "#include <spdlog/spdlog.h>\n" for i in range(2)}
    fine = {
        "fs/fuse/x.cc": '#include <fuse_lowlevel.h>\n#include "fs/vfs.h"\n',
        "fs/x.h": header("fs/x.h"),
        "tests/fs/x.cc": '#include <curl/curl.h>\n#include "cache/origin.h"\n',
    }
    cases = [({path: text}, wanted) for path, text, wanted in planted]
    cases += [(many, "nlohmann in 6"), (two, "spdlog in 2"), (fine, None)]
    failures = 0
    for files, wanted in cases:
        with tempfile.TemporaryDirectory() as root:
            for path, text in files.items():
                os.makedirs(os.path.join(root, os.path.dirname(path)),
                            exist_ok=True)
                with open(os.path.join(root, path), "w",
                          encoding="utf-8") as file:
                    file.write(text)
            found = check(root)
        if (not found) if wanted is None else (
                len(found) == 1 and wanted in found[0]):
            continue
        failures += 1
        print(f"FAILED: {sorted(files)[0]}: wanted {wanted!r}, found {found}")
    print(f"{len(cases)} planted cases, {failures} wrong")
    return failures


def main():
    if sys.argv[1:] == ["--self-test"]:
        return 1 if self_test() else 0
    root = sys.argv[1]
    violations = check(root)
    for violation in violations:
        print(violation)
    count = sum(1 for _ in sources(root))
    print(f"{count} files, {len(violations)} violations")
    return 1 if violations or count == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
