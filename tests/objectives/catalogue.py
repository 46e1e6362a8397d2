"""Every objective, for tests of what they all owe."""

from equipoise.objectives import (
    DTP,
    DWA,
    DWEMA,
    EMA,
    FAMO,
    IMTLL,
    REMA,
    RLW,
    UW,
    Achievement,
    Equal,
    GeometricMean,
    Static,
)

POTENTIALS = {"a": 0.4, "b": 0.8, "c": 0.9}
METHODS = {
    "equal": Equal,
    "static": lambda: Static({"a": 1.0, "b": 2.0, "c": 3.0}),
    "rlw": RLW,
    "uw": UW,
    "dwa": DWA,
    "dwa, 2 steps": lambda: DWA(interval=2),
    "ema": EMA,
    "rema": REMA,
    "dwema": DWEMA,
    "dwema, epochs": lambda: DWEMA(interval="epoch"),
    "dtp": DTP,
    "amtl-a": lambda: Achievement(POTENTIALS),
    "amtl-a, sum": lambda: Achievement(POTENTIALS, normalization="sum"),
    "amtl": lambda: GeometricMean(Achievement(POTENTIALS, normalization="sum")),
    "gls": lambda: GeometricMean(Equal()),
    "dwa-g": lambda: GeometricMean(DWA()),
    "rlw-g": lambda: GeometricMean(RLW()),
    "dtp-g": lambda: GeometricMean(DTP()),
    "imtl-l": IMTLL,
    "famo": FAMO,
    "famo, bounds": lambda: FAMO(lr=0.3, lower_bounds={"a": -1.0, "b": -0.5}),
}
