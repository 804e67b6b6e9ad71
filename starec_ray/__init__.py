"""STARec on Ray: slow-thinking recommender agents, trained with anchored reinforcement."""
