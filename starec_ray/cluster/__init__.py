"""Ray below the algorithm: joining a cluster, where actors live, how they start and fail."""
