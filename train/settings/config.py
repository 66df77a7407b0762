"""The settings of a run: one definition for flags, TOML files and the saved `config.toml`."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import click

from polychrome.engine.errors import UserError, one_line, shown
from polychrome.engine.machine.files import expanded
from polychrome.engine.training.hyperparameters import AUTO, Hyperparameters, Number, own_setting, setting
from polychrome.train.settings import toml


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
    """A range of finite floats: NaN and infinity are refused, and all but 0 below `smallest`."""

    def __init__(self, smallest: float | None = None, **bounds: Any) -> None:
        super().__init__(**bounds)
        self.smallest = smallest

    def convert(self, value, param, ctx):
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number", param, ctx)
        if self.smallest is not None and 0 < number < self.smallest:
            self.fail(f"{number} is too small: wanted 0 or at least {self.smallest:g}", param, ctx)
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


class Pattern(Text):
    """A regular expression."""

    name = "REGEX"

    def convert(self, value, param, ctx):
        try:
            re.compile(value)
        except re.error as error:
            self.fail(f"{value!r} is no regular expression: {error}", param, ctx)
        return super().convert(value, param, ctx)


RECIPES = ("report_a", "report_b", "report_c", "report_d", "report_e", "strong")

# Settings without a flag that a file may give to a whole run.
OF_FILES = ("options", "split_seed", "sweep")

MOST_WORKERS = 1024

TEXT = Text()


@dataclass(frozen=True)
class Subject:
    """The data and the models of a run."""

    data: str | None = setting(
        None,
        "Folder with train.txt, val.txt and test.txt, or a table of labels, or one folder per class, or tar shards "
        "such as 'shards/{000..099}.tar'.  [default: a generated set]",
    )
    group_by: str | None = setting(
        None,
        "Regular expression: images in whose paths it finds the same stay together where the data is divided, such as "
        "'(patient[0-9]+)'.",
        Pattern(),
    )
    channel_files: str | None = setting(
        None,
        "Regular expression, where each channel of an image has a file: it finds the channel in the path, such as "
        "'_w([0-9]+)' in site_w1.png.",
        Pattern(),
    )
    num_classes: int | None = setting(
        None, "Number of classes, where the data does not give it.", Number(int, least=2, most=10**6)
    )
    models: tuple[str, ...] | None = setting(
        None,
        "Models to train, by name, with variants such as NAME+drop; all: every system of the task.  "
        "[default: the task's]",
        NameList(),
    )
    batch_size: int | str | None = own_setting(
        None,
        "Images in a training batch, over all processes; auto: the most that fit, up to 1024 in each and a 16th of the "
        "training images.  [default: 64; 8 for transfer]",
        BatchSize(),
    )
    image_size: int | None = own_setting(
        None,
        "Height and width of the model's input in pixels.  "
        "[default: 256; cifar100: 32, transfer: 224; generated set: 64]",
        Number(int, least=8),
    )


@dataclass(frozen=True)
class Settings(Hyperparameters, Subject):
    """All settings of a run. `None` means "not said": `resolve` replaces it by the task's or machine's default."""

    init: str = own_setting("default", "First weights: each layer's own, or He's.", ("default", "he"))
    weights: str | None = setting(
        None,
        "Weights that transfer starts from: a file, or a run's folder with the same model.  [default: torchvision's]",
    )
    channels: tuple[str, ...] = setting(
        ("all",), "Channel combinations to evaluate, such as RGB,RG,B or red+nir,nir, shuffled, or all.", NameList()
    )
    augmentations: tuple[str, ...] = own_setting(
        ("crop", "flip"),
        "Some of crop,flip,vflip,rotation,jitter,gamma,grayscale, or all, or none.",
        NameList(),
    )
    one_at_a_time: bool = own_setting(
        False,
        "Cut the epochs into passes with one augmentation each.",
        bool,
        "--one-at-a-time/--all-at-once",
    )
    crop: str = own_setting(
        "resized",
        "Random crops: of any area from --crop-scale up and any shape, or fixed squares of that area.",
        ("resized", "fixed"),
    )
    crop_scale: float = own_setting(
        0.35,
        "Smallest share of the image's area that a random training crop keeps.",
        Number(float, above=0, most=1),
    )
    progressive: float = own_setting(
        1.0,
        "Height and width of training images in the first epoch, as a share of --image-size, up to which they grow.",
        Number(float, above=0, most=1),
    )
    eval_crop: float = own_setting(
        0.875,
        "Side of the centre crop at evaluation, as a share of the shorter side.",
        Number(float, above=0, most=1),
    )
    flip_test: bool = setting(
        False,
        "Test by the mean logits of each image and its mirror image, too.",
        bool,
        "--flip-test/--no-flip-test",
    )
    holdout: int = setting(
        0,
        "Training images to hold out, the same in every run, for a test after all choices are made.",
        Number(int, least=0),
    )
    test_holdout: bool = setting(
        True, "Test on the images held out, or leave them unread.", bool, "--test-holdout/--keep-holdout"
    )
    seeds: int = setting(
        1,
        "Number of seeds, from --seed on; the results are means and standard deviations over them.",
        Number(int, least=1, most=1000),
    )
    device: str = setting("auto", "Device to train on.", ("auto", "cpu", "cuda"))
    cache: str = setting(
        AUTO,
        "Keep decoded images on the device or in host memory, and on disk for the next run; auto: where they take at "
        "most half of the free memory.",
        (AUTO, "device", "host", "none"),
    )
    cache_size: int | None = setting(
        None,
        "Side in pixels of images kept on a device.  [default: what the crops need]",
        Number(int, least=8),
    )
    backend: str = setting(
        "auto", "Decoder of images; auto: DALI where installed.", ("auto", "dali", "torch", "synthetic")
    )
    workers: int | None = setting(
        None, "Decoding threads or processes.  [default: one per core]", Number(int, least=1, most=MOST_WORKERS)
    )
    strict: bool = setting(
        False, "Stop at a file that cannot be decoded; by default the file is left out.", bool, "--strict/--no-strict"
    )
    changed_data: bool = setting(
        False,
        "Go on with a run although files of its data have changed, which its report then says.",
        bool,
        "--changed-data/--no-changed-data",
    )
    profile: bool = setting(False, "Record some training steps as a trace.", bool, "--profile/--no-profile")
    tensorboard: bool = setting(
        True,
        "Write scalars and images for TensorBoard, where TensorBoard is installed.",
        bool,
        "--tensorboard/--no-tensorboard",
    )
    plots: bool = setting(True, "Draw the pictures of the report.", bool, "--plots/--no-plots")
    logger: tuple[str, ...] | None = setting(
        None, "Where to log as well, beside TensorBoard: mlflow, wandb, both, or none.  [default: none]", NameList()
    )
    submission: bool = setting(
        False,
        "Also write submission-MODEL.csv, numbers of the test images and labels (ID, Category), as the CIFAR course "
        "asks.",
        bool,
        "--submission/--no-submission",
    )
    out: str = setting("runs", "Folder for run folders.")
    name: str | None = setting(None, "Name of the run's folder.  [default: date and time]")
    sweep: bool = field(default=False, metadata={"type": bool})  # all systems; an untrainable one is left out
    # The seed that divides the data where it differs from `seed`: runs of several seeds share one division.
    split_seed: int | None = field(default=None, metadata={"type": Number(int, least=0)})
    transfer: str | None = field(default=None, metadata={"type": str})  # one of TRANSFERS, by a variant
    # What the models' constructors are given, in files only.
    options: dict[str, Any] = field(default_factory=dict, metadata={"type": dict, "own": True})
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
        """Return these settings with absolute paths of data and weights, as a run's `config.toml` has them.

        Raises:
            UserError: a path begins with `~`, and no home folder is known, or a path is no text, which TOML has to be.
        """
        places = {name: getattr(self, name) for name in ("data", "weights")}
        whole = replace(self, **{n: p and str(expanded(p).absolute()) for n, p in places.items()})
        for name in ("data", "weights", "out", "name"):
            value = getattr(whole, name) or ""
            if not value.isprintable() and any(0xD800 <= ord(each) <= 0xDFFF for each in value):
                raise UserError(f"--{name} {shown(value)}: its bytes are no UTF-8, and config.toml is text: rename it")
        return whole

    def to_toml(self) -> str:
        """Return the settings as TOML; unset ones are left out."""
        values = {key: value for key, value in asdict(self).items() if value not in (None, {})}
        return toml.dumps(values | {"augmentations": self.augmentations or ("none",)})

    @classmethod
    def from_toml(cls, path: Path) -> Settings:
        """Read settings from a file.

        Raises:
            UserError: the file is not valid TOML, or has an unknown setting or one of the wrong kind.
        """
        return cls.from_text(read_text(path), str(path))

    @classmethod
    def of_run(cls, path: Path) -> Settings:
        """Read the settings of an earlier run from its `config.toml`.

        Raises:
            UserError: as `from_toml`, or the file lacks what every run's file has.
        """
        found = cls.from_toml(path)
        if None in (found.image_size, found.precision, found.workers):
            raise UserError(f"{path} is damaged: it lacks image_size, precision or workers")
        return found

    @classmethod
    def from_text(cls, text: str, source: str) -> Settings:
        """Return the settings in TOML text; error messages name the text `source`.

        Raises:
            UserError: as `from_toml`.
        """
        return cls(**parse_toml(text, source))


# Settings that an entry of `models` may have a value of its own for.
OF_AN_ENTRY = frozenset(item.name for item in fields(Settings) if item.metadata.get("own"))


# Settings of a whole run that its networks are trained and tested with.
SHARED = ("seed", "precision", "device", "holdout", "flip_test")


def described(settings: Settings, more: Iterable[str] = ()) -> dict[str, str | int | float | bool]:
    """Return what an entry is trained with, by name, as loggers show it: numbers, text, true or false.

    `more` names further settings to return.
    """
    values = {name: getattr(settings, name) for name in (*sorted(OF_AN_ENTRY - {"options"}), *SHARED, *more)}
    values["data"] = Path(settings.data).name if settings.data else "generated"
    values |= {f"options.{name}": value for name, value in settings.options.items()}
    lists = {name: ",".join(map(str, each)) or "none" for name, each in values.items() if isinstance(each, tuple)}
    plain = str, int, float, bool
    return {name: each if isinstance(each, plain) else str(each) for name, each in (values | lists).items()}


def typed(values: dict[str, Any], source: str) -> dict[str, Any]:
    """Return settings by name, converted to the types of `Settings`; an error calls them `source`.

    Raises:
        UserError: a value is out of range.
    """
    context = click.Context(click.Command("config", params=Settings.flags()))
    options = {option.name: option for option in Settings.flags()}
    kinds = {item.name: item.metadata["type"] for item in fields(Settings)}
    found = {}
    for name, value in values.items():
        try:
            if name in options:
                found[name] = options[name].type_cast_value(context, value)
            elif isinstance(kinds[name], Number):
                found[name] = _click_type(kinds[name]).convert(value, click.Option([f"--{name}"]), context)
            else:
                found[name] = value
        except click.BadParameter as error:
            raise UserError(f"{source}: {error.format_message()}") from None
    for name, table in found.get("model", {}).items():
        found["model"] = found["model"] | {name: typed(table, f"{source}: [model.{name}]")}
    return found


def read_toml(path: Path) -> dict[str, Any]:
    """Return the settings in a TOML file.

    Raises:
        UserError: the file is missing or is not valid TOML, a key is not a setting, or a value is not its kind.
    """
    return parse_toml(read_text(path), str(path))


def read_text(path: Path | Traversable) -> str:
    """Return the text of a TOML file. Raises UserError where the file cannot be read or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None


def parse_toml(text: str, source: str) -> dict[str, Any]:
    """Return the settings in TOML text; an error calls it `source`.

    Raises:
        UserError: the text is not valid TOML, a key is not a setting, or a value is not its kind.
    """
    return checked(toml_of(text, source), source)


def toml_of(text: str, source: str) -> dict[str, Any]:
    """Return the values in TOML text. Raises UserError, which names the text `source`, where it is not valid TOML."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number of too many digits is a ValueError of its own
        raise UserError(f"{source} is not valid TOML: {one_line(error)}") from None


def checked(values: dict[str, Any], source: str) -> dict[str, Any]:
    """Return settings from TOML as `Settings` takes them.

    Raises:
        UserError: a key is not a setting, or a value is not its kind.
    """
    return typed(check_names(values, source), source)


def without(table: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return a table of settings without the settings called `names`."""
    return {name: value for name, value in table.items() if name not in names}


def merged(table: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table of settings with others that win over it; of `options` those of the same name."""
    both = {"options": table["options"] | changes["options"]} if "options" in table and "options" in changes else {}
    return {**table, **changes, **both}


def check_names(values: dict[str, Any], source: str) -> dict[str, Any]:
    """Return settings with dashes in their names replaced by underscores; an error calls them `source`.

    Raises:
        UserError: a key is not a setting, or its value is of the wrong kind.
    """
    known = {item.name: item for item in fields(Settings) if item.name != "transfer"}  # set by a variant
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
        wanted, fits = _toml_kind(_click_type(known[name].metadata["type"]))
        if not fits(value):
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


def _toml_kind(kind: Any) -> tuple[str, Callable[[Any], bool]]:
    """Return in words the value that a TOML file has to give for a setting of click type `kind`, and its check."""

    def of(*types: type) -> Callable[[Any], bool]:
        return lambda value: type(value) in types

    if kind is bool:
        return "true or false", of(bool)
    if isinstance(kind, BatchSize):
        return 'a whole number or "auto"', lambda value: type(value) is int or value == AUTO
    if isinstance(kind, click.FloatRange):
        return "a number", of(int, float)
    if isinstance(kind, click.IntRange):
        return "a whole number", of(int)
    if kind is dict:
        return "tables", of(dict)
    if isinstance(kind, NameList):
        return "a list of names", lambda value: all(isinstance(item, str) for item in _listed(value))
    return "text", of(str)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _click_type(kind: Any) -> Any:
    """Return the command line's type of a setting's kind; see `engine.training.hyperparameters.setting`."""
    if isinstance(kind, tuple) and not isinstance(kind, Number):
        return click.Choice(kind)
    if not isinstance(kind, Number):
        return TEXT if kind is str else kind
    if kind.kind is int:
        return click.IntRange(kind.least, kind.most)
    low, high = (kind.least, kind.above), (kind.most, kind.below)
    bounds = {"min": next((each for each in low if each is not None), None), "min_open": kind.above is not None}
    bounds |= {"max": next((each for each in high if each is not None), None), "max_open": kind.below is not None}
    return FiniteRange(kind.smallest, **bounds)


def _option(item) -> click.Option:
    flag = item.metadata["flag"] or "--" + item.name.replace("_", "-")
    default = ",".join(item.default) if isinstance(item.default, tuple) else item.default
    return click.Option(
        [flag, item.name],
        type=_click_type(item.metadata["type"]),
        default=default,
        show_default=default is not None,
        help=item.metadata["help"],
    )
