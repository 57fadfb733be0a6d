import hashlib
import stat

import pytest

from edge_client.cache import ComponentCache


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_what_is_put_is_got_by_its_digest_in_another_process_too(tmp_path):
    ComponentCache(tmp_path / "cache").put(digest(b"one"), b"one")
    cache = ComponentCache(tmp_path / "cache")
    assert cache.get(digest(b"one")) == b"one"
    assert cache.get(digest(b"two")) is None
    assert cache.missing([digest(b"two"), digest(b"one"), digest(b"two")]) == (digest(b"two"),)
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700


def test_a_damaged_file_counts_as_absent_and_goes(tmp_path):
    cache = ComponentCache(tmp_path)
    cache.put(digest(b"one"), b"one")
    (path,) = tmp_path.iterdir()
    path.write_bytes(b"on")
    assert cache.get(digest(b"one")) is None
    assert list(tmp_path.iterdir()) == []


def test_data_that_does_not_match_its_digest_is_not_taken(tmp_path):
    with pytest.raises(ValueError):
        ComponentCache(tmp_path).put(digest(b"one"), b"two")
    assert list(tmp_path.iterdir()) == []


def test_only_what_is_of_use_is_kept(tmp_path):
    cache = ComponentCache(tmp_path)
    for data in (b"one", b"two", b"three"):
        cache.put(digest(data), data)
    (tmp_path / "half.new").write_bytes(b"left by a power cut")
    assert cache.keep_only([digest(b"two"), digest(b"four")]) == 3
    assert [cache.get(digest(data)) for data in (b"one", b"two", b"three")] == [None, b"two", None]
