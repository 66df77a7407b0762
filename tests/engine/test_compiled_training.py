"""Training with compiled models; the compiler's front end alone runs here, which is what counts recompilations."""

from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from polychrome.engine.data import loader
from polychrome.engine.data.augmentation import Augmentations
from polychrome.engine.training import trainer
from polychrome.engine.training.trainer import fit
from tests.engine.small import PLAN, Net

COMPILED = replace(PLAN, compile=True, epochs=2)


@pytest.fixture(autouse=True)
def without_code_generation(monkeypatch):
    def compiled(model, plan):
        return torch.compile(model, backend="eager", dynamic=False) if plan.compile else model

    monkeypatch.setattr(trainer, "_compiled", compiled)
    torch._dynamo.reset()  # what earlier tests have compiled counts against the limit, too


def test_models_one_after_another_do_not_use_up_the_limit_of_recompilations(loaders, tmp_path):
    limits = {"recompile_limit": 2, "fail_on_recompile_limit_hit": True}
    with torch._dynamo.config.patch(limits):  # a model is compiled for training and for validation
        for width in (4, 6, 8):
            history = fit("m", Net(width), *loaders, COMPILED, tmp_path / str(width))
            assert history.epochs == fit("m", Net(width), *loaders, PLAN, tmp_path / f"plain {width}").epochs[:2]


def test_gradients_are_the_trainings_own_where_a_cuda_graph_would_write_to_them_again(loaders, tmp_path):
    """Of batches that make a step together; a graph's outputs are valid until the next batch alone."""
    histories, kept = [], []
    for mode in ("default", "reduce-overhead"):
        model, plan = Net(), replace(COMPILED, accumulate=2, clip_norm=0.5, compile_mode=mode)
        histories.append(fit("m", model, *loaders, plan, tmp_path / mode).epochs)
        kept.append([parameter.grad is not None for parameter in model.parameters()])
    assert histories[0] == histories[1]
    assert not any(kept[0])
    assert all(kept[1])


def test_growing_images_are_compiled_once_for_each_size(images, tmp_path, monkeypatch):
    """For whole batches, of which the last is none; and validation once, which is not compiled again as they grow."""
    counter = CompileCounter()
    monkeypatch.setattr(
        trainer, "_compiled", lambda model, plan: torch.compile(model, backend=counter) if plan.compile else model
    )
    growing = Augmentations(epochs=5, progressive=0.25)
    plan, options = replace(COMPILED, epochs=5, augmentations=growing), {"size": 16, "backend": "synthetic"}
    train = loader.Loader(images, "train", train=True, batch_size=12, augmentations=growing, **options)
    val = loader.Loader(images, "val", train=False, batch_size=8, **options)
    with train, val:
        sizes = {train.size_of(epoch) for epoch in range(1, 6)}
        with torch._dynamo.config.patch({"fail_on_recompile_limit_hit": True, "automatic_dynamic_shapes": False}):
            history = fit("m", Net(4), train, val, plan, tmp_path / "compiled")
        plain = fit("m", Net(4), train, val, replace(plan, compile=False), tmp_path / "plain")
    assert (len(sizes), counter.frame_count) == (4, 5)
    assert history.epochs == plain.epochs
