"""The first script of a newcomer to S4 does what its first lines say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "digits_s4.py"


@pytest.mark.slow
def test_it_reads_digits_and_draws(tmp_path):
    page = tmp_path / "digits.html"
    run = subprocess.run(
        [sys.executable, str(SCRIPT), str(page)], capture_output=True, text=True, timeout=1200, check=True
    )
    found = re.search(r"test accuracy ([\d.]+)%", run.stdout)
    assert found, run.stdout
    assert float(found[1]) > 97
    assert "read as" in page.read_text()
