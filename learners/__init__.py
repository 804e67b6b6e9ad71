"""The DeepSpeed learner, its objectives, and the packing of token batches."""
