"""What the runners share: stack, checkpoints, records, SQuAD, metrics."""
