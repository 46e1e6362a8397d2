"""What a comparison does unless something else is asked for, on the command line and in Python alike."""

from __future__ import annotations

METHODS = "ew,fixed,uw,ema,imtl-g,mao"
"""Few, since every one more makes a difference harder to show: equal weights, the best fixed ones, which whoever
balances has to beat, and one of each kind: learned weights, weights from losses alone, from gradients, and an optimizer
that balances by itself."""

SEEDS = 6
"""The fewest that show how differences between seeds are distributed, and whose bootstrap intervals can reach 95 %."""

MAX_SEEDS = 20
"""Seeds at the last look of a comparison that goes on until it is decided: with so many a lead as large as its spread
over seeds is shown."""

MONITOR_EVERY = 50
"""Steps between samples of the balance monitor."""

REPORT = "report.html"
"""The page in a run folder."""
