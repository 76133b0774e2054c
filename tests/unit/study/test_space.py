"""The search space: what is refused, what a value becomes in Optuna and back, and what is traced."""

import copy
import dataclasses
import enum
import json
import math
import pickle
import subprocess
import sys
import types
from typing import Any, cast

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import distribution_to_json, json_to_distribution

import tuner.study.space
from tuner.errors import MissingHParam, SpaceError
from tuner.study.domains import Domain, FloatDomain, IntDomain, domains_of, parameters
from tuner.study.space import (
    Space,
    SpaceMeta,
    choice,
    examples,
    from_params,
    int_uniform,
    is_traced,
    log_uniform,
    parse_fixed,
    sample,
    static_combinations,
    static_names,
    to_params,
    uniform,
)

thorough = settings(deadline=None, max_examples=60)
nan, inf = math.nan, math.inf

Colour = enum.Enum("Colour", ["RED", "BLUE"])
Mode = enum.Enum("Mode", {"FAST": "fast", "SLOW": "slow"}, type=str)  # equal to plain text, but not the same option


class SGD(Space):
    learning_rate: float = log_uniform(1e-3, 1.0)
    momentum: float = uniform(0.0, 0.99)


class Cosine(Space):
    warmup: int = int_uniform(0, 100, step=10)


class Linear(Space):
    warmup: int = int_uniform(0, 50)
    end: float = uniform(0.0, 0.1)


class AdamW(Space):
    learning_rate: float = log_uniform(1e-5, 1e-2)
    momentum: float = uniform(0.0, 0.99)
    schedule: Cosine | Linear | None = choice(None, Cosine, Linear)


class HParams(Space):
    width: int = choice(32, 64, 128)
    size: int = int_uniform(2, 10, step=4)
    depth: int = int_uniform(1, 64, log=True)
    rate: float = log_uniform(0.1, 10.0)
    colour: object = choice(Colour.RED, Colour.BLUE, None, True, 1.5, (1, "a"))
    opt: SGD | AdamW = choice(SGD, AdamW)
    classes: int = 10


SGD_VALUES = SGD(learning_rate=0.01, momentum=0.9)
VALUES = HParams(width=64, size=6, depth=3, rate=1.0, colour=(1, "a"), opt=SGD_VALUES)
SGD_PARAMS = {"opt": "SGD", "opt.SGD.learning_rate": 0.01, "opt.momentum": 0.9}
PARAMS = {"width": 64, "size": 6, "depth": 3, "rate": 1.0, "colour": "(1, a)", **SGD_PARAMS}


def make(body: dict[str, Any], name: str = "Made") -> type[Space]:
    """Return a space class with this body; every field has an annotation."""
    annotations = {field: object for field in body}
    return cast("type[Space]", SpaceMeta(name, (Space,), {"__annotations__": annotations, **body}))


def run_module(monkeypatch: pytest.MonkeyPatch, source: str) -> types.ModuleType:
    """Return a module of this source, with the names of `tuner.study.space` in it."""
    module = types.ModuleType("made_module")
    vars(module).update({name: value for name, value in vars(tuner.study.space).items() if not name.startswith("__")})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(source, "made_module.py", "exec", dont_inherit=True), vars(module))
    return module


def new_study(seed: int = 0) -> optuna.Study:
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))


@st.composite
def float_domains(draw: st.DrawFn) -> tuple[Domain, Any]:
    log, traced = draw(st.booleans()), draw(st.booleans())
    low, high = (2.0**-100, 2.0**100) if log else (-(2.0**100), 2.0**100)
    # Bounds of traced numbers must differ as float32.
    bounds = st.floats(low, high, width=32, allow_subnormal=False) if traced else st.floats(low, high)
    low, high = sorted(draw(st.lists(bounds, min_size=2, max_size=2, unique=True)))
    return FloatDomain(low, high, log, traced=traced), draw(st.floats(low, high))


@st.composite
def int_domains(draw: st.DrawFn) -> tuple[Domain, Any]:
    log, traced = draw(st.booleans()), draw(st.booleans())
    most = 2**30 if traced else 2**40  # an int32 with the steps below
    low = draw(st.integers(1 if log else -most, most))
    step = 1 if log else draw(st.integers(1, 1000))
    steps = draw(st.integers(1, 10**6))
    value = low + step * draw(st.integers(0, steps))
    return IntDomain(low, low + step * steps, step, log, traced=traced), value


def label_of(option: Any) -> Any:
    """Return the label that the documentation promises."""
    if isinstance(option, enum.Enum):
        return f"{type(option).__name__}.{option.name}"
    if isinstance(option, tuple):
        return f"({', '.join(str(label_of(part)) for part in option)})"
    return getattr(option, "__name__", option)


text = st.text(max_size=6)
plain_values = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text
part_values = st.integers() | text | st.sampled_from([int, Colour.RED])
tuple_values = st.recursive(part_values, lambda part: st.lists(part, max_size=3).map(tuple), max_leaves=4)
named_values = st.sampled_from([*Colour, *Mode, "fast", "slow", int, math.exp, SGD.__init__])
option_values = plain_values | tuple_values | named_values
number_values = [
    st.integers(-(2**31), 2**31 - 1),
    st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False),
    st.booleans(),
]


@st.composite
def choice_domains(draw: st.DrawFn) -> tuple[Domain, Any]:
    kind = draw(st.sampled_from(["plain", "traced", "mapped"]))
    if kind == "mapped":
        labels = draw(st.lists(plain_values, min_size=1, max_size=4, unique=True))
        options = [object() for _ in labels]
        return choice(dict(zip(labels, options, strict=True))), draw(st.sampled_from(options))
    each = draw(st.sampled_from(number_values)) if kind == "traced" else option_values
    options = draw(st.lists(each, min_size=1, max_size=6, unique_by=label_of))
    domain = choice(*options, traced=kind == "traced")
    assert domain.labels == tuple(label_of(option) for option in options)
    return domain, draw(st.sampled_from(options))


@pytest.mark.slow
@settings(deadline=None, max_examples=250)
@given(st.one_of(float_domains(), int_domains(), choice_domains()), st.integers(0, 2**31))
def test_value_comes_back_from_storage_exactly(case: tuple[Domain, Any], seed: int) -> None:
    domain, drawn = case
    space = make({"x": domain})
    trial = new_study(seed).ask()
    sampled = sample(space, trial).x
    distribution = domain.distribution()
    assert trial.distributions == {"x": distribution}
    restored = json_to_distribution(distribution_to_json(distribution))
    assert restored == distribution
    for value in (drawn, sampled, domain.example()):
        stored = domain.encode(value)
        assert type(stored) in (type(None), bool, int, float, str)
        assert domain.contains(value)
        decoded = domain.decode(stored)
        assert decoded == value
        assert type(decoded) is type(value)
        external = restored.to_external_repr(distribution.to_internal_repr(stored))
        assert external == stored
        assert type(external) is type(stored)
        instance = cast("Any", space)(x=value)
        assert from_params(space, json.loads(json.dumps(to_params(instance)))) == instance


@thorough
@given(float_domains() | int_domains(), st.integers(0, 2**31))
def test_sampled_number_lies_in_its_domain(case: tuple[Any, Any], seed: int) -> None:
    domain = case[0]
    value = domain.decode(domain.suggest(new_study(seed).ask(), "x"))
    assert type(value) is (float if isinstance(domain, FloatDomain) else int)
    assert domain.low <= value <= domain.high
    if isinstance(domain, IntDomain):
        assert (value - domain.low) % domain.step == 0
        assert not domain.contains(domain.low - domain.step)
        assert domain.step == 1 or not domain.contains(domain.low + 1)
    assert not domain.contains(domain.high + max(1, abs(domain.high) / 8))
    assert not any(domain.contains(other) for other in (True, str(value), None))
    assert eval(repr(domain), {**vars(tuner.study.space)}) == domain


POOL: list[Domain] = [uniform(0, 1), log_uniform(1e-3, 1), int_uniform(0, 8, step=2), int_uniform(1, 64, log=True)]
POOL += [choice("a", None, 3, False, 2.5), choice(Colour.RED, int, (1, "b"))]


@st.composite
def space_classes(draw: st.DrawFn, pool: list[Domain], name: str = "Root", depth: int = 2) -> type[Space]:
    """A space over few names and domains, so that branches share some and clash in others."""
    here = [*pool]
    if depth:
        for at in range(draw(st.integers(1, 2))):
            inner = pool + ([choice(*(make({"a": pool[0]}, f"Leaf{n}") for n in range(2)))] if depth > 1 else [])
            letters = "PQR"[: draw(st.integers(1, 3))]
            options = [draw(space_classes(inner, f"{name}{at}{letter}", depth - 1)) for letter in letters]
            here.append(choice(*options, *[None] * draw(st.booleans())))
    fields = draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=4, unique=True))
    body: dict[str, Any] = {field: draw(st.sampled_from(here)) for field in fields}
    if depth:
        body["opt"] = here[-1]
    return make(body, name)


@thorough
@given(space_classes(POOL), st.integers(0, 2**31))
@pytest.mark.slow
def test_hparams_equal_what_the_trial_stored(space: type[Space], seed: int) -> None:
    domains: dict[str, Domain] = {}
    for name, domain, _ in parameters(space):
        assert domains.setdefault(name, domain) == domain  # one name, one distribution
    study = new_study(seed)
    for _ in range(3):
        trial = study.ask()
        hparams = sample(space, trial)
        assert to_params(hparams) == trial.params
        assert from_params(space, trial.params) == hparams
        assert trial.distributions == {name: domains[name].distribution() for name in trial.params}
        assert copy.deepcopy(hparams) == hparams
        # A name in the parameters belongs to the branch that was taken.
        conditions = {f"{name}={value}" for name, value in trial.params.items()} | {""}
        expected = {name for name, _, when in parameters(space) if when in conditions}
        assert set(trial.params) == expected


def test_branch_names_are_short_where_equal_and_full_where_they_clash() -> None:
    assert to_params(VALUES) == PARAMS
    assert from_params(HParams, PARAMS) == VALUES
    rows = list(parameters(HParams))
    listed = {when: [name for name, _, other in rows if other == when] for _, _, when in rows}
    assert listed == {
        "": ["width", "size", "depth", "rate", "colour", "opt"],
        "opt=SGD": ["opt.SGD.learning_rate", "opt.momentum"],
        "opt=AdamW": ["opt.AdamW.learning_rate", "opt.momentum", "opt.schedule"],
        "opt.schedule=Cosine": ["opt.schedule.Cosine.warmup"],
        "opt.schedule=Linear": ["opt.schedule.Linear.warmup", "opt.schedule.end"],
    }


def test_examples_visit_every_space_once() -> None:
    found = [to_params(each) for each in examples(HParams)]
    branches = [(params["opt"], params.get("opt.schedule", "")) for params in found]
    assert sorted(branches, key=str) == [("AdamW", "Cosine"), ("AdamW", "Linear"), ("AdamW", None), ("SGD", "")]
    numbers = {"width": 32, "size": 2, "depth": 1, "rate": 0.1, "colour": "Colour.RED", "opt": "SGD"}
    assert found[0] == {**numbers, "opt.SGD.learning_rate": 1e-3, "opt.momentum": 0.0}


@thorough
@given(space_classes(POOL))
@pytest.mark.slow
def test_examples_visit_every_option_of_every_name(space: type[Space]) -> None:
    wanted = {(name, label) for name, domain, _ in parameters(space) for label in getattr(domain, "spaces", ())}
    seen = {item for each in examples(space) for item in to_params(each).items()}
    assert wanted <= seen


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"width": 33}, r"must be one of \[32, 64, 128\]: got 33"),
        ({"width": 32.0}, r"must be one of .* got 32.0"),
        ({"size": 4}, r"size must be in int_uniform\(2, 10, step=4\): got 4"),
        ({"opt": "Adam"}, "must be one of .* got 'Adam'"),
        ({"opt": "AdamW"}, "the parameter 'opt.AdamW.learning_rate' of HParams is missing"),
        ({"opt.momentum": 1}, r"opt.momentum must be in uniform\(0.0, 0.99\): got 1"),
    ],
)
def test_params_that_do_not_fit_are_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        from_params(HParams, {**PARAMS, **params})
    with pytest.raises(SpaceError, match=r"must be one of \[32, 64, 128\]: got 33"):
        to_params(dataclasses.replace(VALUES, width=33))


not_a_number = cast("Any", "0")
REFUSED: dict[str, list[Any]] = {
    "bounds must be finite numbers: got low=nan, high=1": [uniform(nan, 1)],
    "bounds must be finite numbers: got low=0, high=inf": [uniform(0, inf)],
    "bounds must be finite numbers: got low='0'": [uniform(not_a_number, 1), log_uniform(not_a_number, 1)],
    "bounds must be finite numbers": [uniform(-inf, 0), uniform(0, True), log_uniform(1, inf)],
    "a log scale needs low > 0: got low=": [log_uniform(0, 1), log_uniform(-1, 1)],
    "low must be below high: got low=4, high=1": [uniform(4, 1), log_uniform(4, 1), int_uniform(4, 1)],
    "low must be below high": [uniform(1, 1), log_uniform(1, 1), int_uniform(1, 1), int_uniform(4, 1, step=3)],
    r"low, high and step must be integers: got int_uniform\(0, 4.0\)": [int_uniform(0, cast("int", 4.0))],
    "low, high and step must be integers": [int_uniform(0, not_a_number), int_uniform(False, 4)],
    "and step must be integers": [int_uniform(0, 4, step=cast("int", 0.5)), int_uniform(0, 4, step=True)],
    "a log scale needs low >= 1: got low=0": [int_uniform(0, 8, log=True)],
    "a log scale cannot have a step: got step=2": [int_uniform(2, 10, step=2, log=True)],
    "high must be low plus a multiple of step: got high=10, step=4; use high=9": [int_uniform(1, 10, step=4)],
    "step must be at least 1: got step=": [int_uniform(0, 10, step=0), int_uniform(0, 10, step=-5)],
    "a choice needs at least one option": [choice(), choice({})],
    "options must differ: 1 is given twice": [choice(1, 2, 1)],
    "options must differ: True is given twice": [choice(1, True)],
    "options must differ: 'int' is given twice": [choice(int, type("int", (), {}))],
    "options must differ": [choice(0, 0.0), choice(("1",), (1,)), choice("", None, "")],
    r"options must be hashable: got \[1, 2\]; use a tuple": [choice([1, 2], 3), choice({"a": [1, 2]})],
    r"no stable label for <.*; give one with a mapping: choice\({'name'": [choice(1, object()), choice(1, lambda: 2)],
    r"labels must be plain JSON values: got \(1, 2\)": [choice({(1, 2): "a"})],
    "options must be finite: got .*use labels": [choice(0.1, nan), choice(0.1, -inf)],
    "cannot mix Space classes with other options than None: got choice": [choice(SGD, "adam"), choice(3, SGD)],
    r"a traced choice needs numbers: got choice\('a', traced=True\)": [choice("a", traced=True)],
    "a traced choice needs numbers": [choice(1, None, traced=True), choice(1, "2", traced=True)],
}


@pytest.mark.parametrize(("message", "domain"), [(key, each) for key, domains in REFUSED.items() for each in domains])
def test_impossible_domain_is_refused_with_its_field(message: str, domain: Any) -> None:
    with pytest.raises(SpaceError, match=rf"^Bad\.field: .*{message}"):
        make({"good": uniform(0.0, 1.0), "field": domain}, "Bad")


BAD_BODIES = {
    "field = uniform(0, 1)": r"^Bad\.field: a field needs a type annotation",
    "_field: float = uniform(0, 1)": r"^Bad\._field: a field's name must not start with an underscore",
    "field: float = uniform(0, 1); field: float = 0.5": r"^Bad\.field: the field is defined twice",
    "field: int = choice(1, 2); field: int = choice(3, 4)": r"^Bad\.field: the field is defined twice",
}


@pytest.mark.parametrize(("lines", "message"), BAD_BODIES.items())
def test_bad_body_is_refused_with_its_field(monkeypatch: pytest.MonkeyPatch, lines: str, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        run_module(monkeypatch, f"class Bad(Space):\n    {lines}")


def test_possible_domains_are_accepted() -> None:
    numbers = [uniform(0, 1), uniform(-1.0, 0.0), int_uniform(-3, 3, step=3), int_uniform(1, 2, log=True)]
    choices = [choice(SGD), choice(None, SGD), choice({"a": inf, "b": object()}), choice(1, "1"), choice(*Mode, "fast")]
    body = {f"field{at}": domain for at, domain in enumerate(numbers + choices)}
    assert domains_of(make(body)) == body


def test_instance_is_frozen_equal_by_value_and_survives_copying() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError, match="momentum"):
        SGD_VALUES.momentum = 0.1  # pyright: ignore[reportAttributeAccessIssue]
    again = SGD(learning_rate=0.01, momentum=0.9)
    assert again == SGD_VALUES
    assert hash(again) == hash(SGD_VALUES)
    assert SGD(learning_rate=0.01, momentum=0.8) != SGD_VALUES
    with pytest.raises(TypeError, match="positional"):
        SGD(0.1, 0.5)  # pyright: ignore[reportCallIssue]
    for copied in (copy.copy(VALUES), copy.deepcopy(VALUES), pickle.loads(pickle.dumps(VALUES))):
        assert copied == VALUES


@pytest.mark.parametrize("header", ["", "from __future__ import annotations\n"])
def test_int_in_a_float_field_becomes_float(monkeypatch: pytest.MonkeyPatch, header: str) -> None:
    source = "class H(Space):\n    rate: float\n    size: int\n    flag: float = 0.5\n"
    made = run_module(monkeypatch, header + source).H(rate=1, size=2, flag=True)
    assert [type(value) for value in (made.rate, made.size, made.flag)] == [float, int, bool]
    assert type(dataclasses.replace(made, rate=3).rate) is float


def test_missing_hparam_names_the_nearest_and_all() -> None:
    message = r"SGD has no .*'learnin_rate' \(it has learning_rate, momentum\): .*; did you mean 'learning_rate'\?$"
    with pytest.raises(MissingHParam, match=message) as caught:
        _ = SGD_VALUES.learnin_rate
    assert {AttributeError, SpaceError} <= set(type(caught.value).__mro__)
    assert not hasattr(SGD_VALUES, "weight_decay")
    with pytest.raises(MissingHParam, match=r"Made has no hyperparameter 'width' \(it has none\): add"):
        _ = make({})().width
    with pytest.raises(AttributeError, match=r"^_private$") as plain:
        _ = SGD_VALUES._private
    assert not isinstance(plain.value, MissingHParam)


def test_field_without_domain_or_default_is_named() -> None:
    class Incomplete(Space):
        rate: float
        width: int = choice(1, 2)

    with pytest.raises(SpaceError, match=r"^Incomplete: the field 'rate' needs a domain or a default"):
        sample(Incomplete, new_study().ask())
    assert Incomplete(rate=0.1, width=1).rate == 0.1  # a define-by-run function gives it


def test_subclass_adds_overrides_and_replaces() -> None:
    class Mine(SGD):
        momentum: float = uniform(0.5, 0.6)
        nesterov: bool = choice(True, False)

    class Fixed(SGD):
        momentum: float = 0.9

    class Both(Mine, SGD):
        pass

    rate = log_uniform(1e-3, 1.0)
    expected = {"learning_rate": rate, "momentum": uniform(0.5, 0.6), "nesterov": choice(True, False)}
    assert domains_of(Mine) == domains_of(Both) == expected
    assert domains_of(Fixed) == {"learning_rate": rate}
    assert domains_of(SGD) == {"learning_rate": rate, "momentum": uniform(0.0, 0.99)}
    trial = new_study().ask()
    assert cast("Fixed", sample(Fixed, trial)).momentum == 0.9  # a field without a domain is a constant
    assert set(trial.params) == {"learning_rate"}
    assert 0.5 <= cast("Mine", sample(Mine, new_study().ask())).momentum <= 0.6


TRACED = """
class Nested(Space):
    rate: float = 0.5

class H(Space):
    yes_uniform: float = uniform(0.0, 1.0)
    yes_log: float = log_uniform(0.1, 1.0)
    yes_int: int = int_uniform(1, 4, traced=True)
    yes_choice: float = choice(0.1, 0.2, traced=True)
    yes_spaces: Nested | None = choice(Nested, None)
    yes_float: float = 0.5
    yes_space: Nested = Nested()
    yes_without_default: float
    no_uniform: float = uniform(0.0, 1.0, static=True)
    no_log: float = log_uniform(0.1, 1.0, static=True)
    no_int: int = int_uniform(1, 4)
    no_choice: float = choice(0.1, 0.2)
    no_text: str = "gelu"
    no_whole: int = 3
    no_flag: bool = True
"""


@pytest.mark.parametrize("header", ["", "from __future__ import annotations\n"])
def test_what_is_traced(monkeypatch: pytest.MonkeyPatch, header: str) -> None:
    space = run_module(monkeypatch, header + TRACED).H
    fields = [field.name for field in dataclasses.fields(space)]
    assert len(fields) == 15
    assert [field for field in fields if is_traced(space, field)] == [f for f in fields if f.startswith("yes_")]


def test_type_is_part_of_a_value_and_one_over_a_traced_choice() -> None:
    assert [choice(*Mode, "fast").encode(value) for value in ("fast", Mode.FAST)] == ["fast", "Mode.FAST"]
    assert not any(choice(1, 2).contains(value) for value in (1.0, True))
    assert repr(to_params(cast("Any", make({"x": uniform(0, 2)}))(x=1))) == "{'x': 1.0}"
    assert type(uniform(0, 2).decode(1)) is float
    assert choice((1, (int, Colour.RED)), ()).labels == ("(1, (int, Colour.RED))", "()")
    for domain in (choice(1, 0.5, traced=True), choice({1: 1, 0.5: 0.5}, traced=True)):
        assert [type(domain.decode(label)) for label in (1, 0.5)] == [float, float]
    assert [type(choice(1, 2, traced=True).decode(label)) for label in (1, 2)] == [int, int]
    assert [type(choice(1, 0.5).decode(label)) for label in (1, 0.5)] == [int, float]


def test_fixed_words_become_values() -> None:
    words = {"rate": "10", "size": "6", "opt": "AdamW", "opt.schedule.Cosine.warmup": "20", "opt.momentum": "0"}
    fixed = parse_fixed(HParams, words)
    assert fixed == {"rate": 10.0, "size": 6, "opt": AdamW, "opt.schedule.Cosine.warmup": 20, "opt.momentum": 0.0}
    assert [type(value) for value in fixed.values()] == [float, int, SpaceMeta, int, float]
    labels = ["Colour.RED", "Colour.BLUE", "None", "True", "1.5", "(1, a)"]
    colours = [parse_fixed(HParams, {"colour": label})["colour"] for label in labels]
    assert colours == [Colour.RED, Colour.BLUE, None, True, 1.5, (1, "a")]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("raet", "1", "no hyperparameter 'raet': the space has width, size, .*; did you mean 'rate'"),
        ("opt.learning_rate", "1", "no hyperparameter .*did you mean 'opt.SGD.learning_rate'"),
        ("rate", "11", r"rate must be in log_uniform\(0.1, 10.0\): got 11.0"),
        ("rate", "nan", "rate must be in .* got nan"),
        ("rate", "fast", "rate must be in .* got 'fast'"),
        ("size", "8", r"size must be in int_uniform\(2, 10, step=4\): got 8"),
        ("size", "6.0", "size must be in .* got '6.0'"),
        ("colour", "RED", r"colour must be in choice\('Colour.RED', .* got 'RED'"),
    ],
)
def test_bad_fixed_word_is_refused(name: str, text: str, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        parse_fixed(HParams, {name: text})


def test_fixed_value_is_recorded_and_never_varies() -> None:
    every: dict[str, Any] = {"rate": 2, "size": 6, "depth": 9, "colour": (1, "a"), "opt": SGD, "opt.momentum": 0.5}
    recorded = {**every, "colour": "(1, a)", "opt": "SGD"}
    for names in [*([name] for name in every), list(every)]:
        study, widths = new_study(), set()
        for _ in range(6):
            trial = study.ask()
            assert to_params(sample(HParams, trial, {name: every[name] for name in names})) == trial.params
            widths.add(trial.params["width"])
            for name in trial.params.keys() & names:
                assert trial.params[name] == recorded[name]
                assert trial.distributions[name].single()
        assert len(widths) > 1  # what is not fixed goes on varying
    assert int_uniform(1, 64, log=True).only(9) == IntDomain(9, 9, log=True)


def test_module_imports_neither_jax_nor_optuna() -> None:
    script = "import sys, tuner.study.space; assert not {'jax', 'optuna'} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- Combinations of static values


class Inner(Space):
    momentum: float = uniform(0.0, 1.0)
    steps: int = int_uniform(1, 5, step=2)


class Static(Space):
    rate: float = log_uniform(1e-3, 1.0)
    width: int = choice(32, 64)
    ratio: int = int_uniform(1, 9, traced=True)
    inner: Inner | None = choice(None, Inner)


def test_each_combination_of_static_values_is_found_once() -> None:
    found = [to_params(one) for one in static_combinations(Static, 8)]
    static = [{name: value for name, value in params.items() if name in static_names(Static)} for params in found]
    expected = [
        {"width": width, **inner}
        for width in (32, 64)
        for inner in ({"inner": None}, *({"inner": "Inner", "inner.steps": steps} for steps in (1, 3, 5)))
    ]
    assert sorted(map(str, static)) == sorted(map(str, expected))
    assert len({params["rate"] for params in found}) == len({params["ratio"] for params in found}) == 1


def test_combinations_are_none_if_there_are_too_many() -> None:
    class Endless(Space):
        scale: float = uniform(0.0, 1.0, static=True)

    class Traced(Space):
        scale: float = uniform(0.0, 1.0)

    class Large(Space):
        size: int = int_uniform(1, 2**40)

    assert static_combinations(Static, 7) == static_combinations(Endless, 99) == static_combinations(Large, 99) == []
    assert len(static_combinations(Traced, 99)) == 1


def test_combinations_that_the_space_refuses_are_left_out() -> None:
    class Picky(Space):
        width: int = choice(16, 32)
        depth: int = choice(1, 2, 3)

        def __post_init__(self) -> None:
            if (self.width, self.depth) in ((16, 1), (32, 3)):
                raise ValueError("too small, or too large")

    found = [(one.width, one.depth) for one in static_combinations(Picky, 6)]  # pyright: ignore[reportAttributeAccessIssue]
    assert sorted(found) == [(16, 2), (16, 3), (32, 1), (32, 2)]


def test_fixed_values_are_those_of_all_combinations() -> None:
    found = [to_params(one) for one in static_combinations(Static, 3, {"width": 64, "inner": Inner})]
    assert [(params["width"], params["inner"], params["inner.steps"]) for params in found] == [
        (64, "Inner", steps) for steps in (1, 3, 5)
    ]
    assert len(static_combinations(Static, 1, {"width": 32, "inner": None})) == 1
