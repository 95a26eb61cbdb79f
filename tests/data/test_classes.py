"""Labels are numbers or names of classes; names appear in pictures."""

import numpy as np
import pytest
import torch

import pyro_vae as pv
from pyro_vae.data import Dataset

X = torch.zeros(4, 2)
NAMES = ["b", "a", "c", "a"]


@pytest.mark.parametrize(
    "labels", [NAMES, tuple(NAMES), np.array(NAMES), np.array(NAMES, dtype=object)]
)
def test_names_are_numbered_in_alphabetical_order(labels):
    data = Dataset(X, labels=labels)
    assert data.labels.tolist() == [1, 0, 2, 0]
    assert data.labels.dtype == torch.int64
    assert data.class_names == ("a", "b", "c")
    rest, held = data.hold_out(2)
    assert rest.class_names == held.class_names == data.class_names
    assert rest.astype(torch.float64).class_names == data.class_names


@pytest.mark.parametrize("labels", [[1, 0, 2, 0], np.array([1, 0, 2, 0], np.uint8)])
def test_numbers_of_any_type_are_classes(labels):
    assert Dataset(X, labels=labels).labels.tolist() == [1, 0, 2, 0]
    assert Dataset(X, labels=labels, class_names=["b", "a", "c"]).class_names == ("b", "a", "c")


def test_given_names_set_the_order():
    assert Dataset(X, labels=NAMES, class_names=("c", "b", "a")).labels.tolist() == [1, 2, 0, 2]


@pytest.mark.parametrize(
    ("labels", "names", "sentence"),
    [
        (NAMES, ("a", "b"), "label 2 is 'c', which is not in class_names"),
        (["a", None, "b", "c"], (), "label 1 is None; expected the name of a class"),
        (["a", 2.0, "b", "c"], (), r"label 1 is|labels must be"),
        (NAMES[:3], (), r"labels have shape \(3,\); expected \(4,\)"),
        ([0, 1, 2, 3], ("a", "b"), "labels are from 0 to 3, but class_names"),
        ([-1, 0, 0, 0], ("a", "b"), "labels are from -1"),
        (torch.zeros(4), ("a",), "must be class numbers, got torch.float32"),
        (NAMES, ("a", "a", "b", "c"), "'a' more than once"),
        (NAMES, "abc", "class_names must be a sequence of strings"),
        (NAMES, (1, 2), "class_names must be a sequence of strings"),
        ("abcd", (), "labels must be a tensor of class numbers or a sequence of names, got str"),
        ([["a"], ["b", "c"]], (), "labels must be a tensor"),
        ([0.5, 1.0, 2.0, 3.0], (), "labels must be a tensor"),
        (3, (), "labels must be a tensor"),
    ],
)
def test_other_labels_are_refused(labels, names, sentence):
    with pytest.raises(pv.data.DataError, match=sentence):
        Dataset(X, labels=labels, class_names=names)


def test_the_legend_has_the_names():
    figure = pv.plots.latent_map(np.eye(4)[:, :2], [1, 0, 2, 0], "toy", ("a", "b"), ["x", "y", "$"])
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert texts == ["x", "y", r"\$"]
