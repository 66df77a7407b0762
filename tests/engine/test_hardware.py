"""Which arithmetic a device has of its own, and which it emulates."""

import pytest
import torch

from polychrome.engine.machine import hardware

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("flags", "bf16"),
    [("fma avx2", False), ("avx2 avx512f", False), ("avx512_bf16", True), ("amx_bf16", True), ("", False)],
)
def test_a_processor_multiplies_bfloat16_by_its_flags(monkeypatch, flags, bf16):
    monkeypatch.setattr(hardware, "_cpu_info", {"flags": flags}.__getitem__)
    assert hardware.native_precision(CPU) == ("bf16" if bf16 else "fp32")
    assert {name: hardware.is_native(name, CPU) for name in ("fp32", "bf16", "fp16")} == {
        "fp32": True,
        "bf16": bf16,
        "fp16": False,
    }


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("fma avx avx2", " (AVX2)"),
        ("avx2 avx512f avx512vl", " (AVX512)"),
        ("avx2 avx512f avx512_bf16", " (AVX512-BF16)"),
        ("avx2 avx512f avx512_bf16 amx_bf16", " (AMX)"),
        ("", ""),
    ],
)
def test_a_processor_is_named_with_its_widest_instructions(monkeypatch, flags, words):
    """Two that call themselves the same train a network at speeds of 1 to 5."""
    monkeypatch.setattr(hardware, "_cpu_info", {"flags": flags, "model name": "AMD EPYC"}.__getitem__)
    assert hardware.cpu_name() == f"AMD EPYC{words}"
    assert hardware.describe()["cpu"] == f"AMD EPYC{words}"


@pytest.mark.parametrize("bf16", [True, False])
def test_a_gpu_multiplies_float16_and_what_torch_says_of_bfloat16(monkeypatch, bf16):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16 or including_emulation)
    assert [hardware.is_native(name, GPU) for name in ("fp32", "bf16", "fp16")] == [True, bf16, True]
