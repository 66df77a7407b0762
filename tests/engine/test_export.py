"""Exported files of models that are not trained: what they compute, and what is refused."""

import json
import sys
import warnings
from dataclasses import replace
from functools import cache
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import SqueezeExcitation

from polychrome import kernels, models
from polychrome.engine.channels.names import Channels
from polychrome.engine.errors import UserError
from polychrome.engine.export import Check, Classifier, Description, ExportError, load, save, save_whole, whole
from polychrome.engine.export.check import agreement, compare
from polychrome.engine.export.program import traced
from polychrome.kernels import dynamic_conv2d, per_sample_conv2d
from polychrome.kernels.decompositions import OPS, STACKED
from tests.grids import grid
from tests.kernels.interpreter import needs_interpreter
from tests.kernels.op_calls import op_arguments
from tests.kernels.oracle import outputs
from tests.kernels.written_elsewhere import DynamicConv

FAST = ("simple_cnn", "pool_attention_cnn", "dynamic_cnn_v2")
LARGER = ("attention_cnn", "resnet18")
CHANNELS = Channels(("R", "G", "B"), (0.5, 0.4, 0.3), (0.2, 0.3, 0.25))


def needs(file_format):
    """Skip where the packages of a format are not installed."""
    for package in import_module(f"polychrome.engine.export.{file_format}").PACKAGES:
        pytest.importorskip(package)


def description(model, size=32, any_channels=False):
    return Description(model, size, ("a", "b", "c"), CHANNELS, "uint8", any_channels, 0.875)


def made(name, size=32):
    """Return a network whose batch normalisations have seen a batch, its description and uint8 images."""
    torch.manual_seed(0)
    model = models.create(name, 3, 3, size)
    images = torch.randint(256, (16, 3, size, size), dtype=torch.uint8)
    with torch.no_grad():
        model(torch.randn(16, 3, size, size))
    return model.eval(), description(name, size, getattr(model, "any_channels", False)), images


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return a function that writes a network as it is made, each once: its path, what `made` returns, the check."""

    @cache
    def written(name, file_format, size):
        needs(file_format)
        model, about, images = made(name, size)
        path = tmp_path_factory.mktemp("files") / f"x.{file_format}"
        return path, (model, about, images), save(model, about, path, images, "noise")

    return written


@pytest.mark.parametrize("file_format", ["onnx", "safetensors"])
@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGER)])
def test_a_file_computes_what_the_model_does(name, file_format, files):
    check_file(*files(name, file_format, 32))


@pytest.mark.slow
@pytest.mark.parametrize("file_format", ["pt2", "onnx", "safetensors"])
@pytest.mark.parametrize("name", models.names())
def test_every_model_is_written_in_every_format(name, file_format, tmp_path):
    needs(file_format)
    network, path = made(name, 64), tmp_path / f"x.{file_format}"
    check_file(path, network, save(*network[:2], path, network[2], "noise"))


def check_file(path, network, check):
    model, about, images = network
    assert check.images == 16
    assert check.agreement == 1
    assert check.difference < 1e-4 * max(1, check.largest_logit)
    assert json.loads(path.with_name(f"{path.name}.json").read_text())["check"]["difference"] == check.difference
    run, values = load(path), (images.float() / 255).contiguous(memory_format=torch.channels_last)
    for batch in (1, 3, 16):
        mask = (torch.ones(batch, 3, dtype=torch.bool),) * about.any_channels
        torch.testing.assert_close(
            run(values[:batch], *mask), Classifier(model, about)(values[:batch], *mask), atol=1e-3, rtol=1e-4
        )


IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
MASK = torch.ones(2, 3, dtype=torch.bool)
WRONG = {
    "uint8": ((IMAGES * 255).to(torch.uint8), MASK),
    "float64": (IMAGES.double(), MASK),
    "an array": (IMAGES.numpy(), MASK),
    "larger": (torch.rand(2, 3, 48, 48), MASK),
    "fewer channels": (IMAGES[:, :1], MASK[:, :1]),
    "one image": (IMAGES[0], MASK[0]),
    "no image": (IMAGES[:0], MASK[:0]),
    "no mask": (IMAGES,),
    "whole numbers as mask": (IMAGES, MASK.long()),
    "fractions as mask": (IMAGES, MASK.float()),
    "a mask of fewer channels": (IMAGES, MASK[:, :2]),
    "a mask of fewer images": (IMAGES, MASK[:1]),
    "an image without channels": (IMAGES, MASK & torch.tensor([[True], [False]])),
}


def packed(path, about, monkeypatch):
    """Return a pt2, loaded, without compiling: it gives the sums of its images."""

    class Package:
        loader = SimpleNamespace(get_metadata=lambda: {"polychrome": about.to_json(), "AOTI_DEVICE_KEY": "cpu"})

        def __call__(self, images, *mask):
            assert all(each.is_contiguous() for each in (images, *mask))
            return images.sum((2, 3))

    monkeypatch.setattr(torch._inductor, "aoti_load_package", lambda path: Package())
    path.write_bytes(b"")
    return load(path)


def of_format(file_format, files, tmp_path, monkeypatch):
    """Return a network with a mask as a file of a format, loaded, and its description."""
    if file_format == "pt2":
        _, about, _ = made("pool_attention_cnn")
        return packed(tmp_path / "x.pt2", about, monkeypatch), about
    path, (_, about, _), _ = files("pool_attention_cnn", file_format, 32)
    return load(path), about


@pytest.mark.parametrize("file_format", ["pt2", "onnx", "safetensors"])
def test_every_format_takes_the_described_inputs_and_refuses_all_others(file_format, files, tmp_path, monkeypatch):
    run, about = of_format(file_format, files, tmp_path, monkeypatch)
    if file_format == "pt2":
        with pytest.raises(UserError, match=r"x.pt2 is compiled for cpu, got a tensor on meta"):
            run(IMAGES.to("meta"), MASK)
    assert run.description == about
    assert run.description.classes == ("a", "b", "c")
    for images in (IMAGES, IMAGES.to(memory_format=torch.channels_last), IMAGES.clone().requires_grad_()):
        assert run(images, MASK).shape == (2, 3)
    for arguments in WRONG.values():
        with pytest.raises(UserError, match=r"^(images must be|mask must|pool_attention_cnn takes a mask)") as caught:
            run(*arguments)
        assert "\n" not in str(caught.value)


OTHER = {
    "0 to 255": (IMAGES * 255, "channel R has a mean of 12"),
    "standardised": ((IMAGES - 0.4) / 0.25, "channel R has values from -1.59"),
    "divided twice": (IMAGES / 255, "channel R has a mean of 0.0019"),
    "one of two": (torch.stack([IMAGES[0], IMAGES[1] * 255]), "channel R has a mean of 12"),
}


@pytest.mark.parametrize("file_format", ["pt2", "onnx", "safetensors"])
@pytest.mark.parametrize("case", OTHER)
def test_every_format_warns_once_of_images_in_other_units(case, file_format, files, tmp_path, monkeypatch):
    run, _ = of_format(file_format, files, tmp_path, monkeypatch)
    images, line = OTHER[case]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(IMAGES, MASK)
        run((IMAGES * 1.9 - 0.45).clamp(-0.4, 1.4), MASK)  # as resizing by splines overshoots
        run(images.where(torch.tensor([False, True, True])[:, None, None], IMAGES), MASK & (MASK.cumsum(1) == 1))
    with pytest.warns(UserWarning, match=rf"^images: {line}.*Wanted: 8-bit values / 255, 0..1$"):
        assert run(images, MASK).shape == (2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(images, MASK)


def test_a_network_in_a_graph_is_compiled_whole_without_the_warning():
    model, about, images = made("simple_cnn")
    classifier = Classifier(model, about)
    compiled = torch.compile(classifier, fullgraph=True, backend="eager")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*other units")
        torch.testing.assert_close(
            compiled(images.float()), model((images - classifier.statistics[0]) / classifier.statistics[1])
        )


def test_a_network_for_all_channels_takes_no_mask():
    model, about, images = made("simple_cnn")
    with pytest.raises(UserError, match="simple_cnn takes no mask: absent channels hold the channel's mean"):
        Classifier(model, about)(images / 255, torch.ones(16, 3, dtype=torch.bool))


def test_a_file_for_whole_images_takes_pixels_of_any_size_as_stored_and_refuses_all_else(tmp_path):
    needs("onnx")
    model, about, images = Layers(nn.Conv2d(3, 3, 3)), description("small"), made("simple_cnn")[2]
    pixels = torch.randint(256, (2, 40, 50, 3), dtype=torch.uint8)
    save_whole(model, about, tmp_path / "x.onnx", images, list(pixels.numpy()), "noise")
    run = load(tmp_path / "x.onnx")
    assert run.description == replace(about, whole=True)
    for wanted in (pixels, pixels[:, :33], pixels[:1, :, :9]):
        assert run(wanted).sum(1).tolist() == pytest.approx([1.0] * len(wanted), abs=1e-5)
    with pytest.warns(UserWarning, match=r"^pixels: channel R has a mean of 0\.[45].*Wanted: as stored \(uint8\)$"):
        run(pixels // 128)
    for wrong in (pixels / 255, pixels[0], pixels[..., :2], pixels[:, :0], pixels.permute(0, 3, 1, 2)):
        with pytest.raises(UserError, match=r"pixels must be a tensor of uint8 \[batch, height, width, 3\], got "):
            run(wrong)


def test_a_file_for_whole_images_takes_nan_for_missing_values_as_files_are_read(tmp_path):
    needs("onnx")
    import onnx

    from polychrome.engine.data.files import stacks

    torch.manual_seed(0)
    channels = Channels(("a", "b", "c"), (50.0, 7.0, -3.0), (20.0, 3.0, 1.0))
    about = replace(description("small"), dtype="float32", channels=channels)
    values = torch.randn(4, 40, 50, 3) * torch.tensor(channels.std) + torch.tensor(channels.mean)
    model, images = Layers(nn.Conv2d(3, 3, 3)), values[:, :32, :32].permute(0, 3, 1, 2)
    check = save_whole(model, about, tmp_path / "x.onnx", images, list(values.numpy()), "noise")
    assert check.difference < 1e-4
    assert str(check).startswith("largest difference of probabilities ")
    said = json.loads((tmp_path / "x.onnx.json").read_text())["check"]
    assert said == {"images": 4, "difference": check.difference, "agreement": 1.0, "on": "noise"}
    run, raw = load(tmp_path / "x.onnx"), values[0].clone()
    raw[:9, 4:20, 1], raw[..., 2] = torch.nan, torch.nan
    with pytest.warns(UserWarning, match=r"^pixels: channel a has a mean of 4,977.*the training had 50 ± 20"):
        load(tmp_path / "x.onnx")(raw[None] * 100)
    np.save(tmp_path / "x.npy", raw.numpy())
    filled = torch.from_numpy(stacks.read(tmp_path / "x.npy", 3, channels.mean))
    assert filled.isfinite().all()
    torch.testing.assert_close(run(raw[None]), run(filled[None]), atol=1e-6, rtol=0)
    assert (run(raw[None]) - run(values[:1])).abs().max() > 1e-3
    graph = onnx.load(tmp_path / "x.onnx").graph
    used = {name for node in graph.node for name in node.input}
    assert {each.name for each in graph.initializer} <= used


def test_probabilities_pass_up_to_a_fiftieth_and_never_as_nan():
    assert whole.WholeCheck(16, 0.02, 1.0).passed
    assert not whole.WholeCheck(16, 0.021, 1.0).passed
    assert not whole.WholeCheck(16, float("nan"), 1.0).passed


def test_a_mask_in_the_file_gives_what_the_model_makes_of_the_present_channels(files):
    path, (model, _, images), _ = files("pool_attention_cnn", "onnx", 32)
    run, values = load(path), images[:3].float() / 255
    chosen = ([0], [1, 2], [0, 2])
    mask = torch.tensor([[place in some for place in range(3)] for some in chosen])
    mean, std = torch.tensor([CHANNELS.mean, CHANNELS.std])[:, :, None, None]
    standardised = (values - mean) / std
    values[~mask] = torch.nan
    wanted = torch.cat([model(standardised[i : i + 1, some]) for i, some in enumerate(chosen)])
    torch.testing.assert_close(run(values, mask), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "size"), [("dynamic_cnn_v2", 32), pytest.param("adaptive_channel_cnn", 64, marks=pytest.mark.slow)]
)
def test_no_convolution_of_an_onnx_file_has_the_batch_as_groups(name, size, files):
    needs("onnx")
    import onnx

    graph = onnx.load(files(name, "onnx", size)[0]).graph
    groups = {
        attribute.i
        for node in graph.node
        if node.op_type == "Conv"
        for attribute in node.attribute
        if attribute.name == "group"
    }
    assert groups == {1}
    assert {item.type.tensor_type.shape.dim[0].dim_param for item in [*graph.input, *graph.output]} == {"batch"}


def test_a_network_that_was_made_for_more_channels_than_it_is_shown_is_read_again(tmp_path):
    needs("safetensors")
    torch.manual_seed(0)
    two = Channels(("R", "G"), (0.4, 0.5), (0.2, 0.3))
    about = Description("prism4_small", 32, ("a", "b", "c"), two, "uint8", True, 0.875, made_for=3)
    model = models.create("prism4_small", 3, 3).eval()
    save(model, about, tmp_path / "x.safetensors", torch.randint(256, (16, 2, 32, 32), dtype=torch.uint8), "noise")
    loaded = load(tmp_path / "x.safetensors")
    assert loaded.description == about
    images, mask = torch.rand(4, 2, 32, 32), torch.tensor([[True, True], [True, False]]).repeat(2, 1)
    assert torch.equal(loaded(images, mask), Classifier(model, about)(images, mask))


def test_the_description_is_in_the_file(tmp_path):
    needs("safetensors")
    model, about, images = made("simple_cnn")
    save(model, about, tmp_path / "x.safetensors", images, "noise")
    loaded = load(tmp_path / "x.safetensors")
    assert loaded.description == about
    assert loaded.model.state_dict().keys() == model.state_dict().keys()
    said = json.loads((tmp_path / "x.safetensors.json").read_text())
    assert said["inputs"] == {
        "images": {
            "dtype": "float32",
            "shape": ["batch", 3, 32, 32],
            "layout": "contiguous",
            "values": "8-bit values / 255, 0..1",
            "absent_channels": "the channel's mean",
        }
    }
    assert (said["check"]["images"], said["check"]["on"]) == (16, "noise")


@pytest.mark.parametrize("stored", ["uint8", "float32"])
@pytest.mark.parametrize("name", [*FAST, *LARGER])
def test_absent_channels_are_described_as_the_network_takes_them(name, stored):
    """What is written into them changes nothing, or is said."""
    model, about, images = made(name)
    about = replace(about, dtype=stored)
    classifier, values = Classifier(model, about), images / about.scale
    mask = torch.tensor([True, False, True]).expand(len(images), -1)
    given = (mask,) * about.any_channels
    for words in (about.as_dict()["inputs"]["images"], whole.about(about)["inputs"]["pixels"]):
        if words["absent_channels"].startswith("anything"):
            kept = values.clone()
            kept[:, 1] = 7.0
            torch.testing.assert_close(classifier(kept, *given), classifier(values, *given))
        else:
            scaled = " * 255, rounded" if words["values"] == "as stored" and stored == "uint8" else ""
            assert words["absent_channels"] == "the channel's mean" + scaled
            standardised = (images.float() / about.scale - torch.tensor(CHANNELS.mean)[:, None, None]) / torch.tensor(
                CHANNELS.std
            )[:, None, None]
            standardised[:, 1] = 0.0  # as in training
            values[:, 1] = CHANNELS.mean[1]
            torch.testing.assert_close(classifier(values), model(standardised))


def test_every_op_is_written_out():
    ops = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("polychrome::")}
    # images are standardised by the classifier itself
    forward = {name for name in ops if not name.endswith("_backward")} - {"polychrome::augment"}
    assert forward == {op.name() for op in OPS}


FORMS = [(op, form[op]) for form in (OPS, STACKED) for op in form]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("op", "written"), FORMS, ids=[op.name() for op, _ in FORMS])
@torch.no_grad()
def test_what_is_written_of_an_op_has_its_dtype_and_values(op, written, dtype):
    arguments = op_arguments(op.name().removeprefix("polychrome::"), dtype)
    if "dynamic_conv" in op.name():
        arguments[2] = arguments[2].float()  # a mix, which an attention gives in float32
    assert outputs(written(*arguments))[0].dtype == outputs(op(*(to_meta(each) for each in arguments)))[0].dtype
    tolerance = 20 * torch.finfo(dtype).eps
    expected = outputs(op(*arguments))[0]
    torch.testing.assert_close(outputs(written(*arguments))[0], expected, rtol=tolerance, atol=4 * tolerance)


def to_meta(argument):
    return argument.to("meta") if isinstance(argument, torch.Tensor) else argument


class Convolutions(nn.Module):
    """Both convolutions with one geometry, the second's result beside the first's."""

    def __init__(self, geometry, groups):
        super().__init__()
        self.geometry, self.groups = geometry, groups
        self.experts = nn.Parameter(torch.randn(4, 6, 3 // groups, 4, 3))
        self.bias = nn.Parameter(torch.randn(4, 6))
        self.mixing = nn.Linear(3, 4)

    def forward(self, x):
        mixing = self.mixing(x.mean((2, 3)))
        weight = (mixing @ self.experts.flatten(1)).unflatten(1, self.experts.shape[1:])
        first = dynamic_conv2d(x, self.experts, mixing, self.bias, **self.geometry, groups=self.groups)
        second = per_sample_conv2d(x, weight, mixing @ self.bias, **self.geometry, groups=self.groups)
        third = dynamic_conv2d(x, self.experts, mixing, **self.geometry, groups=self.groups, relu=True)
        return torch.cat([first, second, third], 1)


@grid(
    form={"mixed": OPS, "stacked": STACKED},
    groups=(1, 3),
    geometry={
        "uneven": {"stride": (2, 1), "padding": (2, 0), "dilation": (1, 2)},
        "same": {"padding": "same"},
        "one around": {"padding": 1},
    },
)
@torch.no_grad()
def test_convolutions_without_groups_for_samples_equal_the_ops(geometry, groups, form):
    torch.manual_seed(0)
    program = traced(Classifier(Convolutions(geometry, groups), description("simple_cnn", 12)), form).module()
    model = Convolutions(geometry, groups)
    model.load_state_dict({name.removeprefix("model."): value for name, value in program.state_dict().items()}, False)
    for batch in (1, 4):
        x = torch.rand(batch, 3, 12, 12)
        mean, std = torch.tensor([CHANNELS.mean, CHANNELS.std])[:, :, None, None]
        torch.testing.assert_close(program(x), model((x - mean) / std), atol=1e-4, rtol=1e-4)


class Layers(nn.Module):
    """Layers, then the mean over the pixels: [batch, 3, height, width] -> [batch, 3]."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x).mean((2, 3))


def fused():
    """Return a network with a dynamic convolution and a squeeze-excitation, both written elsewhere and swapped."""
    torch.manual_seed(0)
    model = Layers(DynamicConv(3, 3, 3, padding=1), SqueezeExcitation(3, 2, activation=nn.SiLU)).eval()
    assert [swap.op for swap in kernels.fuse(model).swapped] == ["dynamic_conv2d", "channel_scale"]
    return model


@needs_interpreter
@pytest.mark.parametrize("form", [OPS, STACKED], ids=["mixed", "stacked"])
def test_ops_that_fuse_put_in_are_written_out(form):
    classifier = Classifier(fused(), description("fused", 12))
    with kernels.use_backend("triton"):  # else a model on a CPU runs its own forward
        program = traced(classifier, form).module()
    for batch in (1, 4):
        x = torch.rand(batch, 3, 12, 12)
        torch.testing.assert_close(program(x), classifier(x), atol=1e-5, rtol=1e-4)


def test_a_fused_model_is_written_with_a_batch_of_any_size(tmp_path):
    needs("onnx")
    images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    assert save(fused(), description("fused"), tmp_path / "x.onnx", images, "noise").difference < 1e-5
    assert load(tmp_path / "x.onnx")(torch.rand(7, 3, 32, 32)).shape == (7, 3)


def test_zeros_around_a_map_stay_zeros_for_the_pooling_after_them(tmp_path):
    needs("onnx")
    model = Layers(nn.ConstantPad2d(1, 0.0), nn.MaxPool2d(3, 2))
    images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)  # below the mean, so the padding is the largest
    assert save(model, description("padded"), tmp_path / "x.onnx", images, "noise").difference < 1e-6


class Ordered(nn.Module):
    """Channels that are dark first, each kind in its order."""

    def forward(self, x):
        order = (x.mean((2, 3)) > 0).to(torch.uint8).argsort(dim=1, stable=True)
        return x.gather(1, order[:, :, None, None].expand_as(x))


def test_equals_keep_their_order(tmp_path):
    needs("onnx")
    torch.manual_seed(0)
    images = torch.randint(256, (16, 3, 1, 1), dtype=torch.uint8).expand(-1, -1, 8, 8)
    assert save(Layers(Ordered()), description("ordered", 8), tmp_path / "x.onnx", images, "noise").difference < 1e-6


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


def test_a_file_that_differs_is_not_left(tmp_path):
    needs("onnx")
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ExportError, match=r"x.onnx was not written: it does not compute what noisy does \(largest"):
        save(Layers(Noise()), description("noisy", 8), tmp_path / "x.onnx", images, "noise")
    assert not list(tmp_path.iterdir())


def test_a_difference_passes_up_to_a_thousandth_of_the_logits():
    assert Check(16, 1e-3, 0.5, 1.0).passed
    assert not Check(16, 1.1e-3, 0.5, 1.0).passed
    assert Check(16, 1e-2, 50.0, 1.0).passed
    assert not Check(16, float("nan"), 0.5, 1.0).passed


def test_a_class_that_no_finite_logit_names_is_no_agreement():
    nan = torch.full((2, 3), float("nan"))
    some = torch.tensor([[0.0, 2, 1], [3.0, 2, 1]])
    assert agreement(nan, nan) == agreement(nan, some) == agreement(some, nan) == 0
    assert agreement(some, torch.tensor([[0.0, 2, 1], [1.0, 2, 1]])) == 0.5


def test_a_difference_shows_with_absent_channels_alone():
    model, about, images = made("pool_attention_cnn")

    def deaf(images, mask):
        return Classifier(model, about)(images, torch.ones_like(mask))

    assert compare(Classifier(model, about), model, about, images).difference < 1e-5
    assert not compare(deaf, model, about, images).passed


def test_values_that_are_no_8_bit_images_go_in_as_stored():
    model, about, _ = made("simple_cnn")
    about = replace(about, dtype="uint16", channels=Channels(("a", "b", "c"), (9e3, 2e4, 3e4), (1e3, 4e3, 2e3)))
    stored = 65535 * torch.rand(16, 3, 32, 32)
    check = compare(Classifier(model, about), model, about, stored)
    assert check.passed
    assert check.agreement == 1
    assert about.as_dict()["inputs"]["images"]["values"] == "as stored (uint16)"


class Bessel(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)


def test_an_operator_that_the_opset_lacks_is_named(tmp_path):
    needs("onnx")
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(UserError, match=r"bessel cannot be written in ONNX: .*bessel_j0") as caught:
        save(Layers(Bessel()), description("bessel", 8), tmp_path / "x.onnx", images, "noise")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    needs("onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    model, about, images = made("simple_cnn")
    with pytest.raises(UserError, match="onnx files need onnxruntime: pip install"):
        save(model, about, tmp_path / "x.onnx", images, "noise")


def test_a_missing_compiler_is_named(tmp_path):
    from torch._inductor import config

    model, about, images = made("simple_cnn")
    with config.patch({"cpp.cxx": ("no-such-compiler",)}), pytest.raises(UserError, match=r"no C.. compiler"):
        save(model, about, tmp_path / "x.pt2", images, "noise")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("x.h5", "must end in .pt2, .onnx, .safetensors"),
        ("folder.safetensors", "it is a folder"),
        ("file/x.safetensors", r"cannot be written: .*\(.*file\)"),
        ("/proc/here/x.safetensors", "cannot be written"),
    ],
)
def test_an_unwritable_target_is_refused(target, message, tmp_path):
    needs("safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "file").write_text("")
    model, about, images = made("simple_cnn")
    with pytest.raises(UserError, match=message):
        save(model, about, tmp_path / target, images, "noise")


@pytest.mark.parametrize("file_format", ["pt2", "onnx", "safetensors"])
def test_a_damaged_file_is_refused(file_format, tmp_path):
    needs(file_format)
    path = tmp_path / f"x.{file_format}"
    with pytest.raises(UserError, match="no such file"):
        load(path)
    path.write_bytes(b"damaged" * 100)
    with pytest.raises(UserError, match="is damaged or was not exported by this project"):
        load(path)
