"""The calls of spatial attention that are timed, and the bytes they have to move."""

from typing import NamedTuple

from bench.shapes.feature_maps import BACKWARD_PASSES, Data, FeatureMap, data_of, feature_maps_on

KERNEL = 7


class Shape(NamedTuple):
    """Spatial attention on `x` with a KERNEL x KERNEL convolution without bias."""

    x: FeatureMap

    @property
    def name(self) -> str:
        """What tells this call from others of its dtype and layout."""
        return self.x.name

    @property
    def key(self) -> str:
        """What tells this call from all others: dtype, layout and name."""
        return f"{self.x.kind} {self.name}"

    def data(self, device: str) -> Data:
        """Return random data for the call: x and weight, and the gradient of y."""
        return data_of(self.x, [(1, 2, KERNEL, KERNEL)], device)

    def forward_bytes(self, l2_bytes: int) -> int:
        """Return the least bytes that forward moves on a GPU of so large an L2 cache, or a CPU (0).

        Besides the passes over x: the convolution needs neighbours, so mean and max are written and read, float32;
        gate and the channel of the max, 4 bytes each, are written for backward; the weight is read. 24 bytes a pixel.
        """
        return self.x.forward_passes(l2_bytes) * self.x.nbytes + 24 * self._pixels + self._weight

    def backward_bytes(self) -> int:
        """Return the least bytes that backward moves.

        Besides the passes over maps: gate, mean, max and the channel of the max are read, and the gradient of the
        logits is written and, for the convolution's neighbours, read. 24 bytes a pixel. The weight is read and its
        gradient written.
        """
        return BACKWARD_PASSES * self.x.nbytes + 24 * self._pixels + 2 * self._weight

    @property
    def _pixels(self) -> int:
        return self.x.batch * self.x.height * self.x.width

    @property
    def _weight(self) -> int:
        return 2 * KERNEL**2 * self.x.dtype.itemsize


def shapes_on(device: str) -> list[Shape]:
    """Return the shapes to time on "cuda" or "cpu"."""
    return [Shape(x) for x in feature_maps_on(device)]
