"""What is asked of any model: images to show it, its parameters, and their gradients."""

import torch
from torch import Tensor, nn


def images(*shape: int, seed: int = 0) -> Tensor:
    """Return random images of a shape, the same for the same seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def parameter_count(model: nn.Module) -> int:
    """Return how many parameters a model has."""
    return sum(p.numel() for p in model.parameters())


def gradients(model: nn.Module, *arguments: Tensor | None) -> list[Tensor]:
    """Return the gradients of the mean squared output of `model(*arguments)`, one for each parameter."""
    model.zero_grad()
    model(*arguments).square().mean().backward()
    return [p.grad.clone() for p in model.parameters()]


def with_and_without_mask(model: nn.Module, x: Tensor, mask: Tensor) -> zip:
    """Return pairs of gradients: of x with its absent channels NaN and the mask, and of the present channels alone.

    x is [batch, channels, height, width]; mask [batch, channels], bool, has equally many present in each sample.
    """
    absent = x.masked_fill(~mask[:, :, None, None], float("nan"))
    present = x[mask].unflatten(0, (len(x), -1))
    return zip(gradients(model, absent, mask), gradients(model, present), strict=True)


def assert_it_compiles_and_is_exported(model, x, mask):
    """Check the model's outputs compiled as one graph, and exported with a batch of any size, of fewer images."""
    with torch.no_grad():
        wanted = model(x, mask)
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x, mask), wanted)
        batch = torch.export.Dim("batch", min=1)
        program = torch.export.export(model, (x, mask), dynamic_shapes=({0: batch}, {0: batch}))
        torch.testing.assert_close(program.module()(x[:2], mask[:2]), wanted[:2])
