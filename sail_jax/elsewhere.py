"""What settings of Brax, CleanRL, PureJaxRL and TRL are called here."""

_EPOCHS = ('optimizer.epochs',)
_LENGTH = ('total_env_steps', 'total_prompts')
_ENVS = ('rollout.contexts', 'rollout.envs')
_STEPS = ('rollout.segment_length', 'rollout.steps')
_BATCH = ('prompts_per_update', 'replay.batch')
_PENALTY = ('divergence.coefficient', 'coefficient')
_RESPONSE = ('sampling.max_tokens', 'data.max_response_tokens')
_REFRESH = ('reference.refresh_prompts', 'reference.refresh_env_steps')

SETTINGS: dict[str, tuple[str, ...]] = {
    'num_timesteps': _LENGTH,
    'total_timesteps': _LENGTH,
    'env_id': ('env.name',),
    'env_name': ('env.name',),
    'num_envs': _ENVS,
    'unroll_length': _STEPS,
    'num_steps': _STEPS,
    'num_minibatches': ('optimizer.minibatches',),
    'num_updates_per_batch': _EPOCHS,
    'update_epochs': _EPOCHS,
    'num_ppo_epochs': _EPOCHS,
    'num_iterations': _EPOCHS,
    'clipping_epsilon': ('optimizer.clip',),
    'clip_coef': ('optimizer.clip',),
    'cliprange': ('optimizer.clip',),
    'discounting': ('value.discount', 'critic.discount'),
    'gamma': ('value.discount', 'critic.discount'),
    'policy_hidden_layer_sizes': ('policy.hidden', 'actor.hidden'),
    'hidden_layer_sizes': ('policy.hidden', 'actor.hidden'),
    'num_evals': ('evaluation.every_updates',),
    'num_eval_envs': ('evaluation.episodes',),
    'max_replay_size': ('replay.capacity',),
    'buffer_size': ('replay.capacity',),
    'min_replay_size': ('rollout.random_env_steps',),
    'learning_starts': ('rollout.random_env_steps',),
    'grad_updates_per_step': ('rollout.update_to_data',),
    'restore_checkpoint_path': ('reference.path',),
    'lr': ('optimizer.learning_rate',),
    'anneal_lr': ('optimizer.decay',),
    'lr_scheduler_type': ('optimizer.decay',),
    'warmup_steps': ('optimizer.warmup_updates',),
    'optim': ('optimizer.rule',),
    'optim_args': ('optimizer.arguments',),
    'gradient_accumulation_steps': ('optimizer.accumulation',),
    'per_device_train_batch_size': _BATCH,
    'batch_size': _BATCH,
    'num_generations': ('group_size', 'rollout.group_size'),
    'max_new_tokens': _RESPONSE,
    'max_completion_length': _RESPONSE,
    'response_length': _RESPONSE,
    'max_prompt_length': ('data.max_prompt_tokens',),
    'loss_type': ('objective.loss',),
    'simpo_gamma': ('objective.target_margin',),
    'kl_coef': _PENALTY,
    'kl_coeff': _PENALTY,
    'init_kl_coef': _PENALTY,
    'kl_penalty': _PENALTY,
    'ref_model_sync_steps': _REFRESH,
    'ref_model_mixup_alpha': ('reference.ema',),
    'model_name_or_path': ('model.path',),
    'dataset_name': ('data.path',),
}
"""By the last part of a name; of ours, the first that a workload has."""
