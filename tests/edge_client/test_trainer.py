"""The real participant behind bytes: a federation of two tasks on the miniature foundation."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from edge_client.config import load_client_config
from edge_client.private_store import PersonalTensors, PrivateStore, StateError, StoredState
from edge_client.trainer import LocalTrainer, build_trainer
from protocol.tensors import ComponentTensors, decode_tensors, digest_of, encode_tensors
from tap_core.algorithms.base import WIRE_DTYPES, DeviceState
from tap_core.algorithms.participant import FinishOutcome, LocalUpdate, RoundOutcome
from tap_core.errors import Diverged, TapError
from tap_core.foundations import load_foundation
from tap_core.model.tap_model import build_model

TASKS = ("colour", "letters")


@pytest.fixture(scope="module")
def settings(mini_config):
    return mini_config(wire={"dtype": "bfloat16"})


@pytest.fixture(scope="module")
def client(tmp_path_factory, mini_foundation, mini_examples):
    """A device whose files hold the miniature tasks."""
    home = tmp_path_factory.mktemp("device")
    data = mini_examples("colour", train=16, test=6)
    for split, examples in [("train", data.train), ("test", data.test)]:
        for index, example in enumerate(examples):
            folder = home / split / ("red", "green", "blue")[example.target]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(example.image).save(folder / f"{index}.png")
    data = mini_examples("letters", train=30, test=0)
    rows = [{"t": e.text, "c": ("low", "high")[e.target], "n": i} for i, e in enumerate(data.train)]
    (home / "letters.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (home / "client.toml").write_text(
        'coordinator = "ws://h:1"\nfederation = "mini"\ndevice_id = "kitchen"\ntoken_file = "token"\n'
        f'state_dir = "state"\nfoundation = "{mini_foundation}"\n[runtime]\ndevice = "cpu"\nthreads = 1\n'
        '[tasks.colour]\ntrain = "train"\ntest = "test"\n'
        '[tasks.letters]\ntrain = "letters.jsonl"\nitem = "n"\ncolumns = {text = "t", target = "c"}\n'
    )
    return load_client_config(home / "client.toml", {})


@pytest.fixture(scope="module")
def trainer(client, settings) -> LocalTrainer:
    return build_trainer(client, settings)


@pytest.fixture(scope="module")
def received(settings) -> dict[str, bytes]:
    """Version 0 of the components that the device owns, as `tap init` would encode them."""
    import ml_dtypes

    model = build_model(settings, settings.tasks_named(TASKS), load_foundation(settings.foundation))
    return {
        name: encode_tensors(ComponentTensors(name, {k: v.astype(ml_dtypes.bfloat16) for k, v in group.items()}))
        for name, group in model.state("federated").items()
    }


def ignore(phase: str, step: int, steps: int) -> None:
    """Nobody watches."""


@pytest.fixture(scope="module")
def after_a_round(trainer, received):
    return trainer.take_part(0, received, None, ignore, home={})


def test_a_round_goes_from_bytes_to_bytes(trainer, received, after_a_round, settings):
    state, report = after_a_round
    update = state.pending
    assert update is not None and set(update.digests) == set(trainer.components) == set(received)
    assert update.trained_from == {name: digest_of(data) for name, data in received.items()}
    assert all(digest_of(update.blobs[digest]) == digest for digest in update.digests.values())
    assert update.examples["decoder/colour"] == 16
    assert update.examples["mote/attention/shared"] == sum(trainer.examples.values())
    name = "decoder/colour"
    shapes = {key: array.shape for key, array in state.personal.for_training()[name].items()}
    sent = decode_tensors(name, update.blobs[update.digests[name]], shapes=shapes, dtype="bfloat16")
    before = decode_tensors(name, received[name], shapes=shapes, dtype="bfloat16")
    assert any(not np.array_equal(sent.tensors[key], before.tensors[key]) for key in shapes)
    assert state.round == 0 and not state.finished
    json.dumps(report)
    assert set(report["federated_loss"]) == set(TASKS) and report["replaced"] == dict.fromkeys(TASKS, True)


def test_the_update_is_the_participants(trainer, received, after_a_round):
    """Same participant, same inputs: what goes out is its federated set, bit for bit, and not the personal one."""
    state, _ = after_a_round
    tensors = trainer._decoded(received, ())
    outcome = trainer._participant.take_part(0, tensors, DeviceState.initial(TASKS), ignore)
    for name, group in outcome.update.components.items():
        assert state.pending.blobs[state.pending.digests[name]] == encode_tensors(ComponentTensors(name, group))
    personal = state.personal.for_training()
    assert all(np.array_equal(personal[c][n], a) for c, g in outcome.state.personal.items() for n, a in g.items())
    for name, group in personal.items():
        lowered = {key: value.astype(outcome.update.components[name][key].dtype) for key, value in group.items()}
        assert encode_tensors(ComponentTensors(name, lowered)) not in state.pending.blobs.values()


def test_a_round_from_the_stored_state_is_the_round_from_memory(trainer, received, after_a_round, tmp_path):
    """What a restart reads back leads to the same bits."""
    state, _ = after_a_round
    store = PrivateStore(tmp_path, device="kitchen", federation="mini")
    store.commit(state)
    restored = PrivateStore(tmp_path, device="kitchen", federation="mini").load()
    from_memory, _ = trainer.take_part(1, received, state, ignore, home={})
    from_disk, _ = trainer.take_part(1, received, restored, ignore, home={})
    assert from_disk.pending == from_memory.pending
    ours, theirs = from_disk.personal.for_training(), from_memory.personal.for_training()
    assert all(np.array_equal(ours[c][n], a) for c, g in theirs.items() for n, a in g.items())


def test_what_stays_at_home_is_kept_in_its_wire_form_and_counts_in_the_next_round_and_at_the_end(
    trainer, received, after_a_round, tmp_path
):
    """Nobody else owns decoder/colour: its value comes from the state and not from the coordinator, whatever that has.
    The bits are those of the round trip: sent, averaged alone, and received again."""
    name, home = "decoder/colour", {"decoder/colour": 0}
    sent, _ = after_a_round
    kept, _ = trainer.take_part(0, received, None, ignore, home=home)
    assert set(kept.pending.digests) == set(kept.pending.examples) == set(received) - {name}
    wire = sent.pending.blobs[sent.pending.digests[name]]
    shapes = {key: value.shape for key, value in kept.personal.for_training()[name].items()}
    tensors = decode_tensors(name, wire, shapes=shapes, dtype="bfloat16").tensors
    at_home = kept.home.for_training()
    assert set(at_home) == {name} and all(np.array_equal(at_home[name][key], tensors[key]) for key in shapes)

    store = PrivateStore(tmp_path, device="kitchen", federation="mini")
    store.commit(kept)
    restored = PrivateStore(tmp_path, device="kitchen", federation="mini").load()
    others = {other: data for other, data in received.items() if other != name}
    from_home, _ = trainer.take_part(1, others, restored, ignore, home=home)
    round_trip, _ = trainer.take_part(1, {**others, name: wire}, sent, ignore, home={})
    assert {**from_home.pending.digests, name: round_trip.pending.digests[name]} == round_trip.pending.digests
    ends = [
        trainer.finish(others, restored, ignore, home=home),
        trainer.finish({**others, name: wire}, sent, ignore, home={}),
    ]
    assert ends[0][1] == ends[1][1]
    with pytest.raises(TapError, match="disagree about the components"):  # the coordinator's is newer, and is needed
        trainer.take_part(1, others, restored, ignore, home={name: 1})
    odd = replace(restored, home=PersonalTensors({name: {"weight": np.zeros(3, np.float32)}}))
    with pytest.raises(StateError, match=r"does not fit the federation's present settings .*decoder/colour"):
        trainer.take_part(1, others, odd, ignore, home=home)


def test_stage_2_and_what_is_exported(trainer, received, after_a_round, monkeypatch, tmp_path):
    """The export is of the stored personal set, whatever the model holds at the moment."""
    state, _ = after_a_round
    final, results, samples = trainer.finish(received, state, ignore, home={})
    assert final.finished and final.pending is None
    json.dumps([results, samples])
    assert results["colour"]["n_test"] == 6 and results["colour"]["metric"] == "accuracy"

    exported = {}

    def export(model, task, directory, examples):
        exported.update(task=task, directory=directory, n=len(examples), personal=model.state("personal"))
        return 1e-6

    monkeypatch.setattr("edge_client.trainer.export_task", export)
    assert trainer.export(state, "colour", tmp_path / "colour") == 1e-6
    assert (exported["task"], exported["directory"], exported["n"]) == ("colour", tmp_path / "colour", 6)
    for name, group in state.personal.for_training().items():
        assert all(np.array_equal(exported["personal"][name][key], value) for key, value in group.items())


def test_what_does_not_fit_is_one_line(trainer, received, after_a_round):
    state, _ = after_a_round
    few = {name: data for name, data in received.items() if name != "decoder/colour"}
    with pytest.raises(TapError, match=r"disagree about the components .*decoder/colour.*same version"):
        trainer.take_part(1, few, state, ignore, home={})
    swapped = received | {"decoder/colour": received["decoder/letters"]}
    with pytest.raises(TapError, match=r"component decoder/colour from the coordinator does not fit"):
        trainer.take_part(1, swapped, state, ignore, home={})
    odd = PersonalTensors({**state.personal.for_training(), "decoder/colour": {"weight": np.zeros(3, np.float32)}})
    other = StoredState(0, False, odd, state.federated_loss, state.personal_loss)
    with pytest.raises(StateError, match=r"does not fit the federation's present settings .*decoder/colour"):
        trainer.take_part(1, received, other, ignore, home={})
    other = StoredState(0, False, state.personal, state.federated_loss, {"colour": 1.0})
    with pytest.raises(StateError, match="the saved state is of tasks colour and this device now has colour, letters"):
        trainer.take_part(1, received, other, ignore, home={})


def test_values_that_overflow_the_wire_are_not_sent(trainer, received, monkeypatch):
    class Overflowing:
        def take_part(self, number, tensors, state, on_progress, *, home):
            infinite = {c: {n: np.full_like(a, np.inf) for n, a in group.items()} for c, group in tensors.items()}
            return RoundOutcome(state, LocalUpdate(number, dict.fromkeys(tensors, 1), infinite), None)

    monkeypatch.setattr(trainer, "_participant", Overflowing())
    with pytest.raises(Diverged, match=r"training diverged, and nothing was sent .*lower training\.learning_rate"):
        trainer.take_part(0, received, None, ignore, home={})


def poisoned(received, settings, value):
    """The components with every value replaced by one."""
    model = build_model(settings, settings.tasks_named(TASKS), load_foundation(settings.foundation))
    groups = model.state("federated").items()
    dtype = WIRE_DTYPES[settings.wire.dtype]
    full = {name: {k: np.full_like(v, value).astype(dtype) for k, v in group.items()} for name, group in groups}
    return {name: encode_tensors(ComponentTensors(name, tensors)) for name, tensors in full.items()}


def test_poisoned_values_make_a_round_diverge_and_the_next_one_is_as_if_it_had_not_been(
    trainer, received, after_a_round, settings
):
    state, _ = after_a_round
    with pytest.raises(Diverged, match="training diverged in step 1 of federated"):
        trainer.take_part(1, poisoned(received, settings, 3e38), state, ignore, home={})
    again, _ = trainer.take_part(0, received, None, ignore, home={})
    assert again.pending == state.pending


def test_a_received_value_that_is_not_finite_is_divergence_and_no_misfit(trainer, received):
    data = received["decoder/colour"]
    with pytest.raises(Diverged, match="decoder/colour: tensor .* has a value that is not finite"):
        trainer.take_part(0, {**received, "decoder/colour": data[:-2] + b"\x80\x7f"}, None, ignore, home={})


def test_personal_values_that_are_not_finite_are_divergence(trainer, received, after_a_round, monkeypatch):
    state, _ = after_a_round
    broken = {"decoder/colour": {"w": np.array([1, np.nan], np.float32)}}

    class Broken:
        def take_part(self, number, tensors, state, on_progress, *, home):
            return RoundOutcome(replace(state, personal=broken), LocalUpdate(number, {}, {}), None)

        def finish(self, tensors, state, on_progress, *, home, distilling):
            return FinishOutcome(replace(state, personal=broken), {})

    monkeypatch.setattr(trainer, "_participant", Broken())
    for work in (
        lambda: trainer.take_part(1, received, state, ignore, home={}),
        lambda: trainer.finish(received, state, ignore, home={}),
    ):
        with pytest.raises(Diverged, match="the personal decoder/colour has values that are not finite"):
            work()


def test_values_that_stay_at_home_are_finite_too(trainer, received, monkeypatch):
    class Broken:
        def take_part(self, number, tensors, state, on_progress, *, home):
            kept = {name: {key: np.full_like(v, np.inf) for key, v in tensors[name].items()} for name in home}
            return RoundOutcome(replace(state, home=kept), LocalUpdate(number, {}, {}), None)

    monkeypatch.setattr(trainer, "_participant", Broken())
    with pytest.raises(Diverged, match="the federated decoder/colour has values that are not finite"):
        trainer.take_part(0, received, None, ignore, home={"decoder/colour": 0})


def test_stage_2_that_diverges_can_be_left_out(trainer, received, after_a_round, settings):
    """The final global values are poisoned: the personal models are those of stage 1, to the bit."""
    state, _ = after_a_round
    bad = poisoned(received, settings, 3e38)
    with pytest.raises(Diverged, match="of teacher"):
        trainer.finish(bad, state, ignore, home={})
    final, results, _ = trainer.finish(bad, state, ignore, home={}, distilling=False)
    kept, before = final.personal.for_training(), state.personal.for_training()
    assert all(np.array_equal(kept[c][n], a) for c, g in before.items() for n, a in g.items())
    assert results["colour"]["personal"] == results["colour"]["stage1"]


def test_progress_may_end_the_work(trainer, received):
    class Enough(Exception):
        pass

    def stop(phase: str, step: int, steps: int) -> None:
        raise Enough

    with pytest.raises(Enough):
        trainer.take_part(0, received, None, stop, home={})
