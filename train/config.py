"""The settings of a run: one definition for flags, TOML files and the saved `config.toml`."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click

from polychrome.engine.errors import UserError
from polychrome.train import toml

AUTO = "auto"


class NameList(click.ParamType):
    """Comma-separated names on the command line, a list or such a string in a TOML file."""

    name = "A,B"

    def convert(self, value, param, ctx):
        items = value.split(",") if isinstance(value, str) else list(value)
        names = tuple(str(item).strip() for item in items if str(item).strip())
        if not names:
            self.fail("names at least one item, separated by commas", param, ctx)
        return names


class FiniteRange(click.FloatRange):
    """A range of floats that has no room for NaN and infinity."""

    def convert(self, value, param, ctx):
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number", param, ctx)
        return number


class BatchSize(click.IntRange):
    """A whole number of at least 1, or "auto"."""

    name = "INTEGER|auto"

    def __init__(self) -> None:
        super().__init__(min=1)

    def convert(self, value, param, ctx):
        return value if value == AUTO else super().convert(value, param, ctx)


class Text(click.ParamType):
    """Text of at least one character."""

    name = "TEXT"

    def convert(self, value, param, ctx):
        if not value:
            self.fail("must not be empty", param, ctx)
        return str(value)


RECIPES = ("report_a", "report_b", "report_c", "report_d", "report_e", "strong")

# Settings that one entry of `models` may have to itself.
OF_AN_ENTRY = frozenset(
    (
        *("epochs", "batch_size", "image_size", "lr", "optimizer", "weight_decay", "schedule", "label_smoothing"),
        *("warmup", "accumulate", "clip_norm", "ema", "mixup", "cutmix", "consistency", "progressive"),
        *("init", "patience", "channel_sampling", "augmentations", "one_at_a_time", "crop", "crop_scale", "eval_crop"),
        *("subset_bias", "options"),
    )
)

# Settings without a flag that a file may give to a whole run.
OF_FILES = ("options", "split_seed", "sweep")

TEXT = Text()


def _setting(default: Any, text: str, kind: Any = TEXT, flag: str | None = None) -> Any:
    return field(default=default, metadata={"help": text, "type": kind, "flag": flag})


@dataclass(frozen=True)
class Settings:
    """All settings of a run. `None` means "not said": `resolve` replaces it by the task's or machine's default."""

    data: str | None = _setting(
        None,
        "Folder with train.txt, val.txt and test.txt, or with one folder per class, or tar shards such as "
        "'shards/{000..099}.tar'.  [default: a generated set]",
    )
    num_classes: int | None = _setting(None, "Number of classes, where the data does not tell.", click.IntRange(min=2))
    models: tuple[str, ...] | None = _setting(
        None,
        "Models to train, by name, with variants such as NAME+drop; all: every system of the task.  "
        "[default: the task's]",
        NameList(),
    )
    epochs: int | None = _setting(None, "Most epochs to train.  [default: the task's]", click.IntRange(min=1))
    batch_size: int | str | None = _setting(
        None,
        "Images in a training batch, over all processes; auto: the most that fit.  [default: 64; 8 for transfer]",
        BatchSize(),
    )
    accumulate: int = _setting(1, "Batches that make a step.", click.IntRange(min=1))
    image_size: int | None = _setting(
        None,
        "Height and width of the model's input in pixels.  "
        "[default: 256; cifar100: 32, transfer: 224; generated set: 64]",
        click.IntRange(min=8),
    )
    lr: float | None = _setting(
        None, "Learning rate.  [default: 0.001; 0.01 for transfer]", FiniteRange(min=0, min_open=True)
    )
    optimizer: str | None = _setting(
        None,
        "Optimiser; sgd has momentum 0.9, nesterov looks ahead, muon is for hidden weights, with adamw for the rest.  "
        "[default: adam; sgd for transfer]",
        click.Choice(["adam", "adamw", "sgd", "nesterov", "muon"]),
    )
    weight_decay: float = _setting(0.0, "Weight decay.", FiniteRange(min=0))
    schedule: str = _setting(
        "constant",
        "Course of the learning rate; plateau: a tenth when more than 3 epochs bring no better validation accuracy.",
        click.Choice(["constant", "plateau", "cosine", "linear", "onecycle"]),
    )
    warmup: float = _setting(0.0, "Epochs over which the learning rate rises to its start.", FiniteRange(min=0))
    clip_norm: float = _setting(
        0.0, "Largest norm of a step's gradients, to which larger ones are scaled; 0: any.", FiniteRange(min=0)
    )
    ema: float = _setting(
        0.0,
        "Decay of a moving average of the weights, which is then what is tested; 0: none.",
        FiniteRange(min=0, max=1, max_open=True),
    )
    mixup: float = _setting(0.0, "Mixup's alpha; 0: off.", FiniteRange(min=0))
    cutmix: float = _setting(0.0, "CutMix's alpha; 0: off. With both, each batch gets one.", FiniteRange(min=0))
    label_smoothing: float = _setting(0.0, "Label smoothing in training.", FiniteRange(min=0, max=1))
    init: str = _setting("default", "First weights: each layer's own, or He's.", click.Choice(["default", "he"]))
    weights: str | None = _setting(
        None,
        "Weights that transfer starts from: a file, or a run's folder with the same model.  [default: torchvision's]",
    )
    patience: int = _setting(
        10, "Stop after this many epochs without a better validation loss; 0 never stops.", click.IntRange(min=0)
    )
    channels: tuple[str, ...] = _setting(
        ("all",), "Channel combinations to evaluate, such as RGB,RG,B or red+nir,nir, shuffled, or all.", NameList()
    )
    channel_sampling: str = _setting(
        "auto",
        "Channels of training images. on: a random subset for each; drop: some batches lose some; shuffle: subsets in "
        "random order; cycle: a pass for each combination; auto: on for any-channel models, else off.",
        click.Choice(["auto", "on", "off", "drop", "shuffle", "cycle"]),
    )
    subset_bias: float = _setting(
        0.0,
        "With --channel-sampling on or shuffle, K channels are drawn in proportion to 1 / K**BIAS. 0: every number as "
        "often; above: few channels more often.",
        FiniteRange(min=-10, max=10),
    )
    consistency: float = _setting(
        0.0,
        "Weight of a loss that draws the logits on sampled channels to those on all; each image is then in its batch "
        "twice. 0: off.",
        FiniteRange(min=0),
    )
    augmentations: tuple[str, ...] = _setting(
        ("crop", "flip"),
        "Some of crop,flip,vflip,rotation,jitter,gamma,grayscale, or all, or none.",
        NameList(),
    )
    one_at_a_time: bool = _setting(
        False,
        "Cut the epochs into passes with one augmentation each.",
        bool,
        "--one-at-a-time/--all-at-once",
    )
    crop: str = _setting(
        "resized",
        "Random crops: of any area from --crop-scale up and any shape, or fixed squares of that area.",
        click.Choice(["resized", "fixed"]),
    )
    crop_scale: float = _setting(
        0.35,
        "Smallest share of the image's area that a random training crop keeps.",
        FiniteRange(min=0, max=1, min_open=True),
    )
    progressive: float = _setting(
        1.0,
        "Height and width of training images in the first epoch, as a share of --image-size, up to which they grow.",
        FiniteRange(min=0, min_open=True, max=1),
    )
    eval_crop: float = _setting(
        0.875,
        "Side of the centre crop at evaluation, as a share of the shorter side.",
        FiniteRange(min=0, max=1, min_open=True),
    )
    flip_test: bool = _setting(
        False,
        "Test by the mean logits of each image and its mirror image, too.",
        bool,
        "--flip-test/--no-flip-test",
    )
    holdout: int = _setting(
        0,
        "Training images to hold out, the same in every run, for a test that nothing was chosen by.",
        click.IntRange(min=0),
    )
    test_holdout: bool = _setting(
        True, "Test on the images held out, or leave them unread.", bool, "--test-holdout/--keep-holdout"
    )
    seed: int = _setting(0, "Seed of weights, order, crops and channel sampling.", click.IntRange(0, 2**32 - 1))
    seeds: int = _setting(
        1, "Repeat all with so many seeds, from --seed on, and give means and spreads.", click.IntRange(min=1)
    )
    precision: str | None = _setting(
        None,
        "Arithmetic of the model.  [default: bf16 where the device computes it natively, else fp32]",
        click.Choice(["fp32", "bf16", "fp16"]),
    )
    device: str = _setting("auto", "Device to train on.", click.Choice(["auto", "cpu", "cuda"]))
    compile: bool | None = _setting(None, "Use torch.compile.  [default: on CUDA]", bool, "--compile/--no-compile")
    compile_mode: str = _setting(
        AUTO,
        "Mode of torch.compile; auto: the faster of default and reduce-overhead (CUDA graphs), measured.",
        click.Choice([AUTO, "default", "reduce-overhead", "max-autotune"]),
    )
    sync_bn: bool = _setting(
        False, "Batch statistics over all processes rather than of each.", bool, "--sync-bn/--no-sync-bn"
    )
    cache: str = _setting(
        AUTO,
        "Keep decoded images on the device or in host memory, and on disk for the next run; auto: where they take at "
        "most half of what is free.",
        click.Choice([AUTO, "device", "host", "none"]),
    )
    cache_size: int | None = _setting(
        None,
        "Side in pixels of images kept on a device.  [default: what the centre crop needs]",
        click.IntRange(min=8),
    )
    backend: str = _setting(
        "auto", "What decodes images; auto: DALI where installed.", click.Choice(["auto", "dali", "torch", "synthetic"])
    )
    workers: int | None = _setting(
        None, "Decoding threads or processes.  [default: one per core]", click.IntRange(min=1)
    )
    strict: bool = _setting(
        False, "Stop where a file cannot be decoded; else it is left out.", bool, "--strict/--no-strict"
    )
    profile: bool = _setting(False, "Record some training steps as a trace.", bool, "--profile/--no-profile")
    tensorboard: bool = _setting(
        True,
        "Write scalars and images for TensorBoard, where that is installed.",
        bool,
        "--tensorboard/--no-tensorboard",
    )
    save_every: float = _setting(
        300.0, "Seconds between checkpoints within an epoch; 0: at its end only.", FiniteRange(min=0)
    )
    out: str = _setting("runs", "Folder for run folders.")
    name: str | None = _setting(None, "Name of the run's folder.  [default: date and time]")
    sweep: bool = field(default=False, metadata={"type": bool})  # all systems: what cannot be trained is left out
    # What divides the data where that is not the seed: of the runs of several seeds, which share one division.
    split_seed: int | None = field(default=None, metadata={"type": click.IntRange(min=0)})
    transfer: str | None = field(default=None, metadata={"type": TEXT})  # one of TRANSFERS, by a variant
    # What the models' constructors are given, in files only.
    options: dict[str, Any] = field(default_factory=dict, metadata={"type": dict})
    # Settings of single entries of `models`, in files only: the tables [model.NAME].
    model: dict[str, dict[str, Any]] = field(default_factory=dict, metadata={"type": dict})

    @classmethod
    def flags(cls) -> list[click.Option]:
        """Return a click option for every setting that has a flag."""
        return [_option(item) for item in fields(cls) if "help" in item.metadata]

    @property
    def division_seed(self) -> int:
        """The seed of the division of folders without one, and of the choice among many channel combinations."""
        return self.seed if self.split_seed is None else self.split_seed

    def with_whole_paths(self) -> Settings:
        """Return these settings with whole paths of data and weights, as a run's folder tells them, wherever it is."""
        places = {name: getattr(self, name) for name in ("data", "weights")}
        return replace(self, **{n: p and str(Path(p).expanduser().absolute()) for n, p in places.items()})

    def to_toml(self) -> str:
        """Return the settings as TOML; unset ones are left out."""
        values = {key: value for key, value in asdict(self).items() if value not in (None, {})}
        return toml.dumps(values | {"augmentations": self.augmentations or ("none",)})

    @classmethod
    def from_toml(cls, path: Path) -> Settings:
        """Read the settings of an earlier run.

        Raises:
            UserError: the file is no TOML, or has a setting that does not exist or is of the wrong kind.
        """
        return cls(**typed(read_toml(path), str(path)))


def typed(values: dict[str, Any], source: str) -> dict[str, Any]:
    """Return settings by name in the types that `Settings` has; `source` names them in an error.

    Raises:
        UserError: a value is out of range.
    """
    context = click.Context(click.Command("config", params=Settings.flags()))
    options = {option.name: option for option in Settings.flags()}
    found = {}
    for name, value in values.items():
        try:
            found[name] = options[name].type_cast_value(context, value) if name in options else value
        except click.BadParameter as error:
            raise UserError(f"{source}: {error.format_message()}") from None
    for name, table in found.get("model", {}).items():
        found["model"] = found["model"] | {name: typed(table, f"{source}: [model.{name}]")}
    return found


def read_toml(path: Path) -> dict[str, Any]:
    """Return the settings in a TOML file, keys checked.

    Raises:
        UserError: the file is missing or is no TOML, or a key is no setting.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None
    return check_names(values, str(path))


def without(table: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return a table of settings without those of these names."""
    return {name: value for name, value in table.items() if name not in names}


def check_names(values: dict[str, Any], source: str) -> dict[str, Any]:
    """Return settings with dashes in names made underscores; `source` names them in an error.

    Raises:
        UserError: a key is no setting, or its value is of the wrong kind.
    """
    known = {item.name: item for item in fields(Settings) if item.name != "transfer"}  # that is a variant's
    settings = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in known:
            close = get_close_matches(name, known, n=1)
            raise UserError(
                f"{source}: no setting is named {key!r}" + (f", did you mean {close[0]!r}?" if close else "")
            )
        if name in settings:
            raise UserError(f"{source}: {key} is set twice, with a dash and with an underscore")
        wanted = _toml_kind(known[name].metadata["type"])
        if not _is_kind(value, wanted):
            raise UserError(f"{source}: {key} must be {wanted}, got {value!r}")
        settings[name] = value
    for entry, table in settings.get("model", {}).items():
        settings["model"] = settings["model"] | {entry: _entry_settings(table, f"{source}: [model.{entry}]")}
    return settings


def _entry_settings(table: Any, source: str) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise UserError(f"{source} must be a table")
    table = check_names(table, source)
    for name in table:
        if name not in OF_AN_ENTRY:
            raise UserError(f"{source}: {name} holds for a whole run, not for one model")
    return table


def _toml_kind(kind: Any) -> str:
    """Return in words what a TOML file has to give for a setting of click type `kind`."""
    if kind is bool:
        return "true or false"
    if isinstance(kind, BatchSize):
        return 'a whole number or "auto"'
    if isinstance(kind, click.FloatRange):
        return "a number"
    if isinstance(kind, click.IntRange):
        return "a whole number"
    if kind is dict:
        return "tables"
    return "a list of names" if isinstance(kind, NameList) else "text"


def _is_kind(value: Any, wanted: str) -> bool:
    if wanted == "a list of names":
        return isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))
    if wanted == 'a whole number or "auto"':
        return type(value) is int or value == AUTO
    types = {
        "true or false": (bool,),
        "a number": (int, float),
        "a whole number": (int,),
        "text": (str,),
        "tables": (dict,),
    }
    return type(value) in types[wanted]


def _option(item) -> click.Option:
    flag = item.metadata["flag"] or "--" + item.name.replace("_", "-")
    default = ",".join(item.default) if isinstance(item.default, tuple) else item.default
    return click.Option(
        [flag, item.name],
        type=item.metadata["type"],
        default=default,
        show_default=default is not None,
        help=item.metadata["help"],
    )
