"""The consistency loss: what it is, what the model is shown for it, and that it does what it is for."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from polychrome.engine.training import batch_size, mixing
from polychrome.engine.training.trainer import fit
from tests.engine.small import PLAN, Recorder

CONSISTENT = replace(PLAN, epochs=1, channel_sampling="on", consistency=1.0)


def test_divergence_is_that_of_the_answers_on_some_channels_from_those_on_all():
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    some, every = logits.detach().softmax(1).chunk(2)
    found = mixing.divergence(logits)
    assert found.item() == pytest.approx((every * (every / some).log()).sum(1).mean().item(), rel=1e-5)
    found.backward()
    assert logits.grad[:3].abs().sum() > 0
    assert logits.grad[3:].abs().sum() == 0
    assert mixing.divergence(torch.cat([logits, logits])[:6].detach()).item() > 0
    assert mixing.divergence(torch.cat([logits[:3], logits[:3]]).detach()).item() == pytest.approx(0, abs=1e-6)


def test_a_batch_has_each_image_on_a_subset_and_on_all_channels(loaders, tmp_path):
    model = Recorder()
    fit("m", model, *loaders, CONSISTENT, tmp_path)
    seen = [(images, mask) for images, mask in model.seen if mask is not None]
    assert len(seen) == 5
    for images, mask in seen:
        some, every = images.chunk(2)
        present, rest = mask.chunk(2)
        assert len(images) == 16
        assert rest.all()
        assert present.any(1).all()
        assert torch.equal(some, every * present[:, :, None, None])
        assert images.is_contiguous(memory_format=torch.channels_last)
    assert not torch.cat([mask[:8] for _, mask in seen]).all()


def test_networks_for_all_channels_are_shown_zeros_and_no_mask(loaders, tmp_path):
    model = Recorder()
    model.any_channels = False
    fit("m", model, *loaders, replace(CONSISTENT, mixup=0.2), tmp_path)
    images = [images for images, mask in model.seen if len(images) == 16]
    assert len(images) == 5
    some, every = torch.cat([one[:8] for one in images]), torch.cat([one[8:] for one in images])
    absent = (some == 0).all((2, 3))
    assert absent.any()
    assert torch.equal(some, every * ~absent[:, :, None, None])


@pytest.mark.parametrize("sampling", ["off", "shuffle"])
def test_without_channel_subsets_there_is_none(loaders, tmp_path, sampling):
    histories = []
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        plan = replace(CONSISTENT, channel_sampling=sampling, consistency=weight)
        histories.append(fit("m", Recorder(), *loaders, plan, tmp_path / str(weight)).epochs)
    assert histories[0] == histories[1]


def test_it_draws_the_answers_together(loaders, tmp_path):
    """On images of noise, where nothing is to be learnt that would help otherwise."""
    apart = []
    for weight in (0.0, 30.0):
        torch.manual_seed(0)
        model = Recorder()
        fit("m", model, *loaders, replace(CONSISTENT, consistency=weight, epochs=6), tmp_path / str(weight))
        images = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            one = images * torch.tensor([1.0, 0, 0])[:, None, None]
            apart.append(F.l1_loss(model(one).softmax(1), model(images).softmax(1)).item())
    assert apart[1] < 0.7 * apart[0]


def test_the_search_for_a_batch_size_takes_as_many_images():
    model = Recorder()
    seen = []
    model.stem.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    batch_size.step_on_random(model, (3, 16, 16), CONSISTENT)(4)
    batch_size.step_on_random(model, (3, 16, 16), PLAN)(4)
    assert seen == [8, 4]
