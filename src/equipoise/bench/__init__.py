"""The bench: problems, networks and metrics, and the comparison of balancing methods on them.

It needs more than PyTorch (`pip install "equipoise[bench]"`), so `import equipoise` leaves it alone. Its parts:

- `equipoise.bench.problems`: what is trained, and the classes that a problem of one's own is made of;
- `equipoise.bench.models`: networks with several heads;
- `equipoise.bench.metrics`: how well a task does;
- `equipoise.bench.experiment`: methods compared over seeds, with statistics and a report;
- `equipoise.bench.cli`: the command `equipoise`.
"""
