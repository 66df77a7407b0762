"""The settings of a training, each defined once with its help text, its bounds and its default.

The command line and TOML files are generated from these fields (`train.settings.config`), and `Plan` inherits them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

AUTO = "auto"


class Number(NamedTuple):
    """A finite number of this type within inclusive (least, most) or exclusive (above, below) bounds.

    Where 0 turns something off, smaller numbers than `smallest` have no meaning.
    """

    kind: type
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    smallest: float | None = None


# Of a Beta distribution: torch draws no numbers of alphas beyond.
ALPHA = Number(float, least=0, most=1000, smallest=0.01)


def setting(default: Any, text: str, kind: Any = str, flag: str | None = None, own: bool = False) -> Any:
    """Return a field of settings.

    Args:
        text: the text in `--help`.
        kind: a `Number`, the names to choose from, bool, str, or a type of the command line's library.
        flag: the flag, if it is not "--" and the name.
        own: whether each model of a run may have a value of its own.
    """
    return field(default=default, metadata={"help": text, "type": kind, "flag": flag, "own": own})


own_setting = partial(setting, own=True)


@dataclass(frozen=True)
class Hyperparameters:
    """The hyperparameters of one network's training; None: chosen by the task or the machine."""

    epochs: int | None = own_setting(None, "Most epochs to train.  [default: the task's]", Number(int, least=1))
    accumulate: int = own_setting(1, "Batches that make a step.", Number(int, least=1))
    lr: float | None = own_setting(None, "Learning rate.  [default: 0.001; 0.01 for transfer]", Number(float, above=0))
    optimizer: str | None = own_setting(
        None,
        "Optimiser; sgd has momentum 0.9, nesterov looks ahead, muon is for hidden weights, with adamw for the rest.  "
        "[default: adam; sgd for transfer]",
        ("adam", "adamw", "sgd", "nesterov", "muon"),
    )
    weight_decay: float = own_setting(0.0, "Weight decay.", Number(float, least=0))
    schedule: str = own_setting(
        "constant",
        "Course of the learning rate; plateau: a tenth when more than 3 epochs bring no better validation accuracy.",
        ("constant", "plateau", "cosine", "linear", "onecycle"),
    )
    warmup: float = own_setting(0.0, "Epochs over which the learning rate rises to its start.", Number(float, least=0))
    clip_norm: float = own_setting(
        0.0, "Largest norm of a step's gradients, to which larger ones are scaled; 0: any.", Number(float, least=0)
    )
    ema: float = own_setting(
        0.0,
        "Decay of a moving average of the weights, which is then what is tested; 0: none.",
        Number(float, least=0, below=1),
    )
    keep: str = own_setting(
        "loss",
        "Epoch whose weights are kept and tested: loss, of the least validation loss; last, the last, which may come "
        "early: see --patience.",
        ("loss", "last"),
    )
    mixup: float = own_setting(0.0, "Mixup's alpha; 0: off.", ALPHA)
    cutmix: float = own_setting(0.0, "CutMix's alpha; 0: off. With both, each batch gets one.", ALPHA)
    mix_share: float = own_setting(
        1.0, "Share of the batches that mixup or CutMix mixes, drawn for each batch.", Number(float, above=0, most=1)
    )
    cutout: float = own_setting(
        0.0,
        "Side of a square of each training image that is set to the mean, as a share of the image's side; 0: none.",
        Number(float, least=0, most=1),
    )
    gain: float = own_setting(
        0.0,
        "In training, each channel of each image is multiplied by a factor of its own within 1 - GAIN and 1 + GAIN.",
        Number(float, least=0, below=1),
    )
    label_smoothing: float = own_setting(0.0, "Label smoothing in training.", Number(float, least=0, below=1))
    class_weights: str = own_setting(
        "none",
        "balanced: in training an image counts in inverse proportion to the images of its class.",
        ("none", "balanced"),
    )
    patience: int = own_setting(
        10,
        "Stop after this many epochs without a better validation loss; 0 never stops. Holds with --keep last too: with "
        "a rate that falls up to the last epoch take 0.",
        Number(int, least=0),
    )
    channel_sampling: str = own_setting(
        AUTO,
        "Channels of training images. on: a random subset for each; drop: some batches lose some; shuffle: subsets in "
        "random order; cycle: a pass for each combination; auto: on for any-channel models, else off.",
        (AUTO, "on", "off", "drop", "shuffle", "cycle"),
    )
    subset_bias: float = own_setting(
        0.0,
        "With --channel-sampling on or shuffle, K channels are drawn in proportion to 1 / K**BIAS. 0: every number as "
        "often; above: few channels more often.",
        Number(float, least=-10, most=10),
    )
    subset_runs: float = own_setting(
        0.0,
        "With --channel-sampling on or shuffle, the share of images whose channels are neighbours, as a sensor has a "
        "part of the spectrum.",
        Number(float, least=0, most=1),
    )
    consistency: float = own_setting(
        0.0,
        "Weight of a loss that draws the logits on sampled channels to those on all; each image is then in its batch "
        "twice. 0: off.",
        Number(float, least=0),
    )
    seed: int = setting(0, "Seed of weights, order, crops and channel sampling.", Number(int, least=0, most=2**32 - 1))
    precision: str | None = setting(
        None,
        "Arithmetic of the model, and whether Muon multiplies in bfloat16 or float32.  [default: bf16 where the device "
        "computes it natively, else fp32]",
        ("fp32", "bf16", "fp16"),
    )
    compile: bool | None = setting(None, "Use torch.compile.  [default: on CUDA]", bool, "--compile/--no-compile")
    compile_mode: str = setting(
        AUTO,
        "Mode of torch.compile; auto: the faster of default and reduce-overhead (CUDA graphs), measured.",
        (AUTO, "default", "reduce-overhead", "max-autotune"),
    )
    sync_bn: bool = setting(
        False,
        "Batch statistics over all processes rather than of each.",
        bool,
        "--sync-bn/--no-sync-bn",
    )
    save_every: float = setting(
        300.0, "Seconds between checkpoints; 0: one at the end of each epoch, none within.", Number(float, least=0)
    )
