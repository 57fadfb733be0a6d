"""The devices of the experiments: disjoint data, the asked number of examples, and their own distribution of labels."""

import json
from collections import Counter
from pathlib import Path

import pytest
from experiments import plan, report, run
from experiments.devices import PATTERNS, Split, devices

from tap_core.settings.federation import FederationConfig
from tap_core.settings.toml import load_toml

CONFIG = Path(__file__).parents[2] / "benchmarks" / "experiments" / "federation.toml"


@pytest.fixture(scope="module")
def config():
    return load_toml(CONFIG, FederationConfig)


def key(example):
    return None if example.image is None else example.image.tobytes(), example.text


def test_no_training_example_is_on_two_devices_and_none_is_tested(config):
    drawn = devices(config, Split(examples=100, alpha=0.5, groups=2))
    assert len(drawn) == 2 * len(PATTERNS)
    by_task = {}
    for tasks in drawn.values():
        for task, data in tasks.items():
            trained, decided, tested = ({key(e) for e in part} for part in (data.train, data.decision, data.test))
            assert len(data.train) + len(data.decision) == 100 and len(data.test) == 100
            assert not trained & decided and not (trained | decided) & tested
            by_task.setdefault(task, []).extend(key(e) for e in (*data.train, *data.decision))
    for task, keys in by_task.items():
        repeated = sum(count - 1 for count in Counter(keys).values())
        assert repeated <= 0.01 * len(keys), task  # a few pictures and questions are in the tables twice


def test_a_small_alpha_gives_each_device_few_classes_in_train_and_test(config):
    even = devices(config, Split(examples=200, alpha=None))["text-classifier-a"]["definition_category"]
    uneven = devices(config, Split(examples=200, alpha=0.1))["text-classifier-a"]["definition_category"]

    def most(examples):
        return Counter(e.target for e in examples).most_common(1)[0]

    assert most(even.train)[1] < 0.25 * len(even.train)
    assert most(uneven.train)[1] > 0.4 * len(uneven.train)
    assert most(uneven.train)[0] == most(uneven.test)[0]


def test_equal_seeds_draw_equal_devices(config):
    split = Split(examples=64, alpha=0.5)
    first, second = devices(config, split), devices(config, split)
    other = devices(config.model_copy(update={"seed": 1}), split)

    def all_keys(drawn):
        return [[key(e) for e in data.train] for tasks in drawn.values() for data in tasks.values()]

    assert all_keys(first) == all_keys(second) != all_keys(other)


def lines(path, errors):
    path.write_text(
        "".join(
            json.dumps({"algorithm": name, "device": device, "kind": "multilabel", "personal": value, "stage1": value})
            + "\n"
            for name, values in errors.items()
            for device, value in enumerate(values)
        )
    )


def test_scores_are_shares_of_fedavgs_error_and_their_differences_are_paired(tmp_path):
    for seed in (1, 2, 3):
        base = [0.1 * seed, 0.5, 0.9]
        better = [value - 0.05 for value in base]
        lines(tmp_path / f"some-{seed}.jsonl", {"fedavg": base, "fedavg_finetune": base, "local": better})
    table = report.load(tmp_path, "some")
    keys = sorted(table["local"])
    assert report.relative(table["fedavg"], table["fedavg"], keys) == 1
    change, low, high = report.compare(table, "local", "fedavg_finetune")
    assert change == pytest.approx(-0.05 / (1.6 / 3)) and low <= change <= high < 0
    assert report.compare(table, "fedavg", "fedavg_finetune") == (0, 0, 0)


def test_a_conditions_table_has_scores_kinds_worst_devices_and_costs(tmp_path):
    base = [0.2] * 9 + [0.6]
    lines(tmp_path / "some-1.jsonl", {"fedavg": base, "fedavg_finetune": base, "local": [0.12] * 10})
    table = report.load(tmp_path, "some")
    assert report.worst_tenth(table["fedavg"], table["fedavg"]) == pytest.approx(0.6 / 0.24)
    assert report.by_kind(table["local"]) == {"multilabel": pytest.approx(0.12)}
    head, _, first, *others = report.rows(table, {"local": (30, 1.5)}, ["fedavg_finetune"])
    assert head == "| algorithm | error | less fedavg_finetune | worst tenth | multilabel | steps | seconds |"
    assert first.startswith("| local | 0.500 | -0.500 (") and first.endswith("| 0.50 | 0.120 | 30 | 1.5 |")
    assert all("| 1.000 | +0.000 (+0.000 to +0.000) |" in row for row in others)


def test_what_is_there_is_not_run_again_unless_its_plan_changes(tmp_path, monkeypatch):
    ran = []

    def pretended(condition, seed, algorithms, show):
        ran.append(sorted(algorithms))
        return [{"algorithm": name, "personal": len(ran)} for name in algorithms]

    def go(*names):
        run.main(["--condition", "quick", "--seed", "3", "--out", str(tmp_path), *(f"--algorithm={n}" for n in names)])
        return {line["algorithm"]: line["personal"] for line in run.known(tmp_path / "quick-3.jsonl")}

    monkeypatch.setattr(run, "run", pretended)
    assert go("fedavg", "local") == {"fedavg": 1, "local": 1}
    assert go("fedavg", "local", "tap") == {"fedavg": 1, "local": 1, "tap": 2}
    monkeypatch.setitem(plan.ALGORITHMS, "local", {"name": "local", "steps": 1})
    assert go("fedavg", "local") == {"fedavg": 1, "tap": 2, "local": 3}
    assert ran == [["fedavg", "local"], ["tap"], ["local"]]


def test_the_committed_lines_are_of_the_plan_as_it_is():
    for path in run.RESULTS.glob("*.jsonl"):
        name, _, seed = path.stem.rpartition("-")
        for line in run.known(path):
            wanted = plan.digest(plan.CONDITIONS[name], int(seed), plan.ALGORITHMS[line["algorithm"]])
            assert line["settings"] == wanted, (path.name, line["algorithm"])


def test_every_algorithm_has_the_same_data_and_seed_in_every_condition():
    assert set(plan.MAIN) <= set(plan.CONDITIONS)
    for condition in plan.CONDITIONS.values():
        configs = [plan.configured(condition, 7, settings) for settings in plan.ALGORITHMS.values()]
        rest = [config.model_copy(update={"algorithm": configs[0].algorithm}) for config in configs]
        assert all(config == configs[0] for config in rest) and configs[0].seed == 7
        assert configs[0].cuts_decision_set
