#!/bin/sh
# GRPO with OpenRLHF 0.11 on people's own rewards, through its remote reward model: nothing of ours is installed there.
# `make serve` runs beside it; a server that wants keys needs openrlhf_file.sh. Needs GPUs and OpenRLHF. The server reads
# the policy's chat format back, if it is a usual one. More options of OpenRLHF: as arguments.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
export METAREWARD_URL="${METAREWARD_URL:-http://127.0.0.1:8000}"
DATA="${DATA:-/tmp/metareward-openrlhf}"

until curl -sf "$METAREWARD_URL/ready" >"/dev/null"; do sleep 2; done
mkdir -p "$DATA"
python3 "$here/openrlhf_data.py" "${PROMPTS:-$here/prompts.jsonl}" "$DATA/train.jsonl"

python3 -m openrlhf.cli.train_ppo_ray \
    --actor.model_name_or_path "${MODEL:-Qwen/Qwen3-0.6B}" \
    --reward.remote_url "$METAREWARD_URL/v1/openrlhf/get_reward" \
    --data.prompt_dataset "$DATA/train.jsonl" \
    --data.input_key prompt \
    --data.label_key label \
    --data.apply_chat_template \
    --data.max_len 1024 \
    --rollout.n_samples_per_prompt 8 \
    --rollout.batch_size 8 \
    --train.batch_size 64 \
    --algo.advantage.estimator group_norm \
    --actor.num_nodes 1 \
    --actor.num_gpus_per_node "${GPUS:-1}" \
    --vllm.num_engines "${GPUS:-1}" \
    --vllm.gpu_memory_utilization 0.5 \
    --train.colocate_all \
    --vllm.enable_sleep \
    --ds.enable_sleep \
    "$@"
