"""What all tests share: hypothesis profiles, one tiny vocabulary, one tiny configuration."""
import os
from pathlib import Path

import hypothesis
import pytest
import torch

import electramed
import tokenizer

hypothesis.settings.register_profile("ci", derandomize=True, deadline=None)
hypothesis.settings.register_profile("dev", deadline=None)
# What a user's run may draw, CI draws first: random examples, and many of them.
hypothesis.settings.register_profile("search", deadline=None, max_examples=300, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def pytest_collection_modifyitems(items: list) -> None:
    """Mark the tests that hypothesis draws examples for: `pytest -m property` runs these alone."""
    for item in items:
        if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
            item.add_marker("property")


@pytest.fixture
def tiny_vocab() -> list[str]:
    """A vocabulary one can read at a glance: special tokens, a few words, letters and digits as pieces."""
    characters = "abcdefghijklmnopqrstuvwxyz0123456789"
    return [*SPECIAL, *".,:?()-@$", *characters, *(f"##{c}" for c in characters),
            "the", "drug", "gene", "treats", "in", "patients", "with", "fever"]


@pytest.fixture
def tiny_tokenizer(tiny_vocab: list[str]) -> tokenizer.Tokenizer:
    return tokenizer.Tokenizer(tiny_vocab)


@pytest.fixture
def tiny_config(tiny_vocab: list[str]) -> electramed.ElectraConfig:
    """Two layers, 16 wide, embeddings of 8: every part of the model exists, and nothing takes time."""
    return electramed.ElectraConfig(
        vocab_size=len(tiny_vocab), embedding_size=8, hidden_size=16, num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, pad_token_id=0, cls_token_id=2, sep_token_id=3, mask_token_id=4,
        generator_size=0.5)


@pytest.fixture
def real_data() -> Path:
    """The folder of real corpora and data sets; tests that need it skip where it is absent."""
    if not os.environ.get("ELECTRAMED_DATA"):
        pytest.skip("ELECTRAMED_DATA is not set: the real data sets are not here")
    return Path(os.environ["ELECTRAMED_DATA"])


@pytest.fixture(autouse=True)
def denormals():
    """Undo a setting of training on a CPU (denormals are 0): hypothesis needs floats as IEEE 754 has them."""
    yield
    torch.set_flush_denormal(False)
