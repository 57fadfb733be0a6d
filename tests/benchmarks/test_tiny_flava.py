"""The shipped foundation and the script that made it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_flava import card, corpus, model, objectives, pretrain, priors, probe, step, views, vocabulary
from tokenizers import Tokenizer
from transformers import AutoImageProcessor, AutoTokenizer, FlavaModel

DIRECTORY = Path(__file__).parents[2] / "deploy" / "demo" / "foundation" / "tiny-flava"


@pytest.fixture(scope="module")
def shipped():
    return FlavaModel.from_pretrained(DIRECTORY).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(DIRECTORY / "tokenizer.json"))


@pytest.fixture
def small_data(monkeypatch):
    """The pretraining data cut to a few dozen items, and a record of every column and split that is read."""
    read = []
    whole_rows = corpus.rows

    def few_rows(table, split, columns):
        read.append((table, split, tuple(columns)))
        return whole_rows(table, split, columns)[:64]

    monkeypatch.setattr(corpus, "rows", few_rows)
    return read


def small_recipe(steps):
    sizes = step.Sizes(fashion=4, emoji=4, texts=4, kept_patches=16, kept_of_whole=24)
    return pretrain.Recipe(steps=steps, whole_images=1, warmup=3, sizes=sizes)


def test_weights_and_vocabulary_are_small_and_whole(shipped, tokenizer):
    assert (DIRECTORY / "model.safetensors").stat().st_size <= 10_000_000
    assert 3_500 <= tokenizer.get_vocab_size() <= 4_500
    assert shipped.config.text_config.vocab_size == tokenizer.get_vocab_size()
    assert all(bool(parameter.isfinite().all()) for parameter in shipped.parameters())


def test_transformers_loads_the_tokenizer_and_the_image_preprocessing(tokenizer):
    loaded = AutoTokenizer.from_pretrained(DIRECTORY)
    assert [loaded.pad_token_id, loaded.unk_token_id, loaded.cls_token_id, loaded.sep_token_id] == [0, 1, 2, 3]
    text = "A ship, of war!"
    assert loaded(text)["input_ids"] == tokenizer.encode(text).ids
    assert loaded.decode(loaded(text)["input_ids"], skip_special_tokens=True) == "a ship, of war!"
    image = corpus.images("emoji", "test")[0]
    processor = AutoImageProcessor.from_pretrained(DIRECTORY)
    seen = processor(image.permute(1, 2, 0).numpy(), return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(seen, corpus.normalised(image), atol=1e-5, rtol=0)


def test_pretraining_runs_the_layers_as_the_backbone_does(shipped, tokenizer):
    """With adapters at zero, tap_core's tokens are those that the objectives saw."""
    from tap_core.components import owned_components
    from tap_core.examples import Example
    from tap_core.foundations import load_foundation
    from tap_core.model.tap_model import TapModel
    from tap_core.settings.federation import FederationConfig

    tasks = {"question": {"kind": "text_generation", "inputs": ["image", "text"]}}
    config = FederationConfig(name="test", foundation=str(DIRECTORY), tasks=tasks)
    task = config.tasks["question"]
    tap = TapModel(config, [task], load_foundation(str(DIRECTORY)))
    tap.initialise(0)
    tap.eval()
    assert "encoder/image" in owned_components([task])
    pixels = corpus.images("emoji", "test")[:2]
    texts = ["a short one", "which of these two is the longer one?"]
    examples = [Example(p.permute(1, 2, 0).numpy(), t, "answer") for p, t in zip(pixels, texts, strict=True)]
    batch = tap.preprocessor.batch(task, examples)
    with torch.no_grad():
        tokens = tap.encode(batch, "federated")
        image = model.mote(shipped, model.encode_image(shipped, batch.image)[1])
        text_mask = model.additive_mask(batch.attention_mask)
        text = model.mote(shipped, model.encode_text(shipped, batch.input_ids, batch.attention_mask)[1], text_mask)
        both = torch.cat((torch.ones(image.shape[:2]), batch.attention_mask.float()), dim=1)
        expected = model.mome(shipped, torch.cat((image, text), dim=1), model.additive_mask(both))
    torch.testing.assert_close(tokens.values[tokens.mask], expected[both.bool()], atol=1e-4, rtol=1e-4)


def test_equal_texts_give_equal_token_ids():
    texts = list(corpus.vocabulary_texts())[:4000]
    first, second = (vocabulary.train_tokenizer(texts, 400).get_vocab() for _ in range(2))
    assert first == second
    assert [first[token] for token in vocabulary.SPECIAL] == [0, 1, 2, 3, 4]


def test_pretraining_reads_train_splits_and_no_labels(small_data):
    step.Pretraining(vocabulary.train_tokenizer(corpus.vocabulary_texts(), 300), step.Sizes(), seed=0)
    assert {split for _, split, _ in small_data} == {"train"}
    assert {table for table, _, _ in small_data} == {"emoji", "fashion", "definitions", "sentences"}
    assert not {c for _, _, columns in small_data for c in columns} & {"group", "subgroup", "label", "category"}


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(small_data, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "CHECKPOINT_EVERY", 1)
    tokenizer = vocabulary.train_tokenizer(corpus.vocabulary_texts(), 300)
    monkeypatch.setattr(vocabulary, "train_tokenizer", lambda texts, size: tokenizer)
    pretrain.pretrain(small_recipe(3), tmp_path / "whole", tmp_path / "whole.pt")
    checkpoint = tmp_path / "parts.pt"
    save = torch.save

    def save_then_lose_power(state, path):
        save(state, path)
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", save_then_lose_power)
    with pytest.raises(KeyboardInterrupt):
        pretrain.pretrain(small_recipe(3), tmp_path / "parts", checkpoint)
    monkeypatch.setattr(torch, "save", save)
    record = pretrain.pretrain(small_recipe(3), tmp_path / "parts", checkpoint)
    assert [entry["step"] for entry in record["losses"]] == [1, 2, 3]
    whole, parts = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts


def test_the_learning_rate_warms_up_and_falls():
    recipe = pretrain.Recipe()
    rates = [pretrain.learning_rate(recipe, step) for step in range(recipe.steps)]
    peak = rates.index(max(rates))
    assert peak in (recipe.warmup - 1, recipe.warmup) and rates[peak] == recipe.learning_rate
    assert rates[: recipe.warmup] == sorted(rates[: recipe.warmup])
    assert rates[peak:] == sorted(rates[peak:], reverse=True) and rates[-1] < rates[peak] / 40


def test_every_objective_is_weighted_and_reaches_the_model(small_data):
    tokenizer = vocabulary.train_tokenizer(corpus.vocabulary_texts(), 300)
    flava = model.new_model(model.tiny_flava_config(tokenizer.get_vocab_size()), 0)
    heads = objectives.Heads(tokenizer.get_vocab_size())
    work = step.Pretraining(tokenizer, small_recipe(1).sizes, seed=0)
    losses = work.backward(flava, heads, 0)
    assert set(losses) == set(step.WEIGHTS) == set(card.OBJECTIVES)
    assert all(0 < loss < 20 for loss in losses.values())
    for layer in flava.multimodal_model.encoder.layer:
        unreached = [name for name, p in layer.named_parameters() if p.grad is None or not float(p.grad.abs().sum())]
        assert not unreached


def test_masking_spares_special_tokens_and_says_what_it_chose():
    ids = torch.randint(0, 50, (64, 40), generator=torch.Generator().manual_seed(0))
    changed, chosen = views.masked(ids, 0.3, 50, torch.Generator().manual_seed(1))
    special = ids < len(vocabulary.SPECIAL)
    assert not bool((chosen & special).any())
    assert bool((changed == ids)[~chosen].all())
    assert 0.25 < float(chosen[~special].float().mean()) < 0.35


def test_a_view_splits_the_patches():
    kept, hidden = views.split_patches(3, 20, torch.Generator().manual_seed(0))
    for row in torch.cat((kept, hidden), dim=1):
        assert sorted(row.tolist()) == list(range(model.PATCHES))


def test_patches_are_cut_row_by_row():
    pixels = torch.arange(3 * 64 * 64, dtype=torch.float32).reshape(1, 3, 64, 64)
    patches = objectives.patches_of(pixels)
    assert patches.shape == (1, model.PATCHES, 3 * model.PATCH**2)
    expected = pixels[0, :, 8:16, 16:24].flatten()
    torch.testing.assert_close(patches[0, 8 + 2], expected)


def test_pooling_ignores_padding():
    tokens = torch.tensor([[[1.0], [3.0], [100.0]]])
    assert float(model.pool(tokens, torch.tensor([[1, 1, 0]]))) == 2.0


def test_words_that_share_texts_start_close_together():
    cats, ships = list(range(10, 20)), list(range(20, 30))
    draw = np.random.default_rng(0)
    texts = [list(draw.choice(group, 5, replace=False)) for group in (cats, ships) for _ in range(60)]
    words = torch.nn.functional.normalize(priors.word_embeddings(texts, 80, 16, seed=0), dim=1)
    alike = words @ words.T
    assert float(alike[10:20, 10:20].mean()) > float(alike[10:20, 20:30].mean().abs()) + 0.3


def test_sketches_are_whitened(shipped):
    pixels = corpus.normalised(corpus.images("emoji", "train")[:400])
    sketch = priors.Sketch.fitted(pixels, components=20)(pixels)
    torch.testing.assert_close(torch.cov(sketch.T).diagonal(), torch.ones(20), atol=0.2, rtol=0)


def test_losses_fell_and_the_card_tells_what_was_measured():
    record = json.loads((DIRECTORY / card.RECORD).read_text(encoding="utf-8"))
    first, last = record["losses"][0], record["losses"][-1]
    assert all(last[name] < first[name] for name in card.OBJECTIVES)
    assert record["seconds"] <= 45 * 60
    assert (DIRECTORY / "README.md").read_text(encoding="utf-8") == card.render(record)


def test_pretrained_features_beat_random_ones(shipped, tokenizer):
    """The claim of the card on a part of the data: a nearest-mean classifier is enough to see it."""
    untrained = model.new_model(shipped.config, seed=0).eval()

    def text_accuracy(flava):
        found = [
            probe._of_texts(flava, tokenizer, probe._definitions("definitions", s)[:600]) for s in ("train", "test")
        ]
        return nearest_mean(found, [t[:600] for t in probe._targets("definition_category")])

    def image_accuracy(flava):
        found = [probe._of_images(flava, corpus.images("emoji", s)[::4]) for s in ("train", "test")]
        return nearest_mean(found, [t[::4] for t in probe._targets("emoji_group")])

    assert text_accuracy(shipped) > text_accuracy(untrained) + 0.1
    assert image_accuracy(shipped) > image_accuracy(untrained) + 0.1


def nearest_mean(features, targets):
    mean, std = features[0].mean(dim=0), features[0].std(dim=0) + 1e-6
    train, test = ((f - mean) / std for f in features)
    centres = torch.stack([train[targets[0] == label].mean(dim=0) for label in range(int(targets[0].max()) + 1)])
    return float((torch.cdist(test, centres).argmin(dim=1) == targets[1]).float().mean())
