import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from learners import attention, logprobs
from learners.batching import plan
from learners.families import LEAST_OPENING
from learners.logprobs import ReplyScorer
from tests.learners.samples import VOCABULARY, make_sequences

TEMPERATURE = 0.7
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "attn_implementation": "sdpa",
}
MODELS = {
    "llama, tied": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=True)),
    "qwen2, untied": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL, tie_word_embeddings=False)),
    "gemma3, windows of 16": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(
            **SMALL,
            head_dim=8,
            sliding_window=16,
            layer_types=["sliding_attention", "full_attention"],
        )
    ),
    "mistral, windows of 16": lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=16)),
    "deepseek3, values narrower than queries": lambda: DeepseekV3ForCausalLM(
        DeepseekV3Config(
            **SMALL | {"num_key_value_heads": 4},
            q_lora_rank=16,
            kv_lora_rank=16,
            qk_rope_head_dim=8,
            qk_nope_head_dim=8,
            v_head_dim=8,
            first_k_dense_replace=2,
        )
    ),
    "qwen3, experts": lambda: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            **SMALL, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
        )
    ),
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[request.param]().eval()


def packed(
    model: nn.Module, table: pa.Table, budget: int, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs, entropies and advantages of all reply tokens, scored in packed groups."""
    scorer, found = ReplyScorer(model), []
    for m in plan(table, micro_batch_tokens=budget).micro_batches:
        tensors = {
            name: torch.from_numpy(getattr(m, name)).to(device)
            for name in type(m).__slots__
            if name != "spans"
        }
        scores = scorer(
            tensors["token_ids"],
            tensors["positions"],
            m.spans,
            tensors["predictors"],
            tensors["targets"],
            torch.full((len(m.targets),), TEMPERATURE, device=device),
            tensors["choice_ids"],
            tensors["choice_mask"],
        )
        found.append((*scores, tensors["advantages"]))
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def plain(model: nn.Module, table: pa.Table) -> tuple[Tensor, Tensor, Tensor]:
    """The same from one full forward pass for each sequence."""
    found = []
    for row in table.to_pylist():
        prompt, reply = row["prompt_ids"], torch.tensor(row["reply_ids"])
        ids = torch.cat([torch.tensor(prompt), reply])[None]
        logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        choices = row["choices"] or [range(VOCABULARY)] * len(reply)
        learned = [i for i, each in enumerate(choices) if len(each) > 1]
        barred = torch.ones_like(logits, dtype=torch.bool)
        for i, each in enumerate(choices):
            barred[i, list(each)] = False
        logits = logits.masked_fill(barred, -torch.inf)[learned]
        distribution = torch.distributions.Categorical(
            logits=logits / TEMPERATURE, validate_args=False
        )
        entropy = torch.special.entr(distribution.probs).sum(-1)
        advantages = torch.tensor(row["advantages"])[learned]
        found.append((distribution.log_prob(reply[learned]), entropy, advantages))
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def with_choices(table: pa.Table, rows: range) -> pa.Table:
    """The same replies, as if some had been decoded under a constraint."""
    rng, choices = np.random.default_rng(1), []
    for i, reply in enumerate(table["reply_ids"].to_pylist()):
        each = [[t, *rng.choice(VOCABULARY, rng.integers(0, 6)).tolist()] for t in reply]
        choices.append([sorted(set(ids)) for ids in each] if i in rows else None)
    place = table.schema.get_field_index("choices")
    field = table.schema.field(place)
    return table.set_column(place, field, pa.array(choices, field.type))


@pytest.mark.parametrize("constrained", [range(0), range(2, 6), range(7)])
@pytest.mark.parametrize(("budget", "alike"), [(60, 0), (500, 0), (500, LEAST_OPENING)])
def test_shared_prefix_scores_and_gradients_equal_plain_rows(
    model, budget, alike, constrained, monkeypatch
):
    monkeypatch.setattr(logprobs, "CHUNK_LOGITS", 7 * VOCABULARY)  # several chunks, each of
    monkeypatch.setattr(logprobs, "TILE_ROWS", 3)  # several tiles
    monkeypatch.setattr(logprobs, "TILE_TOKENS", 50)
    table = make_sequences(
        [
            ("rank", 30, [5, 9, 1, 7]),
            ("reflect", 12, [15, 11]),
            ("rank", 22, [8]),
            ("rank", 3, [8]),
        ],
        alike=alike,
    )
    table = with_choices(table, constrained)
    # By advantage, for packing changes the order of the tokens.
    order = torch.argsort(plain(model, table)[2], stable=True)
    expected, expected_entropy, advantages = (t[order] for t in plain(model, table))
    (expected * advantages).sum().backward()
    expected_grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()

    scores = packed(model, table, budget)
    found, entropy, advantages = (t[torch.argsort(scores[2], stable=True)] for t in scores)
    (found * advantages).sum().backward()

    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy, expected_entropy, atol=1e-5, rtol=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected_grads[name], atol=1e-4, rtol=1e-4)


@torch.no_grad()  # FlexAttention has no backward pass on the CPU
def test_scores_by_flex_attention_equal_plain_rows(monkeypatch):
    torch.manual_seed(0)
    model = MODELS["gemma3, windows of 16"]().eval()
    table = make_sequences([("rank", 30, [5, 9, 1]), ("rank", 22, [8])], alike=LEAST_OPENING)
    expected = plain(model, table)
    monkeypatch.setattr(attention, "attention_mask", attention.block_mask)  # as on a GPU
    with torch.compiler.set_stance("force_eager"):
        found = packed(model, table, 500)
    for score, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(score.sort()[0], wanted.sort()[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e3])
def test_scores_and_gradients_hold_from_all_but_even_to_all_but_sure(scale, monkeypatch):
    monkeypatch.setattr(logprobs, "TILE_TOKENS", 9)
    torch.manual_seed(0)
    hidden, weight = (scale * torch.randn(6, 8)).double(), torch.randn(40, 8).double()
    targets = (hidden @ weight.T).argmax(dim=1)
    targets[::2] = torch.randint(40, (3,))
    temperatures = torch.full((6,), TEMPERATURE, dtype=torch.float64)
    inputs = (hidden.requires_grad_(), weight.requires_grad_())
    expected = torch.log_softmax(hidden @ weight.T / TEMPERATURE, dim=1)
    entropy = torch.special.entr(expected.exp()).sum(dim=1)
    picked = expected.gather(1, targets[:, None])[:, 0]

    rounded = tuple(tensor.detach().float().requires_grad_() for tensor in inputs)
    head = logprobs.LogProbHead(torch.nn.Parameter(rounded[1]))
    none = torch.zeros(0, dtype=torch.long), torch.zeros(6, 0, dtype=torch.bool)
    found, found_entropy = head(rounded[0], targets, temperatures.float(), *none, True)
    close = {"rtol": 1e-4, "atol": 1e-5 * max(1.0, scale), "check_dtype": False}
    torch.testing.assert_close(found, picked, **close)
    torch.testing.assert_close(found_entropy, entropy, **close)
    wanted = torch.autograd.grad(picked.sum(), inputs)
    gradients = torch.autograd.grad(found.sum(), (rounded[0], head.weight))
    for gradient, each in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, each, **close)


def choices_of(allowed: list[list[int]]) -> tuple[Tensor, Tensor]:
    """The head's choices of each target; none: the whole vocabulary."""
    ids = sorted({token for each in allowed for token in each})
    mask = [[token in each for token in ids] for each in allowed]
    return torch.tensor(ids, dtype=torch.long), torch.tensor(mask, dtype=torch.bool)


def test_each_token_has_its_own_temperature_in_every_chunk_and_tile(monkeypatch):
    vocabulary, tokens = 40, 12
    monkeypatch.setattr(logprobs, "CHUNK_LOGITS", 3 * vocabulary)  # free tokens: chunks of 3, 3, 2
    monkeypatch.setattr(logprobs, "TILE_ROWS", 2)
    monkeypatch.setattr(logprobs, "TILE_TOKENS", 9)
    torch.manual_seed(0)
    hidden, weight = torch.randn(tokens, 8).double(), torch.randn(vocabulary, 8).double()
    targets, grad = torch.randint(vocabulary, (tokens,)), torch.randn(tokens).double()
    temperatures = torch.linspace(0.5, 2.0, tokens, dtype=torch.float64)[torch.randperm(tokens)]
    allowed = [[t, (t + 7) % 40, (t + 9) % 40] if i % 3 == 1 else [] for i, t in enumerate(targets)]
    allowed = [[int(token) for token in each] for each in allowed]
    barred = torch.tensor([[bool(a) and v not in a for v in range(vocabulary)] for a in allowed])

    inputs = (hidden.requires_grad_(), weight.requires_grad_())
    logits = (hidden @ weight.T / temperatures[:, None]).masked_fill(barred, -torch.inf)
    distributions = logits.log_softmax(dim=1)
    picked = distributions.gather(1, targets[:, None])[:, 0]
    entropy = torch.special.entr(distributions.exp()).sum(dim=1)

    rounded = tuple(tensor.detach().float().requires_grad_() for tensor in inputs)
    head = logprobs.LogProbHead(nn.Parameter(rounded[1]))
    found = head(rounded[0], targets, temperatures.float(), *choices_of(allowed), True)
    close = {"rtol": 1e-5, "atol": 1e-5, "check_dtype": False}
    torch.testing.assert_close(found, (picked, entropy), **close)
    wanted = torch.autograd.grad(picked, inputs, grad)
    gradients = torch.autograd.grad(found[0], (rounded[0], head.weight), grad.float())
    torch.testing.assert_close(gradients, wanted, **close)


def test_of_bfloat16_logits_all_that_follows_is_float32():
    torch.manual_seed(0)
    hidden, weight = torch.randn(64, 32).bfloat16(), torch.randn(VOCABULARY, 32).bfloat16()
    targets, temperatures = torch.randint(VOCABULARY, (64,)), torch.linspace(0.5, 2.0, 64)
    expected = ((hidden @ weight.T).float() / temperatures[:, None]).log_softmax(dim=1)
    head = logprobs.LogProbHead(nn.Parameter(weight))
    found, entropy = head(hidden, targets, temperatures, *choices_of([[]] * 64), True)
    assert found.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close(
        found, expected.gather(1, targets[:, None])[:, 0], atol=1e-5, rtol=0.0
    )
    torch.testing.assert_close(
        entropy, torch.special.entr(expected.exp()).sum(dim=1), atol=1e-5, rtol=0.0
    )


def test_many_chunks_of_bfloat16_gradients_add_up_as_in_float32(monkeypatch):
    vocabulary, tokens = 8, 256
    monkeypatch.setattr(logprobs, "CHUNK_LOGITS", vocabulary)  # a chunk for each token
    torch.manual_seed(0)
    # Of one sign, so that the sum grows beyond what bfloat16 can add a token's part to.
    hidden, weight = 1 + torch.rand(tokens, 4).bfloat16(), torch.randn(vocabulary, 4).bfloat16()
    targets = torch.zeros(tokens, dtype=torch.long)
    head = logprobs.LogProbHead(nn.Parameter(weight))
    found, _ = head(hidden, targets, torch.ones(tokens), *choices_of([[]] * tokens), False)
    (gradient,) = torch.autograd.grad(found.sum(), head.weight)
    exact = weight.float().requires_grad_()
    picked = (hidden.float() @ exact.T).log_softmax(dim=1)[:, 0]
    (wanted,) = torch.autograd.grad(picked.sum(), exact)
    assert gradient.dtype == torch.bfloat16
    assert (gradient.float() - wanted).norm() < 5e-3 * wanted.norm()


def test_entropies_over_the_vocabulary_are_nan_unless_asked_for():
    torch.manual_seed(0)
    targets, temperatures = torch.tensor([4, 5, 6, 7]), torch.ones(4)
    head = logprobs.LogProbHead(nn.Parameter(torch.randn(20, 8)))
    inputs = (torch.randn(4, 8), targets, temperatures, *choices_of([[], [3, 5], [], [7, 9]]))
    found, entropy = head(*inputs, False)
    with_entropy, asked_for = head(*inputs, True)
    torch.testing.assert_close(found, with_entropy, atol=0.0, rtol=0.0)
    assert entropy.isnan().tolist() == [True, False, True, False]
    assert torch.equal(entropy[[1, 3]], asked_for[[1, 3]]) and asked_for.isfinite().all()


@pytest.mark.parametrize("among", [[], list(range(24))], ids=["free", "chosen among tokens"])
def test_logits_in_the_hundreds_cost_no_digits(among, monkeypatch):
    monkeypatch.setattr(logprobs, "TILE_TOKENS", 9)
    # Products that float32 holds exactly: all that is rounded comes after them.
    weight = torch.stack([torch.ones(24), torch.arange(24) / 8], dim=1)
    rows = torch.tensor([[300.0, 1.0], [-500.0, 2.0], [900.0, 0.5], [-200.0, 1.0]])
    hidden, targets = rows.repeat_interleave(24, dim=0), torch.arange(24).repeat(4)
    temperatures = torch.tensor([0.5, 1.0, 2.0, 1.0]).repeat_interleave(24)
    logits = hidden.double() @ weight.double().T / temperatures[:, None]
    expected = logits.log_softmax(dim=1)
    head = logprobs.LogProbHead(nn.Parameter(weight))
    found, entropy = head(hidden, targets, temperatures, *choices_of([among] * 96), True)
    close = {"rtol": 1e-6, "atol": 0.0, "check_dtype": False}
    torch.testing.assert_close(found, expected.gather(1, targets[:, None])[:, 0], **close)
    torch.testing.assert_close(entropy, torch.special.entr(expected.exp()).sum(dim=1), **close)


@pytest.mark.parametrize("window", [23, 24, 25])
def test_scores_equal_plain_rows_where_a_window_all_but_holds_them(window):
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(**SMALL, sliding_window=window)).eval()
    table = make_sequences([("rank", 20, [5, 3])])  # of the longest, 24 tokens are inputs
    expected = plain(model, table)
    found = packed(model, table, 500)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
