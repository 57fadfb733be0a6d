"""The operator's guide names every setting, command, metric and code that the service has."""

import re
from pathlib import Path

import pytest

from coordinator.cli import app
from coordinator.config import ServiceSettings
from coordinator.metrics import Metrics
from protocol.codes import ByeCode, RefusalCode, RejectionCode

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "operator.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ServiceSettings.model_fields)
def test_every_setting_is_documented_with_its_default(name):
    field = ServiceSettings.model_fields[name]
    row = next(line for line in GUIDE.splitlines() if f"`TAP_{name.upper()}`" in line)
    cells = [cell.strip() for cell in row.split("|")]
    option = {"http_allowed_hosts": "http-allowed-host"}.get(name, name.replace("_", "-"))  # that one is repeated
    assert cells[1] == f"`--{option}`" and cells[3] == str(field.default)


def test_every_variable_in_the_guide_exists():
    known = {f"TAP_{name.upper()}" for name in ServiceSettings.model_fields}
    assert set(re.findall(r"TAP_[A-Z_]+", GUIDE)) <= known


def test_every_command_is_documented():
    for command in app.registered_commands:
        assert re.search(rf"`{command.callback.__name__} .*DIR`", GUIDE), command
    for group in app.registered_groups:
        for command in group.typer_instance.registered_commands:
            name = command.name or command.callback.__name__
            assert re.search(rf"`{group.name} {name} .*DIR`", GUIDE), command


def test_every_page_of_the_operator_plane_is_documented():
    pages = set(re.findall(r'@pages\.(?:get|post)\("([^"]+)"', (ROOT / "coordinator" / "operator_api.py").read_text()))
    table = GUIDE[GUIDE.index("| page | role |") :].split("\n\n")[0]
    assert len(pages) == 11 and {page for page in pages if page.replace("{name}", "NAME") not in table} == set()


def test_every_metric_is_documented_and_exists():
    families = {family.name: family.type for family in Metrics().registry.collect()}
    names = {f"{name}_total" if kind == "counter" else name for name, kind in families.items()}
    assert set(re.findall(r"`(tap_\w+)[`{]", GUIDE)) == names


def test_every_code_that_a_device_can_be_told_is_documented():
    told = [code.value for codes in (RefusalCode, RejectionCode, ByeCode) for code in codes]
    assert len(told) >= 12 and [code for code in told if f"`{code}`" not in GUIDE] == []
