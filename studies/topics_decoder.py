"""A language model of characters on Python's own help pages: learned or rotary positions, one layer or two.

    tuner launch studies/topics_decoder.py

Devices: 2 CPU cores, one worker on each. Time: 68 s. Best validation bits: 2.444 (2026-11-22).

What is new beside `digits_mlp.py`: an example is a sequence, and its loss a mean over places; and a yardstick beside
the objective, computed with the data: `bigram_bits`, what a table of pairs of characters needs for one character. The
text is `pydoc_data.topics`, which every Python has; it differs from version to version, and so do the figures (here:
Python 3.11.7).

    tuner plot topics_decoder picture

draws what a trained model writes, after a minute of learning:

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

LENGTH = 64  # characters that the model sees
CHARACTERS = 160_000  # of the text, for a study of a minute

# 1. The text. Pages quote whole paragraphs of each other: each is taken once, or the validation would ask for what was
#    learned by heart.
PARTS = (part.strip("\n") for name in sorted(topics) for part in topics[name].split("\n\n"))
TEXT = "\n\n".join(dict.fromkeys(filter(None, PARTS)))[: CHARACTERS + 1]
ALPHABET = sorted(set(TEXT))
NUMBERS = {character: number for number, character in enumerate(ALPHABET)}


# 2. What is searched. The last two are part of the program: four of them in each worker.
class HParams(Space):
    learning_rate: float = log_uniform(1e-3, 3e-2)
    dropout_rate: float = uniform(0.0, 0.3)
    positions: str = choice("learned", "rotary")
    depth: int = choice(1, 2)


# 3. The trainer. Every place of a sequence predicts the next character; the loss of an example is their mean.
class Trainer(TrainerModule):
    loop = "scan"  # matrix products, which are fast inside loops too

    def init_model(self, hparams):
        return make_model("decoder", hparams, vocabulary=len(ALPHABET), width=64, heads=4, longest=LENGTH)

    def batch_size(self, hparams):
        return 32

    def loss(self, outputs, batch, hparams):
        nats = optax.softmax_cross_entropy_with_integer_labels(outputs, batch["targets"]).mean(1)
        return nats, {"bits": nats / np.log(2), "bigram_bits": batch["bigram_bits"]}


# 4. The data: windows that follow each other, so that each character is to be predicted once, in one window.
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
    """Return -log2 p(next | character) as counted in the training data, a tenth added to each count."""
    counts = np.full((len(ALPHABET), len(ALPHABET)), 0.1)
    np.add.at(counts, (host["inputs"], host["targets"]), 1)
    return -np.log2(counts / counts.sum(1, keepdims=True))


def sample(predict, length, key, prompt="The "):
    """Return the prompt and what a model writes behind it, one character after the other.

    Args:
        predict: From tokens (1, LENGTH) to logits (1, LENGTH, characters); later places do not change earlier ones.
        length: Characters to write.
        key: The same key, the same text.
        prompt: Of characters of the text; at least one.
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
    """Return a figure of 400 characters that a model writes."""
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
