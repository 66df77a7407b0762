import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from polychrome.kernels import dynamic_conv2d, per_sample_conv2d, use_backend
from polychrome.kernels.dynamic_conv import api
from tests.grids import grid, usual
from tests.kernels.conv_cases import ARGUMENTS, CASES, dynamic_arguments, per_sample_arguments
from tests.kernels.oracle import (
    TOLERANCES,
    assert_near_exact,
    assert_one_compilation,
    exact_outcome,
    outcome,
    randn,
    rms_ratio,
)

DTYPES = list(TOLERANCES)
ids = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}.get


@pytest.fixture(autouse=True)
def mixed_inside(monkeypatch):
    """Leave the mix to the op: these shapes are so small that on a CPU autograd would keep it."""
    monkeypatch.setattr(api, "keeps_the_mix", lambda *_: False)


PADDING = (
    "padding must be an int, a pair of ints or four (left, right, top, bottom), at least 0, 'same' or 'valid', got "
)
both = pytest.mark.parametrize("function", ARGUMENTS, ids=lambda f: f.__name__)


@grid(function=list(ARGUMENTS), case=list(CASES), dtype=DTYPES)
def test_output_and_gradients_are_near_the_exact_ones(function, case, dtype):
    arguments, options = ARGUMENTS[function](case, dtype)
    assert_near_exact(function, arguments, **options)


@both
def test_no_bias(function):
    arguments, options = ARGUMENTS[function]("padded", with_bias=False)
    assert_near_exact(function, arguments, **options)


@pytest.mark.parametrize("case", ["uneven_pairs", "same_even_dilated", "groups", "stride_2_odd"])
@both
def test_equals_a_loop_of_plain_convolutions(function, case):
    arguments, options = ARGUMENTS[function](case, torch.float64)
    x, weight, *rest = arguments
    if function is dynamic_conv2d:
        mixing, bias = rest[0].double(), rest[1]
        weight = torch.einsum("bk,koihw->boihw", mixing, weight)
        bias = torch.einsum("bk,ko->bo", mixing, bias)
    else:
        (bias,) = rest
    loop = [F.conv2d(x[b : b + 1], weight[b], bias[b], **options) for b in range(len(x))]
    torch.testing.assert_close(function(*arguments, **options), torch.cat(loop))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=ids)
@both
def test_error_is_at_most_twice_that_of_the_definition_in_the_same_dtype(function, dtype):
    arguments, options = ARGUMENTS[function]("padded", dtype)
    exact = exact_outcome(function, arguments, **options)
    op, definition = (outcome(f, arguments, **options) for f in (function, function.reference))
    for got, naive, truth in zip(op, definition, exact, strict=True):
        assert rms_ratio(got, truth) <= 2 * rms_ratio(naive, truth)


@pytest.mark.parametrize("case", ["uneven_pairs", "same_even_dilated", "groups"])
@pytest.mark.parametrize("backend", ["auto", "reference"])
@both
def test_gradcheck(function, backend, case):
    arguments, options = ARGUMENTS[function](case, torch.float64)
    arguments = [a[:2].double().requires_grad_() for a in arguments]
    if function is dynamic_conv2d:
        arguments[2] = randn(2, 2, dtype=torch.float64).requires_grad_()
    with use_backend(backend):
        assert torch.autograd.gradcheck(
            lambda *a: function(*a, **options)[:, :3], arguments, fast_mode=True, check_batched_grad=False
        )


@pytest.mark.parametrize(
    "case", ["padded", "two_channels", "one_channel", "stride_2_odd", "same_even_kernel", "one_sample"]
)
@both
def test_channels_last_is_kept_and_changes_no_number(function, case):
    arguments, options = ARGUMENTS[function](case)
    plain = outcome(function, arguments, **options)
    x = arguments[0].to(memory_format=torch.channels_last)
    last = outcome(function, [x, *arguments[1:]], **options)
    for one, other in zip(last, plain, strict=True):
        torch.testing.assert_close(one, other)
    if x.shape[1] > 1:
        assert last[0].is_contiguous(memory_format=torch.channels_last)
        assert last[1].is_contiguous(memory_format=torch.channels_last)
    assert plain[0].is_contiguous()
    assert plain[1].is_contiguous()


@both
def test_a_geometry_of_bools_is_that_of_ints(function):
    arguments, _ = ARGUMENTS[function]("padded")
    wanted = outcome(function, arguments, padding=1, stride=1, dilation=(1, 1))
    got = outcome(function, arguments, padding=True, stride=True, dilation=(True, 1))
    assert all(map(torch.equal, got, wanted))


@both
def test_x_of_any_stride(function):
    (x, *rest), options = ARGUMENTS[function]("padded")
    exact = exact_outcome(function, [x, *rest], **options)
    wide = torch.cat([x, x], 3)
    for same in (x.transpose(2, 3).contiguous().transpose(2, 3), wide[..., : x.shape[3]], torch.cat([x, x], 1)[:, :4]):
        assert not same.is_contiguous()
        leaf = same.detach().requires_grad_()
        y = function(leaf, *rest, **options)
        y.backward(randn(*y.shape, seed=7))
        assert rms_ratio(y, exact[0]) <= 1e-5
        assert rms_ratio(leaf.grad, exact[1]) <= 1e-5


@pytest.mark.parametrize("case", ["padded", "same_even_kernel", "one_sample"])
@both
def test_gradients_of_any_stride(function, case):
    arguments, options = ARGUMENTS[function](case)
    shape = function(*arguments, **options).shape
    assert_near_exact(function, arguments, torch.tensor(0.5).expand(shape), **options)
    halves = torch.cat([randn(*shape), randn(*shape, seed=1)], 1)
    assert_near_exact(function, arguments, halves[:, : shape[1]], **options)
    assert_near_exact(function, arguments, randn(*shape).to(memory_format=torch.channels_last), **options)


@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (3,), (0, 1), (1, 2), (0, 1, 3), (1, 2, 3), (0, 2, 3), (0, 1, 2)])
def test_frozen_arguments_get_no_gradient_and_change_no_other(frozen):
    arguments, options = dynamic_arguments("padded")
    assert_near_exact(dynamic_conv2d, arguments, frozen=frozen, **options)
    if max(frozen) < 3 and len(frozen) < 3:
        arguments, options = per_sample_arguments("padded")
        assert_near_exact(per_sample_conv2d, arguments, frozen=frozen, **options)


def test_frozen_weights_cost_one_convolution_in_backward():
    (x, experts, mixing, bias), options = dynamic_arguments("padded")
    y = dynamic_conv2d(x.requires_grad_(), experts, mixing, bias, **options)
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == 2 * y.numel() * 4 * 9 + 2 * 3 * experts.numel()


def test_mixing_is_linear_and_need_not_sum_to_one():
    (x, experts, mixing, bias), options = dynamic_arguments("padded", torch.float64)
    mixing = mixing.double()
    singles = sum(
        mixing[:, k, None, None, None] * F.conv2d(x, experts[k], bias[k], **options) for k in range(len(experts))
    )
    torch.testing.assert_close(dynamic_conv2d(x, experts, mixing, bias, **options), singles)
    torch.testing.assert_close(dynamic_conv2d(x, experts, 3 * mixing, bias, **options), 3 * singles)


@pytest.mark.parametrize("case", CASES)
def test_gradients_agree_with_each_other(case):
    """Per sample <dY, Y> = <x, dX> = sum_k pi_k dpi_k, and over the batch it is sum_k <W_k, dW_k>: the op is linear."""
    (x, experts, mixing, _), options = dynamic_arguments(case, torch.float64, with_bias=False)
    mixing = mixing.double()
    y, dx, dexperts, dmixing = outcome(dynamic_conv2d, [x, experts, mixing, None], **options)
    energy = (y * randn(*y.shape, seed=7, dtype=torch.float64)).sum((1, 2, 3))
    torch.testing.assert_close((x * dx).sum((1, 2, 3)), energy)
    torch.testing.assert_close((mixing * dmixing).sum(1), energy)
    torch.testing.assert_close((experts * dexperts).sum(), energy.sum())


def test_outputs_of_the_backward_ops_have_the_strides_of_their_fakes():
    """opcheck does not compare them all: mixing and biases that are not contiguous."""
    (x, experts, mixing, bias), _ = dynamic_arguments("padded")
    geometry = ([1, 1], [1, 1, 1, 1], [1, 1], 1)
    mixing, bias = mixing.T.contiguous().T, bias.T.contiguous().T
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(tensor) for tensor in (x, experts, mixing, bias)]
    for arguments in ((x, experts, mixing, bias), (x.to(memory_format=torch.channels_last), experts, mixing, bias)):
        fake = [mode.from_tensor(tensor) for tensor in arguments]
        grad = torch.ops.polychrome.dynamic_conv2d(*arguments, *geometry)
        real = torch.ops.polychrome.dynamic_conv2d_backward(grad, *arguments, *geometry, [True] * 4)
        with mode:
            made = torch.ops.polychrome.dynamic_conv2d_backward(
                torch.ops.polychrome.dynamic_conv2d(*fake, *geometry), *fake, *geometry, [True] * 4
            )
        assert [tensor.stride() for tensor in real] == [tensor.stride() for tensor in made]


def test_the_definition_is_right_for_one_sample_of_any_stride():
    x = randn(1, 3, 6, 5, dtype=torch.float64).permute(0, 2, 1, 3)
    weight = randn(1, 4, 3, 2, 3, dtype=torch.float64).transpose(3, 4)
    assert torch.autograd.gradcheck(
        lambda *a: per_sample_conv2d.reference(*a, groups=2), (x.requires_grad_(), weight.requires_grad_())
    )


def test_samples_do_not_see_each_other():
    (x, experts, mixing, bias), options = dynamic_arguments("padded")
    x[1] = torch.nan
    y = dynamic_conv2d(x, experts, mixing, bias, **options)
    assert y[1].isnan().all()
    assert not y[[0, 2]].isnan().any()


def test_autocast_keeps_the_mixing_in_float32():
    x, experts, bias = randn(8, 16, 10, 10), randn(4, 16, 16, 3, 3, seed=1), randn(4, 16, seed=3)
    mixing = randn(8, 4, seed=2).softmax(1)
    low = [t.bfloat16().double() for t in (x, experts, bias)]
    exact = dynamic_conv2d.reference(low[0], low[1], mixing.double(), low[2])
    with torch.autocast("cpu", torch.bfloat16):
        leaves = [t.clone().requires_grad_() for t in (x, experts, mixing, bias)]
        y = dynamic_conv2d(*leaves)
        with use_backend("reference"):
            naive = dynamic_conv2d(x, experts, mixing, bias)
    y.float().sum().backward()
    assert y.dtype == naive.dtype == torch.bfloat16
    assert [leaf.grad.dtype for leaf in leaves] == [torch.float32] * 4
    fp32_mix = dynamic_conv2d.reference(x.bfloat16(), experts.bfloat16(), mixing, bias.bfloat16())
    bf16_mix = dynamic_conv2d.reference(x.bfloat16(), experts.bfloat16(), mixing.bfloat16(), bias.bfloat16())
    error = rms_ratio(y, exact)
    assert error <= 1.001 * rms_ratio(fp32_mix, exact)
    assert rms_ratio(naive, exact) <= 1.001 * rms_ratio(fp32_mix, exact)
    assert error < 0.95 * rms_ratio(bf16_mix, exact)


@both
def test_autocast_casts_what_conv2d_would_cast(function):
    arguments, options = ARGUMENTS[function]("padded")
    doubles = [a.double() for a in arguments]
    with torch.autocast("cpu", torch.bfloat16):
        assert function(*arguments, **options).dtype == torch.bfloat16
        assert function(*doubles, **options).dtype == torch.float64
        y = function(*arguments, **options)
    low = [a if index == 2 and function is dynamic_conv2d else a.bfloat16() for index, a in enumerate(arguments)]
    assert torch.equal(y, function(*low, **options))


@grid(
    strength=1,
    case=usual(["padded", "same_even_kernel", "groups", "one_pixel_out"], "same_even_kernel", "groups"),
    layout=[torch.contiguous_format, torch.channels_last],
)
def test_opcheck(case, layout):
    arguments, _ = dynamic_arguments(case, with_bias=case != "groups")
    geometry = {
        "padded": ([1, 1], [1, 1, 1, 1], [1, 1], 1),
        "same_even_kernel": ([1, 1], [0, 1, 1, 2], [1, 1], 1),
        "groups": ([2, 1], [1, 1, 0, 0], [1, 1], 2),
        "one_pixel_out": ([1, 1], [0, 0, 0, 0], [1, 1], 1),
    }[case]
    x, experts, mixing, bias = (None if a is None else a.requires_grad_() for a in arguments)
    x = x.detach().to(memory_format=layout).requires_grad_()
    ops = torch.ops.polychrome
    torch.library.opcheck(ops.dynamic_conv2d.default, (x, experts, mixing, bias, *geometry))
    weight = randn(x.shape[0], *experts.shape[1:], seed=4).requires_grad_()
    torch.library.opcheck(ops.per_sample_conv2d.default, (x, weight, None, *geometry))
    with torch.no_grad():
        grad = torch.randn_like(ops.per_sample_conv2d(x, weight, None, *geometry))
        x, experts, mixing, weight = (t.detach() for t in (x, experts, mixing, weight))
        # Generated kernels often come permuted: out_channels, kernel, in_channels in memory.
        permuted = weight.movedim(2, -1).contiguous().movedim(-1, 2)
        for kernels in (weight, permuted):
            for needed in ([True] * 3, [False, True, False]):
                torch.library.opcheck(ops.per_sample_conv2d_backward.default, (grad, x, kernels, *geometry, needed))
        bias = None if bias is None else bias.detach()
        for needed in ([True, True, True, bias is not None], [False, False, True, False], [True, False, False, False]):
            everything = (grad, x, experts, mixing, bias, *geometry, needed)
            torch.library.opcheck(ops.dynamic_conv2d_backward.default, everything)


def test_one_compilation_serves_every_batch_size():
    experts, bias = randn(4, 6, 2, 3, 3, seed=1), randn(4, 6, seed=3)

    def dynamic(x, experts, mixing, bias):
        return dynamic_conv2d(x, experts, mixing, bias, stride=2, padding=1, groups=2)

    assert_one_compilation(
        dynamic, lambda b: [randn(b, 4, 9, 8), experts, randn(b, 4, seed=2), bias], [0, None, 0, None]
    )
    assert_one_compilation(
        lambda x, weight: per_sample_conv2d(x, weight, padding="same"),
        lambda b: [randn(b, 4, 9, 8).to(memory_format=torch.channels_last), randn(b, 6, 4, 2, 3, seed=1)],
        [0, 0],
    )


def test_one_compilation_serves_every_image_size():
    experts = randn(4, 6, 3, 3, 3, seed=1)
    assert_one_compilation(
        lambda x, experts, mixing: dynamic_conv2d(x, experts, mixing, stride=2, padding=1),
        lambda size: [randn(2, 3, size, 11), experts, randn(2, 4, seed=2)],
        [2, None, None],
        sizes=(6, 7, 16, 31),
    )


def test_export_keeps_the_op_and_a_dynamic_batch():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = torch.nn.Parameter(randn(4, 6, 3, 3, 3, seed=1))

        def forward(self, x, mixing):
            return dynamic_conv2d(x, self.experts, mixing, stride=2, padding=1, relu=True)

    net, batch = Net().requires_grad_(False), torch.export.Dim("batch", min=1, max=64)
    example = (randn(3, 3, 9, 8), randn(3, 4, seed=2))
    program = torch.export.export(net, example, dynamic_shapes={"x": {0: batch}, "mixing": {0: batch}})
    assert "polychrome.dynamic_conv2d_affine.default" in {str(node.target) for node in program.graph.nodes}
    for size in (1, 3, 8):
        arguments = (randn(size, 3, 9, 8), randn(size, 4, seed=2))
        torch.testing.assert_close(program.module()(*arguments), net(*arguments))


def test_equals_vmap_of_conv2d_over_the_weights():
    (x, weight, bias), options = per_sample_arguments("stride_2_odd")
    mapped = torch.vmap(lambda one, kernel, shift: F.conv2d(one[None], kernel, shift, **options)[0])(x, weight, bias)
    torch.testing.assert_close(per_sample_conv2d(x, weight, bias, **options), mapped)


def test_autocast_compiles_without_a_break():
    (x, experts, mixing, bias), _ = dynamic_arguments("padded")

    def forward(x):
        with torch.autocast("cpu", torch.bfloat16):
            return dynamic_conv2d(x, experts, mixing, bias)

    compiled = torch.compile(forward, fullgraph=True, backend="aot_eager")(x)
    assert compiled.dtype == torch.bfloat16
    assert torch.equal(compiled, forward(x))


@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_flops_equal_a_plain_convolutions_and_a_mix(backend):
    batch, inputs, outputs, height, width, experts, _, options = CASES["stride_2_odd"]
    x, weight = randn(batch, inputs, height, width), randn(outputs, inputs, 3, 3)

    def count(function, *arguments):
        leaves = [a.clone().requires_grad_() for a in arguments]
        with use_backend(backend), FlopCounterMode(display=False) as forward:
            y = function(*leaves, **options)
        with FlopCounterMode(display=False) as backward:
            y.sum().backward()
        return forward.get_total_flops(), backward.get_total_flops()

    plain = count(F.conv2d, x, weight)
    assert plain[0] == 2 * 3 * 6 * 5 * 4 * 4 * 9
    assert count(per_sample_conv2d, x, weight.expand(batch, -1, -1, -1, -1)) == plain
    mix = 2 * batch * experts * weight.numel()
    got = count(dynamic_conv2d, x, weight.expand(experts, -1, -1, -1, -1), randn(batch, experts))
    assert got == (plain[0] + mix, plain[1] + 3 * mix)


def bad(error, message, **changes):
    return pytest.param(error, message, changes, id=message[:40])


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        bad(TypeError, "x must be float32, float64, float16 or bfloat16, got int64", x=torch.zeros(3, 4, 9, 8).long()),
        bad(TypeError, "x must be a tensor, got list", x=[1]),
        bad(ValueError, "x must be [batch, channels, height, width], got [4, 9, 8]", x=torch.zeros(4, 9, 8)),
        bad(ValueError, "x must have at least one channel, got [3, 0, 9, 8]", x=torch.zeros(3, 0, 9, 8)),
        bad(
            TypeError,
            "experts must have x's dtype float32, got bfloat16; cast one or use autocast",
            experts=torch.zeros(4, 6, 4, 3, 3).bfloat16(),
        ),
        bad(
            ValueError,
            "experts must be [experts, out_channels, in_channels/groups=4, kernel_height, kernel_width], "
            "got [4, 6, 3, 3, 3]",
            experts=torch.zeros(4, 6, 3, 3, 3),
        ),
        bad(
            ValueError,
            "experts must have no dimension of size 0, got [0, 6, 4, 3, 3]",
            experts=torch.zeros(0, 6, 4, 3, 3),
            mixing=torch.zeros(3, 0),
        ),
        bad(
            ValueError,
            "experts must be on x's device cpu, got meta",
            experts=torch.zeros(4, 6, 4, 3, 3, device="meta"),
        ),
        bad(ValueError, "mixing must be [batch=3, experts=4], got [3, 3]", mixing=torch.zeros(3, 3)),
        bad(ValueError, "mixing must be on x's device cpu, got meta", mixing=torch.zeros(3, 4, device="meta")),
        bad(
            TypeError, "mixing must be float32 or have x's dtype float32, got float16", mixing=torch.zeros(3, 4).half()
        ),
        bad(ValueError, "bias must be [experts=4, out_channels=6], got [6]", bias=torch.zeros(6)),
        bad(
            TypeError,
            "bias must have x's dtype float32, got float64; cast one or use autocast",
            bias=torch.zeros(4, 6).double(),
        ),
        bad(ValueError, "x must be at least 1 x 1, got [3, 4, 0, 8]", x=torch.zeros(3, 4, 0, 8)),
        bad(TypeError, "relu must be a bool, got 'no'", relu="no"),
        bad(ValueError, "scale must be [out_channels=6], got [5]", scale=torch.zeros(5)),
        bad(TypeError, "shift must be float32, float64, float16 or bfloat16, got int64", shift=torch.zeros(6).long()),
        bad(ValueError, "stride must be an int or a pair of ints, at least 1, got 0", stride=0),
        bad(ValueError, "stride must be an int or a pair of ints, at least 1, got (1, 2, 3)", stride=(1, 2, 3)),
        bad(ValueError, "dilation must be an int or a pair of ints, at least 1, got 1.5", dilation=1.5),
        bad(
            ValueError,
            f"{PADDING}'sane'",
            padding="sane",
        ),
        bad(ValueError, f"{PADDING}-1", padding=-1),
        bad(ValueError, "padding='same' needs stride 1, got stride (2, 2)", padding="same", stride=2),
        bad(ValueError, "groups must be a positive divisor of in_channels=4, got 3", groups=3),
        bad(
            ValueError,
            "out_channels must be a multiple of groups=2, got 5",
            groups=2,
            experts=torch.zeros(4, 5, 2, 3, 3),
            bias=None,
        ),
        bad(
            ValueError,
            "output must be at least 1 x 1, got -3 x -4 from x [3, 4, 9, 8], kernel [3, 3], stride [1, 1], "
            "padding [0, 0, 0, 0], dilation [6, 6]",
            dilation=6,
        ),
    ],
)
def test_bad_arguments_are_named(error, message, changes):
    (x, experts, mixing, bias), _ = dynamic_arguments("plain")
    arguments = {"x": x, "experts": experts, "mixing": mixing, "bias": bias, **changes}
    with pytest.raises(error) as caught:
        dynamic_conv2d(**arguments)
    assert str(caught.value) == message


def test_bad_per_sample_arguments_are_named():
    (x, weight, _), _ = per_sample_arguments("plain")
    cases = [
        (
            "weight must be [batch=3, out_channels, in_channels/groups=4, kernel_height, kernel_width], "
            "got [2, 6, 4, 3, 3]",
            [x, weight[:2]],
        ),
        ("weight must have no dimension of size 0, got [3, 0, 4, 3, 3]", [x, weight[:, :0]]),
        ("bias must be [batch=3, out_channels=6], got [3, 5]", [x, weight, torch.zeros(3, 5)]),
    ]
    for message, arguments in cases:
        with pytest.raises(ValueError, match="must") as caught:
            per_sample_conv2d(*arguments)
        assert str(caught.value) == message


def test_arguments_that_were_right_once_are_checked_again_where_they_differ():
    """The checks are remembered by what they see: 1.0 and True are equal to 1."""
    x, experts, mixing = randn(2, 4, 5, 5), randn(3, 6, 4, 3, 3), randn(2, 3)
    expected = dynamic_conv2d(x, experts, mixing, None, 1, 1)
    assert torch.equal(dynamic_conv2d(x, experts, mixing, None, 1, 1), expected)
    for stride in (1.0, (1.0, 1), "1", 0):
        with pytest.raises(ValueError, match="stride must be"):
            dynamic_conv2d(x, experts, mixing, None, stride, 1)
    with pytest.raises(TypeError, match="relu must be a bool"):
        dynamic_conv2d(x, experts, mixing, None, 1, 1, relu=0)
    with pytest.raises(TypeError, match="x's dtype"):
        dynamic_conv2d(x, experts.double(), mixing, None, 1, 1)
    with pytest.raises(ValueError, match="mixing must be"):
        dynamic_conv2d(x, experts, mixing[:, :2], None, 1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert dynamic_conv2d(x, experts, mixing, None, 1, 1).dtype == torch.bfloat16
    assert dynamic_conv2d(x, experts, mixing, None, 1, 1).dtype == torch.float32
