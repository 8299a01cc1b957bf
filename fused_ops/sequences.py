"""How the rows of a matrix [tokens, hidden] form sequences.

Two layouts: every position of [batch, length] has a row, as in the reference,
or only those of real tokens have one, one sequence after the other
(`of_tokens`). Dense layers, layer norms and dropout need not know which; what
has to, attention and the heads, asks a `Sequences`.

Packing and padding move whole rows, each to a place of its own: nothing is
added up, so that both directions give the same bits in every run.
"""

import typing

import tensorflow.compat.v1 as tf


class Sequences(typing.NamedTuple):
  """The rows of a batch; all integers are int32.

  Attributes:
    batch: int or scalar tensor, the number of sequences.
    length: int or scalar tensor, positions of a sequence, padding included.
    mask: [batch, length], above 0 for tokens, or None where all are.
    rows: [tokens], the place of each row among batch * length positions in
      ascending order; None where each position has its row.
    starts: [batch + 1], the first row of each sequence, and the number of
      tokens; None where `rows` is.
    count: scalar, the number of rows; None where `rows` is. Known outside of
      XLA's programs, which would be cut where a tensor is asked for its shape.
    rounded: bool, whether `rows` ends with some that belong to no sequence, at
      a place behind the last.
  """
  batch: typing.Any
  length: typing.Any
  mask: typing.Any = None
  rows: typing.Any = None
  starts: typing.Any = None
  count: typing.Any = None
  rounded: bool = False

  @property
  def packed(self):
    """Whether padding has no rows."""
    return self.rows is not None


def of_positions(batch, length, mask=None):
  """Returns the `Sequences` in which every position has a row."""
  return Sequences(batch, length, mask)


def of_tokens(batch, length, mask, buckets=None):
  """Returns the `Sequences` in which only tokens have a row.

  Args:
    batch: int or scalar tensor.
    length: int or scalar tensor.
    mask: int32 [batch, length], above 0 for tokens.
    buckets: int, to how many different numbers of rows to round up, for XLA,
      which compiles a program for each; None for exactly the tokens.
  """
  # What it is that decides shapes must not become part of a cluster.
  with tf.xla.experimental.jit_scope(compile_ops=False):
    real = mask > 0
    rows = tf.cast(tf.where(tf.reshape(real, [-1]))[:, 0], tf.int32)
    counts = tf.reduce_sum(tf.cast(real, tf.int32), 1)
    starts = tf.concat([[0], tf.cumsum(counts)], 0)
    if buckets:
      total = batch * length
      unit = (total + buckets - 1) // buckets
      spare = -tf.size(rows) % unit
      rows = tf.concat([rows, tf.fill([spare], total)], 0)
    count = tf.size(rows)
  return Sequences(batch, length, mask, rows, starts, count, bool(buckets))


def pack(sequences, padded):
  """Returns the rows [tokens, ...] of a tensor [batch, length, ...]."""
  shape = padded.shape.as_list()[2:]
  flat = tf.reshape(padded, [-1] + shape)
  if not sequences.packed:
    return flat
  rows = sequences.rows
  if sequences.rounded:  # any row will do: nothing comes of it
    rows = tf.minimum(rows, sequences.batch * sequences.length - 1)
  return take(flat, rows)


def take(matrix, rows):
  """Returns rows of a tensor [n, ...]; its gradient moves them back.

  That of tf.gather, and of tf.gather_nd by one number a row, is sparse: made
  dense it adds rows up.

  Args:
    matrix: tensor [n, ...].
    rows: int32 [k], below n.
  """
  return tf.gather_nd(tf.expand_dims(matrix, 0),
                      tf.stack([tf.zeros_like(rows), rows], 1))


def pad(sequences, rows):
  """Returns [batch, length, ...] from rows [tokens, ...]; padding is 0."""
  shape = rows.shape.as_list()[1:]
  outer = [sequences.batch, sequences.length]
  if sequences.packed:
    places = sequences.batch * sequences.length
    last = places + 1 if sequences.rounded else places
    rows = tf.scatter_nd(tf.expand_dims(sequences.rows, 1), rows,
                         [last] + shape)
    if sequences.rounded:
      rows = rows[:places]
  return tf.reshape(rows, outer + shape)


def positions(sequences):
  """Returns int32 [tokens], each row's position in its sequence.

  None where they are 0 to length - 1, over and over.
  """
  return sequences.rows % sequences.length if sequences.packed else None


def rows_at(sequences, places):
  """Returns the vectors' row numbers at places of the padded batch.

  Args:
    sequences: `Sequences`.
    places: int32 [n], among batch * length positions; those of tokens.

  Returns:
    int32 [n]. A place without a row gets that of the token before it.
  """
  if not sequences.packed:
    return places
  real = tf.cast(tf.reshape(sequences.mask, [-1]) > 0, tf.int32)
  return tf.gather(tf.maximum(tf.cumsum(real) - 1, 0), places)


def shortened(sequences):
  """Returns the packed `Sequences` padded no further than their longest.

  Args:
    sequences: packed `Sequences`, not rounded.

  Returns:
    `Sequences` of the same rows, whose tokens begin at position 0.
  """
  counts = sequences.starts[1:] - sequences.starts[:-1]
  longest = tf.reduce_max(counts)
  owner = sequences.rows // sequences.length
  within = (tf.range(sequences.count)
            - tf.gather(sequences.starts, owner))
  return Sequences(
      sequences.batch, longest,
      tf.sequence_mask(counts, longest, dtype=tf.int32),
      owner * longest + within, sequences.starts, sequences.count)
