"""The model against paper and pencil, against second implementations, and against transformers where it is.

    1. Configuration and presets    the papers' sizes; JSON; values that are refused
    2. Encoder                      against its formulas; padding, dropout, attention; the CPU's fast paths
    3. Masking and replacement      which tokens, how many, by what chance; sampling; labels
    4. Pre-training model           both losses against boolean indexing; gradients; parts of a batch
    5. Task heads                   losses on paper and against loops; answers inside of the passage
    6. Optimiser and schedule       rates on paper; parameter groups; Adam against a hand-written loop
    7. Model folders, checkpoints   bitwise round trips, published files, damage, resuming
    8. Device                       choice, seeds, bfloat16, several processes
    9. Parity with transformers     logits, loss and every gradient, there and back

Each section goes from examples that one can follow on paper, over properties that hold for any input
(hypothesis), to errors by their message. Nets are tiny: two layers, 16 wide.
"""
import dataclasses
import functools
import json
import math
import os
import socket
import struct
import subprocess
import sys
import zipfile

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings, strategies as st
from torch import nn

import electramed
from electramed import (
    IGNORED_LABEL, PRESETS, Adam, Device, Discriminator, ElectraConfig, ElectraEncoder, ElectraForPretraining,
    Generator, MaskedBatch, SequenceClassifier, SpanExtractor, TokenTagger, attend, attend_on_cpu, draw_kept,
    dropout, learning_rate_at, load_checkpoint, load_encoder, load_head, load_pretrained,
    load_weights, mask_tokens, model_folder, parameter_groups, read_safetensors, read_weights, replace_tokens,
    sample_tokens, save_checkpoint, save_pretrained, written_whole)

PAD, UNK, CLS, SEP, MASK, FIRST = 0, 1, 2, 3, 4, 5  # the ids of conftest's vocabulary; ordinary pieces from 5
IDS = {"cls_token_id": CLS, "sep_token_id": SEP, "mask_token_id": MASK}
MASKING = ElectraConfig(vocab_size=60, **IDS)           # for masking alone: the network's sizes are idle
SEEDS = st.integers(0, 2**31)
BELOW_1 = 1 - 2**-24                                    # the largest float32 below 1
TINY = ElectraConfig(       # for the properties: hypothesis takes no fixture that belongs to one test
    vocab_size=60, embedding_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
    intermediate_size=32, max_position_embeddings=40, hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0, generator_size=0.5, **IDS)


@pytest.fixture(autouse=True)
def one_thread():
    """Compute in one thread: nets this small gain nothing by two, which wait for each other when busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_batch(lengths, width, vocab_size=60, seed=0):
    """Return (B, width) ids, mask and segments of rows [CLS] A [SEP] B [SEP] of random pieces."""
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(FIRST, vocab_size, (len(lengths), width), generator=random)
    column, length = torch.arange(width), torch.tensor(lengths)[:, None]
    real = (column < length).long()
    ids[:, 0] = CLS
    ids[(column == length // 2) | (column == length - 1)] = SEP
    return ids * real, real, (column > length // 2).long() * real


def random_model(model, seed=0, scale=0.3):
    """Make every parameter random, biases and LayerNorms too: none can be swapped or left out unnoticed."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if name.endswith("LayerNorm.weight") else 0.0
            parameter.copy_(centre + scale * torch.randn(parameter.shape, generator=random))
    return model.eval()


def pretraining_step(config, lengths=(20, 13, 9, 16), width=20, seed=0):
    """Return a random model, and all that one call of it takes: masked batch, mask, segments."""
    ids, real, types = random_batch(lengths, width, config.vocab_size, seed)
    masked = mask_tokens(ids, real, config, torch.Generator().manual_seed(seed))
    return random_model(ElectraForPretraining(config), seed), masked, real, types


def same_weights(first, second):
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def within(observed, expected, standard_error, errors=4):
    """Return whether each frequency lies within so many standard errors of its probability."""
    distance = torch.as_tensor(observed - expected).abs()
    return bool((distance <= errors * torch.as_tensor(standard_error)).all())


# --- 1. Configuration and presets ---

@pytest.mark.parametrize("name, layers, hidden, heads, inner, embedding, generator", [  # its H, A, inner
    ("tiny", 2, 128, 2, 512, 128, (64, 1, 256)),            # a quarter would be 32: raised to 64
    ("small", 12, 256, 4, 1024, 128, (64, 1, 256)),
    ("base", 12, 768, 12, 3072, 768, (256, 4, 1024)),
    ("large", 24, 1024, 16, 4096, 1024, (256, 4, 1024)),
    ("electramed", 12, 768, 12, 3072, 768, (256, 4, 1024)),
    ("bio-electra", 12, 256, 4, 1024, 128, (64, 1, 256)),
    ("bio-electra-pp", 12, 256, 4, 1024, 128, (64, 1, 256)),
])
def test_presets_have_the_published_sizes(name, layers, hidden, heads, inner, embedding, generator):
    with torch.device("meta"):      # shapes only: nothing is allocated, nothing drawn
        model = ElectraForPretraining(PRESETS[name])
    for network, (width, attention_heads, feed_forward) in (
            (model.discriminator, (hidden, heads, inner)), (model.generator, generator)):
        encoder = network.electra
        assert len(encoder.encoder["layer"]) == layers
        for layer in encoder.encoder["layer"]:
            assert layer.heads == attention_heads
            assert layer.attention["self"]["query"].weight.shape == (width, width)
            assert layer.intermediate["dense"].weight.shape == (feed_forward, width)
        assert encoder.embeddings.word_embeddings.weight.shape == (PRESETS[name].vocab_size, embedding)
        assert encoder.embeddings.position_embeddings.weight.shape == (512, embedding)
        assert encoder.embeddings.token_type_embeddings.weight.shape == (2, embedding)
        if embedding == width:
            assert encoder.embeddings_project is None
        else:                       # base: the generator alone projects, 768 -> 256
            assert encoder.embeddings_project.weight.shape == (width, embedding)
    assert model.generator.generator_predictions["dense"].weight.shape == (embedding, generator[0])


def test_presets_have_the_papers_vocabularies_dropout_and_mask_share():
    assert [PRESETS[name].vocab_size for name in ("electramed", "bio-electra", "bio-electra-pp")] == [
        31090, 31620, 31620]
    for name, preset in PRESETS.items():
        for config in (preset, preset.generator()):
            dropout = 0.0 if name == "tiny" else 0.1        # tiny is ours
            assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (dropout, dropout)
            assert config.mask_prob == (0.25 if name == "large" else 0.15)


@pytest.mark.parametrize("name, millions", [("small", 14), ("base", 110), ("large", 335)])
def test_parameters_are_as_many_as_the_electra_paper_says(name, millions):
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in Discriminator(PRESETS[name]).parameters())
    assert count == pytest.approx(millions * 1e6, rel=0.04)


@pytest.mark.parametrize("length, slots", [(128, 19), (512, 77), (256, 38), (64, 10), (10, 2), (1, 1)])
def test_slots_follow_from_the_actual_length(length, slots):
    assert MASKING.num_slots(length) == slots


def test_config_survives_json():
    for config in [*PRESETS.values(), MASKING]:
        assert ElectraConfig.from_json(config.to_json()) == config
    assert json.loads(MASKING.to_json())["model_type"] == "electra"


@given(st.integers(1, 8), st.integers(1, 12), st.floats(0, 0.9), st.floats(0.01, 1),
       st.none() | st.integers(0, 99))
def test_any_config_survives_json(heads, width, mask_prob, generator_size, special_id):
    config = ElectraConfig(hidden_size=heads * width, num_attention_heads=heads, mask_prob=mask_prob,
                           generator_size=generator_size, cls_token_id=special_id)
    assert ElectraConfig.from_json(config.to_json()) == config


@given(st.integers(1, 16), st.integers(1, 128), st.floats(0.01, 1))
def test_a_generator_is_never_wider_than_its_discriminator_and_its_heads_divide_it(heads, width, share):
    config = ElectraConfig(hidden_size=heads * width, num_attention_heads=heads, generator_size=share)
    generator = config.generator()
    assert generator.hidden_size <= config.hidden_size
    assert generator.hidden_size % generator.num_attention_heads == 0
    assert generator.hidden_size // generator.num_attention_heads >= min(64, config.hidden_size)
    assert generator.embedding_size == config.embedding_size            # the embeddings are shared


def test_config_keys_without_effect_are_ignored():
    assert ElectraConfig.from_json('{"hidden_size": 64, "summary_type": "first", "hidden_act": "gelu", '
                                   '"position_embedding_type": "absolute"}') == ElectraConfig(hidden_size=64)


@pytest.mark.parametrize("change, message", [
    ({"vocab_size": 0}, "vocab_size must be a whole number from 1, not 0"),
    ({"num_hidden_layers": 2.5}, "num_hidden_layers must be a whole number from 1, not 2.5"),
    ({"hidden_size": "256"}, "hidden_size must be a whole number from 1, not '256'"),
    ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob must be a number from 0 and below 1, not 1.0"),
    ({"attention_probs_dropout_prob": -0.1}, "attention_probs_dropout_prob must be a number from 0"),
    ({"mask_prob": 1.5}, "mask_prob must be a number from 0 and below 1, not 1.5"),
    ({"generator_size": 0}, "generator_size must be above 0 and up to 1, not 0"),
    ({"hidden_size": 250}, "4 heads do not divide hidden_size 250"),
])
def test_bad_config_values_are_refused_by_name(change, message):
    with pytest.raises(ValueError) as error:
        dataclasses.replace(ElectraConfig(), **change)
    assert message in str(error.value)


# --- 2. Encoder ---

def literal_encoder(encoder, ids, real, types):
    """The encoder from its formulas, one row and one head at a time."""
    weights, config = encoder.state_dict(), encoder.config

    def dense(x, name):
        return x @ weights[name + ".weight"].T + weights[name + ".bias"]

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        return (centred / (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt()
                * weights[name + ".weight"] + weights[name + ".bias"])

    rows = []
    for row in range(len(ids)):
        x = norm(torch.stack([weights["embeddings.word_embeddings.weight"][ids[row, t]]
                              + weights["embeddings.position_embeddings.weight"][t]
                              + weights["embeddings.token_type_embeddings.weight"][types[row, t]]
                              for t in range(ids.shape[1])]), "embeddings.LayerNorm")
        if config.embedding_size != config.hidden_size:
            x = dense(x, "embeddings_project")
        added = (1.0 - real[row]) * -1e30
        for i in range(config.num_hidden_layers):
            layer, D = f"encoder.layer.{i}.", config.hidden_size // config.num_attention_heads
            query, key, value = (dense(x, f"{layer}attention.self.{name}").split(D, dim=-1)
                                 for name in ("query", "key", "value"))
            heads = []
            for q, k, v in zip(query, key, value):
                scores = (q @ k.T / math.sqrt(D) + added).exp()
                heads.append(scores / scores.sum(-1, keepdim=True) @ v)
            update = dense(torch.cat(heads, dim=-1), layer + "attention.output.dense")
            x = norm(x + update, layer + "attention.output.LayerNorm")
            inner = dense(x, layer + "intermediate.dense")
            inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
            x = norm(x + dense(inner, layer + "output.dense"), layer + "output.LayerNorm")
        rows.append(x)
    return torch.stack(rows)


@pytest.mark.parametrize("embedding", [8, 16])
def test_encoder_equals_its_formulas(tiny_config, embedding):
    """softmax(Q K^T / sqrt(D) + mask) V, post-LayerNorm, eps 1e-12, exact GELU; a projection where E != H."""
    config = dataclasses.replace(tiny_config, embedding_size=embedding)
    encoder = random_model(ElectraEncoder(config)).double()
    batch = random_batch([7, 4, 6], 7)
    expected = literal_encoder(encoder, *batch)
    assert (encoder(*batch) - expected).abs().max() < 1e-10
    assert (encoder.float()(*batch) - expected).abs().max() < 1e-5


def test_every_layer_norm_has_eps_1e_12(tiny_config):
    modules = ElectraForPretraining(tiny_config).modules()
    norms = [module for module in modules if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 1 + 4 + 4 + 1   # shared embeddings, two layers in each network, the generator's head
    assert {norm.eps for norm in norms} == {1e-12}


def test_padding_does_not_change_the_hidden_states_of_real_tokens(tiny_config):
    encoder = random_model(ElectraEncoder(tiny_config))
    ids, real, types = random_batch([9, 5], 9)
    hidden = encoder(ids, real, types)
    wider = encoder(*(F.pad(tensor, (0, 11)) for tensor in (ids, real, types)))
    other = encoder(torch.where(real == 1, ids, MASK), real, types)         # whatever the padding holds
    for padded in (wider[:, :9], other):
        assert torch.allclose(padded[real == 1], hidden[real == 1], atol=1e-6)


def test_segments_and_positions_matter(tiny_config):
    encoder = random_model(ElectraEncoder(tiny_config))
    ids, real, types = random_batch([9], 9)
    assert not torch.allclose(encoder(ids, real, types), encoder(ids, real, 1 - types), atol=1e-2)
    repeated = encoder(torch.full_like(ids, 7), real, torch.zeros_like(ids))[0]
    assert not torch.allclose(repeated[0], repeated[1], atol=1e-2)


@pytest.mark.parametrize("make", [
    ElectraEncoder, Discriminator, lambda config: TokenTagger(config, 3), SpanExtractor,
    lambda config: SequenceClassifier(config, 3), ElectraForPretraining, electramed.MaskedLanguageModel])
def test_models_take_ids_alone_as_real_tokens_of_the_first_segment(tiny_config, make):
    model, (ids, ones, _) = random_model(make(tiny_config)), random_batch([9, 9], 9)
    if hasattr(model, "generator_logits"):
        for logits in (model.generator_logits, model.discriminator_logits):
            assert torch.equal(logits(ids), logits(ids, ones, 0 * ids))
    if isinstance(model, (ElectraForPretraining, Generator)):
        masked = mask_tokens(ids, ones, tiny_config, torch.Generator().manual_seed(0))
        assert torch.equal(model(masked).loss, model(masked, ones, 0 * ids).loss)
    else:
        assert torch.equal(model(ids), model(ids, ones, 0 * ids))


def test_a_model_without_a_second_segment_takes_single_texts_and_refuses_pairs(tiny_config):
    encoder = ElectraEncoder(dataclasses.replace(tiny_config, type_vocab_size=1))
    ids, real, types = random_batch([9], 9)
    assert encoder(ids, real, 0 * types).shape == (1, 9, 16)
    with pytest.raises(ValueError, match="type_vocab_size is 1: this model has no second segment"):
        encoder(ids, real, types)


def test_there_is_no_pooler(tiny_config):
    assert not [name for name in ElectraForPretraining(tiny_config).state_dict() if "pooler" in name]


def test_a_row_longer_than_the_positions_is_refused(tiny_config):
    with pytest.raises(ValueError, match="65 tokens in a row, but the model has 64 positions"):
        ElectraEncoder(tiny_config)(*random_batch([65], 65))


@pytest.mark.parametrize("model, more", [
    (ElectraEncoder, 0), (Discriminator, 0), (lambda config: TokenTagger(config, 3), 0), (SpanExtractor, 0),
    (lambda config: SequenceClassifier(config, 3), 2),      # of the heads it alone has dropouts of its own
])
def test_dropout_acts_on_embeddings_sublayers_attention_and_nothing_else(
        tiny_config, monkeypatch, model, more):
    """Once after the embeddings' LayerNorm (E wide: before the projection), twice a layer, on attention."""
    config = dataclasses.replace(tiny_config, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.2)
    model, batch, calls, attention = model(config), random_batch([9, 5], 9), [], []
    dropout, attend = electramed.dropout, electramed.attend

    def counted_dropout(x, p, is_training):
        calls.append((x.shape[-1], p if is_training else 0.0))
        return dropout(x, p, is_training)

    def counted_attention(query, key, value, may_attend, p):
        attention.append(p)
        return attend(query, key, value, may_attend, p)

    monkeypatch.setattr(electramed, "dropout", counted_dropout)
    monkeypatch.setattr(electramed, "attend", counted_attention)
    model.train()(*batch)
    assert calls == [(8, 0.1)] + [(16, 0.1)] * (2 * config.num_hidden_layers + more)
    assert attention == [0.2] * config.num_hidden_layers
    calls.clear(), attention.clear()
    assert torch.equal(model.eval()(*batch), model(*batch))
    assert {p for _, p in calls} == {0.0} == set(attention)


@pytest.mark.parametrize("p", [0.1, 0.25, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_clears_its_share_and_scales_the_rest_and_the_gradient_alike(p, dtype):
    """200,003 entries, which fill no whole draw of 64 bits; the share lies within four standard errors."""
    torch.manual_seed(0)
    x = torch.ones(200_003, dtype=dtype, requires_grad=True)
    dropped = dropout(x, p, is_training=True)
    dropped.sum().backward()
    assert dropped.dtype == dtype and torch.equal(x.grad, dropped)
    assert set(dropped.unique().tolist()) == {0.0, torch.tensor(1 / (1 - p)).to(dtype).item()}
    assert within((dropped == 0).double().mean(), p, math.sqrt(p * (1 - p) / len(x)))
    neighbours = (dropped[1:] == 0) & (dropped[:-1] == 0)          # of one draw, and independent all the same
    assert within(neighbours.double().mean(), p * p, math.sqrt(p * p / len(x)))
    assert dropout(x, p, is_training=False) is x


def test_a_seed_decides_the_dropout():
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(draw_kept(torch.Size([10, 7]), 0.5).tolist())
    assert draws[0] == draws[1] != draws[2]


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), st.integers(1, 8), SEEDS)
def test_attention_written_out_equals_one_call_of_torch(rows, heads, width, head_width, seed):
    """Values and gradients, for any shape and any padding that leaves a token to attend to."""
    random = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(rows, heads, width, head_width, generator=random, requires_grad=True)
              for _ in range(3)]
    lengths = torch.randint(1, width + 1, (rows, 1, 1, 1), generator=random)
    may_attend = torch.arange(width) < lengths                                                  # (B, 1, 1, T)
    plain = F.scaled_dot_product_attention(*inputs, attn_mask=may_attend)
    fast = attend_on_cpu(*inputs, may_attend, 0.0)
    assert torch.allclose(plain, fast, atol=1e-5)
    gradients = [torch.autograd.grad(output.square().sum(), inputs) for output in (fast, plain)]
    for ours, theirs in zip(*gradients):
        assert torch.allclose(ours, theirs, atol=1e-4)


def test_attention_written_out_equals_the_fused_kernel_where_nothing_is_dropped(monkeypatch):
    """Values and gradients; the weights that are kept are scaled up, with padding in the second row."""
    random = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 7, 4, generator=random, requires_grad=True) for _ in range(3))
    may_attend = (torch.arange(7) < torch.tensor([7, 4])[:, None])[:, None, None]               # (B, 1, 1, T)
    monkeypatch.setattr(electramed, "draw_kept", lambda shape, p: torch.ones(shape, dtype=torch.bool))
    mixed, fused = attend(query, key, value, may_attend, 0.2), attend(query, key, value, may_attend, 0.0)
    assert torch.allclose(mixed * 0.8, fused, atol=1e-6)
    for ours, theirs in zip(*(torch.autograd.grad(output.square().sum(), (query, key, value))
                              for output in (mixed * 0.8, fused))):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_attention_written_out_equals_the_fused_kernel_in_bfloat16():
    """Also its gradients, with padding in one row."""
    source = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, 2, 7, 8, generator=source).bfloat16().requires_grad_() for _ in range(3)]
    may_attend = torch.ones(2, 1, 1, 7, dtype=torch.bool)
    may_attend[1, ..., 4:] = False
    found = []
    for attention in (attend_on_cpu(*inputs, may_attend, 0.0),
                      F.scaled_dot_product_attention(*inputs, attn_mask=may_attend)):
        found.append([attention, *torch.autograd.grad(attention.float().pow(2).sum(), inputs)])
    for ours, theirs in zip(*found):
        assert torch.allclose(ours.float(), theirs.float(), rtol=0.03, atol=0.03)


def test_attention_drops_weights_after_the_softmax(monkeypatch):
    """On paper: queries of 0 weigh three tokens alike; one dropped at p = 1/4 leaves two of 4/9."""
    kept = torch.tensor([True, False, True]).expand(1, 1, 3, 3)
    monkeypatch.setattr(electramed, "draw_kept", lambda shape, p: kept)
    zero, value = torch.zeros(1, 1, 3, 2), torch.tensor([[9.0, 0], [0, 9], [18, 0]]).expand(1, 1, 3, 2)
    mixed = attend(zero, zero, value, torch.ones(1, 1, 1, 3, dtype=torch.bool), 0.25)
    assert torch.allclose(mixed, torch.tensor([12.0, 0.0]).expand(1, 1, 3, 2))


def test_weights_start_as_a_normal_truncated_at_two_sigma_and_biases_at_zero():
    """Its standard deviation is 0.8796 sigma; of 100,000 weights, four standard errors are under 1 %."""
    config = ElectraConfig(vocab_size=1000, num_hidden_layers=1, embedding_size=256)
    torch.manual_seed(0)
    model = ElectraForPretraining(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "LayerNorm" in name:
            assert (parameter == 1).all(), name
        elif "embeddings_project" not in name and "dense_prediction" not in name:
            assert parameter.abs().max() <= 0.04, name
            if parameter.numel() >= 100_000:
                assert parameter.std().item() == pytest.approx(0.8796 * 0.02, rel=0.01), name
    assert model.discriminator.electra.embeddings.word_embeddings.weight[PAD].any()    # [PAD] is no exception


@pytest.mark.parametrize("make, name, fan", [
    (ElectraEncoder, "embeddings_project", 128 + 256),
    (Discriminator, "discriminator_predictions.dense_prediction", 256 + 1),
    (lambda config: TokenTagger(config, 3), "classifier", 256 + 3),
    (lambda config: SequenceClassifier(config, 3), "classifier.out_proj", 256 + 3),
    (SpanExtractor, "qa_outputs", 256 + 2),
])
def test_projection_and_last_layers_start_glorot_uniform(make, name, fan):
    torch.manual_seed(0)
    layer = make(ElectraConfig(vocab_size=20, num_hidden_layers=1)).get_submodule(name)
    bound = math.sqrt(6 / fan)      # well above 0.04, so that the largest weight tells the two apart
    assert 0.9 * bound < layer.weight.abs().max() <= bound
    assert not layer.bias.any()


# --- 3. Masking and replacement ---

@pytest.mark.parametrize("real, width, chosen", [       # the row counts with its [CLS] and two [SEP]
    (10, 128, 2),       # 0.15 * 10 = 1.5, half to even; the seven candidates alone would make it 1
    (30, 128, 4),       # 4.5, half to even
    (50, 128, 8),       # 7.5, half to even
    (128, 128, 19),     # 19.2
    (512, 512, 77),     # 76.8: ELECTRAMed's released N = 19 would stop here
    (64, 64, 10),       # 9.6: every full row finds room
    (4, 128, 1),        # 0.6 makes 1; one candidate
])
def test_the_count_is_15_percent_of_the_real_tokens(real, width, chosen):
    ids, mask, _ = random_batch([real], width)
    masked = mask_tokens(ids, mask, MASKING, torch.Generator().manual_seed(0))
    assert masked.weights.sum() == chosen
    assert masked.positions.shape == (1, MASKING.num_slots(width))


@given(st.integers(4, 600), st.sampled_from([0.01, 0.15, 0.25, 0.5]))
def test_every_row_finds_as_many_slots_as_it_has_chosen_tokens(width, share):
    ids, mask, _ = random_batch([width], width)
    config = dataclasses.replace(MASKING, mask_prob=share)
    masked = mask_tokens(ids, mask, config, torch.Generator().manual_seed(0))
    candidates = int((ids != CLS).sum() - (ids == SEP).sum())
    assert masked.weights.sum() == min(max(1, round(share * width)), candidates)


def test_no_more_are_chosen_than_there_are_candidates():
    """Of twelve tokens 1.8 make 2, but a single one may be masked."""
    ids = torch.tensor([[CLS, *[SEP] * 10, 7, PAD]])
    masked = mask_tokens(ids, (ids != PAD).long(), MASKING, torch.Generator())
    assert masked.positions.tolist() == [[11, 0]] and masked.weights.tolist() == [[1, 0]]


@st.composite
def padded_rows(draw):
    """Ids and attention mask of rows with stray special tokens and at least one piece to mask."""
    width = draw(st.integers(3, 80))
    body = st.lists(st.integers(UNK, 59), max_size=width - 3)
    rows = [[CLS, *draw(body), draw(st.integers(FIRST, 59)), SEP] for _ in range(draw(st.integers(1, 4)))]
    ids = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
    return ids, (ids != PAD).long()


def masked_rows(batch, seed):
    return mask_tokens(*batch, MASKING, torch.Generator().manual_seed(seed))


def chosen_positions(masked, row):
    return masked.positions[row][masked.weights[row] == 1].tolist()


@given(padded_rows(), SEEDS)
def test_masking_leaves_its_input_untouched(batch, seed):
    before = [tensor.clone() for tensor in batch]
    masked_rows(batch, seed)
    assert all(map(torch.equal, batch, before))


@given(padded_rows(), SEEDS)
def test_the_same_seed_gives_the_same_mask(batch, seed):
    assert all(map(torch.equal, masked_rows(batch, seed), masked_rows(batch, seed)))


@given(padded_rows(), SEEDS)
def test_chosen_positions_are_distinct_candidates_and_as_many_as_the_rule_says(batch, seed):
    """A loop over the tokens of each row against the tensor operations on all rows."""
    ids, real = batch
    masked = masked_rows(batch, seed)
    for row in range(len(ids)):
        chosen = chosen_positions(masked, row)
        candidates = [t for t in range(ids.shape[1]) if real[row, t] and ids[row, t] not in (CLS, SEP, MASK)]
        count = max(1, min(MASKING.num_slots(ids.shape[1]), round(0.15 * int(real[row].sum()))))
        assert len(chosen) == min(count, len(candidates))
        assert len(set(chosen)) == len(chosen) and set(chosen) <= set(candidates)


@given(padded_rows(), SEEDS)
def test_unused_slots_point_at_position_0_with_weight_0(batch, seed):
    masked = masked_rows(batch, seed)
    assert set(masked.weights.unique().tolist()) <= {0.0, 1.0}
    assert not masked.positions[masked.weights == 0].any()


@given(padded_rows(), SEEDS)
def test_only_mask_is_written_and_only_at_chosen_positions(batch, seed):
    ids, _ = batch
    masked = masked_rows(batch, seed)
    is_changed = masked.input_ids != ids
    assert (masked.input_ids[is_changed] == MASK).all()
    for row in range(len(ids)):
        assert set(is_changed[row].nonzero().flatten().tolist()) <= set(chosen_positions(masked, row))


@given(padded_rows(), SEEDS)
def test_writing_the_originals_back_restores_the_input(batch, seed):
    ids, _ = batch
    masked = masked_rows(batch, seed)
    assert torch.equal(masked.original_ids, ids.gather(1, masked.positions))
    assert torch.equal(masked.input_ids.scatter(1, masked.positions, masked.original_ids), ids)


@given(padded_rows(), SEEDS, st.integers(1, 9))
def test_further_rows_do_not_change_what_may_be_chosen(batch, seed, more):
    """Rows are independent in their counts: below a copy of themselves, the first keep theirs."""
    twice = [tensor.repeat(2, 1) for tensor in batch]
    one, two = masked_rows(batch, seed), masked_rows(twice, seed + more)
    assert torch.equal(two.weights, one.weights.repeat(2, 1))


def test_85_percent_of_the_chosen_are_hidden_and_the_rest_stay_as_they_are():
    ids, real, _ = random_batch([512] * 200, 512)
    masked = mask_tokens(ids, real, MASKING, torch.Generator().manual_seed(0))
    at_slots = masked.input_ids.gather(1, masked.positions)[masked.weights == 1]
    originals = masked.original_ids[masked.weights == 1]
    is_hidden = at_slots == MASK
    assert len(at_slots) == 200 * 77
    assert within(is_hidden.double().mean(), 0.85, math.sqrt(0.85 * 0.15 / len(at_slots)))
    assert torch.equal(at_slots[~is_hidden], originals[~is_hidden])     # none becomes a random token


def test_every_candidate_is_chosen_equally_often():
    """20,000 rows of 10 ordinary tokens in 13: two are chosen; five standard errors for ten comparisons."""
    ids, real, _ = random_batch([13] * 20_000, 13)
    masked = mask_tokens(ids, real, MASKING, torch.Generator().manual_seed(0))
    assert (masked.weights == 1).all()
    frequency = torch.bincount(masked.positions.flatten(), minlength=13) / len(ids)
    assert frequency[[0, 6, 12]].tolist() == [0, 0, 0]                  # [CLS] and both [SEP]
    assert within(frequency[[1, 2, 3, 4, 5, 7, 8, 9, 10, 11]], 0.2, math.sqrt(0.2 * 0.8 / len(ids)), errors=5)


def test_a_different_seed_gives_a_different_mask():
    ids, real, _ = random_batch([100], 100)
    one, other = (mask_tokens(ids, real, MASKING, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert not torch.equal(one.positions, other.positions)


def test_masking_draws_from_its_generator_alone():
    ids, real, _ = random_batch([100], 100)
    state = torch.get_rng_state()
    mask_tokens(ids, real, MASKING, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)


def test_unknown_words_may_be_chosen():
    masked = mask_tokens(torch.tensor([[CLS, UNK, SEP]]), torch.ones(1, 3), MASKING, torch.Generator())
    assert masked.original_ids.tolist() == [[UNK]] and masked.weights.tolist() == [[1]]


@pytest.mark.parametrize("row", [[CLS, SEP, PAD, PAD], [CLS, MASK, SEP, SEP], [PAD, PAD, PAD, PAD]])
def test_a_row_without_anything_to_mask_is_refused(row):
    ids = torch.tensor([[CLS, 7, 8, SEP], row])
    with pytest.raises(ValueError, match="row 1 has no token that could be masked"):
        mask_tokens(ids, (ids != PAD).long(), MASKING, torch.Generator())


@pytest.mark.parametrize("name", IDS)
def test_masking_asks_for_the_special_ids(name):
    with pytest.raises(ValueError, match=name):
        mask_tokens(torch.tensor([[7]]), torch.ones(1, 1), dataclasses.replace(MASKING, **{name: None}),
                    torch.Generator())


@pytest.mark.parametrize("uniform, token", [
    (0.0, 0), (0.19, 0), (0.21, 1), (0.65, 1), (0.71, 3), (BELOW_1, 3)])
def test_the_first_token_whose_cumulated_probability_exceeds_the_number_on_paper(uniform, token):
    """The line from 0 to 1 is divided at 0.2, 0.7 and 0.7: the third token has probability 0."""
    probabilities = torch.tensor([[[0.2, 0.5, 0.0, 0.3]]])
    assert sample_tokens(probabilities, torch.tensor([[uniform]])).tolist() == [[token]]


@settings(max_examples=20, derandomize=True)        # by chance, so always with the same examples
@given(st.lists(st.floats(-2, 2), min_size=1, max_size=6), SEEDS)
@example([2.0, 1.0, 0.0, -1.0, -3.0], 0)
def test_samples_follow_the_softmax(logits, seed):
    """20,000 draws: each frequency lies within four standard errors of its probability."""
    count, expected = 20_000, torch.tensor(logits).softmax(0)
    uniform = torch.rand(1, count, generator=torch.Generator().manual_seed(seed))
    samples = sample_tokens(expected.expand(1, count, -1), uniform)
    frequencies = torch.bincount(samples.flatten(), minlength=len(logits)) / count
    assert within(frequencies, expected, (expected * (1 - expected) / count).sqrt() + 1e-9)


def test_samples_follow_the_softmax_of_31090_wordpieces_too():
    """Fifty groups of wordpieces, 8,000 draws: chi-squared at 49 degrees of freedom is 49 with sd 9.9."""
    V, count = 31_090, 8_000
    random = torch.Generator().manual_seed(0)
    p = (3 * torch.randn(V, generator=random)).softmax(0)
    group = torch.randint(50, (V,), generator=random)
    uniform = torch.rand(count, generator=random)
    samples = torch.cat([sample_tokens(p.expand(1, len(part), V), part[None])[0]
                         for part in uniform.split(500)])
    found = torch.bincount(group[samples], minlength=50).double()
    expected = torch.zeros(50, dtype=torch.double).index_add_(0, group, p.double()) * count
    assert 20 < ((found - expected) ** 2 / expected).sum() < 49 + 4 * 9.9


def is_never_impossible(logits):
    """Return whether numbers from 0 to the largest below 1 draw only tokens of probability above 0."""
    p = logits.softmax(-1)                                                          # (V,)
    ends = torch.tensor([0.0, 2**-149, 2**-24, BELOW_1])
    numbers = torch.cat([ends, torch.linspace(0, BELOW_1, 200)])
    samples = sample_tokens(p.expand(1, len(numbers), -1), numbers[None])           # (1, 204)
    return bool((p[samples] > 0).all())


@given(st.lists(st.sampled_from([-math.inf, -200.0, -90.0, -3.0, 0.0, 1.0]), min_size=1, max_size=12))
@example([-math.inf, 0.0, -math.inf])
def test_a_token_of_probability_0_is_never_drawn(logits):
    """Not at the ends of the line either, by the number 0 and by the largest float32 below 1."""
    assert max(logits) == -math.inf or is_never_impossible(torch.tensor(logits))


@pytest.mark.parametrize("seed", range(20))
def test_a_token_of_probability_0_is_never_drawn_from_31090_whose_sum_is_rounded(seed):
    """The last hundred have probability 0; the sum of the others is not exactly 1."""
    logits = 2 * torch.randn(31_090, generator=torch.Generator().manual_seed(seed))
    logits[:100] = logits[-100:] = -math.inf
    assert is_never_impossible(logits)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 30), SEEDS)
def test_samples_equal_a_loop_that_adds_up_probabilities(rows, slots, vocabulary, seed):
    random = torch.Generator().manual_seed(seed)
    p = torch.randn(rows, slots, vocabulary, generator=random).softmax(-1)
    uniform = torch.rand(rows, slots, generator=random)
    samples = sample_tokens(p, uniform)
    for row, slot in torch.cartesian_prod(torch.arange(rows), torch.arange(slots)).tolist():
        sums = p[row, slot].double().cumsum(0)
        token, number = samples[row, slot], uniform[row, slot].double() * sums[-1]
        assert sums[token] > number - 1e-6 and sums[token] - p[row, slot, token] < number + 1e-6


def test_sampling_leaves_probabilities_and_numbers_as_they_are():
    p, uniform = torch.rand(2, 3, 9), torch.rand(2, 3)
    before = p.clone(), uniform.clone()
    sample_tokens(p, uniform)
    assert torch.equal(p, before[0]) and torch.equal(uniform, before[1])


# The ids of "[CLS] 10 11 12 13 [SEP] [PAD]" with 11 hidden, 13 chosen but left readable, one slot unused.
EXAMPLE = MaskedBatch(input_ids=torch.tensor([[CLS, 10, MASK, 12, 13, SEP, PAD]]),
                      positions=torch.tensor([[2, 4, 0]]), original_ids=torch.tensor([[11, 13, CLS]]),
                      weights=torch.tensor([[1.0, 1.0, 0.0]]), uniform=torch.zeros(1, 3))


@pytest.mark.parametrize("samples, corrupted, labels", [
    ([20, 21, 22], [CLS, 10, 20, 12, 21, SEP, PAD], [0, 0, 1, 0, 1, 0, 0]),
    ([11, 21, 22], [CLS, 10, 11, 12, 21, SEP, PAD], [0, 0, 0, 0, 1, 0, 0]),  # a lucky guess at the hidden one
    ([11, 13, 22], [CLS, 10, 11, 12, 13, SEP, PAD], [0, 0, 0, 0, 0, 0, 0]),
])
def test_samples_are_scattered_over_all_chosen_positions(samples, corrupted, labels):
    """Also where the token was not hidden, and never through the unused slot, which points at [CLS]."""
    ids, is_replaced = replace_tokens(EXAMPLE, torch.tensor([samples]))
    assert ids.tolist() == [corrupted]
    assert is_replaced.long().tolist() == [labels]


@given(padded_rows(), st.integers(0, 2**31))
def test_label_is_zero_when_generator_guesses_right(batch, seed):
    ids, real = batch
    masked = mask_tokens(ids, real, MASKING, torch.Generator().manual_seed(seed))
    corrupted, is_replaced = replace_tokens(masked, masked.original_ids)
    assert torch.equal(corrupted, ids) and not is_replaced.any()
    corrupted, is_replaced = replace_tokens(masked, masked.original_ids + 1)        # now it is always wrong
    assert torch.equal(is_replaced.sum(1).float(), masked.weights.sum(1))
    assert torch.equal(corrupted != ids, is_replaced)


@given(padded_rows(), SEEDS)
def test_a_token_is_replaced_exactly_where_a_used_slot_got_another_one(batch, seed):
    """A loop over rows and slots; about every second sample is the original."""
    ids, _ = batch
    masked, random = masked_rows(batch, seed), torch.Generator().manual_seed(seed)
    is_right = torch.rand(masked.positions.shape, generator=random) < 0.5
    guesses = torch.randint(FIRST, 60, is_right.shape, generator=random)
    sampled = torch.where(is_right, masked.original_ids, guesses)
    corrupted, is_replaced = replace_tokens(masked, sampled)
    expected = ids.clone()
    for row, slot in masked.weights.nonzero().tolist():
        expected[row, masked.positions[row, slot]] = sampled[row, slot]
    assert torch.equal(corrupted, expected)
    assert torch.equal(is_replaced, expected != ids)


# --- 4. Pre-training model ---

def test_generator_and_discriminator_share_embeddings_and_their_layer_norm_only(tiny_config):
    model = ElectraForPretraining(tiny_config)
    generator, discriminator = model.generator.electra, model.discriminator.electra
    for name in ("word_embeddings.weight", "position_embeddings.weight", "token_type_embeddings.weight",
                 "LayerNorm.weight", "LayerNorm.bias"):
        assert generator.embeddings.get_parameter(name) is discriminator.embeddings.get_parameter(name)
    assert model.generator.generator_lm_head.weight is discriminator.embeddings.word_embeddings.weight
    assert generator.embeddings_project.weight is not discriminator.embeddings_project.weight
    every, once = dict(model.named_parameters(remove_duplicate=False)), dict(model.named_parameters())
    assert every.keys() - once.keys() == {"generator.generator_lm_head.weight", *(
        name for name in every if name.startswith("generator.electra.embeddings."))}


def test_generator_head_is_dense_gelu_layer_norm_and_tied_embeddings(tiny_config):
    generator = random_model(Generator(tiny_config)).double()
    hidden, weights = torch.randn(3, 16, dtype=torch.double), generator.state_dict()
    head = "generator_predictions."
    x = F.gelu(hidden @ weights[head + "dense.weight"].T + weights[head + "dense.bias"])   # (3, Hg) -> (3, E)
    x = F.layer_norm(x, (8,), weights[head + "LayerNorm.weight"], weights[head + "LayerNorm.bias"], eps=1e-12)
    expected = x @ weights["electra.embeddings.word_embeddings.weight"].T + weights["generator_lm_head.bias"]
    assert torch.allclose(generator.predict(hidden), expected, atol=1e-12)


def test_discriminator_head_is_dense_gelu_dense(tiny_config):
    discriminator, batch = random_model(Discriminator(tiny_config)).double(), random_batch([9, 5], 9)
    hidden, weights = discriminator.electra(*batch), discriminator.state_dict()
    head = "discriminator_predictions."
    x = F.gelu(hidden @ weights[head + "dense.weight"].T + weights[head + "dense.bias"])        # (B, T, H)
    expected = x @ weights[head + "dense_prediction.weight"][0] + weights[head + "dense_prediction.bias"]
    assert torch.allclose(discriminator(*batch), expected, atol=1e-12)


@functools.lru_cache
def tiny_model():
    """Made once: a random model for all properties."""
    return random_model(ElectraForPretraining(TINY))


@st.composite
def tiny_steps(draw):
    """What one call of a tiny model takes: masked batch, attention mask, segments."""
    lengths = draw(st.lists(st.integers(4, 24), min_size=1, max_size=4))
    ids, real, types = random_batch(lengths, max(lengths) + draw(st.integers(0, 5)), seed=draw(SEEDS))
    return mask_tokens(ids, real, TINY, torch.Generator().manual_seed(draw(SEEDS))), real, types


few = settings(max_examples=25)         # each example is a forward pass


@few
@given(tiny_steps())
def test_loss_is_the_mlm_loss_and_fifty_times_the_discriminators(step):
    output = tiny_model()(*step)
    assert output.loss.item() == pytest.approx(output.mlm_loss.item() + 50 * output.discriminator_loss.item())


@few
@given(tiny_steps())
def test_slot_losses_equal_boolean_indexing(step):
    """The fixed slots with weights against logits over all positions, indexed by masks."""
    model, (masked, real, types) = tiny_model(), step
    output = model(*step)
    original = masked.input_ids.scatter(1, masked.positions, masked.original_ids)
    is_chosen = torch.zeros_like(real).bool()
    for row, (positions, weights) in enumerate(zip(masked.positions, masked.weights)):
        is_chosen[row, positions[weights == 1]] = True
    logits = model.generator_logits(masked.input_ids, real, types)                              # (B, T, V)
    assert output.mlm_loss.item() == pytest.approx(
        F.cross_entropy(logits[is_chosen], original[is_chosen]).item(), rel=1e-4)
    samples = sample_tokens(output.generator_logits.softmax(-1), masked.uniform)
    corrupted, is_replaced = replace_tokens(masked, samples)
    judged = model.discriminator_logits(corrupted, real, types)
    is_real = real == 1         # [CLS] and [SEP] included, padding not
    assert output.discriminator_loss.item() == pytest.approx(F.binary_cross_entropy_with_logits(
        judged[is_real], is_replaced[is_real].float()).item(), rel=1e-4)
    assert torch.equal(output.is_replaced, is_replaced)
    assert torch.allclose(output.discriminator_logits, judged, atol=1e-6)


def test_discriminator_loss_counts_cls_and_sep(tiny_config):
    """A discriminator that answers 0 everywhere pays ln 2 a token, over all 20 + 13 + 9 + 16 real ones."""
    model, *step = pretraining_step(tiny_config)
    nn.init.zeros_(model.discriminator.discriminator_predictions["dense_prediction"].weight)
    nn.init.zeros_(model.discriminator.discriminator_predictions["dense_prediction"].bias)
    one = model(*step, token_total=torch.tensor(1.0))
    assert one.discriminator_loss.item() == pytest.approx(58 * math.log(2), rel=1e-5)


def test_losses_over_no_token_are_zero_because_1e_6_is_added_below(tiny_config):
    model, *step = pretraining_step(tiny_config)
    one, double = (model(*step, slot_total=torch.tensor(total), token_total=torch.tensor(total))
                   for total in (0.0, 1e-6))
    assert one.mlm_loss.item() == pytest.approx(2 * double.mlm_loss.item(), rel=1e-5)
    assert one.discriminator_loss.item() == pytest.approx(2 * double.discriminator_loss.item(), rel=1e-5)
    ids, real, types = random_batch([9], 9)
    zero = torch.zeros(1, 1)
    none = MaskedBatch(ids, zero.long(), zero.long(), zero, zero)
    nothing = model(none, torch.zeros_like(real), types)
    assert (nothing.mlm_loss.item(), nothing.discriminator_loss.item()) == (0, 0)


def test_generator_predicts_at_the_slots_only(tiny_config):
    model, masked, real, types = pretraining_step(tiny_config)
    rows, slots = masked.positions.shape
    shapes = []
    hook = model.generator.generator_lm_head.register_forward_hook(
        lambda module, inputs, output: shapes.append(inputs[0].shape))
    output = model(masked, real, types)
    hook.remove()
    assert shapes == [(rows, slots, tiny_config.embedding_size)]
    everywhere = model.generator_logits(masked.input_ids, real, types)                          # (B, T, V)
    gathered = everywhere[torch.arange(rows)[:, None], masked.positions]                        # (B, N, V)
    assert torch.allclose(output.generator_logits, gathered, atol=1e-5)


@few
@given(tiny_steps(), st.integers(1, 10))
def test_further_padding_leaves_the_losses_unchanged(step, columns):
    masked, real, types = step
    wider = masked._replace(input_ids=F.pad(masked.input_ids, (0, columns)))
    output = tiny_model()(*step)
    padded = tiny_model()(wider, F.pad(real, (0, columns)), F.pad(types, (0, columns)))
    for name in ("loss", "mlm_loss", "discriminator_loss"):
        assert getattr(padded, name).item() == pytest.approx(getattr(output, name).item(), rel=1e-4)


@few
@given(tiny_steps(), st.integers(1, 3))
def test_losses_of_parts_add_up_given_the_totals_of_the_batch(step, size):
    """Parts of `size` rows, the last one smaller: a mean of their means would differ."""
    masked, real, types = step
    whole = tiny_model()(*step)
    losses = []
    for first in range(0, len(real), size):
        part = slice(first, first + size)
        output = tiny_model()(MaskedBatch(*(tensor[part] for tensor in masked)), real[part], types[part],
                              slot_total=masked.weights.sum(), token_total=real.sum())
        losses.append(torch.stack([output.loss, output.mlm_loss, output.discriminator_loss]))
    expected = torch.stack([whole.loss, whole.mlm_loss, whole.discriminator_loss])
    assert torch.allclose(sum(losses), expected, rtol=1e-4)


def test_the_discriminator_loss_reaches_the_generator_through_the_tied_embeddings_only(tiny_config):
    model, *step = pretraining_step(tiny_config)
    parameters = dict(model.named_parameters())

    def reached(loss):
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        return {name for name, gradient in zip(parameters, gradients)
                if gradient is not None and gradient.any()}

    # named_parameters lists the tied ones under the discriminator; softmax ignores a constant in all keys
    names = {name for name in parameters if "key.bias" not in name}
    assert reached(model(*step).discriminator_loss) & names == {
        name for name in names if name.startswith("discriminator.")}
    assert reached(model(*step).mlm_loss) & names == {
        name for name in names if name.startswith(("generator.", "discriminator.electra.embeddings."))}


def test_no_gradient_flows_through_the_sample(tiny_config):
    assert not sample_tokens(torch.rand(1, 2, 3, requires_grad=True), torch.zeros(1, 2)).requires_grad
    model, *step = pretraining_step(tiny_config)
    output = model(*step)
    assert not output.generator_logits.requires_grad and not output.discriminator_logits.requires_grad


def test_the_first_loss_is_about_ln_v_plus_50_ln_2():
    """45.0 nats for SciVocab; the mean of 20 seeds, as each untrained discriminator leans to one side."""
    config = ElectraConfig(vocab_size=31090, embedding_size=8, hidden_size=16, num_hidden_layers=1,
                           num_attention_heads=1, intermediate_size=32, max_position_embeddings=20, **IDS)
    ids, real, types = random_batch([20] * 8, 20, config.vocab_size)
    masked = mask_tokens(ids, real, config, torch.Generator().manual_seed(0))
    losses = []
    for seed in range(20):
        torch.manual_seed(seed)
        output = ElectraForPretraining(config).eval()(masked, real, types)
        losses.append(output.loss.item())
        assert output.mlm_loss.item() == pytest.approx(math.log(31090), abs=0.02)
        assert output.discriminator_loss.item() == pytest.approx(math.log(2), abs=0.1)
    losses = torch.tensor(losses)
    assert round(math.log(31090) + 50 * math.log(2), 1) == 45.0
    assert within(losses.mean(), 45.0, losses.std() / math.sqrt(20)) and losses.std() < 2


def test_gradients_of_parts_add_up_given_the_totals_of_the_batch(tiny_config):
    """With the loss: what accumulation over steps and several devices rest on."""
    model, masked, real, types = pretraining_step(tiny_config)
    whole = model(masked, real, types).loss
    whole.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    total = 0.0
    for part in (slice(0, 1), slice(1, 4)):     # of unlike size: a mean of means would differ
        loss = model(MaskedBatch(*(tensor[part] for tensor in masked)), real[part], types[part],
                     slot_total=masked.weights.sum(), token_total=real.sum()).loss
        loss.backward()
        total += loss.item()
    assert total == pytest.approx(whole.item(), rel=1e-5)
    for parameter, gradient in zip(model.parameters(), gradients):
        assert torch.allclose(parameter.grad, gradient, rtol=1e-4, atol=1e-4)


def test_a_generator_with_other_embeddings_is_refused(tiny_config):
    for name in ("vocab_size", "embedding_size", "max_position_embeddings", "type_vocab_size"):
        other = dataclasses.replace(tiny_config, **{name: 77})
        with pytest.raises(ValueError, match=f"{name} is 77 in the generator"):
            ElectraForPretraining(tiny_config, other)


# --- 5. Task heads ---

def test_tagger_loss_on_paper():
    """Two labelled positions, of probability 1/4 and 3/4; the two without a label count nothing."""
    logits = torch.tensor([[[0.0, math.log(3)], [0.0, math.log(3)], [5.0, -5.0], [-5.0, 5.0]]])
    labels = torch.tensor([[0, 1, IGNORED_LABEL, IGNORED_LABEL]])
    assert TokenTagger.loss(logits, labels).item() == pytest.approx((math.log(4) + math.log(4 / 3)) / 2)


def test_binary_tagger_loss_on_paper():
    """One labelled position: its label at probability 3/4, the others at 1/2 and 1/4."""
    logits = torch.tensor([[[math.log(3), 0.0, -math.log(3)], [5.0, -5.0, 5.0]]])
    labels = torch.tensor([[0, IGNORED_LABEL]])
    assert TokenTagger.loss(logits, labels, is_binary=True).item() == pytest.approx(
        math.log(4 / 3) + math.log(2) + math.log(4 / 3))
    assert TokenTagger.loss(logits, torch.full_like(labels, IGNORED_LABEL), is_binary=True).item() == 0


def test_binary_tagger_loss_is_that_of_one_classifier_a_label():
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(3, 7, 5, generator=generator)
    labels = torch.randint(5, (3, 7), generator=generator)
    labels[torch.rand(3, 7, generator=generator) < 0.4] = IGNORED_LABEL
    losses = []
    for row, label in zip(logits.flatten(0, 1).tolist(), labels.flatten().tolist()):
        if label != IGNORED_LABEL:
            yes = [1 / (1 + math.exp(-logit)) for logit in row]
            losses.append(-sum(math.log(p if c == label else 1 - p) for c, p in enumerate(yes)))
    assert TokenTagger.loss(logits, labels, is_binary=True).item() == pytest.approx(sum(losses) / len(losses))


def test_classifier_loss_on_paper():
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])
    assert SequenceClassifier.loss(logits, torch.tensor([0, 1])).item() == pytest.approx(
        (math.log(4) + math.log(2)) / 2)


def test_span_loss_on_paper():
    """The mean of start and end: one of four positions blindly, and one with three quarters of the weight."""
    logits = torch.zeros(1, 4, 2)
    logits[0, 2, 1] = math.log(9)
    assert SpanExtractor.loss(logits, torch.tensor([[1, 2]])).item() == pytest.approx(
        (math.log(4) + math.log(12 / 9)) / 2)


LABELS = 4      # C in the properties of the heads


def logits_and_labels(head, rows, width, seed):
    """Random logits and labels as each head has them; a third of a tagger's positions has no label."""
    random = torch.Generator().manual_seed(seed)
    if head is SequenceClassifier:
        return (torch.randn(rows, LABELS, generator=random),
                torch.randint(LABELS, (rows,), generator=random))
    if head is SpanExtractor:
        return (torch.randn(rows, width, 2, generator=random),
                torch.randint(width, (rows, 2), generator=random))
    labels = torch.randint(LABELS, (rows, width), generator=random)
    labels[torch.rand(rows, width, generator=random) < 0.3] = IGNORED_LABEL
    return torch.randn(rows, width, LABELS, generator=random), labels


def surprise(logits, label):
    """-log softmax(logits)[label] of a list of numbers."""
    return math.log(sum(math.exp(logit) for logit in logits)) - logits[label]


@given(st.integers(1, 4), st.integers(1, 7), SEEDS)
def test_tagger_loss_is_the_mean_over_the_labelled_positions(rows, width, seed):
    logits, labels = logits_and_labels(TokenTagger, rows, width, seed)
    positions = zip(logits.flatten(0, 1).tolist(), labels.flatten().tolist())
    losses = [surprise(row, label) for row, label in positions if label != IGNORED_LABEL]
    expected = sum(losses) / max(1, len(losses))            # a window without any label has loss 0
    assert TokenTagger.loss(logits, labels).item() == pytest.approx(expected, rel=1e-5)


@given(st.integers(1, 6), st.lists(st.floats(0.5, 99), min_size=LABELS, max_size=LABELS), SEEDS)
def test_classifier_loss_is_the_mean_weighted_by_the_labels_class(rows, class_weights, seed):
    logits, labels = logits_and_labels(SequenceClassifier, rows, 0, seed)
    weights = [class_weights[label] for label in labels.tolist()]
    losses = [surprise(row, label) for row, label in zip(logits.tolist(), labels.tolist())]
    expected = sum(weight * loss for weight, loss in zip(weights, losses)) / sum(weights)
    assert SequenceClassifier.loss(logits, labels, torch.tensor(class_weights)).item() == pytest.approx(
        expected, rel=1e-5)


@given(st.integers(1, 6), st.integers(1, 9), SEEDS)
def test_span_loss_is_the_mean_over_starts_and_ends(rows, width, seed):
    logits, labels = logits_and_labels(SpanExtractor, rows, width, seed)
    losses = [surprise(logits[row, :, end].tolist(), labels[row, end].item())
              for row in range(rows) for end in (0, 1)]
    assert SpanExtractor.loss(logits, labels).item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_heads_have_the_shapes_and_layers_they_promise(tiny_config):
    batch = random_batch([9, 5], 9)
    tagger, classifier, extractor = (random_model(model) for model in (
        TokenTagger(tiny_config, 3), SequenceClassifier(tiny_config, 5), SpanExtractor(tiny_config)))
    assert tagger(*batch).shape == (2, 9, 3) and extractor(*batch).shape == (2, 9, 2)
    assert torch.equal(tagger(*batch), tagger.classifier(tagger.electra(*batch)))
    # the classifier sees the hidden state at [CLS] and nothing else
    hidden = F.gelu(classifier.classifier["dense"](classifier.electra(*batch)[:, 0]))
    assert torch.equal(classifier(*batch), classifier.classifier["out_proj"](hidden))
    assert classifier(*batch).shape == (2, 5)
    for model, *layers in ((tagger, "classifier"), (extractor, "qa_outputs"),
                           (classifier, "classifier.dense", "classifier.out_proj")):
        assert {name for name, _ in model.named_parameters() if not name.startswith("electra.")} == {
            f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}


def test_answers_lie_in_the_passage_or_at_cls(tiny_config):
    """[CLS] q q [SEP] p p p [SEP] and padding, and the same without it."""
    ids = torch.tensor([[CLS, 7, 8, SEP, 9, 10, 11, SEP, PAD, PAD], [CLS, 7, 8, 9, SEP, 10, 11, 12, 13, SEP]])
    types = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]])
    model = random_model(SpanExtractor(tiny_config))
    logits = model(ids, (ids != PAD).long(), types)
    for row, allowed in enumerate(([0, 4, 5, 6], [0, 5, 6, 7, 8])):
        probability = logits[row].softmax(0)                                                    # (T, 2)
        assert (probability > 1e-6).all(1).nonzero().flatten().tolist() == allowed
        assert probability[allowed].sum(0).tolist() == pytest.approx([1, 1])
    nn.init.zeros_(model.qa_outputs.weight), nn.init.zeros_(model.qa_outputs.bias)
    blind = model(ids, (ids != PAD).long(), types)
    assert model.loss(blind[:1], torch.tensor([[5, 6]])).item() == pytest.approx(math.log(4))
    assert model.loss(blind[1:], torch.tensor([[0, 0]])).item() == pytest.approx(math.log(5))  # "no answer"


@few
@given(st.integers(0, 9), st.integers(1, 9), st.integers(0, 9))
def test_every_answer_lies_in_the_passage_or_at_cls(question, passage, padding):
    """[CLS] question [SEP] passage [SEP] and padding, of any lengths."""
    row = [CLS, *[7] * question, SEP, *[8] * passage, SEP, *[PAD] * padding]
    ids = torch.tensor([row])
    types = torch.tensor([[0] * (question + 2) + [1] * (passage + 1) + [0] * padding])
    torch.manual_seed(0)
    logits = SpanExtractor(TINY).eval()(ids, (ids != PAD).long(), types)
    allowed = (logits[0] > -100).all(1).nonzero().flatten().tolist()
    assert allowed == [0, *range(question + 2, question + 2 + passage)]


# --- 6. Optimiser and schedule ---

@pytest.mark.parametrize("step, warmup, rate", [
    (0, 10, 0.0),           # the first update has rate 0
    (5, 10, 0.95 * 0.5),    # the product of decay and warm-up, not one after the other
    (10, 10, 0.9),          # so the peak is not reached
    (50, 10, 0.5), (99, 10, 0.01), (100, 10, 0.0),
    (0, 0, 1.0), (25, 0, 0.75),
])
def test_learning_rate_on_paper(step, warmup, rate):
    assert learning_rate_at(step, 100, warmup, peak=2e-4) == pytest.approx(2e-4 * rate)


schedules = st.tuples(st.integers(1, 1000), st.integers(0, 300), st.floats(1e-6, 1))


@given(schedules, st.data())
def test_the_rate_is_the_product_of_decay_and_warm_up(schedule, data):
    total, warmup, peak = schedule
    step = data.draw(st.integers(0, total))
    rising = 1 if step >= warmup else step / warmup
    assert learning_rate_at(step, *schedule) == pytest.approx(peak * (total - step) / total * rising)


@given(schedules)
def test_the_rate_stays_between_zero_and_the_peak_and_falls_after_the_warm_up(schedule):
    total, warmup, peak = schedule
    rates = [learning_rate_at(step, *schedule) for step in range(total + 1)]
    assert all(0 <= rate <= peak for rate in rates)
    assert all(earlier > later for earlier, later in zip(rates[warmup:], rates[warmup + 1:]))
    assert rates[-1] == 0 and (rates[0] == 0) == (warmup > 0)


@pytest.mark.parametrize("make, head", [
    (lambda config: TokenTagger(config, 3), "classifier"),
    (lambda config: SequenceClassifier(config, 3), "classifier"),
    (SpanExtractor, "qa_outputs"), (Discriminator, "discriminator_predictions"),
])
def test_layer_rates_fall_from_the_head_to_the_embeddings(tiny_config, make, head):
    """Two layers: head 1, top layer 0.8^2, layer 0 0.8^3, embeddings and their projection 0.8^4."""
    model = make(tiny_config)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(parameter)]: (group["lr_scale"], group["decay"])
             for group in parameter_groups(model, 0.01, 0.8) for parameter in group["params"]}
    assert found.keys() == {*names.values()}
    scales = {"electra.embeddings.": 0.8**4, "electra.embeddings_project.": 0.8**4,
              "electra.encoder.layer.0.": 0.8**3, "electra.encoder.layer.1.": 0.8**2, head: 1.0}
    for name, (scale, decay) in found.items():
        expected, = (value for prefix, value in scales.items() if name.startswith(prefix))
        assert scale == pytest.approx(expected), name
        assert decay == (0.0 if "LayerNorm" in name or name.endswith("bias") else 0.01), name
    assert found["electra.embeddings.position_embeddings.weight"][1] == 0.01       # embeddings are decayed


def test_every_parameter_is_in_exactly_one_group(tiny_config):
    model = ElectraForPretraining(tiny_config)
    groups = parameter_groups(model, 0.01)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(parameter) for parameter in model.parameters()}
    assert sorted((group["lr_scale"], group["decay"]) for group in groups) == [(1.0, 0.0), (1.0, 0.01)]


@few
@given(st.integers(1, 4), st.floats(0.5, 1), st.floats(0, 0.1), st.booleans())
def test_groups_follow_depth_and_name_for_any_number_of_layers(layers, layer_decay, weight_decay,
                                                               is_projected):
    """Depth counted up from the embeddings, one name at a time."""
    config = dataclasses.replace(TINY, num_hidden_layers=layers, embedding_size=8 if is_projected else 16)
    with torch.device("meta"):          # names and shapes are all it takes
        model = TokenTagger(config, 3)
    groups = parameter_groups(model, weight_decay, layer_decay)
    found = {id(parameter): group for group in groups for parameter in group["params"]}
    assert len(found) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        depth = 0 if name.startswith("electra.embeddings") else layers + 2
        for layer in range(layers):
            if f"encoder.layer.{layer}." in name:
                depth = layer + 1
        group = found[id(parameter)]
        assert group["lr_scale"] == pytest.approx(layer_decay ** (layers + 2 - depth)), name
        is_decayed = not ("LayerNorm" in name or name.endswith("bias"))
        assert group["decay"] == (weight_decay if is_decayed else 0.0), name


def adam_groups():
    random = torch.Generator().manual_seed(0)
    return [{"params": [nn.Parameter(torch.randn(5, generator=random, dtype=torch.double)),
                        nn.Parameter(torch.randn(3, 2, generator=random, dtype=torch.double))],
             "lr_scale": scale, "decay": decay} for scale, decay in ((1.0, 0.01), (0.64, 0.0), (0.5, 0.1))]


def test_adam_without_bias_correction_on_paper():
    """First step from w = 1 with g = 2: m = 0.2, v = 0.004, so w - lr * (m / (sqrt(v) + 1e-6) + 0.01 w)."""
    weight = nn.Parameter(torch.ones((), dtype=torch.double))
    optimizer = Adam([{"params": [weight], "lr_scale": 1.0, "decay": 0.01}])
    weight.grad = torch.tensor(2.0, dtype=torch.double)
    optimizer.step(0.1)
    assert weight.item() == pytest.approx(1 - 0.1 * (0.2 / (math.sqrt(0.004) + 1e-6) + 0.01), abs=1e-15)
    assert weight.grad is None      # cleared for the next step


@settings(max_examples=25)
@given(st.integers(1, 12), st.floats(0.1, 1), st.floats(0, 0.1), st.integers(-7, 3), SEEDS)
@example(30, 1.0, 0.01, -6, 0)
def test_adam_equals_a_hand_written_loop(steps, scale, decay, exponent, seed):
    """No bias correction, eps outside the root, decoupled decay: to 1e-13 in float64.

    Gradients of the size of eps (10^-6) show whether it stands under or beside the root.
    """
    random = torch.Generator().manual_seed(seed)
    weight = nn.Parameter(torch.randn(3, 2, generator=random, dtype=torch.double))
    optimizer = Adam([{"params": [weight], "lr_scale": scale, "decay": decay}])
    w, m, v = weight.detach().clone(), 0.0, 0.0
    for step in range(steps):
        rate = learning_rate_at(step, 40, 5, 0.1)
        g = torch.randn(3, 2, generator=random, dtype=torch.double) * 10.0 ** (exponent + step % 3)
        weight.grad = g.clone()
        optimizer.step(rate)
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g * g
        w = w - rate * scale * (m / (v.sqrt() + 1e-6) + decay * w)
        assert (weight.detach() - w).abs().max().item() < 1e-13, step


@settings(max_examples=25)
@given(st.integers(1, 12), st.floats(0.1, 1), st.floats(0, 0.1), st.integers(-7, 1), SEEDS)
@example(12, 1.0, 0.01, -6, 0)
def test_the_fused_kernel_equals_the_formula_that_xla_computes(steps, scale, decay, exponent, seed):
    """In float32, and with the same moments in the state: a run may go on with the other one at any step."""
    random = torch.Generator().manual_seed(seed)
    start = torch.randn(4, 3, generator=random)
    optimizers = [Adam([{"params": [nn.Parameter(start.clone())], "lr_scale": scale, "decay": decay}])
                  for _ in range(2)]
    plain, fast = optimizers
    for step in range(steps):
        gradient = torch.randn(4, 3, generator=random) * 10.0 ** exponent
        for optimizer in optimizers:
            group, = optimizer.param_groups
            group["params"][0].grad = gradient.clone()
            group["updates"] += 1
        rate = learning_rate_at(step, 40, 5, 0.01)
        plain.update_by_formula(rate)
        fast.update_by_fused_kernel(rate)
    (ours, ours_state), = plain.state.items()
    (theirs, theirs_state), = fast.state.items()
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    assert ours_state.keys() == theirs_state.keys()
    for name in ours_state:
        assert torch.allclose(ours_state[name], theirs_state[name], rtol=1e-4, atol=1e-20), name


def test_adam_takes_parameters_alone_and_asks_for_a_rate():
    weights = [nn.Parameter(torch.ones(3, dtype=torch.double)) for _ in range(2)]
    plain, grouped = Adam(iter(weights[:1])), Adam([{"params": weights[1:], "lr_scale": 1.0, "decay": 0.0}])
    for weight in weights:
        weight.grad = torch.full_like(weight, 2.0)
    with pytest.raises(TypeError, match="learning_rate"):
        plain.step()
    plain.step(0.1), grouped.step(0.1)
    assert torch.equal(*weights) and (weights[0] != 1).all()


def test_adam_continues_bitwise_from_its_state_dict():
    def run(groups, optimizer, first, last):
        for step in range(first, last):
            for i, parameter in enumerate(parameter for group in groups for parameter in group["params"]):
                parameter.grad = torch.sin(parameter.detach() * (step + i + 1))
            optimizer.step(learning_rate_at(step, 20, 3, 0.1))
        return optimizer

    unbroken, broken, resumed = adam_groups(), adam_groups(), adam_groups()
    run(unbroken, Adam(unbroken), 0, 12)
    state = run(broken, Adam(broken), 0, 6).state_dict()
    for old, new in zip(broken, resumed):
        new["params"] = [nn.Parameter(parameter.detach().clone()) for parameter in old["params"]]
    optimizer = Adam(resumed)
    optimizer.load_state_dict(state)
    run(resumed, optimizer, 6, 12)
    for one, other in zip(unbroken, resumed):
        assert all(torch.equal(a, b) for a, b in zip(one["params"], other["params"]))


# --- 7. Model folders and checkpoints ---

@pytest.fixture
def saved(tmp_path, tiny_config):
    """A random model and the folder it was saved to."""
    model = random_model(ElectraForPretraining(tiny_config))
    save_pretrained(model, tmp_path / "saved")
    return model, tmp_path / "saved"


def read_file(folder):
    return read_safetensors(folder / "model.safetensors")


def change_weights(folder, changes=None, without=()):
    weights = {name: tensor for name, tensor in read_file(folder).items()
               if not name.startswith(tuple(without))}
    write_by_hand(folder / "model.safetensors", {**weights, **(changes or {})})


def turn_into_bin(folder, weights=None):
    """Replace model.safetensors by the pickle that older folders have."""
    torch.save(read_file(folder) if weights is None else weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def write_by_hand(path, weights):
    """The format by hand: length of the header, header, tensors."""
    types = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64"}
    header, content = {"__metadata__": {"format": "pt"}}, b""
    for name, tensor in weights.items():
        raw = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        header[name] = {"dtype": types[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [len(content), len(content) + len(raw)]}
        content += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)


def test_saved_models_come_back_bitwise(saved):
    model, folder = saved
    loaded, batch = load_pretrained(folder).eval(), random_batch([9, 5], 9)
    assert same_weights(model, loaded)
    assert (loaded.config, loaded.generator_config) == (model.config, model.generator_config)
    assert torch.equal(loaded.discriminator_logits(*batch), model.discriminator_logits(*batch))
    assert torch.equal(loaded.generator_logits(*batch), model.generator_logits(*batch))
    word_embeddings = loaded.discriminator.electra.embeddings.word_embeddings
    assert loaded.generator.generator_lm_head.weight is word_embeddings.weight      # still tied


def test_saved_weights_have_the_published_names(saved):
    _, folder = saved
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()) == [
        "config.json", "generator/config.json", "generator/model.safetensors", "model.safetensors"]
    weights, layer = read_file(folder), "electra.encoder.layer.1."
    parts = ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
             "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm"]
    assert {name for name in weights if name.startswith(layer)} == {
        f"{layer}{part}.{kind}" for part in parts for kind in ("weight", "bias")}
    assert {name for name in weights if ".layer." not in name} == {
        "electra.embeddings.word_embeddings.weight", "electra.embeddings.position_embeddings.weight",
        "electra.embeddings.token_type_embeddings.weight", "electra.embeddings.LayerNorm.weight",
        "electra.embeddings.LayerNorm.bias",
        "electra.embeddings_project.weight", "electra.embeddings_project.bias",
        "discriminator_predictions.dense.weight", "discriminator_predictions.dense.bias",
        "discriminator_predictions.dense_prediction.weight",
        "discriminator_predictions.dense_prediction.bias"}
    assert {name for name in read_file(folder / "generator") if not name.startswith("electra.")} == {
        "generator_predictions.dense.weight", "generator_predictions.dense.bias",
        "generator_predictions.LayerNorm.weight", "generator_predictions.LayerNorm.bias",
        "generator_lm_head.weight", "generator_lm_head.bias"}


def test_the_tokenizer_is_saved_beside_the_model_and_its_size_is_checked(saved, tiny_tokenizer):
    model, folder = saved
    save_pretrained(model, folder, tiny_tokenizer)
    assert (folder / "vocab.txt").is_file()
    assert same_weights(load_pretrained(folder), model)


def test_the_generator_is_optional(saved, tmp_path):
    model, folder = saved
    (folder / "generator").rename(tmp_path / "elsewhere")
    loaded = load_pretrained(folder)
    assert same_weights(loaded.discriminator, model.discriminator)
    assert loaded.generator_config == model.config.generator()


def test_the_generators_config_is_taken_as_it_is(tmp_path, tiny_config):
    """Shallower and wider than config.generator() would be."""
    generator = dataclasses.replace(tiny_config, num_hidden_layers=1, hidden_size=24, num_attention_heads=3)
    model = random_model(ElectraForPretraining(tiny_config, generator))
    save_pretrained(model, tmp_path)
    assert load_pretrained(tmp_path).generator_config == generator
    assert same_weights(load_pretrained(tmp_path), model)


def test_published_files_may_store_position_ids_and_leave_out_the_tied_output(saved):
    model, folder = saved
    position_ids = {"electra.embeddings.position_ids": torch.arange(64).expand(1, -1)}
    change_weights(folder, position_ids)
    change_weights(folder / "generator", position_ids, without=["generator_lm_head.weight"])
    assert same_weights(load_pretrained(folder), model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_safetensors_are_read_in_place_of_pytorch_model_bin(saved, dtype):
    model, folder = saved
    for part in (folder, folder / "generator"):
        write_by_hand(part / "model.safetensors", {
            name: tensor.to(dtype) for name, tensor in read_file(part).items()})
        (part / "pytorch_model.bin").write_bytes(b"not looked at")
    loaded = load_pretrained(folder)
    for (name, tensor), expected in zip(loaded.state_dict().items(), model.state_dict().values()):
        assert torch.equal(tensor, expected.to(dtype).float()), name


def test_the_safetensors_package_and_we_read_each_others_files(saved):
    package = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    model, folder = saved
    theirs = package.load_file(folder / "model.safetensors")
    assert theirs.keys() == model.discriminator.state_dict().keys()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in model.discriminator.state_dict().items())
    for part in (folder, folder / "generator"):     # the package refuses tensors that share memory: clones
        package.save_file({name: tensor.clone() for name, tensor in read_file(part).items()},
                          part / "model.safetensors")
    assert same_weights(load_pretrained(folder), model)


@given(cut=st.floats(0, 1, exclude_max=True))
def test_truncated_safetensors_are_refused_by_name(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("cut") / "model.safetensors"
    write_by_hand(path, {"a": torch.ones(3, 2), "b": torch.arange(4)})
    assert torch.equal(read_safetensors(path)["b"], torch.arange(4))
    content = path.read_bytes()
    path.write_bytes(content[:int(cut * len(content))])
    with pytest.raises(ValueError, match="model.safetensors: not readable as weights by name"):
        read_weights(path.parent)


def overwrite(folder, name):
    """Put ones of the same shape in the place of one weight."""
    change_weights(folder, {name: torch.ones_like(read_file(folder)[name])})


EMBEDDING, OUTPUT = "electra.embeddings.word_embeddings.weight", "generator_lm_head.weight"


@pytest.mark.parametrize("damage, file, message", [
    (lambda folder: (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n\n"), "config.json",
     "has vocab_size {V} but {folder}/vocab.txt has 3 pieces: take the model's own; added tokens are not "
     "supported; if the model was padded, append lines such as [padding1]"),
    (lambda folder: (folder / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}'), "config.json",
     "but {folder}/tokenizer.json has 1 pieces"),
    (lambda folder: (folder / "tokenizer.json").write_text("[4]"), "tokenizer.json", "list indices"),
    (lambda folder: change_config(folder, hidden_act=["gelu"]), "config.json", "hidden_act is ['gelu']"),
    (lambda folder: change_config(folder, mask_prob=None), "config.json", "mask_prob must be a number"),
    (lambda folder: (folder / "config.json").write_text("[" * 10 ** 5), "config.json", "recursion"),
    (lambda folder: (folder / "config.json").write_bytes(b"\xff{}"), "config.json", "'utf-8' codec"),
    (lambda folder: (folder / "config.json").write_text("{}"), "",
     "vocab_size is {V} in the generator and 30522 in the discriminator"),     # ELECTRA-small has it
    (lambda folder: change_weights(folder, {EMBEDDING: read_file(folder)[EMBEDDING] / 0}),
     "model.safetensors", "word_embeddings.weight holds numbers that are not finite"),
    (lambda folder: change_config(folder, hidden_act="relu"), "config.json", "hidden_act is 'relu'"),
    (lambda folder: change_config(folder, position_embedding_type="relative_key"), "config.json",
     "position_embedding_type is 'relative_key'"),
    (lambda folder: change_config(folder, model_type="bert"), "config.json", "model_type is 'bert'"),
    (lambda folder: change_config(folder, num_hidden_layers=0), "config.json", "num_hidden_layers must be"),
    (lambda folder: (folder / "config.json").write_text("[]"), "config.json",
     "expected a JSON object, found list"),
    (lambda folder: (folder / "config.json").write_text("{"), "config.json", "line 1 column 2"),
    (lambda folder: change_config(folder, intermediate_size=64), "",
     "size mismatch for electra.encoder.layer.0.intermediate.dense.weight: copying a param with shape "
     "torch.Size([32, 16])"),
    (lambda folder: change_config(folder, num_hidden_layers=3), "",
     'Missing key(s) in state_dict: "electra.encoder.layer.2.attention'),
    (lambda folder: change_weights(folder, {"bert.pooler.weight": torch.ones(1)}), "",
     'Unexpected key(s) in state_dict: "bert.pooler.weight". Is it a model of this kind'),
    (lambda folder: change_weights(folder, without=["discriminator_predictions.dense.bias"]), "",
     'Missing key(s) in state_dict: "discriminator_predictions.dense.bias"'),
    (lambda folder: (folder / "model.safetensors").write_bytes(b"damaged"), "model.safetensors",
     "not readable as weights by name"),
    (lambda folder: change_config(folder / "generator", hidden_act="relu"), "generator/config.json",
     "hidden_act"),
    (lambda folder: overwrite(folder / "generator", EMBEDDING), "generator",
     "word_embeddings.weight differs from the discriminator's"),
    (lambda folder: change_weights(folder / "generator", without=["generator_predictions.dense.bias"]),
     "generator", 'Missing key(s) in state_dict: "generator_predictions.dense.bias"'),
    (lambda folder: overwrite(folder / "generator", OUTPUT), "generator", OUTPUT),
    (lambda folder: change_weights(folder / "generator", without=[EMBEDDING, OUTPUT]), "generator",
     f'Missing key(s) in state_dict: "{EMBEDDING}"'),
    (lambda folder: change_config(folder / "generator", vocab_size=100), "",
     "vocab_size is 100 in the generator and {V} in the discriminator"),
])
def test_files_that_do_not_fit_are_refused_by_name(saved, damage, file, message):
    model, folder = saved
    damage(folder)
    with pytest.raises(ValueError) as error:
        load_pretrained(folder)
    assert not file or str(error.value).startswith(str(folder / file))
    assert message.format(folder=folder, V=model.config.vocab_size) in str(error.value)


def spoil(header, **entry):
    """Change the entry "b" of a header: float32 numbers of shape (4,) in the bytes 24 to 40."""
    return {**header, "b": {**header["b"], **entry}}


@pytest.mark.parametrize("change", [
    lambda header: spoil(header, dtype="F31"),
    lambda header: spoil(header, dtype=["F32"]),
    lambda header: spoil(header, shape=[5]),                                 # another size
    lambda header: spoil(header, shape=4),
    lambda header: spoil(header, shape=[4.0]),
    lambda header: spoil(header, shape=[-2, -2]),
    lambda header: spoil(header, shape=[[4]]),
    lambda header: spoil(header, data_offsets=[0, 16]),                      # the two overlap
    lambda header: spoil(header, data_offsets=[8, 24]),
    lambda header: spoil(header, data_offsets=[-16, 0]),
    lambda header: spoil(header, data_offsets=[40, 24]),
    lambda header: spoil(header, data_offsets=["24", "40"]),
    lambda header: spoil(header, data_offsets=[24]),
    lambda header: spoil(header, data_offsets=[28, 44]),                     # beyond the file
    lambda header: spoil(header, data_offsets=None),
    lambda header: spoil(header, shape=[3], data_offsets=[28, 40]),          # a gap before it
    lambda header: spoil(header, shape=[3], data_offsets=[24, 36]),         # and after it
    lambda header: {**header, "b": {}},
    lambda header: {**header, "b": 4},
    lambda header: [header],
])
def test_safetensors_with_a_wrong_entry_are_refused(tmp_path, change):
    path = tmp_path / "model.safetensors"
    write_by_hand(path, {"a": torch.ones(3, 2), "b": torch.arange(4.0)})
    content = path.read_bytes()
    header, numbers = content[8:-40], content[-40:]
    text = json.dumps(change(json.loads(header))).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + numbers)
    with pytest.raises(ValueError, match="model.safetensors: not readable as weights by name"):
        read_weights(tmp_path)


@pytest.mark.parametrize("text", [b'{"a": {}, "a": {}}', b"[" * 10 ** 5, b"\xff\xff", b"null"])
def test_safetensors_with_a_header_that_is_no_clear_object_are_refused(tmp_path, text):
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(ValueError, match="model.safetensors: not readable as weights by name"):
        read_weights(tmp_path)


@settings(max_examples=300)
@given(position=st.integers(0, 10 ** 6), byte=st.integers(0, 255))
def test_a_changed_byte_in_the_header_is_read_or_refused_but_never_a_traceback(
        tmp_path_factory, position, byte):
    path = tmp_path_factory.mktemp("changed") / "model.safetensors"
    write_by_hand(path, {"a": torch.ones(3, 2), "b": torch.arange(4.0)})
    content = bytearray(path.read_bytes())
    content[position % (len(content) - 40)] = byte
    path.write_bytes(content)
    try:
        weights = read_weights(path.parent)
    except ValueError as error:
        assert "model.safetensors: not readable as weights by name" in str(error)
    else:
        assert sum(tensor.nbytes for tensor in weights.values()) == 40


@given(position=st.floats(0, 1, exclude_max=True))
def test_a_changed_byte_in_pytorch_model_bin_changes_no_weight_unnoticed(tmp_path_factory, position):
    folder = tmp_path_factory.mktemp("changed")
    weights = {"a": torch.arange(200.0).view(20, 10), "b": torch.arange(4.0)}
    torch.save(weights, folder / "pytorch_model.bin")
    content = bytearray((folder / "pytorch_model.bin").read_bytes())
    with zipfile.ZipFile(folder / "pytorch_model.bin") as archive:
        content[int(position * archive.start_dir)] ^= 16        # of the entries, not of the table of them
    (folder / "pytorch_model.bin").write_bytes(content)
    try:
        read = read_weights(folder)         # the byte belonged to the padding between two entries
    except ValueError as error:
        assert f"{folder}/pytorch_model.bin: not readable as weights by name" in str(error)
    else:
        assert read.keys() == weights.keys() and all(torch.equal(read[name], weights[name]) for name in read)


def test_the_entry_of_pytorch_model_bin_with_a_wrong_checksum_is_named(saved):
    model, folder = saved
    turn_into_bin(folder)
    path = folder / "pytorch_model.bin"
    numbers = model.state_dict()[f"discriminator.{EMBEDDING}"].numpy().tobytes()
    assert same_weights(load_pretrained(folder), model)
    path.write_bytes(path.read_bytes().replace(numbers, numbers[:-1] + bytes([numbers[-1] ^ 1])))
    with pytest.raises(ValueError, match=f"{path}: .*pytorch_model/data/[0-9]+ is damaged: its checksum"):
        load_pretrained(folder)


@pytest.mark.parametrize("content", [
    [torch.ones(2)], {"a": 4}, {"a": {"b": torch.ones(2)}}, torch.ones(2), {"a": torch.ones(2).to_sparse()},
    {"a": torch.ones(2, device="meta")}])
def test_a_pytorch_model_bin_that_holds_no_tensors_by_name_is_refused(saved, content):
    _, folder = saved
    turn_into_bin(folder, content)
    with pytest.raises(ValueError, match=f"{folder}/pytorch_model.bin: not readable as weights by name"):
        load_pretrained(folder)


def test_a_pytorch_model_bin_of_before_2020_is_read(saved):
    """It was no zip archive then."""
    model, folder = saved
    torch.save(read_file(folder), folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    (folder / "model.safetensors").unlink()
    assert same_weights(load_pretrained(folder), model)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused_by_name(saved, number):
    model, folder = saved
    name = "electra.encoder.layer.1.output.dense.bias"
    change_weights(folder, {name: torch.full((16,), number)})
    for file in ("model.safetensors", "pytorch_model.bin"):
        if file == "pytorch_model.bin":
            turn_into_bin(folder)
        with pytest.raises(ValueError, match=f"{folder}/{file}: .*{name} holds numbers that are not finite"):
            load_encoder(TokenTagger(model.config, 3), folder)


@pytest.mark.parametrize("name, write", [
    ("model-{}-of-2.safetensors", lambda weights, path: write_by_hand(path, weights)),
    ("pytorch_model-{}-of-2.bin", torch.save)])
def test_weights_divided_among_several_files_are_read(saved, name, write):
    model, folder = saved
    weights = read_file(folder)
    (folder / "model.safetensors").unlink()
    for part in (0, 1):
        write({name: weights[name] for name in sorted(weights)[part::2]}, folder / name.format(part + 1))
    assert same_weights(load_pretrained(folder), model)
    (folder / name.format(2)).unlink()
    with pytest.raises(ValueError, match="Missing key"):
        load_pretrained(folder)


def test_an_encoder_saved_by_itself_is_read(saved):
    """transformers' ElectraModel has the names without "electra."."""
    model, folder = saved
    weights = {name.removeprefix("electra."): tensor for name, tensor in read_file(folder).items()
               if name.startswith("electra.")}
    write_by_hand(folder / "model.safetensors", weights)
    tagger = TokenTagger(model.config, 3)
    load_encoder(tagger, folder)
    assert same_weights(tagger.electra, model.discriminator.electra)
    with pytest.raises(ValueError, match="Missing key.*discriminator_predictions.dense.bias"):
        load_pretrained(folder)


def test_a_model_padded_beyond_its_vocabulary_is_read_once_the_missing_lines_are_there(
        saved, tiny_tokenizer):
    model, folder = saved
    config = dataclasses.replace(model.config, vocab_size=model.config.vocab_size + 2)
    padded = random_model(ElectraForPretraining(config))
    save_pretrained(padded, folder)
    tiny_tokenizer.save(folder)
    with pytest.raises(ValueError, match="append lines such as .padding1."):
        load_pretrained(folder)
    with open(folder / "vocab.txt", "a") as file:
        file.write("[padding1]\n[padding2]\n")
    assert same_weights(load_pretrained(folder), padded)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_of_another_precision_is_written_as_float32(tmp_path, tiny_config, dtype):
    model = random_model(Discriminator(tiny_config)).to(dtype)
    save_pretrained(model, tmp_path)
    for name, tensor in read_file(tmp_path).items():
        assert torch.equal(tensor, model.state_dict()[name].float())


def test_an_old_pytorch_model_bin_does_not_stay_beside_new_weights(saved):
    model, folder = saved
    torch.save(read_file(folder), folder / "pytorch_model.bin")
    save_pretrained(model, folder)
    assert not (folder / "pytorch_model.bin").exists()


def test_the_configuration_names_the_model_and_its_labels_both_ways(tmp_path, tiny_config):
    for model, labels, name in (
            (TokenTagger(tiny_config, 2), ["O", "B-Drug"], "ElectraForTokenClassification"),
            (SequenceClassifier(tiny_config, 3), ["no", "yes", "maybe"], "ElectraForSequenceClassification"),
            (SequenceClassifier(tiny_config, 2), [], "ElectraForSequenceClassification"),
            (SpanExtractor(tiny_config), [], "ElectraForQuestionAnswering"),
            (Generator(tiny_config), [], "ElectraForMaskedLM"),
            (Discriminator(tiny_config), [], "ElectraForPreTraining")):
        save_pretrained(model, tmp_path, labels=labels)
        config = json.loads((tmp_path / "config.json").read_text())
        assert config["architectures"] == [name]
        if name.endswith("Classification"):
            labels = labels or ["LABEL_0", "LABEL_1"]
            assert config["id2label"] == {str(number): label for number, label in enumerate(labels)}
            assert config["label2id"] == {label: number for number, label in enumerate(labels)}


@pytest.mark.parametrize("changes", [
    {"id2label": {"0": "B", "1": "O"}},                                 # label2id says the opposite
    {"label2id": {"O": 1, "B": 0}}, {"label2id": {"O": 0}}, {"id2label": {"0": "O", "2": "B"}},
    {"id2label": {"0": "O", "1": "O"}, "label2id": {"O": 1}}, {"id2label": {"0": "O", "1": None}},
])
def test_labels_that_are_odd_or_contradict_each_other_are_refused(tmp_path, tiny_config, changes):
    """A swap would turn every answer round in silence."""
    save_pretrained(TokenTagger(tiny_config, 2), tmp_path, labels=["O", "B"])
    assert load_head(tmp_path)[1] == ["O", "B"]
    change_config(tmp_path, **changes)
    with pytest.raises(ValueError, match=f"{tmp_path}/config.json: id2label is .*expected every label once"):
        load_head(str(tmp_path))


def test_a_head_comes_back_with_its_labels_and_their_number_is_compared(tmp_path, tiny_config):
    folder = tmp_path / "head"
    for model, labels in ((TokenTagger(tiny_config, 12), [f"B-{number}" for number in range(12)]),
                          (SequenceClassifier(tiny_config, 2), ["no", "yes"]),
                          (SpanExtractor(tiny_config), [])):
        random_model(model)
        save_pretrained(model, folder, labels=labels)
        for path in (folder, str(folder)):
            loaded, names = load_head(path)
            assert type(loaded) is type(model) and names == labels and same_weights(loaded, model)
    save_pretrained(TokenTagger(tiny_config, 3), folder)
    change_config(folder, id2label={"0": "a", "1": "b"}, label2id={"a": 0, "b": 1})
    with pytest.raises(ValueError, match="size mismatch for classifier.weight"):
        load_head(folder)


def test_a_head_without_labels_has_transformers_two(tmp_path, tiny_config):
    """transformers leaves this default out of the file."""
    save_pretrained(TokenTagger(tiny_config, 2), tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    del content["id2label"], content["label2id"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert load_head(tmp_path)[1] == ["LABEL_0", "LABEL_1"]


@pytest.mark.parametrize("kinds", [None, [], ["ElectraForPreTraining"], "ElectraForTokenClassification", 5])
def test_a_folder_without_a_task_head_is_refused_by_its_architectures(tmp_path, tiny_config, kinds):
    save_pretrained(TokenTagger(tiny_config, 2), tmp_path)
    change_config(tmp_path, architectures=kinds)
    with pytest.raises(ValueError, match=f"{tmp_path}/config.json: architectures is .*no fine-tuned model"):
        load_head(tmp_path)


def test_names_that_begin_with_module_are_read_without_it(saved):
    """As DataParallel saves them."""
    model, folder = saved
    weights = {f"module.{name}": tensor for name, tensor in read_file(folder).items()}
    write_by_hand(folder / "model.safetensors", weights)
    assert same_weights(load_pretrained(folder), model)


def test_loading_and_saving_print_nothing(saved, capfd):
    model, folder = saved
    load_pretrained(folder)
    load_encoder(TokenTagger(model.config, 2), folder)
    (folder / "generator").rename(folder / "elsewhere")
    note = electramed.load_initial(model, folder)
    assert note == f"{folder} has no generator/: a new generator is drawn"
    assert capfd.readouterr() == ("", "")


def test_the_generators_folder_has_a_vocabulary_of_its_own_and_both_say_the_longest_row(
        saved, tiny_tokenizer):
    model, folder = saved
    save_pretrained(model, folder, tiny_tokenizer)
    for part in (folder, folder / "generator"):
        assert json.loads((part / "tokenizer_config.json").read_text())["model_max_length"] == 64
        assert (part / "vocab.txt").read_text().split("\n")[:-1] == tiny_tokenizer.pieces


def test_a_classifier_comes_back_bitwise(tmp_path, tiny_config):
    model, loaded = (random_model(SequenceClassifier(tiny_config, 9), seed) for seed in (0, 1))
    save_pretrained(model, tmp_path)
    load_weights(loaded, tmp_path)
    assert same_weights(loaded, model)


def test_a_classifier_of_before_which_had_one_layer_unfolded_into_two_gives_the_logits_it_gave(
        tmp_path, tiny_config):
    """out_proj(gelu(dense(x))) was W x + b, because gelu(z) - gelu(-z) = z."""
    model, batch = random_model(SequenceClassifier(tiny_config, 5)), random_batch([9, 5], 9)
    W, b = torch.randn(5, 16), torch.randn(5)                                       # (C, H), (C,)
    dense, out = torch.zeros(16, 16), torch.zeros(5, 16)
    dense[0:10:2], dense[1:10:2] = W, -W
    out[range(5), range(0, 10, 2)], out[range(5), range(1, 10, 2)] = 1.0, -1.0
    shift = torch.zeros(16)
    shift[0:10:2], shift[1:10:2] = b, -b
    save_pretrained(model, tmp_path)
    change_weights(tmp_path, {"classifier.dense.weight": dense, "classifier.dense.bias": shift,
                              "classifier.out_proj.weight": out, "classifier.out_proj.bias": torch.zeros(5)})
    loaded = load_head(tmp_path)[0].eval()
    expected = model.electra(*batch)[:, 0] @ W.T + b                                # (B, H) -> (B, C)
    assert torch.allclose(loaded(*batch), expected, atol=1e-4)


def test_missing_files_are_named(saved, tmp_path):
    _, folder = saved
    with pytest.raises(FileNotFoundError, match="nowhere: no config.json here or in model/"):
        load_pretrained(tmp_path / "nowhere")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=f"{folder}: neither model.safetensors nor pytorch_model.bin"):
        load_pretrained(folder)


class Bomb:
    """Unpickling it makes a folder: the mark of code that ran."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_loading_runs_no_pickled_code(saved, tmp_path):
    model, folder = saved
    turn_into_bin(folder, {"electra": Bomb(tmp_path / "exploded")})
    torch.save({"step": Bomb(tmp_path / "exploded")}, tmp_path / "checkpoint-00000001.pt")
    with pytest.raises(ValueError, match="not readable as weights by name"):
        load_pretrained(folder)
    with pytest.raises(ValueError, match="no checkpoint is readable"):
        load_checkpoint(tmp_path, model, Adam(parameter_groups(model, 0.01)))
    assert not (tmp_path / "exploded").exists()


def test_a_task_head_starts_from_the_encoder_and_keeps_its_own_layer(saved):
    model, folder = saved
    tagger = random_model(TokenTagger(model.config, 3), seed=1)
    head = tagger.classifier.weight.detach().clone()
    load_encoder(tagger, folder)
    assert same_weights(tagger.electra, model.discriminator.electra)
    assert torch.equal(tagger.classifier.weight, head)
    save_pretrained(tagger, folder / "tagger")          # and a head of another size from a fine-tuned model
    classifier = SequenceClassifier(model.config, 5)
    load_encoder(classifier, folder / "tagger")
    assert same_weights(classifier.electra, tagger.electra)


def test_an_encoder_of_another_size_is_refused(saved):
    model, folder = saved
    for change in ({"hidden_size": 32}, {"num_hidden_layers": 1}, {"num_hidden_layers": 3}):
        with pytest.raises(ValueError, match=str(folder)):
            load_encoder(TokenTagger(dataclasses.replace(model.config, **change), 3), folder)


def test_model_folder_finds_the_model_of_a_run(saved, tmp_path):
    _, folder = saved
    assert model_folder(folder) == folder
    folder.rename(tmp_path / "model")
    assert model_folder(tmp_path) == tmp_path / "model"


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "file"
    with written_whole(path) as temporary:
        temporary.write_bytes(b"whole")

    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="could not be written .No space left on device.: what was there"):
        with written_whole(path) as temporary:
            temporary.write_bytes(b"other")
    assert path.read_bytes() == b"whole" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("stop", ["fsync", "rename"])
def test_a_model_folder_that_cannot_be_replaced_stays_as_it_was(saved, monkeypatch, stop):
    """Whether the disk is full, or the folder cannot be moved aside."""
    model, folder = saved

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    other = random_model(ElectraForPretraining(model.config), seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(os if stop == "fsync" else type(folder), stop, fail)
        with pytest.raises(OSError, match=f"{folder} could not be written"):
            save_pretrained(other, folder)
    assert same_weights(load_pretrained(folder), model) and list(folder.parent.iterdir()) == [folder]
    save_pretrained(other, folder)
    assert same_weights(load_pretrained(folder), other) and list(folder.parent.iterdir()) == [folder]


def test_a_reader_in_the_middle_of_a_replacement_meets_the_old_model_and_a_killed_writer_leaves_it(
        saved, tmp_path):
    """The writer is killed when all files are written but nothing is renamed; later a reader comes."""
    model, folder = saved
    program = (
        "import os, sys, electramed\n"
        "model = electramed.load_pretrained(sys.argv[1])\n"
        "model.generator.generator_lm_head.bias.data += 1\n"
        "electramed.Path.rename = lambda *paths: os._exit(9)\n"
        "electramed.save_pretrained(model, sys.argv[1])\n")
    result = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True,
                            cwd=os.path.dirname(electramed.__file__))
    assert result.returncode == 9, result.stderr
    assert len(list(folder.parent.glob("saved*"))) == 2                     # with NAME.PID.unfinished
    assert same_weights(load_pretrained(folder), model)


def test_a_folder_of_other_things_is_not_replaced(saved):
    model, folder = saved
    (folder.parent / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=f"{folder.parent} holds files but no model"):
        save_pretrained(model, folder.parent)
    assert (folder.parent / "thesis.tex").read_text() == "years of work"


def test_further_files_are_written_with_the_folder(tmp_path, tiny_config):
    for content in (b"1", b"2"):
        save_pretrained(TokenTagger(tiny_config, 2), tmp_path / "a", extra_files={"task.json": content})
        assert (tmp_path / "a/task.json").read_bytes() == content
    save_pretrained(TokenTagger(tiny_config, 2), str(tmp_path / "a"))
    assert not (tmp_path / "a/task.json").exists()


def new_training(config):
    torch.manual_seed(0)
    model = ElectraForPretraining(dataclasses.replace(config, hidden_dropout_prob=0.1,
                                                      attention_probs_dropout_prob=0.1))
    return model, Adam(parameter_groups(model, 0.01))


def train(model, optimizer, first, last):
    """Updates first to last - 1; all that is random in update k follows from k. Returns the last loss."""
    for step in range(first, last):
        torch.manual_seed(step)
        ids, real, types = random_batch([20, 13, 9, 16], 20, model.config.vocab_size, seed=step)
        masked = mask_tokens(ids, real, model.config, torch.Generator().manual_seed(step))
        loss = model.train()(masked, real, types).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(learning_rate_at(step, 40, 4, 5e-3))
    return loss.item()


def test_training_resumes_bitwise(tmp_path, tiny_config):
    unbroken, optimizer = new_training(tiny_config)
    last = train(unbroken, optimizer, 0, 12)
    first, optimizer = new_training(tiny_config)
    train(first, optimizer, 0, 6)
    save_checkpoint(tmp_path, 6, first, optimizer)
    second, optimizer = new_training(tiny_config)
    random_model(second, seed=9)
    assert load_checkpoint(tmp_path, second, optimizer) == 6
    assert train(second, optimizer, 6, 12) == last
    assert same_weights(second, unbroken)


def test_training_learns_its_batches(tiny_config):
    model, optimizer = new_training(tiny_config)
    first = train(model, optimizer, 0, 1)
    for _ in range(4):
        last = train(model, optimizer, 0, 30)
    assert last < 0.8 * first


def checkpoint_steps(folder):
    return sorted(int(file.stem.removeprefix("checkpoint-")) for file in folder.glob("*.pt"))


def test_the_last_two_checkpoints_are_kept_and_a_damaged_one_falls_back(tmp_path, tiny_config, capsys):
    model, optimizer = new_training(tiny_config)
    assert load_checkpoint(tmp_path, model, optimizer) == 0                 # none there
    kept = {}
    for step in (1, 2, 10):
        train(model, optimizer, step, step + 1)
        path = save_checkpoint(tmp_path, step, model, optimizer)
        kept[step] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert checkpoint_steps(tmp_path) == [2, 10]
    assert load_checkpoint(tmp_path, model, optimizer) == 10
    path.write_bytes(path.read_bytes()[:5000])
    assert load_checkpoint(tmp_path, model, optimizer) == 2
    assert f"{path} is damaged" in capsys.readouterr().err
    assert all(torch.equal(tensor, kept[2][name]) for name, tensor in model.state_dict().items())
    assert optimizer.param_groups[0]["updates"] == 2
    save_checkpoint(tmp_path, 3, model, optimizer)      # the damaged one does not count among the last two
    assert checkpoint_steps(tmp_path) == [2, 3]


def change_checkpoint(path, change):
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


def test_a_checkpoint_of_another_run_is_refused_by_name(tmp_path, tiny_config, capsys):
    model, optimizer = new_training(tiny_config)
    train(model, optimizer, 0, 1)
    path = save_checkpoint(tmp_path, 1, model, optimizer, belongs_to="hash of one run")
    assert load_checkpoint(tmp_path, model, optimizer, belongs_to="hash of one run") == 1
    with pytest.raises(ValueError, match=f"{path.name}: it belongs to another run"):
        load_checkpoint(tmp_path, model, optimizer, belongs_to="hash of another")


@pytest.mark.parametrize("change, said", [
    (lambda content: content.pop("step"), "'step'"),
    (lambda content: content.update(step="1"), ""), (lambda content: content.update(step=-1), ""),
    (lambda content: content.update(step=3), "it holds step 3"),
    (lambda content: content["optimizer"]["state"][0].update(exp_avg=torch.zeros(1)), "other shapes"),
    (lambda content: content["optimizer"]["state"][3].update(exp_avg_sq=torch.zeros(9, 9)), "other shapes"),
    (lambda content: content["optimizer"]["state"][0].pop("exp_avg"), "'exp_avg'"),
    (lambda content: content["model"].popitem(), "Missing key"),
])
def test_a_checkpoint_that_does_not_fit_is_left_for_the_one_before(
        tmp_path, tiny_config, capsys, change, said):
    """Moments of another shape would be read beyond their end: a segmentation fault at the next update."""
    model, optimizer = new_training(tiny_config)
    for step in (1, 2):
        train(model, optimizer, step, step + 1)
        path = save_checkpoint(tmp_path, step, model, optimizer)
    change_checkpoint(path, change)
    assert load_checkpoint(tmp_path, model, optimizer) == 1
    message = capsys.readouterr().err
    assert f"{path} is damaged or does not fit" in message and said in message
    train(model, optimizer, 2, 4)


# --- 8. Device ---

def test_device_chooses_its_precision():
    for precision in ("float32", "bfloat16"):
        device = Device.choose("cpu", precision)
        assert (device.kind, device.precision, device.count) == ("cpu", precision, 1)
    assert Device.choose("cpu").precision == "float32"
    assert Device.choose().kind == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_an_error_that_says_what_to_do():
    with pytest.raises(ValueError, match="--device cuda: .* drop the option to run on the CPU"):
        Device.choose("cuda")


def test_a_cpu_takes_numbers_too_small_to_be_normal_for_zero():
    """1e-40 needs a denormal float32, which a matrix product computes many times slower."""
    if not torch.set_flush_denormal(False):
        pytest.skip("this processor cannot")
    small = torch.full((4, 4), 1e-20)
    try:
        assert (small @ small > 0).all()
        Device.choose("cpu")
        assert (small @ small == 0).all()
    finally:
        torch.set_flush_denormal(False)


def test_a_seed_decides_what_the_device_draws():
    device, draws = Device.choose("cpu"), []
    for seed in (3, 3, 4):
        device.seed(seed)
        draws.append(dropout(torch.ones(50), 0.5, is_training=True).tolist())
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("embedding", [8, 16])
def test_bfloat16_changes_products_but_neither_losses_nor_sampling(tiny_config, embedding):
    """Losses and logits stay float32 and within bfloat16's three digits, also with padding."""
    model, *step = pretraining_step(dataclasses.replace(tiny_config, embedding_size=embedding))
    exact = model(*step)
    with Device("cpu", "bfloat16").autocast():
        output = model(*step)
    for tensor in (output.loss, output.generator_logits, output.discriminator_logits):
        assert tensor.dtype == torch.float32
    assert not torch.equal(output.generator_logits, exact.generator_logits)
    masked = step[0]                    # samples come from float32 probabilities
    samples = sample_tokens(output.generator_logits.softmax(-1), masked.uniform)
    assert torch.equal(output.is_replaced, replace_tokens(masked, samples)[1])
    assert output.mlm_loss.item() == pytest.approx(exact.mlm_loss.item(), rel=0.02)


@pytest.mark.parametrize("embedding", [8, 16])
def test_in_bfloat16_every_layer_norm_reads_and_gives_float32(tiny_config, embedding):
    """The sums between the layers would lose digits at each of them, also behind a narrower embedding."""
    model, *step = pretraining_step(dataclasses.replace(tiny_config, embedding_size=embedding))
    seen = []
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.register_forward_hook(lambda _, given, output: seen.append((given[0].dtype, output.dtype)))
    with Device("cpu", "bfloat16").autocast():
        model(*step)
    assert len(seen) > 4 and set(seen) == {(torch.float32, torch.float32)}


def test_where_there_is_no_glibc_its_allocator_is_left_alone(monkeypatch):
    monkeypatch.setattr(electramed.ctypes, "CDLL", None)
    monkeypatch.setattr(sys, "platform", "win32")
    electramed.keep_freed_memory()


@pytest.mark.parametrize("changes, said", [
    ({"WORLD_SIZE": ""}, "WORLD_SIZE ''"), ({"WORLD_SIZE": "0"}, "WORLD_SIZE '0'"),
    ({"WORLD_SIZE": "two", "RANK": "0"}, "WORLD_SIZE 'two'"), ({"RANK": "1"}, "RANK '1'"),
    ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK '2'"), ({"WORLD_SIZE": "2", "RANK": "-1"}, "RANK '-1'"),
    ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "7"}, "LOCAL_RANK '7'"),
])
def test_an_environment_that_no_torchrun_sets_is_refused(monkeypatch, changes, said):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert electramed.read_ranks() == (0, 1, 0)
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"environment has .*{said}.*start several processes with torchrun"):
        Device.choose("cpu")


PROCESS = """
import sys, torch, electramed
device = electramed.Device.choose("cpu").join()
device.agree({"torch": "2.13", "--steps": "7"})
torch.manual_seed(device.rank)
model = electramed.TokenTagger(electramed.ElectraConfig(vocab_size=9, num_hidden_layers=1), 3)
device.broadcast(list(model.parameters()))
torch.manual_seed(0)
first = electramed.TokenTagger(model.config, 3)
assert all(map(torch.equal, model.parameters(), first.parameters()))
try:
    device.agree({"torch": "2.13", "--steps": str(device.rank), "data": "abc"})
except ValueError as error:
    print(error)
"""


def test_processes_take_the_weights_of_the_first_and_find_out_where_they_differ(tmp_path):
    """Two processes, as torchrun starts them. Both say what differs, and the first says whom it waits for."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    setting = {**os.environ, "MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    processes = [subprocess.Popen([sys.executable, "-c", PROCESS], text=True, stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE, cwd=os.path.dirname(electramed.__file__),
                                  env={**setting, "RANK": str(rank), "LOCAL_RANK": str(rank)})
                 for rank in range(2)]
    outputs = [process.communicate(timeout=300) for process in processes]
    for process, (output, errors) in zip(processes, outputs):
        assert process.returncode == 0, errors
        assert output == ("process 1 and process 0 differ in --steps: start all processes with the same "
                          "command, files and versions\n")
    assert "waiting for all 2 processes" in outputs[0][1] and "waiting" not in outputs[1][1]


# --- 9. Parity with transformers ---

@pytest.fixture
def transformers():
    reason = "transformers is not installed: pip install -e '.[parity]'"
    return pytest.importorskip("transformers", reason=reason)


def sized(preset, **changes):
    return dataclasses.replace(PRESETS[preset], **{"vocab_size": 1000, **IDS, **changes})


SHAPES = [      # a small vocabulary throughout: the embeddings' other side is that of the preset
    pytest.param(sized("small"), id="small"),
    pytest.param(sized("small", embedding_size=256, num_hidden_layers=3), id="E = H"),
    pytest.param(sized("base", num_hidden_layers=2), id="base, two layers"),
    pytest.param(sized("base", vocab_size=31090), id="base", marks=pytest.mark.slow)]     # one or two minutes


def their_models(transformers, config):
    """Random models of theirs, ElectraForPreTraining and ElectraForMaskedLM, tied as ours are."""
    discriminator, generator = (
        random_model(make(transformers.ElectraConfig(**json.loads(sizes.to_json()))), seed, scale=0.03)
        for make, sizes, seed in ((transformers.ElectraForPreTraining, config, 1),
                                  (transformers.ElectraForMaskedLM, config.generator(), 2)))
    generator.electra.embeddings = discriminator.electra.embeddings
    generator.generator_lm_head.weight = discriminator.electra.embeddings.word_embeddings.weight
    return discriminator, generator


def their_loss(discriminator, generator, masked, real, types):
    """The joint loss from the logits of transformers' two models, a row and a slot at a time."""
    theirs = {"attention_mask": real, "token_type_ids": types}
    logits = generator(input_ids=masked.input_ids, **theirs).logits                             # (B, T, V)
    corrupted, nll = masked.input_ids.clone(), []
    original = masked.input_ids.scatter(1, masked.positions, masked.original_ids)
    for row, slot in masked.weights.nonzero().tolist():
        position = masked.positions[row, slot]
        log_softmax = logits[row, position] - logits[row, position].logsumexp(0)
        nll.append(-log_softmax[original[row, position]])
        cumulative = log_softmax.detach().double().exp().cumsum(0)                  # (V,)
        corrupted[row, position] = int((cumulative <= masked.uniform[row, slot]).sum())
    is_replaced = corrupted != original
    judged = discriminator(input_ids=corrupted, **theirs).logits                                # (B, T)
    probability = judged.sigmoid()
    bce = -torch.where(is_replaced, probability.log(), (1 - probability).log())[real == 1]
    return torch.stack(nll).mean() + 50 * bce.mean(), is_replaced


@pytest.mark.parametrize("config", SHAPES)
def test_transformers_and_ours_agree_in_logits_loss_and_gradients_there_and_back(
        transformers, tmp_path, config):
    """Theirs loaded by us: logits of real tokens, joint loss, every gradient; ours loaded by them, by key."""
    discriminator, generator = their_models(transformers, config)
    discriminator.save_pretrained(tmp_path / "theirs")
    generator.save_pretrained(tmp_path / "theirs" / "generator")
    model = load_pretrained(tmp_path / "theirs").eval()
    assert model.generator_config == dataclasses.replace(config.generator(), **{
        name: getattr(model.generator_config, name) for name in ("generator_size", "mask_prob")})   # idle

    ids, real, types = random_batch([40, 23, 5], 40, config.vocab_size)            # padding and both segments
    batch = {"input_ids": ids, "attention_mask": real, "token_type_ids": types}
    is_real = real == 1
    with torch.no_grad():
        for ours, logits in ((model.discriminator_logits(ids, real, types), discriminator(**batch).logits),
                             (model.generator_logits(ids, real, types), generator(**batch).logits)):
            assert logits[is_real].std() > 0.05                                    # a comparison of something
            assert (ours - logits)[is_real].abs().max() < 1e-5

    masked = mask_tokens(ids, real, config, torch.Generator().manual_seed(0))
    output = model(masked, real, types)
    loss, is_replaced = their_loss(discriminator, generator, masked, real, types)
    assert torch.equal(output.is_replaced, is_replaced) and is_replaced.any()
    assert output.loss.item() == pytest.approx(loss.item(), rel=1e-6)
    output.loss.backward(), loss.backward()
    for ours, theirs in ((model.discriminator, discriminator), (model.generator, generator)):
        theirs = dict(theirs.named_parameters())
        assert theirs.keys() == dict(ours.named_parameters()).keys()
        for name, parameter in ours.named_parameters():
            expected = theirs[name].grad
            # softmax ignores a constant in all keys: the gradient of their bias is 0 up to rounding
            size = 1.0 if name.endswith("key.bias") else expected.norm().item()
            assert (parameter.grad - expected).norm().item() < 2e-5 * size, name

    save_pretrained(model, tmp_path / "ours")
    for make, theirs, folder in ((transformers.ElectraForPreTraining, discriminator, tmp_path / "ours"),
                                 (transformers.ElectraForMaskedLM, generator, tmp_path / "ours/generator")):
        loaded, report = make.from_pretrained(folder, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
        assert same_weights(loaded, theirs)


# --- What belongs to another model ---

def test_an_encoder_of_other_heads_is_refused(tiny_config, tmp_path):
    """Shapes do not tell the number of heads."""
    save_pretrained(ElectraForPretraining(tiny_config), tmp_path)
    other = dataclasses.replace(tiny_config, num_attention_heads=2 * tiny_config.num_attention_heads)
    with pytest.raises(ValueError, match="num_attention_heads is .* of this TokenTagger"):
        load_encoder(TokenTagger(other, 3), tmp_path)


@pytest.mark.parametrize("labels", [["O"], ["O", "B-D", "O"], ["O", "B-D", "I-D", "B-E"]])
def test_labels_of_another_model_replace_no_good_folder(tiny_config, tiny_tokenizer, tmp_path, labels):
    model = TokenTagger(tiny_config, 3)
    save_pretrained(model, tmp_path, tiny_tokenizer, ["O", "B-D", "I-D"])
    with pytest.raises(ValueError, match="expected 3 different ones"):
        save_pretrained(model, tmp_path, tiny_tokenizer, labels)
    with pytest.raises(ValueError, match="vocab_size"):
        larger = type(tiny_tokenizer)([*tiny_tokenizer.pieces, "more"])
        save_pretrained(model, tmp_path, larger, ["O", "B-D", "I-D"])
    assert load_head(tmp_path)[1] == ["O", "B-D", "I-D"]


@pytest.mark.parametrize("key, value", [
    ("id2label", ["a", 1]), ("id2label", 4), ("id2label", {"0": 0, "1": 1}), ("layer_norm_eps", "1e-12"),
    ("mask_prob", None)])
def test_values_of_other_types_in_config_json_are_named(tiny_config, tiny_tokenizer, tmp_path, key, value):
    save_pretrained(SequenceClassifier(tiny_config, 2), tmp_path, tiny_tokenizer)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(ValueError, match=key):
        load_head(tmp_path)


def test_a_port_in_use_is_named_where_processes_meet(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for name, value in {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1",
                            "MASTER_PORT": taken.getsockname()[1]}.items():
            monkeypatch.setenv(name, str(value))
        with pytest.raises(OSError, match="see MASTER_ADDR and MASTER_PORT"):
            electramed.Device("cpu", "float32").join()
