"""A multi-band model: images of 13 channels, some of which are missing, differently in every sample of a batch.

`channel_stats` with a mask reduces what is present to a mean and a maximum at each pixel, so the network has no weight
that belongs to a channel. Learns to tell discs, crosses and rings, which every channel shows with a gain and noise of
its own. Prints the accuracy by the number of channels kept; the absent ones hold NaN, which nothing reads.
"""

import torch
from torch import Tensor, nn

from polychrome.kernels import channel_stats
from polychrome.kernels.modules import SpatialAttention

CHANNELS, CLASSES, SIZE = 13, 3, 24


class AnyChannelNetwork(nn.Module):
    """x [batch, channels, height, width] of any number of channels, and which of them are present -> logits."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(2, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            SpatialAttention(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(2 * width, CLASSES)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return logits [batch, CLASSES]; mask [batch, channels] is true where a channel is present."""
        features = self.features(channel_stats(x, mask))
        return self.classifier(features.amax((2, 3)))


def draw(count: int, device: str) -> tuple[Tensor, Tensor]:
    """Return images [count, CHANNELS, SIZE, SIZE] and the kind of figure on each."""
    labels = torch.arange(count, device=device) % CLASSES
    place = torch.randint(-4, 5, (2, count, 1, 1), device=device)
    side = torch.arange(SIZE, device=device) - SIZE // 2
    rows, columns = side[:, None] - place[0], side[None, :] - place[1]
    radius = torch.hypot(rows.float(), columns.float())
    cross = ((rows.abs() < 2) | (columns.abs() < 2)) & (radius < 7)
    figures = torch.stack([radius < 5, cross, (radius - 6).abs() < 1.5])
    shown = figures[labels, torch.arange(count, device=device)].float()[:, None]
    gains = 0.5 + torch.rand(count, CHANNELS, 1, 1, device=device)
    return shown * gains + 0.7 * torch.randn(count, CHANNELS, SIZE, SIZE, device=device), labels


def keep(count: int, kept: int | None, device: str) -> Tensor:
    """Return a mask [count, CHANNELS] of `kept` channels each, chosen by chance; None: of any number from one up."""
    ranks = torch.rand(count, CHANNELS, device=device).argsort(1).argsort(1)
    counts = torch.randint(1, CHANNELS + 1, (count, 1), device=device) if kept is None else kept
    return ranks < counts


def main(steps: int = 80, batch: int = 48) -> dict[int, float]:
    """Train on random choices of channels, print, and return the accuracy by the number of channels kept."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = AnyChannelNetwork().to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(steps):
        images, labels = draw(batch, device)
        loss = nn.functional.cross_entropy(network(images, keep(batch, None, device)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    images, labels = draw(384, device)
    accuracies = {}
    with torch.no_grad():
        for kept in (1, 2, 4, 8, CHANNELS):
            mask = keep(len(images), kept, device)
            absent = images.masked_fill(~mask[:, :, None, None], float("nan"))
            logits = network(absent, mask)
            assert logits.isfinite().all()
            accuracies[kept] = (logits.argmax(1) == labels).float().mean().item()
            print(f"{kept:>2} of {CHANNELS} channels: accuracy {accuracies[kept]:.1%}")
    return accuracies


if __name__ == "__main__":
    main()
