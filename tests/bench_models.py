"""Measure the models that a pre-training run kept: when does [CLS] begin to look at the text?

    python tests/bench_models.py runs/electra --corpus shards --vocab vocab > models.csv

One row for each model in RUN/models, on the same held-out examples with the same masks:

    step, mlm_loss, discriminator_auc     as in eval.csv
    cls_on_words_1, cls_on_words_2, ...   for each layer: the share of the attention of [CLS] that goes to
                                          words, and not to [CLS] and [SEP]; the mean over heads and examples
    cls_sd, word_sd                       standard deviation over examples of the hidden states of [CLS] and
                                          of words, at the last layer. Near 0 it is the same in all texts

[CLS] is never replaced, so nothing in pre-training asks it to look at the text. The heads for relations,
yes/no questions and ranking read its state, so they need it to do so. On a CPU each model takes half a
minute.
"""
from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import NamedTuple

import torch

import data
import train_pretrain
from electramed import (Device, ElectraEncoder, ElectraForPretraining, MaskedLanguageModel, load_pretrained,
                        load_weights, pad_rows, read_config)

EXAMPLES = 256                          # held-out examples for the measures of [CLS]


class Look(NamedTuple):
    """Hold what [CLS] looks at, and how much its state and those of words vary over the examples."""

    on_words: list[float]               # for each layer: the share of the attention that goes to words
    cls_sd: float                       # of the states of [CLS]: the mean over their H entries
    word_sd: float                      # of the states of all words, likewise


@torch.no_grad()
def look(encoder: ElectraEncoder, shards: data.Shards, pad_id: int, special: list[int]) -> Look:
    """Follow the held-out examples through the encoder, layer by layer, and measure the attention of [CLS].

    This repeats ElectraEncoder.forward, because the model does not return its attention weights.
    special   the ids of [CLS] and [SEP], which are no words
    """
    numbers = shards.held_out[:EXAMPLES]
    batch = pad_rows([shards.example(number) for number in numbers], pad_id)
    device = encoder.embeddings.word_embeddings.weight.device
    ids, mask, segments = (tensor.to(device) for tensor in batch)                   # (B, T) each
    is_word = mask.bool() & ~torch.isin(ids, torch.tensor(special, device=device))  # (B, T)
    x = encoder.embeddings(ids, segments)
    if encoder.embeddings_project is not None:
        x = encoder.embeddings_project(x)                                           # (B, T, H)
    shares = []
    for layer in encoder.encoder["layer"]:
        # The attention weights of position 0 alone: softmax(q K^T / sqrt(D)), with no weight on padding.
        query, key = (layer.split_heads(layer.attention["self"][name](x)) for name in ("query", "key"))
        scores = query[:, :, :1] @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])   # (B, A, 1, T)
        weights = scores.masked_fill(~mask.bool()[:, None, None, :], -math.inf).softmax(-1)
        shares.append(float((weights[:, :, 0] * is_word[:, None, :]).sum(-1).mean()))
        x = layer(x, mask[:, None, None, :].bool())
    return Look(shares, float(x[:, 0].std(0).mean()), float(x[is_word].std(0).mean()))


def main(arguments: list[str]) -> int:
    """Print a row for each model of a run; return the exit status."""
    # 1. The options that the run recorded, with corpus and vocabulary as they are given here.
    run_folder = Path(arguments[0])
    given = train_pretrain.parse_options(train_pretrain.Options, "", arguments[1:])
    recorded = json.loads((run_folder / "options.json").read_text())
    values = {name: recorded[name] for name in train_pretrain.NAMES if name in recorded}
    options = dataclasses.replace(train_pretrain.Options(**values), corpus=given.corpus, vocab=given.vocab)
    tokenizer = train_pretrain.load_tokenizer(options.vocab, options)
    shards = data.open_shards(given.corpus[0])
    special = [tokenizer.cls_id, tokenizer.sep_id]
    device = Device.choose(given.device, "float32")
    # 2. Load each model, evaluate it as train_pretrain.py does, and look at its attention.
    for number, folder in enumerate(sorted(run_folder.glob("models/step-*"))):
        model: train_pretrain.Model
        if options.objective == "electra":
            model = load_pretrained(folder)
        else:
            model = MaskedLanguageModel(read_config(folder).with_tokenizer(tokenizer))
            load_weights(model, folder)
        is_electra = isinstance(model, ElectraForPretraining)
        encoder = model.discriminator.electra if is_electra else model.electra
        run = train_pretrain.Run(run_folder, options, device, tokenizer, shards, model.to(device.kind), None)
        step = int(folder.name.removeprefix("step-"))
        scores = train_pretrain.evaluate(step, train_pretrain.held_out_outputs(run), run.options.objective)
        found = look(encoder.eval(), shards, tokenizer.pad_id, special)
        if not number:
            layers = [f"cls_on_words_{layer}" for layer in range(1, len(found.on_words) + 1)]
            print(",".join(["step", "mlm_loss", "discriminator_auc", *layers, "cls_sd", "word_sd"]))
        row = [scores.mlm_loss, scores.discriminator_auc, *found.on_words, found.cls_sd, found.word_sd]
        print(",".join([str(step), *(f"{value:.4f}" for value in row)]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(data.run_command(lambda: main(sys.argv[1:])))
