import pytest
import torch

from pyro_vae.data.any_data import as_dataset
from pyro_vae.pairs.chunking import MemoryWarning, map_chunks, over_chunks
from pyro_vae.runtime.random_state import preserved_state

DATA = torch.arange(10.0)


def noisy(batch, draws):
    (x,) = batch
    return {"x": x, "noise": torch.randn(len(x)), "draws": torch.full((len(x),), draws)}


def run(score=noisy, **settings):
    with preserved_state():
        return map_chunks(as_dataset(DATA), score, **{"rows": 4, "seed": 0} | settings)


def test_rows_come_back_in_order_and_noise_belongs_to_the_position():
    found = run()
    assert torch.equal(found["x"], DATA)
    torch.manual_seed(3)
    assert torch.equal(run()["noise"], found["noise"])
    assert torch.equal(run(rows=4)["noise"][:4], run(rows=8)["noise"][:4])
    assert not torch.equal(run(seed=1)["noise"], found["noise"])
    assert len(set(found["noise"].tolist())) == len(DATA)  # each chunk has other noise


def test_the_last_chunk_has_at_least_so_many_rows():
    sizes = []

    def score(batch, draws):
        sizes.append(len(batch[0]))
        return noisy(batch, draws)

    run(score, rows=3, least=2)
    assert sizes == [3, 3, 4]


def limited(rows, draws):
    def score(batch, found):
        if len(batch[0]) > rows or found > draws:
            raise MemoryError
        return noisy(batch, found)

    return score


def test_chunks_are_halved_when_memory_runs_out():
    with pytest.warns(MemoryWarning, match="chunks of 2 data and 8 samples"):
        found = run(limited(2, 8), draws=8)
    assert torch.equal(found["x"], DATA)
    assert torch.equal(found["noise"], run(rows=2)["noise"])
    with pytest.warns(MemoryWarning):
        assert (run(limited(1, 4), draws=8)["draws"][4:] == 4).all()
    with pytest.warns(MemoryWarning):
        assert torch.equal(run(limited(3, 1), least=2)["x"], DATA)


def test_a_chunk_that_never_fits_is_an_error():
    with (
        pytest.warns(MemoryWarning),
        pytest.raises(MemoryError, match="a chunk of 2 data and 1 samples"),
    ):
        run(limited(1, 1), least=2)


def test_other_errors_are_raised():
    def broken(batch, draws):
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        run(broken)


def test_the_bar_shows_the_description(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes standard error for a terminal
    run(description="scoring", progress=True)
    run(description="hidden", progress=False)
    shown = capsys.readouterr().err
    assert "scoring" in shown
    assert "hidden" not in shown


def test_a_chunk_is_read_before_the_random_state_is_seeded():
    def read():
        return torch.rand(1)

    def work(place, batch):
        return place, torch.rand(1)

    with preserved_state():
        first = list(over_chunks([(0, read), (5, read)], work, seed=0))
        torch.manual_seed(9)
        again = list(over_chunks([(0, read), (5, read)], work, seed=0))
    assert first == again
