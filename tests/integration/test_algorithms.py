"""Other settings of the method and other algorithms over real sockets: still the simulation's bits."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_federation import DEVICES, TABLES, Site, check_equal

from edge_client.private_store import PrivateStore

HELD_OUT = {
    "indicator": "gradient",
    "decision": "paired",
    "replacement": "soft",
    "selection": True,
    # a rate so high that tasks choose an earlier set
    "distillation": {"steps": 4, "learning_rate": 0.3, "teacher_steps": 4, "skip_worse": True},
}
FEDERATIONS: dict[str, dict[str, Any]] = {
    "tap on held-out examples, momentum": {"algorithm": HELD_OUT, "rounds": {"server": "momentum"}},
    "fine-tuning of FedProx, one factor at a time, adam": {
        "algorithm": {"name": "fedavg_finetune", "steps": 3, "patience": 5},
        "training": {"proximal": 0.5},
        "rounds": {"server": "adam", "server_rate": 0.01, "factors": "alternate"},
        "wire": {"dtype": "bfloat16"},
    },
}


@pytest.mark.parametrize("name", FEDERATIONS)
def test_a_federation_ends_with_the_simulations_bits(
    tmp_path: Path, mini_config: Callable[..., Any], mini_examples: Callable[..., Any], name: str
) -> None:
    from deploy.tap.federations import simulate_federation

    changes = FEDERATIONS[name]
    tables = {k: {**TABLES.get(k, {}), **changes.get(k, {})} for k in {*TABLES, *changes}}
    if "algorithm" in changes:
        tables["algorithm"] = changes["algorithm"]
    export = ["painter"] if name.startswith("tap") else []  # of sets that its tasks chose
    site = Site(tmp_path, mini_config(**tables), mini_examples, export=export)
    try:
        _, result = simulate_federation(site.federation, site.devices)
        site.prepare()
        site.wait(*[site.join(device) for device in DEVICES], site.serve(site.port))
        check_equal(site, result)
        for device, outcome in result.devices.items():
            stored = PrivateStore(site.state_dir(device), device=device, federation="mini").load()
            assert stored is not None and stored.rounds == outcome.state.rounds
            assert stored.selected == outcome.state.selected
            results = json.loads((site.state_dir(device) / "results.json").read_text())["tasks"]
            assert {task: facts["selected"] for task, facts in results.items()} == {
                task: found.selected for task, found in outcome.results.items()
            }
            for task in DEVICES[device] if device in export else ():
                parity = json.loads((site.state_dir(device) / "export" / task / "parity.json").read_text())
                assert parity["max_abs_diff"] <= parity["tolerance"]
        if name.startswith("tap"):
            assert set(result.devices["painter"].state.selected) == set(DEVICES["painter"])
    finally:
        site.close()
