"""The command line: `pad distill` and `pad demo`."""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import fields

from pad.config import DEFAULTS, DistillConfig
from pad.errors import UserError

_HELP = {
    "student": "wav2vec 2.0-like encoder: a transformers checkpoint folder or hub name",
    "teacher": "text encoder of the same width: a transformers checkpoint folder or hub name",
    "data": "folder of transcribed speech (LibriSpeech, transcripts.tsv, Sphinx, or a text per audio file)",
    "output": "new folder for checkpoints, settings and the distilled student",
    "preset": "objective: pad-glob, pad-tlocal, pad-slocal, ... (docs/training.md lists all)",
    "temperature": "of the soft alignment; 0 is the hard one (default: the preset's)",
    "teacher_layer": "hidden state of the teacher that gives the token embeddings, -1 the last",
    "center_teacher": "subtract the mean token embedding of the transcripts",
    "cache_teacher": "keep the teacher's outputs in memory after the first epoch",
    "max_steps": "optimizer steps; 0: as many as --epochs takes",
    "epochs": "passes over the data",
    "batch_size": "utterances in a batch",
    "gradient_accumulation": "batches in an optimizer step",
    "learning_rate": "peak learning rate of AdamW",
    "warmup_steps": "steps of linear warm-up, before the linear decay",
    "weight_decay": "of AdamW",
    "max_grad_norm": "norm to which gradients are clipped",
    "max_seconds": "leave out longer utterances",
    "freeze_feature_encoder": "do not train the student's convolutions",
    "precision": "float32, or autocast to bfloat16 or float16",
    "device": "auto (a GPU where there is one) or cpu",
    "workers": "processes that read audio, 0: the training process",
    "seed": "of the order of the data and of dropout",
    "log_every": "steps between lines of the log",
    "save_every": "steps between checkpoints",
    "keep_checkpoints": "how many checkpoints to keep",
    "resume": "go on from the last checkpoint in --output",
}
_TYPES = {"str": str, "int": int, "float": float, "float | None": float}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pad", description="PAD distillation: a text encoder teaches a speech encoder."
    )
    commands = parser.add_subparsers(dest="command", required=True)

    distill = commands.add_parser(
        "distill",
        help="distill a text encoder into a speech encoder",
        description="Distill a frozen text encoder into a speech encoder on a folder of transcribed speech.",
    )
    for field in fields(DistillConfig):
        option = "--" + field.name.replace("_", "-")
        text = _HELP[field.name]
        if field.type == "bool":
            distill.add_argument(option, action="store_true", help=text)
        elif field.name in ("student", "teacher", "data", "output"):
            distill.add_argument(option, required=True, help=text)
        else:
            default = DEFAULTS[field.name]
            shown = "" if default is None else f" (default: {default})"
            distill.add_argument(option, type=_TYPES[field.type], default=default, help=text + shown)

    demo = commands.add_parser(
        "demo",
        help="the whole method on synthetic speech, in minutes, without downloads",
        description="Synthesise speech, distill a small student and a control, judge both, write a report.",
    )
    demo.add_argument("--quick", action="store_true", help="a smaller run, under 90 s on two cores")
    demo.add_argument(
        "--seed", type=int, default=0, help="of the data, the weights and the training (default: 0)"
    )
    demo.add_argument(
        "--output", default="runs/demo", help="folder for report, pictures, student (default: runs/demo)"
    )
    demo.add_argument(
        "--recordings",
        help="folder of real recordings with word times (`python -m pad.demo.recordings FOLDER` fetches one)",
    )
    return parser


def _run(arguments: argparse.Namespace) -> None:
    values = dict(vars(arguments))
    command = values.pop("command")
    if command == "distill":
        config = DistillConfig(**values)
        config.check()
        from transformers.utils import logging

        from pad.distill import distill

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        print(f"the distilled student lies in {distill(config)}")
    else:
        from transformers.utils import logging

        from pad.demo.run import run_demo

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        run_demo(**values)


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the `pad` command: 0 if all went well, 2 for input that it cannot work with."""
    parsed = _parser().parse_args(arguments)
    try:
        _run(parsed)
    except UserError as error:
        message = re.sub(r"\s+", " ", str(error))
        print(f"pad {parsed.command}: error: {message}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        extra = "demo" if parsed.command == "demo" else "train"
        print(
            f"pad {parsed.command}: error: the Python package {error.name!r} is missing; "
            f"install it with: pip install 'pad-kernels[{extra}]'",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print(f"pad {parsed.command}: stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
