"""Mutated models, checkpoints and metrics with right checksums: a result or CheckpointError."""

import contextlib
import json
import mmap
import pickle
import random
import shutil
import struct
import subprocess
import time
import warnings
from pathlib import Path

import pytest
import safetensors.torch
import torch

import pyro_vae as pv
from pyro_vae.checkpointing import checkpoint_store, model_folder
from pyro_vae.reporting.run_report import read_metrics
from pyro_vae.runtime import files
from tests.models.test_vae import small_vae
from tests.support.runs import STEPS, Stop, half_a_run, stop_after, train
from tests.support.watched import watched

pytestmark = pytest.mark.xdist_group("mutated files")  # a module's runs are made once

SECONDS, BYTES = 2.0, 200 * 2**20
VALUES = [
    None, True, -1, 0, 3, 10**6, 10**9, 2**63, 10**30, -(10**12), 0.5, 1e308, float("nan"),
    float("inf"), "", "x", "meta", "../..", [], [10**9], [[]], {}, {"shared": 0}, {"tensor": "x"},
    {"class": "pyro_vae.networks.MLP", "arguments": {"in_shape": 10**9, "hidden": [10**6] * 9,
                                                     "out_shape": 10**9}},
]  # fmt: skip


def places(value, path=()):
    """Yield the paths of all entries of a JSON value."""
    entries = (
        value.items() if isinstance(value, dict)
        else enumerate(value) if isinstance(value, list) else ()
    )  # fmt: skip
    for key, entry in entries:
        yield (*path, key)
        yield from places(entry, (*path, key))


def mutated(value, choose):
    """Return a JSON value with one to three entries replaced, removed, renamed or repeated."""
    value = json.loads(json.dumps(value))
    for _ in range(choose.randint(1, 3)):
        found = list(places(value))
        if not found:
            return value
        *path, last = choose.choice(found)
        holder = value
        for key in path:
            holder = holder[key]
        kind = choose.choice(["replace", "replace", "remove", "repeat", "nest"])
        if kind == "replace":
            holder[last] = choose.choice(VALUES)
        elif kind == "remove":
            del holder[last]
        elif kind == "repeat" and isinstance(holder, list):
            holder.extend([holder[last]] * choose.choice([1, 1000]))
        elif kind == "repeat":
            holder["more"] = holder[last]
        else:
            deep = holder[last]
            for _ in range(choose.choice([1, 5, 100])):
                deep = [deep]
            holder[last] = deep
    return value


def mutated_tensors(data, choose):
    """Return a safetensors file with a mutated header, or with changed bytes."""
    (length,) = struct.unpack("<Q", data[:8])
    if choose.random() < 0.3:
        changed = bytearray(data)
        for _ in range(choose.randint(1, 5)):
            changed[choose.randrange(len(data))] = choose.randrange(256)
        return bytes(changed)
    header = json.dumps(mutated(json.loads(data[8 : 8 + length]), choose)).encode()
    size = choose.choice([len(header)] * 8 + [0, 2**40])
    return struct.pack("<Q", size) + header + data[8 + length :]


def write(folder, contents):
    files.write_files(folder, contents)


def outcome(call, folder):
    """Return whether a call gave a result.

    Fail if it is slow, uses much memory, touches anything outside of the folder, or raises another
    error than `CheckpointError`.
    """
    result = True
    with watched(folder) as use, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            call()
        except pv.CheckpointError:
            result = False
    assert use.seconds < SECONDS
    assert use.peak < BYTES
    assert not use.touched
    return result


def seeds(fast, slow):
    return [*range(fast), *(pytest.param(i, marks=pytest.mark.slow) for i in range(fast, slow))]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    small_vae().save(folder)
    return {name: (folder / name).read_bytes() for name in model_folder.FILES[:2]}


@pytest.mark.parametrize("seed", seeds(130, 600))
def test_a_mutated_model_loads_or_is_refused(seed, model, tmp_path):
    choose, contents = random.Random(seed), dict(model)
    if choose.random() < 0.6:
        described = mutated(json.loads(model[model_folder.ARCHITECTURE]), choose)
        contents[model_folder.ARCHITECTURE] = json.dumps(described).encode()
    else:
        weights = model[model_folder.WEIGHTS]
        contents[model_folder.WEIGHTS] = mutated_tensors(weights, choose)
    (tmp_path / "model").mkdir()
    write(tmp_path / "model", contents)
    outcome(lambda: pv.load(tmp_path / "model"), tmp_path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        newest = half_a_run(folder, patch, STEPS + 2)[-1]
    return {name: (newest / name).read_bytes() for name in checkpoint_store.FILES[:2]}


@pytest.mark.thinned(3)
@pytest.mark.parametrize("seed", seeds(60, 600))
def test_a_mutated_checkpoint_is_resumed_or_refused(seed, checkpoint, tmp_path, monkeypatch):
    choose, contents = random.Random(seed), dict(checkpoint)
    if choose.random() < 0.8:
        state = mutated(json.loads(checkpoint[checkpoint_store.STATE]), choose)
        contents[checkpoint_store.STATE] = json.dumps(state).encode()
    else:
        tensors = checkpoint[checkpoint_store.TENSORS]
        contents[checkpoint_store.TENSORS] = mutated_tensors(tensors, choose)
    newest = tmp_path / "checkpoints" / "00000001"
    newest.mkdir(parents=True)
    write(newest, contents)
    stop_after(monkeypatch, 2)

    def resume():
        with contextlib.suppress(Stop, pv.TrainingError):
            train(tmp_path, resume=True)

    outcome(resume, tmp_path)


def test_wrong_shapes_of_an_optimizer_state_are_refused(checkpoint, tmp_path):
    tensors = safetensors.torch.load(checkpoint[checkpoint_store.TENSORS])
    name = next(name for name in tensors if name.startswith("optimizer/exp_avg/"))
    contents = dict(checkpoint)
    changed = safetensors.torch.save({**tensors, name: torch.zeros(3, 5)})
    contents[checkpoint_store.TENSORS] = changed
    newest = tmp_path / "checkpoints" / "00000001"
    newest.mkdir(parents=True)
    write(newest, contents)
    with pytest.raises(pv.CheckpointError, match="expected the tensor"):
        train(tmp_path, resume=True)


METRICS = {
    "dataset": "mnist", "binarization": "dynamic", "seed": 0, "num_test": 10, "test_elbo": -1.5,
    "num_importance_samples": 5, "versions": {"torch": "2"}, "best_epoch": 1,
    "history": [{"epoch": 1, "step": 3, "num_data": 4, "train_elbo": -2.0, "seconds": 0.1}],
}  # fmt: skip


@pytest.mark.parametrize("seed", range(200))
def test_mutated_metrics_are_read_or_refused(seed, tmp_path):
    changed = mutated(METRICS, random.Random(seed))
    Path(tmp_path / "metrics.json").write_text(json.dumps(changed))
    if outcome(lambda: read_metrics(tmp_path), tmp_path):
        metrics = read_metrics(tmp_path)
        assert isinstance(metrics["dataset"], str)
        assert all(isinstance(v, str) for v in metrics.get("versions", {}).values())


def test_a_model_that_is_larger_than_its_weights_allocates_nothing(model, tmp_path):
    described = json.loads(model[model_folder.ARCHITECTURE])
    text = json.dumps(described).replace("[16]", "[300000, 300000]")
    assert text != json.dumps(described)
    (tmp_path / "model").mkdir()
    write(tmp_path / "model", {**model, model_folder.ARCHITECTURE: text.encode()})
    with pytest.raises(pv.CheckpointError, match="larger than its weights"):
        pv.load(tmp_path / "model")


@pytest.mark.parametrize(
    ("call", "seen"),
    [
        (lambda path: path.read_bytes(), True),
        (lambda path: path.write_bytes(b""), True),
        (lambda path: path.unlink(), True),
        (lambda path: path.rename("stolen"), True),
        (lambda path: Path("copy").hardlink_to(path), True),
        (lambda path: shutil.rmtree(path.parent), True),
        (lambda path: Path("../outside/file").read_bytes(), True),
        (lambda path: pickle.loads(pickle.dumps(path)), True),
        (lambda path: subprocess.run(["true"], check=True), True),
        (lambda path: Path("inside").write_bytes(b""), False),
        (lambda path: Path(json.__file__).read_bytes(), False),
    ],
)
def test_the_watch_sees_what_is_outside_of_the_folder(call, seen, tmp_path):
    folder, path = tmp_path / "folder", tmp_path / "outside" / "file"
    folder.mkdir()
    path.parent.mkdir()
    path.write_bytes(b"1")
    with watched(folder) as use:
        call(path)
    assert bool(use.touched) == seen, use.touched


def test_the_watch_measures_time_and_memory(tmp_path):
    with watched(tmp_path) as use:
        pages = mmap.mmap(-1, size := 2**26)  # new memory, whatever earlier tests have left free
        pages[:: mmap.PAGESIZE] = bytes(size // mmap.PAGESIZE)
        start = time.process_time()
        while time.process_time() < start + 0.05:
            pass
    assert use.peak > 0.9 * size
    assert use.seconds >= 0.05
