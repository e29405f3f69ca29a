"""Fabric: devices, precision and checkpoints for a training loop that you write yourself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader

from leyden.fabric.accelerators import Accelerator
from leyden.fabric.precision import Precision
from leyden.fabric.resolve import Plugin, resolve_hardware
from leyden.fabric.strategies.strategy import Strategy
from leyden.fabric.wrappers import WrappedLoader, WrappedModule, WrappedOptimizer, unwrap
from leyden.loggers.logger import Logger
from leyden.utils.errors import CheckpointError, MisconfigurationError, nearest
from leyden.utils.seed import seed_everything
from leyden.utils.tree import move_data_to_device

T = TypeVar("T")


class Fabric:
    """The parts of a training loop that depend on the machine.

    Set up a module, its optimizers and its loaders, write the loop as for plain PyTorch, and call
    ``fabric.backward(loss)`` in place of ``loss.backward()``. In float32 on one device the result is the same to the
    last bit.
    """

    def __init__(
        self,
        *,
        accelerator: str | Accelerator = "auto",
        strategy: str | Strategy = "auto",
        devices: int | str | list[int] = "auto",
        num_nodes: int = 1,
        precision: str | int | Precision | None = None,
        plugins: Plugin | list[Plugin] | None = None,
        callbacks: Any = None,
        loggers: Logger | list[Logger] | None = None,
    ) -> None:
        """Choose the hardware; one device works today.

        Args:
            accelerator: ``"cuda"``, ``"mps"``, ``"cpu"``, ``"gpu"`` or ``"auto"``, which is the best one here.
            strategy: ``"auto"``, ``"single_device"`` or a Strategy.
            devices: A count, a list of ids, ``-1`` for all, or ``"auto"``.
            num_nodes: How many machines.
            precision: Such as ``"bf16-mixed"``; None is ``"32-true"``.
            plugins: A Precision, a CheckpointIO, or a list of both.
            callbacks: Objects with whatever methods ``call`` will name.
            loggers: Where ``log`` sends values.

        Raises:
            ValueError: Something is unknown or cannot work; the message says what would.
        """
        self.accelerator, self.strategy = resolve_hardware(
            accelerator, strategy, devices, num_nodes, precision, plugins
        )
        self.callbacks = _as_list(callbacks)
        self.loggers: list[Logger] = _as_list(loggers)
        for logger in self.loggers:
            if not isinstance(logger, Logger):
                raise TypeError(f"loggers={logger!r} is not a Logger. Pass one such as CSVLogger('logs').")
        self._launched = False
        self.strategy.setup_environment()

    @property
    def device(self) -> torch.device:
        """Where modules and batches go."""
        return self.strategy.device

    @property
    def world_size(self) -> int:
        """Number of processes in the run."""
        return self.strategy.world_size

    @property
    def global_rank(self) -> int:
        """This process among all."""
        return self.strategy.global_rank

    @property
    def local_rank(self) -> int:
        """This process among those of its machine."""
        return self.strategy.local_rank

    @property
    def node_rank(self) -> int:
        """This machine among all."""
        return self.strategy.node_rank

    @property
    def is_global_zero(self) -> bool:
        """True in the one process that prints and logs."""
        return self.strategy.is_global_zero

    @property
    def logger(self) -> Logger | None:
        """The first logger, if there is one."""
        return self.loggers[0] if self.loggers else None

    # Setting up.

    def launch(self, function: Callable[..., T] | None = None, *args: Any, **kwargs: Any) -> T | None:
        """Start the processes of the run, which on one device is this one.

        Args:
            function: Called in every process with this Fabric, then ``args`` and ``kwargs``.

        Returns:
            What ``function`` returned.

        Raises:
            RuntimeError: It was called before.
            TypeError: ``function`` cannot be called.
        """
        if function is not None and not callable(function):
            raise TypeError(f"launch({function!r}) takes a function. Write fabric.launch(train), not launch(train()).")
        if self._launched:
            raise RuntimeError("fabric.launch() was called before. Call it once, at the start of the program.")
        self._launched = True
        return None if function is None else function(self, *args, **kwargs)

    def setup(
        self, module: nn.Module, *optimizers: Optimizer, scheduler: Any = None, move_to_device: bool = True
    ) -> Any:
        """Make a module, and the optimizers of its parameters, ready to train; both are changed in place.

        Args:
            module: Goes to the device, in the precision's type.
            optimizers: Those that step on its parameters.
            scheduler: A learning-rate scheduler of theirs, handed back as it is.
            move_to_device: False leaves the module on the device it is on.

        Returns:
            The wrapped module; a tuple of it, the wrapped optimizers and the scheduler, where these are given.

        Raises:
            ValueError: One of them is set up already, or an optimizer has none of the module's parameters.
        """
        _check_fresh("setup", module, nn.Module, "a module")
        made = tuple(self._wrap_optimizer(optimizer) for optimizer in optimizers)
        ours = {id(parameter) for parameter in module.parameters()}
        for optimizer in optimizers:
            groups = optimizer.param_groups
            if not any(id(parameter) in ours for group in groups for parameter in group["params"]):
                raise MisconfigurationError(
                    f"setup() got a {type(optimizer).__name__} that has none of {type(module).__name__}'s parameters. "
                    "Make it from model.parameters()."
                )
        wrapped = self.setup_module(module, move_to_device)
        if scheduler is not None:
            return (wrapped, *made, scheduler)
        return (wrapped, *made) if made else wrapped

    def setup_module(self, module: nn.Module, move_to_device: bool = True) -> WrappedModule:
        """Make a module ready, without its optimizers."""
        _check_fresh("setup", module, nn.Module, "a module")
        precision = self.strategy.precision
        module = self.strategy.setup_module(module) if move_to_device else precision.convert_module(module)
        return WrappedModule(module, precision)

    def setup_optimizers(self, *optimizers: Optimizer) -> Any:
        """Make optimizers ready, apart from their module; one, or a tuple of several."""
        if not optimizers:
            raise ValueError("setup_optimizers() needs at least one optimizer.")
        made = tuple(self._wrap_optimizer(optimizer) for optimizer in optimizers)
        return made[0] if len(made) == 1 else made

    def setup_dataloaders(
        self, *loaders: DataLoader[Any], use_distributed_sampler: bool = True, move_to_device: bool = True
    ) -> Any:
        """Make loaders ready; one, or a list of several.

        Args:
            loaders: Each is kept as it is and iterated as it was made.
            use_distributed_sampler: Split the samples among the processes; on one device there is one share.
            move_to_device: Batches come on the device.

        Raises:
            ValueError: One is set up already.
            TypeError: One is not a DataLoader.
        """
        if not loaders:
            raise ValueError("setup_dataloaders() needs at least one loader.")
        for loader in loaders:
            _check_fresh("setup_dataloaders", loader, DataLoader, "a torch.utils.data.DataLoader")
        made = [WrappedLoader(loader, self.device if move_to_device else None) for loader in loaders]
        return made[0] if len(made) == 1 else made

    @contextmanager
    def init_module(self, empty_init: bool | None = None) -> Iterator[None]:
        """Modules made inside are on the device and in the precision's type from the start.

        With ``empty_init`` their weights are left uninitialised, which saves time before a checkpoint is loaded.
        """
        with ExitStack() as stack:
            stack.enter_context(self.init_tensor())
            if empty_init:
                stack.enter_context(_WithoutInit())
            yield

    @contextmanager
    def init_tensor(self) -> Iterator[None]:
        """Tensors made inside are on the device and in the precision's type from the start."""
        with self.device, self.strategy.precision.init_context():
            yield

    @staticmethod
    def seed_everything(seed: int | None = None, workers: bool | None = None, verbose: bool = True) -> int:
        """Seed Python, NumPy and torch, loader workers included; returns the seed."""
        return seed_everything(seed, workers=bool(workers), verbose=verbose)

    # In the loop.

    def backward(self, tensor: Tensor, *args: Any, model: nn.Module | None = None, **kwargs: Any) -> None:
        """In place of ``tensor.backward(...)``. On one device ``model`` need not be named."""
        self.strategy.precision.backward(tensor, *args, **kwargs)

    def clip_gradients(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        clip_val: float | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        error_if_nonfinite: bool = True,
    ) -> Tensor | None:
        """Clip the gradients that ``optimizer`` steps on, once before each step.

        Args:
            module: The module they belong to.
            optimizer: Its optimizer.
            clip_val: The largest absolute value an element may have.
            max_norm: The largest norm they may have together.
            norm_type: Which norm.
            error_if_nonfinite: Raise RuntimeError when the norm is not finite, which waits for the device.

        Returns:
            The norm before clipping, shape ``()``; None with ``clip_val``.

        Raises:
            ValueError: Both of ``clip_val`` and ``max_norm`` are given, or none.
        """
        if (clip_val is None) == (max_norm is None):
            raise ValueError(f"clip_gradients(clip_val={clip_val}, max_norm={max_norm}): give one of the two.")
        precision, optimizer = self.strategy.precision, unwrap(optimizer)
        precision.unscale(optimizer)
        if clip_val is not None:
            return precision.clip_gradients(optimizer, clip_val, "value")
        assert max_norm is not None
        return precision.clip_gradients(optimizer, max_norm, norm_type=norm_type, error_if_nonfinite=error_if_nonfinite)

    def autocast(self) -> AbstractContextManager[Any]:
        """Compute in the chosen precision outside the module, such as a loss."""
        return self.strategy.precision.forward_context()

    def no_backward_sync(self, module: nn.Module, enabled: bool = True) -> AbstractContextManager[Any]:
        """Keep gradients in this process while they accumulate; on one device there is nothing to keep back."""
        if not isinstance(module, WrappedModule):
            raise TypeError(
                f"no_backward_sync() takes what setup() returned, got {type(module).__name__}. "
                "Write model = fabric.setup(model) first."
            )
        return self.strategy.no_sync(module) if enabled else ExitStack()

    def to_device(self, obj: Any) -> Any:
        """``obj``, a module, a tensor or a nested batch, on the device; a module is changed in place."""
        return obj.to(self.device) if isinstance(obj, nn.Module) else move_data_to_device(obj, self.device)

    # Between processes.

    def all_gather(self, data: T, group: Any = None, sync_grads: bool = False) -> T:
        """The data of all processes, stacked in a new first dimension; on one device ``data`` as it is."""
        return self.strategy.all_gather(data, sync_grads)

    def all_reduce(self, data: T, group: Any = None, reduce_op: str = "mean") -> T:
        """The data of all processes made one by ``reduce_op``, such as ``"mean"``, ``"sum"`` or ``"max"``."""
        return self.strategy.reduce(data, reduce_op)

    def broadcast(self, obj: T, src: int = 0) -> T:
        """The ``obj`` of process ``src``, in every process."""
        return self.strategy.broadcast(obj, src)

    def barrier(self, name: str | None = None) -> None:
        """Wait until every process is here."""
        self.strategy.barrier(name)

    @contextmanager
    def rank_zero_first(self, local: bool = False) -> Iterator[None]:
        """Process 0, or the first of each machine if ``local``, runs the block before the others."""
        first = (self.local_rank if local else self.global_rank) == 0
        if not first:
            self.barrier()
        try:
            yield
        finally:
            if first:
                self.barrier()

    # Checkpoints.

    def save(
        self, path: Any, state: Mapping[str, Any], filter: Mapping[str, Callable[[str, Any], bool]] | None = None
    ) -> None:
        """Write ``state`` to a file: the state dicts of what has one, such as modules, and the rest as it is.

        Args:
            path: Where to.
            state: Modules, optimizers, schedulers and plain values, by name.
            filter: For some of these names, which entries of the state dict to keep: called with name and value.

        Raises:
            ValueError: ``filter`` has a name that ``state`` has not.
            TypeError: ``filter`` is not a mapping of functions, or names something without a state dict.
        """
        self.strategy.save_checkpoint(_filtered(_state_of(state), filter), path)
        self.barrier("save")

    def load(
        self,
        path: Any,
        state: dict[str, Any] | None = None,
        strict: bool = True,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read what ``save`` wrote, into ``state``.

        Args:
            path: Where from.
            state: Modules, optimizers and the like take their state over; plain values are replaced in this dict.
            strict: Refuse a file in which a name of ``state``, or a module's weight, is missing or left over.
            weights_only: False runs code that the file may hold; None means True.

        Returns:
            What the file has beyond ``state``, on the CPU; everything if ``state`` is None.

        Raises:
            CheckpointError: The file cannot be read, or lacks a name of ``state``; nothing is changed then.
        """
        read = dict(self.strategy.load_checkpoint(path, "cpu", weights_only is not False))
        wanted = {} if state is None else state
        if strict and (missing := [name for name in wanted if name not in read]):
            raise CheckpointError(
                f"{path} has no {missing[0]!r}; it has: {', '.join(map(repr, read))}.{nearest(missing[0], read)} "
                "Use strict=False to load the others."
            )
        for name in [name for name in wanted if name in read]:
            if _has_state(wanted[name]):
                _load_state(wanted[name], read.pop(name), strict)
            else:
                wanted[name] = read.pop(name)
        self.barrier("load")
        return read

    def load_raw(self, path: Any, obj: Any, strict: bool = True, weights_only: bool | None = None) -> None:
        """Read a file that holds one state dict and nothing else, into a module or an optimizer."""
        _load_state(obj, self.strategy.load_checkpoint(path, "cpu", weights_only is not False), strict)

    # Telling the user.

    def print(self, *args: Any, **kwargs: Any) -> None:
        """``print``, in one process."""
        if self.is_global_zero:
            print(*args, **kwargs)

    def log(self, name: str, value: Any, step: int | None = None) -> None:
        """Send one value to the loggers."""
        self.log_dict({name: value}, step)

    def log_dict(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Send values to the loggers; waits for the device where a value is a tensor on it."""
        if not self.loggers or not self.is_global_zero:
            return
        numbers = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
        for logger in self.loggers:
            logger.log_metrics(numbers, step)

    def call(self, hook_name: str, *args: Any, **kwargs: Any) -> None:
        """Call the method ``hook_name`` of every callback that has one.

        Raises:
            TypeError: A callback has it as something that cannot be called.
        """
        for callback in self.callbacks:
            hook = getattr(callback, hook_name, None)
            if hook is None:
                continue
            if not callable(hook):
                raise TypeError(f"{type(callback).__name__}.{hook_name} is {hook!r}, which cannot be called.")
            hook(*args, **kwargs)

    def _wrap_optimizer(self, optimizer: Optimizer) -> WrappedOptimizer:
        _check_fresh("setup", optimizer, Optimizer, "an optimizer")
        self.strategy.precision.check_optimizer(optimizer)
        return WrappedOptimizer(optimizer, self.strategy.precision)


class _WithoutInit(TorchFunctionMode):
    """Functions of torch.nn.init leave their tensor as it is."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", "") != "torch.nn.init":
            return func(*args, **(kwargs or {}))
        return args[0] if args else (kwargs or {})["tensor"]


def _as_list(given: Any) -> list[Any]:
    if given is None:
        return []
    return list(given) if isinstance(given, list | tuple) else [given]


def _check_fresh(method: str, given: Any, kind: type, name: str) -> None:
    if unwrap(given) is not given:
        raise ValueError(f"{method}() got a {type(unwrap(given)).__name__} that is set up already. Set it up once.")
    if not isinstance(given, kind):
        raise TypeError(f"{method}() takes {name}, got {type(given).__name__}.")


def _has_state(value: Any) -> bool:
    return callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None))


def _state_of(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.state_dict() if _has_state(value) else value for name, value in state.items()}


def _load_state(target: Any, state: Any, strict: bool) -> None:
    if isinstance(target, nn.Module):
        target.load_state_dict(state, strict=strict)
    else:
        target.load_state_dict(state)


def _filtered(state: dict[str, Any], filter: Mapping[str, Callable[[str, Any], bool]] | None) -> dict[str, Any]:
    if filter is None:
        return state
    if not isinstance(filter, Mapping):
        raise TypeError(f"save(filter={filter!r}) takes a dict: a name of state to a function of name and value.")
    for name, keep in filter.items():
        if name not in state:
            raise ValueError(f"save(filter=) names {name!r}, which state has not.{nearest(name, state)}")
        if not callable(keep) or not isinstance(state[name], Mapping):
            raise TypeError(f"save(filter=) for {name!r} takes a function, and something with a state dict in state.")
        state[name] = {key: value for key, value in state[name].items() if keep(key, value)}
    return state
