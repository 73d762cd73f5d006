"""Turn text into wordpieces, and wordpieces back into the characters they came from.

After reading this file you hold the whole of BERT's tokenizer: how a text is cleaned, cut into words and
spelled with the pieces of a vocabulary; how each piece is traced back to the original characters; what makes
this fast; how such a vocabulary is learnt from a corpus; and how the text that ELECTRAMed was trained on was
prepared. An example to follow by hand:

>>> vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "inter", "##leukin", "-", "2", "rises", "."]
>>> tokenizer = Tokenizer(vocabulary)
>>> tokenizer.tokenize("Interleukin-2 rises.")
['inter', '##leukin', '-', '2', 'rises', '.']
>>> tokenizer.encode_with_offsets("Interleukin-2")
([5, 6, 7, 8], [(0, 5), (5, 11), (11, 12), (12, 13)])

This module is a library and stands first in the flow: data.py turns corpora and task files into ids with it
(and has the command that learns a vocabulary), train_finetune.py turns predictions back into text with its
offsets. It does not add [CLS] and [SEP], because only data.py knows where a segment ends; "[MASK]" in a text
is ordinary text, so no document can smuggle in a special token. It does not truncate or pad either: both
belong to batches.

Sources: tokenization.py of the official BERT and ELECTRA code; the compiled `tokenizers` package, which gives
the same ids on real text (tests/test_tokenizer.py lists the Unicode characters where it does not). Learning
follows Sennrich et al. 2016 (merge the most frequent pair), as that package does: Google never released its
own program. Treebank tokens are those of Robert MacIntyre's sed script, in the form that NLTK gave it.

Contents
  1. Characters      2. Words                      3. Vocabulary files     4. The fast path
  5. Tokenizer       6. Learning a vocabulary      7. Treebank tokens
"""
import heapq
import json
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import regex

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_WORD_LENGTH = 100         # characters; a longer word is one [UNK] (`tokenizers`: 100, official: 200)
CACHE_SIZE = 2 ** 18          # texts in a Cache (section 4): about 50 MB
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


def normalise_character(character: str, casing: Casing) -> str:
    """Return what one character of the text becomes: nothing, a space, itself, or several characters.

    Punctuation and CJK ideographs come back between spaces, so that splitting at spaces is all that remains
    to be done to find words: "-" -> " - ", "É" -> "e", "\\t" -> " ", "\\x00" -> "".

    source    official BasicTokenizer, except for two things. Each character is decomposed alone; NFD of a
              whole text would also sort neighbouring marks (most marks are dropped, so this shows only for
              two adjacent spacing marks, \\p{Mc}). Private-use characters are dropped, as in the
              `tokenizers` package; the official code keeps them.
    """
    if WHITE_SPACE.match(character):
        return " "
    if DROPPED.match(character):
        return ""
    # Lower-casing looks at one character only: 'Σ' is always 'σ', where `str.lower` on a whole word would
    # write a final 'ς'. Accents are split off by decomposition (NFD), 'é' -> 'e' and a mark, and dropped. NFD
    # leaves 'µ' (micro sign) and 'μ' (Greek mu) different, and the ligature 'ﬁ' as it is.
    kept = character.lower() if casing.do_lower_case else character
    drops_accents = casing.do_lower_case if casing.strip_accents is None else casing.strip_accents
    if drops_accents:
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
    missing = ", ".join(token for token in SPECIAL_TOKENS if token not in vocab)
    if missing:
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


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file; ValueError naming the file where it holds something else."""
    content = parse_json(path.read_bytes(), path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(content).__name__}: mend the file")
    return content


# Settings of a tokenizer that change ids -> the values that are possible here, the usual one first. The three
# that Casing has can be chosen. Each of the others must have its usual value; null means the same (and so
# does [] for lists of words that are not to be cut: there must be none).
SETTINGS: dict[str, tuple[Any, ...]] = {
    "do_lower_case": (True, False), "tokenize_chinese_chars": (True, False), "clean_text": (True, None),
    "strip_accents": (None, True, False), "do_basic_tokenize": (True, None), "never_split": (None, []),
    "wordpieces_prefix": ("##", None), "continuing_subword_prefix": ("##", None),
    "additional_special_tokens": ([], None), "extra_special_tokens": ([], {}, None),
    "unk_token": ("[UNK]", None), "max_input_chars_per_word": (MAX_WORD_LENGTH, None)}


def check_casing(path: Path, settings: dict[str, Any]) -> Casing:
    """Pick the casing from settings; ValueError naming the first setting that cannot be honoured.

    {"do_lower_case": false, "tokenizer_class": "ElectraTokenizer"} -> Casing(do_lower_case=False)
    """
    for name, allowed in SETTINGS.items():
        value = settings.get(name, allowed[0])
        if isinstance(value, dict):                 # a special token in older files: {"content": "[UNK]"}
            value = value.get("content", value)
        if value not in allowed:
            raise ValueError(f"{path}: {name} is {value!r}, but only {allowed} are possible: it changes ids")
    return Casing(**{name: settings[name] for name in Casing._fields if name in settings})


def read_tokenizer_json(path: Path) -> tuple[list[str], Casing]:
    """Read vocabulary and casing from a tokenizer.json, the only file that transformers 5 writes.

        {"model": {"type": "WordPiece", "vocab": {"[PAD]": 0, "inter": 1, ...}, "unk_token": "[UNK]", ...},
         "normalizer": {"type": "BertNormalizer", "lowercase": true, "strip_accents": null, ...},
         "pre_tokenizer": {"type": "BertPreTokenizer"}, ...}

    becomes ["[PAD]", "inter", ...] and Casing(do_lower_case=True).

    raises    ValueError naming the part that is not as BERT has it, or the setting that cannot be honoured
    """
    parts = read_object(path)
    for key, kind in {"model": "WordPiece", "normalizer": "BertNormalizer",
                      "pre_tokenizer": "BertPreTokenizer"}.items():
        if not isinstance(parts.get(key), dict) or parts[key].get("type") != kind:
            raise ValueError(f"{path}: {key}: expected {kind}, as BERT and ELECTRA have it")
    model, normaliser = parts["model"], parts["normalizer"]
    vocab = model.get("vocab")
    if not isinstance(vocab, dict) or sorted(vocab.values(), key=str) != sorted(range(len(vocab)), key=str):
        raise ValueError(f"{path}: model.vocab: expected pieces with the ids 0, 1, 2, ...")
    # Words that were added to the vocabulary would be kept whole there: {"id": 7, "content": "@GENE$", ...}.
    added = {str(word.get("content")) for word in parts.get("added_tokens") or [] if isinstance(word, dict)}
    settings = {**model, **normaliser, "do_lower_case": normaliser.get("lowercase", True),
                "tokenize_chinese_chars": normaliser.get("handle_chinese_chars", True),
                "extra_special_tokens": sorted(added - {*SPECIAL_TOKENS})}
    return sorted(vocab, key=vocab.__getitem__), check_casing(path, settings)


def write_bytes(path: Path, content: bytes | bytearray | memoryview) -> None:
    """Write a file so that no reader, and no crash, ever meets half of it.

    The content goes to a temporary name beside the file and is flushed to the disk; then the file is renamed,
    which is all or nothing. The temporary name holds the process id: a worker of a killed run may still be
    writing the same file.

    raises    OSError naming the file and what to do where it cannot be written; then nothing has changed
    """
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


# --- 4. The fast path ---
#
# A chunk is the text between two spaces, "(IL-2)," for example. No word goes across a space, so a chunk has
# the same ids wherever it stands. In biomedical text 19 of 20 chunks have been seen before. For these, one
# look-up replaces cleaning, cutting and spelling; in the other chunks most words have been seen before. This
# makes `encode` several times as fast as `tokenize`, and about 5 times as fast as the compiled package on
# lower-cased text, 4 times on cased text.
#
# Chunks end at the space character alone. `str.split()` would also cut at characters such as U+001C, which
# cleaning drops: the parts around one belong to one word.

class Cache(dict[str, Any]):
    """Remember what a function returned for each text. A known text is found without leaving C.

    The memory is bounded. Texts longer than any word are not kept, and a full cache is emptied. That is
    enough: few different chunks make up most of a text, so they are back within seconds. Recording the last
    use of each entry, to drop only the oldest, would cost more time than it saves.
    """

    def __init__(self, function: Callable[[str], Any]) -> None:
        self.function = function

    def __missing__(self, text: str) -> Any:
        value = self.function(text)
        if len(text) <= MAX_WORD_LENGTH:
            if len(self) >= CACHE_SIZE:
                self.clear()
            self[text] = value
        return value


# --- 5. Tokenizer ---

class Row(NamedTuple):
    """Hold what a model reads: [CLS] A [SEP], or [CLS] A [SEP] B [SEP]."""

    ids: list[int]
    first_length: int           # tokens of [CLS] A [SEP]: segment 0; the rest is segment 1


class Tokenizer:
    """Turn text into ids of a fixed vocabulary, in which a piece's id is its line number from 0.

    `spell` and `tokenize` are the plain path: read them to see what a tokenizer does. The methods named
    encode give the same pieces as ids by the fast path of section 4.

    vocab_list  pieces in the order of their ids; a piece that continues a word starts with ##
    lowercase   True for uncased vocabularies (SciVocab): lower-cases and drops accents;
                False for cased ones (Bio-ELECTRA): keeps both; or a Casing, which says more
    raises      ValueError when the list lacks [PAD], [UNK], [CLS], [SEP] or [MASK], or has a piece twice
    """

    def __init__(self, vocab_list: Iterable[str], lowercase: bool | Casing = True) -> None:
        self.pieces = list(vocab_list)
        self.vocab = index_pieces(self.pieces)
        self.casing = lowercase if isinstance(lowercase, Casing) else Casing(lowercase)
        self.lowercase = self.casing.do_lower_case
        # The ids are looked up, never assumed: SciVocab has [UNK] at 101, BERT at 100, Bio-ELECTRA at 1.
        ids = (self.vocab[token] for token in SPECIAL_TOKENS)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = ids
        self._table = CharacterTable(self.casing)
        self._longest_piece = max(map(len, self.pieces))
        self._continuing = {piece[2:]: index for piece, index in self.vocab.items() if piece.startswith("##")}
        self._spelled = Cache(self.spell)
        self._encoded, self._located = Cache(self._encode_chunk), Cache(self._locate_chunk)

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[list[str], Casing]]:
        """Send only the vocabulary to another process: the caches fill anew there."""
        return Tokenizer, (self.pieces, self.casing)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], lowercase: bool | None = None) -> "Tokenizer":
        """Read a vocab.txt, or the one in a folder; in a folder without one, its tokenizer.json.

        lowercase   None takes the casing of the tokenizer_config.json beside the file, lower case without
                    one; accents go with the case
        raises      OSError naming the file that is missing; ValueError naming path, finding and remedy
        """
        path = Path(path)
        if path.is_dir():
            is_alone = (path / "tokenizer.json").is_file() and not (path / "vocab.txt").is_file()
            path = path / ("tokenizer.json" if is_alone else "vocab.txt")
        config = path.with_name("tokenizer_config.json")
        if path.name == "tokenizer.json":
            pieces, casing = read_tokenizer_json(path)
        else:
            settings = read_object(config) if config.exists() else {}
            pieces, casing = read_vocab(path), check_casing(config, settings)
        try:
            if lowercase is not None:
                casing = casing._replace(do_lower_case=lowercase, strip_accents=None)
            return cls(pieces, casing)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def save(self, directory: str | os.PathLike[str], name: str = "vocab.txt",
             max_length: int | None = None) -> None:
        """Write the vocabulary, and a tokenizer_config.json that keeps the casing, into a folder.

        max_length   positions of a model, to which transformers cuts texts; None: no such limit
        """
        config = dict(self.casing._asdict(), tokenizer_class="ElectraTokenizer", model_max_length=max_length)
        Path(directory).mkdir(parents=True, exist_ok=True)
        write_bytes(Path(directory, "tokenizer_config.json"), (json.dumps(config, indent=2) + "\n").encode())
        # The vocabulary comes last: wherever there is one, its casing is known.
        write_bytes(Path(directory, name), "".join(piece + "\n" for piece in self.pieces).encode())

    # The plain path

    def spell(self, word: str) -> tuple[int, ...]:
        """Spell one normalised word with the longest pieces that fit, from left to right; return their ids.

        With "inter" (id 5) and "##leukin" (id 6) in the vocabulary, "interleukin" -> (5, 6). Where the word
        is too long, or no piece fits somewhere, the result is the id of [UNK] alone: half a spelling would
        look like another word.

        The pieces that continue a word have a table of their own, without their ##. With it, no ## has to be
        put before each candidate, which halves the time. self.vocab holds them too, with ##, but a word never
        matches them there: # is punctuation, so a word that holds # is that one character.

        source    official WordpieceTokenizer
        """
        if len(word) > MAX_WORD_LENGTH:
            return (self.unk_id,)
        ids, start, table = [], 0, self.vocab
        while start < len(word):
            # Try the longest candidate first, then shorter and shorter ones.
            for end in range(min(len(word), start + self._longest_piece), start, -1):
                if (piece_id := table.get(word[start:end])) is not None:
                    break
            else:
                return (self.unk_id,)
            ids.append(piece_id)
            start, table = end, self._continuing        # every piece after the first continues the word
        return tuple(ids)

    def tokenize(self, text: str) -> list[str]:
        """Return the pieces of a text: clean it, cut it into words, spell each word."""
        words = split_words(text, self._table)
        return [self.pieces[piece_id] for word in words for piece_id in self.spell(word)]

    # The fast path: the same results as ids, remembered for words (_spelled) and chunks (_encoded, _located)

    def _encode_chunk(self, chunk: str) -> tuple[int, ...]:
        """Return the ids of a chunk."""
        words = split_words(chunk, self._table)
        return tuple([piece_id for word in words for piece_id in self._spelled[word]])

    def _locate_chunk(self, chunk: str) -> tuple[tuple[int, int, int], ...]:
        """Return (id, start, end) of each piece of a chunk, counted in characters from its start."""
        located = []
        for word, positions in split_words_with_positions(chunk, self._table):
            start = 0
            for piece_id in self._spelled[word]:
                length = len(self.pieces[piece_id].removeprefix("##"))          # ## is not in the word
                end = len(word) if piece_id == self.unk_id else start + length  # [UNK] stands for all of it
                located.append((piece_id, positions[start], positions[end - 1] + 1))
                start = end
        return tuple(located)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text's pieces, without [CLS] and [SEP]."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """Return the ids of each text: one look-up for each chunk."""
        look_up = self._encoded.__getitem__
        return [list(chain.from_iterable(map(look_up, text.split(" ")))) for text in texts]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Encode a text and return where each piece stands in it.

        returns   ids, and for each the half-open range (start, end) of characters of the original text, from
                  the first character that the piece keeps to the last. Two pieces of one character (the parts
                  of a Hangul syllable) share its range; an accent after the last letter of a piece lies
                  outside.
        """
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        position = 0
        for chunk in text.split(" "):
            for piece_id, start, end in self._located[chunk]:
                ids.append(piece_id)
                offsets.append((position + start, position + end))
            position += len(chunk) + 1    # 1 for the space
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
        a, b = (self.encode(part) if isinstance(part, str) else list(part) for part in (first, second or ""))
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


# --- 6. Learning a vocabulary ---

def count_words(texts: Iterable[str], lowercase: bool = True) -> Counter[str]:
    """Count the normalised words of texts.

    A corpus repeats itself, so it is faster to count its chunks first and to normalise each distinct chunk
    once (section 4 says what a chunk is, and why only a space ends it). Words that are too long for anything
    but [UNK] are not counted.
    """
    chunks: Counter[str] = Counter()
    for text in texts:
        chunks.update(text.split(" "))
    table = CharacterTable(Casing(lowercase))
    words: Counter[str] = Counter()
    for chunk, count in chunks.items():
        for word in split_words(chunk, table):
            if len(word) <= MAX_WORD_LENGTH:
                words[word] += count
    return words


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
    required, covered = 0, 0       # how many of the ranked symbols must be chosen; their occurrences
    while covered < COMMON_CHARACTERS * symbols.total():
        covered += symbols[ranked[required]]
        required += 1
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


def merge_pairs(spellings: list[list[str]], counts: list[int], alphabet: list[str]) -> Iterator[str]:
    """Join the most frequent pair of neighbours, again and again; yield each new piece.

    Counting all pairs anew after each merge would take hours. Here a merge visits only the words that hold
    the pair and corrects the counts of their pairs. The most frequent pair comes from a heap. A heap cannot
    find an entry to change it, so it is corrected lazily: increased counts are pushed again; a stale entry is
    corrected when it is popped.

    spellings   the distinct words, each as a list of pieces of the alphabet; the list is changed in place
    counts      how often each word occurs
    """
    known = set(alphabet)
    pair_counts: Counter[tuple[str, str]] = Counter()
    holders = defaultdict(list)    # pair -> indices of words that may hold it; some have lost it since
    for index, spelling in enumerate(spellings):
        for pair in zip(spelling, spelling[1:]):
            pair_counts[pair] += counts[index]
            holders[pair].append(index)
    queue = [(-count, pair) for pair, count in pair_counts.items()]    # negative: heapq pops the smallest
    heapq.heapify(queue)
    while queue:
        # 1. Take the pair with the highest count; push it back where its count has fallen since it was
        #    queued.
        negative_count, pair = heapq.heappop(queue)
        if pair_counts[pair] < MIN_PAIR_COUNT:
            continue
        if pair_counts[pair] < -negative_count:
            heapq.heappush(queue, (-pair_counts[pair], pair))
            continue
        # 2. Its two pieces joined are a new piece, unless another pair made the same one: "abc" may come
        #    from a ##bc and from ab ##c.
        merged = pair[0] + pair[1].removeprefix("##")
        if merged not in known:
            known.add(merged)
            yield merged
        # 3. Join the pair in every word that holds it, and correct the counts of the pairs of that word.
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
        # 4. Queue the pairs that the new piece forms with its neighbours.
        for new in grown:
            heapq.heappush(queue, (-pair_counts[new], new))


def learn_from_counts(word_counts: Counter[str], size: int) -> Iterator[str]:
    """Yield the pieces learnt from counted words: special tokens, single characters, merged pieces.

    Words with a character outside the alphabet are left out: they would be [UNK] in any case.
    """
    alphabet = choose_alphabet(word_counts, size)
    symbol_of = {symbol: symbol for symbol in alphabet}    # one string object for each symbol saves memory
    spellings, counts = [], []
    for word, count in word_counts.items():
        spelling = [symbol_of.get(symbol, "") for symbol in split_characters(word)]
        if all(spelling):          # "" stands for a character outside the alphabet
            spellings.append(spelling)
            counts.append(count)
    yield from SPECIAL_TOKENS
    yield from alphabet
    yield from islice(merge_pairs(spellings, counts, alphabet), size - len(SPECIAL_TOKENS) - len(alphabet))


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


# --- 7. Treebank tokens ---

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
    (r"(?i) ('t)(is)\b", r" \1 \2 "),                  # 't is
    (r"(?i) ('t)(was)\b", r" \1 \2 "))]                # 't was


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
