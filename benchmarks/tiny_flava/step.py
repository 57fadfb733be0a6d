"""One optimizer step's losses: images alone, texts alone, and emoji images with their names and keywords.

It draws batches and views, runs the three streams as model.py says and sums the objectives. It does not optimise.
"""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import FlavaModel

from tiny_flava import corpus, objectives, views
from tiny_flava.model import additive_mask, encode_image, encode_text, mome, mote, pool
from tiny_flava.objectives import Heads
from tiny_flava.priors import Sketch, word_embeddings
from tiny_flava.vocabulary import SPECIAL

LONGEST = 64


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Examples per step: fashion images, emoji (images with captions), texts; and how many patches a view keeps."""

    fashion: int = 24
    emoji: int = 24
    texts: int = 112
    kept_patches: int = 24
    kept_of_whole: int = 48


@dataclasses.dataclass(frozen=True)
class EmojiView:
    """One view of a batch of emoji images: the tower's [CLS] (B, d), tokens after MoTE (B, S, d), pooled output."""

    cls: Tensor
    tokens: Tensor
    pooled: Tensor


class Chance:
    """The random numbers of one branch of one step."""

    def __init__(self, seed: int, step: int, branch: int) -> None:
        self.draw = np.random.default_rng([seed, 4, step, branch])
        self.generator = torch.Generator().manual_seed((seed * 1_000_003 + step) * 2 + branch)


WEIGHTS = {
    "masked_patches": 1.0,
    "coarse_image": 1.0,
    "sketch": 3.0,
    "image_views": 0.5,
    "masked_words": 1.0,
    "bag_of_words": 1.0,
    "word_definition": 0.75,
    "caption_words": 0.5,
    "image_name": 0.5,
    "image_name_towers": 0.25,
    "matching": 0.5,
}


class Pretraining:
    """The batches and the losses of pretraining, drawn from one seed."""

    def __init__(self, tokenizer: Tokenizer, sizes: Sizes, seed: int) -> None:
        self.sizes = sizes
        self.vocabulary = tokenizer.get_vocab_size()
        self.fashion = corpus.images("fashion", "train")
        self.emoji = corpus.images("emoji", "train")
        pairs = corpus.text_pairs()
        self.short = corpus.tokenized(tokenizer, [short for short, _ in pairs], LONGEST)
        self.long = corpus.tokenized(tokenizer, [long for _, long in pairs], LONGEST)
        self.captions = corpus.captions()
        self.tokenizer = tokenizer
        repeated = self.emoji.repeat(len(self.fashion) // len(self.emoji) // 2, 1, 1, 1)
        self.sketch = Sketch.fitted(corpus.normalised(torch.cat((self.fashion, repeated))))
        self.word_weights = self._inverse_frequencies()
        self.seed = seed
        lengths = np.array([len(ids) for ids in self.long])
        self.fashion_batches = corpus.index_batches(len(self.fashion), sizes.fashion, np.random.default_rng([seed, 1]))
        self.emoji_batches = corpus.index_batches(len(self.emoji), sizes.emoji, np.random.default_rng([seed, 2]))
        self.text_batches = corpus.bucketed_batches(lengths, sizes.texts, np.random.default_rng([seed, 3]))

    def skip(self, steps: int) -> None:
        """Pass over the batches of the first ``steps`` steps: a resumed run sees what an unbroken one sees."""
        for _ in range(steps):
            next(self.fashion_batches), next(self.emoji_batches), next(self.text_batches)

    def _inverse_frequencies(self) -> Tensor:
        """A weight for each word of a bag: rare words count more, special tokens nothing."""
        seen = np.bincount(np.concatenate([np.unique(ids) for ids in self.long]), minlength=self.vocabulary)
        weights = torch.tensor(np.log(len(self.long) / (1 + seen)), dtype=torch.float32).clamp(min=0)
        weights[: len(SPECIAL)] = 0
        return weights

    def starting_embeddings(self, width: int) -> Tensor:
        """Word embeddings from the co-occurrence of words in the train texts (see priors.py)."""
        texts = [short + long for short, long in zip(self.short, self.long, strict=True)]
        named = [", ".join([name, *keywords]) for name, keywords in self.captions]
        texts += 3 * corpus.tokenized(self.tokenizer, named, LONGEST)
        return word_embeddings(texts, self.vocabulary, width, self.seed)

    def backward(self, model: FlavaModel, heads: Heads, step: int, *, whole: bool = False) -> dict[str, float]:
        """Add the gradients of ``step``'s weighted losses; return the losses, unweighted.

        Steps are to be taken in order (see `skip`). ``whole`` shows nearly whole images: how the model will be used.
        Images and texts run in a thread each. A parameter's gradient is then the sum of two numbers, which does not
        depend on the thread that comes first.
        """
        keep = self.sizes.kept_of_whole if whole else self.sizes.kept_patches
        fashion, emoji, texts = next(self.fashion_batches), next(self.emoji_batches), next(self.text_batches)

        def with_images() -> dict[str, float]:
            chance = Chance(self.seed, step, 0)
            found, view = self._images(model, heads, fashion, emoji, keep, chance)
            return _backward(found | self._captioned(model, heads, emoji, view, chance))

        def with_texts() -> dict[str, float]:
            return _backward(self._texts(model, heads, texts, Chance(self.seed, step, 1)))

        with ThreadPoolExecutor(2) as threads:
            both = [threads.submit(with_images), threads.submit(with_texts)]
            return both[0].result() | both[1].result()

    def _images(
        self, model: FlavaModel, heads: Heads, fashion: np.ndarray, emoji: np.ndarray, keep: int, chance: Chance
    ) -> tuple[dict[str, Tensor], EmojiView]:
        """Losses of images alone, and the emoji's first view for `_captioned`."""
        plain = corpus.normalised(torch.cat((self.emoji[emoji], self.fashion[fashion])))
        count = len(plain)
        pixels = torch.cat((views.augmented(plain, chance.generator), views.augmented(plain, chance.generator)))
        kept, hidden = views.split_patches(2 * count, keep, chance.generator)
        tower, tokens = encode_image(model, pixels, kept)
        alone = mote(model, tokens)
        out = mome(model, alone)
        pooled = pool(out)
        projected = heads.image_view(heads.pooled_norm(pooled))
        found = {
            "masked_patches": objectives.masked_patches(
                heads, out[:count], kept[:count], hidden[:count], pixels[:count]
            ),
            "coarse_image": objectives.coarse_image(heads, pooled, pixels),
            "sketch": objectives.sketched(heads, pooled, self.sketch(pixels)),
            "image_views": objectives.two_views(projected[:count], projected[count:]),
        }
        first = slice(len(emoji))
        return found, EmojiView(cls=tower[first, 0], tokens=alone[first], pooled=pooled[first])

    def _texts(self, model: FlavaModel, heads: Heads, batch: np.ndarray, chance: Chance) -> dict[str, Tensor]:
        """Losses of texts alone: masked words, the text's own words, and the word that it defines."""
        ids, attention = corpus.padded([self.long[i] for i in batch])
        changed, chosen = views.masked(ids, 0.2, self.vocabulary, chance.generator)
        mask = additive_mask(attention)
        positions = views.shifted_positions(ids.shape, chance.generator)
        out = mome(model, mote(model, encode_text(model, changed, attention, positions)[1], mask), mask)
        pooled = pool(out, attention)
        short, short_attention = corpus.padded([self.short[i] for i in batch])
        short_mask = additive_mask(short_attention)
        word = mome(model, mote(model, encode_text(model, short, short_attention)[1], short_mask), short_mask)
        defined = heads.text_view(heads.pooled_norm(pooled))
        named = heads.text_view(heads.pooled_norm(pool(word, short_attention)))
        return {
            "masked_words": objectives.masked_words(heads, model, out, chosen, ids),
            "bag_of_words": objectives.bag_of_words(
                heads, model, pooled, objectives.bags([ids, short], self.word_weights)
            ),
            "word_definition": objectives.contrast(defined, named, 10.0)[0],
        }

    def _captioned(
        self, model: FlavaModel, heads: Heads, emoji: np.ndarray, view: EmojiView, chance: Chance
    ) -> dict[str, Tensor]:
        """Losses of emoji with captions: masked words given the image, contrast, and matching."""
        ids, attention = corpus.padded(corpus.tokenized(self.tokenizer, [self._caption(i, chance) for i in emoji], 40))
        changed, chosen = views.masked(ids, 0.3, self.vocabulary, chance.generator)
        mask = additive_mask(attention)
        tower, tokens = encode_text(model, changed, attention)
        text = mote(model, tokens, mask)
        text_pooled = heads.pooled_norm(pool(mome(model, text, mask), attention))
        image, image_pooled = view.tokens, heads.pooled_norm(view.pooled)
        scale = heads.temperature.exp().clamp(max=50)
        met, scores = objectives.contrast(
            heads.meeting["image"](image_pooled), heads.meeting["text"](text_pooled), scale
        )
        towers, _ = objectives.contrast(
            model.image_projection(view.cls), model.text_projection(tower[:, 0]), model.logit_scale.exp().clamp(max=50)
        )
        wrong = _hard_negatives(scores.detach() * scale.detach(), chance)
        both_mask = torch.cat((torch.ones(image.shape[:2]), attention.float()), dim=1)
        wrong_mask = torch.cat((torch.ones(image.shape[:2]), attention[wrong].float()), dim=1)
        right_out = mome(model, torch.cat((image, text), dim=1), additive_mask(both_mask))
        wrong_out = mome(model, torch.cat((image, text[wrong]), dim=1), additive_mask(wrong_mask))
        return {
            "caption_words": objectives.masked_words(heads, model, right_out[:, image.shape[1] :], chosen, ids),
            "image_name": met,
            "image_name_towers": towers,
            "matching": objectives.matching(heads, pool(right_out, both_mask), pool(wrong_out, wrong_mask)),
        }

    def _caption(self, index: int, chance: Chance) -> str:
        """The emoji's name, some of its keywords in random order, or both."""
        name, keywords = self.captions[index]
        some = list(chance.draw.permutation(keywords)[:6]) if keywords else []
        form = chance.draw.integers(4)
        if form == 0 or not some:
            return name
        return ", ".join(some) if form == 1 else ", ".join([name, *some])


def _backward(losses: dict[str, Tensor]) -> dict[str, float]:
    sum(WEIGHTS[name] * loss for name, loss in losses.items()).backward()
    return {name: float(loss.detach()) for name, loss in losses.items()}


def _hard_negatives(scores: Tensor, chance: Chance) -> Tensor:
    """For each image another caption of the batch, the likelier the more it resembles the right one (B,)."""
    weights = scores.masked_fill(torch.eye(len(scores), dtype=torch.bool), float("-inf")).softmax(dim=1)
    return torch.multinomial(weights, 1, generator=chance.generator)[:, 0]
