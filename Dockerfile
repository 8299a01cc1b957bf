# The suite in NVIDIA's last TensorFlow 1 container (TensorFlow 1.15.5, Python
# 3.8, CUDA 12.1; V100 to H100), which brings its own Horovod and NCCL.
#
#   bash scripts/docker/build.sh      builds it
#   bash scripts/docker/launch.sh     starts it, the checkout in /workspace/bert
ARG FROM_IMAGE_NAME=nvcr.io/nvidia/tensorflow:23.03-tf1-py3
FROM ${FROM_IMAGE_NAME}

# Outside the checkout: the host's own environment in .venv is for its Python.
ENV BERT_VENV_DIR=/opt/bert-venv
WORKDIR /workspace/bert

# The lists first, so that a change of the code alone installs nothing anew.
COPY requirements.txt requirements-tf2.txt requirements-test.txt ./
COPY scripts/setup.sh scripts/
COPY scripts/setup/ scripts/setup/
RUN bash scripts/setup.sh --with_tests

COPY . .
