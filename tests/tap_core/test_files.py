"""Files and directories are whole or absent, whatever cuts their writing off."""

import os
import stat

import pytest

from tap_core.files import new_directory, new_file, replace_private


class PowerCut(BaseException):
    pass


def die(*_, **__):
    raise PowerCut


def test_a_private_file_is_synced_before_it_is_renamed_and_its_name_after(tmp_path, monkeypatch):
    fsync, replace, done = os.fsync, os.replace, []
    monkeypatch.setattr(
        os, "fsync", lambda fd: (done.append("names" if os.path.isdir(f"/dev/fd/{fd}") else "bytes"), fsync(fd))
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("renamed"), replace(a, b)))
    replace_private(tmp_path / "a", b"1")
    assert done == ["bytes", "renamed", "names"]
    replace_private(tmp_path / "a", b"2", durable=False)
    assert done[3:] == ["renamed"] and (tmp_path / "a").read_bytes() == b"2"
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_private_file_that_is_cut_off_leaves_the_old_one_and_the_next_try_goes(tmp_path, monkeypatch, step):
    replace_private(tmp_path / "a", b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, step, die)
        with pytest.raises(PowerCut):
            replace_private(tmp_path / "a", b"new", ending=".half")
    assert (tmp_path / "a").read_bytes() == b"old" and (tmp_path / "a.half").exists()
    replace_private(tmp_path / "a", b"new", ending=".half")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"new"}


@pytest.mark.parametrize("mode", [0o600, 0o666])
def test_a_new_file_takes_its_place_when_the_block_ends(tmp_path, mode):
    (tmp_path / "a").write_text("old")
    umask = os.umask(0)
    try:
        with new_file(tmp_path / "a", mode=mode) as file:
            file.write(b"new")
            file.flush()
            assert (tmp_path / "a").read_text() == "old"
    finally:
        os.umask(umask)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"new"}
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode


@pytest.mark.parametrize("fails", ["block", "replace"])
def test_a_new_file_that_fails_leaves_the_old_one_and_nothing_else(tmp_path, monkeypatch, fails):
    (tmp_path / "a").write_text("old")
    if fails == "replace":
        monkeypatch.setattr(os, "replace", die)
    with pytest.raises(PowerCut), new_file(tmp_path / "a") as file:
        (die if fails == "block" else file.write)(b"new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old"}


def test_a_new_directory_appears_when_the_block_ends_in_place_of_an_empty_one(tmp_path):
    (tmp_path / ".a.partial").mkdir()
    (tmp_path / ".a.partial" / "left").write_text("by a power cut")
    (tmp_path / "a").mkdir()
    with new_directory(tmp_path / "a") as partial:
        (partial / "one").write_text("1")
        assert list((tmp_path / "a").iterdir()) == []
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == ["a", "a/one"]


def test_a_new_directory_that_fails_leaves_nothing_and_a_full_one_stays(tmp_path):
    with pytest.raises(PowerCut), new_directory(tmp_path / "a"):
        die()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").touch()
    with pytest.raises(OSError, match="not empty"), new_directory(tmp_path / "a"):
        pass
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "old"]
