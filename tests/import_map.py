"""Which rooms of a package import which: `python tests/import_map.py [FOLDER of the package]`.

A room is a folder of the package, or a file that lies in none.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "pad"
# From the bottom up: a room imports only rooms above it in this list.
ROOMS = {
    "pad": ("errors", "versions", "processes", "signals", "progress", "files", "digests", "settings", "tokenization",
            "loaders", "models", "students", "data", "priors", "step", "align", "distill", "evaluate", "demo",
            "cli", "__main__"),
    "pad_kernels": ("inputs", "torch_internals", "installation", "checks", "weights", "registration", "backends",
                    "ops", "autograd", "loss", "info"),
}  # fmt: skip


def modules(package: Path) -> dict[str, Path]:
    """The files of a package by the names of their modules."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(package: Path) -> Iterator[tuple[str, str]]:
    """(module, what it imports of its own package), imports within functions included."""
    known, name = modules(package), package.name
    for module, path in known.items():
        if path == package / "__init__.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((module, alias.name) for alias in node.names if alias.name.split(".")[0] == name)
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == name:
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    yield module, whole if whole in known else node.module


def between_rooms(package: Path) -> set[tuple[str, str]]:
    """(room, another room that it imports), each pair once."""
    pairs = {(module.split(".")[1], target.split(".")[1]) for module, target in imports(package)
             if target != package.name}  # fmt: skip
    return {(room, other) for room, other in pairs if room != other}


def upwards(pairs: set[tuple[str, str]], package: str) -> list[str]:
    """The imports of a package that run back up, or of a room that has no place in the order."""
    rooms = ROOMS[package]
    return sorted(
        f"{room} imports {other}"
        for room, other in pairs
        if not {room, other} <= {*rooms} or rooms.index(other) > rooms.index(room)
    )


def main() -> None:
    """Print each room with those it imports, their number, and what runs back up."""
    package = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else PACKAGE
    pairs = between_rooms(package)
    for room in sorted({room for room, _ in pairs}):
        print(f"{room:14}", *sorted(other for this, other in pairs if this == room))
    print(f"{len(pairs)} imports between rooms; back up: {', '.join(upwards(pairs, package.name)) or 'none'}")


if __name__ == "__main__":
    main()
