"""A whole federation over real sockets: the simulation's bits, and nothing on the wire but what belongs."""

import csv
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from recorder import Recorder, blobs, messages, payloads
from safetensors.numpy import load_file
from small_federation import DEVICES, Oracle, Site, check_equal, free_port
from tokenizers import Tokenizer

from edge_client.private_store import PrivateStore
from protocol.codec import encode
from protocol.messages import Chunk, Finish, Hello, Train, Update
from protocol.tensors import decode_tensors
from tap_core.components import owned_components
from tap_core.manifest import COMPONENTS_DIRECTORY, load_manifest


class Run:
    """A finished federation, and what passed over each device's connections."""

    def __init__(self, site: Site, connections: list[Any]) -> None:
        self.site = site
        self.manifest = load_manifest(site.directory)
        self.version_0 = {
            name: load_file(site.directory / COMPONENTS_DIRECTORY / f"{spec.digest}.safetensors")
            for name, spec in self.manifest.components.items()
        }
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

    def shared(self, device: str) -> set[str]:
        """Of those the ones that another device owns too."""
        return self.owned(device) & set().union(*(self.owned(other) for other in DEVICES if other != device))


@pytest.fixture(scope="module")
def run(make_site: Callable[..., Site]) -> Run:
    site = make_site(export=DEVICES, fresh=True)
    site.prepare()
    upstream = free_port()
    recorder = Recorder(site.port, upstream)
    processes = [site.serve(upstream), *(site.join(device) for device in DEVICES)]
    site.wait(*reversed(processes))
    recorder.close()
    return Run(site, recorder.connections)


def test_the_networked_federation_equals_the_simulation_bit_for_bit(run: Run, oracle: Oracle) -> None:
    check_equal(run.site, oracle.result)
    rounds = run.manifest.config.rounds
    reports = {device: _reports(run.site, device) for device in DEVICES}
    assert sum(len(report) for report in reports.values()) == rounds.total * rounds.clients_per_round


@pytest.mark.parametrize("device", DEVICES)
def test_trap_8_a_device_receives_what_it_owns_and_sends_of_it_what_others_share(run: Run, device: str) -> None:
    owned, shared, specs = run.owned(device), run.shared(device), run.manifest.components
    assert shared < owned
    for asked in (m for m in run.received[device] if isinstance(m, (Train, Finish))):
        assert {ref.name for ref in asked.components} == owned and set(asked.home) == owned - shared
    updates = [m for m in run.sent[device] if isinstance(m, Update)]
    assert len(updates) == len(_reports(run.site, device))
    for update in updates:
        assert {ref.name for ref in update.components} == set(update.examples) == shared
    named = {
        ref.digest: ref.name
        for m in (*run.sent[device], *run.received[device])
        if isinstance(m, (Train, Finish, Update))
        for ref in m.components
    }
    version_0 = {specs[name].digest for name in owned - shared}
    assert version_0 <= set(blobs(run.received[device])), "what stays at home comes once, as version 0"
    for way, names in ((run.sent, shared), (run.received, owned)):
        moved = blobs(way[device])
        assert moved and (way is run.sent or {d for d in moved if named[d] not in shared} == version_0)
        for digest, data in moved.items():  # each blob is one owned component and decodes to exactly its tensors
            name = named[digest]
            assert name in names
            decode_tensors(name, data, shapes=specs[name].shapes, dtype="float32")
    tensors = sum(len(data) for way in (run.sent, run.received) for data in blobs(way[device]).values())
    assert len(run.raw[device]) / 2 - tensors < 60_000  # besides them: handshakes, settings, refs, heartbeats


@pytest.mark.parametrize("device", DEVICES)
def test_nothing_that_a_device_keeps_to_itself_is_on_the_wire(run: Run, oracle: Oracle, device: str) -> None:
    """No personal tensor, no value at home and no loss of any round: the device had the simulation's, bit for bit."""
    stored = PrivateStore(run.site.state_dir(device), device=device, federation="mini").load()
    assert stored is not None
    outcomes = [outcomes[device] for outcomes in oracle.rounds if device in outcomes]
    assert outcomes
    states = [outcome.state for outcome in outcomes]
    ends = [stored.personal.for_training(), stored.home.for_training()]
    for kept in (*ends, *(state.personal for state in states), *(state.home for state in states)):
        looked_at = 0
        for name, group in kept.items():
            for key, value in group.items():
                for values in _pieces(value, run.version_0[name][key]):
                    assert values.tobytes() not in run.raw[device], (name, key)
                    looked_at += 1
        assert looked_at > 20
    losses = {
        loss
        for told in (*(vars(outcome.report) for outcome in outcomes), *_reports(run.site, device))
        for history in ("federated_loss", "personal_loss")
        for loss in told[history].values()
    }
    assert len(losses) == 2 * len(DEVICES[device]) * len(outcomes)
    talk = b"".join(encode(m) for m in (*run.sent[device], *run.received[device]) if not isinstance(m, Chunk))
    for loss in losses:
        for form in (struct.pack(">d", loss), struct.pack("<d", loss), repr(loss).encode()):
            assert form not in run.raw[device]
        for form in (struct.pack(">f", loss), struct.pack("<f", loss)):  # four bytes: masks and tensors may hold them
            assert form not in talk


@pytest.mark.parametrize("device", DEVICES)
def test_no_raw_data_is_on_the_wire(run: Run, device: str) -> None:
    """Neither the files nor what the device makes of them: decoded and normalised pixels, texts, their tokens."""
    settings = run.manifest.config.model_dump_json()
    foundation = Path(run.site.config.foundation)
    tokenizer = Tokenizer.from_file(str(foundation / "tokenizer.json"))
    norms = json.loads((foundation / "preprocessor_config.json").read_text())
    home, wire = run.site.devices / device, run.raw[device]
    images = sorted(home.rglob("*_t*/**/*.png"))
    assert len(images) == 28 * sum(task != "letters" for task in DEVICES[device])
    for image in images:
        data = image.read_bytes()
        assert data[len(data) // 2 :] not in wire, image
        with Image.open(image) as opened:
            pixels = np.asarray(opened.convert("RGB"))
        normalised = _normalised(pixels, norms)
        for row in (pixels[8], pixels[8].T, normalised[:, 8], normalised[:, 8].T):
            assert np.ptp(row) > 0 and row.tobytes() not in wire, image
        for row in (*pixels[8].T, *normalised[:, 8]):
            assert row.tobytes() not in wire, image
    texts = {text for table in home.glob("*_t*.*") for text in _texts(table)}
    private = {text for text in texts if text not in settings}
    assert len(private) >= {"asker": 29, "painter": 28, "reader": 28}[device]
    for text in private:
        assert text.encode() not in wire, text
        assert np.array(tokenizer.encode(text).ids).tobytes() not in wire, text


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


def _pieces(value: np.ndarray, version_0: np.ndarray) -> Iterator[np.ndarray]:
    """Four neighbours from the beginning and four from the middle, where a gradient has come.

    Elsewhere, such as at positions that no answer reaches, there is version 0 shrunk by weight decay, and both sets
    come by the same values.
    """
    for start in {0, value.size // 2}:
        piece, before = (array.reshape(-1)[start : start + 4] for array in (value, version_0))
        shrunk = np.allclose(piece * before[0], before * piece[0], rtol=1e-5, atol=0)
        if piece.size >= 2 and piece.any() and not (shrunk and before.any()):
            yield piece


def _normalised(pixels: np.ndarray, norms: dict[str, Any]) -> np.ndarray:
    """What the encoder takes: float32 (3, height, width)."""
    mean, std = (np.asarray(norms[key], np.float32).reshape(3, 1, 1) for key in ("image_mean", "image_std"))
    return (pixels.astype(np.float32).transpose(2, 0, 1) / 255.0 - mean) / std


def _texts(table: Path) -> Iterator[str]:
    """Every cell of a table."""
    with table.open(newline="") as file:
        rows = csv.DictReader(file) if table.suffix == ".csv" else map(json.loads, file)
        for row in rows:
            yield from row.values()
