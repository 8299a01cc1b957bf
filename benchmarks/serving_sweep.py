"""Measures a local server under many settings and draws what it found.

scripts/trtis/generate_figures.sh calls it. The checkpoint is exported once;
for each setting only the model's configuration is changed, the server started
anew and measured over rising concurrencies:

  static   requests of max_batch_size sentences, each a batch of its own
  dynamic  requests of one sentence, of which the server makes batches of up
           to max_batch_size; with each delay

each with every count of instances. What was measured stays in points/, so that
the same command goes on where it stopped. The folder gets points.csv (all
settings), <setting>.csv, perf_analyzer's own rows in <setting>_analyzer.csv, a
picture a setting and summary.png.
"""

import argparse
import contextlib
import datetime
import glob
import itertools
import logging
import os
import pathlib
import re
import signal
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

# pylint: disable=wrong-import-position
from benchmarks import perf_client
from benchmarks import perf_points
from benchmarks import serving_figures
from utils import benchmarks
from utils import errors
from utils import files
from utils import logs
from utils import model_config
from utils import ports
from utils.errors import UserError

_LOGGER = logging.getLogger("bert")
MODEL, VERSION = "bert", 1
_SCRIPTS = ROOT / "scripts" / "trtis"
# Seconds: a large model on a busy machine; its end.
_START, _END = 600, 60


def settings_of(batch_sizes, delays, engine_counts):
  """Returns the list of Setting to measure, each once.

  A batch of one needs no dynamic batching.

  Args:
    batch_sizes: list of int.
    delays: list of float, milliseconds.
    engine_counts: list of int.
  """
  result = []
  for engines, size in itertools.product(engine_counts, batch_sizes):
    result.append(serving_figures.Setting(
        serving_figures.STATIC, size, 0.0, engines))
    if size > 1:
      result.extend(serving_figures.Setting(
          serving_figures.DYNAMIC, size, delay, engines) for delay in delays)
  return list(dict.fromkeys(result))


# --- machine -----------------------------------------------------------------


def machine(device):
  """Returns a phrase on what computes.

  Args:
    device: str, the GPU's name; empty for the CPU.
  """
  cores = len(os.sched_getaffinity(0))
  words = "%s, %d core%s" % (errors.one_line(benchmarks.machine()["cpu"]),
                             cores, "s" if cores > 1 else "")
  return "%s (%s)" % (device, words) if device else words


def caption(options):
  """Returns what the pictures say of the measurement."""
  kind = {"onnx": "ONNX"}.get(options.export_format, "SavedModel")
  return ("BERT %s, %d tokens, %s, %s, on %s, server and client alike; "
          "Triton's perf_analyzer over %s, windows of %g s; %s." % (
              options.bert_model, options.seq_length, options.precision, kind,
              machine(options.device), options.protocol,
              options.measurement_interval / 1000.0,
              datetime.date.today().isoformat()))


def weights_of(path):
  """Returns {file: [bytes, time of change]} of the checkpoint that is meant.

  Of a folder its newest, as utils/checkpoints.py has it, which needs
  TensorFlow; empty where there is none.

  Args:
    path: str, a prefix, a folder or "<folder>/model.ckpt".
  """
  if not os.path.exists(path + ".index"):
    folder = (os.path.dirname(path) or "."
              if os.path.basename(path) == "model.ckpt" else path)
    prefixes = [name[:-len(".index")] for name in glob.glob(
        os.path.join(glob.escape(folder), "*.index"))]
    path = max(prefixes, default=path, key=lambda prefix: (
        int((re.findall(r"-(\d+)$", prefix) or [-1])[0]), prefix))
  found = {}
  for name in (glob.glob(glob.escape(path) + ".index")
               + glob.glob(glob.escape(path) + ".data-*-of-*")):
    said = os.stat(name)
    found[name] = [said.st_size, said.st_mtime_ns]
  return found


def identity(options):
  """Returns the dict of what all points of a folder have in common.

  Of the checkpoint its files, too: a run that has trained on is another model.
  """
  names = ["bert_model", "seq_length", "doc_stride",
           "precision", "predict_file", "export_flag", "export_format",
           "protocol", "max_client_threads", "measurement_interval",
           "stability_percentage", "max_trials"]
  return dict({name: getattr(options, name) for name in names},
              init_checkpoint=[options.init_checkpoint,
                               weights_of(options.init_checkpoint)],
              machine=machine(options.device))


def open_sweep(folder, options):
  """Writes sweep.json, or checks the one that is there.

  Raises:
    UserError: if the folder holds points that were measured otherwise.
  """
  path = os.path.join(folder, "sweep.json")
  wanted, said = identity(options), {}
  if os.path.exists(path):
    said = files.read_json(path, "--output_dir")
    before = said.get("identity", {}) if isinstance(said, dict) else {}
    other = [name for name in wanted if before.get(name) != wanted[name]]
    if other:
      raise UserError(
          "%s was begun with another %s: points of both cannot stand in one "
          "picture; name another --run_dir" % (folder, " and ".join(other)))
  files.write_json(path, {
      "identity": wanted, "max_latency": options.max_latency,
      "caption": said.get("caption") or caption(options)})


# --- export and server -------------------------------------------------------


def _logged(command, log):
  """Runs a command whose words go to `log`; UserError with its last ones."""
  with open(log, "ab") as stream:
    status = subprocess.call(command, stdin=subprocess.DEVNULL, stdout=stream,
                             stderr=subprocess.STDOUT)
  if status:
    with open(log, encoding="utf-8", errors="replace") as stream:
      words = [line.strip() for line in stream if line.strip()][-1:]
    raise UserError("%s ended with status %d: %s (all in %s)" % (
        os.path.basename(command[1]), status, " ".join(words)[:300], log))


def export(folder, options, largest):
  """Exports the checkpoint once; returns the model repository's path."""
  repository = os.path.join(folder, "trtis_models")
  work = os.path.join(folder, "export")
  done = os.path.join(work, "export.done")
  if not os.path.exists(done):
    _LOGGER.info("exporting %s", options.init_checkpoint)
    os.makedirs(work, exist_ok=True)
    _logged([options.export_python, str(ROOT / "run_squad.py")]
            + options.export_flag
            + ["--export_trtis=true", "--trtis_model_overwrite=true",
               "--init_checkpoint=" + options.init_checkpoint,
               "--output_dir=" + work,
               "--export_format=" + options.export_format,
               "--trtis_model_repository=" + repository,
               "--trtis_model_name=" + MODEL,
               "--trtis_model_version=%d" % VERSION,
               "--trtis_max_batch_size=%d" % largest],
            os.path.join(work, "export.log"))
    with files.atomic_write(done) as stream:
      stream.write("%s\n" % repository)
  return repository


def configure(repository, setting):
  """Makes the repository's configurations those of a Setting."""
  folder = glob.escape(os.path.join(repository, MODEL))
  for path in (glob.glob(os.path.join(folder, "config.pbtxt"))
               + glob.glob(os.path.join(folder, "configs", "*.pbtxt"))):
    with open(path, encoding="utf-8") as stream:
      text = stream.read()
    text = model_config.changed(
        text, max_batch_size=setting.max_batch_size,
        delay_ms=setting.dyn_batching_delay, engine_count=setting.engine_count,
        dynamic_batching=setting.batching == serving_figures.DYNAMIC,
        what=path)
    with files.atomic_write(path) as stream:
      stream.write(text)


def _stop(process):
  """Ends launch_server.sh and, should it not, all that it started."""
  process.terminate()
  try:
    process.wait(_END)
  except subprocess.TimeoutExpired:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def running(repository, log):
  """Yields the perf_client.Server of a server over a repository.

  Raises:
    UserError: if it does not become ready.
  """
  http, grpc, metrics = ports.free(3)
  with open(log, "ab") as stream:
    process = subprocess.Popen(
        ["bash", str(_SCRIPTS / "launch_server.sh"), "--repository", repository,
         "--http_port", str(http), "--grpc_port", str(grpc),
         "--metrics_port", str(metrics), "--log", log,
         "--end_with", str(os.getpid())],
        stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
        start_new_session=True)
  try:
    _logged(["bash", str(_SCRIPTS / "wait_for_trtis_server.sh"), "127.0.0.1",
             "--http_port", str(http), "--timeout", str(_START), "--log", log,
             "--server_process", str(process.pid)], log + ".wait")
    yield perf_client.Server("127.0.0.1", http, grpc, MODEL, VERSION)
  finally:
    _stop(process)


# --- points ------------------------------------------------------------------


class Sweep(object):
  """The points of a folder: those that are there, and the rest measured.

  Args:
    folder: str.
    repository: str, where the exported model is.
    options: of the command line.
  """

  def __init__(self, folder, repository, options):
    self._folder, self._repository = folder, repository
    self._options = options
    self._inputs = os.path.join(folder, "inputs.json")

  def _place(self, setting, name):
    return os.path.join(self._folder, "points", setting.name, name)

  def _start(self, stack, setting):
    """Returns the Server of a setting, warm; it ends with the ExitStack."""
    log = self._place(setting, "server.log")
    os.makedirs(os.path.dirname(log), exist_ok=True)
    configure(self._repository, setting)
    server = stack.enter_context(running(self._repository, log))
    if not os.path.exists(self._inputs):
      perf_client.write_inputs(
          self._inputs, server, self._options.predict_file,
          self._options.vocab_file, self._options.doc_stride)
    # Enough for each instance to get some.
    perf_client.warm_up(
        server, self._inputs, self._load(setting).batch_size,
        2 * setting.engine_count * setting.max_batch_size)
    return server

  def _load(self, setting):
    dynamic = setting.batching == serving_figures.DYNAMIC
    return perf_client.load_of(self._options,
                               1 if dynamic else setting.max_batch_size)

  def _measure(self, server, setting, concurrency):
    """Measures, keeps and returns a Point."""
    stem = self._place(setting, "concurrency_%d" % concurrency)
    point, text = perf_client.measure(
        server, self._load(setting), self._inputs, concurrency, stem + ".log")
    with files.atomic_write(stem + "_analyzer.csv") as stream:
      stream.write(text)
    # Last: it says that the point is there.
    perf_points.write(stem + ".csv", [point])
    _LOGGER.info(
        "%s, concurrency %d: %.1f sentences/s, %.2f ms, %.2f sentences an "
        "execution%s", setting.name, concurrency, point.throughput,
        point.latency, point.executed_batch,
        "" if point.stable else " (did not settle)")
    return point

  def points_of(self, setting):
    """Returns the Points of a setting, measured where they are not there.

    Raises:
      UserError: if the server or perf_analyzer fails.
    """
    servers = []
    with contextlib.ExitStack() as stack:

      def take(concurrency):
        path = self._place(setting, "concurrency_%d.csv" % concurrency)
        if os.path.exists(path):
          return perf_points.read(path)[0][1]
        if not servers:
          servers.append(self._start(stack, setting))
        return self._measure(servers[0], setting, concurrency)

      points = perf_client.rising(self._options.concurrencies,
                                  self._options.max_latency, take)
    self._write(setting, points)
    return points

  def _write(self, setting, points):
    texts = []
    for point in points:
      name = "concurrency_%d_analyzer.csv" % point.concurrency
      with open(self._place(setting, name), encoding="utf-8") as stream:
        texts.append(stream.read())
    stem = os.path.join(self._folder, setting.name)
    with files.atomic_write(stem + "_analyzer.csv") as stream:
      stream.write(perf_client.merged(texts))
    perf_points.write(stem + ".csv", points,
                      [setting._asdict()] * len(points))


def _finish(folder, found, options):
  """Writes what all settings gave; prints the recommended one."""
  rows = [(setting._asdict(), point) for setting, points in found.items()
          for point in points]
  perf_points.write(os.path.join(folder, "points.csv"),
                    [point for _, point in rows], [said for said, _ in rows])
  serving_figures.draw(folder)
  best = serving_figures.recommended(found, options.max_latency,
                                     options.stability_percentage)
  if best is None:
    print("no point that settled has an average latency up to %g ms"
          % options.max_latency)
  else:
    print("recommended: %s, concurrency %d: %.1f sentences/s, %.2f ms" % (
        best[0].title, best[1].concurrency, best[1].throughput,
        best[1].latency))
  _LOGGER.info("pictures and tables: %s", folder)


def run(options):
  """Measures all settings."""
  folder = files.require_output_dir(options.output_dir, "output_dir")
  logs.set_up(options.log_file)
  settings = settings_of(options.batch_sizes, options.dyn_batching_delays,
                         options.engine_counts)
  serving_figures.check_looks(settings)
  found, failed = {}, []
  with files.FolderLock(folder):
    perf_client.load_of(options, 1)
    open_sweep(folder, options)
    sweep = Sweep(folder, export(folder, options, max(options.batch_sizes)),
                  options)
    for number, setting in enumerate(settings, 1):
      _LOGGER.info("setting %d of %d: %s", number, len(settings),
                   setting.title)
      try:
        found[setting] = sweep.points_of(setting)
      except UserError as error:
        _LOGGER.error("%s: %s", setting.name, error)
        failed.append(setting.name)
    if found:
      _finish(folder, found, options)
  if failed:
    raise UserError("%d of %d settings failed: %s; the same command tries "
                    "them again" % (len(failed), len(settings),
                                    ", ".join(failed)))


def delay_list(text):
  """Returns milliseconds, 0 or more, with commas between."""
  values = [float(word) for word in text.split(",")]
  if not all(0 <= value < 1e6 for value in values):
    raise ValueError
  return values


def parse(argv):
  """Returns the options of a command line."""
  parser = argparse.ArgumentParser(
      description="Measures a local Triton server under many settings.")
  perf_client.load_arguments(parser)
  whole_list = perf_client.whole_list
  parser.add_argument("--bert_model", required=True, help="for the pictures")
  parser.add_argument("--seq_length", type=perf_client.whole, required=True)
  parser.add_argument("--init_checkpoint", required=True)
  parser.add_argument("--export_python", required=True)
  parser.add_argument("--export_flag", action="append", required=True,
                      help="of run_squad.py; may be given several times")
  parser.add_argument("--export_format", default="savedmodel")
  parser.add_argument("--device", default="", help="the GPU's name")
  parser.add_argument("--batch_sizes", type=whole_list, required=True)
  parser.add_argument("--dyn_batching_delays", type=delay_list, required=True)
  parser.add_argument("--engine_counts", type=whole_list, required=True)
  parser.add_argument("--concurrencies", type=whole_list, required=True)
  return parser.parse_args(argv)


def main(argv=None):
  """Runs the command line."""
  options = parse(argv)
  # The server is stopped on the way out.
  perf_client.end_on_sigterm()
  errors.guard(run, options)


if __name__ == "__main__":
  main()
