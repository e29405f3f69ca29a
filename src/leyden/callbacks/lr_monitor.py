"""LearningRateMonitor: logs the learning rate of every optimizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer

from leyden.core.callback import Callback
from leyden.utils.errors import MisconfigurationError, nearest

if TYPE_CHECKING:
    from leyden.core.module import LightningModule
    from leyden.core.types import Trainer

INTERVALS = ("step", "epoch")


class LearningRateMonitor(Callback):
    """Logs the learning rate of every optimizer, to all loggers and into ``trainer.callback_metrics``.

    A rate is named after its optimizer: ``lr-Adam``, a second one ``lr-Adam-1``; with several parameter groups
    ``lr-Adam/pg1``, ``lr-Adam/pg2``. A scheduler's ``"name"`` takes the place of ``lr-Adam``, a parameter group's
    ``"name"`` that of ``pg1``.

    Args:
        logging_interval: ``"step"`` logs with the other step values, every ``log_every_n_steps`` steps; ``"epoch"``
            at the start of every epoch. None takes each scheduler's own interval, and both for an optimizer without
            a scheduler.
        log_momentum: Also log the momentum, or Adam's first beta, as ``lr-Adam-momentum``.
        log_weight_decay: Also log the weight decay, as ``lr-Adam-weight_decay``.
        log_key_prefix: Put before every name.

    Attributes:
        lrs: Every rate that was logged, by name.
        last_momentum_values: The momentum that was logged last, by name.
        last_weight_decay_values: The weight decay that was logged last, by name.

    Raises:
        MisconfigurationError: ``logging_interval`` is unknown; when training begins: there is no logger, or two
            parameter groups of one optimizer have the same name.
    """

    def __init__(
        self,
        logging_interval: str | None = None,
        log_momentum: bool = False,
        log_weight_decay: bool = False,
        log_key_prefix: str | None = None,
    ) -> None:
        if logging_interval not in (None, *INTERVALS):
            raise MisconfigurationError(
                f"LearningRateMonitor(logging_interval={logging_interval!r}) is unknown. Choose 'step', 'epoch' or "
                f"None.{nearest(logging_interval, INTERVALS)}"
            )
        self.logging_interval = logging_interval
        self.log_momentum = log_momentum
        self.log_weight_decay = log_weight_decay
        self.log_key_prefix = log_key_prefix
        self.lrs: dict[str, list[float]] = {}
        self.last_momentum_values: dict[str, float] = {}
        self.last_weight_decay_values: dict[str, float] = {}
        self._logged_step = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a Trainer without a logger."""
        if stage == "fit" and not trainer.loggers and not trainer.fast_dev_run:
            raise MisconfigurationError(
                "LearningRateMonitor has no logger to log to. Give the Trainer one (logger=True), or leave the "
                "LearningRateMonitor out."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the history anew, and find out early whether all rates have a name."""
        self.lrs, self._logged_step = {}, -1
        for name, optimizer, _ in _watched(trainer):
            _check_group_names(name, optimizer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Log when the other step values of this batch will be logged."""
        step, every = trainer.state.position.stepped_batches, trainer.log_every_n_steps
        if not every or (step + 1) % every or step == self._logged_step:
            return
        self._logged_step = step  # the further batches of an accumulation have the same
        self._log(trainer, "step")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what changes by epochs."""
        self._log(trainer, "epoch")

    def _log(self, trainer: Trainer, interval: str) -> None:
        if self.logging_interval not in (None, interval):
            return
        values: dict[str, float] = {}
        for name, optimizer, own_interval in _watched(trainer):
            if self.logging_interval is not None or own_interval in (None, interval):
                values |= self._values(name, optimizer)
        if not values:
            return
        if trainer.is_global_zero:
            trainer._tell_loggers("log_metrics", values, step=trainer.state.position.stepped_batches)
        trainer.add_callback_metrics(values)

    def _values(self, name: str, optimizer: Optimizer) -> dict[str, float]:
        """What is to be logged of ``optimizer``; also kept in the history."""
        values: dict[str, float] = {}
        for index, group in enumerate(optimizer.param_groups):
            key = (self.log_key_prefix or "") + _group_key(name, optimizer, index)
            values[key] = float(group["lr"])  # a tensor where the optimizer is capturable
            self.lrs.setdefault(key, []).append(values[key])
            if self.log_momentum:
                momentum = group["betas"][0] if "betas" in group else group.get("momentum", 0.0)
                values[f"{key}-momentum"] = self.last_momentum_values[f"{key}-momentum"] = float(momentum)
            if self.log_weight_decay:
                decay = float(group.get("weight_decay", 0.0))
                values[f"{key}-weight_decay"] = self.last_weight_decay_values[f"{key}-weight_decay"] = decay
        return values


def _watched(trainer: Trainer) -> Iterator[tuple[str, Optimizer, str | None]]:
    """Name, optimizer and interval of every scheduler, then of every optimizer that has none."""
    taken: Counter[str] = Counter()

    def unique(name: str) -> str:
        taken[name] += 1
        return name if taken[name] == 1 else f"{name}-{taken[name] - 1}"

    scheduled = set()
    for config in trainer.lr_scheduler_configs:
        optimizer = config.scheduler.optimizer
        scheduled.add(id(optimizer))
        yield unique(config.name or f"lr-{type(optimizer).__name__}"), optimizer, config.interval
    for optimizer in trainer.optimizers:
        if id(optimizer) not in scheduled:
            yield unique(f"lr-{type(optimizer).__name__}"), optimizer, None


def _group_key(name: str, optimizer: Optimizer, index: int) -> str:
    """The name under which the rate of parameter group ``index`` is logged."""
    groups = optimizer.param_groups
    own = groups[index].get("name")
    if own is None and len(groups) == 1:
        return name
    return f"{name}/{own or f'pg{index + 1}'}"


def _check_group_names(name: str, optimizer: Optimizer) -> None:
    names = Counter(_group_key(name, optimizer, index) for index in range(len(optimizer.param_groups)))
    if twice := [key for key, count in names.items() if count > 1]:
        raise MisconfigurationError(
            f"LearningRateMonitor: several parameter groups of one {type(optimizer).__name__} would be logged as "
            f"{twice[0]!r}. Give each group its own 'name', or none."
        )
