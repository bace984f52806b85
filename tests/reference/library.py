"""C files of the project as a library that Python can call."""
import ctypes
import os
import subprocess
import tempfile

ROOT = os.path.join(os.path.dirname(__file__), "..", "..")
FLAGS = "-std=c99 -O2 -ffp-contract=off -shared -fPIC".split()


def load(*sources):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "library.so")
        subprocess.run([os.environ.get("CC", "cc"), *FLAGS, "-I.", "-o", path,
                        *sources, "-lm"], cwd=ROOT, check=True)
        return ctypes.CDLL(path)
