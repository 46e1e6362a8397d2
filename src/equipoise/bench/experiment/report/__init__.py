"""The report: one HTML file that says what follows from a comparison, shows why, and loads nothing from anywhere."""

from equipoise.bench.experiment.report.page import to_html

__all__ = ["to_html"]
