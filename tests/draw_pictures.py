"""Draw the README's pictures from what runs wrote: SVG below 100 kB in .github/.

    python tests/draw_pictures.py sentence runs/best "A sentence to follow through one step."
    python tests/draw_pictures.py scores 6.76 MLM=0-2:runs/mlm ELECTRA=0-2:runs/electra     # hours 0 to 2

The first needs only the packages of the project itself, the second matplotlib too.
"""
from __future__ import annotations

import html
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import data
from electramed import load_pretrained, mask_tokens, model_folder, replace_tokens, sample_tokens
from tokenizer import Tokenizer

PICTURES = Path(__file__).resolve().parent.parent / ".github"


# --- 1. A sentence through one step ---

class Followed(NamedTuple):
    """Hold one token on its way through a step."""

    original: str
    masked: str                 # what the generator reads
    sampled: str                # what the discriminator reads
    is_chosen: bool
    is_replaced: bool
    belief: float               # the discriminator's probability that it was replaced


def follow(run: str, text: str, seed: int) -> list[Followed]:
    """Mask a sentence, fill it in with the generator's samples, ask the discriminator about every token."""
    model, tokenizer = load_pretrained(run).eval(), Tokenizer.from_file(model_folder(run))
    ids = torch.tensor([[tokenizer.cls_id, *tokenizer.encode(text), tokenizer.sep_id]])        # (1, T)
    real, segments = torch.ones_like(ids), torch.zeros_like(ids)
    generator = torch.Generator().manual_seed(seed)
    masked = mask_tokens(ids, real, model.config, generator)
    with torch.no_grad():
        logits = model.generator_logits(masked.input_ids, real, segments)[0, masked.positions]     # (1, N, V)
        sampled = sample_tokens(logits.softmax(-1), masked.uniform)
        corrupted, is_replaced = replace_tokens(masked, sampled)                               # (1, T) both
        belief = model.discriminator_logits(corrupted, real, segments).sigmoid()
    is_chosen = torch.zeros_like(ids).scatter_add(1, masked.positions, masked.weights.long()) > 0
    rows = (ids, masked.input_ids, corrupted, is_chosen, is_replaced, belief)
    followed = []
    for original, seen, sampled_id, chosen, replaced, score in zip(*(row[0] for row in rows)):
        pieces = (tokenizer.pieces[int(token_id)] for token_id in (original, seen, sampled_id))
        followed.append(Followed(*pieces, bool(chosen), bool(replaced), float(score)))
    return followed


CHARACTER, ROW, LABEL, WIDTH = 7.3, 23, 92, 880         # pixels: of a character, a row, the row names, a line
NAMES = ("the text", "masked", "sampled", "judged")


def colour(belief: float) -> str:
    """Return the colour of a probability: white at 0, a strong orange at 1."""
    return "#" + "".join(f"{round(255 + (end - 255) * belief):02x}" for end in (240, 110, 30))


def sentence_svg(tokens: list[Followed], title: str) -> str:
    """Draw tokens in lines of four rows: as written, as the generator reads them, as replaced, as judged.

    Chosen tokens are bold; replaced ones are framed where they are judged.
    """
    parts, x, y, height = [], float(LABEL), 40, 4 * ROW + 18

    def write(x: float, y: float, text: str, style: str = "") -> None:
        parts.append(f'<text x="{x:.0f}" y="{y}" {style}>{html.escape(text)}</text>')

    write(8, 22, title, 'font-weight="bold"')
    for token in tokens:
        words = (token.original, token.masked, token.sampled, f"{100 * token.belief:.0f} %")
        width = CHARACTER * max(map(len, words)) + 10
        if x + width > WIDTH:
            x, y = float(LABEL), y + height
        if x == LABEL:
            for row, name in enumerate(NAMES):
                write(8, y + row * ROW + 16, name, 'fill="#777"')
        parts.append(f'<rect x="{x + 1:.0f}" y="{y + 3 * ROW}" width="{width - 2:.0f}" '
                     f'height="{ROW - 2}" rx="3" '
                     f'fill="{colour(token.belief)}" stroke="{"#a00000" if token.is_replaced else "#ddd"}" '
                     f'stroke-width="{2 if token.is_replaced else 1}"/>')
        for row, word in enumerate(words):
            is_bold = token.is_chosen and row < 3
            write(x + width / 2, y + row * ROW + 16, word,
                  'text-anchor="middle"' + (' font-weight="bold"' if is_bold else ""))
        x += width
    style = 'font-family="monospace" font-size="12" fill="#111"'
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH + 10}" height="{y + height}" {style}>'
            f'<rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n')


# --- 2. Curves ---

def read_columns(path: str | Path) -> dict[str, np.ndarray]:
    """Read the columns of a CSV file with a header, by name."""
    head, *rows = Path(path).read_text().splitlines()
    values = np.array([[float(value or "nan") for value in row.split(",")] for row in rows])
    return dict(zip(head.split(","), values.T))


# Below the picture stands what one has to know to read it.
CAPTION = """
Above: the models that the runs kept, each fine-tuned and tested; before the end of a run its learning rate is
still high, which costs a model points. Shaded: the 95 % interval over seeds, where there are several. Below
left: the discriminator (MLM has none). Below right: ELECTRA's curve is its narrow generator, a helper, and
MLM's the encoder itself: they are no rivals."""


def draw_scores(blind: float, runs: list[str]) -> Any:
    """Draw what runs were worth after so many hours: two test scores, the AUC, the masked-token loss.

    blind     nats, the unigram entropy
    runs      NAME=FROM-TO:RUN each, a run of train_pretrain.py from hour FROM to hour TO. RUN/eval.csv has
              its losses; RUN-ncbi-disease/curve.csv and RUN-ddi2013/curve.csv its scores (of --curve)
    returns   a matplotlib figure, whose text stays text
    """
    import matplotlib
    from matplotlib.figure import Figure
    # The same text gives the same file every time.
    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "electramed"}
    figure = Figure(figsize=(9.2, 6.8), layout="constrained")
    figure.supxlabel(CAPTION.strip(), x=0.05, horizontalalignment="left", fontsize=9)
    entities, relations, judged, guessed = figure.subplots(2, 2, sharex=True).flat
    for run in runs:
        name, begin, end, folder = re.fullmatch("(.+)=(.+)-(.+?):(.+)", run).groups()
        losses = read_columns(f"{folder}/eval.csv")
        hours_a_step = (float(end) - float(begin)) / losses["step"][-1]
        for axes, task in ((entities, "ncbi-disease"), (relations, "ddi2013")):
            scores = read_columns(f"{folder}-{task}/curve.csv")
            hours = float(begin) + hours_a_step * scores["step"]
            axes.plot(hours, scores["f1"], marker="o", markersize=3, label=name)
            axes.fill_between(hours, scores["low"], scores["high"], alpha=0.2)
            axes.set(title=f"{task}, test F1, percent")
        hours = float(begin) + hours_a_step * losses["step"]
        judged.plot(hours, losses["discriminator_auc"])                 # nan, and so no line, for MLM
        guessed.plot(hours, losses["mlm_loss"])
    entities.legend()
    judged.axhline(0.5, color="grey", linestyle="--")
    judged.set(xlabel="hours of one core", title="replaced-token AUC (dashed: chance)")
    guessed.axhline(blind, color="grey", linestyle="--")
    guessed.set(xlabel="hours of one core", title="masked-token loss, nats (dashed: blind)")
    return figure


def main(arguments: list[str]) -> int:
    """Draw one picture; return the exit status."""
    match arguments:
        case ["sentence", run, text]:
            tokens = follow(run, text, seed=2)          # a draw in which four words are replaced
            svg = sentence_svg(tokens, "one step of replaced-token detection, token by token")
            data.write_bytes(PICTURES / "sentence.svg", svg.encode())
        case ["scores", blind, *runs] if runs:
            draw_scores(float(blind), runs).savefig(PICTURES / "scores.svg", metadata={"Date": None})
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
