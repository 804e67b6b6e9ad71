"""What runs as Ray actors beside the learners: env runners, reward actors, weight transfer."""
