"""Checks that the README keeps its word: its quick commands run, its options exist, its links work."""
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

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)

# Run one after the other in one folder; what the README marks with minutes or hours is not among them.
QUICK = [
    "python data.py learn pubmed/*.xml.gz --size 31000 --out vocab/vocab.txt",
    "python data.py build pubmed/*.xml.gz --min-pmid 10000000 --vocab vocab --max-length 512 --out shards",
    "python data.py info shards",
    "python data.py verify shards",
    "python train_finetune.py --task demo-ner",
    'echo "Sulloene slowed ganbael in adults." | '
    "python train_finetune.py --out runs/finetune/demo-ner --predict -",
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


def commands() -> list[list[str]]:
    """The script and the arguments of every call in the README, its loops and shell functions carried out."""
    blocks = [block for _, block in BLOCKS if re.match(r"(pip|python|torchrun|echo|for|\w+\(\)) |C=", block)]
    script = RECORDED + "".join(blocks)
    recorded = subprocess.run(["bash", "-c", script], env={"PATH": ""}, capture_output=True, text=True,
                              executable=shutil.which("bash")).stdout
    calls = [line.rstrip("\t").split("\t") for line in recorded.splitlines()]
    return [[word for word in call if word != "..."] for call in calls if call[0].endswith(".py")]


def test_every_command_of_the_readme_can_be_parsed():
    called = [call[0] for call in commands()]
    assert called.count("train_pretrain.py") >= 17 and called.count("train_finetune.py") >= 34
    for script, *arguments in commands():
        assert (ROOT / script).is_file()
        if script.startswith("train_"):
            trainer = importlib.import_module(script.removesuffix(".py"))
            trainer.complete(data.parse_options(trainer.Options, "", arguments))
        else:
            known = re.findall(r"\"(--[a-z-]+)\"", (ROOT / script).read_text())
            assert {word for word in arguments if word.startswith("--")} <= set(known), (script, arguments)


def test_links_lead_somewhere_and_pictures_are_small_and_well_formed():
    targets = re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", README)
    local = {first or second for first, second in targets if "://" not in first + second}
    assert {"electramed.py", ".github/sentence.svg"} <= local
    for target in local:
        assert (ROOT / target).exists(), target
    for picture in (ROOT / ".github").glob("*.svg"):
        assert ElementTree.parse(picture).getroot().tag.endswith("svg")
        assert picture.stat().st_size < 100_000 and str(picture.relative_to(ROOT)) in local


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder as after the main job, but that it ran twenty steps; and a small PubMed file."""
    folder = tmp_path_factory.mktemp("readme")
    for module in ROOT.glob("*.py"):
        shutil.copy(module, folder)
    (folder / "pubmed").mkdir()
    records = [RECORD.format(20_000_000 + number, *document.text.split(". ", 1)) for number in range(200)
               if ". " in (document := data.SyntheticWorld(0).document(number)).text]
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
    assert '"text": "Sulloene slowed ganbael in adults."' in printed


def test_the_python_example_runs_as_it_stands(place):
    (code,) = [block for language, block in BLOCKS if language == "python"]
    (place / "example.py").write_text(code)
    assert "tensor" in run_in(place, "python example.py")


def test_the_picture_follows_a_sentence_as_training_does(place, tmp_path, monkeypatch):
    text = "Sulloene slowed ganbael in adults and in children with fever."
    tokens = draw_pictures.follow(str(place / "runs" / "pretrain"), text, seed=1)
    assert [tokens[0].original, tokens[-1].original] == ["[CLS]", "[SEP]"]
    chosen = sum(token.is_chosen for token in tokens)
    assert chosen == min(round(0.15 * len(tokens)), int(0.155 * len(tokens)))
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
    (tmp_path / "curve.csv").write_text("step,f1,low,high\n10,20.5,18,23\n20,30,27,33\n")
    assert draw_pictures.main(["losses", str(place / "runs" / "pretrain"), "5.3"]) == 0
    curve = tmp_path / "curve.csv"
    assert draw_pictures.main(["scores", f"one={curve}", f"two={curve}"]) == 0
    for name in ("losses", "scores"):
        assert ElementTree.parse(tmp_path / f"{name}.svg").getroot().tag.endswith("svg")
