"""Settings: precedence, limits, and no misspelling that passes for a default."""

import pytest

from coordinator.config import ServiceSettings, StatePaths, load_settings
from coordinator.identity import bearer_token, new_token, same_digest, token_digest
from tap_core.errors import UsageError


def test_the_command_line_wins_over_the_environment_over_the_default(monkeypatch):
    monkeypatch.setenv("TAP_PORT", "9000")
    assert load_settings({}).port == 9000
    assert load_settings({"port": 9001}).port == 9001
    assert load_settings({"port": None}).port == 9000
    monkeypatch.delenv("TAP_PORT")
    assert load_settings({}).port == 8710


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("TAP_PROT", "1", "did you mean TAP_PORT?"),
        ("TAP_HTTPPORT", "1", "did you mean TAP_HTTP_PORT?"),
        ("TAP_QQQQQQQQ", "1", "known: TAP_DATABASE"),
        ("TAP_PORT", "many", "port"),
        ("TAP_LOG_LEVEL", "loud", "log_level"),
    ],
)
def test_a_wrong_variable_is_an_error_in_one_line(monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError) as error:
        load_settings({})
    assert message in str(error.value) and "\n" not in str(error.value)


def test_variables_of_others_are_left_alone(monkeypatch):
    monkeypatch.setenv("TAPE_PORT", "1")
    assert load_settings({}).port == 8710


def test_every_setting_has_its_help():
    assert all(field.description for field in ServiceSettings.model_fields.values())


def test_the_database_is_in_the_state_directory_unless_chosen(tmp_path):
    assert StatePaths(tmp_path).database_url("") == f"sqlite:///{tmp_path}/state/coordinator.db"
    assert StatePaths(tmp_path).database_url("postgresql://x/y") == "postgresql://x/y"


def test_tokens_differ_and_are_known_by_their_hash():
    one, two = new_token(), new_token()
    assert one != two and len(token_digest(one)) == 64
    assert same_digest(token_digest(one), token_digest(one)) and not same_digest(token_digest(one), token_digest(two))


@pytest.mark.parametrize(
    ("header", "token"),
    [
        (None, None),
        ("", None),
        ("Bearer", None),
        ("Bearer x", "x"),
        ("bearer  x ", "x"),
        ("Basic x", None),
        ("Bearer é\udcff", "é\udcff"),
    ],
)
def test_bearer_tokens(header, token):
    assert bearer_token(header) == token
    assert token is None or token_digest(token)
