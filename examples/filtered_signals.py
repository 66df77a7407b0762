"""A batch of recordings, each rid of a hum of its own frequency by its own filter, in one convolution.

What sensors of different mains, motors or sampling clocks need: `per_sample_conv1d` with a band-stop filter for each
recording, mirrored at both ends. Prints the hum's amplitude before and after, and how much of the signal was lost, and
writes a picture, which needs matplotlib: each recording before and after.

    python examples/filtered_signals.py [PICTURE.png]
"""

import math
import sys
from pathlib import Path

import torch
from torch import Tensor

from polychrome.kernels import per_sample_conv1d

RATE, SECONDS, TAPS = 500, 2.0, 201
HUMS = torch.tensor([25.0, 50.0, 60.0, 100.0])  # Hz, one for each recording


def recordings() -> tuple[Tensor, Tensor]:
    """Return slow waves of two sensors, [4, 2, samples], and the hum [4, 1, samples] that lies over both."""
    time = torch.arange(int(RATE * SECONDS)) / RATE
    generator = torch.Generator().manual_seed(0)
    frequencies = 1 + 9 * torch.rand(4, 2, 3, 1, generator=generator)
    phases = 2 * math.pi * torch.rand(4, 2, 3, 1, generator=generator)
    waves = (2 * math.pi * frequencies * time + phases).sin().sum(2)
    return waves, (2 * math.pi * HUMS[:, None, None] * time).sin()


def band_stops(frequencies: Tensor, width: float = 16.0) -> Tensor:
    """Return filters [batch, TAPS] that remove `width` Hz around a frequency each and keep the rest.

    One minus a band pass, the difference of two sinc low passes, with a Blackman window.
    """
    time = (torch.arange(TAPS) - TAPS // 2) / RATE
    low, high = (2 * (frequencies[:, None] + side * width / 2) / RATE for side in (-1, 1))
    passed = high * torch.sinc(high * RATE * time) - low * torch.sinc(low * RATE * time)
    stops = -passed * torch.blackman_window(TAPS, periodic=False)
    stops[:, TAPS // 2] += 1
    return stops


def filtered(signals: Tensor, filters: Tensor) -> Tensor:
    """Return signals [batch, channels, samples], each channel convolved with its recording's filter [batch, taps]."""
    channels = signals.shape[1]
    weight = filters[:, None, None].expand(-1, channels, -1, -1)
    return per_sample_conv1d(signals, weight, padding="same", padding_mode="reflect", groups=channels)


def amplitude(signals: Tensor, frequencies: Tensor) -> Tensor:
    """Return the amplitude [batch] of a frequency in each recording, the mean over its channels."""
    time = torch.arange(signals.shape[-1], device=signals.device) / RATE
    angle = 2 * math.pi * frequencies[:, None, None] * time
    return 2 * torch.hypot(*((signals * wave).mean(2) for wave in (angle.sin(), angle.cos()))).mean(1)


def picture(before: Tensor, after: Tensor, path: Path) -> None:
    """Draw the first sensor of each recording before and after."""
    from matplotlib import pyplot

    time = torch.arange(before.shape[-1]) / RATE
    figure, rows = pyplot.subplots(len(before), sharex=True, figsize=(8, 6), layout="constrained")
    for row, old, new, hum in zip(rows, before[:, 0].cpu(), after[:, 0].cpu(), HUMS, strict=True):
        row.plot(time, old, color="0.75", linewidth=0.8, label="recorded")
        row.plot(time, new, color="tab:blue", linewidth=1.4, label="filtered")
        row.set_ylabel(f"hum of {hum:.0f} Hz")
    figure.legend(*rows[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False)
    rows[-1].set_xlabel("seconds")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def main(path: Path | None = None) -> tuple[list[float], list[float], float]:
    """Filter, print and draw; return the hums' amplitudes before and after, and the RMS error of the waves kept."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    waves, hum = (each.to(device) for each in recordings())
    frequencies = HUMS.to(device)
    before = waves + hum
    after = filtered(before, band_stops(HUMS).to(device))
    old, new = (amplitude(signals - waves, frequencies).tolist() for signals in (before, after))
    for frequency, one, other in zip(HUMS.tolist(), old, new, strict=True):
        print(f"hum of {frequency:3.0f} Hz: amplitude {one:.3f} before, {other:.4f} after")
    error = (after - waves).square().mean().sqrt().item()
    print(f"RMS error of the waves: {error:.4f} of {waves.square().mean().sqrt().item():.2f}")
    if path is not None:
        picture(before, after, path)
        print(f"picture: {path}")
    return old, new, error


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
