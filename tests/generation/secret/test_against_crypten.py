"""Bytes on the wire against those of CrypTen, where that is installed."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from shoestring.generation.secret.cost import cost_model


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("crypten") is None, reason="CrypTen is not installed")
def test_products_cost_what_they_cost_there():
    script = Path(__file__).with_name("crypten_counts.py")
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300, check=True)
    product, matmul = json.loads(ran.stdout.splitlines()[-1])
    model = cost_model(2)
    assert product == model.multiply(7).nbytes
    assert matmul == model.matmul(1, 3, 5, 4).nbytes
