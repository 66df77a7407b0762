"""The Triton kernels of the channel gate, run by Triton's interpreter on CPU tensors.

Deterministic algorithms are on in the whole file, which also makes torch fill new memory with NaN: what a kernel does
not write, a test sees.
"""

import pytest
import torch

from polychrome.kernels import channel_gate, use_backend
from polychrome.kernels.channel_gate import configs, register
from polychrome.kernels.launch import record_launches
from tests.grids import grid
from tests.kernels.interpreter import needs_interpreter
from tests.kernels.oracle import assert_near_exact, assert_one_compilation, exact_outcome, outcome, randn, rms_ratio
from tests.kernels.test_channel_gate import FORMS, arguments_of

pytest.importorskip("triton")

from polychrome.kernels import streaming
from polychrome.kernels.channel_gate.triton import layers, ops, pixels

LAST = torch.channels_last
pytestmark = [needs_interpreter, pytest.mark.usefixtures("on_triton")]
LAYOUTS, GATES = [torch.contiguous_format, LAST], ["sigmoid", "softmax"]
layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
gates = pytest.mark.parametrize("gate", GATES)
STREAMING, GATE, GRADIENT = ("reduce_kernel", "scale_kernel"), "gate_kernel", "gate_gradient_kernel"
LAYERS = "layer_gradients_kernel"
LAUNCHES = ["fused", "apart"]
FUSED = ["fused_gate_kernel", "fused_gate_gradient_kernel"]


@pytest.fixture
def apart(monkeypatch):
    """Let no map be small enough for one launch."""
    monkeypatch.setattr(ops, "fused_config", lambda *_, **__: None)


@pytest.fixture
def fused():
    """Leave the launches as they are: these maps are small."""


@pytest.fixture
def small_shares(monkeypatch):
    """Make several programs share a sample of few numbers in one launch, each in several tiles."""

    def fused_config(batch, channels, hidden, pixels, itemsize, channels_last, whole):
        made = configs.fused_config(batch, channels, hidden, pixels, itemsize, channels_last, whole)
        tiles = configs.Tiles(-(-pixels // 4), 4)
        block_o = made.block_o if whole else 2
        return made._replace(shares=-(-channels // block_o), block_o=block_o, sums=tiles, product=tiles)

    monkeypatch.setattr(ops, "fused_config", fused_config)


@pytest.fixture
def small_tiles(monkeypatch, apart):
    """Make every loop of every kernel turn several times, also over images and layers of a few numbers."""

    def reduce_config(batch, channels, pixels, channels_last):
        blocks = -(-pixels // 4)
        per_split = -(-blocks // 3)
        return configs.ReduceConfig(4, 2, -(-blocks // per_split), per_split)

    def gate_config(batch, channels, hidden, splits, whole):
        made = configs.gate_config(batch, channels, hidden, splits, whole)
        shares = 1 if whole or channels < 3 else 2
        return made._replace(shares=shares, block_c=2, block_o=2)

    monkeypatch.setattr(pixels, "reduce_config", reduce_config)
    monkeypatch.setattr(pixels, "scale_tile", lambda *_: (4, 2))
    monkeypatch.setattr(layers, "gate_config", gate_config)


@pytest.fixture
def wide_layers(monkeypatch):
    """Let no layer fit the kernels."""
    monkeypatch.setattr(ops, "layers_fit", lambda *_: False)
    monkeypatch.setattr(ops, "gradients_fit", lambda *_: False)


def in_layout(arguments, layout):
    return [arguments[0].to(memory_format=layout), *arguments[1:]]


def kernels_of(launches):
    return [launch.kernel.__name__ for launch in launches]


def launches_of(arguments, frozen=(), **options):
    with record_launches() as launches:
        outcome(channel_gate, arguments, frozen=frozen, **options)
    return kernels_of(launches)


@grid(gate=GATES, form=list(FORMS), layout=LAYOUTS, dtype=[torch.float32, torch.float16], launches=LAUNCHES)
def test_output_and_gradients_are_near_the_exact_ones(gate, form, layout, dtype, launches, request):
    request.getfixturevalue(launches)
    assert_near_exact(channel_gate, in_layout(arguments_of(**FORMS[form], dtype=dtype), layout), gate=gate)


@grid(gate=GATES, form=["linear", "no_bias", "single"], layout=LAYOUTS, dtype=[torch.float32, torch.float16])
def test_many_shares_of_one_launch_are_near_the_exact_result(gate, form, layout, dtype, small_shares):
    arguments = in_layout(arguments_of((2, 5, 5, 5), 3, **FORMS[form], dtype=dtype), layout)
    with record_launches() as launches:
        assert_near_exact(channel_gate, arguments, gate=gate)
    assert [launch.grid for launch in launches[:2]] == [(6 if gate == "sigmoid" else 2,), (6,)]
    assert [launch.options["TILES"] for launch in launches[:2]] == [7, 7]


@grid(strength=1, gate=GATES, form=["linear", "no_bias", "single"], layout=LAYOUTS)
def test_many_blocks_splits_and_shares_are_near_the_exact_result(gate, form, layout, small_tiles):
    arguments = in_layout(arguments_of((2, 5, 5, 5), 3, **FORMS[form]), layout)
    with record_launches() as launches:
        assert_near_exact(channel_gate, arguments, gate=gate)
    by_name = {launch.kernel.__name__: launch.options for launch in launches}
    assert by_name["gate_kernel"]["BLOCK_S"] == 4  # three splits of 12 pixels at most, four at a time


@grid(gate=GATES, form=["linear", "no_bias", "single"], layout=LAYOUTS)
def test_layers_left_to_torch_are_near_the_exact_result(gate, form, layout, wide_layers):
    arguments = in_layout(arguments_of(**FORMS[form]), layout)
    assert launches_of(arguments, gate=gate) == [*STREAMING, *STREAMING]
    assert_near_exact(channel_gate, arguments, gate=gate)


@grid(
    lambda hidden, gate, **_: hidden == 8 or gate == "sigmoid",
    strength=1,
    shape=[(3, 1, 5, 4), (2, 2, 7, 7), (2, 3, 4, 4), (2, 40, 3, 3), (1, 256, 2, 2), (4, 32, 1, 1), (1, 2, 33, 17)],
    hidden=[1, 8, None],
    gate=GATES,
    layout=LAYOUTS,
    launches=LAUNCHES,
)
def test_every_shape(shape, hidden, gate, layout, launches, request):
    request.getfixturevalue(launches)
    arguments = arguments_of(shape, hidden, single=hidden is None)
    assert_near_exact(channel_gate, in_layout(arguments, layout), gate=gate)


def test_the_widest_layers_fit_and_wider_ones_go_to_torch(apart):
    for hidden, fits in ((configs.MAX_HIDDEN, True), (configs.MAX_HIDDEN + 1, False)):
        x, w1, b1, w2, b2 = arguments_of((2, 3, 2, 2), hidden)
        arguments = [x, w1, b1, w2 / 16, b2]
        assert (GATE in launches_of(arguments)) == fits
        assert_near_exact(channel_gate, arguments)
    assert configs.layers_fit(1, configs.MAX_SOFTMAX, 1, 0, softmax=True)
    assert not configs.layers_fit(1, configs.MAX_SOFTMAX + 1, 1, 0, softmax=True)
    assert configs.layers_fit(1, configs.MAX_SOFTMAX + 1, 1, 0, softmax=False)


def test_weights_read_again_for_every_sample_are_weighed_against_the_image():
    """The stages of ResNet-50 with squeeze-excitation, 64 images of 224 pixels, then a single layer."""
    for channels, side, fits in ((256, 56, True), (512, 28, True), (1024, 14, True), (2048, 7, False)):
        assert configs.layers_fit(64, channels, channels // 16, 2 * 64 * channels * side**2, softmax=False) == fits
    few, many = 2 * 8 * 512 * 49, 2 * 512 * 512 * 49
    assert configs.layers_fit(8, 512, None, few, softmax=False)
    assert not configs.layers_fit(512, 512, None, many, softmax=False)
    assert configs.layers_fit(512, 512, None, 20 * many, softmax=False)


def test_splits_cover_all_pixels_and_fill_a_gpu():
    for batch, channels, size, last in [
        (1, 1, 1, True),
        (8, 512, 49, True),
        (1, 64, 16384, True),
        (64, 64, 16384, False),
    ]:
        made = configs.reduce_config(batch, channels, size, last)
        assert made.splits * made.blocks * made.block_p >= size
        assert (made.splits - 1) * made.blocks * made.block_p < size
        assert made.splits <= configs.MAX_SPLITS
    assert configs.reduce_config(1, 64, 16384, True).splits == configs.MAX_SPLITS
    assert configs.reduce_config(4096, 64, 16384, True).splits == 1


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
def test_maps_that_a_program_reads_in_two_microseconds_take_one_launch(last):
    """Shapes of networks: batch, channels, hidden, pixels, bytes of a number, and the programs of a sample."""
    for *shape, itemsize, shares in [
        (8, 512, 32, 49, 2, 16),
        (8, 512, None, 49, 2, 16),
        (64, 256, 16, 256, 2, 2),
        (256, 512, 32, 49, 2, 1),
        (1, 16, 4, 4096, 2, 1),
        (1, 1024, 16, 1, 4, 64),
    ]:
        made = configs.fused_config(*shape, itemsize, last, whole=False)
        assert made.shares == shares
        assert (made.shares - 1) * made.block_o < shape[1] <= made.shares * made.block_o
        for tiles in (made.sums, made.product):
            assert (tiles.count - 1) * tiles.block_p < shape[3] <= tiles.count * tiles.block_p
        assert configs.fused_config(*shape, itemsize, last, whole=True) is None or shape[2] is not None
    for wide in [
        (8, 512, 32, 196, 2),  # of the map
        (8, 512, 32, 64, 4),  # of map and layers
        (8, 1024, 64, 49, 2),  # of the layers
        (128, 512, None, 49, 2),  # programs enough to hold the layer would be too many
        (64, 256, None, 256, 2),
        (4, 3, 2, 16385, 2),
    ]:
        assert configs.fused_config(*wide, last, whole=False) is None


@gates
def test_small_maps_take_one_launch_forward_and_two_backward(gate):
    for single in (False, True):
        arguments = arguments_of(single=single)
        assert launches_of(arguments, gate=gate) == [*FUSED, LAYERS]
        assert launches_of(arguments, frozen=(1, 2, 3, 4), gate=gate) == FUSED
        frozen = [] if single else [GRADIENT]
        assert launches_of(arguments, frozen=(0,), gate=gate) == [FUSED[0], "reduce_kernel", *frozen, LAYERS]


@gates
def test_three_launches_forward_and_four_backward(gate, apart):
    for single in (False, True):
        arguments = arguments_of(single=single)
        with record_launches() as launches:
            channel_gate(*arguments, gate=gate)
        assert kernels_of(launches) == ["reduce_kernel", GATE, "scale_kernel"]
        with record_launches() as launches:
            outcome(channel_gate, arguments, gate=gate)
        assert kernels_of(launches)[3:] == ["reduce_kernel", GRADIENT, "scale_kernel", LAYERS]


@pytest.mark.parametrize("frozen", [(1,), (3, 4), (1, 2, 3, 4)])
def test_frozen_arguments_of_small_maps_change_no_other_gradient(frozen):
    assert_near_exact(channel_gate, arguments_of(), frozen=frozen)


@pytest.mark.parametrize("frozen", [(0,), (1,), (3,), (1, 2), (3, 4), (1, 2, 3, 4), (0, 3, 4), (0, 1, 2), (0, 1, 2, 3)])
def test_only_the_gradients_asked_for_are_computed(frozen, apart):
    arguments = arguments_of()
    assert_near_exact(channel_gate, arguments, frozen=frozen)
    backward = launches_of(arguments, frozen)[3:]
    assert ("scale_kernel" in backward) == (0 not in frozen)
    assert (GRADIENT in backward) == (not {0, 1, 2}.issubset(frozen))
    assert (LAYERS in backward) == (not {1, 2, 3, 4}.issubset(frozen))


@grid(
    lambda shape, hidden, **_: hidden is None or shape[1] > 8,
    strength=1,
    shape=[(1, 3, 2, 2), (33, 40, 1, 2), (70, 16, 2, 1), (2, 100, 1, 1)],
    hidden=[1, 33, None],
    dtype=[torch.float32, torch.float16],
)
def test_gradients_of_layers_of_every_size_are_near_the_exact_ones(shape, hidden, dtype):
    arguments = [None if a is None else a.to(dtype) for a in arguments_of(shape, hidden, single=hidden is None)]
    assert launches_of(arguments)[-1] == LAYERS
    assert_near_exact(channel_gate, arguments)


@pytest.mark.parametrize("single", [False, True], ids=["layers", "single"])
def test_gradients_of_layers_are_the_same_sums_as_torchs(single, monkeypatch):
    arguments = arguments_of((40, 20, 2, 3), 18, single=single)
    ours = outcome(channel_gate, arguments)
    monkeypatch.setattr(ops, "gradients_fit", lambda *_: False)
    theirs = outcome(channel_gate, arguments)
    assert all(rms_ratio(one, other) < 1e-6 for one, other in zip(ours, theirs, strict=True))


def test_layers_of_many_products_leave_their_gradients_to_torch():
    assert configs.gradients_fit(256, 256, 16)
    assert configs.gradients_fit(64, 256, 256)
    assert configs.gradients_fit(8, 1024, 1024)
    assert not configs.gradients_fit(256, 256, 256)


def test_a_frozen_input_of_a_single_layer_launches_only_sums(apart):
    arguments = arguments_of(single=True)
    for gate in ("sigmoid", "softmax"):
        assert_near_exact(channel_gate, arguments, frozen=(0,), gate=gate)
    assert launches_of(arguments, (0,))[3:] == ["reduce_kernel", LAYERS]


@layouts
def test_the_layout_of_x_is_kept(layout, small_tiles):
    arguments = arguments_of((2, 8, 5, 4))
    plain = outcome(channel_gate, arguments)
    got = outcome(channel_gate, in_layout(arguments, layout))
    for one, other in zip(got, plain, strict=True):
        torch.testing.assert_close(one, other)
    for image in got[:2]:
        assert image.is_contiguous(memory_format=layout)


@layouts
def test_x_and_gradients_of_any_stride(layout):
    x, *rest = in_layout(arguments_of(), layout)
    halves = torch.cat([randn(*x.shape), randn(*x.shape, seed=1)], 1)
    for grad in (torch.tensor(0.5).expand(x.shape), halves[:, :6], halves.to(memory_format=LAST)[:, 6:]):
        assert_near_exact(channel_gate, [x, *rest], grad)
    exact = exact_outcome(channel_gate, [x, *rest])
    wide = torch.cat([x, x], 1)
    for same in (wide[:, :6], torch.cat([x, x], 3)[..., :4], x.mT.contiguous().mT, wide.to(memory_format=LAST)[:, :6]):
        leaf = same.detach().requires_grad_()
        y = channel_gate(leaf, *rest)
        y.backward(randn(*y.shape, seed=7))
        assert rms_ratio(y, exact[0]) <= 1e-5
        assert rms_ratio(leaf.grad, exact[1]) <= 1e-5


def test_weights_and_biases_of_any_stride():
    x, w1, b1, w2, b2 = arguments_of()
    plain = channel_gate(x, w1, b1, w2, b2)
    strided = [w1.T.contiguous().T, torch.stack([b1, b1], 1)[:, 0], torch.cat([w2, w2], 1)[:, :4], b2[:, None][:, 0]]
    assert torch.equal(channel_gate(x, *strided), plain)
    constant = torch.tensor(0.5).expand(6)
    assert torch.equal(channel_gate(x, w1, b1, w2, constant), channel_gate(x, w1, b1, w2, constant.contiguous()))


def test_weights_in_low_precision_get_gradients_in_it():
    arguments = [argument.half() for argument in arguments_of()]
    assert_near_exact(channel_gate, arguments)
    assert [got.dtype for got in outcome(channel_gate, arguments)] == [torch.float16] * 6


@grid(gate=GATES, layout=LAYOUTS, launches=["small_shares", "small_tiles"])
def test_two_runs_agree_bit_for_bit(layout, gate, launches, request):
    request.getfixturevalue(launches)
    arguments = in_layout(arguments_of((2, 3, 5, 4), 2, dtype=torch.float16), layout)
    first, second = (outcome(channel_gate, arguments, gate=gate) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


@grid(layout=LAYOUTS, form=["linear", "single"], launches=LAUNCHES)
def test_nan_stays_in_its_sample(layout, form, launches, request):
    request.getfixturevalue(launches)
    x, *rest = arguments_of(**FORMS[form])
    x[1, 2, 3, 3] = torch.nan
    y, dx, *_ = outcome(channel_gate, in_layout([x, *rest], layout))
    for got in (y, dx):
        assert got[1].isnan().all()
        assert not got[[0, 2]].isnan().any()


@grid(gate=GATES, launches=LAUNCHES)
def test_large_logits_do_not_overflow_and_infinity_is_not_spread(gate, launches, request):
    request.getfixturevalue(launches)
    x = torch.ones(2, 3, 2, 2)
    got = channel_gate(x, None, None, torch.zeros(3, 3), torch.tensor([300.0, -300.0, 0.0]), gate)
    want = {"sigmoid": [1.0, 0.0, 0.5], "softmax": [1.0, 0.0, 0.0]}[gate]
    assert torch.equal(got[0, :, 0, 0], torch.tensor(want))
    x[1, 0] = torch.inf
    weights = [torch.ones(1, 3), None, torch.ones(3, 1), None]
    y = channel_gate(x, *weights, "sigmoid")
    torch.testing.assert_close(y, channel_gate.reference(x, *weights, "sigmoid"))


@layouts
def test_empty_images_launch_nothing(layout):
    x, *rest = in_layout(arguments_of(), layout)
    for empty in (x[:0], x[:, :, :0]):
        with record_launches() as launches:
            y, dx, *others = outcome(channel_gate, [empty, *rest])
        assert not launches
        assert y.shape == dx.shape == empty.shape
    y, dx, *others = outcome(channel_gate, [x[:0], *rest])
    assert not any(gradient.any() for gradient in others)


def test_the_product_starts_where_the_sums_ended(monkeypatch):
    """Programs of the two kernels, listed in order, meet the samples in opposite orders."""
    order = {}
    for name, launcher in (("sums", pixels.sum_over_pixels), ("product", pixels.scale_channels)):
        x = torch.ones(3, 2, 2, 2)
        seen = order.setdefault(name, [])

        def listed(pointer, sample, *rest, seen=seen, real=streaming.sample_start):
            seen.append(int(sample.handle.data.item()))
            return real(pointer, sample, *rest)

        monkeypatch.setattr(pixels, "sample_start", listed)
        launcher(x, *([torch.ones(3, 2)] if name == "product" else []))
        monkeypatch.undo()
    assert list(dict.fromkeys(order["sums"])) == [0, 1, 2]
    assert list(dict.fromkeys(order["product"])) == [2, 1, 0]


def test_one_compilation_serves_every_batch_size():
    weights = arguments_of()[1:]
    assert_one_compilation(
        channel_gate, lambda batch: [randn(batch, 6, 5, 4), *weights], [0, None, None, None, None], sizes=(2, 3, 5)
    )


def test_the_choice_of_backend_holds_for_the_gradients():
    arguments = [argument.requires_grad_() for argument in arguments_of()]
    y = channel_gate(*arguments)
    with use_backend("auto"), record_launches() as launches:
        y.sum().backward()
    assert kernels_of(launches) == [FUSED[1], LAYERS]


@grid(strength=1, layout=LAYOUTS, form=["convolutional", "single_convolutional_no_bias"], fits=[True, False])
def test_opcheck(layout, form, fits, monkeypatch):
    torch.use_deterministic_algorithms(False)  # opcheck compares placeholders too
    monkeypatch.setattr(ops, "layers_fit", lambda *_: fits)
    arguments = in_layout(arguments_of((2, 6, 5, 4), **FORMS[form]), layout)
    library = torch.ops.polychrome
    leaves = [None if a is None else a.detach().requires_grad_() for a in arguments]
    torch.library.opcheck(library.channel_gate.default, (*leaves, "softmax", "triton"))
    y, *saved = library.channel_gate(*arguments, "sigmoid", "triton")
    present = [argument is not None for argument in arguments]
    for needed in (present, [True, False, False, False, False], [False, *present[1:]]):
        inputs = (y, *arguments, *saved, "sigmoid", needed, "triton")
        torch.library.opcheck(library.channel_gate_backward.default, inputs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes_the_interpreter_gets_wrong_are_refused(dtype):
    with pytest.raises(TypeError) as caught:
        channel_gate(*[argument.to(dtype) for argument in arguments_of()])
    got = str(dtype).removeprefix("torch.")
    assert str(caught.value) == f"x must be float32 or float16 for Triton's interpreter, got {got}"


def test_offsets_have_64_bits_beyond_2_to_the_31_elements():
    def found(height):
        x, *weights = (a.to("meta") for a in arguments_of((1, 1, 1, 1), dtype=torch.float16))
        x = x.expand(2, 1, 1, 1).new_empty(2, 1, height, 2**16)
        with record_launches() as launches:
            y, *saved = register.channel_gate(x, *weights, "sigmoid", "triton")
            register.channel_gate_backward(y, x, *weights, *saved, "sigmoid", [True] * 5, "triton")
        return [launch.options["INDEX64"] for launch in launches if launch.kernel.__name__ in STREAMING]

    assert found(2**14) == [False] * 4
    assert found(2**15) == [True] * 4


@grid(layout=LAYOUTS, launches=["small_shares", "small_tiles"])
def test_64_bit_offsets_change_no_number(layout, launches, monkeypatch, request):
    request.getfixturevalue(launches)
    arguments = in_layout(arguments_of((2, 3, 5, 4), 2), layout)
    plain = outcome(channel_gate, arguments)
    monkeypatch.setattr(streaming, "needs_64_bits", lambda *_: True)
    with record_launches() as made:
        got = outcome(channel_gate, arguments)
    assert any(launch.options.get("INDEX64") for launch in made)
    for one, other in zip(got, plain, strict=True):
        assert torch.equal(one, other)
