"""The training loop of one model."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polychrome.engine.channels.combinations import Combinations
from polychrome.engine.channels.masks import channel_index, dropped
from polychrome.engine.data.augmentation import SIZES
from polychrome.engine.data.batches import Batch, gathered
from polychrome.engine.data.loader import Loader
from polychrome.engine.errors import Interrupted, NotFiniteError, UserError, some_of
from polychrome.engine.evaluation import Evaluation, evaluate
from polychrome.engine.history import EpochRow, TrainingHistory
from polychrome.engine.machine import distributed
from polychrome.engine.machine.hardware import autocast
from polychrome.engine.machine.interruption import Interruption
from polychrome.engine.training import batch_size, checkpoint, mixing, state
from polychrome.engine.training.averaging import MovingAverage
from polychrome.engine.training.batch_size import is_out_of_memory
from polychrome.engine.training.mixing import Mixing
from polychrome.engine.training.plan import Plan
from polychrome.engine.training.state import Division, Position, State, Totals
from polychrome.engine.training.sync_batch_norm import synchronised
from polychrome.engine.watch.profiling import decoded, span

# The scale of the loss in fp16 at first, and how many steps of an epoch are skipped at most until a scale fits: as many
# as halve the first one to 1.
FIRST_SCALE, MOST_SKIPPED = 2.0**16, 16


@dataclass
class Hooks:
    """Functions that a training calls; by default each does nothing.

    batch: called after each training or validation batch with the number of its images.
    step: called after each optimiser step.
    validated: called after each validation batch.
    epoch: called after each epoch with the history so far.
    images: called once with the first batch, as the model reads it.
    say: called with each line of text for the user.
    waiting: returns a context manager in which the loop waits for a batch.
    """

    batch: Callable[[int], None] = lambda images: None
    step: Callable[[], None] = lambda: None
    validated: Callable[[], None] = lambda: None
    epoch: Callable[[TrainingHistory], None] = lambda history: None
    images: Callable[[Tensor], None] = lambda images: None
    say: Callable[[str], None] = lambda message: None
    waiting: Callable[[], AbstractContextManager] = nullcontext


def fit(
    name: str,
    model: nn.Module,
    train: Loader,
    val: Loader,
    plan: Plan,
    checkpoints: Path,
    hooks: Hooks | None = None,
    run: dict | None = None,
) -> TrainingHistory:
    """Train `model` from the newest checkpoint in a folder on, load `best.pt` into it and return the history.

    Order, augmentations, channel sampling and dropout depend only on (seed, epoch), and a checkpoint within an epoch
    has the state of torch's generators, so a resumed training equals an uninterrupted training. Signals, see
    `Interruption`, end the training after the current step. Several processes share the images of every batch. Each
    checkpoint has a copy of `run`, plain data to go on from where other files of the run are damaged.

    Raises:
        NotFiniteError: a loss is NaN or infinite, or steps in fp16 are skipped and the weights stay as they are; the
            earlier checkpoints are kept.
        Interrupted: the training was ended by a signal after it was saved.
        OutOfMemoryError: the message says which batch size fits.
        StorageError: a checkpoint cannot be written; the earlier checkpoint is kept.
        UserError: the checkpoints are damaged or belong to another model.
    """
    try:
        with Interruption() as interruption, _room_for_sizes(plan):
            trainer = Trainer(name, model, train, val, plan, checkpoints, hooks or Hooks(), interruption, run or {})
            history = trainer.run()
        if interruption.signal:  # came after the last step
            raise Interrupted(f"{name} was stopped by {interruption.signal} after its last epoch; all is saved")
        return history
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        failure = error.with_traceback(None)  # the frames of the error hold the tensors that fill the memory
    finally:
        if plan.compile:
            # Compiled code counts against the next model's limit, and CUDA graphs keep their memory.
            torch.compiler.reset()
    shape = (plan.inputs(len(train.channels)), train.size, train.size)
    raise batch_size.explained(failure, train.batch_size, model, shape, plan)


class Trainer:
    """The state and the steps of one model's training."""

    def __init__(
        self,
        name: str,
        model: nn.Module,
        train: Loader,
        val: Loader,
        plan: Plan,
        checkpoints: Path,
        hooks: Hooks,
        interruption: Interruption,
        run: dict,
    ) -> None:
        self.train, self.val, self.plan, self.folder, self.hooks = train, val, plan, checkpoints, hooks
        self.interruption, self.agreement = interruption, distributed.Agreement()
        model = synchronised(model, plan.device) if plan.sync_bn and distributed.world_size() > 1 else model
        self.model = model.to(plan.device, memory_format=torch.channels_last)
        self.ema = MovingAverage(self.model, plan.ema) if plan.ema else None
        self.optimizer = plan.make_optimizer(self.model)
        self.scaler = torch.amp.GradScaler(plan.device.type, FIRST_SCALE, enabled=plan.precision == "fp16")
        self.one = torch.ones((), device=plan.device)
        self.steps, self.skipped = 0, torch.zeros((), dtype=torch.int64, device=plan.device)  # of an epoch
        self.weights = None if plan.weights is None else torch.tensor(plan.weights, device=plan.device)
        self.mixing = None
        if plan.mixes:
            self.mixing = Mixing(plan.mixup, plan.cutmix, plan.num_classes, plan.mix_share)
        division = Division.of(train.samples, train.batch_size, plan.accumulate, plan.device)
        trained = self.model, self.optimizer, self.scaler, self.ema
        self.state = State(name, *trained, Totals(plan.device), division, plan.described(), run)
        self.state.history.keep = plan.keep
        self.shown = False

    @property
    def history(self) -> TrainingHistory:
        """The epochs so far."""
        return self.state.history

    def run(self) -> TrainingHistory:
        """Train to the end."""
        plan = self.plan
        self.saved = replace(self.state.position) if self.state.resume(self.folder, self.hooks.say) else None
        plan.set_training(self.model)
        self.replica = distributed.wrapped(self.model, plan.device)
        self.step_model = _compiled(self.replica, plan)
        # Not the replica: at each call it waits for the other processes, which may have fewer images to validate.
        alone = self.ema is None and self.replica is self.model
        self.val_model = self.step_model if alone else _compiled(self.state.validated, plan)
        self._clear_gradients()
        self._count_done()
        self.saved_at = time.perf_counter()
        while not self._is_over():
            self._epoch()
        if len(self.history.epochs) < plan.epochs:
            self.hooks.say(f"{self.state.name} {self.history.ended_early(plan.patience)}")
        self.state.keep_best(self.folder, self.hooks.say)
        distributed.wait()  # for the first process's last write
        best = self.folder / state.BEST
        checkpoint.restore(self.model, checkpoint.load(best, plan.device), best)
        return self.history

    def _is_over(self) -> bool:
        """Whether there is no further epoch to train."""
        return self.history.is_over(self.plan.epochs, self.plan.patience)

    def _count_done(self) -> None:
        """Advance the progress bar by the images that an earlier process has trained on."""
        if done := self.state.position.images(self.state.division, self.plan.passes, self.val.samples):
            self.hooks.batch(done)

    def _epoch(self) -> None:
        """Train for an epoch, or for the rest of an epoch, validate, and save if a save is due or this is the end."""
        plan, state_, begun = self.plan, self.state, time.perf_counter()
        self.started, epoch = begun - state_.elapsed, state_.position.epoch
        self._begin(epoch)
        for turn in range(state_.position.turn, plan.passes):
            self._pass(epoch, turn)
        loss, accuracy = state_.totals.means()
        speed = state_.totals.count / (time.perf_counter() - self.started)
        self._check_finite()
        evaluation = self._validate()
        if not evaluation.scores:
            raise UserError("none of the images to validate on could be read")
        (tested,) = evaluation.scores.values()
        row = EpochRow(state_.name, epoch, self.rate(0.0), loss, accuracy, tested.loss, tested.accuracy)
        if not math.isfinite(loss + tested.loss):
            images = f" (images: {some_of(evaluation.no_class)})" if evaluation.no_class else ""
            raise NotFiniteError(
                f"{state_.name}: epoch {epoch} ended with training loss {loss} and validation loss {tested.loss}"
                f"{images}; {self._last_checkpoint()}; {NotFiniteError.ADVICE} or --precision fp32"
            )
        self.history.epochs.append(row)
        self._check_steps()
        self.history.speeds.append(speed)
        self.history.seconds += time.perf_counter() - self.started
        state_.position, state_.totals, state_.elapsed = Position(epoch + 1), Totals(plan.device), 0.0
        state_.remember_best(self._is_over())
        # Where the next epoch would end after the next save is due, the save is made now: an end of an epoch can go on
        # with other batches, a middle cannot.
        now = time.perf_counter()
        if distributed.of_main(self._is_over() or now + (now - begun) - self.saved_at >= plan.save_every):
            state_.save_epoch(self.folder)
            self._note_saved()
        self.hooks.epoch(self.history)

    def _begin(self, epoch: int) -> None:
        for model in (self.model, *([self.ema.module] if self.ema else [])):
            if hasattr(model, "start_epoch") and not self.plan.frozen:
                model.start_epoch(epoch)
        self.plan.set_training(self.model)
        self.steps = 0
        self.skipped.zero_()
        self.rate = self.plan.rates(self.history.epochs)
        if self.state.position.at_start:
            torch.manual_seed(_mix(self.plan.seed, epoch, distributed.rank()))

    def _pass(self, epoch: int, turn: int) -> None:
        """Train on the rest of a pass over the data."""
        position, steps, updates = self.state.position, len(self.train), self._updates
        loaded = self.train.epoch(epoch, position.batch, self.plan.draw(epoch, turn), self.plan.recipe(epoch))
        batches, has_gradient = decoded(loaded, self.hooks.waiting), False
        for number, batch in enumerate(batches, position.batch):
            ends_step = (number + 1) % self.plan.accumulate == 0 or number + 1 == steps
            # The same for all batches of a step, as for one batch of as many images.
            rate = self.rate((turn * updates + number // self.plan.accumulate) / (self.plan.passes * updates))
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            if len(batch):  # none is left of a lone image that cannot be read
                self._forward_and_backward(batch, epoch, turn, number, ends_step)
                has_gradient = True
            if ends_step:
                if has_gradient:
                    self._update()
                position.batch, has_gradient = number + 1, False
                self.hooks.step()
            self.hooks.batch(batch.total)
            if ends_step and number + 1 < steps:
                self._save_or_stop()
        self.state.position = Position(epoch, turn + 1)
        self._save_or_stop()

    @property
    def _updates(self) -> int:
        """The number of steps of the optimizer in a pass over the data."""
        return -(-len(self.train) // self.plan.accumulate)

    def _forward_and_backward(self, batch: Batch, epoch: int, turn: int, number: int, ends_step: bool) -> None:
        plan = self.plan
        with span("augment"):
            images, sources = _images(batch, self.train, plan, epoch, turn, number)
            present, targets = None if sources is None else sources >= 0, batch.labels
            if self.mixing is not None:
                images, targets = self.mixing(images, targets, sources, batch.present)
                if sources is not None and not plan.consistent:
                    images = gathered(images, sources)
            if plan.consistent:
                images, present = mixing.beside_all(images, present, batch.present)
                targets = torch.cat([targets, targets])
            takes_mask = present is not None and getattr(self.model, "any_channels", False)
            inputs = (images, present) if takes_mask else (images,)
        if not self.shown:
            self.shown = True
            self.hooks.images(images)
        waits = isinstance(self.replica, nn.parallel.DistributedDataParallel) and not ends_step
        with self.replica.no_sync() if waits else nullcontext():
            with span("forward"), autocast(plan.device, plan.precision):
                # A smaller last batch is not worth compiling once more for each size of the images.
                whole = batch.total == self.train.batch_size
                logits = (self.step_model if whole else self.replica)(*inputs)
            loss = _loss(logits.float(), targets, plan.label_smoothing, self.weights)
            if plan.consistent:
                loss = loss + plan.consistency * mixing.divergence(logits.float())
            with span("backward"):
                share = self._share_of_step(batch, number)
                self.scaler.scale(loss if share == 1 else loss * share).backward()
        # A mixed image counts as of the class with the larger share.
        labels = targets if targets.dim() == 1 else targets.argmax(1)
        hits = (logits.argmax(1) == labels)[: len(batch)].sum()
        step = turn * len(self.train) + number
        self.state.totals.add(loss.detach(), hits, len(batch), batch.total, step)
        if self.state.totals.seen_bad():
            self._check_finite()

    def _share_of_step(self, batch: Batch, number: int) -> float:
        """Return the weight of a batch's mean loss in its step.

        The weight is the batch's share of the step's images times the number of processes, as gradients are averaged.
        """
        first = number - number % self.plan.accumulate
        size = self.train.batch_size
        end = min(first + self.plan.accumulate, len(self.train))
        images = min(end * size, self.train.samples) - first * size
        return len(batch) * distributed.world_size() / images

    def _update(self) -> None:
        with span("optimizer"):
            if self.plan.clip_norm:
                self.scaler.unscale_(self.optimizer)
                nn.utils.clip_grad_norm_(self.model.parameters(), self.plan.clip_norm)
            # A product with the scale, which the host does not wait for.
            before = self.scaler.scale(self.one) if self.scaler.is_enabled() else None
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.steps += 1
            if before is not None:
                self.skipped += self.scaler.scale(self.one) < before
            self._clear_gradients()
            if self.ema is not None:
                self.ema.update_parameters(self.model)

    def _clear_gradients(self) -> None:
        """Make the gradients ready for a step."""
        # The next batch overwrites the memory of a CUDA graph: gradients that are accumulated need their own.
        own = self.plan.compile and self.plan.compile_mode != "default" and self.plan.accumulate > 1
        if own:
            for parameter in self.model.parameters():
                if parameter.requires_grad and parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        self.optimizer.zero_grad(set_to_none=not own)

    def _validate(self) -> Evaluation:
        plan = self.plan
        name, everything = plan.channels or (self.val.channels.full, self.val.channels.everything)
        wanted: Combinations = {name: everything}
        precision = autocast(plan.device, plan.precision)

        def on_batch(images: int) -> None:
            self.hooks.batch(images)
            self.hooks.validated()
            # Several processes have to stop together, which is possible between steps alone.
            if distributed.world_size() == 1 and self.interruption.signal:
                self._stop(self.interruption.signal)

        distributed.share_buffers(self.state.validated)
        return evaluate(self.val_model, self.val, wanted, plan.num_classes, precision, on_batch, plan.protocol)

    def _save_or_stop(self) -> None:
        """Save if a save is due, and end the training after a signal; all processes do so after the same step."""
        due = bool(self.plan.save_every) and time.perf_counter() - self.saved_at > self.plan.save_every
        save, stop = self.agreement(due and distributed.is_main(), self.interruption.signal is not None)
        if stop:
            self._stop(self.interruption.signal or "a signal to another process")
        if save:
            self._save_within()

    def _save_within(self) -> None:
        self._check_finite()
        self.state.elapsed = time.perf_counter() - self.started
        self.state.save_within(self.folder)
        self._note_saved()

    def _note_saved(self) -> None:
        self.saved_at, self.saved = time.perf_counter(), replace(self.state.position)

    def _stop(self, cause: str) -> None:
        self._save_within()
        position = self.state.position
        batch = position.turn * len(self.train) + position.batch
        raise Interrupted(
            f"{self.state.name} was stopped by {cause} in epoch {position.epoch} after batch {batch} of "
            f"{self.plan.passes * len(self.train)}; all is saved"
        )

    def _check_finite(self) -> None:
        """Raise NotFiniteError, which names the files of the batch, if a loss of this epoch was not finite."""
        step = int(self.state.totals.first_bad)
        if step < 0:
            return
        epoch, (turn, number) = self.state.position.epoch, divmod(step, len(self.train))
        files = self.train.files(self.train.requests(epoch, self.plan.draw(epoch, turn))[number].indices)
        raise NotFiniteError(
            f"{self.state.name}: the loss of batch {step + 1} of epoch {epoch} is not finite (images: "
            f"{some_of(files)}); {self._last_checkpoint()}; "
            f"{NotFiniteError.ADVICE}, --clip-norm 1 or --precision fp32"
        )

    def _check_steps(self) -> None:
        """Tell how many steps of the epoch that ends were skipped in fp16; raise NotFiniteError if nothing is trained.

        A skipped step halves the scale of the loss. The first steps are skipped until it fits, in a short epoch all.
        """
        if not self.scaler.is_enabled():
            return
        skipped, scale, epochs = int(self.skipped), self.scaler.get_scale(), len(self.history.epochs)
        so_far = epochs * self.plan.passes * self._updates
        told = (
            f"{self.state.name}: {skipped} of {self.steps} steps of epoch {epochs} were skipped, as gradients in fp16 "
            f"were not finite; the loss is scaled by {scale:g} now"
        )
        untrained = self._is_over() and scale == FIRST_SCALE * 0.5**so_far
        if scale < 1 or skipped == self.steps > MOST_SKIPPED or untrained:
            raise NotFiniteError(f"{told}; {self._last_checkpoint()}; try --precision bf16 or fp32")
        if skipped:
            self.hooks.say(told)

    def _last_checkpoint(self) -> str:
        if self.saved is None:
            return "no checkpoint has been written"
        where = f"of epoch {self.saved.epoch - 1}" if self.saved.at_start else f"within epoch {self.saved.epoch}"
        return f"the checkpoint {where} is kept"


def _loss(logits: Tensor, targets: Tensor, smoothing: float, weights: Tensor | None) -> Tensor:
    """Return the mean cross-entropy over images, each times the weight of its class.

    targets: int64 [batch], or float32 [batch, classes] of mixed images, whose weights are mixed too. weights: float32
    [classes]; None: 1 for each. torch divides by the sum of a batch's weights, which would weigh batches differently.
    """
    if weights is None:
        return F.cross_entropy(logits, targets, label_smoothing=smoothing)
    each = F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="none")
    return (each * (weights[targets] if targets.dim() == 1 else targets @ weights)).mean()


def _compiled(model: nn.Module, plan: Plan) -> nn.Module:
    # Static shapes: with symbols for height and width Inductor compiles each size of growing images again all the same
    # (channels_last strides fix the symbols), and fails on some networks.
    return torch.compile(model, mode=plan.compile_mode, dynamic=False) if plan.compile else model


def _room_for_sizes(plan: Plan) -> AbstractContextManager:
    """Return a context in which code compiled for each size of growing images stays, beside that of validation."""
    if not plan.compile or plan.augmentations.progressive == 1:
        return nullcontext()
    config = torch._dynamo.config
    return config.patch(recompile_limit=max(config.recompile_limit, 2 * SIZES + 2))


def _images(
    batch: Batch, loader: Loader, plan: Plan, epoch: int, turn: int, number: int
) -> tuple[Tensor, Tensor | None]:
    """Return augmented images, and the channel of each input, int64 [batch, channels], -1 for none; None: all in order.

    The images have these inputs; where they are to be mixed, or for a consistency loss, they have all their channels,
    and the second result, of a consistency loss never None, says which to show. An image that has none of the channels
    chosen for its batch is shown with all that it has. None becomes gray that is not shown with all channels: it would
    be seen in gray what the others hold.
    """
    count, channels = batch.shape[:2]
    parameters = dict(batch.drawn)
    chosen = parameters.pop("channels", None)
    if plan.channels:
        shown = channel_index(plan.channels[1], batch.device)
        shown = _others_absent(shown, channels) if plan.padded else shown
        if len(set(plan.channels[1])) < channels:
            parameters.pop("grayscale", None)
        return batch.standardised(loader.channels, shown, **parameters), None
    if plan.channel_sampling == "cycle":
        chosen = _others_absent(channel_index(plan.cycle[turn], batch.device), channels).expand(count, -1)
    if plan.channel_sampling == "drop":
        chosen = dropped(channels, plan.seed, plan.draw(epoch, turn), number)
        chosen = None if chosen is None else chosen.to(batch.device, non_blocking=True).expand(count, -1)
    if batch.present is not None:
        own = batch.sources()
        chosen = own if chosen is None else batch.sources(chosen)
        chosen = torch.where((chosen >= 0).any(1, keepdim=True), chosen, own)
    if chosen is not None and (gray := parameters.get("grayscale")) is not None:
        parameters["grayscale"] = gray & (chosen >= 0).all(1)
    if plan.consistent and chosen is None:
        chosen = torch.arange(channels, device=batch.device).expand(count, -1)
    whole = plan.consistent or plan.mixes
    return batch.standardised(loader.channels, None if whole else chosen, **parameters), chosen


def _others_absent(present: Tensor, channels: int) -> Tensor:
    """Return each input's channel, int64 [channels]: its own number where the channel is `present`, else -1."""
    return torch.full((channels,), -1, device=present.device).scatter(0, present, present)


def _mix(seed: int, epoch: int, rank: int) -> int:
    """Return a seed for each seed and epoch, in each process another: a neighbour's is not that of the next epoch."""
    if rank:
        digest = hashlib.blake2b(repr((seed, epoch, rank)).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") % 2**63
    return (seed * 1_000_003 + epoch) % 2**63
