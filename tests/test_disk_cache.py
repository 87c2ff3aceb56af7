"""Arrays kept from run to run: the same inputs give them back, anything else makes them anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from threevp_nerfstudio import disk_cache
from threevp_nerfstudio.disk_cache import cached, digest


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("THREEVP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def counted(value: float = 1.0):
    calls: list[int] = []

    def make() -> dict[str, np.ndarray]:
        calls.append(1)
        return {"a": np.full(3, value), "b": np.array([True, False])}

    return make, calls


def test_the_same_key_is_made_once_and_another_anew():
    make, calls = counted()
    key = (np.arange(4), "x", 0.5)
    first, second = cached("t", key, make), cached("t", (np.arange(4), "x", 0.5), make)
    assert len(calls) == 1 and all(np.array_equal(first[k], second[k]) and first[k].dtype == second[k].dtype for k in first)
    for other in ((np.arange(5), "x", 0.5), (np.arange(4), "y", 0.5), (np.arange(4), "x", 0.25)):
        cached("t", other, make)
    cached("u", key, make)
    assert len(calls) == 5


def test_keys_differ_by_type_and_shape_too():
    a = np.arange(6)
    keys = [(a,), (a.astype(np.int32),), (a.reshape(2, 3),), (a.astype(float),), ("a", "b"), ("ab",), (1,), (1.0,)]
    assert len({digest(key) for key in keys}) == len(keys)
    assert digest((a[::2],)) == digest((a[::2].copy(),))


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04 cut off"])
def test_a_broken_file_is_made_anew(own_folder: Path, content: bytes):
    make, calls = counted()
    cached("t", (1,), make)
    next(own_folder.glob("*.npz")).write_bytes(content)
    assert np.array_equal(cached("t", (1,), make)["a"], np.ones(3)) and len(calls) == 2
    cached("t", (1,), make)
    assert len(calls) == 2


def test_where_nothing_can_be_written_it_is_made_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("THREEVP_CACHE", str(tmp_path / "file"))
    make, calls = counted()
    assert np.array_equal(cached("t", (1,), make)["a"], cached("t", (1,), make)["a"]) and len(calls) == 2


def test_the_folder_does_not_grow_without_end(own_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(disk_cache, "KEEP", 3)
    for i in range(6):
        cached("t", (i,), counted()[0])
    assert len(list(own_folder.iterdir())) == 3
