"""Commands that read other data of a run: their options, and what their errors advise."""

import re
import shlex

import numpy as np
import pandas as pd
import pytest
import typer.main
from scipy import io, sparse

import pyro_vae as pv
from pyro_vae.cli import app
from pyro_vae.cli.reading import read_again
from pyro_vae.cli.sources import options_again, read_by
from tests.support.commands import TRAIN, people, refused, run

COMMANDS = typer.main.get_command(app).commands
ADVICE = re.compile(r"(train )?(--[a-z][a-z-]*)((?: |$)(?:[\w=./-]+|'[^']*')?)")
READ = ("evaluate", "inspect", "explore", "encode", "score", "impute", "compare")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a table and a run on it."""
    folder = tmp_path_factory.mktemp("again")
    frame = people(0, rows=60)[["age", "visits", "town"]].fillna({"town": "Graz", "age": 40.0})
    frame.to_csv(folder / "table.csv", index=False)
    run("train", folder / "table.csv", "--out", folder / "run", "--no-page", *TRAIN)
    run("train", folder / "table.csv", "--out", folder / "run2", "--no-page", *TRAIN)
    return folder


def words_of(command, data):
    if command == "compare":
        return [command, "run", "run2", "--data", data]
    out = ["--out", "out.csv"] if command in ("encode", "score", "impute") else []
    out = ["--out", "page.html"] if command == "explore" else out
    return [command, "run", data, *out]


def table(folder, change, **form):
    """Write a table like that of the run, after a change of the frame."""
    frame = pd.read_csv(folder / "table.csv")
    change(frame)
    frame.to_csv(folder / "other.csv", index=False, **form)


def rename(frame):
    frame["town"] = frame["town"].replace("Graz", "Zürich")


def half(frame):
    frame["visits"] = frame["visits"] + 0.5


def code(frame):
    frame["age"] = frame["age"].astype(object)
    frame.loc[3, "age"] = "unknown"


def same(frame):
    """Change nothing."""


# A change of the table, how it is written, and words with which it is read.
OTHERS = {
    "latin-1": (rename, {"encoding": "latin-1"}, None),
    "a value of no count": (half, {}, None),
    "a code": (code, {}, None),
    "another separator": (same, {"sep": "|"}, []),
    "UTF-16": (same, {"encoding": "utf-16"}, ["--option", "encoding=utf-16"]),
    "decimal commas": (same, {"sep": ";", "decimal": ","}, ["--option", "decimal=,"]),
}


@pytest.mark.thinned(8)
@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("command", READ)
def test_errors_advise_options_that_exist(command, name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    change, form, options = OTHERS[name]
    table(folder, change, **form)
    flags = {flag for item in COMMANDS[command].params for flag in item.opts}
    trained = {flag for item in COMMANDS["train"].params for flag in item.opts}
    if options == []:
        return
    said = refused(*words_of(command, "other.csv"))
    for is_of_train, flag, _ in ADVICE.findall(said):
        assert flag in (trained if is_of_train else flags), said
    if options is not None:
        run(*words_of(command, "other.csv"), *options, *small(command))


def small(command):
    return ["--num-samples", "30", *(["--num-data", "8"] if command in ("inspect",) else [])]


def test_the_advice_of_score_is_followed(folder, monkeypatch):
    monkeypatch.chdir(folder)
    table(folder, same, encoding="utf-16")
    said = refused(*words_of("score", "other.csv"))
    (option,) = re.findall(r"--option [\w=-]+", said)
    run(*words_of("score", "other.csv"), *shlex.split(option), *small("score"))
    table(folder, same, sep=";", decimal=",")
    run(*words_of("impute", "other.csv"), "--option", "decimal=,")
    written = pd.read_csv("out.csv")
    pd.testing.assert_frame_equal(written, pd.read_csv("table.csv"))


@pytest.mark.parametrize("word", ["unknown", "none"])
def test_words_for_missing_values_are_added_to_those_of_the_run(word, tmp_path):
    """Errors advise na=WORD; the codes of the run are no values then either."""
    path = tmp_path / "other.csv"
    frame = people(0, rows=60)[["age", "visits"]]
    schema = pv.data.open(frame).schema
    frame = frame.fillna(40.0).astype(object)
    frame.loc[3, "age"], frame.loc[5, "age"], frame.loc[6, "visits"] = word, -99, -99
    frame.to_csv(path, index=False)
    options = options_again(schema, {"source": {"options": {"na": ["-99"]}}}, [f"na={word}"])
    x = read_by(schema, str(path), options)[:]
    assert x.isnan().nonzero().tolist() == [[3, 0], [5, 0], [6, 1]]


@pytest.mark.parametrize("command", READ)
def test_options_of_training_are_no_options_of_reading(command, folder, monkeypatch):
    monkeypatch.chdir(folder)
    words = words_of(command, "table.csv")
    assert "expected some of decimal" in refused(*words, "--option", "labels=town")
    assert "whole number" in refused(*words, "--option", "skip=two")
    if command in ("evaluate", "inspect", "explore"):
        assert "DATA" in refused(command, "run", "--option", "encoding=latin-1")


def test_the_options_of_schemas_are_known():
    assert read_again() >= {"key", "separator", "encoding", "na", "decimal", "thousands", "skip"}
    assert "transposed" in read_again()


@pytest.mark.parametrize("command", ["describe", "train"])
@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("schema=foo.json", "pass --schema"),
        ("columns=age", "pass --column"),
        ("size=64", "pass --size"),
        ("skip=two", "expected a whole number"),
        ("skip=-1", "expected a whole number"),
        ("skip=1.5", "expected a whole number"),
        ("transposed=maybe", "expected true or false"),
        ("foo=1", "does not apply to table data"),
    ],
)
def test_options_of_another_type_are_refused(command, option, expected, folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert expected in refused(command, "table.csv", "--option", option)


def test_texts_that_look_like_truth_values_are_texts(folder, monkeypatch):
    monkeypatch.chdir(folder)
    table(folder, same)
    (folder / "other.csv").write_text((folder / "table.csv").read_text().replace("Graz", "true"))
    assert "true" not in run("describe", "other.csv", "--option", "na=true")


def test_the_schema_of_a_conditional_run_restores_its_context(folder, monkeypatch):
    monkeypatch.chdir(folder)
    words = ["--no-page", *TRAIN]
    run("train", "table.csv", "--context", "town", "--out", "given", *words)
    schema = "given/schema.json"
    said = run("train", "table.csv", "--schema", schema, "--out", "restored", *words)
    assert "vae = pv.ConditionalVAE(" in said
    assert "category, context" in said
    other = ["--context", "visits", "--out", "other", *words]
    said = run("train", "table.csv", "--schema", schema, *other)
    assert "count, context" in said
    assert "category, context" not in said


@pytest.mark.thinned(4)
@pytest.mark.parametrize("name", ["genes.tsv", "features.tsv", "features.tsv.gz"])
@pytest.mark.parametrize("exists", [True, False])
def test_names_of_genes_are_not_replaced(name, exists, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    counts = np.random.default_rng(0).poisson(2.0, (40, 5))
    (tmp_path / "cells").mkdir()
    io.mmwrite("cells/matrix.mtx", sparse.coo_matrix(counts))
    path = tmp_path / "cells" / name
    if exists and path.suffix != ".gz":
        path.write_text("".join(f"g{i}\n" for i in range(5)))
    run("train", "cells/matrix.mtx", "--out", "run", "--no-page", *TRAIN)
    before = sorted((tmp_path / "cells").iterdir())
    if path.suffix != ".gz":
        words = ["run", "cells/matrix.mtx", "--out", f"cells/{name}"]
        assert "names of the genes" in refused("encode", *words)
        assert "names of the genes" in refused("score", *words)
    assert "names of the genes" in refused("explore", "run", "--out", f"cells/{name}")
    assert sorted((tmp_path / "cells").iterdir()) == before


def test_files_that_commands_write_are_read_again_with_other_options(tmp_path, monkeypatch):
    """A run has the options of its file, which `impute` writes without them: errors name them."""
    monkeypatch.chdir(tmp_path)
    rows = [f"{i % 7},{i % 9};{['Köln', 'Zürich'][i % 2]};{i % 4}" for i in range(60)]
    rows[3] = ";Köln;"
    text = "\n".join(["Report", "age;town;visits", *rows, ""])
    (tmp_path / "table.csv").write_text(text, encoding="latin-1")
    given = ["--option", "encoding=latin-1", "--option", "decimal=,", "--option", "skip=1"]
    run("train", "table.csv", *given, "--out", "run", "--no-page", *TRAIN)
    run("impute", "run", "table.csv", "--out", "full.csv", "--num-samples", 2)
    other: list[str] = []
    for name, value in (("skip", "0"), ("encoding", "utf-8")):
        said = " ".join(refused("score", "run", "full.csv", "--out", "out.csv", *other).split())
        assert "read with the options of the run" in said
        assert f"--option {name}=" in said
        other += ["--option", f"{name}={value}"]
    run("score", "run", "full.csv", "--out", "out.csv", "--num-samples", 2, *other)
    assert len(pd.read_csv("out.csv")) == 60
    other += ["--option", "decimal=,"]
    assert "options of the run" not in refused(
        "score", "run", "table.csv", "--out", "o.csv", *other
    )
