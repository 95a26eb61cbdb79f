"""Errors about files name the way out as the user writes it, and it is one.

Each careless file is refused with a sentence. In Python, the sentence names arguments; on the
command line, options. If it names a setting, the file is read with this setting.
"""

import ast
import re
import shlex
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import sparse
from typer.testing import CliRunner

import pyro_vae as pv
from pyro_vae.cli import app
from pyro_vae.data.sources.opening import READERS

ROWS = 60
RNG = np.random.default_rng(0)
NUMBERS = RNG.normal(size=ROWS).round(3)
# Arguments in Python: a name, an equality sign, and a value or its end.
PYTHON = re.compile(r"""\b[a-z_]+=(['"\[({]|True|False|None|[\s,;:.?)]|$)|\bframe\[|\bdtype_""")
WORD = r"""(?:[^\s,;'"]|'[^']*'|"[^"]*")+"""
OPTION = re.compile(rf"--(?:column|option|size|key|labels|schema) {WORD}")


def lines(*rows, encoding="utf-8", ending=".csv", first=b""):
    def write(folder):
        path = folder / f"careless{ending}"
        path.write_bytes(first + "\n".join(map(str, rows)).encode(encoding))
        return path

    return write


def table(cell, row=7, header="a,b"):
    """Return a function that writes a table of two columns of numbers with one other cell."""
    cells = [f"{x},{2 * x + 1}" for x in NUMBERS]
    cells[row] = f"{cell},1.5"
    return lines(header, *cells)


def images(size=(8, 8), mode="L", damaged=False):
    def write(folder):
        for i in range(9):
            path = folder / f"{i}.png"
            pixels = RNG.integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
        if damaged:
            path.write_bytes(b"\x89PNG\r\n\x1a\nno image")
        else:
            other = Image.new("RGB", size, "red")
            other.convert(mode).save(path)
        return folder

    return write


def counts(value):
    def write(folder):
        matrix = RNG.poisson(2.0, (ROWS, 5)).astype(float)
        matrix[3, 2] = value
        sparse.save_npz(folder / "careless.npz", sparse.csr_matrix(matrix))
        return folder / "careless.npz"

    return write


def arrays(folder):
    np.savez(folder / "careless.npz", first=RNG.normal(size=(ROWS, 3)), second=np.ones(3))
    return folder / "careless.npz"


def names(count):
    return [f"{i} {x}" for i, x in enumerate(RNG.integers(0, 9, count))]


# name: (writes the file, whether a setting is the way out)
CARELESS = {
    "empty": (lines(""), False),
    "no rows": (lines("a,b"), False),
    "no column to model": (lines("a", *(["x"] * ROWS)), False),
    "ragged": (lines("a,b", "1,2", "1,2,3", "3,4"), False),
    "separator": (lambda f: lines("a:b", *[f"{x}:1" for x in NUMBERS])(f), None),
    "latin-1": (lines("a,b", *[f"{x},{'é' if x > 0 else 'ö'}" for x in NUMBERS],
                      encoding="latin-1"), True),
    "UTF-16": (lines("a,b", *[f"{x},{x > 0}" for x in NUMBERS], encoding="utf-16"), True),
    "mixed types": (table("many"), True),
    "mixed types with a space": (table("not known", header="first name,b"), True),
    "mixed types, quoted": (table("don't", header="age,b"), True),
    "decimal comma": (lines("a;b", *[f"{x:.3f};{x > 0}".replace(".", ",") for x in NUMBERS]), True),
    "dates as text": (lines("a,b", *[f"{i % 28 + 1}/03/2021,{x}" for i, x in enumerate(NUMBERS)]),
                      True),
    "no such date": (lines("a,b", *[f"2021-02-{i % 28 + 2:02},{x}" for i, x in enumerate(NUMBERS)]),
                     False),
    "duplicate columns": (lines("a,a", *[f"{x},1" for x in NUMBERS]), False),
    "infinite": (table("inf"), False),
    "10,000 names": (lines("name", *names(10_000)), True),
    "NUL": (lines("a,b", "1,\0"), False),
    "an Excel workbook": (lines("", first=b"PK\x03\x04"), False),
    "no names": (lines("1.5,2.5", *[f"{x},{x}" for x in NUMBERS]), False),
    "a corrupt image": (images(damaged=True), True),
    "an image of another size": (images(size=(12, 9)), True),
    "an image in colour": (images(mode="RGB"), None),
    "counts with NaN": (counts(np.nan), False),
    "counts with halves": (counts(2.5), True),
    "negative counts": (counts(-1.0), True),
    "several arrays": (arrays, None),
    "a damaged array": (lines("no array", ending=".npy"), False),
    "a damaged h5ad": (lines("no cells", ending=".h5ad"), False),
    "a damaged Parquet file": (lines("no table", ending=".parquet"), False),
    "another ending": (lines("a,b", ending=".docx"), False),
}  # fmt: skip


def described(path, *words):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pv.data.DataWarning)  # of images that are left out
        done = CliRunner().invoke(app, ["describe", str(path), *words], env={"COLUMNS": "200"})
    assert done.exception is None or isinstance(done.exception, ValueError | OSError), (
        done.exception
    )
    return None if done.exit_code == 0 else str(done.exception)


@pytest.mark.parametrize("name", CARELESS)
def test_the_way_out_is_one(name, tmp_path):
    write, has_setting = CARELESS[name]
    path = write(tmp_path)
    said = described(path)
    if said is None:
        assert has_setting is None, "the file was read"
        return
    assert path.name in said
    assert not PYTHON.search(OPTION.sub("", said)), said
    with pytest.raises((ValueError, OSError)) as error:
        pv.data.open(path)
    assert "--" not in str(error.value)
    options = OPTION.findall(said)
    if has_setting is not None:
        assert bool(options) is has_setting, said
    for option in options:
        assert described(path, *shlex.split(option)) is None, (option, said)


@pytest.mark.parametrize("name", ["mixed types", "latin-1", "a corrupt image"])
def test_train_refuses_before_anything_is_written(name, tmp_path):
    (tmp_path / "data").mkdir()
    path = CARELESS[name][0](tmp_path / "data")
    out = tmp_path / "run"
    done = CliRunner().invoke(app, ["train", str(path), "--out", str(out)])
    assert isinstance(done.exception, ValueError)
    assert OPTION.findall(str(done.exception))
    assert not out.exists()


def test_messages_write_arguments_by_one_function():
    """No text in the readers has `columns=`: `setting` writes it for Python or for a shell."""
    names = {name for reader in READERS for name in reader.options}
    names |= {"binarize", "conv", "hidden"}
    written = re.compile(rf"(?<![`\w])({'|'.join(sorted(names))})=")
    package = Path(pv.__file__).parent
    files = [*(package / "data").rglob("*.py"), *(package / "models").glob("suggestion*.py")]
    wrong = []
    for file in files:
        tree = ast.parse(file.read_text())
        docs = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        wrong += [
            f"{file.name}:{node.lineno}: {node.value}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in docs
            and written.search(node.value)
        ]
    assert len(files) > 10
    assert not wrong


def test_pandas_reads_the_tables_of_this_file(tmp_path):
    """The careless cell is the only fault of its table."""
    frame = pd.read_csv(table("1.25")(tmp_path))
    assert pv.data.open(frame).schema.names() == ("a", "b")
