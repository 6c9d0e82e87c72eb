"""Speed of the GPU kernels, read without a GPU: `python -m benchmarks.gpu_static`.

A call of a loss is recorded (recording), each launch is compiled for a real GPU (compiling), and its programs run in
Triton's interpreter, where their work and their memory traffic are counted (tracing). A model with a few constants,
fitted to times measured on an H100 (measured), makes times of them (model). Everything here is a prediction.
"""
