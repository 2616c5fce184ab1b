"""A disk that a test can stop."""

import contextlib
import os
import subprocess

TEST_DISK = os.environ.get("WEIGHTFS_TEST_DISK",
                           "build/gcc/tests/support/weightfs-test-disk")

# What a disk can hang in: everything, or some kinds of calls.
EVERY_WAY = {
    "all": ["all"],
    "read": ["read"],
    "write": ["write", "fsync", "fallocate", "flush"],
    "metadata": ["getattr", "open", "create", "mkdir", "rename", "truncate",
                 "unlink", "readdir", "statfs"],
}


class Disk:
    """A file system that can stop answering (tests/support/test_disk_main.cc)."""

    def __init__(self, folder):
        self.backing = folder / "disk-data"
        self.path = folder / "disk"
        self.switch = folder / "disk-switch"
        self.log = folder / "mnt.log"  # not on it
        self.backing.mkdir(mode=0o700)
        self.path.mkdir()
        self.process = subprocess.Popen(
            [TEST_DISK, self.backing, self.path, self.switch],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "serves\n"

    def block(self, *operations):
        """From now on they do not come back."""
        new = self.switch.with_suffix(".new")
        new.write_text(" ".join(operations) + "\n")
        new.rename(self.switch)

    def release(self):
        self.switch.unlink(missing_ok=True)

    def end(self):
        self.release()
        self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        subprocess.run(["fusermount3", "-u", "-z", str(self.path)],
                       capture_output=True, check=False)
