"""Structured distillation: a teacher plays the agent's loop, and what is sound becomes traces."""
