"""Measure text to shards: speed per core, speed-up by a second worker, memory, and hours for 26 GB of text.

    python tests/bench_shards.py [MEGABYTES] [--vocab FILE] [--bluebert]

Makes a file of that size (default 128) from PubMed abstracts where ELECTRAMED_DATA is set, otherwise from the
synthetic corpus, and shards it at length 512. Run by hand, on a machine that does nothing else.
"""
import argparse
import itertools
import multiprocessing
import os
import resource
import tempfile
import time
from pathlib import Path

import data
import tokenizer as wordpieces

CORPUS = 26e9           # bytes of ELECTRAMed's corpus


def write_text(path, size):
    """Write whole documents until there are `size` bytes; the same ones again where there are too few."""
    folder = os.environ.get("ELECTRAMED_DATA")
    if folder:
        documents = data.read_documents(Path(folder, "pretrain", "corpus", "pubmed_abstracts-00.txt.xz"))
        text = "".join("\n".join(document) + "\n\n" for document in documents).encode()
    else:
        text = data.synthetic_corpus(40_000).encode()
    with open(path, "wb") as file:
        for _ in range(int(size // len(text))):
            file.write(text)
        file.write(text[:text.rfind(b"\n\n", 0, int(size % len(text))) + 2])


def load_tokenizer(path, text):
    """The vocabulary given, SciVocab where the real data is, or one learnt on the text."""
    folder = os.environ.get("ELECTRAMED_DATA")
    if path or folder:
        return wordpieces.Tokenizer.from_file(path or Path(folder, "vocab", "scivocab.txt"))
    documents = itertools.islice(data.read_documents(text), 20_000)
    return wordpieces.Tokenizer(wordpieces.learn_vocab((s for document in documents for s in document),
                                                       8_000))


def measure(corpus, tokenizer, out, workers, reading):
    """Build once and record the seconds; in a process of its own, so that no memory is counted twice."""
    began = time.perf_counter()
    data.build_shards([corpus], tokenizer, out, max_length=512, workers=workers, reading=reading)
    seconds = time.perf_counter() - began
    peaks = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF,
                                                                  resource.RUSAGE_CHILDREN)]
    rate = corpus.stat().st_size / 1e6 / seconds / workers
    print(f"{workers} worker{'s'[:workers - 1]}: {seconds:.1f} s, {rate:.2f} MB/s a core; "
          f"peak resident memory {peaks[0]:.0f} MB in the first process"
          + (f", {peaks[1]:.0f} MB in the largest worker" if workers > 1 else ""), flush=True)
    (out / "seconds").write_text(str(seconds))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("megabytes", nargs="?", type=float, default=128)
    parser.add_argument("--vocab")
    parser.add_argument("--bluebert", action="store_true")
    options = parser.parse_args()
    reading = data.Reading(preprocess=wordpieces.preprocess_bluebert) if options.bluebert else data.Reading()
    context, seconds = multiprocessing.get_context("spawn"), []
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder, "corpus.txt")
        write_text(corpus, options.megabytes * 1e6)
        tokenizer = load_tokenizer(options.vocab, corpus)
        for workers in (1, 2):
            out = Path(folder, str(workers))
            process = context.Process(target=measure, args=(corpus, tokenizer, out, workers, reading))
            process.start()
            process.join()
            seconds.append(float((out / "seconds").read_text()))
        print(data.describe_shards(data.open_shards(out)))
        same = all(file.read_bytes() == (out / file.name).read_bytes()
                   for file in Path(folder, "1").glob("*.npy"))
        print(f"2 workers are {seconds[0] / seconds[1]:.2f} times as fast as 1; the same files: {same}")
        size = corpus.stat().st_size
        print(f"26 GB would take {CORPUS / size * seconds[0] / 3600:.2f} h with 1 worker, "
              f"{CORPUS / size * seconds[1] / 3600:.2f} h with 2")


if __name__ == "__main__":
    main()
