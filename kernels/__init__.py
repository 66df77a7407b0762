"""Fused operations for convolutions whose kernels differ per sample; needs neither a GPU nor Triton to import."""

if __name__ == "kernels":  # a clone's short name for `polychrome.kernels`
    from polychrome.clone import alias

    alias(__name__)
else:
    from polychrome.kernels import decompositions as _decompositions  # noqa: F401  (what torch.onnx.export records)
    from polychrome.kernels import flops as _flops  # noqa: F401  (registers the FLOP formulas)
    from polychrome.kernels.augment import augment
    from polychrome.kernels.backend import use_backend
    from polychrome.kernels.channel_gate import channel_gate
    from polychrome.kernels.dynamic_conv import (
        dynamic_conv1d,
        dynamic_conv2d,
        dynamic_conv3d,
        dynamic_conv_transpose2d,
        pad_kernels,
        per_sample_conv1d,
        per_sample_conv2d,
        per_sample_conv3d,
        per_sample_conv_transpose2d,
    )
    from polychrome.kernels.explain import explain
    from polychrome.kernels.fold import fold_batch_norm
    from polychrome.kernels.fuse import fuse
    from polychrome.kernels.modulated import modulated_conv2d
    from polychrome.kernels.spatial_attention import channel_stats, spatial_attention, spatial_gate

    __all__ = [
        "augment",
        "channel_gate",
        "channel_stats",
        "dynamic_conv1d",
        "dynamic_conv2d",
        "dynamic_conv3d",
        "dynamic_conv_transpose2d",
        "explain",
        "fold_batch_norm",
        "fuse",
        "modulated_conv2d",
        "pad_kernels",
        "per_sample_conv1d",
        "per_sample_conv2d",
        "per_sample_conv3d",
        "per_sample_conv_transpose2d",
        "spatial_attention",
        "spatial_gate",
        "use_backend",
    ]
