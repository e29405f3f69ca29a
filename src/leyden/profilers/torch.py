"""PyTorchProfiler: the operators and kernels of a few batches, by torch.profiler."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.autograd.profiler_util import EventList
from torch.profiler import ProfilerAction, record_function

from leyden.profilers.profiler import Profiler
from leyden.utils.errors import MisconfigurationError, nearest, warn
from leyden.utils.paths import AnyPath, is_remote, join, make_dirs
from leyden.utils.rank import is_rank_zero

_OPTIONS = tuple(name for name in inspect.signature(torch.profiler.profile.__init__).parameters if name != "self")
_TABLE_OPTIONS = tuple(
    name for name in inspect.signature(EventList.table).parameters if name not in ("self", "sort_by", "row_limit")
)
SORT_KEYS = (
    "count",
    *(
        f"{own}{device}_{what}"
        for own in ("", "self_")
        for device in ("cpu", "device", "cuda")
        for what in ("time_total", "memory_usage")
    ),
    *(f"{device}_time" for device in ("cpu", "device", "cuda")),
)


class PyTorchProfiler(Profiler):
    """Records what torch does in some batches of a run: a trace to look at, and a table of operators.

    A schedule says which batches; by default the first is left alone, one warms up, and three are recorded. In fit it
    counts training batches, of which a validation between two is part of the first, and no sanity check; in the other
    methods, their batches. Actions and, by name, the module's layers are regions in the trace.

    Traces go to ``{stage}-{filename}.{number}.pt.trace.json``, for Perfetto, chrome://tracing or TensorBoard. The
    report is the table of the batches recorded last.
    """

    def __init__(
        self,
        dirpath: AnyPath | None = None,
        filename: str | None = None,
        group_by_input_shapes: bool = False,
        emit_nvtx: bool = False,
        export_to_chrome: bool = True,
        row_limit: int = 20,
        sort_by_key: str | None = None,
        record_module_names: bool = True,
        table_kwargs: dict[str, Any] | None = None,
        **profiler_kwargs: Any,
    ) -> None:
        """Choose what to record and show.

        Args:
            dirpath: Folder of traces and report. None is the folder of the first logger, and the report is printed if
                ``filename`` is None too.
            filename: Goes into the names of the files.
            group_by_input_shapes: A row of the table for every combination of operator and shapes of its inputs.
            emit_nvtx: Mark regions for NVIDIA's Nsight Systems, which has to record this process, instead of
                recording here. Needs CUDA.
            export_to_chrome: Write traces.
            row_limit: Rows of the table; -1 for all.
            sort_by_key: Column to sort the table by, one of ``SORT_KEYS``. None is the total time on the GPU if there
                is one, else on the CPU.
            record_module_names: Make a region of every call of a layer.
            table_kwargs: More arguments for the table of ``torch.profiler``.
            **profiler_kwargs: Arguments of ``torch.profiler.profile``, such as ``schedule`` or ``profile_memory``.

        Raises:
            MisconfigurationError: A name is unknown, or the schedule is none.
        """
        super().__init__(dirpath, filename)
        _check_known("PyTorchProfiler", profiler_kwargs, _OPTIONS)
        _check_known("PyTorchProfiler(table_kwargs=...)", table_kwargs or {}, _TABLE_OPTIONS)
        if sort_by_key is not None and sort_by_key not in SORT_KEYS:
            raise MisconfigurationError(
                f"PyTorchProfiler(sort_by_key={sort_by_key!r}) is unknown. Choose one of: {', '.join(SORT_KEYS)}."
                f"{nearest(sort_by_key, SORT_KEYS)}"
            )
        if emit_nvtx and not torch.cuda.is_available():
            raise MisconfigurationError("PyTorchProfiler(emit_nvtx=True) needs CUDA, which is not here. Leave it out.")
        self.options: dict[str, Any] = {"schedule": torch.profiler.schedule(wait=1, warmup=1, active=3, repeat=1)}
        self.options.update(profiler_kwargs)
        _check_schedule(self.options["schedule"])
        if group_by_input_shapes:
            self.options["record_shapes"] = True
        self.group_by_input_shapes = group_by_input_shapes
        self.emit_nvtx = emit_nvtx
        self.export_to_chrome = export_to_chrome
        self.row_limit = row_limit
        self.sort_by_key = sort_by_key or ("device_time_total" if torch.cuda.is_available() else "cpu_time_total")
        self.record_module_names = record_module_names
        self.table_kwargs = dict(table_kwargs or {})
        self._profile: torch.profiler.profile | None = None
        self._nvtx: Any = None
        self._regions: dict[str, Any] = {}
        self._handles: list[Any] = []
        self._batches = 0  # that have ended
        self._depth = 0  # batches inside batches
        self._traces = 0
        self._table = ""

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        """A run begins: the schedule starts anew."""
        super().setup(stage, local_rank, log_dir)
        self._batches = self._depth = self._traces = 0
        self._table = ""
        if self.emit_nvtx:
            nvtx: Any = torch.autograd.profiler.emit_nvtx
            self._nvtx = nvtx(record_shapes=bool(self.options.get("record_shapes")))
            self._nvtx.__enter__()
        else:
            self._profile = torch.profiler.profile(**self.options | {"on_trace_ready": self._take_trace})
            self._profile.start()

    def watch(self, module: Any) -> None:
        """Make regions of the calls of its layers."""
        if not self.record_module_names:
            return
        for name, part in module.named_modules():
            if name:
                regions: list[Any] = []  # a layer may call itself
                label = f"[nn.Module]{name}: {type(part).__name__}"
                self._handles += [
                    part.register_forward_pre_hook(partial(_enter, label, regions)),
                    part.register_forward_hook(partial(_leave, regions), always_call=True),
                ]

    def start(self, action_name: str) -> None:
        """Begin a region."""
        if self._profile is None and self._nvtx is None:
            return
        if _is_batch(action_name):
            self._depth += 1
        self._regions[action_name] = _region(action_name)

    def stop(self, action_name: str) -> None:
        """End a region; after a batch, follow the schedule.

        Raises:
            MisconfigurationError: It has not begun.
        """
        if self._profile is None and self._nvtx is None:
            return
        region = self._regions.pop(action_name, None)
        if region is None:
            raise MisconfigurationError(
                f"{type(self).__name__}.stop({action_name!r}): it has not started. Call start({action_name!r}) first."
            )
        region.__exit__(None, None, None)
        if _is_batch(action_name):
            self._depth -= 1
            if self._depth == 0:
                self._batches += 1
                if self._profile is not None:
                    self._profile.step()

    def summary(self) -> str:
        """The table of the batches recorded last; empty before the first are done."""
        return f"{type(self).__name__}, {self.stage or 'so far'}\n{self._table}" if self._table else ""

    def describe(self) -> None:
        """Stop recording, and print or write the table."""
        recorded = self._profile is not None
        self.teardown()
        if recorded and not self._table:
            warn(
                "LD200",
                f"PyTorchProfiler recorded nothing: the run ended after {self._batches} batches, before the schedule's "
                "first recording. Give a shorter one, or schedule=None to record every batch.",
            )
        super().describe()

    def teardown(self, stage: str | None = None) -> None:
        """The run is over: stop recording, and let go of the layers."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for region in reversed(self._regions.values()):
            region.__exit__(None, None, None)
        self._regions.clear()
        profile, self._profile = self._profile, None
        if profile is not None:
            profile.stop()
        nvtx, self._nvtx = self._nvtx, None
        if nvtx is not None:
            nvtx.__exit__(None, None, None)

    def _take_trace(self, profile: torch.profiler.profile) -> None:
        """A recording is done: keep its table, write its trace."""
        table = profile.key_averages(group_by_input_shape=self.group_by_input_shapes).table(
            sort_by=self.sort_by_key, row_limit=self.row_limit, **self.table_kwargs
        )
        self._table = table or self._table
        if (ready := self.options.get("on_trace_ready")) is not None:
            ready(profile)
        if self.export_to_chrome and is_rank_zero():
            self._export(profile, f"{self._prefix()}.{self._traces}.pt.trace.json")
            self._traces += 1

    def _export(self, profile: torch.profiler.profile, name: str) -> None:
        folder = self._folder()
        if not is_remote(folder):
            make_dirs(folder)
            profile.export_chrome_trace(join(folder, name))
            return
        with tempfile.TemporaryDirectory() as temporary:  # torch writes to local paths only
            file = Path(temporary, name)
            profile.export_chrome_trace(str(file))
            self._write(name, file.read_bytes())


def _is_batch(action: str) -> bool:
    """True for the actions that the schedule counts."""
    return action.startswith("run_") and action.endswith("_batch") and action != "run_sanity_check_batch"


def _region(label: str) -> Any:
    region: Any = record_function(label)
    region.__enter__()
    return region


def _enter(label: str, regions: list[Any], *_: Any) -> None:
    regions.append(_region(label))


def _leave(regions: list[Any], *_: Any) -> None:
    if regions:
        regions.pop().__exit__(None, None, None)


def _check_known(where: str, given: dict[str, Any], known: tuple[str, ...]) -> None:
    for name in given:
        if name not in known:
            raise MisconfigurationError(
                f"{where} does not know {name!r}. It takes: {', '.join(known)}.{nearest(name, known)}"
            )


def _check_schedule(schedule: Callable[[int], Any] | None) -> None:
    if schedule is None:
        return
    if not callable(schedule) or not isinstance(schedule(0), ProfilerAction):
        raise MisconfigurationError(
            f"PyTorchProfiler(schedule={schedule!r}) is no schedule. Give torch.profiler.schedule(wait=1, warmup=1, "
            "active=3), or None to record every batch."
        )
