"""A study of a command. The command here is this file itself; replace it with your own program.

    tuner launch study.py

Made by `tuner init`; change it as you like.
"""

import argparse
import json
import sys

from tuner import Command, Space, Study, log_uniform


# 1. What is searched.
class HParams(Space):
    learning_rate: float = log_uniform(1e-4, 10.0)
    momentum: float = log_uniform(1e-2, 0.99)


# 2. The command. {NAME} is a hyperparameter, {folder} the trial's folder for files, {number} and {seed} are the
#    trial's. A text such as "bash train.sh --lr {learning_rate}" works as well.
command = Command(
    [sys.executable, __file__, "--learning-rate={learning_rate}", "--momentum={momentum}"],
)

# 3. The search.
study = Study(
    name="study",
    space=HParams,
    train=command,
    objective="loss",
    direction="minimize",
    epochs=20,
    trials=12,
)


# 4. What the command must do: print a line of JSON with the objective after each epoch. Other lines go to its log.
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--momentum", type=float, required=True)
    args = parser.parse_args()
    x, velocity = 1.0, 0.0
    for epoch in range(1, 21):
        velocity = args.momentum * velocity - args.learning_rate * 2.0 * x  # of the gradient of x^2
        x += velocity
        print(json.dumps({"epoch": epoch, "loss": x * x}), flush=True)


if __name__ == "__main__":
    main()
