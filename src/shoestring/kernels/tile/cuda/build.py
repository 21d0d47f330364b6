"""CUDA C to machine code by NVIDIA's compiler, cached by what made it."""

import functools
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from shoestring.errors import NoCompiler
from shoestring.files import cache_folder, replacing_file

FLAGS = ("-std=c++17", "-O3")


def nvcc() -> str:
    """The path of the compiler. Raises: NoCompiler where there is none."""
    found = shutil.which(os.environ.get("SHOESTRING_NVCC", "nvcc"))
    if found is None:
        raise NoCompiler("no nvcc found; install the CUDA toolkit or set SHOESTRING_NVCC")
    return found


def compile_cuda(text: str, architecture: str) -> Path:
    """The cubin of a source for `architecture`, such as "sm_80".

    Raises: NoCompiler where there is no nvcc, or it rejects the source, with its first error.
    """
    compiler = nvcc()
    identity = "\0".join((text, architecture, *FLAGS, _version(compiler)))
    cubin = cache_folder("cuda") / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.cubin"
    if not cubin.exists():
        with replacing_file(cubin) as output:
            command = [
                compiler,
                "-cubin",
                f"-arch={architecture}",
                *FLAGS,
                "-x",
                "cu",
                "-",
                "-o",
                str(output),
            ]
            done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                first = next(
                    (line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200]
                )
                raise NoCompiler(f"nvcc rejects a kernel: {first.strip()}")
    return cubin


@functools.cache
def _version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
