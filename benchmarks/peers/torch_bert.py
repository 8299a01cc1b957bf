"""Hugging Face's BERT on PyTorch, as its `run_qa` example trains it.

That is its Trainer's update (AdamW of one kernel, gradients clipped to norm 1)
without what it does between the updates.
"""

import torch
import transformers

# What Trainer's settings are by default.
_RATE, _CLIP = 5e-5, 1.0
_NAMES = {"input_ids": "input_ids", "input_mask": "attention_mask",
          "segment_ids": "token_type_ids", "start_positions": "start_positions",
          "end_positions": "end_positions"}


class Squad(object):
  """A model that trains or predicts."""

  def __init__(self, config, trains, contender):
    self._contender = contender
    self._model = transformers.BertForQuestionAnswering(config)
    self._optimizer = None
    if trains:
      self._optimizer = torch.optim.AdamW(
          self._model.parameters(), lr=_RATE, weight_decay=0.0, fused=True)
    self._model.train(trains)

  def _tensors(self, batch):
    length = batch["input_ids"].shape[1]
    if self._contender.grouped:
      length = int(batch["input_mask"].sum(axis=1).max())
    return {theirs: torch.from_numpy(
        batch[name][..., :length] if batch[name].ndim == 2 else batch[name]
        ).long() for name, theirs in _NAMES.items() if name in batch}

  def _forward(self, batch):
    with torch.autocast("cpu", torch.bfloat16, enabled=self._contender.bf16):
      return self._model(**self._tensors(batch))

  def step(self, batch):
    """Runs one step; returns the loss, or None where there is none."""
    if self._optimizer is None:
      with torch.inference_mode():
        self._forward(batch)
      return None
    loss = self._forward(batch).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(self._model.parameters(), _CLIP)
    self._optimizer.step()
    self._optimizer.zero_grad()
    return loss.item()


def build(section, contender, sizes, threads):
  """Returns the model of a section's work, `step` or `predict`."""
  torch.set_num_threads(threads)
  torch.manual_seed(1)
  config = transformers.BertConfig(**sizes.config())
  return Squad(config, section == "step", contender)
