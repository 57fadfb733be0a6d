"""edge_client.inference on tiny ONNX models made by hand, whose right answers are known exactly."""

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from edge_client.exported import ImageSettings
from edge_client.inference import (
    Predictor,
    encode_text,
    log_softmax,
    normalise,
    predict,
    read_image,
    save_png,
    to_pixels,
)
from tap_core.errors import UsageError

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SETTINGS = ImageSettings(size=64, mean=MEAN, std=STD)
WORDS = ["[PAD]", "[CLS]", "[SEP]", "red", "blue", "cat"]
PAD, CLS, SEP = 0, 1, 2
LENGTH = 3


def tensor(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def save_model(path, nodes, inputs, outputs, **constants):
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def write_export(directory, **values):
    directory.mkdir(parents=True)
    task = {
        "name": "tiny",
        "inputs": ["image"],
        "classes": [],
        "length": LENGTH,
        "image": {"size": 64, "mean": MEAN, "std": STD},
        "text_length": 8,
        "pad_token_id": PAD,
        "cls_token_id": CLS,
        "sep_token_id": SEP,
        "files": [],
    }
    (directory / "task.json").write_text(json.dumps(task | values))
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    tokenizer.add_special_tokens(WORDS[:3])
    tokenizer.enable_padding(length=20)  # inference must not depend on what the file says
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture
def colour_classifier(tmp_path):
    """logits = the mean of each channel, so the class is the strongest colour."""
    directory = write_export(tmp_path / "colours", kind="image_classification", classes=["red", "green", "blue"])
    save_model(
        directory / "model.onnx",
        [helper.make_node("ReduceMean", ["image"], ["logits"], axes=[2, 3], keepdims=0)],
        [tensor("image", ["B", 3, 64, 64])],
        [tensor("logits", ["B", 3])],
    )
    return directory


@pytest.fixture
def word_classifier(tmp_path):
    """logits[c] = how many tokens of the text, by the mask, are word c of the vocabulary."""
    directory = write_export(tmp_path / "words", kind="text_classification", inputs=["text"], classes=WORDS, image=None)
    save_model(
        directory / "model.onnx",
        [
            helper.make_node("Gather", ["identity", "input_ids"], ["one_hot"]),
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
            helper.make_node("Mul", ["one_hot", "column"], ["kept"]),
            helper.make_node("ReduceSum", ["kept", "axis"], ["logits"], keepdims=0),
        ],
        [tensor("input_ids", ["B", "S"], TensorProto.INT64), tensor("attention_mask", ["B", "S"], TensorProto.INT64)],
        [tensor("logits", ["B", len(WORDS)])],
        identity=np.eye(len(WORDS), dtype=np.float32),
        last=np.array([2], np.int64),
        axis=np.array([1], np.int64),
    )
    return directory


def image_task(directory, gain):
    write_export(directory, kind="image_generation")
    save_model(
        directory / "model.onnx",
        [helper.make_node("Mul", ["image", "gain"], ["pixels"])],
        [tensor("image", ["B", 3, 64, 64])],
        [tensor("pixels", ["B", 3, 64, 64])],
        gain=np.array(gain, np.float32),
    )
    return directory


LIKELY = np.log(
    np.array(  # log-probabilities by number of earlier words, last word, next word: greedy falls into a trap at "cat"
        [
            [[0.02, 0.01, 0.02, 0.30, 0.25, 0.40]] * 6,
            [[0.02, 0.01, 0.02, 0.90, 0.03, 0.02]] * 3
            + [[0.02, 0.01, 0.02, 0.05, 0.85, 0.05], [0.02, 0.01, 0.77, 0.05, 0.10, 0.05]]
            + [[0.10, 0.10, 0.20, 0.20, 0.20, 0.20]],
            [[0.02, 0.01, 0.90, 0.02, 0.03, 0.02]] * 3
            + [[0.10, 0.10, 0.20, 0.20, 0.20, 0.20]] * 2
            + [[0.10, 0.10, 0.20, 0.20, 0.20, 0.20]],
        ],
        np.float32,
    )
)


@pytest.fixture
def writer(tmp_path):
    """A writer whose next word depends on the number of cached words, the last word and the memory.

    The memory is the image's mean: a bright image makes "blue" likelier. The cache holds the words themselves, and the
    model adds the cached words' sum times zero, so a wrong cache shape fails and a right one is carried along.
    """
    directory = write_export(tmp_path / "writer", kind="text_generation")
    save_model(
        directory / "encoder.onnx",
        [
            helper.make_node("ReduceMean", ["image"], ["mean"], axes=[1, 2, 3], keepdims=0),
            helper.make_node("Unsqueeze", ["mean", "axes"], ["memory"]),
            helper.make_node("Shape", ["image"], ["batch"], start=0, end=1),
            helper.make_node("Concat", ["batch", "one"], ["shape"], axis=0),
            helper.make_node("ConstantOfShape", ["shape"], ["memory_mask"], value=helper.make_tensor("v", 7, [1], [1])),
        ],
        [tensor("image", ["B", 3, 64, 64])],
        [tensor("memory", ["B", 1, 1]), tensor("memory_mask", ["B", "M"], TensorProto.INT64)],
        axes=np.array([1, 2], np.int64),
        one=np.array([1], np.int64),
    )
    favour = np.zeros((1, 1, 6), np.float32)
    favour[0, 0, 4] = 10
    save_model(
        directory / "step.onnx",
        [
            helper.make_node("Shape", ["past_key"], ["earlier"], start=3, end=4),
            helper.make_node("Gather", ["likely", "earlier"], ["tables"]),  # (1, V, V)
            helper.make_node("Squeeze", ["tables", "first"], ["table"]),
            helper.make_node("Gather", ["table", "token"], ["row"]),  # (B, 1, V)
            helper.make_node("Mul", ["memory", "favour"], ["bias"]),
            helper.make_node("Cast", ["memory_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask", "last"], ["mask3"]),
            helper.make_node("Mul", ["bias", "mask3"], ["masked"]),
            helper.make_node("Add", ["row", "masked"], ["logits3"]),
            helper.make_node("Squeeze", ["logits3", "middle"], ["logits"]),
            helper.make_node("Cast", ["token"], ["word"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["word", "around"], ["word5"]),  # (1, B, 1, 1, 1)
            helper.make_node("Concat", ["past_key", "word5"], ["key"], axis=3),
            helper.make_node("Concat", ["past_value", "word5"], ["value"], axis=3),
        ],
        [
            tensor("token", ["B", 1], TensorProto.INT64),
            tensor("memory", ["B", 1, 1]),
            tensor("memory_mask", ["B", "M"], TensorProto.INT64),
            tensor("past_key", [1, "B", 1, "T", 1]),
            tensor("past_value", [1, "B", 1, "T", 1]),
        ],
        [tensor("logits", ["B", 6]), tensor("key", [1, "B", 1, "T1", 1]), tensor("value", [1, "B", 1, "T1", 1])],
        likely=LIKELY,
        favour=favour,
        first=np.array([0], np.int64),
        middle=np.array([1], np.int64),
        last=np.array([2], np.int64),
        around=np.array([0, 2, 3], np.int64),
    )
    return directory


def save_image(path, pixels):
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)
    return path


def solid(path, colour, size=64):
    return save_image(path, np.broadcast_to(np.array(colour, np.uint8), (size, size, 3)))


def mean_image(path):
    """The image that normalises to about zero, so that the writer's memory is about zero."""
    return solid(path, [round(255 * value) for value in MEAN])


@pytest.mark.parametrize(("colour", "label"), [((250, 9, 9), "red"), ((9, 250, 9), "green"), ((9, 9, 250), "blue")])
def test_the_strongest_colour_wins_at_any_image_size(colour_classifier, tmp_path, colour, label):
    result = predict(colour_classifier, image=solid(tmp_path / "in.png", colour, size=37))
    assert (result["task"], result["kind"], result["label"]) == ("tiny", "image_classification", label)
    assert sum(result["probabilities"].values()) == pytest.approx(1)
    assert list(result["probabilities"].values()) == sorted(result["probabilities"].values(), reverse=True)
    assert result["probability"] == result["probabilities"][label]


def test_probabilities_are_the_softmax_of_the_logits(colour_classifier, tmp_path):
    result = predict(colour_classifier, image=solid(tmp_path / "in.png", (200, 100, 50)))
    logits = [(v / 255 - m) / s for v, m, s in zip((200, 100, 50), MEAN, STD, strict=True)]
    expected = np.exp(logits) / np.exp(logits).sum()
    assert [result["probabilities"][c] for c in ("red", "green", "blue")] == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_text_is_tokenized_without_padding(word_classifier):
    result = predict(word_classifier, text="blue cat blue")
    logits = np.array([0, 1, 1, 0, 2, 1])  # [CLS] blue cat blue [SEP]
    assert result["label"] == "blue"
    assert result["probability"] == pytest.approx(math.exp(2) / np.exp(logits).sum())


def test_a_long_text_is_cut_and_keeps_its_end_token(word_classifier):
    tokenizer = Predictor(word_classifier).tokenizer
    assert encode_text(tokenizer, "red " * 50, 8) == [CLS, 3, 3, 3, 3, 3, 3, SEP]
    assert encode_text(tokenizer, "red", 8) == [CLS, 3, SEP]


def test_trap_6_every_pixel_value_survives_normalisation_and_back():
    every = np.arange(64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)
    assert set(every.ravel()) == set(range(256))
    assert np.array_equal(to_pixels(normalise(every, SETTINGS), SETTINGS), every)


def test_trap_6_values_out_of_range_are_clipped_and_do_not_wrap_round():
    ramp = np.linspace(-40, 40, 64 * 64 * 3, dtype=np.float32).reshape(3, 64, 64)
    pixels = to_pixels(ramp, SETTINGS)
    assert pixels[0, 0, 0] == 0
    assert pixels[-1, -1, -1] == 255
    assert (np.diff(pixels.transpose(2, 0, 1).reshape(3, -1).astype(int), axis=1) >= 0).all()


def test_trap_6_a_generated_image_comes_back_from_its_png(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    source = save_image(tmp_path / "in.png", noise)
    result = predict(image_task(tmp_path / "same", gain=1), image=source, output=tmp_path / "out.png")
    assert result == {
        "task": "tiny",
        "kind": "image_generation",
        "path": str(tmp_path / "out.png"),
        "width": 64,
        "height": 64,
    }
    assert np.array_equal(read_image(tmp_path / "out.png"), noise)
    source = save_image(tmp_path / "in.png", np.where(noise < 128, 0, 255))
    predict(image_task(tmp_path / "loud", gain=1000), image=source, output=tmp_path / "out.png")
    assert np.array_equal(read_image(tmp_path / "out.png"), np.where(noise < 128, 0, 255))


def test_greedy_takes_the_likeliest_word_and_beams_look_further(writer, tmp_path):
    predictor = Predictor(writer)
    inputs = predictor.inputs(image=mean_image(tmp_path / "mean.png"))
    greedy, beam = predictor.write(inputs), predictor.write(inputs, beams=4)
    assert greedy.tokens[0] == 5
    assert beam.score > greedy.score
    assert beam.text == "blue"


def test_a_wide_beam_equals_exhaustive_search(writer, tmp_path):
    predictor = Predictor(writer)
    inputs = predictor.inputs(image=mean_image(tmp_path / "mean.png"))
    memory = float(predictor.sessions["encoder.onnx"].run(["memory"], inputs)[0].item())
    best = predictor.write(inputs, beams=6**LENGTH)
    scores = {}
    for words in itertools.product(range(6), repeat=LENGTH):
        cut = words[: words.index(SEP) + 1] if SEP in words else words
        total, last = 0.0, CLS
        for position, word in enumerate(cut):
            logits = LIKELY[position, last] + np.eye(6)[4] * 10 * memory
            total += log_softmax(logits.astype(np.float64))[word]
            last = word
        scores[cut] = total / len(cut)
    winner = max(scores, key=scores.get)
    assert best.tokens == tuple(word for word in winner if word != SEP)
    assert best.score == pytest.approx(scores[winner], abs=1e-5)


def test_trap_2_the_answer_changes_with_the_image(writer, tmp_path):
    dark = predict(writer, image=solid(tmp_path / "dark.png", (0, 0, 0)))
    bright = predict(writer, image=solid(tmp_path / "bright.png", (255, 255, 255)))
    assert bright["answer"] == "blue blue blue"
    assert dark["answer"] != bright["answer"]
    assert bright["tokens"] == LENGTH


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "reads an input image and none is given; add --image"),
        ({"image": "nowhere.png"}, "nowhere.png is missing: no such image file; correct the path"),
        ({"image": "task.json"}, "task.json is not a readable image; give a PNG or JPEG file"),
        ({"image": "cut.png"}, "cut.png is not a readable image"),
        ({"image": "."}, "is not a readable image"),
        ({"image": "deep.png"}, "deep.png has more than 8 bits per channel"),
        ({"image": "red.png", "text": "red"}, "reads no text; leave --text out"),
        ({"image": "red.png", "output": "out.png"}, "writes no image; leave --output out"),
    ],
)
def test_bad_input_is_one_line_with_the_remedy(colour_classifier, monkeypatch, arguments, message):
    monkeypatch.chdir(colour_classifier)
    whole = solid(Path("red.png"), (255, 0, 0)).read_bytes()
    Path("cut.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save("deep.png")
    with pytest.raises(UsageError, match=message.replace(".", r"\.")) as caught:
        predict(colour_classifier, **arguments)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("task.json", None, "is no export .it has no task.json.; make one with: tap-client export"),
        ("task.json", b"{", "is not valid JSON"),
        ("task.json", b"\xff\xfe", "is not valid JSON"),
        ("task.json", b'{"name": "x"}', r"is not an export's task.json \(kind\)"),
        ("task.json", b'{"name": "x", "kind": "image_classification", "inputs": ["image"]}', "lacks 'image'"),
        ("encoder.onnx", None, "encoder.onnx is missing"),
        ("step.onnx", b"no model", "is not an ONNX model that onnxruntime can load"),
        ("step.onnx", b"", "is not an ONNX model that onnxruntime can load"),
        ("tokenizer.json", None, "tokenizer.json is missing"),
        ("tokenizer.json", b"[]", "is not a tokenizer"),
        ("tokenizer.json", b"{", "is not a tokenizer"),
    ],
)
def test_a_damaged_export_is_one_line_with_the_remedy(writer, name, content, message):
    (writer / name).unlink()
    if content is not None:
        (writer / name).write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        Predictor(writer)
    assert "\n" not in str(caught.value)


def test_a_png_that_cannot_be_written_leaves_nothing_behind(tmp_path):
    pixels = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(UsageError, match="cannot write"):
        save_png(pixels, tmp_path / "missing" / "out.png")
    (tmp_path / "directory.png").mkdir()
    with pytest.raises(UsageError, match="is a directory"):
        save_png(pixels, tmp_path / "directory.png")
    assert [path.name for path in tmp_path.iterdir()] == ["directory.png"]


def test_inference_leaves_the_training_libraries_unimported(colour_classifier, tmp_path):
    image = solid(tmp_path / "in.png", (255, 0, 0))
    program = (
        "import sys; from edge_client.inference import predict; "
        f"assert predict({str(colour_classifier)!r}, image={str(image)!r})['label'] == 'red'; "
        "print(sorted({'torch', 'transformers', 'peft', 'accelerate', 'datasets', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
