"""Codes and tokens that a device replaces by itself: what is recorded, and when it is not."""

import pytest

from coordinator import audit
from coordinator.credentials import Conflict, Issued, Void, exchange, known, rotate
from coordinator.database import connect
from coordinator.store import Store

CODE, ONE, TWO, THREE = "c" * 64, "1" * 64, "2" * 64, "3" * 64


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request, tmp_path):
    url = f"sqlite:///{tmp_path / 'x.db'}" if request.param == "sqlite" else request.getfixturevalue("postgres")()
    made = Store(connect(url), "f")
    yield made
    made.close()


def invite(store, device="one", code=CODE, at=100.0, **options):
    store.registry.enroll(device, code, at, code_expires_at=at + 50, **options)


def tokens(store, at):
    return {device: enrolment.token_sha256 for device, enrolment in store.registry.enrolments(at).items()}


def where(store):
    return store.engine, store.federation


def test_a_code_is_no_token_and_becomes_one_by_the_exchange(store):
    invite(store)
    assert tokens(store, 101.0) == {}
    assert known(*where(store))[CODE] == "one"
    assert exchange(*where(store), CODE, ONE, 110.0) == Issued("one", None)
    assert tokens(store, 111.0) == {"one": ONE}
    assert CODE not in tokens(store, 111.0).values()


def test_the_same_code_with_the_same_token_is_answered_again_and_with_another_it_is_refused(store):
    invite(store)
    first = exchange(*where(store), CODE, ONE, 110.0)
    assert exchange(*where(store), CODE, ONE, 9999.0) == first  # also when the code has expired: it is used
    with pytest.raises(Conflict, match="used already"):
        exchange(*where(store), CODE, TWO, 111.0)
    assert tokens(store, 112.0) == {"one": ONE}
    assert [entry.act for entry in audit.entries(*where(store))] == ["enroll", "exchange"]


def test_a_code_is_void_when_it_expires_and_when_its_device_is_revoked_or_enrolled_anew(store):
    invite(store)
    with pytest.raises(Void):
        exchange(*where(store), CODE, ONE, 150.0)
    store.registry.revoke("one", 120.0)
    with pytest.raises(Void):
        exchange(*where(store), CODE, ONE, 121.0)
    store.registry.enroll("one", ONE, 122.0)
    with pytest.raises(Void):
        exchange(*where(store), CODE, TWO, 123.0)
    assert CODE not in known(*where(store)) and tokens(store, 124.0) == {"one": ONE}


def test_a_code_for_another_device_is_kept_for_that_one(store):
    invite(store)
    with pytest.raises(Conflict, match="the code is for device 'one' and this one is 'two'"):
        exchange(*where(store), CODE, ONE, 110.0, device="two")
    assert exchange(*where(store), CODE, ONE, 111.0, device="one").device == "one"


def test_a_new_code_voids_the_token_at_once_and_keeps_what_the_device_has_done(store):
    store.registry.enroll("one", ONE, 100.0)
    store.registry.register("one", {"x": 5}, ["decoder/x"], 101.0)
    invite(store, at=200.0, renew=True)
    assert tokens(store, 201.0) == {}
    exchange(*where(store), CODE, TWO, 210.0)
    (device,) = store.registry.all()
    assert (device.joined_at, device.tasks, device.owned) == (101.0, {"x": 5}, ("decoder/x",))


def test_a_rotation_replaces_the_token_once_and_may_be_repeated(store):
    store.registry.enroll("one", ONE, 100.0)
    store.registry.register("one", {"x": 5}, ["decoder/x"], 101.0)
    assert rotate(*where(store), ONE, TWO, 200.0) == Issued("one", None)
    with pytest.raises(Void):
        rotate(*where(store), ONE, THREE, 201.0)
    assert rotate(*where(store), TWO, TWO, 202.0) == Issued("one", None)
    assert tokens(store, 203.0) == {"one": TWO}
    (device,) = store.registry.all()
    assert (device.joined_at, device.tasks) == (101.0, {"x": 5})
    acts = [(entry.actor, entry.act, entry.subject) for entry in audit.entries(*where(store))]
    assert acts == [("coordinator", "enroll", "one"), ("device one", "rotate", "one")]


def test_a_rotation_renews_the_expiry_by_the_span_that_it_had(store):
    store.registry.enroll("one", ONE, 100.0, expires_at=190.0)
    assert rotate(*where(store), ONE, TWO, 150.0).expires_at == 240.0
    assert rotate(*where(store), TWO, THREE, 239.0).expires_at == 329.0
    with pytest.raises(Void):
        rotate(*where(store), THREE, ONE, 329.0)
    assert tokens(store, 329.0) == {}


def test_the_expiry_of_a_token_made_by_a_code_counts_from_the_exchange(store):
    invite(store, expires_at=190.0)
    assert exchange(*where(store), CODE, ONE, 140.0) == Issued("one", 230.0)
    with pytest.raises(Void):
        exchange(*where(store), CODE, ONE, 230.0)


def test_a_token_of_another_device_cannot_be_taken(store):
    store.registry.enroll("one", ONE, 100.0)
    store.registry.enroll("two", TWO, 100.0)
    with pytest.raises(Conflict, match="another device has this very token"):
        rotate(*where(store), ONE, TWO, 101.0)
    invite(store, "three")
    with pytest.raises(Conflict, match="another device has this very token"):
        exchange(*where(store), CODE, TWO, 101.0)
    assert tokens(store, 102.0) == {"one": ONE, "two": TWO}


def test_a_revoked_device_cannot_rotate(store):
    store.registry.enroll("one", ONE, 100.0)
    store.registry.revoke("one", 101.0)
    with pytest.raises(Void):
        rotate(*where(store), ONE, TWO, 102.0)
    assert known(*where(store)) == {}
