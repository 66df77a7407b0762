"""The awkward convolutions that every implementation is tested on."""

import torch

from polychrome.kernels import dynamic_conv2d, per_sample_conv2d
from tests.kernels.oracle import randn

# batch, in, out, height, width, experts, kernel, options
CASES = {
    "plain": (3, 4, 6, 9, 8, 4, (3, 3), {}),
    "padded": (3, 4, 6, 9, 8, 4, (3, 3), {"padding": 1}),
    "uneven_pairs": (2, 4, 6, 9, 12, 2, (3, 5), {"stride": (1, 2), "padding": (0, 3), "dilation": (2, 1)}),
    "stride_2_even": (3, 4, 6, 8, 8, 4, (3, 3), {"stride": 2, "padding": 1}),
    "stride_2_odd": (3, 4, 6, 9, 7, 4, (3, 3), {"stride": 2, "padding": 1}),
    "same": (3, 4, 6, 9, 8, 4, (3, 3), {"padding": "same"}),
    "same_even_kernel": (3, 4, 6, 9, 8, 4, (2, 4), {"padding": "same"}),
    "same_even_dilated": (2, 4, 6, 9, 8, 4, (4, 2), {"padding": "same", "dilation": (1, 3)}),
    "valid": (2, 4, 6, 9, 8, 4, (2, 2), {"padding": "valid"}),
    "dilated": (2, 4, 6, 9, 8, 4, (3, 3), {"dilation": 2, "padding": 2}),
    "groups": (3, 4, 6, 9, 8, 4, (3, 3), {"groups": 2, "padding": 1}),
    "depthwise": (3, 6, 6, 9, 8, 4, (3, 3), {"groups": 6, "padding": 1}),
    "one_by_one": (3, 4, 6, 5, 5, 4, (1, 1), {}),
    "one_channel": (3, 1, 6, 9, 8, 4, (3, 3), {"padding": 1}),
    "two_channels": (3, 2, 1, 9, 8, 4, (3, 3), {"padding": 1}),
    "three_channels": (3, 3, 6, 9, 8, 4, (7, 7), {"stride": 2, "padding": 3}),
    "one_sample": (1, 4, 6, 9, 8, 4, (3, 3), {"padding": 1}),
    "one_expert": (3, 4, 6, 9, 8, 1, (3, 3), {"padding": 1}),
    "eight_experts": (3, 4, 6, 9, 8, 8, (3, 3), {"padding": 1}),
    "one_pixel_out": (3, 4, 6, 3, 3, 4, (3, 3), {}),
}


def dynamic_arguments(case, dtype=torch.float32, with_bias=True):
    return _arguments(CASES[case], dtype, with_bias)


def _arguments(sizes, dtype, with_bias=True):
    batch, inputs, outputs, height, width, experts, kernel, options = sizes
    groups = options.get("groups", 1)
    return [
        randn(batch, inputs, height, width, dtype=dtype),
        randn(experts, outputs, inputs // groups, *kernel, seed=1, dtype=dtype),
        randn(batch, experts, seed=2),
        randn(experts, outputs, seed=3, dtype=dtype) if with_bias else None,
    ], options


def per_sample_arguments(case, dtype=torch.float32, with_bias=True):
    (x, experts, _, bias), options = dynamic_arguments(case, dtype)
    weight = randn(x.shape[0], *experts.shape[1:], seed=4, dtype=dtype)
    return [x, weight, randn(x.shape[0], bias.shape[1], seed=5, dtype=dtype) if with_bias else None], options


ARGUMENTS = {dynamic_conv2d: dynamic_arguments, per_sample_conv2d: per_sample_arguments}

# As above, with channels and pixels enough for what the matrix kernels do differently.
WIDE_CASES = {
    "wide": (3, 24, 40, 7, 6, 3, (3, 3), {"padding": 1}),
    "strided": (3, 24, 40, 7, 6, 3, (3, 3), {"padding": 1, "stride": 2}),
    "grouped": (2, 48, 32, 6, 5, 2, (3, 3), {"padding": 1, "groups": 2}),
    "strided_dilated": (2, 16, 20, 9, 8, 2, (3, 2), {"padding": (2, 1), "stride": (3, 2), "dilation": (2, 3)}),
    "stride_divides_dilation": (2, 16, 20, 9, 8, 2, (3, 3), {"padding": 2, "stride": 2, "dilation": 2}),
    "stride_beyond_the_kernel": (2, 16, 20, 7, 8, 2, (1, 1), {"stride": 3}),
    "depthwise": (3, 20, 20, 7, 6, 3, (3, 3), {"padding": 1, "groups": 20}),
    "depthwise_wider_out": (3, 10, 20, 7, 6, 3, (3, 3), {"padding": 1, "groups": 10, "stride": 2}),
    "depthwise_large": (2, 6, 6, 6, 5, 2, (7, 7), {"padding": 3, "groups": 6}),
    "depthwise_many_experts": (2, 6, 6, 5, 5, 9, (3, 3), {"padding": 1, "groups": 6}),
    "pointwise": (3, 24, 40, 5, 4, 4, (1, 1), {}),
    "many_experts": (3, 16, 16, 5, 4, 9, (3, 3), {"padding": 1}),
    "one_wide_sample": (1, 24, 40, 7, 6, 3, (3, 3), {"padding": 1}),
    "few_pixels": (3, 16, 24, 3, 3, 2, (3, 3), {"padding": 1}),
    "many_pixels": (2, 16, 16, 9, 9, 4, (3, 3), {"padding": 1}),
}


def wide_arguments(case, dtype=torch.float32):
    return _arguments(WIDE_CASES[case], dtype)
