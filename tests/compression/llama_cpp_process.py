"""llama.cpp in a process of its own: a crash of the engine must not take the tests with it."""

import json
import subprocess
import sys

import pytest

PROGRAM = """
import json, sys
import llama_cpp
import numpy as np
# Repacked weights may go to AMX units, which crash where a virtual machine announces them and has none.
default = llama_cpp.llama_model_default_params
def plain():
    parameters = default()
    parameters.use_extra_bufts = False
    return parameters
llama_cpp.llama_cpp.llama_model_default_params = plain
path, task = sys.argv[1], json.load(sys.stdin)
engine = llama_cpp.Llama(path, n_ctx=64, logits_all=True, verbose=False, n_threads=1)
if "ids" in task:
    engine.eval(task["ids"])
    print(json.dumps(np.array(engine.scores[: len(task["ids"])]).tolist()))
else:
    print(json.dumps([engine.tokenize(text.encode(), add_bos=False) for text in task["texts"]]))
"""


def ask_llama_cpp(path, task: dict) -> list:
    """{"ids": tokens} gives the logits at each of at most 64; {"texts": strings} gives the tokens of each.

    Skips the test where llama-cpp-python is not installed.
    """
    pytest.importorskip("llama_cpp", exc_type=ImportError)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path)],
        input=json.dumps(task),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)
