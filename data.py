"""Turn files into batches: corpora into shards, task files into labelled examples; invent a synthetic world.

After reading this file you hold how ELECTRA's pre-training examples are cut from documents, how a corpus of
any size is stored and drawn from reproducibly, and how the published task files of both papers are read. From
text to a batch, by itself:

>>> documents = list(text_documents(["Fever fell.", "Nobody died.", "", "A title"]))
>>> documents
[['Fever fell.', 'Nobody died.'], ['A title']]
>>> tokenizer = Tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "fever", "fell", "nobody", "."])
>>> encoded = [tokenizer.encode_batch(document) for document in documents]
>>> list(build_examples(encoded, max_length=16, rng=random.Random(0)))
[([5, 6, 8], [7, 1, 8]), ([1, 1], [])]

Where it stands: text -> [this file, with tokenizer.py] -> numpy batches -> train_pretrain.py and
train_finetune.py, which prepare their data with it. As a program it prepares data alone:

    python data.py learn | build | info | fetch

Left out on purpose: masking, which is drawn anew for every step (electramed.py), and scores (metrics.py).
Sources: the official TensorFlow ELECTRA code ("TF", with the file and function), and the releases of
ELECTRAMed and Bio-ELECTRA for the formats of their files.

Contents, in the order in which data flows
    1. Documents                   text -> lists of sentences; where a sentence of prose ends
    2. Corpus files                PubMed and PMC XML, archives, folders -> documents; what is left out
    3. Pre-training examples       sentences -> segments A and B
    4. Shards                      examples -> a folder of arrays, built by several processes
    5. Batches                     examples of like length -> padded rows
    6. Task files                  published data sets -> labelled examples
    7. A synthetic world           a made-up biomedicine: unlimited text with known answers
    8. Command line
    9. Published files             names and checksums of what `fetch` downloads
"""
from __future__ import annotations

import argparse
import collections
import concurrent.futures.process
import contextlib
import functools
import gzip
import hashlib
import html.entities
import http.client
import io
import itertools
import json
import lzma
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tarfile
import threading
import time
import urllib.request
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast
from xml.etree import ElementTree

import numpy as np
import regex

from tokenizer import (Casing, Tokenizer, count_words, learn_from_counts, parse_json, preprocess_bluebert,
                       read_object, refuse_text, write_bytes)

# --- 1. Documents ---
#
# A corpus is a set of files; each file holds documents; a document is a list of sentences. Sentences matter
# because an example is made of whole sentences (section 3). Plain text has one on each line; in XML they are
# found by the rules below.


class Document(list[str]):
    """Hold the sentences of one document, and its number: {"pmid": "7"} or {"pmcid": "PMC7"}; text has none.

    A PMID that PubMed has deleted comes as a document without sentences: {"pmid": "-7"}.
    """

    id: dict[str, str] = {}


def text_documents(lines: Iterable[str]) -> Iterator[Document]:
    """Yield the documents of a text: a sentence on each line, an empty line after each document.

    >>> list(text_documents(["Fever fell.", "Nobody died.", "", "A title"]))
    [['Fever fell.', 'Nobody died.'], ['A title']]
    """
    refuse_text(lines, "lines")
    for has_text, group in itertools.groupby(map(str.strip, lines), key=bool):  # lines with text, empty, ...
        if has_text:
            yield Document(group)


# A full stop may belong to an abbreviation instead of ending the sentence. There are three kinds. They are
# compared as they are written, in lower case or with one capital: "Ms. Lee" has a title, "by MS." has not.
def in_both_cases(words: str) -> frozenset[str]:
    """Return words in lower case, and with a first capital: "fig" -> "fig", "Fig"."""
    return frozenset(words.split()) | frozenset(word[0].upper() + word[1:] for word in words.split())


# (a) These abbreviations never stand last in a sentence: "Fig. 2". Some are words only with the capital:
#     "mt" and "ms" are units, "sec" may be seconds.
NEVER_LAST = frozenset("ca Dr Drs FIG FIGS Mr Mrs Ms Mt Prof Sec Sects St".split()) | in_both_cases(
    "approx cf chr e.g eq eqs fig figs i.e ref refs resp sect sects ssp subsp suppl tab tabs var viz vol "
    "vols vs")
# (b) These may stand last, but not before a number: "no. 4", "No. NO1", "Jan. 2012".
BEFORE_NUMBER = in_both_cases("al apr aug ca chap dec feb jan jul jun mar no nos nov nr oct p pp sep sept")
# (c) These stand last only if the next word is one of OPENERS: "Smith et al. We ...". Initials and genera
# (E. coli) are treated like them, and so are abbreviations with full stops inside (i.v., U.S.).
RARELY_LAST = in_both_cases("al co corp dept inc jr ltd sp spp sr univ")
OPENERS = frozenset("""a after all although among an and as at because before both but by conversely despite
    due during each either finally first for from he her here his how however if in it its many moreover most
    neither no of on one only other our out results she since some such that the their then there therefore
    these they this those three thus to two under until upon using we what when whereas whether which while
    who with within without""".split())
# After these words a single capital is a name, not an initial: "in group A. Patients".
LETTERED = frozenset("a arm class cohort factor figure grade group hepatitis influenza metaphase panel phase "
                     "prophase site stage table toxin type vitamin".split())
# A possible end: marks (also ". . ."), what may follow them (closing quotes and brackets, \p{Pe} and \p{Pf};
# a citation such as [3,4], or a superscript number directly behind a word or its quote), then white space; or
# an empty line. A match begins only at the first of several marks, and no other repeated character begins
# one: so the time is linear in the text. SPACE adds U+001C to U+001F to \s: str.strip() takes them for white
# space, `regex` does not.
SPACE = r"[\s\x1c-\x1f]"
SENTENCE_BREAK = regex.compile(
    r"""(?<![.?!])(?<!\.\ )[.?!]+(?:\ \.)*+["'\p{Pe}\p{Pf}]*"""
    rf"(?:\[[\d,\s\p{{Pd}}]{{1,40}}\]"
    rf"|(?<=[a-z][a-z]\.[\"'\p{{Pf}}]?)\d(?:[\d,\p{{Pd}}]{{,8}}\d)?(?={SPACE}))?{SPACE}+"
    rf"|\n[^\S\n]*\n{SPACE}*")
OPENING_MARKS = regex.compile(r"""\A["'\p{Ps}\p{Pi}]+""")
# (b), (a-c) and (a, a') stand before the parts of a legend, (ii) before those of a list.
LETTERED_PART = regex.compile(r"\((?:[a-z]'?(?:[\s,\p{Pd}]{1,3}[a-z]'?){,4},?|[ivx]{1,4})\)")
INITIAL = regex.compile(r"[A-Z]|(?:[A-Za-z]{1,2}\.)+[A-Za-z]{1,2}")


def ends_sentence(text: str, start: int, found: regex.Match) -> bool:
    """Tell whether the marks found end the sentence that began at `start`.

    The rules, by example:
        (1) at pH 7. the buffer      a lower-case word continues the sentence; p53, mRNA, (b) can open one
        (2) (n = 3. Not all)         inside brackets nothing ends
        (3) Why? He said "no." Then  anything but a single full stop always ends
        (4) Fig. 2, no. 4, 1. The    abbreviations, and numbers that head a paragraph
        (5) E. coli, et al. found    initials, and abbreviations that rarely stand last

    No rule looks further than 200 characters: a long text takes no more time per character than a short one.
    """
    stop, mark = found.start(), found[0].rstrip()
    following = (OPENING_MARKS.sub("", text[found.end():found.end() + 40]).split() or [""])[0]
    # (1) A lower-case word continues the sentence, unless it is a name such as p53 or β-actin, or what a
    #     legend explains ("pe, pigmented epithelium"), or heads a part of a legend or list.
    can_open = regex.search(r"\d|^[α-ω]-|^[a-z]{1,3},$", following)
    if following.islower() and not can_open and not LETTERED_PART.match(text, found.end()):
        return False
    # (2) Inside brackets nothing ends. The bracket was opened before, and is closed within 200 characters.
    before = text[max(start, stop - 200):stop]
    is_open = before.rfind("(") > before.rfind(")") and ")" not in mark
    if is_open and regex.match(r"[^(]{,200}\)", text, pos=found.end()):
        return False
    # (3) Only a full stop that is alone, or before a citation number ("mice.3"), may not end it. Always an
    #     end: ? and !, several marks ("..."), and a full stop with a quote, a bracket or [3] behind it.
    if mark[0] != "." or (len(mark) > 1 and not mark[1].isdigit()):
        return True
    # (4) The full stop of an abbreviation of kind (a) or (b) does not end it, nor does that of a number that
    #     is the whole sentence so far: it heads a paragraph ("1. The").
    two_before, previous, last = ["", "", "", *before.split()][-3:]
    word = OPENING_MARKS.sub("", last)
    heads_paragraph = before.isdigit() and len(before) == stop - start
    is_abbreviation = word in NEVER_LAST or (word in BEFORE_NUMBER and regex.match(r"[A-Z_]*\d", following))
    if heads_paragraph or is_abbreviation:
        return False
    # (5) The full stop of an initial or an abbreviation of kind (c) ends it only if the next word opens
    #     sentences, or if the capital is a name or a unit ("in group A.", "in A and B.", "at 37 C.").
    if word in RARELY_LAST or INITIAL.fullmatch(word):
        is_listed = previous in ("and", "or") and regex.fullmatch(r"[A-Z\d]{1,3},?", two_before)
        is_lettered = previous.lower() in LETTERED or previous[-1:].isdigit()
        return len(word) == 1 and bool(is_listed or is_lettered) or following.lower().rstrip(",") in OPENERS
    return True


def split_sentences(text: str) -> list[tuple[int, int]]:
    """Find the sentences of biomedical prose.

    >>> text = "It fell (p < 0.05). E. coli in Fig. 2 did not.[3]"
    >>> [text[start:end] for start, end in split_sentences(text)]
    ['It fell (p < 0.05).', 'E. coli in Fig. 2 did not.[3]']

    A sentence ends at . ? or ! before white space and a word that can open another (one with a capital or a
    digit, such as p53 and mRNA), unless `ends_sentence` knows better; and at every empty line. Citation marks
    behind the full stop ("in mice.[3,4]", "in mice.3") belong to the sentence that they end.

    returns   (start, end) characters of each, without the white space around it
    """
    spans, start = [], len(text) - len(text.lstrip())
    for found in SENTENCE_BREAK.finditer(text, start):
        if found[0].count("\n") > 1 or ends_sentence(text, start, found):
            # Before an empty line there may be spaces: they are no part of the sentence.
            spans.append((start, start + len(text[start:found.end()].rstrip())))
            start = found.end()
    end = len(text.rstrip())
    return spans + [(start, end)] if start < end else spans


# --- 2. Corpus files ---
#
# On the way from a file to its documents there is one step in between:
#
#     file --read_parts--> parts --part_documents--> documents
#
# A part is raw bytes, cut where a document ends. Cutting is cheap and is done by one process; parsing and
# tokenizing take time, and are done by as many processes as there are cores (section 4).

READ_BYTES = 1 << 20                    # bytes read at once
HEAD_BYTES = 1 << 16                    # first bytes of a file, from which its format is told
BLOCK_BYTES = 1 << 24                   # of text in one shard: about 4 million tokens, seconds of one core
# What Python's readers raise when an archive ends too early or holds wrong bytes.
DAMAGED = (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile, tarfile.TarError)
NEVER_EMPTY = ("xml", ".gz", ".xz", ".tgz", ".txz", ".tar")             # PMC's papers end in .nxml


def say(text: str) -> None:
    """Print what is going on to stderr; stdout is for results.

    A terminal may be closed while a run goes on. Then there is nobody to read this, and no reason to stop.
    """
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr or open(os.devnull, "w"), flush=True)


@contextlib.contextmanager
def damage_named(place: Callable[[], str]) -> Iterator[None]:
    """Turn the errors of a damaged archive that is read inside a `with` block into one that names the place.

    place   called when an error comes, because only then is it known how far the reading got
    """
    try:
        yield
    except DAMAGED as why:
        raise ValueError(f"{place()}: the archive is truncated or damaged ({why}): fetch it again") from None


def open_file(path: str | os.PathLike, file: Any = None) -> io.BufferedReader:
    """Open a plain, gzip or xz file: the first bytes tell which of the three. "-" is standard input.

    A file is opened once, so that a pipe can be read, too.

    file     the open file, where it is a member of an archive; `path` is its name then
    raises   OSError where it cannot be opened; ValueError where its first bytes are damaged, or it has none
             though the name promises some (no program makes an empty .gz, unless it fails), or where standard
             input is closed
    """
    if str(path) == "-":
        if sys.stdin is None:
            raise ValueError("standard input is closed: pass a file")
        path, file = "standard input", getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)
    content: Any = io.BufferedReader(file or open(path, "rb", buffering=0), READ_BYTES)
    magic = content.peek(6)
    if magic.startswith(b"\x1f\x8b"):
        content = io.BufferedReader(gzip.GzipFile(fileobj=content), READ_BYTES)
    elif magic.startswith(b"\xfd7zXZ\x00"):
        content = io.BufferedReader(lzma.LZMAFile(content), READ_BYTES)
        # A file may hold several streams (`cat a.xz b.xz`). LZMAFile takes damage at the start of a later
        # stream for the end of the file. Without these "trailing errors" it raises an error there.
        content.raw._buffer.raw._trailing_error = ()
    with damage_named(lambda: f"{path} after line 0"):
        if not content.peek() and str(path).lower().endswith(NEVER_EMPTY):
            raise EOFError("it holds nothing")
    return content


def numbered_lines(path: str | os.PathLike, file: BinaryIO | None = None,
                   first: int = 1) -> Iterator[tuple[int, str]]:
    """Yield (line number, line without its end) of a file, compressed or not.

    Only \\n ends a line (a \\r before it is dropped too): text from PDF files holds characters such as U+2028
    at which str.splitlines would also break. A byte order mark is dropped from line 1.

    file     what `open_file` gave, where the file is open already
    first    number of its first line
    raises   ValueError naming path and line where the bytes are not UTF-8, one of them is zero, or the
             archive is damaged
    """
    number = first - 1
    with damage_named(lambda: f"{path} after line {number}"), file or open_file(path) as content:
        for number, line in enumerate(content, start=first):
            # A zero byte is valid UTF-8, but it is no text: UTF-16, pictures and damaged files have it. So it
            # is replaced by 0xff, which is never valid.
            line = line.replace(b"\0", b"\xff")
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path} line {number} byte {error.start}: not UTF-8: convert it") from None


# Formats, and how a file of each begins. The first that fits counts; a file that fits none is text. HTML and
# other XML are told from PubMed's and PMC's by their root element, tables by `has_columns`.
FORMATS = {name: re.compile(beginning, re.M) for name, beginning in {
    "tar": rb"[\0-\xff]{257}ustar",
    # zip, bzip2, 7z, zstd, rar
    "an archive of another kind": rb"PK\x03\x04|BZh\d|7z\xbc\xaf|\x28\xb5\x2f\xfd|Rar!\x1a",
    "binary": rb"[^\0]*\0",
    # A few lines of entities that a file declares itself can stand for gigabytes.
    "XML that declares entities": rb"\s*<[\0-\xff]*<!ENTITY",
    "xml": rb"\s*<(?:[?][A-Za-z]|!DOCTYPE|!--|[A-Za-z_][\w.:-]*(?:\s|/?>))",
    "JSON": rb'\s*(?:\{\s*["}]|\[\s*["{[])',                                                # also JSON Lines
    "checksums": rb"\s*(?:(?:MD5|SHA\d+) ?\(.+\) ?= ?|[0-9a-f]{32,} )",
    "tagged records (.nbib, RIS)": rb"\s*(?:[A-Z][A-Z0-9]{1,3} {0,2}- .*\n(?: .*\n)*){2}",     # PMID- 7
    "stand-off annotations": rb"\s*(?:\d+\|[a-z]\||[TREAMN#]\d+\t)",                           # 7|t|On gout.
    "sequences": rb"\s*>.*\n(?:[A-Z*-]{4,}|[acgtun]{4,})\r?$",                                 # >seq1
    "tagged words": rb"\s*(?:\S+(?: \S+)* (?:O|[BIES]-\S+)\s*\n){3}"}.items()}                # gout B-Disease
READ = ("text", "xml", "tar")                               # the formats that are read
# Names of files that are about the others, and what a Mac adds to an archive ("._a.txt").
ABOUT_FILES = re.compile(r"(?:^|/|: )(?:(?:readme|licen[cs]e|copying|changelog)\b|\._)[^/]*$", re.I)


def has_columns(text: str) -> bool:
    """Tell whether most lines are rows of a table: the same separator, in most of them equally often.

    Prose has commas and semicolons too, but a space behind them; numbers such as 1,204 are taken out before,
    and so is what stands in quotes, which may hold separators and line ends.
    """
    text = re.sub(r'"[^"]*"|(?<![\w.,])\d{1,3}(?:,\d{3})+(?![\w,])', "0", text)
    lines = [line for line in text.split("\n") if line.strip() and line[0] != "#"]
    for separator in ("\t", ",(?! )", ";(?! )", r"\|"):
        counts = collections.Counter(len(re.findall(separator, line)) for line in lines)
        del counts[0]
        rows = counts.total() if separator == "\t" else max(counts.values(), default=0)
        if len(lines) > 1 and rows > 0.8 * len(lines):
            return True
    return False


def detect_format(file: io.BufferedReader) -> str:
    """Tell from its first bytes what an open file is, whatever its name; they are read again afterwards.

    returns   "text", "xml" or "tar", which are read; "binary" where it is not UTF-8; or, in words, what it
              seems to be: "JSON", "columns", "XML with the root element html"
    """
    head = file.peek(HEAD_BYTES)[:HEAD_BYTES].removeprefix(b"\xef\xbb\xbf")             # a byte order mark
    format = next((name for name, beginning in FORMATS.items() if beginning.match(head)), "text")
    if format == "xml":
        # The first tag that is no comment, declaration or instruction is that of the root.
        head = re.sub(rb"(?s)<!--.*?(?:-->|\Z)|<[?].*?[?]>", b"", head)
        root = re.search(rb"<(?:[\w.-]+:)?([A-Za-z_][\w.-]*)", head)
        if root and root[1].decode() not in XML_ROOTS:
            return f"XML with the root element {root[1].decode()}"
    elif format == "text":
        # Bytes that are not UTF-8 are decoded to surrogates. The head may end inside a character: the last
        # three bytes do not count.
        decoded = head.decode("utf-8", "surrogateescape")
        if re.search("[\ud800-\udfff]", decoded[:-3]):
            return "binary"
        return "columns" if has_columns(decoded) else "text"
    return format


def format_to_read(file: io.BufferedReader, name: str, is_given: bool = False) -> str:
    """Return the format in which an open file is read; of a file to be left out, what it seems to be.

    Binary content is damage where the user gave the file, or its name promises text. Then it is read as text,
    so that an error names the line.

    is_given   whether the user gave this file by itself, and not a folder or archive that holds it
    raises     ValueError where a given file is no text: learnt as if it were prose, it would do harm
    """
    format = detect_format(file)
    if is_given and format not in (*READ, "binary"):
        raise ValueError(f"{name}: this seems to be {format}, which would be learnt as if it were prose: "
                         "expected PubMed's or PMC's XML, or text: a sentence on each line, an empty line "
                         "after each document; convert it to text")
    if not is_given and ABOUT_FILES.search(name):
        return "about the files"
    promises_text = is_given or name.lower().endswith((".txt", *NEVER_EMPTY))
    return "text" if format == "binary" and promises_text else format


def name_left_out(left_out: list[str]) -> None:
    """Say which files and members of archives are not read, each with what it seems to be."""
    if left_out:
        shown = "; ".join(left_out[:20])
        say(f"{len(left_out):,} left out: {shown}{'; ...' if len(left_out) > 20 else ''}")


class FilePart(NamedTuple):
    """Hold whole documents of one file as raw bytes, not yet parsed.

    One process cuts files into parts and hands them to the others. An XML file is one part, because only a
    parser knows where its documents end; it is read from the open file, or by another process from the disk.
    """

    name: str                       # the path, or "archive.tar: member"; with the reason if it is left out
    line: int                       # number of the first line; 1 tells that a file begins
    format: str                     # "text", "xml", or "left out": a member of an archive that is not read
    content: Any                    # bytes; of an XML file the open file, or None: open it anew
    position: int = 0               # bytes of the corpus, as it is on the disk, up to the part's end


def cut_text(file: io.BufferedReader, name: str) -> Iterator[FilePart]:
    """Cut a stream of text into parts of at most BLOCK_BYTES.

    Cuts fall between documents; only a document longer than a block is cut inside, at a line's end.
    """
    line, block, is_last = 1, bytearray(), False
    while not is_last:
        # 1. Fill the block: to what the last cut left over, add what the file gives. At the end of the file,
        #    or when the block is full and 0 bytes are asked for, the chunk is empty and the loop ends.
        with damage_named(lambda: f"{name} after line {line - 1 + block.count(10)}"):       # 10 is \n
            while chunk := file.read1(min(READ_BYTES, BLOCK_BYTES - len(block))):
                block += chunk
        # 2. Cut it behind its last empty line ("one\n\ntwo\nthree" behind byte 5), or else where a line ends.
        #    A block that is not full is the last, and is kept whole. (?r) searches from the end.
        is_last = len(block) < BLOCK_BYTES
        border = None if is_last else regex.search(rb"(?rm)^[ \t\r\v\f]*\n", block)
        end = len(block) if is_last else border.end() if border else block.rfind(b"\n") + 1
        if not is_last and not end:
            raise ValueError(f"{name} line {line}: over {BLOCK_BYTES:,} bytes: put each sentence on a line")
        yield FilePart(name, line, "text", bytes(block[:end]))
        line += block.count(b"\n", 0, end)
        del block[:end]


def read_members(file: io.BufferedReader, path: str) -> Iterator[FilePart]:
    """Cut the members of a tar archive into parts, each read as a file of its own would be.

    The archive is read as a stream and nothing is unpacked, so a member's name ("../../etc") can do no harm.
    """
    name = f"{path} after line 0"
    with damage_named(lambda: name):
        archive: Any = tarfile.open(fileobj=file, mode="r|")
        while (member := archive.next()) is not None:
            archive.members.clear()                          # or memory would grow with the number of members
            name = f"{path}: {member.name}"
            if member.isfile():
                yield from cut_file(open_file(name, archive.extractfile(member)), name)
            elif not member.isdir():
                yield FilePart(f"{name} (no file)", 1, "left out", b"")
        # tarfile takes a damaged header for the end of the archive. The true end is two blocks of zeros or
        # more. tarfile has read the first, so at least one has to follow, and nothing but zeros.
        rest = archive.fileobj.read(READ_BYTES)
        if not rest or rest.strip(b"\0"):
            raise tarfile.ReadError(f"no header, and no end, at byte {archive.offset:,}")


def cut_file(file: io.BufferedReader, name: str, is_given: bool = False) -> Iterator[FilePart]:
    """Cut an open file into parts, whatever its format.

    is_given   whether the user gave this file by itself; if not, it is a member of an archive
    """
    format = format_to_read(file, name, is_given)
    if format == "text":
        yield from cut_text(file, name)
    elif format == "xml":
        yield FilePart(name, 1, "xml", file if is_given else file.read())       # a member fits in memory
    elif format == "tar" and is_given:
        yield from read_members(file, name)
    else:
        what = "an archive in an archive: unpack it" if format == "tar" else format
        yield FilePart(f"{name} ({what})", 1, "left out", b"")


def read_parts(path: str | os.PathLike, file: io.BufferedReader | None = None) -> Iterator[FilePart]:
    """Cut a text, XML or tar file, compressed or not, into parts that can be read one by one.

    Text gives parts of at most BLOCK_BYTES, an XML file is one part, an archive gives those of its members.
    Members that are no text (pictures, tables, links, archives, the "._" files of a Mac) are named.

    file     what `open_file` gave, where the file is open already
    raises   ValueError naming path and line where the archive is damaged or a line is longer than a block, or
             saying what the file seems to be if it is no text
    """
    left_out: list[str] = []
    with file or open_file(path) as content:
        for part in cut_file(content, str(path), is_given=True):
            if part.format == "left out":
                left_out.append(part.name)
            yield part
    name_left_out(left_out)


class Reading(NamedTuple):
    """Hold what is taken from a corpus, and how each sentence is prepared.

    Bio-ELECTRA took the PubMed records from number 10,000,000 on; ELECTRAMed's corpus was prepared sentence
    by sentence (tokenizer.preprocess_bluebert).
    """

    min_pmid: int = 0                                       # PubMed records with a lower number are left out
    language: str | None = None                             # and those in other languages; a code such as eng
    preprocess: Callable[[str], str] | None = None          # applied to each sentence


def describe_reading(reading: Reading) -> dict[str, Any]:
    """Return what is taken as JSON values for index.json: a function is recorded by its name."""
    return {**reading._asdict(), "preprocess": getattr(reading.preprocess, "__name__", None)}


# A record of PubMed (today's form, and MEDLINE's of 2010), and a paper of PMC (JATS), in short:
#
#   <PubmedArticle><MedlineCitation><PMID>7</PMID><Article><ArticleTitle>On gout.</ArticleTitle><Abstract>
#     <AbstractText>It hurts. It passes.</AbstractText></Abstract><Language>eng</Language> ...
#
#   <article><front><article-meta><title-group><article-title>On gout</article-title></title-group>
#     <abstract><p>It hurts.</p></abstract></article-meta></front>
#     <body><sec><title>Methods</title><p>We asked<xref ref-type="bibr">3</xref>.</p></sec></body> ...
#
# They become ["On gout.", "It hurts.", "It passes."] and ["On gout", "It hurts.", "We asked."].
XML_ROOTS = frozenset("PubmedArticleSet PubmedArticle PubmedBookArticleSet MedlineCitationSet "
                      "MedlineCitation pmc-articleset article".split())
RECORDS = frozenset("MedlineCitation BookDocument article".split())       # each is one document
# Where the text of a record stands: first PubMed's title and abstract, then a paper's.
TEXTS = (".//ArticleTitle", ".//Abstract/AbstractText", "front//title-group/article-title", "front//abstract",
         "body", "back")
# Elements inside these whose text is not wanted: references, tables, figures, formulas, notes, ... One of
# INLINE leaves nothing behind. One of BLOCKS leaves a space between the words around it ("given by:" and
# "where"), and so does a line break, which holds no text.
INLINE = frozenset("inline-formula math tex-math label inline-graphic inline-supplementary-material alt-text "
                   "object-id fn".split())
BLOCKS = frozenset("""sub-article response ref-list table-wrap table-wrap-group table fig fig-group
    disp-formula disp-formula-group caption title graphic media supplementary-material chem-struct-wrap
    fn-group notes glossary def-list array code preformat attrib permissions break annotation""".split())
# Elements before and after which a sentence ends.
PARAGRAPHS = frozenset("p sec list list-item disp-quote boxed-text ack app bio statement speech verse-group "
                       "verse-line".split())
# Two characters that XML cannot hold stand for what a text holds besides its words.
CITATION, BORDER = "\0", "\1"           # a citation mark such as 3; the begin or end of a paragraph
CITATIONS = re.compile(r" ?(?:\[ ?\0 ?\]|\( ?\0 ?\)|\0)")     # with its brackets and a space before them
# Named characters such as &alpha; -> their text. They are declared in a file that the XML refers to, which is
# never opened; the names that HTML knows are taken instead.
NAMED_CHARACTERS = {name.rstrip(";"): text for name, text in html.entities.html5.items()}


def element_text(element: ElementTree.Element) -> str:
    """Return the text of an element and of all inside it, with CITATION and BORDER in their places.

    <p>We asked<xref ref-type="bibr">3</xref>.</p> inside <body> gives BORDER, "We asked", CITATION, ".",
    BORDER. Citations with names or years, "Old et al. (1999)", are a part of the sentence and stay.
    """
    text = element.text or ""
    for child in element:
        content = "" if child.tag in INLINE else " " if child.tag in BLOCKS else element_text(child)
        if child.tag in PARAGRAPHS:
            content = BORDER + content + BORDER
        elif child.get("ref-type") == "bibr" and not re.search(r"[^\W\d_]|\b(?:19|20)\d\d\b", content):
            content = CITATION
        elif child.tag == "sup" and re.match(r"[-‐-―−+]?\d", content) and text[-1:].isdigit():
            content = "^" + content                                 # 10<sup>6</sup> -> 10^6
        text += content + (child.tail or "")
    return text


def record_document(record: ElementTree.Element, reading: Reading) -> Document:
    """Return the sentences of a record; none where `reading` asks for other numbers or another language."""
    document = Document()
    # 1. Its number. All papers of PMC are wanted, those of PubMed by number and language.
    for paper_id in record.findall("front/article-meta/article-id"):
        if paper_id.get("pub-id-type") in ("pmc", "pmcid"):
            document.id = {"pmcid": "PMC" + (paper_id.text or "").strip().removeprefix("PMC")}
    if pmid := record.findtext("PMID", "").strip():
        languages = [element.text for element in record.iter("Language")]
        if int(pmid) < reading.min_pmid or reading.language not in (None, *languages):
            return document
        document.id = {"pmid": pmid}
        # 2. PubMed's formulas stand for words, "VO2max", and are kept without their accents (V with a dot)
        #    and white space. Under the tag <math> they would be left out, as in papers.
        for formula in list(record.iter("math")):
            words = "".join(part.text or "" for part in formula.iter() if part.tag != "annotation")
            formula.tag, formula.text = "words", regex.sub(r"[\s\p{Sk}\p{M}\p{C}]", "", words)
            formula[:] = []
    # 3. Its text, paragraph by paragraph, without citation marks: "[\0, \0–\0]" -> "[\0]" -> "".
    for element in itertools.chain.from_iterable(map(record.findall, TEXTS)):
        for paragraph in element_text(element).split(BORDER):
            text = " ".join(paragraph.split())
            text = CITATIONS.sub("", re.sub(r"\0(?:[ ,;‐-―−-]*\0)+", CITATION, text))
            if element.tag == "ArticleTitle":
                # PubMed puts the titles of articles that are not in English into brackets: "[On gout.]". The
                # two of "[3H]Ouabain and [14C]" are no pair.
                text = re.sub(r"^\[((?:[^][]|\[[^][]*\])*)\]\.?$", r"\1", text)
                text = "" if text.rstrip(".") in ("Not Available", "In Process Citation") else text
            document += [text[start:end] for start, end in split_sentences(text)]
    return document


def xml_documents(part: FilePart, reading: Reading) -> Iterator[Document]:
    """Yield the documents of PubMed's or PMC's XML, in constant memory, and the PMIDs that PubMed deleted.

    The parser reads 16 kB at a time, and builds the tree of a record's elements, which is dropped when the
    record has been read. Files that the XML refers to are never opened.

    raises   ValueError naming the record, and of broken XML the line
    """
    file = io.BytesIO(part.content) if isinstance(part.content, bytes) else part.content
    parser: Any = ElementTree.XMLParser()
    parser.entity.update(NAMED_CHARACTERS)
    number = 0                                                      # of the record
    try:
        events = ElementTree.iterparse(file or open_file(part.name), ("start", "end"), parser)
        _, root = next(events)
        if root.tag.rpartition("}")[2] not in XML_ROOTS:            # it stood behind the first HEAD_BYTES
            raise ValueError(f"root element {root.tag}: expected PubMed's or PMC's")
        for event, element in events:
            element.tag = element.tag.rpartition("}")[2]            # {address of the namespace}math -> math
            if event == "end" and element.tag in RECORDS:
                number += 1
                yield record_document(element, reading)
                root.clear()                # also empties the elements around the record, which are done with
            elif event == "end" and element.tag == "DeleteCitation":
                for deleted in element:
                    document = Document()
                    document.id = {"pmid": str(-int(deleted.text or ""))}
                    yield document
    # LookupError: an encoding that nobody knows. ValueError: one that this parser cannot read, or a PMID that
    # is no number. RecursionError: elements inside elements.
    except (*DAMAGED, ElementTree.ParseError, LookupError, ValueError, RecursionError) as error:
        raise ValueError(f"{part.name} after record {number}: damaged, or no XML that can be read ({error}): "
                         "fetch it again") from None


def part_documents(part: FilePart, reading: Reading) -> Iterator[Document]:
    """Yield the documents of one part, each sentence preprocessed, without sentences that become empty.

    A document may be left without sentences. Its number counts all the same (see `describe_corpus`).

    raises   ValueError naming the line that is not UTF-8, or where the XML is broken
    """
    if part.format == "xml":
        documents = xml_documents(part, reading)
    else:
        lines = numbered_lines(part.name, io.BytesIO(part.content), part.line)
        documents = text_documents(line for _, line in lines)
    for document in documents:
        if reading.preprocess:
            document[:] = filter(None, map(reading.preprocess, document))
        yield document


def read_documents(path: str | os.PathLike, reading: Reading = Reading(),
                   file: io.BufferedReader | None = None) -> Iterator[Document]:
    """Yield the documents of a file, as lists of sentences.

    The format is detected from the content, not from the file name:
    - text: one sentence on each line, an empty line after each document;
    - PubMed's XML: title and abstract of each record;
    - PMC's XML (JATS): title, abstract and every section but the references, without headings, tables,
      figures, formulas and citation marks such as [3];
    - any of these compressed (.gz, .xz), and .tar archives of them.

    file     what `open_file` gave, where the file is open already
    raises   ValueError or OSError that names the path and the line
    """
    for part in read_parts(path, file):
        yield from filter(None, part_documents(part, reading))


def corpus_files(paths: Iterable[str | os.PathLike]) -> tuple[list[Path], int]:
    """List the given files, and all files below the given folders (sorted) that hold text and are not hidden.

    The order matters: it decides which documents fall into one block, and which are held out. Links to
    folders are not followed, since they may lead in circles. What is left out of a folder is named.

    returns  the files, and how many others the folders hold
    raises   FileNotFoundError naming a path that is not there, or a pipe, which cannot be read twice;
             ValueError naming a file that is given by itself, but is no text
    """
    refuse_text(paths, "a list of paths")       # its letters would pass for paths: "/" is the whole disk
    found: list[tuple[Path, str]] = []          # all files, each with its format
    for path in map(Path, paths):
        if not path.is_file() and not path.is_dir():
            raise FileNotFoundError(f"{path}: no such file or folder (a pipe has to be saved as a file)")
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            is_hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
            if is_hidden or (file.is_dir() and not file.is_symlink()):      # the folder's files follow
                continue
            format = "a link to a folder, or not to be read"
            if file.is_file():
                with open_file(file) as content:
                    format = format_to_read(content, str(file), is_given=file == path)
            found.append((file, format))
    files = [file for file, format in found if format in READ]
    name_left_out([f"{file} ({format})" for file, format in found if format not in READ])
    return files, len(found) - len(files)


# --- 3. Pre-training examples ---
#
# An example is [CLS] A [SEP] B [SEP]: two neighbouring stretches of one document, each of whole sentences.
# ELECTRA does not predict whether B follows A, as BERT does. It learns from two segments because many tasks
# have two: a question and a passage, say.

Segments = tuple[list[int], list[int]]          # wordpieces of segment A and of segment B (may be empty)


def split_segments(sentences: list[list[int]], target: int, max_length: int, rng: random.Random) -> Segments:
    """Distribute whole sentences over segments A and B, then cut both to fit.

    A wants half of the target, after the three special tokens. Take sentences of 3, 2, 4 and 7 tokens and a
    target of 16: A wants (16 - 3) // 2 = 6 tokens. The first two fit; with the third it would be 9, so a coin
    decides whether A takes it, too. What does not go to A is B, cut to fit.

    target   tokens wanted in the example, [CLS] and two [SEP] counted
    source   TF build_pretraining_dataset.ExampleBuilder._create_example
    """
    # One example in ten has segment A alone, as single-sentence tasks have.
    first_target = 100_000 if rng.random() < 0.1 else (target - 3) // 2            # tokens
    first: list[int] = []
    second: list[int] = []
    for sentence in sentences:
        # A sentence goes to A where (1) A is empty, (2) it fits, or (3) it does not quite fit, B has not
        # begun, and a coin says so.
        if (not first or len(first) + len(sentence) < first_target
                or (not second and len(first) < first_target and rng.random() < 0.5)):
            first += sentence
        else:
            second += sentence
    first = first[:max_length - 2]                                                 # room for [CLS] and [SEP]
    return first, second[:max(0, max_length - len(first) - 3)]


def build_examples(documents: Iterable[list[list[int]]], max_length: int,
                   rng: random.Random) -> Iterator[Segments]:
    """Cut documents into examples of at most max_length tokens, [CLS] A [SEP] B [SEP] counted.

    Sentences are collected until there are enough of them for one example, or the document ends: no example
    holds text of two documents.

    >>> document = [[11, 12], [21, 22, 23], [31, 32, 33], [41]]            # four sentences
    >>> list(build_examples([document], max_length=8, rng=random.Random(0)))
    [([11, 12], [21, 22, 23]), ([41], [])]

    The first three sentences reach the target of 8 tokens; with [CLS] and two [SEP] only 5 fit, and the third
    sentence is cut off, as in the official code.

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
                # One target in twenty is short, so that the model meets short inputs too.
                target = rng.randint(5, max_length) if rng.random() < 0.05 else max_length


# --- 4. Shards ---
#
# A corpus is tokenized once into a folder of plain arrays:
#   index.json           what was built from what, and for each shard its counts and the SHA-256 of its arrays
#   00000.tokens.npy     uint16, all examples one after the other, unpadded, with [CLS] and [SEP]
#   00000.starts.npy     int64, where each example starts, and at the end the number of tokens
#   00000.first.npy      uint16, length of [CLS] A [SEP]: token type 0; the rest is B [SEP], type 1
#   00000.pmids.npy      int64, the PMIDs of its records, and negative those that are to be deleted; only
#                        where there are any
#
# Two examples, [CLS] 7 8 [SEP] 9 [SEP] and [CLS] 5 [SEP] with [CLS] = 2 and [SEP] = 3, are stored as
#   tokens  2 7 8 3 9 3 2 5 3        starts  0 6 9        first  4 3
# Nothing is masked here: masks are drawn anew each time an example is used.
#
# One process cuts the corpus into blocks of whole documents, and each block becomes one shard in one of the
# workers. Random choices are seeded by the block's number, so any number of workers gives the same files. A
# shard counts once index.json lists it: an interrupted build continues behind the last one listed.

class Progress:
    """Show how far long work has come: units done and in all, units per second, time left.

        1,200 of 10,000 steps, 41.3/s, 3.5 min left  loss 6.12

    The first line comes after two seconds, as a sign of life, then one every ten.

    total     units in all; None when unknown
    unit      what is counted, in the plural: "steps"
    start     units that an earlier run has done already: they do not count in the rate
    """

    def __init__(self, total: int | None, unit: str, start: int = 0) -> None:
        self.total, self.unit, self.start = total, unit, start
        self.began = time.monotonic()
        self.due = self.began + 2           # when the next line is printed
        self.line = ""                      # the last state, until it is printed

    def show(self, done: int, note: str = "") -> None:
        """Report `done` units."""
        now = time.monotonic()
        rate = (done - self.start) / max(now - self.began, 1e-9)
        self.line = f"{done:,} of {self.total:,} {self.unit}" if self.total else f"{done:,} {self.unit}"
        if rate:                                                    # otherwise nothing is known of the time
            minutes = ((self.total or done) - done) / rate / 60
            self.line += f", {rate:,.1f}/s" + (f", {minutes:,.1f} min left" if minutes >= 0.1 else "")
        self.line += f"  {note}" if note else ""
        if now >= self.due:
            self.due = now + 10
            self.finish()

    def finish(self) -> None:
        """Print the last state, if it has not been printed."""
        if self.line:
            say(self.line)
        self.line = ""

    def over(self, items: Iterable[Any]) -> Iterator[Any]:
        """Yield items unchanged, showing how many have been taken."""
        for done, item in enumerate(items, self.start + 1):
            yield item
            self.show(done)
        self.finish()


@contextlib.contextmanager
def only_process(folder: str | os.PathLike) -> Iterator[None]:
    """Hold a folder while something is written there, so that no second process writes there, too.

    The system drops the lock when its holder ends, however it ends. What a killed process left half written
    (NAME.PID.unfinished, see `write_bytes`) is removed. Windows has no such lock: there the folder is written
    unguarded.

    raises   ValueError where another process holds the folder; OSError where the lock is a link
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # A link is not followed: opening it would make the file that it names.
    lock = os.open(folder / ".electramed.lock", os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    with open(lock, "r+"):
        try:
            import fcntl
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass                                # Windows
        except BlockingIOError:
            raise ValueError(f"{folder} is in use by another process: wait until it ends") from None
        for leftover in [*folder.rglob("*.[0-9]*.unfinished")]:
            if leftover.is_dir():               # a model folder
                shutil.rmtree(leftover)
            else:
                leftover.unlink(missing_ok=True)
        yield


def refuse_inside(out: str | os.PathLike, corpus: Iterable[str | os.PathLike]) -> None:
    """Raise ValueError where `out` lies in a folder of the corpus: what is written would become text."""
    for folder in map(Path, corpus):
        if folder.is_dir() and Path(out).resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{out} lies in {folder}, all files of which are corpus: choose another --out")


def file_hash(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file's content. At most READ_BYTES of it are in memory at a time."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def learn_vocabulary(paths: Iterable[str | os.PathLike], size: int, lowercase: bool,
                     reading: Reading = Reading()) -> Tokenizer:
    """Learn a vocabulary of `size` pieces from a corpus; return its tokenizer.

    Only the counts of the words are kept in memory.
    """
    files, _ = corpus_files(paths)
    documents = itertools.chain.from_iterable(read_documents(file, reading) for file in files)
    sentences = itertools.chain.from_iterable(Progress(None, "documents").over(documents))
    word_counts = count_words(sentences, lowercase)
    tokenizer = Tokenizer(Progress(size, "pieces").over(learn_from_counts(word_counts, size)), lowercase)
    if len(tokenizer.pieces) < size:
        say(f"the vocabulary is complete with {len(tokenizer.pieces):,} pieces: in this corpus no other two "
            f"stand side by side twice ({size:,} need more text)")
    return tokenizer


FORMAT_VERSION = 4
HELD_OUT_EVERY = 100                # every 100th document is kept from training, for evaluation

# What one worker turns into one shard: its number; parts of BLOCK_BYTES at most together, or one XML file.
Block = tuple[int, list[FilePart]]


def read_blocks(files: Iterable[Path]) -> Iterator[list[FilePart]]:
    """Deal the files out in blocks: a big file gives several, many small ones share one.

    The blocks depend on the files alone, and finding them is quick: nothing is parsed or tokenized here. An
    XML file counts with its size on the disk.

    returns   the parts of each block, with their `position`
    """
    parts: list[FilePart] = []          # of the block that is being filled
    size = earlier = 0                  # bytes in this block, and of the files before this one
    for file in files:
        file_size = file.stat().st_size
        content = open_file(file)                                   # read_parts closes it
        for part in read_parts(file, content):
            # An open file (of XML) cannot travel to another process, which opens it anew.
            is_open = part.content is content
            part_size = file_size if is_open else len(part.content)
            position = earlier + (file_size if is_open else os.lseek(content.fileno(), 0, os.SEEK_CUR))
            if parts and size + part_size > BLOCK_BYTES:
                yield parts
                parts, size = [], 0
            parts.append(part._replace(content=None if is_open else part.content, position=position))
            size += part_size
        earlier += file_size
    if parts:
        yield parts


def vocabulary_hash(tokenizer: Tokenizer) -> str:
    """Return the SHA-256 of all pieces and the casing: tokenizers with the same hash give the same ids.

    Shards record it, since ids mean nothing without the vocabulary that they were made with.
    """
    usual = Casing(tokenizer.lowercase)
    casing = f"lowercase={tokenizer.lowercase}" if tokenizer.casing == usual else repr(tokenizer.casing)
    return hashlib.sha256("\n".join([*tokenizer.pieces, casing]).encode()).hexdigest()


def write_shard(folder: Path, tokenizer: Tokenizer, max_length: int, seed: int, reading: Reading,
                block: Block) -> dict:
    """Tokenize one block and write its arrays, held-out examples last.

    returns   the shard's entry in index.json: counts, position in the corpus, checksums
    """
    shard, parts = block
    rng = random.Random(f"{seed}/{shard}")
    counts = collections.Counter(documents=0, sentences=0, words=0, wordpieces=0, unknown=0)
    train: list[list[list[int]]] = []           # documents as sentences of wordpiece ids
    held_out: list[list[list[int]]] = []
    pmids = array("q")
    # 1. Turn sentences into wordpiece ids. Each block begins to count at another number (37 a block), so that
    #    blocks of fewer than a hundred documents hold out some, too.
    for document in itertools.chain.from_iterable(part_documents(part, reading) for part in parts):
        if "pmid" in document.id:
            pmids.append(int(document.id["pmid"]))
        if not document:
            continue
        sentences = tokenizer.encode_batch(document)
        counts.update(documents=1, sentences=len(document), words=len(" ".join(document).split()),
                      wordpieces=sum(map(len, sentences)),
                      unknown=sum(ids.count(tokenizer.unk_id) for ids in sentences))
        is_held_out = (37 * shard + counts["documents"]) % HELD_OUT_EVERY == 0
        (held_out if is_held_out else train).append(sentences)
    # 2. Cut examples from the documents to train on, then from those held out.
    to_train, kept = (list(build_examples(documents, max_length, rng)) for documents in (train, held_out))
    counts["cut"] = counts["wordpieces"] - sum(len(a) + len(b) for a, b in to_train + kept)
    tokens, starts, firsts = array("H"), array("q", [0]), array("H")
    for a, b in to_train + kept:
        tokens.fromlist([tokenizer.cls_id, *a, tokenizer.sep_id] + ([*b, tokenizer.sep_id] if b else []))
        starts.append(len(tokens))
        firsts.append(len(a) + 2)
    # 3. Write the arrays, and hash their bytes as they are written.
    hashes = {}
    arrays = {"tokens": tokens, "starts": starts, "first": firsts, **({"pmids": pmids} if pmids else {})}
    for name, values in arrays.items():
        content = io.BytesIO()
        np.save(content, np.array(values))
        write_bytes(folder / f"{shard:05d}.{name}.npy", content.getbuffer())
        hashes[name] = hashlib.sha256(content.getbuffer()).hexdigest()
    files = collections.Counter(part.format for part in parts if part.line == 1)
    return {**counts, "tokens": len(tokens), "examples": len(firsts), "held_out": len(kept),
            "position": parts[-1].position, "files": files, "sha256": hashes}


def read_index(folder: Path) -> dict[str, Any]:
    """Read index.json; ValueError or OSError naming it when it is missing or of another format."""
    path = folder / "index.json"
    index = read_object(path) if path.exists() else {}
    if index.get("format") != FORMAT_VERSION:
        raise ValueError(f"{path}: not there, or no index of shards of format {FORMAT_VERSION}: "
                         "build it with python data.py build")
    return index


def continue_index(folder: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """Read the folder's index.json, or begin one.

    wanted    what the shards are to be built from, by name
    raises    ValueError naming the first of them that differs from what the folder was built from
    """
    if not (folder / "index.json").exists():
        return {**wanted, "complete": False, "shards": []}
    index = read_index(folder)
    # The files are compared one by one, so that the message can name one.
    pairs = [("sources", *pair) for pair in itertools.zip_longest(index["sources"], wanted["sources"])]
    pairs += [(key, index[key], wanted[key]) for key in wanted if key != "sources"]
    for key, before, now in pairs:
        if before != now:
            raise ValueError(f"{folder} was built with another {key} ({before}, now {now}): choose another "
                             "folder, or delete this one")
    return index


def start_worker() -> None:
    """Prepare a worker process: it ignores Ctrl-C, and ends with its parent, even when that is killed."""
    def wait_for_parent() -> None:
        cast(Any, multiprocessing.parent_process()).join()
        os._exit(1)

    # Ctrl-C reaches all processes of a terminal. The parent alone answers it, by ending the pool.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A parent that is killed cannot end its workers. This thread waits for the parent's end, then exits.
    threading.Thread(target=wait_for_parent, daemon=True).start()


def map_in_processes(job: Callable[[Block], dict], blocks: Iterable[Block], workers: int) -> Iterator[dict]:
    """Yield job(block) for each block, in order, computed by several processes.

    raises   what a job raises; ChildProcessError when a worker was killed
    """
    # "spawn" starts fresh interpreters: "fork" would copy the threads' locks of a parent that uses torch.
    pool = concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker)
    # The job travels with each block: its tokenizer takes hundredths of a second, the block seconds.
    submitted = (pool.submit(job, block) for block in blocks)
    try:
        # Results come in the order of the blocks, as the index lists them. A block is read only when there is
        # room for it: two blocks more than there are workers are in memory at most.
        waiting = collections.deque(itertools.islice(submitted, workers + 1))
        while waiting:
            waiting.extend(itertools.islice(submitted, 1))
            yield waiting.popleft().result()
    except concurrent.futures.process.BrokenProcessPool:
        raise ChildProcessError("a worker was killed, perhaps for lack of memory: lower --workers") from None
    finally:
        pool.shutdown(cancel_futures=True)


def describe_corpus(folder: Path, shards: list[dict[str, Any]], left_out: int) -> str:
    """Say what shards were built from, members of archives counted: "12 files: 9 XML, 2 text; 1 left out".

    Where documents have PMIDs, a line before says how many were met before, and how many DeleteCitation
    names: PubMed's update files hold new versions of records in its baseline. All become documents.

    left_out    files of the folders that were not read
    """
    pmids = np.concatenate([np.empty(0, np.int64), *map(np.load, folder.glob("*.pmids.npy"))])
    kept = pmids[pmids > 0]
    repeats = (f"{len(kept) - len(np.unique(kept)):,} records repeat a PMID, DeleteCitation names "
               f"{len(pmids) - len(kept):,}: they are not left out\n" if len(pmids) else "")
    formats = sum((collections.Counter(entry["files"]) for entry in shards), collections.Counter())
    total, unread = formats.total() + left_out, formats["left out"] + left_out
    read = ", ".join(f"{formats[kind.lower()]:,} {kind}" for kind in ("XML", "text") if formats[kind.lower()])
    return (f"{repeats}{total:,} file{'s' if total != 1 else ''}: {read}"
            + (f"; {unread:,} left out" if unread else ""))


def build_shards(paths: Sequence[str | os.PathLike], tokenizer: Tokenizer, out: str | os.PathLike,
                 max_length: int = 128, seed: int = 0, workers: int | None = None,
                 reading: Reading = Reading()) -> None:
    """Tokenize a corpus into a shard folder; the same call on a half-built folder completes it.

    workers   processes; None or 0 for one on each core, fewer when the corpus is small. They import the
              program that calls this: what it does should stand under `if __name__ == "__main__":`
    raises    ValueError when `out` was built from something else, or the vocabulary does not fit into uint16;
              OSError when a worker was killed
    """
    if len(tokenizer.pieces) > 2 ** 16:
        raise ValueError(f"the vocabulary has {len(tokenizer.pieces)} pieces, shards store ids below 65536")
    if not 8 <= max_length < 2 ** 16:
        raise ValueError(f"max_length {max_length}: less than 8 leaves no room for text, 65535 is the most")
    # 1. What the shards are made from; a folder made from something else is refused.
    folder = Path(out)
    files, left_out = corpus_files(paths)
    refuse_inside(folder, paths)
    names = (file.name.encode(errors="backslashreplace").decode() for file in files)
    wanted = {"format": FORMAT_VERSION, "vocabulary": vocabulary_hash(tokenizer), "max_length": max_length,
              "seed": seed, "text": describe_reading(reading),
              "sources": [f"{name}, SHA-256 {file_hash(file)}" for name, file in zip(names, files)]}
    size = sum(file.stat().st_size for file in files)
    # Fewer workers when the corpus is small. 4: compressed text is about a quarter as large.
    workers = min(workers or os.cpu_count() or 1, 1 + 4 * size // BLOCK_BYTES)
    job = functools.partial(write_shard, folder, tokenizer, max_length, seed, reading)
    with only_process(folder):
        index = continue_index(folder, wanted)
        shards = index["shards"]
        # 2. Build the blocks that are not listed yet; list each as it comes.
        if not index["complete"]:
            blocks = itertools.islice(enumerate(read_blocks(files)), len(shards), None)
            done = 1 + shards[-1]["position"] // 1000 if shards else 0
            progress = Progress(1 + size // 1000, "kB of the corpus", done)
            for entry in map(job, blocks) if workers == 1 else map_in_processes(job, blocks, workers):
                shards.append(entry)
                write_bytes(folder / "index.json", json.dumps(index).encode())
                progress.show(1 + entry["position"] // 1000)
            if not any(entry["examples"] for entry in shards):
                raise ValueError(f"no text in {', '.join(map(str, files)) or 'the given folders'}")
            progress.finish()
            # 3. Declare the folder complete, and record what it was built from.
            index |= {"files": describe_corpus(folder, shards, left_out), "complete": True}
            write_bytes(folder / "index.json", json.dumps(index, indent=1).encode())
    # 4. Say what training would not show. (Of whole sentences an eighth is cut off at examples' ends.)
    pieces, cut, unknown = (sum(entry[key] for entry in shards) for key in ("wordpieces", "cut", "unknown"))
    if cut > 0.3 * pieces:
        say(f"*** {cut / pieces:.0%} of the wordpieces are in no example, because lines of over {max_length} "
            "are cut; expected a sentence on each line, an empty line between documents ***")
    if unknown > 0.2 * pieces:
        say(f"*** {unknown / pieces:.0%} of the wordpieces are [UNK]: is this vocabulary for this text? ***")
    say(index["files"])


class Shards:
    """Read examples from a shard folder.

    Examples are numbered through all shards. Token arrays are memory-mapped when first needed: the system
    loads the pages that are read, so a corpus may be larger than the memory. Each array is compared with its
    SHA-256 before it is used: the small ones when the folder is opened, the tokens of a shard (milliseconds)
    when the first example is taken from it. So nothing is trained on that was edited or damaged, and no id
    lies beyond the vocabulary.

    lengths     (examples,) tokens of each example
    train       (n,) numbers of the examples to train on
    held_out    (m,) numbers of the examples of documents kept from training
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.folder = Path(path)
        self.index = read_index(self.folder)
        if not self.index["complete"]:
            raise ValueError(f"{self.folder} is half-built: repeat the command that builds it to complete it")
        entries = self.index["shards"]
        # Copies in memory: a map costs a file descriptor, so of tokens too at most 512 are open at a time.
        self.starts = [np.array(self.load(number, "starts")) for number in range(len(entries))]
        self.firsts = [np.array(self.load(number, "first")) for number in range(len(entries))]
        self.tokens = functools.lru_cache(maxsize=512)(lambda number: self.load(number, "tokens"))
        self.lengths = np.concatenate([np.diff(starts) for starts in self.starts])
        # offsets[k] is the number of the first example of shard k; the held-out ones end each shard.
        self.offsets = np.cumsum([0] + [entry["examples"] for entry in entries])
        ends = zip(self.offsets[1:], entries)
        self.held_out = np.concatenate([np.arange(end - entry["held_out"], end) for end, entry in ends])
        self.train = np.setdiff1d(np.arange(self.offsets[-1]), self.held_out)

    def load(self, number: int, name: str) -> np.ndarray:
        """Map an array of a shard into memory; ValueError where its bytes are not those that were written."""
        path = self.folder / f"{number:05d}.{name}.npy"
        if file_hash(path) != self.index["shards"][number]["sha256"][name]:
            raise ValueError(f"{path}: truncated, damaged or edited (SHA-256): build the shards anew")
        return np.load(path, mmap_mode="r")

    def example(self, number: int) -> tuple[np.ndarray, int]:
        """Return the token ids of one example, and how many of them are [CLS] A [SEP].

        number   0 to len(lengths) - 1, counted through all shards
        """
        shard = int(np.searchsorted(self.offsets, number, side="right")) - 1
        row = number - self.offsets[shard]
        start, end = self.starts[shard][row:row + 2]
        return self.tokens(shard)[start:end], int(self.firsts[shard][row])


open_shards = Shards                    # the name to open a folder by; the class is the type of what it gives


# --- 5. Batches ---
#
# Rows of a batch have one width, and what an example does not fill is padding, which costs as much time as
# text. So examples of like length share a batch. Which batch a step gets depends on the seed and the step
# alone, never on what ran before: that is why a resumed run equals an unbroken one.

def seed_for(seed: int, step: int, purpose: str) -> int:
    """Derive the seed of the random numbers for one purpose ("mask", "order") in one step.

    No state of a generator has to be saved and restored: (seed, step, purpose) is enough to draw them again.
    """
    sequence = np.random.SeedSequence([seed, step, zlib.crc32(purpose.encode())])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))     # 63 bits: torch's are signed


def bucket_widths(max_length: int) -> np.ndarray:
    """List the few row lengths that batches are padded to, ascending.

    >>> bucket_widths(128).tolist()
    [16, 24, 32, 40, 48, 64, 80, 104, 128]

    Multiples of 8, each 1.2 to 1.5 times the one before: an example wastes about a tenth of its row, and a
    compiler that specialises on shapes sees few of them.
    """
    widths = [max_length]
    while widths[-1] > 16:
        widths.append(max(16, int(widths[-1] / 1.2) // 8 * 8))
    return np.array(widths[::-1])


def plan_batches(lengths: np.ndarray, batch_size: int, max_length: int, rng: np.random.Generator,
                 keep_rest: bool = False) -> list[tuple[int, np.ndarray]]:
    """Group examples of like length into batches, in random order; each example at most once.

    With lengths 20 30 30 7, two rows in a batch and widths 16 24 32: 7 waits alone at width 16 and joins 20
    at width 24, where both make a batch; 30 and 30 make one of width 32.

    lengths     (examples,) tokens
    keep_rest   also return the last, smaller batch; otherwise fewer than batch_size examples are left out,
                different ones at each call
    returns     (width, example numbers) for each batch
    """
    widths = bucket_widths(max_length)
    if len(lengths) and lengths.max() > max_length:
        raise ValueError(f"an example has {lengths.max()} tokens, more than the maximum length {max_length}")
    padded = widths[np.searchsorted(widths, lengths)]       # (examples,) the narrowest width that holds each
    batches: list[tuple[int, np.ndarray]] = []
    waiting = np.empty(0, np.int64)
    for width in widths.tolist():
        # Fewer than batch_size rows are left over at one width. They join those of the next width, so that
        # only the widest leaves any out.
        pool = np.concatenate([waiting, rng.permutation(np.flatnonzero(padded == width))])
        full = len(pool) // batch_size * batch_size
        batches += [(width, rows) for rows in pool[:full].reshape(-1, batch_size)]
        waiting = pool[full:]
    if keep_rest and len(waiting):
        batches.append((int(padded[waiting].max()), waiting))
    # Without this shuffle, training would go from short to long examples.
    return [batches[i] for i in rng.permutation(len(batches))]


# --- 6. Task files ---
#
# Each kind of task has one form of example and one reader of files:
#   ner         entities            TaggedSentence    read_tagged
#   re          relations           LabelledText      read_labelled
#   qa          questions           Question          read_questions
#   classify    yes/no questions    LabelledText      read_labelled, with pairs
#   rank        candidate answers   LabelledText      read_labelled, with pairs
# To add a kind, write its reader, list it in READERS, and describe its data sets in TASKS.

def take(entry: Any, key: str, kind: type, place: str) -> Any:
    """Return a value of a JSON object, of the type that it must have; an id or a label may be a number, too.

    raises   ValueError naming place and key where it is missing or of another type
    """
    if not isinstance(entry, dict) or key not in entry:
        raise ValueError(f"{place}: no {key!r} in {str(entry)[:60]}")
    is_number = key in ("id", "label") and isinstance(entry[key], int)
    value = str(entry[key]) if is_number else entry[key]
    if type(value) is not kind:
        raise ValueError(f"{place}: {key!r} is {str(value)[:60]}, expected a value of type {kind.__name__}")
    return value


class TaggedSentence(NamedTuple):
    """Hold one sentence of entity recognition, with one tag per word, both as in the file."""

    words: list[str]
    tags: list[str]


class LabelledText(NamedTuple):
    """Hold one text, or one pair of texts, with its label.

    A relation: a sentence whose entities are placeholders such as @DRUG$, and the relation's name.
    A yes/no question: the question, its answer in words (`text_pair`), and 1 for yes, 0 for no.
    A candidate: a question, and a sentence (`text_pair`) that answers it (label 1) or not (0).
    """

    id: str
    text: str
    label: str
    text_pair: str | None = None

    @property
    def group(self) -> str:
        """Return what the candidates for one question have in common: the question."""
        return self.text.strip()


class Question(NamedTuple):
    """Hold a question about a passage, the context.

    Its answers are (text, first character in the context). BioASQ's test batches have none: there `gold`
    lists the accepted synonyms instead.
    """

    id: str
    question: str
    context: str
    answers: list[tuple[str, int]]
    batch: int | None = None                # BioASQ: number of the test batch
    gold: list[str] | None = None           # BioASQ: accepted synonyms, whether or not a context holds one
    article: int = 0                        # number of the article in its file
    type: str = "factoid"                   # BioASQ: what is asked for, one name (factoid) or several (list)


def check_label(label: str, labels: Sequence[str], place: str) -> str:
    """Return the label; ValueError where it is empty, or none of those that the task knows."""
    if not label or (labels and label not in labels):
        raise ValueError(f"{place}: label {label!r}, expected one of {', '.join(labels) or '?'}")
    return label


TAG = re.compile(r"O|[BI](-[^\s|]+)?")                 # B-DNA|B-protein would be two tags
# The types in CoNLL's third column. They are phrases and no entities, so that column is skipped.
PHRASES = frozenset("ADJP ADVP CONJP INTJ LST NP PP PRT SBAR UCP VP".split())


def read_tagged(path: Path, labels: Sequence[str] = ()) -> list[TaggedSentence]:
    """Read CoNLL columns: one word on each line, the tag last, an empty line between sentences.

    Two lines of the form:
        Naloxone B-Chemical
        works O
    become TaggedSentence(words=["Naloxone", "works"], tags=["B-Chemical", "O"]).

    Columns are separated by tabs, or by spaces in a line without tabs: "heart attack<TAB>B-Disease" is one
    word and its tag. Columns between the first and the last are skipped; all lines have the same number. The
    files differ in empty lines (one, two, or at the start) and in -DOCSTART- lines, which end a sentence too.

    A file of GermEval has another first column, and the tags of outer and inner entities. It is refused:
        4  Hodgkin  I-DIS  B-PER

    raises   ValueError naming the line, or the column if the first one holds no words, or two hold tags
    """
    # 1. The columns of each line; an empty list between two sentences.
    rows: list[list[str]] = []
    width = 0                                                       # columns of the first line
    for number, line in numbered_lines(path):
        columns = [column.strip(" ") for column in re.split(r"\t" if "\t" in line else " +", line.strip(" "))]
        if not any(columns) or columns[0] == "-DOCSTART-":
            rows.append([])
            continue
        # A CR inside a line: it alone ends the lines of the file, as on an old Macintosh.
        fits = columns[0] and TAG.fullmatch(columns[-1]) and len(columns) == (width or max(2, len(columns)))
        if not fits or "\r" in line:
            how = "; one JSON object a line is read for re, qa, classify and rank" if line[0] == "{" else ""
            raise ValueError(f"{path} line {number}: expected a word and O, B-TYPE or I-TYPE, in "
                             f"{width or '2 or more'} columns, and a line end of LF or CR LF, "
                             f"found {line[:80]!r}{how}")
        check_label(columns[-1], labels, f"{path} line {number}")
        width = len(columns)
        rows.append(columns)
    # 2. Every text has words without a digit; numbers, offsets (0-5) and ids (PMC12) have one in each line.
    #    Tags of entities in another column than the last would be dropped without a word.
    for place, values in enumerate(list(zip(*filter(None, rows)))[:-1], start=1):
        is_numbers = place == 1 and all(re.search(r"\d", value) for value in values)
        types = {value[2:] for value in values if value != "O"}
        is_tags = place > 1 and all(map(TAG.fullmatch, values)) and not types <= PHRASES
        if is_numbers or is_tags:
            raise ValueError(f"{path}: column {place} holds {'numbers' if is_numbers else 'tags'} "
                             f"({', '.join(values[:3])}, ...), expected words in the first column, and tags "
                             "in the last one alone: delete that column")
    # 3. The lines between two empty ones are a sentence.
    sentences = [list(lines) for has_words, lines in itertools.groupby(rows, key=bool) if has_words]
    if (longest := max(map(len, sentences), default=0)) > 1000:
        say(f"{path}: one sentence has {longest:,} words: are there empty lines between sentences?")
    return [TaggedSentence([row[0] for row in lines], [row[-1] for row in lines]) for lines in sentences]


QUOTED = re.compile(r'\A"((?:[^"]|"")*)"\Z')


def split_row(line: str) -> list[str]:
    """Split a tab-separated line; take off quotes that a csv writer has put around a field.

    The field "so ""much"", he said" loses its outer quotes and one of each inner pair. The field "a" or "b"
    keeps its quotes: a csv writer would have doubled each double quote inside.

    The csv module does not work here: the published files mix quoted fields with bare inner quotes, and a csv
    reader that meets a stray opening quote swallows the lines that follow it.
    """
    return [QUOTED.sub(lambda quoted: quoted[1].replace('""', '"'), field) for field in line.split("\t")]


# Which field of LabelledText a column fills, by its name in a header or in a JSON object, in any case.
FIELD_OF = {"index": "id", "id": "id", "sentence": "text", "text": "text", "question": "text",
            "label": "label", "labels": "label", "class": "label", "relation": "label",
            "yesno_label": "label", "text_pair": "text_pair", "answer": "text_pair",
            "ideal_answer": "text_pair", "answer_candidate": "text_pair", "candidate": "text_pair"}
WORD = re.compile(r"\s*[^\W\d][\w-]*\s*")
# The columns of each form that files of a kind may have, in the order that they have without a header.
RELATION_FORMS = (("id", "text", "label"), ("text", "label"))
PAIR_FORMS = (("label", "text", "text_pair"),)


def is_header(first: list[str], second: list[str]) -> bool:
    """Tell whether the first row of a file, above this second row, is a header and no example.

    A header has the name "label" or two other known names. A header of unknown names is to be found, too,
    because it would become an example: its fields are single words, and below them stand longer texts.
    """
    names = {name.strip().casefold() for name in first}
    is_known = "label" in names or len(FIELD_OF.keys() & names) > 1
    # "phrase, gold" above a sentence is a header. But "fever, none" above "gout, treats" is an example.
    return is_known or all(map(WORD.fullmatch, first)) and not all(map(WORD.fullmatch, second))


def parse_objects(path: Path, lines: Sequence[tuple[int, str]]) -> list[tuple[str, dict[str, Any]]]:
    """Parse lines that hold one JSON object each, or a file that is one object, or a list of them.

    returns   each object after its place for messages
    """
    filled = [(f"{path} line {number}", line) for number, line in lines if line.strip()]
    if len(filled) > 1 and re.fullmatch(r"\s*{.*}\s*", filled[0][1]):
        found = [(place, parse_json(line, place)) for place, line in filled]
    else:
        content = parse_json("\n".join(line for _, line in lines), path)
        found = [(str(path), value) for value in (content if isinstance(content, list) else [content])]
    for place, value in found:
        if not isinstance(value, dict):
            raise ValueError(f"{place}: expected a JSON object, found {str(value)[:60]}")
    return found


def find_columns(names: Iterable[str], forms: Sequence[tuple[str, ...]], place: str) -> list[str]:
    """Return the field that each name means, "" for one to be skipped; ValueError for none of the forms."""
    columns = [FIELD_OF.get(name.strip().casefold(), "") for name in names]
    known = sorted(filter(None, columns))
    if not any(known in (sorted(form), sorted(["id", *form])) for form in forms):
        raise ValueError(f"{place} with the columns {', '.join(names)}: "
                         f"expected {' or '.join(map(', '.join, forms))}")
    return columns


def read_rows(path: Path, forms: Sequence[tuple[str, ...]],
              yes_no: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a file: for each its place for messages, and its values by field of LabelledText.

    The file is tab-separated, or has one JSON object on each line, or is BioASQ's own with yes/no questions.
    """
    lines = [(number, line) for number, line in numbered_lines(path) if line.strip()]
    # 1. JSON begins with an object or a list; a sentence may begin with "[Gout" or "[".
    if lines and re.fullmatch(r'\s*(\[\s*)?({(\s*".*)?)?', lines[0][1]):
        for place, entry in parse_objects(path, lines):
            if yes_no and "questions" in entry:
                yield from yes_no_rows(path, entry)
            else:
                yield place, dict(zip(find_columns(entry, forms, f"{place}: an object"), entry.values()))
        return
    # 2. Without a header the number of columns tells the form.
    rows = [(f"{path} line {number}", split_row(line)) for number, line in lines]
    first, second = (rows[n][1] if rows[n:] else [] for n in (0, 1))
    form = next((form for form in forms if len(form) == len(first)), forms[0])
    names = rows.pop(0)[1] if is_header(first, second) else form
    columns = find_columns(names, forms, f"{path}: a header")
    for place, fields in rows:
        # A second header: two files were joined. A CR alone ends lines on an old Macintosh.
        is_header_again = [*map(str.casefold, fields)] == [*map(str.casefold, names)]
        if len(fields) != len(columns) or is_header_again or "\r" in "".join(fields):
            raise ValueError(f"{place}: expected {len(columns)} tab-separated columns "
                             f"({', '.join(columns)}), found {len(fields)}: {str(fields)[:200]}")
        yield place, dict(zip(columns, fields))


def read_labelled(path: Path, labels: Sequence[str] = (), forms: Sequence[tuple[str, ...]] = RELATION_FORMS,
                  yes_no: bool = False) -> list[LabelledText]:
    """Read rows of index, sentence, label; or of sentence, label; or of label, question, answer.

    Two rows of ddi-2013, with tabs between the columns; a header line is optional:
        index              sentence                                    label
        DrugBank.d1.s2.p0  @DRUG$ raises the blood level of @DRUG$.    DDI-mechanism
    become LabelledText("DrugBank.d1.s2.p0", "@DRUG$ raises ...", "DDI-mechanism"). Rows without an index are
    numbered from 0. The same example as a line of JSON, with the columns in any order:
        {"id": "DrugBank.d1.s2.p0", "text": "@DRUG$ raises ...", "label": "DDI-mechanism"}

    Two rows of yesno, and two of rerank:
        yesno_label  question                           ideal_answer
        1            Is gout treated with colchicine?   Yes, colchicine relieves attacks of gout.
        label  question          answer_candidate
        0      What is gout?     Gout was known to the Romans.
    become LabelledText("0", "Is gout treated ...", "1", "Yes, colchicine ...") and
    LabelledText("0", "What is gout?", "0", "Gout was known ...").

    Published files of one kind differ: those of ddi-2013 have a header and three columns, gad's have neither
    a header nor an index. Names tell the order of the columns; columns of other names are skipped.

    forms    the fields in each form that the file may have; an id may be added
    yes_no   whether the yes/no questions of a file of BioASQ are meant, too
    raises   ValueError naming the line: a header that is none of the forms would become an example; or the
             file, where over half of the labels differ, as texts do
    """
    examples: list[LabelledText] = []
    for number, (place, row) in enumerate(read_rows(path, forms, yes_no)):
        fields = {field: take(row, field, str, place) for field in row if field}
        fields["label"] = check_label(fields["label"].strip(), labels, place)
        examples.append(LabelledText(**{"id": str(number), **fields}))
    if len({example.label for example in examples}) > max(20, len(examples) / 2):
        raise ValueError(f"{path}: most labels differ, such as {examples[0].label!r}: is this another "
                         f"column? expected {' or '.join(map(', '.join, forms))}, or a header of names")
    several = [example.label for example in examples if re.search(r"\w\s*[,;|]\s*\w", example.label)]
    if len(several) > len(examples) / 20:
        say(f"{path}: {len(several)} of {len(examples)} rows have a label like {several[0]!r}, which counts "
            "as one label: one label per row is meant")
    return examples


def read_asked(path: Path, content: Any, *types: str) -> Iterator[tuple[str, str, list[str], dict[str, Any]]]:
    """Yield the questions of these types from a BioASQ file: a training file, a golden file, a test batch.

    {"questions": [{"id": "5c5f", "type": "factoid", "exact_answer": [["gout", "podagra"]], ...},
                   {"id": "5c60", "type": "yesno", "exact_answer": "yes", ...}]}
    becomes its place for messages, "5c5f", ["gout", "podagra"], and the question as it is there. An exact
    answer is a name, a list of names or a list of such lists: the published files hold all three. A test
    batch, BioASQ-task7bPhaseB-testset1.json, has none.
    """
    form = f"{path}: not in BioASQ's form"
    for number, entry in enumerate(take(content, "questions", list, form)):
        place = f"{form}: question {number}"
        if take(entry, "type", str, place) in types:
            exact = entry.get("exact_answer", [] if "testset" in path.name else None)
            groups = exact if isinstance(exact, list) else [exact]
            names = [name for group in groups for name in (group if isinstance(group, list) else [group])]
            if not all(isinstance(name, str) for name in names):
                raise ValueError(f"{place}: 'exact_answer' is {str(exact)[:60]}, expected names")
            yield place, take(entry, "id", str, place), names, entry


# "Yes," or "No." before the answer in words. "No" alone may begin a sentence: "No drug cures gout".
LEADING_YES_OR_NO = re.compile(r"\A\W*(?:yes\b(?!-\w)|no(?=\s*(?:[,.;:!\n–—]|- |\Z)))[\s,.;:!–—-]*", re.I)


def yes_no_rows(path: Path, content: Any) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield BioASQ's yes/no questions as rows; a leading yes or no is taken off the answer in words.

    {"id": "5c60", "type": "yesno", "body": "Is gout painful?", "exact_answer": "yes",
     "ideal_answer": ["Yes. It hurts."]}
    becomes {"id": "5c60", "text": "Is gout painful?", "text_pair": "It hurts.", "label": "1"}.

    source   the task yesno of Bio-ELECTRA's release, whose rows were made likewise; but it cuts the words
             None and Not short, too
    """
    for place, name, names, entry in read_asked(path, content, "yesno"):
        exact, ideal = "".join(names).strip(" .\n").lower(), entry.get("ideal_answer")
        if exact not in ("yes", "no"):
            raise ValueError(f"{place}: 'exact_answer' is {str(names)[:60]}, expected yes or no")
        first = ideal[0] if isinstance(ideal, list) and ideal else ideal        # later ones say it once more
        answer = LEADING_YES_OR_NO.sub("", take({"ideal_answer": first}, "ideal_answer", str, place))
        yield place, {"id": name, "text": take(entry, "body", str, place), "text_pair": answer,
                      "label": "1" if exact == "yes" else "0"}


# The edition and the number of a test batch in the names that files of BioASQ have: 7B1_golden.json,
# BioASQ-task7bPhaseB-testset1.json, and BioASQ-test-factoid-7b-1.json as ELECTRAMed and BioBERT have it.
BATCH = re.compile(r"(?:BioASQ-task|BioASQ-test-factoid-)?(\d+)B(?:PhaseB-testset|-)?(\d+)(?![\da-z])", re.I)


def read_snippets(path: Path, content: Any, batch: int | None,
                  golden: dict[str, list[str]]) -> list[Question]:
    """Make a question of each snippet of BioASQ's factoid and list questions.

    {"id": "5c5f", "type": "factoid", "body": "What is podagra?", "exact_answer": ["gout"],
     "snippets": [{"text": "Podagra is gout of the big toe."}, {"text": "It hurts."}]}
    becomes Question("5c5f_000", "What is podagra?", "Podagra is gout of the big toe.", [("gout", 11)]).

    For training, the answer is the first occurrence, as whole words in any case, of the longest name that
    occurs. Snippets without one are left out; questions without any other are counted. A test batch keeps all
    its snippets, with the names as `gold`, and also the questions that have no snippet.

    golden   names by question, where another file holds them
    """
    questions: list[Question] = []
    asked = list(read_asked(path, content, "factoid", "list"))
    for article, (place, name, names, entry) in enumerate(asked):
        # White space inside a name matches any other: "5 mg" is found in "5\u00a0mg".
        longest_first = sorted(filter(None, map(str.strip, names)), key=len, reverse=True)
        spelt = [r"\s+".join(map(re.escape, words.split())) for words in longest_first]
        body = take(entry, "body", str, place)
        snippets = take({"snippets": [], **entry}, "snippets", list, place)
        for number, snippet in enumerate(snippets or [{"text": ""}]):
            text = take(snippet, "text", str, place)
            found = (re.search(rf"(?<!\w){spelling}(?!\w)", text, re.I) for spelling in spelt)
            answers = [(match[0], match.start()) for match in found if match][:1]
            questions.append(Question(f"{name}_{number:03d}", body, text, answers, batch,
                                      golden.get(name, names) or None, article, entry["type"]))
    # A test batch keeps every snippet and no answer; training keeps the snippets that have an answer.
    if batch is not None:
        return [question._replace(answers=[]) for question in questions]
    answered = [question._replace(gold=None) for question in questions if question.answers]
    without = len(asked) - len({question.article for question in answered})
    say(f"{path}: left out {without} of {len(asked)} questions: no snippet holds an exact answer")
    return answered


def find_answer(text: str, start: int, context: str) -> tuple[str, int] | None:
    """Return an answer as the context has it, (text, first character); None where it does not have it.

    A wrong start would teach the model to point beside the answer, but in some files many are a little off.
    Then the nearest occurrence counts. White space inside the text matches any other white space:

    >>> find_answer(" TP53", 4, "Does TP53 bind TP53?"), find_answer("TP53 gene", 9, "The TP53\\u00a0gene.")
    ((' TP53', 4), ('TP53\\xa0gene', 4))
    >>> find_answer(" TP53", 0, "TP53 and TP53"), find_answer("BRCA1", 0, "TP53")
    (('TP53', 0), None)
    """
    if not text.strip():
        return None
    if start >= 0 and context.startswith(text, start):
        return text, start
    occurrences = re.finditer(r"\s+".join(map(re.escape, text.split())), context)
    nearest = min(occurrences, key=lambda found: abs(found.start() - start), default=None)
    return nearest and (nearest[0], nearest.start())


def squad_questions(content: dict[str, Any], form: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yield each question of a file in SQuAD's form: the number of its article, its passage, its object."""
    for number, article in enumerate(take(content, "data", list, form)):
        # `datasets` has no articles: each question brings its passage along.
        if isinstance(article, dict) and "context" in article:
            article = {"paragraphs": [{"context": article["context"], "qas": [article]}]}
        for paragraph in take(article, "paragraphs", list, form):
            context = take(paragraph, "context", str, form)
            for entry in take(paragraph, "qas", list, form):
                yield number, context, entry


def read_questions(path: Path, labels: Sequence[str] = ()) -> list[Question]:
    """Read SQuAD's JSON, with or without answers, or BioASQ's own (see `read_snippets`).

    {"data": [{"paragraphs": [{"context": "Podagra is gout.", "qas": [
        {"id": "q1", "question": "What is podagra?", "answers": [{"text": "gout", "answer_start": 11}]}]}]}]}
    or, as the package `datasets` writes it, one question on each line,
    {"id": "q1", "context": "Podagra is gout.", "question": "What is podagra?",
     "answers": {"text": ["gout"], "answer_start": [11]}}
    becomes Question("q1", "What is podagra?", "Podagra is gout.", [("gout", 11)]).

    A BioASQ test batch has no answers. Its synonyms come from the golden file in the same folder: that of
    BioASQ-test-factoid-7b-1.json is 7B1_golden.json. Without it the questions have no `gold`, and can be
    answered but not scored. A question's id is followed there by the number of its context: 5c5f_000.

    Where an answer does not stand at its start, `find_answer` looks for it nearby. If one of a question's
    answers is nowhere in the context, the texts of all of them become its `gold`. Both cases are reported. An
    impossible question of SQuAD 2 has an empty list as `gold`.
    """
    # 1. BioASQ: the number of the test batch, its golden answers, and its own form.
    batch, golden = None, {}
    if test_name := BATCH.match(path.name):
        batch, beside = int(test_name[2]), path.with_name(f"{test_name[1]}B{test_name[2]}_golden.json")
        if beside.is_file():
            asked = read_asked(beside, read_object(beside), "factoid", "list")
            golden = {name: names for _, name, names, _ in asked}
    rows = [row for _, row in parse_objects(path, list(numbered_lines(path)))] or [{}]
    content = {"data": rows} if "context" in rows[0] else rows[0]
    if len(rows) > 1 and {"data", "questions"} & content.keys() and content is rows[0]:
        raise ValueError(f"{path}: {len(rows)} JSON objects: expected one, or questions with their contexts")
    if "questions" in content:
        return read_snippets(path, content, batch, golden)
    # 2. Each question of SQuAD's form, with what is known of its answers.
    questions, is_lost = [], []             # for each answer that is not at its start: is it nowhere?
    form = f"{path}: not in SQuAD's form"
    for article, context, entry in squad_questions(content, form):
        name = take(entry, "id", str, form)
        place, answers = f"{form}: question {name}", entry.get("answers", [])
        if isinstance(answers, dict):           # two lists, as `datasets` has them
            columns = [take(answers, key, list, place) for key in ("text", "answer_start")]
            answers = [{"text": one, "answer_start": start} for one, start in itertools.zip_longest(*columns)]
        stated = [(take(answer, "text", str, place), take(answer, "answer_start", int, place))
                  for answer in take({"answers": answers}, "answers", list, place)]
        found = [find_answer(*answer, context) for answer in stated]
        is_lost += [answer is None for answer, before in zip(found, stated) if answer != before]
        gold = [] if entry.get("is_impossible") else golden.get(re.split("[_:]", name)[0])
        if None in found:
            gold = [text for text, _ in stated]
        questions.append(Question(name, take(entry, "question", str, place), context,
                                  [answer for answer in found if answer], batch, gold, article))
    if is_lost:
        say(f"{path}: {len(is_lost):,} answers are not where the file says; {sum(is_lost):,} of them are "
            "nowhere in their passage, the others were found nearby")
    return questions


READERS: dict[str, Callable[..., list]] = {
    "ner": read_tagged, "re": read_labelled, "qa": read_questions,
    "classify": functools.partial(read_labelled, forms=PAIR_FORMS, yes_no=True),
    "rank": functools.partial(read_labelled, forms=PAIR_FORMS)}


DATA_ROOT = os.environ.get("ELECTRAMED_DATA", "corpora")        # where published data sets lie by default
SPLITS = ("train", "dev", "test")
STANDARD_FILES = tuple(tuple(f"{name}.{ending}" for name in names.split()
                             for ending in ("txt", "tsv", "csv", "json", "jsonl"))
                       for names in ("train", "dev devel valid validation val", "test"))


class Task(NamedTuple):
    """Say what a task is made of.

    A data set without a published test set is cut into parts, and each seed is tested on another part. Where
    the training file is cut, the part after that is for development.
    """

    kind: str                                       # ner, re, qa, classify or rank
    folder: str = ""                                # below the data root; "" for tasks without files
    source: str = ""                                # where the files are published
    labels: tuple[str, ...] = ()                    # all of them; () accepts any
    negative: str | None = None                     # re: the label that means "no relation", not scored
    metric: str = "f1"                              # the score that chooses an epoch
    files: tuple[tuple[str, ...], ...] = STANDARD_FILES     # names of train, dev and test, the best first
    cut: str = ""                                   # the file to cut where train or test is missing
    parts: int = 0                                  # number of parts it is cut into
    together: str = ""                              # a field: examples with the same value stay in one part


YES_NO_FILES = ((*STANDARD_FILES[0], "*train*.json"), STANDARD_FILES[1],
                (*STANDARD_FILES[2], "*_golden.json"))      # BioASQ's own files
JNLPBA = ("O", *(f"{tag}-{kind}" for kind in "DNA RNA cell_line cell_type protein".split() for tag in "BI"))
CHEMPROT = ("CPR:3", "CPR:4", "CPR:5", "CPR:6", "CPR:9")
SQUAD_DEV = ("dev-v1.1.json", "xquad.en.json")      # the second: the part of the first that XQuAD translated
DDI = ("DDI-false", "DDI-advise", "DDI-effect", "DDI-int", "DDI-mechanism")
# Repository, commit and folder of the two releases, ELECTRAMed's and Bio-ELECTRA's.
GITHUB = "https://raw.githubusercontent.com"
MIOLO = "gmpoli/electramed/674c6151001cae52d2abba7b4d0c0677a7c5f01a/data/"
BIO_ELECTRA = "SciCrunch/bio_electra/7a53526773e047c02f03400f61a906a636b9054d/electra/data"
OZYURT = BIO_ELECTRA + "/finetuning_data/"


def bioasq_files(edition: str) -> tuple[tuple[str, ...], ...]:
    """Return the names of the files of one edition, such as 7, or of any: [0-9]*.

    The files in SQuAD's form, which BioBERT and ELECTRAMed made, go before BioASQ's own. A training file
    rebuilt from BioASQ's own may have another edition in its name.
    """
    train, test = "BioASQ-train-factoid-", "BioASQ-test-factoid-"
    return ((f"{train}{edition}b.json", f"{train}*.json", f"*train*{edition}b*.json"), ("*dev*.json",),
            (f"{test}{edition}b-*.json", f"BioASQ-task{edition}bPhaseB-testset*", f"{edition}B*_golden.json"))


TASKS = {
    # Entities, one tag for each word. bc5cdr has one type for chemicals and diseases, and tags an entity of
    # one word I-Entity, a longer one B-Entity I-Entity ...; metrics.py counts both as entities. jnlpba,
    # ncbi-disease and bc5cdr were cut by their publishers at 128 wordpieces of BERT's vocabulary, now and
    # then inside an entity. Tasks without labels take those of their training file.
    "ncbi-disease": Task("ner", "ner/ncbi-disease", MIOLO + "NER/NCBI-disease",
                         ("O", "B-Disease", "I-Disease")),
    "bc5cdr": Task("ner", "ner/bc5cdr", MIOLO + "NER/bc5cdr", ("O", "B-Entity", "I-Entity")),
    "jnlpba": Task("ner", "ner/jnlpba", MIOLO + "NER/JNLPBA", JNLPBA),
    "bc4chemd": Task("ner", "ner/bc4chemd", OZYURT + "bc4chemd"),
    "bc2gm": Task("ner", "ner/bc2gm", OZYURT + "bc2gm", ("O", "B-GENE", "I-GENE")),
    "linnaeus": Task("ner", "ner/linnaeus", OZYURT + "linnaeus"),
    # Relations between two entities that are placeholders in the sentence. chemprot always writes @CHEMICAL$
    # for the first of the two and @GENE$ for the second, whichever they are; chemprot-tsv is the same corpus
    # with the entities masked as BC6ENTC and BC6ENTG. gad's published test file is a copy of its development
    # file, so `read_splits` leaves the latter out; without both files gad is cut into ten parts.
    "chemprot": Task("re", "re/chemprot", MIOLO + "RE/chemprot", ("false", *CHEMPROT), "false"),
    "chemprot-tsv": Task("re", "re/chemprot-tsv", OZYURT + "chemprot", ("False", *CHEMPROT), "False"),
    "ddi2013": Task("re", "re/ddi-2013", MIOLO + "RE/ddi-2013", DDI, "DDI-false"),
    "gad": Task("re", "re/gad", OZYURT + "gad", ("0", "1"), "0", cut="train", parts=10, together="text"),
    # Questions about a passage. SQuAD's test set was never published; where only dev is there, it is cut.
    # bioasq reads BioASQ's own files of any year, bioasq7b those of ELECTRAMed's. bioasq8b, in Bio-ELECTRA's
    # form, is scored as SQuAD is, and tested on dev.json where there is no test.json.
    "squad": Task("qa", "qa/squad", "rajpurkar.github.io/SQuAD-explorer", cut="dev", parts=6,
                  together="article", files=(("train-v1.1.json",), SQUAD_DEV, SQUAD_DEV)),
    "bioasq": Task("qa", "qa/bioasq", "participants-area.bioasq.org", metric="mrr",
                   files=bioasq_files("[0-9]*")),
    "bioasq7b": Task("qa", "qa/bioasq", MIOLO + "QA/BioASQ", metric="mrr", files=bioasq_files("7")),
    "bioasq8b": Task("qa", "qa/bioasq8b", OZYURT + "bioasq",
                     files=(("train*.json",), ("dev.json",), ("test.json", "dev.json"))),
    # Yes/no questions, also those in BioASQ's own files; and candidate answers to be ranked.
    "yesno": Task("classify", "qa/yesno", OZYURT + "yesno", ("0", "1"), metric="macro_f1",
                  files=YES_NO_FILES),
    "rerank": Task("rank", "qa/reranker", OZYURT + "reranker", ("0", "1"), metric="mrr",
                   cut="dev", parts=5, together="group"),
    # Tasks without files, made from the synthetic world of section 7
    "demo-ner": Task("ner", labels=("O", "B-Disease", "I-Disease", "B-Drug", "I-Drug", "B-Gene", "I-Gene")),
    "demo-re": Task("re", labels=("false", "treats", "causes", "inhibits"), negative="false"),
    "demo-qa": Task("qa"),
    # The kinds themselves, for data sets of one's own
    "ner": Task("ner"), "re": Task("re"), "qa": Task("qa"),
    "classify": Task("classify", metric="macro_f1", files=YES_NO_FILES),
    "rank": Task("rank", labels=("0", "1"), metric="mrr")}
# What else `fetch` knows: the vocabularies of both releases, written under their published names.
VOCABULARIES = {"scivocab": Task("vocabulary", "vocab/scivocab", MIOLO + "vocab"),
                "bio-electra-vocab": Task("vocabulary", "vocab/bio-electra", BIO_ELECTRA)}


def find_task(name: str) -> Task:
    """Return the task, or the kind, of this name; ValueError where there is none."""
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}: expected one of {', '.join(TASKS)}")
    return TASKS[name]


def task_folder(task: Task, root: Path) -> Path:
    """Return where the files of a task are: in the root itself if it holds one of them, or else below it.

    The case of the folder's name does not matter: "ner/ncbi-disease" finds NER/NCBI-disease, as the
    ELECTRAMed release has it.
    """
    if not task.folder or any(any(root.glob(pattern)) for pattern in itertools.chain(*task.files)):
        return root
    in_any_case = re.sub("[a-z]", lambda letter: f"[{letter[0]}{letter[0].upper()}]", task.folder)
    return min(root.glob(in_any_case), default=root / task.folder)


def find_split(name: str, split: str, directory: str | os.PathLike | None) -> list[Path]:
    """Find the files of a split, sorted, in the folder itself or where the data root has the task.

    One folder serves all splits, so that two data sets are never mixed. The list is empty where there is no
    file; the demo tasks have none. Without a folder, the data root is DATA_ROOT.
    """
    task = find_task(name)
    if name.startswith("demo-"):
        return []
    folder = task_folder(task, Path(directory or DATA_ROOT))
    # The first pattern that finds a file wins: a published file goes before a substitute.
    found = (sorted(folder.glob(pattern)) for pattern in task.files[SPLITS.index(split)])
    return next(filter(None, found), [])


def missing_files(name: str, directory: str | os.PathLike) -> list[tuple[str, Path, str]]:
    """List the files of a published task, or vocabulary, that are not below the data root.

    Each with its address, the path where it belongs, and the first digits of git's SHA-1 of its content.
    The list is empty when `directory` itself holds a file with a name of this task: that is a data set of the
    user's own, which must not be mixed with published files.
    """
    task = VOCABULARIES.get(name) or find_task(name)
    folder = task_folder(task, Path(directory))
    files = PUBLISHED_FILES.get(name, "") if folder != Path(directory) else ""
    return [(f"{GITHUB}/{task.source}/{file}", folder / file, blob)
            for file, blob in re.findall(r"(\S+) (\S+)", files) if not (folder / file).is_file()]


def fetch_task(name: str, directory: str | os.PathLike) -> None:
    """Download what is missing of a published task, or a vocabulary. Only whole, right files are written.

    raises   OSError (no network, no such file, cut off) or ValueError (wrong checksum) naming the address and
             the path; FileNotFoundError where a data set of the user's own lacks a training file
    """
    for address, path, blob in missing_files(name, directory):
        # 1. Read the file, in blocks of a megabyte.
        remedy = f"; try again, or put it at {path}"
        try:
            with urllib.request.urlopen(address, timeout=30) as answer:      # seconds without a byte
                blocks = iter(functools.partial(answer.read, 1 << 20), b"")
                content = b"".join(Progress(None, f"MB of {path}").over(blocks))
        except (OSError, http.client.HTTPException) as error:
            raise OSError(f"{address}: {error}{remedy}") from None
        # 2. Only if it is whole, and the one that was published, write it under its name.
        found = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()      # as git computes it
        if not found.startswith(blob):
            raise ValueError(f"{address}: git blob {found}, expected {blob}{remedy}")
        write_bytes(path, content)
    if name in TASKS and not find_split(name, "train", directory):
        raise FileNotFoundError(describe_missing(name, "train", directory))


def describe_missing(name: str, split: str, directory: str | os.PathLike | None) -> str:
    """Say what is missing of a split that has no file, and how to get it.

        gad: no test file in DATA or DATA/re/gad: expected test.txt or ...; run python data.py fetch gad, or
        put dev.tsv, test.tsv, train.tsv of ADDRESS into DATA/re/gad
    """
    task, root = find_task(name), Path(directory or DATA_ROOT)
    if root.is_file():
        return f"{root} is a file: pass the folder that holds train, dev and test files"
    places = " or ".join(dict.fromkeys(map(str, (root, root / task.folder))))       # a kind has but one
    how = f" (published as {task.source})" if task.source else ""
    if files := missing_files(name, root):
        names, address = ", ".join(path.name for _, path, _ in files), os.path.dirname(files[0][0])
        how = f"; run python data.py fetch {name}, or put {names} of {address} into {files[0][1].parent}"
    patterns = " or ".join(task.files[SPLITS.index(split)])
    return f"{name}: no {split} file in {places}: expected {patterns}{how}"


def read_task(name: str, split: str, directory: str | os.PathLike | None = None) -> list:
    """Read one split of a task: TaggedSentence, LabelledText or Question, by the task's kind.

    name        one of TASKS; the kinds among them are for data sets of one's own in the same form
    split       train, dev or test
    directory   the data root (ner/..., re/..., qa/..., upper or lower case), or the folder that holds the
                files; the demo tasks need none
    raises      ValueError naming file and line of what is malformed; OSError for what is not there
    """
    task = find_task(name)
    if split not in SPLITS:
        raise ValueError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
    if name.startswith("demo-"):
        return demo_examples(name, split)      # section 7
    if not (files := find_split(name, split, directory)):
        raise FileNotFoundError(describe_missing(name, split, directory))
    examples = [example for path in files for example in READERS[task.kind](path, task.labels)]
    # Two questions with one id are refused, since their answers would count for both.
    asked = collections.Counter(example.id for example in examples if task.kind == "qa")
    if repeated := [question for question, count in asked.items() if count > 1]:
        raise ValueError(f"{' or '.join(map(str, files))}: several questions have the id {repeated[0]!r}: "
                         "give each an id of its own, or leave out a file")
    # An empty development file, as BioBERT's folds of GAD have it, counts as none.
    if not examples and split != "dev":
        raise ValueError(f"{name}: no examples in the {split} file of {files[0].parent}")
    return examples


def task_files(name: str, directory: str | os.PathLike | None) -> list[Path]:
    """List the files of all splits that are there, and those that BioASQ's golden answers are taken from."""
    files = [path for split in SPLITS for path in find_split(name, split, directory)]
    golden = [path for folder in {file.parent for file in files} for path in folder.glob("*_golden.json")]
    return sorted({*files, *golden})


def read_splits(name: str, directory: str | os.PathLike | None,
                seed: int = 0) -> tuple[dict[str, list], str]:
    """Read train, dev (where there is one) and test; return them, and the name of the test set.

    Some data sets have no test file, or none that can be downloaded. TASKS says how one of their files is
    cut into parts then, of which each seed takes another one for testing.

    raises   as `read_task` for a train or test set that is neither there nor made by cutting
    """
    task = find_task(name)
    there = [split for split in SPLITS if name.startswith("demo-") or find_split(name, split, directory)]
    # 1. Our own split.
    if task.cut in there and (lacking := {"train", "test"} - set(there)):
        test_set = f"part {seed % task.parts + 1} of {task.parts} of its {task.cut} file: a cut of our own"
        say(f"*** {describe_missing(name, min(lacking), directory)}; so the test set is {test_set} ***")
        return cut_splits(task, read_task(name, task.cut, directory), seed), test_set
    # 2. The published split. gad and the yes/no questions were published with the test set as development
    #    set, too. Without one of its own, no epoch is chosen: the model after the last epoch is used.
    wanted = [split for split in SPLITS if split != "dev" or split in there]
    examples = {split: read_task(name, split, directory) for split in wanted}
    if examples["train"] == examples["test"]:
        say(f"*** {name}: the training set and the test set are the same ***")
    if not examples.get("dev") or examples["dev"] == examples["test"]:
        examples.pop("dev", None)
        say(f"{name}: no development set that differs from the test set, so the last epoch counts")
    return examples, "test set"


def cut_splits(task: Task, examples: list, fold: int) -> dict[str, list]:
    """Cut one file into train, dev (if the task has one) and test.

    The groups of examples that must stay together (the same relation sentence, one article, one question) are
    dealt out to the parts in a fixed random order. Part `fold` is for test, the next one for dev.
    """
    groups = list(dict.fromkeys(getattr(example, task.together) for example in examples))
    random.Random(0).shuffle(groups)
    names = {0: "test", 1: "dev" if task.cut == "train" else "train"}       # all further parts: train
    split_of = {group: names.get((part - fold) % task.parts, "train") for part, group in enumerate(groups)}
    splits: dict[str, list] = {split: [] for split in ("train", *names.values())}
    for example in examples:
        splits[split_of[getattr(example, task.together)]].append(example)
    return splits


# --- 7. A synthetic world ---
#
# A made-up biomedicine, small enough to be learnt in minutes. From rules to a sentence with labels:
#
#   facts      of each drug: what it treats, harms, inhibits, at which dose, for how many weeks, at which site
#   relations  with which verbs each of them is stated, and what follows from it
#   template   "{target} was {verb} by {drug} at {site} ."
#   sentence   "Sulol was blocked by vorax acetate at xanfais."
#   labels     tags B-Gene O O O B-Drug I-Drug O O O; relation inhibits; question "Which gene was blocked by
#              vorax acetate?", answer "Sulol"
#
# What pre-training learns here helps in the demo tasks. The facts are the same in every abstract, so that a
# hidden name or number follows from the others. All relations share their templates, so that a model can
# learn from their places and from what follows which verbs mean the same. And all names are made of the same
# syllables: only the words around a name tell whether it is a drug, a gene, a disease or a hospital.

SYLLABLES = "ba cor del fa gan hu jor kel lo mar nev or pel qui ras sul tam ul vor xan zi".split()
ENDINGS = "ab an ax el ene ia in is ol on or ux".split()
DRUGS = 24                                      # and as many genes and diseases

# Facts of a drug that are entities, and their types. The drug does nothing to {paralog} and {failed}.
ENTITY_TYPES = {"drug": "Drug", "gene": "Gene", "paralog": "Gene",
                "disease": "Disease", "harm": "Disease", "failed": "Disease"}
# Relation -> facts that a drug has it with; its verbs in style 0 | style 1; what follows from it. An abstract
# is written in one of the two styles, and draws one verb for each relation.
RELATIONS = {
    "treats": ("disease", "relieved healed soothed | cured eased cleared", "patients felt better"),
    "causes": ("harm", "caused induced triggered | provoked evoked elicited", "patients felt worse"),
    "inhibits": ("gene", "blocked inhibited silenced | suppressed disabled depleted", "its activity fell"),
    "false": ("paralog failed", "spared ignored retained | preserved avoided tolerated", "nothing changed")}

# Section of an abstract -> templates. {slot} is replaced by a fact, the word DETAILS by two of the details.
# {target} is what the drug has the relation with, {verb} the verb that states it. One rule gives the relation
# of a sentence: it is that of its section, and of its verb.
DETAILS = ["at {site}", "in the {trial} trial", "at {dose}", "after {weeks} weeks", "in {year}"]
TEMPLATES = {
    "design": ["patients with {disease} took {drug} DETAILS .",
               "patients received {drug} against {disease} DETAILS ."],
    **dict.fromkeys(RELATIONS, ["{drug} {verb} {target} DETAILS .",
                                "{target} was {verb} by {drug} DETAILS ."]),
    # What any one of the verbs means, without a name. The words drug, gene and disease are taught here, too:
    # demo-re has @DRUG$, @GENE$ and @DISEASE$ in place of names.
    "conclusion": ["the drug {verb} the {type} and {follows} .",
                   "{follows} when the {type} was {verb} by the drug ."]}
# Slot that holds the answer -> question.
QUESTIONS = {"target": "which {type} was {verb} by {drug}?", "site": "where was {drug} tested?",
             "dose": "what dose of {drug} was given?", "year": "when was {drug} tested?",
             "weeks": "for how many weeks was {drug} given?"}


def tidy(words: list[str]) -> str:
    """Join words by spaces, except before marks: ["at", "sulol", "."] -> "at sulol."."""
    return re.sub(r" (?=[.,])", "", " ".join(words))


class SyntheticSentence(NamedTuple):
    """Hold a sentence with all that is known about it."""

    section: str                                # a key of TEMPLATES; one of RELATIONS is its relation, too
    words: list[str]
    tags: list[str]                             # one per word: B-Type opens an entity, I-Type continues it
    questions: list[tuple[str, str, int]]       # (question, answer, the character of `text` where it starts)

    @property
    def text(self) -> str:
        """Return it as it is printed."""
        return tidy(self.words)

    @property
    def anonymised(self) -> str:
        """Return the text with its entities as @DRUG$, @GENE$ or @DISEASE$."""
        return tidy([f"@{tag[2:].upper()}$" if tag[0] == "B" else word
                     for word, tag in zip(self.words, self.tags) if tag[0] != "I"])


def write_sentence(section: str, facts: dict[str, str], rng: random.Random) -> SyntheticSentence:
    """Draw a template of the section, and put the facts into its slots."""
    # 1. The relation that the section is about, or else any. It adds four facts.
    relation = section if section in RELATIONS else rng.choice(list(RELATIONS))
    targets, _, follows = RELATIONS[relation]
    target = rng.choice(targets.split())
    types = {**ENTITY_TYPES, "target": ENTITY_TYPES[target]}
    facts = {**facts, "target": facts[target], "type": types[target].lower(), "verb": facts[relation],
             "follows": follows}
    # 2. Fill the slots from left to right, so that it is known what each word is.
    words: list[str] = []
    tags, questions = [], []
    template, details = rng.choice(TEMPLATES[section]), " ".join(rng.sample(DETAILS, 2))
    for token in template.replace("DETAILS", details).split():
        slot = token[1:-1] if token[0] == "{" else ""
        filled = token.format_map(facts).split()
        if not words:
            filled[0] = filled[0].capitalize()
        if slot in QUESTIONS:
            question, start = QUESTIONS[slot].format_map(facts).capitalize(), len(tidy([*words, ""]))
            questions.append((question, " ".join(filled), start))
        kind = types.get(slot)
        tags += [f"B-{kind}"] + [f"I-{kind}"] * (len(filled) - 1) if kind else ["O"] * len(filled)
        words += filled
    return SyntheticSentence(section, words, tags, questions)


def style_of(number: int) -> int:
    """Return the style of abstract `number`, 0 or 1: it changes after each round of the drugs."""
    return number // DRUGS % 2


class SyntheticWorld:
    """Hold the facts of one made-up world, and write abstracts about them, as many as asked for.

    >>> SyntheticWorld(seed=0).document(5)[0].text
    'Sulcoria healed corxanux at 40 mg after 29 weeks.'
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        rng = random.Random(seed)
        # 1. Names of two or three syllables, each only once.
        possible = {"".join(parts) for parts in itertools.product(["", *SYLLABLES], SYLLABLES, ENDINGS)}
        names = iter(rng.sample(sorted(possible), 4 * DRUGS))
        #    Every fourth drug, gene and disease is named by two words, such as "vorax acetate".
        drugs, genes, diseases = ([next(names) + (f" {noun}" if i % 4 == 0 else "") for i in range(DRUGS)]
                                  for noun in ("acetate", "kinase", "fever"))
        sites, trials = ([next(names) for _ in range(6)] for _ in range(2))
        # 2. The facts of each drug, by slot. i ^ 1 is its neighbour (0 <-> 1, 2 <-> 3). What one drug treats
        #    is the harm of another, so that a disease alone does not tell the verb.
        self.facts = [{
            "drug": drugs[i], "gene": genes[i], "paralog": genes[i ^ 1],
            "disease": diseases[i], "failed": diseases[i ^ 1], "harm": diseases[i - DRUGS // 2],
            "site": sites[i // 4], "trial": trials[i % 6], "dose": f"{rng.randrange(5, 100, 5)} mg",
            "weeks": str(rng.randint(2, 30)), "year": str(rng.randint(1961, 2019))} for i in range(DRUGS)]

    def document(self, number: int) -> list[SyntheticSentence]:
        """Write abstract `number`: three to eight sentences on drug number % DRUGS.

        The result depends on (seed, number) alone: any range of numbers is a corpus, and ranges that do not
        overlap are training and held-out documents of the same world.
        """
        rng = random.Random(f"{self.seed}/{number}")
        # 1. The facts of the drug, and one verb for each relation in the style of this abstract.
        facts = dict(self.facts[number % DRUGS])
        for relation, (_, verbs, _) in RELATIONS.items():
            facts[relation] = rng.choice(verbs.split("|")[style_of(number)].split())
        # 2. One sentence for each section that was drawn, in their order, and two conclusions: it takes many
        #    of these to learn which verbs mean the same.
        drawn = {*rng.sample(list(TEMPLATES), rng.randint(2, 6)), "conclusion"}
        sections = [section for section in TEMPLATES if section in drawn] + ["conclusion"]
        return [write_sentence(section, facts, rng) for section in sections]


# The demo tasks ask whether pre-training helps. Their training sets are small and speak of eight drugs in the
# verbs of style 0; the other sets speak of the other drugs in the verbs of style 1. A model that has read
# only the training set meets words it does not know; one that has been pre-trained has read them in a corpus
# of the same world. The splits share no abstract with each other, nor with the corpus, whose abstracts are
# numbered from 0.
#
# Split -> number of the first abstract it may use, and how many examples it has.
DEMO_SPLITS = {"train": (10_000_000, 800), "dev": (20_000_000, 200), "test": (30_000_000, 800)}


def is_demo_document(number: int, split: str) -> bool:
    """Tell whether a demo task may take abstract `number` for a split."""
    is_like_training = [style_of(number) == 0, number % DRUGS < DRUGS // 3]
    return all(is_like_training) if split == "train" else not any(is_like_training)


def document_examples(name: str, number: int, sentences: list[SyntheticSentence]) -> Iterator:
    """Yield what abstract `number` gives for a demo task: tagged sentences, relations, or questions."""
    context = " ".join(sentence.text for sentence in sentences)
    for position, sentence in enumerate(sentences):
        if name == "demo-ner":
            yield TaggedSentence(sentence.words, sentence.tags)
        elif name == "demo-re" and sentence.section in RELATIONS:
            yield LabelledText(f"{number}.{position}", sentence.anonymised, sentence.section)
        elif name == "demo-qa":
            for question, answer, start in sentence.questions:
                answers = [(answer, context.index(sentence.text) + start)]
                yield Question(f"{number}.{position}.{start}", question, context, answers)


def demo_examples(name: str, split: str) -> list:
    """Make the examples of demo-ner, demo-re or demo-qa."""
    world = SyntheticWorld()
    first, size = DEMO_SPLITS[split]
    numbers = (number for number in itertools.count(first) if is_demo_document(number, split))
    found = (document_examples(name, number, world.document(number)) for number in numbers)
    return list(itertools.islice(itertools.chain.from_iterable(found), size))


def synthetic_corpus(documents: int, seed: int = 0) -> str:
    """Write abstracts 0 to documents - 1 as corpus text: one sentence on a line, then an empty line.

    Of three rounds of the drugs one is whole; in the other two each sentence is a document: on short rows a
    model learns sooner which words to look at, and it still does so on long ones.
    """
    world, text = SyntheticWorld(seed), []
    for number in range(documents):
        between = "\n\n" if number // DRUGS % 3 else "\n"            # an empty line ends a document
        text.append(between.join(sentence.text for sentence in world.document(number)) + "\n\n")
    return "".join(text)


# --- 8. Command line ---
#
#     python data.py learn corpus/*.xz --size 8000 --out vocabulary/vocab.txt       a vocabulary from a corpus
#     python data.py build corpus/*.xz --vocab vocabulary --out shards              the corpus as shards
#     python data.py info shards                          what they hold; checks that they are undamaged
#     python data.py fetch ncbi-disease ddi2013                                     published data sets
#
# train_pretrain.py does the first two by itself where nobody has done them, train_finetune.py the last.

def describe_shards(shards: Shards) -> str:
    """Describe a shard folder in four lines: the text, its wordpieces, the examples, the padding."""
    documents, sentences, words, pieces, unknown = (
        sum(entry[key] for entry in shards.index["shards"])
        for key in ("documents", "sentences", "words", "wordpieces", "unknown"))
    max_length, tokens = shards.index["max_length"], shards.lengths.sum()
    widths = bucket_widths(max_length)
    padded = widths[np.searchsorted(widths, shards.lengths)]                # (examples,) tokens and padding
    return (f"{documents:,} documents, {sentences:,} sentences, {words:,} words\n"
            f"{pieces:,} wordpieces, {pieces / words:.3f} per word, {unknown / pieces:.3%} of them unknown\n"
            f"{len(shards.lengths):,} examples of at most {max_length} tokens, {tokens:,} together; "
            f"{len(shards.held_out):,} examples held out\n"
            f"padding {1 - tokens / padded.sum():.1%} in batches by length")


def learn_command(options: argparse.Namespace) -> None:
    """Learn and write a vocabulary."""
    lowercase, out = not options.cased, Path(options.out)
    refuse_inside(out, options.corpus)
    # The vocabulary is written last: where its casing stands alone, this very command was killed before.
    for path in (out, out.with_name("tokenizer_config.json")):
        if path.exists() and (path == out or read_object(path).get("do_lower_case") != lowercase):
            raise ValueError(f"{path} is there already: choose another --out, or delete it")
    tokenizer = learn_vocabulary(options.corpus, options.size, lowercase)
    tokenizer.save(out.parent, out.name)
    print(f"{out}: {len(tokenizer.pieces):,} pieces")


def build_command(options: argparse.Namespace) -> None:
    """Tokenize a corpus into a shard folder; print what the folder holds."""
    tokenizer = Tokenizer.from_file(options.vocab, lowercase=False if options.cased else None)
    if doubt := tokenizer.casing_doubt():
        say(f"{options.vocab}: {doubt}")
    reading = Reading(options.min_pmid, options.language, preprocess_bluebert if options.bluebert else None)
    build_shards(options.corpus, tokenizer, options.out, options.max_length, workers=options.workers,
                 reading=reading)
    print(describe_shards(open_shards(options.out)))


def info_command(options: argparse.Namespace) -> None:
    """Compare every array of a shard folder with its SHA-256, and print what the folder holds."""
    shards = open_shards(options.shards)
    for number, entry in enumerate(shards.index["shards"]):
        for name in entry["sha256"]:
            shards.load(number, name)
    print(f"{describe_shards(shards)}\n{len(shards.index['shards'])} shards as they were built")


def fetch_command(options: argparse.Namespace) -> None:
    """Download what is missing of published data sets."""
    for name in options.names:
        fetch_task(name, options.data)
        print(f"{name}: nothing is missing in {options.data}")


def given(text: str) -> str:
    """Return a text from the command line; refuse an empty one, such as "$DIR" where DIR has no value."""
    if not text:
        raise argparse.ArgumentTypeError("is empty: is a variable of the shell not set?")
    if re.search(r"[\0-\x1f\x7f]", text):              # an error that names it would not be one line
        raise argparse.ArgumentTypeError(f"{text!r} holds a line end or another control character: rename it")
    return text


def run_command(command: Callable[[], int]) -> int:
    """Run a command and return its exit status.

    Wrong input, and what the machine does not have, becomes one line on stderr and status 2; Ctrl-C becomes
    status 130. Other exceptions are errors of the program and keep their traceback. Characters that the
    terminal or file cannot encode are printed as escapes such as \\u03b1, on stderr by Python itself.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return command()
    except KeyboardInterrupt:
        say("\ninterrupted")
        return 130
    except BrokenPipeError:         # the program that reads our output (head, say) has ended, and so do we
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, OverflowError) as error:
        message = str(error)
    except (MemoryError, RuntimeError) as error:
        # torch has no class of its own for a CPU without memory: its RuntimeError says so in words.
        if "memory" not in repr(error).lower():
            raise
        message = f"out of memory ({error}): take smaller batches, or fewer workers"
    say(f"error: {message}".splitlines()[0])
    return 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run python data.py learn | build | info | fetch; return the exit status."""
    parser = argparse.ArgumentParser(description="Prepare vocabularies, shards and published data sets.")
    commands = parser.add_subparsers(dest="command", required=True)

    def add_command(run: Callable[[argparse.Namespace], None]) -> Callable:
        """Add a command that is named and described as this function is; return what adds its arguments."""
        name, help = run.__name__.removesuffix("_command"), cast(str, run.__doc__).splitlines()[0]
        command = commands.add_parser(name, help=help, description=help)
        command.set_defaults(run=run)
        command.register("type", None, given)           # arguments without a type are texts: none is empty
        return command.add_argument

    corpus = "text (one sentence a line, empty line: new document), PubMed or PMC XML; .gz .xz .tar; folder"

    add = add_command(learn_command)
    add("corpus", nargs="+", metavar="CORPUS", help=corpus)
    add("--size", type=int, required=True, help="pieces, for example 8000; SciVocab has 31090")
    add("--out", required=True, help="the vocab.txt to write, beside a tokenizer_config.json with its casing")
    add("--cased", action="store_true", help="keep capitals and accents (default: drop both)")

    add = add_command(build_command)
    add("corpus", nargs="+", metavar="CORPUS", help=corpus)
    add("--vocab", required=True, help="vocab.txt, or the folder it is in")
    add("--cased", action="store_true", help="keep capitals and accents (default: as the vocabulary says)")
    add("--out", required=True, help="the shard folder; the same command continues one that is half-built")
    add("--max-length", type=int, default=128, help="tokens of the longest example (default: 128)")
    add("--min-pmid", type=int, default=0, help="lowest PubMed number to take (Bio-ELECTRA: 10000000)")
    add("--language", help="take only PubMed records in this language, such as eng (default: all)")
    add("--bluebert", action="store_true", help="lower-case ASCII, Treebank tokens: as ELECTRAMed's corpus")
    add("--workers", type=int, default=0, help="processes (default: 0, for one on each core)")

    add = add_command(info_command)
    add("shards", help="shard folder")

    add = add_command(fetch_command)
    add("names", nargs="+", choices=PUBLISHED_FILES, metavar="NAME", help=", ".join(PUBLISHED_FILES))
    add("--data", default=DATA_ROOT, help="folder of the published data sets (default: %(default)s)")

    options = parser.parse_args(arguments)
    options.run(options)                                    # the function that its command was added with
    return 0


# --- 9. Published files ---
#
# For each task or vocabulary, names of files, each with its git blob: the SHA-1 that git gives to content.
# The first 16 digits (64 bits) are enough: no damaged or changed file has the same by chance. Train files
# come last: a task counts as missing until its train file is there, so an interrupted fetch never leaves a
# set that looks whole. bioasq7b has no development set here, because bioasq8b's dev.json shares questions
# with its test batches.

PUBLISHED_FILES = {
    "ncbi-disease": "dev.txt 88d1646e63a69b54 test.txt d75a6e42036632fe train.txt 4895ef60010515fc",
    "bc5cdr": "dev.txt 2ca9babbec34d94b test.txt 7423daffe8639738 train.txt 0951ed269e1b1561",
    "jnlpba": "dev.txt 2b517edf6e3738ff test.txt bad88167217a1fe4 train.txt a6318ff48c8b8b82",
    "bc4chemd": "dev.txt 607eed70e400da4c test.txt ce2aeda424709c92 train.txt f46f93b33d2152d8",
    "bc2gm": "dev.txt c083f1ef3d6c9113 test.txt 666f49afd8efeafb train.txt 4cff7095a25ecda1",
    "linnaeus": "dev.txt 179aa3511bfa65d7 test.txt b3d846994dc82cd2 train.txt c6f292a574a1a891",
    "chemprot": "dev.csv 7d98f7bc25ec470b test.csv b3e23a6ec0838dc4 train.csv ce4f21b372980e11",
    "chemprot-tsv": "dev.tsv 201dd471a065bff4 test.tsv 06f1ba4ecf0c79b8 train.tsv 644856894743580e",
    "ddi2013": "dev.csv 48888205c94d3271 test.csv 1c80e62329fb9dff train.csv 6085b354a4a0dd61",
    "gad": "dev.tsv 0ffc3a8e5f029fae test.tsv 0ffc3a8e5f029fae train.tsv 03f3109745ed6b55",
    "bioasq7b": (
        "7B1_golden.json 61a2bc42271283dd 7B2_golden.json abff98032f267708 7B3_golden.json 3cb6827d1da79a96 "
        "7B4_golden.json b1bcffcdec281048 7B5_golden.json 6f5a78717d2ad179 "
        "BioASQ-test-factoid-7b-1.json 33bd5b73c823e444 BioASQ-test-factoid-7b-2.json 3ecef07d9d8e966a "
        "BioASQ-test-factoid-7b-3.json afc68b24fa8e1687 BioASQ-test-factoid-7b-4.json 51a209563def21f9 "
        "BioASQ-test-factoid-7b-5.json c1e185b9318611c3 BioASQ-train-factoid-7b.json f1f71528a1558354"),
    "bioasq8b": "dev.json 3fff09fc6370d8c8 train.json 9d5fa4f82577e1eb",
    "yesno": "dev.tsv a7531645fc0611fd test.tsv a7531645fc0611fd train.tsv 2b53cf61b9d93a19",
    "rerank": "dev.tsv 76c45b5d95faf59a test.tsv 76c45b5d95faf59a train.tsv 9f7a9b2692855528",
    "scivocab": "vocab.txt 8a2c6673dbaca554",
    "bio-electra-vocab": "pmc_2017_abstracts_wp_vocab_sorted.txt 5435ab1b8815623a"}


if __name__ == "__main__":
    sys.exit(run_command(main))
