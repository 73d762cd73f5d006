"""Check tokenizer.py.

Contents
  A worked example          pieces, ids, offsets and words that can be followed on paper
  Properties                what holds for any text: plain and fast path agree, offsets slice back, ...
  Files and errors          saving, loading, and what is refused
  Learning                  the fast learner merges as the plain one does
  Treebank tokens           equal to those of NLTK
  Parity                    ids and offsets equal to those of the `tokenizers` package
"""
import itertools
import json
import lzma
import os
import pickle
import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import regex
from hypothesis import given, settings, strategies as st

import tokenizer as module
from tokenizer import (
    SPECIAL_TOKENS, Casing, CharacterTable, Tokenizer, count_words, join_pair, learn_vocab, merge_pairs,
    merge_pairs_plainly, normalise_character, preprocess_bluebert, read_object, split_characters, split_words,
    split_words_with_positions, treebank_tokenize, write_bytes)

ROOT = Path(module.__file__).parent
DATA = os.environ.get("ELECTRAMED_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="set ELECTRAMED_DATA to the folder of real data")

# Ids on paper:  0        1        2        3        4         5       6           7    8    9        10
PAPER_VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "inter", "##leukin", "-", "2", "rises", "##s"]

# A vocabulary that spells every word of ALPHABET, whole or in parts, so that [UNK] does not hide mistakes.
ALPHABET = "aAbBéÉñ\u0301İΣςσµμﬁ中豈한-.≮ \t\u00a0\u2028\x00\x0b\u00ad\u200b\ufffd\ue000"
LOWER = CharacterTable(Casing())
LETTERS = sorted({part for word in split_words(" ".join(ALPHABET), LOWER) for part in word})
CONTINUED = ["##" + letter for letter in LETTERS]
RICH = Tokenizer([*SPECIAL_TOKENS, *LETTERS, *CONTINUED, "ab", "##ab", "aba", "##bb"])
CASED = Tokenizer([*SPECIAL_TOKENS, *"aAbBé", "##a", "##A", "##é", "Ab", "##b"], lowercase=False)

spelled_text = st.text(alphabet=ALPHABET, max_size=30)
any_text = st.one_of(spelled_text, st.text(max_size=30), st.text(st.characters(), max_size=30))


def sample_lines(size):
    """Real lines of together about `size` bytes, from the start of each file of the corpus."""
    lines = []
    paths = sorted(Path(DATA, "pretrain", "corpus").glob("*.txt.xz"))
    for path in paths:
        with lzma.open(path) as file:
            lines += file.read(size // len(paths)).decode("utf-8", errors="ignore").split("\n")
    return lines


# --- A worked example ---

def test_the_worked_example():
    tokenizer = Tokenizer(PAPER_VOCAB)
    #       012345678901234567890123
    text = "Interleukins-2  rises, 2"
    # The comma is not in the vocabulary: a word of its own, it becomes [UNK] alone.
    assert tokenizer.tokenize(text) == ["inter", "##leukin", "##s", "-", "2", "rises", "[UNK]", "2"]
    assert tokenizer.encode(text) == [5, 6, 10, 7, 8, 9, 1, 8]
    ids, offsets = tokenizer.encode_with_offsets(text)
    assert ids == tokenizer.encode(text)
    assert offsets == [(0, 5), (5, 11), (11, 12), (12, 13), (13, 14), (16, 21), (21, 22), (23, 24)]
    ids, word_index = tokenizer.encode_words(["Interleukin-2", "\x00", "rises"])
    assert (ids, word_index) == ([5, 6, 7, 8, 1, 9], [0, 0, 0, 0, 1, 2])
    assert tokenizer.decode([2, 5, 6, 10, 4, 9, 1, 3, 0, 0]) == "interleukins [MASK] rises [UNK]"
    assert tokenizer.encode_batch([text, ""]) == [tokenizer.encode(text), []]


def test_ids_of_special_tokens_are_looked_up_by_line():
    tokenizer = Tokenizer(["", "[MASK]", "[SEP]", "x", "[CLS]", "[UNK]", "[PAD]"])
    ids = tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id
    assert ids == (6, 5, 4, 2, 1)


@pytest.mark.parametrize("text, words", [
    ("E. coli's\t±3°C", ["e", ".", "coli", "'", "s", "±3°c"]),
    ("a\x00b\x0bc\ufffdd\u200be\u00adf\ue000", ["abcdef"]),              # dropped, so the parts join
    ("a\u00a0b\u2028c\nd\u3000e", ["a", "b", "c", "d", "e"]),            # all white space is a space
    ("中文x한", ["中", "文", "x\u1112\u1161\u11ab"]),                      # Hangul decomposes, and stays a word
    ("Ångström cafe\u0301 İ ≮", ["angstrom", "cafe", "i", "<"]),
    ("ΟΔΟΣ ﬁ µ μ", ["οδοσ", "ﬁ", "\u00b5", "\u03bc"]),                   # no final sigma; µ is not μ
    ("[MASK]", ["[", "mask", "]"]),
])
def test_words_are_cleaned_and_lower_cased(text, words):
    assert split_words(text, LOWER) == words


def test_cased_words_keep_capitals_and_accents():
    assert split_words("Ångström ΟΔΟΣ cafe\u0301-中", CharacterTable(Casing(False))) == [
        "Ångström", "ΟΔΟΣ", "cafe\u0301", "-", "中"]
    # There is no ##B: the A before it is not given alone either.
    assert CASED.tokenize("Aba aAé AB") == ["Ab", "##a", "a", "##A", "##é", "[UNK]"]


@pytest.mark.parametrize("text, offsets", [
    ("İa", [(0, 1), (1, 2)]),                # lower-cases to two characters, one of them an accent
    ("a\u0301a", [(0, 1), (2, 3)]),          # the accent belongs to no piece
    ("b\u00ada\u200bb", [(0, 1), (2, 5)]),   # what is removed inside a piece lies in its range
    ("한", [(0, 1)] * 3),                    # three letters of one syllable
    ("a中b", [(0, 1), (1, 2), (2, 3)]),
    ("\x00\ufffda.", [(2, 3), (3, 4)]),
])
def test_offsets_point_into_the_original(text, offsets):
    assert RICH.encode_with_offsets(text)[1] == offsets


def test_word_of_a_hundred_characters_is_spelled_and_one_more_is_unknown():
    assert RICH.tokenize("a" * 100) == ["a"] + ["##a"] * 99
    assert RICH.tokenize("a" * 101 + " a") == ["[UNK]", "a"]
    assert RICH.encode_with_offsets(" " + "a" * 101)[1] == [(1, 102)]


def normalise_by_category(character, lowercase):
    """The oracle: the same rules by the category that Python's own tables give to a character."""
    def is_punctuation(part):
        return unicodedata.category(part)[0] == "P" or "!" <= part <= "~" and not part.isalnum()

    category = unicodedata.category(character)
    if character in "\t\n\r" or category[0] == "Z":
        return " "
    if category in ("Cc", "Cf", "Co", "Cs") or character == "\ufffd":
        return ""
    kept = character
    if lowercase:
        decomposed = unicodedata.normalize("NFD", character.lower())
        kept = "".join(part for part in decomposed if unicodedata.category(part) != "Mn")
    blocks = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2A6DF), (0x2A700, 0x2CEAF),
              (0x2F800, 0x2FA1F))
    if any(first <= ord(character) <= last for first, last in blocks):
        return f" {kept} "
    return "".join(f" {part} " if is_punctuation(part) else part for part in kept)


@pytest.mark.skipif(unicodedata.unidata_version != "14.0.0",
                    reason="compares with the tables of Unicode 14.0")
@pytest.mark.parametrize("lowercase, exceptions", [
    # a mark that takes no space in Unicode 14.0, one that does since 16.0
    (True, ["\U0001171e"]),
    (False, [])])
def test_unicode_properties_equal_the_categories_of_python(lowercase, exceptions):
    """True for every character that Python's tables have; regex alone knows those added to Unicode later."""
    known = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) != "Cn"]
    assert len(known) > 280_000
    assert [character for character in known if normalise_character(character, Casing(lowercase))
            != normalise_by_category(character, lowercase)] == exceptions


# --- Properties ---

@given(any_text)
def test_any_text_gives_pieces_of_the_vocabulary_and_the_same_ids_with_offsets(text):
    for tokenizer in (RICH, CASED):
        ids = tokenizer.encode(text)
        assert [tokenizer.vocab[piece] for piece in tokenizer.tokenize(text)] == ids
        assert tokenizer.encode_with_offsets(text)[0] == ids
        assert isinstance(tokenizer.decode(ids), str)


def spelled(tokenizer, word):
    """The pieces of one normalised word."""
    return [tokenizer.pieces[piece_id] for piece_id in tokenizer.spell(word)]


def encode_plainly(tokenizer, text):
    """The oracle of the fast path: ids and offsets without any memory."""
    ids, offsets = [], []
    for word, positions in split_words_with_positions(text, CharacterTable(tokenizer.casing)):
        start = 0
        for piece in spelled(tokenizer, word):
            length = len(word) if piece == "[UNK]" else len(piece.removeprefix("##"))
            ids.append(tokenizer.vocab[piece])
            offsets.append((positions[start], positions[start + length - 1] + 1))
            start += length
    return ids, offsets


# Over-long words, and all that str.split() takes for white space beside what cleaning does.
long_text = st.lists(st.one_of(
    st.sampled_from(["ab", "aba,", "(bab)", "É-ab", "a" * 100, "a" * 101, "ab" * 60 + ".", "x", "한a", " ",
                     "\ta\n"]),
    st.text(ALPHABET + "\x1c\x1f\x85\u2029\u3000\x7f", max_size=6), st.text(max_size=6)),
    max_size=8).map(" ".join)


@pytest.mark.parametrize("size", [3, 2 ** 16])
def test_the_fast_path_equals_the_plain_one_on_any_text_and_stays_small(monkeypatch, size):
    monkeypatch.setattr(module, "REMEMBERED_WORDS", size)
    tokenizers = [Tokenizer(old.pieces, old.lowercase) for old in (RICH, CASED)]

    @given(st.lists(st.one_of(long_text, any_text), max_size=4))
    def check(texts):
        for tokenizer in tokenizers:
            plain = [encode_plainly(tokenizer, text) for text in texts]
            for _ in "12":    # the second time from memory
                assert [tokenizer.encode_with_offsets(text) for text in texts] == plain
                assert tokenizer.encode_batch(texts) == [ids for ids, _ in plain]
            assert tokenizer._spelled.cache_info().currsize <= size

    check()
    # it did remember
    assert size == 3 or all(tokenizer._spelled.cache_info().currsize > 50 for tokenizer in tokenizers)


def test_changing_a_result_does_not_change_what_is_remembered():
    tokenizer = Tokenizer(RICH.pieces)
    for _ in "12":
        ids, offsets = tokenizer.encode_with_offsets("ab aba")
        assert (ids, offsets) == encode_plainly(RICH, "ab aba")
        tokenizer.encode("ab").append(0)
        assert tokenizer.encode_batch(["ab"]) == [ids[:1]]
        ids.clear(), offsets.clear()


@given(any_text, any_text)
def test_tokens_of_two_texts_joined_by_a_space_are_those_of_each(first, second):
    assert RICH.tokenize(first + " " + second) == RICH.tokenize(first) + RICH.tokenize(second)


def longest_match(word, vocab, prefix=""):
    """The oracle: the longest piece that starts the word, then the rest's; None if one is missing."""
    if not word:
        return []
    for end in range(len(word), 0, -1):
        if prefix + word[:end] in vocab:
            rest = longest_match(word[end:], vocab, "##")
            return None if rest is None else [prefix + word[:end], *rest]
    return None


@given(st.text("abéx", min_size=1, max_size=20))
def test_pieces_are_those_of_a_recursive_longest_match_and_join_to_the_word(word):
    for tokenizer in (RICH, CASED):
        pieces = spelled(tokenizer, word)
        assert pieces == (longest_match(word, tokenizer.vocab) or ["[UNK]"])
        if pieces != ["[UNK]"]:
            assert "".join(piece.removeprefix("##") for piece in pieces) == word


def test_a_word_of_the_vocabulary_is_one_piece():
    for piece in RICH.pieces[len(SPECIAL_TOKENS):]:
        if not piece.startswith("##"):
            assert spelled(RICH, piece) == [piece]


@given(st.text(st.characters(max_codepoint=127), max_size=40))
def test_upper_casing_ascii_changes_nothing(text):
    assert RICH.encode_with_offsets(text.upper()) == RICH.encode_with_offsets(text)


@given(any_text)
def test_normalising_a_normalised_word_changes_nothing(text):
    for word in split_words(text, LOWER):
        assert split_words(word, LOWER) == [word]


@given(any_text)
def test_offsets_slice_back_to_the_source(text):
    """What a range cuts out of the source normalises to the piece, or (Hangul) holds it."""
    ids, offsets = RICH.encode_with_offsets(text)
    end_before = 0
    for piece_id, (start, end) in zip(ids, offsets):
        assert 0 <= start < end <= len(text)
        cut = "".join(split_words(text[start:end], LOWER))
        piece = RICH.pieces[piece_id].removeprefix("##")
        if piece_id == RICH.unk_id:
            assert start >= end_before
        elif len(LOWER[ord(text[start])].strip()) == 1:
            assert cut == piece and start >= end_before
        else:
            assert piece in cut
        end_before = end


@given(st.lists(any_text, max_size=6))
def test_every_word_keeps_a_piece(words):
    ids, word_index = RICH.encode_words(words)
    assert sorted(set(word_index)) == list(range(len(words))) and word_index == sorted(word_index)
    for index, word in enumerate(words):
        assert [i for i, at in zip(ids, word_index) if at == index] == (RICH.encode(word) or [RICH.unk_id])


@given(st.lists(st.text("ab", min_size=1, max_size=8), max_size=6))
def test_decoding_gives_the_words_back(words):
    assert RICH.decode(RICH.encode(" ".join(words))) == " ".join(words)


def test_a_pickled_tokenizer_gives_the_same_ids():
    RICH.encode("Abé")
    for tokenizer in (RICH, CASED):
        copy = pickle.loads(pickle.dumps(tokenizer))
        assert (copy.pieces, copy.casing) == (tokenizer.pieces, tokenizer.casing)
        assert copy.encode("aÉ 中ba") == tokenizer.encode("aÉ 中ba")


# --- Files and errors ---

@pytest.mark.parametrize("lowercase", [True, False])
def test_saving_and_loading_keeps_pieces_ids_and_casing(tmp_path, lowercase):
    pieces = [*SPECIAL_TOKENS, "a", "", "\u2028", "\x85b", "##é"]    # an empty piece, exotic separators
    Tokenizer(pieces, lowercase).save(tmp_path / "model")
    for path in (tmp_path / "model", tmp_path / "model" / "vocab.txt"):
        loaded = Tokenizer.from_file(path)
        assert (loaded.pieces, loaded.lowercase) == (pieces, lowercase)
        assert Tokenizer.from_file(path, lowercase=True).lowercase
    names = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert names == ["tokenizer_config.json", "vocab.txt"]


def test_the_last_line_may_end_the_file_or_be_empty_and_carriage_returns_go(tmp_path):
    path = tmp_path / "vocab.txt"
    for ending, last in (("a", "a"), ("a\n", "a"), ("a\n\n", "")):
        path.write_bytes("\n".join([*SPECIAL_TOKENS, ending]).encode())
        assert Tokenizer.from_file(path).pieces[-1] == last
    path.write_bytes("\r\n".join([*SPECIAL_TOKENS, "a", ""]).encode())
    assert Tokenizer.from_file(path).pieces == [*SPECIAL_TOKENS, "a"]


@pytest.mark.parametrize("content, message", [
    (b"", r"vocab\.txt: no \[PAD\], \[UNK\], .* among the 1 lines"),
    (b"[PAD]\n[UNK]\na\nb\n", r"vocab\.txt: no \[CLS\], \[SEP\], \[MASK\] among the 4 lines"),
    (b"[PAD]\na\n[UNK]\na\n", r"vocab\.txt: lines 2 and 4 both hold 'a'"),
    (b"[PAD]\n\n[UNK]\n\n", r"vocab\.txt: lines 2 and 4 both hold ''"),
    (b"[PAD]\n[UNK]\n\xff\xfe\n", r"vocab\.txt line 3: not UTF-8"),
])
def test_wrong_vocabularies_are_refused_with_path_and_line(tmp_path, content, message):
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Tokenizer.from_file(tmp_path)


def test_a_missing_vocabulary_is_named(tmp_path):
    for path, name in ((tmp_path / "none.txt", "none.txt"), (tmp_path, "vocab.txt")):
        with pytest.raises(FileNotFoundError, match=name):
            Tokenizer.from_file(path)


@pytest.mark.parametrize("config, message", [
    ("{", "tokenizer_config.json: JSON that cannot be read: .*line 1"),
    ("[]", "tokenizer_config.json: expected a JSON object"),
    ('{"do_lower_case": "no"}', r"do_lower_case has 'no', .*: only \(True, False\) can be honoured"),
    ('{"do_lower_case": null}', "do_lower_case has None"),
    ('{"strip_accents": "\\u0007"}', r"strip_accents has '\\x07'"),     # shown, not rung
    ('\xff{}', "tokenizer_config.json: JSON that cannot be read"),
])
def test_a_broken_tokenizer_config_is_refused(tmp_path, config, message):
    RICH.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(config, encoding="latin-1")
    with pytest.raises(ValueError, match=message):
        Tokenizer.from_file(tmp_path)
    with pytest.raises(ValueError, match="tokenizer_config.json"):      # whatever casing the caller asks for
        Tokenizer.from_file(tmp_path, lowercase=False)


def test_a_casing_asked_for_leaves_the_other_settings_as_they_are(tmp_path):
    RICH.save(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text('{"do_lower_case": true, "strip_accents": true, "tokenize_chinese_chars": false}')
    casing = Tokenizer.from_file(tmp_path, lowercase=False).casing
    assert casing == Casing(do_lower_case=False, strip_accents=None, tokenize_chinese_chars=False)
    config.write_text('{"max_input_chars_per_word": 200}')
    with pytest.raises(ValueError, match="max_input_chars_per_word has 200"):
        Tokenizer.from_file(tmp_path, lowercase=False)


@pytest.mark.parametrize("setting", [
    {"additional_special_tokens": ["@GENE$"]}, {"extra_special_tokens": ["@GENE$"]},
    {"extra_special_tokens": {"gene": "@GENE$"}}, {"never_split": ["[CLS]", "@GENE$"]},
    {"added_tokens_decoder": {"0": {"content": "[PAD]"}, "7": {"content": "@GENE$", "special": False}}}])
def test_words_that_were_added_to_a_vocabulary_are_refused_by_name(tmp_path, setting):
    """transformers keeps an added @GENE$ whole; here it would be cut, with other ids."""
    RICH.save(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps(setting))
    with pytest.raises(ValueError, match=rf"{[*setting][0]} has '@GENE\$', which would change ids"):
        Tokenizer.from_file(tmp_path)
    config.write_text('{"additional_special_tokens": [], "extra_special_tokens": {}, "never_split": null}')
    assert Tokenizer.from_file(tmp_path).pieces == RICH.pieces


ACCENTED = [*SPECIAL_TOKENS, "mochte", "möchte", "Möchte", "cafe", "café", "Cafe", "##中", "中", "文",
            "x", "##x", "##文", "-", "."]


@pytest.mark.parametrize("settings, pieces", [
    ({"do_lower_case": True, "strip_accents": False}, "möchte café x 中 中 文"),
    ({"do_lower_case": False, "strip_accents": True}, "Mochte Cafe x 中 中 文"),
    ({"do_lower_case": True, "tokenize_chinese_chars": False}, "mochte cafe x ##中 中 ##文")])
def test_settings_that_change_ids_are_honoured_kept_and_sent_to_other_processes(tmp_path, settings, pieces):
    vocabulary = [*ACCENTED, "Mochte"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    ours = Tokenizer.from_file(tmp_path)
    assert " ".join(ours.tokenize("Möchte Café x中 中文")) == pieces
    ours.save(tmp_path / "copy")
    for copy in (Tokenizer.from_file(tmp_path / "copy"), pickle.loads(pickle.dumps(ours))):
        assert copy.casing == ours.casing and copy.encode("Möchte Café") == ours.encode("Möchte Café")


@pytest.mark.parametrize("strip_accents", [None, True, False])
@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("ideographs", [True, False])
def test_ids_equal_the_compiled_packages_under_every_setting(tmp_path, lowercase, strip_accents, ideographs):
    """Also where tokenizer.json, as transformers 5 writes it, is all there is."""
    tokenizers = pytest.importorskip("tokenizers", reason="parity needs the tokenizers package")
    text = "Möchte CAFÉ İstanbul x中 中文 Cafe\u0301-b. σΟΔΟΣ ﬁ 한국 naïve α-Synuclein"
    pieces = [*SPECIAL_TOKENS, *sorted({form for part in (text, text.lower(), text.upper())
                                        for character in unicodedata.normalize("NFD", part) + part
                                        for form in (character, "##" + character) if character != " "})]
    (tmp_path / "vocab.txt").write_text("".join(piece + "\n" for piece in pieces), encoding="utf-8")
    config = {"do_lower_case": lowercase, "strip_accents": strip_accents,
              "tokenize_chinese_chars": ideographs}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = tokenizers.BertWordPieceTokenizer(str(tmp_path / "vocab.txt"), lowercase=lowercase,
                                               strip_accents=strip_accents, handle_chinese_chars=ideographs)
    expected = theirs.encode(text, add_special_tokens=False)
    ours = Tokenizer.from_file(tmp_path)
    assert ours.encode(text) == expected.ids and "[UNK]" not in ours.tokenize(text)
    (tmp_path / "new").mkdir()
    theirs.save(str(tmp_path / "new" / "tokenizer.json"))
    alone = Tokenizer.from_file(tmp_path / "new")
    assert (alone.pieces, alone.casing) == (ours.pieces, ours.casing)


@pytest.mark.parametrize("setting", [
    {"do_basic_tokenize": False}, {"never_split": ["IL-2"]}, {"clean_text": False}, {"unk_token": "<unk>"},
    {"unk_token": {"content": "<unk>"}}])
def test_settings_that_cannot_be_honoured_are_refused_by_name(tmp_path, setting):
    RICH.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(setting))
    with pytest.raises(ValueError, match=f"tokenizer_config.json: {[*setting][0]} has '?[FI<]"):
        Tokenizer.from_file(tmp_path)


@pytest.mark.parametrize("content, message", [
    ({"model": {"type": "BPE"}}, "expected WordPiece"), ([], "expected a JSON object"),
    ({"model": {"type": "WordPiece", "vocab": {"a": 3}}, "normalizer": {"type": "BertNormalizer"},
      "pre_tokenizer": {"type": "BertPreTokenizer"}}, "model.vocab"),
    ({"model": {"type": "WordPiece", "vocab": {"a": 0}, "continuing_subword_prefix": "@@"},
      "normalizer": {"type": "BertNormalizer"}, "pre_tokenizer": {"type": "BertPreTokenizer"}},
     "continuing_subword_prefix has '@@'"),
    ({"model": {"type": "WordPiece", "vocab": {"a": 0}}, "normalizer": {"type": "BertNormalizer"},
      "pre_tokenizer": {"type": "BertPreTokenizer"},
      "added_tokens": [{"content": "[CLS]"}, {"content": "@GENE$"}]},
     r"tokenizer.json: added_tokens has '@GENE\$'"),
    ({"model": {"type": "WordPiece", "vocab": {"a": 0}}, "normalizer": {"type": "BertNormalizer"},
      "pre_tokenizer": {"type": "BertPreTokenizer"}, "added_tokens": 5}, "added_tokens has 5")])
def test_a_tokenizer_json_of_another_kind_is_refused(tmp_path, content, message):
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        Tokenizer.from_file(tmp_path)


def write_folder(folder, pieces=RICH.pieces, config=None, normaliser=None, fast_pieces=None):
    """A folder as transformers 4 leaves it: vocab.txt, and both or one of the other two files."""
    (folder / "vocab.txt").write_text("".join(piece + "\n" for piece in pieces), encoding="utf-8")
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if normaliser is not None:
        vocab = {piece: index for index, piece in enumerate(fast_pieces or pieces)}
        (folder / "tokenizer.json").write_text(json.dumps({
            "model": {"type": "WordPiece", "vocab": vocab, "unk_token": "[UNK]"},
            "normalizer": {"type": "BertNormalizer", **normaliser},
            "pre_tokenizer": {"type": "BertPreTokenizer"}}))
    return folder


@pytest.mark.parametrize("config, normaliser, casing", [
    (None, {"lowercase": False}, Casing(False)),                    # what the vocabulary alone does not say
    ({}, {"lowercase": False, "strip_accents": None}, Casing(False)),
    ({"do_lower_case": False}, {"lowercase": False}, Casing(False)),
    ({"strip_accents": False}, {"lowercase": True, "strip_accents": False}, Casing(True, False)),
    ({"do_lower_case": True, "strip_accents": True}, {"lowercase": True, "strip_accents": None},
     Casing(True, True)),                                           # two ways of saying the same
    ({"do_lower_case": True, "strip_accents": False}, None, Casing(True, False))])
def test_all_files_of_a_folder_are_read(tmp_path, config, normaliser, casing):
    write_folder(tmp_path, config=config, normaliser=normaliser)
    for path in (tmp_path, tmp_path / "vocab.txt"):
        assert Tokenizer.from_file(path).casing == casing


@pytest.mark.parametrize("config, normaliser", [
    ({"do_lower_case": True}, {"lowercase": False}), ({"do_lower_case": False}, {"lowercase": True}),
    ({"do_lower_case": True, "strip_accents": None}, {"lowercase": True, "strip_accents": False}),
    ({"tokenize_chinese_chars": True}, {"handle_chinese_chars": False})])
def test_files_that_contradict_each_other_about_casing_are_refused(tmp_path, config, normaliser):
    write_folder(tmp_path, config=config, normaliser=normaliser)
    for path in (tmp_path, tmp_path / "vocab.txt", tmp_path / "tokenizer.json"):
        with pytest.raises(ValueError, match="tokenizer.json contradicts the files beside it: .*remove"):
            Tokenizer.from_file(path)


def test_two_files_with_other_pieces_and_words_added_in_one_of_them_are_refused(tmp_path):
    write_folder(tmp_path, normaliser={}, fast_pieces=RICH.pieces[::-1])
    with pytest.raises(ValueError, match="tokenizer.json contradicts the files beside it"):
        Tokenizer.from_file(tmp_path)
    content = json.loads(write_folder(tmp_path, normaliser={}).joinpath("tokenizer.json").read_text())
    content["added_tokens"] = [{"id": 0, "content": "[PAD]"}, {"id": 70, "content": "@GENE$"}]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"tokenizer.json: added_tokens has '@GENE\$'"):
        Tokenizer.from_file(tmp_path)


def test_asking_for_the_casing_that_the_files_say_keeps_their_accents(tmp_path):
    write_folder(tmp_path, config={"do_lower_case": True, "strip_accents": False})
    assert Tokenizer.from_file(tmp_path, lowercase=True).casing == Casing(True, False)
    assert Tokenizer.from_file(tmp_path, lowercase=False).casing == Casing(False, None)


def test_a_vocabulary_that_the_casing_cannot_reach_is_doubted_in_one_line():
    cased = [*SPECIAL_TOKENS, "[unused1]", "The", "gout", "##s", "BRCA", "##1"]
    assert Tokenizer(cased).tokenize("The gouts") == ["[UNK]", "gout", "##s"]
    doubt = Tokenizer(cased).casing_doubt()
    assert doubt.startswith("2 of 5 pieces, such as 'BRCA', are never used") and "--cased" in doubt
    assert "\n" not in doubt
    assert Tokenizer(cased, lowercase=False).casing_doubt() == ""
    assert Tokenizer([*cased, *"abcdef"]).casing_doubt() == ""           # 2 of 11 is less than a fifth
    accented = [*SPECIAL_TOKENS, "café", "caf", "##e", "rises"]
    assert "strip_accents" in Tokenizer(accented).casing_doubt()
    assert Tokenizer(accented, Casing(True, strip_accents=False)).casing_doubt() == ""
    assert Tokenizer(SPECIAL_TOKENS).casing_doubt() == ""


@needs_data
@pytest.mark.parametrize("name, lowercase, is_doubted", [
    ("scivocab", True, False), ("bio_electra", False, False), ("bio_electra", True, True)])
def test_the_published_vocabularies_are_doubted_under_the_wrong_casing_alone(name, lowercase, is_doubted):
    tokenizer = Tokenizer.from_file(Path(DATA, "vocab", name + ".txt"), lowercase)
    assert bool(tokenizer.casing_doubt()) == is_doubted


def test_one_text_in_place_of_a_list_is_refused():
    """It would be read letter by letter."""
    for function in (RICH.encode_batch, RICH.encode_words, count_words, lambda text: learn_vocab(text, 12)):
        with pytest.raises(ValueError, match="expected a list of texts, found the text 'low lower'"):
            function("low lower")
    with pytest.raises(ValueError, match="expected a list of pieces .*from_file.*, found .* 'vocab.txt'"):
        Tokenizer("vocab.txt")


@pytest.mark.parametrize("kind", [str, Path])
def test_a_file_is_written_whole_into_a_new_folder_and_read_back(tmp_path, kind):
    path = kind(tmp_path / "new" / "folder" / "a.json")
    write_bytes(path, b'{"a": 1}')
    assert read_object(path) == {"a": 1} and [*Path(path).parent.iterdir()] == [Path(path)]
    write_bytes(path, memoryview(b"[]"))
    with pytest.raises(ValueError, match="a.json: expected a JSON object, found list"):
        read_object(path)


def test_run_as_a_program_the_file_shows_what_it_is_for():
    result = subprocess.run([sys.executable, "tokenizer.py"], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "") and ">>> tokenizer.tokenize(" in result.stdout
    assert 5 < len(result.stdout.splitlines()) < 20


# --- Learning ---

small_texts = st.lists(st.text("abc A.", max_size=12), min_size=1, max_size=8).filter(
    lambda texts: any(text.strip() for text in texts))


def test_learning_that_can_be_followed_on_paper():
    # ##o ##w and l ##o are seen three times each; the first in code point order is joined first.
    assert learn_vocab(["low low", "lower"], 12) == [
        *SPECIAL_TOKENS, "##o", "##w", "l", "##e", "##r", "##ow", "low"]


def join_by_position(spelling, pair):
    """The oracle of `join_pair`: walk through the word, two pieces at a time where they are the pair."""
    joined, at = [], 0
    while at < len(spelling):
        step = 2 if tuple(spelling[at:at + 2]) == pair else 1
        joined.append("".join(spelling[at:at + step]))
        at += step
    return joined


@given(st.lists(st.sampled_from("ab"), max_size=9), st.sampled_from([("a", "b"), ("a", "a"), ("b", "a")]))
def test_a_pair_is_joined_wherever_it_stands_from_left_to_right(spelling, pair):
    assert join_pair(spelling, pair, "".join(pair)) == join_by_position(spelling, pair)


@given(small_texts)
def test_the_fast_learner_merges_as_the_plain_one_does(texts):
    words = count_words(texts)
    spellings = [split_characters(word) for word in words]
    plain = list(merge_pairs_plainly(spellings, list(words.values())))
    assert spellings == [split_characters(word) for word in words]          # the plain one changes nothing
    assert list(merge_pairs(spellings, list(words.values()))) == plain
    learnt = learn_vocab(texts, 1000)
    assert learnt[len(learnt) - len(set(plain)):] == list(dict.fromkeys(plain))


@needs_data
def test_the_fast_learner_merges_as_the_plain_one_does_on_real_text():
    words = count_words(sample_lines(20_000))
    spellings, counts = [split_characters(word) for word in words], list(words.values())
    plain = list(itertools.islice(merge_pairs_plainly(spellings, counts), 150))
    assert list(itertools.islice(merge_pairs(spellings, counts), 150)) == plain and len(plain) == 150


@given(small_texts, st.randoms())
def test_learning_does_not_depend_on_the_order_of_texts(texts, random):
    shuffled = list(texts)
    random.shuffle(shuffled)
    assert learn_vocab(shuffled, 20) == learn_vocab(texts, 20)


def test_learning_does_not_depend_on_the_hash_seed():
    command = "from tokenizer import *; print(learn_vocab(['abab baba abba cab'] * 3 + ['bc cb ac'] * 3, 25))"
    outputs = {
        subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True,
                       env={**os.environ, "PYTHONHASHSEED": seed}).stdout
        for seed in "12"}
    assert len(outputs) == 1 and "'[PAD]'" in outputs.pop()


@given(small_texts)
def test_learnt_pieces_are_distinct_and_spell_every_word_learnt_from(texts):
    tokenizer = Tokenizer(learn_vocab(texts, 24))
    assert tuple(tokenizer.pieces[:5]) == SPECIAL_TOKENS
    assert len(tokenizer.pieces) <= 24
    assert "[UNK]" not in tokenizer.tokenize(" ".join(texts))


def test_the_size_is_reached_exactly_where_there_are_enough_pairs():
    texts = ["the heart and the hearts of patients with heart failure", "a patient had heart failure"]
    for size in range(30, 43):
        assert len(learn_vocab(texts, size)) == size
    assert len(learn_vocab(texts, 10_000)) == 42       # no pair is left that occurs twice


def test_cased_learning_keeps_capitals_and_accents():
    pieces = learn_vocab(["Été Été IL"] * 2, 20, lowercase=False)
    assert "Été" in pieces and "IL" in pieces


def test_rare_characters_do_not_fill_a_small_vocabulary():
    flood = " ".join(chr(0x4E00 + index) for index in range(500))       # 500 ideographs, once each
    texts = ["abc abd bcd cab dab bad " * 10] * 40_000 + [flood]
    pieces = learn_vocab(texts, 120)
    assert sum("\u4e00" <= piece <= "\u9fff" for piece in pieces) <= 12    # a tenth, common ones included
    assert {"abc", "bad", "a", "##b"} <= set(pieces)


def test_size_without_room_for_the_alphabet_says_how_many_are_needed():
    with pytest.raises(ValueError, match="size 7 is too small: .* need at least 10"):
        learn_vocab(["low low", "lower"], 7)
    assert len(learn_vocab(["low low", "lower"], 10)) == 10


def test_learning_from_nothing_is_refused():
    with pytest.raises(ValueError, match="no words"):
        learn_vocab(["", " \x00"], 100)


@given(st.lists(any_text, max_size=5))
def test_counted_words_are_the_words_of_the_texts(texts):
    words = (word for text in texts for word in split_words(text, LOWER))
    assert count_words(texts) == Counter(word for word in words if len(word) <= 100)


# --- Treebank tokens ---

@pytest.mark.parametrize("text, tokens", [
    ("(don't.)", "( do n't . )"),
    ("E. coli grew 3,000-fold, i.e. 2:1.", "E. coli grew 3,000-fold , i.e. 2:1 ."),
    ('"Yes," they\'ll say: "cannot"', "`` Yes , '' they 'll say : `` can not ''"),
    ("the patient's and the patients' dose...50%", "the patient 's and the patients ' dose ... 50 %"),
    ("a--b; 'tis <c>?", "a -- b ; 't is < c > ?"),
    ("", ""),
    ("'tis'twas", "'t is 't was"),
])
def test_treebank_tokens_that_can_be_checked_on_paper(text, tokens):
    assert treebank_tokenize(text) == tokens.split()


@pytest.mark.parametrize("text, prepared", [
    ("Crohn’s disease (CD).", "crohn s disease ( cd ) ."),
    ("Alzheimer's  α–β 5 µg/ml", "alzheimer's 5 g/ml"),
    ("\u212b \u212a \t é", "k"),                       # a Kelvin sign lower-cases to an ASCII letter
    ("Don't\r\nmove", "do n't move"),                 # a line break is a space before words are cut
])
def test_prepared_text_that_can_be_checked_on_paper(text, prepared):
    assert preprocess_bluebert(text) == prepared


def test_treebank_tokens_equal_those_of_nltk():
    nltk = pytest.importorskip("nltk.tokenize", reason="parity needs nltk")
    theirs = nltk.TreebankWordTokenizer()
    parts = ["", " ", "  ", "\n", "\t", *(
        "' '' \" ` `` ( ) [ ] < > { } . ... , : ; -- - ? ! % $ a s S it 's 'll n't N'T 'RE cannot Cannot "
        "d'ye gimme gonna gotta lemme more'n wanna 'tis 'twas 'TWAS 3 10 can not é ٣ _").split()]
    # Python's \s has the characters 1C to 1F, that of the engine behind newer versions of nltk has not
    ascii_text = st.text([chr(code) for code in range(128) if not 0x1C <= code <= 0x1F], max_size=40)

    @settings(max_examples=600)
    @given(st.one_of(st.lists(st.sampled_from(parts), max_size=10).map("".join), ascii_text))
    def check(text):
        assert treebank_tokenize(text) == theirs.tokenize(text)

    check()
    for line in sample_lines(100_000) if DATA else []:
        assert treebank_tokenize(line) == theirs.tokenize(line)


@needs_data
def test_the_prepared_sample_equals_the_published_one_byte_for_byte():
    folder = Path(DATA, "pretrain", "corpus")
    raw, expected = ((folder / name).read_bytes().decode()
                     for name in ("sample_raw.txt", "sample_bluebert.txt"))
    assert "\n".join(map(preprocess_bluebert, raw.split("\n"))) == expected


# --- Parity ---

# The package's categories are those of Unicode 8.0 (2015), its lower-casing is newer than Python 3.11's. Ours
# are those of the regex package. These are all the characters of Unicode 14.0 (the tables of Python 3.11)
# that the two treat differently. Marks, punctuation and format characters that are newer still are left out:
# which of them are known depends on regex's version.
NEW_CLASSES = regex.compile(r"[\p{P}\p{Mn}\p{Cf}]")
DIFFERENT_EVER = {
    "punctuation since Unicode 9.0 or later; a letter to the package":
        "61D 9FD A76 C77 C84 1B7D-1B7E 2E43-2E4F 2E52-2E5D 10EAD 10F55-10F59 10F86-10F89 1144B-1144F "
        "1145A-1145B 1145D 11660-1166C 116B9 1183B 11944-11946 119E2 11A3F-11A46 11A9A-11A9C "
        "11A9E-11AA2 11C41-11C45 11C70-11C71 11EF7-11EF8 11FFF 12FF1-12FF2 16E97-16E9A 16FE2 "
        "1E95E-1E95F",
    "punctuation in Unicode 8.0, not any more":
        "166D 111C9",
    "format characters since Unicode 9.0 or later; kept by the package":
        "890-891 8E2 110CD 13430-13438",
    "ideographs of CJK Extension E where the package's range starts too late":
        "2B820-2B91F",
}
DIFFERENT_LOWERCASED = {
    "nonspacing marks (Mn) since Unicode 9.0 or later; kept by the package":
        "7FD 898-89F 8CA-8E1 9FE AFA-AFF B55 C04 C3C D00 D3B-D3C D81 EBA 180F 1885-1886 1ABF-1ACE "
        "1DF6-1DFB A82C A8C5 A8FF A9BD 10D24-10D27 10EAB-10EAC 10F46-10F50 10F82-10F85 11070 "
        "11073-11074 110C2 111C9 111CF 1123E 1133B 11438-1143F 11442-11444 11446 1145E 1182F-11837 "
        "11839-1183A 1193B-1193C 1193E 11943 119D4-119D7 119DA-119DB 119E0 11A01-11A0A 11A33-11A38 "
        "11A3B-11A3E 11A47 11A51-11A56 11A59-11A5B 11A8A-11A96 11A98-11A99 11C30-11C36 11C38-11C3D "
        "11C3F 11C92-11CA7 11CAA-11CB0 11CB2-11CB3 11CB5-11CB6 11D31-11D36 11D3A 11D3C-11D3D "
        "11D3F-11D45 11D47 11D90-11D91 11D95 11D97 11EF3-11EF4 16F4F 16FE4 1CF00-1CF2D 1CF30-1CF46 "
        "1E000-1E006 1E008-1E018 1E01B-1E021 1E023-1E024 1E026-1E02A 1E130-1E136 1E2AE 1E2EC-1E2EF "
        "1E944-1E94A",
    "nonspacing marks in Unicode 8.0, not any more":
        "1734 1171E",
    "decomposes into a mark the package does not know":
        "11938",
    "capitals that Python 3.11 does not know yet":
        "1C89 A7CB-A7CC A7CE A7D2 A7D4 A7DA A7DC 10D50-10D65 16EA0-16EB8",
}


def code_points(listing):
    """The numbers in a listing such as {"why": "61D 2E43-2E4F"}."""
    for part in " ".join(listing.values()).split():
        first, _, last = part.partition("-")
        yield from range(int(first, 16), int(last or first, 16) + 1)


def package_tokenizer(path, lowercase):
    """The package's tokenizer, told to take "[MASK]" in a text for text."""
    tokenizers = pytest.importorskip("tokenizers", reason="parity needs the tokenizers package")
    theirs = tokenizers.BertWordPieceTokenizer(str(path), lowercase=lowercase)
    theirs._tokenizer.encode_special_tokens = True
    return theirs


def assert_equal_to_package(ours, theirs, texts):
    """Compare ids and offsets."""
    for text, encoding in zip(texts, theirs.encode_batch(texts, add_special_tokens=False)):
        assert ours.encode_with_offsets(text) == (encoding.ids, encoding.offsets), text


@pytest.mark.skipif(unicodedata.unidata_version != "14.0.0",
                    reason="the list is that of Unicode 14.0, the tables of Python 3.11")
@pytest.mark.parametrize("lowercase", [False, True])
def test_only_the_listed_characters_differ_from_the_package(lowercase):
    tokenizers = pytest.importorskip("tokenizers", reason="parity needs the tokenizers package")
    normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
    splitter = tokenizers.pre_tokenizers.BertPreTokenizer()
    table = CharacterTable(Casing(lowercase))
    differing = set()
    for code_point in [*range(0xD800), *range(0xE000, 0x30000), *range(0xE0000, 0xE0200)]:
        text = f"a{chr(code_point)}b"
        theirs = [word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))]
        is_new = unicodedata.category(chr(code_point)) == "Cn" and NEW_CLASSES.match(chr(code_point))
        if split_words(text, table) != theirs and not is_new:
            differing.add(code_point)
    assert differing == set(code_points(DIFFERENT_EVER | (DIFFERENT_LOWERCASED if lowercase else {})))


@pytest.mark.parametrize("ours", [RICH, CASED], ids=["lowercased", "cased"])
def test_tricky_texts_equal_the_package(tmp_path, ours):
    ours.save(tmp_path)
    theirs = package_tokenizer(tmp_path / "vocab.txt", ours.lowercase)
    assert_equal_to_package(ours, theirs, [
        "", " ", "[MASK] [UNK]", "##a", "ab##ab", "a.b-A", "Abé ÉA", "a" * 100, "a" * 101, "a\u0301" * 101,
        "İAb ﬁ", "ΣΣ µμ", "\u212ba", "\u0301ab", "a\u0301\u0302b \u0344", "≮a\u1fefb", "한국어 한", "中文ab豈",
        "a\x00b\x0bc\ufffd\ue000", "b\u00ada\u200bb", "a\u2028b\x85a", "\ufeffab", "\U000f0000ab",
        "\U0001f600 ab"])

    @settings(max_examples=100)
    @given(st.lists(st.text(ALPHABET + "".join(map(chr, range(0x250))), max_size=20), max_size=5))
    def any_texts_too(texts):
        assert_equal_to_package(ours, theirs, texts)

    any_texts_too()


@needs_data
@pytest.mark.parametrize("name, lowercase", [("scivocab", True), ("bio_electra", False)])
def test_real_text_equals_the_package(name, lowercase):
    path = Path(DATA, "vocab", name + ".txt")
    lines = sample_lines(5_000_000)
    assert sum(map(len, lines)) > 4_500_000
    assert_equal_to_package(Tokenizer.from_file(path, lowercase), package_tokenizer(path, lowercase), lines)


@needs_data
def test_learnt_vocabulary_is_as_short_as_that_of_the_package():
    """Wordpieces for all words of the text: at most 1 % more than with theirs; unknown words: not more."""
    tokenizers = pytest.importorskip("tokenizers", reason="parity needs the tokenizers package")
    lines = sample_lines(500_000)
    theirs = tokenizers.BertWordPieceTokenizer(lowercase=True)
    theirs.train_from_iterator(lines, vocab_size=2000, show_progress=False)
    word_counts = count_words(lines)
    length, unknown = [], []
    for pieces in (learn_vocab(lines, 2000), sorted(theirs.get_vocab(), key=theirs.token_to_id)):
        tokenizer = Tokenizer(pieces)
        counted = [(count, spelled(tokenizer, word)) for word, count in word_counts.items()]
        length.append(sum(count * len(pieces) for count, pieces in counted))
        unknown.append(sum(count for count, pieces in counted if pieces[0] == "[UNK]"))
    assert length[0] <= 1.01 * length[1] and unknown[0] <= unknown[1]


def test_a_row_takes_an_array_of_ids(tiny_tokenizer):
    assert tiny_tokenizer.row("", np.array([0])).ids == [tiny_tokenizer.cls_id, tiny_tokenizer.sep_id, 0,
                                                        tiny_tokenizer.sep_id]


@pytest.mark.parametrize("vocab", [None, ["[PAD]"], {"[PAD]": "0"}, {"[PAD]": 1}])
def test_a_tokenizer_json_with_another_vocabulary_than_numbered_pieces_is_refused(tmp_path, vocab):
    content = {"model": {"type": "WordPiece", "vocab": vocab}, "normalizer": {"type": "BertNormalizer"},
               "pre_tokenizer": {"type": "BertPreTokenizer"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="expected pieces with the ids 0, 1, 2"):
        Tokenizer.from_file(tmp_path)
