"""Commands and flags. Commands import torch and the like when they run, so `--help` is quick."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

import polychrome
from polychrome.train.settings import variants
from polychrome.train.settings.config import (
    AUTO,
    MOST_WORKERS,
    OF_FILES,
    RECIPES,
    TEXT,
    NameList,
    Pattern,
    Settings,
    merged,
    read_toml,
    without,
)
from polychrome.train.settings.variants import SWEEP, TASKS

if TYPE_CHECKING:
    from polychrome.engine.run_folder import RunFolder


class Commands(click.Group):
    """A group that names the closest command when the user's is unknown."""

    def resolve_command(self, ctx, args):
        name = args[0]
        if self.get_command(ctx, name) is None:
            known = self.list_commands(ctx)
            close = get_close_matches(name, known, n=1)
            hint = f", did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"
            raise click.UsageError(f"no task or command is named {name!r}{hint}")
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx):
        return list(self.commands)

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except click.NoSuchOption as error:
            for word in ctx.obj or ():
                if word.startswith(error.option_name) and not word.startswith("--") and Path(word).exists():
                    error.message += f" For the file of that name: ./{word}"
                    break
            raise


# The settings by subject, in the order in which --help shows them; the last group also has --help.
GROUPS = {
    "Data": ("data", "group_by", "channel_files", "num_classes", "holdout", "strict", "changed_data", "image_size"),
    "Models": ("models", "init", "weights"),
    "Channels": ("channels", "channel_sampling", "subset_bias", "subset_runs", "consistency"),
    "Training": ("epochs", "batch_size", "accumulate", "lr", "optimizer", "weight_decay", "schedule", "warmup")
    + ("clip_norm", "ema", "keep", "patience", "label_smoothing", "class_weights", "seed", "seeds"),
    "Augmentation": ("augmentations", "one_at_a_time", "crop", "crop_scale", "progressive", "cutout", "gain", "mixup")
    + ("cutmix", "mix_share"),
    "Tests": ("eval_crop", "flip_test", "test_holdout"),
    "Speed": ("device", "precision", "compile", "compile_mode", "cache", "cache_size", "backend", "workers", "sync_bn"),
    "Output": ("out", "name", "save_every", "submission", "plots", "profile", "tensorboard", "logger"),
    "Settings of a run": ("config", "recipe", "resume", "print_config"),
}


class TaskCommand(click.Command):
    """A task, which takes no arguments but options: a folder given without one is told to be `--data`."""

    def format_options(self, ctx, formatter):
        options = {option.name: option.get_help_record(ctx) for option in self.get_params(ctx)}
        groups = {group: [options.pop(name) for name in names] for group, names in GROUPS.items()}
        next(reversed(groups.values())).extend(options.values())
        for group, records in groups.items():
            with formatter.section(group):
                formatter.write_dl(records)

    def parse_args(self, ctx, args):
        rest = super().parse_args(ctx, args)
        if ctx.args:
            given = ctx.args[0]
            hint = f": for the images in that folder --data {given}" if Path(given).is_dir() else "; see --help"
            raise click.UsageError(f"{self.name} takes options alone, not {given!r}{hint}")
        return rest


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(polychrome.__version__, prog_name="polychrome")
def cli():
    """Train, evaluate and use image models whose input channels vary."""


def _load_config(context: click.Context, _option: click.Option, path: Path | None) -> None:
    if path is not None:
        _add_defaults(context, "config", read_toml(path))


def _load_recipe(context: click.Context, _option: click.Option, name: str | None) -> None:
    if name is not None:
        from polychrome.train.recipes import load

        _add_defaults(context, "recipe", load(name, context.info_name))


def _add_defaults(context: click.Context, source: str, values: dict) -> None:
    """Make the settings of a file the defaults of their flags; a --config wins over a --recipe."""
    context.meta[source] = values
    recipe, config = context.meta.get("recipe", {}), context.meta.get("config", {})
    context.default_map = merged(recipe, config)
    # A setting of a whole run in --config also wins over the same setting of a single model in --recipe.
    tables = {}
    for entry, table in recipe.get("model", {}).items():
        options = without(table.get("options", {}), config.get("options", {}))
        tables[entry] = without(table, config) | ({"options": options} if options else {})
    for entry, table in config.get("model", {}).items():
        tables[entry] = merged(tables.get(entry, {}), table)
    context.meta["tables"] = tables


def said(context: click.Context) -> set[str]:
    """Return the names of the settings given as flags on the command line."""
    return {name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}


def _settings(context: click.Context, task: str, resume: str | None, values: dict) -> tuple[Settings, RunFolder | None]:
    """Return the effective settings of a run, and the folder of the run that it resumes, if any."""
    from polychrome.train import resume as resuming

    flags = said(context)
    if values["models"] == SWEEP and (chosen := context.meta.get("recipe", {}).get("models")):
        values |= {"models": chosen, "sweep": True}
    values["model"] = {entry: without(table, flags) for entry, table in values["model"].items()}
    like = {}
    if resume == AUTO:
        asked = variants.resolve(Settings(**values), task).with_whole_paths()
        like = {name: getattr(asked, name) for name in resuming.LIKE if name in flags}
    folder = resuming.find(task, Path(values["out"]), resume, like)
    if folder is not None:
        if context.default_map and resume is not None:
            of_files = (context.default_map.keys() | {"model"}) - flags
            resuming.check_same(folder, variants.resolve(Settings(**values), task), of_files, flags, task)
        values = resuming.merge(folder, {name: values[name] for name in flags & values.keys()})
    return variants.resolve(Settings(**values), task), folder


def _with_tables(context: click.Context, values: dict) -> dict:
    """Return the values of a command's flags with the settings that files alone have."""
    given = context.default_map or {}
    own = {name: given[name] for name in OF_FILES if name in given}
    return values | {"model": context.meta.get("tables", {})} | own


def settings_of(task: str, arguments: Sequence[str]) -> Settings:
    """Return the settings of a new run by the arguments of a task's command, such as `["--recipe", "strong"]`.

    Raises:
        UserError, click.ClickException: an argument cannot be used.
    """
    command = cli.get_command(click.Context(cli), task)
    with command.make_context(task, list(arguments)) as context:
        flags = {name: value for name, value in context.params.items() if name not in ("config", "recipe")}
        del flags["print_config"], flags["resume"]
        return _settings(context, task, None, _with_tables(context, flags))[0]


def _task_command(task: str, summary: str, short: str) -> click.Command:
    @click.pass_context
    def run(context: click.Context, print_config: bool, config: None, recipe: None, resume: str | None, **values):
        values = _with_tables(context, values)
        if print_config:
            click.echo(_settings(context, task, resume, values)[0].to_toml(), nl=False)
            return
        from polychrome.engine.machine import distributed
        from polychrome.engine.machine.files import release
        from polychrome.train.commands.task import run as run_task

        with distributed.joined():
            settings, folder = _settings(context, task, resume, values)
            if resume == AUTO and distributed.is_main():
                found = f"going on with {folder.root}" if folder else "no unfinished run to go on with; starting one"
                click.echo(found)
            try:
                run_task(task, settings, folder)
            finally:
                release()

    options = [
        click.Option(
            ["--config"],
            type=click.Path(path_type=Path),
            callback=_load_config,
            is_eager=True,
            help="TOML file of settings; flags win over it.",
        ),
        click.Option(
            ["--recipe"],
            type=TEXT,
            callback=_load_recipe,
            is_eager=True,
            help=f"Settings that belong together: {', '.join(RECIPES)}, or a TOML file like theirs; --config and flags "
            "win over it.",
        ),
        click.Option(
            ["--resume"],
            type=TEXT,
            help="Go on with a run: its folder, or auto for the newest unfinished one. The run's "
            "settings hold; flags win over them.",
        ),
        click.Option(["--print-config"], is_flag=True, help="Print the effective settings as TOML and stop."),
    ]
    return TaskCommand(
        task,
        params=Settings.flags() + options,
        callback=run,
        help=summary,
        short_help=short,
        context_settings={"allow_extra_args": True},
    )


cli.add_command(
    _task_command(
        "task1",
        "Variable input channels: a fixed-channel and an any-channel model, tested on every channel combination.",
        "Train models for images whose channels vary.",
    )
)
cli.add_command(
    _task_command(
        "task2",
        "Shallow against deep: a four-layer network and ResNet34, trained alike.",
        "Train a shallow network and ResNet34 alike.",
    )
)
cli.add_command(
    _task_command(
        "cifar100",
        "CIFAR-100: the official archive in --data, downloaded, or images as for the other tasks.",
        "Train on CIFAR-100, or on other images of 32 px.",
    )
)
cli.add_command(
    _task_command(
        "transfer",
        "Start from trained weights: a frozen backbone, the whole network, and from scratch.",
        "Train from weights that were trained before.",
    )
)
assert list(cli.commands) == list(TASKS)


device_option = click.option(
    "--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]), help="Device to run on."
)

model_option = click.option(
    "--model",
    help="Which of the run's models, or NAME+any_channels: NAME, shown the nearest channels where it was shown zeros.  "
    "[default: the most accurate on validation]",
)


@cli.command(short_help="Test a run's models again, also on other data.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--model", help="Which of the run's models, as for predict.  [default: all]")
@click.option("--channels", default="all", show_default=True, type=NameList(), help="As for a task.")
@click.option(
    "--split",
    type=click.Choice(["train", "val", "holdout", "test"]),
    help="Split to evaluate on.  [default: the splits of the run's table.csv]",
)
@click.option(
    "--data",
    help="Folder of the data, where it has moved since the run; or labelled images without splits, to test on all.",
)
@click.option(
    "--backend", type=click.Choice(["auto", "dali", "torch"]), help="Decoder of the images.  [default: the run's]"
)
@device_option
def evaluate(run: Path, **options) -> None:
    """Evaluate the best checkpoints of a RUN folder, of every seed, on channel combinations.

    Writes RUN/evaluation.json and RUN/evaluation.csv, and every prediction into RUN/evaluation/MODEL.csv; says how many
    figures of the run's own images agree with RUN/table.csv to the digit.
    """
    from polychrome.train.commands.evaluate import evaluate_run

    evaluate_run(run, **options)


@cli.command(short_help="Classify images by a trained model.")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@model_option
@click.option("--channels", help="Channels of the image to use, such as RG.  [default: all]")
@click.option("--top", default=3, show_default=True, type=click.IntRange(min=1), help="Classes of the table.")
@click.option(
    "--output", type=click.Path(path_type=Path), help="File to write, .csv, .json or .parquet.  [default: print]"
)
@device_option
def predict(run: Path, **options) -> None:
    """Classify IMAGES, files, folders, tars or patterns, by a model of a RUN folder, a best.pt or a pretrained network.

    A terminal gets a table; a pipe, or a file by --output, has path, class and the probability of every class. A file
    that cannot be read is a row with the reason.
    """
    from polychrome.train.commands.predict import predict_images

    predict_images(run, **options)


@cli.command(short_help="Write a trained model as a file for use elsewhere.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--format", "file_format", required=True, type=click.Choice(["pt2", "onnx", "safetensors"]))
@model_option
@click.option(
    "--channels", help="Which network, where a model has a network for each combination.  [default: all channels']"
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="File to write.  [default: RUN/export/MODEL.FORMAT; without a RUN folder MODEL.FORMAT]",
)
@click.option("--data", help="Folder of the data, where it has moved since the run.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Device that a pt2 is compiled for.  [default: cpu]")
@click.option(
    "--preprocessing",
    is_flag=True,
    help="Put crop, resize, standardisation and softmax into the ONNX file, which then takes whole images.",
)
def export(run: Path, **options) -> None:
    """Write a model as a file for use elsewhere, checked on 16 images of the test split.

    RUN is the folder of a run, a best.pt, or the name of a pretrained network.
    """
    from polychrome.train.commands.export import export_run

    export_run(run, **options)


@cli.command(
    short_help="Compare every op on a GPU with its definition.",
    context_settings={"ignore_unknown_options": True},
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def check(context: click.Context, arguments: tuple[str, ...]) -> int:
    """Compare every op on a GPU with its definition in float64, in a minute."""
    from polychrome.kernels.check import main

    return main(list(arguments), context.command_path)


@cli.command(
    short_help="Time the ops beside plain PyTorch, in a minute.",
    context_settings={"ignore_unknown_options": True},
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def bench(context: click.Context, arguments: tuple[str, ...]) -> int:
    """Time the ops beside plain PyTorch, in a minute."""
    from polychrome.kernels.quick import main

    return main(list(arguments), context.command_path)


@cli.command(short_help="Say what this machine lacks, and what to do.")
def doctor() -> int:
    """Say what this machine lacks for ops, training and export, and what to do."""
    from polychrome.doctor import main

    return main([])


@cli.command(short_help="Cut a labelled scene into a data folder of patches.")
@click.argument("scene", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--size", default=9, show_default=True, type=click.IntRange(min=1), help="Side of a patch in pixels.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Seed of the split.")
def patches(scene: Path, folder: Path, **options) -> None:
    """Cut a labelled SCENE (.npz with cube and labels) into a data FOLDER of patches, split by place."""
    from polychrome.train.commands.tools import cut_patches

    cut_patches(scene, folder, **options)


@cli.command(short_help="Find the images that cannot be read.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--workers", type=click.IntRange(1, MOST_WORKERS), help="Processes.  [default: one per core]")
@click.option("--output", type=click.Path(path_type=Path), help="Also write the list as CSV (path, reason).")
@click.option(
    "--channel-files", type=Pattern(), help="As for a task: finds the channel in a path, where each channel has a file."
)
@click.option("--group-by", type=Pattern(), help="As for a task: images in whose paths it finds the same are a group.")
def scan(folder: Path, **options) -> None:
    """Decode every image under FOLDER and list the files that cannot be read, with the reason."""
    from polychrome.train.commands.tools import scan_folder

    scan_folder(folder, **options)
