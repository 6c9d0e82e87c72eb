"""Which layers of a speech encoder look at speech, told without labels: `python -m benchmarks.prior_layers`.

For each layer of Whisper tiny.en as it comes, over the dev speech of the quality benchmark:
share of the prior on the heaviest twentieth of the frames (a sink has much), entropy over log M (a sink has little),
mean rank correlation with the other layers (a sink agrees with none), and the mean prior of voiced frames over that of
silent ones, 25 dB below the loudest (a sink is below 1).
"""

import argparse
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor

from benchmarks import accelerator, machine, quality_drawings, results, tables
from benchmarks.quality_corpus import Speech, build, inputs_of, packaged_encoder
from benchmarks.quality_run import voiced
from pad import record_significance
from pad.students import load_student

HEAVIEST = 0.05
COLUMNS = quality_drawings.PRIOR_LAYERS


def describe(priors: Tensor, is_voiced: Tensor) -> dict[str, Tensor]:
    """The figures of each layer [L] for one utterance: priors [L, M], which sum to 1, and voiced frames [M] bool."""
    layers, frames = priors.shape
    heaviest = priors.sort(dim=1, descending=True).values[:, : max(1, round(HEAVIEST * frames))].sum(dim=1)
    entropy = -torch.special.xlogy(priors, priors).sum(dim=1) / torch.log(torch.tensor(float(frames)))
    ranks = priors.argsort(dim=1).argsort(dim=1).double()
    agreement = (torch.corrcoef(ranks).sum(dim=1) - 1) / (layers - 1)
    ratio = torch.full((layers,), torch.nan)
    if is_voiced.any() and not is_voiced.all():
        ratio = priors[:, is_voiced].mean(dim=1) / priors[:, ~is_voiced].mean(dim=1)
    return {"heaviest": heaviest, "entropy": entropy, "agreement": agreement, "voiced": ratio}


@torch.no_grad()
def measure(encoder, speech: Speech, batch_size: int = 16) -> list[dict]:
    """A row for each layer: means over the utterances."""
    encoder.eval()
    found: dict[str, list[Tensor]] = {name: [] for name in COLUMNS}
    numbers = list(range(len(speech.items)))
    for first in range(0, len(numbers), batch_size):
        inputs, mask = inputs_of(speech, numbers[first : first + batch_size])
        with record_significance(encoder, mask) as record:
            encoder(**inputs)
        is_voiced = voiced(inputs["input_features"])
        for row, real in enumerate(mask):
            for name, values in describe(record.layer_priors()[:, row, real], is_voiced[row, real]).items():
                found[name].append(values)
    means = {name: torch.stack(values).nanmean(dim=0) for name, values in found.items()}
    layers = len(next(iter(means.values())))
    return [
        {"layer": layer, **{name: float(values[layer]) for name, values in means.items()}} for layer in range(layers)
    ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/quality"), help="of the speech and the encoder")
    parser.add_argument("--recordings", type=Path, default=Path("runs/recordings"))
    parser.add_argument("--output", type=Path, default=results.FOLDER / "prior_layers.json")
    arguments = parser.parse_args()
    checkpoint = packaged_encoder(arguments.folder)
    corpus = build(arguments.folder / "speech.pt", checkpoint, arguments.recordings)
    encoder = load_student(str(checkpoint)).encoder
    sources = {"synthetic": "free-dev", "prompts": "prompts-dev"}
    content = {
        "machine": machine.describe(accelerator.Cpu(), torch.get_num_threads()),
        "sources": {source: measure(encoder, corpus[name]) for source, name in sources.items()},
    }
    console = tables.make_console()
    for source, rows in content["sources"].items():
        table = Table("layer", *COLUMNS.values(), title=source)
        for row in rows:
            table.add_row(str(row["layer"]), *(f"{row[name]:.3f}" for name in COLUMNS))
        console.print(table)
    results.write_json(arguments.output, content)
    print(f"written: {arguments.output}")


if __name__ == "__main__":
    main()
