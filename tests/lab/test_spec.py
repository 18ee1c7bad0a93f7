from __future__ import annotations

import json
from typing import Any

import pytest

from znorm.lab.errors import ConfigurationError
from znorm.lab.spec import RunSpec, keys, resolve


def test_defaults_are_resolved_and_never_auto() -> None:
    spec = resolve({})
    assert (spec.task, spec.model, spec.method, spec.seed) == (
        "pcam_mini",
        "resnet20",
        "baseline",
        0,
    )
    assert (spec.optimizer, spec.learning_rate, spec.data.augment) == ("adam", 1e-3, "dihedral")
    assert "auto" not in spec.canonical()


def test_the_hash_is_that_of_everything_but_the_seed() -> None:
    one = resolve({"seed": 0, "device": "cpu", "precision": "float32"})
    assert one.hash == resolve({"seed": 5, "device": "cpu", "precision": "float32"}).hash
    others = [
        {"epochs": 9},
        {"learning_rate": 0.01},
        {"method": "znorm"},
        {"model": "resnet56"},
        {"data.limit": 5},
        {"data.augment": "none"},
        {"deterministic": True},
        {"precision": "bfloat16"},
    ]
    hashes = {resolve({"device": "cpu", "precision": "float32", **other}).hash for other in others}
    assert len(hashes | {one.hash}) == len(others) + 1
    # Frozen: a hash that changes between versions would train finished runs again.
    assert one.canonical(seed=False) == (
        '{"batch_size":32,"data":{"augment":"dihedral","limit":null,"validation":0.15},'
        '"deterministic":false,"device":"cpu","epochs":4,"learning_rate":0.001,'
        '"method":"baseline","model":"resnet20","optimizer":"adam","precision":"float32",'
        '"task":"pcam_mini"}'
    )


def test_a_specification_survives_its_file() -> None:
    spec = resolve({"method": "znorm", "seed": 4, "data.limit": 10})
    text = json.dumps(spec.model_dump(mode="json"))
    assert RunSpec.model_validate_json(text) == spec
    assert resolve(json.loads(text)) == spec


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"modle": "x"}, "unknown key 'modle'; did you mean model"),
    ({"data.limitt": 3}, "unknown key 'data.limitt'; did you mean data.limit"),
    ({"data": {"limitt": 3}}, "unknown key 'data.limitt'; did you mean data.limit"),
    ({"model": "resnet65"}, "unknown model 'resnet65'; did you mean resnet"),
    ({"method": "zorm"}, "unknown method 'zorm'; did you mean znorm"),
    ({"task": "imagenet"}, "unknown task 'imagenet'; valid: pcam_mini"),
    ({"optimizer": "adm"}, "unknown optimizer 'adm'; did you mean adam"),
    ({"device": "tpu"}, "unknown device 'tpu'"),
    ({"precision": "float16"}, "unknown precision 'float16'; did you mean bfloat16"),
    ({"learning_rate": -1}, "learning_rate: input should be greater than 0, found -1"),
    ({"epochs": 0}, "epochs: input should be greater than or equal to 1, found 0"),
    ({"epochs": "many"}, "epochs: input should be a valid integer"),
    ({"data.validation": 1.0}, "data.validation: input should be less than 1"),
    ({"data.augment": "flips"}, "unknown augmentation 'flips'"),
]


@pytest.mark.parametrize(("choices", "message"), WRONG)
def test_what_is_wrong_is_named(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        resolve(choices)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_keys_are_those_of_the_specification() -> None:
    assert "data.limit" in keys()
    assert "data" not in keys()


def test_a_specification_holds_names_that_are_known() -> None:
    content = resolve({}).model_dump()
    for key in ("task", "model", "method", "optimizer"):
        with pytest.raises(ValueError, match=f"unknown {key} 'nothing'"):
            RunSpec.model_validate({**content, key: "nothing"})
