"""Values kept in memory: how old they may be, and how seldom they are read, with a clock that the test moves."""

import asyncio

import pytest

from coordinator.fresh import Fresh


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class Source:
    reads = 0
    error = None

    def __call__(self):
        self.reads += 1
        if self.error is not None:
            raise self.error
        return self.reads


def test_a_value_is_read_at_most_once_in_a_while_however_many_ask():
    clock, source = Clock(), Source()

    async def main():
        fresh = Fresh(source, seconds=0.25, clock=clock)
        assert await asyncio.gather(*(fresh.recent() for _ in range(1000))) == [1] * 1000
        clock.now += 0.2
        assert await fresh.recent() == 1 and source.reads == 1
        clock.now += 0.05
        assert await asyncio.gather(*(fresh.recent() for _ in range(1000))) == [2] * 1000

    asyncio.run(main())


def test_who_needs_a_later_value_waits_for_the_next_read_with_all_others():
    clock, source = Clock(), Source()

    async def main():
        fresh = Fresh(source, seconds=0.02, clock=clock)
        assert await fresh.recent() == 1
        waiting = asyncio.gather(*(fresh.later() for _ in range(1000)))
        await asyncio.sleep(0)
        assert source.reads == 1  # too soon for another
        clock.now += 0.02
        assert await waiting == [2] * 1000 and source.reads == 2

    asyncio.run(main())


def test_an_error_is_told_to_those_who_ask_and_the_next_read_is_another_try():
    clock, source = Clock(), Source()

    async def main():
        fresh = Fresh(source, seconds=0.0, clock=clock)
        source.error = OSError("gone")
        for _ in range(2):
            with pytest.raises(OSError, match="gone"):
                await fresh.recent()
        source.error = None
        assert await fresh.recent() == 3

    asyncio.run(main())
