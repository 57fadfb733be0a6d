"""Who holds a federation directory's lock, and who waits for it."""

import threading

import pytest

from coordinator import lock
from coordinator.lock import is_locked, serving_lock
from tap_core.errors import TapError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "federation" / "state" / "serving.lock"


def test_a_look_leaves_the_lock_free_and_makes_no_file(path):
    assert not is_locked(path)
    path.parent.mkdir(parents=True)
    with serving_lock(path):
        assert is_locked(path)
    assert not is_locked(path)
    with serving_lock(path):
        pass


def test_a_lock_that_is_kept_is_refused(path, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 0.1)
    path.parent.mkdir(parents=True)
    with serving_lock(path), pytest.raises(TapError, match="another coordinator serves"), serving_lock(path):
        pass
    assert not is_locked(path)


def test_a_lock_that_is_held_for_a_moment_is_waited_for(path, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 20.0)
    path.parent.mkdir(parents=True)
    held, tried = threading.Event(), threading.Event()
    attempt = lock._taken

    def taken(descriptor):
        found = attempt(descriptor)
        if held.is_set():
            tried.set()
        return found

    def hold():
        with serving_lock(path):
            held.set()
            tried.wait(20)

    monkeypatch.setattr(lock, "_taken", taken)
    other = threading.Thread(target=hold)
    other.start()
    held.wait(20)
    with serving_lock(path):
        assert tried.is_set()
    other.join()
