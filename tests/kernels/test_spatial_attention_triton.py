"""The Triton kernels of channel_stats and spatial_attention, run by Triton's interpreter on CPU tensors.

Deterministic algorithms are on in the whole file, which also makes torch fill new memory with NaN: what a kernel does
not write, a test sees.
"""

import importlib

import pytest
import torch

from polychrome.kernels import channel_stats, spatial_attention, use_backend
from polychrome.kernels.launch import record_launches
from polychrome.kernels.spatial_attention import configs
from tests.grids import grid
from tests.kernels.interpreter import needs_interpreter
from tests.kernels.oracle import assert_near_exact, assert_one_compilation, exact_outcome, outcome, randn, rms_ratio
from tests.kernels.test_spatial_attention import MASK, SHAPES, arguments_of, attention_arguments, both

pytest.importorskip("triton")

from polychrome.kernels import streaming, sums
from polychrome.kernels.spatial_attention.triton import maps, ops

LAYOUTS = [torch.contiguous_format, torch.channels_last]
pytestmark = [needs_interpreter, pytest.mark.usefixtures("on_triton")]
layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
DTYPES = [torch.float32, torch.float16]


@pytest.fixture
def in_blocks(monkeypatch):
    """Let no program own a sample."""
    monkeypatch.setattr(configs, "sample_tile", lambda *sizes: None)


@pytest.fixture
def few_programs(monkeypatch, in_blocks):
    """Let every kernel take its widest block of pixels, as it would with many; its programs walk over more then."""
    for module in (configs, maps):
        monkeypatch.setattr(module, "PROGRAMS", 2)
    monkeypatch.setattr(configs, "FEW", 0)


def max_channel(x, mask=None):
    present = torch.ones_like(x, dtype=torch.bool) if mask is None else mask[:, :, None, None]
    return x.float().where(present, -torch.inf).max(1, keepdim=True)


def gradient_of_the_max(x, mask=None):
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
    channel_stats(leaf, mask)[:, 1].sum().backward()
    return leaf.grad


@grid(
    function=[channel_stats, spatial_attention],
    shape=[*SHAPES, (2, 256, 3, 5)],
    layout=LAYOUTS,
    dtype=DTYPES,
    form=["in samples", "in blocks"],
)
def test_output_and_gradients_are_near_the_exact_ones(function, shape, layout, dtype, form, request):
    if form == "in blocks":
        request.getfixturevalue("in_blocks")
    x, *rest = arguments_of(function, shape, dtype)
    with record_launches() as launches:
        assert_near_exact(function, [x.to(memory_format=layout), *rest])
    names = [launch.kernel.__name__ for launch in launches]
    if function is channel_stats:
        assert names == ["stats_kernel", "spread_kernel"]
    elif form == "in samples":
        assert names == ["attend_sample_kernel", "maps_kernel", "sum_kernel", "sum_kernel"]
    else:
        forward, backward = ["stats_kernel", "attend_kernel"], ["dot_kernel", "maps_kernel", "sum_kernel"]
        assert names == [*forward, *backward, "spread_kernel", "sum_kernel"]


@pytest.mark.filterwarnings("ignore:invalid value encountered in")
@layouts
def test_programs_that_share_a_sample_make_of_any_numbers_what_blocks_make(layout, monkeypatch, request):
    """Two programs divide three blocks of channels, all loaded at once."""
    monkeypatch.setattr(configs, "MULTIPROCESSORS", 4)
    x, *rest = attention_arguments((2, 40, 15, 13), 5)
    x[0, [3, 25], 2, 2] = x[1, 39, 14] = torch.nan
    x[0, 1, 4], x[0, 2, 4], x[1, :, 0] = torch.inf, -torch.inf, -torch.inf
    x[0, 5::7, 9] = 100
    arguments = [x.to(memory_format=layout), *rest, "triton"]
    with record_launches() as launches:
        y, stats, argmax, gate = torch.ops.polychrome.spatial_attention(*arguments)
    assert [(launch.grid, launch.options["TOGETHER"]) for launch in launches] == [((4,), 3)]
    request.getfixturevalue("in_blocks")
    in_blocks = torch.ops.polychrome.spatial_attention(*arguments)
    torch.testing.assert_close((y, stats, gate), (in_blocks[0], in_blocks[1], in_blocks[3]), equal_nan=True)
    torch.testing.assert_close(stats[:, 1:], max_channel(x).values, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(argmax, in_blocks[2])


@grid(
    function=[channel_stats, spatial_attention],
    shape=[(2, 3, 20, 16), (2, 5, 7, 33), (1, 70, 16, 8), (3, 256, 6, 7)],
    layout=LAYOUTS,
)
def test_wide_blocks_are_near_the_exact_result(function, shape, layout, few_programs):
    x, *rest = arguments_of(function, shape, torch.float16)
    with record_launches() as launches:
        assert_near_exact(function, [x.to(memory_format=layout), *rest])
    along_pixels = layout == torch.contiguous_format
    looped = launches[0].options["BLOCK_C"] < shape[1]
    assert looped == (shape[1] > (16 if along_pixels else 128))
    assert launches[0].options["TOGETHER"] == (4 if looped and along_pixels else 1)


@layouts
def test_programs_that_share_a_sample_write_the_gradients_of_a_strip_each(layout, monkeypatch):
    """Strips of two rows and an odd last one, next to each other, of three blocks of channels."""
    monkeypatch.setattr(configs, "MULTIPROCESSORS", 20)
    x, *rest = attention_arguments((2, 40, 9, 21), 5)
    with record_launches() as launches:
        assert_near_exact(spatial_attention, [x.to(memory_format=layout), *rest])
    gradients = launches[1]
    assert gradients.grid == (20,)
    assert gradients.options["TOGETHER"] == (3 if layout == torch.channels_last else 2)


@grid(mask={"mask": MASK, "flipped": MASK.flip(1)}, layout=LAYOUTS, dtype=DTYPES)
def test_masked_stats_are_near_the_exact_ones(mask, layout, dtype):
    """The middle sample has one channel."""
    x = randn(*SHAPES[0], dtype=dtype).to(memory_format=layout)
    assert_near_exact(channel_stats, [x, mask])
    x[~mask] = torch.nan
    for one, other in zip(
        outcome(channel_stats, [x, mask]), outcome(channel_stats, [x.nan_to_num(0), mask]), strict=True
    ):
        assert torch.equal(one, other)
        assert not one.isnan().any()


@layouts
def test_masks_of_many_channels(layout, few_programs):
    mask = randn(2, 70) > 0
    assert_near_exact(channel_stats, [randn(2, 70, 9, 9).to(memory_format=layout), mask])
    sliced = torch.stack([mask, ~mask], 2)[..., 0]
    assert_near_exact(channel_stats, [randn(2, 70, 5, 3).to(memory_format=layout), sliced])


@grid(strength=1, kernel=[3, 5, 7, 11, 13], layout=LAYOUTS)
def test_attention_of_every_kernel_size(kernel, layout):
    with_bias = layout == torch.channels_last
    x, *rest = attention_arguments((2, 4, 6, 7), kernel, with_bias=with_bias)
    assert_near_exact(spatial_attention, [x.to(memory_format=layout), *rest])


@layouts
def test_only_the_product_is_rounded(layout):
    x, weight, bias = attention_arguments(dtype=torch.float16)
    x = x.to(memory_format=layout)
    y, _, _, gate = torch.ops.polychrome.spatial_attention(x, weight, bias, "triton")
    assert gate.dtype == torch.float32
    assert torch.equal(y, (x.float() * gate).half())


def test_kernels_that_read_again_start_with_what_was_read_last(monkeypatch, in_blocks):
    """Programs of the two kernels, listed in order, meet the samples in opposite orders."""
    order = {"statistics": [], "attention": [], "backward": []}
    modules = {name: importlib.import_module(f"polychrome.kernels.spatial_attention.triton.{name}") for name in order}
    for name, module in modules.items():

        def listed(pointer, sample, *rest, seen=order[name], real=streaming.sample_start):
            seen.append(int(sample.handle.data.item()))
            return real(pointer, sample, *rest)

        monkeypatch.setattr(module, "sample_start", listed)
    outcome(spatial_attention, [randn(3, 2, 2, 2), *attention_arguments()[1:]])
    assert list(dict.fromkeys(order["statistics"])) == [0, 1, 2]
    assert list(dict.fromkeys(order["attention"])) == [2, 1, 0]
    dot, spread = order["backward"][:12], order["backward"][-15:]  # four tensors a program, then five
    assert list(dict.fromkeys(dot)) == [0, 1, 2]
    assert list(dict.fromkeys(spread)) == [2, 1, 0]


def test_partial_sums_of_the_weight_gradient_are_bounded(monkeypatch):
    monkeypatch.setattr(maps, "PROGRAMS", 3)
    with record_launches() as launches:
        outcome(spatial_attention, attention_arguments((5, 2, 12, 12)))
    (launched,) = (launch for launch in launches if launch.kernel.__name__ == "maps_kernel")
    assert launched.grid == (3,)
    assert launched.arguments[4].shape == (3, 2, 49)


@pytest.mark.parametrize(
    ("kernel", "shape"),
    [
        (7, (1, 2, 19, 37)),
        pytest.param(3, (2, 2, 17, 67), marks=pytest.mark.slow),
        pytest.param(9, (2, 2, 18, 17), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_images_of_several_strips_each_way_are_near_the_exact_result(kernel, shape):
    tile = configs.strip_tile(shape[0], *shape[2:], kernel)
    assert tile.rows < shape[2]
    assert tile.block_w < shape[3]
    assert_near_exact(spatial_attention, attention_arguments(shape, kernel))


@pytest.mark.parametrize("kernel", [3, 7, 13, 31])
def test_strips_cover_an_image_and_keep_four_programs_a_multiprocessor_in_registers(kernel):
    for batch, height, width in ((1, 1, 1), (8, 7, 7), (64, 16, 16), (1, 512, 300), (64, 128, 128), (1024, 300, 1)):
        tile = configs.strip_tile(batch, height, width, kernel)
        assert kernel <= tile.columns < 2 * kernel
        assert tile.columns * tile.block_w <= max(configs.STRIP_ELEMENTS, tile.columns)
        assert tile.block_w < 2 * width
        assert 1 <= tile.rows <= height
        assert tile.warps in (1, 2, 4)
        blocks = batch * -(-height // tile.rows) * -(-width // tile.block_w)
        assert blocks >= configs.PROGRAMS // 4 or tile.rows <= configs.FEW_ROWS


@layouts
def test_the_gradient_of_channels_last_maps_is_read_as_it_lies(layout):
    x = randn(2, 5, 6, 4).to(memory_format=layout).requires_grad_()
    y = channel_stats(x)
    grad = randn(*y.shape).to(memory_format=layout)
    with record_launches() as launches:
        y.backward(grad)
    assert launches[0].arguments[0].data_ptr() == grad.data_ptr()


def test_weights_in_low_precision_and_of_any_layout():
    arguments = [a.half() for a in attention_arguments()]
    arguments[1] = arguments[1].to(memory_format=torch.channels_last)
    assert_near_exact(spatial_attention, arguments)
    assert [g.dtype for g in outcome(spatial_attention, arguments)] == [torch.float16] * 4


@layouts
@pytest.mark.parametrize("channels", [2, 5, 70])
def test_ties_go_to_the_channel_torch_max_names(channels, layout, few_programs):
    x = torch.zeros(2, channels, 4, 3).to(memory_format=layout)
    x[0, ::2] = -0.0
    x[1, 1::3, 2:] = 1.0
    expected = torch.zeros_like(x).scatter(1, max_channel(x).indices, 1)
    assert torch.equal(gradient_of_the_max(x), expected)


def test_attention_on_ties_equals_the_reference():
    x = randn(2, 8, 6, 5).relu() * torch.tensor([0.0, 1.0])[:, None, None, None]
    assert_near_exact(spatial_attention, [x, *attention_arguments()[1:]])


@pytest.mark.filterwarnings("ignore:invalid value encountered in reduce")
@layouts
@pytest.mark.parametrize("channels", [5, 70])
def test_nan_is_the_largest_and_its_first_channel_gets_the_gradient(channels, layout, few_programs):
    x = randn(2, channels, 5, 4).to(memory_format=layout)
    x[0, 2, 1, 1] = x[0, 3, 1, 1] = x[0, channels - 1, 2] = x[1, 0, 4, 3] = torch.nan
    x[0, 2::32, 0] = torch.nan
    x[0, 1, 1, 1] = torch.inf
    x[0, 1, 3], x[0, 2, 3] = torch.inf, -torch.inf  # a mean of NaN without one among the numbers
    x[1, :, 0] = -torch.inf
    stats = channel_stats(x)
    largest = max_channel(x)
    torch.testing.assert_close(stats[:, :1], x.mean(1, keepdim=True), equal_nan=True)
    assert torch.equal(stats[:, 1:].isnan(), largest.values.isnan())
    assert torch.equal(stats[:, 1:].nan_to_num(7), largest.values.nan_to_num(7))
    assert torch.equal(gradient_of_the_max(x), torch.zeros_like(x).scatter(1, largest.indices, 1))
    mask = torch.ones(2, channels).bool()
    mask[0, 2] = False
    masked = gradient_of_the_max(x, mask)
    assert torch.equal(masked, torch.zeros_like(x).scatter(1, max_channel(x, mask).indices, 1))


def test_nan_reaches_the_logits_its_kernel_covers():
    arguments = attention_arguments(kernel=3)
    arguments[0][1, 2, 3, 4] = torch.nan
    with use_backend("reference"):
        expected = spatial_attention(*arguments)
    got = spatial_attention(*arguments)
    assert expected.isnan().sum() == 5 * 9
    torch.testing.assert_close(got, expected, equal_nan=True)


@both
def test_the_layout_of_x_is_kept(function):
    x, *rest = arguments_of(function)
    for layout in LAYOUTS:
        for got in outcome(function, [x.to(memory_format=layout), *rest])[:2]:
            assert got.is_contiguous(memory_format=layout)


@both
def test_x_and_gradients_of_any_stride(function):
    x, *rest = arguments_of(function)
    shape = function(x, *rest).shape
    halves = torch.cat([randn(*shape), randn(*shape, seed=1)], 1)[:, : shape[1]]
    for grad in (torch.tensor(0.5).expand(shape), halves, randn(*shape).to(memory_format=torch.channels_last)):
        assert_near_exact(function, [x, *rest], grad)
    exact = exact_outcome(function, [x, *rest])
    wide = torch.cat([x, x], 3)[..., : x.shape[3]]
    for same in (x.transpose(2, 3).contiguous().transpose(2, 3), wide, torch.cat([x, x], 1)[:, :5]):
        leaf = same.detach().requires_grad_()
        y = function(leaf, *rest)
        y.backward(randn(*y.shape, seed=7))
        assert rms_ratio(y, exact[0]) <= 1e-5
        assert rms_ratio(leaf.grad, exact[1]) <= 1e-5


@grid(strength=1, frozen=[(0,), (1,), (2,), (0, 1), (1, 2), (0, 2)], form=["in samples", "in blocks"])
def test_only_the_gradients_asked_for_are_computed(frozen, form, request):
    if form == "in blocks":
        request.getfixturevalue("in_blocks")
    with record_launches() as launches:
        assert_near_exact(spatial_attention, attention_arguments((2, 5, 6, 5), kernel=5), frozen=frozen)
    named = {
        launch.kernel.__name__: dict(zip(launch.kernel.arg_names, launch.arguments, strict=False))
        for launch in launches
    }
    for_x = 0 not in frozen
    in_strips = for_x and form == "in samples"
    assert ("spread_kernel" in named) == (for_x and not in_strips)
    assert ("dot_kernel" in named) == (not in_strips)
    assert ("maps_kernel" in named) == (frozen != (0, 1))
    if "maps_kernel" in named:
        assert (named["maps_kernel"]["dx_ptr"] is not None) == in_strips
        assert (named["maps_kernel"]["dmaps_ptr"] is not None) == (for_x and not in_strips)
        assert (named["maps_kernel"]["partial_ptr"] is not None) == (1 not in frozen)


@both
def test_two_runs_agree_bit_for_bit(function):
    arguments = arguments_of(function, dtype=torch.float16)
    for one, other in zip(outcome(function, arguments), outcome(function, arguments), strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


def test_a_sample_without_channels_is_named():
    mask = MASK.clone()
    mask[1] = False
    with pytest.raises(ValueError, match="mask must leave at least one channel in every sample, got none in sample 1"):
        channel_stats(randn(*SHAPES[0]), mask)


def test_on_a_gpu_the_kernel_asserts_that_a_channel_is_present():
    x, mask = torch.empty(2, 8, 4, 4, device="meta"), torch.ones(2, 8, device="meta").bool()
    with record_launches() as launches:
        ops.channel_stats(x, None)
        ops.channel_stats(x, mask)
    assert [launch.options.get("debug", False) for launch in launches] == [False, True]
    assert launches[1].options["sanitize_overflow"] is False


def test_one_compilation_serves_every_batch_size():
    _, weight, bias = attention_arguments(kernel=3)
    sizes = (2, 3, 5)
    assert_one_compilation(spatial_attention, lambda b: [randn(b, 5, 4, 3), weight, bias], [0, None, None], sizes=sizes)
    assert_one_compilation(
        channel_stats, lambda b: [randn(b, 5, 4, 3), MASK[:1].expand(b, -1).clone()], [0, 0], sizes=sizes
    )


@both
def test_the_choice_of_backend_holds_for_the_gradients(function):
    x, *rest = arguments_of(function)
    leaf = x.requires_grad_()
    y = function(leaf, *rest)
    with use_backend("auto"), record_launches() as launches:
        y.sum().backward()
    assert launches[0].kernel.__name__ == ("spread_kernel" if function is channel_stats else "maps_kernel")


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((2, 5, 4, 3), LAYOUTS[1]),
        pytest.param((2, 5, 4, 3), LAYOUTS[0], marks=pytest.mark.slow),
        pytest.param((2, 1, 4, 3), LAYOUTS[1], marks=pytest.mark.slow),
        pytest.param((2, 5, 1, 1), LAYOUTS[1], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_opcheck(shape, layout):
    torch.use_deterministic_algorithms(False)  # opcheck compares placeholders too
    x, weight, bias = attention_arguments(shape, kernel=3)
    x = x.to(memory_format=layout)
    mask = torch.ones(shape[:2]).bool()
    library = torch.ops.polychrome
    leaves = [tensor.detach().requires_grad_() for tensor in (x, weight, bias)]
    torch.library.opcheck(library.channel_stats.default, (leaves[0], None, "triton"))
    torch.library.opcheck(library.channel_stats.default, (leaves[0], mask, "triton"))
    torch.library.opcheck(library.spatial_attention.default, (*leaves, "triton"))
    stats, argmax = library.channel_stats(x, mask, "triton")
    last = layout == torch.channels_last and shape[1] > 1 and shape[2] > 1
    for some in (mask, None):
        arguments = (stats, some, argmax, shape[1], last, "triton")
        torch.library.opcheck(library.channel_stats_backward.default, arguments)
    y, *saved = library.spatial_attention(x, weight, bias, "triton")
    for needed in ([True, True, True], [True, False, False], [False, False, True]):
        arguments = (y, x, weight, bias, *saved, needed, "triton")
        torch.library.opcheck(library.spatial_attention_backward.default, arguments)


def test_offsets_have_64_bits_beyond_2_to_the_31_elements():
    def constants(height):
        x = torch.empty(2, 16, height, 2**13, dtype=torch.float16, device="meta")
        weight = torch.empty(1, 2, 7, 7, device="meta")
        with record_launches() as launches:
            y, *saved = ops.spatial_attention(x, weight, None)
            ops.spatial_attention_backward(y, x, weight, None, *saved, [True, True, False])
        return {launch.kernel.__name__: launch.options["INDEX64"] for launch in launches}

    small, large = constants(2**13), constants(2**14)
    assert list(small) == [
        "stats_kernel",
        "attend_kernel",
        "dot_kernel",
        "maps_kernel",
        "sum_kernel",
        "spread_kernel",
    ]
    assert not any(small.values())
    # The maps are an eighth of x, and keep 32 bits, as the sums of few numbers do.
    assert [name for name, wide in large.items() if not wide] == ["maps_kernel", "sum_kernel"]


@grid(strength=1, function=[channel_stats, spatial_attention], layout=LAYOUTS)
def test_64_bit_offsets_change_no_number(function, layout, monkeypatch):
    x, *rest = arguments_of(function)
    arguments = [x.to(memory_format=layout), *rest]
    plain = outcome(function, arguments)
    for module in (streaming, maps, sums):
        monkeypatch.setattr(module, "needs_64_bits", lambda *tensors: True)
    with record_launches() as launches:
        wide = outcome(function, arguments)
    assert all(launch.options["INDEX64"] for launch in launches)
    for one, other in zip(wide, plain, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("channels", [1, 3, 5, 24, 64, 256, 2048])
@pytest.mark.parametrize("channels_last", [False, True])
def test_tiles_shrink_until_the_gpu_is_busy_and_hold_at_most_so_many_elements(channels, channels_last):
    for batch, pixels in ((1, 1), (8, 49), (64, 256), (64, 128**2)):
        for carries in (False, True):
            tile = configs.stream_tile(batch, channels, pixels, channels_last, carries)
            assert tile.block_p * tile.block_c <= max(configs.ELEMENTS, 32 * 32 * tile.warps)
            assert tile.block_c < 2 * channels
            assert tile.block_p < 2 * pixels
            for size in tile:
                assert size & (size - 1) == 0
    large, small = (configs.stream_tile(64, channels, size, channels_last) for size in (256**2, 16))
    assert large.block_p >= small.block_p
    assert 64 * (256**2 // large.block_p) >= configs.PROGRAMS


def test_small_samples_are_owned_by_programs_that_fill_the_gpu_once():
    def tile(*sizes, itemsize=2, kernel=7):
        return configs.sample_tile(*sizes, itemsize, kernel)

    assert tile(8, 512, 49) == (8, 64, 64, 8, 16)
    assert tile(64, 512, 64) == (2, 64, 64, 8, 16)
    for batch, channels, pixels in ((1, 1, 1), (1, 16000, 2), (8, 3, 256), (100, 40, 40), (264, 512, 64)):
        shares, block_p, block_c, together, warps = tile(batch, channels, pixels)
        assert pixels <= block_p < 2 * pixels
        assert block_c < 2 * channels
        assert (shares - 1) * block_c < channels
        assert shares == 1 or batch * shares <= configs.MULTIPROCESSORS
        assert together * block_c < channels + block_c
        assert warps in (1, 2, 4, 8, 16)
        assert 2 * block_p * channels <= configs.SAMPLE_BYTES
    assert tile(8, 512, 49, itemsize=4) is None
    for sizes in ((8, 1024, 49), (64, 256, 256), (265, 512, 49), (64, 1, 257)):
        assert tile(*sizes) is None
    assert tile(8, 512, 49, kernel=9) is None


def test_gradients_are_written_strip_by_strip_where_each_has_a_multiprocessor():
    def tiles(*sizes, itemsize=2, kernel=7):
        return configs.sample_gradient_tiles(*sizes, itemsize, kernel)

    assert tiles(8, 512, 7, 7) == ((8, 64, 64, 8, 16), (1, 8, 8, 16))
    assert tiles(33, 512, 7, 7) == ((4, 64, 64, 8, 16), (2, 8, 8, 16))
    assert tiles(1, 16, 16, 16, kernel=3)[1] == (1, 16, 4, 16)
    for sizes in ((34, 512, 7, 7), (8, 1024, 7, 7), (64, 256, 16, 16)):
        assert tiles(*sizes) is None
    assert tiles(8, 512, 7, 7, itemsize=4) is None
