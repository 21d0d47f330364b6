"""The kernels under the address and undefined-behaviour sanitisers: no access leaves a buffer.

One process runs the kernels' own tests on few random cases, with every library compiled anew. It takes
minutes: importing torch under the address sanitiser alone takes half a minute.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
import pytest
from shoestring.kernels import native
native.FLAGS += (
    "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
    # On vector code it multiplies the time of compilation, and the address sanitiser sees more.
    "-fno-sanitize=object-size",
)
raise SystemExit(pytest.main([
    *sys.argv[1:], "-x", "-q", "--hypothesis-profile=few", "-m", "not slow",
    "-k", "not compiler and not cost and not text",
    "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib",
]))
"""

HERE = Path(__file__).parent
TESTS = (
    *sorted(HERE.glob("test_*.py")),
    *sorted((HERE / "sparse").glob("test_*.py")),
    *(HERE / "tile" / "c" / f"test_{name}.py" for name in ("casts", "compute", "matmul")),
    HERE.parent / "models" / "test_compiled_decoder.py",
    HERE.parent / "models" / "test_compiled_batch.py",
    HERE.parent / "models" / "test_compiled_hybrid.py",
    HERE.parent / "generation" / "hamburger" / "test_compiled_groups.py",
)


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
    chosen = [str(path) for path in TESTS if path != Path(__file__)]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *chosen],
        env=environment, capture_output=True, text=True, check=False, cwd=HERE.parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
