from equipoise.bench.experiment.movement import movement_remarks


def run(method, *weights, **more):
    """A run whose epochs had these mean weights of two tasks."""
    epochs = [{"weights": dict(zip("ab", pair, strict=True)) if pair else {}} for pair in weights]
    return {"method": method, "seed": 0, "status": "finished", "epochs": epochs} | more


def test_weights_that_hardly_left_their_start_are_named():
    runs = [
        run("uw", (1.0, 1.0), (1.02, 1.0), (1.04, 0.98)),  # shares 0.505, 0.515
        run("dwa", (1.0, 1.0), (1.3, 0.7)),
        run("ew", (1.0, 1.0), (1.0, 1.0)),
        run("static", (1.0, 1.0), (1.0, 1.0)),
        run("fixed", (1.01, 0.99)),
        run("replay:dwa", (1.01, 0.99)),
        run("rlw", (0.505, 0.495), (0.498, 0.502)),  # random: there is no start to leave
        run("graddrop", (1.0, 1.0), (1.0, 1.0)),  # has none of its own
        run("mao", None, None),
        run("ema@sgd", (0.501, 0.499), (0.5, 0.5)),
    ]
    methods = [record["method"] for record in runs]
    [said] = movement_remarks(runs, methods)
    assert said.startswith(
        "The weights of uw and ema@sgd hardly left their start (no task's share moved by more than 1.5%): what is "
        "shown of them is close to equal weights."
    )


def test_any_run_that_moves_is_movement():
    runs = [run("uw", (1.0, 1.0)), run("uw", (1.5, 0.5)) | {"seed": 1}]
    assert movement_remarks(runs, ["uw"]) == []
    failed = {"method": "uw", "seed": 0, "status": "diverged", "message": "no", "epochs": []}
    assert movement_remarks([failed], ["uw"]) == []


def test_a_network_that_shares_nothing_is_said():
    apart = [run("ew", (1.0, 1.0), shared_parameters=0), run("mao", None, shared_parameters=0)]
    assert movement_remarks(apart, ["ew", "mao"]) == [
        "The tasks share no parameter of the network: there is nothing to balance."
    ]
    assert movement_remarks([run("ew", (1.0, 1.0), shared_parameters=8)], ["ew"]) == []
