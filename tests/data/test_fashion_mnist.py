import gzip
import hashlib
import shutil
import struct
import subprocess

import numpy as np
import pytest

from shoestring.data import fashion_mnist as module
from shoestring.data.fashion_mnist import (
    CHECKSUMS,
    candidate_folders,
    is_complete,
    load_fashion_mnist,
    read_folder,
)
from shoestring.errors import MissingData

SMALL = {
    name: np.arange(size, dtype=np.uint8).reshape(shape)
    for name, size, shape in [
        ("train-images-idx3-ubyte", 12, (3, 2, 2)),
        ("train-labels-idx1-ubyte", 3, (3,)),
        ("t10k-images-idx3-ubyte", 8, (2, 2, 2)),
        ("t10k-labels-idx1-ubyte", 2, (2,)),
    ]
}


def encode(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write(folder, suffix=".gz"):
    folder.mkdir(parents=True)
    for name, array in SMALL.items():
        content = encode(array)
        (folder / f"{name}{suffix}").write_bytes(gzip.compress(content) if suffix else content)


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A machine without the data set, the network or apt, for which a tiny data set is the true one."""
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SHOESTRING_DATA", raising=False)
    monkeypatch.setattr(module, "_SYSTEM_FOLDERS", tmp_path / "none")
    monkeypatch.setattr(module, "HOST", (tmp_path / "host").as_uri())
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    sums = {name: hashlib.sha256(encode(array)).hexdigest() for name, array in SMALL.items()}
    monkeypatch.setattr(module, "CHECKSUMS", sums)
    return tmp_path


def check(data):
    np.testing.assert_array_equal(data.train.images, SMALL["train-images-idx3-ubyte"])
    np.testing.assert_array_equal(data.test.labels, SMALL["t10k-labels-idx1-ubyte"])
    assert len(data.train) == 3


def test_the_named_folder_comes_first(nowhere, monkeypatch):
    write(nowhere / "mine" / "fashion-mnist", suffix="")
    monkeypatch.setenv("SHOESTRING_DATA", str(nowhere / "mine"))
    assert next(candidate_folders()) == nowhere / "mine" / "fashion-mnist"
    check(load_fashion_mnist())


def test_the_cache_is_found(nowhere):
    write(nowhere / "cache" / "data" / "fashion-mnist")
    check(load_fashion_mnist())


def test_the_folder_of_the_distribution_is_found(nowhere, monkeypatch):
    write(nowhere / "system" / "fashion-mnist")
    monkeypatch.setattr(module, "_SYSTEM_FOLDERS", nowhere / "system")
    check(load_fashion_mnist())


def test_it_is_fetched_into_the_cache_once(nowhere):
    write(nowhere / "host")
    check(load_fashion_mnist())
    assert is_complete(nowhere / "cache" / "data" / "fashion-mnist")
    shutil.rmtree(nowhere / "host")
    check(load_fashion_mnist())


def test_a_fetched_file_that_is_altered_leaves_nothing_behind(nowhere):
    write(nowhere / "host")
    altered = SMALL["t10k-labels-idx1-ubyte"] + 1
    (nowhere / "host" / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(encode(altered)))
    with pytest.raises(MissingData, match="SHA-256"):
        load_fashion_mnist()
    assert not (nowhere / "cache" / "data" / "fashion-mnist").exists()


def test_without_anything_one_line_says_how_to_provide_it(nowhere):
    with pytest.raises(MissingData, match="dataset-fashion-mnist.*SHOESTRING_DATA") as caught:
        load_fashion_mnist()
    assert "\n" not in str(caught.value)
    assert "there is no apt-get here" in str(caught.value)


def test_a_failing_apt_is_told(nowhere, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda tool: tool)
    answer = subprocess.CompletedProcess([], 100, "", "E: Unable to locate package\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: answer)
    with pytest.raises(MissingData, match="E: Unable to locate package"):
        load_fashion_mnist()


def test_the_files_come_out_of_the_debian_package(nowhere, monkeypatch):
    write(nowhere / "package")

    def run(command, cwd, **kwargs):
        if command[0] == "apt-get":
            module.Path(cwd, "some.deb").touch()
        else:
            shutil.copytree(nowhere / "package", module.Path(cwd, "unpacked", "usr", "share"))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(shutil, "which", lambda tool: tool)
    monkeypatch.setattr(subprocess, "run", run)
    check(load_fashion_mnist())


def test_a_truncated_file_is_refused_and_not_replaced_in_silence(nowhere):
    folder = nowhere / "cache" / "data" / "fashion-mnist"
    write(folder)
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match="train-images-idx3-ubyte.gz: truncated"):
        load_fashion_mnist()


def test_a_folder_that_lacks_a_file_is_passed_over(nowhere):
    folder = nowhere / "cache" / "data" / "fashion-mnist"
    write(folder)
    (folder / "t10k-images-idx3-ubyte.gz").unlink()
    assert not is_complete(folder)
    with pytest.raises(FileNotFoundError, match="lacks t10k-images-idx3-ubyte.gz"):
        read_folder(folder)


@pytest.mark.skipif(
    not any(map(is_complete, candidate_folders())), reason="Fashion-MNIST is not on this machine"
)
def test_the_real_data_set_has_its_published_sizes():
    data = load_fashion_mnist()
    assert data.train.images.shape == (60_000, 28, 28)
    assert data.test.images.shape == (10_000, 28, 28)
    np.testing.assert_array_equal(np.bincount(data.train.labels), np.full(10, 6_000))
    np.testing.assert_array_equal(np.bincount(data.test.labels), np.full(10, 1_000))
    assert set(CHECKSUMS) == set(SMALL)
