"""Train a VAE with PyTorch Lightning on two processes: Lightning's loop, Pyro's bound.

    pip install lightning; python examples/lightning_ddp.py

The script prints the scores and writes samples from the trained VAE to samples.png.
"""

from pathlib import Path

import lightning
import torch
import typer
from pyro.infer import Trace_ELBO
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae as pv
from pyro_vae import plots


class LightningVAE(lightning.LightningModule):
    """A LightningModule for a pair with a Pyro `model` and `guide` that are modules."""

    def __init__(self, pair, num_data):
        super().__init__()
        self.programs = torch.nn.ModuleList([pair.model, pair.guide])
        self.num_data = num_data

    def training_step(self, batch, batch_idx):
        """Return the loss, -ELBO in nats per datum."""
        programs = (pv.objectives.per_datum(program, self.num_data) for program in self.programs)
        loss = Trace_ELBO().differentiable_loss(*programs, *batch)
        self.log("elbo", -loss.detach(), prog_bar=True, sync_dist=True)
        return loss

    def configure_optimizers(self):
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def main(data: str = "mnist", epochs: int = 5, devices: int = 2, out: Path = Path("runs/ddp")):
    """Train on `devices` processes of this machine, score in all, and plot in the first."""
    train, test = pv.data.load(data)
    torch.manual_seed(0)
    decoder = pv.networks.MLP(20, [200], train.event_shape, output_bias=train.log_odds())
    guide = pv.guides.DiagonalNormal(pv.networks.MLP(train.event_shape, [200], 40))
    vae = pv.VAE(pv.priors.StandardNormal(20), pv.likelihoods.Bernoulli(decoder), guide)
    loader = DataLoader(TensorDataset(train[:]), batch_size=64, shuffle=True)
    options = dict.fromkeys(["logger", "enable_checkpointing", "enable_model_summary"], False)
    trainer = lightning.Trainer(devices=devices, strategy="ddp", max_epochs=epochs, **options)
    trainer.fit(LightningVAE(vae, len(train)), loader)
    scores = pv.evaluate(vae, test, num_samples=100)
    if trainer.is_global_zero:
        print(scores)
        out.mkdir(parents=True, exist_ok=True)
        plots.image_grid(vae.sample(64), train.name).savefig(out / "samples.png")


if __name__ == "__main__":
    typer.run(main)
