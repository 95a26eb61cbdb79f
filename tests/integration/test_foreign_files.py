"""Files and links of others in a run's folder: no target of a link changes, nothing is deleted."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import pyro_vae as pv
from pyro_vae import cli
from pyro_vae.checkpointing import checkpoint_store as runs
from pyro_vae.checkpointing import model_folder as checkpoints
from pyro_vae.reporting import run_report as reports
from pyro_vae.runtime import files as folders
from pyro_vae.training import run_state
from tests.models.test_vae import small_vae
from tests.support.pictures import draw_no_pictures

# A second run in a folder moves the results of the first one.
pytestmark = pytest.mark.filterwarnings("ignore:.*has the results of an earlier run")

PRECIOUS = b"precious"
CHECKPOINT = "checkpoints/00000003"  # the newest one of a run of three epochs

# What `fit` makes in a run's folder, also what it leaves there if it is killed.
FOLDERS = [
    "checkpoints", "checkpoints-before", CHECKPOINT, "checkpoints/00000001", "checkpoints/00000009",
    "model", ".model.old", "checkpoints-before/00000003", "checkpoints/.new-x",
    "checkpoints/.old-x", "checkpoints/.old-00000001", ".new-x", ".old-x", ".model-x",
]  # fmt: skip
FILES = [
    "history.json", ".history.json.new", ".lock", ".lock.pid", f"{CHECKPOINT}/{runs.STATE}",
    f"{CHECKPOINT}/{folders.SUMS}", f"model/{checkpoints.WEIGHTS}", "checkpoints/.new-file",
    ".new-0123456789abcdef",
]  # fmt: skip
# What `report` and the commands make.
RESULTS = [
    "metrics.json", ".metrics.json.new", "posterior.nc", "learning_curve.png", "latents.png",
    "samples.png", "reconstructions.png", "traversals.png", "manifold.png", "trust.json",
    "page.html", "prior_samples.png", "model_card.md",
]  # fmt: skip


def link_to_a_file(path, precious):
    path.symlink_to(precious / "file")


def link_to_a_folder(path, precious):
    path.symlink_to(precious)


def dangling_link(path, precious):
    path.symlink_to(precious / "nothing")


def folder_of_others(path, precious):
    """Add files and links of others to a folder, and make it if it is missing."""
    path.mkdir(exist_ok=True)
    (path / ".git").mkdir()
    for name in (".git/HEAD", ".DS_Store", ".nfs0001", "notes.txt", "00000042"):
        (path / name).write_bytes(PRECIOUS)
    (path / ".git/link").symlink_to(precious)
    (path / "link").symlink_to(precious)


def file_of_others(path, precious):
    path.write_bytes(PRECIOUS)


def pipe(path, precious):
    os.mkfifo(path)


LINKS = [link_to_a_file, link_to_a_folder, dangling_link]


def plant(path, kind, precious):
    """Put something in the place of what the package makes; a folder of others is added to it."""
    if kind is not folder_of_others and os.path.lexists(path):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if path.parent.is_dir() or kind is folder_of_others:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            path.unlink()
        kind(path, precious)


def contents(folder):
    """Return every file of a folder and its bytes."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def of_others(folder):
    """Count the files and links of others, wherever they are in the folder."""
    paths = [Path(at) / name for at, _, names in os.walk(folder) for name in names]
    links = sum(path.is_symlink() for path in Path(folder).rglob("link"))
    files = (path for path in paths if path.is_file() and not path.is_symlink())
    return links, sum(path.read_bytes() == PRECIOUS for path in files)


@pytest.fixture
def precious(tmp_path):
    """Return a folder that looks like one of checkpoints, and has files of others, too."""
    folder = tmp_path / "precious"
    for name in (".git", "00000001", ".new-x", ".old-x"):
        (folder / name).mkdir(parents=True)
        (folder / name / runs.STATE).write_bytes(PRECIOUS)
    (folder / "file").write_bytes(PRECIOUS)
    return folder


def fit(out, **settings):
    return pv.fit(
        small_vae(2), torch.ones(8, 1, 4, 4), epochs=3, batch_size=8, progress=False, out=out,
        **settings,
    )  # fmt: skip


@pytest.fixture
def steps(monkeypatch):
    """Return a list that grows with each step of training."""
    taken, real = [], run_state.RunState.count

    def count(self, loss, num_data):
        taken.append(loss)
        real(self, loss, num_data)

    monkeypatch.setattr(run_state.RunState, "count", count)
    return taken


def assert_kept(run, precious, before, planted):
    assert contents(precious) == before
    assert not (precious / "nothing").exists()
    assert of_others(run) == planted


@pytest.fixture(scope="module")
def runs_before(tmp_path_factory):
    """Return folders without a run and with the results and checkpoints of two runs."""
    folder = tmp_path_factory.mktemp("runs before")
    (folder / "0").mkdir()
    for _ in range(2):
        fit(folder / "2")
    return folder


# Places in which nothing of others is accepted. Elsewhere it is kept or, if a link, replaced.
REFUSED = {
    kind: [
        *("model", ".model.old", ".lock", ".lock.pid"),
        *(["checkpoints", "checkpoints-before"] if kind is not folder_of_others else []),
        *(["model/" + checkpoints.WEIGHTS] if kind not in (file_of_others, pipe) else []),
        *(["history.json"] if kind is folder_of_others else []),
    ]
    for kind in (*LINKS, folder_of_others, file_of_others, pipe)
}


@pytest.mark.thinned(3)
@pytest.mark.parametrize("earlier", ["0", "2"])
@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for kind, names in REFUSED.items() for name in names]
)
def test_training_is_refused_and_keeps_what_is_not_its_own(
    name, kind, earlier, runs_before, precious, tmp_path, steps
):
    run, before = tmp_path / "run", contents(precious)
    shutil.copytree(runs_before / earlier, run)
    plant(run / name, kind, precious)
    if not os.path.lexists(run / name):
        return  # in a folder that a new run does not have
    planted, found = of_others(run), {*run.rglob("*")}
    for settings in ({}, {"resume": True}):
        with pytest.raises(pv.CheckpointError):
            fit(run, **settings)
        assert not steps
        assert_kept(run, precious, before, planted)
        assert {*run.rglob("*")} - found <= {run / ".lock", run / ".lock.pid"}


def in_groups(names):
    """Return names in groups without a file and its folder, whose places exist together."""
    inside = [name for name in names if name.startswith(f"{CHECKPOINT}/")]
    others = [name for name in names if name not in (*inside, CHECKPOINT)]
    return [group for group in ([*inside, *others[::2]], [CHECKPOINT, *others[1::2]]) if group]


# Folders and files of others are put in the place of folders only.
PLACES = {
    kind: [name for name in (FOLDERS if kind is file_of_others else [*FOLDERS, *FILES])
           if name not in REFUSED[kind]]
    for kind in (*LINKS, folder_of_others, file_of_others)
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*(is damaged|cannot be written)")
@pytest.mark.thinned(3)
@pytest.mark.parametrize("earlier", ["0", "2"])
@pytest.mark.parametrize(
    ("kind", "names"),
    [(kind, names) for kind, places in PLACES.items() for names in in_groups(places)],
)
def test_training_works_and_keeps_what_is_not_its_own(
    kind, names, earlier, runs_before, precious, tmp_path
):
    run, before = tmp_path / "run", contents(precious)
    shutil.copytree(runs_before / earlier, run)
    for name in names:
        plant(run / name, kind, precious)
    there = [name for name in names if os.path.lexists(run / name)]
    assert there == names or earlier == "0"
    assert there
    planted = of_others(run)
    for settings in ({}, {}, {"resume": True}, {}):
        assert fit(run, **settings).stopped == "finished"
        assert_kept(run, precious, before, planted)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return a run's folder with all results, and what to write them again with."""
    folder = tmp_path_factory.mktemp("finished")
    run, rng = folder / "run", np.random.default_rng(0)
    for name, size in (("train", 100), ("test", 40)):
        np.save(folder / f"{name}.npy", rng.integers(0, 256, (size, 6, 6), dtype=np.uint8))
    words = ["--no-conv", "--hidden", "4", "--latent-dim", "2", "--epochs", "1", "--no-page"]
    words += ["--num-samples", "2", "--out", str(run), "--test", str(folder / "test.npy")]
    done = CliRunner().invoke(cli.app, ["train", str(folder / "train.npy"), *words])
    assert done.exit_code == 0, done.exception
    vae = pv.load(run / "model")
    x = vae.schema.read(folder / "test.npy")
    trained = pv.fit(vae, x, epochs=1, progress=False)
    trained.settings["source"] = json.loads((run / "metrics.json").read_text())["source"]
    card = pv.diagnose(vae, x, num_samples=5, num_gap_data=0, num_simulations=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pv, "diagnose", lambda *args, **kwargs: card)
        assert command(run, "inspect") is None
        assert command(run, "sample") is None
    return run, vae, trained, x, card


def write_results(finished, run):
    _, vae, trained, x, _ = finished
    return pv.report(vae, trained, x, run, num_samples=2)


def command(run, name):
    """Call a command and return its error; the page, the card and a picture go into the folder."""
    words = {
        "inspect": ["--html", str(run / "page.html"), "--num-data", "40", "--num-samples", "5"],
        "sample": ["--num-samples", "4"],
    }
    return CliRunner().invoke(cli.app, [name, str(run), *words[name]]).exception


@pytest.mark.parametrize("kind", LINKS)
def test_results_are_never_written_through_a_link(kind, precious, tmp_path, finished, monkeypatch):
    monkeypatch.setattr(pv, "diagnose", lambda *args, **kwargs: finished[-1])
    draw_no_pictures(monkeypatch)
    run, before = tmp_path / "run", contents(precious)
    shutil.copytree(finished[0], run)
    for name in RESULTS:
        plant(run / name, kind, precious)
    write_results(finished, run)
    assert command(run, "sample") is None
    assert (run / "traversals.png").is_symlink()  # not written, for two latents
    if kind is link_to_a_file:
        assert isinstance(command(run, "inspect"), ValueError)  # the page would show the file
    (run / "traversals.png").unlink()
    if kind is link_to_a_folder:
        (run / "page.html").unlink()  # refused, as a folder is
    assert command(run, "inspect") is None
    assert_kept(run, precious, before, (0, 0))
    left = {name for name in RESULTS if (run / name).is_symlink()}
    assert left == {".metrics.json.new"}


def not_to_be_called(*args, **kwargs):
    raise AssertionError("it is to be refused before")


@pytest.mark.parametrize(
    ("name", "kind"),
    [*(("model", kind) for kind in LINKS), *((name, folder_of_others) for name in RESULTS)],
)
def test_results_are_refused_before_scoring(name, kind, precious, tmp_path, finished, monkeypatch):
    run, before = tmp_path / "run", contents(precious)
    shutil.copytree(finished[0], run)
    plant(run / name, kind, precious)
    planted = of_others(run)
    if name in ("trust.json", "page.html"):
        monkeypatch.setattr(pv, "diagnose", not_to_be_called)
        assert isinstance(command(run, "inspect"), ValueError)
    elif name == "prior_samples.png":
        assert isinstance(command(run, "sample"), OSError)
    elif name != ".metrics.json.new":
        monkeypatch.setattr(reports, "evaluate", not_to_be_called)
        with pytest.raises(pv.CheckpointError, match=name):
            write_results(finished, run)
    assert_kept(run, precious, before, planted)


@pytest.mark.parametrize(
    "name", ["model", "checkpoints", "checkpoints-before", ".lock", ".lock.pid"]
)
def test_a_link_in_place_of_a_folder_is_refused_by_its_name(name, precious, tmp_path):
    for kind in LINKS:
        (tmp_path / name).unlink(missing_ok=True)
        kind(tmp_path / name, precious)
        with pytest.raises(pv.CheckpointError, match=f"{name} is a link.*remove it, or choose an"):
            fit(tmp_path)


def test_the_run_folder_itself_may_be_a_link(precious, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    fit(tmp_path / "link" / "run")
    fit(tmp_path / "link" / "run", resume=True)
    assert (tmp_path / "disk" / "run" / "model").is_dir()
    shutil.rmtree(tmp_path / "disk" / "run")
    fit(tmp_path / "link")
    assert (tmp_path / "disk" / "model").is_dir()


@pytest.mark.parametrize("name", [".DS_Store", ".nfs0001", ".git", "notes.txt"])
def test_a_file_of_others_among_the_checkpoints_is_ignored(name, tmp_path):
    for _ in range(3):
        fit(tmp_path)
        for folder in ("checkpoints", "checkpoints-before"):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / name).write_bytes(PRECIOUS)
    assert fit(tmp_path, resume=True).stopped == "finished"
    for folder in ("checkpoints", "checkpoints-before"):
        assert (tmp_path / folder / name).read_bytes() == PRECIOUS
        names = {path.name for path in (tmp_path / folder).iterdir()}
        assert len(names - {name}) in (2, 3)  # as many checkpoints as one run keeps


def test_what_a_killed_run_has_left_is_removed(tmp_path):
    fit(tmp_path)
    fit(tmp_path)
    before = {path.relative_to(tmp_path) for path in tmp_path.rglob("*")}
    newest = sorted((tmp_path / "checkpoints").glob("0*"))[-1]
    shutil.copytree(newest, tmp_path / "checkpoints/.new-abc")
    shutil.copytree(newest, tmp_path / "checkpoints/.old-00000001")
    (tmp_path / "checkpoints/.new-abc/.new-0123456789abcdef").touch()
    shutil.copytree(tmp_path / "model", tmp_path / ".new-abc")
    (tmp_path / ".new-0123456789abcdef").touch()
    fit(tmp_path, resume=True)
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*")} == before


def test_files_have_the_permissions_of_the_umask(tmp_path):
    real = os.umask(0o027)
    try:
        folders.write_file(tmp_path / "file", b"")
    finally:
        os.umask(real)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


@pytest.mark.filterwarnings("ignore:.*has the results of an earlier run")
@pytest.mark.parametrize("umask", [0o002, 0o027, 0o077])
def test_a_run_has_the_permissions_of_the_umask(umask, tmp_path):
    real = os.umask(umask)
    try:
        fit(tmp_path / "run")
        fit(tmp_path / "run")  # the results of the first run are moved
    finally:
        os.umask(real)
    found = list((tmp_path / "run").rglob("*"))
    assert {path.name for path in found} >= {"results-before", "checkpoints-before", "model"}
    for path in found:
        full = 0o777 if path.is_dir() else 0o666
        assert path.stat().st_mode & 0o777 == full & ~umask, path
