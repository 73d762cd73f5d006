"""What each module may need, in a fresh interpreter, and the examples in the docstrings."""
import doctest
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LIBRARIES = {"tokenizer", "metrics", "data", "electramed"}
MODULES = LIBRARIES | {"train_pretrain", "train_finetune"}
# What no module needs when it is imported: peers, test tools, and what only one function of ours uses.
NEVER = {"transformers", "tokenizers", "safetensors", "seqeval", "nltk", "torch_xla", "matplotlib", "pytest",
         "hypothesis"}

# Imports sys.argv[1] where the packages in sys.argv[2:] are as good as not installed.
IMPORT = """
import importlib, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[2:]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
importlib.import_module(sys.argv[1])
"""

# Prints what an import of sys.argv[1] sets, beyond what the packages set that it needs.
SETTINGS = """
import importlib, locale, os, random, signal, sys
import numpy, regex, torch

def settings():
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    return (dict(os.environ), handlers, sys.getrecursionlimit(), locale.getlocale(), random.getstate(),
            torch.initial_seed(), torch.get_num_threads(), torch.get_default_dtype(), numpy.geterr(),
            torch.__future__.get_swap_module_params_on_conversion(), sys.excepthook)

before = settings()
importlib.import_module(sys.argv[1])
print(sum(one != other for one, other in zip(before, settings())))
"""


def import_without(module, absent, directory):
    return subprocess.run([sys.executable, "-c", IMPORT, module, *absent], capture_output=True, text=True,
                          cwd=directory, env={**os.environ, "PYTHONPATH": str(ROOT)})


@pytest.mark.parametrize("module, absent", [
    ("tokenizer", MODULES - {"tokenizer"} | {"torch", "numpy"}),
    ("metrics", MODULES - {"metrics"} | {"torch", "regex"}),
    ("data", MODULES - {"data", "tokenizer"} | {"torch"}),
    ("electramed", MODULES - {"electramed"} | {"regex"}),
    ("train_pretrain", {"train_finetune"}),
    ("train_finetune", set()),
])
def test_a_module_imports_without_what_it_must_not_need_and_does_no_work(module, absent, tmp_path):
    """No package too many, no output, no file written."""
    result = import_without(module, {*absent, *NEVER}, tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


def test_the_probe_hides_packages(tmp_path):
    result = import_without("numpy", {"numpy"}, tmp_path)
    assert result.returncode == 1 and "No module named 'numpy'" in result.stderr


@pytest.mark.parametrize("module", sorted(LIBRARIES))
def test_importing_a_library_sets_nothing(module):
    command = [sys.executable, "-c", SETTINGS, module]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (result.returncode, result.stdout) == (0, "0\n"), result.stderr


@pytest.mark.parametrize("module", sorted(LIBRARIES))
def test_the_docstring_of_a_library_begins_with_an_example_of_its_use_by_itself(module):
    text = importlib.import_module(module).__doc__
    first = doctest.DocTestParser().get_examples(text)[0]
    assert first.lineno < 12


@pytest.mark.parametrize("module", sorted(MODULES))
def test_the_examples_in_docstrings_run(module):
    assert doctest.testmod(importlib.import_module(module)).failed == 0
