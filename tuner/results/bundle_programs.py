"""The programs in bundles: they evaluate a model, predict with it, or print a saved state."""

LOADING = '''

def load():
    """Return the trained model; this needs neither the study's data nor its storage."""
    if not (here / "study.py").is_file():
        sys.exit(f"the bundle is not complete: no file {here / 'study.py'}; unpack all of it, or export it again")
    study = load_study(f"{here / 'study.py'}:{trial['study']}")
    hparams = study.hparams_of(trial["hparams"])
    return load_from_checkpoint(here / "checkpoint", trainer=study.trainer, hparams=hparams), study
'''
"""The function that both programs of a bundle with a model have."""

RUN_STATE = '''"""Load the state that the trial has saved, and print its hyperparameters and the parts of the state."""

import json
from pathlib import Path

import tuner

here = Path(__file__).parent
trial = json.loads((here / "trial.json").read_text())
print(f"trial {trial['number']} of {trial['study']}: {json.dumps(trial['hparams'])}")


def show(part, name="state"):
    if isinstance(part, dict):
        for key, inner in part.items():
            show(inner, f"{name}[{key!r}]")
    elif isinstance(part, list | tuple):
        for at, inner in enumerate(part):
            show(inner, f"{name}[{at}]")
    else:
        print(f"{name}: {part.dtype}{list(part.shape)}" if hasattr(part, "shape") else f"{name}: {part}")


show(tuner.load_state(here / "checkpoint"))
'''

RUN = f'''"""Load the trial, evaluate it on the study's validation data, and compare the results with those recorded."""

import json
import sys
from pathlib import Path

from tuner.study import load_study
from tuner.training import load_from_checkpoint

here = Path(__file__).resolve().parent
trial = json.loads((here / "trial.json").read_text())
{LOADING}

loaded, study = load()
validation = study.data_for(loaded.hparams, seed=trial["seed"]).validation
found = study.trainer.eval_model(loaded.state, validation, loaded.hparams)
recorded = loaded.record["best"]["metrics"]
for name, value in found.items():
    print(f"{{name}}: {{value:.6g}}, recorded {{recorded[name]:.6g}}")
if any(abs(value - recorded[name]) > 1e-3 * max(abs(value), abs(recorded[name])) for name, value in found.items()):
    raise SystemExit("the results differ from those recorded: compare the package versions")
'''

PREDICT = f'''"""Predict with the trained model: python predict.py INPUTS [PREDICTIONS]

INPUTS is a file of NumPy: an array for the model (.npy), or its arguments in their order (.npz, from np.savez). The
first axis is that of the examples. PREDICTIONS is the file to write: one array (.npy) or several (.npz).
By default it is predictions.npy or predictions.npz. The program does not need the study's data.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np

from tuner.errors import TunerError
from tuner.study import load_study
from tuner.training import load_from_checkpoint

here = Path(__file__).resolve().parent
trial = json.loads((here / "trial.json").read_text())
{LOADING}

def read(path):
    """Return the arguments of the model."""
    try:
        given = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        sys.exit(f"INPUTS must be a .npy or .npz file of NumPy: got {{path}} ({{error}})")
    return [given] if isinstance(given, np.ndarray) else [given[name] for name in given.files]


def write(path, outputs):
    """Write an array, or several by their places in the model's outputs; return the path."""
    found = {{
        jax.tree_util.keystr(place, simple=True, separator=".") or "outputs": np.asarray(value)
        for place, value in jax.tree_util.tree_leaves_with_path(outputs)
    }}
    # NumPy cannot read bfloat16 and other types of JAX.
    found = {{name: value if value.dtype.isbuiltin else value.astype("float32") for name, value in found.items()}}
    is_one = len(found) == 1
    path = Path(path or f"predictions.{{'npy' if is_one else 'npz'}}")
    if is_one:
        np.save(path, *found.values())
    else:
        np.savez(path, **found)
    return path, found


def main(words):
    try:
        loaded, _ = load()
    except TunerError as error:
        sys.exit(f"cannot load the model: {{error}}")
    batch = ", ".join(f"{{name}} {{dtype}}{{list(shape)}}" for name, (shape, dtype) in loaded.record["batch"].items())
    if len(words) not in (1, 2):
        sys.exit(f"{{__doc__.strip()}}\\n\\nThe batches of the training had: {{batch}}")
    inputs = read(words[0])
    try:
        outputs = loaded.predict(*inputs)
    except Exception as error:
        given = ", ".join(f"{{array.dtype}}{{list(array.shape)}}" for array in inputs)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        sys.exit(f"cannot predict from {{given}}: {{reason}}; the batches of the training had: {{batch}}")
    path, found = write(words[1] if len(words) == 2 else None, outputs)
    for name, value in found.items():
        print(f"{{name}}: {{value.dtype}}{{list(value.shape)}} written to {{path}}")


if __name__ == "__main__":
    main(sys.argv[1:])
'''
