import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shoestring import files
from shoestring.files import recover_folder, replacing_file, replacing_folder, write_text


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    target = tmp_path / "proof.json"
    write_text(target, "old")
    with pytest.raises(OSError, match="full"), replacing_file(target) as temporary:
        temporary.write_text("half of the new")
        raise OSError("disk full")
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["proof.json"]


def test_a_failed_folder_leaves_the_old_one(tmp_path):
    target = tmp_path / "model"
    with replacing_folder(target) as temporary:
        (temporary / "weights").write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing_folder(target) as temporary:
        (temporary / "weights").write_text("new")
        raise KeyboardInterrupt
    assert (target / "weights").read_text() == "old"
    assert os.listdir(tmp_path) == ["model"]


def test_a_kill_between_the_two_renames_is_recovered(tmp_path):
    target = tmp_path / "model"
    retired = tmp_path / ".model.old"
    retired.mkdir()
    (retired / "weights").write_text("old")
    recover_folder(target)
    assert (target / "weights").read_text() == "old"


def test_killed_at_any_moment_the_folder_is_whole(tmp_path):
    program = """
import sys
from shoestring.files import replacing_folder
version = 0
print("ready", flush=True)
while True:
    version += 1
    with replacing_folder(sys.argv[1]) as temporary:
        for part in range(4):
            (temporary / f"part{part}").write_text(str(version))
"""
    target = tmp_path / "model"
    for delay in (0.0, 0.003, 0.01, 0.02, 0.031, 0.045):
        environment = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[1])}
        command = [sys.executable, "-c", program, str(target)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        child.stdout.readline()
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        child.wait()
        recover_folder(target)
        if target.exists():
            assert len({(target / f"part{part}").read_text() for part in range(4)}) == 1
