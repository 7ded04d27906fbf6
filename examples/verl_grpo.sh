#!/bin/sh
# GRPO with verl 0.9 on people's own rewards; `make serve` runs beside it. Needs GPUs, verl and metareward-client (sdk/) on
# every node. METAREWARD_API_KEY: a key of the role `score`, where the server wants one. More options of verl: as arguments.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
export METAREWARD_URL="${METAREWARD_URL:-http://127.0.0.1:8000}"
DATA="${DATA:-/tmp/metareward-verl}"

until curl -sf "$METAREWARD_URL/ready" >"/dev/null"; do sleep 2; done
mkdir -p "$DATA"
python3 "$here/verl_data.py" "${PROMPTS:-$here/prompts.jsonl}" "$DATA/train.parquet"

python3 -m verl.trainer.main_ppo \
    algorithm.adv_estimator=grpo \
    data.train_files="$DATA/train.parquet" \
    data.val_files="$DATA/train.parquet" \
    data.train_batch_size=8 \
    data.max_prompt_length=512 \
    data.max_response_length=512 \
    actor_rollout_ref.model.path="${MODEL:-Qwen/Qwen3-0.6B}" \
    actor_rollout_ref.actor.ppo_mini_batch_size=8 \
    actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4 \
    actor_rollout_ref.rollout.name=vllm \
    actor_rollout_ref.rollout.n=8 \
    actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4 \
    reward.num_workers=2 \
    reward.custom_reward_function.path="$here/verl_reward.py" \
    reward.custom_reward_function.name=compute_score \
    +reward.custom_reward_function.reward_kwargs.base_url="$METAREWARD_URL" \
    +reward.custom_reward_function.reward_kwargs.timeout=240 \
    trainer.n_gpus_per_node="${GPUS:-1}" \
    trainer.nnodes=1 \
    trainer.total_epochs=1 \
    'trainer.logger=[console]' \
    "$@"
