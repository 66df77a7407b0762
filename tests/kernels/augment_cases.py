"""Images and parameters that the tests of `augment` share."""

import torch

COUNT, HEIGHT, WIDTH, BATCH = 5, 23, 19, 4
MEAN, STD = [0.401, 0.503, 0.598], [0.2, 0.3, 0.25]
SMALLEST_STD = min(STD)

PARAMETERS = {
    "indices": torch.tensor([3, 0, 4, 4]),
    # whole, inside, hanging over every edge, and one that touches two of them
    "crops": torch.tensor([[0, 0, 23, 19], [2, 3, 10, 7], [-4, -2, 40, 50], [5, 6, 18, 13]]),
    "flips": torch.tensor([True, False, True, False]),
    "vflips": torch.tensor([False, True, True, False]),
    "angles": torch.tensor([0.0, 30.0, -10.0, 90.0]),
    "brightness": torch.tensor([1.0, 0.5, 1.4, 0.9]),
    "contrast": torch.tensor([1.2, 0.5, 1.0, 0.7]),
    "gamma": torch.tensor([1.0, 0.7, 1.5, 2.0]),
    "grayscale": torch.tensor([False, True, False, True]),
    "channels": torch.tensor([[0, 1, 2, 0], [2, -1, 0, -1], [-1, -1, 1, 0], [1, 1, 1, 1]], dtype=torch.int32),
    "cutouts": torch.tensor([[0, 0, 4, 4], [-1, 5, 3, 3], [6, 6, 20, 20], [0, 0, 0, 0]]),
}
# Each parameter on its own with the indices, none, all, and those a training run uses.
CASES = {name: {name: value} | {"indices": PARAMETERS["indices"]} for name, value in PARAMETERS.items()}
GAINS = torch.tensor([[1.0, 0.5, 1.4], [0.9, 1.1, 0.7], [1.2, 1.0, 0.8], [0.6, 1.3, 1.0]])
CASES["gains"] = {"brightness": GAINS, "indices": PARAMETERS["indices"]}
CASES["gains and gray"] = {name: PARAMETERS[name] for name in ("indices", "grayscale", "channels")}
CASES["gains and gray"] |= {"brightness": GAINS}
CASES["no_parameters"] = {}
CASES["training"] = {name: PARAMETERS[name] for name in ("indices", "crops", "flips")}
CASES["all"] = PARAMETERS
SIZES = {"same": None, "smaller": 8, "unlike": (13, 30)}


def images(channels: int = 3) -> torch.Tensor:
    """Return uint8 [COUNT, HEIGHT, WIDTH, channels]."""
    generator = torch.Generator().manual_seed(channels)
    return torch.randint(0, 256, (COUNT, HEIGHT, WIDTH, channels), generator=generator).byte()


def statistics(channels: int = 3) -> dict[str, list[float]]:
    """Return a mean and a deviation for each channel."""
    return {"mean": (MEAN * channels)[:channels], "std": (STD * channels)[:channels]}
