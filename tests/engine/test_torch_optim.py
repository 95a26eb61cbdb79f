"""One torch optimizer for all parameters: the kernel of its update."""

import itertools

import pytest
import torch

from pyro_vae.engine.torch_optim import TorchOptim

# Views of shape (4, 6) with other orders in memory, or with gaps.
LAYOUTS = {
    "rows": lambda: torch.zeros(4, 6),
    "columns": lambda: torch.zeros(6, 4).t(),
    "gaps": lambda: torch.zeros(4, 12)[:, ::2],
    "reversed": lambda: torch.zeros(6, 2, 2).permute(1, 2, 0).flatten(0, 1),
}
OPTIMIZERS = {
    "Adam": lambda p, **kw: torch.optim.Adam(p, lr=0.1, weight_decay=0.1, **kw),
    "amsgrad": lambda p, **kw: torch.optim.Adam(p, lr=0.1, amsgrad=True, **kw),
    "AdamW": lambda p, **kw: torch.optim.AdamW(p, lr=0.1, **kw),
    "SGD": lambda p, **kw: torch.optim.SGD(p, lr=0.1, momentum=0.9, **kw),
    "Adagrad": lambda p, **kw: torch.optim.Adagrad(p, lr=0.1, **kw),
}


def in_layout(layout, values):
    """Return a tensor of these values in a layout."""
    made = LAYOUTS[layout]()
    made.copy_(values)
    return made


def trained(make, layouts, **fused):
    """Take four steps; the first two have gradients of other layouts than the last two."""
    torch.manual_seed(0)
    start = torch.randn(4, 6)
    parameters = [
        torch.nn.Parameter(in_layout(layouts[0], start)),
        torch.nn.Parameter(torch.randn(3)),
    ]
    optimizer = make(parameters, **fused)
    optim = TorchOptim(optimizer)
    for i in range(4):
        parameters[0].grad = in_layout(layouts[1 + i // 2], torch.randn(4, 6))
        parameters[1].grad = torch.randn(3)
        optim(parameters)
    return [p.detach().clone() for p in parameters], optimizer


@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_parameters_gradients_and_states_of_any_layout_are_updated_in_any_order(optimizer, fused):
    """torch's fused kernel reads all of them in the order of memory, without a check."""
    make = OPTIMIZERS[optimizer]
    for layouts in itertools.product(LAYOUTS, repeat=3):
        plain, _ = trained(make, ["rows"] * 3, fused=False)
        found, used = trained(make, layouts, fused=fused)
        for one, other in zip(plain, found, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6, msg=str(layouts))
        assert used.param_groups[0]["fused"] is fused  # the settings of the caller are unchanged


@pytest.mark.parametrize(
    ("settings", "dtype", "expected"),
    [
        ({}, torch.float32, True),
        ({"fused": True}, torch.float32, True),
        ({"fused": False}, torch.float32, False),
        ({"foreach": True}, torch.float32, False),
        ({"lr": torch.tensor(0.1)}, torch.float32, False),
        ({}, torch.float64, False),
    ],
)
def test_adam_uses_the_fused_kernel_unless_its_caller_chose_another(
    settings, dtype, expected, monkeypatch
):
    calls = []
    kernel = torch._fused_adam_
    monkeypatch.setattr(
        torch, "_fused_adam_", lambda *args, **kw: calls.append(kernel(*args, **kw))
    )
    parameter = torch.nn.Parameter(torch.zeros(3, dtype=dtype))
    parameter.grad = torch.ones(3, dtype=dtype)
    with torch.no_grad():
        TorchOptim(torch.optim.Adam([parameter], **settings))([parameter])
    assert bool(calls) is expected
    assert parameter.detach().lt(0).all()


def test_a_subclass_of_adam_runs_its_own_code():
    class Counting(torch.optim.Adam):
        def step(self, closure=None):
            self.seen = [group["fused"] for group in self.param_groups]
            return super().step(closure)

    parameter = torch.nn.Parameter(torch.zeros(3))
    parameter.grad = torch.ones(3)
    optimizer = Counting([parameter])
    TorchOptim(optimizer)([parameter])
    assert optimizer.seen == [None]
