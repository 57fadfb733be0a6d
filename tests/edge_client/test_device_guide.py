"""docs/device.md names every setting, command, file and variable, and its example is a valid client.toml."""

import re
from pathlib import Path

import pytest

from edge_client import cli, datasets, journal, private_store, worker
from edge_client.config import Columns, TaskDataConfig, environment_variables, load_client_config

GUIDE = (Path(__file__).parents[2] / "docs" / "device.md").read_text(encoding="utf-8")


def test_every_setting_is_documented():
    for keys in environment_variables().values():
        assert f"| `{'.'.join(keys)}` |" in GUIDE
    for key in TaskDataConfig.model_fields:
        assert f"| `{key}` |" in GUIDE
    for key in Columns.model_fields:
        assert f"{key} = " in GUIDE
    for variable in re.findall(r"TAP_[A-Z_]+", GUIDE):
        assert variable.rstrip("_") in {"TAP", *environment_variables()}


def test_every_command_is_shown():
    for command in cli.app.registered_commands:
        assert f"tap-client {command.callback.__name__}" in GUIDE


def test_every_file_is_explained():
    names = [journal.PROGRESS, journal.ROUNDS, journal.RESULTS, journal.SETTINGS, f"{journal.EXPORTS}/TASK/"]
    names += [f"{name}/" for name in (private_store.STATE_DIRECTORY, worker.CACHE_DIRECTORY, datasets.CACHE_DIRECTORY)]
    for name in names:
        assert f"| `{name}` |" in GUIDE


@pytest.mark.parametrize("text", re.findall(r"```toml\n(.*?)```", GUIDE, re.DOTALL))
def test_the_example_is_valid(tmp_path, text):
    path = tmp_path / "client.toml"
    path.write_text(text)
    config = load_client_config(path, {})
    assert config.tasks["emoji_group"].columns.target == "group"
