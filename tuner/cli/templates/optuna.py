"""A plain Optuna objective. tuner runs it on all devices; `python study.py` runs it without tuner.

    tuner launch study.py:objective --name study --direction maximize --trials 20

Made by `tuner init`; change it as you like.
"""

import optuna
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import train_test_split

EPOCHS = 20
images, labels = load_digits(return_X_y=True)
split = train_test_split(images / 16.0, labels, test_size=0.2, random_state=0)
train_images, test_images, train_labels, test_labels = split


def objective(trial: optuna.Trial) -> float:
    model = SGDClassifier(
        loss=trial.suggest_categorical("loss", ["hinge", "log_loss", "modified_huber"]),
        alpha=trial.suggest_float("alpha", 1e-6, 1e-1, log=True),
        learning_rate="constant",
        eta0=trial.suggest_float("eta0", 1e-4, 1.0, log=True),
        random_state=0,
    )
    accuracy = 0.0
    for epoch in range(1, EPOCHS + 1):
        model.partial_fit(train_images, train_labels, classes=range(10))
        accuracy = model.score(test_images, test_labels)
        trial.report(accuracy, epoch)
        if trial.should_prune():
            raise optuna.TrialPruned
    return accuracy


if __name__ == "__main__":
    study = optuna.create_study(direction="maximize")
    study.optimize(objective, n_trials=20)
    print(study.best_value, study.best_params)
