"""Running out of memory, where Lightning's users look for it."""

from leyden.utils.memory import garbage_collection_cuda as garbage_collection_cuda
from leyden.utils.memory import is_cuda_out_of_memory as is_cuda_out_of_memory
from leyden.utils.memory import is_cudnn_snafu as is_cudnn_snafu
from leyden.utils.memory import is_oom_error as is_oom_error
from leyden.utils.memory import is_out_of_cpu_memory as is_out_of_cpu_memory
from leyden.utils.memory import recursive_detach as recursive_detach
