"""Utilities for user code, under the names that Lightning's users import."""

from typing import TYPE_CHECKING

from leyden.utils.lazy import lazy_names

if TYPE_CHECKING:
    from leyden.core.combined import CombinedLoader as CombinedLoader
    from leyden.utils.apply import apply_to_collection as apply_to_collection
    from leyden.utils.chips import get_available_flops as get_available_flops
    from leyden.utils.enums import GradClipAlgorithmType as GradClipAlgorithmType
    from leyden.utils.enums import LightningEnum as LightningEnum
    from leyden.utils.flops import measure_flops as measure_flops
    from leyden.utils.grads import grad_norm as grad_norm
    from leyden.utils.hparams import AttributeDict as AttributeDict
    from leyden.utils.machines import is_shared_filesystem as is_shared_filesystem
    from leyden.utils.machines import suggested_max_num_workers as suggested_max_num_workers
    from leyden.utils.pickling import is_picklable as is_picklable
    from leyden.utils.rank import rank_zero_only as rank_zero_only
    from leyden.utils.rank_zero import PossibleUserWarning as PossibleUserWarning
    from leyden.utils.rank_zero import WarningCache as WarningCache
    from leyden.utils.rank_zero import disable_possible_user_warnings as disable_possible_user_warnings
    from leyden.utils.rank_zero import rank_zero_debug as rank_zero_debug
    from leyden.utils.rank_zero import rank_zero_deprecation as rank_zero_deprecation
    from leyden.utils.rank_zero import rank_zero_info as rank_zero_info
    from leyden.utils.rank_zero import rank_zero_warn as rank_zero_warn
    from leyden.utils.seed import isolate_rng as isolate_rng
    from leyden.utils.throughput import Throughput as Throughput
    from leyden.utils.tree import move_data_to_device as move_data_to_device
    from leyden.utils.tying import find_shared_parameters as find_shared_parameters
    from leyden.utils.tying import set_shared_parameters as set_shared_parameters

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "AttributeDict": "leyden.utils.hparams",
        "CombinedLoader": "leyden.core.combined",
        "GradClipAlgorithmType": "leyden.utils.enums",
        "LightningEnum": "leyden.utils.enums",
        "PossibleUserWarning": "leyden.utils.rank_zero",
        "Throughput": "leyden.utils.throughput",
        "WarningCache": "leyden.utils.rank_zero",
        "apply_to_collection": "leyden.utils.apply",
        "combined_loader": "leyden.utilities.combined_loader",
        "compile": "leyden.utilities.compile",
        "disable_possible_user_warnings": "leyden.utils.rank_zero",
        "exceptions": "leyden.utilities.exceptions",
        "find_shared_parameters": "leyden.utils.tying",
        "get_available_flops": "leyden.utils.chips",
        "grad_norm": "leyden.utils.grads",
        "grads": "leyden.utilities.grads",
        "is_picklable": "leyden.utils.pickling",
        "is_shared_filesystem": "leyden.utils.machines",
        "isolate_rng": "leyden.utils.seed",
        "measure_flops": "leyden.utils.flops",
        "memory": "leyden.utilities.memory",
        "model_summary": "leyden.utilities.model_summary",
        "move_data_to_device": "leyden.utils.tree",
        "parsing": "leyden.utilities.parsing",
        "rank_zero": "leyden.utilities.rank_zero",
        "rank_zero_debug": "leyden.utils.rank_zero",
        "rank_zero_deprecation": "leyden.utils.rank_zero",
        "rank_zero_info": "leyden.utils.rank_zero",
        "rank_zero_only": "leyden.utils.rank",
        "rank_zero_warn": "leyden.utils.rank_zero",
        "seed": "leyden.utilities.seed",
        "set_shared_parameters": "leyden.utils.tying",
        "suggested_max_num_workers": "leyden.utils.machines",
        "throughput": "leyden.utilities.throughput",
        "types": "leyden.utilities.types",
    },
)
__all__ = __dir__()
