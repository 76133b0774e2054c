"""The form that queues a trial: a field for each hyperparameter that the study's trials have had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import CategoricalDistribution, json_to_distribution
from sqlalchemy import Engine

from tuner.admin.edits import known_distributions
from tuner.storage.read.queries import StudyRow

PREFIX = "hparam:"
"""The names of the form's fields begin with it."""
MOST_FIELDS = 200

FORM = """<form method="post" action="{{prefix}}/actions/{{study_id}}/enqueue">
<p class="note">The next free worker runs it. Hyperparameters that are left empty are sampled.</p>
<div class="hparams">
% for at, field in enumerate(fields):
<div>
<label for="hparam-{{at}}">{{field.name}}</label>
% if field.choices:
<select id="hparam-{{at}}" name="{{field.key}}">
<option value="">(sampled)</option>
% for word in field.choices:
<option value="{{word}}"{{!' selected' if word == field.value else ''}}>{{word}}</option>
% end
</select>
% else:
<input id="hparam-{{at}}" name="{{field.key}}" value="{{field.value}}" placeholder="{{field.hint}}" autocomplete="off">
% end
</div>
% end
</div>
<button>Queue a trial</button>
</form>
"""


@dataclass(frozen=True)
class Field:
    """A field of the form.

    Attributes:
        name: The hyperparameter.
        choices: Its options as text; empty for a number.
        hint: The range of a number.
        value: The text that the field begins with.
    """

    name: str
    choices: Sequence[str] = ()
    hint: str = ""
    value: str = ""

    @property
    def key(self) -> str:
        """The name of the field in the form."""
        return PREFIX + self.name


def read_fields(engine: Engine, study: StudyRow, given: Mapping[str, object]) -> list[Field]:
    """Return the fields for a study, in the order of its hyperparameters; none if it has no trials yet.

    Args:
        engine: The storage's engine.
        study: The study.
        given: Values that the fields begin with, by hyperparameter.
    """
    known = known_distributions(engine, study)
    return [_field(name, texts, given) for name, texts in list(known.items())[:MOST_FIELDS]]


def _field(name: str, texts: Sequence[str], given: Mapping[str, object]) -> Field:
    value = str(given[name]) if name in given else ""
    domains = [json_to_distribution(text) for text in texts]
    words = [str(choice) for one in domains if isinstance(one, CategoricalDistribution) for choice in one.choices]
    if words:
        return Field(name, list(dict.fromkeys(words)), value=value)
    return Field(name, hint=" or ".join(_hint(one) for one in domains), value=value)


def _hint(domain: Any) -> str:
    scale = ", log" if domain.log else ""
    step = f", step {domain.step}" if domain.step not in (None, 1) else ""
    return f"{domain.low:g} to {domain.high:g}{scale}{step}"


def words_of(form: Mapping[str, str]) -> dict[str, str]:
    """Return the hyperparameters in a sent form: name -> text; without empty fields."""
    return {key.removeprefix(PREFIX): text for key, text in form.items() if key.startswith(PREFIX) and text.strip()}
