"""Options of the commands: their help, and options that are repeated."""

import re

import pandas as pd
import pytest
import typer.main
from typer.testing import CliRunner

from pyro_vae.cli import app
from tests.support.commands import people, refused, run

COMMANDS = typer.main.get_command(app).commands


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_types_and_stated_defaults(name):
    said = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "250"}).output
    assert "Annotated" not in said
    stated = [item.show_default for item in COMMANDS[name].params]
    assert all(f"({text})" in said for text in stated if isinstance(text, str))


def test_no_text_of_help_is_markup():
    """Words in brackets are markup of rich, which removes them."""
    texts = [item.help for command in COMMANDS.values() for item in command.params]
    texts += [command.help for command in COMMANDS.values()]
    assert not [text for text in texts if re.search(r"\[[a-z]", text or "")]


@pytest.mark.parametrize("given", [["na=-99", "na=none"], ["na=-99,none"], ["na=none", "na=-99"]])
def test_a_repeated_option_adds_words(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frame = people(0, rows=40)[["age", "town"]].assign(weight=[*range(30, 68), -99, -99])
    frame["town"] = ["none", *["Graz", "Linz"] * 19, "Wien"]
    frame.to_csv("table.csv", index=False)
    said = run("describe", "table.csv", *(word for text in given for word in ("--option", text)))
    assert "30 to 67" in said
    assert "Graz, Linz, Wien" in said


@pytest.mark.parametrize(
    "words",
    [
        ["--option", "decimal=,", "--option", "decimal=."],
        ["--column", "a=real", "--column", "a=count"],
    ],
)
def test_contradictory_options_are_refused(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pd.DataFrame({"a": [1, 2, 4, 7] * 5, "b": range(20)}).to_csv("table.csv", index=False)
    assert "expected one of them" in refused("describe", "table.csv", *words)
