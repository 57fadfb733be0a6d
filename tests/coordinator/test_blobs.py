"""The blob store: whole or absent after a crash at any step, and nothing removed that is still needed."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from coordinator.blobs import BlobError, BlobStore


def digest(data):
    return hashlib.sha256(data).hexdigest()


ONE, TWO = b"one" * 100, b"two" * 100


class PowerCut(Exception):
    pass


def test_what_is_put_is_got_back(tmp_path):
    store = BlobStore(tmp_path / "blobs")
    store.put(digest(ONE), ONE)
    assert store.has(digest(ONE)) and not store.has(digest(TWO))
    assert store.get(digest(ONE), verify=True) == ONE
    assert BlobStore(tmp_path / "blobs").digests() == [digest(ONE)]


@pytest.mark.parametrize(("step", "call"), [("fsync", 0), ("replace", 0), ("replace", 1), ("fsync", 1)])
def test_a_crash_at_any_step_leaves_the_whole_blob_or_none(tmp_path, monkeypatch, step, call):
    store, calls = BlobStore(tmp_path), []
    original = getattr(os, step)

    def cut(*arguments):
        calls.append(arguments)
        if len(calls) > call:
            raise PowerCut
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, step, cut)
        with pytest.raises(PowerCut):
            store.put(digest(ONE), ONE)
    again = BlobStore(tmp_path)
    again.recover()
    assert again.digests() == ([digest(ONE)] if again.has(digest(ONE)) else [])
    assert not again.has(digest(ONE)) or again.get(digest(ONE), verify=True) == ONE
    again.put(digest(ONE), ONE)
    assert again.get(digest(ONE), verify=True) == ONE and list((tmp_path / "incoming").iterdir()) == []


def test_a_sealed_name_appears_only_after_the_bytes_are_on_the_disk(tmp_path, monkeypatch):
    store, calls = BlobStore(tmp_path), []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(("fsync", os.path.isdir(f"/dev/fd/{fd}"))), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append(("replace", None)), replace(a, b)))
    store.stage(digest(ONE), ONE)
    assert calls == [("fsync", False), ("replace", None)] and not (tmp_path / digest(ONE)).exists()
    store.seal([digest(ONE)])
    assert calls[2:] == [("replace", None), ("fsync", True)] and (tmp_path / digest(ONE)).exists()


def test_blobs_are_synced_once_each_and_their_directory_once(tmp_path, monkeypatch):
    store, calls = BlobStore(tmp_path), []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(fd), fsync(fd)))
    store.stage(digest(ONE), ONE)
    store.stage(digest(TWO), TWO)
    store.stage(digest(TWO), TWO)
    store.seal([digest(ONE), digest(TWO)])
    store.seal([digest(ONE), digest(TWO)])
    assert len(calls) == 3


def test_a_staged_blob_is_readable_and_survives_a_kill(tmp_path):
    store = BlobStore(tmp_path)
    store.stage(digest(ONE), ONE)
    (tmp_path / "incoming" / digest(TWO)).write_bytes(TWO[:-1])
    (tmp_path / "incoming" / "half.part").write_bytes(b"x")
    again = BlobStore(tmp_path)
    again.recover()
    assert again.digests() == [digest(ONE)] and again.get(digest(ONE)) == ONE
    with pytest.raises(BlobError):
        again.seal([digest(TWO)])
    again.seal([digest(ONE)])
    assert (tmp_path / digest(ONE)).read_bytes() == ONE


def test_threads_may_put_the_same_blob_at_once(tmp_path):
    store = BlobStore(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: store.put(digest(ONE), ONE), range(50)))
    assert store.digests() == [digest(ONE)] and store.get(digest(ONE), verify=True) == ONE
    assert list((tmp_path / "incoming").iterdir()) == []


def test_damage_is_seen_when_asked_for(tmp_path):
    store = BlobStore(tmp_path)
    store.put(digest(ONE), ONE)
    (tmp_path / digest(ONE)).write_bytes(b"x" + ONE[1:])
    assert store.get(digest(ONE)) != ONE
    with pytest.raises(BlobError, match="damaged"):
        store.get(digest(ONE), verify=True)


def test_a_missing_blob_is_one_line_that_says_what_to_do(tmp_path):
    with pytest.raises(BlobError, match="missing from .*; restore"):
        BlobStore(tmp_path).get(digest(ONE))


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "A" * 64, "a" * 63, "a" * 64 + "\n"])
def test_only_digests_name_blobs(tmp_path, name):
    with pytest.raises(ValueError, match="sha256"):
        BlobStore(tmp_path).has(name)


def test_collecting_removes_what_was_given_up(tmp_path):
    store = BlobStore(tmp_path)
    store.put(digest(ONE), ONE)
    store.put(digest(TWO), TWO)
    store.doom({digest(TWO)})
    assert not store.has(digest(ONE)) and store.get(digest(ONE)) == ONE
    assert store.collect() == len(ONE)
    assert store.digests() == [digest(TWO)] and store.collect() == 0


def test_a_blob_that_comes_again_is_saved_from_collection(tmp_path):
    store = BlobStore(tmp_path)
    store.put(digest(ONE), ONE)
    store.doom(set())
    store.put(digest(ONE), ONE)
    assert store.collect() == 0 and store.get(digest(ONE)) == ONE
