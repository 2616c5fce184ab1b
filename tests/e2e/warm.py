"""`weightfs warm`, as tests call it."""

import json
import subprocess

import harness


class Warm:
    """`weightfs warm` on one cache and one hub."""

    def __init__(self, hub, tmp_path, cache="cache", repo="org/m"):
        self.hub, self.repo = hub, repo
        self.home = tmp_path / "home"
        self.home.mkdir(exist_ok=True)
        self.cache = tmp_path / cache

    def arguments(self, *more):
        return ["warm", self.repo, "--endpoint", self.hub.url, "--cache-dir",
                str(self.cache), *map(str, more)]

    def __call__(self, *more, code=0):
        done = harness.run(*self.arguments(*more), home=self.home, check=False)
        assert done.returncode == code, (done.args, done.returncode,
                                         done.stdout, done.stderr)
        return done

    def json(self, *more, code=0):
        return json.loads(self(*more, "--json", code=code).stdout)

    def cached(self):
        record = json.loads(harness.run(
            *self.arguments("--check", "--json"), home=self.home,
            check=False).stdout)
        return record["cached"], record["bytes"]

    def start(self, *more, **where):
        return subprocess.Popen(
            [harness.WEIGHTFS, *self.arguments(*more)],
            env=harness.environment(self.home), **where)
