"""The Arrow tables that flow through the system, one schema each.

files → catalog, users, interactions → cases (+ targets apart) → rollouts + scores → sequences
→ learner. Traces are the anchor's training data. Anything that writes one of these schemas can
take the writer's place. Tables of one room alone have their schema there (`data.raw`,
`evaluation.results`).
"""

import pyarrow as pa

CATALOG = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("year", pa.int16()),
        pa.field("tags", pa.list_(pa.string())),  # genres, categories
        pa.field("people", pa.list_(pa.string())),  # directors, artists, brands
        # Interactions with this item, those that are targets of any case left out.
        pa.field("popularity", pa.int64(), nullable=False),
    ]
)

USERS = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("profile", pa.map_(pa.string(), pa.string())),  # {"age": "25-34", …}, ordered
    ]
)

INTERACTIONS = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("rating", pa.float32()),  # null where the source has none
        pa.field("timestamp", pa.int64()),  # seconds; null where the source has none
        pa.field("position", pa.int32(), nullable=False),  # 0-based, in the user's time order
    ]
)

CASES = pa.schema(
    [
        pa.field("case_id", pa.string(), nullable=False),  # "<user_id>/<round>"
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),  # train | validation | test
        # 0-based; the last round of a user is the leave-one-out case.
        pa.field("round", pa.int8(), nullable=False),
        # The same user's next case: the follow-up that a reflection is rewarded by.
        pa.field("next_case_id", pa.string()),
        pa.field("history", pa.list_(pa.string()), nullable=False),  # item ids, oldest first
        pa.field("history_liked", pa.list_(pa.bool_()), nullable=False),  # beside history
        pa.field("candidates", pa.list_(pa.string()), nullable=False),  # shuffled item ids
        pa.field("activity", pa.int32(), nullable=False),  # the user's interactions in all
    ]
)

TARGETS = pa.schema(
    [
        pa.field("case_id", pa.string(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
    ]
)

# A rollout: one sampled answer. Written by env runners; the rewards are not in it.
ROLLOUTS = pa.schema(
    [
        pa.field("kind", pa.string(), nullable=False),  # rank | reflect
        pa.field("case_id", pa.string(), nullable=False),
        pa.field("task", pa.int32(), nullable=False),  # index of the task within the request
        pa.field("rollout", pa.int32(), nullable=False),  # 0 … G-1 within the task's group
        pa.field("prompt", pa.string(), nullable=False),  # as the model saw it
        pa.field("reply", pa.string(), nullable=False),
        pa.field("rationale", pa.string(), nullable=False),
        # rank: every candidate once, best first; unnamed ones follow in the order shown.
        pa.field("ranking", pa.list_(pa.string())),
        # rank: a grade 0 … 9 for each candidate, beside the case's candidates; null where the
        # format has none, or the reply lacks one.
        pa.field("grades", pa.list_(pa.int8())),
        pa.field("summary", pa.string()),  # reflect: the rewritten preference summary
        pa.field("malformed", pa.bool_(), nullable=False),
        pa.field("missing", pa.int16(), nullable=False),  # candidates not named
        pa.field("repeated", pa.int16(), nullable=False),
        pa.field("invented", pa.int16(), nullable=False),  # names that are no candidate
        pa.field("history_shed", pa.int16(), nullable=False),  # items dropped to fit the window
        pa.field("summary_cut", pa.bool_(), nullable=False),  # where that wasn't enough
        pa.field("finish_reason", pa.string(), nullable=False),  # stop | length
        pa.field("weight_version", pa.int64(), nullable=False),
        pa.field("prompt_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("reply_ids", pa.list_(pa.int32()), nullable=False),  # with the end token
        # Log-prob of each reply token under the full (untruncated) sampling distribution, which is
        # that of its choices.
        pa.field("logprobs", pa.list_(pa.float32()), nullable=False),
        # The tokens that could stand in each place; null where decoding wasn't constrained.
        pa.field("choices", pa.list_(pa.list_(pa.int32()))),
    ]
)

# What reward actors answer, a row for each ranking scored, in the order asked.
SCORES = pa.schema(
    [
        pa.field("case_id", pa.string(), nullable=False),
        pa.field("reward", pa.float32(), nullable=False),
        pa.field("target_rank", pa.int16(), nullable=False),  # 1-based, in `ranking`
        pa.field("chosen", pa.string(), nullable=False),  # the feedback: the real choice
    ]
)

# What the learner trains on. Rows of one component and group share one prompt, token for token.
SEQUENCES = pa.schema(
    [
        pa.field("component", pa.string(), nullable=False),  # anchor | rank | reflect
        pa.field("group", pa.int64(), nullable=False),
        pa.field("prompt_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("reply_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("logprobs", pa.list_(pa.float32())),  # null for the anchor's traces
        # As in ROLLOUTS: a token without another choice teaches nothing and is left out.
        pa.field("choices", pa.list_(pa.list_(pa.int32()))),
        # Beside reply_ids; for the anchor's traces their weight in the loss.
        pa.field("advantages", pa.list_(pa.float32()), nullable=False),
    ]
)

TRACE_KINDS = ("rank", "reflect", "summarize")

# A trace: a teacher's worked answer for one task of a training user.
TRACES = pa.schema(
    [
        pa.field("trace_id", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),  # rank | reflect | summarize
        pa.field("case_id", pa.string(), nullable=False),
        pa.field("teacher", pa.string(), nullable=False),
        # The memory's, as prompted; summarize: empty.
        pa.field("summary_before", pa.string(), nullable=False),
        pa.field("predicted", pa.list_(pa.string())),  # reflect: the ranking reflected on
        pa.field("chosen", pa.string()),  # reflect: the feedback
        pa.field("rationale", pa.string(), nullable=False),
        pa.field("ranking", pa.list_(pa.string())),  # rank: item ids, best first
        # rank: a grade 0 … 9 for each candidate, beside the case's candidates; null if the
        # teacher gave none (formats that need grades then make them from the ranking).
        pa.field("grades", pa.list_(pa.int8())),
        pa.field("summary", pa.string()),  # reflect, summarize: the preference summary written
    ]
)

# What `starec distill` writes: traces, the flawed ones too, and how each came about. The anchor
# takes those whose verdict is "kept".
DISTILLED = pa.schema(
    [
        *TRACES,
        pa.field("verdict", pa.string(), nullable=False),  # kept, or why not
        pa.field("attempt", pa.int8(), nullable=False),  # 0: the first answer; then rethinks
        # The flawed trace that this one is the rewriting of; the two are a preference pair.
        pa.field("rethinks", pa.string()),
        # NDCG of the ranking; reflect: of the follow-up ranking that the summary made possible.
        pa.field("score", pa.float32()),
        pa.field("reply", pa.string(), nullable=False),  # as the teacher wrote it
        pa.field("prompt_hash", pa.string(), nullable=False),  # SHA-256 of the messages
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("prompt_tokens", pa.int32(), nullable=False),
        pa.field("reply_tokens", pa.int32(), nullable=False),
    ]
)

# What a person reads: no token ids, titles in place of item ids.
READABLE_ROLLOUTS = pa.schema(
    [
        pa.field("iteration", pa.int32(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),  # rank | reflect | rank_again
        pa.field("case_id", pa.string(), nullable=False),
        pa.field("task", pa.int32(), nullable=False),
        pa.field("rollout", pa.int32(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("reply", pa.string(), nullable=False),
        pa.field("rationale", pa.string(), nullable=False),
        pa.field("ranking", pa.list_(pa.string())),  # titles, best first; null for reflections
        pa.field("summary", pa.string()),  # null for rankings
        pa.field("malformed", pa.bool_(), nullable=False),
        pa.field("missing", pa.int16(), nullable=False),
        pa.field("repeated", pa.int16(), nullable=False),
        pa.field("invented", pa.int16(), nullable=False),
        pa.field("reward", pa.float32(), nullable=False),
        pa.field("advantage", pa.float32(), nullable=False),
        pa.field("target_rank", pa.int16()),  # 1-based; null where nothing was ranked
        pa.field("chosen", pa.string()),  # title of the real choice; null if not revealed
        pa.field("weight_version", pa.int64(), nullable=False),
    ]
)
