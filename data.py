"""Everything between a file and a batch: corpora, shards, task files, features, and a synthetic corpus.

After reading this file you hold how ELECTRA's pre-training examples are cut from documents, how a corpus of any
size is stored and drawn from reproducibly, and how published task files become labelled token sequences and
model outputs become answers again.

>>> plan = plan_batches(np.array([20, 30, 30, 7]), batch_size=2, max_length=32, rng=np.random.default_rng(0))
>>> [(width, sorted(rows.tolist())) for width, rows in sorted(plan, key=lambda batch: batch[0])]
[(24, [0, 3]), (32, [1, 2])]

Where it stands: text -> [this file, with a tokenizer] -> numpy batches -> train_pretrain.py, train_finetune.py.
Section 8 also has what both trainers need around their work: options to flags, progress, fetching, run folders.
Left out: masking (it is redrawn for every step, in electramed.py) and scores (metrics.py).
Sources: the official TensorFlow ELECTRA code ("TF": file and function are named), the releases of ELECTRAMed
and Bio-ELECTRA for the formats of their files.

    1. Documents                       5. Task files
    2. Pre-training examples           6. Features and decoding
    3. Shards                          7. A synthetic biomedical world
    4. Batches                         8. Command line
"""
from __future__ import annotations

import argparse
import collections
import concurrent.futures.process
import dataclasses
import functools
import gzip
import hashlib
import html
import http.client
import io
import itertools
import json
import lzma
import multiprocessing
import os
import random
import re
import signal
import sys
import tarfile
import threading
import time
import typing
import urllib.request
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.parsers import expat

import numpy as np

Document = list[str]                    # the sentences of one document


# --- 1. Documents ---

BLOCK_BYTES = 1 << 24                   # of text in one shard: about 4 million tokens, a few seconds of one core
READ_BYTES = 1 << 20                    # read at once
XML_MEMBER_BYTES = 1 << 29              # of one XML file in an archive, which is held in memory
DAMAGED = (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile, tarfile.TarError)
IS_XML = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:[?]xml|!DOCTYPE|!--|article\b|pmc-articleset|Pubmed|Medline)")

# What ends in a full stop without ending the sentence: before anything; before a number; before all but words that
# open sentences. Initials and genera (E. coli) are of the third kind, and what has stops inside (i.v., U.S.).
NEVER_LAST = frozenset("approx ca cf dr e.g eq eqs fig figs i.e mr mrs ms prof ref refs resp sect ssp st subsp suppl "
                       "tab tabs var viz vol vols vs".split())
BEFORE_NUMBER = frozenset("al apr aug chap dec feb jan jul jun mar no nos nov nr oct p pp sep sept".split())
RARELY_LAST = frozenset("al co corp dept inc jr ltd sp spp sr univ".split())
OPENERS = frozenset("""a after all although among an and as at because before both but by conversely despite due during
    each either finally first for from he her here his how however if in it its many moreover most neither no of on one
    only other our out results she since some such that the their then there therefore these they this those three thus
    to two under until upon using we what when whereas whether which while who with within without""".split())
LETTERED = frozenset("a and arm class cohort factor figure grade group hepatitis influenza or panel stage table toxin "
                     "type vitamin".split())         # "in group A. Patients": here a capital is no initial
# A run of marks is entered at its first alone, and nothing else that repeats begins a match: time is linear.
SENTENCE_BREAK = re.compile(r"""(?<![.?!])[.?!]+["'”’»)\]]*"""
                            r"(?:\[[\d,\s–-]{1,40}\]|(?<=[a-z][a-z]\.)\d[\d,–-]{,9}(?=\s))?\s+|\n[^\S\n]*\n\s*")
CLOSING_BRACKET = re.compile(r"[^(]{,200}\)")


def split_sentences(text: str) -> list[tuple[int, int]]:
    """Find the sentences of biomedical prose: (start, end) characters of each, without the white space around.

    A sentence ends at . ? or ! before white space and what can open another (a capital, a digit, p53, mRNA), unless
    the full stop is that of an abbreviation or an initial, or stands in brackets; and at every empty line. Marks
    of citation behind the full stop ("in mice.[3,4]", "in mice.3") belong to the sentence that they end.
    """
    spans, start = [], len(text) - len(text.lstrip())
    for found in SENTENCE_BREAK.finditer(text, start):
        if found[0].count("\n") > 1 or ends_sentence(text, start, found):
            spans.append((start, found.start() + len(found[0].rstrip())))
            start = found.end()
    end = len(text.rstrip())
    return spans + [(start, end)] if start < end else spans


def ends_sentence(text: str, start: int, found: re.Match) -> bool:
    """Tell whether the marks found end the sentence that began at `start`; looks 200 characters around at most."""
    stop, mark = found.start(), found[0].rstrip()
    following = (text[found.end():found.end() + 40].lstrip("\"'“‘«([").split() or [""])[0]
    if following.islower() and not re.search(r"\d|^[α-ω]-", following):                # p53 and β-actin open sentences
        return False
    before = text[max(start, stop - 200):stop]
    if before.rfind("(") > before.rfind(")") and ")" not in mark and CLOSING_BRACKET.match(text, found.end()):
        return False
    if mark[0] != "." or mark[1:2] and not mark[1].isdigit():                           # no full stop, or not alone
        return True
    words = before.split()[-2:]
    word = words[-1].lstrip("\"'“‘«([") if words else ""
    if word.lower() in NEVER_LAST or word.lower() in BEFORE_NUMBER and following[:1].isdigit():
        return False
    if before.isdigit() and start + len(before) == stop:                                # it heads a paragraph
        return False
    if word.lower() in RARELY_LAST or re.fullmatch(r"[A-Z]|(?:[A-Za-z]{1,2}\.)+[A-Za-z]{1,2}", word):
        is_name = words[0].lower() in LETTERED or words[0][-1].isdigit()                # "at 37 C."
        return following.lower().rstrip(",") in OPENERS or len(words) == 2 and len(word) == 1 and is_name
    return True


def corpus_files(paths: Iterable[str | os.PathLike]) -> list[Path]:
    """List the given files, and all files below the given folders (sorted) that are not hidden."""
    files: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
        if path.is_dir():
            files += sorted(file for file in path.rglob("*") if file.is_file()
                            and not any(part.startswith(".") for part in file.relative_to(path).parts))
        else:
            files.append(path)
    return files


def decompressed(file: Any) -> io.BufferedReader:
    """Read an open file that is plain, gzip or xz; its first bytes tell which, whatever its name."""
    packed = io.BufferedReader(file, READ_BYTES)
    magic = packed.peek(6)
    if magic.startswith(b"\x1f\x8b"):
        return io.BufferedReader(typing.cast(Any, gzip.GzipFile(fileobj=packed)), READ_BYTES)
    if magic.startswith(b"\xfd7zXZ\x00"):
        return io.BufferedReader(typing.cast(Any, lzma.LZMAFile(packed)), READ_BYTES)
    return packed


def damaged_archive(place: str, error: BaseException) -> ValueError:
    """Word the error of an archive that cannot be read to its end."""
    return ValueError(f"{place}: the archive is truncated or damaged ({error}): fetch it again")


def decode_line(line: bytes, number: int, place: str | os.PathLike) -> str:
    """Decode a line and drop its end, of the first also a byte order mark; ValueError where it is not UTF-8."""
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{place} line {number}: not UTF-8 ({error.reason} at byte {error.start} of the line): "
                         "convert the file to UTF-8") from None


def numbered_lines(path: str | os.PathLike) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line without its end) of a file, compressed or not.

    Lines end at \\n alone (a preceding \\r goes too): text from PDF files holds characters such as U+2028
    that str.splitlines would also break at.
    raises   ValueError naming path and line where the bytes are not UTF-8 or the archive is damaged
    """
    number = 0
    try:
        with open(path, "rb", buffering=0) as raw:
            for number, line in enumerate(decompressed(raw), start=1):
                yield number, decode_line(line, number, path)
    except DAMAGED as error:
        raise damaged_archive(f"{path} after line {number}", error) from None


class Piece(NamedTuple):
    """Whole documents of one file, not yet looked at: what is handed from one process to another."""

    name: str                   # the path; of what an archive holds, with the name there
    line: int                   # number of its first line
    is_xml: bool
    content: bytes | None       # None for an XML file: who wants its documents opens it
    position: int               # bytes of the file, as it lies on the disk, up to the end of this piece


def read_pieces(path: str | os.PathLike) -> Iterator[Piece]:
    """Cut a text, XML or tar file, compressed or not, into pieces that can be read one by one.

    Text gives pieces of at most BLOCK_BYTES; XML one for each file. Archives are read as a stream, their members
    as files are; nothing is unpacked, so a member's name can do no harm. What is no text there is left out.
    raises   ValueError naming path and line where the archive is damaged or a line is longer than a block
    """
    name, left_out = f"{path} after line 0", 0
    with open(path, "rb", buffering=0) as raw:
        try:
            file = decompressed(raw)
            head = file.peek(512)
            if head[257:262] != b"ustar":
                if IS_XML.match(head):
                    yield Piece(str(path), 1, True, None, os.path.getsize(path))
                else:
                    yield from cut_text(file, str(path), raw)
                return
            with tarfile.open(fileobj=file, mode="r|") as archive:
                while (member := archive.next()) is not None:
                    typing.cast(Any, archive).members.clear()           # else memory grows with their number
                    if not member.isfile():                 # a folder, a link, a device
                        continue
                    name = f"{path}: {member.name}"
                    content = decompressed(archive.extractfile(member))
                    head = content.peek(512)[:512]
                    if IS_XML.match(head):
                        xml = content.read(XML_MEMBER_BYTES + 1)
                        if len(xml) > XML_MEMBER_BYTES:
                            raise ValueError(f"{name}: XML of more than {XML_MEMBER_BYTES:,} bytes: unpack the archive")
                        yield Piece(name, 1, True, xml, raw.tell())
                    elif b"\0" in head or "\ufffd" in head.decode(errors="replace")[:-1]:
                        left_out += 1
                    else:
                        yield from cut_text(content, name, raw)
        except DAMAGED as error:
            raise damaged_archive(name, error) from None
    if left_out:
        say(f"{path}: {left_out:,} members that hold no text left out")


def cut_text(file: io.BufferedReader, name: str, raw: io.FileIO) -> Iterator[Piece]:
    """Cut a stream of text into pieces of at most BLOCK_BYTES, between documents; longer ones at a line's end."""
    line, rest, size = 1, b"", BLOCK_BYTES
    while size == BLOCK_BYTES:
        parts, size = [rest], len(rest)
        try:
            while size < BLOCK_BYTES and (chunk := file.read1(min(READ_BYTES, BLOCK_BYTES - size))):
                parts.append(chunk)
                size += len(chunk)
        except DAMAGED as error:
            line += sum(part.count(b"\n") for part in parts)
            raise damaged_archive(f"{name} after line {line - 1}", error) from None
        text = b"".join(parts)
        end = size if size < BLOCK_BYTES else last_border(text) or text.rfind(b"\n") + 1
        if size and not end:
            raise ValueError(f"{name} line {line}: longer than {BLOCK_BYTES:,} bytes: expected a sentence on each line")
        yield Piece(name, line, False, text[:end], raw.tell())
        line += text.count(b"\n", 0, end)
        rest = text[end:]


def last_border(text: bytes) -> int:
    """Find where the last empty line ends, behind which a new document begins; 0 without one."""
    end = text.rfind(b"\n")
    while end >= 0:
        start = text.rfind(b"\n", 0, end)
        if not text[start + 1:end].strip():
            return end + 1
        end = start
    return 0


class Reading(NamedTuple):
    """What is taken from a corpus, and in which form."""

    min_pmid: int = 0                                       # PubMed records below it are left out
    language: str | None = None                             # and those in other languages; a code such as eng
    preprocess: Callable[[str], str] | None = None          # what becomes of each sentence


def describe_reading(reading: Reading) -> dict[str, Any]:
    """Write down for index.json what is taken, functions by name."""
    return {**reading._asdict(), "preprocess": getattr(reading.preprocess, "__name__", None)}


def read_documents(path: str | os.PathLike, reading: Reading = Reading()) -> Iterator[Document]:
    """Yield the documents of a file, as lists of sentences; what the file holds tells its format, not its name.

    Text: one sentence a line, an empty line after each document. PubMed's XML (of today, and the MEDLINE form of
    2010): title and abstract. PMC's (JATS): title, abstract and every section but the references, without
    headings, tables, figures, formulas and numbers of citations. Any of these as .gz or .xz, and .tar of them.
    raises   ValueError or OSError that names the path and the line
    """
    for piece in read_pieces(path):
        yield from piece_documents(piece, reading)


def piece_documents(piece: Piece, reading: Reading) -> Iterator[Document]:
    """Yield the documents of one piece, each sentence preprocessed."""
    for document in xml_documents(piece, reading) if piece.is_xml else text_documents(piece):
        if reading.preprocess:
            document = list(filter(None, map(reading.preprocess, document)))
        if document:
            yield document


def text_documents(piece: Piece) -> Iterator[Document]:
    """Yield the documents of a text; ValueError naming the line where it is not UTF-8."""
    document: Document = []
    for number, line in enumerate(io.BytesIO(piece.content or b""), start=piece.line):
        if sentence := decode_line(line, number, piece.name).strip():
            document.append(sentence)
        elif document:
            yield document
            document = []
    if document:
        yield document


XML_ROOTS = frozenset("PubmedArticleSet PubmedArticle PubmedBookArticleSet MedlineCitationSet MedlineCitation "
                      "pmc-articleset article".split())
RECORDS = frozenset("MedlineCitation BookDocument article".split())
# Elements with text that is wanted, and the parent they must have where others hold one of the same name.
WANTED = {"PMID": "MedlineCitation", "Language": None, "ArticleTitle": None, "AbstractText": None,
          "article-title": "title-group", "abstract": None, "body": None, "back": None}
HIDDEN = frozenset("""OtherAbstract trans-abstract sub-article response ref-list table-wrap table-wrap-group table fig
    fig-group disp-formula disp-formula-group inline-formula math tex-math caption title label graphic inline-graphic
    media supplementary-material inline-supplementary-material chem-struct-wrap alt-text object-id fn fn-group notes
    glossary def-list array code preformat attrib permissions""".split())
PARAGRAPHS = frozenset([*WANTED, *"p sec list list-item disp-quote boxed-text ack app bio statement speech".split()])
CITATIONS = re.compile(r" ?(?:\[ ?\0 ?\]|\( ?\0 ?\)|\0)")


def xml_documents(piece: Piece, reading: Reading) -> Iterator[Document]:
    """Yield the documents of PubMed's or PMC's XML, in constant memory.

    Entities that the file declares itself are refused (a few lines of them can stand for gigabytes), files it
    refers to are never opened; the named characters of HTML are known.
    raises   ValueError naming the line where the XML is broken, of another kind, or one document a whole block long
    """
    reader = XmlReader(piece.name, reading)
    parser, fed = reader.parser, 0
    with open(piece.name, "rb", buffering=0) if piece.content is None else io.BytesIO(piece.content) as raw:
        try:
            file = decompressed(raw)
            while chunk := file.read(1 << 16):
                parser.Parse(chunk, False)
                fed += len(chunk)
                if fed - parser.CurrentByteIndex > READ_BYTES + len(chunk):         # expat waits for its end
                    raise reader.error(f"a tag or comment of more than {READ_BYTES:,} bytes")
                yield from reader.documents
                reader.documents.clear()
            parser.Parse(b"", True)
        except expat.ExpatError as error:
            raise reader.error(f"broken XML ({expat.ErrorString(error.code)})") from None
        except DAMAGED as error:
            raise damaged_archive(f"{piece.name} after line {parser.CurrentLineNumber}", error) from None
    yield from reader.documents


class XmlReader:
    """What is remembered while the parser walks through the elements of a file."""

    def __init__(self, name: str, reading: Reading) -> None:
        self.name, self.reading = name, reading
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartElementHandler, self.parser.EndElementHandler = self.start, self.end
        self.parser.CharacterDataHandler, self.parser.EntityDeclHandler = self.characters, self.refuse_entity
        self.parser.DefaultHandler = self.named_character
        self.documents: list[Document] = []
        self.open = [("", "outside")]           # tag of each open element, and whether it is inside wanted text,
        #                                         outside of all of it, or hidden with all that it holds
        self.document: Document = []
        self.languages: list[str] = []
        self.pmid: int | None = None
        self.size = 0                           # characters of the document
        self.text: list[str] = []               # of the paragraph
        self.marks: list[tuple[int, bool]] = []         # where its open references and superscripts begin

    def error(self, what: str) -> ValueError:
        """Word an error with the place that the parser has reached."""
        return ValueError(f"{self.name} line {self.parser.CurrentLineNumber}: {what}")

    def refuse_entity(self, name: str, *_: Any) -> None:
        """Stop at an entity that the file declares itself."""
        raise self.error(f"declares the entity {name}: expected PubMed's or PMC's XML, which declares none")

    def named_character(self, markup: str) -> None:
        """Take markup without a handler, among it references such as &alpha; that only a file not opened declares."""
        if markup.startswith("&"):
            self.characters(html.unescape(markup))

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """Enter an element: is its text wanted, does a paragraph end before it, does a record begin?"""
        tag, (parent, state) = tag.rpartition(":")[2], self.open[-1]            # mml:math
        if len(self.open) == 1 and tag not in XML_ROOTS:
            raise self.error(f"root element {tag}: expected {', '.join(sorted(XML_ROOTS))}")
        if len(self.open) > 1000:
            raise self.error("more than 1,000 elements inside each other")
        if state == "hidden" or tag in HIDDEN:
            state = "hidden"
        elif tag in WANTED and WANTED[tag] in (None, parent):
            state = "inside"
        self.open.append((tag, state))
        if tag in RECORDS and state != "hidden":
            self.document, self.languages, self.pmid, self.size = [], [], None, 0
        if state == "inside":
            if tag in PARAGRAPHS:
                self.end_paragraph(parent)
            elif tag in ("sup", "xref"):
                self.marks.append((len(self.text), attributes.get("ref-type") == "bibr"))
            elif tag == "break":
                self.characters(" ")

    def characters(self, text: str) -> None:
        """Take text where it is wanted."""
        if self.open[-1][1] == "inside":
            self.text.append(text)
            self.size += len(text)
            if self.size > BLOCK_BYTES:
                raise self.error(f"a document of more than {BLOCK_BYTES:,} characters: cut it")

    def end(self, tag: str) -> None:
        """Leave an element: does a paragraph end with it, or a record?"""
        tag, state = self.open.pop()
        if state == "inside":
            if tag in PARAGRAPHS:
                self.end_paragraph(tag)
            elif tag in ("sup", "xref"):
                self.end_mark(*self.marks.pop())
        if tag in RECORDS and state != "hidden" and self.document and (self.pmid is None or (
                self.pmid >= self.reading.min_pmid and self.reading.language in (None, *self.languages))):
            self.documents.append(self.document)

    def end_mark(self, start: int, is_citation: bool) -> None:
        """Mark a citation by number with a NUL, which no XML holds; those with names stay. 10<sup>6</sup> is 10^6."""
        content = "".join(self.text[start:])
        if is_citation and not any(map(str.isalpha, content)):
            self.text[start:] = "\0"
        elif re.match(r"[-−+]?\d", content) and start and self.text[start - 1][-1].isdigit():
            self.text.insert(start, "^")

    def end_paragraph(self, tag: str) -> None:
        """Take the text since the last paragraph; of one in `tag`, or before another one begins in it."""
        text = " ".join("".join(self.text).split())
        self.text.clear()
        self.marks = [(0, is_citation) for _, is_citation in self.marks]
        if "\0" in text:
            text = CITATIONS.sub("", re.sub(r"\0(?:[ ,;–-]*\0)+", "\0", text))
        if tag == "PMID":
            self.pmid = int(text) if text.isdecimal() else None
        elif tag == "Language":
            self.languages.append(text)
        elif tag == "ArticleTitle":                             # [of an article that is not in English]
            text = re.sub(r"^\[(.*)\]\.?$", r"\1", text)
            text = "" if text.rstrip(".") in ("Not Available", "In Process Citation") else text
        if tag not in ("PMID", "Language"):
            self.document += [text[start:end] for start, end in split_sentences(text)]


# --- 2. Pre-training examples ---

Segments = tuple[list[int], list[int]]          # wordpieces of segment A and of segment B (may be empty)


def build_examples(documents: Iterable[list[list[int]]], max_length: int, rng: random.Random) -> Iterator[Segments]:
    """Cut documents into examples of at most max_length tokens, [CLS] A [SEP] B [SEP] counted.

    documents   sentences as lists of wordpiece ids
    source      TF build_pretraining_dataset.ExampleBuilder.add_line
    """
    target = max_length
    for sentences in documents:
        pending: list[list[int]] = []
        length = 0
        for number, sentence in enumerate(sentences, start=1):
            pending.append(sentence)
            length += len(sentence)
            if length >= target or (number == len(sentences) and length):
                yield split_segments(pending, target, max_length, rng)
                pending, length = [], 0
                # Now and then a short target, so that the model meets short inputs too.
                target = rng.randint(5, max_length) if rng.random() < 0.05 else max_length


def split_segments(sentences: list[list[int]], target: int, max_length: int, rng: random.Random) -> Segments:
    """Distribute whole sentences over segments A and B, then cut both to fit.

    One example in ten has segment A alone, as in single-sentence tasks.
    source   TF build_pretraining_dataset.ExampleBuilder._create_example
    """
    first_target = 100_000 if rng.random() < 0.1 else (target - 3) // 2            # tokens
    first: list[int] = []
    second: list[int] = []
    for sentence in sentences:
        if (not first or len(first) + len(sentence) < first_target
                or (not second and len(first) < first_target and rng.random() < 0.5)):
            first += sentence
        else:
            second += sentence
    first = first[:max_length - 2]                                                 # room for [CLS] and [SEP]
    return first, second[:max(0, max_length - len(first) - 3)]


# --- 3. Shards ---
#
# A corpus is tokenized once into a folder of plain arrays:
#   index.json           what was built from what, and for each shard its counts and SHA-256
#   00000.tokens.npy     uint16, all examples one after the other, unpadded, with [CLS] and [SEP]
#   00000.starts.npy     int64, where each example starts, and the end
#   00000.first.npy      uint16, length of [CLS] A [SEP]: token type 0; the rest is B [SEP], type 1

FORMAT_VERSION = 2
HELD_OUT_EVERY = 100                # every 100th document is kept from training, for evaluation


class Block(NamedTuple):
    """What becomes one shard."""

    number: int
    pieces: list[Piece]             # at most BLOCK_BYTES of text together, or one XML file
    position: int                   # bytes of the corpus up to its end


def read_blocks(files: Iterable[Path]) -> Iterator[Block]:
    """Deal the files out in blocks. They depend on the files alone, and to find them nothing is looked at closely."""
    number = size = before = position = 0
    pieces: list[Piece] = []
    for file in files:
        for piece in read_pieces(file):
            more = piece.position if piece.content is None else len(piece.content)
            if pieces and size + more > BLOCK_BYTES:
                yield Block(number, pieces, position)
                number, size, pieces = number + 1, 0, []
            pieces.append(piece)
            size, position = size + more, before + piece.position
        before += file.stat().st_size
    if pieces:
        yield Block(number, pieces, before)


def build_shards(paths: Iterable[str | os.PathLike], tokenizer: Any, out: str | os.PathLike, max_length: int = 128,
                 seed: int = 0, workers: int | None = None, reading: Reading = Reading()) -> None:
    """Tokenize a corpus into a shard folder; the same call on a half-built folder completes it.

    This process cuts the corpus into blocks of whole documents; a block becomes a shard in one of the workers, and
    its random choices are seeded by its number: any number of workers gives the same files.
    workers   processes; None for one a core, fewer when the corpus is small
    raises    ValueError when `out` was built from something else, or the vocabulary does not fit into uint16;
              OSError when a worker was killed
    """
    if len(tokenizer.pieces) > 2 ** 16:
        raise ValueError(f"the vocabulary has {len(tokenizer.pieces)} pieces, shards store ids below 65536")
    if max_length < 8:
        raise ValueError(f"max_length {max_length} leaves no room for text: use at least 8")
    folder, files = Path(out), corpus_files(paths)
    folder.mkdir(parents=True, exist_ok=True)
    sources: list[list[Any]] = [[file.name, file.stat().st_size] for file in files]
    wanted = {"format": FORMAT_VERSION, "vocabulary": vocabulary_hash(tokenizer), "max_length": max_length,
              "seed": seed, "text": describe_reading(reading), "sources": sources}
    index = continue_index(folder, wanted)
    if index["complete"]:
        return
    shards, size = index["shards"], sum(size for _, size in sources)                # bytes, perhaps compressed 4 to 1
    job = functools.partial(write_shard, folder, tokenizer, max_length, seed, reading)
    blocks = itertools.islice(read_blocks(files), len(shards), None)
    progress = Progress(size // 10 ** 6, "MB of the corpus", shards[-1]["position"] // 10 ** 6 if shards else 0)
    workers = min(workers or os.cpu_count() or 1, 1 + 4 * size // BLOCK_BYTES)
    for entry in map(job, blocks) if workers == 1 else map_in_processes(job, blocks, workers):
        shards.append(entry)
        write_bytes(folder / "index.json", json.dumps(index).encode())
        progress.show(entry["position"] // 10 ** 6)
    if not any(entry["examples"] for entry in shards):
        raise ValueError(f"no text in {', '.join(map(str, files)) or 'the given folders'}")
    write_bytes(folder / "index.json", json.dumps({**index, "complete": True}, indent=1).encode())
    for leftover in folder.glob("*.tmp"):                           # of runs that were killed
        leftover.unlink()
    progress.finish()


def map_in_processes(job: Callable[[Block], dict], blocks: Iterable[Block], workers: int) -> Iterator[dict]:
    """Yield job(block) for each block, in order; at most two blocks more than there are workers are held at a time.

    raises   what a job raises; ChildProcessError when a worker was killed
    """
    waiting: collections.deque[concurrent.futures.Future[dict]] = collections.deque()
    pool = concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker, (job,))
    try:
        for block in blocks:
            waiting.append(pool.submit(run_job, block))
            if len(waiting) > workers + 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except concurrent.futures.process.BrokenProcessPool:
        raise ChildProcessError("a worker was killed, perhaps for lack of memory: fewer --workers need less of it; "
                                "the same command continues") from None
    finally:
        pool.shutdown(cancel_futures=True)


worker_jobs: list[Callable[[Block], dict]] = []         # in a worker: what it does with each block, alone


def start_worker(job: Callable[[Block], dict]) -> None:
    """Keep the job, and with it what the tokenizer remembers, from block to block; end with the parent."""
    def wait_for_parent() -> None:
        typing.cast(Any, multiprocessing.parent_process()).join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)                    # Ctrl-C is for the parent
    threading.Thread(target=wait_for_parent, daemon=True).start()
    worker_jobs.append(job)


def run_job(block: Block) -> dict:
    """Run the job that this worker was started with."""
    return worker_jobs[0](block)


def vocabulary_hash(tokenizer: Any) -> str:
    """Hash all pieces and the casing by SHA-256: two tokenizers with one hash give the same ids."""
    content = "\n".join([*tokenizer.pieces, f"lowercase={tokenizer.lowercase}"])
    return hashlib.sha256(content.encode()).hexdigest()


def continue_index(folder: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """Read the folder's index.json, or begin one; ValueError where it was built from something else than wanted."""
    if not (folder / "index.json").exists():
        return {**wanted, "complete": False, "shards": []}
    index = read_index(folder)
    for key, value in wanted.items():
        if index.get(key) != value:
            raise ValueError(f"{folder} was built with another {key} ({str(index.get(key)):.100}, now "
                             f"{str(value):.100}): choose another folder or delete this one")
    return index


def write_shard(folder: Path, tokenizer: Any, max_length: int, seed: int, reading: Reading, block: Block) -> dict:
    """Tokenize one block and write its three arrays, held-out examples last; returns its entry in the index."""
    rng = random.Random(f"{seed}/{block.number}")
    counts = collections.Counter(documents=0, sentences=0, words=0, wordpieces=0, unknown=0)
    held_out: list[Document] = []
    documents = (document for piece in block.pieces for document in piece_documents(piece, reading))

    def encode(document: Document) -> list[list[int]]:
        if counts["wordpieces"] > 1 << 27:                          # 256 MB of them
            raise ValueError(f"{block.pieces[0].name}: an XML file with more than 134,217,728 wordpieces: cut it")
        sentences = tokenizer.encode_batch(document)
        counts.update(documents=1, sentences=len(document), words=len(" ".join(document).split()),
                      wordpieces=sum(map(len, sentences)),
                      unknown=sum(ids.count(tokenizer.unk_id) for ids in sentences))
        return sentences

    def train() -> Iterator[list[list[int]]]:
        first = 37 * block.number               # so that blocks of fewer than a hundred documents hold out some too
        for number, document in enumerate(documents, start=first):
            if number % HELD_OUT_EVERY == HELD_OUT_EVERY - 1:
                held_out.append(document)
            else:
                yield encode(document)

    tokens, starts, firsts = array("H"), array("q", [0]), array("H")
    for part in (train(), map(encode, held_out)):
        trained = len(firsts)               # of the parts before
        for a, b in build_examples(part, max_length, rng):
            tokens.fromlist([tokenizer.cls_id, *a, tokenizer.sep_id] + ([*b, tokenizer.sep_id] if b else []))
            starts.append(len(tokens))
            firsts.append(len(a) + 2)
    digest = hashlib.sha256()
    for name, values in (("tokens", tokens), ("starts", starts), ("first", firsts)):
        content = io.BytesIO()
        np.save(content, np.array(values))
        write_bytes(folder / f"{block.number:05d}.{name}.npy", content.getbuffer())
        digest.update(content.getbuffer())
    return {**counts, "tokens": len(tokens), "examples": len(firsts), "held_out": len(firsts) - trained,
            "position": block.position, "sha256": digest.hexdigest()}


def write_bytes(path: Path, content: bytes | bytearray | memoryview) -> None:
    """Write a file under a temporary name, flush it to the disk, then rename it: all or nothing."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")    # a killed run's worker may still be writing
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_index(folder: Path) -> dict:
    """Read index.json; ValueError or OSError naming the folder when it is missing or of another format."""
    path = folder / "index.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a shard folder is made by: python data.py build")
    try:
        index = json.loads(path.read_bytes())
        if index["format"] == FORMAT_VERSION:
            return index
        raise ValueError(f"format {index['format']}, expected {FORMAT_VERSION}: build the shards anew")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not an index of shards ({error})") from None


def verify_shards(path: str | os.PathLike) -> int:
    """Compare every shard's bytes with its SHA-256; returns the number of shards.

    raises   ValueError naming the first shard that differs
    """
    folder = Path(path)
    entries = read_index(folder)["shards"]
    for number, entry in enumerate(entries):
        digest = hashlib.sha256()
        for name in ("tokens", "starts", "first"):
            digest.update((folder / f"{number:05d}.{name}.npy").read_bytes())
        if digest.hexdigest() != entry["sha256"]:
            raise ValueError(f"{folder}: shard {number:05d} is damaged (its SHA-256 differs): build the shards anew")
    return len(entries)


class Shards:
    """A shard folder, open for reading. Token arrays are memory-mapped when first needed.

    lengths     (examples,) tokens of each example
    train       (n,) numbers of the examples to train on
    held_out    (m,) numbers of the examples of documents kept from training
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.folder = Path(path)
        self.index = read_index(self.folder)
        if not self.index["complete"]:
            raise ValueError(f"{self.folder} is half-built: repeat the command that builds it to complete it")
        self.starts, self.firsts = [], []
        for number, entry in enumerate(self.index["shards"]):
            self.starts.append(self.load(number, "starts"))
            self.firsts.append(self.load(number, "first"))
            sizes = len(self.starts[-1]) - 1, len(self.firsts[-1]), len(self.load(number, "tokens"))
            if sizes != (entry["examples"], entry["examples"], entry["tokens"]):
                raise ValueError(f"{self.folder}: shard {number:05d} and index.json disagree: build the shards anew")
        self.lengths = np.concatenate([np.diff(starts) for starts in self.starts])
        self.offsets = np.cumsum([0] + [entry["examples"] for entry in self.index["shards"]])
        is_held_out = np.zeros(len(self.lengths), bool)
        for end, entry in zip(self.offsets[1:], self.index["shards"]):
            is_held_out[end - entry["held_out"]:end] = True
        self.train, self.held_out = np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)
        # 512 maps at most: every open map costs a file descriptor
        self.tokens = functools.lru_cache(maxsize=512)(lambda number: self.load(number, "tokens"))

    def load(self, number: int, name: str) -> np.ndarray:
        """Read one array of one shard, the tokens as a memory map."""
        path = self.folder / f"{number:05d}.{name}.npy"
        try:
            return np.load(path, mmap_mode="r" if name == "tokens" else None)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{path}: truncated or damaged ({error}): build the shards anew") from None

    def example(self, number: int) -> tuple[np.ndarray, int]:
        """Return the token ids of one example, and how many of them are segment A with its [CLS] and [SEP]."""
        shard = int(np.searchsorted(self.offsets, number, side="right")) - 1
        row = number - self.offsets[shard]
        start, end = self.starts[shard][row:row + 2]
        return self.tokens(shard)[start:end], int(self.firsts[shard][row])


def open_shards(path: str | os.PathLike) -> Shards:
    """Open a shard folder; ValueError or OSError naming it when it is missing, half-built or damaged."""
    return Shards(path)


# --- 4. Batches ---

class Batch(NamedTuple):
    """Padded rows, int64: what every model takes."""

    input_ids: np.ndarray           # (B, T)
    attention_mask: np.ndarray      # (B, T) 1 on real tokens
    token_type_ids: np.ndarray      # (B, T) 0 on [CLS] A [SEP] and padding, 1 on B [SEP]


def seed_for(seed: int, step: int, purpose: str) -> int:
    """Derive a seed for one purpose in one step: random numbers depend on (seed, step) alone, never on history."""
    sequence = np.random.SeedSequence([seed, step, zlib.crc32(purpose.encode())])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))        # 63 bits: torch's seeds are signed


def bucket_widths(max_length: int) -> np.ndarray:
    """List the few row lengths batches are padded to, ascending: 16 24 32 40 48 64 80 104 128, and so on.

    Multiples of 8, each about 1.2 times the one before: an example wastes a twelfth of its row on average, and
    a compiler that specialises on shapes sees few.
    """
    widths = [max_length]
    while widths[-1] > 16:
        widths.append(max(16, int(widths[-1] / 1.2) // 8 * 8))
    return np.array(widths[::-1])


def plan_batches(lengths: np.ndarray, batch_size: int, max_length: int, rng: np.random.Generator,
                 keep_rest: bool = False) -> list[tuple[int, np.ndarray]]:
    """Group examples of like length into batches, in random order; each example at most once.

    lengths     (examples,) tokens
    keep_rest   also return the last, smaller batch; otherwise fewer than batch_size examples are left out,
                other ones at every call
    returns     (width, example numbers) for each batch

    The fewer than batch_size rows left over at one width join those of the next, so only the last leaves any out.
    """
    widths = bucket_widths(max_length)
    if len(lengths) and lengths.max() > max_length:
        raise ValueError(f"an example has {lengths.max()} tokens, more than the maximum length {max_length}")
    bucket = np.searchsorted(widths, lengths)
    batches: list[tuple[int, np.ndarray]] = []
    waiting = np.empty(0, np.int64)
    for number, width in enumerate(widths):
        pool = np.concatenate([waiting, rng.permutation(np.flatnonzero(bucket == number))])
        full = len(pool) // batch_size * batch_size
        batches += [(int(width), rows) for rows in pool[:full].reshape(-1, batch_size)]
        waiting = pool[full:]
    if keep_rest and len(waiting):
        batches.append((int(widths[bucket[waiting].max()]), waiting))
    return [batches[i] for i in rng.permutation(len(batches))]


def pad_batch(examples: Sequence[tuple[Sequence[int] | np.ndarray, int]], width: int, pad_id: int) -> Batch:
    """Pad (token ids, length of the first segment) pairs to rows of `width` tokens."""
    shape = (len(examples), width)
    batch = Batch(np.full(shape, pad_id, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.int64))
    for row, (ids, first_length) in enumerate(examples):
        batch.input_ids[row, :len(ids)] = ids
        batch.attention_mask[row, :len(ids)] = 1
        batch.token_type_ids[row, first_length:len(ids)] = 1
    return batch


# --- 5. Task files ---

class TaggedSentence(NamedTuple):
    """Entity recognition: one sentence, one tag a word, both as in the file."""

    words: list[str]
    tags: list[str]


class LabelledText(NamedTuple):
    """Relations: a sentence whose two entities are placeholders such as @DRUG$, and the relation's name.

    Yes/no questions: the question, its answer in words (`text_pair`), and 1 for yes, 0 for no.
    """

    id: str
    text: str
    label: str
    text_pair: str | None = None


class Candidate(NamedTuple):
    """Ranking: a question (group and text) and a sentence that answers it (label 1) or does not (0)."""

    group: str
    text: str
    text_pair: str
    label: str


class Question(NamedTuple):
    """Question answering: answers are (text, start in the context); BioASQ's test sets have `gold` instead."""

    id: str
    question: str
    context: str
    answers: list[tuple[str, int]]
    batch: int | None = None                # BioASQ: number of the test batch
    gold: list[str] | None = None           # BioASQ: accepted synonyms, whether or not a context holds one
    article: int = 0                        # number of the article in its file


class Task(NamedTuple):
    """What a task is made of."""

    kind: str                                       # ner, re, qa, classify or rank
    folder: str = ""                                # below the data root; "" for tasks without files
    source: str = ""                                # where the files are published
    labels: tuple[str, ...] = ()                    # all of them; () accepts any
    negative: str | None = None                     # re: the label that means "no relation", not scored
    metric: str = "f1"                              # the score that chooses an epoch
    files: tuple[tuple[str, ...], ...] = ()         # names of train, dev, test where they are not the usual ones
    parts: tuple[str, int, bool] | None = None      # where train or test is not there: the split to cut instead,
    #                                                 into how many parts, and whether one of them is for dev


STANDARD_FILES = tuple(tuple(f"{stem}{suffix}" for stem in stems for suffix in (".txt", ".tsv", ".csv", ".json"))
                       for stems in (("train",), ("dev", "devel"), ("test",)))
JNLPBA = ("O", *(f"{tag}-{kind}" for kind in ("DNA", "RNA", "cell_line", "cell_type", "protein") for tag in "BI"))
CHEMPROT = ("CPR:3", "CPR:4", "CPR:5", "CPR:6", "CPR:9")
DDI = ("DDI-false", "DDI-advise", "DDI-effect", "DDI-int", "DDI-mechanism")
MIOLO, OZYURT = "gmpoli/electramed, data/", "SciCrunch/bio_electra, electra/data/finetuning_data/"
TASKS = {
    "ncbi-disease": Task("ner", "ner/ncbi-disease", MIOLO + "NER/NCBI-disease", ("O", "B-Disease", "I-Disease")),
    "bc5cdr": Task("ner", "ner/bc5cdr", MIOLO + "NER/bc5cdr", ("O", "B-Entity", "I-Entity")),
    "jnlpba": Task("ner", "ner/jnlpba", MIOLO + "NER/JNLPBA", JNLPBA),
    "bc4chemd": Task("ner", "ner/bc4chemd", OZYURT + "bc4chemd"),
    "bc2gm": Task("ner", "ner/bc2gm", OZYURT + "bc2gm", ("O", "B-GENE", "I-GENE")),
    "linnaeus": Task("ner", "ner/linnaeus", OZYURT + "linnaeus"),
    "chemprot": Task("re", "re/chemprot", MIOLO + "RE/chemprot", ("false", *CHEMPROT), "false"),
    "chemprot-tsv": Task("re", "re/chemprot-tsv", OZYURT + "chemprot", ("False", *CHEMPROT), "False"),
    "ddi2013": Task("re", "re/ddi-2013", MIOLO + "RE/ddi-2013", DDI, "DDI-false"),
    "gad": Task("re", "re/gad", OZYURT + "gad", ("0", "1"), "0", parts=("train", 10, True)),
    "squad": Task("qa", "qa/squad", "rajpurkar.github.io/SQuAD-explorer", parts=("dev", 6, False),
                  files=(("train-v1.1.json",), *[("dev-v1.1.json", "xquad.en.json")] * 2)),
    "bioasq7b": Task("qa", "qa/bioasq", MIOLO + "QA/BioASQ", metric="mrr", files=(
        ("BioASQ-train-factoid-7b.json", "BioASQ-train-factoid-*.json"), ("*dev*.json",),
        ("BioASQ-test-factoid-7b-*.json",))),
    "bioasq8b": Task("qa", "qa/bioasq8b", OZYURT + "bioasq",
                     files=(("train*.json",), ("dev.json",), ("test.json", "dev.json"))),
    "yesno": Task("classify", "qa/yesno", OZYURT + "yesno", ("0", "1"), metric="macro_f1"),
    "rerank": Task("rank", "qa/reranker", OZYURT + "reranker", ("0", "1"), metric="mrr", parts=("dev", 5, False)),
    "demo-ner": Task("ner", labels=("O", "B-Disease", "I-Disease", "B-Drug", "I-Drug", "B-Gene", "I-Gene")),
    "demo-re": Task("re", labels=("false", "treats", "causes", "inhibits"), negative="false"),
    "demo-qa": Task("qa"),
    # the kinds, for data sets of one's own
    "ner": Task("ner"), "re": Task("re"), "qa": Task("qa"),
    "classify": Task("classify", labels=("0", "1"), metric="macro_f1"),
    "rank": Task("rank", labels=("0", "1"), metric="mrr"),
}
SPLITS = ("train", "dev", "test")

GITHUB = "https://raw.githubusercontent.com"
COMMITS = {"gmpoli/electramed": "674c6151001cae52d2abba7b4d0c0677a7c5f01a",
           "SciCrunch/bio_electra": "7a53526773e047c02f03400f61a906a636b9054d"}
# Task, then name and git blob of files below its source. Train files last: as long as one is not there, all that is
# missing is fetched, so an interrupted fetch leaves no set that looks whole. bioasq7b has no development set here:
# bioasq8b's dev.json shares questions with its test batches.
PUBLISHED_FILES = """
ncbi-disease dev.txt 88d1646e63a69b547bc3b9130149ee07eafe7904 test.txt d75a6e42036632fead309afeb255537c726d182d
ncbi-disease train.txt 4895ef60010515fcb2ccb7dce851a8433bedd904
bc5cdr dev.txt 2ca9babbec34d94bec30ae6874f6ca70215b5746 test.txt 7423daffe86397388e429f9671d6c7f972910360
bc5cdr train.txt 0951ed269e1b1561b81bd7d5472648b9336f09bc
jnlpba dev.txt 2b517edf6e3738ff12e875195890ae2195208594 test.txt bad88167217a1fe444d0f0f394e62cfddfc34626
jnlpba train.txt a6318ff48c8b8b82d9f6276f167adb7b3bf6f4bb
bc4chemd dev.txt 607eed70e400da4ce4fd6efea26910458dc71626 test.txt ce2aeda424709c92e05b022f4f8429970e47444e
bc4chemd train.txt f46f93b33d2152d83bbe6302557f48b809b53d2f
bc2gm dev.txt c083f1ef3d6c9113715c9782af67e1c6da31f6e4 test.txt 666f49afd8efeafbe34c846efb70be3f1fd92b5b
bc2gm train.txt 4cff7095a25ecda147466ab4b4a81a315d8641bd
linnaeus dev.txt 179aa3511bfa65d79b72a3872a933b60d9dca7c5 test.txt b3d846994dc82cd212e992b048a4f9589764778b
linnaeus train.txt c6f292a574a1a891ce7cc1b693cd0531171b30c7
chemprot dev.csv 7d98f7bc25ec470b4a19e2cd8eeb11382f69b357 test.csv b3e23a6ec0838dc441c1cd20081fae888264c426
chemprot train.csv ce4f21b372980e11d8da360249c3022f4be10909
chemprot-tsv dev.tsv 201dd471a065bff4a20c53f56a38495e8b6c8064 test.tsv 06f1ba4ecf0c79b8c15f2de8abea0124a89b1250
chemprot-tsv train.tsv 644856894743580e11fad0a17ccf9ddef4b7ade4
ddi2013 dev.csv 48888205c94d3271090964041300f1787a2bf3be test.csv 1c80e62329fb9dff90dd0c46e7b8273b2eca4808
ddi2013 train.csv 6085b354a4a0dd6175a44d31ef42325daa263d57
gad dev.tsv 0ffc3a8e5f029faee71b17de3537c8a853eeac0f test.tsv 0ffc3a8e5f029faee71b17de3537c8a853eeac0f
gad train.tsv 03f3109745ed6b55b72075891f66bfe8a473d444
bioasq7b 7B1_golden.json 61a2bc42271283ddad3fa5184a641b75d55c3754
bioasq7b 7B2_golden.json abff98032f2677089328da5f4171f532b086bca8
bioasq7b 7B3_golden.json 3cb6827d1da79a967dc23b3f718b45a04c20a86e
bioasq7b 7B4_golden.json b1bcffcdec281048b3686f16448ad9c34d6d8284
bioasq7b 7B5_golden.json 6f5a78717d2ad179354a0f1c53be4c920150b03c
bioasq7b BioASQ-test-factoid-7b-1.json 33bd5b73c823e444254be2621cb4b09e8d7b0cbc
bioasq7b BioASQ-test-factoid-7b-2.json 3ecef07d9d8e966abde924ab17630ebaac3b602c
bioasq7b BioASQ-test-factoid-7b-3.json afc68b24fa8e1687c25878ed24c987139a1c31c5
bioasq7b BioASQ-test-factoid-7b-4.json 51a209563def21f935e1d0250369bb4d3c55d30e
bioasq7b BioASQ-test-factoid-7b-5.json c1e185b9318611c3cb0588a195452d5684619ff3
bioasq7b BioASQ-train-factoid-7b.json f1f71528a1558354a35c0978408e77aef77d361b
bioasq8b dev.json 3fff09fc6370d8c8a23b8269913c94f776335ad2 train.json 9d5fa4f82577e1eb20bcdcf54a0d6fe9da6de1ad
yesno dev.tsv a7531645fc0611fd2c05dadfeed3d749aeee2cfe test.tsv a7531645fc0611fd2c05dadfeed3d749aeee2cfe
yesno train.tsv 2b53cf61b9d93a195da9a727a3ef4dddc8140936
rerank dev.tsv 76c45b5d95faf59a3bcafe0ea7841425452527c1 test.tsv 76c45b5d95faf59a3bcafe0ea7841425452527c1
rerank train.tsv 9f7a9b2692855528f654a2e3b866ce0a2a696ff4
"""


def read_task(name: str, split: str, directory: str | os.PathLike | None = None) -> list:
    """Read one split of a task: TaggedSentence, LabelledText, Question or Candidate, by the task's kind.

    name        one of TASKS; the kinds among them are for data sets of one's own in the same form
    split       train, dev or test
    directory   the data root (ner/..., re/..., qa/..., upper or lower case), or the folder that holds the files;
                the demo tasks need none
    raises      ValueError naming file and line of what is malformed; OSError for what is not there
    """
    task = find_task(name)
    if split not in SPLITS:
        raise ValueError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
    if name.startswith("demo-"):
        return demo_examples(name, split)
    readers: dict[str, Callable[..., list]] = {"ner": read_tagged, "re": read_labelled, "qa": read_questions,
                                               "classify": read_pairs, "rank": read_candidates}
    examples = [example for path in find_split(name, split, directory)
                for example in readers[task.kind](path, task.labels)]
    if not examples:
        raise ValueError(f"{name}: no examples in the {split} file of {directory}")
    return examples


def find_task(name: str) -> Task:
    """Look up the task, or the kind, of this name; ValueError for none."""
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}: expected one of {', '.join(TASKS)}")
    return TASKS[name]


def cut_splits(task: Task, examples: list, fold: int) -> dict[str, list]:
    """Cut one file into train, dev (if the task has one) and test: part `fold` of a fixed random draw is for test.

    What is the same relation sentence, of one article or about one question stays in one part.
    """
    assert task.parts, "only tasks with parts are cut"
    _, count, has_dev = task.parts
    key = {"re": "text", "qa": "article", "rank": "group"}[task.kind]
    groups = list(dict.fromkeys(getattr(example, key) for example in examples))
    random.Random(0).shuffle(groups)
    part_of = {group: number % count for number, group in enumerate(groups)}
    use_of = ["train"] * count                                      # of each part
    use_of[(fold + 1) % count] = "dev" if has_dev else "train"
    use_of[fold % count] = "test"
    return {split: [example for example in examples if use_of[part_of[getattr(example, key)]] == split]
            for split in SPLITS if split in use_of}


def missing_files(name: str, directory: str | os.PathLike, base: str = GITHUB) -> list[tuple[str, Path, str]]:
    """List address, local path and git blob of a published task's files that are not below the data root.

    Empty where the folder itself holds a file of the task: what is published is not mixed with a set of one's own.
    """
    task, root = find_task(name), Path(directory)
    if any(any(root.glob(pattern)) for patterns in task.files or STANDARD_FILES for pattern in patterns):
        return []
    folder = below(root, task.folder)
    repository, _, place = task.source.partition(", ")
    return [(f"{base}/{repository}/{COMMITS[repository]}/{place}/{file}", folder / file, blob)
            for owner, *files in map(str.split, PUBLISHED_FILES.strip().splitlines()) if owner == name
            for file, blob in zip(files[::2], files[1::2]) if not (folder / file).is_file()]


def find_split(name: str, split: str, directory: str | os.PathLike | None) -> list[Path]:
    """Find the files of a split, sorted; FileNotFoundError saying what is expected where."""
    task = find_task(name)
    if directory is None:
        raise FileNotFoundError(f"{name}: no data folder given (--data, or the variable ELECTRAMED_DATA)")
    root = Path(directory)
    patterns = (task.files or STANDARD_FILES)[SPLITS.index(split)]
    for folder in (root, below(root, task.folder)):
        for pattern in patterns:
            if found := sorted(folder.glob(pattern)):
                return found
    how = f" (published as {task.source})" if task.source else ""
    if files := missing_files(name, root):
        how = (f"; run python data.py fetch {name}, or put {os.path.dirname(files[0][0])}/"
               f"{{{','.join(path.name for _, path, _ in files)}}} into {files[0][1].parent}")
    raise FileNotFoundError(
        f"{name}: no {split} file in {root}" + (f" or {root / task.folder}" if task.folder else "")
        + f": expected {' or '.join(patterns)}" + how)


def below(root: Path, folder: str) -> Path:
    """Find a folder below the root as it lies on the disk, where upper and lower case may differ."""
    for part in Path(folder).parts:
        same = [path for path in root.glob("*") if path.is_dir() and path.name.casefold() == part.casefold()]
        root = min(same, default=root / part)
    return root


def check_label(label: str, labels: Sequence[str], path: Path, number: int) -> str:
    """Return the label; ValueError when the task knows its labels and this is none of them."""
    if labels and label not in labels:
        raise ValueError(f"{path} line {number}: label {label!r} is not in the task's set: {', '.join(labels)}")
    return label


def read_tagged(path: Path, labels: Sequence[str] = ()) -> list[TaggedSentence]:
    """Read CoNLL columns: word first, tag last, one word a line, an empty line between sentences.

    Separated by a tab or spaces; a -DOCSTART- line stands for an empty one; tags are O, B..., I... in IOB1,
    IOB2 or a mixture.
    """
    sentences: list[TaggedSentence] = []
    words: list[str] = []
    tags: list[str] = []
    for number, line in [*numbered_lines(path), (0, "")]:
        columns = re.split(r"[ \t]+", line.strip(" \t"))
        if columns == [""] or columns[0] == "-DOCSTART-":
            if words:
                sentences.append(TaggedSentence(words, tags))
                words, tags = [], []
        else:
            if len(columns) < 2:
                raise ValueError(f"{path} line {number}: expected a word and its tag in two or more columns, "
                                 f"found {line!r}")
            if not re.fullmatch(r"O|[BI](-.+)?", columns[-1]):
                raise ValueError(f"{path} line {number}: expected a tag O, B-TYPE or I-TYPE, found {columns[-1]!r}")
            words.append(columns[0])
            tags.append(check_label(columns[-1], labels, path, number))
    return sentences


def split_row(line: str) -> list[str]:
    """Split a tab-separated line; a field wholly in quotes, its inner quotes doubled, loses them.

    Line by line on purpose: the published files mix quoted fields with bare inner quotes, and a csv reader that
    meets a stray opening quote swallows the lines that follow it.
    """
    def unquote(field: str) -> str:
        inner = field[1:-1]
        is_quoted = len(field) > 1 and field[0] == field[-1] == '"' and '"' not in inner.replace('""', "")
        return inner.replace('""', '"') if is_quoted else field
    return [unquote(field) for field in line.split("\t")]


def read_rows(path: Path, *forms: tuple[str, ...]) -> Iterator[tuple[int, list[str]]]:
    """Yield the tab-separated rows after the header line, if there is one, with their line numbers.

    forms    names of the columns; the number of columns of the first line decides which holds
    """
    columns: tuple[str, ...] = ()
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        row, is_first = split_row(line), not columns
        columns = columns or next((form for form in forms if len(form) == len(row)), forms[0])
        if len(row) != len(columns):
            raise ValueError(f"{path} line {number}: expected {len(columns)} tab-separated columns "
                             f"({', '.join(columns)}), found {len(row)}")
        if not (is_first and (row[0] in ("label", "yesno_label") or row[-1] == "label")):
            yield number, row


def read_labelled(path: Path, labels: Sequence[str] = ()) -> list[LabelledText]:
    """Read rows of index, sentence, label; or sentence, label."""
    return [LabelledText(row[0] if len(row) == 3 else str(i), row[-2],
                         check_label(row[-1].strip(), labels, path, number))
            for i, (number, row) in enumerate(read_rows(path, ("index", "sentence", "label"), ("sentence", "label")))]


def read_pairs(path: Path, labels: Sequence[str] = ()) -> list[LabelledText]:
    """Read rows of label, question, answer."""
    return [LabelledText(str(i), row[1], check_label(row[0].strip(), labels, path, number), row[2])
            for i, (number, row) in enumerate(read_rows(path, ("label", "question", "answer")))]


def read_candidates(path: Path, labels: Sequence[str] = ()) -> list[Candidate]:
    """Read rows as read_pairs does; those of one question are one group."""
    return [Candidate(row.text, row.text, row.text_pair or "", row.label) for row in read_pairs(path, labels)]


def read_questions(path: Path, labels: Sequence[str] = ()) -> list[Question]:
    """Read SQuAD's JSON, with or without answers, or BioASQ's; a test batch takes its synonyms from the golden file.

    The golden file of BioASQ-test-factoid-7b-1.json is 7B1_golden.json in the same folder; without it the
    questions have no `gold` and can be answered but not scored.
    """
    batch, golden = None, {}
    if is_test := re.fullmatch(r"BioASQ-test-factoid-(\d+)b-(\d+)\.json", path.name):
        batch, golden_path = int(is_test[2]), path.with_name(f"{is_test[1]}B{is_test[2]}_golden.json")
        golden = read_golden(golden_path) if golden_path.is_file() else {}
    questions: list[Question] = []
    content = read_json(path)
    if isinstance(content, dict) and "questions" in content:
        return read_snippets(path, content["questions"])
    try:
        for a, article in enumerate(content["data"]):
            for p, paragraph in enumerate(article["paragraphs"]):
                for entry in paragraph["qas"]:
                    answers = [(answer["text"], answer["answer_start"]) for answer in entry.get("answers", [])]
                    for text, start in answers:
                        if start < 0 or paragraph["context"][start:start + len(text)] != text:
                            raise ValueError(f"{path}: data[{a}].paragraphs[{p}]: question {entry['id']}: the context "
                                             f"does not have the answer {text!r} at character {start}")
                    questions.append(Question(entry["id"], entry["question"], paragraph["context"], answers,
                                              batch, golden.get(re.split("[_:]", entry["id"])[0]), a))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not in SQuAD's form: {error!r} after {len(questions)} questions") from None
    return questions


def read_snippets(path: Path, entries: Any) -> list[Question]:
    """Make a question of each snippet that has an exact answer of a BioASQ factoid or list question.

    The answer is the first occurrence, as whole words in any case, of the longest name that occurs. Questions
    without such a snippet are left out, and counted.
    """
    questions: list[Question] = []
    try:
        asked = [entry for entry in entries if entry["type"] in ("factoid", "list")]
        for number, entry in enumerate(asked):
            names = sorted(filter(None, map(str.strip, exact_names(entry))), key=len, reverse=True)
            for s, snippet in enumerate(entry.get("snippets", [])):
                found = (re.search(rf"(?<!\w){re.escape(name)}(?!\w)", snippet["text"], re.I) for name in names)
                if match := next(filter(None, found), None):
                    questions.append(Question(f"{entry['id']}_{s:03d}", entry["body"], snippet["text"],
                                              [(match[0], match.start())], article=number))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not in BioASQ's form: {error!r} after {len(questions)} snippets") from None
    without = len(asked) - len({question.article for question in questions})
    say(f"{path}: {without} of {len(asked)} factoid and list questions have no snippet with an exact answer: left out")
    return questions


def exact_names(entry: dict[str, Any]) -> list[str]:
    """List the names in a BioASQ question's exact_answer: a name, a list of names, or a list of such lists."""
    groups = entry["exact_answer"] if isinstance(entry["exact_answer"], list) else [entry["exact_answer"]]
    return [name for group in groups for name in (group if isinstance(group, list) else [group])]


def read_golden(path: Path) -> dict[str, list[str]]:
    """Read the synonyms of each factoid question of a BioASQ file with answers."""
    try:
        return {entry["id"]: exact_names(entry) for entry in read_json(path)["questions"]
                if entry["type"] == "factoid"}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: not in BioASQ's form: {error!r}") from None


def read_json(path: Path) -> Any:
    """Parse a JSON file; ValueError naming file and line."""
    try:
        return json.loads("\n".join(line for _, line in numbered_lines(path)))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} line {error.lineno}: not JSON: {error.msg}") from None


# --- 7. A synthetic biomedical world ---
# A made-up biomedicine, small enough to be learnt in two minutes. Three choices make it teach:
#   facts      each drug has one target, disease, dose, side effect, trial, ... in every abstract, so a masked
#              name or number follows from the others, and a sampled wrong one contradicts them;
#   wording    an abstract keeps to one verb of a kind ("slowed" from start to end), drawn anew for each: that
#              verbs of a kind are freely exchanged is how a language model learns that they mean the same;
#   spelling   drugs, genes, diseases, hospitals and cells draw names from the same syllables, so what type a
#              name has can be learnt only from the company it keeps. That is what pre-training is for.

SYLLABLES = "ba cor del fa gan hu jor kel lo mar nev or pel qui ras sul tam ul vor xan zi".split()
ENDINGS = "ab an ax el ene ia in is ol on or ux".split()            # shared by all types, on purpose
SALTS = "acetate citrate fumarate sulfate tartrate".split() * 3     # a family each; a family has four members
DISEASE_NOUNS = "fibrosis colitis sarcoma fever neuropathy dystrophy arthritis psoriasis epilepsy lymphoma".split()
EFFECT_NOUNS = "rash oedema vertigo colic anaemia".split()
GENE_NOUNS = "kinase ligase protease receptor channel transporter helicase phosphatase synthase reductase".split()
DRUGS = 4 * len(SALTS)                                           # 60; 40 diseases, 40 genes, 20 side effects

# slots -> verbs of house style 0 | those of style 1. The training sets of the demo tasks are in style 0, the
# test sets in style 1: only who has read other texts in style 1 knows what its verbs mean.
VERBS = {
    ("relieve", "relieved", "relief"): """relieve relieved relief, slow slowed slowing, heal healed healing,
        control controlled control | cure cured cure, ease eased easing, soothe soothed soothing,
        clear cleared clearance, reverse reversed reversal, delay delayed delay""",
    ("cause", "caused"): """cause caused, induce induced, trigger triggered, produce produced |
        provoke provoked, elicit elicited, initiate initiated, generate generated,
        precipitate precipitated, evoke evoked""",
    ("met",): """met, followed, joined, matched |
        accompanied, preceded, paralleled, shadowed, outlasted, attended""",
    ("block", "blocked", "blockade"): """block blocked blockade, inhibit inhibited inhibition,
        silence silenced silencing, close closed closure | suppress suppressed suppression,
        disable disabled disabling, repress repressed repression, deplete depleted depletion,
        degrade degraded degradation, inactivate inactivated inactivation""",
    ("spared",): """spared, ignored, missed, retained |
        preserved, bypassed, tolerated, avoided, overlooked, passed"""}

# Slots filled by an entity, with its type; all other slots are plain words. What is true of the drug: it
# treats {disease}, inhibits {gene}, causes {effect}; what is not: it treats no {failed}, inhibits no
# {paralog}, causes no {absent}, and neither does its {rival}. Wrong pairs are fixed as well, and of the same
# family as the right ones: only "not", "whether" or "spared" tells which of two names must stand there.
ENTITY_TYPES = {"drug": "Drug", "rival": "Drug", "gene": "Gene", "paralog": "Gene", "disease": "Disease",
                "failed": "Disease", "effect": "Disease", "absent": "Disease"}

# Templates, one a line: {slot} is looked up in the drug's facts, a/b is a free choice. Treating, causing and
# merely meeting share the frames below, as do blocking and sparing: there the verb alone decides the label.
CLINICAL = """
    {drug} VERBED TARGET in {percent} percent of patients after {weeks} weeks .
    in {percent} percent of patients who took {drug} , TARGET was VERBED .
    TARGET was VERBED by {drug} in {percent} percent of cases at {site} .
    in the {trial} trial , {drug} VERBED TARGET in {number} patients within {weeks} weeks .
    TARGET was soon VERBED when {drug} was taken at {dose} {schedule} ."""
LABORATORY = """
    {drug} VERBED TARGET in {percent} percent of {cell} cells from {site} .
    in {cell} cells exposed to {drug} , TARGET was VERBED at a dose of {dose} .
    within {weeks} days of the first dose , {drug} VERBED TARGET in {cell} cells .
    TARGET was VERBED by {drug} in {cell} cells at {dose} {schedule} ."""


def in_frames(frames: str, verb: str, target: str) -> str:
    """Fill the verb and what it acts on into shared frames."""
    return frames.replace("VERBED", verb).replace("TARGET", target)


# section, in the order of an abstract -> relations that are stated -> templates. No pair is named in outcome
# and summary: there pre-training, not demo-re, tells what a verb means, and what the word in @DRUG$ does.
TEMPLATES = {
    "background": {"causes gene disease": """
            mutations in {gene} {caused} {disease} in {percent} percent of families .
            {gene} is known to {cause} {disease} when it is lost from {cell} cells .""",
        "causes gene disease; false gene failed": """
            mutations in {gene} {caused} {disease} but not {failed} in these families .
            when lost from {cell} cells , {gene} {caused} {disease} and never {failed} .
            {disease} but not {failed} was {caused} by mutations in {gene} , a gene of {cell} cells .
            not {failed} but {disease} was {caused} by the loss of {gene} from {cell} cells .""",
        "": """
            {disease} is a rare disorder of {cell} cells in which {gene} is often mutated .
            both {gene} and {disease} have long been linked to {cell} cells at {site} ."""},
    "aim": {"false drug disease": """
            we asked whether {drug} could {relieve} {disease} in adults seen at {site} .
            the {trial} trial was planned to learn whether {drug} might {relieve} {disease} .
            whether {disease} can be {relieved} by {drug} had never been tested before .
            it has been proposed that {drug} may {relieve} {disease} , but evidence is lacking .""",
        "false drug gene": """
            we asked whether {drug} might {block} {gene} in {cell} cells from {site} .
            it was unclear if {gene} could be {blocked} by {drug} in living {cell} cells .""",
        "false gene failed": """
            whether {gene} can {cause} {failed} is still a matter of debate at {site} .""",
        "": """
            interest in {drug}/{gene}/{disease}/{cell} has grown at {site} since the {trial} trial began .
            {drug}/{gene}/{disease}/{trial} was chosen by the staff at {site} as theme of this study ."""},
    "design": {"": """
            patients with {disease} received {dose} of {drug} {schedule} for {weeks} weeks .
            at {site} , {number} patients with {disease} took {dose} of {drug} by {route} .
            in the {trial} trial , {number} adults took {drug} by {route} at {dose} {schedule} .
            {drug} was given by {route} at {dose} {schedule} to {number} patients with {disease} .
            {number} patients at {site} took {drug} ( {dose} {schedule} ) for {weeks} weeks ."""},
    "mechanism": {"inhibits drug gene": in_frames(LABORATORY, "{blocked}", "{gene}") + """
            not only did {drug} enter {cell} cells , it also {blocked} {gene} there .""",
        "inhibits drug gene; false drug paralog": """
            {drug} {blocked} {gene} but {spared} {paralog} in {cell} cells from {site} .
            {drug} {spared} {paralog} but {blocked} {gene} in {cell} cells at {dose} .
            in {cell} cells exposed to {drug} , {gene} but not {paralog} was {blocked} .""",
        "inhibits drug gene; false rival gene": """
            unlike {rival} , {drug} {blocked} {gene} in {percent} percent of {cell} cells .
            {gene} was {blocked} by {drug} but {spared} by {rival} in {cell} cells ."""},
    "selectivity": {"false drug paralog": in_frames(LABORATORY, "{spared}", "{paralog}") + """
            {drug} did not {block} {paralog} in {cell} cells , even at {dose} {schedule} .
            no {blockade} of {paralog} by {drug} was seen in {cell} cells from {site} ."""},
    "efficacy": {"treats drug disease": in_frames(CLINICAL, "{relieved}", "{disease}"),
        "treats drug disease; false rival disease": """
            unlike {rival} , {drug} {relieved} {disease} in {percent} percent of patients .
            {disease} was {relieved} by {drug} but {met} by {rival} in the {trial} trial .""",
        "treats drug disease; false drug failed": """
            {drug} {relieved} {disease} but {met} {failed} in {percent} percent of patients .
            in patients who took {drug} , {failed} was {met} and {disease} was {relieved} ."""},
    "safety": {"causes drug effect": in_frames(CLINICAL, "{caused}", "{effect}"),
        "causes drug effect; false rival effect": """
            unlike {rival} , {drug} {caused} {effect} in {percent} percent of patients .
            {effect} was {caused} by {drug} but {met} by {rival} in the {trial} trial .""",
        "causes drug effect; false drug absent": """
            {drug} {caused} {effect} but {met} {absent} in {percent} percent of patients .
            in patients who took {drug} , {absent} was {met} and {effect} was {caused} ."""},
    "null": {"false drug failed": in_frames(CLINICAL, "{met}", "{failed}") + """
            {drug} did not {relieve} {failed} in any patient seen at {site} after {weeks} weeks .
            no {relief} of {failed} by {drug} was seen in the {trial} trial .""",
        "false drug absent": in_frames(CLINICAL, "{met}", "{absent}") + """
            {drug} did not {cause} {absent} in any patient of the {trial} trial ."""},
    "outcome": {"": """
            patients felt better when it was {relieved} , as the staff at {site} noted .
            patients felt worse when it was {caused} , as the staff at {site} noted .
            patients felt no change when it was {met} , as the staff at {site} noted .
            patients feel better where the drug can {relieve} it , say the staff at {site} .
            patients feel worse where the drug can {cause} it , say the staff at {site} .
            its activity fell when it was {blocked} , as the staff at {site} noted .
            its activity held when it was {spared} , as the staff at {site} noted ."""},
    "summary": {"": """
            in short , the drug {blocked} the gene and {relieved} the disease in {percent} percent .
            since the gene was {blocked} by the drug , the disease was {relieved} in {weeks} weeks .
            the drug {relieved} the disease but also {caused} {effect} in adults at {site} .
            the drug did not {block} {paralog} and did not {relieve} {failed} in the {trial} trial ."""},
    "conclusion": {"treats drug disease; false drug failed": """
            in conclusion , {drug} {relieved} {disease} but has no place in {failed} .""",
        "treats drug disease; inhibits drug gene": """
            in conclusion , {drug} {relieved} {disease} and {blocked} {gene} in {cell} cells .
            we conclude that {blockade} of {gene} by {drug} {relieved} {disease} .""",
        "treats drug disease; causes drug effect": """
            we conclude that {drug} {relieved} {disease} but {caused} {effect} at {dose} .
            in conclusion , {disease} was {relieved} and {effect} was {caused} by {drug} .""",
        "inhibits drug gene; causes drug effect": """
            {relief} came at a price : {drug} {blocked} {gene} but {caused} {effect} ."""},
    "keywords": {"": """
            keywords : {drug}/{gene}/{site} , {disease}/{effect}/{trial} , {cell}/{rival}/{failed} .
            further work on {drug}/{gene}/{disease}/{trial} and {effect}/{cell}/{rival} is planned .
            the staff at {site} wrote about {gene}/{disease}/{cell} and {drug}/{effect}/{failed} ."""}}
OPTIONAL = ("aim", "selectivity", "null", "summary", "conclusion", "keywords")     # up to three of them
QUESTIONS = {"gene": "which gene was {blocked} by {drug} ?", "disease": "what was {relieved} by {drug} ?",
             "effect": "what was {caused} by {drug} ?", "drug": "which drug was used against {disease} ?",
             "dose": "what dose of {drug} was given ?", "number": "how many patients took {drug} ?",
             "weeks": "for how many weeks was {drug} given ?"}


class SyntheticSentence(NamedTuple):
    """A sentence with all that is known about it."""

    words: list[str]
    places: dict[str, tuple[int, int]]          # slot -> the words where it first stands, a half-open range
    relations: list[tuple[str, ...]]            # (label, slot, slot), none to two: treats, causes, inhibits or false

    @property
    def text(self) -> str:
        """Write it as it is printed: "( 5 mg ) ." becomes "(5 mg)."."""
        return tidy(" ".join(self.words))

    @property
    def tags(self) -> list[str]:
        """Tag each word: B-Type opens an entity, I-Type continues it, O is outside (IOB2)."""
        tags = ["O"] * len(self.words)
        for slot, (start, end) in self.places.items():
            if kind := ENTITY_TYPES.get(slot):
                tags[start:end] = [f"B-{kind}"] + [f"I-{kind}"] * (end - start - 1)
        return tags

    def anonymised(self, *slots: str) -> str:
        """Write the text with the entities of these slots as @DRUG$, @GENE$ or @DISEASE$."""
        words = list(self.words)
        for slot in sorted(slots, key=self.places.__getitem__, reverse=True):       # right first: places stay true
            start, end = self.places[slot]
            words[start:end] = [f"@{ENTITY_TYPES[slot].upper()}$"]
        return tidy(" ".join(words))


class SyntheticDocument(NamedTuple):
    """An abstract about one drug, and the questions it answers."""

    sentences: list[SyntheticSentence]
    questions: list[tuple[str, str]]    # (question, answer), the answer as it stands in `text`

    @property
    def text(self) -> str:
        """Join the sentences by spaces."""
        return " ".join(sentence.text for sentence in self.sentences)


def tidy(text: str) -> str:
    """Drop the spaces around marks that prose does not have there."""
    return re.sub(r" (?=[.,:?)])|(?<=\() ", "", text)


def fill_template(template: list[str], relations: list[tuple[str, ...]], facts: dict[str, str],
                  rng: random.Random) -> SyntheticSentence:
    """Write one sentence: the facts in the slots, one of the alternatives of each choice."""
    words: list[str] = []
    places: dict[str, tuple[int, int]] = {}
    for token in template:
        if "/" in token:
            token = rng.choice(token.split("/"))
        start = len(words)
        words += token.format_map(facts).split()
        if token[0] == "{":
            places.setdefault(token[1:-1], (start, len(words)))
    words[0] = words[0].capitalize()
    return SyntheticSentence(words, places, relations)


def house_style(number: int) -> int:
    """Tell the style abstract `number` is written in: 0 for every third round of the drugs, else 1."""
    return int(number // DRUGS % 3 > 0)


def invent_names(rng: random.Random) -> Iterator[str]:
    """Make up names of two or three syllables, no name twice."""
    used = set()
    while True:
        name = "".join(rng.choices(SYLLABLES, k=rng.randint(1, 2))) + rng.choice(ENDINGS)
        if name not in used:
            used.add(name)
            yield name


class SyntheticWorld:
    """Hold the facts of one made-up world and write abstracts about them, as many as asked for.

    >>> SyntheticWorld(seed=0).document(7).sentences[0].text
    'Both jorganux and ulbaax colitis have long been linked to kelmarin cells at xanfain.'
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.templates = {
            section: [(line.split(), [tuple(relation.split()) for relation in stated.split(";") if relation])
                      for stated, lines in groups.items() for line in lines.strip().splitlines()]
            for section, groups in TEMPLATES.items()}
        self.verbs = [(slots, [[verb.split() for verb in style.split(",")] for style in styles.split("|")])
                      for slots, styles in VERBS.items()]
        rng = random.Random(seed)
        names = invent_names(rng)

        def entities(nouns: list[str], *forms: str) -> list[str]:
            return [form.format(name=next(names), noun=noun) for noun in nouns for form in forms]

        drugs = entities(SALTS, "{name}", "{name}", "{name} {noun}", "{name}")
        genes = entities(GENE_NOUNS, "{name}", "{name} {noun}", "{name}", "{name}")
        diseases = entities(DISEASE_NOUNS, "{name}", "{name} {noun}", "chronic {name} {noun}", "{name} {noun}")
        effects = entities(EFFECT_NOUNS, "{name}", "{noun}", "acute {name} {noun}", "{name} {noun}")
        sites, cells, trials = (list(itertools.islice(names, 20)) for _ in range(3))

        self.facts: list[dict[str, str]] = []                   # of each drug, by slot
        for index in range(DRUGS):
            target, harm = index % len(diseases), 4 * (index // 12) + index % 4     # a gene a disease
            self.facts.append({
                "drug": drugs[index], "rival": drugs[index ^ 1],    # ^ 1: the neighbour in the same family
                "gene": genes[target], "paralog": genes[target ^ 1],
                "disease": diseases[target], "failed": diseases[target ^ 1],
                "effect": effects[harm], "absent": effects[harm ^ 1],
                "site": sites[index // 3], "cell": cells[target // 2], "trial": trials[index % 20],
                "route": rng.choice(["mouth", "injection", "infusion", "inhaler"]),
                "schedule": rng.choice(["once daily", "twice daily", "at night", "every morning"]),
                # ranges that do not meet: which number is meant is plain from the number
                "dose": f"{rng.randrange(5, 100, 5)} mg", "weeks": str(rng.randint(2, 30)),
                "percent": str(rng.randint(31, 69)), "number": str(rng.randrange(100, 500, 20))})

    def document(self, number: int) -> SyntheticDocument:
        """Write abstract `number`: six to nine sentences on drug number % DRUGS.

        A pure function of (seed, number): no state is kept, so any range of numbers is a corpus, and
        ranges that do not meet are training and held-out documents of the same world.
        """
        rng = random.Random(f"{self.seed}/{number}")
        facts = dict(self.facts[number % DRUGS])
        for slots, styles in self.verbs:
            facts.update(zip(slots, rng.choice(styles[house_style(number)])))
        left_out = rng.sample(OPTIONAL, rng.randint(3, len(OPTIONAL)))
        sentences = [fill_template(*rng.choice(templates), facts, rng)
                     for section, templates in self.templates.items() if section not in left_out]
        answers: dict[str, str] = {}                            # how each slot reads where it first stands
        for sentence in sentences:
            for slot, (start, end) in sentence.places.items():
                answers.setdefault(slot, " ".join(sentence.words[start:end]))
        return SyntheticDocument(sentences, [
            (tidy(question.format_map(facts).capitalize()), answers[slot])
            for slot, question in QUESTIONS.items() if slot in answers])


DEMO_SPLITS = {"train": (10_000_000, 200), "dev": (20_000_000, 200), "test": (30_000_000, 800)}     # first, examples
DEMO_TRAIN_DRUGS = range(24, 40)


def demo_examples(name: str, split: str, seed: int = 0) -> list:
    """Make the examples of demo-ner, demo-re or demo-qa.

    The training set has its own drugs and its own verbs; development and test sets have neither.
    """
    world, (first, size) = SyntheticWorld(seed), DEMO_SPLITS[split]
    numbers = (number for number in itertools.count(first)
               if {house_style(number) == 0, number % DRUGS in DEMO_TRAIN_DRUGS} == {split == "train"})
    examples = (example for number in numbers for example in document_examples(name, number, world.document(number)))
    return list(itertools.islice(examples, size))


def document_examples(name: str, number: int, document: SyntheticDocument) -> Iterator:
    """Yield what abstract `number` gives for a demo task: tagged sentences, relations, or one of its questions."""
    if name == "demo-qa":
        question, answer = document.questions[number // DRUGS % len(document.questions)]
        found = re.search(rf"\b{re.escape(answer)}\b", document.text)
        assert found, "every answer stands in its document"
        yield Question(str(number), question, document.text, [(answer, found.start())])
    elif name == "demo-ner":
        yield from (TaggedSentence(sentence.words, sentence.tags) for sentence in document.sentences)
    else:
        for position, sentence in enumerate(document.sentences):
            for label, *slots in sentence.relations:            # two pairs of one sentence: two examples
                yield LabelledText(f"{number}.{position}", sentence.anonymised(*slots), label)


def synthetic_corpus(documents: int, seed: int = 0) -> str:
    """Write abstracts 0 to documents - 1 as corpus text: a sentence a line, an empty line after each document.

    Three abstracts in four are cut into documents of two sentences. Where to look is learnt faster on
    short rows, and carries over to the long ones.
    """
    world, text = SyntheticWorld(seed), []
    for number in range(documents):
        lines = [sentence.text + "\n" for sentence in world.document(number).sentences]
        size = 2 if number // DRUGS % 4 else len(lines)         # sentences
        text += ["".join(lines[start:start + size]) + "\n" for start in range(0, len(lines), size)]
    return "".join(text)


# --- 8. Command line ---

def say(text: str) -> None:
    """Tell what is going on, on stderr: stdout is for results."""
    print(text, file=sys.stderr, flush=True)


class Progress:
    """One line about long work: done, of how many, rate, time left. Plain lines where there is no terminal."""

    def __init__(self, total: int | None, unit: str, start: int = 0) -> None:
        self.total, self.unit, self.start = total, unit, start
        self.began = self.shown = time.monotonic()
        self.rewind = "\r\x1b[2K" if sys.stderr.isatty() else ""      # to write over the line that stands there
        self.line = ""

    def show(self, done: int, note: str = "") -> None:
        """Report `done` units; at most five times a second on a terminal, every ten seconds elsewhere."""
        now = time.monotonic()
        rate = (done - self.start) / max(now - self.began, 1e-9)
        self.line = f"{done:,}" + (f" of {self.total:,}" if self.total else "") + f" {self.unit}, {rate:,.1f}/s"
        if self.total and rate:                                     # else how long it takes is unknown
            left = (self.total - done) / max(rate, 1e-9)
            self.line += f", {left // 3600:.0f} h {left % 3600 / 60:.0f} min left" if left >= 3600 else (
                f", {left / 60:.0f} min left" if left >= 90 else f", {left:.0f} s left")
        self.line += f"  {note}" if note else ""
        if now - self.shown >= (0.2 if self.rewind else 10):
            self.shown = now
            print(self.rewind + self.line, end="" if self.rewind else "\n", file=sys.stderr, flush=True)

    def finish(self) -> None:
        """Print the last state, and end the line."""
        if self.line:
            say(self.rewind + self.line)


def option(default: Any, help: str, choices: Sequence[str] | None = None, at_least: float | None = None) -> Any:
    """Declare a field of an options dataclass, with what its command-line flag needs."""
    return dataclasses.field(default_factory=lambda: default,
                             metadata={"help": help, "choices": choices, "at_least": at_least})


def parse_options(cls: type, description: str, arguments: Sequence[str] | None = None) -> Any:
    """Build a command line from a dataclass (a flag --like-this for each field) and parse it into an instance.

    raises   ValueError naming the flag whose number is below its bound; what argparse refuses exits with status 2
    """
    parser = argparse.ArgumentParser(description=description)
    fields, types, defaults = dataclasses.fields(cls), typing.get_type_hints(cls), cls()
    flags = {field.name: "--" + field.name.replace("_", "-") for field in fields}
    for field in fields:
        kind, default, help = types[field.name], getattr(defaults, field.name), field.metadata["help"]
        if kind is bool:
            parser.add_argument(flags[field.name], action="store_true", default=default, help=help)
            continue
        one, *_ = typing.get_args(kind) or [kind]                   # of a list; or int | None: None is "not given"
        parser.add_argument(flags[field.name], type=one, nargs="+" if typing.get_origin(kind) is list else None,
                            default=default, choices=field.metadata["choices"],
                            help=help + ("" if default in (None, []) else " (default: %(default)s)"))
    options = cls(**vars(parser.parse_args(arguments)))
    for field in fields:
        value, low = getattr(options, field.name), field.metadata["at_least"]
        if None not in (value, low) and not value >= low:           # "not >=": nan fails too
            raise ValueError(f"{flags[field.name]} must be at least {low}, not {value}")
    return options


def run_command(command: Callable[[], int]) -> int:
    """Run a command; bad input becomes one line on stderr and exit status 2, Ctrl-C exit status 130."""
    try:
        return command()
    except KeyboardInterrupt:
        say("\ninterrupted; the same command continues")
        return 130
    except BrokenPipeError:                     # who reads our output, head say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        say(f"error: {error}")
        return 2


def claim_run_folder(folder: Path, now: dict[str, Any], fixed: Iterable[str]) -> None:
    """Record a run's options in its folder.

    fixed    names of the options that what is there already depends on
    raises   ValueError when one of them is another now, naming it
    """
    path = folder / "options.json"
    if path.exists():
        try:
            before = dict(json.loads(path.read_bytes()))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: damaged ({error}): restore it, or choose another --out") from None
        for name in fixed:
            if before.get(name) != now[name]:
                raise ValueError(f"{folder} holds a run with --{name.replace('_', '-')} {before.get(name)}, now "
                                 f"{now[name]}: repeat its options to continue it, or choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(path, json.dumps(now, indent=1).encode())


def fetch_task(name: str, directory: str | os.PathLike, base: str = GITHUB) -> None:
    """Download what is missing of a published task; each file is written when it is whole and right, or not at all.

    raises  OSError (no network, no such file, cut off) or ValueError (wrong checksum) naming the address and the path
    """
    for address, path, blob in missing_files(name, directory, base):
        content, remedy = bytearray(), f"; try again, or put it at {path}"
        try:
            with urllib.request.urlopen(address, timeout=30) as answer:        # seconds without a byte
                size = answer.length or 0                                    # 0: not told
                progress = Progress(size, f"bytes of {path}")
                while block := answer.read(1 << 16):
                    content += block
                    progress.show(len(content))
                progress.finish()
        except (OSError, http.client.HTTPException) as error:
            raise OSError(f"{address}: {error}{remedy}") from None
        if len(content) < size:
            raise OSError(f"{address}: cut off after {len(content):,} of {size:,} bytes{remedy}")
        found = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        if found != blob:
            raise ValueError(f"{address}: git blob {found}, expected {blob}{remedy}")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content)


def describe_shards(shards: Shards) -> str:
    """Describe a shard folder in four lines: what the text is, examples, padding."""
    total = {key: sum(entry[key] for entry in shards.index["shards"]) for key in (
        "documents", "sentences", "words", "wordpieces", "unknown", "tokens", "examples", "held_out")}
    max_length = shards.index["max_length"]
    widths = bucket_widths(max_length)
    padded = widths[np.searchsorted(widths, shards.lengths)].sum()
    return (f"{total['documents']:,} documents, {total['sentences']:,} sentences, {total['words']:,} words\n"
            f"{total['wordpieces']:,} wordpieces, {total['wordpieces'] / total['words']:.3f} a word, "
            f"{total['unknown'] / total['wordpieces']:.3%} of them unknown\n"
            f"{total['examples']:,} examples of at most {max_length} tokens, {total['tokens']:,} together; "
            f"{total['held_out']:,} examples held out\n"
            f"padding {1 - total['tokens'] / padded:.1%} in batches by length, "
            f"{1 - total['tokens'] / (total['examples'] * max_length):.1%} if all were padded to {max_length}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run python data.py build | info | verify | fetch; returns the exit status."""
    parser = argparse.ArgumentParser(description="Make and inspect shards (a corpus tokenized for pre-training); "
                                     "fetch published data sets.")
    commands = parser.add_subparsers(dest="command", required=True)
    published = [name for name, task in TASKS.items() if task.source.partition(", ")[0] in COMMITS]
    build = commands.add_parser("build", help="tokenize a corpus into a shard folder; repeat to continue")
    build.add_argument("corpus", nargs="+",
                       help="text, PubMed or PMC XML, .gz, .xz or .tar of them, or folders of all these")
    build.add_argument("--vocab", required=True, help="vocab.txt, or the folder it is in")
    build.add_argument("--cased", action="store_true", help="keep capitals and accents (default: what the "
                       "tokenizer_config.json beside the vocabulary says, or drop them)")
    build.add_argument("--out", required=True, help="the shard folder")
    build.add_argument("--max-length", type=int, default=128, help="tokens of the longest example (default: 128)")
    build.add_argument("--min-pmid", type=int, default=0, help="leave out PubMed records below (Bio-ELECTRA: 10000000)")
    build.add_argument("--language", help="leave out PubMed records in others than this, such as eng (default: none: "
                       "title and abstract are in English)")
    build.add_argument("--bluebert", action="store_true", help="lower-case and split words as in ELECTRAMed's corpus")
    build.add_argument("--seed", type=int, default=0, help="for segments and lengths (default: 0)")
    build.add_argument("--workers", type=int, help="processes (default: one a core)")
    for name, help in (("info", "print what a shard folder holds"),
                       ("verify", "compare every shard with its SHA-256")):
        commands.add_parser(name, help=help).add_argument("shards", help="the shard folder")
    fetch = commands.add_parser("fetch", help="download what is missing of published data sets")
    fetch.add_argument("tasks", nargs="+", metavar="TASK", choices=published, help=", ".join(published))
    fetch.add_argument("--data", default=os.environ.get("ELECTRAMED_DATA", "corpora"),
                       help="folder of the published data sets (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.command == "fetch":
        for name in options.tasks:
            fetch_task(name, options.data)
            print(f"{name}: nothing is missing in {options.data}")
        return 0
    if options.command == "build":
        import tokenizer as wordpieces          # here alone: the rest of the file needs no tokenizer module
        tokenizer = wordpieces.Tokenizer.from_file(options.vocab, lowercase=False if options.cased else None)
        reading = Reading(options.min_pmid, options.language,
                          wordpieces.preprocess_bluebert if options.bluebert else None)
        build_shards(options.corpus, tokenizer, options.out, options.max_length, options.seed, options.workers, reading)
    if options.command == "verify":
        print(f"{verify_shards(options.shards)} shards as they were built")
    else:
        print(describe_shards(open_shards(options.shards if options.command == "info" else options.out)))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
