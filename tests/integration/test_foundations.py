"""A federation over real sockets on another foundation than FLAVA: ViLT, whose text encoder has nothing to train."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import mini
import pytest
import small_federation
from small_federation import Site, check_equal

from deploy.tap.federations import simulate_federation
from edge_client.private_store import PrivateStore
from tap_core.manifest import load_manifest

DEVICES = {"one": ("letters",), "two": ("letters",)}
SEED = 2
"""The first of the data's seeds: with it and the next, no text is in both splits of a device."""

TABLES: dict[str, Any] = {
    "tasks": {"letters": mini.MINI_TASKS["letters"]},
    "rounds": {"total": 2, "clients_per_round": 2, "min_updates": 2, "min_devices": 2, "deadline": 300},
    "training": {"steps": 2},
    "algorithm": {"distillation": {"steps": 1}},
    "model": {"stage_layers": 1},
}


def test_a_component_without_tensors_travels_and_rests_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mini_examples: Callable[..., Any]
) -> None:
    """And the networked run has the simulation's bits."""
    monkeypatch.setattr(small_federation, "DEVICES", DEVICES)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    vilt = families.write_family("vilt", tmp_path / "vilt")
    (tmp_path / "site").mkdir()

    def examples(task: str, *, seed: int) -> Any:
        return mini_examples(task, seed=seed + SEED)

    site = Site(tmp_path / "site", mini.mini_settings(vilt, **TABLES), examples)
    try:
        site.prepare()
        assert load_manifest(site.directory).components["encoder/text"].shapes == {}
        site.wait(*reversed([site.serve(site.port), *(site.join(device) for device in DEVICES)]))
        _, result = simulate_federation(site.federation, site.devices)
        check_equal(site, result)
        stored = PrivateStore(site.state_dir("one"), device="one", federation="mini").load()
        assert stored is not None and stored.personal.for_training()["encoder/text"] == {}
    finally:
        site.close()
