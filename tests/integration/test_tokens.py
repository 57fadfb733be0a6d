"""Devices that get their tokens by code and replace them while they train: the same bits, and no secret anywhere."""

import json
import time
from collections.abc import Callable

from small_federation import DEVICES, LIMIT, Oracle, Site, check_equal


def test_devices_enrolled_by_code_and_rotated_in_the_middle_change_no_bit(
    make_site: Callable[..., Site], oracle: Oracle
) -> None:
    site = make_site()
    site.run("deploy.tap.cli", "init", site.federation, "--out", site.directory)
    configs = {device: site.devices / device / "client.toml" for device in DEVICES}
    secrets = []
    serving = site.serve(site.port)
    wait_for(lambda: (site.directory / "state" / "serving.json").exists(), site)
    for device, config in configs.items():
        code = site.run("coordinator.cli", "enroll", device, site.directory, "--code", "--expires", "30d").strip()
        said = site.run("edge_client.cli", "enroll", config, "--code", code)
        assert f"{device}: enrolled until 2" in said
        secrets += [code, (config.parent / "token").read_text().strip()]
    devices = {device: site.join(device) for device in DEVICES}
    wait_for(lambda: any((site.state_dir(device) / "rounds.jsonl").exists() for device in DEVICES), site)
    for config in configs.values():
        site.run("edge_client.cli", "rotate", config)
        secrets.append((config.parent / "token").read_text().strip())
    site.wait(*devices.values(), serving)
    check_equal(site, oracle.result)
    assert not [device for device in DEVICES if (site.state_dir(device) / "export").exists()]
    acts = json.loads(site.run("coordinator.cli", "audit", site.directory, "--json"))
    assert [row["act"] for row in acts if row["actor"] == "device asker"] == ["exchange", "rotate"]
    assert len(set(secrets)) == 3 * len(DEVICES)
    stored = [path for path in site.directory.rglob("*") if path.is_file()] + list(site.root.glob("*.log"))
    for path in stored:
        data = path.read_bytes()
        assert not [secret for secret in secrets if secret.encode() in data], path


def wait_for(condition: Callable[[], bool], site: Site) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, site.logs()
        time.sleep(0.05)
