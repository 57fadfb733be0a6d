import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge_client import connection, token_file
from edge_client.journal import read_rounds
from edge_client.private_store import PrivateStore
from protocol.messages import Refuse
from tap_core.errors import Diverged, TapError, UsageError


def run(coordinator, client_toml, module, *, trainer=None, **settings):
    """A device's whole life against the fake coordinator; returns its trainer and the lines it said."""
    trainer = trainer or module.LightTrainer()
    lines: list[str] = []

    async def main() -> None:
        address = await coordinator.start()
        try:
            agent = module.make_agent(client_toml(address), trainer, say=lines.append, **settings)
            await asyncio.wait_for(agent.run(), 30)
        finally:
            await coordinator.stop()

    asyncio.run(main())
    return trainer, lines


def expected_updates(module, blobs: dict[str, bytes], rounds: int) -> dict[int, dict[str, bytes]]:
    updates, personal = {}, 0.0
    for number in range(rounds):
        blobs = {name: module.trained(data, number, personal) for name, data in blobs.items()}
        updates[number] = blobs
        personal = personal * 3 + number + 1
    return updates


def load_state(tmp_path: Path):
    return PrivateStore(tmp_path / "state", device="kitchen", federation="demo").load()


def test_a_whole_life(coordinator, client_toml, device_process, tmp_path):
    expected = expected_updates(device_process, coordinator.blobs, 3)
    trainer, lines = run(coordinator, client_toml, device_process)
    assert coordinator.done and coordinator.accepted == expected
    assert trainer.calls == [0, 1, 2, "finish"] and trainer.exports == ["topic"]
    assert lines == []
    state = load_state(tmp_path)
    assert state is not None and state.finished and state.round == 2
    results = json.loads((tmp_path / "state" / "results.json").read_text())
    assert results["tasks"] == {"topic": {"personal": 2.0}} and len(results["replacements"]) == 3
    assert [report["round"] for report in read_rounds(tmp_path / "state")] == [0, 1, 2]
    progress = json.loads((tmp_path / "state" / "progress.json").read_text())
    assert (progress["phase"], progress["rounds"]) == ("done", 3)
    assert progress["bytes_sent"] == coordinator.received
    assert progress["bytes_received"] == coordinator.sent


def test_the_first_contact_learns_the_settings_and_then_says_how_much_data_there_is(
    coordinator, client_toml, device_process, federation, tmp_path
):
    run(coordinator, client_toml, device_process)
    assert [hello.tasks for hello in coordinator.hellos] == [{}, {"topic": 12}]
    assert coordinator.hellos[1].foundation == device_process.FOUNDATION
    assert json.loads((tmp_path / "state" / "settings.json").read_text()) == json.loads(federation.model_dump_json())


def test_what_comes_back_unchanged_is_not_fetched_again(coordinator, client_toml, device_process):
    """One device's average is its own update, which it keeps: only version 0 travels to it."""
    run(coordinator, client_toml, device_process)
    assert len(coordinator.fetched) == 2
    files = list((Path(client_toml("ws://h:1").parent) / "state" / "cache").iterdir())
    assert 0 < len(files) <= 6


CUTS = [
    "hello", "fetch", "chunk out", "update", "chunk in", "blob", "before accepted", "after accepted", "done",
]  # fmt: skip


@pytest.mark.parametrize("cuts", [*([cut] for cut in CUTS), CUTS, ["chunk in"] * 6, ["hello"] * 6])
def test_a_cut_at_any_moment_changes_nothing(coordinator, client_toml, device_process, monkeypatch, cuts):
    """Every round is trained once and counted once, with the same bytes as without the cut."""
    monkeypatch.setattr(connection, "UPLOAD_CHUNK", 64)
    expected = expected_updates(device_process, coordinator.blobs, 3)
    coordinator.cuts = list(cuts)
    trainer, lines = run(coordinator, client_toml, device_process)
    assert coordinator.cuts == []
    assert coordinator.accepted == expected and coordinator.done
    assert trainer.calls == [0, 1, 2, "finish"]
    assert sum("retrying" in line for line in lines) >= 1


HOME = "encoder/text"


def expected_at_home(module, data: bytes, rounds: int) -> bytes:
    """What a component at home comes to, as `expected_updates` says of those that are sent."""
    personal = 0.0
    for number in range(rounds):
        data, personal = module.trained(data, number, personal), personal * 3 + number + 1
    return data


@pytest.mark.parametrize("cuts", [[], ["fetch"], ["update"], ["chunk in"], ["after accepted"], CUTS])
def test_what_stays_at_home_grows_there_is_fetched_once_and_never_sent(
    coordinator, client_toml, device_process, tmp_path, monkeypatch, cuts
):
    monkeypatch.setattr(connection, "UPLOAD_CHUNK", 64)
    first, expected = coordinator.blobs[HOME], expected_updates(device_process, coordinator.blobs, 3)
    coordinator.home, coordinator.cuts = (HOME,), list(cuts)
    trainer, _ = run(coordinator, client_toml, device_process)
    assert coordinator.cuts == [] and coordinator.done and trainer.calls == [0, 1, 2, "finish"]
    assert coordinator.accepted == {
        number: {"decoder/topic": update["decoder/topic"]} for number, update in expected.items()
    }
    kept = load_state(tmp_path).home
    assert kept.components == {HOME}
    assert kept.for_training()[HOME]["bytes"].tobytes() == expected_at_home(device_process, first, 3)
    assert coordinator.fetched.count(device_process.digest(first)) == 1 or cuts


def test_all_at_home_is_an_empty_update(coordinator, client_toml, device_process, tmp_path):
    coordinator.home = ("decoder/topic", HOME)
    run(coordinator, client_toml, device_process)
    assert coordinator.accepted == {0: {}, 1: {}, 2: {}} and coordinator.done
    assert load_state(tmp_path).home.components == {"decoder/topic", HOME} and coordinator.received < 10_000


def test_what_is_federated_from_a_round_on_starts_from_the_coordinators_value(
    coordinator, client_toml, device_process, tmp_path
):
    """Its value at home is forgotten, and was never sent."""
    first = coordinator.blobs[HOME]
    coordinator.home, coordinator.home_until = (HOME,), 2
    run(coordinator, client_toml, device_process)
    assert coordinator.accepted[2][HOME] == device_process.trained(first, 2, 5.0)  # as long as it had not been trained
    assert all(HOME not in coordinator.accepted[number] for number in (0, 1))
    assert load_state(tmp_path).home.components == frozenset()


@pytest.mark.parametrize("version", [1, 2])
def test_a_newer_version_of_the_coordinator_takes_the_place_of_the_value_at_home(
    coordinator, client_toml, device_process, tmp_path, version
):
    """Others have shared it since: that of round 0, when this device had it at home, is none of theirs."""
    other, first = b"what others have" * 16, coordinator.blobs[HOME]
    coordinator.home = (HOME,)

    class Watched(device_process.LightTrainer):
        def take_part(self, number, *args, **given):
            outcome = super().take_part(number, *args, **given)
            if number == 1:  # the round after it offers what others have made meanwhile
                coordinator.blobs[HOME], coordinator.versions[HOME] = other, version
            return outcome

    run(coordinator, client_toml, device_process, trainer=Watched())
    grown = expected_at_home(device_process, first, 2)
    expected = device_process.trained(other if version == 2 else grown, 2, 5.0)
    assert load_state(tmp_path).home.for_training()[HOME]["bytes"].tobytes() == expected


class Fragile:
    """A trainer that diverges on poisoned values, and in stage 2 if it is told to."""

    POISON = b"poisonpoisonpois"

    def __init__(self, light, *, stage_2=False):
        self.light, self.stage_2, self.finishes = light, stage_2, []
        self.examples, self.components, self.calls, self.export = light.examples, light.components, [], light.export

    def take_part(self, number, received, stored, on_progress, *, home):
        self.calls.append(number)
        if any(self.POISON in data for data in received.values()):
            raise Diverged("training diverged (loss is not finite)")
        return self.light.take_part(number, received, stored, on_progress, home=home)

    def finish(self, received, stored, on_progress, *, home, distilling=True):
        self.finishes.append(distilling)
        if distilling and self.stage_2:
            raise Diverged("training diverged in step 1 of student (loss is not finite)")
        return self.light.finish(received, stored, on_progress, home=home)


@pytest.mark.parametrize("cuts", [[], ["decline"], ["decline", "decline", "hello"]])
def test_a_device_that_diverges_declines_waits_and_takes_part_later(
    coordinator, client_toml, device_process, tmp_path, cuts
):
    """It exited, and with it every honest device of a federation whose values one of them had poisoned."""
    good = dict(coordinator.blobs)
    coordinator.blobs = {name: data[:-16] + Fragile.POISON for name, data in good.items()}
    coordinator.after_decline, coordinator.cuts = good, list(cuts)
    trainer = Fragile(device_process.LightTrainer())
    _, lines = run(coordinator, client_toml, device_process, trainer=trainer)
    assert coordinator.done and coordinator.cuts == []
    assert [(no.round, no.code) for no in coordinator.declined] == [(0, "diverged")] * 2
    assert coordinator.declined[0].why == "training diverged (loss is not finite)"
    assert trainer.calls == [0, 1, 2]  # asked for round 1 again with the same values, it does not train in vain
    assert set(coordinator.accepted) == {1, 2}
    said = [line for line in lines if "diverged" in line]
    assert len(said) == 1 and said[0].startswith("round 1: ") and "waits for the next" in said[0]
    assert [report["round"] for report in read_rounds(tmp_path / "state")] == [1, 2]


def test_a_round_that_diverges_leaves_the_models_of_before(coordinator, client_toml, device_process, tmp_path):
    light = device_process.LightTrainer()
    poisoned, good = {}, {}

    class Late(Fragile):
        def take_part(self, number, received, stored, on_progress, *, home):
            if number == 1 and not poisoned:
                poisoned.update(received)
                good["state"] = stored
                raise Diverged("training diverged")
            assert number != 1
            before = stored.personal.for_training() if stored else None
            assert number != 2 or before == good["state"].personal.for_training()
            return self.light.take_part(number, received, stored, on_progress, home=home)

    coordinator.after_decline = dict(coordinator.blobs)
    run(coordinator, client_toml, device_process, trainer=Late(light))
    assert light.calls == [0, 2, "finish"] and set(coordinator.accepted) == {0, 2}


def test_if_stage_2_diverges_the_personal_models_of_stage_1_are_the_result(
    coordinator, client_toml, device_process, tmp_path
):
    trainer = Fragile(device_process.LightTrainer(), stage_2=True)
    _, lines = run(coordinator, client_toml, device_process, trainer=trainer)
    assert trainer.finishes == [True, False] and coordinator.done
    assert len(lines) == 1 and lines[0].startswith("stage 2: training diverged in step 1 of student")
    assert "the personal models of stage 1 are kept" in lines[0]
    assert load_state(tmp_path).finished and (tmp_path / "state" / "export" / "topic" / "task.json").exists()


def test_training_goes_on_while_the_coordinator_is_away(coordinator, client_toml, device_process):
    """The work outlives the connection: it ends during the outage, and its update is sent afterwards."""
    trainer = device_process.LightTrainer()
    trainer.gate = device_process.threading.Event()
    lines: list[str] = []

    async def main() -> None:
        address = await coordinator.start()
        agent = device_process.make_agent(client_toml(address), trainer, say=lines.append)
        life = asyncio.ensure_future(agent.run())
        while not trainer.calls:
            await asyncio.sleep(0.01)
        await coordinator.stop()
        trainer.gate.set()
        await asyncio.sleep(0.3)
        assert (len(coordinator.accepted), len(trainer.calls)) == (0, 1)
        await coordinator.start(coordinator.port)
        await asyncio.wait_for(life, 20)
        await coordinator.stop()

    asyncio.run(main())
    assert trainer.calls == [0, 1, 2, "finish"] and coordinator.done
    assert len(lines) == 2 and lines[0].startswith("lost the coordinator at") and lines[1] == "connected"


def test_a_restarted_coordinator_that_asks_again_gets_the_work_under_way(coordinator, client_toml, device_process):
    trainer = device_process.LightTrainer()
    trainer.gate = device_process.threading.Event()

    async def main() -> None:
        address = await coordinator.start()
        life = asyncio.ensure_future(device_process.make_agent(client_toml(address), trainer).run())
        while not trainer.calls:
            await asyncio.sleep(0.01)
        await coordinator.stop()
        count = len(coordinator.hellos)
        await coordinator.start(coordinator.port)
        while len(coordinator.hellos) == count:
            await asyncio.sleep(0.01)
        trainer.gate.set()
        await asyncio.wait_for(life, 20)
        await coordinator.stop()

    asyncio.run(main())
    assert trainer.calls == [0, 1, 2, "finish"]


def test_heartbeats_go_out_while_training(coordinator, client_toml, device_process):
    trainer = device_process.LightTrainer()
    trainer.gate = device_process.threading.Event()
    trainer.gate.wait = lambda timeout: time.sleep(0.25 if trainer.calls == [0] else 0)
    run(coordinator, client_toml, device_process, trainer=trainer, heartbeat=0.1)
    assert coordinator.events.count("heartbeat") >= 2


def test_a_late_update_is_said_and_life_goes_on(coordinator, client_toml, device_process):
    coordinator.reject_round = 1
    trainer, lines = run(coordinator, client_toml, device_process)
    assert sorted(coordinator.accepted) == [0, 2] and coordinator.done
    assert lines == ["round 2: the update was not counted (late: the round is closed); going on"]
    assert trainer.calls == [0, 1, 2, "finish"]


def test_a_device_whose_update_is_rejected_connects_again_and_takes_part_later(
    coordinator, client_toml, device_process
):
    coordinator.reject_round = 1
    coordinator.reject_code = "norm"
    trainer, lines = run(coordinator, client_toml, device_process)
    assert sorted(coordinator.accepted) == [0, 2] and coordinator.done
    assert lines[0] == "round 2: the update was not counted (norm: the round is closed); going on"
    assert lines[1].startswith("lost the coordinator") and "(an update was rejected)" in lines[1]
    assert len([hello for hello in coordinator.hellos if hello.tasks]) == 2
    assert trainer.calls == [0, 1, 2, "finish"]


def test_a_wait_for_a_service_that_stops_for_a_while(coordinator, client_toml, device_process):
    coordinator.goodbyes = ["shutdown", "shutdown"]
    trainer, _ = run(coordinator, client_toml, device_process)
    assert coordinator.done and trainer.calls == [0, 1, 2, "finish"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token": "other"}, "refused this device's token (HTTP 401); have the operator run 'tap-coordinator enroll'"),
        ({"refuse": Refuse(code="schema", why="too old", fix="upgrade")}, "refuses this device: too old; upgrade"),
        ({"goodbyes": ["replaced"]}, "another process has joined as 'kitchen'; stop one of the two"),
        (
            {"goodbyes": ["revoked"]},
            "the token of 'kitchen' is void: revoked, expired or replaced; ask the operator for a new one",
        ),
        ({"settings": "{"}, "settings are not JSON"),
        ({"settings": '{"name": "demo", "frundation": "x"}'}, "the coordinator's settings: "),
    ],
)
def test_what_waiting_cannot_mend_ends_with_the_fix(coordinator, client_toml, device_process, change, message):
    (name, value), *_ = change.items()
    setattr(coordinator, name, value)
    if name == "goodbyes":
        coordinator.goodbyes = ["shutdown", *value]
    with pytest.raises(TapError) as caught:
        run(coordinator, client_toml, device_process)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("moment", ["before the bye", "after the bye", "while it is away"])
def test_a_token_that_is_replaced_while_it_runs_is_picked_up_from_the_file(
    coordinator, client_toml, device_process, tmp_path, moment
):
    """The old token ends as a revoked one does; the new one may reach the file only a moment later."""
    file, new = tmp_path / "token", tmp_path / "token.new"

    def put_in_place():
        new.write_text("next-token\n")
        new.rename(file)

    class Coordinator(type(coordinator)):
        """Replaces the token when the device says hello for the second time."""

        async def _converse(self, socket):
            if len(self.hellos) == 1 and self.token == "good-token":
                self.token = "next-token"
                if moment == "before the bye":
                    put_in_place()
                elif moment == "after the bye":
                    new.write_text("next-token\n")
                    asyncio.get_running_loop().call_later(0.3, put_in_place)
                if moment != "while it is away":
                    self.goodbyes = ["revoked"]
                else:
                    put_in_place()
                    socket.transport.abort()
            await super()._converse(socket)

    coordinator.__class__ = Coordinator
    trainer, _ = run(coordinator, client_toml, device_process)
    assert coordinator.done and trainer.calls == [0, 1, 2, "finish"]


def test_a_token_that_nobody_replaces_is_waited_for_only_while_a_replacement_is_under_way(
    coordinator, client_toml, device_process, tmp_path, monkeypatch
):
    monkeypatch.setattr(token_file, "REPLACEMENT_SECONDS", 0.2)
    coordinator.token = "another"
    (tmp_path / "token.new").write_text("next-token\n")
    with pytest.raises(UsageError, match="refused this device's token .*; run tap-client rotate, or tap-client enroll"):
        run(coordinator, client_toml, device_process)


def test_a_task_that_the_federation_lacks_is_found_at_the_first_contact(
    coordinator, client_toml, device_process, federation, tmp_path
):
    without = {name: task for name, task in federation.tasks.items() if name != "topic"}
    coordinator.settings = federation.model_copy(update={"tasks": without}).model_dump_json()
    with pytest.raises(UsageError, match="federation 'demo' has no task 'topic'"):
        run(coordinator, client_toml, device_process)
    assert not (tmp_path / "state" / "settings.json").exists()


def test_an_http_server_is_no_coordinator(client_toml, device_process):
    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        path = client_toml(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        try:
            await device_process.make_agent(path, device_process.LightTrainer()).run()
        finally:
            server.close()

    with pytest.raises(TapError, match=r"is no device port of a coordinator \(HTTP 404\); correct 'coordinator'"):
        asyncio.run(main())


def test_an_unreachable_coordinator_is_waited_for_or_not(client_toml, device_process):
    lines: list[str] = []
    path = client_toml("ws://127.0.0.1:9")
    agent = device_process.make_agent(path, device_process.LightTrainer(), say=lines.append, max_wait=0)
    with pytest.raises(TapError, match=r"cannot reach the coordinator at ws://127\.0\.0\.1:9") as caught:
        asyncio.run(agent.run())
    assert caught.value.exit_code == 1 and lines == []

    async def waits() -> None:
        agent = device_process.make_agent(path, device_process.LightTrainer(), say=lines.append)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(agent.run(), 0.7)

    asyncio.run(waits())
    assert len(lines) == 1 and "retrying until it answers" in lines[0]


def test_a_federation_started_anew_is_not_mixed_with_the_old_one(coordinator, client_toml, device_process):
    first = dict(coordinator.blobs)
    run(coordinator, client_toml, device_process)
    coordinator.round, coordinator.blobs, coordinator.done = 0, first, False
    with pytest.raises(TapError, match="of an earlier run of federation 'demo'; move .*state away to join the new one"):
        run(coordinator, client_toml, device_process)


def test_nor_one_in_which_others_own_what_this_device_kept_to_itself(coordinator, client_toml, device_process):
    """The values offered are the same, but the update that it holds is not the one that is asked for."""
    first, coordinator.home, coordinator.rounds, coordinator.home_until = dict(coordinator.blobs), (HOME,), 1, 1
    run(coordinator, client_toml, device_process)
    coordinator.round, coordinator.blobs, coordinator.done, coordinator.home = 0, first, False, ()
    with pytest.raises(TapError, match="of an earlier run of federation 'demo'; move .*state away to join the new one"):
        run(coordinator, client_toml, device_process)


def test_changed_settings_are_taken_up(coordinator, client_toml, device_process, federation, tmp_path):
    coordinator.cuts = ["after accepted"]
    changed = federation.model_copy(update={"seed": 8})
    built: list[int] = []
    trainer = device_process.LightTrainer()

    async def main() -> None:
        address = await coordinator.start()
        agent = device_process.make_agent(client_toml(address), trainer, say=lambda line: None)

        def build(settings):
            built.append(settings.seed)
            coordinator.settings = changed.model_dump_json()
            return trainer

        agent._worker._build = build
        await asyncio.wait_for(agent.run(), 20)
        await coordinator.stop()

    asyncio.run(main())
    assert built == [7, 8] and coordinator.done
    assert json.loads((tmp_path / "state" / "settings.json").read_text())["seed"] == 8


DEATHS = ["training 0", "training 1", "before commit", "after commit", "finishing", "export"]


@pytest.mark.parametrize("death", DEATHS)
def test_sigkill_at_any_moment_loses_nothing(coordinator, client_toml, device_process, tmp_path, death):
    """One component stays at home, and has no other copy than the one in the device's state."""
    first, expected = coordinator.blobs[HOME], expected_updates(device_process, coordinator.blobs, 3)
    expected = {number: {"decoder/topic": update["decoder/topic"]} for number, update in expected.items()}
    coordinator.home = (HOME,)
    script = Path(device_process.__file__)

    async def main() -> list[int]:
        path = client_toml(await coordinator.start())
        codes = []
        for arguments in ([death], []):
            environment = os.environ | {"PYTHONPATH": str(script.parents[2])}
            process = await asyncio.create_subprocess_exec(
                sys.executable, str(script), str(path), *arguments, env=environment
            )
            codes.append(await asyncio.wait_for(process.wait(), 30))
        await coordinator.stop()
        return codes

    assert asyncio.run(main()) == [-signal.SIGKILL, 0]
    assert coordinator.accepted == expected and coordinator.done
    assert [report["round"] for report in read_rounds(tmp_path / "state")] == [0, 1, 2]
    state = load_state(tmp_path)
    assert state is not None and state.finished
    assert float(state.personal.for_training()["decoder/topic"]["w"][0]) == (1 * 3 + 2) * 3 + 3
    assert state.home.for_training()[HOME]["bytes"].tobytes() == expected_at_home(device_process, first, 3)
    assert len(json.loads((tmp_path / "state" / "results.json").read_text())["replacements"]) == 3


def test_a_full_disk_is_one_line_and_the_state_before_it_stands(
    coordinator, client_toml, device_process, monkeypatch, tmp_path
):
    commit = PrivateStore.commit

    def full(self, state):
        if state.round == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "state/state/1/personal"))
        commit(self, state)

    monkeypatch.setattr(PrivateStore, "commit", full)
    with pytest.raises(TapError, match=r"cannot write .*personal: No space left on device; mend that and run"):
        run(coordinator, client_toml, device_process)
    monkeypatch.undo()
    trainer, _ = run(coordinator, client_toml, device_process)
    assert trainer.calls == [1, 2, "finish"] and coordinator.done


def test_cancelling_saves_and_stops_the_training(coordinator, client_toml, device_process, tmp_path):
    trainer = device_process.LightTrainer()

    async def main() -> None:
        path = client_toml(await coordinator.start())
        trainer.gate = device_process.threading.Event()
        trainer.gate.wait = lambda timeout: time.sleep(0.05) if trainer.calls[-1] == 1 else None
        life = asyncio.ensure_future(device_process.make_agent(path, trainer).run())
        while trainer.calls[-1:] != [1]:
            await asyncio.sleep(0.01)
        life.cancel()
        with pytest.raises(asyncio.CancelledError):
            await life
        await coordinator.stop()

    asyncio.run(main())
    state = load_state(tmp_path)
    assert state is not None and state.round == 0 and trainer.calls == [0, 1]


def test_the_network_side_of_a_device_needs_no_torch():
    code = "import sys, edge_client.agent, edge_client.doctor; print({'torch', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
