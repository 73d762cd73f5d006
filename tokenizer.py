"""Turn text into wordpieces, and wordpieces back into the characters they came from.

>>> from tokenizer import Tokenizer, learn_vocab
>>> vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "inter", "##leukin", "-", "2", "rises", "."]
>>> tokenizer = Tokenizer(vocabulary)              # or Tokenizer.from_file("vocab.txt")
>>> tokenizer.tokenize("Interleukin-2 rises.")
['inter', '##leukin', '-', '2', 'rises', '.']
>>> tokenizer.encode("Interleukin-2 rises.")       # the numbers of these pieces in the vocabulary
[5, 6, 7, 8, 9, 10]
>>> tokenizer.encode_with_offsets("Interleukin-2")     # and where each piece stands in the text
([5, 6, 7, 8], [(0, 5), (5, 11), (11, 12), (12, 13)])
>>> learn_vocab(["low low", "lower"], size=12)[5:]     # after the five special tokens
['##o', '##w', 'l', '##e', '##r', '##ow', 'low']

After reading this file you hold the whole of BERT's tokenizer: how a text is cleaned, cut into words and
spelled with the pieces of a vocabulary; how each piece is traced back to the original characters; what makes
this fast; how such a vocabulary is learnt from a corpus; and how the text that ELECTRAMed was trained on was
prepared.

This module is a library and stands first in the flow: data.py turns corpora and task files into ids with it
(and has the command that learns a vocabulary), train_finetune.py turns predictions back into text with its
offsets. Only `Tokenizer.row` adds [CLS] and [SEP]; "[MASK]" in a text is ordinary text, so no document can
smuggle in a special token. It does not truncate or pad: both belong to batches.

Sources: tokenization.py of the official BERT and ELECTRA code; the compiled `tokenizers` package, which gives
the same ids on real text (tests/test_tokenizer.py lists the Unicode characters where it does not). Learning
follows Sennrich et al. 2016 (merge the most frequent pair), as that package does: Google never released its
own program. Treebank tokens are those of Robert MacIntyre's sed script, in the form that NLTK gave it.

Contents
  1. Characters      2. Words                      3. Vocabulary files
  4. Tokenizer       5. Learning a vocabulary      6. Treebank tokens
"""
import heapq
import json
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, NamedTuple

import regex

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_WORD_LENGTH = 100         # characters; a longer word is one [UNK] (`tokenizers`: 100, official: 200)
REMEMBERED_WORDS = 2 ** 16    # whose spelling a Tokenizer keeps: about 20 MB
MIN_PAIR_COUNT = 2            # occurrences; a pair of pieces seen once says nothing about the language
COMMON_CHARACTERS = 0.9999    # share of a corpus's characters that the alphabet must be able to spell
RARE_CHARACTERS = 0.1         # share of the vocabulary that the alphabet may fill with rarer characters


# --- 1. Characters ---
#
# The classes of characters are Unicode properties: \p{P} is punctuation, \p{Mn} a mark that takes no space
# (an accent, say), \p{Z} a separator. The `regex` package knows them; Python's own `re` does not. Its tables
# are newer than those of Python 3.11 (Unicode 14.0): a character added to Unicode later may have a class here
# and none in `unicodedata`. Lower-casing and decomposition are Python's own.

WHITE_SPACE = regex.compile(r"[\t\n\r\p{Z}]")
# Controls, format characters, private use, halves of surrogate pairs, and what decoders write for a bad byte.
# U+0000 is one of the controls. Unassigned characters (\p{Cn}, also a part of \p{C}) are kept.
DROPPED = regex.compile(r"[\p{Cc}\p{Cf}\p{Co}\p{Cs}\ufffd]")
ACCENT = regex.compile(r"\p{Mn}")
# Besides Unicode's punctuation, BERT sets these ASCII symbols apart, as words of their own. Other symbols
# (±, °, €, ©) stay inside words.
PUNCTUATION = regex.compile(r"[\p{P}$+<=>^`|~]")
# The ideographs that are written without spaces, so that each is a word: the CJK Unified and Compatibility
# blocks. Kana and Hangul are left out on purpose: Japanese and Korean words are longer than one character.
IDEOGRAPH = regex.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
                          "\U00020000-\U0002a6df\U0002a700-\U0002ceaf\U0002f800-\U0002fa1f]")


class Casing(NamedTuple):
    """Hold the settings of a tokenizer_config.json that decide what becomes of a text's characters.

    Most files give the first one only. The defaults of the other two are BERT's: accents are dropped where
    text is lower-cased, and ideographs are words of their own.
    """

    do_lower_case: bool = True
    strip_accents: bool | None = None               # None: the same as do_lower_case
    tokenize_chinese_chars: bool = True

    def in_full(self) -> "Casing":
        """Return the same settings with the None written out."""
        return self._replace(strip_accents=self.do_lower_case) if self.strip_accents is None else self


def normalise_character(character: str, casing: Casing) -> str:
    """Return what one character of the text becomes: nothing, a space, itself, or several characters.

    Punctuation and CJK ideographs come back between spaces, so that splitting at spaces is all that remains
    to be done to find words: "-" -> " - ", "É" -> "e", "\\t" -> " ", "\\x00" -> "".

    source    BasicTokenizer of the official ELECTRA code, except for two things. Each character is decomposed
              alone; NFD of a whole text would also sort neighbouring marks (most marks are dropped, so this
              shows only for two adjacent spacing marks, \\p{Mc}). Unassigned characters (\\p{Cn}) are kept,
              as in the `tokenizers` package; ELECTRA drops them. Private-use characters (\\p{Co}) are dropped
              here, by the package and by ELECTRA; the official BERT code keeps them.
    """
    if WHITE_SPACE.match(character):
        return " "
    if DROPPED.match(character):
        return ""
    # Lower-casing looks at one character only: 'Σ' is always 'σ', where `str.lower` on a whole word would
    # write a final 'ς'. Accents are split off by decomposition (NFD), 'é' -> 'e' and a mark, and dropped. NFD
    # leaves 'µ' (micro sign) and 'μ' (Greek mu) different, and the ligature 'ﬁ' as it is.
    kept = character.lower() if casing.do_lower_case else character
    if casing.in_full().strip_accents:
        kept = ACCENT.sub("", unicodedata.normalize("NFD", kept))
    if casing.tokenize_chinese_chars and IDEOGRAPH.match(character):
        return f" {kept} "
    # Punctuation is searched for last, because it may appear only now: '≮' decomposes into '<' and a stroke.
    return PUNCTUATION.sub(r" \g<0> ", kept)


class CharacterTable(dict[int, str]):
    """Remember what each character becomes. `str.translate` looks characters up here, which runs in C.

    An entry is made when a character is first seen, so the table holds the distinct characters of the texts.
    """

    def __init__(self, casing: Casing) -> None:
        self.casing = casing

    def __missing__(self, code_point: int) -> str:
        self[code_point] = normalised = normalise_character(chr(code_point), self.casing)
        return normalised


# --- 2. Words ---

def split_words(text: str, table: CharacterTable) -> list[str]:
    """Cut a text into normalised words: "E. coli's" -> ["e", ".", "coli", "'", "s"]."""
    return text.translate(table).split()


def split_words_with_positions(text: str, table: CharacterTable) -> Iterator[tuple[str, list[int]]]:
    """Yield the words of `split_words`, each with the index in `text` of each of its characters.

    A character that is dropped has no index; one that becomes several gives its index to all of them. With ~
    for a soft hyphen, which is dropped: "co~op" -> ("coop", [0, 1, 3, 4]). The Hangul syllable "가" becomes
    two characters, both with index 0.
    """
    word: list[str] = []
    positions: list[int] = []
    for position, character in enumerate(text + " "):   # the added space ends the last word
        for part in table[ord(character)]:
            if part != " ":
                word.append(part)
                positions.append(position)
            elif word:
                yield "".join(word), positions
                word, positions = [], []


# --- 3. Vocabulary files ---

def index_pieces(pieces: list[str]) -> dict[str, int]:
    """Number the pieces of a vocabulary by their lines, from 0, after checking that it is a vocabulary.

    raises    ValueError where a piece stands twice, or a special token is missing
    """
    vocab: dict[str, int] = {}
    for index, piece in enumerate(pieces):
        if piece in vocab:
            raise ValueError(f"lines {vocab[piece] + 1} and {index + 1} both hold {piece!r}: mend the file")
        vocab[piece] = index
    if missing := ", ".join(token for token in SPECIAL_TOKENS if token not in vocab):
        raise ValueError(f"no {missing} among the {len(pieces)} lines: take a BERT vocabulary, or learn one")
    return vocab


def read_vocab(path: Path) -> list[str]:
    """Read a vocab.txt: one piece from each line, whatever the line holds.

    The first lines of a file, and what they become:
        [PAD]                   id 0
        inter                   id 1, starts a word
        ##leukin                id 2, continues a word

    An empty line is a piece (SciVocab's id 30106): skipping it would shift all ids after it by one. Only the
    line feed ends a line: `str.splitlines` would also cut at U+2028 or U+0085, which may be pieces.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")         # "-sig" drops a byte order mark
    except UnicodeDecodeError as error:
        line = error.object[:error.start].count(b"\n") + 1
        raise ValueError(f"{path} line {line}: not UTF-8 ({error.reason}): convert it to UTF-8") from None
    # The last line ends with a line feed too. Without removing it, split() would return one more piece, "".
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def parse_json(text: str | bytes, place: str | os.PathLike[str]) -> Any:
    """Parse JSON that somebody else may have written.

    raises    ValueError naming the place (and the line in it) where the text is not JSON, where brackets are
              nested too deeply, or where a string holds half of a surrogate pair ("\\ud83d" alone)
    """
    try:
        value = json.loads(text)
        # Half of a surrogate pair is allowed in JSON, but cannot be encoded as UTF-8. Without this trial the
        # program would fail only when it writes its results.
        json.dumps(value, ensure_ascii=False).encode()
        return value
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: JSON that cannot be read: {error}") from None


def read_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON object from a file; ValueError naming the file where it holds something else."""
    content = parse_json(Path(path).read_bytes(), path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(content).__name__}: mend the file")
    return content


# Settings of a tokenizer that change ids -> all that each of them may name here. The casing can be chosen;
# the others must be as BERT has them. The last five list words that were added to a vocabulary: transformers
# keeps an added @GENE$ whole wherever it stands in a text; here it would be cut. None is JSON's null.
SETTINGS: dict[str, tuple[Any, ...]] = {
    "do_lower_case": (True, False), "strip_accents": (True, False, None),
    "tokenize_chinese_chars": (True, False), "clean_text": (True, None), "do_basic_tokenize": (True, None),
    "unk_token": ("[UNK]", None), "max_input_chars_per_word": (MAX_WORD_LENGTH, None),
    "wordpieces_prefix": ("##", None), "continuing_subword_prefix": ("##", None),
    **dict.fromkeys(("added_tokens", "added_tokens_decoder", "additional_special_tokens",
                     "extra_special_tokens", "never_split"), (*SPECIAL_TOKENS, None))}


def named_values(value: Any) -> list[Any]:
    """Return what a setting names: the value itself, or the items of a list; of a token, its content.

    "##" -> ["##"]        ["@GENE$"] -> ["@GENE$"]        {"7": {"content": "@GENE$", ...}} -> ["@GENE$"]
    """
    if isinstance(value, dict):
        value = value["content"] if "content" in value else list(value.values())
    return [name for item in value for name in named_values(item)] if isinstance(value, list) else [value]


def check_settings(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what settings say about casing, after checking that all of them can be honoured.

    {"do_lower_case": false, "tokenizer_class": "ElectraTokenizer"} -> {"do_lower_case": False}

    raises    ValueError naming the file and the first setting that cannot be honoured
    """
    for setting, possible in SETTINGS.items():
        for value in named_values(settings.get(setting, possible[0])):
            if value not in possible:
                raise ValueError(f"{path}: {setting} has {value!r}, which would change ids: only {possible} "
                                 "can be honoured")
    return {name: settings[name] for name in Casing._fields if name in settings}


def read_tokenizer_json(path: Path) -> tuple[list[str], Casing]:
    """Read vocabulary and casing from a tokenizer.json, the only file that transformers 5 writes.

        {"model": {"type": "WordPiece", "vocab": {"[PAD]": 0, "inter": 1, ...}, "unk_token": "[UNK]", ...},
         "normalizer": {"type": "BertNormalizer", "lowercase": true, "strip_accents": null, ...},
         "pre_tokenizer": {"type": "BertPreTokenizer"}, "added_tokens": [{"content": "[PAD]", ...}, ...], ...}

    becomes ["[PAD]", "inter", ...] and Casing(do_lower_case=True).

    raises    ValueError naming the part that is not as BERT has it, or the setting that cannot be honoured
    """
    parts = read_object(path)
    for key, kind in {"model": "WordPiece", "normalizer": "BertNormalizer",
                      "pre_tokenizer": "BertPreTokenizer"}.items():
        if not isinstance(parts.get(key), dict) or parts[key].get("type") != kind:
            raise ValueError(f"{path}: {key}: expected {kind}, as BERT and ELECTRA have it")
    model, normaliser = parts["model"], parts["normalizer"]
    vocab = model.get("vocab", {})
    # repr, because values of other types than int may have no order, or be equal to one (true is 1).
    if not isinstance(vocab, dict) or {*map(repr, vocab.values())} != {*map(repr, range(len(vocab)))}:
        raise ValueError(f"{path}: model.vocab: expected pieces with the ids 0, 1, 2, ...")
    casing = check_settings(path, {**model, **normaliser, "added_tokens": parts.get("added_tokens"),
                                   "do_lower_case": normaliser.get("lowercase", True),
                                   "tokenize_chinese_chars": normaliser.get("handle_chinese_chars", True)})
    return sorted(vocab, key=vocab.__getitem__), Casing(**casing)


def read_vocabulary(path: Path) -> tuple[list[str], Casing]:
    """Read a vocab.txt, or a tokenizer.json, together with what the files beside it say.

    Up to three files say up to two things: the pieces stand in vocab.txt and in tokenizer.json, the casing in
    tokenizer_config.json and in tokenizer.json. A file may be missing, but no two may contradict each other:
    only one of them can be what the model was trained with.

    raises    ValueError naming the files that contradict each other, and what they say
    """
    config, fast = path.with_name("tokenizer_config.json"), path.with_name("tokenizer.json")
    has_fast = path == fast or fast.exists()
    fast_pieces, fast_casing = read_tokenizer_json(fast) if has_fast else ([], Casing())
    pieces = fast_pieces if path == fast else read_vocab(path)
    # What the configuration does not mention is as tokenizer.json says, or else as BERT has it.
    said = check_settings(config, read_object(config)) if config.exists() else {}
    casing = fast_casing._replace(**said)
    if has_fast and (pieces, casing.in_full()) != (fast_pieces, fast_casing.in_full()):
        raise ValueError(f"{fast} contradicts the files beside it: {len(fast_pieces)} pieces, {fast_casing} "
                         f"against {len(pieces)} pieces (perhaps others), {casing}: remove what is wrong")
    return pieces, casing


def write_bytes(path: str | os.PathLike[str], content: bytes | bytearray | memoryview) -> None:
    """Write a file so that no reader, and no crash, ever meets half of it; make its folder where needed.

    The content goes to a temporary name beside the file and is flushed to the disk; then the file is renamed,
    which is all or nothing. The temporary name holds the process id: a worker of a killed run may still be
    writing the same file.

    raises    OSError naming the file and what to do where it cannot be written; then nothing has changed
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())    # the content must reach the disk before the name does
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(f"{path}: {error.strerror or error}: make room, and repeat the command") from None


# --- 4. Tokenizer ---

class Row(NamedTuple):
    """Hold what a model reads: [CLS] A [SEP], or [CLS] A [SEP] B [SEP]."""

    ids: list[int]
    first_length: int           # tokens of [CLS] A [SEP]: segment 0; the rest is segment 1


def refuse_text(values: Iterable[Any], expected: str) -> None:
    """Raise ValueError where a list is expected and a text is given: its letters would pass for the items."""
    if isinstance(values, str):
        raise ValueError(f"expected {expected}, found the text {values[:40]!r}")


class Tokenizer:
    """Turn text into ids of a fixed vocabulary, in which a piece's id is its line number from 0.

    `spell` and `tokenize` are the plain path: read them to see what a tokenizer does. The methods named
    encode give the same pieces as ids, and remember how a word is spelled: of the words of biomedical
    texts, 98 of 100 have been seen before.

    vocab_list  pieces in the order of their ids; a piece that continues a word starts with ##
    lowercase   True for uncased vocabularies (SciVocab): lower-cases and drops accents;
                False for cased ones (Bio-ELECTRA): keeps both; or a Casing, which says more
    raises      ValueError when the list lacks [PAD], [UNK], [CLS], [SEP] or [MASK], or has a piece twice
    """

    def __init__(self, vocab_list: Iterable[str], lowercase: bool | Casing = True) -> None:
        refuse_text(vocab_list, "a list of pieces (`Tokenizer.from_file` reads a file)")
        self.pieces = list(vocab_list)
        self.vocab = index_pieces(self.pieces)
        self.casing = lowercase if isinstance(lowercase, Casing) else Casing(lowercase)
        self.lowercase = self.casing.do_lower_case
        # The ids are looked up, never assumed: SciVocab has [UNK] at 101, BERT at 100, Bio-ELECTRA at 1.
        ids = (self.vocab[token] for token in SPECIAL_TOKENS)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = ids
        self._table = CharacterTable(self.casing)
        self._spelled = lru_cache(REMEMBERED_WORDS)(self.spell)

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[list[str], Casing]]:
        """Send only the vocabulary to another process: words are remembered anew there."""
        return Tokenizer, (self.pieces, self.casing)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], lowercase: bool | None = None) -> "Tokenizer":
        """Read a vocab.txt, or the one in a folder; in a folder without one, its tokenizer.json.

        lowercase   None takes the casing of the tokenizer_config.json or tokenizer.json beside the file, and
                    lower case without either. A casing other than theirs takes the accents with it.
        raises      OSError naming the file that is missing; ValueError naming path, finding and remedy
        """
        path = Path(path)
        if path.is_dir():
            has_vocab, has_json = (path / "vocab.txt").exists(), (path / "tokenizer.json").exists()
            path = path / ("vocab.txt" if has_vocab or not has_json else "tokenizer.json")
        pieces, casing = read_vocabulary(path)
        if lowercase not in (None, casing.do_lower_case):
            casing = casing._replace(do_lower_case=lowercase, strip_accents=None)
        try:
            return cls(pieces, casing)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def casing_doubt(self) -> str:
        """Return one line of doubt where the casing and the vocabulary hardly belong together, else "".

        Of Bio-ELECTRA's cased vocabulary 22 % of the pieces hold capitals or accents. If text is lower-cased,
        they occur in no text, and BRCA1 is [UNK]; of SciVocab, which is uncased, this is 2 %.

        source    ours: a fifth or more of those pieces that a text can hold when nothing is dropped
        """
        words = [piece.removeprefix("##") for piece in self.pieces]
        as_written = CharacterTable(Casing(do_lower_case=False))
        spellable = [word for word in words if split_words(word, as_written) == [word]]
        lost = [word for word in spellable if split_words(word, self._table) != [word]]
        if not lost or len(lost) < 0.2 * len(spellable):
            return ""
        return (f"{len(lost)} of {len(spellable)} pieces, such as {lost[-1]!r}, are never used: capitals and "
                "accents are dropped. Say --cased, or strip_accents: false in tokenizer_config.json")

    def save(self, directory: str | os.PathLike[str], name: str = "vocab.txt",
             max_length: int | None = None) -> None:
        """Write the vocabulary, and a tokenizer_config.json that keeps the casing, into a folder.

        max_length   positions of a model, to which transformers cuts texts; None: no such limit
        """
        config = dict(self.casing._asdict(), tokenizer_class="ElectraTokenizer", model_max_length=max_length)
        write_bytes(Path(directory, "tokenizer_config.json"), (json.dumps(config, indent=2) + "\n").encode())
        # The vocabulary comes last: wherever there is one, its casing is known.
        write_bytes(Path(directory, name), "".join(piece + "\n" for piece in self.pieces).encode())

    # The plain path

    def spell(self, word: str) -> tuple[int, ...]:
        """Spell one normalised word with the longest pieces that fit, from left to right; return their ids.

        With "inter" (id 5) and "##leukin" (id 6) in the vocabulary, "interleukin" -> (5, 6). Where the word
        is too long, or no piece fits somewhere, the result is the id of [UNK] alone: half a spelling would
        look like another word.

        No word is taken for a piece with ##: # is punctuation, so a word that holds # is that one character.

        source    official WordpieceTokenizer
        """
        if len(word) > MAX_WORD_LENGTH:
            return (self.unk_id,)
        ids, start = [], 0
        while start < len(word):
            prefix = "##" if start else ""              # every piece after the first continues the word
            # Try the longest candidate first, then shorter and shorter ones.
            for end in range(len(word), start, -1):
                if (piece_id := self.vocab.get(prefix + word[start:end])) is not None:
                    break
            else:
                return (self.unk_id,)
            ids.append(piece_id)
            start = end
        return tuple(ids)

    def tokenize(self, text: str) -> list[str]:
        """Return the pieces of a text: clean it, cut it into words, spell each word."""
        words = split_words(text, self._table)
        return [self.pieces[piece_id] for word in words for piece_id in self.spell(word)]

    # The fast path: the same as ids, by words whose spelling is remembered

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text's pieces, without [CLS] and [SEP]."""
        return list(chain.from_iterable(map(self._spelled, split_words(text, self._table))))

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """Return the ids of each text; ValueError where one text is given in place of a list."""
        refuse_text(texts, "a list of texts")
        return [self.encode(text) for text in texts]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Encode a text and return where each piece stands in it.

        returns   ids, and for each the half-open range (start, end) of characters of the original text, from
                  the first character that the piece keeps to the last. Two pieces of one character (the parts
                  of a Hangul syllable) share its range; an accent after the last letter of a piece lies
                  outside.
        """
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        for word, positions in split_words_with_positions(text, self._table):
            start = 0
            for piece_id in self._spelled(word):
                length = len(self.pieces[piece_id].removeprefix("##"))          # ## is not in the word
                end = len(word) if piece_id == self.unk_id else start + length  # [UNK] stands for all of it
                ids.append(piece_id)
                offsets.append((positions[start], positions[end - 1] + 1))
                start = end
        return ids, offsets

    def encode_words(self, words: Iterable[str]) -> tuple[list[int], list[int]]:
        """Encode words that carry labels, so that each label finds its pieces.

        ["kelmarin", "fever"] -> the ids of kel ##marin fever, and the word indices [0, 0, 1].

        A word of which nothing is left after cleaning (a lone control character) becomes one [UNK]: every
        word keeps at least one piece, and no label is lost.

        returns   ids, word_index: piece i belongs to words[word_index[i]]
        """
        encoded = [word_ids or [self.unk_id] for word_ids in self.encode_batch(words)]
        word_index = [index for index, word_ids in enumerate(encoded) for _ in word_ids]
        return list(chain.from_iterable(encoded)), word_index

    def row(self, first: str | Sequence[int], second: str | Sequence[int] | None = None) -> Row:
        """Return the row for a model of one text, [CLS] A [SEP], or of two, [CLS] A [SEP] B [SEP].

        first, second   a text, or the ids of its pieces
        """
        a, b = (self.encode(part) if isinstance(part, str) else list(part)
                for part in (first, "" if second is None else second))
        opening = [self.cls_id, *a, self.sep_id]
        return Row(opening if second is None else [*opening, *b, self.sep_id], len(opening))

    def decode(self, ids: Iterable[int]) -> str:
        """Join pieces to readable text, without [PAD], [CLS] and [SEP].

        Case, accents and the spaces around punctuation cannot be restored: where the original matters, cut
        it out of the source text by the offsets of `encode_with_offsets`.
        """
        left_out = (self.pad_id, self.cls_id, self.sep_id)
        pieces = [self.pieces[piece_id] for piece_id in ids if piece_id not in left_out]
        return "".join(piece[2:] if piece.startswith("##") else " " + piece for piece in pieces).strip()


# --- 5. Learning a vocabulary ---

def count_words(texts: Iterable[str], lowercase: bool = True) -> Counter[str]:
    """Count the normalised words of texts, without those that are too long for anything but [UNK]."""
    refuse_text(texts, "a list of texts")
    table = CharacterTable(Casing(lowercase))
    words = Counter(chain.from_iterable(split_words(text, table) for text in texts))
    return Counter({word: count for word, count in words.items() if len(word) <= MAX_WORD_LENGTH})


def split_characters(word: str) -> list[str]:
    """Return a word as single-character pieces: "low" -> ["l", "##o", "##w"]."""
    return [word[0], *("##" + character for character in word[1:])]


def choose_alphabet(word_counts: Counter[str], size: int) -> list[str]:
    """Choose the single-character pieces, the most frequent first.

    The characters that make up 99.99 % of the corpus (about 130 in PubMed text) are always chosen. Rarer ones
    follow while the alphabet fills at most a tenth of the vocabulary, so that foreign scripts cannot fill a
    small vocabulary.
    """
    symbols: Counter[str] = Counter()    # "l" and "##l" are two symbols
    for word, count in word_counts.items():
        for symbol in split_characters(word):
            symbols[symbol] += count
    if not symbols:
        raise ValueError("there are no words to learn a vocabulary from: the texts are empty")
    ranked = sorted(symbols, key=lambda symbol: (-symbols[symbol], symbol))
    # The first symbols that together reach the share are required: one more than those that fall short of it.
    share = COMMON_CHARACTERS * symbols.total()
    required = 1 + sum(covered < share for covered in accumulate(symbols[symbol] for symbol in ranked))
    if size < len(SPECIAL_TOKENS) + required:
        raise ValueError(f"size {size} is too small: {len(SPECIAL_TOKENS)} special tokens and the {required} "
                         f"most common characters need at least {len(SPECIAL_TOKENS) + required}")
    return ranked[:max(required, int(size * RARE_CHARACTERS))]


def join_pair(spelling: list[str], pair: tuple[str, str], merged: str) -> list[str]:
    """Replace the two pieces of `pair` by `merged` wherever they are neighbours, from left to right."""
    joined: list[str] = []
    for piece in spelling:
        if piece == pair[1] and joined and joined[-1] == pair[0]:
            joined[-1] = merged
        else:
            joined.append(piece)
    return joined


def count_pairs(spellings: list[list[str]], counts: list[int]) -> Counter[tuple[str, str]]:
    """Count the pairs of neighbours in words: ["l", "##o", "##w"] has l ##o and ##o ##w."""
    pair_counts: Counter[tuple[str, str]] = Counter()
    for spelling, count in zip(spellings, counts):
        for pair in zip(spelling, spelling[1:]):
            pair_counts[pair] += count
    return pair_counts


def merge_pairs_plainly(spellings: list[list[str]], counts: list[int]) -> Iterator[str]:
    """Join the most frequent pair of neighbours, again and again; yield what each one is joined to.

    This is the whole method. `merge_pairs` below yields the same pieces sooner, and is the one in use.

    spellings   the distinct words, each as a list of pieces
    counts      how often each word occurs
    """
    while pair_counts := count_pairs(spellings, counts):
        # Of equally frequent pairs, the first in code point order is taken.
        best = min(pair_counts, key=lambda pair: (-pair_counts[pair], pair))
        if pair_counts[best] < MIN_PAIR_COUNT:
            return
        merged = best[0] + best[1].removeprefix("##")
        spellings = [join_pair(spelling, best, merged) for spelling in spellings]
        yield merged


def merge_pairs(spellings: list[list[str]], counts: list[int]) -> Iterator[str]:
    """Yield the pieces of `merge_pairs_plainly` without counting all pairs anew before each merge.

    On a large corpus counting anew would take days. Here a merge visits only the words that hold the pair,
    and corrects the counts of their pairs. The most frequent pair comes from a heap. A heap cannot find an
    entry to change it, so it is corrected lazily: increased counts are pushed again; a stale entry is
    corrected when it is popped.

    spellings, counts   as above, but the list of spellings is changed in place
    """
    pair_counts = count_pairs(spellings, counts)
    holders = defaultdict(list)    # pair -> indices of words that may hold it; some have lost it since
    for index, spelling in enumerate(spellings):
        for pair in zip(spelling, spelling[1:]):
            holders[pair].append(index)
    queue = [(-count, pair) for pair, count in pair_counts.items()]    # negative: heapq pops the smallest
    heapq.heapify(queue)
    while queue and -queue[0][0] >= MIN_PAIR_COUNT:
        # 1. Take the pair with the highest count; push it back where its count has fallen since it was
        #    queued.
        negative_count, pair = heapq.heappop(queue)
        if pair_counts[pair] < -negative_count:
            heapq.heappush(queue, (-pair_counts[pair], pair))
            continue
        # 2. Join the pair in every word that holds it, and correct the counts of the pairs of that word.
        merged = pair[0] + pair[1].removeprefix("##")
        yield merged
        grown = set()              # pairs with the new piece: their counts have risen
        for index in holders.pop(pair):
            before = spellings[index]
            after = join_pair(before, pair, merged)
            if len(after) == len(before):
                continue           # an earlier merge took the pair apart
            for old in zip(before, before[1:]):
                pair_counts[old] -= counts[index]
            for new in zip(after, after[1:]):
                pair_counts[new] += counts[index]
                if merged in new:
                    holders[new].append(index)
                    grown.add(new)
            spellings[index] = after
        # 3. Queue the pairs that the new piece forms with its neighbours.
        for new in grown:
            heapq.heappush(queue, (-pair_counts[new], new))


def learn_from_counts(word_counts: Counter[str], size: int) -> Iterator[str]:
    """Yield the pieces learnt from counted words: special tokens, single characters, merged pieces.

    Words with a character outside the alphabet are left out: they would be [UNK] in any case.
    """
    alphabet = choose_alphabet(word_counts, size)
    symbol_of = {symbol: symbol for symbol in alphabet}    # one string object for each symbol saves memory
    words = [word for word in word_counts if symbol_of.keys() >= {*split_characters(word)}]
    spellings = [[symbol_of[symbol] for symbol in split_characters(word)] for word in words]
    counts = [word_counts[word] for word in words]
    # A merge may give a piece that another one gave before: "abc" comes from a ##bc and from ab ##c.
    known: set[str] = set()
    for piece in chain(SPECIAL_TOKENS, alphabet, merge_pairs(spellings, counts)):
        if piece not in known:
            known.add(piece)
            yield piece
        if len(known) == size:
            return


def learn_vocab(texts: Iterable[str], size: int, lowercase: bool = True) -> list[str]:
    """Learn a wordpiece vocabulary from texts: special tokens, then single characters, then merged pieces.

    Every word starts as its characters; the most frequent pair of neighbours is joined everywhere, again and
    again. "low low lower" counts ##o ##w and l ##o three times each and joins ##o ##w -> ##ow, then
    l ##ow -> low. Of equally frequent pairs the first in code point order wins, so the result depends only on
    the counts of the words, not on the order of the texts nor on the hash seed.

    >>> learn_vocab(["low low", "lower"], 12)[5:]
    ['##o', '##w', 'l', '##e', '##r', '##ow', 'low']

    texts     read once, as a stream; memory grows only with the number of distinct words
    size      pieces to return; fewer come back where no pair is left that occurs twice
    raises    ValueError when there are no words, or `size` does not hold the alphabet
    """
    return list(learn_from_counts(count_words(texts, lowercase), size))


# --- 6. Treebank tokens ---

# Each rule puts spaces around tokens; the rules are applied one after the other to the whole text, so their
# order matters: "it's'" becomes "it 's '" only because the last quote is set apart before 's is looked for.
# '(?<=[^'].) means "an apostrophe that no apostrophe precedes". The look-behind comes after the apostrophe,
# not before it: a pattern that begins with a rare character is found much faster. The rules use `re`, not
# `regex`: their \s is meant as Python's.
TREEBANK_RULES = [(re.compile(pattern), replacement) for pattern, replacement in (
    (r'^"|``', r" `` "),                               # a double quote opens at the start of the text
    (r"([ ([{<])(?:\"|'')", r"\1 `` "),                # and after a space or an opening bracket
    (r"([:,])(\D|$)", r" \1 \2"),                      # but not in 3,000 or 2:1; of "::" only the first
    (r"\.\.\.|[;@#$%&?!]", r" \g<0> "),                # these marks are tokens wherever they stand
    (r"\.(?<=[^.].)([])}>\"']*)\s*$", r" .\1 "),       # the full stop at the end; others stay at their word
    (r"'(?<=[^'].) ", " ' "),                          # an apostrophe that ends a word
    (r"[][(){}<>]|--", r" \g<0> "),                    # brackets and dashes
    (r"\A|\Z", " "),                                   # spaces at both ends, for the rules below
    (r"''|\"", " '' "),                                # every other double quote closes a quotation
    (r"'(?<=[^' ].)([sSmMdD]?) ", r" '\1 "),           # patient 's
    (r"('ll|'LL|'re|'RE|'ve|'VE|n't|N'T)(?<=[^' ]...) ", r" \1 "),         # do n't
    (r"(?i)\b(can(?=not)|d(?='ye)|gim(?=me)|gon(?=na)|got(?=ta)|lem(?=me)|more(?='n)|wan(?=na\s))"
     r"(not|'ye|me|na|ta|'n)\b", r" \1 \2 "),                        # can not
    (r"(?i) ('t)(is)\b", r" \1 \2 "),                # 't is; its spaces may open the next: "'tis'twas"
    (r"(?i) ('t)(was)\b", r" \1 \2 "))]


def treebank_tokenize(text: str) -> list[str]:
    """Cut a sentence into the words of the Penn Treebank.

    >>> treebank_tokenize("(It can't wait.)")
    ['(', 'It', 'ca', "n't", 'wait', '.', ')']

    returns   the tokens of NLTK's TreebankWordTokenizer: double quotes come back as `` and ''
    """
    for pattern, replacement in TREEBANK_RULES:
        text = pattern.sub(replacement, text)
    return text.split()


def preprocess_bluebert(text: str) -> str:
    """Prepare a sentence like those that ELECTRAMed was trained on: lower-case, ASCII, Treebank tokens.

    >>> preprocess_bluebert("Crohn’s (CD).")
    'crohn s ( cd ) .'

    source    BlueBERT, whose corpus ELECTRAMed used. The papers say that characters outside ASCII are
              removed; in the published corpus each run of them is replaced by one space.
    """
    # Line breaks first: the rules for clitics want a space after "don't".
    line = re.sub(r"[\r\n]+", " ", text.lower())
    words = treebank_tokenize(re.sub(r"[^\x00-\x7f]+", " ", line))
    return re.sub(r"\s's\b", "'s", " ".join(words))    # BlueBERT joins 's to its word again: patient's


if __name__ == "__main__":
    # A library has no command to run. The first two parts of its docstring are a sentence and an example.
    print("\n\n".join(str(__doc__).split("\n\n")[:2]))
