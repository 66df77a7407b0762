"""Tar shards for the tests of the data pipeline."""

import io
import tarfile


def write(file, members, **options):
    """Write {name: bytes}, or pairs where a name comes twice, into a tar and return its path."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w", **options) as tar:
        for name, content in members.items() if isinstance(members, dict) else members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file
