"""Tools for data: `scan` and `patches`."""

from __future__ import annotations

from pathlib import Path

from polychrome.engine import console
from polychrome.engine.data.image_set import ImageSet, lacking
from polychrome.engine.data.sets import listing, patches, repeats, scan
from polychrome.engine.data.sets.layouts import lists
from polychrome.engine.data.sets.sensors import union
from polychrome.engine.errors import UserError, spreadsheet_cell
from polychrome.engine.machine.files import csv_text, expanded, write_atomically
from polychrome.engine.report import printed
from polychrome.engine.report.tables import Table
from polychrome.train.messages import in_words


def cut_patches(scene: Path, folder: Path, size: int, seed: int) -> None:
    """Cut a labelled scene into a data folder of patches, and print how many there are and what was left out."""
    with console.waiting("dividing the scene"):
        lines = patches.cut(scene, folder, size, seed)
    for line in lines:
        console.say(line)


def scan_folder(
    folder: Path, workers: int | None, output: Path | None, channel_files: str | None, group_by: str | None
) -> None:
    """Decode every image of a data set, and list the files that cannot be used.

    The images are those that training on the folder, or pattern of tars, would use. In a folder that is no labelled set
    they are all images below it. What became of every file there is printed, and of stacks the mean and standard
    deviation of each channel. Where images differ in kind or in number of channels, a line says why they cannot be one
    data set. Groups by the regular expression `group_by` are counted, and told where given splits share some.

    Raises:
        UserError: the folder is missing or has no images, the expression finds no group, or there is no folder for the
            output.
        StorageError: the output cannot be written.
    """
    images = _listed(folder, channel_files, group_by)
    if output is not None and not output.absolute().parent.is_dir():
        raise UserError(f"--output {output} cannot be written: no folder {output.absolute().parent}")
    paths = images.paths
    with console.progress("decoding", sum(len(images.files(path)) for path in paths)) as bar:
        report = scan.scan(images.root, paths, workers, bar.reach, cache=False, parts=images.parts)
    rows = tuple((item.path, item.reason) for item in report.rejected)
    if output is not None:
        write_atomically(output, csv_text(("path", "reason"), (map(spreadsheet_cell, row) for row in rows)))
    if rows:
        printed.show(Table("Files that cannot be used", ("path", "reason"), rows))
    if len(images.class_names) > 1:
        console.say(in_words(images.class_names))
    for note in (*images.notes, *scan.remarks(report, by_dali=True), *repeats.notes(images, report.digests, group_by)):
        console.say(note)
    console.say(str(images.account.without(sum(len(images.files(path)) for path, _ in rows))))
    if report.sizes:
        show_channels(images, report)


def _listed(folder: Path, channel_files: str | None, group_by: str | None) -> ImageSet:
    """Return the set that training would read, else all images below the folder, and say which of the two."""
    try:
        images = listing.read(folder, channel_files=channel_files, group_by=group_by)
    except UserError as error:
        if channel_files or group_by or lists.has_lists(expanded(folder)):
            raise
        images = listing.every_image(folder)
        console.say(f"not a labelled set, every image below the folder is decoded: {error}")
    return images


def show_channels(images: ImageSet, report: scan.ScanReport) -> None:
    """Print the statistics of the channels of stacks, or why the images cannot be one data set."""
    try:
        images = scan.apply(images, report)
    except UserError as error:
        console.say(f"no single data set: {error}")
        return
    for line in (*lacking(images), *union.told_apart(images)):
        console.say(line)
    if images.stacks:
        for line in (scan.shape(images), *union.notes(images)):
            console.say(line)
        columns = images.channels.names, images.channels.mean, images.channels.std
        rows = tuple((name, f"{mean:.6g}", f"{std:.6g}") for name, mean, std in zip(*columns, strict=True))
        unit = "0..1" if images.dtype == "uint8" else "as stored"
        printed.show(Table(f"Channels, values {unit}", ("channel", "mean", "deviation"), rows))
