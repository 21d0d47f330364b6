"""The storage that measured fastest is chosen, from a table that survives what may happen to a file."""

import json

import pytest
import torch

from shoestring.kernels.sparse import dispatch
from shoestring.kernels.sparse.dispatch import (
    Storage,
    fastest_storage,
    measure_storages,
    read_table,
    table_path,
)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    import os

    from shoestring.files import cache_folder

    compiled = cache_folder("kernels")  # what is compiled already need not be again
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path))
    os.symlink(compiled, tmp_path / "kernels")


def test_the_fastest_measured_is_chosen_once_and_remembered(monkeypatch):
    calls = []

    def measure(rows, cols, tokens, sparsity, threads):
        calls.append((rows, cols, tokens, round(sparsity, 6), threads))
        return {"dense": 3.0, "bitmap": 1.0 if sparsity < 0.9 else 2.0, "csr": 1.5}

    monkeypatch.setattr(dispatch, "measure_storages", measure)
    assert fastest_storage(64, 64, 3, 0.71, threads=2) is Storage.BITMAP
    assert fastest_storage(64, 64, 4, 0.69, threads=2) is Storage.BITMAP  # the same entry
    assert calls == [(64, 64, 4, 0.7, 2)]
    assert fastest_storage(64, 64, 4, 0.93, threads=2) is Storage.CSR
    assert len(calls) == 2
    assert set(read_table()) == {
        "64x64, 4 tokens, 0.70 sparse, 2 threads", "64x64, 4 tokens, 0.95 sparse, 2 threads",
    }  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", '{"version": 0, "entries": {"k": {"dense": 1}}}', '{"version": 1, "entries": 3}',
        '{"version": 1, "entries": {"k": {"dense": "fast"}}}',
        '{"version": 1, "entries": {"k": {"magic": 1}}}',
        '{"version": 1, "entries": {"k": {}}}',
    ],
)  # fmt: skip
def test_a_damaged_or_foreign_table_is_measured_anew(text, monkeypatch):
    table_path().write_text(text)
    assert read_table() == {}
    monkeypatch.setattr(dispatch, "measure_storages", lambda *_: {"csr": 1.0})
    assert fastest_storage(8, 8, 1, 0.5) is Storage.CSR
    assert len(json.loads(table_path().read_text())["entries"]) == 1


def test_measuring_covers_every_storage_that_would_take_the_matrix():
    before = torch.get_num_threads()
    assert set(measure_storages(96, 64, 2, 0.8, 1)) == {s.value for s in Storage}
    assert set(measure_storages(96, 64, 2, 0.3, 1)) == {"dense", "bitmap", "csr"}
    assert torch.get_num_threads() == before
    assert all(seconds > 0 for seconds in measure_storages(96, 64, 1, 0.9, 1).values())


@pytest.mark.parametrize("storage", Storage)
def test_every_storage_stores(storage):
    matrix = torch.eye(130)
    assert torch.equal(storage.store(matrix).to_dense(), matrix)


@pytest.mark.parametrize(
    ("rows", "tokens", "sparsity"), [(0, 1, 0.5), (4, 0, 0.5), (4, 1, 1.5), (4, 1, -0.1)]
)
def test_bad_input(rows, tokens, sparsity):
    with pytest.raises(ValueError, match="must be 1 or more"):
        fastest_storage(rows, 4, tokens, sparsity)
