"""A server that speaks enough of Triton's gRPC protocol to misbehave.

A program for the client's environment, which has the protocol's stubs:

  python trtis_grpc_stand_in.py SEQ_LENGTH CODE:NUMBER...

answers request NUMBER (from 0) with that status, or not at all if it is HANG,
and all others as trtis_stand_in does. Its port is its first line.
"""

import concurrent.futures
import sys
import threading

from google.protobuf import json_format
import grpc
import numpy as np
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc import service_pb2
from tritonclient.grpc import service_pb2_grpc

import trtis_stand_in


class StandIn(service_pb2_grpc.GRPCInferenceServiceServicer):
  """Serves the model "bert", version 1; `faults` is {number: code}."""

  def __init__(self, seq_length, faults):
    self._config = json_format.ParseDict(
        trtis_stand_in.config(seq_length), model_config_pb2.ModelConfig())
    self._faults = faults
    self._count = 0
    self._lock = threading.Lock()

  def ModelConfig(self, request, context):
    return service_pb2.ModelConfigResponse(config=self._config)

  def ModelReady(self, request, context):
    return service_pb2.ModelReadyResponse(ready=True)

  def ModelInfer(self, request, context):
    with self._lock:
      fault = self._faults.get(self._count)
      self._count += 1
    if fault == "HANG":
      threading.Event().wait(600)
    if fault:
      context.abort(getattr(grpc.StatusCode, fault), "as told: " + fault)
    (ids,) = [np.frombuffer(content, np.int32).reshape(tensor.shape)
              for tensor, content in zip(request.inputs,
                                         request.raw_input_contents)
              if tensor.name == "input_ids"]
    response = service_pb2.ModelInferResponse(
        model_name="bert", model_version="1", id=request.id)
    for name, array in trtis_stand_in.logits_of(ids).items():
      response.outputs.add(name=name, datatype="FP32", shape=array.shape)
      response.raw_output_contents.append(array.tobytes())
    return response


def main(seq_length, *faults):
  pairs = [fault.split(":") for fault in faults]
  server = grpc.server(
      concurrent.futures.ThreadPoolExecutor(16, "answering"))
  service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
      StandIn(int(seq_length), {int(n): code for code, n in pairs}), server)
  print(server.add_insecure_port("127.0.0.1:0"), flush=True)
  server.start()
  server.wait_for_termination()


if __name__ == "__main__":
  main(*sys.argv[1:])
