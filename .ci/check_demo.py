"""What the demo must have shown: python check_demo.py demo-out/report.json. Says what is wrong and exits with 1."""

import json
import sys
from pathlib import Path

CLEARLY = 0.1
"""How far above its floor, in accuracy, a personal classifier must be."""


def error(task: dict, which: str) -> float:
    return 1 - task[which] if task["higher_is_better"] else task[which]


def complaints(report: dict) -> list[str]:
    tasks = {(d, name): task for d, device in report["devices"].items() for name, task in device["tasks"].items()}
    kinds = {"image_classification", "text_classification", "image_generation", "text_generation"}
    found = []
    if len(report["devices"]) != 5 or {task["kind"] for task in tasks.values()} != kinds:
        found.append("five devices and all four kinds of task belong to it")
    for (device, name), task in tasks.items():
        if task["kind"].endswith("classification") and task["personal"] < task["floor"] + CLEARLY:
            found.append(
                f"{name} of {device}: personal {task['personal']} is not clearly above the floor {task['floor']}"
            )
    ratio = sum(error(task, "personal") / error(task, "federated") for task in tasks.values()) / len(tasks)
    if ratio >= 1:
        found.append(f"personal models leave {ratio:.3f} of the federated model's error, on average over tasks")
    exported = {(export["device"], export["task"]) for export in report["exports"]}
    if exported != set(tasks) or not all(export["max_abs_diff"] <= 1e-3 for export in report["exports"]):
        found.append("not every task has an export that agrees with torch")
    if not any(played["replaced"] for device in report["devices"].values() for played in device["replacements"]):
        found.append("no component was ever replaced")
    return found


if __name__ == "__main__":
    problems = complaints(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    print("\n".join(problems) or "the demo's report holds")
    sys.exit(1 if problems else 0)
