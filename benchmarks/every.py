"""What statistics in every nth step cost and are worth: time and quality on a built-in problem.

    python benchmarks/every.py                                     # digit-attributes, 5 seeds
    python benchmarks/every.py --seeds 2 --epochs 3                # quick
    python benchmarks/every.py --methods nash-mtl pcgrad --every 1 4 16

Each method at its own learning rate given below for all n, on the CPU; Δm is the mean improvement over single-task
training in percent, with the same rate and epochs. The time is that of the steps alone, the median over the seeds.
"""

from __future__ import annotations
