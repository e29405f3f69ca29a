"""TensorBoardLogger: metrics, hyper-parameters and the model's graph as TensorBoard events."""

from __future__ import annotations

import inspect
import io
import os
import struct
import warnings
from argparse import Namespace
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any

import torch
from torch import nn

from leyden.loggers.folders import (
    DEFAULT_NAME,
    RunFolder,
    flat,
    number,
    params_dict,
    pinned,
    with_prefix,
    write_hparams,
)
from leyden.loggers.logger import DummyLogger, Logger
from leyden.utils.errors import nearest, warn
from leyden.utils.optional import require
from leyden.utils.paths import AnyPath, join
from leyden.utils.rank import is_rank_zero, rank_zero_only
from leyden.utils.seed import isolate_rng
from leyden.utils.tree import move_data_to_device

WRITER_OPTIONS = ("purge_step", "max_queue", "flush_secs", "filename_suffix")

_HP_METRIC = "hp_metric"


class TensorBoardLogger(Logger):
    """Writes TensorBoard's event files and hparams.yaml to ``save_dir/name/version_N[/sub_dir]``, local or remote.

    The folder is made when there is something to write. ``tensorboard --logdir save_dir`` shows it.

    Attributes:
        hparams: Hyper-parameters logged so far.
    """

    def __init__(
        self,
        save_dir: AnyPath,
        name: str | None = DEFAULT_NAME,
        version: int | str | None = None,
        log_graph: bool = False,
        default_hp_metric: bool = True,
        prefix: str = "",
        sub_dir: AnyPath | None = None,
        **writer_options: Any,
    ) -> None:
        """Say where and what to write.

        Args:
            save_dir: Folder of all experiments; a URL such as ``s3://bucket/logs`` too.
            name: Name of the experiment, the folder below; None or ``""`` for no such folder.
            version: Which run: a number N for the folder ``version_N``, or the folder's name. None takes the number
                above those that are there.
            log_graph: Record the model's graph, by one forward pass in eval mode on its ``example_input_array``.
            default_hp_metric: Log the metric ``hp_metric`` as -1 beside the hyper-parameters until you log one:
                TensorBoard lists runs in its HPARAMS tab by their metrics.
            prefix: Put before every metric's name, with a ``-`` between.
            sub_dir: Folder below the version for the events and hparams.yaml; ``~`` and environment variables in it
                are replaced.
            writer_options: ``purge_step``, ``max_queue``, ``flush_secs``, ``filename_suffix`` of SummaryWriter.

        Raises:
            TypeError: SummaryWriter has no such option here; or ``save_dir``, ``name`` or ``version`` is of another
                type.
            ValueError: ``version`` is negative.
        """
        for option in writer_options:
            if option not in WRITER_OPTIONS:
                raise TypeError(_refusal(option))
        self._folder = RunFolder(save_dir, name, version)
        self._sub_dir = None if sub_dir is None else os.path.expanduser(os.path.expandvars(os.fspath(sub_dir)))
        self._log_graph = log_graph
        self._default_hp_metric = default_hp_metric
        self._prefix = prefix
        self._writer_options = writer_options
        self._experiment: Any = None
        self._has_hp_metric = False
        self._recorded: object = None  # the hyper-parameters and metrics that TensorBoard knows of
        self.hparams: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        # A copy, or another process, opens a file of its own: the writer has a thread and a lock.
        return {**self.__dict__, "_experiment": None}

    @property
    def name(self) -> str:
        """Name of the experiment; empty when there is none."""
        return self._folder.name

    @property
    def version(self) -> int | str:
        """Which run of the experiment; chosen when first asked, so ask on one process only and tell the others."""
        return self._folder.version

    @property
    def save_dir(self) -> str:
        """Folder of all experiments."""
        return self._folder.save_dir

    @property
    def root_dir(self) -> str:
        """Folder of all versions of this experiment."""
        return self._folder.root

    @property
    def log_dir(self) -> str:
        """Folder of this run, ``sub_dir`` included; there once something was written."""
        return join(self._folder.path, self._sub_dir) if self._sub_dir else self._folder.path

    @property
    def experiment(self) -> Any:
        """The SummaryWriter, which makes the folder; on other processes than the first an object that does nothing."""
        if self._experiment is None:
            if not is_rank_zero():
                return DummyLogger().experiment
            require("tensorboard", "TensorBoardLogger")
            from torch.utils.tensorboard import SummaryWriter

            self._experiment = SummaryWriter(pinned(self.log_dir), **self._writer_options)
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Record ``metrics`` at ``step``; the values of a mapping in it share one chart.

        Raises:
            TypeError: A value is neither one number nor a mapping of numbers.
        """
        self._has_hp_metric = self._has_hp_metric or _HP_METRIC in metrics
        scalars = []
        for name, value in with_prefix(metrics, self._prefix).items():
            if isinstance(value, Mapping):
                values = {str(key): number(f"{name}/{key}", item) for key, item in value.items()}
                self.experiment.add_scalars(name, values, step)
            else:
                scalars.append({"tag": name, "simple_value": number(name, value)})
        if scalars:
            self._add_summary(step, *scalars)

    @rank_zero_only
    def log_media(self, name: str, media: Any, step: int | None = None) -> None:
        """Record an image, figure, sound, text, histogram or table where TensorBoard shows it; a table as Markdown."""
        tag = f"{self._prefix}-{name}" if self._prefix else name
        if media.kind == "image":
            self._add_summary(step, {"tag": tag, "image": _image_fields(media.encoded(name))})
        elif media.kind == "audio":
            channels, length = media.samples.shape
            fields = {"sample_rate": media.sample_rate, "num_channels": channels, "length_frames": length}
            fields |= {"encoded_audio_string": media.encoded(name), "content_type": "audio/wav"}
            self._add_summary(step, {"tag": tag, "audio": fields})
        elif media.kind == "histogram":
            if (values := media.finite(name)).numel():
                self.experiment.add_histogram(tag, values, step)
        elif media.kind in ("text", "table"):
            self.experiment.add_text(tag, media.text if media.kind == "text" else media.markdown(), step)
        else:
            super().log_media(tag, media, step)

    def _add_summary(self, step: int | None, *values: dict[str, Any]) -> None:
        # By hand: SummaryWriter makes an event of every number, which its thread then writes one by one, has PIL encode
        # images and pyplot draw figures, and knows sound in mono only.
        writer = self.experiment._get_file_writer()
        summary = require("tensorboard.compat.proto.summary_pb2", "TensorBoardLogger").Summary
        writer.add_summary(summary(value=values), step)

    @rank_zero_only
    def log_hyperparams(
        self,
        params: Mapping[str, Any] | Namespace,
        metrics: Mapping[str, Any] | float | None = None,
        step: int | None = None,
    ) -> None:
        """Add ``params`` to hparams.yaml, at once, and list the run in TensorBoard's HPARAMS tab.

        The tab shows the parameters of the first call that had any; hparams.yaml has those of all.

        Args:
            params: Nested ones are listed as ``outer/inner``; objects are written as their text.
            metrics: Metrics to list the run by, with their values now; a number is the value of ``hp_metric``.
            step: Where to record the metrics.

        Raises:
            TypeError: ``params`` is neither a mapping nor a Namespace, or a metric is not one number.
        """
        self.hparams.update(params_dict(params))
        standing_in = metrics is None
        if metrics is None:
            metrics = {_HP_METRIC: -1.0} if self.hparams and self._default_hp_metric else {}
        elif not isinstance(metrics, Mapping):
            metrics = {_HP_METRIC: metrics}
        if self.hparams:
            write_hparams(self.experiment.log_dir, self.hparams)
        if not (standing_in and self._has_hp_metric):
            self.log_metrics(metrics, step)
        if self.hparams or metrics:
            self._record(flat(self.hparams), with_prefix(metrics, self._prefix), step)

    def _record(self, params: dict[str, Any], metrics: dict[str, Any], step: int | None) -> None:
        """Tell the HPARAMS tab, in this run's own events: SummaryWriter.add_hparams would open a run beside it."""
        if (params, [*metrics]) == self._recorded:
            return
        self._recorded = (params, [*metrics])
        writer = self.experiment._get_file_writer()
        for summary in require("torch.utils.tensorboard.summary", "TensorBoardLogger").hparams(params, metrics):
            writer.add_summary(summary, step)

    @rank_zero_only
    def log_graph(self, model: nn.Module, input_array: Any = None) -> None:
        """Record the graph of ``model``, if the logger was made with ``log_graph=True``; warn where it cannot be.

        Args:
            model: Its modes and the random generators are left as they are.
            input_array: An input for ``forward`` (a tensor, a tuple of arguments, a dict of keyword arguments);
                default ``model.example_input_array``.
        """
        if not self._log_graph:
            return
        name = type(model).__name__
        inputs = getattr(model, "example_input_array", None) if input_array is None else input_array
        if inputs is None:
            warn(
                "LD112",
                f"TensorBoardLogger(log_graph=True) needs an input for {name}.forward. "
                f"Set {name}.example_input_array, for example to a batch of one sample.",
            )
            return
        try:
            self._trace(model, inputs)
        except Exception as error:  # whatever forward may raise; a picture is not worth the run
            warn("LD113", f"The graph of {name} cannot be recorded: {type(error).__name__}: {error}", subject=name)

    def _trace(self, model: nn.Module, inputs: Any) -> None:
        parameter = next(model.parameters(), None)
        inputs = move_data_to_device(inputs, "cpu" if parameter is None else parameter.device)
        if isinstance(inputs, Mapping):
            inputs = _by_position(model, inputs)
        modes = [(module, module.training) for module in model.modules()]
        # add_graph prints what it raises, and tracing warns of every branch in Python.
        with isolate_rng(), torch.no_grad(), redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                self.experiment.add_graph(model, inputs, use_strict_trace=False)
            finally:
                for module, training in modes:  # add_graph would leave frozen modules in train mode
                    module.training = training

    @rank_zero_only
    def save(self) -> None:
        """Write the events that wait."""
        if self._experiment is not None:
            self._experiment.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the events that wait; after a success close the file too. What is logged later opens another."""
        self.save()
        if self._experiment is not None and status == "success":
            self._experiment.close()


def _image_fields(png: bytes) -> dict[str, Any]:
    """A PNG as TensorBoard records it: with the size and the number of channels that its header tells."""
    width, height, _, colours = struct.unpack(">IIBB", png[16:26])
    channels = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}[colours]
    return {"height": height, "width": width, "colorspace": channels, "encoded_image_string": png}


def _by_position(model: nn.Module, inputs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Arguments of ``forward`` given by name, in its order, which is all that tracing takes."""
    bound = inspect.signature(model.forward).bind(**inputs)
    if bound.kwargs:
        raise TypeError(f"forward takes {', '.join(bound.kwargs)} by name only, or after one that is not given.")
    return bound.args


def _refusal(option: str) -> str:
    if option in ("log_dir", "comment"):
        return f"TensorBoardLogger does not take {option}=: save_dir, name, version and sub_dir say where it writes."
    return (
        f"TensorBoardLogger does not take {option}=. Of SummaryWriter's options it takes "
        f"{', '.join(WRITER_OPTIONS)}.{nearest(option, WRITER_OPTIONS)}"
    )
