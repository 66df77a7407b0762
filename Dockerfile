# For machines with NVIDIA GPUs and the NVIDIA container toolkit. Not built yet: nobody had Docker and a GPU at hand.
#   docker build -t polychrome .
#   docker run --gpus all --shm-size 8g -v /path/of/photos:/data:ro -v "$PWD/runs":/runs polychrome \
#       task1 --data /data --out /runs
FROM python:3.12-slim

# torch brings CUDA's libraries; torch.compile and Triton need a compiler.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /polychrome
COPY . .
RUN pip install --no-cache-dir '.[train,export,parquet]'

# Decoded images are kept from run to run where this folder is a volume.
ENV XDG_CACHE_HOME=/cache
VOLUME ["/cache", "/runs"]
WORKDIR /
ENTRYPOINT ["polychrome"]
CMD ["doctor"]
