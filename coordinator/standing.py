"""Where a federation and its devices stand, as the facts that pages and commands show. Only reads.

``round`` is the one under way, counted from 0, and so also the number of committed rounds.
"""

from dataclasses import asdict
from typing import Any

from coordinator.device_registry import Device
from coordinator.rounds import Rounds
from coordinator.store import Store
from tap_core.manifest import FederationManifest


def live(manifest: FederationManifest, machine: Rounds) -> dict[str, Any]:
    """The facts of a federation that is being served."""
    current = machine.current
    return {
        "federation": manifest.config.name,
        "phase": _shown(machine.phase, machine.paused),
        "paused": machine.paused,
        "round": machine.round,
        "rounds": manifest.config.rounds.total,
        "attempt": current.attempt if current else machine.attempt,
        "sampled": list(current.sampled) if current else [],
        "reported": sorted(current.reported) if current else [],
        "roster": list(machine.roster),
        "away": sorted(machine.away),
        "strikes": dict(sorted(machine.strikes.items())),
        "barred": sorted(machine.barred),
        "done": sorted(machine.done),
    }


def recorded(manifest: FederationManifest, store: Store) -> dict[str, Any]:
    """The same facts of one that is not being served, and so with every device away."""
    history, rounds = store.history(), manifest.config.rounds
    total, barred = rounds.total, {d for d, strikes in history.strikes.items() if strikes >= rounds.max_strikes}
    phase = "finishing" if history.round >= total else "waiting" if history.sampled is None else "open"
    if phase == "finishing" and history.members and history.members <= history.done:
        phase = "finished"
    return {
        "federation": manifest.config.name,
        "phase": _shown(phase, history.paused),
        "paused": history.paused,
        "round": history.round,
        "rounds": total,
        "attempt": history.attempt,
        "sampled": list(history.sampled or ()),
        "reported": sorted(history.reported) if history.sampled else [],
        "roster": sorted(history.members - history.away - barred),
        "away": sorted(history.away),
        "strikes": dict(sorted(history.strikes.items())),
        "barred": sorted(barred),
        "done": sorted(history.done),
        "devices": {d.name: device_facts() for d in store.registry.all() if d.revoked_at is None},
    }


def device_facts(
    *, connected: bool = False, phase: str = "", step: int = 0, steps: int = 0, sent: int = 0, received: int = 0
) -> dict[str, Any]:
    """What is shown of one device; bytes are those of this run of the service."""
    progress = {"phase": phase, "step": step, "steps": steps}
    return {"connected": connected, **progress, "bytes_sent": sent, "bytes_received": received}


def enrolled_facts(device: Device, at: float, max_strikes: int) -> dict[str, Any]:
    """What is shown of a device that was ever enrolled, at the time ``at`` (seconds since 1970)."""
    facts = asdict(device)
    del facts["token_sha256"]
    states = [
        (device.revoked_at is not None, "revoked"),
        (not device.is_admitted(at), "expired"),
        (device.code_expires_at is not None, "invited"),
        (device.done_at is not None, "done"),
        (device.strikes >= max_strikes, "barred"),
        (device.away, "away"),
        (device.joined_at is not None, "joined"),
    ]
    return {"device": facts.pop("name"), "state": next((name for is_so, name in states if is_so), "enrolled"), **facts}


def _shown(phase: str, paused: str | None) -> str:
    return "paused" if paused is not None and phase == "waiting" else phase
