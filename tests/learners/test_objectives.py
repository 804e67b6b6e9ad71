import math

import pytest
import torch

from learners.batching import COMPONENTS
from learners.objectives import (
    Objective,
    clipped,
    importance_ratio,
    kl_losses,
    policy_losses,
    token_loss,
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


def plain_loss(tokens: dict[str, torch.Tensor], counts: list[int], o: Objective) -> float:
    """The formulas, token by token."""
    total = 0.0
    for i in range(N):
        logprob, component = tokens["logprobs_N"][i].item(), int(tokens["components_N"][i])
        advantage = tokens["advantages_N"][i].item()
        if COMPONENTS[component] == "anchor":
            loss = -logprob * advantage  # the trace's weight
        else:
            ratio = math.exp(logprob - tokens["sampled_N"][i].item())
            bounded = min(max(ratio, 1 - o.clip_low), 1 + o.clip_high)
            d = tokens["reference_N"][i].item() - logprob
            loss = -min(ratio * advantage, bounded * advantage)
            loss += o.kl_coeff * (math.exp(d) - d - 1)
        total += loss / counts[component]
    return total


def test_the_loss_is_the_formula_summed_token_by_token(tokens):
    objective = Objective(clip_low=0.2, clip_high=0.28, kl_coeff=0.1)
    counts = [37, 11, 23]  # of the whole batch, so not those of these tokens
    weights = 1 / torch.tensor(counts)
    loss, _ = token_loss(objective, **tokens, component_weights=weights)
    assert loss.item() == pytest.approx(plain_loss(tokens, counts, objective), rel=1e-5)


def test_statistics_count_rollouts_and_traces_apart(tokens):
    objective = Objective(clip_low=0.2, clip_high=0.28, kl_coeff=0.1)
    _, stats = token_loss(objective, **tokens, component_weights=torch.ones(3))
    policy = tokens["components_N"] != 0
    ratio = (tokens["logprobs_N"] - tokens["sampled_N"]).exp()[policy]
    gap = (tokens["logprobs_N"] - tokens["sampled_N"]).abs()[policy]
    assert stats.ratio.item() == pytest.approx(ratio.sum().item(), rel=1e-5)
    assert stats.ratio_max.item() == pytest.approx(ratio.max().item(), rel=1e-5)
    assert stats.logprob_gap.item() == pytest.approx(gap.sum().item(), rel=1e-5)
    assert stats.component_kl[0] == 0
    assert stats.component_losses[0].item() == pytest.approx(
        -(tokens["logprobs_N"] * tokens["advantages_N"])[~policy].sum().item(), rel=1e-5
    )


def test_no_tokens_make_a_loss_of_zero_with_a_gradient(tokens):
    none = {name: tensor[:0] for name, tensor in tokens.items()}
    loss, stats = token_loss(
        Objective(0.2, 0.2, 0.1), **none, component_weights=torch.ones(len(COMPONENTS))
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
