"""What an answer is worth: plain Python without models or tensors.

    wanted = read([{"kind": "numeric", "weight": 2}, "finished"])
    scores = wanted.score(answers)          # scores.total, scores.parts, scores.bad

A registered entry is a frozen config class and a factory: `(config) -> (answers -> one value, or
None for no opinion, an answer)`.
"""

from tunewright.rewards import matching as matching
from tunewright.rewards import measuring as measuring
from tunewright.rewards import numeric as numeric
from tunewright.rewards import reaching as reaching
from tunewright.rewards import structure as structure
from tunewright.rewards import user_code as user_code
from tunewright.rewards.reading import RewardSet as RewardSet
from tunewright.rewards.reading import Scores as Scores
from tunewright.rewards.reading import expecting as expecting
from tunewright.rewards.reading import read as read
from tunewright.rewards.reading import recorded as recorded
from tunewright.rewards.user_code import allowing as allowing
