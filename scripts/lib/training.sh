# shellcheck shell=bash disable=SC2034
# Options of training that go to the program under the same names, and only if
# they are stated; sourced by run_pretraining.sh and run_squad.sh.

num_accumulation_steps=1 optimizer_type=adam allreduce_fp16=false
nan_policy=stop keep_checkpoint_max=5 eval_every_steps=0
training_names=(num_accumulation_steps optimizer_type allreduce_fp16 nan_policy
  keep_checkpoint_max eval_every_steps)

training_options() {
  options <<'END'
num_accumulation_steps count batches that make one step
optimizer_type choice:adam|lamb AdamW, or LAMB for very large batches
allreduce_fp16 flag exchange gradients in half precision
nan_policy choice:stop|skip what to do where the loss is not finite
keep_checkpoint_max count checkpoints to keep, at least 2
eval_every_steps whole steps from evaluation to evaluation; 0: none
END
}

training_flags() {
  # Adds what was stated of them to flags.
  local name
  for name in "${training_names[@]}"; do
    if [[ -n ${stated[$name]-} ]]; then flags+=("--$name=${!name}"); fi
  done
}
