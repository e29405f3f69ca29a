"""What the user wrote for accelerator=, devices=, precision= and strategy=, turned into objects."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import torch

from leyden.fabric.accelerators import ACCELERATORS, Accelerator, available_accelerators
from leyden.fabric.checkpoint_io import CheckpointIO
from leyden.fabric.precision import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from leyden.fabric.strategies.strategy import Strategy
from leyden.utils.errors import MisconfigurationError, NotBuiltError, nearest, warn

Plugin: TypeAlias = Precision | CheckpointIO

PRECISIONS = ("32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true")
PRECISION_ALIASES = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true"}
PRECISIONS_NOT_BUILT = ("transformer-engine", "transformer-engine-float16")

ACCELERATOR_NAMES = ("auto", "gpu", *ACCELERATORS)
ACCELERATORS_NOT_BUILT = ("tpu", "xla", "hpu", "ipu")

STRATEGIES = ("auto", "single_device")
_DDP = ("ddp", "ddp_spawn", "ddp_fork", "ddp_notebook")
STRATEGIES_NOT_BUILT = (
    *_DDP,
    *(f"{name}_find_unused_parameters_{found}" for name in _DDP for found in ("true", "false")),
    "dp",
    "fsdp",
    "fsdp_cpu_offload",
    "deepspeed",
    *(f"deepspeed_stage_{stage}" for stage in ("1", "2", "3", "1_offload", "2_offload", "3_offload", "3_offload_nvme")),
    "xla",
    "xla_debug",
    "xla_fsdp",
    "single_xla",
    "single_tpu",
)

_ONE_DEVICE = "One device works today: use devices=1."


def resolve_accelerator(accelerator: str | Accelerator) -> Accelerator:
    """The kind of device ``Trainer(accelerator=)`` names; ``"auto"`` is the best this machine has.

    Raises:
        ValueError: The name is unknown; the message lists the known ones.
        NotBuiltError: It names a kind of device that Leyden does not run on.
        MisconfigurationError: This machine has no such device; the message lists those it has.
    """
    if isinstance(accelerator, Accelerator):
        kind, name = type(accelerator), accelerator.name
    elif accelerator in ACCELERATORS_NOT_BUILT:
        raise NotBuiltError(f"accelerator={accelerator!r}", "It is not supported: use 'cuda', 'mps' or 'cpu'.")
    elif accelerator not in ACCELERATOR_NAMES:
        raise _unknown("accelerator", accelerator, ACCELERATOR_NAMES)
    else:
        name = accelerator
        if name == "auto":
            name = available_accelerators()[0]
        elif name == "gpu":
            name = "mps" if ACCELERATORS["mps"].is_available() else "cuda"
        kind = ACCELERATORS[name]
    if not kind.is_available():
        raise MisconfigurationError(
            f"accelerator={accelerator if isinstance(accelerator, str) else name!r} finds no such device here. "
            f"Available: {', '.join(available_accelerators())}."
        )
    return accelerator if isinstance(accelerator, Accelerator) else kind()


def resolve_devices(devices: int | str | list[int], accelerator: Accelerator) -> list[torch.device]:
    """The devices ``Trainer(devices=)`` asks for: a count, a list of ids, ``-1`` for all, or ``"auto"``.

    ``"auto"`` takes one device, since one works today; with several GPUs it says so. As text, ``"1"`` is a count
    and ``"1,"`` or ``"0,1"`` are ids.

    Raises:
        MisconfigurationError: No device is asked for, one twice, or one that is not here.
        NotBuiltError: More than one device is asked for.
    """
    count = accelerator.count()
    if devices == "auto":
        if count > 1:
            warn(
                "LD150",
                f"devices='auto' uses 1 of the {count} {accelerator.name} devices: training on several is not built "
                "yet in Leyden. Say devices=1 to make this your choice.",
            )
        return [accelerator.device(0)]
    wanted = _parse_devices(devices)
    if wanted == -1:
        wanted = count
    ids = list(range(wanted)) if isinstance(wanted, int) else wanted
    if not ids:
        raise MisconfigurationError(f"devices={devices!r} asks for no device. Use devices=1 or devices='auto'.")
    if len(set(ids)) < len(ids):
        raise MisconfigurationError(f"devices={devices!r} names a device twice.")
    # On the CPU a number of devices is a number of processes, which no machine runs out of.
    missing = [] if isinstance(wanted, int) and accelerator.name == "cpu" else sorted(set(ids) - set(range(count)))
    if missing:
        raise MisconfigurationError(
            f"devices={devices!r} asks for {accelerator.name} devices that are not here: {_join(missing)}. "
            f"Available: {_join(range(count))}."
        )
    if len(ids) > 1:
        raise NotBuiltError(f"devices={devices!r}, which is {len(ids)} devices,", _ONE_DEVICE)
    return [accelerator.device(ids[0])]


def canonical_precision(name: str | int) -> str:
    """Spell a ``Trainer(precision=...)`` value out in full.

    >>> canonical_precision(16)
    '16-mixed'

    Raises:
        ValueError: The name is unknown; the message lists the known ones.
        NotBuiltError: Lightning has it and Leyden has not yet.
    """
    full = PRECISION_ALIASES.get(str(name), str(name))
    if full in PRECISIONS_NOT_BUILT:
        raise NotBuiltError(f"precision={name!r}", "Use precision='bf16-mixed' or 'bf16-true'.")
    if full not in PRECISIONS:
        raise _unknown("precision", name, PRECISIONS)
    return full


def resolve_precision(name: str | int | Precision | None, device: torch.device) -> Precision:
    """The object behind ``Trainer(precision=)`` for ``device``; None is ``"32-true"``.

    Raises:
        ValueError: The name is unknown; the message lists the known ones.
        MisconfigurationError: ``device`` cannot compute in it.
        NotBuiltError: Lightning has it and Leyden has not yet.
    """
    if isinstance(name, Precision):
        return name
    full = "32-true" if name is None else canonical_precision(name)
    if full == "16-mixed" and device.type == "cpu":
        warn(
            "LD151",
            f"precision={name!r} on the CPU is taken as 'bf16-mixed', since CPUs are slow in float16. "
            "Say precision='bf16-mixed' to make this your choice.",
        )
        full = "bf16-mixed"
    if full == "64-true" and device.type == "mps":
        raise MisconfigurationError("precision='64-true' cannot work on mps, which has no float64. Use '32-true'.")
    if full.endswith("-mixed"):
        return MixedPrecision(full, device)
    if full in ("16-true", "bf16-true"):
        return HalfPrecision(full)
    return DoublePrecision() if full == "64-true" else Precision()


def resolve_strategy(
    strategy: str | Strategy,
    devices: list[torch.device],
    num_nodes: int,
    precision: Precision,
    checkpoint_io: CheckpointIO | None = None,
) -> Strategy:
    """The object behind ``Trainer(strategy=)``; a Strategy is taken as it is, if nothing else contradicts it.

    Raises:
        ValueError: The name is unknown, the message lists the known ones; or ``num_nodes`` is not a count.
        NotBuiltError: Several nodes, or a strategy for several devices, are asked for.
        MisconfigurationError: A Strategy object has another device, precision or checkpoint_io than the one given.
    """
    if isinstance(num_nodes, bool) or not isinstance(num_nodes, int) or num_nodes < 1:
        raise ValueError(f"num_nodes={num_nodes!r} is not a whole number from 1 up.")
    if num_nodes > 1:
        raise NotBuiltError(f"num_nodes={num_nodes}", "One node works today: use num_nodes=1.")
    if isinstance(strategy, Strategy):
        _refuse_contradiction(strategy, devices[0], precision, checkpoint_io)
        return strategy
    if strategy in STRATEGIES_NOT_BUILT:
        raise NotBuiltError(f"strategy={strategy!r}", "One device works today: use strategy='auto' and devices=1.")
    if strategy not in STRATEGIES:
        raise _unknown("strategy", strategy, STRATEGIES, also=STRATEGIES_NOT_BUILT)
    return Strategy(devices[0], precision, checkpoint_io)


def resolve_plugins(
    plugins: Plugin | list[Plugin] | None, precision: str | int | Precision | None
) -> tuple[str | int | Precision | None, CheckpointIO | None]:
    """The precision in force and the checkpoint_io among ``Trainer(plugins=)``; each at most once.

    Raises:
        MisconfigurationError: A plugin of another kind, two of one kind, or a precision given twice.
    """
    given = plugins if isinstance(plugins, list | tuple) else [] if plugins is None else [plugins]
    precisions = [plugin for plugin in given if isinstance(plugin, Precision)]
    writers = [plugin for plugin in given if isinstance(plugin, CheckpointIO)]
    if other := [plugin for plugin in given if not isinstance(plugin, Precision | CheckpointIO)]:
        raise MisconfigurationError(
            f"plugins={other[0]!r} is not understood. Use a Precision, a CheckpointIO, or both."
        )
    if max(len(precisions), len(writers)) > 1:
        raise MisconfigurationError(f"plugins={given!r} has two of a kind. Give one Precision and one CheckpointIO.")
    if precisions and precision is not None:
        raise MisconfigurationError(
            f"precision={precision!r} and plugins=[{type(precisions[0]).__name__}(...)] both choose a precision. "
            "Give one of them."
        )
    return precisions[0] if precisions else precision, writers[0] if writers else None


def resolve_hardware(
    accelerator: str | Accelerator,
    strategy: str | Strategy,
    devices: int | str | list[int],
    num_nodes: int,
    precision: str | int | Precision | None,
    plugins: Plugin | list[Plugin] | None,
) -> tuple[Accelerator, Strategy]:
    """All of them together, in the order they depend on each other; what is left open, a Strategy object decides."""
    precision, checkpoint_io = resolve_plugins(plugins, precision)
    if isinstance(strategy, Strategy):
        precision = strategy.precision if precision is None else precision
        accelerator = strategy.device.type if accelerator == "auto" else accelerator
        devices = [strategy.device.index or 0] if devices == "auto" else devices
    accelerator = resolve_accelerator(accelerator)
    chosen = resolve_devices(devices, accelerator)
    return accelerator, resolve_strategy(
        strategy, chosen, num_nodes, resolve_precision(precision, chosen[0]), checkpoint_io
    )


def _parse_devices(devices: int | str | list[int]) -> int | list[int]:
    """A count (-1 for all), or ids."""
    parsed: object = devices
    if isinstance(devices, str):
        try:
            parsed = [int(part) for part in devices.split(",") if part.strip()] if "," in devices else int(devices)
        except ValueError:
            parsed = None
    if isinstance(parsed, list) and all(type(item) is int for item in parsed):
        return parsed
    if type(parsed) is int and parsed >= -1:
        return parsed
    raise MisconfigurationError(
        f"devices={devices!r} is not understood. Use 'auto', a count such as 1, -1 for all, or ids such as [0] or '0,'."
    )


def _refuse_contradiction(
    strategy: Strategy, device: torch.device, precision: Precision, checkpoint_io: CheckpointIO | None
) -> None:
    brings: object
    if (strategy.device.type, strategy.device.index or 0) != (device.type, device.index or 0):
        ours, brings = f"accelerator= and devices= choose {device}", strategy.device
    elif strategy.precision.name != precision.name:
        ours, brings = f"precision={precision.name!r} is given", strategy.precision.name
    elif checkpoint_io not in (None, strategy.checkpoint_io):
        ours, brings = f"plugins= has {checkpoint_io!r}", strategy.checkpoint_io
    else:
        return
    raise MisconfigurationError(
        f"strategy={type(strategy).__name__}(...) brings {brings}, but {ours}. Give it in one place only."
    )


def _unknown(argument: str, given: object, names: Iterable[str], also: Iterable[str] = ()) -> ValueError:
    names = list(names)
    hint = nearest(given, [*names, *also])
    return ValueError(f"{argument}={given!r} is unknown. Choose one of: {', '.join(names)}.{hint}")


def _join(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))
