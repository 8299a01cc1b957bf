"""The peak memory of a process of its own.

`ru_maxrss` will not do: a child begins with what its parent had when it was
forked, and under pytest that is much.
"""

import re

# A line of code that prints the kilobytes of the process that runs it.
PRINT = ("print(__import__('re').search(r'VmHWM:\\s+(\\d+)', "
         "open('/proc/self/status').read()).group(1))")


def of_printed(output):
  """Returns the kilobytes in the output (bytes) of code that ends in PRINT."""
  return int(re.search(br"(\d+)\s*\Z", output).group(1))
