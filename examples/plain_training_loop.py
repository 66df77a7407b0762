"""Fused ops in a plain PyTorch training loop: a small network of dynamic convolutions with both kinds of attention.

Learns which of four directions the stripes of an image have. Prints the device, the loss every ten steps, and the
accuracy on images that were not trained on.
"""

import math

import torch
from torch import Tensor, nn

from polychrome.kernels.modules import ChannelGate, DynamicConv2d, SpatialAttention, anneal_temperature

CLASSES = 4


class Network(nn.Module):
    """Two stages, each with a kernel of its own for every sample: [batch, 3, height, width] -> [batch, CLASSES]."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.stages = nn.Sequential(self._stage(3, width, stride=1), self._stage(width, 2 * width, stride=2))
        self.classifier = nn.Linear(2 * width, CLASSES)

    @staticmethod
    def _stage(channels: int, width: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            DynamicConv2d(channels, width, 3, stride, padding=1, bias=False, experts=4),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            ChannelGate(width, width // 4),
            SpatialAttention(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.classifier(self.stages(x).mean((2, 3)))


def draw(count: int, size: int, device: str) -> tuple[Tensor, Tensor]:
    """Return noisy striped images [count, 3, size, size] and the number of each one's direction."""
    labels = torch.arange(count, device=device) % CLASSES
    angles = (labels * (math.pi / CLASSES))[:, None, None, None]
    rows, columns = torch.meshgrid(*[torch.arange(size, device=device)] * 2, indexing="ij")
    phases = torch.rand(count, 1, 1, 1, device=device) * 2 * math.pi
    waves = torch.sin(rows * angles.cos() + columns * angles.sin() + phases)
    return waves + 0.5 * torch.randn(count, 3, size, size, device=device), labels


def main(steps: int = 60, batch: int = 32, size: int = 24) -> float:
    """Train, print, and return the accuracy."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"device: {device}")
    network = Network().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    for step in range(steps):
        anneal_temperature(network, step, epochs=steps // 2)  # from 30 to 1 over the first half
        images, labels = draw(batch, size, device)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            loss = nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 9:
            print(f"step {step + 1}: loss {loss.item():.3f}")
    network.eval()
    with torch.no_grad():
        images, labels = draw(256, size, device)
        accuracy = (network(images).argmax(1) == labels).float().mean().item()
    print(f"accuracy: {accuracy:.1%} (chance: {1 / CLASSES:.0%})")
    return accuracy


if __name__ == "__main__":
    main()
