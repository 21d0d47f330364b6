"""The kernels under the address and undefined-behaviour sanitisers: no access leaves a buffer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import pytest
from shoestring.kernels.tile.c import compiled
compiled.FLAGS += ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1")
folder = {folder!r}
names = [f"{{folder}}/tile/c/test_{{name}}.py" for name in ("casts", "compute", "matmul")]
chosen = "not compiler and not cost and not text"
raise SystemExit(pytest.main([*names, f"{{folder}}/test_packed_linear.py", "-x", "-q", "-k", chosen,
                              "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib"]))
"""


def runtime(name):
    """The sanitiser's library, which must be loaded before Python."""
    found = subprocess.run(["cc", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = Path(found.stdout.strip())
    return str(path) if path.is_absolute() and path.exists() else None


@pytest.mark.slow
def test_no_kernel_leaves_its_buffers(tmp_path):
    libraries = [runtime("libasan.so"), runtime("libubsan.so")]
    if None in libraries:
        pytest.skip("the compiler has no sanitisers here")
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",
        "SHOESTRING_CACHE": str(tmp_path),
    }
    folder = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(folder=folder)],
        env=environment, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[4],
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
