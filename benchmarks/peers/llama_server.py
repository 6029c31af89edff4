"""llama.cpp as a participant, run by the interpreter of its own environment (numpy, gguf, llama_cpp; no torch).

``PYTHON -m benchmarks.peers.llama_server WEIGHTS.npz SIZES.json PRECISION THREADS LAYOUTS`` writes a GGUF file of that precision beside
the weights, unless it is there, loads it, and answers; with LAYOUTS 0 it leaves the weights as they lie in the file. The calls are the
low-level ones: clocks stand around llama_decode and nothing else.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
from gguf import quants

from benchmarks.peers.serve import serve
from benchmarks.tokens import PROMPT, tokens

TYPES = {
    "float32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "bfloat16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "int8": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "int4": (gguf.GGMLQuantizationType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}
MATRICES = ("token_embd.weight", "ssm_in.weight", "ssm_x.weight", "ssm_dt.weight", "ssm_out.weight")
"""What is stored in the file's precision; the rest (norms, convolutions, dynamics) stays in float32, as llama.cpp's converter does it."""


def write(path: Path, weights: Path, sizes: dict[str, Any], precision: str) -> None:
    """A GGUF file from arrays that already have GGUF names, and a vocabulary without words."""
    kind, file_type = TYPES[precision]
    writer = gguf.GGUFWriter(path, sizes["architecture"])
    writer.add_context_length(1 << 20)
    writer.add_embedding_length(sizes["width"])
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(sizes["depth"])
    writer.add_ssm_conv_kernel(sizes["conv"])
    writer.add_ssm_inner_size(sizes["inner"])
    writer.add_ssm_state_size(sizes["state"])
    writer.add_ssm_time_step_rank(sizes["rank"])
    if sizes["architecture"] == "mamba2":
        writer.add_ssm_group_count(sizes["groups"])
    writer.add_layer_norm_rms_eps(sizes["eps"])
    writer.add_vocab_size(sizes["vocabulary"])
    writer.add_tokenizer_model("none")
    writer.add_file_type(file_type)
    with np.load(weights) as arrays:
        for name in arrays.files:
            stored = gguf.GGMLQuantizationType.F32
            if name.endswith(MATRICES):
                fits = kind not in quants._type_traits or arrays[name].shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0
                stored = kind if fits else gguf.GGMLQuantizationType.F16  # llama.cpp's quantiser does the same
            writer.add_tensor(name, quants.quantize(arrays[name], stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Llama:
    """A model and a context for up to eight sequences."""

    def __init__(self, weights: str, sizes_file: str, precision: str, threads: int, layouts: bool) -> None:
        sizes = json.loads(Path(sizes_file).read_text(encoding="utf-8"))
        self.vocabulary = sizes["vocabulary"]
        path = Path(weights).with_name(f"{precision}.gguf")
        if not path.exists():
            unfinished = path.with_suffix(".part")
            write(unfinished, Path(weights), sizes, precision)
            unfinished.rename(path)
        self.size = path.stat().st_size
        llama_cpp.llama_backend_init()
        model_options = llama_cpp.llama_model_default_params()
        model_options.n_gpu_layers = 0
        model_options.use_extra_bufts = layouts
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_options)
        if not self.model:
            raise RuntimeError(f"llama.cpp does not load {path.name}")
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch, options.n_seq_max = 8192, 512, 512, 8
        options.n_threads = options.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        if not self.context:
            raise RuntimeError("llama.cpp makes no context")
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.batch = llama_cpp.llama_batch_init(512, 0, 1)

    def forget(self) -> None:
        """Empty every sequence."""
        llama_cpp.llama_memory_clear(self.memory, True)

    def fill(self, ids: np.ndarray, first: int, row: int | None = None, all_rows: bool = False) -> None:
        """The batch: one row's positions, or one position of every row; logits at the last, or of every row."""
        self.batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            self.batch.token[i] = int(token)
            self.batch.pos[i] = first + (0 if row is None else i)
            self.batch.n_seq_id[i] = 1
            self.batch.seq_id[i][0] = i if row is None else row
            self.batch.logits[i] = all_rows or i == len(ids) - 1

    def decoded(self) -> float:
        """Run the batch: seconds."""
        start = time.perf_counter()
        code = llama_cpp.llama_decode(self.context, self.batch)
        seconds = time.perf_counter() - start
        if code != 0:
            raise RuntimeError(f"llama_decode returned {code}")
        return seconds

    def last_logits(self) -> np.ndarray:
        """(V,)"""
        pointer = llama_cpp.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (self.vocabulary,)).copy()

    def prefill(self, length: int, batch: int = 1) -> float:
        """Seconds from a prompt to its last logits."""
        self.forget()
        seconds = 0.0
        for row, ids in enumerate(tokens(batch, length, self.vocabulary)):
            for first in range(0, length, 512):
                self.fill(ids[first : first + 512], first, row)
                seconds += self.decoded()
        return seconds

    def decode(self, batch: int, steps: int) -> float:
        """Seconds of a number of steps of a batch, after a short prompt."""
        ids = tokens(batch, PROMPT + steps, self.vocabulary)
        self.forget()
        for row in range(batch):
            self.fill(ids[row, :PROMPT], 0, row)
            self.decoded()
        seconds = 0.0
        for t in range(PROMPT, ids.shape[1]):
            self.fill(ids[:, t], t, all_rows=True)
            seconds += self.decoded()
        return seconds

    def logits(self, file: str, length: int, steps: int) -> None:
        """Write the logits after a prompt, and after each of a few steps, (1 + steps, V), for the check."""
        ids = tokens(1, length + steps, self.vocabulary)[0]
        self.forget()
        self.fill(ids[:length], 0, 0)
        self.decoded()
        rows = [self.last_logits()]
        for t in range(length, length + steps):
            self.fill(ids[t : t + 1], t)
            self.decoded()
            rows.append(self.last_logits())
        np.save(file, np.stack(rows))

    def info(self) -> dict[str, Any]:
        """Bytes of the file, and what llama.cpp says about its build."""
        return {"bytes": self.size, "build": llama_cpp.llama_print_system_info().decode().strip(" |"), "version": llama_cpp.__version__}


if __name__ == "__main__":
    serve(lambda: Llama(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5] == "1"))
