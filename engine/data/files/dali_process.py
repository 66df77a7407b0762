"""A program that decodes images by DALI on the CPU: files in, a count, lengths and bytes; height, width, pixels out.

It runs as a process of its own, as DALI's decoders crash over some damaged files; it imports nothing of this project.
"""

import os
import signal
import struct
import sys

import numpy as np
from nvidia.dali import fn, pipeline_def, types

READY = b"ready"
MOST = 16  # files at once
_NONE = np.empty((0, 0, 3), np.uint8)  # the answer for each file where one is refused


@pipeline_def(batch_size=MOST, num_threads=1, device_id=None, prefetch_queue_depth=1)
def _decoding():
    encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
    return fn.decoders.image(encoded, output_type=types.RGB, jpeg_fancy_upsampling=True)


def _serve(requests, answers) -> None:
    pipeline = _decoding()
    answers.write(READY)
    answers.flush()
    while header := requests.read(8):
        (count,) = struct.unpack("<q", header)
        lengths = struct.unpack(f"<{count}q", requests.read(8 * count))
        files = [np.frombuffer(requests.read(length), np.uint8) for length in lengths]
        try:
            images = _run(pipeline, files)
        except RuntimeError:
            pipeline = _decoding()  # an error leaves a pipeline unusable
            images = [_NONE] * count
        for pixels in images:
            answers.write(struct.pack("<qq", *pixels.shape[:2]))
            answers.write(pixels)
        answers.flush()


def _run(pipeline, files) -> list:
    (images,) = pipeline.run(encoded=files)
    return [np.ascontiguousarray(images.at(i)) for i in range(len(files))]


if __name__ == "__main__":
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"):
        signal.signal(signal.Signals[name], signal.SIG_IGN)  # sent to the group of the parent, which ends this process
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    _serve(sys.stdin.buffer, answers)
