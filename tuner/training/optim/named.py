"""The optimizers of optax: their names, arguments and special cases."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import optax
import optax.contrib

# fmt: off
OPTIMIZERS = (
    "adabelief", "adadelta", "adafactor", "adagrad", "adam", "adamax", "adamaxw", "adamw", "adan", "amsgrad", "fromage",
    "lamb", "lars", "lbfgs", "lion", "nadam", "nadamw", "noisy_sgd", "novograd", "optimistic_adam_v2",
    "optimistic_gradient_descent", "polyak_sgd", "radam", "rmsprop", "rprop", "sgd", "sign_sgd",
    "signum", "sm3", "yogi",
    # optax.contrib
    "acprop", "ademamix", "adopt", "cocob", "dadapt_adamw", "dog", "dowg", "galore", "madgrad", "momo", "momo_adam",
    "muon", "prodigy", "schedule_free_adamw", "schedule_free_sgd", "simplified_ademamix", "sophia",
)
# fmt: on
REFUSED = {
    "differentially_private_aggregate": "it needs the gradient of every example",
    "dpsgd": "it needs the gradient of every example",
    "hutchinson_estimator_diag_hessian": "it is only a part of sophia; use sophia",
    "mechanize": "it wraps another optimizer; build that with optax and pass the result",
    "normalize": "it only rescales gradients; use clip_norm",
    "optimistic_adam": "optax has deprecated it; use optimistic_adam_v2",
    "reduce_on_plateau": "it scales another optimizer's updates; use plateau=",
    "sam": "it needs a second gradient in each step",
    "schedule_free": "it wraps another optimizer; use schedule_free_sgd or schedule_free_adamw",
    "schedule_free_eval_params": "it is not an optimizer; see evaluated_params",
    "split_real_and_imaginary": "it wraps another optimizer; build that with optax and pass the result",
}

SCHEDULE_FREE = ("schedule_free_adamw", "schedule_free_sgd")
# Optimizers with built-in decoupled decay: lr * decay * w, or the equivalent if they estimate the rate.
OWN_DECAY = (
    *("acprop", "adamaxw", "adamw", "adan", "ademamix", "dadapt_adamw", "galore", "lamb", "lion", "momo", "momo_adam"),
    *("nadamw", "novograd", "prodigy", "simplified_ademamix", "sophia", *SCHEDULE_FREE),
)
# They compute positions of the parameters, so their next step undoes anything added to or scaled in a step.
POSITIONS = ("cocob", "madgrad", *SCHEDULE_FREE)
FIXED_RATE = {
    "rprop": "its learning_rate sets only the size of the first step",
    **dict.fromkeys(SCHEDULE_FREE, "it averages instead; for a warm-up set the option warmup_steps"),
}
# Their update of a number depends on the rest of its array: norms, means, factors.
WHOLE_ARRAY = ("adafactor", "fromage", "galore", "lamb", "lars", "muon", "novograd", "sm3")
WHOLE_LOSS = ("lbfgs", "sophia")
ELSEWHERE = {
    **dict.fromkeys(("weight_decay", "weight_decay_rate", "adam_weight_decay"), "set decay"),
    **dict.fromkeys(("mask", "weight_decay_mask"), "set decay_mask"),
    "learning_rate": "set learning_rate",
    **dict.fromkeys(("key", "seed"), "pass the trial's key to build"),
}
BELOW_ONE = ("b1", "b2", "b3", "momentum", "rho")


def factory_of(name: str) -> Any:
    """Return the function of optax with that name."""
    return getattr(optax, name, None) or getattr(optax.contrib, name)


@functools.cache
def arguments_of(name: str) -> Mapping[str, inspect.Parameter]:
    """Return an optimizer's arguments."""
    return inspect.signature(factory_of(name)).parameters
