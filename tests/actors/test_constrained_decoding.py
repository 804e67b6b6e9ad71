"""What is left of an engine's logits where replies keep to a form."""

import pytest
import torch
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.v1.sample.logits_processor import BatchUpdate

from actors.constrained_decoding import KeepToReplyForm
from actors.engine import REPLY_FORM
from starec_ray.agent.reply_form import ReplyForm

VOCABULARY = 50
GRADES = ((7,), (8,), (9,))
FORM = ReplyForm((((3,),), GRADES, ((4, 5),), GRADES), (False,) * 4, end=1)


@pytest.fixture
def processor():
    return KeepToReplyForm(VllmConfig(), torch.device("cpu"), False)


def added(processor, *requests) -> None:
    """(row, whether it has a form, its reply so far), for each request."""
    processor.update_state(
        BatchUpdate(
            batch_size=len(requests),
            removed=[],
            added=[
                (
                    row,
                    SamplingParams(extra_args={REPLY_FORM: FORM.plain()} if formed else None),
                    [2],
                    reply,
                )
                for row, formed, reply in requests
            ],
            moved=[],
        )
    )


def test_each_request_keeps_its_own_next_tokens_and_a_free_one_all(processor):
    replies = [[], [3], [], [3, 8, 4]]
    added(processor, (0, True, replies[0]), (1, True, replies[1]), (3, True, replies[3]))
    logits = torch.randn(4, VOCABULARY)
    found = processor.apply(logits.clone())
    for row, allowed in ((0, [3]), (1, [7, 8, 9]), (3, [5])):
        expected = torch.full((VOCABULARY,), float("-inf"))
        expected[allowed] = logits[row, allowed]
        assert torch.equal(found[row], expected)
    assert torch.equal(found[2], logits[2])

    replies[0].append(3)
    replies[1].append(9)
    found = processor.apply(logits.clone())
    assert [row.isfinite().nonzero().flatten().tolist() for row in found[:2]] == [[7, 8, 9], [4]]


def test_behind_the_last_blank_stands_the_end(processor):
    added(processor, (0, True, [3, 7, 4, 5, 9]))
    found = processor.apply(torch.randn(1, VOCABULARY))
    assert found.isfinite().nonzero().tolist() == [[0, 1]]


def test_where_no_request_has_a_form_nothing_is_touched(processor):
    added(processor, (0, False, []))
    logits = torch.randn(1, VOCABULARY)
    assert torch.equal(processor.apply(logits.clone()), logits)
