"""Text to wordpieces, and back to the characters they came from.

After reading this file you hold the whole of BERT's tokenizer: how a text is cleaned, cut into words and
spelled with the pieces of a vocabulary; how each piece finds its way back to the original characters; how
this becomes fast; how such a vocabulary is learnt from a corpus; and how the text that ELECTRAMed was trained
on was prepared. An example to follow by hand:

>>> vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "inter", "##leukin", "-", "2", "rises", "."]
>>> tokenizer = Tokenizer(vocabulary)
>>> tokenizer.tokenize("Interleukin-2 rises.")
['inter', '##leukin', '-', '2', 'rises', '.']
>>> tokenizer.encode_with_offsets("Interleukin-2")
([5, 6, 7, 8], [(0, 5), (5, 11), (11, 12), (12, 13)])

It stands first in the flow: data.py turns corpora and task files into ids with it, train_finetune.py turns
predictions back into text with its offsets. [CLS] and [SEP] are left to data.py, which knows where a segment
ends; "[MASK]" in a text is ordinary text, so no document can smuggle in a special token. There is no
truncation, no padding and no tensor here either: those belong to batches.

Sources: tokenization.py of the official BERT and ELECTRA code; the compiled `tokenizers` package, whose ids
ours equal on real text (tests/test_tokenizer.py lists the Unicode characters where they cannot). Learning
follows Sennrich et al. 2016 (pair merges by frequency), as that package does: Google never released its own.
Treebank tokens are those of Robert MacIntyre's sed script, in the form that NLTK gave it.

Contents
  1. Characters                2. Words              3. Vocabulary files    4. Tokenizer
  5. Learning a vocabulary     6. Treebank tokens    7. Command line
"""
import argparse
import heapq
import json
import os
import re
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_WORD_LENGTH = 100         # characters; a longer word is one [UNK] (`tokenizers`: 100, official: 200)
CACHE_SIZE = 2 ** 17          # texts in each of a cache's two generations: about 25 MB
MIN_PAIR_COUNT = 2            # occurrences; a pair of pieces seen once says nothing about the language
COMMON_CHARACTERS = 0.9999    # share of a corpus's characters that the alphabet must be able to spell
RARE_CHARACTERS = 0.1         # share of the vocabulary up to which rarer ones may follow


# --- 1. Characters ---

# The ideographs that stand between spaces, so that each is a word: CJK Unified and Compatibility blocks.
# Kana and Hangul are left out on purpose: Japanese and Korean words are longer than one character.
CJK_BLOCKS = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2A6DF),
              (0x2A700, 0x2CEAF), (0x2F800, 0x2FA1F))


def is_punctuation(character: str) -> bool:
    """Tell whether a character is a word of its own.

    Besides Unicode's punctuation (P*) these are the ASCII symbols ($ + < = > ^ ` | ~), which Unicode counts
    among the symbols; other symbols (±, °, €, ©) stay inside words, as BERT has it.
    """
    is_ascii_mark = "!" <= character <= "~" and not character.isalnum()
    return is_ascii_mark or unicodedata.category(character).startswith("P")


def normalise_character(character: str, lowercase: bool) -> str:
    """Give what one character of the text becomes: nothing, a space, itself, or several characters.

    Punctuation and CJK ideographs come back between spaces; splitting on spaces is then all there is to
    finding words. Lower-casing looks at one character only: 'Σ' is always 'σ', where `str.lower` on a whole
    word writes a final 'ς'. The accents go by decomposition (NFD): 'é' is 'e' and a mark (Mn), dropped.
    'µ' (micro sign) and 'μ' (Greek mu) stay different, as does the ligature 'ﬁ': NFD leaves them alone.

    source    official BasicTokenizer, one character at a time: marks of two characters are never reordered
              (it would take two adjacent spacing marks, Mc, of different classes to see it). Private-use
              characters are dropped as in the `tokenizers` package; the official code keeps them.
    """
    category = unicodedata.category(character)
    if character in "\t\n\r" or category.startswith("Z"):
        return " "
    if category in ("Cc", "Cf", "Co", "Cs") or character == "\ufffd":   # U+0000 is one of Cc
        return ""
    kept = character
    if lowercase:
        decomposed = unicodedata.normalize("NFD", character.lower())
        kept = "".join(part for part in decomposed if unicodedata.category(part) != "Mn")
    if any(first <= ord(character) <= last for first, last in CJK_BLOCKS):
        return f" {kept} "
    # Punctuation is looked for last, for it may appear only now: '≮' decomposes into '<' and a stroke.
    return "".join(f" {part} " if is_punctuation(part) else part for part in kept)


class CharacterTable(dict[int, str]):
    """Remember what each character becomes; `str.translate` reads it and runs in C.

    Filled on first sight of a character, so it holds as many entries as the texts had distinct characters.
    """

    def __init__(self, lowercase: bool) -> None:
        super().__init__()
        self.lowercase = lowercase

    def __missing__(self, code_point: int) -> str:
        self[code_point] = normalised = normalise_character(chr(code_point), self.lowercase)
        return normalised


# --- 2. Words ---

def split_words(text: str, table: CharacterTable) -> list[str]:
    """Cut a text into normalised words: "E. coli's" -> ["e", ".", "coli", "'", "s"]."""
    return text.translate(table).split()


def split_words_with_positions(text: str, table: CharacterTable) -> Iterator[tuple[str, list[int]]]:
    """Yield the words of `split_words`, each with the index in `text` of each of its characters.

    A character that vanishes has no index, one that becomes several gives its index to all of them:
    "İs" -> ("is", [0, 1]), and soft hyphens inside a word leave a gap in its indices.
    """
    word: list[str] = []
    positions: list[int] = []
    for position, character in enumerate(text + " "):   # the space ends the last word
        for part in table[ord(character)]:
            if part != " ":
                word.append(part)
                positions.append(position)
            elif word:
                yield "".join(word), positions
                word, positions = [], []


# --- 3. Vocabulary files ---

def index_pieces(pieces: list[str]) -> dict[str, int]:
    """Number the pieces of a vocabulary by line, after checking that it is one.

    raises    ValueError where the list is empty, a piece stands twice, or a special token is missing
    """
    if not pieces:
        raise ValueError("the vocabulary is empty: expected one piece on each line")
    vocab: dict[str, int] = {}
    for index, piece in enumerate(pieces):
        if vocab.setdefault(piece, index) != index:
            raise ValueError(f"lines {vocab[piece] + 1} and {index + 1} both hold {piece!r}, but a piece has "
                             "one id: take the file the model was trained with, or learn a new one")
    missing = [token for token in SPECIAL_TOKENS if token not in vocab]
    if missing:
        raise ValueError(f"no {', '.join(missing)} among the {len(pieces)} lines: expected a BERT or ELECTRA "
                         "vocabulary, one piece on each line; `python tokenizer.py learn` makes one")
    return vocab


def read_vocab(path: Path) -> list[str]:
    """Read pieces, one from each line, whatever the line holds.

    An empty line is a piece (SciVocab's id 30106), or all ids after it would be off by one. Only the line
    feed ends a line: `str.splitlines` would also cut at U+2028 or U+0085, which may be pieces.
    """
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")    # a byte-order mark is no part of a piece
    except UnicodeDecodeError as error:
        line = error.object[:error.start].count(b"\n") + 1
        raise ValueError(f"{path} line {line}: not UTF-8 ({error.reason}): expected a text file with one "
                         "piece on each line; convert it, or check that it is a vocabulary") from None
    if lines[-1] == "":
        lines.pop()    # what follows the last line feed is no line
    return [line.removesuffix("\r") for line in lines]


def read_casing(path: Path) -> bool:
    """Read whether a vocabulary is lower-cased from a tokenizer_config.json; True where there is none."""
    if not path.exists():
        return True
    try:
        lowercase = json.loads(path.read_text(encoding="utf-8")).get("do_lower_case", True)
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: expected a JSON object ({error}): mend it, or say lowercase=True or False "
                         "yourself") from None
    if not isinstance(lowercase, bool):
        raise ValueError(f"{path}: do_lower_case is {lowercase!r}, expected true or false")
    return lowercase


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that no reader, and no crash, ever meets half of it."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())    # the content must reach the disk before the name does
    os.replace(temporary, path)


# --- 4. Tokenizer ---

class Cache(dict[str, Any]):
    """Remember what a function gave for each text: its `__getitem__` finds what is known without leaving C.

    Memory is bounded: texts longer than any word are not kept, and what has filled up becomes the generation
    before, from which only what is asked for again comes back. To keep account of the last uses would cost more.
    """

    def __init__(self, function: Callable[[str], Any]) -> None:
        super().__init__()
        self.function = function
        self.before: dict[str, Any] = {}

    def __missing__(self, text: str) -> Any:
        value = self.before.get(text)
        if value is None:
            value = self.function(text)
        if len(text) <= MAX_WORD_LENGTH:
            if len(self) >= CACHE_SIZE:
                self.before = dict(self)
                self.clear()
            self[text] = value
        return value


class Tokenizer:
    """Turn text into ids of a fixed vocabulary, in which a piece's id is its line number from 0.

    There are two paths. `tokenize` is the plain one, to be read. The methods named encode give the same, several
    times as fast, by remembering: a corpus repeats itself. Text is cut at each space; what stands between two
    spaces ("(IL-2)," say) is a chunk. No word goes across a space, so a chunk becomes the same ids wherever it
    stands, and one look-up replaces cleaning, cutting and spelling: 19 of 20 chunks of biomedical text are
    known, and most words of the others. No other white space ends a chunk, for `str.split` takes some characters
    for white space that cleaning drops.

    vocab_list  pieces in the order of their ids; a piece that continues a word starts with ##
    lowercase   True for uncased vocabularies (SciVocab): lower-cases and drops accents;
                False for cased ones (Bio-ELECTRA): keeps both
    raises      ValueError when the list is empty, has no [PAD], [UNK], [CLS], [SEP] or [MASK], or has a piece twice
    """

    def __init__(self, vocab_list: Iterable[str], lowercase: bool = True) -> None:
        self.pieces = list(vocab_list)
        self.vocab = index_pieces(self.pieces)
        self.lowercase = lowercase
        # Looked up, never assumed: SciVocab has [UNK] at 101, BERT at 100, Bio-ELECTRA at 1.
        ids = (self.vocab[token] for token in SPECIAL_TOKENS)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = ids
        self._table = CharacterTable(lowercase)
        self._longest_piece = max(map(len, self.pieces))
        self._continuing = {piece[2:]: index for piece, index in self.vocab.items() if piece.startswith("##")}
        self._spelled = Cache(self._spell)
        self._encoded, self._located = Cache(self._encode_chunk), Cache(self._locate_chunk)

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[list[str], bool]]:
        """Travel to another process without what was remembered."""
        return Tokenizer, (self.pieces, self.lowercase)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], lowercase: bool | None = None) -> "Tokenizer":
        """Read a vocab.txt, or the one in a folder.

        lowercase   None takes `do_lower_case` of the tokenizer_config.json beside the file, True without one
        raises      OSError naming the file that is missing; ValueError naming path, finding and remedy
        """
        path = Path(path)
        if path.is_dir():
            path = path / "vocab.txt"
        pieces = read_vocab(path)
        if lowercase is None:
            lowercase = read_casing(path.with_name("tokenizer_config.json"))
        try:
            return cls(pieces, lowercase)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def save(self, directory: str | os.PathLike[str], name: str = "vocab.txt") -> None:
        """Write the vocabulary and tokenizer_config.json, which keeps the casing, into a folder."""
        config = {"do_lower_case": self.lowercase, "tokenizer_class": "ElectraTokenizer"}
        Path(directory).mkdir(parents=True, exist_ok=True)
        write_atomically(Path(directory, "tokenizer_config.json"), json.dumps(config, indent=2) + "\n")
        # last: where the vocabulary is, its casing is known
        write_atomically(Path(directory, name), "".join(piece + "\n" for piece in self.pieces))

    def wordpieces(self, word: str) -> list[tuple[str, int]]:
        """Spell one normalised word with the longest pieces that fit, from left to right.

        "interleukin" -> [("inter", 5), ("##leukin", 6)]

        returns   (piece, characters it covers) in order; one [UNK] that covers the word where it is too long or a part
                  of it is not in the vocabulary. Half a spelling is never given: it would look like another word.
        source    official WordpieceTokenizer
        """
        unknown = [("[UNK]", len(word))]
        if len(word) > MAX_WORD_LENGTH:
            return unknown
        found = []
        start, prefix = 0, ""
        while start < len(word):
            for end in range(min(len(word), start + self._longest_piece), start, -1):
                piece = prefix + word[start:end]
                if piece in self.vocab:
                    break
            else:
                return unknown
            found.append((piece, end - start))
            start, prefix = end, "##"
        return found

    def tokenize(self, text: str) -> list[str]:
        """Give the pieces of a text."""
        return [piece for word in split_words(text, self._table) for piece, _ in self.wordpieces(word)]

    def _spell(self, word: str) -> tuple[int, ...]:
        """Give the ids of a normalised word: `wordpieces` in half of its time, for ## is nowhere put before."""
        ids, start, table = [], 0, self.vocab       # no word begins with #, which is a word of its own
        while start < len(word) <= MAX_WORD_LENGTH:
            for end in range(min(len(word), start + self._longest_piece), start, -1):
                if (piece_id := table.get(word[start:end])) is not None:
                    break
            else:
                return (self.unk_id,)
            ids.append(piece_id)
            start, table = end, self._continuing
        return tuple(ids) or (self.unk_id,)

    def _encode_chunk(self, chunk: str) -> tuple[int, ...]:
        """Give the ids of a chunk."""
        return tuple([piece_id for word in split_words(chunk, self._table) for piece_id in self._spelled[word]])

    def _locate_chunk(self, chunk: str) -> tuple[tuple[int, int, int], ...]:
        """Give (id, start, end) of each piece of a chunk, counted in characters from its start."""
        located = []
        for word, positions in split_words_with_positions(chunk, self._table):
            start = 0
            for piece_id in self._spelled[word]:
                length = len(self.pieces[piece_id]) - (2 if start else 0)    # ## is no part of the word
                end = len(word) if piece_id == self.unk_id else start + length
                located.append((piece_id, positions[start], positions[end - 1] + 1))
                start = end
        return tuple(located)

    def encode(self, text: str) -> list[int]:
        """Give the ids of a text's pieces, without [CLS] and [SEP]."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """Encode each text."""
        look_up = self._encoded.__getitem__
        return [list(chain.from_iterable(map(look_up, text.split(" ")))) for text in texts]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Encode a text and say where each piece stands in it.

        returns   ids, and for each the half-open range (start, end) of characters of the original text, from
                  the first it keeps to the last. Two pieces of one character (the parts of a Hangul
                  syllable) share its range; an accent after the last letter of a piece lies outside.
        """
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        position = 0
        for chunk in text.split(" "):
            for piece_id, start, end in self._located[chunk]:
                ids.append(piece_id)
                offsets.append((position + start, position + end))
            position += len(chunk) + 1
        return ids, offsets

    def encode_words(self, words: Iterable[str]) -> tuple[list[int], list[int]]:
        """Encode words that carry labels, so that each label finds its pieces.

        A word of which nothing is left after cleaning (a lone control character) becomes one [UNK]:
        every word keeps at least one piece, no label is lost.

        returns   ids, word_index: piece i belongs to words[word_index[i]]
        """
        encoded = [word_ids or [self.unk_id] for word_ids in self.encode_batch(words)]
        return list(chain.from_iterable(encoded)), [index for index, ids in enumerate(encoded) for _ in ids]

    def decode(self, ids: Iterable[int]) -> str:
        """Join pieces to readable text, without [PAD], [CLS] and [SEP].

        Case, accents and spaces around punctuation are gone for good: where the original matters, cut it
        out of the source text by `encode_with_offsets`.
        """
        hidden = (self.pad_id, self.cls_id, self.sep_id)
        pieces = [self.pieces[piece_id] for piece_id in ids if piece_id not in hidden]
        return "".join(piece[2:] if piece.startswith("##") else " " + piece for piece in pieces).strip()


# --- 5. Learning a vocabulary ---

def learn_vocab(texts: Iterable[str], size: int, lowercase: bool = True) -> list[str]:
    """Learn a wordpiece vocabulary from texts: special tokens, then single characters, then merged pieces.

    Every word starts as its characters; the most frequent pair of neighbours is joined everywhere, again and
    again. "low low lower" counts ##o ##w and l ##o three times each and joins ##o ##w -> ##ow, then
    l ##ow -> low. Of equally frequent pairs the first in code point order wins, so the result depends on the
    counts of the words alone, neither on the order of the texts nor on the hash seed.

    texts     read once, as a stream; memory grows with the distinct words only
    size      pieces to give; fewer come back where no pair is left that occurs twice
    raises    ValueError when there are no words, or `size` does not hold the alphabet
    """
    return list(learn_from_counts(count_words(texts, lowercase), size))


def count_words(texts: Iterable[str], lowercase: bool = True) -> Counter[str]:
    """Count the normalised words of texts.

    Tokens between spaces are counted first and normalised once each: a corpus repeats itself. Only the space
    itself is safe to split on before cleaning, which drops some of what `str.split` takes for white space.
    Words that are too long for anything but [UNK] are not counted.
    """
    tokens: Counter[str] = Counter()
    for text in texts:
        tokens.update(text.split(" "))
    table = CharacterTable(lowercase)
    words: Counter[str] = Counter()
    for token, count in tokens.items():
        for word in split_words(token, table):
            if len(word) <= MAX_WORD_LENGTH:
                words[word] += count
    return words


def learn_from_counts(word_counts: Counter[str], size: int) -> Iterator[str]:
    """Yield the pieces learnt from counted words, leaving out those with a character outside the alphabet."""
    alphabet = choose_alphabet(word_counts, size)
    symbol_of = {form: form for form in alphabet}    # one string object for each symbol, not for each place
    spellings, counts = [], []
    for word, count in word_counts.items():
        spelling = [symbol_of.get(form, "") for form in spell(word)]
        if all(spelling):
            spellings.append(spelling)
            counts.append(count)
    yield from SPECIAL_TOKENS
    yield from alphabet
    yield from islice(merge_pairs(spellings, counts, alphabet), size - len(SPECIAL_TOKENS) - len(alphabet))


def spell(word: str) -> list[str]:
    """Give a word as single characters: "low" -> ["l", "##o", "##w"]."""
    return [word[0], *("##" + character for character in word[1:])]


def choose_alphabet(word_counts: Counter[str], size: int) -> list[str]:
    """Choose the single-character pieces, the most frequent first.

    All that 99.99 % of the characters need (about 130 in PubMed text) must be there; rarer ones follow while
    they fill at most a tenth of the vocabulary, so that a flood of foreign scripts cannot eat a small one.
    """
    forms: Counter[str] = Counter()
    for word, count in word_counts.items():
        for form in spell(word):
            forms[form] += count
    if not forms:
        raise ValueError("there are no words to learn a vocabulary from: the texts are empty")
    ranked = sorted(forms, key=lambda form: (-forms[form], form))
    required, covered = 0, 0
    while covered < COMMON_CHARACTERS * forms.total():
        covered += forms[ranked[required]]
        required += 1
    if size < len(SPECIAL_TOKENS) + required:
        raise ValueError(f"size {size} is too small: {len(SPECIAL_TOKENS)} special tokens and the {required} "
                         f"most common characters need at least {len(SPECIAL_TOKENS) + required}")
    return ranked[:max(required, int(size * RARE_CHARACTERS))]


def merge_pairs(spellings: list[list[str]], counts: list[int], alphabet: list[str]) -> Iterator[str]:
    """Join the most frequent pair of neighbours, again and again; yield each new piece.

    Counting all pairs anew after each merge would take hours. Here a merge visits only the words that hold
    the pair and corrects the counts of their pairs. The queue is never searched for outdated entries:
    whatever grows is queued again, and what has shrunk is found out, and put back, when it comes up.

    spellings   the distinct words, each as a list of pieces of the alphabet
    counts      how often each word occurs
    """
    spellings, known = list(spellings), set(alphabet)
    pair_counts: Counter[tuple[str, str]] = Counter()
    holders = defaultdict(list)    # pair -> indices of words that may hold it, some of them out of date
    for index, spelling in enumerate(spellings):
        for pair in zip(spelling, spelling[1:]):
            pair_counts[pair] += counts[index]
            holders[pair].append(index)
    queue = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(queue)
    while queue:
        count, pair = -queue[0][0], heapq.heappop(queue)[1]
        if pair_counts[pair] < MIN_PAIR_COUNT:
            continue
        if pair_counts[pair] < count:
            heapq.heappush(queue, (-pair_counts[pair], pair))
            continue
        merged = pair[0] + pair[1].removeprefix("##")
        if merged not in known:    # "abc" may come from a ##bc and again from ab ##c
            known.add(merged)
            yield merged
        grown = set()
        for index in holders.pop(pair):
            before = spellings[index]
            after = join_pair(before, pair, merged)
            if len(after) == len(before):
                continue           # another merge took the pair apart
            for old in zip(before, before[1:]):
                pair_counts[old] -= counts[index]
            for new in zip(after, after[1:]):
                pair_counts[new] += counts[index]
                if merged in new:
                    holders[new].append(index)
                    grown.add(new)
            spellings[index] = after
        for new in grown:
            heapq.heappush(queue, (-pair_counts[new], new))


def join_pair(spelling: list[str], pair: tuple[str, str], merged: str) -> list[str]:
    """Write `merged` wherever the two pieces of `pair` stand side by side, from left to right."""
    joined: list[str] = []
    for piece in spelling:
        if piece == pair[1] and joined and joined[-1] == pair[0]:
            joined[-1] = merged
        else:
            joined.append(piece)
    return joined


# --- 6. Treebank tokens ---

# Each rule puts spaces where tokens end; they are applied one after the other to the whole text, so their order
# matters: "it's'" becomes it 's ' only because the last quote is set apart before 's is looked for. What may stand
# before a match is looked back at: a pattern that starts with the rare character is searched for much faster.
TREEBANK_RULES = [(re.compile(pattern), replacement) for pattern, replacement in (
    (r'^"|``', r" `` "),                               # a quote that opens the text
    (r"([ ([{<])(?:\"|'')", r"\1 `` "),                # or follows a space or a bracket opens
    (r"([:,])(\D|$)", r" \1 \2"),                      # not within 3,000 or 2:1; of "::" the first alone is seen
    (r"\.\.\.|[;@#$%&?!]", r" \g<0> "),                # marks wherever they stand
    (r"\.(?<=[^.].)([])}>\"']*)\s*$", r" .\1 "),       # the full stop of the text; any other stays: "coli. d-"
    (r"'(?<=[^'].) ", " ' "),                          # an apostrophe that ends a word
    (r"[][(){}<>]|--", r" \g<0> "),                    # brackets and dashes
    (r"\A|\Z", " "),                                   # so that what follows need not look for the ends
    (r"''|\"", " '' "),                                # all other double quotes close
    (r"'(?<=[^' ].)([sSmMdD]?) ", r" '\1 "),           # patient 's
    (r"('ll|'LL|'re|'RE|'ve|'VE|n't|N'T)(?<=[^' ]...) ", r" \1 "),         # do n't
    (r"(?i)\b(can(?=not)|d(?='ye)|gim(?=me)|gon(?=na)|got(?=ta)|lem(?=me)|more(?='n)|wan(?=na\s))"
     r"(not|'ye|me|na|ta|'n)\b", r" \1 \2 "),                        # can not
    (r"(?i) ('t)(is)\b", r" \1 \2 "),                  # 't is
    (r"(?i) ('t)(was)\b", r" \1 \2 "),                 # 't was
)]


def treebank_tokenize(text: str) -> list[str]:
    """Cut a sentence into the words of the Penn Treebank: "(don't.)" -> ["(", "do", "n't", ".", ")"].

    returns   the tokens of NLTK's TreebankWordTokenizer: double quotes come back as `` and ''
    """
    for pattern, replacement in TREEBANK_RULES:
        text = pattern.sub(replacement, text)
    return text.split()


def preprocess_bluebert(text: str) -> str:
    """Prepare a sentence as those that ELECTRAMed was trained on: "Crohn’s (CD)." -> "crohn s ( cd ) ."

    source    BlueBERT, whose corpus ELECTRAMed took: lower-case, other characters than ASCII out, Treebank tokens.
              The papers say that those characters are removed; in the corpus each run of them is one space.
    """
    words = treebank_tokenize(re.sub(r"[^\x00-\x7f]+", " ", text.lower()))
    return re.sub(r"\s's\b", "'s", " ".join(words))


# --- 7. Command line ---

def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        usage="tokenizer.py learn CORPUS [CORPUS ...] --size N --out FILE [--cased]",
        description="Learn a wordpiece vocabulary from a corpus.",
        epilog="example: python tokenizer.py learn corpus/*.txt.xz --size 8000 --out vocabulary/vocab.txt")
    parser.add_argument("command", choices=["learn"], help="what to do")
    parser.add_argument("corpus", nargs="+", metavar="CORPUS",
                        help="text (one sentence a line, an empty line between documents), PubMed or PMC XML, "
                             ".gz, .xz or .tar of them, or folders of all these")
    parser.add_argument("--size", type=int, required=True, metavar="N",
                        help="pieces in the vocabulary, special tokens included: 8000 suits a corpus of a few "
                             "million words, SciVocab has 31090")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE",
                        help="the vocab.txt to write; its casing is noted in tokenizer_config.json beside it")
    parser.add_argument("--cased", action="store_true", help="keep capitals and accents (default: drop both)")
    return parser.parse_args(arguments)


def learn_command(options: argparse.Namespace) -> str:
    """Learn and write a vocabulary; returns the line that says how it fits the text it was learnt on."""
    from data import Progress, corpus_files, read_documents    # here, so that `import tokenizer` needs no other

    def reported(items: Iterable[Any], total: int | None, unit: str) -> Iterator[Any]:
        """Pass items on, and show how many there were."""
        progress = Progress(total, unit)
        for done, item in enumerate(items, 1):
            yield item
            progress.show(done)
        progress.finish()

    lowercase = not options.cased
    documents = (document for path in corpus_files(options.corpus) for document in read_documents(path))
    sentences = chain.from_iterable(reported(documents, None, "documents"))
    word_counts = count_words(sentences, lowercase)
    pieces = reported(learn_from_counts(word_counts, options.size), options.size, "pieces")
    tokenizer = Tokenizer(pieces, lowercase)
    tokenizer.save(options.out.parent, options.out.name)
    written = sum(count * len(tokenizer.wordpieces(word)) for word, count in word_counts.items())
    return (f"{options.out}: {len(tokenizer.pieces):,} pieces from {len(word_counts):,} distinct words, "
            f"{written / word_counts.total():.3f} wordpieces per word")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    try:
        print(learn_command(parse_arguments(arguments)))
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
