"""Convolutions of signals and volumes, and kernels of different sizes in a batch."""

import pytest
import torch
import torch.nn.functional as F

from polychrome.kernels import (
    dynamic_conv1d,
    dynamic_conv3d,
    pad_kernels,
    per_sample_conv1d,
    per_sample_conv2d,
    per_sample_conv3d,
    use_backend,
)
from polychrome.kernels.dynamic_conv import dimensions
from polychrome.kernels.dynamic_conv.borders import PADDING_MODES
from polychrome.kernels.launch import record_launches
from tests.grids import grid
from tests.kernels.interpreter import needs_interpreter
from tests.kernels.oracle import assert_near_exact, assert_one_compilation, exact_outcome, outcome, randn, rms_ratio

CASES = {
    "plain": {},
    "strided": {"stride": 2, "padding": 1},
    "dilated": {"dilation": 2, "padding": 2},
    "grouped": {"groups": 2, "padding": 1},
    "same": {"padding": "same"},
    "valid": {"padding": "valid"},
}
CONVOLUTIONS = {1: F.conv1d, 3: F.conv3d}
SIZES = {1: ((11,), (4,)), 3: ((6, 5, 7), (3, 2, 3))}
FUNCTIONS = {
    per_sample_conv1d: (1, False),
    dynamic_conv1d: (1, True),
    per_sample_conv3d: (3, False),
    dynamic_conv3d: (3, True),
}
every = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
along_a_length = pytest.mark.parametrize("function", list(FUNCTIONS)[:2], ids=lambda function: function.__name__)


def arguments_of(function, dtype=torch.float32, groups=1):
    """Return x [3, 4, ...], kernels, a mixing where they are experts, and a bias."""
    dims, dynamic = FUNCTIONS[function]
    size, kernel = SIZES[dims]
    count = 2 if dynamic else 3
    x, kernels = randn(3, 4, *size, dtype=dtype), randn(count, 6, 4 // groups, *kernel, seed=1, dtype=dtype)
    bias = randn(count, 6, seed=3, dtype=dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return [x, kernels, randn(3, 2, seed=2, dtype=wide), bias] if dynamic else [x, kernels, bias]


def mixed(arguments):
    """Return x, a kernel and a bias for each sample."""
    if len(arguments) == 3:
        return arguments
    x, experts, mixing, bias = arguments
    return x, *(torch.einsum("bk,k...->b...", mixing, each) for each in (experts, bias))


@grid(function=list(FUNCTIONS), case=list(CASES))
def test_equals_torchs_convolution_of_each_sample(function, case):
    options = CASES[case]
    arguments = arguments_of(function, torch.float64, options.get("groups", 1))
    x, weight, bias = mixed(arguments)
    convolve = CONVOLUTIONS[FUNCTIONS[function][0]]
    each = [convolve(x[b : b + 1], weight[b], bias[b], **options) for b in range(len(x))]
    for call in (function, function.reference):
        torch.testing.assert_close(call(*arguments, **options), torch.cat(each))


@grid(function=list(FUNCTIONS), mode=PADDING_MODES, sides=["one", "each", "both"])
def test_borders_equal_padding_first(function, mode, sides):
    arguments = arguments_of(function, torch.float64)
    dims, _ = FUNCTIONS[function]
    padding = {"one": 2, "each": tuple(range(1, dims + 1)), "both": tuple(range(2 * dims))}[sides]
    last_first = {
        "one": (2,) * (2 * dims),
        "each": tuple(side for axis in range(dims, 0, -1) for side in (axis, axis)),
        "both": tuple(range(2 * dims)),
    }[sides]
    x, *rest = arguments
    if dims == 3 and mode in ("reflect", "circular") and sides == "both":
        x = F.pad(x, (0, 0, 0, 0, 0, 3))  # room for 5 repeated at the back
    name = {"zeros": "constant"}.get(mode, mode)
    expected = outcome(lambda x, *rest: function.reference(F.pad(x, last_first, mode=name), *rest), [x, *rest])
    for call in (function, function.reference):
        found = outcome(call, [x, *rest], padding=padding, padding_mode=mode)
        for one, other in zip(found, expected, strict=True):
            assert rms_ratio(one, other) < 1e-14


@grid(function=list(FUNCTIONS), case=list(CASES))
def test_near_the_exact_result_with_its_gradients(function, case):
    options = CASES[case]
    assert_near_exact(function, arguments_of(function, groups=options.get("groups", 1)), **options)


@grid(function=list(FUNCTIONS), case=["strided", "grouped"], dtype=[torch.bfloat16, torch.float16])
def test_low_precision_is_at_most_twice_as_far_as_the_definition(function, case, dtype):
    options = CASES[case]
    arguments = arguments_of(function, dtype, options.get("groups", 1))
    exact = exact_outcome(function, arguments, **options)
    op, definition = (outcome(f, arguments, **options) for f in (function, function.reference))
    for got, naive, truth in zip(op, definition, exact, strict=True):
        assert rms_ratio(got, truth) <= 2 * rms_ratio(naive, truth)


@every
def test_gradcheck_and_gradgradcheck(function):
    leaves = [argument.requires_grad_() for argument in arguments_of(function, torch.float64)]

    def call(*given):
        return function(*given, padding=1, stride=2)

    assert torch.autograd.gradcheck(call, leaves, fast_mode=True, check_batched_grad=False)
    assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True)


@needs_interpreter
@grid(function=list(FUNCTIONS)[:2], case=list(CASES))
def test_a_length_runs_the_kernels_of_images(function, case):
    options = CASES[case]
    arguments = arguments_of(function, groups=options.get("groups", 1))
    with use_backend("triton"), record_launches() as launches:
        assert_near_exact(function, arguments, **options)
    assert launches


@along_a_length
def test_a_length_is_given_to_the_op_without_a_copy(function, monkeypatch):
    """Also where the channels lie next to each other, as after a transposed [batch, length, channels]."""
    given = []

    def seen(name):
        inner = getattr(dimensions, name)
        monkeypatch.setattr(dimensions, name, lambda *a, **options: given.append(a) or inner(*a, **options))

    seen("per_sample_conv2d")
    seen("dynamic_conv2d")
    x, kernels, *rest = arguments_of(function)
    for each in (x, x.transpose(1, 2).contiguous().transpose(1, 2)):
        y = function(each, kernels, *rest)
        assert [one.data_ptr() for one in given.pop()[:2]] == [each.data_ptr(), kernels.data_ptr()]
        assert (y.stride(1) == 1) == (each.stride(1) == 1)


@along_a_length
def test_one_compilation_serves_every_batch_size(function):
    _, dynamic = FUNCTIONS[function]
    shared = {1, 3} if dynamic else set()
    made = arguments_of(function)
    assert_one_compilation(
        lambda *given: function(*given, padding="same"),
        lambda batch: [
            each if place in shared else randn(batch, *each.shape[1:], seed=place) for place, each in enumerate(made)
        ],
        [None if place in shared else 0 for place in range(len(made))],
    )


def test_volumes_have_no_kernel_to_insist_on():
    for function in (per_sample_conv3d, dynamic_conv3d):
        with (
            use_backend("triton"),
            pytest.raises(RuntimeError, match=f"{function.__name__} has no Triton kernel; call"),
        ):
            function(*arguments_of(function))


@pytest.mark.parametrize(
    ("function", "changes", "message"),
    [
        (per_sample_conv1d, {"x": randn(3, 4, 5, 5)}, r"x must be \[batch, channels, length\], got \[3, 4, 5, 5\]"),
        (
            per_sample_conv3d,
            {"x": randn(3, 4, 5)},
            r"x must be \[batch, channels, depth, height, width\], got \[3, 4, 5\]",
        ),
        (
            per_sample_conv1d,
            {"weight": randn(3, 6, 2, 4)},
            r"weight must be \[batch=3, out_channels, in_channels/groups=4, kernel_length\], got \[3, 6, 2, 4\]",
        ),
        (
            dynamic_conv3d,
            {"experts": randn(2, 6, 4, 3, 3)},
            r"experts must be \[experts, out_channels, in_channels/groups=4, kernel_depth, kernel_height, kernel_w",
        ),
        (dynamic_conv1d, {"mixing": randn(3, 3)}, r"mixing must be \[batch=3, experts=2\], got \[3, 3\]"),
        (per_sample_conv1d, {"stride": (1, 2)}, r"stride must be an int, at least 1, got \(1, 2\)"),
        (per_sample_conv3d, {"dilation": (1, 2)}, r"dilation must be an int or three ints, at least 1, got \(1, 2\)"),
        (per_sample_conv1d, {"padding": -1}, r"padding must be an int or two \(left, right\), at least 0, 'same' or"),
        (
            per_sample_conv3d,
            {"padding": (1, 2)},
            r"padding must be an int, three ints or six \(left, right, top, bottom, f",
        ),
        (per_sample_conv1d, {"padding": "same", "stride": 2}, r"padding='same' needs stride 1, got stride \(2,\)"),
        (
            per_sample_conv1d,
            {"padding": 11, "padding_mode": "reflect"},
            r"padding must be at most length 10 for padding_mode='reflect' of x \[3, 4, 11\], got length \(11, 11\)",
        ),
        (
            per_sample_conv1d,
            {"dilation": 4},
            r"output must have at least one value, got length 11 with padding for a kernel that reaches over 13, "
            r"from x \[3, 4, 11\], kernel \[4\], dilation \[4\]",
        ),
        (
            per_sample_conv3d,
            {"x": randn(3, 4, 5, 0, 5)},
            r"x must have no dimension of size 0 but the batch, got \[3, 4",
        ),
    ],
)
def test_bad_arguments_are_named(function, changes, message):
    names = ["x", "experts", "mixing", "bias"] if FUNCTIONS[function][1] else ["x", "weight", "bias"]
    given = dict(zip(names, arguments_of(function), strict=True)) | changes
    for backend in ("auto", "reference"):
        with use_backend(backend), pytest.raises(ValueError, match=message):
            function(**given)


SHAPES = [(3, 5), (1, 1), (4, 2), (7, 6), (2, 9)]


@pytest.mark.parametrize("size", [None, (9, 12), 10])
def test_padded_kernels_convolve_each_sample_as_its_own_would(size):
    kernels = [randn(6, 2, *shape, seed=place, dtype=torch.float64) for place, shape in enumerate(SHAPES)]
    x = randn(len(kernels), 4, 12, 11, dtype=torch.float64)
    padded = pad_kernels(kernels, size)
    assert padded.shape == (5, 6, 2, *({None: (7, 9), 10: (10, 10)}.get(size, size)))
    y = per_sample_conv2d(x, padded, padding="same", groups=2)
    each = [F.conv2d(x[b : b + 1], kernel, padding="same", groups=2) for b, kernel in enumerate(kernels)]
    torch.testing.assert_close(y, torch.cat(each))


def test_gradients_flow_back_to_the_kernels_before_they_were_padded():
    kernels = [randn(*shape, seed=place).requires_grad_() for place, shape in enumerate(SHAPES)]
    (pad_kernels(kernels) * torch.arange(1.0, 6.0)[:, None, None]).sum().backward()
    for place, kernel in enumerate(kernels):
        assert torch.equal(kernel.grad, torch.full_like(kernel, place + 1))


@pytest.mark.parametrize(
    ("kernels", "size", "error", "message"),
    [
        ([], None, ValueError, "kernels must have at least one kernel, got none"),
        ([torch.ones(3, 3), 3], None, TypeError, r"kernels\[1\] must be a tensor, got int"),
        ([torch.ones(3)], None, ValueError, r"kernels\[0\] must be \[..., height, width\], each at least 1, got \[3\]"),
        (
            [torch.ones(3, 0)],
            None,
            ValueError,
            r"kernels\[0\] must be \[..., height, width\], each at least 1, got \[3, 0\]",
        ),
        (
            [torch.ones(2, 3, 3), torch.ones(1, 5, 5)],
            None,
            ValueError,
            r"kernels\[1\] must have the first dimensions of \[2, 3, 3\], got \[1, 5, 5\]",
        ),
        (
            [torch.ones(3, 3), torch.ones(3, 3).double()],
            None,
            TypeError,
            r"kernels\[1\] must have the dtype torch.float32 of the first, got torch.float64",
        ),
        ([torch.ones(3, 5)], (5, 3), ValueError, r"size must be at least \[3, 5\], the largest kernel's, got \(5, 3\)"),
        ([torch.ones(3, 5)], 0, ValueError, "size must be an int or a pair of ints, at least 1, got 0"),
    ],
)
def test_kernels_that_cannot_be_padded_are_named(kernels, size, error, message):
    with pytest.raises(error, match=message):
        pad_kernels(kernels, size)
