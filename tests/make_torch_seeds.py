"""Makes tests/corpus/torch: small files as torch writes them, and as others do.

    e2e/env/python torch make_torch_seeds.py
"""

import io
import pathlib
import pickle
import zipfile

import torch

CORPUS = pathlib.Path(__file__).resolve().parent / "corpus" / "torch"


def saved(value, **how):
    content = io.BytesIO()
    torch.save(value, content, **how)
    return content.getvalue()


def zipped_again(content, method):
    again = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(
            again, "w", method) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
        new.comment = b"zipped again"
    return again.getvalue()


class Module(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)
        self.register_buffer("steps", torch.zeros(1))

    def forward(self, x):
        return self.layer(x) + self.steps


def main():
    torch.manual_seed(0)
    base = torch.randn(4, 6)
    state = {"a": base, "tied": base, "row": base[1], "column": base[:, 2],
             "half": base.half(), "fp8": base.to(torch.float8_e4m3fn),
             "scalar": torch.tensor(1), "empty": torch.empty(0),
             "parameter": torch.nn.Parameter(base[:2])}
    classic = {k: v for k, v in state.items() if k != "fp8"}
    script = io.BytesIO()
    torch.jit.save(torch.jit.script(Module()), script)
    seeds = {
        "state": saved(state),
        "protocol4": saved(state, pickle_protocol=4),
        "legacy": saved(classic, _use_new_zipfile_serialization=False),
        "module": saved(Module()),
        "script": script.getvalue(),
        "checkpoint": saved({"epoch": 1, "state": [classic, (base,)]}),
        "stored": zipped_again(saved(state), zipfile.ZIP_STORED),
        "deflated": zipped_again(saved(state), zipfile.ZIP_DEFLATED),
        "bad_tail": saved(state)[:-1],
        "bad_legacy": saved(classic,
                            _use_new_zipfile_serialization=False)[:-3],
        "pickle0": pickle.dumps({"a": [1, (2.5, None)]}, protocol=0),
    }
    CORPUS.mkdir(parents=True, exist_ok=True)
    for name, content in seeds.items():
        (CORPUS / name).write_bytes(content)


if __name__ == "__main__":
    main()
