"""Stride, padding and dilation in the one form the private ops take, and the output size they give."""

from torch import Tensor


def resolve_pair(name: str, value) -> list[int]:
    """Return an int or a pair of ints, each at least 1, as a list of two; raise ValueError for anything else."""
    pair = [value, value] if isinstance(value, int) else list(value) if isinstance(value, tuple | list) else []
    if len(pair) != 2 or not all(isinstance(v, int) and v >= 1 for v in pair):
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
    pair = [padding, padding] if isinstance(padding, int) else list(padding) if _is_sequence(padding) else []
    if len(pair) != 2 or not all(isinstance(v, int) and v >= 0 for v in pair):
        raise ValueError(f"padding must be an int or a pair of ints, at least 0, 'same' or 'valid', got {padding!r}")
    return [pair[0], pair[0], pair[1], pair[1]]


def output_size(x: Tensor, kernel, stride: list[int], padding: list[int], dilation: list[int]) -> tuple[int, int]:
    """Return (height, width) of the convolution of `x`; not positive where the kernel does not fit."""
    top, bottom, left, right = padding
    height = (x.shape[2] + top + bottom - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1
    width = (x.shape[3] + left + right - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1
    return height, width


def _is_sequence(value) -> bool:
    return isinstance(value, tuple | list)
