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
        '{"batch_size":32,"data":{"augment":"dihedral","validation":0.15},'
        '"deterministic":false,"device":"cpu","epochs":4,"learning_rate":0.001,'
        '"loss":"cross_entropy","method":"baseline","model":"resnet20","model_options":{},'
        '"optimizer":"adam","optimizer_options":{"fused":true},"precision":"float32",'
        '"schedule":"constant","task":"pcam_mini","transform":[],"weight_decay":0.0}'
    )


def test_a_specification_survives_its_file() -> None:
    spec = resolve({"method": "znorm", "seed": 4, "data.limit": 10})
    text = json.dumps(spec.model_dump(mode="json"))
    assert RunSpec.model_validate_json(text) == spec
    assert resolve(json.loads(text)) == spec


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"model": "unetplusplus"}, "PatchCamelyon mini needs a classifier; such as resnet20"),
    ({"task": "phantom", "model": "resnet20"}, "needs a segmenter; such as resnet50_unet"),
    ({"loss": "tversky"}, "loss tversky: PatchCamelyon mini needs one of cross_entropy"),
    ({"loss": "tverski"}, "unknown loss 'tverski'; did you mean tversky"),
    ({"model_options.stem": "cifar"}, "model resnet20 takes no options, found 'stem'"),
    ({"schedule": "step"}, "schedule 'step': expected constant, cosine or multistep"),
    ({"schedule": "multistep:a"}, "expected constant, cosine or multistep"),
    ({"task": "phantom", "data.validation": 0.1}, "task phantom takes no data.validation"),
    ({"method": "mine", "transform": "ZNrm"}, "unknown transform 'ZNrm'; did you mean ZNorm"),
    ({"method": "mine", "transform": {"ZNorm": {"ep": 1}}}, "argument of ZNorm 'ep'; did you"),
    ({"method": "mine", "transform": {"ZNorm": {"eps": -1}}}, "ZNorm: eps must be 0 or more"),
    ({"method": "mine", "transform": [3]}, "expected a transform's name and its arguments"),
    ({"optimizer": "torch.optim.Nothing"}, "optimizer torch.optim.Nothing: cannot be imported"),
    ({"optimizer": "torch.nn.Linear"}, "optimizer torch.nn.Linear: not a torch.optim.Optimizer"),
    ({"optimizer": "sgd", "optimizer_options.momentm": 1}, "'momentm'; did you mean momentum"),
    ({"optimizer": "adam", "optimizer_options.beta": [0.9, 0.9]}, "'beta'; did you mean betas"),
    ({"optimizer": "adam", "optimizer_options.betas": [2, 2]}, "optimizer adam: Invalid beta"),
    ({"optimizer": "sgd", "optimizer_options.lr": 1}, "optimizer sgd: lr is not set here"),
    ({"optimizer": "torch.optim.LBFGS"}, "optimizer torch.optim.LBFGS: cannot step here"),
    ({"optimizer": "sgd", "optimizer_options": 3}, "optimizer_options: expected options by name"),
    ({"optimizer": ["a"]}, "optimizer: expected a name, found ['a']"),
    ({"optimizer": "..Adam"}, "optimizer ..Adam: cannot be imported"),
    ({"optimizer": "adam", "optimizer_options.betas": [0.9]}, "optimizer adam: "),
    ({"method": "mine", "weight_decay": "x"}, "method mine: weight_decay must be a number"),
    ({"micro_batch": 1}, "micro_batch: input should be greater than or equal to 2"),
    ({"optimizer": {"lr": 1}}, "optimizer: expected its name among its options"),
    ({"modle": "x"}, "unknown key 'modle'; did you mean model"),
    ({"data.limitt": 3}, "unknown key 'data.limitt'; did you mean data.limit"),
    ({"data": {"limitt": 3}}, "unknown key 'data.limitt'; did you mean data.limit"),
    ({"model": "resnet65"}, "unknown model 'resnet65'; did you mean resnet"),
    ({"method": "zorm"}, "unknown method 'zorm'; did you mean znorm"),
    ({"task": "imagenet"}, "unknown task 'imagenet'; valid: pcam_mini, phantom"),
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
    for key in ("task", "model", "optimizer", "loss"):
        with pytest.raises(ValueError, match=f"unknown {key} 'nothing'"):
            RunSpec.model_validate({**content, key: "nothing"})
    # A method that is not in the registry is the user's own, with the links that stand beside it.
    assert RunSpec.model_validate({**content, "method": "nothing"}).transform == ()
    with pytest.raises(ValueError, match="method znorm: its transform and weight decay are fixed"):
        RunSpec.model_validate({**content, "method": "znorm"})


def test_options_of_models_and_optimizers_are_part_of_it() -> None:
    spec = resolve({"model": "densenet121", "model_options.stem": "cifar"})
    assert spec.model_options == {"stem": "cifar"}
    assert resolve({"model": {"name": "densenet121", "stem": "cifar"}}) == spec
    sgd = resolve({"optimizer": "sgd", "optimizer_options.nesterov": True})
    assert sgd.optimizer_options == {"fused": True, "momentum": 0.9, "nesterov": True}
    nadam = resolve({"optimizer": {"name": "torch.optim.NAdam", "momentum_decay": 0.01}})
    assert nadam.optimizer_options == {"momentum_decay": 0.01}
    for spec in (sgd, nadam):
        assert resolve(json.loads(spec.canonical())) == spec


def test_a_method_of_the_users_own_is_part_of_it() -> None:
    links = [{"ClipValue": {"threshold": 0.1}}, "ZNorm"]
    spec = resolve({"method": "mine", "transform": links, "weight_decay": 0.01})
    assert spec.transform == ({"ClipValue": {"threshold": 0.1}}, {"ZNorm": {}})
    assert spec.weight_decay == 0.01
    assert resolve(json.loads(spec.canonical())) == spec
    assert resolve({"method": "znorm"}).transform == ({"ZNorm": {}},)
