"""Settings as dataclasses: read from YAML, checked, and saved with a run."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Collection
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path

import yaml

from pad.errors import UserError


@dataclass
class Settings:
    """Base of the settings of each command."""

    def check(self) -> None:
        """Raise UserError for a value that makes no sense, by its name."""

    def expect(self, name: str, holds: bool, expected: str) -> None:
        """Raise UserError that names a setting and its value unless `holds`."""
        if not holds:
            raise UserError(f"{name}: expected {expected}, got {getattr(self, name)!r}")

    def save(self, path: Path) -> None:
        """Write the settings as YAML, for `--config`; `resume` is of one call and left out."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        values.pop("resume", None)
        write_whole(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def check_same(settings: Settings, path: Path, free: Collection[str]) -> None:
    """Raise UserError that names the settings, but for the free ones, in which the run saved at `path` differs."""
    before = read_settings(type(settings), path)
    defaults = {field.name: field.default for field in fields(settings)}
    differences = [
        f"{name}: {old!r} there, got {new!r}"
        for name, new in asdict(settings).items()
        if name not in free and (old := before.get(name, defaults[name])) != new
    ]
    if differences:
        raise UserError(f"resume: expected the settings of the run in {path.parent}; {'; '.join(differences)}")


def write_whole(path: Path, text: str) -> None:
    """Write a text file under a new name, then rename it: the file is the old one or the new one, never a part."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_settings(kind: type[Settings], path: str | Path) -> dict:
    """The settings of a YAML file, by name, of the types that `kind` says; raises UserError."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"config: cannot read {path}: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"config: {path}: expected lines of the form 'name: value', got {type(values).__name__}")
    hints = typing.get_type_hints(kind)
    for name, value in values.items():
        if name not in hints:
            near = difflib.get_close_matches(str(name), hints, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"config: {path}: unknown setting {name!r}{hint}")
        values[name] = _of_type(value, hints[name], f"config: {path}: {name}")
    return values


def required(kind: type[Settings]) -> list[str]:
    """Names of the settings without a default."""
    return [field.name for field in fields(kind) if field.default is MISSING and field.default_factory is MISSING]


def _of_type(value, hint, where: str):
    """`value` as a setting of this type; YAML reads 1e-4 as text."""
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in choices:
            return None
        return _of_type(value, next(choice for choice in choices if choice is not type(None)), where)
    if origin is typing.Literal:
        if value not in choices:
            raise UserError(f"{where}: expected {' or '.join(map(str, choices))}, got {value!r}")
        return value
    if origin in (list, tuple):
        if not isinstance(value, list):
            raise UserError(f"{where}: expected a list, got {value!r}")
        return origin(_of_type(item, choices[0], where) for item in value)
    try:
        if hint is float and not isinstance(value, bool):
            return float(value)
        if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
            return value
    except (TypeError, ValueError):
        pass
    raise UserError(f"{where}: expected {hint.__name__}, got {value!r}")
