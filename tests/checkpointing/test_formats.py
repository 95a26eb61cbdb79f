"""Models of every format are read, with every part in them, and new ones name classes publicly."""

import importlib
import json
from pathlib import Path

import pytest
import torch

import pyro_vae as pv
from pyro_vae.checkpointing import model_folder as checkpoints
from pyro_vae.part import Part
from tests.support import catalogue
from tests.support.everything import Everything

FIXTURES = Path(__file__).parents[1] / "fixtures"
OLD = {1: FIXTURES / "every-part-format-1", 2: FIXTURES / "every-part-format-2"}


def classes_in(described):
    """Yield the class names that a saved model holds."""
    if isinstance(described, dict):
        if "class" in described:
            yield described["class"]
        for value in described.values():
            yield from classes_in(value)
    elif isinstance(described, list):
        for value in described:
            yield from classes_in(value)


def architecture(folder):
    return json.loads((folder / checkpoints.ARCHITECTURE).read_text())


# Not in older formats.
NEWER = {pv.networks.ColumnInputs, pv.networks.Standardized, pv.networks.WithContext}


@pytest.mark.parametrize("version", OLD)
def test_every_part_of_an_older_format_loads(version):
    assert architecture(OLD[version])["format"] == version
    part = pv.load(OLD[version], old_format=version == 1)
    assert isinstance(part, Everything)
    kinds = {type(module) for module in part.modules() if isinstance(module, Part)}
    lines = {**catalogue.PRIORS, **catalogue.GUIDES, **catalogue.NETWORKS}
    built = [line.build() for line in lines.values() if line.saves]
    built += [line.build(2) for line in catalogue.LIKELIHOODS.values() if line.saves]
    expected = {type(part) for part in built} - NEWER
    assert expected | {pv.VAE, pv.LadderVAE, pv.MixedVAE} <= kinds


@pytest.mark.parametrize("version", OLD)
def test_an_older_model_keeps_its_weights_when_it_is_saved_again(version, tmp_path):
    old = pv.load(OLD[version], old_format=version == 1)
    checkpoints.save(old, tmp_path / "model")
    assert architecture(tmp_path / "model")["format"] == checkpoints.FORMAT
    new = pv.load(tmp_path / "model")
    assert old.state_dict().keys() == new.state_dict().keys()
    for name, tensor in old.state_dict().items():
        assert torch.equal(tensor, new.state_dict()[name]), name


def test_classes_are_stored_by_the_name_they_are_imported_by(tmp_path):
    checkpoints.save(pv.load(OLD[2]), tmp_path / "model")
    names = set(classes_in(architecture(tmp_path / "model")))
    for name in names:
        module, _, kind = name.rpartition(".")
        assert isinstance(getattr(importlib.import_module(module), kind), type), name
        public = module in checkpoints.NAMESPACES or module == "tests.support.everything"
        assert public, name


def test_every_old_name_is_of_a_class_that_exists():
    for name in checkpoints.OLD_NAMES.values():
        module, _, kind = name.rpartition(".")
        assert issubclass(getattr(importlib.import_module(module), kind), Part)


def test_a_format_without_checksums_needs_the_word(tmp_path):
    with pytest.raises(pv.CheckpointError, match="old_format=True"):
        pv.load(OLD[1])
    with pytest.raises(pv.CheckpointError, match="without old_format"):
        pv.load(OLD[2], old_format=True)
