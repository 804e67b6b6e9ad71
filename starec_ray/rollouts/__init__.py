"""An iteration's rollouts: which cases, many env runners, rewards, and what became of each."""
