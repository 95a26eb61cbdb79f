"""Commands run in this process, and a table to run them on."""

import numpy as np
import pandas as pd
from typer.testing import CliRunner

from pyro_vae import cli

TRAIN = ["--epochs", "2", "--hidden", "8", "--latent-dim", "2", "--num-samples", "30"]
ROWS = 120


def run(*words):
    """Run a command in this process; return its output."""
    done = CliRunner().invoke(cli.app, [*map(str, words)], env={"COLUMNS": "200"})
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def refused(*words):
    """Run a command that fails; return the sentence of its error."""
    done = CliRunner().invoke(cli.app, [*map(str, words)])
    assert done.exit_code == 1
    assert isinstance(done.exception, ValueError | OSError), done.exception
    return str(done.exception)


def people(seed=0, rows=ROWS):
    """Return a table with all types of columns, missing values, and classes."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=rows)
    frame = pd.DataFrame(
        {
            "name": [f"person {i}" for i in range(rows)],
            "age": np.round(40 + 12 * z, 1),
            "visits": rng.poisson(np.exp(1 + z / 2)),
            "town": np.array(["Lille", "Graz", "Turku"])[rng.integers(3, size=rows)],
            "member": np.where(z + rng.normal(size=rows) > 0, "yes", "no"),
            "joined": pd.to_datetime("2020-03-01")
            + pd.to_timedelta(rng.integers(900, size=rows), "D"),
            "group": np.array(["control", "treated"])[(z > 0).astype(int)],
        }
    )  # fmt: skip
    for column in ("age", "town", "joined"):
        frame.loc[rng.random(rows) < 0.15, column] = None
    return frame
