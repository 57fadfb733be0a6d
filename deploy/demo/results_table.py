"""Devices' results as a table for the terminal, 80 columns wide. It knows scores and not where they come from."""

from collections.abc import Mapping
from typing import Protocol

from rich.table import Table

from deploy.demo.wording import format_interval, format_score, short_metric_name
from tap_core.names import DeviceName, TaskName


class Scores(Protocol):
    """One task's metric on the device's test split, and the intervals of 95 % of the values by their names."""

    @property
    def metric(self) -> str: ...
    @property
    def higher_is_better(self) -> bool: ...
    @property
    def floor(self) -> float: ...
    @property
    def federated(self) -> float: ...
    @property
    def stage1(self) -> float: ...
    @property
    def personal(self) -> float: ...
    @property
    def intervals(self) -> Mapping[str, tuple[float, float]]: ...


def results_table(devices: Mapping[DeviceName, Mapping[TaskName, Scores]]) -> Table:
    """A row per task below its device; the best value in bold, the bootstrap interval of the last."""
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("device and task", overflow="fold")  # a name is wrapped, never cut
    table.add_column("metric", no_wrap=True)
    for header in ("floor", "federated", "stage 1", "personal", "(95%)"):
        table.add_column(header, justify="right", no_wrap=True)
    for device, tasks in devices.items():
        table.add_row(f"[bold]{device}[/bold]")
        for task, scores in tasks.items():
            arrow = "↑" if scores.higher_is_better else "↓"
            table.add_row(f"  {task}", f"{short_metric_name(scores.metric)} {arrow}", *_cells(scores))
    return table


def _cells(scores: Scores) -> list[str]:
    values = (scores.floor, scores.federated, scores.stage1, scores.personal)
    best = (max if scores.higher_is_better else min)(values) if len(set(values)) > 1 else None
    cells = []
    for value in values:
        text = format_score(scores.metric, value)
        cells.append(f"[bold]{text}[/bold]" if value == best else text)
    return [*cells, f"[dim]{format_interval(scores.metric, scores.intervals.get('personal'))}[/dim]"]
