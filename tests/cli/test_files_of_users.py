"""Commands do not replace files of the user in the folder of a run, and name damaged ones."""

import json

import pytest

from pyro_vae.checkpointing.earlier_results import BEFORE
from tests.support.commands import TRAIN, people, refused, run

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


@pytest.mark.thinned(2)
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


# Results of a run, and files of its model, that a command may not replace by something else.
REPLACING = {
    "run/schema.json": ["describe", "table.csv", "--out", "run"],
    "run/metrics.json": ["describe", "table.csv", "--out"],
    "run/model/architecture.json": ["describe", "table.csv", "--out"],
    "run/model/scores.csv": ["score", "run", "table.csv", "--out"],
    "run/posterior.nc": ["inspect", "run", "--html"],
    "run/model_card.md": ["explore", "run", "--out"],
    "run/prior_samples.csv": ["encode", "run", "table.csv", "--out"],
    "run/history.json": ["explore", "run", "--out"],
}


@pytest.mark.parametrize("name", REPLACING)
def test_results_of_a_run_are_not_replaced_by_others(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    before = {path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()}
    words = REPLACING[name]
    words = words if words[-1] == "run" else [*words, name]
    message = f"{name} would replace a file of the run or the model in {name.rpartition('/')[0]}"
    assert message in " ".join(refused(*words).split())
    after = {path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()}
    assert after == before


def test_a_new_name_in_a_run_is_accepted(folder, monkeypatch):
    monkeypatch.chdir(folder)
    run("encode", "run", "table.csv", "--out", "run/z.csv", "--num-samples", 5)
    run("encode", "run", "table.csv", "--out", "run/z.csv", "--num-samples", 5)
    assert len((folder / "run" / "z.csv").read_text().splitlines()) == 61


DAMAGES = {
    "no checksum": lambda source: source.update(sha256=[]),
    "checksums": lambda source: source.update(sha256=source["sha256"] * 2),
    "test": lambda source: source.update(test=5),
    "test data": lambda source: source.update(test="other.csv"),
    "binarize": lambda source: source.update(binarize=[]),
    "options": lambda source: source.update(options=None),
    "data": lambda source: source.pop("data"),
}


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.parametrize("command", ["evaluate", "inspect"])
def test_a_damaged_source_is_named(command, name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    path = folder / "run" / "metrics.json"
    before = path.read_text()
    metrics = json.loads(before)
    DAMAGES[name](metrics["source"])
    path.write_text(json.dumps(metrics))
    try:
        assert "metrics.json" in refused(command, "run", "--num-samples", "2")
    finally:
        path.write_text(before)


@pytest.mark.parametrize("missing", ["test", "binarize"])
def test_entries_of_a_source_without_a_value_may_be_missing(missing, folder, monkeypatch):
    monkeypatch.chdir(folder)
    path = folder / "run" / "metrics.json"
    before = path.read_text()
    metrics = json.loads(before)
    assert metrics["source"].pop(missing) is None
    path.write_text(json.dumps(metrics))
    try:
        run("evaluate", "run", "--num-samples", "2")
    finally:
        path.write_text(before)
