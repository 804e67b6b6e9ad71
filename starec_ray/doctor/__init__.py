"""What a cluster is missing, told before a run finds it out (`starec doctor`)."""
