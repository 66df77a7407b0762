import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
# Each lower bound is a version that the tests have seen: `tests/oldest.txt`.
EXPORT = ["onnx>=1.18", "onnxruntime>=1.20", "onnxscript>=0.7", "safetensors>=0.4.3"]
TRAIN = [
    "torchvision>=0.26",
    "nvidia-dali-cuda130>=2.2; platform_system == 'Linux'",
    "pillow>=10.3",
    "tifffile>=2024.2.12",
    "imagecodecs>=2024.6.1",
    "click>=8.2",
    "rich>=13.7",
    "jinja2>=3.1",
    "markupsafe>=2.1.3",
    "matplotlib>=3.8",
    "tensorboard>=2.16.2",
]
DOCS = ["mkdocs-material", "mkdocstrings[python]"]
# The folders of a clone that are subpackages of `polychrome`.
SUBPACKAGES = ("kernels", "models", "engine", "train")

packages = [name for folder in SUBPACKAGES for name in find_packages(include=[folder, f"{folder}.*"])]
init = (HERE / "polychrome" / "__init__.py").read_text(encoding="utf-8")

setup(
    name="polychrome",
    version=re.search(r'^__version__ = "(.+)"$', init, re.M)[1],
    description="Per-sample convolution ops and a training engine for image models with varying input channels",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=["polychrome", *(f"polychrome.{name}" for name in packages)],
    package_dir={f"polychrome.{folder}": folder for folder in SUBPACKAGES},
    package_data={
        "polychrome": ["py.typed"],
        "polychrome.engine.report": ["templates/*.j2"],
        "polychrome.kernels.dynamic_conv": ["configs/*.json"],
        "polychrome.train.pretrained": ["*.pt"],
        "polychrome.train.recipes": ["*.toml"],
    },
    install_requires=["torch>=2.11", "triton>=3.6; platform_system == 'Linux'", "numpy>=1.26"],
    extras_require={
        "train": TRAIN,
        "parquet": ["pyarrow>=15.0"],
        "browser": ["selenium", "torch-tb-profiler"],
        "export": EXPORT,
        "docs": DOCS,
        "test": [
            *TRAIN,
            *EXPORT,
            *DOCS,
            "hypothesis",
            "mlflow-skinny",
            "mypy",
            "pyarrow",
            "pytest",
            "pytest-benchmark",
            "pytest-xdist",
            "ruff",
            "scipy",
            "setuptools",
            "timm",
            "torchmetrics",
        ],
    },
    entry_points={"console_scripts": ["polychrome=polychrome.command:main"]},
)
