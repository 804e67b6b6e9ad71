import math

import pytest
import torch

from learners.groups import COMPONENTS
from learners.objectives import (
    Objective,
    clipped,
    importance_ratio,
    kl_losses,
    policy_losses,
    token_loss,
    truncated_losses,
)

N = 60


@pytest.fixture
def tokens() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "logprobs_N": (torch.randn(N) - 3).requires_grad_(),
        "entropy_N": torch.rand(N),
        "components_N": torch.randint(0, len(COMPONENTS), (N,)),
        "advantages_N": torch.randn(N),
        "sampled_N": torch.randn(N) - 3,
        "reference_N": torch.randn(N) - 3,
    }


def plain_loss(
    tokens: dict[str, torch.Tensor], counts: list[int], o: Objective
) -> tuple[float, list[float]]:
    """The formulas and their derivatives by the log-probs, token by token."""
    total, gradient = 0.0, []
    for i in range(N):
        logprob, component = tokens["logprobs_N"][i].item(), int(tokens["components_N"][i])
        advantage = tokens["advantages_N"][i].item()
        if COMPONENTS[component] == "anchor":
            loss, slope = -logprob * advantage, -advantage  # the trace's weight
        else:
            ratio = math.exp(logprob - tokens["sampled_N"][i].item())
            bounded = min(max(ratio, 1 - o.clip_low), 1 + o.clip_high)
            d = tokens["reference_N"][i].item() - logprob
            if o.off_policy:
                weight = min(ratio, o.ratio_cap)
                loss, slope = -weight * advantage * logprob, -weight * advantage
            else:
                loss = -min(ratio * advantage, bounded * advantage)
                slope = -ratio * advantage if loss == -ratio * advantage else 0.0
            loss += o.kl_coeff * (math.exp(d) - d - 1)
            slope += o.kl_coeff * (1 - math.exp(d))
        total += loss / counts[component]
        gradient.append(slope / counts[component])
    return total, gradient


@pytest.mark.parametrize("off_policy", [False, True], ids=["clipped", "truncated"])
def test_the_loss_and_its_gradient_are_the_formula_token_by_token(tokens, off_policy):
    objective = Objective(0.2, 0.28, kl_coeff=0.1, ratio_cap=1.5, off_policy=off_policy)
    counts = [37, 11, 23]  # of the whole batch, so not those of these tokens
    weights = 1 / torch.tensor(counts)
    loss, _ = token_loss(objective, **tokens, component_weights=weights)
    loss.backward()
    exact, gradient = plain_loss(tokens, counts, objective)
    assert loss.item() == pytest.approx(exact, rel=1e-5)
    assert tokens["logprobs_N"].grad.tolist() == pytest.approx(gradient, rel=1e-4, abs=1e-7)


def test_truncation_is_unbiased_below_the_cap_and_bounded_above_it():
    torch.manual_seed(0)
    policy = torch.randn(30, requires_grad=True)
    sampled = torch.randn(30).softmax(dim=0)
    advantages = torch.randn(30)
    logprobs = policy.log_softmax(dim=0)
    on_policy = (logprobs.exp().detach() * -advantages * logprobs).sum()
    (exact,) = torch.autograd.grad(on_policy, policy, retain_graph=True)
    ratio = importance_ratio(logprobs, sampled.log())
    # The expectation over what the older policy samples.
    for cap, within in ((ratio.max().item(), True), (1.0, False)):
        losses = truncated_losses(ratio, logprobs, advantages, cap)
        (found,) = torch.autograd.grad((sampled * losses).sum(), policy, retain_graph=True)
        assert torch.allclose(found, exact, atol=1e-6) == within


def test_statistics_count_rollouts_and_traces_apart(tokens):
    objective = Objective(0.2, 0.28, kl_coeff=0.1, ratio_cap=1.5, off_policy=False)
    _, stats = token_loss(objective, **tokens, component_weights=torch.ones(3))
    policy = tokens["components_N"] != 0
    ratio = (tokens["logprobs_N"] - tokens["sampled_N"]).exp()[policy]
    gap = (tokens["logprobs_N"] - tokens["sampled_N"]).abs()[policy]
    assert stats.ratio.item() == pytest.approx(ratio.sum().item(), rel=1e-5)
    assert stats.ratio_max.item() == pytest.approx(ratio.max().item(), rel=1e-5)
    assert stats.truncated == (ratio > 1.5).sum() > 0
    assert stats.logprob_gap.item() == pytest.approx(gap.sum().item(), rel=1e-5)
    assert stats.component_kl[0] == 0
    assert stats.component_losses[0].item() == pytest.approx(
        -(tokens["logprobs_N"] * tokens["advantages_N"])[~policy].sum().item(), rel=1e-5
    )


def test_statistics_are_sums_as_counted_by_hand():
    logprobs = torch.tensor([-1.0, -1.0, -1.0, -1.0, -2.0, -2.0, -2.0])
    change = torch.tensor([9.0, 0.5, 0.5, -0.5, 0.5, -0.5, 0.0])
    reference = torch.tensor([0.0, -1.5, -1.0, -3.0, -2.5, -1.0, -2.0])
    objective = Objective(0.2, 0.28, kl_coeff=0.1, ratio_cap=1.5, off_policy=False)
    _, stats = token_loss(
        objective,
        logprobs_N=logprobs,
        entropy_N=torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]),
        components_N=torch.tensor([0, 1, 1, 1, 2, 2, 2]),
        advantages_N=torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0, 1.0, 1.0]),
        sampled_N=logprobs - change,
        reference_N=reference,
        component_weights=torch.ones(3),
    )
    assert stats.clipped == 3  # too likely: the second and the fifth; too unlikely: the fourth
    assert stats.entropy == 28
    kl = [math.exp(d) - d - 1 for d in (reference - logprobs).tolist()]
    assert stats.component_kl.tolist() == pytest.approx([0.0, sum(kl[1:4]), sum(kl[4:])], rel=1e-6)
    assert stats.component_losses.tolist() == pytest.approx(
        [1.0, -1.28 + math.exp(0.5) + 0.8, -1.28 - math.exp(-0.5) - 1.0], rel=1e-6
    )


@pytest.mark.parametrize("off_policy", [False, True], ids=["clipped", "truncated"])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize(
    ("sampled", "reference"), [(-200.0, 0.0), (200.0, 0.0), (0.0, -200.0), (0.0, 200.0)]
)
def test_logprobs_hundreds_of_nats_apart_give_finite_numbers(
    sampled, reference, advantage, off_policy
):
    logprobs = torch.zeros(1, requires_grad=True)
    loss, stats = token_loss(
        Objective(0.2, 0.28, kl_coeff=0.1, ratio_cap=1.5, off_policy=off_policy),
        logprobs_N=logprobs,
        entropy_N=torch.zeros(1),
        components_N=torch.tensor([COMPONENTS.index("rank")]),
        advantages_N=torch.tensor([advantage]),
        sampled_N=torch.tensor([sampled]),
        reference_N=torch.tensor([reference]),
        component_weights=torch.ones(3),
    )
    loss.backward()
    assert loss.isfinite() and logprobs.grad.isfinite().all()
    assert stats.ratio.isfinite() and stats.component_kl.isfinite().all()


def test_no_tokens_make_a_loss_of_zero_with_a_gradient(tokens):
    none = {name: tensor[:0] for name, tensor in tokens.items()}
    loss, stats = token_loss(
        Objective(0.2, 0.2, 0.1, 2.0, False), **none, component_weights=torch.ones(len(COMPONENTS))
    )
    assert loss == 0 and loss.requires_grad and stats.ratio_max == 0


def test_the_gradient_is_zero_exactly_where_clipping_holds_it_back():
    logprobs = torch.tensor([0.5, -0.5, 0.5, -0.5, 0.1], requires_grad=True)
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0])
    ratio = importance_ratio(logprobs, torch.zeros(5))
    policy_losses(ratio, advantages, 0.2, 0.2).sum().backward()
    held_back = clipped(ratio, advantages, 0.2, 0.2)
    assert held_back.tolist() == [True, False, False, True, False]
    assert (logprobs.grad == 0).tolist() == held_back.tolist()


def test_on_policy_the_gradient_is_that_of_reinforce():
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    advantages = torch.tensor([0.7, -0.3])
    ratio = importance_ratio(logprobs, logprobs.detach())
    policy_losses(ratio, advantages, 0.2, 0.2).sum().backward()
    assert logprobs.grad.tolist() == pytest.approx((-advantages).tolist())


def test_the_kl_estimate_is_unbiased_and_never_negative():
    torch.manual_seed(0)
    policy, reference = torch.randn(2, 30).log_softmax(dim=1)
    estimates = kl_losses(policy, reference)
    exact = (policy.exp() * (policy - reference)).sum()
    assert (estimates >= 0).all()
    assert (policy.exp() * estimates).sum().item() == pytest.approx(exact.item(), rel=1e-4)
