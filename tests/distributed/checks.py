"""What the workers assert beside the comparison with one process: every check there is."""

from __future__ import annotations

import edge_cases  # noqa: F401
import reductions  # noqa: F401
import resuming  # noqa: F401
import scalars  # noqa: F401
import steps  # noqa: F401
import wrapped_models  # noqa: F401
from checking import CHECKS

__all__ = ["CHECKS"]
