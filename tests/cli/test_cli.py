"""The command line resumes an interrupted run."""

import torch
from typer.testing import CliRunner

import pyro_vae as pv
from pyro_vae import cli
from tests.support.runs import (
    interrupt_after,
)


def test_the_command_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
    monkeypatch.setattr(pv, "report", lambda *args, **kwargs: None)  # scores and pictures

    def command(out, *options):
        size = ["--data", "mnist-5k", "--hidden", "8", "--latent-dim", "2", "--epochs", "2"]
        done = CliRunner().invoke(cli.app, ["train", *size, "--out", str(out), *options])
        said.append(done.output + str(done.exception))
        return list(pv.load(out / "model").parameters())

    said: list[str] = []

    whole = command(tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 40)
        part = command(tmp_path / "parts")
    assert "start it again with --resume" in said[-1]
    command(tmp_path / "parts", "--resume", "--latent-dim", "3")
    assert "another run in another folder (--out)" in said[-1]
    resumed = command(tmp_path / "parts", "--resume")
    assert not torch.equal(part[0], whole[0])
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(resumed, whole, strict=True))
