from pathlib import Path

from setuptools import find_packages, setup

EXPORT = ["onnx", "onnxruntime", "onnxscript", "safetensors"]

setup(
    name="polychrome",
    version="0.1.0",
    description="Per-sample convolution ops and a training engine for image models with varying input channels",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["engine*", "kernels*", "models*", "train*"]),
    package_data={
        "engine.report": ["templates/*.j2"],
        "kernels.dynamic_conv": ["configs/*.json"],
        "train.recipes": ["*.toml"],
    },
    install_requires=[
        "torch>=2.11",
        "torchvision",
        "triton>=3.6; platform_system == 'Linux'",
        "nvidia-dali-cuda130>=2.0; platform_system == 'Linux'",
        "numpy",
        "pillow",
        "click>=8.1",
        "rich",
        "jinja2",
        "markupsafe",
        "matplotlib",
        "tensorboard",
    ],
    extras_require={
        "browser": ["selenium", "torch-tb-profiler"],
        "export": EXPORT,
        "test": [
            *EXPORT,
            "hypothesis",
            "pytest",
            "pytest-benchmark",
            "pytest-xdist",
            "ruff",
            "setuptools",
            "timm",
            "torchmetrics",
        ],
    },
    entry_points={"console_scripts": ["polychrome=train.run:main"]},
)
