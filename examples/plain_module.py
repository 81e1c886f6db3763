"""A model that is a plain `torch.nn.Module`, fine-tuned by three owners and merged by RegMean.

    python examples/plain_module.py

All owners have the same task, a function of a sequence's mean, but see sequences from different
corners. Here their statistics are added up in the open; `Merge` and
`SecureSums` do it over Flower and under masks, with a plan that has this manifest.
"""

import copy

import torch
from torch import nn

from blindmerge.merge import Average, RegMean
from blindmerge_client.modules import Pass, manifest_from_module, module_evidence

FEATURES, LENGTH, OWNERS, EXAMPLES = 16, 8, 3, 512


class Model(nn.Module):
    """A transformer layer and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(
            FEATURES, nhead=2, dim_feedforward=32, dropout=0.0, batch_first=True
        )
        self.head = nn.Linear(FEATURES, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [sequences, LENGTH, FEATURES]. Returns a number for each."""
        return self.head(self.encoder(x).mean(dim=1)).squeeze(-1)


def examples(owner: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences of an owner, and their targets."""
    x = torch.randn(EXAMPLES, LENGTH, FEATURES)
    x[..., owner * 4 : owner * 4 + 4] *= 3.0
    return x, torch.sin(x.mean(dim=1)).sum(dim=-1)


def fine_tuned(base: Model, x: torch.Tensor, y: torch.Tensor) -> Model:
    """The base after some steps on an owner's examples."""
    model = copy.deepcopy(base)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    return model


def main() -> dict[str, float]:
    """Prints and returns the mean error over the owners' test examples, by method."""
    torch.manual_seed(0)
    base = Model()
    data = [examples(owner) for owner in range(OWNERS)]
    owners = [fine_tuned(base, *each) for each in data]
    test = [examples(owner) for owner in range(OWNERS)]

    (block,) = manifest_from_module(base).blocks
    start = {name: tensor.double().numpy() for name, tensor in base.state_dict().items()}
    evidence = [
        module_evidence(own, base.state_dict(), block, [Pass(args=(x,))])
        for own, (x, _) in zip(owners, data, strict=True)
    ]
    errors = {}
    for method in (Average(), RegMean(ridge=0.01)):
        total = method.contribution(block, evidence[0])  # each owner's own work ...
        for each in evidence[1:]:
            total = total + method.contribution(block, each)
        merged = method.solve(block, total, start)  # ... and the server's
        model = copy.deepcopy(base)
        weights = {name: torch.from_numpy(w).float() for name, w in merged.weights.items()}
        model.load_state_dict(weights)
        with torch.no_grad():
            found = [nn.functional.mse_loss(model(x), y).item() for x, y in test]
        errors[method.name] = sum(found) / OWNERS
        print(f"{method.name:8} mean squared error {errors[method.name]:.3f}")
    return errors


if __name__ == "__main__":
    main()
