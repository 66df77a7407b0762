"""Stride, padding and dilation in the one form the private ops take, and the output size they give."""

from torch import Tensor

from polychrome.kernels.checks import as_int


def resolve_pair(name: str, value) -> list[int]:
    """Return an int or a pair of ints, each at least 1, as a list of two; raise ValueError for anything else."""
    pair = _pair(value)
    if None in pair or min(pair) < 1:
        raise ValueError(f"{name} must be an int or a pair of ints, at least 1, got {value!r}")
    return pair


def resolve_padding(padding, kernel, stride: list[int], dilation: list[int]) -> list[int]:
    """Return the padding as [top, bottom, left, right]; `same` puts the odd row and column last, as F.conv2d does."""
    if padding == "valid":
        return [0, 0, 0, 0]
    if padding == "same":
        if stride != [1, 1]:
            raise ValueError(f"padding='same' needs stride 1, got stride {tuple(stride)}")
        rows, columns = (d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
        return [rows // 2, rows - rows // 2, columns // 2, columns - columns // 2]
    pair = _pair(padding)
    if None in pair or min(pair) < 0:
        raise ValueError(f"padding must be an int or a pair of ints, at least 0, 'same' or 'valid', got {padding!r}")
    return [pair[0], pair[0], pair[1], pair[1]]


def output_size(x: Tensor, kernel, stride: list[int], padding: list[int], dilation: list[int]) -> tuple[int, int]:
    """Return (height, width) of the convolution of `x`; not positive where the kernel does not fit."""
    top, bottom, left, right = padding
    height = (x.shape[2] + top + bottom - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1
    width = (x.shape[3] + left + right - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1
    return height, width


def _pair(value) -> list[int | None]:
    """Return an integer twice, a pair of them as a list, and nothing for anything else."""
    if type(value) is int:
        return [value, value]
    if isinstance(value, tuple | list):
        return [as_int(each) for each in value] if len(value) == 2 else [None]
    return [as_int(value)] * 2
