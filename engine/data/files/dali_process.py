"""A program that decodes images by DALI on the CPU: length and bytes of a file in, height, width and pixels out.

It runs as a process of its own, as DALI's decoders crash over some damaged files; it imports nothing of this project.
"""

import os
import struct
import sys

import numpy as np
from nvidia.dali import fn, pipeline_def, types

READY = b"ready"


@pipeline_def(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
def _single():
    encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
    return fn.decoders.image(encoded, output_type=types.RGB, jpeg_fancy_upsampling=True)


def _serve(requests, answers) -> None:
    pipeline = _single()
    answers.write(READY)
    answers.flush()
    while header := requests.read(8):
        encoded = requests.read(struct.unpack("<q", header)[0])
        try:
            (images,) = pipeline.run(encoded=[np.frombuffer(encoded, np.uint8)])
        except RuntimeError:
            pipeline = _single()  # an error leaves a pipeline unusable
            answers.write(struct.pack("<qq", 0, 0))
        else:
            pixels = np.ascontiguousarray(images.at(0))
            answers.write(struct.pack("<qq", *pixels.shape[:2]))
            answers.write(pixels)
        answers.flush()


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    _serve(sys.stdin.buffer, answers)
