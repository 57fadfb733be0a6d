"""What users get wrong, through the real commands: one line that says what to do, and nothing half-written."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from small_federation import Site, command
from typer.testing import CliRunner

from deploy.cli import app as tap
from edge_client.cli import app as client


@pytest.fixture(scope="module")
def pristine(make_site: Callable[[], Site]) -> Site:
    site = make_site()
    site.prepare()
    return site


@pytest.fixture
def site(pristine: Site, tmp_path: Path) -> Site:
    """A copy of the files, to spoil."""
    copy = object.__new__(Site)
    copy.__dict__.update(pristine.__dict__)
    copy.root = Path(shutil.copytree(pristine.root, tmp_path / "site"))
    copy.federation, copy.devices = copy.root / "federation.toml", copy.root / "devices"
    copy.directory = copy.root / "federation"
    return copy


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


def simulate(site: Site) -> str:
    return complaint(tap, "simulate", site.federation, "--devices", site.devices, code=2)


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


def test_a_missing_data_file(site: Site) -> None:
    (site.devices / "reader" / "letters_train.csv").unlink()
    assert "letters_train.csv" in simulate(site)


def test_a_wrong_column_name(site: Site) -> None:
    spoil(site.devices / "reader" / "client.toml", 'text = "words"', 'text = "wrods"')
    said = simulate(site)
    assert "'wrods'" in said and "words" in said.replace("wrods", "")


def test_a_class_that_is_not_in_the_federation(site: Site) -> None:
    spoil(site.devices / "reader" / "letters_train.csv", ",high", ",hihg")
    said = simulate(site)
    assert "'hihg'" in said and "high" in said.replace("hihg", "") and "letters_train.csv" in said


def test_an_image_file_that_is_no_image(site: Site) -> None:
    spoiled = next((site.devices / "painter" / "colour_train").rglob("*.png"))
    spoiled.write_text("not an image")
    assert spoiled.name in simulate(site)


def test_a_model_directory_without_weights(site: Site) -> None:
    empty = site.root / "empty"
    empty.mkdir()
    spoil(site.federation, f'foundation = "{site.config.foundation}"', 'foundation = "empty"')
    said = complaint(tap, "init", site.federation, "--out", site.root / "new", code=2)
    assert "holds no weights; put the FLAVA model's model.safetensors there" in said
    assert not list(site.root.glob("*new*"))


def test_a_directory_that_is_taken(site: Site) -> None:
    before = sorted(site.directory.rglob("*"))
    said = complaint(tap, "init", site.federation, "--out", site.directory, code=2)
    assert "is not empty; give another --out" in said and sorted(site.directory.rglob("*")) == before


def test_an_unreachable_coordinator(site: Site) -> None:
    said = complaint(client, "join", site.devices / "reader" / "client.toml", "--no-wait", code=1)
    assert f"127.0.0.1:{site.port}" in said


@pytest.fixture
def served(pristine: Site) -> Iterator[Site]:
    coordinator = pristine.serve(pristine.port)
    yield pristine
    coordinator.terminate()
    assert coordinator.wait(60) == 0


def test_a_wrong_token_and_a_token_of_another_device(served: Site, site: Site) -> None:
    """Joined for real; the coordinator goes on to serve."""
    home = site.devices / "reader"
    (home / "token").write_text("wrong")
    first = subprocess.run(command("edge_client.cli", "join", home / "client.toml"), capture_output=True, text=True)
    assert first.returncode != 0 and "tap-coordinator enroll" in first.stderr
    shutil.copy(site.devices / "asker" / "token", home / "token")
    second = subprocess.run(command("edge_client.cli", "join", home / "client.toml"), capture_output=True, text=True)
    assert second.returncode != 0 and "belongs to device 'asker', not to 'reader'" in second.stderr
    for done in (first, second):
        assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1
