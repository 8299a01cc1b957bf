# shellcheck shell=bash disable=SC2154
# The kernels of fused_ops, compiled against the TensorFlow of an environment.
# Sourced by setup.sh; defines functions only.

# What shapes the library beside the environment: its sources, the compilers,
# and whether there is a GPU.
kernels_key() {
  {
    cat "$root"/fused_ops/*.py "$root"/fused_ops/kernels/* 2> /dev/null
    "${CXX:-g++}" -dumpversion 2> /dev/null || echo no
    command -v nvcc nvidia-smi || echo no
  } | sha256sum | cut -c1-64
}

# Whether they are to be built: not tried yet with these, or gone since. The
# Dockerfile sets up before the sources are there.
kernels_due() {
  [[ -d $root/fused_ops ]] || return 1
  [[ $(stamped kernels) == "$(kernels_key)" ]] || return 0
  [[ $(stamped library) != no && ! -f $(stamped library) ]]
}

# Builds them and sets $library; a failure is one line and not the end, since
# the framework's own operations do the same.
build_kernels() {
  local words=''
  if run_logged "kernels of fused_ops: under a minute, with a GPU three" \
    "$venv/bin/python" "$root/fused_ops/build.py"; then
    library=$(tail -n 1 "$log")
    if words=$(tail -n 2 "$log" | grep -a '^fused_ops: not for GPUs'); then
      say "$words"
    fi
  else
    words=$(tail -n 1 "$log")
    library=no
    say "${words:-fused_ops: not built}; the framework's own operations do" \
      "the same, slower"
  fi
}
