"""The blob store: whole or absent after a crash at any step, nothing removed that is needed, no stored byte trusted."""

import errno
import hashlib
import os
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from coordinator.blobs import BlobError, BlobStore, DamagedBlob, MissingBlob

ONE, TWO = b"one" * 100, b"two" * 100


def digest(data):
    return hashlib.sha256(data).hexdigest()


def files_in(place):
    return sorted(path.name for path in place.rglob("*") if path.is_file())


def reopened(directory, referenced=()):
    store = BlobStore(directory)
    store.recover(referenced)
    return store


class PowerCut(Exception):
    pass


def test_what_is_put_is_got_back(tmp_path):
    store = BlobStore(tmp_path / "blobs")
    store.put(digest(ONE), ONE)
    assert store.has(digest(ONE)) and not store.has(digest(TWO))
    assert store.get(digest(ONE)) == ONE
    again = BlobStore(tmp_path / "blobs")
    assert again.digests() == [digest(ONE)] and again.get(digest(ONE)) == ONE


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
    again = reopened(tmp_path, {digest(ONE)})
    assert again.digests() == ([digest(ONE)] if again.has(digest(ONE)) else [])
    assert not again.has(digest(ONE)) or again.get(digest(ONE)) == ONE
    again.put(digest(ONE), ONE)
    assert again.get(digest(ONE)) == ONE and files_in(tmp_path / "incoming") == []


def test_a_sealed_name_appears_only_after_the_bytes_are_on_the_disk(tmp_path, monkeypatch):
    store, calls = BlobStore(tmp_path), []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(("fsync", os.path.isdir(f"/dev/fd/{fd}"))), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append(("replace", None)), replace(a, b)))
    store.stage("desk", digest(ONE), ONE)
    assert calls == [("fsync", False), ("replace", None)] and not (tmp_path / digest(ONE)).exists()
    store.seal("desk", [digest(ONE)])
    assert calls[2:] == [("replace", None), ("fsync", True)] and (tmp_path / digest(ONE)).exists()


def test_blobs_are_synced_once_each_and_their_directory_once(tmp_path, monkeypatch):
    store, calls = BlobStore(tmp_path), []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(fd), fsync(fd)))
    store.stage("desk", digest(ONE), ONE)
    store.stage("desk", digest(TWO), TWO)
    store.stage("desk", digest(TWO), TWO)
    store.seal("desk", [digest(ONE), digest(TWO)])
    store.seal("desk", [digest(ONE), digest(TWO)])
    assert len(calls) == 3


# what cannot be written whole


def short_writes(monkeypatch, most, full_after=None):
    """The kernel takes at most ``most`` bytes a call, and nothing more once it has ``full_after`` bytes."""
    write, taken = os.write, [0]

    def some(descriptor, data):
        room = most if full_after is None else min(most, full_after - taken[0])
        if room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = write(descriptor, data[:room])
        taken[0] += written
        return written

    monkeypatch.setattr(os, "write", some)


def test_a_short_write_is_gone_on_with(tmp_path, monkeypatch):
    short_writes(monkeypatch, most=7)
    store = BlobStore(tmp_path)
    store.put(digest(ONE), ONE)
    assert (tmp_path / digest(ONE)).read_bytes() == ONE


@pytest.mark.parametrize("room", [0, 1, len(ONE) - 1])
def test_a_disk_that_fills_up_seals_nothing_and_leaves_nothing(tmp_path, monkeypatch, room):
    store = BlobStore(tmp_path)
    with monkeypatch.context() as patch:
        short_writes(patch, most=100, full_after=room)
        with pytest.raises(OSError, match="No space"):
            store.stage("desk", digest(ONE), ONE)
    assert files_in(tmp_path) == []
    with pytest.raises(MissingBlob):
        store.seal("desk", [digest(ONE)])
    store.put(digest(ONE), ONE)
    assert store.get(digest(ONE)) == ONE


def test_pieces_that_do_not_add_up_to_the_blob_are_refused(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, bytes(len(data[:9]))))
    with pytest.raises(OSError, match="does not hold what was written"):
        BlobStore(tmp_path).stage("desk", digest(ONE), ONE)
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("limit", [1000, 4096, 16384 - 1])
def test_a_file_size_limit_seals_nothing(tmp_path, limit):
    """A real short write: the kernel takes what fits below RLIMIT_FSIZE and says so only by the count."""
    program = (
        "import hashlib, sys; from pathlib import Path; from coordinator.blobs import BlobStore\n"
        "data = bytes(range(256)) * 64; store = BlobStore(Path(sys.argv[1]))\n"
        "store.put(hashlib.sha256(data).hexdigest(), data)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "File too large" in done.stderr
    assert files_in(tmp_path) == []


def test_a_full_file_system_seals_nothing(small_disk):
    disk = small_disk(kilobytes=256)
    store = BlobStore(disk / "blobs")
    blobs = [bytes([number]) * 60_000 for number in range(8)]

    def put_all():
        for data in blobs:
            store.put(digest(data), data)

    with pytest.raises(OSError, match="No space left"):
        put_all()
    again = BlobStore(disk / "blobs")
    assert 0 < len(again.digests()) < len(blobs)
    assert all(again.is_whole(name) for name in again.digests()) and files_in(disk / "blobs" / "incoming") == []


# owners


def test_what_one_owner_drops_stays_with_the_other(tmp_path):
    store = BlobStore(tmp_path)
    for owner in ("one", "two"):
        store.stage(owner, digest(ONE), ONE)
    store.drop("one")
    assert not store.has(digest(ONE), "one") and store.has(digest(ONE), "two") and not store.has(digest(ONE))
    store.seal("two", [digest(ONE)])
    assert store.has(digest(ONE)) and store.get(digest(ONE)) == ONE


def test_an_owner_that_is_second_to_seal_leaves_no_copy(tmp_path):
    store = BlobStore(tmp_path)
    for owner in ("one", "two"):
        store.stage(owner, digest(ONE), ONE)
    store.seal("one", [digest(ONE)])
    store.seal("two", [digest(ONE)])
    assert files_in(tmp_path) == [digest(ONE)]


def test_dropping_keeps_what_is_still_wanted(tmp_path):
    store = BlobStore(tmp_path)
    for data in (ONE, TWO):
        store.stage("desk", digest(data), data)
    store.drop("desk", keep={digest(TWO)})
    assert not store.has(digest(ONE), "desk") and store.has(digest(TWO), "desk")
    store.drop_all()
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("owner", ["", "..", "a/b", "A", ".round.", "x" * 65])
def test_only_names_are_owners(tmp_path, owner):
    with pytest.raises(ValueError, match="no name of an owner"):
        BlobStore(tmp_path).stage(owner, digest(ONE), ONE)


# after a start


def test_a_staged_blob_is_readable_and_survives_a_kill(tmp_path):
    BlobStore(tmp_path).stage("desk", digest(ONE), ONE)
    (tmp_path / "incoming" / "desk" / digest(TWO)).write_bytes(TWO[:-1])
    (tmp_path / "incoming" / "desk" / "half.writing").write_bytes(b"x")
    (tmp_path / "incoming" / ("a" * 64)).write_bytes(b"staged by an older version")
    again = reopened(tmp_path)
    assert again.has(digest(ONE), "desk") and again.get(digest(ONE), "desk") == ONE
    assert sorted(name.split(".")[0] for name in again.quarantined()) == ["a" * 64, "half"]
    with pytest.raises(DamagedBlob):
        again.get(digest(TWO), "desk")
    assert not again.has(digest(TWO), "desk")
    again.seal("desk", [digest(ONE)])
    assert (tmp_path / digest(ONE)).read_bytes() == ONE


def test_nothing_is_deleted_at_a_start(tmp_path):
    store = BlobStore(tmp_path)
    for data in (ONE, TWO):
        store.put(digest(data), data)
    again = reopened(tmp_path, {digest(ONE)})
    assert again.digests() == [digest(ONE)]
    (aside,) = again.quarantined()
    assert (tmp_path / "quarantine" / aside).read_bytes() == TWO
    assert again.empty_quarantine() == len(TWO) and again.quarantined() == {}


def test_threads_may_put_the_same_blob_at_once(tmp_path):
    store = BlobStore(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: store.stage(f"o{number % 5}", digest(ONE), ONE), range(50)))
        list(pool.map(lambda number: store.seal(f"o{number % 5}", [digest(ONE)]), range(50)))
    assert files_in(tmp_path) == [digest(ONE)] and store.is_whole(digest(ONE))


# damage


@pytest.mark.parametrize("bad", [b"x" + ONE[1:], ONE[:-1], ONE + b"x", b""])
def test_damage_is_seen_on_every_read_and_set_aside(tmp_path, bad):
    BlobStore(tmp_path).put(digest(ONE), ONE)
    (tmp_path / digest(ONE)).write_bytes(bad)
    store = BlobStore(tmp_path)
    assert not store.is_whole(digest(ONE))
    with pytest.raises(DamagedBlob) as error:
        store.get(digest(ONE))
    assert error.value.digest == digest(ONE) and str(tmp_path) not in str(error.value)
    assert not store.has(digest(ONE)) and list(store.quarantined().values()) == [len(bad)]
    store.put(digest(ONE), ONE)
    assert store.get(digest(ONE)) == ONE


def test_bytes_that_are_still_in_memory_repair_the_file(tmp_path):
    store = BlobStore(tmp_path)
    store.put(digest(ONE), ONE)
    (tmp_path / digest(ONE)).write_bytes(TWO)
    data = store.recall(digest(ONE))
    store.replace(digest(ONE), data)
    assert (tmp_path / digest(ONE)).read_bytes() == ONE and list(store.quarantined().values()) == [len(TWO)]


def test_no_more_is_kept_in_memory_than_allowed(tmp_path):
    store = BlobStore(tmp_path, kept_in_memory=700)
    blobs = [bytes([number]) * 300 for number in range(4)]
    for data in [*blobs, b"z" * 701]:
        store.put(digest(data), data)
    assert [store.recall(digest(data)) is not None for data in blobs] == [False, False, True, True]
    assert store.recall(digest(b"z" * 701)) is None and store.get(digest(b"z" * 701)) == b"z" * 701
    store.get(digest(blobs[2]))
    store.get(digest(blobs[0]))
    assert store.recall(digest(blobs[2])) and not store.recall(digest(blobs[3]))


def test_a_missing_blob_is_one_line_that_says_what_to_do(tmp_path):
    with pytest.raises(MissingBlob, match="missing; see: tap-coordinator verify"):
        BlobStore(tmp_path).get(digest(ONE))
    assert issubclass(MissingBlob, BlobError)


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "A" * 64, "a" * 63, "a" * 64 + "\n"])
def test_only_digests_name_blobs(tmp_path, name):
    with pytest.raises(ValueError, match="sha256"):
        BlobStore(tmp_path).has(name)


# collection


def test_collecting_removes_what_was_given_up_and_nothing_else(tmp_path):
    store = BlobStore(tmp_path)
    store.put(digest(ONE), ONE)
    store.put(digest(TWO), TWO)
    store.doom([digest(ONE)])
    assert not store.has(digest(ONE)) and store.get(digest(ONE)) == ONE
    assert store.collect() == len(ONE)
    assert store.digests() == [digest(TWO)] and store.collect() == 0
    with pytest.raises(MissingBlob):
        store.get(digest(ONE))


def test_a_blob_that_comes_again_is_saved_from_collection(tmp_path):
    store = BlobStore(tmp_path)
    store.put(digest(ONE), ONE)
    store.doom([digest(ONE)])
    store.put(digest(ONE), ONE)
    assert store.collect() == 0 and store.get(digest(ONE)) == ONE
