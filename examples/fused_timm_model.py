"""timm's EfficientNet with CondConv, trained for a few steps as it is and after `kernels.fuse`.

Needs timm. Prints what was swapped, the largest difference of the logits, and the images a second of a training step
before and after. On a CPU the images are small; what a machine makes of them is no benchmark.
"""

import copy
import time

import timm
import torch
from torch import nn

from polychrome import kernels
from polychrome.kernels.fuse import Report

MODEL = "tf_efficientnet_cc_b0_4e"


def rate(model: nn.Module, images: torch.Tensor, steps: int) -> float:
    """Return the images a second of a training step, the first of which is not counted."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    labels = torch.arange(len(images), device=images.device)
    times = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        with torch.autocast(images.device.type, torch.bfloat16, enabled=images.is_cuda):
            loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if images.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return len(images) / sorted(times[1:])[steps // 2]


def main(steps: int = 3) -> tuple[Report, float]:
    """Fuse, compare, time, print; return the report and the largest difference of the logits."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch, size = (128, 224) if device == "cuda" else (4, 64)
    images = torch.randn(batch, 3, size, size, device=device)
    plain = timm.create_model(MODEL, pretrained=False).to(device)
    fused = copy.deepcopy(plain)
    report = kernels.fuse(fused)  # in place: names in the state dict stay
    print(report)
    with torch.no_grad():
        difference = (plain.eval()(images) - fused.eval()(images)).abs().max().item()
    print(f"largest difference of the logits: {difference:.1e}")
    before, after = (rate(model.train(), images, steps) for model in (plain, fused))
    print(f"{device}, {batch} images of {size} pixels: {before:.1f} images/s before, {after:.1f} after")
    return report, difference


if __name__ == "__main__":
    main()
