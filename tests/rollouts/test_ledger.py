"""The ledger of rollouts adds up."""

from starec_ray.rollouts.ledger import Ledger


def test_every_rollout_is_trained_on_skipped_followed_up_dropped_or_waiting():
    ledger = Ledger(asked=20, lost=6, asked_again=6, finished=20)
    assert ledger.waiting == 20
    ledger.learned(8, 8)
    ledger.learned(8, 5)  # the learners left that update out
    ledger.followed_up += 4
    ledger.dropped += 2
    assert ledger.waiting == 1
    assert ledger.report() == {
        "rollouts/asked": 20,
        "rollouts/lost": 6,
        "rollouts/asked_again": 6,
        "rollouts/finished": 20,
        "rollouts/trained": 8,
        "rollouts/skipped": 5,
        "rollouts/followed_up": 4,
        "rollouts/dropped": 2,
        "rollouts/waiting": 1,
    }
    assert Ledger.from_state(ledger.state()) == ledger


def test_a_rollout_that_the_learners_count_twice_shows_as_less_than_none_waiting():
    ledger = Ledger(asked=8, finished=8)
    ledger.learned(16, 8)
    assert ledger.waiting == -8
