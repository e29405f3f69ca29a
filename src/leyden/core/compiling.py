"""Trainer(compile=): a training step compiled by torch, and the step as it is wherever that does not work."""

from __future__ import annotations

import copy
import itertools
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FunctionType
from typing import Any

import torch
import torch._functorch.config as functorch_config
from torch import Tensor
from torch._dynamo import eval_frame, patch_dynamo_config
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch._dynamo.utils import guard_failures
from torch._ops import OpOverload, OpOverloadPacket
from torch.fx import GraphModule

from leyden.core.compiled_step import CompiledStep, tracing, why_not
from leyden.core.hooks import overrides
from leyden.core.module import LightningModule
from leyden.utils.errors import warn
from leyden.utils.rank import say
from leyden.utils.seed import isolate_rng
from leyden.utils.tree import tree_leaves

# Batches of other shapes than the first one's that go through the step as it is, in each epoch: as a rule there is one,
# the last. A loader that gives more of them has them compiled too.
_ODD = 8
# What "auto" measures: rounds of so many steps, as long as they take no more seconds in all.
_ROUNDS, _STEPS, _SECONDS = 5, 4, 1.0
# What torch raises where it cannot compile.
FAILURES = (TorchDynamoException, FailOnRecompileLimitHit)
_NUMBERS = itertools.count()
# Not public: without them every call is torch.compile's.
_under_stance: Any = getattr(eval_frame, "_callback_from_stance", None)
_set_eval_frame: Any = getattr(eval_frame, "set_eval_frame", None)


class _NothingFits(Exception):
    """No graph that was compiled so far is right for a call; none has run."""


class Compiling:
    """What is compiled in one run.

    Attributes:
        mode: ``"model"``, ``"step"`` or ``"eager"``, as it is at the time; ``"auto"`` until it has been measured.
        usual: The shapes of the first batch's tensors.
        how: What torch.compile was given, where fit was given what that made of the module.
        replays: A compiled step is one CUDA graph, which is replayed.
        compilations: For each compilation the shapes of the batch in work, and what made torch compile anew.
    """

    def __init__(self, run: Any) -> None:
        self.run = run
        self.asked: str = run.options.compile
        self.how = how = run.trainer._torch_compile
        self._name = "torch.compile(model)" if how and not run.trainer.options.compile else f"compile={self.asked!r}"
        self.mode = self.asked
        self.usual: list[tuple[int, ...]] | None = None
        self.compilations: list[tuple[list[tuple[int, ...]], str]] = []
        self.recorder = Recorder()
        self.replays = can_replay(run.strategy.device) and (how is None or how.lets_replay)
        self._tables = [vars(part) for part in run.module.modules() if isinstance(part, LightningModule)]
        self._results = None if run.options.barebones else run.results
        self._codes: list[Any] = []
        self._odd = 0
        self._any_shape = bool(how and how.dynamo.get("dynamic"))
        self._batch: Any = None
        self._step: CompiledStep | None = None
        self._is_measuring = False
        self._has_begun = False
        if how and how.asks_for_replays and can_replay(run.strategy.device) and self.asked == "model":
            say(f"{self._name}: without CUDA graphs, which are made of whole steps only: Trainer(compile='step').")

    def forward(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """``step``, a step method of the module, which goes its compiled way in the mode ``"model"``."""
        compiled: Callable[..., Any] | None = None

        def forward(*args: Any) -> Any:
            nonlocal compiled
            # Logged values that go elsewhere are those of a diagnosis, which looks into the step as it is.
            if self.mode != "model" or not self._is_logging() or not self.fits(args[0]):
                return step(*args)
            if compiled is None:
                compiled = self.compiled(_counting(step), tracing)
            try:
                return self.recorded(compiled, args)
            except FAILURES as error:
                self.give_up(error)
                return step(*args)

        return forward

    def work(self, eager: Callable[..., Any]) -> Callable[..., Any]:
        """What trains on one batch in the epoch that begins, given what does so as it is."""
        self._odd = 0
        if not self.run.module.automatic_optimization:
            self._settle("eager", "in manual optimization training_step itself steps the optimizers")
        elif self.run.shares_step:
            self._settle(
                "eager", "one training_step gives the losses of several optimizers, each with its own backward"
            )
        if self.asked == "model" or self.mode == "eager":
            return eager
        chosen: Callable[..., Any] | None = None

        def work(run: Any, batch: Any, index: int) -> Any:
            nonlocal chosen
            if chosen is not None:
                return chosen(run, batch, index)
            if self._has_begun and batch is not None and self.fits(batch):
                if self.mode == "auto":
                    self._measure(batch, index)
                chosen = self._choose(eager)
                return chosen(run, batch, index)
            # The first step is taken as it is: it makes the optimizer's state, and its gradients are looked at.
            output = eager(run, batch, index)
            self._has_begun = self._has_begun or any(turn.stepped for turn in run.turns)
            return output

        return work

    def _choose(self, eager: Callable[..., Any]) -> Callable[..., Any]:
        """What trains on one batch, now that the first step is over."""
        if self.mode == "eager" or (self.asked == "auto" and self.mode == "model"):
            return eager
        if reason := why_not(self.run):
            if self.mode == "step":
                self._settle("model", reason)
            return eager
        self.mode = "step"
        self._step = step = self._step or CompiledStep(self)
        step.gradients_left = True

        def compiled(run: Any, batch: Any, index: int) -> Any:
            if self.mode == "step" and batch is not None and step.ready() and self.fits(batch):
                try:
                    return step(batch, index)
                except FAILURES as error:
                    self.give_up(error)
            step.gradients_left = True
            return eager(run, batch, index)

        return compiled

    def compiled(
        self, function: Callable[..., Any], tracing: Callable[[], AbstractContextManager[Any]]
    ) -> Callable[..., Any]:
        """``function``, a Python function, compiled as one graph, within ``tracing()``, when it is called."""
        # torch keeps with the code what it compiled, how often, and which sizes have changed: here, in this run.
        code = function.__code__
        code = code.replace(co_name=f"{code.co_name}_{next(_NUMBERS)}")
        own = FunctionType(code, function.__globals__, code.co_name, function.__defaults__, function.__closure__)
        self._codes.append(code)
        options: Any = {} if self.how is None else self.how.dynamo
        context: Any = torch._dynamo.optimize(backend=self._backend, nopython=True, **options)  # as torch.compile does
        compiled = context(own)
        compile_frame: Any = getattr(context, "callback", None)  # none where TORCHDYNAMO_DISABLE=1
        is_direct = None not in (compile_frame, _under_stance, _set_eval_frame)

        def refuse(frame: Any, *rest: Any) -> Any:  # which torch calls when none of its graphs fits
            if frame.f_code is code:
                raise _NothingFits
            return compile_frame(frame, *rest)

        refuse._torchdynamo_orig_backend = compile_frame  # type: ignore[attr-defined]

        def call(*args: Any) -> Any:
            self._batch = args[0]
            # Around each call torch has Python that takes 5 µs. A graph that is there and fits is run without it.
            if is_direct and _under_stance(refuse) is refuse:
                outer = _set_eval_frame(refuse)
                try:
                    return own(*args)
                except _NothingFits:
                    pass
                finally:
                    _set_eval_frame(outer)
            with tracing():
                return compiled(*args)

        return call

    def fits(self, batch: Any) -> bool:
        """``batch`` goes the compiled way."""
        if self._any_shape:
            return True
        shapes = _shapes(batch)
        if shapes == self.usual:
            return True
        if self.usual is None:
            self.usual = shapes
            return True
        self._odd += 1
        self._any_shape = self._odd > _ODD
        return self._any_shape

    def give_up(self, error: BaseException) -> None:
        """Go on with the step as it is; nothing of the compiled one has run.

        Raises:
            FAILURES: torch.compile was given ``fullgraph=True``.
        """
        if self.how is not None and self.how.fullgraph:
            raise error
        if isinstance(error, FailOnRecompileLimitHit) and self.compilations:
            self._settle("eager", f"it was compiled {len(self.compilations)} times, {self._last_reason()}")
        else:
            cause = getattr(error, "inner_exception", error)  # what a backend raised
            self._settle("eager", f"torch could not compile the step: {_first_line(cause)}")

    def recorded(self, step: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """What ``step`` returns; what it logs is logged once it has run, since a graph can hold no call of ours.

        Raises:
            FAILURES: It could not be compiled; nothing of it has run.
        """
        recorder, tables = self.recorder, self._tables
        calls = recorder.calls
        calls.clear()
        for table in tables:
            table["_results"] = recorder
        try:
            output = step(*args)
        finally:
            results = self._results
            for table in tables:
                table["_results"] = results
        if calls:
            if not self._is_measuring:
                log = self.run.module.log
                for call in calls:
                    log(*call)
            calls.clear()
        return output

    def report(self) -> None:
        """Say so if more than one graph was compiled, and why, unless that was the end of it."""
        if len(self.compilations) > 1 and self.mode != "eager":
            what = [
                _difference(one[0], other) for one, other in zip(self.compilations, self.compilations[1:], strict=False)
            ]
            warn(
                "LD311",
                f"{self._name}: the step was compiled {len(self.compilations)} times: "
                f"{'; '.join(dict.fromkeys(what))}. Each takes seconds: keep what changes out of the step, and pad "
                "batches to one shape.",
            )

    def _is_logging(self) -> bool:
        return self.run.module._results is self._results

    def _backend(self, graph: Any, inputs: Any) -> Any:
        """Compile ``graph``, its backward too, so that a failure comes before anything has run."""
        # A backward of the user's own may be called with retain_graph=True.
        frees = not overrides(self.run.module, "backward", LightningModule)
        options = {
            "force_non_lazy_backward_lowering": True,
            "donated_buffer": frees and functorch_config.donated_buffer,
        }
        with warnings.catch_warnings(), functorch_config.patch(options):
            warnings.simplefilter("ignore", DeprecationWarning)  # torch's, at what it imports itself
            replays, how = self.mode == "step" and self.replays, self.how
            compiled: Any
            if how is not None and how.inductor is None:
                compiled = how.backend(graph, inputs)
            else:
                from torch._inductor.compile_fx import compile_fx

                patches, names = inductor_options(graph, replays), {}
                if how is not None:
                    patches, names = how.changed(patches, replays), how.names
                compiled = compile_fx(graph, inputs, config_patches=patches, **names)
        if replays:
            compiled = handing_out_copies(compiled)
        self.compilations.append((_shapes(self._batch), self._last_reason()))
        return compiled

    def _last_reason(self) -> str:
        """Why torch compiled anew, or did not."""
        reasons = [reason for code in self._codes for reason in guard_failures.get(code, [])]
        return f"torch says {_plain_reason(reasons[-1])!r}" if reasons else "for a part that was not yet"

    def _settle(self, mode: str, reason: str) -> None:
        """Go on in ``mode``, and say why."""
        if mode == self.mode:
            return
        self.mode = mode
        instead = "compile='model' is used" if mode == "model" else "the step runs as it is"
        warn("LD310", f"{self._name}: {instead}, because {reason}.", subject=mode)

    # compile="auto"

    def _measure(self, batch: Any, index: int) -> None:
        """Time the step as it is and the compiled one on ``batch``, leave everything as it was, and choose."""
        run = self.run
        candidate = "model" if why_not(run) else "step"
        with unchanged(run), self._unheard():
            bodies: dict[str, Callable[[], Any]] = dict.fromkeys(
                ("eager", candidate), lambda: self._as_it_is(batch, index)
            )
            if candidate == "step":
                step = self._step = CompiledStep(self)
                step.bind()
                if not step.ready():
                    self._as_it_is(batch, index)  # makes the optimizer's state
                bodies["step"] = lambda: step.compute(batch, index)
            best = dict.fromkeys(bodies, float("inf"))
            try:
                for mode, body in bodies.items():
                    self.mode = mode
                    body()
                    body()
                    if self.mode != mode:
                        return  # it could not be compiled
                end = time.perf_counter() + _SECONDS
                for _ in range(_ROUNDS):
                    for mode, body in bodies.items():
                        self.mode = mode
                        best[mode] = min(best[mode], _seconds(body, run.strategy.device))
                    if time.perf_counter() > end:
                        break
            except FAILURES as error:
                self.give_up(error)
                return
        self.mode = min(best, key=lambda mode: best[mode])
        times = ", ".join(f"{mode} {seconds * 1e6:.0f}" for mode, seconds in best.items())
        say(f"{self._name}: microseconds a step: {times}. {self.mode!r} is used.")

    def _as_it_is(self, batch: Any, index: int) -> None:
        """One step without hooks: forward, backward, and where there is one optimizer its step."""
        run, turn = self.run, self.run.turns[0]
        output = turn.step(batch, index) if turn.step_takes_index else turn.step(batch)
        losses = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.requires_grad]
        if not losses:
            return
        alone = len(run.turns) == 1 and turn.optimizer is not None and turn.closure_first
        if alone:
            turn.clear()
        run.precision.backward(output["loss"] if hasattr(output, "get") and "loss" in output else losses[0])
        if alone:
            run.precision.unscale(turn.optimizer)
            if run.clip is not None:
                run.clip(turn.optimizer)
            turn.advance()

    @contextmanager
    def _unheard(self) -> Iterator[None]:
        """Inside, nothing is logged."""
        self._is_measuring, before = True, self._results
        self._results = self.recorder
        for table in self._tables:
            table["_results"] = self.recorder
        try:
            yield
        finally:
            self._is_measuring, self._results = False, before
            for table in self._tables:
                table["_results"] = before
            self.recorder.calls.clear()


def can_replay(device: torch.device) -> bool:
    """Steps on ``device`` can be CUDA graphs."""
    return device.type == "cuda"


def inductor_options(graph: GraphModule, replays: bool) -> dict[str, Any]:
    """How torch's compiler is to compile ``graph``, into a CUDA graph if ``replays``."""
    operators = [
        str(node.target)
        for part in graph.modules()
        if isinstance(part, GraphModule)
        for node in part.graph.nodes
        if isinstance(node.target, OpOverload | OpOverloadPacket)
    ]
    options = {
        "fallback_random": True,  # dropout draws what it draws in the step as it is
        # torch's guards have compared the sizes of what goes in already, and its own operators give what they say. To
        # compare them from Python takes a tenth of a small model's step.
        "size_asserts": not all(name.startswith(("aten.", "prims.")) for name in operators),
    }
    if replays:  # a graph that takes sizes or other whole numbers would be captured once for each of them
        options |= {"triton.cudagraphs": True, "triton.cudagraph_skip_dynamic_graphs": True}
    return options


def handing_out_copies(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """``compiled``, a CUDA graph, with outputs that last: its own are written over when it is replayed."""
    places: list[int] | None = None

    def run(*args: Any) -> Any:
        nonlocal places
        outputs = [*compiled(*args)]
        if places is None:  # what shares memory with an input is no memory of the graph's
            given = {arg.untyped_storage().data_ptr() for arg in args if isinstance(arg, Tensor)}
            places = [
                place
                for place, output in enumerate(outputs)
                if isinstance(output, Tensor) and output.untyped_storage().data_ptr() not in given
            ]
        copies = {id(outputs[place]): outputs[place] for place in places}
        copies = {key: output.clone() for key, output in copies.items()}
        for place in places:
            outputs[place] = copies[id(outputs[place])]
        return outputs

    return run


def _counting(step: Callable[..., Any]) -> Callable[..., Any]:
    """``step`` for compiling: a number that the module counts up does not have it compiled at each step."""

    def counting(*args: Any) -> Any:
        with patch_dynamo_config(allow_unspec_int_on_nn_module=True):
            return step(*args)

    return counting


class Recorder:
    """Takes the place of Results while a compiled step runs: keeps what is logged, for the real one.

    torch.compile takes the list as it is after the step, with the graph's outputs in it.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def log(self, name: Any, value: Any, *options: Any) -> None:
        """Keep one call."""
        self.calls.append((name, value.detach() if isinstance(value, Tensor) else value, *options))


@contextmanager
def unchanged(run: Any) -> Iterator[None]:
    """Inside, steps may be taken; afterwards module, optimizers and random numbers are as they were, to the last bit.

    Attributes of the module and its parts are put back where they are tensors, numbers and other plain values, or
    lists, dicts and sets of them.
    """
    optimizers = run.optimizers
    tensors = {id(t): t for t in (*run.module.parameters(), *run.module.buffers())}
    states = [{p: dict(state) for p, state in optimizer.state.items()} for optimizer in optimizers]
    for state in (state for kept in states for state in kept.values()):
        tensors.update((id(value), value) for value in state.values() if isinstance(value, Tensor))
    attributes = []
    for part in run.module.modules():
        own = {name: value for name, value in vars(part).items() if name not in ("_trainer", "_results")}
        attributes.append((part, own, {name: copy.copy(value) for name, value in own.items() if _is_plain(value)}))
        tensors.update((id(value), value) for value in own.values() if isinstance(value, Tensor))
    gradients = [(p, p.grad) for p in run.module.parameters()]
    copies = {key: tensor.detach().clone() for key, tensor in tensors.items()}
    for parameter, _ in gradients:
        parameter.grad = None
    called = [vars(optimizer).get("_opt_called") for optimizer in optimizers]
    try:
        with isolate_rng():
            yield
    finally:
        with torch.no_grad():
            for key, tensor in tensors.items():
                tensor.copy_(copies[key])
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for part, own, plain in attributes:
            for name in [name for name in vars(part) if name not in own and name not in ("_trainer", "_results")]:
                del vars(part)[name]
            vars(part).update(own)
            for name, value in plain.items():
                _refill(own[name], value)
        for optimizer, kept, was_called in zip(optimizers, states, called, strict=True):
            for parameter in [p for p in optimizer.state if p not in kept]:
                del optimizer.state[parameter]
            for parameter, state in kept.items():
                optimizer.state[parameter].clear()
                optimizer.state[parameter].update(state)
            if was_called is None:
                vars(optimizer).pop("_opt_called", None)


def _is_plain(value: Any) -> bool:
    return type(value) in (list, dict, set)


def _refill(container: Any, content: Any) -> None:
    """Put ``content`` back into the very list, dict or set it was copied from."""
    container.clear()
    (container.extend if isinstance(container, list) else container.update)(content)


def _seconds(body: Callable[[], Any], device: torch.device) -> float:
    """A step's time, the mean of a few."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    begun = time.perf_counter()
    for _ in range(_STEPS):
        body()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return (time.perf_counter() - begun) / _STEPS


def _shapes(batch: Any) -> list[Any]:
    """The shapes of the batch's tensors."""
    if type(batch) in (tuple, list):
        return [leaf.shape if type(leaf) is Tensor else _shapes_of_all(leaf) for leaf in batch]
    return _shapes_of_all(batch)


def _shapes_of_all(batch: Any) -> list[Any]:
    return [leaf.shape for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]


def _difference(before: list[tuple[int, ...]], now: tuple[list[tuple[int, ...]], str]) -> str:
    """What differs between two batches; or else torch's own words."""
    shapes, reason = now
    for index, (one, other) in enumerate(zip(before, shapes, strict=False)):
        if one != other:
            return f"the shape of the batch's tensor {index} changed from {_shown(one)} to {_shown(other)}"
    return reason


def _shown(shape: Any) -> str:
    return str(tuple(shape))


def _plain_reason(reason: str) -> str:
    """A failed guard without the source line that torch puts behind it."""
    return " ".join(reason.partition("#")[0].split())


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
