"""What all adapters share: python run_X.py PACK OUT [MEND...]

An adapter is a file that runs one engine on one pack: `run` takes the pack's
directory and its ids and gives arrays by the names of docs/deepseek.md#trace;
"logits.HOW" are of the same pass, taken by another of the engine's ways.

`mends` undo departures that docs/engines.md lists, one each: name -> [(module,
its text, other text)]. The module is imported with the other text in the place
of its own, and stdout says where. Nothing is mended unless it is named.

Status 3: the engine is not installed for this Python.
"""
import importlib.machinery
import importlib.metadata
import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file


def config(pack):
    return json.loads((pack / "config.json").read_text())


def ids_of(pack):
    return json.loads((pack / "golden/manifest.json").read_text())["ids"]


def replaced(path, changes):
    """A file's text with pieces of it replaced."""
    text = Path(path).read_text(encoding="utf-8")
    for theirs, ours in changes:
        if text.count(theirs) != 1:
            raise ImportError(f"{path}: wanted once: {theirs}")
        line = text[:text.index(theirs)].count("\n") + 1
        text = text.replace(theirs, ours)
        print(f"MEND {str(path).split('site-packages/')[-1]}:{line}: "
              f"{' '.join(theirs.split())} -> {' '.join(ours.split())}")
    return text


class Edited(importlib.machinery.SourceFileLoader):
    """Imports a module with pieces of its text replaced."""

    def __init__(self, name, path, changes):
        super().__init__(name, path)
        self.changes = changes

    def get_code(self, fullname):
        text = replaced(self.path, self.changes)
        return compile(text, self.path, "exec")


class Editor:
    """Finds modules that are to be edited, before all other finders."""

    def __init__(self, mends):
        self.changes = {}
        for module, theirs, ours in mends:
            self.changes.setdefault(module, []).append((theirs, ours))

    def find_spec(self, name, path=None, target=None):
        if name not in self.changes:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        spec.loader = Edited(name, spec.origin, self.changes[name])
        return spec


def main(package, run, mends=None):
    pack, out, *named = sys.argv[1:]
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        sys.exit(3)
    sys.meta_path.insert(0, Editor(
        mend for name in named for mend in (mends or {})[name]))
    found = run(Path(pack), ids_of(Path(pack)))
    save_file({name: np.ascontiguousarray(x) for name, x in found.items()},
              out, {"engine": package, "version": version})
