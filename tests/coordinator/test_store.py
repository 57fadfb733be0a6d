"""What the store keeps, and what it refuses; the schema of a new database is the one of the tables."""

import sqlite3
import threading

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, null, text
from sqlalchemy.exc import IntegrityError

from coordinator.database import NEWEST, connect
from coordinator.device_registry import MAX_EXAMPLES, Enrolment
from coordinator.rounds import History
from coordinator.schema import component_versions, devices, metadata
from coordinator.store import Store
from coordinator.versions import Contribution, Version
from tap_core.errors import UsageError

ZERO = {"encoder/image": Version(0, "a" * 64, 10), "decoder/x": Version(0, "b" * 64, 20)}
GIVEN = {"encoder/image": Contribution("c" * 64, 10, 5), "decoder/x": Contribution("d" * 64, 20, 7)}


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'c.db'}"
    return request.getfixturevalue("postgres")()


@pytest.fixture
def store(url):
    store = Store(connect(url), "fed")
    store.begin("1" * 64, ZERO, "i" * 32, 1.0)
    yield store
    store.close()


def commit(store, number, versions, attempt=0, away=(), late=()):
    who = {"contributors": ["a"], "missing": ["b"], "away": away, "late": late}
    store.commit_round(number, attempt, versions, **who, at=9.0)


def join(store, *names):
    for name in names:
        store.registry.enroll(name, name * 64, 1.0)
        store.registry.register(name, {"x": 5}, ["decoder/x"], 2.0)


def test_the_migrated_schema_is_the_one_of_the_tables(url):
    engine = connect(url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


def test_the_newest_step_is_the_last_of_the_migrations():
    script = Config()
    script.set_main_option("script_location", "coordinator:migrations")
    assert ScriptDirectory.from_config(script).get_current_head() == NEWEST


def test_several_processes_may_open_a_new_database_at_once(url):
    errors = []

    def open_it():
        try:
            connect(url).dispose()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_an_opening_waits_while_another_process_sets_up_the_file(tmp_path):
    """SQLite answers at once, whatever the timeout, when two connections turn a new file to the write-ahead log."""
    first = sqlite3.connect(tmp_path / "c.db", isolation_level=None, check_same_thread=False)
    first.execute("CREATE TABLE other (x)")
    first.execute("BEGIN IMMEDIATE")
    release = threading.Timer(0.5, first.close)
    release.start()
    engine = connect(f"sqlite:///{tmp_path}/c.db")
    with engine.connect() as db:
        assert db.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
    release.join()
    engine.dispose()


def test_commits_are_durable_and_logged_ahead(store):
    settings = {"PRAGMA journal_mode": "wal", "PRAGMA synchronous": 2}
    if store.engine.dialect.name == "postgresql":
        settings = {"SHOW synchronous_commit": "on", "SHOW fsync": "on"}
    with store.engine.connect() as db:
        assert {query: db.exec_driver_sql(query).scalar_one() for query in settings} == settings


def test_a_federation_begins_once_and_keeps_its_manifest(store):
    store.begin("1" * 64, {"encoder/image": Version(0, "f" * 64, 1)}, "j" * 32, 2.0)
    assert store.versions() == ZERO
    with pytest.raises(UsageError, match=r"manifest\.json is not the one"):
        store.begin("2" * 64, ZERO, "i" * 32, 2.0)


def test_what_has_not_begun_cannot_be_controlled(url):
    with pytest.raises(UsageError, match="has not begun"):
        Store(connect(url), "other").set_paused("why", 5.0)


def tokens_of(store):
    return {device: enrolment.token_sha256 for device, enrolment in store.registry.enrolments(9.0).items()}


def test_devices_are_enrolled_found_by_token_and_revoked(store):
    store.registry.enroll("a", "1" * 64, 1.0)
    assert tokens_of(store) == {"a": "1" * 64}
    with pytest.raises(UsageError, match="enrolled already"):
        store.registry.enroll("a", "2" * 64, 2.0)
    store.registry.enroll("a", "2" * 64, 2.0, renew=True)
    assert tokens_of(store) == {"a": "2" * 64}
    store.registry.revoke("a", 3.0)
    assert tokens_of(store) == {}
    with pytest.raises(UsageError, match="revoked already"):
        store.registry.revoke("a", 4.0)
    with pytest.raises(UsageError, match="not enrolled"):
        store.registry.revoke("c", 4.0)
    with pytest.raises(UsageError, match="never enrolled"):
        store.registry.enroll("c", "9" * 64, 4.0, renew=True)
    store.registry.enroll("a", "3" * 64, 5.0)
    assert tokens_of(store) == {"a": "3" * 64}


def test_a_tokens_bounds_are_the_default_until_given_and_stay_when_it_is_renewed(store):
    enroll, enrolments = store.registry.enroll, store.registry.enrolments
    enroll("a", "1" * 64, 1.0)
    assert enrolments(9.0) == {"a": Enrolment("1" * 64, None, MAX_EXAMPLES)} and MAX_EXAMPLES == 1_000_000
    enroll("a", "2" * 64, 2.0, renew=True, allowed_tasks=["senses", "kinds"])
    assert enrolments(9.0) == {"a": Enrolment("2" * 64, ("kinds", "senses"), MAX_EXAMPLES)}
    enroll("a", "3" * 64, 3.0, renew=True, max_examples=5)
    enroll("a", "4" * 64, 4.0, renew=True)
    assert enrolments(9.0) == {"a": Enrolment("4" * 64, ("kinds", "senses"), 5)}
    store.registry.revoke("a", 5.0)
    assert enrolments(9.0) == {}
    enroll("a", "5" * 64, 6.0)
    assert enrolments(9.0) == {"a": Enrolment("5" * 64, None, MAX_EXAMPLES)}


def test_a_device_enrolled_before_there_were_bounds_has_the_default(store):
    store.registry.enroll("a", "1" * 64, 1.0)
    with store.engine.begin() as db:
        db.execute(devices.update().values(max_examples=None, allowed_tasks=null()))
    assert store.registry.enrolments(9.0) == {"a": Enrolment("1" * 64, None, MAX_EXAMPLES)}


def test_norms_are_those_of_the_last_versions_that_count(store):
    assert store.norms() == {}
    for number in range(12):
        store.open_round(number, 0, ["a"], 3.0)
        digest = f"{number:064x}"
        commit(store, number, {"decoder/x": Version(number + 1, digest, 20, 1, None if number == 4 else number / 2)})
    assert store.norms() == {"decoder/x": tuple((n, n / 2) for n in (1, 2, 3, 5, 6, 7, 8, 9, 10, 11))}
    table = component_versions
    with store.engine.begin() as db:
        db.execute(table.update().where(table.c.version == 12).values(withdrawn_at=1.0))
    assert [number for number, _ in store.norms()["decoder/x"]] == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10]


def test_two_federations_do_not_see_each_other(store, url):
    other = Store(connect(url), "other")
    other.begin("9" * 64, {}, "i" * 32, 1.0)
    join(store, "a")
    store.open_round(0, 0, ["a"], 3.0)
    assert other.registry.all() == [] and other.attempts() == [] and other.versions() == {}
    assert tokens_of(other) == {}


def test_an_update_counts_once(store):
    store.add_update(0, "a", GIVEN, 1.0)
    store.add_update(0, "b", GIVEN, 1.0)
    changed = {"decoder/x": Contribution("e" * 64, 20, 99)}
    store.add_update(0, "a", changed, 2.0)
    assert store.updates(0) == {"a": changed, "b": GIVEN} and store.updates(1) == {}


def test_history_follows_every_step(store):
    assert store.history() == History()
    join(store, "a", "b")
    members = frozenset("ab")
    assert store.history() == History(members=members)
    store.open_round(0, 0, ["a", "b"], 3.0)
    store.add_update(0, "a", GIVEN, 4.0)
    assert store.history() == History(0, 0, ("a", "b"), frozenset("a"), members)
    store.fail_round(0, 0, ["b"], ["b"], "too few", 5.0, late=["b"])
    absent = {"missed": {"b": 1}, "absent": frozenset("b")}
    assert store.history() == History(0, 1, None, frozenset("a"), members, frozenset("b"), **absent)
    store.registry.register("b", {"x": 5}, ["decoder/x"], 6.0)
    store.open_round(0, 1, ["b"], 6.0)
    assert store.history() == History(0, 1, ("b",), frozenset("a"), members, **absent)
    commit(store, 0, {"decoder/x": Version(1, "d" * 64, 20, 1)}, attempt=1, late=["b"])
    assert store.history() == History(1, 0, None, frozenset(), members, missed={"b": 2})
    store.set_paused("why", 5.0)
    store.registry.complete("b", 7.0)
    store.registry.revoke("a", 8.0)
    paused = {"done": frozenset("b"), "paused": "why", "missed": {"b": 2}}
    assert store.history() == History(1, 0, None, frozenset(), frozenset("b"), **paused)


def test_what_is_held_against_a_device_is_kept_until_an_update_or_a_new_token(store):
    join(store, "a", "b")
    store.open_round(0, 0, ["a", "b"], 3.0)
    store.excuse(0, 0, "b")
    store.strike(0, 0, "a")
    store.strike(0, None, "a")
    history = store.history()
    assert history.excused == {"a": "rejected", "b": "declined"} and store.attempts()[0].missing == ("b", "a")
    assert (history.strikes, history.away, history.missed) == ({"a": 2}, {"a"}, {})
    store.registry.returned("a")
    assert store.history().away == set() and store.history().strikes == {"a": 2}
    store.fail_round(0, 0, ["a", "b"], [], "too few", 5.0, late=["b"])
    assert store.history().missed == {"b": 1} and store.history().excused == {}
    store.registry.enroll("b", "9" * 64, 6.0, renew=True)
    store.strike(0, None, "b")
    store.add_update(0, "b", GIVEN, 7.0)
    store.registry.enroll("a", "8" * 64, 8.0, renew=True)
    history = store.history()
    assert (history.strikes, history.away, history.missed) == ({}, set(), {}) and history.absent == {"a", "b"}


def test_a_commit_is_all_or_nothing(store):
    store.open_round(0, 0, ["a"], 1.0)
    with pytest.raises(IntegrityError):
        commit(store, 0, {"decoder/x": Version(1, "d" * 64, 20), "encoder/image": Version(0, "e" * 64, 10)})
    assert store.versions() == ZERO
    assert store.attempts()[0].status == "open"


def test_attempts_tell_who_and_why(store):
    store.open_round(0, 0, ["a", "b"], 1.0)
    store.fail_round(0, 0, ["b"], [], "no update from b", 2.0)
    store.open_round(0, 1, ["a", "b"], 2.0)
    commit(store, 0, {}, attempt=1)
    first, second = store.attempts()
    assert (first.status, first.missing, first.why) == ("failed", ("b",), "no update from b")
    assert (second.status, second.contributors, second.missing) == ("committed", ("a",), ("b",))
    assert store.attempts(1) == [second]


def test_the_newest_versions_and_the_updates_that_are_not_aggregated_are_kept(store):
    for number in range(3):
        store.open_round(number, 0, ["a"], 1.0)
        store.add_update(number, "a", {"decoder/x": Contribution(str(number) * 64, 20, 1)}, 2.0)
        commit(store, number, {"decoder/x": Version(number + 1, "cde"[number] * 64, 20)})
    store.add_update(3, "a", {"decoder/x": Contribution("3" * 64, 20, 1)}, 2.0)
    assert store.referenced(2) == {"a" * 64, "d" * 64, "e" * 64, "3" * 64}
    assert store.referenced(3) == {"a" * 64, "c" * 64, "d" * 64, "e" * 64, "3" * 64}
    assert [version.version for version in store.kept_versions(2)["decoder/x"]] == [3, 2]
    assert store.updates(2) == {"a": {}} and store.updates(3)["a"]["decoder/x"].digest == "3" * 64


def test_moments_are_kept_with_their_version_and_go_back_with_it(store):
    for number in range(3):
        store.open_round(number, 0, ["a"], 1.0)
        version = Version(number + 1, "cde"[number] * 64, 20, moments="123"[number] * 64)
        commit(store, number, {"decoder/x": version})
    assert store.versions()["decoder/x"].moments == "3" * 64
    assert store.referenced(2) == {"a" * 64, "d" * 64, "e" * 64, "2" * 64, "3" * 64}
    store.go_back({"decoder/x": 2}, act="rollback", why="", actor="test", spend=None, at=9.0)
    assert store.versions()["decoder/x"] == Version(2, "d" * 64, 20, moments="2" * 64)


def test_what_was_cleared_away_does_not_come_back_when_newer_versions_are_withdrawn(store):
    def kept(number):
        return [version.version for version in store.kept_versions(number)["decoder/x"]]

    def back(to, at):
        store.go_back({"decoder/x": to}, act="rollback", why="", actor="test", spend=None, at=at)

    for number in range(6):
        store.open_round(number, 0, ["a"], 1.0)
        commit(store, number, {"decoder/x": Version(number + 1, f"{number}" * 64, 20)})
    assert kept(4) == [6, 5, 4, 3]
    back(4, 10.0)
    assert kept(4) == [4, 3] and kept(5) == [4, 3, 2] and kept(1) == [4]
    commit(store, 6, {"decoder/x": Version(7, "f" * 64, 20)})
    assert kept(4) == [7, 4, 3] and kept(3) == [7, 4] and kept(2) == [7]
    back(3, 11.0)
    assert kept(4) == [3]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("nonsense", "not a usable URL"),
        ("oracle+nothing://x", "not a usable URL"),
        ("sqlite:////nowhere/at/all.db", "cannot open database"),
        ("sqlite:///{tmp}/text.db", "cannot open database"),
    ],
)
def test_a_database_that_cannot_be_opened_is_one_line(tmp_path, bad, message):
    (tmp_path / "text.db").write_text("this is no database " * 100)
    with pytest.raises(UsageError, match=message) as error:
        connect(bad.format(tmp=tmp_path))
    assert "\n" not in str(error.value)


def test_a_password_is_not_shown(tmp_path):
    with pytest.raises(UsageError) as error:
        connect("oracle+nothing://user:secret@host/db")
    assert "secret" not in str(error.value)


def test_what_stays_at_home_is_known_of_the_last_round_that_opened(store):
    assert store.at_home() is None
    store.open_round(0, 0, ["a"], 1.0, {"encoder/text", "decoder/x"})
    assert store.at_home() == (0, frozenset({"encoder/text", "decoder/x"}))
    store.open_round(0, 0, ["a"], 2.0, {"decoder/x"})  # the same attempt once more changes nothing
    assert store.at_home() == (0, frozenset({"encoder/text", "decoder/x"}))
    store.open_round(1, 0, ["a"], 3.0)
    assert store.at_home() == (1, frozenset())
    store.go_back({"encoder/image": 0}, act="rollback", why="why", actor="a", spend=(2, 1), at=4.0)
    assert store.at_home() == (1, frozenset())  # a round that was used up before it opened says nothing


def test_an_update_may_hold_no_component(store):
    store.open_round(0, 0, ["a"], 1.0)
    store.add_update(0, "a", {}, 2.0)
    assert store.updates(0) == {"a": {}} and store.history().reported == {"a"}


def test_in_the_rounds_of_an_older_database_nothing_stays_at_home(url):
    engine, script = create_engine(url), Config()
    script.set_main_option("script_location", "coordinator:migrations")
    row = {"federation": "f", "round": 4, "attempt": 1, "status": "open", "opened_at": 1.0, "why": ""}
    row |= {"sampled": "[]", "contributors": "[]", "missing": "[]"}
    with engine.begin() as connection:
        script.attributes["connection"] = connection
        command.upgrade(script, "0002")
        named = f"({', '.join(row)}) VALUES ({', '.join(f':{name}' for name in row)})"
        connection.execute(text(f"INSERT INTO rounds {named}"), row)
    engine.dispose()
    assert Store(connect(url), "f").at_home() == (4, frozenset())
