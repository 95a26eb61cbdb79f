"""Commands do not replace files that the user put into the folder of a run."""

import pytest

from pyro_vae.checkpointing.earlier_results import BEFORE
from tests.support.commands import TRAIN, people, run

COMMANDS = {
    "prior_samples.csv": ["sample", "run", "-n", "3"],
    "explorer.html": ["explore", "run", "--num-data", "5", "--num-samples", "2"],
    "trust.json": ["inspect", "run", "--num-data", "5", "--num-samples", "10"],
    "page.html": ["inspect", "run", "--num-data", "5", "--num-samples", "10", "--html",
                  "run/page.html"],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    people(0, rows=60)[["age", "visits"]].to_csv(folder / "table.csv", index=False)
    run("train", folder / "table.csv", "--out", folder / "run", "--no-page", *TRAIN)
    return folder


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_of_the_user_is_moved_with_a_warning(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    path = folder / "run" / name
    path.write_text("mine")
    with pytest.warns(UserWarning, match=f"did not write .*{name}.*they were moved to"):
        run(*COMMANDS[name])
    kept = list(path.parent.glob(f"{BEFORE}-*/{name}"))
    assert [file.read_text() for file in kept] == ["mine"]
    assert path.read_text() != "mine"
    run(*COMMANDS[name])  # a result of the run is replaced without a warning
    assert len([*path.parent.glob(f"{BEFORE}-*/{name}")]) == 1
