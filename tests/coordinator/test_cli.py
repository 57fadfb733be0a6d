"""The commands that need no running service: what they print, what they refuse, and in how many lines."""

import json
import stat

import pytest

from coordinator.identity import token_digest

HELP = ["serve", "enroll", "revoke", "devices", "status", "rounds", "audit", "pause", "resume", "stop"]


@pytest.mark.parametrize("name", HELP)
def test_every_command_has_help_with_an_example(command, name):
    text = command(name, "--help").stdout
    assert f"Example: tap-coordinator {name}" in " ".join(text.split())


def test_enroll_prints_the_token_once_and_stores_its_hash(federation, command):
    directory, _ = federation()
    token = command("enroll", "one", directory).stdout.strip()
    assert token.startswith("tap_") and len(token) > 40
    database = (directory / "state" / "coordinator.db").read_bytes()
    wal = directory / "state" / "coordinator.db-wal"
    database += wal.read_bytes() if wal.exists() else b""
    assert token.encode() not in database and token_digest(token).encode() in database
    again = command("enroll", "one", directory, check=False)
    assert again.returncode == 2 and "--renew" in again.stderr
    assert command("enroll", "one", directory, "--renew").stdout.strip() != token


def test_options_of_enroll_that_would_do_something_else_are_refused(federation, command):
    directory, _ = federation()
    no_code = command("enroll", "one", directory, "--code-expires", "2h", check=False)
    assert no_code.returncode == 2 and "add --code" in no_code.stderr and not no_code.stdout
    misspelt = command("enroll", "one", directory, "--renew", check=False)
    assert misspelt.returncode == 2 and "never enrolled" in misspelt.stderr
    assert command("devices", directory).stdout == ""


def test_a_token_file_is_private_and_is_left_alone_by_a_refused_enroll(federation, command, tmp_path):
    directory, _ = federation()
    path = tmp_path / "one.token"
    assert str(path) in command("enroll", "one", directory, "--token-file", path).stdout
    before = path.read_text()
    assert before.startswith("tap_") and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert command("enroll", "one", directory, "--token-file", path, check=False).returncode == 2
    assert path.read_text() == before
    assert [entry.name for entry in tmp_path.iterdir() if "token" in entry.name] == ["one.token"]


def test_enroll_binds_a_token_to_tasks_and_to_a_number_of_examples(federation, command):
    directory, _ = federation()
    command("enroll", "one", directory, "--task", "kinds", "--task", "senses", "--max-examples", 7)
    command("enroll", "two", directory)
    one, two = json.loads(command("devices", directory, "--json").stdout)
    assert (one["allowed_tasks"], one["max_examples"]) == (["kinds", "senses"], 7)
    assert (two["allowed_tasks"], two["max_examples"]) == (None, 1_000_000)
    wrong = command("enroll", "three", directory, "--task", "kind", check=False)
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1
    assert "no task 'kind'; did you mean 'kinds'?" in wrong.stderr
    assert len(json.loads(command("devices", directory, "--json").stdout)) == 2


def test_devices_and_revoke(federation, command):
    directory, _ = federation()
    command("enroll", "one", directory)
    command("enroll", "two", directory)
    command("revoke", "one", directory)
    facts = json.loads(command("devices", directory, "--json").stdout)
    assert [(row["device"], row["state"]) for row in facts] == [("one", "revoked"), ("two", "enrolled")]
    assert not any("sha256" in key for row in facts for key in row)
    assert command("revoke", "one", directory, check=False).returncode == 2


def test_status_and_rounds_before_the_first_serve(federation, command):
    directory, _ = federation()
    done = command("status", directory, check=False)
    assert done.returncode == 2 and "tap-coordinator serve" in done.stderr
    assert json.loads(command("rounds", directory, "--json").stdout) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("enroll", "Bad Name", "{dir}"), "is no device name"),
        (("enroll", "one\n", "{dir}"), "is no device name"),
        (("enroll", "one", "{dir}", "--token-file", "{dir}/no/such/file"), "cannot write"),
        (("devices", "{dir}/nothing"), "create it with: tap init"),
        (("serve", "{dir}", "--port", "99999"), "less than or equal to 65535"),
        (("serve", "{dir}", "--database", "nonsense"), "not a usable URL"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(federation, command, arguments, message):
    directory, _ = federation()
    done = command(*(part.format(dir=directory) for part in arguments), check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1


def test_a_misspelt_variable_is_an_error_that_names_the_nearest(federation, command):
    directory, _ = federation()
    done = command("devices", directory, check=False, env={"TAP_DATABSE": "sqlite://"})
    assert done.returncode == 2 and "TAP_DATABSE" in done.stderr and "did you mean TAP_DATABASE?" in done.stderr


def test_a_damaged_or_missing_component_is_refused_before_anything_is_recorded(federation, command):
    directory, _ = federation()
    files = sorted((directory / "components").iterdir())
    files[0].write_bytes(files[0].read_bytes()[:-1] + b"\0")
    done = command("serve", directory, "--port", 0, "--http-port", 0, check=False)
    assert done.returncode == 2 and "is damaged" in done.stderr and "tap init" in done.stderr
    files[0].unlink()
    done = command("serve", directory, "--port", 0, "--http-port", 0, check=False)
    assert done.returncode == 2 and "no such file" in done.stderr
    assert "has not begun" in command("status", directory, check=False).stderr
