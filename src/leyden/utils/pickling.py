"""Can it be pickled?"""

from __future__ import annotations

import pickle


def is_picklable(obj: object) -> bool:
    """True when ``obj`` can be pickled, as an argument of another process must be; tried out, so it takes as long."""
    try:
        pickle.dumps(obj)
    except Exception:  # whatever __reduce__ of any object inside raises
        return False
    return True
