"""A run on a `DataLoader` that is interrupted and resumed equals a whole run, or warns first."""

import random
import signal
import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    Subset,
    TensorDataset,
)

import pyro_vae as pv

NUM_DATA, BATCH, EPOCHS = 24, 8, 3  # 3 steps an epoch
STEPS = (2, 3, 7)  # within the first epoch, at its end, within the last one
MODULE_GENERATOR = torch.Generator().manual_seed(5)


def rows():
    return torch.randn(NUM_DATA, 3, generator=torch.Generator().manual_seed(0))


class Drawing(Dataset):
    """Rows with noise from a function, as a random transform adds it."""

    def __init__(self, noise):
        self.x, self.noise = rows(), noise

    def __len__(self):
        return NUM_DATA

    def __getitem__(self, index):
        return self.x[index] + torch.as_tensor(self.noise(), dtype=torch.float32)


class Holding(Dataset):
    """Rows with noise from a generator that is an attribute."""

    def __init__(self, generator, draw):
        self.x, self.generator, self.draw = rows(), generator, draw

    def __len__(self):
        return NUM_DATA

    def __getitem__(self, index):
        return self.x[index] + float(self.draw(self.generator))


class Shuffler:
    """Sampler in Python with its generator."""

    def __init__(self):
        self.generator = random.Random(3)

    def __len__(self):
        return NUM_DATA

    def __iter__(self):
        order = list(range(NUM_DATA))
        self.generator.shuffle(order)
        return iter(order)


class Counter(Shuffler):
    """Sampler with an order that depends on the number of passes so far."""

    passes = 0

    def __iter__(self):
        self.passes += 1
        return iter(np.random.default_rng(self.passes).permutation(NUM_DATA).tolist())


class Lazy(Shuffler):
    """Sampler that makes its generator in the first pass."""

    generator = None

    def __init__(self):
        pass

    def __iter__(self):
        self.generator = self.generator or random.Random(3)
        return super().__iter__()


class GlobalShuffler(Shuffler):
    """Sampler that draws from the global generators of random and numpy."""

    def __init__(self):
        pass

    def __iter__(self):
        order = np.random.permutation(NUM_DATA).tolist()  # noqa: NPY002 - as users write it
        random.shuffle(order)
        return iter(order)


class Stream(IterableDataset):
    def __init__(self, generator=None):
        self.x, self.generator = rows(), generator

    def __len__(self):
        return NUM_DATA

    def __iter__(self):
        for row in self.x:
            noise = torch.randn(3) if self.generator is None else self.generator.gauss(0, 1)
            yield row + noise


class Cursor(Stream):
    """Stream that continues where the last pass ended."""

    place = 0

    def __iter__(self):
        for _ in range(NUM_DATA):
            self.place += 1
            yield self.x[self.place * 7 % NUM_DATA] * (1 + self.place / 100)


class Curriculum(Dataset):
    """Rows that depend on an attribute."""

    stage = 0

    def __len__(self):
        return NUM_DATA

    def __getitem__(self, index):
        return rows()[index] * (1 + self.stage / 10)


def distributed():
    data = TensorDataset(rows())
    return DataLoader(data, BATCH, sampler=DistributedSampler(data, num_replicas=1, rank=0))


def torch_generator():
    return torch.Generator().manual_seed(3)


def closure():
    generator = np.random.default_rng(4)
    return Drawing(lambda: generator.normal(size=3))


def draw_in_torch(generator=None):
    return torch.randn((), generator=generator)


def noise_of_torch():
    return torch.randn(3)


REPEATABLE = {
    "plain": lambda: DataLoader(TensorDataset(rows()), BATCH, shuffle=True),
    "drop last": lambda: DataLoader(TensorDataset(rows()[:23]), BATCH, drop_last=True),
    "ragged": lambda: DataLoader(TensorDataset(rows()[:20]), BATCH, shuffle=True),
    "generator": lambda: DataLoader(
        TensorDataset(rows()), BATCH, shuffle=True, generator=torch_generator()
    ),
    "transform in torch": lambda: DataLoader(Drawing(noise_of_torch), BATCH, shuffle=True),
    "transform in numpy": lambda: DataLoader(
        Drawing(lambda: np.random.normal(size=3)),  # noqa: NPY002 - as users write it
        BATCH,
    ),
    "transform in random": lambda: DataLoader(Drawing(lambda: random.gauss(0, 1)), BATCH),
    "transform and generator": lambda: DataLoader(
        Drawing(noise_of_torch), BATCH, shuffle=True, generator=torch_generator()
    ),
    "closure": lambda: DataLoader(closure(), BATCH, shuffle=True),
    "subset": lambda: DataLoader(
        Subset(Holding(torch_generator(), draw_in_torch), range(NUM_DATA)), BATCH
    ),
    "dataset with numpy Generator": lambda: DataLoader(
        Holding(np.random.default_rng(1), np.random.Generator.normal), BATCH
    ),
    "dataset with RandomState": lambda: DataLoader(
        Holding(np.random.RandomState(1), np.random.RandomState.normal), BATCH
    ),
    "Python sampler": lambda: DataLoader(TensorDataset(rows()), BATCH, sampler=Shuffler()),
    "sampler of the globals": lambda: DataLoader(
        TensorDataset(rows()), BATCH, sampler=GlobalShuffler()
    ),
    "batch sampler": lambda: DataLoader(
        TensorDataset(rows()),
        batch_sampler=torch.utils.data.BatchSampler(Shuffler(), BATCH, False),
    ),
    "collate": lambda: DataLoader(
        rows(), BATCH, collate_fn=lambda x: torch.stack(x) + torch.randn(len(x), 3)
    ),
    "stream": lambda: DataLoader(Stream(), BATCH),
    "stream with generator": lambda: DataLoader(Stream(random.Random(2)), BATCH),
}
NOT_REPEATABLE = {
    "counter": lambda: DataLoader(TensorDataset(rows()), BATCH, sampler=Counter()),
    "lazy generator": lambda: DataLoader(TensorDataset(rows()), BATCH, sampler=Lazy()),
    "cursor": lambda: DataLoader(Cursor(), BATCH),
    "global generator": lambda: DataLoader(
        Drawing(lambda: torch.randn(3, generator=MODULE_GENERATOR)), BATCH
    ),
}
WORKERS = {
    "random transform": (Drawing, {}, True),
    "persistent, no draws": (None, {"persistent_workers": True}, True),
    "persistent": (Drawing, {"persistent_workers": True}, False),
}


def train(loader, out, stop=0, **options):
    torch.manual_seed(0)
    vae = pv.VAE(
        pv.priors.StandardNormal(1),
        pv.likelihoods.Normal(pv.networks.MLP(1, [], 3)),
        pv.guides.DiagonalNormal(pv.networks.MLP(3, [], 2)),
    )
    optimizer, steps = torch.optim.Adam(vae.parameters(), 1e-2), []

    def count(*_):
        steps.append(0)
        if len(steps) == stop:
            signal.raise_signal(signal.SIGINT)

    optimizer.register_step_post_hook(count)
    fit = pv.fit(vae, loader, epochs=EPOCHS, optimizer=optimizer, out=out, **options)
    values = [p.detach().flatten() for p in vae.parameters()]
    scores = [e["train_elbo"] for e in fit.history] + [
        e["validation_elbo"] for e in fit.history if "validation_elbo" in e
    ]
    return torch.cat([*values, torch.tensor(scores)])


def assert_resumed_equal(make, folder, steps, validation=lambda: None):
    whole = train(make(), folder / "whole", validation=validation())
    for step in steps:
        np.random.seed(step)  # noqa: NPY002 - the caller's random state does not matter
        random.seed(step)
        out = folder / str(step)
        train(make(), out, step, validation=validation())
        resumed = train(make(), out, resume=True, validation=validation())
        assert torch.equal(whole, resumed), f"interrupted at step {step}"


@pytest.mark.thinned(4)
@pytest.mark.parametrize("kind", REPEATABLE)
def test_a_resumed_run_is_equal(kind, tmp_path):
    assert_resumed_equal(REPEATABLE[kind], tmp_path, STEPS)


@pytest.mark.parametrize("step", STEPS[1:])
def test_an_epoch_that_a_callback_sets_is_resumed(step, tmp_path):
    def run(out, stop=0, **options):
        loader = distributed()
        set_epoch = loader.sampler.set_epoch
        return train(loader, out, stop, callback=lambda e: set_epoch(int(e["epoch"])), **options)

    whole = run(tmp_path / "whole")
    assert not torch.equal(whole, train(distributed(), tmp_path / "same order"))
    run(tmp_path / "parts", step)
    assert torch.equal(whole, run(tmp_path / "parts", resume=True))


def test_other_numbers_of_a_dataset_are_named(tmp_path):
    def run(stop=0, **options):
        data = Curriculum()

        def next_stage(entry):
            data.stage = int(entry["epoch"])

        return train(DataLoader(data, BATCH), tmp_path, stop, callback=next_stage, **options)

    run(STEPS[-1])
    with pytest.warns(UserWarning, match="stage of Curriculum was 2 and is 0") as caught:
        run(resume=True)
    assert caught[0].filename == train.__code__.co_filename


@pytest.mark.parametrize("kind", ["generator", "transform and generator", "Python sampler"])
def test_a_validation_loader_is_read_alike_in_each_epoch(kind, tmp_path):
    assert_resumed_equal(REPEATABLE["generator"], tmp_path, STEPS[1:3], validation=REPEATABLE[kind])


@pytest.mark.parametrize("kind", NOT_REPEATABLE)
def test_a_loader_that_cannot_be_read_again_warns_before_training(kind, tmp_path):
    with pytest.warns(UserWarning, match="cannot be resumed bit for bit, because the DataLoader"):
        train(NOT_REPEATABLE[kind](), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(NOT_REPEATABLE[kind](), None)  # nothing to resume


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.thinned(2)
@pytest.mark.parametrize("kind", WORKERS)
def test_workers(kind, tmp_path):
    dataset, options, repeatable = WORKERS[kind]

    def make():
        data = TensorDataset(rows()) if dataset is None else dataset(noise_of_torch)
        return DataLoader(data, BATCH, shuffle=True, num_workers=2, **options)

    if repeatable:
        assert_resumed_equal(make, tmp_path, STEPS[:1])
    else:
        with pytest.warns(UserWarning, match="persistent_workers=False"):
            train(make(), tmp_path)


def test_the_random_state_of_the_caller_is_left_alone(tmp_path):
    def state():
        _, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - the caller's
        return torch.get_rng_state().tolist(), random.getstate(), keys.tolist(), rest

    for kind in ("transform in torch", "transform in numpy", "transform in random"):
        torch.manual_seed(0)
        loader = REPEATABLE[kind]()
        before = state()
        pv.fit(
            pv.VAE(
                pv.priors.StandardNormal(1),
                pv.likelihoods.Normal(pv.networks.MLP(1, [], 3)),
                pv.guides.DiagonalNormal(pv.networks.MLP(3, [], 2)),
            ),
            loader,
            epochs=1,
        )
        after = state()
        assert after[1:] == before[1:], kind
