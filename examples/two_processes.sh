#!/bin/sh
# Stage 2 in two processes on the CPU (gloo); without --use_cpu on two GPUs. Pass flags of `semcot distill`:
#   sh examples/two_processes.sh --dataset facts --alpha 0 --max_steps 100 --output_dir runs/two_processes
# Losses and weights are those of one process with the same batch size and twice the gradient accumulation steps.
exec torchrun --standalone --nproc_per_node 2 --no-python semcot distill --use_cpu "$@"
