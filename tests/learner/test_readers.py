"""What objectives read: shared noise, one evaluation for both terms, invariance to splits, direction of a step."""

from __future__ import annotations

import math

import pytest
import torch

from learner.noising import draw_noise
from learner.objectives.pixel import implied_x0
from learner.readers import Setting, build_reader
from rollout.decoder import load_decoder
from rollout.policy import load_policy
from rollout.transition import transition
from tests.learner.inprocess import small_config
from tests.learner.ranks import sampled_group
from tests.tiny import make_final_group, make_trajectory_group, tiny_pipeline

CPU = torch.device("cpu")
SOURCES = {"spo": "stepwise", "d3po": "trajectory", "ddpo": "trajectory"}
PAIRS = [(0, 0), (1, 0), (1, 1), (0, 1)]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return tiny_pipeline(tmp_path_factory.mktemp("readers") / "pipeline")


@pytest.fixture(scope="module")
def policy(pipeline):
    config = small_config(pipeline, pipeline.parent)
    return load_policy(config.model, config.noise, "cpu", seed=0, network_only=True)


@pytest.fixture(autouse=True)
def untrained(policy):
    state = {name: p.detach().clone() for name, p in policy.trainable_parameters()}
    yield
    with torch.no_grad():
        for name, parameter in policy.trainable_parameters():
            parameter.copy_(state[name])
            parameter.grad = None


def reader_of(policy, pipeline, objective, **learner):
    sampler = {"type": SOURCES.get(objective["type"], "final_pairs")}
    config = small_config(pipeline, pipeline.parent, objective=objective, sampler=sampler, **learner)
    decoder = load_decoder(config.model, CPU) if objective.get("pixel") else None
    return build_reader(Setting(policy, config.learner, seed=3, decoder=decoder))


def final_groups(single=False):
    return [make_final_group(n, pairs=2, single=single) for n in (5, 6)]


def objective(name, **more):
    mean = {"reduction": "mean"} if name in ("simpo", "sft") else {}
    return {"type": name, **mean, **more}


def test_noise_is_a_fixed_function_of_seed_step_ordinal_and_pair():
    t, eps = draw_noise(3, 7, 11, 0, (4, 8, 8), 1000)
    again = draw_noise(3, 7, 11, 0, (4, 8, 8), 1000)
    assert t == again[0] and torch.equal(eps, again[1])
    others = [draw_noise(*key, (4, 8, 8), 1000)[1] for key in ((4, 7, 11, 0), (3, 8, 11, 0), (3, 7, 12, 0))]
    assert not any(torch.equal(eps, other) for other in others)
    times = [draw_noise(0, 0, n, 0, (1, 1, 1), 1000)[0] for n in range(400)]
    assert min(times) >= 0 and max(times) <= 999 and abs(sum(times) / 400 - 499.5) < 60


def test_the_halves_of_a_pair_share_noise_and_timestep(policy, pipeline):
    """A loser made equal to its winner has exactly the winner's error, and the pair costs ln 2."""
    reader = reader_of(policy, pipeline, objective("simpo", beta=100.0))
    batch = reader.collate(final_groups(), PAIRS, step=4)
    twins = type(batch)(**{**vars(batch), "z": batch.z[:1].repeat(2, 1, 1, 1, 1)})
    found = reader.evaluate(twins, policy.network)
    torch.testing.assert_close(found.losses, torch.full((4,), math.log(2)), rtol=0, atol=1e-4)


def test_global_generators_do_not_matter(policy, pipeline):
    reader = reader_of(policy, pipeline, objective("sft"))
    torch.manual_seed(1)
    one = reader.collate(final_groups(), PAIRS, step=4)
    torch.manual_seed(2)
    assert torch.equal(one.noise, reader.collate(final_groups(), PAIRS, step=4).noise)
    assert not torch.equal(one.noise, reader.collate(final_groups(), PAIRS, step=5).noise)


@pytest.mark.parametrize("name", ["simpo", "dpo", "mapo", "sft"])
def test_a_pair_s_loss_depends_on_neither_micro_batch_nor_rank(policy, pipeline, name):
    """Rows of one batch, one by one, and with the groups dealt to two ranks."""
    reader, groups = reader_of(policy, pipeline, objective(name)), final_groups()
    with torch.no_grad():
        whole = reader.evaluate(reader.collate(groups, PAIRS, step=2), policy.network).losses
        for row, (place, pair) in enumerate(PAIRS):
            alone = reader.collate(groups[place : place + 1], [(0, pair)], step=2)
            torch.testing.assert_close(reader.evaluate(alone, policy.network).losses[0], whole[row], rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["simpo", "sft", "dpo"])
def test_latent_and_pixel_terms_share_one_network_evaluation(policy, pipeline, name, monkeypatch):
    reader = reader_of(policy, pipeline, objective(name, pixel={"weight": 2.0}))
    calls = []
    predict = policy.predict
    monkeypatch.setattr(
        policy, "predict", lambda x, *a, **k: calls.append((len(x), k["guidance"])) or predict(x, *a, **k)
    )
    found = reader.evaluate(reader.collate(final_groups(), PAIRS[:2], step=0), policy.network)
    halves = 1 if name == "sft" else 2
    assert calls == [(2 * halves, 1.0)] * (2 if name == "dpo" else 1), "dpo's second is the reference"
    expected = found.metrics["loss/latent"] + 2.0 * found.metrics["loss/pixel"]
    torch.testing.assert_close(found.losses.detach(), expected)


@pytest.mark.parametrize("name", ["simpo", "dpo", "sft"])
def test_terms_of_no_weight_leave_exactly_the_other_one(policy, pipeline, name):
    """mu = 0 is the latent objective, latent_weight = 0 the pixel one alone; losses and gradients, bit for bit."""

    def found(pixel):
        reader = reader_of(policy, pipeline, objective(name, **({} if pixel is None else {"pixel": pixel})))
        losses = reader.evaluate(reader.collate(final_groups(), PAIRS[:2], step=0), policy.network)
        for _, parameter in policy.trainable_parameters():
            parameter.grad = None
        losses.losses.sum().backward()
        gradients = [p.grad.clone() for _, p in policy.trainable_parameters() if p.grad is not None]
        return losses, gradients

    latent, gradients = found(None)
    without, same = found({"weight": 0.0})
    assert torch.equal(latent.losses, without.losses)
    assert all(torch.equal(left, right) for left, right in zip(gradients, same, strict=True))
    alone, own = found({"weight": 2.0, "latent_weight": 0.0})
    both, sums = found({"weight": 2.0, "latent_weight": 1.0})
    torch.testing.assert_close(alone.losses.detach(), 2.0 * both.metrics["loss/pixel"])
    for summed, of_latent, of_pixel in zip(sums, gradients, own, strict=True):
        torch.testing.assert_close(summed, of_latent + of_pixel, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["simpo", "sft"])
def test_the_sum_is_the_mean_times_the_elements(policy, pipeline, name):
    """256 latent elements: the squared norm of eqs. 1 to 5 with beta, and the mean with 256 beta, are one loss."""
    sums, means = objective(name, reduction="sum"), objective(name)
    if name == "simpo":
        sums, means = {**sums, "beta": 0.5}, {**means, "beta": 128.0}
    batch_of = [reader_of(policy, pipeline, chosen) for chosen in (sums, means)]
    with torch.no_grad():
        left, right = (r.evaluate(r.collate(final_groups(), PAIRS, 0), policy.network).losses for r in batch_of)
    torch.testing.assert_close(left, right * (256 if name == "sft" else 1), rtol=1e-4, atol=1e-4)


CASES = {
    "sft": (objective("sft"), "error/win"),
    "simpo": (objective("simpo"), "margin"),
    "dpo": (objective("dpo"), "margin"),
    "mapo": (objective("mapo"), "error/win"),
    "pixel-sft only": (objective("sft", pixel={"latent_weight": 0.0}), "pixel/error/win"),
    "pixel-simpo": (objective("simpo", pixel={"weight": 8.0}), "margin"),
    "pixel-simpo only": (objective("simpo", pixel={"latent_weight": 0.0}), "pixel/margin"),
    "pixel-dpo at x0": (objective("dpo", pixel={"decode": "x0", "latent_weight": 0.0}), "pixel/margin"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_step_lowers_the_winner_s_error(policy, pipeline, case):
    """Against the loser's for losses on pairs. The same noise before and after."""
    chosen, watched = CASES[case]
    reader = reader_of(policy, pipeline, chosen)
    batch = reader.collate(final_groups(), PAIRS[:2], step=0)

    def value(found):
        if not watched.endswith("margin"):
            return float(found.metrics[watched].sum())
        prefix = watched.removesuffix("margin")
        return float((found.metrics[f"{prefix}error/win"] - found.metrics[f"{prefix}error/lose"]).sum())

    found = reader.evaluate(batch, policy.network)
    before = value(found)
    found.losses.mean().backward()
    parameters = [p for _, p in policy.trainable_parameters() if p.grad is not None]
    norm = torch.stack([p.grad.norm() for p in parameters]).norm()
    with torch.no_grad():
        for parameter in parameters:
            parameter -= 0.02 * parameter.grad / norm
        assert value(reader.evaluate(batch, policy.network)) < before


@pytest.mark.parametrize("reference_at", ["worker", "learner"])
@pytest.mark.parametrize("shared", [True, False])
def test_a_step_wise_pair_costs_one_row_where_its_halves_share_a_state(policy, pipeline, shared, reference_at):
    """Rows through the network itself, each as two of them: guidance's. The reference costs none that workers made."""
    reader = reader_of(policy, pipeline, {"type": "spo"}, reference_at=reference_at)
    batch = reader.collate([sampled_group(policy, 0, 3, shared=shared)], [(0, 0), (0, 1), (0, 2)], step=0)
    rows = []
    hook = policy.network.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    try:
        reader.evaluate(batch, policy.network)
    finally:
        hook.remove()
    assert rows == [2 * 3 * (1 if shared else 2)] * (1 if reference_at == "worker" else 2)


@pytest.mark.parametrize("decode", ["present", "x0"])
@pytest.mark.parametrize("shared", [True, False])
def test_a_step_wise_pair_takes_the_pixel_term(policy, pipeline, decode, shared):
    """Both terms start at ln 2 under the untrained policy, and have a gradient."""
    reader = reader_of(policy, pipeline, {"type": "spo", "pixel": {"weight": 0.5, "decode": decode}})
    groups = [sampled_group(policy, n, 3, shared=shared) for n in (0, 1)]
    found = reader.evaluate(reader.collate(groups, [(0, 0), (1, 1), (1, 2)], step=0), policy.network)
    torch.testing.assert_close(found.metrics["loss/pixel"], torch.full((3,), math.log(2)), rtol=0, atol=2e-3)
    torch.testing.assert_close(found.losses.detach(), torch.full((3,), 1.5 * math.log(2)), rtol=0, atol=2e-3)
    found.losses.sum().backward()
    assert sum(float(p.grad.abs().sum()) for _, p in policy.trainable_parameters() if p.grad is not None) > 0


def step_pairs(policy, pipeline, pixel=None):
    """The reader of SPO, and three step-wise pairs whose winners and losers left one state."""
    reader = reader_of(policy, pipeline, {"type": "spo", **({} if pixel is None else {"pixel": pixel})})
    groups = [sampled_group(policy, n, 3) for n in (0, 1)]
    return reader, reader.collate(groups, [(0, 0), (1, 1), (1, 2)], step=0)


def gradients_of(policy, losses):
    for _, parameter in policy.trainable_parameters():
        parameter.grad = None
    losses.sum().backward()
    return [p.grad.clone() for _, p in policy.trainable_parameters() if p.grad is not None]


def test_step_wise_terms_of_no_weight_leave_exactly_the_other_one(policy, pipeline):
    def found(pixel):
        reader, batch = step_pairs(policy, pipeline, pixel)
        losses = reader.evaluate(batch, policy.network)
        return losses, gradients_of(policy, losses.losses)

    latent, gradients = found(None)
    without, same = found({"weight": 0.0})
    assert torch.equal(latent.losses, without.losses) and all(map(torch.equal, gradients, same))
    alone, own = found({"weight": 0.5, "latent_weight": 0.0})
    both, sums = found({"weight": 0.5})
    torch.testing.assert_close(alone.losses.detach(), 0.5 * both.metrics["loss/pixel"])
    for summed, of_latent, of_pixel in zip(sums, gradients, own, strict=True):
        torch.testing.assert_close(summed, of_latent + of_pixel, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("decode", [None, "present", "x0"], ids=["latent", "pixels", "pixels of x0"])
def test_a_step_on_a_step_wise_pair_brings_the_mean_nearer_to_the_winner(policy, pipeline, decode):
    """Nearer than to the loser, where the term looks: in the latent, in decoded states, or in decoded x0."""
    pixel = None if decode is None else {"weight": 1.0, "latent_weight": 0.0, "decode": decode}
    reader, batch = step_pairs(policy, pipeline, pixel)
    schedule, t, decoder = (
        policy.schedule,
        batch.timestep,
        load_decoder(small_config(pipeline, pipeline.parent).model, CPU),
    )
    alpha, alpha_prev = (schedule.alphas_cumprod[at].reshape(-1, 1, 1, 1) for at in (t, schedule.next_timestep(t)))

    def seen(landed):
        if decode == "x0":
            landed, _ = implied_x0(landed, batch.x_t, alpha, alpha_prev, schedule.sigma(t).reshape(-1, 1, 1, 1))
        return landed if decode is None else decoder.decode(landed)

    def margin():
        """How much nearer the winner is than the loser, in variances of the step: [3] summed."""
        with torch.no_grad():
            output = policy.predict(batch.x_t, t, batch.conditioning)
            mean = seen(transition(schedule, output, batch.x_t, t).mean)
            far, near = (((seen(x) - mean) ** 2).flatten(1).mean(1) for x in (batch.x_prev_lose, batch.x_prev_win))
            return float(((far - near) / schedule.sigma(t) ** 2).sum())

    before = margin()
    reader.evaluate(batch, policy.network).losses.mean().backward()
    parameters = [p for _, p in policy.trainable_parameters() if p.grad is not None]
    norm = torch.stack([p.grad.norm() for p in parameters]).norm()
    with torch.no_grad():
        for parameter in parameters:
            parameter -= 0.002 * parameter.grad / norm
    assert margin() > before


@pytest.mark.parametrize("name", ["simpo", "dpo", "sft", "mapo", "ddpo", "spo"])
def test_a_rank_without_pairs_runs_one_finite_row_of_no_weight(policy, pipeline, name):
    reader = reader_of(policy, pipeline, objective(name))
    groups = {"ddpo": [make_trajectory_group(0)], "spo": [sampled_group(policy, 0, 2)]}.get(name, final_groups())
    batch = reader.collate(groups, [], step=0)
    found = reader.evaluate(batch, policy.network)
    assert batch.weight.tolist() == [0] and batch.sources == ("padding",)
    assert bool(torch.isfinite(found.losses).all())


def test_groups_of_another_kind_are_refused_by_name(policy, pipeline):
    with pytest.raises(ValueError, match=r"group 5 of worker-0 is a FinalGroup; .* = ddpo reads TrajectoryGroup"):
        reader_of(policy, pipeline, objective("ddpo")).collate(final_groups(), PAIRS, step=0)
    with pytest.raises(ValueError, match=r"group 5 of worker-0 holds single pictures; .* = simpo compares two"):
        reader_of(policy, pipeline, objective("simpo")).collate(final_groups(single=True), PAIRS, step=0)


def test_single_pictures_are_read_by_sft(policy, pipeline):
    reader = reader_of(policy, pipeline, objective("sft"))
    batch = reader.collate(final_groups(single=True), PAIRS, step=0)
    assert batch.z.shape == (1, 4, 4, 8, 8)
    assert reader.evaluate(batch, policy.network).losses.shape == (4,)


def test_a_pixel_term_without_a_decoder_is_refused(policy, pipeline):
    config = small_config(
        pipeline, pipeline.parent, objective=objective("sft", pixel={}), sampler={"type": "final_pairs"}
    )
    with pytest.raises(ValueError, match="the learner has no decoder"):
        build_reader(Setting(policy, config.learner, seed=0))
