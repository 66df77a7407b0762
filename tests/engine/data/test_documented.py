"""Every layout, format and way that docs/data.md lists has a test that builds it and asserts what is read."""

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[2] / "docs/data.md"

# By what a row of the page's tables begins with: the tests that build it.
ROWS = {
    "a folder with `train.txt`": "list_files_are_read_in_order, lists_with_backslashes_and_other_forms_of_unicode_find_"
    "their_files, labels_from_one_name_their_classes_and_are_said, "
    "class_names_are_whole_lines_or_the_first_of_imagenets_words",
    "a folder with `labels.csv`": "a_table_beside_a_folder_labels_its_images, tables_of_splits_are_read_beside_their_"
    "flat_folders, a_column_of_splits_divides_a_table, rows_that_repeat_a_file_and_its_label_are_taken_once_and_said, "
    "every_label_that_a_writer_of_tables_wrote_is_read_whole, rows_with_other_cells_than_the_first_are_refused_by_line",
    "a folder with `train/`": "split_folders_are_sorted_and_known_suffixes_listed, folders_of_splits_go_by_their_usual_"
    "names, hugging_face_folders_with_metadata_are_read",
    "`tiny-imagenet-200`": "tiny_imagenet_is_read_as_it_comes, the_flat_val_of_ilsvrc_is_labelled_by_its_solution",
    "a folder of class folders": "class_folders_are_split_eight_to_one_to_one_by_seed",
    "a folder with a single folder": "a_lone_folder_is_entered_and_said",
    "`'shards/{000..099}.tar'`": "patterns_and_folders_name_shards, numbers_in_cls_are_labels, "
    "folders_in_a_tar_are_the_splits_and_classes_that_folders_are",
    "a parquet file": "splits_classes_bytes_and_labels_of_hugging_faces_files_are_read, a_single_file_of_plain_bytes_"
    "with_named_classes_is_divided",
    "for `cifar100`": "official_files_are_read_in_each_form, batches_have_the_official_pixels",
    "an image in a split": "used_rejected_and_ignored_are_all_files_of_any_folder, what_scan_decodes_is_what_training_"
    "uses",
    "a file without the name of an image": "used_rejected_and_ignored_are_all_files_of_any_folder, every_image_is_one_"
    "with_the_suffix_or_the_first_bytes_of_an_image",
    "`.x`": "used_rejected_and_ignored_are_all_files_of_any_folder",
    "what is in the folder of a run": "runs_within_the_data_are_passed_over_in_every_layout",
    "an image outside the class folders": "used_rejected_and_ignored_are_all_files_of_any_folder",
    "a link that leads nowhere": "used_rejected_and_ignored_are_all_files_of_any_folder",
    "a link back": "used_rejected_and_ignored_are_all_files_of_any_folder, pipes_devices_and_folders_are_no_images",
    "`.cls`": "members_of_tars_are_accounted_for",
    "JPEG, PNG, BMP": "every_kind_has_the_same_pixels_within_two_in_both_backends, dali_decodes_the_same_pixels, "
    "transparency_is_dropped_and_gray_becomes_three_equal_channels, exif_orientation_is_undone",
    "GIF": "of_several_frames_the_first_is_read_and_told",
    "MPO": "of_several_frames_the_first_is_read_and_told",
    "PNG, PGM, JPEG 2000": "every_value_and_name_of_measured_data_is_read, a_few_files_of_16_bits_among_photos_are_"
    "scaled_counted_and_said",
    "TIFF of more than 8 bits": "every_value_and_name_of_measured_data_is_read, values_are_kept_as_uint8_or_float32, "
    "a_tiff_among_photos_has_the_pixels_that_tifffile_reads_or_is_refused",
    "TIFF of RGB and a fourth": "a_fourth_sample_is_transparency_only_where_it_looks_so",
    "PPM of colours": "what_a_photo_loses_is_told",
    "HEIC": "other_kinds_are_refused_with_a_reason",
    "`.npy`": "channels_are_the_named_number_or_beside_equal_axes_or_shorter, channels_txt_decides_the_axis",
    "TIFF with bands": "every_value_and_name_of_measured_data_is_read, bands_in_one_page_are_read",
    "TIFF with pages": "every_value_and_name_of_measured_data_is_read, pages_of_a_tiff_are_its_channels",
    "OME-TIFF": "every_value_and_name_of_measured_data_is_read, axes_that_cannot_be_channels_are_named",
    "PNG, JPEG 2000 of 16 bits": "every_value_and_name_of_measured_data_is_read",
    "the files name their channels": "every_value_is_in_its_channel_however_it_is_stored",
    "`channels.csv`": "every_value_is_in_its_channel_however_it_is_stored, the_last_line_that_names_a_file_its_folder_"
    "or_a_pattern_holds",
    "the same, with": "every_value_is_in_its_channel_however_it_is_stored",
    "`--channel-files REGEX`": "every_value_is_in_its_channel_however_it_is_stored, unlisted_files_of_an_image_belong_"
    "to_it_and_others_are_counted",
}
HEADS = ("`--data`", "file", "format", "way")


def rows():
    """Return the first cell of each row of the page's tables that list what is read."""
    found, head = [], ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = re.split(r"(?<!\\)\|", line)[1:-1] if line.startswith("|") else []
        head = "" if not cells else head or cells[0].strip()
        if cells and head in HEADS and cells[0].strip() not in (head, "---"):
            found.append(cells[0].strip())
    return found


def named_tests():
    """Return the names of the tests of this folder."""
    trees = (ast.parse(file.read_text(encoding="utf-8")) for file in HERE.glob("test_*.py"))
    return {node.name for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_each_row_of_the_page_has_tests_that_are_there():
    listed, known = rows(), named_tests()
    assert len(listed) == len(ROWS)
    for cell in listed:
        of_row = [names for start, names in ROWS.items() if cell.startswith(start)]
        longest = max(of_row, key=len, default=None)
        assert longest is not None, cell
        missing = [name for name in longest.split(", ") if f"test_{name}" not in known]
        assert missing == [], cell
    assert all(any(cell.startswith(start) for cell in listed) for start in ROWS)
