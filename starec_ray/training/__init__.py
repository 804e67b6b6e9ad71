"""What the learners are given and how they are called: traces, sequences, updates."""
