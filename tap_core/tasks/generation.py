"""Greedy and beam search with a key-value cache, for a text decoder on the backbone's tokens.

It knows the decoder's step and the special tokens' ids. It does not know tokenizers or tasks.
"""

import torch
from torch import Tensor

from tap_core.tasks.decoders import TextDecoder


@torch.no_grad()
def generate(
    decoder: TextDecoder, tokens: Tensor, mask: Tensor, embeddings: Tensor, *, start: int, end: int, beams: int = 1
) -> list[list[int]]:
    """Word ids of each example's answer, without the start and end tokens, at most ``decoder.length`` of them.

    ``tokens``: (B, T, d) with ``mask`` (B, T); ``embeddings``: (V, d_text). ``beams`` = 1 is greedy; more keeps that
    many hypotheses per example and returns the one with the best mean log-probability per word.
    """
    batch, device = tokens.shape[0], tokens.device
    tokens, mask = tokens.repeat_interleave(beams, 0), mask.repeat_interleave(beams, 0)
    word = torch.full((batch * beams, 1), start, device=device)
    words = torch.empty((batch * beams, 0), dtype=torch.long, device=device)
    scores = torch.full((batch, beams), float("-inf"), device=device)
    scores[:, 0] = 0  # all hypotheses begin equal: only one of them may branch
    finished = torch.zeros(batch * beams, dtype=torch.bool, device=device)
    past = None
    for _ in range(decoder.length):
        logits, past = decoder(tokens, mask, word, embeddings, past)
        step = torch.log_softmax(logits[:, -1].float(), dim=-1)  # (B * beams, V)
        vocabulary = step.shape[-1]
        step[finished] = float("-inf")  # a finished hypothesis is carried on unchanged, as another end token
        step[finished, end] = 0
        totals = (scores.reshape(-1, 1) + step).reshape(batch, -1)
        scores, flat = totals.topk(beams, dim=1)  # (B, beams)
        origin = (flat // vocabulary + torch.arange(batch, device=device)[:, None] * beams).reshape(-1)
        word = (flat % vocabulary).reshape(-1, 1)
        words = torch.cat([words[origin], word], dim=1)
        past = (past[0][:, origin], past[1][:, origin])
        finished = finished[origin] | (word[:, 0] == end)
        if bool(finished.all()):
            break
    lengths = (words == end).cumsum(1).eq(0).sum(1).add(1).clamp(max=words.shape[1]).reshape(batch, beams)
    best = (scores / lengths).argmax(dim=1) + torch.arange(batch, device=device) * beams
    return [row[: row.index(end)] if end in row else row for row in words[best].tolist()]
