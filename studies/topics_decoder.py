"""A character-level language model of Python's help pages: learned or rotary positions, one or two layers.

    tuner launch studies/topics_decoder.py

Devices: 2 CPU cores, one worker on each. Time: 68 s. Best validation bits: 2.444 (2026-11-22).

New compared with `digits_mlp.py`: each example is a sequence, and its loss is a mean over positions. The metric
`bigram_bits` is a reference for the objective: the bits per character that a table of character pairs needs. It is
computed with the data. The text is `pydoc_data.topics`, which is part of every Python. It differs between versions, and
so do the figures (here: Python 3.11.7).

    tuner plot topics_decoder picture

draws text written by a trained model. After a minute of training:

       2: * | Ex. "To defirnger indervisioniption mays fre argument" is and it byt presed.
       With ther is eefase relent, the fou
    compling its ard with bound preson expces,
"""

from pydoc_data.topics import topics

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tuner import Space, Study, choice, log_uniform, uniform
from tuner.models import make_model
from tuner.training import ArrayDataset, Splits, TrainerModule

LENGTH = 64  # the context length, in characters
CHARACTERS = 160_000  # used of the text, so that the study takes a minute

# 1. The text. Many pages share paragraphs. Each paragraph is used only once, so that validation text was not in the
#    training set.
PARTS = (part.strip("\n") for name in sorted(topics) for part in topics[name].split("\n\n"))
TEXT = "\n\n".join(dict.fromkeys(filter(None, PARTS)))[: CHARACTERS + 1]
ALPHABET = sorted(set(TEXT))
NUMBERS = {character: number for number, character in enumerate(ALPHABET)}


# 2. The search space. The last two hyperparameters change the program: there are four programs in each worker.
class HParams(Space):
    learning_rate: float = log_uniform(1e-3, 3e-2)
    dropout_rate: float = uniform(0.0, 0.3)
    positions: str = choice("learned", "rotary")
    depth: int = choice(1, 2)


# 3. The trainer. Each position predicts the next character. The loss of an example is the mean over its positions.
class Trainer(TrainerModule):
    loop = "scan"  # matrix products are also fast inside loops

    def init_model(self, hparams):
        return make_model("decoder", hparams, vocabulary=len(ALPHABET), width=64, heads=4, longest=LENGTH)

    def batch_size(self, hparams):
        return 32

    def loss(self, outputs, batch, hparams):
        nats = optax.softmax_cross_entropy_with_integer_labels(outputs, batch["targets"]).mean(1)
        return nats, {"bits": nats / np.log(2), "bigram_bits": batch["bigram_bits"]}


# 4. The data: consecutive windows, so that each character is predicted exactly once.
def data(seed: int) -> Splits:
    numbers = np.array([NUMBERS[character] for character in TEXT])
    count = (len(numbers) - 1) // LENGTH
    inputs, targets = (numbers[at : at + count * LENGTH].reshape(count, LENGTH) for at in (0, 1))
    splits = ArrayDataset(inputs=inputs, targets=targets).split(0.1, seed)
    table = bigram_bits(splits.train.host())

    def measured(part):
        host = part.host()
        return ArrayDataset(**host, bigram_bits=table[host["inputs"], host["targets"]].mean(1))

    return Splits(measured(splits.train), measured(splits.validation))


def bigram_bits(host):
    """Return -log2 p(next | character) from counts in the training data, with 0.1 added to each count."""
    counts = np.full((len(ALPHABET), len(ALPHABET)), 0.1)
    np.add.at(counts, (host["inputs"], host["targets"]), 1)
    return -np.log2(counts / counts.sum(1, keepdims=True))


def sample(predict, length, key, prompt="The "):
    """Return the prompt and the text that the model adds to it, one character at a time.

    Args:
        predict: Maps tokens (1, LENGTH) to logits (1, LENGTH, characters); later positions do not affect earlier ones.
        length: The number of characters to add.
        key: The random key; the same key gives the same text.
        prompt: At least one character; all must occur in the training text.
    """
    written = [NUMBERS[character] for character in prompt]
    for at in range(length):
        seen = written[-LENGTH:]
        window = np.zeros((1, LENGTH), np.int32)
        window[0, : len(seen)] = seen
        logits = predict(window)[0, len(seen) - 1]
        written.append(int(jax.random.categorical(jax.random.fold_in(key, at), jnp.asarray(logits))))
    return "".join(ALPHABET[number] for number in written)


def picture(loaded, splits):
    """Return a figure with 400 characters written by the model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2))
    figure.text(0, 1, sample(loaded, 400, jax.random.key(0)), va="top", family="monospace")
    return figure


study = Study(
    name="topics_decoder",
    space=HParams,
    trainer=Trainer(),
    data=data,
    objective="bits",
    direction="minimize",
    epochs=5,
    trials=12,
    baseline=HParams(learning_rate=1e-2, dropout_rate=0.0, positions="learned", depth=1),
    picture=picture,
)
