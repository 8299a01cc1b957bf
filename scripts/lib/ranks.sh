# shellcheck shell=bash disable=SC2034,SC2154
# Several ranks: what starts them; sourced by lib.sh.
#
# mpirun (Open MPI) or horovodrun starts lib/rank.sh for each rank, a process a
# GPU. Found out with Open MPI 4.1.4 and Horovod 0.28.1:
# - mpirun hands SIGUSR1 on to the ranks. SIGTERM makes it end the job: after
#   odls_base_sigkill_timeout seconds the ranks get SIGTERM, after as many
#   again SIGKILL, and it waits both times although they are long gone. So does
#   it when a rank dies, which is to be over within a minute: 10 seconds, then.
# - horovodrun dies of SIGUSR1; on SIGTERM, or when a rank dies, the ranks get
#   SIGTERM and 5 seconds later SIGKILL.
# - A rank whose peer dies waits for it in MPI for ever. With the keep-alive
#   below a machine that is cut off is noticed in 22 seconds, not in minutes.
# What the environment sets (OMPI_MCA_...) wins over the options here.

rank_launcher='' bind_cpus=true hosts='' network_interface='' remote_shell=ssh
max_restarts=0 stop_seconds=60 stopped_status=0
several=false ranks=1 starter=()
start_seconds=${HOROVOD_START_TIMEOUT:-120}   # till the ranks are there

rank_options() {
  options <<'END'
rank_launcher choice:mpirun|horovodrun? starts ranks; empty: mpirun, if here
bind_cpus flag keep each of several ranks to CPUs near its GPU
hosts path? file of machines, NAME slots=RANKS a line; empty: this one
network_interface text? interface between machines; empty: found by itself
remote_shell text command that runs another one on a machine
max_restarts whole how often to start again after a crash
stop_seconds count time to save a checkpoint after SIGTERM
stopped_status whole exit status after that
END
}

has_open_mpi() {
  # Whether mpirun is Open MPI's and Horovod, as far as one sees, knows MPI.
  local version library seen=false
  version=$(mpirun --version 2>/dev/null) || return 1
  [[ $version == *'Open MPI'* ]] || return 1
  for library in "${python%/bin/*}"/lib/python*/site-packages/horovod/\
tensorflow/mpi_lib*.so; do
    [[ -f $library ]] || continue
    seen=true
    if grep -q 'libmpi\.so' "$library"; then return 0; fi
  done
  ! $seen
}

choose_starter() {
  # Settles rank_launcher.
  local asked=$rank_launcher
  if [[ $asked != horovodrun ]] && has_open_mpi; then
    rank_launcher=mpirun
    return
  fi
  [[ $asked != mpirun ]] || missing "rank_launcher is mpirun, but there is no" \
    "mpirun of Open MPI, or Horovod was built without MPI"
  horovodrun=horovodrun
  if [[ $python == */* ]]; then horovodrun=${python%/*}/horovodrun; fi
  [[ $asked == mpirun ]] || rank_launcher=horovodrun
  command -v -- "$horovodrun" >/dev/null || missing "$ranks processes need" \
    "Open MPI's mpirun or $horovodrun: run bash $root/scripts/setup.sh, or" \
    "add --num_gpus 1"
}

choose_ranks() {
  # Settles ranks and several, after num_gpus.
  local i
  ranks=$num_gpus
  if ((${#host_names[@]})); then ranks=0; fi
  for i in "${!host_names[@]}"; do
    host_slots[i]=${host_slots[i]:-$num_gpus}
    ranks=$((ranks + host_slots[i]))
  done
  if ((ranks > 1 || ${#host_names[@]})); then several=true; choose_starter; fi
}

mca() {
  # Adds parameter $1 of Open MPI with value $2, unless the user has set it.
  local variable=OMPI_MCA_$1
  [[ -n ${!variable+set} ]] || starter+=(--mca "$1" "$2")
}

mpirun_options() {
  # Adds options of mpirun to starter; $1 is the list of machines.
  local name shared='PATH|LD_LIBRARY_PATH|PYTHON(PATH|UNBUFFERED)|TMPDIR|LANG'
  shared+='|(DATA|RESULTS)_DIR|(LC|BERT|HOROVOD|NCCL|TF|XLA|CUDA|NVIDIA|OMP|MKL'
  shared+='|KMP)_.*'
  ((EUID != 0)) || starter+=(--allow-run-as-root)
  starter+=(-np "$ranks" --host "$1" --map-by slot --bind-to none)
  mca pml ob1
  mca btl ^openib
  mca odls_base_sigkill_timeout 10
  mca odls_base_signal_direct_children_only true
  # The machines are those named here, also within a job of a scheduler.
  mca plm ^slurm,tm,lsf,alps
  mca ras ^slurm,tm,gridengine,lsf,loadleveler,alps
  [[ -n $hosts ]] || return 0
  mca oob_tcp_keepalive_time 10
  mca oob_tcp_keepalive_intvl 3
  mca oob_tcp_keepalive_probes 4
  mca plm_rsh_agent "${remote_command[*]}"
  mca plm_rsh_no_tree_spawn 1
  if [[ -n $network_interface ]]; then
    mca oob_tcp_if_include "$network_interface"
    mca btl_tcp_if_include "$network_interface"
  fi
  # A scheduler ends what its own remote shell has left behind.
  [[ $remote_shell == ssh ]] || starter+=(--leave-session-attached)
  for name in $(compgen -e); do
    if [[ $name =~ ^($shared)$ ]]; then starter+=(-x "$name"); fi
  done
}

rank_starter() {
  # What starts the ranks of the run in run_dir, into the array starter; the
  # program's own words come behind it.
  local list=localhost:$ranks i
  if ((${#host_names[@]})); then
    list=''
    for i in "${!host_names[@]}"; do
      list+=${list:+,}${host_names[i]}:${host_slots[i]}
    done
  fi
  if [[ -n $network_interface ]]; then
    export HOROVOD_GLOO_IFACE=${HOROVOD_GLOO_IFACE:-$network_interface}
    export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-$network_interface}
  fi
  if [[ $rank_launcher == horovodrun ]]; then
    starter=("$horovodrun" --gloo -np "$ranks" -H "$list" --start-timeout
      "$start_seconds")
    [[ -z $network_interface ]] ||
      starter+=(--network-interfaces "$network_interface")
    # It imports TensorFlow to see what Horovod can do, and so says pages.
    export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2}
  else
    starter=(mpirun)
    mpirun_options "$list"
  fi
  starter+=(bash "$root/scripts/lib/rank.sh" "$run_dir" "$bind_cpus")
}
