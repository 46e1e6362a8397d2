from equipoise.objectives import Equal


def test_is_the_plain_sum_over_the_tasks_present(drive, batches):
    driver = drive(Equal())
    for losses in batches:
        value, coefficients, _ = driver.step(losses)
        assert value == sum(losses.values())
        assert coefficients == dict.fromkeys(losses, 1.0)
