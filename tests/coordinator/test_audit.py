"""The audit log: every act leaves one row in its own transaction, with who did it."""

import getpass
import json

import pytest

from coordinator import audit
from coordinator import store as store_module
from coordinator.database import connect
from coordinator.store import Store
from coordinator.versions import Version
from tap_core.errors import UsageError


@pytest.fixture
def store(tmp_path):
    made = Store(connect(f"sqlite:///{tmp_path / 'x.db'}"), "f")
    made.begin("1" * 64, {"encoder/image": Version(0, "0" * 64, 1)}, "i" * 32, 1.0)
    yield made
    made.close()


def acts(store):
    return [(entry.at, entry.actor, entry.act, entry.subject) for entry in audit.entries(store.engine, "f")]


def test_each_act_is_recorded_once_with_its_actor(store):
    store.begin("1" * 64, {}, "i" * 32, 2.0)  # it has begun already
    store.registry.enroll("one", "1" * 64, 3.0, actor="user ann")
    store.registry.enroll("one", "2" * 64, 4.0, renew=True, actor="user ben")
    store.registry.revoke("one", 5.0, actor="operator cleo")
    store.registry.enroll("one", "3" * 64, 6.0, code_expires_at=99.0)
    store.set_paused("why not", 7.0)
    store.set_paused(None, 8.0, actor="user ann")
    store.request_stop(9.0, actor="user ann")
    store.clear_stop()
    assert acts(store) == [
        (1.0, "coordinator", "begin", "f"),
        (3.0, "user ann", "enroll", "one"),
        (4.0, "user ben", "renew", "one"),
        (5.0, "operator cleo", "revoke", "one"),
        (6.0, "coordinator", "enroll", "one"),
        (7.0, "coordinator", "pause", ""),
        (8.0, "user ann", "resume", ""),
        (9.0, "user ann", "stop", ""),
    ]
    details = {entry.act: entry.detail for entry in audit.entries(store.engine, "f")}
    assert details["pause"] == "why not" and details["enroll"] == "with a code"
    assert [entry.act for entry in audit.entries(store.engine, "f", 2)] == ["resume", "stop"]


def test_what_is_refused_leaves_no_row(store):
    store.registry.enroll("one", "1" * 64, 3.0)
    before = acts(store)
    with pytest.raises(UsageError):
        store.registry.enroll("one", "2" * 64, 4.0)
    with pytest.raises(UsageError):
        store.registry.revoke("two", 4.0)
    assert acts(store) == before


def test_a_row_and_its_act_are_one_transaction(store, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("the power is cut")

    for module in (audit, store_module):
        monkeypatch.setattr(module, "record", fail)
    for act in (
        lambda: store.registry.enroll("one", "1" * 64, 3.0),
        lambda: store.set_paused("x", 3.0),
        lambda: store.request_stop(3.0),
    ):
        with pytest.raises(RuntimeError):
            act()
    assert store.registry.all() == [] and store.control() == (None, False)


def test_the_command_shows_who_did_what(federation, command):
    directory, _ = federation()
    command("enroll", "one", directory, "--expires", "1d")
    command("revoke", "one", directory)
    shown = json.loads(command("audit", directory, "--json").stdout)
    who = f"user {getpass.getuser()}"
    assert [(row["actor"], row["act"], row["subject"]) for row in shown] == [
        (who, "enroll", "one"),
        (who, "revoke", "one"),
    ]
    (line,) = command("audit", directory, "--last", 1).stdout.splitlines()
    assert line.endswith(f"UTC  {who}: revoke one")
    assert "(with a token that expires 2" in command("audit", directory).stdout
