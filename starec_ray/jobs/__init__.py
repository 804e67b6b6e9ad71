"""What the commands do from end to end: train, evaluate, plan, submit."""
