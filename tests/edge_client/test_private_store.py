import json
import math
import os
import pickle
import stat
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from edge_client import private_store
from edge_client.private_store import PendingUpdate, PersonalTensors, PrivateStore, StateError, StoredState
from protocol.tensors import ComponentTensors, digest_of, encode_tensors

TENSORS = {
    "encoder/text": {"layer.0::odd": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros((0,), np.float32)},
    "decoder/topic": {"weight": np.full((2, 2), 0.1, np.float32)},
    "encoder/image": {},
}


def state(round_number: int = 3, *, finished: bool = False, pending: bool = True, home: bool = True) -> StoredState:
    blobs = [f"blob {round_number} {i}".encode() for i in range(2)]
    digests = {"decoder/topic": digest_of(blobs[0]), "encoder/text": digest_of(blobs[1])}
    update = PendingUpdate(
        round_number,
        trained_from={"decoder/topic": "0" * 64, "encoder/text": "1" * 64},
        examples={"decoder/topic": 5, "encoder/text": 9},
        digests=digests,
        blobs={digest_of(blob): blob for blob in blobs},
    )
    values = {c: {n: a + round_number for n, a in group.items()} for c, group in TENSORS.items()}
    return StoredState(
        round_number,
        finished,
        PersonalTensors(values),
        federated_loss={"topic": 0.25, "animals": math.inf},
        personal_loss={"topic": 1 / 3, "animals": math.inf},
        pending=update if pending else None,
        home=PersonalTensors({"decoder/home": {"weight": np.full((3,), round_number, np.float32)}} if home else {}),
        rounds=2,
    )


def with_selection(whole: StoredState) -> StoredState:
    """A finished state in which one task chose a set of its own."""
    teacher = PersonalTensors({c: {n: a - 1 for n, a in group.items()} for c, group in TENSORS.items()})
    return replace(whole, selected={"topic": "the teacher"}, candidates={"the teacher": teacher})


def open_store(directory, **who) -> PrivateStore:
    return PrivateStore(directory, **({"device": "kitchen", "federation": "demo"} | who))


def reopened(directory) -> PrivateStore:
    store = open_store(directory)
    store.load()
    return store


def assert_equal(found: StoredState | None, expected: StoredState) -> None:
    assert found is not None
    assert (found.rounds, found.selected) == (expected.rounds, expected.selected)
    assert set(found.candidates) == set(expected.candidates)
    for ours, theirs in (
        (found.personal_for(task).for_training(), expected.personal_for(task).for_training())
        for task in ("topic", "animals")
    ):
        assert {c: sorted(g) for c, g in ours.items()} == {c: sorted(g) for c, g in theirs.items()}
        for component, group in theirs.items():
            for name, array in group.items():
                assert ours[component][name].dtype == array.dtype
                np.testing.assert_array_equal(ours[component][name], array)
    assert (found.round, found.finished, found.pending) == (expected.round, expected.finished, expected.pending)
    assert (found.federated_loss, found.personal_loss) == (expected.federated_loss, expected.personal_loss)
    assert found.home.components == expected.home.components
    for component, group in expected.home.for_training().items():
        kept = found.home.for_training()[component]
        assert kept.keys() == group.keys() and all(np.array_equal(kept[name], group[name]) for name in group)


def test_what_is_committed_is_loaded_by_the_next_process(tmp_path):
    assert open_store(tmp_path).load() is None
    store = open_store(tmp_path)
    store.commit(state(3))
    assert_equal(open_store(tmp_path).load(), state(3))
    for more in ({}, {"home": False}):
        store.commit(state(4, finished=True, pending=False, **more))
        assert_equal(open_store(tmp_path).load(), state(4, finished=True, pending=False, **more))


def test_the_set_that_a_task_selected_is_kept_beside_the_personal_one(tmp_path):
    end = with_selection(state(4, finished=True, pending=False))
    open_store(tmp_path).commit(end)
    assert_equal(open_store(tmp_path).load(), end)
    pointer = tmp_path / "state" / "current.json"
    facts = json.loads(pointer.read_text())
    del facts["files"]["selected-the-teacher.safetensors"]
    pointer.write_text(json.dumps(facts))
    with pytest.raises(StateError, match=r"names no selected-the-teacher\.safetensors"):
        open_store(tmp_path).load()


@pytest.mark.parametrize("written", [1, 2])
def test_a_state_of_an_earlier_format_is_loaded_and_written_anew(tmp_path, written):
    open_store(tmp_path).commit(state(3, home=False))
    pointer = tmp_path / "state" / "current.json"
    old = json.loads(pointer.read_text())
    assert old["format"] == 3 and set(old["files"]) == {
        "personal.safetensors",
        *(n for n in old["files"] if "update" in n),
    }
    del old["rounds"], old["selected"]
    pointer.write_text(json.dumps(old | {"format": written}))
    store = open_store(tmp_path)
    assert_equal(store.load(), replace(state(3, home=False), rounds=0))
    store.commit(state(4))
    assert json.loads(pointer.read_text())["format"] == 3
    assert_equal(open_store(tmp_path).load(), state(4))


def test_only_the_last_generation_is_kept_and_only_the_owner_can_read(tmp_path):
    os.umask(0)
    store = open_store(tmp_path / "new" / "dir")
    for number in range(3):
        store.commit(state(number))
    reopened(tmp_path / "new" / "dir").commit(state(9))
    root = tmp_path / "new" / "dir"
    assert sorted(path.name for path in (root / "state").iterdir()) == ["3", "current.json"]
    for path in [root, *root.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.parametrize("step", ["write_private", "sync_directory", "replace_private", "rmtree"])
def test_a_power_cut_at_any_step_leaves_the_old_state_or_the_new(tmp_path, monkeypatch, step):
    """Each step of a commit in turn is the first that does not happen, also for each further file."""
    store = open_store(tmp_path)
    store.commit(state(1))
    target = private_store.shutil if step == "rmtree" else private_store
    real = getattr(target, step)
    for survived in range(5):
        left = survived

        def fail(*arguments, **keywords):
            nonlocal left
            if left == 0:
                raise OSError("power cut")
            left -= 1
            return real(*arguments, **keywords)

        monkeypatch.setattr(target, step, fail)
        interrupted = reopened(tmp_path)
        try:
            interrupted.commit(state(2))
            committed = True
        except OSError:
            committed = False
        monkeypatch.setattr(target, step, real)
        found = open_store(tmp_path).load()
        expected = state(2) if committed or step == "rmtree" else state(1)
        assert_equal(found, expected)
        reopened(tmp_path).commit(state(1))
        assert_equal(open_store(tmp_path).load(), state(1))


def test_a_reader_beside_a_writer_gets_the_newer_state(tmp_path, monkeypatch):
    """The generation that the pointer named is gone by the time its files are read."""
    writer = open_store(tmp_path)
    writer.commit(state(1))
    reader = open_store(tmp_path)
    read = PrivateStore._load
    numbers = iter((2, 3))

    def load_late(self, pointer):
        number = next(numbers, None)
        if number is not None:
            writer.commit(state(number))
        return read(self, pointer)

    monkeypatch.setattr(PrivateStore, "_load", load_late)
    assert_equal(reader.load(), state(3))


def test_damage_and_foreign_states_are_one_line(tmp_path):
    def complaint(**who) -> str:
        with pytest.raises(StateError) as caught:
            open_store(tmp_path, **who).load()
        assert caught.value.exit_code == 1 and "\n" not in str(caught.value)
        return str(caught.value)

    open_store(tmp_path).commit(state())
    assert "belongs to device 'kitchen' of federation 'demo', not to 'cellar'" in complaint(device="cellar")
    assert "give this device a state_dir of its own" in complaint(federation="other")
    pointer = tmp_path / "state" / "current.json"
    text = pointer.read_text()
    personal = tmp_path / "state" / "0" / "personal.safetensors"
    data = personal.read_bytes()
    personal.write_bytes(data[:-1] + b"x")
    assert "personal.safetensors has changed on the disk" in complaint()
    personal.unlink()
    assert "is damaged" in complaint() and "move it away to start anew" in complaint()
    personal.write_bytes(data)
    home = tmp_path / "state" / "0" / "home.safetensors"
    home.rename(tmp_path / "elsewhere")
    assert "home.safetensors" in complaint()
    (tmp_path / "elsewhere").rename(home)
    pointer.write_text(text[:-20])
    assert "current.json is not readable" in complaint()
    pointer.write_text(json.dumps(json.loads(text) | {"format": 99, "what_format_99_has": True}))
    assert "another version" in complaint()
    pointer.write_text(text)
    assert_equal(open_store(tmp_path).load(), state())


def test_personal_tensors_are_of_a_type_that_nothing_sends():
    personal = state().personal
    assert not isinstance(personal, (dict, Mapping)) and not hasattr(personal, "items")
    with pytest.raises(TypeError):
        encode_tensors(personal)
    with pytest.raises(TypeError):
        encode_tensors(personal.for_training())
    with pytest.raises((TypeError, AttributeError)):
        encode_tensors(ComponentTensors("decoder/topic", personal))
    with pytest.raises(TypeError):
        dict(personal)
    with pytest.raises(TypeError, match="not to be serialized"):
        pickle.dumps(personal)
    assert repr(personal) == "<personal tensors of 3 components>"
