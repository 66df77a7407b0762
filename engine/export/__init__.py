"""Trained models for use elsewhere: compiled (pt2), in ONNX, or as weights that make the model again (safetensors).

Every file takes images that are not standardised, float32 [batch, channels, height, width], and holds a
`Description`; one of `save_whole` takes images as they are stored, of any size.
"""

from polychrome.engine.export.check import Check, ExportError
from polychrome.engine.export.classifier import Classifier, Description, Exported
from polychrome.engine.export.files import FORMATS, check_target, load, save, save_whole

__all__ = [
    "FORMATS",
    "Check",
    "Classifier",
    "Description",
    "ExportError",
    "Exported",
    "check_target",
    "load",
    "save",
    "save_whole",
]
