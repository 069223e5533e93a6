"""What a user reads when a file or an override is refused, word for word."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from configs import ConfigError, load_config
from configs.load import preset_names

Refused = Callable[..., str]
PRESETS = f"Presets: {', '.join(preset_names())}."

FILES = {
    "": "mine.yaml: the file is empty; write at least 'run: {name: my-run}', or name a preset",
    "# only a comment\n": "mine.yaml: the file is empty; write at least 'run: {name: my-run}', or name a preset",
    "- a\n": "mine.yaml: holds a list, not a mapping; its top level must be keys such as 'run:'",
    "hello\n": "mine.yaml: holds a single value, not a mapping; its top level must be keys such as 'run:'",
    "run:\n  name: a\n seed: 3\n": (
        "mine.yaml: not valid YAML, line 3, column 2: while parsing a block mapping: "
        "expected <block end>, but found '<block mapping start>'"
    ),
    "run:\n\tname: a\n": (
        "mine.yaml: not valid YAML, line 2, column 1: while scanning for the next token: "
        "found character '\\t' that cannot start any token"
    ),
    "run:\n  name: a\n  seed: 1\n  name: b\n": (
        "mine.yaml: not valid YAML, line 4, column 3: the key 'name' stands here and on line 2 already; "
        "keep one of them"
    ),
    "a: &x [*x]\n": "mine.yaml: not valid YAML, a value contains itself through an alias, or is nested too deeply",
}

UNKNOWN = {
    "learner: {lr: 1e-5}": "unknown key learner.lr; did you mean learner.optimizer.lr?",
    "lr: 1e-5": "unknown key lr; did you mean learner.optimizer.lr?",
    "learner: {optimiser: {lr: 1}}": "unknown key learner.optimiser; did you mean learner.optimizer?",
    "learner: {optimizer: {Lr: 1}}": "unknown key learner.optimizer.Lr; did you mean learner.optimizer.lr?",
    "rollout: {kappa: 700}": "unknown key rollout.kappa; did you mean rollout.sampler.kappa?",
    "rollout: {sampler: {treshold: 0.2}}": (
        "unknown key rollout.sampler.treshold; did you mean rollout.sampler.threshold?"
    ),
    "rollout: {sampler: {threshold: {lo: 1}}}": (
        "unknown key rollout.sampler.threshold.lo; did you mean rollout.sampler.threshold.low?"
    ),
    "optimizer: {lr: 1}": "unknown key optimizer; did you mean learner.optimizer?",
    "groups_per_batch: 4": "unknown key groups_per_batch; did you mean learner.groups_per_batch?",
    "1: 2": "unknown key 1; did you mean run.name?",
    "schedule: {type: sync, max_staleness_steps: 4}": (
        "schedule.max_staleness_steps = 4: only schedule.type = async has this key, and schedule.type is sync. "
        "Leave the key out or change schedule.type."
    ),
    "learner: {objective: {type: mapo, pixel: {weight: 1}}}": (
        "learner.objective.pixel = {'weight': 1}: only learner.objective.type = spo or simpo or dpo or sft have this "
        "key, and learner.objective.type is mapo. Leave the key out or change learner.objective.type."
    ),
}

VALUES = {
    "rollout: {sampler: {type: final_pairs, mixture: [{weight: -1}]}}": (
        "rollout.sampler.mixture[0].weight = -1: it must be above 0. Set it to a number above 0, for instance 1.0."
    ),
    "learner: {optimizer: {lr: '1e-5'}}": (
        "learner.optimizer.lr = '1e-5': a number is wanted. Write it without quotes."
    ),
    "learner: {optimizer: {lr: fast}}": (
        "learner.optimizer.lr = 'fast': a number is wanted. Set it to a number above 0, for instance 6e-05."
    ),
    "learner: {optimizer: {lr: true}}": (
        "learner.optimizer.lr = true: a number is wanted. Set it to a number above 0, for instance 6e-05."
    ),
    "learner: {optimizer: {lr: -1}}": (
        "learner.optimizer.lr = -1: it must be above 0. Set it to a number above 0, for instance 6e-05."
    ),
    "learner: {optimizer: {lr: .inf}}": (
        "learner.optimizer.lr = inf: a finite number is wanted. Set it to a number above 0, for instance 6e-05."
    ),
    "learner: {optimizer: {lr: }}": (
        "learner.optimizer.lr = null: a number is wanted. It cannot be null: leave the key out for its default, "
        "or set it to a number above 0, for instance 6e-05."
    ),
    "learner: {optimizer: {betas: [0.9, 2]}}": (
        "learner.optimizer.betas[1] = 2: it must be below 1. Set it to a list, for instance [0.9, 0.999]."
    ),
    "learner: {optimizer: {betas: [0.9]}}": (
        "learner.optimizer.betas[1] is missing: a list, for instance [0.9, 0.999]."
    ),
    "learner: {optimizer: {betas: 0.9}}": (
        "learner.optimizer.betas = 0.9: a list is wanted. Set it to a list, for instance [0.9, 0.999]."
    ),
    "learner: {ranks: 1.5}": (
        "learner.ranks = 1.5: a whole number is wanted. Set it to a whole number at least 1, for instance 1."
    ),
    "learner: {ranks: 0}": (
        "learner.ranks = 0: it must be at least 1. Set it to a whole number at least 1, for instance 1."
    ),
    "learner: 3": "learner = 3: a section, a mapping of keys, is wanted. Set it to a mapping of keys.",
    "schedule: sync": "schedule = 'sync': a section, a mapping of keys, is wanted. Set it to a mapping of keys.",
    "schedule: {type: snyc}": (
        "schedule.type = 'snyc': not one of the choices. Did you mean sync? Choose from sync, async."
    ),
    "learner: {engine: {zero_stage: 4}}": (
        "learner.engine.zero_stage = 4: not one of the choices. Choose from 0, 1, 2, 3."
    ),
    "learner: {engine: {backend: ncl}}": (
        "learner.engine.backend = 'ncl': not one of the choices. Did you mean nccl? Choose from auto, gloo, nccl."
    ),
    "rollout: {sampler: {num_candidates: 1}}": (
        "rollout.sampler.num_candidates = 1: it must be at least 2. "
        "Set it to a whole number at least 2, for instance 4."
    ),
    "rollout: {sampler: {kappa: 1001}}": (
        "rollout.sampler.kappa = 1001: it must be at most 1000. "
        "Set it to a whole number at least 0 and at most 1000, for instance 750."
    ),
    "rollout: {sampler: {threshold: x}}": (
        "rollout.sampler.threshold = 'x': a number is wanted. "
        "Set it to a number or a mapping of keys, for instance 0.3."
    ),
    "rollout: {sampler: {threshold: 1.5}}": (
        "rollout.sampler.threshold = 1.5: it must be below 1. "
        "Set it to a number or a mapping of keys, for instance 0.3."
    ),
    "rollout: {sampler: {threshold: {low: 0.1}}}": (
        "rollout.sampler.threshold.high is missing: a number at least 0 and below 1."
    ),
    "rollout: {workers: {autoscale: yes}}": (
        "rollout.workers.autoscale = 'yes': true or false is wanted. Set it to true or false, for instance false."
    ),
    "rollout: {workers: {resources: {custom: {node: x}}}}": (
        "rollout.workers.resources.custom.node = 'x': a number is wanted. Set it to a number above 0."
    ),
    "rollout: {workers: {resources: {custom: 3}}}": (
        "rollout.workers.resources.custom = 3: a mapping of names to values is wanted. "
        "Set it to a mapping of names to numbers."
    ),
    "noise: {eta: 0}": (
        "noise.eta = 0: it must be above 0. Set it to a number above 0 and at most 1, for instance 1.0."
    ),
    "run: {name: 3}": 'run.name = 3: a text is wanted. Put it in quotes: "3".',
    "run: {name: a b}": (
        "run.name = 'a b': a letter or digit, then letters, digits, '.', '_' or '-'. It names a directory and actors."
    ),
    "run: {name: ..}": (
        "run.name = '..': a letter or digit, then letters, digits, '.', '_' or '-'. It names a directory and actors."
    ),
    "run: {dir: [a]}": "run.dir = ['a']: a path is wanted. Set it to a path.",
    "evaluation: {measures: [jugde]}": (
        "evaluation.measures[0] = 'jugde': not one of the choices. Did you mean judge? Choose from judge."
    ),
    "evaluation: {measures: judge}": "evaluation.measures = 'judge': a list is wanted. Set it to a list.",
    "model: {lora: {target_modules: []}}": (
        "model.lora.target_modules = []: it must be at least 1 long. "
        "Set it to a list, for instance ['to_q', 'to_k', 'to_v', 'to_out.0']."
    ),
}

OVERRIDES = {
    "foo": "override 'foo': is not of the form key=value, for instance learner.optimizer.lr=1e-5",
    "=3": "override '=3': is not of the form key=value, for instance learner.optimizer.lr=1e-5",
    "learner.lr=1e-5": "override 'learner.lr=1e-5': unknown key learner.lr; did you mean learner.optimizer.lr?",
    "--learner.ranks=2": "override '--learner.ranks=2': unknown key --learner.ranks; did you mean learner.ranks?",
    "learner.ranks.a=2": "override 'learner.ranks.a=2': unknown key learner.ranks.a; did you mean learner.ranks?",
    "learner.optimizer.lr=[1": (
        "override 'learner.optimizer.lr=[1': the value is no valid YAML (line 1, column 3: while parsing a flow "
        "sequence: expected ',' or ']', but got '<stream end>'); quote it"
    ),
    "learner.ranks=two": (
        "mine.yaml with overrides: learner.ranks = 'two': a whole number is wanted. "
        "Set it to a whole number at least 1, for instance 1."
    ),
    "learner={lr: 1}": ("mine.yaml with overrides: unknown key learner.lr; did you mean learner.optimizer.lr?"),
}


@pytest.mark.parametrize(("text", "message"), FILES.items())
def test_files(refused: Refused, text: str, message: str) -> None:
    assert refused(text) == message


@pytest.mark.parametrize(("text", "message"), [*UNKNOWN.items(), *VALUES.items()])
def test_keys_and_values(refused: Refused, text: str, message: str) -> None:
    assert refused(text) == f"mine.yaml: {message}"


@pytest.mark.parametrize(("override", "message"), OVERRIDES.items())
def test_overrides(refused: Refused, override: str, message: str) -> None:
    assert refused("run: {name: a}", override) == message


def test_everything_wrong_is_said_at_once(refused: Refused) -> None:
    message = refused("learner: {ranks: 0, max_batches: x}\nnoise: {eta: 2}")
    assert [line.split(":")[1].strip() for line in message.split("\n")] == [
        "noise.eta = 2",
        "learner.ranks = 0",
        "learner.max_batches = 'x'",
    ]


def test_a_missing_file_names_the_presets(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("quickstrat")
    start = "quickstrat: no such file, nor a preset of that name; did you mean quickstart?"
    assert str(caught.value) == f"{start} {PRESETS}"
    with pytest.raises(ConfigError) as caught:
        load_config("nowhere/x.yaml")
    assert str(caught.value) == f"nowhere/x.yaml: no such file, nor a preset of that name. {PRESETS}"
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path)
    assert str(caught.value) == f"{tmp_path}: is a directory. {PRESETS}"


def test_a_binary_file(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_bytes(b"run: \xff\xfe")
    with pytest.raises(ConfigError, match=r"not UTF-8 text \(byte 5\); save it as UTF-8"):
        load_config(file)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_an_unreadable_file(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("run: {name: a}")
    file.chmod(0)
    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        load_config(file)
