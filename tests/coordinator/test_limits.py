"""Buckets, failed attempts and tokens in memory, each with a clock of its own."""

import asyncio

import pytest

from coordinator.admission import Admission, Admitted
from coordinator.device_registry import Enrolment
from coordinator.identity import token_digest
from coordinator.limits import KNOWN_ADDRESSES, Bucket, Failures
from coordinator.tokens import LOOK_SECONDS, Tokens


def test_a_bucket_gives_a_burst_and_then_a_rate():
    bucket = Bucket(3, 0.5, 0.0)
    assert [bucket.take(0.0) for _ in range(4)] == [0.0, 0.0, 0.0, 2.0]
    assert bucket.take(1.0) == 1.0 and bucket.take(2.0) == 0.0 and bucket.take(2.0) == 2.0
    assert [bucket.take(1000.0) for _ in range(4)] == [0.0, 0.0, 0.0, 2.0]


def test_failed_attempts_are_counted_by_address_and_reported_sparingly():
    now = [0.0]
    failures = Failures(a_minute=5, clock=lambda: now[0])
    notes = [failures.note("a") for _ in range(20)]
    assert [note.retry_after > 0 for note in notes] == [False] * 5 + [True] * 15
    assert [note.report for note in notes] == [1] + [0] * 19 and max(note.retry_after for note in notes) <= 60
    assert failures.note("b") == type(notes[0])(0, 1)
    now[0] = 60.0
    assert failures.note("a").report == 20
    for number in range(KNOWN_ADDRESSES + 10):
        failures.note(f"n{number}")
    assert len(failures._addresses) == KNOWN_ADDRESSES and len(failures._limiter.storage.events) <= KNOWN_ADDRESSES


class Stored:
    """A registry that counts how often it is read."""

    def __init__(self, **tokens):
        self.tokens, self.reads = tokens, 0

    def __call__(self):
        self.reads += 1
        return {name: Enrolment(token_digest(token)) for name, token in self.tokens.items()}


async def nobody(void):
    pass


def test_unknown_tokens_cost_one_look_for_all_who_ask():
    async def main():
        stored = Stored(one="t1")
        tokens = Tokens(stored, nobody)
        await tokens.refresh()
        assert await tokens.device_of(token_digest("t1")) == "one" and stored.reads == 1
        stored.tokens["two"] = "t2"
        asked = [tokens.device_of(token_digest(f"wrong{n}")) for n in range(500)]
        found = await asyncio.gather(*asked, tokens.device_of(token_digest("t2")))
        assert found == [None] * 500 + ["two"] and stored.reads == 2
        began = asyncio.get_running_loop().time()
        assert await tokens.device_of("f" * 64) is None  # the next look is a while later
        assert asyncio.get_running_loop().time() - began > LOOK_SECONDS / 2 and stored.reads == 3

    asyncio.run(main())


def test_a_look_that_fails_is_told_to_who_asked_and_the_next_one_works():
    async def main():
        stored = Stored(one="t1")

        def read():
            if stored.reads == 0:
                stored.reads = 1
                raise OSError("gone")
            return stored()

        tokens = Tokens(read, nobody)
        with pytest.raises(OSError):
            await tokens.device_of(token_digest("t1"))
        assert await tokens.device_of(token_digest("t1")) == "one"

    asyncio.run(main())


def test_void_tokens_are_told_with_what_came_in_their_place():
    async def main():
        stored, told = Stored(one="t1", two="t2", three="t3"), []

        async def void(devices):
            told.append(dict(devices))

        tokens = Tokens(stored, void)
        await tokens.refresh()
        stored.tokens = {"one": "new", "three": "t3"}
        await tokens.refresh()
        assert told == [{"one": token_digest("new"), "two": None}]
        assert tokens.devices == {"one", "three"} and not await tokens.is_valid("one", token_digest("t1"))

    asyncio.run(main())


def test_a_valid_token_is_let_through_whatever_its_address_did_and_a_flood_of_it_is_slowed():
    async def main():
        now = [0.0]
        stored = Stored(one="t1")
        tokens = Tokens(stored, nobody)
        await tokens.refresh()
        admission = Admission(tokens, Failures(a_minute=3), clock=lambda: now[0])
        wrong = [await admission.check([], "10.0.0.1") for _ in range(5)]
        assert [(answer.status.value, answer.retry_after > 0) for answer in wrong] == [(401, False)] * 3 + [
            (429, True)
        ] * 2
        assert await admission.check(["Bearer t1"], "10.0.0.1") == Admitted("one", token_digest("t1"))
        assert (await admission.check(["Bearer t1", "Bearer t1"], "10.0.0.2")).status == 401
        answers = [await admission.check(["Bearer t1"], "10.0.0.1") for _ in range(60)]
        assert sum(isinstance(answer, Admitted) for answer in answers) == 59
        assert (answers[-1].status, answers[-1].retry_after) == (429, 1)
        now[0] = 1.0
        assert isinstance(await admission.check(["Bearer t1"], "10.0.0.1"), Admitted)

    asyncio.run(main())
