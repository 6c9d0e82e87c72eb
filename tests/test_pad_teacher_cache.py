"""The teacher's cache: what entries depend on, damage, several processes at once."""

import hashlib
import json
import os
import resource
import shutil
import signal
import time
import warnings
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402
from test_pad_loading import change_weights, save_teacher  # noqa: E402
from torch import multiprocessing  # noqa: E402

from pad.errors import UserError  # noqa: E402
from pad.models import load_teacher  # noqa: E402
from pad.step import teacher_shards  # noqa: E402
from pad.step.teacher import Teacher  # noqa: E402
from pad.step.teacher_shards import Shards  # noqa: E402
from pad.tokenization import tokenize  # noqa: E402

TEXTS = ["good morning", "good night well spoken"]


def run(folder: Path, cache: Path, layer: int = -1, prior: bool = True) -> int:
    """How often the model ran for two texts, one by one; what comes out is compared with a teacher without a cache."""
    model, tokenizer = load_teacher(str(folder))
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    teacher, plain, count = (
        Teacher(model, tokenizer, prior, layer, str(cache)),
        Teacher(model, tokenizer, prior, layer),
        0,
    )
    for words in TEXTS:
        text, mask = tokenize(tokenizer, [words])
        inputs = (text["input_ids"], text["attention_mask"], mask)
        expected = plain(*inputs)
        calls.clear()
        for one, other in zip(teacher(*inputs), expected):
            assert one is other is None or torch.allclose(one, other, atol=1e-6)
        count += len(calls)
    return count


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    assert run(save_teacher(folder / "teacher"), folder / "cache") == 2
    return folder


@pytest.fixture
def folders(made, tmp_path):
    """A teacher, and a folder with the outputs for both texts."""
    shutil.copytree(made / "cache", tmp_path / "cache")
    return made / "teacher", tmp_path / "cache"


@pytest.fixture
def no_warnings():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="teacher_cache")
        yield


def test_what_the_outputs_depend_on(tmp_path, no_warnings):
    folder, cache = save_teacher(tmp_path / "teacher"), tmp_path / "cache"
    assert [run(folder, cache), run(folder, cache)] == [2, 0]
    assert [run(folder, cache, layer=1), run(folder, cache, prior=False)] == [2, 2]
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert run(tmp_path / "elsewhere", cache) == 0
    config = json.loads((folder / "config.json").read_text())
    for change in ({"layer_norm_eps": 0.1}, {"num_attention_heads": 2}, {"hidden_act": "relu"}):
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        assert run(folder, cache) == 2, change
    (folder / "config.json").write_text(json.dumps(config))

    def one_number(weights):
        weights["embeddings.word_embeddings.weight"][5, 3] += 1
        return weights

    change_weights(folder, one_number)
    assert run(folder, cache) == 2


def test_which_tokens_count(tmp_path):
    model, tokenizer = load_teacher(str(save_teacher(tmp_path / "teacher")))
    teacher = Teacher(model, tokenizer, True, cache=str(tmp_path / "cache"))
    text, mask = tokenize(tokenizer, TEXTS[:1])
    other = mask & (torch.arange(mask.shape[1]) != 1)
    priors = [teacher(text["input_ids"], text["attention_mask"], one)[1] for one in (mask, other, mask)]
    assert priors[1][0, 1] == 0 < priors[0][0, 1] and torch.equal(priors[0], priors[2])


def test_precision(tmp_path):
    model, tokenizer = load_teacher(str(save_teacher(tmp_path / "teacher")))
    teacher = Teacher(model, tokenizer, False, cache=str(tmp_path / "cache"))
    text, mask = tokenize(tokenizer, TEXTS[:1])
    inputs = (text["input_ids"], text["attention_mask"], mask)
    with torch.autocast("cpu", torch.bfloat16):
        rough, _ = teacher(*inputs)
    exact, _ = teacher(*inputs)
    assert torch.equal(exact, Teacher(model, tokenizer, False)(*inputs)[0]) and not torch.equal(rough, exact)


def another_width(tensors):
    return {**tensors, "embeddings": torch.zeros(len(tensors["embeddings"]), 32)}


def changed(name: str, place: tuple[int, ...], by: float):
    def change(tensors):
        tensors[name][place] += by
        return tensors

    return change


# What is done to a file of two entries, and how many of them are computed again.
OF_ENTRIES = {
    "embeddings": (changed("embeddings", (-1, 3), 1e-6), 1),
    "prior": (changed("prior", (-1,), 1e-6), 1),
    "digest": (changed("digests", (1, 7), 1), 1),
    "end": (changed("ends", (0,), 1), 2),
    "end far outside": (changed("ends", (0,), -(2**40)), 2),
    "keys of each other": (lambda tensors: {**tensors, "keys": tensors["keys"].flip(0)}, 2),
    "another width": (another_width, 2),
    "another dtype": (lambda tensors: {**tensors, "embeddings": tensors["embeddings"].half()}, 2),
}
OF_FILES = {
    "no prior": lambda tensors: {name: tensor for name, tensor in tensors.items() if name != "prior"},
    "a row too few": lambda tensors: {**tensors, "prior": tensors["prior"][1:]},
    "a key too few": lambda tensors: {**tensors, "keys": tensors["keys"][1:]},
    "keys of another dtype": lambda tensors: {**tensors, "keys": tensors["keys"].int()},
    "ends of another shape": lambda tensors: {**tensors, "ends": tensors["ends"][:, None]},
}
OF_BYTES = {
    "half": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "zeros": lambda content: bytes(len(content)),
}


def change_tensors(path: Path, change) -> None:
    save_file(change({name: tensor.clone() for name, tensor in load_file(path).items()}), path)


@pytest.mark.parametrize("damage", OF_ENTRIES)
def test_damaged_entries_are_computed_again(folders, damage):
    folder, cache = folders
    (path,) = cache.rglob("*.safetensors")
    change, again = OF_ENTRIES[damage]
    change_tensors(path, change)
    content = path.read_bytes()
    with pytest.warns(UserWarning, match="teacher_cache: damaged entries in .* are computed again") as warned:
        assert run(folder, cache) == again
    assert len(warned) == 1
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="teacher_cache")
        assert run(folder, cache) == 0
    assert path.read_bytes() == content


@pytest.mark.parametrize("damage", [*OF_FILES, *OF_BYTES])
def test_entries_of_a_damaged_file_are_computed_again(folders, damage):
    folder, cache = folders
    (path,) = cache.rglob("*.safetensors")
    if damage in OF_FILES:
        change_tensors(path, OF_FILES[damage])
    else:
        path.write_bytes(OF_BYTES[damage](path.read_bytes()))
    content = path.read_bytes()
    for computed in (2, 0):
        with pytest.warns(UserWarning, match=f"{path} is damaged and not used.*; it may be removed") as warned:
            assert run(folder, cache) == computed
        assert len(warned) == 1
    assert path.read_bytes() == content


def test_shards_of_another_teacher_are_of_no_use(folders, tmp_path, no_warnings):
    folder, cache = folders
    run(save_teacher(tmp_path / "other", layer_norm_eps=0.3), tmp_path / "elsewhere")
    (path,), (other,) = cache.rglob("*.safetensors"), (tmp_path / "elsewhere").rglob("*.safetensors")
    shutil.copy(other, path)
    assert [run(folder, cache), run(folder, cache)] == [2, 0]


def named(number: int, prior: bool = True, width: int = 24):
    """A name, and an entry that follows from the number."""
    generator = torch.Generator().manual_seed(number)
    length = int(torch.randint(1, 9, (), generator=generator))
    embeddings = torch.randn(length, width, generator=generator)
    embeddings = embeddings.bfloat16() if number % 7 == 0 else embeddings
    name = hashlib.sha256(str(number).encode()).digest()
    return name, (embeddings, torch.rand(length, generator=generator) if prior else None)


def found(shards: Shards, number: int, prior: bool = True) -> bool:
    """Whether the entry is there; if so it must be the right one."""
    name, expected = named(number, prior)
    entry = shards.get(name, len(expected[0]))
    if entry is None:
        return False
    assert entry[0].dtype == expected[0].dtype and torch.equal(entry[0], expected[0])
    assert entry[1] is expected[1] is None or torch.equal(entry[1], expected[1])
    return True


def test_a_reader_does_not_wait_for_writers_that_are_faster(tmp_path, monkeypatch):
    shards, looks = Shards(tmp_path / "cache", True), []

    def finds_another_file(self):
        looks.append("again")
        assert len(looks) < 9
        return True

    monkeypatch.setattr(Shards, "_read_folder", finds_another_file)
    assert not found(shards, 1000)


@pytest.mark.parametrize("prior", [True, False])
def test_many_entries_in_many_files(tmp_path, monkeypatch, no_warnings, prior):
    monkeypatch.setattr(teacher_shards, "SHARD_BYTES", 5000)
    writer, reader = Shards(tmp_path / "cache", prior), Shards(tmp_path / "cache", prior)
    for number in range(500):
        writer.put(*named(number, prior))
        assert found(writer, number, prior) and found(writer, number // 2, prior)
    writer.write()
    assert 20 < len(list(tmp_path.rglob("*.safetensors"))) < 200
    for shards in (writer, reader, Shards(tmp_path / "cache", prior)):
        assert all(found(shards, number, prior) for number in range(500)) and len(shards) == 500
        assert not any(found(shards, number, prior) for number in range(500, 520))


def test_names_that_begin_alike(tmp_path, no_warnings):
    """The names of two entries may begin with the same bytes: each is found."""
    entries = {bytes(8) + bytes([number]) * 24: named(number)[1] for number in range(1, 5)}
    shards = Shards(tmp_path, True)
    for name, entry in entries.items():
        shards.put(name, entry)
        shards.write()
    for name, entry in entries.items():
        assert torch.equal(Shards(tmp_path, True).get(name, len(entry[0]))[0], entry[0])


def test_what_nobody_wrote_is_written_where_the_cache_is_given_up(tmp_path):
    shards = Shards(tmp_path, True)
    shards.put(*named(1))
    assert not found(Shards(tmp_path, True), 1)
    del shards
    assert found(Shards(tmp_path, True), 1)


def write_for_ever(folder: str, first: int, count: int, ready) -> None:
    """Entries of a process, which begin with those of another; says how far it is, and goes on until it is killed."""
    torch.set_num_threads(1)
    teacher_shards.SHARD_BYTES = 3000
    shards = Shards(Path(folder), True)
    while True:
        for number in range(first, first + count):
            found(shards, number)
            shards.put(*named(number))
        shards.write()
        with ready.get_lock():
            ready.value += 1


def test_processes_that_write_at_once_and_are_killed(tmp_path, no_warnings):
    """Three processes write overlapping entries again and again, until all are killed in the middle of it."""
    context = multiprocessing.get_context("fork")
    ready = [context.Value("i", 0) for _ in range(3)]
    processes = [context.Process(target=write_for_ever, args=(str(tmp_path / "cache"), 20 * rank, 40, ready[rank]))
                 for rank in range(3)]  # fmt: skip
    for process in processes:
        process.start()
    try:
        reader, deadline = Shards(tmp_path / "cache", True), time.monotonic() + 120
        while min(value.value for value in ready) < 2:
            assert all(process.is_alive() for process in processes) and time.monotonic() < deadline
            for number in range(0, 80, 7):
                found(reader, number)
    finally:
        for process in processes:
            process.kill()
            process.join()
    assert all(process.exitcode == -signal.SIGKILL for process in processes)
    for shards in (reader, Shards(tmp_path / "cache", True)):
        assert all(found(shards, number) for number in range(80))


def test_a_forked_process_leaves_what_its_parent_keeps(tmp_path):
    shards = Shards(tmp_path, True)
    shards.put(*named(1))
    child = os.fork()
    if child == 0:
        try:
            shards.put(*named(2))
            shards.write()
            os._exit(0)
        finally:
            os._exit(1)  # or it would run the tests that follow
    assert os.waitpid(child, 0)[1] == 0
    shards.write()
    assert len(list(tmp_path.iterdir())) == 2 and len(Shards(tmp_path, True)) == 2
    assert found(shards, 1) and found(shards, 2)


def test_files_that_a_killed_process_has_begun_go_after_a_day(tmp_path, no_warnings):
    shards = Shards(tmp_path, True)
    shards.put(*named(1))
    shards.write()
    for name, age in (("now", 0), ("before", 2 * 24 * 3600)):
        path = tmp_path / f".{name}.safetensors.partial"
        path.write_bytes(b"part")
        os.utime(path, (time.time() - age,) * 2)
    assert found(Shards(tmp_path, True), 1)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == [".now.safetensors.partial"]


def test_a_full_disk_is_named(tmp_path):
    shards = Shards(tmp_path, True)
    shards.put(*named(1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        with pytest.raises(OSError, match=f"teacher_cache: cannot write to {tmp_path}: File too large"):
            shards.write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
    shards.put(*named(2))
    shards.write()
    assert found(Shards(tmp_path, True), 2)


def test_a_file_where_the_folder_should_be(folders):
    folder, cache = folders
    (inner,) = cache.iterdir()
    shutil.rmtree(inner)
    inner.write_text("")
    with pytest.raises(UserError, match=f"teacher_cache: cannot read {cache}: .*Not a directory"):
        run(folder, cache)
