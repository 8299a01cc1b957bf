"""Flags that run_squad.py and the client of a server have in common."""

from absl import flags


def define():
  """Declares what questions there are, how they are cut up and answered."""
  flags.DEFINE_string("vocab_file", None, "The model's vocabulary.")
  flags.DEFINE_string("predict_file", None, "SQuAD JSON to answer.")
  flags.DEFINE_string(
      "cache_dir", None,
      "Where features are kept for later runs; default: $RESULTS_DIR/cache, "
      "else <output_dir>/cache.")
  flags.DEFINE_integer(
      "doc_stride", 128, "Word pieces between windows of a long paragraph.")
  flags.DEFINE_integer(
      "max_query_length", 64, "Word pieces of a question; the rest is cut.")
  flags.DEFINE_integer(
      "max_answer_length", 30, "Longest answer, in word pieces.")
  flags.DEFINE_integer("n_best_size", 20, "Answers in the n-best list.")
  flags.DEFINE_float(
      "null_score_diff_threshold", 0.0,
      "v2.0: no answer if null score - best score is above this.")
  flags.DEFINE_bool(
      "version_2_with_negative", False, "v2.0: some have no answer.")
  flags.DEFINE_bool("verbose_logging", False, "Say why text is not aligned.")
