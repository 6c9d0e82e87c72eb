"""Wrong commands: one line that says what was wrong, exit 2, nothing left behind and no traceback.

Each runs in a copy of a process (forks.py); a few in a process of their own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("soundfile")

pytestmark = pytest.mark.slow

BIG, LONG = str(2**64), "d" * 300
NOT_INTEGERS = ("", "x", "1.5", "1e3", "nan", "-1", BIG, "9" * 5000, "True", "0x10", "½", "1 2", "\u0664x")
NOT_NUMBERS = ("", "x", "nan", "inf", "-inf", "-1", "1e400", "1,5", "--", "True", "0x", "1 2")
NOT_CHOICES = ("", "x", "TOPK", "cpu ", "None", "\0", "é", "auto,cpu")
NO_FOLDERS = ("/nowhere", "nowhere", LONG, "d/" * 3000, "a\0b", "/proc/self/mem", "/dev/null", "~nobody/x", "", ".")
YAML = {
    "nothing": "", "text": "a", "a list": "[1, 2]", "unknown": "speed: 3", "a near miss": "batchsize: 3",
    "NUL": "seed: \0",
    "no YAML": "a: [", "a tab": "\tseed: 1", "nesting": "seed: " + "[" * 5000, "references": "a: &a 1\nseed: *a",
    "Python": "seed: !!python/object/apply:os.getcwd []", "a wrong type": "seed: [1]",
    "a number as text": "seed: '1'",
    "a bool": "seed: true", "a float": "batch_size: 1.5", "a list of text": "prior_layers: [a]",
    "no list": "prior_layers: 3",
    "twice": "seed: 1\nseed: 2", "digits": "seed: " + "9" * 9000, "a choice": "device: gpu", "a path": "paths: [a]",
    "null": "seed: null", "two documents": "seed: 1\n---\nseed: 2", "binary": "seed: !!binary aGVsbG8=",
    "a date": "seed: 2001-01-01", "an infinite rate": "learning_rate: .inf", "a set": "seed: !!set {a}",
}  # fmt: skip
MANIFESTS = {
    "empty.tsv": b"", "one_column.tsv": b"a.wav\n", "no_such_file.tsv": b"nowhere.wav\tgood\n",
    "no_text.tsv": b"SPEECH/0.wav\t\n",
    "binary.tsv": bytes(range(256)), "latin1.tsv": b"SPEECH/0.wav\tgr\xfc\xdfe\n",
    "nul.tsv": b"SPEECH/0.wav\tgood\0night\n",
    "utf16.tsv": "SPEECH/0.wav\tgood\n".encode("utf-16"), "long.tsv": b"a" * 10**6, "empty.jsonl": b"",
    "list.jsonl": b"[1, 2]\n",
    "half.jsonl": b'{"audio": "SPEECH/0.wav", "text"', "nesting.jsonl": b"[" * 10**5, "number.jsonl": b"3\n",
    "no_audio.jsonl": b'{"text": "good"}\n', "wrong_type.jsonl": b'{"audio": 3, "text": "good"}\n',
    "text_type.jsonl": b'{"audio": "SPEECH/0.wav", "text": 3}\n', "digits.jsonl": b"9" * 10**5,
    "surrogate.jsonl": b'{"audio": "\\ud800.wav", "text": "good"}\n', "unknown.csv": b"a,b\n",
    "folder.tsv": b"SPEECH\tgood\n",
}  # fmt: skip
AUDIO = {
    "empty.wav": b"", "text.wav": b"no audio", "riff.wav": b"RIFF\xff\xff\xff\xffWAVE", "zeros.flac": bytes(5000),
    "flac.flac": b"fLaC" + b"\xff" * 200, "mp3.mp3": b"\xff\xfb\x90\x00" * 3, "ogg.ogg": b"OggS" + bytes(300),
    "a.aiff": b"FORM\0\0\0\x10AIFF",
}  # fmt: skip


@pytest.fixture(scope="module")
def bad(world, tmp_path_factory) -> dict[str, str]:
    """`world`, and a folder of files that will not do."""
    folder = tmp_path_factory.mktemp("bad")
    for name, content in (MANIFESTS | AUDIO).items():
        (folder / name).write_bytes(content.replace(b"SPEECH", world["speech"].encode()))
    for name, content in YAML.items():
        (folder / f"{name}.yaml").write_bytes(content.encode())
    (folder / "config").mkdir()
    (folder / "config" / "config.json").write_text('{"model_type": "nonsense"}')
    return world | {"bad": str(folder)}


def option(command: list[str], name: str, value: str) -> list[str]:
    """The command with an option set."""
    flag = f"--{name}"
    if flag in command:
        place = command.index(flag)
        return [*command[: place + 1], value, *command[place + 2 :]]
    return [*command, flag, value]


def commands(world: dict[str, str], out: str):
    """(label, arguments), all of them wrong."""
    distill = ["distill", "--student", world["student"], "--teacher", world["teacher"], "--data", world["speech"],
               "--output", out, "--max-steps", "1", "--device", "cpu", "--preset", "pad-slocal"]  # fmt: skip
    align = ["align", "--student", world["student"], "--teacher", world["teacher"],
             "--audio", f"{world['speech']}/0.wav", "--output", out, "--preset", "pad-slocal-soft"]  # fmt: skip
    evaluate = ["evaluate", "--student", world["student"], "--ic", world["speech"], "--output", out, "--device", "cpu"]
    for name in ("seed", "batch-size", "max-steps", "workers", "save-every", "log-every", "keep-checkpoints"):
        for value in NOT_INTEGERS:
            yield f"distill --{name}", option(distill, name, value)
    for name in ("learning-rate", "max-grad-norm", "weight-decay", "temperature", "max-seconds", "prior-exponent"):
        for value in NOT_NUMBERS:
            if not (name == "max-seconds" and value in ("inf", "1e400")):
                yield f"distill --{name}", option(distill, name, value)
    for name in ("preset", "anchors", "device", "precision", "on-error", "report-to"):
        for value in NOT_CHOICES:
            if not (name == "anchors" and value == "None"):  # as in the preset
                yield f"distill --{name}", option(distill, name, value)
    for name in ("student", "teacher", "data"):
        for value in NO_FOLDERS:
            yield f"distill --{name}", option(distill, name, value)
    for value in (*NO_FOLDERS[2:7], "/proc/x", world["student"], f"{world['speech']}/0.wav"):
        yield "distill --output", option(distill, "output", value)
    for value in (
        world["speech"],
        world["bad"] + "/config",
        world["bad"],
        "a/b",
        "a/b/c",
        "https://x",
        "../..",
        "None",
    ):
        yield "distill --student", option(distill, "student", value)
        yield "distill --teacher", option(distill, "teacher", value)
    for name in MANIFESTS:
        yield f"distill {name}", option(distill, "data", f"{world['bad']}/{name}")
    for name in AUDIO:
        yield f"align {name}", [*option(align, "audio", f"{world['bad']}/{name}"), "--transcript", "good night"]
    for value in (
        "librispeech:",
        "librispeech:x:y",
        "librilight:10h:",
        "huggingface:",
        "huggingface:a:b:c:d",
        ":",
        "ftp://x",
        "x:y",
    ):
        yield "distill --data", option(distill, "data", value)
    for name in YAML:
        if name not in ("nothing", "null"):
            yield f"--config {name}", [*distill[:-4], "--config", f"{world['bad']}/{name}.yaml"]
    for value in ("99", "-99", "x", "1.5", BIG):
        yield "distill --prior-layers", [*distill, "--prior-layers", value]
        yield "distill --teacher-layer", option(distill, "teacher-layer", value)
    for value in NO_FOLDERS[:9]:
        yield "align --audio", option(align, "audio", value)
        if value != "/dev/null":  # no words
            yield "align --words", option(align, "words", value)
        yield "evaluate --ic", option(evaluate, "ic", value)
    for name in ("linear-map", "teacher-mean"):
        for value in ("nowhere", f"{world['bad']}/text.wav", world["speech"]):
            yield f"align --{name}", option(align, name, value)
    for value in NOT_NUMBERS:
        yield "align --temperature", option(align, "temperature", value)
        yield "evaluate --lr-sweep", option(evaluate, "lr-sweep", value)
    for name in ("ic", "er", "sf"):
        yield f"evaluate {name}", ["evaluate", name, "--student", world["student"], "--output", out]
        yield (
            f"evaluate {name} --data",
            ["evaluate", name, "--data", world["bad"], "--student", world["student"], "--output", out],
        )
    for words in ((), ("train",), ("distil",), ("distill",), ("align",), ("evaluate",), ("evaluate", "xx"),
                  ("--bogus",), ("info", "x"),
                  ("demo", "--seed", "x"), ("demo", "--seed", BIG), ("demo", "--student", "a", "--scratch"),
                  ("distill", "--config"),
                  ("distill", "--config", "nowhere"), ("distill", "--config", world["bad"]), ("distill", "extra"),
                  ("\0",), ("é",),
                  ("distill", "--student"), ("--config", "x"), ("demo", "--output", "/proc/x"),
                  ("demo", "--student", "nowhere")):  # fmt: skip
        yield f"pad {words}", list(words)


def what_is_wrong(done, arguments, folder: Path) -> str | None:
    """None where the command ended as it should."""
    left = [path.name for path in folder.iterdir()]
    if "Traceback" in done.errors + done.output:
        return f"a traceback: ...{done.errors[-400:]}"
    if done.code != 2:
        return f"exit {done.code}: {(done.errors or done.output)[-300:]}"
    if left:
        return f"it left {left}"
    ours = [line for line in done.errors.splitlines() if line.startswith("pad")]
    of_parser = "─" in done.errors or "usage" in done.errors.lower()  # which draws a box
    if len(ours) != 1 and not of_parser:
        return f"{len(ours)} lines of its own: {done.errors[-400:]}"
    if len(ours) == 1 and len(ours[0]) > 1200:
        return f"a line of {len(ours[0])} characters: {ours[0][:200]}"
    return None


def test_each_is_refused_in_a_line(forks, bad, tmp_path):
    folder, failures, number = tmp_path / "here", [], 0
    folder.mkdir()
    for label, arguments in commands(bad, str(folder / "out")):
        number += 1
        done = forks.run(*arguments, cwd=folder)
        found = what_is_wrong(done, arguments, folder)
        if found:
            failures.append(f"{label} {[each[:40] for each in arguments[-2:]]}: {found}")
            for path in folder.iterdir():
                subprocess.run(["rm", "-rf", str(path)], check=True)
    print(f"{number} wrong commands")
    assert number >= 200
    assert not failures, f"{len(failures)} of {number}:\n" + "\n".join(failures)


@pytest.mark.parametrize("arguments", [["distill"], ["info", "x"], ["align", "--student", "a", "--teacher", "b",
                         "--audio", "c"],
                                       ["demo", "--seed", "x"], ["distill", "--config", "nowhere"]])  # fmt: skip
def test_in_a_process_of_its_own(tmp_path, arguments):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-m", "pad.cli", *arguments], capture_output=True, text=True, cwd=tmp_path,
                          env=environment)  # fmt: skip
    assert done.returncode == 2 and "Traceback" not in done.stderr and not list(tmp_path.iterdir())
