"""The ELECTRA model: a small generator fills in hidden tokens, a discriminator finds the ones it replaced.

After reading this file you hold the whole method of ELECTRAMed and Bio-ELECTRA: the transformer encoder, the
masking, the two networks with their tied embeddings, the loss  L = L_MLM + 50 L_Disc,  the heads that turn the
discriminator into a tagger, a classifier or a question answerer, the optimiser, and the files models live in.

>>> config = dataclasses.replace(PRESETS["tiny"], vocab_size=40, cls_token_id=2, sep_token_id=3, mask_token_id=4)
>>> ids, real = torch.tensor([[2, *range(5, 39), 3]]), torch.ones(1, 36, dtype=torch.long)
>>> masked = mask_tokens(ids, real, config, torch.Generator().manual_seed(0))
>>> masked.positions.tolist(), masked.original_ids.tolist()
([[12, 27, 2, 3, 34]], [[16, 31, 6, 7, 38]])
>>> output = ElectraForPretraining(config)(masked, real, torch.zeros_like(ids))
>>> bool(torch.isclose(output.loss, output.mlm_loss + 50 * output.discriminator_loss))
True

Where it stands: data.py makes padded batches of token ids; the two trainers feed them to the models here.
Left out: reading text, training loops, metrics (data.py, train_*.py, metrics.py).
Sources: Clark et al. 2020 (ELECTRA) and its official TensorFlow code ("TF": file and function are named where
a constant comes from it), Miolo et al. 2021 (ELECTRAMed, Table 1), Ozyurt 2020 (Bio-ELECTRA).

    1. Configuration and presets        5. Task heads
    2. Encoder                          6. Optimiser and schedule
    3. Masking and replacement          7. Model folders and checkpoints
    4. Pre-training model               8. Device

Dimension letters:  B sequences, T tokens, N masked slots, V vocabulary, E embedding, H hidden, A heads,
D head width, L layers, C labels.
"""
from __future__ import annotations

import atexit
import concurrent.futures
import contextlib
import ctypes
import dataclasses
import datetime
import io
import json
import math
import os
import re
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DISCRIMINATOR_WEIGHT = 50.0         # TF configure_pretraining.py: the binary loss is small and gets a large weight
HIDE_PROBABILITY = 0.85             # TF pretrain_helpers.mask: of the chosen tokens; the other 15 % stay readable
EPSILON = 1e-6                      # keeps a loss over zero tokens at 0 instead of nan
IGNORED_LABEL = -100                # a position without a label: later wordpieces of a word, special tokens, padding
# What two networks must agree in before weights can go from one to the other.
SIZES = ("vocab_size", "embedding_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
         "intermediate_size", "type_vocab_size")


# --- 1. Configuration and presets ---

@dataclass(frozen=True)
class ElectraConfig:
    """Sizes of one network, under the names Hugging Face's config.json uses; the defaults are ELECTRA-small."""

    vocab_size: int = 30522                     # V, wordpieces
    embedding_size: int = 128                   # E, projected to H when they differ
    hidden_size: int = 256                      # H
    num_hidden_layers: int = 12                 # L
    num_attention_heads: int = 4                # A, each D = H / A wide
    intermediate_size: int = 1024               # inner width of the feed-forward network
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512          # longest sequence, tokens
    type_vocab_size: int = 2                    # segments A and B
    initializer_range: float = 0.02             # standard deviation of the initial weights
    layer_norm_eps: float = 1e-12               # TF modeling.layer_norm
    pad_token_id: int = 0
    cls_token_id: int | None = None             # these three come from the vocabulary: SciVocab's are 102, 103, 104
    sep_token_id: int | None = None
    mask_token_id: int | None = None
    generator_size: float = 0.25                # generator's H and A as a share of the discriminator's
    mask_prob: float = 0.15                     # share of the tokens of a row that are chosen

    def __post_init__(self) -> None:
        for name in (*SIZES, "max_position_embeddings"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "mask_prob"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 <= value < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, not {value!r}")
        for name in ("generator_size", "initializer_range", "layer_norm_eps"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 < value <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1, not {value!r}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size {self.hidden_size} does not divide into "
                             f"{self.num_attention_heads} attention heads")

    def num_slots(self, length: int) -> int:
        """Give N, the masked slots of a row padded to `length` tokens: 19 at 128, 79 at 512.

        TF fixes N by the configured maximum, and ELECTRAMed's released configuration computes it before the
        maximum is set to 512, which leaves N = 19; here it follows from the actual length.
        """
        return max(1, int((self.mask_prob + 0.005) * length))

    def generator(self) -> ElectraConfig:
        """Derive the generator's configuration: same depth and embeddings, narrower by `generator_size`.

        Heads are 64 wide, and so is the narrowest generator (our rule: it concerns `tiny` alone).
        """
        hidden = min(self.hidden_size, max(64, round(self.hidden_size * self.generator_size)))
        heads = next(heads for heads in range(max(1, hidden // 64), 0, -1) if hidden % heads == 0)
        return dataclasses.replace(self, hidden_size=hidden, num_attention_heads=heads, intermediate_size=4 * hidden)

    def to_json(self) -> str:
        """Write this configuration as the text of a config.json that Hugging Face reads too."""
        return json.dumps({"model_type": "electra", "hidden_act": "gelu", **dataclasses.asdict(self)}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> ElectraConfig:
        """Read the text of a config.json.

        Keys without effect on this model are ignored; ValueError for those that would change its function.
        """
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError(f"expected a JSON object, found {type(values).__name__}")
        for key, ours in (("model_type", "electra"), ("hidden_act", "gelu"),
                          ("position_embedding_type", "absolute"), ("is_decoder", False)):
            if values.get(key, ours) != ours:
                raise ValueError(f"{key} is {values[key]!r}, and only {ours!r} is implemented")
        for key in ("generator_size", "mask_prob"):     # ours; some published files hold them as text, unused
            if isinstance(values.get(key), str):
                del values[key]
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: values[name] for name in names if name in values})


SMALL = ElectraConfig()
BASE = ElectraConfig(embedding_size=768, hidden_size=768, num_attention_heads=12, intermediate_size=3072,
                     generator_size=1 / 3)
PRESETS = {
    # Ours, for a first look. What it reads in two minutes it cannot overfit: no dropout, which is half of the time
    # on a CPU. 0.02 suits a width of 768; at 128 the same relative size is 0.02 * sqrt(768 / 128) = 0.05, and the
    # main job ends with a discriminator AUC of 0.83 instead of 0.76.
    "tiny": ElectraConfig(hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512,
                          hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.05),
    "small": SMALL,
    "base": BASE,
    "large": ElectraConfig(embedding_size=1024, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16,
                           intermediate_size=4096, generator_size=0.25, mask_prob=0.25),
    "electramed": dataclasses.replace(BASE, vocab_size=31090),                     # ELECTRAMed, Table 1
    "bio-electra": dataclasses.replace(SMALL, vocab_size=31620),
    "bio-electra-pp": dataclasses.replace(SMALL, vocab_size=31620),                # the same, continued on full papers
}


# --- 2. Encoder ---

class ThreadNoise(threading.local):
    """What a CPU draws random numbers from, for each thread its own (Device.seed sets it).

    torch's default generator is shared by all threads: which of them draws first would decide the result.
    """

    generator: torch.Generator | None = None           # None: torch's default one


NOISE = ThreadNoise()


def draw_kept(shape: torch.Size, p: float) -> Tensor:
    """Draw booleans on the CPU, False with probability `p`, by 16 random bits: a quarter of bernoulli_'s time."""
    count = shape.numel()
    bits = torch.empty(count // 4 + 1, dtype=torch.int64)                          # 4 draws in each number
    bits = bits.random_(-2**63, None, generator=NOISE.generator).view(torch.int16)
    return bits[:count].view(shape) >= round(p * 2**16) - 2**15


def dropout(x: Tensor, p: float, is_training: bool) -> Tensor:
    """Do what F.dropout does, whose noise is a sixth of pre-training on a CPU and there drawn by draw_kept."""
    if p == 0 or not is_training or x.device.type != "cpu":
        return F.dropout(x, p, is_training)
    return x * (draw_kept(x.shape, p) / (1 - p)).to(x.dtype)


def attend(query: Tensor, key: Tensor, value: Tensor, may_attend: Tensor, p: float) -> Tensor:
    """Compute dropout(softmax(Q K^T / sqrt(D) + mask)) V, where the mask adds -inf at padding.

    (B, A, T, D) each and the (B, 1, 1, T) boolean mask, False at padding -> (B, A, T, D). One fused kernel does it,
    but the CPU's has no dropout, and its bfloat16 backward pass does without the CPU's bfloat16 products: there the
    formula is written out.
    """
    if query.device.type == "cpu" and (p > 0 or query.dtype == torch.bfloat16):
        return attend_on_cpu(query, key, value, may_attend, p)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=may_attend, dropout_p=p)


def attend_on_cpu(query: Tensor, key: Tensor, value: Tensor, may_attend: Tensor, p: float) -> Tensor:
    """Do what attend says, step by step.

    Forward and backward on one core of an AMD EPYC with bfloat16 products, this beside the fused kernel, in ms:
    bfloat16, 8 rows of 128 tokens and 4 heads 5.2 beside 11.8, 2 rows of 512 and 12 heads 40 beside 60; without
    dropout in float32 the two are equal (7.2 beside 6.5, 75 beside 65); with it torch's own takes half as long again.
    """
    scores = query / math.sqrt(query.shape[-1]) @ key.transpose(-2, -1)            # (B, A, T, T)
    penalty = torch.zeros(may_attend.shape).masked_fill(~may_attend, -math.inf)    # (B, 1, 1, T)
    weights = scores.add_(penalty).softmax(-1)
    if p == 0:
        return weights @ value
    # Multiplied by 0 or 1, in half of the time that torch.where takes forward and backward.
    return weights * draw_kept(weights.shape, p).to(weights.dtype) @ (value / (1 - p))


class Embeddings(nn.Module):
    """Sum of word, position and segment embeddings, normalised; shared by generator and discriminator."""

    def __init__(self, config: ElectraConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.embedding_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.embedding_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.embedding_size)
        self.LayerNorm = nn.LayerNorm(config.embedding_size, eps=config.layer_norm_eps)
        self.dropout = config.hidden_dropout_prob

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """(B, T) token ids and (B, T) segments -> (B, T, E)."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        summed = (self.word_embeddings(input_ids) + self.position_embeddings(positions)
                  + self.token_type_embeddings(token_type_ids))                    # (B, T, E)
        return dropout(self.LayerNorm(summed), self.dropout, self.training)


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward network, each added to its input and then normalised (post-LayerNorm).

    The nested dictionaries give the weights the names of the published state dicts
    (attention.self.query, attention.output.LayerNorm, intermediate.dense, ...), so that files map key by key.
    """

    def __init__(self, config: ElectraConfig) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.attention: Any = nn.ModuleDict({
            "self": nn.ModuleDict({name: nn.Linear(hidden, hidden) for name in ("query", "key", "value")}),
            "output": nn.ModuleDict({"dense": nn.Linear(hidden, hidden),
                                     "LayerNorm": nn.LayerNorm(hidden, eps=config.layer_norm_eps)})})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(hidden, inner)})
        self.output = nn.ModuleDict({"dense": nn.Linear(inner, hidden),
                                     "LayerNorm": nn.LayerNorm(hidden, eps=config.layer_norm_eps)})
        self.heads = config.num_attention_heads
        self.dropout, self.attention_dropout = config.hidden_dropout_prob, config.attention_probs_dropout_prob

    def forward(self, x: Tensor, may_attend: Tensor) -> Tensor:
        """(B, T, H) and the (B, 1, 1, T) boolean mask, False at padding -> (B, T, H)."""
        B, T, H = x.shape
        query, key, value = (
            self.attention["self"][name](x).view(B, T, self.heads, H // self.heads).transpose(1, 2)
            for name in ("query", "key", "value"))                                 # (B, T, A, D) -> (B, A, T, D)
        mixed = attend(query, key, value, may_attend, self.attention_dropout if self.training else 0.0)
        mixed = mixed.transpose(1, 2).reshape(B, T, H)                             # (B, A, T, D) -> (B, T, H)
        x = self.add_and_normalise(x, mixed, self.attention["output"])
        inner = F.gelu(self.intermediate["dense"](x))                              # (B, T, inner); the exact erf form
        return self.add_and_normalise(x, inner, self.output)

    def add_and_normalise(self, x: Tensor, update: Tensor, output: Any) -> Tensor:
        """LayerNorm(x + dropout(dense(update)))."""
        return output["LayerNorm"](x + dropout(output["dense"](update), self.dropout, self.training))


class ElectraEncoder(nn.Module):
    """The transformer both networks are made of. There is no pooler: [CLS]'s hidden state stands for a sequence.

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

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """(B, T) ids, (B, T) 1 on real tokens, (B, T) segments -> (B, T, H) hidden states."""
        if input_ids.shape[1] > self.config.max_position_embeddings:
            raise ValueError(f"{input_ids.shape[1]} tokens in a row, but the model has "
                             f"{self.config.max_position_embeddings} positions")
        x = self.embeddings(input_ids, token_type_ids)                             # (B, T, E)
        if self.embeddings_project is not None:
            x = self.embeddings_project(x)                                         # (B, T, E) -> (B, T, H)
        may_attend = attention_mask[:, None, None, :].bool()                       # (B, 1, 1, T) not to padding
        for layer in self.encoder["layer"]:
            x = layer(x, may_attend)
        return x


GLOROT = ("embeddings_project", "dense_prediction", "classifier", "qa_outputs")    # layers TF leaves at its default


def initialise(model: nn.Module, config: ElectraConfig) -> None:
    """Draw all weights of `model` anew, in place, from torch's global generator.

    Normal(0, 0.02) cut at two standard deviations; Glorot-uniform for the layers that TF creates without an
    initializer (`embeddings_project`, the discriminator's last layer, task heads); biases 0, LayerNorm 1 and 0.
    """
    bound = 2 * config.initializer_range
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            module.reset_parameters()
        elif isinstance(module, (nn.Linear, nn.Embedding)):
            if name.rpartition(".")[2] in GLOROT:
                nn.init.xavier_uniform_(module.weight)
            else:
                nn.init.trunc_normal_(module.weight, std=config.initializer_range, a=-bound, b=bound)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)


# --- 3. Masking and replacement ---

class MaskedBatch(NamedTuple):
    """What the generator sees, and what it has to find. A TPU needs fixed shapes: N slots a row, 0/1 weights."""

    input_ids: Tensor           # (B, T) int64, [MASK] written at most of the chosen positions
    positions: Tensor           # (B, N) int64, the chosen positions; unused slots point at position 0
    original_ids: Tensor        # (B, N) int64, the tokens that stood there
    weights: Tensor             # (B, N) float32, 1 for a used slot, 0 for an unused one


def mask_tokens(input_ids: Tensor, attention_mask: Tensor, config: ElectraConfig,
                generator: torch.Generator) -> MaskedBatch:
    """Choose 15 % of the real tokens of each row, in N fixed slots, and hide 85 % of those behind [MASK].

    input_ids       (B, T) int64, [CLS] first, padding last; never modified
    attention_mask  (B, T) 1 on real tokens
    config          gives mask_prob and the ids of [CLS], [SEP] and [MASK], which are never chosen; [UNK] may be
    generator       the only source of randomness, so a seed decides the mask
    returns         MaskedBatch
    raises          ValueError when a row has nothing to choose from, or the configuration lacks a special id
    source          TF pretrain_helpers.mask. Ours draws positions without replacement, theirs with: of 77 draws
                    from 509 candidates about 71.5 are distinct, and the doubles count twice in their MLM loss
    """
    never = (config.cls_token_id, config.sep_token_id, config.mask_token_id)
    if None in never:
        raise ValueError("the configuration lacks cls_token_id, sep_token_id or mask_token_id: "
                         "take them from the tokenizer with dataclasses.replace")
    B, T = input_ids.shape
    N = config.num_slots(T)
    is_candidate = attention_mask.bool() & ~torch.isin(input_ids, torch.tensor(never))
    candidates = is_candidate.sum(1)                                               # (B,)
    if (candidates == 0).any():
        raise ValueError(f"row {int((candidates == 0).nonzero()[0])} has no token that could be masked")
    # [CLS] and [SEP] are counted here although they are never chosen; torch.round is half-to-even, like TF's
    wanted = (config.mask_prob * attention_mask.sum(1).double()).round().clamp(1, N)
    wanted = torch.minimum(wanted, candidates.double())                            # (B,)

    # Every candidate draws a number below 1, all others hold 2: the N smallest are N distinct random candidates.
    lottery = torch.rand(B, T, generator=generator).masked_fill(~is_candidate, 2.0)
    drawn = lottery.argsort(dim=1, stable=True)[:, :N]                             # (B, N) winners first
    is_used = torch.arange(N) < wanted[:, None]                                    # (B, N)
    positions = torch.where(is_used, drawn, 0)
    original_ids = input_ids.gather(1, positions)                                  # (B, N)
    is_hidden = is_used & (torch.rand(B, N, generator=generator) < HIDE_PROBABILITY)
    # An unused slot writes the token of position 0 onto itself: harmless, however many slots do so.
    written = torch.where(is_hidden, torch.tensor(config.mask_token_id), original_ids)
    return MaskedBatch(input_ids.scatter(1, positions, written), positions, original_ids, is_used.float())


def sample_tokens(logits: Tensor, noise: Tensor | None = None) -> Tensor:
    """Draw one token a slot from the generator's distribution by the Gumbel trick, without gradient.

    logits    (B, N, V)
    noise     (B, N, V) uniform in [0, 1), or None to draw it from the device's global generator
    returns   (B, N) int64: argmax(logits + g) follows softmax(logits) when g is Gumbel noise
    source    TF pretrain_helpers.sample_from_softmax, float32 also under bfloat16
    """
    with torch.no_grad():
        if noise is None:
            generator = NOISE.generator if logits.device.type == "cpu" else None
            noise = torch.rand(logits.shape, dtype=torch.float32, device=logits.device, generator=generator)
        minus_gumbel = (noise + 1e-9).log_().neg_().add_(1e-9).log_()              # in place: V is large
        return minus_gumbel.sub_(logits).argmin(dim=-1)


def replace_tokens(masked: MaskedBatch, sampled_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Put the generator's samples at all chosen positions, also at those that were never hidden.

    returns   corrupted ids (B, T) and is_replaced (B, T) bool, True only where the sample differs from the
              original: a lucky guess counts as real
    source    TF run_pretraining.PretrainingModel._get_fake_data
    """
    restored = masked.input_ids.scatter(1, masked.positions, masked.original_ids)
    written = torch.where(masked.weights > 0, sampled_ids, masked.original_ids)
    corrupted = restored.scatter(1, masked.positions, written)
    return corrupted, corrupted != restored


# --- 4. Pre-training model ---

class Generator(nn.Module):
    """A small masked language model; its output matrix is the transposed word embeddings."""

    def __init__(self, config: ElectraConfig, embeddings: Embeddings | None = None) -> None:
        super().__init__()
        self.electra = ElectraEncoder(config, embeddings)
        self.generator_predictions = nn.ModuleDict({
            "dense": nn.Linear(config.hidden_size, config.embedding_size),
            "LayerNorm": nn.LayerNorm(config.embedding_size, eps=config.layer_norm_eps)})
        self.generator_lm_head = nn.Linear(config.embedding_size, config.vocab_size)
        self.config = config
        initialise(self, config)
        self.generator_lm_head.weight = self.electra.embeddings.word_embeddings.weight

    def predict(self, hidden: Tensor) -> Tensor:
        """(..., Hg) hidden states -> (..., V) logits."""
        embedded = F.gelu(self.generator_predictions["dense"](hidden))             # (..., Hg) -> (..., E)
        return self.generator_lm_head(self.generator_predictions["LayerNorm"](embedded))

    def masked_loss(self, masked: MaskedBatch, attention_mask: Tensor, token_type_ids: Tensor,
                    slot_total: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Compute L_MLM = sum(w * nll) / sum(w) and the (B, N, V) logits, at the N slots alone: all T cost far more."""
        hidden = self.electra(masked.input_ids, attention_mask, token_type_ids)                # (B, T, Hg)
        at_slots = masked.positions[:, :, None].expand(-1, -1, hidden.shape[-1])               # (B, N, Hg)
        logits = self.predict(hidden.gather(1, at_slots)).float()                              # (B, N, V)
        nll = F.cross_entropy(logits.flatten(0, 1), masked.original_ids.flatten(),
                              reduction="none").view_as(masked.weights)                        # (B, N)
        slots = masked.weights.sum() if slot_total is None else slot_total
        return (nll * masked.weights).sum() / (slots + EPSILON), logits


class Discriminator(nn.Module):
    """The network that is kept: one logit a token, high where it believes the token was replaced."""

    def __init__(self, config: ElectraConfig) -> None:
        super().__init__()
        self.electra = ElectraEncoder(config)
        self.discriminator_predictions = nn.ModuleDict({
            "dense": nn.Linear(config.hidden_size, config.hidden_size),
            "dense_prediction": nn.Linear(config.hidden_size, 1)})
        self.config = config
        initialise(self, config)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """(B, T) ids, mask and segments -> (B, T) logits."""
        hidden = self.electra(input_ids, attention_mask, token_type_ids)           # (B, T, H)
        hidden = F.gelu(self.discriminator_predictions["dense"](hidden))
        return self.discriminator_predictions["dense_prediction"](hidden).squeeze(-1)


class PretrainOutput(NamedTuple):
    """One step's losses (nats) and all that is worth measuring."""

    loss: Tensor                    # () mlm_loss + 50 * discriminator_loss
    mlm_loss: Tensor                # () per masked slot
    discriminator_loss: Tensor      # () per real token
    generator_logits: Tensor        # (B, N, V)
    is_replaced: Tensor             # (B, T) bool
    discriminator_logits: Tensor    # (B, T)
    masked: MaskedBatch


class ElectraForPretraining(nn.Module):
    """Generator and discriminator with one set of embeddings (word, position, segment and their LayerNorm).

    generator_config   None for config.generator(); its embeddings must have the discriminator's shape
    """

    def __init__(self, config: ElectraConfig, generator_config: ElectraConfig | None = None) -> None:
        super().__init__()
        self.config = config
        self.generator_config = generator_config or config.generator()
        for name in ("vocab_size", "embedding_size", "max_position_embeddings", "type_vocab_size"):
            ours, theirs = getattr(config, name), getattr(self.generator_config, name)
            if ours != theirs:
                raise ValueError(f"generator and discriminator share their embeddings, but {name} is {theirs} "
                                 f"in the generator and {ours} in the discriminator")
        self.discriminator = Discriminator(config)
        self.generator = Generator(self.generator_config, self.discriminator.electra.embeddings)

    def discriminator_logits(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """(B, T) ids, mask and segments -> (B, T); above 0: more likely replaced than not."""
        return self.discriminator(input_ids, attention_mask, token_type_ids)

    def generator_logits(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """(B, T) ids, mask and segments -> (B, T, V), over all positions; training needs the N slots only."""
        return self.generator.predict(self.generator.electra(input_ids, attention_mask, token_type_ids))

    def forward(self, masked: MaskedBatch, attention_mask: Tensor, token_type_ids: Tensor,
                noise: Tensor | None = None, slot_total: Tensor | None = None,
                token_total: Tensor | None = None) -> PretrainOutput:
        """Take one step of replaced-token detection: predict, sample, replace, judge, add up.

        noise         (B, N, V) uniform, for tests; None draws it
        slot_total    masked slots and
        token_total   real tokens of the whole global batch, where this one is a part of it; None: of this batch
        source        TF run_pretraining.PretrainingModel
        """
        # 1. and 2. The generator predicts the hidden tokens, and learns from its errors.
        mlm_loss, logits = self.generator.masked_loss(masked, attention_mask, token_type_ids, slot_total)
        # 3. Its samples replace the originals. argmax has no gradient: the discriminator cannot tell the generator
        #    how to fool it (this is no GAN); the two meet in the shared embeddings alone.
        corrupted_ids, is_replaced = replace_tokens(masked, sample_tokens(logits, noise))
        # 4. The discriminator judges every real token, [CLS] and [SEP] included.
        #    L_Disc = sum(real * BCE) / sum(real)
        judged = self.discriminator(corrupted_ids, attention_mask, token_type_ids).float()     # (B, T)
        bce = F.binary_cross_entropy_with_logits(judged, is_replaced.float(), reduction="none")
        tokens = attention_mask.sum() if token_total is None else token_total
        discriminator_loss = (bce * attention_mask).sum() / (tokens + EPSILON)
        # 5. L = L_MLM + 50 L_Disc
        loss = mlm_loss + DISCRIMINATOR_WEIGHT * discriminator_loss
        return PretrainOutput(loss, mlm_loss, discriminator_loss, logits.detach(), is_replaced, judged.detach(),
                              masked)


class MaskedLanguageModel(Generator):
    """BERT's objective, the baseline of both papers: the encoder that is kept fills in hidden tokens itself.

    Tokens are hidden as for ELECTRA (85 % of the chosen become [MASK], the others stay), as in TF's BERT mode, not
    80 / 10 / 10: the two runs differ by their objective alone.
    """

    def forward(self, masked: MaskedBatch, attention_mask: Tensor, token_type_ids: Tensor,
                noise: Tensor | None = None, slot_total: Tensor | None = None,
                token_total: Tensor | None = None) -> PretrainOutput:
        """ElectraForPretraining's arguments and results; what concerns a discriminator is unused, nan or False."""
        loss, logits = self.masked_loss(masked, attention_mask, token_type_ids, slot_total)
        absent = torch.full_like(attention_mask, math.nan, dtype=torch.float32)                # (B, T)
        return PretrainOutput(loss, loss, absent.mean(), logits.detach(), absent > 0, absent, masked)


# --- 5. Task heads ---

class TokenTagger(nn.Module):
    """One label a token: entity recognition. One dense layer, without dropout, as in TF tagging_tasks.py."""

    def __init__(self, config: ElectraConfig, num_labels: int) -> None:
        super().__init__()
        self.electra = ElectraEncoder(config)
        self.classifier = nn.Linear(config.hidden_size, num_labels)
        self.config = config
        initialise(self, config)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """(B, T) ids, mask and segments -> (B, T, C) logits."""
        return self.classifier(self.electra(input_ids, attention_mask, token_type_ids))

    @staticmethod
    def total(labels: Tensor, is_binary: bool = False) -> Tensor:
        """Count the labelled positions of (B, T) labels: what the summed loss of a batch is divided by."""
        return (labels != IGNORED_LABEL).sum().clamp(min=1)             # a window may own no word: then 0 / 1

    @staticmethod
    def loss(logits: Tensor, labels: Tensor, is_binary: bool = False, total: Tensor | None = None) -> Tensor:
        """Average the cross-entropy over the labelled positions; labels (B, T), IGNORED_LABEL elsewhere.

        total       total() of the whole batch, where this one is a part of it; None: of this batch
        is_binary   each label against the rest: the sum over the labels of a sigmoid's binary cross-entropy, instead
                    of one softmax over them. The largest logit is the prediction either way.
        source      ELECTRAMed's paper: three binary classifiers over B, I and O; its release has the softmax
        """
        if is_binary:
            is_labelled = labels != IGNORED_LABEL                       # (B, T)
            targets = F.one_hot(labels.clamp(min=0), logits.shape[-1]).float()                      # (B, T, C)
            summed = (F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none").sum(-1)
                      * is_labelled).sum()
        else:
            summed = F.cross_entropy(logits.float().transpose(1, 2), labels, ignore_index=IGNORED_LABEL,
                                     reduction="sum")
        return summed / (TokenTagger.total(labels) if total is None else total)


class SequenceClassifier(nn.Module):
    """One label a sequence, from [CLS]: relations, yes/no questions, ranking.

    Dropout, then one dense layer (TF classification_tasks.py); ELECTRAMed's released code has a second dense
    layer between the two.
    """

    def __init__(self, config: ElectraConfig, num_labels: int) -> None:
        super().__init__()
        self.electra = ElectraEncoder(config)
        self.classifier = nn.Linear(config.hidden_size, num_labels)
        self.config = config
        initialise(self, config)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """(B, T) ids, mask and segments -> (B, C) logits."""
        cls = self.electra(input_ids, attention_mask, token_type_ids)[:, 0]        # (B, H)
        return self.classifier(dropout(cls, self.config.hidden_dropout_prob, self.training))

    @staticmethod
    def total(labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
        """Add up the weights of (B,) labels, 1 each without class_weights: what the summed loss is divided by."""
        return torch.tensor(float(len(labels))) if class_weights is None else class_weights[labels].sum()

    @staticmethod
    def loss(logits: Tensor, labels: Tensor, class_weights: Tensor | None = None,
             total: Tensor | None = None) -> Tensor:
        """Average the cross-entropy, weighted by the label's class_weights (C,) where given; labels (B,).

        total   total() of the whole batch, where this one is a part of it; None: of this batch
        """
        summed = F.cross_entropy(logits.float(), labels, class_weights, reduction="sum")
        return summed / (SequenceClassifier.total(labels, class_weights) if total is None else total)


class SpanExtractor(nn.Module):
    """Two logits a token, start and end of the answer: question answering.

    Positions outside the passage are ruled out, except [CLS], which means "no answer in this window". ELECTRAMed
    has this head; Bio-ELECTRA used TF's joint one (the end conditioned on the start): ours is this for both.
    """

    def __init__(self, config: ElectraConfig) -> None:
        super().__init__()
        self.electra = ElectraEncoder(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.config = config
        initialise(self, config)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """(B, T) ids, mask and segments (1 on the passage and its [SEP]) -> (B, T, 2) logits."""
        logits = self.qa_outputs(self.electra(input_ids, attention_mask, token_type_ids)).float()
        has_next = F.pad(attention_mask[:, 1:], (0, 1))            # 0 on the last real token, the passage's [SEP]
        is_allowed = (token_type_ids * has_next).bool()                            # (B, T) the passage without it
        is_allowed[:, 0] = True                                                    # and [CLS]
        return logits.masked_fill(~is_allowed[:, :, None], -1e4)

    @staticmethod
    def total(labels: Tensor) -> Tensor:
        """Count the starts and ends of (B, 2) labels: what the summed loss is divided by."""
        return torch.tensor(float(labels.numel()))

    @staticmethod
    def loss(logits: Tensor, labels: Tensor, total: Tensor | None = None) -> Tensor:
        """Average the cross-entropies of start and end; labels (B, 2), (0, 0) for "no answer".

        total   total() of the whole batch, where this one is a part of it; None: of this batch
        """
        summed = F.cross_entropy(logits, labels, reduction="sum")       # softmax over dim 1 = T, start and end alike
        return summed / (SpanExtractor.total(labels) if total is None else total)


# --- 6. Optimiser and schedule ---

def learning_rate_at(step: int, total_steps: int, warmup_steps: int, peak: float) -> float:
    """Give the lr of update `step`, counted from 0: linear decay times linear warm-up.

    The product, not "up, then down" (TF optimization.create_optimizer): the first update has lr 0 when there is
    a warm-up, and the peak is not quite reached.
    """
    warmup = min(1.0, step / warmup_steps) if warmup_steps else 1.0
    return peak * (1 - step / total_steps) * warmup


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Sort a model's parameters into the groups that share learning rate and weight decay.

    layer_decay   lr factor from each layer to the one below it: 0.8 in fine-tuning, 1 in pre-training. With L
                  layers, the embeddings are at depth 0, layer i at i + 1, a head at L + 2: lr * 0.8^(L + 2 - depth)
    weight_decay  on everything, embeddings too, but LayerNorms and biases
    source        TF optimization._get_layer_lrs and AdamWeightDecayOptimizer._do_use_weight_decay
    """
    config: ElectraConfig = model.config                                           # type: ignore[assignment]
    head_depth = config.num_hidden_layers + 2
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        layer = re.search(r"\.layer\.(\d+)\.", name)
        depth = int(layer[1]) + 1 if layer else 0 if "embeddings" in name else head_depth
        decay = 0.0 if "LayerNorm" in name or name.endswith("bias") else weight_decay
        groups.setdefault((layer_decay ** (head_depth - depth), decay), []).append(parameter)
    return [{"params": parameters, "lr_scale": scale, "decay": decay} for (scale, decay), parameters in groups.items()]


class Adam(torch.optim.AdamW):
    """Adam as BERT and ELECTRA use it: no bias correction, eps outside the square root, decoupled decay.

        m = b1 m + (1 - b1) g        v = b2 v + (1 - b2) g^2        w -= lr (m / (sqrt(v) + eps) + decay w)

    torch's fused AdamW divides m by c1 = 1 - b1^t and v by c2 = 1 - b2^t. Handing it  lr c1 / sqrt(c2),
    eps / sqrt(c2)  and  decay sqrt(c2) / c1  cancels that exactly, and keeps its single fast kernel.
    XLA has no such kernel: there the formula itself is computed, on the same state.

    groups   of parameter_groups
    source   TF optimization.AdamWeightDecayOptimizer
    """

    true_eps = 1e-6             # the "eps" of torch's groups changes with every update

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__([{**group, "updates": 0} for group in groups], lr=0.0, betas=(0.9, 0.999), fused=True)

    def update(self, learning_rate: float) -> None:
        """Apply the gradients at `learning_rate` and clear them."""
        is_xla = self.param_groups[0]["params"][0].device.type == "xla"
        for group in self.param_groups:
            group["updates"] += 1                   # kept in the group, so that state_dict carries it
            if is_xla:
                self.update_by_formula(group, learning_rate)
            c1, c2 = (1 - beta ** group["updates"] for beta in group["betas"])
            group["lr"] = learning_rate * group["lr_scale"] * c1 / math.sqrt(c2)
            group["eps"] = self.true_eps / math.sqrt(c2)
            group["weight_decay"] = group["decay"] * math.sqrt(c2) / c1
        if not is_xla:
            self.step()
        self.zero_grad(set_to_none=True)

    @torch.no_grad()
    def update_by_formula(self, group: dict[str, Any], learning_rate: float) -> None:
        """Update one group in plain tensor operations.

        The rate is a tensor: XLA compiles numbers into its program, and one that changes means a new program a step.
        """
        rate = torch.tensor(learning_rate * group["lr_scale"]).to(group["params"][0].device)
        for parameter in group["params"]:
            state, gradient, (b1, b2) = self.state[parameter], parameter.grad, group["betas"]
            if not state:
                state.update(step=torch.zeros(()), exp_avg=torch.zeros_like(parameter),
                             exp_avg_sq=torch.zeros_like(parameter))
            state["step"] += 1                      # unused here: a CPU or GPU that resumes goes on from it
            m = state["exp_avg"].mul_(b1).add_(gradient, alpha=1 - b1)
            v = state["exp_avg_sq"].mul_(b2).addcmul_(gradient, gradient, value=1 - b2)
            parameter.sub_(rate * (m / (v.sqrt() + self.true_eps) + group["decay"] * parameter))


# --- 7. Model folders and checkpoints ---

def write_atomically(path: Path, write: Callable[[Any], None]) -> None:
    """Let write(file) fill a temporary file, flush it to the disk, then give it its name: all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        system = error if isinstance(error, OSError) else error.__context__        # torch hides what the system said
        if not isinstance(system, OSError):
            raise
        raise OSError(f"{path} could not be written ({system.strerror}): what was there before is whole; make room, "
                      "and the same command continues") from None
    finally:
        temporary.unlink(missing_ok=True)


def save_pretrained(model: nn.Module, directory: str | os.PathLike, tokenizer: Any = None,
                    labels: Sequence[str] = ()) -> None:
    """Write a model in the Hugging Face layout: config.json, pytorch_model.bin, and the tokenizer's files.

    model       ElectraForPretraining (the discriminator, with the generator in generator/), or a task head
    tokenizer   anything with .save(directory), or None
    labels      of a task head, in the order of its outputs: id2label in config.json
    """
    if isinstance(model, ElectraForPretraining):
        save_pretrained(model.generator, Path(directory) / "generator")
        model = model.discriminator
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(Path(directory) / "pytorch_model.bin", lambda file: torch.save(weights, file))
    (Path(directory) / "model.safetensors").unlink(missing_ok=True)                # it would be read first
    config: ElectraConfig = model.config                                           # type: ignore[assignment]
    content = json.loads(config.to_json()) | ({"id2label": dict(enumerate(labels))} if labels else {})
    write_atomically(Path(directory) / "config.json", lambda file: file.write(json.dumps(content, indent=2).encode()))
    if tokenizer is not None:
        tokenizer.save(directory)


def load_pretrained(directory: str | os.PathLike) -> ElectraForPretraining:
    """Read a pre-training model from a folder in the Hugging Face layout, ours or a published one.

    Without a generator/ in it the generator is a new one of config.generator()'s size.
    raises   ValueError for files that contradict each other, naming them; OSError where one is missing
    """
    folder = model_folder(directory)
    has_generator = (folder / "generator").is_dir()
    config, generator_config = read_config(folder), read_config(folder / "generator") if has_generator else None
    try:
        model = ElectraForPretraining(config, generator_config)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    load_weights(model.discriminator, folder)
    if has_generator:
        weights = read_weights(folder / "generator")
        shared = {f"electra.embeddings.{name}": tensor
                  for name, tensor in model.discriminator.electra.embeddings.state_dict().items()}
        shared["generator_lm_head.weight"] = shared["electra.embeddings.word_embeddings.weight"]
        for name in shared.keys() & weights.keys():
            if not torch.equal(shared[name], weights[name].float()):
                raise ValueError(f"{folder / 'generator'}: {name} differs from the discriminator's embeddings, but "
                                 "the two networks share them: these are not the halves of one model")
        load_weights(model.generator, folder / "generator", weights)
    return model


def load_encoder(model: nn.Module, directory: str | os.PathLike) -> None:
    """Fill the `electra` part of a task head from any model folder; its own head keeps its initial weights."""
    folder = model_folder(directory)
    weights = {name: tensor for name, tensor in read_weights(folder).items() if name.startswith("electra.")}
    weights |= {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("electra.")}
    load_weights(model, folder, weights)


def load_initial(model: nn.Module, directory: str | os.PathLike) -> None:
    """Start a pre-training model from the weights of another of its kind; ValueError naming a size that differs.

    Positions that the other one lacks keep their initial values: a run at 512 tokens goes on from one at 128.
    """
    folder = model_folder(directory)
    if isinstance(model, ElectraForPretraining):
        source: nn.Module = load_pretrained(folder)
        if not (folder / "generator").is_dir():
            print(f"{folder} has no generator/: its discriminator meets a new one", file=sys.stderr, flush=True)
    else:
        load_weights(source := MaskedLanguageModel(read_config(folder)), folder)
    configs = ([part.config for part in whole.modules() if isinstance(part, ElectraEncoder)]
               for whole in (source, model))
    for kind, theirs, ours in zip(("", "generator's "), *configs):
        for name in SIZES:
            if getattr(theirs, name) != getattr(ours, name):
                raise ValueError(f"{folder}: its {kind}{name} is {getattr(theirs, name)}, this run's "
                                 f"{getattr(ours, name)}: choose the preset or sizes it was trained with")
    weights = source.state_dict()
    for name, initial in model.state_dict().items():
        if name.endswith("position_embeddings.weight"):
            weights[name] = torch.cat([weights[name], initial[len(weights[name]):]])[:len(initial)]
    model.load_state_dict(weights)


def model_folder(directory: str | os.PathLike) -> Path:
    """Find the folder that holds config.json: the given one, or model/ in it when it is a run of ours."""
    for folder in (Path(directory), Path(directory) / "model"):
        if (folder / "config.json").is_file():
            return folder
    raise FileNotFoundError(f"{directory}: no config.json here or in model/: expected a pre-training run, "
                            "a fine-tuned run, or a model folder in the Hugging Face layout")


def read_config(folder: Path) -> ElectraConfig:
    """Read config.json and check it against vocab.txt, where that lies beside it."""
    path = folder / "config.json"
    try:
        config = ElectraConfig.from_json(path.read_text(encoding="utf-8"))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error
    vocab = folder / "vocab.txt"
    if vocab.is_file():
        lines = vocab.read_bytes().removesuffix(b"\n").split(b"\n")
        if len(lines) != config.vocab_size:
            raise ValueError(f"{path} has vocab_size {config.vocab_size} but {vocab} has {len(lines)} lines: "
                             "put the vocab.txt there that the model was trained with")
    return config


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read the state dict of a model folder, from model.safetensors or pytorch_model.bin."""
    safetensors, pickled = folder / "model.safetensors", folder / "pytorch_model.bin"
    if safetensors.is_file():
        return read_safetensors(safetensors)
    try:
        return dict(torch.load(pickled, map_location="cpu", weights_only=True))
    except FileNotFoundError:
        raise FileNotFoundError(f"{folder}: neither model.safetensors nor pytorch_model.bin") from None
    except Exception as error:      # torch raises whatever the damaged bytes lead to
        raise ValueError(f"{pickled}: not a readable state dict ({type(error).__name__})") from error


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read the safetensors format: 8 bytes of header length, a JSON header, then the raw tensors."""
    types = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
             "I64": torch.int64}
    content = bytearray(path.read_bytes())
    try:
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8:8 + size])
        header.pop("__metadata__", None)
        return {name: torch.frombuffer(content, dtype=types[entry["dtype"]], count=math.prod(entry["shape"]),
                                       offset=8 + size + entry["data_offsets"][0]).view(entry["shape"])
                for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from error


def load_weights(model: nn.Module, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
    """Copy a state dict into `model`; ValueError when a name or shape does not match, naming the first."""
    weights = dict(read_weights(folder) if weights is None else weights)
    weights.pop("electra.embeddings.position_ids", None)        # a constant that old releases stored
    expected = model.state_dict()
    tied = "generator_lm_head.weight", "electra.embeddings.word_embeddings.weight"
    if tied[0] in expected and tied[0] not in weights and tied[1] in weights:      # some files leave it out
        weights[tied[0]] = weights[tied[1]]
    for kind, names in (("lacks", expected.keys() - weights.keys()),
                        ("has the unknown entry", weights.keys() - expected.keys())):
        if names:
            raise ValueError(f"{folder}: the weights file {kind} {min(names)}"
                             + (f" and {len(names) - 1} more" if len(names) > 1 else "")
                             + ": is it a model of this kind?")
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(f"{folder}: {name} has shape {tuple(tensor.shape)}, but config.json means "
                             f"{tuple(expected[name].shape)}: one of the two belongs to another model")
    model.load_state_dict(weights)


def save_checkpoint(directory: Path, step: int, model: nn.Module, optimizer: Adam) -> Path:
    """Write all that resuming needs (weights, moments, updates done) and delete all but the last two.

    Random numbers need no saving: those of step k follow from (seed, k). Any kind of device resumes from it.
    """
    path = directory / f"checkpoint-{step:08d}.pt"
    on_host = {parameter: parameter.detach().cpu() for parameter in model.parameters()}     # a tied one once
    state = optimizer.state_dict()
    moments = {number: {name: tensor.cpu() for name, tensor in entry.items()}
               for number, entry in state["state"].items()}
    content = {"step": step, "optimizer": {**state, "state": moments},
               "model": {name: on_host[weight] for name, weight in model.state_dict(keep_vars=True).items()}}
    write_atomically(path, lambda file: torch.save(content, file))
    for old in sorted(directory.glob("checkpoint-*.pt"))[:-2]:
        old.unlink()
    return path


def load_checkpoint(directory: Path, model: nn.Module, optimizer: Adam) -> int:
    """Restore the newest readable checkpoint in place; returns its step, 0 when there is none.

    raises   ValueError when there are some and all are damaged
    """
    paths = sorted(directory.glob("checkpoint-*.pt"), reverse=True)
    for number, path in enumerate(paths):
        try:
            with zipfile.ZipFile(path) as archive:              # torch itself compares no checksum
                if archive.testzip():
                    raise ValueError("wrong checksum")
            content = torch.load(path, map_location="cpu", weights_only=True)      # load_state_dict moves it
            model.load_state_dict(content["model"])
            optimizer.load_state_dict(content["optimizer"])
        except Exception as error:      # torch raises whatever the damaged bytes lead to
            print(f"{path} is damaged or of another model ({type(error).__name__}): trying the one before it",
                  file=sys.stderr, flush=True)
            continue
        for damaged in paths[:number]:          # set aside, or they would count among the last two
            damaged.rename(damaged.with_suffix(".damaged"))
        return content["step"]
    if paths:
        raise ValueError(f"{directory}: none of its checkpoints is readable: restore one, or choose another --out")
    return 0


# --- 8. Device ---

def open_xla() -> tuple[Any, Any]:
    """Load torch_xla, all devices of this machine as one (SPMD), and the mesh that cuts a batch's rows among them."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")          # it warns at every compilation
    try:
        import torch_xla
        from torch_xla import runtime
        from torch_xla.distributed import spmd
    except ImportError as error:
        raise ValueError(f"--tpu: torch_xla does not load beside torch {torch.__version__} ({error}): install the "
                         "matching pair (pip install torch==2.9.0 torch_xla==2.9.0) or drop --tpu") from None
    runtime.use_spmd()
    count = runtime.global_runtime_device_count()
    # Weights that move to XLA become new tensors; without this they become new parameters, and tied ones part.
    torch.__future__.set_swap_module_params_on_conversion(True)
    return torch_xla, spmd.Mesh(range(count), (count,), ("rows",))


def keep_freed_memory() -> None:
    """Tell glibc's allocator not to give large blocks back to the system; do nothing where there is no glibc.

    Each step allocates and frees the same blocks, such as the generator's logits (B, N, V). By default glibc maps
    each large block anew, and the system fills it with zeros page by page. Kept, `tiny` with 31,090 wordpieces takes
    193 ms a step instead of 242, `small` in bfloat16 572 instead of 691 (two cores; results are the same).
    """
    M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4                # malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):                        # macOS, musl, Windows
        return
    mallopt(M_MMAP_MAX, 0)                      # large blocks come from the heap as well,
    mallopt(M_TRIM_THRESHOLD, 2 ** 31 - 1)      # whose free end is never cut off,
    mallopt(M_TOP_PAD, 512 * 2 ** 20)           # and which grows by 512 MiB at a time (address space, not memory)


def bfloat16_speedup(hidden_size: int) -> float:
    """Measure how many times as fast as float32 this CPU computes a product of the feed-forward network's size."""
    def seconds(dtype: torch.dtype) -> float:
        x, weight = torch.ones(2048, hidden_size, dtype=dtype), torch.ones(hidden_size, 4 * hidden_size, dtype=dtype)
        times = []
        for _ in range(4):                      # the first one prepares the kernel; the least disturbed one counts
            began = time.perf_counter()
            torch.mm(x, weight)
            times.append(time.perf_counter() - began)
        return min(times)

    return seconds(torch.float32) / seconds(torch.bfloat16)


def start_worker() -> None:
    """Set up a thread of Device.side_by_side: it computes alone, and takes denormal numbers for 0."""
    torch.set_num_threads(1)                    # counts for this thread and those that start later
    torch.set_flush_denormal(True)


Result = TypeVar("Result")


@dataclass(frozen=True)
class Device:
    """Where the arithmetic happens, in which precision, and with whom: one device, XLA's, or torchrun's processes."""

    kind: str                   # cpu, cuda or xla
    precision: str              # float32 or bfloat16
    rank: int = 0               # number of this process
    ranks: int = 1              # of so many; each computes its share of a batch's rows
    xla: Any = None             # torch_xla
    mesh: Any = None            # its devices
    workers: int = 1            # threads that compute parts of a batch at the same time, on a CPU
    pool: Any = dataclasses.field(default=None, compare=False, repr=False)         # these threads

    @classmethod
    def choose(cls, device: str = "auto", precision: str | None = None, tpu: bool = False) -> Device:
        """Choose one: auto takes a GPU where there is one; precision None is float32 on a CPU, else bfloat16."""
        if tpu:
            xla, mesh = open_xla()
            return cls("xla", precision or "bfloat16", xla=xla, mesh=mesh)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cuda" and not torch.cuda.is_available():
            raise ValueError("--device cuda: torch sees no GPU here; drop the option to run on the CPU")
        if device == "cpu":
            # Weights and activations that fade out pass 1e-38 after some thousand steps, and products of such
            # "denormal" numbers are many times slower: take them for 0.
            torch.set_flush_denormal(True)
            keep_freed_memory()
            workers = torch.get_num_threads()           # the cores, or what OMP_NUM_THREADS says
            return cls(device, precision or "float32", workers=workers,
                       pool=concurrent.futures.ThreadPoolExecutor(workers, initializer=start_worker))
        return cls(device, precision or "bfloat16")

    def join(self) -> Device:
        """Join the devices that torchrun started a process for, each its own; alone, stay as it is."""
        ranks = int(os.environ.get("WORLD_SIZE", 1))
        if ranks == 1:
            return self
        if self.kind == "xla":
            raise ValueError("--tpu drives all devices from one process: start it without torchrun")
        if self.kind == "cuda":
            if (local := int(os.environ["LOCAL_RANK"])) >= torch.cuda.device_count():
                raise ValueError(f"torchrun started more processes than the {torch.cuda.device_count()} GPUs here: "
                                 "lower --nproc-per-node")
            torch.cuda.set_device(local)
        # A day, for the others wait while the first process tokenizes the corpus; one that dies is noticed at once.
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if self.kind == "cuda" else "gloo",
                                             timeout=datetime.timedelta(days=1))
        atexit.register(torch.distributed.destroy_process_group)
        return dataclasses.replace(self, rank=int(os.environ["RANK"]), ranks=ranks)

    def add_up(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, in one message; OSError when one of them is gone."""
        if self.ranks == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        try:
            torch.distributed.all_reduce(flat)
        except RuntimeError as error:
            raise OSError(f"process {self.rank} lost one of the {self.ranks} ({str(error).splitlines()[0]}): the same "
                          "command continues from the last checkpoint") from None
        for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
            tensor.copy_(total.view_as(tensor))

    def any(self, claim: bool) -> bool:
        """Tell whether any process claims it. All have to ask; so this is also where they wait for each other."""
        claims = torch.tensor(float(claim))
        self.add_up([claims])
        return bool(claims)

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """Let the first process go through the block alone, then the others, silently: they find what it made."""
        if self.rank:
            self.any(False)
        with contextlib.redirect_stderr(io.StringIO()) if self.rank else contextlib.nullcontext():
            yield
        if not self.rank:
            self.any(False)

    def mention_bfloat16(self, hidden_size: int) -> None:
        """Say on stderr that --precision bfloat16 exists, where this CPU gains by it: native products, wide models."""
        if self.kind == "cpu" and self.precision == "float32" and self.rank == 0 and hidden_size >= 256:
            if (speedup := bfloat16_speedup(hidden_size)) > 1.5:
                print(f"this CPU multiplies {speedup:.1f} times as fast in bfloat16: --precision bfloat16 takes less time "
                      "(measured for small and base: 2.4 to 2.7 times as fast) at nearly the same losses",
                      file=sys.stderr, flush=True)

    def side_by_side(self, work: Callable[[range], Result], rows: range) -> list[Result]:
        """Return [work(part) for the parts of `rows`], computed at the same time by the threads of a CPU.

        Each thread computes its rows alone, from the embeddings to the gradient. The usual way, all threads together
        in each matrix product, makes them wait for each other some thousand times a step. If they wait asleep, an
        idle machine is half used; if they wait by spinning, a step takes 4 to 40 times as long beside two other
        busy processes. Here they meet once a step. Tokens a second of the main job on two cores, idle / beside one /
        beside two busy processes: together, asleep 14,400 / 14,300 / 7,400; spinning 26,000 / 7,000 / 6,400; side by
        side 24,400 / 14,900 / 12,800.

        How rows are divided follows from the number of threads alone, never from who is faster, so that a resumed
        run equals an unbroken one. Modes of torch (no_grad, autocast) hold for one thread: enter them in `work`.
        """
        count = min(self.workers, len(rows))
        if count <= 1:
            return [work(rows)]
        borders = [rows.start + len(rows) * part // count for part in range(count + 1)]
        return list(self.pool.map(work, map(range, borders, borders[1:])))

    def backward(self, losses_of: Callable[[range], Sequence[Tensor]], weights: Sequence[Tensor],
                 rows: range) -> Tensor:
        """Add the gradient of losses_of(rows)[0] to each weight's `grad`, computed side by side.

        losses_of   rows of a batch -> their share of its losses (), the one to learn from first
        returns     all of them for the whole of `rows`, without gradient
        """
        def work(part: range) -> tuple[Tensor, tuple[Tensor, ...]]:
            losses = losses_of(part)
            return torch.stack([loss.detach() for loss in losses]), torch.autograd.grad(losses[0], weights)

        # Added up in the order of the rows, whichever thread was first: the same sum to the last bit each time.
        parts = self.side_by_side(work, rows)
        for _, gradients in parts:
            for weight, gradient in zip(weights, gradients):
                weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)
        return torch.stack([losses for losses, _ in parts]).sum(0)

    def put(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Copy host tensors to the device; on XLA each device gets its share of the rows, where they divide."""
        if self.kind == "cuda":         # from pinned memory the copy waits for nothing that is still computed
            tensors = tuple(tensor.pin_memory() for tensor in tensors)
        moved = tuple(tensor.to(self.kind, non_blocking=True) for tensor in tensors)
        if self.xla:
            for tensor in moved:
                if tensor.ndim and len(tensor) % self.mesh.size() == 0:
                    self.xla.distributed.spmd.mark_sharding(tensor, self.mesh, ("rows", *[None] * (tensor.ndim - 1)))
        return moved

    def noise(self, seeds: Sequence[int], *shape: int) -> Tensor | None:
        """Draw numbers in [0, 1) of this shape for each row, from the row's own seed: (rows, *shape).

        So they do not depend on how a batch is divided. None on XLA, whose program draws them itself.
        """
        if self.kind == "xla":
            return None
        drawn, generator = torch.empty(len(seeds), *shape, device=self.kind), torch.Generator(self.kind)
        for row, seed in zip(drawn, seeds):
            row.uniform_(generator=generator.manual_seed(seed))
        return drawn

    def autocast(self) -> contextlib.AbstractContextManager:
        """Multiply matrices in bfloat16 where that is the precision; weights, LayerNorm and losses stay float32."""
        if self.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.kind, dtype=torch.bfloat16)

    def seed(self, seed: int) -> None:
        """Seed what the device draws itself: dropout, and on XLA the sampling noise; on a CPU for this thread."""
        if self.kind == "cpu":
            NOISE.generator = torch.Generator().manual_seed(seed)
        else:
            (self.xla or torch).manual_seed(seed)

    def flush(self) -> None:
        """End a part of a step: XLA, which has only noted the operations, compiles and runs them."""
        if self.xla:
            self.xla.sync()
