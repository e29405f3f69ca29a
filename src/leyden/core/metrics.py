"""The running states of metric objects, for checkpoints; torchmetrics leaves them out of a module's state_dict."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn


def is_metric(value: Any) -> bool:
    """True for an object with ``update``, ``compute`` and ``reset``."""
    return all(callable(getattr(value, method, None)) for method in ("update", "compute", "reset"))


def running_states(module: nn.Module, copy: bool = False) -> dict[str, dict[str, Any]]:
    """What the metrics in ``module`` have counted since their last reset, by their names in it.

    Args:
        module: Where the metrics are.
        copy: Give values that do not change as the metrics go on.
    """
    return {
        name: {
            "updates": metric._update_count,
            "values": {key: _copy(value) if copy else value for key, value in metric.metric_state.items()},
        }
        for name, metric in _metrics(module)
        if metric._update_count
    }


def _copy(value: Any) -> Any:
    return list(value) if isinstance(value, list) else value.clone()  # what is in a list is not changed


def restore_running_states(module: nn.Module, states: dict[str, dict[str, Any]]) -> None:
    """Go on with ``running_states``. Metrics that are not here now are passed over."""
    for name, metric in _metrics(module):
        if name not in states:
            continue
        for key, value in states[name]["values"].items():
            # Copies, because metrics may add in place.
            parts = [part.to(metric.device, copy=True) for part in (value if isinstance(value, list) else [value])]
            setattr(metric, key, parts if isinstance(value, list) else parts[0])
        metric._update_count = states[name]["updates"]


def _metrics(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """The torchmetrics objects in ``module``, by their names in it."""
    for name, part in module.named_modules():
        if is_metric(part) and hasattr(part, "metric_state") and hasattr(part, "_update_count"):
            yield name, part
