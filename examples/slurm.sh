#!/bin/bash
# A run of any length as a Slurm job that is put back into the queue until the run is done:
#
#   sbatch --gres=gpu:1 --time=04:00:00 examples/slurm.sh task1 --data /data/images --epochs 200
#
# Slurm warns this script 2 minutes before the job's time is over. The run then saves, and the job goes back into the
# queue under the same number; its next start goes on with the run of this number. Slurm itself does the same after a
# preemption or the failure of a node.
#SBATCH --job-name=polychrome
#SBATCH --cpus-per-task=8
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
#SBATCH --open-mode=append

# Of several GPUs: torchrun --standalone --nproc-per-node="$SLURM_GPUS_ON_NODE" -m train.run
run=(python -m train.run)

"${run[@]}" "$@" --name "job-$SLURM_JOB_ID" --resume auto &
process=$!
warned=

# To torchrun, too, SIGTERM is the request to end its processes, which save.
trap 'warned=1; kill -TERM "$process"' USR1
trap 'kill -TERM "$process"' TERM

# A signal ends `wait` before the process has ended.
wait "$process"
status=$?
while kill -0 "$process" 2>/dev/null; do
    wait "$process"
    status=$?
done

if [ -n "$warned" ] && [ "$status" -ne 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
