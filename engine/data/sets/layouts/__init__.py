"""The ways in which people lay out labelled images: list files, tables, folders."""
