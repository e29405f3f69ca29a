"""How fast a run is, where Lightning's users look for it."""

from leyden.utils.chips import get_available_flops as get_available_flops
from leyden.utils.flops import measure_flops as measure_flops
from leyden.utils.throughput import Throughput as Throughput
