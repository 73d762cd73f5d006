"""Checks that README.md and RESULTS.md keep their word: commands parse, the quick ones run, links work."""
import argparse
import dataclasses
import gzip
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

import data
import draw_pictures
import tokenizer
import train_pretrain

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
RECORD_FILE = Path(__file__).with_name("RESULTS.md")
RESULTS = RECORD_FILE.read_text()
A_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
BLOCKS = A_BLOCK.findall(README)
# How a line of the shell begins, beside the output that a block may show below its commands.
WORDS = "|".join(["pip", "python", "torchrun", "echo", "for", *re.findall(r"^(\w+)\(\) \{", RESULTS, re.M)])
A_COMMAND = re.compile(rf"({WORDS}) |done\b|\w+\(\) |[A-Z_]+=|    \S")
A_REDIRECTION = re.compile(r" > \S+")      # the recorded commands write no files

# Run one after the other in one folder; what the README marks with minutes or hours is not among them.
SENTENCE = "Patients with sulfais took xanfaol at 25 mg."
QUICK = [
    "python data.py learn pubmed/*.xml.gz --size 2000 --out vocab/vocab.txt",
    "python data.py build pubmed/*.xml.gz --min-pmid 10000000 --vocab vocab --max-length 512 --out shards",
    "python data.py info shards",
    "python train_finetune.py --task demo-ner",
    f'echo "{SENTENCE}" | python train_finetune.py --out runs/finetune/demo-ner --predict -',
]

PUBMED = """<PubmedArticleSet>{}</PubmedArticleSet>"""
RECORD = """<PubmedArticle><MedlineCitation><PMID>{}</PMID><Article><ArticleTitle>{}</ArticleTitle>
<Abstract><AbstractText>{}</AbstractText></Abstract></Article></MedlineCitation></PubmedArticle>"""


# In place of the programs: what they are called with, one call a line, as the shell expands it.
RECORDED = """
pip() { :; }
python() { printf '%s\\t' "$@"; printf '\\n'; }
torchrun() { while [[ $1 != *.py ]]; do shift; done; python "$@"; }
"""


def commands(text: str) -> list[list[str]]:
    """Return script and arguments of every call in a Markdown text; loops and functions are carried out."""
    blocks = [block for language, block in A_BLOCK.findall(text) if not language]
    lines = [line for block in blocks for line in block.splitlines() if A_COMMAND.match(line)]
    script = A_REDIRECTION.sub("", RECORDED + "\n".join(lines))
    recorded = subprocess.run(["bash", "-c", script], env={"PATH": ""},
                              capture_output=True, text=True, executable=shutil.which("bash"))
    assert not recorded.stderr
    calls = [line.rstrip("\t").split("\t") for line in recorded.stdout.splitlines()]
    return [[word for word in call if word != "..."] for call in calls if call[0].endswith(".py")]


def python_blocks() -> list[str]:
    """Return the Python programs of the README."""
    return [block for language, block in BLOCKS if language == "python"]


class Parsed(Exception):
    """Raised in place of what a program would do after it has parsed its options."""


def parse_only(monkeypatch) -> None:
    """Let every parser of options end with Parsed."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser, *arguments):
        parse(parser, *arguments)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)


@pytest.mark.parametrize("text, least", [
    (README, {"train_pretrain.py": 5, "train_finetune.py": 6, "data.py": 4}),
    (RESULTS, {"train_pretrain.py": 11, "train_finetune.py": 36, "data.py": 7, "tests/bench_pretrain.py": 4}),
], ids=["README.md", "RESULTS.md"])
def test_every_command_can_be_parsed(text, least, monkeypatch):
    called = [script for script, *_ in commands(text)]
    found = {script: called.count(script) for script in least}
    assert all(found[script] >= number for script, number in least.items()), found
    for script, *arguments in commands(text):
        assert (ROOT / script).is_file(), script
        if script.startswith("train_"):
            trainer = importlib.import_module(script.removesuffix(".py"))
            trainer.complete(train_pretrain.parse_options(trainer.Options, "", arguments))
        elif script == "data.py":
            with monkeypatch.context() as patch, pytest.raises(Parsed):
                parse_only(patch)
                data.main(arguments)
        else:       # benchmarks set how threads wait when they are imported: their options are looked up
            source = (ROOT / script).read_text()
            known = re.findall(r"\"(--[a-z-]+)\"", source)
            if "parse_options(train_pretrain.Options" in source:
                names = [field.name for field in dataclasses.fields(train_pretrain.Options)]
                known += ["--" + name.replace("_", "-") for name in names]
            assert {word for word in arguments if word.startswith("--")} <= set(known), (script, arguments)


def test_links_lead_somewhere_and_pictures_are_small_and_well_formed():
    local = set()
    for text, folder in ((README, ROOT), (RESULTS, RECORD_FILE.parent)):
        targets = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
        local |= {(folder / target).resolve() for target in targets}
    assert {ROOT.resolve() / name for name in ("electramed.py", ".github/sentence.svg")} <= local
    for target in local:
        assert target.exists(), target
    for picture in (ROOT / ".github").glob("*.svg"):
        assert ElementTree.parse(picture).getroot().tag.endswith("svg")
        assert picture.stat().st_size < 100_000 and picture.resolve() in local


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder as after the main job, but that it ran twenty steps; and a small PubMed file."""
    folder = tmp_path_factory.mktemp("readme")
    for module in ROOT.glob("*.py"):
        shutil.copy(module, folder)
    (folder / "pubmed").mkdir()
    documents = [data.SyntheticWorld(0).document(number) for number in range(200)]
    records = [RECORD.format(20_000_000 + number, title.text[:-1], " ".join(one.text for one in rest))
               for number, (title, *rest) in enumerate(documents)]
    (folder / "pubmed" / "one.xml.gz").write_bytes(gzip.compress(PUBMED.format("".join(records)).encode()))
    run_in(folder, "python train_pretrain.py --steps 20 --eval-every 10")
    return folder


def run_in(folder: Path, command: str) -> str:
    """Run a line of the shell; returns what it prints."""
    command = re.sub(r"\bpython\b", shlex.quote(sys.executable), command, count=1)
    environment = {name: value for name, value in os.environ.items()
                   if name not in ("PYTHONPATH", "ELECTRAMED_DATA")}
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_quick_commands_run_as_they_stand(place):
    for command in QUICK:
        is_in_block = any(command in block.replace("\\\n", "") for _, block in BLOCKS)
        assert is_in_block or f"`{command}`" in README, command
        printed = run_in(place, command)
        assert printed, command
    assert f'"text": "{SENTENCE}"' in printed


def test_the_sentence_is_about_a_drug_and_what_it_treats():
    """So --predict has something to find, in the made-up world of the main job."""
    facts = [fact for fact in data.SyntheticWorld(0).facts if fact["drug"] in SENTENCE]
    assert [fact["disease"] in SENTENCE and fact["dose"] in SENTENCE for fact in facts] == [True]


def test_the_twenty_lines_print_what_stands_below_them(tmp_path):
    """Their last digits differ from machine to machine."""
    code, (_, shown) = python_blocks()[0], BLOCKS[1]
    (tmp_path / "twenty.py").write_text(code)
    for module in ROOT.glob("*.py"):
        shutil.copy(module, tmp_path)
    printed = run_in(tmp_path, "python twenty.py")
    numbers = re.compile(r"\d+\.\d+")
    assert numbers.sub("", printed) == numbers.sub("", shown)
    pairs = zip(map(float, numbers.findall(printed)), map(float, numbers.findall(shown)), strict=True)
    assert all(abs(found - told) < 0.06 for found, told in pairs), printed


@pytest.mark.parametrize("file, line", [
    ("electramed.py", "return (cumulative > point)"),
    ("electramed.py", "Generator(self.generator_config, self.discriminator.electra.embeddings)"),
    ("electramed.py", "(input_ids, attention_mask, token_type_ids)[:, 0]"),
    ("train_pretrain.py", "batch.masked.weights.bool(), batch.attention_mask.bool()"),
    ("train_finetune.py", "class Kind:"),
    ("tests/test_train_finetune.py", "def test_a_sixth_kind_is_one_class_and_three_names"),
])
def test_the_course_changes_lines_that_are_there(file, line):
    assert (ROOT / file).read_text().count(line) == 1


def test_the_first_exercise_comes_out_as_the_course_says():
    texts = ["low"] * 5 + ["lower"] * 2 + ["newest"] * 6 + ["widest"] * 3
    pieces = tokenizer.learn_vocab(texts, 26)
    told = re.search(r"##es,.*?widest", README, re.DOTALL)[0]
    assert re.split(r",\s+", told) == pieces[16:]
    spelled = tokenizer.Tokenizer(pieces).tokenize("lowest newer slow")
    assert spelled == "low ##est n ##ew ##e ##r [UNK]".split()


def test_the_readme_is_an_entrance():
    """200 lines of 120 characters, not counting what commands print."""
    outputs = [block for language, block in BLOCKS if " nats" in block and not language]
    shown = sum(output.count("\n") for output in outputs)
    lines = [line for line in README.splitlines() if not line.startswith(("{", "# ["))]
    assert len(lines) - shown <= 200
    assert [line for line in lines if len(line) > 120] == []


def test_the_python_example_runs_as_it_stands(place):
    code = python_blocks()[1]
    (place / "example.py").write_text(code)
    printed = run_in(place, "python example.py")
    assert re.match(r"\[CLS\] [01]\.\d\d ", printed) and printed.count(" ") > 20


def test_the_picture_follows_a_sentence_as_training_does(place, tmp_path, monkeypatch):
    text = "Xanfaol eased sulfais in the ganol trial and patients felt better."
    tokens = draw_pictures.follow(str(place / "runs" / "pretrain"), text, seed=1)
    assert [tokens[0].original, tokens[-1].original] == ["[CLS]", "[SEP]"]
    chosen = sum(token.is_chosen for token in tokens)
    assert chosen == max(1, round(0.15 * len(tokens)))
    for token in tokens:
        assert token.is_replaced == (token.sampled != token.original)
        assert token.is_chosen or token.original == token.masked == token.sampled
        assert token.masked in (token.original, "[MASK]") and 0 < token.belief < 1
    monkeypatch.setattr(draw_pictures, "PICTURES", tmp_path)
    assert draw_pictures.main(["sentence", str(place / "runs" / "pretrain"), text]) == 0
    root = ElementTree.parse(tmp_path / "sentence.svg").getroot()
    drawn = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert drawn.count("[CLS]") == 3 and drawn.count("judged") >= 1


def test_curves_are_drawn_from_what_runs_wrote(place, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: no curves")
    monkeypatch.setattr(draw_pictures, "PICTURES", tmp_path)
    shutil.copytree(place / "runs" / "pretrain", tmp_path / "run")
    for task, row in (("ncbi-disease", "350,20.5,18,23"), ("ddi2013", "350,20.5,,")):      # three seeds, one
        (tmp_path / f"run-{task}").mkdir()
        (tmp_path / f"run-{task}" / "curve.csv").write_text(f"step,f1,low,high\n{row}\n")
    run = f"0-0.5:{tmp_path / 'run'}"
    assert draw_pictures.main(["scores", "5.3", f"one={run}", f"two={run}"]) == 0
    root = ElementTree.parse(tmp_path / "scores.svg").getroot()
    drawn = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"one", "two", "ncbi-disease, test F1, percent", "ddi2013, test F1, percent"} <= set(drawn)
