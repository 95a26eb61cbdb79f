"""Files of options, and modules: a mistake is a sentence; nothing is expanded or waited for."""

import os
import re
import sys

import pytest
from typer.testing import CliRunner

import pyro_vae as pv
from pyro_vae import cli
from tests.support.watched import watched

# Ten aliases of ten aliases and so on: 10^12 entries if they were written out.
LAUGHS = "a: &a0 [1]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 13)
)
WRONG = {
    "laughs.yaml": (LAUGHS, "unknown option 'a'"),
    "prior.yaml": (
        "prior:\n" + "".join(f" - {line}\n" for line in re.findall(r"&.*", LAUGHS)),
        "prior: expected a text or a number, got a list",
    ),
    "column.yaml": (
        "column:\n" + "".join(f" - {line}\n" for line in re.findall(r"&.*", LAUGHS)),
        "column: expected a text or a number, or a list of them, got [1]",
    ),
    "itself.yaml": ("hidden: &h [*h]", "hidden: expected a text or a number"),
    "object.yaml": (
        "epochs: !!python/object/apply:os.system ['touch ran']",
        "could not determine a constructor",
    ),
    "name.yaml": ("epochs: !!python/name:os.system", "could not determine a constructor"),
    "twice.yaml": ("epochs: 1\nepochs: 2", "the option 'epochs' is given twice"),
    "twice.json": ('{"epochs": 1, "epochs": 2}', "the option 'epochs' is given twice"),
    "twice.toml": ("epochs = 1\nepochs = 2", "cannot be read"),
    "both.yaml": ("latent-dim: 1\nlatent_dim: 2", "the option 'latent_dim' is given twice"),
    "itself.json": ('{"config": "x.json"}', "unknown option 'config'"),
    "number.yaml": ("1: 2", "unknown option 1;"),
    "null.yaml": ("null: 2", "unknown option None"),
    "list.yaml": ("? [a]\n: 2", "cannot be read"),
    "date.toml": ("epochs = 2001-01-01", "epochs: expected a text or a number, got a date"),
    "map.yaml": ("column: {a: real}", "column: expected a text or a number, or a list of them"),
    "out.yaml": ("out: [a]", "out: expected a text or a number, got ['a']"),
    "flag.yaml": ("resume: 2", "resume: expected true or false, got 2"),
    "true.yaml": ("epochs: true", "epochs: expected a text or a number, got True"),
    "empty.yaml": ("", "expected options by name, got a NoneType"),
    "text.yaml": ("epochs", "expected options by name, got a str"),
    "rows.json": ("[1]", "expected options by name, got a list"),
    "deep.json": ("[" * 100_000, "cannot be read"),
    "deep.yaml": ("[" * 3000, "cannot be read"),
    "digits.json": ('{"epochs": ' + "9" * 5000 + "}", "cannot be read"),
    "binary.yaml": ("\x00", "cannot be read"),
    "long.yaml": ("x: " + "a" * 2**21, "expected at most 1,048,576 bytes"),
}


@pytest.fixture
def refusal(tmp_path, monkeypatch):
    """Return a function that calls `train` with a file of options and returns its error."""
    monkeypatch.setattr(pv, "fit", lambda *args, **kwargs: pytest.fail("training has begun"))
    (tmp_path / "t.csv").write_text("a,b\n" + "".join(f"{i},{i * i}\n" for i in range(40)))

    def call(path):
        with watched(tmp_path) as use:
            words = ["train", str(tmp_path / "t.csv"), "--config", str(path)]
            error = CliRunner().invoke(cli.app, words).exception
        assert isinstance(error, ValueError), error
        assert not use.touched
        assert use.seconds < 3
        assert use.peak < 2e8
        assert len(str(error)) < 1000
        return str(error)

    return call


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_in_a_file_of_options_is_a_sentence(name, refusal, tmp_path):
    text, sentence = WRONG[name]
    (tmp_path / name).write_text(text)
    assert sentence in refusal(tmp_path / name)


def test_only_regular_files_are_read(refusal, tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    for name in ("pipe.yaml", "folder.yaml"):
        assert "expected a file" in refusal(tmp_path / name)
    for name in ("missing.yaml", "loop.yaml"):
        assert "no such file" in refusal(tmp_path / name)


def test_a_file_of_options_may_be_a_link(refusal, tmp_path):
    (tmp_path / "real.toml").write_text("prior = 'none'\nhidden = [4]\nresume = false\n")
    (tmp_path / "link.toml").symlink_to("real.toml")
    assert "unknown prior 'none'" in refusal(tmp_path / "link.toml")


MODULES = {
    "raises.py": ("1 / 0", "fails: ZeroDivisionError"),
    "ends.py": ("raise SystemExit", "fails: SystemExit"),
    "ends_with.py": ("import sys; sys.exit(3)", "fails: SystemExit: 3"),
    "base.py": ("class E(BaseException): pass\nraise E('x')", "fails: E: x"),
    "syntax.py": ("def (", "fails: SyntaxError"),
    "nul.py": ("\0", "fails: SyntaxError"),
    "text.txt": ("x", "expected a Python file"),
    "recursion.py": ("def f(): f()\nf()", "fails: RecursionError"),
    "json.py": ("x = 1", "the name 'json' is that of another module: rename the file"),
    "wave.py": ("x = 1", "the name 'wave' is that of another module"),
    "torch.py": ("x = 1", "the name 'torch' is that of another module"),
    "pyro_vae.py": ("x = 1", "the name 'pyro_vae' is that of another module"),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_that_fails_is_named_and_replaces_no_other(name, tmp_path, monkeypatch):
    monkeypatch.setattr(pv, "fit", lambda *args, **kwargs: pytest.fail("training has begun"))
    text, sentence = MODULES[name]
    (tmp_path / "t.csv").write_text("a,b\n" + "".join(f"{i},{i * i}\n" for i in range(40)))
    (tmp_path / name).write_text(text)
    before = {key: sys.modules.get(key) for key in ("json", "torch", "pyro_vae", "wave")}
    words = ["train", str(tmp_path / "t.csv"), "--module", str(tmp_path / name)]
    error = CliRunner().invoke(cli.app, [*words, "--out", str(tmp_path / "out")]).exception
    assert isinstance(error, ValueError), error
    assert sentence in str(error)
    assert before == {key: sys.modules.get(key) for key in before}
    assert not (tmp_path / "out").exists()
