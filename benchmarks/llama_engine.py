"""llama.cpp as a contestant: as it comes where it runs, else without its matrix tiles."""

import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch


def llama_engine(file: Path, slots: int, **options: Any) -> Any:
    """A `llama_cpp.Llama` with torch's number of threads. Needs the `peers` extra."""
    import llama_cpp

    if not _runs(file):
        _without_repacking()
    threads = torch.get_num_threads()
    return llama_cpp.Llama(
        str(file), n_ctx=slots, n_threads=threads, n_threads_batch=threads, verbose=False, **options
    )


@functools.cache
def _runs(file: Path) -> bool:
    """Whether llama.cpp as it comes survives a prompt, tried in a process of its own."""
    script = (
        "import sys, llama_cpp; "
        "llama_cpp.Llama(sys.argv[1], n_ctx=64, verbose=False).eval(list(range(100, 140)))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(file)], capture_output=True, check=False)
    return done.returncode == 0


@functools.cache
def _without_repacking() -> None:
    """With weights repacked for matrix tiles it crashes on some virtual machines; as they are it runs."""
    import llama_cpp

    default = llama_cpp.llama_model_default_params

    def parameters_without() -> Any:
        parameters = default()
        parameters.use_extra_bufts = False
        return parameters

    llama_cpp.llama_cpp.llama_model_default_params = parameters_without
