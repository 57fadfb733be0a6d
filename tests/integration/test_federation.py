"""A whole federation over real sockets: the simulation's bits, and nothing on the wire but what belongs."""

import json
import struct
from collections.abc import Callable
from typing import Any

import pytest
from recorder import Recorder, blobs, messages, payloads
from small_federation import DEVICES, Site, check_equal, free_port

from edge_client.private_store import PrivateStore
from protocol.messages import Finish, Hello, Train, Update
from protocol.tensors import decode_tensors
from tap_core.components import owned_components
from tap_core.manifest import load_manifest


class Run:
    """A finished federation, and what passed over each device's connections."""

    def __init__(self, site: Site, connections: list[Any]) -> None:
        self.site = site
        self.manifest = load_manifest(site.directory)
        self.sent: dict[str, list[Any]] = {device: [] for device in DEVICES}
        self.received: dict[str, list[Any]] = {device: [] for device in DEVICES}
        self.raw: dict[str, bytes] = dict.fromkeys(DEVICES, b"")
        for connection in connections:
            sent, received = bytes(connection.sent), bytes(connection.received)
            device = next(m.device for m in messages(sent) if isinstance(m, Hello))
            self.sent[device] += messages(sent)
            self.received[device] += messages(received)
            self.raw[device] += b"".join([sent, received, *payloads(sent), *payloads(received)])

    def owned(self, device: str) -> set[str]:
        return set(owned_components(self.manifest.config.tasks_named(DEVICES[device])))


@pytest.fixture(scope="module")
def run(make_site: Callable[[], Site]) -> Run:
    site = make_site()
    site.prepare()
    upstream = free_port()
    recorder = Recorder(site.port, upstream)
    processes = [site.serve(upstream), *(site.join(device) for device in DEVICES)]
    site.wait(*reversed(processes))
    recorder.close()
    return Run(site, recorder.connections)


def test_the_networked_federation_equals_the_simulation_bit_for_bit(run: Run, oracle: Any) -> None:
    check_equal(run.site, oracle)
    rounds = run.manifest.config.rounds
    reports = {device: _reports(run.site, device) for device in DEVICES}
    assert sum(len(report) for report in reports.values()) == rounds.total * rounds.clients_per_round


@pytest.mark.parametrize("device", DEVICES)
def test_trap_8_a_device_receives_and_sends_exactly_the_components_that_it_owns(run: Run, device: str) -> None:
    owned, specs = run.owned(device), run.manifest.components
    for asked in (m for m in run.received[device] if isinstance(m, (Train, Finish))):
        assert {ref.name for ref in asked.components} == owned
    updates = [m for m in run.sent[device] if isinstance(m, Update)]
    assert len(updates) == len(_reports(run.site, device))
    for update in updates:
        assert {ref.name for ref in update.components} == set(update.examples) == owned
    named = {
        ref.digest: ref.name
        for m in (*run.sent[device], *run.received[device])
        if isinstance(m, (Train, Finish, Update))
        for ref in m.components
    }
    for way in (run.sent, run.received):
        moved = blobs(way[device])
        assert moved
        for digest, data in moved.items():  # each blob is one owned component and decodes to exactly its tensors
            name = named[digest]
            assert name in owned
            decode_tensors(name, data, shapes=specs[name].shapes, dtype="float32")
    tensors = sum(len(data) for way in (run.sent, run.received) for data in blobs(way[device]).values())
    assert len(run.raw[device]) / 2 - tensors < 60_000  # besides them: handshakes, settings, refs, heartbeats


@pytest.mark.parametrize("device", DEVICES)
def test_no_personal_tensor_and_no_loss_history_is_on_the_wire(run: Run, device: str) -> None:
    stored = PrivateStore(run.site.state_dir(device), device=device, federation="mini").load()
    assert stored is not None
    looked_at = 0
    for name, group in stored.personal.for_training().items():
        for key, value in group.items():
            rows = value.reshape(-1)[:4] if value.size >= 4 and value.any() else None
            if rows is not None and rows.all():
                assert rows.tobytes() not in run.raw[device], (name, key)
                looked_at += 1
    assert looked_at > 20
    losses = [
        loss
        for report in _reports(run.site, device)
        for history in ("federated_loss", "personal_loss")
        for loss in report[history].values()
    ]
    assert losses
    for loss in losses:
        for form in (struct.pack(">d", loss), struct.pack("<d", loss), struct.pack("<f", loss), repr(loss).encode()):
            assert form not in run.raw[device]


def test_no_raw_data_is_on_the_wire(run: Run) -> None:
    searched = 0
    for device in DEVICES:
        home = run.site.devices / device
        for image in home.rglob("*.png"):
            data = image.read_bytes()
            assert data[len(data) // 2 :] not in run.raw[device]
            searched += 1
        for table in home.glob("*.csv"):
            for line in table.read_text().splitlines()[1:]:
                assert line.split(",")[0].encode() not in run.raw[device]
                searched += 1
    assert searched > 80
    question = b"what colour is this"
    assert question in (run.site.devices / "asker" / "ask_train.jsonl").read_bytes()
    assert all(question not in raw for raw in run.raw.values())


def test_the_token_is_in_the_handshake_and_nowhere_else(run: Run) -> None:
    for device in DEVICES:
        token = (run.site.devices / device / "token").read_text().strip().encode()
        assert run.raw[device].count(token) == run.raw[device].count(b"Authorization: Bearer " + token) >= 1


def test_every_task_has_results_and_an_export(run: Run) -> None:
    for device, tasks in DEVICES.items():
        results = json.loads((run.site.state_dir(device) / "results.json").read_text())
        assert set(results["tasks"]) == set(tasks) and set(results["components"]) == run.owned(device)
        assert results["bytes_sent"] > 0 and results["bytes_received"] > 0
        for task in tasks:
            parity = json.loads((run.site.state_dir(device) / "export" / task / "parity.json").read_text())
            assert parity["max_abs_diff"] <= parity["tolerance"]


def _reports(site: Site, device: str) -> list[dict[str, Any]]:
    path = site.state_dir(device) / "rounds.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
