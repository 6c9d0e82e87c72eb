"""The command line: numbers without bounds, files that attack their readers, terminals, pipes and signals."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest

pytest.importorskip("tyro")
pytest.importorskip("yaml")

from pad.cli import COMMANDS, main  # noqa: E402
from pad.errors import shown  # noqa: E402
from pad.processes import python_command  # noqa: E402
from pad.settings import read_settings  # noqa: E402

LONG = "d" * 300
BIG = str(2**64)


def distill(*options: str, output) -> list[str]:
    given = {"--student": "s", "--teacher": "t", "--data": "d", "--output": str(output)}
    given.update(zip(options[::2], options[1::2]))
    return ["distill", *(part for pair in given.items() for part in pair)]


def one_line(capsys, code: int) -> str:
    """The message of a command that refused its input."""
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2 and "error: " in line
    return line


@pytest.mark.parametrize("option, value", [
    ("seed", BIG), ("seed", "-1"), ("seed", "9" * 5000), ("batch-size", BIG), ("max-steps", BIG), ("workers", BIG),
    ("gradient-accumulation", str(2**40)), ("save-every", "9" * 100), ("keep-checkpoints", "0"),
    ("learning-rate", "inf"), ("learning-rate", "nan"), ("learning-rate", "1e400"), ("learning-rate", "-1"),
    ("weight-decay", "inf"), ("temperature", "inf"), ("temperature", "nan"), ("epochs", "inf"), ("warmup-steps", "inf"),
    ("max-grad-norm", "nan"), ("max-seconds", "nan"), ("student", "a\0b"), ("data", "a\0b"), ("output", "a\0b"),
])  # fmt: skip
def test_values_without_bounds(tmp_path, capsys, option, value):
    code = main(distill(f"--{option}", value, output=tmp_path / "run"))
    assert f"error: {option.replace('-', '_')}: expected" in one_line(capsys, code)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [
    ["distill", "--batch-size", "x"], ["distill", "--frob"], ["align", "--temperature", "warm"], ["demo", "--quik"],
    ["info", "--frob"], ["evaluate", "--seed", "x"],
])  # fmt: skip
def test_a_mistake_in_the_options_points_to_the_help_of_its_command(capsys, command):
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 2
    assert f"pad {command[0]} --help" in capsys.readouterr().err


def test_a_command_that_there_is_not(capsys):
    expected = "pad: error: got the command 'distil'; expected distill, evaluate, align, demo or info"
    assert one_line(capsys, main(["distil", "--student", "s"])) == expected


def test_what_has_no_default_comes_first_in_the_help(capsys):
    for command, first in ("distill", "--student --teacher --data --output"), ("align", "--student --teacher --audio"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        options = re.findall(r"--[a-z-]+(?= STR)", capsys.readouterr().out)
        assert " ".join(options).startswith(first)


@pytest.mark.parametrize("command", [
    ["evaluate", "--student", "s", "--ic", "d", "--seed", BIG], ["demo", "--seed", BIG],
    ["evaluate", "--student", "s", "--ic", "d", "--slot-width", BIG],
    ["evaluate", "--student", "s", "--ic", "d", "--lr-sweep", "inf"],
    ["align", "--student", "s", "--teacher", "t", "--audio", "a", "--temperature", "inf"],
])  # fmt: skip
def test_values_without_bounds_in_other_commands(tmp_path, capsys, command):
    code = main([*command, "--output", str(tmp_path / "out")])
    assert ": expected" in one_line(capsys, code)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [LONG, "d/" * 3000])
def test_paths_that_are_too_long(tmp_path, capsys, name):
    for command in (
        distill(output=tmp_path / name),
        ["distill", "--config", str(tmp_path / name)],
        ["demo", "--output", str(tmp_path / name)],
        ["align", "--student", "s", "--teacher", "t", "--audio", str(tmp_path / name), "--output", str(tmp_path / "o")],
        ["evaluate", "--student", "s", "--ic", str(tmp_path / name), "--output", str(tmp_path / "o")],
        ["evaluate", "--student", "s", "--ic", "d", "--output", str(tmp_path / name)],
    ):
        assert len(one_line(capsys, main(command))) < 1200
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("output, reason", [("/proc/pad/demo", "output: cannot write to"), ("a/b/demo", "student: ")])
def test_a_demo_that_cannot_begin_leaves_no_folders(tmp_path, capsys, output, reason):
    """Their parents are new; the student is nowhere."""
    code = main(["demo", "--student", str(tmp_path / "nowhere"), "--output", str(tmp_path / output)])
    assert reason in one_line(capsys, code)
    assert not list(tmp_path.iterdir())


YAML = {
    "nesting": "seed: " + "[" * 5000,
    "nested names": "{a: " * 5000,
    "references": "a: &a [x, x]\nb: &b [*a, *a]\nseed: *b",
    "merges": "a: &a {seed: 1}\nb: &b {<<: [*a, *a]}\n<<: [*b, *b]",
    "a deep value": "seed: " + "[" * 300 + "]" * 300,
    "twice": "seed: 1\nseed: 2",
    "a date that is none": "seed: 2001-99-99",
    "digits": "seed: " + "9" * 6000,
    "a large rate": "learning_rate: " + "9" * 400,
    "NUL": 'student: "a\\0b"',
    "a bad tag": "seed: !!int ''",
    "another bad tag": "seed: !!bool maybe",
    "Python": "seed: !!python/object/apply:os.system [true]",
    "a class attribute": "paths: [a]",
    "control characters": "seed: \x01",
}


@pytest.mark.parametrize("kind", YAML)
def test_settings_files_that_attack_their_reader(tmp_path, capsys, kind):
    (tmp_path / "run.yaml").write_text(YAML[kind])
    arguments = distill(output=tmp_path / "run")
    if kind == "NUL":
        del arguments[1:3]
    line = one_line(capsys, main([*arguments, "--config", str(tmp_path / "run.yaml")]))
    assert len(line) < 600
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


def test_a_settings_file_is_one(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name).write_text("seed: 1\n")
    files = [str(tmp_path / "a"), f"--config={tmp_path / 'b'}"]
    line = one_line(capsys, main([*distill(output=tmp_path / "run"), "--config", *files]))
    assert "config: expected --config once, got 2 files: " in line
    assert "cannot read ~no-such-user/c" in one_line(capsys, main(["distill", "--config", "~no-such-user/c"]))


def test_the_help_of_a_setting_is_one_line():
    """The help breaks longer ones in the middle of a sentence."""
    from tyro._docstrings import get_field_docstring

    for command in COMMANDS:
        kind = command.options or command.settings
        for each in fields(kind):
            assert "\n" not in (get_field_docstring(kind, each.name, ()) or ""), f"{command.name} --{each.name}"


def test_home_in_a_settings_file(tmp_path, monkeypatch):
    from pad.distill.config import DistillConfig

    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run.yaml").write_text(
        "student: ~/s\nteacher: bert\ndata: ~/d.tsv\noutput: ~/out\nteacher_cache: '~'\n"
    )
    config = DistillConfig(**read_settings(DistillConfig, "~/run.yaml"))
    config.check()
    assert [config.student, config.teacher, config.data] == [f"{tmp_path}/s", "bert", f"{tmp_path}/d.tsv"]
    assert [config.output, config.teacher_cache] == [f"{tmp_path}/out", str(tmp_path)]


@pytest.mark.parametrize("reason", ["[enforce fail] can't allocate memory: you tried", "can't start new thread"])
def test_memory_that_is_missing_is_a_line(capsys, monkeypatch, reason):
    def fail(command, config):
        raise RuntimeError(reason)

    monkeypatch.setattr("pad.cli._run", fail)
    assert main(["info"]) == 1
    assert capsys.readouterr().err == f"pad info: error: out of memory: {reason}\n"


def test_a_package_that_transformers_lacks_is_a_line(capsys, monkeypatch):
    def run(command, config):
        raise ImportError("Using the `Trainer` with `PyTorch` requires `accelerate>=1.1.0`: Please run `pip install x`")

    monkeypatch.setattr("pad.cli._run", run)
    assert main(["info"]) == 2
    error = capsys.readouterr().err
    assert "requires `accelerate>=1.1.0`" in error and "pip install '.[train]'" in error and error.count("\n") == 1


def test_values_in_messages_are_short():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    for value in (deep, "x" * 10**6, 10**9999, [["y" * 500] * 500] * 500, {str(n): n for n in range(999)}, b"z" * 999):
        assert 0 < len(shown(value)) <= 80
    assert shown("ab") == "'ab'" and shown(3) == "3" and shown(None) == "None"


def python(*arguments: str, **options):
    environment = os.environ | options.pop("environment", {})
    return subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=environment, **options)  # fmt: skip


@pytest.mark.parametrize("columns", ["1", "5"])
def test_the_help_ends_in_a_narrow_terminal(columns):
    with python("-m", "pad", "info", "--help", environment={"COLUMNS": columns}) as child:
        assert "Show what is installed" in " ".join(child.communicate(timeout=60)[0].split())
    assert child.returncode == 0


def test_an_output_that_is_closed():
    code = "import os, sys; os.close(1); sys.stdout = None; from pad import cli; "
    code += "cli._run = lambda command, config: print('x'); sys.exit(cli.main(['info']))"
    with python("-c", code) as child:
        assert child.stderr.read() == ""
    assert child.returncode == 0


def test_a_current_folder_that_is_gone(tmp_path):
    code = "import os, sys; from pad.cli import main; os.chdir(sys.argv[1]); "
    code += "os.rmdir(sys.argv[1]); sys.exit(main(['info']))"
    with python("-c", code, str(tmp_path)) as child:
        assert child.stderr.read() == "pad info: error: the current folder is gone; expected one that exists\n"
    assert child.returncode == 2


def test_an_interrupt_while_the_command_is_imported():
    code = "import sys\nclass Stop:\n    def find_spec(self, name, *rest):\n"
    code += "        if name == 'pad.settings': raise KeyboardInterrupt\n"
    code += "sys.meta_path.insert(0, Stop())\nfrom pad.__main__ import main\nmain()"
    with python("-c", code) as child:
        assert child.stderr.read() == "pad: stopped\n"
    assert child.returncode == 130


def test_a_reader_that_stops_early():
    code = "import sys; sys.stdin.read(); from pad import cli; "
    code += "cli._run = lambda command, config: print('x' * 10**6); sys.exit(cli.main(['info']))"
    with python("-c", code, stdin=subprocess.PIPE) as info:
        info.stdout.close()
        info.stdin.close()
        assert info.stderr.read() == ""
    assert info.returncode == 128 + signal.SIGPIPE


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("printing", ["with saving_to(Path('.')): say('done')", "print('done')"])
def test_standard_output_that_is_full_is_named(printing):
    code = "from pathlib import Path; from pad import cli; from pad.distill.checkpoints import saving_to; "
    code += f"from pad.progress import say\ndef work(command, config):\n {printing}\n"
    code += "cli._run, cli._parse = work, lambda arguments: (cli.INFO, None)\ncli.run()"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code, "info"], stdout=full, stderr=subprocess.PIPE, text=True,
                              env=os.environ | {"PYTHONUNBUFFERED": ""})  # fmt: skip
    expected = "pad info: error: standard output could not be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, expected)


def test_a_terminal_without_unicode_and_a_notebook_around(tmp_path):
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    code = "import sys; from pad import cli; cli._ends_orderly().__enter__(); print('\\u201c\\xe9\\ud800'); "
    code += "import matplotlib.pyplot; print(matplotlib.get_backend())"
    with python("-c", code, environment={**plain, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}) as child:
        assert child.stdout.read().lower().split() == ["\\u201c\\xe9\\ud800", "agg"], child.stderr.read()


SLEEPER = """
import sys, tempfile, threading, time
from pad import cli
def work(command, config):
    with tempfile.TemporaryDirectory(dir=sys.argv[2]):
        threading.Thread(target=time.sleep, args=(60,)).start()
        print("ready", flush=True)
        time.sleep(60)
cli._run, cli._parse = work, lambda arguments: (cli.INFO, None)
cli.run()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_a_command_and_its_threads_and_leave_nothing(tmp_path, number):
    with python("-c", SLEEPER, "info", str(tmp_path)) as child:
        assert child.stdout.readline() == "ready\n", child.stderr.read()
        assert len(list(tmp_path.iterdir())) == 1
        child.send_signal(number)
        assert child.wait(timeout=30) == 128 + number  # its thread sleeps for a minute
        assert child.stderr.read().startswith("pad info: stopped")
    assert not list(tmp_path.iterdir())


def test_a_child_does_not_run_what_lies_in_the_working_folder(tmp_path):
    for name in ("espeakng_loader", "runpy", "json", "ctypes", "pip"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('ran {name} of the working folder')\n")
    code = "import json, ctypes, sys; print(sys.argv[1:], '' in sys.path)"
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "chosen.py").write_text(code)
    before = list(sys.path)
    try:
        sys.path[:] = ["", str(tmp_path / "package"), *before]
        command = python_command("chosen", "a b", "é")
    finally:
        sys.path[:] = before
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == "['a b', 'é'] False", done.stderr
    done = subprocess.run(python_command("pip", "--version"), capture_output=True, text=True, cwd=tmp_path)
    assert "of the working folder" not in done.stderr


def test_no_child_is_started_by_the_name_of_a_module_alone():
    package = Path(__file__).parent.parent / "pad"
    for path in package.rglob("*.py"):
        assert '"-m"' not in path.read_text(encoding="utf-8"), path


def test_the_speaker_ends_with_the_command(tmp_path):
    pytest.importorskip("espeakng_loader")
    code = "import random, sys; from pathlib import Path; from pad.demo.corpus import speak; from pad import cli; "
    code += "say = lambda config: speak([('one two three ' * 9, None)] * 3000, 'train', Path(sys.argv[1]) / 'speech', "
    code += "random.Random(0), lambda count: print(count, flush=True)); "
    code += "cli._run = lambda command, config: say(config); sys.exit(cli.main(['info']))"
    with python("-c", code, str(tmp_path)) as child:
        assert child.stdout.readline().strip().isdigit(), child.stderr.read()
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=60) == 130
        assert "Traceback" not in child.stderr.read()
    for _ in range(50):
        if str(tmp_path) not in "".join(arguments_of_processes()):
            break
        time.sleep(0.1)
    assert str(tmp_path) not in "".join(arguments_of_processes())


def arguments_of_processes():
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path.read_bytes().decode(errors="replace")
        except OSError:
            pass
