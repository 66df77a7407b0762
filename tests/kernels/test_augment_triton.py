"""Both forms of the op's Triton kernel in the interpreter, against the definition in float64."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from polychrome.kernels import augment, use_backend
from polychrome.kernels.augment.arguments import Arguments
from polychrome.kernels.launch import record_launches
from tests.grids import grid
from tests.kernels.augment_cases import CASES, PARAMETERS, SIZES, SMALLEST_STD, images, statistics
from tests.kernels.interpreter import needs_interpreter
from tests.kernels.oracle import rms_ratio

pytestmark = [needs_interpreter, pytest.mark.usefixtures("on_triton")]
DTYPES = {torch.float32: 1e-5, torch.float16: 1e-3}
# Beside the parameters that both forms of the kernel take: a size as the images', of several strips and parts of a
# line, a little and much smaller; the last with crops of lines and single pixels.
ANY_FORM = {name: PARAMETERS[name] for name in ("indices", "flips", "vflips", "contrast", "cutouts")}
RESIZED = {
    "copied": {},
    "enlarged": {"crops": PARAMETERS["crops"], "size": (30, 21)},
    "shrunk": {"crops": PARAMETERS["crops"], "size": (19, 16)},
    "shrunk much": {"crops": PARAMETERS["crops"], "size": (6, 5)},
    "lines": {"crops": torch.tensor([[0, 0, 1, 1], [22, 18, 50, 50], [4, 0, 1, 19], [0, 7, 23, 1]]), "size": 6},
}


def assert_near_definition(source, dtype=torch.float32, **arguments):
    exact = augment.reference(source, dtype=torch.float64, **arguments)
    got = augment(source, dtype=dtype, **arguments)
    assert got.dtype == dtype
    assert got.shape == exact.shape
    assert got.stride() == torch.empty(exact.shape, memory_format=torch.channels_last).stride()
    assert rms_ratio(got, exact) <= DTYPES[dtype]
    return got


@grid(strength=1, case=list(CASES), size=list(SIZES), dtype=list(DTYPES))
def test_kernel_is_near_the_definition_and_the_cpu_path(case, size, dtype):
    arguments = CASES[case] | statistics() | {"size": SIZES[size]}
    got = assert_near_definition(images(), dtype, **arguments)
    with use_backend("auto"):
        assert (got - augment(images(), dtype=dtype, **arguments)).abs().max() * SMALLEST_STD <= 1.001 / 255


@grid(strength=1, form=("flat", "pixels"), resized=list(RESIZED), channels=(4, 13))
def test_both_forms_are_near_the_definition(form, resized, channels, monkeypatch):
    from polychrome.kernels.augment.triton import ops

    monkeypatch.setattr(ops, "is_flat", lambda given: form == "flat")
    assert_near_definition(images(channels), **ANY_FORM, **statistics(channels), **RESIZED[resized])


@pytest.mark.parametrize("form", ["flat", "pixels"])
def test_both_forms_brighten_each_channel_by_its_own_factor(form, monkeypatch):
    from polychrome.kernels.augment.triton import ops

    monkeypatch.setattr(ops, "is_flat", lambda given: form == "flat")
    gains = torch.linspace(0.5, 1.5, 4 * 13).view(4, 13)
    chosen = {"indices": PARAMETERS["indices"], "channels": torch.tensor([12, -1, 3, 0, 7])}
    assert_near_definition(images(13), brightness=gains, **chosen, **statistics(13))


def test_the_form_follows_from_the_arguments():
    from polychrome.kernels.augment.triton import ops

    def is_flat(source, **arguments):
        return ops.is_flat(Arguments(**dict.fromkeys(Arguments._fields) | {"images": source} | arguments))

    planar = images().permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    for name in CASES:
        assert is_flat(images(), **CASES[name]) == (name not in ("angles", "grayscale", "gains and gray", "all"))
    assert not is_flat(planar)
    assert is_flat(planar[..., :1])
    assert is_flat(images(13)[..., 2:7])
    assert not is_flat(images()[:, :, :1])  # beside its pixel may lie nothing


def test_images_of_one_column():
    assert_near_definition(images()[:, :, -1:], **ANY_FORM, size=(9, 5))


@pytest.mark.parametrize("channels", [1, 2, 40])
def test_any_number_of_channels(channels):
    assert_near_definition(images(channels), **CASES["training"], **statistics(channels), size=9)
    assert_near_definition(images(channels), **statistics(channels))


def test_channels_of_one_image_in_another_number_and_order():
    order = torch.tensor([12, 0, 3, -1, 7, 7, 1])
    got = assert_near_definition(images(13), **CASES["training"], **statistics(13), size=9, channels=order)
    assert not got[:, 3].any()
    assert torch.equal(got[:, 4], got[:, 5])


@pytest.mark.parametrize("size", [1, (1, 40), (33, 2)], ids=str)
def test_any_output_size(size):
    source = images()[:, :9, :7]
    assert_near_definition(source, **CASES["training"], size=size)
    assert_near_definition(source, indices=PARAMETERS["indices"], angles=PARAMETERS["angles"], size=size)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_boxes_may_reach_as_far_as_their_type(dtype):
    far = torch.iinfo(dtype).max
    boxes = torch.tensor([[3, 2, far, far], [-far, -far, far, far]], dtype=dtype)
    nearer = torch.tensor([[3, 2, 20, 17]])
    got = assert_near_definition(images()[:1], crops=boxes[:1], size=8)
    assert torch.equal(got, augment(images()[:1], nearer, size=8))
    with pytest.raises(ValueError, match="in sample 1"):
        augment(images()[:2], boxes, size=8)
    cut = assert_near_definition(images()[:2], cutouts=boxes)
    assert not cut[0, :, 3:, 2:].any()
    assert cut[1].any()


def test_crops_of_single_pixels_and_of_lines():
    crops = torch.tensor([[0, 0, 1, 1], [22, 18, 1, 1], [4, 0, 1, 19], [0, 7, 23, 1], [22, 18, 50, 50]])
    assert_near_definition(images(), crops=crops, size=6)


def test_images_of_any_stride():
    source = images()
    expected = augment(source, **PARAMETERS, size=8)
    for same in (
        source.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        torch.cat([source, source], 3)[..., :3],
        torch.cat([source, source], 2)[:, :, :19],
    ):
        assert torch.equal(augment(same, **PARAMETERS, size=8), expected)
        assert_near_definition(same, **CASES["training"], size=8)


def test_parameters_of_any_stride_and_both_integer_types():
    strided = {name: torch.stack([value, value], -1)[..., 0] for name, value in PARAMETERS.items()}
    expected = augment(images(), **PARAMETERS, size=8)
    assert torch.equal(augment(images(), **strided, size=8), expected)
    narrow = {name: v.int() if v.dtype == torch.int64 else v for name, v in PARAMETERS.items()}
    assert torch.equal(augment(images(), **narrow, size=8), expected)


@pytest.mark.parametrize("case", ["training", "angles"])
def test_offsets_of_64_bits(case, monkeypatch):
    from polychrome.kernels.augment.triton import ops

    huge = torch.empty(1, 2**16, 2**14, 3, dtype=torch.uint8, device="meta")
    assert ops.needs_64_bits(huge)
    assert ops.needs_64_bits(huge[:, :, :5])  # few bytes, far apart
    assert not ops.needs_64_bits(huge[:, : 2**14])
    assert not ops.needs_64_bits(images())
    expected = augment(images(5), **CASES[case], size=8)
    monkeypatch.setattr(ops, "needs_64_bits", lambda tensor: True)
    assert torch.equal(augment(images(5), **CASES[case], size=8), expected)


def test_rows_further_apart_than_32_bits_count():
    far = torch.zeros(2**31 + 2**10, dtype=torch.uint8)
    apart = far.as_strided((1, 2, 16, 3), (0, 2**31, 3, 1))
    near = images()[:1, :2, :16]
    apart.copy_(near)
    crops = torch.tensor([[0, 1, 2, 14]])
    for angles in (None, torch.tensor([10.0])):
        assert torch.equal(augment(apart, crops, angles=angles, size=5), augment(near, crops, angles=angles, size=5))
    assert torch.equal(augment(apart), augment(near))


def test_positions_far_from_the_origin_are_exact():
    wide = images()[:1, :2].repeat(1, 1, 5000, 1)  # 95,000 columns
    crops = torch.tensor([[0, wide.shape[2] - 30, 2, 23]])
    same = wide[:, :, -30:].contiguous()
    got = augment(wide, crops, size=(2, 37))
    assert torch.equal(got, augment(same, torch.tensor([[0, 0, 2, 23]]), size=(2, 37)))


def test_channels_are_read_as_64_bits():
    got = augment(images(), channels=torch.tensor([-(2**40), 1]))
    assert not got[:, 0].any()
    assert got[:, 1].any()


def test_one_launch_whatever_is_asked_for():
    for arguments in (CASES["no_parameters"], PARAMETERS):
        with record_launches() as launches:
            augment(images(), **arguments, size=8)
        assert len(launches) == 1


def test_empty_batch_launches_nothing():
    with record_launches() as launches:
        got = augment(images(), indices=torch.zeros(0, dtype=torch.int64), size=8)
    assert got.shape == (0, 3, 8, 8)
    assert launches == []


def test_values_are_checked_before_the_interpreted_kernel_runs():
    with pytest.raises(ValueError, match="indices must be 0 to 4, got 7 in sample 1"):
        augment(images(), indices=torch.tensor([0, 7]))


def op_arguments(names, dtype, backend, size=(8, 9), channels=3):
    order = Arguments._fields[1 : 1 + len(PARAMETERS)]
    assert set(order) == set(PARAMETERS)
    chosen = [PARAMETERS[name] if name in names else None for name in order]
    statistic = statistics(channels)
    return (images(channels)[:, :9, :8], *chosen, statistic["mean"], statistic["std"], *size, dtype, backend)


@grid(strength=1, names={"none": (), "two": ("indices", "crops"), "all": tuple(PARAMETERS)}, backend=["auto", "triton"])
def test_opcheck(names, backend):
    torch.use_deterministic_algorithms(False)
    for dtype in (torch.float32, torch.float16):
        torch.library.opcheck(torch.ops.polychrome.augment.default, op_arguments(names, dtype, backend))


@pytest.mark.parametrize("backend", ["auto", "triton"])
@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("size", [(3, 4), (1, 1), (1, 7)], ids=str)
def test_strides_are_those_of_the_fake(size, channels, backend):
    source, *rest = op_arguments(("indices",), torch.float32, backend, size, channels)
    arguments = (source[:, :3, :4], *rest)
    with torch._subclasses.FakeTensorMode() as mode:
        fakes = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments]
        fake = torch.ops.polychrome.augment(*fakes)
    got = torch.ops.polychrome.augment(*arguments)
    assert (got.shape, got.stride(), got.dtype) == (fake.shape, fake.stride(), fake.dtype)


@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_one_compilation_serves_every_batch_size(backend):
    def batch(source, indices, crops):
        return augment(source, crops, indices=indices, size=8, **statistics())

    torch.use_deterministic_algorithms(False)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(batch, fullgraph=True, backend=counter)
    for size in (2, 3, 5, 8):
        indices, crops = torch.arange(size) % 5, torch.tensor([[1, 2, 10, 9]]).repeat(size, 1)
        for parameter in (indices, crops):
            torch._dynamo.mark_dynamic(parameter, 0)
        with use_backend(backend):
            assert torch.equal(compiled(images(), indices, crops), batch(images(), indices, crops))
    assert counter.frame_count == 1


def test_on_meta_tensors_the_launch_is_recorded():
    from polychrome.kernels.augment.triton import ops

    moved = [a.to("meta") if isinstance(a, torch.Tensor) else a for a in op_arguments(tuple(PARAMETERS), None, None)]
    with record_launches() as launches:
        got = ops.augment(Arguments(*moved[:-2], torch.bfloat16))
    assert (got.device.type, got.shape, got.dtype) == ("meta", (4, 4, 8, 9), torch.bfloat16)
    assert [launch.kernel for launch in launches] == [ops.augment_kernel]
