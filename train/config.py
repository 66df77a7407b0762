"""The settings of a run: one definition for flags, TOML files and the saved `config.toml`."""

from __future__ import annotations

import math
import tomllib
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click

from engine.errors import UserError


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


class Text(click.ParamType):
    """Text of at least one character."""

    name = "TEXT"

    def convert(self, value, param, ctx):
        if not value:
            self.fail("must not be empty", param, ctx)
        return str(value)


@dataclass(frozen=True)
class TaskDefaults:
    """What a task trains, and for how long, when the user does not say."""

    models: tuple[str, ...]
    epochs: int
    generated_epochs: int
    image_size: int = 256
    generated_image_size: int = 64


# Report A's protocol on real data; the generated set is sized for a first run of minutes on two cores.
TASKS = {
    "task1": TaskDefaults(models=("simple_cnn", "pool_attention_cnn"), epochs=25, generated_epochs=8),
    "task2": TaskDefaults(models=("resnet34", "attention_cnn"), epochs=50, generated_epochs=8),
}


TEXT = Text()


def _setting(default: Any, text: str, kind: Any = TEXT, flag: str | None = None) -> Any:
    return field(default=default, metadata={"help": text, "type": kind, "flag": flag})


@dataclass(frozen=True)
class Settings:
    """All settings of a run. `None` means "not said": `resolve` replaces it by the task's or machine's default."""

    data: str | None = _setting(
        None, "Folder with train.txt, val.txt and test.txt, or with one folder per class.  [default: a generated set]"
    )
    num_classes: int | None = _setting(None, "Number of classes, where the data does not tell.", click.IntRange(min=2))
    models: tuple[str, ...] | None = _setting(None, "Models to train, by name.  [default: the task's]", NameList())
    epochs: int | None = _setting(None, "Most epochs to train.  [default: the task's]", click.IntRange(min=1))
    batch_size: int = _setting(64, "Images in a training batch.", click.IntRange(min=1))
    image_size: int | None = _setting(
        None,
        "Height and width of the model's input in pixels.  [default: 256; 64 on the generated set]",
        click.IntRange(min=8),
    )
    lr: float = _setting(1e-3, "Learning rate of Adam.", FiniteRange(min=0, min_open=True))
    patience: int = _setting(
        10, "Stop after this many epochs without a better validation loss; 0 never stops.", click.IntRange(min=0)
    )
    channels: tuple[str, ...] = _setting(
        ("all",), "Channel combinations to evaluate, such as RGB,RG,B, or all.", NameList()
    )
    channel_sampling: str = _setting(
        "auto", "Train on random channel subsets; auto: on for any-channel models.", click.Choice(["auto", "on", "off"])
    )
    crop_scale: float = _setting(
        0.35,
        "Smallest share of the image's area that a random training crop keeps.",
        FiniteRange(min=0, max=1, min_open=True),
    )
    eval_crop: float = _setting(
        0.875,
        "Side of the centre crop at evaluation, as a share of the shorter side.",
        FiniteRange(min=0, max=1, min_open=True),
    )
    seed: int = _setting(0, "Seed of weights, order, crops and channel sampling.", click.IntRange(0, 2**32 - 1))
    precision: str | None = _setting(
        None,
        "Arithmetic of the model.  [default: bf16 where the device computes it natively, else fp32]",
        click.Choice(["fp32", "bf16", "fp16"]),
    )
    device: str = _setting("auto", "Device to train on.", click.Choice(["auto", "cpu", "cuda"]))
    compile: bool | None = _setting(None, "Use torch.compile.  [default: on CUDA]", bool, "--compile/--no-compile")
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
    out: str = _setting("runs", "Folder for run folders.")
    name: str | None = _setting(None, "Name of the run's folder.  [default: date and time]")

    @classmethod
    def flags(cls) -> list[click.Option]:
        """Return a click option for every setting."""
        return [_option(item) for item in fields(cls)]

    def resolve(self, task: str) -> Settings:
        """Return the effective settings: every `None` replaced, device and precision checked against the machine."""
        from engine import hardware
        from engine.data.cache import cpus

        defaults = TASKS[task]
        generated = self.data is None
        device = hardware.device(self.device)
        return replace(
            self,
            models=self.models or defaults.models,
            epochs=self.epochs or (defaults.generated_epochs if generated else defaults.epochs),
            image_size=self.image_size or (defaults.generated_image_size if generated else defaults.image_size),
            device=device.type,
            precision=self.precision or hardware.native_precision(device),
            compile=device.type == "cuda" if self.compile is None else self.compile,
            workers=self.workers or cpus(),
        )

    def to_toml(self) -> str:
        """Return the settings as TOML; unset ones are left out."""
        import tomli_w

        return tomli_w.dumps({key: value for key, value in asdict(self).items() if value is not None})

    @classmethod
    def from_toml(cls, path: Path) -> Settings:
        """Read the settings of an earlier run.

        Raises:
            UserError: the file is no TOML, or has a setting that does not exist or is of the wrong kind.
        """
        values = read_toml(path)
        context = click.Context(click.Command("config", params=cls.flags()))
        try:
            return cls(
                **{
                    option.name: option.type_cast_value(context, values[option.name])
                    for option in cls.flags()
                    if option.name in values
                }
            )
        except click.BadParameter as error:
            raise UserError(f"{path}: {error.format_message()}") from None


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
    known = {item.name: item for item in fields(Settings)}
    settings = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in known:
            close = get_close_matches(name, known, n=1)
            raise UserError(f"{path}: no setting is named {key!r}" + (f", did you mean {close[0]!r}?" if close else ""))
        if name in settings:
            raise UserError(f"{path}: {key} is set twice, with a dash and with an underscore")
        wanted = _toml_kind(known[name].metadata["type"])
        if not _is_kind(value, wanted):
            raise UserError(f"{path}: {key} must be {wanted}, got {value!r}")
        settings[name] = value
    return settings


def _toml_kind(kind: Any) -> str:
    """Return in words what a TOML file has to give for a setting of click type `kind`."""
    if kind is bool:
        return "true or false"
    if isinstance(kind, click.FloatRange):
        return "a number"
    if isinstance(kind, click.IntRange):
        return "a whole number"
    return "a list of names" if isinstance(kind, NameList) else "text"


def _is_kind(value: Any, wanted: str) -> bool:
    if wanted == "a list of names":
        return isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))
    types = {"true or false": (bool,), "a number": (int, float), "a whole number": (int,), "text": (str,)}
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
