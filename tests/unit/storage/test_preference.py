"""Which of several waiting trials a worker takes first."""

from tuner.storage.worker.preference import MOST_AHEAD, Preference

NAMES = frozenset({"width", "optimizer", "optimizer.depth"})


def test_a_worker_prefers_the_oldest_trial_whose_program_it_has() -> None:
    preference = Preference(NAMES)
    waiting = [{"width": 1}, {"width": 2, "rate": 0.5}, {"width": 3}, {"width": 2}]
    assert preference.choose(waiting) == 0  # it has none
    preference.note({"width": 2, "rate": 0.1})
    assert preference.choose(waiting) == 1
    preference.note({"width": 1, "optimizer": "SGD"})
    assert preference.choose(waiting) == 1  # other static values, although one of them is the same
    assert preference.choose([{}, {"rate": 0.1}, {"width": 1, "optimizer": "SGD", "rate": 1.0}]) == 2


def test_values_that_only_other_tools_would_queue_are_other_programs() -> None:
    preference = Preference(NAMES)
    preference.note({"width": 2})
    assert preference.choose([{"width": [1, 2]}, {"width": {"a": None}}, {"width": 2}]) == 2
    assert preference.choose([{"width": [1, 2]}]) == 0


def test_a_trial_that_waits_is_taken_after_a_number_of_others() -> None:
    preference = Preference(NAMES)
    preference.note({"width": 2})
    waiting = [{"width": 1}, *[{"width": 2}] * 50]
    for turn in range(3 * (MOST_AHEAD + 1)):
        assert preference.choose(waiting) == (0 if turn % (MOST_AHEAD + 1) == MOST_AHEAD else 1)


def test_the_oldest_programs_are_forgotten() -> None:
    preference = Preference(NAMES)
    for width in range(16):
        preference.note({"width": width})
    preference.note({"width": 0})
    preference.note({"width": 99})
    assert preference.choose([{"width": 50}, {"width": 1}]) == 0
    assert preference.choose([{"width": 50}, {"width": 0}]) == 1


def test_without_static_hyperparameters_all_trials_are_the_same() -> None:
    assert Preference(frozenset(), {frozenset(): None}).is_empty
    assert Preference(NAMES).is_empty
