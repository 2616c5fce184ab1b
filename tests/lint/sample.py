#!/usr/bin/env python3
"""sample.py DATA: DATA/sample is what DATA/make_sample.py makes, byte for byte."""

import filecmp
import os
import subprocess
import sys
import tempfile

data = sys.argv[1]
with tempfile.TemporaryDirectory() as folder:
    subprocess.run([sys.executable, os.path.join(data, "make_sample.py"),
                    folder], check=True)
    made = sorted(os.listdir(folder))
    kept = sorted(os.listdir(os.path.join(data, "sample")))
    _, different, unread = filecmp.cmpfiles(
        folder, os.path.join(data, "sample"), made, shallow=False)
if made != kept or different or unread:
    sys.exit(f"made {made}, kept {kept}, different: {different + unread}")
print(f"{len(made)} files are as made")
