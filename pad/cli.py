"""The command line: `pad distill`, `pad evaluate`, `pad align`, `pad demo`, `pad info`."""

from __future__ import annotations

import argparse
import errno
import inspect
import os
import re
import resource
import select
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Annotated, Any

from pad import __version__
from pad.align.command import ALIGN
from pad.demo.command import DEMO
from pad.distill.command import DISTILL
from pad.errors import Diverged, Stopped, UserError, missing_package, naming_output, shown
from pad.evaluate.command import EVALUATE
from pad.settings import Command, Options, Settings, one_of, read_settings, required


@dataclass
class InfoConfig(Settings):
    """Show what is installed, which backend implements each op, and on which devices."""


def _info(config: InfoConfig) -> None:
    import pad_kernels.info

    print(pad_kernels.info.text(pad_kernels.info.report()))


INFO = Command("info", InfoConfig, "train", _info)
COMMANDS = (DISTILL, EVALUATE, ALIGN, DEMO, INFO)

_NARROWEST = 40  # columns; in narrower terminals the help would never end
_MOST_DIGITS = 2**18  # a command line holds no more; what is too large is then said as of any number
_SECONDS_TO_END = 1.0
_LONGEST_REASON = 1000  # characters; a path alone may have thousands
_DESCRIPTION = """PAD distillation: a text encoder teaches a speech encoder.

pad COMMAND --help lists the options of a command; pad --version shows the version."""
_CONFIG_HELP = "--config FILE reads options from a YAML file; those on the command line win."


def _parse(arguments: list[str]) -> tuple[Command, Settings]:
    """The command and its settings: defaults, then those of --config FILE, then the command line's."""
    path, arguments = _take_config(arguments)
    if hasattr(sys, "set_int_max_str_digits"):
        sys.set_int_max_str_digits(_MOST_DIGITS)
    import tyro  # of the extra: the version is shown without it

    command = _named(arguments[:1])
    if command is None and arguments and not arguments[0].startswith("-"):
        raise UserError(f"got the command {shown(arguments[0])}; expected {one_of(each.name for each in COMMANDS)}")
    values: dict[str, Any] = {}
    if command is not None and path is not None:
        values = read_settings(command.settings, path)
    if command is not None and command.options is not None:
        _check_words(command.options, values, arguments[1:])

    # Before or after the name of a task: the options of `pad evaluate` stand in either place.
    style = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes, tyro.conf.CascadeSubcommandArgs)
    if command is None:
        commands = (
            Annotated[_options(each), tyro.conf.subcommand(each.name, prefix_name=False, description=_purpose(each))]
            for each in COMMANDS
        )
        every: Any = reduce(or_, commands)
        found: Any = tyro.cli(every, prog="pad", description=_DESCRIPTION, args=arguments, config=style)
        command = next(each for each in COMMANDS if type(found) is _options(each))
    else:
        kind = _options(command)
        missing = {name: tyro.MISSING for name in required(kind) if name not in values}
        found = tyro.cli(
            kind, default=kind(**missing, **values), prog=f"pad {command.name}", args=arguments[1:], config=style,
            description=_purpose(command) + ("" if command is INFO else f"\n{_CONFIG_HELP}"),
        )  # fmt: skip
    return command, found.settings() if isinstance(found, Options) else found


def _options(command: Command) -> Any:
    """The class of what a command takes on the command line."""
    return command.options or command.settings


def _purpose(command: Command) -> str:
    return inspect.cleandoc(_options(command).__doc__)


def _take_config(arguments: list[str]) -> tuple[str | None, list[str]]:
    """The file after --config and the other arguments; ends the program for --version."""
    parser = argparse.ArgumentParser("pad", add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", action="append", default=[])
    parser.add_argument("--version", action="version", version=f"pad {__version__}")
    try:
        found, rest = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise UserError("config: expected a file after --config") from error
    if len(found.config) > 1:
        raise UserError(f"config: expected --config once, got {len(found.config)} files: {', '.join(found.config)}")
    return next(iter(found.config), None), rest


def _named(arguments: list[str]) -> Command | None:
    """The first command that is named among the arguments."""
    by_name = {command.name: command for command in COMMANDS}
    return next((by_name[argument] for argument in arguments if argument in by_name), None)


def _check_words(options: type[Options], values: dict, arguments: list[str]) -> None:
    """Let the options say what is wrong with half a task, in plainer words than the parser's."""
    import tyro

    default = options(**{name: "" for name in required(options) if name not in values}, **values)
    style = (tyro.conf.OmitSubcommandPrefixes, tyro.conf.CascadeSubcommandArgs)
    with suppress(SystemExit):  # help, or a mistake that the parser itself reports
        found, unknown = tyro.cli(
            options, default=default, args=arguments, return_unknown_args=True, console_outputs=False, config=style
        )
        found.check_words(unknown, values)


def _check_folder() -> None:
    """Raise UserError if the current folder is gone; torch would end the process at its first product."""
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise UserError("the current folder is gone; expected one that exists") from error


def _run(command: Command, config: Settings) -> None:
    config.check()
    if command is not INFO:
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
    command.run(config)


class _Terminated(BaseException):
    """SIGTERM or SIGHUP: what has been begun is cleaned up, as after Ctrl-C."""

    def __init__(self, number: int):
        self.number = number


@contextmanager
def _ends_orderly() -> Iterator[None]:
    """Let signals that ask for an end raise an exception, and let nothing that a terminal lacks end a command."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell: >&-
            setattr(sys, name, open(os.devnull, "w"))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if shutil.get_terminal_size().columns < _NARROWEST:
        os.environ["COLUMNS"] = str(_NARROWEST)
    # Pictures are only written to files, whatever a notebook around has set for itself.
    os.environ["MPLBACKEND"] = "agg"

    def stop(number, frame):
        raise _Terminated(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:  # nohup ignores SIGHUP
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ran_out_of_memory(error: BaseException) -> bool:
    """Whether this is torch's error for memory that it did not get, on a CPU or on a GPU; or Python's for a thread."""
    reasons = ["can't allocate memory", "can't start new thread"]
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        reasons.append("could not create a primitive")  # oneDNN's word for it, and for other things
    return type(error).__name__ == "OutOfMemoryError" or any(reason in str(error) for reason in reasons)


def _reason_of_system(error: RuntimeError) -> str | None:
    """What the system lacked or did, in a line; None for an error that is not the system's."""
    line = str(error).partition("\n")[0].rstrip(". ")
    if _ran_out_of_memory(error):
        return f"out of memory: {line}"
    # Of torch's loader, not of what a worker has raised itself.
    return f"{line}; --resume goes on" if line.startswith(("DataLoader worker (pid", "Too many open files")) else None


def main(arguments: list[str] | None = None) -> int:
    """Run a `pad` command and return its exit code.

    0: success; 1: an error of the system, such as a full disk, or a run that diverged; 2: input that it cannot work
    with; 128 plus its number: the signal that stopped it.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command = _named(arguments)
    try:
        with _ends_orderly():
            _check_folder()
            command, config = _parse(arguments)
            _run(command, config)
            with naming_output():
                print(end="", flush=True)
    except UserError as error:
        reason = re.sub(r"\s+", " ", str(error))
        return _fail(command, f"error: {reason}", 2)
    except ImportError as error:
        # transformers says that one of its parts requires a package.
        if not isinstance(error, ModuleNotFoundError) and " requires " not in str(error):
            raise
        return _fail(command, f"error: {missing_package(error, 'train' if command is None else command.extra)}", 2)
    except BrokenPipeError as error:
        return _after_broken_pipe(command, error)
    except OSError as error:
        return _fail(command, f"error: {error}", 2 if error.errno == errno.ENAMETOOLONG else 1)
    except Diverged as error:
        return _fail(command, f"error: {error}", 1)
    except MemoryError:
        return _fail(command, "error: out of memory", 1)
    except RuntimeError as error:
        lack = _reason_of_system(error)
        if lack is None:
            raise
        return _fail(command, f"error: {lack}", 1)
    except KeyboardInterrupt:
        return _fail(command, "stopped", 130)
    except _Terminated as stopped:
        return _fail(command, f"stopped by {signal.Signals(stopped.number).name}", 128 + stopped.number)
    except Stopped as stopped:
        return _fail(command, str(stopped), 128 + stopped.number)
    return 0


def _after_broken_pipe(command: Command | None, error: BrokenPipeError) -> int:
    """`pad ... | head`: that nobody reads on is no error of the command."""
    try:
        output = sys.stdout.fileno()
        waiting = select.poll()
        waiting.register(output, 0)
        if not any(event & select.POLLERR for _, event in waiting.poll(0)):
            return _fail(command, f"error: {error}", 1)
        _discard(output)
    except (OSError, ValueError):
        pass
    return 128 + signal.SIGPIPE


def _discard(output: int) -> None:
    """What the interpreter could not flush at its end would change the exit code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)


def _fail(command: Command | None, reason: str, code: int) -> int:
    if len(reason) > _LONGEST_REASON:
        half = _LONGEST_REASON // 2
        reason = f"{reason[:half]} ... {reason[-half:]}"
    with suppress(OSError):  # of a terminal that is gone
        print(f"pad{f' {command.name}' if command else ''}: {reason}", file=sys.stderr)
    return code


def run() -> None:
    """The `pad` command: runs it and ends the process, soon after a signal.

    The interpreter alone would wait for the threads of a command that was stopped, as long as they take.
    """
    code = main()
    try:
        print(end="", flush=True)
    except OSError:
        _discard(sys.stdout.fileno())
    if code > 128:
        ending = threading.Timer(_SECONDS_TO_END, os._exit, [code])
        ending.daemon = True
        ending.start()
    sys.exit(code)


if __name__ == "__main__":
    run()
