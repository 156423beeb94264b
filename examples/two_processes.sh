#!/bin/sh
# Stage 2 in two processes, on CPU here (gloo); leave --use_cpu out for two GPUs. Further flags of `semcot distill` follow:
#   sh examples/two_processes.sh --dataset coin_flip --alpha 0 --max_steps 100 --output_dir runs/two_processes
# Half the batch in each gives the losses and weights of one process with that batch accumulated in two parts.
exec torchrun --standalone --nproc_per_node 2 --no-python semcot distill --use_cpu "$@"
