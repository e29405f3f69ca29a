"""What happens on rank 0 only, where Lightning's users look for it."""

from leyden.utils.rank import rank_zero_only as rank_zero_only
from leyden.utils.rank_zero import WarningCache as WarningCache
from leyden.utils.rank_zero import rank_zero_debug as rank_zero_debug
from leyden.utils.rank_zero import rank_zero_deprecation as rank_zero_deprecation
from leyden.utils.rank_zero import rank_zero_info as rank_zero_info
from leyden.utils.rank_zero import rank_zero_warn as rank_zero_warn
