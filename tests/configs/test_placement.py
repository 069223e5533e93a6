"""What a run asks of a cluster, and what is short."""

from __future__ import annotations

from configs import AtelierConfig, build_config, load_config
from configs.placement import RolePlacement, compare, demand, placement, render_placement

CLUSTER = {
    "run": {"name": "cluster"},
    "rollout": {
        "workers": {"initial": 4, "max": 6, "resources": {"cpus": 2, "gpus": 0.75, "custom": {"rollout_node": 0.01}}}
    },
    "learner": {"ranks": 2, "resources": {"cpus": 1, "gpus": 1}},
    "evaluation": {"resources": {"cpus": 0.5, "gpus": 0.25}},
    "queue": {"shards": 3},
}


def test_every_role_is_listed_with_what_it_takes() -> None:
    assert placement(build_config(CLUSTER)) == [
        RolePlacement("rollout worker", 4, 2.0, 0.75, {"rollout_node": 0.01}),
        RolePlacement("learner rank", 2, 1.0, 1.0, {}),
        RolePlacement("evaluator", 1, 0.5, 0.25, {}),
        RolePlacement("control", 7, 0.0, 0.0, {}),
    ]


def test_control_actors_are_queue_mailbox_pool_and_telemetry() -> None:
    assert placement(AtelierConfig())[-1] == RolePlacement("control", 4, 0.0, 0.0, {})


def test_the_demo_fits_one_core() -> None:
    assert demand(placement(load_config("quickstart"))) == {"CPU": 1.0}


def test_shortfalls_name_both_numbers_and_who_takes_them() -> None:
    roles = placement(build_config(CLUSTER))
    assert compare(roles, {"CPU": 10.5, "GPU": 4, "memory": 1e9}) == [
        "GPU: 5.25 wanted (4 rollout workers x 0.75, 2 learner ranks x 1, 1 evaluator x 0.25), 4 in the cluster. "
        "Start with fewer actors, ask for less of it in each, or add nodes.",
        "rollout_node: 0.04 wanted (4 rollout workers x 0.01), 0 in the cluster. "
        "Start with fewer actors, ask for less of it in each, or add nodes.",
    ]
    assert compare(roles, {"CPU": 10.5, "GPU": 5.25, "rollout_node": 1}) == []


def test_sums_of_fractions_do_not_fail_by_rounding() -> None:
    roles = [RolePlacement("rollout worker", 10, 0.1, 0.0), RolePlacement("evaluator", 2, 0.1, 0.0)]
    assert compare(roles, {"CPU": 1.2}) == []


def test_the_table() -> None:
    assert render_placement(build_config(CLUSTER), {"CPU": 16.0, "GPU": 8.0, "rollout_node": 4.0}) == (
        "role            actors   CPU   GPU  rollout_node\n"
        "rollout worker       4     8     3          0.04\n"
        "learner rank         2     2     2             0\n"
        "evaluator            1   0.5  0.25             0\n"
        "control              7     0     0             0\n"
        "total               14  10.5  5.25          0.04\n"
        "cluster                   16     8             4\n"
        "Rollout workers: 1 to 6, scaled by hand; each asks for 2 CPU, 0.75 GPU, 0.01 rollout_node.\n"
        "The cluster has what this run asks for."
    )


def test_the_table_ends_with_what_is_short() -> None:
    lines = render_placement(AtelierConfig(), {"CPU": 2.0}).split("\n")
    assert lines[-1] == (
        "short of CPU: 3 wanted (1 rollout worker x 1, 1 learner rank x 1, 1 evaluator x 1), 2 in the cluster. "
        "Start with fewer actors, ask for less of it in each, or add nodes."
    )
    assert "cluster" not in render_placement(AtelierConfig())
