import subprocess
import sys

import pytest
import torch

from polychrome import models
from polychrome.engine import evaluation
from polychrome.engine.channels import combinations, masks
from polychrome.engine.channels.names import RGB, Channels
from polychrome.engine.errors import UserError

MANY = tuple(f"band {i}" for i in range(12))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_combinations_of_photos_come_in_the_reports_order():
    assert tuple(combinations.every()) == ("RGB", "RG", "GB", "RB", "R", "G", "B")
    assert combinations.every()["GB"] == (1, 2)


def test_few_channels_give_every_subset_once_the_full_set_first():
    found = combinations.every(("a", "b", "c", "d"))
    assert len(found) == len(set(found.values())) == 15
    assert next(iter(found.items())) == ("abcd", (0, 1, 2, 3))
    assert list(found)[-1] == "d"
    assert combinations.every(("red", "nir"))["red+nir"] == (0, 1)


def test_many_channels_give_all_some_of_each_size_and_each_alone():
    found = combinations.every(MANY, seed=1)
    assert next(iter(found.items())) == ("all", tuple(range(12)))
    sizes = [len(places) for places in found.values()]
    assert sizes == [12, *(size for size in range(11, 1, -1) for _ in range(3)), *[1] * 12]
    assert found["5 of 12 #2"] == tuple(sorted(set(found["5 of 12 #2"])))
    assert found["band 7"] == (7,)
    assert combinations.every(MANY, seed=1) == found != combinations.every(MANY, seed=2)


def test_the_full_set_is_named_by_its_channels_where_they_are_few():
    assert RGB.full == "RGB"
    assert Channels(("red", "nir"), (0, 0), (1, 1)).full == "red+nir"
    assert Channels(MANY, (0,) * 12, (1,) * 12).full == "all"
    assert len(RGB) == 3


def test_combinations_of_few_channels_that_some_images_lack_are_such_as_an_image_has():
    found = combinations.every(tuple("abcd"), sensors=((0, 1), (1, 2, 3)))
    assert list(found) == ["all", "ab", "bcd", "bc", "bd", "cd", "a", "b", "c", "d"]
    assert found["all"] is None
    assert found["bd"] == (1, 3)
    channels = Channels(tuple("abcd"), (0,) * 4, (1,) * 4, ((0, 1), (1, 2, 3)))
    assert (channels.full, channels.everything) == ("all", None)
    assert (RGB.full, RGB.everything) == ("RGB", (0, 1, 2))


def test_combinations_of_many_channels_are_drawn_from_those_that_images_have():
    sensors = (tuple(range(7)), tuple(range(5, 12)), (0, 11))
    found = combinations.every(MANY, seed=1, sensors=sensors)
    assert list(found)[:4] == ["all", "sensor 1", "sensor 2", "band 0+band 11"]
    assert list(found)[-12:] == list(MANY)
    values = list(found.values())[1:]
    assert len(set(values)) == len(values)
    assert all(any(set(chosen) <= set(sensor) for sensor in sensors) for chosen in values)
    assert [name for name in found if name.startswith("6 of")] == ["6 of 12 #1", "6 of 12 #2", "6 of 12 #3"]
    assert combinations.every(MANY, seed=1, sensors=sensors) == found
    assert combinations.every(MANY, seed=2, sensors=sensors) != found


def test_sensors_are_asked_for_by_a_word_or_by_number():
    sensors = ((0, 1, 2, 3, 4, 5), (6, 7))
    found = combinations.parse(("sensors", "band 3"), MANY, 0, sensors)
    assert found == {"sensor 1": sensors[0], "band 6+band 7": (6, 7), "band 3": (3,)}
    assert combinations.parse(("sensor 2",), MANY, 0, sensors) == {"sensor 2": (6, 7)}
    assert combinations.parse(("sensors",)) == {"RGB": (0, 1, 2)}
    with pytest.raises(UserError, match="channels 'sensor 3': the images have 2 choices of channels"):
        combinations.parse(("sensor 3",), MANY, 0, sensors)


def test_what_the_user_asks_for_becomes_positions():
    assert combinations.parse(("BR", "shuffled")) == {"BR": (2, 0), "shuffled": ()}
    assert combinations.parse(("nir+red", "red"), ("red", "nir")) == {"nir+red": (1, 0), "red": (0,)}
    assert combinations.parse(("all", "BR"))["RGB"] == (0, 1, 2)
    assert combinations.parse(("10",), ("0", "1", "10")) == {"10": (2,)}


@pytest.mark.parametrize(
    ("wanted", "names", "message"),
    [
        (("RX",), "RGB", "channels 'RX': no channel 'X'; the data has R, G, B; did you mean 'R'?"),
        (("RR",), "RGB", "channels 'RR': a channel is named twice"),
        (("",), "RGB", "channels must name at least one of R, G, B"),
        (("RG", "B", "RG"), "RGB", "channels 'RG' are named 2 times"),
        (("RG", "GR", "R+G"), "RGB", "channels 'R+G' are 'RG' again"),
        (("all", "R+G+B"), "RGB", "channels 'R+G+B' are 'RGB' again"),
        (
            ("red+blue",),
            ("red", "nir"),
            "channels 'red+blue': no channel 'blue'; the data has red, nir; did you mean 'red'?",
        ),
    ],
)
def test_unknown_and_repeated_channels_are_refused(wanted, names, message):
    with pytest.raises(UserError) as caught:
        combinations.parse(wanted, tuple(names))
    assert str(caught.value) == message


def test_a_combination_is_in_once_by_whichever_name_it_was_given_first():
    found = combinations.parse(("R+G", "GR", "all"))
    assert list(found)[:2] == ["R+G", "GR"]
    assert "RG" not in found
    assert len(found) == len({*found.values()}) == 8
    sensors = ((0, 1), (1, 2))
    names = ("red", "green", "nir")
    assert list(combinations.parse(("red+green", "sensors"), names, 0, sensors).values()).count((0, 1)) == 1
    with pytest.raises(UserError, match=r"channels 'red\+green' are 'sensor 1' again"):
        combinations.parse(("sensor 1", "red+green"), names, 0, sensors)


def test_subset_keeps_only_the_channels_present_and_zero_pad_blanks_the_rest():
    images = torch.arange(1.0, 13).reshape(1, 3, 2, 2)
    assert masks.select(images, (1, 2), "subset").equal(images[:, 1:])
    assert masks.select(images, (0, 1, 2), "subset") is images
    assert masks.select(images, (2, 0), "subset").equal(images[:, [2, 0]])
    padded = masks.select(images, (1, 2), "zero-pad")
    assert padded[:, 0].eq(0).all()
    assert padded[:, 1:].equal(images[:, 1:])


def test_a_model_that_knows_its_channels_is_shown_all_of_them_and_a_mask():
    images = torch.arange(1.0, 25).reshape(2, 3, 2, 2)
    padded, mask = masks.shown(images, (1, 2), "mask")
    assert padded.equal(masks.select(images, (1, 2), "zero-pad"))
    assert mask.tolist() == [[False, True, True]] * 2
    (subset,) = masks.shown(images, (1, 2), "subset")
    assert subset.equal(images[:, 1:])


@pytest.mark.parametrize(
    ("name", "options", "protocol"),
    [
        ("resnet18", {}, "zero-pad"),
        ("prism4_small", {}, "subset"),
        ("prism4_small", {"fixed_places": True}, "mask"),
    ],
)
def test_the_protocol_follows_from_what_a_model_takes(name, options, protocol):
    assert masks.protocol(models.create(name, **options)) == protocol


def test_channels_can_be_described_without_torch():
    code = "import sys, engine.channels.names as c; print(c.RGB.full, 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "RGB False\n"


@pytest.mark.parametrize("chosen", [(0, 1, 2), (0, 2), (1,), (2, 1, 0), (2, 0), ()])
def test_a_mask_stands_for_a_subset_only_where_it_gives_the_same(chosen):
    torch.manual_seed(0)
    model, images = models.create("prism4_small", num_classes=4).eval(), torch.randn(2, 3, 32, 32)
    assert evaluation.protocol_on(torch.device("cpu"), model, "subset", chosen) == "subset"
    assert evaluation.protocol_on(torch.device("cuda"), model, "zero-pad", chosen) == "zero-pad"
    way = evaluation.protocol_on(torch.device("cuda"), model, "subset", chosen)
    assert (way == "mask") == (list(chosen) == sorted(chosen))
    with torch.no_grad():
        plain, other = (model(*masks.shown(images, chosen or (0, 1, 2), how)) for how in ("subset", way))
    torch.testing.assert_close(plain, other)
