"""Checks a study without running it, to find errors that every trial would raise before anything is stored."""

from __future__ import annotations

from tuner.study import StudyData, StudySpec
from tuner.study.costs import taken_names
from tuner.study.source import call_study_code


def check_study(study: StudySpec, data: StudyData | None) -> None:
    """Trace a trainer for an example of each conditional option, with its data, before anything is stored.

    Raises:
        UsageError: see `tuner.training.loop.checks.check_trainer`.
    """
    if data is None:  # a function is checked when it reports for the first time
        return
    import optuna

    from tuner.study.space import examples, is_space
    from tuner.training.loop.checks import check_trainer
    from tuner.training.loop.costs import check_costs
    from tuner.worker.trainables.train_seeds import reserved_metrics

    if is_space(study.space):
        candidates = examples(study.space)
    else:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.RandomSampler(seed=study.seed)
        trial = optuna.create_study(sampler=sampler).ask()
        candidates = iter([call_study_code("the space's function failed", study.sample, trial)])
    for hparams in candidates:
        splits = call_study_code(data.failure, data.for_hparams, hparams)
        call_study_code(
            "the trainer failed",
            check_trainer,
            study.trainer,
            hparams,
            splits,
            [name for name in study.objectives if name not in study.measure],
            study.epochs,
            [(what, name) for what, name in study.other_metrics if name not in study.measure],
            (reserved_metrics(study.objectives) if study.seed_plan.most > 1 else {}) | taken_names(study.measure),
        )
        call_study_code("the trainer failed", check_costs, study.trainer, hparams, splits, study.measure)
