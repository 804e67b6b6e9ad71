"""One user's mind: memory, prompts, reading replies, the loop of fast and slow thinking."""
