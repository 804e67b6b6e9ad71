"""How weights travel from the learners to the env runners: one interface, an engine a file."""
