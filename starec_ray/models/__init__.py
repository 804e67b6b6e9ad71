"""The language model as files and tokens: what a name means, and what an engine can hold."""
