"""What a command of `pad` is, and its settings: a dataclass that is read from YAML, checked, and saved with a run."""

from __future__ import annotations

import difflib
import math
import os
import types
import typing
from collections.abc import Callable, Collection, Iterable
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from pad.errors import UserError, reason, shown
from pad.files import holds_output, refusing_output, try_folder, write_text

# In the output folder of every command that can resume.
SETTINGS_FILE = "config.yaml"

LARGEST = 2**31 - 1  # of sizes and counts
LARGEST_SEED = 2**32 - 1  # numpy's
MOST_WORKERS = 1024


@dataclass
class Settings:
    """Base of the settings of each command; `paths` names those that may begin with ~, the user's home."""

    paths: ClassVar[tuple[str, ...]] = ()

    def check(self) -> None:
        """Raise UserError that names a setting whose value makes no sense; a ~ becomes the home it stands for."""
        declared = typing.get_type_hints(type(self))
        for each in fields(self):
            value, choices = getattr(self, each.name), _choices(declared[each.name])
            if choices:
                self.expect(each.name, value in choices, one_of(choices))
            if isinstance(value, str):
                self.expect(each.name, "\0" not in value, "a text without NUL characters")
                if each.name in self.paths:
                    self.expect(each.name, value != "" or each.default == "", "a path or a name")  # "" is no folder
                    setattr(self, each.name, os.path.expanduser(value))

    def expect(self, name: str, holds: bool, expected: str) -> None:
        """Raise UserError that names a setting and its value unless `holds`."""
        if not holds:
            raise UserError(f"{name}: expected {expected}, got {shown(getattr(self, name))}")

    def expect_from(self, names: Iterable[str], least: int, most: int = LARGEST) -> None:
        """Raise UserError unless each of these settings is finite and from `least` to `most`."""
        for name in names:
            self.expect(name, getattr(self, name) >= least, f"at least {least}" if least else "0 or more")
            self.expect(name, getattr(self, name) <= most, f"at most {most}")

    def expect_positive(self, names: Iterable[str]) -> None:
        """Raise UserError unless each of these settings is positive and finite."""
        for name in names:
            self.expect(name, 0 < getattr(self, name) < math.inf, "a positive, finite number")

    def expect_temperature(self, value: float | None) -> None:
        """Raise UserError unless the setting `temperature` is one that the losses take, or None."""
        if value is None or value == 0:
            return
        from pad_kernels.checks import LOWEST_TEMPERATURE  # imports torch

        holds = LOWEST_TEMPERATURE <= value < math.inf
        self.expect("temperature", holds, f"0, or a finite number from {LOWEST_TEMPERATURE:g} on")

    def save(self, path: Path) -> None:
        """Write the settings to a YAML file that `--config` reads; `resume` belongs to one call and is left out."""
        import yaml  # of the extra that the commands need

        values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        values.pop("resume", None)
        write_text(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


class Options(Settings):
    """What a command line takes where that is more than the settings, which follow from it."""

    def settings(self) -> Settings:
        """The settings that these options stand for."""
        raise NotImplementedError

    def check_words(self, unknown: list[str], saved: dict[str, Any]) -> None:
        """Raise UserError for a mistake in the options, or in the words that the parser did not understand.

        saved: the settings of --config FILE by name.
        """


@dataclass(frozen=True)
class Command:
    """A command of `pad`: its name, its settings, the extra of this package that it needs, and what it does.

    settings: a dataclass whose docstring is the help text; run: does the work and prints the result. Nothing that needs
    the extra is imported before `run` is called. options: what the command line takes, if not just the settings.
    """

    name: str
    settings: type[Settings]
    extra: str
    run: Callable[[Any], None]
    options: type[Options] | None = None


def settings_file(folder: Path) -> Path | None:
    """The settings file of a run's output folder, None where it has none."""
    place = folder / SETTINGS_FILE
    return place if place.is_file() else None


def check_output(
    settings: Settings, output: Path, resume: bool, free: Collection[str], *, makes_folder: bool = True
) -> None:
    """Raise UserError unless a run can write to its output folder: a new run, or with `resume` the one there, whose
    settings have to be the same but for the free ones.

    makes_folder: False for a process of a run whose folder another process makes, perhaps before this one looks.
    """
    if makes_folder:
        with refusing_output(output):
            _check_folder(output, resume)
    saved = settings_file(output) if resume else None
    if saved is not None:
        _check_same(settings, saved, free)


def _check_folder(output: Path, resume: bool) -> None:
    try:
        str(output).encode()
    except UnicodeEncodeError:  # safetensors could not read what is saved there
        raise UserError(f"output: expected a name in UTF-8, got {shown(str(output))}") from None
    if output.exists() and not output.is_dir():
        raise UserError(f"output: {output} is a file, expected a folder")
    if holds_output(output):
        if not resume:
            raise UserError(f"output: the folder {output} is not empty; choose another, or --resume to continue there")
        if settings_file(output) is None:
            raise UserError(f"resume: {output} holds no {SETTINGS_FILE}; expected a run's folder, or a new one")
    try_folder(output)


def _check_same(settings: Settings, path: Path, free: Collection[str]) -> None:
    """Raise UserError that names every setting, except the free ones, that differs from those saved at `path`."""
    before = read_settings(type(settings), path)
    defaults = {field.name: field.default for field in fields(settings)}
    differences = [
        f"{name} was {shown(old)}, now {shown(new)}"
        for name, new in asdict(settings).items()
        if name not in free and (old := before.get(name, defaults[name])) != new
    ]
    if differences:
        raise UserError(f"resume: the settings differ from those of the run in {path.parent}: {'; '.join(differences)}")


def read_settings(kind: type[Settings], path: str | Path) -> dict:
    """The settings in a YAML file by name, converted to the types that `kind` declares; raises UserError."""
    try:
        values = _load_yaml(Path(os.path.expanduser(path)).read_text(encoding="utf-8"))
    except Exception as error:  # a YAML file can make its reader raise much more than YAML's own errors
        raise UserError(f"config: cannot read {path}: {reason(error)}") from error
    if not isinstance(values, dict):
        raise UserError(f"config: {path}: expected lines of the form 'name: value', got {type(values).__name__}")
    declared = typing.get_type_hints(kind)
    hints = {field.name: declared[field.name] for field in fields(kind)}
    for name, value in values.items():
        if name not in hints:
            near = difflib.get_close_matches(str(name), hints, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"config: {path}: unknown setting {shown(name)}{hint}")
        values[name] = _of_type(value, hints[name], f"config: {path}: {name}")
    return values


def _load_yaml(text: str):
    """The content of a YAML file in which no name stands twice and nothing refers to something else.

    References can make a few lines of text grow beyond any memory.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent, index):
            if self.check_event(yaml.AliasEvent):
                event = self.get_event()
                raise yaml.MarkedYAMLError(None, None, "references (*name) are not supported", event.start_mark)
            return super().compose_node(parent, index)

        def construct_mapping(self, node, deep=False):
            names = [each.value for each, _ in node.value]
            twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
            if twice is not None:
                raise yaml.MarkedYAMLError(None, None, f"{shown(twice)} appears twice", node.start_mark)
            return super().construct_mapping(node, deep)

    return yaml.load(text, Loader)


def required(kind: type[Settings]) -> list[str]:
    """Names of the settings without a default."""
    return [field.name for field in fields(kind) if field.default is MISSING and field.default_factory is MISSING]


def _choices(hint) -> tuple:
    """The values of a Literal, or of one that may also be None; else none."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        found = [_choices(choice) for choice in typing.get_args(hint)]
        return (*next((choices for choices in found if choices), ()), None) if any(found) else ()
    return typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()


def one_of(choices: Iterable) -> str:
    """The choices as messages list them, but for None."""
    *others, last = [str(choice) for choice in choices if choice is not None]
    return f"{', '.join(others)} or {last}" if others else last


def _of_type(value, hint, where: str):
    """`value` as a setting of this type; YAML reads 1e-4 as text."""
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in choices:
            return None
        return _of_type(value, next(choice for choice in choices if choice is not type(None)), where)
    if origin is typing.Literal:
        if value not in choices:
            raise UserError(f"{where}: expected {one_of(choices)}, got {shown(value)}")
        return value
    if origin in (list, tuple):
        if not isinstance(value, list):
            raise UserError(f"{where}: expected a list, got {shown(value)}")
        return origin(_of_type(item, choices[0], where) for item in value)
    try:
        if hint is float and not isinstance(value, bool):
            return float(value)
        if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
            return value
    except (TypeError, ValueError, OverflowError):
        pass
    raise UserError(f"{where}: expected {hint.__name__}, got {shown(value)}")
