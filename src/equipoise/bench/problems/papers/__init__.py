"""The papers' vision problems, for those who have the data: networks, losses and measures as the papers say.

One file a data set. `equipoise reproduce` trains them by the papers' protocols; `equipoise compare` takes them too, as
in `equipoise compare "celeba?data=/data/celeba"`.
"""
