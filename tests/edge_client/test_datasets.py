import json
from pathlib import Path

import numpy as np
import pytest

from edge_client.config import ClientConfig, TaskDataConfig
from edge_client.datasets import _decision_items, count_tasks, load_task, load_tasks, source_items
from tap_core.errors import UsageError
from tap_core.examples import TaskData


def load(federation, name: str, tmp_path: Path, seed: int = 7, **source) -> TaskData:
    (task,) = federation.tasks_named([name])
    return load_task(task, TaskDataConfig.model_validate(source), seed=seed, cache=tmp_path / "cache")


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def device(tmp_path: Path, tasks: dict) -> ClientConfig:
    facts = {"coordinator": "ws://h:1", "federation": "demo", "device_id": "d", "token_file": "t", "foundation": "f"}
    return ClientConfig.model_validate({**facts, "state_dir": tmp_path, "tasks": tasks})


def topics(path: Path, count: int = 40, start: int = 0) -> Path:
    names = ["sport", "food", "art"]
    rows = [{"text": f"text {i}", "target": names[i % 3], "source": f"s{i // 2}"} for i in range(start, start + count)]
    return write_rows(path, rows)


def test_an_image_folder_gives_classes_in_the_federations_order(federation, tmp_path, picture):
    for name, colour in [("in/dog/a.png", 10), ("in/cat/sub/b.png", 20), ("in/cat/.hidden.png", 30)]:
        picture(name, colour)
    (tmp_path / "in" / "Thumbs.db").write_bytes(b"x")
    data = load(federation, "animals", tmp_path, train=tmp_path / "in", test_fraction=0)
    found = sorted((example.target, int(example.image[0, 0, 0])) for example in data.train)
    assert found == [(0, 20), (1, 10)]
    assert data.train[0].image.shape == (6, 8, 3) and data.train[0].image.dtype == np.uint8
    assert data.train[0].text is None


def test_a_folder_without_classes_is_reconstructed(federation, tmp_path, picture):
    picture("in/a.png", 10)
    picture("in/x/b.png", 20)
    data = load(federation, "redraw", tmp_path, train=tmp_path / "in", test_fraction=0)
    assert [int(example.target[0, 0, 0]) for example in data.train] == [10, 20]
    assert all(np.array_equal(example.target, example.image) for example in data.train)


def test_csv_with_images_relative_to_the_file(federation, tmp_path, picture):
    picture("files/a.png", 10)
    (tmp_path / "rows.csv").write_text('file,ask,says\nfiles/a.png,"what, here?",a cat\n', encoding="utf-8-sig")
    columns = {"image": "file", "text": "ask", "target": "says"}
    data = load(federation, "question", tmp_path, train=tmp_path / "rows.csv", columns=columns, test_fraction=0)
    (example,) = data.train
    assert (example.text, example.target, int(example.image[0, 0, 0])) == ("what, here?", "a cat", 10)


def test_text_to_image_from_json_lines(federation, tmp_path, picture):
    picture("a.png", 90)
    path = write_rows(tmp_path / "rows.jsonl", [{"text": "a wall", "target": "a.png"}])
    data = load(federation, "draw", tmp_path, train=path, test_fraction=0)
    assert data.train[0].image is None and int(data.train[0].target[0, 0, 0]) == 90


@pytest.mark.parametrize(("sizes", "least"), [([300] * 4, 300), ([40, 50, 60], 40), ([90, 10], 10), ([1] * 64, 32)])
def test_a_decision_set_is_found_where_there_is_one_of_no_more_than_half(sizes, least):
    items = [f"item {number}" for number, size in enumerate(sizes) for _ in range(size)]
    chosen = _decision_items(1, items)
    assert least <= sum(item in chosen for item in items) <= len(items) // 2


def test_a_list_is_no_text(federation, tmp_path, picture):
    picture("a.png", 9)
    path = write_rows(tmp_path / "r.jsonl", [{"image": "a.png", "text": "which?", "target": ["blue", "navy"]}])
    with pytest.raises(
        UsageError, match="line 1: the target of task 'question' is a list of 2, not a text; give a row"
    ):
        load(federation, "question", tmp_path, train=path, test_fraction=0)


def test_pictures_that_several_texts_describe_are_on_one_side(federation, tmp_path, picture):
    for number in range(8):
        picture(f"{number}.png", 20 * number)
    path = write_rows(tmp_path / "r.jsonl", [{"text": f"text {i}", "target": f"{i % 8}.png"} for i in range(40)])
    data = load(federation, "draw", tmp_path, train=path, test_fraction=0.4)
    train, test = ({int(example.target[0, 0, 0]) for example in part} for part in (data.train, data.test))
    assert train and test and not train & test and len(data.train) + len(data.test) == 40


def test_texts_that_several_pictures_belong_to_are_on_one_side(federation, tmp_path, picture):
    for number in range(40):
        picture(f"{number}.png", 6 * number)
    rows = [{"text": f"text {i % 10}" + " " * (i % 2), "target": f"{i}.png"} for i in range(40)]
    data = load(federation, "draw", tmp_path, train=write_rows(tmp_path / "r.jsonl", rows), test_fraction=0.4)
    train, test = ({example.text.strip() for example in part} for part in (data.train, data.test))
    assert train and test and not train & test and len(data.train) == 4 * len(train)

    paths = {name: write_rows(tmp_path / name, rows[i : i + 5]) for i, name in ((0, "a.jsonl"), (12, "b.jsonl"))}
    with pytest.raises(UsageError, match="share 3 source items, for example .*a.jsonl line 3 and .*b.jsonl line 1;"):
        load(federation, "draw", tmp_path, train=paths["a.jsonl"], test=paths["b.jsonl"])


def test_a_source_item_is_all_that_hangs_together(federation):
    assert source_items([("b",), ("a",), ("b",)]) == ["b", "a", "b"]
    random = np.random.default_rng(5)
    for _ in range(50):
        sources = [(f"{i}", f"text {t}") for i, t in random.integers(0, 30, (25, 2))]
        items = [{row} for row in range(len(sources))]
        for a in range(len(sources)):
            for b in range(a):
                if set(sources[a]) & set(sources[b]) and items[a] is not items[b]:
                    items[a] |= items[b]
                    for row in items[b]:
                        items[row] = items[a]
        assert source_items(sources) == [min(sources[row][0] for row in item) for item in items]


def parquet(path: Path, columns: dict, **schema) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns, **schema), path)
    return path


@pytest.mark.parametrize("form", ["bytes", "struct", "path"])
def test_parquet_images(federation, tmp_path, picture, form):
    file = picture("a.png", 33)
    cell = {"bytes": file.read_bytes(), "struct": {"bytes": file.read_bytes(), "path": None}, "path": "a.png"}[form]
    path = parquet(tmp_path / "rows.parquet", {"image": [cell] * 3, "target": ["dog", "cat", "dog"]})
    data = load(federation, "animals", tmp_path, train=path, test_fraction=0)
    assert [example.target for example in data.train] == [1, 0, 1]
    assert int(data.train[2].image[0, 0, 0]) == 33


def test_parquet_is_read_again_when_the_file_changes(federation, tmp_path):
    path = parquet(tmp_path / "rows.parquet", {"text": ["a"], "target": ["art"]})
    assert load(federation, "topic", tmp_path, train=path, test_fraction=0).train[0].text == "a"
    parquet(path, {"text": ["b"], "target": ["art"]})
    assert load(federation, "topic", tmp_path, train=path, test_fraction=0).train[0].text == "b"


def test_the_unpacked_copy_of_data_that_is_gone_is_removed(federation, tmp_path):
    path = parquet(tmp_path / "rows.parquet", {"text": ["a"], "target": ["art"]})
    config = device(tmp_path, {"topic": {"train": path, "test_fraction": 0}})
    for text in "abc":
        parquet(path, {"text": [text], "target": ["art"]})
        assert load_tasks(config, federation)["topic"].train[0].text == text
    assert len(list((tmp_path / "datasets").iterdir())) == 1
    load_tasks(device(tmp_path, {"topic": {"train": topics(tmp_path / "a.jsonl")}}), federation)
    assert list((tmp_path / "datasets").iterdir()) == []


def test_a_saved_hugging_face_dataset_with_class_labels(federation, tmp_path):
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["art", "food"])}
    )

    def split(prefix: str) -> datasets.Dataset:
        rows = {"text": [f"{prefix} one", f"{prefix} two"], "label": [0, 1]}
        return datasets.Dataset.from_dict(rows, features=features)

    datasets.DatasetDict({"train": split("a"), "held": split("b")}).save_to_disk(str(tmp_path / "saved"))
    source = {"dataset": str(tmp_path / "saved"), "test_split": "held", "columns": {"target": "label"}}
    data = load(federation, "topic", tmp_path, **source)
    assert [example.target for example in data.train] == [2, 1]
    assert [example.text for example in data.test] == ["b one", "b two"]
    with pytest.raises(UsageError, match="no split 'validation'; its splits are held, train"):
        load(federation, "topic", tmp_path, **(source | {"test_split": "validation"}))


@pytest.mark.parametrize("form", ["saved", "parquet"])
def test_a_list_of_class_labels_gives_names(federation, tmp_path, form):
    import datasets

    labels = datasets.List(datasets.ClassLabel(names=["round", "blue", "red"]))
    features = datasets.Features({"text": datasets.Value("string"), "target": labels})

    def targets_of(targets: list) -> list:
        rows = {"text": [f"text {i}" for i in range(len(targets))], "target": targets}
        dataset = datasets.Dataset.from_dict(rows, features=features)
        if form == "saved":
            dataset.save_to_disk(str(tmp_path / "saved"))
            source = {"dataset": str(tmp_path / "saved")}
        else:
            dataset.to_parquet(str(tmp_path / "rows.parquet"))
            source = {"train": tmp_path / "rows.parquet"}
        return [example.target for example in load(federation, "marks", tmp_path, **source, test_fraction=0).train]

    assert targets_of([[0, 2], [], None, [2]]) == [(0, 1), (), (), (0,)]  # the federation says red, round
    with pytest.raises(UsageError, match="class 'blue' is not a class of task 'marks'"):
        targets_of([[1]])
    with pytest.raises(UsageError, match=r"\[None\] is no list of names of classes"):
        targets_of([[-1]])


def test_a_dataset_that_is_not_there_is_one_line(federation, tmp_path):
    for name in (str(tmp_path / "nowhere"), "no-such-owner/no-such-dataset"):
        with pytest.raises(UsageError) as caught:
            load(federation, "topic", tmp_path, dataset=name)
        assert "no-such-dataset" in str(caught.value) or "nowhere" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_cut_is_seeded_and_stable_when_data_is_added(federation, tmp_path):
    small = load(federation, "topic", tmp_path, train=topics(tmp_path / "a.jsonl", 40), item="source")
    again = load(federation, "topic", tmp_path, train=topics(tmp_path / "a.jsonl", 40), item="source")
    grown = load(federation, "topic", tmp_path, train=topics(tmp_path / "b.jsonl", 80), item="source")
    other = load(federation, "topic", tmp_path, seed=8, train=topics(tmp_path / "a.jsonl", 40), item="source")
    texts = lambda examples: {example.text for example in examples}  # noqa: E731
    assert texts(small.test) == texts(again.test) != texts(other.test)
    assert texts(small.test) <= texts(grown.test) and texts(small.train) <= texts(grown.train)
    assert 0 < len(small.test) < 20 and len(small.train) + len(small.test) == 40


def test_trap_5_train_and_test_share_no_source_item(federation, tmp_path, picture):
    """docs/method.md section 8, trap 5: cut by item, or by content where no column names it, and checked either way."""
    by_item = load(
        federation, "topic", tmp_path, train=topics(tmp_path / "a.jsonl", 60), item="source", test_fraction=0.4
    )
    number = lambda example: int(example.text.split()[1]) // 2  # noqa: E731
    train, test = {number(e) for e in by_item.train}, {number(e) for e in by_item.test}
    assert train and test and not train & test

    for i in range(30):  # two copies of each picture under different names
        picture(f"in/cat/{i}.png", i)
        picture(f"in/dog/copy-of-{i}.png", i)
    by_content = load(federation, "animals", tmp_path, train=tmp_path / "in", test_fraction=0.4)
    colour = lambda example: int(example.image[0, 0, 0])  # noqa: E731
    train, test = {colour(e) for e in by_content.train}, {colour(e) for e in by_content.test}
    assert train and test and not train & test and len(by_content.train) == 2 * len(train)

    asked = [  # five questions about each picture
        {"image": picture(f"{i}.png", i).name, "text": f"question {j}?", "target": "cat"}
        for i in range(30)
        for j in range(5)
    ]
    by_picture = load(
        federation, "question", tmp_path, train=write_rows(tmp_path / "q.jsonl", asked), test_fraction=0.4
    )
    train, test = {colour(e) for e in by_picture.train}, {colour(e) for e in by_picture.test}
    assert train and test and not train & test and len(by_picture.train) == 5 * len(train)

    given = {"train": topics(tmp_path / "a.jsonl", 10), "test": topics(tmp_path / "b.jsonl", 10, start=9)}
    with pytest.raises(UsageError, match="share 1 source items, for example .*a.jsonl line 10 and .*b.jsonl line 1;"):
        load(federation, "topic", tmp_path, **given)
    given["test"] = topics(tmp_path / "b.jsonl", 10, start=11)  # texts differ, and item s5 is new
    with pytest.raises(UsageError, match="no column 'sauce' .*did you mean 'source'"):
        load(federation, "topic", tmp_path, **given, item="sauce")
    assert len(load(federation, "topic", tmp_path, **given, item="source").test) == 10
    given["test"] = topics(tmp_path / "b.jsonl", 1, start=9)
    given["train"] = topics(tmp_path / "a.jsonl", 9)  # text 9 is not in train, but its item s4 is
    assert len(load(federation, "topic", tmp_path, **given).test) == 1
    with pytest.raises(UsageError, match="share 1 source items"):
        load(federation, "topic", tmp_path, **given, item="source")


def test_a_tasks_test_items_are_those_of_every_task_on_the_same_items(federation, tmp_path, picture):
    rows = [{"image": picture(f"{i}.png", i).name, "text": "what?", "target": "cat", "id": i} for i in range(40)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    animals = load(federation, "animals", tmp_path, train=path, item="id")
    question = load(federation, "question", tmp_path, train=path, item="id")
    colours = [sorted(int(e.image[0, 0, 0]) for e in data.test) for data in (animals, question)]
    assert colours[0] == colours[1] != []


BAD = [
    ("topic", "rows.jsonl", '{"text": "a", "target": "art"}\n{"text": "b", "target": "arts"}\n', {},
     "line 2: class 'arts' is not a class of task 'topic'; did you mean 'art'? its classes are sport, food, art"),
    ("topic", "rows.csv", "text,topic\na,art\n", {}, "has no column 'target' (tasks.topic.columns.target); "),
    ("topic", "rows.csv", "texts,target\na,art\n", {}, "did you mean 'texts'? its columns are texts, target"),
    ("topic", "rows.csv", "text,target\n", {}, "is empty"),
    ("topic", "rows.csv", "", {}, "is empty"),
    ("topic", "rows.csv", "text,target\n,art\n", {}, "line 2: 'text' is empty"),
    ("topic", "rows.csv", "text,target\na,b,art\n", {}, "line 2 has 3 cells and the header 2"),
    ("topic", "rows.csv", "text,text\na,art\n", {}, "names a column twice"),
    ("topic", "rows.csv", 'text,target\n"a,art\n', {}, "is not valid CSV"),
    ("topic", "rows.csv", "text,target\n\xe4,art\n".encode("latin-1"), {}, "not UTF-8"),
    ("topic", "rows.jsonl", '{"text": "a"\n', {}, "line 1 is not valid JSON"),
    ("topic", "rows.jsonl", "[1]\n", {}, "line 1 is not a JSON object"),
    ("topic", "rows.jsonl", '{"text": ["a"], "target": "art"}\n', {}, "line 1: 'text' is no text but list"),
    ("topic", "rows.jsonl", '{"text": "a", "target": null}\n', {}, "line 1: 'target' is empty"),
    ("topic", "rows.jsonl", '{"text": "a", "target": ["art"]}\n', {},
     "line 1: the target of task 'topic' is a list of 1, and a row has one class; name it alone, or ask the "
     "operator for a task of kind 'multilabel', which takes lists"),
    ("topic", "rows.jsonl", '{"text": "a", "target": ' + "9" * 5000 + "}\n", {}, "line 1 is not valid JSON (a number"),
    ("topic", "rows.jsonl", '{"text": "a", "target": ' + "[" * 99999 + "}\n", {}, "line 1 is not valid JSON"),
    ("topic", "rows.csv", "text,target\na," + "x" * 5000 + "\n", {}, "class '" + "x" * 59 + "... is not a class"),
    ("topic", "rows.jsonl", '{"text": "a", "target": "art"}\n{"text": "b"}\n', {}, "line 2 has no 'target'; add it"),
    ("marks", "rows.jsonl", '{"text": "a", "target": []}\n{"text": "b"}\n', {}, "line 2 has no 'target'; add it"),
    ("marks", "rows.jsonl", '{"text": "a", "target": ["red", null]}\n', {}, "is no list of names of classes"),
    ("marks", "rows.jsonl", '{"text": "a", "target": [["red"]]}\n', {}, "is no list of names of classes"),
    ("marks", "rows.csv", 'text,target\na,"red, round"\n', {}, "between classes stands ';', not ','"),
    ("price", "rows.jsonl", '{"text": "a", "target": 1.5}\n{"text": "b"}\n', {}, "line 2 has no 'target'; add it"),
    ("price", "rows.csv", "text,target\na,1_000\n", {}, "line 2: '1_000' is not a finite number, which task 'price'"),
    ("price", "rows.csv", 'text,target\na,"1,5"\n', {}, "write one with a decimal point, as in 1234.5, or remove"),
    ("price", "rows.jsonl", '{"text": "a", "target": [1]}\n', {}, "[1] is not a finite number"),
    ("topic", "rows.json", "[]", {}, "write one JSON object per line"),
    ("topic", "rows.xlsx", "", {}, "must be .csv, .jsonl or .parquet"),
    ("topic", "rows.parquet", "no parquet", {}, "is not a readable Parquet file"),
    ("animals", "rows.jsonl", '{"image": "absent.png", "target": "cat"}\n', {}, "no such image file"),
    ("animals", "rows.jsonl", '{"image": "rows.jsonl", "target": "cat"}\n', {}, "line 1) is not a readable image"),
    ("animals", "rows.jsonl", '{"image": 3, "target": "cat"}\n', {}, "holds int where an image"),
    ("animals", "rows.jsonl", '{"image": null, "target": "cat"}\n', {}, "holds nothing where an image"),
    ("topic", "rows.csv", "text,target\na,art\n", {"test_fraction": 0.99999999}, "left no training example"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "name", "content", "source", "message"), BAD)
def test_bad_data_is_one_line(federation, tmp_path, task, name, content, source, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError) as caught:
        load(federation, task, tmp_path, train=path, **source)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_cell_of_marks_is_no_class_and_spaces_do_not_count(federation, tmp_path):
    cells = ["", [], None, " red ;round;", [" round "], "red"]
    path = write_rows(tmp_path / "rows.jsonl", [{"text": f"text {i}", "target": c} for i, c in enumerate(cells)])
    data = load(federation, "marks", tmp_path, train=path, test_fraction=0)
    assert [example.target for example in data.train] == [(), (), (), (0, 1), (1,), (0,)]


def test_bad_image_folders_are_one_line(federation, tmp_path, picture):
    def complaint(task: str) -> str:
        with pytest.raises(UsageError) as caught:
            load(federation, task, tmp_path, train=tmp_path / "in")
        return str(caught.value)

    assert "in: no such file or folder" in complaint("animals")
    (tmp_path / "in").mkdir()
    assert "no image in it" in complaint("animals")
    loose = picture("in/a.png")
    assert "a.png is in no class" in complaint("animals")
    assert "an image folder gives images and classes only" in complaint("question")
    loose.unlink()
    wrong = picture("in/cats/a.png")
    assert "class 'cats' is not a class of task 'animals'; did you mean 'cat'?" in complaint("animals")
    wrong.unlink()
    picture("in/cat/a.png")
    (tmp_path / "in/cat/notes.txt").write_text("no image")
    assert "in/cat/notes.txt is not a readable image" in complaint("animals")


def test_an_image_cut_short_is_named_when_it_is_drawn(federation, tmp_path, picture):
    from PIL import Image

    path = picture("in/cat/a.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    data = load(federation, "animals", tmp_path, train=tmp_path / "in", test_fraction=0)
    with pytest.raises(UsageError, match=r"a\.png is not a readable image"):
        data.train[0]


def test_images_deeper_than_8_bits_are_refused_rather_than_clipped(federation, tmp_path):
    from PIL import Image

    (tmp_path / "in/cat").mkdir(parents=True)
    Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(tmp_path / "in/cat/a.png")
    with pytest.raises(UsageError, match="more than 8 bits"):
        load(federation, "animals", tmp_path, train=tmp_path / "in")


def test_a_task_that_the_federation_lacks(federation, tmp_path):
    source = {"train": topics(tmp_path / "a.jsonl")}
    with pytest.raises(UsageError, match="federation 'demo' has no task 'topics'; its tasks are animals, draw"):
        load_tasks(device(tmp_path, {"topics": source}), federation)
    data = load_tasks(device(tmp_path, {"topic": source}), federation)
    assert count_tasks(data) == {"topic": len(data["topic"].train)}


@pytest.mark.parametrize(("count", "cut"), [(10, 4), (40, 20), (62, 30), (64, 32), (400, 50), (3000, 256)])
def test_the_decision_set_is_an_eighth_of_the_items_within_bounds(federation, tmp_path, count, cut):
    """Two examples an item. Fewer than 64 examples give half of them."""
    (task,) = federation.tasks_named(["topic"])
    source = TaskDataConfig.model_validate({"train": topics(tmp_path / "a.jsonl", count), "item": "source"})
    source = source.model_copy(update={"test_fraction": 0.0})

    def load_cut(seed: int) -> TaskData:
        return load_task(task, source, seed=seed, cache=tmp_path / "cache", cut_decision_set=True)

    data, other = load_cut(7), load_cut(8)
    texts = [[int(e.text.split()[1]) for e in part] for part in (data.train, data.decision)]
    assert len(texts[1]) == cut and sorted(texts[0] + texts[1]) == list(range(count))
    assert not {n // 2 for n in texts[0]} & {n // 2 for n in texts[1]}
    assert [e.text for e in load_cut(7).decision] == [e.text for e in data.decision]
    assert [e.text for e in other.decision] != [e.text for e in data.decision]


def test_an_item_that_is_too_large_is_passed_over(federation, tmp_path):
    (task,) = federation.tasks_named(["topic"])
    rows = [{"text": f"text {i}", "target": "art", "source": "big" if i < 60 else f"s{i}"} for i in range(100)]
    source = TaskDataConfig.model_validate({"train": write_rows(tmp_path / "a.jsonl", rows), "item": "source"})
    source = source.model_copy(update={"test_fraction": 0.0})
    for seed in range(5):
        data = load_task(task, source, seed=seed, cache=tmp_path / "cache", cut_decision_set=True)
        assert len(data.decision) == 32 and len(data.train) == 68


def test_a_decision_set_is_cut_if_the_settings_need_one(federation, tmp_path):
    topics(tmp_path / "a.jsonl")
    config = device(tmp_path, {"topic": {"train": tmp_path / "a.jsonl"}})

    def lengths(**changes) -> list[int]:
        values = federation.model_dump(mode="json")
        values = {**values, **{key: {**values[key], **table} for key, table in changes.items()}}
        data = load_tasks(config, type(federation).model_validate(values))["topic"]
        return [len(data.train), len(data.decision)]

    whole, none = lengths()
    assert none == 0
    for changes in ({"training": {"decision_set": "always"}}, {"algorithm": {"decision": "paired"}}):
        assert lengths(**changes) == [whole - whole // 2, whole // 2]
