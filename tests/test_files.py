import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shoestring import files
from shoestring.files import check_place, recover_folder, replacing_file, replacing_folder, write_text


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


def write_model(target: Path, text: str) -> None:
    with replacing_folder(target) as temporary:
        (temporary / "weights").write_text(text)


@pytest.mark.parametrize("can_swap", [True, False])
def test_a_new_folder_takes_the_place_of_the_old_one(can_swap, tmp_path, monkeypatch):
    if not can_swap:
        monkeypatch.setattr(files, "_swap", lambda one, other: False)
    for text in ("old", "new"):
        write_model(tmp_path / "model", text)
    assert (tmp_path / "model/weights").read_text() == "new"
    assert os.listdir(tmp_path) == ["model"]


def test_what_killed_runs_left_is_removed_and_what_live_ones_write_is_not(tmp_path):
    stale = [tmp_path / ".model.abcd1234.tmp", tmp_path / ".proof.json.abcd1234.tmp"]
    stale[0].mkdir()
    (stale[0] / "weights").write_text("half")
    stale[1].write_text("half")
    foreign = tmp_path / ".model.mine.tmp"
    foreign.write_text("a name that is not ours")
    with replacing_folder(tmp_path / "model") as live:
        (live / "weights").write_text("live")
        write_model(tmp_path / "model", "second")
        assert (live / "weights").read_text() == "live"
    write_text(tmp_path / "proof.json", "whole")
    assert (tmp_path / "model/weights").read_text() == "live"
    assert sorted(os.listdir(tmp_path)) == [".model.mine.tmp", "model", "proof.json"]


def test_a_link_stays_one_and_what_it_points_to_is_replaced(tmp_path):
    write_model(tmp_path / "real", "old")
    (tmp_path / "model").symlink_to("real")
    (tmp_path / "page.html").symlink_to("real.html")
    for text in ("new", "newer"):
        write_model(tmp_path / "model", text)
        write_text(tmp_path / "page.html", text)
    assert (tmp_path / "real/weights").read_text() == (tmp_path / "real.html").read_text() == "newer"
    assert (tmp_path / "model").is_symlink()
    assert (tmp_path / "page.html").is_symlink()
    assert len(os.listdir(tmp_path)) == 4


def test_devices_pipes_and_folders_are_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/null")):
        with pytest.raises(FileExistsError, match="is no regular file"):
            write_text(path, "x")
    assert os.listdir(tmp_path) == ["pipe"]


def test_a_place_is_tried_before_long_work(tmp_path):
    check_place(tmp_path / "a" / "b" / "c")
    (tmp_path / "file").write_text("x")
    for path, reason in (("file/below", "Not a directory"), ("n" * 250, "File name too long")):
        with pytest.raises(OSError, match=f"cannot be written .{reason}.; choose another place"):
            check_place(tmp_path / path)
    assert os.listdir(tmp_path) == ["file"]


def test_a_cache_folder_that_cannot_be_made_names_the_variable(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError, match="file/profiles cannot be made .*; set SHOESTRING_CACHE to another"):
        files.cache_folder("profiles")


WRITER = """
import sys
from shoestring import files
if sys.argv[2] == "two renames":
    files._swap = lambda one, other: False
version = 0
print("ready", flush=True)
while True:
    version += 1
    with files.replacing_folder(sys.argv[1]) as temporary:
        for part in range(4):
            (temporary / f"part{part}").write_text(str(version))
    files.write_text(sys.argv[1] + ".txt", str(version) * 5000)
"""


@pytest.mark.parametrize("way", ["swap", "two renames"])
def test_killed_at_any_moment_the_folder_is_whole(way, tmp_path):
    """Many kills at random moments on top of one another: each run begins with what the last one left."""
    target = tmp_path / "model"
    environment = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[1])}
    draw = random.Random(0)
    newest = 0
    for _ in range(12):
        command = [sys.executable, "-S", "-c", WRITER, str(target), way]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        child.stdout.readline()
        time.sleep(draw.uniform(0, 0.04))
        child.send_signal(signal.SIGKILL)
        child.wait()
        if way == "two renames":
            recover_folder(target)
        if target.exists():
            versions = {(target / f"part{part}").read_text() for part in range(4)}
            assert len(versions) == 1
            newest = int(versions.pop())
        assert target.exists() == (newest > 0), "once it was there it stays there"
        if (text := tmp_path / "model.txt").exists():
            assert len(text.read_text()) % 5000 == 0
        beside = [name for name in os.listdir(tmp_path) if name.startswith(".")]
        assert len(beside) <= 2, "at most what this very run left: earlier leftovers were removed"
    write_model(target, "last")
    write_text(tmp_path / "model.txt", "last")
    assert sorted(os.listdir(tmp_path)) == ["model", "model.txt"]
