"""The container and service files name things that exist: sources, extras, commands and their options."""

import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from coordinator.cli import app as coordinator_app
from deploy.demo.run import run_demo
from edge_client.cli import app as client_app
from tap_core.errors import UsageError
from tap_core.settings.toml import tomllib

ROOT = Path(__file__).parents[2]
DOCKERFILES = ("Dockerfile.coordinator", "Dockerfile.client")
COMMANDS = {"tap-coordinator": get_command(coordinator_app), "tap-client": get_command(client_app)}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def parsed(words):
    """Parse a command line as the command would, without running it; a wrong option raises."""
    program, name, *arguments = words
    command = COMMANDS[Path(program).name].commands[name]
    return command.make_context(name, list(arguments)).params


def instructions(dockerfile):
    text = (ROOT / "deploy" / dockerfile).read_text().replace("\\\n", " ")
    return [line.split(maxsplit=1) for line in text.splitlines() if line.strip() and not line.startswith("#")]


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_a_dockerfile_copies_what_exists_and_installs_known_extras(dockerfile):
    for word, rest in instructions(dockerfile):
        if word == "COPY":
            missing = [source for source in rest.split()[:-1] if not (ROOT / source).exists()]
            assert missing == []
        if word == "RUN":
            extras = re.search(r"\.\[(.*?)\]", rest).group(1).split(",")
            assert set(extras) <= set(PROJECT["optional-dependencies"])


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_a_dockerfile_runs_a_real_command(dockerfile):
    found = dict(line for line in instructions(dockerfile) if line[0] in ("ENTRYPOINT", "CMD"))
    words = yaml.safe_load(found["ENTRYPOINT"]) + yaml.safe_load(found["CMD"])
    assert words[0] in PROJECT["scripts"]
    assert parsed(words)


def test_the_coordinator_image_holds_no_training_library():
    copied = {rest.split()[0] for word, rest in instructions("Dockerfile.coordinator") if word == "COPY"}
    assert not copied & {"edge_client", "deploy"}
    torch = [name for name in PROJECT["optional-dependencies"]["coordinator"] if name.startswith("torch")]
    assert torch == []


def test_compose_builds_both_images_and_keeps_the_operator_plane_local():
    services = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
    for service in services.values():
        assert (ROOT / "deploy" / service["build"]["context"] / service["build"]["dockerfile"]).resolve().is_file()
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
    operator = [port for port in services["coordinator"]["ports"] if port.endswith(":8711")]
    assert operator == ["127.0.0.1:8711:8711"]


@pytest.mark.parametrize("unit", ["tap-coordinator", "tap-client"])
def test_a_unit_starts_a_real_command_and_stops_trying_when_a_setting_is_wrong(unit):
    text = (ROOT / "deploy" / "systemd" / f"{unit}.service").read_text()
    options = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    words = shlex.split(options["ExecStart"])
    assert Path(words[0]).name == unit
    assert parsed(words)
    assert options["RestartPreventExitStatus"] == "2"
    assert options["WantedBy"] == "multi-user.target"


def test_the_wheel_carries_code_only(tmp_path):
    """At most a megabyte: the demo's data and foundation stay in the repository."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    source = tmp_path / "source"
    for name in filter(None, tracked):
        path = ROOT / name.decode()
        if path.is_file():
            (source / name.decode()).parent.mkdir(parents=True, exist_ok=True)
            (source / name.decode()).symlink_to(path)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", tmp_path]
    subprocess.run([*map(str, build), str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size <= 1_000_000
    names = zipfile.ZipFile(wheel).namelist()
    assert {"tap_core/components.py", "deploy/demo/report_page.html", "coordinator/migrations/env.py"} <= set(names)
    assert [n for n in names if n.endswith((".parquet", ".safetensors"))] == []
    assert [
        p for p in ("protocol", "tap_core", "coordinator", "edge_client", "deploy") if f"{p}/py.typed" not in names
    ] == []


def test_the_demo_without_its_data_says_where_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr("deploy.demo.run.DATA", tmp_path / "nowhere")
    with pytest.raises(UsageError, match="source repository"):
        run_demo(tmp_path / "out")
    assert not (tmp_path / "out").exists()
