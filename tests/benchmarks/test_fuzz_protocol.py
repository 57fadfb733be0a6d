"""The fuzz target works without a fuzzer: it stands random inputs, gets everywhere, and finds a planted mistake."""

import random
import subprocess
import sys
from pathlib import Path

import fuzz_protocol
import pytest
from fuzz_protocol import TYPES, Choices, Course, seeds, test_one_input

from protocol.codec import decode
from protocol.session import Session
from protocol.states import TABLE

TARGET = Path(__file__).parents[2] / "benchmarks" / "fuzz_protocol.py"


def random_inputs(count, longest):
    chance = random.Random(0)
    return [chance.randbytes(chance.randrange(1, longest)) for _ in range(count)]


def test_seeds_and_random_inputs_do_not_crash():
    for data in [*seeds(), *random_inputs(1000, 400), b""]:
        test_one_input(data)


def test_every_type_of_message_is_among_the_seeds():
    assert {decode(data[1:]).type for data in seeds() if data[0] == 0} == set(TYPES)


@pytest.mark.parametrize("role", ["device", "coordinator"])
def test_courses_come_to_every_state_and_finish_transfers(role):
    visited, complete = set(), 0

    class Watched(Course):
        def step(self):
            nonlocal complete
            before = len(self.partial)
            super().step()
            visited.add(self.session.state)
            complete += len(self.partial) < before and self.session.state not in ("closed", "opening")

    for data in random_inputs(400, 3000):
        Watched(role, Choices(data)).run()
    assert visited == set(TABLE[role])
    assert complete > 0


def test_an_error_of_another_kind_is_a_crash(monkeypatch):
    def receive(self, data):
        raise KeyError("a mistake")

    monkeypatch.setattr(Session, "receive", receive)
    with pytest.raises(KeyError):
        Course("device", Choices(bytes(range(32)))).run()


def test_a_decoder_that_lets_its_own_errors_out_is_a_crash(monkeypatch):
    def fail(data):
        raise ValueError("a mistake")

    monkeypatch.setattr(fuzz_protocol, "decode", fail)
    with pytest.raises(ValueError):
        test_one_input(b"\0\xc0")


def test_an_input_can_be_replayed(tmp_path):
    (tmp_path / "input").write_bytes(seeds()[0])
    command = [sys.executable, str(TARGET), "--replay", str(tmp_path / "input")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "no crash\n"), done.stderr
