"""What is optimised: small pure functions of log-probabilities and weights."""

from tunewright.objectives import bco as bco
from tunewright.objectives import distill as distill
from tunewright.objectives import grpo as grpo
from tunewright.objectives import kto as kto
from tunewright.objectives import online_dpo as online_dpo
from tunewright.objectives import ppo as ppo
from tunewright.objectives import preference as preference
from tunewright.objectives import pretrain as pretrain
from tunewright.objectives import process_reward as process_reward
from tunewright.objectives import reinforce as reinforce
from tunewright.objectives import rejection as rejection
from tunewright.objectives import reward as reward
from tunewright.objectives import sft as sft
