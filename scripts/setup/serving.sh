# shellcheck shell=bash disable=SC2154
# The environments that serve, ask and convert: serving, client and onnx.
# Sourced by trtis/setup.sh; defines functions only.

# What the environment has to start with, as its stamp tells.
serving_modules() {
  case $stack in
    serving) echo 'tensorflow onnxruntime numpy' ;;
    client) echo 'tritonclient.grpc tritonclient.http numpy matplotlib' ;;
    onnx) echo 'tensorflow tf2onnx onnx onnxruntime' ;;
  esac
}

# The shared library of Python $1, which the server's Python backend is linked
# to; nothing where there is none.
libpython_of() { "$1" -I "$root/scripts/setup/triton_files.py" libpython; }

# Sets $interpreter; gets it, or its shared library, where it is missing.
choose_serving_python() {
  local version=''
  interpreter=$(find_python "$stack") ||
    { fetch_python "$stack" && interpreter=$(find_python "$stack"); } ||
    { [[ -z ${BERT_BASE_PYTHON-} ]] && have apt-get && is_root &&
      install_packages python3-venv && interpreter=$(find_python "$stack"); } ||
    no_python "$stack" BERT_SERVING_PYTHON \
      "install one (on Debian: apt-get install python3-venv)"
  [[ $stack == serving && -z $(libpython_of "$interpreter") ]] || return 0
  version=$("$interpreter" -I -c \
    'import sys; print("%d.%d" % sys.version_info[:2])')
  if [[ $interpreter == /usr/bin/* ]]; then
    install_packages "libpython$version"
  fi
  [[ -n $(libpython_of "$interpreter") ]] ||
    die "$interpreter has no shared library (libpython$version.so.1.0), which" \
      "the server is linked to: name another Python with BERT_SERVING_PYTHON" \
      "(on Debian: apt-get install libpython$version)"
}

# Puts Triton's own files into the environment, out of the pinned wheel.
unpack_triton() {
  local kind folder wheel
  wheel=$(sed -n 's/^nvidia-pytriton==/&/p' "$(requirements_file)")
  case $stack in
    serving) kind=server folder=$venv/triton ;;
    client) kind=client folder=$venv/lib/perf_analyzer ;;
    *) return 0 ;;
  esac
  run_logged "Triton's own files, out of $wheel" "$venv/bin/python" -m pip \
    download -q --no-deps -d "$venv/wheel" "$wheel" || {
    if tail -n 40 "$log" | grep -qE "$no_index"; then
      die "pip cannot reach a package index: no network? (log: $log)"
    fi
    die "pip could not fetch $wheel (log: $log)"
  }
  run_logged '' "$venv/bin/python" -I "$root/scripts/setup/triton_files.py" \
    "$kind" "$venv"/wheel/nvidia_pytriton-*.whl "$folder" ||
    die "could not unpack $wheel (log: $log)"
  rm -rf -- "$venv/wheel"
}

# Written last and in one piece: an environment without a stamp is half made.
write_serving_stamp() {
  local module folder
  for module in $(serving_modules); do
    run_logged '' env TF_CPP_MIN_LOG_LEVEL=3 "$venv/bin/python" -c \
      "import $module" ||
      die "$module does not start in the new environment (log: $log)"
  done
  {
    printf 'key %s\nflavour cpu\n' "$(environment_key)"
    "$venv/bin/python" -c \
      'import platform; print("python", platform.python_version())'
    "$venv/bin/python" -I "$root/scripts/setup/environment.py" packages
    for folder in "$venv/triton" "$venv/lib/perf_analyzer"; do
      [[ ! -d $folder ]] || "$venv/bin/python" -I \
        "$root/scripts/setup/environment.py" files "$folder"
    done
  } > "$stamp.new"
  mv -- "$stamp.new" "$stamp"
}
