"""deploy.demo.report and the page made from it, on state directories written by hand."""

import base64
import io
import json
import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from deploy.demo.charts import Series, bar, better_scale, line_chart, round_strip
from deploy.demo.page import render_page, write_page
from deploy.demo.report import Machine, Report, TaskScores, build_report, read_device, write_report
from deploy.demo.wording import format_bytes, format_duration, format_interval, format_score
from tap_core.errors import TapError

ROUNDS = 12
MACHINE = Machine("a test machine", 2, 1_234_000_000)


def png(colour):
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), colour, np.uint8)).save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def scores(kind, values, metric="accuracy", higher=True, n=300):
    return {
        "kind": kind,
        "metric": metric,
        "higher_is_better": higher,
        "n_test": n,
        **dict(zip(("floor", "federated", "stage1", "personal"), values, strict=True)),
    }


TASKS = {
    "fashion-classifier": {"fashion_label": scores("image_classification", (0.1, 0.71, 0.74, 0.76))},
    "emoji-narrator": {
        "emoji_caption": scores("text_generation", (0.02, 0.11, 0.13, 0.16), "token_f1"),
        "emoji_question": scores("text_generation", (0.31, 0.48, 0.46, 0.47), "token_f1"),
    },
    "fashion-artist": {"fashion_reconstruction": scores("image_generation", (0.61, 0.22, 0.2, 0.18), "mse", False)},
}
SAMPLES = {
    "fashion_label": [
        {"input": {"image": png(40 * i)}, "target": "bag", "federated": "bag", "personal": "coat"} for i in range(3)
    ],
    "emoji_caption": [{"input": {"image": png(90)}, "target": "red apple", "federated": "face", "personal": "apple"}],
    "emoji_question": [
        {
            "input": {"image": png(90), "text": "is this about <b>fruit</b> & food?"},
            "target": "yes",
            "federated": "no",
            "personal": "yes",
        }
    ],
    "fashion_reconstruction": [
        {"input": {"image": png(9)}, "target": png(9), "federated": png(50), "personal": png(20)} for _ in range(2)
    ],
}


def write_device(directory, device, *, offset=0):
    tasks = TASKS[device]
    played = range(offset, ROUNDS, 2)
    lines = [
        {
            "round": number,
            "federated_loss": {task: 2.0 / (number + 1) + 0.3 for task in tasks},
            "personal_loss": {task: 1.5 / (number + 1) + 0.2 for task in tasks},
            "replaced": {task: number < 4 for task in tasks},
            "replaced_components": ["encoder/image"] if number < 4 else [],
            "seconds": 1.0,
        }
        for number in played
    ]
    directory.mkdir(parents=True)
    (directory / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = {
        "device": device,
        "components": ["decoder/x", "encoder/image"],
        "bytes_sent": 3_000_000 + offset,
        "bytes_received": 4_500_000,
        "replacements": [
            {"round": line["round"], "task": task, "replaced": line["replaced"][task]}
            for line in lines
            for task in tasks
        ],
        "tasks": tasks,
        "samples": {task: SAMPLES[task] for task in tasks},
    }
    (directory / "results.json").write_text(json.dumps(results))
    for task in tasks:
        export = directory / "export" / task
        export.mkdir(parents=True)
        (export / "parity.json").write_text(json.dumps({"max_abs_diff": 2.5e-6, "n": 8, "tolerance": 1e-3}))


@pytest.fixture
def outcomes(tmp_path):
    for offset, device in enumerate(TASKS):
        write_device(tmp_path / "devices" / device / "state", device, offset=offset % 2)
    return {device: read_device(tmp_path / "devices" / device / "state") for device in TASKS}


@pytest.fixture
def report(outcomes, tmp_path):
    return build_report(outcomes, out=tmp_path, seconds=123.456, rounds=ROUNDS)


def test_report_json_has_exactly_the_promised_keys(report, tmp_path):
    values = json.loads(write_report(tmp_path, report).read_text())
    assert list(values) == ["seconds", "rounds", "devices", "exports"]
    device = values["devices"]["emoji-narrator"]
    assert list(device) == ["components", "bytes_sent", "bytes_received", "replacements", "tasks"]
    assert device["replacements"][0] == {"round": 1, "task": "emoji_caption", "replaced": True}
    assert device["tasks"]["emoji_question"].items() >= TASKS["emoji-narrator"]["emoji_question"].items()
    assert values["exports"][0] == {
        "device": "fashion-classifier",
        "task": "fashion_label",
        "path": "devices/fashion-classifier/state/export/fashion_label",
        "max_abs_diff": 2.5e-6,
    }
    assert (values["seconds"], values["rounds"]) == (123.5, ROUNDS)
    assert Report.model_validate(values) == report


def test_a_value_that_is_not_finite_is_refused_and_names_its_place(outcomes, tmp_path):
    path = outcomes["fashion-artist"].directory / "results.json"
    path.write_text(path.read_text().replace("0.22", "NaN"))
    with pytest.raises(TapError, match=r"tasks\.fashion_reconstruction\.federated") as caught:
        read_device(path.parent)
    assert "\n" not in str(caught.value)


def test_a_device_that_did_not_finish_is_named(outcomes):
    directory = outcomes["fashion-artist"].directory
    (directory / "results.json").unlink()
    with pytest.raises(TapError, match="fashion-artist.*did not finish"):
        read_device(directory)


def test_a_round_reported_twice_counts_once_and_the_last_report_holds(outcomes):
    directory = outcomes["fashion-classifier"].directory
    again = {"round": 2, "federated_loss": {"fashion_label": 9.0}, "personal_loss": {"fashion_label": 8.0}}
    with (directory / "rounds.jsonl").open("a") as file:
        file.write(json.dumps(again) + "\n")
    rounds = read_device(directory).rounds
    assert [line.round for line in rounds] == [0, 2, 4, 6, 8, 10]
    assert rounds[1].federated_loss == {"fashion_label": 9.0}


def test_error_reduction_is_the_mean_over_tasks_in_both_directions():
    one = TaskScores.model_validate(scores("image_classification", (0.1, 0.6, 0.6, 0.8)))
    other = TaskScores.model_validate(scores("image_generation", (1.0, 0.4, 0.4, 0.5), "mse", False))
    device = {"components": [], "bytes_sent": 0, "bytes_received": 0, "replacements": []}
    report = Report.model_validate(
        {"seconds": 1, "rounds": 1, "devices": {"d": {**device, "tasks": {"a": one, "b": other}}}, "exports": []}
    )
    assert report.error_reduction() == pytest.approx(((0.4 - 0.2) / 0.4 + (0.4 - 0.5) / 0.4) / 2)
    assert (one.best, other.best) == (0.8, 0.4)
    assert TaskScores.model_validate(scores("text_generation", (0.2, 0.2, 0.2, 0.2))).best is None
    assert one.better(one.personal, one.federated)
    assert not other.better(other.personal, other.federated)


class Outside(HTMLParser):
    """Collects whatever a browser would load from outside, and whether all tags close."""

    VOID = frozenset({"meta", "img", "br", "line", "polyline"})

    def __init__(self):
        super().__init__()
        self.loaded, self.open, self.texts = [], [], []

    def handle_starttag(self, tag, attributes):
        self.loaded += [v for k, v in attributes if k in ("src", "href", "srcset") and not v.startswith("data:")]
        if tag in ("script", "link", "iframe"):
            self.loaded.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_the_page_stands_alone_and_is_well_formed(report, outcomes, tmp_path):
    page = write_page(tmp_path, report, outcomes, MACHINE).read_text()
    parser = Outside()
    parser.feed(page)
    assert parser.loaded == []
    assert parser.open == []
    assert "url(" not in page
    assert "prefers-color-scheme: dark" in page
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(svg)


def test_the_page_says_what_the_numbers_say(report, outcomes):
    page = render_page(report, outcomes, MACHINE)
    assert "better than the federated one on 3 of 4 device tasks" in page
    assert "better than the best constant answer on 4 of 4" in page
    assert '<td class="n best">76.0%</td>' in page
    assert '<td class="n best">0.180</td>' in page
    assert '<td class="n best">0.480</td>' in page
    assert "2 min 04 s" in page
    assert "1.23 GB" in page


def test_an_answer_cannot_put_markup_on_the_page(report, outcomes):
    page = render_page(report, outcomes, MACHINE)
    assert "is this about &lt;b&gt;fruit&lt;/b&gt; &amp; food?" in page
    assert "<b>fruit</b>" not in page


def test_a_line_chart_maps_values_to_heights_and_marks_rounds():
    chart = line_chart(
        [Series("federated", "fed", [(1, 4.0), (2, 2.0), (3, 1.0)])], [1], rounds=3, x_label="round", y_label="nats"
    )
    root = ElementTree.fromstring(chart)
    heights = [float(dot.get("cy")) for dot in root.iter("circle")]
    assert heights == sorted(heights)
    assert heights[0] - heights[1] == pytest.approx(-2 * (heights[2] - heights[1]), abs=0.3)
    texts = ["".join(text.itertext()) for text in root.iter("text")]
    assert {"round", "nats", "0", "4", "1", "2", "3"} <= set(texts)
    assert len([path for path in root.iter("path") if path.get("class") == "mark"]) == 1


def test_a_chart_without_values_says_so():
    assert "no round was played" in line_chart([Series("a", "fed", [])], [], rounds=3, x_label="x", y_label="y")


def test_a_strip_has_one_cell_per_round():
    root = ElementTree.fromstring(round_strip({1: True, 3: False}, rounds=4))
    assert [cell.get("class") for cell in root.iter("circle")] == ["replaced", "unplayed", "kept", "unplayed"]
    assert root.get("aria-label") == "1 replacements in 2 rounds played, of 4"


@pytest.mark.parametrize("higher", [True, False])
def test_the_scale_puts_the_better_value_to_the_right(higher):
    values = (0.1, 0.5, 0.6, 0.9)
    root = ElementTree.fromstring(better_scale(*values, higher_is_better=higher))
    federated, _, personal = (float(dot.get("cx")) for dot in root.iter("circle"))
    assert (personal > federated) == higher


def test_bars_are_shares_of_the_largest():
    assert 'style="width:50.00%"' in bar(5, 10, "sent")
    assert 'style="width:0.50%"' in bar(0, 10, "sent")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (4_561_000, "4.56 MB"), (99_960_000, "100 MB"), (999_600, "1 MB")],
)
def test_bytes_for_people(count, text):
    assert format_bytes(count) == text


def test_numbers_for_people():
    assert format_duration(59.6) == "1 min 00 s"
    assert format_duration(7) == "7 s"
    assert format_score("accuracy", 0.7125) == "71.2%"
    assert format_score("mse", 0.12345) == "0.123"
    assert format_score("mse", float("nan")) == "–"


def test_intervals_as_people_read_them():
    assert format_interval("accuracy", (0.781, 0.856)) == "78–86%"
    assert format_interval("mse", (0.081, 0.1049)) == "0.08–0.10"
    assert format_interval("mse", None) == "" == format_interval("mse", (math.nan, math.nan))
