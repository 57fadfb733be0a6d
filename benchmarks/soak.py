"""Everything at once, for minutes: churn, kills, slow and hostile peers; the result is a quiet run's, to the bit.

    python benchmarks/soak.py                                    # 20 minutes, and a few for the quiet run after them
    python benchmarks/soak.py --minutes 1 --seed 3 --json soak.json
    python benchmarks/soak.py --without huge --without thief     # see --help for the names of the acts

A real coordinator runs as `tap-coordinator serve` in a process of its own, over loopback sockets, and is killed
(SIGKILL) at random moments and started again on the same directory. Five honest devices (`soak_peers.py`), a process
each, take part in every round: their connections are cut at random and in the middle of transfers, some send and read
slowly, all are killed now and then and go on with what they had written, and in a run of five minutes or more one is
kept away for longer than a round lasts. A further process is hostile (`hostile_peers.py`): connections without a token,
without a handshake, without a hello; and enrolled members that send garbage, claim too much, flood, steal, abandon.
The run begins and ends with a calm stretch, with the honest ones alone. Then the operator pauses the federation, the
open round closes, and the service is stopped. A second, undisturbed federation with the same components and the honest
devices alone then does exactly as many rounds as the first has committed, and the two are compared.

**Why the comparison is exact.** `clients_per_round` covers every member, hostile ones too, so every attempt samples
every honest device that is there. `min_updates` is the number of honest devices, and no hostile member ever delivers a
whole update that may be accepted; so a round can only close with exactly the honest devices in it, whatever else
happens, and an attempt that lacks one fails and changes nothing. What a device sends is a function of its name, the
round and the bytes that it received (`soak_peers.trained`), and the mean is summed in the order of the names. By
induction each round's components depend on the round before alone: not on time, order, attempts, kills or lives. A
single wrong bit changes every later value, so it cannot be averaged away. That a hostile member never counted is
checked beside it, from the list of rounds.

What breaks the run: a different bit; a round that counted a hostile member or lacked an honest one; a failed attempt
that was not to be expected (deadlines are many times what a round takes; a device that is kept away on purpose makes
its rounds fail); a coordinator that ended by itself or wrote a traceback; a stall of ten deadlines; an honest device
that was refused or heard of a mistake; memory, descriptors or disk that grow. Failures are printed and the exit code
is 1.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hostile_peers import MEMBER_ACTS, OUTSIDER_ACTS, Campaign, member_name
from round_overhead import peak_megabytes
from soak_facts import Absence, Sample, differences, disk_usage, kill_times, values_in
from soak_ground import MANY_ROUNDS, OWNED, PATIENCE, Ground, Settings, run_undisturbed
from soak_report import MORE_DESCRIPTORS, Seen, judge, table

from coordinator.blobs import BlobError
from coordinator.config import StatePaths
from tap_core.seeds import derive_seed

REJECTED = ("bad_update", "huge")
"""The acts that are rejected each time, and so need new tokens more often than others."""
SETTLING = 15.0
"""Seconds after which connections that are gone must have given back their descriptors."""


class Soak:
    """The disturbed run: a clock, a list of what is to happen when, and what was seen."""

    def __init__(self, ground: Ground, settings: Settings):
        self.ground, self.settings, self.seen = ground, settings, Seen()
        self.chance = random.Random(derive_seed(settings.seed, "soak"))
        self.due: list[tuple[float, str, Callable[[], None]]] = []
        self.away: dict[str, float] = {}
        self.killed: dict[str, float] = {}

    def run(self) -> Seen:
        """From the first start of the coordinator to its stop."""
        ground, settings = self.ground, self.settings
        self.serve()
        ground.start_honest(disturbed=True)
        if not self._until(lambda: self._committed() > 0, PATIENCE + settings.deadline):
            self.seen.broken.append("no round was committed while all was calm")
            return self.seen
        self.seen.before, began = self._sample(), time.monotonic()
        self._plan(began, began + settings.seconds - settings.calm)
        self._hostile()
        while time.monotonic() < began + settings.seconds - settings.calm:
            self._tick()
        self.due = []
        for name in [name for name in self.away]:
            self._come_back(name)
        if "hostile" in ground.peers:
            ground.kill("hostile")
            del ground.peers["hostile"]
        while time.monotonic() < began + settings.seconds:
            self._tick()
        most = self.seen.before.descriptors + MORE_DESCRIPTORS
        self._until(lambda: self._sample().descriptors <= most, SETTLING)  # closing handshakes take their time
        self.seen.after = self._sample()
        self._stop()
        return self.seen

    def serve(self) -> None:
        self.ground.serve()
        self.seen.coordinator_lives.append([])

    # what is to happen

    def _plan(self, now: float, end: float) -> None:
        settings, chance = self.settings, self.chance
        for at in kill_times(chance, now + 2, end):
            self.due.append((at, "kill the coordinator", self._kill_coordinator))
        at = now
        while (at := at + chance.uniform(0.5, 1.5) * min(settings.lives / settings.devices, (end - now) / 3)) < end:
            self.due.append((at, "kill a device", self._kill_device))
        at = now
        while settings.members and (at := at + min(45.0, (end - now) / 2.5)) < end:
            self.due.append((at, "renew a token", self._renew))
        if settings.minutes >= 5:
            at = now
            while (at := at + chance.uniform(180, 300)) < end - 4 * settings.deadline:
                self.due.append((at, "keep a device away", self._keep_away))
        self.due.sort(key=lambda entry: entry[0])

    def _hostile(self) -> None:
        settings, ground = self.settings, self.ground
        if not settings.members and not settings.outsiders:
            return
        campaign = Campaign(
            directory=str(ground.directory),
            folder=str(ground.directory / "peers" / "hostile"),
            host="127.0.0.1",
            port=ground.port,
            members=ground.members,
            outsiders=settings.outsiders,
            seed=settings.seed,
            bare=settings.bare,
            attack=2.7 * settings.deadline,
            lull=2 * settings.deadline,
            hold=min(15.0, settings.deadline),
            victim_tasks={task: 10 for task in OWNED[0]},
        )
        ground.start("hostile", "hostile_peers.py", campaign.save())

    def _kill_coordinator(self) -> None:
        assert self.ground.coordinator is not None
        self._look_at_peak()
        self.ground.coordinator.kill()
        self.ground.coordinator.wait()
        self.seen.coordinator_kills += 1
        self.serve()

    def _kill_device(self) -> None:
        lately = time.monotonic() - self.settings.deadline
        here = [n for n in self.settings.honest if n not in self.away and self.killed.get(n, lately) <= lately]
        if not here:
            return
        name = self.chance.choice(here)
        self.ground.kill(name)
        self.ground.start(name)
        self.killed[name] = time.monotonic()
        self.seen.device_kills += 1

    def _keep_away(self) -> None:
        if self.away:
            return
        name = self.chance.choice(self.settings.honest)
        self.ground.kill(name)
        del self.ground.peers[name]
        self.away[name] = time.time()
        self.due.append((time.monotonic() + 1.5 * self.settings.deadline, "let it back", lambda: self._come_back(name)))
        self.due.sort(key=lambda entry: entry[0])

    def _come_back(self, name: str) -> None:
        self.seen.absences.append(Absence(name, self.away.pop(name), time.time()))
        self.ground.start(name)

    def _renew(self) -> None:
        """As an operator does with a member that was rejected too often: it may try again."""
        acts = sorted(self.ground.members)
        act = self.chance.choice([*acts, *(4 * [act for act in REJECTED if act in acts])])
        name, token_file = member_name(act, self.ground.members), self.ground.members[act]
        done = self.ground.command("enroll", name, str(self.ground.directory), "--renew", "--token-file", token_file)
        if done.returncode:
            self.seen.broken.append(f"enroll --renew: {done.stderr.strip()}")
        self.seen.renewals += 1

    # what is seen

    def _tick(self) -> None:
        """A second, and what is due in it."""
        began = time.monotonic()
        while self.due and self.due[0][0] <= began:
            self.due.pop(0)[2]()
        self._watch()
        self.seen.coordinator_lives[-1].append(self._sample())
        if len(self.seen.coordinator_lives[-1]) % 10 == 9:
            self._watch_pause()
        time.sleep(max(0.0, began + 1 - time.monotonic()))

    def _watch(self) -> None:
        """Start again what ended by itself, and tell of it."""
        coordinator = self.ground.coordinator
        assert coordinator is not None
        if (code := coordinator.poll()) is not None:
            last = (self.ground.directory / "serve.log").read_text().strip().splitlines()[-1:]
            self.seen.broken.append(f"the coordinator ended by itself with {code}: {''.join(last)[:300]}")
            self.serve()
        for name, process in self.ground.peers.items():
            if (code := process.poll()) is not None:
                last = (self.ground.directory / f"{name}.log").read_text().strip().splitlines()[-1:]
                self.seen.broken.append(f"{name} ended by itself with {code}: {''.join(last)[:300]}")
                self.ground.start(name)

    def _watch_pause(self) -> None:
        """A federation that paused itself after failing too often is resumed; only an absence may be the reason."""
        done = self.ground.command("status", str(self.ground.directory), "--json")
        paused = json.loads(done.stdout)["paused"] if done.returncode == 0 else None
        if paused is None:
            return
        if not self.away and all(time.time() > gone.until + 2 * self.settings.deadline for gone in self.seen.absences):
            self.seen.broken.append(f"the federation paused: {paused}")
        self.ground.command("resume", str(self.ground.directory))

    def _sample(self) -> Sample:
        coordinator = self.ground.coordinator
        assert coordinator is not None
        memory = descriptors = 0
        try:
            status = Path(f"/proc/{coordinator.pid}/status").read_text()
            memory = next((int(x.split()[1]) * 1024 for x in status.splitlines() if x.startswith("VmRSS")), 0)
            descriptors = len(os.listdir(f"/proc/{coordinator.pid}/fd"))
        except FileNotFoundError:  # it has just ended, which the next second will see
            pass
        self._look_at_peak()
        disk = disk_usage(StatePaths(self.ground.directory).root)
        return Sample(time.monotonic(), memory, descriptors, disk)

    def _look_at_peak(self) -> None:
        coordinator = self.ground.coordinator
        if coordinator is not None and coordinator.poll() is None:
            self.seen.peak = max(self.seen.peak, peak_megabytes(coordinator))

    def _committed(self) -> int:
        return sum(attempt["status"] == "committed" for attempt in self.ground.facts("rounds"))

    def _until(self, true: Callable[[], bool], seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not true():
            if time.monotonic() > end:
                return False
            time.sleep(0.3)
        return True

    def _stop(self) -> None:
        """As an operator would: pause, let the open round close, stop, verify."""
        ground, broken = self.ground, self.seen.broken

        def check(*arguments: str) -> None:
            done = ground.command(*arguments, str(ground.directory))
            if done.returncode:
                broken.append(f"tap-coordinator {arguments[0]} ended with {done.returncode}: {done.stderr.strip()}")

        check("pause", "--why", "the soak is over")
        is_closed = lambda: all(attempt["status"] != "open" for attempt in ground.facts("rounds"))  # noqa: E731
        if not self._until(is_closed, 2 * self.settings.deadline + PATIENCE):
            broken.append("the open round did not close after the pause")
        check("stop")
        assert ground.coordinator is not None
        try:
            code = ground.coordinator.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            code = None
        if code != 0:
            broken.append(f"the coordinator that was told to stop ended with {code}")
        if "No such command" not in ground.command("verify", "--help").stderr:
            check("verify")
        ground.close()


def soak(settings: Settings, scratch: Path) -> tuple[dict[str, Any], list[str]]:
    """The facts, and what broke."""
    ground = Ground(scratch / "federation", settings, MANY_ROUNDS, settings.members)
    try:
        seen = Soak(ground, settings).run()
    finally:
        ground.close()
    facts = judge(ground, seen, settings)
    if facts["committed"]:
        quiet = run_undisturbed(scratch / "undisturbed", settings, facts["committed"])
        try:
            unequal = differences(values_in(ground.directory, "soak"), values_in(quiet.directory, "soak"))
        except BlobError as error:
            unequal = [str(error)]
        seen.broken += [f"beside an undisturbed run: {line}" for line in unequal[:3]]
        facts["undisturbed"] = f"{len(unequal)} components differ" if unequal else "equal to the bit"
    facts["broken"] = seen.broken
    return facts, seen.broken


def parse(arguments: list[str] | None = None) -> tuple[Settings, argparse.Namespace]:
    acts = [*MEMBER_ACTS, *OUTSIDER_ACTS]
    parser = argparse.ArgumentParser(description="A federation under churn, kills and attack, beside a quiet one.")
    parser.add_argument("--minutes", type=float, default=20.0, help="of the disturbed run [default: 20]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--devices", type=int, default=5, help="honest ones [default: 5]")
    parser.add_argument("--deadline", type=float, default=20.0, help="of a round, in seconds [default: 20]")
    parser.add_argument("--values", type=int, default=20_000, help="floats of a component [default: 20000]")
    parser.add_argument("--bare", type=int, default=200, help="bare connections at a time [default: 200]")
    parser.add_argument(
        "--lives", type=float, default=60.0, help="mean seconds between kills of a device [default: 60]"
    )
    parser.add_argument("--without", action="append", choices=acts, default=[], metavar="ACT", help=", ".join(acts))
    parser.add_argument("--only", action="append", choices=acts, default=[], metavar="ACT", help="these acts alone")
    parser.add_argument("--json", type=Path, help="write the facts here")
    parser.add_argument("--directory", type=Path, help="where everything goes, and stays [default: temporary]")
    given = parser.parse_args(arguments)
    chosen = {act for act in given.only or acts if act not in given.without}
    settings = Settings(
        minutes=given.minutes,
        seed=given.seed,
        devices=given.devices,
        deadline=given.deadline,
        values=given.values,
        bare=given.bare,
        lives=given.lives,
        members=tuple(act for act in MEMBER_ACTS if act in chosen),
        outsiders=tuple(act for act in OUTSIDER_ACTS if act in chosen),
    )
    return settings, given


def main() -> int:
    settings, given = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no process is left behind
    with tempfile.TemporaryDirectory() as temporary:
        facts, broken = soak(settings, given.directory or Path(temporary))
    print(table(facts, settings))
    if given.json:
        given.json.write_text(json.dumps({"settings": asdict(settings), **facts}, indent=1) + "\n")
    for line, count in Counter(broken).items():
        print(f"broken: {line}" + (f" ({count} times)" if count > 1 else ""))
    if not broken:
        print("ok")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
