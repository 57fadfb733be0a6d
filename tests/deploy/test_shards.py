import csv
import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet as parquet
import pytest

from deploy.demo import shards
from deploy.demo.run import FEDERATION
from edge_client.config import TaskDataConfig
from edge_client.datasets import load_task
from tap_core.components import owned_components
from tap_core.settings.federation import FederationConfig
from tap_core.settings.toml import load_toml

TASKS = load_toml(FEDERATION, FederationConfig).tasks


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    directory = tmp_path_factory.mktemp("shards")
    return directory, shards.write_shards(directory)


def task_config(name):
    return TASKS[name]


def rows_of(path: Path) -> list[dict]:
    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def contents(task: shards.DeviceTask, path: Path) -> set:
    """What a model sees of each example: the image's bytes or the text."""
    if path.is_dir():
        return {file.read_bytes() for file in path.rglob("*.png")}
    column = task.columns.get("image") or task.columns["text"]
    return {row[column] for row in rows_of(path)}


def all_tasks(written):
    return [(device, task) for device, tasks in written[1].items() for task in tasks]


def test_five_devices_share_all_tasks_of_the_federation(written):
    assert len(written[1]) == 5
    assert {task.task for _, task in all_tasks(written)} == set(TASKS)
    kinds = {task.kind for task in TASKS.values()}
    assert kinds == {"image_classification", "text_classification", "image_generation", "text_generation"}


def test_devices_differ_in_modalities_as_the_demo_promises(written):
    modalities = {
        device: {m for task in tasks for m in TASKS[task.task].inputs} for device, tasks in written[1].items()
    }
    assert modalities["fashion-classifier"] == {"image"}
    assert modalities["definition-classifier"] == {"text"}
    assert modalities["fashion-artist"] == modalities["emoji-librarian"] == {"image", "text"}
    owned = {owned_components([task_config(t.task) for t in tasks]) for tasks in written[1].values()}
    assert len(owned) == 5


def test_every_task_loads_as_a_device_loads_it(written, tmp_path):
    for device, task in all_tasks(written):
        columns = dict(task.columns)
        source = TaskDataConfig(train=task.train, test=task.test, item=task.item, columns=columns)
        data = load_task(task_config(task.task), source, seed=0, cache=tmp_path / device)
        assert 1000 <= len(data.train) <= shards.TRAIN_ROWS, task.task
        assert 200 <= len(data.test) <= shards.TEST_ROWS, task.task


def test_train_and_test_share_no_source_item_and_no_content(written):
    for _, task in all_tasks(written):
        if task.item is not None:
            items = [{row[task.item] for row in rows_of(path)} for path in (task.train, task.test)]
            assert not items[0] & items[1], task.task
        assert not contents(task, task.train) & contents(task, task.test), task.task


def test_two_devices_share_a_task_but_no_example(written):
    by_device = [task for _, task in all_tasks(written) if task.task == "definition_category"]
    assert len(by_device) == 2
    for path in ("train", "test"):
        first, second = ({row["synset"] for row in rows_of(getattr(task, path))} for task in by_device)
        assert first and second and not first & second


def test_fashion_images_of_two_devices_are_different_ones(written):
    tasks = {task.task: task for _, task in all_tasks(written)}
    for path in ("train", "test"):
        label, reconstruction = (tasks[name] for name in ("fashion_label", "fashion_reconstruction"))
        assert not contents(label, getattr(label, path)) & contents(reconstruction, getattr(reconstruction, path))


def test_a_question_is_in_the_split_of_its_emoji(written):
    split = {row["name"]: row["split"] for row in parquet.read_table(shards.DATA / "emoji.parquet").to_pylist()}
    for _, task in all_tasks(written):
        if task.task.startswith("emoji_"):
            for path, expected in ((task.train, "train"), (task.test, "test")):
                assert {split[row["item"]] for row in rows_of(path)} == {expected}


def test_yes_and_no_are_balanced_and_true(written):
    keywords = {row["name"]: row["keywords"] for row in parquet.read_table(shards.DATA / "emoji.parquet").to_pylist()}
    task = next(task for _, task in all_tasks(written) if task.task == "emoji_question")
    asked = [row for row in rows_of(task.train) if row["question"].startswith("is this about ")]
    answers = Counter(row["answer"] for row in asked)
    assert set(answers) == {"yes", "no"}
    assert 0.4 < answers["yes"] / len(asked) < 0.6
    for row in asked:
        keyword = row["question"].removeprefix("is this about ").removesuffix("?")
        assert (keyword in keywords[row["item"]]) == (row["answer"] == "yes")


def test_the_same_files_are_written_every_time(written, tmp_path):
    directory = written[0]
    shards.write_shards(tmp_path)
    for _, task in all_tasks(written):
        for path in (task.train, task.test):
            again = tmp_path / path.relative_to(directory)
            if path.is_file():
                assert path.read_bytes() == again.read_bytes(), path
            else:
                names = [{str(f.relative_to(p)) for f in p.rglob("*.png")} for p in (path, again)]
                assert names[0] == names[1]


def test_task_tables_are_valid_client_toml(written, tmp_path):
    from tap_core.settings.toml import tomllib

    directory, devices = written
    for device, tasks in devices.items():
        tables = tomllib.loads(shards.toml_of(tasks, directory / device))["tasks"]
        assert set(tables) == {task.task for task in tasks}
        for task in tasks:
            assert directory / device / tables[task.task]["train"] == task.train
            TaskDataConfig.model_validate(tables[task.task])


def test_data_folder_is_under_ten_megabytes_with_its_licences():
    files = [file for file in shards.DATA.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 10_000_000
    readme = (shards.DATA / "README.md").read_text(encoding="utf-8")
    for file in (shards.DATA / "licenses").iterdir():
        assert f"licenses/{file.name}" in readme
