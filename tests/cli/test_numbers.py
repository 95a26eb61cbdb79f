"""Every number of every command is used as it is given, or refused before any work."""

import hashlib
import typing

import pytest

from pyro_vae.cli import app
from tests.support.commands import TRAIN, people, refused, run

COMMANDS = {command.callback.__name__: command.callback for command in app.registered_commands}
KINDS = (int, float, int | None, float | None, list[int] | None)
NUMBERS = [
    (name, option)
    for name, function in COMMANDS.items()
    for option, kind in typing.get_type_hints(function).items()
    if kind in KINDS
]
ALLOWED = {"seed", "draws"}  # of these, 0 is a value
WORDS = {
    "train": ["other.csv"],
    "compare": ["run", "other"],
    **{name: ["run", "other.csv"] for name in ("evaluate", "inspect", "explore")},
    **{name: ["run", "other.csv", "--out", "new.csv"] for name in ("encode", "score", "impute")},
    "sample": ["run", "--out", "new.csv"],
}


def digests(folder):
    return {
        path.relative_to(folder): hashlib.sha256(path.read_bytes()).digest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a table, a finished run and files of the user."""
    folder = tmp_path_factory.mktemp("numbers")
    for seed, name in enumerate(("table.csv", "other.csv")):
        people(seed, rows=60)[["age", "visits"]].to_csv(folder / name, index=False)
    for name in ("run", "other"):
        run("train", folder / "table.csv", "--out", folder / name, "--no-page", *TRAIN)
    return folder


def test_all_commands_with_numbers_are_tested():
    assert {name for name, _ in NUMBERS} == {*WORDS}
    assert len(NUMBERS) >= 29


@pytest.mark.thinned(3)
@pytest.mark.parametrize("value", ["0", "-1", "-3"])
@pytest.mark.parametrize(("name", "option"), NUMBERS, ids=[" ".join(words) for words in NUMBERS])
def test_numbers_that_are_no_sizes_are_refused(name, option, value, folder, monkeypatch):
    if value == "0" and option in ALLOWED:
        return
    monkeypatch.chdir(folder)
    before = digests(folder)
    out = ["--out", "run"] if name == "train" else []
    flag = f"--{option.replace('_', '-')}"
    said = refused(name, *WORDS[name], *out, flag, value)
    assert value in said
    assert option in said or flag in said
    assert "None" not in said
    assert digests(folder) == before


@pytest.mark.parametrize(
    "option",
    ["DATA", "--data", "--test", "--labels", "--likelihood", "--prior", "--guide", "--recipe",
     "--objective", "--size"],
)  # fmt: skip
def test_empty_texts_are_not_defaults(option, folder, monkeypatch):
    monkeypatch.chdir(folder)
    before = digests(folder)
    words = [] if option in ("DATA", "--data") else ["other.csv"]
    refused("train", *words, *([""] if option == "DATA" else [option, ""]), "--out", "run", *TRAIN)
    assert digests(folder) == before


def test_data_in_the_folder_of_a_run_are_not_moved(folder, monkeypatch):
    monkeypatch.chdir(folder)
    people(5, rows=60)[["age"]].to_csv("run/prior_samples.csv", index=False)
    before = digests(folder)
    assert "prior_samples.csv" in refused("train", "run/prior_samples.csv", "--out", "run", *TRAIN)
    assert digests(folder) == before
