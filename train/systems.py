"""The systems of the five reports, A to E, and the figures given there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# A report gives a figure or the range it lies in.
Figure = float | tuple[float, float]


@dataclass(frozen=True)
class System:
    """A trained system and the figures that its report gives.

    Attributes:
        model: the entry's name in a run: a registered model and the variants of its training, such as
            "dwg_densenet121+shuffle" (trained and tested with channel shuffling).
        report: "A" to "E".
        task: "task1", "task2", "cifar100" or "transfer".
        reported: accuracies, 0 to 1, by test combination ("RGB", "RG", "shuffled"), of the validation set ("val") and
            the training set ("train"); and macro "precision", "recall" and "f1" of the test. Empty: none given.
    """

    model: str
    report: str
    task: str
    reported: Mapping[str, Figure]


def _row(model: str, report: str, task: str, **reported: Figure) -> System:
    return System(model, report, task, reported)


# The report gives no figure of its own to each of the models trained with all augmentations at once.
_ALL_AUGMENTATIONS = (0.68, 0.71)

SYSTEMS = (
    _row("simple_cnn", "A", "task1", RGB=0.3556, RG=0.3111, GB=0.0378, R=0.0222, G=0.0222, B=0.0200),
    _row("pool_attention_cnn", "A", "task1", RGB=0.3044, RG=0.3111, GB=0.2911, R=0.3089, G=0.3089, B=0.2467),
    _row("dwg_densenet121", "B", "task1", RGB=0.6578, precision=0.6979, recall=0.6578, f1=0.6547),
    _row("dwg_densenet121+shuffle", "B", "task1", shuffled=0.7600, precision=0.7661, recall=0.7600, f1=0.7520),
    _row("naive_cnn", "C", "task1", RGB=0.4, RG=0.3467, GB=0.3667, RB=0.42, R=0.3822, G=0.3511, B=0.3533),
    _row("adaptive_channel_cnn", "C", "task1", RGB=0.4533, RG=0.3978, GB=0.4156, RB=0.42, R=0.3689, G=0.3711, B=0.3756),
    _row("dynamic_cnn_v1", "D", "task1", RGB=0.2422),
    _row("dynamic_cnn_v1+drop", "D", "task1", RGB=0.1244),
    _row("dynamic_cnn_v2", "D", "task1", RGB=0.1422),
    _row("dynamic_cnn_v2+drop", "D", "task1", RGB=0.2244),
    _row("baseline_cnn", "D", "task1", RGB=0.2844),
    _row("baseline_cnn+drop", "D", "task1", RGB=0.2422),
    _row("resnet34", "A", "task2", RGB=0.5978),
    _row("attention_cnn", "A", "task2", RGB=0.5911),
    _row("resnet34", "B", "task2", RGB=0.2667, precision=0.1181, recall=0.2667, f1=0.1583),
    _row("rrdb", "B", "task2", RGB=0.3511, precision=0.4425, f1=0.3435),
    _row("rrdb_rnn", "B", "task2", RGB=0.4267, precision=0.4673, f1=0.4133),
    _row("resnet34", "C", "task2", RGB=0.5933),
    _row("attention_separable_cnn", "C", "task2", RGB=0.2178),
    _row("resnet34", "D", "task2", RGB=0.5667),
    _row("simple_2layer_cnn", "D", "task2", RGB=0.4400),
    _row("se_2layer_cnn", "D", "task2", RGB=0.4533),
    _row("simple_4layer_cnn", "D", "task2", RGB=0.4000),
    _row("base_net", "E", "cifar100", val=(0.24, 0.26)),
    _row("vgg19", "E", "cifar100", val=(0.49, 0.51)),
    _row("resnet18", "E", "cifar100"),
    _row("googlenet", "E", "cifar100"),
    # Its test figure is of a leaderboard's held-out tenth.
    _row("vgg_slim", "E", "cifar100", val=0.77, RGB=0.782),
    _row("vgg_resnet_sum", "E", "cifar100", val=_ALL_AUGMENTATIONS),
    _row("vgg_resnet_concat", "E", "cifar100", val=_ALL_AUGMENTATIONS),
    _row("resnetv2", "E", "cifar100", val=_ALL_AUGMENTATIONS),
    _row("resnet50+frozen", "E", "transfer", RGB=0.3834, train=0.6373),
    _row("resnet50+finetuned", "E", "transfer", RGB=0.6413, train=0.9937),
)


# Of the data that the reports' figures are of, by task: classes, and training, validation and test images. What the
# transfer's were, the report does not say.
_MINI_IMAGENET = (50, 63_325, 450, 450)
DATA = {"task1": _MINI_IMAGENET, "task2": _MINI_IMAGENET, "cifar100": (100, 45_000, 5_000, 10_000)}
MISSING = 0.01  # the share of a split's files that may be unusable


def is_on_their_data(task: str, data: Mapping) -> bool:
    """Return whether a run is on the data of the reports, by the counts in the "data" of its results."""
    counts = [data.get(name, 0) for name in ("classes", "train", "val", "test")]
    wanted = DATA.get(task)
    return wanted is not None and all(
        (1 - MISSING) * there <= count <= there for count, there in zip(counts, wanted, strict=True)
    )


def names(task: str) -> tuple[str, ...]:
    """Return the registered models of a task, each once, in the reports' order."""
    return tuple(dict.fromkeys(system.model.partition("+")[0] for system in SYSTEMS if system.task == task))


def reported(entry: str, task: str) -> list[System]:
    """Return the systems of the reports that an entry of a run repeats, in the reports' order."""
    return [system for system in SYSTEMS if (system.model, system.task) == (entry, task)]
