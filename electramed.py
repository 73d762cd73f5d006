"""The ELECTRA model: a small generator fills in hidden tokens, a discriminator finds the ones it replaced.

By itself it trains a model on rows of token ids, here on one: [CLS], the ids 5 to 38, [SEP].

>>> special = {"cls_token_id": 2, "sep_token_id": 3, "mask_token_id": 4}
>>> config = dataclasses.replace(PRESETS["tiny"], vocab_size=40, **special)
>>> ids = torch.tensor([[2, *range(5, 39), 3]])                                         # (B, T) = (1, 36)
>>> model = ElectraForPretraining(config)
>>> optimizer, random, losses = Adam(model.parameters()), torch.Generator().manual_seed(0), []
>>> for step in range(20):
...     masked = mask_tokens(ids, torch.ones_like(ids), config, random)
...     output = model(masked)
...     output.loss.backward()
...     optimizer.step(1e-3)
...     losses.append(output.loss.item())
>>> losses[-1] < losses[0]
True

After reading this file you know the whole method of ELECTRAMed and Bio-ELECTRA: the transformer encoder, the
masking, the two networks with their shared embeddings, the loss  L = L_MLM + 50 L_Disc,  the heads that turn
the discriminator into a tagger, a classifier or a question answerer, the optimiser, and the model's files.

    [CLS] the drug  treats fever [SEP]      original tokens
    [CLS] the drug [MASK]  fever [SEP]      15 % are chosen; most of these are hidden      mask_tokens
    [CLS] the drug  causes fever [SEP]      the generator's guess is written there         replace_tokens
       0    0    0     1     0     0        the discriminator learns to tell which differ  Discriminator

One such step with all its numbers stands at ElectraForPretraining.

Where it stands: data.py makes padded batches of token ids; the two trainers feed them to the models here.
Left out: reading text, training loops, metrics (data.py, train_*.py, metrics.py).
Sources: Clark et al. 2020 (ELECTRA) and its official TensorFlow code ("TF": file and function are named where
a rule or a constant comes from it), Miolo et al. 2021 (ELECTRAMed, Table 1), Ozyurt 2020 (Bio-ELECTRA).

    1. Configuration and presets        5. Task heads
    2. Encoder                          6. Optimiser and schedule
    3. Masking and replacement          7. Model folders and checkpoints    (skip on first reading)
    4. Pre-training model               8. Device                           (at first only Device.put)

Dimension letters:  B sequences, T tokens, N masked slots, V vocabulary, E embedding, H hidden (Hg in the
generator), A heads, D head width, L layers, C labels.
"""
from __future__ import annotations

import atexit
import contextlib
import ctypes
import dataclasses
import datetime
import io
import json
import math
import os
import re
import shutil
import sys
import textwrap
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DISCRIMINATOR_WEIGHT = 50.0     # TF configure_pretraining.py: the binary loss is small, its weight large
HIDE_PROBABILITY = 0.85         # TF pretrain_helpers.mask: of the chosen tokens; the other 15 % stay readable
PRECISIONS = ("float32", "bfloat16")            # in which a Device multiplies matrices
EPSILON = 1e-6                  # keeps a loss over zero tokens at 0 instead of nan
# Stands where no label is: special tokens, padding, wordpieces inside a word. F.cross_entropy leaves it out.
IGNORED_LABEL = -100
# These sizes must be the same in two networks before weights can be copied from one to the other.
SIZES = ("vocab_size", "embedding_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
         "intermediate_size", "type_vocab_size")


# --- 1. Configuration and presets ---

@dataclasses.dataclass(frozen=True)
class ElectraConfig:
    """Hold the sizes of one network, named as in Hugging Face's config.json; by default ELECTRA-small's."""

    vocab_size: int = 30522                 # V, wordpieces
    embedding_size: int = 128               # E, projected to H when they differ
    hidden_size: int = 256                  # H
    num_hidden_layers: int = 12             # L
    num_attention_heads: int = 4            # A, each D = H / A wide
    intermediate_size: int = 1024           # inner width of the feed-forward network
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512      # longest sequence, tokens
    type_vocab_size: int = 2                # segments A and B
    initializer_range: float = 0.02         # standard deviation of the initial weights
    layer_norm_eps: float = 1e-12           # TF modeling.layer_norm
    pad_token_id: int = 0
    cls_token_id: int | None = None         # these three are the vocabulary's: 102, 103, 104 in SciVocab
    sep_token_id: int | None = None
    mask_token_id: int | None = None
    generator_size: float = 0.25            # generator's H and A as a share of the discriminator's
    mask_prob: float = 0.15                 # share of the tokens of a row that are chosen for masking

    def __post_init__(self) -> None:
        for name in (*SIZES, "max_position_embeddings"):
            if not isinstance(value := getattr(self, name), int) or value < 1:
                raise ValueError(f"{name} must be a whole number from 1, not {value!r}")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "mask_prob", "initializer_range",
                     "layer_norm_eps"):
            if not (isinstance(value := getattr(self, name), (int, float)) and 0 <= value < 1):
                raise ValueError(f"{name} must be a number from 0 and below 1, not {value}")
        if not 0 < self.generator_size <= 1:
            raise ValueError(f"generator_size must be above 0 and up to 1, not {self.generator_size}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"{self.num_attention_heads} heads do not divide hidden_size {self.hidden_size}")

    def num_slots(self, length: int) -> int:
        """Return N, the masked slots of a row padded to `length` tokens: 19 at 128, 77 at 512.

        mask_tokens chooses round(mask_prob * real tokens) of a row, and a row has at most `length` real
        tokens. So N slots hold the choice of every row.
        TF computes N once, from the maximum length in its configuration. ELECTRAMed's released configuration
        does so while the maximum is still 128, and sets it to 512 afterwards. N then stays at 19, although 79
        were meant (TF's formula leaves two slots of 79 unused). Here N follows from the actual length.
        """
        return max(1, round(self.mask_prob * length))

    def generator(self) -> ElectraConfig:
        """Return the generator's configuration: same depth and embeddings, narrower by `generator_size`.

        For `base`: hidden size 768 / 3 = 256, 256 / 64 = 4 heads, feed-forward network 4 * 256 = 1024.
        A generator is at least 64 wide, the width of one head; where the discriminator is narrower than that,
        both are alike. This minimum is ours, and of the presets it changes only `tiny`: a quarter of its 128
        would be 32.
        """
        hidden = min(self.hidden_size, max(64, round(self.hidden_size * self.generator_size)))
        # Heads of 64, or a little wider where heads of 64 do not divide the width evenly.
        heads = max(count for count in range(1, max(1, hidden // 64) + 1) if hidden % count == 0)
        return dataclasses.replace(self, hidden_size=hidden, num_attention_heads=heads,
                                   intermediate_size=4 * hidden)

    def with_tokenizer(self, tokenizer: Any) -> ElectraConfig:
        """Return this configuration with the vocabulary size and the special ids of a Tokenizer."""
        return dataclasses.replace(
            self, vocab_size=len(tokenizer.pieces), pad_token_id=tokenizer.pad_id,
            cls_token_id=tokenizer.cls_id, sep_token_id=tokenizer.sep_id, mask_token_id=tokenizer.mask_id)

    def to_json(self) -> str:
        """Return this configuration as the text of a config.json, which Hugging Face reads too."""
        values = {"model_type": "electra", "hidden_act": "gelu", **dataclasses.asdict(self)}
        return json.dumps(values, indent=2)

    @classmethod
    def from_json(cls, text: str) -> ElectraConfig:
        """Return the configuration that the text of a config.json describes.

        Published files hold many keys that have no effect on this model: they are ignored.
        raises   ValueError for a key that would make the model compute something else
        """
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError(f"expected a JSON object, found {type(values).__name__}")
        for key, supported in (("model_type", "electra"), ("hidden_act", "gelu"),
                               ("position_embedding_type", "absolute"), ("is_decoder", False)):
            if values.get(key, supported) != supported:
                raise ValueError(f"{key} is {values[key]!r}, and only {supported!r} is implemented")
        # Hugging Face does not use these two keys, and some published files hold text there.
        for key in ("generator_size", "mask_prob"):
            if isinstance(values.get(key), str):
                del values[key]
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: values[name] for name in names if name in values})


SMALL = ElectraConfig()
BASE = ElectraConfig(embedding_size=768, hidden_size=768, num_attention_heads=12, intermediate_size=3072,
                     generator_size=1 / 3)
PRESETS = {
    # `tiny` is ours, for a first look: minutes on a CPU. In so short a time it cannot overfit, so it does
    # without dropout, which would take half of the time. Its weights start larger: 0.02 suits a width of 768,
    # and at a width of 128 the same relative size is 0.02 * sqrt(768 / 128) = 0.05.
    "tiny": ElectraConfig(hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512,
                          hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.05),
    "small": SMALL,
    "base": BASE,
    "large": ElectraConfig(embedding_size=1024, hidden_size=1024, num_hidden_layers=24,
                           num_attention_heads=16, intermediate_size=4096, mask_prob=0.25),
    "electramed": dataclasses.replace(BASE, vocab_size=31090),          # ELECTRAMed, Table 1
    "bio-electra": dataclasses.replace(SMALL, vocab_size=31620),
    "bio-electra-pp": dataclasses.replace(SMALL, vocab_size=31620)}     # the same, continued on full papers


# --- 2. Encoder ---

def dropout(x: Tensor, p: float, is_training: bool) -> Tensor:
    """Return `x` with a random share `p` of its entries set to 0 and the others divided by 1 - p.

    The division keeps the expected value, so that evaluation needs no factor. This is F.dropout. On a CPU a
    sixth of the time of pre-training would go into its random numbers; draw_kept (below) needs a quarter of
    that sixth.
    """
    if x.device.type == "cpu" and is_training and p > 0:
        return x * (draw_kept(x.shape, p) / (1 - p)).to(x.dtype)
    return F.dropout(x, p, is_training)


def attend(query: Tensor, key: Tensor, value: Tensor, may_attend: Tensor, p: float) -> Tensor:
    """Compute attention:  dropout(softmax(Q K^T / sqrt(D) + mask)) V,  the mask being -inf at padding.

    query, key, value   (B, A, T, D)
    may_attend          (B, 1, 1, T) bool, False at padding
    p                   dropout of the attention weights; 0 outside of training
    returns             (B, A, T, D)

    One call of torch computes it all, in a kernel that never stores the (T, T) weights. On a CPU that kernel
    is slow with dropout and in bfloat16; for these two cases the formula is written out below.
    """
    if query.device.type == "cpu" and (p > 0 or query.dtype == torch.bfloat16):
        return attend_on_cpu(query, key, value, may_attend, p)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=may_attend, dropout_p=p)


# What makes the two fast on a CPU. Skip this on first reading, down to "Layers".

def draw_kept(shape: torch.Size, p: float) -> Tensor:
    """Draw booleans on the CPU: which entries dropout keeps. Each is False with probability `p`.

    torch's bernoulli_ draws a floating-point number of 53 random bits for each entry. Here 16 bits decide, so
    that one 64-bit integer serves four entries. Read as a signed integer, 16 bits lie between -2^15 and
    2^15 - 1, and an entry is dropped when they lie below  p * 2^16 - 2^15.  This rounds p to a multiple of
    1 / 65,536 (0.1 becomes 0.10001) and takes a quarter of the time of bernoulli_.
    """
    count = shape.numel()
    # random_ draws from -2^63 to the largest int64, which None stands for.
    integers = torch.empty(count // 4 + 1, dtype=torch.int64).random_(-2**63, None)
    return integers.view(torch.int16)[:count].view(shape) >= round(p * 2**16) - 2**15


def attend_on_cpu(query: Tensor, key: Tensor, value: Tensor, may_attend: Tensor, p: float) -> Tensor:
    """Compute the formula of `attend`, one operation after the other, on the same shapes.

    A fused kernel computes the whole formula in one go. On a CPU torch's fused kernel has no dropout. With
    dropout torch falls back on a general form, which takes 1.5 times as long as this function. The backward
    pass of the fused kernel is slow in bfloat16, since it does not use the CPU's bfloat16 products.
    Forward and backward on one core of an AMD EPYC that has such products, in milliseconds:

                                            this    fused
        bfloat16,   8 x 128 tokens,  4 heads     5.2     11.8
        bfloat16,   2 x 512 tokens, 12 heads      40       60
        float32,    8 x 128 tokens,  4 heads     7.2      6.5       no gain: `attend` keeps the kernel
        float32,    2 x 512 tokens, 12 heads      75       65
    """
    scores = query / math.sqrt(query.shape[-1]) @ key.transpose(-2, -1)             # (B, A, T, T)
    penalty = torch.zeros(may_attend.shape).masked_fill(~may_attend, -math.inf)     # (B, 1, 1, T)
    weights = scores.add_(penalty).softmax(-1)                                      # (B, A, T, T)
    if p == 0:
        return weights @ value                                                      # (B, A, T, D)
    # Multiplying by 0 or 1 takes half of the time of torch.where, forward and backward. The factor
    # 1 / (1 - p) is applied to the values, which are D wide, and not to the weights, which are T wide.
    kept = draw_kept(weights.shape, p).to(weights.dtype)
    return weights * kept @ (value / (1 - p))                                       # (B, A, T, D)


# Layers, from the initial weights up to the whole encoder.

# Names of the layers whose weights start by rule (2) of `initialise`.
GLOROT = ("embeddings_project", "dense_prediction", "classifier", "out_proj", "qa_outputs")


def initialise(model: nn.Module, config: ElectraConfig) -> None:
    """Draw all weights of `model` anew, in place, from torch's global generator.

    Three rules of TF:
    (1) Dense layers and embeddings: normal with mean 0 and standard deviation initializer_range (0.02), drawn
        again when beyond two standard deviations (modeling.create_initializer).
    (2) The layers named in GLOROT (projection of the embeddings, discriminator's last layer, task heads):
        Glorot-uniform, which is TF's default. TF names no other initializer for these layers.
    (3) Biases are 0. (A LayerNorm starts with factor 1 and shift 0, as torch makes it.)
    """
    bound = 2 * config.initializer_range
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            if name.split(".")[-1] in GLOROT:
                nn.init.xavier_uniform_(module.weight)
            else:
                nn.init.trunc_normal_(module.weight, std=config.initializer_range, a=-bound, b=bound)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)


class Embeddings(nn.Module):
    """Add up word, position and segment embeddings, and normalise; generator and discriminator share them."""

    def __init__(self, config: ElectraConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.embedding_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.embedding_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.embedding_size)
        self.LayerNorm = nn.LayerNorm(config.embedding_size, eps=config.layer_norm_eps)
        self.dropout = config.hidden_dropout_prob

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """Return the (B, T, E) embeddings of (B, T) token ids and (B, T) segments."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)       # (T,)
        summed = (self.word_embeddings(input_ids)                                   # (B, T) -> (B, T, E)
                  + self.position_embeddings(positions)                             # (T, E) in each row
                  + self.token_type_embeddings(token_type_ids))                     # (B, T) -> (B, T, E)
        return dropout(self.LayerNorm(summed), self.dropout, self.training)


class EncoderLayer(nn.Module):
    """Apply self-attention, then a feed-forward network; add each to its input and normalise (post-norm).

    The nested dictionaries give the weights the names of the published state dicts
    (attention.self.query, attention.output.LayerNorm, intermediate.dense, ...), so that files map key by key.
    """

    def __init__(self, config: ElectraConfig) -> None:
        super().__init__()
        H, inner, eps = config.hidden_size, config.intermediate_size, config.layer_norm_eps
        self.attention: Any = nn.ModuleDict({
            "self": nn.ModuleDict({name: nn.Linear(H, H) for name in ("query", "key", "value")}),
            "output": nn.ModuleDict({"dense": nn.Linear(H, H), "LayerNorm": nn.LayerNorm(H, eps)})})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(H, inner)})
        self.output = nn.ModuleDict({"dense": nn.Linear(inner, H), "LayerNorm": nn.LayerNorm(H, eps)})
        self.heads = config.num_attention_heads
        self.dropout, self.attention_dropout = config.hidden_dropout_prob, config.attention_probs_dropout_prob

    def forward(self, x: Tensor, may_attend: Tensor) -> Tensor:
        """Return the next (B, T, H) hidden states; may_attend (B, 1, 1, T) is False at padding."""
        # 1. Every token asks (query), is asked (key) and answers (value), in A heads of width D = H / A.
        query, key, value = (self.split_heads(self.attention["self"][name](x))
                             for name in ("query", "key", "value"))                 # (B, A, T, D) each
        mixed = attend(query, key, value, may_attend, self.attention_dropout if self.training else 0.0)
        mixed = mixed.transpose(1, 2).reshape(x.shape)                  # (B, A, T, D) -> (B, T, H)
        x = self.add_and_normalise(x, mixed, self.attention["output"])
        # 2. Every token by itself passes through a wider layer; F.gelu is the exact form with erf, as in TF.
        inner = F.gelu(self.intermediate["dense"](x))                             # (B, T, H) -> (B, T, inner)
        return self.add_and_normalise(x, inner, self.output)                      # (B, T, inner) -> (B, T, H)

    def split_heads(self, x: Tensor) -> Tensor:
        """Return (B, T, H) as (B, A, T, D)."""
        B, T, H = x.shape
        return x.view(B, T, self.heads, H // self.heads).transpose(1, 2)        # (B, T, A, D) -> (B, A, T, D)

    def add_and_normalise(self, x: Tensor, update: Tensor, output: Any) -> Tensor:
        """Compute LayerNorm(x + dropout(dense(update)))."""
        return output["LayerNorm"](x + dropout(output["dense"](update), self.dropout, self.training))


Mask = Tensor | None       # (B, T) of ones and zeros; None stands for the defaults of ElectraEncoder.forward


def with_defaults(input_ids: Tensor, attention_mask: Mask, token_type_ids: Mask) -> tuple[Tensor, Tensor]:
    """Return attention mask and segments (B, T): ones and zeros where they are not given."""
    return (torch.ones_like(input_ids) if attention_mask is None else attention_mask,
            torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids)


class ElectraEncoder(nn.Module):
    """Turn token ids into one hidden state per token: the transformer that both networks are made of.

    There is no pooler, BERT's extra layer on [CLS]: the hidden state of [CLS] itself stands for a sequence.

    embeddings   shared Embeddings of another encoder, or None for its own
    source       TF modeling.BertModel
    """

    def __init__(self, config: ElectraConfig, embeddings: Embeddings | None = None) -> None:
        super().__init__()
        self.embeddings = Embeddings(config) if embeddings is None else embeddings
        self.embeddings_project = (nn.Linear(config.embedding_size, config.hidden_size)
                                   if config.embedding_size != config.hidden_size else None)
        self.encoder: Any = nn.ModuleDict({
            "layer": nn.ModuleList(EncoderLayer(config) for _ in range(config.num_hidden_layers))})
        self.config = config
        initialise(self, config)

    def forward(self, input_ids: Tensor, attention_mask: Mask = None, token_type_ids: Mask = None) -> Tensor:
        """Return (B, T, H) hidden states.

        input_ids        (B, T) token ids
        attention_mask   (B, T) 1 on real tokens, 0 on padding; None: all tokens are real
        token_type_ids   (B, T) 0 in the first segment, 1 in the second; None: all are of the first segment
        raises           ValueError for more tokens or segments than the model has embeddings for
        """
        attention_mask, token_type_ids = with_defaults(input_ids, attention_mask, token_type_ids)
        if self.config.type_vocab_size == 1 and token_type_ids.any():
            raise ValueError("type_vocab_size is 1: this model has no second segment, so it takes no pairs")
        if input_ids.shape[1] > self.config.max_position_embeddings:
            positions = self.config.max_position_embeddings
            raise ValueError(f"{input_ids.shape[1]} tokens in a row, but the model has {positions} positions")
        x = self.embeddings(input_ids, token_type_ids)                              # (B, T, E)
        if self.embeddings_project is not None:
            # Under autocast the product is bfloat16: too coarse for the sums that go from layer to layer.
            x = self.embeddings_project(x).to(x.dtype)                              # (B, T, E) -> (B, T, H)
        may_attend = attention_mask[:, None, None, :].bool()                        # (B, T) -> (B, 1, 1, T)
        for layer in self.encoder["layer"]:
            x = layer(x, may_attend)
        return x


class Network(nn.Module):
    """Hold an encoder and its configuration: what the networks below have in common.

    Each adds its head, and `architecture`: transformers' name for the network, written to config.json.
    """

    def __init__(self, config: ElectraConfig, embeddings: Embeddings | None = None) -> None:
        super().__init__()
        self.config, self.electra = config, ElectraEncoder(config, embeddings)


# --- 3. Masking and replacement ---

def pad_rows(rows: Sequence[tuple[Any, int]], pad_id: int, width: int | None = None) -> tuple[Tensor, ...]:
    """Pad rows to one width; return ids, attention mask and segments, (B, T) int64 each, as all models take.

    rows    (token ids, tokens of [CLS] A [SEP]) of each, as Tokenizer.row gives them
    width   T; None: that of the longest row
    returns the mask is 1 on real tokens, 0 on padding; segments are 1 on B [SEP], 0 elsewhere

    >>> for tensor in pad_rows([([2, 7, 3, 8, 3], 3)], pad_id=0, width=6):
    ...     print(tensor.tolist())
    [[2, 7, 3, 8, 3, 0]]
    [[1, 1, 1, 1, 1, 0]]
    [[0, 0, 0, 1, 1, 0]]
    """
    shape = (len(rows), width or max(len(ids) for ids, _ in rows))
    input_ids, attention_mask = torch.full(shape, pad_id), torch.zeros(shape, dtype=torch.long)
    token_type_ids = torch.zeros(shape, dtype=torch.long)
    for number, (ids, first_length) in enumerate(rows):
        input_ids[number, :len(ids)] = torch.tensor(ids)
        attention_mask[number, :len(ids)] = 1
        token_type_ids[number, first_length:len(ids)] = 1
    return input_ids, attention_mask, token_type_ids


class MaskedBatch(NamedTuple):
    """Hold what the generator sees, and what it has to find, in N fixed slots per row.

    Rows differ in the number of chosen tokens, but a TPU compiles a program for fixed shapes. So every row
    has N slots, and `weights` says with 1 or 0 which are used. Losses are multiplied by the weights;
    selecting the used slots with a boolean index would give a shape that depends on the data, and a new
    compilation for each.
    """

    input_ids: Tensor           # (B, T) int64, with [MASK] at 85 % of the chosen positions
    positions: Tensor           # (B, N) int64, the chosen positions; unused slots point at position 0
    original_ids: Tensor        # (B, N) int64, the tokens that stood there
    weights: Tensor             # (B, N) float32, 1 for a used slot, 0 for an unused one
    uniform: Tensor             # (B, N) float32 in [0, 1), which decide the generator's samples


def mask_tokens(input_ids: Tensor, attention_mask: Tensor, config: ElectraConfig,
                generator: torch.Generator) -> MaskedBatch:
    """Choose 15 % of the real tokens of each row, in N fixed slots, and hide 85 % of those behind [MASK].

    input_ids       (B, T) int64, [CLS] first, padding last; never modified
    attention_mask  (B, T) 1 on real tokens
    config          gives mask_prob and the ids of [CLS], [SEP] and [MASK], which are never chosen; [UNK] is
                    a candidate
    generator       the only source of randomness, so a seed decides the mask
    returns         MaskedBatch
    raises          ValueError when a row has nothing to choose from, or the configuration lacks a special id
    source          TF pretrain_helpers.mask. TF may draw the same position twice: of 77 draws from 509
                    candidates about 71.5 are distinct, and a double counts twice in the loss. Here all are
                    distinct
    """
    never_chosen = (config.cls_token_id, config.sep_token_id, config.mask_token_id)
    if None in never_chosen:
        raise ValueError("cls_token_id, sep_token_id or mask_token_id is None: take the tokenizer's")
    B, T = input_ids.shape
    N = config.num_slots(T)

    # 1. Which tokens may be chosen?
    is_candidate = attention_mask.bool() & ~torch.isin(input_ids, torch.tensor(never_chosen))   # (B, T)
    available = is_candidate.sum(1)                                                 # (B, T) -> (B,)
    if (available == 0).any():
        raise ValueError(f"row {int((available == 0).nonzero()[0])} has no token that could be masked")

    # 2. How many? 15 % of all real tokens, at least one, and no more than there are slots and candidates. TF
    #    counts [CLS] and [SEP] among the tokens although they are never chosen. Halves are rounded to the
    #    even neighbour, by torch.round as by TF: of 10 tokens 1.5 gives 2, of 30 tokens 4.5 gives 4. TF
    #    multiplies in float32, where some halves come out a little larger: up to 512 tokens, rows of 190,
    #    350 and 390 get one token more there.
    wanted = (config.mask_prob * attention_mask.sum(1).double()).round().clamp(1, N)  # (B,)
    wanted = torch.minimum(wanted, available.double())

    # 3. Which? Each candidate draws a number below 1, and all other tokens get 2. In ascending order of these
    #    numbers the candidates come first, in random order, and the first `wanted` of them are chosen. The
    #    slots after these are unused and point at position 0. That is [CLS], which is never chosen, so no
    #    other slot points there; step 4 writes [CLS] over itself.
    lottery = torch.rand(B, T, generator=generator).masked_fill(~is_candidate, 2.0)
    drawn = lottery.argsort(dim=1, stable=True)[:, :N]                              # (B, T) -> (B, N)
    is_used = torch.arange(N) < wanted[:, None]                                     # (B, N)
    positions = torch.where(is_used, drawn, 0)

    # 4. Remember the originals, and hide 85 % of them. The other 15 % stay readable, and the generator has to
    #    predict these too. BERT's third case, a random token in place of [MASK], does not exist here.
    original_ids = input_ids.gather(1, positions)                                   # (B, T) -> (B, N)
    is_hidden = is_used & (torch.rand(B, N, generator=generator) < HIDE_PROBABILITY)
    written = torch.where(is_hidden, torch.tensor(config.mask_token_id), original_ids)
    hidden_ids = input_ids.scatter(1, positions, written)                           # (B, T)

    # 5. Draw the chance that sample_tokens will need, one number for each slot. It is drawn here, on the
    #    host, so that a CPU, a GPU and a TPU sample the same tokens from the same logits.
    uniform = torch.rand(B, N, generator=generator)
    return MaskedBatch(hidden_ids, positions, original_ids, is_used.float(), uniform)


def sample_tokens(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Draw one token for each slot from the generator's distribution, without gradient.

    The probabilities of the V tokens, laid end to end, fill a line from 0 to 1. A uniform number is a point
    on this line, and the token in whose stretch it lies is drawn: the first one whose cumulated probability
    exceeds the number.

        probabilities   0.2   0.5   0.0   0.3
        cumulative      0.2   0.7   0.7   1.0           uniform 0.65 draws token 1, uniform 0.7 token 3

    probabilities   (B, N, V) float32: in the 8 significant bits of bfloat16, sums would lose rare tokens
    uniform         (B, N) float32 in [0, 1)
    returns         (B, N) int64. A token of probability 0 is never drawn: its stretch is empty
    source          TF pretrain_helpers.sample_from_softmax draws from the same distribution by another
                    formula, argmax(logits + Gumbel noise), which needs V random numbers for each slot
    """
    cumulative = probabilities.detach().cumsum(-1)                                  # (B, N, V)
    # By rounding, the last sum may differ from 1. So the number is scaled to it. Even the largest float32
    # below 1 stays below the last sum after this product is rounded, so that a token is always found.
    point = uniform[..., None] * cumulative[..., -1:]                               # (B, N, 1)
    # argmax finds the first True. (torch.searchsorted would too, but XLA computes it on the host.)
    return (cumulative > point).byte().argmax(-1)                                   # (B, N, V) -> (B, N)


def replace_tokens(masked: MaskedBatch, sampled_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the discriminator's input and labels: the (B, N) samples written at all chosen positions.

    returns   corrupted ids (B, T) and is_replaced (B, T) bool. If the sample equals the original, the token
              counts as original: where the generator guesses right there is nothing to detect
    source    TF run_pretraining.PretrainingModel._get_fake_data
    """
    # All chosen positions get a sample, also those that were not hidden. Unused slots write what is there.
    restored = masked.input_ids.scatter(1, masked.positions, masked.original_ids)   # (B, T)
    written = torch.where(masked.weights > 0, sampled_ids, masked.original_ids)     # (B, N)
    corrupted = restored.scatter(1, masked.positions, written)                      # (B, T)
    return corrupted, corrupted != restored


# --- 4. Pre-training model ---

class SharedSoftmax(torch.autograd.Function):
    """Compute  nll = -ln p(target)  of each slot, and p = softmax(logits) itself, which sampling needs too.

    F.cross_entropy keeps its softmax to itself, so a second one would be needed. V is large: sharing it
    makes the step of `tiny` with 31,090 wordpieces a tenth faster.

    logits    (B, N, V) float32
    targets   (B, N) int64
    returns   nll (B, N) in nats, p (B, N, V); only the first has a gradient
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Compute both. p = exp(logit - s), so s = ln sum exp(logits) follows from the largest of each."""
        p = logits.softmax(-1)                                                      # (B, N, V)
        s = logits.amax(-1) - p.amax(-1).log()                                      # (B, N, V) -> (B, N)
        ctx.save_for_backward(p, targets)
        ctx.mark_non_differentiable(p)
        return s - logits.gather(-1, targets[..., None]).squeeze(-1), p

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Any) -> tuple[Tensor, None]:        # type: ignore[override]
        """Return  (p - one_hot(target)) * gradient."""
        p, targets = ctx.saved_tensors
        gradient = gradient[..., None]                                              # (B, N) -> (B, N, 1)
        return (p * gradient).scatter_add_(-1, targets[..., None], -gradient), None


class Generator(Network):
    """Predict hidden tokens: a small masked language model, whose output matrix is the word embeddings."""

    architecture = "ElectraForMaskedLM"

    def __init__(self, config: ElectraConfig, embeddings: Embeddings | None = None) -> None:
        super().__init__(config, embeddings)
        self.generator_predictions = nn.ModuleDict({
            "dense": nn.Linear(config.hidden_size, config.embedding_size),
            "LayerNorm": nn.LayerNorm(config.embedding_size, eps=config.layer_norm_eps)})
        self.generator_lm_head = nn.Linear(config.embedding_size, config.vocab_size)
        initialise(self, config)
        self.generator_lm_head.weight = self.electra.embeddings.word_embeddings.weight      # tied: one matrix

    def predict(self, hidden: Tensor) -> Tensor:
        """Return the (..., V) logits of (..., Hg) hidden states; a dense layer brings them to width E."""
        embedded = F.gelu(self.generator_predictions["dense"](hidden))              # (..., Hg) -> (..., E)
        embedded = self.generator_predictions["LayerNorm"](embedded.to(hidden.dtype))
        return self.generator_lm_head(embedded)                                     # (..., E) -> (..., V)

    def masked_loss(self, masked: MaskedBatch, attention_mask: Mask, token_type_ids: Mask,
                    slot_total: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Compute  L_MLM = sum(weight * nll) / sum(weight),  and logits and probabilities, (B, N, V) each.

        nll (B, N) is -ln p(original token) at each slot. The matrix product that gives V logits is the most
        expensive one: it is computed at the N slots, not at all T tokens.

        slot_total   () sum(weight) of the whole batch, where this one is a part of it; None: of this batch
        """
        hidden = self.electra(masked.input_ids, attention_mask, token_type_ids)     # (B, T, Hg)
        at_slots = masked.positions[:, :, None].expand(-1, -1, hidden.shape[-1])    # (B, N) -> (B, N, Hg)
        logits = self.predict(hidden.gather(1, at_slots)).float()                   # (B, N, Hg) -> (B, N, V)
        nll, probabilities = SharedSoftmax.apply(logits, masked.original_ids)       # (B, N), (B, N, V)
        # Unused slots are multiplied by 0 (MaskedBatch tells why they are not left out).
        slots = masked.weights.sum() if slot_total is None else slot_total
        return (nll * masked.weights).sum() / (slots + EPSILON), logits.detach(), probabilities


class Discriminator(Network):
    """Give each token a logit, high where it looks replaced: the network that is kept after pre-training."""

    architecture = "ElectraForPreTraining"

    def __init__(self, config: ElectraConfig) -> None:
        super().__init__(config)
        self.discriminator_predictions = nn.ModuleDict({
            "dense": nn.Linear(config.hidden_size, config.hidden_size),
            "dense_prediction": nn.Linear(config.hidden_size, 1)})
        initialise(self, config)

    def forward(self, input_ids: Tensor, attention_mask: Mask = None, token_type_ids: Mask = None) -> Tensor:
        """Return the (B, T) logits of (B, T) ids, mask and segments."""
        hidden = self.electra(input_ids, attention_mask, token_type_ids)            # (B, T, H)
        hidden = F.gelu(self.discriminator_predictions["dense"](hidden))            # (B, T, H)
        return self.discriminator_predictions["dense_prediction"](hidden).squeeze(-1)  # (B, T, 1) -> (B, T)


class PretrainOutput(NamedTuple):
    """Hold one step's losses (nats) and all that is worth measuring."""

    loss: Tensor                    # () mlm_loss + 50 * discriminator_loss
    mlm_loss: Tensor                # () per masked slot
    discriminator_loss: Tensor      # () per real token
    generator_logits: Tensor        # (B, N, V)
    corrupted_ids: Tensor           # (B, T) int64, what the discriminator sees
    is_replaced: Tensor             # (B, T) bool
    discriminator_logits: Tensor    # (B, T)
    masked: MaskedBatch


class ElectraForPretraining(nn.Module):
    """Train generator and discriminator together, with one set of embeddings (and one LayerNorm of these).

    generator_config   sizes of the generator, or None for config.generator(). Those of the embeddings must be
                       the same as in `config`

    One step with numbers, on a row of six words. Its weights are not learnt: they are small multiples of 1/3
    that are the same on every machine.

    >>> words = "[PAD] [UNK] [CLS] [SEP] [MASK] the drug treats fever in patients causes".split()
    >>> row = torch.tensor([[2, 5, 6, 7, 8, 9, 10, 3]])     # [CLS] the drug treats fever in patients [SEP]
    >>> config = ElectraConfig(
    ...     vocab_size=12, embedding_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
    ...     intermediate_size=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, mask_prob=0.3,
    ...     cls_token_id=2, sep_token_id=3, mask_token_id=4)
    >>> model = ElectraForPretraining(config)
    >>> for weight in model.parameters():
    ...     weight.data = ((torch.arange(weight.numel()) ** 2 % 7 - 3) * 0.8 / 3).view_as(weight)

    1. Of 8 tokens 0.3 * 8 = 2.4, rounded 2, are chosen, and both happen to be hidden:

    >>> masked = mask_tokens(row, torch.ones_like(row), config, torch.Generator().manual_seed(1))
    >>> masked.positions.tolist(), " ".join(words[i] for i in masked.input_ids[0])
    ([[4, 1]], '[CLS] [MASK] drug treats [MASK] in patients [SEP]')

    2. The generator gives each word a probability at both slots. Those of the hidden words, `fever` and
    `the`, make its loss:

    >>> output = model(masked)
    >>> p = output.generator_logits.softmax(-1)[0]                                      # (N, V) = (2, 12)
    >>> print(f"{p[0, words.index('fever')]:.3f}, {p[1, words.index('the')]:.3f}")
    0.069, 0.091
    >>> mlm_loss = -(math.log(0.069) + math.log(0.091)) / 2

    3. A word is sampled at each slot. The generator happens to guess `the`, which therefore counts as
    original, and it writes a wrong word for `fever`:

    >>> " ".join(words[i] for i in output.corrupted_ids[0]), output.is_replaced.long().tolist()
    ('[CLS] the drug treats treats in patients [SEP]', [[0, 0, 0, 0, 1, 0, 0, 0]])

    4. The discriminator gives each token a probability of being replaced. Its loss is the mean of -ln p where
    that is true, and of -ln (1 - p) elsewhere:

    >>> print(", ".join(f"{p:.2f}" for p in output.discriminator_logits.sigmoid()[0]))
    0.37, 0.24, 0.27, 0.45, 0.45, 0.03, 0.45, 0.45
    >>> right = [1 - 0.37, 1 - 0.24, 1 - 0.27, 1 - 0.45, 0.45, 1 - 0.03, 1 - 0.45, 1 - 0.45]
    >>> discriminator_loss = -sum(math.log(probability) for probability in right) / 8

    5. Both losses, and their sum, are what the model returns:

    >>> for by_hand, loss in ((mlm_loss, output.mlm_loss), (discriminator_loss, output.discriminator_loss),
    ...                       (mlm_loss + 50 * discriminator_loss, output.loss)):
    ...     print(f"{by_hand:.1f} {loss.item():.1f}")
    2.5 2.5
    0.5 0.5
    25.5 25.5
    """

    def __init__(self, config: ElectraConfig, generator_config: ElectraConfig | None = None) -> None:
        super().__init__()
        self.config = config
        self.generator_config = generator_config or config.generator()
        for name in ("vocab_size", "embedding_size", "max_position_embeddings", "type_vocab_size"):
            ours, theirs = getattr(config, name), getattr(self.generator_config, name)
            if ours != theirs:      # the embeddings are shared
                raise ValueError(f"{name} is {theirs} in the generator and {ours} in the discriminator")
        self.discriminator = Discriminator(config)
        self.generator = Generator(self.generator_config, self.discriminator.electra.embeddings)

    def discriminator_logits(self, input_ids: Tensor, attention_mask: Mask = None,
                             token_type_ids: Mask = None) -> Tensor:
        """Return (B, T) logits for (B, T) ids, mask and segments; above 0: more likely replaced than not."""
        return self.discriminator(input_ids, attention_mask, token_type_ids)

    def generator_logits(self, input_ids: Tensor, attention_mask: Mask = None,
                         token_type_ids: Mask = None) -> Tensor:
        """Return (B, T, V) logits for (B, T) ids, mask and segments; training computes the N slots only."""
        return self.generator.predict(self.generator.electra(input_ids, attention_mask, token_type_ids))

    def forward(self, masked: MaskedBatch, attention_mask: Mask = None, token_type_ids: Mask = None,
                slot_total: Tensor | None = None, token_total: Tensor | None = None) -> PretrainOutput:
        """Compute one step of replaced-token detection: predict, sample, replace, judge, add up.

        slot_total    () number of masked slots in the whole batch, when this one is only a part of it. The
                      losses of the parts then add up to the loss of the whole. None: those of this batch
        token_total   () number of real tokens, likewise
        source        TF run_pretraining.PretrainingModel
        """
        attention_mask, token_type_ids = with_defaults(masked.input_ids, attention_mask, token_type_ids)
        # 1. The generator predicts the chosen tokens and learns from its errors.
        mlm_loss, logits, probabilities = self.generator.masked_loss(
            masked, attention_mask, token_type_ids, slot_total)
        # 2. A token is sampled for each slot. A sample has no gradient: the discriminator cannot teach the
        #    generator how to fool it (this is no GAN). The two meet in the shared embeddings alone.
        sampled_ids = sample_tokens(probabilities, masked.uniform)                  # (B, N, V) -> (B, N)
        # 3. The samples replace the originals.
        corrupted_ids, is_replaced = replace_tokens(masked, sampled_ids)            # (B, T) both
        # 4. The discriminator judges every real token. [CLS] and [SEP] count too, as in TF, though they are
        #    never replaced; padding is multiplied by 0.        L_Disc = sum(real * BCE) / sum(real)
        judged = self.discriminator(corrupted_ids, attention_mask, token_type_ids).float()  # (B, T)
        bce = F.binary_cross_entropy_with_logits(judged, is_replaced.float(), reduction="none")
        tokens = attention_mask.sum() if token_total is None else token_total
        discriminator_loss = (bce * attention_mask).sum() / (tokens + EPSILON)
        # 5. L = L_MLM + 50 L_Disc, about ln 31,090 + 50 ln 2 = 45 nats before the first update.
        loss = mlm_loss + DISCRIMINATOR_WEIGHT * discriminator_loss
        return PretrainOutput(loss, mlm_loss, discriminator_loss, logits, corrupted_ids, is_replaced,
                              judged.detach(), masked)


class MaskedLanguageModel(Generator):
    """Train by BERT's objective, the baseline of both papers: the encoder itself fills in hidden tokens.

    Tokens are hidden as for ELECTRA (85 % of the chosen become [MASK], the others stay), as in TF's BERT
    mode, and not in BERT's own shares of 80 / 10 / 10. So a run of this model and a run of ELECTRA differ by
    their objective alone.
    """

    def forward(self, masked: MaskedBatch, attention_mask: Mask = None, token_type_ids: Mask = None,
                slot_total: Tensor | None = None, token_total: Tensor | None = None) -> PretrainOutput:
        """Compute one step, with ElectraForPretraining's arguments and results.

        There is no discriminator: `token_total` is unused, its loss and logits are nan, nothing is replaced.
        """
        loss, logits, _ = self.masked_loss(masked, attention_mask, token_type_ids, slot_total)
        ids = masked.input_ids
        absent = torch.full_like(ids, math.nan, dtype=torch.float32)                # (B, T)
        is_replaced = torch.zeros_like(ids, dtype=torch.bool)                       # (B, T)
        return PretrainOutput(loss, loss, absent.mean(), logits, ids, is_replaced, absent, masked)


# --- 5. Task heads ---

def mean_cross_entropy(logits: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Compute the mean of -ln p(label) over all labels, in nats.

    logits          (B, C, ...)
    labels          (B, ...), IGNORED_LABEL where there is none
    class_weights   (C,) or None; with weights the weighted mean
    returns         (); 0 where no label is at all, and F.cross_entropy's own mean would be nan
    """
    summed = F.cross_entropy(logits.float(), labels, class_weights, reduction="sum")
    is_labelled = (labels != IGNORED_LABEL).float()
    weights = is_labelled if class_weights is None else is_labelled * class_weights[labels.clamp(min=0)]
    return summed / weights.sum().clamp(min=EPSILON)


class TokenTagger(Network):
    """Give each token C logits: entity recognition. One dense layer without dropout (TF tagging_tasks.py)."""

    architecture = "ElectraForTokenClassification"

    def __init__(self, config: ElectraConfig, num_labels: int) -> None:
        super().__init__(config)
        self.classifier = nn.Linear(config.hidden_size, num_labels)
        self.num_labels = num_labels
        initialise(self, config)

    def forward(self, input_ids: Tensor, attention_mask: Mask = None, token_type_ids: Mask = None) -> Tensor:
        """Return the (B, T, C) logits of (B, T) ids, mask and segments."""
        return self.classifier(self.electra(input_ids, attention_mask, token_type_ids))     # (B, T, C)

    @staticmethod
    def loss(logits: Tensor, labels: Tensor, is_binary: bool = False) -> Tensor:
        """Compute the mean cross-entropy over the labelled positions, in nats.

        logits      (B, T, C)
        labels      (B, T), IGNORED_LABEL where there is no label
        is_binary   False: one softmax over the labels. True: a sigmoid for each label against the rest, and
                    the sum of their binary cross-entropies. The largest logit is the prediction either way
        source      ELECTRAMed's paper has three binary classifiers (B, I, O); its release has the softmax
        """
        if not is_binary:
            return mean_cross_entropy(logits.transpose(1, 2), labels)               # (B, T, C) -> (B, C, T)
        # one_hot takes no -100. Such positions get label 0 instead, and their loss is multiplied by 0.
        is_labelled = labels != IGNORED_LABEL                                       # (B, T)
        targets = F.one_hot(labels.clamp(min=0), logits.shape[-1]).float()          # (B, T) -> (B, T, C)
        bce = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none")
        return (bce.sum(-1) * is_labelled).sum() / is_labelled.sum().clamp(min=1)   # (B, T, C) -> ()


class SequenceClassifier(Network):
    """Give each sequence C logits, from its [CLS]: relations, yes/no questions, ranking.

    Dropout, a dense layer (H, H), gelu, dropout, a dense layer (H, C): the head of ELECTRAMed's release and
    of transformers. Official ELECTRA and Bio-ELECTRA have dropout and the last layer alone
    (TF classification_tasks.py).
    """

    architecture = "ElectraForSequenceClassification"

    def __init__(self, config: ElectraConfig, num_labels: int) -> None:
        super().__init__(config)
        self.classifier = nn.ModuleDict({"dense": nn.Linear(config.hidden_size, config.hidden_size),
                                         "out_proj": nn.Linear(config.hidden_size, num_labels)})
        self.num_labels = num_labels
        initialise(self, config)

    def forward(self, input_ids: Tensor, attention_mask: Mask = None, token_type_ids: Mask = None) -> Tensor:
        """Return the (B, C) logits of (B, T) ids, mask and segments."""
        p = self.config.hidden_dropout_prob
        cls = self.electra(input_ids, attention_mask, token_type_ids)[:, 0]         # (B, T, H) -> (B, H)
        hidden = F.gelu(self.classifier["dense"](dropout(cls, p, self.training)))   # (B, H)
        return self.classifier["out_proj"](dropout(hidden, p, self.training))       # (B, H) -> (B, C)

    @staticmethod
    def loss(logits: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
        """Compute the mean cross-entropy, in nats; with class_weights the weighted mean.

        logits          (B, C)
        labels          (B,)
        class_weights   (C,) for rare labels: Bio-ELECTRA's weighted re-ranker has [1, 99]
        """
        return mean_cross_entropy(logits, labels, class_weights)


class SpanExtractor(Network):
    """Give each token two logits, for the start and the end of the answer: question answering.

    A long passage is cut into windows, and each window becomes a row of its own. Positions outside the
    passage are ruled out, except [CLS], which means "no answer in this window".
    This is ELECTRAMed's head, and here it serves the tasks of both papers. Bio-ELECTRA used TF's joint head,
    in which the end depends on the start.
    """

    architecture = "ElectraForQuestionAnswering"

    def __init__(self, config: ElectraConfig) -> None:
        super().__init__(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        initialise(self, config)

    def forward(self, input_ids: Tensor, attention_mask: Mask = None, token_type_ids: Mask = None) -> Tensor:
        """Return the (B, T, 2) logits of (B, T) ids, mask and segments (1 on the passage and its [SEP]).

        Without segments there is no passage, and [CLS] alone is allowed.

            [CLS]  what  helps  [SEP]  aspirin  helps  [SEP]  [PAD]
              0     0      0      0       1       1      1      0       token_type_ids
              1     1      1      1       1       1      0      0       has_next
              1     0      0      0       1       1      0      0       is_allowed
        """
        attention_mask, token_type_ids = with_defaults(input_ids, attention_mask, token_type_ids)
        logits = self.qa_outputs(self.electra(input_ids, attention_mask, token_type_ids)).float()  # (B, T, 2)
        # The segment of the passage ends in a [SEP], which no answer may contain. It is the last real token,
        # the only one that no other real token follows.
        has_next = F.pad(attention_mask[:, 1:], (0, 1))                             # (B, T)
        is_allowed = (token_type_ids * has_next).bool()
        is_allowed[:, 0] = True
        # Far below any logit, yet finite: with -inf, a label at such a position would make the loss infinite.
        return logits.masked_fill(~is_allowed[:, :, None], -1e4)

    @staticmethod
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the mean of the cross-entropies of starts and ends, in nats.

        logits   (B, T, 2)
        labels   (B, 2) positions of the first and the last token; (0, 0), which is [CLS], for "no answer"
        """
        # The classes, in dimension 1, are the T positions: once for the start and once for the end.
        return mean_cross_entropy(logits, labels)


# --- 6. Optimiser and schedule ---

def learning_rate_at(step: int, total_steps: int, warmup_steps: int, peak: float) -> float:
    """Return the learning rate of update `step`, counted from 0: linear decay times linear warm-up.

    Both factors act at the same time (TF optimization.create_optimizer). With a warm-up the first update has
    rate 0, and the peak is not quite reached: after 10 warm-up steps of 100 the rate is 0.9 * peak.
    """
    warmup = min(1.0, step / warmup_steps) if warmup_steps else 1.0
    return peak * (1 - step / total_steps) * warmup


def parameter_groups(model: Any, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Return a model's parameters in groups that share learning rate and weight decay.

    weight_decay  of all weights, embeddings too, except LayerNorms and biases, which have none
    layer_decay   factor of the learning rate from each layer to the one below it: 0.8 in fine-tuning, where
                  lower layers hold what pre-training taught and should change less; 1 in pre-training
    returns       one dictionary per group: params, lr_scale (factor of the learning rate), decay
    source        TF optimization._get_layer_lrs and AdamWeightDecayOptimizer._do_use_weight_decay
    """
    # TF numbers the depths: 0 for the embeddings and their projection, i + 1 for layer i (from 0), L + 2 for
    # the head. Nothing has depth L + 1, so the top layer learns at 0.8^2 of the head's rate, and the
    # embeddings at 0.8^(L + 2).
    head_depth = model.config.num_hidden_layers + 2
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        depth = 0 if "embeddings" in name else head_depth
        if layer := re.search(r"\.layer\.(\d+)\.", name):
            depth = int(layer[1]) + 1
        decay = 0.0 if "LayerNorm" in name or name.endswith("bias") else weight_decay
        groups.setdefault((layer_decay ** (head_depth - depth), decay), []).append(parameter)
    return [{"params": group, "lr_scale": scale, "decay": decay} for (scale, decay), group in groups.items()]


class Adam(torch.optim.AdamW):
    """Update weights by Adam as BERT and ELECTRA use it.

        m = b1 m + (1 - b1) g        v = b2 v + (1 - b2) g^2        w -= lr (m / (sqrt(v) + eps) + decay w)

    Two things differ from the textbook's Adam (TF optimization.AdamWeightDecayOptimizer):
    - No bias correction. m and v start at 0, and the textbook divides them by c1 = 1 - b1^t and c2 = 1 - b2^t
      to undo that. BERT leaves it out; its warm-up keeps the first updates small anyway.
    - eps is 1e-6 instead of 1e-8, and it is added to sqrt(v) instead of sqrt(v / c2).
    Weight decay is decoupled: it is taken from the weights directly and does not pass through m and v.

    groups   as parameter_groups returns them; or parameters alone, without decay and all at one rate
    """

    true_eps = 1e-6             # the "eps" of torch's groups changes with every update

    def __init__(self, groups: Iterable[dict[str, Any]] | Iterable[Tensor]) -> None:
        super().__init__(groups, lr=0.0, betas=(0.9, 0.999), fused=True)
        defaults = {"lr_scale": 1.0, "decay": 0.0, "updates": 0}
        self.param_groups = [defaults | group for group in self.param_groups]

    def step(self, learning_rate: float) -> None:                               # type: ignore[override]
        """Apply the gradients at `learning_rate` and clear them."""
        for group in self.param_groups:
            group["updates"] += 1                   # kept in the group, so that state_dict carries it
        if self.param_groups[0]["params"][0].device.type == "xla":
            self.update_by_formula(learning_rate)
        else:
            self.update_by_fused_kernel(learning_rate)
        self.zero_grad(set_to_none=True)

    @torch.no_grad()
    def update_by_formula(self, learning_rate: float) -> None:
        """Compute the formula above in plain tensor operations: for XLA, which has no fused kernel.

        The rate is a tensor. XLA compiles numbers into its program, so one that changes would mean a new
        program at every step.
        """
        for group in self.param_groups:
            b1, b2 = group["betas"]
            rate = torch.tensor(learning_rate * group["lr_scale"]).to(group["params"][0].device)
            for parameter in group["params"]:
                state, gradient = self.state[parameter], parameter.grad
                if not state:
                    state.update(step=torch.zeros(()), exp_avg=torch.zeros_like(parameter),
                                 exp_avg_sq=torch.zeros_like(parameter))
                state["step"] += 1                  # unused here: a CPU or GPU that resumes goes on from it
                m = state["exp_avg"].mul_(b1).add_(gradient, alpha=1 - b1)
                v = state["exp_avg_sq"].mul_(b2).addcmul_(gradient, gradient, value=1 - b2)
                parameter.sub_(rate * (m / (v.sqrt() + self.true_eps) + group["decay"] * parameter))

    def update_by_fused_kernel(self, learning_rate: float) -> None:
        """Compute the same with torch's fused AdamW, one fast kernel that has the textbook's bias correction.

        It computes  w -= lr' (m / c1 / (sqrt(v / c2) + eps') + decay' w).  With
            lr' = lr c1 / sqrt(c2)        eps' = eps / sqrt(c2)        decay' = decay sqrt(c2) / c1
        c1 and c2 cancel, and what remains is the formula above.
        """
        for group in self.param_groups:
            c1, c2 = (1 - beta ** group["updates"] for beta in group["betas"])
            group["lr"] = learning_rate * group["lr_scale"] * c1 / math.sqrt(c2)
            group["eps"] = self.true_eps / math.sqrt(c2)
            group["weight_decay"] = group["decay"] * math.sqrt(c2) / c1
        # On a CPU the kernel wakes all threads for each weight matrix or bias, which takes longer than the
        # update itself: 4.7 ms instead of 0.7 for the weights of `tiny`. One thread gives the same result.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        super().step()
        torch.set_num_threads(threads)


# --- 7. Model folders and checkpoints ---

# Skip this on first reading: it is about files, not about the method. A model folder has Hugging Face's form,
# and works in transformers as it is:
#
#     config.json             the sizes; transformers' name for the model; for a task head also its labels
#     model.safetensors       the weights by name (published folders may have pytorch_model.bin, or several)
#     vocab.txt               one wordpiece per line: its id is the number of the line, from 0
#     tokenizer_config.json   casing, and the longest row
#     task.json               what a fine-tuned model was trained for, and how its text has to be cut
#     generator/              the same for the generator; the folder itself holds the discriminator
#
# A checkpoint is another thing: all that a run needs to go on, in one file that only this program reads.

DTYPES = {"F64": torch.double, "F32": torch.float, "F16": torch.half, "BF16": torch.bfloat16,
          "I64": torch.long}
WORDS, OUTPUT = "electra.embeddings.word_embeddings.weight", "generator_lm_head.weight"     # tied: one matrix
POSITIONS = "electra.embeddings.position_embeddings.weight"


# Writing.

@contextlib.contextmanager
def written_whole(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path, on which the `with` block writes a file or a model folder.

    At the end of the block it takes the place of `path` as a whole, so that a reader, or whoever comes after
    a crash, never meets half of it, nor one model's vocabulary beside another one's weights. If the block
    fails, what was there before stays.

    raises   OSError naming the path when the system refuses; ValueError for a folder that holds something,
             but no model, because it would be lost
    """
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    before = path.with_name(f"{path.name}.before.{os.getpid()}.unfinished")
    if path.is_dir() and any(path.iterdir()) and not (path / "config.json").is_file():
        raise ValueError(f"{path} holds files but no model, and would be replaced: choose another folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        # 1. The content has to reach the disk before the name does: otherwise a power cut could leave empty
        #    files under that name.
        for file in filter(Path.is_file, [temporary, *temporary.rglob("*")]):
            with open(file, "r+b") as written:
                os.fsync(written.fileno())
        # 2. A file is replaced by one renaming. A folder first has to be moved aside.
        if path.is_dir():
            path.rename(before)
        temporary.replace(path)
        shutil.rmtree(before, ignore_errors=True)
    except OSError as error:
        raise OSError(f"{path} could not be written ({error.strerror or error}): what was there before is "
                      "whole; make room, and the same command continues") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)        # a folder
        temporary.unlink(missing_ok=True)                   # or a file


def write_safetensors(path: Path, weights: dict[str, Tensor]) -> None:
    """Write weights as float32 in the safetensors format, which read_safetensors explains.

    Unlike the pickle of torch.save, such a file cannot hold a program.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}         # transformers asks for this mark
    numbers = bytearray()
    for name, tensor in weights.items():
        start = len(numbers)
        numbers += tensor.cpu().float().numpy().tobytes()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, len(numbers)]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)             # the numbers begin at a multiple of 8, as they do in memory
    path.write_bytes(len(text).to_bytes(8, "little") + text + numbers)


def networks_of(model: Any) -> dict[str, Any]:
    """Return the networks of a model by the place of each in a model folder; "" is the folder itself."""
    if isinstance(model, ElectraForPretraining):
        return {"": model.discriminator, "generator": model.generator}
    return {"": model}


def save_pretrained(model: Any, directory: str | os.PathLike, tokenizer: Any = None,
                    labels: Sequence[str] = (), extra_files: Mapping[str, bytes] | None = None) -> None:
    """Write a model folder, in place of the one that is there.

    model         ElectraForPretraining (the discriminator, with the generator in generator/), one of its
                  networks, or a task head
    tokenizer     a Tokenizer, or None; the generator gets its files too, so that it can be used by itself
    labels        of a task head, in the order of its outputs; none given: LABEL_0, LABEL_1 as in transformers
    extra_files   content of further files of the folder, by name
    raises        as written_whole; ValueError also where labels or tokenizer are another model's
    """
    with written_whole(directory) as whole:
        for place, network in networks_of(model).items():
            folder = whole / place
            folder.mkdir()
            # 1. The weights.
            write_safetensors(folder / "model.safetensors", network.state_dict())
            # 2. The configuration.
            content = {"architectures": [network.architecture], **json.loads(network.config.to_json())}
            if isinstance(network, (TokenTagger, SequenceClassifier)):
                names = list(labels) or [f"LABEL_{number}" for number in range(network.num_labels)]
                if len({*names}) < len(names) or len(names) != network.num_labels:
                    raise ValueError(f"labels are {names}: expected {network.num_labels} different ones")
                content["id2label"] = dict(enumerate(names))
                content["label2id"] = {name: number for number, name in enumerate(names)}
            (folder / "config.json").write_text(json.dumps(content, indent=2))
            # 3. The vocabulary.
            if tokenizer is not None:
                tokenizer.save(folder, max_length=network.config.max_position_embeddings)
            read_config(folder)             # raises where the vocabulary is another model's: then all stays
        for name, raw in (extra_files or {}).items():
            (whole / name).write_bytes(raw)


# Reading, from single files up to whole models.

def model_folder(directory: str | os.PathLike) -> Path:
    """Return the folder that holds config.json: the given one or, of a run folder, model/ in it."""
    for folder in (Path(directory), Path(directory) / "model"):
        if (folder / "config.json").is_file():
            return folder
    raise FileNotFoundError(f"{directory}: no config.json here or in model/: give a run or a model folder")


def read_config(folder: Path) -> ElectraConfig:
    """Read config.json and compare it with the vocabulary, where that lies beside it."""
    path = folder / "config.json"
    try:
        config = ElectraConfig.from_json(path.read_text(encoding="utf-8"))
        pieces = config.vocab_size              # of a folder without vocabulary
        if (path := folder / "vocab.txt").is_file():
            # Only "\n" ends a line: a piece may be one of the other characters that str.splitlines breaks at.
            pieces = len(path.read_bytes().removesuffix(b"\n").split(b"\n"))
        elif (path := folder / "tokenizer.json").is_file():
            pieces = len(json.loads(path.read_bytes())["model"]["vocab"])
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from None
    if pieces != config.vocab_size:
        raise ValueError(f"{folder}/config.json has vocab_size {config.vocab_size} but {path} has {pieces} "
                         "pieces: take the model's own; added tokens are not supported; if the model was "
                         "padded, append lines such as [padding1]")
    return config


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a file in the safetensors format: the length of a header in 8 bytes, the header, the raw numbers.

    The header is JSON, with offsets in bytes after its own end:
        {"electra.embeddings.LayerNorm.bias": {"dtype": "F32", "shape": [128], "data_offsets": [0, 512]}, ...}
    Each entry has to begin where the one before it ends, and to have the size of its shape. So none can
    overlap with another or lie beyond the file, and nothing lies between two.
    raises   ValueError or another error where a header is not of this form
    """
    content = bytearray(path.read_bytes())
    begin = 8 + int.from_bytes(content[:8], "little")
    numbers = memoryview(content)[begin:]
    header = json.loads(content[8:begin])
    header.pop("__metadata__", None)
    weights, position = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        shape, offsets, dtype = entry["shape"], entry["data_offsets"], DTYPES[entry["dtype"]]
        stop = position + math.prod(shape) * dtype.itemsize
        if offsets != [position, stop]:
            raise ValueError(f"{name}: by its shape {shape} it has bytes {position} to {stop}, not {offsets}")
        weights[name] = torch.frombuffer(numbers[position:stop], dtype=dtype).view(shape)
        position = stop
    if position != len(numbers):
        raise ValueError(f"the last entry ends at byte {position}, but the file at {len(numbers)}")
    return weights


def read_torch_file(path: Path) -> dict[str, Any]:
    """Read a dictionary written by torch.save, but no objects in it, because a pickle can hold any program.

    Since 2020 such a file is a zip archive with checksums. torch does not compare them, so they are compared
    here.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} is damaged: its checksum is wrong")
    return dict(torch.load(path, map_location="cpu", weights_only=True))


def weights_files(folder: Path) -> list[Path]:
    """List the files with the weights of a model folder, in transformers' order.

    Large models are divided: model-00001-of-00002.safetensors, model-00002-of-00002.safetensors.
    """
    for pattern in ("model.safetensors", "model-*.safetensors", "pytorch_model.bin", "pytorch_model-*.bin"):
        if files := sorted(folder.glob(pattern)):
            return files
    raise FileNotFoundError(f"{folder}: neither model.safetensors nor pytorch_model.bin")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read the weights of a model folder as float32.

    raises   ValueError for a damaged file, and naming the first weight that is not finite
    """
    weights = {}
    for path in weights_files(folder):
        read = read_safetensors if path.suffix == ".safetensors" else read_torch_file
        try:
            for name, tensor in read(path).items():
                if not tensor.isfinite().all():
                    raise ValueError(f"{name} holds numbers that are not finite: take another model")
                # Some trainers put "module." before all names, and an encoder that was saved by itself has no
                # "electra." before its names.
                name = name.removeprefix("module.")
                is_bare = name.startswith(("embeddings.", "embeddings_project.", "encoder."))
                weights[f"electra.{name}" if is_bare else name] = tensor.float()
        except Exception as error:      # torch raises whatever the damaged bytes lead to
            what = f"{type(error).__name__}: {error}"
            raise ValueError(f"{path}: not readable as weights by name: {what}") from error
    return weights


def load_weights(model: nn.Module, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
    """Copy weights into `model`.

    weights   by name; None: read them from the folder (error messages name the folder)
    raises    ValueError naming what is missing, what is left over, or a shape that does not fit
    """
    weights = dict(weights or read_weights(folder))
    # Two habits of published files: old releases store a constant, and some leave out a tied matrix.
    weights.pop("electra.embeddings.position_ids", None)
    if OUTPUT in model.state_dict() and WORDS in weights:
        weights.setdefault(OUTPUT, weights[WORDS])
    try:
        model.load_state_dict(weights)          # compares names and shapes
    except RuntimeError as error:
        found = textwrap.shorten(str(error).partition("\n\t")[2], 300)
        raise ValueError(f"{folder}: the weights are not those that config.json describes: {found} Is it a "
                         "model of this kind, and do both files belong together?") from None


def load_head(directory: str | os.PathLike) -> tuple[nn.Module, list[str]]:
    """Read a fine-tuned model of any kind; return it, and the names of its labels (none for answers).

    raises   ValueError for a folder without a task head, and where its labels are not numbered from 0, once
             each, or where id2label and label2id contradict each other
    """
    folder = model_folder(directory)
    config, path = read_config(folder), folder / "config.json"
    content = json.loads(path.read_bytes())
    heads: tuple[Any, ...] = (TokenTagger, SequenceClassifier, SpanExtractor)
    found = content.get("architectures")
    kind: Any = next((head for head in heads if found == [head.architecture]), None)
    if kind is None:
        raise ValueError(f"{path}: architectures is {found}, which is no fine-tuned model")
    labels: list[Any] = []
    if kind is not SpanExtractor:
        named = content.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}         # transformers' default
        labels = [named.get(str(n)) for n in range(len(named))] if isinstance(named, dict) else [named]
        numbers = {label: number for number, label in enumerate(labels) if isinstance(label, str)}
        if len(numbers) < len(labels) or content.get("label2id", numbers) != numbers:
            raise ValueError(f"{path}: id2label is {named}, label2id {content.get('label2id')}: expected "
                             "every label once, as text, numbered from 0, and the same in both")
    model = kind(config, len(labels)) if labels else kind(config)
    load_weights(model, folder)
    return model, labels


def check_sizes(theirs: ElectraConfig, network: Any, folder: Path) -> None:
    """Raise ValueError naming a size that differs; shapes of weights do not tell the number of heads."""
    for name in SIZES:
        size, wanted = getattr(theirs, name), getattr(network.config, name)
        if size != wanted:
            raise ValueError(f"{folder}: {name} is {size}, that of this {type(network).__name__} {wanted}: "
                             "choose the preset or sizes it was trained with")


def load_encoder(model: nn.Module, directory: str | os.PathLike) -> None:
    """Read the `electra` part of a task model from any model folder; the head keeps its own weights.

    A head that finds answers is read, too, where the folder has one: start and end mean the same in all sets
    of questions (SQuAD first, then BioASQ), while labels differ.

    raises   ValueError naming a size that differs, or a weight that does not fit
    """
    folder = model_folder(directory)
    check_sizes(read_config(folder), model, folder)
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("electra.")}
    taken = ("electra.", "qa_outputs.") if isinstance(model, SpanExtractor) else ("electra.",)
    found = {name: tensor for name, tensor in read_weights(folder).items() if name.startswith(taken)}
    load_weights(model, folder, own | found)


def load_networks(model: Any, whole: Path) -> str:
    """Copy the weights of a pre-training model of the same kind from its folder into `model`.

    A published ELECTRA may come without its generator. Then that of `model` stays as it was drawn, but for
    the embeddings, which it shares with the discriminator.
    returns  "", or a sentence that says so
    raises   ValueError naming a size that differs, or a weight that does not fit
    """
    for place, network in networks_of(model).items():
        folder = whole / place
        if place and not folder.is_dir():
            return f"{whole} has no generator/: a new generator is drawn"
        config, weights, ours = read_config(folder), read_weights(folder), network.state_dict()
        check_sizes(config, network, folder)
        # 1. The number of positions may differ: positions that the other model lacks keep their initial
        #    values, so that a run at 512 tokens can go on from one at 128.
        known, initial = weights.get(POSITIONS), ours[POSITIONS]                    # (positions, E) each
        if known is not None and known.shape == (config.max_position_embeddings, config.embedding_size):
            weights[POSITIONS] = torch.cat([known[:len(initial)], initial[len(known):]])
        # 2. Both networks use one set of embeddings, and both files store it. Those of the discriminator's
        #    file are in the model now. If the generator's file has others, the two come from different runs,
        #    and loading the second would overwrite the first one's.
        shared = [name for name in ours if name.startswith("electra.embeddings.") or name == OUTPUT]
        for name in shared:
            if place and not torch.equal(ours[name], weights.get(name, ours[name])):
                raise ValueError(f"{folder}: {name} differs from the discriminator's: not one model's halves")
        load_weights(network, folder, weights)
    return ""


def load_initial(model: Any, directory: str | os.PathLike) -> str:
    """Copy the weights of another pre-training model into `model`, to start from them.

    Where ELECTRA starts from a masked language model, the discriminator takes its encoder; its own head and
    the generator stay as they were drawn. A discriminator that begins from nothing sits on a blind plateau at
    first, and this one does not (tests/RESULTS.md).
    returns  "", or a sentence that says what was not taken
    raises   as load_networks
    """
    folder = model_folder(directory)
    read_config(folder)             # raises where config.json is none
    found = json.loads((folder / "config.json").read_bytes()).get("architectures")
    if isinstance(model, ElectraForPretraining) and found == [MaskedLanguageModel.architecture]:
        load_encoder(model.discriminator, folder)
        return f"{folder} is a masked language model: the discriminator starts from its encoder"
    return load_networks(model, folder)


def load_pretrained(directory: str | os.PathLike) -> ElectraForPretraining:
    """Read a pre-training model from a model folder, ours or a published one.

    Without a generator/ in it the generator is a new one of config.generator()'s size.
    raises   ValueError for files that contradict each other; OSError where one is missing
    """
    folder = model_folder(directory)
    part = folder / "generator"
    model = ElectraForPretraining(read_config(folder), read_config(part) if part.is_dir() else None)
    load_networks(model, folder)
    return model


# Checkpoints.

CHECKPOINTS = "checkpoint-" + "[0-9]" * 8 + ".pt"           # the user's copies have other names


def save_checkpoint(directory: Path, step: int, model: nn.Module, optimizer: Adam,
                    belongs_to: str = "") -> Path:
    """Write all that resuming needs (weights, moments, updates done); only the last two checkpoints are kept.

    Random numbers need no saving: those of step k follow from (seed, k). Tensors are stored as a CPU's, so
    that any kind of device can go on from them.

    belongs_to   the run: any text, such as a hash of its options
    """
    path = directory / f"checkpoint-{step:08d}.pt"
    weights = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    state = optimizer.state_dict()
    for number, moments in state["state"].items():
        state["state"][number] = {name: tensor.cpu() for name, tensor in moments.items()}
    buffer = io.BytesIO()           # unlike a file, it makes no other error of a full disk
    torch.save({"step": step, "belongs_to": belongs_to, "optimizer": state, "model": weights}, buffer)
    with written_whole(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())
    for old in sorted(directory.glob(CHECKPOINTS))[:-2]:
        old.unlink()
    return path


def load_checkpoint(directory: Path, model: nn.Module, optimizer: Adam, belongs_to: str = "") -> int:
    """Read the newest checkpoint that is whole into `model` and `optimizer`.

    returns  the number of updates done, 0 when there is no checkpoint
    raises   ValueError when there are some, and each is damaged or another run's
    """
    paths = sorted(directory.glob(CHECKPOINTS), reverse=True)
    for number, path in enumerate(paths):
        try:
            content = read_torch_file(path)
            if content.get("belongs_to", belongs_to) != belongs_to:
                raise ValueError("it belongs to another run, with other options or files")
            if path.name != f"checkpoint-{content['step']:08d}.pt":
                raise ValueError(f"it holds step {content['step']}")
            model.load_state_dict(content["model"])
            optimizer.load_state_dict(content["optimizer"])
            # torch counts the moments, but does not compare their shapes: its kernel would read beyond them.
            for weight, moments in optimizer.state.items():
                if not moments["exp_avg"].shape == moments["exp_avg_sq"].shape == weight.shape:
                    raise ValueError("the moments of Adam have other shapes than the weights")
            # Set the damaged ones aside, or they would count among the last two that are kept.
            for damaged in paths[:number]:
                damaged.rename(damaged.with_suffix(".damaged"))
            return content["step"]
        except Exception as error:      # torch raises whatever the damaged bytes lead to
            reason = textwrap.shorten(str(error), 200)
            print(f"{path} is damaged or does not fit ({reason}): trying the one before", file=sys.stderr)
    if paths:
        raise ValueError(f"{path}: {reason}: no checkpoint is readable: restore one, or choose another --out")
    return 0


# --- 8. Device ---

# This is about speed and about machines, not about the method: on first reading, read Device.put alone, which
# copies a batch to the device. One class, Device, knows what differs between a CPU, a GPU and a TPU. A
# training step asks it for all that is not arithmetic; on one CPU in float32 most of its methods do nothing.
# The functions that it calls come first.

def open_xla() -> tuple[Any, Any]:
    """Return the module torch_xla and the mesh of all devices of this machine, along which rows are divided.

    In this mode (SPMD) one process writes the program for one large device, and XLA divides the work.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")          # without this XLA warns at every compilation
    try:
        import torch_xla
        from torch_xla import runtime
        from torch_xla.distributed import spmd
    except ImportError as error:
        raise ValueError(f"--tpu: torch_xla does not load beside torch {torch.__version__} ({error}): drop "
                         "--tpu, or make an environment of its own for the pair: pip install torch==2.9.0 "
                         "torch_xla==2.9.0") from None
    runtime.use_spmd()
    count = runtime.global_runtime_device_count()
    # By default moving a model to XLA makes new Parameter objects, and two layers that shared one weight have
    # two afterwards. With this setting the objects stay, and only their content moves.
    torch.__future__.set_swap_module_params_on_conversion(True)
    return torch_xla, spmd.Mesh(range(count), (count,), ("rows",))


def keep_freed_memory() -> None:
    """Set Linux's allocator, glibc, so that it keeps freed memory; do nothing on other systems.

    Every step allocates and frees the same large blocks, such as the generator's logits (B, N, V). By default
    glibc asks the system for each large block anew, and the system fills it with zeros page by page. With the
    blocks kept, the results are the same and a step of `tiny` with 31,090 wordpieces takes 193 ms instead of
    242, one of `small` in bfloat16 572 ms instead of 691 (two cores).
    """
    if sys.platform == "linux":
        mallopt = ctypes.CDLL(None).mallopt         # its options have numbers, see malloc.h
        mallopt(-4, 0)                  # M_MMAP_MAX: take large blocks from the heap too, like small ones
        mallopt(-1, 2 ** 31 - 1)        # M_TRIM_THRESHOLD: never give the end of the heap back to the system
        mallopt(-2, 512 * 2 ** 20)      # M_TOP_PAD: let the heap grow by 512 MiB of addresses at a time


def read_ranks() -> tuple[int, int, int]:
    """Return this process's number, how many there are, and its number on this machine, as torchrun says.

    Without torchrun that is 0, 1, 0.
    raises   ValueError naming the environment variable that is no such number
    """
    texts = [os.environ.get(name, default) for name, default in
             (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))]
    rank, ranks, local = (int(text) if text.isdecimal() else -1 for text in texts)
    if not (0 <= rank < ranks and 0 <= local < ranks):
        raise ValueError(f"the environment has RANK {texts[0]!r}, WORLD_SIZE {texts[1]!r}, LOCAL_RANK "
                         f"{texts[2]!r}: start several processes with torchrun, or unset all three")
    return rank, ranks, local


@dataclasses.dataclass(frozen=True)
class Device:
    """Say where the arithmetic happens, in which precision, and who else takes part.

    A batch's rows can be divided in two ways:
    - among processes that torchrun starts, one for each GPU or machine: `rank` of `ranks`, see join;
    - in a process on a TPU, among its devices, by XLA itself: `mesh`, see put.
    """

    kind: str                   # cpu, cuda or xla
    precision: str              # float32 or bfloat16
    xla: Any = None             # the module torch_xla, on a TPU
    mesh: Any = None            # the devices of the TPU
    rank: int = 0               # number of this process, from 0
    ranks: int = 1              # number of processes; each computes its share of a batch's rows

    @classmethod
    def choose(cls, device: str = "auto", precision: str | None = None, tpu: bool = False) -> Device:
        """Return the device that the options ask for.

        device      cpu, cuda, or auto: a GPU where there is one
        precision   None is float32 on a CPU and bfloat16 elsewhere
        raises      ValueError when this machine does not have the device, or when the environment says
                    something about processes that cannot be
        """
        read_ranks()
        if tpu:
            return cls("xla", precision or "bfloat16", *open_xla())
        if device == "cuda" and not torch.cuda.is_available():
            raise ValueError("--device cuda: torch sees no GPU here; drop the option to run on the CPU")
        if device != "cpu" and torch.cuda.is_available():
            return cls("cuda", precision or "bfloat16")
        # Some weights and activations shrink from step to step, and fall below 1e-38 after some thousand
        # steps. Numbers so small are called denormal, and a CPU multiplies them many times more slowly. With
        # this setting it takes them for 0. (torch's other threads start later, and inherit it.)
        torch.set_flush_denormal(True)
        keep_freed_memory()
        return cls("cpu", precision or "float32")

    @property
    def count(self) -> int:
        """Return the number of devices that share a batch: XLA's in this process, or one in each process."""
        return self.mesh.size() if self.mesh else self.ranks

    # What a step asks of any device.

    def put(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return host tensors copied to the device.

        On a TPU a tensor whose rows can be divided by the number of devices is spread over them; any other,
        such as a total (), is copied to each.
        """
        if self.kind == "cuda":         # only from pinned memory can the GPU copy while it computes
            tensors = tuple(tensor.pin_memory() for tensor in tensors)
        moved = tuple(tensor.to(self.kind, non_blocking=True) for tensor in tensors)
        for tensor in moved:
            if self.xla and tensor.ndim and len(tensor) % self.mesh.size() == 0:
                axes = ("rows", *[None] * (tensor.ndim - 1))            # only the first axis is divided
                self.xla.distributed.spmd.mark_sharding(tensor, self.mesh, axes)
        return moved

    def fetch(self, tensor: Tensor) -> Tensor:
        """Return a tensor copied to the host.

        XLA compiles a program for each copy of a tensor whose rows are spread over its devices. So here it is
        told to have the whole of it on each device, before it computes it.
        """
        if self.xla:
            self.xla.distributed.spmd.mark_sharding(tensor, self.mesh, (None,) * tensor.ndim)
        return tensor.cpu()

    def autocast(self) -> contextlib.AbstractContextManager:
        """Return the `with` block in which matrices are multiplied in this device's precision.

        Weights, LayerNorm, the sums between the layers and losses stay float32 also under bfloat16.
        """
        if self.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.kind, dtype=torch.bfloat16)

    def seed(self, seed: int) -> None:
        """Set the seed of what the device draws itself: dropout. Each process draws other numbers."""
        (self.xla or torch).manual_seed(seed + self.rank)

    def flush(self) -> None:
        """Make XLA compute what it was asked for so far; other devices need no such call.

        XLA only records operations. Here it compiles the recorded ones into a program, or takes the program
        that it compiled for the same operations before, and runs it.
        """
        if self.xla:
            self.xla.sync()

    # Several processes, started by torchrun.

    def join(self) -> Device:
        """Connect the processes that torchrun started; return the device with this process's rank among them.

        Without torchrun there is one process, and the device is returned as it is.
        """
        rank, ranks, local = read_ranks()
        if ranks == 1:
            return self
        if self.kind == "xla":
            raise ValueError("--tpu drives all devices from one process: start it without torchrun")
        if self.kind == "cuda":
            if local >= (count := torch.cuda.device_count()):
                raise ValueError(f"more processes than GPUs ({count}): lower torchrun's --nproc-per-node")
            torch.cuda.set_device(local)
        if rank == 0:
            print(f"waiting for all {ranks} processes", file=sys.stderr)
        # The timeout is a day, because the others wait while the first process tokenizes the corpus. If a
        # process dies, the others notice it at once, whatever the timeout.
        try:
            torch.distributed.init_process_group(timeout=datetime.timedelta(days=1))
        except RuntimeError as error:
            raise OSError(f"process {rank} of {ranks} finds no others ({error}): see MASTER_ADDR and "
                          "MASTER_PORT") from None
        atexit.register(torch.distributed.destroy_process_group)
        return dataclasses.replace(self, rank=rank, ranks=ranks)

    def agree(self, facts: dict[str, str]) -> None:
        """Check that facts, such as options, versions and hashes, are the same in all processes.

        raises   ValueError, in each of them, naming the facts that differ
        """
        found = [facts] * self.ranks
        if self.ranks > 1:
            torch.distributed.all_gather_object(found, facts)
        for rank, theirs in enumerate(found):
            if different := [name for name in facts if theirs[name] != found[0][name]]:
                raise ValueError(f"process {rank} and process 0 differ in {', '.join(different)}: start all "
                                 "processes with the same command, files and versions")

    def broadcast(self, tensors: list[Tensor]) -> None:
        """Replace each tensor, in place, by that of the first process."""
        if self.ranks > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor.detach(), 0)

    def add_up(self, tensors: list[Tensor]) -> None:
        """Replace each tensor, in place, by its sum over all processes.

        All tensors travel as one: a message for each gradient would cost more than the numbers in it.
        raises   OSError when one of the processes is gone
        """
        if self.ranks == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        try:
            torch.distributed.all_reduce(flat)
        except RuntimeError:
            raise OSError(f"process {self.rank} lost one of {self.ranks}, which says why above") from None
        for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
            tensor.copy_(total.view_as(tensor))

    def any(self, condition: bool) -> bool:
        """Tell whether a condition is true in any process. All processes must call it; each waits for all."""
        count = torch.tensor(float(condition))          # after add_up: of the processes where it is true
        self.add_up([count])
        return bool(count)

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """Run a `with` block in the first process alone, then in the others, which find the files it wrote.

        The others run it without messages, because the first one has printed them.
        """
        # Nobody returns from `any` before all have called it: the first process calls it after the block, the
        # others before it.
        if self.rank > 0:
            self.any(False)
        with contextlib.redirect_stderr(io.StringIO() if self.rank > 0 else sys.stderr):
            yield
        if self.rank == 0:
            self.any(False)
