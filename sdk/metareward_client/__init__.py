"""Client of the metareward server: personalised rewards for RLHF training, best-of-n and reranking."""
