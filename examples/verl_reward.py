"""A user's reward for verl: reward.custom_reward_function.path of examples/verl_grpo.sh.

Nothing but names: change it where a completion has parts that the user does not see, for instance

    async def compute_score(data_source, solution_str, ground_truth, extra_info, **options):
        seen = solution_str.rpartition("</think>")[2]
        return await personal_score(data_source, seen, ground_truth, extra_info, **options)

METAREWARD_URL and METAREWARD_API_KEY name the server and a key of the role `score`. Needs metareward-client (sdk/).
"""

from metareward_client.verl import compute_score, compute_score_sync

__all__ = ["compute_score", "compute_score_sync"]
