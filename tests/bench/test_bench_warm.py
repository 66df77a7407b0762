"""Kernels compiled where there is no GPU are those that Triton's JIT looks up, wherever their archive is unpacked."""

import io
import os
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("triton")

from bench import warm
from bench.gpu import lookups, packed
from bench.report import tables

ROOT = Path(__file__).resolve().parents[2]
# Without the eager forms' numbers nobody looks at: two sizes of a gate through the public function and autograd.
GATES = """
from bench.stand_in import cuda
from bench.gpu import lookups
lookups.count()
cuda.install()
import torch
from polychrome.kernels import channel_gate, dynamic_conv2d
for size in (8, 16):
    x = torch.zeros(4, 32, size, size, device="cuda", dtype=torch.bfloat16).requires_grad_()
    weights = [torch.zeros(*shape, device="cuda", dtype=torch.bfloat16) for shape in ((8, 32), (8,), (32, 8), (32,))]
    channel_gate(x, *weights).sum().backward()
"""
CONVOLUTIONS = """
    experts = torch.zeros(4, 48, 32, 3, 3, device="cuda", dtype=torch.bfloat16).requires_grad_()
    mixing = torch.zeros(4, 4, device="cuda").requires_grad_()
    dynamic_conv2d(x, experts, mixing, padding=1).sum().backward()
"""


def launched(launches, cache, counts, **environment):
    """Run launches in a process of its own on a folder of Triton's cache; return the hits and misses."""
    known = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    known |= {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT), lookups.VARIABLE: str(counts)} | environment
    subprocess.run([sys.executable, "-c", launches], cwd=ROOT, env=known, check=True, capture_output=True)
    return lookups.counted(counts)


@pytest.mark.parametrize(
    ("launches", "least"),
    [
        pytest.param(GATES, 4, id="gates"),
        pytest.param(GATES + CONVOLUTIONS, 15, id="gates and convolutions", marks=pytest.mark.slow),
    ],
)
def test_every_kernel_is_found_in_an_archive_unpacked_elsewhere(tmp_path, launches, least):
    made, archive, elsewhere = tmp_path / "made", tmp_path / "warm.tar.xz", tmp_path / "deep" / "elsewhere"
    first = launched(launches, made, tmp_path / "first", TRITON_STORE_BINARY_ONLY="1")
    assert first["misses"] > least
    assert packed.pack(made, archive) == first["misses"]
    made.rename(tmp_path / "gone")
    assert packed.unpack(archive, elsewhere) == first["misses"]
    assert launched(launches, elsewhere, tmp_path / "second") == {"hits": sum(first.values()), "misses": 0}
    assert archive.stat().st_size < 10_000 * first["misses"]


def test_the_bodies_of_every_op_have_eager_ones_to_stand_in_for_them():
    code = "from bench.stand_in import plugin; plugin.pytest_configure(None); print(sorted(plugin.EAGER))"
    known = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=known, capture_output=True, text=True)
    assert done.stdout == f"{sorted(tables.OPS)}\n", done.stderr


@pytest.mark.slow
def test_the_gpu_tests_pass_where_the_eager_forms_stand_in_for_the_kernels(tmp_path):
    """What they launch is compiled, so that it is what `bench.warm` packs; and none is wrong in itself."""
    known = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    known |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "bench.stand_in.plugin", *warm.TESTS]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=known, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


def test_every_part_is_one_that_can_be_launched():
    from bench import warm_part

    assert {part.split()[0] for part in warm.PARTS} == set(warm_part.PARTS)


def test_an_archive_without_the_kernels_of_a_part_that_failed_is_no_success(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(warm, "PARTS", ("augment", "no such part"))
    monkeypatch.setattr(warm, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))
    monkeypatch.setattr(warm, "_run", lambda words, _: (int("no such part" in words), "failed: status 1"))
    assert warm.main(["--out", str(tmp_path), "--only", "part"]) == 1
    assert "no such part: failed: status 1" in capsys.readouterr().out
    assert warm.main(["--out", str(tmp_path), "--only", "augment"]) == 0
    assert "missing" not in capsys.readouterr().out


def test_an_archive_that_was_cut_off_leaves_the_cache_as_it_was(tmp_path):
    (tmp_path / "made" / "hash").mkdir(parents=True)
    (tmp_path / "made" / "hash" / "kernel.cubin").write_bytes(os.urandom(5000))
    packed.pack(tmp_path / "made", tmp_path / "whole")
    (tmp_path / "half").write_bytes((tmp_path / "whole").read_bytes()[:2000])
    with pytest.raises((OSError, EOFError, ValueError)):
        packed.unpack(tmp_path / "half", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_cannot_be_written_is_told_in_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert warm.main(["--out", str(tmp_path / "file" / "out")]) == 2
    assert capsys.readouterr().err.startswith("bench.warm cannot write into --out ")


@pytest.mark.parametrize("has_filter", [True, False])
def test_no_file_of_an_archive_lands_outside_its_folder(tmp_path, monkeypatch, has_filter):
    if not has_filter:
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    refused = ("../b.txt",) if hasattr(tarfile, "data_filter") else ("../b.txt", "/c.txt")
    for name in ("good/a.txt", "../b.txt", "/c.txt"):
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w") as archive:
            entry = tarfile.TarInfo(name)
            entry.size = 2
            archive.addfile(entry, io.BytesIO(b"hi"))
        content.seek(0)
        folder = tmp_path / "inside"
        with tarfile.open(fileobj=content) as opened:
            if name in refused:
                with pytest.raises(tarfile.TarError):
                    packed.extract(opened, folder)
            else:
                packed.extract(opened, folder)
    assert (folder / "good/a.txt").read_text() == "hi"
    assert not (tmp_path / "b.txt").exists()
    assert not Path("/c.txt").exists()
