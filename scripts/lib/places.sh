# shellcheck shell=bash disable=SC2034  # what is set here is read elsewhere
# Folders, interpreter, devices and models of the launchers; sourced by lib.sh.

absolute "${DATA_DIR:-$root/data}"
data_dir=$REPLY
results_dir=$root/results
if [[ -d /results && -w /results ]]; then results_dir=/results; fi
absolute "${RESULTS_DIR:-$results_dir}"
results_dir=$REPLY

missing() {
  # What a run cannot do without; a dry run only mentions it.
  if $dry_run; then note "a run would stop here: $*"; else die "$*"; fi
}

choose_python() {
  # The interpreter of the stack asked for, of the NGC container around us, or
  # of tf1 where that is set up, else tf2; into python. An environment without
  # the stamp that set-up writes last is half made.
  local venv asked
  absolute "${BERT_VENV_DIR:-$root/.venv}"
  venv=$REPLY stack=${stack:-${BERT_STACK-}} asked=$stack
  if [[ -z $stack ]]; then
    case ${NVIDIA_TENSORFLOW_VERSION-} in
      *tf2*) stack=tf2 ;;
      ?*) stack=tf1 ;;
      *)
        stack=tf1
        if [[ ! -f $venv/tf1/setup-stamp && -f $venv/tf2/setup-stamp ]]; then
          stack=tf2
        fi ;;
    esac
  fi
  [[ $stack == tf[12] ]] ||
    usage_error "BERT_STACK is '$stack', but has to be tf1 or tf2"
  python=$venv/$stack/bin/python
  if [[ -n ${BERT_PYTHON-} ]]; then
    python=$BERT_PYTHON
    if [[ $python == */* ]]; then absolute "$python"; python=$REPLY; fi
    command -v -- "$python" >/dev/null ||
      missing "BERT_PYTHON: there is no program $python"
  elif [[ ! -x $python || ! -f $venv/$stack/setup-stamp ]]; then
    if [[ -n ${NVIDIA_TENSORFLOW_VERSION-} ]]; then
      python=python   # in an NGC container: the container's own TensorFlow
    else
      missing "there is no Python environment${asked:+ for the $asked stack}" \
        "yet: run bash $root/scripts/setup.sh${asked:+ --stack $asked}"
    fi
  fi
}

choose_client_python() {
  # The interpreter of the clients' environment, into python.
  absolute "${BERT_VENV_DIR:-$root/.venv}"
  python=$REPLY/client/bin/python
  if [[ -n ${BERT_PYTHON-} ]]; then
    python=$BERT_PYTHON
    if [[ $python == */* ]]; then absolute "$python"; python=$REPLY; fi
    command -v -- "$python" >/dev/null ||
      missing "BERT_PYTHON: there is no program $python"
  elif [[ ! -x $python || ! -f $REPLY/client/setup-stamp ]]; then
    missing "there is no Python environment for clients yet: run bash" \
      "$root/scripts/trtis/setup.sh --only client"
  fi
}

count_gpus() {
  # NVIDIA GPUs that a process started here may use, into REPLY.
  local commas
  REPLY=0
  command -v nvidia-smi >/dev/null || return 0
  REPLY=$(timeout 30 nvidia-smi -L 2>/dev/null | grep -c '^GPU ') || true
  [[ -n ${CUDA_VISIBLE_DEVICES+set} ]] || return 0
  if [[ -z $CUDA_VISIBLE_DEVICES || $CUDA_VISIBLE_DEVICES == -1 ]]; then
    REPLY=0
    return
  fi
  commas=${CUDA_VISIBLE_DEVICES//[^,]/}
  if ((${#commas} + 1 < REPLY)); then REPLY=$((${#commas} + 1)); fi
}

choose_devices() {
  # Settles num_gpus, precision and use_xla for this machine, or for those of
  # hosts.
  local changed='' where='NVIDIA GPU here' running='the CPU'
  if [[ -n $hosts ]]; then read_hosts "$hosts"; fi
  if ((${#host_names[@]})) && ! $dry_run; then   # a dry run asks nobody
    check_hosts
    where='NVIDIA GPU on some of the hosts' running='CPUs'
  else
    count_gpus
  fi
  if ((REPLY == 0)); then
    [[ -n ${stated[precision]-} ]] || precision=fp32 changed=' in fp32'
    [[ -n ${stated[use_xla]-} ]] || use_xla=false changed+=' without XLA'
    note "warning: no $where, running on $running$changed" \
      "(num_gpus then counts processes)"
  elif [[ -n $num_gpus && -z $hosts ]] && ((num_gpus > REPLY)); then
    missing "num_gpus is $num_gpus, but this machine offers $REPLY"
  fi
  if [[ -z $num_gpus ]]; then
    num_gpus=$((REPLY > 8 ? 8 : REPLY > 1 ? REPLY : 1))
  fi
}

computation_options() {
  # Options of what computes, the same in all launchers of the model.
  # shellcheck disable=SC2034
  remove_padding=true fused_ops=auto
  options <<'END'
remove_padding flag compute on real tokens alone
fused_ops choice:auto|on|off kernels of fused_ops: where they can be taken
END
}

choose_precision() {
  # Flags of what computes, into precision_flags.
  local name
  case $precision in
    fp32) precision_flags=(--use_fp16=false) ;;
    fp16) precision_flags=(--use_fp16=true) ;;
    bf16)
      [[ $stack == tf2 ]] ||
        die "precision bf16 needs the tf2 stack: add --stack tf2"
      precision_flags=(--use_fp16=false --use_bf16=true) ;;
  esac
  precision_flags+=("--use_xla=$use_xla")
  for name in remove_padding fused_ops; do
    if [[ -n ${stated[$name]-} ]]; then
      precision_flags+=("--$name=${!name}")
    fi
  done
}

prepare() {
  # All that the machine decides, before a launcher looks for its files.
  choose_python
  choose_devices
  choose_ranks
  choose_precision
}

find_model() {
  # The folder of model $1 (base, large, a folder or its name under DATA_DIR)
  # into model_dir: the first with a configuration, else the first there is,
  # else the first place; $1 in a form fit for file names into model_tag.
  local google=$data_dir/pretrained_models_google name=${1%/} folder part
  local -a places
  model_tag=${name##*/} model_tag=${model_tag//[^A-Za-z0-9._-]/_}
  case $name in
    base) places=("$google/uncased_L-12_H-768_A-12") ;;
    large) places=("$google/uncased_L-24_H-1024_A-16") ;;
    *)
      absolute "$name"
      places=("$REPLY" "$google/$name" "$data_dir/$name") ;;
  esac
  for part in bert_config.json .; do
    for folder in "${places[@]}"; do
      model_dir=$folder
      [[ ! -e $folder/$part ]] || return 0
    done
  done
  model_dir=${places[0]}
}

require_file() {
  # File $1, called $2; $3 tells what to do where it is not there.
  [[ -f $1 ]] || missing "no $2 at $1: $3"
}

require_checkpoint() {
  # Checkpoint $1 (prefix, folder or <folder>/model.ckpt) of argument $2.
  local folder=${1%/model.ckpt}
  [[ -f $1.index || -n $(find "$folder/" -maxdepth 1 -name '*.index' 2>&-) ]] ||
    missing "no checkpoint at $1: give --$2 its prefix (the path without" \
      ".index) or the folder that holds it"
}
