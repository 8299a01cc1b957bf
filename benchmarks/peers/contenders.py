"""Who is compared with whom, and what is to be reached."""

import typing


class Contender(typing.NamedTuple):
  """One version of the same work.

  Attributes:
    name: str, as --contenders takes it.
    label: str, as tables show it.
    environment: "tf1", "tf2" or "peers", which Python runs it.
    code: "own", "google" or "torch".
    bf16: bool, whether it computes in bfloat16.
    flags: list of str, the runner's flags (own code alone).
    grouped: bool, whether batches are of similar length and padded to their
      longest feature (PyTorch alone).
  """
  name: str
  label: str
  environment: str
  code: str
  bf16: bool = False
  flags: typing.Tuple[str, ...] = ()
  grouped: bool = False


def _of_stack(stack):
  return [
      Contender(stack + "-google", "Google's code, " + stack, stack, "google"),
      Contender(stack + "-reference", "own, reference path, " + stack, stack,
                "own", flags=("--noremove_padding", "--fused_ops=off")),
      Contender(stack + "-packed", "own, no padding, " + stack, stack, "own",
                flags=("--fused_ops=off",)),
      Contender(stack + "-fused", "own, " + stack, stack, "own",
                flags=("--fused_ops=on",))]


CONTENDERS = {one.name: one for one in _of_stack("tf1") + _of_stack("tf2") + [
    Contender("tf2-bf16", "own, tf2, bfloat16", "tf2", "own", bf16=True,
              flags=("--fused_ops=on", "--use_bf16")),
    Contender("torch", "PyTorch", "peers", "torch"),
    Contender("torch-bf16", "PyTorch, bfloat16", "peers", "torch", bf16=True),
    Contender("torch-bf16-grouped", "PyTorch, bfloat16, grouped by length",
              "peers", "torch", bf16=True, grouped=True)]}


class Target(typing.NamedTuple):
  """Ours against theirs.

  Attributes:
    ours, theirs: names of contenders.
    ratio: float that ours over theirs has to reach (memory: stay below), or
      None where none was set.
  """
  ours: str
  theirs: str
  ratio: typing.Optional[float] = None


# Those of a group take turns: all that a target compares are in one.
GROUPS = {
    "step": [
        ["tf1-google", "tf1-reference", "tf1-packed", "tf1-fused", "torch"],
        ["tf2-google", "tf2-reference", "tf2-packed", "tf2-fused"],
        ["tf2-bf16", "torch-bf16", "torch-bf16-grouped"]],
    "predict": [["tf1-google", "tf1-fused", "torch"],
                ["tf2-google", "tf2-fused", "tf2-bf16", "torch-bf16"]],
    "pretrain": [["tf1-google", "tf1-fused"],
                 ["tf2-google", "tf2-fused", "tf2-bf16"]],
    "memory": [["tf1-google", "tf1-fused"],
               ["tf2-google", "tf2-fused"]],
    "fit": [["tf1-fused"], ["tf2-fused"], ["tf2-bf16"]],
}

TARGETS = {
    "step": [Target("tf1-fused", "tf1-google", 4),
             Target("tf1-fused", "tf1-reference", 4),
             Target("tf1-reference", "tf1-google", 0.95),
             Target("tf1-packed", "tf1-google"),
             Target("tf1-fused", "torch", 6),
             Target("tf2-fused", "tf2-google"),
             Target("tf2-fused", "tf2-reference"),
             Target("tf2-reference", "tf2-google"),
             Target("tf2-packed", "tf2-google"),
             Target("tf2-bf16", "torch-bf16", 3),
             Target("tf2-bf16", "torch-bf16-grouped", 1.3)],
    "predict": [Target("tf1-fused", "tf1-google", 3),
                Target("tf1-fused", "torch", 5),
                Target("tf2-fused", "tf2-google"),
                Target("tf2-bf16", "tf2-google", 3),
                Target("tf2-bf16", "torch-bf16", 2.5)],
    "pretrain": [Target("tf1-fused", "tf1-google", 1.7),
                 Target("tf2-fused", "tf2-google"),
                 Target("tf2-bf16", "tf2-google")],
    "memory": [Target("tf1-fused", "tf1-google", 0.6),
               Target("tf2-fused", "tf2-google", 0.6)],
}

# Of the rate of the matrix products alone; R squared of the fit.
SHARES = {"tf1-fused": 0.75, "tf2-fused": 0.75, "tf2-bf16": 0.6}
R_SQUARED = 0.98
