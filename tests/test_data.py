"""Check data.py, section by section.

Contents
  1. Small tools               locked folders, progress, writing and reading whole files
  2. Documents                 sentences of prose; text; then XML and archives
  3. Pre-training examples     segments on paper; equal to a literal reading of the official rules
  4. Shards                    nothing is lost, interrupted builds continue, damage is found
  5. Batches                   each example at most once, little padding
  6. Task files                entities, relations, pairs, questions; where they are found; parts and labels;
                               the published data sets; fetching
  7. A synthetic world         documents, and the demo tasks made of them
  8. Command line              build, info, learn, fetch
  9. What is easily given instead of what is meant
"""
import contextlib
import csv
import doctest
import gzip
import hashlib
import http.server
import io
import itertools
import json
import lzma
import math
import os
import random
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
import tracemalloc
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import data
import tokenizer
from data import (
    TASKS, LabelledText, Question, Reading, SyntheticWorld, bucket_widths, build_examples,
    build_shards, corpus_files, cut_splits, fetch_task, find_task, missing_files,
    open_shards, plan_batches, read_documents, read_task, seed_for, split_segments,
    split_sentences, synthetic_corpus)
from metrics import bioasq_question_id
from tokenizer import SPECIAL_TOKENS, Tokenizer

ROOT = Path(data.__file__).parent
LETTERS = "abcdef"
# Spells every word of LETTERS one piece a letter, but for "abc", which is one.
SPELLER = Tokenizer([*SPECIAL_TOKENS, *",.-?", *LETTERS, *(f"##{letter}" for letter in LETTERS), "abc"])
# One piece a document: the tokens of an example tell which document it was cut from.
NUMBERED = Tokenizer([*SPECIAL_TOKENS, *(f"w{number}" for number in range(300))])
TAGS = ("O", "B-Drug", "I-Drug")

seeds = st.integers(0, 2 ** 32)
plain_characters = st.characters(codec="utf-8", exclude_characters="\t\r\n\ufeff \0")
words_of_letters = st.text(LETTERS, min_size=1, max_size=3)
json_values = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(), st.text()),
                           lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
                           max_leaves=8)


def write(path, content):
    """Write text (its line ends as they are) or bytes, and the folders above."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def numbered_corpus(folder, documents=250):
    """Write documents of four sentences, up to 50 tokens, document n made of the word w<n> alone."""
    lengths = [[3 + number * sentence % 10 for sentence in range(1, 5)] for number in range(documents)]
    documents_of_words = [[" ".join([f"w{number}"] * length) + "\n" for length in row]
                          for number, row in enumerate(lengths)]
    write(folder / "corpus.txt", "\n".join(map("".join, documents_of_words)))
    return folder / "corpus.txt", {f"w{number}": sum(row) for number, row in enumerate(lengths)}


def contents(folder):
    """Everything in a shard folder, by name, but its lock, which holds a process id."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".electramed.lock"}


def squad(*entries):
    """A SQuAD file: one paragraph for each (context, question entry)."""
    return json.dumps({"data": [{"title": "t", "paragraphs": [
        {"context": context, "qas": [entry]} for context, entry in entries]}]})


def within_four_standard_errors(count, trials, probability):
    return abs(count - trials * probability) < 4 * math.sqrt(trials * probability * (1 - probability))


@contextlib.contextmanager
def time_limit(seconds):
    """Fail, rather than hang, where a loop has no end."""
    def stop(*_):
        raise TimeoutError(f"still running after {seconds} s")
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_the_examples_in_the_docstrings_of_data_run():
    assert doctest.testmod(data).failed == 0


# --- 1. Small tools ---

HOLDER = "import data, sys, time; from pathlib import Path\nwith data.only_process(Path(sys.argv[1])):\n" \
         "    print('held', flush=True); time.sleep(600)"


def test_a_second_process_is_refused_at_once_and_a_killed_one_leaves_nothing(tmp_path):
    folder = tmp_path / "run"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, folder], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        for name in ("log.csv", "model/config.json"):
            write(folder / f"{name}.123.unfinished", "half")
        with pytest.raises(ValueError, match="run is in use by another process: wait until it ends"):
            with data.only_process(folder):
                pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    mine = write(folder / "novel.unfinished", "mine")
    for _ in range(2):
        with data.only_process(folder):
            assert list(folder.rglob("*.unfinished")) == [mine]


def test_what_is_said_to_a_closed_terminal_is_lost_but_stops_nothing(monkeypatch):
    def closed(text):
        raise OSError(5, "Input/output error")

    for stderr in (SimpleNamespace(write=closed, flush=lambda: None), None):
        monkeypatch.setattr(sys, "stderr", stderr)
        progress = data.Progress(2, "steps")
        progress.due = 0
        progress.show(1)
        progress.finish()
        data.say("nobody hears this")


def test_progress_comes_after_two_seconds_then_every_ten_and_at_the_end(monkeypatch, capsys):
    clock = iter([0.0, 1.0, 8.0, 10.0, 16.0])
    monkeypatch.setattr(data.time, "monotonic", clock.__next__)
    progress = data.Progress(40, "steps")
    progress.show(1)
    progress.show(8)
    progress.show(9, "loss 2")
    progress.show(40, "loss 1")
    progress.finish()
    progress.finish()
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == (
        "", "8 of 40 steps, 1.0/s, 0.5 min left\n40 of 40 steps, 2.5/s  loss 1\n")


def test_progress_counts_its_rate_from_where_it_resumed(monkeypatch, capsys):
    clock = iter([0.0, 10.0, 20.0])
    monkeypatch.setattr(data.time, "monotonic", clock.__next__)
    progress = data.Progress(None, "documents", start=1000)
    progress.show(1050)
    data.Progress(5, "nothing").finish()
    assert capsys.readouterr().err == "1,050 documents, 5.0/s\n"


def test_progress_shows_no_rate_before_anything_is_done(monkeypatch, capsys):
    clock = iter([0.0, 20.0])
    monkeypatch.setattr(data.time, "monotonic", clock.__next__)
    data.Progress(40, "steps", start=8).show(8)
    assert capsys.readouterr().err == "8 of 40 steps\n"


@pytest.mark.parametrize("error, status, said", [
    (MemoryError("Unable to allocate 3 TiB"), 2,
     "error: out of memory (Unable to allocate 3 TiB): take smaller batches, or fewer workers\n"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory\nat x"), 2,
     "error: out of memory (DefaultCPUAllocator: can't allocate memory\n"),
    (OverflowError("int too large to convert to float"), 2, "error: int too large to convert to float\n"),
    (IsADirectoryError(21, "Is a directory", "d"), 2, "error: [Errno 21] Is a directory: 'd'\n"),
    (ValueError("train.csv line 3: expected 3 columns, found 2"), 2,
     "error: train.csv line 3: expected 3 columns, found 2\n"),
    (FileNotFoundError("no.txt: no such file"), 2, "error: no.txt: no such file\n"),
    (KeyboardInterrupt(), 130, "\ninterrupted\n")])
def test_an_error_becomes_one_line_on_stderr_and_an_exit_status(error, status, said, capsys):
    def command() -> int:
        raise error
    assert data.run_command(command) == status
    assert data.run_command(lambda: 0) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", said)


def test_an_error_of_the_program_keeps_its_traceback():
    def command() -> int:
        raise RuntimeError("shapes differ")
    with pytest.raises(RuntimeError, match="shapes differ"):
        data.run_command(command)


def test_what_the_output_cannot_encode_is_escaped(tmp_path):
    corpus = write(tmp_path / "\u03b1.txt", "abc abc abd abd\n")
    learn = [sys.executable, ROOT / "data.py", "learn", corpus, "--size", "12", "--out",
             tmp_path / "\u03b2.txt"]
    done = subprocess.run(learn, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and b"\\u03b2.txt: 12 pieces" in done.stdout


WITHOUT_LOCKS = """
import signal, sys
sys.modules["fcntl"] = None
del signal.SIGHUP
import data, tokenizer
with data.only_process("run"):
    pass
pieces = [*tokenizer.SPECIAL_TOKENS, "abc"]
data.build_shards(["c.txt"], tokenizer.Tokenizer(pieces), "shards", workers=1)
print(len(data.open_shards("shards").lengths))
"""


def test_a_system_without_locks_builds_without_them(tmp_path):
    """As Windows has neither fcntl nor SIGHUP."""
    write(tmp_path / "c.txt", "abc abc\n")
    done = subprocess.run([sys.executable, "-c", WITHOUT_LOCKS], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


def test_a_lock_is_never_followed_through_a_link(tmp_path):
    mine = write(tmp_path / "mine.txt", "mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".electramed.lock").symlink_to(mine)
    with pytest.raises(OSError, match="electramed.lock"):
        with data.only_process(tmp_path / "run"):
            pass
    assert mine.read_text() == "mine"


@given(st.lists(st.integers(), max_size=20), st.integers(0, 5))
def test_progress_passes_items_on_unchanged(items, start):
    assert list(data.Progress(None, "items", start).over(items)) == items


@given(st.text(plain_characters))
def test_written_bytes_are_read_back_and_leave_no_other_file(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "written" / "file.txt"
    path.parent.mkdir(exist_ok=True)
    data.write_bytes(path, text.encode())
    assert path.read_bytes() == text.encode() and list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = write(tmp_path / "file", "old")

    def full(number):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="file: no space left on device: make room, .* repeat the command"):
        data.write_bytes(path, b"new")
    assert contents(tmp_path) == {"file": b"old"}


@pytest.mark.parametrize("content, message", [
    ("[" * 200_000, "JSON that cannot be read: maximum recursion depth"),
    ('["\\ud83d"]', r"ud83d.*surrogates not allowed"), ('{"a\\udc00": 1}', "surrogates not allowed"),
    ("1" * 5000, "JSON that cannot be read"), ("", "JSON that cannot be read: .*line 1")])
def test_json_that_cannot_be_used_is_refused_with_its_file(tmp_path, content, message):
    with pytest.raises(ValueError, match=rf"test\.json.*{message}"):
        read_task("qa", "test", write(tmp_path / "test.json", content).parent)


# --- 2. Documents ---

# Written for this test: a sentence a line; splitting must find the line ends again once they are spaces.
PROSE = """
Metformin lowered HbA1c by 1.2 % within 12 weeks (p < 0.05).
The effect was larger in women than in men.
No patient stopped treatment.

Isolates of E. coli and K. pneumoniae were grown at 37 °C.
After 24 h the plates were read by two of us.
Growth of S. aureus was weaker than that of P. aeruginosa, as Fig. 2 shows.
Neither strain produced toxin A.
Patients who carried C. difficile were kept apart.

Smith et al. (2004) described three families.
Their findings were repeated by Jones et al. in a larger cohort.
Similar rates were given by Kim et al.
The reason is not known.

The dose was 0.5 mg/kg i.v. twice daily, i.e. about 35 mg for an adult of 70 kg.
Serum was drawn at 8 a.m. and stored at -80 °C.
Samples were thawed once.
Drugs were injected i.p. under anaesthesia.

p53 is lost in half of these tumours.
mRNA of the gene was low in all of them.
siRNA against it had no effect (see Table 3).
c-Myc was raised instead.
pH did not matter.

Does aspirin prevent colon cancer?
We followed 1,204 nurses for 10.5 years.
Fewer cancers were seen with aspirin (HR 0.82, 95 % CI 0.71–0.94; P = 0.004).
What the best dose is remains open!

BACKGROUND: Statins are widely used.
AIM: To compare atorvastatin vs. placebo in dialysis.
METHODS: Dr. Alvarez and Prof. Li randomised 88 patients approx. 2 weeks after the start of dialysis.
RESULTS: LDL fell to 1.9 mmol/l.
CONCLUSION: Statins work in dialysis, cf. the guideline of 2013.

Vitamin D was given to half of the children.
The others got vitamin C.
Rickets was not seen in either arm.
Children with hepatitis B were not admitted.
Twelve had hepatitis C.
Parents gave consent.

Mice were bought from Charles River Inc. and fed ad libitum.
Antibodies came from Abcam Ltd.
The membranes were washed three times in PBS.
Bands were scanned (ImageJ, v. 1.53; see Suppl. Fig. 4).
β-Actin served as control.
α-synuclein was not found.

The protein binds DNA (Kd = 3.4 nM).
25 of 31 mutants lost binding.
3 showed stronger binding.
IL-6, TNF-α, etc. were normal.
We therefore excluded inflammation, sepsis, etc.
These animals recovered.

"Nothing helped," she wrote in her diary.
She had tried opioids, gabapentin and "every herb there is."
Her pain began after a fall (from a ladder, ca. 2 m high).
It never left.

Resistance rose from 3.1% to 7.9% in ten years.[12]
Most isolates came from hospitals.[3,4]
In the U.S. the rate is higher than in the E.U.
However, methods differ.

Plasmids were gifts of J. R. Brown and of A. Müller.
The work was paid for by the Swiss Cancer League (grant no. 31-4456).
None of the authors has an interest to declare.
T. Rossi wrote the first draft.

Asthma (J45.9) was the commonest diagnosis.
COPD came second.
Cases were sought by ICD code, drug (salbutamol, fluticasone, etc.) and clinic.
Is that enough?
Perhaps not.

Larvae of Aedes sp. were found in 14 wells.
Those of Anopheles spp. were rarer.
Two wells held both.
Culex pipiens var. molestus was found once.

Thirty rats (Rattus norvegicus; 250–300 g) were used.
They were killed on day 7.
Livers were weighed to the nearest 0.01 g.
Slices of 5 µm were cut.
Staining was with H. & E.
Two pathologists graded fibrosis from 0 to 4.

In group A, 12 patients died.
In group B, 7 did.
Survival was longer in group B.
Patients in group A were older (71.2 vs 64.8 yr).
Age was adjusted for with Cox regression, Eq. 3.

The gene lies on chromosome 7q31.2 and has 27 exons.
A deletion of three bases (c.1521_1523delCTT, p.Phe508del) accounts for most alleles.
Over 2,000 variants are known.
Newborns are screened in most of Europe.

Blood pressure was 162/95 mmHg on arrival.
She was given labetalol 20 mg i.v.
Her pressure fell to 140/88 mmHg within 10 min.
The CT scan was normal.
She went home on day 3.

We found no difference in mortality (RR 1.01; 95% CI, 0.93 to 1.10).
Length of stay was shorter by 1.4 days.
Costs were not counted.
See ref. 14 for the protocol.

According to Nakamura et al., IgG4 levels of > 1.35 g/l suggest the disease.
Ours had a level of 4.7 g/l.
Steroids (prednisolone 0.6 mg/kg/d) brought relief in 5 d.
He has been well since Jan. 2012.

Nos. 4 and 7 were stained again.
Figs. 1 and 2 show the result.
Staining was absent in no. 4.
It was strong in no. 7.
Why is unclear.

Cells (1 × 10^6 per ml) were kept in RPMI 1640 with 10 % FCS.
Medium was changed every 2 d.
Viability was > 95 %.
HeLa cells served as control.
NF-κB was measured by ELISA.

Calcium enters by TRPV1.
TRPV1 opens at temperatures above 43 °C.
Capsaicin lowers this threshold to 25 °C.
Below pH 6.0 it opens at room temperature.

Eating fish twice a week is advised (Grade B).
Red meat should be eaten rarely (Grade C; see Sect. 4.2).
Alcohol is not advised.
Pregnant women should avoid shark, i.e. fish rich in mercury.

The boy had a fever of 39.4 °C, a rash and red eyes.
Kawasaki disease was suspected.
Immunoglobulin (2 g/kg) was infused over 12 h.
He was afebrile by the next morning.
Echocardiography 6 wk. later was normal.
His parents were told to come back in a year.

Influenza A was found in 31 swabs.
Nine held influenza B.
Oseltamivir was started in all.
Fever fell after 2.1 days on average (s.d. 0.8).
There were no deaths.

The assay is based on the method of Lowry et al. with minor changes.
Absorbance was read at 595 nm.
Bovine albumin (Sigma Chemical Co., St. Louis, MO) was the standard.
All samples were run twice.

Only one trial (n = 48) met our criteria.
It was stopped early.
Its authors did not answer our letters.
We rated the evidence as very low.
Larger trials are needed...
Two are under way.

Tumours were staged by the TNM system (8th ed.).
Stage was II in 14 and III in 22.
Margins were clear (R0) in 30.
Chemotherapy (FOLFOX-6) was given to those with stage III.
Five-year survival was 61.3 %.

The enzyme has a Km of 12 µM and a Vmax of 3.3 U/mg.
Zn2+ inhibits it.
Ca2+ does not.
EDTA restores activity.
Its structure (PDB 1ABC, 1.9 Å) shows two domains.
The first binds ATP.

What causes the headache?
Is it the drug itself, or the way it is stopped?
In the diary of Mrs. K., attacks came 2–3 d after the last tablet.
Withdrawal is the likelier cause.

Fluoxetine (20 mg q.d.) was well borne.
Two dropped out because of nausea.
One moved to Washington D.C. and was lost.
Scores on the HAM-D fell by 9.6 points.
Placebo lowered them by 7.1.
The difference was small but real (P=.03).

Bacteria were plated on agar (Difco).
Plates were kept at 30 C.
Colonies were counted after 2 d.
S. Typhimurium grew best.
L. monocytogenes did not grow at all.

Ultrasound showed a mass of 3.5 x 2.8 cm in the left lobe.
Fine-needle aspiration gave papillary carcinoma (Bethesda VI).
She underwent thyroidectomy.
TSH is now < 0.1 mU/l.

The families live in Finland and St. Petersburg.
All carry the same haplotype at D9S1776.
It probably arose ca. 400 years ago.
None of 212 controls carries it.

Caffeine (3 mg/kg) was taken 1 h before the ride.
Time to exhaustion rose by 7 % (P < 0.01).
Perceived effort fell.
Heart rate did not change.
Thus, caffeine helps.

Infection was defined as in Ref. 9.
Cultures were taken if the temperature was above 38.3 °C.
Antibiotics were changed in 40 of 112 episodes (36 %).
Fungi were found in four (Candida albicans in 3, C. glabrata in 1).

Malaria kills more than 400,000 people a year, most of them children under 5.
Artemether-lumefantrine cured 97.2 % (104/107) by day 28.
P. vivax relapsed in 14.
Primaquine 0.25 mg/kg/d for 14 d. prevents this.
Screening for G6PD deficiency is needed first.

The trial (ClinicalTrials.gov NCT01234567) was run at 11 centres from Feb. 2009 to Dec. 2011.
Its sponsor, Nordic Pharma Inc., had no say in the analysis.
The primary end point was death or dialysis.
Seventy-two events (21.4 per 100 patient-years) were seen.
HRs were computed by the method of Efron.

Leptin (0.5 μg, i.c.v.) reduced food intake by 31 %.
Pair-fed rats lost as much weight (Fig. 5, right).
STAT3 was phosphorylated within 15 min. in the arcuate nucleus.
mTOR was not.
Further work should ask why.

Complement factor H. influenzae type b and its vaccine are dealt with elsewhere.
H. influenzae was cultured from the CSF.
The isolate was resistant to ampicillin (MIC > 32 mg/l)!
Cefotaxime was given for 10 days.

Peaks at m/z 301.14 and 319.15 belong to the aglycone.
NMR data agree with Ref. 22.
Yields were 45–60 %.
Compound 7 (IC50 0.8 nM) was the best of the series, cpd. 9 the worst.
Solubility in water is poor (< 1 mg/ml).
""".strip().split("\n\n")


def split_into_texts(text):
    return [text[start:end] for start, end in split_sentences(text)]


def test_sentences_of_biomedical_prose_are_found():
    right = wrong = missed = 0
    for paragraph in PROSE:
        sentences = paragraph.split("\n")
        ends = set(itertools.accumulate(len(sentence) + 1 for sentence in sentences[:-1]))
        found = {start for start, _ in split_sentences(" ".join(sentences))} - {0}
        right += len(ends & found)
        wrong += len(found - ends)
        missed += len(ends - found)
    assert right + missed >= 150
    assert 2 * right / (2 * right + wrong + missed) >= 0.97             # 0.997: "cpd. 9" is cut


@pytest.mark.parametrize("text, sentences", [
    ("It fell (p < 0.05). The rest, e.g. E. coli in Fig. 2, did not.",
     ["It fell (p < 0.05).", "The rest, e.g. E. coli in Fig. 2, did not."]),
    ("Is it? No. p53 is.\nmRNA\nis not! small", ["Is it?", "No.", "p53 is.", "mRNA\nis not! small"]),
    ("In mice.[3, 4] In men.12,13 At 0.5 Gy", ["In mice.[3, 4]", "In men.12,13", "At 0.5 Gy"]),
    ("A title\n \n\n1. The first (in part. Not all). ", ["A title", "1. The first (in part. Not all)."]),
    ("He is by MS. We saw Ms. Lee.", ["He is by MS.", "We saw Ms. Lee."]),
    ("It took 500 ms. After this, Drs. Ho left.", ["It took 500 ms.", "After this, Drs. Ho left."]),
    ("On chr. 9 and Chr. X of Mt. Fuji mice, see Sec. 2 and Sects. 3 and 4.",
     ["On chr. 9 and Chr. X of Mt. Fuji mice, see Sec. 2 and Sects. 3 and 4."]),
    ("It maps to chr.1, 92 cM away.", ["It maps to chr.1, 92 cM away."]),
    ("It is so. (b) A view. (c–e) The rest (i) or it. (ii) None.",
     ["It is so.", "(b) A view.", "(c–e) The rest (i) or it.", "(ii) None."]),
    ("It ran . . . and left. Then . . . Nothing.", ["It ran . . . and left.", "Then . . .", "Nothing."]),
    ('He said "no."3 She left. He said "yes."[4] It rained.',
     ['He said "no."3', "She left.", 'He said "yes."[4]', "It rained."]),
    ("In A and B. Both of F. Reid and D. Ho left.", ["In A and B.", "Both of F. Reid and D. Ho left."]),
    ("1 \n\n", ["1"]), ("  one  ", ["one"]), ("", []), (" \n\n ", []), (".", ["."]), ("...?", ["...?"]),
])
def test_sentences_that_can_be_followed_on_paper(text, sentences):
    assert split_into_texts(text) == sentences


def test_sentences_of_real_papers_end_where_their_treebank_says(real_data):
    """33 papers of CRAFT; F1 of the borders inside paragraphs."""
    right = wrong = missed = 0
    for line in lzma.open(real_data / "sentences" / "craft.jsonl.xz", "rt"):
        paragraph = json.loads(line)
        gold = {start for start, _ in paragraph["sentences"][1:]}
        found = {start for start, _ in split_sentences(paragraph["text"])[1:]}
        right += len(gold & found)
        wrong += len(found - gold)
        missed += len(gold - found)
    assert right + missed == 6589 and 2 * right / (2 * right + wrong + missed) >= 0.997      # before: 0.990


@given(st.text(st.sampled_from("aB1.?!()[]\" \n\u2028,é")))
def test_sentences_cover_all_but_white_space_in_order(text):
    spans = split_sentences(text)
    assert all(start < end and text[start:end].strip() == text[start:end] for start, end in spans)
    ends = [0, *(position for span in spans for position in span), len(text)]
    assert ends == sorted(ends) and not "".join(text[a:b] for a, b in zip(ends[::2], ends[1::2])).strip()


@pytest.mark.parametrize("unit", [".", "a. ", "(A. ", ".)", ".[1", "\n ", "\n", ". ", "a.1,", "A. B) "])
def test_the_time_to_find_sentences_is_linear_in_the_length_of_the_text(unit):
    with time_limit(60):                                               # quadratic: hours
        split_sentences(unit * 100_000)


@pytest.mark.parametrize("text, documents", [
    ("Fever fell.\nNobody died.\n\nA title\n", [["Fever fell.", "Nobody died."], ["A title"]]),
    ("\ufeffa b\nc\n\nd\n", [["a b", "c"], ["d"]]),                                  # byte order mark
    ("a b\r\nc\r\n\r\nd\r\n", [["a b", "c"], ["d"]]),
    # blank, or white space alone
    ("\n\n a b\t\nc\n\n \n\t\n\nd\n\n\n", [["a b", "c"], ["d"]]),
    ("a b\nc\n\nd", [["a b", "c"], ["d"]]),
    # none of these ends a line
    ("a\u2028b\x0bc\x85d\re\nf", [["a\u2028b\x0bc\x85d\re", "f"]]),
    ("", []), ("\n\n", []), ("\ufeff\n", []),
])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress], ids=["plain", "gz", "xz"])
def test_the_format_is_detected_from_the_content_not_from_the_file_name(tmp_path, pack, text, documents):
    assert list(read_documents(write(tmp_path / "corpus.txt", pack(text.encode())))) == documents


# Without marks and tabs no text looks like XML, JSON or columns; and none holds the zero byte.
sentences = st.text(st.characters(codec="utf-8", exclude_categories=["P", "S"],
                                  exclude_characters="\r\n\t\ufeff\0")).filter(str.strip)


@given(st.lists(st.lists(sentences, min_size=1, max_size=4), max_size=4), st.sampled_from(["\n", "\r\n"]),
       st.integers(1, 3))
def test_any_documents_written_as_text_are_read_back(tmp_path_factory, documents, end, blank_lines):
    text = (end * blank_lines).join("".join(line + end for line in document) for document in documents)
    path = write(tmp_path_factory.getbasetemp() / "any.txt", text)
    assert list(read_documents(path)) == [[line.strip() for line in document] for document in documents]


@pytest.mark.parametrize("content, line", [
    (b"\xff", 1), (b"ok\r\n\n caf\xe9 \n", 3), (b"\xef\xbb\xbfa\n\xed\xa0\x80\n", 2),
    ("a\nb".encode("utf-16"), 1), ("a\nb".encode("utf-16-le"), 1), (b"a\n" * 300 + b"b\0c\n", 301)])
def test_the_line_that_is_not_utf8_is_named(tmp_path, content, line):
    path = write(tmp_path / "latin.txt", content)
    with pytest.raises(ValueError, match=rf"latin\.txt line {line} byte [0-9]+: not UTF-8"):
        list(read_documents(path))


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress], ids=["gz", "xz"])
def test_an_archive_cut_anywhere_is_refused_with_the_last_line_read(tmp_path, pack):
    whole = pack("".join(f"{number * 7919}\n" for number in range(40)).encode())
    for size in range(6, len(whole)):
        path = write(tmp_path / "cut.gz", whole[:size])
        with pytest.raises(ValueError, match=r"cut\.gz after line \d+: the archive is truncated or damaged"):
            list(read_documents(path))


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress], ids=["gz", "xz"])
def test_a_damaged_archive_is_refused(tmp_path, pack):
    whole = bytearray(pack(b"one line\n" * 500))
    whole[len(whole) // 2] ^= 0xff
    path = write(tmp_path / "damaged", bytes(whole))
    with pytest.raises(ValueError, match=r"damaged after line \d+: the archive is truncated or damaged"):
        list(read_documents(path))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.txt"):
        list(read_documents(tmp_path / "nowhere.txt"))


def test_a_folder_stands_for_all_files_below_it_sorted(tmp_path):
    b, a, deep = (write(tmp_path / name, "x") for name in ("corpus/b.txt", "corpus/a.txt", "corpus/c/d.txt"))
    other = write(tmp_path / "other.txt", "x")
    assert corpus_files([other, tmp_path / "corpus"]) == ([other, a, b, deep], 0)
    with pytest.raises(FileNotFoundError, match="nowhere: no such file or folder"):
        corpus_files([other, tmp_path / "nowhere"])


def test_the_real_corpus_has_the_documents_its_readme_counts(real_data):
    corpus = real_data / "pretrain" / "corpus"
    counts = [(len(documents), sum(map(len, documents)))
              for documents in (list(read_documents(corpus / name))
                                for name in ("pubmedqa-00.txt.xz", "sample_raw.txt", "sample_bluebert.txt"))]
    assert counts[0] == (999, 11_345)
    assert [documents for documents, _ in counts[1:]] == [409, 409]


# --- 2. Documents: XML and archives ---

def pubmed(*records):
    """A file of PubMed's, as its baseline has it: each record (PMID, language, title, what follows it)."""
    return ('<?xml version="1.0" encoding="utf-8"?>\n<!DOCTYPE PubmedArticleSet SYSTEM "http://nlm/x.dtd">\n'
            "<PubmedArticleSet>\n" + "".join(
                f'<PubmedArticle><MedlineCitation Owner="NLM"><PMID Version="1">{pmid}</PMID><Article>'
                f'<Journal><Title>'
                f"Lancet</Title></Journal><ArticleTitle>{title}</ArticleTitle>{rest}<Language>{language}"
                f"</Language>"
                "</Article><CommentsCorrectionsList><CommentsCorrections><PMID>99</PMID>"
                "</CommentsCorrections>"
                "</CommentsCorrectionsList></MedlineCitation><PubmedData><ReferenceList><Reference>"
                "<Citation>Old et al."
                "</Citation></Reference></ReferenceList></PubmedData></PubmedArticle>\n"
                for pmid, language, title, rest in records) + "</PubmedArticleSet>\n")


RECORDS = pubmed(
    (5, "eng", "Aspirin in <i>H. pylori</i>-negative  men.",
     "<Abstract><AbstractText Label='AIM'>To see. And\n to look at CO<sub>2</sub>.</AbstractText>"
     "<AbstractText "
     "Label='RESULTS'>Of 10<sup>6</sup> cells &lt; 5 % lived &amp; grew.</AbstractText>"
     "<CopyrightInformation>(c) Me."
     "</CopyrightInformation></Abstract><OtherAbstract><AbstractText>Wozu.</AbstractText></OtherAbstract>"),
    (20000000, "fre", "[On gout.]", "<VernacularTitle>De la goutte.</VernacularTitle>"),
    (30000000, "eng", "[Not Available].", ""))
MEDLINE = """<?xml version="1.0"?>\r\n
<!DOCTYPE MedlineCitationSet PUBLIC "-//NLM//DTD 2010//EN" "http://x/y.dtd">\r\n
<MedlineCitationSet><MedlineCitation Status="MEDLINE"><PMID>7</PMID><Article><ArticleTitle>Old
form</ArticleTitle>
<Abstract><AbstractText>It is. It
was.</AbstractText></Abstract></Article></MedlineCitation></MedlineCitationSet>"""
PAPER = """<!DOCTYPE article PUBLIC "-//NLM//DTD JATS" "JATS.dtd">
<article xmlns:mml="http://www.w3.org/1998/Math/MathML"><front><article-meta>
<article-id>pmc1</article-id><title-group>
<article-title>A paper<xref ref-type="fn"
rid="f1"/></article-title><alt-title>Short</alt-title><trans-title-group>
<trans-title>Ein Aufsatz</trans-title></trans-title-group></title-group><contrib-group><contrib>A.
Author</contrib>
</contrib-group><abstract><title>Abstract</title><sec><title>Aim</title><p>We ask. We
tell.</p></sec></abstract>
<trans-abstract xml:lang="pt"><p>Perguntamos.</p></trans-abstract><kwd-group><kwd>gout</kwd></kwd-group>
</article-meta></front>
<body><sec><title>1. Methods</title><p>Mice<sup><xref ref-type="bibr" rid="b1">1</xref>,<xref
ref-type="bibr"
rid="b2">2</xref></sup> ran [<xref ref-type="bibr" rid="b1">1</xref>, <xref ref-type="bibr"
rid="b2">2</xref>–<xref
ref-type="bibr" rid="b4">4</xref>]. So did <xref ref-type="bibr" rid="b5">Old et al. (1999)</xref> (<xref
ref-type="fig" rid="f">Fig. 2</xref>).<xref ref-type="bibr" rid="b6">6</xref>
In 10<sup>−3</sup> M<break/>NaCl, 5 &mu;g of H<sub>2</sub>O
<!-- <table><td>&alpha; = 5</td></table> --> fell<table-wrap><label>Table
1</label><caption><p>Means.</p></caption>
<table><td>1</td></table></table-wrap> down.<fig><caption><p>A
mouse.</p></caption></fig></p><p>Since<disp-formula>
<mml:math><mml:mi>x</mml:mi></mml:math></disp-formula> holds,<list>
<list-item><p>one;</p></list-item><list-item><p>two.
</p></list-item></list>we stop.</p><sec><p>Deep.
Deeper.</p></sec></sec></body><back><ack><title>Thanks</title><p>We
thank Ann.</p></ack><fn-group><fn><p>Note.</p></fn></fn-group>
<app-group><app><title>A</title><p>Appended.</p></app>
</app-group><ref-list><ref><mixed-citation><article-title>Cited
</article-title></mixed-citation></ref></ref-list></back>
<floats-group><fig><caption><p>Afloat.</p></caption></fig></floats-group><sub-article><front-stub>
<title-group><article-title>Review</article-title></title-group></front-stub><body><p>We
ask.</p></body></sub-article></article>"""
RECORD_DOCUMENTS = [
    ["Aspirin in H. pylori-negative men.", "To see.", "And to look at CO2.",
     "Of 10^6 cells < 5 % lived & grew."],
    ["On gout."]]
PAPER_DOCUMENT = [
    "A paper", "We ask.", "We tell.", "Mice ran.", "So did Old et al. (1999) (Fig. 2).",
    "In 10^−3 M NaCl, 5 μg of H2O fell down.", "Since holds,", "one;", "two.", "we stop.", "Deep.", "Deeper.",
    "We thank Ann.", "Appended."]


def tar(members):
    """A tar file of (name, content) pairs; a content that is no bytes is the type of a special member."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, bytes) and content[:4] != b"type":
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            else:
                member.type, member.linkname = content[4:], "/etc/passwd"
                archive.addfile(member)
    return file.getvalue()


@pytest.mark.parametrize("content, documents", [
    (RECORDS, RECORD_DOCUMENTS), (MEDLINE, [["Old form", "It is.", "It was."]]), (PAPER, [PAPER_DOCUMENT]),
    ("\ufeff<PubmedArticleSet></PubmedArticleSet>", [])], ids=["pubmed", "medline", "jats", "none"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress,
                                  lambda xml: gzip.compress(tar([("a", xml)]))],
                         ids=["plain", "gz", "xz", "tar.gz"])
def test_xml_gives_titles_abstracts_and_sections_alone(tmp_path, pack, content, documents):
    assert list(read_documents(write(tmp_path / "x.txt", pack(content.encode())))) == documents


@pytest.mark.parametrize("reading, found", [
    (Reading(min_pmid=10_000_000), [1]), (Reading(min_pmid=5), [0, 1]), (Reading(language="eng"), [0]),
    (Reading(min_pmid=6, language="eng"), [])])
def test_pmid_and_language_choose_among_records_but_not_among_papers_and_text(tmp_path, reading, found):
    path = write(tmp_path / "x", RECORDS)
    assert list(read_documents(path, reading)) == [RECORD_DOCUMENTS[number] for number in found]
    assert list(read_documents(write(tmp_path / "y", PAPER), reading)) == [PAPER_DOCUMENT]
    assert list(read_documents(write(tmp_path / "z", "a\n"), reading)) == [["a"]]


def test_the_number_of_a_book_of_pubmed_counts_too(tmp_path):
    book = ("<PubmedBookArticle><BookDocument><PMID>{}</PMID><ArticleTitle>Chapter {}</ArticleTitle>"
            "</BookDocument></PubmedBookArticle>")
    books = book.format(4, "a") + book.format(6, "b")
    path = write(tmp_path / "x", f"<PubmedArticleSet>{books}</PubmedArticleSet>")
    assert list(read_documents(path, Reading(min_pmid=5))) == [["Chapter b"]]


@pytest.mark.parametrize("block", [
    "<disp-formula><label>1</label><tex-math>y=kx</tex-math></disp-formula>",
    "<fig><caption><p>L.</p></caption></fig>",
    "<table-wrap><table><tr><td>a</td></tr></table></table-wrap>", "<preformat>x = 1</preformat>",
    "<def-list><def-item><term>k</term></def-item></def-list>", "<graphic/>"])
def test_words_around_a_block_that_is_left_out_stay_apart(tmp_path, block):
    text = f"It is given by:{block}where k<inline-formula>_1</inline-formula> holds."
    path = write(tmp_path / "x", f"<article><body><p>{text}</p></body></article>")
    assert list(read_documents(path)) == [["It is given by: where k holds."]]


@pytest.mark.parametrize("marked, text", [
    ("Old et al. (<c>1999</c>) ran (Munns, <c>2008</c>; Gaut, <c>2010a</c>).",
     "Old et al. (1999) ran (Munns, 2008; Gaut, 2010a)."),
    ("It ran [<c>3</c>\u2010<c>5</c>].", "It ran."),
    ("It ran [<c>3</c>\u2014<c>12</c>, <c>1512</c>].", "It ran."),
    ("Of 10<s>\u20136</s>, 10<s>\u22127</s> and 10<s>8</s> M.", "Of 10^\u20136, 10^\u22127 and 10^8 M.")])
def test_numbered_citations_go_and_years_and_powers_stay(tmp_path, marked, text):
    for short, long in (("<c>", '<xref ref-type="bibr">'), ("</c>", "</xref>"), ("s>", "sup>")):
        marked = marked.replace(short, long)
    path = write(tmp_path / "x", f"<article><body><p>{marked}</p></body></article>")
    assert list(read_documents(path)) == [[text]]


def test_the_brackets_of_a_title_go_only_as_a_pair(tmp_path):
    titles = {"[On gout.]": "On gout.", "[On [3H]ouabain].": "On [3H]ouabain",
              "[3H]Ouabain and [14C].": "[3H]Ouabain and [14C]."}
    records = pubmed(*((number, "eng", title, "") for number, title in enumerate(titles)))
    assert list(read_documents(write(tmp_path / "x", records))) == [[title] for title in titles.values()]


@pytest.mark.parametrize("content", [b"", bytes(2000), PAPER.encode("utf-16")])
def test_a_damaged_paper_is_named_whatever_its_ending(tmp_path, content):
    """PMC's own files end in .nxml."""
    for name in ("b.xml", "b.nxml"):
        path = write(tmp_path / f"{name}.tar", tar([("a.nxml", PAPER.encode()), (name, content)]))
        with pytest.raises(ValueError, match=f"{name} (after )?line"):
            list(read_documents(path))


def test_lines_of_verse_are_sentences_of_their_own(tmp_path):
    verse = "<verse-group><verse-line>O gout</verse-line><verse-line>go out</verse-line></verse-group>"
    path = write(tmp_path / "x", f"<article><body><p>Ode:{verse}says he.</p></body></article>")
    assert list(read_documents(path)) == [["Ode:", "O gout", "go out", "says he."]]


def test_sentences_are_preprocessed_and_empty_ones_are_dropped(tmp_path):
    path = write(tmp_path / "x", "One\nTwo\n\nThree\n")
    reading = Reading(preprocess=lambda sentence: sentence.lower().replace("two", "").replace("three", ""))
    assert list(read_documents(path, reading)) == [["one"]]


def form_of(content):
    return data.detect_format(io.BufferedReader(io.BytesIO(content), data.READ_BYTES))


@pytest.mark.parametrize("head, form", [
    # cut inside a character
    (b"A sentence.\n", "text"), (b"", "text"), ("caf\u00e9".encode()[:-1], "text"),
    (b"<?xml version='1.0'?>", "xml"), (b"<?properties open?>\n<article>", "xml"), (b"<? >", "text"),
    ("a lost \ufffd mark".encode(), "text"), (b"\xef\xbb\xbf\n<article>", "xml"),
    (b"<articles>", "XML with the root element articles"),
    (b"<5 mg", "text"), (b"<PubmedArticleSet>", "xml"), (b"\0text", "binary"), (b"caf\xe9 noir", "binary"),
    (b"<p@q.org> wrote", "text"), (bytes(257) + b"ustar", "tar")])
def test_the_form_of_a_file_is_found_from_its_first_bytes(head, form):
    assert form_of(head) == form


@given(st.binary(max_size=600))
def test_any_bytes_have_a_form(head):
    assert form_of(head)


# Each begins as files of its kind do -> what it seems to be.
NO_PROSE = {
    "a.json": ('{"paper_id": "7",\n "abstract": [{"text": "Gout hurts."}]}', "JSON"),
    "b.jsonl": ('{"text": "Gout hurts.\\n\\nIt does."}\n' * 3, "JSON"),
    "c.json": ('[\n  {"id": 1}\n]\n', "JSON"),
    "d.nbib": ("\nPMID- 7\nOWN - NLM\nTI  - On gout in\n      ten.\nFAU - Lee, A\n", "tagged records"),
    "d.ris": ("TY  - JOUR\nTI  - On gout.\nER  - \n", "tagged records"),
    "e.pubtator": ("7|t|On gout.\n7|a|It hurts.\n7\t3\t7\tgout\tDisease\tD1\n", "stand-off annotations"),
    "f.ann": ("T1\tDisease 3 7\tgout\n", "stand-off annotations"),
    "g.csv": ('id,title,text\nu1,"On gout, again","It hurts. It\ndoes."\nu2,"Rest","No."\n', "columns"),
    "g.tsv": ("gene\tvalue\nBRCA1\t0.5\nTP53\t\n", "columns"),
    "g.txt": ("gene;value\nBRCA1;0,5\n", "columns"), "h.txt": ("a|b|c\n1|2|3\n", "columns"),
    "i.md5": ("MD5(pubmed24n0001.xml.gz)= d300fd2b14947a234a2558e59c3f501d\n", "checksums"),
    "i.sums": ("d300fd2b14947a234a2558e59c3f501d  a.xml\n", "checksums"),
    "j.fasta": (">seq1 of BRCA1\nACGTACGTAC\nACGT\n", "sequences"),
    "k.conll": ("Of O\ngout B-Disease\n. O\n\nIt O\n", "tagged words"),
    "l.sbml": ('<?xml version="1.0"?>\n<!-- <article> -->\n<sbml xmlns="http://x"><model/></sbml>',
               "XML with the root element sbml"),
    "m.html": ("<!DOCTYPE html>\n<html><p>On gout.</p></html>", "XML with the root element html"),
    "n.zip": (b"PK\3\4\x14\0\0\0\xff", "an archive of another kind")}


@pytest.mark.parametrize("name", NO_PROSE)
def test_what_is_no_prose_is_refused_by_itself_and_left_out_of_folders_and_archives(tmp_path, name, capsys):
    content, kind = NO_PROSE[name]
    path = write(tmp_path / "in" / name, content)
    if kind != "an archive of another kind":
        for read in (lambda: corpus_files([path]), lambda: list(read_documents(path))):
            with pytest.raises(ValueError, match=rf"{name}: this seems to be {kind}.*, which would be"):
                read()
    paper = write(tmp_path / "in" / "paper.nxml", PAPER)
    assert corpus_files([tmp_path / "in"]) == ([paper], 1)
    assert f"1 left out: {path} ({kind}" in capsys.readouterr().err
    archive = write(tmp_path / "x.tar", tar([("p.nxml", PAPER.encode()), (f"d/{name}", path.read_bytes())]))
    assert list(read_documents(archive)) == [PAPER_DOCUMENT]
    assert f"1 left out: {archive}: d/{name} ({kind}" in capsys.readouterr().err


@pytest.mark.parametrize("text", [
    "It cost 1,204 dollars.\nWe paid 3,100 in all.\n", "First, it fell.\nThen, it rose.\n",
    "DNA - a long word\n", "a b\nc d\ne f\n", "[On gout.]\n[On rest.]\n", "> 5 mg helped.\nYes.\n",
    "Of gout;\nof rest;\nand more.\n", "7 | 8 is so.\nIt hurts.\n", "A\ttab.\nIt hurts.\nSo does it.\n"])
def test_prose_with_marks_of_tables_stays_prose(text):
    assert form_of(text.encode()) == "text"


def test_a_table_cut_by_the_end_of_the_head_is_one():
    table = "".join(f"g{number},{number}\n" for number in range(20_000))
    assert form_of(table.encode()) == "columns"


def test_what_is_about_the_files_is_no_corpus(tmp_path, capsys):
    for name in ("README", "readme.txt", "LICENSE.md", "licensing.txt"):
        write(tmp_path / name, "This is about the files.\n")
    assert corpus_files([tmp_path]) == ([tmp_path / "licensing.txt"], 3)
    assert "LICENSE.md (about the files)" in capsys.readouterr().err
    assert list(read_documents(tmp_path / "README")) == [["This is about the files."]]


def test_an_archive_in_an_archive_is_named_as_one(tmp_path, capsys):
    inner = tar([("a.txt", b"one\n")])
    members = [("in.tar", inner), ("in.tgz", gzip.compress(inner)), ("b.txt", b"two\n")]
    path = write(tmp_path / "x.tar", tar(members))
    assert list(read_documents(path)) == [["two"]]
    what = "(an archive in an archive: unpack it)"
    assert f"2 left out: {path}: in.tar {what}; {path}: in.tgz {what}\n" in capsys.readouterr().err


def test_what_was_read_is_said_in_one_line(tmp_path, capsys):
    write(tmp_path / "in" / "a.txt", "w1 w2\n")
    write(tmp_path / "in" / "b.csv", "a,b\n1,2\n")
    papers = [("p.nxml", PAPER.encode()), ("q.nxml", PAPER.encode()), ("s.txt", b"a\tb\nc\td\n")]
    write(tmp_path / "in" / "c.tar.gz", gzip.compress(tar(papers)))
    build_shards([tmp_path / "in"], NUMBERED, tmp_path / "out", workers=1)
    assert capsys.readouterr().err.splitlines()[-1] == "5 files: 2 XML, 1 text; 2 left out"
    build_shards([tmp_path / "in"], NUMBERED, tmp_path / "out", workers=1)
    assert capsys.readouterr().err.splitlines()[-1] == "5 files: 2 XML, 1 text; 2 left out"


@pytest.mark.parametrize("workers", [1, 2])
def test_versions_of_a_record_and_deleted_records_are_counted(tmp_path, capsys, monkeypatch, workers):
    monkeypatch.setattr(data, "BLOCK_BYTES", 3000)
    write(tmp_path / "in" / "a.xml", pubmed(*((pmid, "eng", f"w{pmid}", "") for pmid in (1, 2, 3))))
    deleted = "<DeleteCitation><PMID>3</PMID>\n<PMID>8</PMID></DeleteCitation></PubmedArticleSet>"
    update = pubmed((1, "eng", "w4", ""), (1, "eng", "w5", ""), (4, "eng", "w6", ""))
    write(tmp_path / "in" / "b.xml", update.replace("</PubmedArticleSet>", deleted))
    build_shards([tmp_path / "in"], NUMBERED, tmp_path / "out", workers=workers)
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "2 records repeat a PMID, DeleteCitation names 2: they are not left out", "2 files: 2 XML"]
    assert len(open_shards(tmp_path / "out").lengths) == 6
    assert all(list(read_documents(path)) for path in (tmp_path / "in").iterdir())      # no empty document


def test_a_deleted_record_whose_number_is_none_is_refused_with_the_file(tmp_path):
    deleted = "<DeleteCitation><PMID>eight</PMID></DeleteCitation></PubmedArticleSet>"
    update = pubmed((1, "eng", "w4", "")).replace("</PubmedArticleSet>", deleted)
    with pytest.raises(ValueError, match="b.xml after record 1: .*eight"):
        list(read_documents(write(tmp_path / "b.xml", update)))


def test_formulas_of_pubmed_keep_their_words_and_those_of_papers_go(tmp_path):
    formula = ('<mml:math xmlns:mml="http://www.w3.org/1998/Math/MathML"><mml:mrow><mml:mover>\n'
               "<mml:mi>V</mml:mi><mml:mo>\u02d9</mml:mo></mml:mover> <mml:msub><mml:mi>O</mml:mi>\n"
               "<mml:mrow><mml:mn>2</mml:mn><mml:mi>max</mml:mi></mml:mrow></mml:msub></mml:mrow>"
               '<mml:annotation encoding="TeX">V_2</mml:annotation></mml:math>')
    abstract = f"<Abstract><AbstractText>Uptake ({formula}) rose.</AbstractText></Abstract>"
    path = write(tmp_path / "x", pubmed((5, "eng", f"On {formula}.", abstract)))
    assert list(read_documents(path)) == [["On VO2max.", "Uptake (VO2max) rose."]]
    paper = f"<article><body><p>Uptake {formula} rose.</p></body></article>"
    assert list(read_documents(write(tmp_path / "y", paper))) == [["Uptake rose."]]


@pytest.mark.parametrize("content, documents", [
    (b"one\ntwo\n\nthree", [["one", "two"], ["three"]]), (RECORDS.encode(), RECORD_DOCUMENTS),
    (gzip.compress(PAPER.encode()), [PAPER_DOCUMENT]), (tar([("a.txt", b"one")]), [["one"]])])
def test_a_file_is_opened_once_so_a_pipe_can_be_read_but_is_no_corpus(tmp_path, content, documents):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(content,))
    writer.start()
    with time_limit(20):
        assert list(read_documents(pipe)) == documents
    writer.join()
    with pytest.raises(OSError, match="pipe: no such file or folder .a pipe has to be saved"):
        corpus_files([pipe])


def test_standard_input_is_recognised_as_files_are(monkeypatch):
    paper = b"<article><body><p>One.</p></body></article>"
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(paper)))
    file = data.open_file("-")
    assert data.detect_format(file) == "xml"
    assert list(read_documents("-", file=file)) == [["One."]]
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ValueError, match="standard input is closed: pass a file"):
        data.open_file("-")


def test_archives_are_not_unpacked_so_hostile_members_do_nothing(tmp_path, capsys):
    members = [("latest.txt", b"type2"), ("papers.xml", b"type5"),           # before any file with content
               ("../../up.txt", b"one\n\ntwo\n"), ("again.txt", b"type1"), ("d/._up.txt", b"\0Mac\xff"),
               ("/etc/abs.txt", b"three"),
               ("d/paper.nxml", PAPER.encode()),
               ("e.txt.gz", gzip.compress(b"four\n")), ("link", b"type2"), ("device", b"type3"),
               ("folder", b"type5"),
               ("p.png", b"\x89PNG\0\xff"), ("f.jpg", b"\xff\xd8\xff\xe0 ab"), ("empty", b"")]
    for name, pack in (("a.tar", bytes), ("a.tar.gz", gzip.compress), ("a.tar.xz", lzma.compress)):
        path = write(tmp_path / "in" / name, pack(tar(members)))
        assert list(read_documents(path)) == [["one"], ["two"], ["three"], PAPER_DOCUMENT, ["four"]]
        left_out = {"latest.txt": "no file", "again.txt": "no file", "d/._up.txt": "about the files",
                    "link": "no file", "device": "no file", "p.png": "binary", "f.jpg": "binary"}
        said = "; ".join(f"{path}: {name} ({what})" for name, what in left_out.items())
        assert f"7 left out: {said}\n" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


TEXTS = [(f"{name}.txt", f"the text of {name}\n".encode() * 50) for name in "abc"]
# In a tar file of TEXTS each member takes 512 bytes of header and 1024 of content.
THIRD_HEADER, TAR_END = 2 * 1536, 3 * 1536


@pytest.mark.parametrize("damage", [
    lambda content: content[:THIRD_HEADER], lambda content: content[:TAR_END],
    lambda content: content[:TAR_END + 100], lambda content: content[:THIRD_HEADER + 100],
    lambda content: content[:THIRD_HEADER] + bytes(512) + content[THIRD_HEADER + 512:],
    lambda content: content[:1536] + content[1536 + 512:], lambda content: content + content],
    ids=["two of three", "no end", "cut in the end", "cut in a header", "zeroed header", "missing header",
         "two archives"])
def test_a_tar_with_a_damaged_or_missing_header_or_end_is_refused(tmp_path, damage):
    whole = tar(TEXTS)
    assert len(list(read_documents(write(tmp_path / "whole.tar", whole)))) == 3
    path = write(tmp_path / "x.tar", damage(whole))
    with pytest.raises(ValueError, match=r"x\.tar: [abc]\.txt.*: the archive is truncated or damaged"):
        list(read_documents(path))


@pytest.mark.parametrize("bit", range(8))
def test_every_flipped_bit_in_a_later_header_of_a_tar_is_found(tmp_path, bit):
    for place in range(THIRD_HEADER, THIRD_HEADER + 512, 7):
        content = bytearray(tar(TEXTS))
        content[place] ^= 1 << bit
        path = write(tmp_path / "x.tar", bytes(content))
        try:
            # The number of a checksum may be written in another way: then nothing has changed.
            assert len(list(read_documents(path))) == 3
        except ValueError as error:
            assert "x.tar" in str(error)


@pytest.mark.parametrize("damage", [
    lambda stream: stream[:40], lambda stream: b"\0\0\0" + stream, lambda stream: b"x" + stream,
    lambda stream: stream[:30] + b"x" + stream[31:], lambda stream: stream[:2] + b"x" + stream[3:]])
def test_a_damaged_later_stream_of_an_xz_is_refused(tmp_path, damage):
    first, second = lzma.compress(b"one\n\n"), lzma.compress(b"two\n" * 50)
    assert list(read_documents(write(tmp_path / "good.xz", first + second)))[0] == ["one"]
    with pytest.raises(ValueError, match=r"x\.xz after line \d+: the archive is truncated or damaged"):
        list(read_documents(write(tmp_path / "x.xz", first + damage(second))))


@pytest.mark.parametrize("name, content", [
    ("x.gz", b""), ("x.xz", b""), ("x.txt.gz", gzip.compress(b"")), ("x.xz", lzma.compress(b""))])
def test_an_archive_that_holds_nothing_is_refused(tmp_path, name, content):
    with pytest.raises(ValueError, match=rf"{name} after line 0: .* \(it holds nothing\): fetch it again"):
        list(read_documents(write(tmp_path / name, content)))
    with pytest.raises(ValueError, match=rf"x\.tar: {name} after line 0: .* \(it holds nothing\)"):
        list(read_documents(write(tmp_path / "x.tar", tar([(name, content)]))))
    assert list(read_documents(write(tmp_path / "x.txt", b""))) == []


@pytest.mark.parametrize("content, message", [
    ("<records>\n<r>One.</r></records>", "x: this seems to be XML with the root element records, which"),
    ("<x:y z='1'>", "x: .* root element y, .* expected PubMed's or PMC's XML"),
    ("<!-- " + "x" * 70_000 + " --><html>", "x after record 0: .*root element html: expected PubMed's"),
    ("<?xml version='1.0' encoding='klingon'?>\n<article/>", "x after record 0: .*unknown encoding"),
    ("<?xml version='1.0' encoding='rot13'?><article/>", "x after record 0: .*'rot13' is not a text"),
    ("<?xml version='1.0' encoding='shift_jis'?><article/>", "x after record 0: .*multi-byte encodings"),
    ("<article><body><p>é</p></body></article>".encode("utf-16"), "x line 1 byte 0: not UTF-8"),
    ("<article/>".encode("utf-16-be"), "x line 1 byte 0: not UTF-8")])
def test_xml_of_another_root_or_encoding_is_not_taken_for_text(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        list(read_documents(write(tmp_path / "x", content)))


@pytest.mark.parametrize("encoding", [
    "utf-8", "UTF-8", "iso-8859-1", "ISO-8859-15", "windows-1252", "us-ascii", "mac-roman"])
def test_xml_of_one_byte_a_character_is_read(tmp_path, encoding):
    xml = f"<?xml version='1.0' encoding='{encoding}'?><article><body><p>caf&#233; ok</p></body></article>"
    assert list(read_documents(write(tmp_path / "x", xml.encode(encoding)))) == [["café ok"]]


def test_what_is_left_out_of_a_folder_is_named(tmp_path, capsys):
    text = write(tmp_path / "corpus" / "a.txt", "a\n")
    write(tmp_path / "elsewhere" / "b.txt", "b\n")
    (tmp_path / "corpus" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "corpus" / "broken").symlink_to(tmp_path / "nowhere")
    linked = tmp_path / "corpus" / "c.txt"
    linked.symlink_to(tmp_path / "elsewhere" / "b.txt")
    assert corpus_files([tmp_path / "corpus"]) == ([text, linked], 2)
    assert capsys.readouterr().err == (
        f"2 left out: {tmp_path / 'corpus' / 'broken'} (a link to a folder, or not to be read); "
        f"{tmp_path / 'corpus' / 'link'} (a link to a folder, or not to be read)\n")
    named = os.fsencode(tmp_path / "corpus") + b"/caf\xe9.txt"
    Path(os.fsdecode(named)).write_text("d\n")
    assert os.fsdecode(named) in map(str, corpus_files([tmp_path / "corpus"])[0])


BOMB = "<!DOCTYPE article [<!ENTITY a '{}'><!ENTITY b '&a;&a;'>]>\n<article><body><p>&b;</p></body></article>"


@pytest.mark.parametrize("content, message", [
    (BOMB.format("ha" * 1000), "x: this seems to be XML that declares entities, .* expected PubMed's"),
    ("<!DOCTYPE article [\n" + " " * 16360 + "<!ENTITY % a SYSTEM '/etc/passwd'> %a;]><article/>",
     "x: this seems to be XML that declares entities"),
    (RECORDS[:-30], r"x after record 3: damaged, or no XML .*unclosed token: line 7"),
    ("<article>\n<body></article>", r"x after record 0: damaged, or no XML .*mismatched tag: line 2"),
    ("<article>\n<p>\x01</p></article>", r"x after .*not well-formed .*: line 2"),
    (b"<article>\n\n<p>caf\xe9 </p></article>", r"x after .*not well-formed .*: line 3"),
    (pubmed(("seven", "eng", "On gout.", "")), "x after record 1: .*'seven'"),
    ("<!DOCTYPE html>\n<html></html>", "x: this seems to be XML with the root element html"),
    ("<article><body>" + "<sec>" * 2000 + "</sec>" * 2000 + "</body></article>", "x after .*recursion"),
    (gzip.compress(RECORDS.encode())[:-20], r"x after line \d+: the archive is truncated or damaged"),
    (gzip.compress(tar([("a.txt", b"one\n" * 9), ("b", b"x")]))[:-20],
     r"x.* after line 0: the archive is truncated or damaged"),
    (tar([("a.txt", b"one\n" * 900)])[:2000], r"x: a.txt.*: the archive is truncated or damaged"),
    ("one\n" + "x" * 200_000, "x line 2: over 100,000 bytes"),
    (gzip.compress(b"one\n" + bytes(10 ** 7)), "x line 2: over 100,000 bytes"),
    (b"one\n\n" * 25_000 + b"caf\xe9\n", "x line 50001 byte 3: not UTF-8"),
])
def test_bad_files_are_refused_with_path_and_line(tmp_path, monkeypatch, content, message):
    monkeypatch.setattr(data, "BLOCK_BYTES", 100_000)
    with pytest.raises(ValueError, match=message), time_limit(20):
        list(read_documents(write(tmp_path / "x", content)))


@given(st.lists(st.lists(st.sampled_from(["a", "bb", " c", "dé"]), min_size=1, max_size=6), max_size=12),
       st.sampled_from(["\n", "\r\n", "\n \n"]), st.integers(20, 60))
def test_text_is_cut_into_blocks_between_documents(tmp_path_factory, documents, blank, block_bytes):
    text = blank.join("\n".join(document) + "\n" for document in documents) + "\n"
    path = write(tmp_path_factory.getbasetemp() / "cut.txt", text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "BLOCK_BYTES", block_bytes)
        blocks = list(data.read_blocks([path, path]))
    assert all(sum(len(part.content) for part in block) <= block_bytes for block in blocks)
    parts = [part for block in blocks for part in block]
    assert parts[-1].position == 2 * path.stat().st_size
    found = [document for part in parts for document in data.part_documents(part, Reading())]
    wanted = [[line.strip() for line in document] for document in documents] * 2
    # a document longer than a block is cut at a line
    assert sum(found, []) == sum(wanted, [])
    longest = max((len(("\n".join(document) + blank).encode()) for document in documents), default=0)
    assert found == wanted or longest > block_bytes / 2
    lines = text.encode().split(b"\n")
    assert all(lines[part.line - 1:][:1] == part.content.split(b"\n")[:1] for part in parts)


@pytest.mark.parametrize("content, documents", [
    (pubmed(*[(n, "eng", "A.", "<Abstract><AbstractText>T.</AbstractText></Abstract>") for n in range(8000)]),
     8000),
    ("a line of text\n\n" * 250_000, 250_000)], ids=["xml", "text"])
def test_memory_does_not_grow_with_the_file(tmp_path, monkeypatch, content, documents):
    monkeypatch.setattr(data, "BLOCK_BYTES", 1 << 16)
    monkeypatch.setattr(data, "READ_BYTES", 1 << 16)
    path = write(tmp_path / "x.gz", gzip.compress(content.encode(), 1))
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_documents(path)) == documents
        assert tracemalloc.get_traced_memory()[1] < 1_300_000 < len(content) / 2
    finally:
        tracemalloc.stop()


def test_every_real_xml_file_gives_its_documents(real_data):
    found = {}
    for folder in ("pubmed", "pmc"):
        for path in sorted((real_data / "pretrain" / folder).iterdir()):
            found[path.name] = list(read_documents(path))
    records = {"medsamp2010.xml": 146, "pubmed-29768149.xml": 1, "pubmed21n0001.xml.gz": 49,
               "pubmed21n1000.xml.gz": 29, "pubmed21n1001.xml.gz": 37}
    papers = {name: documents for name, documents in found.items() if name not in records}
    assert {name: len(found[name]) for name in records} == records
    assert len(papers) == 61 and all(len(documents) == 1 for documents in papers.values())
    words = [len(" ".join(paper).split()) for [paper] in papers.values()]
    assert min(words) > 40 and sum(words) > 200_000
    for [paper] in papers.values():                             # no marks of what was left out, no markup
        assert not re.search(r"\[[\s,;–-]*\]|\0|</?[a-z]+>|&[a-z]+;", " ".join(paper))


@pytest.mark.parametrize("name, with_abstract", [
    ("medsamp2010.xml", 90), ("pubmed-29768149.xml", 1), ("pubmed21n0001.xml.gz", 25),
    ("pubmed21n1000.xml.gz", 29),
    ("pubmed21n1001.xml.gz", 26)])
def test_real_records_have_the_words_that_an_xml_tree_library_finds(real_data, name, with_abstract):
    path = real_data / "pretrain" / "pubmed" / name
    with (gzip.open if name.endswith("gz") else open)(path, "rb") as file:
        records = list(ElementTree.parse(file).getroot().iter("MedlineCitation"))
    abstracts = [record.findall("Article/Abstract/AbstractText") for record in records]
    assert sum(map(bool, abstracts)) == with_abstract
    for record, parts, document in zip(records, abstracts, read_documents(path), strict=True):
        texts = ["".join(element.itertext()) for element in [record.find("Article/ArticleTitle"), *parts]]
        expected, found = (re.sub(r"[\s^]", "", text) for text in ("".join(texts), "".join(document)))
        # The title of an article that is not in English stands in brackets, which are taken off.
        title = re.sub(r"^\[(.*)\]\.?$", r"\1", re.sub(r"\s", "", texts[0]))
        assert found == expected or found == title + re.sub(r"[\s^]", "", "".join(texts[1:]))


# --- 3. Pre-training examples ---

@pytest.mark.parametrize("draws, first, second", [
    # Sentences of 3, 2, 4 and 7 tokens make 16. Segment A wants (16 - 3) // 2 = 6 tokens: 3, then 2 more
    # still fit (5 < 6), 4 more would not, so a coin is tossed; the rest is B. Room for text: 16 - 3 = 13.
    ([0.1, 0.4], [0, 1, 2, 3, 4, 5, 6, 7, 8], [9, 10, 11, 12]),                   # coin: A takes the third
    ([0.1, 0.5], [0, 1, 2, 3, 4], [5, 6, 7, 8, 9, 10, 11, 12]),                   # coin: it opens B
    ([0.0999], list(range(14)), []),                                              # one segment, no coin
])
def test_sentences_fall_into_segments_as_on_paper(draws, first, second):
    sentences = [[0, 1, 2], [3, 4], [5, 6, 7, 8], [9, 10, 11, 12, 13, 14, 15]]
    draws = iter(draws)
    assert split_segments(sentences, 16, 16, SimpleNamespace(random=draws.__next__)) == (first, second)
    assert not list(draws)


def test_targets_and_document_ends_cut_examples_as_on_paper():
    # Two draws for each example: one segment? a short target next? No coins, since the first sentences fill
    # segment A, which wants (8 - 3) // 2 = 2 tokens, then (5 - 3) // 2 = 1. The third example is what the
    # document has left.
    draws = iter([0.5, 0.04, 0.5, 0.9, 0.5, 0.9, 0.5, 0.9])
    rng = SimpleNamespace(random=draws.__next__, randint=lambda low, high: low)
    documents = [[[1, 2], [3, 4, 5], [6, 7, 8], [9, 10], [11, 12, 13], [14]], [], [[]], [[15, 16]]]
    assert list(build_examples(documents, 8, rng)) == [
        ([1, 2], [3, 4, 5]), ([9, 10], [11, 12, 13]), ([14], []), ([15, 16], [])]
    assert not list(draws)


class ExampleMachine:
    """The rules of the official ExampleBuilder, taken literally: fed line by line, None for a blank one."""

    def __init__(self, max_length, rng):
        self.max_length, self.rng = max_length, rng
        self.heap, self.wanted = [], max_length

    def feed(self, line):
        waiting = sum(map(len, self.heap))
        if line is None:
            return self.flush() if waiting else None
        self.heap.append(line)
        return self.flush() if waiting + len(line) >= self.wanted else None

    def flush(self):
        a_wants = 100_000 if self.rng.random() < 0.1 else (self.wanted - 3) // 2
        a, b = [], []
        for line in self.heap:
            if not a or len(a) + len(line) < a_wants:
                a = a + line
            elif b or len(a) >= a_wants:
                b = b + line
            elif self.rng.random() < 0.5:
                a = a + line
            else:
                b = b + line
        a = a[:self.max_length - 2]
        b = b[:max(0, self.max_length - len(a) - 3)]
        self.heap, self.wanted = [], self.max_length
        if self.rng.random() < 0.05:
            self.wanted = self.rng.randint(5, self.max_length)
        return a, b


def unique_tokens(shape):
    """Documents of sentences of the given lengths, every token another number."""
    count = itertools.count()
    return [[list(itertools.islice(count, length)) for length in document] for document in shape]


shapes = st.lists(st.lists(st.one_of(st.integers(0, 6), st.integers(0, 60)), max_size=12), max_size=8)


@settings(max_examples=300)
@given(shapes, st.integers(8, 40), seeds)
def test_examples_equal_a_literal_reading_of_the_rules(shape, max_length, seed):
    documents, rng = unique_tokens(shape), random.Random(seed)
    machine = ExampleMachine(max_length, random.Random(seed))
    lines = [line for document in documents for line in [*document, None]]
    expected = [example for example in map(machine.feed, lines) if example]
    assert list(build_examples(documents, max_length, rng)) == expected
    assert rng.getstate() == machine.rng.getstate()


@given(shapes, st.integers(8, 40), seeds)
def test_each_token_appears_once_and_in_order_unless_its_example_is_full(shape, max_length, seed):
    documents = unique_tokens(shape)
    before = [list(map(list, document)) for document in documents]
    examples = list(build_examples(documents, max_length, random.Random(seed)))
    seen, is_full = [], False
    for a, b in examples:
        # a late short sentence may join A after B has begun
        assert a and a == sorted(a) and b == sorted(b)
        assert len(a) + len(b) + (3 if b else 2) <= max_length
        assert not seen or min(a + b) > max(seen)
        seen += sorted(a + b)
        is_full |= len(a) + len(b) >= max_length - 3
    everything = [token for document in documents for sentence in document for token in sentence]
    assert seen == everything or is_full and set(seen) < set(everything)
    assert documents == before                              # the caller's lists are left alone


def test_one_example_in_ten_has_one_segment_and_one_in_twenty_a_short_target():
    # One long document of one-token sentences: every example has exactly its target, so lengths show targets.
    max_length = 48
    examples = list(build_examples([[[0]] * 200_000], max_length, random.Random(1)))[1:-1]
    assert len(examples) > 4000
    assert within_four_standard_errors(sum(not b for _, b in examples), len(examples), 0.1)
    short = [len(a) + len(b) for a, b in examples if len(a) + len(b) < max_length - 3]
    visible = (max_length - 3 - 5) / (max_length - 5 + 1)   # of the targets 5..48, those that are not cut
    assert within_four_standard_errors(len(short), len(examples), 0.05 * visible)
    assert min(short) == 5 and max(short) == max_length - 4


# --- 4. Shards ---

def test_examples_come_back_from_a_shard_as_they_were_cut(tmp_path, monkeypatch):
    segments = [([7, 8, 9], [10]), ([6], []), ([5] * 14, []), ([], [11, 12])]
    monkeypatch.setattr(data, "build_examples", lambda documents, *_: segments if list(documents) else [])
    build_shards([write(tmp_path / "c.txt", "w1\n")], NUMBERED, tmp_path / "shards", max_length=16, workers=1)
    shards = open_shards(tmp_path / "shards")
    #                                   [CLS] A [SEP] B [SEP]: type 0 up to the first [SEP]
    assert [(ids.tolist(), first) for ids, first in map(shards.example, range(4))] == [
        ([2, 7, 8, 9, 3, 10, 3], 5), ([2, 6, 3], 3), ([2, *[5] * 14, 3], 16), ([2, 3, 11, 12, 3], 2)]
    assert shards.lengths.tolist() == [7, 3, 16, 5]
    assert np.load(tmp_path / "shards" / "00000.tokens.npy").dtype == np.uint16


def test_shards_hold_every_token_and_keep_every_hundredth_document_from_training(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "BLOCK_BYTES", 3000)     # so that blocks hold fewer documents than a hundred
    corpus, expected = numbered_corpus(tmp_path)
    build_shards([corpus], NUMBERED, tmp_path / "shards", max_length=64, workers=1)
    shards = open_shards(tmp_path / "shards")
    assert len(shards.index["shards"]) > 5
    assert sorted([*shards.train, *shards.held_out]) == list(range(len(shards.lengths)))
    counts = {"train": Counter(), "held_out": Counter()}
    for part, counter in counts.items():
        for number in getattr(shards, part):
            ids, first = shards.example(number)
            pieces = [NUMBERED.pieces[token] for token in ids]
            assert pieces[0] == "[CLS]" and pieces[first - 1] == pieces[-1] == "[SEP]" and len(ids) <= 64
            assert len(ids) == shards.lengths[number]
            assert pieces.count("[SEP]") == (1 if first == len(ids) else 2)
            text = [piece for piece in pieces if piece[0] == "w"]
            assert len(set(text)) == 1                      # no example crosses a document's end
            counter.update(text)
    sizes = [entry["documents"] for entry in shards.index["shards"]]
    # Block k begins to count at 37 k.
    places = [37 * block + place for block, size in enumerate(sizes) for place in range(size)]
    held_out = {f"w{number}" for number, place in enumerate(places) if place % 100 == 99}
    assert held_out and set(counts["held_out"]) == held_out
    assert not counts["train"].keys() & counts["held_out"].keys()
    assert counts["train"] + counts["held_out"] == expected
    totals = Counter()
    for entry in shards.index["shards"]:
        keys = ("documents", "sentences", "tokens", "examples", "held_out")
        totals.update({key: entry[key] for key in keys})
    assert totals == {"documents": 250, "sentences": 1000, "tokens": shards.lengths.sum(),
                      "examples": len(shards.lengths), "held_out": len(shards.held_out)}


def test_any_number_of_workers_gives_the_same_files(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "BLOCK_BYTES", 3000)     # only this process deals the blocks
    corpus, _ = numbered_corpus(tmp_path)
    for workers in (1, 2):
        build_shards([corpus], NUMBERED, tmp_path / str(workers), max_length=32, seed=5, workers=workers)
    assert len(contents(tmp_path / "1")) > 15
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    bad = write(tmp_path / "bad.txt", b"w1\n\n\xff\n")
    with pytest.raises(ValueError, match=r"bad\.txt line 3 byte [0-9]+: not UTF-8"):
        build_shards([corpus, bad], NUMBERED, tmp_path / "3", max_length=32, workers=2)


def test_another_seed_or_block_cuts_the_same_text_differently(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "BLOCK_BYTES", 2000)
    corpus = write(tmp_path / "c.txt", "w1 w2\nw3\nw4 w5 w6\n\n" * 400)           # all documents are the same
    for seed in (0, 1):
        build_shards([corpus], NUMBERED, tmp_path / str(seed), max_length=16, seed=seed, workers=1)
    cuts = [(tmp_path / seed / f"{block:05d}.first.npy").read_bytes() for seed in "01" for block in range(3)]
    assert len(set(cuts)) == 6


def test_an_interrupted_build_continues_to_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "BLOCK_BYTES", 3000)
    corpus, _ = numbered_corpus(tmp_path)
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    build_shards([corpus], NUMBERED, whole, workers=1)
    write_shard, calls = data.write_shard, []

    def write_two_shards(*arguments):
        if len(calls) == 2:
            write(halved / "00002.tokens.npy.123.unfinished", b"half")
            raise KeyboardInterrupt
        calls.append(arguments)
        return write_shard(*arguments)

    monkeypatch.setattr(data, "write_shard", write_two_shards)
    with pytest.raises(KeyboardInterrupt):
        build_shards([corpus], NUMBERED, halved, workers=1)
    with pytest.raises(ValueError, match="halved is half-built: repeat the command"):
        open_shards(halved)

    def write_the_others(*arguments):
        assert arguments[-1][0] >= 2, "a finished shard is made again"
        return write_shard(*arguments)

    monkeypatch.setattr(data, "write_shard", write_the_others)
    build_shards([corpus], NUMBERED, halved, workers=1)
    assert contents(halved) == contents(whole)
    monkeypatch.delattr(data, "read_blocks")            # complete: not even the corpus is read
    build_shards([corpus], NUMBERED, halved, workers=1)


def test_shards_removed_from_the_index_are_built_again(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "BLOCK_BYTES", 3000)
    corpus, _ = numbered_corpus(tmp_path)
    folder = tmp_path / "shards"
    build_shards([corpus], NUMBERED, folder, workers=1)
    before, index = contents(folder), json.loads((folder / "index.json").read_bytes())
    last = len(index["shards"]) - 1
    for path in folder.glob(f"{last:05d}.*"):
        path.unlink()
    index = {**index, "complete": False, "shards": index["shards"][:-1]}
    write(folder / "index.json", json.dumps(index))
    build_shards([corpus], NUMBERED, folder, workers=1)
    assert contents(folder) == before


@pytest.mark.parametrize("is_complete", [True, False])
@pytest.mark.parametrize("key, change", [
    ("vocabulary", {"tokenizer": Tokenizer([*NUMBERED.pieces, "more"])}),
    ("vocabulary", {"tokenizer": Tokenizer(NUMBERED.pieces, lowercase=False)}),
    ("max_length", {"max_length": 16}), ("seed", {"seed": 1}), ("sources", {"paths": ["other.txt"]})])
def test_a_folder_built_from_something_else_is_refused_by_name(tmp_path, monkeypatch, key, change,
                                                               is_complete):
    monkeypatch.chdir(tmp_path)
    write(Path("corpus.txt"), "w1 w2\n")
    write(Path("other.txt"), "w1 w2 w3\n")
    wanted = {"paths": ["corpus.txt"], "tokenizer": NUMBERED, "out": "shards", "max_length": 32, "workers": 1}
    build_shards(**wanted)
    index = json.loads(Path("shards/index.json").read_bytes())
    write(Path("shards/index.json"), json.dumps({**index, "complete": is_complete}))
    before = contents(Path("shards"))
    with pytest.raises(ValueError, match=f"shards was built with another {key} "):
        build_shards(**{**wanted, **change})
    assert contents(Path("shards")) == before


def spaced(sentence):
    """Stands for a way to preprocess sentences."""
    return " w1 ".join(sentence.split())


def test_the_choice_of_text_is_recorded_and_another_choice_is_refused(tmp_path):
    corpus = write(tmp_path / "corpus.txt", "w2 w3\n")
    build_shards([corpus], NUMBERED, tmp_path / "plain", workers=1)
    build_shards([corpus], NUMBERED, tmp_path / "spaced", workers=1, reading=Reading(5, "eng", spaced))
    assert [open_shards(tmp_path / name).example(0)[0].tolist() for name in ("plain", "spaced")] == [
        [2, 7, 8, 3], [2, 7, 6, 8, 3]]
    assert open_shards(tmp_path / "spaced").index["text"] == {"min_pmid": 5, "language": "eng",
                                                              "preprocess": "spaced"}
    for reading in (Reading(), Reading(6, "eng", spaced), Reading(5, None, spaced), Reading(5, "eng")):
        with pytest.raises(ValueError, match="spaced was built with another text "):
            build_shards([corpus], NUMBERED, tmp_path / "spaced", workers=1, reading=reading)


def deadly(sentence):
    """Stands for what the system does to a process when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_ends_the_build_with_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "BLOCK_BYTES", 3000)
    with pytest.raises(OSError, match="a worker was killed, perhaps for lack of memory"), time_limit(60):
        build_shards([numbered_corpus(tmp_path)[0]], NUMBERED, tmp_path / "shards", workers=2,
                     reading=Reading(preprocess=deadly))


def test_a_build_that_is_killed_leaves_no_process_and_continues(tmp_path):
    corpus, _ = numbered_corpus(tmp_path)
    NUMBERED.save(tmp_path)
    program = ("import data; from tokenizer import Tokenizer; data.BLOCK_BYTES = 1000; data.build_shards("
               "[{0!r}], Tokenizer.from_file({1!r}), {2!r}, workers=2)").format
    run = [sys.executable, "-c", program(str(corpus), str(tmp_path), str(tmp_path / "killed"))]
    killed, index = subprocess.Popen(run, cwd=ROOT), tmp_path / "killed" / "index.json"
    with time_limit(60):
        while not index.exists():
            time.sleep(0.001)
    workers = Path(f"/proc/{killed.pid}/task/{killed.pid}/children").read_text().split()
    killed.kill()
    killed.wait()
    done = len(json.loads(index.read_bytes())["shards"])
    with time_limit(20):
        while any(Path("/proc", pid).exists() for pid in workers):
            time.sleep(0.01)
    times = {path: path.stat().st_mtime_ns for path in index.parent.glob("*.npy")
             if int(path.name[:5]) < done}
    subprocess.run(run, cwd=ROOT, check=True, timeout=60)
    assert done and len(workers) >= 2 and all(path.stat().st_mtime_ns == then for path, then in times.items())
    subprocess.run([*run[:2], program(str(corpus), str(tmp_path), str(tmp_path / "whole"))], cwd=ROOT,
                   check=True)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_build_waits_for_no_index_that_another_process_writes(tmp_path, monkeypatch):
    """The lock is taken before the index is read: else two builds could both begin where neither was."""
    def read(folder, wanted):
        with pytest.raises(ValueError, match="is in use by another process"):
            with data.only_process(folder):
                pass
        return continue_index(folder, wanted)

    continue_index = data.continue_index
    monkeypatch.setattr(data, "continue_index", read)
    build_shards([write(tmp_path / "c.txt", "w1\n")], NUMBERED, tmp_path / "out", workers=1)
    assert json.loads((tmp_path / "out" / "index.json").read_bytes())["complete"]


def test_a_path_that_is_not_utf8_works(tmp_path):
    corpus = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")
    Path(corpus).write_text("w1 w2\n")
    out = os.fsdecode(os.fsencode(tmp_path) + b"/out\xe9")
    for _ in range(2):
        build_shards([corpus], NUMBERED, out, workers=1)
    assert len(open_shards(out).lengths) == 1


@pytest.fixture
def shard_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "BLOCK_BYTES", 3000)
    build_shards([numbered_corpus(tmp_path)[0]], NUMBERED, tmp_path / "shards", max_length=32, workers=1)
    return tmp_path / "shards"


@pytest.mark.parametrize("size", [None, 0, 10, -3], ids=["missing", "empty", "header cut", "end cut"])
@pytest.mark.parametrize("name", ["tokens", "starts", "first"])
def test_a_missing_or_truncated_array_is_named_when_it_is_read(shard_folder, name, size):
    path = shard_folder / f"00001.{name}.npy"
    content = path.read_bytes()
    path.unlink()
    if size is not None:
        write(path, content[:size])
    with pytest.raises((ValueError, OSError), match=re.escape(str(shard_folder))):
        shards = open_shards(shard_folder)
        for number in range(len(shards.lengths)):
            shards.example(number)


@pytest.mark.parametrize("content, message", [
    (None, r"index\.json: not there, .*python data\.py build"),
    (b"{", r"index\.json: JSON that cannot be read: .*line 1"),
    (b"[1]", r"index\.json: expected a JSON object, found list"),
    (b'{"format": 2}', r"index\.json: .* no index of shards of format 4: build it with python data"),
    (b"[" * 100_000, r"index\.json: JSON that cannot be read: maximum recursion depth")])
def test_a_folder_without_a_valid_index_is_refused(tmp_path, content, message):
    if content is not None:
        write(tmp_path / "index.json", content)
    with pytest.raises((ValueError, OSError), match=message):
        open_shards(tmp_path)


def test_info_compares_every_byte(shard_folder):
    assert data.main(["info", str(shard_folder)]) == 0
    for path in shard_folder.glob("00001.*.npy"):
        content = path.read_bytes()
        write(path, content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ValueError, match=rf"{path.name}: truncated, damaged or edited"):
            data.main(["info", str(shard_folder)])
        write(path, content)


def test_a_corpus_of_other_text_under_the_same_names_is_refused_by_file(tmp_path):
    a, b = write(tmp_path / "a.txt", "w1 w2\n"), write(tmp_path / "b.txt", "w3 w4\n")
    build_shards([a, b], NUMBERED, tmp_path / "shards", workers=1)
    build_shards([a, b], NUMBERED, tmp_path / "shards", workers=1)
    write(b, "w3 w5\n")                                       # as long as before
    with pytest.raises(ValueError, match=r"another sources \(b\.txt, SHA-256 .*, now b\.txt, SHA-256 "):
        build_shards([a, b], NUMBERED, tmp_path / "shards", workers=1)


def test_shards_inside_the_corpus_are_refused(tmp_path):
    corpus = write(tmp_path / "corpus" / "a.txt", "w1 w2\n").parent
    with pytest.raises(ValueError, match="shards lies in .*corpus, all files of which are corpus"):
        build_shards([corpus], NUMBERED, corpus / "x" / ".." / "shards", workers=1)
    assert [path.name for path in corpus.iterdir()] == ["a.txt"]


def test_ids_up_to_65535_fit_and_a_larger_vocabulary_is_refused(tmp_path):
    corpus = write(tmp_path / "c.txt", "w65535 w5\n")
    pieces = [*SPECIAL_TOKENS, *(f"w{number}" for number in range(5, 2 ** 16 + 1))]
    build_shards([corpus], Tokenizer(pieces[:-1]), tmp_path / "shards", workers=1)
    assert open_shards(tmp_path / "shards").example(0)[0].tolist() == [2, 65535, 5, 3]
    with pytest.raises(ValueError, match="the vocabulary has 65537 pieces"):
        build_shards([corpus], Tokenizer(pieces), tmp_path / "more", workers=1)
    assert not (tmp_path / "more").exists()


@pytest.mark.parametrize("content", [None, "", "\n \n\n", "\x07\n\n\x01\n"],
                         ids=["empty folder", "empty file", "blank lines", "nothing after cleaning"])
def test_a_corpus_without_text_is_refused(tmp_path, content):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    if content is not None:
        write(corpus / "c.txt", content)
    with pytest.raises(ValueError, match="no text in"):
        build_shards([corpus], NUMBERED, tmp_path / "shards", workers=1)
    with pytest.raises((ValueError, OSError)):
        open_shards(tmp_path / "shards")


def test_a_missing_corpus_and_rows_without_room_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such file or folder"):
        build_shards([tmp_path / "nowhere"], NUMBERED, tmp_path / "shards", workers=1)
    with pytest.raises(ValueError, match="max_length 7: less than 8 leaves no room"):
        build_shards([numbered_corpus(tmp_path)[0]], NUMBERED, tmp_path / "shards", max_length=7, workers=1)
    assert not (tmp_path / "shards").exists()


# --- 5. Batches ---

def test_seeds_depend_on_seed_step_and_purpose():
    arguments = list(itertools.product((0, 1, 2 ** 31), (0, 1, 10 ** 6), ("order", "mask", "noise")))
    found = [seed_for(*triple) for triple in arguments]
    assert len(set(found)) == len(arguments)
    assert found == [seed_for(*triple) for triple in arguments]
    assert all(0 <= seed < 2 ** 63 for seed in found)


def test_widths_that_can_be_checked_on_paper():
    assert bucket_widths(128).tolist() == [16, 24, 32, 40, 48, 64, 80, 104, 128]
    assert bucket_widths(16).tolist() == [16] and bucket_widths(8).tolist() == [8]


@given(st.integers(8, 1024))
def test_widths_are_few_and_close(max_length):
    widths = bucket_widths(max_length).tolist()
    assert widths == sorted(set(widths)) and widths[-1] == max_length and len(widths) <= 24
    assert all(width % 8 == 0 for width in widths[:-1])
    # Each is at most 1.2 times the one before, rounded to a multiple of eight.
    assert all(long <= 1.2 * short + 10 for short, long in zip(widths, widths[1:]))


@st.composite
def batch_problems(draw):
    max_length = draw(st.integers(8, 130))
    lengths = draw(st.lists(st.integers(1, max_length), max_size=60))
    return np.array(lengths, np.int64), draw(st.integers(1, 9)), max_length, draw(seeds)


@given(batch_problems(), st.booleans())
def test_batches_hold_each_example_at_most_once_in_the_narrowest_width(problem, keep_rest):
    lengths, batch_size, max_length, seed = problem
    before = lengths.copy()
    plan = plan_batches(lengths, batch_size, max_length, np.random.default_rng(seed), keep_rest)
    again = plan_batches(lengths, batch_size, max_length, np.random.default_rng(seed), keep_rest)
    assert [width for width, _ in plan] == [width for width, _ in again]
    assert [rows.tolist() for _, rows in plan] == [rows.tolist() for _, rows in again]
    used = [row for _, rows in plan for row in rows.tolist()]
    assert len(used) == len(set(used)) and set(used) <= set(range(len(lengths)))
    left_out = len(lengths) - len(used)
    assert left_out == (0 if keep_rest else len(lengths) % batch_size)
    sizes = sorted(len(rows) for _, rows in plan)
    assert sizes[1:] == [batch_size] * len(sizes[1:]) and (keep_rest or sizes[:1] in ([], [batch_size]))
    for width, rows in plan:
        assert width == min(width for width in bucket_widths(max_length) if width >= lengths[rows].max())
    assert (lengths == before).all()


def test_another_seed_gives_another_order_and_leaves_out_others():
    lengths = np.full(10, 20)
    plans = [plan_batches(lengths, 4, 32, np.random.default_rng(seed)) for seed in range(50)]
    assert len({tuple(row for _, rows in plan for row in rows) for plan in plans}) > 40
    left_out = [set(range(10)) - {row for _, rows in plan for row in rows.tolist()} for plan in plans]
    assert set.union(*left_out) == set(range(10))


def test_short_and_long_batches_are_mixed():
    lengths = np.repeat([10, 30, 60, 120], 100)
    widths = [width for width, _ in plan_batches(lengths, 4, 128, np.random.default_rng(0))]
    assert sum(a != b for a, b in zip(widths, widths[1:])) > 50     # sorted, the width would change 3 times


def padded_share(lengths, batch_size):
    plan = plan_batches(lengths, batch_size, 512, np.random.default_rng(0))
    positions = sum(width * len(rows) for width, rows in plan)
    return 1 - sum(lengths[rows].sum() for _, rows in plan) / positions


def test_padding_is_at_most_a_tenth_of_the_positions():
    lengths = np.random.default_rng(0).lognormal(np.log(250), 0.5, size=20_000).astype(int).clip(10, 512)
    assert padded_share(lengths, batch_size=32) <= 0.1
    assert 1 - lengths.mean() / 512 > 0.4                           # what it would be with one width


def test_padding_is_at_most_a_tenth_on_pubmed_abstracts(real_data):
    documents = itertools.islice(read_documents(real_data / "pretrain/corpus/pubmed_abstracts-00.txt.xz"),
                                 4000)
    pieces = ([[0] * round(1.25 * len(sentence.split())) for sentence in document] for document in documents)
    examples = build_examples(pieces, 512, random.Random(0))
    lengths = np.array([len(a) + len(b) + 2 + bool(b) for a, b in examples])
    assert padded_share(lengths, batch_size=32) <= 0.1


def test_an_example_longer_than_the_maximum_is_refused():
    with pytest.raises(ValueError, match="an example has 33 tokens, more than the maximum length 32"):
        plan_batches(np.array([8, 33]), 2, 32, np.random.default_rng(0))


# --- 6. Task files: entities ---

IL2 = [(["IL-2", "gene"], ["B-DNA", "I-DNA"]), (["."], ["O"])]


@pytest.mark.parametrize("text", [
    "IL-2 B-DNA\ngene I-DNA\n\n. O\n\n",
    "IL-2\tB-DNA\ngene\tI-DNA\n\n.\tO\n",                                          # bc2gm
    # jnlpba: a leading empty line
    "\nIL-2 B-DNA\ngene I-DNA\n\n. O\n\n",
    # bc5cdr: double empty lines
    "\nIL-2 B-DNA\ngene I-DNA\n\n\n. O\n\n\n",
    "-DOCSTART-\n\nIL-2 B-DNA\ngene I-DNA\n\n-DOCSTART-\tO\n\n. O\n",
    "-DOCSTART- -X- -X- O\n\nIL-2 NN I-NP B-DNA\ngene NN I-NP I-DNA\n\n. . O O\n",  # CoNLL's four columns
    "IL-2 B-DNA\r\ngene I-DNA\r\n\r\n. O\r\n",
    "\ufeffIL-2 B-DNA\ngene I-DNA\n\n. O\n",
    # stray spaces, no final newline
    "IL-2  B-DNA \ngene\t I-DNA\n \t\n. O",
])
def test_a_tagged_file_is_read_in_every_published_form(tmp_path, text):
    assert read_task("ner", "train", write(tmp_path / "train.txt", text).parent) == IL2


def test_tags_are_kept_as_they_are_in_the_file(tmp_path):
    # IOB1, no types
    write(tmp_path / "train.tsv", "a I-Entity\nb I-Entity\nc B\nd I\ne O\nf I-cell-line\n")
    assert read_task("ner", "train", tmp_path)[0].tags == ["I-Entity", "I-Entity", "B", "I", "O",
                                                           "I-cell-line"]


tagged_words = st.tuples(st.text(plain_characters, min_size=1, max_size=6),
                         st.sampled_from(["O", "B", "I-x-y"]))


@given(st.lists(st.lists(tagged_words, min_size=1, max_size=5), min_size=1, max_size=4),
       st.sampled_from([" ", "\t", " NN "]), st.sampled_from(["\n", "\r\n"]))
def test_any_tagged_sentences_are_read_back(tmp_path_factory, sentences, separator, end):
    folder = tmp_path_factory.getbasetemp() / "tagged"
    sentences = [[("two", "O"), ("words", "O")], *sentences]            # words of digits alone are refused
    text = end.join("".join(f"{word}{separator}{tag}{end}" for word, tag in sentence)
                    for sentence in sentences)
    write(folder / "test.txt", text)
    assert read_task("ner", "test", folder) == [tuple(map(list, zip(*sentence))) for sentence in sentences]


@pytest.mark.parametrize("name, text, message", [
    ("ner", "a O\r\n\r\nb\r\n", r"train\.txt line 3: expected a word and O, .*, found 'b'"),
    ("ner", "\ufeff\na O\n\tO\n", r"train\.txt line 3: expected a word and O"),
    ("ner", "a O\n\n\nb S-DNA\n",
     r"train\.txt line 4: expected a word and O, B-TYPE or I-TYPE, .*, found 'b S-DNA'"),
    ("ner", "a o\n", r"train\.txt line 1: expected a word and O"),
    ("ner", "O\n", r"train\.txt line 1: expected a word and O, .*in 2 or more columns"),
    ("ner", "a B-\n", r"train\.txt line 1: expected a word and O"),
    ("ner", "a O\nwhole sentence here\n", r"train\.txt line 2: expected a word and O"),
    ("ncbi-disease", "a O\nb B-Gene\n",
     r"train\.txt line 2: label 'B-Gene', expected one of O, B-Disease, I-Disease"),
    ("ner", "\n\n", r"ner: no examples in the train file of"),
    ("ner", "a\tO\n\tNN\tO\n", r"train\.txt line 2: expected a word and O"),
    ("ner", "a\tB-X\t\n", r"train\.txt line 1: expected a word and O, .*, found 'a\\tB-X\\t'"),
    ("ner", "a O\rb O\r", r"train\.txt line 1: .*a line end of LF or CR LF, found 'a O\\rb O"),
])
def test_a_malformed_tagged_file_is_named_by_line(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message):
        read_task(name, "train", write(tmp_path / "train.txt", text).parent)


def test_between_tabs_a_token_keeps_its_spaces_and_an_empty_column_its_place(tmp_path):
    write(tmp_path / "train.tsv", "renal cell  carcinoma\t\tNN\tB-Dis\nhurts\t\tNN\tO\n\t\n: \"\t\t_\tO\n")
    assert read_task("ner", "train", tmp_path) == [
        (["renal cell  carcinoma", "hurts"], ["B-Dis", "O"]), ([': "'], ["O"])]


@pytest.mark.parametrize("text, message", [
    # GermEval counts; others give offsets, or the number of the document
    ("1\tGabe\tO\n2\tvon\tO\n", "column 1 holds numbers \\(1, 2, ...\\), expected words in the first"),
    ("0-5\tAcute\tO\n6-10\tgout\tB-x\n", "column 1 holds numbers \\(0-5, 6-10"),
    ("PMC12\tAcute\tO\n\nPMC3\tgout\tB-x\n", "column 1 holds numbers \\(PMC12, PMC3"),
    ("of\tO\tB-x\np53\tB-DNA\tI-x\n", "column 2 holds tags \\(O, B-DNA, ...\\), .*tags in the last"),
    ("of\tNN\tI-DNA\tO\nin\tNN\tO\tO\n", "column 3 holds tags"),
    ("gout\tB-my type\n", "line 1: expected a word and O, B-TYPE"),   # would be two columns when written
    ("gout hurts in the morning\n", "in 2 or more columns, .*found 'gout hurts in the morning'"),
    ('{"tokens": ["gout"], "tags": [1]}\n', "one JSON object a line is read for re, qa, classify and rank"),
])
def test_columns_that_are_not_words_and_their_tags_are_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_task("ner", "train", write(tmp_path / "train.txt", text).parent)


def test_numbers_among_words_and_columns_of_phrases_or_of_nothing_but_O_are_read(tmp_path):
    write(tmp_path / "train.txt", "5\tI-NP\tO\tO\nmg\tO\tO\tB-Dose\n\n7\tI-VP\tO\tO\n")
    assert [sentence.words for sentence in read_task("ner", "train", tmp_path)] == [["5", "mg"], ["7"]]


def test_two_tagged_files_joined_without_a_line_feed_are_refused(tmp_path):
    """The last tag of the one and the first word of the other would be taken for a column that is skipped."""
    write(tmp_path / "train.tsv", "pain\tOMetformin\tB-Drug\nhelps\tO\n")
    with pytest.raises(ValueError, match="line 2: expected a word and O, B-TYPE or I-TYPE, in 3 columns"):
        read_task("ner", "train", tmp_path)


# --- 6. Task files: relations ---

ROWS = ["@GENE$ causes @DISEASE$ .\tyes", "@GENE$ met @DISEASE$ .\tno"]
READ = [("0", "@GENE$ causes @DISEASE$ .", "yes"), ("1", "@GENE$ met @DISEASE$ .", "no")]


@pytest.mark.parametrize("header, order", [
    ("text\tlabels", [1, 2]), ("Sentence\tClass", [1, 2]), ("label\tsentence", [2, 1]),
    ("relation\tnote\tid\ttext", [2, 3, 0, 1]), ("index\tlabel\tsentence", [0, 2, 1])])
def test_the_names_in_a_header_tell_the_columns(tmp_path, header, order):
    lines = ["\t".join([*row, "a note"][column] for column in order) for row in READ]
    write(tmp_path / "train.tsv", "\n".join([header, *lines]))
    assert [example[:3] for example in read_task("re", "train", tmp_path)] == READ


@pytest.mark.parametrize("header", [
    "phrase\tgold", "sentence\tgold", "label\tclass", "text\tsentence\tlabel"])
def test_a_header_that_does_not_name_the_columns_is_refused(tmp_path, header):
    write(tmp_path / "train.tsv", "\n".join([header, *ROWS]))
    with pytest.raises(ValueError, match=r"train\.tsv: a header with the columns .*expected id"):
        read_task("re", "train", tmp_path)


def test_rows_of_single_words_are_no_header(tmp_path):
    write(tmp_path / "train.tsv", "fever\tnone\ngout\ttreats\n")
    assert [example.label for example in read_task("re", "train", tmp_path)] == ["none", "treats"]


@pytest.mark.parametrize("content", ["", "\n", "index\tsentence\tlabel\n"])
def test_an_empty_dev_file_counts_as_none_and_an_empty_test_file_is_refused(tmp_path, capsys, content):
    for split in ("train", "dev", "test"):
        write(tmp_path / f"{split}.tsv", content if split == "dev" else "a b\t0\n")
    splits, test_set = data.read_splits("gad", tmp_path, seed=0)
    assert (splits.keys(), test_set) == ({"train", "test"}, "test set")
    assert "gad: no development set that differs from the test set" in capsys.readouterr().err
    write(tmp_path / "test.tsv", content)
    with pytest.raises(ValueError, match="no examples in the test file"):
        data.read_splits("gad", tmp_path, seed=0)


LABELLED = {
    "chemprot.csv: BOM, quoting in force": (
        '\ufeffindex\tsentence\tlabel\n1.T1.T2\t"""@GENE$"" binds @CHEMICAL$."\tCPR:3\n1.T3.T2\tSo.\tfalse\n',
        [("1.T1.T2", '"@GENE$" binds @CHEMICAL$.', "CPR:3"), ("1.T3.T2", "So.", "false")]),
    "ddi-2013.csv: CRLF, bare inner quotes": (
        'index\tsentence\tlabel\r\nd0.p0\t@DRUG$ "sensitizers".\tint\r\nd0.p1\t"a" or "b"\tx\r\n',
        [("d0.p0", '@DRUG$ "sensitizers".', "int"), ("d0.p1", '"a" or "b"', "x")]),
    "a stray quote swallows nothing": (
        'index\tsentence\tlabel\n1\t"@GENE$ rose\tA\n2\tfell"\tB\n3\t"\tC\n',
        [("1", '"@GENE$ rose', "A"), ("2", 'fell"', "B"), ("3", '"', "C")]),
    "chemprot-tsv: two columns": (
        'sentence\tlabel\r\n"a ""b"""\tFalse\r\nc\tCPR:3\r\n',
        [("0", 'a "b"', "False"), ("1", "c", "CPR:3")]),
    "gad: no header": (
        "@GENE$ and @DISEASE$.\t1\nsame\t0\nsame\t0",
        [("0", "@GENE$ and @DISEASE$.", "1"), ("1", "same", "0"), ("2", "same", "0")]),
    "three columns without a header, blank lines, padded label": (
        "\n7\t x \t1 \n\n \n8\ty\t0\n", [("7", " x ", "1"), ("8", "y", "0")]),
    "one pair, two labels": (
        "index\tsentence\tlabel\n1\tsame\tCPR:3\n1\tsame\tCPR:4\n",
        [("1", "same", "CPR:3"), ("1", "same", "CPR:4")])}


@pytest.mark.parametrize("form", LABELLED)
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_labelled_file_is_read_in_every_published_form(tmp_path, suffix, form):
    text, rows = LABELLED[form]
    write(tmp_path / f"train{suffix}", text)
    assert read_task("re", "train", tmp_path) == [LabelledText(*row) for row in rows]


cells = st.text(st.one_of(st.sampled_from('"" \'x'),
                          st.characters(codec="utf-8", exclude_characters="\t\r\n\ufeff\0")))


@pytest.mark.parametrize("text, message", [
    ("@GENE$ met @DISEASE$ .\tno\t\n" * 2, "line 1: label '', expected one of ."),    # a tab too many
    ("index\tsentence\tlabel\n1\ta\tx\nindex\tsentence\tlabel\n2\tb\tx\n", "line 3: expected 3 .*nd 3"),
    ("#id\ttext\trelation\n1\ta b\tx\n", None), ("\ttext\trelation\n1\ta b\tx\n", None)])
def test_headers_with_two_known_names_and_labels_that_are_missing(tmp_path, text, message):
    write(tmp_path / "train.tsv", text)
    if message:
        with pytest.raises(ValueError, match=message):
            read_task("re", "train", tmp_path)
    else:
        assert read_task("re", "train", tmp_path) == [("0", "a b", "x", None)]


@given(st.lists(st.tuples(cells, st.sampled_from("AB")), min_size=1))
def test_whatever_a_csv_writer_quotes_is_read_back(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "quoted" / "dev.tsv"
    path.parent.mkdir(exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, "excel-tab")
        writer.writerows([("index", "sentence", "label"), *((i, *row) for i, row in enumerate(rows))])
    assert [(row.text, row.label) for row in read_task("re", "dev", path.parent)] == rows


@pytest.mark.parametrize("name, text, message", [
    ("re", "index\tsentence\tlabel\n1\ta\tx\n2\tb\n",
     r"train\.csv line 3: expected 3 tab-separated columns \(id, text, label\), found 2"),
    ("re", "sentence\tlabel\r\n\r\na\tb\tc\r\n",
     r"train\.csv line 3: expected 2 tab-separated columns \(text, label\), found 3"),
    ("re", "1\ta\tx\ty\n", r"train\.csv line 1: expected 3 tab-separated columns.*, found 4"),
    ("re", "index,sentence,label\n",
     r"train\.csv line 1: expected (?!1 )[^\n]* tab-separated columns.*, found 1"),
    ("ddi2013", "index\tsentence\tlabel\n1\ta\tDDI-int\n2\tb\tDDI-maybe\n",
     r"train\.csv line 3: label 'DDI-maybe', expected one of DDI-false, DDI-advise"),
    ("re", "index\tsentence\tlabel\n", "re: no examples in the train file of"),
    ("classify", "yesno_label\tquestion\tideal_answer\n1\tIs it?\n",
     r"train\.csv line 2: expected 3 tab-separated columns \(label, text, text_pair\), found 2"),
    ("rank", "0\tq\ta\n2\tq\tb\n", r"train\.csv line 2: label '2', expected one of 0, 1"),
])
def test_a_malformed_labelled_file_is_named_by_line(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message):
        read_task(name, "train", write(tmp_path / "train.csv", text).parent)


# --- 6. Task files: JSON, and labels that look like several ---

@pytest.mark.parametrize("lines", [
    ['{"id": 7, "sentence": "a {b}", "label": "x"}', "",
     '{"label": "y", "id": "8", "sentence": "c", "n": [1]}'],
    ['[{"id": 7, "text": "a {b}", "relation": "x"},', '{"ID": "8", "Text": "c", "Label": "y"}]'],
    ["[", ' {"id": 7, "text": "a {b}", "class": "x"}, {"ID": "8", "Text": "c", "Label": "y"}', "]"],
])
@pytest.mark.parametrize("name", ["train.json", "train.jsonl"])
def test_json_objects_are_rows_with_columns_by_name(tmp_path, name, lines):
    write(tmp_path / name, "\n".join(lines))
    assert read_task("re", "train", tmp_path) == [("7", "a {b}", "x", None), ("8", "c", "y", None)]


def test_json_objects_of_pairs_and_numbers_as_labels_are_read(tmp_path):
    write(tmp_path / "dev.jsonl", '{"label": 1, "question": "q?", "answer": "a"}\n' * 2)
    assert read_task("yesno", "dev", tmp_path) == [("0", "q?", "1", "a"), ("1", "q?", "1", "a")]
    assert read_task("rank", "dev", tmp_path) == [("0", "q?", "1", "a"), ("1", "q?", "1", "a")]


@pytest.mark.parametrize("text, message", [
    ('{"tokens": ["a"], "tag": 1}\n' * 2, "line 1: an object with the columns tokens, tag: expected id"),
    ('{"text": "a", "sentence": "b", "label": 1}', "with the columns text, sentence, label: expected id"),
    ('{"text": "a", "label": 1}\n{"text": "a"}\n', "line 2: an object with the columns text: expected id"),
    ('{"text": "a", "label": 1}\n{"text": \n', "line 2: JSON that cannot be read"),
    ('{"text": "a", "label": ["x", "y"]}', r"'label' is \['x', 'y'\], expected a value of type str"),
    ('{"text": "a", "label": null}', "'label' is None, expected a value of type str"),
    ('{"text": "a", "label": " "}', "label '', expected one of"),
    ('{"text": "a", "label": 1}\n5\n', "line 2: expected a JSON object, found 5"),
    ('{"questions": [{"id": "1", "type": "yesno", "body": "b", "exact_answer": "no", "ideal_answer": ""}]}',
     "an object with the columns questions: expected id"),
])
def test_json_that_is_no_relations_is_refused_by_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_task("re", "train", write(tmp_path / "train.json", text).parent)


@pytest.mark.parametrize("label", ["a,b", "1|3", "gout; fever"])
def test_labels_that_look_like_several_are_pointed_out_in_one_line(tmp_path, capsys, label):
    write(tmp_path / "train.tsv", f"text\tlabel\nx y\t{label}\n" + "x\ta\n" * 18)
    assert read_task("re", "train", tmp_path)[0].label == label
    [line] = capsys.readouterr().err.splitlines()
    assert f"1 of 19 rows have a label like {label!r}" in line and "one label per row is meant" in line
    write(tmp_path / "train.tsv", f"text\tlabel\nx y\t{label}\n" + "x\ta\n" * 19)       # one in twenty
    assert read_task("re", "train", tmp_path) and not capsys.readouterr().err


# --- 6. Task files: pairs ---

@pytest.mark.parametrize("header", [
    "", "yesno_label\tquestion\tideal_answer\n", "label\tquestion\tanswer_candidate\r\n"])
def test_pairs_are_read_with_and_without_a_header(tmp_path, header):
    rows = '1\t"Is ""a"" b? "\tc "d" e\n0\tSo?\t\r\n\n0\tSo?\t\n'
    write(tmp_path / "dev.tsv", header + rows)
    assert read_task("classify", "dev", tmp_path) == read_task("yesno", "dev", tmp_path) == [
        LabelledText("0", 'Is "a" b? ', "1", 'c "d" e'), LabelledText("1", "So?", "0", ""),
        LabelledText("2", "So?", "0", "")]
    assert read_task("rank", "dev", tmp_path)[0].group == 'Is "a" b?'
    assert [(row.group, row.label) for row in read_task("rerank", "dev", tmp_path)][1:] == [("So?", "0")] * 2


@pytest.mark.parametrize("ideal, answer", [
    ("Yes, it hurts.", "it hurts."), ("No. It is\nyes", "It is\nyes"),
    (["YES\nIt hurts.", "Yes"], "It hurts."),
    ("yes it does", "it does"), ("No", ""), ("Yes - (rarely)", "(rarely)"), ("No \u2013 never", "never"),
    # here the word belongs to the sentence
    ("No drug cures it.", "No drug cures it."), ("None.", "None."), ("Yes-associated protein", None),
    ("No-effect levels", None), ("Yeast", None), ("It is: yes.", None)])
@pytest.mark.parametrize("name", ["yesno", "classify"])
def test_yes_no_questions_of_bioasq_lose_a_leading_yes_or_no(tmp_path, name, ideal, answer):
    entry = {"id": "5c", "type": "yesno", "body": "Does it hurt?", "ideal_answer": ideal, "snippets": []}
    other = {"id": "l", "type": "list", "body": "?", "exact_answer": [["a"]]}
    for file, exact in (("BioASQ-training9b.json", "Yes."), ("9B1_golden.json", ["no"])):
        write(tmp_path / file, json.dumps({"questions": [other, {**entry, "exact_answer": exact}]}, indent=1))
    for split, label in (("train", "1"), ("test", "0")):
        found = read_task(name, split, tmp_path)
        assert found == [("5c", "Does it hurt?", label, ideal if answer is None else answer)]


@pytest.mark.parametrize("change, message", [
    ({"exact_answer": "maybe"}, "question 0: 'exact_answer' is .*maybe.*, expected yes or no"),
    ({"exact_answer": None}, "question 0: 'exact_answer' is None"),
    ({"ideal_answer": None}, "question 0: 'ideal_answer' is None"), ({"body": 5}, "question 0: 'body' is 5")])
def test_a_malformed_yes_no_question_is_named(tmp_path, change, message):
    entry = {"id": "5c", "type": "yesno", "body": "?", "ideal_answer": "Yes.", "exact_answer": "yes"}
    write(tmp_path / "train.json", json.dumps({"questions": [{**entry, **change}]}))
    with pytest.raises(ValueError, match=rf"train\.json: not in BioASQ's form: {message}"):
        read_task("yesno", "train", tmp_path)


def test_a_third_label_of_ones_own_is_kept(tmp_path):
    write(tmp_path / "train.tsv", "0\tq\ta\n1\tq\ta\nyes\tq\ta\n")
    assert [example.label for example in read_task("classify", "train", tmp_path)] == ["0", "1", "yes"]


# --- 6. Task files: questions ---

def test_squad_is_read_with_and_without_answers(tmp_path):
    answered = {"id": "x_001", "question": "What fell?", "answers": [{"text": "Fever", "answer_start": 4}]}
    write(tmp_path / "train.json", "\ufeff" + squad(("The Fever fell.", answered),
                                                    ("No.", {"id": "x_002", "question": "Who?"})))
    assert read_task("qa", "train", tmp_path) == [
        Question("x_001", "What fell?", "The Fever fell.", [("Fever", 4)]),
        Question("x_002", "Who?", "No.", [])]


def write_bioasq(folder):
    """Write two BioASQ test batches, a golden file for the first, two training files and a filtered dev."""
    first = ["f1_000", "f1_001", "f2_000", "f3_000", "unknown_000"]
    for batch, ids in (("1", first), ("2-snippet", ["g1_000"])):       # BioBERT ends like this
        write(folder / f"BioASQ-test-factoid-7b-{batch}.json",
              squad(*((f"context of {id}", {"id": id, "question": "Which?"}) for id in ids)))
    write(folder / "7B1_golden.json", json.dumps({"questions": [
        {"id": "f1", "type": "factoid", "exact_answer": [["PD-L1", "CD274"]]},
        {"id": "y1", "type": "yesno", "exact_answer": "yes"},
        {"id": "s1", "type": "summary", "ideal_answer": "..."},
        {"id": "f2", "type": "factoid", "exact_answer": ["flat", "list"]},
        {"id": "f3", "type": "factoid", "exact_answer": [["one"], ["two"]]}]}))
    for part in ("6b", "8b"):
        write(folder / f"BioASQ-train-factoid-{part}-rebuilt.json",
              squad(("so it is", {"id": part, "question": "?",
                                  "answers": [{"text": "it", "answer_start": 3}]})))
    write(folder / "bio_electra-dev-filtered.json", squad(("so", {"id": "dev:5", "question": "?"})))
    return folder


def test_bioasq_batches_take_their_synonyms_from_the_golden_file_beside_them(tmp_path):
    write_bioasq(tmp_path)
    found = [(q.id, q.batch, q.gold, q.answers) for q in read_task("bioasq7b", "test", tmp_path)]
    assert found == [("f1_000", 1, ["PD-L1", "CD274"], []), ("f1_001", 1, ["PD-L1", "CD274"], []),
                     ("f2_000", 1, ["flat", "list"], []), ("f3_000", 1, ["one", "two"], []),
                     ("unknown_000", 1, None, []), ("g1_000", 2, None, [])]
    assert [q.id for q in read_task("bioasq7b", "train", tmp_path)] == ["6b", "8b"]     # all training files
    assert read_task("bioasq7b", "dev", tmp_path) == [Question("dev:5", "?", "so", [])]
    write(tmp_path / "7B1_golden.json", '{"questions": [{"id": "f1", "type": "factoid"}]}')
    with pytest.raises(ValueError, match=r"7B1_golden\.json: not in BioASQ's form.*exact_answer"):
        read_task("bioasq7b", "test", tmp_path)


def official(*entries):
    """A BioASQ file: (id, type, exact answer, snippets)."""
    return json.dumps({"questions": [{"id": id, "type": kind, "body": f"{id}?", "exact_answer": exact,
                                      "snippets": [{"text": text} for text in snippets]}
                                     for id, kind, exact, snippets in entries]})


def test_snippets_that_have_an_exact_answer_become_questions(tmp_path, capsys):
    write(tmp_path / "train.json", official(
        # not within a word
        ("part", "factoid", "TP53", ["TP53BP1 binds p53.", "TP53BP1, tp53 and TP53."]),
        ("names", "factoid", [["p53", "tumour protein p53", ""]], ["\u0130: p53, Tumour Protein P53", "p53"]),
        ("many", "list", [["gout"], ["Fever", "(high) fever"]], ["gout, (high) Fever", "Gout.", "none"]),
        ("lost", "factoid", ["a+b"], ["aab, a+bc"]), ("bare", "list", ["x"], []),
        ("yes", "yesno", "yes", ["yes"]), ("sum", "summary", "s", ["s"])))
    found = read_task("bioasq8b", "train", tmp_path)
    assert [(q.id, q.answers, q.article) for q in found] == [
        ("part_001", [("tp53", 9)], 0), ("names_000", [("Tumour Protein P53", 8)], 1),
        ("names_001", [("p53", 0)], 1),
        ("many_000", [("(high) Fever", 6)], 2), ("many_001", [("Gout", 0)], 2)]
    assert found[3][1:3] == ("many?", "gout, (high) Fever")
    said = capsys.readouterr().err
    assert "train.json: left out 2 of 5 questions: no snippet holds an exact answer" in said
    write(tmp_path / "train-v1.1.json", squad(("so", {"id": "mixed", "question": "?"})))
    assert [q.id for q in read_task("bioasq8b", "train", tmp_path)] == ["mixed"] + [q.id for q in found]


def test_white_space_in_a_name_of_bioasq_matches_any_other(tmp_path):
    write(tmp_path / "train.json", official(
        ("f", "factoid", ["5 mg"], ["It is 5\u00a0mg.", "5  mg", "5mg", "5\nmg"])))
    assert [q.answers for q in read_task("qa", "train", tmp_path)] == [
        [("5\u00a0mg", 6)], [("5  mg", 0)], [("5\nmg", 0)]]


@pytest.mark.parametrize("test_batch", [
    "11B{}_golden.json", "BioASQ-task11bPhaseB-testset{}.json", "BioASQ-task11bPhaseB-testset{}"])
def test_bioasq_reads_its_own_files_of_any_year_in_batches(tmp_path, test_batch):
    """Training keeps the snippets with an answer; a test batch keeps all, and questions without a snippet."""
    questions = [("f", "factoid", [["gout", "podagra"]], ["It is gout.", "It hurts."]),
                 ("l", "list", [["a"], ["b"]], ["none"]), ("e", "factoid", ["x"], []),
                 ("y", "yesno", "yes", ["gout"]), ("s", "summary", None, ["gout"])]
    write(tmp_path / "training11b.json", official(*[(f"t{id}", *rest) for id, *rest in questions]))
    without_answers = json.loads(official(*questions))
    for question in without_answers["questions"]:
        del question["exact_answer"]
    write(tmp_path / "11B2_golden.json", official(*questions))
    if "testset" in test_batch:
        write(tmp_path / test_batch.format(2), json.dumps(without_answers))
        write(tmp_path / test_batch.format(4), json.dumps(without_answers).replace('"id": "', '"id": "n'))
    assert [q[:5] for q in read_task("bioasq", "train", tmp_path)] == [
        ("tf_000", "tf?", "It is gout.", [("gout", 6)], None)]
    found = [(q.id, q.context, q.gold, q.type) for q in read_task("bioasq", "test", tmp_path) if q.batch == 2]
    assert found == [("f_000", "It is gout.", ["gout", "podagra"], "factoid"),
                     ("f_001", "It hurts.", ["gout", "podagra"], "factoid"),
                     ("l_000", "none", ["a", "b"], "list"), ("e_000", "", ["x"], "factoid")]
    assert not any(q.answers for q in read_task("bioasq", "test", tmp_path))
    others = [(q.batch, q.gold, q.answers) for q in read_task("bioasq", "test", tmp_path) if q.batch != 2]
    assert others == ([(4, None, [])] * 4 if "testset" in test_batch else [])     # no golden file: not scored


def test_one_id_in_two_files_is_refused_as_in_one(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / f"BioASQ-train-factoid-{name}.json", official(("5c", "factoid", "gout", ["gout"])))
    with pytest.raises(ValueError, match=r"-a\.json or .*-b\.json: several questions have the id '5c_000'"):
        read_task("bioasq7b", "train", tmp_path)


def test_a_dump_of_squad_is_read_by_the_names_of_its_columns(tmp_path):
    def row(name, texts, starts):
        return {"id": name, "title": "t", "context": "The Fever fell.", "question": "What?",
                "answers": {"text": texts, "answer_start": starts}}
    rows = [row("1", ["Fever", "The Fever"], [4, 0]), row("2", [], [])]
    expected = [Question("1", "What?", "The Fever fell.", [("Fever", 4), ("The Fever", 0)], article=0),
                Question("2", "What?", "The Fever fell.", [], article=1)]
    for name, text in (("train.jsonl", "\n".join(map(json.dumps, rows))), ("dev.json", json.dumps(rows)),
                       ("test.json", json.dumps({"version": 2, "data": rows}, indent=1))):
        assert read_task("qa", name.split(".")[0], write(tmp_path / name, text).parent) == expected
    write(tmp_path / "train.jsonl", "\n".join(json.dumps(row(name, ["Fever"], [])) for name in "ab"))
    with pytest.raises(ValueError, match="question a: 'answer_start' is None"):
        read_task("qa", "train", tmp_path)
    write(tmp_path / "train.jsonl", '{"tokens": ["a"], "tags": [1]}\n' * 2)
    with pytest.raises(ValueError, match="not in SQuAD's form: no 'data' in {'tokens'"):
        read_task("qa", "train", tmp_path)


def test_bioasq8b_is_tested_on_dev_only_without_a_test_file(tmp_path):
    write(tmp_path / "dev.json", squad(("so", {"id": "dev", "question": "?"})))
    assert read_task("bioasq8b", "test", tmp_path) == read_task("bioasq8b", "dev", tmp_path)
    write(tmp_path / "test.json", squad(("so", {"id": "test", "question": "?"})))
    assert [read_task("bioasq8b", split, tmp_path)[0].id for split in ("dev", "test")] == ["dev", "test"]


def one_answer(text, start):
    return squad(("abc", {"id": "q7", "question": "?", "answers": [{"text": text, "answer_start": start}]}))


@pytest.mark.parametrize("content, message", [
    (one_answer("b", "1"), r"SQuAD's form: question q7: 'answer_start' is 1"),
    (one_answer("b", True), r"question q7: 'answer_start' is True, expected a value of type int"),
    (one_answer(5, 1), r"question q7: 'text' is 5, expected a value of type str"),
    (one_answer("\ud83d", 1), r"train\.json: JSON that cannot be read: .*ud83d.*surrogates"),
    (squad(("abc", {"id": "1", "question": 5})), r"question 1: 'question' is 5"),
    (squad(("abc", {"id": None, "question": "?"})), r"'id' is None"),
    (squad(("abc", {"id": 5, "question": "?"}), ("abc", {"id": "5", "question": "!"})),
     r"train\.json: several questions have the id '5'"),
    ('{"data": [\n {"paragraphs": []},\n]}', r"train\.json: JSON that cannot be read: .*line 3"),
    ('{"data": [', r"train\.json: JSON.*line 1"), ("", r"train\.json: JSON.*line 1"),
    ("[]", r"train\.json: not in SQuAD's form"), ("{}", r"train\.json: not in SQuAD's form.*'data'"),
    ('{"data": [{"title": "x"}]}', r"train\.json: not in SQuAD's form.*'paragraphs'"),
    (squad(("abc", {"id": "1"})), r"train\.json: not in SQuAD's form.*'question'"),
    (squad(("abc", {"question": "?"})), r"train\.json: not in SQuAD's form.*'id'"),
    (squad(("abc", "no entry")), r"train\.json: not in SQuAD's form"),
    (squad(), r"qa: no examples in the train file of"),
    ('{"questions": [{"type": "list", "id": "1"}]}', r"train\.json: not in BioASQ's form.*'exact_answer'"),
    ('{"questions": 1}', r"train\.json: not in BioASQ's form"),
    (official(("1", "factoid", None, ["x"])), r"train\.json: not in BioASQ's form"),
    (official(("1", "factoid", ["x"], [7])), r"train\.json: not in BioASQ's form"),
])
def test_a_malformed_question_file_is_named(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_task("qa", "train", write(tmp_path / "train.json", content).parent)


@pytest.mark.parametrize("text, start, found", [
    ("TP53", 5, ("TP53", 5)),                           # as the file says
    (" TP53", 5, ("TP53", 5)), ("TP53 ", 4, ("TP53", 5)), ("TP53\ngene", 5, ("TP53  gene", 5)),
    ("TP53", 9, ("TP53", 5)), ("TP53", 12, ("TP53", 16)),                                   # the nearest one
    ("TP53", -3, ("TP53", 5)), ("TP53", 99, ("TP53", 16)),
    ("BRCA1", 5, None), (" ", 2, None)])                # nowhere; white space that does not stand there
def test_an_answer_is_found_where_white_space_alone_differs_else_nearby(text, start, found):
    assert data.find_answer(text, start, "Does TP53  gene TP53?") == found


def test_answers_that_are_off_or_nowhere_are_counted_and_impossible_questions_have_none(tmp_path, capsys):
    def question(name, **more):
        return {"id": name, "question": "?", **more}
    answers = [[{"text": " TP53", "answer_start": 0}], [{"text": "BRCA1", "answer_start": 0}]]
    write(tmp_path / "test.json", squad(("TP53 is it.", question(1, answers=answers[0])),
                                        ("TP53 is it.", question(2, answers=answers[1])),
                                        ("TP53 is it.", question(3, answers=[], is_impossible=True))))
    first, second, third = read_task("qa", "test", tmp_path)
    assert (first.id, first.answers, first.gold) == ("1", [("TP53", 0)], None)
    assert (second.answers, second.gold) == ([], ["BRCA1"])         # it can still be scored
    assert (third.answers, third.gold) == ([], [])
    said = capsys.readouterr().err
    assert "test.json: 2 answers are not where the file says; 1 of them are nowhere in their passage" in said


# --- 6. Task files: where they are ---

@pytest.mark.parametrize("layout", ["lower", "upper", "itself"])
def test_a_task_is_found_in_the_data_root_the_release_and_its_own_folder(tmp_path, layout):
    folders = {"lower": ("ner/ncbi-disease", "re/ddi-2013", "qa/bioasq"),
               "upper": ("NER/NCBI-disease", "RE/ddi-2013", "QA/BioASQ"),
               "itself": ("ner", "re", "qa")}[layout]
    write(tmp_path / folders[0] / "dev.txt", "a O\n")
    write(tmp_path / folders[1] / "dev.csv", "1\ta\tDDI-int\n")
    write_bioasq(tmp_path / folders[2])
    for name, folder in zip(("ncbi-disease", "ddi2013", "bioasq7b"), folders):
        assert len(read_task(name, "dev", tmp_path / folder if layout == "itself" else tmp_path)) == 1


@pytest.mark.parametrize("kind, suffixes, text", [
    ("ner", (".txt", ".tsv", ".csv"), "a\tO\n"), ("re", (".txt", ".tsv", ".csv"), "a\t1\n"),
    ("qa", (".json",), squad(("abc", {"id": "1", "question": "?"})))])
@pytest.mark.parametrize("split, stem", [("train", "train"), ("dev", "dev"), ("dev", "devel"),
                                         ("test", "test")])
def test_a_kind_reads_one_split_of_a_folder_of_ones_own(tmp_path, kind, suffixes, text, split, stem):
    for suffix in suffixes:
        folder = write(tmp_path / suffix[1:] / f"{stem}{suffix}", text).parent
        assert len(read_task(kind, split, folder)) == len(read_task(kind, split, str(folder))) == 1
    others = {"train", "dev", "test"} - {split}
    for other in others:
        with pytest.raises(FileNotFoundError, match=f"{kind}: no {other} file in .*: expected {other}.txt"):
            read_task(kind, other, folder)


@pytest.mark.parametrize("arguments, error, message", [
    (("ncbi-disease", "dev"), FileNotFoundError,
     r"ncbi-disease: no dev file in .*: expected dev\.txt or .*; run python data\.py fetch ncbi-disease, or "
     r"put dev\.txt, test\.txt, train\.txt of https://.*/data/NER/NCBI-disease into .*/ner/ncbi-disease$"),
    (("bioasq7b", "test"), FileNotFoundError,
     r"bioasq7b: no test file in .*: expected BioASQ-test-factoid-7b"),
    (("ner", "tests"), ValueError, "split 'tests': expected one of train, dev, test"),
    (("demo-ner", "tests"), ValueError, "split 'tests': expected one of train, dev, test"),
    (("ncbi", "dev"), ValueError,
     "unknown task 'ncbi': expected one of ncbi-disease, .*, ddi2013, .*, ner, re, qa"),
])
def test_a_missing_file_is_reported_with_what_is_expected_where(tmp_path, arguments, error, message):
    for directory in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(error, match=message):
            read_task(*arguments, directory)


def test_a_missing_file_of_a_kind_names_its_folder_once(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"^ner: no dev file in {re.escape(str(tmp_path))}: exp"):
        read_task("ner", "dev", tmp_path)


def test_without_a_folder_the_data_root_is_searched(tmp_path, monkeypatch):
    write(tmp_path / "ner" / "BC2GM" / "dev.txt", "a O\n")
    monkeypatch.setattr(data, "DATA_ROOT", str(tmp_path))
    assert len(read_task("bc2gm", "dev")) == 1
    with pytest.raises(FileNotFoundError, match=f"bc2gm: no test file in {re.escape(str(tmp_path))} or"):
        read_task("bc2gm", "test")


def test_a_name_is_a_task_or_a_kind():
    assert find_task("ddi2013") is TASKS["ddi2013"]
    assert all(find_task(kind).kind == kind and not find_task(kind).labels for kind in ("ner", "re", "qa"))
    with pytest.raises(ValueError, match="unknown task 'squat'"):
        find_task("squat")


# --- 6. Task files: parts and labels ---

@pytest.mark.parametrize("name, groups, count, has_dev", [
    ("gad", [LabelledText(str(i), f"text {i // 2}", "0") for i in range(40)], 10, True),
    ("squad", [Question(str(i), "?", "so", [], article=i // 3) for i in range(36)], 6, False),
    ("rerank", [LabelledText(str(i), f"q{i // 4}", "0", "a") for i in range(40)], 5, False)])
def test_every_example_is_tested_in_one_part_and_groups_stay_together(name, groups, count, has_dev):
    def group(example):
        return getattr(example, {"gad": "text", "squad": "article", "rerank": "group"}[name])

    tested = []
    for fold in range(count):
        splits = cut_splits(TASKS[name], groups, fold)
        assert splits == cut_splits(TASKS[name], groups, fold + count) and ("dev" in splits) == has_dev
        assert sorted(sum(splits.values(), []), key=groups.index) == groups
        parts = [{group(example) for example in part} for part in splits.values()]
        assert len(set.union(*parts)) == sum(map(len, parts))
        assert len(splits["test"]) == len(splits.get("dev", splits["test"])) == len(groups) // count
        tested += splits["test"]
    assert sorted(tested, key=groups.index) == groups


@pytest.mark.parametrize("absent, error, test_set", [
    ((), None, "test set"), (("test",), None, "part 3 of 10 of its train file: a cut of our own"),
    (("dev",), None, "test set"), (("train",), "gad: no train file in", None)])
def test_a_split_is_published_or_cut_as_the_task_says(tmp_path, capsys, absent, error, test_set):
    for split in {"train", "dev", "test"} - {*absent}:
        write(tmp_path / f"{split}.tsv", "".join(f"{split} {i}\t{i % 2}\n" for i in range(20)))
    if error:
        with pytest.raises(FileNotFoundError, match=error):
            data.read_splits("gad", str(tmp_path), seed=2)
        return
    splits, found = data.read_splits("gad", str(tmp_path), seed=2)
    said = capsys.readouterr().err
    assert found == test_set and ("dev" in splits) == ("dev" not in absent)
    assert len(splits["test"]) == (2 if "test" in absent else 20)
    assert ("*** gad: no test file in" in said) == ("test" in absent)
    assert ("so the last epoch counts" in said) == ("dev" in absent)
    if not absent:                          # a copy of the test file must not choose an epoch
        write(tmp_path / "dev.tsv", (tmp_path / "test.tsv").read_bytes())
        assert "dev" not in data.read_splits("gad", tmp_path)[0]
        assert "so the last epoch counts" in capsys.readouterr().err


# --- 6. Task files: the published data sets ---

@pytest.mark.parametrize("name, folder, counts", [
    ("ncbi-disease", "", ((5429, 135_701), (923, 23_969), (941, 24_497))),
    ("ner", "ner/ncbi-disease", ((5429, 135_701), (923, 23_969), (941, 24_497))),
    ("bc5cdr", "", ((3951, 95_370), (3957, 94_437), (4145, 98_691))),
    ("jnlpba", "", ((16_845, 445_090), (1743, 47_461), (3869, 101_039))),
    ("bc2gm", "", ((12_574, 355_405), (2519, 71_042), (5038, 143_465))),
])
def test_sentences_and_tokens_are_as_many_as_published(real_data, name, folder, counts):
    for split, expected in zip(("train", "dev", "test"), counts):
        examples = read_task(name, split, real_data / folder)
        assert (len(examples), sum(len(example.words) for example in examples)) == expected
        assert all(len(example.words) == len(example.tags) > 0 for example in examples)


DDI = ("DDI-false", "DDI-advise", "DDI-effect", "DDI-int", "DDI-mechanism")
CPR = ("false", "CPR:3", "CPR:4", "CPR:5", "CPR:6", "CPR:9")


@pytest.mark.parametrize("name, folder, labels, counts", [
    ("ddi2013", "", DDI, ((15_843, 633, 1212, 146, 946), (6240, 193, 396, 42, 373),
                          (4782, 221, 360, 96, 302))),
    ("chemprot", "", CPR, (
        (14_701, 766, 2254, 173, 235, 727), (9404, 550, 1094, 116, 199, 457),
        (12_805, 665, 1661, 195, 293, 644))),
    ("chemprot-tsv", "", ("False", *CPR[1:]), (
        (12_389, 761, 2251, 172, 235, 713), (7949, 548, 1093, 115, 199, 457),
        (10_955, 664, 1658, 183, 292, 644))),
    ("gad", "", ("1", "0"), ((2520, 2276),)),
    ("yesno", "", ("1", "0"), ((579, 149), (102, 26), (102, 26))),
])
def test_labels_are_as_many_as_published(real_data, name, folder, labels, counts):
    for split, expected in zip(("train", "dev", "test"), counts):
        found = Counter(example.label for example in read_task(name, split, real_data / folder))
        assert found == dict(zip(labels, expected))


@pytest.mark.parametrize("folder, split, rows, negatives", [
    ("re/chemprot-tsv", "train", 16_521, 12_389), ("re/chemprot-tsv", "dev", 10_361, 7949),
    ("re/chemprot-tsv", "test", 14_396, 10_955), ("re/chemprot", "dev", 11_820, 9404),
    ("re/ddi-2013", "dev", 7244, 6240), ("re/gad", "train", 4796, 0)])
def test_rows_equal_what_a_csv_reader_finds(real_data, folder, split, rows, negatives):
    examples = read_task("re", split, real_data / folder)
    assert (len(examples), sum(e.label.lower().endswith("false") for e in examples)) == (rows, negatives)
    [path] = (real_data / folder).glob(f"{split}.*")
    with open(path, newline="", encoding="utf-8-sig") as file:
        expected = [row[-2:] for row in csv.reader(file, delimiter="\t")]
    assert [[e.text, e.label] for e in examples] == [row for row in expected if row != ["sentence", "label"]]


def test_bioasq_questions_are_as_many_as_published(real_data):
    train, dev, test = (read_task("bioasq7b", split, real_data) for split in ("train", "dev", "test"))
    assert len(train) == 2643 + 2149 and len({bioasq_question_id(q.id) for q in train}) == 344 + 386
    assert (len(dev), len({q.question for q in dev})) == (1621, 177)
    assert len({bioasq_question_id(q.id) for q in dev}) == 178
    assert Counter(q.batch for q in test) == {1: 98, 2: 56, 3: 84, 4: 90}
    assert Counter(batch for batch, _ in {(q.batch, bioasq_question_id(q.id)) for q in test}) == {
        1: 39, 2: 25, 3: 29, 4: 34}
    assert all(q.gold and all(isinstance(name, str) for name in q.gold) and not q.answers for q in test)
    assert all(q.context[start:start + len(text)] == text for q in train + dev for text, start in q.answers)
    assert all(q.answers and q.gold is None and q.batch is None for q in train + dev)


def test_the_golden_files_of_7b_give_all_their_questions(real_data, tmp_path):
    """Per batch, factoid, list and yes/no questions: 39, 12, 29; 25, 17, 30; 29, 25, 23; 34, 22, 23."""
    for golden in (real_data / "qa" / "bioasq").glob("7B*"):
        (tmp_path / golden.name).symlink_to(golden)
    test, yes_no = read_task("bioasq", "test", tmp_path), read_task("yesno", "test", tmp_path)
    asked = Counter((batch, kind) for batch, kind, _ in {
        (q.batch, q.type, bioasq_question_id(q.id)) for q in test})
    assert [(asked[batch, "factoid"], asked[batch, "list"]) for batch in (1, 2, 3, 4)] == [
        (39, 12), (25, 17), (29, 25), (34, 22)]
    assert Counter(row.label for row in yes_no) == {"1": 75, "0": 30} and all(q.gold for q in test)
    assert not any(row.text_pair.lower().startswith(("yes", "no.", "no,")) for row in yes_no)


def test_squad_questions_are_as_many_as_published(real_data):
    questions = read_task("squad", "dev", real_data)
    for field, count in (("id", 1190), ("context", 240), ("article", 48)):
        assert len({getattr(question, field) for question in questions}) == count
    splits = cut_splits(TASKS["squad"], questions, 0)
    assert [len({q.article for q in splits[split]}) for split in ("train", "test")] == [40, 8]


def test_candidates_are_as_many_as_published(real_data):
    rows = read_task("rerank", "dev", real_data)
    assert (len(rows), sum(row.label == "1" for row in rows)) == (9064, 117)
    assert len({row.group for row in rows}) == 100
    assert len({row.group for row in cut_splits(TASKS["rerank"], rows, 4)["test"]}) == 20


# --- 6. Task files: fetching ---

GAD = f"/{TASKS['gad'].source}"
CONTENT = {"dev.tsv": b"b\t0\n", "test.tsv": b"c\t1\n", "train.tsv": b"a\t1\n" * 50_000}


def git_blob(content):
    return hashlib.sha1(b"blob %d" % len(content) + bytes(1) + content).hexdigest()


@pytest.fixture
def server(monkeypatch):
    """A server on this machine: `files` by path, `asked` in order; it announces `more` bytes than it sends.

    The checksums of the task gad are those of CONTENT.
    """
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked.append(self.path)
            if self.path not in server.files:
                return self.send_error(404)
            self.send_response(200)
            self.send_header("Content-Length", str(len(server.files[self.path]) + server.more))
            self.end_headers()
            self.wfile.write(server.files[self.path])

        def log_message(self, *arguments):
            pass

    blobs = [f"{name} {git_blob(content)}" for name, content in CONTENT.items()]
    monkeypatch.setitem(data.PUBLISHED_FILES, "gad", " ".join(blobs))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.asked, server.more = {f"{GAD}/{name}": text for name, text in CONTENT.items()}, [], 0
    monkeypatch.setattr(data, "GITHUB", f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_every_file_is_fetched_once_and_what_is_there_is_kept(server, tmp_path, capsys):
    write(tmp_path / "RE" / "dev.tsv", "of another task")
    own = write(tmp_path / "RE" / "GAD" / "test.tsv", "one's own\t0\n")
    fetch_task("gad", tmp_path)
    assert server.asked == [f"{GAD}/dev.tsv", f"{GAD}/train.tsv"]
    assert contents(own.parent) == {**CONTENT, "test.tsv": own.read_bytes()}
    assert len(read_task("gad", "train", tmp_path)) == 50_000
    assert f"1 MB of {own.parent / 'train.tsv'}" in capsys.readouterr().err
    fetch_task("gad", tmp_path)
    assert len(server.asked) == 2


def test_nothing_is_fetched_beside_a_data_set_of_ones_own(server, tmp_path):
    fetch_task("gad", write(tmp_path / "train.tsv", "a\t0\n").parent)
    assert not server.asked and list(tmp_path.iterdir()) == [tmp_path / "train.tsv"]


@pytest.mark.parametrize("change, error, message", [
    ("content", ValueError, "git blob .*, expected "),
    ("length", ValueError, "git blob .*, expected "),
    ("file", OSError, "404"), ("server", OSError, "refused")])
def test_a_failed_download_names_address_and_path_and_keeps_finished_files(
        server, tmp_path, monkeypatch, change, error, message):
    address = f"{GAD}/train.tsv"
    write(tmp_path / "re" / "gad" / "dev.tsv", CONTENT["dev.tsv"])
    write(tmp_path / "re" / "gad" / "test.tsv", CONTENT["test.tsv"])
    if change == "content":
        server.files[address] = CONTENT["train.tsv"][:-1] + b" "
    elif change == "length":
        server.files[address], server.more = CONTENT["train.tsv"][:-1], 1
    elif change == "file":
        del server.files[address]
    elif change == "server":
        with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as closed:
            monkeypatch.setattr(data, "GITHUB", f"http://127.0.0.1:{closed.server_port}")
    expected = f"{re.escape(data.GITHUB + address)}: .*{message}.*{re.escape(str(tmp_path))}"
    with pytest.raises(error, match=expected) as caught:
        fetch_task("gad", tmp_path)
    assert len(str(caught.value).splitlines()) == 1
    assert contents(tmp_path / "re" / "gad").keys() == {"dev.tsv", "test.tsv"}


def test_vocabularies_are_fetched_into_folders_of_their_own(server, tmp_path, monkeypatch):
    content = b"[PAD]\n[UNK]\n"
    monkeypatch.setitem(data.PUBLISHED_FILES, "bio-electra-vocab", f"words.txt {git_blob(content)}")
    server.files[f"/{data.BIO_ELECTRA}/words.txt"] = content
    fetch_task("bio-electra-vocab", str(tmp_path))
    assert contents(tmp_path / "vocab" / "bio-electra") == {"words.txt": content}


@pytest.mark.parametrize("name, file", [("scivocab", "scivocab"), ("bio-electra-vocab", "bio_electra")])
def test_the_checksums_of_the_vocabularies_are_those_of_the_files_at_hand(real_data, tmp_path, name, file):
    [(address, _, blob)] = missing_files(name, tmp_path)
    content = (real_data / "vocab" / f"{file}.txt").read_bytes()
    assert git_blob(content).startswith(blob)
    assert name in data.PUBLISHED_FILES and address.endswith(".txt") and "//" not in address[8:]


def test_the_published_files_are_all_that_a_task_needs(tmp_path):
    for name, task in TASKS.items():
        files = missing_files(name, tmp_path)
        assert bool(files) == task.source.startswith((data.MIOLO, data.BIO_ELECTRA))
        for _, path, blob in files:
            write(path, "")
            assert path.parent == tmp_path / task.folder and re.fullmatch("[0-9a-f]{16}", blob)
        assert not missing_files(name, tmp_path)
        for split in data.SPLITS if files else ():
            # published, but with questions of the test batches
            if (name, split) != ("bioasq7b", "dev"):
                assert data.find_split(name, split, tmp_path)


# --- 7. A synthetic world ---

def test_one_sentence_on_paper():
    facts = {"drug": "vorax acetate", "gene": "sulol", "inhibits": "blocked", "site": "xanfais",
             "dose": "5 mg", "weeks": "9", "trial": "delin", "year": "1987"}
    written = {sentence.text: sentence for sentence in (
        data.write_sentence("inhibits", facts, random.Random(seed)) for seed in range(400))}
    sentence = written["Sulol was blocked by vorax acetate at xanfais in 1987."]
    assert sentence.tags == "B-Gene O O O B-Drug I-Drug O O O O O".split()
    assert sentence.anonymised == "@GENE$ was blocked by @DRUG$ at xanfais in 1987."
    assert sentence.questions == [("Which gene was blocked by vorax acetate?", "Sulol", 0),
                                  ("Where was vorax acetate tested?", "xanfais", 38),
                                  ("When was vorax acetate tested?", "1987", 49)]
    # Two templates, and each pair of five details in either order.
    assert {sentence.section for sentence in written.values()} == {"inhibits"} and len(written) == 2 * 5 * 4


@given(st.integers(0, 50), st.lists(st.integers(0, 10 ** 8), min_size=1, max_size=3))
@settings(max_examples=20)
def test_a_document_depends_on_seed_and_number_alone(seed, numbers):
    one, other = SyntheticWorld(seed), SyntheticWorld(seed)
    expected = [one.document(number) for number in numbers]
    assert [other.document(number) for number in reversed(numbers)] == expected[::-1]


def test_documents_and_worlds_differ():
    def texts(document):
        return tuple(sentence.text for sentence in document)

    world = SyntheticWorld(0)
    assert len({texts(world.document(number)) for number in range(500)}) > 490
    assert len({texts(SyntheticWorld(seed).document(7)) for seed in range(20)}) == 20


def test_the_corpus_reads_back_sentence_by_sentence(tmp_path):
    """The abstracts of every third round are whole; of the others each sentence is a document."""
    world, documents, size = SyntheticWorld(3), [], 5 * data.DRUGS
    for number in range(size):
        sentences = [sentence.text for sentence in world.document(number)]
        assert len(sentences) > 1
        is_whole = number // data.DRUGS in (0, 3)
        documents += [sentences] if is_whole else [[sentence] for sentence in sentences]
    assert list(read_documents(write(tmp_path / "c.txt", synthetic_corpus(size, seed=3)))) == documents
    assert {data.style_of(number) for number in (0, 3 * data.DRUGS)} == {0, 1}  # whole ones in both styles


def test_what_a_drug_does_and_does_not_do_are_different_things():
    """Otherwise a sentence with the relation false would deny what another one states."""
    for facts in SyntheticWorld(0).facts:
        targets = [facts[target] for targets, *_ in data.RELATIONS.values() for target in targets.split()]
        assert len(set(targets)) == len(targets) == 5


def test_every_statement_agrees_with_the_facts_of_its_drug():
    """The verb alone tells the relation, and it holds between the drug and what the sentence names."""
    world, seen = SyntheticWorld(0), set()
    for number in range(500):
        facts = world.facts[number % data.DRUGS]
        for sentence in world.document(number):
            text = sentence.text.lower()
            if sentence.section in data.RELATIONS:
                targets, verbs, _ = data.RELATIONS[sentence.section]
                [verb] = set(verbs.split()) & set(text.split())
                assert facts["drug"] in text and any(facts[target] in text for target in targets.split())
                assert (verb in verbs.split("|")[0]) == (data.style_of(number) == 0)
                seen.add(verb)
    verbs = [verb for _, verbs, _ in data.RELATIONS.values() for verb in verbs.replace("|", "").split()]
    assert sorted(seen) == sorted(verbs)                # each verb is written, and none has two meanings


def test_tags_cover_the_names_of_the_facts():
    world = SyntheticWorld(0)
    for number in range(300):
        names = {(world.facts[number % data.DRUGS][slot], kind) for slot, kind in data.ENTITY_TYPES.items()}
        for sentence in world.document(number):
            spans = re.findall(r"(B-\w+)((?: I-\w+)*)", " ".join(sentence.tags))
            starts = [place for place, tag in enumerate(sentence.tags) if tag[0] == "B"]
            for start, (first, rest) in zip(starts, spans, strict=True):
                name = " ".join(sentence.words[start:start + 1 + len(rest.split())]).lower()
                assert (name, first[2:]) in names
            # A name without a tag would be a wrong label.
            assert sum(sentence.text.lower().count(name) for name, _ in names) == len(starts)


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_demo_tags_are_iob2_over_the_tasks_labels(split):
    examples = read_task("demo-ner", split)
    assert {tag for example in examples for tag in example.tags} == set(TASKS["demo-ner"].labels)
    for words, tags in examples:
        assert len(words) == len(tags) > 0
        assert all(tag[0] != "I" or before[1:] == tag[1:] for before, tag in zip(["O", *tags], tags))


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_demo_relations_name_two_entities_and_a_label_of_the_task(split):
    examples = read_task("demo-re", split)
    assert {example.label for example in examples} == set(TASKS["demo-re"].labels)
    assert all(len(re.findall(r"@(?:DRUG|GENE|DISEASE)\$", example.text)) == 2 for example in examples)


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_demo_answers_stand_at_their_start_in_a_sentence_about_the_question(split):
    examples = read_task("demo-qa", split)
    assert len({example.id for example in examples}) == len(examples)
    for example in examples:
        [(text, start)] = example.answers
        assert text and example.context[start:start + len(text)] == text and example.question.endswith("?")
        assert not example.context[start + len(text)].isalnum() and not example.context[:start][-1:].isalnum()


@pytest.mark.parametrize("name", ["demo-ner", "demo-re", "demo-qa"])
def test_demo_splits_share_no_document_and_the_training_set_has_drugs_and_verbs_of_its_own(monkeypatch, name):
    document, asked = SyntheticWorld.document, []
    monkeypatch.setattr(SyntheticWorld, "document", lambda world, n: asked.append(n) or document(world, n))
    seen = {}
    for split in ("train", "dev", "test"):
        asked.clear()
        examples = read_task(name, split)
        assert examples == read_task(name, split)
        seen[split] = set(asked)
        assert len(examples) >= 100 and len(seen[split]) >= 10
    asked.clear()
    synthetic_corpus(200)
    seen["corpus"] = set(asked)
    assert all(seen[one].isdisjoint(seen[other]) for one, other in itertools.combinations(seen, 2))
    for part in (lambda number: number % data.DRUGS, data.style_of):
        assert {part(number) for number in seen["train"]}.isdisjoint(map(part, seen["dev"] | seen["test"]))


# --- 8. Command line ---

def command(*arguments, cwd=None):
    """Run data.py as a user would."""
    done = subprocess.run([sys.executable, str(ROOT / "data.py"), *map(str, arguments)], cwd=cwd,
                          capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


def test_shards_are_built_described_and_verified_from_the_command_line(tmp_path):
    corpus, _ = numbered_corpus(tmp_path, documents=120)
    NUMBERED.save(tmp_path)
    build = ("build", corpus, "--vocab", tmp_path / "vocab.txt", "--out", tmp_path / "shards",
             "--max-length", 32,
             "--workers", 1)
    status, built, _ = command(*build)
    assert status == 0
    index = json.loads((tmp_path / "shards" / "index.json").read_bytes())
    [entry] = index["shards"]
    words = len(corpus.read_text().split())
    assert (entry["words"], entry["wordpieces"], entry["unknown"]) == (words, words, 0)
    shards = open_shards(tmp_path / "shards")
    width = sum(min(width for width in bucket_widths(32) if width >= length) for length in shards.lengths)
    total = shards.lengths.sum()
    assert built == (
        f"120 documents, 480 sentences, {words:,} words\n"
        f"{words:,} wordpieces, 1.000 per word, 0.000% of them unknown\n"
        f"{len(shards.lengths):,} examples of at most 32 tokens, {total:,} together; "
        f"{len(shards.held_out)} examples held out\npadding {1 - total / width:.1%} in batches by length\n")
    assert command("info", tmp_path / "shards") == (
        0, f"{built}1 shards as they were built\n", "")
    assert command(*build)[:2] == (0, built)                        # complete: nothing to do, and said again
    build_shards([corpus], NUMBERED, tmp_path / "again", max_length=32, workers=1)
    again, first = contents(tmp_path / "again"), contents(tmp_path / "shards")
    assert again == first


def test_text_is_preprocessed_on_request_before_it_is_tokenized(tmp_path):
    from tokenizer import preprocess_bluebert
    lines = ["W1\u00e9's W2.", "w3 (w4)", "", "w5\u2013w6"]
    NUMBERED.save(tmp_path)
    for name, text in (("raw.txt", lines), ("done.txt", map(preprocess_bluebert, lines))):
        write(tmp_path / name, "\n".join(text) + "\n")
    for out, *arguments in (("plain", "raw.txt"), ("asked", "raw.txt", "--bluebert"), ("before", "done.txt")):
        status, _, said = command("build", tmp_path / arguments[0], *arguments[1:], "--vocab", tmp_path,
                                  "--out", tmp_path / out, "--workers", 1)
        assert status == 0, said
    plain, asked, before = ((tmp_path / out / "00000.tokens.npy").read_bytes()
                            for out in ("plain", "asked", "before"))
    assert asked == before != plain
    status, _, said = command("build", tmp_path / "raw.txt", "--vocab", tmp_path, "--out", tmp_path / "asked")
    assert status == 2 and "asked was built with another text" in said


@pytest.mark.parametrize("arguments, message", [
    ("build nowhere.txt --vocab vocab.txt --out shards", "nowhere.txt: no such file or folder"),
    ("build empty.txt --vocab vocab.txt --out shards --workers 1", "no text in"),
    ("build latin.txt --vocab vocab.txt --out shards --workers 1", "latin.txt line 1 byte"),
    ("build empty.txt --vocab empty.txt --out shards", "empty.txt: "),
    ("build empty.txt --vocab nowhere.txt --out shards", "nowhere.txt"),
    ("info .", "index.json: not there"), ("info nowhere", "nowhere/index.json: not there"),
    ("info damaged", "00000.starts.npy: truncated, damaged or edited")])
def test_wrong_input_gives_one_line_and_status_2(tmp_path, arguments, message):
    NUMBERED.save(tmp_path)
    write(tmp_path / "empty.txt", "\n")
    write(tmp_path / "latin.txt", b"caf\xe9\n")
    build_shards([write(tmp_path / "c.txt", "w1\n")], NUMBERED, tmp_path / "damaged", workers=1)
    write(tmp_path / "damaged" / "00000.starts.npy", b"")
    status, out, err = command(*arguments.split(), cwd=tmp_path)
    assert status == 2 and not out
    assert len(err.splitlines()) == 1 and err.startswith("error: ") and message in err


def test_an_unknown_command_gives_status_2():
    status, out, err = command("shard")
    assert status == 2 and not out and "invalid choice: 'shard'" in err


SENTENCES = "Aspirin inhibits COX-1.\nAspirin is a drug.\n\nIbuprofen inhibits COX-2.\n"


def test_help_names_every_command_and_the_options_of_learn():
    status, text, _ = command("--help")
    assert status == 0 and all(name in text for name in ("learn", "build", "info", "fetch"))
    status, text, _ = command("learn", "--help")
    assert status == 0
    assert all(word in text for word in ("CORPUS", "--size", "--out", "--cased", "for example"))


def test_learn_writes_a_vocabulary_with_its_casing(tmp_path):
    corpus = write(tmp_path / "corpus.txt", SENTENCES * 20)
    status, out, err = command("learn", corpus, "--size", 50, "--out", tmp_path / "out" / "vocab.txt",
                               "--cased")
    assert status == 0 and "50 of 50 pieces" in err
    assert out == f"{tmp_path}/out/vocab.txt: 50 pieces\n"
    learnt = Tokenizer.from_file(tmp_path / "out")
    assert not learnt.lowercase and learnt.tokenize("Aspirin inhibits") == ["Aspirin", "inhibits"]


def test_learn_replaces_no_file(tmp_path):
    corpus, mine = write(tmp_path / "in" / "c.txt", SENTENCES), write(tmp_path / "notes.txt", "mine\n")
    (tmp_path / "folder").mkdir()
    for out in (corpus, mine, tmp_path / "folder", "/dev/null", corpus.parent / "vocab.txt"):
        texts = corpus if out == corpus else corpus.parent
        status, _, err = command("learn", texts, "--size", "50", "--out", out)
        assert status == 2 and f"error: {out} " in err and "choose another --out" in err
    assert (corpus.read_text(), mine.read_text()) == (SENTENCES, "mine\n")
    assert [path.name for path in corpus.parent.iterdir()] == ["c.txt"]
    for present in ("vocab.txt", "tokenizer_config.json"):
        path = write(tmp_path / present[:5] / present, "{}")
        status, _, err = command("learn", corpus, "--size", "50", "--out", path.with_name("vocab.txt"))
        assert status == 2 and f"error: {path} is there already: choose another --out, or delete it" in err
        assert contents(path.parent) == {present: b"{}"}


def test_a_killed_learn_can_be_repeated(tmp_path, monkeypatch):
    """Whether it was killed before anything was written, or between the casing and the pieces."""
    corpus, out = write(tmp_path / "c.txt", SENTENCES), tmp_path / "out" / "vocab.txt"
    arguments = ["learn", str(corpus), "--size", "40", "--out", str(out)]
    write_bytes = tokenizer.write_bytes

    def killed(path, content):
        if path.name == "vocab.txt":
            raise KeyboardInterrupt
        write_bytes(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(tokenizer, "write_bytes", killed)
        assert data.run_command(lambda: data.main(arguments)) == 130
    assert [path.name for path in out.parent.iterdir()] == ["tokenizer_config.json"]
    with pytest.raises(ValueError, match="tokenizer_config.json is there already"):
        data.main([*arguments, "--cased"])
    assert data.main(arguments) == 0 and len(out.read_text().splitlines()) == 40


def test_learn_says_when_it_found_fewer_pieces_than_asked_for(tmp_path):
    corpus = write(tmp_path / "c.txt", SENTENCES)
    _, _, err = command("learn", corpus, "--size", "5000", "--out", tmp_path / "vocab.txt")
    pieces = len((tmp_path / "vocab.txt").read_text().splitlines())
    assert f"the vocabulary is complete with {pieces} pieces: in this corpus no other two stand" in err
    assert "min left" not in err and pieces < 100
    _, out, _ = command("learn", corpus, "--size", "40", "--out", tmp_path / "other" / "vocab.txt")
    assert "vocab.txt: 40 pieces\n" in out


@pytest.mark.parametrize("arguments", [
    ["learn", "", "--size", "50", "--out", "v.txt"], ["learn", "c.txt", "--size", "50", "--out", ""],
    ["build", "c.txt", "--vocab", "", "--out", "s"], ["build", "c.txt", "--vocab", "v.txt", "--out", ""],
    ["info", ""], ["fetch", "gad", "--data", ""]])
def test_an_empty_argument_of_a_command_is_refused(arguments):
    status, _, err = command(*arguments)
    assert status == 2 and "is empty: is a variable of the shell not set?" in err


def test_learn_gives_the_same_pieces_for_a_corpus_in_any_form(tmp_path, capsys):
    """Text, an archive of text, and PubMed's XML of the same sentences."""
    sentences = [line for line in SENTENCES.split("\n") if line]
    write(tmp_path / "text" / "c.txt", SENTENCES * 20)
    write(tmp_path / "tar" / "c.tar.gz", gzip.compress(tar([("c.txt", SENTENCES.encode() * 20)])))
    write(tmp_path / "xml" / "c.xml", pubmed(*[(5, "eng", sentence, "") for sentence in sentences * 20]))
    learnt = []
    for form in ("text", "tar", "xml"):
        assert data.main(["learn", str(tmp_path / form), "--size", "50", "--out",
                          str(tmp_path / "out" / form / "vocab.txt")]) == 0
        learnt.append((tmp_path / "out" / form / "vocab.txt").read_text())
    assert learnt[0] == learnt[1] == learnt[2]


@pytest.mark.parametrize("corpus, size, message", [
    ("none.txt", 60, "none.txt"), ("corpus.txt", 6, "size 6 is too small")])
def test_learn_refuses_wrong_input_in_one_line(tmp_path, corpus, size, message):
    write(tmp_path / "corpus.txt", "abc\n")
    status, _, err = command("learn", tmp_path / corpus, "--size", size, "--out", tmp_path / "vocab.txt")
    errors = [line for line in err.splitlines() if line.startswith("error: ")]     # progress may come before
    assert status == 2 and len(errors) == 1 and message in errors[0]
    assert not (tmp_path / "vocab.txt").exists()


def test_learn_interrupted_ends_with_status_130_and_writes_nothing(tmp_path, monkeypatch, capsys):
    def interrupt(*arguments):
        raise KeyboardInterrupt
    corpus = write(tmp_path / "corpus.txt", "abc abc\n")
    monkeypatch.setattr(tokenizer, "join_pair", interrupt)
    arguments = ["learn", str(corpus), "--size", "20", "--out", str(tmp_path / "v.txt")]
    assert data.run_command(lambda: data.main(arguments)) == 130
    assert "interrupted" in capsys.readouterr().err and list(tmp_path.iterdir()) == [corpus]


def test_fetching_from_the_command_line_names_what_is_there_and_knows_its_tasks(tmp_path):
    for _, path, _ in missing_files("gad", tmp_path):
        write(path, "")
    said = f"gad: nothing is missing in {tmp_path}\n"
    assert command("fetch", "gad", "--data", tmp_path) == (0, said, "")
    write(tmp_path / "own" / "dev.tsv", "")                 # a data set of one's own is fetched from nowhere
    status, _, err = command("fetch", "gad", "--data", tmp_path / "own")
    assert status == 2 and "gad: no train file in" in err
    status, out, err = command("fetch", "squad")
    assert status == 2 and not out and "invalid choice: 'squad'" in err


# --- 9. What is easily given instead of what is meant ---

def test_one_path_or_text_in_place_of_a_list_is_refused(tmp_path, tiny_tokenizer):
    """The letters of a path would be read as paths, and the first of them is the whole disk."""
    path, out = str(write(tmp_path / "a.txt", "Fever fell.")), tmp_path / "out"
    for call in (lambda: data.corpus_files(path), lambda: build_shards(path, tiny_tokenizer, out),
                 lambda: data.learn_vocabulary(path, 60, True), lambda: list(data.text_documents("Fever."))):
        with pytest.raises(ValueError, match="expected .*, found the text"):
            call()


@pytest.mark.parametrize("name, rows, message", [
    # a label before its sentence
    ("train.tsv", [f"treats\tDrug {n} heals ." for n in range(30)], "most labels differ, such as 'Drug 0 "),
    ("train.tsv", ["text\tlabel", "a b\tx", "Text\tLabel"], "line 3: expected 2 tab-separated columns"),
    ("train.tsv", ["a heals .\ttreats\rb met .\tnone"], "line 1: expected"),
    ("train.jsonl", ['{"text":\t"a b",\t"label":\t5.5}'], "'label' is 5.5"),
])
def test_rows_that_are_not_what_they_seem_are_refused(tmp_path, name, rows, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        data.read_labelled(write(tmp_path / name, "\n".join(rows) + "\n"))


def test_two_tags_in_one_column_are_refused(tmp_path):
    with pytest.raises(ValueError, match="line 1"):
        data.read_tagged(write(tmp_path / "train.txt", "IL-2 B-DNA|B-protein\n"))


def test_a_file_without_empty_lines_is_mentioned(tmp_path, capsys):
    assert len(data.read_tagged(write(tmp_path / "train.txt", "gout B-D\n" * 1001))[0].words) == 1001
    assert "one sentence has 1,001 words: are there empty lines" in capsys.readouterr().err


@pytest.mark.parametrize("stem", ["valid", "validation", "val"])
def test_a_development_file_has_the_names_that_people_give_it(tmp_path, stem):
    write(tmp_path / f"{stem}.tsv", "a b .\tx\n")
    assert read_task("re", "dev", tmp_path) == [LabelledText("0", "a b .", "x")]


def test_a_test_set_that_is_the_training_set_is_mentioned(tmp_path, capsys):
    for split in ("train", "test"):
        write(tmp_path / f"{split}.tsv", "a b .\tx\n")
    data.read_splits("re", tmp_path)
    assert "the training set and the test set are the same" in capsys.readouterr().err


def test_a_file_in_place_of_its_folder_is_named(tmp_path):
    path = write(tmp_path / "train.tsv", "a b .\tx\n")
    with pytest.raises(FileNotFoundError, match="is a file: pass the folder"):
        read_task("re", "train", path)


def test_the_splits_of_two_data_sets_are_not_mixed(tmp_path):
    """train.txt in the folder itself: then the published dev.txt below it belongs to another set."""
    write(tmp_path / "train.txt", "gout B-Disease\n")
    write(tmp_path / "ner" / "ncbi-disease" / "dev.txt", "gout O\n")
    assert data.find_split("ncbi-disease", "train", tmp_path) == [tmp_path / "train.txt"]
    assert data.find_split("ncbi-disease", "dev", tmp_path) == []
    (tmp_path / "train.txt").unlink()
    assert len(data.find_split("ncbi-disease", "dev", tmp_path)) == 1


def test_several_dumps_of_questions_in_one_file_are_refused(tmp_path):
    """Two files of SQuAD that were joined: the second one would be lost."""
    path = write(tmp_path / "train.json", (json.dumps({"data": []}) + "\n") * 2)
    with pytest.raises(ValueError, match="2 JSON objects: expected one"):
        data.read_questions(path)


def test_cut_text_and_a_vocabulary_that_does_not_fit_are_mentioned(tmp_path, tiny_tokenizer, capsys):
    for name, line, cut, unknown in (("whole", "the drug .", False, False), ("foreign", "βγδ .", False, True),
                                     ("long", "the drug " * 60, True, False)):
        text = write(tmp_path / f"{name}.txt", f"{line}\n\n" * 20)
        build_shards([text], tiny_tokenizer, tmp_path / name, 16, workers=1)
        said = capsys.readouterr().err
        assert said.endswith("1 file: 1 text\n")
        assert ("of the wordpieces are in no example" in said) == cut
        assert ("of the wordpieces are [UNK]" in said) == unknown


def test_a_path_with_a_line_end_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        data.main(["info", str(tmp_path / "a\nb")])
    assert "holds a line end" in capsys.readouterr().err
