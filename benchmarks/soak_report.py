"""The report of `soak.py`: what was seen as facts, what they show to be broken, and a table of them."""

from dataclasses import asdict, dataclass, field
from typing import Any

from soak_facts import MEGABYTE, Absence, Sample, growth, is_expected, longest_gap, wrong_contributors
from soak_ground import Ground, Settings

FLAT_LIFE = 240.0
"""Seconds of life from which growing memory breaks the run; in shorter lives, in which a process that is warming up
grows by a few megabytes at a time, it is only told."""
MOST_GROWTH = 30.0
"""Megabytes that memory may grow in ten minutes."""
MOST_MEMORY = 400.0
"""Megabytes that the coordinator may have at any time."""
MORE_DESCRIPTORS = 20
"""So many more than in the calm before, in the calm after."""
KEPT = 20
"""The state may take so many times the size of all components: `rounds.keep_versions`, and what is on its way."""
OTHER_DISK = 64 * MEGABYTE
"""And so many bytes more."""


@dataclass
class Seen:
    """What came of the disturbed run."""

    coordinator_lives: list[list[Sample]] = field(default_factory=list)
    peak: float = 0.0
    before: Sample | None = None
    """In the calm at the start, and `after` in the one at the end."""
    after: Sample | None = None
    coordinator_kills: int = 0
    device_kills: int = 0
    renewals: int = 0
    absences: list[Absence] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


def judge(ground: Ground, seen: Seen, settings: Settings) -> dict[str, Any]:
    """The facts of the run; adds what they show to be broken."""
    attempts, honest, broken = ground.facts("rounds"), settings.honest, seen.broken
    grace = settings.deadline + 5
    failed = [attempt for attempt in attempts if attempt["status"] == "failed"]
    failures = [{**attempt, "expected": is_expected(attempt, honest, seen.absences, grace)} for attempt in failed]
    broken += [f"round {a['round']} failed: {a['why']}" for a in failures if not a["expected"]]
    broken += wrong_contributors(attempts, honest)
    gap = longest_gap(attempts)
    if gap > 10 * settings.deadline:
        broken.append(f"no round was committed for {gap:.0f} s")
    log = (ground.directory / "serve.log").read_text(errors="replace")
    if tracebacks := log.count("Traceback (most recent call last)"):
        broken.append(f"{tracebacks} tracebacks in the coordinator's log")
    diary, outcomes = ground.diary(), ground.outcomes()
    broken += [f"honest devices: {count} x {' '.join(key)}" for key, count in diary.items() if is_a_fault(*key)]
    broken += [f"hostile: {count} x {key}" for key, count in outcomes.items() if key.endswith(("accepted", "LET IN"))]
    growths = [
        {
            "seconds": life[-1].at - life[0].at,
            **{what: growth(life, what) for what in ("memory", "descriptors", "disk")},
        }
        for life in seen.coordinator_lives
        if growth(life, "memory") is not None
    ]
    for life in growths:
        if life["seconds"] >= FLAT_LIFE and life["memory"] > MOST_GROWTH * MEGABYTE:
            broken.append(f"memory grew by {life['memory'] / MEGABYTE:.0f} MB in ten minutes")
    if seen.peak > MOST_MEMORY:
        broken.append(f"the coordinator had {seen.peak:.0f} MB, more than {MOST_MEMORY:.0f}")
    if seen.before and seen.after:
        if seen.after.descriptors > seen.before.descriptors + MORE_DESCRIPTORS:
            broken.append(f"descriptors: {seen.before.descriptors} before and {seen.after.descriptors} after")
        allowed = OTHER_DISK + KEPT * sum(spec.size for spec in ground.manifest.components.values())
        if seen.after.disk > allowed:
            broken.append(f"the state takes {seen.after.disk / MEGABYTE:.0f} MB, more than {allowed / MEGABYTE:.0f}")
    return {
        "committed": sum(attempt["status"] == "committed" for attempt in attempts),
        "longest_gap": gap,
        "failures": failures,
        "lives": len(seen.coordinator_lives),
        "coordinator_kills": seen.coordinator_kills,
        "device_kills": seen.device_kills,
        "renewals": seen.renewals,
        "absences": [asdict(absence) for absence in seen.absences],
        "peak_megabytes": seen.peak,
        "growths": growths,
        "samples": [[list(asdict(sample).values()) for sample in life] for life in seen.coordinator_lives],
        "before": seen.before and asdict(seen.before),
        "after": seen.after and asdict(seen.after),
        "honest": {" ".join(filter(None, key)): count for key, count in sorted(diary.items())},
        "hostile": dict(sorted(outcomes.items())),
    }


def is_a_fault(what: str, why: str) -> bool:
    """Whether this must not happen to an honest device."""
    if what == "rejected":
        return why != "late"
    return what == "disconnected" and why.startswith(
        ("HTTP 401", "refused", "closed 1002", "closed 1007", "closed 1009")
    )


def table(facts: dict[str, Any], settings: Settings) -> str:
    def growing(life: dict[str, float]) -> str:
        return (
            f"  a life of {life['seconds']:4.0f} s{'':15}memory {life['memory'] / MEGABYTE:+.1f} MB,"
            f" descriptors {life['descriptors']:+.1f}, disk {life['disk'] / MEGABYTE:+.1f} MB in ten minutes"
        )

    def at(what: str, sample: dict[str, float]) -> str:
        return (
            f"  {what:<31} memory {sample['memory'] / MEGABYTE:.0f} MB, descriptors {sample['descriptors']},"
            f" disk {sample['disk'] / MEGABYTE:.0f} MB"
        )

    failures = facts["failures"]
    expected = sum(failure["expected"] for failure in failures)
    lines = [
        f"{settings.minutes:g} minutes, seed {settings.seed}: {settings.devices} honest devices,"
        f" {len(settings.members)} hostile members, {len(settings.outsiders)} acts without a token",
        f"  rounds committed                {facts['committed']}; longest gap {facts['longest_gap']:.1f} s",
        f"  attempts failed                 {len(failures)}, of which {expected} had to",
        *(
            f"    round {failure['round']}, attempt {failure['attempt']}: {failure['why']}"
            f" ({'expected' if failure['expected'] else 'NOT expected'})"
            for failure in failures
        ),
        f"  lives of the coordinator        {facts['lives']}, of which {facts['coordinator_kills']} ended by SIGKILL",
        f"  honest devices                  {facts['device_kills']} kills, {len(facts['absences'])} kept away",
        *(f"    {count:6} x {what}" for what, count in facts["honest"].items()),
        f"  hostile peers                   {sum(facts['hostile'].values())} acts, {facts['renewals']} tokens renewed",
        *(f"    {count:6} x {what}" for what, count in facts["hostile"].items()),
        *(at(f"the coordinator, calm {what}", facts[what]) for what in ("before", "after") if facts[what]),
        f"  its peak                        memory {facts['peak_megabytes']:.0f} MB",
        *map(growing, facts["growths"]),
    ]
    if "undisturbed" in facts:
        lines.append(f"  beside an undisturbed run       {facts['undisturbed']}")
    return "\n".join(lines)
