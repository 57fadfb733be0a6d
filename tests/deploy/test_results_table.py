"""The table that ends `tap demo` and `tap simulate`."""

import io

import pytest
from rich.console import Console

from deploy.demo.report import TaskScores
from deploy.demo.results_table import results_table


def scores(**changes):
    values = dict(kind="k", metric="accuracy", higher_is_better=True, n_test=8, floor=0.25, federated=0.5, stage1=0.75)
    return TaskScores.model_validate(values | {"personal": 0.7, "intervals": {"personal": (0.6, 0.8)}} | changes)


def lines_of(devices, **options):
    console = Console(file=io.StringIO(), width=80, **options)
    console.print(results_table(devices))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_a_row_per_task_below_its_device():
    error = scores(metric="mse", higher_is_better=False, stage1=0.1234, personal=float("0.2"), intervals={})
    assert lines_of({"desk": {"what_is_it": scores(), "paint": error}}) == [
        "device and task metric     floor federated stage 1 personal  (95%)",
        "desk",
        "  what_is_it    accuracy ↑ 25.0%     50.0%   75.0%    70.0% 60–80%",
        "  paint         MSE ↓      0.250     0.500   0.123    0.200",
    ]


@pytest.mark.parametrize(("higher_is_better", "best"), [(True, "75.0%"), (False, "25.0%")])
def test_the_best_value_is_bold_and_none_where_all_are_equal(higher_is_better, best):
    row = lines_of(
        {"desk": {"x": scores(higher_is_better=higher_is_better)}}, force_terminal=True, color_system="standard"
    )
    assert [line.count("\x1b[1m") for line in row] == [0, 1, 1] and f"\x1b[1m{best}" in row[2]
    equal = scores(floor=0.7, federated=0.7, stage1=0.7)
    assert "\x1b[1m" not in lines_of({"desk": {"x": equal}}, force_terminal=True, color_system="standard")[2]


def test_a_long_name_is_wrapped_and_nothing_is_cut():
    name = "x" * 64
    lines = lines_of({name: {name: scores()}})
    assert all(len(line) <= 80 for line in lines) and "".join(lines).count("x") == 128
    assert any("70.0%" in line and "60–80%" in line for line in lines)
