"""Every policy on the same held-out cases: ranks, metrics with intervals, tables and plots."""
