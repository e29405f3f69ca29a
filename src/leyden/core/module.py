"""LightningModule: what to train."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from leyden.core.loading import class_only, load_module
from leyden.core.optimizers import SteppingOptimizer, default_scheduler_step, toggle, untoggle
from leyden.utils.errors import MisconfigurationError, NotBuiltError, warn
from leyden.utils.hparams import AttributeDict, collect_hyperparameters
from leyden.utils.lazy import LazyModule
from leyden.utils.tree import move_data_to_device

if TYPE_CHECKING:
    from leyden.core.results import Results
    from leyden.core.types import Trainer

Self = TypeVar("Self", bound="LightningModule")

_export = LazyModule("leyden.core.export")


class LightningModule(nn.Module):
    """An ``nn.Module`` that also says how it is trained.

    Define ``training_step`` and ``configure_optimizers``; the rest is there when it is needed. The order in which
    hooks fire is the order of the lines in ``leyden/core/fit.py`` and ``leyden/core/evaluate.py``.

    Attributes:
        automatic_optimization: False hands backward, step and zero_grad to ``training_step``.
        example_input_array: An input for ``forward`` (a tensor, a tuple of arguments, a dict of keyword arguments),
            which the model summary and the graph of a logger need.
        strict_loading: Refuse checkpoints whose weights do not match the module's one to one.
    """

    automatic_optimization: bool = True
    example_input_array: Any = None
    strict_loading: bool = True
    prepare_data_per_node: bool = True
    allow_zero_length_dataloader_with_multiple_devices: bool = False
    # These hold before, or without, a call of __init__.
    _trainer: Trainer | None = None
    _results: Results | None = None
    _hparams: AttributeDict | None = None
    _hparams_initial: AttributeDict | None = None
    _hparams_name: str | None = None
    _log_hyperparams: bool = False
    _toggled: dict[nn.Parameter, bool] | None = None
    # TorchScript, with which a logger draws graphs too, must not compile what only Python knows.
    __jit_unused_properties__ = [
        *("current_epoch", "device", "device_mesh", "dtype", "fabric", "global_rank", "global_step", "hparams"),
        *("hparams_initial", "local_rank", "logger", "loggers", "on_gpu", "trainer"),
    ]
    __jit_ignored_attributes__ = [
        *("automatic_optimization", "example_input_array", "strict_loading", "prepare_data_per_node"),
        *("_hparams", "_hparams_initial", "_hparams_name", "_log_hyperparams", "_results", "_toggled", "_trainer"),
    ]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        # Made ready here, so that a module whose __init__ forgets super().__init__() works all the same.
        module = super().__new__(cls)
        nn.Module.__init__(module)
        return module

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        ancestors = type(self).__mro__
        following = ancestors[ancestors.index(LightningModule) + 1]
        if following is not nn.Module:  # class Lit(LightningModule, SomeModel): SomeModel is to be initialised too
            following.__init__(self, *args, **kwargs)  # type: ignore[misc]

    def __getstate__(self) -> dict[str, Any]:
        # A copy or a pickle of the module does not drag the Trainer along.
        return {name: value for name, value in self.__dict__.items() if name not in ("_trainer", "_results")}

    # What to train.

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """The loss of one batch.

        Called with ``(batch)`` or ``(batch, batch_idx)``, as it is declared.

        Returns:
            The loss, a tensor with one element; or a mapping with ``"loss"`` and whatever hooks want to see; or None
            to skip the batch.
        """
        raise MisconfigurationError(f"{type(self).__name__} has no training_step(). Define it to train.")

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """One batch of validation; called with ``batch``, ``batch_idx``, ``dataloader_idx``, as many as it declares."""
        raise MisconfigurationError(f"{type(self).__name__} has no validation_step(). Define it to validate.")

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """One batch of the test; called with ``batch``, ``batch_idx``, ``dataloader_idx``, as many as it declares."""
        raise MisconfigurationError(f"{type(self).__name__} has no test_step(). Define it to test.")

    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        """The predictions for one batch; by default what ``forward`` returns for it."""
        return self(args[0])

    def configure_optimizers(self) -> Any:
        """The optimizers and learning-rate schedulers.

        Returns:
            An optimizer; a list of optimizers; ``([optimizers], [schedulers])``; ``(optimizer, scheduler)``; a dict
            ``{"optimizer": ..., "lr_scheduler": ...}``, or several of these. A scheduler may be a dict too:
            ``scheduler``, ``interval`` ("epoch" or "step"), ``frequency``, ``monitor``, ``strict``, ``name``.
        """
        raise MisconfigurationError(f"{type(self).__name__} has no configure_optimizers(). Define it to train.")

    def configure_callbacks(self) -> Any:
        """Callbacks that this model needs; each replaces those of its class in ``Trainer(callbacks=)``."""
        return []

    def configure_model(self) -> None:
        """Build layers late, when the device is known; called before every run, so build only what is missing."""

    # Data, where there is no datamodule.

    def prepare_data(self) -> None:
        """Fetch or convert what ``setup`` reads; called on one process, so set no state here."""

    def setup(self, stage: str) -> None:
        """Called before every run; ``stage`` is ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``."""

    def teardown(self, stage: str) -> None:
        """Called after every run."""

    def train_dataloader(self) -> Any:
        """The training loader."""
        raise self._no_loader("train_dataloader")

    def val_dataloader(self) -> Any:
        """The validation loader, or a list of them."""
        raise self._no_loader("val_dataloader")

    def test_dataloader(self) -> Any:
        """The test loader, or a list of them."""
        raise self._no_loader("test_dataloader")

    def predict_dataloader(self) -> Any:
        """The loader for predictions, or a list of them."""
        raise self._no_loader("predict_dataloader")

    def _no_loader(self, method: str) -> MisconfigurationError:
        return MisconfigurationError(
            f"{type(self).__name__} has no {method}(). Define it, or give the Trainer loaders."
        )

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Change ``batch`` before it goes to the device."""
        return batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move ``batch`` to ``device``; by default every tensor in nested containers."""
        return move_data_to_device(batch, device)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Change ``batch`` on the device."""
        return batch

    # Optimization.

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Propagate ``loss``."""
        loss.backward(*args, **kwargs)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Step ``optimizer``; an override must call ``optimizer_closure`` or hand it to ``optimizer.step``."""
        optimizer.step(closure=optimizer_closure)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Clear the gradients."""
        optimizer.zero_grad()

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients, by default as ``Trainer(gradient_clip_val=)`` says; gradients are unscaled."""
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def clip_gradients(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients of ``optimizer``'s parameters by ``"norm"`` (the default) or ``"value"``.

        Gradients that are scaled, for float16, are unscaled first where the optimizer steps in this batch.
        """
        given: Any = optimizer
        plain = given.optimizer if type(given) is SteppingOptimizer else given  # their __class__ is the same
        run = self.trainer._running
        if run.window.steps:
            run.precision.unscale(plain)
        self.trainer._clip_gradients(plain, gradient_clip_val, gradient_clip_algorithm)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step ``scheduler``; ``metric`` is the monitored value, or None."""
        default_scheduler_step(scheduler, metric)

    def optimizers(self, use_pl_optimizer: bool = True) -> Any:
        """The optimizer, or the list of them.

        Args:
            use_pl_optimizer: Wrapped, so that ``step`` handles precision and is counted; else as they were made.
        """
        found = self.trainer._wrapped_optimizers() if use_pl_optimizer else self.trainer.optimizers
        return found[0] if len(found) == 1 else found

    def lr_schedulers(self) -> Any:
        """The scheduler, the list of them, or None."""
        found = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        return found[0] if len(found) == 1 else found or None

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Propagate ``loss`` in manual optimization; fires the hooks around it."""
        if self.automatic_optimization:
            raise MisconfigurationError(
                "manual_backward works in manual optimization only. Set self.automatic_optimization = False in "
                "__init__, or return the loss from training_step."
            )
        self.trainer._manual_backward(loss, *args, **kwargs)

    def toggle_optimizer(self, optimizer: Any) -> None:
        """Switch gradients off for the parameters of all other optimizers, until ``untoggle_optimizer``."""
        self._toggled = toggle(optimizer, self.trainer.optimizers)

    def untoggle_optimizer(self, optimizer: Any) -> None:
        """Undo ``toggle_optimizer``."""
        untoggle(self._toggled or {})
        self._toggled = None

    @contextmanager
    def toggled_optimizer(self, optimizer: Any) -> Iterator[None]:
        """Inside, only the parameters of ``optimizer`` require gradients."""
        self.toggle_optimizer(optimizer)
        try:
            yield
        finally:
            self.untoggle_optimizer(optimizer)

    # Logging.

    def log(
        self,
        name: str,
        value: Any,
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: Any = "mean",
        enable_graph: bool = False,
        sync_dist: bool = False,
        sync_dist_group: Any = None,
        add_dataloader_idx: bool = True,
        batch_size: int | None = None,
        metric_attribute: str | None = None,
        rank_zero_only: bool = False,
    ) -> None:
        """Log one value. The value stays on its device until somebody needs to see it.

        Args:
            name: Its name; the same name may be logged in several hooks.
            value: A number, a tensor with one element, or a metric object with update, compute and reset; or a figure
                of matplotlib, or an Image, Audio, Text, Histogram or Table of ``leyden.loggers.media``, which only
                loggers get: in training steps the latest at every ``log_every_n_steps``-th step, elsewhere the last of
                the epoch.
            prog_bar: Show it in the progress bar.
            logger: Send it to the loggers; default yes.
            on_step: Send the value of every ``log_every_n_steps``-th step. Default: yes in training steps and hooks.
            on_epoch: Send the epoch's value. Default: yes in validation and test, and in epoch hooks. With both, the
                names are ``name_step`` and ``name_epoch``.
            reduce_fx: How the epoch's value comes about: ``"mean"``, ``"sum"``, ``"min"`` or ``"max"``.
            enable_graph: Keep the value's graph.
            sync_dist: Reduce over all processes; on one process there is nothing to reduce.
            sync_dist_group: The processes to reduce over.
            add_dataloader_idx: With several loaders, append ``/dataloader_idx_N`` to the name.
            batch_size: Samples that the value stands for, its weight in the epoch's mean. Default: the first dimension
                of the first tensor in the batch.
            metric_attribute: Name of the module's attribute that holds the metric object.
            rank_zero_only: Called on rank 0 alone.

        Raises:
            MisconfigurationError: The call makes no sense where it stands.
            ValueError: ``value`` is not one number.
        """
        if self._results is None:
            warn("LD011", "self.log goes nowhere: there is no run, or it is Trainer(barebones=True).")
            return
        self._results.log(
            name,
            value,
            prog_bar,
            logger,
            on_step,
            on_epoch,
            reduce_fx,
            enable_graph,
            sync_dist,
            sync_dist_group,
            add_dataloader_idx,
            batch_size,
            metric_attribute,
            rank_zero_only,
        )

    def log_dict(self, dictionary: Mapping[str, Any], *args: Any, **options: Any) -> None:
        """Log every value of ``dictionary``, or of a torchmetrics MetricCollection, with the options of ``log``."""
        if not hasattr(dictionary, "items"):
            raise TypeError(f"self.log_dict takes a dict, got {dictionary!r}. For one value use self.log(name, value).")
        for name, value in dictionary.items():
            self.log(name, value, *args, **options)

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print on rank 0, above the progress bar."""
        if self._trainer is None:
            print(*args, **kwargs)
        else:
            self._trainer.print(*args, **kwargs)

    # The run.

    @property
    def trainer(self) -> Trainer:
        """The Trainer.

        Raises:
            RuntimeError: The module has not been given to one.
        """
        if self._trainer is None:
            raise RuntimeError(
                f"{type(self).__name__} is not attached to a Trainer: call trainer.fit(model) or the like."
            )
        return self._trainer

    @trainer.setter
    def trainer(self, trainer: Trainer | None) -> None:
        for module in self.modules():
            if isinstance(module, LightningModule):
                module.__dict__["_trainer"] = trainer

    @property
    def fabric(self) -> None:
        """A LightningModule runs under a Trainer here; under Fabric it is used as any ``nn.Module``."""
        return None

    @property
    def current_epoch(self) -> int:
        """Index of the epoch in progress; 0 without a Trainer."""
        return self._trainer.current_epoch if self._trainer is not None else 0

    @property
    def global_step(self) -> int:
        """Optimizer steps taken; 0 without a Trainer."""
        return self._trainer.global_step if self._trainer is not None else 0

    @property
    def global_rank(self) -> int:
        """Index of this process among all."""
        return self._trainer.global_rank if self._trainer is not None else 0

    @property
    def local_rank(self) -> int:
        """Index of this process on its machine."""
        return self._trainer.local_rank if self._trainer is not None else 0

    @property
    def logger(self) -> Any:
        """The first logger, or None."""
        return self._trainer.logger if self._trainer is not None else None

    @property
    def loggers(self) -> list[Any]:
        """All loggers."""
        return self._trainer.loggers if self._trainer is not None else []

    @property
    def device(self) -> torch.device:
        """The device of the module's parameters, or else of its buffers; the CPU where it has neither."""
        for tensor in chain(self.parameters(), self.buffers()):
            return tensor.device
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the module's parameters; torch's default where it has none."""
        for tensor in chain(self.parameters(), self.buffers()):
            if tensor.is_floating_point():
                return tensor.dtype
        return torch.get_default_dtype()

    @property
    def device_mesh(self) -> None:
        """How the processes are arranged; None, since there is one."""
        return None

    @property
    def on_gpu(self) -> bool:
        """True when the module is on a CUDA device."""
        return self.device.type == "cuda"

    def all_gather(self, data: Any, group: Any = None, sync_grads: bool = False) -> Any:
        """``data`` of all processes, stacked in a new first dimension; on one process ``data`` as it is."""
        return self.trainer.strategy.all_gather(data, sync_grads=sync_grads)

    def freeze(self: Self) -> Self:
        """Require no gradients any more, and go to evaluation mode."""
        for parameter in self.parameters():
            parameter.requires_grad = False
        return self.eval()

    def unfreeze(self: Self) -> Self:
        """Require gradients of all parameters, and go to training mode."""
        for parameter in self.parameters():
            parameter.requires_grad = True
        return self.train()

    # Hyper-parameters and checkpoints.

    @property
    def hparams(self) -> AttributeDict:
        """What ``save_hyperparameters`` saved; may be changed. Setting it saves the items of a dict or Namespace."""
        if self._hparams is None:
            self._hparams = AttributeDict()
        return self._hparams

    @hparams.setter
    def hparams(self, hparams: Any) -> None:
        self._hparams = None
        self.save_hyperparameters(hparams, frame=inspect.currentframe())

    @property
    def hparams_initial(self) -> AttributeDict:
        """What ``save_hyperparameters`` saved, as it was then."""
        return AttributeDict(self._hparams_initial or {})

    def save_hyperparameters(
        self,
        *args: Any,
        ignore: str | Iterable[str] | None = None,
        frame: FrameType | None = None,
        logger: bool = True,
    ) -> None:
        """Keep the arguments of ``__init__`` in ``self.hparams``, in checkpoints and in the loggers.

        Args:
            args: Names of arguments to keep; or one object (dict, Namespace, dataclass) that holds them; none for all.
            ignore: Names to leave out.
            frame: The frame of ``__init__``, where this is not called from it.
            logger: Send them to the loggers.
        """
        if frame is None and (here := inspect.currentframe()) is not None:
            frame = here.f_back
        params, self._hparams_name = collect_hyperparameters(self, args, ignore, frame, (LightningModule, nn.Module))
        self.hparams.update(params)
        self._hparams_initial = self.hparams.deep_copy()
        self._log_hyperparams = logger

    @class_only
    def load_from_checkpoint(
        cls: type[Self],
        checkpoint_path: str | Path | IO[bytes],
        map_location: Any = None,
        hparams_file: str | Path | None = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """A module with the weights and hyper-parameters of a checkpoint.

        Args:
            checkpoint_path: A file, local or remote.
            map_location: Where the weights go, as in ``torch.load``; by default where they were, or else the CPU.
            hparams_file: A ``.yaml`` or ``.csv`` file of hyper-parameters, for checkpoints that hold none.
            strict: Refuse weights that do not match one to one; by default as ``strict_loading`` says.
            weights_only: False reads arbitrary Python objects too, and so runs whatever code the file holds.
            kwargs: Arguments of ``__init__`` that replace, or add to, the saved hyper-parameters.

        Raises:
            CheckpointError: The file is damaged, or its weights do not fit.
            TypeError: Arguments of ``__init__`` are missing.
        """
        module: Self = load_module(cls, checkpoint_path, map_location, hparams_file, strict, weights_only, kwargs)
        return module

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Called last before a checkpoint is written; may change it."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Called first when a checkpoint was read; may change it."""

    # Export. The module is in evaluation mode meanwhile, without gradients, and afterwards as it was.

    def to_onnx(self, file_path: Any = None, input_sample: Any = None, **export_kwargs: Any) -> Any:
        """Export to ONNX by ``torch.onnx.export``; returns what that returns, an ``ONNXProgram``.

        Args:
            file_path: A path, local or remote, or a binary file. Weights may go to a second file beside it.
            input_sample: An input for ``forward``; default ``example_input_array``, which takes the same forms.
            export_kwargs: Options of ``torch.onnx.export``.

        Raises:
            ModuleNotFoundError: ``onnx`` or ``onnxscript`` is missing.
            ValueError: There is no input.
        """
        return _export.to_onnx(self, file_path, input_sample, export_kwargs)

    def to_torchscript(
        self, file_path: Any = None, method: str = "script", example_inputs: Any = None, **kwargs: Any
    ) -> Any:
        """Compile to TorchScript, which torch deprecates in favour of what ``to_exported_program`` makes.

        Args:
            file_path: A path, local or remote, or a binary file; ``torch.jit.load`` reads it.
            method: ``"script"`` compiles the code of ``forward``, ``"trace"`` records one call of it.
            example_inputs: For ``"trace"`` an input for ``forward``; default ``example_input_array``.
            kwargs: Options of ``torch.jit.script`` or ``torch.jit.trace``.

        Raises:
            ValueError: ``method`` is unknown, or there is no input to trace.
        """
        return _export.to_torchscript(self, file_path, method, example_inputs, kwargs)

    def to_exported_program(
        self, file_path: Any = None, example_inputs: Any = None, dynamic_shapes: Any = None
    ) -> torch.export.ExportedProgram:
        """Export by ``torch.export.export``: a graph of the whole ``forward``, which runs without this class.

        Args:
            file_path: A path, local or remote, or a binary file; ``torch.export.load`` reads it.
            example_inputs: An input for ``forward``; default ``example_input_array``.
            dynamic_shapes: Dimensions that may vary, as ``torch.export.export`` takes them; default none.

        Raises:
            ValueError: There is no input.
        """
        program: torch.export.ExportedProgram = _export.to_exported_program(
            self, file_path, example_inputs, dynamic_shapes
        )
        return program

    def to_tensorrt(self, *args: Any, **kwargs: Any) -> Any:
        """Not built yet; says what to use instead."""
        raise NotBuiltError("LightningModule.to_tensorrt", "Give what to_exported_program returns to Torch-TensorRT.")

    # Hooks, in the order of a fit.

    def on_fit_start(self) -> None:
        """Called when the module is on its device and the optimizers are made."""

    def on_fit_end(self) -> None:
        """Called when fit is done."""

    def on_train_start(self) -> None:
        """Called before the first epoch."""

    def on_train_end(self) -> None:
        """Called after the last epoch."""

    def on_train_epoch_start(self) -> None:
        """Called before the first batch of an epoch."""

    def on_train_epoch_end(self) -> None:
        """Called after the last batch of an epoch, validation included."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        """Called before ``training_step``; returning -1 ends the epoch here."""

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Called after the batch is done; ``outputs`` is a dict with the undivided, detached ``"loss"``."""

    def on_before_zero_grad(self, optimizer: Optimizer) -> None:
        """Called before gradients are cleared: after the forward pass, before the backward pass."""

    def on_before_backward(self, loss: Tensor) -> None:
        """Called before the backward pass, with the loss as it is propagated."""

    def on_after_backward(self) -> None:
        """Called after the backward pass; gradients are not unscaled yet."""

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Called before the optimizer steps and before clipping; gradients are unscaled."""

    def on_validation_model_zero_grad(self) -> None:
        """Called before validation inside fit, to free the gradients' memory."""
        self.zero_grad()

    def on_validation_model_eval(self) -> None:
        """Called to put the module into evaluation mode."""
        self.eval()

    def on_validation_model_train(self) -> None:
        """Called after validation, in place of putting every submodule back into the mode it had before."""
        self.train()

    def on_validation_start(self) -> None:
        """Called before validation."""

    def on_validation_end(self) -> None:
        """Called after validation, when its metrics are known."""

    def on_validation_epoch_start(self) -> None:
        """Called before the first validation batch."""

    def on_validation_epoch_end(self) -> None:
        """Called after the last validation batch; values logged here count for this validation."""

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Called before ``validation_step``."""

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Called after ``validation_step``, whose result is ``outputs``."""

    def on_test_model_eval(self) -> None:
        """Called to put the module into evaluation mode."""
        self.eval()

    def on_test_model_train(self) -> None:
        """Called after the test, in place of putting every submodule back into the mode it had before."""
        self.train()

    def on_test_start(self) -> None:
        """Called before the test."""

    def on_test_end(self) -> None:
        """Called after the test, when its metrics are known."""

    def on_test_epoch_start(self) -> None:
        """Called before the first test batch."""

    def on_test_epoch_end(self) -> None:
        """Called after the last test batch; values logged here count for this test."""

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Called before ``test_step``."""

    def on_test_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Called after ``test_step``, whose result is ``outputs``."""

    def on_predict_model_eval(self) -> None:
        """Called to put the module into evaluation mode."""
        self.eval()

    def on_predict_start(self) -> None:
        """Called before prediction."""

    def on_predict_end(self) -> None:
        """Called after prediction."""

    def on_predict_epoch_start(self) -> None:
        """Called before the first batch of prediction."""

    def on_predict_epoch_end(self) -> None:
        """Called after the last batch of prediction."""

    def on_predict_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Called before ``predict_step``."""

    def on_predict_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Called after ``predict_step``, whose result is ``outputs``."""
