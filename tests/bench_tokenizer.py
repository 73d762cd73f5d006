"""Compare the speed of tokenizer.py with that of the `tokenizers` package, both on one thread.

    python tests/bench_tokenizer.py               # a sample of 40 MB: real text where ELECTRAMED_DATA is set
    python tests/bench_tokenizer.py --megabytes 254 --rounds 1      # all of it

The two take turns, one batch of 1,000 lines each, so that whatever else the machine does slows down both.
Every round starts with empty caches. Ids and offsets are compared, offsets on every fourth batch.
"""
import argparse
import gc
import lzma
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

# read when the package is imported
os.environ.update(RAYON_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
import tokenizers

import data
from tokenizer import Tokenizer, learn_vocab

BATCH = 1000    # lines


def read_lines(megabytes):
    """Lines of together about so many MB: blocks of them from everywhere in the corpus."""
    root = os.environ.get("ELECTRAMED_DATA")
    if root is None:
        lines = data.synthetic_corpus(int(megabytes * 1200)).split("\n")
    else:
        paths = sorted(Path(root, "pretrain", "corpus").glob("*.txt.xz"))
        lines = "\n".join(lzma.open(path).read().decode() for path in paths).split("\n")
    lines = [line.strip() for line in lines if line.strip()]
    keep = min(1.0, megabytes * 1e6 / sum(len(line.encode()) + 1 for line in lines))
    block = 10 * BATCH
    return [line for start in range(0, len(lines), block)
            for line in lines[start:start + round(block * keep)]]


def compare(path, lowercase, batches, rounds):
    """Print the medians over the rounds, and the lines that differ; returns how many do."""
    theirs = tokenizers.BertWordPieceTokenizer(str(path), lowercase=lowercase)
    theirs._tokenizer.encode_special_tokens = True    # "[MASK]" in a text is text
    speeds = {"ids": [], "offsets": []}
    differing = set()
    for _ in range(rounds):
        ours = Tokenizer.from_file(path, lowercase)
        programs = {
            "ids": (ours.encode_batch,
                    lambda batch: [found.ids for found in theirs._tokenizer.encode_batch_fast(
                        batch, add_special_tokens=False)]),
            "offsets": (lambda batch: list(map(ours.encode_with_offsets, batch)),
                        lambda batch: [(found.ids, found.offsets) for found in theirs.encode_batch(
                            batch, add_special_tokens=False)])}
        for name, pair in programs.items():
            chosen = batches if name == "ids" else batches[::4]
            seconds = [0.0, 0.0]
            for batch in chosen:
                results = []
                for index, program in enumerate(pair):
                    start = time.perf_counter()
                    results.append(program(batch))
                    seconds[index] += time.perf_counter() - start
                differing.update(line for line, one, other in zip(batch, *results) if one != other)
            size = sum(len(line.encode()) + 1 for batch in chosen for line in batch) / 1e6
            speeds[name].append([size / each for each in seconds])
    for name, measured in speeds.items():
        our_speed, their_speed = map(statistics.median, zip(*measured))
        ratio = statistics.median(one / other for one, other in measured)
        print(f"{path.stem:11} {name:7} {our_speed:5.1f} MB/s, the package {their_speed:4.1f} MB/s: "
              f"{ratio:.1f} times",
              flush=True)
    for line in sorted(differing):
        print("differs:", ascii(line[:200]))
    return len(differing)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    lines = read_lines(options.megabytes)
    batches = [lines[start:start + BATCH] for start in range(0, len(lines), BATCH)]
    gc.collect()
    gc.freeze()    # a corpus is streamed as a rule, not held in lists that each collection goes through
    size = sum(len(line.encode()) + 1 for line in lines) / 1e6
    print(f"{len(lines):,} lines, {size:.1f} MB; median of {options.rounds} rounds")
    if "ELECTRAMED_DATA" in os.environ:
        folder = Path(os.environ["ELECTRAMED_DATA"], "vocab")
        differing = compare(folder / "scivocab.txt", True, batches, options.rounds)
        differing += compare(folder / "bio_electra.txt", False, batches, options.rounds)
    else:
        with tempfile.TemporaryDirectory() as folder:
            Tokenizer(learn_vocab(lines, 2000)).save(folder)
            differing = compare(Path(folder, "vocab.txt"), True, batches, options.rounds)
    print(f"{differing} lines differ")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
