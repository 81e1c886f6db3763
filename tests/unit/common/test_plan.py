"""A plan is one value, one encoding, one hash; every other form is refused."""

import hashlib
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import cbor2
import pytest
from pydantic import ValidationError

from blindmerge import canonical
from blindmerge.errors import PeerInvalid, TooFewOwners
from blindmerge.manifest import describe
from blindmerge.merge import METHODS
from blindmerge.plan import Plan
from blindmerge.secagg.manifest import Thresholds
from support.evidence import bert_shapes
from support.plans import layouts_of, make_masks, make_plan, roster_of


@pytest.mark.parametrize("name", METHODS)
def test_decode_returns_the_plan(name: str) -> None:
    plan = make_plan(method={"name": name})
    decoded = Plan.decode(plan.encode())
    assert decoded == plan
    assert decoded.method == METHODS[name]
    assert decoded.encode() == plan.encode()


def test_bytes_are_readable_by_another_implementation() -> None:
    plan = make_plan()
    value = cbor2.loads(plan.encode())
    assert value.keys() == Plan.model_fields.keys()
    assert value["labels"] == list(plan.labels)
    assert value["method"] == plan.method.model_dump()


def test_hash_is_sha256_of_the_bytes() -> None:
    plan = make_plan()
    assert plan.sha256 == hashlib.sha256(plan.encode()).hexdigest()


MASKS = make_masks(4)
NOISE = {
    "mode": "statistics",
    "epsilon": 3.0,
    "delta": 1e-6,
    "grams": {"multiplier": 2.0, "clip": 10.0, "weights": (1.0,) * 10},
}

CHANGES: dict[str, Any] = {
    "job": "job-2",
    "base": "f" * 64,
    "manifest": describe("BertForSequenceClassification", bert_shapes(layers=3)),
    "labels": ("yes", "no", "maybe"),
    "method": {"name": "regmean", "ridge": 0.2},
    "examples": 1001,
    "max_length": 127,
    "masks": MASKS,
    "noise": NOISE,
}


def test_hash_changes_with_every_field() -> None:
    # The two that are left out have one value only.
    assert CHANGES.keys() == Plan.model_fields.keys() - {"version", "task"}
    plans = [make_plan(), *(make_plan(**{name: value}) for name, value in CHANGES.items())]
    assert len({plan.sha256 for plan in plans}) == len(plans)


def test_hash_changes_with_every_field_of_the_masks() -> None:
    masks = [
        MASKS,
        MASKS.model_copy(update={"roster": "f" * 64}),
        make_masks(4, colluders=2),
        make_masks(4, bits=48),
        MASKS.model_copy(update={"prg": "chacha20"}),
    ]
    assert len({make_plan(masks=each).sha256 for each in masks}) == 5


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from _leaves(value[key], (*path, key))
    else:
        yield path


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def _decoded(masks: Any = "off") -> dict[str, Any]:
    value = canonical.decode(make_plan(masks=masks).encode())
    assert isinstance(value, dict)
    return value


@pytest.mark.parametrize("masks", ["off", MASKS], ids=["off", "on"])
def test_every_leaf_is_part_of_the_hash(masks: Any) -> None:
    """Every leaf, down to the shape of a LayerNorm: changed, it is refused or hashes anew."""
    plan, hashes = make_plan(masks=masks), set()
    accepted = 0
    for path in _leaves(_decoded(masks)):
        changed = _decoded(masks)
        old = _at(changed, path)
        other = {bool: not old, int: 5, float: 0.75, str: f"{old}x", type(None): 5}[type(old)]
        assert other != old
        _at(changed, path[:-1])[path[-1]] = other
        try:
            hashes.add(Plan.decode(canonical.encode(changed)).sha256)
        except PeerInvalid:
            continue
        accepted += 1
    assert plan.sha256 not in hashes
    assert len(hashes) == accepted > 50


def _refused(change: Callable[[dict[str, Any]], object], masks: Any = "off") -> PeerInvalid:
    value = deepcopy(_decoded(masks))
    change(value)
    with pytest.raises(PeerInvalid) as refused:
        Plan.decode(canonical.encode(value))
    return refused.value


PLACES: tuple[tuple[Any, ...], ...] = (
    (),
    ("method",),
    ("masks",),
    ("masks", "thresholds"),
    ("manifest",),
    ("manifest", "blocks", 1),
    ("manifest", "blocks", 1, "groups", 0),
    ("manifest", "blocks", 1, "groups", 0, "layers", 0),
    ("manifest", "blocks", 0, "means", 0),
)


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_unknown_field_is_refused_and_named(place: tuple[Any, ...]) -> None:
    error = _refused(lambda value: _at(value, place).update(surprise=1), MASKS)
    assert "surprise" in error.message


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_missing_field_is_refused_even_if_it_has_a_default(place: tuple[Any, ...]) -> None:
    for name in _at(_decoded(MASKS), place):
        _refused(lambda value, name=name: _at(value, place).pop(name), MASKS)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("version", 2),
        ("job", ""),
        ("job", "-job"),
        ("job", "Job"),
        ("job", "job\n"),
        ("job", "../job"),
        ("job", "j" * 65),
        ("job", 1),
        ("base", "f" * 63),
        ("base", "F" * 64),
        ("base", "f" * 64 + "\n"),
        ("base", b"f" * 64),
        ("task", "translation"),
        ("labels", ["only"]),
        ("labels", ["a", "b", "a"]),
        ("labels", ["a", 1]),
        ("labels", "ab"),
        ("examples", 0),
        ("examples", -1),
        ("examples", 1.0),
        ("examples", True),
        ("examples", "10"),
        ("max_length", 0),
        ("max_length", None),
        ("method", {"name": "median"}),
        ("method", {}),
        ("method", "average"),
        ("manifest", None),
        ("masks", None),
        ("masks", "on"),
        ("masks", "OFF"),
        ("masks", False),
        ("masks", {}),
    ],
)
def test_wrong_value_is_refused(name: str, wrong: object) -> None:
    error = _refused(lambda value: value.update({name: wrong}))
    assert name in error.message


@pytest.mark.parametrize("equal", [True, 1.0])
def test_number_that_equals_the_version_but_has_another_type_is_refused(equal: object) -> None:
    _refused(lambda value: value.update(version=equal))


@pytest.mark.parametrize(
    ("method", "wrong"),
    [
        ("regmean", {"ridge": -0.1}),
        ("regmean", {"ridge": 1}),
        ("regmean", {"off_diagonal": 1.5}),
        ("regmean", {"off_diagonal": -0.5}),
        ("regmean", {"rows_factor": -1.0}),
        ("regmean", {"weighting": "examples"}),
        ("fisher", {"floor": 0.0}),
        ("task-arithmetic", {"scale": 0.0}),
        ("ties", {"density": 0.0}),
        ("ties", {"density": 1.1}),
        ("average", {"scale": 1.0}),
    ],
)
def test_wrong_option_of_a_method_is_refused(method: str, wrong: dict[str, object]) -> None:
    options = METHODS[method]
    assert hasattr(options, "model_dump")
    _refused(lambda value: value.update(method={**options.model_dump(), **wrong}))


@pytest.mark.parametrize("value", [None, 1, "plan", [], {}, [1, 2]])
def test_other_values_are_refused(value: object) -> None:
    with pytest.raises(PeerInvalid):
        Plan.decode(canonical.encode(value))


def test_bytes_that_are_not_canonical_are_refused() -> None:
    data = make_plan().encode()
    for damaged in (b"", data[:-1], data + b"\x00", b"\xbf" + data[1:] + b"\xff"):
        with pytest.raises(PeerInvalid):
            Plan.decode(damaged)


def test_refusal_puts_no_control_characters_on_the_terminal() -> None:
    error = _refused(lambda value: value.update({"\x1b[2J" * 50: 1}))
    assert error.message.isprintable()
    assert len(error.message) < 200


def test_a_plan_is_frozen() -> None:
    with pytest.raises(ValidationError):
        make_plan().job = "other"


def test_plan_with_a_label_twice_cannot_be_made() -> None:
    with pytest.raises(ValidationError, match="occurs twice"):
        make_plan(labels=("a", "b", "b"))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("roster", "f" * 63),
        ("roster", b"f" * 32),
        ("bits", 16),
        ("prg", "rc4"),
        ("thresholds", {**MASKS.thresholds.model_dump(), "threshold": 2}),
        ("thresholds", {**MASKS.thresholds.model_dump(), "owners": 2}),
        ("thresholds", None),
    ],
)
def test_wrong_masks_are_refused(name: str, wrong: object) -> None:
    error = _refused(lambda value: value["masks"].update({name: wrong}), MASKS)
    assert "masks" in error.message


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ({"name": "fisher"}, "'fisher': Fisher information differs"),
        ({"name": "progressive", "fisher_share": 0.25}, "'progressive': Fisher information"),
        ({"name": "average", "weighting": "tokens"}, "'average': weighting = \"tokens\""),
        ({"name": "regmean", "weighting": "tokens"}, "'regmean': weighting = \"tokens\""),
        ({"name": "regmean", "shrinkage": "two-fold"}, "'regmean': shrinkage = \"two-fold\""),
        ({"name": "regmean++", "ridge": 0.009}, "'regmean[+][+]': its ridge of 0.009 is below"),
    ],
)
def test_numbers_too_coarse_for_a_method_are_refused(method: Any, reason: str) -> None:
    for bits in (64, 48):
        make_plan(method=method, masks=make_masks(4, bits=bits))
    with pytest.raises(ValidationError, match=f"32 bits are too few for {reason}"):
        make_plan(method=method, masks=make_masks(4, bits=32))


def test_many_owners_or_noise_need_more_than_32_bits() -> None:
    make_plan(masks=make_masks(100, bits=32))
    with pytest.raises(ValidationError, match="101 owners need more room, the most are 100"):
        make_plan(masks=make_masks(101, bits=32))
    make_plan(masks=make_masks(4, bits=48), noise=NOISE)
    with pytest.raises(ValidationError, match="32 bits are too few for noise"):
        make_plan(masks=make_masks(4, bits=32), noise=NOISE)


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"fisher"}))
def test_numbers_of_32_bits_are_enough_for_every_other_method(name: str) -> None:
    plan = make_plan(method={"name": name}, masks=make_masks(4, bits=32))
    assert Plan.decode(plan.encode()) == plan
    assert plan.sum_manifest(0, layouts_of(plan)[0], attempt=0, expires=2).parts[0].bits == 32


def test_masks_are_for_the_owners_of_a_roster() -> None:
    masks = make_masks(5, colluders=2, bits=48)
    assert masks.roster == roster_of(5).sha256.hex()
    assert masks.thresholds == Thresholds.for_owners(5, 2)
    assert masks.bits == 48
    for owners in (1, 2):
        with pytest.raises(TooFewOwners, match=f"needs 3 owners, the roster has {owners}"):
            make_masks(owners)


def test_a_one_shot_method_is_one_sum_over_the_blocks_of_the_manifest() -> None:
    plan = make_plan()
    assert [block.name for block in plan.blocks] == [
        "embeddings",
        "bert.encoder.layer.0",
        "bert.encoder.layer.1",
        "head",
    ]
    assert plan.phases == ((0, 1, 2, 3),)


def test_a_progressive_method_is_a_sum_per_block() -> None:
    plan = make_plan(method={"name": "progressive"})
    assert plan.phases == tuple((number,) for number in range(len(plan.blocks)))
    assert len(plan.phases) > 4


@pytest.mark.parametrize("name", METHODS)
def test_the_blocks_have_every_tensor_once(name: str) -> None:
    plan = make_plan(method={"name": name})
    named = [pair for block in plan.blocks for pair in block.shapes.items()]
    assert sorted(named) == sorted(bert_shapes().items())


@pytest.mark.parametrize("name", METHODS)
def test_the_manifest_of_a_sum_is_the_plans(name: str) -> None:
    plan = make_plan(method={"name": name}, masks=MASKS)
    for phase, parts in enumerate(layouts_of(plan)):
        manifest = plan.sum_manifest(phase, parts, attempt=1, expires=9)
        assert (manifest.phase, manifest.phases) == (phase, len(plan.phases))
        assert (manifest.job, manifest.plan, manifest.base) == (plan.job, plan.sha256, plan.base)
        assert (manifest.roster, manifest.thresholds) == (MASKS.roster, MASKS.thresholds)
        assert (manifest.prg, manifest.attempt, manifest.expires) == (MASKS.prg, 1, 9)
        assert manifest.parts == tuple(parts)


def test_parts_that_are_not_the_plans_are_refused() -> None:
    plan = make_plan(masks=MASKS)
    (parts,) = layouts_of(plan)
    narrow = layouts_of(make_plan(masks=make_masks(4, bits=48)))[0]
    for wrong in (parts[:-1], [*parts, parts[0]], parts[::-1], [parts[0], *narrow[1:]], narrow):
        with pytest.raises(PeerInvalid):
            plan.sum_manifest(0, wrong, attempt=0, expires=9)
    for phase in (-1, 1):
        with pytest.raises(PeerInvalid, match=f"no secure sum number {phase}"):
            plan.sum_manifest(phase, parts, attempt=0, expires=9)
    with pytest.raises(PeerInvalid, match="no secure sum number 0"):
        make_plan().sum_manifest(0, parts, attempt=0, expires=9)


def test_a_plan_longer_than_any_is_not_read() -> None:
    with pytest.raises(PeerInvalid, match="longer than 4,194,304 bytes"):
        Plan.decode(b"\x9a\x00\xff\xff\xff" + bytes(1 << 22))
