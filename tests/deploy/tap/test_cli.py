"""The `tap` command: help, facts as JSON and as a table, and one line for what is wrong."""

import json
import re
import shutil
from pathlib import Path

import pytest
from small_federation import DEVICES, Site
from typer.testing import CliRunner

from deploy.demo.wording import format_interval, format_score, short_metric_name, words
from deploy.tap.cli import app
from tap_core.algorithms import ALGORITHMS
from tap_core.algorithms.base import Algorithm, Final, Personal
from tap_core.foundations.files import foundation_digest
from tap_core.manifest import COMPONENTS_DIRECTORY, MANIFEST_NAME, load_manifest
from tap_core.settings.federation import FederationConfig
from tap_core.settings.toml import load_toml

COMMANDS = ("init", "simulate", "demo")
TABLES = {
    "rounds": {"total": 2, "clients_per_round": 2, "min_updates": 2, "min_devices": 3},
    "training": {"steps": 1},
    "algorithm": {"distillation": {"steps": 1}},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, mini_config, mini_examples):
    return Site(tmp_path_factory.mktemp("whole"), mini_config(**TABLES), mini_examples)


@pytest.fixture
def federation(whole, tmp_path) -> Path:
    """A copy of the federation's settings; its devices lie beside them, below `devices`."""
    shutil.copytree(whole.devices, tmp_path / "devices")
    return Path(shutil.copy(whole.federation, tmp_path))


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


def complaint(*arguments):
    """The one line that a command with exit code 2 says on standard error."""
    result = run(*arguments)
    assert result.exit_code == 2 and result.stdout == "", result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize("min_cohort", [1, 2])
def test_init_says_what_a_cohort_of_one_means(federation, tmp_path, min_cohort):
    text = federation.read_text()
    assert "min_cohort = 2" in text
    federation.write_text(text.replace("min_cohort = 2", f"min_cohort = {min_cohort}"))
    result = run("init", federation, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["components"]
    notes = [line for line in result.stderr.splitlines() if line.startswith("note: ")]
    assert len(notes) == (min_cohort == 1) and all("decoder/letters" in line for line in notes)


def test_these_are_all_the_commands():
    assert [command.callback.__name__ for command in app.registered_commands] == list(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command):
    result = run(command, "--help")
    assert result.exit_code == 0 and re.search(rf"Example: tap {command} ", result.output + " ")


def test_without_a_command_the_help_names_them_all():
    shown = run().output
    assert all(re.search(rf"^  {command} ", shown, re.MULTILINE) for command in COMMANDS)


def test_init_prints_the_facts_of_what_it_made(federation, tmp_path):
    out = tmp_path / "out"
    result = run("init", federation, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    manifest = load_manifest(out)
    files = list((out / COMPONENTS_DIRECTORY).iterdir())
    assert json.loads(result.stdout) == {
        "federation": "mini",
        "components": len(manifest.components),
        "bytes": sum(file.stat().st_size for file in files),
        "directory": str(out),
        "foundation_digest": manifest.foundation_digest,
    }
    directory = load_toml(federation, FederationConfig).foundation
    assert manifest.foundation_digest == foundation_digest(directory)
    assert manifest.config.foundation == f"sha256:{manifest.foundation_digest}"
    assert directory not in (out / MANIFEST_NAME).read_text()  # nothing of this machine
    assert len(files) == len({spec.digest for spec in manifest.components.values()}) > 5


def test_init_says_what_comes_next(federation, tmp_path):
    out = tmp_path / "out"
    first, second = run("init", federation, "--out", out).stdout.splitlines()
    components = load_manifest(out).components
    size = sum(spec.size for spec in components.values())
    assert first == f"{out}: {len(components)} components, {size / 1e6:.1f} MB"
    assert f"tap-coordinator enroll DEVICE {out}" in second and f"tap-coordinator serve {out}" in second


@pytest.fixture(scope="module")
def simulated(whole):
    result = run("simulate", whole.federation, "--devices", whole.devices, "--json")
    assert result.exit_code == 0, result.output
    return result


def test_simulate_prints_the_results_of_every_device_and_task(simulated, whole):
    from deploy.tap.federations import simulate_federation

    devices = json.loads(simulated.stdout)["devices"]
    _, again = simulate_federation(whole.federation, whole.devices)
    assert {device: sorted(facts["tasks"]) for device, facts in devices.items()} == {
        device: sorted(tasks) for device, tasks in DEVICES.items()
    }
    for device, facts in devices.items():
        for task, values in facts["tasks"].items():
            assert values == json.loads(json.dumps(vars(again.devices[device].results[task])))
            assert values["n_test"] == 8


def test_simulate_tells_every_round_on_standard_error(simulated):
    rounds = [re.match(r"round (\d)  (\w+): loss federated \| personal: ", line) for line in told(simulated)]
    assert all(rounds)
    assert [found[1] for found in rounds] == ["1", "1", "2", "2"]
    for line, found in zip(told(simulated), rounds, strict=True):
        for task in DEVICES[found[2]]:
            assert re.search(rf"\b{task} \d+\.\d{{3}} \| \d+\.\d{{3}}", line)
        assert found[1] == "2" or line.count(" replaced") == len(DEVICES[found[2]])  # an infinite history is replaced


class Keeps(Algorithm):
    """Replaces nothing and says nothing of it."""

    def personalize(self, local, round_number, state, federated):
        return Personal(federated.trained, federated.loss)

    def finish(self, local, state):
        return Final(local.model.state("personal"))


def test_simulate_tells_the_rounds_of_an_algorithm_that_replaces_nothing(
    mini_config, mini_examples, tmp_path, monkeypatch
):
    monkeypatch.setitem(ALGORITHMS._found, "keeps", Keeps)
    tables = {**TABLES, "rounds": {**TABLES["rounds"], "total": 1}, "algorithm": {"name": "keeps"}}
    site = Site(tmp_path, mini_config(**tables), mini_examples)
    result = run("simulate", site.federation, "--devices", site.devices, "--json")
    assert result.exit_code == 0 and len(told(result)) == 2 and "replaced" not in result.stderr


def test_simulate_without_json_prints_a_table(whole, simulated, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    shown = run("simulate", whole.federation, "--devices", whole.devices).stdout
    for device, facts in json.loads(simulated.stdout)["devices"].items():
        for task, values in facts["tasks"].items():
            metric = [short_metric_name(values["metric"]), "↑" if values["higher_is_better"] else "↓"]
            scores = [
                format_score(values["metric"], values[key]) for key in ("floor", "federated", "stage1", "personal")
            ]
            low, high = values["intervals"]["personal"]
            assert low <= values["personal"] <= high
            lines = [line.split() for line in shown.splitlines()]
            row = [*words(task).split(), *metric, *scores, format_interval(values["metric"], (low, high))]
            assert lines.index([device]) < lines.index(row)


def test_simulate_writes_nothing(federation, tmp_path, monkeypatch):
    monkeypatch.setattr("deploy.tap.federations.simulate", _nothing_to_do)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert run("simulate", federation, "--devices", tmp_path / "devices", "--json").exit_code == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_settings_that_lie_among_the_devices_are_no_device(federation, tmp_path, monkeypatch):
    monkeypatch.setattr("deploy.tap.federations.simulate", _nothing_to_do)
    inside = shutil.move(federation, tmp_path / "devices" / "federation.toml")
    result = run("simulate", inside, "--devices", tmp_path / "devices", "--json")
    assert result.exit_code == 0 and set(json.loads(result.stdout)["devices"]) == set(DEVICES)


def test_other_toml_files_beside_a_device_are_no_device(federation, tmp_path, monkeypatch):
    monkeypatch.setattr("deploy.tap.federations.simulate", _nothing_to_do)
    home = tmp_path / "devices" / "reader"
    (home / "pyproject.toml").write_text('[build-system]\nrequires = ["hatchling"]\n')
    result = run("simulate", federation, "--devices", home, "--json")
    assert result.exit_code == 0 and set(json.loads(result.stdout)["devices"]) == {"reader"}


def test_a_directory_without_a_device_is_one_line(federation, tmp_path):
    for directory in (tmp_path, tmp_path / "absent", tmp_path / "devices" / "reader" / "letters_train.csv"):
        said = complaint("simulate", federation, "--devices", directory)
        assert f"{directory} holds no device; put NAME.toml or NAME/client.toml files there" in said


def test_a_device_id_that_is_taken_twice_is_one_line(federation, tmp_path):
    settings = tmp_path / "devices" / "reader" / "client.toml"
    settings.write_text(settings.read_text().replace('device_id = "reader"', 'device_id = "asker"'))
    said = complaint("simulate", federation, "--devices", tmp_path / "devices")
    assert f"{settings}: device_id 'asker' is taken by another file; choose another" in said


def test_a_device_of_another_federation_is_one_line(federation, tmp_path):
    settings = tmp_path / "devices" / "painter" / "client.toml"
    settings.write_text(settings.read_text().replace('federation = "mini"', 'federation = "maxi"'))
    said = complaint("simulate", federation, "--devices", tmp_path / "devices")
    assert f"{settings}: federation is 'maxi'; this one is 'mini'" in said


def test_settings_that_are_not_there_are_one_line(tmp_path):
    for command in (("init", "--out", tmp_path / "out"), ("simulate", "--devices", tmp_path)):
        said = complaint(command[0], tmp_path / "absent.toml", *command[1:])
        assert str(tmp_path / "absent.toml") in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["init", "demo"])
def test_an_out_that_is_not_empty_is_one_line_and_keeps_what_it_holds(federation, tmp_path, command):
    arguments = [federation] if command == "init" else []
    folder, file = tmp_path / "taken", tmp_path / "file"
    folder.mkdir()
    for precious in (folder / "precious", file):
        precious.write_text("mine")
        out = folder if precious.parent == folder else file
        said = complaint(command, *arguments, "--out", out)
        assert f"{out} exists and is not" in said and "give another --out" in said
        assert precious.read_text() == "mine" and list(folder.iterdir()) == [folder / "precious"]
    assert {path.name for path in tmp_path.iterdir()} == {"devices", "federation.toml", "taken", "file"}


def told(result):
    return result.stderr.splitlines()


def _nothing_to_do(config, participants, components, *, on_round):
    """In place of the simulation: what was loaded, with no result."""
    from tap_core.algorithms.participant import FinishOutcome
    from tap_core.simulation.in_process import SimulationResult

    return SimulationResult(components, {device: FinishOutcome(None, {}) for device in participants})


def test_an_algorithm_that_shares_nothing_has_no_federation_of_devices(mini_config, mini_examples, tmp_path):
    site = Site(tmp_path, mini_config(algorithm={"name": "local"}), mini_examples)
    said = complaint("init", site.federation, "--out", tmp_path / "out")
    assert "algorithm 'local'" in said and "tap simulate" in said and not (tmp_path / "out").exists()
