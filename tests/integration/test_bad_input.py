"""What users get wrong, through the real commands: one line that says what to do, and nothing half-written."""

import contextlib
import json
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from small_federation import DEVICES, LIMIT, Site, free_port
from typer.testing import CliRunner

from deploy.tap.cli import app as tap
from edge_client.cli import app as client

Damage = Callable[[Site], tuple[str, ...]]


@pytest.fixture(scope="module")
def pristine(make_site: Callable[..., Site]) -> Site:
    site = make_site(export=DEVICES)
    site.prepare()
    return site


@pytest.fixture
def site(pristine: Site, tmp_path: Path) -> Site:
    """A copy of the files, to spoil."""
    return copied(pristine, tmp_path / "site")


@pytest.fixture(scope="module")
def served(pristine: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A copy of the files, where a coordinator listens on the port that the devices of all copies are told."""
    site = copied(pristine, tmp_path_factory.mktemp("served") / "site")
    coordinator = site.serve(site.port)
    until = time.monotonic() + LIMIT
    while not listens(site.port):
        assert coordinator.poll() is None and time.monotonic() < until, site.logs()
        time.sleep(0.1)
    yield site
    assert coordinator.poll() is None, site.logs()  # whatever the devices did, it went on
    coordinator.terminate()
    assert coordinator.wait(60) == 0


def copied(site: Site, root: Path) -> Site:
    copy = object.__new__(Site)
    copy.__dict__.update(site.__dict__)
    copy.root = Path(shutil.copytree(site.root, root))
    copy.federation, copy.devices = copy.root / "federation.toml", copy.root / "devices"
    copy.directory = copy.root / "federation"
    return copy


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def complaint(app: object, *arguments: object, code: int) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])  # type: ignore[arg-type]
    assert result.exit_code == code, (result.output, result.exception)
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and result.stderr.rstrip().splitlines()[-1] == lines[0], result.stderr
    return lines[0]


def spoil(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def refused(site: Site, device: str) -> str:
    """Join a served site; the one line on standard error. The device's own state is as if it had never tried."""
    done = site.ended("edge_client.cli", "join", site.devices / device / "client.toml")
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and done.stdout == ""
    for name in ("state/current.json", "rounds.jsonl", "export", "results.json"):
        assert not (site.state_dir(device) / name).exists(), name
    return line


def test_an_unknown_key_in_federation_toml(site: Site) -> None:
    spoil(site.federation, "learning_rate", "learning_rat")
    out = site.root / "new"
    said = complaint(tap, "init", site.federation, "--out", out, code=2)
    assert "unknown key" in said and "did you mean 'learning_rate'?" in said
    assert not list(site.root.glob("*new*"))


def test_an_unknown_key_in_client_toml(site: Site) -> None:
    spoil(site.devices / "reader" / "client.toml", "state_dir", "state_dri")
    said = complaint(client, "join", site.devices / "reader" / "client.toml", code=2)
    assert "unknown key 'state_dri'; did you mean 'state_dir'?" in said
    assert not (site.devices / "reader" / "state").exists()


def no_data_file(site: Site) -> tuple[str, ...]:
    (site.devices / "reader" / "letters_train.csv").unlink()
    return "letters_train.csv: no such file or folder; ", "path"


def a_wrong_column(site: Site) -> tuple[str, ...]:
    spoil(site.devices / "reader" / "client.toml", 'text = "words"', 'text = "wrods"')
    return "'wrods'", "words"


def a_foreign_class(site: Site) -> tuple[str, ...]:
    spoil(site.devices / "reader" / "letters_train.csv", ",high", ",hihg")
    return "letters_train.csv", "'hihg'", "did you mean 'high'?", "its classes are low, high"


def a_file_that_is_no_image(site: Site) -> tuple[str, ...]:
    spoiled = next((site.devices / "painter" / "colour_train").rglob("*.png"))
    spoiled.write_text("not an image")
    return (str(spoiled),)


BAD_DATA = {"reader": (no_data_file, a_wrong_column, a_foreign_class), "painter": (a_file_that_is_no_image,)}
"""By device, what can be wrong with its data. Each spoils a site and returns what the error line must say."""

bad_data = pytest.mark.parametrize(
    ("device", "damage"), [(device, damage) for device, damages in BAD_DATA.items() for damage in damages]
)


@bad_data
def test_bad_data_in_a_simulation(site: Site, device: str, damage: Damage) -> None:
    expected = damage(site)
    said = complaint(tap, "simulate", site.federation, "--devices", site.devices, code=2)
    assert all(part in said for part in expected), said
    assert not (site.devices / device / "state" / "state").exists()


@bad_data
def test_bad_data_of_a_device_that_joins(served: Site, site: Site, device: str, damage: Damage) -> None:
    """It does not become a member: no round waits for it."""
    expected = damage(site)
    said = refused(site, device)
    assert all(part in said for part in expected), said
    enrolled = json.loads(served.run("coordinator.cli", "devices", served.directory, "--json"))
    assert {row["device"]: row["state"] for row in enrolled} == dict.fromkeys(DEVICES, "enrolled")


def test_a_model_directory_without_weights(site: Site) -> None:
    empty = site.root / "empty"
    empty.mkdir()
    spoil(site.federation, f'foundation = "{site.config.foundation}"', 'foundation = "empty"')
    said = complaint(tap, "init", site.federation, "--out", site.root / "new", code=2)
    assert "holds no config.json; put the model's config.json there" in said
    assert not list(site.root.glob("*new*"))


def test_a_directory_that_is_taken(site: Site) -> None:
    before = sorted(site.directory.rglob("*"))
    said = complaint(tap, "init", site.federation, "--out", site.directory, code=2)
    assert "is not empty; give another --out" in said and sorted(site.directory.rglob("*")) == before


def test_an_unreachable_coordinator(site: Site) -> None:
    port = free_port()
    spoil(site.devices / "reader" / "client.toml", f"127.0.0.1:{site.port}", f"127.0.0.1:{port}")
    said = complaint(client, "join", site.devices / "reader" / "client.toml", "--no-wait", code=1)
    assert f"127.0.0.1:{port}" in said


def test_a_wrong_token_and_a_token_of_another_device(served: Site, site: Site) -> None:
    token = site.devices / "reader" / "token"
    token.write_text("wrong")
    said = refused(site, "reader")
    assert "have the operator run 'tap-coordinator enroll'" in said and str(token) in said
    shutil.copy(site.devices / "asker" / "token", token)
    assert "belongs to device 'asker', not to 'reader'" in refused(site, "reader")
