"""The command line: `pad distill`, `pad evaluate`, `pad align`, `pad demo`, `pad info`."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, fields
from typing import Annotated

from pad.config import DistillConfig
from pad.demo.config import DemoCommand
from pad.errors import Stopped, UserError
from pad.looking.config import AlignConfig
from pad.settings import Settings, read_settings, required
from pad.superb.config import TASKS, EvaluateConfig


@dataclass
class InfoCommand(Settings):
    """Say what is installed, what each backend serves, and on which devices."""


COMMANDS: dict[str, type[Settings]] = {
    "distill": DistillConfig,
    "evaluate": EvaluateConfig,
    "align": AlignConfig,
    "demo": DemoCommand,
    "info": InfoCommand,
}
_FORMS = {"evaluate": "One task is also given as: pad evaluate ic --data FOLDER (or er, or sf)."}
_EXTRAS = {"demo": "demo", "align": "demo"}  # the others: train


def _parse(arguments: list[str]) -> tuple[str, Settings]:
    """The command and its settings: defaults, then those of --config FILE, then the command line's."""
    import tyro

    defaults = {name: tyro.MISSING_NONPROP for name in COMMANDS}
    if arguments and arguments[0] in COMMANDS:
        command, options = arguments[0], list(arguments[1:])
        kind = COMMANDS[command]
        if command == "evaluate":
            _name_task(options)
        arguments = [command, *options]
        path = _take_config(arguments)
        if path is not None:
            values = read_settings(kind, path)
            missing = {name: tyro.MISSING for name in required(kind) if name not in values}
            defaults[command] = kind(**missing, **values)
    choices = tuple(
        Annotated[
            kind,
            tyro.conf.subcommand(
                name, default=defaults[name], prefix_name=False, description=f"{kind.__doc__} {_FORMS.get(name, '')}"
            ),
        ]
        for name, kind in COMMANDS.items()
    )
    union = choices[0]
    for choice in choices[1:]:
        union = union | choice
    found = tyro.cli(
        tyro.conf.OmitArgPrefixes[union],
        prog="pad",
        description="PAD distillation: a text encoder teaches a speech encoder. Every command but info also takes "
        "--config FILE, a YAML file of its settings; those on the command line win.",
        args=arguments,
    )
    return next(name for name, kind in COMMANDS.items() if type(found) is kind), found


def _name_task(arguments: list[str]) -> None:
    """`ic --data FOLDER` among the arguments says the same as `--ic FOLDER`; raises UserError for a part of it."""
    data = [place for place, argument in enumerate(arguments) if argument.partition("=")[0] == "--data"]
    words = [place for place in range(len(arguments)) if _is_word(arguments, place)]
    named = [place for place in words if arguments[place] in TASKS]
    expected = f"expected `pad evaluate TASK --data FOLDER` with one of {', '.join(TASKS)}"
    if data and len(named) != 1:
        got = ", ".join(repr(arguments[place]) for place in named or words[:1]) or "none"
        raise UserError(f"task: got {got}; {expected}")
    if named and not data and not {"--config", "--help", "-h"} & {*arguments}:
        raise UserError(f"data: --data is missing; {expected}")
    if named and data:
        task = arguments[named[0]]
        for place in data:
            arguments[place] = f"--{task}" + arguments[place][len("--data") :]
    for place in reversed(named):
        del arguments[place]


def _is_word(arguments: list[str], place: int) -> bool:
    """Whether an argument is neither an option nor the first value of one."""
    if arguments[place].startswith("-"):
        return False
    before = arguments[place - 1] if place else ""
    flags = {"--" + field.name.replace("_", "-") for field in fields(EvaluateConfig) if isinstance(field.default, bool)}
    return not before.startswith("-") or "=" in before or before in flags or before.replace("--no-", "--", 1) in flags


def _take_config(arguments: list[str]) -> str | None:
    """Take `--config FILE` out of the arguments."""
    for place, argument in enumerate(arguments):
        if argument == "--config":
            if place + 1 == len(arguments):
                raise UserError("config: expected a file after --config")
            path = arguments[place + 1]
            del arguments[place : place + 2]
            return path
        if argument.startswith("--config="):
            del arguments[place]
            return argument.partition("=")[2]
    return None


def _run(command: str, config: Settings) -> None:
    config.check()
    if command == "info":
        import pad_kernels.info

        print(pad_kernels.info.text(pad_kernels.info.report()))
        return
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if command == "distill":
        from pad.distill import distill
        from pad.progress import say

        say(f"the distilled student lies in {distill(config)}")
    elif command == "evaluate":
        from pad.superb.run import evaluate, table

        print(table(evaluate(config)))
    elif command == "align":
        from pad.looking.run import align_one

        print("drawn: " + ", ".join(str(path) for path in align_one(config)))
    else:
        from pad.demo.run import run_demo

        run_demo(config.quick, config.seed, config.output, config.recordings)


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the `pad` command.

    Gives 0 if all went well, 2 for input that it cannot work with, 128 + the signal's number when stopped by one.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command = next((argument for argument in arguments if argument in COMMANDS), "")
    try:
        command, config = _parse(arguments)
        _run(command, config)
    except UserError as error:
        return _fail(command, re.sub(r"\s+", " ", str(error)), 2)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get(command, "train")
        reason = f"the Python package {error.name!r} is missing; install it with: pip install 'pad-kernels[{extra}]'"
        return _fail(command, reason, 2)
    except OSError as error:
        return _fail(command, str(error), 1)
    except KeyboardInterrupt:
        return _fail(command, "stopped", 130)
    except Stopped as stopped:
        return _fail(command, str(stopped), 128 + stopped.number)
    return 0


def _fail(command: str, reason: str, code: int) -> int:
    print(f"pad {command}: error: {reason}" if code <= 2 else f"pad {command}: {reason}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
