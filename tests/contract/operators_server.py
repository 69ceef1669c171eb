"""llama.cpp's server as an operator might run it: nothing of this project is imported here.

usage: operators_server.py MODEL PORT KV_DIR [setting=value …]
"""

import sys
import threading

import xllamacpp

model, port, kv_dir, *settings = sys.argv[1:]
params = xllamacpp.CommonParams()
params.model.path = model
params.hostnames = ["127.0.0.1"]
params.port = int(port)
params.n_parallel = 2
params.n_ctx = 2 * 8192
params.kv_unified = False
params.cache_ram_mib = 0
params.slot_save_path = kv_dir + "/"
params.api_keys = ["operators-key"]
params.n_batch = 256
params.fit_params = False
params.warmup = False
params.n_gpu_layers = 0
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
for setting in settings:
    name, _, value = setting.partition("=")
    setattr(params, name, type(getattr(params, name))(value))
server = xllamacpp.Server(params)
threading.Event().wait()
