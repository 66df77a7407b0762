"""Parquet files with a column of encoded images and a column of labels, as Hugging Face's datasets have them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from polychrome.engine import console
from polychrome.engine.data.files import kinds, shards
from polychrome.engine.data.sets.layouts.labelled import splits_told
from polychrome.engine.data.sets.layouts.tables import LABELS
from polychrome.engine.errors import UserError, one_line
from polychrome.engine.machine.files import Stamps, cache_folder, new_folder

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

SUFFIX = ".parquet"
RULES = 3  # raise this number when the tars of a file may change
IMAGES = ("image", "img", "picture", "pixel_values")
BYTES = "bytes"  # of an image's struct, beside its path
AT_ONCE = 64  # rows
NO_LABEL = -1  # of a split without labels
EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "TIFF": "tif", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "array": "npy"}


class Columns(NamedTuple):
    """The columns of images and of labels, the names of the classes where the file has them, and further labels."""

    image: str
    label: str
    class_names: tuple[str, ...]
    unused: tuple[str, ...]


class Unpacked(NamedTuple):
    """The tars that parquet files were unpacked into, and lines for the user."""

    tars: tuple[Path, ...]
    notes: tuple[str, ...]


def unpacked(files: Sequence[Path]) -> Unpacked:
    """Return tar shards of the rows of parquet files; they are written into the cache folder where they are not there.

    Images keep their bytes. A tar is named after its file and begins with the file's split, where files tell splits. A
    file whose labels are all -1 or missing has none, and is left out where others have labels.

    Raises:
        UserError: pyarrow is not installed, a file is damaged, has no such columns or tells no split as others do, or
            the folder cannot be written.
    """
    stamps = Stamps()
    known = [(str(file.resolve()), *stamps.of(file)) for file in files]
    digest = hashlib.sha256(json.dumps([RULES, known]).encode()).hexdigest()[:24]
    folder = cache_folder() / "parquet" / digest
    if not folder.exists():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with console.waiting(f"unpacking {len(files)} parquet files"), new_folder(folder) as draft:
                _unpack(files, draft)
        except FileExistsError:  # another process has just done the same
            pass
        except OSError as error:
            raise UserError(f"{error.filename or folder}: {error.strerror or one_line(error)}") from error
    notes = json.loads((folder / "notes.json").read_text(encoding="utf-8"))
    return Unpacked(
        tuple(sorted(folder.glob(f"*{shards.SUFFIX}"))), (*notes, f"parquet files are unpacked in {folder}")
    )


def _unpack(files: Sequence[Path], folder: Path) -> None:
    notes, columns = [], None
    splits = splits_told([file.absolute() for file in files])
    for file, split in zip(files, splits.values(), strict=True):
        with _opened(file) as parquet:
            own = _columns(file, parquet.schema_arrow)
            if columns is not None and own[:3] != columns[:3]:
                raise UserError(f"{file} has other columns or classes than {files[0]}: wanted the same in all")
            columns = own
            tar = folder / f"{split}{'-' * bool(split)}{file.stem}{shards.SUFFIX}"
            if tar.exists():
                raise UserError(f"{file}: two files have the name {file.name}: rename one")
            if not _write(file, parquet, own, tar):
                tar.unlink()
                notes.append(f"{file} has no labels: it is not used")
    if len(notes) == len(files):
        raise UserError(f"{files[0]} has no labels in its column {columns.label}")
    if columns.unused:
        notes.append(f"labels are those of the column {columns.label}, not of {', '.join(columns.unused)}")
    if columns.class_names:
        lines = (f"{_line(name)}\n" for name in columns.class_names)
        (folder / "classes.txt").write_text("".join(lines), encoding="utf-8")
    (folder / "notes.json").write_text(json.dumps(notes), encoding="utf-8")


def _line(name: str) -> str:
    return " ".join(name.split()) or "?"


def _opened(file: Path) -> ParquetFile:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise UserError(f"{file} needs pyarrow: pip install 'polychrome[parquet]'") from error
    try:
        return ParquetFile(file)
    except Exception as error:  # whatever damaged bytes raise
        raise UserError(f"{file} is damaged, or no parquet file: {one_line(error)}") from error


def _columns(file: Path, schema: pa.Schema) -> Columns:
    images = [name for name in schema.names if _holds_images(schema.field(name).type)]
    named = [name for name in IMAGES if name in images] or images
    if not images or (len(named) > 1 and named == images):
        found = f"columns {', '.join(images)}" if images else f"columns {', '.join(schema.names)}"
        raise UserError(f"{file} has {found}: wanted one column of encoded images, such as image")
    features = _features(schema)
    classes = {name: feature["names"] for name, feature in features.items() if isinstance(feature.get("names"), list)}
    candidates = [name for name in (*LABELS, *classes) if name in schema.names]
    if not candidates:
        raise UserError(f"{file} has columns {', '.join(schema.names)}: wanted one of labels, such as label")
    label, *others = dict.fromkeys(candidates)
    return Columns(named[0], label, tuple(map(str, classes.get(label, ()))), tuple(others))


def _holds_images(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        place = kind.get_field_index(BYTES)
        return place >= 0 and _holds_images(kind.field(place).type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _features(schema: pa.Schema) -> dict[str, dict]:
    """Return Hugging Face's description of the columns; empty where there is none."""
    try:
        found = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return {name: feature for name, feature in found.items() if isinstance(feature, dict)}


def _write(file: Path, parquet: ParquetFile, columns: Columns, tar: Path) -> bool:
    """Write the rows of a file into a tar; return whether they have labels."""
    labelled = unlabelled = held = 0
    with tarfile.open(tar, "w") as packed:
        for number, image, label in _rows(file, parquet, columns):
            content, there = _bytes(image), label not in (None, NO_LABEL)
            labelled, unlabelled, held = labelled + there, unlabelled + (not there), held + bool(content)
            if labelled and unlabelled:
                raise UserError(f"{file}: row {number} has no label, or those before have none: wanted a label in each")
            extension = EXTENSIONS.get(kinds.of(content[: kinds.HEAD]), "jpg")  # what is no image the scan rejects
            _add(packed, f"{number:09d}.{extension}", content)
            if there:
                kind, text = ("json", json.dumps({"label": label})) if isinstance(label, str) else ("cls", str(label))
                _add(packed, f"{number:09d}.{kind}", text.encode())
    if labelled and not held:
        raise UserError(f"{file}: no row of column {columns.image} has bytes, maybe paths alone: wanted encoded images")
    return labelled > 0


def _rows(file: Path, parquet: ParquetFile, columns: Columns) -> Iterator[tuple[int, Any, int | str | None]]:
    number = 0
    for batch in _batches(file, parquet, [columns.image, columns.label]):
        for image, label in zip(*(batch.column(name).to_pylist() for name in columns[:2]), strict=True):
            if not isinstance(label, int | str | None):
                raise UserError(f"{file}: column {columns.label} has {label!r}: wanted whole numbers or names")
            yield number, image, int(label) if isinstance(label, bool) else label
            number += 1


def _batches(file: Path, parquet: ParquetFile, names: list[str]) -> Iterator[pa.RecordBatch]:
    batches = parquet.iter_batches(AT_ONCE, columns=names)
    while True:
        try:
            batch = next(batches, None)
        except Exception as error:  # whatever damaged bytes raise
            raise UserError(f"{file} is damaged: {one_line(error)}") from error
        if batch is None:
            return
        yield batch


def _bytes(image: dict | bytes | None) -> bytes:
    found = image.get(BYTES) if isinstance(image, dict) else image
    return found or b""


def _add(packed: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    packed.addfile(member, io.BytesIO(content))


def found_in(root: Path, found: Sequence[str]) -> list[Path]:
    """Return the parquet files among the files below a folder."""
    return [root / path for path in found if os.path.splitext(path)[1].lower() == SUFFIX]
