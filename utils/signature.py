"""What a served model takes and gives: the one place that says so.

Raw tensors, the names of the reference. Export and clients take them from
here; the standard library alone, since a client's environment has little else.
A server reads the names from config.pbtxt, which the export writes, and only
`NAME` is repeated in serving/, which takes nothing of ours.
"""

# What a size of a shape stands for.
BATCH, SEQUENCE = "batch", "seq"

# All int32.
INPUTS = {
    "unique_ids": (BATCH,),
    "input_ids": (BATCH, SEQUENCE),
    "input_mask": (BATCH, SEQUENCE),
    "segment_ids": (BATCH, SEQUENCE),
}
# All float32.
OUTPUTS = {
    "start_logits": (BATCH, SEQUENCE),
    "end_logits": (BATCH, SEQUENCE),
}
# The key of the SavedModel's signature.
NAME = "serving_default"


def sizes(shape, seq_length):
  """Returns a shape's sizes behind that of the batch, as list of int.

  Args:
    shape: a value of `INPUTS` or `OUTPUTS`.
    seq_length: int.
  """
  return [seq_length if size == SEQUENCE else size for size in shape[1:]]
