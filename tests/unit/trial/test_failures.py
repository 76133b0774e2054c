"""What is kept of an error."""

from tuner.trial.failures import describe, storable


def test_an_error_that_no_database_could_hold_is_kept_all_the_same() -> None:
    try:
        raise RuntimeError("cannot open '\udcff' \0" + "x" * 100_000)
    except RuntimeError as error:
        found = describe(error)["error"]

    assert found.encode().decode() == found
    assert "\0" not in found
    assert len(found) == 50_000
    assert storable("a \udcff b\0") == "a \\udcff b\\0"
