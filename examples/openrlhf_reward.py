"""A user's reward for OpenRLHF: --reward.remote_url of examples/openrlhf_file.sh, --data.label_key label.

METAREWARD_URL and METAREWARD_API_KEY name the server and a key of the role `score`. Needs metareward-client (sdk/).
"""

from metareward_client.openrlhf import reward_function

reward_func = reward_function(timeout=300)
